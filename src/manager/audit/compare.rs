//! How a manager comes to keep what only others do: it compares, now and then, and copies what it
//! lacks. So every record that one manager still has is soon with all of them, also with one that
//! is new or was away, and no loss of one disk loses any.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use skep_core::id::NodeId;
use tokio::time::{MissedTickBehavior, interval};

use super::Manager;
use super::store::{Store, StoreError};
use crate::audit::AuditQuery;
use crate::chain::chain;
use crate::clock::now;
use crate::files::FileError;
use crate::limits::{AUDIT_COMPARE, AUDIT_HEADS};
use crate::wire::audit::{Heads, Held, Mark, Page, Portion};
use crate::wire::control::{ControlAnswer, ControlRequest, Refused};

/// How far this manager has compared with each of the others since it started.
#[derive(Debug, Default)]
pub(super) struct Compared(Mutex<BTreeMap<NodeId, Mark>>);

impl Compared {
    fn with(&self, node: NodeId) -> Mark {
        let marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        marks.get(&node).copied().unwrap_or_default()
    }

    fn set(&self, node: NodeId, mark: Mark) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, mark);
    }
}

impl Store {
    /// What is kept from `from` on, or from the beginning if that place is gone, up to a bound.
    /// Blocking.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn heads(&self, from: Mark) -> Result<Heads, StoreError> {
        let from = if from > self.end()? { Mark::default() } else { from };
        let segments: Vec<(u64, u64)> = {
            let guard = self.open()?;
            let behind = guard.iter().flat_map(|table| table.segments.range(from.segment..));
            behind.map(|(number, segment)| (*number, segment.bytes)).collect()
        };
        let mut heads = Heads { held: Vec::new(), from, next: from, is_last: true };
        for (number, bytes) in segments {
            let mut offset = if number == from.segment { from.offset.min(bytes) } else { 0 };
            let path = self.path(number);
            let Some(file) = self.open_segment(number)? else { continue };
            while let Some((at, frame)) = self
                .frame_from(&file, number, offset, bytes)
                .map_err(FileError::on("read", &path))?
            {
                offset = at;
                if heads.held.len() >= AUDIT_HEADS {
                    heads.next = Mark { segment: number, offset };
                    heads.is_last = false;
                    return Ok(heads);
                }
                let head = frame.head;
                let (node, task) = (head.node, head.task);
                heads.held.push(Held { node, task, runs: head.runs, at: head.at });
                offset = frame.end;
            }
            heads.next = Mark { segment: number, offset: bytes };
        }
        Ok(heads)
    }

    /// Whether any of this is not kept here and would not be dropped. Blocking.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn lacks_any(&self, heads: &Heads) -> Result<bool, StoreError> {
        let guard = self.open()?;
        Ok(guard.as_ref().is_some_and(|table| table.lacks_any(&heads.held)))
    }
}

/// Compares until told to stop.
pub(super) async fn compare_now_and_then(manager: &Manager) {
    let mut tick = interval(AUDIT_COMPARE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        manager.audit_compare().await;
    }
}

impl Manager {
    /// Compares with each of the other managers, and copies what is lacking here. One that does not
    /// answer is compared with the next time, from where that was left.
    pub(crate) async fn audit_compare(&self) {
        for (raft_id, node) in self.others() {
            let mut from = self.audits.compared.with(node);
            while let Some(heads) = self.heads_of(raft_id, from).await {
                if !self.copy_lacking(raft_id, &heads).await {
                    break;
                }
                // One that does not move on would be asked for ever.
                let is_over = heads.is_last || heads.next <= heads.from;
                from = heads.next;
                self.audits.compared.set(node, from);
                if is_over {
                    break;
                }
            }
        }
    }

    async fn heads_of(&self, raft_id: u64, from: Mark) -> Option<Heads> {
        match self.peers.ask(raft_id, &ControlRequest::AuditHeads(from)).await {
            Ok(ControlAnswer::AuditHeads(heads)) => Some(*heads),
            _ => None,
        }
    }

    /// Copies a part of what another manager keeps, if any of it is lacking. False if it could not.
    async fn copy_lacking(&self, raft_id: u64, heads: &Heads) -> bool {
        let (asked, mut from) = (heads.clone(), heads.from);
        match self.in_store(move |store| store.lacks_any(&asked)).await {
            None => return false,
            Some(false) => return true,
            Some(true) => {}
        }
        while from < heads.next {
            let ask = ControlRequest::AuditQuery { query: AuditQuery::default(), from };
            let Ok(ControlAnswer::AuditPage(page)) = self.peers.ask(raft_id, &ask).await else {
                return false;
            };
            let Page { portions, next, .. } = *page;
            tracing::info!(
                bytes = portions.iter().map(Portion::bytes).sum::<usize>(),
                "records of audits are copied from another manager"
            );
            if self.in_store(move |store| store.append_copies(&portions, now())).await.is_none() {
                return false;
            }
            if next <= from {
                return true;
            }
            from = next;
        }
        true
    }

    /// Does something with the store that may wait for the disk; none if that failed.
    pub(super) async fn in_store<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Option<T> {
        let store = std::sync::Arc::clone(&self.audits.store);
        match tokio::task::spawn_blocking(move || act(&store)).await {
            Ok(Ok(done)) => Some(done),
            Ok(Err(error)) => {
                tracing::error!(error = chain(&error), "the store of audits failed");
                None
            }
            Err(_) => None,
        }
    }

    /// Answers another manager.
    pub(in crate::manager) async fn audit_heads_for(&self, from: Mark) -> ControlAnswer {
        match self.in_store(move |store| store.heads(from)).await {
            Some(heads) => ControlAnswer::AuditHeads(Box::new(heads)),
            None => ControlAnswer::Refused(Refused::Other("audits cannot be read here".into())),
        }
    }
}
