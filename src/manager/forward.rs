//! Writes and confirmed reads on any manager: what only the leader can do is asked of it, again
//! and again across leaders until it is done or the time is up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use skep_core::command::{Command, Outcome, Rejection};
use skep_core::format::{TooNew, admit};
use skep_core::id::RequestId;
use skep_raft::{Leadership, ProposeError, ReadError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::peers::PeerError;
use super::{Manager, failed, mint};
use crate::gate::Refusal;
use crate::limits::WRITE_WAIT;
use crate::wire::control::{ControlAnswer, ControlRequest, Refused};

/// Pause before the same leader is asked again.
const AGAIN: Duration = Duration::from_millis(20);

/// Reads that were confirmed, in order of their beginnings.
#[derive(Debug, Default)]
pub(super) struct Confirmed {
    begun: AtomicU64,
    last: tokio::sync::Mutex<u64>,
}

/// What one try at a write led to.
enum Tried {
    Outcome(Outcome),
    /// Not proposed, and of no use to try again.
    Refused(Refusal),
    /// Not proposed: nobody leads, as far as was found.
    NoLeader,
    /// It may have been proposed.
    Unknown,
}

/// What some manager could not read is refused as what the swarm's state does not allow yet.
fn too_new(e: TooNew) -> Refusal {
    Refusal::Rejected(Rejection::Precondition(e.to_string()))
}

/// A change of leader is worth a try at once, the same one after a moment.
async fn next_try(leadership: &mut watch::Receiver<Leadership>) {
    tokio::select! {
        Ok(()) = leadership.changed() => {}
        () = sleep(AGAIN) => {}
    }
}

impl Manager {
    /// Proposes a command under a request id of its own and returns the object's write counter.
    ///
    /// # Errors
    /// The rejection, or why there is no answer.
    pub async fn propose(&self, command: Command) -> Result<u64, Refusal> {
        let request: RequestId = mint().map_err(|e| failed("cannot make a request id", e))?;
        match self.outcome(request, command).await? {
            Outcome::Done(version) => Ok(version),
            Outcome::Rejected(rejection) => Err(rejection.into()),
            // Versions were dropped: that writes no single object.
            Outcome::Pruned(_) => Ok(0),
        }
    }

    /// Proposes a decision of this manager's own control loop: it is worth nothing to another
    /// leader.
    ///
    /// # Errors
    /// The rejection, or why there is no answer.
    pub(super) async fn decide(&self, command: Command) -> Result<u64, Refusal> {
        let request: RequestId = mint().map_err(|e| failed("cannot make a request id", e))?;
        match self.raft.propose(request, command).await {
            Ok(Outcome::Done(version)) => Ok(version),
            Ok(Outcome::Rejected(rejection)) => Err(rejection.into()),
            Ok(Outcome::Pruned(_)) => Ok(0),
            Err(ProposeError::NotLeader { .. }) => Err(Refusal::NoLeader),
            Err(ProposeError::NoSpace) => Err(Refusal::NoSpace(self.log_dir.clone())),
            Err(ProposeError::Unknown) => Err(Refusal::Unknown(request.to_string())),
            Err(ProposeError::TooNew(e)) => Err(too_new(e)),
            Err(e) => Err(failed("the swarm's log does not take the write", e)),
        }
    }

    /// The first outcome of a request, on whichever manager leads.
    pub(super) async fn outcome(
        &self,
        request: RequestId,
        command: Command,
    ) -> Result<Outcome, Refusal> {
        // An older leader would not see what it does not know of a command.
        self.raft.view(|state| admit(state, &command)).map_err(too_new)?;
        let until = Instant::now() + WRITE_WAIT;
        let mut leadership = self.raft.leadership();
        let mut may_be_done = false;
        loop {
            self.check_not_outlived()?;
            leadership.mark_unchanged();
            // With another leader an answer of the last one may never come.
            let tried = tokio::select! {
                tried = timeout_at(until, self.attempt(request, &command)) => tried.ok(),
                Ok(()) = leadership.changed() => None,
            };
            match tried.unwrap_or(Tried::Unknown) {
                Tried::Outcome(outcome) => return Ok(outcome),
                Tried::Refused(refusal) if !may_be_done => return Err(refusal),
                Tried::Refused(_) | Tried::NoLeader => {}
                Tried::Unknown => may_be_done = true,
            }
            if Instant::now() >= until {
                break;
            }
            next_try(&mut leadership).await;
        }
        Err(if may_be_done { Refusal::Unknown(request.to_string()) } else { Refusal::NoLeader })
    }

    async fn attempt(&self, request: RequestId, command: &Command) -> Tried {
        let leader = *self.raft.leadership().borrow();
        if leader.here {
            return match self.raft.propose(request, command.clone()).await {
                Ok(outcome) => Tried::Outcome(outcome),
                Err(ProposeError::NotLeader { .. }) => Tried::NoLeader,
                Err(ProposeError::NoSpace) => {
                    Tried::Refused(Refusal::NoSpace(self.log_dir.clone()))
                }
                Err(ProposeError::Unknown) => Tried::Unknown,
                Err(ProposeError::TooNew(e)) => Tried::Refused(too_new(e)),
                Err(e) => Tried::Refused(failed("the swarm's log does not take the write", e)),
            };
        }
        let ask = ControlRequest::Propose { request, command: Box::new(command.clone()) };
        match self.ask_leader(&ask).await {
            Ok(ControlAnswer::Outcome(outcome)) => Tried::Outcome(outcome),
            Ok(ControlAnswer::NotLeader(_) | ControlAnswer::NotUnderstood) => Tried::NoLeader,
            Ok(ControlAnswer::Refused(Refused::NoSpace(dir))) => {
                Tried::Refused(Refusal::NoSpace(dir))
            }
            Ok(ControlAnswer::Refused(Refused::Other(text))) => {
                Tried::Refused(failed("the swarm's log does not take the write", text))
            }
            Err(PeerError::Wire(_) | PeerError::Silent) | Ok(_) => Tried::Unknown,
            Err(_) => Tried::NoLeader,
        }
    }

    /// Asks the manager that leads, as far as this one knows. One that was away knows an old leader,
    /// or none: whoever is asked in its place says who it is now.
    pub(super) async fn ask_leader(
        &self,
        request: &ControlRequest,
    ) -> Result<ControlAnswer, PeerError> {
        let known = self.raft.leadership().borrow().leader;
        let others = self.peers.book().directory().borrow().managers.clone();
        let others = others.iter().filter(|other| other.node != self.node);
        let mut last = Err(PeerError::NoLeader);
        for raft_id in known.into_iter().chain(others.map(|other| other.raft_id)) {
            last = self.peers.ask(raft_id, request).await;
            match last {
                Ok(ControlAnswer::NotLeader(Some(leader))) if leader != raft_id => {
                    return self.peers.ask(leader, request).await;
                }
                Ok(ControlAnswer::NotLeader(_)) => {}
                // It was not reached, so nothing was done: another may know more.
                Err(PeerError::Unknown(_) | PeerError::Dial(_)) => {}
                _ => return last,
            }
        }
        last
    }

    /// Carries out another manager's write, if this one leads.
    pub(super) async fn propose_for(&self, request: RequestId, command: Command) -> ControlAnswer {
        match self.raft.propose(request, command).await {
            Ok(outcome) => ControlAnswer::Outcome(outcome),
            Err(ProposeError::NotLeader { leader }) => ControlAnswer::NotLeader(leader),
            Err(ProposeError::Unknown) => ControlAnswer::Unknown,
            Err(ProposeError::NoSpace) => {
                ControlAnswer::Refused(Refused::NoSpace(self.log_dir.clone()))
            }
            Err(e) => ControlAnswer::Refused(Refused::Other(e.to_string())),
        }
    }

    /// Waits until what is applied here includes everything acknowledged before the call.
    ///
    /// # Errors
    /// [`Refusal::NoLeader`] if no leader confirms it in time; [`Refusal::Outlived`] if the swarm
    /// goes on without this manager.
    pub async fn confirm(&self) -> Result<(), Refusal> {
        let arrived = self.confirmed.begun.load(Ordering::Acquire);
        let turn = timeout(WRITE_WAIT, self.confirmed.last.lock()).await;
        let mut last = turn.map_err(|_| Refusal::NoLeader)?;
        // One that began since then answers for all who waited meanwhile.
        if *last > arrived {
            return Ok(());
        }
        let begun = self.confirmed.begun.fetch_add(1, Ordering::AcqRel) + 1;
        self.confirm_now().await?;
        *last = begun;
        Ok(())
    }

    async fn confirm_now(&self) -> Result<(), Refusal> {
        let until = Instant::now() + WRITE_WAIT;
        let mut leadership = self.raft.leadership();
        loop {
            self.check_not_outlived()?;
            leadership.mark_unchanged();
            tokio::select! {
                confirmed = timeout_at(until, self.read_index()) => {
                    if confirmed == Ok(true) {
                        return Ok(());
                    }
                }
                Ok(()) = leadership.changed() => {}
            }
            if Instant::now() >= until {
                return Err(Refusal::NoLeader);
            }
            next_try(&mut leadership).await;
        }
    }

    /// Refuses what only the swarm of today can answer.
    pub(super) fn check_not_outlived(&self) -> Result<(), Refusal> {
        let is_outlived = self.peers.book().is_outlived();
        if is_outlived { Err(Refusal::Outlived(self.cluster)) } else { Ok(()) }
    }

    async fn read_index(&self) -> bool {
        let leader = *self.raft.leadership().borrow();
        if leader.here {
            return self.raft.read_index().await.is_ok();
        }
        let Ok(ControlAnswer::Index(index)) = self.ask_leader(&ControlRequest::ReadIndex).await
        else {
            return false;
        };
        let mut applied = self.raft.applied();
        applied.wait_for(|at| at.is_some_and(|at| at >= index)).await.is_ok()
    }

    /// Tells another manager up to which entry it must have applied, if this one leads.
    pub(super) async fn read_index_for(&self) -> ControlAnswer {
        match self.raft.read_index().await {
            Ok(index) => ControlAnswer::Index(index),
            Err(ReadError::NotLeader { leader }) => ControlAnswer::NotLeader(leader),
            Err(ReadError::Timeout | ReadError::Shutdown) => ControlAnswer::NotLeader(None),
        }
    }
}
