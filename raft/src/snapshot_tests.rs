//! Snapshots on a disk that fails.

use std::sync::Arc;

use skep_core::state::State;

use crate::StorageKey;
use crate::limits::CHUNK_BYTES;
use crate::samples::{records, state};
use crate::snapshot::{SnapshotError, Snapshots};
use crate::testing::CrashDisk;
use crate::types::{LogId, Membership, Position, SnapshotMeta, StoredMembership};

fn snapshots(disk: &CrashDisk) -> Snapshots {
    Snapshots::new(Arc::new(disk.clone()), Arc::new(StorageKey::new([6; 32])))
}

fn meta(index: u64) -> SnapshotMeta {
    let membership = Membership::new_with_defaults(vec![[1, 2].into()], [3]);
    let at = LogId::from(Position { term: 2, index });
    let last_membership = StoredMembership::new(Some(at), membership);
    SnapshotMeta { last_log_id: Some(at), last_membership }
}

fn read(disk: &CrashDisk) -> Result<Option<(SnapshotMeta, State)>, SnapshotError> {
    let file = snapshots(disk).open()?;
    file.map(|file| Ok((file.meta.clone(), file.state()?))).transpose()
}

#[test]
fn a_snapshot_of_many_chunks_comes_back() {
    let disk = CrashDisk::default();
    assert!(read(&disk).unwrap().is_none());
    let small = state(&[]);
    let large = state(&[400_000, 500_000, 17, 400_000, 300_000, 400_000]);
    for (index, state) in [(4, &small), (9, &large), (12, &large)] {
        snapshots(&disk).write(state, &meta(index)).unwrap();
        let (found, again) = read(&disk).unwrap().unwrap();
        assert_eq!(found, meta(index));
        assert_eq!(records(&again), records(state));
        assert_eq!(disk.contents().len(), 1, "the one before is gone");
    }
}

#[test]
fn an_open_snapshot_outlives_its_replacement() {
    let disk = CrashDisk::default();
    let first = snapshots(&disk).write(&state(&[17]), &meta(1)).unwrap();
    snapshots(&disk).write(&state(&[]), &meta(2)).unwrap();
    assert_eq!(records(&first.state().unwrap()), records(&state(&[17])));
}

#[test]
fn damage_anywhere_is_refused() {
    let disk = CrashDisk::default();
    let state = state(&[400_000, 500_000, 400_000]);
    snapshots(&disk).write(&state, &meta(3)).unwrap();
    let (name, whole) = disk.contents().pop_first().unwrap();
    let chunk = CHUNK_BYTES + 16 + 5;
    let refused = |what: &str, change: &dyn Fn(&mut Vec<u8>)| {
        disk.damage(&name, |bytes| {
            *bytes = whole.clone();
            change(bytes);
        });
        assert!(matches!(read(&disk), Err(SnapshotError::Damaged { .. })), "{what}");
    };
    for at in (0..whole.len()).step_by(199_999).chain((0..40).step_by(3)) {
        refused(&format!("byte {at}"), &|bytes| bytes[at] ^= 1);
    }
    refused("without its last chunk", &|bytes| bytes.truncate(24 + chunk));
    refused("with bytes behind it", &|bytes| bytes.push(0));
    refused("cut", &|bytes| bytes.truncate(bytes.len() - 1));
    refused("with the first chunk twice", &|bytes| {
        let first = bytes[24..24 + chunk].to_vec();
        bytes.splice(24..24, first);
    });
    let other = Snapshots::new(Arc::new(disk.clone()), Arc::new(StorageKey::new([7; 32])));
    disk.damage(&name, |bytes| *bytes = whole.clone());
    assert!(matches!(other.open(), Err(SnapshotError::Damaged { .. })));
    assert!(read(&disk).unwrap().is_some());
}
