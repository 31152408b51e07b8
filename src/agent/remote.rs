//! Serves what other nodes ask about the containers of this one.

use std::future::pending;
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::Semaphore;
use tokio::time::{Instant, interval_at, timeout};

use super::Agent;
use super::exec::no_such;
use crate::engine::images::exchange;
use crate::engine::logs::{self, LogSource};
use crate::gate::{ExecStreams, Refusal};
use crate::limits::{
    RELAY_ANSWER, RELAY_LINES, RELAY_MESSAGE_BYTES, RELAY_PIECE_BYTES, RELAY_PULSE, RELAY_STREAMS,
};
use crate::wire::relay::{Answer, Ask, Piece};
use crate::wire::{WireError, frame, receive_known, send};

type Source = Option<Box<dyn AsyncRead + Send + Unpin>>;
type Sink = Option<Box<dyn AsyncWrite + Send + Unpin>>;

/// The door for other nodes. Whoever holds it has checked who they are.
#[derive(Debug)]
pub struct Remote {
    agent: Arc<Agent>,
    room: Semaphore,
}

impl Remote {
    /// A door to this agent.
    #[must_use]
    pub fn new(agent: Arc<Agent>) -> Self {
        Self { agent, room: Semaphore::new(RELAY_STREAMS) }
    }

    /// Answers the question that comes on a stream, and ends with it. Dropping the call ends the
    /// stream, and with it the streams of the exec it serves.
    ///
    /// # Errors
    /// If the stream broke off, or the peer broke the protocol.
    pub async fn serve<S>(&self, mut stream: S) -> Result<(), WireError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let Ok(_turn) = self.room.try_acquire() else {
            let text = format!("this node serves {RELAY_STREAMS} streams of others already");
            return end(stream, &refused(Refusal::Conflict(text))).await;
        };
        let asked = timeout(RELAY_ANSWER, receive_known(&mut stream, RELAY_MESSAGE_BYTES)).await;
        let Some(ask) = asked.map_err(|_| WireError::Silent(RELAY_ANSWER))?? else {
            let text = "the skep on the container's node is too old for this: upgrade it";
            return end(stream, &refused(Refusal::Unsupported(text.into()))).await;
        };
        let answer = match ask {
            Ask::ExecStart { id, detach, size } => {
                match self.agent.exec_start(&id, detach, size).await {
                    Ok(streams) if !detach => return exec(stream, streams).await,
                    done => done.map(|_| Answer::Done),
                }
            }
            Ask::Logs { tasks, query } => {
                let sources = tasks.into_iter().filter_map(|task| {
                    let (task_dir, ended) = self.agent.log_source(&task)?;
                    Some(LogSource { task, task_dir, ended })
                });
                return lines(stream, logs::read(sources.collect(), query)).await;
            }
            Ask::Image { name } => {
                return exchange::give(&self.agent.context().images, &name, &mut stream).await;
            }
            Ask::Container { task } => {
                let missing = || Refusal::NotFound(format!("No such container: {task}"));
                let found = self.agent.container(&task).ok_or_else(missing);
                found.map(|found| Answer::Container(Box::new(found)))
            }
            Ask::ExecCreate { container, config } => {
                self.agent.exec_create(&container, config).map(Answer::Created)
            }
            Ask::ExecInspect { id } => {
                let found = self.agent.context().execs.view(&id);
                found.map(Answer::Exec).ok_or_else(|| no_such(&id))
            }
            Ask::ExecResize { id, rows, cols } => {
                self.agent.exec_resize(&id, rows, cols).map(|()| Answer::Done)
            }
        };
        end(stream, &answer.unwrap_or_else(refused)).await
    }
}

fn refused(refusal: Refusal) -> Answer {
    Answer::Refused(refusal.into())
}

/// Sends what ends a stream.
async fn end(
    mut stream: impl AsyncWrite + Unpin,
    last: &impl minicbor::Encode<()>,
) -> Result<(), WireError> {
    send(&mut stream, last).await?;
    Ok(stream.shutdown().await?)
}

/// Joins an exec's streams to the asker until the process has ended or the asker is lost.
async fn exec<S>(stream: S, mut streams: ExecStreams) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (from, mut to) = split(stream);
    let started = Answer::Started {
        stdin: streams.stdin.is_some(),
        stdout: streams.stdout.is_some(),
        stderr: streams.stderr.is_some(),
    };
    send(&mut to, &started).await?;
    let stdin = streams.stdin.take();
    let output = async {
        show(&mut to, &mut streams).await?;
        end(&mut to, &Piece::End).await
    };
    tokio::select! {
        shown = output => shown,
        lost = feed(from, stdin) => Err(lost.into()),
    }
}

/// Hands the asker's bytes to the process, then closes its stdin. Ends only if the stream breaks.
async fn feed(mut from: impl AsyncRead + Unpin, mut stdin: Sink) -> std::io::Error {
    let mut buffer = vec![0; RELAY_PIECE_BYTES];
    loop {
        let len = match from.read(&mut buffer).await {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) => return error,
        };
        let bytes = buffer.get(..len).unwrap_or_default();
        if let Some(sink) = &mut stdin
            && sink.write_all(bytes).await.is_err()
        {
            // The process reads no more; the asker must not be held up for it.
            stdin = None;
        }
    }
    if let Some(mut sink) = stdin {
        // One that reads no more needs no end.
        let _ = sink.shutdown().await;
    }
    pending().await
}

/// Sends a process's output until both of its streams have ended, and it has.
async fn show(
    to: &mut (impl AsyncWrite + Unpin),
    streams: &mut ExecStreams,
) -> Result<(), WireError> {
    let (mut out, mut err) = (vec![0; RELAY_PIECE_BYTES], vec![0; RELAY_PIECE_BYTES]);
    let mut pulse = interval_at(Instant::now() + RELAY_PULSE, RELAY_PULSE);
    let mut has_ended = false;
    while streams.stdout.is_some() || streams.stderr.is_some() || !has_ended {
        let is_silent = streams.stdout.is_none() && streams.stderr.is_none();
        let piece = tokio::select! {
            len = read(&mut streams.stdout, &mut out) => {
                Some(Piece::Stdout(taken(len, &out, &mut streams.stdout)))
            }
            len = read(&mut streams.stderr, &mut err) => {
                Some(Piece::Stderr(taken(len, &err, &mut streams.stderr)))
            }
            () = &mut streams.ended, if is_silent => {
                has_ended = true;
                None
            }
            // Only by writing is it seen that nobody is there any more.
            _ = pulse.tick() => Some(Piece::Pulse),
        };
        if let Some(piece) = piece {
            send(to, &piece).await?;
            pulse.reset();
        }
    }
    Ok(())
}

async fn read(source: &mut Source, buffer: &mut [u8]) -> usize {
    match source {
        Some(source) => source.read(buffer).await.unwrap_or(0),
        None => pending().await,
    }
}

/// What was read: nothing at the end of a source, which is taken away then.
fn taken(len: usize, buffer: &[u8], source: &mut Source) -> Vec<u8> {
    if len == 0 {
        *source = None;
    }
    buffer.get(..len).map(<[u8]>::to_vec).unwrap_or_default()
}

/// Sends lines until there are no more.
async fn lines<S>(
    mut stream: S,
    lines: futures_util::stream::BoxStream<'static, crate::gate::LogLine>,
) -> Result<(), WireError>
where
    S: AsyncWrite + Unpin,
{
    send(&mut stream, &Answer::Lines).await?;
    let mut lines = lines.ready_chunks(RELAY_LINES);
    let mut pulse = interval_at(Instant::now() + RELAY_PULSE, RELAY_PULSE);
    loop {
        let bytes = tokio::select! {
            chunk = lines.next() => match chunk {
                Some(chunk) => chunk.into_iter().flat_map(|line| frame(&Piece::Line(line))).collect(),
                None => return end(stream, &Piece::End).await,
            },
            _ = pulse.tick() => frame(&Piece::Pulse),
        };
        stream.write_all(&bytes).await?;
        stream.flush().await?;
        pulse.reset();
    }
}
