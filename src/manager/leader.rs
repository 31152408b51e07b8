//! The control loop's shell: waits for input or the deadline, lets the core decide, proposes
//! what it decided. It decides nothing itself.

use std::future::pending;
use std::time::Duration;

use skep_core::command::Command;
use skep_core::control::{Control, Input, SessionEvent};
use skep_core::time::Stamp;
use skep_raft::{Event, Subscription};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::{Manager, stopped};
use crate::clock::now;
use crate::gate::Refusal;
use crate::limits::SESSION_NEWS;

/// Session events taken in one step: all nodes there may be, and some twice.
const EVENTS: usize = SESSION_NEWS;
/// Pause after a proposal that found no outcome, before the loop looks again.
const RETRY: Duration = Duration::from_millis(100);

/// What woke the loop.
enum Woken {
    Changes(Event),
    Sessions,
    Deadline,
    Stop,
}

/// Decides for the swarm while this node leads; waits while it does not.
pub async fn lead(
    manager: &Manager,
    mut sessions: mpsc::Receiver<SessionEvent>,
    mut stop: watch::Receiver<bool>,
) {
    let mut leadership = manager.raft.leadership();
    loop {
        tokio::select! {
            leads = async { leadership.wait_for(|l| l.here).await.is_ok() } => if !leads { return },
            () = stopped(&mut stop) => return,
        }
        let seed = match crate::seal::random::<32>() {
            Ok(seed) => seed,
            Err(error) => {
                tracing::error!(%error, "the control loop cannot start");
                sleep(RETRY).await;
                continue;
            }
        };
        let mut term = Term {
            manager,
            control: Control::new(seed),
            changes: manager.raft.subscribe(),
            pending: Vec::new(),
        };
        if !term.run(&mut sessions, &mut stop).await {
            return;
        }
    }
}

/// The loop from one election to the next.
struct Term<'a> {
    manager: &'a Manager,
    control: Control,
    changes: Subscription,
    pending: Vec<SessionEvent>,
}

impl Term<'_> {
    /// False once the node stops.
    async fn run(
        &mut self,
        sessions: &mut mpsc::Receiver<SessionEvent>,
        stop: &mut watch::Receiver<bool>,
    ) -> bool {
        self.step(|control, state, at| control.step(state, Input::Deadline, at)).await;
        while self.manager.raft.is_leader() {
            let woken = self.wait(sessions, stop).await;
            // Who was heard of while the last decision was on its way must be known before anybody
            // is found silent.
            while self.pending.len() < EVENTS
                && let Ok(event) = sessions.try_recv()
            {
                self.pending.push(event);
            }
            if !self.pending.is_empty() {
                let events = std::mem::take(&mut self.pending);
                self.step(|control, state, at| control.step(state, Input::Sessions(&events), at))
                    .await;
            }
            match woken {
                Woken::Stop => return false,
                Woken::Sessions => {}
                Woken::Changes(Event::Applied(applied)) => {
                    let input = &applied.changes;
                    self.step(|control, state, at| control.step(state, Input::Changes(input), at))
                        .await;
                }
                Woken::Changes(Event::Rescan) => {
                    // Too much happened to name it: a loop without memory looks at all of it.
                    let Ok(seed) = crate::seal::random::<32>() else { return true };
                    self.control = Control::new(seed);
                    self.step(|control, state, at| control.step(state, Input::Deadline, at)).await;
                }
                Woken::Deadline => {
                    self.step(|control, state, at| control.step(state, Input::Deadline, at)).await;
                }
            }
        }
        true
    }

    async fn wait(
        &mut self,
        sessions: &mut mpsc::Receiver<SessionEvent>,
        stop: &mut watch::Receiver<bool>,
    ) -> Woken {
        let deadline = self.control.deadline();
        let due = async {
            match deadline {
                Some(Stamp(at)) => sleep(Duration::from_nanos(at.saturating_sub(now().0))).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stopped(stop) => Woken::Stop,
            event = self.changes.next() => event.map_or(Woken::Stop, Woken::Changes),
            taken = sessions.recv_many(&mut self.pending, EVENTS) => {
                if taken == 0 { Woken::Stop } else { Woken::Sessions }
            }
            () = due => Woken::Deadline,
        }
    }

    /// One step: decide on the state, then propose.
    async fn step(
        &mut self,
        decide: impl FnOnce(&mut Control, &skep_core::state::State, Stamp) -> Vec<Command>,
    ) {
        let control = &mut self.control;
        let commands = self.manager.raft.view(|state| decide(control, state, now()));
        for command in commands {
            match self.manager.decide(command).await {
                Ok(_) | Err(Refusal::Rejected(_)) => {}
                Err(error) => {
                    tracing::warn!(%error, "a decision of the control loop was not taken");
                    // The loop's memory may be ahead of the state now.
                    if let Ok(seed) = crate::seal::random::<32>() {
                        self.control = Control::new(seed);
                    }
                    sleep(RETRY).await;
                    return;
                }
            }
        }
    }
}
