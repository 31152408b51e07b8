//! One sample of everything that goes into log and snapshots, every field set. No struct takes
//! the rest from a default: who adds a field comes by here.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use crate::command::{
    Anchor, Append, CaChange, ClusterInit, Command, Decision, NodeJoin, NodeReport, Outcome,
    Rejection, Reseal, TaskReport, TokenRotation, TrustSecrets,
};
use crate::model::cluster::{
    Cluster, ClusterSpec, FormerSecret, NextRoot, Ring, RingKey, Slot, Trust,
};
use crate::model::container::{ContainerSpec, Dns, Health, Mount, MountKind, Ulimit};
use crate::model::material::{
    Author, Driver, Grant, Material, MaterialKind, MaterialSpec, MaterialVersion, OnChange,
    Revocation,
};
use crate::model::node::{
    Availability, ManagerInfo, Node, NodeDescription, NodeSpec, NodeState, NodeStatus, Role,
};
use crate::model::service::{
    EndpointSpec, FailureAction, Port, Service, ServiceMode, ServiceSpec, UpdateConfig,
    UpdateOrder, UpdateState, UpdateStatus,
};
use crate::model::task::{
    ContainerStatus, NetworkAttachment, Placement, ResourceNeeds, Resources, RestartCondition,
    RestartPolicy, Task, TaskSpec, TaskState, TaskStatus,
};
use crate::model::{Kind, Labels, Meta};
use crate::outcome::Dropped;
use crate::sealed::Sealed;
use crate::shared::Shared;
use crate::state::{Anchored, State};
use crate::testing::id;
use crate::time::{Span, Stamp};

fn text(text: &str) -> String {
    String::from(text)
}

fn labels() -> Labels {
    Labels::from([(text("key"), text("value"))])
}

fn sealed() -> Sealed {
    Sealed { key: 1, nonce: [2; 12], bytes: vec![3; 19] }
}

fn driver() -> Driver {
    Driver { name: text("golang"), options: labels() }
}

fn material_spec() -> MaterialSpec {
    let driver = driver();
    MaterialSpec {
        name: text("a"),
        labels: labels(),
        templating: Some(driver.clone()),
        driver: Some(driver),
        keep: Some(7),
    }
}

fn author() -> Author {
    Author { node: id(1), uid: 2 }
}

fn grant(n: u64, name: &str) -> Grant {
    Grant {
        id: id(n),
        name: text(name),
        target: text("/etc/target"),
        uid: 1,
        gid: 2,
        mode: 0o400,
        pin: Some(3),
        on_change: OnChange::Signal(1),
    }
}

fn mount() -> Mount {
    Mount {
        kind: MountKind::Tmpfs,
        source: text("source"),
        target: text("/target"),
        read_only: true,
        propagation: text("rprivate"),
        non_recursive: true,
        create_source: true,
        tmpfs_size: 4,
        tmpfs_mode: 0o1777,
        no_copy: true,
        volume_labels: labels(),
        options_sent: 5,
    }
}

fn container() -> ContainerSpec {
    ContainerSpec {
        image: text("busybox"),
        labels: labels(),
        command: vec![text("sh")],
        args: vec![text("-c")],
        hostname: text("host"),
        env: vec![text("A=b")],
        dir: text("/dir"),
        user: text("user:group"),
        groups: vec![text("more")],
        init: Some(true),
        stop_signal: text("SIGINT"),
        tty: true,
        open_stdin: true,
        read_only: true,
        mounts: vec![mount()],
        stop_grace: Some(Span(6)),
        health: Some(Health {
            test: vec![text("NONE")],
            interval: Span(1),
            timeout: Span(2),
            start_period: Span(3),
            start_interval: Span(4),
            retries: 5,
        }),
        hosts: vec![text("10.0.0.1 one")],
        dns: Some(Dns {
            nameservers: vec![text("10.0.0.2")],
            search: vec![text("example")],
            options: vec![text("ndots:1")],
        }),
        secrets: vec![grant(1, "a")],
        configs: vec![grant(2, "b")],
        isolation: text("default"),
        sysctls: labels(),
        cap_add: vec![text("CAP_CHOWN")],
        cap_drop: vec![text("CAP_KILL")],
        ulimits: vec![Ulimit { name: text("nofile"), hard: -1, soft: 1024 }],
        oom_score_adj: -500,
    }
}

fn resources() -> Resources {
    let generic = BTreeMap::from([(text("gpu"), 1)]);
    Resources { nano_cpus: 1, memory_bytes: 2, pids: 3, generic }
}

fn task_spec() -> TaskSpec {
    TaskSpec {
        container: container(),
        resources: Some(ResourceNeeds {
            limits: Some(resources()),
            reservations: Some(resources()),
        }),
        restart: Some(RestartPolicy {
            condition: Some(RestartCondition::OnFailure),
            delay: Some(Span(1)),
            max_attempts: Some(2),
            window: Some(Span(3)),
        }),
        placement: Some(Placement {
            constraints: vec![text("node.role==worker")],
            spread: vec![text("node.labels.zone")],
            max_replicas: 1,
            platforms: vec![(text("amd64"), text("linux"))],
        }),
        networks: vec![NetworkAttachment {
            target: text("net"),
            aliases: vec![text("alias")],
            options: labels(),
        }],
        log_driver: Some(driver()),
        force_update: 1,
        runtime: text("container"),
    }
}

fn update_config() -> UpdateConfig {
    UpdateConfig {
        parallelism: 2,
        delay: Span(1),
        failure_action: FailureAction::Rollback,
        monitor: Some(Span(2)),
        max_failure_ratio_ppm: 3,
        order: UpdateOrder::StartFirst,
    }
}

fn service_spec(mode: ServiceMode) -> ServiceSpec {
    ServiceSpec {
        name: text("web"),
        labels: labels(),
        task: Shared::new(task_spec()),
        mode,
        update: Some(update_config()),
        rollback: Some(update_config()),
        endpoint: Some(EndpointSpec {
            mode: text("vip"),
            ports: vec![Port {
                name: text("http"),
                protocol: text("tcp"),
                target: 80,
                published: 8080,
                mode: text("ingress"),
            }],
        }),
    }
}

fn task_status() -> TaskStatus {
    let container = ContainerStatus { id: text("cafe"), pid: 1, exit_code: -1 };
    TaskStatus {
        at: Stamp(1),
        state: TaskState::Running,
        message: text("started"),
        err: Some(text("err")),
        container: Some(container),
    }
}

fn task() -> Task {
    Task {
        id: id(1),
        meta: meta(),
        service: id(2),
        service_name: text("web"),
        service_labels: labels().into(),
        slot: 3,
        node: Some(id(4)),
        spec: Shared::new(task_spec()),
        spec_version: 5,
        status: task_status(),
        desired: TaskState::Shutdown,
        start_after: Some(Stamp(6)),
        attempts: 7,
        window_start: Stamp(8),
        running_since: Some(Stamp(9)),
        started_with: vec![(id(1), 2)],
    }
}

fn cluster_spec() -> ClusterSpec {
    ClusterSpec {
        name: text("default"),
        labels: labels(),
        history_limit: 1,
        snapshot_interval: 2,
        heartbeat_tick: 3,
        election_tick: 4,
        heartbeat_period: Span(5),
        node_cert_expiry: Span(6),
        autolock: true,
        keep_old_snapshots: 7,
        slow_follower_entries: 8,
    }
}

fn node_spec() -> NodeSpec {
    NodeSpec {
        name: Some(text("name")),
        labels: labels(),
        role: Role::Manager,
        availability: Availability::Drain,
    }
}

fn description() -> NodeDescription {
    NodeDescription {
        hostname: text("one"),
        architecture: text("x86_64"),
        os: text("linux"),
        nano_cpus: 1,
        memory_bytes: 2,
        engine_version: text("0.1"),
        engine_labels: labels(),
        plugins: vec![(text("Log"), text("json-file"))],
        generic: BTreeMap::from([(text("gpu"), 1)]),
        format: 1,
    }
}

fn cluster_init() -> ClusterInit {
    let slots = BTreeMap::from([(id(1), Slot { sealed: vec![1; 8] })]);
    ClusterInit {
        id: id(1),
        spec: cluster_spec(),
        ring: Ring { current: 1, keys: vec![RingKey { version: 1, created: Stamp(1), slots }] },
        trust: Trust {
            roots: vec![text("PEM")],
            subject: vec![1],
            public_key: vec![2],
            root_key: Some(sealed()),
            worker_secret: Some(sealed()),
            manager_secret: Some(sealed()),
            unlock_key: Some(sealed()),
            next: Some(next_root()),
            former: vec![former_secret()],
        },
        incarnation_id: [4; 16],
        node: id(1),
        node_spec: node_spec(),
        description: description(),
        manager: ManagerInfo { raft_id: 1, addr: text("10.0.0.1:2377") },
        seal_key: [5; 32],
        public_key: vec![6],
        addr: text("10.0.0.1"),
    }
}

fn former_secret() -> FormerSecret {
    FormerSecret { role: Role::Manager, verifier: [3; 32] }
}

fn tokens() -> TokenRotation {
    TokenRotation { worker: Some(sealed()), manager: Some(sealed()), former: vec![former_secret()] }
}

fn next_root() -> NextRoot {
    NextRoot {
        pem: text("NEW PEM"),
        cross_pem: text("CROSS PEM"),
        subject: vec![7],
        public_key: vec![8],
        key: sealed(),
        moved: BTreeSet::from([id(1)]),
    }
}

fn slots() -> BTreeMap<u64, Slot> {
    BTreeMap::from([(1, Slot { sealed: vec![1; 8] })])
}

fn ring_key() -> RingKey {
    let slots = BTreeMap::from([(id(1), Slot { sealed: vec![9; 8] })]);
    RingKey { version: 2, created: Stamp(2), slots }
}

fn trust_secrets() -> TrustSecrets {
    TrustSecrets {
        root_key: sealed(),
        worker_secret: sealed(),
        manager_secret: sealed(),
        unlock_key: Some(sealed()),
        next_root_key: Some(sealed()),
        cluster_version: 3,
        former: vec![former_secret()],
    }
}

fn node_join() -> NodeJoin {
    NodeJoin {
        id: id(2),
        public_key: vec![6],
        seal_key: [5; 32],
        spec: node_spec(),
        description: description(),
        advertise: text("10.0.0.2:2377"),
        addr: text("10.0.0.2"),
        manager: Some((2, slots())),
    }
}

/// Commands about nodes, the ring and the roots, in the order of their numbers.
fn commands_of_many() -> Vec<Command> {
    let (spec, key, secrets) = (node_spec, ring_key, trust_secrets);
    let begin = CaChange::Begin { version: 1, root: next_root() };
    vec![
        Command::NodeJoin(Box::new(node_join())),
        Command::NodePromote { id: id(1), version: 2, spec: spec(), raft_id: 3, slots: slots() },
        Command::NodeDemote { id: id(1), version: 2, spec: spec(), key: key(), secrets: secrets() },
        Command::NodeRemove { id: id(1), force: true },
        Command::RingTurn { key: key(), secrets: secrets() },
        Command::ClusterForce {
            node: id(1),
            addr: text("10.0.0.1:2377"),
            incarnation_id: [4; 16],
            key: key(),
            secrets: secrets(),
        },
        Command::CaChange(Box::new(begin)),
        Command::CaChange(Box::new(CaChange::Moved(vec![id(1)]))),
        Command::CaChange(Box::new(CaChange::Finish { version: 2, force: true, tokens: tokens() })),
        Command::FormatRaise { to: 1 },
        Command::MaterialPrune { kind: MaterialKind::Config, ids: vec![id(1)], keep: Some(2) },
        Command::MaterialRevoke {
            id: id(1),
            service: Some(id(2)),
            task: Some(id(3)),
            by: author(),
        },
        Command::MaterialReseal(vec![Reseal { id: id(1), version: 2, payload: sealed() }]),
        Command::AuditAnchor(vec![Anchor { task: id(1), sequence: 2, hash: [3; 32], node: id(4) }]),
    ]
}

fn decisions() -> Vec<Decision> {
    let (id, spec_version) = (id(5), 1);
    let update = update_status();
    vec![
        Decision::TaskCreate(task()),
        Decision::TaskDesire { id: crate::testing::id(1), desired: TaskState::Remove },
        Decision::TaskAssign { id: crate::testing::id(1), node: crate::testing::id(2) },
        Decision::TaskStatus { id: crate::testing::id(1), status: task_status() },
        Decision::TaskRemove { id: crate::testing::id(1) },
        Decision::ServiceStatus { id, spec_version, update },
        Decision::ServiceRollback { id, spec_version, message: text("message") },
    ]
}

fn meta() -> Meta {
    Meta { version: 1, created: Stamp(2), updated: Stamp(3) }
}

/// A state with one object of every kind.
pub(crate) fn state() -> State {
    let ClusterInit { spec, ring, trust, incarnation_id, manager, public_key, .. } = cluster_init();
    let mut state =
        State { last_stamp: Stamp(1), format: 1, purge_due: Some(Stamp(2)), ..State::default() };
    let meta = meta();
    let cluster = Cluster {
        id: id(1),
        meta,
        spec,
        ring,
        trust,
        incarnation: 1,
        incarnation_id,
        raft_ids: BTreeSet::from([1]),
        cut_off: vec![id(2)],
    };
    state.cluster = Some(Arc::new(cluster));
    state.put_node(Node {
        id: id(1),
        meta,
        spec: node_spec(),
        description: description(),
        status: node_status(),
        manager: Some(manager),
        public_key,
        seal_key: [5; 32],
        advertise: text("10.0.0.1:2377"),
    });
    state.put_material(Material {
        id: id(1),
        kind: MaterialKind::Config,
        meta,
        spec: material_spec(),
        versions: vec![MaterialVersion {
            number: 2,
            size: 3,
            created: Stamp(4),
            by: author(),
            of: Some(1),
        }],
        last_version: 2,
        revoked: vec![Revocation {
            service: id(2),
            task: Some(id(1)),
            up_to: 1,
            at: Stamp(5),
            by: author(),
            until: Some(4),
        }],
    });
    state.put_payload((id(1), 2), sealed());
    state.put_service(Service {
        id: id(2),
        meta,
        spec: Shared::new(service_spec(ServiceMode::Global)),
        spec_version: 5,
        previous: Some(Shared::new(service_spec(ServiceMode::GlobalJob))),
        update: Some(update_status()),
    });
    state.put_task(task());
    state.remember(id(1), Stamp(1), Outcome::Done(1));
    let (hash, at, node) = ([2; 32], Stamp(3), id(4));
    state.put_anchor(id(1), Anchored { sequence: 1, hash, at, node, is_known: true });
    state
}

fn update_status() -> UpdateStatus {
    UpdateStatus {
        state: UpdateState::RollbackPaused,
        started: Stamp(1),
        completed: Some(Stamp(2)),
        message: text("message"),
        restarts: true,
    }
}

fn node_status() -> NodeStatus {
    NodeStatus {
        state: NodeState::Disconnected,
        message: text("message"),
        addr: text("10.0.0.1"),
        since: Stamp(1),
    }
}

/// Every command, in the order of their numbers.
pub(crate) fn commands() -> Vec<Command> {
    let (description, status) = (Some(description()), Some(node_status()));
    let advertise = Some(text("10.0.0.1:2377"));
    let report = NodeReport { id: id(1), description, status, advertise };
    let (kind, size, payload, by) = (MaterialKind::Config, 3, sealed(), author());
    let append = Append { id: id(1), number: 2, size, payload: sealed(), of: Some(1) };
    let replicated = ServiceMode::Replicated { replicas: 3 };
    let job = ServiceMode::ReplicatedJob { max_concurrent: 1, total: 2 };
    let first = vec![
        Command::ClusterInit(Box::new(cluster_init())),
        Command::ClusterUpdate {
            version: 1,
            spec: cluster_spec(),
            tokens: tokens(),
            unlock_key: Some(sealed()),
        },
        Command::NodeUpdate { id: id(1), version: 2, spec: node_spec() },
        Command::NodeReport(vec![report]),
        Command::MaterialCreate { id: id(1), kind, spec: material_spec(), size, payload, by },
        Command::MaterialUpdate { id: id(1), version: 2, spec: material_spec() },
        Command::MaterialAppend { items: vec![append], by, keep: Some(8) },
        Command::MaterialRemove { id: id(1) },
        Command::ServiceCreate { id: id(1), spec: service_spec(replicated) },
        Command::ServiceUpdate { id: id(1), version: 2, spec: service_spec(job) },
        Command::ServiceRollback { id: id(1), version: 2 },
        Command::ServiceRemove { id: id(1) },
        Command::Control(decisions()),
        Command::TaskReport(vec![TaskReport { id: id(1), node: id(2), status: task_status() }]),
        Command::Noop,
    ];
    first.into_iter().chain(commands_of_many()).collect()
}

/// Every outcome, in the order of their numbers.
pub(crate) fn outcomes() -> Vec<Outcome> {
    let (kind, name, services) = (Kind::Config, text("a"), vec![text("web")]);
    let rejections = vec![
        Rejection::Exists { kind, name: name.clone() },
        Rejection::NotFound { kind: Kind::Node, what: text("x") },
        Rejection::OutOfSequence,
        Rejection::InUse { kind, name, services },
        Rejection::Invalid(text("invalid")),
        Rejection::Precondition(text("precondition")),
        Rejection::Unsupported(text("unsupported")),
        Rejection::Full(text("full")),
        Rejection::StaleKey { current: 2 },
        Rejection::NoCluster,
    ];
    let rejected = rejections.into_iter().map(Outcome::Rejected);
    let pruned = Outcome::Pruned(vec![Dropped { id: id(1), version: 2, size: 3 }]);
    core::iter::once(Outcome::Done(1)).chain(rejected).chain([pruned]).collect()
}
