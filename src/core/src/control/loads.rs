//! Nodes by what they carry, with what a step puts on them.

use alloc::collections::{BTreeMap, BTreeSet, BinaryHeap, btree_set};
use core::cmp::Reverse;
use core::iter::Peekable;
use core::ops::Bound;

use super::filter::Pipeline;
use crate::id::{NodeId, ServiceId};
use crate::model::node::Node;
use crate::model::task::Task;
use crate::state::{NodeLoad, State};

/// Loads of all nodes with what this step puts on them.
#[derive(Debug)]
pub(super) struct Loads<'a> {
    state: &'a State,
    added: BTreeMap<NodeId, NodeLoad>,
    /// Exactly the nodes of `added`, by how many tasks they will have.
    by_load: BTreeSet<(u64, NodeId)>,
}

/// What one node carries: known already, and added in this step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load<'a> {
    known: Option<&'a NodeLoad>,
    added: Option<&'a NodeLoad>,
}

impl Load<'_> {
    fn sum(&self, of: impl Fn(&NodeLoad) -> u64) -> u64 {
        let parts = self.known.into_iter().chain(self.added);
        parts.map(of).fold(0, u64::saturating_add)
    }

    pub(super) fn tasks(&self) -> u64 {
        self.sum(|load| load.tasks)
    }

    pub(super) fn tasks_of(&self, service: &ServiceId) -> u64 {
        self.sum(|load| load.by_service.get(service).copied().unwrap_or(0))
    }

    pub(super) fn nano_cpus(&self) -> u64 {
        self.sum(|load| load.nano_cpus)
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.sum(|load| load.memory_bytes)
    }

    pub(super) fn generic(&self, kind: &str) -> u64 {
        self.sum(|load| load.generic.get(kind).copied().unwrap_or(0))
    }
}

impl<'a> Loads<'a> {
    pub(super) fn new(state: &'a State) -> Self {
        Self { state, added: BTreeMap::new(), by_load: BTreeSet::new() }
    }

    fn of(&self, node: &NodeId) -> Load<'_> {
        Load { known: self.state.load(node), added: self.added.get(node) }
    }

    pub(super) fn add(&mut self, node: NodeId, task: &Task) {
        let before = self.of(&node).tasks();
        self.added.entry(node).or_default().add(task);
        self.by_load.remove(&(before, node));
        self.by_load.insert((self.of(&node).tasks(), node));
    }

    /// A node with its load.
    pub(super) fn node(&self, id: &NodeId) -> Option<(&Node, Load<'_>)> {
        Some((self.state.node(id)?, self.of(id)))
    }

    /// Every node with its load.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Node, Load<'_>)> {
        self.state.nodes().map(|node| (&**node, self.of(&node.id)))
    }
}

/// The search for nodes for one template's tasks: the fewest tasks of the service first, then
/// the fewest tasks. Nodes without any task of the service come first, and mostly one of the
/// first will do; only when there are no more of those are all nodes ranked.
#[derive(Debug)]
pub(super) struct Search<'a> {
    service: ServiceId,
    untouched: Peekable<btree_set::Iter<'a, (u64, NodeId)>>,
    last: Option<(u64, NodeId)>,
    ranked: Option<BinaryHeap<Reverse<(u64, u64, NodeId)>>>,
}

impl<'a> Search<'a> {
    pub(super) fn new(state: &'a State, service: ServiceId) -> Self {
        let untouched = state.index.by_load.iter().peekable();
        Self { service, untouched, last: None, ranked: None }
    }

    /// The best node that the pipeline admits. It is not found again unless it is put back.
    pub(super) fn next(&mut self, loads: &Loads<'_>, pipeline: &Pipeline<'_>) -> Option<NodeId> {
        let admits = |id: &NodeId| {
            loads.state.node(id).is_some_and(|node| pipeline.admits(node, loads.of(id)))
        };
        if self.ranked.is_none() {
            while let Some(id) = self.next_by_load(loads) {
                if loads.of(&id).tasks_of(&self.service) == 0 && admits(&id) {
                    return Some(id);
                }
            }
            let all = loads.all().filter(|(node, load)| pipeline.admits(node, *load));
            let ranks = all.map(|(node, load)| Reverse(self.rank(node.id, load)));
            self.ranked = Some(ranks.collect());
        }
        let ranked = self.ranked.as_mut()?;
        loop {
            let Reverse((_, _, id)) = ranked.pop()?;
            if admits(&id) {
                return Some(id);
            }
        }
    }

    /// Lets a node be found again, with its load as it is now.
    pub(super) fn put_back(&mut self, loads: &Loads<'_>, node: NodeId) {
        let rank = self.rank(node, loads.of(&node));
        // Before there are ranks it comes again where its load puts it.
        if let Some(ranked) = &mut self.ranked {
            ranked.push(Reverse(rank));
        }
    }

    fn rank(&self, node: NodeId, load: Load<'_>) -> (u64, u64, NodeId) {
        (load.tasks_of(&self.service), load.tasks(), node)
    }

    /// The next node in the order of load, be it changed in this step or not.
    fn next_by_load(&mut self, loads: &Loads<'_>) -> Option<NodeId> {
        while self.untouched.next_if(|(_, id)| loads.added.contains_key(id)).is_some() {}
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let changed = loads.by_load.range((after, Bound::Unbounded)).next();
        let next = match (self.untouched.peek().copied(), changed) {
            (Some(untouched), Some(changed)) if changed < untouched => changed,
            (Some(untouched), _) => {
                self.untouched.next();
                untouched
            }
            (None, changed) => changed?,
        };
        self.last = Some(*next);
        Some(next.1)
    }
}
