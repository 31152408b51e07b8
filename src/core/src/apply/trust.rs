//! What the swarm trusts: its root certificates, and its incarnation.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::cluster::rotate_tokens;
use super::nodes::is_address;
use super::ring::check_sealed;
use super::{Applied, Writer};
use crate::command::{CaChange, Rejection, TokenRotation, TrustSecrets};
use crate::id::NodeId;
use crate::limits;
use crate::model::cluster::{Cluster, NextRoot, RingKey};
use crate::model::node::{ManagerInfo, Node};

impl Writer<'_> {
    pub(super) fn cluster_force(
        &mut self,
        survivor: &NodeId,
        addr: &str,
        incarnation_id: &[u8; 16],
        key: &RingKey,
        secrets: &TrustSecrets,
    ) -> Applied {
        let mut node = self.node(survivor)?;
        let Some(ManagerInfo { raft_id, .. }) = node.manager else {
            return Err(Rejection::Precondition(format!(
                "node {survivor} is a worker; only a manager can make the swarm its own"
            )));
        };
        if !is_address(addr) {
            return Err(Rejection::Invalid(format!(
                "a manager's address has 1 to {} bytes",
                limits::ADDRESS_BYTES
            )));
        }
        if *incarnation_id == self.cluster()?.incarnation_id {
            return Err(Rejection::Invalid(String::from(
                "a new incarnation of the swarm needs a new random half",
            )));
        }
        let others = self.state.managers().map(|(node, _)| node.id).filter(|id| id != survivor);
        let others: Vec<NodeId> = others.collect();
        let mut cluster = self.with_turned_ring(key, secrets, &BTreeSet::from([*survivor]))?;
        cluster.cut_off.extend_from_slice(&others);
        let surplus = cluster.cut_off.len().saturating_sub(limits::CUT_OFF);
        cluster.cut_off.drain(..surplus);
        cluster.incarnation += 1;
        cluster.incarnation_id = *incarnation_id;
        if let Some(next) = &mut cluster.trust.next {
            next.moved.retain(|id| !others.contains(id));
        }
        others.iter().for_each(|id| self.drop_node(id));
        node.manager = Some(ManagerInfo { raft_id, addr: String::from(addr) });
        node.advertise = String::from(addr);
        self.write_node(node);
        Ok(self.write_cluster(cluster))
    }

    pub(super) fn ca_change(&mut self, change: &CaChange) -> Applied {
        match change {
            CaChange::Begin { version, root } => self.begin_root(*version, root),
            CaChange::Moved(nodes) => self.note_moved(nodes),
            CaChange::Finish { version, force, tokens } => {
                self.finish_root(*version, *force, tokens)
            }
        }
    }

    fn begin_root(&mut self, version: u64, root: &NextRoot) -> Applied {
        let old = self.cluster()?;
        if old.trust.next.is_some() {
            return Err(Rejection::Precondition(String::from(
                "the swarm's root certificate is being changed already; finish that first",
            )));
        }
        check_root(root)?;
        self.check_key(&root.key)?;
        if version != old.meta.version {
            return Err(Rejection::OutOfSequence);
        }
        if old.trust.roots.contains(&root.pem) {
            return Err(Rejection::Invalid(String::from(
                "the swarm trusts this root certificate already; a change needs a new one",
            )));
        }
        let mut cluster = Cluster::clone(old);
        let present = cluster.trust.roots.last().cloned();
        cluster.trust.roots = present.into_iter().chain([root.pem.clone()]).collect();
        cluster.trust.next = Some(NextRoot { moved: BTreeSet::new(), ..root.clone() });
        Ok(self.write_cluster(cluster))
    }

    /// Notes who uses the new root already. It comes late if there is no such root any more.
    fn note_moved(&mut self, nodes: &[NodeId]) -> Applied {
        let old = self.cluster()?;
        let mut cluster = Cluster::clone(old);
        let before = old.meta.version;
        let Some(next) = &mut cluster.trust.next else { return Ok(before) };
        let count = next.moved.len();
        next.moved.extend(nodes.iter().filter(|id| self.state.nodes.contains_key(id)));
        if next.moved.len() == count { Ok(before) } else { Ok(self.write_cluster(cluster)) }
    }

    fn finish_root(&mut self, version: u64, force: bool, tokens: &TokenRotation) -> Applied {
        let mut cluster = Cluster::clone(self.cluster()?);
        let trust = &mut cluster.trust;
        let Some(next) = trust.next.take() else {
            return Err(Rejection::Precondition(String::from(
                "the swarm's root certificate is not being changed",
            )));
        };
        let waiting = self.state.nodes().filter(|node| !next.moved.contains(&node.id));
        let waiting: Vec<&Node> = waiting.map(|node| &**node).collect();
        if !waiting.is_empty() && !force {
            return Err(Rejection::Precondition(format!(
                "nodes without a certificate of the new root: {}: {}; bring them up and wait, or \
                 finish with force and let them join again",
                waiting.len(),
                names(&waiting)
            )));
        }
        if tokens.worker.is_none() || tokens.manager.is_none() {
            return Err(Rejection::Invalid(String::from(
                "tokens name the root that goes: ending its change needs new join secrets of both \
                 roles",
            )));
        }
        self.check_tokens(tokens)?;
        if version != cluster.meta.version {
            return Err(Rejection::OutOfSequence);
        }
        let trust = &mut cluster.trust;
        rotate_tokens(trust, tokens);
        trust.roots = vec![next.pem];
        trust.subject = next.subject;
        trust.public_key = next.public_key;
        trust.root_key = Some(next.key);
        Ok(self.write_cluster(cluster))
    }
}

fn check_root(root: &NextRoot) -> Result<(), Rejection> {
    let parts = [root.pem.len(), root.cross_pem.len(), root.subject.len(), root.public_key.len()];
    if parts.iter().any(|bytes| !(1..=limits::ROOT_BYTES).contains(bytes)) {
        return Err(Rejection::Invalid(format!(
            "a root needs its certificate, the same signed by the old root, its subject and its \
             public key, each of at most {} bytes",
            limits::ROOT_BYTES
        )));
    }
    check_sealed(&root.key)
}

/// Host names and ids of the first of some nodes, and how many more there are.
fn names(nodes: &[&Node]) -> String {
    let some = nodes.iter().take(limits::NODES_NAMED);
    let mut names: Vec<String> =
        some.map(|node| format!("{} ({})", node.description.hostname, node.id)).collect();
    if nodes.len() > limits::NODES_NAMED {
        names.push(format!("{} more", nodes.len() - limits::NODES_NAMED));
    }
    names.join(", ")
}
