//! The agent half of a node: it runs what managers assign, each task behind a shim of its own,
//! and reports what it sees.

mod audit;
pub mod exec;
mod isolation;
mod leftovers;
pub mod link;
mod orders;
pub mod program;
pub mod remote;
pub mod shown;
pub mod spawn;
pub mod store;
mod task;
#[cfg(test)]
pub(crate) mod testing;
mod wanted;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_core::assign::{AssignmentDiff, TaskAssignment};
use skep_core::id::{ClusterId, NodeId, TaskId};
use skep_core::time::Span;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::chain::chain;
use crate::clock::uptime;
use crate::engine::images::ImageStore;
use crate::engine::images::exchange::ImageSource;
use crate::engine::plan::NodeContext;
use crate::files::{FileError, make_dir};
use crate::gate::{ContainerView, ExecConfig, ExecStreams, Refusal};
use crate::wire::session::{FromAgent, ToAgent};
use crate::wire::shim::ToShim;
use exec::{ExecTable, no_such};
use link::ShimLink;
use orders::{Order, Orders, orders};
use program::Supervisor;
use shown::Shown;
use task::Actor;
use wanted::Wanted;

/// What every task's actor shares.
#[derive(Debug)]
pub struct Context {
    /// Where everything that lasts is kept.
    pub data_root: PathBuf,
    /// Where sockets and mount points are.
    pub run_root: PathBuf,
    /// Name of the node.
    pub node_name: String,
    /// The OCI runtime.
    pub runtime: String,
    /// Which memory holds plaintext.
    pub vault: String,
    /// Whether the host's cgroups are one hierarchy.
    pub unified_cgroups: bool,
    /// The swarm.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// What supervises its tasks.
    pub supervisor: Arc<Supervisor>,
    /// Images of this node.
    pub images: Arc<ImageStore>,
    /// Where images come from that it lacks; none if there are no other nodes.
    pub image_source: Option<Arc<dyn ImageSource>>,
    /// Execs of this node.
    pub execs: ExecTable,
    /// To the manager that holds the session.
    pub session: mpsc::Sender<FromAgent>,
}

impl Context {
    /// `<data-root>/tasks`.
    #[must_use]
    pub fn tasks_dir(&self) -> PathBuf {
        self.data_root.join("tasks")
    }

    /// `<data-root>/tasks/<id>`.
    #[must_use]
    pub fn task_dir(&self, id: &TaskId) -> PathBuf {
        self.tasks_dir().join(id.as_str())
    }

    /// What a plan depends on beside task and image.
    fn plan_context(&self) -> NodeContext {
        NodeContext {
            cluster: self.cluster,
            node: self.node,
            hostname: self.node_name.clone(),
            data_root: self.data_root.clone(),
            run_root: self.run_root.clone(),
            runtime: self.runtime.clone(),
            vault: self.vault.clone(),
            unified_cgroups: self.unified_cgroups,
        }
    }

    /// `<run-root>/tasks/<id>`.
    #[must_use]
    pub fn run_dir(&self, id: &TaskId) -> PathBuf {
        self.run_root.join("tasks").join(id.as_str())
    }
}

/// The side of a task that the agent holds.
#[derive(Debug)]
struct Handle {
    wanted: watch::Sender<Wanted>,
    orders: Orders,
    shown: Arc<Mutex<Shown>>,
    actor: JoinHandle<()>,
}

/// The agent of this node.
#[derive(Debug)]
pub struct Agent {
    context: Arc<Context>,
    tasks: Mutex<HashMap<TaskId, Handle>>,
    /// When a manager was last heard of, by [`uptime`].
    contact: Mutex<Span>,
    mail: audit::Mail,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// An agent that knows no task yet.
    ///
    /// # Errors
    /// If its directories cannot be made.
    pub fn new(context: Context) -> Result<Self, FileError> {
        make_dir(&context.tasks_dir(), 0o700)?;
        make_dir(&context.run_root.join("tasks"), 0o700)?;
        let contact = Mutex::new(uptime());
        let mail = audit::Mail::default();
        Ok(Self { context: Arc::new(context), tasks: Mutex::default(), contact, mail })
    }

    /// Finds the tasks of an earlier daemon again: their shims went on without it.
    ///
    /// # Errors
    /// If the task directories cannot be read.
    pub fn reattach(&self) -> Result<(), FileError> {
        for found in store::scan(&self.context.tasks_dir())? {
            let assignment = found.record.as_ref().and_then(store::Record::assignment);
            match assignment {
                Some(assignment) => self.adopt(assignment, Some(found)),
                // Never planned, or half removed: the manager assigns it again if it is to run.
                None => {
                    if let Some(launch) = &found.launch
                        && let Err(error) = leftovers::Traces::of(launch).clear()
                    {
                        let error = chain(&error);
                        tracing::warn!(task = %found.id, error, "leftovers of a task stay");
                    }
                    crate::files::remove_dir(&self.context.run_dir(&found.id))?;
                    // What cannot be put aside is sent from where it is.
                    match audit::set_aside(&self.context.data_root, &found.dir, &found.id) {
                        Ok(()) => crate::files::remove_dir(&found.dir)?,
                        Err(error) => {
                            let error = chain(&error);
                            tracing::warn!(task = %found.id, error, "a task's audit stays there");
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Obeys a session until it ends.
    pub async fn obey(&self, mut orders: mpsc::Receiver<ToAgent>) {
        while let Some(order) = orders.recv().await {
            *lock(&self.contact) = uptime();
            match order {
                ToAgent::Assign(diff) => {
                    if diff.sequence == 1 {
                        self.mail.begin_session();
                    }
                    self.assign(diff);
                }
                ToAgent::AuditStored { batch } => self.mail.is_stored(batch),
                // No more than a sign of life, or for the one who holds the session.
                ToAgent::Beat | ToAgent::Directory(_) | ToAgent::Role { .. } => {}
                ToAgent::Deliver { task, delivery } => self.order(&task, Order::Deliver(delivery)),
                ToAgent::Revoke { task, sequence, materials } => {
                    self.order(&task, Order::Revoke { sequence, materials });
                }
            }
        }
    }

    /// Hands an order on to a task. One that is gone needs none.
    fn order(&self, task: &TaskId, order: Order) {
        if let Some(handle) = lock(&self.tasks).get(task)
            && !handle.orders.put(order)
        {
            tracing::warn!(%task, "a task is behind with its orders, and asks for them anew");
        }
    }

    fn assign(&self, diff: AssignmentDiff) {
        let named: Vec<TaskId> = diff.update.iter().map(|a| a.task.id).collect();
        for assignment in diff.update {
            self.adopt(assignment, None);
        }
        let mut tasks = lock(&self.tasks);
        let gone: Vec<TaskId> = if diff.sequence == 1 {
            tasks.keys().filter(|id| !named.contains(id)).copied().collect()
        } else {
            diff.remove
        };
        for id in gone {
            if let Some(handle) = tasks.remove(&id) {
                handle.wanted.send_replace(Wanted::Gone);
            }
        }
    }

    /// Tells a task's actor what is wanted; makes the actor if there is none.
    fn adopt(&self, assignment: TaskAssignment, found: Option<store::Found>) {
        let id = assignment.task.id;
        let assignment = Arc::new(assignment);
        let mut tasks = lock(&self.tasks);
        if let Some(handle) = tasks.get(&id) {
            handle.wanted.send_replace(Wanted::Run(assignment));
            return;
        }
        let shown = Arc::new(Mutex::new(Shown::new(Arc::clone(&assignment))));
        let (wanted, wanted_rx) = watch::channel(Wanted::Run(assignment));
        let (orders, queue) = orders();
        let actor = Actor::new(Arc::clone(&self.context), id, wanted_rx, queue, Arc::clone(&shown));
        let actor = tokio::spawn(actor.run(found));
        tasks.insert(id, Handle { wanted, orders, shown, actor });
    }

    /// Ends every task of this node and removes what they left.
    pub async fn end_all(&self) {
        let handles: Vec<Handle> = lock(&self.tasks).drain().map(|(_, handle)| handle).collect();
        for handle in &handles {
            handle.wanted.send_replace(Wanted::Gone);
        }
        for handle in handles {
            if let Err(error) = handle.actor.await {
                tracing::error!(%error, "a task was not ended in order");
            }
        }
    }

    /// Containers of this node, those of ended tasks included.
    #[must_use]
    pub fn containers(&self) -> Vec<ContainerView> {
        let shown: Vec<_> = lock(&self.tasks).values().map(|h| Arc::clone(&h.shown)).collect();
        let views = shown.iter().filter_map(|shown| lock(shown).view(&self.context));
        views
            .map(|mut view| {
                view.execs = self.context.execs.of(&view.id);
                view
            })
            .collect()
    }

    /// The container of a task that this node has, once it was planned.
    #[must_use]
    pub fn container(&self, task: &TaskId) -> Option<ContainerView> {
        let shown = lock(&self.tasks).get(task).map(|handle| Arc::clone(&handle.shown))?;
        let mut view = lock(&shown).view(&self.context)?;
        view.execs = self.context.execs.of(&view.id);
        Some(view)
    }

    /// The shim of a running container.
    fn link_of(&self, container: &str) -> Option<ShimLink> {
        let tasks = lock(&self.tasks);
        tasks.values().find_map(|handle| {
            let shown = lock(&handle.shown);
            (shown.container_id() == Some(container)).then(|| shown.link.clone())?
        })
    }

    /// Makes an exec in a running container.
    ///
    /// # Errors
    /// If the container does not run, or too many execs do.
    pub fn exec_create(&self, container: &str, config: ExecConfig) -> Result<String, Refusal> {
        if self.link_of(container).is_none() {
            return Err(Refusal::Conflict(format!("Container {container} is not running")));
        }
        let id = exec::mint(&self.context.node)?;
        self.context.execs.create(id, container, config)
    }

    /// Starts an exec.
    ///
    /// # Errors
    /// If there is none of this id, it was started before, or its container has ended.
    pub async fn exec_start(
        &self,
        id: &str,
        detach: bool,
        size: Option<(u16, u16)>,
    ) -> Result<ExecStreams, Refusal> {
        let started = self.context.execs.start(id, detach, size)?;
        let Some(link) = self.link_of(&started.container) else {
            self.context.execs.ended(id, 137, None);
            return Err(Refusal::Conflict(format!(
                "Container {} is not running",
                started.container
            )));
        };
        link.send_with(ToShim::Exec(started.start), started.fds).await;
        Ok(started.streams)
    }

    /// Sets the size of an exec's terminal.
    ///
    /// # Errors
    /// If it does not run.
    pub fn exec_resize(&self, id: &str, rows: u16, cols: u16) -> Result<(), Refusal> {
        let view = self.context.execs.view(id).ok_or_else(|| no_such(id))?;
        let link = self.link_of(&view.container).ok_or_else(|| no_such(id))?;
        let id = id.to_owned();
        tokio::spawn(async move { link.send(ToShim::ExecResize { id, rows, cols }).await });
        Ok(())
    }

    /// What the actors share.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Directory of a task that this node has, and a watch that turns true once its process has
    /// ended.
    #[must_use]
    pub fn log_source(&self, id: &TaskId) -> Option<(PathBuf, watch::Receiver<bool>)> {
        let tasks = lock(&self.tasks);
        let handle = tasks.get(id)?;
        Some((self.context.task_dir(id), lock(&handle.shown).ended.subscribe()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::limits::TASK_ORDERS;
    use crate::wire::shim::Delivery;
    use orders::{Next, Queue};
    use testing::{assignment, context, id};

    /// The daemon was killed as it removed the task.
    #[tokio::test]
    async fn the_audit_of_a_half_removed_task_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent::new(context(dir.path(), mpsc::channel(1).0)).unwrap();
        let task_dir = agent.context.task_dir(&id(20));
        std::fs::create_dir(&task_dir).unwrap();
        std::fs::write(task_dir.join("audit.1"), "older").unwrap();
        std::fs::write(task_dir.join("audit"), "newer").unwrap();
        agent.reattach().unwrap();
        assert!(!task_dir.exists() && lock(&agent.tasks).is_empty());
        let task: TaskId = id(20);
        let aside = dir.path().join("audit/unsent").join(task.as_str());
        let read = |name: &str| std::fs::read_to_string(aside.join(name)).unwrap();
        assert_eq!([read("audit.1"), read("audit")], ["older", "newer"]);
    }

    #[tokio::test]
    async fn a_task_that_takes_no_orders_holds_up_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent::new(context(dir.path(), mpsc::channel(1).0)).unwrap();
        let task = |seed| -> (TaskId, Queue) {
            let (orders, queue) = orders();
            let handle = Handle {
                wanted: watch::Sender::new(Wanted::Gone),
                orders,
                shown: Arc::new(Mutex::new(Shown::new(Arc::new(assignment())))),
                actor: tokio::spawn(async {}),
            };
            lock(&agent.tasks).insert(id(seed), handle);
            (id(seed), queue)
        };
        let ((stuck, mut its), (other, mut theirs)) = (task(20), task(21));
        let deliver = |task, sequence| ToAgent::Deliver {
            task,
            delivery: Delivery { sequence, items: Vec::new() },
        };
        let revoke = |task, sequence| ToAgent::Revoke { task, sequence, materials: Vec::new() };
        let (to, orders) = mpsc::channel(4 * TASK_ORDERS);
        for sequence in 1..=2 * TASK_ORDERS as u64 {
            to.send(deliver(stuck, sequence)).await.unwrap();
        }
        to.send(revoke(other, 1)).await.unwrap();
        to.send(deliver(other, 2)).await.unwrap();
        // Nobody has this one.
        to.send(revoke(id(22), 1)).await.unwrap();
        drop(to);
        timeout(Duration::from_secs(20), agent.obey(orders)).await.expect("it is held up");

        let first = Order::Revoke { sequence: 1, materials: Vec::new() };
        assert_eq!(theirs.next().await, Next::Order(first));
        let second = Order::Deliver(Delivery { sequence: 2, items: Vec::new() });
        assert_eq!(theirs.next().await, Next::Order(second));
        for _ in 0..TASK_ORDERS {
            assert!(matches!(its.next().await, Next::Order(_)));
        }
        assert_eq!(its.next().await, Next::Missed);
    }
}
