//! Versions of secrets and configs, which Docker has no words for.

use std::sync::Arc;

use http::HeaderMap;
use hyper::body::Incoming;
use serde::de::{Deserialize, Deserializer};
use skep_core::limits;
use skep_core::model::material::{Material, MaterialKind};

use super::call::{Call, check_json, collect};
use super::error::ApiError;
use super::filters::Filters;
use super::materials::{
    FILTERS, Parts, Payload, PayloadError, is_wanted, payload_error, size_rule, without_data,
};
use super::reply::{self, Outcome};
use super::types::material as wire;
use super::{history, holders, lookup, prune, revoke};
use crate::gate::{Done, NewVersion, Request, Source, look};

pub(super) async fn serve(kind: MaterialKind, call: Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("POST", ["update"]) => update(kind, call).await,
        ("POST", ["prune"]) => prune::serve(kind, call).await,
        ("GET", []) => list(kind, &call).await,
        ("GET", [word]) => {
            let found = look(&*call.gate, |state| lookup::material(state, kind, word)).await??;
            reply::ok(&versioned(&found))
        }
        ("GET", [word, "history"]) => history::serve(kind, &call, word).await,
        ("POST", [word, "rollback"]) => rollback(kind, call, word).await,
        ("POST", [word, "revoke"]) => revoke::serve(kind, call, word).await,
        ("GET", [word, "holders"]) => holders::of_material(kind, &call, word).await,
        _ => Err(call.unsupported()),
    }
}

/// All with the versions there are of them, and without their data.
async fn list(kind: MaterialKind, call: &Call) -> Outcome {
    let filters = Filters::of(&call.query, FILTERS)?;
    let shown: Vec<wire::Versioned> = look(&*call.gate, |state| {
        let found = state.materials().filter(|material| is_wanted(kind, &filters, material));
        found.map(|material| versioned(material)).collect()
    })
    .await?;
    reply::ok(&shown)
}

fn versioned(material: &Material) -> wire::Versioned {
    wire::Versioned {
        material: without_data(material),
        latest: material.latest().map(|latest| latest.number).unwrap_or_default(),
        versions: material.versions.len(),
        keep: material.keep(),
    }
}

/// Appends a version to each of those that were sent, to all or to none.
async fn update(kind: MaterialKind, call: Call) -> Outcome {
    let uid = call.peer.uid();
    let Sent { items: sent, keep } = read(&call.headers, call.body).await?;
    if sent.is_empty() || sent.len() > limits::SET {
        return Err(ApiError::invalid(&format!(
            "{} {}s were sent: update 1 to {} at once",
            sent.len(),
            kind.kind().word(),
            limits::SET
        )));
    }
    let mut found = Vec::with_capacity(sent.len());
    let mut items = Vec::with_capacity(sent.len());
    for Item { name, payload } in sent {
        let material = look(&*call.gate, |state| lookup::material(state, kind, &name)).await??;
        let payload = match payload {
            Ok(payload) => payload.filter(|payload| kind.admits(payload.len())),
            Err(PayloadError::TooLarge) => None,
            Err(error) => return Err(payload_error(kind, error)),
        };
        let (word, name) = (kind.kind().word(), &material.spec.name);
        let payload = payload.ok_or_else(|| {
            ApiError::invalid(&format!("new version of {word} {name}: {}", size_rule(kind)))
        })?;
        if found.iter().any(|other: &Arc<Material>| other.id == material.id) {
            return Err(ApiError::invalid(&format!(
                "{word} {name} was sent twice: give each one new version at a time"
            )));
        }
        items.push(NewVersion { id: material.id, source: Source::Payload(payload) });
        found.push(material);
    }
    let request = Request::MaterialAppend { items, keep, uid };
    answer(&found, call.gate.submit(request).await?)
}

/// Appends the bytes of an old version as the next one.
async fn rollback(kind: MaterialKind, call: Call, word: &str) -> Outcome {
    let uid = call.peer.uid();
    let wanted: Option<u64> = call.query.number("version")?;
    let found = look(&*call.gate, |state| lookup::material(state, kind, word)).await??;
    let before = || found.versions.iter().rev().nth(1).map(|version| version.number);
    let version = wanted.or_else(before).ok_or_else(|| {
        let (word, name) = (kind.kind().word(), &found.spec.name);
        ApiError::bad(format!("{word} {name} has one version only: there is none to go back to"))
    })?;
    let items = vec![NewVersion { id: found.id, source: Source::Version(version) }];
    let done = call.gate.submit(Request::MaterialAppend { items, keep: None, uid }).await?;
    answer(&[found], done)
}

fn answer(found: &[Arc<Material>], done: Done) -> Outcome {
    let Done::Versions(numbers) = done else {
        return Err(ApiError::failed(format!("an update was answered with {done:?}")));
    };
    let shown = found.iter().zip(numbers).map(|(material, version)| wire::Updated {
        id: material.id.to_string(),
        name: material.spec.name.clone(),
        version,
    });
    reply::ok(&shown.collect::<Vec<_>>())
}

/// What was sent.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    #[serde(rename = "Items")]
    items: Vec<Item>,
    #[serde(rename = "Keep", default)]
    keep: Option<u32>,
}

/// A name with its payload.
struct Item {
    name: String,
    payload: Payload,
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Parts { name, payload, .. } = Parts::deserialize(deserializer)?;
        Ok(Self { name, payload: payload.unwrap_or(Ok(None)) })
    }
}

async fn read(headers: &HeaderMap, body: Incoming) -> Result<Sent, ApiError> {
    check_json(headers)?;
    let bytes = collect(body).await?;
    // The position says enough: the parser's own text may quote what it found.
    serde_json::from_slice(&bytes).map_err(|error| {
        ApiError::bad(format!(
            "invalid JSON at line {} column {}: expected Items, each with Name and Data, and Keep",
            error.line(),
            error.column()
        ))
    })
}
