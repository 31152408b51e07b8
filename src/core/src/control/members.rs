//! What the leader does next so that Raft's members become what the state says they are.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;

use crate::state::State;

/// A learner becomes a voter when it lacks at most so many entries.
const LAG: u64 = 64;

/// Raft's members as the leader sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MembersView {
    /// The leader's Raft id.
    pub me: u64,
    /// Voters.
    pub voters: BTreeSet<u64>,
    /// Learners.
    pub learners: BTreeSet<u64>,
    /// Address of each.
    pub addrs: BTreeMap<u64, String>,
    /// Last entry that each other member is known to have.
    pub matched: BTreeMap<u64, u64>,
    /// Last entry in the leader's log.
    pub last: u64,
    /// Whether a change is under way.
    pub is_joint: bool,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberStep {
    /// Adds a node that gets the log but has no vote.
    AddLearner {
        /// Raft id.
        raft_id: u64,
        /// Address with port.
        addr: String,
    },
    /// Gives a learner a vote.
    Promote {
        /// Raft id.
        raft_id: u64,
    },
    /// Sets a member's address.
    Readdress {
        /// Raft id.
        raft_id: u64,
        /// Address with port.
        addr: String,
    },
    /// Takes a member out.
    Remove {
        /// Raft id.
        raft_id: u64,
    },
    /// The leader itself is to go: another one must lead first.
    HandOver,
}

/// The next step; none if there is nothing to do now.
#[must_use]
pub fn next_step(state: &State, view: &MembersView) -> Option<MemberStep> {
    let wanted: BTreeMap<u64, &str> = state
        .nodes()
        .filter_map(|node| node.manager.as_ref().map(|m| (m.raft_id, m.addr.as_str())))
        .collect();
    if wanted.is_empty() || view.is_joint {
        return None;
    }
    for (&raft_id, addr) in &wanted {
        let known = view.addrs.get(&raft_id);
        if known.is_none() {
            return Some(MemberStep::AddLearner { raft_id, addr: String::from(*addr) });
        }
        if known.is_some_and(|known| known != addr) {
            return Some(MemberStep::Readdress { raft_id, addr: String::from(*addr) });
        }
    }
    for &raft_id in &view.learners {
        let matched = view.matched.get(&raft_id).copied();
        if wanted.contains_key(&raft_id) && matched.is_some_and(|at| at + LAG >= view.last) {
            return Some(MemberStep::Promote { raft_id });
        }
    }
    let mut ghosts = view.addrs.keys().filter(|id| !wanted.contains_key(id));
    if let Some(&raft_id) = ghosts.clone().find(|id| **id != view.me) {
        return Some(MemberStep::Remove { raft_id });
    }
    ghosts.next().filter(|_| view.voters.len() > 1).map(|_| MemberStep::HandOver)
}
