//! Killed from outside, killed for memory, short of processes.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skep_integration::{Bench, by_both, look, settle};

use crate::{BOUND, ends, once, says};

by_both! { killed_from_the_host out_of_memory a_child_out_of_memory no_more_processes }

fn killed_from_the_host(bench: &Bench<'_>) -> Result<()> {
    let service = once(bench, "killed", &[], &["sleep", "1000000"])?;
    let seen = look(bench.node, &bench.container(&service)?)?;
    let secret = seen.open(&format!("/run/secrets/{}", bench.name("killed")))?;
    kill(Pid::from_raw(seen.pid), Signal::SIGKILL)?;
    let over = ends(bench, &service, "failed", "task: non-zero exit (137)")?;
    ensure!(over.code() == 137 && over.task == seen.task, "{over:?}");
    ensure!(over.container["State"]["OOMKilled"] == false, "{over:?}");
    let read = std::os::unix::fs::FileExt::read_at(&secret, &mut [0; 8], 0);
    ensure!(read.is_err(), "the secret can still be read");
    Ok(())
}

fn out_of_memory(bench: &Bench<'_>) -> Result<()> {
    let service = once(bench, "greedy", &["--limit-memory", "16M"], &["tail", "/dev/zero"])?;
    let err = "task: non-zero exit (137): killed by the kernel: out of memory";
    let over = ends(bench, &service, "failed", err)?;
    ensure!(over.code() == 137 && over.container["State"]["OOMKilled"] == true, "{over:?}");
    Ok(())
}

fn a_child_out_of_memory(bench: &Bench<'_>) -> Result<()> {
    let limit = ["--limit-memory", "16M"];
    let script = |end: &str| format!("tail /dev/zero; echo child $?; {end}");
    // What goes on after it has not failed of it.
    let service = once(bench, "parent", &limit, &["sh", "-c", &script("sleep 1000000")])?;
    says(bench, &service, "child 137")?;
    let container = bench.container(&service)?;
    ensure!(bench.exec(&container, &["echo", "alive"])? == "alive", "it is not");
    settle("the mark of a running container", BOUND, || {
        let now = bench.inspect("container", &container)?["State"].clone();
        Ok(now["OOMKilled"] == true && now["Running"] == true)
    })?;
    let service = once(bench, "well", &limit, &["sh", "-c", &script("exit 0")])?;
    let over = ends(bench, &service, "complete", "")?;
    ensure!(over.code() == 0 && over.container["State"]["OOMKilled"] == true, "{over:?}");
    // What fails after it may have failed of it.
    let service = once(bench, "badly", &limit, &["sh", "-c", &script("exit 3")])?;
    let err = "task: non-zero exit (3): a process of it was killed by the kernel: out of memory";
    let over = ends(bench, &service, "failed", err)?;
    ensure!(over.code() == 3 && over.container["State"]["OOMKilled"] == true, "{over:?}");
    Ok(())
}

fn no_more_processes(bench: &Bench<'_>) -> Result<()> {
    let script = "i=1; while [ $i -lt 20 ]; do sleep 1000000 & i=$((i+1)); done; echo full; wait";
    let service = once(bench, "full", &["--limit-pids", "20"], &["sh", "-c", script])?;
    says(bench, &service, "full")?;
    let seen = look(bench.node, &bench.container(&service)?)?;
    let out = bench.cli.run(&["exec", &seen.id, "sh", "-c", "ls; ls"])?;
    // By its shell, or by the runtime, which needs some processes of its own.
    let said = out.stdout.clone() + &out.stderr;
    let is_clear = ["can't fork", "OCI runtime exec failed"].iter().any(|w| said.contains(w));
    ensure!(out.code != 0 && is_clear, "{out:?}");
    ensure!(look(bench.node, &seen.id)? == seen, "the task did not go on");
    // It can be stopped all the same.
    bench.cli.ok(&["service", "rm", &service])?;
    let gone = || !Path::new(&format!("/proc/{}", seen.pid)).exists();
    settle("the end of the processes", BOUND, || Ok(gone()))?;
    crate::nothing_left(bench.node, &seen.task).context("after the removal")
}
