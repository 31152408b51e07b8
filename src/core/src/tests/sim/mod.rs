//! A swarm in memory: the state, the control loop that leads it, and agents that do what they
//! are told. Every step of the loop is committed before the next.
//!
//! Below it is the large swarm, where things go wrong: `swarm` with its leaders and its network,
//! `agent` on each node, `users` and faults, `check` after every commit, and the `runs`.

mod agent;
mod check;
mod random;
mod rotate;
mod runs;
mod swarm;
mod users;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use crate::command::{Command, Decision, NodeReport};
use crate::control::{Control, Input, SessionEvent};
use crate::id::{NodeId, TaskId};
use crate::limits;
use crate::model::node::{NodeDescription, NodeState};
use crate::model::task::{Task, TaskState};
use crate::testing::{self, World};
use crate::time::{Span, Stamp};

pub(crate) struct Sim {
    pub(crate) world: World,
    control: Control,
    leaders: u8,
    /// Where in the world's changes the loop is.
    seen: usize,
    /// What the loop proposed, in order.
    pub(crate) proposed: Vec<Command>,
}

/// Time between heartbeats of a node.
const HEARTBEAT: Span = Span::from_secs(1);
/// Steps in a row after which a loop that finds no rest is broken.
const RESTLESS: usize = 10_000;

impl Sim {
    pub(crate) fn new() -> Self {
        let (world, control) = (World::new(), Control::new([1; 32]));
        let mut sim = Self { world, control, leaders: 1, seen: 0, proposed: Vec::new() };
        sim.settle();
        sim
    }

    /// Adds a node that has no session yet.
    pub(crate) fn add_node(&mut self, n: u64, hostname: &str) -> NodeId {
        self.run(Command::NodeJoin(Box::new(testing::joiner(n, hostname))));
        testing::id(n)
    }

    pub(crate) fn node_up(&mut self, node: NodeId, description: NodeDescription) {
        let (addr, description) = (String::from("10.0.0.9"), Box::new(description));
        self.event(SessionEvent::Up { node, addr, advertise: String::new(), description });
    }

    pub(crate) fn event(&mut self, event: SessionEvent) {
        let commands =
            self.control.step(&self.world.state, Input::Sessions(&[event]), self.world.now);
        self.commit(commands);
        self.settle();
    }

    /// Runs a user's command and lets the loop do what follows from it.
    pub(crate) fn run(&mut self, command: Command) {
        self.world.done(command);
        self.settle();
    }

    /// Puts a new leader in place of the old one.
    pub(crate) fn elect(&mut self) {
        self.leaders += 1;
        self.control = Control::new([self.leaders; 32]);
    }

    fn commit(&mut self, commands: Vec<Command>) {
        for command in commands {
            if let Command::Control(decisions) = &command {
                assert!(decisions.len() <= 2 * limits::CONTROL_BATCH);
            }
            self.world.done(command.clone());
            self.proposed.push(command);
        }
    }

    /// Steps until nothing is left to do at this moment.
    pub(crate) fn settle(&mut self) {
        for _ in 0..RESTLESS {
            let changes = self.world.changes.split_off(self.seen);
            self.world.changes.clear();
            self.seen = 0;
            let is_due = self.control.deadline().is_some_and(|at| at <= self.world.now);
            if changes.is_empty() && !is_due {
                return;
            }
            let input = if changes.is_empty() { Input::Deadline } else { Input::Changes(&changes) };
            let commands = self.control.step(&self.world.state, input, self.world.now);
            self.commit(commands);
        }
        panic!("the loop finds no rest: {:?}", self.proposed.last());
    }

    /// Moves the clock to `until`, stepping at each deadline on the way. Nodes that are ready
    /// keep sending heartbeats.
    pub(crate) fn sleep_until(&mut self, until: Stamp, mut between: impl FnMut(&mut Self)) {
        loop {
            self.heartbeats();
            let beat = until.min(self.world.now + HEARTBEAT);
            let next = self.control.deadline().map_or(beat, |at| at.min(beat));
            self.world.now = self.world.now.max(next);
            self.settle();
            between(self);
            if next >= until {
                return;
            }
        }
    }

    /// What the sessions of ready nodes say all the time.
    pub(crate) fn heartbeats(&mut self) {
        let nodes = self.world.state.nodes();
        let ready = nodes.filter(|node| node.status.state == NodeState::Ready);
        let events: Vec<_> = ready.map(|node| SessionEvent::heard(node.id)).collect();
        let input = Input::Sessions(&events);
        let commands = self.control.step(&self.world.state, input, self.world.now);
        self.commit(commands);
    }

    /// Tasks of ready nodes that are not where they should be, with where they go now.
    pub(crate) fn moves(&self) -> Vec<(TaskId, TaskState)> {
        let tasks = self.world.state.tasks().filter(|task| self.is_reachable(task));
        let target = |task: &Task| match task.desired {
            TaskState::Shutdown | TaskState::Remove => TaskState::Shutdown,
            desired => desired,
        };
        tasks
            .filter(|task| !task.status.state.is_terminal() && task.status.state < target(task))
            .map(|task| (task.id, target(task)))
            .collect()
    }

    fn is_reachable(&self, task: &Task) -> bool {
        let node = task.node.and_then(|id| self.world.state.node(&id));
        node.is_some_and(|node| node.status.state == NodeState::Ready)
    }

    pub(crate) fn report(&mut self, id: TaskId, state: TaskState) {
        let node = self.world.state.task(&id).and_then(|task| task.node);
        if let Some(node) = node {
            self.world.report(id, node, state);
            self.settle();
        }
    }

    /// Lets every agent take its tasks where they should be, until none has anything to do.
    pub(crate) fn agents(&mut self) {
        for _ in 0..RESTLESS {
            let moves = self.moves();
            if moves.is_empty() {
                return;
            }
            for (id, state) in moves {
                let task = self.world.state.task(&id);
                let is_still = task.is_some_and(|task| !task.status.state.is_terminal());
                if is_still {
                    self.report(id, state);
                }
            }
        }
        panic!("the agents find no rest");
    }

    /// Every decision of the loop since it was asked last, with what it said of nodes.
    pub(crate) fn take_proposed(&mut self) -> (Vec<Decision>, Vec<NodeReport>) {
        let (mut decisions, mut reports) = (Vec::new(), Vec::new());
        for command in self.proposed.drain(..) {
            match command {
                Command::Control(all) => decisions.extend(all),
                Command::NodeReport(all) => reports.extend(all),
                other => panic!("the loop proposed {other:?}"),
            }
        }
        (decisions, reports)
    }
}
