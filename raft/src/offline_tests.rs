//! Going on alone, and another storage key, each cut short at every change to the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use skep_core::codec;
use skep_core::command::{Outcome, Proposal};
use skep_core::format::FORMAT;
use skep_core::time::Stamp;

use crate::disk::Disk;
use crate::key::Keys;
use crate::log::{Log, lock};
use crate::network::Alone;
use crate::node::Disks;
use crate::offline::{OfflineError, Recovery, recover_on, rekey_on};
use crate::record::Write;
use crate::samples::{create, id, init, records, state};
use crate::segment::{Segment, seq_of};
use crate::snapshot::{SnapshotError, Snapshots};
use crate::testing::{Bytes, CrashDisk, Fault, Survival};
use crate::types::{
    Entry, EntryPayload, LogId, Membership, Payload, Position, SnapshotMeta, StoredMembership,
    VoteRecord,
};
use crate::{Config, FatalHook, Raft, StorageKey};

const OLD: [u8; 32] = [3; 32];
const NEW: [u8; 32] = [4; 32];
const ADDR: &str = "10.0.0.9:2377";

fn key(bytes: [u8; 32]) -> Arc<StorageKey> {
    Arc::new(StorageKey::new(bytes))
}

fn only(bytes: [u8; 32]) -> Keys {
    Keys::one(key(bytes))
}

fn both() -> Keys {
    Keys { new: key(NEW), old: Some(key(OLD)) }
}

fn on(disk: &CrashDisk) -> Disks {
    Disks { log: Arc::new(disk.clone()), snapshots: Arc::new(disk.beside()) }
}

fn members(voters: &[u64]) -> Membership {
    Membership::new_with_defaults(vec![voters.iter().copied().collect()], voters.iter().copied())
}

fn entry(term: u64, index: u64, payload: EntryPayload) -> Entry {
    Entry { log_id: LogId::from(Position { term, index }), payload }
}

fn secret(term: u64, index: u64, number: u64) -> Write {
    let command = create(number, &[number as u8; 500]);
    let proposal = Proposal::new(id(number + 50), Stamp(number), command);
    let payload = Payload(codec::encode(&proposal).into());
    Write::Entry(entry(term, index, EntryPayload::Normal(payload)))
}

/// One of three managers: a snapshot with the secrets 2 and 3 up to entry 9, then entries up to
/// 15, of which 12 is known to be committed. The last but one would add a manager.
fn survivor(bytes: [u8; 32]) -> CrashDisk {
    let disk = CrashDisk::default();
    let snapshots = Snapshots::new(Arc::new(disk.beside()), key(bytes));
    let at = LogId::from(Position { term: 2, index: 9 });
    let last_membership = StoredMembership::new(Some(at), members(&[1, 2, 3]));
    let meta = SnapshotMeta { last_log_id: Some(at), last_membership };
    snapshots.write(&state(&[300, 40_000]), &meta).unwrap();
    let mut log = Log::open(Arc::new(disk.clone()), key(bytes)).unwrap();
    let index = log.index();
    let mut write = |writes: &[Write]| {
        for write in writes {
            if let Write::Entry(entry) = write {
                lock(&index).push(entry.clone(), None).unwrap();
            }
        }
        log.write(writes).unwrap();
    };
    write(&[Write::Purged(Position { term: 2, index: 8 })]);
    lock(&index).purge(Position { term: 2, index: 8 });
    write(&[Write::Vote(VoteRecord { term: 5, node: 3, committed: true })]);
    write(&[Write::Entry(entry(2, 9, EntryPayload::Blank)), secret(2, 10, 4)]);
    write(&[secret(3, 11, 5), secret(3, 12, 6)]);
    write(&[Write::Committed(Position { term: 3, index: 12 })]);
    write(&[secret(5, 13, 7)]);
    write(&[Write::Entry(entry(5, 14, EntryPayload::Membership(members(&[1, 2, 3, 4]))))]);
    write(&[secret(5, 15, 8)]);
    log.close().unwrap();
    drop(log);
    disk
}

/// What the survivor's state is with all of its log applied.
fn whole() -> Vec<Vec<u8>> {
    let mut all = state(&[300, 40_000]);
    for number in 4..=8 {
        let command = create(number, &[number as u8; 500]);
        let proposal = Proposal::new(id(number + 50), Stamp(number), command);
        let outcome = skep_core::apply::apply(&mut all, &proposal, &mut Vec::new());
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    }
    records(&all)
}

async fn start(disk: &CrashDisk, bytes: [u8; 32]) -> Raft {
    let config = Config {
        dir: "unused".into(),
        storage_key: StorageKey::new(bytes),
        raft_id: 1,
        addr: ADDR.into(),
        on_fatal: FatalHook::new(|_| {}),
        format: FORMAT,
    };
    let clock = AtomicU64::new(1_000_000_000);
    let clock = Arc::new(move || Stamp(clock.fetch_add(1, Ordering::Relaxed)));
    Raft::start_on(on(disk), config, clock, Arc::new(Alone)).await.unwrap()
}

/// It leads alone, holds all, and goes on, in a term that nobody has seen.
async fn leads_alone(disk: &CrashDisk, point: &str) {
    let node = start(disk, OLD).await;
    let members = node.members();
    assert_eq!(members.voters, [1].into(), "{point}");
    assert_eq!(members.addrs, [(1, ADDR.to_owned())].into(), "{point}");
    assert!(node.leadership().borrow().here, "{point}");
    assert!(node.leadership().borrow().term > 5, "{point}");
    assert_eq!(node.view(records), whole(), "{point}");
    let outcome = node.propose(id(90), create(90, &[9; 40])).await;
    assert!(matches!(outcome, Ok(Outcome::Done(_))), "{point}: {outcome:?}");
    node.shutdown().await;
}

fn survivals(disk: &CrashDisk) -> Vec<Survival> {
    let ways = [Bytes::Lost, Bytes::Kept, Bytes::Every(0), Bytes::Any(7)];
    let names = 0..=disk.unsynced_names();
    names.flat_map(|names| ways.map(|bytes| Survival { names, bytes })).collect()
}

#[tokio::test]
async fn a_survivor_goes_on_alone_with_all_it_has() {
    let disk = survivor(OLD);
    let found = recover_on(&on(&disk), &only(OLD), 1, ADDR).unwrap();
    assert_eq!(found, Recovery { last_index: 15, committed_index: 12 });
    leads_alone(&disk, "whole").await;
    // Once more, and after it went on.
    recover_on(&on(&disk), &only(OLD), 1, ADDR).unwrap();
    let node = start(&disk, OLD).await;
    assert!(node.is_leader() && node.view(|state| state.material(&id(90)).is_some()));
    node.shutdown().await;

    let empty = recover_on(&on(&CrashDisk::default()), &only(OLD), 1, ADDR);
    assert!(matches!(empty, Err(OfflineError::Empty)), "{empty:?}");
}

#[tokio::test]
async fn going_on_alone_leaves_the_old_state_or_the_new_one() {
    let (mut points, mut old, mut new) = (0, 0, 0);
    for at in 0.. {
        let disk = survivor(OLD).copy();
        let first = disk.ops();
        disk.fault(Fault::Stop { at: first + at, torn: 700 });
        let done = recover_on(&on(&disk), &only(OLD), 1, ADDR).is_ok();
        if disk.hit().is_none() {
            assert!(done);
            break;
        }
        points += 1;
        for survival in survivals(&disk) {
            let point = format!("point {at}, {:?}, {survival:?}", disk.hit());
            let left = disk.crash_to(survival);
            let snapshots = Snapshots::new(Arc::new(left.beside()), key(OLD));
            let found = snapshots.open().unwrap_or_else(|e| panic!("{point}: {e}")).unwrap();
            let voters: Vec<u64> = found.meta.last_membership.membership().voter_ids().collect();
            if voters == [1] {
                new += 1;
                assert_eq!(records(&found.state().unwrap()), whole(), "{point}");
                leads_alone(&left, &point).await;
            } else {
                old += 1;
                assert_eq!(voters, [1, 2, 3], "{point}");
                let found = recover_on(&on(&left), &only(OLD), 1, ADDR);
                let found = found.unwrap_or_else(|e| panic!("{point}: {e}"));
                assert_eq!(found, Recovery { last_index: 15, committed_index: 12 }, "{point}");
                leads_alone(&left, &point).await;
            }
        }
    }
    println!("{points} points, {old} left the old state, {new} the new one");
    assert!(points > 15 && old > 0 && new > 0);
}

/// No file opens with `bytes`, and the state is whole with `NEW`.
fn all_is_new(disk: &CrashDisk, point: &str) {
    let log: Arc<dyn Disk> = Arc::new(disk.clone());
    for name in log.list().unwrap() {
        if seq_of(&name).is_some() {
            let opened = |keys| Segment::open(&*log, &keys, &name).unwrap().is_some();
            assert!(!opened(only(OLD)) && opened(only(NEW)), "{point}: {name}");
        } else {
            let bytes = &disk.contents()[&name];
            assert!(bytes.iter().all(|byte| *byte == 0), "{point}: {name} holds something");
        }
    }
    assert_eq!(disk.beside().contents().len(), 1, "{point}");
    // On a copy: a snapshot that does not open stays where it is.
    let snapshots = |bytes| Snapshots::new(Arc::new(disk.copy().beside()), key(bytes)).open();
    let old = snapshots(OLD);
    assert!(matches!(old, Err(SnapshotError::Damaged { .. })), "{point}: {old:?}");
    assert!(snapshots(NEW).unwrap().is_some(), "{point}");
}

#[test]
fn another_storage_key_leaves_nothing_of_the_old_one_wherever_it_is_cut_short() {
    let mut points = 0;
    for at in 0.. {
        let disk = survivor(OLD).copy();
        let first = disk.ops();
        disk.fault(Fault::Stop { at: first + at, torn: 700 });
        let done = rekey_on(&on(&disk), &both()).is_ok();
        if disk.hit().is_none() {
            assert!(done);
            all_is_new(&disk, "whole");
            break;
        }
        points += 1;
        for survival in survivals(&disk) {
            let point = format!("point {at}, {:?}, {survival:?}", disk.hit());
            let left = disk.crash_to(survival);
            rekey_on(&on(&left), &both()).unwrap_or_else(|e| panic!("{point}: {e}"));
            all_is_new(&left, &point);
            let found = recover_on(&on(&left), &only(NEW), 1, ADDR);
            let found = found.unwrap_or_else(|e| panic!("{point}: {e}"));
            assert_eq!(found, Recovery { last_index: 15, committed_index: 12 }, "{point}");
            let snapshots = Snapshots::new(Arc::new(left.beside()), key(NEW));
            let state = snapshots.open().unwrap().unwrap().state().unwrap();
            assert_eq!(records(&state), whole(), "{point}");
        }
    }
    println!("{points} points");
    assert!(points > 15);
}

#[tokio::test]
async fn a_running_node_takes_another_storage_key() {
    let disk = CrashDisk::default();
    let node = start(&disk, OLD).await;
    node.initialize().await.unwrap();
    node.propose(id(1), init()).await.unwrap();
    for number in 2..30 {
        node.propose(id(number), create(number, &[7; 3_000])).await.unwrap();
        if number == 15 {
            node.snapshot_now().await.unwrap();
        }
    }
    node.rekey(StorageKey::new(NEW)).await.unwrap();
    all_is_new(&disk, "running");
    node.propose(id(40), create(40, &[7; 3_000])).await.unwrap();
    node.snapshot_now().await.unwrap();
    node.propose(id(41), create(41, &[7; 3_000])).await.unwrap();
    let before = node.view(records);
    node.shutdown().await;
    all_is_new(&disk, "stopped");
    let node = start(&disk, NEW).await;
    assert_eq!(node.view(records), before);
    node.shutdown().await;
}

/// A machine that stops while a running node takes another key.
#[tokio::test]
async fn a_running_node_that_stops_while_it_changes_its_key_is_helped_by_both() {
    for at in 0.. {
        let disk = CrashDisk::default();
        let node = start(&disk, OLD).await;
        node.initialize().await.unwrap();
        node.propose(id(1), init()).await.unwrap();
        for number in 2..8 {
            node.propose(id(number), create(number, &[7; 3_000])).await.unwrap();
            if number == 4 {
                node.snapshot_now().await.unwrap();
            }
        }
        let before = node.view(records);
        disk.fail_after(at);
        let done = node.rekey(StorageKey::new(NEW)).await.is_ok();
        node.shutdown().await;
        for bytes in [Bytes::Lost, Bytes::Kept, Bytes::Every(1)] {
            let point = format!("point {at}, {bytes:?}");
            let left = disk.crash_to(Survival { names: usize::MAX, bytes });
            rekey_on(&on(&left), &both()).unwrap_or_else(|e| panic!("{point}: {e}"));
            all_is_new(&left, &point);
            let node = start(&left, NEW).await;
            assert_eq!(node.view(records), before, "{point}");
            node.shutdown().await;
        }
        if done {
            assert!(at > 5, "{at} points");
            break;
        }
    }
}
