//! What all sessions of a manager share: each hears of the changes that concern its node, and what
//! their agents report goes to the log in common. A session that looked at every change, and
//! proposed for itself, would make a thousand sessions do everything a thousand times.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_core::apply::Change;
use skep_core::assign::AssignmentDiff;
use skep_core::command::{Command, TaskReport};
use skep_core::id::{MaterialId, NodeId, TaskId};
use skep_core::state::State;
use skep_raft::Event;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::holdings::concerned;
use super::{Manager, stopped};
use crate::gate::Refusal;
use crate::limits::{REPORTS, SESSION_BEAT};

/// What a session has to look at anew.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Due {
    /// What its node is.
    pub(super) role: bool,
    /// What its node has to run.
    pub(super) tasks: bool,
    /// What the shims of these tasks should hold.
    pub(super) shims: BTreeSet<TaskId>,
    /// What all its node's shims should hold.
    pub(super) all_shims: bool,
}

impl Due {
    fn all() -> Self {
        Self { role: true, tasks: true, shims: BTreeSet::new(), all_shims: true }
    }

    fn role() -> Self {
        Self { role: true, ..Self::default() }
    }

    fn tasks() -> Self {
        Self { tasks: true, ..Self::default() }
    }

    /// Whether what some shim should hold has changed.
    pub(super) fn concerns_shims(&self) -> bool {
        self.all_shims || !self.shims.is_empty()
    }
}

/// Where one session is told that something is due.
#[derive(Debug, Default)]
struct Bell {
    due: Mutex<Due>,
    rung: Notify,
}

impl Bell {
    fn ring(&self, due: &Due) {
        let mut held = lock(&self.due);
        held.role |= due.role;
        held.tasks |= due.tasks;
        held.shims.extend(&due.shims);
        held.all_shims |= due.all_shims;
        drop(held);
        self.rung.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sessions by node; a node may have two for a moment, so they are numbered.
#[derive(Debug, Default)]
struct Table {
    bells: BTreeMap<(NodeId, u64), Arc<Bell>>,
    /// Tasks that nodes were told of and which session did: the state forgets where a task was.
    told: HashMap<TaskId, (NodeId, u64)>,
    opened: u64,
}

impl Table {
    fn ring(&self, node: NodeId, due: &Due) {
        for bell in self.bells.range((node, 0)..=(node, u64::MAX)).map(|(_, bell)| bell) {
            bell.ring(due);
        }
    }

    fn ring_all(&self, due: &Due) {
        self.bells.values().for_each(|bell| bell.ring(due));
    }

    /// Rings for what one entry of the log changed.
    fn apply(&self, state: &State, changes: &[Change]) {
        let mut materials: Vec<MaterialId> = Vec::new();
        for change in changes {
            match change {
                Change::Node(id) => self.ring(*id, &Due::role()),
                Change::Task(id) => {
                    let node = match state.task(id) {
                        Some(task) => task.node,
                        None => self.told.get(id).map(|(node, _)| *node),
                    };
                    if let Some(node) = node {
                        self.ring(node, &Due::tasks());
                    }
                }
                Change::Material(id) => materials.push(*id),
                Change::Cluster | Change::Service(_) => {}
            }
        }
        self.ring_holders(state, &materials);
    }

    /// Rings for the tasks that may hold one of these. One that was just made is granted to nobody
    /// yet; others may be held by tasks that are older than their service, or have none any more.
    fn ring_holders(&self, state: &State, materials: &[MaterialId]) {
        let mut by_node: BTreeMap<NodeId, BTreeSet<TaskId>> = BTreeMap::new();
        for (id, task) in concerned(state, materials) {
            if let Some(node) = task.node {
                by_node.entry(node).or_default().insert(id);
            }
        }
        for (node, shims) in by_node {
            self.ring(node, &Due { shims, ..Due::default() });
        }
    }
}

/// What the sessions of one manager share.
#[derive(Debug, Default)]
pub(super) struct Dispatch {
    table: Mutex<Table>,
    /// The latest report of each task that the log has not taken yet.
    reports: Mutex<BTreeMap<TaskId, TaskReport>>,
    reported: Notify,
}

impl Dispatch {
    /// A place for the session of a node. Everything is due at first.
    pub(super) fn open(&self, node: NodeId) -> Place<'_> {
        let bell = Arc::new(Bell::default());
        bell.ring(&Due::all());
        let mut table = lock(&self.table);
        table.opened += 1;
        let key = (node, table.opened);
        table.bells.insert(key, Arc::clone(&bell));
        Place { dispatch: self, key, bell, told: Vec::new() }
    }

    /// Takes what the agent of a node observed, as far as the state knows its tasks there.
    pub(super) fn report(&self, state: &State, node: NodeId, reports: Vec<TaskReport>) {
        let is_own = |report: &TaskReport| {
            state.task(&report.id).is_some_and(|task| task.node == Some(node))
        };
        let mut waiting = lock(&self.reports);
        for report in reports.into_iter().filter(is_own) {
            // The session's node is known by its connection; what a report says does not count.
            waiting.insert(report.id, TaskReport { node, ..report });
        }
        drop(waiting);
        self.reported.notify_one();
    }

    fn take(&self) -> Vec<TaskReport> {
        let mut waiting = lock(&self.reports);
        std::iter::from_fn(|| waiting.pop_first()).map(|(_, report)| report).take(REPORTS).collect()
    }

    /// Puts back what the log did not take, unless there is something later.
    fn put_back(&self, reports: Vec<TaskReport>) {
        let mut waiting = lock(&self.reports);
        for report in reports {
            waiting.entry(report.id).or_insert(report);
        }
    }
}

/// A session's place. Dropping it gives it up.
#[derive(Debug)]
pub(super) struct Place<'a> {
    dispatch: &'a Dispatch,
    key: (NodeId, u64),
    bell: Arc<Bell>,
    told: Vec<TaskId>,
}

impl Place<'_> {
    /// Waits until something is due. Cancelling it loses nothing.
    pub(super) async fn due(&self) -> Due {
        loop {
            let due = std::mem::take(&mut *lock(&self.bell.due));
            if due != Due::default() {
                return due;
            }
            self.bell.rung.notified().await;
        }
    }

    /// Notes what the node is told.
    pub(super) fn note(&mut self, diff: &AssignmentDiff) {
        let mut table = lock(&self.dispatch.table);
        for assigned in &diff.update {
            if table.told.insert(assigned.task.id, self.key) != Some(self.key) {
                self.told.push(assigned.task.id);
            }
        }
        for id in &diff.remove {
            table.told.remove(id);
        }
        if !diff.remove.is_empty() {
            self.told.retain(|id| !diff.remove.contains(id));
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut table = lock(&self.dispatch.table);
        table.bells.remove(&self.key);
        for id in &self.told {
            // A newer session of the node may have told it too.
            if table.told.get(id) == Some(&self.key) {
                table.told.remove(id);
            }
        }
    }
}

/// Tells sessions what concerns them, and passes on what they report, until told to stop.
pub async fn run(manager: &Manager, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        () = stopped(&mut stop) => {}
        () = follow(manager) => {}
        () = pass_on(manager) => {}
    }
}

async fn follow(manager: &Manager) {
    let mut changes = manager.raft.subscribe();
    let dispatch = &manager.dispatch;
    // What was applied before is nobody's loss: a session begins with everything due, but one may
    // have opened a moment ago.
    lock(&dispatch.table).ring_all(&Due::all());
    while let Some(event) = changes.next().await {
        match event {
            Event::Rescan => {
                lock(&dispatch.table).ring_all(&Due::all());
                forget_nodes(manager);
            }
            Event::Applied(applied) => {
                manager.raft.view(|state| lock(&dispatch.table).apply(state, &applied.changes));
                if applied.changes.iter().any(|change| matches!(change, Change::Node(_))) {
                    forget_nodes(manager);
                }
            }
        }
    }
}

/// Forgets what shims of nodes held that are members no more.
fn forget_nodes(manager: &Manager) {
    manager.raft.view(|state| manager.holdings.forget(|node| state.node(node).is_some()));
}

async fn pass_on(manager: &Manager) {
    let dispatch = &manager.dispatch;
    loop {
        let reports = dispatch.take();
        if reports.is_empty() {
            dispatch.reported.notified().await;
            continue;
        }
        match manager.propose(Command::TaskReport(reports.clone())).await {
            Ok(_) | Err(Refusal::Rejected(_)) => {}
            Err(error) => {
                tracing::warn!(%error, "reports of agents wait for the log");
                dispatch.put_back(reports);
                sleep(SESSION_BEAT).await;
            }
        }
    }
}
