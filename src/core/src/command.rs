//! The only ways the swarm changes.

mod material;
mod trust;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use crate::format;
use crate::id::{ClusterId, MaterialId, NodeId, RequestId, ServiceId, TaskId};
use crate::model::cluster::{ClusterSpec, Ring, RingKey, Slot, Trust};
use crate::model::material::{Author, MaterialKind, MaterialSpec};
use crate::model::node::{ManagerInfo, NodeDescription, NodeSpec, NodeStatus};
use crate::model::service::{ServiceSpec, UpdateStatus};
use crate::model::task::{Task, TaskState, TaskStatus};
pub use crate::outcome::{Outcome, Rejection};
use crate::sealed::Sealed;
use crate::time::Stamp;

pub use material::{Anchor, Append, Reseal};
pub use trust::{CaChange, TokenRotation, TrustSecrets};

/// A command on its way through the log.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Proposal {
    /// A repeated id gets its first outcome.
    #[n(0)]
    pub request: RequestId,
    /// The leader's clock when it proposed. The state never goes back behind its last stamp.
    #[n(1)]
    pub stamp: Stamp,
    /// What to do.
    #[n(2)]
    pub command: Command,
    /// The format that a reader must know. Those that do not can still read this number.
    #[n(3)]
    pub format: u32,
}

impl Proposal {
    /// A proposal to be encoded.
    #[must_use]
    pub fn new(request: RequestId, stamp: Stamp, command: Command) -> Self {
        let format = format::needed(&command);
        Self { request, stamp, command, format }
    }
}

/// A change someone asked for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Command {
    /// Makes the swarm with its first manager.
    #[n(0)]
    ClusterInit(#[n(0)] Box<ClusterInit>),
    /// Changes the swarm's settings.
    #[n(1)]
    ClusterUpdate {
        /// Version the caller read.
        #[n(0)]
        version: u64,
        /// New settings.
        #[n(1)]
        spec: ClusterSpec,
        /// New join secrets, of the roles whose token rotates.
        #[n(2)]
        tokens: TokenRotation,
        /// New unlock key, sealed with the ring: needed when autolock is turned on, and when the
        /// key rotates.
        #[n(3)]
        unlock_key: Option<Sealed>,
    },
    /// Changes what a user says of a node, except for its role: the door turns an update with
    /// another role into a [`Command::NodePromote`] or [`Command::NodeDemote`].
    #[n(2)]
    NodeUpdate {
        /// Node.
        #[n(0)]
        id: NodeId,
        /// Version the caller read.
        #[n(1)]
        version: u64,
        /// New spec.
        #[n(2)]
        spec: NodeSpec,
    },
    /// Records what nodes say of themselves and what was observed of them.
    #[n(3)]
    NodeReport(#[n(0)] Vec<NodeReport>),
    /// Makes a secret or config with version 1.
    #[n(4)]
    MaterialCreate {
        /// Id minted at the door.
        #[n(0)]
        id: MaterialId,
        /// Secret or config.
        #[n(1)]
        kind: MaterialKind,
        /// Name and labels.
        #[n(2)]
        spec: MaterialSpec,
        /// Plaintext bytes.
        #[n(3)]
        size: u64,
        /// The payload, sealed with the current ring key.
        #[n(4)]
        payload: Sealed,
        /// Who makes it.
        #[n(5)]
        by: Author,
    },
    /// Changes the labels of a secret or config, and how many versions are kept.
    #[n(5)]
    MaterialUpdate {
        /// What.
        #[n(0)]
        id: MaterialId,
        /// Version the caller read.
        #[n(1)]
        version: u64,
        /// New spec; only labels and `keep` may differ. Without `keep` that stays as it is.
        #[n(2)]
        spec: MaterialSpec,
    },
    /// Appends a version to each of some secrets and configs: to all of them or to none. The
    /// versions beyond what each keeps are dropped, the oldest first, but never one in use.
    /// Answers the write counter of the first.
    #[n(6)]
    MaterialAppend {
        /// 1 to [`crate::limits::SET`], each of another secret or config.
        #[n(0)]
        items: Vec<Append>,
        /// Who appends.
        #[n(1)]
        by: Author,
        /// How many versions each keeps from now on; none leaves that as it is.
        #[n(2)]
        keep: Option<u32>,
    },
    /// Removes a secret or config that no service refers to.
    #[n(7)]
    MaterialRemove {
        /// What.
        #[n(0)]
        id: MaterialId,
    },
    /// Makes a service.
    #[n(8)]
    ServiceCreate {
        /// Id minted at the door.
        #[n(0)]
        id: ServiceId,
        /// What the user said.
        #[n(1)]
        spec: ServiceSpec,
    },
    /// Changes a service.
    #[n(9)]
    ServiceUpdate {
        /// Which.
        #[n(0)]
        id: ServiceId,
        /// Version the caller read.
        #[n(1)]
        version: u64,
        /// The whole new spec.
        #[n(2)]
        spec: ServiceSpec,
    },
    /// Swaps a service's spec and previous spec.
    #[n(10)]
    ServiceRollback {
        /// Which.
        #[n(0)]
        id: ServiceId,
        /// Version the caller read.
        #[n(1)]
        version: u64,
    },
    /// Removes a service; its tasks are told to go.
    #[n(11)]
    ServiceRemove {
        /// Which.
        #[n(0)]
        id: ServiceId,
    },
    /// What the control loop decided, applied as one.
    #[n(12)]
    Control(#[n(0)] Vec<Decision>),
    /// What agents observed.
    #[n(13)]
    TaskReport(#[n(0)] Vec<TaskReport>),
    /// Nothing; its commit shows that the proposer leads.
    #[n(14)]
    Noop,
    /// Admits a node. The same public key again changes nothing: its node id is in the state.
    #[n(15)]
    NodeJoin(#[n(0)] Box<NodeJoin>),
    /// Makes a worker a manager.
    #[n(16)]
    NodePromote {
        /// Node.
        #[n(0)]
        id: NodeId,
        /// Version the caller read.
        #[n(1)]
        version: u64,
        /// New spec; its role is manager.
        #[n(2)]
        spec: NodeSpec,
        /// Its Raft id: new at each promotion, never reused.
        #[n(3)]
        raft_id: u64,
        /// The ring's keys sealed to it, one slot for every key.
        #[n(4)]
        slots: BTreeMap<u64, Slot>,
    },
    /// Makes a manager a worker: its slots go, and the ring turns to a key it never had.
    #[n(17)]
    NodeDemote {
        /// Node.
        #[n(0)]
        id: NodeId,
        /// Version the caller read.
        #[n(1)]
        version: u64,
        /// New spec; its role is worker.
        #[n(2)]
        spec: NodeSpec,
        /// The ring's next key, with a slot for every manager that stays.
        #[n(3)]
        key: RingKey,
        /// CA key and join secrets, sealed with the next key.
        #[n(4)]
        secrets: TrustSecrets,
    },
    /// Removes a node for good: nothing it says counts any more.
    #[n(18)]
    NodeRemove {
        /// Node.
        #[n(0)]
        id: NodeId,
        /// Whether it may be up.
        #[n(1)]
        force: bool,
    },
    /// Turns the ring to its next key.
    #[n(19)]
    RingTurn {
        /// The ring's next key, with a slot for every manager.
        #[n(0)]
        key: RingKey,
        /// CA key and join secrets, sealed with the next key.
        #[n(1)]
        secrets: TrustSecrets,
    },
    /// One surviving manager makes the swarm its own: the other managers are removed, the
    /// incarnation is raised, and ring and join secrets are new.
    #[n(20)]
    ClusterForce {
        /// The survivor.
        #[n(0)]
        node: NodeId,
        /// Its address with port from now on.
        #[n(1)]
        addr: String,
        /// Random half of the new incarnation.
        #[cbor(n(2), with = "minicbor::bytes")]
        incarnation_id: [u8; 16],
        /// The ring's next key, with a slot for the survivor alone.
        #[n(3)]
        key: RingKey,
        /// CA key and new join secrets, sealed with the next key.
        #[n(4)]
        secrets: TrustSecrets,
    },
    /// Changes what the swarm trusts: see [`CaChange`].
    #[n(21)]
    CaChange(#[n(0)] Box<CaChange>),
    /// Raises the format of the state, for good. Every manager must read it.
    #[n(22)]
    FormatRaise {
        /// The format from then on.
        #[n(0)]
        to: u32,
    },
    /// Drops versions that nobody uses, the oldest first, but never the latest. Answers
    /// [`Outcome::Pruned`]; if that names [`crate::limits::PRUNE`] versions there may be more.
    #[n(23)]
    MaterialPrune {
        /// Of secrets or of configs.
        #[n(0)]
        kind: MaterialKind,
        /// Of which, at most [`crate::limits::PRUNE`]; empty for all of the kind.
        #[n(1)]
        ids: Vec<MaterialId>,
        /// How many versions each keeps beside those in use; none for what each says itself.
        #[n(2)]
        keep: Option<u32>,
    },
    /// Takes what is granted back: no version there is now may be read any more. A later version
    /// may, and so may a grant that an update of the service makes anew.
    #[n(24)]
    MaterialRevoke {
        /// What.
        #[n(0)]
        id: MaterialId,
        /// From which service; none for all that are granted it, if no task is named either.
        #[n(1)]
        service: Option<ServiceId>,
        /// From which task alone.
        #[n(2)]
        task: Option<TaskId>,
        /// Who revokes.
        #[n(3)]
        by: Author,
    },
    /// Puts the same payloads under the ring's current key: 1 to [`crate::limits::SET`]. What was
    /// removed meanwhile is passed over.
    #[n(25)]
    MaterialReseal(#[n(0)] Vec<Reseal>),
    /// Keeps in the state how far tasks' audits have come, so that nothing before is changed or
    /// cut off unnoticed: at most [`crate::limits::ANCHORS_AT_ONCE`]. Older ones than known have
    /// no effect.
    #[n(26)]
    AuditAnchor(#[n(0)] Vec<Anchor>),
}

/// A node that joins.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct NodeJoin {
    /// Id minted at the door.
    #[n(0)]
    pub id: NodeId,
    /// DER of its public key.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub public_key: Vec<u8>,
    /// X25519 public key that ring slots are sealed to.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub seal_key: [u8; 32],
    /// The role its token gives, and the availability it asks for.
    #[n(3)]
    pub spec: NodeSpec,
    /// What it says of itself.
    #[n(4)]
    pub description: NodeDescription,
    /// Address with port where managers reach it, as it says itself.
    #[n(5)]
    pub advertise: String,
    /// Its address without port, as the manager it dialled sees it.
    #[n(6)]
    pub addr: String,
    /// On managers: its Raft id and the ring's keys sealed to it, one slot for every key.
    #[n(7)]
    pub manager: Option<(u64, BTreeMap<u64, Slot>)>,
}

/// The first entry of a swarm.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ClusterInit {
    /// Id of the swarm.
    #[n(0)]
    pub id: ClusterId,
    /// Settings.
    #[n(1)]
    pub spec: ClusterSpec,
    /// Ring with its first key.
    #[n(2)]
    pub ring: Ring,
    /// Root certificate and join secrets.
    #[n(3)]
    pub trust: Trust,
    /// Random half of the incarnation.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub incarnation_id: [u8; 16],
    /// Id of the first manager.
    #[n(5)]
    pub node: NodeId,
    /// What the user says of it.
    #[n(6)]
    pub node_spec: NodeSpec,
    /// What it says of itself.
    #[n(7)]
    pub description: NodeDescription,
    /// Its manager half.
    #[n(8)]
    pub manager: ManagerInfo,
    /// DER of its public key.
    #[cbor(n(9), with = "minicbor::bytes")]
    pub public_key: Vec<u8>,
    /// X25519 public key that ring slots are sealed to.
    #[cbor(n(11), with = "minicbor::bytes")]
    pub seal_key: [u8; 32],
    /// Its address without port.
    #[n(10)]
    pub addr: String,
}

/// What became known of a node. Absent parts stay; parts beyond their bounds are as if absent.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct NodeReport {
    /// Node.
    #[n(0)]
    pub id: NodeId,
    /// What it says of itself.
    #[n(1)]
    pub description: Option<NodeDescription>,
    /// What was observed.
    #[n(2)]
    pub status: Option<NodeStatus>,
    /// Where it says it is reached now, with port. A manager's address changes with it.
    #[n(3)]
    pub advertise: Option<String>,
}

/// What an agent observed of a task.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TaskReport {
    /// Task.
    #[n(0)]
    pub id: TaskId,
    /// The node that reports; reports of other nodes than the task's are dropped.
    #[n(1)]
    pub node: NodeId,
    /// What it observed.
    #[n(2)]
    pub status: TaskStatus,
}

/// One decision of the control loop. A decision that no longer fits the state (its task is
/// gone, its service was written meanwhile) has no effect; the loop decides anew.
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is most of a long batch: a box each costs more"
)]
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Decision {
    /// Adds a task.
    #[n(0)]
    TaskCreate(#[n(0)] Task),
    /// Moves a task's desired state forward.
    #[n(1)]
    TaskDesire {
        /// Task.
        #[n(0)]
        id: TaskId,
        /// Where to.
        #[n(1)]
        desired: TaskState,
    },
    /// Gives a pending task its node.
    #[n(2)]
    TaskAssign {
        /// Task.
        #[n(0)]
        id: TaskId,
        /// Node.
        #[n(1)]
        node: NodeId,
    },
    /// Sets the status of a task no agent speaks for: why it waits for a node, say, or that its
    /// node is gone for good.
    #[n(3)]
    TaskStatus {
        /// Task.
        #[n(0)]
        id: TaskId,
        /// New status.
        #[n(1)]
        status: TaskStatus,
    },
    /// Forgets a task.
    #[n(4)]
    TaskRemove {
        /// Task.
        #[n(0)]
        id: TaskId,
    },
    /// Sets the update status of a service.
    #[n(5)]
    ServiceStatus {
        /// Service.
        #[n(0)]
        id: ServiceId,
        /// The `spec_version` it was decided for.
        #[n(1)]
        spec_version: u64,
        /// New status.
        #[n(2)]
        update: UpdateStatus,
    },
    /// Takes a service back to its previous spec because its update failed.
    #[n(6)]
    ServiceRollback {
        /// Service.
        #[n(0)]
        id: ServiceId,
        /// The `spec_version` that failed.
        #[n(1)]
        spec_version: u64,
        /// Message of its update status from now on.
        #[n(2)]
        message: String,
    },
}
