//! The whole node on a disk that stops, fills up, or is compacted under load.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use skep_core::command::{Command, Outcome};
use skep_core::format::FORMAT;
use skep_core::time::Stamp;
use tokio::time::timeout;

use crate::disk::{Disk, DiskFile};
use crate::limits::{SEGMENT_BYTES, SNAPSHOT_SEGMENTS};
use crate::network::Alone;
use crate::node::Disks;
use crate::samples::{create, id, init};
use crate::testing::{Bytes, CrashDisk, Fault, Survival};
use crate::{Config, FatalHook, Raft, StartError, StorageKey};

const PATIENCE: Duration = Duration::from_secs(60);

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

async fn start(disks: Disks, hook: FatalHook) -> Result<Raft, StartError> {
    let clock = AtomicU64::new(1_000_000_000);
    let clock = Arc::new(move || Stamp(clock.fetch_add(1, Ordering::Relaxed)));
    Raft::start_on(disks, config("unused".as_ref(), hook), clock, Arc::new(Alone)).await
}

fn on(disk: &CrashDisk) -> Disks {
    Disks { log: Arc::new(disk.clone()), snapshots: Arc::new(disk.beside()) }
}

fn quiet() -> FatalHook {
    FatalHook::new(|_| {})
}

/// Secrets by number, with a byte of their payload.
type Secrets = BTreeMap<u64, u8>;

fn secrets(node: &Raft) -> Secrets {
    node.view(|state| {
        let all = (2..100).filter(|number| state.material(&id(*number)).is_some());
        let byte = |number| state.payload(&id(number), 1).map_or(0, |sealed| sealed.bytes[0]);
        all.map(|number| (number, byte(number))).collect()
    })
}

/// One step of a node's life.
enum Step {
    Create(u64),
    Remove(u64),
    Snapshot,
    Restart,
}

const LIFE: [Step; 14] = [
    Step::Create(2),
    Step::Create(3),
    Step::Snapshot,
    Step::Create(4),
    Step::Remove(3),
    Step::Restart,
    Step::Create(5),
    Step::Snapshot,
    Step::Create(6),
    Step::Remove(2),
    Step::Snapshot,
    Step::Snapshot,
    Step::Restart,
    Step::Create(7),
];

/// Lives until the disk stops it. Returns what was acknowledged, and what may be there instead.
async fn live(disk: &CrashDisk) -> [Secrets; 2] {
    let mut done = Secrets::new();
    let same = |done: &Secrets| [done.clone(), done.clone()];
    let Ok(mut node) = start(on(disk), quiet()).await else { return same(&done) };
    if node.initialize().await.is_err() || node.propose(id(1), init()).await.is_err() {
        node.shutdown().await;
        return same(&done);
    }
    for (step, request) in LIFE.iter().zip(100..) {
        let mut next = done.clone();
        let command = match step {
            Step::Create(number) => {
                next.insert(*number, *number as u8);
                create(*number, &[*number as u8; 600])
            }
            Step::Remove(number) => {
                next.remove(number);
                Command::MaterialRemove { id: id(*number) }
            }
            Step::Snapshot if node.snapshot_now().await.is_ok() => continue,
            Step::Snapshot => break,
            Step::Restart => {
                node.shutdown().await;
                match start(on(disk), quiet()).await {
                    Ok(again) => node = again,
                    Err(_) => return same(&done),
                }
                continue;
            }
        };
        match node.propose(id(request), command).await {
            Ok(outcome) => assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}"),
            Err(_) => {
                node.shutdown().await;
                return [done, next];
            }
        }
        done = next;
    }
    node.shutdown().await;
    same(&done)
}

#[tokio::test]
async fn a_node_survives_a_stop_at_every_change_to_the_disk() {
    let whole = CrashDisk::default();
    let all = live(&whole).await;
    assert_eq!(all[0].keys().copied().collect::<Vec<_>>(), [4, 5, 6, 7]);
    for at in 0..whole.ops() {
        let disk = CrashDisk::default();
        disk.fault(Fault::Stop { at, torn: 700 });
        let allowed = timeout(PATIENCE, live(&disk)).await.expect("it hangs");
        let ways = [(0, Bytes::Lost), (usize::MAX, Bytes::Kept), (1, Bytes::Every(1))];
        for (names, bytes) in ways {
            let point = format!("point {at}, {:?}, names {names}, {bytes:?}", disk.hit());
            let left = disk.crash_to(Survival { names, bytes });
            let node = start(on(&left), quiet()).await.unwrap_or_else(|e| panic!("{point}: {e:?}"));
            let found = secrets(&node);
            assert!(allowed.contains(&found), "{point}: {found:?}, allowed {allowed:?}");
            // And it goes on, if it ever began.
            if node.is_initialized().await.unwrap() && node.view(|s| s.cluster().is_some()) {
                let outcome = node.propose(id(99), create(99, &[9; 40])).await;
                assert!(matches!(outcome, Ok(Outcome::Done(_))), "{point}: {outcome:?}");
            }
            node.shutdown().await;
        }
    }
    println!("{} points, 3 crashes each", whole.ops());
    assert!(whole.ops() > 70, "{}", whole.ops());
}

/// A disk that may be full.
#[derive(Debug)]
struct Small {
    disk: CrashDisk,
    is_full: Arc<AtomicBool>,
}

impl Disk for Small {
    fn create(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        if self.is_full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
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
        self.disk.space_left()
    }
}

/// A deadline may ask for a snapshot on a disk that is full: the node goes on without one.
#[tokio::test]
async fn a_snapshot_without_room_ends_nothing() {
    let is_full = Arc::new(AtomicBool::new(false));
    let small = |disk| Small { disk, is_full: Arc::clone(&is_full) };
    let disk = CrashDisk::default();
    let (log, snapshots) = (small(disk.clone()), small(disk.beside()));
    let disks = Disks { log: Arc::new(log), snapshots: Arc::new(snapshots) };
    let node = start(disks, FatalHook::new(|reason| panic!("{reason}"))).await.unwrap();
    node.initialize().await.unwrap();
    node.propose(id(1), init()).await.unwrap();
    for number in 2..5 {
        node.propose(id(number), create(number, &[number as u8; 40])).await.unwrap();
        is_full.store(true, Ordering::Relaxed);
        let refused = node.snapshot_now().await.unwrap_err();
        assert!(refused.to_string().contains("make a snapshot"), "{refused}");
        node.propose(id(50 + number), Command::Noop).await.unwrap();
        is_full.store(false, Ordering::Relaxed);
        node.snapshot_now().await.unwrap();
        assert_eq!(node.metrics().purged_index, node.metrics().snapshot_index);
    }
    let before = secrets(&node);
    node.shutdown().await;
    let node = start(on(&disk), quiet()).await.unwrap();
    assert_eq!((before.len(), secrets(&node)), (3, before));
    node.shutdown().await;
}

fn bytes_in(dir: &Path) -> u64 {
    // A file may go while they are counted.
    let files = std::fs::read_dir(dir).unwrap().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Proposals go on while the keeper, and somebody in a hurry besides, compact the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_under_load_loses_nothing_and_keeps_the_disk_small() {
    const CLIENTS: u64 = 4;
    const ROUNDS: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let begin = || {
        let clock = AtomicU64::new(1_000_000_000);
        let clock = Arc::new(move || Stamp(clock.fetch_add(1, Ordering::Relaxed)));
        let hook = FatalHook::new(|reason| panic!("{reason}"));
        Raft::start(config(dir.path(), hook), clock)
    };
    let node = begin().await.unwrap();
    node.initialize().await.unwrap();
    node.propose(id(1), init()).await.unwrap();
    let busy = Arc::new(AtomicUsize::new(CLIENTS as usize));
    let clients = (0..CLIENTS).map(|client| {
        let (node, busy) = (node.clone(), Arc::clone(&busy));
        tokio::spawn(async move {
            let mut held = BTreeSet::new();
            for round in 0..ROUNDS {
                let number = 1_000 * (client + 1) + round;
                let made = node.propose(id(number), create(number, &[client as u8; 3_000])).await;
                assert!(matches!(made, Ok(Outcome::Done(_))), "{made:?}");
                held.insert(number);
                // Each keeps ten, so that the state stays small and the log does not.
                if held.len() > 10 {
                    let oldest = held.pop_first().unwrap();
                    let gone = Command::MaterialRemove { id: id(oldest) };
                    let gone = node.propose(id(100_000 + number), gone).await;
                    assert!(matches!(gone, Ok(Outcome::Done(_))), "{gone:?}");
                }
            }
            busy.fetch_sub(1, Ordering::Relaxed);
            held
        })
    });
    let clients: Vec<_> = clients.collect();
    let (mut compactions, mut largest) = (0, 0);
    while busy.load(Ordering::Relaxed) > 0 {
        if compactions % 2 == 0 {
            node.snapshot_now().await.unwrap();
        }
        compactions += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
        largest = largest.max(bytes_in(&dir.path().join("log")));
    }
    let mut held = BTreeSet::new();
    for client in clients {
        held.extend(client.await.unwrap());
    }
    let written = CLIENTS * ROUNDS * 3_000;
    println!(
        "{compactions} looks, {} entries, {largest} bytes of {written}",
        node.metrics().last_index.unwrap()
    );
    // The keeper acts at so many segments; what is written while it does comes on top.
    assert!(largest < 2 * SNAPSHOT_SEGMENTS as u64 * SEGMENT_BYTES, "{largest} bytes");
    assert!(std::fs::read_dir(dir.path().join("snapshots")).unwrap().count() <= 2);
    let found = |node: &Raft| -> BTreeSet<u64> {
        let there = |number: &u64| {
            node.view(|state| {
                let payload = state.payload(&id(*number), 1);
                payload.is_some_and(|sealed| sealed.bytes.len() == 3_000)
            })
        };
        (1_000..10_000).filter(there).collect()
    };
    assert_eq!(found(&node), held);
    node.shutdown().await;
    let node = begin().await.unwrap();
    assert_eq!(found(&node), held);
    node.shutdown().await;
}
