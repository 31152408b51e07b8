//! What agents observed and what the control loop decided. Neither is ever refused: what no
//! longer fits has no effect.

use alloc::string::String;

use super::{Change, Writer};
use crate::command::{Decision, TaskReport};
use crate::control::{PENDING, is_dirty, started_with};
use crate::id::{NodeId, TaskId};
use crate::limits;
use crate::model::Meta;
use crate::model::task::{Task, TaskState, TaskStatus};

/// What a task says that has just been given its node.
pub(crate) const ASSIGNED: &str = "scheduler assigned task to node";

impl Writer<'_> {
    pub(super) fn task_reports(&mut self, reports: &[TaskReport]) -> u64 {
        for report in reports {
            let Some(old) = self.state.tasks.get(&report.id) else { continue };
            if old.node != Some(report.node) || !is_newer(&report.status, &old.status) {
                continue;
            }
            let mut task = Task::clone(old);
            let ran = matches!(report.status.state, TaskState::Running | TaskState::Complete);
            if ran && task.running_since.is_none() {
                task.running_since = Some(self.now);
            }
            task.status = report.status.clone();
            self.write_task(task);
        }
        0
    }

    pub(super) fn decisions(&mut self, decisions: &[Decision]) -> u64 {
        for decision in decisions {
            match decision {
                Decision::TaskCreate(task) => self.create(task),
                Decision::TaskDesire { id, desired } => self.desire(id, *desired),
                Decision::TaskAssign { id, node } => self.assign(id, node),
                Decision::TaskStatus { id, status } => self.explain(id, status),
                Decision::TaskRemove { id } => self.forget(id),
                Decision::ServiceStatus { id, spec_version, update } => {
                    self.set_update(id, *spec_version, update);
                }
                Decision::ServiceRollback { id, spec_version, message } => {
                    self.roll_back_failed(id, *spec_version, message);
                }
            }
        }
        0
    }

    /// Adds a task, unless its slot has one of the present template that is to run. One whose
    /// node was removed meanwhile waits for another: nothing else tells the loop of its slot.
    fn create(&mut self, task: &Task) {
        let Some(service) = self.state.services.get(&task.service) else { return };
        let is_rival = |t: &Task| t.desired <= TaskState::Running && !is_dirty(service, t);
        let mut slot = self.state.tasks_of_slot(&task.service, task.slot);
        let fits = service.spec_version == task.spec_version
            && !self.state.tasks.contains_key(&task.id)
            && self.state.tasks.len() < limits::TASKS + limits::TASKS_SPARE
            && !slot.any(|task| is_rival(task));
        drop(slot);
        if fits {
            let started_with = started_with(self.state, &task.spec);
            let mut task = Task { meta: Meta::new(self.now), started_with, ..task.clone() };
            if task.node.is_some_and(|node| !self.state.nodes.contains_key(&node)) {
                let (at, state, message) = (self.now, TaskState::Pending, String::from(PENDING));
                task.node = None;
                task.status = TaskStatus { at, state, message, err: None, container: None };
            }
            self.state.share_with_service(&mut task);
            self.changes.push(Change::Task(task.id));
            self.state.put_task(task);
        }
    }

    /// Moves a task's desired state, forward only.
    pub(super) fn desire(&mut self, id: &TaskId, desired: TaskState) {
        let Some(old) = self.state.tasks.get(id) else { return };
        if desired > old.desired {
            self.write_task(Task { desired, ..Task::clone(old) });
        }
    }

    fn assign(&mut self, id: &TaskId, node: &NodeId) {
        let Some(old) = self.state.tasks.get(id) else { return };
        if old.node.is_some() || old.is_done() || !self.state.nodes.contains_key(node) {
            return;
        }
        let status = TaskStatus {
            at: self.now,
            state: TaskState::Assigned,
            message: String::from(ASSIGNED),
            err: None,
            container: None,
        };
        self.write_task(Task { node: Some(*node), status, ..Task::clone(old) });
    }

    /// Sets the status of a task that no agent speaks for: none has it yet, or its node is gone
    /// for good.
    fn explain(&mut self, id: &TaskId, status: &TaskStatus) {
        let Some(old) = self.state.tasks.get(id) else { return };
        let fits = match old.node {
            None => status.state >= old.status.state,
            Some(_) => status.state == TaskState::Orphaned && !old.status.state.is_terminal(),
        };
        if fits && old.status != *status {
            self.write_task(Task { status: status.clone(), ..Task::clone(old) });
        }
    }

    /// Forgets a task that nothing runs for.
    fn forget(&mut self, id: &TaskId) {
        let Some(old) = self.state.tasks.get(id) else { return };
        let is_gone = old.node.is_none_or(|node| !self.state.nodes.contains_key(&node));
        if is_gone || old.status.state.is_terminal() {
            let service = old.service;
            self.state.remove_task(id);
            self.changes.push(Change::Task(*id));
            self.forget_revocations(&service, Some(id));
        }
    }
}

/// Whether a report is of a later time than what is known. What ended stays as it ended.
fn is_newer(report: &TaskStatus, known: &TaskStatus) -> bool {
    !known.state.is_terminal() && (report.state, report.at) > (known.state, known.at)
}
