use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::command::{Decision, NodeJoin, NodeReport};
use crate::model::cluster::Slot;
use crate::model::node::{NodeSpec, NodeState, Role};
use crate::model::task::{Task, TaskState};
use crate::testing::{self, World, joiner, service_spec, slot};

fn rejected(outcome: Outcome) -> String {
    match outcome {
        Outcome::Rejected(rejection) => rejection.to_string(),
        outcome => panic!("{outcome:?}"),
    }
}

fn join(node: NodeJoin) -> Command {
    Command::NodeJoin(Box::new(node))
}

/// Managers 1 to 3, all of them ready.
fn three() -> World {
    let mut world = World::new();
    for n in [2, 3] {
        let command = world.manager_join(n);
        world.done(command);
    }
    for n in 1..=3 {
        world.turn(testing::id(n), NodeState::Ready);
    }
    world
}

#[test]
fn a_node_joins_once() {
    let mut world = World::empty();
    assert_eq!(
        world.run(join(joiner(2, "two"))),
        Outcome::Rejected(Rejection::NoCluster),
        "there is nothing to join"
    );
    let mut world = World::new();
    assert_eq!(world.run(join(joiner(2, "two"))), Outcome::Done(1));
    let node = world.state.node(&testing::id(2)).unwrap().clone();
    assert_eq!((node.status.state, node.status.addr.as_str()), (NodeState::Unknown, "10.0.0.2"));
    assert_eq!((node.status.since, node.manager.is_none()), (world.now, true));
    assert_eq!(world.changes.last(), Some(&Change::Node(testing::id(2))));
    // The same key once more: its node is there already, under its first id.
    let again = NodeJoin { id: testing::id(9), ..joiner(2, "two") };
    let before = world.state.nodes().cloned().collect::<Vec<_>>();
    assert_eq!(world.run(join(again)), Outcome::Done(1));
    assert_eq!(world.state.nodes().cloned().collect::<Vec<_>>(), before);
    let other_key = NodeJoin { public_key: vec![1], ..joiner(2, "two") };
    assert!(rejected(world.run(join(other_key))).ends_with("already exists"));
}

#[test]
fn a_join_with_the_other_role_names_the_way() {
    let mut world = three();
    world.done(join(joiner(4, "four")));
    let four = testing::id::<crate::id::kind::Node>(4);
    let Command::NodeJoin(mut as_manager) = world.manager_join(8) else { unreachable!() };
    as_manager.public_key = joiner(4, "four").public_key;
    assert_eq!(
        rejected(world.run(Command::NodeJoin(as_manager))),
        format!("node {four} is a worker already; promote it to make it a manager")
    );
    let two = testing::id::<crate::id::kind::Node>(2);
    assert_eq!(
        rejected(world.run(join(joiner(2, "two")))),
        format!("node {two} is a manager already; demote it to make it a worker")
    );
}

#[test]
fn what_joins_is_bounded() {
    let mut world = World::new();
    let mut refuse = |node: NodeJoin| rejected(world.run(join(node)));
    let key = |bytes: usize| NodeJoin { public_key: vec![1; bytes], ..joiner(2, "two") };
    assert_eq!(refuse(key(0)), "a node's public key has 1 to 512 bytes, this one 0");
    assert_eq!(refuse(key(513)), "a node's public key has 1 to 512 bytes, this one 513");
    let long = "x".repeat(301);
    assert_eq!(
        refuse(NodeJoin { advertise: long.clone(), ..joiner(2, "two") }),
        "a node's address has at most 300 bytes"
    );
    assert_eq!(
        refuse(NodeJoin { addr: long, ..joiner(2, "two") }),
        "a node's address has at most 300 bytes"
    );
    let mut wordy = joiner(2, "two");
    wordy.description.hostname = "x".repeat(limits::DESCRIPTION_BYTES);
    assert!(refuse(wordy).starts_with("what a node says of itself"));
    let mut named = joiner(2, "two");
    named.spec.name = Some("n".repeat(65));
    assert_eq!(refuse(named), "node names have at most 64 characters");
    let mut torn = joiner(2, "two");
    torn.spec.role = Role::Manager;
    assert!(refuse(torn).starts_with("a node that joins as a manager, and no other"));
    world.done(join(key(512)));
}

#[test]
fn a_manager_joins_with_a_slot_for_every_key_and_a_new_raft_id() {
    let mut world = World::new();
    world.secret("a");
    let (key, secrets) = world.next_key(&[world.node]);
    let early = world.manager_join(2);
    world.done(Command::RingTurn { key, secrets });
    // The payload keeps the first key in the ring, and the turn came in between.
    assert_eq!(world.run(early), Outcome::Rejected(Rejection::StaleKey { current: 2 }));
    let command = world.manager_join(2);
    world.done(command);
    let two = testing::id(2);
    let cluster = world.state.cluster().unwrap();
    assert_eq!(cluster.ring.keys.len(), 2);
    assert!(cluster.ring.keys.iter().all(|key| key.slots.contains_key(&two)));
    let manager = world.state.node(&two).unwrap().manager.clone().unwrap();
    assert_eq!((manager.raft_id, manager.addr.as_str()), (2, "10.0.0.2:2377"));
    assert_eq!(world.state.managers().count(), 2);

    let Command::NodeJoin(mut used) = world.manager_join(3) else { unreachable!() };
    used.manager = Some((2, world.slots()));
    assert_eq!(
        rejected(world.run(Command::NodeJoin(used.clone()))),
        "Raft id 2 was used before; a new manager needs a new one"
    );
    let huge = Slot { sealed: vec![0; limits::SLOT_BYTES + 1] };
    used.manager = Some((3, [(1, slot()), (2, huge)].into()));
    assert_eq!(
        rejected(world.run(Command::NodeJoin(used.clone()))),
        "a ring key sealed to a manager has at most 256 bytes"
    );
    used.manager = Some((3, world.slots()));
    used.seal_key = [0; 32];
    assert!(rejected(world.run(Command::NodeJoin(used))).starts_with("a manager needs a key"));
}

#[test]
fn a_promotion_is_checked() {
    let mut world = World::new();
    world.done(join(NodeJoin { advertise: String::new(), ..joiner(2, "two") }));
    world.done(join(NodeJoin { seal_key: [0; 32], ..joiner(3, "three") }));
    world.done(join(joiner(4, "four")));
    let two = testing::id::<crate::id::kind::Node>(2);
    let mut try_it = |n, change: &dyn Fn(&mut Command)| {
        let mut command = world.promotion(testing::id(n), n);
        change(&mut command);
        match world.run(command) {
            Outcome::Rejected(rejection) => rejection,
            outcome => panic!("{outcome:?}"),
        }
    };
    assert_eq!(
        try_it(2, &|_| {}).to_string(),
        format!(
            "node {two} does not say where managers reach it; start it with an advertised address"
        )
    );
    assert!(try_it(3, &|_| {}).to_string().contains("has no key that the swarm's secret keys"));
    let of = |change: fn(&mut u64, &mut NodeSpec, &mut u64, &mut BTreeMap<u64, Slot>)| {
        move |command: &mut Command| {
            if let Command::NodePromote { version, spec, raft_id, slots, .. } = command {
                change(version, spec, raft_id, slots);
            }
        }
    };
    assert_eq!(try_it(4, &of(|version, _, _, _| *version += 1)), Rejection::OutOfSequence);
    assert_eq!(try_it(4, &of(|_, _, _, slots| slots.clear())), Rejection::StaleKey { current: 1 });
    assert_eq!(
        try_it(4, &of(|_, _, raft_id, _| *raft_id = 1)).to_string(),
        "Raft id 1 was used before; a new manager needs a new one"
    );
    assert_eq!(
        try_it(4, &of(|_, spec, _, _| spec.role = Role::Worker)).to_string(),
        "a promotion gives the role of a manager"
    );
    let missing = Command::NodePromote {
        id: testing::id(77),
        version: 1,
        spec: NodeSpec::default(),
        raft_id: 77,
        slots: BTreeMap::new(),
    };
    assert!(rejected(world.run(missing)).ends_with("not found"));
    let command = world.promotion(testing::id(4), 4);
    world.done(command);
    let again = world.promotion(testing::id(4), 5);
    assert!(rejected(world.run(again)).ends_with("is a manager already"));
}

#[test]
fn a_role_comes_and_goes_and_its_raft_id_stays_used() {
    let mut world = three();
    world.done(join(joiner(4, "four")));
    let four = testing::id(4);
    let command = world.promotion(four, 40);
    world.done(command);
    world.turn(four, NodeState::Ready);
    assert_eq!(world.state.node(&four).unwrap().spec.role, Role::Manager);
    let old_keys = world.state.cluster().unwrap().ring.current;
    let command = world.demotion(four);
    world.done(command);
    let node = world.state.node(&four).unwrap();
    assert_eq!((node.spec.role, node.manager.is_none()), (Role::Worker, true));
    let cluster = world.state.cluster().unwrap();
    assert_eq!(cluster.ring.current, old_keys + 1);
    assert!(cluster.ring.keys.iter().all(|key| !key.slots.contains_key(&four)));
    assert_eq!(cluster.trust.root_key.as_ref().unwrap().key, old_keys + 1);
    let again = world.promotion(four, 40);
    assert!(rejected(world.run(again)).contains("was used before"));
    let command = world.promotion(four, 41);
    world.done(command);
    assert_eq!(world.state.node(&four).unwrap().manager.as_ref().unwrap().raft_id, 41);
}

#[test]
fn the_last_manager_and_the_quorum_stay() {
    let mut world = World::new();
    world.turn(world.node, NodeState::Ready);
    let last = "attempting to demote the last manager of the swarm";
    let command = world.demotion(world.node);
    assert_eq!(rejected(world.run(command)), last);
    let node = world.state.node(&world.node).unwrap();
    let (id, version) = (node.id, node.meta.version);
    let spec = NodeSpec { role: Role::Worker, ..node.spec.clone() };
    assert_eq!(rejected(world.run(Command::NodeUpdate { id, version, spec })), last);

    // Managers that are down, who is to go, and with what numbers it is refused, if it is.
    type Row = (&'static [u64], u64, Option<(u64, u64, u64)>);
    let table: [Row; 5] = [
        (&[], 3, None),
        (&[3], 3, None),
        (&[3], 2, Some((2, 1, 2))),
        (&[2, 3], 3, Some((2, 1, 2))),
        (&[1, 2, 3], 1, Some((2, 0, 2))),
    ];
    for (down, goes, refused) in table {
        let mut world = three();
        down.iter().for_each(|n| world.turn(testing::id(*n), NodeState::Down));
        let command = world.demotion(testing::id(goes));
        match (world.run(command), refused) {
            (Outcome::Done(_), None) => {}
            (outcome, Some((count, ready, needed))) => assert_eq!(
                rejected(outcome),
                format!(
                    "can't remove member from the raft: this would result in a loss of quorum: \
                     managers that stay: {count}, ready of them: {ready}, needed: {needed}; bring \
                     others up or promote a node first"
                )
            ),
            (outcome, None) => panic!("{down:?} {goes}: {outcome:?}"),
        }
    }
}

#[test]
fn a_demotion_that_is_late_is_done_anew() {
    let mut world = three();
    let early = world.demotion(testing::id(3));
    let spec = world.state.cluster().unwrap().spec.clone();
    let version = world.state.cluster().unwrap().meta.version;
    // Someone rotates a join secret: what the demotion carries is the old one.
    let tokens = world.new_tokens();
    world.done(Command::ClusterUpdate { version, spec, tokens, unlock_key: None });
    assert_eq!(world.run(early), Outcome::Rejected(Rejection::StaleKey { current: 1 }));
    let mut stale = world.demotion(testing::id(3));
    if let Command::NodeDemote { version, .. } = &mut stale {
        *version += 1;
    }
    assert_eq!(world.run(stale), Outcome::Rejected(Rejection::OutOfSequence));
    let command = world.demotion(testing::id(3));
    world.done(command);
    let again = world.demotion(testing::id(3));
    assert!(rejected(world.run(again)).ends_with("is a worker already"));
}

#[test]
fn a_changed_role_is_no_plain_update() {
    let mut world = three();
    world.done(join(joiner(4, "four")));
    for n in [2, 4] {
        let node = world.state.node(&testing::id(n)).unwrap().clone();
        let role = if node.manager.is_some() { Role::Worker } else { Role::Manager };
        let spec = NodeSpec { role, ..node.spec.clone() };
        let (id, version) = (node.id, node.meta.version);
        assert_eq!(
            world.run(Command::NodeUpdate { id, version, spec }),
            Outcome::Rejected(Rejection::Invalid(
                "role changes go through promote and demote".to_string()
            ))
        );
    }
}

#[test]
fn removal_has_dockers_rules_and_orphans_what_ran() {
    let mut world = three();
    world.done(join(joiner(4, "four")));
    let (three, four) = (testing::id::<crate::id::kind::Node>(3), testing::id(4));
    let remove = |id, force| Command::NodeRemove { id, force };
    assert_eq!(
        rejected(world.run(remove(three, true))),
        format!(
            "node {three} is a cluster manager and is a member of the raft cluster. It must be \
             demoted to worker before removal"
        )
    );
    world.turn(four, NodeState::Ready);
    assert_eq!(
        rejected(world.run(remove(four, false))),
        format!("node {four} is not down and can't be removed")
    );
    let service = world.create_service(5, service_spec("web", 3));
    let spec = world.state.service(&service).unwrap().spec.task.clone();
    for (n, state) in [(40, TaskState::Running), (41, TaskState::Failed), (42, TaskState::Pending)]
    {
        let (node, slot) = (Some(four), n);
        let task = Task { service, spec: spec.clone(), node, slot, ..testing::task(n) };
        world.done(Command::Control(vec![Decision::TaskCreate(task)]));
        if state != TaskState::Pending {
            world.report(testing::id(n), four, state);
        }
    }
    assert_eq!(world.state.load(&four).unwrap().tasks, 2);
    world.changes.clear();
    world.done(remove(four, true));
    let states: Vec<_> = world.state.tasks().map(|task| task.status.state).collect();
    assert_eq!(states, [TaskState::Orphaned, TaskState::Failed, TaskState::Orphaned]);
    assert!(world.state.node(&four).is_none() && world.state.load(&four).is_none());
    assert!(world.state.index.by_load.iter().all(|(_, node)| *node != four));
    assert_eq!(world.changes.len(), 3, "{:?}", world.changes);
    // What it still says counts no more.
    world.report(testing::id(40), four, TaskState::Complete);
    assert_eq!(world.state.task(&testing::id(40)).unwrap().status.state, TaskState::Orphaned);
    let records = world.records();
    world.turn(four, NodeState::Ready);
    assert!(world.state.node(&four).is_none());
    assert!(rejected(world.run(remove(four, true))).ends_with("not found"));
    assert_eq!(world.records().len(), records.len() + 2, "but for two outcomes");
}

#[test]
fn a_node_that_is_not_up_goes_without_force() {
    for state in [NodeState::Unknown, NodeState::Down, NodeState::Disconnected] {
        let mut world = World::new();
        world.done(join(joiner(4, "four")));
        world.turn(testing::id(4), state);
        world.done(Command::NodeRemove { id: testing::id(4), force: false });
    }
}

#[test]
fn a_managers_address_follows_what_it_says() {
    let mut world = three();
    world.done(join(joiner(4, "four")));
    let mut say = |n, advertise: String| {
        let (id, advertise) = (testing::id(n), Some(advertise));
        let report = NodeReport { id, description: None, status: None, advertise };
        world.done(Command::NodeReport(vec![report]));
        let node = world.state.node(&id).unwrap();
        (node.advertise.clone(), node.manager.as_ref().map(|manager| manager.addr.clone()))
    };
    let new = "10.1.1.1:2377".to_string();
    assert_eq!(say(2, new.clone()), (new.clone(), Some(new.clone())));
    assert_eq!(say(2, String::new()), (new.clone(), Some(new.clone())));
    assert_eq!(say(2, "x".repeat(301)), (new.clone(), Some(new.clone())));
    assert_eq!(say(4, new.clone()), (new, None));
}
