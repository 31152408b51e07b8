//! The log on a disk that fails.

use std::sync::Arc;

use proptest::prelude::*;

use crate::StorageKey;
use crate::log::{Log, OpenError, lock};
use crate::record::Write;
use crate::testing::{Chance, CrashDisk};
use crate::tests::log_model::{Model, Op, append, entries, entry, open, run};
use crate::types::{Entry, Position, VoteRecord};

fn first_segment(disk: &CrashDisk) -> String {
    disk.contents().keys().find(|name| name.ends_with(".log")).unwrap().clone()
}

#[test]
fn a_restart_keeps_entries_vote_and_committed() {
    let disk = CrashDisk::default();
    let mut log = open(&disk).unwrap();
    let written: Vec<Entry> = (0..200).map(|i| entry(1, i, 500)).collect();
    for chunk in written.chunks(7) {
        append(&mut log, chunk).unwrap();
    }
    let vote = VoteRecord { term: 1, node: 9, committed: true };
    log.write(&[Write::Committed(Position { term: 1, index: 150 })]).unwrap();
    log.write(&[Write::Vote(vote)]).unwrap();
    log.write(&[Write::Committed(Position { term: 1, index: 180 })]).unwrap();
    drop(log);
    for _ in 0..3 {
        let mut log = open(&disk).unwrap();
        assert_eq!(entries(&log), written);
        assert_eq!(lock(&log.index()).vote, Some(vote));
        // The last one waited for a batch that did not come.
        assert_eq!(lock(&log.index()).committed, Some(Position { term: 1, index: 150 }));
        log.close().unwrap();
    }
}

#[test]
fn closing_writes_what_is_committed() {
    let disk = CrashDisk::default();
    let mut log = open(&disk).unwrap();
    append(&mut log, &[entry(1, 0, 10)]).unwrap();
    let at = Position { term: 1, index: 0 };
    log.write(&[Write::Committed(at)]).unwrap();
    log.close().unwrap();
    assert_eq!(lock(&open(&disk).unwrap().index()).committed, Some(at));
}

#[test]
fn a_torn_tail_is_cut() {
    let disk = CrashDisk::default();
    let mut log = open(&disk).unwrap();
    append(&mut log, &[entry(1, 0, 100), entry(1, 1, 100)]).unwrap();
    append(&mut log, &[entry(1, 2, 3_000), entry(1, 3, 3_000)]).unwrap();
    drop(log);
    let name = first_segment(&disk);
    let end = disk.contents()[&name].iter().rposition(|byte| *byte != 0).unwrap();
    disk.damage(&name, |bytes| bytes[end - 2_000..].fill(0));
    let mut log = open(&disk).unwrap();
    assert_eq!(entries(&log), [entry(1, 0, 100), entry(1, 1, 100), entry(1, 2, 3_000)]);
    append(&mut log, &[entry(2, 3, 10)]).unwrap();
    drop(log);
    assert_eq!(entries(&open(&disk).unwrap()).len(), 4);
}

#[test]
fn damage_in_the_middle_is_refused_with_file_and_offset() {
    let disk = CrashDisk::default();
    let mut log = open(&disk).unwrap();
    append(&mut log, &[entry(1, 0, 1_000)]).unwrap();
    append(&mut log, &[entry(1, 1, 1_000)]).unwrap();
    drop(log);
    let name = first_segment(&disk);
    let whole = disk.contents()[&name].clone();
    disk.damage(&name, |bytes| bytes[1_000] ^= 1);
    match open(&disk) {
        Err(OpenError::Damaged { file, offset }) => {
            assert_eq!(file, name);
            assert!((512..1_000).contains(&offset), "{offset}");
        }
        other => panic!("{other:?}"),
    }
    // A hole of zeros is damage too, not the end.
    disk.damage(&name, |bytes| bytes[512..1_024].fill(0));
    assert!(matches!(open(&disk), Err(OpenError::Damaged { offset: 512, .. })));
    // So is damage in a segment that another one follows, even in its last batch.
    disk.damage(&name, |bytes| *bytes = whole);
    drop(open(&disk).unwrap());
    let end = disk.contents()[&name].len();
    disk.damage(&name, |bytes| bytes[end - 100] ^= 1);
    assert!(matches!(open(&disk), Err(OpenError::Damaged { file, .. }) if file == name));
}

#[test]
fn another_key_or_a_missing_segment_is_refused() {
    let disk = CrashDisk::default();
    for i in 0..3 {
        let mut log = open(&disk).unwrap();
        append(&mut log, &[entry(1, i, 10)]).unwrap();
    }
    let other = Log::open(Arc::new(disk.clone()), Arc::new(StorageKey::new([4; 32])));
    assert!(matches!(other, Err(OpenError::Damaged { offset: 0, .. })));
    let names: Vec<String> = disk.contents().into_keys().collect();
    let without = |name: &str| {
        let disk = disk.crash(&mut Chance(1));
        crate::disk::Disk::remove(&disk, name).unwrap();
        open(&disk)
    };
    assert!(matches!(without(&names[1]), Err(OpenError::Missing { .. })));
    assert!(matches!(without(&names[0]), Err(OpenError::Missing { .. })));
}

#[test]
fn nothing_purged_is_left_in_any_file() {
    let disk = CrashDisk::default();
    let mut log = open(&disk).unwrap();
    let secret = entry(1, 3, 900);
    for i in 0..8 {
        append(&mut log, &[entry(1, i, 900)]).unwrap();
    }
    let frame = {
        let contents = &disk.contents()[&first_segment(&disk)];
        contents[4_000..4_100].to_vec()
    };
    let holds = |disk: &CrashDisk| {
        disk.contents().values().any(|bytes| bytes.windows(frame.len()).any(|at| at == frame))
    };
    assert!(holds(&disk));
    log.purge(Position { term: 1, index: 5 }).unwrap();
    log.scrub().unwrap();
    assert!(!holds(&disk));
    assert!(!entries(&log).contains(&secret));
    append(&mut log, &[entry(1, 8, 10)]).unwrap();
    let kept = entries(&log);
    assert_eq!(kept.len(), 3);
    drop(log);
    let log = open(&disk).unwrap();
    assert_eq!(entries(&log), kept);
    assert_eq!(lock(&log.index()).purged(), Some(Position { term: 1, index: 5 }));
}

#[test]
fn whole_segments_go_with_a_purge() {
    let disk = CrashDisk::default();
    let mut log = open(&disk).unwrap();
    for i in 0..100 {
        append(&mut log, &[entry(1, i, 900)]).unwrap();
    }
    let before = disk.contents().len();
    assert!(before > 4, "{before} segments");
    log.purge(Position { term: 1, index: 98 }).unwrap();
    assert!(disk.contents().len() <= 2, "{:?}", disk.contents().keys());
    drop(log);
    assert_eq!(entries(&open(&disk).unwrap()), [entry(1, 99, 900)]);
}

#[test]
fn after_a_failure_nothing_is_written() {
    let disk = CrashDisk::default();
    let mut log = open(&disk).unwrap();
    disk.fail_after(1);
    assert!(append(&mut log, &[entry(1, 0, 10)]).is_err());
    disk.fail_after(1_000);
    assert!(log.write(&[Write::Vote(VoteRecord { term: 1, node: 1, committed: false })]).is_err());
    assert!(log.close().is_err());
}

#[test]
fn what_a_failed_sync_left_in_the_cache_is_written_again() {
    let disk = CrashDisk::default();
    let mut log = open(&disk).unwrap();
    append(&mut log, &[entry(1, 0, 2_000)]).unwrap();
    disk.lose_sync();
    assert!(append(&mut log, &[entry(1, 1, 2_000)]).is_err());
    drop(log);
    let written = [entry(1, 0, 2_000), entry(1, 1, 2_000)];
    assert_eq!(entries(&open(&disk).unwrap()), written);
    let disk = disk.crash(&mut Chance(0));
    assert_eq!(entries(&open(&disk).unwrap()), written);
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (1u64..6, prop_oneof![0usize..100, 2_000usize..4_000]).prop_map(|(count, bytes)| Op::Append { count, bytes }),
        1 => Just(Op::Vote),
        1 => Just(Op::Commit),
        3 => (0u64..5).prop_map(|back| Op::Truncate { back }),
        3 => (0u64..8).prop_map(|ahead| Op::Purge { ahead }),
        1 => Just(Op::Scrub),
        1 => Just(Op::Prepare),
        2 => Just(Op::Reopen),
    ];
    prop::collection::vec(op, 1..40)
}

/// Runs `ops` on a disk that fails after `crash` changes, then recovers on one that fails after
/// `again`. What was acknowledged must be there, and nothing else.
fn survives(ops: &[Op], crash: usize, again: usize, seed: u64) -> Result<(), TestCaseError> {
    let mut chance = Chance(seed);
    let disk = CrashDisk::default();
    disk.fail_after(crash);
    let mut model = Model::default();
    let mut allowed = vec![model.clone()];
    if let Ok(mut log) = open(&disk) {
        for op in ops {
            allowed = model.may_become(op);
            if run(&mut log, &disk, &model, op).is_err() {
                break;
            }
            model = allowed.pop().unwrap();
            allowed = vec![model.clone()];
            // A log that is open follows the model exactly.
            prop_assert!(model.matches(&log), "{op:?}: {model:?}");
        }
    }
    // A second crash, while it recovers.
    let mut disk = disk.crash(&mut chance);
    disk.fail_after(again);
    if let Err(e) = open(&disk) {
        prop_assert!(matches!(e, OpenError::Disk { .. }), "{e}");
    }
    disk = disk.crash(&mut chance);
    let log = open(&disk);
    prop_assert!(log.is_ok(), "{:?}", log.err());
    let mut log = log.unwrap();
    let found = allowed.iter().find(|model| model.matches(&log));
    prop_assert!(found.is_some(), "found {:?}, allowed {allowed:?}", lock(&log.index()));
    // And it goes on.
    let next = Op::Append { count: 2, bytes: 100 };
    let model = found.unwrap().clone();
    run(&mut log, &disk, &model, &next).unwrap();
    drop(log);
    prop_assert!(model.may_become(&next).pop().unwrap().matches(&open(&disk).unwrap()));
    Ok(())
}

/// What the property below has found, made small.
#[test]
fn crashes_that_once_lost_something() {
    use Op::{Append, Purge, Truncate};
    let append = |count, bytes| Append { count, bytes };
    // A segment is dropped whose entries were purged by a record in a later one.
    let purged = [append(3, 2_906), Purge { ahead: 1 }, append(5, 1_217), Purge { ahead: 2 }];
    // It is dropped after its entries were truncated, too, and written again.
    let rewritten = [
        append(1, 458),
        append(5, 2_909),
        Truncate { back: 2 },
        Truncate { back: 4 },
        append(1, 0),
        Purge { ahead: 1 },
    ];
    // Two purges in a row stand in the first segment that is left.
    let twice =
        [append(8, 0), Truncate { back: 0 }, Purge { ahead: 4 }, append(1, 0), Purge { ahead: 4 }];
    for ops in [&purged[..], &rewritten, &twice] {
        for crash in 0..60 {
            for seed in [0, 4_129_834_207_643_770_784] {
                survives(ops, crash, 0, seed).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(150)
    })]

    #[test]
    fn a_crash_loses_nothing_acknowledged(
        ops in ops(),
        crash in 0usize..150,
        again in 0usize..12,
        seed: u64,
    ) {
        survives(&ops, crash, again, seed)?;
    }
}
