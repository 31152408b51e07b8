//! Snapshots: the state as sealed chunks in a file, and where the current one is.
//!
//! ```text
//! magic 8 | id 16 | chunk, chunk, …        chunk = sealed bytes u32 | last u8 | sealed bytes
//! ```
//! The chunks' plaintexts, put together, are records: length u32, then that many bytes. The
//! first says what the snapshot covers, the others are the core's. The seal binds the id, the
//! number of the chunk and whether it is the last, so none can be left out, moved or added.

use std::borrow::Borrow;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use skep_core::codec;
use skep_core::format::FORMAT;
use skep_core::state::State;

use crate::StorageKey;
use crate::disk::{Disk, DiskFile};
use crate::key::{Cipher, Keys, TAG_BYTES, random_id};
use crate::limits::{CHUNK_BYTES, SNAPSHOT_RECORD_BYTES};
use crate::types::{Covered, SnapshotMeta};

const MAGIC: &[u8; 8] = b"SKEPSNP1";
pub(crate) const PURPOSE: &str = "skep snapshot/1";
const HEADER_BYTES: u64 = 24;
const CHUNK_HEAD: usize = 5;
const UNFINISHED: &str = "snapshot.tmp";

/// Why a snapshot cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The disk refused.
    #[error("raft snapshot: cannot {action}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is not as it was written, or was sealed with another key.
    #[error("raft snapshot: {file} is damaged at offset {offset}")]
    Damaged {
        /// Name of the file.
        file: String,
        /// Where in the file.
        offset: u64,
    },
    /// The file has a record that this version cannot read.
    #[error("raft snapshot: {file}: {reason}")]
    Unknown {
        /// Name of the file.
        file: String,
        /// What is wrong.
        reason: String,
    },
}

impl SnapshotError {
    pub(crate) fn to_io(&self) -> io::Error {
        let source = std::error::Error::source(self).map(|source| format!(": {source}"));
        io::Error::other(format!("{self}{}", source.unwrap_or_default()))
    }
}

trait During<T> {
    fn during(self, action: &'static str) -> Result<T, SnapshotError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, action: &'static str) -> Result<T, SnapshotError> {
        self.map_err(|source| SnapshotError::Disk { action, source })
    }
}

/// A snapshot as openraft hands it around.
pub(crate) type Image = Arc<SnapshotFile>;

/// One complete snapshot, open for reading even after it is replaced.
pub(crate) struct SnapshotFile {
    name: String,
    id: [u8; 16],
    file: Box<dyn DiskFile>,
    cipher: Cipher,
    pub(crate) meta: SnapshotMeta,
    /// Size of the file.
    pub(crate) bytes: u64,
    /// Newest format that is read.
    reads: u32,
}

impl fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotFile({})", self.name)
    }
}

/// The directory of snapshots.
#[derive(Debug)]
pub(crate) struct Snapshots {
    disk: Arc<dyn Disk>,
    keys: Mutex<Keys>,
    reads: u32,
}

impl Snapshots {
    pub(crate) fn new(disk: Arc<dyn Disk>, key: Arc<StorageKey>) -> Self {
        Self::with(disk, Keys::one(key))
    }

    /// The same where the snapshot may be sealed with either of two keys.
    pub(crate) fn with(disk: Arc<dyn Disk>, keys: Keys) -> Self {
        Self { disk, keys: Mutex::new(keys), reads: FORMAT }
    }

    /// The same where a later version's format is read.
    pub(crate) fn reading(self, reads: u32) -> Self {
        Self { reads, ..self }
    }

    /// Newest format that is read.
    pub(crate) fn reads(&self) -> u32 {
        self.reads
    }

    /// Seals from now on with another key.
    pub(crate) fn set_key(&self, key: Arc<StorageKey>) {
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Keys::one(key);
    }

    fn keys(&self) -> Keys {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Finds the current snapshot, and removes what is left over of others.
    pub(crate) fn open(&self) -> Result<Option<Arc<SnapshotFile>>, SnapshotError> {
        let mut names = self.disk.list().during("list the snapshots")?;
        names.sort_unstable();
        let current = names.iter().rev().find(|name| is_snapshot(name)).cloned();
        let keep = current.as_deref();
        self.remove_all_but(keep, &names)?;
        current.map(|name| self.open_file(name)).transpose()
    }

    /// Opens the snapshot with this name.
    pub(crate) fn open_file(&self, name: String) -> Result<Arc<SnapshotFile>, SnapshotError> {
        let file = self.disk.open(&name).during("open a snapshot")?;
        let mut head = [0; HEADER_BYTES as usize];
        let read = file.read_at(0, &mut head).during("read a snapshot")?;
        let damaged = |offset| SnapshotError::Damaged { file: name.clone(), offset };
        let (magic, id) = head.split_first_chunk::<8>().ok_or_else(|| damaged(0))?;
        let id: [u8; 16] = id.try_into().map_err(|_| damaged(0))?;
        if read != head.len() || magic != MAGIC {
            return Err(damaged(0));
        }
        let bytes = file.size().during("measure a snapshot")?;
        let (keys, meta) = (self.keys(), SnapshotMeta::default());
        let cipher = keys.new.cipher(PURPOSE, &id);
        let mut found = SnapshotFile { name, id, file, cipher, meta, bytes, reads: self.reads };
        let mut covered = Records::all(&found).next();
        if let (Err(SnapshotError::Damaged { .. }), Some(old)) = (&covered, keys.old) {
            found.cipher = old.cipher(PURPOSE, &id);
            covered = Records::all(&found).next();
        }
        let covered = covered?.unwrap_or_default();
        let covered: Covered = codec::decode_strict(&covered).map_err(|e| found.unknown(&e))?;
        found.meta = SnapshotMeta::try_from(covered).map_err(|e| found.unknown(&e))?;
        Ok(Arc::new(found))
    }

    /// Writes `state` as the current snapshot, and removes the one before.
    pub(crate) fn write(
        &self,
        state: &State,
        meta: &SnapshotMeta,
    ) -> Result<Arc<SnapshotFile>, SnapshotError> {
        let id = random_id().during("draw an id")?;
        let names = self.disk.list().during("list the snapshots")?;
        let last = names.iter().filter(|name| is_snapshot(name)).max();
        let seq = last.and_then(|name| seq_of(name)).map_or(1, |seq| seq + 1);
        let name = format!("{seq:016x}.snapshot");
        let cipher = self.keys().new.cipher(PURPOSE, &id);
        let file = match self.write_file(state, meta, id, &cipher) {
            Ok(file) => file,
            Err(e) => {
                // A disk that is full needs its room back; what stays is in nobody's way.
                let _ = self.disk.remove(UNFINISHED);
                return Err(e);
            }
        };
        self.disk.rename(UNFINISHED, &name).during("name a snapshot")?;
        self.disk.sync().during("sync the directory")?;
        self.remove_all_but(Some(&name), &names)?;
        let bytes = file.size().during("measure a snapshot")?;
        Ok(Arc::new(SnapshotFile {
            name,
            id,
            file,
            cipher,
            meta: meta.clone(),
            bytes,
            reads: self.reads,
        }))
    }

    /// Writes the file under the name it has until it is complete.
    fn write_file(
        &self,
        state: &State,
        meta: &SnapshotMeta,
        id: [u8; 16],
        cipher: &Cipher,
    ) -> Result<Box<dyn DiskFile>, SnapshotError> {
        let file = self.disk.create(UNFINISHED, 0).during("make a snapshot")?;
        let mut out = Chunks::begin(&*file, cipher, id)?;
        out.push(&codec::encode(&Covered::from(meta)))?;
        let mut result = Ok(());
        skep_core::snapshot::write(state, &mut |record| {
            if result.is_ok() {
                result = out.push(record);
            }
        });
        result?;
        out.finish()?;
        file.sync().during("sync a snapshot")?;
        Ok(file)
    }

    fn remove_all_but(&self, keep: Option<&str>, names: &[String]) -> Result<(), SnapshotError> {
        let ours = |name: &&String| is_snapshot(name) || *name == UNFINISHED;
        let mut removed = false;
        for name in names.iter().filter(ours).filter(|name| Some(name.as_str()) != keep) {
            match self.disk.remove(name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                result => result.during("remove an old snapshot")?,
            }
            removed = true;
        }
        if removed {
            self.disk.sync().during("sync the directory")?;
        }
        Ok(())
    }
}

fn seq_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".snapshot").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

pub(crate) fn is_snapshot(name: &str) -> bool {
    seq_of(name).is_some()
}

fn aad(id: &[u8; 16], number: u64, last: bool) -> Vec<u8> {
    [&id[..], &number.to_le_bytes()[..], &[u8::from(last)][..]].concat()
}

/// Writes records as chunks.
pub(crate) struct Chunks<'a> {
    file: &'a dyn DiskFile,
    cipher: &'a Cipher,
    id: [u8; 16],
    number: u64,
    offset: u64,
    /// What the next chunk will hold.
    pub(crate) buffer: Vec<u8>,
}

impl<'a> Chunks<'a> {
    /// Writes the head of a snapshot.
    pub(crate) fn begin(
        file: &'a dyn DiskFile,
        cipher: &'a Cipher,
        id: [u8; 16],
    ) -> Result<Self, SnapshotError> {
        let head = [&MAGIC[..], &id[..]].concat();
        file.write_at(0, &head).during("write a snapshot")?;
        Ok(Self { file, cipher, id, number: 0, offset: HEADER_BYTES, buffer: Vec::new() })
    }

    fn push(&mut self, record: &[u8]) -> Result<(), SnapshotError> {
        let too_long = || io::Error::other("a record is too long");
        let len = u32::try_from(record.len()).map_err(|_| too_long()).during("write a snapshot")?;
        self.buffer.extend_from_slice(&len.to_le_bytes());
        self.buffer.extend_from_slice(record);
        while self.buffer.len() > CHUNK_BYTES {
            let rest = self.buffer.split_off(CHUNK_BYTES);
            self.chunk(false)?;
            self.buffer = rest;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), SnapshotError> {
        self.chunk(true)
    }

    pub(crate) fn chunk(&mut self, last: bool) -> Result<(), SnapshotError> {
        let fail = || io::Error::other("a chunk cannot be sealed");
        let mut plain = std::mem::take(&mut self.buffer);
        let aad = aad(&self.id, self.number, last);
        let tag = self.cipher.seal(self.number, &aad, &mut plain).map_err(|_| fail());
        let tag = tag.during("write a snapshot")?;
        let len = u32::try_from(plain.len() + TAG_BYTES).map_err(|_| fail());
        let len = len.during("write a snapshot")?;
        let bytes = [&len.to_le_bytes()[..], &[u8::from(last)][..], &plain, &tag[..]].concat();
        self.file.write_at(self.offset, &bytes).during("write a snapshot")?;
        self.offset += bytes.len() as u64;
        self.number += 1;
        Ok(())
    }
}

impl SnapshotFile {
    /// Reads the state.
    pub(crate) fn state(&self) -> Result<State, SnapshotError> {
        let mut records = Records::of(self)?;
        let mut reader = skep_core::snapshot::Reader::up_to(self.reads);
        while let Some(record) = records.next()? {
            reader.push(&record).map_err(|e| self.unknown(&e))?;
        }
        reader.finish().map_err(|e| self.unknown(&e))
    }

    fn damaged(&self, offset: u64) -> SnapshotError {
        SnapshotError::Damaged { file: self.name.clone(), offset }
    }

    fn unknown(&self, e: &dyn std::error::Error) -> SnapshotError {
        let version = env!("CARGO_PKG_VERSION");
        let reason = format!("skep {version} cannot read it: {e}");
        SnapshotError::Unknown { file: self.name.clone(), reason }
    }
}

/// Reads chunks as records.
#[derive(Debug)]
pub(crate) struct Records<F> {
    from: F,
    number: u64,
    offset: u64,
    last: bool,
    buffer: Vec<u8>,
    at: usize,
}

impl<F: Borrow<SnapshotFile>> Records<F> {
    /// The core's records.
    pub(crate) fn of(from: F) -> Result<Self, SnapshotError> {
        let mut records = Self::all(from);
        let _covered = records.next()?;
        Ok(records)
    }

    fn all(from: F) -> Self {
        Self { from, number: 0, offset: HEADER_BYTES, last: false, buffer: Vec::new(), at: 0 }
    }

    /// The next record, `None` behind the last.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, SnapshotError> {
        if !self.fill(4)? {
            let clean = self.at == self.buffer.len() && self.offset == self.from.borrow().bytes;
            return if clean { Ok(None) } else { Err(self.damaged()) };
        }
        let head = self.buffer.get(self.at..).and_then(|rest| rest.first_chunk::<4>());
        let len = head.map_or(0, |head| u32::from_le_bytes(*head)) as usize;
        self.at += 4;
        if len > SNAPSHOT_RECORD_BYTES || !self.fill(len)? {
            return Err(self.damaged());
        }
        let record = self.buffer.get(self.at..self.at + len).unwrap_or_default().to_vec();
        self.at += len;
        Ok(Some(record))
    }

    /// Reads chunks until `bytes` unread bytes are there; `false` if there are not so many.
    fn fill(&mut self, bytes: usize) -> Result<bool, SnapshotError> {
        while self.buffer.len() - self.at < bytes {
            if self.last {
                return Ok(false);
            }
            self.buffer.drain(..self.at);
            self.at = 0;
            let chunk = self.chunk()?;
            self.buffer.extend_from_slice(&chunk);
        }
        Ok(true)
    }

    fn damaged(&self) -> SnapshotError {
        self.from.borrow().damaged(self.offset)
    }

    fn chunk(&mut self) -> Result<Vec<u8>, SnapshotError> {
        let damaged = || self.damaged();
        let from = self.from.borrow();
        let mut head = [0; CHUNK_HEAD];
        let read = from.file.read_at(self.offset, &mut head).during("read a snapshot")?;
        let (len, last) = head.split_first_chunk::<4>().ok_or_else(damaged)?;
        let len = u32::from_le_bytes(*len) as usize;
        if read != CHUNK_HEAD || len > CHUNK_BYTES + TAG_BYTES {
            return Err(damaged());
        }
        let last = last.first() == Some(&1);
        let mut sealed = vec![0; len];
        let at = self.offset + CHUNK_HEAD as u64;
        let read = from.file.read_at(at, &mut sealed).during("read a snapshot")?;
        let sealed = sealed.get(..read).unwrap_or_default();
        let aad = aad(&from.id, self.number, last);
        let plain = from.cipher.open(self.number, &aad, sealed).map_err(|_| damaged())?;
        self.offset = at + len as u64;
        self.number += 1;
        self.last = last;
        Ok(plain)
    }
}
