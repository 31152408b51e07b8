//! The log as a synchronous machine: what it is told to write is durable when the call returns.
//!
//! Entries live in `Index`, which readers share; `Log` alone writes. A failed write or sync is
//! never repeated: the log refuses everything afterwards, and whoever runs it must stop.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::StorageKey;
use crate::disk::{Disk, DiskFile};
use crate::index::{Found, Index, Place};
use crate::key::Keys;
use crate::limits::{BATCH_BYTES, SEGMENT_BYTES, SEGMENT_MIN_BYTES};
use crate::record::{Record, Write, push_frame};
use crate::recover;
use crate::segment::{Carry, HEADER_BYTES, Header, Previous, SPARE, Segment, UNFINISHED};
use crate::types::Position;

pub use crate::recover::OpenError;

/// The disk refused a write. Nothing may be written after it.
#[derive(Debug, thiserror::Error)]
#[error("raft log: cannot {action}")]
pub(crate) struct WriteError {
    pub(crate) action: &'static str,
    pub(crate) source: io::Error,
}

impl WriteError {
    pub(crate) fn to_io(&self) -> io::Error {
        io::Error::new(self.source.kind(), format!("{self}: {}", self.source))
    }
}

/// Names what failed.
trait During<T> {
    fn during(self, action: &'static str) -> Result<T, WriteError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, action: &'static str) -> Result<T, WriteError> {
        self.map_err(|source| WriteError { action, source })
    }
}

/// The index as readers and writer share it.
pub(crate) type SharedIndex = Arc<Mutex<Index>>;

/// Locks the index. Nothing panics while it is held, so poison means nothing.
pub(crate) fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sizes that others watch.
#[derive(Debug, Default)]
pub(crate) struct LogSize {
    pub(crate) bytes: AtomicU64,
    pub(crate) segments: AtomicUsize,
}

/// The writer of the log.
#[derive(Debug)]
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    key: Arc<StorageKey>,
    /// Oldest first, each with where it ends; behind them comes `active`.
    sealed: VecDeque<(Arc<Segment>, u64)>,
    active: Arc<Segment>,
    /// Where the next batch goes.
    tail: u64,
    carry: Carry,
    /// Committed, but not written yet: it travels with the next batch.
    deferred: Option<Position>,
    spare: Option<Box<dyn DiskFile>>,
    /// Whether it was said that there is no room for one.
    has_warned: bool,
    index: SharedIndex,
    size: Arc<LogSize>,
    failed: bool,
}

impl Log {
    /// Opens the log in `disk`; an empty directory is an empty log.
    pub(crate) fn open(disk: Arc<dyn Disk>, key: Arc<StorageKey>) -> Result<Self, OpenError> {
        Self::open_with(disk, &Keys::one(key))
    }

    /// The same where segments may be sealed with either of two keys.
    pub(crate) fn open_with(disk: Arc<dyn Disk>, keys: &Keys) -> Result<Self, OpenError> {
        let recovered = recover::recover(&*disk, keys)?;
        let key = Arc::clone(&keys.new);
        let previous = recovered.segments.back();
        let previous = previous.map(|(last, end)| Previous { id: last.id, end: *end });
        let header = Header { seq: recovered.next_seq, previous, carry: recovered.carry };
        let made = make(&*disk, &key, None, header, &[])?;
        let log = Self {
            disk,
            key,
            sealed: recovered.segments,
            active: made.segment,
            tail: made.tail,
            carry: recovered.carry,
            deferred: None,
            spare: None,
            has_warned: false,
            index: Arc::new(Mutex::new(recovered.index)),
            size: Arc::default(),
            failed: false,
        };
        log.measure();
        Ok(log)
    }

    pub(crate) fn index(&self) -> SharedIndex {
        Arc::clone(&self.index)
    }

    pub(crate) fn size(&self) -> Arc<LogSize> {
        Arc::clone(&self.size)
    }

    /// Writes all of `writes`, in order, and syncs once per batch. Entries are in the index
    /// already.
    pub(crate) fn write(&mut self, writes: &[Write]) -> Result<(), WriteError> {
        if !writes.iter().any(Write::must_sync) {
            let committed = writes.iter().rev().find_map(Write::committed);
            self.deferred = committed.or(self.deferred);
            lock(&self.index).committed = self.deferred;
            return Ok(());
        }
        let deferred = self.deferred.take().map(Write::Committed);
        let all: Vec<&Write> = deferred.iter().chain(writes).collect();
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            let (count, bytes) = batch_of(rest);
            let (batch, after) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            if self.tail > HEADER_BYTES && self.tail + bytes > SEGMENT_BYTES {
                self.guard(|log| log.rotate())?;
            }
            self.guard(|log| log.write_batch(batch))?;
            rest = after;
        }
        self.measure();
        Ok(())
    }

    /// Writes what waits for a next batch, and leaves a file without a tail to be searched.
    pub(crate) fn close(&mut self) -> Result<(), WriteError> {
        let deferred = self.deferred.take().map(Write::Committed);
        self.guard(|log| {
            if let Some(committed) = &deferred {
                log.write_batch(&[committed])?;
            }
            log.active.file.cut(log.tail).during("cut a segment")
        })
    }

    /// Drops the entries behind `last`.
    pub(crate) fn truncate_after(&mut self, last: Option<Position>) -> Result<(), WriteError> {
        {
            let mut index = lock(&self.index);
            index.truncate(last.map_or(0, |at| at.index + 1));
            self.carry.last = index.last();
        }
        self.guard(|log| log.rotate())
    }

    /// Forgets the entries up to `upto` and drops the segments that hold no other.
    pub(crate) fn purge(&mut self, upto: Position) -> Result<(), WriteError> {
        self.write(&[Write::Purged(upto)])?;
        lock(&self.index).purge(upto);
        if self.carry.last.is_none_or(|last| last.index < upto.index) {
            self.carry.last = Some(upto);
        }
        // Of what a segment found before it, only the entries up to its `carry.last` count.
        let covered = |next: &Arc<Segment>| {
            next.header.carry.last.is_none_or(|last| last.index <= upto.index)
        };
        let nexts = self.sealed.iter().skip(1).map(|(next, _)| next).chain([&self.active]);
        let droppable = nexts.zip(1..).filter(|(next, _)| covered(next)).map(|(_, count)| count);
        let count = droppable.last().unwrap_or(0).min(self.sealed.len());
        let gone: Vec<_> = self.sealed.drain(..count).map(|(segment, _)| segment).collect();
        self.guard(|log| log.remove(&gone))
    }

    /// Writes what is left of the log anew, so that no file holds anything purged or truncated.
    pub(crate) fn scrub(&mut self) -> Result<(), WriteError> {
        self.guard(Self::scrub_unguarded)
    }

    /// Writes the log anew under another key; no file of the key before is left.
    pub(crate) fn rekey(&mut self, key: Arc<StorageKey>) -> Result<(), WriteError> {
        self.key = key;
        self.scrub()
    }

    /// Preallocates the next segment: the log shall go on where the disk is full. Only room is
    /// taken, so a disk that has none ends nothing; it is tried again.
    pub(crate) fn prepare(&mut self) {
        if self.spare.is_some() || self.failed {
            return;
        }
        match self.disk.create(SPARE, SEGMENT_BYTES) {
            Ok(spare) => self.spare = Some(spare),
            Err(error) if self.has_warned => tracing::debug!(%error, "no room for a segment"),
            Err(error) => tracing::warn!(%error, "no room for the raft log's next segment"),
        }
        self.has_warned = self.spare.is_none();
    }

    #[cfg(test)]
    pub(crate) fn is_failed(&self) -> bool {
        self.failed
    }

    /// Runs `act` unless an earlier act failed.
    fn guard(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        if self.failed {
            return Err(io::Error::other("an earlier write failed")).during("go on");
        }
        let done = act(self);
        self.failed = done.is_err();
        done
    }

    fn write_batch(&mut self, batch: &[&Write]) -> Result<(), WriteError> {
        let number = self.carry.batch + 1;
        // Every batch before this one was synced when it was written.
        let (bytes, places) = encode(&self.active, self.tail, number, self.tail, batch)?;
        self.active.file.write_at(self.tail, &bytes).during("write a batch")?;
        self.active.file.sync().during("sync a batch")?;
        self.tail += bytes.len() as u64;
        self.carry.batch = number;
        for write in batch {
            write.carry(&mut self.carry);
        }
        self.place(places);
        Ok(())
    }

    fn place(&self, places: Places) {
        let mut index = lock(&self.index);
        index.vote = self.carry.vote;
        index.committed = self.carry.committed;
        for (at, place) in places {
            index.set_place(at, place);
        }
    }

    /// Goes on in a new segment.
    fn rotate(&mut self) -> Result<(), WriteError> {
        let previous = Some(Previous { id: self.active.id, end: self.tail });
        let header = Header { seq: self.active.header.seq + 1, previous, carry: self.carry };
        let made = make(&*self.disk, &self.key, self.spare.take(), header, &[])?;
        let old = std::mem::replace(&mut self.active, made.segment);
        // Gives back what was preallocated and not used.
        old.file.cut(self.tail).during("cut a segment")?;
        self.sealed.push_back((old, self.tail));
        self.tail = made.tail;
        self.measure();
        Ok(())
    }

    fn scrub_unguarded(&mut self) -> Result<(), WriteError> {
        let first = self.carry.purged.map_or(0, |at| at.index + 1);
        let end = self.carry.last.map_or(0, |at| at.index + 1);
        let found = lock(&self.index).get(first, end);
        let survivors: io::Result<Vec<Write>> =
            found.into_iter().map(|entry| Found::read(entry).map(Write::Entry)).collect();
        let survivors = survivors.during("read the log back")?;
        let carry = Carry { last: self.carry.purged, ..self.carry };
        let header = Header { seq: self.active.header.seq + 1, previous: None, carry };
        let made = make(&*self.disk, &self.key, self.spare.take(), header, &survivors)?;
        let old = std::mem::replace(&mut self.active, made.segment);
        let gone: Vec<_> = self.sealed.drain(..).map(|(segment, _)| segment).chain([old]).collect();
        self.tail = made.tail;
        self.carry.batch = made.batch;
        self.place(made.places);
        self.remove(&gone)
    }

    fn remove(&mut self, gone: &[Arc<Segment>]) -> Result<(), WriteError> {
        for segment in gone {
            self.disk.remove(&segment.name).during("remove a segment")?;
        }
        if !gone.is_empty() {
            self.disk.sync().during("sync the directory")?;
        }
        self.measure();
        Ok(())
    }

    fn measure(&self) {
        let sealed: u64 = self.sealed.iter().map(|(_, end)| end).sum();
        self.size.bytes.store(sealed + self.tail, Ordering::Relaxed);
        self.size.segments.store(self.sealed.len() + 1, Ordering::Relaxed);
    }
}

/// How many of `writes` make one batch, and their bytes at most.
fn batch_of<W: std::borrow::Borrow<Write>>(writes: &[W]) -> (usize, u64) {
    let header = 128;
    let mut bytes = header;
    for (count, write) in writes.iter().enumerate() {
        let more = write.borrow().bytes();
        if count > 0 && bytes + more > BATCH_BYTES as u64 {
            return (count, bytes);
        }
        bytes += more;
    }
    (writes.len(), bytes)
}

/// The bytes of one batch that will stand at `base`, and where its entries will be.
fn encode<W: std::borrow::Borrow<Write>>(
    segment: &Arc<Segment>,
    base: u64,
    number: u64,
    synced: u64,
    batch: &[W],
) -> Result<(Vec<u8>, Places), WriteError> {
    let fail = |_| WriteError { action: "seal a record", source: io::ErrorKind::Other.into() };
    let mut out = Vec::with_capacity(usize::try_from(batch_of(batch).1).unwrap_or_default());
    let mut places = Vec::with_capacity(batch.len());
    let head = Record::Batch { synced, records: batch.len() as u64 };
    push_frame(&segment.cipher, base, number, 0, &head, &mut out).map_err(fail)?;
    for write in batch {
        let write = write.borrow();
        let before = out.len();
        let (cipher, record) = (&segment.cipher, write.record());
        let offset =
            push_frame(cipher, base, number, write.index(), &record, &mut out).map_err(fail)?;
        if let Write::Entry(entry) = write {
            let segment = Arc::clone(segment);
            let bytes = out.len() - before;
            places.push((entry.log_id.index, Place { segment, offset, bytes }));
        }
    }
    Ok((out, places))
}

/// Where entries were written, by their index.
type Places = Vec<(u64, Place)>;

/// An empty file for a segment; a small one where the disk has no more room.
fn create(disk: &dyn Disk) -> io::Result<Box<dyn DiskFile>> {
    let mut bytes = SEGMENT_BYTES;
    loop {
        match disk.create(UNFINISHED, bytes) {
            Err(e) if e.kind() == io::ErrorKind::StorageFull && bytes > SEGMENT_MIN_BYTES => {
                bytes = (bytes / 4).max(SEGMENT_MIN_BYTES);
            }
            made => return made,
        }
    }
}

/// A new segment, durable under its name.
struct Made {
    segment: Arc<Segment>,
    tail: u64,
    /// Number of the last batch.
    batch: u64,
    places: Places,
}

/// Makes a segment that begins with `writes`. Until it has its name it does not count.
fn make(
    disk: &dyn Disk,
    key: &StorageKey,
    spare: Option<Box<dyn DiskFile>>,
    header: Header,
    writes: &[Write],
) -> Result<Made, WriteError> {
    let (file, from) = match spare {
        Some(file) => (file, SPARE),
        None => (create(disk).during("make a segment")?, UNFINISHED),
    };
    let segment = Arc::new(Segment::begin(file, key, header).during("begin a segment")?);
    let mut made =
        Made { segment, tail: HEADER_BYTES, batch: header.carry.batch, places: Vec::new() };
    let mut rest = writes;
    while !rest.is_empty() {
        let (batch, after) = rest.split_at_checked(batch_of(rest).0).unwrap_or((rest, &[]));
        made.batch += 1;
        let (bytes, places) = encode(&made.segment, made.tail, made.batch, HEADER_BYTES, batch)?;
        made.segment.file.write_at(made.tail, &bytes).during("write a segment")?;
        made.tail += bytes.len() as u64;
        made.places.extend(places);
        rest = after;
    }
    made.segment.file.sync().during("sync a segment")?;
    disk.rename(from, &made.segment.name).during("name a segment")?;
    disk.sync().during("sync the directory")?;
    Ok(made)
}
