//! Managers that are killed, stopped, cut off, slow, paused or wrong about the time, under clients
//! whose history is checked: the majority goes on, nothing acknowledged is lost, all heals by itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use skep_integration::{Cluster, Load, LoadOptions, Node, check, settle};

use crate::{BOUND, Scene, storm};

/// Longest pause of acknowledged writes when a leader is lost; the budget of the bench is 1 s.
const ELECTION: Duration = Duration::from_secs(10);
/// Longest one when it hands over; the budget is 0.2 s.
const HANDOVER: Duration = Duration::from_secs(4);
/// Writes that show that all is well.
const WRITES: u64 = 40;
/// Clients, a third of them at each manager.
const CLIENTS: usize = 6;

/// Runs clients against all managers while `trouble` happens, and checks what they saw. The longest
/// pause of acknowledged writes from its begin to its end is at most `pause`.
fn under_load(
    scene: &Scene,
    pause: Duration,
    trouble: impl FnOnce(&Cluster, &Load) -> Result<()>,
) -> Result<()> {
    static LOADS: AtomicU64 = AtomicU64::new(0);
    let number = LOADS.fetch_add(1, Ordering::Relaxed);
    let cluster = scene.cluster;
    let sockets: Vec<_> = cluster.managers().map(|at| cluster.node(at).socket()).collect();
    let load = Load::start(LoadOptions {
        sockets: sockets.clone(),
        clients: CLIENTS,
        prefix: format!("load{number}"),
        seed: 1_000 + number,
        pause: Duration::from_millis(5),
    });
    load.await_writes(WRITES, BOUND)?;
    let since = load.history().now();
    let troubled = trouble(cluster, &load);
    let until = load.history().now();
    let longest = load.history().longest_pause(since, until);
    if troubled.is_ok() {
        load.await_writes(WRITES, BOUND)?;
        cluster.heal()?;
        for at in cluster.managers() {
            cluster.await_ready_at(at, crate::MEMBERS)?;
        }
    }
    // Whatever went wrong: a history that cannot be is worse.
    let history = if troubled.is_ok() { load.finish(&sockets) } else { load.finish(&[]) }?;
    check(&history)?;
    troubled?;
    ensure!(longest <= pause, "no acknowledged write for {longest:?}, not {pause:?}");
    Ok(())
}

fn followers(cluster: &Cluster) -> Result<(usize, Vec<usize>)> {
    let leader = cluster.leader()?;
    Ok((leader, cluster.managers().filter(|at| *at != leader).collect()))
}

#[test]
fn a_killed_leader() -> Result<()> {
    storm("killed", |scene| {
        under_load(scene, ELECTION, |cluster, load| {
            for _ in 0..2 {
                let (leader, others) = followers(cluster)?;
                cluster.kill(leader)?;
                load.await_writes(WRITES, ELECTION)?;
                ensure!(cluster.leader_seen_by(&others, BOUND)? != leader, "the dead leads");
                cluster.restart(leader)?;
                cluster.await_ready_at(leader, crate::MEMBERS)?;
            }
            Ok(())
        })
    })
}

#[test]
fn a_leader_that_stops_cleanly_hands_over() -> Result<()> {
    storm("stopped", |scene| {
        under_load(scene, HANDOVER, |cluster, load| {
            let (leader, others) = followers(cluster)?;
            let status = cluster.node(leader).stop_daemon()?;
            ensure!(status.success(), "stopped with {status}");
            load.await_writes(WRITES, HANDOVER)?;
            ensure!(cluster.leader_seen_by(&others, BOUND)? != leader, "it still leads");
            cluster.restart(leader)
        })
    })
}

#[test]
fn a_leader_cut_off() -> Result<()> {
    storm("isolated", |scene| {
        under_load(scene, ELECTION, |cluster, load| {
            let (leader, others) = followers(cluster)?;
            cluster.isolate(leader)?;
            load.await_writes(WRITES, ELECTION)?;
            ensure!(cluster.leader_seen_by(&others, BOUND)? != leader, "the cut off leads");
            // Alone it acknowledges nothing and shows nothing that may be old.
            let alone = cluster.node(leader).skep().within(Duration::from_secs(30));
            let out =
                alone.run_with(&["secret", "create", &scene.bench.name("alone"), "-"], b"x")?;
            ensure!(out.code == 1, "written without a majority: {out:?}");
            let out = alone.run(&["secret", "ls"])?;
            ensure!(out.code == 1, "listed without a majority: {out:?}");
            cluster.heal()?;
            load.await_writes(WRITES, ELECTION)
        })
    })
}

#[test]
fn a_follower_cut_off() -> Result<()> {
    storm("minority", |scene| {
        under_load(scene, ELECTION, |cluster, load| {
            let (leader, others) = followers(cluster)?;
            let (lost, kept) = (others[0], others[1]);
            // From the managers only: workers may still reach it.
            cluster.partition(&[lost], &[leader, kept])?;
            load.await_writes(WRITES * 4, ELECTION)?;
            ensure!(cluster.leader_seen_by(&[kept], BOUND)? == leader, "another leader");
            cluster.heal()?;
            // Back again it does not unseat the leader.
            cluster.await_ready_at(lost, crate::MEMBERS)?;
            ensure!(cluster.leader_seen_by(&[kept], BOUND)? == leader, "unseated");
            Ok(())
        })
    })
}

#[test]
fn losses_one_way() -> Result<()> {
    storm("oneway", |scene| {
        under_load(scene, ELECTION, |cluster, load| {
            for outward in [true, false] {
                let (leader, others) = followers(cluster)?;
                for other in &others {
                    let (from, to) = if outward { (leader, *other) } else { (*other, leader) };
                    cluster.one_way_loss(from, to, 100)?;
                }
                load.await_writes(WRITES, ELECTION)?;
                cluster.heal()?;
                for at in cluster.managers() {
                    cluster.await_ready_at(at, crate::MEMBERS)?;
                }
            }
            Ok(())
        })
    })
}

#[test]
fn thirty_percent_lost() -> Result<()> {
    storm("lossy", |scene| {
        under_load(scene, BOUND, |cluster, load| {
            for at in 0..crate::MEMBERS {
                cluster.loss(at, 30)?;
            }
            load.await_writes(WRITES, BOUND * 2)
        })
    })
}

#[test]
fn slow_links() -> Result<()> {
    storm("slow", |scene| {
        under_load(scene, ELECTION, |cluster, load| {
            for at in cluster.managers() {
                cluster.delay(at, 25)?;
            }
            load.await_writes(WRITES, BOUND)
        })
    })
}

#[test]
fn a_paused_leader() -> Result<()> {
    storm("paused", |scene| {
        under_load(scene, ELECTION, |cluster, load| {
            let (leader, others) = followers(cluster)?;
            cluster.pause(leader)?;
            let gone_on = load.await_writes(WRITES, ELECTION);
            let next = cluster.leader_seen_by(&others, BOUND);
            // It thinks that it leads, until it hears.
            cluster.resume(leader)?;
            gone_on?;
            ensure!(next? != leader, "the paused leads");
            load.await_writes(WRITES, ELECTION)
        })
    })
}

#[test]
fn clocks_that_jump() -> Result<()> {
    storm("clocks", |scene| {
        let service = scene.bench.sleeper("clocks", &["--replicas", "5"])?;
        let before = scene.cluster.await_converged(0, &service)?;
        under_load(scene, ELECTION, |cluster, load| {
            let (leader, others) = followers(cluster)?;
            for (at, by_s) in [(leader, 86_400), (others[0], -86_400), (crate::WORKER, 86_400)] {
                cluster.node(at).clock_jump(by_s)?;
                load.await_writes(WRITES, ELECTION)?;
            }
            for at in [leader, others[0], crate::WORKER] {
                cluster.node(at).clock_jump(0)?;
            }
            load.await_writes(WRITES, ELECTION)
        })?;
        ensure!(scene.cluster.await_converged(0, &service)? == before, "tasks were replaced");
        Ok(())
    })
}

#[test]
fn all_managers_restart() -> Result<()> {
    storm("restart", |scene| {
        let secret = scene.bench.secret("kept", "over all of it")?;
        let service = scene.bench.sleeper("kept", &["--replicas", "5", "--secret", &secret])?;
        let before = scene.cluster.await_converged(0, &service)?;
        under_load(scene, BOUND * 2, |cluster, load| {
            for at in cluster.managers() {
                cluster.kill(at)?;
            }
            // None is ready before it has company, so all at once.
            thread::scope(|scope| {
                let start = |at| scope.spawn(move || cluster.node(at).launch());
                let started: Vec<_> = cluster.managers().map(start).collect();
                started
                    .into_iter()
                    .try_for_each(|one| one.join().map_err(|_| anyhow!("a start died"))?)
            })?;
            load.await_writes(WRITES, BOUND)
        })?;
        ensure!(scene.cluster.await_converged(0, &service)? == before, "tasks were replaced");
        for task in &before {
            ensure!(scene.read(task, &secret)? == "over all of it", "{task:?}");
        }
        Ok(())
    })
}

/// A manager that finds another address on its cable: it is its key that makes it a member.
#[test]
fn a_managers_new_address() -> Result<()> {
    storm("address", |scene| {
        let cluster = scene.cluster;
        let (_, others) = followers(cluster)?;
        let moved = others[0];
        cluster.kill(moved)?;
        let there = cluster.renumber(moved, 100)?.to_string();
        cluster.node(moved).launch()?;
        settle("the manager at its new address", BOUND, || {
            let told = scene.told_of(moved)?["ManagerStatus"].take();
            let is_there = told["Addr"].as_str().is_some_and(|told| told.starts_with(&there));
            Ok(is_there && told["Reachability"] == "reachable")
        })?;
        // It has a vote again: with it and one other there is a majority.
        let leader = cluster.leader()?;
        let third = cluster.managers().find(|at| ![moved, leader].contains(at));
        let third = third.context("three managers")?;
        cluster.kill(third)?;
        writes_a_secret(cluster.node(moved), &scene.bench.name("moved"))?;
        cluster.restart(third)?;

        cluster.node(moved).stop_daemon()?;
        cluster.renumber(moved, u8::try_from(moved + 1)?)?;
        cluster.node(moved).launch()
    })
}

fn writes_a_secret(node: &Node, name: &str) -> Result<()> {
    node.skep().ok_with(&["secret", "create", name, "-"], b"x").map(drop)
}
