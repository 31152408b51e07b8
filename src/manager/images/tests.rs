//! Images through a manager.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_core::apply::apply;
use skep_core::command::{ClusterInit, Command, Decision, Outcome, Proposal, TaskReport};
use skep_core::id::{ENTROPY_LEN, Id, TaskId};
use skep_core::model::Meta;
use skep_core::model::cluster::{Ring, RingKey, Slot, Trust};
use skep_core::model::node::{ManagerInfo, NodeSpec, Role};
use skep_core::model::service::{ServiceMode, ServiceSpec};
use skep_core::model::task::{Task, TaskSpec, TaskStatus};
use skep_core::time::Stamp;
use tokio::sync::watch;

use super::*;
use crate::engine::images::Import;
use crate::engine::images::exchange::{Came, FetchError, fetch};
use crate::engine::images::reference::Reference;

fn id<K>(seed: u8) -> Id<K> {
    Id::from_entropy([seed; ENTROPY_LEN])
}

/// A swarm of one manager, node 3.
struct World(State, u8);

impl World {
    fn new() -> Self {
        let mut world = Self(State::default(), 100);
        world.run(Command::ClusterInit(Box::new(ClusterInit {
            id: id(1),
            spec: Default::default(),
            ring: Ring {
                current: 1,
                keys: vec![RingKey {
                    version: 1,
                    created: Stamp(1),
                    slots: [(id(3), Slot { sealed: vec![1] })].into(),
                }],
            },
            trust: Trust { roots: vec!["PEM".to_owned()], ..Trust::default() },
            incarnation_id: [0; 16],
            node: id(3),
            node_spec: NodeSpec { role: Role::Manager, ..NodeSpec::default() },
            description: Default::default(),
            manager: ManagerInfo { raft_id: 1, addr: "127.0.0.1:2377".to_owned() },
            seal_key: [0; 32],
            public_key: vec![1],
            addr: "127.0.0.1".to_owned(),
        })));
        world
    }

    fn run(&mut self, command: Command) {
        self.1 += 1;
        let proposal = Proposal::new(id(self.1), Stamp(5), command);
        let done = apply(&mut self.0, &proposal, &mut Vec::new());
        assert!(matches!(done, Outcome::Done(_)), "{done:?}");
    }

    /// A task of this image on node 3.
    fn task(&mut self, seed: u8, image: &str) -> TaskId {
        let mut task = TaskSpec::default();
        task.container.image = image.to_owned();
        let spec = ServiceSpec {
            name: format!("s{seed}"),
            labels: Default::default(),
            task: task.into(),
            mode: ServiceMode::Replicated { replicas: 1 },
            update: None,
            rollback: None,
            endpoint: None,
        };
        self.run(Command::ServiceCreate { id: id(seed), spec: spec.clone() });
        let new = Task {
            id: id(seed),
            meta: Meta::default(),
            service: id(seed),
            service_name: spec.name,
            service_labels: Default::default(),
            slot: 1,
            node: None,
            spec: spec.task,
            spec_version: self.0.service(&id(seed)).unwrap().spec_version,
            status: TaskStatus::default(),
            desired: TaskState::Running,
            start_after: None,
            attempts: 0,
            window_start: Stamp(0),
            running_since: None,
            started_with: Vec::new(),
        };
        let status = TaskStatus { state: TaskState::Pending, ..TaskStatus::default() };
        self.run(Command::Control(vec![
            Decision::TaskCreate(new),
            Decision::TaskStatus { id: id(seed), status },
            Decision::TaskAssign { id: id(seed), node: id(3) },
        ]));
        id(seed)
    }

    fn report(&mut self, task: TaskId, state: TaskState) {
        let status = TaskStatus { state, at: Stamp(9), ..TaskStatus::default() };
        self.run(Command::TaskReport(vec![TaskReport { id: task, node: id(3), status }]));
    }
}

#[test]
fn only_a_node_whose_task_needs_an_image_gets_it() {
    let mut world = World::new();
    let task = world.task(20, "app:1");
    assert_eq!(holders(&world.0, id(3), "app:1"), Some(vec![]));
    assert_eq!(holders(&world.0, id(3), "app:2"), None);
    assert_eq!(holders(&world.0, id(4), "app:1"), None);
    world.report(task, TaskState::Running);
    assert!(holders(&world.0, id(3), "app:1").is_some());
    // A task that has ended needs no image.
    world.report(task, TaskState::Failed);
    assert_eq!(holders(&world.0, id(3), "app:1"), None);
}

/// A node's store, with one image in it.
fn store(name: Option<&str>) -> (tempfile::TempDir, Arc<ImageStore>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(ImageStore::open(dir.path()).unwrap());
    if let Some(name) = name {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, "text", b"hello".as_slice()).unwrap();
        let reference = Some(Reference::parse(name).unwrap().or_latest());
        let import = Import { reference, ..Import::default() };
        store.import(&mut tar.into_inner().unwrap().as_slice(), &import).unwrap();
    }
    (dir, store)
}

/// A swarm's nodes by their stores. Those without one cannot be reached.
#[derive(Debug, Default)]
struct Nodes(BTreeMap<NodeId, Arc<ImageStore>>);

impl Reach for Nodes {
    fn open(&self, node: NodeId) -> Later<'_, Result<Box<dyn Stream>, Refusal>> {
        let store = self.0.get(&node).cloned();
        Box::pin(async move {
            let why = "it is down".to_owned();
            let store = store.ok_or(Refusal::Unreachable { node, why })?;
            let (ours, mut theirs) = duplex(1 << 10);
            tokio::spawn(async move {
                let Ok(Ask::Image { name }) = receive(&mut theirs, 1 << 10).await else { return };
                let _ = give(&store, &name, &mut theirs).await;
            });
            Ok(Box::new(ours) as _)
        })
    }
}

/// A manager between an asker and other nodes.
#[derive(Debug)]
struct Between {
    store: Arc<ImageStore>,
    nodes: Arc<Nodes>,
    holders: Vec<NodeId>,
}

impl ImageSource for Between {
    fn open(&self, _: &str) -> Later<'_, Result<Box<dyn Stream>, Refusal>> {
        let (ours, mut theirs) = duplex(1 << 10);
        let (store, nodes) = (Arc::clone(&self.store), Arc::clone(&self.nodes));
        let holders = self.holders.clone();
        tokio::spawn(async move {
            let Ok(Ask::Image { name }) = receive(&mut theirs, 1 << 10).await else { return };
            let _ = pass(&store, &*nodes, id(3), &holders, &name, &mut theirs).await;
        });
        Box::pin(async move { Ok(Box::new(ours) as _) })
    }
}

async fn taken(own: Option<&str>, far: Option<&str>, holders: &[u8]) -> Result<(), FetchError> {
    let ((_own, own), (_far, far), (_to, to)) = (store(own), store(far), store(None));
    let nodes = Arc::new(Nodes([(id(5), far)].into()));
    let holders = holders.iter().map(|n| id(*n)).collect();
    let between = Between { store: own, nodes, holders };
    let came = watch::Sender::new(Came::default());
    let fetching = fetch(&to, "app:1", &between, &came);
    let done = timeout(Duration::from_secs(90), fetching).await.expect("it takes too long");
    assert_eq!(done.is_ok(), to.resolve("app:1").is_ok());
    done
}

#[tokio::test]
async fn an_image_is_passed_on_from_whoever_has_it() {
    taken(Some("app:1"), None, &[4, 5]).await.unwrap();
    // Node 4 cannot be reached; that is no reason not to ask node 5.
    taken(None, Some("app:1"), &[4, 5]).await.unwrap();
    let error = taken(None, Some("app:2"), &[3, 5]).await.unwrap_err();
    assert!(matches!(&error, FetchError::Missing(text) if text == "No such image: app:1"));
}

#[tokio::test]
async fn a_node_that_may_have_it_is_named_if_it_cannot_be_asked() {
    let ((_own, own), nodes) = (store(None), Nodes::default());
    let (mut ours, mut theirs) = duplex(1 << 10);
    pass(&own, &nodes, id(3), &[id(4)], "app:1", &mut theirs).await.unwrap();
    let answer: Answer = receive(&mut ours, 1 << 10).await.unwrap();
    let Answer::Refused(Refused::Failed(text)) = answer else { panic!("{answer:?}") };
    let node: NodeId = id(4);
    assert_eq!(text, format!("node {node} may have it, but is not available: it is down"));
}
