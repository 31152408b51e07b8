//! Who uses which version of a secret or config, from whom it is revoked, and how far the record of
//! who read it has come.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use super::{PayloadKey, State, remove_from, subtract_from};
use crate::id::{MaterialId, NodeId, ServiceId, TaskId};
use crate::limits;
use crate::model::material::{Grant, Material, Revocation};
use crate::model::service::Service;
use crate::model::task::Task;
use crate::time::Stamp;

/// How far a task's audit had come when managers last agreed on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Anchored {
    /// Number of its last record then.
    #[n(0)]
    pub sequence: u64,
    /// SHA-256 that the record after it is chained to.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub hash: [u8; 32],
    /// When that was.
    #[n(2)]
    pub at: Stamp,
    /// The node that sent it: another one's word of this task counts for nothing.
    #[n(3)]
    pub node: NodeId,
    /// Whether it was known then, or at an earlier anchor, that the task is that node's. A node may
    /// name tasks that never were: these are forgotten first.
    #[n(4)]
    pub is_known: bool,
}

/// Whether something is counted in or out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    In,
    Out,
}

impl State {
    /// Whether a service, by its spec or the one before it, or a task that has not ended is pinned
    /// to this version, or the version is what those get that follow.
    #[must_use]
    pub fn is_version_in_use(&self, material: &Material, number: u64) -> bool {
        self.index.pins.contains_key(&(material.id, number))
            || material.latest().is_some_and(|latest| latest.number == number)
    }

    /// Numbers of the versions beyond the latest `keep` that nobody uses, the oldest first: what is
    /// dropped when so many are kept. The latest is always kept.
    #[must_use]
    pub fn surplus(&self, material: &Material, keep: usize) -> Vec<u64> {
        let old = material.versions.len().saturating_sub(keep.max(1));
        let numbers = material.versions.iter().take(old).map(|version| version.number);
        numbers.filter(|number| !self.is_version_in_use(material, *number)).collect()
    }

    /// Services whose tasks may hold this secret or config: those that are granted it, and those
    /// that were and have tasks of that time which have not ended. Some may be gone but for these
    /// tasks.
    pub fn services_holding(&self, id: &MaterialId) -> impl Iterator<Item = ServiceId> {
        let users = self.index.users.get(id).into_iter().flatten();
        let mut all: alloc::collections::BTreeSet<ServiceId> = users.copied().collect();
        all.extend(self.index.holders.get(id).into_iter().flat_map(BTreeMap::keys));
        all.into_iter()
    }

    /// Payloads that another key than the current one of the ring seals.
    pub fn payloads_to_reseal(&self) -> impl Iterator<Item = PayloadKey> {
        let current = self.cluster.as_ref().map_or(0, |cluster| cluster.ring.current);
        let old = self.payloads.iter().filter(move |(_, sealed)| sealed.key != current);
        old.map(|(key, _)| *key)
    }

    /// How many payloads the key of this version seals.
    #[must_use]
    pub fn payloads_of_key(&self, version: u64) -> u64 {
        self.index.payloads_of_key.get(&version).copied().unwrap_or_default()
    }

    /// How many payloads keys of the ring seal that are older than this one.
    #[must_use]
    pub fn payloads_before_key(&self, version: u64) -> u64 {
        self.index.payloads_of_key.range(..version).map(|(_, count)| count).sum()
    }

    /// How many payloads there are.
    #[must_use]
    pub fn payload_count(&self) -> u64 {
        self.payloads.len() as u64
    }

    /// The oldest key that is in the ring; none before there is one.
    #[must_use]
    pub fn oldest_key(&self) -> Option<u64> {
        self.cluster.as_ref()?.ring.keys.iter().map(|key| key.version).min()
    }

    /// How far the audit of a task had come when managers last agreed on it; none if they never
    /// did, or have forgotten.
    #[must_use]
    pub fn anchor(&self, task: &TaskId) -> Option<&Anchored> {
        self.anchors.get(task)
    }

    /// Tasks of which managers have agreed how far their audits had come.
    pub fn anchors(&self) -> impl Iterator<Item = (&TaskId, &Anchored)> {
        self.anchors.iter()
    }

    /// Sets how far a task's audit has come, and forgets some beyond the limit: first those of tasks
    /// that were never known to be their node's, the oldest first of each kind.
    pub(crate) fn put_anchor(&mut self, task: TaskId, anchor: Anchored) {
        let age = |anchor: &Anchored| (anchor.is_known, anchor.at, task);
        if let Some(old) = self.anchors.insert(task, anchor) {
            self.index.anchors_by_age.remove(&age(&old));
        }
        self.index.anchors_by_age.insert(age(&anchor));
        while self.anchors.len() > limits::AUDIT_ANCHORS {
            let Some((_, _, first)) = self.index.anchors_by_age.pop_first() else { return };
            self.anchors.remove(&first);
        }
    }

    pub(super) fn count_pins_of_service(&mut self, service: &Service, count: Count) {
        for spec in core::iter::once(&service.spec).chain(&service.previous) {
            for grant in spec.task.container.grants() {
                self.count_pin(grant, count);
            }
        }
    }

    /// Counts what a task is granted. One that has ended holds nothing.
    pub(super) fn count_grants(&mut self, task: &Task, count: Count) {
        if task.status.state.is_terminal() {
            return;
        }
        for grant in task.spec.container.grants() {
            self.count_pin(grant, count);
            let services = self.index.holders.entry(grant.id).or_default();
            match count {
                Count::In => *services.entry(task.service).or_default() += 1,
                Count::Out => subtract_from(services, &task.service, 1),
            }
            if services.is_empty() {
                self.index.holders.remove(&grant.id);
            }
        }
    }

    fn count_pin(&mut self, grant: &Grant, count: Count) {
        let Some(number) = grant.pin else { return };
        let key = (grant.id, number);
        match count {
            Count::In => *self.index.pins.entry(key).or_default() += 1,
            Count::Out => subtract_from(&mut self.index.pins, &key, 1),
        }
    }

    /// Takes services out of the index that `old` was revoked from and that are not in `still`.
    pub(super) fn unlist_revoked(&mut self, old: &Material, still: &[Revocation]) {
        for entry in &old.revoked {
            if still.iter().all(|other| other.service != entry.service) {
                remove_from(&mut self.index.revoked, &entry.service, &old.id);
            }
        }
    }
}
