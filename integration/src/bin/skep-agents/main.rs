//! Many agents in one process, each with a UDP port, a key and a certificate of its own. They join
//! by the real protocol and hold the sessions that skep's own code holds; only their tasks are
//! made up: each is said to run as soon as it is assigned.
//!
//! It speaks in JSON lines. `{"said":"running"}`: every agent has its tasks. A line `mark` on its
//! stdin, or `mark IP` for those alone whose sessions are with that manager, makes it wait for new
//! sessions; `{"said":"again", …}` follows once each of these agents has one, with all its tasks.

mod agent;
mod join;
mod roll;

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use skep::identity::token::Token;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use roll::Roll;

/// Agents that join at once: a manager takes as many.
const JOINS: usize = 32;
/// Descriptors beside one for each agent.
const DESCRIPTORS: u64 = 128;

#[derive(Debug, Parser)]
#[command(about = "Simulated agents over real QUIC; speaks in JSON lines")]
struct Arguments {
    /// A manager to join by, ADDR:PORT
    #[arg(long)]
    manager: String,
    /// File with the join token
    #[arg(long)]
    token_file: PathBuf,
    /// How many agents
    #[arg(long, default_value_t = 1_000)]
    agents: usize,
    /// Tasks that each is to get
    #[arg(long, default_value_t = 5)]
    tasks: usize,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(std::io::stderr(), "skep-agents: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = arguments.agents as u64 + DESCRIPTORS;
    ensure!(needed <= most, "{needed} descriptors are needed, {most} allowed: ulimit -n");
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(simulate(arguments))
}

async fn simulate(arguments: Arguments) -> Result<()> {
    let text = fs::read_to_string(&arguments.token_file).context("the token's file")?;
    let token = Arc::new(Token::parse(&text)?);
    let turns = Arc::new(Semaphore::new(JOINS));
    let mut joining = JoinSet::new();
    for number in 0..arguments.agents {
        let (token, turns) = (Arc::clone(&token), Arc::clone(&turns));
        let manager = arguments.manager.clone();
        joining.spawn(async move {
            let _turn = turns.acquire().await?;
            join::join(&manager, &token, number).await
        });
    }
    let mut members = Vec::new();
    while let Some(joined) = joining.join_next().await {
        members.push(joined??);
    }
    say(&json!({"said": "joined", "agents": members.len()}))?;

    let roll = Arc::new(Roll::new(members.len(), arguments.tasks));
    for (number, member) in members.into_iter().enumerate() {
        agent::start(member, number, Arc::clone(&roll));
    }
    roll.running().await;
    say(&json!({"said": "running", "agents": arguments.agents, "tasks": arguments.tasks}))?;
    let (tx, mut lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if tx.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = lines.recv().await {
        let line = line.trim();
        let of = line.strip_prefix("mark").with_context(|| format!("mark [IP], not {line:?}"))?;
        let of = of.trim();
        let of = if of.is_empty() { None } else { Some(of.parse::<IpAddr>()?) };
        let marked = roll.mark(of);
        say(&json!({"said": "marked", "agents": marked}))?;
        say(&roll.again().await)?;
    }
    Ok(())
}

/// Writes one line.
fn say(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
