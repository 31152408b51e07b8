//! Answers to the kernel, every one from memory.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::audit::{Audit, Caller, Outcome};
use crate::files::{Access, Files, Open, Refusal};
use crate::limits;
use crate::tree::{Attributes, Grant, NodeKind};
use crate::vault::{Bounce, Slot};

/// An open that waits until the kernel has dropped what it cached.
#[derive(Debug)]
pub(crate) struct Parked {
    ino: u64,
    access: Access,
    caller: Caller,
    reply: ReplyOpen,
}

/// An open to be counted once its answer is out.
type Record = (Arc<Grant>, Caller, Outcome);

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) files: Files,
    /// Whether the kernel has been told of any inode yet, and so may cache something.
    pub(crate) known: bool,
    parked: Vec<Parked>,
}

/// What the serving threads and the server's owner share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) audit: Arc<Audit>,
    bounces: Mutex<Vec<Bounce>>,
}

impl Shared {
    pub(crate) fn new(born_ns: i64, bounces: Vec<Bounce>) -> Shared {
        let state = State { files: Files::new(born_ns), known: false, parked: Vec::new() };
        Shared { state: Mutex::new(state), audit: Arc::default(), bounces: Mutex::new(bounces) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the opens that waited, now that none of them has to.
    pub(crate) fn unpark(&self) {
        let mut state = self.state();
        let parked = std::mem::take(&mut state.parked);
        let records: Vec<Record> =
            parked.into_iter().filter_map(|open| state.answer(open)).collect();
        drop(state);
        self.record(records);
    }

    fn open(&self, open: Parked) {
        let record = self.state().answer(open);
        self.record(record);
    }

    /// Counts as refused that somebody wanted what was taken away: the kernel asks for a file's
    /// attributes before it opens it, and gets no further. It does not say what it asks for: a mere
    /// look counts too.
    fn deny(&self, grant: Option<Arc<Grant>>, req: &Request) {
        self.record(grant.map(|grant| (grant, caller(req), Outcome::Refused)));
    }

    fn record(&self, records: impl IntoIterator<Item = Record>) {
        for (grant, caller, outcome) in records {
            self.audit.record(&grant, caller, outcome);
        }
    }

    fn read(&self, slot: &Slot, offset: u64, size: u32, reply: ReplyData) {
        let size = usize::try_from(size).unwrap_or(usize::MAX).min(limits::READ_BYTES);
        let bounce = self.bounces.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some(mut bounce) = bounce else {
            return reply.error(Errno::EIO);
        };
        let mut reply = Some(reply);
        let answered = slot.serve(offset, size, &mut bounce, |bytes| {
            if let Some(reply) = reply.take() {
                reply.data(bytes);
            }
        });
        if let (Err(_), Some(reply)) = (answered, reply) {
            reply.error(Errno::ENOENT);
        }
        self.bounces.lock().unwrap_or_else(PoisonError::into_inner).push(bounce);
    }
}

impl State {
    /// Decides and answers in one: whoever holds the lock to change the files knows that every
    /// open decided before is answered.
    fn answer(&mut self, open: Parked) -> Option<Record> {
        let Parked { ino, access, caller, reply } = open;
        match self.files.open(ino, access) {
            Open::Handle(fh, grant) => {
                let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
                reply.opened(FileHandle(fh), flags);
                grant.map(|grant| (grant, caller, Outcome::Opened))
            }
            Open::Wait if self.parked.len() < limits::HANDLES => {
                self.parked.push(Parked { ino, access, caller, reply });
                None
            }
            Open::Wait => {
                reply.error(Errno::ENFILE);
                None
            }
            Open::Refused(refusal, grant) => {
                reply.error(errno(refusal));
                grant.map(|grant| (grant, caller, Outcome::Refused))
            }
        }
    }
}

/// The filesystem as fuser drives it.
#[derive(Debug)]
pub(crate) struct Fs {
    pub(crate) shared: Arc<Shared>,
    /// Told once the kernel's first message is here.
    pub(crate) ready: SyncSender<std::io::Result<()>>,
}

impl Filesystem for Fs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Both bound the pages of one request; a kernel that offers less is fine.
        let _ = config.set_max_write(limits::READ_BYTES as u32);
        let _ = config.set_max_readahead(limits::READ_BYTES as u32);
        for wish in [InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_NO_EXPORT_SUPPORT] {
            let _ = config.add_capabilities(wish);
        }
        let _ = self.ready.try_send(Ok(()));
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name.len() > limits::NAME_BYTES {
            return reply.error(Errno::ENAMETOOLONG);
        }
        let mut state = self.shared.state();
        state.known = true;
        match name.to_str().and_then(|name| state.files.lookup(parent.0, name)) {
            // Attributes that arrive with a name can outrun an invalidation: the kernel then
            // has no inode yet to invalidate. Those it asks for once it has the inode cannot.
            Some(found) => reply.entry_with_ttls(
                &Duration::ZERO,
                &limits::CACHE_TTL,
                &file_attr(&found),
                Generation(0),
            ),
            None => {
                reply.error(Errno::ENOENT);
                let sought = name.to_str().and_then(|n| state.files.tree().child(parent.0, n));
                let denied = sought.and_then(|ino| state.files.taken_away(ino));
                drop(state);
                self.shared.deny(denied, req);
            }
        }
    }

    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let mut state = self.shared.state();
        state.known = true;
        match state.files.attributes(ino.0) {
            Some(found) => reply.attr(&limits::CACHE_TTL, &file_attr(&found)),
            None => {
                reply.error(Errno::ENOENT);
                let denied = state.files.taken_away(ino.0);
                drop(state);
                self.shared.deny(denied, req);
            }
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.shared.state().files.tree().link(ino.0) {
            Some(target) => reply.data(target.as_bytes()),
            None => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let access = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => Access::Read,
            OpenAccMode::O_WRONLY => Access::Touch,
            OpenAccMode::O_RDWR => return reply.error(Errno::EROFS),
        };
        self.shared.open(Parked { ino: ino.0, access, caller: caller(req), reply });
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // Reads by a process carry its lock owner; those that fill the page cache don't.
        let for_page_cache = lock_owner.is_none();
        if for_page_cache {
            self.shared.audit.count_cached_read();
        }
        let slot = self.shared.state().files.read(fh.0, for_page_cache);
        match slot {
            Ok(slot) => self.shared.read(&slot, offset, size, reply),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.shared.state().files.touch(fh.0) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.state().files.release(fh.0);
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = self.shared.state().files.list(ino.0, offset);
        let Some(entries) = entries else {
            // The kernel lists nothing but directories: this one went while it was open.
            return reply.error(Errno::ENOENT);
        };
        for entry in entries {
            let kind = file_type(entry.kind);
            if reply.add(INodeNo(entry.ino), entry.cookie, kind, &entry.name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let state = self.shared.state();
        let tree = state.files.tree();
        let blocks = |ino| tree.attributes(ino).map_or(0, |found| found.blocks / 8);
        let (files, used) =
            tree.granted().fold((0, 0), |(files, used), ino| (files + 1, used + blocks(ino)));
        reply.statfs(used, 0, 0, files, 0, 4_096, limits::NAME_BYTES as u32, 4_096);
    }

    fn setattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

fn errno(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::Gone => Errno::ENOENT,
        Refusal::IsDirectory => Errno::EISDIR,
        Refusal::TooManyHandles => Errno::ENFILE,
        Refusal::Stale => Errno::ESTALE,
        Refusal::BadHandle => Errno::EBADF,
    }
}

fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::Directory => FileType::Directory,
        NodeKind::File => FileType::RegularFile,
        NodeKind::Link => FileType::Symlink,
    }
}

fn file_attr(found: &Attributes) -> FileAttr {
    let since = Duration::from_nanos(u64::try_from(found.mtime_ns).unwrap_or(0));
    let time = UNIX_EPOCH + since;
    FileAttr {
        ino: INodeNo(found.ino),
        size: found.size,
        blocks: found.blocks,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(found.kind),
        perm: (found.mode & 0o7777) as u16,
        nlink: found.nlink,
        uid: found.uid,
        gid: found.gid,
        rdev: 0,
        blksize: 4_096,
        flags: 0,
    }
}
