//! Reading a secret inside its task.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::engine::Engine;
use crate::report::Report;
use crate::tasks::{Plan, Service, remove_secrets, secret};

const ROUNDS: usize = 3;

/// Bytes, rounds of the probe, and row.
const SIZES: [(usize, &str, &str); 2] = [(64, "100000", "read-64"), (500_000, "3000", "read-500k")];

/// Opens, reads and closes a small and a large one.
pub(super) fn run(engine: &mut Engine, report: &mut Report) -> Result<()> {
    let mut client = engine.client();
    for (bytes, count, row) in SIZES {
        let grants = [secret(&mut client, row, &vec![b'x'; bytes])?];
        let path = format!("/run/secrets/{row}");
        let mut times = Vec::new();
        for round in 0..ROUNDS {
            let name = format!("{row}-{round}");
            let args = ["read", &path, count, "1", "{out}"];
            let plan = Plan { args: &args, ..Plan::stamp(&name, &grants) };
            let (service, _) = Service::create(engine, &plan)?;
            let line = service.await_lines(1)?.remove(0);
            let figures: Value = serde_json::from_str(&line).context("a probe's figures")?;
            let mean = figures["mean_ns"].as_f64().context("a probe without mean")?;
            times.push(mean / 1e3);
            service.remove()?;
        }
        report.add(row, engine.kind, &times)?;
        remove_secrets(&mut client, &grants)?;
    }
    Ok(())
}
