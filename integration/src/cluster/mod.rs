//! Many nodes: real processes, each in a network namespace of its own, on one network that can be
//! slow, lossy or cut. At most two clusters run at once on a machine; a third waits.

mod capture;
mod faults;
mod held;
mod network;
mod permits;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

pub use capture::Capture;
use network::{Network, address_of};

use crate::cli::Program;
use crate::namespace;
use crate::node::{Node, Options, Place};
use crate::wait::{settle, wait_until};

/// UDP port of a node.
pub const PORT: u16 = 2377;
/// Longest wait for a node to be a ready member.
const MEMBERS: Duration = Duration::from_secs(30);

/// What a cluster is made of.
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// Managers; the first of them makes the swarm.
    pub managers: usize,
    /// Workers.
    pub workers: usize,
    /// Further nodes that belong to no swarm: started as `skep daemon`.
    pub spares: usize,
    /// Further node options of all.
    pub args: Vec<String>,
    /// Lets [`Node::clock_jump`] move wall clocks.
    pub movable_clocks: bool,
}

/// A role, and with it a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes part in the log.
    Manager,
    /// Runs tasks only.
    Worker,
}

impl Role {
    /// As the command line calls it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Worker => "worker",
        }
    }
}

/// A running task, as a manager tells of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Placed {
    /// Its slot.
    pub slot: u64,
    /// Its id.
    pub task: String,
    /// The node that runs it.
    pub node: usize,
    /// Its container.
    pub container: String,
}

/// A cluster. Dropping it takes away all of it.
#[derive(Debug)]
pub struct Cluster {
    // In this order they are dropped: the network only after its nodes.
    nodes: Vec<Node>,
    network: Network,
    managers: usize,
    workers: usize,
}

impl Cluster {
    /// Starts the first manager, joins the others to it one by one, and waits until all are ready.
    /// Every node has the busybox image.
    pub fn start(options: ClusterOptions) -> Result<Self> {
        let mut cluster = Self::prepare(&options)?;
        let members = options.managers + options.workers;
        for at in 0..members + options.spares {
            let mut own = cluster.options_of(at, &options)?;
            if at >= members {
                own.inactive = true;
            } else if at > 0 {
                let role = if at < options.managers { Role::Manager } else { Role::Worker };
                own.args.extend(cluster.join_args(role, at)?);
            }
            let node = Node::start(own).with_context(|| format!("node {at}"))?;
            node.import_busybox()?;
            cluster.nodes.push(node);
        }
        if members > 0 {
            cluster.await_ready(members)?;
        }
        Ok(cluster)
    }

    /// Lays out the network without any node.
    pub fn prepare(options: &ClusterOptions) -> Result<Self> {
        let count = options.managers + options.workers + options.spares;
        let network = Network::lay_out(count, permits::permit()?.into())?;
        let (managers, workers) = (options.managers, options.workers);
        Ok(Self { nodes: Vec::new(), network, managers, workers })
    }

    fn options_of(&self, at: usize, options: &ClusterOptions) -> Result<Options> {
        let (namespace, address) = (self.network.namespace(at)?, address_of(at));
        let place = Place { name: name_of(at), namespace, address };
        let (args, movable_clock) = (options.args.clone(), options.movable_clocks);
        Ok(Options { args, movable_clock, place: Some(place), ..Options::default() })
    }

    /// `--join` and `--token-file`; the file is this node's own.
    fn join_args(&self, role: Role, at: usize) -> Result<Vec<String>> {
        let file = self.network.root().join(format!("token-{at}"));
        fs::write(&file, self.token(role)?)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        let file = file.display().to_string();
        Ok(["--join", &self.endpoint(0), "--token-file", &file].map(str::to_owned).to_vec())
    }

    /// The join token of a role, as the first manager tells it.
    pub fn token(&self, role: Role) -> Result<String> {
        self.node(0).skep().ok(&["swarm", "join-token", "--quiet", role.word()])
    }

    /// `ADDRESS:PORT` of a node.
    pub fn endpoint(&self, at: usize) -> String {
        format!("{}:{PORT}", address_of(at))
    }

    /// A node, by its number from 0: managers first, then workers, then spares.
    #[allow(clippy::panic, reason = "a test that asks for a node it did not start")]
    pub fn node(&self, at: usize) -> &Node {
        self.nodes.get(at).unwrap_or_else(|| panic!("no node {at} of {}", self.nodes.len()))
    }

    /// Numbers of the nodes that were started as managers.
    pub fn managers(&self) -> std::ops::Range<usize> {
        0..self.managers
    }

    /// Numbers of those started as workers.
    pub fn workers(&self) -> std::ops::Range<usize> {
        self.managers..self.managers + self.workers
    }

    /// All nodes, spares too.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// Network namespaces of the cluster, by name.
    pub fn namespaces(&self) -> Vec<String> {
        self.network.namespaces()
    }

    /// Where files of the cluster itself are.
    pub fn root(&self) -> &Path {
        self.network.root()
    }

    /// Has a program start beside a node, in its network namespace.
    pub fn enter(&self, at: usize, command: &mut Command) -> Result<()> {
        namespace::enter(command, &self.network.namespace(at)?)
    }

    /// Runs a program beside a node, in its network namespace.
    pub fn run(&self, at: usize, command: &mut Command) -> Result<Output> {
        self.enter(at, command)?;
        command.output().with_context(|| format!("{command:?}"))
    }

    /// Waits until a manager counts exactly so many members, all ready.
    pub fn await_ready(&self, members: usize) -> Result<()> {
        self.await_ready_at(0, members)
    }

    /// As [`Cluster::await_ready`], asking one manager.
    pub fn await_ready_at(&self, manager: usize, members: usize) -> Result<()> {
        let mut last = Value::Null;
        let ready = settle("all members ready", MEMBERS, || {
            // Its socket may be away, or its swarm without a leader, for a while.
            let Ok(all) = self.node(manager).get("/nodes") else { return Ok(false) };
            let ready = all.as_array().into_iter().flatten();
            let ready = ready.filter(|node| node["Status"]["State"] == "ready").count();
            let is_whole = all.as_array().is_some_and(|all| all.len() == members);
            last = all;
            Ok(is_whole && ready == members)
        });
        ready.with_context(|| format!("{members} members? {last}"))
    }

    /// The leader, as the managers that can be asked agree on it.
    pub fn leader(&self) -> Result<usize> {
        self.leader_seen_by(&self.managers().collect::<Vec<_>>(), MEMBERS)
    }

    /// Waits until one of these managers names a leader.
    pub fn leader_seen_by(&self, asked: &[usize], bound: Duration) -> Result<usize> {
        wait_until("a leader", bound, || {
            for at in asked.iter().filter(|at| self.node(**at).is_up()) {
                let Ok(all) = self.node(*at).get("/nodes") else { continue };
                let mut all = all.as_array().into_iter().flatten();
                if let Some(found) = all.find(|node| node["ManagerStatus"]["Leader"] == true) {
                    return self.number_of(found).map(Some);
                }
            }
            Ok(None)
        })
    }

    fn number_of(&self, node: &Value) -> Result<usize> {
        let name = node["Description"]["Hostname"].as_str().context("Hostname")?;
        let found = (0..self.network.len()).find(|at| name_of(*at) == name);
        found.with_context(|| format!("{name} is none of the cluster's nodes"))
    }

    /// Running tasks of a service that are to run, as a manager tells of them.
    pub fn placed(&self, manager: usize, service: &str) -> Result<Vec<Placed>> {
        let node = self.node(manager);
        let all = node.get("/nodes")?;
        let all = all.as_array().context("no list")?;
        let mut found = Vec::new();
        for task in crate::seen::tasks_of(node, service)? {
            if task["DesiredState"] != "running" || task["Status"]["State"] != "running" {
                continue;
            }
            let host = all.iter().find(|node| node["ID"] == task["NodeID"]);
            let status = &task["Status"]["ContainerStatus"];
            found.push(Placed {
                slot: task["Slot"].as_u64().context("Slot")?,
                task: task["ID"].as_str().context("ID")?.to_owned(),
                node: self.number_of(host.context("a task without a node")?)?,
                container: status["ContainerID"].as_str().context("ContainerID")?.to_owned(),
            });
        }
        found.sort();
        Ok(found)
    }

    /// Waits until exactly the tasks that a service wants run, and no other is to run; asks one
    /// manager.
    pub fn await_converged(&self, manager: usize, service: &str) -> Result<Vec<Placed>> {
        self.await_placed(manager, service, MEMBERS, |_| true)
    }

    /// As [`Cluster::await_converged`], and every task is one that `wanted` takes.
    pub fn await_placed(
        &self,
        manager: usize,
        service: &str,
        bound: Duration,
        wanted: impl Fn(&Placed) -> bool,
    ) -> Result<Vec<Placed>> {
        let node = self.node(manager);
        let mut last = Value::Null;
        let found = wait_until("the service to converge", bound, || {
            let spec = node.get(&format!("/services/{service}"))?;
            let replicas = spec["Spec"]["Mode"]["Replicated"]["Replicas"].as_u64();
            let tasks = crate::seen::tasks_of(node, service)?;
            let meant = tasks.iter().filter(|task| task["DesiredState"] == "running").count();
            last = Value::Array(tasks);
            let placed = self.placed(manager, service)?;
            let is_done = Some(meant as u64) == replicas && placed.len() == meant;
            Ok((is_done && placed.iter().all(&wanted)).then_some(placed))
        });
        found.with_context(|| format!("{service}: {}\n{}", brief(&last), node.log_tail()))
    }

    /// Holds back every packet that a node sends, in whole milliseconds: round trips to it take
    /// that much longer.
    pub fn delay(&self, at: usize, ms: u64) -> Result<()> {
        self.network.change(|faults| {
            faults.hold(at, Duration::from_millis(ms));
            Ok(())
        })
    }

    /// Loses a share of what a node sends and of what it should receive.
    pub fn loss(&self, at: usize, percent: u8) -> Result<()> {
        self.network.change(|faults| {
            for other in (0..self.network.len()).filter(|other| *other != at) {
                faults.lose(at, other, percent)?;
                faults.lose(other, at, percent)?;
            }
            Ok(())
        })
    }

    /// Loses a share of what goes from one node to another, and nothing of what comes back.
    pub fn one_way_loss(&self, from: usize, to: usize, percent: u8) -> Result<()> {
        self.network.change(|faults| faults.lose(from, to, percent))
    }

    /// Cuts every connection between two sets of nodes.
    pub fn partition(&self, some: &[usize], others: &[usize]) -> Result<()> {
        self.network.change(|faults| {
            for (one, other) in some.iter().flat_map(|one| others.iter().map(move |two| (one, two)))
            {
                faults.lose(*one, *other, 100)?;
                faults.lose(*other, *one, 100)?;
            }
            Ok(())
        })
    }

    /// Cuts a node off from all others.
    pub fn isolate(&self, at: usize) -> Result<()> {
        self.loss(at, 100)
    }

    /// Ends all delays, losses and cuts.
    pub fn heal(&self) -> Result<()> {
        self.network.change(|faults| {
            *faults = faults::Faults::default();
            Ok(())
        })
    }

    /// `kill -9` of a node's daemon; its tasks go on.
    pub fn kill(&self, at: usize) -> Result<()> {
        self.node(at).kill_daemon()
    }

    /// Stops a node's daemon in its tracks, all its threads; its tasks go on.
    pub fn pause(&self, at: usize) -> Result<()> {
        self.node(at).signal(Signal::SIGSTOP)?;
        let threads = format!("/proc/{}/task", self.node(at).daemon_pid()?);
        settle("all threads to stop", MEMBERS, || {
            let stopped = |thread: PathBuf| {
                let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
                stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
            };
            Ok(fs::read_dir(&threads)?.flatten().all(|thread| stopped(thread.path())))
        })
    }

    /// Lets a paused daemon go on.
    pub fn resume(&self, at: usize) -> Result<()> {
        self.node(at).signal(Signal::SIGCONT)
    }

    /// Starts a daemon anew, after a clean stop if it runs.
    pub fn restart(&self, at: usize) -> Result<()> {
        let node = self.node(at);
        if node.is_up() {
            let status = node.stop_daemon()?;
            ensure!(status.success(), "node {at} stopped with {status}\n{}", node.log_tail());
        }
        node.launch()
    }

    /// Gives a node another address on the same network, `10.77.0.host`; its daemon learns of it
    /// when it is started next.
    pub fn renumber(&self, at: usize, host: u8) -> Result<Ipv4Addr> {
        let address = network::address_of_host(host);
        let is_others = (0..self.network.len()).any(|other| address_of(other) == address);
        ensure!(!is_others || address == address_of(at), "{address} is another node's");
        self.network.renumber(at, address)?;
        self.node(at).set_address(address);
        Ok(address)
    }

    /// Writes all that a node sends and receives to a file, loopback included.
    pub fn capture(&self, at: usize) -> Result<Capture> {
        let file = self.network.root().join(format!("udp-{at}.pcap"));
        Capture::start(&self.network.namespace(at)?, file)
    }

    /// Has a spare node join by a client's `swarm join`, of the first manager; answers what it
    /// printed.
    pub fn join(&self, program: Program, at: usize, role: Role) -> Result<String> {
        let (token, manager) = (self.token(role)?, self.endpoint(0));
        let advertised = address_of(at).to_string();
        let flags = ["swarm", "join", "--token", &token, "--advertise-addr", &advertised];
        let said = self.node(at).cli(program).ok(&[&flags[..], &[&manager]].concat())?;
        self.node(at).id()?;
        Ok(said)
    }

    /// Directories of all nodes.
    pub fn roots(&self) -> Vec<PathBuf> {
        self.nodes.iter().map(|node| node.root().to_owned()).collect()
    }
}

/// `--node-name` of a node.
pub fn name_of(at: usize) -> String {
    format!("n{}", at + 1)
}

/// Tasks in a line each.
fn brief(tasks: &Value) -> String {
    let lines = tasks.as_array().into_iter().flatten().map(|task| {
        format!(
            "\n  {} slot {} on {}: {} of {} {}",
            task["ID"],
            task["Slot"],
            task["NodeID"],
            task["Status"]["State"],
            task["DesiredState"],
            task["Status"]["Err"]
        )
    });
    lines.collect()
}
