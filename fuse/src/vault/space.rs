//! Which bytes of an arena are free: first fit, in whole granules, neighbours merged.

use std::collections::BTreeMap;

/// Slots begin and end on a cache line.
pub(super) const GRANULE: usize = 64;

#[derive(Debug)]
pub(super) struct Space {
    free: BTreeMap<usize, usize>,
    used: usize,
    high_water: usize,
}

impl Space {
    pub(super) fn new(capacity: usize) -> Space {
        let capacity = capacity / GRANULE * GRANULE;
        let free = if capacity == 0 { BTreeMap::new() } else { BTreeMap::from([(0, capacity)]) };
        Space { free, used: 0, high_water: 0 }
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Nothing past this was ever handed out.
    pub(super) fn high_water(&self) -> usize {
        self.high_water
    }

    /// Takes room for `len` bytes. An empty slot takes a granule too, so that every slot has
    /// a place of its own.
    pub(super) fn take(&mut self, len: usize) -> Option<usize> {
        let room = rounded(len)?;
        let (&offset, &size) = self.free.iter().find(|&(_, &size)| size >= room)?;
        self.free.remove(&offset);
        if size > room {
            self.free.insert(offset + room, size - room);
        }
        self.used += room;
        self.high_water = self.high_water.max(offset + room);
        Some(offset)
    }

    /// Gives back what [`Space::take`] handed out for the same `len`.
    pub(super) fn give(&mut self, offset: usize, len: usize) {
        let Some(room) = rounded(len) else { return };
        self.used -= room;
        let (mut start, mut end) = (offset, offset + room);
        if let Some((&before, &size)) = self.free.range(..offset).next_back()
            && before + size == offset
        {
            self.free.remove(&before);
            start = before;
        }
        if let Some(size) = self.free.remove(&end) {
            end += size;
        }
        self.free.insert(start, end - start);
    }
}

fn rounded(len: usize) -> Option<usize> {
    len.max(1).checked_next_multiple_of(GRANULE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPACITY: usize = 1 << 16;

    proptest! {
        #[test]
        fn slots_never_overlap_and_all_room_comes_back(
            steps in proptest::collection::vec((0usize..9_000, any::<bool>(), any::<prop::sample::Index>()), 1..200)
        ) {
            let mut space = Space::new(CAPACITY);
            let mut held: Vec<(usize, usize)> = Vec::new();
            for (len, give, which) in steps {
                if give && !held.is_empty() {
                    let (offset, len) = held.swap_remove(which.index(held.len()));
                    space.give(offset, len);
                } else if let Some(offset) = space.take(len) {
                    prop_assert_eq!(offset % GRANULE, 0);
                    prop_assert!(offset + len <= CAPACITY);
                    for &(other, size) in &held {
                        prop_assert!(offset + len <= other || other + size <= offset);
                        prop_assert_ne!(offset, other);
                    }
                    held.push((offset, len));
                } else {
                    prop_assert!(space.used() + len > CAPACITY / 2 || !held.is_empty());
                }
                let rooms: usize = held.iter().map(|&(_, len)| rounded(len).unwrap()).sum();
                prop_assert_eq!(space.used(), rooms);
            }
            for (offset, len) in held {
                space.give(offset, len);
            }
            prop_assert_eq!(space.take(CAPACITY), Some(0));
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut space = Space::new(128);
        assert_eq!(space.take(129), None);
        assert_eq!(space.take(usize::MAX), None);
        assert_eq!(space.take(100), Some(0));
        assert_eq!(space.take(1), None);
    }
}
