//! Workers that are lost: killed, cut off, and back again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use skep_integration::{look, settle, shim_of};

use crate::{BOUND, OTHER, Scene, WORKER, storm};

/// Longest time in which, after a node is back, a slot may run twice.
const TWICE: Duration = Duration::from_secs(2);
/// Longest time until the tasks of a lost worker run elsewhere; the budget of the bench is 4 s.
const MOVE: Duration = Duration::from_secs(15);

const ON_WORKERS: [&str; 2] = ["--constraint", "node.role==worker"];

/// A service with a secret and a task on each worker.
fn pair(scene: &Scene, base: &str) -> Result<(String, String, Vec<skep_integration::Placed>)> {
    let secret = scene.bench.secret(base, "survives")?;
    let flags = [&ON_WORKERS[..], &["--replicas", "2", "--secret", &secret]].concat();
    let service = scene.bench.sleeper(base, &flags)?;
    let placed = scene.cluster.await_converged(0, &service)?;
    let nodes: Vec<_> = [WORKER, OTHER].to_vec();
    let mut found: Vec<_> = placed.iter().map(|task| task.node).collect();
    found.sort_unstable();
    ensure!(found == nodes, "not one on each: {placed:?}");
    Ok((secret, service, placed))
}

#[test]
fn a_killed_workers_tasks_run_elsewhere() -> Result<()> {
    storm("killed", |scene| {
        let cluster = scene.cluster;
        let (secret, service, before) = pair(scene, "killed")?;
        let lost = before.iter().find(|task| task.node == WORKER).context("none there")?;
        let seen = look(cluster.node(WORKER), &lost.container)?;
        // The machine dies: nothing reaches it any more, and its daemon and supervisors end.
        cluster.isolate(WORKER)?;
        let start = Instant::now();
        let shim = shim_of(cluster.node(WORKER), &lost.task)?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim.pid), nix::sys::signal::SIGKILL)?;
        cluster.kill(WORKER)?;
        let after = cluster.await_placed(0, &service, MOVE, |task| task.node == OTHER)?;
        ensure!(start.elapsed() <= MOVE, "{:?}", start.elapsed());
        for task in &after {
            ensure!(scene.read(task, &secret)? == "survives", "{task:?}");
        }
        let kept = before.iter().find(|task| task.node == OTHER).context("none there")?;
        ensure!(after.contains(kept), "the other worker's task was replaced: {after:?}");
        ensure!(seen.is_dead(), "its container outlived its supervisor");
        scene.await_state(WORKER, "down")?;
        cluster.heal()?;
        cluster.restart(WORKER)?;
        scene.await_state(WORKER, "ready")
    })
}

/// A daemon that is killed and back at once: nobody moves anything.
#[test]
fn a_workers_daemon_may_restart() -> Result<()> {
    storm("restarted", |scene| {
        let (secret, service, before) = pair(scene, "restarted")?;
        scene.cluster.kill(WORKER)?;
        scene.cluster.restart(WORKER)?;
        scene.await_state(WORKER, "ready")?;
        ensure!(scene.cluster.await_converged(0, &service)? == before, "tasks were replaced");
        for task in &before {
            ensure!(scene.read(task, &secret)? == "survives", "{task:?}");
        }
        Ok(())
    })
}

/// P5: a worker without its managers keeps its tasks and secrets; once it is back, what was
/// replaced meanwhile ends there at once.
#[test]
fn a_cut_off_worker_keeps_its_tasks() -> Result<()> {
    storm("cutoff", |scene| {
        let cluster = scene.cluster;
        let (secret, service, before) = pair(scene, "cutoff")?;
        let own = before.iter().find(|task| task.node == WORKER).context("none there")?;
        let seen = look(cluster.node(WORKER), &own.container)?;
        cluster.isolate(WORKER)?;
        let after = cluster.await_placed(0, &service, BOUND, |task| task.node == OTHER)?;
        ensure!(scene.read(own, &secret)? == "survives", "unreadable while cut off");
        // Its daemon finds the task again without any manager.
        cluster.kill(WORKER)?;
        cluster.restart(WORKER)?;
        ensure!(scene.read(own, &secret)? == "survives", "unreadable after a restart");
        ensure!(look(cluster.node(WORKER), &own.container)? == seen, "replaced while cut off");

        cluster.heal()?;
        let mut contact = None;
        settle("the end of what runs twice", BOUND, || {
            if contact.is_none() && scene.told_of(WORKER)?["Status"]["State"] == "ready" {
                contact = Some(Instant::now());
            }
            Ok(seen.is_dead())
        })?;
        let twice = contact.map_or(Duration::ZERO, |contact| contact.elapsed());
        ensure!(twice <= TWICE, "a slot ran twice for {twice:?} after contact");
        scene.await_state(WORKER, "ready")?;
        ensure!(cluster.await_converged(0, &service)? == after, "tasks were moved back");
        Ok(())
    })
}

/// A worker whose manager dies talks to the next: it is never down, and its tasks take changes.
#[test]
fn a_session_moves_when_its_manager_dies() -> Result<()> {
    storm("moves", |scene| {
        let cluster = scene.cluster;
        let (secret, service, before) = pair(scene, "moves")?;
        // One after the other: whichever manager holds a session, it dies once.
        for manager in cluster.managers() {
            cluster.kill(manager)?;
            let others: Vec<_> = cluster.managers().filter(|at| *at != manager).collect();
            cluster.leader_seen_by(&others, BOUND)?;
            let asked = cluster.node(others[0]).skep();
            let label = format!("round={manager}");
            let env = ["service", "update", "-d", "--env-add", &label, &service];
            let old = cluster.await_converged(others[0], &service)?;
            asked.ok(&env)?;
            let fresh = cluster.await_placed(others[0], &service, BOUND, |task| {
                old.iter().all(|other| other.task != task.task)
            })?;
            for task in &fresh {
                ensure!(scene.read(task, &secret)? == "survives", "{task:?}");
            }
            cluster.restart(manager)?;
            cluster.await_ready_at(manager, crate::MEMBERS)?;
        }
        ensure!(cluster.await_converged(0, &service)? != before, "nothing was changed");
        Ok(())
    })
}
