//! Who takes part in Raft: how the leader brings its members to the managers that the state
//! names, one change at a time.
//!
//! The state says who is a manager; Raft's members follow. Every step is chosen so that those
//! who decide from then on are there to decide: a change that would leave too few waits.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;

use crate::limits;
use crate::model::node::NodeState;
use crate::state::State;

/// Raft's members as the leader sees them, by Raft id.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct MembersView {
    /// The leader itself.
    pub me: u64,
    /// Those that vote.
    pub voters: BTreeSet<u64>,
    /// Those that only follow.
    pub learners: BTreeSet<u64>,
    /// Addresses with port of all members.
    pub addrs: BTreeMap<u64, String>,
    /// Index of the last entry each is known to have; absent until it has answered.
    pub matched: BTreeMap<u64, u64>,
    /// Index of the leader's last entry.
    pub last: u64,
    /// Whether a change of members is half done.
    pub is_joint: bool,
}

/// The next change of Raft's members. Whoever makes it asks again afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberStep {
    /// Let a new manager follow.
    AddLearner {
        /// Its Raft id.
        raft_id: u64,
        /// Its address with port.
        addr: String,
    },
    /// Let a learner that has caught up vote.
    Promote {
        /// Its Raft id.
        raft_id: u64,
    },
    /// Give a member its present address.
    Readdress {
        /// Its Raft id.
        raft_id: u64,
        /// Its address with port.
        addr: String,
    },
    /// Drop a voter or learner that is no manager.
    Remove {
        /// Its Raft id.
        raft_id: u64,
    },
    /// Let another voter lead: this one is no manager any more.
    HandOver,
}

/// The next step towards the members that the state names; none when they are the members, when
/// a change is under way, and when every step left would leave too few voters to decide.
#[must_use]
pub fn next_step(state: &State, view: &MembersView) -> Option<MemberStep> {
    if view.is_joint || !view.voters.contains(&view.me) {
        return None;
    }
    let managers = state.managers().map(|(node, manager)| {
        let is_ready = node.status.state == NodeState::Ready;
        (manager.raft_id, Wanted { addr: &manager.addr, is_ready })
    });
    let plan = Plan { wanted: managers.collect(), view };
    if plan.wanted.is_empty() {
        return None;
    }
    // Addresses first: without them nothing else arrives. Then what costs no quorum, and voters
    // that hold the others up; a newcomer votes before the last voter that must go has gone.
    plan.hand_over()
        .or_else(|| plan.readdress())
        .or_else(|| plan.remove_learner())
        .or_else(|| plan.remove_voter(|id| !plan.is_near(id)))
        .or_else(|| plan.promote())
        .or_else(|| plan.add())
        .or_else(|| plan.remove_voter(|_| true))
}

/// A manager as the state has it.
#[derive(Debug, Clone, Copy)]
struct Wanted<'a> {
    addr: &'a str,
    is_ready: bool,
}

struct Plan<'a> {
    wanted: BTreeMap<u64, Wanted<'a>>,
    view: &'a MembersView,
}

impl Plan<'_> {
    /// A leader that is to go cannot remove itself: it makes room for a voter that stays and is
    /// near enough to take over at once.
    fn hand_over(&self) -> Option<MemberStep> {
        let goes = !self.wanted.contains_key(&self.view.me);
        let takes_over = |id: &u64| {
            self.wanted.get(id).is_some_and(|manager| manager.is_ready) && self.is_near(*id)
        };
        (goes && self.view.voters.iter().any(takes_over)).then_some(MemberStep::HandOver)
    }

    fn readdress(&self) -> Option<MemberStep> {
        let members = self.view.voters.union(&self.view.learners);
        let mut moved = members.filter_map(|id| {
            let addr = self.wanted.get(id)?.addr;
            (self.view.addrs.get(id).map(String::as_str) != Some(addr)).then_some((*id, addr))
        });
        let (raft_id, addr) = moved.next()?;
        Some(MemberStep::Readdress { raft_id, addr: String::from(addr) })
    }

    fn remove_learner(&self) -> Option<MemberStep> {
        let mut learners = self.view.learners.iter();
        let raft_id = *learners.find(|id| !self.wanted.contains_key(id))?;
        Some(MemberStep::Remove { raft_id })
    }

    /// Drops a voter that is no manager, never the leader: so one is always left.
    fn remove_voter(&self, which: impl Fn(u64) -> bool) -> Option<MemberStep> {
        let mut voters = self.view.voters.iter().copied();
        let raft_id = voters.find(|id| {
            let goes = *id != self.view.me && !self.wanted.contains_key(id) && which(*id);
            let staying = || self.view.voters.iter().copied().filter(|other| other != id);
            goes && self.can_decide(staying().collect())
        })?;
        Some(MemberStep::Remove { raft_id })
    }

    fn promote(&self) -> Option<MemberStep> {
        let mut learners = self.view.learners.iter().copied();
        let raft_id = learners.find(|id| {
            let voters = || self.view.voters.iter().copied().chain([*id]);
            self.wanted.contains_key(id) && self.is_near(*id) && self.can_decide(voters().collect())
        })?;
        Some(MemberStep::Promote { raft_id })
    }

    fn add(&self) -> Option<MemberStep> {
        let is_member = |id: &u64| self.view.voters.contains(id) || self.view.learners.contains(id);
        let (raft_id, new) = self.wanted.iter().find(|(id, _)| !is_member(id))?;
        Some(MemberStep::AddLearner { raft_id: *raft_id, addr: String::from(new.addr) })
    }

    /// Whether enough of these voters can be counted on.
    fn can_decide(&self, voters: BTreeSet<u64>) -> bool {
        let count = voters.len();
        let able = voters.into_iter().filter(|id| self.is_able(*id)).count();
        able > count / 2
    }

    /// Whether a member can be counted on: a voter that stays has a session; of any other all
    /// that is known is how far it is behind.
    fn is_able(&self, id: u64) -> bool {
        let is_voter = self.view.voters.contains(&id);
        match self.wanted.get(&id) {
            _ if id == self.view.me => true,
            Some(manager) if is_voter => manager.is_ready,
            _ => self.is_near(id),
        }
    }

    fn is_near(&self, id: u64) -> bool {
        let matched = self.view.matched.get(&id);
        id == self.view.me
            || matched.is_some_and(|at| at.saturating_add(limits::LEARNER_LAG) >= self.view.last)
    }
}
