//! A thousand simulated agents that lose their managers.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use skep_integration::{Back, Herd};

use super::{MANAGERS, NODES, Swarm};
use crate::client::Client;
use crate::engine::Kind;
use crate::report::Report;
use crate::tasks::secret;

/// Agents, and tasks of each.
const HERD: [usize; 2] = [1000, 5];
const ROUNDS: usize = 3;
/// Longest wait until all have joined, have their tasks, or are back.
const ALL: Duration = Duration::from_secs(300);
/// Longest wait for the list of all nodes.
const LIST: Duration = Duration::from_secs(30);

/// All agents come back at once to managers that were killed, then those of one that stays away go
/// to the others. The peer has no agents that could be simulated.
pub(super) fn run(swarm: &mut Swarm, report: &mut Report) -> Result<()> {
    let Kind::Skep = swarm.kind else { return Ok(()) };
    let mut herd = gather(swarm)?;
    let mut back = Vec::new();
    for _ in 0..swarm.kind.rounds(ROUNDS) {
        let marked = herd.mark(None)?;
        for at in 0..MANAGERS {
            swarm.engine_mut(at)?.end(Signal::SIGKILL)?;
        }
        for at in 0..MANAGERS {
            swarm.engine_mut(at)?.launch()?;
        }
        back.push(returned(swarm, &herd, marked)?.last_s * 1e3);
    }
    report.add("agents-back", swarm.kind, &back)?;
    let mut moved = Vec::new();
    for _ in 0..swarm.kind.rounds(ROUNDS) {
        let leader = swarm.leader()?;
        let address = swarm.engine(leader)?.address().to_string();
        let marked = herd.mark(Some(&address))?;
        ensure!(marked > 0, "no agent has its session with the leader");
        swarm.engine_mut(leader)?.end(Signal::SIGKILL)?;
        moved.push(returned(swarm, &herd, marked)?.last_s * 1e3);
        swarm.engine_mut(leader)?.launch()?;
        swarm.engine_mut(leader)?.await_ready("/secrets")?;
    }
    report.add("agents-moved", swarm.kind, &moved)
}

/// Has the agents join, and gives them their tasks.
fn gather(swarm: &Swarm) -> Result<Herd> {
    let program = std::env::current_exe()?.with_file_name("skep-agents");
    let first = swarm.engine(0)?;
    let site = first.site().context("an engine without a network")?;
    let mut client = Client::within(&first.socket(), LIST);
    let token = client.get("/swarm")?["JoinTokens"]["Worker"].clone();
    let file = site.network.root().join("herd-token");
    fs::write(&file, token.as_str().context("a join token")?)?;
    let manager = format!("{}:2377", first.address());
    let network = &site.network;
    let herd =
        Herd::start(&program, &manager, &file, HERD, |command| network.enter(NODES - 1, command))?;
    herd.joined(ALL)?;
    let grant = secret(&mut client, "herd", &[b'x'; 64])?;
    let [agents, tasks] = HERD;
    let placement = json!({"Constraints": ["engine.labels.simulated==yes"], "MaxReplicas": tasks});
    let container = json!({"Image": first.image, "Secrets": [grant]});
    let spec = json!({
        "Name": "herd", "Mode": {"Replicated": {"Replicas": agents * tasks}},
        "TaskTemplate": {"ContainerSpec": container, "Placement": placement},
    });
    client.post("/services/create", &spec)?;
    herd.running(ALL)?;
    Ok(herd)
}

/// Waits for the marked agents, of which none may have been taken for lost.
fn returned(swarm: &Swarm, herd: &Herd, marked: u64) -> Result<Back> {
    let back = herd.back(ALL)?;
    ensure!(back.agents == marked && back.replaced == 0, "of {marked}: {back:?}");
    let asked = (0..MANAGERS).find(|at| swarm.engine(*at).is_ok_and(|engine| engine.is_up()));
    let engine = swarm.engine(asked.context("no manager is up")?)?;
    let nodes = Client::within(&engine.socket(), LIST).get("/nodes")?;
    let nodes = nodes.as_array().context("a list of nodes")?;
    let simulated = |it: &&Value| it["Description"]["Engine"]["Labels"]["simulated"] == "yes";
    let down = nodes.iter().filter(simulated).filter(|it| it["Status"]["State"] == "down").count();
    ensure!(down == 0, "{down} agents were taken for lost");
    Ok(back)
}
