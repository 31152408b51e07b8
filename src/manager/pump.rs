//! What happens to sessions on this manager goes to the leader's control loop, here or elsewhere.
//! On the way this manager learns whether it is in touch with a leader that has a quorum.

use std::time::Duration;

use skep_core::control::SessionEvent;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use super::{Manager, stopped};
use crate::limits::{OUT_OF_TOUCH, REPORT_BATCH, SESSION_NEWS};
use crate::wire::control::{ControlAnswer, ControlRequest, SessionNews};

/// Time between two questions to the leader, or to the quorum, whether it is there.
const PROBE: Duration = Duration::from_millis(500);

impl From<SessionNews> for SessionEvent {
    fn from(news: SessionNews) -> Self {
        match news {
            SessionNews::Up { node, addr, description, advertise } => {
                Self::Up { node, addr, advertise, description }
            }
            SessionNews::Heard { node, by } => Self::Heard { node, by },
            SessionNews::Closed(node) => Self::Closed(node),
        }
    }
}

/// Passes news on until told to stop.
pub async fn pump(
    manager: &Manager,
    news: mpsc::Receiver<SessionNews>,
    leading: mpsc::Sender<SessionEvent>,
    mut stop: watch::Receiver<bool>,
) {
    tokio::select! {
        () = stopped(&mut stop) => {}
        () = carry(manager, news, leading) => {}
        // A quorum that takes its time must not hold up the news.
        () = probe(manager) => {}
    }
}

/// Asks the quorum, as leader, whether it is there.
async fn probe(manager: &Manager) {
    let mut tick = interval(PROBE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let leads = manager.raft.leadership().borrow().here;
        if leads && manager.raft.read_index().await.is_ok() {
            manager.touched();
        }
    }
}

async fn carry(
    manager: &Manager,
    mut news: mpsc::Receiver<SessionNews>,
    leading: mpsc::Sender<SessionEvent>,
) {
    let mut batch = Vec::new();
    let mut asked = Instant::now();
    let mut passed = Instant::now();
    loop {
        let due = if batch.is_empty() { asked + PROBE } else { passed + REPORT_BATCH };
        match timeout_at(due, news.recv()).await {
            Ok(None) => return,
            Ok(first) => {
                batch.extend(first);
                while batch.len() < SESSION_NEWS
                    && let Ok(more) = news.try_recv()
                {
                    batch.push(more);
                }
                // Who was heard of is told with others, who came or went at once.
                let is_heard = |news: &SessionNews| matches!(news, SessionNews::Heard { .. });
                if batch.iter().all(is_heard) && passed.elapsed() < REPORT_BATCH {
                    continue;
                }
            }
            Err(_) => {}
        }
        passed = Instant::now();
        if manager.raft.leadership().borrow().here {
            asked = Instant::now();
            for news in batch.drain(..) {
                // A full queue means that the loop is busy; it hears of the node again in a second.
                let sent = leading.try_send(news.into());
                if let Err(mpsc::error::TrySendError::Closed(_)) = sent {
                    return;
                }
            }
            continue;
        }
        // The leader is asked now and then even if there is nothing to tell: whether it is there.
        if batch.is_empty() && asked.elapsed() < PROBE {
            continue;
        }
        let ask = ControlRequest::Sessions(batch.clone());
        if let Ok(Ok(ControlAnswer::Done)) = timeout(OUT_OF_TOUCH, manager.ask_leader(&ask)).await {
            batch.clear();
            asked = Instant::now();
            manager.touched();
        } else {
            // Who was heard of a while ago is no news. Who came or went still is.
            batch.retain(|news| !matches!(news, SessionNews::Heard { .. }));
        }
    }
}
