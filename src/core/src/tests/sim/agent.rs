//! A node's agent: the real step function of its tasks over a machine that is made up.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use super::random::Random;
use crate::assign::{Assigner, AssignmentDiff};
use crate::command::TaskReport;
use crate::id::{NodeId, TaskId};
use crate::model::task::{TaskState, TaskStatus};
use crate::task_machine::{Action, End, Local, step};
use crate::time::Stamp;

/// A task as its node has it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) desired: TaskState,
    pub(super) local: Local,
    /// When its machine does the next thing for it.
    due: Option<Stamp>,
    is_stopping: bool,
    sent: Option<(TaskState, Option<String>)>,
}

#[derive(Debug)]
pub(super) struct Agent {
    pub(super) node: NodeId,
    pub(super) is_on: bool,
    /// What its session was told; none while it has no session.
    pub(super) session: Option<Assigner>,
    pub(super) held: BTreeMap<TaskId, Held>,
}

/// What an agent's work leads to.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) reports: Vec<TaskReport>,
    pub(super) due: Vec<(Stamp, NodeId, TaskId)>,
}

impl Agent {
    pub(super) fn new(node: NodeId) -> Self {
        Self { node, is_on: true, session: None, held: BTreeMap::new() }
    }

    /// Does what it was told, and says how far it is.
    pub(super) fn take(
        &mut self,
        diff: AssignmentDiff,
        now: Stamp,
        random: &mut Random,
        out: &mut Outbox,
    ) {
        let is_first = diff.sequence == 1;
        if is_first {
            let named = |id: &TaskId| diff.update.iter().any(|a| a.task.id == *id);
            self.held.retain(|id, _| named(id));
        }
        for id in &diff.remove {
            self.held.remove(id);
        }
        for assignment in diff.update {
            let (id, desired) = (assignment.task.id, assignment.task.desired);
            assert_eq!(assignment.task.node, Some(self.node), "{id} is not for this node");
            let is_missing = assignment.missing().next().is_some();
            let held = self.held.entry(id).or_insert_with(|| Held {
                desired,
                local: Local::New,
                due: None,
                is_stopping: false,
                sent: None,
            });
            held.desired = held.desired.max(desired);
            if is_missing && matches!(held.local, Local::New) {
                held.local = Local::Rejected(String::from("a secret is gone"));
            }
            if is_first {
                held.sent = None;
            }
            self.act(id, now, random, out);
        }
    }

    /// Its machine has done something for a task.
    pub(super) fn happen(&mut self, id: TaskId, now: Stamp, random: &mut Random, out: &mut Outbox) {
        let Some(held) = self.held.get_mut(&id) else { return };
        if !self.is_on || held.due.is_none_or(|at| at > now) {
            return;
        }
        held.due = None;
        held.local = match &held.local {
            Local::Preparing => Local::Launched,
            Local::Launched => Local::Loaded,
            Local::Starting => Local::Running { pid: 7 },
            Local::Running { .. } if held.is_stopping => {
                Local::Ended(End { code: 143, ..End::default() })
            }
            other => other.clone(),
        };
        self.act(id, now, random, out);
    }

    /// A task ends by itself, or is found not to run.
    pub(super) fn fail(&mut self, id: TaskId, now: Stamp, random: &mut Random, out: &mut Outbox) {
        let Some(held) = self.held.get_mut(&id) else { return };
        held.local = match &held.local {
            Local::New | Local::Preparing => Local::Rejected(String::from("no such image")),
            Local::Ended(_) | Local::Rejected(_) => return,
            _ => Local::Ended(End { code: (random.below(3)) as i32, ..End::default() }),
        };
        held.due = None;
        self.act(id, now, random, out);
    }

    /// Its machine starts anew: with its disk, where it finds what it held, or without.
    pub(super) fn reboot(&mut self, keeps_disk: bool) {
        self.is_on = true;
        self.session = None;
        if !keeps_disk {
            self.held.clear();
        }
        let lost = String::from("its shim is gone");
        for held in self.held.values_mut() {
            held.due = None;
            if !matches!(held.local, Local::Ended(_) | Local::Rejected(_)) {
                held.local = Local::Ended(End {
                    code: 137,
                    oom: false,
                    error: Some(lost.clone()),
                    ran: true,
                });
            }
        }
    }

    fn act(&mut self, id: TaskId, now: Stamp, random: &mut Random, out: &mut Outbox) {
        let Some(held) = self.held.get_mut(&id) else { return };
        loop {
            let (action, report) = step(held.desired, &held.local);
            let next = (report.state, report.err.clone());
            if held.sent.as_ref() != Some(&next) {
                held.sent = Some(next);
                let (state, err, message) = (report.state, report.err, report.message.into());
                let status = TaskStatus { at: now, state, message, err, container: None };
                out.reports.push(TaskReport { id, node: self.node, status });
            }
            let wait = match action {
                Action::Wait => return,
                Action::Abandon => {
                    held.local = Local::Ended(End::default());
                    held.due = None;
                    continue;
                }
                Action::Prepare => {
                    held.local = Local::Preparing;
                    random.span(50, 1_500)
                }
                Action::Start => {
                    held.local = Local::Starting;
                    random.span(20, 500)
                }
                Action::Stop
                    if matches!(held.local, Local::Running { .. }) && !held.is_stopping =>
                {
                    held.is_stopping = true;
                    if random.once_in(50) {
                        random.span(5_000, 15_000)
                    } else {
                        random.span(0, 900)
                    }
                }
                Action::Load if held.due.is_none() => random.span(0, 200),
                Action::Load | Action::Stop => return,
            };
            held.due = Some(now + wait);
            out.due.push((now + wait, self.node, id));
        }
    }
}
