//! What reaches the shim's main thread from the others.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::reaper::End;
use super::start::{StartError, Started};

/// A child that the main thread wants to hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Child {
    /// The container's first process.
    Init,
    /// An exec's process.
    Exec(String),
    /// The sentinel.
    Sentinel,
}

/// Something happened.
#[derive(Debug)]
pub(super) enum Event {
    /// A watched child ended.
    Ended { child: Child, end: End },
    /// The start came to its end, one way or the other.
    Started(Result<Started, StartError>),
    /// The log cannot be written, for this reason; or it can again.
    Log(Option<String>),
    /// An exec came to run, with the console's other end if it has one; or it did not.
    ExecStarted { id: String, outcome: Result<ExecRuns, ExecFailed> },
}

/// An exec that runs.
#[derive(Debug)]
pub(super) struct ExecRuns {
    pub(super) pid: u32,
    pub(super) console: Option<std::os::fd::OwnedFd>,
}

/// An exec that does not.
#[derive(Debug)]
pub(super) struct ExecFailed {
    pub(super) code: i32,
    pub(super) reason: String,
}

/// Events on their way. Their number is bounded by that of the execs under way: each has at
/// most one here, and the log speaks once a second at most.
type Waiting = Arc<Mutex<VecDeque<Event>>>;

/// Where events go.
#[derive(Debug, Clone)]
pub(super) struct Events {
    waiting: Waiting,
    wake: Arc<EventFd>,
}

impl Events {
    /// A queue whose descriptor is readable while it holds something.
    pub(super) fn new() -> nix::Result<(Self, Queue)> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let waiting = Waiting::default();
        let queue = Queue { waiting: Arc::clone(&waiting), wake: Arc::clone(&wake) };
        Ok((Self { waiting, wake }, queue))
    }

    pub(super) fn send(&self, event: Event) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
        // It fails only when the counter is full, and then the reader is awake.
        let _ = self.wake.write(1);
    }
}

/// Where events come from.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Waiting,
    pub(super) wake: Arc<EventFd>,
}

impl Queue {
    /// Everything that has happened since the last call.
    pub(super) fn drain(&self) -> VecDeque<Event> {
        // Before the events: one that comes in between wakes the reader once more.
        let _ = self.wake.read();
        std::mem::take(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
