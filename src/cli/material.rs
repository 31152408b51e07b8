//! `skep secret` and `skep config`: one implementation for both.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::protected::Protected;

use super::call::{Call, outln};
use super::client::{Client, Target};
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
use super::output::{FILTER, INSPECT_FORMAT, LIST_FORMAT, Layout, PRETTY, QUIET, print_list, row};
use super::values::{check_label, labels, open_error};
use super::{audit, holders, human, inspect, json, versions};

/// Bytes of a payload that are read at most: one more than any may have. What is too large is for
/// the daemon to refuse, and is never cut to what would fit.
const READ_BYTES: usize = 1_024_001;

/// One of the two kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A secret.
    Secret,
    /// A config.
    Config,
}

impl Kind {
    /// Its word.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Config => "config",
        }
    }

    /// Its path in the API.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::Config => "configs",
        }
    }
}

/// `skep secret …`
pub(super) const SECRET: Command = Command::group(
    "secret",
    "Manage Swarm secrets",
    &[
        audit::SECRET_AUDIT,
        Command::client(
            "create",
            "[OPTIONS] SECRET [file|-]",
            "Create a secret from a file or STDIN as content",
            |call| create(call, Kind::Secret),
        )
        .flags(&[
            Flag::with("driver", "string", "Secret driver").short('d'),
            versions::KEEP,
            Flag::with("label", "list", "Secret labels").short('l').check(check_label),
            Flag::with("template-driver", "string", "Template driver"),
        ])
        .takes(Arity::Between(1, 2)),
        versions::SECRET_HISTORY,
        Command::client(
            "inspect",
            "[OPTIONS] SECRET [SECRET...]",
            "Display detailed information on one or more secrets",
            |call| inspect_all(call, Kind::Secret),
        )
        .flags(&[INSPECT_FORMAT, PRETTY])
        .takes(Arity::AtLeast(1)),
        Command::client("ls", "[OPTIONS]", "List secrets", |call| list(call, Kind::Secret))
            .flags(&[FILTER, LIST_FORMAT, QUIET, versions::VERSIONS])
            .takes(Arity::None)
            .aliases(&["list"], &["secret ls", "secret list"]),
        versions::SECRET_PRUNE,
        holders::SECRET_REVOKE,
        Command::client("rm", "SECRET [SECRET...]", "Remove one or more secrets", |call| {
            remove(call, Kind::Secret)
        })
        .takes(Arity::AtLeast(1))
        .aliases(&["remove"], &["secret rm", "secret remove"]),
        versions::SECRET_ROLLBACK,
        versions::SECRET_UPDATE,
    ],
)
.section("Swarm Commands");

/// `skep config …`
pub(super) const CONFIG: Command = Command::group(
    "config",
    "Manage Swarm configs",
    &[
        audit::CONFIG_AUDIT,
        Command::client(
            "create",
            "[OPTIONS] CONFIG file|-",
            "Create a config from a file or STDIN",
            |call| create(call, Kind::Config),
        )
        .flags(&[
            versions::KEEP,
            Flag::with("label", "list", "Config labels").short('l').check(check_label),
            Flag::with("template-driver", "string", "Template driver"),
        ])
        .takes(Arity::Exactly(2)),
        versions::CONFIG_HISTORY,
        Command::client(
            "inspect",
            "[OPTIONS] CONFIG [CONFIG...]",
            "Display detailed information on one or more configs",
            |call| inspect_all(call, Kind::Config),
        )
        .flags(&[INSPECT_FORMAT, PRETTY])
        .takes(Arity::AtLeast(1)),
        Command::client("ls", "[OPTIONS]", "List configs", |call| list(call, Kind::Config))
            .flags(&[FILTER, LIST_FORMAT, QUIET, versions::VERSIONS])
            .takes(Arity::None)
            .aliases(&["list"], &["config ls", "config list"]),
        versions::CONFIG_PRUNE,
        holders::CONFIG_REVOKE,
        Command::client("rm", "CONFIG [CONFIG...]", "Remove one or more configs", |call| {
            remove(call, Kind::Config)
        })
        .takes(Arity::AtLeast(1))
        .aliases(&["remove"], &["config rm", "config remove"]),
        versions::CONFIG_ROLLBACK,
        versions::CONFIG_UPDATE,
    ],
)
.section("Swarm Commands");

fn create(call: &Call, kind: Kind) -> Result<u8, CliError> {
    let driver = call.get("driver").filter(|driver| !driver.is_empty());
    let data = match (driver, call.matches.arg(1)) {
        (Some(_), Some(_)) => {
            return Err(CliError::plain("When using secret driver secret data must be empty"));
        }
        (Some(_), None) => None,
        (None, source) => Some(read(kind, source)?),
    };
    let mut spec = json!({"Name": call.arg(0), "Labels": labels(call.matches.all("label"))});
    if let (Some(driver), Value::Object(spec)) = (driver, &mut spec) {
        spec.insert("Driver".to_owned(), json!({"Name": driver}));
    }
    if let (Some(keep), Value::Object(spec)) = (versions::keep(call)?, &mut spec) {
        spec.insert("Keep".to_owned(), json!(keep));
    }
    let templating = call.get("template-driver").filter(|name| !name.is_empty());
    if let (Some(name), Value::Object(spec)) = (templating, &mut spec) {
        spec.insert("Templating".to_owned(), json!({"Name": name}));
    }
    let body = body(&spec, data.as_ref())?;
    drop(data);
    let answer = call.client()?.post(&Target::new(&[kind.path(), "create"]), body)?;
    outln(json::text(&answer, &["ID"]))?;
    Ok(0)
}

/// The bytes of a file, or of standard input for `-`.
pub(super) fn read(kind: Kind, source: Option<&str>) -> Result<Protected, CliError> {
    let fail = |text: String| match (kind, source) {
        (Kind::Config, Some(name)) => {
            CliError::plain(format!("Error reading content from {name:?}: {text}"))
        }
        _ => CliError::plain(text),
    };
    let name = source.unwrap_or_default();
    let (data, shown) = match name {
        "" => return Err(fail("secret file is required".replace("secret", kind.word()))),
        // Not by way of the library's own stdin: it keeps what it read in a buffer.
        "-" => (std::io::stdin().as_fd().try_clone_to_owned().map(File::from), "STDIN"),
        path => (File::open(path), path),
    };
    let data = data.and_then(|mut file| read_protected(&mut file));
    let data = data.map_err(|why| {
        let reason = if shown == "STDIN" { why.to_string() } else { open_error(shown, &why) };
        fail(format!("error reading from {shown}: {reason}"))
    })?;
    match data.is_empty() {
        true => Err(fail(format!("error reading from {shown}: data is empty"))),
        false => Ok(data),
    }
}

/// Reads to the end, or to [`READ_BYTES`], without a copy outside protected memory.
fn read_protected(source: &mut dyn Read) -> std::io::Result<Protected> {
    let protect = |why: crate::protected::ProtectError| std::io::Error::other(why.to_string());
    let mut memory = Protected::zeroed(4096).map_err(protect)?;
    let mut filled = 0;
    loop {
        if filled == memory.len() {
            if filled >= READ_BYTES {
                break;
            }
            let mut larger = Protected::zeroed((filled * 4).min(READ_BYTES)).map_err(protect)?;
            if let Some(start) = larger.as_mut_slice().get_mut(..filled) {
                start.copy_from_slice(memory.as_slice());
            }
            memory = larger;
        }
        let room = memory.as_mut_slice().get_mut(filled..).unwrap_or_default();
        match source.read(room) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(why) if why.kind() == std::io::ErrorKind::Interrupted => {}
            Err(why) => return Err(why),
        }
    }
    memory.truncate(filled);
    Ok(memory)
}

/// The request body, in protected memory as a whole: the spec with the payload, in base64, as
/// its last field.
fn body(spec: &Value, data: Option<&Protected>) -> Result<Bytes, CliError> {
    let text = spec.to_string();
    let Some(data) = data else { return Ok(Bytes::from(text)) };
    let head = format!("{},\"Data\":\"", text.strip_suffix('}').unwrap_or(&text));
    assemble(&[Piece::Text(head), Piece::Data(data), Piece::Text("\"}".to_owned())])
}

/// Part of a request body.
pub(super) enum Piece<'a> {
    /// As it is.
    Text(String),
    /// In base64.
    Data(&'a Protected),
}

/// A request body, in protected memory as a whole.
pub(super) fn assemble(pieces: &[Piece<'_>]) -> Result<Bytes, CliError> {
    let fail = |why: String| CliError::plain(format!("cannot prepare the request: {why}"));
    let room = |piece: &Piece<'_>| match piece {
        Piece::Text(text) => text.len(),
        Piece::Data(data) => data.len().div_ceil(3) * 4,
    };
    let mut memory =
        Protected::zeroed(pieces.iter().map(room).sum()).map_err(|why| fail(why.to_string()))?;
    let mut rest = memory.as_mut_slice();
    for piece in pieces {
        let (place, behind) = rest.split_at_mut(room(piece));
        match piece {
            Piece::Text(text) => place.copy_from_slice(text.as_bytes()),
            Piece::Data(data) => {
                STANDARD
                    .encode_slice(data.as_slice(), place)
                    .map_err(|why| fail(why.to_string()))?;
            }
        }
        rest = behind;
    }
    Ok(Bytes::from_owner(Shown(memory)))
}

/// Lets a request body own protected memory.
struct Shown(Protected);

impl AsRef<[u8]> for Shown {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

fn inspect_all(call: &Call, kind: Kind) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let get = |client: &mut Client, name: &str| client.get(&Target::new(&[kind.path(), name]));
    let with_facts = |client: &mut Client, name: &str| {
        let object = get(client, name)?;
        Ok(holders::joined(&object, &holders::of(client, kind, name)?))
    };
    match call.on("pretty") {
        true => inspect::pretty(call, &mut client, get, |client, value| {
            let facts = holders::of(client, kind, json::text(value, &["ID"]))?;
            Ok(pretty(kind, value) + &holders::pretty(&facts))
        }),
        false => inspect::print(call, &mut client, with_facts),
    }
}

fn pretty(kind: Kind, value: &Value) -> String {
    let field = |path: &[&str]| json::text(value, path).to_owned();
    let times = [("Created at", "CreatedAt"), ("Updated at", "UpdatedAt")];
    let times = times.map(|(name, key)| (name, inspect::go_time(&field(&[key]))));
    let labels = inspect::pretty_labels(json::at(value, &["Spec", "Labels"]), " - ");
    let (id, name) = (field(&["ID"]), field(&["Spec", "Name"]));
    // The two kinds differ in their gaps, as Docker's do.
    let mut text = match kind {
        Kind::Secret => {
            let driver = field(&["Spec", "Driver", "Name"]);
            let driver = format!("{:19}{driver}\n", "Driver:");
            format!("{:17}{id}\n{:19}{name}\n{labels}{driver}", "ID:", "Name:")
        }
        Kind::Config => format!("ID:\t\t\t{id}\nName:\t\t\t{name}\n{labels}"),
    };
    for (name, time) in times {
        match kind {
            Kind::Secret => text += &format!("{:19}{time}\n", format!("{name}:")),
            Kind::Config => text += &format!("{:23}\t{time}\n", format!("{name}:")),
        }
    }
    if kind == Kind::Config {
        let data = STANDARD.decode(field(&["Spec", "Data"])).unwrap_or_default();
        text += &format!("Data:\n{}\n", String::from_utf8_lossy(&data));
    }
    text
}

const SECRET_LAYOUT: Layout = Layout {
    table: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.CreatedAt}}\t{{.UpdatedAt}}",
    quiet: "{{.ID}}",
    headers: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("CreatedAt", "CREATED"),
        ("UpdatedAt", "UPDATED"),
        ("Labels", "LABELS"),
        ("Version", "VERSION"),
        ("Versions", "VERSIONS"),
        ("Keep", "KEEP"),
    ],
};

/// Docker's columns stay as they are unless somebody asks.
const VERSIONS_LAYOUT: Layout = Layout {
    table: "{{.ID}}\t{{.Name}}\t{{.Version}}\t{{.Versions}}\t{{.Keep}}\t{{.UpdatedAt}}",
    ..SECRET_LAYOUT
};

const CONFIG_LAYOUT: Layout = Layout {
    table: "{{.ID}}\t{{.Name}}\t{{.CreatedAt}}\t{{.UpdatedAt}}",
    quiet: "{{.ID}}",
    headers: SECRET_LAYOUT.headers,
};

fn list(call: &Call, kind: Kind) -> Result<u8, CliError> {
    let target = Target::new(&["skep", "v1", kind.path()]).filtered(&call.filters());
    let answer = call.client()?.get_json(&target)?;
    let mut items: Vec<&Value> = json::list(&answer, &[]).iter().collect();
    items.sort_by(|a, b| {
        human::natural(json::text(a, &["Spec", "Name"]), json::text(b, &["Spec", "Name"]))
    });
    let rows: Vec<_> = items
        .into_iter()
        .map(|item| {
            let mut row = row([
                ("ID", json::text(item, &["ID"]).to_owned()),
                ("Name", json::text(item, &["Spec", "Name"]).to_owned()),
                ("CreatedAt", human::ago(json::text(item, &["CreatedAt"]))),
                ("UpdatedAt", human::ago(json::text(item, &["UpdatedAt"]))),
                ("Labels", human::labels(json::at(item, &["Spec", "Labels"]))),
                ("Version", json::number(item, &["Latest"]).to_string()),
                ("Versions", json::number(item, &["Versions"]).to_string()),
                ("Keep", json::number(item, &["Keep"]).to_string()),
            ]);
            if kind == Kind::Secret {
                let driver = json::text(item, &["Spec", "Driver", "Name"]);
                row.insert("Driver".to_owned(), Value::from(driver));
            }
            row
        })
        .collect();
    let layout = match kind {
        _ if call.on("versions") => &VERSIONS_LAYOUT,
        Kind::Secret => &SECRET_LAYOUT,
        Kind::Config => &CONFIG_LAYOUT,
    };
    print_list(call, layout, &rows)?;
    Ok(0)
}

fn remove(call: &Call, kind: Kind) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let mut errors = Vec::new();
    for name in call.args() {
        match client.delete(&Target::new(&[kind.path(), name])) {
            Ok(_) => outln(name)?,
            Err(why) => errors.push(why),
        }
    }
    CliError::all(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_carries_the_payload_last() {
        let data = Protected::copy_of(b"This is a secret").unwrap();
        let spec = json!({"Name": "rec_data", "Labels": {}});
        assert_eq!(
            body(&spec, Some(&data)).unwrap(),
            r#"{"Name":"rec_data","Labels":{},"Data":"VGhpcyBpcyBhIHNlY3JldA=="}"#
        );
        assert_eq!(body(&spec, None).unwrap(), r#"{"Name":"rec_data","Labels":{}}"#);
    }

    #[test]
    fn payloads_of_any_size_are_read_whole_up_to_the_bound() {
        for size in [0, 1, 4095, 4096, 4097, 511_999, READ_BYTES, READ_BYTES + 1] {
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let read = read_protected(&mut bytes.as_slice()).unwrap();
            assert_eq!(read.as_slice(), bytes.get(..size.min(READ_BYTES)).unwrap(), "{size}");
        }
    }
}
