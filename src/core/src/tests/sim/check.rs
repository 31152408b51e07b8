//! What holds after every commit, whatever happens.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::apply::Change;
use crate::codec;
use crate::command::Command;
use crate::control::is_dirty;
use crate::id::{ServiceId, TaskId};
use crate::limits;
use crate::model::service::UpdateOrder;
use crate::model::task::{Task, TaskState};
use crate::snapshot::Reader;
use crate::state::State;
use crate::testing;

/// Bytes a proposal may have (`skep_raft::limits::PROPOSAL_BYTES`).
const PROPOSAL_BYTES: usize = 8 << 20;

/// What matters of some tasks, a line each.
pub(super) fn brief(state: &State, tasks: &[&Arc<Task>]) -> String {
    let line = |task: &&Arc<Task>| {
        let node = task.node.map(|id| match state.node(&id) {
            Some(node) => format!("{:?} {:?}", node.status.state, node.spec.availability),
            None => String::from("gone"),
        });
        let service = state.service(&task.service);
        let is_dirty = service.is_some_and(|service| is_dirty(service, task));
        format!(
            "\n  {} {}.{} {:?} to be {:?}, node {node:?}, template {} dirty {is_dirty}, \
             at {}, after {:?}, attempts {} since {}, {:?}",
            task.id,
            task.service_name,
            task.slot,
            task.status.state,
            task.desired,
            task.spec_version,
            task.meta.created.0,
            task.start_after,
            task.attempts,
            task.window_start.0,
            task.status.err,
        )
    };
    tasks.iter().map(line).collect()
}

/// Every manager, and nobody else, opens every key; and whatever is sealed has its key.
fn ring(state: &State) {
    let Some(cluster) = state.cluster() else { return };
    let managers: BTreeSet<_> = state.managers().map(|(node, _)| node.id).collect();
    let keys: BTreeSet<u64> = cluster.ring.keys.iter().map(|key| key.version).collect();
    assert!(keys.contains(&cluster.ring.current));
    assert!(cluster.trust.sealed().all(|sealed| sealed.key == cluster.ring.current));
    assert!(state.payloads.values().all(|sealed| keys.contains(&sealed.key)));
    assert!(cluster.ring.keys.iter().all(|key| key.slots.keys().eq(&managers)));
}

/// Remembers what was, to compare it with what is.
#[derive(Debug, Default)]
pub(super) struct Checker {
    tasks: BTreeMap<TaskId, Arc<Task>>,
    /// Every task there ever was.
    ever: BTreeSet<TaskId>,
    /// Services that at some time were to start a new task before the old one stops.
    start_first: BTreeSet<ServiceId>,
}

impl Checker {
    pub(super) fn after(&mut self, state: &State, changes: &[Change]) {
        // One commit may write a task more than once.
        let (mut slots, mut tasks) = (BTreeSet::new(), BTreeSet::new());
        for change in changes {
            match change {
                Change::Task(id) if tasks.insert(*id) => slots.extend(self.task(state, id)),
                Change::Service(id) => self.service(state, id),
                Change::Node(id) if state.node(id).is_none() => {
                    let mut tasks = state.tasks_of_node(id);
                    assert!(tasks.all(|task| task.status.state.is_terminal()), "{id} is gone");
                }
                Change::Cluster => ring(state),
                Change::Material(id) if state.material(id).is_none() => {
                    assert!(state.users_of(id).next().is_none(), "a secret in use was removed");
                    let mut grants =
                        state.services().flat_map(|service| service.spec.task.container.grants());
                    assert!(grants.all(|grant| grant.id != *id), "a secret in use was removed");
                }
                _ => {}
            }
        }
        for (service, slot) in slots {
            self.slot(state, service, slot);
        }
    }

    /// A task only moves forward, and stays where it is. Gives its slot.
    fn task(&mut self, state: &State, id: &TaskId) -> Option<(ServiceId, u64)> {
        let new = state.task(id);
        let old = self.tasks.remove(id);
        match (&old, new) {
            (None, None) => return None,
            (None, Some(new)) => {
                // A task that came and went in one commit was never seen.
                assert!(self.ever.insert(*id), "{id} comes back");
                assert!(state.service(&new.service).is_some() || new.desired == TaskState::Remove);
            }
            (Some(old), None) => {
                let is_gone = old.node.is_none_or(|node| state.node(&node).is_none());
                assert!(is_gone || old.status.state.is_terminal(), "forgotten: {old:?}");
            }
            (Some(old), Some(new)) => {
                assert!(new.status.state >= old.status.state, "{old:?} became {new:?}");
                assert!(new.desired >= old.desired, "{old:?} became {new:?}");
                assert!(old.node.is_none() || new.node == old.node, "{old:?} became {new:?}");
                assert!(
                    new.meta.version > old.meta.version && new.meta.created == old.meta.created
                );
                assert!(!old.status.state.is_terminal() || new.status == old.status);
                assert_eq!((new.service, new.slot), (old.service, old.slot));
                assert!(new.spec_version == old.spec_version && new.spec == old.spec);
            }
        }
        if let Some(new) = new {
            let assigned = new.status.state >= TaskState::Assigned && !new.is_done();
            assert!(!assigned || new.node.is_some(), "it runs nowhere: {new:?}");
            let is_gone = new.node.is_some_and(|node| state.node(&node).is_none());
            assert!(!is_gone || new.status.state.is_terminal(), "its node is gone: {new:?}");
            self.tasks.insert(*id, Arc::clone(new));
        }
        new.or(old.as_ref()).map(|task| (task.service, task.slot))
    }

    fn service(&mut self, state: &State, id: &ServiceId) {
        let Some(service) = state.service(id) else { return };
        let configs = service.spec.update.iter().chain(&service.spec.rollback);
        if configs.into_iter().any(|config| config.order == UpdateOrder::StartFirst) {
            self.start_first.insert(*id);
        }
        for grant in service.spec.task.container.grants() {
            assert!(state.material(&grant.id).is_some(), "{} is granted but gone", grant.name);
        }
    }

    /// No more tasks of a slot are to run than the order of updates allows.
    fn slot(&self, state: &State, service: ServiceId, slot: u64) {
        let tasks: Vec<_> = state.tasks_of_slot(&service, slot).collect();
        let active = tasks.iter().filter(|task| task.desired <= TaskState::Running);
        let allowed = 1 + usize::from(self.start_first.contains(&service));
        let is_crowded = active.count() > allowed;
        assert!(!is_crowded, "more than {allowed} are to run:{}", brief(state, &tasks));
    }

    /// What one step of the loop proposes is bounded.
    pub(super) fn proposed(command: &Command) {
        let count = match command {
            Command::Control(decisions) => {
                assert!(!decisions.is_empty());
                decisions.len()
            }
            Command::NodeReport(reports) => reports.len(),
            other => panic!("the loop proposed {other:?}"),
        };
        assert!(count <= limits::CONTROL_BATCH + 16, "{count} decisions in one batch");
        assert!(codec::length(command) <= PROPOSAL_BYTES);
    }

    /// The indexes say what the objects say, and all of it survives a snapshot.
    pub(super) fn whole(&self, state: &State) {
        let records = testing::records(state);
        let mut reader = Reader::default();
        records.iter().for_each(|record| reader.push(record).unwrap());
        let read = reader.finish().unwrap();
        assert!(read.index == state.index, "the indexes are not what a scan finds");
        assert!(testing::records(&read) == records, "a snapshot changes the state");
        assert_eq!(state.tasks().len(), self.tasks.len());
        assert!(state.tasks().all(|task| self.tasks.contains_key(&task.id)));
        assert!(state.tasks().len() <= limits::TASKS + limits::TASKS_SPARE);
    }
}
