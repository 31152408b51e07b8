//! Not a check: prints how fast this machine's disk lets the log be.
//!
//! `DISK=/dir cargo test -p skep-raft --test rates -- --ignored --nocapture`

#![cfg(test)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use skep_core::command::Command;
use skep_core::id::{ENTROPY_LEN, RequestId};
use skep_core::time::Stamp;
use skep_raft::{Config, FatalHook, Raft, StorageKey};

async fn start(dir: &Path) -> Raft {
    let config = Config {
        dir: dir.to_owned(),
        storage_key: StorageKey::new([7; 32]),
        raft_id: 1,
        addr: "127.0.0.1:2377".into(),
        on_fatal: FatalHook::new(|reason| panic!("fatal: {reason}")),
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
