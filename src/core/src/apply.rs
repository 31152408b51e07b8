//! State × command → changes or rejection.

use alloc::vec::Vec;

use crate::command::{Outcome, Proposal};
use crate::id::{MaterialId, NodeId, ServiceId, TaskId};
use crate::state::State;

/// Which object a command wrote or removed. What became of it is in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The swarm.
    Cluster,
    /// A node.
    Node(NodeId),
    /// A secret or config.
    Material(MaterialId),
    /// A service.
    Service(ServiceId),
    /// A task.
    Task(TaskId),
}

/// Applies one proposal. The same proposals in the same order make the same state on every
/// manager; a rejected one leaves the state as it was but for the remembered outcome.
pub fn apply(_state: &mut State, _proposal: &Proposal, _changes: &mut Vec<Change>) -> Outcome {
    Outcome::Done(0)
}
