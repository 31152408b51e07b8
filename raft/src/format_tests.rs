//! Managers of this version and the next in one swarm. A node of the next is this code, told that
//! it reads one format more.

use std::sync::Arc;

use minicbor::Encode;
use skep_core::codec::encode;
use skep_core::command::{Command, NodeReport, Outcome};
use skep_core::format::{FORMAT, next};
use skep_core::id::RequestId;
use skep_core::time::Stamp;
use tokio::time::timeout;

use crate::digest_tests::{disks, hook, vote};
use crate::node::Disks;
use crate::samples::{id, init, join, reading};
use crate::types::Payload;
use crate::wire_tests::{PATIENCE, Wire, add_as, agree, done};
use crate::{FatalHook, Raft};

const NEXT: u32 = FORMAT + 1;

fn no_fatal() -> FatalHook {
    FatalHook::new(|reason| panic!("{reason}"))
}

async fn member(leader: &Raft, raft_id: u64) {
    leader.add_learner(raft_id, format!("127.0.0.1:{raft_id}")).await.unwrap();
    vote(leader, raft_id).await;
}

/// What a leader does about the format, whichever version it runs.
async fn tend(leader: &Raft, number: u64) -> u32 {
    let members = leader.members();
    if let Some(to) = leader.view(|state| next(state, &members)) {
        let outcome = leader.propose(id(number), Command::FormatRaise { to }).await;
        assert_eq!(outcome, Ok(Outcome::Done(0)));
    }
    leader.view(skep_core::state::State::format)
}

async fn announce(leader: &Raft, node: u64, format: u32, number: u64) {
    let description = Some(reading(format));
    let report = NodeReport { id: id(node), description, status: None, advertise: None };
    leader.propose(id(number), Command::NodeReport(vec![report])).await.unwrap();
}

/// A swarm of three: the first of this version, the others of the next.
async fn mixed(wire: &Arc<Wire>, first: &Disks) -> [Raft; 3] {
    let one = add_as(wire, 1, first.clone(), FORMAT, no_fatal()).await.unwrap();
    one.initialize().await.unwrap();
    one.propose(id(1), init()).await.unwrap();
    let mut nodes = vec![one];
    for raft_id in [2, 3] {
        let outcome = nodes[0].propose(id(raft_id), join(raft_id, NEXT)).await.unwrap();
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
        nodes.push(add_as(wire, raft_id, disks(), NEXT, no_fatal()).await.unwrap());
        member(&nodes[0], raft_id).await;
    }
    nodes.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_format_stays_until_the_last_manager_is_upgraded() {
    let wire = Arc::new(Wire::default());
    let disk = disks();
    let [one, two, three] = mixed(&wire, &disk).await;
    assert_eq!(tend(&one, 10).await, FORMAT);
    done(&one, 11, &[1; 40]).await;
    agree(&one, &two).await;
    // One of the next version leads: it holds back as well.
    one.shutdown().await;
    wire.nodes.lock().unwrap().remove(&1);
    let (mut from_two, mut from_three) = (two.leadership(), three.leadership());
    let leader = timeout(PATIENCE, async {
        tokio::select! {
            _ = from_two.wait_for(|now| now.here) => &two,
            _ = from_three.wait_for(|now| now.here) => &three,
        }
    });
    let leader = leader.await.unwrap();
    leader.read_index().await.unwrap();
    assert_eq!(tend(leader, 12).await, FORMAT);
    done(leader, 13, &[1; 40]).await;
    // The old one is back and reads on.
    let one = add_as(&wire, 1, disk.clone(), FORMAT, no_fatal()).await.unwrap();
    agree(leader, &one).await;
    one.shutdown().await;

    // Now it is upgraded, and says so.
    let one = add_as(&wire, 1, disk.clone(), NEXT, no_fatal()).await.unwrap();
    announce(leader, 1, NEXT, 14).await;
    assert_eq!(tend(leader, 15).await, NEXT);
    for node in [&one, &two, &three] {
        agree(leader, node).await;
        assert_eq!(node.view(skep_core::state::State::format), NEXT);
    }
    // There is no way back: not for the state, not for a manager.
    let lower = leader.propose(id(16), Command::FormatRaise { to: FORMAT }).await.unwrap();
    assert!(matches!(lower, Outcome::Rejected(_)), "{lower:?}");
    let old = leader.propose(id(17), join(4, FORMAT)).await.unwrap();
    let Outcome::Rejected(rejection) = old else { panic!("{old:?}") };
    let text = rejection.to_string();
    assert!(text.contains("format 2") && text.contains("no newer one than 1"), "{text}");
    // Downgraded it stops at that entry: it is in its log, and the others say that it counts.
    one.shutdown().await;
    let (hook, mut reasons) = hook();
    let text = match add_as(&wire, 1, disk, FORMAT, hook).await {
        Err(e) => e.to_string(),
        Ok(_) => reason(&mut reasons).await,
    };
    assert!(text.contains("to format 2") && text.contains("up to 1"), "{text}");
    two.shutdown().await;
    three.shutdown().await;
}

/// What a later version may write.
#[derive(Encode)]
#[cbor(map)]
struct Later {
    #[n(0)]
    request: RequestId,
    #[n(1)]
    stamp: Stamp,
    #[n(2)]
    command: LaterCommand,
    #[n(3)]
    format: u32,
}

#[derive(Encode)]
enum LaterCommand {
    #[n(99)]
    New(#[n(0)] u64),
}

fn later() -> Payload {
    let (request, stamp, command) = (id(50), Stamp(1), LaterCommand::New(1));
    Payload(encode(&Later { request, stamp, command, format: NEXT }).into())
}

async fn reason(from: &mut tokio::sync::mpsc::Receiver<String>) -> String {
    timeout(PATIENCE, from.recv()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_of_a_later_version_stops_whoever_cannot_read_it() {
    let wire = Arc::new(Wire::default());
    let (hook, mut reasons) = hook();
    let mut nodes = Vec::new();
    for raft_id in [1, 2, 3] {
        let node = add_as(&wire, raft_id, disks(), FORMAT, hook.clone()).await.unwrap();
        nodes.push(node);
    }
    nodes[0].initialize().await.unwrap();
    nodes[0].propose(id(1), init()).await.unwrap();
    member(&nodes[0], 2).await;
    member(&nodes[0], 3).await;
    done(&nodes[0], 10, &[1; 40]).await;
    // It counts before the leader stops, so the next leader takes it over and stops as well.
    assert!(nodes[0].0.raft.client_write(later()).await.is_err());
    for _ in 0..2 {
        let text = reason(&mut reasons).await;
        for part in
            ["log entry", "format 2", "up to 1", concat!("skep ", env!("CARGO_PKG_VERSION"))]
        {
            assert!(text.contains(part), "{text}");
        }
    }
    for node in &nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_later_version_stops_whoever_cannot_read_it() {
    let wire = Arc::new(Wire::default());
    let disk = disks();
    let one = add_as(&wire, 1, disk.clone(), NEXT, no_fatal()).await.unwrap();
    one.initialize().await.unwrap();
    one.propose(id(1), init()).await.unwrap();
    announce(&one, 1, NEXT, 2).await;
    assert_eq!(tend(&one, 3).await, NEXT);
    done(&one, 4, &[1; 40]).await;
    // By way of the log.
    let (by_log, mut from_two) = hook();
    add_as(&wire, 2, disks(), FORMAT, by_log).await.unwrap();
    one.add_learner(2, "127.0.0.1:2".into()).await.unwrap();
    let text = reason(&mut from_two).await;
    assert!(text.contains("to format 2") && text.contains("up to 1"), "{text}");
    wire.nodes.lock().unwrap().remove(&2);
    one.remove(2).await.unwrap();
    // By way of a snapshot.
    one.snapshot_now().await.unwrap();
    let (by_snapshot, mut from_three) = hook();
    add_as(&wire, 3, disks(), FORMAT, by_snapshot).await.unwrap();
    one.add_learner(3, "127.0.0.1:3".into()).await.unwrap();
    let text = reason(&mut from_three).await;
    assert!(text.contains("snapshot has format 2") && text.contains("up to 1"), "{text}");
    // From its own disk.
    one.shutdown().await;
    let (unheard, _) = hook();
    let downgraded = add_as(&wire, 1, disk, FORMAT, unheard).await.unwrap_err();
    let text = format!("{downgraded:?} {downgraded}");
    assert!(text.contains("format 2") && text.contains("up to 1"), "{text}");
}
