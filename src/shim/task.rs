//! The shim's main thread: its state, the daemon's requests, and the order of the end.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use skep_core::limits::STOP_GRACE;
use skep_core::time::Stamp;

use super::events::{Child, Event, Events, ExecFailed, ExecRuns, Queue};
use super::link::{self, Inbox, LinkError, Outbox};
use super::materials::Materials;
use super::reaper::{End, Reaper};
use super::record::{ExitRecord, bounded};
use super::sentinel::Sentinel;
use super::start::{Start, StartError, Started, start};
use super::{Plan, WORKER_STACK_BYTES, console, exec, leave, log, mounts, now_ns};
use crate::chain::chain;
use crate::engine::cgroup::CgroupError;
use crate::limits::EXECS;
use crate::seal::SealKeyPair;
use crate::wire::launch::LOG_FILE;
use crate::wire::shim::{
    ExecStart, Exit, FromShim, Hello, PROTOCOL, ShimState, ShimStatus, ToShim,
};

/// How long the container's other processes may take to die after its first one.
const KILL_REST: Duration = Duration::from_secs(2);
/// How long the end of the container's output is waited for.
const DRAIN_LOG: Duration = Duration::from_secs(2);
/// How long the runtime may take to forget the container.
const DELETE: Duration = Duration::from_secs(10);
/// How long the sentinel may take to leave.
const DISMISS: Duration = Duration::from_secs(1);
/// Time between SIGTERM, when the shim itself is told to end, and SIGKILL.
const TERMINATION_GRACE_MS: u64 = STOP_GRACE.as_millis();
/// How long the daemon that made a broken shim is waited for.
const AWAIT_DAEMON: Duration = Duration::from_secs(2);
/// Least time that a start under way is left when it is no longer wanted, and between two
/// attempts to end it.
const STARTING_GRACE_MS: u64 = 1_000;
/// Exit codes from here on stand for a signal.
const KILLED_CODE: i32 = 128;
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

    fn on_message(&mut self, message: ToShim, fds: Vec<OwnedFd>, materials: &mut Materials) {
        match message {
            ToShim::Deliver(delivery) => match materials.deliver(&self.plan.launch, &delivery) {
                Ok(replaced) => {
                    self.say(&FromShim::Delivered { sequence: delivery.sequence });
                    replaced.iter().for_each(|path| self.sentinel.touch(path));
                    drop(delivery);
                    super::trim_heap();
                }
                Err(error) => self.refuse("deliver", chain(&error)),
            },
            ToShim::Revoke { sequence, materials: gone } => {
                materials.revoke(&self.plan.launch, sequence, &gone);
                self.say(&FromShim::Delivered { sequence });
            }
            ToShim::Start => self.start(materials),
            ToShim::Stop { signal, grace_ms } => self.stop(signal, grace_ms, materials),
            ToShim::Signal { signal } => {
                if let Err(reason) = self.signal(signal) {
                    self.refuse("signal", reason);
                }
            }
            ToShim::Exec(exec) => self.exec(exec, fds),
            ToShim::ExecResize { id, rows, cols } => {
                if let Some(Some(console)) = self.execs.get(&id) {
                    // A size that does not fit leaves the old one.
                    let _ = console::resize(console, rows, cols);
                }
            }
            ToShim::Probe => self.say(&FromShim::Status(self.status(None))),
            ToShim::Audit => {
                self.say(&FromShim::Audit(materials.audit(&self.plan.launch)));
            }
        }
    }

    fn start(&mut self, materials: &Materials) {
        if self.state != ShimState::Waiting {
            return self.refuse("start", "the container was started before".to_owned());
        }
        if let Some(file) = materials.missing(&self.plan.launch) {
            return self.refuse("start", format!("no payload for {:?} yet", file.name));
        }
        let (plan, reaper, sentinel, events) = (
            Arc::clone(&self.plan),
            Arc::clone(&self.reaper),
            Arc::clone(&self.sentinel),
            self.events.clone(),
        );
        let binds = materials.binds(&self.plan.secrets);
        let beside = Start { binds, adoption: self.adoption.take(), events: self.events.clone() };
        let spawned = worker("start", move || {
            events.send(Event::Started(start(&plan, &reaper, &sentinel, beside)));
        });
        match spawned {
            Ok(()) => {
                self.state = ShimState::Starting;
                self.say(&FromShim::Status(self.status(None)));
            }
            Err(reason) => self.refuse("start", reason),
        }
    }

    fn stop(&mut self, signal: i32, grace_ms: u64, materials: &mut Materials) {
        match self.state {
            ShimState::Waiting => {
                let reason = "stopped before it was started".to_owned();
                let exit = self.exit(STOPPED_CODE, now_ns(), Some(reason));
                self.finish(ShimState::Exited, exit, Some(materials))
            }
            ShimState::Starting => {
                self.stop = Some((signal, grace_ms));
                // A runtime that works gets to its end in less.
                self.grace = timer(grace_ms.max(STARTING_GRACE_MS));
            }
            ShimState::Running => {
                // Where the signal cannot be sent, the container is about to be reaped.
                let _ = self.signal(signal);
                match timer(grace_ms) {
                    Some(timer) => self.grace = Some(timer),
                    None => self.kill(),
                }
            }
            ShimState::Exited | ShimState::Failed => {}
        }
    }

    fn signal(&self, signal: i32) -> Result<(), String> {
        let running = self.running.as_ref().ok_or("the container is not running")?;
        let nothing = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a descriptor that is open, a number, no further information.
        let sent = unsafe {
            let fd = running.pidfd.as_raw_fd();
            libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, nothing, 0)
        };
        if sent == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().to_string()) }
    }

    fn kill(&mut self) {
        let _ = self.signal(libc::SIGKILL);
        if self.state == ShimState::Starting {
            // The start fails of that, unless it was between two calls.
            self.plan.cgroups.kill_once(&self.plan.launch.shim_cgroup, &self.own());
            self.grace = timer(STARTING_GRACE_MS);
        }
        self.plan.cgroups.kill_once(&self.plan.launch.cgroup, &[]);
    }

    /// The processes in the shim's group that are no calls of the runtime.
    fn own(&self) -> [u32; 2] {
        [std::process::id(), self.sentinel.pid().unsigned_abs()]
    }

    fn exec(&mut self, exec: ExecStart, fds: Vec<OwnedFd>) {
        let id = exec.id.clone();
        let refused = if self.state != ShimState::Running {
            Some(format!("container {} is not running", self.plan.launch.container_id))
        } else if self.execs.len() >= EXECS {
            Some(format!("more than {EXECS} execs in one container"))
        } else if self.execs.contains_key(&id) {
            Some("this exec was started before".to_owned())
        } else {
            let (plan, reaper, events) =
                (Arc::clone(&self.plan), Arc::clone(&self.reaper), self.events.clone());
            worker("exec", move || {
                let outcome = exec::run(&plan, &reaper, &exec, fds);
                events.send(Event::ExecStarted { id: exec.id, outcome });
            })
            .err()
        };
        match refused {
            None => {
                self.execs.insert(id, None);
            }
            Some(reason) => {
                let code = exec::NOT_RUNNABLE;
                self.say(&FromShim::ExecExited { id, code, error: Some(reason) });
            }
        }
    }

    fn on_event(&mut self, event: Event, materials: &mut Materials) {
        match event {
            Event::Started(Ok(started)) => self.on_started(started),
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

    /// The order of the end: no more reads, no plaintext, nothing of the container alive, its
    /// log whole, its record on disk; then everybody may know.
    fn finish(&mut self, state: ShimState, mut exit: Exit, materials: Option<&mut Materials>) -> ! {
        let plan = Arc::clone(&self.plan);
        let materials = materials.map(|materials| {
            materials.end();
            &*materials
        });
        // Calls of the runtime first: one in the middle of its work would go on to make more
        // processes. What outlives the wait has no better judge than the daemon.
        let _ = plan.cgroups.kill_all(&plan.launch.shim_cgroup, &self.own(), KILL_REST);
        if let Err(error) = plan.cgroups.kill_all(&plan.launch.cgroup, &[], KILL_REST) {
            exit.error.get_or_insert_with(|| chain(&error));
        }
        exit.oom = plan.cgroups.oom_kills(&plan.launch.cgroup) > 0;
        if let Some(running) = &self.running {
            // Whoever else holds the pipes open is not in the container.
            let _ = running.log_ended.recv_timeout(DRAIN_LOG);
        }
        let late = self.queue.drain();
        self.explain(&mut exit, &late);
        // Whoever knows of the end may count on the audit. Losing it must not hide the end.
        if let Some(Err(error)) = materials.map(Materials::end_audit) {
            exit.error.get_or_insert_with(|| bounded(format!("its audit is not whole: {error}")));
        }
        if let Err(error) = self.record.write(&exit) {
            exit.error.get_or_insert_with(|| format!("no exit record: {error}"));
        }
        self.state = state;
        self.end_execs(late);
        self.say(&FromShim::Status(self.status(Some(exit))));
        if plan.runc.knows(&plan.launch.container_id) {
            // What a failed call leaves is removed by hand.
            let _ = self.reaper.call(&mut plan.runc.delete(&plan.launch.container_id), DELETE);
            plan.cgroups.kill_once(&plan.launch.shim_cgroup, &self.own());
            plan.forget_runtime_state();
        }
        mounts::detach(&plan.secrets);
        mounts::detach(&plan.rootfs);
        plan.clear_run_dir();
        if let Some(adoption) = self.adoption.take() {
            // Else it could come after the group's removal.
            let _ = adoption.join();
        }
        let sentinel = self.sentinel.pid();
        self.reaper.unwatch(sentinel);
        self.sentinel.dismiss();
        self.reaper.wait(sentinel, DISMISS);
        plan.cgroups.remove(&plan.launch.cgroup);
        plan.cgroups.abandon(&plan.launch.shim_cgroup, std::process::id());
        leave(0)
    }

    /// Adds what the end of the log tells of an exit.
    fn explain(&mut self, exit: &mut Exit, late: &VecDeque<Event>) {
        for event in late {
            if let Event::Log(trouble) = event {
                self.trouble.clone_from(trouble);
            }
        }
        if self.never_ran {
            let path = self.plan.task_dir().join(LOG_FILE);
            // Where it was not killed, the runtime has written there why.
            let said = log::last_error(&path).filter(|_| exit.code < KILLED_CODE);
            let said = said.unwrap_or_else(|| "it ended before it ran its program".to_owned());
            exit.error.get_or_insert(bounded(said));
        }
        if let Some(trouble) = &self.trouble {
            exit.error.get_or_insert_with(|| bounded(trouble.clone()));
        }
    }

    /// Execs die with the container; those whose end has not come in yet died of that.
    fn end_execs(&mut self, late: VecDeque<Event>) {
        for event in late.into_iter().chain(self.queue.drain()) {
            if let Event::Ended { child: Child::Exec(id), end: End { code, .. } } = event {
                self.execs.remove(&id);
                self.say(&FromShim::ExecExited { id, code, error: None });
            }
        }
        while let Some((id, _)) = self.execs.pop_first() {
            self.say(&FromShim::ExecExited { id, code: STOPPED_CODE, error: None });
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
        self.say(&FromShim::Refused { request: request.to_owned(), reason });
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

fn worker(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    thread::Builder::new()
        .name(name.into())
        .stack_size(WORKER_STACK_BYTES)
        .spawn(work)
        .map(drop)
        .map_err(|error| format!("no thread for it: {error}"))
}
