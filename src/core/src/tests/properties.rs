//! Properties of a swarm under random use, failures and changes of leader.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::sim::Sim;
use crate::apply::apply;
use crate::assign::{AssignedGrant, Assigner};
use crate::codec;
use crate::command::{Command, Outcome, Proposal};
use crate::control::{Control, Input, SessionEvent, is_dirty};
use crate::id::{NodeId, TaskId};
use crate::limits;
use crate::model::material::{Grant, MaterialKind};
use crate::model::node::{Availability, NodeSpec, NodeState};
use crate::model::service::{
    FailureAction, ServiceMode, ServiceSpec, UpdateConfig, UpdateOrder, UpdateState,
};
use crate::model::task::{RestartPolicy, TaskState};
use crate::snapshot;
use crate::state::State;
use crate::testing::{self, description, grant, id, material_spec, sealed, service_spec};
use crate::time::{Span, Stamp};

/// Something that happens. Numbers pick among what there is.
#[derive(Debug, Clone)]
enum Op {
    Secret(u8),
    Append(u8),
    Unsecret(u8),
    Create {
        name: u8,
        replicas: u8,
        grants: u8,
        order: bool,
        action: u8,
    },
    Scale {
        name: u8,
        replicas: u8,
    },
    Change {
        name: u8,
        grants: u8,
    },
    Rollback(u8),
    Remove(u8),
    /// A task moves one state on, as it should.
    Work(u8),
    /// A task ends by itself.
    Fail(u8),
    Drain(u8),
    Activate(u8),
    Silence(u8),
    Return(u8),
    Wait(u8),
    Elect,
    /// Decisions of the past are applied once more.
    Stale(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u8>;
    prop_oneof![
        2 => n().prop_map(Op::Secret),
        1 => n().prop_map(Op::Append),
        1 => n().prop_map(Op::Unsecret),
        3 => (n(), 0..6u8, n(), any::<bool>(), n()).prop_map(
            |(name, replicas, grants, order, action)| Op::Create {
                name,
                replicas,
                grants,
                order,
                action
            }
        ),
        2 => (n(), 0..9u8).prop_map(|(name, replicas)| Op::Scale { name, replicas }),
        3 => (n(), n()).prop_map(|(name, grants)| Op::Change { name, grants }),
        1 => n().prop_map(Op::Rollback),
        1 => n().prop_map(Op::Remove),
        12 => n().prop_map(Op::Work),
        4 => n().prop_map(Op::Fail),
        1 => n().prop_map(Op::Drain),
        1 => n().prop_map(Op::Activate),
        1 => n().prop_map(Op::Silence),
        1 => n().prop_map(Op::Return),
        2 => n().prop_map(Op::Wait),
        1 => Just(Op::Elect),
        1 => n().prop_map(Op::Stale),
    ]
}

const NODES: u64 = 3;

/// A swarm with its nodes and what each was told so far.
struct Play {
    sim: Sim,
    told: BTreeMap<NodeId, (Assigner, BTreeMap<TaskId, Vec<AssignedGrant>>)>,
    ids: u64,
}

impl Play {
    fn new() -> Self {
        let mut sim = Sim::new();
        let mut told = BTreeMap::new();
        for n in 1..=NODES {
            let node = if n == 1 { sim.world.node } else { sim.add_node(n, "more") };
            sim.node_up(node, description("more"));
            told.insert(node, (Assigner::new(node), BTreeMap::new()));
        }
        Self { sim, told, ids: 500 }
    }

    fn fresh<K>(&mut self) -> crate::id::Id<K> {
        self.ids += 1;
        id(self.ids)
    }

    /// Runs a command that may be refused.
    fn try_run(&mut self, command: Command) {
        self.sim.world.run(command);
        self.sim.settle();
    }

    fn grants(&self, bits: u8) -> Vec<Grant> {
        let all = self.sim.world.state.materials().enumerate();
        let picked = all.filter(|(i, _)| bits >> (i % 8) & 1 == 1).take(limits::GRANTS);
        picked.map(|(_, material)| grant(material.id, &material.spec.name)).collect()
    }

    fn change(&mut self, pick: u8, change: impl FnOnce(&mut ServiceSpec)) {
        let Some(service) = nth(self.sim.world.state.services(), pick).cloned() else { return };
        let mut spec = ServiceSpec::clone(&service.spec);
        change(&mut spec);
        let (id, version) = (service.id, service.meta.version);
        self.try_run(Command::ServiceUpdate { id, version, spec });
    }

    fn set_availability(&mut self, pick: u8, availability: Availability) {
        let Some(node) = nth(self.sim.world.state.nodes(), pick).cloned() else { return };
        let spec = NodeSpec { availability, ..node.spec.clone() };
        self.try_run(Command::NodeUpdate { id: node.id, version: node.meta.version, spec });
    }

    fn spec(&self, name: u8, replicas: u8, grants: u8, order: bool, action: u8) -> ServiceSpec {
        let mut spec = service_spec(&format!("web{}", name % 3), replicas.into());
        let order = if order { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        let failure_action = match action % 3 {
            0 => FailureAction::Pause,
            1 => FailureAction::Continue,
            _ => FailureAction::Rollback,
        };
        let parallelism = u64::from(action % 4);
        let config = UpdateConfig { order, failure_action, parallelism, ..UpdateConfig::default() };
        spec.update = Some(config);
        let task = spec.task.make_mut();
        task.container.secrets = self.grants(grants);
        let delay = Some(Span::from_secs(u64::from(action % 5)));
        task.restart = Some(RestartPolicy { delay, ..RestartPolicy::default() });
        spec
    }

    fn do_op(&mut self, op: &Op) {
        match *op {
            Op::Secret(pick) => {
                let command = Command::MaterialCreate {
                    id: self.fresh(),
                    kind: MaterialKind::Secret,
                    spec: material_spec(&format!("s{}", pick % 6)),
                    size: 3,
                    payload: sealed(1, 3),
                    by: testing::author(),
                };
                self.try_run(command);
            }
            Op::Append(pick) => {
                let Some(material) = nth(self.sim.world.state.materials(), pick) else { return };
                let (id, number) = (material.id, material.last_version + 1);
                self.try_run(testing::append(id, number, sealed(1, 4)));
            }
            Op::Unsecret(pick) => {
                let Some(material) = nth(self.sim.world.state.materials(), pick) else { return };
                let id = material.id;
                self.try_run(Command::MaterialRemove { id });
            }
            Op::Create { name, replicas, grants, order, action } => {
                let spec = self.spec(name, replicas, grants, order, action);
                let id = self.fresh();
                self.try_run(Command::ServiceCreate { id, spec });
            }
            Op::Scale { name, replicas } => self.change(name, |spec| {
                spec.mode = ServiceMode::Replicated { replicas: replicas.into() };
            }),
            Op::Change { name, grants } => {
                let grants = self.grants(grants);
                self.change(name, |spec| {
                    let task = spec.task.make_mut();
                    task.force_update += u64::from(task.container.secrets == grants);
                    task.container.secrets = grants;
                });
            }
            Op::Rollback(pick) => {
                let Some(service) = nth(self.sim.world.state.services(), pick) else { return };
                let (id, version) = (service.id, service.meta.version);
                self.try_run(Command::ServiceRollback { id, version });
            }
            Op::Remove(pick) => {
                let Some(service) = nth(self.sim.world.state.services(), pick) else { return };
                let id = service.id;
                self.try_run(Command::ServiceRemove { id });
            }
            Op::Drain(pick) => self.set_availability(pick, Availability::Drain),
            Op::Activate(pick) => self.set_availability(pick, Availability::Active),
            _ => self.happen(op),
        }
    }

    /// What nobody asked for.
    fn happen(&mut self, op: &Op) {
        match *op {
            Op::Work(pick) => {
                if let Some((task, state)) = nth(self.sim.moves().into_iter(), pick) {
                    self.sim.report(task, state);
                }
            }
            Op::Fail(pick) => {
                let tasks = self.sim.world.state.tasks();
                let live = tasks.filter(|t| t.node.is_some() && !t.status.state.is_terminal());
                let live: Vec<TaskId> = live.map(|task| task.id).collect();
                if let Some(task) = nth(live.into_iter(), pick) {
                    self.sim.report(task, TaskState::Failed);
                }
            }
            Op::Silence(pick) => {
                let nodes: Vec<NodeId> = self.told.keys().copied().collect();
                let silent = nodes[usize::from(pick) % nodes.len()];
                self.sim.world.now = self.sim.world.now + limits::NODE_DOWN_AFTER;
                for node in nodes.into_iter().filter(|node| *node != silent) {
                    let state = self.sim.world.state.node(&node).unwrap().status.state;
                    if state == NodeState::Ready {
                        self.sim.event(SessionEvent::heard(node));
                    }
                }
                self.sim.settle();
            }
            Op::Return(pick) => {
                let node = *self.told.keys().nth(usize::from(pick) % self.told.len()).unwrap();
                self.sim.node_up(node, description("more"));
            }
            Op::Wait(pick) => self.wait(u64::from(pick % 20)),
            Op::Elect => {
                self.sim.elect();
                self.sim.settle();
            }
            Op::Stale(pick) => {
                let log = self.sim.world.log.iter().map(|proposal| &proposal.command);
                let past = log.filter(|command| matches!(command, Command::Control(_)));
                let past: Vec<_> = past.cloned().collect();
                if let Some(command) = nth(past.into_iter().rev().take(8), pick) {
                    self.try_run(command);
                }
            }
            _ => unreachable!(),
        }
    }

    fn wait(&mut self, secs: u64) {
        let until = self.sim.world.now + Span::from_secs(secs);
        self.sim.sleep_until(until, |_| {});
    }

    /// Tells every node what is new and checks what it knows then.
    fn check(&mut self) {
        let state = &self.sim.world.state;
        for (node, (assigner, known)) in &mut self.told {
            if let Some(diff) = assigner.diff(state) {
                for assignment in diff.update {
                    for grant in &assignment.grants {
                        let material = state.material(&grant.material).expect("it was revoked");
                        let has = |v: &u64| state.payload(&material.id, *v).is_some();
                        assert!(has(&grant.version), "a version that is gone was assigned");
                        assert_eq!(assignment.task.node, Some(*node));
                        assert!(!assignment.task.is_done());
                    }
                    known.insert(assignment.task.id, assignment.grants);
                }
                diff.remove.iter().for_each(|id| {
                    known.remove(id);
                });
            }
            let full = Assigner::new(*node).diff(state).unwrap().update.into_iter();
            let full: BTreeMap<_, _> = full.map(|a| (a.task.id, a.grants)).collect();
            assert_eq!(*known, full, "diffs do not add up");
        }
        let mut reader = snapshot::Reader::default();
        snapshot::write(state, &mut |record| reader.push(record).unwrap());
        let read = reader.finish().unwrap();
        assert_eq!(format!("{:?}", read.index), format!("{:?}", state.index));
    }

    /// Heals everything and waits.
    fn heal(&mut self) {
        let nodes: Vec<NodeId> = self.told.keys().copied().collect();
        for (pick, node) in (0..).zip(nodes) {
            self.sim.node_up(node, description("more"));
            self.set_availability(pick, Availability::Active);
        }
        for _ in 0..60 {
            self.sim.agents();
            self.wait(5);
        }
        self.sim.agents();
    }

    fn assert_converged(&self) {
        let state = &self.sim.world.state;
        for service in state.services() {
            let ServiceMode::Replicated { replicas } = service.spec.mode else { unreachable!() };
            let update = service.update.as_ref().map(|update| update.state);
            let paused = matches!(update, Some(UpdateState::Paused | UpdateState::RollbackPaused));
            let active = state.tasks_of_service(&service.id).filter(|task| !task.is_done());
            let mut slots: BTreeMap<u64, u64> = BTreeMap::new();
            for task in active {
                assert_eq!(task.status.state, TaskState::Running, "{task:?}");
                assert!(paused || !is_dirty(service, task), "{task:?}");
                *slots.entry(task.slot).or_default() += 1;
            }
            assert_eq!(slots.len() as u64, replicas, "{service:?}");
            assert!(paused || slots.values().all(|tasks| *tasks == 1), "{slots:?}");
            let moving = [UpdateState::Updating, UpdateState::RollbackStarted];
            assert!(update.is_none_or(|update| !moving.contains(&update)), "{service:?}");
            for slot in slots.keys() {
                let tasks = state.tasks_of_slot(&service.id, *slot);
                let history = tasks.filter(|task| task.is_done()).count() as u64;
                assert!(history <= limits::HISTORY_PER_SLOT);
            }
        }
        assert!(state.tasks().all(|task| state.service(&task.service).is_some()));
    }
}

fn nth<T>(mut all: impl ExactSizeIterator<Item = T>, pick: u8) -> Option<T> {
    let len = all.len();
    (len > 0).then(|| all.nth(usize::from(pick) % len))?
}

/// Few cases by default: each is a swarm with a history. `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { 48 };
    ProptestConfig { cases, max_shrink_iters: 4_000, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    /// Whatever happened: once it stops happening every service has its replicas, of its
    /// present template and running; and at no time was a node given what was revoked.
    #[test]
    fn a_swarm_heals(ops in prop::collection::vec(op(), 1..80)) {
        let mut play = Play::new();
        for op in &ops {
            play.do_op(op);
            play.check();
        }
        play.heal();
        play.check();
        play.assert_converged();
        // A new leader finds nothing to do either.
        let mut control = Control::new([99; 32]);
        let (state, now) = (&play.sim.world.state, play.sim.world.now);
        let commands = control.step(state, Input::Deadline, now);
        prop_assert!(commands.is_empty(), "{commands:?}");
    }

    /// The same proposals make the same state, decoded or not, and a repeated one changes
    /// nothing and answers the same.
    #[test]
    fn apply_is_deterministic(
        ops in prop::collection::vec(op(), 1..40),
        repeats in prop::collection::vec(any::<prop::sample::Index>(), 1..10),
    ) {
        let mut play = Play::new();
        for op in &ops {
            play.do_op(op);
        }
        let log = &play.sim.world.log;
        let (mut again, mut decoded) = (State::default(), State::default());
        let mut outcomes = Vec::new();
        for proposal in log {
            let bytes: Proposal = codec::decode_strict(&codec::encode(proposal)).unwrap();
            prop_assert_eq!(&bytes, proposal);
            let (mut changes, mut same) = (Vec::new(), Vec::new());
            let outcome = apply(&mut again, proposal, &mut changes);
            prop_assert_eq!(&apply(&mut decoded, &bytes, &mut same), &outcome);
            prop_assert_eq!(changes, same);
            outcomes.push(outcome);
        }
        // Nodes 2 and 3 did not come through the log, so both differ from the swarm played.
        prop_assert_eq!(testing::records(&again), testing::records(&decoded));
        let records = testing::records(&again);
        for repeat in repeats {
            let index = repeat.index(log.len());
            let mut changes = Vec::new();
            let later = Proposal { stamp: Stamp(u64::MAX), ..log[index].clone() };
            let outcome = apply(&mut again, &later, &mut changes);
            prop_assert!(outcome == outcomes[index] && changes.is_empty());
        }
        prop_assert_eq!(testing::records(&again), records);
    }
}

#[test]
fn outcomes_are_remembered_within_their_bounds() {
    let mut world = crate::testing::World::new();
    let mut next = 50_000;
    let mut run = |count: usize, pause: Span| {
        world.now = world.now + pause;
        for _ in 0..count {
            next += 1;
            assert_eq!(world.run_as(id(next), Command::Noop), Outcome::Done(0));
        }
        assert_eq!(world.state.outcomes.len(), world.state.requests.len());
        world.state.requests.len()
    };
    // The clock moves a millisecond with each.
    assert_eq!(run(limits::OUTCOMES_MAX + 10, Span(0)), 60_001);
    assert_eq!(run(1, limits::OUTCOME_AGE), limits::OUTCOMES);
}

/// No formatting of anything that holds a payload shows its bytes.
#[test]
fn debug_never_shows_a_payload() {
    const MARK: &[u8] = b"ultra-sensitive-payload";
    let payload = crate::sealed::Sealed { key: 1, nonce: *b"nonce-nonce-", bytes: MARK.to_vec() };
    let slot = crate::model::cluster::Slot { sealed: MARK.to_vec() };
    let trust = crate::model::cluster::Trust {
        root_key: Some(payload.clone()),
        worker_secret: Some(payload.clone()),
        manager_secret: Some(payload.clone()),
        ..Default::default()
    };
    let Command::ClusterInit(mut init) = testing::init() else { unreachable!() };
    init.trust = trust;
    init.ring.keys[0].slots.insert(id(1), slot);
    let commands = [
        Command::ClusterInit(init),
        Command::ClusterUpdate {
            version: 1,
            spec: Default::default(),
            tokens: crate::command::TokenRotation {
                worker: Some(payload.clone()),
                manager: Some(payload.clone()),
                former: Default::default(),
            },
            unlock_key: None,
        },
        Command::MaterialCreate {
            id: id(1),
            kind: MaterialKind::Secret,
            spec: material_spec("a"),
            size: 7,
            payload: payload.clone(),
            by: testing::author(),
        },
        testing::append(id(1), 2, payload.clone()),
    ];
    let mut world = crate::testing::World::empty();
    let mut shown = Vec::new();
    for command in commands {
        let proposal = Proposal::new(id(9), Stamp(1), command);
        shown.push(format!("{proposal:?} {proposal:#?}"));
        world.run(proposal.command);
    }
    world.state.put_payload((id(1), 1), payload);
    shown.push(format!("{:?} {:#?}", world.state, world.state));
    let text = core::str::from_utf8(MARK).unwrap();
    let list = format!("{:?}", &MARK[..4]);
    let lines = format!("{:#?}", &MARK[..2]);
    for shown in shown {
        assert!(!shown.contains(text) && !shown.contains(list.trim_end_matches(']')));
        assert!(!shown.contains(lines.trim_end_matches("\n]")));
    }
}
