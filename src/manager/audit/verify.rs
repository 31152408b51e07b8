//! Whether the chains of tasks hold, by what all managers keep of them.

use std::collections::{BTreeMap, BTreeSet};

use skep_core::id::{NodeId, TaskId};
use skep_core::state::Anchored;
use skep_core::time::Stamp;

use super::Manager;
use crate::audit::{AuditQuery, AuditVerdict, Copies, Coverage, Dropped, TaskVerdict, verify};
use crate::gate::Refusal;
use crate::limits::{AUDIT_VERIFY_BATCH, AUDIT_VERIFY_BYTES, AUDIT_VERIFY_TASKS};

/// A task whose chain is checked; its node is not known if no record of it is left.
type Checked = (TaskId, Option<NodeId>);

impl Manager {
    /// Checks the whole chains of all tasks of which anything is asked for.
    ///
    /// # Errors
    /// As [`Manager::audit_query`].
    pub async fn audit_verify(&self, query: &AuditQuery) -> Result<AuditVerdict, Refusal> {
        self.check_not_outlived()?;
        let mut found: BTreeSet<Checked> = BTreeSet::new();
        let gathered = self.gather(query, |_, portions| {
            found.extend(portions.iter().map(|portion| (portion.task, Some(portion.node))));
            found.len() < AUDIT_VERIFY_TASKS
        });
        let mut coverage = gathered.await;
        let is_cut = found.len() >= AUDIT_VERIFY_TASKS;
        add_anchored(&mut found, self.anchored_tasks(query));
        let all: Vec<Checked> = found.into_iter().collect();
        let mut tasks = Vec::with_capacity(all.len());
        for some in all.chunks(AUDIT_VERIFY_BATCH) {
            match self.verify_together(some, &mut coverage, some.len() > 1).await {
                Some(verdicts) => tasks.extend(verdicts),
                None => {
                    for one in some {
                        let alone = std::slice::from_ref(one);
                        let verdicts = self.verify_together(alone, &mut coverage, false).await;
                        tasks.extend(verdicts.into_iter().flatten());
                    }
                }
            }
        }
        Ok(AuditVerdict { tasks, is_cut, coverage })
    }

    /// Tasks that managers remember and of which there should be records, as far as it is known
    /// what they are asked for.
    fn anchored_tasks(&self, query: &AuditQuery) -> Vec<Checked> {
        // What a removed secret had to do with which task, only records tell.
        if query.name.is_some() || query.since > Stamp(0) || query.until > Stamp(0) {
            return Vec::new();
        }
        self.raft.view(|state| {
            let is_asked = |(task, anchor): &(&TaskId, &Anchored)| {
                let known = state.task(task);
                let is_of_one = query.material.is_none_or(|id| {
                    let mut grants = known.into_iter().flat_map(|it| it.spec.container.grants());
                    grants.any(|grant| grant.id == id)
                });
                let is_there = query.node.is_none_or(|node| anchor.node == node);
                is_of_one && is_there && (query.tasks.is_empty() || query.tasks.contains(task))
            };
            let asked = state.anchors().filter(is_asked).take(AUDIT_VERIFY_TASKS);
            asked.map(|(task, anchor)| (*task, Some(anchor.node))).collect()
        })
    }

    /// Checks some tasks. None if that was too much and `is_bounded`.
    async fn verify_together(
        &self,
        tasks: &[Checked],
        coverage: &mut Coverage,
        is_bounded: bool,
    ) -> Option<Vec<TaskVerdict>> {
        let ids = tasks.iter().map(|(task, _)| *task).collect();
        let all = AuditQuery { tasks: ids, ..AuditQuery::default() };
        let mut copies: BTreeMap<Checked, Copies> =
            tasks.iter().map(|task| (*task, Copies::default())).collect();
        let mut is_cut = false;
        let gathered = self.gather(&all, |manager, portions| {
            for portion in portions {
                let key = (portion.task, Some(portion.node));
                if let Some(copies) = copies.get_mut(&key) {
                    copies.add(manager, portion.bodies);
                }
            }
            is_cut = copies.values().map(Copies::bytes).sum::<usize>() >= AUDIT_VERIFY_BYTES;
            !is_cut
        });
        let found = gathered.await;
        coverage.add(found);
        if is_cut && is_bounded {
            return None;
        }
        let horizon = coverage.horizon;
        let verdicts = copies.into_iter().map(|((task, node), copies)| {
            let anchors = self.anchors_of(&task, node);
            judge((task, node), copies, &anchors, is_cut, &self.dropped((&task, node), horizon))
        });
        Some(verdicts.collect())
    }

    /// What managers may have dropped of a task, of what this node sent.
    fn dropped(&self, (task, node): (&TaskId, Option<NodeId>), horizon: Stamp) -> Dropped {
        self.raft.view(|state| {
            let anchor = state.anchor(task).filter(|anchor| node == Some(anchor.node));
            let created = state.task(task).map(|task| task.meta.created);
            Dropped { horizon, created, anchored: anchor.map(|anchor| anchor.at) }
        })
    }
}

/// Adds what managers remember and have no record of. What one node sent of a task says nothing of
/// another one's records.
fn add_anchored(found: &mut BTreeSet<Checked>, anchored: Vec<Checked>) {
    found.extend(anchored);
}

fn judge(
    (task, node): Checked,
    copies: Copies,
    anchors: &[crate::audit::Anchor],
    is_cut: bool,
    dropped: &Dropped,
) -> TaskVerdict {
    let anchored = anchors.iter().map(|anchor| anchor.sequence).max().unwrap_or(0);
    let (records, last) = (copies.len(), copies.last());
    // What is missing at the end was not looked for.
    let reached = anchors.iter().filter(|anchor| !is_cut || anchor.sequence <= last);
    let anchors: Vec<_> = reached.cloned().collect();
    let (bodies, mut findings) = copies.settle(&anchors);
    findings.extend(verify(&task, &bodies, &anchors));
    findings = findings.into_iter().map(|finding| finding.after_drop(dropped)).collect();
    TaskVerdict { task, node, records, last, anchored, is_cut, findings }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::testing::{chain, id};
    use crate::audit::{Anchor, Finding};

    #[test]
    fn records_of_one_node_do_not_hide_that_another_ones_are_gone() {
        let (task, mine, other) = (id(1), Some(id(11)), Some(id(12)));
        let mut found = BTreeSet::from([(task, other)]);
        add_anchored(&mut found, vec![(task, mine)]);
        assert_eq!(Vec::from_iter(found), [(task, mine), (task, other)]);
    }

    #[test]
    fn what_was_not_checked_to_its_end_is_not_called_intact() {
        let (task, node) = (id(1), Some(id(11)));
        let dropped = Dropped { horizon: Stamp(0), created: None, anchored: None };
        let judged = |sequence, is_cut| {
            let mut copies = Copies::default();
            copies.add(id(11), chain(&task, id(2), 3));
            let anchors = [Anchor { sequence, hash: [0; 32] }];
            judge((task, node), copies, &anchors, is_cut, &dropped)
        };
        let cut = judged(4, true);
        assert_eq!((cut.findings.as_slice(), cut.is_intact()), ([].as_slice(), false));
        // As far as it was checked, anchors count.
        let known = [Finding::NotAnchored { sequence: 2 }];
        assert_eq!(judged(2, true).findings, known);
        assert_eq!(judged(2, false).findings, known);
        assert_eq!(judged(4, false).findings, [Finding::MissingTail { last: 3, anchored: 4 }]);
    }
}
