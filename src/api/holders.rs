//! Where secrets and configs are held now, and how they are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use skep_core::id::{MaterialId, NodeId};
use skep_core::model::cluster::Cluster;
use skep_core::model::material::{Material, MaterialKind};
use skep_core::state::State;

use super::call::Call;
use super::convert::node::state_word;
use super::error::ApiError;
use super::lookup;
use super::reply::{self, Outcome};
use super::time::rfc3339;
use super::types::holder as wire;
use crate::audit::LastRead;
use crate::gate::{ContainerState, Gate, Holder, Holdings, Refusal, look};
use crate::limits::UPDATE_WAIT_MAX;
use crate::seal::CIPHER;

/// Who holds one of them. With `wait_ms` it is answered once all tasks that can be reached hold
/// what they should, or when that time is up.
pub(super) async fn of_material(kind: MaterialKind, call: &Call, word: &str) -> Outcome {
    let within = wait(call)?;
    let found = look(&*call.gate, |state| lookup::material(state, kind, word)).await??;
    let held = call.gate.holdings(vec![found.id], within).await?;
    let read = call.gate.last_read(found.id).await?;
    // Afterwards: while it waited, versions may have come.
    let shown = look(&*call.gate, |state| {
        let material = lookup::material(state, kind, found.id.as_str())?;
        let cluster = state.cluster().ok_or(Refusal::NotInSwarm)?;
        let shown = holders(state, cluster, &material, &held);
        Ok::<_, ApiError>(wire::Holders { last_read: read.map(|read| last(state, &read)), ..shown })
    });
    reply::ok(&shown.await??)
}

fn wait(call: &Call) -> Result<Duration, ApiError> {
    let wait = Duration::from_millis(call.query.number("wait_ms")?.unwrap_or(0));
    match wait > UPDATE_WAIT_MAX {
        true => Err(ApiError::bad(format!(
            "wait_ms is {} and may be at most {}: ask again after that",
            wait.as_millis(),
            UPDATE_WAIT_MAX.as_millis()
        ))),
        false => Ok(wait),
    }
}

fn holders(
    state: &State,
    cluster: &Cluster,
    material: &Material,
    held: &Holdings,
) -> wire::Holders {
    let of = |task: &Holder| versions_of(task, &material.id);
    let mut numbers: BTreeSet<u64> =
        material.versions.iter().map(|version| version.number).collect();
    numbers.extend(held.tasks.iter().flat_map(of));
    let versions = numbers.into_iter().rev().map(|number| {
        let tasks = || held.tasks.iter().filter(|task| of(task).contains(&number));
        let services: BTreeSet<&str> = tasks().map(|task| task.service_name.as_str()).collect();
        let nodes: BTreeSet<&str> = tasks().map(|task| task.hostname.as_str()).collect();
        wire::HeldVersion {
            version: number,
            key: state.payload(&material.id, number).map(|sealed| sealed.key),
            services: services.into_iter().map(str::to_owned).collect(),
            nodes: nodes.into_iter().map(str::to_owned).collect(),
            tasks: tasks().count(),
        }
    });
    wire::Holders {
        id: material.id.to_string(),
        name: material.spec.name.clone(),
        cipher: CIPHER,
        key: key(cluster),
        autolock: cluster.spec.autolock,
        versions: versions.collect(),
        tasks: held.tasks.iter().map(|task| holder(task, &material.id)).collect(),
        last_read: None,
        absent_managers: ids(&held.absent),
    }
}

fn last(state: &State, read: &LastRead) -> wire::LastRead {
    let node = state.node(&read.node);
    wire::LastRead {
        at: rfc3339(read.at),
        version: read.version,
        task: read.task.to_string(),
        node: read.node.to_string(),
        hostname: node.map(|node| node.description.hostname.clone()).unwrap_or_default(),
    }
}

fn versions_of(task: &Holder, id: &MaterialId) -> Vec<u64> {
    task.held.iter().filter(|(held, _)| held == id).map(|(_, version)| *version).collect()
}

pub(super) fn holder(task: &Holder, id: &MaterialId) -> wire::Holder {
    wire::Holder {
        task: task.task.to_string(),
        service: task.service_name.clone(),
        node: task.node.to_string(),
        hostname: task.hostname.clone(),
        status: state_word(task.status),
        reachable: task.is_reachable,
        complies: task.complies,
        revoked: task.revoked.contains(id),
        versions: versions_of(task, id),
    }
}

pub(super) fn ids(nodes: &[NodeId]) -> Vec<String> {
    nodes.iter().map(ToString::to_string).collect()
}

/// The key that seals now.
fn key(cluster: &Cluster) -> Option<wire::Key> {
    let current = cluster.ring.keys.iter().find(|key| key.version == cluster.ring.current)?;
    Some(wire::Key { version: current.version, created_at: rfc3339(current.created) })
}

/// What `info` says of secrets.
pub(super) async fn info(gate: &dyn Gate) -> Outcome {
    let swarm = match gate.node().manager {
        // A swarm without a leader must not keep a node from saying what it knows.
        true => look(gate, |state| state.cluster().map(|cluster| kept(state, cluster))).await.ok(),
        false => None,
    };
    let holds = |container: &crate::gate::ContainerView| {
        container.state == ContainerState::Running
            && !container.task.spec.container.secrets.is_empty()
    };
    let tasks_here = gate.containers().iter().filter(|container| holds(container)).count();
    reply::ok(&wire::SecretInfo { swarm: swarm.flatten(), tasks_here })
}

fn kept(state: &State, cluster: &Cluster) -> wire::Kept {
    let secrets = || state.materials().filter(|material| material.kind == MaterialKind::Secret);
    wire::Kept {
        cipher: CIPHER,
        key: key(cluster),
        autolock: cluster.spec.autolock,
        secrets: secrets().count(),
        versions: secrets().map(|secret| secret.versions.len()).sum(),
    }
}

/// What the tasks of a node hold: what stays readable there when it is removed without being
/// reached.
pub(super) async fn of_node(call: &Call, word: &str) -> Outcome {
    let (node, materials) = look(&*call.gate, |state| {
        let node = lookup::node(state, word)?;
        let tasks = state.tasks_of_node(&node.id);
        let tasks = tasks.filter(|task| !task.status.state.is_terminal());
        let granted = tasks.flat_map(|task| task.spec.container.grants().map(|grant| grant.id));
        let materials: BTreeSet<MaterialId> = granted.collect();
        Ok::<_, ApiError>((node, materials))
    })
    .await??;
    let ids = materials.into_iter().collect();
    let mut held = call.gate.holdings(ids, Duration::ZERO).await?.tasks;
    held.retain(|task| task.node == node.id);
    let shown = look(&*call.gate, |state| {
        let there = |is_reachable: bool| {
            let tasks = held.iter().filter(|task| task.is_reachable == is_reachable);
            held_there(state, tasks)
        };
        wire::NodeHoldings {
            node: node.id.to_string(),
            hostname: node.description.hostname.clone(),
            reached: there(true),
            unreachable: there(false),
        }
    });
    reply::ok(&shown.await?)
}

fn held_there<'a>(state: &State, tasks: impl Iterator<Item = &'a Holder>) -> Vec<wire::HeldThere> {
    let mut by_material: BTreeMap<MaterialId, BTreeSet<u64>> = BTreeMap::new();
    for (id, version) in tasks.flat_map(|task| &task.held) {
        by_material.entry(*id).or_default().insert(*version);
    }
    let mut shown: Vec<_> = by_material
        .into_iter()
        .filter_map(|(id, versions)| {
            let material: &Arc<Material> = state.material(&id)?;
            Some(wire::HeldThere {
                kind: material.kind.kind().word(),
                id: id.to_string(),
                name: material.spec.name.clone(),
                versions: versions.into_iter().collect(),
            })
        })
        .collect();
    shown.sort_by(|a, b| (b.kind, &a.name).cmp(&(a.kind, &b.name)));
    shown
}
