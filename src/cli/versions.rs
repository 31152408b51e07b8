//! `skep secret update`, `history`, `rollback` and `prune`, and the same of configs: what Docker has
//! no words for.

use serde_json::{Value, json};

use super::call::{Call, out, outln};
use super::client::Target;
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
use super::help::BEYOND;
use super::material::{Kind, Piece, assemble, read};
use super::output::{LIST_FORMAT, Layout, QUIET, Row, print_list, row};
use super::{holders, human, json as text_of, terminal};
use crate::protected::Protected;

/// `--keep` of what makes versions.
pub(super) const KEEP: Flag =
    Flag::with("keep", "uint", "Versions to keep, those in use aside (default 5)");

/// `--versions` of lists.
pub(super) const VERSIONS: Flag =
    Flag::switch("versions", "Display the latest version, and how many there are and are kept");

pub(super) const SECRET_UPDATE: Command = Command::client(
    "update",
    "[OPTIONS] SECRET file|- | SECRET=file|- [SECRET=file|-...]",
    "Give one or more secrets a new version, which running tasks get at once",
    |call| update(call, Kind::Secret),
)
.flags(UPDATE_FLAGS)
.section(BEYOND)
.takes(Arity::AtLeast(1));

pub(super) const CONFIG_UPDATE: Command = Command::client(
    "update",
    "[OPTIONS] CONFIG file|- | CONFIG=file|- [CONFIG=file|-...]",
    "Give one or more configs a new version, which running tasks get at once",
    |call| update(call, Kind::Config),
)
.flags(UPDATE_FLAGS)
.section(BEYOND)
.takes(Arity::AtLeast(1));

const UPDATE_FLAGS: &[Flag] = &[
    Flag::with("keep", "uint", "Versions to keep of each, those in use aside"),
    holders::TIMEOUT,
    holders::WAIT,
];

pub(super) const SECRET_HISTORY: Command =
    Command::client("history", "[OPTIONS] SECRET", "Show the versions of a secret", |call| {
        history(call, Kind::Secret)
    })
    .flags(&[LIST_FORMAT, QUIET])
    .section(BEYOND)
    .takes(Arity::Exactly(1));

pub(super) const CONFIG_HISTORY: Command =
    Command::client("history", "[OPTIONS] CONFIG", "Show the versions of a config", |call| {
        history(call, Kind::Config)
    })
    .flags(&[LIST_FORMAT, QUIET])
    .section(BEYOND)
    .takes(Arity::Exactly(1));

pub(super) const SECRET_ROLLBACK: Command = Command::client(
    "rollback",
    "SECRET [VERSION]",
    "Give a secret the bytes of an earlier version, as its next one",
    |call| rollback(call, Kind::Secret),
)
.section(BEYOND)
.takes(Arity::Between(1, 2));

pub(super) const CONFIG_ROLLBACK: Command = Command::client(
    "rollback",
    "CONFIG [VERSION]",
    "Give a config the bytes of an earlier version, as its next one",
    |call| rollback(call, Kind::Config),
)
.section(BEYOND)
.takes(Arity::Between(1, 2));

pub(super) const SECRET_PRUNE: Command = Command::client(
    "prune",
    "[OPTIONS] [SECRET...]",
    "Remove versions of secrets that nothing uses",
    |call| prune(call, Kind::Secret),
)
.flags(PRUNE_FLAGS)
.section(BEYOND)
.takes(Arity::Any);

pub(super) const CONFIG_PRUNE: Command = Command::client(
    "prune",
    "[OPTIONS] [CONFIG...]",
    "Remove versions of configs that nothing uses",
    |call| prune(call, Kind::Config),
)
.flags(PRUNE_FLAGS)
.section(BEYOND)
.takes(Arity::Any);

const PRUNE_FLAGS: &[Flag] = &[
    Flag::switch("dry-run", "Only display what would be removed"),
    Flag::switch("force", "Do not prompt for confirmation").short('f'),
    Flag::with("keep", "uint", "Versions to leave of each (default: as many as each keeps)"),
];

/// What `--keep` says. How many there may be is for the daemon to say.
pub(super) fn keep(call: &Call) -> Result<Option<u32>, CliError> {
    let Some(text) = call.get("keep") else { return Ok(None) };
    text.parse::<u32>().map(Some).map_err(|_| {
        CliError::plain(format!(
            "invalid argument {text:?} for --keep: a whole number from 1 is due"
        ))
    })
}

/// Names with where their payloads come from.
fn sources(call: &Call, kind: Kind) -> Result<Vec<(&str, &str)>, CliError> {
    let args: Vec<&str> = call.args().iter().map(String::as_str).collect();
    let sources = match args.as_slice() {
        [name, source] if !name.contains('=') => vec![(*name, *source)],
        all => all
            .iter()
            .map(|arg| arg.split_once('='))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| wanted(kind))?,
    };
    if sources.iter().filter(|(_, source)| *source == "-").count() > 1 {
        return Err(CliError::plain(format!(
            "standard input can be the new version of one {} only: name a file for the others",
            kind.word()
        )));
    }
    Ok(sources)
}

fn wanted(kind: Kind) -> CliError {
    let name = kind.word().to_uppercase();
    CliError::plain(format!(
        "give either {name} and a file or -, or {name}=FILE for each of several"
    ))
}

fn update(call: &Call, kind: Kind) -> Result<u8, CliError> {
    let keep = keep(call)?;
    let sources = sources(call, kind)?;
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
    table: "{{.Version}}\t{{.CreatedSince}}\t{{.Size}}\t{{.By}}\t{{.Repeats}}\t{{.InUseBy}}\t\
            {{.RevokedFrom}}",
    quiet: "{{.Version}}",
    headers: &[
        ("Version", "VERSION"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedSince", "CREATED"),
        ("Size", "BYTES"),
        ("By", "BY"),
        ("UID", "UID"),
        ("Node", "NODE"),
        ("Repeats", "REPEATS"),
        ("Services", "SERVICES"),
        ("Tasks", "TASKS"),
        ("InUseBy", "IN USE BY"),
        ("RevokedFrom", "REVOKED FROM"),
    ],
};

fn history(call: &Call, kind: Kind) -> Result<u8, CliError> {
    let target = Target::new(&["skep", "v1", kind.path(), call.arg(0), "history"]);
    let answer = call.client()?.get_json(&target)?;
    let rows: Vec<_> = text_of::list(&answer, &[]).iter().map(version_row).collect();
    print_list(call, &LAYOUT, &rows)?;
    Ok(0)
}

fn version_row(item: &Value) -> Row {
    let text = |path: &str| match text_of::at(item, &[path]) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    };
    let uid = text("UID");
    let by = if uid.is_empty() { "unknown".to_owned() } else { format!("uid {uid}") };
    let services = text_of::list(item, &["Services"]).iter().filter_map(Value::as_str);
    let users = text_of::list(item, &["InUseBy"]);
    let tasks: u64 = users.iter().map(|user| text_of::number(user, &["Tasks"])).sum();
    let revoked = text_of::list(item, &["RevokedFrom"]).iter().map(revoked_text);
    row([
        ("Version", text("Version")),
        ("CreatedAt", text("CreatedAt")),
        ("CreatedSince", human::ago(&text("CreatedAt"))),
        ("Size", text("Size")),
        ("By", format!("{by} at {}", text("Hostname"))),
        ("UID", uid),
        ("Node", text("Hostname")),
        ("Repeats", text("Repeats")),
        ("Services", services.collect::<Vec<_>>().join(", ")),
        ("Tasks", tasks.to_string()),
        ("InUseBy", users.iter().map(user_text).collect::<Vec<_>>().join(", ")),
        ("RevokedFrom", revoked.collect::<Vec<_>>().join(", ")),
    ])
}

/// `web (2 tasks, pinned)`
fn user_text(user: &Value) -> String {
    let is = |key: &str| text_of::at(user, &[key]) == Some(&Value::Bool(true));
    let tasks = text_of::number(user, &["Tasks"]);
    let plural = if tasks == 1 { "" } else { "s" };
    // Whoever neither follows nor is pinned is on the way to another version.
    let how = if is("Pinned") { ", pinned" } else { "" };
    format!("{} ({tasks} task{plural}{how})", text_of::text(user, &["Service"]))
}

/// `web`, or `task ID of web`
fn revoked_text(entry: &Value) -> String {
    let service = text_of::text(entry, &["Service"]);
    match text_of::text(entry, &["TaskID"]) {
        "" => service.to_owned(),
        task => format!("task {task} of {service}"),
    }
}

fn prune(call: &Call, kind: Kind) -> Result<u8, CliError> {
    let keep = keep(call)?;
    let dry_run = call.on("dry-run");
    let word = kind.word();
    if !dry_run && !call.on("force") {
        let whose = match call.args() {
            [] => format!("all {word}s"),
            names => names.join(", "),
        };
        let left = match keep {
            Some(keep) => format!("the latest {keep} of each"),
            None => "as many as each keeps".to_owned(),
        };
        let warning = format!(
            "WARNING! This will remove the versions of {whose} that nothing uses, except {left}."
        );
        if !terminal::confirms(&warning)? {
            return Err(CliError::plain(format!("{word} prune has been cancelled")));
        }
    }
    let body = json!({"Names": call.args(), "Keep": keep, "DryRun": dry_run});
    let target = Target::new(&["skep", "v1", kind.path(), "prune"]);
    let answer = call.client()?.post_json(&target, &body)?;
    out(&pruned_text(kind, &answer, dry_run))?;
    Ok(0)
}

fn pruned_text(kind: Kind, answer: &Value, dry_run: bool) -> String {
    let (done, reclaimed) = match dry_run {
        true => ("Would delete", "Would reclaim"),
        false => ("Deleted", "Total reclaimed space:"),
    };
    let mut text = String::new();
    for item in text_of::list(answer, &["Items"]) {
        if text.is_empty() {
            text = format!("{done} {} versions:\n", kind.word());
        }
        let versions = text_of::list(item, &["Versions"]).iter().map(Value::to_string);
        for version in versions {
            text += &format!("{}@{version}\n", text_of::text(item, &["Name"]));
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    let bytes = text_of::number(answer, &["SpaceReclaimed"]);
    text + &format!("{reclaimed} {}\n", human::size(bytes as f64, 4))
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

    #[test]
    fn a_version_says_who_made_and_who_uses_it() {
        let item = json!({
            "Version": 3, "CreatedAt": "2026-11-22T08:43:42.25Z", "Size": 12, "Hostname": "n1",
            "UID": 0, "Repeats": 1, "Services": ["api", "web"],
            "InUseBy": [
                {"Service": "api", "Pinned": false, "Follows": true, "Tasks": 1},
                {"Service": "web", "Pinned": true, "Follows": false, "Tasks": 2},
            ],
            "RevokedFrom": [{"Service": "web", "TaskID": "t1"}, {"Service": "old"}],
        });
        let row = version_row(&item);
        assert_eq!(row["InUseBy"], "api (1 task), web (2 tasks, pinned)");
        assert_eq!((&row["Tasks"], &row["By"]), (&json!("3"), &json!("uid 0 at n1")));
        assert_eq!(row["RevokedFrom"], "task t1 of web, old");
        assert_eq!((&row["Repeats"], &row["Size"]), (&json!("1"), &json!("12")));
        assert_eq!(version_row(&json!({"UID": null, "Hostname": "n1"}))["By"], "unknown at n1");
    }

    #[test]
    fn what_was_pruned_is_named() {
        let answer = json!({"Items": [
            {"Name": "a", "Versions": [1, 2], "Bytes": 8}, {"Name": "b", "Versions": [7], "Bytes": 4},
        ], "SpaceReclaimed": 12});
        assert_eq!(
            pruned_text(Kind::Secret, &answer, false),
            "Deleted secret versions:\na@1\na@2\nb@7\n\nTotal reclaimed space: 12B\n"
        );
        let nothing = json!({"Items": [], "SpaceReclaimed": 0});
        assert_eq!(pruned_text(Kind::Config, &nothing, true), "Would reclaim 0B\n");
    }
}
