//! The items of the acceptance list that need more than one node, on one where a swarm of many must
//! not differ from it.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_integration::{
    Bench, ClusterOptions, Marker, Node, Options, Program, Role, by_both, look, name_of, scan_disk,
    settle,
};

use crate::{BOUND, OTHER, Scene, WORKER, alone_by, calm, has_head, row, storm};

by_both! {
    with crate::calm:
    s038_s049_encrypted_at_rest_on_every_manager s039_only_where_granted
    s040_only_while_the_task_runs s042_not_for_standalone_containers s053_grant_and_revoke
    s131_s132_another_node_runs_it s133_every_task_on_every_node s140_listed_by_every_manager
    s141_stays_converged
}

by_both! { with crate::seeds::two_machines: s074_s162_two_machines }

by_both! { with crate::seeds::two_swarms: s041_one_name_in_two_swarms }

fn s038_s049_encrypted_at_rest_on_every_manager(scene: &Scene) -> Result<()> {
    // The name is to be found as little as the payload: the whole log is encrypted.
    let (payload, name) = (Marker::new()?, Marker::new()?);
    let follower = scene.cluster.node(1).cli(scene.bench.cli.program);
    follower.ok_with(&["secret", "create", name.text(), "-"], payload.text().as_bytes())?;
    for at in scene.cluster.managers() {
        let node = scene.cluster.node(at);
        ensure!(node.get(&format!("/secrets/{}", name.text()))?["ID"].is_string(), "node {at}");
        ensure!(
            scan_disk(node.root(), &payload)?.is_empty(),
            "{:?}",
            scan_disk(node.root(), &payload)
        );
        let log = node.data_root().join("raft");
        ensure!(log.is_dir(), "no log on node {at}");
        ensure!(scan_disk(&log, &name)?.is_empty(), "{:?}", scan_disk(&log, &name));
    }
    follower.ok(&["secret", "rm", name.text()])?;
    Ok(())
}

fn s039_only_where_granted(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("granted", "for one alone")?;
    let (_, granted) = scene.sleeper_on(WORKER, "has", &["--secret", &secret])?;
    let (_, beside) = scene.sleeper_on(WORKER, "beside", &[])?;
    let (_, elsewhere) = scene.sleeper_on(OTHER, "elsewhere", &[])?;
    ensure!(scene.read(&granted[0], &secret)? == "for one alone", "the granted cannot read it");
    for other in [&beside[0], &elsewhere[0]] {
        let listed = scene.exec(other, &["sh", "-c", "ls -A /run/secrets 2>/dev/null; true"])?;
        ensure!(listed.is_empty(), "node {}: {listed}", other.node);
    }
    Ok(())
}

fn s040_only_while_the_task_runs(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("while", "as long as it runs")?;
    let (service, placed) = scene.sleeper_on(WORKER, "while", &["--secret", &secret])?;
    let seen = look(scene.cluster.node(WORKER), &placed[0].container)?;
    let mut text = String::new();
    let path = format!("/run/secrets/{secret}");
    seen.open(&path)?.read_to_string(&mut text)?;
    ensure!(text == "as long as it runs", "{text}");
    let mut held = seen.open(&path)?;
    scene.bench.cli.ok(&["service", "rm", &service])?;
    settle("the end of the container", BOUND, || Ok(seen.is_dead()))?;
    let error = held.read_to_string(&mut text);
    ensure!(error.is_err(), "a descriptor from before still reads: {text}");
    Ok(())
}

fn s042_not_for_standalone_containers(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("alone", "not for you")?;
    let cli = scene.cluster.node(WORKER).cli(scene.bench.cli.program);
    // Neither asked for nor by the way.
    let flags: [&[&str]; 2] = [&[], &["--secret", &secret]];
    for flags in flags {
        let command = ["busybox:latest", "ls", "/run/secrets"];
        let out = cli.run(&[&["run", "--rm", "--network", "none"], flags, &command].concat())?;
        ensure!(out.code != 0 && !out.stdout.contains(&secret), "{out:?}");
    }
    // As a service of one task it gets it, its command unchanged.
    let (_, placed) = scene.sleeper_on(WORKER, "one", &["--replicas", "1", "--secret", &secret])?;
    ensure!(scene.read(&placed[0], &secret)? == "not for you", "as a service");
    Ok(())
}

fn s053_grant_and_revoke(scene: &Scene) -> Result<()> {
    let (first, second) = (scene.bench.secret("one", "1")?, scene.bench.secret("two", "2")?);
    let (service, before) = scene.sleeper_on(WORKER, "change", &["--secret", &first])?;
    let update = |flags: &[&str], old: &str| {
        scene.bench.cli.ok(&[&["service", "update", "--detach"], flags, &[&service]].concat())?;
        scene.cluster.await_placed(0, &service, BOUND, |task| task.task != old)
    };
    let both = update(&["--secret-add", &second], &before[0].task)?;
    ensure!(scene.read(&both[0], &first)? == "1" && scene.read(&both[0], &second)? == "2", "both");
    let one = update(&["--secret-rm", &first], &both[0].task)?;
    ensure!(scene.read(&one[0], &second)? == "2", "the one that is left");
    let listed = scene.exec(&one[0], &["ls", "/run/secrets"])?;
    ensure!(listed == second, "{listed}");
    Ok(())
}

fn s131_s132_another_node_runs_it(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("MYSECRETS", "x")?;
    let at = format!("node.hostname=={}", name_of(OTHER));
    let flags = ["service", "create", "-d", "--secret", &secret, "--constraint", &at];
    let grace = ["--stop-grace-period", "100ms", "busybox", "sleep", "100000"];
    let id = scene.bench.cli.ok(&[&flags[..], &grace].concat())?;
    let spec = scene.bench.inspect("service", &id)?;
    let name = spec["Spec"]["Name"].as_str().context("no generated name")?.to_owned();
    scene.bench.adopt(&name);
    let placed = scene.cluster.await_placed(0, &name, BOUND, |task| task.node == OTHER)?;

    let listed = scene.bench.cli.ok(&["service", "ls"])?;
    let line = row(&listed, &name)?;
    for cell in ["replicated", "1/1", "busybox:latest"] {
        ensure!(line.split_whitespace().any(|word| word == cell), "{cell}: {line}");
    }
    let table = scene.bench.cli.ok(&["service", "ps", &name])?;
    let line = row(&table, &format!("{name}.1"))?;
    ensure!(line.split_whitespace().any(|word| word == name_of(OTHER)), "{table}");

    // On that node it is listed, under its full name; on the one that was asked it is not.
    let full = format!("{name}.1.{}", placed[0].task);
    let there = scene.cluster.node(OTHER).cli(scene.bench.cli.program).ok(&["ps", "--no-trunc"])?;
    let line = row(&there, &full)?;
    ensure!(line.starts_with(&placed[0].container) && line.contains("busybox"), "{line}");
    ensure!(row(&scene.bench.cli.ok(&["ps", "--no-trunc"])?, &full).is_err(), "listed here too");
    Ok(())
}

fn s133_every_task_on_every_node(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("MYSECRETS", "for all of them\n")?;
    let service = scene.bench.sleeper("many", &["--replicas", "10", "--secret", &secret])?;
    let placed = scene.cluster.await_converged(0, &service)?;
    let mut nodes: Vec<_> = placed.iter().map(|task| task.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    ensure!(nodes.len() == crate::MEMBERS, "not spread over all nodes: {placed:?}");
    for task in &placed {
        ensure!(scene.read(task, &secret)? == "for all of them", "{task:?}");
    }
    Ok(())
}

fn s140_listed_by_every_manager(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("everywhere", "x")?;
    let id = scene.bench.inspect("secret", &secret)?["ID"].clone();
    let id = id.as_str().context("ID")?;
    for at in scene.cluster.managers() {
        let cli = scene.cluster.node(at).cli(scene.bench.cli.program);
        // Seen at once: it was acknowledged.
        ensure!(row(&cli.ok(&["secret", "ls"])?, &secret)?.starts_with(id), "on node {at}");
    }
    for at in scene.cluster.workers() {
        let cli = scene.cluster.node(at).cli(scene.bench.cli.program);
        let error = cli.fails(1, &["secret", "ls"])?;
        ensure!(error.contains("not a swarm manager"), "{error}");
    }
    Ok(())
}

fn s141_stays_converged(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("kept", "x")?;
    let flags = ["service", "create", "--replicas", "3", "--secret", &secret, "--name"];
    let name = scene.bench.name("kept");
    scene.bench.adopt(&name);
    let rest = [&name, "--stop-grace-period", "100ms", "busybox:latest", "sleep", "100000"];
    let cli = scene.bench.cli.within(Duration::from_secs(60));
    // Not detached: it ends when the tasks have run for a while.
    let out = cli.ok(&[&flags[..], &rest].concat())?;
    ensure!(out.ends_with("converged"), "{out}");
    let placed = scene.cluster.await_converged(0, &name)?;
    ensure!(placed.len() == 3, "{placed:?}");
    for at in scene.cluster.managers() {
        ensure!(scene.cluster.placed(at, &name)? == placed, "node {at} tells something else");
    }
    Ok(())
}

fn two_machines(program: Program, name: &str, scenario: fn(&Scene) -> Result<()>) -> Result<()> {
    let options = ClusterOptions { spares: 2, ..ClusterOptions::default() };
    alone_by(program, name, options, scenario)
}

fn s074_s162_two_machines(scene: &Scene) -> Result<()> {
    let (cli, cluster) = (&scene.bench.cli, scene.cluster);
    let out = cli.ok(&["swarm", "init", "--advertise-addr", "10.77.0.1"])?;
    let (id, info) = (cluster.node(0).id()?, cli.ok(&["info"])?);
    let first = format!("Swarm initialized: current node ({id}) is now a manager.");
    let says =
        |part: &str| out.contains(part).then_some(()).with_context(|| format!("{part} in {out}"));
    says(&first)?;
    says("To add a worker to this swarm, run the following command:")?;
    says("swarm join --token SWMTKN-1-")?;
    says("swarm join-token manager' and follow the instructions.")?;
    ensure!(info.contains("Swarm: active") && info.contains("Is Manager: true"), "{info}");
    // The printed command as it stands.
    let command = out.lines().find_map(|line| line.split_once("swarm join ")).context("command")?.1;
    let words: Vec<_> = ["swarm", "join"].into_iter().chain(command.split_whitespace()).collect();
    ensure!(words.last() == Some(&cluster.endpoint(0).as_str()), "{out}");
    let said = cluster.node(1).cli(cli.program).ok(&words)?;
    ensure!(said == "This node joined a swarm as a worker.", "{said}");
    cluster.node(1).id()?;
    cluster.await_ready(2)?;

    let table = cli.ok(&["node", "ls"])?;
    has_head(&table, "ID HOSTNAME STATUS AVAILABILITY MANAGER STATUS ENGINE VERSION")?;
    ensure!(
        row(&table, "n1")?.contains("Leader") && row(&table, "n2")?.contains("Ready"),
        "{table}"
    );
    let secret = scene.bench.secret("site.key", "of two machines")?;
    let (_, placed) = scene.sleeper_on(1, "web", &["--secret", &secret])?;
    ensure!(scene.read(&placed[0], &secret)? == "of two machines", "on the worker");
    Ok(())
}

fn two_swarms(program: Program, name: &str, scenario: fn(&[Bench; 2]) -> Result<()>) -> Result<()> {
    let Some(tag) = skep_integration::tag_of(program, name)? else { return Ok(()) };
    let nodes = [Node::start(Options::default())?, Node::start(Options::default())?];
    for node in &nodes {
        node.import_busybox()?;
    }
    scenario(&nodes.each_ref().map(|node| Bench::new(node, program, tag.clone())))
}

fn s041_one_name_in_two_swarms(benches: &[Bench; 2]) -> Result<()> {
    for (bench, value) in benches.iter().zip(["for tests", "for production"]) {
        bench.secret("db_password", value)?;
    }
    for (bench, value) in benches.iter().zip(["for tests", "for production"]) {
        let secret = bench.name("db_password");
        let service = bench.sleeper("app", &["--secret", &secret])?;
        let container = bench.container(&service)?;
        let read = bench.exec(&container, &["cat", &format!("/run/secrets/{secret}")])?;
        ensure!(read == value, "{read}");
    }
    Ok(())
}

/// The leader dies: secrets are listed and served to new tasks, as if nothing had happened.
#[test]
fn s050_the_log_is_on_every_manager() -> Result<()> {
    storm("s050", |scene| {
        let cluster = scene.cluster;
        let leader = cluster.leader()?;
        let cli = cluster.node(leader).cli(Program::Skep);
        let name = scene.bench.name("replicated");
        cli.ok_with(&["secret", "create", &name, "-"], b"on all of them")?;
        cluster.kill(leader)?;
        let others: Vec<_> = cluster.managers().filter(|at| *at != leader).collect();
        cluster.leader_seen_by(&others, BOUND)?;
        for at in &others {
            row(&cluster.node(*at).skep().ok(&["secret", "ls"])?, &name)?;
        }
        let asked = others[0];
        let service = scene.bench.name("after");
        let at = format!("node.hostname=={}", name_of(WORKER));
        let flags = ["service", "create", "-d", "--secret", &name, "--constraint", &at, "--name"];
        let rest = [&service, "--stop-grace-period", "100ms", "busybox:latest", "sleep", "100000"];
        cluster.node(asked).skep().ok(&[&flags[..], &rest].concat())?;
        let placed = cluster.await_converged(asked, &service)?;
        ensure!(scene.read(&placed[0], &name)? == "on all of them", "served");
        cluster.node(asked).skep().ok(&["service", "rm", &service])?;
        cluster.restart(leader)
    })
}

/// A worker that is cut off: its task reads on, is not replaced on its side, and takes the change
/// when it is back.
#[test]
fn s056_a_cut_off_node_keeps_its_secrets() -> Result<()> {
    storm("s056", |scene| {
        let secret = scene.bench.secret("kept", "while cut off")?;
        let (service, placed) = scene.sleeper_on(WORKER, "kept", &["--secret", &secret])?;
        scene.cluster.isolate(WORKER)?;
        scene.await_state(WORKER, "down")?;
        ensure!(scene.lives(&placed[0])?, "the container is dead");
        ensure!(scene.read(&placed[0], &secret)? == "while cut off", "unreadable while cut off");

        let other = scene.bench.secret("new", "after the cut")?;
        let flag = format!("source={other},target={secret}");
        let update = ["service", "update", "-d", "--secret-rm", &secret, "--secret-add", &flag];
        scene.bench.cli.ok(&[&update[..], &[&service]].concat())?;
        ensure!(scene.read(&placed[0], &secret)? == "while cut off", "changed while cut off");

        scene.cluster.heal()?;
        let old = &placed[0].task;
        let after = scene.cluster.await_placed(0, &service, BOUND, |task| task.task != *old)?;
        ensure!(after[0].node == WORKER, "{after:?}");
        ensure!(scene.read(&after[0], &secret)? == "after the cut", "the change");
        Ok(())
    })
}

/// What the manual calls a member's role is what its token says.
#[test]
fn tokens_give_roles() -> Result<()> {
    calm(Program::Skep, "roles", |scene| {
        for (role, members) in
            [(Role::Manager, scene.cluster.managers()), (Role::Worker, scene.cluster.workers())]
        {
            for at in members {
                let node = scene.told_of(at)?;
                ensure!(node["Spec"]["Role"] == role.word(), "{node}");
                let reachability = node["ManagerStatus"]["Reachability"].as_str();
                ensure!((reachability == Some("reachable")) == (role == Role::Manager), "{node}");
            }
        }
        Ok(())
    })
}
