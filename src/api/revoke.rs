//! Taking secrets and configs back from tasks that run.

use http::HeaderMap;
use hyper::body::Incoming;
use skep_core::id::{MaterialId, ServiceId, TaskId};
use skep_core::model::material::{Material, MaterialKind, Revocation};
use skep_core::state::State;

use super::call::{Call, check_json, collect};
use super::error::ApiError;
use super::holders::{holder, ids};
use super::lookup;
use super::reply::{self, Outcome};
use super::types::holder as wire;
use crate::gate::{Holder, Holdings, Request, look};
use crate::limits::REVOKE_WAIT;

/// What is revoked, and from whom: none means all.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    id: MaterialId,
    service: Option<ServiceId>,
    task: Option<TaskId>,
}

/// Revokes, and answers once it is in force wherever it can be, or after a bound.
pub(super) async fn serve(kind: MaterialKind, call: Call, word: &str) -> Outcome {
    let uid = call.peer.uid();
    let sent = read(&call.headers, call.body).await?;
    let wanted = look(&*call.gate, |state| find(state, kind, word, &sent)).await??;
    let Wanted { id, service, task } = wanted;
    call.gate.submit(Request::MaterialRevoke { id, service, task, uid }).await?;
    let held = call.gate.holdings(vec![id], REVOKE_WAIT).await?;
    let shown = look(&*call.gate, |state| {
        let material = lookup::material(state, kind, id.as_str())?;
        Ok::<_, ApiError>(show(state, &wanted, &material, &held))
    });
    reply::ok(&shown.await??)
}

/// A slip in a field's name would mean that all lose it: none is passed over.
async fn read(headers: &HeaderMap, body: Incoming) -> Result<wire::Revoke, ApiError> {
    check_json(headers)?;
    let bytes = collect(body).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        ApiError::bad(format!(
            "invalid JSON: {error}: send an object with Service and Task, either of which may be \
             missing"
        ))
    })
}

fn find(
    state: &State,
    kind: MaterialKind,
    word: &str,
    sent: &wire::Revoke,
) -> Result<Wanted, ApiError> {
    let id = lookup::material(state, kind, word)?.id;
    // A service that is gone may have tasks left that read it: its id still means something.
    let service = |word: &str| match lookup::service(state, word) {
        Ok(service) => Ok(service.id),
        Err(missing) => word.parse().map_err(|_| missing),
    };
    let task = |word: &str| lookup::task(state, word).map(|task| task.id);
    Ok(Wanted {
        id,
        service: sent.service.as_deref().map(service).transpose()?,
        task: sent.task.as_deref().map(task).transpose()?,
    })
}

impl Wanted {
    fn made(&self, entry: &Revocation) -> bool {
        match self.task {
            Some(task) => entry.task == Some(task),
            None => entry.task.is_none() && self.service.is_none_or(|id| id == entry.service),
        }
    }

    fn concerns(&self, task: &Holder) -> bool {
        self.task.is_none_or(|id| id == task.task)
            && self.service.is_none_or(|id| id == task.service)
            && task.revoked.contains(&self.id)
    }
}

fn show(state: &State, wanted: &Wanted, material: &Material, held: &Holdings) -> wire::Revoked {
    let name = |id: &ServiceId| match state.service(id) {
        Some(service) => service.spec.name.clone(),
        None => id.to_string(),
    };
    let entries: Vec<&Revocation> =
        material.revoked.iter().filter(|entry| wanted.made(entry)).collect();
    let some = |is_wanted: fn(&Holder) -> bool| {
        let tasks = held.tasks.iter().filter(|task| wanted.concerns(task) && is_wanted(task));
        tasks.map(|task| holder(task, &wanted.id)).collect()
    };
    wire::Revoked {
        id: wanted.id.to_string(),
        name: material.spec.name.clone(),
        version: entries.iter().map(|entry| entry.up_to).max().unwrap_or_default(),
        services: entries.iter().map(|entry| name(&entry.service)).collect(),
        task: wanted.task.map(|task| task.to_string()),
        tasks: some(|task| task.is_reachable && task.complies),
        late: some(|task| task.is_reachable && !task.complies),
        unreachable: some(|task| !task.is_reachable),
        absent_managers: ids(&held.absent),
    }
}
