//! One task on this node: the core's task machine decides, this carries it out.

mod image;
mod shim;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use skep_core::assign::{AssignedGrant, TaskAssignment};
use skep_core::command::TaskReport;
use skep_core::id::TaskId;
use skep_core::limits::STOP_GRACE;
use skep_core::model::task::{ContainerStatus, TaskState, TaskStatus};
use skep_core::task_machine::{Action, End, Local, Report, step};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::audit::set_aside;
use super::leftovers::Traces;
use super::orders::{Next, Queue};
use super::shown::Shown;
use super::spawn::spawn_shim;
use super::store::{self, Found, Record};
use super::wanted::Wanted;
use super::{Context, lock};
use crate::chain::chain;
use crate::engine;
use crate::engine::images::Hold;
use crate::files::remove_dir;
use crate::limits::SHIM_END;
use crate::wire::launch::Launch;
use crate::wire::session::FromAgent;
use crate::wire::shim::{FromShim, ToShim};
use shim::Shim;

/// Time between two questions to a shim that says nothing.
const PROBE: Duration = Duration::from_secs(10);

/// What is told of a task that was ended because its node was cut off.
const ISOLATED: &str = "stopped while its node was cut off from the managers";

/// The task's actor.
#[derive(Debug)]
pub(super) struct Actor {
    context: Arc<Context>,
    id: TaskId,
    wanted: watch::Receiver<Wanted>,
    orders: Queue,
    shown: Arc<Mutex<Shown>>,
    local: Local,
    shim: Option<Shim>,
    reported: Option<Report>,
    /// Whether a session of this daemon has named the task.
    confirmed: bool,
    /// Whether it was ended because the node was cut off.
    isolated: bool,
    asked: bool,
    stopping: bool,
    stop_signal: i32,
    /// What it leaves on the node, once it was planned.
    traces: Option<Traces>,
    /// When its shim last said something.
    heard: Instant,
}

/// What woke the actor.
enum News {
    Wanted,
    Silence,
    Order(Next),
    Shim(Option<Box<(FromShim, Vec<OwnedFd>)>>),
}

impl Actor {
    pub(super) fn new(
        context: Arc<Context>,
        id: TaskId,
        wanted: watch::Receiver<Wanted>,
        orders: Queue,
        shown: Arc<Mutex<Shown>>,
    ) -> Self {
        Self {
            context,
            id,
            wanted,
            orders,
            shown,
            local: Local::New,
            shim: None,
            reported: None,
            confirmed: true,
            isolated: false,
            asked: false,
            stopping: false,
            stop_signal: libc_sigterm(),
            traces: None,
            heard: Instant::now(),
        }
    }

    /// Runs the task until it is gone.
    pub(super) async fn run(mut self, found: Option<Found>) {
        if let Some(found) = found {
            self.confirmed = false;
            self.resume(found).await;
        }
        loop {
            self.confirmed |= self.wanted.has_changed().unwrap_or(false);
            let wanted = self.wanted.borrow_and_update().clone();
            let Some(assignment) = wanted.assignment() else { break };
            lock(&self.shown).assignment = Arc::clone(assignment);
            // It does not come back: once there is a manager again, another takes its place.
            self.isolated |= matches!(wanted, Wanted::Isolated(_));
            let desired = assignment.task.desired;
            let desired = if self.isolated { desired.max(TaskState::Shutdown) } else { desired };
            if let Some(why) = self.unfit(assignment) {
                self.abandon().await;
                self.local = Local::Rejected(why);
            }
            let (action, mut report) = step(desired, &self.local);
            if self.isolated && report.state == TaskState::Shutdown {
                report.err = Some(ISOLATED.to_owned());
            }
            self.report(report).await;
            // What an earlier daemon was told may be over: nothing is begun on its word.
            let begins = matches!(action, Action::Prepare | Action::Load | Action::Start);
            if (self.confirmed || !begins) && self.act(action, assignment).await {
                continue;
            }
            self.wait().await;
        }
        self.destroy().await;
    }

    /// Why a task that has not begun to start cannot: payloads that it may not have never come.
    fn unfit(&self, assignment: &TaskAssignment) -> Option<String> {
        let is_waiting = matches!(self.local, Local::New | Local::Launched | Local::Loaded);
        // What an earlier daemon was told may be over.
        if !is_waiting || !self.confirmed || self.isolated {
            return None;
        }
        let missing: Vec<String> = assignment.missing().map(|one| one.to_string()).collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }

    /// Carries out an action. True if the local state changed by it.
    async fn act(&mut self, action: Action, assignment: &Arc<TaskAssignment>) -> bool {
        match action {
            Action::Wait => false,
            Action::Prepare => {
                self.local = Local::Preparing;
                self.report(step(assignment.task.desired, &self.local).1).await;
                self.local = match self.prepare(assignment).await {
                    Ok(true) => Local::Launched,
                    // It is to go, and nothing was made for it yet.
                    Ok(false) => Local::New,
                    Err(why) => {
                        self.abandon().await;
                        Local::Rejected(why)
                    }
                };
                true
            }
            Action::Load => self.load(assignment).await,
            Action::Start => {
                self.local = Local::Starting;
                self.tell(ToShim::Start).await;
                true
            }
            Action::Stop => {
                self.stop(assignment).await;
                false
            }
            Action::Abandon => {
                self.abandon().await;
                self.local = Local::Ended(End::default());
                true
            }
        }
    }

    async fn wait(&mut self) {
        let news = {
            let shim = async {
                match &mut self.shim {
                    Some(shim) => shim.incoming.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                message = shim => News::Shim(message.map(Box::new)),
                changed = self.wanted.changed() => {
                    // The agent is gone with the daemon: the task goes on without us.
                    if changed.is_err() { std::future::pending::<()>().await }
                    News::Wanted
                }
                next = self.orders.next() => News::Order(next),
                () = sleep(PROBE) => News::Silence,
            }
        };
        match news {
            // Seen by now: the next look finds no change.
            News::Wanted => self.confirmed = true,
            News::Silence => self.probe().await,
            News::Order(Next::Order(order)) => self.tell(order.into()).await,
            News::Order(Next::Missed) => self.announce().await,
            News::Shim(Some(said)) => {
                let (message, fds) = *said;
                self.hear(message, fds).await;
                if matches!(self.local, Local::Rejected(_)) {
                    self.abandon().await;
                }
            }
            News::Shim(None) => self.shim_gone().await,
        }
    }

    /// Gets the image, plans the task, writes the plan and starts the shim. False if the task is
    /// to go before it is planned.
    async fn prepare(&mut self, assignment: &Arc<TaskAssignment>) -> Result<bool, String> {
        if !self.fetch_image(assignment).await? {
            return Ok(false);
        }
        let (context, assignment) = (Arc::clone(&self.context), Arc::clone(assignment));
        let planned = tokio::task::spawn_blocking(move || plan(&context, &assignment)).await;
        let (launch, record, hold) = planned.map_err(|e| chain(&e))??;
        self.stop_signal = record.stop_signal;
        self.traces = Some(Traces::of(&launch));
        lock(&self.shown).set_plan(&launch, record);
        // From here on the image's removal sees the container.
        drop(hold);
        let dir = self.context.task_dir(&self.id);
        spawn_shim(&self.context.supervisor, &dir).await.map_err(|e| chain(&e))?;
        let Err(error) = self.connect().await else { return Ok(true) };
        // One that broke off while it made itself ready says why in its exit record.
        let said = store::load_exit(&dir).and_then(|exit| exit.error);
        Err(said.unwrap_or_else(|| chain(&error)))
    }

    /// Asks the manager for payloads, once. True if none is needed: the shim of an earlier
    /// daemon may hold them all.
    async fn load(&mut self, assignment: &TaskAssignment) -> bool {
        let held = self.shim.as_ref().map(|shim| shim.hello.held.as_slice()).unwrap_or_default();
        let is_held = |grant: &AssignedGrant| {
            held.iter().any(|(id, version)| *id == grant.material && *version >= grant.version)
        };
        if assignment.grants.iter().all(is_held) {
            self.local = Local::Loaded;
            return true;
        }
        if !std::mem::replace(&mut self.asked, true) {
            self.announce().await;
        }
        false
    }

    /// Ends what a killed shim may have left: the container, its cgroups, its run directory.
    async fn clear_run_state(&self) {
        let (traces, run_dir) = (self.traces.clone(), self.context.run_dir(&self.id));
        let cleared = tokio::task::spawn_blocking(move || match traces {
            Some(traces) => traces.clear(),
            // A plan that failed on its way may have made it.
            None => Ok(remove_dir(&run_dir)?),
        });
        match cleared.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(task = %self.id, error = chain(&error), "leftovers of a task stay");
            }
            Err(error) => tracing::warn!(task = %self.id, %error, "leftovers of a task stay"),
        }
    }

    async fn stop(&mut self, assignment: &TaskAssignment) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        let grace = assignment.task.spec.container.stop_grace.unwrap_or(STOP_GRACE);
        let message = ToShim::Stop { signal: self.stop_signal, grace_ms: grace.as_millis() };
        self.tell(message).await;
    }

    /// Ends a shim whose container never ran. One that has told the end of its task is busy
    /// clearing up, and leaves by itself.
    async fn abandon(&mut self) {
        let shim = self.shim.take();
        let had_shim = shim.is_some();
        if let Some(mut shim) = shim {
            if matches!(self.local, Local::Ended(_)) {
                let left = async { while shim.incoming.recv().await.is_some() {} };
                // What it does not get done is done below.
                let _ = timeout(SHIM_END, left).await;
            }
            shim.kill();
        }
        self.clear_run_state().await;
        lock(&self.shown).ended.send_replace(true);
        if had_shim {
            self.tell_gone().await;
        }
    }

    /// Finds a task of an earlier daemon again.
    async fn resume(&mut self, found: Found) {
        let Some((launch, record)) = found.launch.zip(found.record) else { return };
        self.stop_signal = record.stop_signal;
        let gone = record.lost.clone();
        self.traces = Some(Traces::of(&launch));
        lock(&self.shown).set_plan(&launch, record);
        if let Some(exit) = found.exit.or(gone) {
            self.local = self.end(exit);
            return;
        }
        match self.connect().await {
            Ok(status) => self.take_up(status).await,
            Err(_) => self.bury().await,
        }
    }

    /// Reports to the session what changed since the last report.
    async fn report(&mut self, mut report: Report) {
        if report.state == TaskState::Running {
            let shown = lock(&self.shown);
            report.err = shown.status.as_ref().and_then(|status| status.trouble.clone());
        }
        if self.reported.as_ref() == Some(&report) {
            return;
        }
        let container = lock(&self.shown).container_id().map(|id| ContainerStatus {
            id: id.to_owned(),
            pid: report.pid,
            exit_code: report.exit_code,
        });
        let status = TaskStatus {
            at: crate::clock::now(),
            state: report.state,
            message: report.message.to_owned(),
            err: report.err.clone(),
            container: container.filter(|_| report.state >= TaskState::Starting),
        };
        self.send_status(status).await;
        self.reported = Some(report);
    }

    async fn send_status(&self, status: TaskStatus) {
        let report = TaskReport { id: self.id, node: self.context.node, status };
        // Without a session the next one asks again.
        let _ = self.context.session.send(FromAgent::Reports(vec![report])).await;
    }

    /// Ends the task if it has not, and removes everything it left.
    async fn destroy(mut self) {
        if matches!(self.local, Local::Running { .. } | Local::Starting) {
            let assignment = Arc::clone(&lock(&self.shown).assignment);
            self.stop(&assignment).await;
            self.drain_until_end().await;
        }
        self.abandon().await;
        let (context, id) = (Arc::clone(&self.context), self.id);
        let removed = tokio::task::spawn_blocking(move || {
            let dir = context.task_dir(&id);
            if let Err(error) = set_aside(&context.data_root, &dir, &id) {
                tracing::error!(task = %id, error = chain(&error), "a task's audit is lost");
            }
            store::remove(&dir)
        });
        let removed = removed.await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(task = %self.id, error = chain(&error), "a task's files stay");
        }
    }
}

fn libc_sigterm() -> i32 {
    Signal::TERM.as_raw()
}

/// Makes the complete plan of a task and its files, and holds its image. Blocking.
fn plan(context: &Context, assignment: &TaskAssignment) -> Result<(Launch, Record, Hold), String> {
    let dir: PathBuf = context.task_dir(&assignment.task.id);
    let name = &assignment.task.spec.container.image;
    let container = assignment.task.id.container_id();
    let (image, hold) = context.images.hold(name, &container).map_err(|e| chain(&e))?;
    let plan =
        engine::plan::plan(assignment, &image, &context.plan_context()).map_err(|e| chain(&e))?;
    engine::files::prepare(&plan).map_err(|e| chain(&e))?;
    let mut record = Record::new(assignment, crate::clock::now().0);
    record.image_id = image.id.clone();
    record.exposed = image.config.exposed_ports.clone();
    record.image_labels = image.config.labels.clone();
    record.entrypoint = plan.entrypoint;
    record.cmd = plan.cmd;
    record.stop_signal = plan.stop_signal;
    record.save(&dir).map_err(|e| chain(&e))?;
    store::save_launch(&dir, &plan.launch).map_err(|e| chain(&e))?;
    Ok((plan.launch, record, hold))
}

#[cfg(test)]
mod tests;
