//! From a task and its image to everything its shim needs. Pure: what must be looked up on the
//! host is handed in.

use std::path::{Path, PathBuf};

use skep_core::assign::TaskAssignment;
use skep_core::id::{ClusterId, NodeId};
use skep_core::model::container::{ContainerSpec, Dns, MountKind};
use skep_core::model::material::{Driver, OnChange};
use skep_core::model::task::NetworkAttachment;
use skep_core::signal;

use super::bundle::{self, Inputs};
use super::images::{Image, ImageConfig, layer_dir};
use crate::wire::launch::{Launch, LaunchFile};

/// Characters of the container id that are its host name unless the spec says another.
const HOSTNAME_CHARS: usize = 12;

/// A task that cannot be run as its spec says.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Neither image nor spec says what to run.
    #[error("no command specified")]
    NoCommand,
    /// The image is made for other machines.
    #[error("the image is for {image}, this node is {node}")]
    Platform {
        /// Operating system and architecture of the image.
        image: String,
        /// Those of this node.
        node: String,
    },
    /// A network that is not there.
    #[error("network {0} not found")]
    Network(String),
    /// Networks that exclude each other.
    #[error("network {0} cannot be combined with other networks")]
    NetworkMix(&'static str),
    /// Volumes are not built yet.
    #[error("volumes are not supported yet: {0}")]
    Volume(String),
    /// An init process is not built yet.
    #[error("an init process in the container (--init) is not supported yet")]
    Init,
    /// Two mounts at one place.
    #[error("Duplicate mount point: {0}")]
    DuplicateMount(String),
    /// A mount at a place that cannot be mounted on.
    #[error("invalid mount target {target:?}: {why}")]
    MountTarget {
        /// Target.
        target: String,
        /// Why not.
        why: &'static str,
    },
    /// A bind of something that is no path.
    #[error("invalid bind source {0:?}: it must be an absolute path")]
    BindSource(String),
    /// A word that is no propagation.
    #[error("invalid propagation mode: {0}")]
    Propagation(String),
    /// No such capability.
    #[error("unknown capability: {0:?}")]
    Capability(String),
    /// No such resource limit.
    #[error("invalid ulimit type: {0}")]
    Ulimit(String),
    /// A soft limit above the hard one.
    #[error("ulimit {name}: the soft limit {soft} is above the hard limit {hard}")]
    UlimitOrder {
        /// Name.
        name: String,
        /// Soft limit.
        soft: i64,
        /// Hard limit.
        hard: i64,
    },
    /// A setting of the host's own network.
    #[error("sysctl {0:?} not allowed in host network namespace")]
    SysctlOfHost(String),
    /// A relative working directory.
    #[error("the working directory {0:?} is invalid, it needs to be an absolute path")]
    WorkingDir(String),
    /// No such signal.
    #[error("invalid signal: {0}")]
    Signal(String),
    /// A log driver other than json-file.
    #[error("log driver {0:?} is not supported: only json-file is")]
    LogDriver(String),
    /// A log option that cannot be understood.
    #[error("invalid log option {name}={value}")]
    LogOption {
        /// Name.
        name: String,
        /// Value.
        value: String,
    },
}

/// Which network a container is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The host's own.
    Host,
    /// One of its own, with loopback alone, because the user said so.
    None,
    /// The default: one of its own; until networks come, with loopback alone.
    Private,
}

impl Network {
    /// Docker's word for the mode.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::None => "none",
            Self::Private => "default",
        }
    }
}

/// What a plan depends on beside task and image.
#[derive(Debug, Clone)]
pub struct NodeContext {
    /// Swarm.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Its host name.
    pub hostname: String,
    /// Data root.
    pub data_root: PathBuf,
    /// Run root.
    pub run_root: PathBuf,
    /// Runtime: a path, or a name on the PATH.
    pub runtime: String,
    /// Which memory holds plaintext: `auto`, `secretmem` or `mlock`.
    pub vault: String,
    /// Whether the host's cgroups are one hierarchy (version 2 alone).
    pub unified_cgroups: bool,
}

/// Everything about a task that its node decides before it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// For the shim.
    pub launch: Launch,
    /// Entrypoint after the image's is merged in.
    pub entrypoint: Vec<String>,
    /// Command after the image's is merged in.
    pub cmd: Vec<String>,
    /// Number of the signal that stops the container.
    pub stop_signal: i32,
    /// Network.
    pub network: Network,
    /// What is written to the task's directory.
    pub etc: Etc,
    /// Host paths that binds show.
    pub sources: Vec<Source>,
}

/// The container's own files in `/etc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etc {
    /// Host name.
    pub hostname: String,
    /// Lines for `hosts`, address first.
    pub hosts: Vec<String>,
    /// Resolver settings over the host's.
    pub dns: Dns,
}

/// A host path that must be there before the container starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Path.
    pub path: PathBuf,
    /// Whether a missing one is made, as a directory.
    pub create: bool,
}

/// Plans a task.
///
/// # Errors
/// If the task cannot be run as its spec says.
pub fn plan(
    assignment: &TaskAssignment,
    image: &Image,
    node: &NodeContext,
) -> Result<Plan, PlanError> {
    let task = &assignment.task;
    let spec = &task.spec.container;
    check_platform(image)?;
    if spec.init == Some(true) {
        return Err(PlanError::Init);
    }
    let network = network(&task.spec.networks)?;
    let container_id = task.id.container_id();
    let hostname = match (spec.hostname.as_str(), network) {
        ("", Network::Host) => node.hostname.clone(),
        ("", _) => container_id.chars().take(HOSTNAME_CHARS).collect(),
        (said, _) => said.to_owned(),
    };
    let (entrypoint, cmd) = command(spec, &image.config);
    let args: Vec<String> = entrypoint.iter().chain(&cmd).cloned().collect();
    if args.is_empty() {
        return Err(PlanError::NoCommand);
    }
    let task_dir = node.data_root.join("tasks").join(task.id.as_str());
    let cgroup = format!("/skep/{}/{}", node.node, task.id);
    let bundle = bundle::config(&Inputs {
        spec,
        limits: task.spec.resources.as_ref().and_then(|r| r.limits.as_ref()),
        image: &image.config,
        args: &args,
        hostname: &hostname,
        network,
        task_dir: &task_dir,
        cgroup: &cgroup,
        unified_cgroups: node.unified_cgroups,
    })?;
    let (log_file_bytes, log_files) = log_options(task.spec.log_driver.as_ref())?;
    let user = [&spec.user, &image.config.user].into_iter().find(|user| !user.is_empty());
    let launch = Launch {
        task: task.id,
        cluster: node.cluster,
        node: node.node,
        container_id,
        bundle: bundle.to_string(),
        layers: image.diff_ids.iter().map(|id| text(&layer_dir(&node.data_root, id))).collect(),
        user: user.cloned().unwrap_or_default(),
        groups: spec.groups.clone(),
        files: files(assignment),
        task_dir: text(&task_dir),
        run_dir: text(&node.run_root.join("tasks").join(task.id.as_str())),
        runc_root: text(&node.run_root.join("runc")),
        runtime: node.runtime.clone(),
        cgroup,
        shim_cgroup: format!("/skep/{}/shim-{}", node.node, task.id),
        log_file_bytes,
        log_files,
        vault: node.vault.clone(),
        ulimits: spec.ulimits.clone(),
        health: spec.health.clone(),
        netns: String::new(),
        open_stdin: spec.open_stdin,
    };
    let etc =
        Etc { hostname, hosts: spec.hosts.clone(), dns: spec.dns.clone().unwrap_or_default() };
    let stop_signal = stop_signal(spec, &image.config)?;
    Ok(Plan { launch, entrypoint, cmd, stop_signal, network, etc, sources: sources(spec) })
}

/// Paths in a launch plan are text; the data and run roots are checked to be UTF-8 at start.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn check_platform(image: &Image) -> Result<(), PlanError> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    if image.os == "linux" && image.architecture == arch {
        return Ok(());
    }
    let said = format!("{}/{}", image.os, image.architecture);
    Err(PlanError::Platform { image: said, node: format!("linux/{arch}") })
}

/// A spec's command stands for the image's entrypoint and takes the image's command with it; its
/// arguments stand for the image's command.
fn command(spec: &ContainerSpec, image: &ImageConfig) -> (Vec<String>, Vec<String>) {
    let (entrypoint, cmd) = match spec.command.as_slice() {
        [] => (&image.entrypoint, &image.cmd),
        _ => (&spec.command, &spec.args),
    };
    let cmd = if spec.args.is_empty() { cmd } else { &spec.args };
    (entrypoint.clone(), cmd.clone())
}

fn network(attachments: &[NetworkAttachment]) -> Result<Network, PlanError> {
    let mut found = Network::Private;
    for attachment in attachments {
        found = match attachment.target.as_str() {
            "host" => Network::Host,
            "none" => Network::None,
            "" | "default" | "bridge" => Network::Private,
            other => return Err(PlanError::Network(other.to_owned())),
        };
    }
    match found {
        Network::Host | Network::None if attachments.len() > 1 => {
            Err(PlanError::NetworkMix(found.word()))
        }
        found => Ok(found),
    }
}

fn files(assignment: &TaskAssignment) -> Vec<LaunchFile> {
    let file = |grant: &skep_core::assign::AssignedGrant| LaunchFile {
        material: grant.material,
        kind: grant.kind,
        name: grant.name.clone(),
        target: grant.target.clone(),
        uid: grant.uid,
        gid: grant.gid,
        mode: grant.mode,
        signal: match grant.on_change {
            OnChange::Signal(signal) => Some(signal),
            OnChange::Nothing | OnChange::Restart => None,
        },
    };
    assignment.grants.iter().map(file).collect()
}

fn sources(spec: &ContainerSpec) -> Vec<Source> {
    let binds = spec.mounts.iter().filter(|mount| mount.kind == MountKind::Bind);
    binds.map(|m| Source { path: PathBuf::from(&m.source), create: m.create_source }).collect()
}

/// Bytes per log file and files kept; 0 for the default.
fn log_options(driver: Option<&Driver>) -> Result<(u64, u32), PlanError> {
    let Some(driver) = driver else { return Ok((0, 0)) };
    if !matches!(driver.name.as_str(), "" | "json-file") {
        return Err(PlanError::LogDriver(driver.name.clone()));
    }
    let (mut bytes, mut files) = (0, 0);
    for (name, value) in &driver.options {
        let bad = || PlanError::LogOption { name: name.clone(), value: value.clone() };
        match name.as_str() {
            "max-size" => bytes = size(value).ok_or_else(bad)?,
            "max-file" => files = value.parse().ok().filter(|n| *n > 0).ok_or_else(bad)?,
            // They choose what Docker adds to each line as attributes, of which we keep none.
            "labels" | "labels-regex" | "env" | "env-regex" | "tag" | "compress" | "mode"
            | "max-buffer-size" => {}
            _ => return Err(bad()),
        }
    }
    Ok((bytes, files))
}

/// `10m`, `512k`, `1gb`, `4096`: a whole number of bytes, at least 1; -1 for the default.
fn size(text: &str) -> Option<u64> {
    if text == "-1" {
        return Some(0);
    }
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = lower.get(digits.len()..)?.trim();
    let factor = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(factor).filter(|bytes| *bytes > 0)
}

/// The number of the signal that stops a container: the spec's, the image's, or SIGTERM.
fn stop_signal(spec: &ContainerSpec, image: &ImageConfig) -> Result<i32, PlanError> {
    let said = [&spec.stop_signal, &image.stop_signal].into_iter().find(|s| !s.is_empty());
    said.map_or(Ok(15), |text| signal::number(text).ok_or_else(|| PlanError::Signal(text.clone())))
}

#[cfg(test)]
pub(crate) mod tests;
