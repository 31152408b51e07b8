//! Changes of nodes at the door: promotion seals the ring's keys to the new manager, demotion
//! turns the ring to a key that the old one never had.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_core::command::{Command, Rejection, TrustSecrets};
use skep_core::id::NodeId;
use skep_core::model::Kind;
use skep_core::model::cluster::{Cluster, RingKey, Slot};
use skep_core::model::node::{Node, NodeSpec, NodeState, Role};
use skep_core::sealed::Sealed;
use tokio::time::{interval, timeout};

use super::init::{CA_KEY, MANAGER_SECRET, UNLOCK_KEY, WORKER_SECRET};
use super::peers::PeerError;
use super::{Manager, failed};
use crate::clock::now;
use crate::gate::{Done, Refusal};
use crate::net::Closed;
use crate::seal::{RingSecret, SealError, random};
use crate::wire::control::ControlRequest;

/// How often a change is made anew because the ring turned meanwhile.
const RESEALS: usize = 3;
/// How long a manager that resigned waits until the others count it no more.
const DISMISSAL: Duration = Duration::from_secs(5);
/// Time between two looks at that.
const DISMISSAL_LOOK: Duration = Duration::from_millis(50);

fn sealing(error: SealError) -> Refusal {
    failed("cannot seal the swarm's keys", error)
}

/// Which join secrets a turn of the ring keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrets {
    /// Tokens go on admitting.
    Keep,
    /// Every token is void.
    Renew,
}

impl Manager {
    /// Changes what a user says of a node. Another role promotes or demotes it.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn update_node(
        &self,
        id: NodeId,
        version: u64,
        spec: NodeSpec,
    ) -> Result<Done, Refusal> {
        self.confirm().await?;
        let node = self.node(&id)?;
        let command = match (node.manager.is_some(), spec.role) {
            (true, Role::Manager) | (false, Role::Worker) => {
                Command::NodeUpdate { id, version, spec }
            }
            (false, Role::Manager) => return self.promote(&node, version, spec).await,
            (true, Role::Worker) => return self.demote(&id, version, spec).await,
        };
        self.propose(command).await?;
        Ok(Done::Nothing)
    }

    fn node(&self, id: &NodeId) -> Result<std::sync::Arc<Node>, Refusal> {
        let found = self.raft.view(|state| state.node(id).cloned());
        found.ok_or_else(|| Rejection::NotFound { kind: Kind::Node, what: id.to_string() }.into())
    }

    async fn promote(&self, node: &Node, version: u64, spec: NodeSpec) -> Result<Done, Refusal> {
        let raft_id = u64::from_be_bytes(random().map_err(sealing)?);
        for _ in 0..RESEALS {
            let (id, spec) = (node.id, spec.clone());
            let slots = self.slots_for(id, &node.seal_key)?;
            let command = Command::NodePromote { id, version, spec, raft_id, slots };
            match self.propose(command).await {
                Err(Refusal::Rejected(Rejection::StaleKey { .. })) => self.confirm().await?,
                done => return done.map(|_| Done::Nothing),
            }
        }
        Err(Refusal::NoLeader)
    }

    async fn demote(&self, id: &NodeId, version: u64, spec: NodeSpec) -> Result<Done, Refusal> {
        for _ in 0..RESEALS {
            let (id, spec) = (*id, spec.clone());
            let (key, secrets) = self.next_key(|node| *node != id, Secrets::Keep)?;
            let command = Command::NodeDemote { id, version, spec, key, secrets };
            match self.propose(command).await {
                Err(Refusal::Rejected(Rejection::StaleKey { .. })) => self.confirm().await?,
                done => return done.map(|_| Done::Nothing),
            }
        }
        Err(Refusal::NoLeader)
    }

    /// Ceases to be a manager, and waits until the others no longer count this one.
    ///
    /// # Errors
    /// If the others would have no quorum, or do not answer.
    pub async fn resign(&self) -> Result<(), Refusal> {
        let managers = self.raft.view(|s| s.nodes().filter(|n| n.manager.is_some()).count());
        if managers < 2 {
            return Ok(());
        }
        self.confirm().await?;
        let node = self.node(&self.node)?;
        let spec = NodeSpec { role: Role::Worker, ..node.spec.clone() };
        self.demote(&node.id, node.meta.version, spec).await?;
        self.await_dismissal().await;
        Ok(())
    }

    /// Waits until Raft's other members count this one no more.
    pub async fn await_dismissal(&self) {
        let gone = async {
            let mut look = interval(DISMISSAL_LOOK);
            loop {
                look.tick().await;
                let members = self.raft.members();
                // Raft does not tell whom it lets go: the entry may not reach it. The others do, by
                // turning it away.
                if !members.voters.contains(&members.me) || self.is_turned_away().await {
                    return;
                }
            }
        };
        let _ = timeout(DISMISSAL, gone).await;
    }

    /// Whether another manager says that this one is none.
    async fn is_turned_away(&self) -> bool {
        let others = self.peers.book().directory().borrow().managers.clone();
        let Some(other) = others.iter().find(|other| other.node != self.node) else { return false };
        let asked = self.peers.ask(other.raft_id, &ControlRequest::Directory).await;
        let Err(PeerError::Dial(error)) = asked else { return false };
        error.refused() == Some(Closed::NotManager)
    }

    /// Why this manager does not leave without force.
    #[must_use]
    pub fn why_not_leave(&self) -> Refusal {
        let (of, left) = self.raft.view(|state| {
            let managers = state.nodes().filter(|node| node.manager.is_some());
            let (mut of, mut left) = (0, 0);
            for node in managers {
                of += 1;
                let is_there = node.status.state == NodeState::Ready;
                left += usize::from(is_there && node.id != self.node);
            }
            (of, left)
        });
        match of {
            0 | 1 => Refusal::LastManager,
            _ if left < of / 2 + 1 => Refusal::LeavesNoQuorum { left, of },
            _ => Refusal::LeavesAsManager,
        }
    }

    /// The ring's next key for this manager alone, with new join secrets.
    ///
    /// # Errors
    /// If the secrets of the swarm do not open.
    pub fn key_for_me(&self) -> Result<(RingKey, TrustSecrets), Refusal> {
        self.next_key(|node| *node == self.node, Secrets::Renew)
    }

    /// The ring's next key for the managers that stay, and what it seals.
    pub(super) fn next_key(
        &self,
        stays: impl Fn(&NodeId) -> bool,
        keep: Secrets,
    ) -> Result<(RingKey, TrustSecrets), Refusal> {
        let (cluster, managers) = self.raft.view(|state| {
            let managers = state.nodes().filter(|n| n.manager.is_some() && stays(&n.id));
            let managers: Vec<_> = managers.map(|node| (node.id, node.seal_key)).collect();
            (state.cluster().cloned(), managers)
        });
        let cluster = cluster.ok_or(Refusal::Rejected(Rejection::NoCluster))?;
        let key = RingSecret::generate(cluster.ring.current + 1).map_err(sealing)?;
        let mut slots = BTreeMap::new();
        for (node, seal_key) in managers {
            let sealed = key.seal_to_manager(self.cluster, node, &seal_key).map_err(sealing)?;
            slots.insert(node, Slot { sealed });
        }
        let secrets = self.sealed_anew(&cluster, &key, keep).map_err(sealing)?;
        Ok((RingKey { version: key.version, created: now(), slots }, secrets))
    }

    /// CA key, join secrets and unlock key, sealed with another key.
    fn sealed_anew(
        &self,
        cluster: &Cluster,
        key: &RingSecret,
        keep: Secrets,
    ) -> Result<TrustSecrets, SealError> {
        let trust = &cluster.trust;
        let aad = self.cluster.as_str().as_bytes();
        let again = |sealed: &Option<Sealed>, purpose: &[u8]| -> Result<Sealed, SealError> {
            let mut plain = self.open_trust(sealed.as_ref(), purpose)?;
            key.seal_purpose(purpose, aad, plain.as_mut_slice())
        };
        let join = |sealed: &Option<Sealed>, purpose: &[u8], role: Role| match keep {
            Secrets::Keep => again(sealed, purpose),
            Secrets::Renew => self.seal_join_secret(key, role),
        };
        let former = match keep {
            Secrets::Keep => Vec::new(),
            Secrets::Renew => self.former_secrets(&[Role::Worker, Role::Manager])?,
        };
        let if_any = |sealed: &Option<Sealed>, purpose: &[u8]| match sealed {
            Some(_) => again(sealed, purpose).map(Some),
            None => Ok(None),
        };
        let next = trust.next.as_ref().map(|next| next.key.clone());
        Ok(TrustSecrets {
            cluster_version: cluster.meta.version,
            root_key: again(&trust.root_key, CA_KEY)?,
            worker_secret: join(&trust.worker_secret, WORKER_SECRET, Role::Worker)?,
            manager_secret: join(&trust.manager_secret, MANAGER_SECRET, Role::Manager)?,
            unlock_key: if_any(&trust.unlock_key, UNLOCK_KEY)?,
            next_root_key: if_any(&next, CA_KEY)?,
            former,
        })
    }
}
