//! Stops that are heeded, and those that are not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skep_integration::{Bench, Seen, by_both, look, settle};

use crate::{BOUND, nothing_left, says, status_of};

by_both! { ignored_until_the_grace_ends a_signal_of_its_own children_that_ignore }

/// Longest time from the end of the grace until the task is over, on a busy machine.
const LATE: Duration = Duration::from_secs(10);

/// Has a service's task replaced by another; answers how the old one ended and how long it took.
fn replace(bench: &Bench<'_>, service: &str, old: &Seen) -> Result<(Value, Value, Duration)> {
    let start = Instant::now();
    bench.cli.ok(&["service", "update", "--detach", "--force", service])?;
    let mut status = Value::Null;
    let shut = settle("the old task's end", BOUND, || {
        status = status_of(bench.node, service, &old.task)?;
        Ok(status["State"] == "shutdown")
    });
    shut.with_context(|| status.to_string())?;
    let took = start.elapsed();
    let container = bench.inspect("container", &old.id)?;
    ensure!(status["Err"].as_str().unwrap_or_default().is_empty(), "{status}");
    nothing_left(bench.node, &old.task)?;
    Ok((status, container["State"].clone(), took))
}

/// A service whose task says that it is ready for signals.
fn ready(bench: &Bench<'_>, base: &str, flags: &[&str], script: &str) -> Result<(String, Seen)> {
    let secret = bench.secret(base, "gone after the stop")?;
    let name = bench.name(base);
    bench.adopt(&name);
    let fixed = ["service", "create", "--detach", "--secret", &secret, "--name", &name];
    let command = ["busybox:latest", "sh", "-c", script];
    bench.cli.ok(&[&fixed[..], flags, &command].concat())?;
    says(bench, &name, "ready")?;
    let seen = look(bench.node, &bench.container(&name)?)?;
    Ok((name, seen))
}

fn ignored_until_the_grace_ends(bench: &Bench<'_>) -> Result<()> {
    let grace = Duration::from_millis(1_500);
    let script = "trap 'echo heard' TERM; echo ready; while :; do sleep 0.05; done";
    let flags = ["--stop-grace-period", "1500ms"];
    let (service, old) = ready(bench, "deaf", &flags, script)?;
    let (status, state, took) = replace(bench, &service, &old)?;
    ensure!(status["ContainerStatus"]["ExitCode"] == 137, "{status}");
    ensure!(state["ExitCode"] == 137 && state["OOMKilled"] == false, "{state}");
    ensure!(took >= grace && took < grace + LATE, "it took {took:?}");
    says(bench, &service, "heard")
}

fn a_signal_of_its_own(bench: &Bench<'_>) -> Result<()> {
    let script = "trap 'exit 7' USR1; trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let flags = ["--stop-grace-period", "60s", "--stop-signal", "SIGUSR1"];
    let (service, old) = ready(bench, "own-signal", &flags, script)?;
    let (status, state, took) = replace(bench, &service, &old)?;
    ensure!(
        status["ContainerStatus"]["ExitCode"] == 7 && state["ExitCode"] == 7,
        "{status} {state}"
    );
    ensure!(took < Duration::from_secs(30), "it took {took:?}");
    Ok(())
}

/// The first process obeys, those it made do not.
fn children_that_ignore(bench: &Bench<'_>) -> Result<()> {
    let child = "(trap '' TERM INT HUP; while :; do sleep 0.05; done) &";
    let script = format!(
        "{child} {child} setsid sh -c \"{child} sleep 1000000\" & trap 'exit 5' TERM; echo ready; \
         while :; do sleep 0.05; done"
    );
    let (service, old) = ready(bench, "brood", &["--stop-grace-period", "60s"], &script)?;
    let (status, _, took) = replace(bench, &service, &old)?;
    ensure!(status["ContainerStatus"]["ExitCode"] == 5, "{status}");
    ensure!(took < Duration::from_secs(30), "it took {took:?}");
    Ok(())
}
