//! What is wanted of a task.

use std::sync::Arc;

use skep_core::assign::TaskAssignment;
use skep_core::model::task::TaskState;

/// What is wanted of a task.
#[derive(Debug, Clone)]
pub(super) enum Wanted {
    /// It is assigned; its desired state says where to go.
    Run(Arc<TaskAssignment>),
    /// It was assigned, but the node has been without managers for too long: it is to end.
    Isolated(Arc<TaskAssignment>),
    /// It is to end, if it has not, and everything it left is to go.
    Gone,
}

impl Wanted {
    /// Ends what was to run. Whether that is news.
    pub(super) fn isolate(&mut self) -> bool {
        let Self::Run(assignment) = self else { return false };
        *self = Self::Isolated(Arc::clone(assignment));
        true
    }

    /// Its assignment, unless it is to go without a trace.
    pub(super) fn assignment(&self) -> Option<&Arc<TaskAssignment>> {
        match self {
            Self::Run(assignment) | Self::Isolated(assignment) => Some(assignment),
            Self::Gone => None,
        }
    }

    /// Whether it is not to run, or no longer.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Run(assignment) => assignment.task.desired > TaskState::Running,
            Self::Isolated(_) | Self::Gone => true,
        }
    }
}
