//! Those who follow the audit.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use futures_util::future::join_all;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use skep_core::id::{NodeId, TaskId};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};

use super::Manager;
use super::ask::Asked;
use crate::audit::{AuditGap, AuditQuery, Entry, Merge};
use crate::gate::Refusal;
use crate::limits::{AUDIT_FOLLOW, AUDIT_FOLLOW_ANSWER, AUDIT_FOLLOWERS, AUDIT_FOUND, AUDIT_SEEN};
use crate::wire::audit::Mark;

/// Records that a follower was shown, the latest of them.
#[derive(Debug, Default)]
struct Seen {
    known: HashSet<(NodeId, TaskId, u64)>,
    order: VecDeque<(NodeId, TaskId, u64)>,
}

impl Seen {
    fn is_new(&mut self, key: (NodeId, TaskId, u64)) -> bool {
        if !self.known.insert(key) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > AUDIT_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

struct Follower {
    manager: Arc<Manager>,
    query: AuditQuery,
    asked: Vec<Asked>,
    ready: VecDeque<Result<Entry, AuditGap>>,
    seen: Seen,
    _turn: OwnedSemaphorePermit,
}

impl Manager {
    /// What is stored after this has returned, as long as the stream is read. A manager that does
    /// not answer is told once, and asked on.
    ///
    /// # Errors
    /// As [`Manager::audit_query`], and if too many follow already.
    pub async fn audit_follow(
        self: &Arc<Self>,
        query: AuditQuery,
    ) -> Result<BoxStream<'static, Result<Entry, AuditGap>>, Refusal> {
        self.check_not_outlived()?;
        let turn = Arc::clone(&self.audits.followers).try_acquire_owned();
        let turn = turn.map_err(|_| {
            Refusal::Conflict(format!(
                "{AUDIT_FOLLOWERS} clients of this node follow the audit already: end one of them, \
                 or ask another manager"
            ))
        })?;
        let mut follower = Follower {
            manager: Arc::clone(self),
            query: AuditQuery { is_first_hand: true, ..query },
            asked: self.asked(Mark::MAX),
            ready: VecDeque::new(),
            seen: Seen::default(),
            _turn: turn,
        };
        follower.look().await;
        let stream = stream::unfold(follower, |mut follower| async move {
            let next = follower.next().await?;
            Some((next, follower))
        });
        Ok(stream.boxed())
    }
}

impl Follower {
    /// None once the manager's part in the swarm is over.
    async fn next(&mut self) -> Option<Result<Entry, AuditGap>> {
        loop {
            if let Some(next) = self.ready.pop_front() {
                return Some(next);
            }
            sleep(AUDIT_FOLLOW).await;
            self.manager.check_not_outlived().ok()?;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        // Managers may have come or gone. What a new one gets first, others have as well.
        let current = self.manager.asked(Mark::MAX);
        self.asked.retain(|asked| current.iter().any(|other| other.node == asked.node));
        for new in current {
            if self.asked.iter().all(|asked| asked.node != new.node) {
                self.asked.push(new);
            }
        }
        let mut merge = Merge::new(self.query.clone(), AUDIT_FOUND);
        // All at once, and none for long: one that hangs keeps nothing from being shown.
        let (manager, query) = (&self.manager, &self.query);
        let pages = self.asked.iter().map(|asked| {
            timeout(AUDIT_FOLLOW_ANSWER, manager.page_of(asked, query)).map(Result::ok)
        });
        let pages = join_all(pages).await;
        for (asked, page) in self.asked.iter_mut().zip(pages) {
            let Some(page) = page.flatten() else {
                if !std::mem::replace(&mut asked.is_absent, true) {
                    self.ready.push_back(Err(AuditGap(asked.node)));
                }
                continue;
            };
            asked.is_absent = false;
            asked.from = page.next;
            merge.add(&page.portions);
        }
        for entry in merge.finish().entries {
            if self.seen.is_new((entry.node, entry.task, entry.record.sequence)) {
                self.ready.push_back(Ok(entry));
            }
        }
    }
}
