//! Removes a directory whose content a container or an archive made: however deep it is, it
//! takes neither stack nor descriptors without end.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// Directories deeper than this are moved to the top before they are emptied.
const DEPTH: usize = 32;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

pub(super) fn remove(path: &Path) -> io::Result<()> {
    let top = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
    let mut removal = Removal { top: &top, moved: 0 };
    // What was moved to the top may have come too late for the pass that moved it.
    while removal.empty(&top, 0)? {}
    fs::remove_dir(path)
}

struct Removal<'a> {
    top: &'a OwnedFd,
    /// Counts directories moved to the top: their names there.
    moved: u64,
}

impl Removal<'_> {
    /// Removes what is in a directory; tells whether there was anything.
    fn empty(&mut self, dir: &OwnedFd, depth: usize) -> io::Result<bool> {
        let mut found = false;
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            found = true;
            match entry.file_type() {
                FileType::Directory => self.directory(dir, name, depth)?,
                _ => match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                    // Not every filesystem tells the type in the listing.
                    Err(Errno::ISDIR) => self.directory(dir, name, depth)?,
                    Err(Errno::NOENT) => {}
                    other => other?,
                },
            }
        }
        Ok(found)
    }

    fn directory(&mut self, dir: &OwnedFd, name: &CStr, depth: usize) -> io::Result<()> {
        if depth >= DEPTH {
            return self.lift(dir, name);
        }
        let child = rustix::fs::openat(dir, name, DIRECTORY, Mode::empty())?;
        self.empty(&child, depth + 1)?;
        drop(child);
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
    }

    fn lift(&mut self, dir: &OwnedFd, name: &CStr) -> io::Result<()> {
        loop {
            self.moved += 1;
            let free = format!(".lifted-{}", self.moved);
            let flags = RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(dir, name, self.top, free.as_str(), flags) {
                Err(Errno::EXIST) => {}
                other => return Ok(other?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{mkdirat, openat, symlinkat};

    #[test]
    fn a_very_deep_directory_is_removed_and_links_are_not_followed() {
        // In memory: so many directories take a disk half a minute.
        let outer = tempfile::tempdir_in("/dev/shm").unwrap();
        let kept = outer.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), b"").unwrap();
        let path = outer.path().join("deep");
        fs::create_dir(&path).unwrap();
        fs::write(path.join(".lifted-1"), b"in the way").unwrap();
        let mut dir = rustix::fs::open(&path, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..5_000 {
            symlinkat(kept.as_path(), &dir, "link").unwrap();
            mkdirat(&dir, "d", Mode::from_raw_mode(0o755)).unwrap();
            dir = openat(&dir, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        remove(&path).unwrap();
        assert!(!path.exists());
        assert!(kept.join("file").exists());
    }

    #[test]
    fn what_is_no_directory_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(remove(&link).is_err() && link.is_symlink());
        assert_eq!(remove(&dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
