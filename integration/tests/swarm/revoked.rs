//! Secrets that are taken back while tasks hold them, and where they are readable.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skep_integration::{ClusterOptions, Placed, Program, Seen, by_both, look, name_of, settle};

use crate::{BOUND, OTHER, Scene, WORKER, alone, row};

by_both! { with crate::calm:
    what_is_revoked_is_read_no_more
    one_service_or_one_task_loses_it
    an_update_grants_it_anew
    it_is_told_who_holds_a_secret
}
by_both! { with crate::storm_by: a_cut_off_worker_loses_it_when_it_is_back }

/// A task with one of its secrets open.
struct Holding {
    placed: Placed,
    seen: Seen,
    path: String,
    open: File,
}

impl Holding {
    fn new(scene: &Scene, placed: Placed, target: &str) -> Result<Self> {
        let seen = look(scene.cluster.node(placed.node), &placed.container)?;
        let path = format!("/run/secrets/{target}");
        let open = seen.open(&path)?;
        Ok(Self { placed, seen, path, open })
    }

    /// What its open file says.
    fn reread(&mut self) -> std::io::Result<String> {
        let mut text = String::new();
        self.open.seek(SeekFrom::Start(0))?;
        self.open.read_to_string(&mut text)?;
        Ok(text)
    }

    /// That neither the open file nor its path says anything, and the container runs on.
    fn is_revoked(&mut self) -> Result<()> {
        let (id, node) = (self.placed.task.clone(), self.placed.node);
        let by_handle = self.reread();
        ensure!(by_handle.is_err(), "{id} on {node} reads on: {by_handle:?}");
        let mut anew = String::new();
        let by_path = self.seen.open(&self.path).map(|mut file| file.read_to_string(&mut anew));
        ensure!(!matches!(by_path, Ok(Ok(_))), "{id} on {node} opens it anew: {anew}");
        ensure!(!self.seen.is_dead(), "{id} on {node} was stopped");
        Ok(())
    }

    fn reads(&mut self, text: &str) -> Result<()> {
        let read = self.reread()?;
        ensure!(read == text, "{read:?} instead of {text:?}");
        Ok(())
    }
}

/// A service with one task on each worker, with the secret open: their names and tasks.
fn on_workers(scene: &Scene, base: &str, secret: &str) -> Result<(Vec<String>, Vec<Holding>)> {
    let (mut services, mut held) = (Vec::new(), Vec::new());
    for at in [WORKER, OTHER] {
        let name = format!("{base}{at}");
        let (service, placed) = scene.sleeper_on(at, &name, &["--secret", secret])?;
        services.push(service);
        for task in placed {
            held.push(Holding::new(scene, task, secret)?);
        }
    }
    ensure!(held.len() == 2, "{} tasks", held.len());
    Ok((services, held))
}

fn what_is_revoked_is_read_no_more(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("taken", "to be taken")?;
    let (services, mut held) = on_workers(scene, "taken", &secret)?;
    for one in &mut held {
        one.reads("to be taken")?;
    }
    // By a manager that may have none of the sessions.
    let skep = scene.cluster.node(1).skep();
    let said = skep.run(&["secret", "revoke", &secret])?;
    ensure!(said.code == 0 && said.stderr.is_empty(), "{said:?}");
    let names_all = services.iter().all(|service| said.stdout.contains(service));
    ensure!(names_all && said.stdout.contains("2 tasks let go"), "{said:?}");
    // It has answered: nothing is waited for.
    for one in &mut held {
        one.is_revoked()?;
    }
    // What they hold of nothing else is hurt by it, and a new version is readable at once.
    let said = skep.ok_with(&["secret", "update", "--wait", &secret, "-"], b"given again")?;
    ensure!(said == format!("{secret} 2"), "{said}");
    for one in &mut held {
        let read = scene.read(&one.placed, &secret)?;
        ensure!(read == "given again", "{read}");
        ensure!(!one.seen.is_dead(), "a task was replaced");
    }
    for (words, why) in [
        (&["secret", "revoke", "nothing"][..], "nothing not found"),
        (&["secret", "revoke", "--service", "nobody", &secret], "service nobody not found"),
        (&["secret", "revoke", "--task", "nobody", &secret], "task nobody not found"),
    ] {
        let refused = skep.run(words)?;
        ensure!(refused.code == 1 && refused.stderr.contains(why), "{refused:?}");
    }
    Ok(())
}

fn one_service_or_one_task_loses_it(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("part", "in part")?;
    let grant = ["--secret", secret.as_str()];
    let (loses, placed) = scene.sleeper_on(WORKER, "loses", &grant)?;
    let mut loser = Holding::new(scene, placed.into_iter().next().context("none")?, &secret)?;
    let two = ["--secret", secret.as_str(), "--replicas", "2"];
    let (_, placed) = scene.sleeper_on(OTHER, "keeps", &two)?;
    let mut keeps = placed
        .into_iter()
        .map(|one| Holding::new(scene, one, &secret))
        .collect::<Result<Vec<_>>>()?;
    ensure!(keeps.len() == 2, "{} tasks", keeps.len());
    let skep = scene.cluster.node(2).skep();
    let said = skep.ok(&["secret", "revoke", "--service", &loses, &secret])?;
    ensure!(said.contains(&loses) && said.contains("1 task let go"), "{said}");
    loser.is_revoked()?;
    for one in &mut keeps {
        one.reads("in part")?;
    }
    let task = keeps[0].placed.task.clone();
    let said = skep.ok(&["secret", "revoke", "--task", &task, &secret])?;
    ensure!(said.contains(&task), "{said}");
    keeps[0].is_revoked()?;
    keeps[1].reads("in part")?;
    let refused = skep.run(&["secret", "revoke", "--service", &loses, "--task", &task, &secret])?;
    ensure!(refused.code == 1 && refused.stderr.contains("name one of them"), "{refused:?}");
    Ok(())
}

fn an_update_grants_it_anew(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("anew", "granted anew")?;
    let (service, placed) = scene.sleeper_on(WORKER, "anew", &["--secret", &secret])?;
    let mut old = Holding::new(scene, placed.into_iter().next().context("none")?, &secret)?;
    scene.cluster.node(0).skep().ok(&["secret", "revoke", &secret])?;
    old.is_revoked()?;
    // What changes nothing of the grant gives nothing back: a task that is new is rejected.
    let update = ["service", "update", "--detach", "--env-add", "A=b", &service];
    scene.bench.cli.ok(&update)?;
    settle("a task that is rejected", BOUND, || {
        let all = ["service", "ps", "--no-trunc", "--format", "{{.Error}}", &service];
        Ok(scene.bench.cli.ok(&all)?.contains("is revoked"))
    })?;
    let grant = format!("source={secret},target=again");
    let update =
        ["service", "update", "--detach", "--secret-rm", &secret, "--secret-add", &grant, &service];
    scene.bench.cli.ok(&update)?;
    settle("a task that reads it", BOUND, || {
        let placed = scene.cluster.placed(0, &service)?;
        let fresh = placed.iter().find(|task| task.task != old.placed.task);
        let Some(fresh) = fresh else { return Ok(false) };
        Ok(scene.read(fresh, "again").is_ok_and(|read| read == "granted anew"))
    })
}

fn it_is_told_who_holds_a_secret(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("told", "first")?;
    let (services, held) = on_workers(scene, "told", &secret)?;
    let skep = scene.cluster.node(1).skep();
    let facts = || -> Result<Value> {
        let all: Value = serde_json::from_str(&skep.ok(&["secret", "inspect", &secret])?)?;
        ensure!(all[0]["Spec"]["Name"] == *secret, "{all}");
        Ok(all[0]["Skep"].clone())
    };
    // A task that runs has its secrets; that it said so may be on its way.
    let held_by = |facts: &Value, version: u64| {
        let all = facts["Versions"].as_array().into_iter().flatten();
        all.filter(|one| one["Version"] == version).map(|one| one["Tasks"].clone()).next()
    };
    settle("two that hold it", BOUND, || Ok(held_by(&facts()?, 1) == Some(2.into())))?;
    let shown = facts()?;
    ensure!(shown["Cipher"] == "AES-256-GCM-SIV" && shown["Autolock"] == false, "{shown}");
    ensure!(shown["Key"]["Version"].as_u64() >= Some(1), "{shown}");
    let version = &shown["Versions"][0];
    let nodes = [WORKER, OTHER].map(name_of);
    ensure!(version["Nodes"] == serde_json::json!(nodes), "{shown}");
    ensure!(version["Services"] == serde_json::json!(services), "{shown}");
    skep.ok_with(&["secret", "update", "--wait", &secret, "-"], b"second")?;
    let shown = facts()?;
    ensure!(
        held_by(&shown, 2) == Some(2.into()) && held_by(&shown, 1) == Some(0.into()),
        "{shown}"
    );
    let reader = held.iter().find(|one| one.placed.node == OTHER).context("none there")?;
    ensure!(scene.read(&reader.placed, &secret)? == "second", "an old version");
    settle("the read to be told", BOUND, || {
        let last = facts()?["LastRead"].take();
        Ok(last["Version"] == 2
            && last["Hostname"] == nodes[1]
            && last["Task"] == reader.placed.task)
    })?;
    let pretty = skep.ok(&["secret", "inspect", "--pretty", &secret])?;
    ensure!(pretty.contains("AES-256-GCM-SIV") && pretty.contains("made "), "{pretty}");
    let line = pretty.lines().find(|line| line.starts_with(" 2 ")).context("no version 2")?;
    ensure!(line.contains(&format!("{}, {}", nodes[0], nodes[1])), "{pretty}");
    // Docker's own object stays as it is.
    if scene.bench.cli.program == Program::Docker {
        let shown = scene.bench.inspect("secret", &secret)?;
        ensure!(shown.get("Skep").is_none(), "{shown}");
    }
    let info = skep.ok(&["info"])?;
    ensure!(info.contains("Cipher: AES-256-GCM-SIV") && info.contains("Autolock: off"), "{info}");
    let here = scene.cluster.node(held[0].placed.node).skep();
    let count = here.ok(&["info", "--format", "{{.Skep.TasksHere}}"])?;
    ensure!(count.parse::<usize>()? >= 1, "{count}");
    Ok(())
}

fn a_cut_off_worker_loses_it_when_it_is_back(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("far", "far away")?;
    let (_, mut held) = on_workers(scene, "far", &secret)?;
    let (cluster, skep) = (scene.cluster, scene.cluster.node(0).skep());
    cluster.isolate(WORKER)?;
    scene.await_state(WORKER, "down")?;
    let said = skep.run(&["secret", "revoke", &secret])?;
    ensure!(said.code == 2, "{said:?}");
    let line = row(&said.stderr, &name_of(WORKER))?;
    let cells: Vec<&str> = line.split_whitespace().skip(3).collect();
    ensure!(cells == ["Down", "no", "1"], "{line}");
    ensure!(!said.stderr.contains(&name_of(OTHER)), "{said:?}");
    for one in &mut held {
        match one.placed.node {
            WORKER => one.reads("far away")?,
            _ => one.is_revoked()?,
        }
    }
    let shown = skep.ok(&["secret", "inspect", "--pretty", &secret])?;
    ensure!(shown.contains("Not reached") && shown.contains(&name_of(WORKER)), "{shown}");
    cluster.heal()?;
    settle("the end of reading there", BOUND, || {
        let far = held.iter_mut().filter(|one| one.placed.node == WORKER);
        let mut is_over = true;
        for one in far {
            is_over &= one.reread().is_err();
        }
        Ok(is_over)
    })
}

/// What a node may still read that is removed without being reached is told.
#[test]
fn a_dead_node_is_removed_with_what_stays_readable_there() -> Result<()> {
    let options = ClusterOptions { managers: 1, workers: 1, ..ClusterOptions::default() };
    alone(options, |cluster| {
        let scene = Scene::new(cluster, Program::Skep, "lost");
        let (secret, other) = (scene.bench.secret("left", "1")?, scene.bench.secret("safe", "2")?);
        let (_, placed) = scene.sleeper_on(1, "left", &["--secret", &secret])?;
        scene.sleeper_on(0, "safe", &["--secret", &other])?;
        let skep = cluster.node(0).skep();
        skep.ok_with(&["secret", "update", "--wait", &secret, "-"], b"second")?;
        let name = name_of(1);
        let mut task = Holding::new(&scene, placed.into_iter().next().context("none")?, &secret)?;
        cluster.kill(1)?;
        scene.await_state(1, "down")?;
        // It never gets this one.
        skep.ok_with(&["secret", "update", &secret, "-"], b"third")?;
        let said = skep.run(&["node", "rm", "--force", &name])?;
        ensure!(said.code == 0 && said.text() == name, "{said:?}");
        let line = row(&said.stderr, &secret)?;
        ensure!(line.split_whitespace().collect::<Vec<_>>() == ["secret", &secret, "2"], "{line}");
        ensure!(!said.stderr.contains(&other), "{said:?}");
        task.reads("second")?;
        Ok(())
    })
}
