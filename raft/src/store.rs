//! The log as openraft sees it: a handle that queues, and one thread that writes.
//!
//! The thread takes everything that waits in the queue and makes it durable with one write and
//! one sync.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::{mpsc, oneshot};

use crate::StorageKey;
use crate::index::Found;
use crate::limits::{BATCH_BYTES, LINGER_MAX, LINGER_MIN, LINGER_SHARE, LOG_QUEUE, READ_ENTRIES};
use crate::log::{Log, SharedIndex, WriteError, lock};
use crate::record::Write;
use crate::types::{Entry, LogId, Position, TypeConfig, Vote};

type Done = oneshot::Sender<io::Result<()>>;

/// What the thread is asked to do.
enum Op {
    Append(Vec<Entry>, IOFlushed<TypeConfig>),
    Vote(Vote, Done),
    Committed(Position),
    Truncate(Option<Position>, Done),
    Purge(Position, Done),
    Scrub(Done),
    Rekey(Arc<StorageKey>, Done),
    Close(Done),
}

/// The log, for openraft and for the node.
#[derive(Clone)]
pub(crate) struct LogStore {
    queue: mpsc::Sender<Op>,
    index: SharedIndex,
}

/// Starts the thread that owns `log`. `fatal` is called on that thread when the disk refuses a
/// write; it should not return, and if it does, every later operation fails.
pub(crate) fn start(
    log: Log,
    fatal: impl Fn(&WriteError) + Send + 'static,
) -> io::Result<LogStore> {
    let (queue, ops) = mpsc::channel(LOG_QUEUE);
    let index = log.index();
    let writer = Writer { log, ops, fatal: Box::new(fatal), linger: None };
    std::thread::Builder::new().name("raft-log".into()).spawn(move || writer.run())?;
    Ok(LogStore { queue, index })
}

struct Writer {
    log: Log,
    ops: mpsc::Receiver<Op>,
    fatal: Box<dyn Fn(&WriteError) + Send>,
    /// How long the next group waits for more.
    linger: Option<Duration>,
}

/// Writes that wait for one sync, and who waits for them.
#[derive(Default)]
struct Group {
    writes: Vec<Write>,
    appends: Vec<IOFlushed<TypeConfig>>,
    votes: Vec<Done>,
    bytes: u64,
}

impl Writer {
    fn run(mut self) {
        while let Some(first) = self.ops.blocking_recv() {
            if let Some(linger) = self.linger.take() {
                std::thread::sleep(linger);
            }
            let mut group = Group::default();
            let mut next = Some(first);
            while let Some(op) = next.take() {
                match self.take(op, &mut group) {
                    Step::Go => {}
                    Step::Stop => return,
                }
                if group.bytes < BATCH_BYTES as u64 {
                    next = self.ops.try_recv().ok();
                }
            }
            self.flush(&mut group);
            // Off the path of whoever waits: the answers are out.
            self.log.prepare();
        }
        if let Err(e) = self.log.close() {
            (self.fatal)(&e);
        }
    }

    fn take(&mut self, op: Op, group: &mut Group) -> Step {
        match op {
            Op::Append(entries, flushed) => {
                for entry in entries {
                    group.push(Write::Entry(entry));
                }
                group.appends.push(flushed);
            }
            Op::Vote(vote, done) => {
                group.push(Write::Vote((&vote).into()));
                group.votes.push(done);
            }
            Op::Committed(at) => group.push(Write::Committed(at)),
            Op::Truncate(last, done) => self.alone(group, done, |log| log.truncate_after(last)),
            Op::Purge(upto, done) => self.alone(group, done, |log| log.purge(upto)),
            Op::Scrub(done) => self.alone(group, done, Log::scrub),
            Op::Rekey(key, done) => self.alone(group, done, |log| log.rekey(key)),
            Op::Close(done) => {
                self.alone(group, done, Log::close);
                return Step::Stop;
            }
        }
        Step::Go
    }

    /// Does what cannot share a batch, after everything queued before it.
    fn alone(
        &mut self,
        group: &mut Group,
        done: Done,
        act: impl FnOnce(&mut Log) -> Result<(), WriteError>,
    ) {
        self.flush(group);
        let result = act(&mut self.log);
        // Nobody may be waiting any more: then nobody needs the answer.
        let _ = done.send(self.answer(&result));
    }

    fn flush(&mut self, group: &mut Group) {
        let Group { writes, appends, votes, .. } = std::mem::take(group);
        if writes.is_empty() {
            return;
        }
        let entries = writes.iter().filter(|write| matches!(write, Write::Entry(_))).count();
        let began = Instant::now();
        let result = self.log.write(&writes);
        // Several proposers on a slow disk: those answered now are back in a moment, and should
        // not miss a sync that leaves just before.
        let linger = (began.elapsed() / LINGER_SHARE).min(LINGER_MAX);
        self.linger = (entries > 1 && linger >= LINGER_MIN).then_some(linger);
        // The latest first: openraft keeps only the highest, and each advance wakes it.
        for flushed in appends.into_iter().rev() {
            flushed.io_completed(self.answer(&result));
        }
        for done in votes {
            let _ = done.send(self.answer(&result));
        }
        if let Err(e) = result {
            (self.fatal)(&e);
        }
    }

    fn answer(&self, result: &Result<(), WriteError>) -> io::Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(e) => Err(e.to_io()),
        }
    }
}

enum Step {
    Go,
    Stop,
}

impl Group {
    fn push(&mut self, write: Write) {
        self.bytes += write.bytes();
        self.writes.push(write);
    }
}

impl LogStore {
    /// Writes the log anew without what was purged or truncated.
    pub(crate) async fn scrub(&self) -> io::Result<()> {
        self.ask(Op::Scrub).await
    }

    /// Writes the log anew under another key.
    pub(crate) async fn rekey(&self, key: Arc<StorageKey>) -> io::Result<()> {
        self.ask(|done| Op::Rekey(key, done)).await
    }

    /// Writes what is left to write and ends the thread.
    pub(crate) async fn close(&self) -> io::Result<()> {
        self.ask(Op::Close).await
    }

    async fn send(&self, op: Op) -> io::Result<()> {
        self.queue.send(op).await.map_err(|_| closed())
    }

    async fn ask(&self, op: impl FnOnce(Done) -> Op) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.send(op(done)).await?;
        answer.await.map_err(|_| closed())?
    }

    fn read(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let found = lock(&self.index).get(start, end);
        found.into_iter().map(Found::read).collect()
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the raft log is closed")
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(at) => *at,
            Bound::Excluded(at) => at.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(at) => at.saturating_add(1),
            Bound::Excluded(at) => *at,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(lock(&self.index).vote.map(Vote::from))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        let end = end.min(start.saturating_add(READ_ENTRIES));
        let found = lock(&self.index).get(start, end);
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in found {
            let entry = entry.read()?;
            bytes += crate::record::entry_bytes(&entry);
            if !entries.is_empty() && bytes > BATCH_BYTES {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let index = lock(&self.index);
        Ok(LogState {
            last_purged_log_id: index.purged().map(LogId::from),
            last_log_id: index.last().map(LogId::from),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = *vote;
        self.ask(|done| Op::Vote(vote, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(at) = committed.as_ref().map(Position::from) else { return Ok(()) };
        self.send(Op::Committed(at)).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(lock(&self.index).committed.map(LogId::from))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        {
            let mut index = lock(&self.index);
            for entry in &entries {
                index.push(entry.clone(), None).map_err(io::Error::other)?;
            }
        }
        self.send(Op::Append(entries, callback)).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let last = last_log_id.as_ref().map(Position::from);
        self.ask(|done| Op::Truncate(last, done)).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let upto = Position::from(&log_id);
        self.ask(|done| Op::Purge(upto, done)).await
    }
}
