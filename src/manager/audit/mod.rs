//! The audits of the swarm as managers keep them: what agents send is stored on a majority of
//! managers before it is acknowledged, and questions are answered by all of them together.

mod anchor;
mod ask;
mod compare;
mod follow;
mod frames;
mod last;
mod offers;
mod runs;
pub mod store;
mod verify;

use std::sync::Arc;

use skep_core::id::NodeId;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Manager, stopped};
use crate::clock::now;
use crate::limits::{AUDIT_AGAIN, AUDIT_FOLLOWERS, AUDIT_ROUNDS};
use crate::wire::audit::{Mark, Page, Portion};
use crate::wire::control::{ControlAnswer, ControlRequest, Refused};
use crate::wire::session::ToAgent;
use anchor::Anchors;
use compare::Compared;
pub(super) use offers::Offer;
use offers::Offers;
use store::Store;

/// What a manager has to do with audits.
#[derive(Debug)]
pub struct Audits {
    store: Arc<Store>,
    offers: Offers,
    rounds: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    anchors: Anchors,
    compared: Compared,
}

impl Audits {
    /// Keeps audits in `store`.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self {
            store: Arc::new(store),
            offers: Offers::default(),
            rounds: Arc::new(Semaphore::new(AUDIT_ROUNDS)),
            followers: Arc::new(Semaphore::new(AUDIT_FOLLOWERS)),
            anchors: Anchors::default(),
            compared: Compared::default(),
        }
    }

    /// Takes a batch, in the place of one of the same node that still waits. One that is too much,
    /// or for which there is no room, is left out: its agent sends it again.
    pub(super) fn offer(&self, offer: Offer) {
        self.offers.put(offer);
    }
}

/// Stores what agents send, anchors it, and copies what only other managers keep, until told to
/// stop.
pub async fn run(manager: Arc<Manager>, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        () = stopped(&mut stop) => {}
        () = carry(&manager) => {}
        () = anchor::propose_now_and_then(&manager) => {}
        () = compare::compare_now_and_then(&manager) => {}
    }
}

async fn carry(manager: &Arc<Manager>) {
    loop {
        let mut portions = Vec::new();
        let mut waiting = Vec::new();
        // What came while the last round was under way goes together.
        for offer in manager.audits.offers.round().await {
            portions.extend(offer.portions);
            waiting.push((offer.batch, offer.orders));
        }
        while !manager.store_by_majority(&portions).await {
            sleep(AUDIT_AGAIN).await;
        }
        manager.audits.anchors.note(&portions);
        for (batch, orders) in waiting {
            // Where it does not fit, or the session is over, the batch is sent again.
            let _ = orders.try_send(ToAgent::AuditStored { batch });
        }
    }
}

impl Manager {
    /// The other managers, by Raft id and node.
    pub(super) fn others(&self) -> Vec<(u64, NodeId)> {
        let directory = self.peers.book().directory();
        let directory = directory.borrow();
        let others = directory.managers.iter().filter(|manager| manager.node != self.node);
        others.map(|manager| (manager.raft_id, manager.node)).collect()
    }

    /// Stores on this manager and the others. True once a majority has it on disk; the rest goes
    /// on by itself, within a bound.
    async fn store_by_majority(self: &Arc<Self>, portions: &[Portion]) -> bool {
        let Ok(turn) = Arc::clone(&self.audits.rounds).acquire_owned().await else { return false };
        let others = self.others();
        // Of all, this one included.
        let majority = others.len().div_ceil(2) + 1;
        let mut asked = JoinSet::new();
        let (own, all) = (Arc::clone(self), portions.to_vec());
        asked.spawn(async move { own.keep(all).await });
        for (raft_id, _) in others {
            let (own, ask) = (Arc::clone(self), ControlRequest::AuditStore(portions.to_vec()));
            asked.spawn(async move {
                matches!(own.peers.ask(raft_id, &ask).await, Ok(ControlAnswer::Done))
            });
        }
        let mut stored = 0;
        while let Some(done) = asked.join_next().await {
            stored += usize::from(done.unwrap_or(false));
            if stored >= majority {
                tokio::spawn(async move {
                    while asked.join_next().await.is_some() {}
                    drop(turn);
                });
                return true;
            }
        }
        false
    }

    /// Stores on this node's disk.
    async fn keep(&self, portions: Vec<Portion>) -> bool {
        self.in_store(move |store| store.append(&portions, now())).await.is_some()
    }

    /// Stores for another manager.
    pub(super) async fn audit_store_for(&self, portions: Vec<Portion>) -> ControlAnswer {
        match self.keep(portions).await {
            true => ControlAnswer::Done,
            false => ControlAnswer::Refused(Refused::Other("audits cannot be kept here".into())),
        }
    }

    /// Answers another manager, or this one.
    async fn audit_page(&self, query: crate::audit::AuditQuery, from: Mark) -> Option<Page> {
        let read = self.in_store(move |store| match from == Mark::MAX {
            // Only what comes from now on.
            true => store.end().map(|next| Page { next, is_last: true, ..Page::default() }),
            false => store.page(&query, from),
        });
        read.await
    }

    /// Answers another manager.
    pub(super) async fn audit_page_for(
        &self,
        query: crate::audit::AuditQuery,
        from: Mark,
    ) -> ControlAnswer {
        match self.audit_page(query, from).await {
            Some(page) => ControlAnswer::AuditPage(Box::new(page)),
            None => ControlAnswer::Refused(Refused::Other("audits cannot be read here".into())),
        }
    }
}
