//! A swarm with its faults: a state, leaders that come and go, agents, and a network between
//! them that loses, delays, repeats and reorders. Everything follows from one seed.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use super::agent::{Agent, Outbox};
use super::check::Checker;
use super::random::Random;
use crate::apply::Change;
use crate::assign::Assigner;
use crate::command::{Command, NodeJoin, Outcome, TaskReport};
use crate::control::{Control, Input, SessionEvent};
use crate::id::{NodeId, TaskId};
use crate::model::node::NodeSpec;
use crate::testing::{self, World};
use crate::time::{Span, Stamp};

/// Time from one look at the swarm to the next.
const TICK: Span = Span::from_millis(100);
/// Steps at one moment after which a loop that finds no rest is broken.
const RESTLESS: usize = 2_000;

/// Something on its way to the managers.
#[derive(Debug, Clone)]
pub(super) enum Message {
    Session(SessionEvent),
    Reports(Vec<TaskReport>),
}

#[derive(Debug)]
pub(super) struct Swarm {
    pub(super) seed: u64,
    pub(super) random: Random,
    pub(super) world: World,
    pub(super) agents: BTreeMap<NodeId, Agent>,
    pub(super) checker: Checker,
    /// Whether things go wrong.
    pub(super) has_faults: bool,
    /// Ticks so far.
    pub(super) step: u64,
    pub(super) ids: u64,
    control: Control,
    leaders: u8,
    leaderless_until: Stamp,
    unseen: VecDeque<Vec<Change>>,
    sessions: Vec<SessionEvent>,
    /// Proposed by the leader, which waits for these.
    flight: VecDeque<(Stamp, Command)>,
    /// Proposed by leaders of the past.
    late: Vec<(Stamp, Command)>,
    wire: BTreeMap<(Stamp, u64), Message>,
    sent: u64,
    work: BTreeSet<(Stamp, NodeId, TaskId)>,
    /// Nodes that may have something to be told.
    affected: BTreeSet<NodeId>,
    beat: Stamp,
}

impl Swarm {
    pub(super) fn new(seed: u64, nodes: u64) -> Self {
        let world = World::new();
        let now = world.now;
        let mut swarm = Self {
            seed,
            random: Random::new(seed),
            world,
            agents: BTreeMap::new(),
            checker: Checker::default(),
            has_faults: true,
            step: 0,
            ids: 10_000,
            control: Control::new([1; 32]),
            leaders: 1,
            leaderless_until: now,
            unseen: VecDeque::new(),
            sessions: Vec::new(),
            flight: VecDeque::new(),
            late: Vec::new(),
            wire: BTreeMap::new(),
            sent: 0,
            work: BTreeSet::new(),
            affected: BTreeSet::new(),
            beat: now,
        };
        let first = swarm.world.node;
        swarm.agents.insert(first, Agent::new(first));
        (1..nodes).for_each(|_| swarm.add_node());
        swarm.agents.keys().copied().collect::<Vec<_>>().into_iter().for_each(|n| swarm.connect(n));
        swarm
    }

    pub(super) fn fresh<K>(&mut self) -> crate::id::Id<K> {
        self.ids += 1;
        testing::id(self.ids)
    }

    pub(super) fn add_node(&mut self) {
        let id: NodeId = self.fresh();
        let zone = String::from(["a", "b", "c"][self.ids as usize % 3]);
        let labels = [(String::from("zone"), zone)].into();
        let spec = NodeSpec { labels, ..NodeSpec::default() };
        let join = NodeJoin { spec, ..testing::joiner(self.ids, "node") };
        assert_eq!(self.commit(Command::NodeJoin(Box::new(join))), Outcome::Done(1));
        self.agents.insert(id, Agent::new(id));
    }

    /// Lets a node open a session: it is told everything anew.
    pub(super) fn connect(&mut self, node: NodeId) {
        let Some(agent) = self.agents.get_mut(&node).filter(|agent| agent.is_on) else { return };
        agent.session = Some(Assigner::new(node));
        self.affected.insert(node);
        let description = Box::new(testing::description("node"));
        let addr = String::from("10.0.0.9");
        self.send(Message::Session(SessionEvent::Up {
            node,
            addr,
            advertise: String::new(),
            description,
        }));
    }

    /// Sends something to the managers, with all that can happen on the way.
    pub(super) fn send(&mut self, message: Message) {
        let copies = if self.has_faults && self.random.once_in(20) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = match self.random.below(40) {
                0 if self.has_faults => self.random.span(500, 5_000),
                _ => self.random.span(1, 90),
            };
            self.sent += 1;
            self.wire.insert((self.world.now + delay, self.sent), message.clone());
        }
    }

    /// Commits a command, checks what it did and lets those know who want to.
    pub(super) fn commit(&mut self, command: Command) -> Outcome {
        let outcome = self.world.run(command);
        self.world.log.clear();
        let changes = core::mem::take(&mut self.world.changes);
        self.note(changes);
        outcome
    }

    pub(super) fn note(&mut self, changes: Vec<Change>) {
        let state = &self.world.state;
        self.checker.after(state, &changes);
        for change in &changes {
            match change {
                Change::Task(id) => match state.task(id) {
                    Some(task) => self.affected.extend(task.node),
                    None => {
                        let held = self.agents.values().filter(|a| a.held.contains_key(id));
                        self.affected.extend(held.map(|agent| agent.node));
                    }
                },
                Change::Material(_) => self.affected.extend(self.agents.keys()),
                _ => {}
            }
        }
        if !changes.is_empty() {
            self.unseen.push_back(changes);
        }
    }

    pub(super) fn lose_messages_of(&mut self, node: NodeId) {
        self.wire.retain(|_, message| match message {
            Message::Reports(reports) => reports.iter().all(|report| report.node != node),
            Message::Session(
                SessionEvent::Up { node: id, .. }
                | SessionEvent::Heard { node: id, .. }
                | SessionEvent::Closed(id),
            ) => *id != node,
        });
    }

    /// Another manager leads, or the same one anew. What the old one proposed is lost or late.
    pub(super) fn elect(&mut self, gap: Span) {
        self.leaders = self.leaders.wrapping_add(1);
        let mut seed = [self.leaders; 32];
        seed[..8].copy_from_slice(&self.step.to_be_bytes());
        self.control = Control::new(seed);
        self.leaderless_until = self.world.now + gap;
        self.unseen.clear();
        self.sessions.clear();
        for (_, command) in self.flight.drain(..) {
            if self.random.once_in(2) {
                let at = self.world.now + self.random.span(0, 5_000);
                self.late.push((at, command));
            }
        }
    }

    /// Lets time pass by one tick.
    pub(super) fn tick(&mut self) {
        self.step += 1;
        self.world.now = self.world.now + TICK;
        let now = self.world.now;
        self.heartbeats(now);
        let mut out = Outbox::default();
        while let Some((at, node, task)) = self.work.first().copied().filter(|(at, ..)| *at <= now)
        {
            self.work.remove(&(at, node, task));
            if let Some(agent) = self.agents.get_mut(&node) {
                agent.happen(task, now, &mut self.random, &mut out);
            }
        }
        self.post(out);
        let (due, late): (Vec<_>, _) = self.late.drain(..).partition(|(at, _)| *at <= now);
        self.late = late;
        for (_, command) in due {
            self.commit(command);
        }
        self.deliver(now);
        self.lead();
        self.dispatch(now);
    }

    fn heartbeats(&mut self, now: Stamp) {
        if now.since(self.beat) < Span::from_secs(1) {
            return;
        }
        self.beat = now;
        let open = self.agents.values().filter(|agent| agent.is_on && agent.session.is_some());
        let heard: Vec<_> = open.map(|agent| SessionEvent::heard(agent.node)).collect();
        for event in heard {
            self.send(Message::Session(event));
        }
    }

    fn deliver(&mut self, now: Stamp) {
        let mut reports = Vec::new();
        while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= now) {
            match entry.remove() {
                Message::Session(event) => self.sessions.push(event),
                Message::Reports(some) => reports.extend(some),
            }
        }
        if !reports.is_empty() {
            self.commit(Command::TaskReport(reports));
        }
    }

    /// Sends what agents have to say, as far as they have a session.
    pub(super) fn post(&mut self, out: Outbox) {
        self.work.extend(out.due);
        let mut by_node: BTreeMap<NodeId, Vec<TaskReport>> = BTreeMap::new();
        for report in out.reports {
            by_node.entry(report.node).or_default().push(report);
        }
        for (node, reports) in by_node {
            if self.agents.get(&node).is_some_and(|agent| agent.session.is_some()) {
                self.send(Message::Reports(reports));
            }
        }
    }

    /// What the leader does at this moment.
    fn lead(&mut self) {
        for _ in 0..RESTLESS {
            let now = self.world.now;
            if now < self.leaderless_until {
                return;
            }
            if let Some((at, _)) = self.flight.front() {
                if *at > now {
                    return;
                }
                let Some((_, command)) = self.flight.pop_front() else { return };
                self.commit(command);
                continue;
            }
            let (state, control) = (&self.world.state, &mut self.control);
            let commands = if let Some(changes) = self.unseen.pop_front() {
                control.step(state, Input::Changes(&changes), now)
            } else if !self.sessions.is_empty() {
                let events = core::mem::take(&mut self.sessions);
                control.step(state, Input::Sessions(&events), now)
            } else if control.deadline().is_some_and(|at| at <= now) {
                control.step(state, Input::Deadline, now)
            } else {
                return;
            };
            for command in commands {
                Checker::proposed(&command);
                let wait = match self.random.below(50) {
                    _ if !self.has_faults => Span(0),
                    0 => self.random.span(500, 3_000),
                    1..=9 => self.random.span(1, 300),
                    _ => Span(0),
                };
                self.flight.push_back((now + wait, command));
            }
        }
        panic!("the loop finds no rest");
    }

    /// Tells nodes with a session what is new for them.
    fn dispatch(&mut self, now: Stamp) {
        let mut out = Outbox::default();
        for node in core::mem::take(&mut self.affected) {
            let Some(agent) = self.agents.get_mut(&node) else { continue };
            let Some(session) = agent.session.as_mut() else { continue };
            if let Some(diff) = session.diff(&self.world.state) {
                agent.take(diff, now, &mut self.random, &mut out);
            }
        }
        self.post(out);
    }

    /// Whether the loop waits for nothing but the silence of nodes, and nothing is on its way.
    pub(super) fn is_quiet(&self) -> bool {
        let reports = self.wire.values().any(|message| matches!(message, Message::Reports(_)));
        let idle = self.flight.is_empty() && self.late.is_empty() && self.unseen.is_empty();
        idle && !reports && self.work.is_empty()
    }

    /// When the loop looks again by itself.
    pub(super) fn deadline(&self) -> Option<Stamp> {
        self.control.deadline()
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, step) = (self.seed, self.step);
            std::eprintln!(
                "seed {seed} failed at step {step}: SKEP_SIM_SEED={seed} cargo test -p skep-core \
                 a_large_swarm -- --nocapture"
            );
        }
    }
}
