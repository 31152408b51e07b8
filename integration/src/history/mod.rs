//! What clients saw of named objects, operation by operation, and whether one object that is
//! changed in one place could have looked like that: linearizability.

mod check;
mod load;

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use check::{Fault, check};
pub use load::{Load, LoadOptions};

/// What a client asked of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Make it, with this value; it must not be there.
    Create(u64),
    /// Give it another value; it must have the first.
    Swap {
        /// What it must be.
        from: u64,
        /// What it shall be.
        to: u64,
    },
    /// Take it away; it must be there.
    Remove,
    /// See it. A list is one of these for each of its names.
    Read,
}

/// What the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// What is there: its value, or that it is not.
    Found(Option<u64>),
    /// It is not as the action needs it.
    Refused,
    /// Nothing was done, and nothing will be.
    Failed,
    /// Nobody knows: done, to be done, or never.
    Unknown,
}

/// One operation on one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Who asked.
    pub client: usize,
    /// Name of the object.
    pub key: String,
    /// What was asked.
    pub action: Action,
    /// What came of it.
    pub outcome: Outcome,
    /// When it was asked, from the start of the history.
    pub invoked: Duration,
    /// When the answer came, or the client gave up.
    pub returned: Duration,
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.invoked.as_secs_f64(), self.returned.as_secs_f64());
        let Self { client, key, action, outcome, .. } = self;
        write!(out, "{from:.6}..{to:.6} s, client {client}: {key} {action:?} → {outcome:?}")
    }
}

/// The operations of all clients.
#[derive(Debug)]
pub struct History {
    start: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Default for History {
    fn default() -> Self {
        Self { start: Instant::now(), operations: Mutex::default() }
    }
}

impl History {
    /// The time since its start.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Notes an operation that was asked at `invoked` and has just come back.
    pub fn record(
        &self,
        client: usize,
        key: &str,
        action: Action,
        outcome: Outcome,
        invoked: Duration,
    ) {
        let (key, returned) = (key.to_owned(), self.now());
        let operation = Operation { client, key, action, outcome, invoked, returned };
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }

    /// All so far, in the order in which they came back.
    pub fn operations(&self) -> Vec<Operation> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The longest time from `since` on, up to `until`, in which no write was acknowledged.
    pub fn longest_pause(&self, since: Duration, until: Duration) -> Duration {
        let mut last = since;
        let mut longest = Duration::ZERO;
        let all = self.operations();
        let done = all.iter().filter(|one| one.outcome == Outcome::Done).map(|one| one.returned);
        let within = done.filter(|at| *at > since && *at < until);
        for at in within.chain([until]) {
            longest = longest.max(at.saturating_sub(last));
            last = last.max(at);
        }
        longest
    }
}
