//! One agent's session: what it has to run, what its shims hold, what it reports.

mod orders;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use skep_core::assign::Assigner;
use skep_core::id::{NodeId, TaskId};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval};

use super::audit::Offer;
use super::dispatch::{Due, Place};
use super::holdings::Shims;
use super::{Manager, stopped};
use crate::limits::SESSION_BEAT;
use crate::wire::audit::Portion;
use crate::wire::control::SessionNews;
use crate::wire::session::{Directory, FromAgent, Hello, ToAgent};

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

struct Session<'a> {
    manager: &'a Manager,
    node: NodeId,
    orders: mpsc::Sender<ToAgent>,
    assigner: Assigner,
    place: Place<'a>,
    shims: Shims<'a>,
    /// Shims whose payloads could not be sealed, or that refused an order: tried again with the
    /// next heartbeat.
    later: BTreeSet<TaskId>,
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
        shims: manager.holdings.open(node),
        later: BTreeSet::new(),
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
                session.beat().await && session.try_again().await
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
                    self.shims.gone(id);
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
        if (due.tasks || due.concerns_shims()) && !self.assign().await {
            return false;
        }
        let concerned = if due.all_shims { self.shims.ids() } else { Vec::from_iter(due.shims) };
        self.supply_all(concerned).await
    }

    async fn supply_all(&mut self, tasks: impl IntoIterator<Item = TaskId>) -> bool {
        for task in tasks {
            if !self.supply(task).await {
                return false;
            }
        }
        true
    }

    async fn hear(&mut self, batch: Vec<FromAgent>) -> bool {
        let mut concerned = BTreeSet::new();
        self.tell_heard();
        // A sign of life may come before an agent that has just begun knows its shims.
        let has_told = batch.iter().any(|news| *news != FromAgent::Beat);
        for news in batch {
            match news {
                FromAgent::Reports(reports) => {
                    let (manager, node) = (self.manager, self.node);
                    manager.raft.view(|state| manager.dispatch.report(state, node, reports));
                }
                // Tasks that the state does not have here need nothing, and there may be many.
                FromAgent::Shim { task, .. } | FromAgent::Held { task, .. }
                    if !self.is_own(&task) => {}
                FromAgent::Shim { task, key, held, sequence } => {
                    self.shims.speaks_up(task, key, held, sequence);
                    self.later.remove(&task);
                    concerned.insert(task);
                }
                FromAgent::Held { task, held, sequence, refused: None } => {
                    self.shims.answers(&task, held, sequence);
                    concerned.insert(task);
                }
                FromAgent::Held { task, held, sequence, refused: Some(reason) } => {
                    if self.shims.refuses(&task, held, sequence) {
                        tracing::warn!(%task, reason, "a supervisor refused what it was sent");
                    }
                    self.later.insert(task);
                }
                FromAgent::ShimGone { task } => {
                    self.shims.gone(&task);
                    self.later.remove(&task);
                }
                FromAgent::Audit { batch, portions } => self.take_audit(batch, portions),
                FromAgent::Beat | FromAgent::Hello(_) | FromAgent::Leave => {}
            }
        }
        if has_told {
            self.shims.has_spoken();
        }
        concerned.retain(|task| !self.later.contains(task));
        self.supply_all(concerned).await
    }

    /// Whether the state says that a task is on this node.
    fn is_own(&self, id: &TaskId) -> bool {
        let (raft, node) = (&self.manager.raft, self.node);
        raft.view(|state| state.task(id).is_some_and(|task| task.node == Some(node)))
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
        let orders = self.orders.clone();
        self.manager.audits.offer(Offer { node, batch, portions, orders });
    }

    async fn try_again(&mut self) -> bool {
        let later = std::mem::take(&mut self.later);
        self.supply_all(later).await
    }
}
