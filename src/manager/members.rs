//! Carries out what the core decides about Raft's membership, while this manager leads.

use std::time::Duration;

use skep_core::command::Command;
use skep_core::control::members::{MemberStep, next_step};
use skep_core::format::next;
use skep_raft::MemberError;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Manager, stopped};
use crate::wire::control::{ControlAnswer, ControlRequest};

/// Time between two looks, while something is to be done that could not be done.
const SOON: Duration = Duration::from_millis(50);
/// Time between two looks while a new manager catches up: nothing tells when it has.
const CATCHING_UP: Duration = Duration::from_millis(20);
/// Time between two looks otherwise: changes of the state wake it at once.
const LATER: Duration = Duration::from_secs(1);

/// Keeps Raft's members what the state says until told to stop.
pub async fn tend(manager: &Manager, mut stop: watch::Receiver<bool>) {
    let mut directory = manager.peers.book().directory();
    let mut leadership = manager.raft.leadership();
    loop {
        let leads = leadership.borrow_and_update().here;
        let pause = if leads { manager.look().await } else { LATER };
        tokio::select! {
            () = stopped(&mut stop) => return,
            _ = directory.changed() => {}
            _ = leadership.changed() => {}
            () = sleep(pause) => {}
        }
    }
}

impl Manager {
    /// Takes the next step if there is one. Answers after which time to look again.
    async fn look(&self) -> Duration {
        let is_done = match self.tend_once().await {
            Some(is_done) => is_done,
            None if self.raise_format().await || self.finish_root().await => false,
            None if self.raft.members().learners.is_empty() => return LATER,
            None => true,
        };
        if is_done { CATCHING_UP } else { SOON }
    }

    /// Takes the next step. Whether it was done; none if there was none.
    async fn tend_once(&self) -> Option<bool> {
        let members = self.raft.members();
        let step = self.raft.view(|state| next_step(state, &members))?;
        tracing::info!(?step, "changing the managers");
        let done = match step {
            MemberStep::AddLearner { raft_id, addr } => self.raft.add_learner(raft_id, addr).await,
            MemberStep::Promote { raft_id } => self.raft.promote(raft_id).await,
            MemberStep::Readdress { raft_id, addr } => self.raft.readdress(raft_id, addr).await,
            MemberStep::Remove { raft_id } => self.raft.remove(raft_id).await,
            MemberStep::HandOver => self.raft.hand_over().await.map(|_| ()),
        };
        if let Err(error) = &done {
            tracing::warn!(%error, "the managers cannot be changed now; trying again");
        }
        Some(done.is_ok())
    }

    /// Raises the format of the state if every manager reads a newer one. Whether it did.
    async fn raise_format(&self) -> bool {
        let members = self.raft.members();
        let Some(to) = self.raft.view(|state| next(state, &members)) else { return false };
        match self.decide(Command::FormatRaise { to }).await {
            Ok(_) => {
                tracing::info!(to, "every manager reads a newer format of the state: raised");
                true
            }
            Err(error) => {
                tracing::warn!(%error, to, "the format of the state is not raised now");
                false
            }
        }
    }

    /// Lets another manager lead, if this one does and there is another.
    pub async fn hand_over(&self) {
        if !self.raft.is_leader() || self.raft.members().voters.len() < 2 {
            return;
        }
        match self.raft.hand_over().await {
            Ok(_) | Err(MemberError::NotLeader { .. }) => {}
            Err(error) => tracing::warn!(%error, "no other manager takes over the lead"),
        }
    }

    /// Asks the managers that are known who the managers are now.
    pub async fn refresh_book(&self) {
        let known = self.peers.book().directory().borrow().managers.clone();
        for manager in known.into_iter().filter(|manager| manager.node != self.node) {
            let asked = self.peers.ask(manager.raft_id, &ControlRequest::Directory).await;
            if let Ok(ControlAnswer::Directory(directory)) = asked {
                self.peers.book().update(directory);
                return;
            }
        }
    }
}
