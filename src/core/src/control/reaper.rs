//! Forgets tasks: those to be removed once they have stopped, and history beyond its limit.

use alloc::string::String;
use alloc::vec::Vec;

use super::Pass;
use super::draft::{Draft, Slot};
use crate::command::Decision;
use crate::limits;
use crate::model::node::NodeState;
use crate::model::task::{Task, TaskState, TaskStatus};
use crate::state::State;
use crate::time::Stamp;

/// Forgets what may be forgotten of a service's slots.
pub(super) fn run(draft: &mut Draft<'_>, slots: &[Slot]) -> Pass {
    let cluster = draft.state.cluster();
    let limit = cluster.map_or(limits::HISTORY_PER_SLOT, |cluster| cluster.spec.history_limit);
    let is_crowded = draft.state.tasks.len() > limits::TASKS;
    let limit = if is_crowded { 0 } else { usize::try_from(limit).unwrap_or(usize::MAX) };
    for slot in slots {
        if draft.is_full() {
            return Pass::Stopped;
        }
        let mut history: Vec<&Task> = Vec::new();
        for task in &slot.tasks {
            if is_orphan(draft.state, task, draft.now) {
                draft.decisions.push(orphaned(task, draft.now));
            } else if !is_over(task) {
                continue;
            }
            // What never had a node has no history.
            if task.desired == TaskState::Remove || task.node.is_none() {
                draft.decisions.push(Decision::TaskRemove { id: task.id });
            } else {
                history.push(task);
            }
        }
        history.sort_by_key(|task| core::cmp::Reverse(task.age()));
        // A slot whose last task is forgotten is free, and would be filled again.
        let is_filled = slot.active().next().is_some();
        let old = history.iter().skip(if is_filled { limit } else { limit.max(1) });
        draft.decisions.extend(old.map(|task| Decision::TaskRemove { id: task.id }));
    }
    Pass::Done
}

/// Says of a task whose node does not come back that nobody can tell how it ended.
fn orphaned(task: &Task, at: Stamp) -> Decision {
    let message = String::from("Task belonged to a node that has been down for too long");
    let (state, err, container) = (TaskState::Orphaned, None, task.status.container.clone());
    Decision::TaskStatus { id: task.id, status: TaskStatus { at, state, message, err, container } }
}

/// Whether a task that is to end is on a node that nobody expects any more. If it does come
/// back, it is told to stop what it still runs.
fn is_orphan(state: &State, task: &Task, now: Stamp) -> bool {
    let node = task.node.and_then(|id| state.node(&id));
    let is_lost = node.is_some_and(|node| {
        let since = node.status.since;
        node.status.state == NodeState::Down && since + limits::NODE_LOST_AFTER <= now
    });
    is_lost && task.desired > TaskState::Running && !task.status.state.is_terminal()
}

/// Sends away and forgets every task of a service that is gone.
pub(super) fn remove_all(draft: &mut Draft<'_>, slots: &mut [Slot]) -> Pass {
    for slot in slots.iter_mut() {
        if draft.is_full() {
            return Pass::Stopped;
        }
        draft.desire(slot, TaskState::Remove, |_| true);
    }
    run(draft, slots)
}

/// Whether a task is to end and nothing runs for it any more.
fn is_over(task: &Task) -> bool {
    task.desired > TaskState::Running && (task.status.state.is_terminal() || task.node.is_none())
}
