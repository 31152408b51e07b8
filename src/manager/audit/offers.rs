//! What agents have sent and is not stored yet.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_core::id::NodeId;
use tokio::sync::{Notify, mpsc};

use crate::limits::{AUDIT_OFFER_BYTES, AUDIT_QUEUE, AUDIT_ROUND_BYTES};
use crate::wire::audit::Portion;
use crate::wire::session::ToAgent;

/// A batch of an agent that is to be stored.
#[derive(Debug)]
pub(in crate::manager) struct Offer {
    /// The node whose session it came through.
    pub(in crate::manager) node: NodeId,
    /// Its number at the agent.
    pub(in crate::manager) batch: u64,
    /// What is in it, of that node.
    pub(in crate::manager) portions: Vec<Portion>,
    /// Where the agent is told that it is stored.
    pub(in crate::manager) orders: mpsc::Sender<ToAgent>,
}

impl Offer {
    /// Bytes of its records, and of what frames them.
    fn bytes(&self) -> (usize, usize) {
        let portions = self.portions.iter();
        portions.fold((0, 0), |(bytes, frames), portion| {
            (bytes + portion.bytes(), frames + portion.frame_bytes())
        })
    }
}

/// Batches that wait, one of each node: an agent sends the next one when it is told that the last
/// is stored. So none can take the place of others.
#[derive(Debug, Default)]
pub(super) struct Offers {
    waiting: Mutex<VecDeque<Offer>>,
    came: Notify,
}

impl Offers {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Offer>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a batch, in the place of one of the same node that still waits.
    pub(super) fn put(&self, offer: Offer) {
        let (bytes, frames) = offer.bytes();
        if bytes > AUDIT_OFFER_BYTES || frames > AUDIT_OFFER_BYTES {
            let node = offer.node;
            tracing::warn!(%node, bytes, frames, "an agent sent too much of an audit at once");
            return;
        }
        let mut waiting = self.waiting();
        if let Some(older) = waiting.iter_mut().find(|other| other.node == offer.node) {
            // Sent again, in a new session or after a silence.
            *older = offer;
        } else if waiting.len() < AUDIT_QUEUE {
            waiting.push_back(offer);
        } else {
            tracing::debug!("no room for an audit; it is sent again");
        }
        drop(waiting);
        self.came.notify_one();
    }

    /// What is stored together next, the oldest first: at least one batch, once there is one.
    pub(super) async fn round(&self) -> Vec<Offer> {
        loop {
            let round = self.take();
            if !round.is_empty() {
                return round;
            }
            self.came.notified().await;
        }
    }

    fn take(&self) -> Vec<Offer> {
        let (mut waiting, mut total) = (self.waiting(), 0);
        let taken = std::iter::from_fn(|| {
            let next = if total < AUDIT_ROUND_BYTES { waiting.pop_front() } else { None }?;
            let (bytes, frames) = next.bytes();
            total += bytes + frames;
            Some(next)
        });
        taken.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::testing::id;
    use crate::limits::NET_MESSAGE_BYTES;
    use crate::wire::control::ControlRequest;

    /// Of one task, with records that are as long as that.
    fn offer(node: u8, batch: u64, records: &[usize]) -> Offer {
        let bodies = records.iter().map(|bytes| vec![0; *bytes].into()).collect();
        let portions = vec![Portion { node: id(node), task: id(1), bodies }];
        Offer { node: id(node), batch, portions, orders: mpsc::channel(1).0 }
    }

    fn batches(round: &[Offer]) -> Vec<(NodeId, u64)> {
        round.iter().map(|offer| (offer.node, offer.batch)).collect()
    }

    #[test]
    fn each_node_has_one_batch_waiting_the_latest() {
        let offers = Offers::default();
        for batch in 0..2 * AUDIT_QUEUE as u64 {
            offers.put(offer(1, batch, &[100]));
        }
        offers.put(offer(2, 7, &[100]));
        offers.put(offer(1, 9_999, &[100]));
        assert_eq!(batches(&offers.take()), [(id(1), 9_999), (id(2), 7)]);
        assert!(offers.take().is_empty());
    }

    #[test]
    fn what_is_too_much_is_left_out_and_every_round_fits_into_a_message() {
        let offers = Offers::default();
        offers.put(offer(1, 1, &[AUDIT_OFFER_BYTES + 1]));
        offers.put(offer(2, 1, &vec![0; AUDIT_OFFER_BYTES / 4]));
        let empty = Portion { node: id(3), task: id(1), bodies: Vec::new() };
        let portions = vec![empty; AUDIT_OFFER_BYTES / 64];
        offers.put(Offer { portions, ..offer(3, 1, &[]) });
        assert!(offers.take().is_empty());
        // As much as is taken at all: half of it short records, the rest one.
        let short = vec![1; AUDIT_OFFER_BYTES / 5 - 100];
        let long = AUDIT_OFFER_BYTES - short.len();
        let most = [short, vec![long]].concat();
        for node in 4..9 {
            offers.put(offer(node, 1, &most));
        }
        let mut stored = 0;
        while stored < 5 {
            let round = offers.take();
            assert!(!round.is_empty());
            stored += round.len();
            let portions = round.into_iter().flat_map(|offer| offer.portions).collect();
            let message = minicbor::to_vec(ControlRequest::AuditStore(portions)).unwrap();
            assert!(message.len() < NET_MESSAGE_BYTES, "{}", message.len());
        }
    }
}
