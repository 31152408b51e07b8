//! Where requests become commands: ids are minted, payloads sealed. Behind this door no
//! plaintext exists on a manager.

use skep_core::command::{Command, Rejection};
use skep_core::id::{ClusterId, MaterialId, ServiceId};
use skep_core::limits;
use skep_core::model::cluster::ClusterSpec;
use skep_core::model::material::{Author, MaterialKind, MaterialSpec};
use skep_core::model::node::Role;
use skep_core::sealed::Sealed;
use subtle::ConstantTimeEq;

use super::init::UNLOCK_KEY;
use super::{Manager, failed, mint};
use crate::gate::{Done, JoinTokens, Refusal, Request};
use crate::identity::lock::UnlockKey;
use crate::protected::Protected;
use crate::seal::{PayloadName, RingSecret, SealError};

/// How often a payload is sealed anew because the ring turned meanwhile.
pub(super) const RESEALS: usize = 3;

pub(super) fn sealing(error: SealError) -> Refusal {
    failed("cannot seal a payload", error)
}

impl Manager {
    /// Carries out a request on the swarm's state.
    ///
    /// # Errors
    /// Why it was not done.
    pub async fn submit(&self, request: Request) -> Result<Done, Refusal> {
        match request {
            Request::MaterialCreate { kind, spec, payload, uid } => {
                self.create_material(kind, spec, payload, uid).await
            }
            Request::MaterialAppend { items, keep, uid } => {
                self.append_versions(items, keep, uid).await
            }
            Request::MaterialUpdate { id, version, spec, payload } => {
                self.check_same(id, payload).await?;
                self.change(Command::MaterialUpdate { id, version, spec }).await
            }
            Request::MaterialRevoke { id, service, task, uid } => {
                let by = Author { node: self.node, uid };
                self.change(Command::MaterialRevoke { id, service, task, by }).await
            }
            Request::MaterialPrune { kind, ids, keep } => {
                self.prune_versions(kind, ids, keep).await
            }
            Request::MaterialRemove { id } => self.change(Command::MaterialRemove { id }).await,
            Request::ServiceCreate { spec } => {
                let id: ServiceId = mint().map_err(sealing)?;
                self.propose(Command::ServiceCreate { id, spec: *spec }).await?;
                Ok(Done::Service(id))
            }
            Request::ServiceUpdate { id, version, spec } => {
                self.change(Command::ServiceUpdate { id, version, spec: *spec }).await
            }
            Request::ServiceRollback { id, version } => {
                self.change(Command::ServiceRollback { id, version }).await
            }
            Request::ServiceRemove { id } => self.change(Command::ServiceRemove { id }).await,
            Request::RingTurn { force } => self.turn_ring(force).await,
            Request::NodeUpdate { id, version, spec } => self.update_node(id, version, spec).await,
            Request::NodeRemove { id, force } => {
                self.change(Command::NodeRemove { id, force }).await
            }
            Request::SwarmUpdate { version, rotate_ca: true, .. } => {
                self.change_root(version).await
            }
            Request::SwarmUpdate {
                version,
                spec,
                rotate_worker,
                rotate_manager,
                rotate_unlock,
                ..
            } => {
                let rotate = Rotate {
                    worker: rotate_worker,
                    manager: rotate_manager,
                    unlock: rotate_unlock,
                };
                self.update_swarm(version, spec, rotate).await
            }
            Request::SwarmUnlock { .. } => Err(Refusal::NotLocked),
            Request::SwarmInit(_) | Request::SwarmJoin(_) => Err(Refusal::AlreadyInSwarm),
            Request::SwarmLeave { .. } => Err(Refusal::LastManager),
        }
    }

    async fn change(&self, command: Command) -> Result<Done, Refusal> {
        self.propose(command).await?;
        Ok(Done::Nothing)
    }

    async fn create_material(
        &self,
        kind: MaterialKind,
        spec: MaterialSpec,
        payload: Protected,
        uid: u32,
    ) -> Result<Done, Refusal> {
        if !kind.admits(payload.len()) {
            return Err(Rejection::Invalid(size_rule(kind)).into());
        }
        let id: MaterialId = mint().map_err(sealing)?;
        let name = PayloadName { cluster: self.cluster, kind, id, version: 1 };
        let size = payload.len() as u64;
        let mut key = self.current_key()?;
        let mut sealed = key.seal(&name, payload).map_err(sealing)?;
        for _ in 0..RESEALS {
            let command = Command::MaterialCreate {
                id,
                kind,
                spec: spec.clone(),
                size,
                payload: sealed.clone(),
                by: Author { node: self.node, uid },
            };
            match self.propose(command).await {
                Err(Refusal::Rejected(Rejection::StaleKey { current })) => {
                    // The ring turned: this manager may not have heard of it yet.
                    self.confirm().await?;
                    let next = self.ring_key(current).map_err(sealing)?;
                    sealed = reseal(&key, &next, &name, &sealed)?;
                    key = next;
                }
                Ok(_) => return Ok(Done::Material(id)),
                Err(refusal) => return Err(refusal),
            }
        }
        Err(Refusal::NoLeader)
    }

    /// A client may send a payload again with new labels: it must be the stored one.
    async fn check_same(&self, id: MaterialId, payload: Option<Protected>) -> Result<(), Refusal> {
        let Some(payload) = payload else { return Ok(()) };
        self.confirm().await?;
        let stored = self.open_latest(id)?;
        if bool::from(stored.as_slice().ct_eq(payload.as_slice())) {
            return Ok(());
        }
        Err(Rejection::Invalid("only updates to Labels are allowed".into()).into())
    }

    /// The latest version's plaintext, in protected memory.
    ///
    /// # Errors
    /// If there is none, or it does not open.
    pub fn open_latest(&self, id: MaterialId) -> Result<Protected, Refusal> {
        let found = self.raft.view(|state| {
            let material = state.material(&id)?;
            let version = material.latest()?.number;
            let sealed = state.payload(&id, version)?;
            Some((material.kind, version, sealed.clone()))
        });
        let Some((kind, version, sealed)) = found else {
            let (kind, what) = (skep_core::model::Kind::Secret, id.to_string());
            return Err(Rejection::NotFound { kind, what }.into());
        };
        self.open(kind, id, version, &sealed).map_err(sealing)
    }

    /// Opens one payload into protected memory.
    ///
    /// # Errors
    /// If its key is not to be had, or it does not open.
    pub fn open(
        &self,
        kind: MaterialKind,
        id: MaterialId,
        version: u64,
        sealed: &Sealed,
    ) -> Result<Protected, SealError> {
        let name = PayloadName { cluster: self.cluster, kind, id, version };
        match self.ring_key(sealed.key) {
            Ok(key) => key.open(&name, sealed),
            Err(error) => {
                // It was sealed anew since the caller looked, and its old key is gone.
                let now = self.raft.view(|state| state.payload(&id, version).cloned());
                let now = now.filter(|now| now.key != sealed.key).ok_or(error)?;
                self.ring_key(now.key)?.open(&name, &now)
            }
        }
    }

    /// The join tokens.
    ///
    /// # Errors
    /// If the join secrets do not open.
    pub fn join_tokens(&self) -> Result<JoinTokens, Refusal> {
        let roots = self.raft.view(|state| state.cluster().map(|c| c.trust.roots.clone()));
        let roots = roots.ok_or(Refusal::Rejected(Rejection::NoCluster))?;
        // As in Docker tokens name the old root until its change is over: any manager proves it.
        let root = roots.first().map(String::as_str).unwrap_or_default();
        let token = |role: Role| {
            let secret = self.join_secret(role);
            let secret = secret.map_err(|e| failed("cannot open the join tokens", e))?;
            secret.token(root).map_err(|e| failed("cannot make the join tokens", e))
        };
        Ok(JoinTokens { worker: token(Role::Worker)?, manager: token(Role::Manager)? })
    }

    /// The unlock key, while managers lock their keys at rest.
    ///
    /// # Errors
    /// If it does not open.
    pub fn unlock_key(&self) -> Result<Option<UnlockKey>, Refusal> {
        let sealed = self.raft.view(|state| state.cluster().map(|c| c.trust.unlock_key.clone()));
        let Some(sealed) = sealed.flatten() else { return Ok(None) };
        let opened = self.open_trust(Some(&sealed), UNLOCK_KEY);
        let key = opened.and_then(|plain| UnlockKey::from_protected(&plain));
        key.map(Some).map_err(|e| failed("cannot open the unlock key", e))
    }

    async fn update_swarm(
        &self,
        version: u64,
        spec: ClusterSpec,
        rotate: Rotate,
    ) -> Result<Done, Refusal> {
        if rotate.unlock && !spec.autolock {
            return Err(Refusal::Invalid(
                "the unlock key cannot be rotated because autolock is not turned on".into(),
            ));
        }
        self.confirm().await?;
        let has_key = self.raft.view(|state| {
            state.cluster().is_some_and(|cluster| cluster.trust.unlock_key.is_some())
        });
        let key = self.current_key()?;
        let roles = [(rotate.worker, Role::Worker), (rotate.manager, Role::Manager)];
        let roles: Vec<Role> = roles.iter().filter(|role| role.0).map(|role| role.1).collect();
        let tokens = self.new_tokens(&key, &roles).map_err(sealing)?;
        let needs_key = spec.autolock && (rotate.unlock || !has_key);
        let unlock_key =
            needs_key.then(|| seal_unlock_key(&key, self.cluster)).transpose().map_err(sealing)?;
        self.change(Command::ClusterUpdate { version, spec, tokens, unlock_key }).await
    }
}

/// Which of the swarm's secrets an update makes anew.
#[derive(Debug, Clone, Copy)]
struct Rotate {
    worker: bool,
    manager: bool,
    unlock: bool,
}

/// Makes an unlock key, sealed with the ring.
fn seal_unlock_key(ring: &RingSecret, cluster: ClusterId) -> Result<Sealed, SealError> {
    let mut key = zeroize::Zeroizing::new(*UnlockKey::generate()?.as_bytes());
    ring.seal_purpose(UNLOCK_KEY, cluster.as_str().as_bytes(), &mut *key)
}

fn reseal(
    old: &RingSecret,
    new: &RingSecret,
    name: &PayloadName,
    sealed: &Sealed,
) -> Result<Sealed, Refusal> {
    let plain = old.open(name, sealed).map_err(sealing)?;
    new.seal(name, plain).map_err(sealing)
}

pub(super) fn size_rule(kind: MaterialKind) -> String {
    match kind {
        MaterialKind::Secret => format!(
            "secret data must be larger than 0 and less than {} bytes",
            limits::SECRET_BYTES_END
        ),
        MaterialKind::Config => format!(
            "config data must be larger than 0 and less than {} bytes",
            limits::CONFIG_BYTES + 1
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ca::NodeKey;
    use crate::manager::testing::{manager, manager_and_key, secret};
    use crate::wire::join::JoinAnswer;

    #[tokio::test]
    async fn a_secret_is_sealed_at_the_door_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let manager = manager(dir.path()).await;
        let done = manager.submit(secret("a", b"hunter2")).await.unwrap();
        let Done::Material(id) = done else { panic!("{done:?}") };
        assert_eq!(manager.open_latest(id).unwrap().as_slice(), b"hunter2");
        let version = manager.raft.view(|s| s.material(&id).unwrap().meta.version);
        let update = |payload: &[u8]| Request::MaterialUpdate {
            id,
            version,
            spec: MaterialSpec { name: "a".into(), ..Default::default() },
            payload: Some(Protected::copy_of(payload).unwrap()),
        };
        let error = manager.submit(update(b"other")).await.unwrap_err();
        assert_eq!(error.to_string(), "only updates to Labels are allowed");
        assert_eq!(manager.submit(update(b"hunter2")).await.unwrap(), Done::Nothing);
        let error = manager.submit(secret("a", b"x")).await.unwrap_err();
        assert_eq!(error.to_string(), "secret a already exists");
        let error = manager.submit(secret("b", b"")).await.unwrap_err();
        assert!(error.to_string().contains("larger than 0"), "{error}");
        manager.raft.shutdown().await;
    }

    #[tokio::test]
    async fn a_turn_of_the_ring_seals_everything_anew_and_purges_the_old_key() {
        use crate::gate::KeyStage;
        use crate::manager::reseal;
        use futures_util::StreamExt;

        let dir = tempfile::tempdir().unwrap();
        let manager = std::sync::Arc::new(manager(dir.path()).await);
        let mut ids = Vec::new();
        // More than one batch, and one payload that fills a batch by itself.
        for n in 0..70_u8 {
            let size = if n == 3 { 500_000 } else { 9 };
            let done = manager.submit(secret(&format!("s{n}"), &vec![n; size])).await.unwrap();
            let Done::Material(id) = done else { panic!("{done:?}") };
            ids.push(id);
        }
        let old = manager.current_key().unwrap();
        let sealed_before = manager.raft.view(|s| s.payload(&ids[5], 1).unwrap().clone());
        let turn = |force| manager.submit(Request::RingTurn { force });
        assert_eq!(turn(false).await.unwrap(), Done::Key { version: 2, turned: true });
        // Nobody seals yet: the turn goes on, and only force begins another.
        assert_eq!(turn(false).await.unwrap(), Done::Key { version: 2, turned: false });
        assert_eq!(turn(true).await.unwrap(), Done::Key { version: 3, turned: true });
        assert!(!manager.purge_keys_before(2) && manager.raft.oldest_key().is_none());
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let sealing = tokio::spawn(reseal::run(std::sync::Arc::clone(&manager), stopped));
        let seen: Vec<_> = reseal::watch_key(std::sync::Arc::clone(&manager), 3).collect().await;
        let last = seen.last().unwrap();
        assert_eq!((last.stage, last.done, last.total), (KeyStage::Done, 70, 70));
        assert_eq!(manager.raft.oldest_key(), Some(3));
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(manager.open_latest(*id).unwrap().as_slice()[0], u8::try_from(n).unwrap());
        }
        assert!(manager.ring_key(old.version).is_err(), "the old key is still in memory");
        // Whoever looked before the turn and opens after it.
        let opened = manager.open(MaterialKind::Secret, ids[5], 1, &sealed_before).unwrap();
        assert_eq!(opened.as_slice(), [5; 9]);
        stop.send_replace(true);
        sealing.await.unwrap();
        manager.raft.shutdown().await;
    }

    #[tokio::test]
    async fn a_manager_renews_its_own_certificate_without_a_quorum() {
        let dir = tempfile::tempdir().unwrap();
        let (manager, key) = manager_and_key(dir.path()).await;
        manager.raft.shutdown().await;
        let own = manager.renew(&key.csr().unwrap()).await.unwrap();
        assert!(matches!(own, JoinAnswer::Renewed { .. }), "{own:?}");
        let other = NodeKey::generate().unwrap();
        let error = manager.renew(&other.csr().unwrap()).await.unwrap_err();
        assert!(matches!(error, Refusal::NoLeader), "{error}");
    }

    #[tokio::test]
    async fn tokens_share_the_digest_and_rotate() {
        let dir = tempfile::tempdir().unwrap();
        let manager = manager(dir.path()).await;
        let first = manager.join_tokens().unwrap();
        assert_eq!(first.worker.split('-').nth(2), first.manager.split('-').nth(2));
        assert_ne!(first.worker, first.manager);
        let (version, spec) = manager.raft.view(|state| {
            let cluster = state.cluster().unwrap();
            (cluster.meta.version, cluster.spec.clone())
        });
        let rotate = Request::SwarmUpdate {
            version,
            spec,
            rotate_worker: true,
            rotate_manager: false,
            rotate_unlock: false,
            rotate_ca: false,
        };
        manager.submit(rotate).await.unwrap();
        let second = manager.join_tokens().unwrap();
        assert_ne!(first.worker, second.worker);
        assert_eq!(first.manager, second.manager);
        manager.raft.shutdown().await;
    }
}
