//! From a request to the code that answers it, and the headers every answer has.

use std::sync::Arc;

use http::header::{HeaderName, HeaderValue, SERVER};
use http::{HeaderMap, Method, Request};
use hyper::body::Incoming;

use super::call::{API_MINOR, API_VERSION, Call, MIN_API_MINOR, MIN_API_VERSION, discard};
use super::error::ApiError;
use super::peer::Peer;
use super::query::{Query, decode};
use super::reply::{self, Outcome, Reply};
use super::{
    audit, containers, exec, holders, images, materials, networks, nodes, ring, services, swarm,
    system, tasks, versions,
};
use crate::gate::{Gate, LocalState, NodeView, Refusal};
use skep_core::model::material::MaterialKind;
use skep_core::model::node::Role;

/// First words of paths that Docker's API has and skep does not, or not yet.
const UNSUPPORTED_ROOTS: [&str; 8] =
    ["auth", "build", "commit", "events", "grpc", "plugins", "session", "system"];

/// Answers a request, whatever it is.
pub(super) async fn answer(
    mut request: Request<Incoming>,
    gate: Arc<dyn Gate>,
    peer: Arc<Peer>,
) -> Reply {
    let upgrade = wants_upgrade(request.headers()).then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let segments: Vec<String> = parts
        .uri
        .path()
        .split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| decode(segment, false))
        .collect();
    let mut path: Vec<&str> = segments.iter().map(String::as_str).collect();
    let version = path.first().and_then(|word| parse_version(word));
    if version.is_some() {
        path.remove(0);
    }
    let private = carries_private_data(&parts.method, &path);
    let outcome = match check_version(version) {
        Err(error) => Err(error),
        Ok(minor) => {
            let call = Call {
                gate,
                path: format!("/{}", path.join("/")),
                method: parts.method,
                minor,
                query: Query::parse(parts.uri.query().unwrap_or_default()),
                headers: parts.headers,
                upgrade,
                peer,
                body,
            };
            dispatch(call, &path).await
        }
    };
    let known = !matches!(outcome, Err(ApiError::PageNotFound));
    let mut reply = outcome.unwrap_or_else(|error| reply::error(&error));
    if private {
        reply = reply::closing(reply);
    }
    add_headers(reply.headers_mut(), known);
    reply
}

async fn dispatch(mut call: Call, path: &[&str]) -> Outcome {
    let Some((root, rest)) = path.split_first() else { return Err(ApiError::PageNotFound) };
    if is_of_swarm(&call.method, path) {
        let view = call.gate.node();
        if !view.manager {
            // A client that still sends would otherwise lose the answer with the connection.
            discard(&mut call.body).await?;
            return Err(no_manager(&view).into());
        }
    }
    match *root {
        "_ping" | "version" | "info" if rest.is_empty() => system::serve(call, root).await,
        "swarm" => swarm::serve(call, rest).await,
        "nodes" => nodes::serve(call, rest).await,
        "secrets" => materials::serve(MaterialKind::Secret, call, rest).await,
        "configs" => materials::serve(MaterialKind::Config, call, rest).await,
        "skep" => own(call, rest).await,
        "services" => services::serve(call, rest).await,
        "tasks" => tasks::serve(call, rest).await,
        "containers" => containers::serve(call, rest).await,
        "exec" => exec::serve(call, rest).await,
        "images" => images::serve(call, rest).await,
        "distribution" => images::distribution(call, rest).await,
        "networks" => networks::serve(&call, rest).await,
        "volumes" => networks::volumes(&call, rest),
        "plugins" if call.method == Method::GET => networks::plugins(rest),
        root if UNSUPPORTED_ROOTS.contains(&root) => Err(call.unsupported()),
        _ => Err(ApiError::PageNotFound),
    }
}

/// What Docker has no words for.
async fn own(call: Call, path: &[&str]) -> Outcome {
    match path {
        ["v1", "audit"] => audit::serve(call, None).await,
        ["v1", "secrets", word, "audit"] => {
            audit::serve(call, Some((MaterialKind::Secret, word))).await
        }
        ["v1", "configs", word, "audit"] => {
            audit::serve(call, Some((MaterialKind::Config, word))).await
        }
        ["v1", "secrets", rest @ ..] => versions::serve(MaterialKind::Secret, call, rest).await,
        ["v1", "swarm", rest @ ..] => ring::serve(call, rest).await,
        ["v1", "configs", rest @ ..] => versions::serve(MaterialKind::Config, call, rest).await,
        ["v1", "info"] if call.method == Method::GET => holders::info(&*call.gate).await,
        ["v1", "nodes", word, "holdings"] if call.method == Method::GET => {
            holders::of_node(&call, word).await
        }
        _ => Err(ApiError::PageNotFound),
    }
}

/// Whether only managers answer this: all that is the swarm's and not this node's own.
fn is_of_swarm(method: &Method, path: &[&str]) -> bool {
    match path {
        ["nodes" | "secrets" | "configs" | "services" | "tasks", ..] => true,
        ["skep", "v1", "secrets" | "configs" | "nodes" | "audit" | "swarm", ..] => true,
        ["swarm"] => method == Method::GET,
        ["swarm", verb] => matches!(*verb, "update" | "unlockkey"),
        _ => false,
    }
}

/// Why this node, which is no manager that answers, cannot show or change the swarm.
pub(super) fn no_manager(view: &NodeView) -> Refusal {
    match (view.state, view.node, view.role) {
        (LocalState::Locked, ..) => Refusal::Locked,
        (_, None, _) => Refusal::NotInSwarm,
        (_, _, Some(Role::Manager)) => Refusal::ManagerNotReady,
        _ => Refusal::NotManager,
    }
}

/// Whether request or answer hold what must not linger in the buffers of a connection.
fn carries_private_data(method: &Method, path: &[&str]) -> bool {
    match path.first() {
        Some(&"secrets" | &"configs") => method == Method::POST,
        Some(&"skep") => method == Method::POST,
        Some(&"swarm") => true,
        _ => false,
    }
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(http::header::UPGRADE)
}

/// `v1.41` as (1, 41).
fn parse_version(word: &str) -> Option<(u32, u32)> {
    let (major, minor) = word.strip_prefix('v')?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn check_version(version: Option<(u32, u32)>) -> Result<u32, ApiError> {
    let Some((major, minor)) = version else { return Ok(API_MINOR) };
    if (major, minor) > (1, API_MINOR) {
        return Err(ApiError::bad(format!(
            "client version {major}.{minor} is too new. Maximum supported API version is \
             {API_VERSION}"
        )));
    }
    if (major, minor) < (1, MIN_API_MINOR) {
        return Err(ApiError::bad(format!(
            "client version {major}.{minor} is too old. Minimum supported API version is \
             {MIN_API_VERSION}, please upgrade your client to a newer version"
        )));
    }
    Ok(minor)
}

fn add_headers(headers: &mut HeaderMap, known: bool) {
    const NAME: &str = concat!("skep/", env!("CARGO_PKG_VERSION"), " (linux)");
    if !known {
        return;
    }
    headers.insert(SERVER, HeaderValue::from_static(NAME));
    for (name, value) in
        [("api-version", API_VERSION), ("docker-experimental", "false"), ("ostype", "linux")]
    {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_and_bounded() {
        assert_eq!(parse_version("v1.41"), Some((1, 41)));
        assert_eq!(parse_version("version"), None);
        assert_eq!(parse_version("v1"), None);
        assert_eq!(check_version(Some((1, 24))).ok(), Some(24));
        assert_eq!(check_version(None).ok(), Some(50));
        let text = |v| check_version(Some(v)).unwrap_err().answer().1;
        assert_eq!(
            text((1, 99)),
            "client version 1.99 is too new. Maximum supported API version is 1.50"
        );
        assert!(text((1, 12)).starts_with("client version 1.12 is too old. Minimum supported"));
    }
}
