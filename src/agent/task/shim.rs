//! The task's supervisor as its actor sees it: the connection, what it says, and its end.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use skep_core::task_machine::{End, Local};
use skep_core::time::Stamp;
use tokio::time::timeout;

use super::{Actor, PROBE, lock, store};
use crate::agent::link::{Incoming, LinkError, ShimLink};
use crate::chain::chain;
use crate::limits::SHIM_SILENCE;
use crate::wire::session::FromAgent;
use crate::wire::shim::{Exit, FromShim, Hello, ShimState, ShimStatus, ToShim};

/// One connection to the shim.
#[derive(Debug)]
pub(super) struct Shim {
    pub(super) link: ShimLink,
    pub(super) incoming: Incoming,
    pub(super) hello: Hello,
    /// The process itself, whoever has its number later; none if it is gone already.
    pub(super) process: Option<OwnedFd>,
}

impl Shim {
    pub(super) fn kill(&self) {
        if let Some(process) = &self.process {
            // It may have ended by itself meanwhile.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

impl Actor {
    pub(super) async fn connect(&mut self) -> Result<ShimStatus, LinkError> {
        // Where the plan says: this daemon may have been started with another run root.
        let run_dir = self.traces.as_ref().map(|traces| traces.run_dir.clone());
        let run_dir = run_dir.unwrap_or_else(|| self.context.run_dir(&self.id));
        let (link, hello, incoming) = ShimLink::connect(&run_dir).await?;
        let status = hello.status.clone();
        lock(&self.shown).status = Some(status.clone());
        let process = open_process(hello.pid);
        self.shim = Some(Shim { link, incoming, hello, process });
        self.heard = Instant::now();
        Ok(status)
    }

    pub(super) async fn announce(&self) {
        let Some(shim) = &self.shim else { return };
        let hello = &shim.hello;
        // One that could not make itself ready has none: its end is on the way.
        if hello.key == [0; 32] {
            return;
        }
        let message = FromAgent::Shim {
            task: self.id,
            key: hello.key,
            held: hello.held.clone(),
            sequence: hello.sequence,
        };
        // Without a session the next one asks again.
        let _ = self.context.session.send(message).await;
    }

    /// Tells the manager what the shim has answered to an order.
    async fn tell_held(&self, refused: Option<String>) {
        let Some(shim) = &self.shim else { return };
        let (held, sequence) = (shim.hello.held.clone(), shim.hello.sequence);
        let message = FromAgent::Held { task: self.id, held, sequence, refused };
        // Without a session the next one hears it from what is announced then.
        let _ = self.context.session.send(message).await;
    }

    /// Tells the manager that the shim takes nothing any more, and shows nothing.
    pub(super) async fn tell_gone(&self) {
        let _ = self.context.session.send(FromAgent::ShimGone { task: self.id }).await;
    }

    pub(super) async fn tell(&self, message: ToShim) {
        if let Some(shim) = &self.shim {
            shim.link.send(message).await;
        }
    }

    /// Asks a shim that said nothing for a while, and kills one that says nothing at all: its
    /// sentinel then ends the container.
    pub(super) async fn probe(&mut self) {
        let Some(shim) = &self.shim else { return };
        if self.heard.elapsed() < SHIM_SILENCE {
            return self.tell(ToShim::Probe).await;
        }
        tracing::warn!(task = %self.id, "a supervisor is silent and is killed");
        shim.kill();
        self.heard = Instant::now();
    }

    pub(super) async fn hear(&mut self, message: FromShim, fds: Vec<OwnedFd>) {
        self.heard = Instant::now();
        let execs = &self.context.execs;
        match message {
            FromShim::Delivered { held, last, .. } => {
                if let Some(shim) = &mut self.shim {
                    (shim.hello.held, shim.hello.sequence) = (held, last);
                }
                self.tell_held(None).await;
            }
            FromShim::Refused { request, reason, is_outdated } => {
                tracing::warn!(task = %self.id, request, reason, "a supervisor refused a request");
                let fails = match request.as_str() {
                    // One that waits for its first payloads cannot start without. Another goes on
                    // with those it has.
                    "deliver" => self.local == Local::Launched && !is_outdated,
                    "revoke" => false,
                    _ => matches!(self.local, Local::Launched | Local::Loaded | Local::Starting),
                };
                if fails {
                    self.local = Local::Rejected(format!("{request} refused: {reason}"));
                }
                if matches!(request.as_str(), "deliver" | "revoke") {
                    self.tell_held(Some(reason)).await;
                }
            }
            FromShim::Status(status) => self.observe(status),
            FromShim::ExecStarted { id, pid } => {
                execs.running(&id, pid, fds.into_iter().next());
            }
            FromShim::ExecExited { id, code, error } => execs.ended(&id, code, error.as_deref()),
            FromShim::Hello(_) | FromShim::Audit(_) => {}
        }
    }

    /// Takes over what the shim says of its container.
    pub(super) fn observe(&mut self, status: ShimStatus) {
        let mut shown = lock(&self.shown);
        let old = shown.status.as_ref().and_then(|old| old.trouble.as_ref());
        if let Some(trouble) = status.trouble.as_ref().filter(|new| Some(*new) != old) {
            tracing::warn!(task = %self.id, trouble, "a task runs with trouble");
        }
        match status.state {
            ShimState::Waiting => {}
            ShimState::Starting => self.local = Local::Starting,
            ShimState::Running => {
                self.local = Local::Running { pid: status.pid };
                shown.link = self.shim.as_ref().map(|shim| shim.link.clone());
            }
            ShimState::Exited | ShimState::Failed => {
                let exit = status.exit.clone().unwrap_or_else(lost);
                drop(shown);
                self.local = self.end(exit);
                shown = lock(&self.shown);
            }
        }
        shown.status = Some(status);
    }

    /// Records the end of the process.
    pub(super) fn end(&self, exit: Exit) -> Local {
        let end = End {
            code: exit.code,
            oom: exit.oom,
            error: exit.error.clone(),
            ran: exit.started_ns > 0,
        };
        let mut shown = lock(&self.shown);
        shown.link = None;
        shown.exit = Some(exit);
        shown.ended.send_replace(true);
        if let Some(container) = shown.container_id() {
            self.context.execs.container_ended(container);
        }
        Local::Ended(end)
    }

    /// The connection ended: the shim left after its exit record, or was killed.
    pub(super) async fn shim_gone(&mut self) {
        self.shim = None;
        lock(&self.shown).link = None;
        self.tell_gone().await;
        if matches!(self.local, Local::Ended(_) | Local::Rejected(_)) {
            return;
        }
        // A daemon that was replaced on the socket by nobody: the shim may still be there.
        match self.connect().await {
            Ok(status) => self.take_up(status).await,
            Err(_) => self.bury().await,
        }
    }

    /// Goes on with a shim that was there before this connection: what was said on an earlier
    /// one may not have reached it, nor its manager.
    pub(super) async fn take_up(&mut self, status: ShimStatus) {
        (self.asked, self.stopping) = (true, false);
        self.local = Local::Launched;
        self.observe(status);
        if !matches!(self.local, Local::Ended(_)) {
            self.announce().await;
        }
    }

    /// The shim is gone for good: its exit record says how, or there is none.
    pub(super) async fn bury(&mut self) {
        let dir = self.context.task_dir(&self.id);
        self.clear_run_state().await;
        let exit = store::load_exit(&dir).unwrap_or_else(|| {
            let mut shown = lock(&self.shown);
            let started = shown.status.as_ref().map_or(Stamp(0), |status| status.started);
            let exit = Exit { started_ns: started.0, ..lost() };
            if let Some(record) = &mut shown.record {
                record.lost = Some(exit.clone());
                if let Err(error) = record.save(&dir) {
                    tracing::warn!(task = %self.id, error = chain(&error), "cannot keep a record");
                }
            }
            exit
        });
        self.local = self.end(exit);
    }

    /// Hears the shim out. It kills after the grace by itself, and one that is silent is killed:
    /// so this ends.
    pub(super) async fn drain_until_end(&mut self) {
        while matches!(self.local, Local::Running { .. } | Local::Starting) {
            let Some(shim) = &mut self.shim else { return };
            match timeout(PROBE, shim.incoming.recv()).await {
                Ok(Some((message, fds))) => self.hear(message, fds).await,
                Ok(None) => return,
                Err(_) => self.probe().await,
            }
        }
    }
}

/// A hold on the process that has this number now.
fn open_process(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// The exit of a task whose supervisor left no record.
fn lost() -> Exit {
    Exit {
        code: 137,
        oom: false,
        at_ns: crate::clock::now().0,
        error: Some("the task's supervisor was killed; the container was stopped with it".into()),
        started_ns: 0,
    }
}
