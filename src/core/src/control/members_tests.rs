//! Tables and a model of Raft for its members.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use proptest::prelude::*;

use super::members::{MemberStep, MembersView, next_step};
use crate::limits;
use crate::model::Meta;
use crate::model::node::{ManagerInfo, Node, NodeSpec, NodeState, NodeStatus, Role};
use crate::state::State;
use crate::testing::{description, id};

fn addr(raft_id: u64) -> String {
    format!("10.0.0.{raft_id}:2377")
}

/// A state whose managers have these Raft ids; those in `down` are not ready.
fn managers(ids: &[u64], down: &[u64]) -> State {
    let mut state = State::default();
    for raft_id in ids {
        let is_down = down.contains(raft_id);
        let turned = if is_down { NodeState::Down } else { NodeState::Ready };
        state.put_node(Node {
            id: id(*raft_id),
            meta: Meta::default(),
            spec: NodeSpec { role: Role::Manager, ..NodeSpec::default() },
            description: description("m"),
            status: NodeStatus { state: turned, ..NodeStatus::default() },
            manager: Some(ManagerInfo { raft_id: *raft_id, addr: addr(*raft_id) }),
            public_key: Vec::new(),
            seal_key: [1; 32],
            advertise: addr(*raft_id),
        });
    }
    state
}

/// Members that have caught up, led by 1.
fn view(voters: &[u64], learners: &[u64]) -> MembersView {
    let all = || voters.iter().chain(learners).copied();
    MembersView {
        me: 1,
        voters: voters.iter().copied().collect(),
        learners: learners.iter().copied().collect(),
        addrs: all().map(|id| (id, addr(id))).collect(),
        matched: all().map(|id| (id, 10_000)).collect(),
        last: 10_000,
        is_joint: false,
    }
}

fn word(step: Option<MemberStep>) -> String {
    match step {
        None => "none".to_string(),
        Some(MemberStep::AddLearner { raft_id, addr }) => format!("learn {raft_id} at {addr}"),
        Some(MemberStep::Promote { raft_id }) => format!("promote {raft_id}"),
        Some(MemberStep::Readdress { raft_id, addr }) => format!("readdress {raft_id} to {addr}"),
        Some(MemberStep::Remove { raft_id }) => format!("remove {raft_id}"),
        Some(MemberStep::HandOver) => "hand over".to_string(),
    }
}

#[test]
fn each_difference_has_its_step() {
    // Managers, those of them that are down, voters, learners, members far behind, what follows.
    type Row = (&'static [u64], &'static [u64], &'static [u64], &'static [u64], &'static [u64]);
    let table: &[(Row, &str)] = &[
        ((&[1], &[], &[1], &[], &[]), "none"),
        ((&[1, 2], &[], &[1], &[], &[]), "learn 2 at 10.0.0.2:2377"),
        ((&[1, 2], &[], &[1], &[2], &[2]), "none"),
        ((&[1, 2], &[], &[1], &[2], &[]), "promote 2"),
        // Nobody has heard of 2 yet, but it has caught up.
        ((&[1, 2], &[2], &[1], &[2], &[]), "promote 2"),
        // One that is slow holds nobody else up.
        ((&[1, 2, 3], &[], &[1], &[2], &[2]), "learn 3 at 10.0.0.3:2377"),
        ((&[1], &[], &[1], &[2], &[]), "remove 2"),
        ((&[1], &[], &[1], &[2], &[2]), "remove 2"),
        ((&[1, 2], &[], &[1, 2, 3], &[], &[]), "remove 3"),
        // A newcomer votes before the one it replaces goes, unless that one is gone already.
        ((&[1, 2, 4], &[], &[1, 2, 3], &[4], &[]), "promote 4"),
        ((&[1, 2, 4], &[], &[1, 2, 3], &[4], &[3]), "remove 3"),
        ((&[1, 2, 4], &[], &[1, 2, 3], &[4], &[4]), "remove 3"),
        // Without 3 the two that stay need each other, and 2 is away.
        ((&[1, 2], &[2], &[1, 2, 3], &[], &[]), "none"),
        // Once 2 is no manager either, it goes first.
        ((&[1], &[], &[1, 2, 3], &[], &[2]), "remove 2"),
        // A third voter would not help while the second one is away.
        ((&[1, 2, 3], &[2], &[1, 2], &[3], &[]), "promote 3"),
        ((&[1, 2, 3], &[2], &[1, 2], &[3], &[3]), "none"),
        // A leader that is to go leaves the rest to the next one.
        ((&[2, 3], &[], &[1, 2, 3], &[], &[]), "hand over"),
        ((&[2, 3], &[2], &[1, 2, 3], &[], &[]), "hand over"),
        ((&[2], &[2], &[1, 2], &[], &[]), "none"),
        ((&[2], &[], &[1], &[], &[]), "learn 2 at 10.0.0.2:2377"),
        ((&[2], &[], &[1], &[2], &[]), "promote 2"),
        ((&[], &[], &[1], &[], &[]), "none"),
    ];
    for ((wanted, down, voters, learners, behind), expected) in table {
        let mut view = view(voters, learners);
        for id in *behind {
            view.matched.insert(*id, 10_000 - limits::LEARNER_LAG - 1);
        }
        let step = word(next_step(&managers(wanted, down), &view));
        assert_eq!(&step, expected, "{wanted:?} {down:?} {voters:?} {learners:?} {behind:?}");
    }
}

#[test]
fn the_bound_of_the_lag_is_exact_and_who_never_answered_is_behind() {
    let state = managers(&[1, 2], &[]);
    let mut view = view(&[1], &[2]);
    view.matched.insert(2, 10_000 - limits::LEARNER_LAG);
    assert_eq!(word(next_step(&state, &view)), "promote 2");
    view.matched.remove(&2);
    assert_eq!(word(next_step(&state, &view)), "none");
}

#[test]
fn a_new_address_goes_first_and_a_change_under_way_is_waited_for() {
    let state = managers(&[1, 2], &[]);
    let mut view = view(&[1, 2], &[3]);
    view.addrs.insert(2, "10.9.9.9:2377".to_string());
    assert_eq!(word(next_step(&state, &view)), "readdress 2 to 10.0.0.2:2377");
    view.is_joint = true;
    assert_eq!(next_step(&state, &view), None);
    view.is_joint = false;
    view.me = 3;
    assert_eq!(next_step(&state, &view), None, "a learner does not lead");
}

/// What Raft makes of a step, with every member alive.
fn make(view: &mut MembersView, step: MemberStep, state: &State) {
    match step {
        MemberStep::AddLearner { raft_id, addr } => {
            assert!(view.learners.insert(raft_id) && !view.voters.contains(&raft_id));
            view.addrs.insert(raft_id, addr);
        }
        MemberStep::Promote { raft_id } => {
            assert!(view.learners.remove(&raft_id));
            view.voters.insert(raft_id);
        }
        MemberStep::Readdress { raft_id, addr } => {
            assert_ne!(view.addrs.insert(raft_id, addr.clone()), Some(addr));
        }
        MemberStep::Remove { raft_id } => {
            assert!(raft_id != view.me, "the leader removes itself");
            assert!(view.voters.remove(&raft_id) || view.learners.remove(&raft_id));
            view.addrs.remove(&raft_id);
            view.matched.remove(&raft_id);
        }
        MemberStep::HandOver => {
            let next = state.managers().find(|(_, m)| view.voters.contains(&m.raft_id));
            view.me = next.expect("somebody takes over").1.raft_id;
            view.matched.clear();
        }
    }
    assert!(!view.voters.is_empty());
}

/// Some time passes: everyone gets nearer to the leader's log.
fn replicate(view: &mut MembersView) {
    let (voters, learners) = (view.voters.clone(), view.learners.clone());
    for id in voters.union(&learners) {
        let at = view.matched.entry(*id).or_insert(0);
        *at = view.last.min(*at + 2_000);
    }
}

fn ids() -> impl Strategy<Value = BTreeSet<u64>> {
    proptest::collection::btree_set(1..9u64, 0..6)
}

proptest! {
    #[test]
    fn members_become_exactly_the_managers(
        wanted in proptest::collection::btree_set(1..9u64, 1..6),
        voters in proptest::collection::btree_set(1..9u64, 1..6),
        learners in ids(),
        moved in ids(),
        matched in proptest::collection::btree_map(1..9u64, 0..10_000u64, 0..8),
        leader in any::<prop::sample::Index>(),
    ) {
        let state = managers(&wanted.iter().copied().collect::<Vec<_>>(), &[]);
        let learners: BTreeSet<u64> = learners.difference(&voters).copied().collect();
        let voting: Vec<u64> = voters.iter().copied().collect();
        let (me, last, is_joint) = (*leader.get(&voting), 10_000, false);
        let place = |id: u64| if moved.contains(&id) { "10.9.9.9:1".to_string() } else { addr(id) };
        let addrs: BTreeMap<u64, String> =
            voters.union(&learners).map(|id| (*id, place(*id))).collect();
        let mut view = MembersView { me, voters, learners, addrs, matched, last, is_joint };
        for _ in 0..100 {
            if let Some(step) = next_step(&state, &view) {
                make(&mut view, step, &state);
            }
            replicate(&mut view);
        }
        prop_assert_eq!(next_step(&state, &view), None);
        prop_assert_eq!(&view.voters, &wanted);
        prop_assert!(view.learners.is_empty());
        for (raft_id, known) in &view.addrs {
            prop_assert_eq!(known, &addr(*raft_id));
        }
    }
}
