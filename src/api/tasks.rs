//! Tasks.

use std::sync::Arc;

use skep_core::model::task::{Task, TaskState};
use skep_core::state::State;

use super::call::Call;
use super::error::ApiError;
use super::filters::Filters;
use super::reply::{self, Outcome};
use super::{convert, logs, lookup};
use crate::gate::look;

const FILTERS: [&str; 8] =
    ["_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service"];

pub(super) async fn serve(call: Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("GET", []) => list(&call).await,
        ("GET", [word]) => {
            let found = look(&*call.gate, |state| lookup::task(state, word)).await??;
            reply::ok(&convert::task::task(&found))
        }
        ("GET", [word, "logs"]) => logs::task(&call, word).await,
        _ => Err(call.unsupported()),
    }
}

async fn list(call: &Call) -> Outcome {
    let filters = Filters::of(&call.query, &FILTERS)?;
    let mut desired = Vec::new();
    for word in filters.values("desired-state") {
        desired.push(match word {
            "running" => TaskState::Running,
            "shutdown" => TaskState::Shutdown,
            "accepted" => TaskState::Accepted,
            _ => return Err(ApiError::bad(format!("Invalid filter 'desired-state={word}'"))),
        });
    }
    let fresh = filters.truth("_up-to-date")?;
    let found = look(&*call.gate, |state| select(state, &filters, &desired, fresh)).await??;
    reply::ok(&found.iter().map(|task| convert::task::task(task)).collect::<Vec<_>>())
}

/// The tasks that pass every filter. Services and nodes are resolved as everywhere, so one that
/// does not exist is an error.
fn select(
    state: &State,
    filters: &Filters,
    desired: &[TaskState],
    fresh: Option<bool>,
) -> Result<Vec<Arc<Task>>, ApiError> {
    let mut services = Vec::new();
    for word in filters.values("service") {
        services.push(lookup::service(state, word)?.id);
    }
    let mut nodes = Vec::new();
    for word in filters.values("node") {
        nodes.push(lookup::node(state, word)?.id);
    }
    let up_to_date = |task: &Task| {
        state.service(&task.service).is_some_and(|s| s.spec_version == task.spec_version)
    };
    let wanted = |task: &&Arc<Task>| {
        (nodes.is_empty() || task.node.is_some_and(|node| nodes.contains(&node)))
            && (desired.is_empty() || desired.contains(&task.desired))
            && fresh.is_none_or(|fresh| up_to_date(task) == fresh)
            && filters.prefix("id", task.id.as_str())
            && filters.any("name", |name| task.container_name().starts_with(name))
            && filters.labels("label", &task.service_labels)
            && filters.any("runtime", |runtime| runtime == "container")
    };
    // By service the index gives them; the rest of the swarm need not be looked at.
    Ok(if services.is_empty() {
        state.tasks().filter(wanted).cloned().collect()
    } else {
        let of_services = services.iter().flat_map(|id| state.tasks_of_service(id));
        of_services.filter(wanted).cloned().collect()
    })
}
