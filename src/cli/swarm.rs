//! `skep swarm`.

use serde_json::{Value, json};

use super::call::{Call, outln};
use super::client::{Client, Target};
use super::error::CliError;
use super::flags::{Arity, Command, Flag, parse_bool};
use super::json;
use super::values::{check_duration, check_int, check_uint, duration};

mod ca;
mod join;
mod lock;
mod ring;

/// `skep swarm …`
pub(super) const SWARM: Command =
    Command::group("swarm", "Manage Swarm", ALL).section("Swarm Commands");

const ALL: &[Command] = &[
    ca::CA,
    INIT,
    join::JOIN,
    JOIN_TOKEN,
    LEAVE,
    ring::ROTATE_KEY,
    lock::UNLOCK,
    lock::UNLOCK_KEY,
    UPDATE,
];

const ADVERTISE_ADDR: Flag = Flag::with(
    "advertise-addr",
    "string",
    "Advertised address (format: \"<ip|interface>[:port]\")",
);
const AVAILABILITY: Flag = Flag::with(
    "availability",
    "string",
    "Availability of the node (\"active\", \"pause\", \"drain\") (default \"active\")",
);
const LISTEN_ADDR: Flag = Flag::with(
    "listen-addr",
    "node-addr",
    "Listen address (format: \"<ip|interface>[:port]\") (default 0.0.0.0:2377)",
);
const CERT_EXPIRY: Flag = Flag::with(
    "cert-expiry",
    "duration",
    "Validity period for node certificates (ns|us|ms|s|m|h) (default 2160h0m0s)",
)
.check(check_duration);
const HEARTBEAT: Flag = Flag::with(
    "dispatcher-heartbeat",
    "duration",
    "Dispatcher heartbeat period (ns|us|ms|s|m|h) (default 5s)",
)
.check(check_duration);
const SNAPSHOTS: Flag =
    Flag::with("max-snapshots", "uint", "Number of additional Raft snapshots to retain")
        .check(check_uint);
const SNAPSHOT_INTERVAL: Flag = Flag::with(
    "snapshot-interval",
    "uint",
    "Number of log entries between Raft snapshots (default 10000)",
)
.check(check_uint);
const HISTORY: Flag =
    Flag::with("task-history-limit", "int", "Task history retention limit (default 5)")
        .check(check_int);

const INIT: Command = Command::client("init", "[OPTIONS]", "Initialize a swarm", init)
    .flags(&[
        ADVERTISE_ADDR,
        Flag::switch(
            "autolock",
            "Enable manager autolocking (requiring an unlock key to start a stopped manager)",
        ),
        AVAILABILITY,
        CERT_EXPIRY,
        HEARTBEAT,
        Flag::switch("force-new-cluster", "Force create a new cluster from current state"),
        LISTEN_ADDR,
        SNAPSHOTS,
        SNAPSHOT_INTERVAL,
        HISTORY,
    ])
    .takes(Arity::None);

const JOIN_TOKEN: Command =
    Command::client("join-token", "[OPTIONS] (worker|manager)", "Manage join tokens", join_token)
        .flags(&[
            Flag::switch("quiet", "Only display token").short('q'),
            Flag::switch("rotate", "Rotate join token"),
        ])
        .takes(Arity::Exactly(1));

const LEAVE: Command = Command::client("leave", "[OPTIONS]", "Leave the swarm", leave)
    .flags(&[
        Flag::switch("force", "Force this node to leave the swarm, ignoring warnings").short('f')
    ])
    .takes(Arity::None);

const UPDATE: Command = Command::client("update", "[OPTIONS]", "Update the swarm", update)
    .flags(&[
        Flag::switch("autolock", "Change manager autolocking setting (true|false)"),
        CERT_EXPIRY,
        HEARTBEAT,
        SNAPSHOTS,
        SNAPSHOT_INTERVAL,
        HISTORY,
    ])
    .takes(Arity::None);

fn init(call: &Call) -> Result<u8, CliError> {
    let availability = availability(call)?;
    let mut spec = json!({
        "Labels": null, "Orchestration": {}, "Raft": {"ElectionTick": 0, "HeartbeatTick": 0},
        "Dispatcher": {}, "CAConfig": {}, "TaskDefaults": {},
        "EncryptionConfig": {"AutoLockManagers": call.on("autolock")},
    });
    set_spec(call, &mut spec)?;
    let body = json!({
        "ListenAddr": listen_addr(call),
        "AdvertiseAddr": call.get("advertise-addr").unwrap_or_default(),
        "DataPathAddr": "", "DataPathPort": 0,
        "ForceNewCluster": call.on("force-new-cluster"),
        "Spec": spec, "AutoLockManagers": call.on("autolock"), "Availability": availability,
        "DefaultAddrPool": null, "SubnetSize": 0,
    });
    let mut client = call.client()?;
    let id = client.post_json(&Target::new(&["swarm", "init"]), &body)?;
    let id = id.as_str().unwrap_or_default();
    outln(&format!("Swarm initialized: current node ({id}) is now a manager.\n"))?;
    print_join(&mut client, id, "worker")?;
    outln(
        "To add a manager to this swarm, run 'skep swarm join-token manager' and follow the \
         instructions.\n",
    )?;
    if call.on("autolock") {
        lock::print_unlock(&mut client)?;
    }
    Ok(0)
}

/// The availability that was asked for, in Docker's spelling.
fn availability(call: &Call) -> Result<String, CliError> {
    let given = call.get("availability").unwrap_or("active");
    match given.to_lowercase() {
        word if matches!(word.as_str(), "active" | "pause" | "drain") => Ok(word),
        _ => Err(CliError::plain(format!(
            "invalid availability {given:?}, only active, pause and drain are supported"
        ))),
    }
}

fn listen_addr(call: &Call) -> &str {
    call.get("listen-addr").unwrap_or("0.0.0.0:2377")
}

/// The path that updates the swarm as it was read, with one of its rotations or none.
fn update_target(swarm: &Value, rotation: &str) -> Target {
    let rotations = ["rotateManagerToken", "rotateManagerUnlockKey", "rotateWorkerToken"];
    rotations
        .into_iter()
        .fold(Target::new(&["swarm", "update"]), |target, name| {
            target.with(name, if name == rotation { "true" } else { "false" })
        })
        .with("version", &json::number(swarm, &["Version", "Index"]).to_string())
}

/// Puts what the flags say into a swarm's spec.
fn set_spec(call: &Call, spec: &mut Value) -> Result<(), CliError> {
    let mut set = |path: &[&str], key: &str, value: Value| {
        if let Some(object) = json::object_at(spec, path) {
            object.insert(key.to_owned(), value);
        }
    };
    let nanos = |text: &str| duration(text).map(Value::from).map_err(CliError::Plain);
    let whole = |text: &str| text.parse::<i64>().map(Value::from);
    let bad = |_| CliError::plain("a number is out of range");
    if let Some(text) = call.get("task-history-limit") {
        set(&["Orchestration"], "TaskHistoryRetentionLimit", whole(text).map_err(bad)?);
    }
    if let Some(text) = call.get("snapshot-interval") {
        set(&["Raft"], "SnapshotInterval", whole(text).map_err(bad)?);
    }
    if let Some(text) = call.get("max-snapshots") {
        set(&["Raft"], "KeepOldSnapshots", whole(text).map_err(bad)?);
    }
    if let Some(text) = call.get("dispatcher-heartbeat") {
        set(&["Dispatcher"], "HeartbeatPeriod", nanos(text)?);
    }
    if let Some(text) = call.get("cert-expiry") {
        set(&["CAConfig"], "NodeCertExpiry", nanos(text)?);
    }
    Ok(())
}

fn print_join(client: &mut Client, node: &str, role: &str) -> Result<(), CliError> {
    let node = client.get_json(&Target::new(&["nodes", node]))?;
    let swarm = client.get_json(&Target::new(&["swarm"]))?;
    let address = json::text(&node, &["ManagerStatus", "Addr"]);
    let token = token(&swarm, role);
    outln(&format!(
        "To add a {role} to this swarm, run the following command:\n\n    \
         skep swarm join --token {token} {address}\n"
    ))
}

fn token<'a>(swarm: &'a Value, role: &str) -> &'a str {
    let key = if role == "manager" { "Manager" } else { "Worker" };
    json::text(swarm, &["JoinTokens", key])
}

fn join_token(call: &Call) -> Result<u8, CliError> {
    let role = call.arg(0);
    if !matches!(role, "worker" | "manager") {
        return Err(CliError::plain(format!("unknown role {role}")));
    }
    let mut client = call.client()?;
    if call.on("rotate") {
        let swarm = client.get_json(&Target::new(&["swarm"]))?;
        let rotation = if role == "manager" { "rotateManagerToken" } else { "rotateWorkerToken" };
        let target = update_target(&swarm, rotation);
        client.post_json(&target, json::at(&swarm, &["Spec"]).unwrap_or(&Value::Null))?;
        if !call.on("quiet") {
            outln(&format!("Successfully rotated {role} join token.\n"))?;
        }
    }
    if call.on("quiet") {
        let swarm = client.get_json(&Target::new(&["swarm"]))?;
        outln(token(&swarm, role))?;
        return Ok(0);
    }
    let info = client.get_json(&Target::new(&["info"]))?;
    print_join(&mut client, json::text(&info, &["Swarm", "NodeID"]), role)?;
    Ok(0)
}

fn leave(call: &Call) -> Result<u8, CliError> {
    let target = Target::new(&["swarm", "leave"]);
    let target = if call.on("force") { target.with("force", "1") } else { target };
    call.client()?.post_empty(&target)?;
    outln("Node left the swarm.")?;
    Ok(0)
}

fn update(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let swarm = client.get_json(&Target::new(&["swarm"]))?;
    let mut spec = json::at(&swarm, &["Spec"]).cloned().unwrap_or_default();
    let locked = json::flag(&spec, &["EncryptionConfig", "AutoLockManagers"]);
    set_spec(call, &mut spec)?;
    let autolock = call.get("autolock").and_then(parse_bool);
    if let (Some(autolock), Some(encryption)) =
        (autolock, json::object_at(&mut spec, &["EncryptionConfig"]))
    {
        encryption.insert("AutoLockManagers".to_owned(), Value::from(autolock));
    }
    client.post_json(&update_target(&swarm, ""), &spec)?;
    outln("Swarm updated.")?;
    if autolock == Some(true) && !locked {
        lock::print_unlock(&mut client)?;
    }
    Ok(0)
}
