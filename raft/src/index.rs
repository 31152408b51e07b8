//! The log in memory: where every entry is, and the latest entries themselves.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crate::limits::CACHE_BYTES;
use crate::record::{Frame, Record, entry_bytes};
use crate::segment::Segment;
use crate::types::{Entry, EntryPayload, LogId, Membership, Payload, Position, VoteRecord};

/// Where an entry is on disk.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) segment: Arc<Segment>,
    pub(crate) offset: u64,
    /// Bytes of its frame.
    pub(crate) bytes: usize,
}

impl Place {
    /// Reads the entry.
    fn read(&self, at: Position) -> io::Result<Entry> {
        let frame = self.segment.read(self.offset, self.bytes)?;
        match entry_of(&frame) {
            Some(entry) if Position::from(&entry.log_id) == at => Ok(entry),
            _ => Err(self.segment.damaged(self.offset)),
        }
    }
}

/// The entry in a frame, if there is one.
pub(crate) fn entry_of(frame: &Frame) -> Option<Entry> {
    let (term, payload) = match frame.record().ok()? {
        Record::Blank { term } => (term, EntryPayload::Blank),
        Record::Normal { term, payload } => {
            (term, EntryPayload::Normal(Payload(Arc::from(payload))))
        }
        Record::Members { term, members } => {
            (term, EntryPayload::Membership(Membership::try_from(members).ok()?))
        }
        Record::Batch { .. } | Record::Vote(_) | Record::Committed(_) | Record::Purged(_) => {
            return None;
        }
    };
    Some(Entry { log_id: LogId::from(Position { term, index: frame.index }), payload })
}

/// An entry, or where to read it.
#[derive(Debug)]
pub(crate) enum Found {
    Here(Entry),
    There(Position, Place),
}

impl Found {
    /// The entry, read from disk if need be.
    pub(crate) fn read(self) -> io::Result<Entry> {
        match self {
            Self::Here(entry) => Ok(entry),
            Self::There(at, place) => place.read(at),
        }
    }
}

#[derive(Debug)]
struct Slot {
    term: u64,
    entry: Option<Entry>,
    place: Option<Place>,
}

/// All entries that are not purged, and what openraft asks of the log besides.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Index of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    purged: Option<Position>,
    /// Bytes of the entries held in memory.
    cached: usize,
    /// Entries before this index are not held in memory.
    evicted: u64,
    pub(crate) vote: Option<VoteRecord>,
    pub(crate) committed: Option<Position>,
}

/// An entry that does not follow the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("entry {index} does not follow the log, which ends before {expected}")]
pub(crate) struct Hole {
    index: u64,
    expected: u64,
}

impl Index {
    /// The last entry that was purged.
    pub(crate) fn purged(&self) -> Option<Position> {
        self.purged
    }

    /// The last entry, or the last one purged if there is none.
    pub(crate) fn last(&self) -> Option<Position> {
        let slot = self.slots.back().map(|slot| (slot.term, self.end().saturating_sub(1)));
        slot.map(|(term, index)| Position { term, index }).or(self.purged)
    }

    /// Index behind the last entry.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// Appends an entry, at `place` if it is on disk already. The first of all may have any
    /// index.
    pub(crate) fn push(&mut self, entry: Entry, place: Option<Place>) -> Result<(), Hole> {
        let index = entry.log_id.index;
        if self.slots.is_empty() {
            let expected = self.purged.map_or(index, |at| at.index + 1);
            if index != expected {
                return Err(Hole { index, expected });
            }
            self.first = index;
            self.evicted = index;
        } else if index != self.end() {
            return Err(Hole { index, expected: self.end() });
        }
        self.cached += entry_bytes(&entry);
        let term = entry.log_id.leader_id.term;
        self.slots.push_back(Slot { term, entry: Some(entry), place });
        self.evict();
        Ok(())
    }

    /// Records where an entry was written.
    pub(crate) fn set_place(&mut self, index: u64, place: Place) {
        if let Some(slot) = self.slot_mut(index) {
            slot.place = Some(place);
        }
        self.evict();
    }

    /// The entries of `start..end` that are there.
    pub(crate) fn get(&self, start: u64, end: u64) -> Vec<Found> {
        let start = start.max(self.first);
        let end = end.min(self.end());
        let mut found = Vec::new();
        for index in start..end {
            let Some(slot) =
                usize::try_from(index - self.first).ok().and_then(|i| self.slots.get(i))
            else {
                break;
            };
            match (&slot.entry, &slot.place) {
                (Some(entry), _) => found.push(Found::Here(entry.clone())),
                (None, Some(place)) => {
                    found.push(Found::There(Position { term: slot.term, index }, place.clone()));
                }
                // Only entries on disk are evicted.
                (None, None) => break,
            }
        }
        found
    }

    /// Drops the entries from index `end` on.
    pub(crate) fn truncate(&mut self, end: u64) {
        while self.end() > end {
            let Some(slot) = self.slots.pop_back() else { break };
            self.forget(&slot);
        }
        self.evicted = self.evicted.min(self.end());
    }

    /// Drops the entries up to `upto`.
    pub(crate) fn purge(&mut self, upto: Position) {
        while self.first <= upto.index {
            let Some(slot) = self.slots.pop_front() else { break };
            self.forget(&slot);
            self.first += 1;
        }
        if self.purged.is_none_or(|at| at.index < upto.index) {
            self.purged = Some(upto);
        }
        self.evicted = self.evicted.max(self.first);
    }

    fn forget(&mut self, slot: &Slot) {
        self.cached -= slot.entry.as_ref().map_or(0, entry_bytes);
    }

    fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(at)
    }

    /// Lets go of the oldest entries in memory while there are too many, unless they are not
    /// on disk yet.
    fn evict(&mut self) {
        while self.cached > CACHE_BYTES {
            let evicted = self.evicted;
            let Some(slot) = self.slot_mut(evicted).filter(|slot| slot.place.is_some()) else {
                return;
            };
            let bytes = slot.entry.take().as_ref().map_or(0, entry_bytes);
            self.cached -= bytes;
            self.evicted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(term: u64, index: u64) -> Entry {
        let payload = EntryPayload::Normal(Payload(Arc::from(vec![0; 1 << 20])));
        Entry { log_id: LogId::from(Position { term, index }), payload }
    }

    #[test]
    fn entries_follow_one_another() {
        let mut index = Index::default();
        assert!(index.push(entry(1, 5), None).is_ok());
        assert!(index.push(entry(1, 7), None).is_err());
        assert!(index.push(entry(1, 6), None).is_ok());
        assert_eq!(index.last(), Some(Position { term: 1, index: 6 }));
        index.truncate(6);
        assert_eq!(index.get(0, 100).len(), 1);
        index.purge(Position { term: 1, index: 9 });
        assert_eq!(index.last(), Some(Position { term: 1, index: 9 }));
        assert!(index.push(entry(1, 6), None).is_err());
        assert!(index.push(entry(2, 10), None).is_ok());
        assert_eq!(index.cached, 1 << 20);
    }

    #[test]
    fn nothing_is_evicted_before_it_is_on_disk() {
        let mut index = Index::default();
        for i in 0..10 {
            index.push(entry(1, i), None).unwrap();
        }
        assert_eq!(index.get(0, 10).len(), 10);
        assert_eq!(index.cached, 10 << 20);
    }
}
