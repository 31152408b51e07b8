//! Digests of the state: every manager makes one at the same entries and compares it with the
//! leader's. Two that applied the same log and hold different states must not both go on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use minicbor::{Decode, Encode};
use skep_core::snapshot::digest;
use skep_core::state::State;

use crate::FatalHook;
use crate::limits::{DIGEST_ENTRIES, DIGESTS};

/// What the state was at an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct StateDigest {
    /// The last entry applied.
    #[n(0)]
    pub(crate) index: u64,
    /// Of the state's records.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub(crate) sha256: [u8; 32],
}

/// The latest digests by index, made here and heard from leaders.
#[derive(Debug, Default)]
struct Known {
    own: BTreeMap<u64, [u8; 32]>,
    heard: BTreeMap<u64, [u8; 32]>,
}

/// Compares digests.
#[derive(Debug)]
pub(crate) struct Digests {
    known: Mutex<Known>,
    /// Whether one is being made.
    is_busy: AtomicBool,
    on_fatal: FatalHook,
}

/// Whether the state is digested once this entry is applied.
pub(crate) fn is_due(index: u64) -> bool {
    index > 0 && index.is_multiple_of(DIGEST_ENTRIES)
}

impl Digests {
    pub(crate) fn new(on_fatal: FatalHook) -> Self {
        Self { known: Mutex::default(), is_busy: AtomicBool::new(false), on_fatal }
    }

    /// Digests the state after entry `index` where that holds up nobody. One at a time: a state
    /// that changes faster than it can be digested is compared less often.
    pub(crate) fn make(self: &Arc<Self>, index: u64, view: State) {
        if self.is_busy.swap(true, Ordering::AcqRel) {
            tracing::debug!(index, "the state is not digested: the digest before is being made");
            return;
        }
        let digests = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let own = StateDigest { index, sha256: digest(&view) };
            drop(view);
            digests.is_busy.store(false, Ordering::Release);
            digests.note(own, |known| (&mut known.own, &known.heard));
        });
    }

    /// Takes the digest that a leader made.
    pub(crate) fn hear(&self, heard: StateDigest) {
        self.note(heard, |known| (&mut known.heard, &known.own));
    }

    /// The last digest made here.
    pub(crate) fn latest(&self) -> Option<StateDigest> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, sha256) = known.own.last_key_value()?;
        Some(StateDigest { index: *index, sha256: *sha256 })
    }

    /// The digest made here at this entry, while it is remembered.
    #[cfg(test)]
    pub(crate) fn made(&self, index: u64) -> Option<[u8; 32]> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).own.get(&index).copied()
    }

    fn note(&self, new: StateDigest, sides: impl FnOnce(&mut Known) -> Sides<'_>) {
        let differs = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let (to, other) = sides(&mut known);
            let is_news = to.insert(new.index, new.sha256) != Some(new.sha256);
            while to.len() > DIGESTS {
                to.pop_first();
            }
            is_news && other.get(&new.index).is_some_and(|other| *other != new.sha256)
        };
        if differs {
            self.on_fatal.call(&format!(
                "the state after log entry {} differs from the leader's: one of the two is wrong. \
                 This manager stops; if it stops so again, demote it and let it join anew",
                new.index
            ));
        }
    }
}

/// The digests that one more belongs to, and those that it is compared with.
type Sides<'a> = (&'a mut BTreeMap<u64, [u8; 32]>, &'a BTreeMap<u64, [u8; 32]>);
