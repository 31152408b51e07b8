//! What every `inspect` shares, and `skep inspect` itself.

use bytes::Bytes;
use serde_json::Value;

use super::call::{Call, out, outln};
use super::client::{Client, Target};
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
use super::json::indent;
use super::output::{INSPECT_FORMAT, inspect_text};

/// `skep inspect`
pub(super) const INSPECT: Command = Command::client(
    "inspect",
    "[OPTIONS] NAME|ID [NAME|ID...]",
    "Return low-level information on Docker objects",
    inspect_any,
)
.flags(&[
    INSPECT_FORMAT,
    Flag::switch("size", "Display total file sizes if the type is container").short('s'),
    Flag::with("type", "string", "Only inspect objects of the given type"),
])
.takes(Arity::AtLeast(1));

/// Gets each argument by `get` and prints them: as an array of indented JSON, or one by one by
/// `--format`. What could not be had is told afterwards.
pub(super) fn print(
    call: &Call,
    client: &mut Client,
    get: impl Fn(&mut Client, &str) -> Result<Bytes, CliError>,
) -> Result<u8, CliError> {
    let format = call.get("format").filter(|format| !format.is_empty());
    let mut errors = Vec::new();
    let mut raw = Vec::new();
    for name in call.args() {
        match get(client, name) {
            Ok(bytes) => raw.push(bytes),
            Err(why @ CliError::Connect { .. }) => return Err(why),
            Err(why) => errors.push(why),
        }
    }
    match format {
        None => out(&array(&raw))?,
        Some(format) => {
            for bytes in &raw {
                outln(&inspect_text(format, &parse(bytes)?)?)?;
            }
            if raw.is_empty() {
                outln("")?;
            }
        }
    }
    CliError::all(errors)
}

/// The objects as one indented array.
fn array(objects: &[Bytes]) -> String {
    let mut raw = vec![b'['];
    for (at, object) in objects.iter().enumerate() {
        if at > 0 {
            raw.push(b',');
        }
        raw.extend_from_slice(object);
    }
    raw.push(b']');
    indent(&raw) + "\n"
}

/// The same for `--pretty`: `show` makes the text of each object.
pub(super) fn pretty(
    call: &Call,
    client: &mut Client,
    get: impl Fn(&mut Client, &str) -> Result<Bytes, CliError>,
    show: impl Fn(&mut Client, &Value) -> Result<String, CliError>,
) -> Result<u8, CliError> {
    if call.matches.has("format") {
        return Err(CliError::plain("--format is incompatible with human friendly format"));
    }
    let mut errors = Vec::new();
    for (at, name) in call.args().iter().enumerate() {
        match get(client, name) {
            Ok(bytes) => {
                let text = show(client, &parse(&bytes)?)?;
                out(&if at > 0 { format!("\n{text}") } else { text })?;
            }
            Err(why) => errors.push(why),
        }
    }
    CliError::all(errors)
}

fn parse(bytes: &[u8]) -> Result<Value, CliError> {
    serde_json::from_slice(bytes)
        .map_err(|why| CliError::Answer { request: "inspect".to_owned(), what: why.to_string() })
}

/// Labels as `--pretty` shows them, each line behind `margin`.
pub(super) fn pretty_labels(labels: Option<&Value>, margin: &str) -> String {
    let Some(labels) = labels.and_then(Value::as_object).filter(|labels| !labels.is_empty()) else {
        return String::new();
    };
    let mut lines: Vec<String> = labels
        .iter()
        .map(|(key, value)| match value.as_str().unwrap_or_default() {
            "" => format!("{margin}{key}\n"),
            value => format!("{margin}{key}={value}\n"),
        })
        .collect();
    lines.sort();
    format!("Labels:\n{}", lines.concat())
}

/// An RFC 3339 time as Go prints one.
pub(super) fn go_time(stamp: &str) -> String {
    match stamp.parse::<jiff::Timestamp>() {
        Ok(_) => format!("{} +0000 utc", stamp.trim_end_matches('Z').replacen('T', " ", 1)),
        Err(_) => stamp.to_owned(),
    }
}

/// Types that `skep inspect` knows, in the order it tries them, with their paths in the API.
const TYPES: &[(&str, &[&str], &str)] = &[
    ("container", &["containers"], "json"),
    ("image", &["images"], "json"),
    ("network", &["networks"], ""),
    ("service", &["services"], ""),
    ("task", &["tasks"], ""),
    ("node", &["nodes"], ""),
    ("secret", &["secrets"], ""),
    ("config", &["configs"], ""),
];

fn inspect_any(call: &Call) -> Result<u8, CliError> {
    let kind = call.get("type").unwrap_or_default();
    if !kind.is_empty() && !TYPES.iter().any(|(name, ..)| *name == kind) {
        return Err(CliError::plain(format!("unknown type: {kind:?}")));
    }
    let size = call.on("size");
    print(call, &mut call.client()?, |client, name| {
        for (known, path, suffix) in TYPES {
            if !kind.is_empty() && *known != kind {
                continue;
            }
            let parts: Vec<&str> = path
                .iter()
                .copied()
                .chain([name])
                .chain((!suffix.is_empty()).then_some(*suffix))
                .collect();
            let mut target = Target::new(&parts);
            match *known {
                "container" if size => target = target.with("size", "1"),
                "service" => target = target.with("insertDefaults", "true"),
                _ => {}
            }
            match client.get(&target) {
                // Kinds that the daemon does not have, or not while it is outside a swarm,
                // cannot be what is meant.
                Err(CliError::Daemon { status: 404 | 406 | 501 | 503, .. }) if kind.is_empty() => {}
                other => return other,
            }
        }
        Err(CliError::plain(format!("Error: No such object: {name}")))
    })
}
