//! Autolock on this node: a manager whose keys are locked at rest waits for the unlock key, and a
//! manager that runs follows what the swarm says of it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use skep_core::apply::Change;
use skep_core::id::NodeId;
use skep_raft::{Config, Event, Raft};
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Node, Parts, StartError, disk};
use crate::agent::Agent;
use crate::chain::chain;
use crate::gate::{Done, Refusal};
use crate::hidden::Hidden;
use crate::identity::lock::UnlockKey;
use crate::identity::store::{IdentityStore, NodeFile, StoreError};
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

    /// Ends a change of the storage key that a crash cut short, before the log is opened: what the
    /// log holds is still sealed with a key that was clear once, or under another unlock key.
    pub(super) async fn finish_rekey(&self, file: &NodeFile) -> Result<(), StartError> {
        end_rekey(&self.store, self.raft_config(file)?).await
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
        // One that failed before: a lock that is new needs another storage key than that.
        self.rekey(manager).await?;
        // The store's files are small, but they are synced to the disk.
        if self.store.lock_with(key, manager.node).map_err(disk)? {
            tracing::info!("this manager's keys are locked with the swarm's unlock key");
        }
        self.rekey(manager).await
    }

    /// Goes over to the next storage key, if there is one.
    async fn rekey(&self, manager: &Manager) -> Result<(), Refusal> {
        let Some(next) = self.store.load_storage_keys().map_err(disk)?.next else { return Ok(()) };
        manager.raft.rekey(next).await.map_err(|e| failed("cannot seal the log anew", e))?;
        self.store.finish_rekey().map_err(disk)?;
        Ok(())
    }
}

async fn end_rekey(store: &IdentityStore, mut config: Config) -> Result<(), StartError> {
    let keys = store.load_storage_keys()?;
    let Some(next) = keys.next else { return Ok(()) };
    config.storage_key = next;
    Raft::rekey_offline(&config, keys.current).await.map_err(StartError::Rekey)?;
    store.finish_rekey()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use skep_core::id::ENTROPY_LEN;
    use skep_raft::{FatalHook, StorageKey};

    use super::*;
    use crate::clock::now;
    use crate::identity::ca::NodeKey;
    use crate::seal::SealKeyPair;

    fn config(store: &IdentityStore, storage_key: StorageKey) -> Config {
        let on_fatal = FatalHook::new(|why| panic!("{why}"));
        let (dir, format) = (store.raft_dir(), skep_core::format::FORMAT);
        Config { dir, storage_key, raft_id: 7, addr: String::new(), format, on_fatal }
    }

    /// The daemon dies when its keys are locked and nothing else is done yet: the storage key that
    /// was clear on the disk must not go on sealing the log.
    #[tokio::test]
    async fn a_crash_behind_a_new_lock_does_not_leave_the_log_under_the_old_key() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(dir.path());
        let (key, seal) = (NodeKey::generate().unwrap(), SealKeyPair::generate().unwrap());
        store.save_keys(&key, &seal).unwrap();
        let first = config(&store, store.make_storage_key().unwrap());
        let raft = Raft::start(first, Arc::new(now)).await.unwrap();
        raft.initialize().await.unwrap();
        raft.shutdown().await;
        drop(raft);
        let stolen = store.load_storage_key().unwrap();
        let unlock_key = UnlockKey::generate().unwrap();
        let text = unlock_key.to_text();
        let node = NodeId::from_entropy([7; ENTROPY_LEN]);
        assert!(store.lock_with(unlock_key, node).unwrap());

        // Twice: the second daemon finds nothing left to do.
        for _ in 0..2 {
            let store = IdentityStore::new(dir.path());
            store.unlock(UnlockKey::parse(&text).unwrap(), node).unwrap();
            let current = store.load_storage_key().unwrap();
            end_rekey(&store, config(&store, current)).await.unwrap();
            assert!(store.load_storage_keys().unwrap().next.is_none());
            let current = config(&store, store.load_storage_key().unwrap());
            let raft = Raft::start(current, Arc::new(now)).await.unwrap();
            assert!(raft.is_initialized().await.unwrap(), "the log is lost");
            raft.shutdown().await;
        }
        let opened = Raft::start(config(&store, stolen), Arc::new(now)).await;
        assert!(opened.is_err(), "the key that was clear still opens the log");
    }
}
