//! The ring of secret keys: how it turns, and which keys it keeps.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Applied, Writer};
use crate::command::{Rejection, TrustSecrets};
use crate::id::NodeId;
use crate::limits;
use crate::model::cluster::{Cluster, RingKey};
use crate::sealed::Sealed;

impl Writer<'_> {
    pub(super) fn ring_turn(&mut self, key: &RingKey, secrets: &TrustSecrets) -> Applied {
        self.check_ring_room()?;
        let managers: BTreeSet<NodeId> = self.state.managers().map(|(node, _)| node.id).collect();
        let cluster = self.with_turned_ring(key, secrets, &managers)?;
        Ok(self.write_cluster(cluster))
    }

    pub(super) fn check_ring_room(&self) -> Result<(), Rejection> {
        if self.cluster()?.ring.keys.len() >= limits::RING_KEYS {
            return Err(Rejection::Full(format!(
                "the ring has {} keys, which is all it may; old ones go once the swarm's leader \
                 has sealed with the current one what they seal: try again then",
                limits::RING_KEYS
            )));
        }
        Ok(())
    }

    /// The swarm with its next key current, and nothing left in the ring for anybody but
    /// `managers`.
    pub(super) fn with_turned_ring(
        &self,
        key: &RingKey,
        secrets: &TrustSecrets,
        managers: &BTreeSet<NodeId>,
    ) -> Result<Cluster, Rejection> {
        let mut cluster = Cluster::clone(self.cluster()?);
        let current = cluster.ring.current;
        if key.version != current + 1 || secrets.cluster_version != cluster.meta.version {
            return Err(Rejection::StaleKey { current });
        }
        if !key.slots.keys().eq(managers) {
            return Err(Rejection::Invalid(format!(
                "the ring's next key has {} slots and is for {} managers: it needs one for each \
                 of them, and no other",
                key.slots.len(),
                managers.len()
            )));
        }
        if key.slots.values().any(|slot| slot.sealed.len() > limits::SLOT_BYTES) {
            return Err(Rejection::Invalid(format!(
                "a ring key sealed to a manager has at most {} bytes",
                limits::SLOT_BYTES
            )));
        }
        replace_secrets(&mut cluster, secrets, key.version)?;
        let ring = &mut cluster.ring;
        for old in &mut ring.keys {
            old.slots.retain(|node, _| managers.contains(node));
        }
        ring.keys.push(RingKey { created: self.now, ..key.clone() });
        ring.current = key.version;
        Ok(cluster)
    }

    /// Drops the keys that nothing needs any more, if there are such.
    pub(super) fn retire_keys(&mut self) {
        let Some(cluster) = &self.state.cluster else { return };
        if cluster.ring.keys.iter().any(|key| !self.is_needed(cluster, key.version)) {
            let cluster = Cluster::clone(cluster);
            self.write_cluster(cluster);
        }
    }

    pub(super) fn retire_keys_of(&mut self, cluster: &mut Cluster) {
        let needed = |key: &RingKey| self.is_needed(cluster, key.version);
        let keys: Vec<RingKey> =
            cluster.ring.keys.iter().filter(|key| needed(key)).cloned().collect();
        if keys.len() < cluster.ring.keys.len() {
            // Older entries and snapshots still hold the key, and what it opens.
            self.arm_purge();
        }
        cluster.ring.keys = keys;
    }

    fn is_needed(&self, cluster: &Cluster, key: u64) -> bool {
        key == cluster.ring.current
            || self.state.index.payloads_of_key.contains_key(&key)
            || cluster.trust.sealed().any(|sealed| sealed.key == key)
    }
}

/// Puts what the next key seals in the place of the same things under older keys.
fn replace_secrets(
    cluster: &mut Cluster,
    secrets: &TrustSecrets,
    key: u64,
) -> Result<(), Rejection> {
    let TrustSecrets { root_key, worker_secret, manager_secret, unlock_key, next_root_key, .. } =
        secrets;
    if secrets.former.len() > 2 {
        return Err(Rejection::Invalid(String::from(
            "of the join secrets before, one of each role is kept and no more",
        )));
    }
    let all = [root_key, worker_secret, manager_secret];
    for sealed in all.into_iter().chain(unlock_key).chain(next_root_key) {
        check_sealed(sealed)?;
        if sealed.key != key {
            return Err(Rejection::Invalid(format!(
                "the ring turns to key {key}, but one of the swarm's secrets is sealed with key {}",
                sealed.key
            )));
        }
    }
    let trust = &mut cluster.trust;
    if trust.unlock_key.is_some() != unlock_key.is_some()
        || trust.next.is_some() != next_root_key.is_some()
    {
        return Err(Rejection::Invalid(String::from(
            "turning the ring needs every secret of the swarm sealed anew, and no other: the \
             unlock key while autolock is on, the next root's key while the root changes",
        )));
    }
    trust.root_key = Some(root_key.clone());
    trust.worker_secret = Some(worker_secret.clone());
    trust.manager_secret = Some(manager_secret.clone());
    trust.retire(&secrets.former);
    trust.unlock_key.clone_from(unlock_key);
    if let (Some(next), Some(key)) = (&mut trust.next, next_root_key) {
        next.key = key.clone();
    }
    Ok(())
}

/// Refuses what is too large to be a key or a join secret.
pub(super) fn check_sealed(sealed: &Sealed) -> Result<(), Rejection> {
    if sealed.bytes.len() > limits::TRUST_SECRET_BYTES {
        return Err(Rejection::Invalid(format!(
            "a sealed key or join secret has at most {} bytes, this one {}",
            limits::TRUST_SECRET_BYTES,
            sealed.bytes.len()
        )));
    }
    Ok(())
}
