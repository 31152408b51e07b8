//! The log as openraft sees it.

use std::sync::Arc;

use openraft::StorageError;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;

use crate::StorageKey;
use crate::disk::{Disk, RealDisk};
use crate::log::Log;
use crate::machine::{Machine, Shared};
use crate::snapshot::Snapshots;
use crate::store::{self, LogStore};
use crate::testing::CrashDisk;
use crate::types::{Entry, LogId, Position, TypeConfig};

fn store(disk: Arc<dyn Disk>) -> LogStore {
    let log = Log::open(disk, Arc::new(StorageKey::new([5; 32]))).unwrap();
    store::start(log, |e| panic!("{e}")).unwrap()
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, tempfile::TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let log = Arc::new(RealDisk::open(&dir.path().join("log")).unwrap());
        let snapshots = Arc::new(RealDisk::open(&dir.path().join("snapshots")).unwrap());
        let snapshots = Snapshots::new(snapshots, Arc::new(StorageKey::new([5; 32])));
        let machine = Machine(Arc::new(
            Shared::new(snapshots, crate::FatalHook::new(|reason| panic!("{reason}"))).unwrap(),
        ));
        Ok((dir, store(log), machine))
    }
}

#[tokio::test]
async fn openraft_accepts_log_and_state_machine() {
    Suite::test_all(Builder).await.unwrap();
}

#[tokio::test]
async fn everything_queued_shares_one_sync() {
    let disk = CrashDisk::default();
    let mut log = store(Arc::new(disk.clone()));
    disk.hold();
    let before = disk.syncs();
    let mut waiting = Vec::new();
    for index in 0..100 {
        let entry = Entry::new_blank(LogId::from(Position { term: 1, index }));
        let (tx, rx) = TypeConfig::oneshot();
        log.append([entry], IOFlushed::signal(tx)).await.unwrap();
        waiting.push(rx);
        if index == 0 {
            // The first is on its way; the others gather behind it.
            disk.wait_held();
        }
    }
    disk.release();
    for rx in waiting {
        rx.await.unwrap().unwrap();
    }
    assert_eq!(disk.syncs() - before, 2);
    log.close().await.unwrap();
}
