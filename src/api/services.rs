//! Services.

use std::sync::Arc;

use http::StatusCode;
use skep_core::model::service::{Service, ServiceMode};
use skep_core::model::task::TaskState;
use skep_core::state::State;

use super::call::{Call, discard, read_json};
use super::convert::{spec_in, spec_out};
use super::error::ApiError;
use super::filters::Filters;
use super::reply::{self, Outcome};
use super::types::service::{ServiceCreated, ServiceStatus, ServiceUpdated};
use super::{logs, lookup, names};
use crate::gate::{Done, Request, look};

pub(super) async fn serve(call: Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("GET", []) => list(&call).await,
        ("POST", ["create"]) => create(call).await,
        ("GET", [word]) => {
            let found = find(&call, word).await?;
            reply::ok(&spec_out::service(&found, call.query.flag("insertDefaults")))
        }
        ("DELETE", [word]) => {
            let found = find(&call, word).await?;
            call.gate.submit(Request::ServiceRemove { id: found.id }).await?;
            reply::empty(StatusCode::OK)
        }
        ("POST", [word, "update"]) => update(call, word).await,
        ("GET", [word, "logs"]) => logs::service(&call, word).await,
        _ => Err(call.unsupported()),
    }
}

async fn find(call: &Call, word: &str) -> Result<Arc<Service>, ApiError> {
    look(&*call.gate, |state| lookup::service(state, word)).await?
}

async fn list(call: &Call) -> Outcome {
    let filters = Filters::of(&call.query, &["id", "label", "mode", "name", "runtime"])?;
    let wanted = |service: &Service| {
        filters.prefix("id", service.id.as_str())
            && filters.prefix("name", &service.spec.name)
            && filters.labels("label", &service.spec.labels)
            && filters.any("mode", |mode| mode == mode_word(service.spec.mode))
            && filters.any("runtime", |runtime| runtime == "container")
    };
    let with_status = call.query.flag("status");
    let shown: Vec<_> = look(&*call.gate, |state| {
        let found = state.services().filter(|service| wanted(service));
        found
            .map(|service| {
                let mut shown = spec_out::service(service, false);
                shown.service_status = with_status.then(|| status(state, service));
                shown
            })
            .collect()
    })
    .await?;
    reply::ok(&shown)
}

fn mode_word(mode: ServiceMode) -> &'static str {
    match mode {
        ServiceMode::Replicated { .. } => "replicated",
        ServiceMode::Global => "global",
        ServiceMode::ReplicatedJob { .. } => "replicated-job",
        ServiceMode::GlobalJob => "global-job",
    }
}

fn status(state: &State, service: &Service) -> ServiceStatus {
    let count = |test: fn(&TaskState, &TaskState) -> bool| {
        let tasks = state.tasks_of_service(&service.id);
        tasks.filter(|task| test(&task.status.state, &task.desired)).count() as u64
    };
    let desired = match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas,
        ServiceMode::ReplicatedJob { max_concurrent, .. } => max_concurrent,
        ServiceMode::Global | ServiceMode::GlobalJob => {
            count(|_, desired| *desired <= TaskState::Running)
        }
    };
    ServiceStatus {
        running_tasks: count(|state, _| *state == TaskState::Running),
        desired_tasks: desired,
        completed_tasks: count(|state, _| *state == TaskState::Complete),
    }
}

async fn create(call: Call) -> Outcome {
    let sent = read_json(&call.headers, call.body).await?;
    let mut spec = spec_in::service_spec(sent, call.minor, None)?;
    if spec.name.is_empty() {
        spec.name = look(&*call.gate, names::free).await??;
    }
    match call.gate.submit(Request::ServiceCreate { spec: Box::new(spec) }).await? {
        Done::Service(id) => {
            let created = ServiceCreated { id: id.to_string(), warnings: None };
            reply::json(StatusCode::CREATED, &created)
        }
        other => Err(ApiError::failed(format!("a create was answered with {other:?}"))),
    }
}

async fn update(mut call: Call, word: &str) -> Outcome {
    let version = call.query.version("service")?;
    let found = look(&*call.gate, |state| lookup::service(state, word)).await??;
    let request = match call.query.get("rollback") {
        "" => {
            let sent = read_json(&call.headers, call.body).await?;
            // Where this is not what the client read, the version it names is refused.
            let spec = spec_in::service_spec(sent, call.minor, Some(&found.spec))?;
            let spec = Box::new(spec);
            Request::ServiceUpdate { id: found.id, version, spec }
        }
        "previous" => {
            // The body is the spec as it is; what comes back is the one before.
            discard(&mut call.body).await?;
            Request::ServiceRollback { id: found.id, version }
        }
        other => return Err(ApiError::bad(format!("unrecognized rollback option {other}"))),
    };
    call.gate.submit(request).await?;
    reply::ok(&ServiceUpdated { warnings: None })
}
