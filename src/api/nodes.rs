//! Nodes.

use std::sync::Arc;

use http::StatusCode;
use skep_core::model::node::Node;

use super::call::{Call, read_json};
use super::convert::node as convert;
use super::error::ApiError;
use super::filters::Filters;
use super::lookup;
use super::reply::{self, Outcome};
use crate::gate::{Refusal, Request, look};

const FILTERS: [&str; 6] = ["id", "label", "membership", "name", "node.label", "role"];

pub(super) async fn serve(call: Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("GET", []) => list(&call).await,
        ("GET", [word]) => {
            let (cluster, node) = look(&*call.gate, |state| {
                let cluster = state.cluster().ok_or(Refusal::NotInSwarm)?;
                Ok::<_, ApiError>((Arc::clone(cluster), lookup::node(state, word)?))
            })
            .await??;
            // Afterwards: who led before the state was confirmed may be gone.
            reply::ok(&convert::node(&node, &cluster, &call.gate.node()))
        }
        ("POST", [word, "update"]) => {
            let version = call.query.version("node")?;
            let spec = convert::node_spec(read_json(&call.headers, call.body).await?)?;
            let found = look(&*call.gate, |state| lookup::node(state, word)).await??;
            call.gate.submit(Request::NodeUpdate { id: found.id, version, spec }).await?;
            reply::empty(StatusCode::OK)
        }
        ("DELETE", [word]) => {
            let found = look(&*call.gate, |state| lookup::node(state, word)).await??;
            let force = call.query.flag("force");
            call.gate.submit(Request::NodeRemove { id: found.id, force }).await?;
            reply::empty(StatusCode::OK)
        }
        _ => Err(call.unsupported()),
    }
}

/// Refuses values of a filter that no node can have: a slip would look like an empty swarm.
fn check_words(filters: &Filters, key: &str, known: &[&str]) -> Result<(), ApiError> {
    let unknown = |value: &&str| !known.contains(&value.to_ascii_lowercase().as_str());
    match filters.values(key).find(unknown) {
        Some(value) => Err(ApiError::bad(format!("invalid {key} filter: '{value}'"))),
        None => Ok(()),
    }
}

async fn list(call: &Call) -> Outcome {
    let filters = Filters::of(&call.query, &FILTERS)?;
    check_words(&filters, "role", &["manager", "worker"])?;
    check_words(&filters, "membership", &["accepted", "pending"])?;
    let wanted = |node: &Node| {
        filters.prefix("id", node.id.as_str())
            && filters.prefix("name", &node.description.hostname)
            && filters.labels("label", &node.description.engine_labels)
            && filters.labels("node.label", &node.spec.labels)
            && filters
                .any("role", |role| role.eq_ignore_ascii_case(convert::role_word(node.spec.role)))
            && filters.any("membership", |word| word.eq_ignore_ascii_case("accepted"))
    };
    let (cluster, nodes) = look(&*call.gate, |state| {
        let cluster = state.cluster().ok_or(Refusal::NotInSwarm)?;
        let nodes: Vec<_> = state.nodes().filter(|node| wanted(node)).cloned().collect();
        Ok::<_, Refusal>((Arc::clone(cluster), nodes))
    })
    .await??;
    // Afterwards: who led before the state was confirmed may be gone.
    let view = call.gate.node();
    let shown: Vec<_> = nodes.iter().map(|node| convert::node(node, &cluster, &view)).collect();
    reply::ok(&shown)
}
