//! What happens to sessions on this manager goes to the leader's control loop, here or elsewhere.
//! On the way this manager learns whether it is in touch with a leader that has a quorum.

use std::time::Duration;

use skep_core::control::SessionEvent;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{Manager, stopped};
use crate::limits::{OUT_OF_TOUCH, REPORT_BATCH};
use crate::wire::control::{ControlAnswer, ControlRequest, SessionNews};

/// News taken at once.
const NEWS: usize = 4096;
/// Time between two questions to the leader, or to the quorum, whether it is there.
const PROBE: Duration = Duration::from_millis(500);

impl From<SessionNews> for SessionEvent {
    fn from(news: SessionNews) -> Self {
        match news {
            SessionNews::Up { node, addr, description, advertise } => {
                Self::Up { node, addr, advertise, description }
            }
            SessionNews::Heard(node) => Self::Heard(node),
            SessionNews::Closed(node) => Self::Closed(node),
        }
    }
}

/// Passes news on until told to stop.
pub async fn pump(
    manager: &Manager,
    mut news: mpsc::Receiver<SessionNews>,
    leading: mpsc::Sender<SessionEvent>,
    mut stop: watch::Receiver<bool>,
) {
    let mut batch = Vec::new();
    let mut probed = Instant::now();
    let mut passed = Instant::now();
    loop {
        // The first news after a while go at once, those that follow closely together.
        let first = async {
            let is_kept = !batch.is_empty();
            let next = async { if is_kept { None } else { news.recv().await } };
            timeout_at(probed + PROBE, next).await.ok().flatten()
        };
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            first = first => batch.extend(first),
        }
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            () = sleep_until(passed + REPORT_BATCH) => passed = Instant::now(),
        }
        while batch.len() < NEWS
            && let Ok(more) = news.try_recv()
        {
            batch.push(more);
        }
        let is_due = probed.elapsed() >= PROBE;
        if batch.is_empty() && !is_due {
            continue;
        }
        if pass_on(manager, &mut batch, &leading, is_due).await {
            probed = Instant::now();
            manager.touched();
        } else {
            // Who was heard of a while ago is no news. Who came or went still is.
            batch.retain(|news| !matches!(news, SessionNews::Heard(_)));
        }
    }
}

/// Whether the leader, or as leader a quorum, answered. The batch is empty if it was taken.
async fn pass_on(
    manager: &Manager,
    batch: &mut Vec<SessionNews>,
    leading: &mpsc::Sender<SessionEvent>,
    is_due: bool,
) -> bool {
    let leader = *manager.raft.leadership().borrow();
    if leader.here {
        for news in batch.drain(..) {
            // A full queue means that the loop is busy; it hears of the node again in a second.
            let sent = leading.try_send(news.into());
            if let Err(mpsc::error::TrySendError::Closed(_)) = sent {
                return false;
            }
        }
        return !is_due || manager.raft.read_index().await.is_ok();
    }
    let ask = ControlRequest::Sessions(batch.clone());
    match timeout(OUT_OF_TOUCH, manager.ask_leader(&ask)).await {
        Ok(Ok(ControlAnswer::Done)) => {
            batch.clear();
            true
        }
        _ => false,
    }
}
