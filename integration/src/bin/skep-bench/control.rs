//! The control loop at full size: the real `Control` and `apply` in memory, without disk or
//! network, driven as the leader drives them. A step follows each commit.

use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skep_core::apply::{Change, apply};
use skep_core::command::{ClusterInit, Command, Decision, Outcome, Proposal, TaskReport};
use skep_core::control::{Control, Input, SessionEvent};
use skep_core::id::{ENTROPY_LEN, Id, NodeId, TaskId};
use skep_core::model::Meta;
use skep_core::model::cluster::{ClusterSpec, Ring, RingKey, Slot, Trust};
use skep_core::model::node::{ManagerInfo, Node, NodeDescription, NodeSpec, NodeState, NodeStatus};
use skep_core::model::service::{ServiceMode, ServiceSpec};
use skep_core::model::task::{
    Placement, ResourceNeeds, Resources, RestartPolicy, TaskSpec, TaskState, TaskStatus,
};
use skep_core::shared::Shared;
use skep_core::state::State;
use skep_core::time::{Span, Stamp};
use skep_core::{codec, limits, snapshot};

/// Replicas of each service.
const REPLICAS: usize = 1_000;
/// Session events the leader takes in one step, and reports in one command.
const EVENTS: usize = 1_024;
/// Points of the cost curve.
const POINTS: usize = 10;

/// Places `tasks` tasks on `nodes` nodes, lets them run, then disturbs them.
pub(crate) fn run(nodes: usize, tasks: usize) -> Result<()> {
    ensure!((1..=limits::NODES).contains(&nodes), "at most {} nodes", limits::NODES);
    ensure!((1..=limits::TASKS).contains(&tasks), "at most {} tasks", limits::TASKS);
    let mut swarm = Swarm::with_nodes(nodes)?;
    swarm.sessions_up()?;
    let before = rss();
    swarm.place(tasks)?;
    swarm.start()?;
    let grown = rss().saturating_sub(before);
    say(&json!({
        "what": "memory", "nodes": nodes, "tasks": tasks, "rss_mb": rss() >> 20,
        "bytes_per_task": grown / tasks as u64,
    }))?;
    swarm.idle()?;
    swarm.end_one_task()?;
    swarm.lose_one_node()
}

/// A swarm in memory with the loop that leads it.
struct Swarm {
    state: State,
    control: Control,
    now: Stamp,
    /// When the nodes were heard of last.
    heard: Stamp,
    ids: u64,
    /// Changes of each commit the loop has not seen yet.
    unseen: VecDeque<Vec<Change>>,
    steps: Vec<Duration>,
    /// Processor time of steps and applies.
    cpu: Duration,
    applied: Duration,
    coded: Duration,
    log_bytes: usize,
    placed: usize,
}

impl Swarm {
    /// A swarm with nodes that have no session yet. They come in as records of a snapshot.
    fn with_nodes(nodes: usize) -> Result<Self> {
        let mut swarm = Self {
            state: State::default(),
            control: Control::new([1; 32]),
            now: Stamp(1_000_000_000_000),
            heard: Stamp(1_000_000_000_000),
            ids: 0,
            unseen: VecDeque::new(),
            steps: Vec::new(),
            cpu: Duration::ZERO,
            applied: Duration::ZERO,
            coded: Duration::ZERO,
            log_bytes: 0,
            placed: 0,
        };
        let first = swarm.id();
        let init = init(first, swarm.id());
        swarm.commit(init)?;
        swarm.unseen.clear();
        let mut records = Vec::new();
        snapshot::write(&swarm.state, &mut |record| records.push(record.to_vec()));
        records.pop();
        for n in 1..nodes {
            let node = node(swarm.id(), n);
            records.push([&[0x82, 2, 0x81], codec::encode(&node).as_slice()].concat());
        }
        let count = codec::encode(&(records.len() as u64));
        records.push([&[0x82, 8, 0x81], count.as_slice()].concat());
        let mut reader = snapshot::Reader::default();
        for record in &records {
            reader.push(record)?;
        }
        swarm.state = reader.finish()?;
        Ok(swarm)
    }

    fn id<K>(&mut self) -> Id<K> {
        self.ids += 1;
        let mut entropy = [0; ENTROPY_LEN];
        // Spread as random ids are.
        let spread = u128::from(self.ids).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        entropy[1..].copy_from_slice(&spread.to_be_bytes());
        Id::from_entropy(entropy)
    }

    /// Commits a command: through bytes, as the log does, then into the state.
    fn commit(&mut self, command: Command) -> Result<()> {
        let proposal = Proposal::new(self.id(), self.now, command);
        let started = Instant::now();
        let bytes = codec::encode(&proposal);
        let proposal: Proposal = codec::decode_strict(&bytes)?;
        self.coded += started.elapsed();
        self.log_bytes += bytes.len();
        let mut changes = Vec::new();
        let (started, cpu) = (Instant::now(), cpu()?);
        let outcome = apply(&mut self.state, &proposal, &mut changes);
        self.applied += started.elapsed();
        self.cpu += cpu_since(cpu)?;
        ensure!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
        if let Command::Control(decisions) = &proposal.command {
            let places = |decision: &&Decision| match decision {
                Decision::TaskCreate(task) => task.node.is_some(),
                decision => matches!(decision, Decision::TaskAssign { .. }),
            };
            self.placed += decisions.iter().filter(places).count();
        }
        if !changes.is_empty() {
            self.unseen.push_back(changes);
        }
        Ok(())
    }

    fn step(&mut self, input: Input<'_>) -> Result<()> {
        self.now = self.now + Span::from_millis(1);
        let (started, cpu) = (Instant::now(), cpu()?);
        let commands = self.control.step(&self.state, input, self.now);
        self.steps.push(started.elapsed());
        self.cpu += cpu_since(cpu)?;
        commands.into_iter().try_for_each(|command| self.commit(command))
    }

    /// What all nodes say once a second.
    fn heartbeats(&mut self) -> Result<()> {
        self.heard = self.now;
        let heard: Vec<_> = self.node_ids().into_iter().map(SessionEvent::heard).collect();
        heard.chunks(EVENTS).try_for_each(|events| self.step(Input::Sessions(events)))
    }

    /// The next step the leader would take; false if there is nothing to do.
    fn advance(&mut self) -> Result<bool> {
        if self.now.since(self.heard) >= Span::from_secs(1) {
            self.heartbeats()?;
        }
        let is_due = self.control.deadline().is_some_and(|at| at <= self.now);
        match self.unseen.pop_front() {
            Some(changes) => self.step(Input::Changes(&changes))?,
            None if is_due => self.step(Input::Deadline)?,
            None => return Ok(false),
        }
        Ok(true)
    }

    fn settle(&mut self) -> Result<()> {
        while self.advance()? {}
        Ok(())
    }

    fn reset(&mut self) {
        self.steps.clear();
        (self.applied, self.coded, self.cpu) = Default::default();
        (self.placed, self.log_bytes) = (0, 0);
    }

    /// What was measured since the last reset.
    fn figures(&mut self) -> (Duration, Value) {
        let stepped: Duration = self.steps.iter().sum();
        self.steps.sort();
        let at = |share: f64| {
            let last = self.steps.len().saturating_sub(1);
            self.steps.get((last as f64 * share) as usize).map_or(0.0, millis)
        };
        let seconds = stepped + self.applied;
        let figures = json!({
            "steps": self.steps.len(), "step_ms": millis(&stepped),
            "step_ms_p50": at(0.5), "step_ms_p99": at(0.99), "step_ms_max": at(1.0),
            "apply_ms": millis(&self.applied), "codec_ms": millis(&self.coded),
            "log_bytes": self.log_bytes, "cpu_ms": millis(&self.cpu),
            "seconds": seconds.as_secs_f64(),
        });
        (seconds, figures)
    }

    fn say(&mut self, what: &str, more: Value) -> Result<()> {
        let (_, mut line) = self.figures();
        let map = line.as_object_mut().context("an object")?;
        map.insert("what".into(), what.into());
        map.insert("nodes".into(), self.state.nodes().len().into());
        map.insert("tasks".into(), self.state.tasks().len().into());
        map.insert("rss_mb".into(), (rss() >> 20).into());
        if let Value::Object(more) = more {
            map.extend(more);
        }
        self.reset();
        say(&line)
    }

    fn node_ids(&self) -> Vec<NodeId> {
        self.state.nodes().map(|node| node.id).collect()
    }

    fn sessions_up(&mut self) -> Result<()> {
        let all: Vec<_> = self.state.nodes().cloned().collect();
        let events: Vec<_> = all
            .iter()
            .map(|node| SessionEvent::Up {
                advertise: String::new(),
                node: node.id,
                addr: "10.0.0.9".into(),
                description: Box::new(node.description.clone()),
            })
            .collect();
        for events in events.chunks(EVENTS) {
            self.step(Input::Sessions(events))?;
        }
        self.settle()?;
        let ready = |node: &&std::sync::Arc<Node>| node.status.state == NodeState::Ready;
        ensure!(self.state.nodes().filter(ready).count() == all.len(), "nodes are missing");
        self.say("sessions up", json!({}))
    }

    /// Makes all services, then lets the loop place their tasks.
    fn place(&mut self, tasks: usize) -> Result<()> {
        for first in (0..tasks).step_by(REPLICAS) {
            let spec = service(first / REPLICAS, REPLICAS.min(tasks - first));
            let id = self.id();
            self.commit(Command::ServiceCreate { id, spec })?;
        }
        self.reset();
        let (mut curve, mut last) = (Vec::new(), (0, Duration::ZERO, Duration::ZERO));
        while self.placed < tasks {
            ensure!(self.advance()?, "{} of {tasks} are placed", self.placed);
            if self.placed - last.0 >= tasks / POINTS || self.placed >= tasks {
                let spent = self.steps.iter().sum::<Duration>() + self.applied;
                let count = (self.placed - last.0) as f64;
                curve.push(json!({
                    "placed": self.placed,
                    "per_s": rate(count, spent.saturating_sub(last.1)),
                    "per_cpu_s": rate(count, self.cpu.saturating_sub(last.2)),
                }));
                last = (self.placed, spent, self.cpu);
            }
        }
        let more = json!({
            "placements_per_s": rate(tasks as f64, last.1),
            "placements_per_cpu_s": rate(tasks as f64, last.2),
            "curve": curve,
        });
        self.say("placements", more)?;
        self.settle()?;
        self.say("after the last placement", json!({}))
    }

    /// Lets every task run: reports come node by node.
    fn start(&mut self) -> Result<()> {
        let tasks: Vec<_> =
            self.state.tasks().filter_map(|task| Some((task.id, task.node?))).collect();
        for state in [TaskState::Preparing, TaskState::Running] {
            for some in tasks.chunks(EVENTS) {
                let reports = some.iter().map(|(id, node)| self.report(*id, *node, state));
                let command = Command::TaskReport(reports.collect());
                self.commit(command)?;
                self.settle()?;
            }
            let (spent, _) = self.figures();
            let per_s = rate(tasks.len() as f64, spent);
            self.say("reports", json!({"state": state.word(), "reports_per_s": per_s}))?;
        }
        Ok(())
    }

    fn report(&self, id: TaskId, node: NodeId, state: TaskState) -> TaskReport {
        let message = String::from("started");
        let status = TaskStatus { at: self.now, state, message, ..TaskStatus::default() };
        TaskReport { id, node, status }
    }

    /// Heartbeats of every node, and a look at a deadline.
    fn idle(&mut self) -> Result<()> {
        self.heartbeats()?;
        self.say("heartbeats", json!({}))?;
        for _ in 0..100 {
            self.step(Input::Deadline)?;
        }
        self.say("idle step", json!({}))
    }

    fn end_one_task(&mut self) -> Result<()> {
        let task = self.state.tasks().nth(self.state.tasks().len() / 2).context("no task")?;
        let (id, node) = (task.id, task.node.context("no node")?);
        let command = Command::TaskReport(vec![self.report(id, node, TaskState::Failed)]);
        self.commit(command)?;
        self.settle()?;
        ensure!(self.placed == 1, "{} new tasks", self.placed);
        self.say("one task ended", json!({}))
    }

    fn lose_one_node(&mut self) -> Result<()> {
        let nodes = self.node_ids();
        let lost = nodes[nodes.len() / 2];
        let others = nodes.iter().filter(|id| **id != lost);
        let heard: Vec<_> = others.copied().map(SessionEvent::heard).collect();
        self.now = self.now + Span::from_millis(2_500);
        self.heard = self.now;
        for events in heard.chunks(EVENTS) {
            self.step(Input::Sessions(events))?;
        }
        self.settle()?;
        self.reset();
        self.now = self.now + Span::from_millis(600);
        self.settle()?;
        let is_down = self.state.node(&lost).is_some_and(|n| n.status.state == NodeState::Down);
        ensure!(is_down, "the node is not down");
        let moved = self.placed;
        self.say("one node down", json!({"moved": moved}))
    }
}

fn say(line: &Value) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

fn rate(count: f64, time: Duration) -> u64 {
    (count / time.as_secs_f64().max(1e-9)) as u64
}

fn millis(time: &Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Processor time of this thread.
fn cpu() -> Result<Duration> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(Duration::from(time))
}

fn cpu_since(before: Duration) -> Result<Duration> {
    Ok(cpu()?.saturating_sub(before))
}

/// Resident bytes of this process.
fn rss() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn init(node: NodeId, cluster: Id<skep_core::id::kind::Cluster>) -> Command {
    let slots = std::iter::once((node, Slot { sealed: Vec::new() })).collect();
    let key = RingKey { version: 1, created: Stamp(1), slots };
    Command::ClusterInit(Box::new(ClusterInit {
        id: cluster,
        spec: ClusterSpec::default(),
        ring: Ring { current: 1, keys: vec![key] },
        trust: Trust::default(),
        incarnation_id: [1; 16],
        node,
        node_spec: node_spec(0),
        description: description(0),
        manager: ManagerInfo { raft_id: 1, addr: "10.0.0.1:2377".into() },
        public_key: Vec::new(),
        seal_key: [0; 32],
        addr: "10.0.0.1".into(),
    }))
}

fn node(id: NodeId, n: usize) -> Node {
    Node {
        id,
        meta: Meta::default(),
        spec: node_spec(n),
        description: description(n),
        status: NodeStatus::default(),
        manager: None,
        public_key: vec![0; 91],
        seal_key: [0; 32],
        advertise: String::new(),
    }
}

fn node_spec(n: usize) -> NodeSpec {
    let labels = [("zone", n % 3), ("rack", n % 40)];
    let labels = labels.map(|(key, value)| (String::from(key), value.to_string()));
    NodeSpec { labels: labels.into(), ..NodeSpec::default() }
}

fn description(n: usize) -> NodeDescription {
    NodeDescription {
        hostname: format!("node-{n}"),
        architecture: "x86_64".into(),
        os: "linux".into(),
        nano_cpus: 128_000_000_000,
        memory_bytes: 512 << 30,
        engine_version: "0.1.0".into(),
        ..NodeDescription::default()
    }
}

/// Every fourth service runs anywhere, the others have a constraint, a reservation, or both.
fn service(n: usize, replicas: usize) -> ServiceSpec {
    let mut task = TaskSpec::default();
    task.container.image = "registry.example/app:1.0".into();
    task.container.env = vec![format!("SERVICE={n}"), "MODE=production".into()];
    let delay = Some(Span(0));
    task.restart = Some(RestartPolicy { delay, ..RestartPolicy::default() });
    if n % 2 == 1 {
        let constraints = vec![format!("node.labels.zone!={}", n % 3)];
        task.placement = Some(Placement { constraints, ..Placement::default() });
    }
    if n % 4 > 1 {
        let nano_cpus = 100_000_000 * (1 + n as u64 % 5);
        let reservations =
            Some(Resources { nano_cpus, memory_bytes: 64 << 20, ..Resources::default() });
        task.resources = Some(ResourceNeeds { reservations, limits: None });
    }
    ServiceSpec {
        name: format!("service-{n}"),
        labels: [(String::from("team"), (n % 7).to_string())].into(),
        task: Shared::new(task),
        mode: ServiceMode::Replicated { replicas: replicas as u64 },
        update: None,
        rollback: None,
        endpoint: None,
    }
}
