//! Start, `swarm init`, and the daemon's violent end.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use skep_integration::wait_until;

use crate::engine::{Engine, Kind};
use crate::report::Report;
use crate::tasks::{Plan, Service, TASKS, secrets};

const ROUNDS: usize = 5;
const TASK_COUNT: usize = 5;
/// How long a killed daemon stays away, and how long a new one gets to find out what it replaces.
const DEAD: Duration = Duration::from_secs(3);

/// Each round has a data root of its own.
pub(super) fn run(kind: Kind, program: &Path, report: &mut Report) -> Result<()> {
    let (mut empty, mut init, mut existing) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..kind.rounds(ROUNDS) {
        let mut engine = Engine::prepare(kind, program)?;
        engine.launch()?;
        empty.push(engine.await_ready("/info")?);
        init.push(engine.init_swarm()?);
        engine.end(Signal::SIGTERM)?;
        engine.launch()?;
        existing.push(engine.await_ready("/secrets")?);
    }
    report.add("ready-empty", kind, &empty)?;
    report.add("swarm-init", kind, &init)?;
    report.add("ready-swarm", kind, &existing)?;
    kill(kind, program, report)
}

/// `kill -9` of the daemon with tasks, and its restart.
fn kill(kind: Kind, program: &Path, report: &mut Report) -> Result<()> {
    let mut engine = Engine::start(kind, program)?;
    let (mut back, mut replaced) = (Vec::new(), Vec::new());
    let mut client = engine.client();
    let grants = secrets(&mut client, "kill", 5)?;
    let plan = Plan { replicas: TASK_COUNT, ..Plan::stamp("kill", &grants) };
    let id = {
        let (mut service, _) = Service::create(&engine, &plan)?;
        service.await_running(TASK_COUNT)?;
        service.id
    };
    for _ in 0..kind.rounds(3) {
        let old = running(&engine, &id)?;
        engine.end(Signal::SIGKILL)?;
        // What docker's daemon takes along is not gone at once, and in the way until it is.
        sleep(DEAD);
        engine.launch()?;
        back.push(engine.await_ready("/secrets")?);
        // Time for the engine to find out what it will replace.
        let is_settled = || Ok((running(&engine, &id)?.len() == TASK_COUNT).then_some(()));
        wait_until("the tasks of a restarted engine", TASKS, is_settled)?;
        sleep(DEAD);
        wait_until("the tasks of a restarted engine", TASKS, is_settled)?;
        let kept = running(&engine, &id)?.iter().filter(|task| old.contains(task)).count();
        #[expect(clippy::cast_precision_loss, reason = "five at most")]
        replaced.push((TASK_COUNT - kept) as f64);
    }
    report.add("kill-ready", kind, &back)?;
    report.add("kill-replaced", kind, &replaced)
}

fn running(engine: &Engine, id: &str) -> Result<Vec<String>> {
    Service::find(engine, "kill", id).running()
}
