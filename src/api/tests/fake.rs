//! A node of memory: the real state and the real `apply`, everything else made up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use skep_core::apply::apply;
use skep_core::command::{ClusterInit, Command, Decision, Outcome, Proposal};
use skep_core::id::{ClusterId, ENTROPY_LEN, Id, MaterialId, NodeId, ServiceId, TaskId};
use skep_core::model::Meta;
use skep_core::model::cluster::{Cluster, ClusterSpec, Ring, RingKey, Slot, Trust};
use skep_core::model::material::Author;
use skep_core::model::node::{ManagerInfo, NodeDescription, NodeSpec, Role};
use skep_core::model::service::Service;
use skep_core::model::task::{ContainerStatus, Task, TaskState, TaskStatus};
use skep_core::sealed::Sealed;
use skep_core::shared::Shared;
use skep_core::state::State;
use skep_core::time::Stamp;
use tokio::io::AsyncWriteExt;

use crate::audit::{AuditAnswer, AuditGap, AuditQuery, AuditVerdict, Entry, LastRead};
use crate::engine::images::{ImageStore, Import};
use crate::gate::{
    ContainerState, ContainerView, Done, ExecConfig, ExecStreams, ExecView, Gate, Holdings,
    JoinTokens, KeyHolder, KeyProgress, KeyStage, Later, LocalState, LogGap, LogLine, LogQuery,
    Logged, ManagerView, NodeView, Purged, Reachability, Refusal, Request,
};
use crate::hidden::Hidden;
use crate::seal::random;

/// 2026-11-22T08:43:42.25Z, where the fake's time begins.
const START: u64 = 1_795_337_022_250_000_000;

pub(super) struct FakeGate {
    state: Mutex<State>,
    clock: AtomicU64,
    node: Mutex<NodeView>,
    /// Whether managers have an unlock key, and the last requests that only a real node answers.
    pub(super) unlock_key: Mutex<Option<String>>,
    pub(super) asked: Mutex<Vec<Request>>,
    images: ImageStore,
    pub(super) containers: Mutex<Vec<ContainerView>>,
    /// Containers of other nodes.
    pub(super) elsewhere: Mutex<Vec<ContainerView>>,
    pub(super) lines: Mutex<Vec<LogLine>>,
    /// Nodes that cannot be reached.
    pub(super) lost: Mutex<Vec<NodeId>>,
    /// What tasks hold, whatever is asked for.
    pub(super) holdings: Mutex<Holdings>,
    pub(super) last_read: Mutex<Option<LastRead>>,
    /// What managers keep of the audit, and what was asked of it.
    pub(super) audit: Mutex<AuditAnswer>,
    pub(super) verdict: Mutex<AuditVerdict>,
    pub(super) audited: Mutex<Vec<AuditQuery>>,
    /// What one who follows the audit is told.
    pub(super) followed: Mutex<Option<BoxStream<'static, Result<Entry, AuditGap>>>>,
    execs: Mutex<Vec<ExecView>>,
    /// The payloads that came in, in plain: what a test may look at and a daemon never keeps.
    pub(super) payloads: Mutex<Vec<(MaterialId, Vec<u8>)>>,
    pub(super) dir: tempfile::TempDir,
}

fn mint<K>() -> Id<K> {
    Id::from_entropy(random::<ENTROPY_LEN>().unwrap())
}

fn fixed<K>(seed: u8) -> Id<K> {
    Id::from_entropy([seed; ENTROPY_LEN])
}

impl FakeGate {
    /// A node in no swarm.
    pub(super) fn alone() -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeView {
            state: LocalState::Inactive,
            node: None,
            role: None,
            manager: false,
            leader: None,
            managers: Vec::new(),
            addr: "127.0.0.1".to_owned(),
            addr_port: "127.0.0.1:2377".to_owned(),
            error: String::new(),
            hostname: "vm".to_owned(),
            data_root: "/var/lib/skep".to_owned(),
            runtime: ("runc".to_owned(), "1.1.5".to_owned()),
            warnings: Vec::new(),
        };
        Arc::new(Self {
            state: Mutex::default(),
            clock: AtomicU64::new(START),
            node: Mutex::new(node),
            unlock_key: Mutex::default(),
            asked: Mutex::default(),
            images: ImageStore::open(dir.path()).unwrap(),
            containers: Mutex::default(),
            elsewhere: Mutex::default(),
            lines: Mutex::default(),
            lost: Mutex::default(),
            holdings: Mutex::default(),
            last_read: Mutex::default(),
            audit: Mutex::default(),
            verdict: Mutex::default(),
            audited: Mutex::default(),
            followed: Mutex::default(),
            execs: Mutex::default(),
            payloads: Mutex::default(),
            dir,
        })
    }

    /// The only manager of a swarm.
    pub(super) fn manager() -> Arc<Self> {
        let gate = Self::alone();
        gate.init();
        gate
    }

    fn init(&self) -> NodeId {
        let node: NodeId = fixed(3);
        let init = ClusterInit {
            id: fixed(1),
            spec: ClusterSpec::default(),
            ring: Ring {
                current: 1,
                keys: vec![RingKey {
                    version: 1,
                    created: Stamp(1),
                    slots: [(node, Slot { sealed: vec![1] })].into(),
                }],
            },
            trust: Trust {
                roots: vec!["PEM".to_owned()],
                subject: b"s".to_vec(),
                public_key: b"k".to_vec(),
                ..Trust::default()
            },
            incarnation_id: [0; 16],
            node,
            node_spec: NodeSpec { role: Role::Manager, ..NodeSpec::default() },
            description: NodeDescription {
                hostname: "vm".to_owned(),
                architecture: "x86_64".to_owned(),
                os: "linux".to_owned(),
                nano_cpus: 2_000_000_000,
                memory_bytes: 1 << 30,
                engine_version: "0.1.0".to_owned(),
                plugins: vec![("Network".to_owned(), "host".to_owned())],
                ..NodeDescription::default()
            },
            manager: ManagerInfo { raft_id: 1, addr: "127.0.0.1:2377".to_owned() },
            seal_key: [0; 32],
            public_key: vec![1],
            addr: "127.0.0.1".to_owned(),
        };
        self.run(Command::ClusterInit(Box::new(init))).unwrap();
        let mut view = self.node.lock().unwrap();
        (view.state, view.node, view.role) = (LocalState::Active, Some(node), Some(Role::Manager));
        (view.manager, view.leader) = (true, Some(node));
        view.managers = vec![ManagerView {
            node,
            addr: view.addr_port.clone(),
            reachability: Reachability::Reachable,
        }];
        node
    }

    /// Has the node say something else of itself.
    pub(super) fn change(&self, change: impl FnOnce(&mut NodeView)) {
        change(&mut self.node.lock().unwrap());
    }

    /// Proposes a command and has it applied.
    pub(super) fn run(&self, command: Command) -> Result<u64, Refusal> {
        match self.outcome(command) {
            Outcome::Done(version) => Ok(version),
            Outcome::Rejected(rejection) => Err(rejection.into()),
            Outcome::Pruned(_) => Ok(0),
        }
    }

    fn outcome(&self, command: Command) -> Outcome {
        let stamp = Stamp(self.clock.fetch_add(1_000_000_000, Ordering::Relaxed));
        let proposal = Proposal::new(mint(), stamp, command);
        apply(&mut self.state.lock().unwrap(), &proposal, &mut Vec::new())
    }

    fn prune(&self, command: Command) -> Result<Done, Refusal> {
        match self.outcome(command) {
            Outcome::Pruned(dropped) => Ok(Done::Pruned(dropped)),
            Outcome::Rejected(rejection) => Err(rejection.into()),
            Outcome::Done(_) => Ok(Done::Nothing),
        }
    }

    pub(super) fn service(&self, id: &str) -> Arc<Service> {
        self.state.lock().unwrap().service(&id.parse().unwrap()).unwrap().clone()
    }

    pub(super) fn swarm(&self) -> Arc<Cluster> {
        self.state.lock().unwrap().cluster().unwrap().clone()
    }

    /// Adds a task of a service, in this state, on this node. Seeds begin at 9, for slot 1.
    pub(super) fn task(&self, service: &str, seed: u8, state: TaskState) -> Arc<Task> {
        let service = self.service(service);
        let id: TaskId = fixed(seed);
        let now = Stamp(self.clock.load(Ordering::Relaxed));
        let new = Task {
            id,
            meta: Meta::new(now),
            service: service.id,
            service_name: service.spec.name.clone(),
            service_labels: service.spec.labels.clone().into(),
            slot: u64::from(seed) - 8,
            node: None,
            spec: service.spec.task.clone(),
            spec_version: service.spec_version,
            status: TaskStatus { at: now, ..TaskStatus::default() },
            desired: TaskState::Running,
            start_after: None,
            attempts: 0,
            window_start: now,
            running_since: None,
            started_with: Vec::new(),
        };
        self.run(Command::Control(vec![
            Decision::TaskCreate(new),
            Decision::TaskStatus {
                id,
                status: TaskStatus { at: now, state: TaskState::Pending, ..Default::default() },
            },
            Decision::TaskAssign { id, node: fixed(3) },
        ]))
        .unwrap();
        let status = TaskStatus {
            at: now,
            state,
            message: "started".to_owned(),
            err: None,
            container: Some(ContainerStatus { id: id.container_id(), pid: 9121, exit_code: 0 }),
        };
        self.run(Command::TaskReport(vec![skep_core::command::TaskReport {
            id,
            node: fixed(3),
            status,
        }]))
        .unwrap();
        self.state.lock().unwrap().task(&id).unwrap().clone()
    }

    /// Adds the container of a task.
    pub(super) fn container(&self, task: &Arc<Task>, state: ContainerState) -> String {
        let labels = [
            ("com.docker.swarm.node.id", fixed::<skep_core::id::kind::Node>(3).to_string()),
            ("com.docker.swarm.service.id", task.service.to_string()),
            ("com.docker.swarm.service.name", task.service_name.clone()),
            ("com.docker.swarm.task", String::new()),
            ("com.docker.swarm.task.id", task.id.to_string()),
            ("com.docker.swarm.task.name", task.container_name()),
        ];
        let id = task.id.container_id();
        self.containers.lock().unwrap().push(ContainerView {
            id: id.clone(),
            task: Shared::of(task),
            node: task.node.unwrap(),
            image_id: "sha256:f4b8".to_owned(),
            exposed: vec!["80/tcp".to_owned()],
            args: vec!["sleep".to_owned(), "100000".to_owned()],
            env: vec!["A=b".to_owned()],
            cwd: String::new(),
            user: String::new(),
            hostname: "760db5f0e6db".to_owned(),
            entrypoint: Vec::new(),
            cmd: vec!["sleep".to_owned(), "100000".to_owned()],
            labels: labels.map(|(k, v)| (k.to_owned(), v)).into(),
            stop_signal: String::new(),
            state,
            pid: 9121,
            created: Stamp(START),
            started: Stamp(START + 1),
            finished: Stamp(0),
            exit_code: 0,
            oom: false,
            error: String::new(),
            network: "default".to_owned(),
            task_dir: format!("/var/lib/skep/tasks/{}", task.id),
            layers: vec!["/var/lib/skep/layers/a".to_owned()],
            execs: Vec::new(),
        });
        id
    }

    /// Makes this node another one of the swarm: every container is elsewhere then.
    pub(super) fn move_away(&self) {
        self.node.lock().unwrap().node = Some(fixed(4));
        self.elsewhere.lock().unwrap().append(&mut self.containers.lock().unwrap());
    }

    /// Makes an image of a root filesystem with one file.
    pub(super) fn image(&self, name: &str) {
        self.images
            .import(
                &mut archive().as_slice(),
                &Import {
                    reference: Some(
                        crate::engine::images::reference::Reference::parse(name)
                            .unwrap()
                            .or_latest(),
                    ),
                    ..Import::default()
                },
            )
            .unwrap();
    }
}

/// A tar archive with one file.
pub(super) fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, "sh", b"#!x".as_slice()).unwrap();
    tar.into_inner().unwrap()
}

impl Gate for FakeGate {
    fn node(&self) -> NodeView {
        self.node.lock().unwrap().clone()
    }

    fn view<'a>(
        &'a self,
        look: Box<dyn FnOnce(&State) + Send + 'a>,
    ) -> Later<'a, Result<(), Refusal>> {
        let state = self.state.lock().unwrap();
        if state.cluster().is_none() {
            return Box::pin(async { Err(Refusal::NotInSwarm) });
        }
        look(&state);
        Box::pin(async { Ok(()) })
    }

    fn submit(&self, request: Request) -> Later<'_, Result<Done, Refusal>> {
        let run = |command| self.run(command).map(|_| Done::Nothing);
        let done = match request {
            Request::SwarmInit(_) => match self.node().node {
                Some(_) => Err(Refusal::AlreadyInSwarm),
                None => Ok(Done::Swarm(self.init())),
            },
            Request::SwarmLeave { .. } if self.node().node.is_none() => Err(Refusal::NotInSwarm),
            Request::SwarmLeave { force: false } => Err(Refusal::LastManager),
            Request::SwarmLeave { force: true } => Ok(Done::Nothing),
            Request::SwarmJoin(_) if self.node().node.is_some() => Err(Refusal::AlreadyInSwarm),
            Request::SwarmUnlock { key } if key.reveal() != "SWMKEY-1-right" => {
                Err(Refusal::WrongUnlockKey)
            }
            request @ (Request::SwarmJoin(_)
            | Request::SwarmUnlock { .. }
            | Request::NodeRemove { .. }
            | Request::SwarmUpdate { rotate_ca: true, .. }
            | Request::SwarmUpdate { rotate_unlock: true, .. }) => {
                self.asked.lock().unwrap().push(request);
                Ok(Done::Nothing)
            }
            Request::SwarmUpdate { version, spec, .. } => run(Command::ClusterUpdate {
                version,
                spec,
                tokens: Default::default(),
                unlock_key: None,
            }),
            Request::NodeUpdate { id, version, spec } => {
                run(Command::NodeUpdate { id, version, spec })
            }
            Request::MaterialCreate { kind, spec, payload, uid } => {
                let (id, by) = (mint(), Author { node: mint(), uid });
                self.payloads.lock().unwrap().push((id, payload.as_slice().to_vec()));
                let size = payload.len() as u64;
                let payload = Sealed { key: 1, nonce: [0; 12], bytes: vec![0; payload.len() + 16] };
                let create = Command::MaterialCreate { id, kind, spec, size, payload, by };
                self.run(create).map(|_| Done::Material(id))
            }
            Request::MaterialAppend { .. } => {
                self.asked.lock().unwrap().push(request);
                Ok(Done::Versions(vec![2]))
            }
            Request::MaterialRevoke { id, service, task, uid } => {
                let by = Author { node: mint(), uid };
                run(Command::MaterialRevoke { id, service, task, by })
            }
            Request::RingTurn { .. } => {
                self.asked.lock().unwrap().push(request);
                Ok(Done::Key { version: 3, turned: true })
            }
            Request::MaterialUpdate { id, version, spec, .. } => {
                run(Command::MaterialUpdate { id, version, spec })
            }
            Request::MaterialPrune { kind, ids, keep } => {
                self.prune(Command::MaterialPrune { kind, ids, keep })
            }
            Request::MaterialRemove { id } => run(Command::MaterialRemove { id }),
            Request::ServiceCreate { spec } => {
                let id: ServiceId = mint();
                self.run(Command::ServiceCreate { id, spec: *spec }).map(|_| Done::Service(id))
            }
            Request::ServiceUpdate { id, version, spec } => {
                run(Command::ServiceUpdate { id, version, spec: *spec })
            }
            Request::ServiceRollback { id, version } => {
                run(Command::ServiceRollback { id, version })
            }
            Request::ServiceRemove { id } => run(Command::ServiceRemove { id }),
        };
        Box::pin(async { done })
    }

    fn join_tokens(&self) -> Later<'_, Result<JoinTokens, Refusal>> {
        let tokens = JoinTokens { worker: "SWMTKN-1-w".into(), manager: "SWMTKN-1-m".into() };
        Box::pin(async { Ok(tokens) })
    }

    fn unlock_key(&self) -> Later<'_, Result<Option<Hidden>, Refusal>> {
        let key = self.unlock_key.lock().unwrap().clone();
        Box::pin(async { Ok(key.map(Hidden::new)) })
    }

    fn key_progress(
        &self,
        key: u64,
    ) -> Later<'_, Result<BoxStream<'static, KeyProgress>, Refusal>> {
        let at = |done, stage, managers| KeyProgress { key, done, total: 2, stage, managers };
        let purged = |purged| KeyHolder { node: mint(), hostname: "n1".into(), purged };
        let all = [
            at(1, KeyStage::Sealing, vec![]),
            at(2, KeyStage::Purging, vec![purged(Purged::NotYet)]),
            at(2, KeyStage::Done, vec![purged(Purged::Yes)]),
        ];
        Box::pin(async move { Ok(futures_util::stream::iter(all).boxed()) })
    }

    fn config_payload(&self, id: MaterialId) -> Later<'_, Result<Vec<u8>, Refusal>> {
        let payloads = self.payloads.lock().unwrap();
        let found = payloads.iter().find(|(of, _)| *of == id).map(|(_, bytes)| bytes.clone());
        Box::pin(async { found.ok_or(Refusal::NotFound("no payload".to_owned())) })
    }

    fn holdings(
        &self,
        _materials: Vec<MaterialId>,
        _within: Duration,
    ) -> Later<'_, Result<Holdings, Refusal>> {
        let held = self.holdings.lock().unwrap().clone();
        Box::pin(async { Ok(held) })
    }

    fn last_read(&self, _: MaterialId) -> Later<'_, Result<Option<LastRead>, Refusal>> {
        let last = *self.last_read.lock().unwrap();
        Box::pin(async move { Ok(last) })
    }

    fn audit(&self, query: AuditQuery) -> Later<'_, Result<AuditAnswer, Refusal>> {
        self.audited.lock().unwrap().push(query);
        let answer = self.audit.lock().unwrap().clone();
        Box::pin(async { Ok(answer) })
    }

    fn audit_verify(&self, query: AuditQuery) -> Later<'_, Result<AuditVerdict, Refusal>> {
        self.audited.lock().unwrap().push(query);
        let verdict = self.verdict.lock().unwrap().clone();
        Box::pin(async { Ok(verdict) })
    }

    fn audit_follow(
        &self,
        _: AuditQuery,
    ) -> Later<'_, Result<BoxStream<'static, Result<Entry, AuditGap>>, Refusal>> {
        let followed = self.followed.lock().unwrap().take();
        Box::pin(async { Ok(followed.unwrap_or_else(|| stream::empty().boxed())) })
    }

    fn images(&self) -> &ImageStore {
        &self.images
    }

    fn containers(&self) -> Vec<ContainerView> {
        self.containers.lock().unwrap().clone()
    }

    fn container(&self, node: NodeId, task: TaskId) -> Later<'_, Result<ContainerView, Refusal>> {
        let found = self.elsewhere.lock().unwrap();
        let found = found.iter().find(|c| c.node == node && c.task.id == task).cloned();
        Box::pin(async move { found.ok_or_else(|| Refusal::NotFound("none".to_owned())) })
    }

    fn exec_create(
        &self,
        node: NodeId,
        container: &str,
        config: ExecConfig,
    ) -> Later<'_, Result<String, Refusal>> {
        let id = skep_core::id::hex(&random::<32>().unwrap());
        let has = |c: &ContainerView| c.node == node && c.id == container;
        let (here, there) = (self.containers.lock().unwrap(), self.elsewhere.lock().unwrap());
        assert!(here.iter().chain(there.iter()).any(has), "asked of the wrong node");
        self.execs.lock().unwrap().push(ExecView {
            id: id.clone(),
            container: container.to_owned(),
            config,
            running: false,
            exit_code: None,
            pid: 0,
        });
        Box::pin(async { Ok(id) })
    }

    /// Every exec says `err` on stderr, then what its stdin says on stdout, then ends with 7.
    fn exec_start(
        &self,
        id: &str,
        detach: bool,
        _size: Option<(u16, u16)>,
    ) -> Later<'_, Result<ExecStreams, Refusal>> {
        let id = id.to_owned();
        Box::pin(async move {
            let config = self.exec_inspect(&id).await?.config;
            let (stdin, mut from_client) = tokio::io::duplex(64);
            let (mut to_client, stdout) = tokio::io::duplex(64);
            let (mut complain, stderr) = tokio::io::duplex(64);
            let end = |code| {
                let mut execs = self.execs.lock().unwrap();
                execs.iter_mut().find(|e| e.id == id).unwrap().exit_code = Some(code);
            };
            if detach {
                end(0);
                let ended = Box::pin(async {});
                return Ok(ExecStreams { stdin: None, stdout: None, stderr: None, ended });
            }
            end(7);
            let wants_stdin = config.stdin;
            let job = tokio::spawn(async move {
                complain.write_all(b"err\n").await.unwrap();
                drop(complain);
                if wants_stdin {
                    tokio::io::copy(&mut from_client, &mut to_client).await.unwrap();
                }
            });
            Ok(ExecStreams {
                stdin: wants_stdin.then(|| Box::new(stdin) as _),
                stdout: Some(Box::new(stdout)),
                stderr: Some(Box::new(stderr)),
                ended: Box::pin(async move { job.await.unwrap() }),
            })
        })
    }

    fn exec_inspect(&self, id: &str) -> Later<'_, Result<ExecView, Refusal>> {
        let found = self.execs.lock().unwrap().iter().find(|exec| exec.id == id).cloned();
        let gone = Refusal::NotFound(format!("No such exec instance: {id}"));
        Box::pin(async { found.ok_or(gone) })
    }

    fn exec_resize(&self, id: &str, _rows: u16, _cols: u16) -> Later<'_, Result<(), Refusal>> {
        let id = id.to_owned();
        Box::pin(async move { self.exec_inspect(&id).await.map(drop) })
    }

    fn logs(
        &self,
        tasks: Vec<(NodeId, TaskId)>,
        query: LogQuery,
    ) -> Later<'_, Result<BoxStream<'static, Logged>, Refusal>> {
        let lost = self.lost.lock().unwrap();
        let (cut, tasks): (Vec<_>, Vec<_>) =
            tasks.into_iter().partition(|(node, _)| lost.contains(node));
        let mut lines = self.lines.lock().unwrap().clone();
        lines.retain(|line| tasks.iter().any(|(_, task)| *task == line.task));
        let gaps = cut.into_iter().map(|(node, task)| {
            Err(LogGap { node, tasks: vec![task], why: "no way to it".to_owned() })
        });
        let logged: Vec<Logged> = gaps.chain(lines.into_iter().map(Ok)).collect();
        let lines = stream::iter(logged);
        let lines =
            if query.follow { lines.chain(stream::pending()).boxed() } else { lines.boxed() };
        Box::pin(async { Ok(lines) })
    }

    fn cluster(&self) -> Option<ClusterId> {
        self.state.lock().unwrap().cluster().map(|cluster| cluster.id)
    }
}
