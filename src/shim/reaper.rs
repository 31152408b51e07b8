//! One thread that reaps every child: the runtime's calls, the container's first process, execs
//! and what they leave behind. Nobody else in this process waits for a child.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::events::{Child, Event, Events};

/// Ends kept of children that nobody has asked for yet.
const UNCLAIMED: usize = 512;
/// How long: longer than any start takes, and too short for its number to be given again.
const UNCLAIMED_FOR: Duration = Duration::from_secs(180);
/// Stack of the reaper's thread.
const STACK_BYTES: usize = 64 << 10;
/// Pause while there is no child at all: only once the sentinel is gone.
const NO_CHILD: Duration = Duration::from_millis(100);
/// What runc calls a first process until that becomes the container's own program.
const RUNC_INIT: &str = "runc:[2:INIT]";

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// Exit code, 128 + signal when killed.
    pub(super) code: i32,
    /// When, in nanoseconds since the epoch.
    pub(super) at_ns: u64,
    /// Whether it ended as the runtime's, before it became the program it was to be.
    pub(super) never_ran: bool,
}

/// A call of the runtime that did not end well.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("cannot run {program:?}: install it, or name another runtime with --runtime")]
    Spawn { program: String, source: io::Error },
    #[error("{program:?} did not end within {} s", .after.as_secs())]
    Timeout { program: String, after: Duration },
    #[error("{program:?} ended with code {code}")]
    Code { program: String, code: i32 },
}

#[derive(Debug, Default)]
struct Table {
    ended: BTreeMap<i32, (End, Instant)>,
    order: VecDeque<i32>,
    watched: BTreeMap<i32, Child>,
}

/// The children of this process.
#[derive(Debug)]
pub(super) struct Reaper {
    table: Mutex<Table>,
    changed: Condvar,
    events: Events,
}

impl Reaper {
    /// Starts to reap.
    pub(super) fn start(events: Events) -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self { table: Mutex::default(), changed: Condvar::new(), events });
        let own = Arc::clone(&reaper);
        thread::Builder::new()
            .name("reaper".into())
            .stack_size(STACK_BYTES)
            .spawn(move || own.reap())?;
        Ok(reaper)
    }

    fn reap(&self) {
        loop {
            // Looked at before it is reaped: then nothing is left to look at.
            let ended = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
            let ended = ended.ok().and_then(|status| status.pid());
            let never_ran = ended.is_some_and(|pid| {
                let name = fs::read_to_string(format!("/proc/{pid}/comm"));
                name.is_ok_and(|name| name.trim_end() == RUNC_INIT)
            });
            let (pid, code) = match waitpid(ended, None) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Err(Errno::ECHILD) => {
                    thread::sleep(NO_CHILD);
                    continue;
                }
                Ok(_) | Err(_) => continue,
            };
            self.ended(pid.as_raw(), End { code, at_ns: super::now_ns(), never_ran });
        }
    }

    fn ended(&self, pid: i32, end: End) {
        let mut table = self.table();
        if let Some(child) = table.watched.remove(&pid) {
            self.events.send(Event::Ended { child, end });
            return;
        }
        if table.ended.insert(pid, (end, Instant::now())).is_none() {
            table.order.push_back(pid);
        }
        if table.order.len() > UNCLAIMED
            && let Some(oldest) = table.order.pop_front()
        {
            table.ended.remove(&oldest);
        }
        drop(table);
        self.changed.notify_all();
    }

    /// Sends an event once this child has ended, at once if it has.
    pub(super) fn watch(&self, pid: i32, child: Child) {
        let mut table = self.table();
        match table.claim(pid) {
            Some(end) => self.events.send(Event::Ended { child, end }),
            None => {
                table.watched.insert(pid, child);
            }
        }
    }

    /// No event for this child any more: somebody will wait for it.
    pub(super) fn unwatch(&self, pid: i32) {
        self.table().watched.remove(&pid);
    }

    /// Waits for this child.
    pub(super) fn wait(&self, pid: i32, at_most: Duration) -> Option<End> {
        let since = Instant::now();
        let mut table = self.table();
        loop {
            if let Some(end) = table.claim(pid) {
                return Some(end);
            }
            let left = at_most.checked_sub(since.elapsed())?;
            table =
                self.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Runs a command to its end; kills it if that takes too long.
    pub(super) fn call(&self, command: &mut Command, at_most: Duration) -> Result<(), CallError> {
        let program = command.get_program().to_string_lossy().into_owned();
        // A group of its own: what it has started in turn is killed with it.
        let child = match command.process_group(0).spawn() {
            Ok(child) => child,
            Err(source) => return Err(CallError::Spawn { program, source }),
        };
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        match self.wait(pid, at_most) {
            Some(End { code: 0, .. }) => Ok(()),
            Some(End { code, .. }) => Err(CallError::Code { program, code }),
            None => {
                let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
                Err(CallError::Timeout { program, after: at_most })
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn claim(&mut self, pid: i32) -> Option<End> {
        let (end, at) = self.ended.remove(&pid)?;
        self.order.retain(|p| *p != pid);
        // An older one is of another process that had the number before.
        (at.elapsed() < UNCLAIMED_FOR).then_some(end)
    }
}
