//! What the daemon asks of the shim.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use nix::libc;

use super::{STOPPED_CODE, Task, timer};
use crate::chain::chain;
use crate::limits::EXECS;
use crate::shim::events::Event;
use crate::shim::materials::{Materials, Signals, Switched};
use crate::shim::start::{Start, start};
use crate::shim::{WORKER_STACK_BYTES, console, exec, now_ns, trim_heap};
use crate::wire::shim::{Delivery, ExecStart, FromShim, ShimState, ToShim};

/// Least time that a start under way is left when it is no longer wanted, and between two
/// attempts to end it.
const STARTING_GRACE_MS: u64 = 1_000;

impl Task {
    pub(super) fn on_message(
        &mut self,
        message: ToShim,
        fds: Vec<OwnedFd>,
        materials: &mut Materials,
    ) {
        match message {
            ToShim::Deliver(delivery) => {
                self.deliver(&delivery, materials);
                drop(delivery);
                trim_heap();
            }
            ToShim::Revoke { sequence, materials: revoked } => {
                match materials.revoke(&self.plan.launch, sequence, &revoked) {
                    Ok(()) => self.answer(sequence, materials),
                    Err(error) => self.refuse("revoke", chain(&error)),
                }
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

    fn deliver(&mut self, delivery: &Delivery, materials: &mut Materials) {
        match materials.deliver(&self.plan.launch, delivery) {
            Ok(Switched { replaced, signals }) => {
                replaced.iter().for_each(|path| self.sentinel.touch(path));
                self.owe(signals, delivery.sequence);
                self.pay(materials);
                self.answer(delivery.sequence, materials);
            }
            Err(error) => self.say(&FromShim::Refused {
                request: "deliver".to_owned(),
                reason: chain(&error),
                is_outdated: error.is_outdated(),
            }),
        }
    }

    /// Answers an order with what is held now.
    fn answer(&self, sequence: u64, materials: &Materials) {
        let (held, last) = (materials.held(), materials.sequence());
        self.say(&FromShim::Delivered { sequence, held, last });
    }

    /// Keeps in mind that the container's first process is to get signals. Before the start it
    /// needs none: it will not have read what was before.
    fn owe(&mut self, signals: Signals, sequence: u64) {
        if self.state == ShimState::Waiting {
            return;
        }
        for (signal, materials) in signals {
            let owed = self.owed.entry(signal).or_default();
            owed.0.extend(materials);
            owed.1 = sequence;
        }
    }

    /// Sends the signals that are owed, each once, if the container runs.
    pub(super) fn pay(&mut self, materials: &Materials) {
        if self.state != ShimState::Running {
            return;
        }
        for (signal, (of, sequence)) in std::mem::take(&mut self.owed) {
            // Where it cannot be sent, the container is about to be reaped.
            if self.signal(signal).is_ok() {
                materials.note_signal(of.into_iter().collect(), signal, sequence);
            }
        }
    }

    pub(super) fn start(&mut self, materials: &Materials) {
        if self.state != ShimState::Waiting {
            return self.refuse("start", "the container was started before".to_owned());
        }
        if let Some(reason) = materials.missing(&self.plan.launch) {
            return self.refuse("start", reason);
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

    pub(super) fn stop(&mut self, signal: i32, grace_ms: u64, materials: &mut Materials) {
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

    pub(super) fn signal(&self, signal: i32) -> Result<(), String> {
        let running = self.running.as_ref().ok_or("the container is not running")?;
        let nothing = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a descriptor that is open, a number, no further information.
        let sent = unsafe {
            let fd = running.pidfd.as_raw_fd();
            libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, nothing, 0)
        };
        if sent == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().to_string()) }
    }

    pub(super) fn kill(&mut self) {
        let _ = self.signal(libc::SIGKILL);
        if self.state == ShimState::Starting {
            // The start fails of that, unless it was between two calls.
            self.plan.cgroups.kill_once(&self.plan.launch.shim_cgroup, &self.own());
            self.grace = timer(STARTING_GRACE_MS);
        }
        self.plan.cgroups.kill_once(&self.plan.launch.cgroup, &[]);
    }

    /// The processes in the shim's group that are no calls of the runtime.
    pub(super) fn own(&self) -> [u32; 2] {
        [std::process::id(), self.sentinel.pid().unsigned_abs()]
    }

    pub(super) fn exec(&mut self, exec: ExecStart, fds: Vec<OwnedFd>) {
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
}

fn worker(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    thread::Builder::new()
        .name(name.into())
        .stack_size(WORKER_STACK_BYTES)
        .spawn(work)
        .map(drop)
        .map_err(|error| format!("no thread for it: {error}"))
}
