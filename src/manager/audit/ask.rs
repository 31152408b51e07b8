//! Questions about the audit, put to all managers.

use skep_core::id::{MaterialId, NodeId};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Manager;
use crate::audit::{AuditAnswer, AuditQuery, Coverage, LastRead, Merge};
use crate::gate::Refusal;
use crate::limits::{AUDIT_FOUND, LAST_READ_WAIT};
use crate::wire::audit::{Mark, Page, Portion};
use crate::wire::control::{ControlAnswer, ControlRequest, Refused};

/// One manager that is asked, and from where on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) node: NodeId,
    /// None for this manager itself.
    raft_id: Option<u64>,
    pub(super) from: Mark,
    pub(super) is_absent: bool,
}

impl Manager {
    /// What the managers keep of the audit.
    ///
    /// # Errors
    /// If this manager is of an older incarnation of the swarm.
    pub async fn audit_query(&self, query: &AuditQuery) -> Result<AuditAnswer, Refusal> {
        self.check_not_outlived()?;
        let mut merge = Merge::new(query.clone(), AUDIT_FOUND);
        let gathered = self.gather(query, |_, portions| {
            merge.add(&portions);
            true
        });
        let coverage = gathered.await;
        Ok(AuditAnswer { coverage, ..merge.finish() })
    }

    /// The last time that this was read in any task, as far as managers that answer soon keep it.
    pub async fn last_read(&self, material: MaterialId) -> Option<LastRead> {
        let mut asked = JoinSet::new();
        for (raft_id, node) in self.others() {
            let peers = std::sync::Arc::clone(&self.peers);
            asked.spawn(async move {
                let request = ControlRequest::AuditLastRead(material);
                match timeout(LAST_READ_WAIT, peers.ask(raft_id, &request)).await {
                    Ok(Ok(ControlAnswer::AuditLastRead(found))) => found,
                    Ok(_) => {
                        tracing::info!(manager = %node, "does not tell of last reads");
                        None
                    }
                    Err(_) => {
                        tracing::info!(manager = %node, "was too slow to tell of last reads");
                        None
                    }
                }
            });
        }
        let mut last = self.last_read_here(material).await.flatten();
        while let Some(found) = asked.join_next().await {
            last = last.into_iter().chain(found.ok().flatten()).max_by_key(|read| read.at);
        }
        last
    }

    async fn last_read_here(&self, material: MaterialId) -> Option<Option<LastRead>> {
        self.in_store(move |store| store.last_read(&material)).await
    }

    /// Answers another manager.
    pub(in crate::manager) async fn audit_last_read_for(&self, id: MaterialId) -> ControlAnswer {
        match self.last_read_here(id).await {
            Some(found) => ControlAnswer::AuditLastRead(found),
            None => ControlAnswer::Refused(Refused::Other("audits cannot be read here".into())),
        }
    }

    /// All managers, to be asked from there on.
    pub(super) fn asked(&self, from: Mark) -> Vec<Asked> {
        let own = Asked { node: self.node, raft_id: None, from, is_absent: false };
        let others = self.others().into_iter().map(|(raft_id, node)| Asked {
            node,
            raft_id: Some(raft_id),
            from,
            is_absent: false,
        });
        [own].into_iter().chain(others).collect()
    }

    /// What one manager keeps, from where it is asked on; none if it does not answer.
    pub(super) async fn page_of(&self, asked: &Asked, query: &AuditQuery) -> Option<Page> {
        let Some(raft_id) = asked.raft_id else {
            return self.audit_page(query.clone(), asked.from).await;
        };
        let ask = ControlRequest::AuditQuery { query: query.clone(), from: asked.from };
        match self.peers.ask(raft_id, &ask).await {
            Ok(ControlAnswer::AuditPage(page)) => Some(*page),
            _ => None,
        }
    }

    /// Hands over everything that matches, manager by manager, until `take` has enough. Tells how
    /// whole that is.
    pub(super) async fn gather(
        &self,
        query: &AuditQuery,
        mut take: impl FnMut(NodeId, Vec<Portion>) -> bool + Send,
    ) -> Coverage {
        let mut coverage = Coverage::default();
        for mut asked in self.asked(Mark::default()) {
            loop {
                let Some(page) = self.page_of(&asked, query).await else {
                    coverage.absent.push(asked.node);
                    break;
                };
                coverage.horizon = coverage.horizon.max(page.horizon);
                if page.damaged > 0 && !coverage.damaged.contains(&asked.node) {
                    coverage.damaged.push(asked.node);
                }
                // One that does not move on would be asked for ever.
                let is_over = page.is_last || page.next <= asked.from;
                asked.from = page.next;
                if !take(asked.node, page.portions) {
                    return coverage;
                }
                if is_over {
                    break;
                }
            }
        }
        coverage
    }
}
