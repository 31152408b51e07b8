//! Placement preferences: a service's tasks are spread evenly over the values of a label, within
//! each value over those of the next label, and so on down to nodes.

use alloc::collections::{BTreeMap, BinaryHeap};
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::filter::Pipeline;
use super::loads::Loads;
use crate::id::{NodeId, ServiceId};
use crate::model::node::Node;
use crate::model::task::Placement;

/// A label to spread over. A node without it counts as one with the empty value.
#[derive(Debug, Clone, Copy)]
enum Key<'a> {
    Node(&'a str),
    Engine(&'a str),
}

impl<'a> Key<'a> {
    /// The label that a preference names; none if it names something else, which Docker passes
    /// over.
    fn parse(text: &'a str) -> Option<Self> {
        let after = |prefix: &str| {
            let (head, name) = text.split_at_checked(prefix.len())?;
            (head.eq_ignore_ascii_case(prefix) && !name.is_empty()).then_some(name)
        };
        after("node.labels.").map(Self::Node).or_else(|| after("engine.labels.").map(Self::Engine))
    }

    fn value(self, node: &Node) -> &str {
        let (labels, name) = match self {
            Self::Node(name) => (&node.spec.labels, name),
            Self::Engine(name) => (&node.description.engine_labels, name),
        };
        labels.get(name).map_or("", String::as_str)
    }
}

/// Tasks of the service, all tasks, and the node that has them.
type Rank = (u64, u64, NodeId);

/// A node for the tree, with whether it takes a task now.
type Leaf<'a> = (&'a Node, Rank, bool);

/// The nodes for one template's tasks as a tree: a fork for each label, nodes below.
#[derive(Debug)]
pub(super) enum Spread {
    /// Branches that may have room, by their tasks of the service.
    Fork { order: BinaryHeap<Reverse<(u64, usize)>>, branches: Vec<Spread> },
    /// Nodes with room as they were ranked last, the best first. By now they may have more.
    Nodes(BinaryHeap<Reverse<Rank>>),
}

impl Spread {
    /// The tree for a placement, if that has preferences.
    pub(super) fn new(
        service: &ServiceId,
        placement: Option<&Placement>,
        loads: &Loads<'_>,
        pipeline: &Pipeline<'_>,
    ) -> Option<Self> {
        let keys: Vec<Key<'_>> = placement?.spread.iter().filter_map(|p| Key::parse(p)).collect();
        if keys.is_empty() {
            return None;
        }
        // What nodes have that take no more counts for their branch all the same.
        let leaves = loads.all().map(|(node, load)| {
            let rank = (load.tasks_of(service), load.tasks(), node.id);
            (node, rank, pipeline.admits(node, load))
        });
        Some(Self::grow(leaves.collect(), &keys))
    }

    fn grow(leaves: Vec<Leaf<'_>>, keys: &[Key<'_>]) -> Self {
        let Some((key, keys)) = keys.split_first() else {
            let admitted = leaves.into_iter().filter(|(.., is_admitted)| *is_admitted);
            return Self::Nodes(admitted.map(|(_, rank, _)| Reverse(rank)).collect());
        };
        let mut by_value: BTreeMap<&str, Vec<Leaf<'_>>> = BTreeMap::new();
        for leaf in leaves {
            by_value.entry(key.value(leaf.0)).or_default().push(leaf);
        }
        let count = |leaves: &Vec<Leaf<'_>>| leaves.iter().map(|(_, rank, _)| rank.0).sum();
        let order = by_value.values().map(count).enumerate().map(|(n, count)| Reverse((count, n)));
        let order = order.collect();
        let branches = by_value.into_values().map(|leaves| Self::grow(leaves, keys)).collect();
        Self::Fork { order, branches }
    }

    /// The best node that has room. The caller puts a task on it before it asks again.
    pub(super) fn next(
        &mut self,
        service: &ServiceId,
        loads: &Loads<'_>,
        pipeline: &Pipeline<'_>,
    ) -> Option<NodeId> {
        match self {
            Self::Fork { order, branches } => loop {
                let Reverse((count, number)) = order.pop()?;
                // Loads only grow while one template is placed: a branch that is full stays full.
                let branch = branches.get_mut(number)?;
                if let Some(node) = branch.next(service, loads, pipeline) {
                    order.push(Reverse((count + 1, number)));
                    return Some(node);
                }
            },
            Self::Nodes(ranks) => loop {
                let Reverse(old) = ranks.pop()?;
                let Some((node, load)) = loads.node(&old.2) else { continue };
                if !pipeline.admits(node, load) {
                    continue;
                }
                let rank = (load.tasks_of(service), load.tasks(), old.2);
                ranks.push(Reverse(rank));
                if rank == old {
                    return Some(node.id);
                }
            },
        }
    }
}
