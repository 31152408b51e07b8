//! State × command → changes or rejection.

mod audit;
mod cluster;
mod material;
mod nodes;
#[cfg(test)]
mod nodes_tests;
mod revoke;
mod ring;
#[cfg(test)]
mod ring_tests;
mod service;
mod spec;
mod task;
#[cfg(test)]
mod tests;
mod trust;
#[cfg(test)]
mod trust_tests;
mod versions;
#[cfg(test)]
mod versions_tests;

use alloc::format;
use alloc::vec::Vec;

pub(crate) use task::ASSIGNED;

use crate::command::{Command, Outcome, Proposal, Rejection};
use crate::id::{MaterialId, NodeId, ServiceId, TaskId};
use crate::limits;
use crate::model::Labels;
use crate::state::State;
use crate::time::Stamp;

/// Which object a command wrote or removed. What became of it is in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The swarm, or the format of its state.
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

/// What a handler answers: the object's write counter, or why not.
type Applied = Result<u64, Rejection>;

/// The state with what every handler writes beside it. A handler checks everything first and
/// writes last, so a rejection never leaves half a change behind.
struct Writer<'a> {
    state: &'a mut State,
    changes: &'a mut Vec<Change>,
    now: Stamp,
}

/// Applies one proposal. The same proposals in the same order make the same state on every
/// manager; a rejected one leaves the state as it was but for the remembered outcome.
pub fn apply(state: &mut State, proposal: &Proposal, changes: &mut Vec<Change>) -> Outcome {
    if let Some(first) = state.outcomes.get(&proposal.request) {
        return first.clone();
    }
    let now = state.last_stamp.max(proposal.stamp);
    let applied = Writer { state, changes, now }.command(&proposal.command);
    let outcome = match applied {
        Ok(outcome) => {
            state.last_stamp = now;
            Writer { state, changes, now }.retire_keys();
            outcome
        }
        Err(rejection) => Outcome::Rejected(rejection),
    };
    // A payload that is to be sealed anew comes back with the same request.
    if !matches!(outcome, Outcome::Rejected(Rejection::StaleKey { .. })) {
        state.remember(proposal.request, now, outcome.clone());
    }
    outcome
}

impl Writer<'_> {
    fn command(&mut self, command: &Command) -> Result<Outcome, Rejection> {
        match command {
            Command::ClusterInit(init) => self.cluster_init(init).map(Outcome::Done),
            Command::Noop => Ok(Outcome::Done(0)),
            _ if self.state.cluster.is_none() => Err(Rejection::NoCluster),
            Command::MaterialPrune { kind, ids, keep } => {
                self.material_prune(*kind, ids, *keep).map(Outcome::Pruned)
            }
            command => self.write(command).map(Outcome::Done),
        }
    }

    fn write(&mut self, command: &Command) -> Applied {
        match command {
            Command::ClusterInit(_) | Command::Noop | Command::MaterialPrune { .. } => Ok(0),
            Command::ClusterUpdate { version, spec, tokens, unlock_key } => {
                self.cluster_update(*version, spec, tokens, unlock_key.as_ref())
            }
            Command::NodeJoin(join) => self.node_join(join),
            Command::NodePromote { id, version, spec, raft_id, slots } => {
                self.node_promote(id, *version, spec, *raft_id, slots)
            }
            Command::NodeDemote { id, version, spec, key, secrets } => {
                self.node_demote(id, *version, spec, key, secrets)
            }
            Command::NodeRemove { id, force } => self.node_remove(id, *force),
            Command::RingTurn { key, secrets } => self.ring_turn(key, secrets),
            Command::ClusterForce { node, addr, incarnation_id, key, secrets } => {
                self.cluster_force(node, addr, incarnation_id, key, secrets)
            }
            Command::CaChange(change) => self.ca_change(change),
            Command::FormatRaise { to } => self.format_raise(*to),
            Command::NodeUpdate { id, version, spec } => self.node_update(id, *version, spec),
            Command::NodeReport(reports) => Ok(self.node_reports(reports)),
            Command::MaterialCreate { id, kind, spec, size, payload, by } => {
                self.material_create(id, *kind, spec, *size, payload, *by)
            }
            Command::MaterialUpdate { id, version, spec } => {
                self.material_update(id, *version, spec)
            }
            Command::MaterialAppend { items, by, keep } => self.material_append(items, *by, *keep),
            Command::MaterialRevoke { id, service, task, by } => {
                self.material_revoke(id, service.as_ref(), task.as_ref(), *by)
            }
            Command::MaterialReseal(items) => self.material_reseal(items),
            Command::AuditAnchor(anchors) => self.audit_anchors(anchors),
            Command::MaterialRemove { id } => self.material_remove(id),
            Command::ServiceCreate { id, spec } => self.service_create(id, spec),
            Command::ServiceUpdate { id, version, spec } => self.service_update(id, *version, spec),
            Command::ServiceRollback { id, version } => self.service_rollback(id, *version),
            Command::ServiceRemove { id } => self.service_remove(id),
            Command::Control(decisions) => Ok(self.decisions(decisions)),
            Command::TaskReport(reports) => Ok(self.task_reports(reports)),
        }
    }
}

/// Refuses more labels than an object may carry.
fn check_labels(labels: &Labels) -> Result<(), Rejection> {
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if labels.len() > limits::LABELS || bytes > limits::LABEL_BYTES {
        return Err(Rejection::Invalid(format!(
            "too many labels: at most {} with {} bytes in all",
            limits::LABELS,
            limits::LABEL_BYTES
        )));
    }
    Ok(())
}
