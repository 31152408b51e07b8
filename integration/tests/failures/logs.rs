//! A log that cannot be written: the task goes on, and whoever asks is told.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use skep_integration::{Bench, Node, Options, look, settle};

use crate::{BOUND, bench, node, says, status_of, told};

const TALK: &str = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done";

/// Waits until a running task's status names what keeps its log from being written.
fn complains(bench: &Bench<'_>, service: &str, why: &str) -> Result<()> {
    let mut last = (String::new(), String::new());
    let told = settle("the complaint", BOUND, || {
        last = told(bench.node, service)?;
        ensure!(!["complete", "failed", "rejected"].contains(&last.0.as_str()), "{last:?}");
        Ok(last.0 == "running" && !last.1.is_empty())
    });
    told.with_context(|| format!("{last:?}"))?;
    let begin = "its log cannot be written, lines are lost: ";
    ensure!(last.1.starts_with(begin) && last.1.contains(why), "{last:?}");
    let table = bench.cli.ok(&["service", "ps", "--no-trunc", service])?;
    ensure!(table.contains(&format!("\"{}\"", last.1)) && table.contains("Running"), "{table}");
    let shown = bench.inspect("container", &bench.container(service)?)?;
    let state = &shown["State"];
    ensure!(state["Status"] == "running" && state["Error"] == last.1.as_str(), "{state}");
    Ok(())
}

/// Waits until nothing is wrong any more.
fn recovers(bench: &Bench<'_>, service: &str) -> Result<()> {
    settle("the end of the complaint", BOUND, || {
        let (state, err) = told(bench.node, service)?;
        Ok(state == "running" && err.is_empty())
    })
}

/// A path of the daemon's own mount namespace.
fn inside(node: &Node, path: &str) -> Result<PathBuf> {
    let data = node.data_root().display().to_string();
    Ok(format!("/proc/{}/root{data}/tasks/{path}", node.daemon_pid()?).into())
}

#[test]
fn a_full_disk() -> Result<()> {
    let mounts = "mkdir -p -m 700 \"$1/tasks\"; mount -t tmpfs -o size=1m none \"$1/tasks\"";
    let node = node(Options { mounts: Some(mounts), ..Options::default() })?;
    let bench = bench(&node);
    let secret = bench.secret("kept", "still there")?;
    let service = bench.service("talker", &["--secret", &secret], &["sh", "-c", TALK])?;
    let seen = look(&node, &bench.container(&service)?)?;
    says(&bench, &service, "line 3")?;
    let filler = inside(&node, "filler")?;
    let mut file = fs::File::create(&filler)?;
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    complains(&bench, &service, "No space left on device")?;
    let read = bench.exec(&seen.id, &["cat", &format!("/run/secrets/{secret}")])?;
    ensure!(read == "still there", "{read}");
    // What is not there yet waits for room.
    let late = bench.sleeper("late", &["--restart-delay", "300ms"])?;
    crate::ends(&bench, &late, "rejected", "…: No space left on device (os error 28)")?;

    fs::remove_file(filler)?;
    recovers(&bench, &service)?;
    bench.container(&late)?;
    ensure!(look(&node, &seen.id)? == seen, "the task was replaced");
    // What is in the file is whole lines, with a gap.
    let log = fs::read_to_string(inside(&node, &format!("{}/logs/json.log", seen.task))?)?;
    let complete = log.lines().filter(|_| log.ends_with('\n'));
    for line in complete {
        serde_json::from_str::<serde_json::Value>(line).with_context(|| line.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_directory_in_its_place() -> Result<()> {
    // The runtime is called between the making of the directory and that of the file.
    let dir = tempfile::tempdir()?;
    let runtime = dir.path().join("runtime");
    let options = Options {
        args: vec!["--runtime".to_owned(), runtime.display().to_string()],
        ..Options::default()
    };
    let node = node(options)?;
    let tasks = node.data_root().join("tasks").display().to_string();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *' create '*) for task in {tasks}/*; do mkdir -p \
         $task/logs/json.log/x; done;; esac\nexec runc \"$@\"\n"
    );
    fs::write(&runtime, script)?;
    fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let bench = bench(&node);
    let service = bench.service("talker", &[], &["sh", "-c", TALK])?;
    let seen = look(&node, &bench.container(&service)?)?;
    complains(&bench, &service, "Is a directory")?;
    fs::remove_dir_all(format!("{tasks}/{}/logs/json.log", seen.task))?;
    recovers(&bench, &service)?;
    says(&bench, &service, "line ")?;
    ensure!(look(&node, &seen.id)? == seen, "the task was replaced");
    Ok(())
}

/// A task whose log has a gap ends as it ended, and says so.
#[test]
fn an_immutable_file() -> Result<()> {
    let node = node(Options::default())?;
    let bench = bench(&node);
    let script = format!("trap 'exit 0' TERM; {TALK}");
    let flags = ["--restart-condition", "none"];
    let service = bench.service("talker", &flags, &["sh", "-c", &script])?;
    let seen = look(&node, &bench.container(&service)?)?;
    says(&bench, &service, "line 3")?;
    let log = node.data_root().join("tasks").join(&seen.task).join("logs/json.log");
    let change = |how: &str| -> Result<bool> {
        Ok(std::process::Command::new("chattr").arg(how).arg(&log).status()?.success())
    };
    if !change("+i")? {
        eprintln!("this filesystem has no immutable files: not run");
        return Ok(());
    }
    let complained = complains(&bench, &service, "Operation not permitted");
    // It may end before the command has told of its own end.
    bench.cli.run(&["exec", &seen.id, "kill", "-TERM", "1"])?;
    let ended = settle("the end of the task", BOUND, || {
        Ok(status_of(&node, &service, &seen.task)?["State"] == "complete")
    });
    // Else nobody could remove it.
    change("-i")?;
    complained?;
    ended?;
    let status = status_of(&node, &service, &seen.task)?;
    ensure!(status["Err"].as_str().is_some_and(|err| err.contains("lines are lost")), "{status}");
    ensure!(status["ContainerStatus"]["ExitCode"].as_i64().unwrap_or(0) == 0, "{status}");
    Ok(())
}
