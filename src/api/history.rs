//! The versions of a secret or config: who made them, who uses them, and from whom they are revoked.

use std::collections::{BTreeMap, BTreeSet};

use skep_core::id::{MaterialId, NodeId, ServiceId};
use skep_core::model::container::ContainerSpec;
use skep_core::model::material::{Author, Material, MaterialKind, MaterialVersion, Revocation};
use skep_core::state::State;

use super::call::Call;
use super::error::ApiError;
use super::lookup;
use super::reply::{self, Outcome};
use super::time::rfc3339;
use super::types::material as wire;
use crate::gate::look;

/// All versions, the latest first.
pub(super) async fn serve(kind: MaterialKind, call: &Call, word: &str) -> Outcome {
    let shown = look(&*call.gate, |state| {
        let material = lookup::material(state, kind, word)?;
        let mut users = users(state, &material);
        let versions = material.versions.iter().rev();
        let mut show = |it: &MaterialVersion| {
            let users = users.remove(&it.number).unwrap_or_default();
            show(state, &material, it, users)
        };
        Ok::<_, ApiError>(versions.map(&mut show).collect::<Vec<_>>())
    });
    reply::ok(&shown.await??)
}

/// The services that use a version.
type Users = BTreeMap<ServiceId, wire::Use>;

/// Versions that somebody uses, with their users.
fn users(state: &State, material: &Material) -> BTreeMap<u64, Users> {
    let latest = material.latest().map(|latest| latest.number).unwrap_or_default();
    let mut all: BTreeMap<u64, Users> = BTreeMap::new();
    let mut note = |version: u64, id: ServiceId, name: &str, change: &dyn Fn(&mut wire::Use)| {
        let user = all.entry(version).or_default().entry(id).or_insert_with(|| wire::Use {
            service_id: id.to_string(),
            service: name.to_owned(),
            pinned: false,
            follows: false,
            tasks: 0,
        });
        change(user);
    };
    for service in state.services() {
        let name = service.spec.name.as_str();
        for pin in pins(&service.spec.task.container, &material.id) {
            note(pin.unwrap_or(latest), service.id, name, &|user| match pin {
                Some(_) => user.pinned = true,
                None => user.follows = true,
            });
        }
        // What it may go back to is kept only where it is pinned.
        let before = service.previous.iter();
        for pin in before.flat_map(|spec| pins(&spec.task.container, &material.id)).flatten() {
            note(pin, service.id, name, &|user| user.pinned = true);
        }
    }
    for id in state.services_holding(&material.id) {
        for task in state.tasks_of_service(&id).filter(|task| !task.status.state.is_terminal()) {
            for pin in pins(&task.spec.container, &material.id) {
                note(pin.unwrap_or(latest), id, &task.service_name, &|user| user.tasks += 1);
            }
        }
    }
    all
}

/// To which versions a container is granted this; none for the latest.
fn pins(container: &ContainerSpec, id: &MaterialId) -> BTreeSet<Option<u64>> {
    let grants = container.grants().filter(|grant| grant.id == *id);
    grants.map(|grant| grant.pin).collect()
}

fn show(
    state: &State,
    material: &Material,
    version: &MaterialVersion,
    users: Users,
) -> wire::MaterialVersion {
    let Author { node, uid } = version.by;
    let mut in_use_by: Vec<wire::Use> = users.into_values().collect();
    in_use_by.sort_by(|a, b| a.service.cmp(&b.service));
    let revoked = material.revoked.iter().filter(|entry| version.number <= entry.up_to);
    wire::MaterialVersion {
        version: version.number,
        created_at: rfc3339(version.created),
        size: version.size,
        node: node.to_string(),
        hostname: hostname(state, &node),
        uid: (uid != Author::UNKNOWN_UID).then_some(uid),
        repeats: version.of,
        services: in_use_by.iter().map(|user| user.service.clone()).collect(),
        in_use_by,
        revoked_from: revoked.map(|entry| revoked_from(state, entry)).collect(),
    }
}

fn revoked_from(state: &State, entry: &Revocation) -> wire::RevokedFrom {
    // Of a service that is gone, tasks may still remain.
    let name = state.service(&entry.service).map(|service| service.spec.name.clone());
    wire::RevokedFrom {
        service_id: entry.service.to_string(),
        service: name.unwrap_or_else(|| entry.service.to_string()),
        task_id: entry.task.map(|task| task.to_string()),
        up_to: entry.up_to,
        at: rfc3339(entry.at),
    }
}

fn hostname(state: &State, node: &NodeId) -> String {
    state.node(node).map(|node| node.description.hostname.clone()).unwrap_or_default()
}
