//! Measures skep by driving its socket, and a Docker engine beside it; prints JSON lines.

mod client;
mod clock;
mod control;
mod engine;
mod image;
mod leak;
mod probe;
mod readme;
mod report;
mod rows;
mod swarm;
mod tasks;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use skep_integration::{BUDGETS, Budget, SWARM_BUDGETS};

use engine::Kind;
use report::Report;
use rows::Programs;

#[derive(Debug, Parser)]
#[command(about = "Measures skep, and a Docker engine beside it; prints JSON lines")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Rows of one node
    Node(Measure),
    /// Rows of three managers and two workers
    Swarm(Measure),
    /// The control loop alone, in memory
    Control {
        /// Nodes of the swarm
        #[arg(long, default_value_t = 10_000)]
        nodes: usize,
        /// Tasks to place
        #[arg(long, default_value_t = 100_000)]
        tasks: usize,
    },
    /// Rounds of services with secrets: nothing may be left of them
    Leak(leak::Options),
    /// Inside a container: says when it began, reads all secrets, waits
    #[command(hide = true)]
    Stamp { out: PathBuf },
    /// Inside a container: reads a file again and again
    #[command(hide = true)]
    Read { path: PathBuf, rounds: usize, threads: usize, out: PathBuf },
    /// Inside a container: waits for the stop signal
    #[command(hide = true)]
    Wait,
}

/// What to measure, and where the figures go besides standard output.
#[derive(Debug, clap::Args)]
struct Measure {
    /// skep's binary
    #[arg(long, env = "SKEP_BIN")]
    skep: PathBuf,
    /// Measures this dockerd too, in turn
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Only these groups of rows
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Writes the table of figures into this file
    #[arg(long)]
    readme: Option<PathBuf>,
}

fn main() -> ExitCode {
    let began_ns = clock::now_ns();
    match run(Arguments::parse().what, began_ns) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write;
            writeln!(std::io::stderr(), "skep-bench: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

fn run(what: What, began_ns: u64) -> Result<()> {
    match what {
        What::Node(measure) => {
            let report = measure.run(&rows::names(), BUDGETS, rows::run)?;
            let path = measure.readme.as_ref();
            path.map_or(Ok(()), |path| readme::update(path, &report, &machine()))
        }
        What::Swarm(measure) => {
            let report = measure.run(&swarm::names(), SWARM_BUDGETS, swarm::run)?;
            let path = measure.readme.as_ref();
            path.map_or(Ok(()), |path| readme::update_swarm(path, &report, &machine()))
        }
        What::Control { nodes, tasks } => control::run(nodes, tasks),
        What::Leak(options) => leak::run(options),
        What::Stamp { out } => probe::stamp(began_ns, &out),
        What::Read { path, rounds, threads, out } => {
            probe::read(&path, rounds, threads, &out)?;
            probe::wait()
        }
        What::Wait => probe::wait(),
    }
}

/// Runs some groups of rows.
type Run = fn(&Programs, &[String], &mut Report) -> Result<()>;

impl Measure {
    fn run(&self, names: &[&str], budgets: &'static [Budget], run: Run) -> Result<Report> {
        for name in &self.only {
            let there_are = names.join(", ");
            ensure!(names.contains(&name.as_str()), "no rows {name}: there are {there_are}");
        }
        let skep = self.skep.canonicalize();
        let skep = skep.with_context(|| format!("skep's binary {}", self.skep.display()))?;
        let peer = self.peer.clone().map(|path| (Kind::Docker, path));
        let programs = Programs { all: [(Kind::Skep, skep)].into_iter().chain(peer).collect() };
        let mut report = Report::by(budgets);
        run(&programs, &self.only, &mut report)?;
        report.judge()?;
        Ok(report)
    }
}

/// Cores, memory and kernel: what a figure was read on.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let memory = read("/proc/meminfo");
    let total = memory.split_whitespace().nth(1).and_then(|it| it.parse::<u64>().ok());
    let gib = total.unwrap_or(0).div_ceil(1 << 20);
    format!("{cores} cores, {gib} GiB, kernel {}", kernel.trim())
}
