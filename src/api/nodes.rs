//! Nodes.

use http::StatusCode;
use skep_core::model::node::Node;

use super::call::{Call, read_json};
use super::convert::node as convert;
use super::filters::Filters;
use super::lookup;
use super::reply::{self, Outcome};
use crate::gate::{Gate, Refusal, Request, look};
use skep_core::id::NodeId;

const FILTERS: [&str; 6] = ["id", "label", "membership", "name", "node.label", "role"];

pub(super) async fn serve(call: Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("GET", []) => list(&call).await,
        ("GET", [word]) => {
            let leader = leader(&*call.gate);
            let shown = look(&*call.gate, |state| {
                let cluster = state.cluster().ok_or(Refusal::NotInSwarm)?;
                Ok::<_, super::error::ApiError>(convert::node(
                    &*lookup::node(state, word)?,
                    cluster,
                    leader,
                ))
            })
            .await??;
            reply::ok(&shown)
        }
        ("POST", [word, "update"]) => {
            let version = call.query.version("node")?;
            let spec = convert::node_spec(read_json(&call.headers, call.body).await?)?;
            let found = look(&*call.gate, |state| lookup::node(state, word)).await??;
            call.gate.submit(Request::NodeUpdate { id: found.id, version, spec }).await?;
            reply::empty(StatusCode::OK)
        }
        _ => Err(call.unsupported()),
    }
}

/// The leader, as far as this node knows: itself or somebody.
fn leader(gate: &dyn Gate) -> Option<NodeId> {
    let view = gate.node();
    view.node.filter(|_| view.leader)
}

async fn list(call: &Call) -> Outcome {
    let filters = Filters::of(&call.query, &FILTERS)?;
    let leader = leader(&*call.gate);
    let wanted = |node: &Node| {
        filters.prefix("id", node.id.as_str())
            && filters.prefix("name", &node.description.hostname)
            && filters.labels("label", &node.description.engine_labels)
            && filters.labels("node.label", &node.spec.labels)
            && filters.any("role", |role| role == convert::role_word(node.spec.role))
            && filters.any("membership", |word| word == "accepted")
    };
    let shown: Vec<_> = look(&*call.gate, |state| {
        let cluster = state.cluster().ok_or(Refusal::NotInSwarm)?;
        let nodes = state.nodes().filter(|node| wanted(node));
        Ok::<_, Refusal>(nodes.map(|node| convert::node(node, cluster, leader)).collect())
    })
    .await??;
    reply::ok(&shown)
}
