//! What a manager and an agent say to each other.

use minicbor::{Decode, Encode};
use skep_core::assign::AssignmentDiff;
use skep_core::command::TaskReport;
use skep_core::id::{ClusterId, MaterialId, NodeId, TaskId};
use skep_core::model::node::NodeDescription;

use super::audit::Portion;
use super::shim::Delivery;

/// Who the managers are, as an agent keeps it. Only what comes from one of them replaces it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Directory {
    /// Raised by `--force-new-cluster` and restore.
    #[n(0)]
    pub incarnation: u64,
    /// Random half of the incarnation.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub incarnation_id: [u8; 16],
    /// Entry of the log that this was taken from: a later one replaces an earlier one.
    #[n(2)]
    pub epoch: u64,
    /// Managers by node id.
    #[n(3)]
    pub managers: Vec<ManagerEntry>,
    /// Roots to trust, in PEM.
    #[n(4)]
    pub roots: Vec<String>,
}

/// A manager as others know it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ManagerEntry {
    /// Its node id.
    #[n(0)]
    pub node: NodeId,
    /// DER of its public key.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub public_key: Vec<u8>,
    /// Address with port.
    #[n(2)]
    pub addr: String,
    /// Its Raft id.
    #[n(3)]
    pub raft_id: u64,
}

/// The first message of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// The swarm it belongs to.
    #[n(0)]
    pub cluster: ClusterId,
    /// The incarnation it obeys.
    #[n(1)]
    pub incarnation: u64,
    /// Random half of it.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub incarnation_id: [u8; 16],
    /// What it says of itself.
    #[n(3)]
    pub description: NodeDescription,
    /// Where it says it is reached, with port.
    #[n(4)]
    pub advertise: String,
}

/// What a manager says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToAgent {
    /// Changes of what the node has to run. The first of a session is complete: tasks it does
    /// not name are to go.
    #[n(0)]
    Assign(#[n(0)] AssignmentDiff),
    /// Payloads for one task's shim, sealed to it.
    #[n(1)]
    Deliver {
        /// Task.
        #[n(0)]
        task: TaskId,
        /// For its shim.
        #[n(1)]
        delivery: Delivery,
    },
    /// The manager is there.
    #[n(2)]
    Beat,
    /// Who the managers are now.
    #[n(3)]
    Directory(#[n(0)] Directory),
    /// What the node is from now on: its Raft id, 0 for a worker. The node gets itself a
    /// certificate that says so.
    #[n(4)]
    Role {
        /// Raft id.
        #[n(0)]
        raft_id: u64,
    },
    /// These may no longer be read by a task, each up to the version named with it. Answered by
    /// [`FromAgent::Held`].
    #[n(5)]
    Revoke {
        /// Task.
        #[n(0)]
        task: TaskId,
        /// Orders deliveries and revocations.
        #[n(1)]
        sequence: u64,
        /// What is revoked.
        #[n(2)]
        materials: Vec<(MaterialId, u64)>,
    },
    /// A majority of the managers has stored what [`FromAgent::Audit`] of this number held.
    #[n(8)]
    AuditStored {
        /// Which.
        #[n(0)]
        batch: u64,
    },
}

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum FromAgent {
    /// What it observed, in one batch.
    #[n(0)]
    Reports(#[n(0)] Vec<TaskReport>),
    /// A task's shim is there and takes payloads.
    #[n(1)]
    Shim {
        /// Task.
        #[n(0)]
        task: TaskId,
        /// The shim's public key.
        #[cbor(n(1), with = "minicbor::bytes")]
        key: [u8; 32],
        /// Versions it holds.
        #[n(2)]
        held: Vec<(MaterialId, u64)>,
        /// Sequence of its last delivery.
        #[n(3)]
        sequence: u64,
    },
    /// A task's shim is gone.
    #[n(2)]
    ShimGone {
        /// Task.
        #[n(0)]
        task: TaskId,
    },
    /// The agent is there.
    #[n(3)]
    Beat,
    /// The first message of a session.
    #[n(4)]
    Hello(#[n(0)] Box<Hello>),
    /// The node leaves the swarm on purpose.
    #[n(5)]
    Leave,
    /// A shim answered a delivery or a revocation.
    #[n(6)]
    Held {
        /// Task.
        #[n(0)]
        task: TaskId,
        /// Versions it holds now.
        #[n(1)]
        held: Vec<(MaterialId, u64)>,
        /// Sequence of the last delivery or revocation that it took, or passed over as it had
        /// taken a later one.
        #[n(2)]
        sequence: u64,
        /// Why it did not take this one; then what it holds is as before.
        #[n(3)]
        refused: Option<String>,
    },
    /// Records of its tasks' audits, to be stored. Sent again until [`ToAgent::AuditStored`] comes.
    #[n(9)]
    Audit {
        /// Counts up in the life of a daemon.
        #[n(0)]
        batch: u64,
        /// The records.
        #[n(1)]
        portions: Vec<Portion>,
    },
}
