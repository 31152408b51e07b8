//! Who may join, and as what: the token's secret proves it, the state records it, and only then a
//! certificate is signed.

use std::collections::BTreeMap;
use std::time::Duration;

use quinn::Connection;
use skep_core::command::{CaChange, Command, NodeJoin, Rejection, TokenRotation};
use skep_core::id::NodeId;
use skep_core::model::cluster::{Cluster, FormerSecret, Slot};
use skep_core::model::node::{NodeSpec, Role};
use skep_core::sealed::Sealed;
use skep_core::state::State;

use super::init::{CA_KEY, MANAGER_SECRET, WORKER_SECRET};
use super::{Manager, failed, mint};
use crate::clock::now;
use crate::gate::Refusal;
use crate::identity::ca::{CaError, Root, csr_public_key};
use crate::identity::token::{JoinSecret, is_proof};
use crate::limits::JOIN_CLOCK_SKEW;
use crate::protected::Protected;
use crate::seal::{RingSecret, SealError};
use crate::wire::join::{EXPORTER_LABEL, JoinAnswer, Joiner, Welcome};

/// How often slots are sealed anew because the ring turned meanwhile.
const RESEALS: usize = 3;

fn sealing(error: SealError) -> Refusal {
    failed("cannot open the swarm's keys", error)
}

fn signing(error: CaError) -> Refusal {
    failed("cannot sign a certificate", error)
}

impl Manager {
    /// Admits a node that shows a token's secret.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn admit(
        &self,
        connection: &Connection,
        joiner: Joiner,
    ) -> Result<JoinAnswer, Refusal> {
        self.confirm().await?;
        let role = self.role_of(connection, &joiner)?;
        check_clock(joiner.now_ns)?;
        let public_key = csr_public_key(&joiner.csr).map_err(signing)?;
        let spec = NodeSpec { role, availability: joiner.availability, ..NodeSpec::default() };
        let addr = connection.remote_address().ip().to_canonical().to_string();
        let mut join = NodeJoin {
            id: mint().map_err(sealing)?,
            public_key: public_key.clone(),
            seal_key: joiner.seal_key,
            spec,
            description: joiner.description,
            advertise: joiner.advertise,
            addr,
            manager: None,
        };
        let raft_id = u64::from_be_bytes(crate::seal::random().map_err(sealing)?);
        for _ in 0..RESEALS {
            if role == Role::Manager {
                join.manager = Some((raft_id, self.slots_for(join.id, &joiner.seal_key)?));
            }
            match self.propose(Command::NodeJoin(Box::new(join.clone()))).await {
                Err(Refusal::Rejected(Rejection::StaleKey { .. })) => self.confirm().await?,
                Err(refusal) => return Err(refusal),
                Ok(_) => break,
            }
        }
        // The same key again is the same node.
        self.confirm().await?;
        self.welcome(&joiner.csr, &public_key).await
    }

    async fn welcome(&self, csr: &[u8], public_key: &[u8]) -> Result<JoinAnswer, Refusal> {
        let found = self.raft.view(|state| {
            let node = node_with_key(state, public_key)?;
            Some((node, state.node(&node)?.manager.as_ref().map_or(0, |m| m.raft_id)))
        });
        let Some((node, raft_id)) = found else {
            return Err(Refusal::NoLeader);
        };
        let role = if raft_id == 0 { Role::Worker } else { Role::Manager };
        let chain = self.issue(csr, node, role).await?;
        let directory = self.peers.book().directory().borrow().clone();
        let cluster = self.cluster;
        Ok(JoinAnswer::Welcome(Box::new(Welcome { node, cluster, chain, raft_id, directory })))
    }

    /// Signs a new certificate for a member: what it is, is on record under its key. This manager's
    /// own is signed without a quorum too, or one that stood still for long could not be reached
    /// by those it needs to move again.
    ///
    /// # Errors
    /// If the key is not on record.
    pub(super) async fn renew(&self, csr: &[u8]) -> Result<JoinAnswer, Refusal> {
        let public_key = csr_public_key(csr).map_err(signing)?;
        let is_own = self.raft.view(|state| node_with_key(state, &public_key)) == Some(self.node);
        if !is_own {
            self.confirm().await?;
        }
        let found = self.raft.view(|state| {
            let node = node_with_key(state, &public_key)?;
            let is_manager = state.node(&node)?.manager.is_some();
            Some((node, if is_manager { Role::Manager } else { Role::Worker }))
        });
        let Some((node, role)) = found else {
            return Err(Refusal::Invalid(
                "this node's key is not on record: it was removed from the swarm, or never joined"
                    .into(),
            ));
        };
        let chain = self.issue(csr, node, role).await?;
        let roots = self.peers.book().directory().borrow().roots.clone();
        Ok(JoinAnswer::Renewed { chain, roots })
    }

    /// Signs, and has it noted who has a certificate of the root that takes over, while one does:
    /// its change ends when all have, those too that join meanwhile.
    async fn issue(&self, csr: &[u8], node: NodeId, role: Role) -> Result<String, Refusal> {
        let chain = self.sign(csr, node, role)?;
        let changes = |state: &State| state.cluster().is_some_and(|c| c.trust.next.is_some());
        if self.raft.view(changes) {
            let moved = CaChange::Moved(vec![node]);
            self.propose(Command::CaChange(Box::new(moved))).await?;
        }
        Ok(chain)
    }

    /// Signs with the root that is current.
    ///
    /// # Errors
    /// If the CA's key does not open.
    fn sign(&self, csr: &[u8], node: NodeId, role: Role) -> Result<String, Refusal> {
        let cluster = self.raft.view(|state| state.cluster().cloned());
        let cluster = cluster.ok_or(Refusal::Rejected(Rejection::NoCluster))?;
        let (pem, key, cross) = match &cluster.trust.next {
            Some(next) => (next.pem.as_str(), Some(&next.key), next.cross_pem.as_str()),
            None => {
                let pem = cluster.trust.roots.last().map(String::as_str).unwrap_or_default();
                (pem, cluster.trust.root_key.as_ref(), "")
            }
        };
        let key = self.open_trust(key, CA_KEY).map_err(sealing)?;
        let root = Root::from_parts(pem, &key).map_err(signing)?;
        let life = cluster.spec.node_cert_expiry;
        let leaf = root.sign(csr, cluster.id, node, role, life).map_err(signing)?;
        Ok(leaf + cross)
    }

    /// Opens what the ring seals beside payloads.
    pub(super) fn open_trust(
        &self,
        sealed: Option<&Sealed>,
        purpose: &[u8],
    ) -> Result<Protected, SealError> {
        let sealed = sealed.ok_or(SealError::Forged)?;
        let aad = self.cluster.as_str().as_bytes();
        self.ring_key(sealed.key)?.open_purpose(purpose, aad, sealed)
    }

    /// The role that the proof gives.
    fn role_of(&self, connection: &Connection, joiner: &Joiner) -> Result<Role, Refusal> {
        let mut exported = [0; 32];
        if connection.export_keying_material(&mut exported, EXPORTER_LABEL, b"").is_err() {
            return Err(Refusal::Invalid("the TLS session gives no key material".into()));
        }
        for role in [Role::Worker, Role::Manager] {
            let secret = self.join_secret(role).map_err(sealing)?;
            if secret.check(&exported, &joiner.csr, &joiner.proof) {
                return Ok(role);
            }
        }
        let former = self.raft.view(|state| state.cluster().map(|c| c.trust.former.clone()));
        let former = former.ok_or(Refusal::Rejected(Rejection::NoCluster))?;
        let is_it = |former: &&FormerSecret| {
            is_proof(&former.verifier, &exported, &joiner.csr, &joiner.proof)
        };
        Err(Refusal::Invalid(not_admitted(former.iter().rfind(is_it))))
    }

    /// New join secrets, sealed with a ring key, for each of these roles, with what is kept of those
    /// they replace.
    pub(super) fn new_tokens(
        &self,
        ring: &RingSecret,
        roles: &[Role],
    ) -> Result<TokenRotation, SealError> {
        let mut tokens = TokenRotation::default();
        for role in roles {
            let sealed = Some(self.seal_join_secret(ring, *role)?);
            match role {
                Role::Worker => tokens.worker = sealed,
                Role::Manager => tokens.manager = sealed,
            }
        }
        tokens.former = self.former_secrets(roles)?;
        Ok(tokens)
    }

    /// A new join secret, sealed with a ring key.
    pub(super) fn seal_join_secret(
        &self,
        ring: &RingSecret,
        role: Role,
    ) -> Result<Sealed, SealError> {
        let mut secret = zeroize::Zeroizing::new(JoinSecret::generate()?.as_bytes().to_vec());
        ring.seal_purpose(purpose_of(role), self.cluster.as_str().as_bytes(), &mut secret)
    }

    /// What is to be kept of the present join secrets of these roles once they admit nobody.
    pub(super) fn former_secrets(&self, roles: &[Role]) -> Result<Vec<FormerSecret>, SealError> {
        let former = |role: &Role| {
            let verifier = *self.join_secret(*role)?.verifier();
            Ok(FormerSecret { role: *role, verifier })
        };
        roles.iter().map(former).collect()
    }

    /// The present join secret of a role.
    pub(super) fn join_secret(&self, role: Role) -> Result<JoinSecret, SealError> {
        let sealed = self.raft.view(|state| {
            let trust = &state.cluster()?.trust;
            match role {
                Role::Worker => trust.worker_secret.clone(),
                Role::Manager => trust.manager_secret.clone(),
            }
        });
        JoinSecret::from_protected(&self.open_trust(sealed.as_ref(), purpose_of(role))?)
    }

    /// The ring's keys sealed to one manager.
    ///
    /// # Errors
    /// If a key does not open.
    pub(super) fn slots_for(
        &self,
        node: NodeId,
        seal_key: &[u8; 32],
    ) -> Result<BTreeMap<u64, Slot>, Refusal> {
        let versions = |cluster: &Cluster| -> Vec<u64> {
            cluster.ring.keys.iter().map(|key| key.version).collect()
        };
        let versions = self.raft.view(|state| state.cluster().map(|c| versions(c)));
        let mut slots = BTreeMap::new();
        for version in versions.unwrap_or_default() {
            let key = self.ring_key(version).map_err(sealing)?;
            let sealed = key.seal_to_manager(self.cluster, node, seal_key).map_err(sealing)?;
            slots.insert(version, Slot { sealed });
        }
        Ok(slots)
    }
}

/// Under which purpose the ring seals a role's join secret.
fn purpose_of(role: Role) -> &'static [u8] {
    match role {
        Role::Worker => WORKER_SECRET,
        Role::Manager => MANAGER_SECRET,
    }
}

/// Why a proof of no present join secret admits nobody.
fn not_admitted(former: Option<&FormerSecret>) -> String {
    let Some(former) = former else {
        return "invalid join token: its secret is none of this swarm; copy the whole token that \
                'swarm join-token worker' or 'swarm join-token manager' prints on a manager"
            .to_owned();
    };
    let word = match former.role {
        Role::Worker => "worker",
        Role::Manager => "manager",
    };
    format!(
        "expired join token: this {word} token was rotated and admits nobody any more; get the \
         present one on a manager with 'swarm join-token {word}'"
    )
}

fn node_with_key(state: &State, public_key: &[u8]) -> Option<NodeId> {
    state.nodes().find(|node| node.public_key == public_key).map(|node| node.id)
}

/// Certificates are valid by the clock: a node whose clock is far off could not use its own.
fn check_clock(theirs_ns: u64) -> Result<(), Refusal> {
    let skew = Duration::from_nanos(now().0.abs_diff(theirs_ns));
    if skew <= JOIN_CLOCK_SKEW {
        return Ok(());
    }
    Err(Refusal::Invalid(format!(
        "the clock of the joining node is {} apart from the manager's, at most {} min are allowed: \
         set the clocks right (an NTP client does) and join again",
        days(skew),
        JOIN_CLOCK_SKEW.as_secs() / 60
    )))
}

fn days(skew: Duration) -> String {
    let minutes = skew.as_secs() / 60;
    match (minutes / (24 * 60), minutes / 60) {
        (0, 0) => format!("{minutes} min"),
        (0, hours) => format!("{hours} h"),
        (days, _) => format!("{days} days"),
    }
}
