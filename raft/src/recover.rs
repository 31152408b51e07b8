//! Reading the log back after a start.
//!
//! What cannot be read is a torn tail, the rest of a write that a crash cut short, only at the
//! end of the last segment and only if nothing readable of a later batch stands behind it: a
//! later batch is written when the one before is durable. Anything else is damage, and the log
//! does not open.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crate::disk::Disk;
use crate::index::{Hole, Index, Place, entry_of};
use crate::key::Keys;
use crate::log::WriteError;
use crate::record::{ALIGN, Frame, Record, looks_like_frame, open_frame};
use crate::segment::{self, Carry, HEADER_BYTES, Segment, UNCOUNTED};
use crate::types::Position;

/// Why the log does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk refused.
    #[error("raft log: cannot {action}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A file is not as it was written, or was sealed with another key.
    #[error(
        "raft log: {file} is damaged at offset {offset}; restore this manager from a backup, or \
         remove it from the swarm and let it join again"
    )]
    Damaged {
        /// Name of the file.
        file: String,
        /// Where in the file.
        offset: u64,
    },
    /// A file is gone.
    #[error("raft log: the segment before {file} is missing")]
    Missing {
        /// Name of the file after the one that is gone.
        file: String,
    },
    /// A record is none that this version knows.
    #[error("raft log: {file} has a record at offset {offset} that skep {version} cannot \
         read; a newer version may", version = env!("CARGO_PKG_VERSION"))]
    Unknown {
        /// Name of the file.
        file: String,
        /// Where in the file.
        offset: u64,
        /// What is wrong with it.
        source: minicbor::decode::Error,
    },
    /// The entries in a file do not follow one another.
    #[error("raft log: {file} has an entry out of order at offset {offset}")]
    OutOfOrder {
        /// Name of the file.
        file: String,
        /// Where in the file.
        offset: u64,
    },
}

impl From<WriteError> for OpenError {
    fn from(e: WriteError) -> Self {
        Self::Disk { action: e.action, source: e.source }
    }
}

/// Names what failed.
trait During<T> {
    fn during(self, action: &'static str) -> Result<T, OpenError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, action: &'static str) -> Result<T, OpenError> {
        self.map_err(|source| OpenError::Disk { action, source })
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// Oldest first, each with where it ends.
    pub(crate) segments: VecDeque<(Arc<Segment>, u64)>,
    pub(crate) carry: Carry,
    pub(crate) index: Index,
    pub(crate) next_seq: u64,
    /// The last entry before the first segment. It must turn out to be purged or truncated, be
    /// it further on; until then nothing is known of the entries up to it.
    base: Option<u64>,
}

/// Reads all segments; cuts a torn tail; makes what counts durable.
pub(crate) fn recover(disk: &dyn Disk, keys: &Keys) -> Result<Recovered, OpenError> {
    let segments = open_all(disk, keys)?;
    let mut found = Recovered::default();
    let mut segments = segments.into_iter().peekable();
    while let Some(segment) = segments.next() {
        let segment = Arc::new(segment);
        let next = segments.peek().and_then(|next| next.header.previous);
        found.next_seq = segment.header.seq + 1;
        let end = found.read(&segment, next.map(|next| next.end))?;
        found.segments.push_back((segment, end));
    }
    let Recovered { segments, carry, index, base, .. } = &mut found;
    index.vote = carry.vote;
    index.committed = carry.committed;
    match segments.front() {
        Some((first, _)) if *base > carry.purged.map(|at| at.index) => {
            Err(OpenError::Missing { file: first.name.clone() })
        }
        _ => Ok(found),
    }
}

/// Opens the segments that count, oldest first, and removes what is left over.
fn open_all(disk: &dyn Disk, keys: &Keys) -> Result<VecDeque<Segment>, OpenError> {
    let mut names = disk.list().during("list the segments")?;
    names.sort_unstable();
    let mut segments = VecDeque::<Segment>::new();
    let mut leftover = Vec::new();
    for name in names {
        if segment::seq_of(&name).is_none() {
            if name.ends_with(".tmp") {
                leftover.push(name);
            }
            continue;
        }
        let segment = Segment::open(disk, keys, &name).during("open a segment")?;
        let Some(segment) = segment else {
            return Err(OpenError::Damaged { file: name, offset: 0 });
        };
        match (segments.back(), segment.header.previous) {
            (_, None) => leftover.extend(segments.drain(..).map(|old| old.name)),
            (Some(last), Some(previous))
                if (last.id, last.header.seq + 1) != (previous.id, segment.header.seq) =>
            {
                return Err(OpenError::Missing { file: name });
            }
            _ => {}
        }
        segments.push_back(segment);
    }
    for name in &leftover {
        disk.remove(name).during("remove a leftover")?;
    }
    if !leftover.is_empty() {
        disk.sync().during("sync the directory")?;
    }
    Ok(segments)
}

impl Recovered {
    /// Reads one segment: up to `end`, or as far as it can be read if it is the last. Returns
    /// where it ends.
    fn read(&mut self, segment: &Arc<Segment>, end: Option<u64>) -> Result<u64, OpenError> {
        let size = segment.file.size().during("measure a segment")?;
        let wanted = end.unwrap_or(size).min(size);
        let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(usize::MAX)];
        let read = segment.file.read_at(0, &mut bytes).during("read a segment")?;
        bytes.truncate(read);

        let damaged = |offset| OpenError::Damaged { file: segment.name.clone(), offset };
        self.carry = segment.header.carry;
        self.index.truncate(self.carry.last.map_or(0, |at| at.index + 1));
        let last = self.carry.last.map(|at| at.index);
        self.base = if self.segments.is_empty() { last } else { self.base.min(last) };
        if let Some(purged) = self.carry.purged {
            self.purge(purged);
        }
        let mut offset = HEADER_BYTES;
        let mut batch = Batch { start: offset, left: 0 };
        while end.is_none_or(|end| offset < end) {
            let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..));
            let frame = rest
                .ok_or(())
                .and_then(|rest| open_frame(&segment.cipher, offset, rest).map_err(|_| ()));
            let Ok(frame) = frame else {
                // The unreadable record belongs to the batch being read, or begins the next.
                let torn = self.carry.batch + u64::from(batch.left == 0);
                if end.is_some() || later_batch(segment, &bytes, offset, torn) {
                    return Err(damaged(offset));
                }
                if offset < size || batch.left > 0 {
                    keep(segment, &bytes, batch.start, offset).during("repair the tail")?;
                }
                break;
            };
            self.take(segment, offset, &frame, &mut batch)?;
            offset = frame.end;
        }
        match end {
            Some(end) if end != offset => Err(damaged(offset)),
            _ => Ok(offset),
        }
    }

    fn purge(&mut self, upto: Position) {
        if Some(upto.index) >= self.base {
            self.index.purge(upto);
        }
    }

    fn take(
        &mut self,
        segment: &Arc<Segment>,
        offset: u64,
        frame: &Frame,
        batch: &mut Batch,
    ) -> Result<(), OpenError> {
        let file = || segment.name.clone();
        let out_of_order = |_: Hole| OpenError::OutOfOrder { file: file(), offset };
        let record =
            frame.record().map_err(|source| OpenError::Unknown { file: file(), offset, source })?;
        let expected = self.carry.batch + u64::from(batch.left == 0);
        let heads = matches!(record, Record::Batch { .. });
        let place = match &record {
            Record::Committed(at) | Record::Purged(at) => at.index,
            _ => frame.index,
        };
        if frame.batch != expected || heads != (batch.left == 0) || place >= UNCOUNTED {
            return Err(OpenError::Damaged { file: file(), offset });
        }
        batch.left = batch.left.saturating_sub(1);
        match record {
            Record::Batch { records, .. } => {
                *batch = Batch { start: offset, left: records };
                self.carry.batch = frame.batch;
            }
            Record::Vote(vote) => self.carry.vote = Some(vote),
            Record::Committed(at) => self.carry.committed = Some(at),
            Record::Purged(at) => {
                self.carry.purged = Some(at);
                self.purge(at);
                if self.carry.last.is_none_or(|last| last.index < at.index) {
                    self.carry.last = Some(at);
                }
            }
            Record::Blank { .. } | Record::Normal { .. } | Record::Members { .. } => {
                let Some(entry) = entry_of(frame) else {
                    return Err(OpenError::Damaged { file: file(), offset });
                };
                if self.carry.last.is_some_and(|last| frame.index != last.index + 1) {
                    return Err(OpenError::OutOfOrder { file: file(), offset });
                }
                let bytes = usize::try_from(frame.end - offset).unwrap_or(usize::MAX);
                let place = Place { segment: Arc::clone(segment), offset, bytes };
                self.carry.last = Some(Position::from(&entry.log_id));
                self.index.push(entry, Some(place)).map_err(out_of_order)?;
            }
        }
        Ok(())
    }
}

/// The batch being read.
#[derive(Debug)]
struct Batch {
    /// Where it starts.
    start: u64,
    /// Records of it still to come.
    left: u64,
}

const ZEROS: [u8; 4_096] = [0; 4_096];

/// Whether anything readable behind `offset` belongs to a batch after number `torn`.
fn later_batch(segment: &Segment, bytes: &[u8], offset: u64, torn: u64) -> bool {
    let step = ALIGN as usize;
    let mut at = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(step);
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        // What was preallocated and never written, for the most part.
        if rest.starts_with(&ZEROS) {
            at += ZEROS.len();
            continue;
        }
        if looks_like_frame(rest)
            && let Ok(frame) = open_frame(&segment.cipher, at as u64, rest)
            && frame.batch > torn
        {
            return true;
        }
        at += step;
    }
    false
}

/// After a stop that was not clean: writes the last batch again, because a sync that failed before the last stop may have left
/// it in the cache only; then cuts what is torn.
fn keep(segment: &Segment, bytes: &[u8], start: u64, end: u64) -> io::Result<()> {
    let range = usize::try_from(start).unwrap_or(usize::MAX)..usize::try_from(end).unwrap_or(0);
    if let Some(batch) = bytes.get(range).filter(|batch| !batch.is_empty()) {
        segment.file.write_at(start, batch)?;
    }
    segment.file.cut(end)?;
    segment.file.sync()
}
