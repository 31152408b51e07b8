//! What one node has to run, and how that differs from what it was last told.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use minicbor::{Decode, Encode};

use crate::id::{MaterialId, NodeId, TaskId};
use crate::model::material::{Grant, MaterialKind, OnChange};
use crate::model::task::{Task, TaskState};
use crate::state::State;
use crate::time::Stamp;

/// A grant as a node receives it: the version is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct AssignedGrant {
    /// What is granted.
    #[n(0)]
    pub material: MaterialId,
    /// Secret or config.
    #[n(1)]
    pub kind: MaterialKind,
    /// Its name.
    #[n(2)]
    pub name: String,
    /// The version: pinned, or the latest.
    #[n(3)]
    pub version: u64,
    /// When that version was added.
    #[n(4)]
    pub created: Stamp,
    /// Its plaintext bytes.
    #[n(5)]
    pub size: u64,
    /// Where the file goes: see [`Grant::target`].
    #[n(6)]
    pub target: String,
    /// Owner of the file.
    #[n(7)]
    pub uid: u32,
    /// Group of the file.
    #[n(8)]
    pub gid: u32,
    /// Permission bits of the file.
    #[n(9)]
    pub mode: u32,
    /// What becomes of the task when a new version reaches it.
    #[n(10)]
    pub on_change: OnChange,
}

/// A task with its grants, as a node receives it. It carries no payload.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TaskAssignment {
    /// The task.
    #[n(0)]
    pub task: Task,
    /// Its grants; none for a task that is to end.
    #[n(1)]
    pub grants: Vec<AssignedGrant>,
    /// What its spec grants and is revoked.
    #[n(2)]
    pub revoked: Vec<MaterialId>,
}

/// Something that a task's spec grants and the task may not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing<'a> {
    /// Secret or config.
    pub kind: MaterialKind,
    /// Its name when the service was written.
    pub name: &'a str,
    /// Why.
    pub reason: Reason,
}

/// Why a task may not have what its spec grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It, or the version the grant is pinned to, was removed.
    Removed,
    /// It is revoked.
    Revoked,
}

impl fmt::Display for Missing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = (self.kind.kind().word(), self.name);
        match self.reason {
            Reason::Removed => write!(
                f,
                "{kind} {name} is granted and was removed: make it anew, or update the service \
                 without it"
            ),
            Reason::Revoked => write!(
                f,
                "{kind} {name} is revoked: give it a new version, or update the service so that \
                 it grants it anew"
            ),
        }
    }
}

/// What changed for a node.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct AssignmentDiff {
    /// Counts the diffs of a session from 1. The first is complete: a task it does not name is
    /// to go.
    #[n(0)]
    pub sequence: u64,
    /// New tasks, and tasks whose desired state or grants changed.
    #[n(1)]
    pub update: Vec<TaskAssignment>,
    /// Tasks to forget with all they left.
    #[n(2)]
    pub remove: Vec<TaskId>,
}

/// What a node was told of one task: all that can change after the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    desired: TaskState,
    versions: Vec<(MaterialId, u64)>,
    revoked: Vec<MaterialId>,
}

/// What a node's session was last told.
#[derive(Debug)]
pub struct Assigner {
    node: NodeId,
    sequence: u64,
    told: BTreeMap<TaskId, Told>,
}

impl TaskAssignment {
    /// What the task's spec grants and the task may not have. Such a task cannot start.
    pub fn missing(&self) -> impl Iterator<Item = Missing<'_>> {
        let is_to_run = self.task.desired <= TaskState::Running;
        let granted = self.task.spec.container.grants_by_kind().filter(move |_| is_to_run);
        granted.filter(|(_, grant)| self.grants.iter().all(|found| found.material != grant.id)).map(
            |(kind, grant)| {
                let is_revoked = self.revoked.contains(&grant.id);
                let reason = if is_revoked { Reason::Revoked } else { Reason::Removed };
                Missing { kind, name: grant.name.as_str(), reason }
            },
        )
    }
}

impl Assigner {
    /// An assigner that has told its node nothing yet.
    #[must_use]
    pub fn new(node: NodeId) -> Self {
        Self { node, sequence: 0, told: BTreeMap::new() }
    }

    /// What to tell the node now. None if it knows all; the first time there is always an
    /// answer.
    pub fn diff(&mut self, state: &State) -> Option<AssignmentDiff> {
        let mut update = Vec::new();
        let mut present = BTreeSet::new();
        let tasks = state.tasks_of_node(&self.node);
        for task in tasks.filter(|task| task.status.state >= TaskState::Assigned) {
            present.insert(task.id);
            let grants = grants(state, task);
            let versions = grants.iter().map(|g| (g.material, g.version)).collect();
            let revoked = if task.is_done() { Vec::new() } else { revoked(state, task) };
            let told = Told { desired: task.desired, versions, revoked: revoked.clone() };
            if self.told.get(&task.id) != Some(&told) {
                self.told.insert(task.id, told);
                update.push(TaskAssignment { task: Task::clone(task), grants, revoked });
            }
        }
        let gone = |id: &&TaskId| !present.contains(*id);
        let remove: Vec<TaskId> = self.told.keys().filter(gone).copied().collect();
        for id in &remove {
            self.told.remove(id);
        }
        if self.sequence > 0 && update.is_empty() && remove.is_empty() {
            return None;
        }
        self.sequence += 1;
        Some(AssignmentDiff { sequence: self.sequence, update, remove })
    }
}

/// The grants of a task as its node may have them now: none that is revoked.
#[must_use]
pub fn grants(state: &State, task: &Task) -> Vec<AssignedGrant> {
    if task.is_done() {
        return Vec::new();
    }
    task.spec.container.grants().filter_map(|grant| resolve(state, task, grant)).collect()
}

/// What a task's spec grants and is revoked now, in the order of ids. A task that is to end may
/// still read, so this does not ask whether it is.
#[must_use]
pub fn revoked(state: &State, task: &Task) -> Vec<MaterialId> {
    revoked_up_to(state, task).into_iter().map(|(id, _)| id).collect()
}

/// The same, each with the last version that it is revoked up to. A task never gets one of these
/// versions back.
#[must_use]
pub fn revoked_up_to(state: &State, task: &Task) -> Vec<(MaterialId, u64)> {
    // Most services have nothing revoked.
    if !state.index.revoked.contains_key(&task.service) {
        return Vec::new();
    }
    let revoked = |grant: &Grant| {
        let material = state.material(&grant.id)?;
        // Of a pinned version that is dropped its number says enough.
        let number = grant.pin.unwrap_or(material.last_version);
        material.revoked_up_to(task, number).map(|up_to| (grant.id, up_to))
    };
    let all: BTreeMap<MaterialId, u64> = task.spec.container.grants().filter_map(revoked).collect();
    all.into_iter().collect()
}

fn resolve(state: &State, task: &Task, grant: &Grant) -> Option<AssignedGrant> {
    let material = state.material(&grant.id)?;
    let version = match grant.pin {
        Some(number) => material.version(number)?,
        None => material.latest()?,
    };
    if material.revoked_up_to(task, version.number).is_some() {
        return None;
    }
    Some(AssignedGrant {
        material: material.id,
        kind: material.kind,
        name: material.spec.name.clone(),
        version: version.number,
        created: version.created,
        size: version.size,
        target: grant.target.clone(),
        uid: grant.uid,
        gid: grant.gid,
        mode: grant.mode,
        on_change: grant.on_change,
    })
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::codec;
    use crate::command::{Command, Decision};
    use crate::testing::{self, World, grant, sealed, service_spec};

    fn world_with_task() -> (World, MaterialId, MaterialId) {
        let mut world = World::new();
        let (following, pinned) = (world.secret("a"), world.secret("b"));
        let mut spec = service_spec("web", 1);
        let grants = vec![grant(following, "a"), Grant { pin: Some(1), ..grant(pinned, "b") }];
        spec.task.make_mut().container.secrets = grants;
        let service = world.create_service(5, spec);
        let spec = world.state.service(&service).unwrap().spec.task.clone();
        let task = Task { service, spec, node: Some(world.node), ..testing::task(40) };
        world.done(Command::Control(vec![Decision::TaskCreate(task)]));
        world.report(testing::id(40), world.node, TaskState::Accepted);
        (world, following, pinned)
    }

    fn append(id: MaterialId, number: u64) -> Command {
        testing::append(id, number, sealed(1, 9))
    }

    #[test]
    fn a_node_hears_of_changes_once() {
        let (mut world, following, pinned) = world_with_task();
        let mut assigner = Assigner::new(world.node);
        let first = assigner.diff(&world.state).unwrap();
        assert_eq!(first.sequence, 1);
        let grants = &first.update[0].grants;
        assert_eq!(grants.iter().map(|g| g.version).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(codec::decode_strict(&codec::encode(&first)), Ok(first));
        assert_eq!(assigner.diff(&world.state), None);
        let id = testing::id(40);
        world.report(id, world.node, TaskState::Running);
        assert_eq!(assigner.diff(&world.state), None, "its own report is no news to it");

        world.done(append(pinned, 2));
        assert_eq!(assigner.diff(&world.state), None, "a pinned grant stays");
        world.done(append(following, 2));
        let diff = assigner.diff(&world.state).unwrap();
        assert_eq!(diff.sequence, 2);
        let versions = diff.update[0].grants.iter().map(|g| (g.version, g.size));
        assert_eq!(versions.collect::<Vec<_>>(), [(2, 9), (1, 3)]);

        world.done(Command::ServiceRemove { id: testing::id(5) });
        let diff = assigner.diff(&world.state).unwrap();
        assert_eq!(diff.update[0].task.desired, TaskState::Remove);
        assert!(diff.update[0].grants.is_empty() && diff.update[0].missing().next().is_none());
        world.report(id, world.node, TaskState::Shutdown);
        world.done(Command::Control(vec![Decision::TaskRemove { id }]));
        assert_eq!(assigner.diff(&world.state).unwrap().remove, [id]);
    }

    #[test]
    fn what_was_removed_is_missing_and_never_assigned() {
        let (mut world, following, _) = world_with_task();
        world.update_service(5, |spec| {
            spec.task.make_mut().container.secrets.retain(|grant| grant.name != "a");
        });
        world.done(Command::MaterialRemove { id: following });
        let diff = Assigner::new(world.node).diff(&world.state).unwrap();
        assert_eq!(diff.update[0].grants.len(), 1);
        let missing: Vec<_> = diff.update[0].missing().collect();
        let (kind, reason) = (MaterialKind::Secret, Reason::Removed);
        assert_eq!(missing, [Missing { kind, name: "a", reason }]);
    }
}
