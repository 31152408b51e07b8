//! Managers whose states differ though they applied the same log.

use std::sync::Arc;

use skep_core::command::Proposal;
use skep_core::format::FORMAT;
use skep_core::time::Stamp;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::limits::DIGEST_ENTRIES;
use crate::node::Disks;
use crate::samples::{create, id};
use crate::testing::CrashDisk;
use crate::wire_tests::{PATIENCE, Wire, add_as, agree, done, first, learn};
use crate::{FatalHook, Raft};

pub(crate) fn disks() -> Disks {
    let disk = CrashDisk::default();
    Disks { log: Arc::new(disk.clone()), snapshots: Arc::new(disk.beside()) }
}

/// Reasons that a test may leave unread.
const REASONS: usize = 16;

/// A hook that tells the test.
pub(crate) fn hook() -> (FatalHook, mpsc::Receiver<String>) {
    let (told, reasons) = mpsc::channel(REASONS);
    let hook = FatalHook::new(move |reason| {
        // A test that has ended listens no more, and one reason too many says nothing new.
        let _ = told.try_send(reason.to_owned());
    });
    (hook, reasons)
}

/// A manager that follows, and what stops it.
async fn follow(wire: &Arc<Wire>, leader: &Raft, raft_id: u64) -> (Raft, mpsc::Receiver<String>) {
    let (hook, reasons) = hook();
    let node = add_as(wire, raft_id, disks(), FORMAT, hook).await.unwrap();
    learn(leader, raft_id).await;
    vote(leader, raft_id).await;
    (node, reasons)
}

/// Lets a learner vote. What the leader tells of its members may be a moment old: the daemon tries
/// again as well.
pub(crate) async fn vote(leader: &Raft, raft_id: u64) {
    let voted = async {
        while leader.promote(raft_id).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, voted).await.unwrap();
}

fn spoil(node: &Raft) {
    let proposal = Proposal::new(id(9_000), Stamp(1), create(9_000, &[1; 40]));
    let outcome = node.0.shared.spoil(&proposal);
    assert!(matches!(outcome, skep_core::command::Outcome::Done(_)), "{outcome:?}");
}

/// Proposes until the leader has digested one state more, and these have digested the same.
async fn digested(leader: &Raft, number: &mut u64, nodes: &[&Raft]) -> u64 {
    let latest = |node: &Raft| node.0.shared.digests().latest();
    let before = latest(leader).map_or(0, |digest| digest.index);
    let all = async {
        loop {
            done(leader, *number, &[1; 40]).await;
            *number += 1;
            let now = latest(leader).filter(|digest| digest.index > before);
            let Some(now) = now else { continue };
            let mut seen = nodes.iter().map(|node| node.0.shared.digests().made(now.index));
            if seen.all(|made| made.is_some()) {
                return now.index;
            }
        }
    };
    timeout(PATIENCE, all).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_differs_stops_its_manager() {
    let wire = Arc::new(Wire::default());
    let one = first(&wire).await;
    let (two, mut from_two) = follow(&wire, &one, 2).await;
    let (three, mut from_three) = follow(&wire, &one, 3).await;
    let mut number = 10;
    let index = digested(&one, &mut number, &[&two, &three]).await;
    assert_eq!(index % DIGEST_ENTRIES, 0);
    agree(&one, &two).await;

    spoil(&two);
    let told = async {
        loop {
            done(&one, number, &[1; 40]).await;
            number += 1;
            if let Ok(reason) = from_two.try_recv() {
                return reason;
            }
        }
    };
    let reason = timeout(PATIENCE, told).await.unwrap();
    let named = reason.split_whitespace().find_map(|word| word.parse::<u64>().ok()).unwrap();
    assert!(named > index && named % DIGEST_ENTRIES == 0, "{reason}");
    assert!(reason.contains("differs from the leader's"), "{reason}");
    // The others agree and go on.
    digested(&one, &mut number, &[&three]).await;
    agree(&one, &three).await;
    assert!(from_three.try_recv().is_err());
    for node in [&one, &two, &three] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_in_between_changes_nothing() {
    let wire = Arc::new(Wire::default());
    let one = first(&wire).await;
    let mut number = 10;
    digested(&one, &mut number, &[]).await;
    one.snapshot_now().await.unwrap();
    let (two, mut from_two) = follow(&wire, &one, 2).await;
    assert!(two.metrics().snapshot_index.is_some());
    digested(&one, &mut number, &[&two]).await;
    // It misses some, is sent a snapshot again, and goes on.
    let (three, mut from_three) = follow(&wire, &one, 3).await;
    wire.cut.lock().unwrap().insert(2);
    digested(&one, &mut number, &[&three]).await;
    one.snapshot_now().await.unwrap();
    wire.cut.lock().unwrap().clear();
    digested(&one, &mut number, &[&two, &three]).await;
    agree(&one, &two).await;
    assert!(from_two.try_recv().is_err() && from_three.try_recv().is_err());
    // What a snapshot brought is compared from then on.
    spoil(&two);
    let told = async {
        while from_two.try_recv().is_err() {
            done(&one, number, &[1; 40]).await;
            number += 1;
        }
    };
    timeout(PATIENCE, told).await.unwrap();
    for node in [&one, &two, &three] {
        node.shutdown().await;
    }
}
