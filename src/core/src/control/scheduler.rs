//! Nodes for tasks that have none: as the service's placement preferences have it, then by the
//! fewest tasks of the service, then by the fewest tasks.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use super::Pass;
use super::draft::{Draft, PENDING};
use super::filter::Pipeline;
use super::loads::{Loads, Search};
use super::spread::Spread;
use crate::apply::ASSIGNED;
use crate::command::Decision;
use crate::id::{NodeId, ServiceId, TaskId};
use crate::model::task::{Task, TaskSpec, TaskState, TaskStatus};
use crate::shared::Shared;
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

/// Gives every task made in this step a node, with `all` every task that has none; or says why
/// it has to wait.
pub(super) fn run(draft: &mut Draft<'_>, all: bool) -> Pass {
    let mut loads = Loads::new(draft.state);
    let mut pass = Pass::Done;
    for ((service, _), group) in groups(draft, all) {
        if place(draft, &mut loads, service, &group) == Pass::Stopped {
            pass = Pass::Stopped;
        }
    }
    pass
}

fn groups(draft: &Draft<'_>, all: bool) -> BTreeMap<(ServiceId, u64), Group> {
    let mut groups = BTreeMap::new();
    let mut put = |task: &Task, wanting| {
        let key = (task.service, task.spec_version);
        let empty = || Group { spec: task.spec.clone(), tasks: Vec::new() };
        groups.entry(key).or_insert_with(empty).tasks.push(wanting);
    };
    for id in draft.state.index.unassigned.iter().filter(|_| all) {
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
    let pipeline = Pipeline::new(service, &group.spec);
    let mut search = Search::new(draft.state, service);
    let mut spread = Spread::new(&service, group.spec.placement.as_ref(), loads, &pipeline);
    let mut explanation = None;
    for wanting in &group.tasks {
        if matches!(wanting, Wanting::Known(_)) && draft.is_full() {
            return Pass::Stopped;
        }
        // What had no node for one task of the template has none for the next.
        let node = match &mut spread {
            _ if explanation.is_some() => None,
            Some(spread) => spread.next(&service, loads, &pipeline),
            None => search.next(loads, &pipeline),
        };
        match node {
            Some(id) => {
                assign(draft, loads, *wanting, id);
                if spread.is_none() {
                    search.put_back(loads, id);
                }
            }
            None => {
                let text = explanation.get_or_insert_with(|| pipeline.explain(loads.all()));
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
