//! What tasks hold of secrets and configs, as the managers know it.

use skep_core::id::{MaterialId, NodeId, ServiceId, TaskId};
use skep_core::model::node::NodeState;

/// What tasks hold of those that were asked for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Holdings {
    /// All that hold one, may hold one, or should, by id.
    pub tasks: Vec<Holder>,
    /// Managers that did not answer: what is known to them alone counts as unknown.
    pub absent: Vec<NodeId>,
}

/// A task that holds secrets or configs, or may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Task.
    pub task: TaskId,
    /// Its service, which may be gone.
    pub service: ServiceId,
    /// Name of its service.
    pub service_name: String,
    /// Its node.
    pub node: NodeId,
    /// Host name of the node.
    pub hostname: String,
    /// What managers say of the node.
    pub status: NodeState,
    /// Versions that it holds; if it is not reached, all that it may hold.
    pub held: Vec<(MaterialId, u64)>,
    /// What of this is revoked from it.
    pub revoked: Vec<MaterialId>,
    /// Whether it said that it holds what it should and nothing that is revoked.
    pub complies: bool,
    /// Whether some manager has it in a session.
    pub is_reachable: bool,
}
