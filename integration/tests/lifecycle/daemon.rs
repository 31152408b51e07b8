//! The daemon dies, stops and comes back: no task notices.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skep_integration::{
    Node, Seen, cgroups_of, look, mounts_naming, processes_of, settle, task, tasks_of,
};

use crate::{bench, node};

const BOUND: Duration = Duration::from_secs(30);
const PAYLOAD: &[u8] = b"still readable\n";

/// Reads a secret of every container over and over while `during` runs; no read may fail.
fn reading<T>(
    seen: &[Seen],
    path: &str,
    during: impl FnOnce(&AtomicUsize) -> Result<T>,
) -> Result<T> {
    let (over, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let readers: Vec<_> = seen
            .iter()
            .map(|one| {
                let (over, reads) = (&over, &reads);
                scope.spawn(move || -> Result<()> {
                    let held = one.open(path)?;
                    while !over.load(Ordering::Relaxed) {
                        let mut bytes = [0; 64];
                        let got = held.read_at(&mut bytes, 0).context("the open descriptor")?;
                        ensure!(bytes[..got] == *PAYLOAD, "the open descriptor read {got} bytes");
                        let fresh = std::fs::read(one.path(path)).context("a new descriptor")?;
                        ensure!(fresh == PAYLOAD, "a new descriptor read {} bytes", fresh.len());
                        reads.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(1));
                    }
                    Ok(())
                })
            })
            .collect();
        let done = during(&reads);
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().map_err(|_| anyhow!("a reader died"))??;
        }
        done
    })
}

/// Waits for `count` more rounds of reads.
fn more_reads(reads: &AtomicUsize, count: usize) -> Result<()> {
    let start = reads.load(Ordering::Relaxed);
    settle("reads", BOUND, || Ok(reads.load(Ordering::Relaxed) >= start + count))
}

fn look_all(node: &Node, containers: &[String]) -> Result<Vec<Seen>> {
    containers.iter().map(|id| look(node, id)).collect()
}

#[test]
fn five_tasks_over_kill_and_restart() -> Result<()> {
    let node = node(&[])?;
    let bench = bench(&node);
    let secret = bench.secret("kept", PAYLOAD)?;
    let service = bench.sleeper("five", &["--replicas", "5", "--secret", &secret])?;
    let once = bench.sleeper("once", &["--restart-condition", "none", "--secret", &secret])?;
    let before = look_all(&node, &bench.running(&service, 5)?)?;
    let ending = look(&node, &bench.container(&once)?)?;
    let path = format!("/run/secrets/{secret}");

    reading(&before, &path, |reads| {
        more_reads(reads, 50)?;
        node.kill_daemon()?;
        // An exit that nobody but the shim sees.
        kill(Pid::from_raw(ending.pid), Signal::SIGKILL)?;
        settle("the end of the container", BOUND, || Ok(ending.is_dead()))?;
        more_reads(reads, 500)?;
        node.launch()?;
        ensure!(look_all(&node, &bench.running(&service, 5)?)? == before, "tasks were replaced");
        more_reads(reads, 50)
    })?;

    let all = tasks_of(&node, &service)?;
    ensure!(all.len() == 5, "{} tasks", all.len());
    for one in &before {
        ensure!(task(&all, &one.task)?["Status"]["State"] == "running", "{all:?}");
        let read = bench.exec(&one.id, &["cat", &path])?;
        ensure!(read.as_bytes() == PAYLOAD.trim_ascii_end(), "{read}");
    }
    let mut last = Vec::new();
    settle("the report of the exit", BOUND, || {
        last = tasks_of(&node, &once)?;
        Ok(task(&last, &ending.task)?["Status"]["State"] == "failed")
    })
    .with_context(|| format!("{last:?}"))?;
    let status = &task(&last, &ending.task)?["Status"];
    ensure!(status["ContainerStatus"]["ExitCode"] == 137, "{status}");
    ensure!(status["Err"] == "task: non-zero exit (137)", "{status}");

    // What was adopted is still under control.
    bench.cli.ok(&["service", "rm", &service, &once])?;
    bench.running(&service, 0)?;
    settle("the end of the containers", BOUND, || Ok(before.iter().all(Seen::is_dead)))
}

#[test]
fn tasks_over_a_clean_restart() -> Result<()> {
    let node = node(&[])?;
    let bench = bench(&node);
    let secret = bench.secret("kept", PAYLOAD)?;
    let service = bench.sleeper("two", &["--replicas", "2", "--secret", &secret])?;
    let before = look_all(&node, &bench.running(&service, 2)?)?;
    for _ in 0..3 {
        ensure!(node.stop_daemon()?.success(), "a clean stop: {}", node.log_tail());
        node.launch()?;
        ensure!(look_all(&node, &bench.running(&service, 2)?)? == before, "tasks were replaced");
    }
    // Changed while the daemon was new to them.
    bench.cli.ok(&["service", "scale", "--detach", &format!("{service}=1")])?;
    bench.running(&service, 1)?;
    Ok(())
}

#[test]
fn acknowledged_is_durable() -> Result<()> {
    let node = node(&[])?;
    let bench = bench(&node);
    let mut made = Vec::new();
    for round in 0..3 {
        for number in 0..5 {
            made.push(bench.secret(&format!("durable-{round}-{number}"), "x")?);
        }
        node.kill_daemon()?;
        node.launch()?;
        for name in &made {
            bench.cli.ok(&["secret", "inspect", name])?;
        }
    }
    Ok(())
}

#[test]
fn nothing_is_left_on_the_host() -> Result<()> {
    let node = node(&[])?;
    let bench = bench(&node);
    let secret = bench.secret("gone", PAYLOAD)?;
    let service = bench.sleeper("leave", &["--replicas", "2", "--secret", &secret])?;
    let seen = look_all(&node, &bench.running(&service, 2)?)?;
    let named = node.root().display().to_string();
    ensure!(mounts_naming(&named)?.is_empty(), "mounts: {:?}", mounts_naming(&named)?);
    let id = node.get("/info")?["Swarm"]["NodeID"].as_str().context("NodeID")?.to_owned();
    ensure!(!cgroups_of(&id)?.is_empty(), "no cgroups");

    bench.cli.ok(&["service", "rm", &service])?;
    let supervisors = || -> Result<bool> {
        Ok(processes_of(&node)?.iter().any(|process| process.is_supervisor()))
    };
    settle("the end of the shims", BOUND, || Ok(!supervisors()?))?;
    for one in &seen {
        ensure!(one.is_dead(), "a container without a shim");
        let parts = [node.data_root().join("tasks"), node.run_root().join("tasks")];
        let left = || parts.iter().any(|part| part.join(&one.task).exists());
        settle("the task's files", BOUND, || Ok(!left()))?;
        settle("the task's cgroups", BOUND, || {
            let names = [one.task.clone(), format!("shim-{}", one.task)];
            Ok(!cgroups_of(&id)?.iter().any(|top| names.iter().any(|name| top.join(name).exists())))
        })?;
    }
    ensure!(node.stop_daemon()?.success(), "a clean stop: {}", node.log_tail());
    settle("the last process", BOUND, || Ok(processes_of(&node)?.is_empty()))?;
    ensure!(mounts_naming(&named)?.is_empty(), "mounts: {:?}", mounts_naming(&named)?);
    ensure!(!node.socket().exists(), "the socket");
    Ok(())
}
