//! One call as the routes see it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::json;
use super::peer::Peer;
use super::query::Query;
use crate::gate::Gate;
use crate::limits;

/// The newest version of the API.
pub(super) const API_VERSION: &str = "1.50";
/// The oldest version that is still answered.
pub(super) const MIN_API_VERSION: &str = "1.24";
/// Minor number of [`API_VERSION`].
pub(super) const API_MINOR: u32 = 50;
/// Minor number of [`MIN_API_VERSION`].
pub(super) const MIN_API_MINOR: u32 = 24;

/// How long a request body may take to arrive.
const BODY_WAIT: Duration = Duration::from_secs(30);

/// A call, its path taken apart already.
pub(super) struct Call {
    /// The node.
    pub(super) gate: Arc<dyn Gate>,
    /// Method.
    pub(super) method: Method,
    /// Path without the version, for messages.
    pub(super) path: String,
    /// Minor number of the API version the client speaks.
    pub(super) minor: u32,
    /// Query.
    pub(super) query: Query,
    /// Headers.
    pub(super) headers: HeaderMap,
    /// What is left of the connection after an upgrade.
    pub(super) upgrade: Option<OnUpgrade>,
    /// The client.
    pub(super) peer: Arc<Peer>,
    /// Body of the request.
    pub(super) body: Incoming,
}

impl Call {
    /// The answer to what the API has and skep does not do.
    pub(super) fn unsupported(&self) -> ApiError {
        ApiError::unsupported(format!(
            "{} {} is not supported by this version of skep",
            self.method, self.path
        ))
    }
}

/// Why a body could not be read.
fn too_large(limit: usize) -> ApiError {
    ApiError::Said(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("request body is larger than {limit} bytes"),
    )
}

/// Collects a body of at most [`limits::JSON_BODY_BYTES`].
pub(super) async fn collect(mut body: Incoming) -> Result<Bytes, ApiError> {
    collect_from(&mut body).await
}

async fn collect_from(body: &mut Incoming) -> Result<Bytes, ApiError> {
    let limit = limits::JSON_BODY_BYTES;
    let expected = usize::try_from(http_body::Body::size_hint(body).lower()).unwrap_or(usize::MAX);
    if expected > limit {
        return Err(too_large(limit));
    }
    // Room for all of it at once, so that it is not copied from buffer to buffer.
    let mut bytes = BytesMut::with_capacity(expected);
    let read = async {
        while let Some(frame) = body.frame().await {
            let frame = frame
                .map_err(|error| ApiError::bad(format!("cannot read the request body: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > limit {
                return Err(too_large(limit));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(())
    };
    match tokio::time::timeout(BODY_WAIT, read).await {
        Ok(read) => read.map(|()| bytes.freeze()),
        Err(_) => Err(ApiError::Said(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request body did not arrive within {} s", BODY_WAIT.as_secs()),
        )),
    }
}

/// Whether the headers say that a body is JSON, or say nothing.
pub(super) fn check_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(content) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let content = content.to_str().unwrap_or_default();
    let kind = content.split(';').next().unwrap_or_default().trim();
    if kind.is_empty() || kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::bad(format!(
        "unsupported Content-Type header ({content}): must be 'application/json'"
    )))
}

/// Reads a body of Docker's JSON. No body is an empty object.
pub(super) async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Incoming,
) -> Result<T, ApiError> {
    let bytes = collect(body).await?;
    if !bytes.is_empty() {
        check_json(headers)?;
    }
    json::from_slice(&bytes).map_err(|error| ApiError::bad(format!("invalid JSON: {error}")))
}

/// As [`read_json`], for bodies that admit to something: the error says where they are wrong and
/// quotes nothing of them.
pub(super) async fn read_private_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Incoming,
) -> Result<T, ApiError> {
    let bytes = collect(body).await?;
    if !bytes.is_empty() {
        check_json(headers)?;
    }
    json::from_slice(&bytes).map_err(|error| {
        ApiError::bad(match (error.line(), error.column()) {
            (0, _) => "invalid JSON: a field is not of the kind that is due".to_owned(),
            (line, column) => format!("invalid JSON at line {line} column {column}"),
        })
    })
}

/// Reads a body only to have it read.
pub(super) async fn discard(body: &mut Incoming) -> Result<(), ApiError> {
    collect_from(body).await.map(drop)
}
