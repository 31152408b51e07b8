//! The command line: what `skep` understands, and the client of the local API behind it.
//!
//! The words, options, columns and exit codes are the docker CLI's; what Docker has no words
//! for stands under "Beyond Docker".

mod archive;
mod audit;
mod call;
mod client;
mod commands;
mod completion;
mod container;
mod error;
mod exec;
mod flags;
mod frames;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod help;
mod holders;
mod human;
mod image;
mod import;
mod input;
mod inspect;
mod json;
mod logs;
mod material;
mod messages;
mod network;
mod node;
mod node_args;
mod output;
mod progress;
mod service;
mod swarm;
mod system;
mod table;
mod task;
mod template;
mod terminal;
mod values;
mod versions;

use std::path::PathBuf;
use std::process::ExitCode;

use call::{DEFAULT_SOCKET, out, socket_of, warn};
use commands::{ABOUT, GLOBAL_FLAGS, ROOT};
use error::CliError;
use flags::{Action, Command, Matches, Stop};

pub use call::Call;
pub use node_args::{Availability, Join, LogFormat, NodeArgs, Start, TokenSource};

/// Exit code of a bad flag.
const BAD_FLAG: u8 = 125;

/// What the command line asks this process to be.
#[derive(Debug)]
pub enum Cli {
    /// A node, by `up` or `daemon`.
    Node(Box<NodeArgs>),
    /// The supervisor of the task whose files are in this directory.
    Shim(PathBuf),
    /// A client of the local API: give it to [`run`].
    Client(Box<Call>),
    /// Nothing more: help was printed, or an error told.
    Done(ExitCode),
}

/// Reads the command line of this process. Help and errors are printed here.
#[must_use]
pub fn parse() -> Cli {
    let words = std::env::args_os().skip(1).map(|word| word.into_string());
    let Ok(words) = words.collect::<Result<Vec<_>, _>>() else {
        warn("skep: an argument is not valid UTF-8");
        return Cli::Done(ExitCode::from(BAD_FLAG));
    };
    match read(&words) {
        Ok(cli) => cli,
        Err(Early::Help(text)) => match out(&text) {
            Ok(()) => Cli::Done(ExitCode::SUCCESS),
            Err(_) => Cli::Done(ExitCode::FAILURE),
        },
        Err(Early::Warned { text, code }) => {
            warn(text.trim_end());
            Cli::Done(ExitCode::from(code))
        }
    }
}

/// Does what a client call asks; the exit code is Docker's for the same.
#[must_use]
pub fn run(call: &Call) -> ExitCode {
    let Action::Client(act) = call.command.action else {
        return ExitCode::FAILURE;
    };
    match act(call) {
        Ok(code) => ExitCode::from(code),
        Err(CliError::Output(why)) if why.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::FAILURE
        }
        Err(CliError::Usage(message)) => {
            let text = help::usage_error(&message, &call.path, call.command.usage, false);
            warn(text.trim_end());
            ExitCode::FAILURE
        }
        Err(why) => {
            warn(&why.to_string());
            ExitCode::FAILURE
        }
    }
}

/// The end of a call before it began.
#[derive(Debug)]
enum Early {
    /// Help for standard output.
    Help(String),
    /// A text for standard error.
    Warned { text: String, code: u8 },
}

fn read(words: &[String]) -> Result<Cli, Early> {
    let (globals, rest) = globals(words)?;
    if globals.on("version") {
        return Err(Early::Help(format!("Skep version {}\n", env!("CARGO_PKG_VERSION"))));
    }
    let Some((word, rest)) = rest.split_first() else {
        return Err(Early::Warned { text: root_help(), code: 0 });
    };
    let (rest, wants_help): (Vec<String>, bool) = match word.as_str() {
        "help" => (rest.to_vec(), true),
        _ => (std::iter::once(word).chain(rest).cloned().collect(), false),
    };
    if rest.is_empty() {
        return Err(Early::Help(root_help()));
    }
    let (path, command, rest) = descend(&rest)?;
    if wants_help {
        return Err(Early::Help(help::command(&path, command, columns())));
    }
    dispatch(path, command, &rest, &globals)
}

/// The flags before the first command, and what follows them.
fn globals(words: &[String]) -> Result<(Matches, Vec<String>), Early> {
    let usage = "[OPTIONS] COMMAND [ARG...]";
    match flags::parse(GLOBAL_FLAGS, words, true) {
        Ok(mut matches) => {
            let rest = std::mem::take(&mut matches.args);
            Ok((matches, rest))
        }
        Err(Stop::Help(_)) => Err(Early::Help(root_help())),
        Err(Stop::Bad(why)) => Err(Early::Warned {
            text: help::usage_error(&why, "skep", usage, false),
            code: BAD_FLAG,
        }),
    }
}

/// Follows the words down the tree to a command that does something.
fn descend(words: &[String]) -> Result<(String, &'static Command, Vec<String>), Early> {
    let mut path = "skep".to_owned();
    let mut commands = ROOT;
    let mut found: Option<&'static Command> = None;
    let mut rest = words;
    loop {
        let Some((word, after)) = rest.split_first() else {
            let Some(group) = found else {
                return Err(Early::Warned { text: root_help(), code: 0 });
            };
            let text = help::command(&path, group, columns());
            return Err(Early::Warned { text, code: 0 });
        };
        if let Some(group) = found
            && word.starts_with('-')
        {
            return Err(group_flag(&path, group, word));
        }
        let Some(command) = commands.iter().find(|command| command.answers_to(word)) else {
            let usage = match found {
                Some(_) => format!("\n\nUsage:  {path}"),
                None => String::new(),
            };
            return Err(Early::Warned {
                text: format!(
                    "skep: unknown command: {path} {word}{usage}\n\n\
                     Run '{path} --help' for more information"
                ),
                code: 1,
            });
        };
        path = format!("{path} {}", command.name);
        rest = after;
        match command.action {
            Action::Group(inner) => commands = inner,
            _ => return Ok((path, command, rest.to_vec())),
        }
        found = Some(command);
    }
}

/// What a flag where a command should stand leads to.
fn group_flag(path: &str, group: &Command, word: &str) -> Early {
    match flags::parse(&[], std::slice::from_ref(&word.to_owned()), true) {
        Err(Stop::Bad(why)) => {
            Early::Warned { text: help::usage_error(&why, path, "COMMAND", false), code: BAD_FLAG }
        }
        _ => Early::Help(help::command(path, group, columns())),
    }
}

fn dispatch(
    path: String,
    command: &'static Command,
    words: &[String],
    globals: &Matches,
) -> Result<Cli, Early> {
    let bad = |message: &str, code, see| Early::Warned {
        text: help::usage_error(message, &path, command.usage, see),
        code,
    };
    let matches = match flags::parse(command.flags, words, command.forwards) {
        Ok(matches) => matches,
        Err(Stop::Bad(why)) => return Err(bad(&why, BAD_FLAG, false)),
        Err(Stop::Help(old)) => {
            if old {
                warn("Flag shorthand -h has been deprecated, use --help");
            }
            return Err(Early::Help(help::command(&path, command, columns())));
        }
    };
    if let Some((why, see)) = flags::arity_error(&path, command.arity, matches.args.len()) {
        return Err(bad(&why, 1, see));
    }
    let wrong = |why: String| bad(&why, BAD_FLAG, false);
    match command.action {
        Action::Up => node_args::read(Start::Up, &matches, globals).map_err(wrong).map(Cli::node),
        Action::Daemon => {
            node_args::read(Start::Daemon, &matches, globals).map_err(wrong).map(Cli::node)
        }
        Action::Shim => match matches.get("task") {
            Some(directory) => Ok(Cli::Shim(PathBuf::from(directory))),
            None => Err(bad("flag needed: --task", BAD_FLAG, false)),
        },
        Action::Group(_) | Action::Client(_) => {
            let socket = socket(globals).map_err(|text| Early::Warned { text, code: BAD_FLAG })?;
            Ok(Cli::Client(Box::new(Call { path, command, matches, socket })))
        }
    }
}

impl Cli {
    fn node(args: NodeArgs) -> Self {
        Self::Node(Box::new(args))
    }
}

/// The socket to call: `-H`, then the environment, then the default.
fn socket(globals: &Matches) -> Result<PathBuf, String> {
    if let Some(host) = globals.get("host") {
        if globals.all("host").len() > 1 {
            return Err("Specify only one -H".to_owned());
        }
        return socket_of(host);
    }
    for name in ["SKEP_HOST", "DOCKER_HOST"] {
        if let Some(host) = std::env::var(name).ok().filter(|host| !host.is_empty()) {
            return socket_of(&host).map_err(|why| format!("{name}: {why}"));
        }
    }
    Ok(PathBuf::from(DEFAULT_SOCKET))
}

fn root_help() -> String {
    help::root(ABOUT, ROOT, GLOBAL_FLAGS, columns())
}

/// Columns of the terminal; 80 if there is none.
fn columns() -> usize {
    rustix::termios::tcgetwinsize(std::io::stdin())
        .map_or(80, |size| usize::from(size.ws_col))
        .max(40)
}

#[cfg(test)]
mod exchange_tests;
#[cfg(test)]
mod tests;
