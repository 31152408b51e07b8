//! The networks that every node has, and empty answers for what skep keeps none of.

use http::StatusCode;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use skep_core::id::{ENTROPY_LEN, ServiceId, hex};

use super::call::Call;
use super::error::ApiError;
use super::filters::Filters;
use super::reply::{self, Outcome};
use super::time::NEVER;
use super::types::network as wire;
use crate::gate::LocalState;

/// Name and driver.
const PREDEFINED: [(&str, &str); 3] = [("bridge", "bridge"), ("host", "host"), ("none", "null")];
/// From this API version on there is `EnableIPv4`.
const ENABLE_IPV4_SINCE: u32 = 47;
const FILTERS: [&str; 7] = ["dangling", "driver", "id", "label", "name", "scope", "type"];

/// The id of a network on this node: the same on every node, for it is the same everywhere.
pub(super) fn local_id(name: &str) -> String {
    hex(&Sha256::digest(format!("skep-network/local/{name}")))
}

/// The id of a network as the swarm knows it.
fn swarm_id(name: &str) -> String {
    let digest = Sha256::digest(format!("skep-network/swarm/{name}"));
    let mut entropy = [0; ENTROPY_LEN];
    for (to, from) in entropy.iter_mut().zip(digest) {
        *to = from;
    }
    ServiceId::from_entropy(entropy).to_string()
}

/// The id that a spec shows for a network it names; other words stay.
pub(super) fn swarm_id_of(target: &str) -> String {
    predefined(target).map_or_else(|| target.to_owned(), swarm_id)
}

/// The name of the predefined network that `word` names, by name or id.
pub(super) fn predefined(word: &str) -> Option<&'static str> {
    let names = PREDEFINED.iter().map(|(name, _)| *name);
    let mut matching =
        names.filter(|name| *name == word || local_id(name) == word || swarm_id(name) == word);
    matching.next()
}

pub(super) async fn serve(call: &Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("GET", []) => list(call),
        ("GET", [word]) => inspect(call, word),
        ("DELETE", [word]) => match find(word) {
            Some((name, _)) => Err(ApiError::Said(
                StatusCode::FORBIDDEN,
                format!("{name} is a pre-defined network and cannot be removed"),
            )),
            None => Err(missing(word)),
        },
        _ => Err(call.unsupported()),
    }
}

fn missing(word: &str) -> ApiError {
    ApiError::not_found(format!("network {word} not found"))
}

/// By name, id, or the start of a local id.
fn find(word: &str) -> Option<(&'static str, &'static str)> {
    let by = |test: &dyn Fn(&str) -> bool| PREDEFINED.into_iter().find(|(name, _)| test(name));
    by(&|name| Some(name) == predefined(word))
        .or_else(|| by(&|name| word.len() >= 3 && local_id(name).starts_with(word)))
}

fn list(call: &Call) -> Outcome {
    let filters = Filters::of(&call.query, &FILTERS)?;
    let wanted = |network: &&(&str, &str)| {
        let (name, driver) = **network;
        filters.any("name", |word| name.contains(word))
            && filters.any("id", |word| local_id(name).starts_with(word))
            && filters.any("driver", |word| word == driver)
            && filters.any("scope", |word| word == "local")
            && filters.any("type", |word| word == "builtin")
            && !filters.has("label")
    };
    if filters.truth("dangling")? == Some(true) {
        return reply::ok(&Vec::<wire::Network>::new());
    }
    let found = PREDEFINED.iter().filter(wanted);
    reply::ok(&found.map(|(name, driver)| local(name, driver, call.minor)).collect::<Vec<_>>())
}

fn inspect(call: &Call, word: &str) -> Outcome {
    let (name, driver) = find(word).ok_or_else(|| missing(word))?;
    let in_swarm = call.gate.node().state == LocalState::Active;
    match call.query.get("scope") {
        "swarm" if !in_swarm => Err(missing(word)),
        "swarm" => reply::ok(&of_swarm(name, driver, call.minor)),
        "" | "local" if word != swarm_id(name) => reply::ok(&local(name, driver, call.minor)),
        "" => reply::ok(&of_swarm(name, driver, call.minor)),
        _ => Err(missing(word)),
    }
}

fn local(name: &str, driver: &str, minor: u32) -> wire::Network {
    wire::Network {
        name: name.to_owned(),
        id: local_id(name),
        created: NEVER,
        scope: "local",
        driver: driver.to_owned(),
        enable_ipv4: (minor >= ENABLE_IPV4_SINCE).then_some(true),
        enable_ipv6: false,
        ipam: json!({"Driver": "default", "Options": null, "Config": []}),
        internal: false,
        attachable: false,
        ingress: false,
        config_from: json!({"Network": ""}),
        config_only: false,
        containers: json!({}),
        options: json!({}),
        labels: json!({}),
    }
}

fn of_swarm(name: &str, driver: &str, minor: u32) -> wire::Network {
    wire::Network {
        id: swarm_id(name),
        scope: "swarm",
        ipam: json!({"Driver": "", "Options": null, "Config": []}),
        containers: Value::Null,
        options: Value::Null,
        labels: json!({"com.docker.swarm.predefined": "true"}),
        ..local(name, driver, minor)
    }
}

/// There are no volumes yet.
pub(super) fn volumes(call: &Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("GET", []) => reply::ok(&json!({"Volumes": [], "Warnings": null})),
        ("GET", [name]) => Err(ApiError::not_found(format!("get {name}: no such volume"))),
        ("DELETE", [_]) if call.query.flag("force") => reply::empty(StatusCode::NO_CONTENT),
        ("DELETE", [name]) => Err(ApiError::not_found(format!("get {name}: no such volume"))),
        _ => Err(call.unsupported()),
    }
}

/// There are no plugins.
pub(super) fn plugins(path: &[&str]) -> Outcome {
    match path {
        [] => reply::ok(&Vec::<Value>::new()),
        [name @ .., "json"] => {
            Err(ApiError::not_found(format!("plugin {:?} not found", name.join("/"))))
        }
        _ => Err(ApiError::PageNotFound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_found_by_every_name_it_goes_by() {
        assert_eq!(predefined("host"), Some("host"));
        assert_eq!(predefined(&local_id("none")), Some("none"));
        assert_eq!(predefined(&swarm_id("bridge")), Some("bridge"));
        assert_eq!(predefined("hos"), None);
        assert_eq!(find(&local_id("host")[..12]).map(|n| n.0), Some("host"));
        assert_eq!(swarm_id_of("host"), swarm_id("host"));
        assert_eq!(swarm_id_of("other"), "other");
    }

    #[test]
    fn networks_have_the_recorded_shape() {
        let keys = |text: &str| -> Vec<String> {
            let value: Value = serde_json::from_str(text).unwrap();
            value.as_object().unwrap().keys().cloned().collect()
        };
        let shown = |n: &wire::Network| serde_json::to_string(n).unwrap();
        let recorded = include_str!("testdata/network_host.json");
        assert_eq!(keys(&shown(&local("host", "host", 41))), keys(recorded));
        let recorded = include_str!("testdata/network_host_swarm.json");
        assert_eq!(keys(&shown(&of_swarm("host", "host", 41))), keys(recorded));
        assert!(shown(&local("host", "host", 50)).contains(r#""EnableIPv4":true,"EnableIPv6""#));
    }
}
