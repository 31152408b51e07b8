//! `skep completion` and `skep man`: both made from the tables of commands.

use std::fs;
use std::path::Path;

use clap_complete::Shell;

use super::call::{Call, out};
use super::commands::{ABOUT, GLOBAL_FLAGS, ROOT};
use super::error::CliError;
use super::flags::{Action, Arity, Command, Flag};

/// `skep completion`
pub(super) const COMPLETION: Command = Command::client(
    "completion",
    "bash|fish|powershell|zsh",
    "Generate the autocompletion script for the specified shell",
    completion,
)
.takes(Arity::Exactly(1))
.section("Beyond Docker");

/// `skep man`
pub(super) const MAN: Command =
    Command::client("man", "DIR", "Write manual pages into a directory", man)
        .takes(Arity::Exactly(1))
        .section("");

fn completion(call: &Call) -> Result<u8, CliError> {
    let shell = match call.arg(0) {
        "bash" => Shell::Bash,
        "fish" => Shell::Fish,
        "powershell" => Shell::PowerShell,
        "zsh" => Shell::Zsh,
        other => {
            return Err(CliError::Usage(format!(
                "unknown shell {other:?}: bash, fish, powershell or zsh"
            )));
        }
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut tree(), "skep", &mut script);
    out(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

fn man(call: &Call) -> Result<u8, CliError> {
    let directory = Path::new(call.arg(0));
    let fail = |why: std::io::Error| {
        CliError::plain(format!("cannot write manual pages into {}: {why}", directory.display()))
    };
    fs::create_dir_all(directory).map_err(fail)?;
    clap_mangen::generate_to(tree(), directory).map_err(fail)?;
    Ok(0)
}

/// The commands in the form that the generators read.
fn tree() -> clap::Command {
    let root = clap::Command::new("skep")
        .about(ABOUT)
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .disable_version_flag(true)
        .args(GLOBAL_FLAGS.iter().map(arg));
    ROOT.iter().fold(root, |root, command| root.subcommand(node(command)))
}

fn node(command: &'static Command) -> clap::Command {
    let made = clap::Command::new(command.name)
        .about(command.about)
        .visible_aliases(command.aliases.iter().copied())
        .disable_help_subcommand(true)
        .hide(command.section.is_empty())
        .args(command.flags.iter().map(arg));
    match command.action {
        Action::Group(commands) => {
            commands.iter().fold(made, |made, inner| made.subcommand(node(inner)))
        }
        _ if command.arity == Arity::None => made,
        _ => made.arg(
            clap::Arg::new("arguments")
                .value_name("ARG")
                .num_args(0..)
                .help(command.usage)
                .trailing_var_arg(command.forwards),
        ),
    }
}

fn arg(flag: &Flag) -> clap::Arg {
    let made = clap::Arg::new(flag.name).long(flag.name).help(flag.usage);
    let made = match flag.short {
        Some(letter) => made.short(letter),
        None => made,
    };
    match flag.value {
        "" => made.action(clap::ArgAction::SetTrue),
        value => made.value_name(value).action(clap::ArgAction::Append),
    }
}
