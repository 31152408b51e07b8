//! Which places of tasks' chains managers remember.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_core::command::{self, Command};
use skep_core::id::{NodeId, TaskId};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::Manager;
use crate::audit::{Anchor, Head, Record};
use crate::gate::Refusal;
use crate::limits::{AUDIT_AGAIN, AUDIT_ANCHOR, AUDIT_ANCHORS};
use crate::wire::audit::Portion;

/// A task and the node that sent its records.
type Key = (TaskId, NodeId);

/// What is stored by a majority and not anchored yet.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    due: Mutex<BTreeMap<Key, Anchor>>,
    ended: Notify,
}

impl Anchors {
    fn due(&self) -> MutexGuard<'_, BTreeMap<Key, Anchor>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the last record of each task.
    pub(super) fn note(&self, portions: &[Portion]) {
        let mut due = self.due();
        let mut is_ended = false;
        for portion in portions {
            for body in &portion.bodies {
                let Ok(head) = Head::parse(body) else { continue };
                let key = (portion.task, portion.node);
                let held = due.get(&key).map_or(0, |anchor| anchor.sequence);
                if head.sequence > held {
                    due.insert(key, Anchor::of(&head, body));
                }
            }
            let last = portion.bodies.last().and_then(|body| Record::parse(body).ok());
            is_ended |= last.is_some_and(|record| record.is_last());
        }
        drop(due);
        if is_ended {
            self.ended.notify_one();
        }
    }

    fn take(&self) -> Vec<(Key, Anchor)> {
        let mut due = self.due();
        std::iter::from_fn(|| due.pop_first()).take(AUDIT_ANCHORS).collect()
    }

    /// Puts back what was not taken, unless there is something later.
    fn put_back(&self, anchors: Vec<(Key, Anchor)>) {
        let mut due = self.due();
        for (key, anchor) in anchors {
            due.entry(key).or_insert(anchor);
        }
    }
}

/// Proposes anchors, in batches.
pub(super) async fn propose_now_and_then(manager: &Manager) {
    let anchors = &manager.audits.anchors;
    loop {
        // A task that has ended is anchored soon: nothing of it is written any more.
        if timeout(AUDIT_ANCHOR, anchors.ended.notified()).await.is_ok() {
            sleep(AUDIT_AGAIN).await;
        }
        loop {
            let batch = anchors.take();
            if batch.is_empty() {
                break;
            }
            if !manager.propose_anchors(&batch).await {
                anchors.put_back(batch);
                break;
            }
        }
    }
}

impl Manager {
    /// Has the swarm's state remember these places. False if they are to be proposed again.
    async fn propose_anchors(&self, anchors: &[(Key, Anchor)]) -> bool {
        // A node that lost how far it had come sends old records again.
        let is_news = |(task, node): &Key, anchor: &Anchor| {
            let held = self.anchors_of(task, Some(*node));
            held.iter().all(|held| held.sequence < anchor.sequence)
        };
        let news = anchors.iter().filter(|(key, anchor)| is_news(key, anchor));
        let news: Vec<_> = news
            .map(|((task, node), Anchor { sequence, hash })| command::Anchor {
                task: *task,
                sequence: *sequence,
                hash: *hash,
                node: *node,
            })
            .collect();
        if news.is_empty() {
            return true;
        }
        match self.propose(Command::AuditAnchor(news)).await {
            // Proposed again, one that is refused would be refused again.
            Ok(_) | Err(Refusal::Rejected(_)) => true,
            Err(error) => {
                tracing::warn!(%error, "anchors of audits wait for the log");
                false
            }
        }
    }

    /// What the swarm's state remembers of a task by the word of this node.
    pub(super) fn anchors_of(&self, task: &TaskId, node: Option<NodeId>) -> Vec<Anchor> {
        let held = self.raft.view(|state| {
            let anchor = state.anchor(task).filter(|anchor| node == Some(anchor.node))?;
            Some(Anchor { sequence: anchor.sequence, hash: anchor.hash })
        });
        Vec::from_iter(held)
    }
}
