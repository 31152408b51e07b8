//! The first entry of a new swarm: its root, its tokens, its first ring key, its first node.

use std::collections::BTreeMap;

use skep_core::command::ClusterInit;
use skep_core::id::{ClusterId, NodeId};
use skep_core::model::cluster::{ClusterSpec, Ring, RingKey, Slot, Trust};
use skep_core::model::node::{ManagerInfo, NodeDescription, NodeSpec, Role};

use crate::clock::now;
use crate::gate::Refusal;
use crate::identity::ca::{CaError, NodeKey, Root};
use crate::identity::token::JoinSecret;
use crate::manager::failed;
use crate::seal::{RingSecret, SealError, SealKeyPair};

/// Purpose of the sealed CA key.
pub const CA_KEY: &[u8] = b"ca-key";
/// Purpose of the sealed join secret of workers.
pub const WORKER_SECRET: &[u8] = b"join-worker";
/// Purpose of the sealed join secret of managers.
pub const MANAGER_SECRET: &[u8] = b"join-manager";

/// Purpose of the sealed unlock key.
pub const UNLOCK_KEY: &[u8] = b"unlock-key";

/// What a new swarm is made of.
#[derive(Debug)]
pub struct Founding {
    /// The first entry of the log.
    pub command: ClusterInit,
    /// The first node's certificate, in PEM.
    pub chain: String,
    /// Its key.
    pub key: NodeKey,
    /// The key that ring slots of this node are sealed to.
    pub seal: SealKeyPair,
}

/// What the founder says.
#[derive(Debug)]
pub struct Founder {
    /// Id of the swarm.
    pub cluster: ClusterId,
    /// Id of the node.
    pub node: NodeId,
    /// Settings of the swarm.
    pub spec: ClusterSpec,
    /// What the user says of the node.
    pub node_spec: NodeSpec,
    /// What the node says of itself.
    pub description: NodeDescription,
    /// Its Raft id.
    pub raft_id: u64,
    /// Its address with port.
    pub addr: std::net::SocketAddr,
    /// The unlock key of a swarm that begins with autolock.
    pub unlock_key: Option<zeroize::Zeroizing<[u8; 32]>>,
}

/// Makes everything a new swarm starts with.
///
/// # Errors
/// If a key or certificate cannot be made.
pub fn found(founder: Founder) -> Result<Founding, Refusal> {
    let ca = |e: CaError| failed("cannot make the swarm's certificates", e);
    let sealing = |e: SealError| failed("cannot make the swarm's keys", e);
    let Founder { cluster, node, .. } = founder;
    let root = Root::generate().map_err(ca)?;
    let node_key = NodeKey::generate().map_err(ca)?;
    let csr = node_key.csr().map_err(ca)?;
    let life = founder.spec.node_cert_expiry;
    let chain = root.sign(&csr, cluster, node, Role::Manager, life).map_err(ca)?;
    let seal = SealKeyPair::generate().map_err(sealing)?;
    let key = RingSecret::generate(1).map_err(sealing)?;
    let slot = key.seal_to_manager(cluster, node, &seal.public()).map_err(sealing)?;
    let mut trust = trust(&root, &key, cluster).map_err(sealing)?;
    if let Some(mut unlock) = founder.unlock_key {
        let aad = cluster.as_str().as_bytes();
        trust.unlock_key = Some(key.seal_purpose(UNLOCK_KEY, aad, &mut *unlock).map_err(sealing)?);
    }
    let ring_key = RingKey {
        version: 1,
        created: now(),
        slots: BTreeMap::from([(node, Slot { sealed: slot })]),
    };
    let command = ClusterInit {
        id: cluster,
        spec: founder.spec,
        ring: Ring { current: 1, keys: vec![ring_key] },
        trust,
        incarnation_id: crate::seal::random().map_err(sealing)?,
        node,
        node_spec: NodeSpec { role: Role::Manager, ..founder.node_spec },
        description: founder.description,
        manager: ManagerInfo { raft_id: founder.raft_id, addr: founder.addr.to_string() },
        seal_key: seal.public(),
        public_key: node_key.public(),
        addr: founder.addr.ip().to_string(),
    };
    Ok(Founding { command, chain, key: node_key, seal })
}

fn trust(root: &Root, key: &RingSecret, cluster: ClusterId) -> Result<Trust, SealError> {
    let aad = cluster.as_str().as_bytes();
    let mut ca_key = root.key_der();
    let mut worker = zeroize::Zeroizing::new(JoinSecret::generate()?.as_bytes().to_vec());
    let mut manager = zeroize::Zeroizing::new(JoinSecret::generate()?.as_bytes().to_vec());
    Ok(Trust {
        roots: vec![root.pem.clone()],
        subject: root.subject.clone(),
        public_key: root.public_key.clone(),
        root_key: Some(key.seal_purpose(CA_KEY, aad, &mut ca_key)?),
        worker_secret: Some(key.seal_purpose(WORKER_SECRET, aad, &mut worker)?),
        manager_secret: Some(key.seal_purpose(MANAGER_SECRET, aad, &mut manager)?),
        unlock_key: None,
        next: None,
        former: Vec::new(),
    })
}
