//! Turns of the ring of keys that seals secrets and configs, which Docker has no words for.

use std::future::ready;

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::HeaderValue;

use super::call::Call;
use super::error::ApiError;
use super::reply::{self, Outcome};
use super::types::swarm as wire;
use crate::gate::{Done, KeyProgress, Request};

pub(super) async fn serve(call: Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("POST", ["rotate-key"]) => rotate(call).await,
        _ => Err(call.unsupported()),
    }
}

/// Turns the ring, and tells how far the swarm has come to the new key: a line of JSON each time
/// that changes, or with `detach` the first one only. What was begun goes on without its client.
async fn rotate(call: Call) -> Outcome {
    let (force, detach) = (call.query.flag("force"), call.query.flag("detach"));
    let (key, turned) = match call.gate.submit(Request::RingTurn { force }).await? {
        Done::Key { version, turned } => (version, turned),
        other => return Err(ApiError::failed(format!("a turn was answered with {other:?}"))),
    };
    let progress = call.gate.key_progress(key).await?;
    let peer = call.peer;
    let gone = Box::pin(async move { peer.gone().await });
    let lines = progress.take(if detach { 1 } else { usize::MAX });
    let lines = lines.filter_map(move |seen| ready(line(&shown(seen, turned))));
    Ok(reply::stream(Some(HeaderValue::from_static("application/json")), lines.take_until(gone)))
}

fn shown(seen: KeyProgress, turned: bool) -> wire::KeyProgress {
    let managers = seen.managers.into_iter().map(|holder| wire::KeyHolder {
        id: holder.node.to_string(),
        hostname: holder.hostname,
        state: holder.purged.word(),
    });
    wire::KeyProgress {
        key: seen.key,
        turned,
        done: seen.done,
        total: seen.total,
        state: seen.stage.word(),
        managers: managers.collect(),
    }
}

fn line(shown: &wire::KeyProgress) -> Option<Bytes> {
    // Numbers and words always are JSON.
    let mut line = serde_json::to_vec(shown).ok()?;
    line.push(b'\n');
    Some(Bytes::from(line))
}
