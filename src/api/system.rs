//! The node itself: ping, version, info.

use std::collections::BTreeMap;
use std::fs;

use http::Method;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, HeaderName, HeaderValue, PRAGMA};
use skep_core::model::cluster::Cluster;
use skep_core::state::State;

use super::call::{API_VERSION, Call, MIN_API_VERSION};
use super::convert::cluster;
use super::convert::node::role_word;
use super::error::ApiError;
use super::reply::{self, Outcome, Reply};
use super::time::{now, rfc3339};
use super::types::swarm::ClusterInfo;
use super::types::system as wire;
use crate::gate::{ContainerState, Gate, NodeView, look};

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) async fn serve(call: Call, root: &str) -> Outcome {
    match (call.method.as_str(), root) {
        ("GET" | "HEAD", "_ping") => Ok(ping(&call)),
        ("GET", "version") => reply::ok(&versions(&call.gate.node())),
        ("GET", "info") => reply::ok(&info(&*call.gate).await),
        _ => Err(call.unsupported()),
    }
}

fn ping(call: &Call) -> Reply {
    let head = call.method == Method::HEAD;
    let mut reply = reply::text(if head { "" } else { "OK" });
    let view = call.gate.node();
    let mut swarm = view.state.word().to_owned();
    if let Some(role) = view.role {
        swarm.push('/');
        swarm.push_str(role_word(role));
    }
    let headers = reply.headers_mut();
    if head {
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    if let Ok(swarm) = HeaderValue::from_str(&swarm) {
        headers.insert(HeaderName::from_static("swarm"), swarm);
    }
    reply
}

/// The machine word as Go has it.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn versions(view: &NodeView) -> wire::Versions {
    let (runtime, runtime_version) = &view.runtime;
    let component = |name: &str, version: &str, details| wire::Component {
        name: name.to_owned(),
        version: version.to_owned(),
        details,
    };
    let details = BTreeMap::from([
        ("ApiVersion", API_VERSION.to_owned()),
        ("Arch", arch().to_owned()),
        ("BuildTime", String::new()),
        ("Experimental", "false".to_owned()),
        ("GitCommit", String::new()),
        ("GoVersion", String::new()),
        ("KernelVersion", kernel()),
        ("MinAPIVersion", MIN_API_VERSION.to_owned()),
        ("Os", "linux".to_owned()),
    ]);
    let of_runtime = BTreeMap::from([("GitCommit", String::new())]);
    wire::Versions {
        platform: wire::PlatformName { name: "skep" },
        components: vec![
            component("Engine", VERSION, details),
            component(runtime, runtime_version, of_runtime),
        ],
        version: VERSION,
        api_version: API_VERSION,
        min_api_version: MIN_API_VERSION,
        git_commit: "",
        go_version: "",
        os: "linux",
        arch: arch(),
        kernel_version: kernel(),
        build_time: "",
    }
}

/// A line `KEY=value` or `KEY: value kB` of a file, its quotes taken off.
fn line_of(path: &str, key: &str, separator: char) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(separator));
    let (_, value) = lines.find(|(name, _)| *name == key)?;
    Some(value.trim().trim_matches('"').to_owned())
}

fn memory() -> u64 {
    let line = line_of("/proc/meminfo", "MemTotal", ':').unwrap_or_default();
    let kib = line.trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0);
    kib.saturating_mul(1024)
}

fn cgroup_version() -> &'static str {
    if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false) { "2" } else { "1" }
}

fn plugins() -> wire::Plugins {
    wire::Plugins {
        volume: Vec::new(),
        network: vec!["bridge", "host", "null"],
        authorization: None,
        log: vec!["json-file"],
    }
}

async fn info(gate: &dyn Gate) -> wire::Info {
    let view = gate.node();
    let containers = gate.containers();
    let count = |state: ContainerState| containers.iter().filter(|c| c.state == state).count();
    let running = count(ContainerState::Running);
    let (runtime, runtime_version) = view.runtime.clone();
    let swarm = swarm_info(gate, &view).await;
    wire::Info {
        id: view.node.map(|id| id.to_string()).unwrap_or_default(),
        containers: containers.len(),
        containers_running: running,
        containers_paused: 0,
        containers_stopped: containers.len() - running,
        images: gate.images().list().len(),
        driver: "overlay2",
        driver_status: Vec::new(),
        plugins: plugins(),
        memory_limit: true,
        swap_limit: false,
        cpu_cfs_period: true,
        cpu_cfs_quota: true,
        cpu_shares: false,
        cpu_set: false,
        pids_limit: true,
        ipv4_forwarding: true,
        debug: false,
        n_fd: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        oom_kill_disable: false,
        n_goroutines: 0,
        system_time: rfc3339(now()),
        logging_driver: "json-file",
        cgroup_driver: "cgroupfs",
        cgroup_version: cgroup_version(),
        n_events_listener: 0,
        kernel_version: kernel(),
        operating_system: line_of("/etc/os-release", "PRETTY_NAME", '=')
            .unwrap_or_else(|| "Linux".to_owned()),
        os_version: line_of("/etc/os-release", "VERSION_ID", '=').unwrap_or_default(),
        os_type: "linux",
        architecture: std::env::consts::ARCH.to_owned(),
        index_server_address: "",
        registry_config: wire::RegistryConfig::default(),
        n_cpu: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        mem_total: memory(),
        generic_resources: None,
        docker_root_dir: view.data_root.clone(),
        http_proxy: "",
        https_proxy: "",
        no_proxy: "",
        name: view.hostname.clone(),
        labels: Vec::new(),
        experimental_build: false,
        server_version: VERSION,
        runtimes: BTreeMap::from([(runtime.clone(), wire::Runtime { path: runtime.clone() })]),
        default_runtime: runtime,
        swarm,
        live_restore_enabled: true,
        isolation: "",
        init_binary: "",
        containerd_commit: wire::Commit::default(),
        runc_commit: wire::Commit { expected: runtime_version.clone(), id: runtime_version },
        init_commit: wire::Commit::default(),
        security_options: vec!["name=seccomp,profile=builtin"],
        warnings: (!view.warnings.is_empty()).then(|| view.warnings.clone()),
    }
}

async fn swarm_info(gate: &dyn Gate, view: &NodeView) -> wire::SwarmInfo {
    let mut info = wire::SwarmInfo {
        node_id: view.node.map(|id| id.to_string()).unwrap_or_default(),
        node_addr: view.addr.clone(),
        local_node_state: view.state.word(),
        control_available: view.manager,
        error: view.error.clone(),
        remote_managers: remote_managers(view),
        ..wire::SwarmInfo::default()
    };
    if view.node.is_none() {
        info.node_addr.clear();
    }
    if !view.manager {
        return info;
    }
    // A swarm without a leader must not keep a node from saying what it knows.
    let seen = look(gate, |state| state.cluster().map(|c| see(state, c))).await;
    match seen {
        Ok(Some((cluster, nodes, managers))) => {
            info.cluster = Some(cluster);
            info.nodes = nodes;
            info.managers = managers;
        }
        Ok(None) => {}
        Err(refusal) if info.error.is_empty() => info.error = ApiError::from(refusal).answer().1,
        Err(_) => {}
    }
    info
}

/// The managers this node knows of; none where it is in no swarm.
fn remote_managers(view: &NodeView) -> Option<Vec<wire::RemoteManager>> {
    let managers = view.managers.iter().map(|manager| wire::RemoteManager {
        node_id: manager.node.to_string(),
        addr: manager.addr.clone(),
    });
    (!view.managers.is_empty()).then(|| managers.collect())
}

/// The swarm, and how many nodes and managers it has.
fn see(state: &State, swarm: &Cluster) -> (ClusterInfo, usize, usize) {
    let managers = state.nodes().filter(|node| node.manager.is_some()).count();
    (cluster::info(swarm), state.nodes().len(), managers)
}
