//! Several nodes over a wire in memory.

use std::sync::Arc;

use tokio::time::timeout;

use crate::digest_tests::vote;
use crate::samples::{create, id, init};
use crate::wire_tests::{PATIENCE, Wire, add, agree, done, first, learn};
use crate::{AnswerError, ProposeError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swarm_survives_its_leader_and_takes_it_back() {
    let wire = Arc::new(Wire::default());
    let one = first(&wire).await;
    let two = add(&wire, 2).await;
    let three = add(&wire, 3).await;
    learn(&one, 2).await;
    learn(&one, 3).await;
    vote(&one, 2).await;
    vote(&one, 3).await;
    done(&one, 2, &[2; 40]).await;
    agree(&one, &two).await;
    agree(&one, &three).await;
    assert_eq!(two.propose(id(3), init()).await, Err(ProposeError::NotLeader { leader: Some(1) }));

    wire.cut.lock().unwrap().insert(1);
    // Nobody hears of this one, so nobody may say that it is done.
    let lost = tokio::spawn({
        let one = one.clone();
        async move { one.propose(id(4), create(4, &[4; 40])).await }
    });
    let (mut from_two, mut from_three) = (two.leadership(), three.leadership());
    let leader = timeout(PATIENCE, async {
        tokio::select! {
            _ = from_two.wait_for(|leadership| leadership.here) => &two,
            _ = from_three.wait_for(|leadership| leadership.here) => &three,
        }
    });
    let leader = leader.await.unwrap();
    let term = leader.leadership().borrow().term;
    assert!(term > one.leadership().borrow().term);
    leader.read_index().await.unwrap();
    done(leader, 5, &[5; 40]).await;
    assert_eq!(lost.await.unwrap(), Err(ProposeError::Unknown));

    wire.cut.lock().unwrap().clear();
    let mut back = one.leadership();
    let follows = back.wait_for(|now| now.term >= term && !now.here && now.leader.is_some());
    timeout(PATIENCE, follows).await.unwrap().unwrap();
    done(leader, 6, &[6; 40]).await;
    agree(leader, &one).await;
    assert!(one.view(|state| state.material(&id(4)).is_none()));
    for node in [&one, &two, &three] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_gets_a_snapshot_in_parts() {
    let wire = Arc::new(Wire::default());
    let one = first(&wire).await;
    for number in 2..12 {
        done(&one, number, &vec![number as u8; 400_000]).await;
    }
    one.snapshot_now().await.unwrap();
    done(&one, 12, &[12; 40]).await;
    let two = add(&wire, 2).await;
    learn(&one, 2).await;
    agree(&one, &two).await;
    assert!(two.metrics().snapshot_index.is_some());
    one.shutdown().await;
    two.shutdown().await;
}

#[tokio::test]
async fn nobody_speaks_for_another_and_nonsense_is_refused() {
    let wire = Arc::new(Wire::default());
    let one = first(&wire).await;
    let two = add(&wire, 2).await;
    let campaign = crate::message::Request::Vote(crate::message::Campaign {
        vote: crate::types::VoteRecord { term: 9, node: 1, committed: false },
        last: None,
        transfer: false,
    });
    let campaign = skep_core::codec::encode(&campaign);
    let refused = two.answer(3, &campaign).await;
    assert!(matches!(refused, Err(AnswerError::Imposter { from: 3, claimed: 1 })), "{refused:?}");
    assert!(two.answer(1, &campaign).await.is_ok());
    for bytes in [&b""[..], b"\xff", b"\x82\x00\x80", &[0x9f; 4_000]] {
        let refused = two.answer(1, bytes).await;
        assert!(matches!(refused, Err(AnswerError::Malformed(_))), "{refused:?}");
    }
    one.shutdown().await;
    two.shutdown().await;
}
