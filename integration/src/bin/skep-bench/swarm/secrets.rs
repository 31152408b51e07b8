//! Secrets over the API of a manager among three.

use anyhow::{Context, Result};

use super::Swarm;
use crate::engine::Kind;
use crate::report::Report;
use crate::rows::secrets::{at_once, remove, sequence};

/// Secrets made one at a time.
const SEQUENTIAL: usize = 500;
/// Times that many are made at once, and how many.
const ROUNDS: usize = 4;
const PARALLEL: usize = 3_200;
const PARALLEL_PEER: usize = 800;

/// By the leader, and by another.
pub(super) fn run(swarm: &mut Swarm, report: &mut Report) -> Result<()> {
    let (kind, small) = (swarm.kind, [b'x'; 64]);
    let leader = swarm.leader()?;
    let follower = *swarm.others(leader).first().context("a follower")?;
    let count = if kind == Kind::Skep { PARALLEL } else { PARALLEL_PEER };
    let rows = [
        (leader, "secret-64-leader", "secret-64-16-leader"),
        (follower, "secret-64-follower", "secret-64-16-follower"),
    ];
    for (at, one, many) in rows {
        let engine = swarm.engine(at)?;
        let mut client = engine.client();
        let (times, mut ids) = sequence(&mut client, one, SEQUENTIAL, &small)?;
        report.add(one, kind, &times)?;
        remove(&mut client, &mut ids)?;
        let mut rates = Vec::new();
        for round in 0..kind.rounds(ROUNDS) {
            let (rate, mut ids) = at_once(engine, &format!("{many}-{round}"), count, &small)?;
            rates.push(rate);
            remove(&mut client, &mut ids)?;
        }
        report.add(many, kind, &rates)?;
    }
    Ok(())
}
