//! The swarm itself.

use http::StatusCode;
use skep_core::model::cluster::ClusterSpec;

use super::call::{Call, discard, read_json};
use super::convert::{cluster, node};
use super::error::ApiError;
use super::reply::{self, Outcome};
use super::types::swarm as wire;
use crate::gate::{Done, LocalState, Refusal, Request, SwarmInit, look};

/// What the docker CLI sends as the listen address when its user gave none.
const CLI_LISTEN_ADDR: &str = "0.0.0.0:2377";

pub(super) async fn serve(call: Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("GET", []) => inspect(&call).await,
        ("POST", ["init"]) => init(call).await,
        ("POST", ["leave"]) => leave(call).await,
        ("POST", ["update"]) => update(call).await,
        // A swarm without autolock has no unlock key; Docker says so with an empty one.
        ("GET", ["unlockkey"]) => {
            look(&*call.gate, |_| ()).await?;
            reply::ok(&wire::UnlockKey { unlock_key: String::new() })
        }
        ("POST", ["unlock"]) if call.gate.node().state != LocalState::Locked => {
            Err(ApiError::conflict("swarm is not locked"))
        }
        ("POST", ["join"]) => {
            discard(call.body).await?;
            Err(ApiError::unsupported(
                "joining a swarm is not supported by this version of skep: it runs on one node",
            ))
        }
        _ => Err(call.unsupported()),
    }
}

async fn inspect(call: &Call) -> Outcome {
    let info = look(&*call.gate, |state| state.cluster().map(|c| cluster::info(c)))
        .await?
        .ok_or(Refusal::NotInSwarm)?;
    let tokens = call.gate.join_tokens().await?;
    let join_tokens = wire::JoinTokens { worker: tokens.worker, manager: tokens.manager };
    reply::ok(&wire::Swarm { info, join_tokens })
}

async fn init(call: Call) -> Outcome {
    let sent: wire::InitRequest = read_json(&call.headers, call.body).await?;
    for (there, field) in [
        (!sent.data_path_addr.is_empty(), "DataPathAddr"),
        (sent.data_path_port != 0, "DataPathPort"),
        (!sent.default_addr_pool.is_empty(), "DefaultAddrPool"),
    ] {
        if there {
            return Err(ApiError::unsupported_field(field));
        }
    }
    let mut spec = cluster::spec_in(sent.spec, ClusterSpec::default())?;
    spec.autolock |= sent.auto_lock_managers;
    let listen_addr =
        if sent.listen_addr == CLI_LISTEN_ADDR { String::new() } else { sent.listen_addr };
    let request = Request::SwarmInit(SwarmInit {
        listen_addr,
        advertise_addr: sent.advertise_addr,
        spec,
        availability: node::availability(&sent.availability)?,
        force_new_cluster: sent.force_new_cluster,
    });
    match call.gate.submit(request).await? {
        Done::Swarm(id) => reply::ok(&id.to_string()),
        other => Err(ApiError::failed(format!("an init was answered with {other:?}"))),
    }
}

async fn leave(call: Call) -> Outcome {
    let force = call.query.flag("force");
    call.gate.submit(Request::SwarmLeave { force }).await.map_err(|refusal| match refusal {
        Refusal::NotInSwarm => ApiError::Said(
            StatusCode::SERVICE_UNAVAILABLE,
            "This node is not part of a swarm".to_owned(),
        ),
        refusal => refusal.into(),
    })?;
    reply::empty(StatusCode::OK)
}

async fn update(call: Call) -> Outcome {
    let version = call.query.version("swarm")?;
    if call.query.flag("rotateManagerUnlockKey") {
        return Err(ApiError::unsupported_field("rotateManagerUnlockKey"));
    }
    let rotate_worker = call.query.flag("rotateWorkerToken");
    let rotate_manager = call.query.flag("rotateManagerToken");
    let sent = read_json(&call.headers, call.body).await?;
    let base = look(&*call.gate, |state| state.cluster().map(|c| c.spec.clone()))
        .await?
        .ok_or(Refusal::NotInSwarm)?;
    let spec = cluster::spec_in(sent, base)?;
    let request = Request::SwarmUpdate { version, spec, rotate_worker, rotate_manager };
    call.gate.submit(request).await?;
    reply::empty(StatusCode::OK)
}
