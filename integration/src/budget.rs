//! The budgets: rows of the bench with what each must reach.

use std::fmt;

/// What a row of the bench must reach.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// Median at most.
    Most(f64),
    /// 99th percentile at most.
    MostAt99(f64),
    /// Median by the peer's, at most.
    Ratio(f64),
    /// Median by the peer's, at least: for rates.
    RatioAtLeast(f64),
}

impl fmt::Display for Bound {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Most(most) => write!(out, "≤ {most}"),
            Self::MostAt99(most) => write!(out, "p99 ≤ {most}"),
            Self::Ratio(most) => write!(out, "≤ {most:.3} × Swarm"),
            Self::RatioAtLeast(least) => write!(out, "≥ {least} × Swarm"),
        }
    }
}

/// One line of the table of budgets.
#[derive(Debug)]
pub struct Budget {
    /// Row of the bench.
    pub row: &'static str,
    /// What is measured.
    pub what: &'static str,
    /// Unit of the figures.
    pub unit: &'static str,
    /// What they must reach.
    pub bound: Bound,
}

const fn row(row: &'static str, what: &'static str, unit: &'static str, bound: Bound) -> Budget {
    Budget { row, what, unit, bound }
}

use Bound::{Most, MostAt99, Ratio, RatioAtLeast};

/// Those of one node, in the order of the table. A row with two bounds stands here twice.
pub const BUDGETS: &[Budget] = &[
    row("start-host", "`service create` → process runs, 1 secret, host network", "ms", Ratio(0.25)),
    row(
        "start-default",
        "`service create` → process runs, 1 secret, default network",
        "ms",
        Ratio(0.25),
    ),
    row("scale-up", "scale 1 → 50 tasks with 5 secrets each, all running", "ms", Ratio(0.25)),
    row("scale-down-dead", "scale 50 → 0: processes dead", "ms", Ratio(0.25)),
    row("scale-down-gone", "scale 50 → 0: all removed", "ms", Ratio(0.25)),
    row("secret-64", "secret create 64 B, one at a time", "ms", Ratio(1.0 / 1.5)),
    row("secret-64", "secret create 64 B, one at a time", "ms", MostAt99(5.0)),
    row("secret-64-16", "secret create 64 B, 16 at once", "per s", RatioAtLeast(4.0)),
    row("secret-500k", "secret create 500 KB, one at a time", "ms", Ratio(0.5)),
    row("secret-ls", "`secret ls` of 1,000 over the API", "ms", Ratio(0.5)),
    row("swap-stop-first", "swap of a secret by `service update`, stop-first", "ms", Ratio(0.25)),
    row("swap-start-first", "swap of a secret by `service update`, start-first", "ms", Ratio(0.25)),
    row("memory-idle", "manager without tasks, resident", "MB", Ratio(0.2)),
    row("memory-50", "node with 50 tasks, PSS with supervisors", "MB", Ratio(0.2)),
    row("memory-supervisor", "supervisor of one task, sentinel included, PSS", "MB", Most(0.8)),
    row("ready-empty", "start → API ready, empty data root", "ms", Ratio(0.25)),
    row("ready-swarm", "start → API ready, existing swarm", "ms", Ratio(0.25)),
    row("swarm-init", "`swarm init`", "ms", Ratio(0.25)),
    row("cpu-idle", "idle CPU without tasks", "% of a core", Most(0.2)),
    row("cpu-50", "idle CPU with 50 tasks", "% of a core", Most(0.5)),
    row("binaries", "binaries needed, without runc", "MB", Most(25.0)),
    row("kill-replaced", "daemon `kill -9` and restart: tasks replaced of 5", "tasks", Most(0.0)),
    row("kill-ready", "daemon `kill -9` and restart → API back", "ms", Most(300.0)),
    row("copies-created", "plaintext of one secret in daemon memory, created", "copies", Most(0.0)),
    row("copies-removed", "plaintext of one secret in daemon memory, removed", "copies", Most(0.0)),
    row("read-64", "open+read+close of 64 B in the container", "µs", Ratio(8.0)),
    row("read-500k", "open+read+close of 500 KB in the container", "µs", Ratio(9.0)),
];

/// Those of three managers and two workers.
pub const SWARM_BUDGETS: &[Budget] = &[
    row("join-manager", "`swarm join` of a manager, the call", "ms", Ratio(1.0 / 3.0)),
    row("join-manager-ready", "`swarm join` → manager reachable", "ms", Ratio(1.0 / 3.0)),
    row("join-worker", "`swarm join` of a worker, the call", "ms", Ratio(0.5)),
    row("join-worker-ready", "`swarm join` → worker ready", "ms", Ratio(0.5)),
    row("secret-64-leader", "secret create 64 B by the leader, one at a time", "ms", Ratio(0.5)),
    row("secret-64-follower", "secret create 64 B by a follower, one at a time", "ms", Ratio(0.5)),
    row(
        "secret-64-16-leader",
        "secret create 64 B by the leader, 16 at once",
        "per s",
        RatioAtLeast(10.0),
    ),
    row(
        "secret-64-16-follower",
        "secret create 64 B by a follower, 16 at once",
        "per s",
        RatioAtLeast(10.0),
    ),
    row(
        "start-remote",
        "`service create` → process runs on a worker, 1 secret, default network",
        "ms",
        Ratio(0.25),
    ),
    row(
        "rotation",
        "`secret update` acknowledged → new bytes read in a container on another node",
        "ms",
        Most(20.0),
    ),
    row("rotation-reads", "open+read+close in a container meanwhile", "ms", MostAt99(1.0)),
    row(
        "revocation",
        "`secret revoke` sent → nothing reads in 3 tasks on 3 nodes, open handles included",
        "ms",
        Most(20.0),
    ),
    row("leader-kill", "leader `kill -9` → next acknowledged write", "ms", Most(1000.0)),
    row("leader-stop", "leader stopped → next acknowledged write", "ms", Most(200.0)),
    row("agents-back", "all managers killed and started → 1,000 agents back", "ms", Most(5000.0)),
    row("agents-moved", "leader killed → its agents with other managers", "ms", Most(5000.0)),
    row("worker-lost", "worker lost → its 10 tasks run elsewhere", "ms", Most(4000.0)),
];
