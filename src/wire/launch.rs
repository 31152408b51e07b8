//! What a shim needs to run its task: written by the agent to `tasks/<id>/launch.cbor`, read by
//! the shim when it starts. It holds no secret.

use minicbor::{Decode, Encode};
use skep_core::id::{ClusterId, MaterialId, NodeId, TaskId};
use skep_core::model::container::{Health, Ulimit};
use skep_core::model::material::MaterialKind;

/// File name in the task's directory.
pub const LAUNCH_FILE: &str = "launch.cbor";
/// Socket name in the task's run directory.
pub const SHIM_SOCKET: &str = "shim.sock";
/// Exit record in the task's directory.
pub const EXIT_FILE: &str = "exit.json";
/// Audit in the task's directory; older files of it have `.1` and so on behind the name.
pub const AUDIT_FILE: &str = "audit";
/// Log directory and file in the task's directory.
pub const LOG_FILE: &str = "logs/json.log";

/// The plan of one task: complete, so that carrying it out makes no choices.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Launch {
    /// Task.
    #[n(0)]
    pub task: TaskId,
    /// Swarm.
    #[n(1)]
    pub cluster: ClusterId,
    /// Node.
    #[n(2)]
    pub node: NodeId,
    /// Container id, the runc id too.
    #[n(3)]
    pub container_id: String,
    /// OCI runtime config as JSON, complete but for what only the shim knows: `root.path`,
    /// `process.user` (from `user` and `groups`), and the binds of `files`.
    #[n(4)]
    pub bundle: String,
    /// Directories of the image's layers, lowest first.
    #[n(5)]
    pub layers: Vec<String>,
    /// `user[:group]` by name or number, resolved in the container's root; empty for root.
    #[n(6)]
    pub user: String,
    /// Further groups by name or number.
    #[n(7)]
    pub groups: Vec<String>,
    /// Files made of granted secrets and configs.
    #[n(8)]
    pub files: Vec<LaunchFile>,
    /// `<data-root>/tasks/<id>`: upper, work, logs, exit record.
    #[n(9)]
    pub task_dir: String,
    /// `<run-root>/tasks/<id>`: socket, bundle, mount points.
    #[n(10)]
    pub run_dir: String,
    /// runc's `--root`.
    #[n(11)]
    pub runc_root: String,
    /// The runtime: a path, or a name on the PATH.
    #[n(12)]
    pub runtime: String,
    /// cgroup of the container below each hierarchy's mount: `/skep/<node>/<task>`.
    #[n(13)]
    pub cgroup: String,
    /// cgroup of shim and sentinel: `/skep/<node>/shim-<task>`.
    #[n(14)]
    pub shim_cgroup: String,
    /// Bytes of one log file before rotation; 0 for the default.
    #[n(15)]
    pub log_file_bytes: u64,
    /// Log files kept; 0 for the default.
    #[n(16)]
    pub log_files: u32,
    /// Which memory holds the plaintext: `auto`, `secretmem` or `mlock`.
    #[n(17)]
    pub vault: String,
    /// Resource limits of exec'd processes; the container's own are in the bundle.
    #[n(18)]
    pub ulimits: Vec<Ulimit>,
    /// Health check, for the issue that brings them.
    #[n(19)]
    pub health: Option<Health>,
    /// Networks whose container side is made by the agent: path of a network namespace; empty
    /// when the bundle says it all.
    #[n(20)]
    pub netns: String,
    /// Pids the container's cgroup may hold is in the bundle; this is whether stdin stays open.
    #[n(21)]
    pub open_stdin: bool,
}

/// One file in the container made of a granted secret or config.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LaunchFile {
    /// What it shows.
    #[n(0)]
    pub material: MaterialId,
    /// Secret or config.
    #[n(1)]
    pub kind: MaterialKind,
    /// Name of the secret or config, for the audit.
    #[n(2)]
    pub name: String,
    /// A secret's relative target is below `/run/secrets`, a config's below `/`; an absolute one
    /// is bound alone.
    #[n(3)]
    pub target: String,
    /// Owner.
    #[n(4)]
    pub uid: u32,
    /// Group.
    #[n(5)]
    pub gid: u32,
    /// Permission bits.
    #[n(6)]
    pub mode: u32,
    /// The signal that the container's init gets once a version has taken the place of another.
    #[n(7)]
    pub signal: Option<i32>,
}
