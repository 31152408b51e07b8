//! The node, on real disks and on disks that fail.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use skep_core::apply::Change;
use skep_core::command::{Command, Outcome};
use skep_core::format::FORMAT;
use skep_core::time::Stamp;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::disk::{Disk, DiskFile};
use crate::network::Alone;
use crate::node::Disks;
use crate::samples::{create, id, init, records};
use crate::testing::CrashDisk;
use crate::{Clock, Config, Event, FatalHook, ProposeError, Raft, StartError, StorageKey};

fn config(dir: &Path, on_fatal: FatalHook) -> Config {
    Config {
        dir: dir.to_owned(),
        storage_key: StorageKey::new([8; 32]),
        raft_id: 7,
        addr: "127.0.0.1:2377".into(),
        on_fatal,
        format: FORMAT,
    }
}

async fn start(dir: &Path) -> Raft {
    let clock = AtomicU64::new(1_000_000_000);
    let clock = Arc::new(move || Stamp(clock.fetch_add(1, Ordering::Relaxed)));
    Raft::start(config(dir, no_fatal()), clock).await.unwrap()
}

async fn start_on(log: Arc<dyn Disk>, hook: FatalHook) -> Result<Raft, StartError> {
    let disks = Disks { log, snapshots: Arc::new(CrashDisk::default()) };
    Raft::start_on(disks, config("unused".as_ref(), hook), Arc::new(|| Stamp(1)), Arc::new(Alone))
        .await
}

async fn started(dir: &Path) -> Raft {
    let node = start(dir).await;
    node.initialize().await.unwrap();
    done(&node, 1, init()).await;
    node
}

async fn done(node: &Raft, number: u64, command: Command) {
    let outcome = node.propose(id(number), command).await.unwrap();
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
}

fn held(node: &Raft) -> Vec<Vec<u8>> {
    node.view(records)
}

fn no_fatal() -> FatalHook {
    FatalHook::new(|reason| panic!("{reason}"))
}

#[tokio::test]
async fn a_sole_voter_leads_at_once_and_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    assert!(!node.is_initialized().await.unwrap());
    assert!(!node.is_leader());
    let refused = node.propose(id(0), Command::Noop).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: None }));

    node.initialize().await.unwrap();
    assert!(node.is_leader());
    assert!(matches!(node.initialize().await, Err(StartError::Initialized)));
    for i in 0..10 {
        let outcome = node.propose(id(i), Command::Noop).await.unwrap();
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    }
    let before = node.read_index().await.unwrap();
    let stamp = node.view(skep_core::state::State::last_stamp);
    node.shutdown().await;
    let refused = node.propose(id(99), Command::Noop).await;
    assert_eq!(refused, Err(ProposeError::Shutdown));

    let began = Instant::now();
    let node = start(dir.path()).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(node.is_leader());
    let after = node.read_index().await.unwrap();
    assert!(after > before, "{after} {before} {:?}", node.metrics());
    assert_eq!(node.view(skep_core::state::State::last_stamp), stamp);
    node.shutdown().await;
}

#[tokio::test]
async fn a_restart_keeps_the_state_with_and_without_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path()).await;
    done(&node, 2, create(2, &[2; 40])).await;
    node.snapshot_now().await.unwrap();
    let metrics = node.metrics();
    assert_eq!(metrics.snapshot_index, metrics.purged_index);
    done(&node, 3, create(3, &[3; 60_000])).await;
    let before = held(&node);
    node.shutdown().await;
    for _ in 0..2 {
        let node = start(dir.path()).await;
        assert_eq!(held(&node), before);
        node.snapshot_now().await.unwrap();
        node.shutdown().await;
    }
}

#[tokio::test]
async fn a_stop_without_shutdown_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path()).await;
    for i in 2..30 {
        done(&node, i, create(i, &[7; 100])).await;
    }
    let before = held(&node);
    // What a kill leaves: the files as they are now.
    let copy = tempfile::tempdir().unwrap();
    for name in ["log", "snapshots"] {
        std::fs::create_dir(copy.path().join(name)).unwrap();
        for file in std::fs::read_dir(dir.path().join(name)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copy.path().join(name).join(file.file_name())).unwrap();
        }
    }
    let again = start(copy.path()).await;
    assert_eq!(held(&again), before);
    again.shutdown().await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_repeated_request_gets_its_first_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path()).await;
    let first = node.propose(id(2), create(2, &[2; 40])).await.unwrap();
    assert_eq!(node.propose(id(2), create(2, &[2; 40])).await.unwrap(), first);
    let other = node.propose(id(3), create(2, &[2; 40])).await.unwrap();
    assert!(matches!(other, Outcome::Rejected(_)), "{other:?}");
    node.shutdown().await;
    let node = start(dir.path()).await;
    assert_eq!(node.propose(id(2), create(2, &[2; 40])).await.unwrap(), first);
    node.shutdown().await;
}

#[tokio::test]
async fn subscribers_hear_of_changes_and_of_lagging() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path()).await;
    let mut events = node.subscribe();
    done(&node, 2, create(2, &[2; 40])).await;
    match events.next().await {
        Some(Event::Applied(applied)) => {
            assert_eq!(applied.changes, [Change::Material(id(2))]);
            assert_eq!(Some(applied.index), *node.applied().borrow());
        }
        other => panic!("{other:?}"),
    }
    for i in 3..3 + crate::limits::CHANGE_QUEUE as u64 + 10 {
        done(&node, i, create(i, &[2; 17])).await;
    }
    assert!(matches!(events.next().await, Some(Event::Rescan)));
    assert!(matches!(events.next().await, Some(Event::Applied(_))));
    node.shutdown().await;
}

#[tokio::test]
async fn too_large_a_command_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path()).await;
    let command = create(2, &vec![0; crate::limits::PROPOSAL_BYTES]);
    let refused = node.propose(id(2), command).await;
    assert!(matches!(refused, Err(ProposeError::TooLarge { .. })), "{refused:?}");
    node.shutdown().await;
}

/// Who asks for a purge gets it long before its deadline, and learns which keys are left.
#[tokio::test]
async fn a_purge_that_is_asked_for_is_done_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    node.initialize().await.unwrap();
    done(&node, 1, init()).await;
    done(&node, 2, create(2, &[2; 40])).await;
    done(&node, 3, Command::MaterialRemove { id: id(2) }).await;
    let removed = node.applied().borrow().unwrap();
    assert_eq!((node.metrics().purged_index, node.oldest_key()), (None, None));
    let holds = || {
        let mut found = Vec::new();
        let config = config(dir.path(), no_fatal());
        Raft::each_remnant(&config, &mut |file, record| {
            if record.windows(40).any(|part| part == [2; 40]) {
                found.push(file.to_owned());
            }
        })
        .unwrap();
        found
    };
    assert_eq!(holds().len(), 1);
    node.purge_soon();
    let purged = async {
        while node.oldest_key() != Some(1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(4), purged).await.unwrap();
    assert!(node.metrics().purged_index >= Some(removed));
    assert_eq!(holds(), Vec::<String>::new());
    node.shutdown().await;
}

/// A deletion starts a snapshot and a purge in time, on an idle node too.
#[tokio::test]
async fn a_deleted_payload_is_purged_before_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicU64::new(1_000_000_000));
    let clock = Arc::clone(&now);
    let clock: Clock = Arc::new(move || Stamp(clock.load(Ordering::Relaxed)));
    let node = Raft::start(config(dir.path(), no_fatal()), clock).await.unwrap();
    node.initialize().await.unwrap();
    done(&node, 1, init()).await;
    done(&node, 2, create(2, &[2; 40])).await;
    done(&node, 3, Command::MaterialRemove { id: id(2) }).await;
    let removed = node.applied().borrow().unwrap();
    assert_eq!(node.metrics().purged_index, None);
    // Nothing happens for nine minutes.
    now.fetch_add(540_000_000_000, Ordering::Relaxed);
    let purged = async {
        while node.metrics().purged_index < Some(removed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), purged).await.unwrap();
    assert_eq!(node.metrics().log_segments, 1);
    node.shutdown().await;
    let again = start(dir.path()).await;
    assert_eq!(again.view(|state| state.materials().len()), 0);
    again.shutdown().await;
}

#[tokio::test]
async fn proposals_made_together_share_a_sync() {
    let disk = CrashDisk::default();
    let node = start_on(Arc::new(disk.clone()), no_fatal()).await.unwrap();
    node.initialize().await.unwrap();
    node.propose(id(1), init()).await.unwrap();
    let before = disk.syncs();
    disk.hold();
    let propose = |number| {
        let node = node.clone();
        tokio::spawn(async move { node.propose(id(number), create(number, &[1; 40])).await })
    };
    let first = propose(2);
    let held = disk.clone();
    tokio::task::spawn_blocking(move || held.wait_held()).await.unwrap();
    let others: Vec<_> = (3..30).map(propose).collect();
    let queued = async {
        while node.metrics().last_index < Some(30) {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), queued).await.unwrap();
    disk.release();
    first.await.unwrap().unwrap();
    for other in others {
        other.await.unwrap().unwrap();
    }
    assert_eq!(disk.syncs() - before, 2);
    node.shutdown().await;
}

#[tokio::test]
async fn a_failed_write_ends_the_node_and_answers_nobody() {
    let disk = CrashDisk::default();
    let (told, mut reasons) = mpsc::channel(8);
    let hook = FatalHook::new(move |reason| {
        let _ = told.try_send(reason.to_owned());
    });
    let node = start_on(Arc::new(disk.clone()), hook).await.unwrap();
    node.initialize().await.unwrap();
    node.propose(id(1), init()).await.unwrap();
    disk.fail_after(1);
    let lost = node.propose(id(2), create(2, &[1; 40])).await;
    assert_eq!(lost, Err(ProposeError::Unknown));
    let reason = timeout(Duration::from_secs(10), reasons.recv()).await.unwrap().unwrap();
    assert!(reason.contains("sync a batch"), "{reason}");
    assert_eq!(node.view(|state| state.materials().len()), 0);
}

/// A disk that says how much is left.
#[derive(Debug)]
struct Full(CrashDisk);

impl Disk for Full {
    fn create(&self, name: &str, bytes: u64) -> std::io::Result<Box<dyn DiskFile>> {
        self.0.create(name, bytes)
    }
    fn open(&self, name: &str) -> std::io::Result<Box<dyn DiskFile>> {
        self.0.open(name)
    }
    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> std::io::Result<()> {
        self.0.remove(name)
    }
    fn list(&self) -> std::io::Result<Vec<String>> {
        self.0.list()
    }
    fn sync(&self) -> std::io::Result<()> {
        self.0.sync()
    }
    fn space_left(&self) -> std::io::Result<u64> {
        Ok(1 << 20)
    }
}

#[tokio::test]
async fn a_nearly_full_disk_refuses_proposals_and_keeps_the_rest() {
    let node = start_on(Arc::new(Full(CrashDisk::default())), no_fatal()).await.unwrap();
    node.initialize().await.unwrap();
    assert_eq!(node.propose(id(1), Command::Noop).await, Err(ProposeError::NoSpace));
    assert!(node.read_index().await.is_ok());
    node.shutdown().await;
}
