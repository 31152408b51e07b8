//! The load and the checker of its history, on one node that is killed under it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_integration::{Action, Cluster, ClusterOptions, Fault, Load, LoadOptions, Outcome, check};

const BOUND: Duration = Duration::from_secs(20);

#[test]
fn a_killed_node_keeps_what_it_acknowledged() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions { managers: 1, ..ClusterOptions::default() })?;
    let sockets = vec![cluster.node(0).socket()];
    let load = Load::start(LoadOptions {
        sockets: sockets.clone(),
        clients: 6,
        prefix: "load".to_owned(),
        seed: 7,
        pause: Duration::from_millis(1),
    });
    for _ in 0..3 {
        load.await_writes(100, BOUND)?;
        cluster.kill(0)?;
        cluster.restart(0)?;
    }
    load.await_writes(100, BOUND)?;
    let until = load.history().now();
    ensure!(load.history().longest_pause(Duration::ZERO, until) > Duration::ZERO, "no pause");
    let mut history = load.finish(&sockets)?;
    check(&history)?;
    let count = |outcome| history.iter().filter(|one| one.outcome == outcome).count();
    let (done, refused) = (count(Outcome::Done), count(Outcome::Refused));
    ensure!(done >= 400 && refused >= 50, "{done} done, {refused} refused: little to check");

    // The same history with one more answer, which nothing explains.
    let read = history.iter_mut().rfind(|one| one.action == Action::Read).context("no read")?;
    read.outcome = Outcome::Found(Some(u64::MAX));
    let fault = check(&history);
    ensure!(matches!(fault, Err(Fault::NoOrder { .. })), "accepted: {fault:?}");
    Ok(())
}
