//! What questions about the audit are answered with.

use minicbor::{Decode, Encode};
use skep_core::id::{NodeId, TaskId};
use skep_core::time::Stamp;

use super::chain::Finding;
use super::query::Entry;

/// How whole an answer is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Managers that did not answer. What all others keep is here; a record may be with these
    /// alone only if a majority of the managers is among them.
    pub absent: Vec<NodeId>,
    /// Managers that keep pieces which do not open: their disk changed them, or somebody did.
    pub damaged: Vec<NodeId>,
    /// Some managers have dropped what was written before this; zero if none has.
    pub horizon: Stamp,
}

impl Coverage {
    /// The same after another question.
    pub fn add(&mut self, other: Self) {
        for (all, more) in [(&mut self.absent, other.absent), (&mut self.damaged, other.damaged)] {
            all.extend(more);
            all.sort();
            all.dedup();
        }
        self.horizon = self.horizon.max(other.horizon);
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditAnswer {
    /// Records by time, each once, with the rows and events that were asked for.
    pub entries: Vec<Entry>,
    /// Whether there were more: these are the latest.
    pub is_cut: bool,
    /// Whether managers keep different records of the same number: one of them was changed.
    pub is_disputed: bool,
    /// How whole it is.
    pub coverage: Coverage,
}

/// Whether chains hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditVerdict {
    /// By task.
    pub tasks: Vec<TaskVerdict>,
    /// Whether there were more tasks than are checked at once.
    pub is_cut: bool,
    /// How whole it is. A horizon explains chains that start late.
    pub coverage: Coverage,
}

/// Whether the chain of one task holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskVerdict {
    /// The task.
    pub task: TaskId,
    /// Its node; none if no record is left and the task is forgotten.
    pub node: Option<NodeId>,
    /// Records that were checked.
    pub records: usize,
    /// The last record that is there; zero if none is.
    pub last: u64,
    /// The last one that managers remember; zero if they remember none. What follows it is not
    /// bound to anything yet.
    pub anchored: u64,
    /// Whether there were too many to check: what was not is at the end.
    pub is_cut: bool,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl TaskVerdict {
    /// Whether all was checked and nothing is wrong. What was dropped for its age is not.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        !self.is_cut && self.findings.iter().all(Finding::is_explained)
    }

    /// The last record up to which nothing is wrong with the chain. A changed copy takes nothing
    /// from it where another manager keeps the right one.
    #[must_use]
    pub fn intact_to(&self) -> u64 {
        let is_wrong = |finding: &&Finding| {
            !finding.is_explained() && !matches!(finding, Finding::EditedCopy { .. })
        };
        let wrong = self.findings.iter().filter(is_wrong);
        let first = wrong.map(Finding::first).min();
        first.map_or(self.last, |first| self.last.min(first.saturating_sub(1)))
    }
}

/// A manager that a follower hears nothing of at the moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("manager {0} does not answer: what only it keeps is not shown")]
pub struct AuditGap(pub NodeId);

/// The last time that something was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LastRead {
    /// When, by the node's clock.
    #[n(0)]
    pub at: Stamp,
    /// On which node.
    #[n(1)]
    pub node: NodeId,
    /// By which task.
    #[n(2)]
    pub task: TaskId,
    /// Which version.
    #[n(3)]
    pub version: u64,
}
