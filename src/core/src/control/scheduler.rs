//! Nodes for tasks that have none: spread by the fewest tasks of the service, then by the
//! fewest tasks.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use super::Pass;
use super::draft::{Draft, PENDING};
use super::filter::Pipeline;
use crate::apply::ASSIGNED;
use crate::command::Decision;
use crate::id::{NodeId, ServiceId, TaskId};
use crate::model::task::{Task, TaskSpec, TaskState, TaskStatus};
use crate::shared::Shared;
use crate::state::{NodeLoad, State};
use crate::time::Stamp;

/// A task that wants a node.
#[derive(Debug, Clone, Copy)]
enum Wanting {
    /// Made by the decision at this position.
    Made(usize),
    /// In the state.
    Known(TaskId),
}

/// Tasks of one template: what turns a node away for one does so for all.
struct Group {
    spec: Shared<TaskSpec>,
    tasks: Vec<Wanting>,
}

/// Loads of nodes with what this step puts on them.
struct Loads<'a> {
    state: &'a State,
    changed: BTreeMap<NodeId, NodeLoad>,
    none: NodeLoad,
}

impl Loads<'_> {
    fn of(&self, node: &NodeId) -> &NodeLoad {
        self.changed.get(node).or_else(|| self.state.load(node)).unwrap_or(&self.none)
    }

    fn add(&mut self, node: NodeId, task: &Task) {
        let load = self.of(&node).clone();
        self.changed.entry(node).or_insert(load).add(task);
    }

    /// Less is better.
    fn rank(&self, node: NodeId, service: &ServiceId) -> (u64, u64, NodeId) {
        let load = self.of(&node);
        (load.by_service.get(service).copied().unwrap_or(0), load.tasks, node)
    }
}

/// Gives every task that has none a node, or says why it has to wait.
pub(super) fn run(draft: &mut Draft<'_>) -> Pass {
    let mut loads =
        Loads { state: draft.state, changed: BTreeMap::new(), none: NodeLoad::default() };
    let mut pass = Pass::Done;
    for ((service, _), group) in groups(draft) {
        if place(draft, &mut loads, service, &group) == Pass::Stopped {
            pass = Pass::Stopped;
        }
    }
    pass
}

fn groups(draft: &Draft<'_>) -> BTreeMap<(ServiceId, u64), Group> {
    let mut groups = BTreeMap::new();
    let mut put = |task: &Task, wanting| {
        let key = (task.service, task.spec_version);
        let empty = || Group { spec: task.spec.clone(), tasks: Vec::new() };
        groups.entry(key).or_insert_with(empty).tasks.push(wanting);
    };
    for id in &draft.state.index.unassigned {
        if let Some(task) = draft.state.task(id)
            && !draft.ended.contains(id)
        {
            put(task, Wanting::Known(*id));
        }
    }
    for (position, decision) in draft.decisions.iter().enumerate() {
        if let Decision::TaskCreate(task) = decision {
            put(task, Wanting::Made(position));
        }
    }
    groups
}

fn place(draft: &mut Draft<'_>, loads: &mut Loads<'_>, service: ServiceId, group: &Group) -> Pass {
    let mut pipeline = Pipeline::new(service, &group.spec);
    let nodes = draft.state.nodes.values();
    let admitted = nodes.filter(|node| pipeline.admits(node, loads.of(&node.id)));
    let mut ranked: BTreeSet<_> = admitted.map(|node| loads.rank(node.id, &service)).collect();
    let mut explanation = None;
    for wanting in &group.tasks {
        if matches!(wanting, Wanting::Known(_)) && draft.is_full() {
            return Pass::Stopped;
        }
        let node = loop {
            let Some((_, _, id)) = ranked.pop_first() else { break None };
            let node = draft.state.node(&id);
            if node.is_some_and(|node| pipeline.admits(node, loads.of(&id))) {
                break Some(id);
            }
        };
        match node {
            Some(id) => {
                assign(draft, loads, *wanting, id);
                ranked.insert(loads.rank(id, &service));
            }
            None => {
                let text = explanation.get_or_insert_with(|| pipeline.explain());
                explain(draft, *wanting, text);
            }
        }
    }
    Pass::Done
}

/// A task made in this step gets its node in the decision that makes it.
fn assign(draft: &mut Draft<'_>, loads: &mut Loads<'_>, wanting: Wanting, node: NodeId) {
    match wanting {
        Wanting::Made(position) => {
            if let Some(Decision::TaskCreate(task)) = draft.decisions.get_mut(position) {
                task.node = Some(node);
                task.status = status(draft.now, TaskState::Assigned, ASSIGNED, None);
                loads.add(node, task);
            }
        }
        Wanting::Known(id) => {
            draft.decisions.push(Decision::TaskAssign { id, node });
            if let Some(task) = draft.state.task(&id) {
                loads.add(node, task);
            }
        }
    }
}

fn explain(draft: &mut Draft<'_>, wanting: Wanting, text: &str) {
    let new = status(draft.now, TaskState::Pending, PENDING, Some(String::from(text)));
    match wanting {
        Wanting::Made(position) => {
            if let Some(Decision::TaskCreate(task)) = draft.decisions.get_mut(position) {
                task.status = new;
            }
        }
        Wanting::Known(id) => {
            let old = draft.state.task(&id).and_then(|task| task.status.err.as_deref());
            if old != Some(text) {
                draft.decisions.push(Decision::TaskStatus { id, status: new });
            }
        }
    }
}

fn status(at: Stamp, state: TaskState, message: &str, err: Option<String>) -> TaskStatus {
    TaskStatus { at, state, message: String::from(message), err, container: None }
}
