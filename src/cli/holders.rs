//! Where secrets and configs are held: `revoke`, what waits for new versions, and what `inspect`
//! and `node rm` show of it.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};

use super::call::{Call, out, warn};
use super::client::{Client, Target};
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
use super::help::BEYOND;
use super::material::Kind;
use super::table::columns;
use super::{human, json as read, values};

/// What a command ends with that is done, but not in force everywhere.
const NOT_EVERYWHERE: u8 = 2;

const REVOKE_FLAGS: &[Flag] = &[
    Flag::with("service", "string", "Only from the tasks of this service"),
    Flag::with("task", "string", "Only from this task"),
];

pub(super) const SECRET_REVOKE: Command = Command::client(
    "revoke",
    "[OPTIONS] SECRET",
    "Take a secret back from running tasks; exits with 2 if some cannot be reached",
    |call| revoke(call, Kind::Secret),
)
.flags(REVOKE_FLAGS)
.section(BEYOND)
.takes(Arity::Exactly(1));

pub(super) const CONFIG_REVOKE: Command = Command::client(
    "revoke",
    "[OPTIONS] CONFIG",
    "Take a config back from running tasks; exits with 2 if some cannot be reached",
    |call| revoke(call, Kind::Config),
)
.flags(REVOKE_FLAGS)
.section(BEYOND)
.takes(Arity::Exactly(1));

/// For what gives tasks new versions.
pub(super) const WAIT: Flag = Flag::switch(
    "wait",
    "Wait until the running tasks hold the new versions; exits with 2 if some do not",
);

/// How long [`WAIT`] waits.
pub(super) const TIMEOUT: Flag =
    Flag::with("timeout", "duration", "How long --wait waits (default 10s)")
        .check(values::check_duration);

fn revoke(call: &Call, kind: Kind) -> Result<u8, CliError> {
    let target = Target::new(&["skep", "v1", kind.path(), call.arg(0), "revoke"]);
    let body = json!({"Service": call.get("service"), "Task": call.get("task")});
    let answer = call.client()?.post_json(&target, &body)?;
    let name = read::text(&answer, &["Name"]);
    let version = read::number(&answer, &["Version"]);
    let services = words(&answer, &["Services"]);
    let whom = match read::text(&answer, &["Task"]) {
        "" => format!("service {}", services.join(", ")),
        task => format!("task {task} of service {}", services.join(", ")),
    };
    let tasks = read::list(&answer, &["Tasks"]).len();
    out(&format!(
        "{name} is revoked up to version {version} from {whom}\n{} let go of it\n",
        count(tasks, "task")
    ))?;
    let late = read::list(&answer, &["Late"]);
    let unreachable = read::list(&answer, &["Unreachable"]);
    if late.is_empty() && unreachable.is_empty() {
        return Ok(0);
    }
    if !unreachable.is_empty() {
        warn(&format!("{name} stays readable where no manager reaches the task, until one does:"));
        warn(holders(unreachable).trim_end());
    }
    if !late.is_empty() {
        warn(&format!("{name} is not yet confirmed to be gone from tasks that are reached:"));
        warn(holders(late).trim_end());
    }
    warn_absent(&answer);
    Ok(NOT_EVERYWHERE)
}

/// Waits until the tasks that hold these hold what they should, and lists those that do not.
pub(super) fn wait(
    call: &Call,
    client: &mut Client,
    kind: Kind,
    names: &[String],
) -> Result<u8, CliError> {
    let timeout = values::duration(call.get("timeout").unwrap_or("10s"));
    let timeout = timeout.map_err(CliError::plain)?;
    let until = Instant::now() + Duration::from_nanos(u64::try_from(timeout).unwrap_or(0));
    let mut code = 0;
    for name in names {
        let left = until.saturating_duration_since(Instant::now()).as_millis().to_string();
        let target = Target::new(&["skep", "v1", kind.path(), name, "holders"]);
        let answer = client.get_json(&target.with("wait_ms", &left))?;
        let tasks = read::list(&answer, &["Tasks"]).iter();
        let behind: Vec<&Value> = tasks.filter(|task| !read::flag(task, &["Complies"])).collect();
        if !behind.is_empty() {
            code = NOT_EVERYWHERE;
            warn(&format!("{name} has not reached all its tasks:"));
            warn(holders(behind).trim_end());
            warn_absent(&answer);
        }
    }
    Ok(code)
}

fn warn_absent(answer: &Value) {
    let absent = words(answer, &["AbsentManagers"]);
    if !absent.is_empty() {
        warn(&format!(
            "Managers that do not answer may reach tasks that are listed: {}",
            absent.join(", ")
        ));
    }
}

fn words<'a>(value: &'a Value, path: &[&str]) -> Vec<&'a str> {
    read::list(value, path).iter().filter_map(Value::as_str).collect()
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn versions(value: &Value) -> String {
    let numbers = read::list(value, &["Versions"]).iter().filter_map(Value::as_u64);
    match numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "none".to_owned(),
        some => some,
    }
}

/// A table of tasks with what each holds.
fn holders<'a>(tasks: impl IntoIterator<Item = &'a Value>) -> String {
    let mut lines = "TASK\tSERVICE\tNODE\tSTATUS\tREACHED\tVERSIONS\n".to_owned();
    for task in tasks {
        let text = |key: &str| read::text(task, &[key]);
        let reached = if read::flag(task, &["Reachable"]) { "yes" } else { "no" };
        let (id, service, node) = (text("Task"), text("Service"), text("Hostname"));
        let status = human::capital(text("Status"));
        let _ = writeln!(lines, "{id}\t{service}\t{node}\t{status}\t{reached}\t{}", versions(task));
    }
    columns(&lines)
}

/// What `inspect` adds of skep's own.
pub(super) fn of(client: &mut Client, kind: Kind, name: &str) -> Result<Value, CliError> {
    client.get_json(&Target::new(&["skep", "v1", kind.path(), name, "holders"]))
}

/// An object of Docker's with skep's own facts as its last field, the rest as it came.
pub(super) fn joined(object: &Bytes, facts: &Value) -> Bytes {
    let text = String::from_utf8_lossy(object);
    let Some(head) = text.trim_end().strip_suffix('}') else { return object.clone() };
    let comma = if head.trim_end().ends_with('{') { "" } else { "," };
    Bytes::from(format!("{head}{comma}\"Skep\":{facts}}}"))
}

/// The same for `--pretty`.
pub(super) fn pretty(facts: &Value) -> String {
    let mut text = String::new();
    let mut say = |name: &str, value: &str| {
        let _ = writeln!(text, "{:19}{value}", format!("{name}:"));
    };
    say("Cipher", read::text(facts, &["Cipher"]));
    say("Key", &key(facts));
    say("Autolock", if read::flag(facts, &["Autolock"]) { "on" } else { "off" });
    let read_at = read::text(facts, &["LastRead", "At"]);
    let last = format!(
        "{}, version {} on {}",
        human::ago(read_at).to_lowercase(),
        read::number(facts, &["LastRead", "Version"]),
        read::text(facts, &["LastRead", "Hostname"])
    );
    say("Last read", if read_at.is_empty() { "not recorded" } else { &last });
    text += "Held by:\n";
    let mut lines = " VERSION\tKEY\tTASKS\tSERVICES\tNODES\n".to_owned();
    for version in read::list(facts, &["Versions"]) {
        let sealed = match read::number(version, &["Key"]) {
            0 => "gone".to_owned(),
            key => key.to_string(),
        };
        let list = |key: &str| words(version, &[key]).join(", ");
        let (number, tasks) =
            (read::number(version, &["Version"]), read::number(version, &["Tasks"]));
        let _ = writeln!(
            lines,
            " {number}\t{sealed}\t{tasks}\t{}\t{}",
            list("Services"),
            list("Nodes")
        );
    }
    text += &columns(&lines);
    let unreached: Vec<&Value> = read::list(facts, &["Tasks"])
        .iter()
        .filter(|task| !read::flag(task, &["Reachable"]))
        .collect();
    if !unreached.is_empty() {
        let _ = writeln!(text, "Not reached, readable there as far as is known:");
        text += &holders(unreached);
    }
    text
}

/// The key that seals now, with its age.
pub(super) fn key(facts: &Value) -> String {
    let made = human::ago(read::text(facts, &["Key", "CreatedAt"])).to_lowercase();
    format!("{}, made {made}", read::number(facts, &["Key", "Version"]))
}

/// What is held on a node that is about to be removed; nothing if that cannot be told: the removal
/// says why.
pub(super) fn of_node(client: &mut Client, name: &str) -> Option<Value> {
    client.get_json(&Target::new(&["skep", "v1", "nodes", name, "holdings"])).ok()
}

/// Tells what stays readable on a node that was removed.
pub(super) fn warn_of_node(held: &Value) {
    let there = read::list(held, &["Unreachable"]);
    if there.is_empty() {
        return;
    }
    warn(&format!(
        "Node {} was not reached. What its tasks hold stays readable there until they end:",
        read::text(held, &["Hostname"])
    ));
    let mut lines = "KIND\tNAME\tVERSIONS\n".to_owned();
    for one in there {
        let text = |key: &str| read::text(one, &[key]);
        let _ = writeln!(lines, "{}\t{}\t{}", text("Kind"), text("Name"), versions(one));
    }
    warn(columns(&lines).trim_end());
    warn("Give them new versions, or rotate what they open, if the machine may be in wrong hands.");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_the_last_field_and_the_rest_is_untouched() {
        let facts = json!({"Cipher": "x"});
        let joined = |object: &'static str| joined(&Bytes::from(object), &facts);
        assert_eq!(
            joined("{\"B\":1.50, \"A\":{}}\n"),
            r#"{"B":1.50, "A":{},"Skep":{"Cipher":"x"}}"#
        );
        assert_eq!(joined("{}"), r#"{"Skep":{"Cipher":"x"}}"#);
    }

    #[test]
    fn holders_are_shown_with_what_they_may_read() {
        let lost = json!({
            "Task": "t1", "Service": "web", "Hostname": "n4", "Status": "down",
            "Reachable": false, "Versions": [1, 2]
        });
        let clean = json!({
            "Task": "t2", "Service": "web", "Hostname": "n1", "Status": "ready",
            "Reachable": true, "Versions": []
        });
        assert_eq!(
            holders([&lost, &clean]),
            "TASK      SERVICE   NODE      STATUS    REACHED   VERSIONS\n\
             t1        web       n4        Down      no        1, 2\n\
             t2        web       n1        Ready     yes       none\n"
        );
        let facts = json!({
            "Cipher": "AES-256-GCM-SIV",
            "Key": {"Version": 3, "CreatedAt": "2020-01-01T00:00:00Z"},
            "Autolock": true,
            "LastRead": {"At": "2020-01-02T00:00:00Z", "Version": 2, "Hostname": "n4"},
            "Versions": [
                {"Version": 2, "Key": 3, "Services": ["web"], "Nodes": ["n1", "n4"], "Tasks": 2},
                {"Version": 1, "Key": null, "Services": [], "Nodes": [], "Tasks": 0},
            ],
            "Tasks": [lost, clean],
        });
        let text = pretty(&facts);
        assert!(text.contains("Key:               3, made "), "{text}");
        assert!(text.contains("Autolock:          on\n"), "{text}");
        assert!(text.contains("ago, version 2 on n4\n"), "{text}");
        assert!(text.contains(" 2         3         2         web        n1, n4\n"), "{text}");
        assert!(text.contains(" 1         gone      0"), "{text}");
        assert!(text.contains("t1        web       n4"), "{text}");
        assert!(!text.contains("t2"), "{text}");
    }
}
