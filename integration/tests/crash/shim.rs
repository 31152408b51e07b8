//! The shim is killed while it ends: before, between and after the writes of its exit record.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skep_integration::{Bench, Node, Options, Program, settle};

use crate::tracer::{Strike, Subject, Traced};
use crate::{BOUND, running, supervisors};

/// A node with a task that will end with code 7 once its file is there.
fn scene(node: &Node) -> Result<(Bench<'_>, String)> {
    node.import_busybox()?;
    let bench = Bench::new(node, Program::Skep, "shim".to_owned());
    let ends = "while ! [ -e /end ]; do sleep 0.05; done; exit 7";
    let service = bench.service("ends", &["--restart-condition", "none"], &["sh", "-c", ends])?;
    bench.container(&service)?;
    Ok((bench, service))
}

fn status(node: &Node, service: &str) -> Result<Value> {
    let filters = skep_integration::encode_query(&format!("{{\"service\":[\"{service}\"]}}"));
    let tasks = node.get(&format!("/tasks?filters={filters}"))?;
    let tasks = tasks.as_array().context("no list")?;
    ensure!(tasks.len() == 1, "{tasks:?}");
    Ok(tasks.first().context("no task")?["Status"].clone())
}

/// Ends the task while its shim is traced; the daemon is away if so asked.
fn end(node: &Node, strike: Strike, away: bool) -> Result<Value> {
    let (bench, service) = scene(node)?;
    let (task, pid) = running(node, &service)?.pop_first().context("no task")?;
    let all = supervisors(node)?;
    let own = |one: &&skep_integration::Process| all.iter().all(|other| other.pid != one.parent);
    let shim = all.iter().find(own).context("no shim")?.pid;
    let traced = Traced::start(Subject::Running(shim), &node.data_root(), strike)?;
    if away {
        node.kill_daemon()?;
    }
    std::fs::write(format!("/proc/{pid}/root/end"), b"")?;
    settle("the end of the shim", BOUND, || Ok(traced.has_ended()))?;
    let points = traced.end()?;
    ensure!(!points.is_empty(), "the shim changed nothing");
    if away {
        node.launch()?;
    }
    let mut last = Value::Null;
    settle("the end reported", BOUND, || {
        last = status(node, &service)?;
        Ok(last["State"] == "failed")
    })
    .with_context(|| format!("{task}: {last}\n{}", node.log_tail()))?;
    bench.cli.ok(&["service", "rm", &service])?;
    crate::nothing_left(node)?;
    Ok(last)
}

/// Killed between the record, which is on disk, and the word to the daemon.
#[test]
fn killed_before_it_tells_of_the_record() -> Result<()> {
    for away in [false, true] {
        let node = Node::start(Options::default())?;
        // The directory is flushed after the rename.
        let status = end(&node, Strike::After("rename", "exit.json"), away)?;
        ensure!(status["ContainerStatus"]["ExitCode"] == 7, "away {away}: {status}");
    }
    Ok(())
}

/// Killed at each change that it makes when it ends: the end is told once, with the container's
/// own code or as that of a lost task.
#[test]
fn killed_at_each_change_of_its_end() -> Result<()> {
    for at in 0..6 {
        let node = Node::start(Options::default())?;
        let strike = if at % 2 == 0 { Strike::Before(at) } else { Strike::Within(at) };
        let status = end(&node, strike, at % 3 == 0).with_context(|| format!("{strike:?}"))?;
        let code = status["ContainerStatus"]["ExitCode"].as_i64();
        ensure!(code == Some(7) || code == Some(137), "{strike:?}: {status}");
    }
    Ok(())
}
