//! Containers as Docker shows them. Granted secrets and configs are not shown: not among mounts,
//! not among binds, not in the environment.

use serde_json::{Map, Value, json};
use skep_core::model::container::MountKind;
use skep_core::time::Stamp;

use crate::api::networks;
use crate::api::time::rfc3339;
use crate::api::types::container as wire;
use crate::engine::bundle::{MASKED_PATHS, READONLY_PATHS};
use crate::gate::{ContainerState, ContainerView};

/// Bytes of `/dev/shm`.
const SHM_BYTES: u64 = 64 << 20;

/// Docker's word for a state.
pub(in crate::api) fn state_word(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Exited => "exited",
    }
}

/// A row of the list. `image` is the name to show.
pub(in crate::api) fn summary(view: &ContainerView, image: String, now: Stamp) -> wire::Summary {
    wire::Summary {
        id: view.id.clone(),
        names: vec![name(view)],
        image,
        image_id: view.image_id.clone(),
        command: command(&view.args),
        created: seconds(view.created),
        ports: view.exposed.iter().filter_map(|port| exposed(port)).collect(),
        labels: view.labels.clone(),
        state: state_word(view.state),
        status: status(view, now),
        host_config: wire::HostConfig { network_mode: view.network.clone() },
        network_settings: wire::NetworkSettings { networks: attached(view) },
        mounts: mounts(view),
    }
}

/// Unix seconds.
pub(in crate::api) fn seconds(stamp: Stamp) -> i64 {
    i64::try_from(stamp.0 / 1_000_000_000).unwrap_or(i64::MAX)
}

/// The name with Docker's slash.
pub(in crate::api) fn name(view: &ContainerView) -> String {
    format!("/{}", view.task.container_name())
}

fn command(args: &[String]) -> String {
    let quoted = |arg: &String| if arg.contains(' ') { format!("'{arg}'") } else { arg.clone() };
    let mut words = args.iter();
    let first = words.next().cloned();
    first.into_iter().chain(words.map(quoted)).collect::<Vec<_>>().join(" ")
}

fn exposed(port: &str) -> Option<wire::Port> {
    let (number, kind) = port.split_once('/').unwrap_or((port, "tcp"));
    Some(wire::Port { private_port: number.parse().ok()?, kind: kind.to_owned() })
}

fn status(view: &ContainerView, now: Stamp) -> String {
    match view.state {
        ContainerState::Created => "Created".to_owned(),
        ContainerState::Running => format!("Up {}", human(now.since(view.started).0)),
        ContainerState::Exited => {
            format!("Exited ({}) {} ago", view.exit_code, human(now.since(view.finished).0))
        }
    }
}

/// A length of time as Docker tells people.
fn human(nanos: u64) -> String {
    let seconds = nanos / 1_000_000_000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, ..60, _) => format!("{minutes} minutes"),
        (.., 1) => "About an hour".to_owned(),
        (.., ..48) => format!("{hours} hours"),
        (.., ..336) => format!("{} days", hours / 24),
        (.., ..1440) => format!("{} weeks", hours / 24 / 7),
        (.., ..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// The network the container is on, by the name Docker gives it.
fn attached(view: &ContainerView) -> Value {
    let name = network_name(view);
    let endpoint = json!({
        "IPAMConfig": null, "Links": null, "Aliases": null,
        "NetworkID": networks::local_id(name), "EndpointID": "",
        "Gateway": "", "IPAddress": "", "IPPrefixLen": 0,
        "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0,
        "MacAddress": "", "DriverOpts": null,
    });
    Value::Object(Map::from_iter([(name.to_owned(), endpoint)]))
}

/// Name of the network behind a network mode.
pub(in crate::api) fn network_name(view: &ContainerView) -> &str {
    if view.network == "default" { "bridge" } else { &view.network }
}

fn mounts(view: &ContainerView) -> Vec<Value> {
    let shown = view.task.spec.container.mounts.iter().map(|mount| {
        let kind = match mount.kind {
            MountKind::Bind => "bind",
            MountKind::Volume => "volume",
            MountKind::Tmpfs => "tmpfs",
        };
        let propagation = match (mount.kind, mount.propagation.as_str()) {
            (MountKind::Bind, "") => "rprivate",
            (_, propagation) => propagation,
        };
        json!({
            "Type": kind, "Source": mount.source, "Destination": mount.target,
            "Mode": "", "RW": !mount.read_only, "Propagation": propagation,
        })
    });
    shown.collect()
}

/// Everything of one container, in Docker's order.
pub(in crate::api) fn inspect(view: &ContainerView, runtime: &str) -> Value {
    let (path, args) = view.args.split_first().map_or(("", [].as_slice()), |(p, a)| (p, a));
    json!({
        "Id": view.id,
        "Created": rfc3339(view.created),
        "Path": path,
        "Args": args,
        "State": {
            "Status": state_word(view.state),
            "Running": view.state == ContainerState::Running,
            "Paused": false,
            "Restarting": false,
            "OOMKilled": view.oom,
            "Dead": false,
            "Pid": view.pid,
            "ExitCode": view.exit_code,
            "Error": view.error,
            "StartedAt": rfc3339(view.started),
            "FinishedAt": rfc3339(view.finished),
        },
        "Image": view.image_id,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": format!("{}/{}", view.task_dir, crate::wire::launch::LOG_FILE),
        "Name": name(view),
        "RestartCount": 0,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": if view.execs.is_empty() { Value::Null } else { json!(view.execs) },
        "HostConfig": host_config(view, runtime),
        "GraphDriver": {
            "Data": {
                "LowerDir": view.layers.iter().rev().cloned().collect::<Vec<_>>().join(":"),
                "UpperDir": format!("{}/upper", view.task_dir),
                "WorkDir": format!("{}/work", view.task_dir),
            },
            "Name": "overlay2",
        },
        "Mounts": mounts(view),
        "Config": config(view),
        "NetworkSettings": {
            "Bridge": "", "SandboxID": "", "HairpinMode": false,
            "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0,
            "Ports": ports(view), "SandboxKey": "",
            "SecondaryIPAddresses": null, "SecondaryIPv6Addresses": null,
            "EndpointID": "", "Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0,
            "IPAddress": "", "IPPrefixLen": 0, "IPv6Gateway": "", "MacAddress": "",
            "Networks": attached(view),
        },
    })
}

fn config(view: &ContainerView) -> Value {
    let spec = &view.task.spec.container;
    json!({
        "Hostname": view.hostname,
        "Domainname": "",
        "User": view.user,
        "AttachStdin": false,
        "AttachStdout": false,
        "AttachStderr": false,
        "Tty": spec.tty,
        "OpenStdin": spec.open_stdin,
        "StdinOnce": false,
        "Env": environment(view),
        "Cmd": list(&view.cmd),
        "Image": spec.image,
        "Volumes": null,
        "WorkingDir": view.cwd,
        "Entrypoint": list(&view.entrypoint),
        "OnBuild": null,
        "Labels": view.labels,
    })
}

/// The environment as image and user set it: the host name that every process gets is no part of
/// it in Docker.
fn environment(view: &ContainerView) -> Vec<&String> {
    let said = &view.task.spec.container.env;
    let added = |pair: &String| pair.starts_with("HOSTNAME=") && !said.contains(pair);
    view.env.iter().filter(|pair| !added(pair)).collect()
}

fn list(words: &[String]) -> Value {
    if words.is_empty() { Value::Null } else { json!(words) }
}

fn ports(view: &ContainerView) -> Value {
    Value::Object(view.exposed.iter().map(|port| (port.clone(), Value::Null)).collect())
}

/// What the host does for the container, in Docker's order.
fn host_config(view: &ContainerView, runtime: &str) -> Value {
    let (Value::Object(mut all), Value::Object(rest)) = (settings(view, runtime), resources(view))
    else {
        return Value::Null;
    };
    all.extend(rest);
    Value::Object(all)
}

fn settings(view: &ContainerView, runtime: &str) -> Value {
    let spec = &view.task.spec.container;
    let dns = spec.dns.clone().unwrap_or_default();
    json!({
        "Binds": null,
        "ContainerIDFile": "",
        "LogConfig": {"Type": "json-file", "Config": {}},
        "NetworkMode": view.network,
        "PortBindings": {},
        "RestartPolicy": {"Name": "", "MaximumRetryCount": 0},
        "AutoRemove": false,
        "VolumeDriver": "",
        "VolumesFrom": null,
        "CapAdd": list(&spec.cap_add),
        "CapDrop": list(&spec.cap_drop),
        "CgroupnsMode": "host",
        "Dns": list(&dns.nameservers),
        "DnsOptions": list(&dns.options),
        "DnsSearch": list(&dns.search),
        "ExtraHosts": list(&spec.hosts),
        "GroupAdd": list(&spec.groups),
        "IpcMode": "private",
        "Cgroup": "",
        "Links": null,
        "OomScoreAdj": spec.oom_score_adj,
        "PidMode": "",
        "Privileged": false,
        "PublishAllPorts": false,
        "ReadonlyRootfs": spec.read_only,
        "SecurityOpt": null,
        "UTSMode": "",
        "UsernsMode": "",
        "ShmSize": SHM_BYTES,
        "Runtime": runtime,
        "ConsoleSize": [0, 0],
        "Isolation": "default",
    })
}

fn resources(view: &ContainerView) -> Value {
    let spec = &view.task.spec.container;
    let needs = view.task.spec.resources.clone().unwrap_or_default();
    let (limits, reserved) =
        (needs.limits.unwrap_or_default(), needs.reservations.unwrap_or_default());
    let ulimits = spec.ulimits.iter();
    let ulimits: Vec<Value> =
        ulimits.map(|u| json!({"Name": u.name, "Hard": u.hard, "Soft": u.soft})).collect();
    json!({
        "CpuShares": 0,
        "Memory": limits.memory_bytes,
        "NanoCpus": limits.nano_cpus,
        "CgroupParent": "",
        "BlkioWeight": 0,
        "BlkioWeightDevice": null,
        "BlkioDeviceReadBps": null,
        "BlkioDeviceWriteBps": null,
        "BlkioDeviceReadIOps": null,
        "BlkioDeviceWriteIOps": null,
        "CpuPeriod": 0,
        "CpuQuota": 0,
        "CpuRealtimePeriod": 0,
        "CpuRealtimeRuntime": 0,
        "CpusetCpus": "",
        "CpusetMems": "",
        "Devices": null,
        "DeviceCgroupRules": null,
        "DeviceRequests": null,
        "KernelMemory": 0,
        "KernelMemoryTCP": 0,
        "MemoryReservation": reserved.memory_bytes,
        "MemorySwap": limits.memory_bytes.saturating_mul(2),
        "MemorySwappiness": null,
        "OomKillDisable": false,
        "PidsLimit": if limits.pids == 0 { Value::Null } else { json!(limits.pids) },
        "Ulimits": ulimits,
        "CpuCount": 0,
        "CpuPercent": 0,
        "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0,
        "MaskedPaths": MASKED_PATHS,
        "ReadonlyPaths": READONLY_PATHS,
        "Init": spec.init,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_told_as_docker_tells_them() {
        let told = |seconds: u64| human(seconds * 1_000_000_000);
        assert_eq!(told(0), "Less than a second");
        assert_eq!(told(1), "1 second");
        assert_eq!(told(59), "59 seconds");
        assert_eq!(told(60), "About a minute");
        assert_eq!(told(120), "2 minutes");
        assert_eq!(told(3600), "About an hour");
        assert_eq!(told(7200), "2 hours");
        assert_eq!(told(47 * 3600), "47 hours");
        assert_eq!(told(48 * 3600), "2 days");
        assert_eq!(told(14 * 86400), "2 weeks");
        assert_eq!(told(60 * 86400), "2 months");
        assert_eq!(told(800 * 86400), "2 years");
    }

    #[test]
    fn words_with_blanks_are_quoted() {
        let words = ["sh", "-c", "sleep 1"].map(str::to_owned);
        assert_eq!(command(&words), "sh -c 'sleep 1'");
        assert_eq!(command(&[]), "");
    }
}
