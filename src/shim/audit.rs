//! Writes the task's audit: what the filesystem counts, and what the shim does with what it holds.
//!
//! A thread of its own writes, so that nothing else waits for the disk. What cannot be written
//! stays in memory, within its bounds, and is in the next record that can.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use skep_core::id::MaterialId;
use skep_core::time::Stamp;
use skep_fuse::audit::{Audit as Counts, Row as Counted};

use super::record::bounded_to;
use super::{SMALL_STACK_BYTES, now_ns};
use crate::audit::{Event, Lost, Reader, Record, Row, What, hash, origin, put};
use crate::limits::{
    AUDIT_DELAY, AUDIT_EVENTS, AUDIT_FILE_BYTES, AUDIT_FILES, AUDIT_REASON_BYTES,
    AUDIT_RECORD_ITEMS,
};
use crate::wire::launch::{AUDIT_FILE, Launch};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What waits to be written beside the counts.
#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    /// Events that had no room.
    lost: u64,
}

/// The audit's files, and how far the chain has come.
#[derive(Debug)]
struct Chain {
    files: Files,
    sequence: u64,
    previous: [u8; 32],
    /// Writes that failed since the last that did not.
    failed: u64,
    why: Option<String>,
}

#[derive(Debug)]
struct Shared {
    names: BTreeMap<MaterialId, String>,
    counts: Arc<Counts>,
    waiting: Mutex<Waiting>,
    chain: Mutex<Chain>,
}

/// The audit of this shim's task.
#[derive(Debug, Clone)]
pub(super) struct Audit(Arc<Shared>);

impl Audit {
    /// Begins the audit and its thread. Nothing is written before there is something to say.
    pub(super) fn start(launch: &Launch, key: &[u8; 32], counts: Arc<Counts>) -> io::Result<Self> {
        let path = Path::new(&launch.task_dir).join(AUDIT_FILE);
        let audit = Self::new(launch, key, counts, Files::new(path, AUDIT_FILE_BYTES, AUDIT_FILES));
        let writing = audit.clone();
        thread::Builder::new()
            .name("audit".into())
            .stack_size(SMALL_STACK_BYTES)
            .spawn(move || writing.write_on())?;
        Ok(audit)
    }

    fn new(launch: &Launch, key: &[u8; 32], counts: Arc<Counts>, files: Files) -> Self {
        let names = launch.files.iter().map(|file| (file.material, file.name.clone())).collect();
        let previous = origin(&launch.task, key);
        let chain = Chain { files, sequence: 0, previous, failed: 0, why: None };
        let audit = Self(Arc::new(Shared {
            names,
            counts,
            waiting: Mutex::default(),
            chain: Mutex::new(chain),
        }));
        audit.note(What::Begun { key: *key });
        audit
    }

    /// Notes what happened. Never waits for the disk.
    pub(super) fn note(&self, what: What) {
        let mut waiting = lock(&self.0.waiting);
        if waiting.events.len() < AUDIT_EVENTS {
            waiting.events.push_back(Event { at: Stamp(now_ns()), what });
        } else {
            waiting.lost += 1;
        }
        drop(waiting);
        self.0.counts.wake();
    }

    /// Notes that a version came into force, in the place of another one if there was one.
    pub(super) fn delivered(
        &self,
        material: MaterialId,
        from: Option<u64>,
        to: u64,
        sequence: u64,
    ) {
        let name = self.name(&material);
        self.note(match from {
            None => What::Delivered { material, name, version: to, sequence },
            Some(from) => What::Switched { material, name, from, to, sequence },
        });
    }

    /// Notes that nothing of a material can be read any more.
    pub(super) fn revoked(&self, material: MaterialId, version: Option<u64>, sequence: u64) {
        let name = self.name(&material);
        self.note(What::Revoked { material, name, version, sequence });
    }

    /// Notes that a delivery was not taken. The reason holds no payload.
    pub(super) fn refused(&self, materials: Vec<MaterialId>, sequence: u64, reason: String) {
        let reason = bounded_to(reason, AUDIT_REASON_BYTES);
        self.note(What::Refused { materials, sequence, reason });
    }

    /// Writes what there is, notes the end, and waits until that is on the disk.
    pub(super) fn end(&self) -> io::Result<()> {
        self.note(What::Ended);
        self.0.write()?;
        lock(&self.0.chain).files.flush()
    }

    /// Notes that the container's first process was told of new versions.
    pub(super) fn signalled(&self, materials: Vec<MaterialId>, signal: i32, sequence: u64) {
        self.note(What::Signalled { materials, signal, sequence });
    }

    fn name(&self, material: &MaterialId) -> String {
        self.0.names.get(material).cloned().unwrap_or_default()
    }

    fn write_on(&self) {
        loop {
            self.0.counts.await_change();
            thread::sleep(AUDIT_DELAY);
            while self.0.write().is_err() {
                thread::sleep(AUDIT_DELAY);
            }
            lock(&self.0.chain).sync();
        }
    }
}

impl Shared {
    /// Writes records until nothing is left to say.
    fn write(&self) -> io::Result<()> {
        let mut chain = lock(&self.chain);
        loop {
            let counted = self.counts.unkept(AUDIT_RECORD_ITEMS);
            let (events, lost) = {
                let waiting = lock(&self.waiting);
                let events: Vec<_> =
                    waiting.events.iter().take(AUDIT_RECORD_ITEMS).cloned().collect();
                (events, waiting.lost)
            };
            if counted.is_empty() && events.is_empty() && lost == 0 {
                return Ok(());
            }
            let taken = events.len();
            let rows = counted.iter().map(|row| self.row(row)).collect();
            chain.write(rows, events, lost)?;
            self.counts.keep(&counted);
            let mut waiting = lock(&self.waiting);
            waiting.events.drain(..taken);
            waiting.lost -= lost;
        }
    }

    fn row(&self, counted: &Counted) -> Row {
        let stamp = |ns: i64| Stamp(u64::try_from(ns).unwrap_or(0));
        let reader = counted.reader.as_ref().and_then(|reader| {
            // It was named when it was delivered.
            let material = reader.secret.parse::<MaterialId>().ok()?;
            let executable = reader.executable.as_ref();
            Some(Reader {
                material,
                name: self.names.get(&material).cloned().unwrap_or_default(),
                version: reader.version,
                uid: reader.uid,
                gid: reader.gid,
                executable: executable.map(|path| path.to_string_lossy().into_owned()),
            })
        });
        Row {
            reader,
            opened: counted.opened,
            refused: counted.refused,
            first: stamp(counted.first_ns),
            last: stamp(counted.last_ns),
        }
    }
}

impl Chain {
    fn write(&mut self, rows: Vec<Row>, events: Vec<Event>, lost: u64) -> io::Result<()> {
        let written = self.try_write(rows, events, lost);
        match &written {
            Ok(()) => (self.failed, self.why) = (0, None),
            Err(error) => {
                self.failed += 1;
                self.why = Some(bounded_to(error.to_string(), AUDIT_REASON_BYTES));
            }
        }
        written
    }

    /// Waits until what was written is on the disk, so that a power cut takes a second of it at
    /// most. Only the audit's own thread waits for this; who reads does not.
    fn sync(&mut self) {
        if let Err(error) = self.files.sync() {
            // The next record tells. It is not tried again: the kernel has given these bytes up.
            self.failed += 1;
            self.why = Some(bounded_to(error.to_string(), AUDIT_REASON_BYTES));
        }
    }

    fn try_write(&mut self, rows: Vec<Row>, mut events: Vec<Event>, lost: u64) -> io::Result<()> {
        let (sequence, at) = (self.sequence + 1, Stamp(now_ns()));
        if let Some(kept_from) = self.files.make_room(sequence)? {
            events.insert(0, Event { at, what: What::Rotated { kept_from } });
        }
        let lost = Lost { events: lost, failed_writes: self.failed, why: self.why.clone() };
        let record = Record { sequence, previous: self.previous, at, rows, events, lost };
        let body = record.to_body();
        let mut bytes = Vec::with_capacity(body.len() + 8);
        put(&mut bytes, &body);
        self.files.append(&bytes)?;
        (self.sequence, self.previous) = (sequence, hash(&body));
        Ok(())
    }
}

/// `audit`, `audit.1` and so on: the higher the older.
#[derive(Debug)]
struct Files {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    /// Whether the file ends within a record: nothing can follow there.
    is_torn: bool,
    /// Whether something of it may not be on the disk yet.
    is_dirty: bool,
    /// Whether files were made or renamed since that was last flushed.
    is_moved: bool,
    /// The first record of each file, the oldest file first.
    firsts: VecDeque<u64>,
    /// The first record of this file, until one is in it: that tells of the rotation.
    rotated: Option<u64>,
    max_bytes: u64,
    max_files: u32,
}

impl Files {
    fn new(path: PathBuf, max_bytes: u64, max_files: u32) -> Self {
        Self {
            path,
            file: None,
            size: 0,
            is_torn: false,
            is_dirty: false,
            is_moved: false,
            firsts: VecDeque::new(),
            rotated: None,
            max_bytes,
            max_files,
        }
    }

    fn named(&self, end: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(end);
        PathBuf::from(name)
    }

    /// Sees to a file that record `sequence` can go to. If it is another one than before, tells the
    /// first record that is still there, until that record is written.
    fn make_room(&mut self, sequence: u64) -> io::Result<Option<u64>> {
        if self.file.is_none() {
            self.file = Some(create(&self.path)?);
            (self.size, self.is_torn, self.is_moved) = (0, false, true);
            self.firsts.push_back(sequence);
        } else if self.is_torn || self.size >= self.max_bytes {
            // Made first: where this fails, no older file must have moved.
            let next = self.named(".next");
            let file = create(&next)?;
            // It is not there if an earlier try got past this, and not to its end.
            if self.path.try_exists()? {
                self.free_first()?;
                fs::rename(&self.path, self.named(".1"))?;
            }
            fs::rename(next, &self.path)?;
            if let Some(full) = self.file.replace(file) {
                // The end flushes only the last file. What fails here is found missing.
                let _ = full.sync_data();
            }
            (self.size, self.is_torn, self.is_moved) = (0, false, true);
            self.firsts.push_back(sequence);
            while self.firsts.len() > self.max_files as usize {
                self.firsts.pop_front();
            }
            self.rotated = self.firsts.front().copied();
        }
        Ok(self.rotated)
    }

    /// Frees the name `.1`. Files move up to the first name that is free: a try that follows one
    /// that failed moves none of them again, and only where all names are taken the oldest goes.
    fn free_first(&self) -> io::Result<()> {
        let older = |n: u32| self.named(&format!(".{n}"));
        let mut free = 1;
        while free < self.max_files - 1 && older(free).try_exists()? {
            free += 1;
        }
        for n in (1..free).rev() {
            fs::rename(older(n), older(n + 1))?;
        }
        Ok(())
    }

    /// Appends a whole record, or nothing.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        if let Err(error) = file.write_all(bytes) {
            self.is_torn = file.set_len(self.size).is_err();
            return Err(error);
        }
        self.size += bytes.len() as u64;
        self.is_dirty = true;
        self.rotated = None;
        Ok(())
    }

    /// Flushes what was appended since the last time, and the names of files that are new.
    fn sync(&mut self) -> io::Result<()> {
        if let Some(file) = &self.file
            && std::mem::take(&mut self.is_dirty)
        {
            file.sync_data()?;
        }
        match std::mem::take(&mut self.is_moved) {
            true => self.sync_names(),
            false => Ok(()),
        }
    }

    fn sync_names(&self) -> io::Result<()> {
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }

    fn flush(&self) -> io::Result<()> {
        if let Some(file) = &self.file {
            file.sync_all()?;
        }
        self.sync_names()
    }
}

/// A new file. An earlier one of that name is of a shim that never got to its task.
fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
