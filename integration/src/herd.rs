//! Simulated agents: the program `skep-agents`, and what it says.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Lines that the agents are ahead of who listens.
const SAID: usize = 16;

/// Many agents in one process. Dropping it ends them.
#[derive(Debug)]
pub struct Herd {
    child: Child,
    stdin: ChildStdin,
    said: Receiver<String>,
}

/// How agents came back.
#[derive(Debug, Clone)]
pub struct Back {
    /// How many did.
    pub agents: u64,
    /// Seconds from the mark until half of them had their tasks told anew.
    pub median_s: f64,
    /// The same of the last of them.
    pub last_s: f64,
    /// Tasks that were taken from them meanwhile.
    pub replaced: u64,
}

impl Herd {
    /// Has so many agents join by a manager, in the network that `enter` leads into. Each is to get
    /// `tasks` tasks; their nodes have the engine label `simulated=yes`.
    pub fn start(
        program: &Path,
        manager: &str,
        token_file: &Path,
        [agents, tasks]: [usize; 2],
        enter: impl FnOnce(&mut Command) -> Result<()>,
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["--manager", manager, "--token-file"]).arg(token_file);
        command.args(["--agents", &agents.to_string(), "--tasks", &tasks.to_string()]);
        enter(&mut command)?;
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("start {}", program.display()))?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = child.stdout.take().context("no stdout")?;
        let (tx, said) = sync_channel(SAID);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, stdin, said })
    }

    fn hear(&self, what: &str, bound: Duration) -> Result<Value> {
        let line = self.said.recv_timeout(bound);
        let line = line.with_context(|| format!("the agents do not say {what:?}"))?;
        let said: Value = serde_json::from_str(&line)?;
        ensure!(said["said"] == what, "not {what:?}: {said}");
        Ok(said)
    }

    /// Waits until all are members.
    pub fn joined(&self, bound: Duration) -> Result<()> {
        self.hear("joined", bound).map(drop)
    }

    /// Waits until all have their tasks.
    pub fn running(&self, bound: Duration) -> Result<()> {
        self.hear("running", bound).map(drop)
    }

    /// Counts anew from now on: all agents, or those whose sessions are with the manager of this
    /// address. How many they are.
    pub fn mark(&mut self, manager: Option<&str>) -> Result<u64> {
        writeln!(self.stdin, "mark {}", manager.unwrap_or_default())?;
        let marked = self.hear("marked", Duration::from_secs(5))?;
        marked["agents"].as_u64().context("agents")
    }

    /// Waits until each marked agent has a new session, and its tasks by it.
    pub fn back(&self, bound: Duration) -> Result<Back> {
        let said = self.hear("again", bound)?;
        let count = |field: &str| said[field].as_u64().with_context(|| format!("{field}: {said}"));
        Ok(Back {
            agents: count("agents")?,
            median_s: said["median_s"].as_f64().unwrap_or_default(),
            last_s: said["last_s"].as_f64().unwrap_or_default(),
            replaced: count("replaced")?,
        })
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
