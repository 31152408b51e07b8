//! Every change that log and snapshots make to the disk, as the point where the machine stops or
//! the disk refuses. A failure names the point: the history is fixed, so it can be repeated.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_core::state::State;

use crate::StorageKey;
use crate::log::{Log, OpenError, lock};
use crate::record::Write;
use crate::samples::{records, state};
use crate::snapshot::Snapshots;
use crate::testing::{Bytes, CrashDisk, Fault, Kind, Survival};
use crate::tests::log_model::{Model, Op, open, run};
use crate::types::{LogId, Membership, Position, SnapshotMeta, StoredMembership, VoteRecord};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Every kind of write, some of them over the border of a segment, and two restarts.
const HISTORY: [Op; 33] = [
    Op::Vote,
    Op::Append { count: 1, bytes: 40 },
    Op::Commit,
    Op::Append { count: 3, bytes: 700 },
    Op::Append { count: 5, bytes: 1_400 },
    Op::Prepare,
    Op::Commit,
    Op::Append { count: 4, bytes: 2_500 },
    Op::Vote,
    Op::Append { count: 2, bytes: 100 },
    Op::Truncate { back: 3 },
    Op::Append { count: 2, bytes: 300 },
    Op::Truncate { back: 0 },
    Op::Reopen,
    Op::Append { count: 3, bytes: 3_000 },
    Op::Purge { ahead: 3 },
    Op::Append { count: 1, bytes: 20 },
    Op::Prepare,
    Op::Append { count: 4, bytes: 3_500 },
    Op::Commit,
    Op::Purge { ahead: 9 },
    Op::Vote,
    Op::Append { count: 2, bytes: 64 },
    Op::Scrub,
    Op::Append { count: 3, bytes: 64 },
    Op::Commit,
    Op::Purge { ahead: 200 },
    Op::Scrub,
    Op::Append { count: 2, bytes: 5_000 },
    Op::Append { count: 2, bytes: 5_000 },
    Op::Commit,
    Op::Reopen,
    Op::Append { count: 1, bytes: 17 },
];

/// How a history ended, and what may be found after it.
struct Cut {
    disk: CrashDisk,
    allowed: Vec<Model>,
    log: Option<Log>,
}

/// Runs the history on a disk with this fault.
fn history(fault: Option<Fault>) -> Cut {
    let disk = CrashDisk::default();
    if let Some(fault) = fault {
        disk.fault(fault);
    }
    let mut model = Model::default();
    let Ok(mut log) = open(&disk) else {
        return Cut { disk, allowed: vec![model], log: None };
    };
    for op in &HISTORY {
        let mut allowed = model.may_become(op);
        if run(&mut log, &disk, &model, op).is_err() {
            return Cut { disk, allowed, log: Some(log) };
        }
        model = allowed.pop().unwrap();
        assert!(model.matches(&log), "{op:?}: {model:?}");
    }
    Cut { disk, allowed: vec![model], log: Some(log) }
}

/// The points of the history, with what each is.
fn points(mut probe: impl FnMut(Fault) -> Option<Kind>) -> Vec<Kind> {
    let stop = |at| Fault::Stop { at, torn: 0 };
    (0..).map_while(|at| probe(stop(at))).collect()
}

/// Whether there is time for every combination; else for a part that has every point.
fn is_thorough() -> bool {
    std::env::var_os("SKEP_CRASH_ALL").is_some()
}

/// How much of a write may arrive before the machine stops.
fn tears(kind: Kind) -> Vec<usize> {
    let Kind::Write(bytes) = kind else { return vec![0] };
    let mut tears = vec![0, 512, bytes.saturating_sub(1)];
    if is_thorough() {
        tears.extend([1, 24, 511, 513, bytes / 2, bytes]);
    }
    tears.retain(|torn| *torn <= bytes);
    tears.sort_unstable();
    tears.dedup();
    tears
}

/// What a crash may leave: each length of the journal of names, with each way to lose bytes.
fn survivals(disk: &CrashDisk) -> Vec<Survival> {
    let ways = [Bytes::Lost, Bytes::Kept, Bytes::Every(0), Bytes::Every(1), Bytes::Any(7)];
    let count = if is_thorough() { ways.len() } else { 3 };
    let names = 0..=disk.unsynced_names();
    let all = names.flat_map(|names| ways.map(|bytes| Survival { names, bytes }));
    all.enumerate().filter(|(at, _)| at % ways.len() < count).map(|(_, one)| one).collect()
}

/// Opens the log; what it holds must be allowed.
fn look(disk: &CrashDisk, allowed: &[Model], point: &str) -> (Log, Model) {
    let log = open(disk).unwrap_or_else(|e| panic!("{point}: {e}"));
    let found = allowed.iter().find(|model| model.matches(&log));
    let found = found.unwrap_or_else(|| panic!("{point}: {:?} of {allowed:?}", lock(&log.index())));
    (log, found.clone())
}

/// What the log holds must also be kept, and the log must take new writes.
fn check(disk: &CrashDisk, allowed: &[Model], point: &str) {
    let (mut log, mut model) = look(disk, allowed, point);
    for op in [Op::Vote, Op::Append { count: 2, bytes: 100 }] {
        run(&mut log, disk, &model, &op).unwrap_or_else(|e| panic!("{point}: {e}"));
        model = model.may_become(&op).pop().unwrap();
    }
    drop(log);
    // As a machine that stops at once would find it.
    let left = disk.crash_to(Survival { names: 0, bytes: Bytes::Lost });
    let log = open(&left).unwrap_or_else(|e| panic!("{point}, then writes: {e}"));
    assert!(model.matches(&log), "{point}, then writes: {:?}", lock(&log.index()));
}

#[test]
fn the_log_survives_a_stop_at_every_change_to_the_disk() {
    let points = points(|fault| history(Some(fault)).disk.hit());
    let mut crashes = 0;
    for (at, kind) in points.iter().enumerate() {
        for torn in tears(*kind) {
            let Cut { disk, allowed, log } = history(Some(Fault::Stop { at, torn }));
            drop(log);
            for survival in survivals(&disk) {
                let point = format!("point {at}, {kind:?}, torn {torn}, {survival:?}");
                check(&disk.crash_to(survival), &allowed, &point);
                crashes += 1;
            }
        }
    }
    println!("{} points, {crashes} crashes", points.len());
    assert!(points.len() > 90, "{} points", points.len());
}

/// A machine that stops again while the log is read back, at every change of that.
#[test]
fn the_log_survives_a_second_stop_while_it_recovers() {
    let points = points(|fault| history(Some(fault)).disk.hit());
    let mut crashes = 0;
    for (at, kind) in points.iter().enumerate() {
        let torn = if let Kind::Write(bytes) = kind { bytes / 2 } else { 0 };
        let Cut { disk, allowed, log } = history(Some(Fault::Stop { at, torn }));
        drop(log);
        for bytes in [Bytes::Lost, Bytes::Kept] {
            let found = disk.crash_to(Survival { names: usize::MAX, bytes });
            for again in 0.. {
                let second = found.copy();
                second.fail_after(again);
                let Err(e) = open(&second) else { break };
                let point = format!("point {at}, {kind:?}, torn {torn}, {bytes:?}, again {again}");
                assert!(matches!(e, OpenError::Disk { .. }), "{point}: {e}");
                for survival in survivals(&second) {
                    // What is lost and what is kept take turns.
                    if is_thorough() || (crashes + at) % 3 == 0 {
                        let point = format!("{point}, {survival:?}");
                        drop(look(&second.crash_to(survival), &allowed, &point));
                    }
                    crashes += 1;
                }
            }
        }
    }
    println!("{} points, {crashes} second crashes", points.len());
}

/// A disk that refuses once: the log writes nothing more, and the next start finds all.
#[test]
fn the_log_ends_with_the_first_refusal_of_the_disk() {
    let points = points(|fault| history(Some(fault)).disk.hit());
    let mut ended = 0;
    for (at, kind) in points.iter().enumerate() {
        let tears = tears(*kind);
        let torn = tears.get(tears.len() / 2).copied().unwrap_or_default();
        for errno in [EIO, ENOSPC] {
            let point = format!("point {at}, {kind:?}, errno {errno}");
            let Cut { disk, allowed, log } = history(Some(Fault::Refuse { at, torn, errno }));
            // Room that cannot be taken in advance is no write that failed.
            if let Some(mut log) = log
                && disk.hit().is_some()
                && log.is_failed()
            {
                ended += 1;
                let before = (disk.ops(), disk.contents());
                let vote = VoteRecord { term: 99, node: 9, committed: true };
                assert!(log.write(&[Write::Vote(vote)]).is_err(), "{point}");
                assert!(log.truncate_after(None).is_err(), "{point}");
                assert!(log.purge(Position { term: 99, index: 999 }).is_err(), "{point}");
                assert!(log.scrub().is_err() && log.close().is_err(), "{point}");
                assert_eq!((disk.ops(), disk.contents()), before, "{point}: it went on");
            }
            // A new process on the same machine, which may have lost what it takes for written;
            // and one after a crash.
            for survival in survivals(&disk) {
                drop(look(&disk.crash_to(survival), &allowed, &format!("{point}, {survival:?}")));
            }
            check(&disk, &allowed, &format!("{point}, restarted"));
        }
    }
    println!("{} points, two errors each, {ended} ended the log", points.len());
    assert!(ended > points.len(), "{ended}");
}

fn key() -> Arc<StorageKey> {
    Arc::new(StorageKey::new([6; 32]))
}

fn meta(index: u64) -> SnapshotMeta {
    let membership = Membership::new_with_defaults(vec![[1].into()], []);
    let at = LogId::from(Position { term: 2, index });
    SnapshotMeta {
        last_log_id: Some(at),
        last_membership: StoredMembership::new(Some(at), membership),
    }
}

/// Writes three snapshots, one of several chunks. Returns how many were acknowledged.
fn snapshot_history(disk: &CrashDisk, states: &[State]) -> u64 {
    let snapshots = Snapshots::new(Arc::new(disk.clone()), key());
    if snapshots.open().is_err() {
        return 0;
    }
    let written = states
        .iter()
        .zip(1..)
        .take_while(|(state, index)| snapshots.write(state, &meta(*index)).is_ok());
    written.count() as u64
}

#[test]
fn snapshots_survive_a_stop_or_a_refusal_at_every_change_to_the_disk() {
    let states = [state(&[17]), state(&[40_000, 50_000, 40_000]), state(&[300, 4_000])];
    let expected: BTreeMap<u64, Vec<Vec<u8>>> = (1..).zip(states.iter().map(records)).collect();
    let run = |fault| {
        let disk = CrashDisk::default();
        disk.fault(fault);
        let done = snapshot_history(&disk, &states);
        (disk, done)
    };
    let points = points(|fault| run(fault).0.hit());
    let mut crashes = 0;
    for (at, kind) in points.iter().enumerate() {
        let stops = tears(*kind).into_iter().map(|torn| Fault::Stop { at, torn });
        let refusals = [EIO, ENOSPC].map(|errno| Fault::Refuse { at, torn: 24, errno });
        for fault in stops.chain(refusals) {
            let (disk, done) = run(fault);
            for survival in survivals(&disk) {
                let point = format!("point {at}, {kind:?}, {fault:?}, {survival:?}");
                let clean = disk.crash_to(survival);
                let snapshots = Snapshots::new(Arc::new(clean.clone()), key());
                let found = snapshots.open().unwrap_or_else(|e| panic!("{point}: {e}"));
                let index = found.as_ref().map_or(0, |found| found.meta.last_log_id.unwrap().index);
                assert!((done..=done + 1).contains(&index), "{point}: {index} after {done}");
                if let Some(found) = found {
                    let state = found.state().unwrap_or_else(|e| panic!("{point}: {e}"));
                    assert_eq!(records(&state), expected[&index], "{point}");
                }
                assert_eq!(clean.contents().len() as u64, index.min(1), "{point}: leftovers");
                crashes += 1;
            }
        }
    }
    println!("{} points, {crashes} crashes", points.len());
    assert!(points.len() > 15, "{} points", points.len());
}
