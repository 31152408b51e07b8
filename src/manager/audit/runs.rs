//! Which records of a task are there.

use std::collections::BTreeMap;

/// Sequences as runs without gaps: the last of each by its first. No two of them touch.
#[derive(Debug, Default)]
pub(super) struct Runs(BTreeMap<u64, u64>);

impl Runs {
    /// From and to of each, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(from, to)| (*from, *to))
    }

    pub(super) fn holds(&self, sequence: u64) -> bool {
        self.covers((sequence, sequence))
    }

    /// Whether all of a run are there.
    pub(super) fn covers(&self, (from, to): (u64, u64)) -> bool {
        from > to || self.0.range(..=from).next_back().is_some_and(|(_, end)| *end >= to)
    }

    pub(super) fn add(&mut self, (mut from, mut to): (u64, u64)) {
        if from > to {
            return;
        }
        // Those that it touches become one with it.
        let behind = to.saturating_add(1);
        while let Some((&first, &last)) = self.0.range(..=behind).next_back()
            && last.saturating_add(1) >= from
        {
            self.0.remove(&first);
            (from, to) = (from.min(first), to.max(last));
        }
        self.0.insert(from, to);
    }
}

impl FromIterator<(u64, u64)> for Runs {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(added: I) -> Self {
        let mut runs = Self::default();
        added.into_iter().for_each(|run| runs.add(run));
        runs
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn runs(added: &[(u64, u64)]) -> Vec<(u64, u64)> {
        Runs::from_iter(added.iter().copied()).iter().collect()
    }

    #[test]
    fn runs_that_touch_become_one_in_whatever_order_they_come() {
        assert_eq!(runs(&[(4, 6), (1, 2)]), [(1, 2), (4, 6)]);
        assert_eq!(runs(&[(4, 6), (1, 2), (3, 3)]), [(1, 6)]);
        assert_eq!(runs(&[(1, 2), (5, 6), (9, 9), (2, 8)]), [(1, 9)]);
        assert_eq!(runs(&[(1, 9), (3, 4), (10, 12)]), [(1, 12)]);
        assert_eq!(runs(&[(u64::MAX, u64::MAX), (0, 0), (7, 3)]), [(0, 0), (u64::MAX, u64::MAX)]);
        let some = Runs::from_iter([(4, 6), (9, 9)]);
        let held: Vec<u64> = (0..12).filter(|sequence| some.holds(*sequence)).collect();
        assert_eq!(held, [4, 5, 6, 9]);
        assert!(some.covers((4, 6)) && some.covers((5, 5)) && some.covers((8, 7)));
        assert!(!some.covers((3, 4)) && !some.covers((4, 7)) && !some.covers((6, 9)));
    }

    /// A node can leave out every other record: one after the other would take minutes.
    #[test]
    fn many_gaps_are_kept_apart() {
        let many = Runs::from_iter((0..200_000).rev().map(|n| (2 * n, 2 * n)));
        assert!((0..200_000).all(|n| many.holds(2 * n) && !many.holds(2 * n + 1)));
    }
}
