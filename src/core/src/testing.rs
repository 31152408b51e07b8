//! What the tests share: a small swarm and short ways to change it.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::apply::{Change, apply};
use crate::command::{
    Append, ClusterInit, Command, NodeJoin, NodeReport, Outcome, Proposal, TaskReport,
    TokenRotation, TrustSecrets,
};
use crate::id::{ENTROPY_LEN, Id, MaterialId, NodeId, RequestId, ServiceId, TaskId};
use crate::model::Meta;
use crate::model::cluster::{ClusterSpec, FormerSecret, Ring, RingKey, Slot, Trust};
use crate::model::container::ContainerSpec;
use crate::model::material::{Author, Grant, MaterialKind, MaterialSpec, OnChange};
use crate::model::node::{ManagerInfo, NodeDescription, NodeSpec, NodeState, NodeStatus, Role};
use crate::model::service::{ServiceMode, ServiceSpec};
use crate::model::task::{Task, TaskSpec, TaskState, TaskStatus};
use crate::sealed::Sealed;
use crate::shared::Shared;
use crate::snapshot;
use crate::state::State;
use crate::time::{Span, Stamp};

/// An id of any kind that ends in a number, in base 36. The digit after it is not shown.
pub(crate) fn id<K>(n: u64) -> Id<K> {
    let mut entropy = [0; ENTROPY_LEN];
    entropy[ENTROPY_LEN - 8..].copy_from_slice(&(n * 36).to_be_bytes());
    Id::from_entropy(entropy)
}

pub(crate) fn material_spec(name: &str) -> MaterialSpec {
    MaterialSpec { name: String::from(name), ..MaterialSpec::default() }
}

pub(crate) fn sealed(key: u64, size: u64) -> Sealed {
    Sealed { key, nonce: [7; 12], bytes: alloc::vec![0x5a; size as usize + 16] }
}

pub(crate) fn grant(id: MaterialId, name: &str) -> Grant {
    let name = String::from(name);
    let (uid, gid, mode, pin, on_change) = (0, 0, 0o444, None, OnChange::Nothing);
    Grant { id, target: name.clone(), name, uid, gid, mode, pin, on_change }
}

pub(crate) fn author() -> Author {
    Author { node: id(1), uid: 1_000 }
}

/// An append of one version. Its plaintext is as long as the payload without its tag.
pub(crate) fn append(id: MaterialId, number: u64, payload: Sealed) -> Command {
    let size = payload.bytes.len() as u64 - 16;
    let items = alloc::vec![Append { id, number, size, payload, of: None }];
    Command::MaterialAppend { items, by: author(), keep: None }
}

pub(crate) fn service_spec(name: &str, replicas: u64) -> ServiceSpec {
    let container = ContainerSpec { image: String::from("busybox"), ..ContainerSpec::default() };
    ServiceSpec {
        name: String::from(name),
        labels: BTreeMap::new(),
        task: Shared::new(TaskSpec { container, ..TaskSpec::default() }),
        mode: ServiceMode::Replicated { replicas },
        update: None,
        rollback: None,
        endpoint: None,
    }
}

pub(crate) fn task(n: u64) -> Task {
    Task {
        id: id(n),
        meta: Meta::default(),
        service: id(5),
        service_name: String::from("web"),
        service_labels: Shared::default(),
        slot: 1,
        node: None,
        spec: Shared::default(),
        spec_version: 1,
        status: TaskStatus { state: TaskState::Pending, ..TaskStatus::default() },
        desired: TaskState::Running,
        start_after: None,
        attempts: 0,
        window_start: Stamp(0),
        running_since: None,
        started_with: Vec::new(),
    }
}

pub(crate) fn create_secret(n: u64, name: &str) -> Command {
    Command::MaterialCreate {
        id: id(n),
        kind: MaterialKind::Secret,
        spec: material_spec(name),
        size: 3,
        payload: sealed(1, 3),
        by: author(),
    }
}

/// The first entry of a swarm whose first manager is node 1.
pub(crate) fn init() -> Command {
    let slot = Slot { sealed: Vec::new() };
    let key =
        RingKey { version: 1, created: Stamp(1), slots: BTreeMap::from([(id::<_>(1), slot)]) };
    Command::ClusterInit(Box::new(ClusterInit {
        id: id(1),
        spec: ClusterSpec::default(),
        ring: Ring { current: 1, keys: alloc::vec![key] },
        trust: Trust::default(),
        incarnation_id: [1; 16],
        node: id(1),
        node_spec: NodeSpec::default(),
        description: description("one"),
        manager: ManagerInfo { raft_id: 1, addr: String::from("10.0.0.1:2377") },
        public_key: Vec::new(),
        seal_key: [0; 32],
        addr: String::from("10.0.0.1"),
    }))
}

/// A worker that joins.
pub(crate) fn joiner(n: u64, hostname: &str) -> NodeJoin {
    NodeJoin {
        id: id(n),
        public_key: n.to_be_bytes().to_vec(),
        seal_key: [7; 32],
        spec: NodeSpec::default(),
        description: description(hostname),
        advertise: alloc::format!("10.0.0.{n}:2377"),
        addr: alloc::format!("10.0.0.{n}"),
        manager: None,
    }
}

pub(crate) fn slot() -> Slot {
    Slot { sealed: alloc::vec![3; 80] }
}

pub(crate) fn description(hostname: &str) -> NodeDescription {
    NodeDescription {
        hostname: String::from(hostname),
        architecture: String::from("x86_64"),
        os: String::from("linux"),
        nano_cpus: 4_000_000_000,
        memory_bytes: 8 << 30,
        ..NodeDescription::default()
    }
}

pub(crate) fn records(state: &State) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    snapshot::write(state, &mut |record| records.push(record.to_vec()));
    records
}

/// A swarm under test, with a clock that moves a millisecond with every command.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) changes: Vec<Change>,
    pub(crate) now: Stamp,
    pub(crate) node: NodeId,
    /// Everything that was proposed.
    pub(crate) log: Vec<Proposal>,
    requests: u64,
    ids: u64,
}

impl World {
    pub(crate) fn empty() -> Self {
        let now = Stamp(1_000_000_000_000);
        let node = id(1);
        let (changes, log) = (Vec::new(), Vec::new());
        Self { state: State::default(), changes, now, node, log, requests: 0, ids: 1_000 }
    }

    pub(crate) fn new() -> Self {
        let mut world = Self::empty();
        world.done(init());
        world
    }

    pub(crate) fn run_as(&mut self, request: RequestId, command: Command) -> Outcome {
        self.now = self.now + Span::from_millis(1);
        let proposal = Proposal::new(request, self.now, command);
        let outcome = apply(&mut self.state, &proposal, &mut self.changes);
        self.log.push(proposal);
        outcome
    }

    pub(crate) fn run(&mut self, command: Command) -> Outcome {
        self.requests += 1;
        self.run_as(id(self.requests), command)
    }

    /// Runs a command that must be done and gives the write counter it answers.
    #[track_caller]
    pub(crate) fn done(&mut self, command: Command) -> u64 {
        match self.run(command) {
            Outcome::Done(version) => version,
            outcome => panic!("{outcome:?}"),
        }
    }

    pub(crate) fn records(&self) -> Vec<Vec<u8>> {
        records(&self.state)
    }

    fn material(&mut self, kind: MaterialKind, name: &str) -> MaterialId {
        self.ids += 1;
        let id = id(self.ids);
        let (spec, payload) = (material_spec(name), sealed(1, 3));
        self.done(Command::MaterialCreate { id, kind, spec, size: 3, payload, by: author() });
        id
    }

    pub(crate) fn secret(&mut self, name: &str) -> MaterialId {
        self.material(MaterialKind::Secret, name)
    }

    pub(crate) fn config(&mut self, name: &str) -> MaterialId {
        self.material(MaterialKind::Config, name)
    }

    pub(crate) fn create_service(&mut self, n: u64, spec: ServiceSpec) -> ServiceId {
        let id = id(n);
        self.done(Command::ServiceCreate { id, spec });
        id
    }

    pub(crate) fn update_service(&mut self, n: u64, change: impl FnOnce(&mut ServiceSpec)) {
        let service = self.state.service(&id(n)).unwrap();
        let (id, version) = (service.id, service.meta.version);
        let mut spec = ServiceSpec::clone(&service.spec);
        change(&mut spec);
        self.done(Command::ServiceUpdate { id, version, spec });
    }

    /// One slot for every key of the ring.
    pub(crate) fn slots(&self) -> BTreeMap<u64, Slot> {
        let keys = &self.state.cluster().unwrap().ring.keys;
        keys.iter().map(|key| (key.version, slot())).collect()
    }

    /// The ring's next key for these managers, with everything else it seals.
    pub(crate) fn next_key(&self, managers: &[NodeId]) -> (RingKey, TrustSecrets) {
        let cluster = self.state.cluster().unwrap();
        let version = cluster.ring.current + 1;
        let slots = managers.iter().map(|id| (*id, slot())).collect();
        let secrets = TrustSecrets {
            root_key: sealed(version, 5),
            worker_secret: sealed(version, 6),
            manager_secret: sealed(version, 7),
            unlock_key: cluster.trust.unlock_key.as_ref().map(|_| sealed(version, 8)),
            next_root_key: cluster.trust.next.as_ref().map(|_| sealed(version, 9)),
            cluster_version: cluster.meta.version,
            former: alloc::vec::Vec::new(),
        };
        (RingKey { version, created: Stamp(0), slots }, secrets)
    }

    /// New join secrets of both roles.
    pub(crate) fn new_tokens(&self) -> TokenRotation {
        let key = self.state.cluster().unwrap().ring.current;
        let former = |role| FormerSecret { role, verifier: [3; 32] };
        TokenRotation {
            worker: Some(sealed(key, 6)),
            manager: Some(sealed(key, 7)),
            former: alloc::vec![former(Role::Worker), former(Role::Manager)],
        }
    }

    pub(crate) fn promotion(&self, id: NodeId, raft_id: u64) -> Command {
        let node = self.state.node(&id).unwrap();
        let spec = NodeSpec { role: Role::Manager, ..node.spec.clone() };
        let slots = self.slots();
        Command::NodePromote { id, version: node.meta.version, spec, raft_id, slots }
    }

    pub(crate) fn demotion(&self, id: NodeId) -> Command {
        let node = self.state.node(&id).unwrap();
        let spec = NodeSpec { role: Role::Worker, ..node.spec.clone() };
        let managers = self.state.managers().map(|(node, _)| node.id);
        let stay: Vec<NodeId> = managers.filter(|other| *other != id).collect();
        let (key, secrets) = self.next_key(&stay);
        Command::NodeDemote { id, version: node.meta.version, spec, key, secrets }
    }

    /// A join of node `n` as a manager, with the Raft id `n`.
    pub(crate) fn manager_join(&self, n: u64) -> Command {
        let spec = NodeSpec { role: Role::Manager, ..NodeSpec::default() };
        let manager = Some((n, self.slots()));
        Command::NodeJoin(Box::new(NodeJoin { spec, manager, ..joiner(n, "manager") }))
    }

    pub(crate) fn turn(&mut self, id: NodeId, to: NodeState) {
        let status = NodeStatus { state: to, since: self.now, ..NodeStatus::default() };
        let status = Some(status);
        let report = NodeReport { id, description: None, status, advertise: None };
        self.done(Command::NodeReport(alloc::vec![report]));
    }

    pub(crate) fn report(&mut self, id: TaskId, node: NodeId, state: TaskState) {
        let status = TaskStatus { at: self.now, state, ..TaskStatus::default() };
        self.done(Command::TaskReport(alloc::vec![TaskReport { id, node, status }]));
    }
}
