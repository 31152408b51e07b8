//! Nodes: how they come, what becomes of them, and how they go.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::cluster::check_reads;
use super::{Applied, Change, Writer, check_labels};
use crate::codec;
use crate::command::{NodeJoin, NodeReport, Rejection, TrustSecrets};
use crate::id::NodeId;
use crate::limits;
use crate::model::cluster::{Cluster, RingKey, Slot};
use crate::model::node::{
    ManagerInfo, Node, NodeDescription, NodeSpec, NodeState, NodeStatus, Role,
};
use crate::model::task::{Task, TaskState, TaskStatus};
use crate::model::{Kind, Meta};

/// What a task says whose node was removed.
const DELETED: &str = "Task belonged to a node that has been deleted";

impl Writer<'_> {
    pub(super) fn node_join(&mut self, join: &NodeJoin) -> Applied {
        check_spec(&join.spec)?;
        check_joiner(join)?;
        let mut nodes = self.state.nodes.values();
        if let Some(known) = nodes.find(|node| node.public_key == join.public_key) {
            return same_again(known, join);
        }
        if self.state.nodes.contains_key(&join.id) {
            let name = format!("{}", join.id);
            return Err(Rejection::Exists { kind: Kind::Node, name });
        }
        if self.state.nodes.len() >= limits::NODES {
            return Err(Rejection::Full(format!(
                "the swarm has {} nodes, which is all it may; remove some that are gone first",
                limits::NODES
            )));
        }
        let manager = match &join.manager {
            None => None,
            Some((raft_id, slots)) => {
                let cluster = self.with_manager(&join.id, &join.description, *raft_id, slots)?;
                self.write_cluster(cluster);
                Some(ManagerInfo { raft_id: *raft_id, addr: join.advertise.clone() })
            }
        };
        self.changes.push(Change::Node(join.id));
        self.state.put_node(Node {
            id: join.id,
            meta: Meta::new(self.now),
            spec: join.spec.clone(),
            description: join.description.clone(),
            status: NodeStatus {
                state: NodeState::Unknown,
                message: String::new(),
                addr: join.addr.clone(),
                since: self.now,
            },
            manager,
            public_key: join.public_key.clone(),
            seal_key: join.seal_key,
            advertise: join.advertise.clone(),
        });
        Ok(1)
    }

    /// The swarm with one more manager in its ring.
    fn with_manager(
        &self,
        id: &NodeId,
        description: &NodeDescription,
        raft_id: u64,
        slots: &BTreeMap<u64, Slot>,
    ) -> Result<Cluster, Rejection> {
        check_reads(id, description, self.state.format)?;
        let mut cluster = Cluster::clone(self.cluster()?);
        if self.state.managers().count() >= limits::MANAGERS {
            return Err(Rejection::Full(format!(
                "the swarm has {} managers, which is all it may; demote some first",
                limits::MANAGERS
            )));
        }
        if cluster.raft_ids.len() >= limits::RAFT_IDS {
            return Err(Rejection::Full(format!(
                "the swarm has made {} managers in its life, which is all it may",
                limits::RAFT_IDS
            )));
        }
        if !cluster.raft_ids.insert(raft_id) {
            return Err(Rejection::Invalid(format!(
                "Raft id {raft_id:x} was used before; a new manager needs a new one"
            )));
        }
        if slots.values().any(|slot| slot.sealed.len() > limits::SLOT_BYTES) {
            return Err(Rejection::Invalid(format!(
                "a ring key sealed to a manager has at most {} bytes",
                limits::SLOT_BYTES
            )));
        }
        for key in &mut cluster.ring.keys {
            let Some(slot) = slots.get(&key.version) else {
                return Err(Rejection::StaleKey { current: cluster.ring.current });
            };
            key.slots.insert(*id, slot.clone());
        }
        Ok(cluster)
    }

    pub(super) fn node_update(&mut self, id: &NodeId, version: u64, spec: &NodeSpec) -> Applied {
        let mut node = self.node(id)?;
        check_spec(spec)?;
        if spec.role != node.spec.role {
            self.check_not_last(&node)?;
            return Err(Rejection::Invalid(String::from(
                "role changes go through promote and demote",
            )));
        }
        if version != node.meta.version {
            return Err(Rejection::OutOfSequence);
        }
        node.spec = spec.clone();
        Ok(self.write_node(node))
    }

    pub(super) fn node_promote(
        &mut self,
        id: &NodeId,
        version: u64,
        spec: &NodeSpec,
        raft_id: u64,
        slots: &BTreeMap<u64, Slot>,
    ) -> Applied {
        let mut node = self.node(id)?;
        check_spec(spec)?;
        if spec.role != Role::Manager {
            return Err(Rejection::Invalid(String::from(
                "a promotion gives the role of a manager",
            )));
        }
        if node.manager.is_some() {
            return Err(Rejection::Precondition(format!("node {id} is a manager already")));
        }
        if version != node.meta.version {
            return Err(Rejection::OutOfSequence);
        }
        if !is_key(&node.seal_key) {
            return Err(Rejection::Precondition(format!(
                "node {id} has no key that the swarm's secret keys could be sealed to; let it \
                 leave the swarm and join again"
            )));
        }
        if node.advertise.is_empty() {
            return Err(Rejection::Precondition(format!(
                "node {id} does not say where managers reach it; start it with an advertised \
                 address"
            )));
        }
        let cluster = self.with_manager(id, &node.description, raft_id, slots)?;
        self.write_cluster(cluster);
        node.spec = spec.clone();
        node.manager = Some(ManagerInfo { raft_id, addr: node.advertise.clone() });
        Ok(self.write_node(node))
    }

    pub(super) fn node_demote(
        &mut self,
        id: &NodeId,
        version: u64,
        spec: &NodeSpec,
        key: &RingKey,
        secrets: &TrustSecrets,
    ) -> Applied {
        let mut node = self.node(id)?;
        check_spec(spec)?;
        if spec.role != Role::Worker {
            return Err(Rejection::Invalid(String::from("a demotion gives the role of a worker")));
        }
        if node.manager.is_none() {
            return Err(Rejection::Precondition(format!("node {id} is a worker already")));
        }
        self.check_not_last(&node)?;
        if version != node.meta.version {
            return Err(Rejection::OutOfSequence);
        }
        self.check_quorum_without(id)?;
        let stay = self.state.managers().map(|(node, _)| node.id).filter(|other| other != id);
        let stay: BTreeSet<NodeId> = stay.collect();
        self.check_ring_room()?;
        let cluster = self.with_turned_ring(key, secrets, &stay)?;
        self.write_cluster(cluster);
        node.spec = spec.clone();
        node.manager = None;
        Ok(self.write_node(node))
    }

    fn check_not_last(&self, node: &Node) -> Result<(), Rejection> {
        if node.manager.is_some() && self.state.managers().count() == 1 {
            return Err(Rejection::Precondition(String::from(
                "attempting to demote the last manager of the swarm",
            )));
        }
        Ok(())
    }

    /// Refuses to let a manager go when those that stay could decide nothing. One that is down
    /// itself is no loss.
    fn check_quorum_without(&self, id: &NodeId) -> Result<(), Rejection> {
        let stay: Vec<_> = self.state.managers().filter(|(node, _)| node.id != *id).collect();
        let is_ready = |node: &Node| node.status.state == NodeState::Ready;
        let ready = stay.iter().filter(|(node, _)| is_ready(node)).count();
        let (count, quorum) = (stay.len(), stay.len() / 2 + 1);
        if ready < quorum {
            return Err(Rejection::Precondition(format!(
                "can't remove member from the raft: this would result in a loss of quorum: \
                 managers that stay: {count}, ready of them: {ready}, needed: {quorum}; bring \
                 others up or promote a node first"
            )));
        }
        Ok(())
    }

    pub(super) fn node_remove(&mut self, id: &NodeId, force: bool) -> Applied {
        let node = self.node(id)?;
        if node.manager.is_some() {
            return Err(Rejection::Precondition(format!(
                "node {id} is a cluster manager and is a member of the raft cluster. It must be \
                 demoted to worker before removal"
            )));
        }
        if node.status.state == NodeState::Ready && !force {
            return Err(Rejection::Precondition(format!(
                "node {id} is not down and can't be removed"
            )));
        }
        let mut cluster = Cluster::clone(self.cluster()?);
        if cluster.trust.next.as_mut().is_some_and(|next| next.moved.remove(id)) {
            self.write_cluster(cluster);
        }
        self.drop_node(id);
        Ok(0)
    }

    /// Takes a node out of the swarm. Nobody can tell any more how its tasks end.
    pub(super) fn drop_node(&mut self, id: &NodeId) {
        let tasks = self.state.tasks_of_node(id);
        let live: Vec<Task> = tasks
            .filter(|task| !task.status.state.is_terminal())
            .map(|task| Task::clone(task))
            .collect();
        for task in live {
            let container = task.status.container.clone();
            let (at, state, message) = (self.now, TaskState::Orphaned, String::from(DELETED));
            let status = TaskStatus { at, state, message, err: None, container };
            self.write_task(Task { status, ..task });
        }
        self.state.remove_node(id);
        self.changes.push(Change::Node(*id));
    }

    /// Records what is new in each report; a report that says nothing new writes nothing.
    pub(super) fn node_reports(&mut self, reports: &[NodeReport]) -> u64 {
        for report in reports {
            let Some(old) = self.state.nodes.get(&report.id) else { continue };
            let mut node = Node::clone(old);
            if let Some(description) = &report.description
                && is_bounded(description)
            {
                node.description = description.clone();
            }
            if let Some(status) = &report.status {
                node.status = status.clone();
            }
            if let Some(advertise) = &report.advertise
                && is_address(advertise)
            {
                node.advertise.clone_from(advertise);
                if let Some(manager) = &mut node.manager {
                    manager.addr.clone_from(advertise);
                }
            }
            if node != **old {
                self.write_node(node);
            }
        }
        0
    }

    /// The node to change.
    pub(super) fn node(&self, id: &NodeId) -> Result<Node, Rejection> {
        let found = self.state.nodes.get(id);
        found
            .map(|node| Node::clone(node))
            .ok_or_else(|| Rejection::NotFound { kind: Kind::Node, what: format!("{id}") })
    }

    pub(super) fn write_node(&mut self, mut node: Node) -> u64 {
        node.meta.touch(self.now);
        let version = node.meta.version;
        self.changes.push(Change::Node(node.id));
        self.state.put_node(node);
        version
    }
}

/// What a node is told that is there already: the same role changes nothing.
fn same_again(known: &Node, join: &NodeJoin) -> Applied {
    match (known.manager.is_some(), join.manager.is_some()) {
        (true, false) => Err(Rejection::Precondition(format!(
            "node {} is a manager already; demote it to make it a worker",
            known.id
        ))),
        (false, true) => Err(Rejection::Precondition(format!(
            "node {} is a worker already; promote it to make it a manager",
            known.id
        ))),
        _ => Ok(known.meta.version),
    }
}

fn check_joiner(join: &NodeJoin) -> Result<(), Rejection> {
    let invalid = |text: String| Err(Rejection::Invalid(text));
    if (join.spec.role == Role::Manager) != join.manager.is_some() {
        return invalid(String::from(
            "a node that joins as a manager, and no other, has a Raft id and keys of the ring",
        ));
    }
    if join.public_key.is_empty() || join.public_key.len() > limits::PUBLIC_KEY_BYTES {
        return invalid(format!(
            "a node's public key has 1 to {} bytes, this one {}",
            limits::PUBLIC_KEY_BYTES,
            join.public_key.len()
        ));
    }
    if join.advertise.len() > limits::ADDRESS_BYTES || join.addr.len() > limits::ADDRESS_BYTES {
        return invalid(format!("a node's address has at most {} bytes", limits::ADDRESS_BYTES));
    }
    if !is_bounded(&join.description) {
        return invalid(format!(
            "what a node says of itself (labels of its engine, plugins, resources) has at most {} \
             bytes; give it fewer",
            limits::DESCRIPTION_BYTES
        ));
    }
    if join.manager.is_some() && (!is_key(&join.seal_key) || join.advertise.is_empty()) {
        return invalid(String::from(
            "a manager needs a key to seal the ring's keys to, and an advertised address",
        ));
    }
    Ok(())
}

fn check_spec(spec: &NodeSpec) -> Result<(), Rejection> {
    check_labels(&spec.labels)?;
    if let Some(name) = &spec.name
        && name.chars().count() > limits::NAME_CHARS
    {
        return Err(Rejection::Invalid(format!(
            "node names have at most {} characters",
            limits::NAME_CHARS
        )));
    }
    Ok(())
}

fn is_key(key: &[u8; 32]) -> bool {
    *key != [0; 32]
}

pub(super) fn is_address(text: &str) -> bool {
    !text.is_empty() && text.len() <= limits::ADDRESS_BYTES
}

fn is_bounded(description: &NodeDescription) -> bool {
    codec::length(description) <= limits::DESCRIPTION_BYTES
}
