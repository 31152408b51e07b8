//! A connection's turn at the API socket: one of a bounded number, of which no process has all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedSemaphorePermit;

use crate::limits;

/// How many connections each client process has.
#[derive(Debug, Default)]
pub(super) struct Shares(Mutex<HashMap<i32, usize>>);

/// One connection of a process, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    pid: i32,
}

impl Shares {
    /// Counts one more connection of a process; none if it has its share already.
    pub(super) fn take(self: &Arc<Self>, pid: i32) -> Option<Share> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(pid).or_default();
        if *count >= limits::API_CONNECTIONS_PER_PROCESS {
            return None;
        }
        *count += 1;
        Some(Share { shares: Arc::clone(self), pid })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.pid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.pid);
            }
        }
    }
}

/// Held as long as anything serves a client.
#[derive(Debug)]
pub(super) struct Turn {
    _permit: OwnedSemaphorePermit,
    _share: Option<Share>,
}

impl Turn {
    pub(super) fn new(permit: OwnedSemaphorePermit, share: Option<Share>) -> Self {
        Self { _permit: permit, _share: share }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_process_takes_what_is_left_for_others() {
        let shares = Arc::new(Shares::default());
        let take = |pid| shares.take(pid);
        let mut held: Vec<_> = (0..limits::API_CONNECTIONS_PER_PROCESS).map(|_| take(1)).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(take(1).is_none());
        assert!(take(2).is_some());
        held.pop();
        assert!(take(1).is_some());
        drop(held);
        assert!(shares.0.lock().unwrap().is_empty());
    }
}
