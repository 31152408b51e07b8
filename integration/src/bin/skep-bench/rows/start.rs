//! Services: from the request to the process, updates, scaling.

use anyhow::Result;
use serde_json::json;
use skep_integration::wait_until;

use crate::clock::{ms_between, ms_since};
use crate::engine::Engine;
use crate::report::Report;
use crate::tasks::{Plan, Service, TASKS, remove_secrets, secrets};

const STARTS: usize = 12;
const SWAPS: usize = 6;
const SCALES: usize = 3;
/// Tasks of a scaled service, and secrets of each.
const TASK_COUNT: usize = 50;
const SECRETS: usize = 5;

/// `service create` until the process runs.
pub(super) fn create(engine: &mut Engine, report: &mut Report) -> Result<()> {
    let mut client = engine.client();
    let grants = secrets(&mut client, "start", 1)?;
    for (row, host_network) in [("start-host", true), ("start-default", false)] {
        let mut times = Vec::new();
        for round in 0..=engine.kind.rounds(STARTS) {
            let name = format!("{row}-{round}");
            let plan = Plan { host_network, ..Plan::stamp(&name, &grants) };
            let (service, sent) = Service::create(engine, &plan)?;
            let began = service.await_stamps(1, 1)?;
            // The first round warms up.
            if round > 0 {
                times.extend(began.iter().map(|at| ms_between(sent, *at)));
            }
            service.remove()?;
        }
        report.add(row, engine.kind, &times)?;
    }
    remove_secrets(&mut client, &grants)
}

/// Another secret by `service update` until the new process runs.
pub(super) fn swap(engine: &mut Engine, report: &mut Report) -> Result<()> {
    let mut client = engine.client();
    let grants = secrets(&mut client, "swap", 2)?;
    let orders = [("swap-stop-first", "stop-first"), ("swap-start-first", "start-first")];
    for (row, order) in orders {
        let (first, second) = (&grants[..1], &grants[1..]);
        let plan = Plan { order, ..Plan::stamp(row, first) };
        let (mut service, _) = Service::create(engine, &plan)?;
        service.await_stamps(1, 1)?;
        let mut times = Vec::new();
        for round in 0..engine.kind.rounds(SWAPS) {
            let old = service.await_running(1)?;
            let now = if round % 2 == 0 { second } else { first };
            let sent = service
                .update(|spec| spec["TaskTemplate"]["ContainerSpec"]["Secrets"] = json!(now))?;
            let began = service.await_stamps(round + 2, 1)?;
            times.extend(began.last().map(|at| ms_between(sent, *at)));
            wait_until("the new task alone", TASKS, || {
                let running = service.running()?;
                Ok((running.len() == 1 && running != old).then_some(()))
            })?;
        }
        report.add(row, engine.kind, &times)?;
        service.remove()?;
    }
    remove_secrets(&mut client, &grants)
}

/// 1 → 50 → 0.
pub(super) fn scale(engine: &mut Engine, report: &mut Report) -> Result<()> {
    let mut client = engine.client();
    let grants = secrets(&mut client, "scale", SECRETS)?;
    let (mut up, mut dead, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..engine.kind.rounds(SCALES) {
        let name = format!("scale-{round}");
        let (mut service, _) = Service::create(engine, &Plan::stamp(&name, &grants))?;
        service.await_stamps(1, SECRETS)?;
        service.await_running(1)?;
        let sent = service.scale(TASK_COUNT)?;
        service.await_stamps(TASK_COUNT, SECRETS)?;
        service.await_running(TASK_COUNT)?;
        up.push(ms_since(sent));
        let probes = engine.processes()?.probes;
        let sent = service.scale(0)?;
        let is_alive =
            |pid: &i32| std::fs::metadata(format!("/proc/{pid}/exe")).is_ok() && is_running(*pid);
        wait_until("the end of the processes", TASKS, || {
            Ok((!probes.iter().any(is_alive)).then_some(()))
        })?;
        dead.push(ms_since(sent));
        wait_until("the end of the containers", TASKS, || {
            Ok(service.containers()?.is_empty().then_some(()))
        })?;
        gone.push(ms_since(sent));
        service.remove()?;
    }
    report.add("scale-up", engine.kind, &up)?;
    report.add("scale-down-dead", engine.kind, &dead)?;
    report.add("scale-down-gone", engine.kind, &gone)?;
    remove_secrets(&mut client, &grants)
}

fn is_running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}
