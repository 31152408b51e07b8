//! What is measured of three managers and two workers: each function is one group of rows.

mod agents;
mod leader;
mod living;
mod secrets;
mod start;
mod worker;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use skep_integration::{Cluster, ClusterOptions, cgroups_of, settle, wait_until};

use crate::client::Client;
use crate::clock::{ms_since, now_ns};
use crate::engine::{Engine, Kind, Site};
use crate::report::Report;
use crate::rows::Programs;

const MANAGERS: usize = 3;
const WORKERS: usize = 2;
const NODES: usize = MANAGERS + WORKERS;
/// Swarms that are made to measure joins; the last of them serves the other rows.
const SWARMS: usize = 4;
/// Longest wait for members to be ready, and for a leader.
const MEMBERS: Duration = Duration::from_secs(120);
/// Longest wait for one answer while it is looked for.
const LOOK: Duration = Duration::from_secs(2);
/// Pause between two looks at who is ready.
const PAUSE: Duration = Duration::from_millis(2);
/// Longest end of a daemon, or of its tasks, before it is killed.
const END: Duration = Duration::from_secs(60);

/// A group of rows that share a running swarm.
type Group = fn(&mut Swarm, &mut Report) -> Result<()>;

/// By name, in order.
const GROUPS: &[(&str, Group)] = &[
    ("secrets", secrets::run),
    ("start", start::run),
    ("living", living::run),
    ("worker", worker::run),
    ("leader", leader::run),
    ("restart", leader::restart),
    ("agents", agents::run),
];

/// Names of all groups.
pub(crate) fn names() -> Vec<&'static str> {
    ["joins"].into_iter().chain(GROUPS.iter().map(|(name, _)| *name)).collect()
}

/// Runs the groups in `only`, or all; one engine after the other.
pub(crate) fn run(programs: &Programs, only: &[String], report: &mut Report) -> Result<()> {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|it| it == name);
    for (kind, program) in &programs.all {
        let mut joins = Joins::default();
        let mut swarm = Swarm::start(*kind, program, &mut joins)?;
        if wanted("joins") {
            for _ in 1..kind.rounds(SWARMS) {
                drop(swarm);
                swarm = Swarm::start(*kind, program, &mut joins)?;
            }
            joins.report(*kind, report)?;
        }
        swarm.share_image()?;
        for (_, group) in GROUPS.iter().filter(|(name, _)| wanted(name)) {
            group(&mut swarm, report)?;
        }
    }
    Ok(())
}

/// Milliseconds of joins.
#[derive(Debug, Default)]
struct Joins {
    manager: Vec<f64>,
    manager_ready: Vec<f64>,
    worker: Vec<f64>,
    worker_ready: Vec<f64>,
}

impl Joins {
    fn report(&self, kind: Kind, report: &mut Report) -> Result<()> {
        report.add("join-manager", kind, &self.manager)?;
        report.add("join-manager-ready", kind, &self.manager_ready)?;
        report.add("join-worker", kind, &self.worker)?;
        report.add("join-worker-ready", kind, &self.worker_ready)
    }
}

/// Five engines in a network. Dropping it takes away all of it.
#[derive(Debug)]
struct Swarm {
    kind: Kind,
    /// Managers first.
    engines: Vec<Engine>,
    /// Their node ids.
    ids: Vec<String>,
}

impl Swarm {
    fn start(kind: Kind, program: &Path, joins: &mut Joins) -> Result<Self> {
        let (managers, workers) = (MANAGERS, WORKERS);
        let options = ClusterOptions { managers, workers, ..ClusterOptions::default() };
        let network = Arc::new(Cluster::prepare(&options)?);
        let mut swarm = Self { kind, engines: Vec::new(), ids: Vec::new() };
        for at in 0..NODES {
            let site = Site { network: Arc::clone(&network), at };
            swarm.engines.push(Engine::prepare_at(kind, program, site)?);
        }
        for engine in &mut swarm.engines {
            engine.launch()?;
        }
        for engine in &mut swarm.engines {
            engine.await_ready("/info")?;
        }
        swarm.engine_mut(0)?.init_swarm()?;
        let first = swarm.engine(0)?;
        let tokens = first.client().get("/swarm")?["JoinTokens"].clone();
        for at in 1..NODES {
            let role = if at < MANAGERS { "Manager" } else { "Worker" };
            let token = tokens[role].as_str().context("a join token")?;
            let (sent_ns, call_ms) = swarm.engine(at)?.join(first, token)?;
            swarm.await_members(at + 1)?;
            let ready_ms = ms_since(sent_ns);
            let (calls, ready) = match at < MANAGERS {
                true => (&mut joins.manager, &mut joins.manager_ready),
                false => (&mut joins.worker, &mut joins.worker_ready),
            };
            calls.push(call_ms);
            ready.push(ready_ms);
        }
        for engine in &swarm.engines {
            let info = engine.client().get("/info")?;
            swarm.ids.push(info["Swarm"]["NodeID"].as_str().context("a node id")?.to_owned());
        }
        Ok(swarm)
    }

    fn share_image(&mut self) -> Result<()> {
        let (first, others) = self.engines.split_first_mut().context("no engines")?;
        first.image = first.import()?;
        others.iter_mut().try_for_each(|other| other.copy_image(first))
    }

    fn engine(&self, at: usize) -> Result<&Engine> {
        self.engines.get(at).with_context(|| format!("no engine {at}"))
    }

    fn engine_mut(&mut self, at: usize) -> Result<&mut Engine> {
        self.engines.get_mut(at).with_context(|| format!("no engine {at}"))
    }

    fn id(&self, at: usize) -> Result<&str> {
        self.ids.get(at).map(String::as_str).with_context(|| format!("no engine {at}"))
    }

    /// A client that waits for answers for a short time.
    fn asker(&self, at: usize) -> Result<Client> {
        Ok(Client::within(&self.engine(at)?.socket(), LOOK))
    }

    /// Waits until the first manager that is up counts so many members, all ready, and all
    /// managers among them reachable.
    fn await_members(&self, count: usize) -> Result<()> {
        let asked = (0..MANAGERS).find(|at| self.engine(*at).is_ok_and(Engine::is_up));
        let mut client = self.asker(asked.context("no manager is up")?)?;
        let end = now_ns() + u64::try_from(MEMBERS.as_nanos())?;
        let mut last = Value::Null;
        while now_ns() < end {
            // Without a leader for a while, there is none to tell.
            if let Ok(nodes) = client.get("/nodes") {
                if nodes.as_array().is_some_and(|all| all.iter().filter(is_well).count() == count) {
                    return Ok(());
                }
                last = nodes;
            }
            std::thread::sleep(PAUSE);
        }
        anyhow::bail!("{count} members? {last}\n{}", self.engine(0)?.log_tail())
    }

    /// Waits until all are ready, and each manager answers.
    fn await_whole(&self) -> Result<()> {
        self.await_members(NODES)?;
        settle("an answer of each manager", MEMBERS, || {
            let answers = |at| self.asker(at).and_then(|mut it| it.get("/secrets")).is_ok();
            Ok((0..MANAGERS).all(answers))
        })
    }

    /// Number of the manager that leads.
    fn leader(&self) -> Result<usize> {
        wait_until("a leader", MEMBERS, || {
            for at in 0..MANAGERS {
                let Ok(nodes) = self.asker(at)?.get("/nodes") else { continue };
                let mut nodes = nodes.as_array().into_iter().flatten();
                let leader = nodes.find(|node| node["ManagerStatus"]["Leader"] == true);
                if let Some(leader) = leader {
                    return Ok(self.ids.iter().position(|id| leader["ID"] == *id));
                }
            }
            Ok(None)
        })
    }

    /// The managers that do not lead.
    fn others(&self, leader: usize) -> Vec<usize> {
        (0..MANAGERS).filter(|at| *at != leader).collect()
    }

    /// Waits until no task is left on any node.
    fn await_no_task(&self) -> Result<()> {
        self.engines.iter().try_for_each(Engine::await_no_probe)
    }
}

/// Whether a node is ready and, if a manager, reachable.
fn is_well(node: &&Value) -> bool {
    let manager = &node["ManagerStatus"];
    node["Status"]["State"] == "ready"
        && (node["Spec"]["Role"] == "worker" || manager["Reachability"] == "reachable")
}

impl Drop for Swarm {
    fn drop(&mut self) {
        let up: Vec<_> = self.engines.iter().filter(|engine| engine.is_up()).collect();
        for engine in &up {
            let mut client = Client::within(&engine.socket(), LOOK);
            let Ok(services) = client.get("/services") else { continue };
            for id in services.as_array().into_iter().flatten().map(|it| &it["ID"]) {
                let id = id.as_str().unwrap_or_default();
                client.call("DELETE", &format!("/services/{id}"), None).ok();
            }
            break;
        }
        for engine in &up {
            engine.await_no_probe().ok();
        }
        for engine in up {
            if let Ok(pid) = engine.pid() {
                kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
            }
        }
        wait_until("the end of the daemons", END, || {
            let ended = self.engines.iter_mut().all(Engine::has_ended);
            Ok(ended.then_some(()))
        })
        .ok();
        // The nodes' own groups are empty now; one that is not is left for whoever looks into it.
        for group in self.ids.iter().filter_map(|id| cgroups_of(id).ok()).flatten() {
            std::fs::remove_dir(group).ok();
        }
    }
}
