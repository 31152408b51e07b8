//! The manager half of a node: it seals, proposes, decides and dispatches.

pub mod door;
pub mod images;
pub mod init;
pub mod leader;
pub mod reach;
pub mod session;

use std::sync::{Arc, Mutex, PoisonError};

use skep_core::command::{Command, Outcome, Rejection};
use skep_core::id::{ClusterId, ENTROPY_LEN, Id, NodeId, RequestId};
use skep_raft::{ProposeError, Raft};
use tokio::sync::watch;

use crate::gate::Refusal;
use crate::seal::{RingSecret, SealError, SealKeyPair, random};

/// The manager of this node.
#[derive(Debug)]
pub struct Manager {
    /// Log and state.
    pub raft: Raft,
    /// Its swarm.
    pub cluster: ClusterId,
    /// Its node.
    pub node: NodeId,
    seal: SealKeyPair,
    ring: Mutex<Vec<Arc<RingSecret>>>,
    log_dir: String,
}

/// A new id.
///
/// # Errors
/// If the kernel gives no randomness.
pub fn mint<K>() -> Result<Id<K>, SealError> {
    Ok(Id::from_entropy(random::<ENTROPY_LEN>()?))
}

/// Waits until the node stops.
async fn stopped(stop: &mut watch::Receiver<bool>) {
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
        seal: SealKeyPair,
        log_dir: String,
    ) -> Self {
        Self { raft, cluster, node, seal, ring: Mutex::default(), log_dir }
    }

    /// Proposes a command under a request id of its own and returns the object's write counter.
    ///
    /// # Errors
    /// The rejection, or why there is no answer.
    pub async fn propose(&self, command: Command) -> Result<u64, Refusal> {
        let request: RequestId = mint().map_err(|e| failed("cannot make a request id", e))?;
        match self.raft.propose(request, command).await {
            Ok(Outcome::Done(version)) => Ok(version),
            Ok(Outcome::Rejected(rejection)) => Err(rejection.into()),
            Err(ProposeError::NotLeader { .. }) => Err(Refusal::NoLeader),
            Err(ProposeError::NoSpace) => Err(Refusal::NoSpace(self.log_dir.clone())),
            Err(ProposeError::Unknown) => Err(Refusal::Unknown(request.to_string())),
            Err(e) => Err(failed("the swarm's log does not take the write", e)),
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
