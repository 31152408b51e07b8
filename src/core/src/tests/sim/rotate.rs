//! Secrets that change while tasks run, on many nodes and through faults: managers that lag,
//! sessions that break, move, or speak beside their successor for a while, links to shims that lose
//! what is on its way, leaders that go. What shims are sent is what [`crate::deliver`] says.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use super::random::Random;
use crate::apply::{Change, apply};
use crate::assign;
use crate::command::{Append, Command, Decision, Outcome, Proposal};
use crate::deliver::{Order, Shim, What};
use crate::id::{MaterialId, TaskId};
use crate::model::material::Grant;
use crate::model::task::{Task, TaskState};
use crate::state::State;
use crate::testing::{self, World, author, grant, id, sealed, service_spec};
use crate::time::{Span, Stamp};

const MANAGERS: usize = 3;
/// Tasks of each service, on as many nodes, and secrets of its own.
const TASKS: usize = 5;
const SECRETS: usize = 10;
const TICK: Span = Span::from_millis(10);

/// A manager with the state as far as it has applied the log.
#[derive(Debug)]
struct Manager {
    state: State,
    applied: usize,
    stalled_until: Stamp,
}

/// A node's session on a manager.
#[derive(Debug)]
struct Session {
    number: u64,
    manager: usize,
    shims: BTreeMap<TaskId, Shim>,
    /// When the last message either way arrives: none overtakes another.
    down: Stamp,
    up: Stamp,
    /// When one that has a successor falls silent.
    ends: Option<Stamp>,
}

/// What a shim shows, by the rules of a shim.
#[derive(Debug, Default)]
struct Slots {
    held: BTreeMap<MaterialId, u64>,
    sequence: u64,
    revoked: BTreeMap<MaterialId, u64>,
    /// The latest version each slot ever showed.
    shown: BTreeMap<MaterialId, u64>,
    /// Counts its links; what was on its way on an earlier one is lost.
    link: u64,
    last: Stamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Yes,
    Late,
    Refused,
}

impl Slots {
    fn take(&mut self, order: &Order) -> Taken {
        if order.sequence <= self.sequence {
            return Taken::Late;
        }
        match &order.what {
            What::Deliver(grants) => {
                let is_old = |grant: &assign::AssignedGrant| {
                    let (id, version) = (grant.material, grant.version);
                    self.held.get(&id).is_some_and(|held| *held > version)
                        || self.revoked.get(&id).is_some_and(|up_to| *up_to >= version)
                };
                if grants.iter().any(is_old) {
                    return Taken::Refused;
                }
                for grant in grants {
                    self.held.insert(grant.material, grant.version);
                    let before = self.shown.insert(grant.material, grant.version);
                    assert!(before <= Some(grant.version), "a slot went back: {grant:?}");
                }
            }
            What::Revoke(all) => {
                for (id, up_to) in all {
                    // A later one than is revoked may be there already.
                    if self.held.get(id).is_some_and(|held| held <= up_to) {
                        self.held.remove(id);
                    }
                    let floor = self.revoked.entry(*id).or_default();
                    *floor = (*floor).max(*up_to);
                }
            }
        }
        self.sequence = order.sequence;
        Taken::Yes
    }
}

#[derive(Debug, Default)]
struct Node {
    session: Option<Session>,
    /// The one before, which has not heard of it.
    former: Option<Session>,
    slots: BTreeMap<TaskId, Slots>,
    back: Option<Stamp>,
}

#[derive(Debug)]
enum Event {
    /// An order reaches the agent.
    Down { node: usize, session: u64, task: TaskId, order: Order },
    /// An order reaches the shim.
    Shim { node: usize, link: u64, task: TaskId, order: Order },
    /// What a shim says reaches the manager; anew if nothing it was sent before counts.
    Up { node: usize, session: u64, task: TaskId, held: Held, sequence: u64, anew: bool },
}

type Held = Vec<(MaterialId, u64)>;

struct Rotation {
    random: Random,
    world: World,
    log: Vec<Proposal>,
    managers: Vec<Manager>,
    nodes: Vec<Node>,
    holders: BTreeMap<MaterialId, Vec<(usize, TaskId)>>,
    events: BTreeMap<(Stamp, u64), Event>,
    count: u64,
    requests: u64,
    /// Sets that were proposed and not answered.
    waiting: VecDeque<Proposal>,
    leaderless_until: Stamp,
    has_faults: bool,
    passed_over: u64,
    refused: u64,
}

impl Rotation {
    /// Every service has its secrets, one of them pinned, and tasks next to one another.
    fn new(seed: u64, nodes: usize, secrets: usize) -> Self {
        let mut world = World::new();
        let mut holders: BTreeMap<MaterialId, Vec<(usize, TaskId)>> = BTreeMap::new();
        let mut all: Vec<Node> = (0..nodes).map(|_| Node::default()).collect();
        for service in 0..secrets / SECRETS {
            let mut spec = service_spec(&format!("web{service}"), TASKS as u64);
            let mut ids: Vec<MaterialId> = Vec::new();
            for n in 0..SECRETS {
                let name = format!("s{service}-{n}");
                let secret = world.secret(&name);
                let pin = (n == 0).then_some(1);
                ids.push(secret);
                let grants = &mut spec.task.make_mut().container.secrets;
                grants.push(Grant { pin, ..grant(secret, &name) });
            }
            let service_id = world.create_service(2_000_000 + service as u64, spec);
            let of = world.state.service(&service_id).unwrap().clone();
            for n in 0..TASKS {
                let number = (service * TASKS + n) as u64;
                let task = Task {
                    service: service_id,
                    spec: of.spec.task.clone(),
                    slot: n as u64 + 1,
                    node: Some(world.node),
                    ..testing::task(3_000_000 + number)
                };
                let (node, task_id) = ((service + n) % nodes, task.id);
                world.done(Command::Control(vec![Decision::TaskCreate(task)]));
                world.report(task_id, world.node, TaskState::Running);
                for secret in &ids {
                    holders.entry(*secret).or_default().push((node, task_id));
                }
                all[node].slots.insert(task_id, Slots::default());
            }
        }
        let manager =
            |_| Manager { state: world.state.clone(), applied: 0, stalled_until: Stamp(0) };
        let managers = (0..MANAGERS).map(manager).collect();
        let leaderless_until = world.now;
        let mut rotation = Self {
            random: Random::new(seed),
            world,
            log: Vec::new(),
            managers,
            nodes: all,
            holders,
            events: BTreeMap::new(),
            count: 0,
            requests: 5_000_000,
            waiting: VecDeque::new(),
            leaderless_until,
            has_faults: true,
            passed_over: 0,
            refused: 0,
        };
        (0..nodes).for_each(|node| rotation.connect(node));
        rotation
    }

    fn put(&mut self, at: Stamp, event: Event) {
        self.count += 1;
        self.events.insert((at, self.count), event);
    }

    fn delay(&mut self) -> Span {
        match self.random.below(30) {
            0 if self.has_faults => self.random.span(100, 2_000),
            _ => self.random.span(0, 5),
        }
    }

    /// A node opens a session. Its manager makes sure first that it has applied all there is.
    fn connect(&mut self, node: usize) {
        let manager = self.random.below(MANAGERS as u64) as usize;
        self.catch_up(manager, usize::MAX);
        self.count += 1;
        let (number, now) = (self.count, self.world.now);
        let shims = BTreeMap::new();
        let session = Session { number, manager, shims, down: now, up: now, ends: None };
        self.nodes[node].session = Some(session);
        let tasks: Vec<TaskId> = self.nodes[node].slots.keys().copied().collect();
        tasks.into_iter().for_each(|task| self.say(node, task, true));
    }

    /// A shim says what it holds, to the session there is.
    fn say(&mut self, node: usize, task: TaskId, anew: bool) {
        let at = self.world.now + self.delay();
        let Node { session, slots, .. } = &mut self.nodes[node];
        let (Some(session), Some(slots)) = (session, slots.get(&task)) else { return };
        session.up = session.up.max(at);
        let held = slots.held.iter().map(|(id, version)| (*id, *version)).collect();
        let (at, session, sequence) = (session.up, session.number, slots.sequence);
        self.put(at, Event::Up { node, session, task, held, sequence, anew });
    }

    fn sessions(&mut self, node: usize) -> impl Iterator<Item = &mut Session> {
        let Node { session, former, .. } = &mut self.nodes[node];
        session.iter_mut().chain(former)
    }

    /// Sends a shim what its session's manager finds due.
    fn ask(&mut self, node: usize, number: u64, task: TaskId) {
        let delays = [self.delay(), self.delay()];
        let now = self.world.now;
        let Node { session, former, .. } = &mut self.nodes[node];
        let found = session.iter_mut().chain(former).find(|session| session.number == number);
        let Some(session) = found else { return };
        let state = &self.managers[session.manager].state;
        let (Some(shim), Some(of)) = (session.shims.get_mut(&task), state.task(&task)) else {
            return;
        };
        let mut orders = Vec::new();
        for delay in delays {
            let Some(order) = shim.next(state, of) else { break };
            if let What::Deliver(grants) = &order.what {
                let has =
                    |g: &assign::AssignedGrant| state.payload(&g.material, g.version).is_some();
                assert!(grants.iter().all(has), "no payload for {grants:?}");
            }
            shim.sent(&order);
            session.down = session.down.max(now + delay);
            orders.push((session.down, order));
        }
        for (at, order) in orders {
            self.put(at, Event::Down { node, session: number, task, order });
        }
    }

    /// A manager applies the log, at most up to `end`, and looks at what that concerns.
    fn catch_up(&mut self, index: usize, end: usize) {
        let manager = &mut self.managers[index];
        let mut changes = Vec::new();
        while let Some(proposal) = self.log.get(manager.applied).filter(|_| manager.applied < end) {
            apply(&mut manager.state, proposal, &mut changes);
            manager.applied += 1;
        }
        let mut due = BTreeSet::new();
        for change in changes {
            if let Change::Material(id) = change {
                due.extend(self.holders.get(&id).into_iter().flatten().copied());
            }
        }
        for (node, task) in due {
            let own = self.sessions(node).filter(|session| session.manager == index);
            let numbers: Vec<u64> = own.map(|session| session.number).collect();
            numbers.into_iter().for_each(|number| self.ask(node, number, task));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Down { node, session, task, order } => {
                if self.sessions(node).all(|open| open.number != session) {
                    return;
                }
                let at = self.world.now + self.random.span(0, 3);
                let Some(slots) = self.nodes[node].slots.get_mut(&task) else { return };
                slots.last = slots.last.max(at);
                let (at, link) = (slots.last, slots.link);
                self.put(at, Event::Shim { node, link, task, order });
            }
            Event::Shim { node, link, task, order } => {
                let Some(slots) = self.nodes[node].slots.get_mut(&task) else { return };
                if slots.link != link {
                    return;
                }
                let taken = slots.take(&order);
                self.passed_over += u64::from(taken == Taken::Late);
                self.refused += u64::from(taken == Taken::Refused);
                self.say(node, task, taken == Taken::Refused);
            }
            Event::Up { node, session, task, held, sequence, anew } => {
                let open = self.sessions(node).find(|open| open.number == session);
                let Some(open) = open else { return };
                match open.shims.get_mut(&task) {
                    Some(shim) if anew => shim.speaks_up(held, sequence),
                    Some(shim) => shim.answers(held, sequence),
                    None => {
                        open.shims.insert(task, Shim::new(held, sequence));
                    }
                }
                self.ask(node, session, task);
            }
        }
    }

    fn tick(&mut self) {
        self.world.now = self.world.now + TICK;
        let now = self.world.now;
        if now >= self.leaderless_until {
            while let Some(proposal) = self.waiting.pop_front() {
                self.commit(proposal);
            }
        }
        for index in 0..MANAGERS {
            if self.managers[index].stalled_until > now {
                continue;
            }
            let some = self.managers[index].applied + 1 + self.random.below(40) as usize;
            self.catch_up(index, if self.has_faults { some } else { usize::MAX });
        }
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= now) {
            let event = entry.remove();
            self.happen(event);
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].former.take_if(|session| session.ends.is_some_and(|at| at <= now));
            if self.nodes[node].back.take_if(|at| *at <= now).is_some() {
                self.connect(node);
            }
        }
    }

    /// What a leader takes goes into the log; a repeated request changes nothing.
    fn commit(&mut self, proposal: Proposal) {
        let proposal = Proposal { stamp: self.world.now, ..proposal };
        let outcome = apply(&mut self.world.state, &proposal, &mut Vec::new());
        let is_known = matches!(outcome, Outcome::Done(_) | Outcome::Rejected(_));
        assert!(is_known, "{outcome:?}");
        self.log.push(proposal);
    }

    fn propose(&mut self, command: Command) {
        self.requests += 1;
        self.waiting.push_back(Proposal::new(id(self.requests), self.world.now, command));
    }

    fn rotate(&mut self, set: &[MaterialId]) {
        let item = |id: &MaterialId| {
            let number = self.world.state.material(id).unwrap().last_version + 1;
            Append { id: *id, number, size: 4, payload: sealed(1, 4), of: None }
        };
        let items = set.iter().map(item).collect();
        self.propose(Command::MaterialAppend { items, by: author(), keep: Some(2) });
    }

    fn go_wrong(&mut self) {
        let node = self.random.below(self.nodes.len() as u64) as usize;
        let wait = self.random.span(0, 1_500);
        let now = self.world.now;
        match self.random.below(20) {
            0..=6 => {
                self.nodes[node].session = None;
                self.nodes[node].back = Some(now + wait);
            }
            7..=13 => {
                // The agent dials the next before it drops the last.
                let old = self.nodes[node].session.take();
                self.nodes[node].former = old.map(|old| Session { ends: Some(now + wait), ..old });
                self.connect(node);
            }
            14..=16 => {
                let tasks: Vec<TaskId> = self.nodes[node].slots.keys().copied().collect();
                let Some(task) = self.random.pick(&tasks) else { return };
                if let Some(slots) = self.nodes[node].slots.get_mut(&task) {
                    slots.link += 1;
                }
                self.say(node, task, true);
            }
            17 | 18 => {
                let index = self.random.below(MANAGERS as u64) as usize;
                self.managers[index].stalled_until = now + wait;
            }
            _ => {
                self.leaderless_until = now + wait;
                // The old leader had some of it committed, and nobody was told.
                for proposal in self.waiting.clone() {
                    if self.random.once_in(2) {
                        self.commit(proposal);
                    }
                }
            }
        }
    }

    /// Every slot shows what the state says.
    fn assert_current(&self) {
        for ((node, task), id) in
            self.holders.iter().flat_map(|(id, all)| all.iter().map(move |holder| (*holder, id)))
        {
            let state = &self.world.state;
            let of = state.task(&task).unwrap();
            let wanted = assign::grants(state, of).into_iter().find(|grant| grant.material == *id);
            let held = self.nodes[node].slots[&task].held.get(id).copied();
            assert_eq!(held, wanted.map(|grant| grant.version), "{id} in {task}");
        }
    }
}

fn play(seed: u64, nodes: usize, secrets: usize) {
    let mut rotation = Rotation::new(seed, nodes, secrets);
    let mut left: Vec<MaterialId> = rotation.holders.keys().copied().collect();
    for at in (1..left.len()).rev() {
        left.swap(at, rotation.random.below(at as u64 + 1) as usize);
    }
    let again = left.clone();
    let mut sets = VecDeque::from_iter(left.into_iter().chain(again));
    while !sets.is_empty() || !rotation.waiting.is_empty() {
        for _ in 0..1 + rotation.random.below(3) {
            let many = (1 + rotation.random.below(10) as usize).min(sets.len());
            if many == 0 {
                break;
            }
            let set: BTreeSet<MaterialId> = sets.drain(..many).collect();
            rotation.rotate(&set.into_iter().collect::<Vec<_>>());
        }
        let all: Vec<MaterialId> = match rotation.random.once_in(10) {
            true => rotation.holders.keys().copied().collect(),
            false => Vec::new(),
        };
        if let Some(id) = rotation.random.pick(&all) {
            rotation.propose(Command::MaterialRevoke {
                id,
                service: None,
                task: None,
                by: author(),
            });
        }
        for _ in 0..1 + nodes / 200 {
            rotation.go_wrong();
        }
        rotation.tick();
        if sets.is_empty() && rotation.waiting.is_empty() {
            // Sets that named a version somebody else had taken were refused as a whole.
            let is_old = |id: &&MaterialId| {
                rotation.world.state.material(id).is_some_and(|m| m.last_version == 1)
            };
            sets.extend(rotation.holders.keys().filter(is_old));
        }
    }
    rotation.has_faults = false;
    let end = rotation.world.now + Span::from_secs(30);
    while !rotation.waiting.is_empty()
        || !rotation.events.is_empty()
        || rotation.nodes.iter().any(|node| node.back.is_some() || node.former.is_some())
        || rotation.managers.iter().any(|manager| manager.applied < rotation.log.len())
    {
        rotation.tick();
        assert!(rotation.world.now < end, "seed {seed}: the swarm finds no rest");
    }
    rotation.assert_current();
    let state = &rotation.world.state;
    let rotated = state.materials().filter(|material| material.last_version > 1).count();
    assert_eq!(rotated, secrets);
    std::println!(
        "seed {seed}: {rotated} secrets on {nodes} nodes, {} entries, {} orders passed over, {} \
         refused",
        rotation.log.len(),
        rotation.passed_over,
        rotation.refused
    );
    assert!(rotation.passed_over > 0, "the faults were none");
}

#[test]
fn no_slot_goes_back_and_all_end_on_the_latest() {
    (0..8).for_each(|seed| play(seed, 50, 500));
}

#[test]
fn ten_thousand_secrets_rotate_on_a_thousand_nodes() {
    play(1, 1_000, 10_000);
}
