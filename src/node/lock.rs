//! Autolock on this node: a manager whose keys are locked at rest waits for the unlock key, and a
//! manager that runs follows what the swarm says of it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use skep_core::apply::Change;
use skep_core::id::NodeId;
use skep_raft::{Event, Raft};
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Node, Parts, StartError, disk};
use crate::agent::Agent;
use crate::chain::chain;
use crate::gate::{Done, Refusal};
use crate::hidden::Hidden;
use crate::identity::lock::UnlockKey;
use crate::identity::store::{NodeFile, StoreError};
use crate::manager::{Manager, failed, stopped};

/// Pause before a change of the lock that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A node that waits for its unlock key: its tasks go on, nothing of the swarm runs.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) file: NodeFile,
    pub(super) parts: Parts,
}

impl Node {
    /// Looks after the tasks that run here until somebody brings the unlock key.
    pub(super) fn park(&self, file: NodeFile) -> Result<(), StartError> {
        let parts = self.parts(&file)?;
        tracing::warn!("this manager is locked: 'skep swarm unlock' with the unlock key opens it");
        *self.parked() = Some(Parked { file, parts });
        Ok(())
    }

    pub(super) fn parked(&self) -> std::sync::MutexGuard<'_, Option<Parked>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it waits for its unlock key.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.parked().is_some()
    }

    /// The agent of a node that waits for its unlock key: its tasks go on.
    #[must_use]
    pub fn locked_agent(&self) -> Option<Arc<Agent>> {
        self.parked().as_ref().map(|parked| Arc::clone(&parked.parts.agent))
    }

    /// Opens the node's keys, and takes up its part in the swarm.
    ///
    /// # Errors
    /// If it is not locked, or the key is another's.
    pub async fn unlock(self: &Arc<Self>, key: &Hidden) -> Result<Done, Refusal> {
        let _membership = self.membership.lock().await;
        let Some(parked) = self.parked().take() else { return Err(Refusal::NotLocked) };
        match self.open_keys(&parked.file, key) {
            Ok(()) => {}
            Err(refusal) => {
                *self.parked() = Some(parked);
                return Err(refusal);
            }
        }
        let start = |e: StartError| failed("cannot take up the node's part", e);
        self.resume_with(parked.file, parked.parts).await.map_err(start)?;
        Ok(Done::Nothing)
    }

    fn open_keys(&self, file: &NodeFile, key: &Hidden) -> Result<(), Refusal> {
        let key = UnlockKey::parse(key.reveal()).map_err(|_| Refusal::WrongUnlockKey)?;
        let node: NodeId = file.node.parse().map_err(|_| Refusal::NotInSwarm)?;
        match self.store.unlock(key, node) {
            Ok(()) => Ok(()),
            Err(StoreError::WrongKey { .. }) => Err(Refusal::WrongUnlockKey),
            Err(error) => Err(disk(error)),
        }
    }

    /// Ends a change of the storage key that a crash cut short, before the log is opened.
    pub(super) async fn finish_rekey(&self, file: &NodeFile) -> Result<(), StartError> {
        let keys = self.store.load_storage_keys()?;
        let Some(next) = keys.next else { return Ok(()) };
        let mut config = self.raft_config(file)?;
        config.storage_key = next;
        Raft::rekey_offline(&config, keys.current).await.map_err(StartError::Rekey)?;
        self.store.finish_rekey()?;
        Ok(())
    }

    /// Locks this manager's keys as the swarm says, until it stops.
    pub(super) async fn keep_lock(
        self: Arc<Self>,
        manager: Arc<Manager>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut changes = manager.raft.subscribe();
        loop {
            let is_member = manager.raft.view(|state| state.node(&manager.node).is_some());
            if is_member && let Err(refusal) = self.follow_lock(&manager).await {
                tracing::warn!(error = chain(&refusal), "the lock of this manager's keys waits");
                tokio::select! {
                    () = stopped(&mut stop) => return,
                    () = sleep(RETRY) => continue,
                }
            }
            loop {
                let event = tokio::select! {
                    () = stopped(&mut stop) => return,
                    event = changes.next() => event,
                };
                match event {
                    None => return,
                    Some(Event::Applied(applied)) => {
                        if applied.changes.contains(&Change::Cluster) {
                            break;
                        }
                    }
                    Some(Event::Rescan) => break,
                }
            }
        }
    }

    async fn follow_lock(&self, manager: &Manager) -> Result<(), Refusal> {
        let Some(key) = manager.unlock_key()? else {
            return self.store.unlock_for_good().map_err(disk);
        };
        // The store's files are small, but they are synced to the disk.
        let is_new = self.store.lock_with(key, manager.node).map_err(disk)?;
        if !is_new {
            return Ok(());
        }
        tracing::info!("this manager's keys are locked with the swarm's unlock key");
        let keys = self.store.begin_rekey().map_err(disk)?;
        let Some(next) = keys.next else { return Ok(()) };
        manager.raft.rekey(next).await.map_err(|e| failed("cannot seal the log anew", e))?;
        self.store.finish_rekey().map_err(disk)?;
        Ok(())
    }
}
