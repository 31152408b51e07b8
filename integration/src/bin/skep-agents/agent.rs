//! One agent: skep's own session, and made-up tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep::clock::now;
use skep::limits::SESSION_QUEUE;
use skep::manager::peers::Book;
use skep::node::session::{Seat, Uplink};
use skep::wire::session::{FromAgent, Hello, ToAgent};
use skep_core::assign::AssignmentDiff;
use skep_core::command::TaskReport;
use skep_core::id::{MaterialId, NodeId, TaskId};
use skep_core::model::task::{ContainerStatus, TaskState, TaskStatus};
use tokio::sync::{mpsc, watch};

use crate::join::Member;
use crate::roll::Roll;

/// What every made-up shim is said to have as its key: any point of the curve will do.
const SHIM_KEY: [u8; 32] = [9; 32];

/// Holds a session from now on.
pub(crate) fn start(member: Member, number: usize, roll: Arc<Roll>) {
    let Member { net, welcome, description, advertise } = member;
    let (news_tx, news) = mpsc::channel(SESSION_QUEUE);
    let (orders, orders_rx) = mpsc::channel(SESSION_QUEUE);
    let (stop_tx, stop) = watch::channel(false);
    let seat = Arc::new(Seat::default());
    let uplink = Uplink {
        node: welcome.node,
        net,
        book: Arc::new(Book::new(welcome.cluster, welcome.directory)),
        seat: Arc::clone(&seat),
        news,
        orders,
        hello: Hello {
            cluster: welcome.cluster,
            incarnation: 0,
            incarnation_id: [0; 16],
            description,
            advertise,
        },
        role: watch::Sender::new(0),
        removed: watch::Sender::new(false),
        asked: None,
        stop,
        is_leaving: false,
    };
    let player = Player {
        node: welcome.node,
        number,
        tasks: BTreeSet::new(),
        held: BTreeMap::new(),
        news: news_tx,
        seat,
        roll,
    };
    tokio::spawn(async move {
        uplink.run().await;
        // Nobody tells it to stop: a session that ends for good is the swarm's doing.
        drop(stop_tx);
    });
    tokio::spawn(player.play(orders_rx));
}

struct Player {
    node: NodeId,
    number: usize,
    tasks: BTreeSet<TaskId>,
    /// What the shims of its tasks would hold.
    held: BTreeMap<TaskId, BTreeMap<MaterialId, u64>>,
    news: mpsc::Sender<FromAgent>,
    seat: Arc<Seat>,
    roll: Arc<Roll>,
}

impl Player {
    async fn play(mut self, mut orders: mpsc::Receiver<ToAgent>) {
        while let Some(order) = orders.recv().await {
            match order {
                ToAgent::Assign(diff) => self.assigned(diff).await,
                ToAgent::Deliver { task, delivery } => {
                    let items = delivery.items.iter().map(|item| (item.material, item.version));
                    self.held.entry(task).or_default().extend(items);
                    self.answer(task, delivery.sequence).await;
                }
                ToAgent::Revoke { task, sequence, materials } => {
                    let held = self.held.entry(task).or_default();
                    for (id, _) in materials {
                        held.remove(&id);
                    }
                    self.answer(task, sequence).await;
                }
                ToAgent::Beat
                | ToAgent::Directory(_)
                | ToAgent::Role { .. }
                | ToAgent::AuditStored { .. } => {}
            }
        }
    }

    /// Says for a task's shim, which there is not, what it holds.
    async fn answer(&self, task: TaskId, sequence: u64) {
        let held = self.held.get(&task).into_iter().flatten();
        let held = held.map(|(id, version)| (*id, *version)).collect();
        let held = FromAgent::Held { task, held, sequence, refused: None };
        self.news.send(held).await.ok();
    }

    async fn assigned(&mut self, diff: AssignmentDiff) {
        let is_complete = diff.sequence == 1;
        let old = self.tasks.clone();
        let mut reports = Vec::new();
        if is_complete {
            self.tasks.clear();
        }
        for id in diff.remove {
            self.tasks.remove(&id);
        }
        for assigned in diff.update {
            let (id, desired) = (assigned.task.id, assigned.task.desired);
            let state = if desired > TaskState::Running {
                self.tasks.remove(&id);
                TaskState::Shutdown
            } else {
                self.tasks.insert(id);
                TaskState::Running
            };
            if state == TaskState::Running && !old.contains(&id) {
                let shim = FromAgent::Shim { task: id, key: SHIM_KEY, held: vec![], sequence: 0 };
                self.news.send(shim).await.ok();
            }
            if state == TaskState::Shutdown || !old.contains(&id) {
                reports.push(self.report(id, state));
            }
        }
        self.held.retain(|id, _| self.tasks.contains(id));
        if !reports.is_empty() {
            self.news.send(FromAgent::Reports(reports)).await.ok();
        }
        let manager = self.seat.peer().map(|peer| peer.ip().to_canonical());
        self.roll.note(self.number, is_complete, manager, &self.tasks);
    }

    fn report(&self, id: TaskId, state: TaskState) -> TaskReport {
        let container = ContainerStatus { id: id.container_id(), pid: 1, exit_code: 0 };
        let status = TaskStatus {
            at: now(),
            state,
            message: "simulated".into(),
            err: None,
            container: Some(container),
        };
        TaskReport { id, node: self.node, status }
    }
}
