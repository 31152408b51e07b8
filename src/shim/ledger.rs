//! Which versions the shim holds, and which it may never take again: decided without a vault or a
//! filesystem.

use std::collections::{BTreeMap, BTreeSet};

use skep_core::id::MaterialId;

/// A version that is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Barred {
    #[error("version {offered} of {material} is older than version {held}, which is held")]
    Older { material: MaterialId, offered: u64, held: u64 },
    #[error("version {offered} of {material} is revoked, and so is every one up to {up_to}")]
    Revoked { material: MaterialId, offered: u64, up_to: u64 },
}

/// What orders have come to so far.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    sequence: u64,
    held: BTreeMap<MaterialId, u64>,
    /// The last version of each that may never be taken again.
    barred: BTreeMap<MaterialId, u64>,
    /// What was ever held: a version of these that comes takes the place of another.
    known: BTreeSet<MaterialId>,
}

impl Ledger {
    /// Sequence of the last order that was taken.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) fn held(&self) -> &BTreeMap<MaterialId, u64> {
        &self.held
    }

    pub(super) fn is_revoked(&self, material: &MaterialId) -> bool {
        self.barred.contains_key(material) && !self.held.contains_key(material)
    }

    /// Whether an order comes after a later one, or a second time.
    pub(super) fn is_late(&self, sequence: u64) -> bool {
        sequence <= self.sequence
    }

    /// Whether a version that was not held before came into the place of an earlier one.
    pub(super) fn replaces(&self, material: &MaterialId) -> bool {
        self.known.contains(material)
    }

    /// Whether a version is news: one that is held needs no opening.
    pub(super) fn admit(&self, material: MaterialId, offered: u64) -> Result<bool, Barred> {
        match (self.barred.get(&material), self.held.get(&material)) {
            (Some(&up_to), _) if offered <= up_to => {
                Err(Barred::Revoked { material, offered, up_to })
            }
            (_, Some(&held)) if offered < held => Err(Barred::Older { material, offered, held }),
            (_, held) => Ok(held != Some(&offered)),
        }
    }

    /// A delivery is in force.
    pub(super) fn took(
        &mut self,
        sequence: u64,
        fresh: impl IntoIterator<Item = (MaterialId, u64)>,
    ) {
        for (material, version) in fresh {
            self.held.insert(material, version);
            self.known.insert(material);
        }
        self.sequence = self.sequence.max(sequence);
    }

    /// Whether no version up to this one is taken any more.
    pub(super) fn is_barred(&self, material: &MaterialId, up_to: u64) -> bool {
        self.barred.get(material).is_some_and(|barred| *barred >= up_to)
    }

    /// From now on no version up to the one named is taken. True if one is held that has to go;
    /// it counts as held until [`Ledger::let_go`].
    pub(super) fn bar(&mut self, material: MaterialId, up_to: u64) -> bool {
        let barred = self.barred.entry(material).or_default();
        *barred = up_to.max(*barred);
        self.held.get(&material).is_some_and(|held| *held <= up_to)
    }

    /// A revocation is in force: these can be read no more.
    pub(super) fn let_go(&mut self, sequence: u64, gone: &BTreeSet<MaterialId>) {
        self.held.retain(|material, _| !gone.contains(material));
        self.sequence = self.sequence.max(sequence);
    }

    /// The task is over.
    pub(super) fn clear(&mut self) {
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn material(seed: u8) -> MaterialId {
        MaterialId::from_entropy([seed; skep_core::id::ENTROPY_LEN])
    }

    #[test]
    fn no_version_goes_back_and_what_is_held_is_no_news() {
        let a = material(1);
        let mut ledger = Ledger::default();
        assert_eq!(ledger.admit(a, 2), Ok(true));
        assert!(!ledger.replaces(&a));
        ledger.took(4, [(a, 2)]);
        assert_eq!(ledger.admit(a, 2), Ok(false));
        let older = Barred::Older { material: a, offered: 1, held: 2 };
        assert_eq!(ledger.admit(a, 1), Err(older));
        assert_eq!(ledger.admit(a, 3), Ok(true));
        assert!(ledger.is_late(3) && ledger.is_late(4) && !ledger.is_late(5));
        assert!(ledger.replaces(&a));
    }

    #[test]
    fn what_is_revoked_never_comes_back_and_what_is_later_does() {
        let (a, b) = (material(1), material(2));
        let mut ledger = Ledger::default();
        ledger.took(1, [(a, 2), (b, 1)]);
        assert!(ledger.bar(a, 3));
        assert!(!ledger.is_revoked(&a), "it is held until the filesystem has let go of it");
        ledger.let_go(2, &BTreeSet::from([a]));
        assert!(ledger.is_revoked(&a) && !ledger.is_revoked(&b));
        assert_eq!(ledger.held(), &BTreeMap::from([(b, 1)]));
        for offered in [1, 2, 3] {
            let revoked = Barred::Revoked { material: a, offered, up_to: 3 };
            assert_eq!(ledger.admit(a, offered), Err(revoked));
        }
        assert_eq!(ledger.admit(a, 4), Ok(true));
        assert!(ledger.replaces(&a), "who knew it before hears of the new one");
        ledger.took(3, [(a, 4)]);
        assert!(!ledger.is_revoked(&a));
        assert!(!ledger.bar(a, 1) && !ledger.bar(a, 3), "a later version stays");
        assert!(matches!(ledger.admit(a, 3), Err(Barred::Revoked { up_to: 3, .. })));
    }

    #[test]
    fn what_was_never_held_can_be_revoked() {
        let a = material(1);
        let mut ledger = Ledger::default();
        assert!(!ledger.bar(a, 1));
        ledger.let_go(7, &BTreeSet::new());
        assert!(ledger.is_revoked(&a));
        assert_eq!(ledger.sequence(), 7);
        ledger.let_go(3, &BTreeSet::new());
        assert_eq!(ledger.sequence(), 7, "an order that comes late does not turn it back");
        assert_eq!(ledger.admit(a, 1), Err(Barred::Revoked { material: a, offered: 1, up_to: 1 }));
    }
}
