//! The containers of this node.

use std::sync::Arc;

use super::call::Call;
use super::convert::container as convert;
use super::error::ApiError;
use super::filters::Filters;
use super::reply::{self, Outcome};
use super::time::now;
use super::{exec, logs, lookup};
use crate::gate::{ContainerState, ContainerView, Gate, Refusal, look};

const FILTERS: [&str; 9] =
    ["ancestor", "exited", "health", "id", "is-task", "label", "name", "network", "status"];

pub(super) async fn serve(call: Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("GET", ["json"]) => list(&call),
        ("GET", [word, "json"]) => {
            let found = find(&*call.gate, word).await?;
            reply::ok(&convert::inspect(&found, &call.gate.node().runtime.0))
        }
        ("POST", [word, "exec"]) => exec::create(call, word).await,
        ("GET", [word, "logs"]) => logs::container(&call, word).await,
        // A word that names nothing is told so even where nothing can be done.
        (_, [word, _]) if *word != "create" => {
            find(&*call.gate, word).await?;
            Err(call.unsupported())
        }
        _ => Err(call.unsupported()),
    }
}

/// The container of this id or name, or whose id starts so: of this node, or of any other that a
/// manager knows.
pub(super) async fn find(gate: &dyn Gate, word: &str) -> Result<ContainerView, ApiError> {
    let missing = || ApiError::not_found(format!("No such container: {word}"));
    if let Some(found) = here(gate, word)? {
        return Ok(found);
    }
    let found = match look(gate, |state| lookup::container(state, word)).await {
        // Only managers know of others.
        Err(
            Refusal::NotManager | Refusal::NotInSwarm | Refusal::ManagerNotReady | Refusal::Locked,
        ) => None,
        found => found??,
    };
    match found {
        Some((node, task)) if gate.node().node != Some(node) => {
            match gate.container(node, task).await {
                Err(Refusal::NotFound(_)) => Err(missing()),
                found => Ok(found?),
            }
        }
        _ => Err(missing()),
    }
}

/// The same among the containers of this node.
fn here(gate: &dyn Gate, word: &str) -> Result<Option<ContainerView>, ApiError> {
    let name = word.strip_prefix('/').unwrap_or(word);
    let mut containers = gate.containers();
    let exact = |c: &ContainerView| c.id == word || c.task.container_name() == name;
    if let Some(at) = containers.iter().position(exact) {
        return Ok(Some(containers.swap_remove(at)));
    }
    containers.retain(|c| !word.is_empty() && c.id.starts_with(word));
    match (containers.pop(), containers.is_empty()) {
        (Some(_), false) => Err(lookup::several_containers(word)),
        (found, _) => Ok(found),
    }
}

fn list(call: &Call) -> Outcome {
    let filters = Filters::of(&call.query, &FILTERS)?;
    let is_task = filters.truth("is-task")?;
    for word in filters.values("status") {
        if !["created", "restarting", "running", "removing", "paused", "exited", "dead"]
            .contains(&word)
        {
            return Err(ApiError::bad(format!("Invalid filter 'status={word}'")));
        }
    }
    let limit = call.query.number::<i64>("limit")?.and_then(|n| usize::try_from(n).ok());
    let limit = limit.filter(|n| *n > 0);
    let all =
        call.query.flag("all") || filters.has("status") || filters.has("exited") || limit.is_some();
    let ancestors: Vec<String> = filters
        .values("ancestor")
        .map(|name| {
            call.gate.images().resolve(name).map_or_else(|_| name.to_owned(), |i| i.id.clone())
        })
        .collect();
    let wanted = |c: &ContainerView| {
        (all || c.state == ContainerState::Running)
            && is_task.is_none_or(|yes| yes)
            && (ancestors.is_empty() || ancestors.contains(&c.image_id))
            && filters.any("name", |word| name_fits(&convert::name(c), word))
            && filters.prefix("id", &c.id)
            && filters.labels("label", &c.labels)
            && filters.any("status", |word| word == convert::state_word(c.state))
            && filters.any("health", |word| word == "none")
            && filters.any("network", |word| network_fits(c, word))
            && filters.any("exited", |word| {
                c.state == ContainerState::Exited && word == c.exit_code.to_string()
            })
    };
    let mut found: Vec<ContainerView> = call.gate.containers();
    found.retain(wanted);
    found.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    found.truncate(limit.unwrap_or(usize::MAX));
    let now = now();
    let shown: Vec<_> =
        found.iter().map(|c| convert::summary(c, image_name(&call.gate, c), now)).collect();
    reply::ok(&shown)
}

/// The image as the user named it, or its id if that name means another image by now.
fn image_name(gate: &Arc<dyn Gate>, container: &ContainerView) -> String {
    let name = &container.task.spec.container.image;
    match gate.images().resolve(name) {
        Ok(image) if image.id == container.image_id => name.clone(),
        _ => container.image_id.clone(),
    }
}

/// Docker takes a pattern here; skep takes its anchors and otherwise the text as it is.
fn name_fits(name: &str, pattern: &str) -> bool {
    let (start, text) = pattern.strip_prefix('^').map_or((false, pattern), |rest| (true, rest));
    let (end, text) = text.strip_suffix('$').map_or((false, text), |rest| (true, rest));
    let bare = name.strip_prefix('/').unwrap_or(name);
    [name, bare].iter().any(|name| match (start, end) {
        (true, true) => *name == text,
        (true, false) => name.starts_with(text),
        (false, true) => name.ends_with(text),
        (false, false) => name.contains(text),
    })
}

fn network_fits(container: &ContainerView, word: &str) -> bool {
    let name = convert::network_name(container);
    name == word || super::networks::predefined(word) == Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_anywhere_unless_anchored() {
        let name = "/redis.1.sleym5163uhfc5fu8ffivat8j";
        for pattern in ["redis", "dis.1", "^redis", "^/redis", "8j$", "/redis"] {
            assert!(name_fits(name, pattern), "{pattern}");
        }
        for pattern in ["^dis", "redis$", "^redis$", "mysql"] {
            assert!(!name_fits(name, pattern), "{pattern}");
        }
    }
}
