//! A service's first process on another node than the one that was asked.

use anyhow::Result;

use super::Swarm;
use crate::clock::{ms_between, ms_since};
use crate::report::Report;
use crate::tasks::{Plan, Service, remove_secrets, secrets};

const ROUNDS: usize = 12;

/// `service create` by the leader until a worker runs the process, and until the API tells it.
pub(super) fn run(swarm: &mut Swarm, report: &mut Report) -> Result<()> {
    let engine = swarm.engine(swarm.leader()?)?;
    let mut client = engine.client();
    let grants = secrets(&mut client, "remote", 1)?;
    let (mut runs, mut shown) = (Vec::new(), Vec::new());
    for round in 0..=swarm.kind.rounds(ROUNDS) {
        let name = format!("remote-{round}");
        let constraint = Some("node.role==worker");
        let plan = Plan { constraint, ..Plan::stamp(&name, &grants) };
        let (mut service, sent) = Service::create(engine, &plan)?;
        let began = service.await_stamps(1, 1)?;
        service.await_running(1)?;
        let running_ms = ms_since(sent);
        // The first rounds warm up, one for each worker.
        if round > 1 {
            runs.extend(began.iter().map(|at| ms_between(sent, *at)));
            shown.push(running_ms);
        }
        service.remove()?;
        swarm.await_no_task()?;
    }
    report.add("start-remote", swarm.kind, &runs)?;
    report.add_in("ms", "start-remote-shown", swarm.kind, &shown)?;
    remove_secrets(&mut client, &grants)
}
