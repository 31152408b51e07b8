//! The manager half of a node: it seals, proposes, decides and dispatches.

mod admit;
pub mod audit;
pub mod dispatch;
pub mod door;
mod forward;
mod holders;
mod holdings;
pub mod images;
pub mod init;
pub mod leader;
pub mod members;
mod nodes;
pub mod peers;
pub mod pump;
pub mod reach;
pub mod reception;
pub mod reseal;
mod roots;
pub mod session;
#[cfg(test)]
mod testing;
mod versions;

use std::sync::{Arc, Mutex, PoisonError};

use skep_core::command::Rejection;
use skep_core::id::{ClusterId, ENTROPY_LEN, Id, NodeId};
use skep_raft::Raft;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::gate::Refusal;
use crate::limits::{OUT_OF_TOUCH, OUT_OF_TOUCH_SPREAD};
use crate::seal::{RingSecret, SealError, SealKeyPair, random};
use peers::Peers;
use reception::Sessions;

/// The manager of this node.
#[derive(Debug)]
pub struct Manager {
    /// Log and state.
    pub raft: Raft,
    /// Its swarm.
    pub cluster: ClusterId,
    /// Its node.
    pub node: NodeId,
    /// The other managers.
    pub peers: Arc<Peers>,
    /// Agents whose sessions are here.
    pub sessions: Sessions,
    seal: SealKeyPair,
    ring: Mutex<Vec<Arc<RingSecret>>>,
    log_dir: String,
    audits: audit::Audits,
    contact: Contact,
    dispatch: dispatch::Dispatch,
    holdings: holdings::Registry,
    confirmed: forward::Confirmed,
}

/// When this manager was last in touch with a leader, or as leader with a quorum.
#[derive(Debug)]
struct Contact(watch::Sender<Instant>);

/// A new id.
///
/// # Errors
/// If the kernel gives no randomness.
pub fn mint<K>() -> Result<Id<K>, SealError> {
    Ok(Id::from_entropy(random::<ENTROPY_LEN>()?))
}

/// Waits until the node stops.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

pub(crate) fn failed(
    what: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Refusal {
    Refusal::Failed { what: what.to_owned(), source: source.into() }
}

impl Manager {
    /// A manager over a started log.
    #[must_use]
    pub fn new(
        raft: Raft,
        cluster: ClusterId,
        node: NodeId,
        peers: Arc<Peers>,
        seal: SealKeyPair,
        log_dir: String,
        audits: audit::Audits,
    ) -> Self {
        Self {
            raft,
            cluster,
            node,
            peers,
            sessions: Sessions::default(),
            seal,
            ring: Mutex::default(),
            log_dir,
            audits,
            dispatch: dispatch::Dispatch::default(),
            holdings: holdings::Registry::default(),
            contact: Contact(watch::Sender::new(Instant::now())),
            confirmed: forward::Confirmed::default(),
        }
    }

    /// A leader, or a quorum, answered.
    fn touched(&self) {
        self.contact.0.send_replace(Instant::now());
    }

    /// Ends once this manager has been out of touch for so long that its agents do better with
    /// another. Those that wait do not all go at once.
    pub(crate) async fn out_of_touch(&self) {
        let mut contact = self.contact.0.subscribe();
        let spread = random::<1>().map_or(0, |[byte]| u32::from(byte));
        let bound = OUT_OF_TOUCH + OUT_OF_TOUCH_SPREAD * spread / 256;
        loop {
            let until = *contact.borrow_and_update() + bound;
            match timeout_at(until, contact.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// The ring key of this version.
    ///
    /// # Errors
    /// If the ring has no such key, or this manager's slot does not open.
    pub fn ring_key(&self, version: u64) -> Result<Arc<RingSecret>, SealError> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = ring.iter().find(|key| key.version == version) {
            return Ok(Arc::clone(key));
        }
        let slot = self.raft.view(|state| {
            let keys = state.cluster().map(|c| c.ring.keys.as_slice()).unwrap_or_default();
            let key = keys.iter().find(|key| key.version == version)?;
            key.slots.get(&self.node).map(|slot| slot.sealed.clone())
        });
        let slot = slot.ok_or(SealError::Forged)?;
        let key = RingSecret::open_slot(&slot, self.cluster, self.node, version, &self.seal)?;
        let key = Arc::new(key);
        ring.push(Arc::clone(&key));
        Ok(key)
    }

    /// Forgets the keys that are in the ring no more.
    fn forget_old_keys(&self) {
        let oldest = self.raft.view(skep_core::state::State::oldest_key);
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.retain(|key| oldest.is_some_and(|oldest| key.version >= oldest));
    }

    /// The ring key that seals now.
    ///
    /// # Errors
    /// As [`Manager::ring_key`].
    pub fn current_key(&self) -> Result<Arc<RingSecret>, Refusal> {
        let current = self.raft.view(|state| state.cluster().map(|c| c.ring.current));
        let current = current.ok_or(Refusal::Rejected(Rejection::NoCluster))?;
        self.ring_key(current).map_err(|e| failed("cannot open the swarm's secret key", e))
    }
}
