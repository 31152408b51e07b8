//! Unpacks a layer's archive into a directory, as root, without ever leaving it.
//!
//! Every parent directory is opened by `openat2` with `RESOLVE_IN_ROOT`: symbolic links lead
//! where they would lead in the container. The last component is never followed. A name that
//! begins with a slash is taken from the root, as Docker does. Whiteouts are written as overlayfs
//! reads them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::archive::{Archive, ArchiveError, Entry, EntryKind};
use crate::limits::{ARCHIVE_BYTES, ARCHIVE_ENTRIES};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names that begin so are bookkeeping of an old storage driver.
const BOOKKEEPING: &[u8] = b".wh..wh.";

const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Unpacks all entries below `root`, an empty directory; returns the bytes of all files.
pub(super) fn unpack<R: Read>(archive: &mut Archive<R>, root: &Path) -> Result<u64, ArchiveError> {
    let open = || rustix::fs::open(root, DIRECTORY, Mode::empty());
    let root = open().map_err(|e| ArchiveError::Unpack { path: "/".into(), source: e.into() })?;
    // Archives without an entry for the root mean the usual mode.
    let _ = rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755));
    let mut unpacker = Unpacker { root, last_parent: None, directories: Vec::new() };
    let bytes = walk(archive, |entry, names, archive| unpacker.entry(entry, names, archive))?;
    unpacker.finish()?;
    Ok(bytes)
}

/// The bytes of all files, with nothing unpacked: for a layer that is there already.
pub(super) fn measure<R: Read>(archive: &mut Archive<R>) -> Result<u64, ArchiveError> {
    walk(archive, |_, _, _| Ok(()))
}

/// Hands on every entry that has a proper name, within the limits of a layer.
fn walk<R: Read>(
    archive: &mut Archive<R>,
    mut each: impl FnMut(&Entry, &[&[u8]], &mut Archive<R>) -> io::Result<()>,
) -> Result<u64, ArchiveError> {
    let (mut entries, mut bytes) = (0u64, 0u64);
    while let Some(entry) = archive.next()? {
        entries += 1;
        if entries > ARCHIVE_ENTRIES {
            return Err(ArchiveError::TooMany(ARCHIVE_ENTRIES));
        }
        bytes = bytes.saturating_add(entry.size);
        if bytes > ARCHIVE_BYTES {
            return Err(ArchiveError::TooLarge(ARCHIVE_BYTES));
        }
        let names = split(&entry.path).ok_or_else(|| ArchiveError::Path(entry.shown()))?;
        each(&entry, &names, archive)
            .map_err(|source| ArchiveError::Unpack { path: entry.shown(), source })?;
    }
    Ok(bytes)
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

struct Unpacker {
    root: OwnedFd,
    /// The directory that the last file went to: the next mostly goes there too.
    last_parent: Option<(Vec<u8>, OwnedFd)>,
    /// Modification times of directories, set last: unpacking into one changes it.
    directories: Vec<(Vec<u8>, (i64, u32))>,
}

impl Unpacker {
    fn entry(&mut self, entry: &Entry, names: &[&[u8]], content: &mut impl Read) -> io::Result<()> {
        let Some((name, parents)) = names.split_last() else {
            return self.root_entry(entry);
        };
        if entry.kind != EntryKind::File {
            self.last_parent = None;
        }
        self.enter(parents)?;
        let Some((_, parent)) = &self.last_parent else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if *name == OPAQUE {
            return make_opaque(parent);
        }
        if name.starts_with(BOOKKEEPING) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return whiteout(parent, hidden);
        }
        match entry.kind {
            EntryKind::File => file(parent, name, entry, content),
            EntryKind::Directory => {
                self.directories.push((names.join(&b'/'), entry.mtime));
                directory(parent, name, entry)
            }
            EntryKind::Hardlink => hardlink(&self.root, parent, name, entry),
            EntryKind::Symlink => symlink(parent, name, entry),
            EntryKind::Char | EntryKind::Block | EntryKind::Fifo => node(parent, name, entry),
        }
    }

    /// Opens the directory an entry goes to, making those that are missing.
    fn enter(&mut self, parents: &[&[u8]]) -> io::Result<()> {
        let path = parents.join(&b'/');
        if self.last_parent.as_ref().is_some_and(|(last, _)| *last == path) {
            return Ok(());
        }
        let fd = match open_in(&self.root, &path) {
            Err(Errno::NOENT) => {
                for end in 1..=parents.len() {
                    let (above, name) = (parents[..end - 1].join(&b'/'), parents[end - 1]);
                    let above = open_in(&self.root, &above)?;
                    match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) => set_mode(&above, name, 0o755)?,
                        Err(Errno::EXIST) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                open_in(&self.root, &path)?
            }
            other => other?,
        };
        self.last_parent = Some((path, fd));
        Ok(())
    }

    fn root_entry(&mut self, entry: &Entry) -> io::Result<()> {
        if entry.kind != EntryKind::Directory {
            return Err(io::Error::other("only a directory can be the root"));
        }
        self.directories.push((Vec::new(), entry.mtime));
        own(&self.root, entry)
    }

    fn finish(&mut self) -> Result<(), ArchiveError> {
        for (path, mtime) in self.directories.drain(..).rev() {
            // A later entry may have replaced it.
            let Ok(directory) = open_in(&self.root, &path) else { continue };
            rustix::fs::futimens(&directory, &times(mtime)).map_err(|e| {
                let path = String::from_utf8_lossy(&path).into_owned();
                ArchiveError::Unpack { path, source: e.into() }
            })?;
        }
        Ok(())
    }
}

/// The components of an entry's path, from the root; none if it climbs or cannot be a path.
pub(super) fn split(path: &[u8]) -> Option<Vec<&[u8]>> {
    if path.is_empty() || path.contains(&0) {
        return None;
    }
    let names = path.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".");
    let names: Vec<_> = names.collect();
    (!names.contains(&b"..".as_slice())).then_some(names)
}

/// Opens a directory below `root`, links resolved as if `root` were `/`.
fn open_in(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, DIRECTORY, Mode::empty(), resolve)
}

/// Takes away what has this name, whatever it is: the later entry counts.
fn make_room(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) | Ok(()) => Ok(()),
        Err(Errno::ISDIR) => {
            let above = format!("/proc/self/fd/{}", parent.as_raw_fd());
            let path = Path::new(&above).join(OsStr::from_bytes(name));
            crate::files::remove_dir(&path).map_err(|e| e.source)
        }
        Err(e) => Err(e.into()),
    }
}

fn file(parent: &OwnedFd, name: &[u8], entry: &Entry, content: &mut impl Read) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600));
    let fd = match open() {
        Err(Errno::EXIST) => {
            make_room(parent, name)?;
            open()?
        }
        other => other?,
    };
    let mut file = File::from(fd);
    // A content that ends early is an error of the reader, never a short file.
    match &entry.pieces {
        None => {
            io::copy(content, &mut file)?;
        }
        Some(pieces) => {
            for piece in pieces {
                file.seek(SeekFrom::Start(piece.offset))?;
                io::copy(&mut content.by_ref().take(piece.bytes), &mut file)?;
            }
            file.set_len(entry.size)?;
        }
    }
    own(&file, entry)?;
    Ok(rustix::fs::futimens(&file, &times(entry.mtime))?)
}

fn directory(parent: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
    let make = || rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700));
    let open = || rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
    let fd = match make() {
        Ok(()) => open()?,
        Err(Errno::EXIST) => match open() {
            Ok(fd) => fd,
            Err(_) => {
                // One that the layers below have was taken away before this one was made.
                let is_new = is_whiteout(parent, name)?;
                make_room(parent, name)?;
                make()?;
                let fd = open()?;
                if is_new {
                    make_opaque(&fd)?;
                }
                fd
            }
        },
        Err(e) => return Err(e.into()),
    };
    own(&fd, entry)
}

fn hardlink(root: &OwnedFd, parent: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
    let target = split(&entry.link).unwrap_or_default();
    let Some((target_name, above)) = target.split_last() else {
        return Err(io::Error::other("its link has a forbidden path"));
    };
    // Docker, too, unpacks a layer without those below it.
    let missing = |e: Errno| match e {
        Errno::NOENT | Errno::NOTDIR => io::Error::other(format!(
            "it is a hard link to {:?}, which this layer does not have before it",
            String::from_utf8_lossy(&entry.link)
        )),
        e => e.into(),
    };
    let above = open_in(root, &above.join(&b'/')).map_err(missing)?;
    let found = rustix::fs::statat(&above, *target_name, AtFlags::SYMLINK_NOFOLLOW);
    let found = found.map_err(missing)?;
    if let Ok(own) = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        // A link to itself is there already.
        if (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino) {
            return Ok(());
        }
    }
    make_room(parent, name)?;
    rustix::fs::linkat(&above, *target_name, parent, name, AtFlags::empty()).map_err(missing)
}

fn symlink(parent: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
    make_room(parent, name)?;
    rustix::fs::symlinkat(entry.link.as_slice(), parent, name)?;
    chown(parent, name, entry)?;
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::utimensat(parent, name, &times(entry.mtime), flags)?)
}

fn node(parent: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
    make_room(parent, name)?;
    let kind = match entry.kind {
        EntryKind::Char => FileType::CharacterDevice,
        EntryKind::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let device = rustix::fs::makedev(entry.device.0, entry.device.1);
    rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device)?;
    chown(parent, name, entry)?;
    set_mode(parent, name, entry.mode)?;
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::utimensat(parent, name, &times(entry.mtime), flags)?)
}

/// A character device 0/0 hides the name in the layers below. What this layer itself has of that
/// name stays: a directory then begins empty.
fn whiteout(parent: &OwnedFd, hidden: &[u8]) -> io::Result<()> {
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(io::Error::other("it hides no name"));
    }
    let kind = FileType::CharacterDevice;
    let device = rustix::fs::makedev(0, 0);
    match rustix::fs::mknodat(parent, hidden, kind, Mode::empty(), device) {
        Err(Errno::EXIST) => {
            let flags = DIRECTORY | OFlags::NOFOLLOW;
            match rustix::fs::openat(parent, hidden, flags, Mode::empty()) {
                Ok(directory) => make_opaque(&directory),
                Err(_) => Ok(()),
            }
        }
        other => Ok(other?),
    }
}

fn is_whiteout(parent: &OwnedFd, name: &[u8]) -> io::Result<bool> {
    let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    Ok(kind == FileType::CharacterDevice && found.st_rdev == rustix::fs::makedev(0, 0))
}

/// Hides what the layers below have in this directory.
fn make_opaque(directory: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(directory, OPAQUE_XATTR, b"y", XattrFlags::empty())?)
}

/// Sets owner, mode and extended attributes, in this order: a change of owner takes away the
/// set-id bits and the file capabilities.
fn own(fd: &impl AsFd, entry: &Entry) -> io::Result<()> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in &entry.xattrs {
        // Others, `trusted.overlay.*` above all, would steer the node's own kernel.
        let may_lack = name.starts_with("user.") || name.starts_with("system.posix_acl_");
        if may_lack || name == "security.capability" {
            match rustix::fs::fsetxattr(fd, name.as_str(), value, XattrFlags::empty()) {
                // As Docker does where a filesystem has no such attributes.
                Err(Errno::OPNOTSUPP) if may_lack => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn chown(parent: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::chownat(parent, name, Some(uid), Some(gid), flags)?)
}

/// For what was just made and is no link.
fn set_mode(parent: &OwnedFd, name: &[u8], mode: u32) -> io::Result<()> {
    Ok(rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())?)
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) };
    Timestamps { last_access: time, last_modification: time }
}
