//! The loss of a worker with all that runs on it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use skep_integration::settle;

use super::{MANAGERS, Swarm};
use crate::clock::{ms_between, ms_since, now_ns};
use crate::report::Report;
use crate::tasks::{Plan, Service, TASKS, remove_secrets, secrets};

const ROUNDS: usize = 5;
/// Tasks of the lost worker, and secrets of each.
const TASK_COUNT: usize = 10;
const SECRETS: usize = 5;
/// Pause between two looks at what the managers tell.
const LOOK: Duration = Duration::from_millis(5);
/// How long the tasks run before their node is lost.
const CALM: Duration = Duration::from_secs(3);

/// Milliseconds from the loss of a worker.
#[derive(Debug, Default)]
struct Times {
    down: Vec<f64>,
    runs: Vec<f64>,
    shown: Vec<f64>,
}

/// Each worker in turn.
pub(super) fn run(swarm: &mut Swarm, report: &mut Report) -> Result<()> {
    let leader = swarm.leader()?;
    let mut client = swarm.engine(leader)?.client();
    let grants = secrets(&mut client, "lost", SECRETS)?;
    let mut times = Times::default();
    for round in 0..swarm.kind.rounds(ROUNDS) {
        let (lost, other) = match round % 2 {
            0 => (MANAGERS, MANAGERS + 1),
            _ => (MANAGERS + 1, MANAGERS),
        };
        let name = format!("lost-{round}");
        let id = {
            availability(swarm, leader, other, "drain")?;
            let constraint = Some("node.role==worker");
            let replicas = TASK_COUNT;
            let plan = Plan { constraint, replicas, ..Plan::stamp(&name, &grants) };
            let (mut service, _) = Service::create(swarm.engine(leader)?, &plan)?;
            let node = swarm.id(lost)?;
            settle("all tasks on one worker", TASKS, || {
                Ok(service.running_on(node)? == TASK_COUNT)
            })?;
            availability(swarm, leader, other, "active")?;
            service.id
        };
        std::thread::sleep(CALM);
        let began_ns = swarm.engine_mut(lost)?.kill_all()?;
        watch(swarm, [leader, lost, other], (&name, &id), began_ns, &mut times)?;
        swarm.engine_mut(lost)?.launch()?;
        swarm.await_whole()?;
        Service::find(swarm.engine(leader)?, &name, &id).remove()?;
        swarm.await_no_task()?;
    }
    report.add("worker-lost", swarm.kind, &times.runs)?;
    report.add_in("ms", "worker-lost-down", swarm.kind, &times.down)?;
    report.add_in("ms", "worker-lost-shown", swarm.kind, &times.shown)?;
    remove_secrets(&mut client, &grants)
}

/// Sees the managers find out, and the tasks come up elsewhere.
fn watch(
    swarm: &Swarm,
    [leader, lost, other]: [usize; 3],
    (name, id): (&str, &str),
    began_ns: u64,
    times: &mut Times,
) -> Result<()> {
    let engine = swarm.engine(leader)?;
    let (mut client, mut service) = (engine.client(), Service::find(engine, name, id));
    let path = format!("/nodes/{}", swarm.id(lost)?);
    let (mut down, mut shown) = (None, None);
    while down.is_none() || shown.is_none() {
        if down.is_none() && client.get(&path)?["Status"]["State"] == "down" {
            down = Some(ms_since(began_ns));
        }
        if shown.is_none() && service.running_on(swarm.id(other)?)? == TASK_COUNT {
            shown = Some(ms_since(began_ns));
        }
        let waited_ns = now_ns().saturating_sub(began_ns);
        ensure!(u128::from(waited_ns) < TASKS.as_nanos(), "the tasks of a lost worker stay away");
        std::thread::sleep(LOOK);
    }
    let began = service.await_stamps(2 * TASK_COUNT, SECRETS)?;
    let mut later: Vec<_> = began.into_iter().filter(|at| *at > began_ns).collect();
    later.sort_unstable();
    let last = later.get(TASK_COUNT - 1).context("too few tasks began elsewhere")?;
    times.runs.push(ms_between(began_ns, *last));
    times.down.extend(down);
    times.shown.extend(shown);
    Ok(())
}

fn availability(swarm: &Swarm, leader: usize, at: usize, word: &str) -> Result<()> {
    let mut client = swarm.engine(leader)?.client();
    let id = swarm.id(at)?;
    let node = client.get(&format!("/nodes/{id}"))?;
    let mut spec = node["Spec"].clone();
    spec["Availability"] = json!(word);
    let path = format!("/nodes/{id}/update?version={}", node["Version"]["Index"]);
    client.post(&path, &spec).map(drop)
}
