//! `skep logs` and `skep service logs`.

use std::collections::HashMap;

use http::Method;
use jiff::Timestamp;
use serde_json::Value;

use super::call::Call;
use super::client::{Client, Target};
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
use super::frames::{Frames, Parser, Stream};
use super::task::Names;
use super::values::duration;
use super::{human, json};

/// Bytes of one line of a service's log; longer ones come in pieces.
const LINE_BYTES: usize = 1 << 20;

const DETAILS: Flag = Flag::switch("details", "Show extra details provided to logs");
const FOLLOW: Flag = Flag::switch("follow", "Follow log output").short('f');
const SINCE: Flag = Flag::with(
    "since",
    "string",
    "Show logs since timestamp (e.g. \"2013-01-02T13:23:37Z\") or relative (e.g. \"42m\" for 42 minutes)",
);
const TAIL: Flag = Flag::with(
    "tail",
    "string",
    "Number of lines to show from the end of the logs (default \"all\")",
)
.short('n');
const TIMESTAMPS: Flag = Flag::switch("timestamps", "Show timestamps").short('t');

/// `skep logs`
pub(super) const LOGS: Command =
    Command::client("logs", "[OPTIONS] CONTAINER", "Fetch the logs of a container", container_logs)
        .flags(&[
            DETAILS,
            FOLLOW,
            SINCE,
            TAIL,
            TIMESTAMPS,
            Flag::with(
                "until",
                "string",
                "Show logs before a timestamp (e.g. \"2013-01-02T13:23:37Z\") or relative (e.g. \"42m\" for 42 minutes)",
            ),
        ])
        .takes(Arity::Exactly(1));

/// `skep service logs`
pub(super) const SERVICE_LOGS: Command = Command::client(
    "logs",
    "[OPTIONS] SERVICE|TASK",
    "Fetch the logs of a service or task",
    service_logs,
)
.flags(&[
    DETAILS,
    FOLLOW,
    Flag::switch("no-resolve", "Do not map IDs to Names in output"),
    Flag::switch("no-task-ids", "Do not include task IDs in output"),
    Flag::switch("no-trunc", "Do not truncate output"),
    Flag::switch("raw", "Do not neatly format logs"),
    SINCE,
    TAIL,
    TIMESTAMPS,
])
.takes(Arity::Exactly(1));

fn target(call: &Call, parts: &[&str], details: bool) -> Result<Target, CliError> {
    let mut target = Target::new(parts);
    if details {
        target = target.with("details", "1");
    }
    if call.on("follow") {
        target = target.with("follow", "1");
    }
    for name in ["since", "until"] {
        if let Some(text) = call.get(name).filter(|text| !text.is_empty()) {
            target = target.with(name, &moment(name, text)?);
        }
    }
    target = target.with("stderr", "1").with("stdout", "1");
    target = target.with("tail", call.get("tail").unwrap_or("all"));
    Ok(if call.on("timestamps") { target.with("timestamps", "1") } else { target })
}

/// A point in time in seconds: said outright, or as so long ago.
pub(super) fn moment(flag: &str, text: &str) -> Result<String, CliError> {
    if let Ok(ago) = duration(text) {
        let then = Timestamp::now().as_nanosecond() - i128::from(ago);
        return Ok(format!("{}.{:09}", then / 1_000_000_000, then.rem_euclid(1_000_000_000)));
    }
    if text.parse::<f64>().is_ok_and(f64::is_finite) {
        return Ok(text.to_owned());
    }
    let stamp = text.parse::<Timestamp>().or_else(|_| format!("{text}Z").parse());
    let stamp = stamp.or_else(|_| format!("{text}T00:00:00Z").parse::<Timestamp>());
    match stamp {
        Ok(stamp) => Ok(format!("{}.{:09}", stamp.as_second(), stamp.subsec_nanosecond())),
        Err(_) => Err(CliError::plain(format!(
            "invalid value for {flag:?}: {text:?} is neither a time nor a duration"
        ))),
    }
}

fn container_logs(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let container = client.get_json(&Target::new(&["containers", call.arg(0), "json"]))?;
    let tty = json::flag(&container, &["Config", "Tty"]);
    let id = json::text(&container, &["Id"]);
    let target = target(call, &["containers", id, "logs"], call.on("details"))?;
    let mut frames = Frames::new(tty);
    client.stream(Method::GET, &target, None, &mut |piece| frames.take(piece))?;
    frames.finish()?;
    Ok(0)
}

fn service_logs(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let name = call.arg(0);
    let service = Target::new(&["services", name]).with("insertDefaults", "false");
    let (kind, tty, digits) = match client.get_json(&service) {
        Ok(service) => {
            let spec = &["Spec", "TaskTemplate", "ContainerSpec", "TTY"];
            let replicas = json::number(&service, &["Spec", "Mode", "Replicated", "Replicas"]);
            ("services", json::flag(&service, spec), decimal_digits(replicas))
        }
        Err(why) if why.is_not_found() => match client.get_json(&Target::new(&["tasks", name])) {
            Ok(task) => {
                let tty = json::flag(&task, &["Spec", "ContainerSpec", "TTY"]);
                ("tasks", tty, decimal_digits(json::number(&task, &["Slot"])))
            }
            Err(why) if why.is_not_found() => {
                return Err(CliError::plain(format!("no such task or service: {name}")));
            }
            Err(why) => return Err(why),
        },
        Err(why) => return Err(why),
    };
    let raw = call.on("raw");
    let target = target(call, &[kind, name, "logs"], call.on("details") || !raw)?;
    if tty || raw {
        let mut frames = Frames::new(tty);
        client.stream(Method::GET, &target, None, &mut |piece| frames.take(piece))?;
        frames.finish()?;
        return Ok(0);
    }
    // Names are asked for while the log is open, so by another client.
    let mut lines = Lines::new(call, call.client()?, digits);
    let mut parser = Parser::default();
    client.stream(Method::GET, &target, None, &mut |piece| {
        parser.take(piece, &mut |stream, bytes| lines.take(stream, bytes))
    })?;
    Ok(0)
}

fn decimal_digits(number: u64) -> usize {
    number.to_string().len()
}

/// Puts before each line of a service's log which task it comes from.
struct Lines<'a> {
    call: &'a Call,
    client: Client,
    digits: usize,
    names: Names,
    sources: HashMap<String, String>,
    open: [Vec<u8>; 2],
}

impl<'a> Lines<'a> {
    fn new(call: &'a Call, client: Client, digits: usize) -> Self {
        Self {
            call,
            client,
            digits,
            names: Names::new(call.on("no-resolve")),
            sources: HashMap::new(),
            open: [Vec::new(), Vec::new()],
        }
    }

    fn take(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), CliError> {
        let slot = usize::from(stream == Stream::Err);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let Some(open) = self.open.get_mut(slot) else { return Ok(()) };
            open.extend_from_slice(piece);
            if open.ends_with(b"\n") || open.len() > LINE_BYTES {
                let line = std::mem::take(open);
                let text = self.line(&String::from_utf8_lossy(&line))?;
                let mut frames = Frames::new(true);
                match stream {
                    Stream::Out => frames.take(text.as_bytes())?,
                    Stream::Err => super::call::warn(text.trim_end_matches('\n')),
                }
            }
        }
        Ok(())
    }

    /// `[TIME ]SERVICE.SLOT.TASK@NODE    | [DETAILS ]MESSAGE`
    fn line(&mut self, line: &str) -> Result<String, CliError> {
        let wrong = || CliError::plain(format!("invalid context in log message: {line:?}"));
        let (time, rest) = match self.call.on("timestamps") {
            true => line.split_once(' ').map(|(time, rest)| (format!("{time} "), rest)),
            false => Some((String::new(), line)),
        }
        .ok_or_else(wrong)?;
        let (context, message) = rest.split_once(' ').ok_or_else(wrong)?;
        let mut own = Vec::new();
        let (mut node, mut service, mut task) = ("", "", "");
        for pair in context.split(',') {
            match pair.split_once('=') {
                Some(("com.docker.swarm.node.id", id)) => node = id,
                Some(("com.docker.swarm.service.id", id)) => service = id,
                Some(("com.docker.swarm.task.id", id)) => task = id,
                _ => own.push(pair),
            }
        }
        if node.is_empty() || service.is_empty() || task.is_empty() {
            return Err(wrong());
        }
        let source = self.source(node, service, task);
        let details = match self.call.on("details") {
            true => format!("{} ", own.join(",")),
            false => String::new(),
        };
        Ok(format!("{time}{source}    | {details}{message}"))
    }

    fn source(&mut self, node: &str, service: &str, task: &str) -> String {
        if let Some(source) = self.sources.get(task) {
            return source.clone();
        }
        let object = self.client.get_json(&Target::new(&["tasks", task])).unwrap_or(Value::Null);
        let slot = json::number(&object, &["Slot"]);
        let mut source = format!("{}.{slot}", self.names.service(&mut self.client, service));
        if !self.call.on("no-task-ids") {
            let id = if self.call.on("no-trunc") { task } else { human::short_id(task) };
            source.push_str(&format!(".{id}"));
        }
        source.push_str(&format!("@{}", self.names.node(&mut self.client, node)));
        let gap = self.digits.saturating_sub(decimal_digits(slot));
        source.extend(std::iter::repeat_n(' ', gap));
        self.sources.insert(task.to_owned(), source.clone());
        source
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        assert_eq!(moment("since", "1700000000").unwrap(), "1700000000");
        assert_eq!(moment("since", "2013-01-02T13:23:37Z").unwrap(), "1357133017.000000000");
        assert_eq!(moment("since", "2013-01-02").unwrap(), "1357084800.000000000");
        assert!(moment("since", "42m").unwrap().ends_with(|c: char| c.is_ascii_digit()));
        assert!(moment("since", "yesterday").is_err());
    }
}
