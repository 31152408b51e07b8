//! `skep node`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::call::{Call, outln, warn};
use super::client::{Client, Filters, Target};
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
use super::output::{FILTER, INSPECT_FORMAT, LIST_FORMAT, Layout, PRETTY, QUIET, print_list, row};
use super::task::{TASK_FLAGS, print_tasks};
use super::values::check_label;
use super::{holders, human, inspect, json};

/// `skep node …`
pub(super) const NODE: Command = Command::group(
    "node",
    "Manage Swarm nodes",
    &[
        Command::client(
            "demote",
            "NODE [NODE...]",
            "Demote one or more nodes from manager in the swarm",
            |call| change_roles(call, "worker"),
        )
        .takes(Arity::AtLeast(1)),
        Command::client(
            "inspect",
            "[OPTIONS] self|NODE [NODE...]",
            "Display detailed information on one or more nodes",
            inspect_nodes,
        )
        .flags(&[INSPECT_FORMAT, PRETTY])
        .takes(Arity::AtLeast(1)),
        Command::client("ls", "[OPTIONS]", "List nodes in the swarm", list)
            .flags(&[FILTER, LIST_FORMAT, QUIET])
            .takes(Arity::None)
            .aliases(&["list"], &["node ls", "node list"]),
        Command::client(
            "promote",
            "NODE [NODE...]",
            "Promote one or more nodes to manager in the swarm",
            |call| change_roles(call, "manager"),
        )
        .takes(Arity::AtLeast(1)),
        Command::client(
            "ps",
            "[OPTIONS] [NODE...]",
            "List tasks running on one or more nodes, defaults to current node",
            tasks,
        )
        .flags(TASK_FLAGS),
        Command::client(
            "rm",
            "[OPTIONS] NODE [NODE...]",
            "Remove one or more nodes from the swarm",
            remove,
        )
        .flags(&[Flag::switch("force", "Force remove a node from the swarm").short('f')])
        .takes(Arity::AtLeast(1))
        .aliases(&["remove"], &["node rm", "node remove"]),
        Command::client("update", "[OPTIONS] NODE", "Update a node", update)
            .flags(&[
                Flag::with(
                    "availability",
                    "string",
                    "Availability of the node (\"active\", \"pause\", \"drain\")",
                ),
                Flag::with("label-add", "list", "Add or update a node label (\"key=value\")")
                    .check(check_label),
                Flag::with("label-rm", "list", "Remove a node label if exists"),
                Flag::with("role", "string", "Role of the node (\"worker\", \"manager\")"),
            ])
            .takes(Arity::Exactly(1)),
    ],
)
.section("Swarm Commands");

const LAYOUT: Layout = Layout {
    table: "{{.ID}} {{if .Self}}*{{else}} {{end}}\t{{.Hostname}}\t{{.Status}}\t\
            {{.Availability}}\t{{.ManagerStatus}}\t{{.EngineVersion}}",
    quiet: "{{.ID}}",
    headers: &[
        ("ID", "ID"),
        ("Self", ""),
        ("Hostname", "HOSTNAME"),
        ("Status", "STATUS"),
        ("Availability", "AVAILABILITY"),
        ("ManagerStatus", "MANAGER STATUS"),
        ("TLSStatus", "TLS STATUS"),
        ("EngineVersion", "ENGINE VERSION"),
    ],
};

fn list(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let answer = client.get_json(&Target::new(&["nodes"]).filtered(&call.filters()))?;
    let mut nodes: Vec<&Value> = json::list(&answer, &[]).iter().collect();
    nodes.sort_by(|a, b| {
        let host = |node| json::text(node, &["Description", "Hostname"]);
        human::natural(host(a), host(b))
    });
    let myself = match nodes.is_empty() || call.on("quiet") {
        true => String::new(),
        false => own_id(&mut client)?,
    };
    let rows: Vec<_> = nodes
        .into_iter()
        .map(|node| {
            let id = json::text(node, &["ID"]);
            let mut row = row([
                ("ID", id.to_owned()),
                ("Hostname", json::text(node, &["Description", "Hostname"]).to_owned()),
                ("Status", human::capital(json::text(node, &["Status", "State"]))),
                ("Availability", human::capital(json::text(node, &["Spec", "Availability"]))),
                ("ManagerStatus", manager_status(node)),
                ("TLSStatus", "Ready".to_owned()),
                (
                    "EngineVersion",
                    json::text(node, &["Description", "Engine", "EngineVersion"]).to_owned(),
                ),
            ]);
            row.insert("Self".to_owned(), Value::from(id == myself));
            row
        })
        .collect();
    print_list(call, &LAYOUT, &rows)?;
    Ok(0)
}

fn manager_status(node: &Value) -> String {
    if json::flag(node, &["ManagerStatus", "Leader"]) {
        return "Leader".to_owned();
    }
    human::capital(json::text(node, &["ManagerStatus", "Reachability"]))
}

/// The id of the node that answers.
fn own_id(client: &mut Client) -> Result<String, CliError> {
    let info = client.get_json(&Target::new(&["info"]))?;
    Ok(json::text(&info, &["Swarm", "NodeID"]).to_owned())
}

/// The id to ask for: `self` stands for the node that answers.
fn resolve(client: &mut Client, name: &str) -> Result<String, CliError> {
    if name != "self" {
        return Ok(name.to_owned());
    }
    match own_id(client)? {
        id if id.is_empty() => Err(CliError::plain("node ID not found in /info")),
        id => Ok(id),
    }
}

fn inspect_nodes(call: &Call) -> Result<u8, CliError> {
    let get = |client: &mut Client, name: &str| {
        let id = resolve(client, name)?;
        client.get(&Target::new(&["nodes", &id]))
    };
    let mut client = call.client()?;
    match call.on("pretty") {
        true => inspect::pretty(call, &mut client, get, |_, node| Ok(pretty(node))),
        false => inspect::print(call, &mut client, get),
    }
}

fn pretty(node: &Value) -> String {
    let field = |path: &[&str]| json::text(node, path).to_owned();
    let mut text = format!("ID:\t\t\t{}\n", field(&["ID"]));
    if !field(&["Spec", "Name"]).is_empty() {
        text += &format!("Name:\t\t\t{}\n", field(&["Spec", "Name"]));
    }
    text += &inspect::pretty_labels(json::at(node, &["Spec", "Labels"]), " - ");
    text += &format!("Hostname:              \t{}\n", field(&["Description", "Hostname"]));
    text += &format!("Joined at:             \t{}\n", inspect::go_time(&field(&["CreatedAt"])));
    text += "Status:\n";
    text += &format!(" State:\t\t\t{}\n", human::capital(&field(&["Status", "State"])));
    if !field(&["Status", "Message"]).is_empty() {
        text += &format!(
            " Message:              \t{}\n",
            human::capital(&field(&["Status", "Message"]))
        );
    }
    text += &format!(
        " Availability:         \t{}\n",
        human::capital(&field(&["Spec", "Availability"]))
    );
    if !field(&["Status", "Addr"]).is_empty() {
        text += &format!(" Address:\t\t{}\n", field(&["Status", "Addr"]));
    }
    if json::at(node, &["ManagerStatus"]).is_some() {
        let leader = if json::flag(node, &["ManagerStatus", "Leader"]) { "Yes" } else { "No" };
        text += "Manager Status:\n";
        text += &format!(" Address:\t\t{}\n", field(&["ManagerStatus", "Addr"]));
        let reach = human::capital(&field(&["ManagerStatus", "Reachability"]));
        text += &format!(" Raft Status:\t\t{reach}\n Leader:\t\t{leader}\n");
    }
    text += "Platform:\n";
    text += &format!(" Operating System:\t{}\n", field(&["Description", "Platform", "OS"]));
    text += &format!(" Architecture:\t\t{}\n", field(&["Description", "Platform", "Architecture"]));
    let nanos = json::number(node, &["Description", "Resources", "NanoCPUs"]);
    let memory = json::number(node, &["Description", "Resources", "MemoryBytes"]);
    text += &format!("Resources:\n CPUs:\t\t\t{}\n", nanos / 1_000_000_000);
    text += &format!(" Memory:\t\t{}\n", human::binary_size(memory as f64));
    let version = field(&["Description", "Engine", "EngineVersion"]);
    text += &plugins(json::list(node, &["Description", "Engine", "Plugins"]));
    text += &format!("Engine Version:\t\t{version}\n");
    if json::at(node, &["Description", "TLSInfo"]).is_some() {
        let tls = |key: &str| field(&["Description", "TLSInfo", key]);
        text += &format!("TLS Info:\n TrustRoot:\n{}\n", tls("TrustRoot"));
        text += &format!(" Issuer Subject:\t{}\n", tls("CertIssuerSubject"));
        text += &format!(" Issuer Public Key:\t{}\n", tls("CertIssuerPublicKey"));
    }
    text
}

/// Plugins by type, as `--pretty` shows them.
fn plugins(plugins: &[Value]) -> String {
    let mut by_type: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for plugin in plugins {
        let names = by_type.entry(json::text(plugin, &["Type"])).or_default();
        names.push(json::text(plugin, &["Name"]));
    }
    let lines = by_type
        .iter()
        .filter(|(kind, _)| matches!(**kind, "Log" | "Network" | "Volume"))
        .map(|(kind, names)| format!(" {kind}:\t\t{}\n", names.join(", ")));
    match by_type.is_empty() {
        true => String::new(),
        false => format!("Plugins:\n{}", lines.collect::<String>()),
    }
}

fn tasks(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let mut names: Vec<&str> = call.args().iter().map(String::as_str).collect();
    if names.is_empty() {
        names.push("self");
    }
    let mut found = Vec::new();
    let mut errors = Vec::new();
    for name in names {
        let listed = resolve(&mut client, name).and_then(|id| {
            let node = client.get_json(&Target::new(&["nodes", &id]))?;
            let filters: Filters = call.filters().and("node", json::text(&node, &["ID"]));
            client.get_json(&Target::new(&["tasks"]).filtered(&filters))
        });
        match listed {
            Ok(Value::Array(tasks)) => found.extend(tasks),
            Ok(_) => {}
            Err(why) => errors.push(why),
        }
    }
    if errors.is_empty() || !found.is_empty() {
        print_tasks(call, &mut client, &found)?;
    }
    CliError::all(errors)
}

fn update(call: &Call) -> Result<u8, CliError> {
    let name = call.arg(0);
    let mut client = call.client()?;
    let node = client.get_json(&Target::new(&["nodes", name]))?;
    let mut spec = json::at(&node, &["Spec"]).cloned().unwrap_or_default();
    for (flag, key, allowed) in [
        ("availability", "Availability", &["active", "pause", "drain"][..]),
        ("role", "Role", &["worker", "manager"][..]),
    ] {
        if let (Some(value), Some(spec)) = (call.get(flag), spec.as_object_mut()) {
            if !allowed.contains(&value) {
                return Err(CliError::plain(format!(
                    "invalid {flag} {value:?}, only {} are supported",
                    allowed.join(", ")
                )));
            }
            spec.insert(key.to_owned(), Value::from(value));
        }
    }
    if let Some(labels) = json::object_at(&mut spec, &["Labels"]) {
        for label in call.matches.all("label-add") {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            labels.insert(key.to_owned(), Value::from(value));
        }
        for key in call.matches.all("label-rm") {
            if labels.shift_remove(key).is_none() {
                warn(&format!("key {key:?} doesn't exist in node's labels"));
            }
        }
    }
    send(&mut client, &node, &spec)?;
    outln(name)?;
    Ok(0)
}

/// Sends a node's new spec, for the version that was read.
fn send(client: &mut Client, node: &Value, spec: &Value) -> Result<(), CliError> {
    let version = json::number(node, &["Version", "Index"]).to_string();
    let id = json::text(node, &["ID"]);
    client.post_json(&Target::new(&["nodes", id, "update"]).with("version", &version), spec)?;
    Ok(())
}

/// Gives nodes a role, one after the other; the first failure ends it, as with Docker.
fn change_roles(call: &Call, role: &str) -> Result<u8, CliError> {
    let mut client = call.client()?;
    for name in call.args() {
        let node = client.get_json(&Target::new(&["nodes", name]))?;
        let mut spec = json::at(&node, &["Spec"]).cloned().unwrap_or_default();
        if json::text(&spec, &["Role"]) == role {
            outln(&format!("Node {} is already a {role}.", json::text(&node, &["ID"])))?;
            continue;
        }
        if let Some(spec) = spec.as_object_mut() {
            spec.insert("Role".to_owned(), Value::from(role));
        }
        send(&mut client, &node, &spec)?;
        outln(&match role {
            "manager" => format!("Node {name} promoted to a manager in the swarm."),
            _ => format!("Manager {name} demoted in the swarm."),
        })?;
    }
    Ok(0)
}

fn remove(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let mut errors = Vec::new();
    for name in call.args() {
        let target = Target::new(&["nodes", name]);
        let target = if call.on("force") { target.with("force", "1") } else { target };
        // Afterwards nobody knows the node any more.
        let held = holders::of_node(&mut client, name);
        match client.delete(&target) {
            Ok(_) => {
                outln(name)?;
                held.iter().for_each(holders::warn_of_node);
            }
            Err(why) => errors.push(why),
        }
    }
    CliError::all(errors)
}
