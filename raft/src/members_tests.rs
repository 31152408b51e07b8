//! Members that come, move, vote, lead and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::ChangeMembers;
use tokio::time::timeout;

use crate::limits::{QUORUM_LAPSE, READ_WAIT};
use crate::samples::{create, id};
use crate::wire_tests::{PATIENCE, Wire, add, agree, done, first};
use crate::{MemberError, ProposeError, Raft, ReadError};

fn addr(raft_id: u64) -> String {
    format!("127.0.0.1:{raft_id}")
}

/// A swarm of three voters; the first leads.
async fn three(wire: &Arc<Wire>) -> [Raft; 3] {
    let one = first(wire).await;
    let others = [add(wire, 2).await, add(wire, 3).await];
    for number in [2, 3] {
        one.add_learner(number, addr(number)).await.unwrap();
        one.promote(number).await.unwrap();
    }
    let [two, three] = others;
    [one, two, three]
}

async fn leader_of(nodes: &[&Raft]) -> Raft {
    let find = async {
        loop {
            for node in nodes {
                let mut leadership = node.leadership();
                let here = leadership.wait_for(|now| now.here);
                if let Ok(Ok(_)) = timeout(Duration::from_millis(50), here).await {
                    return (*node).clone();
                }
            }
        }
    };
    timeout(PATIENCE, find).await.unwrap()
}

async fn shut(nodes: &[&Raft]) {
    for node in nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_move_and_go_without_a_ghost() {
    let wire = Arc::new(Wire::default());
    let [one, two, three] = three(&wire).await;
    let members = one.members();
    assert_eq!((members.me, members.is_joint), (1, false));
    assert_eq!(members.voters, BTreeSet::from([1, 2, 3]));
    assert!(members.learners.is_empty());
    assert_eq!(members.matched.keys().copied().collect::<Vec<_>>(), [2, 3]);

    // The same once more changes nothing.
    one.add_learner(2, addr(2)).await.unwrap();
    one.promote(2).await.unwrap();
    assert_eq!(one.members().voters, BTreeSet::from([1, 2, 3]));

    one.remove(3).await.unwrap();
    one.remove(3).await.unwrap();
    let members = one.members();
    assert_eq!(members.voters, BTreeSet::from([1, 2]));
    assert!(members.learners.is_empty() && !members.addrs.contains_key(&3), "{members:?}");

    let four = add(&wire, 4).await;
    one.add_learner(4, addr(4)).await.unwrap();
    assert_eq!(one.members().learners, BTreeSet::from([4]));
    one.remove(4).await.unwrap();
    let members = one.members();
    let all = BTreeMap::from([(1, addr(1)), (2, addr(2))]);
    assert_eq!((members.addrs, members.learners), (all, BTreeSet::new()));

    // What never took part is no learner that one could promote or move.
    let refused = one.promote(9).await;
    assert!(matches!(refused, Err(MemberError::Refused(_))), "{refused:?}");
    let refused = one.readdress(9, addr(9)).await;
    assert!(matches!(refused, Err(MemberError::Refused(_))), "{refused:?}");
    let refused = one.add_learner(9, "x".repeat(1_000)).await;
    assert!(matches!(refused, Err(MemberError::Refused(_))), "{refused:?}");
    assert_eq!(two.remove(1).await, Err(MemberError::NotLeader { leader: Some(1) }));

    one.remove(2).await.unwrap();
    let refused = one.remove(1).await;
    assert!(matches!(refused, Err(MemberError::Refused(_))), "{refused:?}");
    done(&one, 2, &[2; 40]).await;
    shut(&[&one, &two, &three, &four]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moved_is_called_where_it_is() {
    let wire = Arc::new(Wire::default());
    let [one, two, three] = three(&wire).await;
    one.readdress(2, "10.0.0.2:1".into()).await.unwrap();
    assert_eq!(one.members().addrs[&2], "10.0.0.2:1");
    let moved = async {
        let mut number = 100;
        while wire.called.lock().unwrap().get(&2).is_none_or(|addr| addr != "10.0.0.2:1") {
            done(&one, number, &[2; 40]).await;
            number += 1;
        }
    };
    timeout(PATIENCE, moved).await.unwrap();
    agree(&one, &two).await;
    assert_eq!(two.members().addrs[&2], "10.0.0.2:1");
    shut(&[&one, &two, &three]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_hands_over_within_its_budget() {
    let wire = Arc::new(Wire::default());
    let nodes = three(&wire).await;
    let refs: Vec<&Raft> = nodes.iter().collect();
    let mut spent = Vec::new();
    for number in 2..8 {
        let leader = leader_of(&refs).await;
        let began = Instant::now();
        let next = leader.hand_over().await.unwrap();
        assert_ne!(next, leader.members().me);
        let next = wire.nodes.lock().unwrap()[&next].clone();
        // The old leader may hear of the new one before that one has told itself.
        let mut leadership = next.leadership();
        let leads = timeout(Duration::from_secs(1), leadership.wait_for(|now| now.here)).await;
        // Unless this machine is so busy that there was another election.
        if matches!(leads, Ok(Ok(_)))
            && next.propose(id(number), create(number, &[2; 40])).await.is_ok()
        {
            spent.push(began.elapsed());
        }
    }
    spent.sort_unstable();
    println!("handing over, then one write: {spent:?}");
    // The budget is 0.2 s; the fastest half of them, for this machine may be busy.
    assert!(spent.len() >= 3 && spent[2] < Duration::from_millis(200), "{spent:?}");
    let leader = leader_of(&refs).await.members().me;
    let follower = nodes.iter().find(|node| node.members().me != leader).unwrap();
    assert!(matches!(follower.hand_over().await, Err(MemberError::NotLeader { .. })));
    shut(&refs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_heirs_are_gone_leads_on() {
    let wire = Arc::new(Wire::default());
    let one = first(&wire).await;
    let refused = one.hand_over().await;
    assert!(matches!(refused, Err(MemberError::Refused(_))), "{refused:?}");
    let two = add(&wire, 2).await;
    one.add_learner(2, addr(2)).await.unwrap();
    let refused = one.hand_over().await;
    assert!(matches!(refused, Err(MemberError::Refused(_))), "a learner cannot lead: {refused:?}");
    let three = add(&wire, 3).await;
    one.promote(2).await.unwrap();
    one.add_learner(3, addr(3)).await.unwrap();
    one.promote(3).await.unwrap();
    // The first one to be asked has gone; the next takes over, or this one leads on.
    wire.cut.lock().unwrap().insert(2);
    let next = one.hand_over().await;
    assert!(matches!(next, Ok(3) | Err(MemberError::Timeout)), "{next:?}");
    let leader = leader_of(&[&one, &three]).await;
    done(&leader, 2, &[2; 40]).await;
    shut(&[&one, &two, &three]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_answers_no_read_and_says_so() {
    let wire = Arc::new(Wire::default());
    let [one, two, three] = three(&wire).await;
    one.read_index().await.unwrap();
    wire.cut.lock().unwrap().insert(1);
    let began = Instant::now();
    let read = one.read_index().await;
    assert!(matches!(read, Err(ReadError::Timeout | ReadError::NotLeader { .. })), "{read:?}");
    assert!(began.elapsed() < READ_WAIT + Duration::from_secs(1), "{:?}", began.elapsed());
    let mut leadership = one.leadership();
    let aware = leadership.wait_for(|now| !now.here && now.leader.is_none());
    timeout(PATIENCE, aware).await.unwrap().unwrap();
    let refused = one.propose(id(9), create(9, &[9; 40])).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: None }));
    // The others go on, and reads on a follower see what they acknowledge.
    let leader = leader_of(&[&two, &three]).await;
    done(&leader, 5, &[5; 40]).await;
    let at = leader.read_index().await.unwrap();
    let follower = if leader.members().me == 2 { &three } else { &two };
    assert!(follower.wait_applied(at, PATIENCE).await);
    assert!(follower.view(|state| state.material(&id(5)).is_some()));
    assert!(!one.wait_applied(at, Duration::from_millis(20)).await);
    // And it comes back.
    wire.cut.lock().unwrap().clear();
    assert!(one.wait_applied(at, PATIENCE).await);
    shut(&[&one, &two, &three]).await;
}

/// A leader that dies between the two halves of a change leaves a joint membership.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_ends_a_change_left_half_done() {
    let wire = Arc::new(Wire::default());
    let [one, two, three] = three(&wire).await;
    let four = add(&wire, 4).await;
    one.add_learner(4, addr(4)).await.unwrap();
    // The first half gets to the second node and is not committed; the call that would do the
    // other half ends.
    wire.cut.lock().unwrap().extend([3, 4]);
    let raft = one.0.raft.clone();
    let held = Arc::clone(&one.0.changing).lock_owned().await;
    let change = ChangeMembers::<u64, openraft::BasicNode>::AddVoterIds([4].into());
    let half = tokio::spawn(async move { drop(raft.change_membership(change, false).await) });
    let joint = async {
        while !one.members().is_joint || !two.members().is_joint {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, joint).await.unwrap();
    half.abort();
    wire.cut.lock().unwrap().clear();
    let mut leadership = one.leadership();
    timeout(PATIENCE, leadership.wait_for(|now| now.here)).await.unwrap().unwrap();
    // Without a change under way here it would end this one itself.
    let next = one.hand_over().await.unwrap();
    drop(held);
    let leader = wire.nodes.lock().unwrap()[&next].clone();
    let flat = async {
        let mut applied = leader.applied();
        while leader.members().is_joint {
            applied.changed().await.unwrap();
        }
    };
    timeout(PATIENCE, flat).await.unwrap();
    let removed = async {
        // The end of the change is there, and may not be committed yet.
        while let Err(e) = leader.remove(4).await {
            assert_eq!(e, MemberError::InProgress);
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, removed).await.unwrap();
    assert_eq!(leader.members().voters, BTreeSet::from([1, 2, 3]));
    shut(&[&one, &two, &three, &four]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_waits_to_be_added_never_leads() {
    let wire = Arc::new(Wire::default());
    let one = first(&wire).await;
    let two = add(&wire, 2).await;
    assert!(!two.is_initialized().await.unwrap());
    one.add_learner(2, addr(2)).await.unwrap();
    let at = one.read_index().await.unwrap();
    assert!(two.wait_applied(at, PATIENCE).await);
    let term = one.leadership().borrow().term;
    // Without its leader a learner stays one, and does not raise the term.
    wire.cut.lock().unwrap().insert(1);
    let mut leadership = two.leadership();
    let leads = leadership.wait_for(|now| now.here || now.term > term);
    assert!(timeout(Duration::from_millis(1_500), leads).await.is_err());
    shut(&[&one, &two]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_work_still_hears_of_its_quorum() {
    let wire = Arc::new(Wire::default());
    let [one, two, three] = three(&wire).await;
    let mut leadership = one.leadership();
    let lapses = leadership.wait_for(|now| !now.here);
    assert!(timeout(QUORUM_LAPSE * 3, lapses).await.is_err());
    one.read_index().await.unwrap();
    shut(&[&one, &two, &three]).await;
}
