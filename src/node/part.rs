//! This node's part in a swarm: its agent always, and a manager while the swarm says so.

use std::sync::{Arc, Mutex, PoisonError};

use quinn::Connection;
use skep_core::apply::Change;
use skep_core::id::{ClusterId, NodeId};
use skep_core::state::State;
use skep_raft::Event;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::interval;

use super::session::Seat;
use crate::agent::Agent;
use crate::gate::Refusal;
use crate::identity::store::NodeFile;
use crate::limits::{NET_REVIEW, SESSION_NEWS};
use crate::manager::images::Images;
use crate::manager::members::tend;
use crate::manager::peers::{Book, Peers};
use crate::manager::pump::pump;
use crate::manager::reach::Reach;
use crate::manager::reception::{Desk, Requests};
use crate::manager::stopped;
use crate::manager::{Manager, audit, dispatch, leader, reseal};
use crate::net::{Admission, Closed, Net, Recorded, Visit};
use crate::wire::control::SessionNews;
use crate::wire::session::{Directory, ManagerEntry};

/// This node's part in a swarm.
#[derive(Debug)]
pub struct Swarm {
    /// The swarm.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Its agent half.
    pub agent: Arc<Agent>,
    /// Its end of the network.
    pub net: Arc<Net>,
    /// The way to the agents of other nodes.
    pub reach: Arc<dyn Reach>,
    /// Where its session is, and with that its manager half.
    pub(super) seat: Arc<Seat>,
    /// The other managers, and who they are.
    pub peers: Arc<Peers>,
    /// Its identity file as it was last written.
    pub(super) file: Mutex<NodeFile>,
    /// Address with port by which others reach it.
    pub(super) advertise: String,
    pub(super) stop: watch::Sender<bool>,
    pub(super) workers: tokio::sync::Mutex<JoinSet<()>>,
}

/// The manager half.
#[derive(Debug)]
pub struct Half {
    /// The manager.
    pub manager: Arc<Manager>,
    /// Finds images for agents.
    pub(super) images: Arc<Images>,
    /// News of sessions go here.
    pub(super) news: mpsc::Sender<SessionNews>,
    /// Turns true when the half ends.
    pub(super) stop: watch::Sender<bool>,
    workers: tokio::sync::Mutex<JoinSet<()>>,
}

impl Swarm {
    /// Its manager half, while it has one.
    #[must_use]
    pub fn half(&self) -> Option<Arc<Half>> {
        self.seat.half()
    }

    /// Its manager, while it is one.
    #[must_use]
    pub fn manager(&self) -> Option<Arc<Manager>> {
        self.half().map(|half| Arc::clone(&half.manager))
    }

    pub(super) fn set_half(&self, half: Option<Arc<Half>>) -> Option<Arc<Half>> {
        self.seat.set_half(half)
    }

    /// Its identity file as it was last written.
    #[must_use]
    pub fn file(&self) -> NodeFile {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connection of its session, while that is with another node.
    #[must_use]
    pub fn line(&self) -> Option<Connection> {
        self.seat.line()
    }

    /// Why this node counts no more, if a manager of a later incarnation was met.
    #[must_use]
    pub fn outlived(&self) -> Option<Refusal> {
        self.book().is_outlived().then(|| Refusal::Outlived(self.cluster))
    }

    /// Who the managers are.
    #[must_use]
    pub fn book(&self) -> &Arc<Book> {
        self.peers.book()
    }

    /// Address with port by which others reach it.
    #[must_use]
    pub fn advertise(&self) -> &str {
        &self.advertise
    }

    /// Stops taking part. Tasks go on.
    pub(super) async fn halt(&self) {
        self.stop.send_replace(true);
        if let Some(half) = self.set_half(None) {
            half.halt().await;
        }
        self.workers.lock().await.shutdown().await;
        self.net.close().await;
    }
}

impl Half {
    /// Starts everything that a manager does.
    pub(super) fn start(
        manager: Arc<Manager>,
        net: &Arc<Net>,
        images: Arc<Images>,
        requests: Arc<dyn Requests>,
    ) -> Arc<Self> {
        let (stop, stopped) = watch::channel(false);
        let (news, news_rx) = mpsc::channel(SESSION_NEWS);
        let (leading, leading_rx) = mpsc::channel(SESSION_NEWS);
        let mut workers = JoinSet::new();
        let (lead, stop_leading) = (Arc::clone(&manager), stopped.clone());
        workers.spawn(async move { leader::lead(&lead, leading_rx, stop_leading).await });
        let (pumping, stop_pumping) = (Arc::clone(&manager), stopped.clone());
        workers.spawn(async move { pump(&pumping, news_rx, leading, stop_pumping).await });
        let (dispatching, stop_dispatching) = (Arc::clone(&manager), stopped.clone());
        workers.spawn(async move { dispatch::run(&dispatching, stop_dispatching).await });
        workers.spawn(audit::run(Arc::clone(&manager), stopped.clone()));
        workers.spawn(reseal::run(Arc::clone(&manager), stopped.clone()));
        let (tending, stop_tending) = (Arc::clone(&manager), stopped.clone());
        workers.spawn(async move { tend(&tending, stop_tending).await });
        let keeper: Arc<dyn Admission> = Arc::new(Gatekeeper(Arc::clone(&manager)));
        let desk =
            Arc::new(Desk::new(Arc::clone(&manager), news.clone(), requests, stopped.clone()));
        let (serving, admission, stop_serving) =
            (Arc::clone(net), Arc::clone(&keeper), stopped.clone());
        workers.spawn(async move {
            if let Err(error) = serving.serve(admission, desk, stop_serving).await {
                tracing::error!(%error, "this node cannot answer others");
            }
        });
        let (following, reviewed) = (Arc::clone(&manager), Arc::clone(net));
        workers.spawn(async move { follow(&following, &reviewed, &*keeper, stopped).await });
        workers.spawn(end_when_outlived(Arc::clone(&manager), stop.clone()));
        Arc::new(Self { manager, images, news, stop, workers: tokio::sync::Mutex::new(workers) })
    }

    /// Runs something until it ends.
    pub(super) async fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.workers.lock().await.spawn(work);
    }

    /// Ends it: a leader hands over first.
    pub(super) async fn halt(&self) {
        self.manager.hand_over().await;
        self.stop.send_replace(true);
        self.manager.raft.shutdown().await;
        self.workers.lock().await.shutdown().await;
    }
}

/// Ends a manager half once the swarm is known to go on without it: it decides nothing more, and
/// its agents find one that does.
async fn end_when_outlived(manager: Arc<Manager>, stop: watch::Sender<bool>) {
    let (mut outlived, mut stopping) = (manager.peers.book().outlived(), stop.subscribe());
    let is_outlived = tokio::select! {
        () = stopped(&mut stopping) => false,
        found = outlived.wait_for(|outlived| *outlived) => found.is_ok(),
    };
    if is_outlived {
        tracing::error!("{}", Refusal::Outlived(manager.cluster));
        stop.send_replace(true);
        manager.raft.shutdown().await;
    }
}

/// Who the managers are, by the state at this entry.
fn directory(state: &State, epoch: u64) -> Option<Directory> {
    let cluster = state.cluster()?;
    let managers = state.nodes().filter_map(|node| {
        let manager = node.manager.as_ref()?;
        Some(ManagerEntry {
            node: node.id,
            public_key: node.public_key.clone(),
            addr: manager.addr.clone(),
            raft_id: manager.raft_id,
        })
    });
    Some(Directory {
        incarnation: cluster.incarnation,
        incarnation_id: cluster.incarnation_id,
        epoch,
        managers: managers.collect(),
        roots: cluster.trust.roots.clone(),
    })
}

/// Writes the book from the state, and ends connections of those who are no longer members.
async fn follow(
    manager: &Manager,
    net: &Net,
    keeper: &dyn Admission,
    mut stop: watch::Receiver<bool>,
) {
    let mut changes = manager.raft.subscribe();
    let mut epoch = *manager.raft.applied().borrow();
    let mut review = interval(NET_REVIEW);
    loop {
        // The state may be later than this says: then the event that says so is still to come.
        let latest = manager.raft.view(|state| directory(state, epoch.unwrap_or(0)));
        if let Some(latest) = latest {
            manager.peers.book().update(latest);
        }
        net.review(keeper);
        let concerns = |changes: &[Change]| {
            changes.iter().any(|change| matches!(change, Change::Node(_) | Change::Cluster))
        };
        loop {
            tokio::select! {
                () = stopped(&mut stop) => return,
                // Raft lets members go without a change of the state.
                _ = review.tick() => net.review(keeper),
                event = changes.next() => match event {
                    None => return,
                    Some(Event::Rescan) => {
                        epoch = *manager.raft.applied().borrow();
                        break;
                    }
                    Some(Event::Applied(applied)) if concerns(&applied.changes) => {
                        epoch = Some(applied.index);
                        break;
                    }
                    Some(Event::Applied(_)) => {}
                }
            }
        }
    }
}

/// Admits by the state; a manager whose state is behind also by what it was told since.
struct Gatekeeper(Arc<Manager>);

impl Gatekeeper {
    /// The Raft id of a node that is a manager no more, while Raft still counts it: the others need
    /// its vote to let it go.
    fn undismissed(&self, node: &NodeId) -> Option<u64> {
        let former = self.0.peers.book().former_manager(node)?;
        let is_counted = self.0.raft.members().addrs.contains_key(&former.raft_id);
        is_counted.then_some(former.raft_id)
    }
}

impl Admission for Gatekeeper {
    fn recorded(&self, node: &NodeId) -> Option<Recorded> {
        let found = self.0.raft.view(|state| {
            state.node(node).map(|node| Recorded {
                public_key: node.public_key.clone(),
                raft_id: node.manager.as_ref().map(|manager| manager.raft_id),
            })
        });
        let found = found.map(|found| Recorded {
            raft_id: found.raft_id.or_else(|| self.undismissed(node)),
            ..found
        });
        let directory = self.0.peers.book().directory();
        let directory = directory.borrow();
        let applied = self.0.raft.applied().borrow().unwrap_or(0);
        if found.is_some() && applied >= directory.epoch {
            return found;
        }
        let told = directory.managers.iter().find(|manager| manager.node == *node);
        let told = told.map(|manager| Recorded {
            public_key: manager.public_key.clone(),
            raft_id: Some(manager.raft_id),
        });
        told.or(found)
    }

    fn farewell(&self, node: &NodeId) -> Closed {
        let is_cut_off =
            |state: &State| state.cluster().is_some_and(|cluster| cluster.cut_off.contains(node));
        if self.0.raft.view(is_cut_off) { Closed::OtherIncarnation } else { Closed::Removed }
    }

    fn confirm(&self, node: NodeId) -> Visit<bool> {
        let manager = Arc::clone(&self.0);
        Box::pin(async move {
            manager.refresh_book().await;
            let is_confirmed = manager.confirm().await.is_ok();
            is_confirmed && manager.raft.view(|state| state.node(&node).is_none())
        })
    }
}
