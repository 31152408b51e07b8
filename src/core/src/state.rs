//! Everything the swarm holds. Objects are shared and never changed in place: whoever holds
//! one keeps what it saw.

mod grants;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;

use crate::command::Outcome;
use crate::id::{MaterialId, NodeId, RequestId, ServiceId, TaskId};
use crate::limits;
use crate::model::cluster::Cluster;
use crate::model::material::{Material, MaterialKind};
use crate::model::node::{ManagerInfo, Node};
use crate::model::service::Service;
use crate::model::task::Task;
use crate::sealed::Sealed;
use crate::shared::Shared;
use crate::time::Stamp;

pub use grants::Anchored;
use grants::Count;

/// Key of the payload table: which object, which version.
pub type PayloadKey = (MaterialId, u64);

/// The replicated state of the swarm.
///
/// Fields are readable inside the crate only; `apply` alone writes them, and keeps the indexes
/// true.
#[derive(Debug, Default, Clone)]
pub struct State {
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) nodes: BTreeMap<NodeId, Arc<Node>>,
    pub(crate) materials: BTreeMap<MaterialId, Arc<Material>>,
    pub(crate) payloads: BTreeMap<PayloadKey, Arc<Sealed>>,
    pub(crate) services: BTreeMap<ServiceId, Arc<Service>>,
    pub(crate) tasks: BTreeMap<TaskId, Arc<Task>>,
    pub(crate) last_stamp: Stamp,
    pub(crate) format: u32,
    /// Requests whose first outcome is remembered, oldest first, with the time of that outcome.
    pub(crate) requests: VecDeque<(RequestId, Stamp)>,
    /// The outcomes of exactly those.
    pub(crate) outcomes: BTreeMap<RequestId, Outcome>,
    /// Deadline of the latest deletion of a payload: its stamp + `PURGE_WITHIN`. Every deletion
    /// moves it, and nothing clears it: each manager keeps for itself what it has purged.
    pub(crate) purge_due: Option<Stamp>,
    /// How far the audit of each task has come, at most [`limits::AUDIT_ANCHORS`].
    pub(crate) anchors: BTreeMap<TaskId, Anchored>,
    pub(crate) index: Index,
}

/// What is derived from the objects. Never encoded.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Index {
    pub(crate) material_names: BTreeMap<(MaterialKind, String), MaterialId>,
    pub(crate) service_names: BTreeMap<String, ServiceId>,
    pub(crate) users: BTreeMap<MaterialId, BTreeSet<ServiceId>>,
    /// How many services, by their spec or the one before it, and tasks that have not ended are
    /// pinned to a version.
    pub(crate) pins: BTreeMap<PayloadKey, u64>,
    /// Grants of tasks that have not ended, by their service.
    pub(crate) holders: BTreeMap<MaterialId, BTreeMap<ServiceId, u64>>,
    /// What is revoked from a service, or from tasks of it.
    pub(crate) revoked: BTreeMap<ServiceId, BTreeSet<MaterialId>>,
    /// Anchors of audits by when they were set, those of tasks that were never known first.
    pub(crate) anchors_by_age: BTreeSet<(bool, Stamp, TaskId)>,
    /// With its slot first, so that a service's tasks come slot by slot.
    pub(crate) tasks_of_service: BTreeMap<ServiceId, BTreeMap<(u64, TaskId), Arc<Task>>>,
    pub(crate) tasks_of_node: BTreeMap<NodeId, BTreeSet<TaskId>>,
    /// What each node's live tasks take of it.
    pub(crate) loads: BTreeMap<NodeId, NodeLoad>,
    /// Every node by how many tasks are to run there.
    pub(crate) by_load: BTreeSet<(u64, NodeId)>,
    /// Tasks that wait for a node.
    pub(crate) unassigned: BTreeSet<TaskId>,
    /// Services that are gone, while tasks of theirs remain.
    pub(crate) removed_services: BTreeSet<ServiceId>,
    pub(crate) payload_bytes: u64,
    /// Payloads by the ring key that opens them.
    pub(crate) payloads_of_key: BTreeMap<u64, u64>,
}

/// What the live tasks of a node take of it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct NodeLoad {
    /// Tasks that are to run there.
    pub tasks: u64,
    /// The same by service.
    pub by_service: BTreeMap<ServiceId, u64>,
    /// CPUs reserved by tasks that have not ended, in billionths.
    pub nano_cpus: u64,
    /// Memory reserved by them, in bytes.
    pub memory_bytes: u64,
    /// Countable resources reserved by them.
    pub generic: BTreeMap<String, u64>,
}

impl State {
    /// The swarm, once there is one.
    #[must_use]
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    /// The node with this id.
    #[must_use]
    pub fn node(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }

    /// All managers by node id.
    pub fn managers(&self) -> impl Iterator<Item = (&Arc<Node>, &ManagerInfo)> {
        self.nodes.values().filter_map(|node| Some((node, node.manager.as_ref()?)))
    }

    /// All nodes by id.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// The secret or config with this id.
    #[must_use]
    pub fn material(&self, id: &MaterialId) -> Option<&Arc<Material>> {
        self.materials.get(id)
    }

    /// The secret or config of this kind and name.
    #[must_use]
    pub fn material_named(&self, kind: MaterialKind, name: &str) -> Option<&Arc<Material>> {
        let id = self.index.material_names.get(&(kind, String::from(name)))?;
        self.materials.get(id)
    }

    /// All secrets and configs by id.
    pub fn materials(&self) -> impl ExactSizeIterator<Item = &Arc<Material>> {
        self.materials.values()
    }

    /// The sealed payload of one version.
    #[must_use]
    pub fn payload(&self, id: &MaterialId, number: u64) -> Option<&Arc<Sealed>> {
        self.payloads.get(&(*id, number))
    }

    /// The service with this id.
    #[must_use]
    pub fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    /// The service of this name.
    #[must_use]
    pub fn service_named(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.get(self.index.service_names.get(name)?)
    }

    /// All services by id.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// Services that refer to this secret or config.
    pub fn users_of(&self, id: &MaterialId) -> impl Iterator<Item = &Arc<Service>> {
        let ids = self.index.users.get(id).into_iter().flatten();
        ids.filter_map(|id| self.services.get(id))
    }

    /// The task with this id.
    #[must_use]
    pub fn task(&self, id: &TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(id)
    }

    /// All tasks by id.
    pub fn tasks(&self) -> impl ExactSizeIterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// Tasks of a service slot by slot, ended ones included.
    pub fn tasks_of_service(&self, id: &ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        self.index.tasks_of_service.get(id).into_iter().flat_map(BTreeMap::values)
    }

    /// Tasks of one slot of a service, ended ones included.
    pub fn tasks_of_slot(&self, id: &ServiceId, slot: u64) -> impl Iterator<Item = &Arc<Task>> {
        let (first, last) = ((slot, TaskId::MIN), (slot, TaskId::MAX));
        let all = self.index.tasks_of_service.get(id);
        all.into_iter().flat_map(move |all| all.range(first..=last)).map(|(_, task)| task)
    }

    /// What the live tasks of a node take of it; none if it has none.
    #[must_use]
    pub fn load(&self, id: &NodeId) -> Option<&NodeLoad> {
        self.index.loads.get(id)
    }

    /// Tasks assigned to a node, ended ones included.
    pub fn tasks_of_node(&self, id: &NodeId) -> impl Iterator<Item = &Arc<Task>> {
        let ids = self.index.tasks_of_node.get(id).into_iter().flatten();
        ids.filter_map(|id| self.tasks.get(id))
    }

    /// The latest stamp applied. The next one is not earlier.
    #[must_use]
    pub fn last_stamp(&self) -> Stamp {
        self.last_stamp
    }

    /// The format of its records and commands: every manager reads it. 0 before there is a swarm.
    #[must_use]
    pub fn format(&self) -> u32 {
        self.format
    }

    /// When the payload deleted last must be out of every log and snapshot; `None` before the
    /// first deletion.
    #[must_use]
    pub fn purge_due(&self) -> Option<Stamp> {
        self.purge_due
    }
}

/// Upkeep: every write goes through one of these, so objects and indexes agree.
impl State {
    pub(crate) fn put_node(&mut self, node: Node) {
        let tasks = self.index.loads.get(&node.id).map_or(0, |load| load.tasks);
        self.index.by_load.insert((tasks, node.id));
        self.nodes.insert(node.id, Arc::new(node));
    }

    /// Removes a node. All its tasks have ended.
    pub(crate) fn remove_node(&mut self, id: &NodeId) {
        if self.nodes.remove(id).is_some() {
            let tasks = self.index.loads.get(id).map_or(0, |load| load.tasks);
            self.index.by_load.remove(&(tasks, *id));
        }
    }

    pub(crate) fn put_material(&mut self, material: Material) {
        let name = (material.kind, material.spec.name.clone());
        self.index.material_names.insert(name, material.id);
        for entry in &material.revoked {
            self.index.revoked.entry(entry.service).or_default().insert(material.id);
        }
        let material = Arc::new(material);
        if let Some(old) = self.materials.insert(material.id, Arc::clone(&material)) {
            self.unlist_revoked(&old, &material.revoked);
        }
    }

    /// Removes a secret or config with all its payloads.
    pub(crate) fn remove_material(&mut self, id: &MaterialId) {
        let Some(material) = self.materials.remove(id) else { return };
        self.index.material_names.remove(&(material.kind, material.spec.name.clone()));
        self.unlist_revoked(&material, &[]);
        for version in &material.versions {
            self.remove_payload(&(*id, version.number));
        }
    }

    pub(crate) fn put_payload(&mut self, key: PayloadKey, sealed: Sealed) {
        self.remove_payload(&key);
        self.index.payload_bytes += sealed.bytes.len() as u64;
        *self.index.payloads_of_key.entry(sealed.key).or_default() += 1;
        self.payloads.insert(key, Arc::new(sealed));
    }

    pub(crate) fn remove_payload(&mut self, key: &PayloadKey) {
        if let Some(sealed) = self.payloads.remove(key) {
            self.index.payload_bytes -= sealed.bytes.len() as u64;
            subtract_from(&mut self.index.payloads_of_key, &sealed.key, 1);
        }
    }

    pub(crate) fn put_service(&mut self, service: Service) {
        self.forget_service(&service.id);
        for grant in service.spec.task.container.grants() {
            self.index.users.entry(grant.id).or_default().insert(service.id);
        }
        self.count_pins_of_service(&service, Count::In);
        self.index.service_names.insert(service.spec.name.clone(), service.id);
        self.index.removed_services.remove(&service.id);
        self.services.insert(service.id, Arc::new(service));
    }

    pub(crate) fn remove_service(&mut self, id: &ServiceId) {
        self.forget_service(id);
        if self.services.remove(id).is_some() && self.index.tasks_of_service.contains_key(id) {
            self.index.removed_services.insert(*id);
        }
    }

    fn forget_service(&mut self, id: &ServiceId) {
        let Some(old) = self.services.get(id).cloned() else { return };
        self.count_pins_of_service(&old, Count::Out);
        self.index.service_names.remove(&old.spec.name);
        for grant in old.spec.task.container.grants() {
            remove_from(&mut self.index.users, &grant.id, id);
        }
    }

    pub(crate) fn put_task(&mut self, task: Task) {
        let task = Arc::new(task);
        match self.tasks.insert(task.id, Arc::clone(&task)) {
            Some(old) if is_in_place(&old, &task) => {
                if let Some(tasks) = self.index.tasks_of_service.get_mut(&task.service) {
                    tasks.insert((task.slot, task.id), Arc::clone(&task));
                }
                self.reload(&old, &task);
            }
            old => {
                if let Some(old) = old {
                    self.unlist(&old);
                }
                self.list(task);
            }
        }
    }

    /// Enters a task that is new, or is elsewhere now.
    fn list(&mut self, task: Arc<Task>) {
        let services = &mut self.index.tasks_of_service;
        services.entry(task.service).or_default().insert((task.slot, task.id), Arc::clone(&task));
        self.count_grants(&task, Count::In);
        match task.node {
            Some(node) => {
                self.index.tasks_of_node.entry(node).or_default().insert(task.id);
                self.change_load(node, |load| load.add(&task));
            }
            None if !task.is_done() => {
                self.index.unassigned.insert(task.id);
            }
            None => {}
        }
        if !self.services.contains_key(&task.service) {
            self.index.removed_services.insert(task.service);
        }
    }

    /// Counts a task anew that stayed where it is.
    fn reload(&mut self, old: &Task, task: &Task) {
        let weighs = |task: &Task| (task.is_done(), task.status.state.is_terminal());
        if weighs(old) == weighs(task) && Shared::same(&old.spec, &task.spec) {
            return;
        }
        self.count_grants(old, Count::Out);
        self.count_grants(task, Count::In);
        match task.node {
            Some(node) => self.change_load(node, |load| {
                load.subtract(old);
                load.add(task);
            }),
            None if task.is_done() => {
                self.index.unassigned.remove(&task.id);
            }
            None => {}
        }
    }

    /// Lets a task that came in as bytes share again what all tasks of its service have: its
    /// template and its labels.
    pub(crate) fn share_with_service(&self, task: &mut Task) {
        if let Some(tasks) = self.index.tasks_of_service.get(&task.service)
            && let Some((_, other)) = tasks.last_key_value()
            && *other.service_labels == *task.service_labels
        {
            task.service_labels = other.service_labels.clone();
        }
        if let Some(service) = self.services.get(&task.service)
            && service.spec_version == task.spec_version
            && *service.spec.task == *task.spec
        {
            task.spec = service.spec.task.clone();
        }
    }

    pub(crate) fn remove_task(&mut self, id: &TaskId) {
        let Some(task) = self.tasks.remove(id) else { return };
        self.unlist(&task);
        if !self.index.tasks_of_service.contains_key(&task.service) {
            self.index.removed_services.remove(&task.service);
        }
    }

    /// Takes a task out of every index.
    fn unlist(&mut self, task: &Task) {
        let services = &mut self.index.tasks_of_service;
        if let Some(tasks) = services.get_mut(&task.service) {
            tasks.remove(&(task.slot, task.id));
            if tasks.is_empty() {
                services.remove(&task.service);
            }
        }
        self.index.unassigned.remove(&task.id);
        self.count_grants(task, Count::Out);
        let Some(node) = task.node else { return };
        remove_from(&mut self.index.tasks_of_node, &node, &task.id);
        self.change_load(node, |load| load.subtract(task));
    }

    fn change_load(&mut self, node: NodeId, change: impl FnOnce(&mut NodeLoad)) {
        let load = self.index.loads.entry(node).or_default();
        let before = load.tasks;
        change(load);
        let after = load.tasks;
        if *load == NodeLoad::default() {
            self.index.loads.remove(&node);
        }
        if before != after && self.index.by_load.remove(&(before, node)) {
            self.index.by_load.insert((after, node));
        }
    }

    /// Remembers the first outcome of a request and forgets those beyond the bounds.
    pub(crate) fn remember(&mut self, request: RequestId, at: Stamp, outcome: Outcome) {
        while let Some((oldest, then)) = self.requests.front().copied() {
            let count = self.requests.len();
            let is_old = at.since(then) > limits::OUTCOME_AGE;
            if count < limits::OUTCOMES || (!is_old && count < limits::OUTCOMES_MAX) {
                break;
            }
            self.requests.pop_front();
            self.outcomes.remove(&oldest);
        }
        self.requests.push_back((request, at));
        self.outcomes.insert(request, outcome);
    }
}

/// Whether a task stays in its service, slot and node.
fn is_in_place(old: &Task, task: &Task) -> bool {
    (old.service, old.slot, old.node) == (task.service, task.slot, task.node)
}

/// Removes one value, and its set with the last one.
fn remove_from<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

impl NodeLoad {
    /// Counts a task in. One that ended takes nothing; one that was told to end still holds
    /// what it reserved but does not count as running there.
    pub(crate) fn add(&mut self, task: &Task) {
        if task.status.state.is_terminal() {
            return;
        }
        if !task.is_done() {
            self.tasks += 1;
            *self.by_service.entry(task.service).or_default() += 1;
        }
        if let Some(needs) = task.spec.reserved() {
            self.nano_cpus = self.nano_cpus.saturating_add(needs.nano_cpus);
            self.memory_bytes = self.memory_bytes.saturating_add(needs.memory_bytes);
            for (kind, count) in &needs.generic {
                let held = self.generic.entry(kind.clone()).or_default();
                *held = held.saturating_add(*count);
            }
        }
    }

    fn subtract(&mut self, task: &Task) {
        if task.status.state.is_terminal() {
            return;
        }
        if !task.is_done() {
            self.tasks = self.tasks.saturating_sub(1);
            subtract_from(&mut self.by_service, &task.service, 1);
        }
        if let Some(needs) = task.spec.reserved() {
            self.nano_cpus = self.nano_cpus.saturating_sub(needs.nano_cpus);
            self.memory_bytes = self.memory_bytes.saturating_sub(needs.memory_bytes);
            for (kind, count) in &needs.generic {
                subtract_from(&mut self.generic, kind, *count);
            }
        }
    }
}

fn subtract_from<K: Ord>(map: &mut BTreeMap<K, u64>, key: &K, count: u64) {
    if let Some(held) = map.get_mut(key) {
        *held = held.saturating_sub(count);
        if *held == 0 {
            map.remove(key);
        }
    }
}
