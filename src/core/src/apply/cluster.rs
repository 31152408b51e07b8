//! The swarm and its nodes.

use alloc::format;
use alloc::string::String;

use super::{Applied, Change, Writer, check_labels};
use crate::command::{ClusterInit, NodeReport, Rejection};
use crate::id::NodeId;
use crate::limits;
use crate::model::cluster::{Cluster, ClusterSpec};
use crate::model::node::{Node, NodeSpec, NodeState, NodeStatus, Role};
use crate::model::{Kind, Meta};
use crate::sealed::Sealed;
use crate::state::FORMAT;

impl Writer<'_> {
    pub(super) fn cluster_init(&mut self, init: &ClusterInit) -> Applied {
        if self.state.cluster.is_some() {
            return Err(Rejection::Precondition(String::from("there is a swarm already")));
        }
        check_labels(&init.spec.labels)?;
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
        self.state.format = FORMAT;
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
        worker_secret: Option<&Sealed>,
        manager_secret: Option<&Sealed>,
    ) -> Applied {
        let Some(old) = &self.state.cluster else { return Err(Rejection::NoCluster) };
        check_labels(&spec.labels)?;
        if spec.name != old.spec.name {
            return Err(Rejection::Unsupported(String::from(
                "renaming the swarm is not supported",
            )));
        }
        for sealed in [worker_secret, manager_secret].into_iter().flatten() {
            self.check_key(sealed)?;
        }
        if version != old.meta.version {
            return Err(Rejection::OutOfSequence);
        }
        let mut cluster = Cluster::clone(old);
        cluster.spec = spec.clone();
        if let Some(secret) = worker_secret {
            cluster.trust.worker_secret = Some(secret.clone());
        }
        if let Some(secret) = manager_secret {
            cluster.trust.manager_secret = Some(secret.clone());
        }
        cluster.meta.touch(self.now);
        let version = cluster.meta.version;
        self.state.cluster = Some(cluster.into());
        self.changes.push(Change::Cluster);
        Ok(version)
    }

    /// Refuses what was sealed with a key that is no longer, or not yet, the current one.
    pub(super) fn check_key(&self, sealed: &Sealed) -> Result<(), Rejection> {
        let current = self.state.cluster.as_ref().map_or(0, |cluster| cluster.ring.current);
        if sealed.key == current { Ok(()) } else { Err(Rejection::StaleKey { current }) }
    }

    pub(super) fn node_update(&mut self, id: &NodeId, version: u64, spec: &NodeSpec) -> Applied {
        let Some(old) = self.state.nodes.get(id) else {
            return Err(Rejection::NotFound { kind: Kind::Node, what: format!("{id}") });
        };
        check_labels(&spec.labels)?;
        if let Some(name) = &spec.name
            && name.chars().count() > limits::NAME_CHARS
        {
            return Err(Rejection::Invalid(format!(
                "node names have at most {} characters",
                limits::NAME_CHARS
            )));
        }
        if spec.role != old.spec.role {
            let managers = self.state.nodes.values().filter(|n| n.manager.is_some()).count();
            return Err(if old.manager.is_some() && managers == 1 {
                Rejection::Precondition(String::from(
                    "attempting to demote the last manager of the swarm",
                ))
            } else {
                Rejection::Unsupported(String::from("changing the role of a node is not supported"))
            });
        }
        if version != old.meta.version {
            return Err(Rejection::OutOfSequence);
        }
        let mut node = Node::clone(old);
        node.spec = spec.clone();
        Ok(self.write_node(node))
    }

    /// Records what is new in each report; a report that says nothing new writes nothing.
    pub(super) fn node_reports(&mut self, reports: &[NodeReport]) -> u64 {
        for report in reports {
            let Some(old) = self.state.nodes.get(&report.id) else { continue };
            let mut node = Node::clone(old);
            if let Some(description) = &report.description {
                node.description = description.clone();
            }
            if let Some(status) = &report.status {
                node.status = status.clone();
            }
            if let Some(advertise) = &report.advertise {
                node.advertise = advertise.clone();
            }
            if node != **old {
                self.write_node(node);
            }
        }
        0
    }

    fn write_node(&mut self, mut node: Node) -> u64 {
        node.meta.touch(self.now);
        let version = node.meta.version;
        self.changes.push(Change::Node(node.id));
        self.state.put_node(node);
        version
    }
}
