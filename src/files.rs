//! Files that matter: written beside, flushed, then renamed over the old one.

mod tree;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file operation that failed, and on what.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: names action and file.
    pub fn on(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

/// Where what will be `path` is written: what a crash leaves of it is found there.
#[must_use]
pub fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

/// Replaces `path` by `bytes` with these permission bits. After a crash the file is the old one
/// or the new one.
///
/// # Errors
/// Names the file and what failed.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let beside = beside(path);
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    let written = write().inspect_err(|_| {
        // A disk that is full needs its room back; what stays is written over the next time.
        let _ = fs::remove_file(&beside);
    });
    written.and_then(|()| File::open(dir)?.sync_all()).map_err(FileError::on("write", path))
}

/// Makes a directory and its parents with these permission bits; an existing one keeps its own.
///
/// # Errors
/// Names the directory.
pub fn make_dir(path: &Path, mode: u32) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(FileError::on("make directory", path))
}

/// Removes a file; one that is not there is as good as removed.
///
/// # Errors
/// Names the file.
pub fn remove_file(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(FileError::on("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Removes a directory with all in it; one that is not there is as good as removed.
///
/// # Errors
/// Names the directory.
pub fn remove_dir(path: &Path) -> Result<(), FileError> {
    match tree::remove(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(FileError::on("remove directory", path)(e))
        }
        _ => Ok(()),
    }
}

/// A directory that one process owns for as long as this lives.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock of `dir` without waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] as source if another process holds it.
    pub fn take(dir: &Path) -> Result<Self, FileError> {
        let path = dir.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(FileError::on("open", &path))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| FileError::on("lock", &path)(e.into()))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let held = DirLock::take(dir.path()).unwrap();
        let error = DirLock::take(dir.path()).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::WouldBlock);
        drop(held);
        DirLock::take(dir.path()).unwrap();
    }

    #[test]
    fn an_atomic_write_replaces_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"one", 0o600).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// What a crash leaves beside the file, whatever of it was written, is in nobody's way.
    #[test]
    fn an_atomic_write_survives_what_a_crash_left_of_an_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, beside) = (dir.path().join("a"), dir.path().join(".a.new"));
        let (old, new) = (b"the old one".as_slice(), b"new".as_slice());
        write_atomic(&path, old, 0o600).unwrap();
        for torn in 0..=new.len() {
            fs::write(&beside, &new[..torn]).unwrap();
            assert_eq!(fs::read(&path).unwrap(), old);
            write_atomic(&path, new, 0o600).unwrap();
            assert_eq!(fs::read(&path).unwrap(), new);
            // Renamed already: the file is the new one, and nothing is beside it.
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
            write_atomic(&path, old, 0o600).unwrap();
        }
        // A longer rest is not left behind the new content.
        fs::write(&beside, [7; 4_096]).unwrap();
        write_atomic(&path, new, 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), new);
    }

    #[test]
    fn an_atomic_write_that_fails_leaves_the_old_file_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        // A directory with something in it cannot be replaced.
        fs::create_dir(&path).unwrap();
        fs::write(path.join("kept"), b"kept").unwrap();
        let error = write_atomic(&path, b"new", 0o600).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert_eq!(fs::read(path.join("kept")).unwrap(), b"kept");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let gone = dir.path().join("none/a");
        assert_eq!(
            write_atomic(&gone, b"x", 0o600).unwrap_err().source.kind(),
            io::ErrorKind::NotFound
        );
    }
}
