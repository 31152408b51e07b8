//! Nodes of a cluster: reached as any node, and stopped, paused and set off as the methods say.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use skep_integration::{Cluster, ClusterOptions, Program, name_of, settle};

const BOUND: Duration = Duration::from_secs(10);

fn one(movable_clocks: bool) -> Result<Cluster> {
    Cluster::start(ClusterOptions { managers: 1, movable_clocks, ..ClusterOptions::default() })
}

#[test]
fn a_node_is_reached_and_obeys() -> Result<()> {
    let cluster = one(false)?;
    let node = cluster.node(0);
    let info = node.get("/info")?;
    ensure!(info["Name"] == name_of(0) && info["Swarm"]["NodeAddr"] == "10.77.0.1", "{info}");
    ensure!(cluster.leader()? == 0, "another leader");
    let service = ["service", "create", "-d", "--replicas", "2", "--name", "s", "busybox:latest"];
    node.cli(Program::Skep).ok(&[&service[..], &["sleep", "1000"]].concat())?;
    let placed = cluster.await_converged(0, "s")?;
    ensure!(placed.len() == 2 && placed.iter().all(|task| task.node == 0), "{placed:?}");

    cluster.pause(0)?;
    let mut paused = node.http()?;
    paused.raw(b"GET /_ping HTTP/1.1\r\nHost: skep\r\n\r\n")?;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.daemon_pid()?))?;
    ensure!(stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T")), "{stat}");
    cluster.resume(0)?;
    ensure!(paused.reply()?.status == 200, "does not go on");

    cluster.kill(0)?;
    ensure!(!node.is_up(), "killed and up");
    cluster.restart(0)?;
    cluster.restart(0)?;
    ensure!(node.is_up() && cluster.await_converged(0, "s")? == placed, "tasks were replaced");
    Ok(())
}

/// The daemon's port is in its namespace and not in the host's.
#[test]
fn a_nodes_port_is_not_the_hosts() -> Result<()> {
    let cluster = Cluster::prepare(&ClusterOptions { spares: 1, ..ClusterOptions::default() })?;
    let out = cluster.run(0, std::process::Command::new("ip").args(["-br", "address"]))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(text.contains("10.77.0.1/24") && text.lines().count() == 2, "{text}");
    let there = std::net::UdpSocket::bind("10.77.0.1:0");
    ensure!(there.is_err(), "the host has the node's address");
    Ok(())
}

/// Seconds by which the daemon's wall clock is ahead of this process's.
fn ahead_s(cluster: &Cluster) -> Result<i64> {
    let name = format!("c{:?}", SystemTime::now());
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let node = cluster.node(0).skep();
    node.ok_with(&["config", "create", &name, "-"], b"x")?;
    let shown = node.ok(&["config", "inspect", "--format", "{{.CreatedAt}}", &name])?;
    let out =
        std::process::Command::new("date").args(["-d", &shown_time(&shown)?, "+%s"]).output()?;
    let told: i64 = String::from_utf8_lossy(&out.stdout).trim().parse().context(shown)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    Ok(told - i64::try_from(now)?)
}

/// `date` takes the form `2026-01-02 03:04:05 UTC`.
fn shown_time(shown: &str) -> Result<String> {
    let moment = shown.get(..19).with_context(|| shown.to_owned())?;
    Ok(moment.replace('T', " ") + " UTC")
}

#[test]
fn clocks_jump_ahead_and_back() -> Result<()> {
    let cluster = one(true)?;
    ensure!(ahead_s(&cluster)?.abs() <= 1, "not the machine's time");
    cluster.node(0).clock_jump(100_000)?;
    let mut last = 0;
    settle("the clock ahead", BOUND, || {
        last = ahead_s(&cluster)?;
        Ok((99_998..=100_001).contains(&last))
    })
    .with_context(|| format!("{last} s ahead"))?;
    // Stamps never go back; the daemon's own clock does.
    cluster.node(0).clock_jump(0)?;
    let log = std::fs::read_to_string(cluster.node(0).log_path())?;
    ensure!(ahead_s(&cluster)? >= 99_998, "a stamp went back\n{log}");
    cluster.restart(0)?;
    ensure!(cluster.node(0).is_up(), "no daemon");
    Ok(())
}
