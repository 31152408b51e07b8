//! What keeps a swarm alive and closed: one manager that goes on alone, keys that are locked at
//! rest, and a root that is replaced under running tasks.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_integration::{ClusterOptions, Program, by_both, look, name_of, settle};

use crate::{BOUND, Scene, alone_by};

by_both! { with crate::survival::three: locked_at_rest another_root }

by_both! { with crate::survival::three_and_two: one_goes_on_alone }

fn three(program: Program, name: &str, scenario: fn(&Scene) -> Result<()>) -> Result<()> {
    let options = ClusterOptions { managers: 3, workers: 1, ..ClusterOptions::default() };
    alone_by(program, name, options, scenario)
}

fn three_and_two(program: Program, name: &str, scenario: fn(&Scene) -> Result<()>) -> Result<()> {
    let options = ClusterOptions { managers: 3, workers: 2, ..ClusterOptions::default() };
    alone_by(program, name, options, scenario)
}

/// Long enough for a client to be told that there is no leader.
const REFUSAL: Duration = Duration::from_secs(30);

fn one_goes_on_alone(scene: &Scene) -> Result<()> {
    let (cluster, bench) = (scene.cluster, &scene.bench);
    let (worker, away) = (3, 4);
    let secret = bench.secret("kept", "kept by the survivor")?;
    let (service, before) = scene.sleeper_on(worker, "kept", &["--secret", &secret])?;
    let (unseen, unseen_before) = scene.sleeper_on(away, "unseen", &["--secret", &secret])?;
    let (_, replaced) = scene.sleeper_on(1, "replaced", &["--secret", &secret])?;
    let replaced = look(cluster.node(1), &replaced[0].container)?;
    let token = cluster.token(skep_integration::Role::Worker)?;
    let cli = bench.cli.within(REFUSAL);
    let refused = cli.run(&["swarm", "init", "--force-new-cluster"])?;
    ensure!(refused.code == 1 && refused.stderr.contains("has a quorum"), "{refused:?}");
    // One worker is there when it happens, the other hears of it later.
    for at in [1, 2, away] {
        cluster.kill(at)?;
    }
    let out = cli.run(&["secret", "ls"])?;
    ensure!(out.code == 1, "read without a quorum: {out:?}");
    cli.ok(&["swarm", "init", "--force-new-cluster"])?;

    ensure!(cli.ok(&["secret", "ls"])?.contains(&secret), "the secret is lost");
    settle("the worker's return", BOUND, || {
        let table = cli.ok(&["node", "ls"])?;
        let line = crate::row(&table, &name_of(worker))?;
        Ok(line.contains("Ready") && table.lines().count() == 4)
    })?;
    cluster.restart(away)?;
    cluster.await_ready(3)?;
    let met = cluster.await_placed(0, &unseen, BOUND, |task| task.node == away)?;
    ensure!(met[0].container == unseen_before[0].container, "the other task was replaced");
    ensure!(scene.read(&met[0], &secret)? == "kept by the survivor", "another secret");
    let after = cluster.await_placed(0, &service, BOUND, |task| task.node == worker)?;
    ensure!(after[0].container == before[0].container, "the task was replaced");
    ensure!(scene.read(&after[0], &secret)? == "kept by the survivor", "another secret");
    let new = bench.secret("new", "made afterwards")?;
    let (_, placed) = scene.sleeper_on(worker, "new", &["--secret", &new])?;
    ensure!(scene.read(&placed[0], &new)? == "made afterwards", "not delivered");
    ensure!(token != cluster.token(skep_integration::Role::Worker)?, "old tokens still admit");
    ensure!(!replaced.is_dead(), "a task ended that nobody had replaced yet");
    outlived(scene, &[1, 2])?;
    settle("the end of what was replaced", BOUND, || Ok(replaced.is_dead()))?;
    ensure!(cli.ok(&["node", "ls"])?.lines().count() == 4, "one is back as what it was");
    // What they were told helps.
    let old = cluster.node(1).cli(bench.cli.program);
    old.ok(&["swarm", "leave", "--force"])?;
    cluster.join(bench.cli.program, 1, skep_integration::Role::Manager)?;
    cluster.await_ready_at(1, 4)?;
    ensure!(old.ok(&["secret", "ls"])?.contains(&secret), "it does not know the swarm of today");
    Ok(())
}

/// Managers from before, which would have a quorum of their own, decide nothing and say why.
fn outlived(scene: &Scene, managers: &[usize]) -> Result<()> {
    const AT_ONCE: Duration = Duration::from_secs(2);
    for at in managers {
        scene.cluster.restart(*at)?;
    }
    for at in managers {
        let cli = scene.cluster.node(*at).cli(scene.bench.cli.program).within(REFUSAL);
        settle("it to hear of the swarm of today", BOUND, || {
            let error = cli.ok(&["info", "--format", "{{.Swarm.Error}}"])?;
            Ok(error.contains("older incarnation of swarm") && error.contains("leave --force"))
        })?;
        let name = scene.bench.name("late");
        for verb in [
            &["secret", "ls"][..],
            &["secret", "create", &name, "-"],
            &["node", "ls"],
            &["swarm", "join-token", "worker"],
            &["swarm", "leave"],
            &["swarm", "init"],
            &["swarm", "init", "--force-new-cluster"],
            &["swarm", "update", "--task-history-limit", "3"],
        ] {
            let since = std::time::Instant::now();
            let out = cli.run_with(verb, b"late")?;
            ensure!(out.code == 1, "{verb:?}: {out:?}");
            for part in ["older incarnation of swarm", "leave --force", "join-token"] {
                ensure!(out.stderr.contains(part), "{verb:?} says nothing of {part}: {out:?}");
            }
            ensure!(since.elapsed() < AT_ONCE, "{verb:?} took {:?}", since.elapsed());
        }
    }
    Ok(())
}

fn key_in(text: &str) -> Result<String> {
    let found = text.split_whitespace().find(|word| word.starts_with("SWMKEY-1-"));
    found.map(str::to_owned).with_context(|| format!("no unlock key in {text:?}"))
}

fn locked_at_rest(scene: &Scene) -> Result<()> {
    let (cluster, bench) = (scene.cluster, &scene.bench);
    let secret = bench.secret("locked", "behind a lock")?;
    let (_, placed) = scene.sleeper_on(1, "locked", &["--secret", &secret])?;
    let key = key_in(&bench.cli.ok(&["swarm", "update", "--autolock=true"])?)?;
    let files = |at: usize| -> Result<Vec<u8>> {
        let root = cluster.node(at).data_root();
        Ok([fs::read(root.join("key.pem"))?, fs::read(root.join("storage.key"))?].concat())
    };
    let is_clear = |bytes: &[u8]| bytes.windows(11).any(|part| part == b"PRIVATE KEY");
    settle("locked keys", BOUND, || {
        let mut all = true;
        for at in cluster.managers() {
            all &= !is_clear(&files(at)?);
        }
        Ok(all)
    })?;
    ensure!(is_clear(&fs::read(cluster.node(3).data_root().join("key.pem"))?), "a worker locks");
    cluster.kill(1)?;
    cluster.node(1).launch()?;
    let cli = cluster.node(1).cli(bench.cli.program);
    let info = cli.ok(&["info", "--format", "{{.Swarm.LocalNodeState}}"])?;
    ensure!(info.trim() == "locked", "{info}");
    let out = cli.run(&["secret", "ls"])?;
    ensure!(out.code == 1 && out.stderr.contains("needs to be unlocked"), "{out:?}");
    ensure!(scene.read(&placed[0], &secret)? == "behind a lock", "the task is disturbed");
    let wrong = format!("SWMKEY-1-{}", "A".repeat(43));
    let out = cli.run_with(&["swarm", "unlock"], wrong.as_bytes())?;
    ensure!(out.code == 1, "opened by a wrong key: {out:?}");
    let out = cli.run_with(&["swarm", "unlock"], key.as_bytes())?;
    ensure!(out.code == 0, "{out:?}");
    cluster.await_ready_at(1, 4)?;
    ensure!(cli.ok(&["secret", "ls"])?.contains(&secret), "the secret is lost");

    let next = key_in(&bench.cli.ok(&["swarm", "unlock-key", "--rotate"])?)?;
    ensure!(next != key, "the key is the old one");
    let before = files(2)?;
    bench.cli.ok(&["swarm", "update", "--autolock=false"])?;
    settle("clear keys", BOUND, || Ok(is_clear(&files(2)?)))?;
    ensure!(files(2)? != before, "nothing was written");
    Ok(())
}

fn another_root(scene: &Scene) -> Result<()> {
    let (cluster, bench) = (scene.cluster, &scene.bench);
    let secret = bench.secret("root", "under either root")?;
    let (_, placed) = scene.sleeper_on(3, "root", &["--secret", &secret])?;
    let token = cluster.token(skep_integration::Role::Worker)?;
    let old = bench.cli.ok(&["swarm", "ca"])?;
    let cli = bench.cli.within(Duration::from_secs(60));
    cli.ok(&["swarm", "ca", "--rotate", "--detach"])?;
    settle("the end of the rotation", BOUND, || {
        let shown = cli.ok(&["info", "--format", "{{.Swarm.Cluster.RootRotationInProgress}}"])?;
        Ok(shown.trim() == "false")
    })?;
    let new = bench.cli.ok(&["swarm", "ca"])?;
    ensure!(new != old, "the root is the old one");
    ensure!(token != cluster.token(skep_integration::Role::Worker)?, "the digest is the old one");
    ensure!(scene.lives(&placed[0])?, "the task was ended");
    ensure!(scene.read(&placed[0], &secret)? == "under either root", "the secret is lost");
    // Everybody still speaks to everybody, over new connections too.
    for at in [1, 3] {
        cluster.kill(at)?;
        cluster.restart(at)?;
    }
    cluster.await_ready(4)
}
