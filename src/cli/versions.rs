//! `skep secret update`, `history` and `rollback`: what Docker has no words for.

use serde_json::{Value, json};

use super::call::{Call, outln};
use super::client::Target;
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
use super::material::{Kind, Piece, assemble, read};
use super::output::{LIST_FORMAT, Layout, QUIET, print_list, row};
use super::{holders, human, json as text_of};
use crate::protected::Protected;

pub(super) const SECRET_UPDATE: Command = Command::client(
    "update",
    "[OPTIONS] SECRET file|- | SECRET=file|- [SECRET=file|-...]",
    "Give one or more secrets a new version, which running tasks get at once",
    |call| update(call, Kind::Secret),
)
.flags(&[
    Flag::with("keep", "uint", "Versions to keep of each, those in use aside"),
    holders::TIMEOUT,
    holders::WAIT,
])
.takes(Arity::AtLeast(1));

pub(super) const SECRET_HISTORY: Command =
    Command::client("history", "[OPTIONS] SECRET", "Show the versions of a secret", |call| {
        history(call, Kind::Secret)
    })
    .flags(&[LIST_FORMAT, QUIET])
    .takes(Arity::Exactly(1));

pub(super) const SECRET_ROLLBACK: Command = Command::client(
    "rollback",
    "SECRET [VERSION]",
    "Give a secret the bytes of an earlier version, as its next one",
    |call| rollback(call, Kind::Secret),
)
.takes(Arity::Between(1, 2));

/// Names with where their payloads come from.
fn sources(call: &Call) -> Result<Vec<(&str, &str)>, CliError> {
    let args: Vec<&str> = call.args().iter().map(String::as_str).collect();
    let sources = match args.as_slice() {
        [name, source] if !name.contains('=') => vec![(*name, *source)],
        all => all
            .iter()
            .map(|arg| arg.split_once('='))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(wanted)?,
    };
    if sources.iter().filter(|(_, source)| *source == "-").count() > 1 {
        return Err(CliError::plain(
            "standard input can be the new version of one secret only: name a file for the others",
        ));
    }
    Ok(sources)
}

fn wanted() -> CliError {
    CliError::plain("give either SECRET and a file or -, or SECRET=FILE for each of several")
}

fn update(call: &Call, kind: Kind) -> Result<u8, CliError> {
    let keep = match call.get("keep") {
        None => None,
        Some(text) => Some(text.parse::<u32>().map_err(|_| {
            CliError::plain(format!("invalid argument {text:?} for --keep: a number is needed"))
        })?),
    };
    let sources = sources(call)?;
    let read =
        |(name, source): &(&str, &str)| Ok((json!(name).to_string(), read(kind, Some(source))?));
    let payloads: Vec<(String, Protected)> =
        sources.iter().map(read).collect::<Result<_, CliError>>()?;
    let mut pieces = vec![Piece::Text(format!("{{\"Keep\":{},\"Items\":[", json!(keep)))];
    for (at, (name, payload)) in payloads.iter().enumerate() {
        let comma = if at > 0 { "," } else { "" };
        pieces.push(Piece::Text(format!("{comma}{{\"Name\":{name},\"Data\":\"")));
        pieces.push(Piece::Data(payload));
        pieces.push(Piece::Text("\"}".to_owned()));
    }
    pieces.push(Piece::Text("]}".to_owned()));
    let body = assemble(&pieces)?;
    drop(payloads);
    let target = Target::new(&["skep", "v1", kind.path(), "update"]);
    let mut client = call.client()?;
    let answer = client.post(&target, body)?;
    let code = print_versions(&answer)?;
    if !call.on("wait") {
        return Ok(code);
    }
    let items = text_of::list(&answer, &[]).iter();
    let names: Vec<String> = items.map(|item| text_of::text(item, &["Name"]).to_owned()).collect();
    holders::wait(call, &mut client, kind, &names)
}

fn rollback(call: &Call, kind: Kind) -> Result<u8, CliError> {
    let target = Target::new(&["skep", "v1", kind.path(), call.arg(0), "rollback"]);
    let target = target.with_some("version", call.matches.arg(1));
    print_versions(&call.client()?.post_empty(&target)?)
}

fn print_versions(answer: &Value) -> Result<u8, CliError> {
    for item in text_of::list(answer, &[]) {
        let (name, version) = (text_of::text(item, &["Name"]), text_of::number(item, &["Version"]));
        outln(&format!("{name} {version}"))?;
    }
    Ok(0)
}

const LAYOUT: Layout = Layout {
    table: "{{.Version}}\t{{.CreatedAt}}\t{{.Size}}\t{{.By}}\t{{.Repeats}}\t{{.Services}}",
    quiet: "{{.Version}}",
    headers: &[
        ("Version", "VERSION"),
        ("CreatedAt", "CREATED"),
        ("Size", "BYTES"),
        ("By", "BY"),
        ("Repeats", "REPEATS"),
        ("Services", "SERVICES"),
    ],
};

fn history(call: &Call, kind: Kind) -> Result<u8, CliError> {
    let target = Target::new(&["skep", "v1", kind.path(), call.arg(0), "history"]);
    let answer = call.client()?.get_json(&target)?;
    let rows: Vec<_> = text_of::list(&answer, &[])
        .iter()
        .map(|item| {
            let text = |path: &str| match text_of::at(item, &[path]) {
                Some(Value::String(text)) => text.clone(),
                None | Some(Value::Null) => String::new(),
                Some(other) => other.to_string(),
            };
            let uid = text("UID");
            let uid = if uid.is_empty() { "unknown".to_owned() } else { format!("uid {uid}") };
            let services = text_of::list(item, &["Services"]).iter().filter_map(Value::as_str);
            row([
                ("Version", text("Version")),
                ("CreatedAt", human::ago(&text("CreatedAt"))),
                ("Size", text("Size")),
                ("By", format!("{uid} at {}", text("Hostname"))),
                ("Repeats", text("Repeats")),
                ("Services", services.collect::<Vec<_>>().join(", ")),
            ])
        })
        .collect();
    print_list(call, &LAYOUT, &rows)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_assembled_in_order() {
        let data = Protected::copy_of(b"ab").unwrap();
        let pieces = [Piece::Text("<".into()), Piece::Data(&data), Piece::Text(">".into())];
        assert_eq!(assemble(&pieces).unwrap(), "<YWI=>");
    }
}
