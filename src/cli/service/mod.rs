//! `skep service`.

mod create;
mod flags;
mod grants;
mod list;
mod mounts;
mod pretty;
mod update;

use serde_json::{Value, json};

use super::call::{Call, outln, warn};
use super::client::{Client, Target};
use super::error::CliError;
use super::flags::{Arity, Command};
use super::output::{FILTER, INSPECT_FORMAT, LIST_FORMAT, PRETTY, QUIET};
use super::task::TASK_FLAGS;
use super::{inspect, json, logs, progress};

/// `skep service …`
pub(super) const SERVICE: Command = Command::group(
    "service",
    "Manage Swarm services",
    &[
        Command::client(
            "create",
            "[OPTIONS] IMAGE [COMMAND] [ARG...]",
            "Create a new service",
            create::create,
        )
        .flags(flags::CREATE)
        .takes(Arity::AtLeast(1))
        .forwards(),
        Command::client(
            "inspect",
            "[OPTIONS] SERVICE [SERVICE...]",
            "Display detailed information on one or more services",
            inspect_services,
        )
        .flags(&[INSPECT_FORMAT, PRETTY])
        .takes(Arity::AtLeast(1)),
        logs::SERVICE_LOGS,
        Command::client("ls", "[OPTIONS]", "List services", list::list)
            .flags(&[FILTER, LIST_FORMAT, QUIET])
            .takes(Arity::None)
            .aliases(&["list"], &["service ls", "service list"]),
        Command::client(
            "ps",
            "[OPTIONS] SERVICE [SERVICE...]",
            "List the tasks of one or more services",
            list::tasks,
        )
        .flags(TASK_FLAGS)
        .takes(Arity::AtLeast(1)),
        Command::client("rm", "SERVICE [SERVICE...]", "Remove one or more services", remove)
            .takes(Arity::AtLeast(1))
            .aliases(&["remove"], &["service rm", "service remove"]),
        Command::client(
            "rollback",
            "[OPTIONS] SERVICE",
            "Revert changes to a service's configuration",
            update::rollback,
        )
        .flags(&[flags::DETACH, flags::QUIET])
        .takes(Arity::Exactly(1)),
        Command::client(
            "scale",
            "SERVICE=REPLICAS [SERVICE=REPLICAS...]",
            "Scale one or multiple replicated services",
            scale,
        )
        .flags(&[flags::DETACH])
        .takes(Arity::AtLeast(1)),
        Command::client("update", "[OPTIONS] SERVICE", "Update a service", update::update)
            .flags(flags::UPDATE_FLAGS)
            .takes(Arity::Exactly(1)),
    ],
)
.section("Swarm Commands");

/// A service as it is stored.
fn get(client: &mut Client, name: &str) -> Result<Value, CliError> {
    client.get_json(&Target::new(&["services", name]).with("insertDefaults", "false"))
}

/// Writes a changed spec back, and tells the daemon's warnings.
fn put(
    client: &mut Client,
    service: &Value,
    spec: &Value,
    query: &[(&str, &str)],
) -> Result<(), CliError> {
    let id = json::text(service, &["ID"]);
    let version = json::number(service, &["Version", "Index"]).to_string();
    let target = query
        .iter()
        .fold(Target::new(&["services", id, "update"]), |target, (name, value)| {
            target.with(name, value)
        })
        .with("version", &version);
    let answer = client.post_json(&target, spec)?;
    print_warnings(&answer);
    Ok(())
}

fn print_warnings(answer: &Value) {
    for warning in json::list(answer, &["Warnings"]).iter().filter_map(Value::as_str) {
        warn(warning);
    }
}

fn inspect_services(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let get = |client: &mut Client, name: &str| {
        let target = Target::new(&["services", name]).with("insertDefaults", "true");
        client.get(&target).map_err(|why| match why.is_not_found() {
            true => CliError::plain(format!("Error: no such service: {name}")),
            false => why,
        })
    };
    match call.on("pretty") {
        true => inspect::pretty(call, &mut client, get, |_, service| Ok(pretty::service(service))),
        false => inspect::print(call, &mut client, get),
    }
}

fn remove(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let mut errors = Vec::new();
    for name in call.args() {
        match client.delete(&Target::new(&["services", name])) {
            Ok(_) => outln(name)?,
            Err(why) => errors.push(why),
        }
    }
    CliError::all(errors)
}

fn scale(call: &Call) -> Result<u8, CliError> {
    let mut wanted = Vec::new();
    let mut errors = Vec::new();
    for word in call.args() {
        let Some((name, replicas)) = word.split_once('=') else {
            return Err(CliError::plain(format!(
                "invalid scale specifier '{word}'.\nSee '{path} --help'.\n\n\
                 Usage:  {path} {}\n\n{}",
                call.command.usage,
                call.command.about,
                path = call.path,
            )));
        };
        match super::values::uint(replicas) {
            Ok(count) => wanted.push((name, count)),
            Err(why) => errors
                .push(CliError::plain(format!("{name}: invalid replicas value {replicas}: {why}"))),
        }
    }
    let mut client = call.client()?;
    let mut scaled = Vec::new();
    for (name, count) in wanted {
        match scale_one(&mut client, name, count) {
            Ok(()) => {
                outln(&format!("{name} scaled to {count}"))?;
                scaled.push(name);
            }
            Err(why) => errors.push(CliError::plain(format!("{name}: {why}"))),
        }
    }
    if !call.on("detach") {
        for name in scaled {
            if let Err(why) = progress::wait(&mut client, name, false) {
                errors.push(CliError::plain(format!("{name}: {why}")));
            }
        }
    }
    CliError::all(errors)
}

fn scale_one(client: &mut Client, name: &str, count: u64) -> Result<(), CliError> {
    let service = get(client, name)?;
    let mut spec = json::at(&service, &["Spec"]).cloned().unwrap_or_default();
    set_replicas(&mut spec, count, "scale")?;
    put(client, &service, &spec, &[])
}

/// Sets how many tasks a service has; `what` names the wish if its mode refuses.
fn set_replicas(spec: &mut Value, count: u64, what: &str) -> Result<(), CliError> {
    let mode = json::object_at(spec, &["Mode"]);
    match mode.and_then(|mode| mode.get_mut("Replicated")) {
        Some(replicated) => {
            *replicated = json!({"Replicas": count});
            Ok(())
        }
        None => Err(CliError::plain(format!(
            "{what} can only be used with replicated or replicated-job mode"
        ))),
    }
}
