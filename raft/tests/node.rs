//! A whole node on a real disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use skep_core::apply::Change;
use skep_core::command::{ClusterInit, Command, Outcome};
use skep_core::id::{ENTROPY_LEN, Id, RequestId};
use skep_core::model::cluster::{ClusterSpec, Ring, RingKey, Slot, Trust};
use skep_core::model::material::{MaterialKind, MaterialSpec};
use skep_core::model::node::{ManagerInfo, NodeDescription, NodeSpec};
use skep_core::sealed::Sealed;
use skep_core::time::Stamp;
use skep_raft::{Clock, Config, Event, FatalHook, ProposeError, Raft, StartError, StorageKey};

fn config(dir: &Path) -> Config {
    Config {
        dir: dir.to_owned(),
        storage_key: StorageKey::new([7; 32]),
        raft_id: 1,
        addr: "127.0.0.1:2377".into(),
        on_fatal: FatalHook::new(|reason| panic!("fatal: {reason}")),
    }
}

async fn start(dir: &Path) -> Raft {
    let clock = AtomicU64::new(1_000_000_000);
    let clock = Arc::new(move || Stamp(clock.fetch_add(1, Ordering::Relaxed)));
    Raft::start(config(dir), clock).await.unwrap()
}

fn id<K>(number: u64) -> Id<K> {
    let mut entropy = [0; ENTROPY_LEN];
    entropy[..8].copy_from_slice(&number.to_be_bytes());
    Id::from_entropy(entropy)
}

fn init() -> Command {
    let slot = Slot { sealed: vec![1] };
    let key = RingKey { version: 1, created: Stamp(1), slots: BTreeMap::from([(id(1), slot)]) };
    let addr = String::from("10.0.0.1");
    Command::ClusterInit(Box::new(ClusterInit {
        id: id(1),
        spec: ClusterSpec::default(),
        ring: Ring { current: 1, keys: vec![key] },
        trust: Trust::default(),
        incarnation_id: [1; 16],
        node: id(1),
        node_spec: NodeSpec::default(),
        description: NodeDescription::default(),
        manager: ManagerInfo { raft_id: 1, addr: addr.clone(), seal_key: [0; 32] },
        public_key: Vec::new(),
        addr,
    }))
}

fn create(number: u64, payload: &[u8]) -> Command {
    Command::MaterialCreate {
        id: id(number),
        kind: MaterialKind::Secret,
        spec: MaterialSpec { name: format!("secret-{number}"), ..MaterialSpec::default() },
        size: payload.len() as u64 - 16,
        payload: Sealed { key: 1, nonce: [0; 12], bytes: payload.to_vec() },
    }
}

fn request(number: u64) -> RequestId {
    id(number)
}

async fn started(dir: &Path) -> Raft {
    let node = start(dir).await;
    node.initialize().await.unwrap();
    done(&node, 1, init()).await;
    node
}

async fn done(node: &Raft, number: u64, command: Command) {
    let outcome = node.propose(request(number), command).await.unwrap();
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_sole_voter_leads_at_once_and_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    assert!(!node.is_initialized().await.unwrap());
    assert!(!node.is_leader());
    let refused = node.propose(request(0), Command::Noop).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: None }));

    node.initialize().await.unwrap();
    assert!(node.is_leader());
    assert!(matches!(node.initialize().await, Err(StartError::Initialized)));
    for i in 0..10 {
        let outcome = node.propose(request(i), Command::Noop).await.unwrap();
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    }
    let before = node.read_index().await.unwrap();
    let stamp = node.view(skep_core::state::State::last_stamp);
    node.shutdown().await;
    let refused = node.propose(request(99), Command::Noop).await;
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
    let before = records(&node);
    node.shutdown().await;
    for _ in 0..2 {
        let node = start(dir.path()).await;
        assert_eq!(records(&node), before);
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
    let before = records(&node);
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
    assert_eq!(records(&again), before);
    again.shutdown().await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_repeated_request_gets_its_first_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let node = started(dir.path()).await;
    let first = node.propose(request(2), create(2, &[2; 40])).await.unwrap();
    assert_eq!(node.propose(request(2), create(2, &[2; 40])).await.unwrap(), first);
    let other = node.propose(request(3), create(2, &[2; 40])).await.unwrap();
    assert!(matches!(other, Outcome::Rejected(_)), "{other:?}");
    node.shutdown().await;
    let node = start(dir.path()).await;
    assert_eq!(node.propose(request(2), create(2, &[2; 40])).await.unwrap(), first);
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
    for i in 3..3 + skep_raft::limits::CHANGE_QUEUE as u64 + 10 {
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
    let command = create(2, &vec![0; skep_raft::limits::PROPOSAL_BYTES]);
    let refused = node.propose(request(2), command).await;
    assert!(matches!(refused, Err(ProposeError::TooLarge { .. })), "{refused:?}");
    node.shutdown().await;
}

/// A deletion starts a snapshot and a purge in time, on an idle node too.
#[tokio::test]
async fn a_deleted_payload_is_purged_before_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicU64::new(1_000_000_000));
    let clock = Arc::clone(&now);
    let clock: Clock = Arc::new(move || Stamp(clock.load(Ordering::Relaxed)));
    let node = Raft::start(config(dir.path()), clock).await.unwrap();
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

fn records(node: &Raft) -> Vec<Vec<u8>> {
    node.view(|state| {
        let mut records = Vec::new();
        skep_core::snapshot::write(state, &mut |record| records.push(record.to_vec()));
        records
    })
}

/// Not a check: prints how fast this machine's disk lets the log be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn rates() {
    let dir = tempfile::tempdir_in(std::env::var("DISK").unwrap_or("/var/tmp".into())).unwrap();
    let began = Instant::now();
    let node = start(dir.path()).await;
    println!("start: {:?}", began.elapsed());
    let began = Instant::now();
    node.initialize().await.unwrap();
    println!("initialize: {:?}", began.elapsed());

    let file = tempfile::tempfile_in("/var/tmp").unwrap();
    file.set_len(1 << 20).unwrap();
    let count = 200;
    let began = Instant::now();
    for i in 0..count {
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 300], i * 304).unwrap();
        file.sync_data().unwrap();
    }
    println!("the disk alone: {:?} each", began.elapsed() / u32::try_from(count).unwrap());

    let count = 500;
    let began = Instant::now();
    for i in 0..count {
        node.propose(request(i), Command::Noop).await.unwrap();
    }
    println!("one at a time: {:?} each", began.elapsed() / u32::try_from(count).unwrap());

    for clients in [16, 64] {
        let count = 10_000;
        let began = Instant::now();
        let tasks: Vec<_> = (0..clients)
            .map(|client| {
                let node = node.clone();
                tokio::spawn(async move {
                    for i in 0..count / clients {
                        let id = request(1_000_000 * clients + client * 10_000 + i);
                        node.propose(id, Command::Noop).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let took = began.elapsed();
        println!("{clients} at once: {:.0}/s", count as f64 / took.as_secs_f64());
    }
    println!("{:?}", node.metrics());
    let (before, began) = (cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let used = (cpu() - before).as_secs_f64() / began.elapsed().as_secs_f64();
    println!("idle: {:.3} % of a core", used * 100.0);
    node.shutdown().await;
    let began = Instant::now();
    let node = start(dir.path()).await;
    println!("restart: {:?}", began.elapsed());
    node.shutdown().await;
}

/// CPU time that this process has used.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let spent = tasks.map(|task| {
        let path = task.unwrap().path().join("schedstat");
        let stat = std::fs::read_to_string(path).unwrap_or_else(|_| stat.clone());
        stat.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(spent.sum())
}
