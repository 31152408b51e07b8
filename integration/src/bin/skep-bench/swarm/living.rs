//! Secrets that change while tasks hold them: until a new version, or a revocation, is what a
//! container on another node sees.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use skep_integration::wait_until;

use super::Swarm;
use crate::client::Client;
use crate::clock::{ms_between, now_ns};
use crate::engine::Kind;
use crate::report::Report;
use crate::tasks::{Plan, Service, TASKS, remove_secrets, secret};

const ROUNDS: usize = 30;
/// Tasks that lose a secret at once, each on a node of its own.
const HOLDERS: usize = 3;
/// Pause between two reads of one reader: many of them share two cores with what they measure.
const PAUSE: Duration = Duration::from_micros(200);
/// Longest wait for what is measured.
const BOUND: Duration = Duration::from_secs(5);
/// Tries that must fail after a secret was gone: what comes back was not revoked.
const AFTER: usize = 50;
const NAME: &str = "living-0";

/// Updates until they are read; revocations until nothing is.
pub(super) fn run(swarm: &mut Swarm, report: &mut Report) -> Result<()> {
    if swarm.kind != Kind::Skep {
        // The other engine changes no secret that a task holds.
        return Ok(());
    }
    let engine = swarm.engine(swarm.leader()?)?;
    let mut client = engine.client();
    let grants = [secret(&mut client, NAME, payload(0).as_bytes())?];
    let plan = |name, replicas, constraint| Plan {
        args: &["wait"],
        replicas,
        constraint,
        ..Plan::stamp(name, &grants)
    };
    let (mut one, _) = Service::create(engine, &plan("rotated", 1, Some("node.role==worker")))?;
    one.await_running(1)?;
    rotations(&mut client, &one_file(swarm, &one.id)?, report)?;
    one.remove()?;
    let (mut all, _) = Service::create(engine, &plan("revoked", HOLDERS, None))?;
    all.await_running(HOLDERS)?;
    let held = files(swarm, &all.id)?;
    let nodes = held.iter().filter(|on| !on.is_empty()).count();
    ensure!(nodes == HOLDERS, "{HOLDERS} tasks are on {nodes} nodes");
    revocations(&mut client, &held.concat(), report)?;
    all.remove()?;
    swarm.await_no_task()?;
    remove_secrets(&mut client, &grants)
}

/// 64 bytes that no other round has.
fn payload(round: usize) -> String {
    format!("{round:064}")
}

fn update(client: &mut Client, round: usize) -> Result<()> {
    let item = json!({"Name": NAME, "Data": STANDARD.encode(payload(round))});
    client.post("/skep/v1/secrets/update", &json!({"Items": [item]})).map(drop)
}

/// The secret as the containers of a service see it, by node.
fn files(swarm: &Swarm, service: &str) -> Result<Vec<Vec<PathBuf>>> {
    let mut all = Vec::new();
    for engine in &swarm.engines {
        let mut client = engine.client();
        let label = format!("com.docker.swarm.service.id={service}");
        let mut own = Vec::new();
        for container in client.list("/containers/json?", "label", &label)? {
            let id = container["Id"].as_str().context("a container without id")?;
            let shown = client.get(&format!("/containers/{id}/json"))?;
            let pid = shown["State"]["Pid"].as_i64().context("a container without pid")?;
            own.push(PathBuf::from(format!("/proc/{pid}/root/run/secrets/{NAME}")));
        }
        all.push(own);
    }
    Ok(all)
}

fn one_file(swarm: &Swarm, service: &str) -> Result<PathBuf> {
    files(swarm, service)?.concat().into_iter().next().context("no container")
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// When a file first read as `wanted`, and how long each read took that far.
fn await_text(path: &Path, wanted: &str) -> Result<(u64, Vec<f64>)> {
    let end = now_ns() + u64::try_from(BOUND.as_nanos())?;
    let mut times = Vec::new();
    loop {
        let began = now_ns();
        let text = read(path)?;
        let done = now_ns();
        times.push(ms_between(began, done));
        if text == wanted {
            return Ok((done, times));
        }
        ensure!(done < end, "not within {BOUND:?}: {wanted}");
        thread::sleep(PAUSE);
    }
}

fn rotations(client: &mut Client, path: &Path, report: &mut Report) -> Result<()> {
    let (mut acknowledged, mut sent, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let wanted = payload(round);
        let (sent_ns, told_ns, seen) = thread::scope(|scope| {
            let reader = scope.spawn(|| await_text(path, &wanted));
            let sent_ns = now_ns();
            let told = update(client, round);
            let told_ns = now_ns();
            let seen = reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?;
            told.and(seen.map(|seen| (sent_ns, told_ns, seen)))
        })?;
        let (seen_ns, times) = seen;
        // It may be read before whoever asked is told.
        acknowledged.push(ms_between(told_ns, seen_ns));
        sent.push(ms_between(sent_ns, seen_ns));
        reads.extend(times);
    }
    report.add("rotation", Kind::Skep, &acknowledged)?;
    report.add_in("ms", "rotation-sent", Kind::Skep, &sent)?;
    report.add("rotation-reads", Kind::Skep, &reads)
}

/// When neither an open handle nor a new one read any more. The flag is set once both have read.
fn await_gone(path: &Path, reads: &AtomicBool) -> Result<u64> {
    let held = File::open(path)?;
    let mut byte = [0; 1];
    let mut is_there = || {
        let by_handle = held.read_at(&mut byte, 0).is_ok_and(|count| count > 0);
        by_handle | read(path).is_ok()
    };
    ensure!(is_there(), "{} does not read before it is revoked", path.display());
    reads.store(true, Ordering::Release);
    let end = now_ns() + u64::try_from(BOUND.as_nanos())?;
    while is_there() {
        ensure!(now_ns() < end, "still there after {BOUND:?}: {}", path.display());
        thread::sleep(PAUSE);
    }
    let gone_ns = now_ns();
    for _ in 0..AFTER {
        ensure!(!is_there(), "{} came back by itself", path.display());
        thread::sleep(PAUSE);
    }
    Ok(gone_ns)
}

fn revocations(client: &mut Client, paths: &[PathBuf], report: &mut Report) -> Result<()> {
    let mut gone = Vec::new();
    for round in 1..=ROUNDS {
        update(client, ROUNDS + round)?;
        let wanted = payload(ROUNDS + round);
        wait_until("the version to revoke", TASKS, || {
            let is_there = paths.iter().all(|path| read(path).is_ok_and(|text| text == wanted));
            Ok(is_there.then_some(()))
        })?;
        let flags: Vec<AtomicBool> = paths.iter().map(|_| AtomicBool::new(false)).collect();
        let flags = &flags;
        let (sent_ns, last_ns) = thread::scope(|scope| {
            let readers: Vec<_> = paths
                .iter()
                .zip(flags)
                .map(|(path, flag)| scope.spawn(move || await_gone(path, flag)))
                .collect();
            let ready = wait_until("the readers", BOUND, || {
                Ok(flags.iter().all(|flag| flag.load(Ordering::Acquire)).then_some(()))
            });
            let sent_ns = now_ns();
            let path = format!("/skep/v1/secrets/{NAME}/revoke");
            let told = client.post(&path, &json!({"Service": null, "Task": null}));
            let mut last_ns = sent_ns;
            for reader in readers {
                let seen = reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?;
                last_ns = last_ns.max(seen?);
            }
            ready.and(told.map(|_| (sent_ns, last_ns)))
        })?;
        gone.push(ms_between(sent_ns, last_ns));
    }
    report.add("revocation", Kind::Skep, &gone)
}
