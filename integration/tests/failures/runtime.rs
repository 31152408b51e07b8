//! A runtime that is missing, fails, or hangs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use skep_integration::{Node, Options, settle, tasks_of, wait_until};
use tempfile::TempDir;

use crate::{BOUND, bench, ends, node, nothing_left, once, says};

/// How long one call of the runtime may take, and how much longer a test waits for its end.
const CALL: Duration = Duration::from_secs(60);
const LATE: Duration = Duration::from_secs(60);
const FAILED: &str = "starting container failed: failed to create task for container: failed to \
                      create shim task: OCI runtime create failed: ";

/// A node whose runtime is a script around runc: `script` runs with its verb in `$verb`.
fn node_with(script: &str) -> Result<(Node, TempDir)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("runtime");
    let verbs = "for word in \"$@\"; do case $word in create|start|delete|exec) verb=$word; break;; \
                 esac; done";
    fs::write(&path, format!("#!/bin/sh\n{verbs}\n{script}\nexec runc \"$@\"\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok((node(with_runtime(&path.display().to_string()))?, dir))
}

fn with_runtime(path: &str) -> Options {
    Options { args: vec!["--runtime".to_owned(), path.to_owned()], ..Options::default() }
}

#[test]
fn missing_until_it_is_installed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("runc");
    let shown = path.display().to_string();
    let node = node(with_runtime(&shown))?;
    let bench = bench(&node);
    let service = bench.sleeper("early", &["--restart-delay", "200ms"])?;
    let err = format!(
        "{FAILED}cannot run {shown:?}: install it, or name another runtime with --runtime: No \
         such file or directory (os error 2): unknown"
    );
    ends(&bench, &service, "failed", &err)?;
    let real = ["/usr/sbin/runc", "/usr/bin/runc", "/usr/local/bin/runc"];
    let real = real.iter().find(|path| fs::exists(path).is_ok_and(|there| there));
    symlink(real.context("no runc")?, &path)?;
    bench.container(&service)?;
    Ok(())
}

#[test]
fn that_fails_says_why() -> Result<()> {
    let script = "[ \"$verb\" = create ] && { echo no luck today >&2; exit 3; }";
    let (node, dir) = node_with(script)?;
    let bench = bench(&node);
    let service = once(&bench, "unlucky", &[], &["true"])?;
    let path = dir.path().join("runtime");
    let err = format!("{FAILED}{path:?} ended with code 3: no luck today: unknown");
    let over = ends(&bench, &service, "failed", &err)?;
    ensure!(over.code() == 128, "{over:?}");
    Ok(())
}

/// It made the container, which then has to go again.
#[test]
fn that_fails_to_start_what_it_made() -> Result<()> {
    let script = "[ \"$verb\" = start ] && { echo no start today >&2; exit 3; }";
    let (node, _dir) = node_with(script)?;
    let bench = bench(&node);
    let service = once(&bench, "halfway", &[], &["sleep", "1000000"])?;
    let err = "starting container failed: OCI runtime start failed: …: no start today: unknown";
    ends(&bench, &service, "failed", err).map(drop)
}

/// The wait is bounded, and what the call has started in turn goes with it.
#[test]
fn that_hangs_fails_the_task() -> Result<()> {
    let script = "[ \"$verb\" = create ] && { echo thinking >&2; sleep 1000000; }";
    let (node, _dir) = node_with(script)?;
    let bench = bench(&node);
    let service = once(&bench, "hanging", &[], &["true"])?;
    let start = Instant::now();
    let failed = |state: &str| ["failed", "rejected"].contains(&state);
    settle("the end of the wait", CALL + LATE, || Ok(failed(&crate::told(&node, &service)?.0)))?;
    ensure!(start.elapsed() >= CALL / 2, "after {:?}", start.elapsed());
    let err = format!("{FAILED}… did not end within 60 s: thinking: unknown");
    ends(&bench, &service, "failed", &err).map(drop)
}

/// Nobody waits for a start that is no longer wanted.
#[test]
fn that_hangs_does_not_hold_up_the_removal() -> Result<()> {
    let (node, _dir) = node_with("[ \"$verb\" = create ] && sleep 1000000")?;
    let bench = bench(&node);
    let service = bench.sleeper("unwanted", &[])?;
    let task = wait_until("the start", BOUND, || {
        let all = tasks_of(&node, &service)?;
        let task = all.first().filter(|task| task["Status"]["State"] == "starting");
        Ok(task.and_then(|task| task["ID"].as_str()).map(str::to_owned))
    })?;
    let start = Instant::now();
    bench.cli.ok(&["service", "rm", &service])?;
    let dir = node.data_root().join("tasks").join(&task);
    settle("the end of the task", CALL / 2, || Ok(!dir.exists()))?;
    nothing_left(&node, &task)?;
    ensure!(start.elapsed() < CALL / 2, "after {:?}", start.elapsed());
    Ok(())
}

#[test]
fn that_does_not_delete_leaves_nothing_behind() -> Result<()> {
    let (node, _dir) = node_with("[ \"$verb\" = delete ] && sleep 1000000")?;
    let bench = bench(&node);
    let service = once(&bench, "sticky", &[], &["sh", "-c", "echo done; exit 6"])?;
    ends(&bench, &service, "failed", "task: non-zero exit (6)")?;
    says(&bench, &service, "done")
}

#[test]
fn that_fails_an_exec_says_why() -> Result<()> {
    let script = "[ \"$verb\" = exec ] && { echo no exec today >&2; exit 3; }";
    let (node, _dir) = node_with(script)?;
    let bench = bench(&node);
    let container = bench.container(&bench.sleeper("steady", &[])?)?;
    let out = bench.cli.run(&["exec", &container, "true"])?;
    let said = out.stdout.clone() + &out.stderr;
    ensure!(out.code == 126 && said.contains("no exec today"), "{out:?}");
    Ok(())
}

/// A daemon asks its runtime for its version and does not wait for it for ever.
#[test]
fn that_hangs_from_the_first_does_not_stop_the_daemon() -> Result<()> {
    let script = "[ -n \"$verb\" ] || { echo $$ >\"$0.asked\"; exec sleep 1000000; }";
    let (node, dir) = node_with(script)?;
    let bench = bench(&node);
    bench.container(&bench.sleeper("patient", &[])?)?;
    let pid = fs::read_to_string(dir.path().join("runtime.asked"))?;
    let asked = format!("/proc/{}", pid.trim());
    settle("the end of the question", BOUND, || Ok(!fs::exists(&asked)?))
}
