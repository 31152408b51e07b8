//! Questions about the audit, put to all managers.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use minicbor::bytes::ByteVec;
use skep_core::id::{NodeId, TaskId};
use skep_core::time::Stamp;
use tokio::time::sleep;

use super::Manager;
use crate::audit::{AuditQuery, Entry, Finding, Merge, verify};
use crate::gate::Refusal;
use crate::limits::{AUDIT_FOLLOW, AUDIT_FOUND, AUDIT_SEEN, AUDIT_VERIFY_BYTES};
use crate::wire::audit::{Mark, Page, Portion};
use crate::wire::control::{ControlAnswer, ControlRequest};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditAnswer {
    /// Records by time, each once, with the rows and events that were asked for.
    pub entries: Vec<Entry>,
    /// Whether there were more: these are the latest.
    pub is_cut: bool,
    /// Managers that did not answer. What all others keep is here; a record may be with these
    /// alone only if a majority of the managers is among them.
    pub absent: Vec<NodeId>,
    /// Some managers have dropped what was written before this; zero if none has.
    pub horizon: Stamp,
}

/// Whether chains hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditVerdict {
    /// By task.
    pub tasks: Vec<TaskVerdict>,
    /// See [`AuditAnswer::absent`].
    pub absent: Vec<NodeId>,
    /// See [`AuditAnswer::horizon`]: it explains a chain that starts late.
    pub horizon: Stamp,
}

/// Whether the chain of one task holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskVerdict {
    /// The task.
    pub task: TaskId,
    /// Its node.
    pub node: NodeId,
    /// Records that were checked.
    pub records: usize,
    /// The last one that managers remember; zero if they remember none. What follows it is not
    /// bound to anything yet.
    pub anchored: u64,
    /// Whether there were too many to check: what was not is at the end.
    pub is_cut: bool,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// A manager that a follower hears nothing of at the moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("manager {0} does not answer: what only it keeps is not shown")]
pub struct AuditGap(pub NodeId);

/// One manager that is asked, and from where on.
#[derive(Debug, Clone, Copy)]
struct Asked {
    node: NodeId,
    /// None for this manager itself.
    raft_id: Option<u64>,
    from: Mark,
    is_absent: bool,
}

impl Manager {
    /// What the managers keep of the audit.
    ///
    /// # Errors
    /// If this manager is of an older incarnation of the swarm.
    pub async fn audit_query(&self, query: &AuditQuery) -> Result<AuditAnswer, Refusal> {
        self.check_not_outlived()?;
        let mut merge = Merge::new(query.clone(), AUDIT_FOUND);
        let gathered = self.gather(query, |portions| {
            merge.add(&portions);
            true
        });
        let (absent, horizon) = gathered.await;
        let merged = merge.finish();
        Ok(AuditAnswer { entries: merged.entries, is_cut: merged.is_cut, absent, horizon })
    }

    /// Checks the whole chains of all tasks of which anything is asked for.
    ///
    /// # Errors
    /// As [`Manager::audit_query`].
    pub async fn audit_verify(&self, query: &AuditQuery) -> Result<AuditVerdict, Refusal> {
        self.check_not_outlived()?;
        let mut tasks = BTreeSet::new();
        let gathered = self.gather(query, |portions| {
            tasks.extend(portions.iter().map(|portion| (portion.task, portion.node)));
            tasks.len() < AUDIT_FOUND
        });
        let (absent, horizon) = gathered.await;
        let mut verdict = AuditVerdict { absent, horizon, ..AuditVerdict::default() };
        for (task, node) in tasks {
            let own = AuditQuery { task: Some(task), node: Some(node), ..AuditQuery::default() };
            let mut bodies: Vec<ByteVec> = Vec::new();
            let (mut bytes, mut is_cut) = (0, false);
            let gathered = self.gather(&own, |portions| {
                for portion in portions {
                    bytes += portion.bytes();
                    bodies.extend(portion.bodies);
                }
                is_cut = bytes >= AUDIT_VERIFY_BYTES;
                !is_cut
            });
            let (absent, _) = gathered.await;
            verdict.absent.extend(absent);
            let mut anchors = self.anchors_of(&task);
            if is_cut {
                // What is missing at the end was not looked for.
                anchors.clear();
            }
            bodies.sort();
            bodies.dedup();
            let findings = verify(&task, &bodies, &anchors);
            let anchored = anchors.iter().map(|anchor| anchor.sequence).max().unwrap_or(0);
            let records = bodies.len();
            let found = TaskVerdict { task, node, records, anchored, is_cut, findings };
            verdict.tasks.push(found);
        }
        verdict.absent.sort();
        verdict.absent.dedup();
        Ok(verdict)
    }

    /// What is stored from now on, as long as the stream is read. A manager that does not answer is
    /// told once, and asked on.
    #[must_use]
    pub fn audit_follow(
        self: &Arc<Self>,
        query: AuditQuery,
    ) -> BoxStream<'static, Result<Entry, AuditGap>> {
        let follower = Follower {
            manager: Arc::clone(self),
            query,
            asked: self.asked(Mark::MAX),
            ready: VecDeque::new(),
            seen: Seen::default(),
            begun: false,
        };
        stream::unfold(follower, |mut follower| async move {
            let next = follower.next().await?;
            Some((next, follower))
        })
        .boxed()
    }

    fn asked(&self, from: Mark) -> Vec<Asked> {
        let own = Asked { node: self.node, raft_id: None, from, is_absent: false };
        let others = self.others().into_iter().map(|(raft_id, node)| Asked {
            node,
            raft_id: Some(raft_id),
            from,
            is_absent: false,
        });
        [own].into_iter().chain(others).collect()
    }

    async fn page_of(&self, asked: &Asked, query: &AuditQuery) -> Option<Page> {
        let Some(raft_id) = asked.raft_id else {
            return self.audit_page(query.clone(), asked.from).await;
        };
        let ask = ControlRequest::AuditQuery { query: query.clone(), from: asked.from };
        match self.peers.ask(raft_id, &ask).await {
            Ok(ControlAnswer::AuditPage(page)) => Some(*page),
            _ => None,
        }
    }

    /// Hands over everything that matches, manager by manager, until `take` has enough. Tells which
    /// did not answer, and the latest horizon.
    async fn gather(
        &self,
        query: &AuditQuery,
        mut take: impl FnMut(Vec<Portion>) -> bool + Send,
    ) -> (Vec<NodeId>, Stamp) {
        let (mut absent, mut horizon) = (Vec::new(), Stamp(0));
        for mut asked in self.asked(Mark::default()) {
            loop {
                let Some(page) = self.page_of(&asked, query).await else {
                    absent.push(asked.node);
                    break;
                };
                horizon = horizon.max(page.horizon);
                // One that does not move on would be asked for ever.
                let is_over = page.is_last || page.next <= asked.from;
                asked.from = page.next;
                if !take(page.portions) {
                    return (absent, horizon);
                }
                if is_over {
                    break;
                }
            }
        }
        (absent, horizon)
    }
}

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
    begun: bool,
}

impl Follower {
    /// None once the manager's part in the swarm is over.
    async fn next(&mut self) -> Option<Result<Entry, AuditGap>> {
        loop {
            if let Some(next) = self.ready.pop_front() {
                return Some(next);
            }
            if self.begun {
                sleep(AUDIT_FOLLOW).await;
            }
            self.begun = true;
            self.manager.check_not_outlived().ok()?;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        // Managers may have come or gone.
        let current = self.manager.asked(Mark::default());
        self.asked.retain(|asked| current.iter().any(|other| other.node == asked.node));
        for new in current {
            if self.asked.iter().all(|asked| asked.node != new.node) {
                self.asked.push(new);
            }
        }
        let mut merge = Merge::new(self.query.clone(), AUDIT_FOUND);
        for asked in &mut self.asked {
            let Some(page) = self.manager.page_of(asked, &self.query).await else {
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
