//! Clients that flood the API socket, or dawdle on it, while others must be served.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use skep_integration::{Http, Node, Options, settle};

use super::PROBE;

/// Longest wait of a client for its answer, on a machine that is busy with other tests.
const ANSWER: Duration = Duration::from_secs(25);
/// How long the normal client goes on beside each flood.
const ROUNDS: u32 = 40;
/// Bound for what must come back after a flood.
const BACK: Duration = Duration::from_secs(60);
/// Resident memory that a flood may leave behind: the allocator keeps some of it.
const LEFT_BYTES: u64 = 48 << 20;

/// A process that holds connections until it is dropped.
struct Flood(Child);

impl Flood {
    fn start(node: &Node, count: usize, kind: &str) -> Result<Self> {
        let mut child = Command::new(PROBE)
            .args(["hold", &node.socket().display().to_string(), &count.to_string(), kind])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("stdout")?;
        let flood = Self(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "ready\n", "the flood says {line:?}");
        Ok(flood)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn descriptors(node: &Node) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", node.daemon_pid()?))?.count())
}

fn resident(node: &Node) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", node.daemon_pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// A normal client reads, and every tenth time writes, each on a fresh connection.
fn serve_others(node: &Node, kind: &str) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for round in 0..ROUNDS {
        let start = Instant::now();
        let mut http = Http::connect(&node.socket())?;
        let reply = if round % 10 == 9 {
            let body = serde_json::json!({"Name": format!("{kind}-{round}"), "Data": "eA=="});
            http.json("POST", "/secrets/create", &body)?
        } else {
            http.get("/info")?
        };
        let took = start.elapsed();
        ensure!(matches!(reply.status, 200 | 201), "{kind}: {reply:?}");
        ensure!(took < ANSWER, "{kind}: an answer took {took:?}");
        slowest = slowest.max(took);
    }
    Ok(slowest)
}

#[test]
fn others_are_served_beside_floods_and_dawdlers() -> Result<()> {
    let node = Node::start(Options::default())?;
    serve_others(&node, "calm")?;
    let (calm_descriptors, calm_bytes) = (descriptors(&node)?, resident(&node)?);
    for kind in ["idle", "headers", "body", "chunks", "large", "unread", "garbage"] {
        let flood = Flood::start(&node, 300, kind)?;
        let slowest = serve_others(&node, kind)
            .with_context(|| format!("beside {kind}; log:\n{}", node.log_tail()))?;
        println!("beside 300 connections of kind {kind}: slowest answer {slowest:?}");
        drop(flood);
        settle(
            "the descriptors are back",
            BACK,
            || Ok(descriptors(&node)? <= calm_descriptors + 2),
        )
        .with_context(|| kind.to_owned())?;
    }
    let bytes = resident(&node)?;
    println!("resident memory: {calm_bytes} bytes before, {bytes} after");
    ensure!(bytes < calm_bytes + LEFT_BYTES, "{calm_bytes} bytes before, {bytes} after");
    Ok(())
}

#[test]
fn the_257th_connection_is_told_why() -> Result<()> {
    let node = Node::start(Options::default())?;
    // One process gets its share, and is told so.
    let mine: Vec<_> =
        (0..192).map(|_| UnixStream::connect(node.socket())).collect::<Result<_, _>>()?;
    let told = |expected: &str| -> Result<()> {
        let mut text = String::new();
        let mut stream = UnixStream::connect(node.socket())?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.read_to_string(&mut text)?;
        ensure!(text.starts_with("HTTP/1.1 503 ") && text.contains(expected), "{text:?}");
        Ok(())
    };
    told("all 192 connections that one process may have")?;
    let others = Flood::start(&node, 64, "idle")?;
    drop(mine);
    settle("a turn is free", BACK, || Ok(node.get("/info").is_ok()))?;
    let more = Flood::start(&node, 192, "idle")?;
    settle("all turns are taken", BACK, || Ok(told("all 256 connections of the API").is_ok()))?;
    drop((others, more));
    settle("the socket answers again", BACK, || Ok(node.get("/info").is_ok()))
}
