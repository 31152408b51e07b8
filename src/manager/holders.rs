//! Where secrets and configs are held now: every manager knows it of the agents whose sessions it
//! has, so all are asked.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use skep_core::assign;
use skep_core::id::{MaterialId, NodeId, TaskId};
use skep_core::model::node::NodeState;
use skep_core::model::task::Task;
use skep_core::state::State;
use tokio::time::{Instant, timeout_at};

use super::Manager;
use super::holdings::{concerned, last_granted};
use crate::gate::{Holder, Holdings, Refusal};
use crate::limits::{HOLDINGS_ROUND, HOLDINGS_SLACK};
use crate::wire::control::{ControlAnswer, ControlRequest, Holding};

/// What managers have said, the best of each task.
#[derive(Debug, Default)]
struct Gathered {
    tasks: BTreeMap<TaskId, Holding>,
    absent: Vec<NodeId>,
}

impl Gathered {
    fn add(&mut self, all: Vec<Holding>) {
        for new in all {
            match self.tasks.get_mut(&new.task) {
                // A node that has moved to another manager is known to the last one as it was.
                Some(known) if new.is_live && (!known.is_live || new.complies) => *known = new,
                Some(known) if known.is_live || new.is_live => {}
                // No manager has its session: what any of them knew may be so.
                Some(known) => {
                    known.held.extend(new.held);
                    known.held.sort();
                    known.held.dedup();
                }
                None => drop(self.tasks.insert(new.task, new)),
            }
        }
    }

    /// Everything about the tasks that may hold one of these.
    fn show(&self, state: &State, materials: &[MaterialId]) -> Holdings {
        let tasks = concerned(state, materials);
        let tasks = tasks.values().filter_map(|task| self.holder(state, task, materials));
        Holdings { tasks: tasks.collect(), absent: self.absent.clone() }
    }

    fn holder(&self, state: &State, task: &Task, materials: &[MaterialId]) -> Option<Holder> {
        let id = task.node?;
        let node = state.node(&id);
        let known = self.tasks.get(&task.id);
        let mut revoked = assign::revoked(state, task);
        revoked.retain(|id| materials.contains(id));
        Some(Holder {
            task: task.id,
            service: task.service,
            service_name: task.service_name.clone(),
            node: id,
            hostname: node.map(|node| node.description.hostname.clone()).unwrap_or_default(),
            status: node.map_or(NodeState::Unknown, |node| node.status.state),
            held: known
                .map_or_else(|| last_granted(state, task, materials), |known| known.held.clone()),
            revoked,
            complies: known.is_some_and(|known| known.complies),
            is_reachable: known.is_some_and(|known| known.is_live),
        })
    }
}

impl Manager {
    /// What tasks hold of these secrets and configs, by the state of now or a later one. Answered
    /// once all that can be reached hold what they should, or after `within`.
    ///
    /// # Errors
    /// If nobody confirms what the state is.
    pub async fn holdings(
        &self,
        materials: Vec<MaterialId>,
        within: Duration,
    ) -> Result<Holdings, Refusal> {
        let until = Instant::now() + within;
        self.confirm().await?;
        let entry = self.raft.applied().borrow().unwrap_or(0);
        loop {
            let found = self.round(&materials, entry, until).await;
            let is_over = found.tasks.iter().all(|task| task.complies || !task.is_reachable);
            if is_over || Instant::now() >= until {
                return Ok(found);
            }
        }
    }

    /// Asks all managers once. Those that do not answer are not waited for if the others know of
    /// all tasks.
    async fn round(&self, materials: &[MaterialId], entry: u64, until: Instant) -> Holdings {
        let until = until.min(Instant::now() + HOLDINGS_ROUND);
        let mut gathered = Gathered { absent: Vec::new(), tasks: BTreeMap::new() };
        let others = self.others();
        gathered.absent.extend(others.iter().map(|(_, node)| *node));
        let others = others.into_iter().map(|(raft_id, node)| async move {
            (node, self.holdings_of(raft_id, materials, entry, until).await)
        });
        let mut asked: FuturesUnordered<_> = others.collect();
        let own = self.holdings_here(materials, entry, until);
        let mut own = std::pin::pin!(own);
        let mut has_own = false;
        loop {
            tokio::select! {
                found = &mut own, if !has_own => {
                    has_own = true;
                    gathered.add(found);
                }
                Some((node, found)) = asked.next() => {
                    if let Some(found) = found {
                        gathered.absent.retain(|absent| *absent != node);
                        gathered.add(found);
                    }
                }
                else => return self.raft.view(|state| gathered.show(state, materials)),
            }
            if has_own {
                let shown = self.raft.view(|state| gathered.show(state, materials));
                if shown.tasks.iter().all(|task| task.complies) {
                    // What others may have to say changes nothing.
                    return Holdings { absent: Vec::new(), ..shown };
                }
            }
        }
    }

    async fn holdings_of(
        &self,
        raft_id: u64,
        materials: &[MaterialId],
        entry: u64,
        until: Instant,
    ) -> Option<Vec<Holding>> {
        let left = until.saturating_duration_since(Instant::now());
        let within_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let request = ControlRequest::Holdings { materials: materials.to_vec(), entry, within_ms };
        match timeout_at(until + HOLDINGS_SLACK, self.peers.ask(raft_id, &request)).await {
            Ok(Ok(ControlAnswer::Holdings(found))) => Some(found),
            _ => None,
        }
    }

    /// What tasks hold whose sessions are here, once they hold what they should by the state of
    /// this entry, or when the time is up.
    async fn holdings_here(
        &self,
        materials: &[MaterialId],
        entry: u64,
        until: Instant,
    ) -> Vec<Holding> {
        let mut applied = self.raft.applied();
        let reached = applied.wait_for(|at| at.is_some_and(|at| at >= entry));
        let is_current = matches!(timeout_at(until, reached).await, Ok(Ok(_)));
        if is_current {
            // One after the other: each change is looked at for one task only.
            let tasks: Vec<TaskId> =
                self.raft.view(|state| concerned(state, materials).into_keys().collect());
            for task in tasks {
                if !self.await_one(&task, materials, until).await {
                    break;
                }
            }
        }
        self.raft.view(|state| self.holdings.report(state, materials, is_current))
    }

    /// Waits until a task whose session is here holds what it should. False when the time is up.
    async fn await_one(&self, task: &TaskId, materials: &[MaterialId], until: Instant) -> bool {
        let (mut moved, mut applied) = (self.holdings.moved(), self.raft.applied());
        loop {
            moved.mark_unchanged();
            applied.mark_unchanged();
            let is_pending = self.raft.view(|state| {
                let task = state.task(task).filter(|task| !task.status.state.is_terminal());
                task.is_some_and(|task| self.holdings.is_pending(state, task, materials))
            });
            if !is_pending {
                return true;
            }
            let changed = async {
                tokio::select! {
                    changed = moved.changed() => changed.is_ok(),
                    changed = applied.changed() => changed.is_ok(),
                }
            };
            if timeout_at(until, changed).await != Ok(true) {
                return false;
            }
        }
    }

    /// Answers another manager.
    pub(super) async fn holdings_for(
        &self,
        materials: &[MaterialId],
        entry: u64,
        within_ms: u64,
    ) -> ControlAnswer {
        let within = Duration::from_millis(within_ms).min(HOLDINGS_ROUND);
        let until = Instant::now() + within;
        ControlAnswer::Holdings(self.holdings_here(materials, entry, until).await)
    }
}

#[cfg(test)]
mod tests {
    use skep_core::id::ENTROPY_LEN;

    use super::*;

    fn id<K>(n: u8) -> skep_core::id::Id<K> {
        skep_core::id::Id::from_entropy([n; ENTROPY_LEN])
    }

    fn holding(versions: &[u64], complies: bool, is_live: bool) -> Holding {
        let held = versions.iter().map(|version| (id(9), *version)).collect();
        Holding { node: id(1), task: id(2), held, complies, is_live }
    }

    #[test]
    fn of_several_managers_the_one_with_the_session_knows_best() {
        let known = |all: &[Holding]| {
            let mut gathered = Gathered::default();
            all.iter().for_each(|one| gathered.add(vec![one.clone()]));
            gathered.tasks.remove(&id(2)).unwrap()
        };
        let (old, live) = (holding(&[1], false, false), holding(&[2], false, true));
        let done = holding(&[3], true, true);
        let mut orders = [[&old, &live, &done], [&done, &live, &old], [&live, &done, &old]];
        for order in &mut orders {
            assert_eq!(known(&order.map(Clone::clone)), done);
        }
        assert_eq!(known(&[old.clone(), live.clone()]), live);
        assert_eq!(known(&[live.clone(), old.clone()]), live);
        // Without a session, all that any of them knew of may be there.
        let both = holding(&[1, 2], false, false);
        assert_eq!(known(&[holding(&[2], false, false), old.clone(), old]), both);
    }
}
