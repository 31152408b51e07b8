//! Nodes as Docker shows them, and what a user says of one.

use skep_core::model::cluster::Cluster;
use skep_core::model::node::{Availability, Node, NodeSpec, NodeState, Role};

use super::{cluster, version};
use crate::api::error::ApiError;
use crate::api::time::rfc3339;
use crate::api::types::node as wire;
use crate::gate::{NodeView, Reachability};

/// A node, and of a manager what the node that answers, `view`, knows of it.
pub(in crate::api) fn node(node: &Node, swarm: &Cluster, view: &NodeView) -> wire::Node {
    let description = &node.description;
    let state = state_word(node.status.state);
    wire::Node {
        id: node.id.to_string(),
        version: version(node.meta),
        created_at: rfc3339(node.meta.created),
        updated_at: rfc3339(node.meta.updated),
        spec: wire::NodeSpec {
            name: node.spec.name.clone().unwrap_or_default(),
            labels: node.spec.labels.clone(),
            role: role_word(node.spec.role).to_owned(),
            availability: availability_word(node.spec.availability).to_owned(),
        },
        description: wire::Description {
            hostname: description.hostname.clone(),
            platform: wire::Platform {
                architecture: description.architecture.clone(),
                os: description.os.clone(),
            },
            resources: wire::Resources {
                nano_cpus: description.nano_cpus,
                memory_bytes: description.memory_bytes,
            },
            engine: wire::Engine {
                engine_version: description.engine_version.clone(),
                labels: description.engine_labels.clone(),
                plugins: description
                    .plugins
                    .iter()
                    .map(|(kind, name)| wire::Plugin { kind: kind.clone(), name: name.clone() })
                    .collect(),
            },
            tls_info: cluster::node_tls_info(swarm, &node.id),
        },
        status: wire::Status {
            state,
            message: node.status.message.clone(),
            addr: node.status.addr.clone(),
        },
        manager_status: node.manager.as_ref().map(|manager| wire::ManagerStatus {
            leader: view.leader == Some(node.id),
            reachability: reachability(node, view).word(),
            addr: manager.addr.clone(),
        }),
    }
}

pub(in crate::api) fn state_word(state: NodeState) -> &'static str {
    match state {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::Ready => "ready",
        NodeState::Disconnected => "disconnected",
    }
}

/// Whether a manager answers: as Raft has it, else as its agent's session has it.
fn reachability(node: &Node, view: &NodeView) -> Reachability {
    let known = view.managers.iter().find(|manager| manager.node == node.id);
    match (known.map(|manager| manager.reachability), node.status.state) {
        (Some(known), _) => known,
        (_, NodeState::Ready) => Reachability::Reachable,
        (_, NodeState::Unknown) => Reachability::Unknown,
        (_, NodeState::Down | NodeState::Disconnected) => Reachability::Unreachable,
    }
}

pub(in crate::api) fn role_word(role: Role) -> &'static str {
    match role {
        Role::Worker => "worker",
        Role::Manager => "manager",
    }
}

fn availability_word(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    }
}

/// Reads an availability; empty is `active`.
pub(in crate::api) fn availability(word: &str) -> Result<Availability, ApiError> {
    match word.to_ascii_lowercase().as_str() {
        "" | "active" => Ok(Availability::Active),
        "pause" => Ok(Availability::Pause),
        "drain" => Ok(Availability::Drain),
        _ => Err(ApiError::bad(format!("invalid Availability: {word:?}"))),
    }
}

/// Reads what a user says of a node.
pub(in crate::api) fn node_spec(spec: wire::NodeSpec) -> Result<NodeSpec, ApiError> {
    let role = match spec.role.to_ascii_lowercase().as_str() {
        "worker" => Role::Worker,
        "manager" => Role::Manager,
        _ => return Err(ApiError::bad(format!("invalid Role: {:?}", spec.role))),
    };
    if spec.availability.is_empty() {
        return Err(ApiError::bad("invalid Availability: \"\""));
    }
    Ok(NodeSpec {
        name: (!spec.name.is_empty()).then_some(spec.name),
        labels: spec.labels,
        role,
        availability: availability(&spec.availability)?,
    })
}
