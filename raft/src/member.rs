//! Who takes part in Raft, and how that is changed: one step at a time, by the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers};
use tokio::time::timeout;

use crate::limits::{HAND_OVER_WAIT, MEMBER_WAIT};
use crate::node::Raft;
use crate::types::TypeConfig;

/// Who takes part, as this node knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// This node's Raft id.
    pub me: u64,
    /// Voters, of both halves of a joint configuration.
    pub voters: BTreeSet<u64>,
    /// Learners.
    pub learners: BTreeSet<u64>,
    /// Address of each.
    pub addrs: BTreeMap<u64, String>,
    /// Last entry that each other node is known to have. Only a leader knows.
    pub matched: BTreeMap<u64, u64>,
    /// Last entry in this node's log.
    pub last: u64,
    /// Whether a change is under way.
    pub is_joint: bool,
}

/// Why the members are not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// Another node leads, or none.
    #[error("this node does not lead the swarm")]
    NotLeader {
        /// Raft id of the leader, if it is known.
        leader: Option<u64>,
    },
    /// No quorum confirmed it in time.
    #[error("no quorum of managers confirmed the change within {0:?}")]
    Timeout(Duration),
    /// openraft refused; the text says why.
    #[error("the change was refused: {0}")]
    Refused(String),
}

impl Raft {
    /// Who takes part, as this node knows it.
    #[must_use]
    pub fn members(&self) -> Members {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let matched = metrics.replication.iter().flatten();
        Members {
            me: metrics.id,
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            addrs: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
            matched: matched
                .filter_map(|(id, at)| at.as_ref().map(|at| (*id, at.index)))
                .collect(),
            last: metrics.last_log_index.unwrap_or(0),
            is_joint: membership.get_joint_config().len() > 1,
        }
    }

    async fn change(&self, change: ChangeMembers<u64, BasicNode>) -> Result<(), MemberError> {
        let changed = self.0.raft.change_membership(change, false);
        match timeout(MEMBER_WAIT, changed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(refused(error)),
            Err(_) => Err(MemberError::Timeout(MEMBER_WAIT)),
        }
    }

    /// Adds a node that gets the log but has no vote. It may be far behind when this returns.
    ///
    /// # Errors
    /// [`MemberError`].
    pub async fn add_learner(&self, raft_id: u64, addr: String) -> Result<(), MemberError> {
        let added = self.0.raft.add_learner(raft_id, BasicNode { addr }, false);
        match timeout(MEMBER_WAIT, added).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(refused(error)),
            Err(_) => Err(MemberError::Timeout(MEMBER_WAIT)),
        }
    }

    /// Gives a learner a vote.
    ///
    /// # Errors
    /// [`MemberError`].
    pub async fn promote(&self, raft_id: u64) -> Result<(), MemberError> {
        self.change(ChangeMembers::AddVoterIds([raft_id].into())).await
    }

    /// Takes a node out, voter or learner.
    ///
    /// # Errors
    /// [`MemberError`].
    pub async fn remove(&self, raft_id: u64) -> Result<(), MemberError> {
        let change = if self.members().voters.contains(&raft_id) {
            ChangeMembers::RemoveVoters([raft_id].into())
        } else {
            ChangeMembers::RemoveNodes([raft_id].into())
        };
        self.change(change).await
    }

    /// Sets the address of a node.
    ///
    /// # Errors
    /// [`MemberError`].
    pub async fn readdress(&self, raft_id: u64, addr: String) -> Result<(), MemberError> {
        self.change(ChangeMembers::SetNodes([(raft_id, BasicNode { addr })].into())).await
    }

    /// Lets the voter that has most of the log lead, and waits until another node does. Answers
    /// its Raft id.
    ///
    /// # Errors
    /// [`MemberError`].
    pub async fn hand_over(&self) -> Result<u64, MemberError> {
        let members = self.members();
        let mut leadership = self.leadership();
        let leader = *leadership.borrow_and_update();
        if !leader.here {
            return Err(MemberError::NotLeader { leader: leader.leader });
        }
        let others = members.voters.iter().filter(|id| **id != members.me);
        let next = others.max_by_key(|id| members.matched.get(id));
        let Some(next) = next else {
            return Err(MemberError::Refused("there is no other manager".into()));
        };
        let asked = self.0.raft.trigger().transfer_leader(*next).await;
        asked.map_err(|e| MemberError::Refused(e.to_string()))?;
        let other = leadership.wait_for(|l| !l.here && l.leader.is_some_and(|id| id != members.me));
        match timeout(HAND_OVER_WAIT, other).await {
            Ok(Ok(leadership)) => Ok(leadership.leader.unwrap_or_default()),
            Ok(Err(_)) => Err(MemberError::Refused("raft stopped".into())),
            Err(_) => Err(MemberError::Timeout(HAND_OVER_WAIT)),
        }
    }
}

fn refused(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> MemberError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            MemberError::NotLeader { leader: to.leader_id }
        }
        error => MemberError::Refused(error.to_string()),
    }
}
