//! Asks other nodes about their containers.

use std::fmt;
use std::future::pending;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use skep_core::id::{NodeId, TaskId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::failed;
use crate::gate::{
    ContainerView, ExecConfig, ExecStreams, ExecView, Later, LogGap, LogQuery, Logged, Refusal,
};
use crate::limits::{RELAY_ANSWER, RELAY_MESSAGE_BYTES, RELAY_PIECE_BYTES, RELAY_SILENCE};
use crate::wire::relay::{Answer, Ask, Piece};
use crate::wire::{Stream, WireError, receive, send};

/// The way to the agents of other nodes.
pub trait Reach: fmt::Debug + Send + Sync {
    /// Opens a stream to a node, for one question.
    ///
    /// # Errors
    /// [`Refusal::Unreachable`] if there is no way to it at the moment. It answers soon.
    fn open(&self, node: NodeId) -> Later<'_, Result<Box<dyn Stream>, Refusal>>;
}

/// Asks and takes the answer; a refusal is the error.
async fn ask(stream: &mut impl Stream, ask: &Ask) -> Result<Answer, Refusal> {
    let talk = async {
        send(stream, ask).await?;
        receive(stream, RELAY_MESSAGE_BYTES).await
    };
    let answered = timeout(RELAY_ANSWER, talk).await;
    match answered.unwrap_or(Err(WireError::Silent(RELAY_ANSWER))) {
        Ok(Answer::Refused(refused)) => Err(refused.into()),
        Ok(answer) => Ok(answer),
        Err(error) => Err(broken(error)),
    }
}

fn broken(error: WireError) -> Refusal {
    failed("cannot talk to the node of the container", error)
}

fn unexpected<T>() -> Result<T, Refusal> {
    Err(broken(WireError::Unexpected))
}

/// The container of a task.
///
/// # Errors
/// If it has none, or the node does not answer.
pub async fn container(mut stream: impl Stream, task: TaskId) -> Result<ContainerView, Refusal> {
    match ask(&mut stream, &Ask::Container { task }).await? {
        Answer::Container(container) => Ok(*container),
        _ => unexpected(),
    }
}

/// Makes an exec and tells its id.
///
/// # Errors
/// If the container does not run, or the node does not answer.
pub async fn exec_create(
    mut stream: impl Stream,
    container: &str,
    config: ExecConfig,
) -> Result<String, Refusal> {
    let container = container.to_owned();
    match ask(&mut stream, &Ask::ExecCreate { container, config }).await? {
        Answer::Created(id) => Ok(id),
        _ => unexpected(),
    }
}

/// An exec that runs or ended a short while ago.
///
/// # Errors
/// If there is none, or the node does not answer.
pub async fn exec_inspect(mut stream: impl Stream, id: &str) -> Result<ExecView, Refusal> {
    match ask(&mut stream, &Ask::ExecInspect { id: id.to_owned() }).await? {
        Answer::Exec(view) => Ok(view),
        _ => unexpected(),
    }
}

/// Sets the size of an exec's terminal.
///
/// # Errors
/// If it does not run, or the node does not answer.
pub async fn exec_resize(
    mut stream: impl Stream,
    id: &str,
    rows: u16,
    cols: u16,
) -> Result<(), Refusal> {
    match ask(&mut stream, &Ask::ExecResize { id: id.to_owned(), rows, cols }).await? {
        Answer::Done => Ok(()),
        _ => unexpected(),
    }
}

/// Starts an exec. Its streams live until the process has ended, the stream is lost, or their
/// `ended` is dropped: that is how a client leaves.
///
/// # Errors
/// If it cannot be started, or the node does not answer.
pub async fn exec_start(
    mut stream: impl Stream + 'static,
    id: &str,
    detach: bool,
    size: Option<(u16, u16)>,
) -> Result<ExecStreams, Refusal> {
    let question = Ask::ExecStart { id: id.to_owned(), detach, size };
    let (stdin, stdout, stderr) = match ask(&mut stream, &question).await? {
        Answer::Started { stdin, stdout, stderr } => (stdin, stdout, stderr),
        Answer::Done if detach => {
            let ended = Box::pin(async {});
            return Ok(ExecStreams { stdin: None, stdout: None, stderr: None, ended });
        }
        _ => return unexpected(),
    };
    let pipe = |wanted: bool| match wanted {
        true => {
            let (ours, theirs) = duplex(RELAY_PIECE_BYTES);
            (Some(ours), Some(theirs))
        }
        false => (None, None),
    };
    let (input, stdin) = pipe(stdin);
    let (out, stdout) = pipe(stdout);
    let (err, stderr) = pipe(stderr);
    let (mut end, ended) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let (from, to) = split(stream);
        tokio::select! {
            shown = show(from, out, err) => {
                if let Err(error) = shown {
                    tracing::debug!(%error, "the streams of an exec on another node broke off");
                }
            }
            () = feed(input, to) => {}
            () = end.closed() => {}
        }
    });
    Ok(ExecStreams {
        stdin: stdin.map(|pipe| Box::new(pipe) as _),
        stdout: stdout.map(|pipe| Box::new(pipe) as _),
        stderr: stderr.map(|pipe| Box::new(pipe) as _),
        // Lost or not, nothing more comes once the sender is gone.
        ended: Box::pin(async move { drop(ended.await) }),
    })
}

/// Hands on what a process says until it has ended.
async fn show(
    mut from: impl AsyncRead + Unpin,
    mut out: Option<DuplexStream>,
    mut err: Option<DuplexStream>,
) -> Result<(), WireError> {
    loop {
        let (pipe, bytes) = match piece(&mut from).await? {
            Piece::Stdout(bytes) => (&mut out, bytes),
            Piece::Stderr(bytes) => (&mut err, bytes),
            Piece::Pulse => continue,
            Piece::End => return Ok(()),
            Piece::Line(_) => return Err(WireError::Unexpected),
        };
        // Where nobody reads any more, the other one may still be read.
        if let Some(open) = pipe
            && (bytes.is_empty() || open.write_all(&bytes).await.is_err())
        {
            *pipe = None;
        }
    }
}

/// The next piece; a node that gives no sign of life is lost.
async fn piece(from: &mut (impl AsyncRead + Unpin)) -> Result<Piece, WireError> {
    let received = timeout(RELAY_SILENCE, receive(from, RELAY_MESSAGE_BYTES)).await;
    received.unwrap_or(Err(WireError::Silent(RELAY_SILENCE)))
}

/// Hands the client's input to the node, and its end. Never ends itself: if it cannot go on, the
/// other direction tells why.
async fn feed(input: Option<DuplexStream>, mut to: impl AsyncWrite + Unpin) {
    if let Some(mut input) = input {
        let mut buffer = vec![0; RELAY_PIECE_BYTES];
        while let Ok(len @ 1..) = input.read(&mut buffer).await {
            if to.write_all(buffer.get(..len).unwrap_or_default()).await.is_err() {
                break;
            }
        }
    }
    let _ = to.shutdown().await;
    pending().await
}

/// Lines of the logs of a node's tasks. If the stream breaks off, its last item is the gap.
///
/// # Errors
/// If the node does not answer.
pub async fn logs(
    mut stream: impl Stream + 'static,
    node: NodeId,
    tasks: Vec<TaskId>,
    query: LogQuery,
) -> Result<BoxStream<'static, Logged>, Refusal> {
    match ask(&mut stream, &Ask::Logs { tasks: tasks.clone(), query }).await? {
        Answer::Lines => {}
        _ => return unexpected(),
    }
    let lines = stream::unfold(Some((stream, tasks)), move |open| async move {
        let (mut stream, tasks) = open?;
        let error = loop {
            match piece(&mut stream).await {
                Ok(Piece::Pulse) => {}
                Ok(Piece::End) => return None,
                Ok(Piece::Line(line)) if tasks.contains(&line.task) => {
                    return Some((Ok(line), Some((stream, tasks))));
                }
                // A node speaks for its own tasks only.
                Ok(_) => break WireError::Unexpected,
                Err(error) => break error,
            }
        };
        Some((Err(LogGap { node, tasks, why: error.to_string() }), None))
    });
    Ok(lines.boxed())
}

#[cfg(test)]
mod tests;
