//! Delay, loss and cuts, measured by pings between the namespaces.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use skep_integration::{Cluster, ClusterOptions};

/// A network without nodes.
fn network(count: usize) -> Result<Cluster> {
    Cluster::prepare(&ClusterOptions { spares: count, ..ClusterOptions::default() })
}

/// Pings in quick succession: how many of `count` came back, and the least milliseconds of one.
fn ping(cluster: &Cluster, from: usize, to: usize, count: u32) -> Result<(u32, f64)> {
    let endpoint = cluster.endpoint(to);
    let address = endpoint.split(':').next().context("address")?;
    let mut command = Command::new("busybox");
    let number = count.to_string();
    command.args(["ping", "-q", "-i", "0.01", "-c", &number, "-w", "20", "-W", "1", address]);
    let out = cluster.run(from, &mut command)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let received = text.split(", ").find_map(|part| part.strip_suffix(" packets received"));
    let received = received.with_context(|| text.clone())?.parse()?;
    let least = text.split("min/avg/max = ").nth(1).and_then(|times| times.split('/').next());
    Ok((received, least.unwrap_or("0").parse()?))
}

fn reaches(cluster: &Cluster, from: usize, to: usize) -> Result<bool> {
    Ok(ping(cluster, from, to, 1)?.0 == 1)
}

#[test]
fn delays_hold_packets_back_and_lose_none() -> Result<()> {
    let cluster = network(3)?;
    ensure!(ping(&cluster, 0, 1, 20)?.1 < 5.0, "slow without a delay");
    cluster.delay(0, 20)?;
    cluster.delay(1, 30)?;
    for (from, to, wanted_ms) in [(0, 1, 50.0), (1, 0, 50.0), (0, 2, 20.0), (2, 1, 30.0)] {
        let (received, least) = ping(&cluster, from, to, 5)?;
        ensure!(received == 5 && least >= wanted_ms, "{from} to {to}: {received}, {least} ms");
        ensure!(least < wanted_ms + 20.0, "{from} to {to}: {least} ms, not {wanted_ms}");
    }
    cluster.heal()?;
    let (received, least) = ping(&cluster, 0, 1, 20)?;
    ensure!(received == 20 && least < 5.0, "after healing: {received}, {least} ms");
    Ok(())
}

#[test]
fn losses_take_their_share_and_only_their_way() -> Result<()> {
    let cluster = network(3)?;
    ensure!(ping(&cluster, 1, 0, 20)?.0 == 20, "lost without a loss");
    // Of 200 echoes, each of which passes once: 140 come back, give or take six deviations.
    cluster.one_way_loss(0, 1, 30)?;
    let (received, _) = ping(&cluster, 0, 1, 200)?;
    ensure!((100..=180).contains(&received), "{received} of 200 at 30 percent");
    ensure!(ping(&cluster, 1, 2, 50)?.0 == 50, "others lose too");
    cluster.heal()?;

    // One way only: what one node sends arrives, what comes back does not.
    cluster.one_way_loss(1, 0, 100)?;
    ensure!(!reaches(&cluster, 0, 1)?, "an answer came through");
    let arrived = |at| -> Result<u64> {
        let mut command = Command::new("cat");
        let out = cluster.run(at, command.arg("/proc/net/snmp"))?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let echoes = text.lines().filter(|line| line.starts_with("Icmp:")).nth(1);
        let echoes = echoes.and_then(|line| line.split_whitespace().nth(1)).context("InMsgs")?;
        Ok(echoes.parse()?)
    };
    let before = arrived(1)?;
    ensure!(!reaches(&cluster, 0, 1)?, "an answer came through");
    ensure!(arrived(1)? > before, "the other way is cut too");
    Ok(())
}

#[test]
fn cuts_are_between_the_sets_and_healed() -> Result<()> {
    let cluster = network(4)?;
    cluster.partition(&[0, 1], &[2])?;
    for (from, to, wanted) in [
        (0, 1, true),
        (0, 2, false),
        (2, 1, false),
        (1, 2, false),
        (2, 3, true),
        (3, 0, true),
        (3, 1, true),
    ] {
        ensure!(reaches(&cluster, from, to)? == wanted, "{from} to {to}");
    }
    cluster.heal()?;
    cluster.isolate(3)?;
    ensure!(!reaches(&cluster, 3, 0)? && !reaches(&cluster, 1, 3)?, "not isolated");
    ensure!(reaches(&cluster, 0, 2)?, "the others are cut");
    cluster.heal()?;
    ensure!(reaches(&cluster, 3, 0)?, "not healed");
    Ok(())
}

#[test]
fn captures_hold_all_that_passes() -> Result<()> {
    let cluster = network(2)?;
    let capture = cluster.capture(1)?;
    let text = "a datagram to be seen";
    ensure!(reaches(&cluster, 0, 1)?, "no way");
    let send = format!("echo '{text}' >/dev/udp/10.77.0.2/2377");
    cluster.run(0, Command::new("bash").args(["-c", &send]))?;
    let bytes = std::fs::read(capture.finish()?)?;
    ensure!(String::from_utf8_lossy(&bytes).contains(text), "{} bytes without it", bytes.len());
    Ok(())
}
