//! `skep version` and `skep info`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::call::{Call, out, outln};
use super::client::Target;
use super::error::CliError;
use super::flags::{Arity, Command};
use super::output::{INSPECT_FORMAT, inspect_text};
use super::{holders, human, json};

/// `skep version`
pub(super) const VERSION: Command =
    Command::client("version", "[OPTIONS]", "Show the Skep version information", version)
        .flags(&[INSPECT_FORMAT])
        .takes(Arity::None);

/// `skep info`
pub(super) const INFO: Command =
    Command::client("info", "[OPTIONS]", "Display system-wide information", info)
        .flags(&[INSPECT_FORMAT])
        .takes(Arity::None);

fn version(call: &Call) -> Result<u8, CliError> {
    let server = call.client()?.get_json(&Target::new(&["version"]));
    let client = json!({
        "Version": env!("CARGO_PKG_VERSION"), "ApiVersion": "1.50", "DefaultAPIVersion": "1.50",
        "Os": std::env::consts::OS, "Arch": arch(),
    });
    if let Some(format) = call.get("format").filter(|format| !format.is_empty()) {
        let both = json!({"Client": client, "Server": server.as_ref().ok()});
        outln(&inspect_text(format, &both)?)?;
    } else {
        let mut text = "Client:\n".to_owned();
        line(&mut text, 1, "Version", json::text(&client, &["Version"]));
        line(&mut text, 1, "API version", json::text(&client, &["ApiVersion"]));
        line(&mut text, 1, "OS/Arch", &format!("{}/{}", std::env::consts::OS, arch()));
        if let Ok(server) = &server {
            server_version(&mut text, server);
        }
        out(&text)?;
    }
    server.map(|_| 0)
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn line(text: &mut String, depth: usize, name: &str, value: &str) {
    let name = format!("{name}:");
    let width = 20 - depth;
    let _ = writeln!(text, "{:depth$}{name:width$}{value}", "");
}

fn server_version(text: &mut String, server: &Value) {
    let field = |key: &str| json::text(server, &[key]);
    let platform = json::text(server, &["Platform", "Name"]);
    let _ = writeln!(text, "\n{}", format!("Server: {platform}").trim_end());
    for component in json::list(server, &["Components"]) {
        let name = json::text(component, &["Name"]);
        let detail = |key: &str| json::text(component, &["Details", key]).to_owned();
        let _ = writeln!(text, " {name}:");
        line(text, 2, "Version", json::text(component, &["Version"]));
        if !detail("ApiVersion").is_empty() {
            let least = detail("MinAPIVersion");
            let spoken = format!("{} (minimum version {least})", detail("ApiVersion"));
            line(text, 2, "API version", &spoken);
        }
        let commit = if detail("ApiVersion").is_empty() { "GitCommit" } else { "Git commit" };
        for (label, key) in
            [("Go version", "GoVersion"), (commit, "GitCommit"), ("Built", "BuildTime")]
        {
            if !detail(key).is_empty() {
                line(text, 2, label, &detail(key));
            }
        }
        if !detail("Os").is_empty() {
            line(text, 2, "OS/Arch", &format!("{}/{}", detail("Os"), detail("Arch")));
        }
    }
    if json::list(server, &["Components"]).is_empty() {
        line(text, 1, "Version", field("Version"));
        line(text, 1, "API version", field("ApiVersion"));
        line(text, 1, "OS/Arch", &format!("{}/{}", field("Os"), field("Arch")));
    }
}

fn info(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let mut info = client.get_json(&Target::new(&["info"]))?;
    let own = match client.get_json(&Target::new(&["skep", "v1", "info"])) {
        // A daemon that knows nothing of it.
        Err(CliError::Daemon { status: 404, .. }) => Value::Null,
        own => own?,
    };
    if let Some(info) = info.as_object_mut() {
        info.insert("Skep".to_owned(), own);
    }
    match call.get("format").filter(|format| !format.is_empty()) {
        Some(format) => outln(&inspect_text(format, &info)?)?,
        None => out(&info_text(&info))?,
    }
    for warning in json::list(&info, &["Warnings"]).iter().filter_map(Value::as_str) {
        super::call::warn(warning);
    }
    Ok(0)
}

fn info_text(info: &Value) -> String {
    let text = |path: &[&str]| json::text(info, path);
    let number = |path: &[&str]| json::number(info, path);
    let mut out = "Client:\n".to_owned();
    let mut say = |depth: usize, name: &str, value: &str| {
        let gap = if value.is_empty() { "" } else { " " };
        let _ = writeln!(out, "{:depth$}{name}:{gap}{value}", "");
    };
    say(1, "Version", env!("CARGO_PKG_VERSION"));
    say(0, "\nServer", "");
    say(1, "Containers", &number(&["Containers"]).to_string());
    for (name, key) in [
        ("Running", "ContainersRunning"),
        ("Paused", "ContainersPaused"),
        ("Stopped", "ContainersStopped"),
    ] {
        say(2, name, &number(&[key]).to_string());
    }
    say(1, "Images", &number(&["Images"]).to_string());
    say(1, "Server Version", text(&["ServerVersion"]));
    say(1, "Storage Driver", text(&["Driver"]));
    for pair in json::list(info, &["DriverStatus"]) {
        let word = |at: usize| pair.get(at).and_then(Value::as_str).unwrap_or_default();
        say(2, word(0), word(1));
    }
    say(1, "Logging Driver", text(&["LoggingDriver"]));
    say(1, "Cgroup Driver", text(&["CgroupDriver"]));
    say(1, "Cgroup Version", text(&["CgroupVersion"]));
    for kind in ["Volume", "Network", "Log"] {
        let names = json::list(info, &["Plugins", kind]).iter().filter_map(Value::as_str);
        let names: Vec<&str> = names.collect();
        if kind == "Volume" {
            say(1, "Plugins", "");
        }
        say(2, kind, &names.join(" "));
    }
    swarm_text(&mut out, json::at(info, &["Swarm"]).unwrap_or(&Value::Null));
    secrets_text(&mut out, json::at(info, &["Skep"]).unwrap_or(&Value::Null));
    host_text(&mut out, info);
    out
}

fn secrets_text(out: &mut String, own: &Value) {
    let mut say = |depth: usize, name: &str, value: &str| {
        let gap = if value.is_empty() { "" } else { " " };
        let _ = writeln!(out, "{:depth$}{name}:{gap}{value}", "");
    };
    let swarm = json::at(own, &["Swarm"]);
    let count = swarm.map(|swarm| json::number(swarm, &["Secrets"]).to_string());
    say(1, "Secrets", &count.unwrap_or_default());
    if let Some(swarm) = swarm {
        say(2, "Versions", &json::number(swarm, &["Versions"]).to_string());
        say(2, "Cipher", json::text(swarm, &["Cipher"]));
        say(2, "Key", &holders::key(swarm));
        say(2, "Autolock", if json::flag(swarm, &["Autolock"]) { "on" } else { "off" });
    }
    say(2, "Tasks Here with Secrets", &json::number(own, &["TasksHere"]).to_string());
}

fn swarm_text(out: &mut String, swarm: &Value) {
    let text = |path: &[&str]| json::text(swarm, path);
    let mut say = |depth: usize, name: &str, value: &str| {
        let gap = if value.is_empty() { "" } else { " " };
        let _ = writeln!(out, "{:depth$}{name}:{gap}{value}", "");
    };
    say(1, "Swarm", text(&["LocalNodeState"]));
    if text(&["NodeID"]).is_empty() {
        return;
    }
    say(2, "NodeID", text(&["NodeID"]));
    if !text(&["Error"]).is_empty() {
        say(2, "Error", text(&["Error"]));
    }
    let manager = json::flag(swarm, &["ControlAvailable"]);
    say(2, "Is Manager", &manager.to_string());
    if let (true, Some(cluster)) = (manager, json::at(swarm, &["Cluster"])) {
        let number = |path: &[&str]| json::number(cluster, path).to_string();
        let span = |path: &[&str]| human::duration(json::number(cluster, path) as f64 / 1e9);
        say(2, "ClusterID", json::text(cluster, &["ID"]));
        say(2, "Managers", &json::number(swarm, &["Managers"]).to_string());
        say(2, "Nodes", &json::number(swarm, &["Nodes"]).to_string());
        say(2, "Orchestration", "");
        let history = &["Spec", "Orchestration", "TaskHistoryRetentionLimit"];
        say(3, "Task History Retention Limit", &number(history));
        say(2, "Raft", "");
        say(3, "Snapshot Interval", &number(&["Spec", "Raft", "SnapshotInterval"]));
        say(3, "Heartbeat Tick", &number(&["Spec", "Raft", "HeartbeatTick"]));
        say(3, "Election Tick", &number(&["Spec", "Raft", "ElectionTick"]));
        say(2, "Dispatcher", "");
        say(3, "Heartbeat Period", &span(&["Spec", "Dispatcher", "HeartbeatPeriod"]));
        say(2, "CA Configuration", "");
        say(3, "Expiry Duration", &span(&["Spec", "CAConfig", "NodeCertExpiry"]));
        let autolock = &["Spec", "EncryptionConfig", "AutoLockManagers"];
        let locked = json::flag(cluster, autolock);
        say(2, "Autolock Managers", &locked.to_string());
        if !locked {
            say(2, "Keys at Rest", "clear files, readable by root");
        }
        let rotating = json::flag(cluster, &["RootRotationInProgress"]);
        say(2, "Root Rotation In Progress", &rotating.to_string());
    }
    say(2, "Node Address", text(&["NodeAddr"]));
    let managers = json::list(swarm, &["RemoteManagers"]);
    if !managers.is_empty() {
        say(2, "Manager Addresses", "");
    }
    for manager in managers {
        let _ = writeln!(out, "   {}", json::text(manager, &["Addr"]));
    }
}

fn host_text(out: &mut String, info: &Value) {
    let mut say = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(out, " {name}: {value}");
        }
    };
    for (name, key) in [
        ("Default Runtime", "DefaultRuntime"),
        ("Kernel Version", "KernelVersion"),
        ("Operating System", "OperatingSystem"),
        ("OSType", "OSType"),
        ("Architecture", "Architecture"),
    ] {
        say(name, json::text(info, &[key]));
    }
    say("CPUs", &json::number(info, &["NCPU"]).to_string());
    say("Total Memory", &human::binary_size(json::number(info, &["MemTotal"]) as f64));
    say("Name", json::text(info, &["Name"]));
    say("ID", json::text(info, &["ID"]));
    say("Skep Root Dir", json::text(info, &["DockerRootDir"]));
}
