//! What one manager keeps of audits: segments that are only appended to.
//!
//! A segment is made of frames: length of a head (two bytes, big-endian), four bytes of its hash,
//! the head, and sealed under a key of this node the records of one task. Heads are not sealed:
//! they name nodes, tasks and times, so that a start need not open everything. What a crash left of
//! the last frames is cut off when the store is opened.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use minicbor::bytes::ByteVec;
use skep_core::id::{NodeId, TaskId};
use skep_core::time::{Span, Stamp};
use zeroize::Zeroizing;

use super::frames::{FrameHead, HEAD_BYTES, PURPOSE, aad};
use super::last::LastReads;
use super::runs::Runs;
use crate::audit::{AuditQuery, Head, hash};
use crate::clock::now;
use crate::files::{FileError, make_dir, remove_file, write_atomic};
use crate::limits::{
    AUDIT_HEAD_READ_BYTES, AUDIT_KEPT, AUDIT_PAGE_BYTES, AUDIT_READ_BYTES, AUDIT_SEGMENT_BYTES,
    AUDIT_STORE_BYTES, NET_MESSAGE_BYTES,
};
use crate::seal::{NONCE_BYTES, SealError, seal_under};
use crate::wire::audit::{Held, Mark, Page, Portion};

/// Beside the segments: see [`Page::horizon`], as text.
const HORIZON_FILE: &str = "horizon";
/// The audits cannot be kept, or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// The seal.
    #[error("an audit cannot be sealed")]
    Seal(#[from] SealError),
    /// What is to be stored is too much, or no audit.
    #[error("what is to be stored is no audit: {0}")]
    Malformed(&'static str),
}

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// Bytes of all.
    pub bytes: u64,
    /// How long.
    pub kept: Span,
    /// Bytes that are read for one page.
    pub read_bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        let kept = Span::from_secs(AUDIT_KEPT.as_secs());
        Self {
            segment_bytes: AUDIT_SEGMENT_BYTES,
            bytes: AUDIT_STORE_BYTES,
            kept,
            read_bytes: AUDIT_READ_BYTES,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Segment {
    pub(super) bytes: u64,
    /// Whether the file has bytes behind these that are no frame.
    is_torn: bool,
    pub(super) last: Stamp,
    held: BTreeMap<(NodeId, TaskId), Runs>,
}

impl Segment {
    fn add(&mut self, head: &FrameHead, bytes: u64) {
        self.bytes += bytes;
        self.last = self.last.max(head.at);
        let runs = self.held.entry((head.node, head.task)).or_default();
        head.runs.iter().for_each(|run| runs.add(*run));
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) segments: BTreeMap<u64, Segment>,
    /// The last segment, while it can be appended to.
    file: Option<File>,
    /// See [`Page::horizon`].
    horizon: Stamp,
    pub(super) reads: LastReads,
}

impl Table {
    /// Whether something is kept elsewhere that is not kept here, and would not be dropped.
    pub(super) fn lacks_any(&self, held: &[Held]) -> bool {
        let mut own: BTreeMap<(NodeId, TaskId), Runs> = BTreeMap::new();
        held.iter().filter(|held| held.at >= self.horizon).any(|held| {
            let key = (held.node, held.task);
            let own = own.entry(key).or_insert_with(|| {
                let segments = self.segments.values();
                segments.filter_map(|segment| segment.held.get(&key)).flat_map(Runs::iter).collect()
            });
            held.runs.iter().any(|run| !own.covers(*run))
        })
    }

    /// What is kept of a task, segment by segment, the newest first.
    fn held_of(&self, key: &(NodeId, TaskId)) -> Vec<&Runs> {
        let segments = self.segments.values().rev();
        segments.filter_map(|segment| segment.held.get(key)).collect()
    }
}

/// What is appended, and how.
#[derive(Clone, Copy)]
struct Appended<'a> {
    portion: &'a Portion,
    is_copied: bool,
    now: Stamp,
}

/// The audits that one manager keeps.
pub struct Store {
    dir: PathBuf,
    pub(super) key: Zeroizing<[u8; 32]>,
    bounds: Bounds,
    /// None until it is first used.
    table: Mutex<Option<Table>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.dir.display())
    }
}

/// A segment that may be read.
struct Listed {
    number: u64,
    bytes: u64,
    is_torn: bool,
    may_match: bool,
}

impl Store {
    /// A store in `dir`, sealed under `key`. Nothing is read or made before it is used.
    #[must_use]
    pub fn new(dir: PathBuf, key: Zeroizing<[u8; 32]>, bounds: Bounds) -> Self {
        Self { dir, key, bounds, table: Mutex::new(None) }
    }

    /// Appends what is not kept yet and waits until it is on the disk. What is no audit is left
    /// out. Blocking.
    ///
    /// # Errors
    /// [`StoreError`]; then part of it may be kept.
    pub fn append(&self, portions: &[Portion], now: Stamp) -> Result<(), StoreError> {
        self.append_all(portions, false, now)
    }

    /// The same with what another manager keeps, but for what is so old that it would be dropped
    /// here.
    ///
    /// # Errors
    /// As [`Store::append`].
    pub fn append_copies(&self, portions: &[Portion], now: Stamp) -> Result<(), StoreError> {
        self.append_all(portions, true, now)
    }

    fn append_all(
        &self,
        portions: &[Portion],
        is_copied: bool,
        now: Stamp,
    ) -> Result<(), StoreError> {
        let mut guard = self.open()?;
        let Some(table) = guard.as_mut() else { return Ok(()) };
        let mut is_changed = false;
        for portion in portions {
            let appended = Appended { portion, is_copied, now };
            let appended = fresh(table, appended).and_then(|fresh| match fresh.is_empty() {
                true => Ok(()),
                false => {
                    is_changed = true;
                    self.append_one(table, appended, &fresh)
                }
            });
            match appended {
                Ok(()) => {}
                // Its node's own loss: it must not keep those of others from being stored.
                Err(error @ StoreError::Malformed(_)) => {
                    tracing::warn!(node = %portion.node, task = %portion.task, %error, "an audit");
                }
                Err(error) => {
                    // What a write that failed has left is found when the store is opened anew.
                    *guard = None;
                    return Err(error);
                }
            }
        }
        if is_changed && let Some(Err(error)) = table.file.as_ref().map(File::sync_data) {
            *guard = None;
            return Err(FileError::on("flush", &self.dir)(error).into());
        }
        self.prune(table, now);
        Ok(())
    }

    fn append_one(
        &self,
        table: &mut Table,
        Appended { portion, is_copied, now }: Appended<'_>,
        fresh: &[(Head, &ByteVec)],
    ) -> Result<(), StoreError> {
        let number = self.roll(table)?;
        let offset = table.segments.get(&number).map_or(0, |segment| segment.bytes);
        let runs: Runs = fresh.iter().map(|(head, _)| (head.sequence, head.sequence)).collect();
        let runs = runs.iter().collect();
        // What a node whose clock is ahead says of the time must not decide what is dropped.
        let at = fresh.iter().map(|(head, _)| head.at.min(now)).max().unwrap_or_default();
        let bodies: Vec<&ByteVec> = fresh.iter().map(|(_, body)| *body).collect();
        let mut plain = minicbor::to_vec(&bodies).unwrap_or_default();
        let sealed = u32::try_from(plain.len() + crate::seal::TAG_BYTES)
            .map_err(|_| StoreError::Malformed("it is too long"))?;
        let (node, task) = (portion.node, portion.task);
        let nonce = [0; NONCE_BYTES];
        let mut head = FrameHead { node, task, runs, at, nonce, sealed, is_copied };
        // The nonce is made by the seal: what is bound to it is the head without one.
        let aad = aad(number, offset, &head);
        let (nonce, sealed) = seal_under(&self.key, PURPOSE, &aad, &mut plain)?;
        head.nonce = nonce;
        let raw = minicbor::to_vec(&head).unwrap_or_default();
        let len = u16::try_from(raw.len()).ok().filter(|len| usize::from(*len) <= HEAD_BYTES);
        let len = len.ok_or(StoreError::Malformed("its sequences have too many gaps"))?;
        let check = hash(&raw);
        let frame =
            [&len.to_be_bytes(), check.get(..4).unwrap_or_default(), &raw, &sealed].concat();
        if let Some(file) = &table.file {
            let path = self.path(number);
            file.write_all_at(&frame, offset).map_err(FileError::on("write", &path))?;
        }
        if let Some(segment) = table.segments.get_mut(&number) {
            segment.add(&head, frame.len() as u64);
        }
        fresh.iter().for_each(|(_, body)| table.reads.note(node, task, body));
        Ok(())
    }

    /// The segment that the next frame goes to.
    fn roll(&self, table: &mut Table) -> Result<u64, StoreError> {
        let last = table.segments.last_key_value().map(|(number, last)| (*number, last.bytes));
        let number = match last {
            Some((number, bytes)) if bytes < self.bounds.segment_bytes => number,
            Some((number, _)) => {
                if let Some(full) = table.file.take() {
                    let path = self.path(number);
                    full.sync_data().map_err(FileError::on("flush", &path))?;
                }
                number + 1
            }
            None => 1,
        };
        if table.file.is_none() {
            let path = self.path(number);
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(FileError::on("open", &path))?;
            let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
            synced.map_err(FileError::on("flush", &self.dir))?;
            table.file = Some(file);
            table.segments.entry(number).or_default();
        }
        Ok(number)
    }

    /// Drops what is too old or too much.
    fn prune(&self, table: &mut Table, now: Stamp) {
        let mut bytes: u64 = table.segments.values().map(|segment| segment.bytes).sum();
        while table.segments.len() > 1
            && let Some((number, oldest)) = table.segments.first_key_value()
        {
            let is_old = oldest.last + self.bounds.kept < now;
            if bytes <= self.bounds.bytes && !is_old {
                return;
            }
            let (number, own, last) = (*number, oldest.bytes, oldest.last);
            if let Err(error) = remove_file(&self.path(number)) {
                tracing::warn!(error = crate::chain::chain(&error), "an old audit stays");
                return;
            }
            bytes -= own;
            table.horizon = table.horizon.max(last.min(now));
            table.reads.forget(table.horizon);
            // Where that cannot be kept, a later start knows of no horizon until the next.
            let text = table.horizon.0.to_string();
            let _ = write_atomic(&self.dir.join(HORIZON_FILE), text.as_bytes(), 0o600);
            table.segments.remove(&number);
        }
    }

    /// What matches, from `from` on, up to a bound. Blocking.
    ///
    /// # Errors
    /// [`StoreError`]. A frame that cannot be opened is left out, and counted.
    pub fn page(&self, query: &AuditQuery, from: Mark) -> Result<Page, StoreError> {
        let (segments, horizon) = {
            let guard = self.open()?;
            let Some(table) = guard.as_ref() else { return Ok(Page::default()) };
            let behind = table.segments.range(from.segment..);
            let listed = behind.map(|(number, segment)| Listed {
                number: *number,
                bytes: segment.bytes,
                is_torn: segment.is_torn,
                may_match: segment.last >= query.since
                    && segment.held.keys().any(|(node, task)| query.admits(node, task)),
            });
            (listed.collect::<Vec<_>>(), table.horizon)
        };
        let mut page = Page { next: from, is_last: true, horizon, ..Page::default() };
        let (mut found, mut read) = (0, 0);
        for Listed { number, bytes, is_torn, may_match } in segments {
            let mut offset = if number == from.segment { from.offset.min(bytes) } else { 0 };
            page.damaged += u64::from(is_torn);
            if !may_match {
                offset = bytes;
            }
            let path = self.path(number);
            let Some(file) = self.open_segment(number)? else { continue };
            while offset < bytes {
                if found >= AUDIT_PAGE_BYTES || read >= self.bounds.read_bytes {
                    page.next = Mark { segment: number, offset };
                    page.is_last = false;
                    return Ok(page);
                }
                let frame = self.frame_from(&file, number, offset, bytes);
                let Some((at, frame)) = frame.map_err(FileError::on("read", &path))? else {
                    page.damaged += 1;
                    read += bytes - offset;
                    break;
                };
                page.damaged += u64::from(at > offset);
                read += at - offset;
                offset = at;
                let head = &frame.head;
                let is_wanted = !(query.is_first_hand && head.is_copied);
                if is_wanted && query.admits(&head.node, &head.task) && head.at >= query.since {
                    read += frame.end - offset;
                    match self.read_portion(&file, (number, offset), &frame) {
                        Ok(Some(mut portion)) => {
                            portion.bodies.retain(|body| query.wants(body));
                            found += portion.bytes();
                            page.portions.extend((!portion.bodies.is_empty()).then_some(portion));
                        }
                        // Where the disk has a bad place, the rest can still be told.
                        Ok(None) | Err(_) => page.damaged += 1,
                    }
                } else {
                    read += (frame.end - offset).min(AUDIT_HEAD_READ_BYTES);
                }
                offset = frame.end;
            }
            page.next = Mark { segment: number, offset: bytes };
        }
        Ok(page)
    }

    /// Where what is stored from now on begins. Blocking.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn end(&self) -> Result<Mark, StoreError> {
        let guard = self.open()?;
        let last = guard.as_ref().and_then(|table| table.segments.last_key_value());
        Ok(last.map_or_else(Mark::default, |(number, segment)| Mark {
            segment: *number,
            offset: segment.bytes,
        }))
    }

    pub(super) fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:016}"))
    }

    /// A segment to read; none if it was dropped meanwhile.
    pub(super) fn open_segment(&self, number: u64) -> Result<Option<File>, StoreError> {
        let path = self.path(number);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FileError::on("open", &path)(error).into()),
        }
    }

    pub(super) fn open(&self) -> Result<MutexGuard<'_, Option<Table>>, StoreError> {
        let mut guard = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            *guard = Some(self.read_table()?);
        }
        Ok(guard)
    }

    /// Finds what there is, and cuts off what a crash left of the end.
    fn read_table(&self) -> Result<Table, StoreError> {
        make_dir(&self.dir, 0o700)?;
        let mut numbers = Vec::new();
        let listed = fs::read_dir(&self.dir).map_err(FileError::on("list", &self.dir))?;
        for entry in listed {
            let name = entry.map_err(FileError::on("list", &self.dir))?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        let last = numbers.last().copied();
        let horizon = read_horizon(&self.dir).min(now());
        let mut table = Table { horizon, reads: LastReads::before(last), ..Table::default() };
        for number in numbers {
            let path = self.path(number);
            let file = OpenOptions::new().read(true).write(true).open(&path);
            let file = file.map_err(FileError::on("open", &path))?;
            let is_last = Some(number) == last;
            let segment = self.read_segment(&file, number, is_last);
            let segment = segment.map_err(FileError::on("read", &path))?;
            table.segments.insert(number, segment);
            if is_last {
                table.file = Some(file);
            }
        }
        Ok(table)
    }

    /// What a segment of an earlier start holds. What a crash left of its end, in the last one, is
    /// cut off: nothing that opens is behind that.
    fn read_segment(&self, file: &File, number: u64, is_last: bool) -> io::Result<Segment> {
        let found = file.metadata()?;
        let len = found.len();
        let modified = found.modified()?.duration_since(UNIX_EPOCH);
        let modified = modified.map_or(0, |since| since.as_nanos());
        let modified = Stamp(u64::try_from(modified).unwrap_or(0));
        let mut segment = Segment::default();
        let mut from = 0;
        while let Some((offset, frame)) = self.frame_from(file, number, from, len)? {
            // What the disk cannot read is none that a crash has torn: it is not cut off.
            let is_whole = !is_last
                || self
                    .read_portion(file, (number, offset), &frame)
                    .map_or(true, |portion| portion.is_some());
            from = frame.end;
            if is_whole {
                // Frames before it that do not open are none that a crash left.
                segment.is_torn |= offset > segment.bytes;
                segment.add(&frame.head, 0);
                segment.bytes = frame.end;
            }
        }
        if is_last && segment.bytes < len {
            tracing::warn!(from = segment.bytes, len, "the end of the stored audits was torn");
            file.set_len(segment.bytes)?;
            file.sync_data()?;
        }
        segment.is_torn |= !is_last && segment.bytes < len;
        if segment.is_torn {
            // What does not open is of no known time: it stays as long as what is with it.
            segment.last = segment.last.max(modified);
        }
        // Written while this node's clock was ahead. A clock that is behind at the start must make
        // nothing old.
        segment.last = segment.last.min(modified.max(now()));
        Ok(segment)
    }
}

/// What of a portion is not kept yet.
fn fresh<'a>(
    table: &Table,
    Appended { portion, is_copied, .. }: Appended<'a>,
) -> Result<Vec<(Head, &'a ByteVec)>, StoreError> {
    if portion.bytes() > NET_MESSAGE_BYTES {
        return Err(StoreError::Malformed("it is too long"));
    }
    let held = table.held_of(&(portion.node, portion.task));
    let mut fresh = Vec::new();
    for body in &portion.bodies {
        let head = Head::parse(body).map_err(|_| StoreError::Malformed("a piece is no record"))?;
        let is_dropped = is_copied && head.at < table.horizon;
        if !is_dropped && !held.iter().any(|runs| runs.holds(head.sequence)) {
            fresh.push((head, body));
        }
    }
    Ok(fresh)
}

/// What was dropped before an earlier start ended.
fn read_horizon(dir: &Path) -> Stamp {
    let text = fs::read_to_string(dir.join(HORIZON_FILE)).unwrap_or_default();
    Stamp(text.trim().parse().unwrap_or(0))
}

/// The key that seals a node's audits: from its own key, which is locked when the node is.
#[must_use]
pub fn key_from(pair: &crate::seal::SealKeyPair) -> Zeroizing<[u8; 32]> {
    pair.private_bytes()
}

/// Where a node keeps audits as a manager.
#[must_use]
pub fn dir_in(data_root: &Path) -> PathBuf {
    data_root.join("audit").join("log")
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
