//! Secrets and configs: one implementation, which differs in what may be read back.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode};
use hyper::body::Incoming;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use skep_core::limits;
use skep_core::model::Labels;
use skep_core::model::material::{Material, MaterialKind, MaterialSpec};
use skep_core::model::name::{self, is_material_name};
use skep_core::state::State;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::call::{Call, check_json, collect};
use super::error::ApiError;
use super::filters::Filters;
use super::reply::{self, Outcome};
use super::time::rfc3339;
use super::types::material as wire;
use super::types::{self, Created};
use super::{convert, json, lookup};
use crate::chain::chain;
use crate::gate::{Done, Gate, Refusal, Request, look};
use crate::protected::{ProtectError, Protected};

const NAME_RULE: &str = "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start \
    and end character must be [a-zA-Z0-9]";

pub(super) async fn serve(kind: MaterialKind, call: Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("GET", []) => list(kind, call).await,
        ("POST", ["create"]) => create(kind, call).await,
        ("GET", [word]) => {
            let found = look(&*call.gate, |state| lookup::material(state, kind, word)).await??;
            reply::ok(&show(&*call.gate, &found).await?)
        }
        ("DELETE", [word]) => {
            let found = look(&*call.gate, |state| lookup::material(state, kind, word)).await??;
            call.gate.submit(Request::MaterialRemove { id: found.id }).await?;
            reply::empty(StatusCode::NO_CONTENT)
        }
        ("POST", [word, "update"]) => update(kind, call, word).await,
        _ => Err(call.unsupported()),
    }
}

/// What lists can be narrowed by.
pub(super) const FILTERS: &[&str] = &["id", "label", "name", "names"];

/// Whether filters let a secret or config through.
pub(super) fn is_wanted(kind: MaterialKind, filters: &Filters, m: &Material) -> bool {
    // Ids and names widen one another, labels narrow.
    let anything = !["id", "name", "names"].iter().any(|key| filters.has(key));
    let named = anything
        || filters.values("id").any(|id| m.id.as_str().starts_with(id))
        || filters.values("name").any(|name| m.spec.name.starts_with(name))
        || filters.values("names").any(|name| m.spec.name == name);
    m.kind == kind && named && filters.labels("label", &m.spec.labels)
}

async fn list(kind: MaterialKind, call: Call) -> Outcome {
    let filters = Filters::of(&call.query, FILTERS)?;
    let (found, pinned) = look(&*call.gate, |state| {
        let found = state.materials().filter(|material| is_wanted(kind, &filters, material));
        let found: Vec<Arc<Material>> = found.cloned().collect();
        Ok::<_, ApiError>((found, pinned(state, kind, &filters)?))
    })
    .await??;
    let mut shown = Vec::with_capacity(found.len());
    for material in &found {
        shown.push(show(&*call.gate, material).await?);
    }
    shown.extend(pinned);
    reply::ok(&shown)
}

/// What filters name together with a version, as in `db@3`: by that name, for clients that look up
/// what a service is to be granted. No name has an `@` in it, so such a filter asks for nothing
/// else; a version that is not there is refused in words that those clients pass on.
fn pinned(
    state: &State,
    kind: MaterialKind,
    filters: &Filters,
) -> Result<Vec<wire::Material>, ApiError> {
    let texts: BTreeSet<&str> = filters.values("name").chain(filters.values("names")).collect();
    let mut shown = Vec::new();
    for text in texts {
        let Some((name, version)) = name::pinned(text) else { continue };
        let Some(material) = state.material_named(kind, name) else { continue };
        if filters.labels("label", &material.spec.labels) {
            material.pinned(version).map_err(Refusal::Rejected)?;
            // Bytes are for whoever asks for the config itself.
            let mut one = without_data(material);
            text.clone_into(&mut one.spec.name);
            shown.push(one);
        }
    }
    Ok(shown)
}

async fn show(gate: &dyn Gate, material: &Material) -> Result<wire::Material, ApiError> {
    let mut shown = without_data(material);
    if material.kind == MaterialKind::Config {
        shown.spec.data = Some(STANDARD.encode(gate.config_payload(material.id).await?));
    }
    Ok(shown)
}

/// As Docker shows it, but for a config's data.
pub(super) fn without_data(material: &Material) -> wire::Material {
    wire::Material {
        id: material.id.to_string(),
        version: convert::version(material.meta),
        created_at: rfc3339(material.meta.created),
        updated_at: rfc3339(material.meta.updated),
        spec: wire::MaterialSpec {
            name: material.spec.name.clone(),
            labels: material.spec.labels.clone(),
            data: None,
            driver: material.spec.driver.as_ref().map(convert::driver),
            templating: material.spec.templating.as_ref().map(convert::driver),
            keep: material.spec.keep,
        },
    }
}

async fn create(kind: MaterialKind, call: Call) -> Outcome {
    let uid = call.peer.uid();
    let sent = read(kind, &call.headers, call.body).await?;
    if !is_material_name(&sent.spec.name) {
        return Err(ApiError::invalid(NAME_RULE));
    }
    let payload = sent.payload.filter(|p| kind.admits(p.len())).ok_or_else(|| bad_size(kind))?;
    let request = Request::MaterialCreate { kind, spec: sent.spec, payload, uid };
    match call.gate.submit(request).await? {
        Done::Material(id) => reply::json(StatusCode::CREATED, &Created { id: id.to_string() }),
        other => Err(ApiError::failed(format!("a create was answered with {other:?}"))),
    }
}

async fn update(kind: MaterialKind, call: Call, word: &str) -> Outcome {
    let version = call.query.version(kind.kind().word())?;
    let sent = read(kind, &call.headers, call.body).await?;
    let found = look(&*call.gate, |state| lookup::material(state, kind, word)).await??;
    let mut spec = sent.spec;
    // A name that was left out is the name it has, as Docker has it for labels-only updates.
    if spec.name.is_empty() {
        spec.name.clone_from(&found.spec.name);
    }
    let payload = sent.payload.filter(|payload| !payload.is_empty());
    call.gate.submit(Request::MaterialUpdate { id: found.id, version, spec, payload }).await?;
    reply::empty(StatusCode::OK)
}

fn bad_size(kind: MaterialKind) -> ApiError {
    ApiError::invalid(&size_rule(kind))
}

/// How many bytes there may be.
pub(super) fn size_rule(kind: MaterialKind) -> String {
    match kind {
        MaterialKind::Secret => format!(
            "secret data must be larger than 0 and less than {} bytes",
            limits::SECRET_BYTES_END
        ),
        MaterialKind::Config => {
            format!("config data must be larger than 0 and at most {} bytes", limits::CONFIG_BYTES)
        }
    }
}

/// What was sent, its payload decoded.
struct Sent {
    spec: MaterialSpec,
    payload: Option<Protected>,
}

async fn read(kind: MaterialKind, headers: &HeaderMap, body: Incoming) -> Result<Sent, ApiError> {
    check_json(headers)?;
    let bytes = collect(body).await?;
    // The position says enough: the parser's own text quotes what it found.
    let mut parts: Parts = serde_json::from_slice(&bytes).map_err(|error| {
        ApiError::bad(format!("invalid JSON at line {} column {}", error.line(), error.column()))
    })?;
    drop(bytes);
    let payload = parts.payload.take().unwrap_or(Ok(None));
    let payload = payload.map_err(|error| payload_error(kind, error))?;
    let set = |driver: &Option<types::Driver>| {
        driver.as_ref().is_some_and(|driver| !driver.name.is_empty())
    };
    for (there, field) in [(set(&parts.driver), "Driver"), (set(&parts.templating), "Templating")] {
        if there {
            return Err(ApiError::unsupported_field(&format!(
                "{field} of a {}",
                kind.kind().word()
            )));
        }
    }
    let Parts { name, labels, keep, .. } = parts;
    let spec = MaterialSpec { name, labels, keep, ..MaterialSpec::default() };
    Ok(Sent { spec, payload })
}

pub(super) fn payload_error(kind: MaterialKind, error: PayloadError) -> ApiError {
    match error {
        PayloadError::Base64 => ApiError::bad("invalid JSON: Data is not base64"),
        PayloadError::TooLarge => bad_size(kind),
        PayloadError::Memory(error) => {
            ApiError::Said(StatusCode::SERVICE_UNAVAILABLE, chain(&error))
        }
    }
}

/// Why a payload was not decoded. None of these holds any of it.
pub(super) enum PayloadError {
    Base64,
    TooLarge,
    Memory(ProtectError),
}

pub(super) type Payload = Result<Option<Protected>, PayloadError>;

/// A body as it is read: the payload goes from the body's buffer straight to protected memory.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) name: String,
    labels: Labels,
    pub(super) payload: Option<Payload>,
    driver: Option<types::Driver>,
    templating: Option<types::Driver>,
    /// How many versions are kept; skep's own.
    keep: Option<u32>,
}

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PartsVisitor)
    }
}

struct PartsVisitor;

impl<'de> Visitor<'de> for PartsVisitor {
    type Value = Parts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parts, A::Error> {
        let mut parts = Parts::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.to_ascii_lowercase().as_str() {
                "data" => parts.payload = Some(map.next_value::<Decoded>()?.0),
                "name" => parts.name = value(&mut map)?,
                "labels" => parts.labels = value(&mut map)?,
                "driver" => parts.driver = value(&mut map)?,
                "templating" => parts.templating = value(&mut map)?,
                "keep" => parts.keep = value(&mut map)?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(parts)
    }
}

fn value<'de, A: MapAccess<'de>, T: serde::de::DeserializeOwned>(
    map: &mut A,
) -> Result<T, A::Error> {
    json::from_value(map.next_value()?).map_err(A::Error::custom)
}

/// A base64 string on its way into protected memory.
struct Decoded(Payload);

impl<'de> Deserialize<'de> for Decoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DecodedVisitor)
    }
}

struct DecodedVisitor;

impl Visitor<'_> for DecodedVisitor {
    type Value = Decoded;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string of base64")
    }

    fn visit_unit<E>(self) -> Result<Decoded, E> {
        Ok(Decoded(Ok(None)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Decoded, E> {
        Ok(Decoded(decode(text).map(Some)))
    }
}

fn decode(text: &str) -> Result<Protected, PayloadError> {
    let room = base64::decoded_len_estimate(text.len());
    if room > limits::CONFIG_BYTES + 3 {
        return Err(PayloadError::TooLarge);
    }
    let mut payload = Protected::zeroed(room).map_err(PayloadError::Memory)?;
    let len =
        STANDARD.decode_slice(text, payload.as_mut_slice()).map_err(|_| PayloadError::Base64)?;
    payload.truncate(len);
    Ok(payload)
}
