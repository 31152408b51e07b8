//! The swarm: its beginning and its settings.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::ring::check_sealed;
use super::{Applied, Change, Writer, check_labels};
use crate::command::{ClusterInit, Rejection, TokenRotation};
use crate::id::NodeId;
use crate::model::Meta;
use crate::model::cluster::{Cluster, ClusterSpec, Trust};
use crate::model::node::{Node, NodeDescription, NodeSpec, NodeState, NodeStatus, Role};
use crate::sealed::Sealed;

impl Writer<'_> {
    pub(super) fn cluster_init(&mut self, init: &ClusterInit) -> Applied {
        if self.state.cluster.is_some() {
            return Err(Rejection::Precondition(String::from("there is a swarm already")));
        }
        check_spec(&init.spec)?;
        check_labels(&init.node_spec.labels)?;
        let key = init.ring.keys.iter().find(|key| key.version == init.ring.current);
        if !key.is_some_and(|key| key.slots.contains_key(&init.node)) {
            return Err(Rejection::Invalid(String::from(
                "the ring has no current key that the first manager can open",
            )));
        }
        let cluster = Cluster {
            id: init.id,
            meta: Meta::new(self.now),
            spec: init.spec.clone(),
            ring: init.ring.clone(),
            trust: init.trust.clone(),
            incarnation: 1,
            incarnation_id: init.incarnation_id,
            raft_ids: BTreeSet::from([init.manager.raft_id]),
            cut_off: Vec::new(),
        };
        let node = Node {
            id: init.node,
            meta: Meta::new(self.now),
            spec: NodeSpec { role: Role::Manager, ..init.node_spec.clone() },
            description: init.description.clone(),
            status: NodeStatus {
                state: NodeState::Unknown,
                message: String::new(),
                addr: init.addr.clone(),
                since: self.now,
            },
            manager: Some(init.manager.clone()),
            public_key: init.public_key.clone(),
            seal_key: init.seal_key,
            advertise: init.manager.addr.clone(),
        };
        self.state.format = init.description.reads_format();
        self.state.cluster = Some(cluster.into());
        self.changes.push(Change::Cluster);
        self.changes.push(Change::Node(node.id));
        self.state.put_node(node);
        Ok(1)
    }

    pub(super) fn cluster_update(
        &mut self,
        version: u64,
        spec: &ClusterSpec,
        tokens: &TokenRotation,
        unlock_key: Option<&Sealed>,
    ) -> Applied {
        let old = self.cluster()?;
        check_spec(spec)?;
        if spec.name != old.spec.name {
            return Err(Rejection::Unsupported(String::from(
                "renaming the swarm is not supported",
            )));
        }
        self.check_tokens(tokens)?;
        if let Some(sealed) = unlock_key {
            check_sealed(sealed)?;
            self.check_key(sealed)?;
        }
        if spec.autolock && unlock_key.is_none() && old.trust.unlock_key.is_none() {
            return Err(Rejection::Invalid(String::from(
                "autolock needs an unlock key, and the swarm has none: send one with the update",
            )));
        }
        if version != old.meta.version {
            return Err(Rejection::OutOfSequence);
        }
        let mut cluster = Cluster::clone(old);
        cluster.spec = spec.clone();
        let trust = &mut cluster.trust;
        rotate_tokens(trust, tokens);
        trust.unlock_key = unlock_key.cloned().or(trust.unlock_key.take());
        if !spec.autolock {
            trust.unlock_key = None;
        }
        Ok(self.write_cluster(cluster))
    }

    /// Refuses new join secrets without what is to be kept of those they replace.
    pub(super) fn check_tokens(&self, tokens: &TokenRotation) -> Result<(), Rejection> {
        for sealed in [&tokens.worker, &tokens.manager].into_iter().flatten() {
            check_sealed(sealed)?;
            self.check_key(sealed)?;
        }
        let kept = |role| tokens.former.iter().filter(|former| former.role == role).count();
        let new = |sealed: &Option<Sealed>| usize::from(sealed.is_some());
        if kept(Role::Worker) == new(&tokens.worker) && kept(Role::Manager) == new(&tokens.manager)
        {
            return Ok(());
        }
        Err(Rejection::Invalid(String::from(
            "every new join secret comes with what is kept of the one it replaces, and nothing \
             else is kept",
        )))
    }

    /// Raises the format of the state once every manager reads the new one.
    pub(super) fn format_raise(&mut self, to: u32) -> Applied {
        let now = self.state.format;
        if to < now {
            return Err(Rejection::Precondition(format!(
                "the swarm's state has format {now}, which does not go back to {to}"
            )));
        }
        for (node, _) in self.state.managers() {
            check_reads(&node.id, &node.description, to)?;
        }
        if to > now {
            self.state.format = to;
            self.changes.push(Change::Cluster);
        }
        Ok(0)
    }

    /// The swarm to change.
    pub(super) fn cluster(&self) -> Result<&Arc<Cluster>, Rejection> {
        self.state.cluster.as_ref().ok_or(Rejection::NoCluster)
    }

    pub(super) fn write_cluster(&mut self, mut cluster: Cluster) -> u64 {
        self.retire_keys_of(&mut cluster);
        cluster.meta.touch(self.now);
        let version = cluster.meta.version;
        self.state.cluster = Some(cluster.into());
        self.changes.push(Change::Cluster);
        version
    }

    /// Refuses what was sealed with a key that is no longer, or not yet, the current one.
    pub(super) fn check_key(&self, sealed: &Sealed) -> Result<(), Rejection> {
        let current = self.state.cluster.as_ref().map_or(0, |cluster| cluster.ring.current);
        if sealed.key == current { Ok(()) } else { Err(Rejection::StaleKey { current }) }
    }
}

fn check_spec(spec: &ClusterSpec) -> Result<(), Rejection> {
    check_labels(&spec.labels)?;
    spec.broken_rule().map_or(Ok(()), |rule| Err(Rejection::Invalid(rule)))
}

/// Puts new join secrets in the place of the present ones.
pub(super) fn rotate_tokens(trust: &mut Trust, tokens: &TokenRotation) {
    trust.worker_secret = tokens.worker.clone().or(trust.worker_secret.take());
    trust.manager_secret = tokens.manager.clone().or(trust.manager_secret.take());
    trust.retire(&tokens.former);
}

/// Refuses a manager that could not read the state.
pub(super) fn check_reads(
    id: &NodeId,
    description: &NodeDescription,
    format: u32,
) -> Result<(), Rejection> {
    let reads = description.reads_format();
    if reads >= format {
        return Ok(());
    }
    let version = match description.engine_version.as_str() {
        "" => String::from("an older version of skep"),
        version => format!("skep {version}"),
    };
    Err(Rejection::Precondition(format!(
        "a manager must read format {format} of the swarm's state, and node {id} with {version} \
         reads no newer one than {reads}: upgrade skep on it first"
    )))
}
