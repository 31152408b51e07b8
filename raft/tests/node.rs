//! A whole node on a real disk.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use skep_core::command::{Command, Outcome};
use skep_core::id::{ENTROPY_LEN, RequestId};
use skep_core::time::Stamp;
use skep_raft::{Config, FatalHook, ProposeError, Raft, StartError, StorageKey};

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

fn request(number: u64) -> RequestId {
    let mut entropy = [0; ENTROPY_LEN];
    entropy[..8].copy_from_slice(&number.to_le_bytes());
    RequestId::from_entropy(entropy)
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

/// Not a check: prints how fast this machine's disk lets the log be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn rates() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let began = Instant::now();
    let node = start(dir.path()).await;
    println!("start: {:?}", began.elapsed());
    let began = Instant::now();
    node.initialize().await.unwrap();
    println!("initialize: {:?}", began.elapsed());

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
    node.shutdown().await;
    let began = Instant::now();
    let node = start(dir.path()).await;
    println!("restart: {:?}", began.elapsed());
    node.shutdown().await;
}
