//! Peers that lie, disks of followers that fill up, and snapshots on their way.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use skep_core::codec;
use tokio::time::timeout;

use crate::answer::{Incoming, Step};
use crate::disk::{Disk, DiskFile};
use crate::limits::{READ_ENTRIES, REQUEST_BYTES, SNAPSHOT_BYTES};
use crate::message::{Append, Campaign, Content, Line, Reply, Request, SnapshotPart, Transfer};
use crate::samples::{create, id, records, state};
use crate::testing::CrashDisk;
use crate::types::{Covered, Members, Opaque, Position, VoteRecord, VoterSet};
use crate::wire_tests::{PATIENCE, Wire, add, add_on, agree, done, first};
use crate::{AnswerError, MemberError};

const VOTE: VoteRecord = VoteRecord { term: 3, node: 1, committed: true };

fn at(term: u64, index: u64) -> Option<Position> {
    Some(Position { term, index })
}

fn line(term: u64, index: u64) -> Line {
    Line { at: Position { term, index }, content: Content::Blank }
}

fn append(vote: VoteRecord, previous: Option<Position>, entries: Vec<Line>) -> Request {
    Request::Append(Append { vote, previous, entries, committed: None, digest: None })
}

fn members() -> Members {
    Members { voters: vec![VoterSet(vec![1])], nodes: [(1, "a:1".into())].into() }
}

fn part(number: u64, records: Vec<Opaque>, last: bool) -> SnapshotPart {
    let covered = Covered { last: at(2, 9), members_at: at(1, 3), members: members() };
    SnapshotPart { vote: VOTE, covered, number, records, last }
}

fn covering(covered: Covered) -> Request {
    Request::Snapshot(SnapshotPart { covered, ..part(0, Vec::new(), true) })
}

/// What no peer may say, by what is wrong with it.
fn absurd() -> Vec<Request> {
    let far = VoteRecord { term: u64::MAX, ..VOTE };
    let open = VoteRecord { committed: false, ..VOTE };
    let campaign = |vote, last| Campaign { vote, last, transfer: false };
    let with = |members| {
        let content = Content::Members(members);
        append(VOTE, None, vec![Line { at: Position { term: 1, index: 0 }, content }])
    };
    let nodes = |count: u64| (1..=count).map(|id| (id, String::new())).collect();
    let one = || vec![VoterSet(vec![1])];
    vec![
        append(far, None, vec![]),
        append(VOTE, at(1, u64::MAX), vec![]),
        append(VOTE, at(u64::MAX, 1), vec![]),
        append(VOTE, at(1, u64::MAX - 1), vec![line(1, u64::MAX)]),
        append(VOTE, at(4, 1), vec![]),
        append(open, None, vec![line(1, 0)]),
        append(VOTE, at(1, 4), vec![line(1, 6)]),
        append(VOTE, at(1, 4), vec![line(1, 5), line(1, 5)]),
        append(VOTE, at(2, 4), vec![line(1, 5)]),
        append(VOTE, at(1, 4), vec![line(4, 5)]),
        append(VOTE, None, vec![line(1, 7)]),
        with(Members { voters: vec![], nodes: nodes(1) }),
        with(Members { voters: vec![VoterSet(vec![])], nodes: nodes(1) }),
        with(Members { voters: vec![VoterSet(vec![7])], nodes: nodes(1) }),
        with(Members { voters: one(), nodes: [(1, "x".repeat(1_000))].into() }),
        Request::Vote(campaign(VoteRecord { committed: false, ..far }, None)),
        Request::PreVote(campaign(open, at(1, u64::MAX))),
        Request::Vote(campaign(VOTE, None)),
        Request::Transfer(Transfer { leader: open, to: 2, last: None }),
        Request::Transfer(Transfer { leader: VOTE, to: 2, last: at(1, u64::MAX) }),
        covering(Covered { last: at(1, u64::MAX), members_at: at(1, 3), members: members() }),
        covering(Covered { last: at(1, 3), members_at: at(1, 4), members: members() }),
        covering(Covered { last: at(1, 3), members_at: None, members: members() }),
        covering(Covered { last: at(1, 3), members_at: at(1, 3), members: Members::default() }),
        covering(Covered { last: at(9, 3), members_at: at(1, 3), members: members() }),
        Request::Snapshot(part(0, Vec::new(), false)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_peer_may_say_does_not_reach_openraft() {
    let wire = Arc::new(Wire::default());
    let one = first(&wire).await;
    let two = add(&wire, 2).await;
    for request in absurd() {
        let refused = two.answer(1, &codec::encode(&request)).await;
        assert!(matches!(refused, Err(AnswerError::Malformed(_))), "{request:?}: {refused:?}");
    }
    let large = two.answer(1, &vec![0; REQUEST_BYTES + 1]).await;
    assert!(matches!(large, Err(AnswerError::TooLarge { .. })), "{large:?}");
    // More entries than fit a message of ours, and a list that claims to be endless.
    let many = (0..=READ_ENTRIES).map(|index| line(1, index)).collect();
    let many = codec::encode(&append(VOTE, None, many));
    let vote = codec::encode(&VOTE);
    let endless = [&[0x82, 0, 0x81, 0xa2, 0][..], &vote, &[2, 0x9b], &[0xff; 8]].concat();
    for bytes in [many, endless] {
        let refused = two.answer(1, &bytes).await;
        assert!(matches!(refused, Err(AnswerError::Malformed(_))), "{refused:?}");
    }
    // It is as it was, and takes part.
    assert_eq!(two.leadership().borrow().term, 0);
    one.add_learner(2, "127.0.0.1:2".into()).await.unwrap();
    one.promote(2).await.unwrap();
    done(&one, 2, &[2; 40]).await;
    agree(&one, &two).await;
    one.shutdown().await;
    two.shutdown().await;
}

#[test]
fn a_snapshot_comes_in_order_and_has_an_end() {
    let incoming = Incoming::up_to(skep_core::format::FORMAT);
    let head = Opaque(records(&state(&[])).remove(0));
    let push = |number| incoming.push(part(number, vec![head.clone()], false));
    let begins = |step| matches!(step, Ok(Step::Answer(Reply::Begin)));
    assert!(begins(push(1)), "the second part first");
    assert!(matches!(push(0), Ok(Step::Answer(Reply::NextPart))));
    assert!(begins(push(2)), "a part left out");
    assert!(begins(push(1)), "what came before is forgotten");

    let whole = state(&vec![500_000; 140]);
    let mut bytes = 0;
    let mut refused = None;
    for (record, number) in records(&whole).into_iter().zip(0..) {
        bytes += record.len() as u64;
        match incoming.push(part(number, vec![Opaque(record)], false)) {
            Ok(Step::Answer(Reply::NextPart)) => {}
            Err(e) => {
                refused = Some(e);
                break;
            }
            Ok(_) => panic!("part {number} is not taken"),
        }
    }
    assert!(matches!(refused, Some(AnswerError::Malformed(_))), "{refused:?}");
    assert!(bytes <= SNAPSHOT_BYTES + 600_000, "{bytes}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_believes_no_follower_that_lies() {
    let wire = Arc::new(Wire::default());
    let one = first(&wire).await;
    let two = add(&wire, 2).await;
    one.add_learner(2, "127.0.0.1:2".into()).await.unwrap();
    done(&one, 2, &[2; 40]).await;
    agree(&one, &two).await;
    let term = one.leadership().borrow().term;
    let far = VoteRecord { term: u64::MAX, node: 2, committed: false };
    let lies = [
        Reply::AppendedUpTo(at(1, u64::MAX)),
        Reply::AppendedUpTo(at(1, 1 << 40)),
        Reply::HigherVote(far),
        Reply::Conflict,
        Reply::AppendedUpTo(None),
        Reply::Vote { vote: far, granted: true, last: None },
        Reply::Snapshot(far),
        Reply::NextPart,
        Reply::Begin,
    ];
    for (lie, number) in lies.into_iter().zip(10..) {
        wire.lies.lock().unwrap().insert(2, codec::encode(&lie));
        done(&one, number, &[1; 40]).await;
        // Some heartbeats get it too.
        let _ = one.read_index().await;
        tokio::time::sleep(crate::limits::HEARTBEAT * 3).await;
        let members = one.members();
        let matched = members.matched.get(&2).copied();
        assert!(matched <= Some(members.last), "{lie:?}: {members:?}");
        assert!(one.is_leader() && one.leadership().borrow().term == term, "{lie:?}");
    }
    wire.lies.lock().unwrap().clear();
    done(&one, 50, &[5; 40]).await;
    agree(&one, &two).await;
    one.shutdown().await;
    two.shutdown().await;
}

/// A disk that says that it is nearly full.
#[derive(Debug, Default)]
struct Filling {
    disk: CrashDisk,
    is_short: AtomicBool,
}

impl Disk for Filling {
    fn create(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        self.disk.create(name, bytes)
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.disk.open(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }
    fn space_left(&self) -> io::Result<u64> {
        Ok(if self.is_short.load(Ordering::SeqCst) { 1 } else { u64::MAX })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_disk_is_nearly_full_takes_no_entries_and_follows_on() {
    let wire = Arc::new(Wire::default());
    let one = first(&wire).await;
    let disk = Arc::new(Filling::default());
    let two = add_on(&wire, 2, disk.clone()).await;
    let three = add(&wire, 3).await;
    for number in [2, 3] {
        one.add_learner(number, format!("127.0.0.1:{number}")).await.unwrap();
        one.promote(number).await.unwrap();
    }
    done(&one, 2, &[2; 40]).await;
    agree(&one, &two).await;
    let term = one.leadership().borrow().term;
    disk.is_short.store(true, Ordering::SeqCst);
    let before = disk.disk.ops();
    // What was asked a moment ago is still believed.
    tokio::time::sleep(crate::limits::SPACE_CHECK * 2).await;
    let held = two.metrics().last_index;
    for number in 3..20 {
        done(&one, number, &[2; 40]).await;
    }
    agree(&one, &three).await;
    assert!(two.metrics().last_index <= held.map(|at| at + 1), "{:?} {held:?}", two.metrics());
    assert!(disk.disk.ops() <= before + 4, "it wrote");
    // Heartbeats still come, so it does not campaign for what it cannot have.
    let mut leadership = two.leadership();
    let campaigns = leadership.wait_for(|now| now.term > term);
    assert!(timeout(Duration::from_secs(1), campaigns).await.is_err());
    assert!(one.is_leader());

    disk.is_short.store(false, Ordering::SeqCst);
    agree(&one, &two).await;
    for node in [&one, &two, &three] {
        node.shutdown().await;
    }
}

/// A snapshot of some 25 MB that is cut off in the middle, while writes go on and a second one
/// replaces it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_snapshot_gets_there_in_the_end() {
    let wire = Arc::new(Wire::default());
    let one = first(&wire).await;
    for number in 2..52 {
        done(&one, number, &vec![number as u8; 490_000]).await;
    }
    one.snapshot_now().await.unwrap();
    let two = add(&wire, 2).await;
    *wire.cut_after.lock().unwrap() = Some(6);
    one.add_learner(2, "127.0.0.1:2".into()).await.unwrap();
    let cut = async {
        let mut number = 1_000;
        while !wire.cut.lock().unwrap().contains(&2) {
            done(&one, number, &[1; 400]).await;
            number += 1;
        }
    };
    timeout(PATIENCE, cut).await.unwrap();
    assert_eq!(*two.applied().borrow(), None, "it was cut off before the end");
    // What was on its way is purged from the log, and by now more is needed.
    for number in 60..64 {
        done(&one, number, &vec![number as u8; 490_000]).await;
    }
    one.snapshot_now().await.unwrap();
    wire.cut.lock().unwrap().clear();
    let mut number = 2_000;
    let promoted = async {
        loop {
            done(&one, number, &[1; 400]).await;
            number += 1;
            match one.promote(2).await {
                Ok(()) => return,
                Err(e) => assert!(matches!(e, MemberError::Timeout | MemberError::InProgress)),
            }
        }
    };
    timeout(PATIENCE, promoted).await.unwrap();
    agree(&one, &two).await;
    assert!(two.metrics().snapshot_index.is_some());
    assert!(two.view(|state| state.material(&id(63)).is_some()));
    let outcome = one.propose(id(3_000), create(3_000, &[1; 40])).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    one.shutdown().await;
    two.shutdown().await;
}
