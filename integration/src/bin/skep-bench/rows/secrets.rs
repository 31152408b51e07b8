//! Secrets over the API.

use std::sync::Barrier;
use std::thread;

use anyhow::{Result, anyhow, ensure};
use skep_integration::{Marker, Process, scan_memory};

use crate::client::{Client, request};
use crate::clock::{ms_since, now_ns};
use crate::engine::Engine;
use crate::report::Report;
use crate::tasks::{Plan, Service, remove_secrets, secret, secret_body};

/// Secrets made one at a time, and those of all threads together.
const SEQUENTIAL: usize = 1_000;
const PARALLEL: usize = 4_000;
const THREADS: usize = 16;
/// Large ones; 500 KB is what users take the limit for.
const LARGE: usize = 50;
const LARGE_BYTES: usize = 500_000;
/// How many a listing has.
const LISTED: usize = 1_000;
const LISTINGS: usize = 50;

/// Creates and lists.
pub(super) fn run(engine: &mut Engine, report: &mut Report) -> Result<()> {
    let mut client = engine.client();
    let small = [b'x'; 64];
    let (times, mut ids) = sequence(&mut client, "one", SEQUENTIAL, &small)?;
    report.add("secret-64", engine.kind, &times)?;
    ensure!(ids.len() == LISTED, "the listing wants as many secrets as were made one at a time");
    let list = request("GET", "/secrets", "", None);
    let mut times = Vec::new();
    for _ in 0..LISTINGS {
        let began = now_ns();
        let reply = client.send(&list)?;
        times.push(ms_since(began));
        ensure!(reply.status == 200, "secret ls: {}", reply.status);
    }
    report.add("secret-ls", engine.kind, &times)?;
    remove(&mut client, &mut ids)?;

    let mut rates = Vec::new();
    for round in 0..3 {
        let (rate, mut ids) = at_once(engine, &format!("many-{round}"), PARALLEL, &small)?;
        rates.push(rate);
        remove(&mut client, &mut ids)?;
    }
    report.add("secret-64-16", engine.kind, &rates)?;

    let (times, mut ids) = sequence(&mut client, "large", LARGE, &vec![b'x'; LARGE_BYTES])?;
    report.add("secret-500k", engine.kind, &times)?;
    remove(&mut client, &mut ids)
}

fn body(name: &str, payload: &[u8]) -> Vec<u8> {
    let body = secret_body(name, payload).to_string();
    request("POST", "/secrets/create", "application/json", Some(body.as_bytes()))
}

/// Makes secrets one after the other; returns the milliseconds of each, and their ids.
pub(crate) fn sequence(
    client: &mut Client,
    base: &str,
    count: usize,
    payload: &[u8],
) -> Result<(Vec<f64>, Vec<String>)> {
    let (mut times, mut ids) = (Vec::new(), Vec::new());
    for n in 0..count {
        let bytes = body(&format!("{base}-{n}"), payload);
        let began = now_ns();
        let reply = client.send(&bytes)?;
        times.push(ms_since(began));
        ensure!(reply.status == 201, "{}: {:?}", reply.status, reply.message());
        ids.push(reply.json()?["ID"].as_str().unwrap_or_default().to_owned());
    }
    Ok((times, ids))
}

/// Makes secrets from several threads; returns how many a second, and their ids.
pub(crate) fn at_once(
    engine: &Engine,
    base: &str,
    count: usize,
    payload: &[u8],
) -> Result<(f64, Vec<String>)> {
    let gate = Barrier::new(THREADS + 1);
    let (began, all) = thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (gate, mut client) = (&gate, engine.client());
                let base = format!("{base}-{thread}");
                scope.spawn(move || {
                    gate.wait();
                    sequence(&mut client, &base, count / THREADS, payload)
                })
            })
            .collect();
        gate.wait();
        let began = now_ns();
        let all: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        (began, all)
    });
    let seconds = ms_since(began) / 1e3;
    let mut ids = Vec::new();
    for made in all {
        ids.extend(made.map_err(|_| anyhow!("a client panicked"))??.1);
    }
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let rate = ids.len() as f64 / seconds;
    Ok((rate, ids))
}

pub(crate) fn remove(client: &mut Client, ids: &mut Vec<String>) -> Result<()> {
    for id in ids.drain(..) {
        client.call("DELETE", &format!("/secrets/{id}"), None)?;
    }
    Ok(())
}

/// How often a secret's plaintext stands in the memory of the engine's daemons.
pub(super) fn copies(engine: &mut Engine, report: &mut Report) -> Result<()> {
    let mut client = engine.client();
    let marker = Marker::new()?;
    let grants = [secret(&mut client, "marked", marker.text().as_bytes())?];
    let count = || -> Result<f64> {
        let pids = engine.processes()?.engine;
        let processes: Vec<_> =
            pids.into_iter().map(|pid| Process { pid, parent: 0, args: Vec::new() }).collect();
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        Ok(scan_memory(&processes, &marker)?.len() as f64)
    };
    report.add("copies-created", engine.kind, &[count()?])?;
    let (service, _) = Service::create(engine, &Plan::stamp("marked", &grants))?;
    service.await_stamps(1, 1)?;
    service.remove()?;
    remove_secrets(&mut client, &grants)?;
    report.add("copies-removed", engine.kind, &[count()?])
}
