//! A disk in memory that loses what a crash may lose.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex};

use crate::disk::{Disk, DiskFile};

/// What a disk writes as one.
const SECTOR: usize = 512;

/// The directory. Clones see the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct CrashDisk(Arc<(Mutex<Inner>, Condvar)>);

#[derive(Debug, Default)]
struct Inner {
    files: Vec<File>,
    /// Names as the running system sees them.
    names: BTreeMap<String, usize>,
    /// Names that a crash leaves.
    durable: BTreeMap<String, usize>,
    /// Changes to files and names left until everything fails.
    ops_left: Option<usize>,
    /// Syncs of files, and whether they wait.
    syncs: usize,
    held: bool,
    waiting: usize,
    /// The next sync of a file fails, and the system takes what it lost for written.
    lose_sync: bool,
}

#[derive(Debug, Default, Clone)]
struct File {
    /// As the running system sees it.
    now: Vec<u8>,
    /// As of the last sync.
    synced: Vec<u8>,
    /// Since the last sync.
    writes: Vec<(usize, Vec<u8>)>,
}

/// A small generator: crashes must be repeatable.
#[derive(Debug)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % end
    }
}

impl CrashDisk {
    /// Lets `ops` more changes through; then everything fails.
    pub(crate) fn fail_after(&self, ops: usize) {
        self.0.0.lock().unwrap().ops_left = Some(ops);
    }

    /// The disk as it is found after a crash.
    pub(crate) fn crash(&self, chance: &mut Chance) -> Self {
        let inner = self.0.0.lock().unwrap();
        // The directory is journalled: it is as it was synced last, or as it is.
        let names = if chance.below(2) == 0 { &inner.durable } else { &inner.names };
        let mut after = Inner::default();
        for (name, at) in names {
            after.names.insert(name.clone(), after.files.len());
            let now = inner.files[*at].after_crash(chance);
            after.files.push(File { synced: now.clone(), now, writes: Vec::new() });
        }
        after.durable = after.names.clone();
        Self(Arc::new((Mutex::new(after), Condvar::new())))
    }

    /// Makes the next sync of a file fail the way kernels do: what it did not write it takes
    /// for written.
    pub(crate) fn lose_sync(&self) {
        self.0.0.lock().unwrap().lose_sync = true;
    }

    /// Syncs of files so far.
    pub(crate) fn syncs(&self) -> usize {
        self.0.0.lock().unwrap().syncs
    }

    /// Makes syncs wait until `release`.
    pub(crate) fn hold(&self) {
        self.0.0.lock().unwrap().held = true;
    }

    /// Waits until a sync waits.
    pub(crate) fn wait_held(&self) {
        let (inner, changed) = &*self.0;
        let guard = inner.lock().unwrap();
        drop(changed.wait_while(guard, |inner| inner.waiting == 0).unwrap());
    }

    pub(crate) fn release(&self) {
        self.0.0.lock().unwrap().held = false;
        self.0.1.notify_all();
    }

    /// The bytes of every file by name.
    pub(crate) fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let inner = self.0.0.lock().unwrap();
        inner.names.iter().map(|(name, at)| (name.clone(), inner.files[*at].now.clone())).collect()
    }

    /// Changes bytes behind everybody's back.
    pub(crate) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.0.0.lock().unwrap();
        let at = inner.names[name];
        change(&mut inner.files[at].now);
    }

    fn op<T>(&self, act: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.0.0.lock().unwrap();
        match &mut inner.ops_left {
            Some(0) => return Err(io::Error::other("the disk is gone")),
            Some(left) => *left -= 1,
            None => {}
        }
        act(&mut inner)
    }
}

impl File {
    fn after_crash(&self, chance: &mut Chance) -> Vec<u8> {
        let mut found = self.synced.clone();
        for (offset, bytes) in &self.writes {
            for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                if chance.below(3) == 0 {
                    continue;
                }
                let at = offset + i * SECTOR;
                if found.len() < at + sector.len() {
                    found.resize(at + sector.len(), 0);
                }
                found[at..at + sector.len()].copy_from_slice(sector);
            }
        }
        found
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for CrashDisk {
    fn create(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let at = self.op(|inner| {
            let now = vec![0; usize::try_from(bytes).unwrap()];
            // Preallocation is metadata: journalled with the name.
            inner.files.push(File { synced: now.clone(), now, writes: Vec::new() });
            let at = inner.files.len() - 1;
            inner.names.insert(name.to_owned(), at);
            Ok(at)
        })?;
        Ok(Box::new(CrashFile { disk: self.clone(), at }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let inner = self.0.0.lock().unwrap();
        let at = *inner.names.get(name).ok_or_else(not_found)?;
        Ok(Box::new(CrashFile { disk: self.clone(), at }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.op(|inner| {
            let at = inner.names.remove(from).ok_or_else(not_found)?;
            inner.names.insert(to.to_owned(), at);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.op(|inner| inner.names.remove(name).map(drop).ok_or_else(not_found))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.0.lock().unwrap().names.keys().cloned().collect())
    }

    fn sync(&self) -> io::Result<()> {
        self.op(|inner| {
            inner.durable = inner.names.clone();
            Ok(())
        })
    }

    fn space_left(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

#[derive(Debug)]
struct CrashFile {
    disk: CrashDisk,
    at: usize,
}

impl DiskFile for CrashFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.op(|inner| {
            let file = &mut inner.files[self.at];
            let offset = usize::try_from(offset).unwrap();
            if file.now.len() < offset + bytes.len() {
                file.now.resize(offset + bytes.len(), 0);
            }
            file.now[offset..offset + bytes.len()].copy_from_slice(bytes);
            file.writes.push((offset, bytes.to_vec()));
            Ok(())
        })
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let inner = self.disk.0.0.lock().unwrap();
        let rest = inner.files[self.at].now.get(usize::try_from(offset).unwrap()..).unwrap_or(&[]);
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn sync(&self) -> io::Result<()> {
        {
            let (inner, changed) = &*self.disk.0;
            let mut guard = inner.lock().unwrap();
            guard.waiting += 1;
            changed.notify_all();
            let mut guard = changed.wait_while(guard, |inner| inner.held).unwrap();
            guard.waiting -= 1;
            guard.syncs += 1;
        }
        self.disk.op(|inner| {
            let lost = std::mem::take(&mut inner.lose_sync);
            let file = &mut inner.files[self.at];
            let writes = std::mem::take(&mut file.writes);
            if lost {
                return Err(io::Error::other("sync failed"));
            }
            for (offset, bytes) in writes {
                let end = (offset + bytes.len()).min(file.now.len());
                if file.synced.len() < end {
                    file.synced.resize(end, 0);
                }
                file.synced[offset..end].copy_from_slice(&bytes[..end - offset]);
            }
            Ok(())
        })
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.0.0.lock().unwrap().files[self.at].now.len() as u64)
    }

    fn cut(&self, bytes: u64) -> io::Result<()> {
        self.disk.op(|inner| {
            let bytes = usize::try_from(bytes).unwrap();
            let file = &mut inner.files[self.at];
            file.now.truncate(bytes);
            // The length is metadata, journalled; what is cut is gone either way.
            file.synced.truncate(bytes);
            file.writes.retain(|(offset, _)| *offset < bytes);
            Ok(())
        })
    }
}
