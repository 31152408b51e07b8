//! The images of this node.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use skep_core::time::Stamp;
use tokio::sync::mpsc;

use super::call::{Call, discard};
use super::convert::container::seconds;
use super::error::{ApiError, chain};
use super::filters::Filters;
use super::reply::{self, Outcome};
use super::time::rfc3339;
use super::types::image as wire;
use crate::engine::images::reference::Reference;
use crate::engine::images::{Image, ImageError, ImageStore, ImageUse, Import, Removed};
use crate::gate::{ContainerState, Gate};

/// Bytes of an imported archive as sent.
const IMPORT_BYTES: u64 = 32 << 30;
/// How long the next piece of an archive may take.
const PIECE_WAIT: Duration = Duration::from_secs(120);
/// Pieces that wait for the disk.
const PIECES: usize = 4;
/// Up to this API version there is `VirtualSize`.
const VIRTUAL_SIZE_UNTIL: u32 = 43;
const FILTERS: [&str; 5] = ["before", "dangling", "label", "reference", "since"];

pub(super) async fn serve(call: Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("GET", ["json"]) => list(&call),
        ("POST", ["create"]) => create(call).await,
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
        ImageError::NotFound(_) => StatusCode::NOT_FOUND,
        ImageError::Conflict(_) => StatusCode::CONFLICT,
        ImageError::Ambiguous(_)
        | ImageError::Reference(_)
        | ImageError::Change(_)
        | ImageError::Archive(_) => StatusCode::BAD_REQUEST,
        ImageError::Damaged { .. } | ImageError::Disk { .. } => StatusCode::INTERNAL_SERVER_ERROR,
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

async fn remove(call: &Call, name: String) -> Outcome {
    let force = call.query.flag("force");
    let removed = blocking(&call.gate, move |gate, images| {
        let mut users: BTreeMap<String, ImageUse> = BTreeMap::new();
        for container in gate.containers() {
            match container.state {
                ContainerState::Exited => {
                    users.entry(container.image_id).or_insert(ImageUse::Stopped(container.id));
                }
                ContainerState::Created | ContainerState::Running => {
                    users.insert(container.image_id, ImageUse::Running(container.id));
                }
            }
        }
        images.remove(&name, force, &|id| users.get(id).cloned())
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

async fn create(call: Call) -> Outcome {
    let query = &call.query;
    if !query.get("fromImage").is_empty() {
        let name = match query.get("tag") {
            "" => query.get("fromImage").to_owned(),
            tag => format!("{}:{tag}", query.get("fromImage")),
        };
        discard(call.body).await?;
        return Err(ApiError::not_found(format!(
            "cannot pull {name}: this version of skep does not pull images; make the image \
             with import on every node that is to run it"
        )));
    }
    match query.get("fromSrc") {
        "-" => {}
        other => {
            return Err(ApiError::unsupported(format!(
                "images/create with fromSrc={other:?} is not supported by this version of skep: \
                 send the archive as the body, with fromSrc=-"
            )));
        }
    }
    let import = Import {
        reference: reference(query.get("repo"), query.get("tag"))?,
        message: query.get("message").to_owned(),
        changes: query.all("changes").map(str::to_owned).collect(),
    };
    let (to, pieces) = mpsc::channel(PIECES);
    let gate = Arc::clone(&call.gate);
    let importing = tokio::spawn(async move {
        blocking(&gate, move |_, images| {
            images.import(&mut Archive { pieces, piece: Bytes::new(), done: false }, &import)
        })
        .await
    });
    pass_on(call.body, to).await;
    let image = importing
        .await
        .map_err(|error| ApiError::failed(format!("an import broke off: {error}")))??;
    let line = serde_json::to_string(&wire::Progress { status: image.id.clone() })
        .map_err(|error| ApiError::failed(error.to_string()))?;
    let line = Bytes::from(format!("{line}\r\n"));
    let content = HeaderValue::from_static("application/json");
    Ok(reply::stream(Some(content), futures_util::stream::iter([line])))
}

fn reference(repo: &str, tag: &str) -> Result<Option<Reference>, ApiError> {
    if repo.is_empty() {
        return Ok(None);
    }
    let bad = |error: &dyn std::error::Error| ApiError::bad(error.to_string());
    let reference = Reference::parse(repo).map_err(|error| bad(&error))?;
    if reference.digest().is_some() {
        return Err(ApiError::bad("cannot import digest reference"));
    }
    match tag {
        "" => Ok(Some(reference.or_latest())),
        tag => reference.with_tag(tag).map(Some).map_err(|error| bad(&error)),
    }
}

/// Hands a body on piece by piece. When nobody takes the pieces any more, the rest is read and
/// dropped, so that the client is there for the answer.
async fn pass_on(mut body: Incoming, to: mpsc::Sender<io::Result<Bytes>>) {
    let mut total: u64 = 0;
    loop {
        let piece = match tokio::time::timeout(PIECE_WAIT, body.frame()).await {
            Ok(Some(Ok(frame))) => frame.into_data().map(Ok),
            Ok(Some(Err(error))) => Ok(Err(io::Error::other(error))),
            Ok(None) => break,
            Err(_) => Ok(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no more of the archive came within {} s", PIECE_WAIT.as_secs()),
            ))),
        };
        let Ok(mut piece) = piece else { continue };
        // An empty piece says that this was all.
        if piece.as_ref().is_ok_and(Bytes::is_empty) {
            continue;
        }
        total += piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if total > IMPORT_BYTES {
            piece = Err(io::Error::other(format!("the archive has over {IMPORT_BYTES} bytes")));
        }
        let last = piece.is_err();
        let _ = to.send(piece).await;
        if last {
            return;
        }
    }
    // Told apart from a sender that was dropped half-way.
    let _ = to.send(Ok(Bytes::new())).await;
}

/// The pieces of a body as something to read from, on a thread that may block.
struct Archive {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
    done: bool,
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.done {
            self.piece = match self.pieces.blocking_recv() {
                Some(piece) => piece?,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the client broke off",
                    ));
                }
            };
            self.done = self.piece.is_empty();
        }
        let len = self.piece.len().min(buffer.len());
        if let Some(to) = buffer.get_mut(..len) {
            self.piece.copy_to_slice(to);
        }
        Ok(len)
    }
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

    #[test]
    fn an_archive_that_breaks_off_is_an_error() {
        let archive = |pieces: Vec<io::Result<Bytes>>| {
            let (to, receiver) = mpsc::channel(8);
            for piece in pieces {
                to.try_send(piece).unwrap();
            }
            Archive { pieces: receiver, piece: Bytes::new(), done: false }
        };
        let mut text = String::new();
        let whole = vec![Ok("ab".into()), Ok("c".into()), Ok(Bytes::new())];
        archive(whole).read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
        let cut = archive(vec![Ok("ab".into())]).read_to_end(&mut Vec::new());
        assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
