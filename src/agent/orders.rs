//! Orders for one task's shim, on their way to the task's actor: each task has a queue of its own,
//! so that one which takes none holds up nobody else's.

use std::sync::Arc;

use skep_core::id::MaterialId;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use crate::limits::TASK_ORDERS;
use crate::wire::shim::{Delivery, ToShim};

/// What a manager wants of a task's shim.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// It shall hold these.
    Deliver(Delivery),
    /// It shall let go of these, each up to the version named with it.
    Revoke { sequence: u64, materials: Vec<(MaterialId, u64)> },
}

impl From<Order> for ToShim {
    fn from(order: Order) -> Self {
        match order {
            Order::Deliver(delivery) => Self::Deliver(delivery),
            Order::Revoke { sequence, materials } => Self::Revoke { sequence, materials },
        }
    }
}

/// Where a task's orders go.
#[derive(Debug)]
pub(super) struct Orders {
    queue: mpsc::Sender<Order>,
    missed: Arc<Notify>,
}

/// Where its actor takes them from.
#[derive(Debug)]
pub(super) struct Queue {
    queue: mpsc::Receiver<Order>,
    missed: Arc<Notify>,
}

/// What comes out of a queue.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The next order.
    Order(Order),
    /// Orders were dropped, and everything before them was taken: whoever sent them must hear what
    /// the shim holds, to send again what it lacks.
    Missed,
}

/// A queue for one task.
pub(super) fn orders() -> (Orders, Queue) {
    let (sender, receiver) = mpsc::channel(TASK_ORDERS);
    let missed = Arc::new(Notify::new());
    (Orders { queue: sender, missed: Arc::clone(&missed) }, Queue { queue: receiver, missed })
}

impl Orders {
    /// Hands on an order, and never waits. False if it was dropped for want of room; the actor
    /// hears of that.
    pub(super) fn put(&self, order: Order) -> bool {
        // An actor that is gone has no shim to give it to.
        let is_full = matches!(self.queue.try_send(order), Err(TrySendError::Full(_)));
        if is_full {
            self.missed.notify_one();
        }
        !is_full
    }
}

impl Queue {
    /// Waits for what comes next, for ever once the agent is gone. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Next {
        tokio::select! {
            biased;
            Some(order) = self.queue.recv() => Next::Order(order),
            () = self.missed.notified() => Next::Missed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revoke(sequence: u64) -> Order {
        Order::Revoke { sequence, materials: Vec::new() }
    }

    #[tokio::test]
    async fn what_has_no_room_is_dropped_and_told_of_behind_the_rest() {
        let (orders, mut queue) = orders();
        let room = TASK_ORDERS as u64;
        for sequence in 1..=room {
            assert!(orders.put(revoke(sequence)));
        }
        assert!(!orders.put(revoke(room + 1)) && !orders.put(revoke(room + 2)));
        assert_eq!(queue.next().await, Next::Order(revoke(1)));
        assert!(orders.put(revoke(room + 3)));
        for sequence in (2..=room).chain([room + 3]) {
            assert_eq!(queue.next().await, Next::Order(revoke(sequence)));
        }
        assert_eq!(queue.next().await, Next::Missed);
        assert!(orders.put(revoke(room + 4)));
        assert_eq!(queue.next().await, Next::Order(revoke(room + 4)), "it is told once");
    }
}
