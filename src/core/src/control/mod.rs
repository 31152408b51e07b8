//! Everything that decides what the swarm does next, as one ordered loop.
//!
//! The leader waits for changes, session events or [`Control::deadline`], calls
//! [`Control::step`], proposes what it returns and waits for the commit before it steps with
//! that commit's changes. Whatever a new leader must know is in the state, so a fresh `Control`
//! picks up where the last one was; what it keeps itself only says where to look. A decision
//! that no longer fits when it is applied has no effect, and the change that made it so brings
//! the loop back to the same place.

pub mod constraint;
mod draft;
mod filter;
mod loads;
pub mod members;
#[cfg(test)]
mod members_tests;
mod orchestrator;
mod reaper;
mod restart;
mod scheduler;
mod sessions;
#[cfg(test)]
mod sessions_tests;
mod spread;
mod updater;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::mem;

use crate::apply::Change;
use crate::command::Command;
use crate::id::{MaterialId, NodeId, ServiceId};
use crate::model::material::Grant;
use crate::model::service::{Service, ServiceMode};
use crate::model::task::{Task, TaskSpec, TaskState};
use crate::state::State;
use crate::time::Stamp;

pub(crate) use draft::PENDING;
use draft::{Draft, Mint, Slot};
pub use sessions::SessionEvent;
use sessions::{Reports, Sessions};

/// What makes the loop step.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// These objects were written.
    Changes(&'a [Change]),
    /// This happened to sessions of nodes.
    Sessions(&'a [SessionEvent]),
    /// The deadline has come.
    Deadline,
}

/// The control loop of the leader.
#[derive(Debug)]
pub struct Control {
    mint: Mint,
    sessions: Sessions,
    /// Where to look in the next step.
    dirty: BTreeMap<ServiceId, Dirty>,
    /// Whether tasks that wait for a node may find one now.
    schedule: bool,
    /// When to look where; slot 0 stands for the whole service. Looking in vain does no harm.
    timers: BTreeSet<(Stamp, ServiceId, u64)>,
    /// Nothing was looked at yet.
    is_fresh: bool,
    now: Stamp,
}

/// What of a service is to be looked at.
#[derive(Debug)]
enum Dirty {
    Whole,
    Slots(BTreeSet<u64>),
}

/// Whether a pass did all there was to do, or stopped at the batch's bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Done,
    Stopped,
}

impl Control {
    /// A loop that mints its tasks' ids from `seed`, which no two loops may share.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            mint: Mint::new(seed),
            sessions: Sessions::default(),
            dirty: BTreeMap::new(),
            schedule: true,
            timers: BTreeSet::new(),
            is_fresh: true,
            now: Stamp(0),
        }
    }

    /// What to propose now, in this order: at most one report of nodes and one batch of
    /// decisions.
    pub fn step(&mut self, state: &State, input: Input<'_>, now: Stamp) -> Vec<Command> {
        self.now = now.max(state.last_stamp());
        if mem::take(&mut self.is_fresh) {
            self.sessions.count_all_as_heard(state, self.now);
            let removed = state.index.removed_services.iter();
            for id in removed.chain(state.services.keys()) {
                self.dirty.insert(*id, Dirty::Whole);
            }
        }
        let mut reports = Reports::default();
        match input {
            Input::Changes(changes) => {
                changes.iter().for_each(|change| self.note(state, change));
            }
            Input::Sessions(events) => self.sessions.take(state, events, self.now, &mut reports),
            Input::Deadline => {}
        }
        self.sessions.expire(state, self.now, &mut reports);
        while let Some(lost) = self.sessions.next_lost(self.now) {
            self.mark_tasks_of(state, &lost);
        }
        self.ring_timers(state);

        let mut draft = Draft::new(state, self.now, &mut self.mint, &mut self.timers);
        let mut later = BTreeMap::new();
        while !draft.is_full()
            && let Some((id, dirty)) = self.dirty.pop_first()
        {
            if service_passes(&mut draft, &id, &dirty) == Pass::Stopped {
                later.insert(id, dirty);
            }
        }
        self.dirty.extend(later);
        if self.schedule || draft.has_made() {
            self.schedule = scheduler::run(&mut draft, self.schedule) == Pass::Stopped;
        }

        let mut commands = Vec::new();
        let decisions = draft.decisions;
        let reports = reports.into_news();
        if !reports.is_empty() {
            commands.push(Command::NodeReport(reports));
        }
        if !decisions.is_empty() {
            commands.push(Command::Control(decisions));
        }
        commands
    }

    /// When to step even if nothing happens. With work left over that is at once, after the
    /// commit of what the last step returned.
    #[must_use]
    pub fn deadline(&self) -> Option<Stamp> {
        if !self.dirty.is_empty() || self.schedule || self.is_fresh {
            return Some(self.now);
        }
        let timer = self.timers.first().map(|(at, _, _)| *at);
        timer.into_iter().chain(self.sessions.deadline()).min()
    }

    fn note(&mut self, state: &State, change: &Change) {
        match change {
            Change::Cluster | Change::Material(_) => {}
            Change::Node(id) => {
                self.schedule = true;
                self.sessions.notice(state, id, self.now);
                self.mark_tasks_of(state, id);
            }
            Change::Service(id) => {
                self.dirty.insert(*id, Dirty::Whole);
            }
            Change::Task(id) => {
                let Some(task) = state.task(id) else { return };
                self.mark(state, &task.service, task.slot);
                // A decision of the past may have emptied a slot that is wanted again since.
                let mut slot = state.tasks_of_slot(&task.service, task.slot);
                if slot.all(|task| task.desired == TaskState::Remove) {
                    self.dirty.insert(task.service, Dirty::Whole);
                }
                // It may have been made for a node that was gone by then.
                let is_new = task.node.is_none() && !task.is_done() && task.status.err.is_none();
                let is_room = task.is_done() && !state.index.unassigned.is_empty();
                self.schedule |= is_new || is_room;
            }
        }
    }

    fn mark_tasks_of(&mut self, state: &State, node: &NodeId) {
        for task in state.tasks_of_node(node) {
            self.mark(state, &task.service, task.slot);
        }
    }

    /// Marks a slot, or the whole service (`slot` 0) if it counts its slots now, or has one too
    /// many.
    fn mark(&mut self, state: &State, service: &ServiceId, slot: u64) {
        let counts = state.service(service).is_some_and(|service| {
            let ServiceMode::Replicated { replicas } = service.spec.mode else { return false };
            updater::is_in_progress(service) || slot > replicas
        });
        if slot == 0 || counts {
            self.dirty.insert(*service, Dirty::Whole);
            return;
        }
        let dirty = self.dirty.entry(*service).or_insert_with(|| Dirty::Slots(BTreeSet::new()));
        if let Dirty::Slots(slots) = dirty {
            slots.insert(slot);
        }
    }

    fn ring_timers(&mut self, state: &State) {
        while let Some((at, service, slot)) = self.timers.first().copied() {
            if at > self.now {
                break;
            }
            self.timers.pop_first();
            self.mark(state, &service, slot);
        }
    }
}

/// The passes over one service. Each slot's decisions stay together in one batch.
fn service_passes(draft: &mut Draft<'_>, id: &ServiceId, dirty: &Dirty) -> Pass {
    let mut slots = match dirty {
        Dirty::Whole => Slot::all(draft.state, id),
        Dirty::Slots(numbers) => {
            numbers.iter().map(|number| Slot::load(draft.state, id, *number)).collect()
        }
    };
    let Some(service) = draft.state.service(id) else {
        return reaper::remove_all(draft, &mut slots);
    };
    let mut pass = restart::replace_ended(draft, service, &mut slots);
    if matches!(dirty, Dirty::Whole) && pass == Pass::Done {
        pass = orchestrator::scale(draft, service, &mut slots);
        if pass == Pass::Done {
            pass = updater::run(draft, service, &mut slots);
        }
    }
    let ends = [restart::start_due(draft, &mut slots), reaper::run(draft, &slots)];
    if ends.contains(&Pass::Stopped) { Pass::Stopped } else { pass }
}

/// What of a template restarts its tasks on change, each with its latest version.
pub(crate) fn started_with(state: &State, spec: &TaskSpec) -> Vec<(MaterialId, u64)> {
    let restarting = spec.container.grants().filter(|grant| grant.restarts());
    let latest = |grant: &Grant| Some((grant.id, state.material(&grant.id)?.last_version));
    restarting.filter_map(latest).collect()
}

/// Whether a task was made from another template than its service has now, so that an update
/// must replace it. `_up-to-date` at the API is the opposite.
#[must_use]
pub fn is_dirty(service: &Service, task: &Task) -> bool {
    task.spec_version != service.spec_version && !TaskSpec::is_same(&task.spec, &service.spec.task)
}
