//! A disk in memory that loses what a crash may lose.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::disk::{Disk, DiskFile};

/// What a disk writes as one.
const SECTOR: usize = 512;

/// A directory. Clones see the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct CrashDisk {
    shared: Arc<(Mutex<Inner>, Condvar)>,
    /// Which directory of the disk.
    dir: u8,
}

#[derive(Debug, Default, Clone)]
struct Inner {
    files: Vec<File>,
    /// Names as the running system sees them.
    names: Names,
    /// Names that the last sync of their directory has made last.
    durable: Names,
    /// What changed names since.
    unsynced: Vec<Naming>,
    /// Changes to files and names so far.
    ops: usize,
    fault: Option<Fault>,
    /// What the faulty change was.
    hit: Option<Kind>,
    /// Syncs of files, and whether they wait.
    syncs: usize,
    held: bool,
    waiting: usize,
    /// The next sync of a file fails, and the system takes what it lost for written.
    lose_sync: bool,
}

type Name = (u8, String);
type Names = BTreeMap<Name, usize>;

/// A change of the names in one directory: an old name that goes, a new one for a file.
#[derive(Debug, Clone)]
struct Naming {
    gone: Option<Name>,
    new: Option<(Name, usize)>,
}

impl Naming {
    fn apply(&self, names: &mut Names) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        if let Some((name, at)) = &self.new {
            names.insert(name.clone(), *at);
        }
    }

    fn dir(&self) -> Option<u8> {
        self.gone.as_ref().or(self.new.as_ref().map(|(name, _)| name)).map(|name| name.0)
    }
}

/// What goes wrong, at the change with this number, counted from 0.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// The machine stops: that change and all after it fail. Of a write so many bytes arrive.
    Stop { at: usize, torn: usize },
    /// That change alone fails with this error. Of a write so many bytes arrive; of a sync
    /// nothing, and what was not written counts as written from then on.
    Refuse { at: usize, torn: usize, errno: i32 },
}

/// A change to files or names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Write(usize),
    Sync,
    Cut,
    Name,
    SyncDir,
}

/// What a crash leaves of what was not synced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Survival {
    /// How many of the changes to names, the oldest first: directories are journalled.
    pub(crate) names: usize,
    pub(crate) bytes: Bytes,
}

/// What a crash leaves of the bytes that were not synced.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bytes {
    Lost,
    Kept,
    /// Every second sector, this one first.
    Every(usize),
    /// Any sectors.
    Any(u64),
}

#[derive(Debug, Default, Clone)]
struct File {
    /// As the running system sees it.
    now: Vec<u8>,
    /// As of the last sync.
    synced: Vec<u8>,
    /// Since the last sync.
    pending: Vec<Pending>,
}

#[derive(Debug, Clone)]
enum Pending {
    Write(usize, Vec<u8>),
    Cut(usize),
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
    /// Another directory on the same disk.
    pub(crate) fn beside(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), dir: self.dir + 1 }
    }

    /// A disk of its own with the same content.
    pub(crate) fn copy(&self) -> Self {
        let inner = self.inner().clone();
        Self { shared: Arc::new((Mutex::new(inner), Condvar::new())), dir: self.dir }
    }

    /// Lets `ops` more changes through; then everything fails.
    pub(crate) fn fail_after(&self, ops: usize) {
        let at = self.ops() + ops;
        self.fault(Fault::Stop { at, torn: 0 });
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.inner().fault = Some(fault);
    }

    /// Changes to files and names so far.
    pub(crate) fn ops(&self) -> usize {
        self.inner().ops
    }

    /// What the change was that the fault struck, if it has.
    pub(crate) fn hit(&self) -> Option<Kind> {
        self.inner().hit
    }

    /// Changes to names that no sync has made last.
    pub(crate) fn unsynced_names(&self) -> usize {
        self.inner().unsynced.len()
    }

    /// The disk as it is found after a crash.
    pub(crate) fn crash(&self, chance: &mut Chance) -> Self {
        let names = chance.below(self.unsynced_names() as u64 + 1) as usize;
        self.crash_to(Survival { names, bytes: Bytes::Any(chance.below(1 << 30)) })
    }

    /// The disk as it is found after a crash that leaves just this.
    pub(crate) fn crash_to(&self, survival: Survival) -> Self {
        let inner = self.inner();
        let mut names = inner.durable.clone();
        inner.unsynced.iter().take(survival.names).for_each(|naming| naming.apply(&mut names));
        let mut left = survival.bytes.chooser();
        let mut after = Inner::default();
        for (name, at) in names {
            after.names.insert(name, after.files.len());
            let now = inner.files[at].after_crash(&mut left);
            after.files.push(File { synced: now.clone(), now, pending: Vec::new() });
        }
        after.durable = after.names.clone();
        Self { shared: Arc::new((Mutex::new(after), Condvar::new())), dir: self.dir }
    }

    /// Makes the next sync of a file fail the way kernels do: what it did not write it takes
    /// for written.
    pub(crate) fn lose_sync(&self) {
        self.inner().lose_sync = true;
    }

    /// Syncs of files so far.
    pub(crate) fn syncs(&self) -> usize {
        self.inner().syncs
    }

    /// Makes syncs wait until `release`.
    pub(crate) fn hold(&self) {
        self.inner().held = true;
    }

    /// Waits until a sync waits.
    pub(crate) fn wait_held(&self) {
        let (inner, changed) = &*self.shared;
        let guard = inner.lock().unwrap();
        drop(changed.wait_while(guard, |inner| inner.waiting == 0).unwrap());
    }

    pub(crate) fn release(&self) {
        self.inner().held = false;
        self.shared.1.notify_all();
    }

    /// The bytes of every file by name.
    pub(crate) fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let inner = self.inner();
        let own = inner.names.iter().filter(|((dir, _), _)| *dir == self.dir);
        own.map(|((_, name), at)| (name.clone(), inner.files[*at].now.clone())).collect()
    }

    /// Changes bytes behind everybody's back.
    pub(crate) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.inner();
        let at = inner.names[&self.name(name)];
        change(&mut inner.files[at].now);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.shared.0.lock().unwrap()
    }

    fn name(&self, name: &str) -> Name {
        (self.dir, name.to_owned())
    }

    /// One change. `act` hears how many bytes of a write arrive, if not all.
    fn op<T>(
        &self,
        kind: Kind,
        act: impl FnOnce(&mut Inner, Option<usize>) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut inner = self.inner();
        let number = inner.ops;
        match inner.fault {
            Some(Fault::Stop { at, .. }) if number > at => {
                Err(io::Error::other("the disk is gone"))
            }
            Some(Fault::Stop { at, torn }) if number == at => {
                inner.ops += 1;
                inner.hit = Some(kind);
                if let (Kind::Write(_), true) = (kind, torn > 0) {
                    act(&mut inner, Some(torn))?;
                }
                Err(io::Error::other("the disk is gone"))
            }
            Some(Fault::Refuse { at, torn, errno }) if number == at => {
                inner.ops += 1;
                inner.hit = Some(kind);
                match kind {
                    Kind::Write(_) => drop(act(&mut inner, Some(torn))),
                    Kind::Sync => {
                        inner.lose_sync = true;
                        drop(act(&mut inner, None));
                    }
                    Kind::Cut | Kind::Name | Kind::SyncDir => {}
                }
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => {
                inner.ops += 1;
                act(&mut inner, None)
            }
        }
    }
}

impl Bytes {
    /// Tells of one sector after another whether it is left.
    fn chooser(self) -> Box<dyn FnMut() -> bool> {
        match self {
            Self::Lost => Box::new(|| false),
            Self::Kept => Box::new(|| true),
            Self::Every(first) => {
                let mut at = first;
                Box::new(move || {
                    at += 1;
                    at % 2 == 1
                })
            }
            Self::Any(seed) => {
                let mut chance = Chance(seed);
                Box::new(move || chance.below(3) > 0)
            }
        }
    }
}

impl File {
    fn after_crash(&self, left: &mut dyn FnMut() -> bool) -> Vec<u8> {
        let mut found = self.synced.clone();
        for change in &self.pending {
            match change {
                Pending::Cut(bytes) if left() => found.truncate(*bytes),
                Pending::Cut(_) => {}
                Pending::Write(offset, bytes) => {
                    for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                        if left() {
                            put(&mut found, offset + i * SECTOR, sector);
                        }
                    }
                }
            }
        }
        found
    }
}

/// Writes into a file that grows as needed.
fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if file.len() < offset + bytes.len() {
        file.resize(offset + bytes.len(), 0);
    }
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Inner {
    fn rename(&mut self, naming: Naming) {
        naming.apply(&mut self.names);
        self.unsynced.push(naming);
    }
}

impl Disk for CrashDisk {
    fn create(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let at = self.op(Kind::Name, |inner, _| {
            let now = vec![0; usize::try_from(bytes).unwrap()];
            // Preallocation is metadata: journalled with the name.
            inner.files.push(File { synced: now.clone(), now, pending: Vec::new() });
            let at = inner.files.len() - 1;
            inner.rename(Naming { gone: None, new: Some((self.name(name), at)) });
            Ok(at)
        })?;
        Ok(Box::new(CrashFile { disk: self.clone(), at }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let at = *self.inner().names.get(&self.name(name)).ok_or_else(not_found)?;
        Ok(Box::new(CrashFile { disk: self.clone(), at }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.op(Kind::Name, |inner, _| {
            let at = *inner.names.get(&self.name(from)).ok_or_else(not_found)?;
            let new = Some((self.name(to), at));
            inner.rename(Naming { gone: Some(self.name(from)), new });
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.op(Kind::Name, |inner, _| {
            let gone = self.name(name);
            inner.names.get(&gone).ok_or_else(not_found)?;
            inner.rename(Naming { gone: Some(gone), new: None });
            Ok(())
        })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.contents().into_keys().collect())
    }

    fn sync(&self) -> io::Result<()> {
        self.op(Kind::SyncDir, |inner, _| {
            let Inner { durable, unsynced, .. } = inner;
            unsynced.retain(|naming| {
                let own = naming.dir() == Some(self.dir);
                if own {
                    naming.apply(durable);
                }
                !own
            });
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
        self.disk.op(Kind::Write(bytes.len()), |inner, torn| {
            let file = &mut inner.files[self.at];
            let offset = usize::try_from(offset).unwrap();
            let bytes = &bytes[..torn.unwrap_or(bytes.len()).min(bytes.len())];
            put(&mut file.now, offset, bytes);
            file.pending.push(Pending::Write(offset, bytes.to_vec()));
            Ok(())
        })
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let inner = self.disk.inner();
        let rest = inner.files[self.at].now.get(usize::try_from(offset).unwrap()..).unwrap_or(&[]);
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn sync(&self) -> io::Result<()> {
        {
            let (inner, changed) = &*self.disk.shared;
            let mut guard = inner.lock().unwrap();
            guard.waiting += 1;
            changed.notify_all();
            let mut guard = changed.wait_while(guard, |inner| inner.held).unwrap();
            guard.waiting -= 1;
            guard.syncs += 1;
        }
        self.disk.op(Kind::Sync, |inner, _| {
            let lost = std::mem::take(&mut inner.lose_sync);
            let file = &mut inner.files[self.at];
            let pending = std::mem::take(&mut file.pending);
            if lost {
                return Err(io::Error::other("sync failed"));
            }
            for change in pending {
                match change {
                    Pending::Write(offset, bytes) => put(&mut file.synced, offset, &bytes),
                    Pending::Cut(bytes) => file.synced.truncate(bytes),
                }
            }
            Ok(())
        })
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.inner().files[self.at].now.len() as u64)
    }

    fn cut(&self, bytes: u64) -> io::Result<()> {
        self.disk.op(Kind::Cut, |inner, _| {
            let bytes = usize::try_from(bytes).unwrap();
            let file = &mut inner.files[self.at];
            file.now.truncate(bytes);
            file.pending.push(Pending::Cut(bytes));
            Ok(())
        })
    }
}
