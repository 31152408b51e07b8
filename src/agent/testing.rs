//! An agent with one running container, whose processes the tests play.

use std::fs::File;

use skep_core::id::{ENTROPY_LEN, Id};
use skep_core::model::Meta;
use skep_core::model::task::{Task, TaskState, TaskStatus};
use skep_core::time::Stamp;

use super::*;
use crate::engine::plan::{plan, tests};
use crate::wire::shim::{ExecStart, ShimState, ShimStatus};

pub(crate) const NODE: u8 = 3;

pub(crate) fn id<K>(seed: u8) -> Id<K> {
    Id::from_entropy([seed; ENTROPY_LEN])
}

pub(crate) struct Stage {
    pub(crate) agent: Arc<Agent>,
    pub(crate) task: TaskId,
    pub(crate) container: String,
    pub(crate) dir: tempfile::TempDir,
}

/// What a process does with its stdin, stdout and stderr; its exit code.
pub(crate) type Play = fn(&ExecStart, [File; 3]) -> i32;

impl Stage {
    /// Must be called on a runtime's thread.
    pub(crate) fn new(play: Play) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let agent = Arc::new(Agent::new(context(dir.path(), mpsc::channel(1).0)).unwrap());
        let task = assignment().task;
        let (link, mut outgoing) = ShimLink::of_test();
        let shown = running(&agent.context, &task, link);
        let handle = Handle {
            wanted: watch::Sender::new(Wanted::Gone),
            orders: orders().0,
            shown: Arc::new(Mutex::new(shown)),
            actor: tokio::spawn(async {}),
        };
        lock(&agent.tasks).insert(task.id, handle);
        let context = Arc::clone(&agent.context);
        tokio::spawn(async move {
            while let Some((message, fds)) = outgoing.recv().await {
                let (ToShim::Exec(start), context) = (message, Arc::clone(&context)) else {
                    continue;
                };
                let fds: Vec<File> = fds.into_iter().map(File::from).collect();
                let fds: [File; 3] = fds.try_into().unwrap();
                context.execs.running(&start.id, 7, None);
                std::thread::spawn(move || {
                    let code = play(&start, fds);
                    context.execs.ended(&start.id, code, None);
                });
            }
        });
        Self { agent, task: task.id, container: task.id.container_id(), dir }
    }
}

pub(crate) fn context(dir: &std::path::Path, session: mpsc::Sender<FromAgent>) -> Context {
    Context {
        data_root: dir.to_owned(),
        run_root: dir.join("run"),
        node_name: "n".to_owned(),
        runtime: "runc".to_owned(),
        vault: "auto".to_owned(),
        unified_cgroups: false,
        cluster: id(1),
        node: id(NODE),
        supervisor: Arc::new(Supervisor::load().unwrap()),
        images: Arc::new(ImageStore::open(dir).unwrap()),
        image_source: None,
        execs: ExecTable::default(),
        session,
    }
}

/// A task that sleeps.
pub(crate) fn assignment() -> TaskAssignment {
    let task = Task {
        id: id(9),
        meta: Meta::default(),
        service: id(2),
        service_name: "web".into(),
        service_labels: Default::default(),
        slot: 1,
        node: Some(id(NODE)),
        spec: tests::sleeping(|spec| spec.container.image = "busybox:latest".to_owned()).into(),
        spec_version: 1,
        status: TaskStatus::default(),
        desired: TaskState::Running,
        start_after: None,
        attempts: 0,
        window_start: Stamp(0),
        running_since: None,
        started_with: Vec::new(),
    };
    TaskAssignment { task, grants: Vec::new(), revoked: Vec::new() }
}

fn running(context: &Context, task: &Task, link: ShimLink) -> Shown {
    let assignment = TaskAssignment { task: task.clone(), grants: Vec::new(), revoked: Vec::new() };
    let plan = plan(&assignment, &tests::image(), &context.plan_context()).unwrap();
    let record = store::Record::new(&assignment, 5);
    let mut shown = Shown::new(Arc::new(assignment));
    shown.set_plan(&plan.launch, record);
    shown.status = Some(ShimStatus {
        state: ShimState::Running,
        pid: 77,
        started: Stamp(6),
        exit: None,
        trouble: None,
        oom: false,
    });
    shown.link = Some(link);
    shown
}
