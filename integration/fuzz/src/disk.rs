//! A directory in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use skep_raft::disk::{Disk, DiskFile};

#[derive(Debug, Clone, Default)]
struct File(Arc<Mutex<Vec<u8>>>);

/// The directory.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<BTreeMap<String, File>>);

impl Memory {
    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>) {
        self.0.lock().unwrap().insert(name.to_owned(), File(Arc::new(Mutex::new(bytes))));
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl Disk for Memory {
    fn create(&self, name: &str, _bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        self.put(name, Vec::new());
        self.open(name)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = self.0.lock().unwrap().get(name).cloned().ok_or_else(not_found)?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        let file = files.remove(from).ok_or_else(not_found)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().remove(name).map(drop).ok_or_else(not_found)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().keys().cloned().collect())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn space_left(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

impl DiskFile for File {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (at, mut file) = (place(offset)?, self.0.lock().unwrap());
        let end = at + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[at..end].copy_from_slice(bytes);
        Ok(())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let file = self.0.lock().unwrap();
        let rest = file.get(place(offset)?..).unwrap_or_default();
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn cut(&self, bytes: u64) -> io::Result<()> {
        self.0.lock().unwrap().truncate(place(bytes)?);
        Ok(())
    }
}
