//! Many nodes: what the acceptance list says of them, joining and leaving, and everything that can
//! go wrong between them. One cluster of three managers and two workers serves most tests of a
//! process: many at once while they disturb nobody, one alone when it does.

mod agents;
mod audited;
mod herd;
mod isolation;
mod join;
mod living;
mod managers;
mod members;
mod pinned;
mod plaintext;
mod rekeyed;
mod revoked;
mod seeds;
mod survival;

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skep_integration::{
    Bench, Cluster, ClusterOptions, Placed, Program, look, name_of, settle, tag_of,
};

/// Longest wait for tasks and nodes to become what they should; builds with checks are slow.
const BOUND: Duration = Duration::from_secs(30);
/// The first worker.
const WORKER: usize = 3;
/// The second.
const OTHER: usize = 4;
/// Members of the usual cluster.
const MEMBERS: usize = 5;

static PLACE: RwLock<Option<Cluster>> = RwLock::new(None);

fn usual() -> Result<Cluster> {
    Cluster::start(ClusterOptions {
        managers: 3,
        workers: 2,
        // Memory that root can read, so that a search of it proves something.
        args: ["--vault", "mlock"].map(str::to_owned).to_vec(),
        movable_clocks: true,
        ..ClusterOptions::default()
    })
}

/// A cluster, and a client of one of its nodes.
struct Scene<'a> {
    cluster: &'a Cluster,
    bench: Bench<'a>,
}

impl<'a> Scene<'a> {
    fn new(cluster: &'a Cluster, program: Program, tag: &str) -> Self {
        Self { cluster, bench: Bench::new(cluster.node(0), program, tag.to_owned()) }
    }

    /// A service that sleeps on one node; its name and its tasks.
    fn sleeper_on(&self, at: usize, base: &str, flags: &[&str]) -> Result<(String, Vec<Placed>)> {
        let constraint = format!("node.hostname=={}", name_of(at));
        let service =
            self.bench.sleeper(base, &[flags, &["--constraint", &constraint]].concat())?;
        let placed = self.cluster.await_placed(0, &service, BOUND, |task| task.node == at)?;
        Ok((service, placed))
    }

    /// Runs a command in a task, by its own node's socket.
    fn exec(&self, task: &Placed, command: &[&str]) -> Result<String> {
        let cli = self.cluster.node(task.node).cli(self.bench.cli.program);
        cli.ok(&[&["exec", &task.container], command].concat())
    }

    /// Reads a task's secret, as its container sees it.
    fn read(&self, task: &Placed, secret: &str) -> Result<String> {
        self.exec(task, &["cat", &format!("/run/secrets/{secret}")])
    }

    /// Whether a task's first process is there.
    fn lives(&self, task: &Placed) -> Result<bool> {
        Ok(!look(self.cluster.node(task.node), &task.container)?.is_dead())
    }

    /// What a manager says of a node.
    fn told_of(&self, at: usize) -> Result<Value> {
        self.bench.inspect("node", &name_of(at))
    }

    /// Waits until a manager tells a node's state.
    fn await_state(&self, at: usize, state: &str) -> Result<()> {
        let mut last = Value::Null;
        settle(state, BOUND, || {
            last = self.told_of(at)?["Status"].take();
            Ok(last["State"] == *state)
        })
        .with_context(|| format!("{}: {last}", name_of(at)))
    }
}

/// Runs a scenario that disturbs nobody on the usual cluster, beside others.
fn calm(program: Program, name: &str, scenario: fn(&Scene) -> Result<()>) -> Result<()> {
    let Some(tag) = tag_of(program, name)? else { return Ok(()) };
    loop {
        if let Some(cluster) = PLACE.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            return scenario(&Scene::new(cluster, program, &tag));
        }
        let mut place = PLACE.write().unwrap_or_else(PoisonError::into_inner);
        if place.is_none() {
            *place = Some(usual()?);
        }
    }
}

/// Runs one that does, alone on the usual cluster, which has to be well again in the end, with
/// nobody's help but what the scenario did.
fn storm(name: &str, scenario: impl FnOnce(&Scene) -> Result<()>) -> Result<()> {
    let mut place = PLACE.write().unwrap_or_else(PoisonError::into_inner);
    let cluster = match place.take() {
        Some(cluster) => cluster,
        None => usual()?,
    };
    let tag = name.split('_').next().unwrap_or(name);
    scenario(&Scene::new(&cluster, Program::Skep, tag))?;
    cluster.heal()?;
    for manager in cluster.managers() {
        cluster.await_ready_at(manager, MEMBERS)?;
    }
    // After a failure the next test gets a new one.
    *place = Some(cluster);
    Ok(())
}

/// As [`storm`], by a client.
fn storm_by(program: Program, name: &str, scenario: fn(&Scene) -> Result<()>) -> Result<()> {
    let Some(tag) = tag_of(program, name)? else { return Ok(()) };
    storm(&tag, |scene| scenario(&Scene::new(scene.cluster, program, &tag)))
}

/// Runs one on a cluster of its own.
fn alone(options: ClusterOptions, scenario: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let mut place = PLACE.write().unwrap_or_else(PoisonError::into_inner);
    // Clusters are few on a machine: this process has one at a time.
    drop(place.take());
    scenario(&Cluster::start(options)?)
}

/// As [`alone`], by a client.
fn alone_by(
    program: Program,
    name: &str,
    options: ClusterOptions,
    scenario: fn(&Scene) -> Result<()>,
) -> Result<()> {
    let Some(tag) = tag_of(program, name)? else { return Ok(()) };
    alone(options, |cluster| scenario(&Scene::new(cluster, program, &tag)))
}

/// The line of a table whose cells contain `cell`.
fn row<'a>(table: &'a str, cell: &str) -> Result<&'a str> {
    let found = table.lines().find(|line| line.split_whitespace().any(|word| word == cell));
    found.with_context(|| format!("no row {cell}:\n{table}"))
}

/// The cells of a table's head.
fn has_head(table: &str, cells: &str) -> Result<()> {
    let head = table.lines().next().context("an empty table")?;
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    ensure!(words(head) == words(cells), "{head}");
    Ok(())
}
