//! Tasks. A task's state is a clock that only moves forward: a late report is older, and older
//! reports lose by comparison alone.

use crate::shared::Shared;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use super::container::ContainerSpec;
use super::{Labels, Meta};
use crate::id::{MaterialId, NodeId, ServiceId, TaskId};
use crate::time::{Span, Stamp};

/// How far a task has come. The order of the variants is the order of time.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum TaskState {
    /// Made by the orchestrator.
    #[default]
    #[n(0)]
    New,
    /// Waits for the scheduler.
    #[n(1)]
    Pending,
    /// Has a node.
    #[n(2)]
    Assigned,
    /// Its node has it.
    #[n(3)]
    Accepted,
    /// Its node fetches what it needs.
    #[n(4)]
    Preparing,
    /// Could start.
    #[n(5)]
    Ready,
    /// Starts.
    #[n(6)]
    Starting,
    /// Its process runs.
    #[n(7)]
    Running,
    /// Exited with 0.
    #[n(8)]
    Complete,
    /// Was stopped on purpose.
    #[n(9)]
    Shutdown,
    /// Exited with something else, or could not start.
    #[n(10)]
    Failed,
    /// Its node would not run it.
    #[n(11)]
    Rejected,
    /// To be removed once it has stopped. Only ever a desired state.
    #[n(12)]
    Remove,
    /// Its node has been gone for too long to tell.
    #[n(13)]
    Orphaned,
}

impl TaskState {
    /// Whether nothing can follow.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    /// The word for this state, in lower case.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }
}

/// What to run and how: the template of a service's tasks.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TaskSpec {
    /// The container.
    #[n(0)]
    pub container: ContainerSpec,
    /// Limits and reservations, as sent.
    #[n(1)]
    pub resources: Option<ResourceNeeds>,
    /// When to restart, as sent.
    #[n(2)]
    pub restart: Option<RestartPolicy>,
    /// Where it may run, as sent.
    #[n(3)]
    pub placement: Option<Placement>,
    /// Networks it is on.
    #[n(4)]
    pub networks: Vec<NetworkAttachment>,
    /// Where its output goes, as sent.
    #[n(5)]
    pub log_driver: Option<super::material::Driver>,
    /// Raised to replace tasks without any other change.
    #[n(6)]
    pub force_update: u64,
    /// Stored for Docker: `container`.
    #[n(7)]
    pub runtime: String,
}

impl TaskSpec {
    /// What a node must have left for it, if anything.
    #[must_use]
    pub fn reserved(&self) -> Option<&Resources> {
        self.resources.as_ref()?.reservations.as_ref()
    }

    /// Whether a task of `self` may stay when `other` is wanted. The order of grants and of
    /// the environment says nothing: clients send them in any order.
    #[must_use]
    pub fn is_same(a: &Shared<Self>, b: &Shared<Self>) -> bool {
        Shared::same(a, b) || **a == **b || a.sorted() == b.sorted()
    }

    fn sorted(&self) -> Self {
        let mut spec = self.clone();
        spec.container.secrets.sort();
        spec.container.configs.sort();
        spec.container.env.sort();
        spec
    }
}

/// Limits and reservations.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ResourceNeeds {
    /// What it may use at most, as sent.
    #[n(0)]
    pub limits: Option<Resources>,
    /// What a node must have left for it, as sent.
    #[n(1)]
    pub reservations: Option<Resources>,
}

/// Amounts. Zero means unlimited, or nothing reserved.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Resources {
    /// CPUs in billionths.
    #[n(0)]
    pub nano_cpus: u64,
    /// Memory in bytes.
    #[n(1)]
    pub memory_bytes: u64,
    /// Processes.
    #[n(2)]
    pub pids: u64,
    /// Countable resources by kind.
    #[n(3)]
    pub generic: BTreeMap<String, u64>,
}

/// Which exits are answered with a restart.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum RestartCondition {
    /// None.
    #[n(0)]
    None,
    /// Failures.
    #[n(1)]
    OnFailure,
    /// All.
    #[default]
    #[n(2)]
    Any,
}

/// When to restart a task that ended by itself.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RestartPolicy {
    /// Which exits, as sent; none means any.
    #[n(0)]
    pub condition: Option<RestartCondition>,
    /// Wait before the restart, as sent; none means 5 s.
    #[n(1)]
    pub delay: Option<Span>,
    /// Restarts allowed in a window, as sent; none or 0 means no limit.
    #[n(2)]
    pub max_attempts: Option<u64>,
    /// The window, as sent; none or 0 means for ever.
    #[n(3)]
    pub window: Option<Span>,
}

/// Where a task may run.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Placement {
    /// Expressions such as `node.labels.zone==a`, all of which must hold.
    #[n(0)]
    pub constraints: Vec<String>,
    /// Node attributes to spread over, the first foremost.
    #[n(1)]
    pub spread: Vec<String>,
    /// Tasks of the service one node may run; 0 for no limit.
    #[n(2)]
    pub max_replicas: u64,
    /// (architecture, os) pairs the image is for; empty for any.
    #[n(3)]
    pub platforms: Vec<(String, String)>,
}

/// A network a task is on.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct NetworkAttachment {
    /// Name or id.
    #[n(0)]
    pub target: String,
    /// Further names on it.
    #[n(1)]
    pub aliases: Vec<String>,
    /// Driver options.
    #[n(2)]
    pub options: Labels,
}

/// What is known of a task's container.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ContainerStatus {
    /// Container id.
    #[n(0)]
    pub id: String,
    /// Process id of its init on its node; 0 when it does not run.
    #[n(1)]
    pub pid: u32,
    /// Exit code; 0 until it ended.
    #[n(2)]
    pub exit_code: i32,
}

/// The observed half of a task.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TaskStatus {
    /// When it was observed.
    #[n(0)]
    pub at: Stamp,
    /// State.
    #[n(1)]
    pub state: TaskState,
    /// What happens or happened, in Docker's words.
    #[n(2)]
    pub message: String,
    /// What went wrong, or why it waits.
    #[n(3)]
    pub err: Option<String>,
    /// Its container, once there is one.
    #[n(4)]
    pub container: Option<ContainerStatus>,
}

/// A task: one attempt to fill a slot.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Task {
    /// Id.
    #[n(0)]
    pub id: TaskId,
    /// Version counter and stamps.
    #[n(1)]
    pub meta: Meta,
    /// Its service.
    #[n(2)]
    pub service: ServiceId,
    /// Name of its service, kept for tasks that outlive it.
    #[n(3)]
    pub service_name: String,
    /// Labels of its service, kept likewise: the task filter `label` looks here.
    #[n(4)]
    pub service_labels: Shared<Labels>,
    /// Its slot, from 1; 0 in a global service.
    #[n(5)]
    pub slot: u64,
    /// Its node, once scheduled.
    #[n(6)]
    pub node: Option<NodeId>,
    /// What it runs: the service's template when the task was made.
    #[n(7)]
    pub spec: Shared<TaskSpec>,
    /// The service's `spec_version` it was made from.
    #[n(8)]
    pub spec_version: u64,
    /// What was observed.
    #[n(9)]
    pub status: TaskStatus,
    /// Where it should go. It, too, only moves forward.
    #[n(10)]
    pub desired: TaskState,
    /// A restarted task waits until then in `Ready`.
    #[n(11)]
    pub start_after: Option<Stamp>,
    /// How often its slot was restarted within the policy's window, this task included.
    #[n(12)]
    pub attempts: u64,
    /// Start of that window.
    #[n(13)]
    pub window_start: Stamp,
    /// When managers first learned that it runs.
    #[n(14)]
    pub running_since: Option<Stamp>,
    /// What it was made with of that which restarts it on change: each with its latest version
    /// then.
    #[n(15)]
    pub started_with: Vec<(MaterialId, u64)>,
}

impl Task {
    /// Whether it has ended or was told to.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.desired > TaskState::Running || self.status.state.is_terminal()
    }

    /// Orders the tasks of a slot, the newest last.
    pub(crate) fn age(&self) -> (Stamp, u64, u64) {
        (self.meta.created, self.spec_version, self.attempts)
    }

    /// `service.slot.id`: the name of its container.
    #[must_use]
    pub fn container_name(&self) -> String {
        alloc::format!("{}.{}.{}", self.service_name, self.slot, self.id)
    }
}
