//! The shim's main thread: its state, the daemon's requests, and the order of the end.

mod end;
mod orders;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use skep_core::id::MaterialId;
use skep_core::limits::STOP_GRACE;
use skep_core::time::Stamp;

use super::events::{Child, Event, Events, ExecFailed, ExecRuns, Queue};
use super::link::{self, Inbox, LinkError, Outbox};
use super::materials::Materials;
use super::reaper::{End, Reaper};
use super::record::{ExitRecord, bounded};
use super::sentinel::Sentinel;
use super::start::{StartError, Started};
use super::{Plan, mounts, now_ns};
use crate::chain::chain;
use crate::engine::cgroup::CgroupError;
use crate::seal::SealKeyPair;
use crate::wire::shim::{Exit, FromShim, Hello, PROTOCOL, ShimState, ShimStatus};

/// Time between SIGTERM, when the shim itself is told to end, and SIGKILL.
const TERMINATION_GRACE_MS: u64 = STOP_GRACE.as_millis();
/// How long the daemon that made a broken shim is waited for.
const AWAIT_DAEMON: Duration = Duration::from_secs(2);
/// Exit code of a task that was stopped before it ran.
const STOPPED_CODE: i32 = 128 + libc::SIGKILL;
/// Exit code of a task whose shim could not make it ready.
const BROKEN_CODE: i32 = 128;

/// The thread that moves the shim to its group.
pub(super) type Adoption = JoinHandle<Result<(), CgroupError>>;

/// What the boot made.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) plan: Arc<Plan>,
    pub(super) sentinel: Sentinel,
    pub(super) events: Events,
    pub(super) queue: Queue,
    pub(super) terminations: SignalFd,
    pub(super) record: ExitRecord,
    pub(super) listener: UnixListener,
    pub(super) reaper: Arc<Reaper>,
    pub(super) adoption: Adoption,
}

/// The task as its shim sees it.
#[derive(Debug)]
pub(super) struct Task {
    plan: Arc<Plan>,
    sentinel: Arc<Sentinel>,
    events: Events,
    queue: Queue,
    terminations: SignalFd,
    record: ExitRecord,
    listener: UnixListener,
    reaper: Arc<Reaper>,
    adoption: Option<Adoption>,
    pair: Option<SealKeyPair>,
    outbox: Outbox,
    inbox: Option<Inbox>,
    state: ShimState,
    running: Option<Started>,
    /// The stop asked for while the start was under way.
    stop: Option<(i32, u64)>,
    /// Whether the container's first process ended before it ran its program, unasked.
    never_ran: bool,
    /// What keeps its log from being written.
    trouble: Option<String>,
    grace: Option<TimerFd>,
    /// Signals that the container's first process is to get once it runs, each with the secrets and
    /// configs that changed and the sequence of the last delivery of these.
    owed: BTreeMap<i32, (BTreeSet<MaterialId>, u64)>,
    /// Execs under way, with the console of those that have one.
    execs: BTreeMap<String, Option<OwnedFd>>,
}

impl Task {
    pub(super) fn new(parts: Parts, pair: SealKeyPair) -> Self {
        Self {
            plan: parts.plan,
            sentinel: Arc::new(parts.sentinel),
            events: parts.events,
            queue: parts.queue,
            terminations: parts.terminations,
            record: parts.record,
            listener: parts.listener,
            reaper: parts.reaper,
            adoption: Some(parts.adoption),
            pair: Some(pair),
            outbox: Outbox::default(),
            inbox: None,
            state: ShimState::Waiting,
            running: None,
            stop: None,
            never_ran: false,
            trouble: None,
            grace: None,
            owed: BTreeMap::new(),
            execs: BTreeMap::new(),
        }
    }

    /// Lives until the container has ended.
    pub(super) fn run(mut self) -> ! {
        let mut materials = match self.prepare() {
            Ok(materials) => materials,
            Err(reason) => {
                self.await_daemon();
                let exit = self.exit(BROKEN_CODE, now_ns(), Some(reason));
                self.finish(ShimState::Failed, exit, None)
            }
        };
        self.reaper.watch(self.sentinel.pid(), Child::Sentinel);
        loop {
            let ready = self.wait();
            if ready.events {
                for event in self.queue.drain() {
                    self.on_event(event, &mut materials);
                }
            }
            if ready.terminate && matches!(self.terminations.read_signal(), Ok(Some(_))) {
                self.stop(libc::SIGTERM, TERMINATION_GRACE_MS, &mut materials);
            }
            if ready.grace {
                self.grace = None;
                self.kill();
            }
            if ready.message {
                self.receive(&mut materials);
            }
            if ready.daemon {
                self.accept(Some(&materials));
            }
        }
    }

    /// Mounts the container's root and the secrets' filesystem.
    fn prepare(&mut self) -> Result<Materials, String> {
        let plan = &self.plan;
        let overlay = mounts::Overlay {
            layers: &plan.launch.layers,
            upper: &plan.task_dir().join("upper"),
            work: &plan.task_dir().join("work"),
            at: &plan.rootfs,
            empty: &plan.run_dir().join("empty"),
        };
        overlay.mount().map_err(|e| chain(&e))?;
        let pair = self.pair.take().ok_or("the key is gone")?;
        Materials::mount(pair, &plan.launch, &plan.secrets).map_err(|e| chain(&e))
    }

    fn wait(&self) -> Ready {
        let mut fds = vec![
            PollFd::new(self.queue.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.terminations.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.grace.iter().map(|timer| PollFd::new(timer.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.inbox.iter().map(|inbox| PollFd::new(inbox.as_fd(), PollFlags::POLLIN)));
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            return Ready::default();
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        let mut next = |there| there && ready.next().unwrap_or(false);
        Ready {
            events: next(true),
            daemon: next(true),
            terminate: next(true),
            grace: next(self.grace.is_some()),
            message: next(self.inbox.is_some()),
        }
    }

    /// The daemon that made the shim is about to connect: it shall hear why nothing comes of it.
    fn await_daemon(&mut self) {
        let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(AWAIT_DAEMON).unwrap_or(PollTimeout::MAX);
        if matches!(poll(&mut fds, timeout), Ok(1..)) {
            self.accept(None);
        }
    }

    /// Takes a daemon on, in the place of the one before.
    fn accept(&mut self, materials: Option<&Materials>) {
        // Who may not connect, or is gone again, changes nothing.
        let Ok(stream) = link::accept(&self.listener) else { return };
        let Ok(reading) = stream.try_clone() else { return };
        self.outbox.connect(Some(stream));
        self.inbox = Some(Inbox::new(reading));
        let hello = Hello {
            protocol: PROTOCOL,
            task: self.plan.launch.task,
            key: materials.map(Materials::key).unwrap_or_default(),
            pid: std::process::id(),
            held: materials.map(Materials::held).unwrap_or_default(),
            sequence: materials.map(Materials::sequence).unwrap_or_default(),
            status: self.status(None),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        self.outbox.send(&FromShim::Hello(hello), None);
    }

    fn receive(&mut self, materials: &mut Materials) {
        let Some(inbox) = &mut self.inbox else { return };
        match inbox.receive() {
            Ok(messages) => {
                for (message, fds) in messages {
                    self.on_message(message, fds, materials);
                }
            }
            Err(error) => {
                if !matches!(error, LinkError::Closed) {
                    self.refuse("connection", chain(&error));
                }
                self.inbox = None;
                self.outbox.connect(None);
            }
        }
    }

    fn on_event(&mut self, event: Event, materials: &mut Materials) {
        match event {
            Event::Started(Ok(started)) => {
                self.on_started(started);
                self.pay(materials);
            }
            Event::Started(Err(StartError { code, mut reason })) => {
                if self.stop.is_some() {
                    reason.insert_str(0, "stopped while it was started: ");
                }
                let exit = self.exit(code, now_ns(), Some(reason));
                self.finish(ShimState::Failed, exit, Some(materials))
            }
            Event::Ended { child: Child::Init, end } => {
                self.never_ran = end.never_ran && self.grace.is_none();
                let exit = self.exit(end.code, end.at_ns, None);
                self.finish(ShimState::Exited, exit, Some(materials))
            }
            Event::Ended { child: Child::Exec(id), end: End { code, .. } } => {
                self.execs.remove(&id);
                self.say(&FromShim::ExecExited { id, code, error: None });
            }
            Event::Log(trouble) => {
                self.trouble = trouble;
                self.say(&FromShim::Status(self.status(None)));
            }
            Event::Ended { child: Child::Sentinel, .. } => {
                // Without one the task goes on: it is no worse off until its shim dies too.
                if let Ok(pid) = self.sentinel.replace(&self.plan) {
                    self.reaper.watch(pid, Child::Sentinel);
                }
            }
            Event::ExecStarted { id, outcome: Ok(ExecRuns { pid, console }) } => {
                let message = FromShim::ExecStarted { id: id.clone(), pid };
                self.outbox.send(&message, console.as_ref().map(AsFd::as_fd));
                self.execs.insert(id.clone(), console);
                self.reaper.watch(pid.cast_signed(), Child::Exec(id));
            }
            Event::ExecStarted { id, outcome: Err(ExecFailed { code, reason }) } => {
                self.execs.remove(&id);
                self.say(&FromShim::ExecExited { id, code, error: Some(reason) });
            }
        }
    }

    fn on_started(&mut self, started: Started) {
        super::trim_heap();
        self.state = ShimState::Running;
        self.reaper.watch(started.pid, Child::Init);
        self.running = Some(started);
        self.say(&FromShim::Status(self.status(None)));
        if let Some((signal, grace_ms)) = self.stop.take() {
            let _ = self.signal(signal);
            match timer(grace_ms) {
                Some(timer) => self.grace = Some(timer),
                None => self.kill(),
            }
        }
    }

    fn exit(&self, code: i32, at_ns: u64, error: Option<String>) -> Exit {
        let started_ns = self.running.as_ref().map_or(0, |running| running.at_ns);
        Exit { code, oom: false, at_ns, error: error.map(bounded), started_ns }
    }

    fn status(&self, exit: Option<Exit>) -> ShimStatus {
        let running = self.running.as_ref();
        let alive = running.filter(|_| self.state == ShimState::Running);
        ShimStatus {
            state: self.state,
            pid: alive.map_or(0, |running| running.pid.unsigned_abs()),
            started: Stamp(running.map_or(0, |running| running.at_ns)),
            exit,
            trouble: self.trouble.clone(),
            oom: alive.is_some() && self.plan.cgroups.oom_kills(&self.plan.launch.cgroup) > 0,
        }
    }

    fn say(&self, message: &FromShim) {
        self.outbox.send(message, None);
    }

    fn refuse(&self, request: &str, reason: String) {
        let request = request.to_owned();
        self.say(&FromShim::Refused { request, reason, is_outdated: false });
    }
}

/// What the main thread woke up for.
#[derive(Debug, Default)]
struct Ready {
    events: bool,
    daemon: bool,
    terminate: bool,
    grace: bool,
    message: bool,
}

/// A timer that goes on while the machine sleeps; none for no time at all.
fn timer(ms: u64) -> Option<TimerFd> {
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags).ok()?;
    let at = Expiration::OneShot(TimeSpec::from(Duration::from_millis(ms)));
    timer.set(at, TimerSetTimeFlags::empty()).ok()?;
    (ms > 0).then_some(timer)
}
