//! What a manager and an agent say to each other.

use minicbor::{Decode, Encode};
use skep_core::assign::AssignmentDiff;
use skep_core::command::TaskReport;
use skep_core::id::{MaterialId, TaskId};

use super::shim::Delivery;

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
}
