//! Tables of commands and flags, and the reader of a command line by them.
//!
//! The rules are those of the docker CLI, so that its transcripts work unchanged: `--flag=value`
//! and `--flag value`, `-abc` and `-n5`, booleans that take their value only behind `=`, flags
//! after arguments unless the command forwards its own.

use std::collections::BTreeMap;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction};

use super::call::Call;
use super::error::CliError;

/// One flag of a command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag {
    /// Long name, without dashes.
    pub(super) name: &'static str,
    /// Letter, if there is one.
    pub(super) short: Option<char>,
    /// The word for its value in help; empty for a switch.
    pub(super) value: &'static str,
    /// What it does.
    pub(super) usage: &'static str,
    /// Refuses values that make no sense.
    pub(super) check: fn(&str) -> Result<(), String>,
}

impl Flag {
    /// A flag without value, or with `=true` or `=false`.
    pub(super) const fn switch(name: &'static str, usage: &'static str) -> Self {
        Self { name, short: None, value: "", usage, check: check_bool }
    }

    /// A flag with a value that `value` names in help.
    pub(super) const fn with(name: &'static str, value: &'static str, usage: &'static str) -> Self {
        Self { name, short: None, value, usage, check: |_| Ok(()) }
    }

    /// The same with a letter.
    pub(super) const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    /// The same with a check of its value.
    pub(super) const fn check(mut self, check: fn(&str) -> Result<(), String>) -> Self {
        self.check = check;
        self
    }

    fn is_switch(&self) -> bool {
        self.value.is_empty()
    }

    /// How errors name it.
    fn label(&self) -> String {
        match self.short {
            Some(letter) => format!("-{letter}, --{}", self.name),
            None => format!("--{}", self.name),
        }
    }
}

/// How many arguments a command takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arity {
    /// None.
    None,
    /// So many.
    Exactly(usize),
    /// So many or more.
    AtLeast(usize),
    /// So many or fewer.
    AtMost(usize),
    /// From the first to the second.
    Between(usize, usize),
    /// As many as there are.
    Any,
}

/// What a command does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Action {
    /// It only holds others.
    Group(&'static [Command]),
    /// It calls the local API, or nothing; the result is the exit code.
    Client(fn(&Call) -> Result<u8, CliError>),
    /// It becomes a node: `up`.
    Up,
    /// It becomes a node: `daemon`.
    Daemon,
    /// It becomes the supervisor of a task.
    Shim,
}

/// A command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    /// Its word.
    pub(super) name: &'static str,
    /// Other words for it.
    pub(super) aliases: &'static [&'static str],
    /// Every way to write it, for help, without `skep`.
    pub(super) also: &'static [&'static str],
    /// What follows its name in the usage line.
    pub(super) usage: &'static str,
    /// What it does, in one line.
    pub(super) about: &'static str,
    /// Under which heading the top level lists it; empty hides it.
    pub(super) section: &'static str,
    /// Its flags in the order of help.
    pub(super) flags: &'static [Flag],
    /// Its arguments.
    pub(super) arity: Arity,
    /// Whether flags end at the first argument, because the rest belongs to another program.
    pub(super) forwards: bool,
    /// What it does.
    pub(super) action: Action,
}

impl Command {
    /// A command that calls the API.
    pub(super) const fn client(
        name: &'static str,
        usage: &'static str,
        about: &'static str,
        run: fn(&Call) -> Result<u8, CliError>,
    ) -> Self {
        Self::new(name, usage, about, Action::Client(run))
    }

    /// A command that holds others.
    pub(super) const fn group(
        name: &'static str,
        about: &'static str,
        commands: &'static [Self],
    ) -> Self {
        Self::new(name, "COMMAND", about, Action::Group(commands))
    }

    /// A command with any action.
    pub(super) const fn new(
        name: &'static str,
        usage: &'static str,
        about: &'static str,
        action: Action,
    ) -> Self {
        Self {
            name,
            aliases: &[],
            also: &[],
            usage,
            about,
            section: "Commands",
            flags: &[],
            arity: Arity::Any,
            forwards: false,
            action,
        }
    }

    pub(super) const fn flags(mut self, flags: &'static [Flag]) -> Self {
        self.flags = flags;
        self
    }

    pub(super) const fn takes(mut self, arity: Arity) -> Self {
        self.arity = arity;
        self
    }

    pub(super) const fn aliases(
        mut self,
        aliases: &'static [&'static str],
        also: &'static [&'static str],
    ) -> Self {
        self.aliases = aliases;
        self.also = also;
        self
    }

    pub(super) const fn forwards(mut self) -> Self {
        self.forwards = true;
        self
    }

    pub(super) const fn section(mut self, section: &'static str) -> Self {
        self.section = section;
        self
    }

    /// Whether one of its words is `word`.
    pub(super) fn answers_to(&self, word: &str) -> bool {
        self.name == word || self.aliases.contains(&word)
    }
}

/// What a command line said: values of flags by name, in order, and the arguments.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Matches {
    flags: BTreeMap<&'static str, Vec<String>>,
    /// The arguments.
    pub(super) args: Vec<String>,
}

impl Matches {
    /// Whether the flag was given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.flags.contains_key(name)
    }

    /// Whether the switch is on.
    pub(super) fn on(&self, name: &str) -> bool {
        self.get(name).and_then(parse_bool).unwrap_or(false)
    }

    /// The last value of the flag.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.flags.get(name).and_then(|values| values.last()).map(String::as_str)
    }

    /// All values of the flag, in order.
    pub(super) fn all(&self, name: &str) -> &[String] {
        self.flags.get(name).map_or(&[], Vec::as_slice)
    }

    /// The argument at `index`.
    pub(super) fn arg(&self, index: usize) -> Option<&str> {
        self.args.get(index).map(String::as_str)
    }
}

/// What reading a command line led to, if not to matches.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Help is wanted; `true` if by the old `-h`.
    Help(bool),
    /// A flag is wrong.
    Bad(String),
}

/// Id of the arguments among a command's flags.
const ARGS: &str = "<args>";
/// Id of `--help`.
const HELP: &str = "<help>";
/// Id of the old `-h`.
const OLD_HELP: &str = "<old-help>";

/// Reads `words` by `flags`. With `forwards`, everything from the first argument on is taken
/// as it stands.
pub(super) fn parse(flags: &[Flag], words: &[String], forwards: bool) -> Result<Matches, Stop> {
    let parsed = match reader(flags, forwards).try_get_matches_from(words) {
        Ok(parsed) => parsed,
        Err(error) => return Err(Stop::Bad(in_dockers_words(&error, words))),
    };
    if parsed.get_count(HELP) > 0 {
        return Err(Stop::Help(false));
    }
    if parsed.try_get_one::<u8>(OLD_HELP).ok().flatten().is_some_and(|count| *count > 0) {
        return Err(Stop::Help(true));
    }
    let strings = |id: &str| -> Vec<String> {
        parsed.get_many::<String>(id).into_iter().flatten().cloned().collect()
    };
    let mut matches = Matches { args: strings(ARGS), ..Matches::default() };
    for flag in flags {
        for value in strings(flag.name) {
            (flag.check)(&value).map_err(|why| {
                Stop::Bad(format!("invalid argument {value:?} for {:?} flag: {why}", flag.label()))
            })?;
            matches.flags.entry(flag.name).or_default().push(value);
        }
    }
    Ok(matches)
}

/// The reader for one command's words.
fn reader(flags: &[Flag], forwards: bool) -> clap::Command {
    let help = Arg::new(HELP).long("help").action(ArgAction::Count);
    let args = Arg::new(ARGS).num_args(0..).action(ArgAction::Append);
    // What a forwarding command's first argument begins belongs to another program.
    let args = args.trailing_var_arg(forwards);
    let mut reader = clap::Command::new("skep")
        .no_binary_name(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args(flags.iter().map(arg))
        .arg(help)
        .arg(args);
    if flags.iter().all(|flag| flag.short != Some('h')) {
        reader = reader.arg(Arg::new(OLD_HELP).short('h').action(ArgAction::Count));
    }
    reader
}

/// A flag as the reader knows it: a switch takes a value only behind `=`, another flag takes
/// whatever follows it.
fn arg(flag: &Flag) -> Arg {
    let arg = Arg::new(flag.name).long(flag.name).action(ArgAction::Append);
    let arg = match flag.short {
        Some(letter) => arg.short(letter),
        None => arg,
    };
    if flag.is_switch() {
        arg.num_args(0..=1).require_equals(true).default_missing_value("true")
    } else {
        arg.num_args(1).allow_hyphen_values(true)
    }
}

/// What the docker CLI says of the same mistake.
fn in_dockers_words(error: &clap::Error, words: &[String]) -> String {
    let named = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(named)) => named.as_str(),
        _ => "",
    };
    match error.kind() {
        ErrorKind::InvalidValue | ErrorKind::WrongNumberOfValues | ErrorKind::TooFewValues => {
            needs_an_argument(words)
        }
        _ => unknown(named, words),
    }
}

/// The flag that misses its value is the last word.
fn needs_an_argument(words: &[String]) -> String {
    let word = words.last().map(String::as_str).unwrap_or_default();
    match word.strip_prefix("--") {
        Some(_) => format!("flag needs an argument: {word}"),
        None => {
            let letter = word.chars().last().unwrap_or_default();
            format!("flag needs an argument: '{letter}' in {word}")
        }
    }
}

fn unknown(named: &str, words: &[String]) -> String {
    let odd = |word: &&String| word.starts_with("--=") || word.starts_with("---");
    if let Some(word) = words.iter().find(odd) {
        return format!("bad flag syntax: {word}");
    }
    if let Some(name) = named.strip_prefix("--") {
        let name = name.split('=').next().unwrap_or_default();
        return format!("unknown flag: --{name}");
    }
    let letter = named.trim_start_matches('-').chars().next().unwrap_or_default();
    let clusters = words.iter().filter(|word| word.starts_with('-') && !word.starts_with("--"));
    let rest = clusters.filter_map(|word| word.find(letter).and_then(|at| word.get(at..))).next();
    let rest = rest.unwrap_or_default();
    format!("unknown shorthand flag: '{letter}' in -{rest}")
}

/// Says what is wrong with the number of arguments: the sentence, and whether help is
/// introduced by "See" (else "Run").
pub(super) fn arity_error(path: &str, arity: Arity, given: usize) -> Option<(String, bool)> {
    let plural = |count: usize| if count == 1 { "argument" } else { "arguments" };
    let (fits, says, see) = match arity {
        Arity::None => (given == 0, "accepts no arguments".to_owned(), false),
        Arity::Exactly(n) => (given == n, format!("requires {n} {}", plural(n)), false),
        Arity::AtLeast(n) => (given >= n, format!("requires at least {n} {}", plural(n)), true),
        Arity::AtMost(n) => (given <= n, format!("requires at most {n} {}", plural(n)), false),
        Arity::Between(low, high) => (
            (low..=high).contains(&given),
            format!("requires at least {low} and at most {high} {}", plural(high)),
            false,
        ),
        Arity::Any => return None,
    };
    (!fits).then(|| (format!("skep: '{path}' {says}"), see))
}

/// A truth value as Go writes them.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn check_bool(text: &str) -> Result<(), String> {
    match parse_bool(text) {
        Some(_) => Ok(()),
        None => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag::switch("all", "").short('a'),
        Flag::switch("quiet", "").short('q'),
        Flag::with("last", "int", "").short('n'),
        Flag::with("label", "list", ""),
    ];

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    fn bad(line: &str) -> String {
        match parse(FLAGS, &words(line), false) {
            Err(Stop::Bad(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn reads_every_way_to_write_a_flag() {
        let got = parse(FLAGS, &words("-aq -n5 x --label a=b --label=c --all=false - y"), false);
        let got = got.unwrap();
        assert!(!got.on("all") && got.on("quiet") && got.has("all"));
        assert_eq!(got.get("last"), Some("5"));
        assert_eq!(got.all("label"), ["a=b", "c"]);
        assert_eq!(got.args, ["x", "-", "y"]);
    }

    #[test]
    fn two_dashes_end_flags_and_forwarding_commands_stop_at_the_first_argument() {
        let got = parse(FLAGS, &words("-q -- --all"), false).unwrap();
        assert_eq!(got.args, ["--all"]);
        let got = parse(FLAGS, &words("-q sh -c --help"), true).unwrap();
        assert_eq!(got.args, ["sh", "-c", "--help"]);
    }

    #[test]
    fn errors_are_in_dockers_words() {
        assert_eq!(bad("--foo"), "unknown flag: --foo");
        assert_eq!(bad("-aqx"), "unknown shorthand flag: 'x' in -x");
        assert_eq!(bad("-n"), "flag needs an argument: 'n' in -n");
        assert_eq!(bad("--label"), "flag needs an argument: --label");
        assert_eq!(bad("--=x"), "bad flag syntax: --=x");
        assert_eq!(
            bad("--all=foo"),
            "invalid argument \"foo\" for \"-a, --all\" flag: \
             strconv.ParseBool: parsing \"foo\": invalid syntax"
        );
    }

    #[test]
    fn help_wins_wherever_it_stands() {
        assert_eq!(parse(FLAGS, &words("x --help"), false), Err(Stop::Help(false)));
        assert_eq!(parse(FLAGS, &words("-h"), false), Err(Stop::Help(true)));
    }

    #[test]
    fn argument_counts() {
        let says = |arity, given| arity_error("skep x", arity, given).map(|(text, _)| text);
        assert_eq!(says(Arity::Exactly(1), 1), None);
        assert_eq!(says(Arity::None, 1).unwrap(), "skep: 'skep x' accepts no arguments");
        assert_eq!(
            says(Arity::Between(1, 2), 0).unwrap(),
            "skep: 'skep x' requires at least 1 and at most 2 arguments"
        );
        assert_eq!(
            says(Arity::AtLeast(1), 0).unwrap(),
            "skep: 'skep x' requires at least 1 argument"
        );
    }
}
