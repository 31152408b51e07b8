//! The exit record. Its space is taken when the shim starts: a full disk must not hide how a
//! task ended.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use crate::wire::launch::EXIT_FILE;
use crate::wire::shim::Exit;

/// Bytes taken in advance.
const RECORD_BYTES: u64 = 4_096;
/// Bytes of error text that are kept.
const ERROR_BYTES: usize = 2_048;

/// Room for the record.
#[derive(Debug)]
pub(super) struct ExitRecord {
    file: File,
    draft: PathBuf,
    path: PathBuf,
}

impl ExitRecord {
    pub(super) fn prepare(task_dir: &Path) -> io::Result<Self> {
        let draft = task_dir.join(format!("{EXIT_FILE}.draft"));
        let file = File::create(&draft)?;
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, RECORD_BYTES)?;
        Ok(Self { file, draft, path: task_dir.join(EXIT_FILE) })
    }

    pub(super) fn write(&mut self, exit: &Exit) -> io::Result<()> {
        let text = serde_json::to_vec(exit)?;
        self.file.rewind()?;
        self.file.write_all(&text)?;
        self.file.set_len(text.len() as u64)?;
        self.file.sync_all()?;
        fs::rename(&self.draft, &self.path)?;
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// An error text that fits the record.
pub(super) fn bounded(text: String) -> String {
    bounded_to(text, ERROR_BYTES)
}

/// A text of at most `limit` bytes, or as many of it and a mark.
pub(super) fn bounded_to(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let end = (0..=limit).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = ExitRecord::prepare(dir.path()).unwrap();
        assert!(!dir.path().join(EXIT_FILE).exists());
        let error = Some(bounded("ü".repeat(4_000)));
        let exit = Exit { code: 137, oom: true, at_ns: 5, error, started_ns: 4 };
        record.write(&exit).unwrap();
        let text = fs::read(dir.path().join(EXIT_FILE)).unwrap();
        assert_eq!(serde_json::from_slice::<Exit>(&text).unwrap(), exit);
        assert!((text.len() as u64) < RECORD_BYTES);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
