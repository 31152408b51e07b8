//! Services.

use crate::shared::Shared;
use alloc::string::String;
use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use super::task::TaskSpec;
use super::{Labels, Meta};
use crate::id::ServiceId;
use crate::limits;
use crate::time::{Span, Stamp};

/// How many tasks a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ServiceMode {
    /// So many.
    #[n(0)]
    Replicated {
        /// Tasks wanted.
        #[n(0)]
        replicas: u64,
    },
    /// One on every node.
    #[n(1)]
    Global,
    /// So many that end well.
    #[n(2)]
    ReplicatedJob {
        /// At once.
        #[n(0)]
        max_concurrent: u64,
        /// In all.
        #[n(1)]
        total: u64,
    },
    /// One on every node that ends well.
    #[n(3)]
    GlobalJob,
}

/// What to do when an update fails.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum FailureAction {
    /// Stop and wait for the user.
    #[default]
    #[n(0)]
    Pause,
    /// Go on.
    #[n(1)]
    Continue,
    /// Go back.
    #[n(2)]
    Rollback,
}

/// Which task of a slot moves first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum UpdateOrder {
    /// The old one stops before the new one starts.
    #[default]
    #[n(0)]
    StopFirst,
    /// The new one runs before the old one stops.
    #[n(1)]
    StartFirst,
}

/// How a service is updated or rolled back.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct UpdateConfig {
    /// Slots at once; 0 for all.
    #[n(0)]
    pub parallelism: u64,
    /// Wait between slots.
    #[n(1)]
    pub delay: Span,
    /// What to do on failure.
    #[n(2)]
    pub failure_action: FailureAction,
    /// How long a new task is watched; none means 5 s.
    #[n(3)]
    pub monitor: Option<Span>,
    /// Share of failed tasks that is tolerated, in millionths.
    #[n(4)]
    pub max_failure_ratio_ppm: u32,
    /// Which task moves first.
    #[n(5)]
    pub order: UpdateOrder,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Span(0),
            failure_action: FailureAction::Pause,
            monitor: Some(limits::UPDATE_MONITOR),
            max_failure_ratio_ppm: 0,
            order: UpdateOrder::StopFirst,
        }
    }
}

/// A published port. Stored as sent.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Port {
    /// Name.
    #[n(0)]
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    #[n(1)]
    pub protocol: String,
    /// Port in the container.
    #[n(2)]
    pub target: u16,
    /// Port on the node; 0 to be chosen.
    #[n(3)]
    pub published: u16,
    /// `ingress` or `host`.
    #[n(4)]
    pub mode: String,
}

/// How a service is reached. Stored as sent.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct EndpointSpec {
    /// `vip` or `dnsrr`.
    #[n(0)]
    pub mode: String,
    /// Ports.
    #[n(1)]
    pub ports: Vec<Port>,
}

/// What a user says of a service.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ServiceSpec {
    /// Unique.
    #[n(0)]
    pub name: String,
    /// Labels.
    #[n(1)]
    pub labels: Labels,
    /// Template of its tasks.
    #[n(2)]
    pub task: Shared<TaskSpec>,
    /// How many tasks.
    #[n(3)]
    pub mode: ServiceMode,
    /// How to update, as sent.
    #[n(4)]
    pub update: Option<UpdateConfig>,
    /// How to roll back, as sent.
    #[n(5)]
    pub rollback: Option<UpdateConfig>,
    /// How it is reached, as sent.
    #[n(6)]
    pub endpoint: Option<EndpointSpec>,
}

/// How far an update has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum UpdateState {
    /// Replaces tasks.
    #[n(0)]
    Updating,
    /// Stopped after a failure.
    #[n(1)]
    Paused,
    /// Done.
    #[n(2)]
    Completed,
    /// Goes back.
    #[n(3)]
    RollbackStarted,
    /// Stopped on the way back.
    #[n(4)]
    RollbackPaused,
    /// Back.
    #[n(5)]
    RollbackCompleted,
}

impl UpdateState {
    /// Docker's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Updating => "updating",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::RollbackStarted => "rollback_started",
            Self::RollbackPaused => "rollback_paused",
            Self::RollbackCompleted => "rollback_completed",
        }
    }
}

/// The last update of a service.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct UpdateStatus {
    /// How far.
    #[n(0)]
    pub state: UpdateState,
    /// When it began.
    #[n(1)]
    pub started: Stamp,
    /// When it ended.
    #[n(2)]
    pub completed: Option<Stamp>,
    /// What happens, in Docker's words.
    #[n(3)]
    pub message: String,
    /// Whether it replaces tasks only because what they are granted has new versions. Then there
    /// is no spec to go back to.
    #[n(4)]
    pub restarts: bool,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Service {
    /// Id.
    #[n(0)]
    pub id: ServiceId,
    /// Version counter and stamps.
    #[n(1)]
    pub meta: Meta,
    /// What the user said.
    #[n(2)]
    pub spec: Shared<ServiceSpec>,
    /// Raised whenever the task template changes in a way that replaces tasks.
    #[n(3)]
    pub spec_version: u64,
    /// What the user said before that.
    #[n(4)]
    pub previous: Option<Shared<ServiceSpec>>,
    /// The last update, if there was one.
    #[n(5)]
    pub update: Option<UpdateStatus>,
}
