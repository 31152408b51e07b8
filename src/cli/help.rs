//! Help texts and usage errors in the shape of the docker CLI.

use std::fmt::Write as _;

use super::flags::{Action, Command, Flag};

/// The section of what the docker CLI has no words for, at the top level and in groups.
pub(super) const BEYOND: &str = "Beyond Docker";

/// Sections of the top level, in order.
pub(super) const SECTIONS: &[&str] =
    &["Common Commands", "Management Commands", "Swarm Commands", "Commands", BEYOND];

/// The help text of the command at `path`; `columns` is the width of the terminal.
pub(super) fn command(path: &str, command: &Command, columns: usize) -> String {
    let mut text = format!("Usage:  {path} {}", command.usage);
    let _ = write!(text, "\n\n{}\n", command.about);
    if !command.also.is_empty() {
        let also: Vec<String> = command.also.iter().map(|one| format!("skep {one}")).collect();
        let _ = write!(text, "\nAliases:\n  {}\n", also.join(", "));
    }
    if let Action::Group(commands) = command.action {
        let (own, dockers): (Vec<_>, Vec<_>) =
            commands.iter().partition(|command| command.section == BEYOND);
        let _ = write!(text, "\nCommands:\n{}", list(dockers.into_iter(), commands));
        if !own.is_empty() {
            let _ = write!(text, "\n{BEYOND}:\n{}", list(own.into_iter(), commands));
        }
    }
    if !command.flags.is_empty() {
        let _ = write!(text, "\nOptions:\n{}", options(command.flags, columns));
    }
    if matches!(command.action, Action::Group(_)) {
        let _ = write!(text, "\nRun '{path} COMMAND --help' for more information on a command.\n");
    }
    text
}

/// The help text of `skep` itself.
pub(super) fn root(about: &str, commands: &[Command], flags: &[Flag], columns: usize) -> String {
    let mut text = format!("Usage:  skep [OPTIONS] COMMAND\n\n{about}\n");
    for section in SECTIONS {
        let listed = commands.iter().filter(|command| command.section == *section);
        let _ = write!(text, "\n{section}:\n{}", list(listed, commands));
    }
    let _ = write!(text, "\nGlobal Options:\n{}", options(flags, columns));
    text.push_str("\nRun 'skep COMMAND --help' for more information on a command.\n");
    text
}

/// A usage error: what is wrong, the usage line and where to read more.
pub(super) fn usage_error(message: &str, path: &str, usage: &str, see: bool) -> String {
    let word = if see { "See" } else { "Run" };
    format!("{message}\n\nUsage:  {path} {usage}\n\n{word} '{path} --help' for more information\n")
}

fn list<'a>(listed: impl Iterator<Item = &'a Command>, all: &[Command]) -> String {
    let width = all.iter().filter(|command| !command.section.is_empty());
    let width = width.map(|command| command.name.len()).max().unwrap_or(0).max(11);
    let mut text = String::new();
    for command in listed.filter(|command| !command.section.is_empty()) {
        let _ = writeln!(text, "  {:width$} {}", command.name, command.about);
    }
    text
}

/// The flags in two columns, the second wrapped.
fn options(flags: &[Flag], columns: usize) -> String {
    let heads: Vec<String> = flags.iter().map(head).collect();
    let indent = heads.iter().map(String::len).max().unwrap_or(0) + 3;
    let mut text = String::new();
    for (flag, head) in flags.iter().zip(&heads) {
        let usage = wrap(indent, columns.saturating_sub(1), flag.usage);
        let _ = writeln!(text, "{head:indent$}{usage}");
    }
    text
}

fn head(flag: &Flag) -> String {
    let mut head = match flag.short {
        Some(letter) => format!("  -{letter}, --{}", flag.name),
        None => format!("      --{}", flag.name),
    };
    if !flag.value.is_empty() {
        let _ = write!(head, " {}", flag.value);
    }
    head
}

/// Breaks `text` so that it fits between `indent` and `width`, as pflag does.
fn wrap(indent: usize, width: usize, text: &str) -> String {
    const SLOP: usize = 5;
    const NARROW: usize = 24;
    let mut indent = indent;
    let mut room = width.saturating_sub(indent);
    let mut out = String::new();
    if room < NARROW {
        indent = 16;
        room = width.saturating_sub(indent);
        let _ = write!(out, "\n{:indent$}", "");
    }
    if room < NARROW {
        return text.replace('\n', &out);
    }
    let margin = format!("\n{:indent$}", "");
    let mut rest = text;
    let mut first = true;
    while first || !rest.is_empty() {
        let (line, more) = break_line(rest, room - SLOP, SLOP);
        if !first {
            out.push_str(&margin);
        }
        out.push_str(&line.replace('\n', &margin));
        rest = more;
        first = false;
    }
    out
}

/// One line of at most `room` bytes and what is left; up to `slop` more if that ends the text.
fn break_line(text: &str, room: usize, slop: usize) -> (&str, &str) {
    if room + slop > text.len() {
        return (text, "");
    }
    let room = (0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let window = text.get(..room).unwrap_or(text);
    let at = match (window.rfind([' ', '\t', '\n']), window.rfind('\n')) {
        (_, Some(newline)) if newline > 0 => newline,
        (Some(space), _) if space > 0 => space,
        _ => return (text, ""),
    };
    (text.get(..at).unwrap_or(text), text.get(at + 1..).unwrap_or_default())
}
