//! A session with an agent of memory, on a manager with a real log and nobody who decides.

use std::sync::Arc;
use std::time::Duration;

use skep_core::command::{Command, Decision, TaskReport};
use skep_core::id::{MaterialId, NodeId, ServiceId, TaskId};
use skep_core::model::Meta;
use skep_core::model::container::ContainerSpec;
use skep_core::model::material::{Author, Grant, MaterialKind, MaterialSpec};
use skep_core::model::service::{ServiceMode, ServiceSpec};
use skep_core::model::task::{Task, TaskSpec, TaskState, TaskStatus};
use skep_core::shared::Shared;
use skep_core::time::Stamp;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::gate::{Done, Holdings, NewVersion, Request, Source};
use crate::limits::SESSION_QUEUE;
use crate::manager::testing::manager;
use crate::manager::{dispatch, mint};
use crate::protected::Protected;
use crate::seal::SealKeyPair;
use crate::wire::control::ControlAnswer;

const PATIENCE: Duration = Duration::from_secs(20);
const NOW: Duration = Duration::ZERO;

/// What an agent was sent for a shim: a sequence with what comes or goes.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    Delivered(u64, Vec<(MaterialId, u64)>),
    Revoked(u64, Vec<(MaterialId, u64)>),
}

struct World {
    manager: Arc<Manager>,
    service: ServiceId,
    task: TaskId,
    secrets: [MaterialId; 2],
    stop: watch::Sender<bool>,
    workers: JoinSet<()>,
    _dir: TempDir,
}

struct Agent {
    orders: mpsc::Receiver<ToAgent>,
    news: mpsc::Sender<FromAgent>,
    _events: mpsc::Receiver<SessionNews>,
}

impl World {
    /// A service with two secrets, and a task of it that runs.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manager = Arc::new(manager(dir.path()).await);
        let mut secrets = Vec::new();
        for name in ["a", "b"] {
            let spec = MaterialSpec { name: name.into(), ..MaterialSpec::default() };
            let payload = Protected::copy_of(name.as_bytes()).unwrap();
            let kind = MaterialKind::Secret;
            let request = Request::MaterialCreate { kind, spec, payload, uid: 0 };
            match manager.submit(request).await.unwrap() {
                Done::Material(id) => secrets.push((id, name)),
                other => panic!("{other:?}"),
            }
        }
        let grants = secrets.iter().map(|(id, name)| Grant {
            id: *id,
            name: (*name).into(),
            target: (*name).into(),
            uid: 0,
            gid: 0,
            mode: 0o444,
            pin: None,
            on_change: Default::default(),
        });
        let container = ContainerSpec {
            image: "busybox".into(),
            secrets: grants.collect(),
            ..ContainerSpec::default()
        };
        let spec = ServiceSpec {
            name: "web".into(),
            labels: Default::default(),
            task: Shared::new(TaskSpec { container, ..TaskSpec::default() }),
            mode: ServiceMode::Replicated { replicas: 1 },
            update: None,
            rollback: None,
            endpoint: None,
        };
        let Done::Service(service) =
            manager.submit(Request::ServiceCreate { spec: Box::new(spec) }).await.unwrap()
        else {
            panic!("no service")
        };
        let (stop, stopped) = watch::channel(false);
        let mut workers = JoinSet::new();
        let dispatching = Arc::clone(&manager);
        workers.spawn(async move { dispatch::run(&dispatching, stopped).await });
        let secrets = [secrets[0].0, secrets[1].0];
        let task = mint().unwrap();
        let world = Self { manager, service, task, secrets, stop, workers, _dir: dir };
        world.run_task().await;
        world
    }

    async fn run_task(&self) {
        let service =
            self.manager.raft.view(|state| state.service(&self.service).cloned()).unwrap();
        let (id, node) = (self.task, self.manager.node);
        let task = Task {
            id,
            meta: Meta::default(),
            service: service.id,
            service_name: "web".into(),
            service_labels: Default::default(),
            slot: 1,
            node: None,
            spec: service.spec.task.clone(),
            spec_version: service.spec_version,
            status: TaskStatus::default(),
            desired: TaskState::Running,
            start_after: None,
            attempts: 0,
            window_start: Stamp(0),
            running_since: None,
            started_with: Vec::new(),
        };
        let status = TaskStatus { state: TaskState::Pending, ..TaskStatus::default() };
        let decisions = vec![
            Decision::TaskCreate(task),
            Decision::TaskStatus { id, status },
            Decision::TaskAssign { id, node },
        ];
        self.manager.propose(Command::Control(decisions)).await.unwrap();
        let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
        let report = TaskReport { id, node, status };
        self.manager.propose(Command::TaskReport(vec![report])).await.unwrap();
    }

    /// Opens the session of the node's agent.
    fn open(&mut self) -> Agent {
        let (orders_tx, orders) = mpsc::channel(SESSION_QUEUE);
        let (news, news_rx) = mpsc::channel(SESSION_QUEUE);
        let (events_tx, events) = mpsc::channel(SESSION_QUEUE);
        let ends = Ends { orders: orders_tx, news: news_rx, events: events_tx };
        let (manager, stop) = (Arc::clone(&self.manager), self.stop.subscribe());
        let hello = Hello {
            cluster: manager.cluster,
            incarnation: 0,
            incarnation_id: [0; 16],
            description: Default::default(),
            advertise: String::new(),
        };
        self.workers.spawn(async move {
            serve(&manager, manager.node, hello, "127.0.0.1".into(), ends, stop).await;
        });
        Agent { orders, news, _events: events }
    }

    async fn update(&self, secret: MaterialId, text: &str) {
        let source = Source::Payload(Protected::copy_of(text.as_bytes()).unwrap());
        let items = vec![NewVersion { id: secret, source }];
        let request = Request::MaterialAppend { items, keep: None, uid: 0 };
        self.manager.submit(request).await.unwrap();
    }

    async fn revoke(&self, secret: MaterialId) {
        let request = Request::MaterialRevoke { id: secret, service: None, task: None, uid: 7 };
        self.manager.submit(request).await.unwrap();
    }

    async fn holdings(&self, within: Duration) -> Holdings {
        self.manager.holdings(self.secrets.to_vec(), within).await.unwrap()
    }

    async fn end(mut self) {
        self.stop.send_replace(true);
        while self.workers.join_next().await.is_some() {}
        self.manager.raft.shutdown().await;
    }
}

impl Agent {
    /// The next that is for a shim.
    async fn next(&mut self) -> Sent {
        let next = async {
            loop {
                match self.orders.recv().await.unwrap() {
                    ToAgent::Deliver { delivery, .. } => {
                        let items = delivery.items.iter().map(|item| (item.material, item.version));
                        return Sent::Delivered(delivery.sequence, items.collect());
                    }
                    ToAgent::Revoke { sequence, materials, .. } => {
                        return Sent::Revoked(sequence, materials);
                    }
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, next).await.unwrap()
    }

    /// That nothing for a shim comes before the next heartbeat's turn is over.
    async fn is_quiet(&mut self) {
        let beats = async {
            let mut beats = 0;
            while beats < 2 {
                match self.orders.recv().await.unwrap() {
                    ToAgent::Beat => beats += 1,
                    other @ (ToAgent::Deliver { .. } | ToAgent::Revoke { .. }) => {
                        panic!("{other:?}")
                    }
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, beats).await.unwrap();
    }

    async fn speak_up(&self, task: TaskId, held: Vec<(MaterialId, u64)>, sequence: u64) {
        let key = SealKeyPair::generate().unwrap().public();
        self.news.send(FromAgent::Shim { task, key, held, sequence }).await.unwrap();
    }

    async fn hold(&self, task: TaskId, held: Vec<(MaterialId, u64)>, sequence: u64) {
        self.news.send(FromAgent::Held { task, held, sequence, refused: None }).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_revoked_is_taken_back_at_once_and_comes_again_with_a_new_version() {
    let mut world = World::new().await;
    let (task, [a, b]) = (world.task, world.secrets);
    let mut agent = world.open();
    agent.speak_up(task, vec![], 0).await;
    let Sent::Delivered(1, mut both) = agent.next().await else { panic!("not both at once") };
    both.sort();
    let mut expected = vec![(a, 1), (b, 1)];
    expected.sort();
    assert_eq!(both, expected);
    // Until it says so, it does not hold them.
    let found = world.holdings(NOW).await;
    assert_eq!((found.tasks.len(), found.tasks[0].complies), (1, false));
    assert!(found.tasks[0].is_reachable && found.tasks[0].held.is_empty(), "{found:?}");
    agent.hold(task, vec![(a, 1), (b, 1)], 1).await;
    let found = world.holdings(PATIENCE).await;
    assert!(found.tasks[0].complies && found.absent.is_empty(), "{found:?}");

    // A manager that is behind cannot say that they do.
    let late = world.manager.holdings_for(&world.secrets, u64::MAX, 0).await;
    let ControlAnswer::Holdings(late) = late else { panic!("{late:?}") };
    assert!(late.len() == 1 && !late[0].complies && late[0].held.len() == 2, "{late:?}");

    world.revoke(a).await;
    assert_eq!(agent.next().await, Sent::Revoked(2, vec![(a, 1)]));
    let found = world.holdings(NOW).await;
    assert!(!found.tasks[0].complies && found.tasks[0].revoked == [a], "{found:?}");
    let answering = async {
        tokio::task::yield_now().await;
        agent.hold(task, vec![(b, 1)], 2).await;
    };
    let (found, ()) = tokio::join!(world.holdings(PATIENCE), answering);
    assert!(found.tasks[0].complies, "{found:?}");
    assert_eq!(found.tasks[0].held, [(b, 1)]);

    world.update(a, "newer").await;
    assert_eq!(agent.next().await, Sent::Delivered(3, vec![(a, 2)]));
    agent.hold(task, vec![(a, 2), (b, 1)], 3).await;
    assert!(world.holdings(PATIENCE).await.tasks[0].complies);
    agent.is_quiet().await;
    world.end().await;
}

#[tokio::test]
async fn what_a_supervisor_refuses_comes_again_with_a_heartbeat_and_not_before() {
    let mut world = World::new().await;
    let (task, [a, b]) = (world.task, world.secrets);
    let mut agent = world.open();
    agent.speak_up(task, vec![(a, 1), (b, 1)], 4).await;
    world.holdings(PATIENCE).await;
    world.update(b, "newer").await;
    assert_eq!(agent.next().await, Sent::Delivered(5, vec![(b, 2)]));
    let refused = |sequence| FromAgent::Held {
        task,
        held: vec![(a, 1), (b, 1)],
        sequence,
        refused: Some("no room".into()),
    };
    while let Ok(ToAgent::Beat) = agent.orders.try_recv() {}
    agent.news.send(refused(4)).await.unwrap();
    // The answer to an older order gives no reason to send it at once.
    agent.hold(task, vec![(a, 1), (b, 1)], 4).await;
    match timeout(PATIENCE, agent.orders.recv()).await.unwrap().unwrap() {
        ToAgent::Beat => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(agent.next().await, Sent::Delivered(6, vec![(b, 2)]));
    // What is revoked does not wait.
    agent.news.send(refused(5)).await.unwrap();
    world.revoke(a).await;
    assert_eq!(agent.next().await, Sent::Revoked(7, vec![(a, 1)]));
    assert_eq!(agent.next().await, Sent::Delivered(8, vec![(b, 2)]));
    agent.hold(task, vec![(b, 2)], 8).await;
    let found = world.holdings(PATIENCE).await;
    assert!(found.tasks[0].complies, "{found:?}");
    agent.is_quiet().await;
    world.end().await;
}

#[tokio::test]
async fn a_node_out_of_reach_is_listed_and_let_go_of_when_it_is_back() {
    let mut world = World::new().await;
    let (task, [a, b]) = (world.task, world.secrets);
    // Nobody has heard of its shim: all that it may have been given counts.
    let found = world.holdings(PATIENCE).await;
    let lost = &found.tasks[0];
    assert!(!lost.is_reachable && !lost.complies && lost.node == world.manager.node, "{lost:?}");
    let mut held = lost.held.clone();
    held.sort();
    let mut expected = vec![(a, 1), (b, 1)];
    expected.sort();
    assert_eq!(held, expected);

    let agent = world.open();
    agent.speak_up(task, vec![(a, 1), (b, 1)], 3).await;
    assert!(world.holdings(PATIENCE).await.tasks[0].is_reachable);
    drop(agent);
    let gone = async {
        while world.holdings(NOW).await.tasks[0].is_reachable {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
    // It never got this one.
    world.update(b, "newer").await;
    world.revoke(a).await;
    let found = world.holdings(PATIENCE).await;
    let mut held = found.tasks[0].held.clone();
    held.sort();
    assert_eq!((held, found.tasks[0].revoked.clone()), (expected.clone(), vec![a]));

    let mut agent = world.open();
    agent.speak_up(task, vec![(a, 1), (b, 1)], 3).await;
    assert_eq!(agent.next().await, Sent::Revoked(4, vec![(a, 1)]));
    assert_eq!(agent.next().await, Sent::Delivered(5, vec![(b, 2)]));
    agent.hold(task, vec![(b, 2)], 5).await;
    let found = world.holdings(PATIENCE).await;
    assert!(found.tasks[0].complies, "{found:?}");
    // Its shim ends, and so does its task: nothing is held.
    agent.news.send(FromAgent::ShimGone { task }).await.unwrap();
    let status = TaskStatus { state: TaskState::Failed, ..TaskStatus::default() };
    let reports = vec![TaskReport { id: task, node: world.manager.node, status }];
    agent.news.send(FromAgent::Reports(reports)).await.unwrap();
    let ended = async {
        while !world.holdings(NOW).await.tasks.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, ended).await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn only_who_may_hold_it_is_told_that_a_secret_changed() {
    let world = World::new().await;
    let other: NodeId = mint().unwrap();
    let manager = Arc::clone(&world.manager);
    let elsewhere = manager.dispatch.open(other);
    elsewhere.due().await;
    let here = manager.dispatch.open(manager.node);
    here.due().await;
    // That the task is there may be news still.
    let shims = async {
        loop {
            let due = here.due().await;
            assert!(!due.role && !due.all_shims, "{due:?}");
            if !due.shims.is_empty() {
                return due.shims;
            }
        }
    };
    let (due, ()) = tokio::join!(shims, world.update(world.secrets[0], "newer"));
    assert_eq!(due, [world.task].into());
    let by = Author { node: other, uid: 0 };
    let revoke = Command::MaterialRevoke {
        id: world.secrets[1],
        service: Some(world.service),
        task: None,
        by,
    };
    manager.propose(revoke).await.unwrap();
    let due = timeout(PATIENCE, here.due()).await.unwrap();
    assert_eq!(due.shims, [world.task].into());
    assert!(futures_util::poll!(std::pin::pin!(elsewhere.due())).is_pending());
    world.end().await;
}

#[tokio::test]
async fn a_task_that_is_given_up_on_a_member_may_hold_it_yet() {
    let world = World::new().await;
    let status = TaskStatus { state: TaskState::Orphaned, ..TaskStatus::default() };
    let decision = Decision::TaskStatus { id: world.task, status };
    world.manager.propose(Command::Control(vec![decision])).await.unwrap();
    let found = world.holdings(NOW).await;
    let tasks: Vec<TaskId> = found.tasks.iter().map(|holder| holder.task).collect();
    assert_eq!(tasks, [world.task]);
    world.end().await;
}
