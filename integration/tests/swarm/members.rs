//! The verbs on nodes: who belongs to the swarm, in which role, and what it may run.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skep_integration::{ClusterOptions, Program, by_both, name_of, settle, tasks_of, wait_until};

use crate::{BOUND, MEMBERS, OTHER, Scene, WORKER, alone_by, has_head, row, storm};

by_both! { with crate::calm: listed_and_inspected commands_reach_every_node labels_are_kept }

by_both! { with crate::members::small: promoted_and_demoted removed_and_gone }

fn small(program: Program, name: &str, scenario: fn(&Scene) -> Result<()>) -> Result<()> {
    let options = ClusterOptions { managers: 1, workers: 2, ..ClusterOptions::default() };
    alone_by(program, name, options, scenario)
}

fn listed_and_inspected(scene: &Scene) -> Result<()> {
    let (cluster, cli) = (scene.cluster, &scene.bench.cli);
    let leader = cluster.leader()?;
    for at in cluster.managers() {
        let table = cluster.node(at).cli(cli.program).ok(&["node", "ls"])?;
        has_head(&table, "ID HOSTNAME STATUS AVAILABILITY MANAGER STATUS ENGINE VERSION")?;
        ensure!(table.lines().count() == MEMBERS + 1, "{table}");
        for other in 0..MEMBERS {
            let line = row(&table, &name_of(other))?;
            ensure!(line.contains("Ready") && line.contains("Active"), "{line}");
            ensure!(line.starts_with(&cluster.node(other).id()?), "{line}");
            ensure!(line.contains(" * ") == (other == at), "marks the node that was asked: {line}");
            ensure!(line.contains("Leader") == (other == leader), "{line}");
            let follows = cluster.managers().contains(&other) && other != leader;
            ensure!(line.contains("Reachable") == follows, "{line}");
        }
    }
    for at in 0..MEMBERS {
        let shown = scene.told_of(at)?;
        let address = cluster.endpoint(at);
        let address = address.split(':').next().context("address")?;
        ensure!(shown["Description"]["Hostname"] == name_of(at), "{shown}");
        ensure!(
            shown["Status"]["Addr"] == address && shown["Status"]["State"] == "ready",
            "{shown}"
        );
        ensure!(shown["Spec"]["Availability"] == "active", "{shown}");
    }
    let own = scene.bench.inspect("node", "self")?;
    ensure!(own["ID"] == cluster.node(0).id()?.as_str(), "{own}");

    let (service, placed) = scene.sleeper_on(OTHER, "listed", &[])?;
    let table = cli.ok(&["node", "ps", &name_of(OTHER)])?;
    has_head(&table, "ID NAME IMAGE NODE DESIRED STATE CURRENT STATE ERROR PORTS")?;
    let line = row(&table, &format!("{service}.1"))?;
    ensure!(placed[0].task.starts_with(line.split_whitespace().next().context("id")?), "{line}");
    let table = cli.ok(&["node", "ps", &name_of(WORKER)])?;
    ensure!(row(&table, &format!("{service}.1")).is_err(), "{table}");
    Ok(())
}

/// What Docker cannot: a container is reached from any manager, on whichever node it is.
fn commands_reach_every_node(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("far", "read from afar")?;
    let at = format!("node.hostname=={}", name_of(OTHER));
    let loud = ["sh", "-c", "echo said on $(hostname); exec sleep 100000"];
    let flags = ["--secret", &secret, "--constraint", &at, "--hostname", "far-away"];
    let service = scene.bench.service("far", &flags, &loud)?;
    let placed = scene.cluster.await_placed(0, &service, BOUND, |task| task.node == OTHER)?;
    let container = &placed[0].container;
    for manager in scene.cluster.managers() {
        let cli = scene.cluster.node(manager).cli(scene.bench.cli.program);
        let read = cli.ok(&["exec", container, "cat", &format!("/run/secrets/{secret}")])?;
        ensure!(read == "read from afar", "exec by node {manager}: {read}");
        let out = cli.run(&["exec", container, "sh", "-c", "echo oops >&2; exit 7"])?;
        ensure!(out.code == 7 && out.stderr.trim() == "oops", "node {manager}: {out:?}");
        let out = cli.run_with(&["exec", "-i", container, "cat"], b"there and back")?;
        ensure!(out.stdout == "there and back", "node {manager}: {out:?}");
        ensure!(cli.ok(&["logs", container])? == "said on far-away", "logs by node {manager}");
        let logs = cli.ok(&["service", "logs", "--raw", &service])?;
        ensure!(logs == "said on far-away", "service logs by node {manager}: {logs}");
        let shown: Value = serde_json::from_str(&cli.ok(&["inspect", container])?)?;
        ensure!(shown[0]["State"]["Running"] == true, "inspect by node {manager}: {shown}");
    }
    Ok(())
}

fn labels_are_kept(scene: &Scene) -> Result<()> {
    let (cli, node) = (&scene.bench.cli, name_of(OTHER));
    let label = format!("disk-{:?}", cli.program).to_lowercase();
    ensure!(cli.ok(&["node", "update", "--label-add", &format!("{label}=ssd"), &node])? == node);
    ensure!(scene.told_of(OTHER)?["Spec"]["Labels"][&label] == "ssd", "{}", scene.told_of(OTHER)?);
    let wanted = format!("node.labels.{label}==ssd");
    let service = scene.bench.sleeper("labelled", &["--constraint", &wanted, "--replicas", "2"])?;
    scene.cluster.await_placed(0, &service, BOUND, |task| task.node == OTHER)?;
    cli.ok(&["node", "update", "--label-rm", &label, &node])?;
    ensure!(scene.told_of(OTHER)?["Spec"]["Labels"].get(&label).is_none(), "still there");
    Ok(())
}

fn promoted_and_demoted(scene: &Scene) -> Result<()> {
    let (cluster, cli) = (scene.cluster, &scene.bench.cli);
    let secret = scene.bench.secret("before", "made before it was a manager")?;
    let (service, placed) = scene.sleeper_on(1, "stays", &["--secret", &secret])?;
    let is_manager = |at: usize, wanted: bool| {
        let reachable = || -> Result<bool> {
            Ok(scene.told_of(at)?["ManagerStatus"]["Reachability"] == "reachable")
        };
        settle("the change of role", BOUND, || Ok(reachable()? == wanted))
    };
    let error = cli.fails(1, &["node", "demote", "n1"])?;
    ensure!(error.contains("last manager"), "{error}");

    for at in [1, 2] {
        let said = cli.ok(&["node", "promote", &name_of(at)])?;
        ensure!(said.contains(&format!("{} promoted to a manager", name_of(at))), "{said}");
        is_manager(at, true)?;
        let local = cluster.node(at);
        let lists = || Ok(local.skep().run(&["secret", "ls"])?.stdout.contains(&secret));
        settle("it to serve as a manager", BOUND, lists)?;
    }
    // Two of three are a majority now: the first may go, and its socket with it for a while.
    cluster.kill(0)?;
    let leader = cluster.leader_seen_by(&[1, 2], BOUND)?;
    ensure!(leader != 0, "the dead leads");
    let late = cluster.node(leader).cli(cli.program);
    late.ok_with(&["secret", "create", &scene.bench.name("late"), "-"], b"late")?;
    cluster.restart(0)?;
    cluster.await_ready(3)?;

    for at in [2, 1] {
        let said = cli.ok(&["node", "demote", &name_of(at)])?;
        ensure!(said.contains(&format!("{} demoted in the swarm", name_of(at))), "{said}");
        is_manager(at, false)?;
        let local = cluster.node(at);
        let refuses = || Ok(local.skep().run(&["secret", "ls"])?.code == 1);
        settle("it to be a worker", BOUND, refuses)?;
        // What it held as a manager is gone.
        let log = local.data_root().join("raft");
        settle("the end of its log", BOUND, || {
            Ok(!log.exists() || std::fs::read_dir(log.join("log"))?.next().is_none())
        })?;
    }
    cluster.await_ready(3)?;
    ensure!(cluster.await_converged(0, &service)? == placed, "its task was disturbed");
    ensure!(scene.read(&placed[0], &secret)? == "made before it was a manager", "its secret");
    Ok(())
}

fn removed_and_gone(scene: &Scene) -> Result<()> {
    let (cluster, cli) = (scene.cluster, &scene.bench.cli);
    let secret = scene.bench.secret("gone", "with the node")?;
    let (_, placed) = scene.sleeper_on(1, "gone", &["--secret", &secret])?;
    let seen = skep_integration::look(cluster.node(1), &placed[0].container)?;

    let error = cli.fails(1, &["node", "rm", "n1"])?;
    ensure!(error.contains("must be demoted"), "{error}");
    let error = cli.fails(1, &["node", "rm", "n2"])?;
    ensure!(error.contains("is not down and can't be removed"), "{error}");

    // One that is down goes at once.
    cluster.node(2).stop_daemon()?;
    scene.await_state(2, "down")?;
    ensure!(cli.ok(&["node", "rm", "n3"])? == "n3", "rm");
    cluster.await_ready(2)?;
    // Back again, it is told that it is nobody.
    cluster.node(2).launch()?;
    let says = |at: usize, text: &str| {
        settle(text, BOUND, || Ok(cluster.node(at).log_tail().contains(text)))
    };
    says(2, "removed")?;

    // One that lives goes by force, and with it its tasks and their secrets.
    cli.ok(&["node", "rm", "--force", "n2"])?;
    settle("the end of its task", BOUND, || Ok(seen.is_dead()))?;
    says(1, "removed")?;
    let all = wait_until("one member", BOUND, || {
        let all = scene.bench.node.get("/nodes")?;
        Ok(all.as_array().is_some_and(|all| all.len() == 1).then_some(all))
    })?;
    ensure!(all[0]["Description"]["Hostname"] == "n1", "{all}");
    Ok(())
}

#[test]
fn drained_paused_and_active() -> Result<()> {
    storm("availability", |scene| {
        let (cluster, cli) = (scene.cluster, &scene.bench.cli);
        let set = |at: usize, to: &str| {
            cli.ok(&["node", "update", "--availability", to, &name_of(at)]).map(drop)
        };
        let workers = "node.role==worker";
        let secret = scene.bench.secret("moves", "along")?;
        let flags = ["--replicas", "4", "--constraint", workers, "--secret", &secret];
        let service = scene.bench.sleeper("moves", &flags)?;
        let before = cluster.await_converged(0, &service)?;
        ensure!(before.iter().any(|task| task.node == WORKER), "{before:?}");

        set(WORKER, "drain")?;
        let drained = cluster.await_placed(0, &service, BOUND, |task| task.node == OTHER)?;
        for task in &drained {
            ensure!(scene.read(task, &secret)? == "along", "{task:?}");
        }
        ensure!(row(&cli.ok(&["node", "ls"])?, &name_of(WORKER))?.contains("Drain"), "not shown");
        for task in before.iter().filter(|task| task.node == WORKER) {
            settle("the end of what it ran", BOUND, || {
                let listed = cluster.node(WORKER).get("/containers/json")?;
                let mut listed = listed.as_array().into_iter().flatten();
                Ok(listed.all(|one| one["Id"] != task.container.as_str()))
            })?;
        }

        // Active again it takes new tasks; paused it keeps what it has and takes no more.
        set(WORKER, "active")?;
        cli.ok(&["service", "scale", "--detach", &format!("{service}=8")])?;
        let eight = cluster.await_converged(0, &service)?;
        ensure!(eight.iter().any(|task| task.node == WORKER), "{eight:?}");
        set(WORKER, "pause")?;
        cli.ok(&["service", "scale", "--detach", &format!("{service}=12")])?;
        let twelve = cluster.await_converged(0, &service)?;
        let there = |all: &[skep_integration::Placed]| {
            let own = all.iter().filter(|task| task.node == WORKER).cloned();
            own.collect::<Vec<_>>()
        };
        ensure!(there(&twelve) == there(&eight), "{twelve:?}");
        set(WORKER, "active")
    })
}

/// A node is full of a service only by its limit: what finds no place says why.
#[test]
fn what_finds_no_node_says_why() -> Result<()> {
    crate::calm(Program::Skep, "nowhere", |scene| {
        let service = scene.bench.sleeper("nowhere", &["--constraint", "node.hostname==nobody"])?;
        let mut last = Vec::new();
        settle("the reason", BOUND, || {
            last = tasks_of(scene.bench.node, &service)?;
            let text = last.first().map(|task| task["Status"]["Err"].to_string());
            Ok(text.is_some_and(|text| text.contains("no suitable node")))
        })
        .with_context(|| format!("{last:?}"))
    })
}
