//! Many agents lose their manager at once.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skep_integration::{Cluster, ClusterOptions, Herd, Role, name_of, settle};

use crate::{BOUND, alone};

/// Agents, and tasks of each. The bench has ten times as many.
const HERD: [usize; 2] = [100, 5];
/// Longest time until all of them have a session again; builds with checks are slow.
const BACK: Duration = Duration::from_secs(15);

fn create(cluster: &Cluster, at: usize, herd: [usize; 2]) -> Result<()> {
    let [agents, tasks] = herd;
    let (secret, replicas) = ("herd", (agents * tasks).to_string());
    let cli = cluster.node(at).skep();
    cli.ok_with(&["secret", "create", secret, "-"], b"kept")?;
    let each = tasks.to_string();
    let placed = ["--constraint", "engine.labels.simulated==yes", "--replicas-max-per-node", &each];
    let service = ["service", "create", "-d", "--name", "herd", "--secret", secret];
    let what = ["--replicas", &replicas, "busybox:latest", "sleep", "1000000"];
    cli.ok(&[&service[..], &placed, &what].concat()).map(drop)
}

/// Simulated nodes that a manager says are not ready.
fn absent(cluster: &Cluster, at: usize) -> Result<BTreeSet<String>> {
    let all = cluster.node(at).get("/nodes")?;
    let all = all.as_array().context("no list")?;
    let name = |node: &Value| node["Description"]["Hostname"].as_str().map(str::to_owned);
    let absent = all.iter().filter(|node| node["Status"]["State"] != "ready");
    Ok(absent.filter_map(name).filter(|name| name.starts_with("simulated-")).collect())
}

/// One manager of three is killed, and its agents go to the others: none is ever down, and no task
/// is replaced, whichever manager it was.
#[test]
fn agents_find_another_manager_at_once() -> Result<()> {
    let options = ClusterOptions { managers: 3, spares: 1, ..ClusterOptions::default() };
    alone(options, |cluster| {
        let token = cluster.root().join("herd-token");
        fs::write(&token, cluster.token(Role::Worker)?)?;
        let program = Path::new(env!("CARGO_BIN_EXE_skep-agents"));
        let spare = 3;
        let mut herd = Herd::start(program, &cluster.endpoint(0), &token, HERD, |command| {
            cluster.enter(spare, command)
        })?;
        herd.joined(BOUND)?;
        create(cluster, 0, HERD)?;
        herd.running(BOUND)?;
        for killed in cluster.managers() {
            let asked = (killed + 1) % 3;
            settle("all agents ready", BOUND, || Ok(absent(cluster, asked)?.is_empty()))?;
            let address = cluster.endpoint(killed);
            let address = address.split(':').next();
            let marked = herd.mark(address)?;
            cluster.kill(killed)?;
            let back = herd.back(BACK)?;
            ensure!(back.agents == marked && back.replaced == 0, "of {marked}: {back:?}");
            // Longer than a silent node is waited for.
            let until = std::time::Instant::now() + Duration::from_secs(4);
            settle("a while without any node down", BOUND, || {
                // There may be no leader for a moment.
                let absent = absent(cluster, asked).unwrap_or_default();
                ensure!(absent.is_empty(), "down after {} was killed: {absent:?}", name_of(killed));
                Ok(std::time::Instant::now() >= until)
            })?;
            cluster.restart(killed)?;
            print(&json!({"killed": killed, "agents": marked, "last_s": back.last_s}));
        }
        Ok(())
    })
}

/// The only manager is killed and back: all come to it at once.
#[test]
fn agents_come_back_to_the_only_manager_at_once() -> Result<()> {
    let options = ClusterOptions { managers: 1, spares: 1, ..ClusterOptions::default() };
    alone(options, |cluster| {
        let token = cluster.root().join("herd-token");
        fs::write(&token, cluster.token(Role::Worker)?)?;
        let program = Path::new(env!("CARGO_BIN_EXE_skep-agents"));
        let mut herd = Herd::start(program, &cluster.endpoint(0), &token, HERD, |command| {
            cluster.enter(1, command)
        })?;
        herd.joined(BOUND)?;
        create(cluster, 0, HERD)?;
        herd.running(BOUND)?;
        settle("all agents ready", BOUND, || Ok(absent(cluster, 0)?.is_empty()))?;
        let marked = herd.mark(None)?;
        cluster.kill(0)?;
        cluster.restart(0)?;
        let back = herd.back(BACK)?;
        let all = HERD[0] as u64;
        ensure!(marked == all && back.agents == all && back.replaced == 0, "{marked}: {back:?}");
        ensure!(absent(cluster, 0)?.is_empty(), "down: {:?}", absent(cluster, 0)?);
        print(&json!({"restarted": 0, "agents": marked, "last_s": back.last_s}));
        Ok(())
    })
}

/// A figure, for whoever looks at the output.
fn print(figure: &Value) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{figure}").ok();
}
