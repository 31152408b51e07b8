//! One agent's session: what it has to run, the payloads for its shims, what it reports.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use skep_core::assign::{AssignedGrant, Assigner, grants};
use skep_core::id::{MaterialId, NodeId, TaskId};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval};

use super::audit::Offer;
use super::dispatch::{Due, Place};
use super::{Manager, failed, stopped};
use crate::gate::Refusal;
use crate::limits::SESSION_BEAT;
use crate::seal::{ShimSeal, seal_to_shim};
use crate::wire::audit::Portion;
use crate::wire::control::SessionNews;
use crate::wire::session::{Directory, FromAgent, Hello, ToAgent};
use crate::wire::shim::{DeliveredItem, Delivery};

/// Messages of an agent taken at once.
const NEWS: usize = 512;

/// Both ends of an agent's session as its manager holds them.
#[derive(Debug)]
pub struct Ends {
    /// To the agent.
    pub orders: mpsc::Sender<ToAgent>,
    /// From the agent.
    pub news: mpsc::Receiver<FromAgent>,
    /// To the leader's control loop.
    pub events: mpsc::Sender<SessionNews>,
}

/// A shim that takes payloads.
#[derive(Debug)]
struct Shim {
    key: [u8; 32],
    held: BTreeMap<MaterialId, u64>,
    sequence: u64,
}

struct Session<'a> {
    manager: &'a Manager,
    node: NodeId,
    orders: mpsc::Sender<ToAgent>,
    assigner: Assigner,
    place: Place<'a>,
    shims: HashMap<TaskId, Shim>,
    /// Shims whose payloads could not be sealed: tried again with the next heartbeat.
    unsealed: BTreeSet<TaskId>,
    /// The Raft id that the agent was last told; none before the first time.
    role: Option<u64>,
    /// When it was passed on last that the agent was heard of.
    told: Instant,
    events: mpsc::Sender<SessionNews>,
}

/// Holds the session of the agent on `node` until either side ends it.
pub async fn serve(
    manager: &Manager,
    node: NodeId,
    hello: Hello,
    addr: String,
    ends: Ends,
    mut stop: watch::Receiver<bool>,
) {
    let Ends { orders, mut news, events } = ends;
    let mut directory = manager.peers.book().directory();
    directory.mark_changed();
    let mut session = Session {
        manager,
        node,
        orders,
        assigner: Assigner::new(node),
        place: manager.dispatch.open(node),
        shims: HashMap::new(),
        unsealed: BTreeSet::new(),
        role: None,
        told: Instant::now(),
        events,
    };
    let (description, advertise) = (Box::new(hello.description), hello.advertise);
    let up = SessionNews::Up { node, addr, description, advertise };
    // First of all: a manager whose address has changed gets no log before the leader knows it.
    if session.events.send(up).await.is_err() || session.events.send(session.heard()).await.is_err()
    {
        return;
    }
    // A manager that was demoted knows it of itself, and those that stay confirm it nothing more.
    if node == manager.node && session.is_dismissed() {
        session.tell_role().await;
        return;
    }
    // What a manager that was cut off for a while knows may be over: a node that is told of it
    // would run what runs elsewhere.
    if manager.confirm().await.is_err() || !session.tell_role().await || !session.assign().await {
        return;
    }
    let mut heartbeat = interval(SESSION_BEAT);
    let mut batch = Vec::new();
    loop {
        let alive = tokio::select! {
            biased;
            () = stopped(&mut stop) => false,
            due = session.place.due() => session.catch_up(due).await,
            Ok(()) = directory.changed() => {
                let latest = directory.borrow_and_update().clone();
                session.introduce(latest).await
            }
            taken = news.recv_many(&mut batch, NEWS) => {
                if batch.contains(&FromAgent::Leave) {
                    let _ = session.events.send(SessionNews::Closed(node)).await;
                    return;
                }
                taken > 0 && session.hear(std::mem::take(&mut batch)).await
            }
            _ = heartbeat.tick() => {
                session.beat().await && session.seal_again().await
            }
        };
        if !alive {
            return;
        }
    }
}

impl Session<'_> {
    async fn introduce(&self, managers: Directory) -> bool {
        self.orders.send(ToAgent::Directory(managers)).await.is_ok()
    }

    /// Passes on that the agent was heard of, unless that was done a moment ago. At once or not at
    /// all: later it would count as heard of when it was silent already.
    fn tell_heard(&mut self) {
        if self.told.elapsed() >= SESSION_BEAT / 2 {
            self.told = Instant::now();
            // A full queue means that the loop is busy, not that the node is gone.
            let _ = self.events.try_send(self.heard());
        }
    }

    fn heard(&self) -> SessionNews {
        SessionNews::Heard { node: self.node, by: self.manager.node }
    }

    async fn beat(&self) -> bool {
        self.orders.send(ToAgent::Beat).await.is_ok()
    }

    /// Whether this manager's own state says that the node is a manager no more. Its Raft id is
    /// never given again, so that cannot be out of date.
    fn is_dismissed(&self) -> bool {
        self.manager
            .raft
            .view(|state| state.node(&self.node).is_some_and(|node| node.manager.is_none()))
    }

    /// Tells the node what it is, if that is news. False if it is no member any more.
    async fn tell_role(&mut self) -> bool {
        let role = self.manager.raft.view(|state| {
            let node = state.node(&self.node)?;
            Some(node.manager.as_ref().map_or(0, |manager| manager.raft_id))
        });
        let Some(raft_id) = role else { return false };
        if self.role.replace(raft_id) == Some(raft_id) {
            return true;
        }
        self.orders.send(ToAgent::Role { raft_id }).await.is_ok()
    }

    async fn assign(&mut self) -> bool {
        let (raft, assigner) = (&self.manager.raft, &mut self.assigner);
        match raft.view(|state| assigner.diff(state)) {
            Some(diff) => {
                self.place.note(&diff);
                for id in &diff.remove {
                    self.shims.remove(id);
                }
                self.orders.send(ToAgent::Assign(diff)).await.is_ok()
            }
            None => true,
        }
    }

    async fn catch_up(&mut self, due: Due) -> bool {
        if due.role && !self.tell_role().await {
            return false;
        }
        if (due.tasks || due.materials) && !self.assign().await {
            return false;
        }
        if !due.materials {
            return true;
        }
        let ids: Vec<TaskId> = self.shims.keys().copied().collect();
        for id in ids {
            if !self.deliver(id).await {
                return false;
            }
        }
        true
    }

    async fn hear(&mut self, batch: Vec<FromAgent>) -> bool {
        let mut shims = Vec::new();
        self.tell_heard();
        for news in batch {
            match news {
                FromAgent::Reports(reports) => {
                    let (manager, node) = (self.manager, self.node);
                    manager.raft.view(|state| manager.dispatch.report(state, node, reports));
                }
                FromAgent::Shim { task, key, held, sequence } => {
                    let held = held.into_iter().collect();
                    self.shims.insert(task, Shim { key, held, sequence });
                    shims.push(task);
                }
                FromAgent::ShimGone { task } => {
                    self.shims.remove(&task);
                }
                FromAgent::Audit { batch, portions } => self.take_audit(batch, portions),
                FromAgent::Beat
                | FromAgent::Hello(_)
                | FromAgent::Held { .. }
                | FromAgent::Leave => {}
            }
        }
        for task in shims {
            if !self.deliver(task).await {
                return false;
            }
        }
        true
    }

    /// Hands an agent's audit to those who store it, as far as the state knows of no other node
    /// for its tasks.
    fn take_audit(&self, batch: u64, mut portions: Vec<Portion>) {
        let node = self.node;
        self.manager.raft.view(|state| {
            portions.retain(|portion| {
                state.task(&portion.task).is_none_or(|task| task.node == Some(node))
            });
        });
        portions.iter_mut().for_each(|portion| portion.node = node);
        self.manager.audits.offer(Offer { batch, portions, orders: self.orders.clone() });
    }

    async fn seal_again(&mut self) -> bool {
        for id in std::mem::take(&mut self.unsealed) {
            if !self.deliver(id).await {
                return false;
            }
        }
        true
    }

    /// Delivers what a shim should hold and does not.
    async fn deliver(&mut self, id: TaskId) -> bool {
        let node = self.node;
        let wanted = self.manager.raft.view(|state| {
            // Only what the state says runs here is sealed, whoever asks.
            let task = state.task(&id).filter(|task| task.node == Some(node))?;
            Some(grants(state, task))
        });
        let Some(wanted) = wanted else {
            // It spoke up after its task was forgotten.
            self.shims.remove(&id);
            return true;
        };
        let Some(shim) = self.shims.get(&id) else { return true };
        let mut missing: BTreeMap<MaterialId, AssignedGrant> = BTreeMap::new();
        for grant in wanted {
            if shim.held.get(&grant.material).is_none_or(|held| *held < grant.version) {
                missing.insert(grant.material, grant);
            }
        }
        if missing.is_empty() && !shim.held.is_empty() {
            return true;
        }
        let sequence = shim.sequence + 1;
        match self.seal(id, &shim.key, sequence, missing.values()) {
            Ok(delivery) => {
                if let Some(shim) = self.shims.get_mut(&id) {
                    shim.sequence = sequence;
                    shim.held.extend(delivery.items.iter().map(|i| (i.material, i.version)));
                }
                self.orders.send(ToAgent::Deliver { task: id, delivery }).await.is_ok()
            }
            Err(error) => {
                tracing::error!(task = %id, %error, "payloads of a task cannot be delivered");
                self.unsealed.insert(id);
                true
            }
        }
    }

    /// Opens each payload in protected memory and seals it to the shim, one at a time.
    fn seal<'g>(
        &self,
        task: TaskId,
        key: &[u8; 32],
        sequence: u64,
        grants: impl Iterator<Item = &'g AssignedGrant>,
    ) -> Result<Delivery, Refusal> {
        let mut items = Vec::new();
        for grant in grants {
            let (id, version) = (grant.material, grant.version);
            let sealed = self.manager.raft.view(|state| state.payload(&id, version).cloned());
            // Removed meanwhile: the next change of the state says so.
            let Some(sealed) = sealed else { continue };
            let to = ShimSeal {
                cluster: self.manager.cluster,
                node: self.node,
                task,
                key,
                material: id,
                version,
                sequence,
            };
            let sealed = self
                .manager
                .open(grant.kind, id, version, &sealed)
                .and_then(|plain| seal_to_shim(&to, plain))
                .map_err(|e| failed("cannot seal a payload to a supervisor", e))?;
            items.push(DeliveredItem {
                material: id,
                version,
                created: grant.created,
                size: grant.size,
                sealed,
            });
        }
        Ok(Delivery { sequence, items })
    }
}
