//! Daemon and shim over a unix socket. It outlives upgrades of the daemon: fields are only ever
//! added.
//!
//! The daemon connects, the shim sends [`FromShim::Hello`] first. One connection counts at a
//! time: a new one replaces the old one. File descriptors of an exec travel by `SCM_RIGHTS` with
//! the first byte of the frame of [`ToShim::Exec`]: stdin, stdout, stderr in this order (for a
//! terminal: one descriptor, the console's other end is passed back likewise with
//! [`FromShim::ExecStarted`]). They are pipes that block. What the runtime itself has to say of
//! an exec that never runs is in [`FromShim::ExecExited`] alone, not on its streams.

use minicbor::{Decode, Encode};
use skep_core::id::{MaterialId, TaskId};
use skep_core::time::Stamp;

/// Version of this protocol.
pub const PROTOCOL: u32 = 1;

/// What the daemon says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToShim {
    /// Payloads, sealed to the shim's key. Applied as one, or not at all; answered by
    /// [`FromShim::Delivered`] or [`FromShim::Refused`]. One that is not later than the last order
    /// is passed over, and answered with what the shim holds.
    #[n(0)]
    Deliver(#[n(0)] Delivery),
    /// These may no longer be read, each up to the version named with it, and none of these
    /// versions is taken again. Holds good however late it comes. Answered by
    /// [`FromShim::Delivered`] once no read succeeds any more, or by [`FromShim::Refused`].
    #[n(1)]
    Revoke {
        /// Orders deliveries and revocations.
        #[n(0)]
        sequence: u64,
        /// What is revoked.
        #[n(1)]
        materials: Vec<(MaterialId, u64)>,
    },
    /// Starts the container. Answered by a status. Refused until every file has its payload.
    #[n(2)]
    Start,
    /// Sends `signal`, and SIGKILL after `grace_ms`.
    #[n(3)]
    Stop {
        /// Signal number.
        #[n(0)]
        signal: i32,
        /// Time until SIGKILL.
        #[n(1)]
        grace_ms: u64,
    },
    /// Sends a signal to the container's init.
    #[n(4)]
    Signal {
        /// Signal number.
        #[n(0)]
        signal: i32,
    },
    /// Runs a further process in the container.
    #[n(5)]
    Exec(#[n(0)] ExecStart),
    /// Sets the size of an exec's terminal.
    #[n(6)]
    ExecResize {
        /// Which exec.
        #[n(0)]
        id: String,
        /// Rows.
        #[n(1)]
        rows: u16,
        /// Columns.
        #[n(2)]
        cols: u16,
    },
    /// Asks for a status.
    #[n(7)]
    Probe,
    /// Asks for the audit rows. Answered by [`FromShim::Audit`].
    #[n(8)]
    Audit,
}

/// What the shim says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum FromShim {
    /// First on every connection.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// A delivery or revocation is in force, or came late: what is held says which.
    #[n(1)]
    Delivered {
        /// Which.
        #[n(0)]
        sequence: u64,
        /// Versions held now.
        #[n(1)]
        held: Vec<(MaterialId, u64)>,
        /// Sequence of the last order that was taken.
        #[n(2)]
        last: u64,
    },
    /// A request was not carried out. Says which (`deliver`, `start`, …) and why.
    #[n(2)]
    Refused {
        /// The request's word.
        #[n(0)]
        request: String,
        /// Why, without any payload.
        #[n(1)]
        reason: String,
        /// Whether the one who asked was behind: what it knows by now may be taken.
        #[n(2)]
        #[cbor(default)]
        is_outdated: bool,
    },
    /// The container's state, after every change and on [`ToShim::Probe`].
    #[n(3)]
    Status(#[n(0)] ShimStatus),
    /// An exec's process runs.
    #[n(4)]
    ExecStarted {
        /// Which exec.
        #[n(0)]
        id: String,
        /// Its pid on the host.
        #[n(1)]
        pid: u32,
    },
    /// An exec ended: 126 and 127 stand for commands that cannot run or are not there.
    #[n(5)]
    ExecExited {
        /// Which exec.
        #[n(0)]
        id: String,
        /// Exit code, 128 + signal when killed.
        #[n(1)]
        code: i32,
        /// The runtime's text when it never ran.
        #[n(2)]
        error: Option<String>,
    },
    /// Who read what.
    #[n(6)]
    Audit(#[n(0)] Vec<AuditRow>),
}

/// Who the shim is and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// [`PROTOCOL`] of the shim.
    #[n(0)]
    pub protocol: u32,
    /// Its task.
    #[n(1)]
    pub task: TaskId,
    /// X25519 public key that payloads are sealed to.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub key: [u8; 32],
    /// Its pid.
    #[n(3)]
    pub pid: u32,
    /// Versions it holds.
    #[n(4)]
    pub held: Vec<(MaterialId, u64)>,
    /// Sequence of the last delivery or revocation applied.
    #[n(5)]
    pub sequence: u64,
    /// The container's state.
    #[n(6)]
    pub status: ShimStatus,
    /// Version of skep the shim is.
    #[n(7)]
    pub version: String,
}

/// How far the container has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ShimState {
    /// Waits for payloads and the start.
    #[n(0)]
    Waiting,
    /// runc works.
    #[n(1)]
    Starting,
    /// The process runs.
    #[n(2)]
    Running,
    /// It ended.
    #[n(3)]
    Exited,
    /// It could not be started.
    #[n(4)]
    Failed,
}

/// The container as the shim knows it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ShimStatus {
    /// State.
    #[n(0)]
    pub state: ShimState,
    /// Pid of the container's init on the host; 0 when there is none.
    #[n(1)]
    pub pid: u32,
    /// When it started; zero if it has not.
    #[n(2)]
    pub started: Stamp,
    /// Set once it ended or failed.
    #[n(3)]
    pub exit: Option<Exit>,
    /// What goes wrong while it runs on.
    #[n(4)]
    pub trouble: Option<String>,
    /// Whether the kernel killed a process of it for memory, and it runs on.
    #[n(5)]
    #[cbor(default)]
    pub oom: bool,
}

/// How a container ended. Also the content of `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, serde::Serialize, serde::Deserialize)]
#[cbor(map)]
pub struct Exit {
    /// Exit code, 128 + signal when killed.
    #[n(0)]
    pub code: i32,
    /// Whether the kernel killed it for memory.
    #[n(1)]
    pub oom: bool,
    /// When, in nanoseconds since the epoch.
    #[n(2)]
    pub at_ns: u64,
    /// Why it never ran, or what else went wrong.
    #[n(3)]
    pub error: Option<String>,
    /// When it had started; 0 if it never ran.
    #[n(4)]
    #[serde(default)]
    pub started_ns: u64,
}

/// Payloads of one switch.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Delivery {
    /// Orders deliveries and revocations; never goes back.
    #[n(0)]
    pub sequence: u64,
    /// What is delivered: every version once, however many files show it.
    #[n(1)]
    pub items: Vec<DeliveredItem>,
}

/// One version, sealed to the shim.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DeliveredItem {
    /// Secret or config.
    #[n(0)]
    pub material: MaterialId,
    /// Which version.
    #[n(1)]
    pub version: u64,
    /// When the version was added: the files' modification time.
    #[n(2)]
    pub created: Stamp,
    /// Plaintext bytes.
    #[n(3)]
    pub size: u64,
    /// See [`crate::seal::seal_to_shim`].
    #[cbor(n(4), with = "minicbor::bytes")]
    pub sealed: Vec<u8>,
}

impl std::fmt::Debug for DeliveredItem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeliveredItem({} version {}, {} bytes)", self.material, self.version, self.size)
    }
}

/// A further process in a container.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ExecStart {
    /// 64 hex characters.
    #[n(0)]
    pub id: String,
    /// Command and arguments.
    #[n(1)]
    pub args: Vec<String>,
    /// `NAME=value` pairs beyond the container's.
    #[n(2)]
    pub env: Vec<String>,
    /// Working directory; empty for the container's.
    #[n(3)]
    pub cwd: String,
    /// `user[:group]` by name or number; empty for the container's.
    #[n(4)]
    pub user: String,
    /// Whether it has a terminal.
    #[n(5)]
    pub tty: bool,
    /// Whether it has all capabilities.
    #[n(6)]
    pub privileged: bool,
    /// Rows and columns of its terminal.
    #[n(7)]
    pub size: Option<(u16, u16)>,
}

/// One row of a task's audit: a reader and how often it opened a secret.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct AuditRow {
    /// Name of the secret.
    #[n(0)]
    pub name: String,
    /// Version opened.
    #[n(1)]
    pub version: u64,
    /// Reader's user.
    #[n(2)]
    pub uid: u32,
    /// Reader's group.
    #[n(3)]
    pub gid: u32,
    /// Reader's executable as it claims.
    #[n(4)]
    pub executable: String,
    /// Opens answered.
    #[n(5)]
    pub count: u64,
    /// First.
    #[n(6)]
    pub first: Stamp,
    /// Last.
    #[n(7)]
    pub last: Stamp,
    /// Opens refused, and looks at what was taken away.
    #[n(8)]
    pub refused: u64,
}
