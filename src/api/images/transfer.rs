//! Images that come and go as archives.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::HeaderValue;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::pieces::{self, Archive, PIECES, Sink, pass_on};
use super::{blocking, refused};
use crate::api::call::{Call, discard};
use crate::api::error::ApiError;
use crate::api::query::Query;
use crate::api::reply::{self, Outcome, Reply};
use crate::api::types::image as wire;
use crate::engine::images::reference::Reference;
use crate::engine::images::{
    ImageError, ImageStore, Import, LoadProgress, Loaded, Platform, Upload,
};
use crate::gate::Gate;

/// Reports of progress that wait for the client; what does not fit is left out.
const REPORTS: usize = 64;

pub(super) async fn create(mut call: Call) -> Outcome {
    let query = &call.query;
    if !query.get("fromImage").is_empty() {
        let name = match query.get("tag") {
            "" => query.get("fromImage").to_owned(),
            tag => format!("{}:{tag}", query.get("fromImage")),
        };
        discard(&mut call.body).await?;
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
    let image =
        receive(&call.gate, call.body, move |images, archive| images.import(archive, &import))
            .await?;
    Ok(messages(stream::iter([line(&wire::Progress { status: image.id.clone() })?])))
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

/// Hands a body to whoever reads it on a thread that may block.
async fn receive<T: Send + 'static>(
    gate: &Arc<dyn Gate>,
    body: Incoming,
    work: impl FnOnce(&ImageStore, &mut dyn Read) -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ApiError> {
    let (to, pieces) = mpsc::channel(PIECES);
    let gate = Arc::clone(gate);
    let receiving = tokio::spawn(async move {
        blocking(&gate, move |_, images| work(images, &mut Archive::new(pieces))).await
    });
    pass_on(body, to).await;
    receiving
        .await
        .map_err(|error| ApiError::failed(format!("taking in an archive broke off: {error}")))?
}

/// `platform={"os":"linux","architecture":"amd64"}`
#[derive(Debug, Deserialize)]
struct Wanted {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

fn platform(query: &Query) -> Result<Option<Platform>, ApiError> {
    let text = query.get("platform");
    if text.is_empty() {
        return Ok(None);
    }
    if query.all("platform").count() > 1 {
        return Err(ApiError::bad("several platforms are not supported: ask for one at a time"));
    }
    let Wanted { os, architecture, variant } = serde_json::from_str(text)
        .map_err(|error| ApiError::bad(format!("invalid platform {text:?}: {error}")))?;
    let or = |said: String, default: &str| if said.is_empty() { default.to_owned() } else { said };
    let architecture = or(architecture, "amd64");
    Ok(Some(Platform { os: or(os, "linux"), architecture, variant }))
}

type Loading = JoinHandle<Result<Vec<Loaded>, ApiError>>;

pub(super) async fn load(call: Call) -> Outcome {
    let (wanted, quiet) = (platform(&call.query)?, call.query.flag("quiet"));
    let upload = receive(&call.gate, call.body, |images, archive| images.receive(archive)).await?;
    let (to, mut reports) = mpsc::channel(REPORTS);
    let loading = tokio::spawn(run(call.gate, upload, wanted, quiet, to));
    // An error before anything was said is told by the status.
    let Some(first) = reports.recv().await else {
        return Ok(messages(stream::iter([told(loading).await?])));
    };
    let rest = stream::unfold(Some((reports, loading)), |open| async move {
        let (mut reports, loading) = open?;
        match reports.recv().await {
            Some(line) => Some((line, Some((reports, loading)))),
            None => Some((told(loading).await.unwrap_or_else(|error| failure(&error)), None)),
        }
    });
    Ok(messages(futures_util::StreamExt::chain(stream::iter([first]), rest)))
}

async fn run(
    gate: Arc<dyn Gate>,
    upload: Upload,
    wanted: Option<Platform>,
    quiet: bool,
    to: mpsc::Sender<Bytes>,
) -> Result<Vec<Loaded>, ApiError> {
    blocking(&gate, move |_, images| {
        images.load(upload, wanted.as_ref(), &mut |progress| {
            if let (false, Ok(line)) = (quiet, report(&progress)) {
                // A slow client misses some of them.
                let _ = to.try_send(line);
            }
        })
    })
    .await
}

fn report(progress: &LoadProgress) -> Result<Bytes, ApiError> {
    line(&json!({
        "status": "Loading layer",
        "progressDetail": {"current": progress.current, "total": progress.total},
        "id": progress.layer,
    }))
}

/// What was loaded, in Docker's words.
async fn told(loading: Loading) -> Result<Bytes, ApiError> {
    let done = loading.await;
    let done = done.map_err(|error| ApiError::failed(format!("a load broke off: {error}")))??;
    let mut lines = Vec::new();
    let mut say = |text: String| -> Result<(), ApiError> {
        lines.extend_from_slice(&line(&json!({"stream": format!("{text}\n")}))?);
        Ok(())
    };
    for image in done {
        for (name, before) in &image.moved {
            say(format!(
                "The image {name} already exists, renaming the old one with ID {before} to empty \
                 string"
            ))?;
        }
        for name in &image.names {
            say(format!("Loaded image: {name}"))?;
        }
        if image.names.is_empty() {
            say(format!("Loaded image ID: {}", image.id))?;
        }
    }
    Ok(lines.into())
}

/// An error where the status is said already.
fn failure(error: &ApiError) -> Bytes {
    let (_, text) = error.answer();
    line(&json!({"errorDetail": {"message": text}, "error": text})).unwrap_or_default()
}

fn line(message: &impl Serialize) -> Result<Bytes, ApiError> {
    let text = serde_json::to_string(message);
    let text = text.map_err(|error| ApiError::failed(error.to_string()))?;
    Ok(Bytes::from(format!("{text}\r\n")))
}

fn messages(lines: impl Stream<Item = Bytes> + Send + 'static) -> Reply {
    reply::stream(Some(HeaderValue::from_static("application/json")), lines)
}

pub(super) async fn save(call: Call, names: Vec<String>) -> Outcome {
    if names.is_empty() {
        return Err(ApiError::bad("no image is named: say names=IMAGE, once for each"));
    }
    let wanted = platform(&call.query)?;
    let export = blocking(&call.gate, move |_, images| images.export(&names, wanted.as_ref()));
    let export = export.await?;
    let (to, sent) = mpsc::channel(PIECES);
    let (gate, runtime) = (call.gate, Handle::current());
    tokio::task::spawn_blocking(move || {
        let mut sink = Sink::new(to, runtime);
        let written = gate.images().write(&export, &mut sink);
        let written = written.and_then(|()| sink.finish().map_err(ImageError::Send));
        if let Err(error) = written {
            // The client sees that the archive broke off.
            let (_, error) = refused(&error).answer();
            tracing::warn!(error, "images were not saved");
        }
    });
    let content = HeaderValue::from_static("application/x-tar");
    Ok(reply::breakable(Some(content), pieces::body(sent)))
}
