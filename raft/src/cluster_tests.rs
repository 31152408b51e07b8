//! Several nodes over a wire in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::BasicNode;
use skep_core::command::Outcome;
use skep_core::time::Stamp;
use tokio::time::timeout;

use crate::network::{Answer, Peer, Transport, TransportError};
use crate::node::Disks;
use crate::samples::{create, id, init, records};
use crate::testing::CrashDisk;
use crate::{AnswerError, Config, FatalHook, ProposeError, Raft, StorageKey};

const PATIENCE: Duration = Duration::from_secs(30);

/// Carries messages between nodes of this process, unless one of the two is cut off.
#[derive(Debug, Default)]
struct Wire {
    nodes: Mutex<BTreeMap<u64, Raft>>,
    cut: Mutex<BTreeSet<u64>>,
}

#[derive(Debug, Clone)]
struct End {
    from: u64,
    wire: Arc<Wire>,
}

impl Transport for End {
    fn call(&self, peer: Peer, request: Vec<u8>) -> Answer<'_> {
        Box::pin(async move {
            let to = peer.raft_id;
            let is_cut = |id| self.wire.cut.lock().unwrap().contains(&id);
            let unreachable = |peer| {
                let source = io::ErrorKind::NotConnected.into();
                TransportError::Unreachable { peer, source }
            };
            if is_cut(self.from) || is_cut(to) {
                return Err(unreachable(peer));
            }
            let node = self.wire.nodes.lock().unwrap().get(&to).cloned();
            let Some(node) = node else { return Err(unreachable(peer)) };
            let answer = node.answer(self.from, &request).await;
            if is_cut(self.from) || is_cut(to) {
                return Err(unreachable(peer));
            }
            answer.map_err(|e| TransportError::Broken { peer, source: io::Error::other(e) })
        })
    }
}

async fn add(wire: &Arc<Wire>, raft_id: u64) -> Raft {
    let config = Config {
        dir: "unused".into(),
        storage_key: StorageKey::new([raft_id as u8; 32]),
        raft_id,
        addr: format!("127.0.0.1:{raft_id}"),
        on_fatal: FatalHook::new(|reason| panic!("{reason}")),
    };
    let disks =
        Disks { log: Arc::new(CrashDisk::default()), snapshots: Arc::new(CrashDisk::default()) };
    let end = Arc::new(End { from: raft_id, wire: Arc::clone(wire) });
    let node = Raft::start_on(disks, config, Arc::new(|| Stamp(1)), end).await.unwrap();
    wire.nodes.lock().unwrap().insert(raft_id, node.clone());
    node
}

async fn done(node: &Raft, number: u64, payload: &[u8]) {
    let outcome = node.propose(id(number), create(number, payload)).await.unwrap();
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
}

async fn first(wire: &Arc<Wire>) -> Raft {
    let node = add(wire, 1).await;
    node.initialize().await.unwrap();
    node.propose(id(1), init()).await.unwrap();
    node
}

async fn learn(leader: &Raft, raft_id: u64) {
    let node = BasicNode { addr: format!("127.0.0.1:{raft_id}") };
    let learned = leader.0.raft.add_learner(raft_id, node, true);
    timeout(PATIENCE, learned).await.unwrap().unwrap();
}

/// Waits until both hold the same.
async fn agree(one: &Raft, other: &Raft) {
    let mut applied = other.applied();
    let upto = *one.applied().borrow();
    timeout(PATIENCE, applied.wait_for(|at| *at >= upto)).await.unwrap().unwrap();
    assert_eq!(one.view(records), other.view(records));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swarm_survives_its_leader_and_takes_it_back() {
    let wire = Arc::new(Wire::default());
    let one = first(&wire).await;
    let two = add(&wire, 2).await;
    let three = add(&wire, 3).await;
    learn(&one, 2).await;
    learn(&one, 3).await;
    one.0.raft.change_membership([1, 2, 3], false).await.unwrap();
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
