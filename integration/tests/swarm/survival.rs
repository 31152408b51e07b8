//! What keeps a swarm alive and closed: one manager that goes on alone, keys that are locked at
//! rest, and a root that is replaced under running tasks.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_integration::{ClusterOptions, Program, by_both, name_of, settle};

use crate::{BOUND, Scene, alone_by};

by_both! { with crate::survival::three: one_goes_on_alone locked_at_rest another_root }

fn three(program: Program, name: &str, scenario: fn(&Scene) -> Result<()>) -> Result<()> {
    let options = ClusterOptions { managers: 3, workers: 1, ..ClusterOptions::default() };
    alone_by(program, name, options, scenario)
}

/// Long enough for a client to be told that there is no leader.
const REFUSAL: Duration = Duration::from_secs(30);

fn one_goes_on_alone(scene: &Scene) -> Result<()> {
    let (cluster, bench) = (scene.cluster, &scene.bench);
    let worker = 3;
    let secret = bench.secret("kept", "kept by the survivor")?;
    let (service, before) = scene.sleeper_on(worker, "kept", &["--secret", &secret])?;
    let token = cluster.token(skep_integration::Role::Worker)?;
    let cli = bench.cli.within(REFUSAL);
    let refused = cli.run(&["swarm", "init", "--force-new-cluster"])?;
    ensure!(refused.code == 1 && refused.stderr.contains("has a quorum"), "{refused:?}");
    for at in [1, 2] {
        cluster.kill(at)?;
    }
    let out = cli.run(&["secret", "ls"])?;
    ensure!(out.code == 1, "read without a quorum: {out:?}");
    cli.ok(&["swarm", "init", "--force-new-cluster"])?;

    ensure!(cli.ok(&["secret", "ls"])?.contains(&secret), "the secret is lost");
    settle("the worker's return", BOUND, || {
        let table = cli.ok(&["node", "ls"])?;
        let is_back = table.contains(&name_of(worker)) && table.contains("Ready");
        Ok(is_back && table.lines().count() == 3 && !table.contains("Down"))
    })?;
    let after = cluster.await_placed(0, &service, BOUND, |task| task.node == worker)?;
    ensure!(after[0].container == before[0].container, "the task was replaced");
    ensure!(scene.read(&after[0], &secret)? == "kept by the survivor", "another secret");
    let new = bench.secret("new", "made afterwards")?;
    let (_, placed) = scene.sleeper_on(worker, "new", &["--secret", &new])?;
    ensure!(scene.read(&placed[0], &new)? == "made afterwards", "not delivered");
    ensure!(token != cluster.token(skep_integration::Role::Worker)?, "old tokens still admit");
    // Who belongs to the time before does not count any more.
    cluster.restart(1)?;
    let old = cluster.node(1).cli(bench.cli.program).within(REFUSAL);
    ensure!(old.run(&["secret", "ls"])?.code == 1, "the old incarnation still answers");
    ensure!(cli.ok(&["node", "ls"])?.lines().count() == 3, "it is back as what it was");
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
