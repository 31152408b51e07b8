//! What a user means by a word: a full id, else an exact name, else the start of one id.

use std::sync::Arc;

use skep_core::command::Rejection;
use skep_core::id::{NodeId, TaskId};
use skep_core::model::Kind;
use skep_core::model::material::{Material, MaterialKind};
use skep_core::model::node::Node;
use skep_core::model::service::Service;
use skep_core::model::task::Task;
use skep_core::state::State;

use super::error::ApiError;
use crate::gate::Refusal;

/// The error for a word that means nothing.
pub(super) fn missing(kind: Kind, word: &str) -> ApiError {
    Refusal::Rejected(Rejection::NotFound { kind, what: word.to_owned() }).into()
}

/// The only one of `found`.
fn only<T>(kind: Kind, word: &str, found: impl Iterator<Item = T>) -> Result<T, ApiError> {
    let mut found: Vec<T> = found.collect();
    match (found.pop(), found.len()) {
        (Some(one), 0) => Ok(one),
        (None, _) => Err(missing(kind, word)),
        (Some(_), others) => Err(ApiError::bad(format!(
            "{} {word} is ambiguous ({} matches found)",
            kind.word(),
            others + 1
        ))),
    }
}

/// Resolves a word against anything that has ids and names.
fn resolve<'a, T>(
    kind: Kind,
    word: &str,
    by_id: Option<&'a Arc<T>>,
    by_name: impl FnOnce() -> Result<Option<&'a Arc<T>>, ApiError>,
    with_prefix: impl Iterator<Item = &'a Arc<T>>,
) -> Result<Arc<T>, ApiError> {
    if word.is_empty() {
        return Err(missing(kind, word));
    }
    if let Some(found) = by_id {
        return Ok(Arc::clone(found));
    }
    if let Some(found) = by_name()? {
        return Ok(Arc::clone(found));
    }
    only(kind, word, with_prefix).map(Arc::clone)
}

/// A secret or config.
pub(super) fn material(
    state: &State,
    kind: MaterialKind,
    word: &str,
) -> Result<Arc<Material>, ApiError> {
    let of_kind = |m: &&Arc<Material>| m.kind == kind;
    resolve(
        kind.kind(),
        word,
        word.parse().ok().and_then(|id| state.material(&id)).filter(of_kind),
        || Ok(state.material_named(kind, word)),
        state.materials().filter(of_kind).filter(|m| m.id.as_str().starts_with(word)),
    )
}

/// A service.
pub(super) fn service(state: &State, word: &str) -> Result<Arc<Service>, ApiError> {
    resolve(
        Kind::Service,
        word,
        word.parse().ok().and_then(|id| state.service(&id)),
        || Ok(state.service_named(word)),
        state.services().filter(|s| s.id.as_str().starts_with(word)),
    )
}

/// A node. Several may have one name.
pub(super) fn node(state: &State, word: &str) -> Result<Arc<Node>, ApiError> {
    let mut named = state.nodes().filter(|n| n.description.hostname == word).peekable();
    resolve(
        Kind::Node,
        word,
        word.parse().ok().and_then(|id| state.node(&id)),
        || match named.peek() {
            Some(_) => only(Kind::Node, word, named).map(Some),
            None => Ok(None),
        },
        state.nodes().filter(|n| n.id.as_str().starts_with(word)),
    )
}

/// A task.
pub(super) fn task(state: &State, word: &str) -> Result<Arc<Task>, ApiError> {
    resolve(
        Kind::Task,
        word,
        word.parse().ok().and_then(|id| state.task(&id)),
        // A name ends in the id.
        || {
            let id = word.rsplit('.').next().and_then(|id| id.parse().ok());
            Ok(id.and_then(|id| state.task(&id)).filter(|t| t.container_name() == word))
        },
        state.tasks().filter(|t| t.id.as_str().starts_with(word)),
    )
}

/// The error for the beginning of an id that several containers have.
pub(super) fn several_containers(word: &str) -> ApiError {
    ApiError::bad(format!("multiple IDs found with provided prefix: {word}"))
}

/// The task whose container has this id or name, or an id that starts so, with its node.
pub(super) fn container(state: &State, word: &str) -> Result<Option<(NodeId, TaskId)>, ApiError> {
    let place = |task: &Arc<Task>| task.node.map(|node| (node, task.id));
    let name = word.strip_prefix('/').unwrap_or(word);
    let named = name.rsplit('.').next().and_then(|id| id.parse().ok());
    let named = named.and_then(|id| state.task(&id)).filter(|t| t.container_name() == name);
    if let Some(found) = named {
        return Ok(place(found));
    }
    if word.is_empty() {
        return Ok(None);
    }
    // Ids are those that nodes reported: none is worked out for tasks without a container.
    let has_id = |task: &&Arc<Task>| {
        task.status.container.as_ref().is_some_and(|container| container.id.starts_with(word))
    };
    let mut found = state.tasks().filter(has_id).filter_map(place);
    match (found.next(), found.next()) {
        (Some(_), Some(_)) => Err(several_containers(word)),
        (found, _) => Ok(found),
    }
}
