//! Memory and CPU of an engine that is left alone, without and with tasks.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

use crate::engine::{Engine, Kind};
use crate::report::Report;
use crate::tasks::{Plan, Service, remove_secrets, secrets};

const TASK_COUNT: usize = 50;
const SECRETS: usize = 5;
/// Time an engine gets to come to rest, and time its CPU is watched for.
const REST: Duration = Duration::from_secs(5);
const WATCH: Duration = Duration::from_secs(20);

/// Idle, and with 50 tasks.
pub(super) fn run(engine: &mut Engine, report: &mut Report) -> Result<()> {
    let kind = engine.kind;
    sleep(REST);
    let idle = engine.processes()?;
    report.add("memory-idle", kind, &[total(&idle.engine, "Rss:")?])?;
    report.add("cpu-idle", kind, &[cpu(&idle.engine)?])?;
    binaries(engine, report)?;

    let mut client = engine.client();
    let grants = secrets(&mut client, "load", SECRETS)?;
    let plan = Plan { args: &["wait"], replicas: TASK_COUNT, ..Plan::stamp("load", &grants) };
    let (mut service, _) = Service::create(engine, &plan)?;
    service.await_running(TASK_COUNT)?;
    sleep(REST);
    let busy = engine.processes()?;
    let supervisors = total(&busy.supervisors, "Pss:")?;
    report.add("memory-50", kind, &[supervisors + total(&busy.engine, "Pss:")?])?;
    #[expect(clippy::cast_precision_loss, reason = "fifty")]
    report.add("memory-supervisor", kind, &[supervisors / TASK_COUNT as f64])?;
    report.add("cpu-50", kind, &[cpu(&[busy.engine, busy.supervisors].concat())?])?;
    service.remove()?;
    remove_secrets(&mut client, &grants)
}

/// Megabytes of all processes by one line of their memory's summary.
fn total(pids: &[i32], line: &str) -> Result<f64> {
    let mut kilobytes = 0.0;
    for pid in pids {
        // One that ended meanwhile holds nothing.
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        let found = text.lines().find_map(|it| it.strip_prefix(line));
        let figure = found.and_then(|rest| rest.trim().strip_suffix("kB"));
        kilobytes += figure.context("no such line")?.trim().parse::<f64>()?;
    }
    Ok(kilobytes / 1e3)
}

/// Percent of a core that the processes take while they are watched.
fn cpu(pids: &[i32]) -> Result<f64> {
    let before = ticks(pids);
    sleep(WATCH);
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let seconds = ticks(pids).saturating_sub(before) as f64 / per_second as f64;
    Ok(seconds / WATCH.as_secs_f64() * 100.0)
}

fn ticks(pids: &[i32]) -> u64 {
    let of = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    pids.iter().filter_map(of).sum()
}

/// Sizes on disk of what a node needs, runc aside.
fn binaries(engine: &Engine, report: &mut Report) -> Result<()> {
    let programs: &[&str] = match engine.kind {
        Kind::Skep => &[],
        Kind::Docker => &["containerd", "containerd-shim-runc-v2", "docker-proxy", "docker-init"],
    };
    let mut bytes = fs::metadata(engine.program())?.len();
    for name in programs {
        let places = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/libexec/docker"];
        let found = places.iter().find_map(|place| fs::metadata(format!("{place}/{name}")).ok());
        bytes += found.map_or(0, |it| it.len());
    }
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    report.add("binaries", engine.kind, &[bytes as f64 / 1e6])
}
