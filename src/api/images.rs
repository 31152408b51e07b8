//! The images of this node.

mod pieces;
mod transfer;

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};
use skep_core::time::Stamp;

use super::call::Call;
use super::convert::container::seconds;
use super::error::ApiError;
use super::filters::Filters;
use super::reply::{self, Outcome};
use super::time::rfc3339;
use super::types::image as wire;
use crate::chain::chain;
use crate::engine::images::reference::Reference;
use crate::engine::images::{Image, ImageError, ImageStore, ImageUse, Removed};
use crate::gate::{ContainerState, Gate};

/// Up to this API version there is `VirtualSize`.
const VIRTUAL_SIZE_UNTIL: u32 = 43;
const FILTERS: [&str; 5] = ["before", "dangling", "label", "reference", "since"];

pub(super) async fn serve(call: Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("GET", ["json"]) => list(&call),
        ("POST", ["create"]) => transfer::create(call).await,
        ("POST", ["load"]) => transfer::load(call).await,
        ("GET", ["get"]) => {
            let names = call.query.all("names").map(str::to_owned).collect();
            transfer::save(call, names).await
        }
        ("GET", [name @ .., "get"]) => {
            let name = name.join("/");
            transfer::save(call, vec![name]).await
        }
        ("GET", [name @ .., "json"]) if !name.is_empty() => {
            let image = resolve(&*call.gate, &name.join("/"))?;
            reply::ok(&inspect(&image, call.minor))
        }
        ("POST", [name @ .., "tag"]) if !name.is_empty() => tag(&call, name.join("/")).await,
        ("DELETE", [_, ..]) => remove(&call, path.join("/")).await,
        _ => Err(call.unsupported()),
    }
}

/// What a registry would say of an image, said of the one in the local store.
pub(super) async fn distribution(call: Call, path: &[&str]) -> Outcome {
    let ("GET", [name @ .., "json"]) = (call.method.as_str(), path) else {
        return Err(call.unsupported());
    };
    let name = name.join("/");
    let image = resolve(&*call.gate, &name)?;
    // A client pins the name it asked for to the digest; the beginning of an id is no name.
    let named = Reference::parse(&name).map(Reference::or_latest).is_ok_and(|reference| {
        reference.digest().is_some() || image.repo_tags.contains(&reference.familiar())
    });
    if !named {
        return Err(refused(&ImageError::NotFound(name)));
    }
    reply::ok(&wire::Distribution {
        descriptor: wire::Descriptor {
            media_type: image.manifest_media_type.clone(),
            digest: image.manifest_digest.clone(),
            size: image.manifest_bytes,
        },
        platforms: vec![wire::Platform {
            architecture: image.architecture.clone(),
            os: image.os.clone(),
            variant: image.variant.clone(),
        }],
    })
}

fn refused(error: &ImageError) -> ApiError {
    let status = match error {
        ImageError::NotFound(_) | ImageError::Platform { .. } => StatusCode::NOT_FOUND,
        ImageError::Conflict(_) => StatusCode::CONFLICT,
        ImageError::Ambiguous(_)
        | ImageError::Reference(_)
        | ImageError::Change(_)
        | ImageError::TooManyNames(_)
        | ImageError::TooMuch(_)
        | ImageError::Archive(_)
        | ImageError::Load(_) => StatusCode::BAD_REQUEST,
        ImageError::Damaged { .. } | ImageError::Disk { .. } | ImageError::Send(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    ApiError::Said(status, chain(error))
}

fn resolve(gate: &dyn Gate, name: &str) -> Result<Arc<Image>, ApiError> {
    gate.images().resolve(name).map_err(|error| refused(&error))
}

/// Runs what blocks on a thread for it.
async fn blocking<T: Send + 'static>(
    gate: &Arc<dyn Gate>,
    work: impl FnOnce(&dyn Gate, &ImageStore) -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ApiError> {
    let gate = Arc::clone(gate);
    let done = tokio::task::spawn_blocking(move || work(&*gate, gate.images())).await;
    done.map_err(|error| ApiError::failed(format!("work on images broke off: {error}")))?
        .map_err(|error| refused(&error))
}

fn list(call: &Call) -> Outcome {
    let filters = Filters::of(&call.query, &FILTERS)?;
    let dangling = filters.truth("dangling")?;
    let made = |key: &str| -> Result<Option<Stamp>, ApiError> {
        let name = filters.values(key).next();
        name.map(|name| resolve(&*call.gate, name).map(|image| image.created)).transpose()
    };
    let (before, since) = (made("before")?, made("since")?);
    let wanted = |image: &Image| {
        dangling.is_none_or(|dangling| image.repo_tags.is_empty() == dangling)
            && filters.labels("label", &image.config.labels)
            && before.is_none_or(|time| image.created < time)
            && since.is_none_or(|time| image.created > time)
            && filters.any("reference", |pattern| named(image, pattern))
    };
    let images = call.gate.images().list();
    let found = images.iter().filter(|image| wanted(image));
    reply::ok(&found.map(|image| summary(image, call.minor)).collect::<Vec<_>>())
}

/// Whether a name of the image is `pattern`, with or without its tag; `*` stands for anything.
fn named(image: &Image, pattern: &str) -> bool {
    image.repo_tags.iter().any(|name| {
        let bare = name.rsplit_once(':').map_or(name.as_str(), |(bare, _)| bare);
        fits(name.as_bytes(), pattern.as_bytes()) || fits(bare.as_bytes(), pattern.as_bytes())
    })
}

fn fits(text: &[u8], pattern: &[u8]) -> bool {
    // The last star, and where in the text what it stands for ends so far.
    let (mut t, mut p, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if Some(byte) == text.get(t) => {
                t += 1;
                p += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|byte| *byte == b'*')
}

fn summary(image: &Image, minor: u32) -> wire::Summary {
    let labels = &image.config.labels;
    wire::Summary {
        containers: -1,
        created: seconds(image.created),
        id: image.id.clone(),
        labels: (!labels.is_empty()).then(|| labels.clone()),
        parent_id: "",
        repo_digests: image.repo_digests.clone(),
        repo_tags: image.repo_tags.clone(),
        shared_size: -1,
        size: image.bytes,
        virtual_size: (minor <= VIRTUAL_SIZE_UNTIL).then_some(image.bytes),
    }
}

/// Everything of one image, in Docker's order.
fn inspect(image: &Image, minor: u32) -> Value {
    let config = &image.config;
    let list = |words: &Vec<String>| if words.is_empty() { Value::Null } else { json!(words) };
    let set = |words: &Vec<String>| -> Value {
        if words.is_empty() {
            return Value::Null;
        }
        Value::Object(words.iter().map(|word| (word.clone(), json!({}))).collect())
    };
    let mut shown = json!({
        "Id": image.id,
        "RepoTags": image.repo_tags,
        "RepoDigests": image.repo_digests,
        "Parent": "",
        "Comment": image.comment,
        "Created": rfc3339(image.created),
        "DockerVersion": "",
        "Author": image.author,
        "Config": {
            "Hostname": "",
            "Domainname": "",
            "User": config.user,
            "AttachStdin": false,
            "AttachStdout": false,
            "AttachStderr": false,
            "ExposedPorts": set(&config.exposed_ports),
            "Tty": false,
            "OpenStdin": false,
            "StdinOnce": false,
            "Env": list(&config.env),
            "Cmd": list(&config.cmd),
            "Image": "",
            "Volumes": set(&config.volumes),
            "WorkingDir": config.working_dir,
            "Entrypoint": list(&config.entrypoint),
            "OnBuild": null,
            "Labels": if config.labels.is_empty() { Value::Null } else { json!(config.labels) },
            "StopSignal": config.stop_signal,
        },
        "Architecture": image.architecture,
        "Variant": image.variant,
        "Os": image.os,
        "Size": image.bytes,
        "VirtualSize": image.bytes,
        "GraphDriver": {"Data": null, "Name": "overlay2"},
        "RootFS": {"Type": "layers", "Layers": image.diff_ids},
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
    });
    // Docker leaves these out where they are empty, or from some version on.
    let mut drop_key = |parent: &str, key: &str| {
        let place = if parent.is_empty() { Some(&mut shown) } else { shown.get_mut(parent) };
        if let Some(map) = place.and_then(Value::as_object_mut) {
            map.shift_remove(key);
        }
    };
    for (empty, parent, key) in [
        (config.exposed_ports.is_empty(), "Config", "ExposedPorts"),
        (config.stop_signal.is_empty(), "Config", "StopSignal"),
        (image.variant.is_empty(), "", "Variant"),
        (minor > VIRTUAL_SIZE_UNTIL, "", "VirtualSize"),
    ] {
        if empty {
            drop_key(parent, key);
        }
    }
    shown
}

async fn tag(call: &Call, name: String) -> Outcome {
    let mut target = call.query.get("repo").to_owned();
    if target.is_empty() {
        return Err(ApiError::bad("invalid reference format: repo is missing"));
    }
    let tag = call.query.get("tag");
    if !tag.is_empty() {
        target.push(':');
        target.push_str(tag);
    }
    blocking(&call.gate, move |_, images| images.tag(&name, &target)).await?;
    reply::empty(StatusCode::CREATED)
}

/// The container that keeps an image from being removed: first of all one that runs.
fn user_of(gate: &dyn Gate, image: &str) -> Option<ImageUse> {
    let containers = gate.containers();
    let users = containers.into_iter().filter(|container| container.image_id == image);
    let users = users.map(|container| match container.state {
        ContainerState::Exited => ImageUse::Stopped(container.id),
        ContainerState::Created | ContainerState::Running => ImageUse::Running(container.id),
    });
    users.min_by_key(|user| matches!(user, ImageUse::Stopped(_)))
}

async fn remove(call: &Call, name: String) -> Outcome {
    let force = call.query.flag("force");
    let removed = blocking(&call.gate, move |gate, images| {
        images.remove(&name, force, &|id| user_of(gate, id))
    })
    .await?;
    let shown: Vec<_> = removed
        .into_iter()
        .map(|step| match step {
            Removed::Untagged(name) => wire::Removed::Untagged(name),
            Removed::Deleted(id) => wire::Removed::Deleted(id),
        })
        .collect();
    reply::ok(&shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        let fits = |text: &str, pattern: &str| fits(text.as_bytes(), pattern.as_bytes());
        assert!(fits("busybox:latest", "busy*") && fits("busybox", "b*y*x") && fits("", "*"));
        assert!(fits("aXbXc", "a*Xc") && fits("abc", "abc"));
        assert!(!fits("busybox", "busy") && !fits("busybox", "*a") && !fits("", "a"));
    }
}
