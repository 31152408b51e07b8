//! A supervisor killed while it starts its task, with the agent watching.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skep_integration::{Options, settle, task, tasks_of, wait_until};

use crate::{BOUND, bench, node, nothing_left};

/// Deaths in a row, each after another time, in milliseconds.
const AFTER: [u64; 10] = [0, 2, 5, 10, 15, 20, 30, 40, 60, 100];

#[test]
fn killed_at_any_point_of_the_start() -> Result<()> {
    let node = node(Options::default())?;
    let bench = bench(&node);
    let secret = bench.secret("lost", "not for long")?;
    let flags = ["--restart-delay", "20ms", "--secret", &secret];
    let service = bench.sleeper("unlucky", &flags)?;
    let mut killed = BTreeSet::new();
    for after in AFTER {
        let (task, pid) = wait_until("the next supervisor", BOUND, || {
            for process in skep_integration::processes_of(&node)? {
                let Some(dir) = process.args.get(3).filter(|_| process.is_supervisor()) else {
                    continue;
                };
                let task = dir.rsplit('/').next().unwrap_or_default().to_owned();
                let is_first = process.parent == node.daemon_pid()?;
                if is_first && !killed.contains(&task) {
                    return Ok(Some((task, process.pid)));
                }
            }
            Ok(None)
        })?;
        // Not to wait for anything: to hit another point each time.
        std::thread::sleep(Duration::from_millis(after));
        kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("after {after} ms"))?;
        let mut last = Vec::new();
        let told = settle("the failure", BOUND, || {
            last = tasks_of(&node, &service)?;
            let status = &task_or_gone(&last, &task);
            Ok(["failed", "rejected"].iter().any(|state| status["State"] == *state))
        });
        told.with_context(|| format!("killed after {after} ms: {last:?}"))?;
        let status = task_or_gone(&last, &task);
        let err = status["Err"].as_str().unwrap_or_default();
        ensure!(err.contains("supervisor"), "killed after {after} ms: {status}");
        eprintln!("after {after} ms: {} {err}", status["State"]);
        nothing_left(&node, &task).with_context(|| format!("killed after {after} ms"))?;
        killed.insert(task);
    }
    let container = bench.container(&service)?;
    let read = bench.exec(&container, &["cat", &format!("/run/secrets/{secret}")])?;
    ensure!(read == "not for long", "{read}");
    ensure!(tasks_of(&node, &service)?.len() <= 7, "the history");
    Ok(())
}

fn task_or_gone(all: &[serde_json::Value], id: &str) -> serde_json::Value {
    task(all, id).map(|task| task["Status"].clone()).unwrap_or_default()
}
