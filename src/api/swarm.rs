//! The swarm itself.

use http::StatusCode;
use skep_core::model::cluster::ClusterSpec;

use super::call::{Call, discard, read_json, read_private_json};
use super::convert::{cluster, node};
use super::error::ApiError;
use super::reply::{self, Outcome};
use super::routes::no_manager;
use super::types::swarm as wire;
use crate::address;
use crate::gate::{Done, LocalState, Refusal, Request, SwarmInit, SwarmJoin, look};
use crate::hidden::Hidden;
use crate::limits;

/// What the docker CLI sends as the listen address when its user gave none.
const CLI_LISTEN_ADDR: &str = "0.0.0.0:2377";

pub(super) async fn serve(call: Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("GET", []) => inspect(&call).await,
        ("POST", ["init"]) => init(call).await,
        ("POST", ["leave"]) => leave(call).await,
        ("POST", ["update"]) => update(call).await,
        ("GET", ["unlockkey"]) => {
            // Where managers lock nothing there is no key; Docker says so with an empty one.
            let key = call.gate.unlock_key().await?;
            let unlock_key = key.map(|key| key.reveal().to_owned()).unwrap_or_default();
            reply::ok(&wire::UnlockKey { unlock_key })
        }
        ("POST", ["unlock"]) => unlock(call).await,
        ("POST", ["join"]) => join(call).await,
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
    if sent.spec.ca_config.force_rotate != 0 {
        return Err(ApiError::unsupported_field("Spec.CAConfig.ForceRotate"));
    }
    let mut spec = cluster::spec_in(sent.spec, ClusterSpec::default())?;
    spec.autolock |= sent.auto_lock_managers;
    let request = Request::SwarmInit(SwarmInit {
        listen_addr: listen_addr(sent.listen_addr),
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

/// What the client's user said, if it was the user who said it.
fn listen_addr(sent: String) -> String {
    if sent == CLI_LISTEN_ADDR { String::new() } else { sent }
}

async fn join(call: Call) -> Outcome {
    let sent: wire::JoinRequest = read_private_json(&call.headers, call.body).await?;
    // From here on the token is wiped, whatever becomes of the rest.
    let token = Hidden::new(sent.join_token);
    if !sent.data_path_addr.is_empty() {
        return Err(ApiError::unsupported_field("DataPathAddr"));
    }
    let remote_addrs: Vec<String> = sent
        .remote_addrs
        .iter()
        .map(|addr| address::remote(addr).map_err(|e| ApiError::bad(format!("RemoteAddrs: {e}"))))
        .collect::<Result<_, _>>()?;
    if remote_addrs.is_empty() {
        return Err(ApiError::bad("at least 1 RemoteAddr is required to join"));
    }
    if remote_addrs.len() > limits::JOIN_ADDRESSES {
        let most = limits::JOIN_ADDRESSES;
        return Err(ApiError::bad(format!("RemoteAddrs names more than {most} addresses")));
    }
    if token.reveal().is_empty() {
        return Err(Refusal::InvalidToken("it is empty".to_owned()).into());
    }
    let request = Request::SwarmJoin(SwarmJoin {
        listen_addr: listen_addr(sent.listen_addr),
        advertise_addr: sent.advertise_addr,
        remote_addrs,
        token,
        availability: node::availability(&sent.availability)?,
    });
    call.gate.submit(request).await?;
    reply::empty(StatusCode::OK)
}

/// A node says that it is not locked before it looks at the key.
async fn unlock(mut call: Call) -> Outcome {
    let view = call.gate.node();
    if view.state != LocalState::Locked {
        discard(&mut call.body).await?;
        return Err(if view.manager { Refusal::NotLocked } else { no_manager(&view) }.into());
    }
    let sent: wire::UnlockKey = read_private_json(&call.headers, call.body).await?;
    let key = Hidden::new(sent.unlock_key);
    call.gate.submit(Request::SwarmUnlock { key }).await?;
    reply::empty(StatusCode::OK)
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
    let rotate_worker = call.query.flag("rotateWorkerToken");
    let rotate_manager = call.query.flag("rotateManagerToken");
    let rotate_unlock = call.query.flag("rotateManagerUnlockKey");
    let sent: wire::SwarmSpec = read_json(&call.headers, call.body).await?;
    // Docker counts its rotations and rotates when the count changes. No count is kept or shown
    // here, so a client that means to change it sends one.
    let rotate_ca = sent.ca_config.force_rotate != 0;
    let base = look(&*call.gate, |state| state.cluster().map(|c| c.spec.clone()))
        .await?
        .ok_or(Refusal::NotInSwarm)?;
    let spec = cluster::spec_in(sent, base)?;
    let request = Request::SwarmUpdate {
        version,
        spec,
        rotate_worker,
        rotate_manager,
        rotate_unlock,
        rotate_ca,
    };
    call.gate.submit(request).await?;
    reply::empty(StatusCode::OK)
}
