//! Forgets tasks: those to be removed once they have stopped, and history beyond its limit.

use alloc::vec::Vec;

use super::Pass;
use super::draft::{Draft, Slot};
use crate::command::Decision;
use crate::limits;
use crate::model::task::{Task, TaskState};
use crate::state::State;

/// Forgets what may be forgotten of a service's slots.
pub(super) fn run(draft: &mut Draft<'_>, slots: &[Slot]) -> Pass {
    let cluster = draft.state.cluster();
    let limit = cluster.map_or(limits::HISTORY_PER_SLOT, |cluster| cluster.spec.history_limit);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    for slot in slots {
        if draft.is_full() {
            return Pass::Stopped;
        }
        let mut history: Vec<&Task> = Vec::new();
        for task in slot.tasks.iter().filter(|task| is_over(draft.state, task)) {
            // What never had a node has no history.
            if task.desired == TaskState::Remove || task.node.is_none() {
                draft.decisions.push(Decision::TaskRemove { id: task.id });
            } else {
                history.push(task);
            }
        }
        history.sort_by_key(|task| core::cmp::Reverse((task.meta.created, task.attempts)));
        let old = history.iter().skip(limit);
        draft.decisions.extend(old.map(|task| Decision::TaskRemove { id: task.id }));
    }
    Pass::Done
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
fn is_over(state: &State, task: &Task) -> bool {
    let is_stopped =
        task.status.state.is_terminal() || task.node.is_none_or(|id| state.node(&id).is_none());
    task.desired > TaskState::Running && is_stopped
}
