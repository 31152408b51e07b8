//! Not a check: prints how fast this machine's disk lets the log be.
//!
//! `DISK=/dir cargo test -p skep-raft --test rates -- --ignored --nocapture`

#![cfg(test)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use skep_core::command::Command;
use skep_core::id::{ENTROPY_LEN, RequestId};
use skep_core::time::Stamp;
use skep_raft::network::{Answer, Peer, Transport, TransportError};
use skep_raft::{Config, FatalHook, Raft, StorageKey};

async fn start(dir: &Path) -> Raft {
    let config = Config {
        dir: dir.to_owned(),
        storage_key: StorageKey::new([7; 32]),
        raft_id: 1,
        addr: "127.0.0.1:2377".into(),
        on_fatal: FatalHook::new(|reason| panic!("fatal: {reason}")),
        format: skep_core::format::FORMAT,
    };
    let clock = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Stamp(u64::try_from(now.as_nanos()).unwrap())
    };
    Raft::start(config, Arc::new(clock)).await.unwrap()
}

fn request(number: u64) -> RequestId {
    let mut entropy = [0; ENTROPY_LEN];
    entropy[..8].copy_from_slice(&number.to_be_bytes());
    RequestId::from_entropy(entropy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn rates() {
    let dir = tempfile::tempdir_in(std::env::var("DISK").unwrap_or("/var/tmp".into())).unwrap();
    let began = Instant::now();
    let node = start(dir.path()).await;
    println!("start: {:?}", began.elapsed());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmRSS")).unwrap());
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

/// Carries requests between the nodes of this process at once.
#[derive(Debug, Clone, Default)]
struct Wire(Arc<Mutex<BTreeMap<u64, Raft>>>);

#[derive(Debug)]
struct End(u64, Wire);

impl Transport for End {
    fn call(&self, peer: Peer, request: Vec<u8>) -> Answer<'_> {
        Box::pin(async move {
            let node = self.1.0.lock().unwrap().get(&peer.raft_id).cloned();
            let Some(node) = node else {
                let source = std::io::ErrorKind::NotConnected.into();
                return Err(TransportError::Unreachable { peer, source });
            };
            // As a transport does: each request on a task of its own.
            let from = self.0;
            let answer = tokio::spawn(async move { node.answer(from, &request).await });
            let answer = answer.await.unwrap();
            let source = std::io::Error::other;
            answer.map_err(|e| TransportError::Broken { peer, source: source(e) })
        })
    }
}

/// Three managers in one process, each on a directory of the same disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn rates_of_three() {
    let dir = tempfile::tempdir_in(std::env::var("DISK").unwrap_or("/var/tmp".into())).unwrap();
    let wire = Wire::default();
    let mut nodes = Vec::new();
    for raft_id in 1..=3 {
        let config = Config {
            dir: dir.path().join(raft_id.to_string()),
            storage_key: StorageKey::new([7; 32]),
            raft_id,
            addr: format!("127.0.0.1:{raft_id}"),
            on_fatal: FatalHook::new(|reason| panic!("fatal: {reason}")),
            format: skep_core::format::FORMAT,
        };
        let end = Arc::new(End(raft_id, wire.clone()));
        let node = Raft::start_among(config, Arc::new(|| Stamp(1)), end).await.unwrap();
        wire.0.lock().unwrap().insert(raft_id, node.clone());
        nodes.push(node);
    }
    let leader = nodes[0].clone();
    leader.initialize().await.unwrap();
    let began = Instant::now();
    for raft_id in [2, 3] {
        leader.add_learner(raft_id, format!("127.0.0.1:{raft_id}")).await.unwrap();
        leader.promote(raft_id).await.unwrap();
    }
    println!("two managers join: {:?}", began.elapsed());
    let count = 1_000;
    let mut each: Vec<Duration> = Vec::new();
    for i in 0..count {
        let began = Instant::now();
        leader.propose(request(i), Command::Noop).await.unwrap();
        each.push(began.elapsed());
    }
    each.sort_unstable();
    println!("one at a time: median {:?}, p99 {:?}", each[500], each[990]);
    for clients in [16, 64] {
        let (count, began) = (20_000, Instant::now());
        let tasks: Vec<_> = (0..clients)
            .map(|client| {
                let leader = leader.clone();
                tokio::spawn(async move {
                    for i in 0..count / clients {
                        let id = request(1_000_000 * clients + client * 20_000 + i);
                        leader.propose(id, Command::Noop).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        println!("{clients} at once: {:.0}/s", count as f64 / began.elapsed().as_secs_f64());
    }
    let began = Instant::now();
    leader.hand_over().await.unwrap();
    println!("handing over: {:?}", began.elapsed());
    for node in nodes {
        node.shutdown().await;
    }
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
