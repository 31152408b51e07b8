//! What becomes of tasks on a worker that is cut off, as their services want it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skep_integration::{look, settle, tasks_of};

use crate::{BOUND, Scene, WORKER, storm};

/// The isolation after which the service's tasks are stopped.
const STOP: Duration = Duration::from_secs(6);

fn task_of(scene: &Scene, service: &str, id: &str) -> Result<Value> {
    let tasks = tasks_of(scene.cluster.node(0), service)?;
    tasks.into_iter().find(|task| task["ID"] == id).with_context(|| format!("no task {id}"))
}

/// One service's task stops in its time, the other's goes on; both are as they should be once the
/// worker is back.
#[test]
fn a_cut_off_worker_stops_what_is_not_to_outlive_it() -> Result<()> {
    storm("isolated", |scene| {
        let cluster = scene.cluster;
        let stop = ["--on-isolation", "stop=6s", "--stop-grace-period", "1s"];
        let (stopping, stops) = scene.sleeper_on(WORKER, "stops", &stop)?;
        let (_, keeps) = scene.sleeper_on(WORKER, "keeps", &["--on-isolation", "keep"])?;
        let told = scene.bench.inspect("service", &stopping)?;
        let labels = &told["Spec"]["TaskTemplate"]["ContainerSpec"]["Labels"];
        ensure!(labels["skep.on-isolation"] == "stop=6s", "{told}");
        let stops = stops.first().context("none")?;
        let stopped = look(cluster.node(WORKER), &stops.container)?;
        let kept = look(cluster.node(WORKER), &keeps.first().context("none")?.container)?;

        cluster.isolate(WORKER)?;
        let cut = Instant::now();
        settle("the end of the task", BOUND, || Ok(stopped.is_dead()))?;
        // The last word of a manager may be a beat older than the cut.
        ensure!(
            cut.elapsed() > STOP - Duration::from_millis(1_500),
            "too soon: {:?}",
            cut.elapsed()
        );
        ensure!(!kept.is_dead(), "a task that was to be kept is gone");

        cluster.heal()?;
        scene.await_state(WORKER, "ready")?;
        // Either its end was told, or it was forgotten since another took its slot.
        settle("the end to be told", BOUND, || {
            let Ok(task) = task_of(scene, &stopping, &stops.task) else { return Ok(true) };
            Ok(task["Status"]["State"] == "shutdown")
        })?;
        let fresh = cluster.await_converged(0, &stopping)?;
        ensure!(fresh.iter().all(|task| task.task != stops.task), "it came back: {fresh:?}");
        Ok(())
    })
}

/// A service that says nothing sensible is refused, by words that help.
#[test]
fn what_to_do_on_isolation_is_checked() -> Result<()> {
    storm("checked", |scene| {
        let cli = &scene.bench.cli;
        for (label, words) in [
            ("--container-label=skep.on-isolation=stop", "stop=DURATION"),
            ("--container-label=skep.on-isolation=stop=1s", "out of range"),
            ("--label=skep.on-isolation=keep", "use --container-label"),
        ] {
            let refused = cli.run(&["service", "create", "-d", label, "busybox:latest"])?;
            ensure!(refused.code != 0 && refused.stderr.contains(words), "{label}: {refused:?}");
        }
        Ok(())
    })
}
