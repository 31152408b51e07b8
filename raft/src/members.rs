//! Who takes part: learners, voters, their addresses, and who of them leads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers};
use skep_core::control::members::MembersView as Members;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use crate::limits::{
    ADDR_BYTES, HAND_OVER_TRIES, HAND_OVER_TRY, MEMBER_WAIT, MEMBERS, PROMOTE_LAG,
};
use crate::node::{Inner, Raft};
use crate::types::TypeConfig;

/// Why the members are not known to be changed. All but `Refused` may be tried again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// Another node leads, or none.
    #[error("this node does not lead the swarm")]
    NotLeader {
        /// Raft id of the leader, if it is known.
        leader: Option<u64>,
    },
    /// Another change is under way.
    #[error("another change of the managers is under way; try again")]
    InProgress,
    /// Not committed in time: too few managers answer, or the one to promote has not caught up.
    /// The change may still come.
    #[error("the change of the managers was not done within {MEMBER_WAIT:?}")]
    Timeout,
    /// It cannot be; the text says why.
    #[error("{0}")]
    Refused(String),
}

type Change = ChangeMembers<u64, BasicNode>;

impl Raft {
    /// Who takes part.
    #[must_use]
    pub fn members(&self) -> Members {
        self.0.members()
    }

    /// Adds a node that gets the log and has no vote. Returns when that is committed: the node
    /// may still lack the whole log. One that takes part already stays what it is.
    ///
    /// # Errors
    /// See [`MemberError`].
    pub async fn add_learner(&self, raft_id: u64, addr: String) -> Result<(), MemberError> {
        check_addr(&addr)?;
        let members = self.members();
        if members.addrs.len() >= MEMBERS && !members.addrs.contains_key(&raft_id) {
            let text = format!("there are {MEMBERS} managers already; no more are allowed");
            return Err(MemberError::Refused(text));
        }
        let nodes = BTreeMap::from([(raft_id, BasicNode { addr })]);
        self.change(move |_| Ok(Some(ChangeMembers::AddNodes(nodes)))).await
    }

    /// Gives a learner a vote once it has caught up, for which this waits. A voter stays one.
    ///
    /// # Errors
    /// See [`MemberError`].
    pub async fn promote(&self, raft_id: u64) -> Result<(), MemberError> {
        match timeout(MEMBER_WAIT, self.caught_up(raft_id)).await {
            Ok(done) => done?,
            Err(_) => return Err(MemberError::Timeout),
        }
        self.change(move |members| {
            if members.voters.contains(&raft_id) {
                return Ok(None);
            }
            Ok(Some(ChangeMembers::AddVoterIds([raft_id].into())))
        })
        .await
    }

    /// Takes a voter or learner out altogether. One that does not take part is no error. A
    /// leader that removes itself leads no longer a moment after this returned.
    ///
    /// # Errors
    /// See [`MemberError`]; the last voter is refused.
    pub async fn remove(&self, raft_id: u64) -> Result<(), MemberError> {
        self.change(move |members| {
            let last = members.voters.len() == 1;
            Ok(match (members.voters.contains(&raft_id), members.learners.contains(&raft_id)) {
                (true, _) if last => {
                    let text = "the last manager cannot be removed; add another one first";
                    return Err(MemberError::Refused(text.into()));
                }
                (true, _) => Some(ChangeMembers::RemoveVoters([raft_id].into())),
                (false, true) => Some(ChangeMembers::RemoveNodes([raft_id].into())),
                (false, false) => None,
            })
        })
        .await
    }

    /// Changes the address of one that takes part.
    ///
    /// # Errors
    /// See [`MemberError`].
    pub async fn readdress(&self, raft_id: u64, addr: String) -> Result<(), MemberError> {
        check_addr(&addr)?;
        self.change(move |members| match members.addrs.get(&raft_id) {
            None => Err(unknown(raft_id)),
            Some(now) if *now == addr => Ok(None),
            Some(_) => Ok(Some(ChangeMembers::SetNodes([(raft_id, BasicNode { addr })].into()))),
        })
        .await
    }

    /// Lets another voter lead, the one that has most of the log first, and waits until one
    /// does. Returns its Raft id. If none takes over this node leads on.
    ///
    /// # Errors
    /// See [`MemberError`]; refused if there is no other voter.
    pub async fn hand_over(&self) -> Result<u64, MemberError> {
        let Inner { raft, raft_id: me, .. } = &*self.0;
        let mut leadership = self.leadership();
        let now = *leadership.borrow_and_update();
        if !now.here {
            return Err(MemberError::NotLeader { leader: now.leader });
        }
        let members = self.members();
        let others = members.voters.iter().filter(|id| *id != me);
        let mut others: Vec<u64> = others.copied().collect();
        others.sort_by_key(|id| std::cmp::Reverse(members.matched.get(id).copied()));
        if others.is_empty() {
            let text = "there is no other manager that could lead";
            return Err(MemberError::Refused(text.into()));
        }
        let stopped = |_| MemberError::Refused("this node is stopping".into());
        for to in others.into_iter().take(HAND_OVER_TRIES) {
            raft.trigger().transfer_leader(to).await.map_err(stopped)?;
            let other = |now: &crate::Leadership| now.leader.is_some_and(|leader| leader != *me);
            match timeout(HAND_OVER_TRY, leadership.wait_for(other)).await {
                Ok(Ok(now)) => return Ok(now.leader.unwrap_or(to)),
                Ok(Err(_)) => return Err(MemberError::Refused("this node is stopping".into())),
                Err(_) => tracing::warn!("manager {to:x} does not take over"),
            }
            // openraft takes no proposals any more once it handed over; a new term ends that.
            raft.trigger().elect(false).await.map_err(stopped)?;
            let here = |now: &crate::Leadership| now.leader.is_some();
            let _ = timeout(HAND_OVER_TRY, leadership.wait_for(here)).await;
            let now = *leadership.borrow();
            if let Some(leader) = now.leader.filter(|leader| leader != me) {
                return Ok(leader);
            }
        }
        Err(MemberError::Timeout)
    }

    /// Waits until entry `index` is applied here. `false` if it is not `within` that time.
    pub async fn wait_applied(&self, index: u64, within: Duration) -> bool {
        let mut applied = self.applied();
        let done = applied.wait_for(|at| at.is_some_and(|at| at >= index));
        matches!(timeout(within, done).await, Ok(Ok(_)))
    }

    /// Waits until a learner lacks little.
    async fn caught_up(&self, raft_id: u64) -> Result<(), MemberError> {
        let mut metrics = self.0.raft.metrics();
        loop {
            let _ = metrics.borrow_and_update();
            let leadership = *self.0.leadership().borrow();
            if !leadership.here {
                return Err(MemberError::NotLeader { leader: leadership.leader });
            }
            let members = self.members();
            if !members.addrs.contains_key(&raft_id) {
                return Err(unknown(raft_id));
            }
            let matched = members.matched.get(&raft_id);
            if members.voters.contains(&raft_id)
                || matched.is_some_and(|at| at.saturating_add(PROMOTE_LAG) >= members.last)
            {
                return Ok(());
            }
            if metrics.changed().await.is_err() {
                return Err(MemberError::Refused("this node is stopping".into()));
            }
        }
    }

    /// Makes the change that `wanted` asks for in view of the members; none if they are so
    /// already. The change goes on if nobody waits for it any more: half of it would be left.
    async fn change(
        &self,
        wanted: impl FnOnce(&Members) -> Result<Option<Change>, MemberError> + Send + 'static,
    ) -> Result<(), MemberError> {
        let leadership = *self.0.leadership().borrow();
        if !leadership.here {
            return Err(MemberError::NotLeader { leader: leadership.leader });
        }
        let changing = Arc::clone(&self.0.changing).try_lock_owned();
        let changing = changing.map_err(|_| MemberError::InProgress)?;
        let inner = Arc::clone(&self.0);
        let change = tokio::spawn(async move { inner.change(changing, wanted).await });
        match timeout(MEMBER_WAIT, change).await {
            Ok(Ok(done)) => done,
            Ok(Err(e)) => Err(MemberError::Refused(e.to_string())),
            Err(_) => Err(MemberError::Timeout),
        }
    }
}

impl Inner {
    pub(crate) fn members(&self) -> Members {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let matched = metrics.replication.iter().flatten();
        Members {
            me: self.raft_id,
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            addrs: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
            matched: matched
                .filter(|(id, _)| **id != self.raft_id)
                .filter_map(|(id, at)| Some((*id, at.as_ref()?.index)))
                .collect(),
            last: metrics.last_log_index.unwrap_or(0),
            is_joint: membership.get_joint_config().len() > 1,
        }
    }

    /// Ends a change of the voters that a leader before this one left half done, unless one is
    /// under way here.
    pub(crate) async fn settle(&self) {
        if !self.leadership().borrow().here || !self.members().is_joint {
            return;
        }
        let Ok(_changing) = self.changing.try_lock() else { return };
        match timeout(MEMBER_WAIT, self.flatten()).await {
            // Its first half is not committed yet.
            Ok(Err(MemberError::InProgress)) | Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::warn!("ending a change of the managers: {e}"),
            Err(_) => tracing::warn!("ending a change of the managers takes too long"),
        }
    }

    async fn change(
        &self,
        changing: OwnedMutexGuard<()>,
        wanted: impl FnOnce(&Members) -> Result<Option<Change>, MemberError>,
    ) -> Result<(), MemberError> {
        if self.members().is_joint {
            self.flatten().await?;
        }
        if let Some(change) = wanted(&self.members())? {
            self.raft.change_membership(change, false).await.map_err(|e| refusal(&e))?;
        }
        drop(changing);
        Ok(())
    }

    /// Leaves the voters of a joint configuration's second half.
    async fn flatten(&self) -> Result<(), MemberError> {
        let change = ChangeMembers::AddVoterIds(BTreeSet::new());
        let flat = self.raft.change_membership(change, false).await;
        flat.map(drop).map_err(|e| refusal(&e))
    }
}

fn check_addr(addr: &str) -> Result<(), MemberError> {
    if addr.len() <= ADDR_BYTES {
        return Ok(());
    }
    let text = format!("an address of {} bytes; at most {ADDR_BYTES} are allowed", addr.len());
    Err(MemberError::Refused(text))
}

fn unknown(raft_id: u64) -> MemberError {
    MemberError::Refused(format!("manager {raft_id:x} does not take part in raft"))
}

fn refusal(e: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> MemberError {
    match e {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            MemberError::NotLeader { leader: to.leader_id }
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            ChangeMembershipError::InProgress(_),
        )) => MemberError::InProgress,
        RaftError::APIError(e) => MemberError::Refused(e.to_string()),
        RaftError::Fatal(_) => MemberError::Refused("this node is stopping".into()),
    }
}
