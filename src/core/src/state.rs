//! Everything the swarm holds. Objects are shared and never changed in place: whoever holds
//! one keeps what it saw.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;

use crate::command::Outcome;
use crate::id::{MaterialId, NodeId, RequestId, ServiceId, TaskId};
use crate::model::cluster::Cluster;
use crate::model::material::{Material, MaterialKind};
use crate::model::node::Node;
use crate::model::service::Service;
use crate::model::task::Task;
use crate::sealed::Sealed;
use crate::time::Stamp;

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
    /// First outcomes, oldest first; bounded by `limits::OUTCOMES`.
    pub(crate) outcomes: VecDeque<(RequestId, Outcome)>,
    /// Deadline of the latest deletion of a payload: its stamp + `PURGE_WITHIN`. Every deletion
    /// moves it, and nothing clears it: each manager keeps for itself what it has purged.
    pub(crate) purge_due: Option<Stamp>,
    pub(crate) index: Index,
}

/// What is derived from the objects. Never encoded.
#[derive(Debug, Default, Clone)]
pub(crate) struct Index {
    pub(crate) material_names: BTreeMap<(MaterialKind, String), MaterialId>,
    pub(crate) service_names: BTreeMap<String, ServiceId>,
    pub(crate) users: BTreeMap<MaterialId, BTreeSet<ServiceId>>,
    pub(crate) tasks_of_service: BTreeMap<ServiceId, BTreeSet<TaskId>>,
    pub(crate) tasks_of_node: BTreeMap<NodeId, BTreeSet<TaskId>>,
    pub(crate) outcomes: BTreeMap<RequestId, Outcome>,
    pub(crate) payload_bytes: u64,
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

    /// Tasks of a service, ended ones included.
    pub fn tasks_of_service(&self, id: &ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        let ids = self.index.tasks_of_service.get(id).into_iter().flatten();
        ids.filter_map(|id| self.tasks.get(id))
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

    /// When the payload deleted last must be out of every log and snapshot; `None` before the
    /// first deletion.
    #[must_use]
    pub fn purge_due(&self) -> Option<Stamp> {
        self.purge_due
    }
}
