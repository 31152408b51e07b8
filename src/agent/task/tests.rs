use skep_core::assign::AssignedGrant;
use skep_core::id::MaterialId;
use skep_core::model::material::{Grant, MaterialKind, OnChange};
use skep_core::time::Stamp;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::agent::link::ShimLink;
use crate::agent::orders::{Order, Orders, orders};
use crate::agent::testing::{assignment, context, id};
use crate::limits::TASK_ORDERS;
use crate::wire::shim::{Delivery, Hello, PROTOCOL, ShimState, ShimStatus};

const WAIT: Duration = Duration::from_secs(20);

/// An actor whose shim the test plays.
struct Play {
    wanted: watch::Sender<Wanted>,
    orders: Orders,
    /// To the shim.
    told: mpsc::Receiver<(ToShim, Vec<OwnedFd>)>,
    /// From the shim.
    says: mpsc::Sender<(FromShim, Vec<OwnedFd>)>,
    /// To the manager.
    heard: mpsc::Receiver<FromAgent>,
    _dir: tempfile::TempDir,
}

fn secret(seed: u8) -> MaterialId {
    id(seed)
}

fn assigned(material: MaterialId, version: u64) -> AssignedGrant {
    AssignedGrant {
        material,
        kind: MaterialKind::Secret,
        name: "db".into(),
        version,
        created: Stamp(1),
        size: 3,
        target: "db".into(),
        uid: 0,
        gid: 0,
        mode: 0o444,
        on_change: OnChange::Nothing,
    }
}

/// A task that is granted a secret.
fn granted(version: u64) -> TaskAssignment {
    let mut assignment = assignment();
    let grant = Grant {
        id: secret(70),
        name: "db".into(),
        target: "db".into(),
        uid: 0,
        gid: 0,
        mode: 0o444,
        pin: None,
        on_change: OnChange::Nothing,
    };
    assignment.task.spec.make_mut().container.secrets = vec![grant];
    assignment.grants = vec![assigned(secret(70), version)];
    assignment
}

fn revoked() -> TaskAssignment {
    let mut assignment = granted(1);
    assignment.grants.clear();
    assignment.revoked = vec![secret(70)];
    assignment
}

impl Play {
    fn begin(assignment: TaskAssignment, local: Local, held: Vec<(MaterialId, u64)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (session, heard) = mpsc::channel(64);
        let context = Arc::new(context(dir.path(), session));
        let task = assignment.task.id;
        let assignment = Arc::new(assignment);
        let shown = Arc::new(Mutex::new(Shown::new(Arc::clone(&assignment))));
        let (wanted, wanted_rx) = watch::channel(Wanted::Run(assignment));
        let (orders, queue) = orders();
        let (link, told) = ShimLink::of_test();
        let (says, incoming) = mpsc::channel(64);
        let status = ShimStatus {
            state: ShimState::Waiting,
            pid: 0,
            started: Stamp(0),
            exit: None,
            trouble: None,
            oom: false,
        };
        let hello = Hello {
            protocol: PROTOCOL,
            task,
            key: [1; 32],
            pid: 0,
            held,
            sequence: 0,
            status,
            version: String::new(),
        };
        let mut actor = Actor::new(context, task, wanted_rx, queue, shown);
        actor.local = local;
        actor.shim = Some(Shim { link, incoming, hello, process: None });
        tokio::spawn(actor.run(None));
        Self { wanted, orders, told, says, heard, _dir: dir }
    }

    /// What the manager hears next beside reports.
    async fn hears(&mut self) -> FromAgent {
        loop {
            match timeout(WAIT, self.heard.recv()).await.unwrap().unwrap() {
                FromAgent::Reports(_) => {}
                other => return other,
            }
        }
    }

    /// The next report.
    async fn report(&mut self) -> TaskStatus {
        loop {
            if let FromAgent::Reports(reports) =
                timeout(WAIT, self.heard.recv()).await.unwrap().unwrap()
            {
                return reports[0].status.clone();
            }
        }
    }

    /// What the shim is told next.
    async fn told(&mut self) -> ToShim {
        timeout(WAIT, self.told.recv()).await.unwrap().unwrap().0
    }

    async fn say(&self, message: FromShim) {
        self.says.send((message, Vec::new())).await.unwrap();
    }
}

fn held(held: &[(MaterialId, u64)], sequence: u64, refused: Option<&str>) -> FromAgent {
    let (held, refused) = (held.to_vec(), refused.map(str::to_owned));
    FromAgent::Held { task: id(9), held, sequence, refused }
}

fn announced(held: &[(MaterialId, u64)], sequence: u64) -> FromAgent {
    FromAgent::Shim { task: id(9), key: [1; 32], held: held.to_vec(), sequence }
}

fn delivery(sequence: u64) -> Delivery {
    Delivery { sequence, items: Vec::new() }
}

#[tokio::test]
async fn orders_go_on_in_turn_and_every_answer_is_passed_on() {
    let a = secret(70);
    let mut play = Play::begin(granted(1), Local::Running { pid: 7 }, vec![(a, 1)]);
    assert!(play.orders.put(Order::Deliver(delivery(1))));
    assert!(play.orders.put(Order::Revoke { sequence: 2, materials: vec![(a, 2)] }));
    assert_eq!(play.told().await, ToShim::Deliver(delivery(1)));
    assert_eq!(play.told().await, ToShim::Revoke { sequence: 2, materials: vec![(a, 2)] });
    play.say(FromShim::Delivered { sequence: 1, held: vec![(a, 2)], last: 1 }).await;
    assert_eq!(play.hears().await, held(&[(a, 2)], 1, None));
    let (request, reason) = ("revoke".to_owned(), "pages are left".to_owned());
    play.say(FromShim::Refused { request, reason, is_outdated: false }).await;
    assert_eq!(play.hears().await, held(&[(a, 2)], 1, Some("pages are left")));
    play.say(FromShim::Delivered { sequence: 2, held: Vec::new(), last: 2 }).await;
    assert_eq!(play.hears().await, held(&[], 2, None));
    // All of its grants are gone, and it runs on.
    play.wanted.send_replace(Wanted::Run(Arc::new(revoked())));
    assert!(play.orders.put(Order::Deliver(delivery(3))));
    assert_eq!(play.told().await, ToShim::Deliver(delivery(3)));
}

#[tokio::test]
async fn a_shim_speaks_up_anew_with_what_it_answered_when_orders_were_dropped() {
    let a = secret(70);
    let mut play = Play::begin(granted(1), Local::Running { pid: 7 }, vec![(a, 1)]);
    play.say(FromShim::Delivered { sequence: 4, held: vec![(a, 3)], last: 4 }).await;
    assert_eq!(play.hears().await, held(&[(a, 3)], 4, None));
    // The actor has no turn in between: this test's thread is the only one.
    let mut dropped = 0;
    for sequence in 5..=6 + TASK_ORDERS as u64 {
        dropped += u32::from(!play.orders.put(Order::Deliver(delivery(sequence))));
    }
    assert_eq!(dropped, 2);
    for sequence in 5..5 + TASK_ORDERS as u64 {
        assert_eq!(play.told().await, ToShim::Deliver(delivery(sequence)));
    }
    assert_eq!(play.hears().await, announced(&[(a, 3)], 4));
}

#[tokio::test]
async fn it_starts_once_all_is_there_and_not_before() {
    let a = secret(70);
    let mut play = Play::begin(granted(2), Local::Launched, Vec::new());
    assert_eq!(play.hears().await, announced(&[], 0));
    let (request, reason) = ("deliver".to_owned(), "version 1 is revoked".to_owned());
    play.say(FromShim::Refused { request, reason, is_outdated: true }).await;
    assert_eq!(play.hears().await, held(&[], 0, Some("version 1 is revoked")));
    play.say(FromShim::Delivered { sequence: 1, held: vec![(a, 1)], last: 1 }).await;
    assert_eq!(play.hears().await, held(&[(a, 1)], 1, None));
    assert!(play.told.try_recv().is_err(), "it lacks the version that it was assigned");
    play.say(FromShim::Delivered { sequence: 2, held: vec![(a, 2)], last: 2 }).await;
    assert_eq!(play.told().await, ToShim::Start);
}

#[tokio::test]
async fn what_it_may_not_have_rejects_a_task_that_has_not_started() {
    for local in [Local::New, Local::Launched] {
        let mut play = Play::begin(revoked(), local, Vec::new());
        let last = play.report().await;
        let text = "secret db is revoked: give it a new version, or update the service so that it \
                    grants it anew";
        assert_eq!((last.state, last.err.as_deref()), (TaskState::Rejected, Some(text)));
    }
    // Between the payloads and the start.
    let mut waiting = granted(1);
    waiting.task.desired = TaskState::Ready;
    let mut play = Play::begin(waiting, Local::Loaded, vec![(secret(70), 1)]);
    assert_eq!(play.report().await.state, TaskState::Ready);
    play.wanted.send_replace(Wanted::Run(Arc::new(revoked())));
    assert_eq!(play.report().await.state, TaskState::Rejected);
    assert!(play.told.recv().await.is_none(), "it was told to start");
}

#[tokio::test]
async fn a_first_delivery_that_cannot_be_taken_rejects_the_task() {
    let mut play = Play::begin(granted(1), Local::Launched, Vec::new());
    assert_eq!(play.hears().await, announced(&[], 0));
    let (request, reason) = ("deliver".to_owned(), "it cannot be opened".to_owned());
    play.say(FromShim::Refused { request, reason, is_outdated: false }).await;
    assert_eq!(play.hears().await, held(&[], 0, Some("it cannot be opened")));
    assert_eq!(play.hears().await, FromAgent::ShimGone { task: id(9) });
    let last = play.report().await;
    assert_eq!(last.err.as_deref(), Some("deliver refused: it cannot be opened"));
}
