//! What the tasks of this manager's sessions hold, by what their shims said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_core::assign;
use skep_core::deliver::{Order, Shim};
use skep_core::id::{MaterialId, NodeId, TaskId};
use skep_core::model::task::{Task, TaskState};
use skep_core::state::State;
use tokio::sync::watch;

use crate::limits::HOLDINGS;
use crate::wire::control::Holding;

/// A shim that takes payloads.
#[derive(Debug)]
struct Known {
    /// Its public key.
    key: [u8; 32],
    shim: Shim,
    /// Whether it was told that it refuses what it should take.
    is_warned: bool,
}

/// What is known of one node's shims.
#[derive(Debug, Default)]
struct Kept {
    /// Whether the session that knows it is there.
    is_live: bool,
    /// Whether the agent has said anything: it begins with its shims.
    has_spoken: bool,
    shims: BTreeMap<TaskId, Known>,
}

/// The sessions of a manager by node. Of one that is over, what was known last stays until there is
/// a newer one, or the node is forgotten.
#[derive(Debug)]
pub(super) struct Registry {
    nodes: Mutex<BTreeMap<NodeId, Arc<Mutex<Kept>>>>,
    moved: watch::Sender<()>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { nodes: Mutex::default(), moved: watch::Sender::new(()) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tasks that may hold one of these, or should.
pub(super) fn concerned<'a>(
    state: &'a State,
    materials: &[MaterialId],
) -> BTreeMap<TaskId, &'a Arc<Task>> {
    let wanted: BTreeSet<&MaterialId> = materials.iter().collect();
    let services = wanted.iter().flat_map(|id| state.services_holding(id));
    let services: BTreeSet<_> = services.collect();
    let tasks = services.iter().flat_map(|id| state.tasks_of_service(id));
    let is_granted =
        |task: &Task| task.spec.container.grants().any(|grant| wanted.contains(&grant.id));
    // On a member that nobody has heard of for a day, a task that is given up may run on.
    let may_run = |task: &Task, node: &NodeId| match task.status.state {
        TaskState::Orphaned => state.node(node).is_some(),
        other => !other.is_terminal(),
    };
    let may_hold =
        |task: &&Arc<Task>| task.node.is_some_and(|node| may_run(task, &node)) && is_granted(task);
    tasks.filter(may_hold).map(|task| (task.id, task)).collect()
}

impl Registry {
    /// A place for the session of a node.
    pub(super) fn open(&self, node: NodeId) -> Shims<'_> {
        let kept = Arc::new(Mutex::new(Kept { is_live: true, ..Kept::default() }));
        lock(&self.nodes).insert(node, Arc::clone(&kept));
        Shims { registry: self, node, kept }
    }

    /// Forgets nodes that are members no more.
    pub(super) fn forget(&self, is_member: impl Fn(&NodeId) -> bool) {
        lock(&self.nodes).retain(|node, _| is_member(node));
    }

    /// Tells when shims have said something.
    pub(super) fn moved(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    fn kept(&self, task: &Task) -> Option<Arc<Mutex<Kept>>> {
        lock(&self.nodes).get(&task.node?).cloned()
    }

    /// Whether a task whose session is here does not hold yet what the state says.
    pub(super) fn is_pending(&self, state: &State, task: &Task, materials: &[MaterialId]) -> bool {
        let Some(kept) = self.kept(task) else { return false };
        let kept = lock(&kept);
        kept.is_live && !kept.holding(state, task, materials).is_some_and(|found| found.complies)
    }

    /// What tasks hold of these. That they hold what they should counts only if the state is as
    /// late as was asked for.
    pub(super) fn report(
        &self,
        state: &State,
        materials: &[MaterialId],
        is_current: bool,
    ) -> Vec<Holding> {
        let tasks = concerned(state, materials);
        let found = tasks.values().filter_map(|task| {
            let kept = self.kept(task)?;
            let kept = lock(&kept);
            let found = kept.holding(state, task, materials)?;
            Some(Holding { complies: found.complies && is_current, ..found })
        });
        found.take(HOLDINGS).collect()
    }
}

impl Kept {
    /// None if this tells nothing of the task.
    fn holding(&self, state: &State, task: &Task, materials: &[MaterialId]) -> Option<Holding> {
        let node = task.node?;
        let Some(known) = self.shims.get(&task.id) else {
            // Its shim speaks up before it starts: until then nothing has gone to it.
            let is_empty =
                self.is_live && self.has_spoken && task.status.state < TaskState::Starting;
            let held = Vec::new();
            let empty = Holding { node, task: task.id, held, complies: true, is_live: true };
            return is_empty.then_some(empty);
        };
        let held = known.shim.held();
        let held = match self.is_live {
            true => held.iter().map(|(id, version)| (*id, *version)).collect(),
            false => known.shim.possible(),
        };
        let held = held.into_iter().filter(|(id, _)| materials.contains(id)).collect();
        let complies = materials.iter().all(|id| known.shim.complies(state, task, id));
        let is_live = self.is_live;
        Some(Holding { node, task: task.id, held, complies: complies && is_live, is_live })
    }
}

/// The shims of one session. Dropping it says that the session is over.
#[derive(Debug)]
pub(super) struct Shims<'a> {
    registry: &'a Registry,
    node: NodeId,
    kept: Arc<Mutex<Kept>>,
}

impl Shims<'_> {
    fn change<R>(&self, change: impl FnOnce(&mut BTreeMap<TaskId, Known>) -> R) -> R {
        let changed = change(&mut lock(&self.kept).shims);
        self.registry.moved.send_replace(());
        changed
    }

    /// The agent has said something.
    pub(super) fn has_spoken(&self) {
        if !std::mem::replace(&mut lock(&self.kept).has_spoken, true) {
            self.registry.moved.send_replace(());
        }
    }

    /// A shim is there, with what it holds and the sequence of its last order.
    pub(super) fn speaks_up(
        &self,
        task: TaskId,
        key: [u8; 32],
        held: Vec<(MaterialId, u64)>,
        sequence: u64,
    ) {
        self.change(|shims| match shims.get_mut(&task) {
            Some(known) => {
                known.key = key;
                known.shim.speaks_up(held, sequence);
            }
            None => {
                let shim = Shim::new(held, sequence);
                shims.insert(task, Known { key, shim, is_warned: false });
            }
        });
    }

    /// A shim took an order, or passed over it.
    pub(super) fn answers(&self, task: &TaskId, held: Vec<(MaterialId, u64)>, sequence: u64) {
        self.change(|shims| {
            if let Some(known) = shims.get_mut(task) {
                known.shim.answers(held, sequence);
                known.is_warned = false;
            }
        });
    }

    /// A shim refused an order. Whether that is news.
    pub(super) fn refuses(
        &self,
        task: &TaskId,
        held: Vec<(MaterialId, u64)>,
        sequence: u64,
    ) -> bool {
        self.change(|shims| {
            let Some(known) = shims.get_mut(task) else { return false };
            known.shim.speaks_up(held, sequence);
            !std::mem::replace(&mut known.is_warned, true)
        })
    }

    /// A shim is gone, or its task forgotten.
    pub(super) fn gone(&self, task: &TaskId) {
        self.change(|shims| shims.remove(task));
    }

    /// All of them.
    pub(super) fn ids(&self) -> Vec<TaskId> {
        lock(&self.kept).shims.keys().copied().collect()
    }

    /// What to send a task's shim next, and the key to seal it to. Only what the state says runs on
    /// the node is sent, whoever asks.
    pub(super) fn next(&self, state: &State, id: &TaskId) -> Option<(Order, [u8; 32])> {
        let task = state.task(id).filter(|task| task.node == Some(self.node))?;
        let kept = lock(&self.kept);
        let known = kept.shims.get(id)?;
        Some((known.shim.next(state, task)?, known.key))
    }

    /// An order was sent.
    pub(super) fn sent(&self, task: &TaskId, order: &Order) {
        if let Some(known) = lock(&self.kept).shims.get_mut(task) {
            known.shim.sent(order);
        }
    }
}

impl Drop for Shims<'_> {
    fn drop(&mut self) {
        lock(&self.kept).is_live = false;
        self.registry.moved.send_replace(());
    }
}

/// The last versions of these that the state let a task have.
pub(super) fn last_granted(
    state: &State,
    task: &Task,
    materials: &[MaterialId],
) -> Vec<(MaterialId, u64)> {
    let revoked: BTreeMap<MaterialId, u64> =
        assign::revoked_up_to(state, task).into_iter().collect();
    let grants = task.spec.container.grants().filter(|grant| materials.contains(&grant.id));
    let versions = grants.filter_map(|grant| {
        let latest = || state.material(&grant.id).map(|material| material.last_version);
        let version = grant.pin.or_else(|| revoked.get(&grant.id).copied()).or_else(latest)?;
        Some((grant.id, version))
    });
    let versions: BTreeSet<_> = versions.collect();
    versions.into_iter().collect()
}
