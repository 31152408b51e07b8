//! Updates: tasks of an old template replaced slot by slot, watched, and stopped or taken back
//! when the new ones fail. How far it has come is read off the tasks.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use super::draft::{Draft, Slot};
use super::restart::{first_desire, has_ended_by_itself};
use super::{Pass, is_dirty, is_outdated};
use crate::command::Decision;
use crate::id::TaskId;
use crate::limits;
use crate::model::service::{
    FailureAction, Service, UpdateConfig, UpdateOrder, UpdateState, UpdateStatus,
};
use crate::model::task::{Task, TaskState};
use crate::state::State;
use crate::time::{Span, Stamp};

/// Whether an update moves, so that every change of a task matters to the whole service.
pub(super) fn is_in_progress(service: &Service) -> bool {
    let state = service.update.as_ref().map(|update| update.state);
    matches!(state, Some(UpdateState::Updating | UpdateState::RollbackStarted))
}

/// An update under way.
struct Rollout<'a> {
    service: &'a Service,
    status: &'a UpdateStatus,
    config: UpdateConfig,
}

/// Where a slot stands in an update.
enum Standing {
    /// Needs a new task.
    Stale,
    /// Its new task is on its way, or was started too recently; looked at again then.
    Busy(Option<Stamp>),
    /// Has its new task, since then if this update made it.
    Settled(Option<Stamp>),
}

/// Takes the service's update as far as it may go now.
pub(super) fn run(draft: &mut Draft<'_>, service: &Service, slots: &mut [Slot]) -> Pass {
    let Some(rollout) = Rollout::of(service) else {
        let state = draft.state;
        let is_due = |slot: &Slot| is_stale(state, service, slot) || is_crowded(slot);
        if may_begin(state, service, slots) && slots.iter().any(is_due) {
            let stale = || slots.iter().filter(|slot| is_stale(state, service, slot));
            let is_fresh_template = |slot: &Slot| {
                slot.active().next().is_some() && slot.active().all(|t| !is_dirty(service, t))
            };
            let restarts = stale().next().is_some() && stale().all(is_fresh_template);
            let message = if restarts { RESTARTING } else { "update in progress" };
            draft.set_update(service, UpdateState::Updating, String::from(message), restarts);
        }
        return Pass::Done;
    };
    if let Some(task) = rollout.failure(draft.state, slots)
        && rollout.react(draft, task)
    {
        return Pass::Done;
    }
    rollout.advance(draft, slots)
}

/// What an update says that replaces tasks for no other reason.
const RESTARTING: &str = "restarting tasks: what they are granted has new versions";

/// Whether an update may begin by itself. One that failed waits for the user, and so do restarts
/// that failed; but a version that came since then may be what they wait for.
fn may_begin(state: &State, service: &Service, slots: &[Slot]) -> bool {
    let Some(update) = &service.update else { return true };
    match update.state {
        UpdateState::Paused if update.restarts => {
            let is_new = |task: &Arc<Task>| {
                let latest = task.started_with.iter().filter_map(|(id, version)| {
                    state.material(id)?.latest().filter(|latest| latest.number > *version)
                });
                latest.map(|latest| latest.created).any(|created| created > update.started)
            };
            slots.iter().flat_map(|slot| slot.active().chain(slot.newest())).any(is_new)
        }
        UpdateState::Paused | UpdateState::RollbackPaused => false,
        _ => true,
    }
}

/// Whether no task of the present template runs in a slot where one is to, with the present
/// versions of what restarts it. A slot that ended for good is left alone unless its last task is
/// of another template.
pub(super) fn is_stale(state: &State, service: &Service, slot: &Slot) -> bool {
    let fresh = slot.active().any(|task| !is_outdated(state, service, task));
    match slot.active().next() {
        Some(task) => !fresh && is_outdated(state, service, task),
        None => slot.newest().is_some_and(|task| is_dirty(service, task)),
    }
}

/// Whether an old and a new task are to run side by side.
fn is_crowded(slot: &Slot) -> bool {
    slot.active().count() > 1
}

impl<'a> Rollout<'a> {
    fn of(service: &'a Service) -> Option<Self> {
        let status = service.update.as_ref().filter(|_| is_in_progress(service))?;
        let config = match status.state {
            UpdateState::RollbackStarted => &service.spec.rollback,
            _ => &service.spec.update,
        };
        Some(Self { service, status, config: config.clone().unwrap_or_default() })
    }

    fn is_rollback(&self) -> bool {
        self.status.state == UpdateState::RollbackStarted
    }

    fn monitor(&self) -> Span {
        self.config.monitor.unwrap_or(limits::UPDATE_MONITOR)
    }

    /// A failed task, if more slots have one than may.
    fn failure(&self, state: &State, slots: &[Slot]) -> Option<TaskId> {
        let mut failures = slots
            .iter()
            .filter(|slot| slot.is_occupied())
            .filter_map(|slot| slot.tasks.iter().find(|task| self.has_failed(state, task)));
        let first = failures.next()?.id;
        let failed = 1 + failures.count() as u64;
        let total = slots.iter().filter(|slot| slot.is_occupied()).count() as u64;
        let tolerated = u64::from(self.config.max_failure_ratio_ppm);
        (failed * 1_000_000 > tolerated * total).then_some(first)
    }

    /// Whether a task that this update made ended by itself before it ran for long enough.
    fn has_failed(&self, state: &State, task: &Task) -> bool {
        let early = |since| task.meta.updated.since(since) <= self.monitor();
        has_ended_by_itself(task)
            && task.meta.created >= self.status.started
            && !is_outdated(state, self.service, task)
            && task.running_since.is_none_or(early)
    }

    /// Does what the service wants done on failure; whether that ends the update.
    fn react(&self, draft: &mut Draft<'_>, task: TaskId) -> bool {
        let cause = format!("due to failure or early termination of task {task}");
        let (service, rollback) = (self.service, self.is_rollback());
        match self.config.failure_action {
            FailureAction::Continue => return false,
            // Restarts come from no spec, so there is none to go back to.
            FailureAction::Pause | FailureAction::Rollback if self.status.restarts => {
                let message = format!("restarts paused {cause}");
                draft.set_update(service, UpdateState::Paused, message, true);
            }
            FailureAction::Rollback if !rollback && can_go_back(draft.state, service) => {
                draft.decisions.push(Decision::ServiceRollback {
                    id: service.id,
                    spec_version: service.spec_version,
                    message: format!("update rolled back {cause}"),
                });
            }
            FailureAction::Pause | FailureAction::Rollback if rollback => {
                let message = format!("rollback paused {cause}");
                draft.set_update(service, UpdateState::RollbackPaused, message, false);
            }
            FailureAction::Pause | FailureAction::Rollback => {
                let message = format!("update paused {cause}");
                draft.set_update(service, UpdateState::Paused, message, false);
            }
        }
        true
    }

    fn advance(&self, draft: &mut Draft<'_>, slots: &mut [Slot]) -> Pass {
        let now = draft.now;
        let (mut busy, mut stale, mut settled) = (0u64, 0u64, self.status.started);
        let mut wake = None;
        for slot in slots.iter_mut().filter(|slot| slot.is_occupied()) {
            if draft.is_full() {
                return Pass::Stopped;
            }
            self.end_predecessors(draft, slot);
            match self.standing(draft.state, slot, now) {
                Standing::Stale => stale += 1,
                Standing::Busy(until) => {
                    busy += 1;
                    wake = wake.into_iter().chain(until).min();
                }
                Standing::Settled(since) => settled = settled.max(since.unwrap_or_default()),
            }
        }
        if busy == 0 && stale == 0 {
            let due = settled + self.monitor();
            // An update that found nothing to replace has nothing to watch either.
            if settled == self.status.started || due <= now {
                self.complete(draft);
            } else {
                draft.wake(due, self.service.id, 0);
            }
            return Pass::Done;
        }
        if let Some(at) = wake {
            draft.wake(at, self.service.id, 0);
        }
        let parallelism = match self.config.parallelism {
            0 => u64::MAX,
            limit => limit,
        };
        let room = parallelism.saturating_sub(busy);
        self.replace(draft, slots, room)
    }

    fn complete(&self, draft: &mut Draft<'_>) {
        let (state, message) = if self.is_rollback() {
            (UpdateState::RollbackCompleted, "rollback completed")
        } else if self.status.restarts {
            (UpdateState::Completed, "restarts completed")
        } else {
            (UpdateState::Completed, "update completed")
        };
        draft.set_update(self.service, state, String::from(message), self.status.restarts);
    }

    /// Ends tasks beside a slot's new one as soon as that one may stand alone.
    fn end_predecessors(&self, draft: &mut Draft<'_>, slot: &mut Slot) {
        let state = draft.state;
        let new = slot.active().filter(|task| !is_outdated(state, self.service, task));
        let Some(new) = new.max_by_key(|task| task.status.state).map(Arc::clone) else { return };
        if self.config.order == UpdateOrder::StopFirst || new.status.state == TaskState::Running {
            let is_other = |task: &Task| task.id != new.id && task.desired <= TaskState::Running;
            draft.desire(slot, TaskState::Shutdown, is_other);
        }
    }

    fn standing(&self, state: &State, slot: &Slot, now: Stamp) -> Standing {
        if is_stale(state, self.service, slot) {
            return Standing::Stale;
        }
        let Some(new) = slot.newest() else { return Standing::Settled(None) };
        let is_ours = |task: &Task| task.meta.created >= self.status.started;
        // What restarts over and over neither holds the update up nor lets it wait longer.
        let has_failed =
            |task: &Arc<Task>| !is_outdated(state, self.service, task) && has_ended_by_itself(task);
        let restarts = new.attempts > 0 && slot.tasks.iter().any(has_failed);
        match new.running_since {
            _ if is_crowded(slot) => Standing::Busy(None),
            _ if restarts => Standing::Settled(None),
            None if !new.is_done() => Standing::Busy(None),
            _ if !is_ours(new) => Standing::Settled(None),
            Some(since) if since + self.config.delay > now => {
                Standing::Busy(Some(since + self.config.delay))
            }
            Some(since) => Standing::Settled(Some(since)),
            None => Standing::Settled(Some(new.meta.updated)),
        }
    }

    /// Gives up to `room` stale slots their new task.
    fn replace(&self, draft: &mut Draft<'_>, slots: &mut [Slot], room: u64) -> Pass {
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let state = draft.state;
        let stale = slots.iter_mut().filter(|slot| is_stale(state, self.service, slot));
        for slot in stale.take(room) {
            if draft.is_full() {
                return Pass::Stopped;
            }
            if !draft.has_spare_room(self.service.id) {
                break;
            }
            // Beside the new one at most one stays: the furthest, not what an update before this
            // one had begun.
            let stays = match self.config.order {
                UpdateOrder::StopFirst => None,
                UpdateOrder::StartFirst => slot.active().max_by_key(|task| task.status.state),
            };
            let stays = stays.map(|task| task.id);
            let ends = |task: &Task| task.desired <= TaskState::Running && Some(task.id) != stays;
            draft.desire(slot, TaskState::Shutdown, ends);
            let mut task = draft.task(self.service, slot.number);
            task.desired = first_desire(draft.state, draft.now, slot, &task);
            draft.create(slot, task);
        }
        Pass::Done
    }
}

/// Whether the service has a previous spec and everything that one grants still exists.
fn can_go_back(state: &State, service: &Service) -> bool {
    service.previous.as_ref().is_some_and(|previous| {
        let mut grants = previous.task.container.grants();
        grants.all(|grant| state.material(&grant.id).is_some())
    })
}
