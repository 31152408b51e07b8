//! Everything that decides what the swarm does next.

pub mod constraint;

use crate::model::service::Service;
use crate::model::task::{Task, TaskSpec};

/// Whether a task was made from another template than its service has now, so that an update
/// must replace it. `_up-to-date` at the API is the opposite.
#[must_use]
pub fn is_dirty(service: &Service, task: &Task) -> bool {
    task.spec_version != service.spec_version && !TaskSpec::is_same(&task.spec, &service.spec.task)
}
