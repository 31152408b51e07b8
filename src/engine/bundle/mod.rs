//! The OCI runtime config of a container, as Docker would write it. Left to the shim: the root's
//! path, the user, the binds of secrets.

mod capabilities;
mod mounts;
mod seccomp;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::{Map, Value, json};
use skep_core::model::container::{ContainerSpec, Ulimit};
use skep_core::model::task::Resources;

use super::images::ImageConfig;
use super::plan::{Network, PlanError};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Time over which a CPU quota is counted, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// Least quota the kernel takes, in microseconds.
const CPU_QUOTA_MIN_US: u64 = 1_000;

/// Character devices every container may use: `/dev/zero`, `null`, `urandom`, `random`, `tty`,
/// `console`. The runtime adds the terminals.
const DEVICES: [(u32, u32); 6] = [(1, 5), (1, 3), (1, 9), (1, 8), (5, 0), (5, 1)];
/// `/dev/fuse`: never.
const FUSE: (u32, u32) = (10, 229);

/// Paths of the kernel that a container sees empty.
pub(crate) const MASKED_PATHS: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Paths of the kernel that a container may not write to.
pub(crate) const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// What a bundle is made of.
#[derive(Debug)]
pub(super) struct Inputs<'a> {
    pub(super) spec: &'a ContainerSpec,
    pub(super) limits: Option<&'a Resources>,
    pub(super) image: &'a ImageConfig,
    /// Command line after the image's is merged in.
    pub(super) args: &'a [String],
    pub(super) hostname: &'a str,
    pub(super) network: Network,
    /// Where `hosts`, `hostname` and `resolv.conf` are.
    pub(super) task_dir: &'a Path,
    pub(super) cgroup: &'a str,
    /// Whether the host's cgroups are one hierarchy: then each container sees its own as root.
    pub(super) unified_cgroups: bool,
}

/// Writes the bundle.
pub(super) fn config(inputs: &Inputs<'_>) -> Result<Value, PlanError> {
    let spec = inputs.spec;
    let capabilities = capabilities::of(&spec.cap_add, &spec.cap_drop)?;
    let mut linux = json!({
        "sysctl": sysctls(inputs)?,
        "resources": resources(inputs.limits),
        "cgroupsPath": inputs.cgroup,
        "namespaces": namespaces(inputs),
        "seccomp": seccomp::filter(std::env::consts::ARCH, &capabilities),
        "maskedPaths": MASKED_PATHS,
        "readonlyPaths": READONLY_PATHS,
    });
    if let Some(propagation) = mounts::root_propagation(&spec.mounts) {
        linux["rootfsPropagation"] = json!(propagation);
    }
    let mut process = json!({
        "terminal": spec.tty,
        "args": inputs.args,
        "env": environment(inputs),
        "cwd": working_dir(inputs)?,
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
        },
        "oomScoreAdj": spec.oom_score_adj,
    });
    if !spec.ulimits.is_empty() {
        process["rlimits"] =
            Value::Array(spec.ulimits.iter().map(rlimit).collect::<Result<_, _>>()?);
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"readonly": spec.read_only},
        "hostname": inputs.hostname,
        "mounts": mounts::all(inputs)?,
        "linux": linux,
    }))
}

/// `PATH`, `HOSTNAME` and, for a terminal, `TERM`; over them the image's variables, over these
/// the user's. A user's name without a value takes the variable away.
fn environment(inputs: &Inputs<'_>) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", inputs.hostname)];
    if inputs.spec.tty {
        env.push("TERM=xterm".to_owned());
    }
    for pair in inputs.image.env.iter().chain(&inputs.spec.env) {
        let name = name_of(pair);
        if !pair.contains('=') {
            env.retain(|p| name_of(p) != name);
        } else if let Some(old) = env.iter_mut().find(|p| name_of(p) == name) {
            old.clone_from(pair);
        } else {
            env.push(pair.clone());
        }
    }
    env
}

fn name_of(pair: &str) -> &str {
    pair.split('=').next().unwrap_or(pair)
}

fn working_dir(inputs: &Inputs<'_>) -> Result<String, PlanError> {
    let dirs = [&inputs.spec.dir, &inputs.image.working_dir];
    match dirs.into_iter().find(|dir| !dir.is_empty()) {
        None => Ok("/".to_owned()),
        Some(dir) if dir.starts_with('/') => Ok(dir.clone()),
        Some(dir) => Err(PlanError::WorkingDir(dir.clone())),
    }
}

fn sysctls(inputs: &Inputs<'_>) -> Result<Value, PlanError> {
    let mut sysctls = Map::new();
    if inputs.network != Network::Host {
        // Root is not needed to bind any port or to ping in a namespace of one's own.
        sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), json!("0"));
        sysctls.insert("net.ipv4.ping_group_range".into(), json!("0 2147483647"));
    }
    for (name, value) in &inputs.spec.sysctls {
        if inputs.network == Network::Host && name.starts_with("net.") {
            return Err(PlanError::SysctlOfHost(name.clone()));
        }
        sysctls.insert(name.clone(), json!(value));
    }
    Ok(Value::Object(sysctls))
}

fn namespaces(inputs: &Inputs<'_>) -> Value {
    let mut kinds = vec!["mount"];
    if inputs.network != Network::Host {
        kinds.push("network");
    }
    kinds.extend(["uts", "pid", "ipc"]);
    if inputs.unified_cgroups {
        kinds.push("cgroup");
    }
    kinds.into_iter().map(|kind| json!({"type": kind})).collect()
}

fn resources(limits: Option<&Resources>) -> Value {
    let mut devices = vec![json!({"allow": false, "access": "rwm"})];
    let device = |allow: bool, (major, minor): (u32, u32)| json!({"allow": allow, "type": "c", "major": major, "minor": minor, "access": "rwm"});
    devices.extend(DEVICES.map(|numbers| device(true, numbers)));
    devices.push(device(false, FUSE));
    let mut resources = json!({"devices": devices, "memory": {"disableOOMKiller": false}});
    let Some(limits) = limits else { return resources };
    if limits.memory_bytes > 0 {
        resources["memory"]["limit"] = json!(limits.memory_bytes);
    }
    if limits.nano_cpus > 0 {
        let quota_us = u128::from(limits.nano_cpus) * u128::from(CPU_PERIOD_US) / 1_000_000_000;
        let quota_us = u64::try_from(quota_us).unwrap_or(u64::MAX).max(CPU_QUOTA_MIN_US);
        resources["cpu"] = json!({"quota": quota_us, "period": CPU_PERIOD_US});
    }
    if limits.pids > 0 {
        resources["pids"] = json!({"limit": limits.pids});
    }
    resources
}

fn rlimit(limit: &Ulimit) -> Result<Value, PlanError> {
    let name = limit.name.to_ascii_lowercase();
    if !ULIMITS.contains(&name.as_str()) {
        return Err(PlanError::Ulimit(limit.name.clone()));
    }
    // -1 and its like stand for "no limit".
    let bound = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
    let (hard, soft) = (bound(limit.hard), bound(limit.soft));
    if soft > hard {
        return Err(PlanError::UlimitOrder { name, soft: limit.soft, hard: limit.hard });
    }
    Ok(json!({"type": format!("RLIMIT_{}", name.to_ascii_uppercase()), "hard": hard, "soft": soft}))
}
