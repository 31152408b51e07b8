//! What runs in a task: Docker's container spec, typed. A field is optional where its absence
//! must be told from its zero value when a client reads the spec back.

use alloc::string::String;
use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use super::Labels;
use super::material::{Grant, MaterialKind};
use crate::time::Span;

/// The container a task runs.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ContainerSpec {
    /// Image reference.
    #[n(0)]
    pub image: String,
    /// Labels of the container.
    #[n(1)]
    pub labels: Labels,
    /// Replaces the image's entrypoint.
    #[n(2)]
    pub command: Vec<String>,
    /// Replaces the image's command.
    #[n(3)]
    pub args: Vec<String>,
    /// Host name.
    #[n(4)]
    pub hostname: String,
    /// `NAME=value` pairs.
    #[n(5)]
    pub env: Vec<String>,
    /// Working directory.
    #[n(6)]
    pub dir: String,
    /// User and group, by name or number: `user[:group]`.
    #[n(7)]
    pub user: String,
    /// Further groups, by name or number.
    #[n(8)]
    pub groups: Vec<String>,
    /// Whether an init reaps in the container.
    #[n(9)]
    pub init: Option<bool>,
    /// Signal that asks it to stop.
    #[n(10)]
    pub stop_signal: String,
    /// Whether it gets a terminal.
    #[n(11)]
    pub tty: bool,
    /// Whether its stdin stays open.
    #[n(12)]
    pub open_stdin: bool,
    /// Whether its root is read-only.
    #[n(13)]
    pub read_only: bool,
    /// Mounts.
    #[n(14)]
    pub mounts: Vec<Mount>,
    /// Time between the stop signal and SIGKILL.
    #[n(15)]
    pub stop_grace: Option<Span>,
    /// Health check.
    #[n(16)]
    pub health: Option<Health>,
    /// Lines for `/etc/hosts`, address first.
    #[n(17)]
    pub hosts: Vec<String>,
    /// Resolver settings.
    #[n(18)]
    pub dns: Option<Dns>,
    /// Secrets granted.
    #[n(19)]
    pub secrets: Vec<Grant>,
    /// Configs granted.
    #[n(20)]
    pub configs: Vec<Grant>,
    /// Stored for Docker: `default`.
    #[n(21)]
    pub isolation: String,
    /// Kernel settings of the container's namespaces.
    #[n(22)]
    pub sysctls: Labels,
    /// Capabilities beyond the default.
    #[n(23)]
    pub cap_add: Vec<String>,
    /// Capabilities taken away.
    #[n(24)]
    pub cap_drop: Vec<String>,
    /// Resource limits of its processes.
    #[n(25)]
    pub ulimits: Vec<Ulimit>,
    /// Adjustment of the OOM score.
    #[n(26)]
    pub oom_score_adj: i64,
}

impl ContainerSpec {
    /// Every grant: secrets first, then configs.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.secrets.iter().chain(&self.configs)
    }

    /// Every grant with its kind, in the same order.
    pub fn grants_by_kind(&self) -> impl Iterator<Item = (MaterialKind, &Grant)> {
        let secrets = self.secrets.iter().map(|grant| (MaterialKind::Secret, grant));
        secrets.chain(self.configs.iter().map(|grant| (MaterialKind::Config, grant)))
    }
}

/// What a mount shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum MountKind {
    /// A path of the host.
    #[n(0)]
    Bind,
    /// A named volume.
    #[n(1)]
    Volume,
    /// Memory.
    #[n(2)]
    Tmpfs,
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Mount {
    /// What it shows.
    #[n(0)]
    pub kind: MountKind,
    /// Host path or volume name; empty for memory.
    #[n(1)]
    pub source: String,
    /// Absolute path in the container.
    #[n(2)]
    pub target: String,
    /// Whether writes are refused.
    #[n(3)]
    pub read_only: bool,
    /// Propagation of a bind: `rprivate` and the like, empty for the default.
    #[n(4)]
    pub propagation: String,
    /// Whether a bind leaves out the mounts below its source.
    #[n(5)]
    pub non_recursive: bool,
    /// Whether a missing source of a bind is made.
    #[n(6)]
    pub create_source: bool,
    /// Bytes a memory mount may hold; 0 for no limit.
    #[n(7)]
    pub tmpfs_size: u64,
    /// Mode of a memory mount's root; 0 for the default.
    #[n(8)]
    pub tmpfs_mode: u32,
    /// Whether a volume starts empty.
    #[n(9)]
    pub no_copy: bool,
    /// Labels of a volume made for it.
    #[n(10)]
    pub volume_labels: Labels,
    /// Which of Docker's option objects the user sent: bit 0 bind, 1 volume, 2 tmpfs.
    #[n(11)]
    pub options_sent: u8,
}

/// A health check.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Health {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", command]`.
    #[n(0)]
    pub test: Vec<String>,
    /// Time between checks.
    #[n(1)]
    pub interval: Span,
    /// Time a check may take.
    #[n(2)]
    pub timeout: Span,
    /// Time in which failures do not count.
    #[n(3)]
    pub start_period: Span,
    /// Time between checks in the start period.
    #[n(4)]
    pub start_interval: Span,
    /// Failures in a row that make it unhealthy.
    #[n(5)]
    pub retries: u32,
}

/// Resolver settings.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Dns {
    /// Name servers.
    #[n(0)]
    pub nameservers: Vec<String>,
    /// Search domains.
    #[n(1)]
    pub search: Vec<String>,
    /// Options.
    #[n(2)]
    pub options: Vec<String>,
}

/// A resource limit of a process.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ulimit {
    /// Name as in `nofile`.
    #[n(0)]
    pub name: String,
    /// Hard limit; -1 for none.
    #[n(1)]
    pub hard: i64,
    /// Soft limit; -1 for none.
    #[n(2)]
    pub soft: i64,
}
