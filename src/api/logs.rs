//! Logs of containers, tasks and services: lines as frames of the multiplexed stream.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, SelectAll};
use futures_util::{Stream, StreamExt};
use http::HeaderValue;
use skep_core::id::{NodeId, ServiceId, TaskId};
use skep_core::model::task::Task;
use skep_core::state::State;
use skep_core::time::Stamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::call::Call;
use super::error::ApiError;
use super::query::Query;
use super::reply::{self, Outcome, Reply};
use super::time::{now, parse, rfc3339_fixed};
use super::{containers, lookup};
use crate::gate::{Gate, LogGap, LogLine, LogQuery, Logged, look};

/// Stdout in a frame's header.
pub(super) const STDOUT: u8 = 1;
/// Stderr in a frame's header.
pub(super) const STDERR: u8 = 2;
/// What the daemon itself says, as the last frame: clients show it as an error.
const SYSTEM: u8 = 3;
/// From this API version on the content type tells a multiplexed stream from a raw one.
pub(super) const MULTIPLEXED_SINCE: u32 = 42;
/// Frames that wait for a slow client.
const FRAMES: usize = 64;
/// How often a followed service is asked for new tasks.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How often a node that was lost while it was followed is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// How lines are to be written.
#[derive(Debug, Clone, Copy)]
struct Style {
    timestamps: bool,
    raw: bool,
}

/// One frame: type, length, payload.
pub(super) fn frame(kind: u8, parts: &[&[u8]]) -> Bytes {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = BytesMut::with_capacity(len + 8);
    frame.put_slice(&[kind, 0, 0, 0]);
    frame.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    for part in parts {
        frame.put_slice(part);
    }
    frame.freeze()
}

/// The content type of a stream.
pub(super) fn content_type(minor: u32, raw: bool) -> HeaderValue {
    HeaderValue::from_static(if raw || minor < MULTIPLEXED_SINCE {
        "application/vnd.docker.raw-stream"
    } else {
        "application/vnd.docker.multiplexed-stream"
    })
}

fn read_query(query: &Query) -> Result<LogQuery, ApiError> {
    let time = |name: &str| {
        parse(query.get(name))
            .ok_or_else(|| ApiError::bad(format!("invalid value for {name:?}: no point in time")))
    };
    let log = LogQuery {
        follow: query.flag("follow"),
        tail: match query.get("tail") {
            "" | "all" => None,
            // Docker takes what is no number for all.
            text => text.parse().ok(),
        },
        since: time("since")?,
        until: time("until")?,
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
    };
    if !log.stdout && !log.stderr {
        return Err(ApiError::bad("Bad parameters: you must choose at least one stream"));
    }
    Ok(log)
}

/// What precedes each line of a task where details are asked for.
fn details(task: &Task) -> String {
    let node = task.node.map(|id| id.to_string()).unwrap_or_default();
    format!(
        "com.docker.swarm.node.id={node},com.docker.swarm.service.id={},\
         com.docker.swarm.task.id={} ",
        task.service, task.id
    )
}

fn write(line: &LogLine, details: &str, style: Style) -> Bytes {
    let mut time = String::new();
    if style.timestamps {
        time = rfc3339_fixed(line.at);
        time.push(' ');
    }
    let parts = [time.as_bytes(), details.as_bytes(), &line.bytes];
    if style.raw {
        return Bytes::from(parts.concat());
    }
    frame(if line.stderr { STDERR } else { STDOUT }, &parts)
}

/// The last frame of a stream that lacks the lines of these nodes, in Docker's words.
fn lacking(gaps: &[LogGap], style: Style) -> Bytes {
    let why: Vec<_> =
        gaps.iter().map(|gap| format!("node {} is not available", gap.node)).collect();
    let text = format!(
        "Error grabbing logs: rpc error: code = Unknown desc = warning: incomplete log stream. \
         some logs could not be retrieved for the following reasons: {}\n",
        why.join(", ")
    );
    if style.raw { Bytes::from(text) } else { frame(SYSTEM, &[text.as_bytes()]) }
}

/// Frames of the lines of one task.
fn frames(
    lines: BoxStream<'static, Logged>,
    details: String,
    style: Style,
) -> impl Stream<Item = Bytes> + Send {
    lines.map(move |line| match line {
        Ok(line) => write(&line, &details, style),
        Err(gap) => lacking(&[gap], style),
    })
}

/// Logs of one container.
pub(super) async fn container(call: &Call, word: &str) -> Outcome {
    let query = read_query(&call.query)?;
    let found = containers::find(&*call.gate, word).await?;
    let style = style(call, &found.task);
    let lines = call.gate.logs(vec![(found.node, found.task.id)], query).await?;
    Ok(answer(call, style, frames(lines, String::new(), style)))
}

/// Logs of one task.
pub(super) async fn task(call: &Call, word: &str) -> Outcome {
    let query = read_query(&call.query)?;
    let found = look(&*call.gate, |state| lookup::task(state, word)).await??;
    let style = style(call, &found);
    let details = if call.query.flag("details") { details(&found) } else { String::new() };
    // One that is on no node yet has said nothing.
    let tasks = found.node.map(|node| (node, found.id)).into_iter().collect();
    let lines = call.gate.logs(tasks, query).await?;
    Ok(answer(call, style, frames(lines, details, style)))
}

/// Logs of all tasks of a service; a followed one's new tasks join in.
pub(super) async fn service(call: &Call, word: &str) -> Outcome {
    let query = read_query(&call.query)?;
    let found = look(&*call.gate, |state| lookup::service(state, word)).await??;
    let style =
        Style { timestamps: call.query.flag("timestamps"), raw: found.spec.task.container.tty };
    let mut follower = Follower {
        gate: Arc::clone(&call.gate),
        service: found.id,
        query,
        details: call.query.flag("details"),
        style,
        known: BTreeMap::new(),
        lines: SelectAll::new(),
        gaps: Vec::new(),
        told: BTreeSet::new(),
    };
    follower.look().await?;
    let (to, mut frames) = mpsc::channel(FRAMES);
    tokio::spawn(follower.run(to));
    Ok(answer(call, style, stream::poll_fn(move |cx| frames.poll_recv(cx))))
}

fn style(call: &Call, task: &Task) -> Style {
    Style { timestamps: call.query.flag("timestamps"), raw: task.spec.container.tty }
}

/// The stream, which also ends when the client has gone: one that only listens for lines that
/// do not come would otherwise never be noticed to have left.
fn answer(call: &Call, style: Style, frames: impl Stream<Item = Bytes> + Send + 'static) -> Reply {
    let peer = Arc::clone(&call.peer);
    let gone = Box::pin(async move { peer.gone().await });
    reply::stream(Some(content_type(call.minor, style.raw)), frames.take_until(gone))
}

/// A task whose lines are being read.
struct Known {
    node: NodeId,
    /// What precedes each line.
    details: String,
    /// When its last line was written; zero before the first.
    last: Stamp,
    /// Lines up to this were sent before its node was lost.
    sent: Stamp,
}

/// Collects the lines of a service's tasks.
struct Follower {
    gate: Arc<dyn Gate>,
    service: ServiceId,
    query: LogQuery,
    details: bool,
    style: Style,
    known: BTreeMap<TaskId, Known>,
    lines: SelectAll<BoxStream<'static, Logged>>,
    /// Nodes whose lines are missing, each with when that was seen.
    gaps: Vec<(LogGap, Instant)>,
    /// Those of them that the client was told of since they last said something.
    told: BTreeSet<NodeId>,
}

impl Follower {
    /// Adds the lines of tasks that are new; tells whether the service is still there.
    async fn look(&mut self) -> Result<bool, ApiError> {
        let service = self.service;
        let (there, tasks) = look(&*self.gate, |state: &State| {
            let tasks: Vec<Arc<Task>> = state.tasks_of_service(&service).cloned().collect();
            (state.service(&service).is_some(), tasks)
        })
        .await?;
        let ids: BTreeSet<TaskId> = tasks.iter().map(|task| task.id).collect();
        // What was removed needs no line any more once its stream has ended.
        if self.lines.is_empty() {
            self.known.retain(|id, _| ids.contains(id));
            self.gaps.retain(|(gap, _)| gap.tasks.iter().any(|task| ids.contains(task)));
        }
        let mut new = Vec::new();
        for task in tasks.iter().filter(|task| task.status.container.is_some()) {
            let Some(node) = task.node.filter(|_| !self.known.contains_key(&task.id)) else {
                continue;
            };
            let details = if self.details { details(task) } else { String::new() };
            let known = Known { node, details, last: Stamp(0), sent: Stamp(0) };
            self.known.insert(task.id, known);
            new.push((node, task.id));
        }
        if !new.is_empty() {
            self.lines.push(self.read(new, self.query.clone()));
        }
        Ok(there)
    }

    /// The lines of these tasks. Nodes are asked when the stream is: one that is slow to answer
    /// holds up no other stream.
    fn read(&self, tasks: Vec<(NodeId, TaskId)>, query: LogQuery) -> BoxStream<'static, Logged> {
        let gate = Arc::clone(&self.gate);
        let lines = stream::once(async move { gate.logs(tasks, query).await });
        // A node that has left the swarm meanwhile has no lines to give.
        lines.flat_map(|lines| lines.unwrap_or_else(|_| stream::empty().boxed())).boxed()
    }

    /// Asks nodes again that were lost a while ago, for what came after the last line.
    fn ask_again(&mut self) {
        let (due, rest) = std::mem::take(&mut self.gaps)
            .into_iter()
            .partition(|(_, seen)| seen.elapsed() >= ASK_AGAIN);
        self.gaps = rest;
        let due: Vec<(LogGap, Instant)> = due;
        for (gap, _) in due {
            let mut query = self.query.clone();
            let last = gap.tasks.iter().filter_map(|task| self.known.get(task)).map(|k| k.last);
            let (first, latest) = (last.clone().min(), last.max());
            query.since = query.since.max(first.unwrap_or_default());
            if latest.is_some_and(|stamp| stamp > Stamp(0)) {
                query.tail = None;
            }
            for task in &gap.tasks {
                if let Some(known) = self.known.get_mut(task) {
                    known.sent = known.last;
                }
            }
            let tasks = gap.tasks.iter().map(|task| (gap.node, *task)).collect();
            self.lines.push(self.read(tasks, query));
        }
    }

    /// The frame for what came, if there is to be one.
    fn take(&mut self, came: Logged) -> Option<Bytes> {
        match came {
            Ok(line) => {
                let known = self.known.get_mut(&line.task);
                let (details, sent) = known.map_or(("", Stamp(0)), |known| {
                    self.told.remove(&known.node);
                    known.last = known.last.max(line.at);
                    (known.details.as_str(), known.sent)
                });
                (line.at > sent || sent == Stamp(0)).then(|| write(&line, details, self.style))
            }
            Err(gap) => {
                let task = gap.tasks.first().copied();
                let is_news = self.query.follow && self.told.insert(gap.node);
                let note = task.filter(|_| is_news).map(|task| {
                    let text = format!("skep: node {} is not available: {}\n", gap.node, gap.why);
                    let details = self.known.get(&task).map_or("", |known| known.details.as_str());
                    let line = LogLine { task, at: now(), stderr: true, bytes: text.into_bytes() };
                    write(&line, details, self.style)
                });
                self.gaps.push((gap, Instant::now()));
                note
            }
        }
    }

    async fn run(mut self, to: mpsc::Sender<Bytes>) {
        let mut again = interval(LOOK_AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.query.follow || !self.lines.is_empty() {
            let came = tokio::select! {
                biased;
                () = to.closed() => return,
                came = self.lines.next(), if !self.lines.is_empty() => came,
                _ = again.tick(), if self.query.follow => {
                    // A service that is gone, or cannot be seen, has no more to say.
                    let there = matches!(self.look().await, Ok(true));
                    if !there && self.lines.is_empty() {
                        return;
                    }
                    self.ask_again();
                    continue;
                }
            };
            if let Some(frame) = came.and_then(|came| self.take(came))
                && to.send(frame).await.is_err()
            {
                return;
            }
        }
        if !self.gaps.is_empty() {
            let gaps: Vec<LogGap> = self.gaps.into_iter().map(|(gap, _)| gap).collect();
            // A client that has gone needs no end.
            let _ = to.send(lacking(&gaps, self.style)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_core::id::ENTROPY_LEN;

    fn line() -> LogLine {
        LogLine {
            task: TaskId::from_entropy([1; ENTROPY_LEN]),
            at: Stamp(1_795_337_018_500_000_000),
            stderr: true,
            bytes: b"boom\n".to_vec(),
        }
    }

    #[test]
    fn a_line_is_one_frame() {
        let plain = Style { timestamps: false, raw: false };
        assert_eq!(&write(&line(), "", plain)[..], b"\x02\0\0\0\0\0\0\x05boom\n");
        let full = write(&line(), "a=b,c=d ", Style { timestamps: true, raw: false });
        assert_eq!(&full[..4], b"\x02\0\0\0");
        assert_eq!(usize::from(full[7]), full.len() - 8);
        assert_eq!(&full[8..], b"2026-11-22T08:43:38.500000000Z a=b,c=d boom\n");
        assert_eq!(&write(&line(), "", Style { timestamps: false, raw: true })[..], b"boom\n");
    }

    #[test]
    fn a_stream_must_be_chosen() {
        let read = |text: &str| read_query(&Query::parse(text));
        assert!(read("follow=1").is_err());
        assert!(read("stdout=1&since=soon").is_err());
        let query = read("stdout=1&tail=7&since=1.5&follow=True").unwrap();
        assert!(query.stdout && !query.stderr && query.follow);
        assert_eq!((query.tail, query.since), (Some(7), Stamp(1_500_000_000)));
        assert_eq!(read("stderr=1&tail=all").unwrap().tail, None);
    }
}
