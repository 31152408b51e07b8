//! What a service is granted of a secret's versions, and what becomes of its tasks when there is a
//! new one.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skep_integration::{Placed, Program, by_both, settle, wait_until};

use crate::{BOUND, OTHER, Scene, WORKER};

by_both! { with crate::calm:
    a_pin_stays_where_it_is
    what_is_pinned_is_never_dropped
    a_signal_tells_of_a_change
    restarts_on_a_change_are_rolling
}

/// Gives a secret a new version, by a manager that may not lead.
fn turn(scene: &Scene, secret: &str, text: &str) -> Result<String> {
    scene.cluster.node(1).skep().ok_with(&["secret", "update", secret, "-"], text.as_bytes())
}

fn history(scene: &Scene, secret: &str) -> Result<String> {
    let numbers = scene.cluster.node(0).skep().ok(&["secret", "history", "-q", secret])?;
    Ok(numbers.replace('\n', " "))
}

/// The flags that grant a secret and say what is done on a change, in the words of each client.
fn granted(scene: &Scene, secret: &str, on_change: &str) -> Vec<String> {
    let label = format!("skep.secret.{secret}.on-change={on_change}");
    let source = format!("source={secret},on-change={on_change}");
    let flags = match scene.bench.cli.program {
        Program::Docker => vec!["--secret", secret, "--label", &label],
        Program::Skep => vec!["--secret", &source],
    };
    flags.into_iter().map(str::to_owned).collect()
}

fn a_pin_stays_where_it_is(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("pin", "one")?;
    turn(scene, &secret, "two")?;
    let [first, second] = [1, 2].map(|version| format!("{secret}@{version}"));
    let (pinned, at) = scene.sleeper_on(WORKER, "pinned", &["--secret", &first])?;
    let (_, free) = scene.sleeper_on(OTHER, "free", &["--secret", &secret])?;
    let [stays, follows] = [&at[0], &free[0]];
    ensure!(scene.read(stays, &secret)? == "one", "pinned to 1");
    ensure!(scene.read(follows, &secret)? == "two", "not pinned");
    turn(scene, &secret, "three")?;
    settle("the third version", BOUND, || Ok(scene.read(follows, &secret)? == "three"))?;
    ensure!(scene.read(stays, &secret)? == "one", "a pinned grant followed");
    let reference = |scene: &Scene| -> Result<Value> {
        let service = scene.bench.inspect("service", &pinned)?;
        Ok(service["Spec"]["TaskTemplate"]["ContainerSpec"]["Secrets"][0].clone())
    };
    let shown = reference(scene)?;
    ensure!(shown["SecretName"] == *first && shown["File"]["Name"] == *secret, "{shown}");

    // A client that reads the spec and writes it back with something else changed keeps the pin.
    let update = ["service", "update", "--detach"];
    let cli = &scene.bench.cli;
    cli.ok(&[&update[..], &["--label-add", "a=b", &pinned]].concat())?;
    ensure!(reference(scene)? == shown, "an update of a label changed the grant");
    ensure!(scene.lives(stays)?, "an update of a label replaced the task");
    let nowhere = format!("source={secret}@9,target=nine");
    let said = cli.fails(1, &[&update[..], &["--secret-add", &nowhere, &pinned]].concat())?;
    ensure!(said.contains(&format!("secret {secret} has no version 9")), "{said}");
    ensure!(said.contains("(1, 2, 3)"), "{said}");

    let turned = ["--secret-rm", &first, "--secret-add", &second, &pinned];
    cli.ok(&[&update[..], &turned].concat())?;
    let is_new = |task: &Placed| task.container != stays.container;
    let moved = scene.cluster.await_placed(0, &pinned, BOUND, is_new)?;
    ensure!(scene.read(&moved[0], &secret)? == "two", "pinned to 2");
    cli.ok(&["service", "rollback", "--detach", &pinned])?;
    let is_back = |task: &Placed| task.container != moved[0].container;
    let back = scene.cluster.await_placed(0, &pinned, BOUND, is_back)?;
    ensure!(scene.read(&back[0], &secret)? == "one", "back at 1");
    Ok(())
}

fn what_is_pinned_is_never_dropped(scene: &Scene) -> Result<()> {
    let skep = scene.cluster.node(0).skep();
    let secret = scene.bench.name("kept");
    skep.ok_with(&["secret", "create", "--keep", "2", &secret, "-"], b"1")?;
    let (service, at) =
        scene.sleeper_on(WORKER, "keeper", &["--secret", &format!("{secret}@1")])?;
    for version in 2..=6 {
        let said = turn(scene, &secret, &version.to_string())?;
        ensure!(said == format!("{secret} {version}"), "{said}");
    }
    ensure!(history(scene, &secret)? == "6 5 1", "kept: {}", history(scene, &secret)?);
    let prune = ["secret", "prune", "--keep", "1", &secret];
    let said = skep.ok(&[&prune[..], &["--dry-run"]].concat())?;
    ensure!(said.contains(&format!("Would delete secret versions:\n{secret}@5\n")), "{said}");
    let said = skep.fails_with(1, &prune, b"n\n")?;
    ensure!(said.contains("secret prune has been cancelled"), "{said}");
    ensure!(history(scene, &secret)? == "6 5 1", "dropped without consent");
    let said = skep.ok_with(&prune, b"y\n")?;
    ensure!(said.contains("WARNING! This will remove the versions of"), "{said}");
    ensure!(said.contains(&format!("{secret}@5\n")), "{said}");
    ensure!(!said.contains(&format!("{secret}@1\n")), "{said}");
    ensure!(history(scene, &secret)? == "6 1", "left: {}", history(scene, &secret)?);
    ensure!(scene.read(&at[0], &secret)? == "1", "the pinned version is gone");
    let table = skep.ok(&["secret", "history", &secret])?;
    let used = format!("{service} (1 task, pinned)");
    ensure!(table.lines().last().is_some_and(|line| line.contains(&used)), "{table}");

    scene.bench.cli.ok(&["service", "rm", &service])?;
    settle("the last user to be gone", BOUND, || {
        skep.ok(&[&prune[..], &["--force"]].concat())?;
        Ok(history(scene, &secret)? == "6")
    })
}

fn a_signal_tells_of_a_change(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("told", "first")?;
    let flags = granted(scene, &secret, "signal:SIGHUP");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let constraint = format!("node.hostname=={}", skep_integration::name_of(WORKER));
    let flags = [&flags[..], &["--constraint", &constraint]].concat();
    // Only once the trap is set a signal is heard.
    let script = format!(
        "trap 'cat /run/secrets/{secret} >> /tmp/told; echo >> /tmp/told' HUP; \
         echo ready > /tmp/told; while true; do sleep 1000 & wait; done"
    );
    let service = scene.bench.service("listener", &flags, &["sh", "-c", &script])?;
    let at = scene.cluster.await_placed(0, &service, BOUND, |task| task.node == WORKER)?;
    let told = || scene.exec(&at[0], &["cat", "/tmp/told"]);
    settle("the trap", BOUND, || Ok(told().is_ok_and(|text| text == "ready")))?;
    turn(scene, &secret, "second")?;
    settle("the signal", BOUND, || Ok(told()? == "ready\nsecond"))
        .with_context(|| format!("told: {:?}", told()))?;
    turn(scene, &secret, "third")?;
    settle("another", BOUND, || Ok(told()? == "ready\nsecond\nthird"))?;
    ensure!(scene.lives(&at[0])?, "the task did not survive");
    Ok(())
}

fn restarts_on_a_change_are_rolling(scene: &Scene) -> Result<()> {
    const REPLICAS: usize = 3;
    let secret = scene.bench.secret("again", "first")?;
    let flags = granted(scene, &secret, "restart");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let policy =
        ["--replicas", "3", "--update-parallelism", "1", "--update-monitor", "100ms"].as_slice();
    let service = scene.bench.sleeper("rolling", &[&flags[..], policy].concat())?;
    let before = scene.cluster.await_placed(0, &service, BOUND, |_| true)?;
    ensure!(before.len() == REPLICAS, "{before:?}");
    let containers = |placed: &[Placed]| -> BTreeSet<String> {
        placed.iter().map(|task| task.container.clone()).collect()
    };
    let old = containers(&before);
    turn(scene, &secret, "second")?;
    // What runs, each time it is another: one slot at most is between its tasks.
    let mut seen = vec![old.clone()];
    wait_until("all to be replaced", BOUND, || {
        let running = containers(&scene.cluster.placed(0, &service)?);
        if seen.last() != Some(&running) {
            seen.push(running.clone());
        }
        Ok((running.len() == REPLICAS && running.is_disjoint(&old)).then_some(()))
    })
    .with_context(|| format!("{seen:?}"))?;
    let few = seen.iter().find(|running| running.len() + 1 < REPLICAS);
    ensure!(few.is_none(), "two slots at once had no task: {seen:?}");
    let status = || scene.bench.inspect("service", &service);
    let mut last = Value::Null;
    settle("the end of the restarts", BOUND, || {
        last = status()?["UpdateStatus"].clone();
        Ok(last["State"] == "completed" && last["Message"] == "restarts completed")
    })
    .with_context(|| format!("{last}"))?;
    let after = scene.cluster.placed(0, &service)?;
    for task in &after {
        ensure!(scene.read(task, &secret)? == "second", "{task:?}");
    }
    ensure!(status()?["PreviousSpec"].is_null(), "a restart is no other spec");
    Ok(())
}
