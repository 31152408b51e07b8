//! When each secret and config was last read, as far as one manager keeps it.
//!
//! Nothing of this is on the disk: what is appended is noted, and segments that were there before
//! are looked at once, the newest first, as far as a question needs it.

use std::collections::BTreeMap;

use skep_core::id::{MaterialId, NodeId, TaskId};
use skep_core::time::Stamp;

use super::store::{Store, StoreError};
use crate::audit::{LastRead, Record};
use crate::files::FileError;
use crate::limits::AUDIT_LAST_READS;

/// The last reads that are known.
#[derive(Debug, Default)]
pub(super) struct LastReads {
    known: BTreeMap<MaterialId, LastRead>,
    /// The last segment that was not looked at; none once all were.
    unread: Option<u64>,
}

impl LastReads {
    /// Knows nothing yet of this segment and those before it.
    pub(super) fn before(segment: Option<u64>) -> Self {
        Self { known: BTreeMap::new(), unread: segment }
    }

    /// Takes what a record tells.
    pub(super) fn note(&mut self, node: NodeId, task: TaskId, body: &[u8]) {
        let Ok(record) = Record::parse(body) else { return };
        for row in record.rows.iter().filter(|row| row.opened > 0) {
            let Some(reader) = &row.reader else { continue };
            let read = LastRead { at: row.last, node, task, version: reader.version };
            let known = self.known.entry(reader.material).or_insert(read);
            if known.at < read.at {
                *known = read;
            }
        }
        while self.known.len() > AUDIT_LAST_READS {
            let oldest = self.known.iter().min_by_key(|(_, read)| read.at).map(|(id, _)| *id);
            let Some(oldest) = oldest else { return };
            self.known.remove(&oldest);
        }
    }

    /// Forgets what was dropped.
    pub(super) fn forget(&mut self, horizon: Stamp) {
        self.known.retain(|_, read| read.at >= horizon);
    }
}

impl Store {
    /// The last read of a secret or config; none if none is kept. Blocking: it looks at segments
    /// of an earlier start, each once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last_read(&self, material: &MaterialId) -> Result<Option<LastRead>, StoreError> {
        loop {
            let mut guard = self.open()?;
            let Some(table) = guard.as_mut() else { return Ok(None) };
            let found = table.reads.known.get(material).copied();
            // Records come late from nodes that were cut off: an older segment may tell of a later
            // read.
            let at = found.map_or(Stamp(0), |found| found.at);
            let unread = table.reads.unread.map(|unread| table.segments.range(..=unread));
            let mut unread = unread.into_iter().flatten();
            if !unread.any(|(_, segment)| segment.last > at) {
                return Ok(found);
            }
            let Some(number) = table.reads.unread else { return Ok(found) };
            let end = table.segments.get(&number).map_or(0, |segment| segment.bytes);
            self.note_reads(&mut table.reads, number, end)?;
            // Only now: what could not be read is looked at again with the next question.
            table.reads.unread = number.checked_sub(1);
        }
    }

    /// Takes what a segment tells, up to `end`.
    fn note_reads(&self, reads: &mut LastReads, number: u64, end: u64) -> Result<(), StoreError> {
        let file = if end > 0 { self.open_segment(number)? } else { None };
        let Some(file) = file else { return Ok(()) };
        let (path, mut offset) = (self.path(number), 0);
        while let Some((at, frame)) =
            self.frame_from(&file, number, offset, end).map_err(FileError::on("read", &path))?
        {
            let portion = self.read_portion(&file, (number, at), &frame).unwrap_or_default();
            for body in portion.iter().flat_map(|portion| &portion.bodies) {
                reads.note(frame.head.node, frame.head.task, body);
            }
            offset = frame.end;
        }
        Ok(())
    }
}
