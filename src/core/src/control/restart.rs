//! What follows when a task ends: the restart policy, and when a task that waits may start.

use super::draft::{Draft, Slot};
use super::{Pass, is_outdated};
use crate::limits;
use crate::model::node::{Availability, NodeState};
use crate::model::service::Service;
use crate::model::task::{RestartCondition, Task, TaskState};
use crate::state::State;
use crate::time::{Span, Stamp};

/// Tells tasks that ended to stay ended, and fills their slots anew where the policy says so.
pub(super) fn replace_ended(draft: &mut Draft<'_>, service: &Service, slots: &mut [Slot]) -> Pass {
    for slot in slots {
        if draft.is_full() {
            return Pass::Stopped;
        }
        let state = draft.state;
        draft.desire(slot, TaskState::Shutdown, |task| {
            task.desired <= TaskState::Running && has_ended(state, task)
        });
        if let Some(task) = successor(draft, service, slot) {
            draft.create(slot, task);
        }
    }
    Pass::Done
}

/// Whether a task ended by itself, or its node can run it no longer.
fn has_ended(state: &State, task: &Task) -> bool {
    let drained = || {
        let node = task.node.and_then(|id| state.node(&id));
        node.is_some_and(|node| node.spec.availability == Availability::Drain)
    };
    task.status.state.is_terminal() || is_lost(state, task) || drained()
}

/// Whether a task ended without being told to, well or not.
pub(super) fn has_ended_by_itself(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

/// Whether a task's node is gone.
fn is_lost(state: &State, task: &Task) -> bool {
    task.node
        .is_some_and(|id| state.node(&id).is_none_or(|node| node.status.state == NodeState::Down))
}

/// The task that follows the newest one of a slot, if one must. While another task is to run
/// there, only one of the present template that was not told to end has a successor: the others
/// are the updater's.
fn successor(draft: &mut Draft<'_>, service: &Service, slot: &Slot) -> Option<Task> {
    let old = slot.newest()?;
    let is_held = slot.active().next().is_some();
    if old.desired <= TaskState::Running
        || (is_held
            && (is_outdated(draft.state, service, old) || old.status.state == TaskState::Shutdown))
        || !may_restart(service, old)
        || !draft.has_spare_room(service.id)
    {
        return None;
    }
    // One that ended while it still waited for its start (its image is missing, say) is followed
    // no sooner than it would have started: else each would end as soon as it is prepared.
    let waited = old.start_after.filter(|at| *at > draft.now && has_ended_by_itself(old));
    if let Some(at) = waited {
        draft.wake(at, service.id, slot.number);
        return None;
    }
    let policy = old.spec.restart.as_ref();
    let delay = policy.and_then(|policy| policy.delay).unwrap_or(limits::RESTART_DELAY);
    let mut task = draft.task(service, slot.number);
    if old.spec_version == service.spec_version && !is_window_over(old) {
        task.attempts = old.attempts;
        task.window_start = old.window_start;
    }
    task.attempts += 1;
    if has_ended_by_itself(old) && delay > Span(0) {
        task.start_after = Some(draft.now + delay);
    }
    task.desired = first_desire(draft.state, draft.now, slot, &task);
    Some(task)
}

fn may_restart(service: &Service, old: &Task) -> bool {
    let policy = old.spec.restart.as_ref();
    match policy.and_then(|policy| policy.condition).unwrap_or_default() {
        RestartCondition::None => return false,
        RestartCondition::OnFailure if old.status.state == TaskState::Complete => return false,
        RestartCondition::OnFailure | RestartCondition::Any => {}
    }
    let max = policy.and_then(|policy| policy.max_attempts).unwrap_or(0);
    max == 0
        || old.attempts < max
        || old.spec_version != service.spec_version
        || is_window_over(old)
}

/// Whether a task ended after the window in which its slot's restarts are counted. It is the
/// end that counts, not the present: a slot given up does not come back by waiting.
fn is_window_over(old: &Task) -> bool {
    let window = old.spec.restart.as_ref().and_then(|policy| policy.window).unwrap_or_default();
    window > Span(0) && old.meta.updated.since(old.window_start) > window
}

/// Lets tasks run whose delay is over and whose predecessors are gone.
pub(super) fn start_due(draft: &mut Draft<'_>, slots: &mut [Slot]) -> Pass {
    for slot in slots {
        if draft.is_full() {
            return Pass::Stopped;
        }
        let due = slot.active().filter(|task| task.desired < TaskState::Running);
        let Some(at) = due.map(|task| starts_at(draft.state, slot, task)).min() else { continue };
        if at <= draft.now {
            let starts = slot.active().find(|task| {
                task.desired < TaskState::Running && starts_at(draft.state, slot, task) == at
            });
            let id = starts.map(|task| task.id);
            draft.desire(slot, TaskState::Running, |task| Some(task.id) == id);
        } else if let Some(service) = slot.tasks.first().map(|task| task.service) {
            draft.wake(at, service, slot.number);
        }
    }
    Pass::Done
}

/// Where a new task of a slot goes first: `Ready` if it has to wait for something.
pub(super) fn first_desire(state: &State, now: Stamp, slot: &Slot, task: &Task) -> TaskState {
    if starts_at(state, slot, task) <= now { TaskState::Running } else { TaskState::Ready }
}

/// When a task may run: after its delay, and once those it follows have stopped or should have.
fn starts_at(state: &State, slot: &Slot, task: &Task) -> Stamp {
    let waits_for = |old: &&alloc::sync::Arc<Task>| {
        old.desired > TaskState::Running
            && !old.status.state.is_terminal()
            && old.node.is_some()
            && !is_lost(state, old)
    };
    let stopped_by = |old: &alloc::sync::Arc<Task>| {
        let grace = old.spec.container.stop_grace.unwrap_or(limits::STOP_GRACE);
        old.meta.updated + grace + limits::OLD_TASK_WAIT
    };
    let stopped = slot.tasks.iter().filter(waits_for).map(stopped_by).max();
    stopped.into_iter().chain(task.start_after).max().unwrap_or_default()
}
