//! Commands run in a container, and the connection that becomes their streams.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tracing::debug;

use super::call::{Call, read_json};
use super::containers;
use super::error::ApiError;
use super::logs::{STDERR, STDOUT, content_type, frame};
use super::peer::Peer;
use super::reply::{self, Outcome};
use super::types::exec as wire;
use crate::gate::{ContainerState, ExecConfig, ExecStreams};

/// Bytes read from a process at a time.
const CHUNK: usize = 32 << 10;
/// Chunks that wait for a slow client.
const CHUNKS: usize = 8;

type Source = Box<dyn AsyncRead + Send + Unpin>;
type Sink = Box<dyn AsyncWrite + Send + Unpin>;

pub(super) async fn serve(call: Call, path: &[&str]) -> Outcome {
    match (call.method.as_str(), path) {
        ("GET", [id, "json"]) => inspect(&call, id).await,
        ("POST", [id, "start"]) => start(call, id).await,
        ("POST", [id, "resize"]) => {
            let size = |name| call.query.number::<u16>(name).map(Option::unwrap_or_default);
            call.gate.exec_resize(id, size("h")?, size("w")?).await?;
            reply::empty(StatusCode::OK)
        }
        _ => Err(call.unsupported()),
    }
}

/// Makes an exec: `POST /containers/{id}/exec`.
pub(super) async fn create(call: Call, word: &str) -> Outcome {
    let sent: wire::ExecCreate = read_json(&call.headers, call.body).await?;
    let found = containers::find(&*call.gate, word).await?;
    if found.state != ContainerState::Running {
        return Err(ApiError::conflict(format!("container {} is not running", found.id)));
    }
    if sent.cmd.is_empty() {
        return Err(ApiError::bad("No exec command specified"));
    }
    let config = ExecConfig {
        args: sent.cmd,
        env: sent.env,
        cwd: sent.working_dir,
        user: sent.user,
        tty: sent.tty,
        privileged: sent.privileged,
        stdin: sent.attach_stdin,
        stdout: sent.attach_stdout,
        stderr: sent.attach_stderr,
        detach_keys: sent.detach_keys,
    };
    let id = call.gate.exec_create(found.node, &found.id, config).await?;
    reply::json(StatusCode::CREATED, &wire::ExecCreated { id })
}

async fn inspect(call: &Call, id: &str) -> Outcome {
    let view = call.gate.exec_inspect(id).await?;
    let mut args = view.config.args.into_iter();
    reply::ok(&wire::ExecInspect {
        id: view.id,
        running: view.running,
        exit_code: view.exit_code,
        process_config: wire::ProcessConfig {
            tty: view.config.tty,
            entrypoint: args.next().unwrap_or_default(),
            arguments: args.collect(),
            privileged: view.config.privileged,
            user: view.config.user,
        },
        open_stdin: view.config.stdin,
        open_stderr: view.config.stderr,
        open_stdout: view.config.stdout,
        can_remove: false,
        container_id: view.container,
        detach_keys: view.config.detach_keys,
        pid: view.pid,
    })
}

async fn start(call: Call, id: &str) -> Outcome {
    let sent: wire::ExecStart = read_json(&call.headers, call.body).await?;
    let view = call.gate.exec_inspect(id).await?;
    let size = match sent.console_size.as_deref() {
        Some([rows, cols]) => Some((*rows, *cols)),
        _ => None,
    };
    let streams = call.gate.exec_start(id, sent.detach, size).await?;
    if sent.detach {
        return reply::empty(StatusCode::OK);
    }
    let raw = view.config.tty;
    let content = content_type(call.minor, raw);
    let Some(upgrade) = call.upgrade else { return Ok(one_way(content, streams, raw)) };
    let peer = call.peer;
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => relay(TokioIo::new(upgraded), streams, raw, &peer).await,
            Err(error) => debug!(%error, "a connection was not handed over to its exec"),
        }
    });
    let mut reply = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, content);
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
    Ok(reply)
}

/// What old clients get that do not ask for an upgrade: output as the body of the answer.
fn one_way(content: HeaderValue, streams: ExecStreams, raw: bool) -> reply::Reply {
    let mut output = output(streams.stdout, streams.stderr, raw);
    let mut ended = Some(streams.ended);
    let chunks = stream::poll_fn(move |cx| match output.poll_recv(cx) {
        std::task::Poll::Ready(None) => {
            // The body ends only once the exit code can be asked for.
            let Some(end) = ended.as_mut() else { return std::task::Poll::Ready(None) };
            std::task::ready!(end.as_mut().poll(cx));
            ended = None;
            std::task::Poll::Ready(None)
        }
        other => other,
    });
    reply::stream(Some(content), chunks)
}

/// Connects a client with a process until the process has ended or the client has gone. The end
/// of the client's input is the end of the process's, and no more than that.
async fn relay(
    client: impl AsyncRead + AsyncWrite + Send + 'static,
    streams: ExecStreams,
    raw: bool,
    peer: &Arc<Peer>,
) {
    let (from_client, mut to_client) = tokio::io::split(client);
    let mut output = output(streams.stdout, streams.stderr, raw);
    let input = tokio::spawn(feed(Box::new(from_client), streams.stdin));
    let show = async {
        while let Some(chunk) = output.recv().await {
            to_client.write_all(&chunk).await?;
            if output.is_empty() {
                to_client.flush().await?;
            }
        }
        // The client asks for the exit code as soon as it sees the end.
        streams.ended.await;
        to_client.shutdown().await
    };
    tokio::select! {
        shown = show => {
            if let Err(error) = shown {
                debug!(%error, "the client of an exec left");
            }
        }
        () = peer.gone() => {}
    }
    input.abort();
}

/// Hands the client's input to the process, then closes its stdin.
async fn feed(mut client: Source, stdin: Option<Sink>) {
    match stdin {
        Some(mut stdin) => {
            if let Err(error) = tokio::io::copy(&mut client, &mut stdin).await {
                debug!(%error, "an exec's input broke off");
            }
            let _ = stdin.shutdown().await;
        }
        // Nobody wants it; it is read so that the client is not held up.
        None => {
            let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
        }
    }
}

/// The output of a process as chunks for the client, until both of its streams have ended.
fn output(stdout: Option<Source>, stderr: Option<Source>, raw: bool) -> mpsc::Receiver<Bytes> {
    let (to, chunks) = mpsc::channel(CHUNKS);
    for (kind, source) in [(STDOUT, stdout), (STDERR, stderr)] {
        if let Some(source) = source {
            tokio::spawn(drain(source, kind, raw, to.clone()));
        }
    }
    chunks
}

async fn drain(mut source: Source, kind: u8, raw: bool, to: mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            read = source.read(&mut buffer) => read,
            () = to.closed() => return,
        };
        let Ok(len @ 1..) = read else { return };
        let bytes = buffer.get(..len).unwrap_or_default();
        let chunk = if raw { Bytes::copy_from_slice(bytes) } else { frame(kind, &[bytes]) };
        if to.send(chunk).await.is_err() {
            return;
        }
    }
}
