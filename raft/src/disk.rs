//! One directory on a disk, seen as the log and the snapshots see it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

/// A directory of files. Names are plain file names.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Makes an empty file with `bytes` preallocated; one of that name is replaced.
    ///
    /// # Errors
    /// If the disk refuses, for want of space for example.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file to read and write.
    ///
    /// # Errors
    /// If there is none.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name, replacing what has it.
    ///
    /// # Errors
    /// If the disk refuses.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// If there is none.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Names of all files, in no order.
    ///
    /// # Errors
    /// If the directory cannot be read.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes creations, renames and removals durable.
    ///
    /// # Errors
    /// If the disk refuses.
    fn sync(&self) -> io::Result<()>;

    /// Bytes left for this process.
    ///
    /// # Errors
    /// If the disk does not say.
    fn space_left(&self) -> io::Result<u64>;
}

/// An open file.
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// If the disk refuses; how much was written is then unknown.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads at `offset` until `bytes` is full or the file ends; returns how many were read.
    ///
    /// # Errors
    /// If the disk refuses.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// If the disk refuses; what was written since the last success may be lost.
    fn sync(&self) -> io::Result<()>;

    /// Bytes in the file, preallocated ones included.
    ///
    /// # Errors
    /// If the disk does not say.
    fn size(&self) -> io::Result<u64>;

    /// Cuts the file.
    ///
    /// # Errors
    /// If the disk refuses.
    fn cut(&self, bytes: u64) -> io::Result<()>;
}

/// A directory of the machine this runs on.
#[derive(Debug)]
pub struct RealDisk {
    path: PathBuf,
    dir: rustix::fd::OwnedFd,
}

impl RealDisk {
    /// Opens `path`, made with mode 0700 if it is not there.
    ///
    /// # Errors
    /// If it cannot be made or opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let made = match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(Errno::NOENT) => {
                std::fs::create_dir_all(path)?;
                rustix::fs::chmod(path, Mode::RWXU)?;
                true
            }
            Err(e) => return Err(e.into()),
        };
        if made && let Some(parent) = path.parent() {
            // What is synced in a directory is worth nothing if the directory itself is lost.
            std::fs::File::open(parent)?.sync_all()?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { path: path.to_owned(), dir })
    }

    fn open_with(&self, name: &str, flags: OFlags) -> io::Result<RealFile> {
        let flags = flags | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(RealFile { file: std::fs::File::from(fd) })
    }
}

impl Disk for RealDisk {
    fn create(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let file = self.open_with(name, OFlags::CREATE | OFlags::TRUNC)?;
        if bytes > 0 {
            let taken = match rustix::fs::fallocate(&file.file, FallocateFlags::empty(), 0, bytes) {
                Err(Errno::OPNOTSUPP) => file.fill(bytes),
                taken => taken.map_err(Into::into),
            };
            if taken.is_err() {
                // It may have taken what little there was.
                let _ = self.remove(name);
            }
            taken?;
        }
        Ok(Box::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(self.open_with(name, OFlags::empty())?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.dir, from, &self.dir, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.dir, name, rustix::fs::AtFlags::empty())?)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.dir)?)
    }

    fn space_left(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[derive(Debug)]
struct RealFile {
    file: std::fs::File,
}

impl RealFile {
    /// Writes zeros, for filesystems that cannot preallocate.
    fn fill(&self, bytes: u64) -> io::Result<()> {
        let zeros = vec![0; 1 << 16];
        let mut at = 0;
        while at < bytes {
            let some = zeros.len().min(usize::try_from(bytes - at).unwrap_or(usize::MAX));
            self.write_at(at, zeros.get(..some).unwrap_or_default())?;
            at += some as u64;
        }
        Ok(())
    }
}

impl DiskFile for RealFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, offset)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match std::os::unix::fs::FileExt::read_at(&self.file, rest, offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.file)?)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn cut(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
}
