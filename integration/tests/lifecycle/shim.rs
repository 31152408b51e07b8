//! The shim dies: what it served is unreadable at once, and its container does not outlive it.

use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skep_integration::{Node, look, settle, shim_of, task, tasks_of};

use crate::{bench, node};

const BOUND: Duration = Duration::from_secs(30);
/// Longest life of a container after its shim.
const DEAD_WITHIN: Duration = Duration::from_millis(100);

#[test]
fn killed_while_the_daemon_runs() -> Result<()> {
    let node = node(&[])?;
    killed(&node, false)
}

#[test]
fn killed_while_the_daemon_is_away() -> Result<()> {
    let node = node(&[])?;
    killed(&node, true)
}

fn killed(node: &Node, away: bool) -> Result<()> {
    let bench = bench(node);
    let secret = bench.secret("lost", "read before")?;
    let flags = ["--restart-delay", "100ms", "--secret", &secret];
    let service = bench.sleeper("orphan", &flags)?;
    let before = look(node, &bench.container(&service)?)?;
    let shim = shim_of(node, &before.task)?;
    let path = format!("/run/secrets/{secret}");
    let held = before.open(&path)?;
    let mut bytes = [0; 16];
    ensure!(held.read_at(&mut bytes, 0)? == 11, "readable before");
    if away {
        node.kill_daemon()?;
    }

    let start = Instant::now();
    kill(Pid::from_raw(shim.pid), Signal::SIGKILL)?;
    let late = wait_unreadable(|| held.read_at(&mut bytes, 0).is_err())?;
    while !before.is_dead() {
        ensure!(start.elapsed() < BOUND, "the container lives on");
        thread::sleep(Duration::from_millis(1));
    }
    let dead = start.elapsed();
    ensure!(late < DEAD_WITHIN, "readable for {late:?}");
    ensure!(dead < DEAD_WITHIN, "dead after {dead:?}");

    if away {
        node.launch()?;
    }
    let after = bench.replaced(&service, std::slice::from_ref(&before.id), 1)?.remove(0);
    ensure!(bench.exec(&after, &["cat", &path])? == "read before", "the next task");
    let mut last = Vec::new();
    settle("the failure reported", BOUND, || {
        last = tasks_of(node, &service)?;
        Ok(task(&last, &before.task)?["Status"]["State"] == "failed")
    })
    .with_context(|| format!("{last:?}"))?;
    ensure!(last.len() == 2, "{last:?}");
    Ok(())
}

/// How long it takes until a read fails; the bound is far above what is allowed.
fn wait_unreadable(mut failed: impl FnMut() -> bool) -> Result<Duration> {
    let start = Instant::now();
    while !failed() {
        ensure!(start.elapsed() < BOUND, "it can still be read");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(start.elapsed())
}

#[test]
fn container_killed() -> Result<()> {
    let node = node(&[])?;
    let bench = bench(&node);
    let secret = bench.secret("lost", "read before")?;
    let flags = ["--restart-delay", "100ms", "--secret", &secret];
    let service = bench.sleeper("killed", &flags)?;
    let before = look(&node, &bench.container(&service)?)?;
    let held = before.open(&format!("/run/secrets/{secret}"))?;
    let shim = shim_of(&node, &before.task)?;
    kill(Pid::from_raw(before.pid), Signal::SIGKILL)?;
    let gone = || !std::path::Path::new(&format!("/proc/{}", shim.pid)).exists();
    settle("the end of the shim", BOUND, || Ok(gone()))?;
    ensure!(held.read_at(&mut [0; 16], 0).is_err(), "it can still be read");
    bench.replaced(&service, std::slice::from_ref(&before.id), 1)?;
    let status = task(&tasks_of(&node, &service)?, &before.task)?["Status"].clone();
    ensure!(
        status["State"] == "failed" && status["Err"] == "task: non-zero exit (137)",
        "{status}"
    );
    Ok(())
}

/// A loop of crashes: each task's exit is told, and the history is kept short.
#[test]
fn crash_loop() -> Result<()> {
    let node = node(&[])?;
    let bench = bench(&node);
    let secret = bench.secret("crash", "x")?;
    let flags = ["--restart-delay", "50ms", "--secret", &secret];
    let service = bench.service("crash", &flags, &["sh", "-c", "sleep 0.05; exit 3"])?;
    settle("failures", BOUND, || {
        let failed = |task: &&serde_json::Value| task["Status"]["State"] == "failed";
        let all = tasks_of(&node, &service)?;
        ensure!(all.len() <= 7, "{} tasks in the history", all.len());
        Ok(all.iter().filter(failed).count() >= 4)
    })?;
    let table = bench.cli.ok(&["service", "ps", "--no-trunc", &service])?;
    ensure!(table.contains("\"task: non-zero exit (3)\""), "{table}");
    ensure!(table.contains(" \\_ "), "{table}");
    Ok(())
}
