use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec;

use super::*;
use crate::command::{CaChange, Decision, TokenRotation};
use crate::model::cluster::{ClusterSpec, FormerSecret, NextRoot, Trust};
use crate::model::node::{NodeState, Role};
use crate::model::task::{Task, TaskState};
use crate::testing::{self, World, joiner, sealed, service_spec};
use crate::time::Span;

fn rejected(outcome: Outcome) -> String {
    match outcome {
        Outcome::Rejected(rejection) => rejection.to_string(),
        outcome => panic!("{outcome:?}"),
    }
}

fn root(key: u64) -> NextRoot {
    NextRoot {
        pem: "NEW".to_string(),
        cross_pem: "CROSS".to_string(),
        subject: vec![7],
        public_key: vec![8],
        key: sealed(key, 5),
        moved: BTreeSet::from([testing::id(1)]),
    }
}

fn change(change: CaChange) -> Command {
    Command::CaChange(Box::new(change))
}

fn finish(world: &World, force: bool) -> Command {
    let version = world.state.cluster().unwrap().meta.version;
    change(CaChange::Finish { version, force, tokens: world.new_tokens() })
}

fn trust(world: &World) -> Trust {
    world.state.cluster().unwrap().trust.clone()
}

/// A swarm of nodes 1 to 3 whose only root is OLD.
fn rooted() -> World {
    let mut world = World::empty();
    let Command::ClusterInit(mut init) = testing::init() else { unreachable!() };
    init.trust.roots = vec!["OLD".to_string()];
    init.trust.root_key = Some(sealed(1, 5));
    world.done(Command::ClusterInit(init));
    for n in [2, 3] {
        world.done(Command::NodeJoin(Box::new(joiner(n, &format!("host-{n}")))));
    }
    world
}

#[test]
fn a_root_takes_over_when_every_node_has_moved() {
    let mut world = rooted();
    let none = "the swarm's root certificate is not being changed";
    assert_eq!(
        {
            let command = finish(&world, true);
            rejected(world.run(command))
        },
        none
    );
    let begin = |version, root| change(CaChange::Begin { version, root });
    assert_eq!(rejected(world.run(begin(2, root(1)))), "update out of sequence");
    assert_eq!(world.run(begin(1, root(2))), Outcome::Rejected(Rejection::StaleKey { current: 1 }));
    let same = NextRoot { pem: "OLD".to_string(), ..root(1) };
    assert!(rejected(world.run(begin(1, same))).starts_with("the swarm trusts this root"));
    for bytes in [0, limits::ROOT_BYTES + 1] {
        let pem = NextRoot { pem: "x".repeat(bytes), ..root(1) };
        assert!(rejected(world.run(begin(1, pem))).starts_with("a root needs its certificate"));
    }
    assert_eq!(world.run(begin(1, root(1))), Outcome::Done(2));
    assert_eq!(trust(&world).roots, ["OLD", "NEW"]);
    assert!(trust(&world).next.unwrap().moved.is_empty(), "nobody has moved yet");
    assert!(rejected(world.run(begin(2, root(1)))).starts_with("the swarm's root certificate is"));

    let moved =
        |nodes: &[u64]| change(CaChange::Moved(nodes.iter().map(|n| testing::id(*n)).collect()));
    assert_eq!(world.run(moved(&[1, 77])), Outcome::Done(3));
    assert_eq!(world.run(moved(&[1, 77])), Outcome::Done(3), "nothing is new");
    let (two, three) =
        (testing::id::<crate::id::kind::Node>(2), testing::id::<crate::id::kind::Node>(3));
    assert_eq!(
        {
            let command = finish(&world, false);
            rejected(world.run(command))
        },
        format!(
            "nodes without a certificate of the new root: 2: host-2 ({two}), host-3 ({three}); \
             bring them up and wait, or finish with force and let them join again"
        )
    );
    world.done(moved(&[2]));
    // A node that is removed need not be waited for.
    world.done(Command::NodeRemove { id: three, force: false });
    // The ring turns meanwhile: the next root's key goes with it.
    let (key, secrets) = world.next_key(&[world.node]);
    world.done(Command::RingTurn { key, secrets });
    assert_eq!(trust(&world).next.unwrap().key.key, 2);
    let Command::CaChange(ready) = finish(&world, false) else { unreachable!() };
    let CaChange::Finish { version, force, tokens } = *ready else { unreachable!() };
    let with = |version, tokens| change(CaChange::Finish { version, force, tokens });
    let bare = with(version, TokenRotation::default());
    assert!(rejected(world.run(bare)).starts_with("tokens name the root that goes"));
    let unkept = TokenRotation { former: vec![], ..tokens.clone() };
    assert!(rejected(world.run(with(version, unkept))).starts_with("every new join secret"));
    let early = with(version - 1, tokens.clone());
    assert_eq!(rejected(world.run(early)), "update out of sequence");
    world.done(with(version, tokens.clone()));
    let trust = trust(&world);
    assert_eq!((trust.worker_secret, trust.manager_secret), (tokens.worker, tokens.manager));
    assert_eq!(trust.former, tokens.former);
    assert_eq!((trust.roots, trust.next), (vec!["NEW".to_string()], None));
    assert_eq!((trust.subject, trust.public_key), (vec![7], vec![8]));
    assert_eq!(trust.root_key, Some(sealed(2, 9)));
    let before = world.state.cluster().unwrap().meta.version;
    assert_eq!(world.run(moved(&[2])), Outcome::Done(before), "too late to matter");
}

#[test]
fn nodes_may_be_left_behind_and_few_are_named() {
    let mut world = rooted();
    for n in 4..=20 {
        world.done(Command::NodeJoin(Box::new(joiner(n, "host"))));
    }
    world.done(change(CaChange::Begin { version: 1, root: root(1) }));
    let text = {
        let command = finish(&world, false);
        rejected(world.run(command))
    };
    assert!(text.contains("new root: 20: ") && text.contains(", 10 more; bring"), "{text}");
    let command = finish(&world, true);
    world.done(command);
    assert_eq!(trust(&world).roots, ["NEW"]);
}

#[test]
fn a_removed_node_is_forgotten_among_those_that_moved() {
    let mut world = rooted();
    world.done(change(CaChange::Begin { version: 1, root: root(1) }));
    world.done(change(CaChange::Moved(vec![testing::id(2), testing::id(3)])));
    world.done(Command::NodeRemove { id: testing::id(2), force: false });
    assert_eq!(trust(&world).next.unwrap().moved, BTreeSet::from([testing::id(3)]));
}

#[test]
fn one_survivor_makes_the_swarm_its_own() {
    let mut world = rooted();
    for n in [4, 5] {
        let command = world.manager_join(n);
        world.done(command);
    }
    let (four, five) = (testing::id(4), testing::id(5));
    world.turn(five, NodeState::Ready);
    let service = world.create_service(6, service_spec("web", 2));
    let spec = world.state.service(&service).unwrap().spec.task.clone();
    for (n, node) in [(40, five), (41, four)] {
        let (node, slot) = (Some(node), n);
        let task = Task { service, spec: spec.clone(), node, slot, ..testing::task(n) };
        world.done(Command::Control(vec![Decision::TaskCreate(task)]));
        world.report(testing::id(n), node.unwrap(), TaskState::Running);
    }
    let secret = world.secret("a");
    let (key, secrets) = world.next_key(&[four]);
    let force = |node, addr: &str, incarnation_id| Command::ClusterForce {
        node,
        addr: addr.to_string(),
        incarnation_id,
        key: key.clone(),
        secrets: secrets.clone(),
    };
    let addr = "10.9.9.9:2377";
    let worker = testing::id::<crate::id::kind::Node>(2);
    assert_eq!(
        rejected(world.run(force(worker, addr, [2; 16]))),
        format!("node {worker} is a worker; only a manager can make the swarm its own")
    );
    assert_eq!(
        rejected(world.run(force(four, "", [2; 16]))),
        "a manager's address has 1 to 300 bytes"
    );
    assert_eq!(
        rejected(world.run(force(four, addr, [1; 16]))),
        "a new incarnation of the swarm needs a new random half"
    );
    assert!(rejected(world.run(force(world.node, addr, [2; 16]))).contains("1 slots and is for 1"));
    let outcomes = world.state.outcomes.len();
    world.done(force(four, addr, [2; 16]));

    let cluster = world.state.cluster().unwrap();
    assert_eq!((cluster.incarnation, cluster.incarnation_id), (2, [2; 16]));
    assert_eq!(cluster.cut_off, [world.node, five]);
    assert_eq!(cluster.ring.current, 2);
    assert!(cluster.ring.keys.iter().all(|key| key.slots.keys().eq([&four])));
    assert_eq!(cluster.ring.keys.len(), 2, "the secret needs its key still");
    let (node, manager) = world.state.managers().next().unwrap();
    assert_eq!((node.id, manager.raft_id, manager.addr.as_str()), (four, 4, addr));
    assert_eq!(world.state.managers().count(), 1);
    assert!(world.state.node(&worker).is_some() && world.state.node(&five).is_none());
    let states: vec::Vec<_> = world.state.tasks().map(|task| task.status.state).collect();
    assert_eq!(states, [TaskState::Orphaned, TaskState::Running]);
    assert_eq!(world.state.outcomes.len(), outcomes + 1);
    assert!(world.state.payload(&secret, 1).is_some());
    // The Raft ids of the others stay used.
    let Command::NodeJoin(mut back) = world.manager_join(8) else { unreachable!() };
    back.manager = Some((5, world.slots()));
    assert!(rejected(world.run(Command::NodeJoin(back))).contains("was used before"));
}

#[test]
fn join_secrets_of_the_past_are_remembered_up_to_a_limit() {
    let mut world = World::new();
    for n in 0..=limits::FORMER_SECRETS as u8 {
        let cluster = world.state.cluster().unwrap().clone();
        let (version, spec) = (cluster.meta.version, cluster.spec.clone());
        let former = vec![FormerSecret { role: Role::Worker, verifier: [n; 32] }];
        let worker = Some(sealed(1, 6));
        let tokens = TokenRotation { worker, manager: None, former };
        world.done(Command::ClusterUpdate { version, spec, tokens, unlock_key: None });
    }
    let former = trust(&world).former;
    assert_eq!(former.len(), limits::FORMER_SECRETS);
    assert_eq!(former.first().unwrap().verifier, [1; 32], "the oldest went");
    // What is kept is said of a secret that is replaced, and of no other.
    let cluster = world.state.cluster().unwrap().clone();
    let tokens = TokenRotation { former: former[..1].to_vec(), ..TokenRotation::default() };
    let (version, spec) = (cluster.meta.version, cluster.spec.clone());
    let odd = Command::ClusterUpdate { version, spec, tokens, unlock_key: None };
    assert!(rejected(world.run(odd)).starts_with("every new join secret"));
}

#[test]
fn certificates_live_an_hour_at_least() {
    let mut world = World::new();
    let mut update = |expiry: Span| {
        let cluster = world.state.cluster().unwrap().clone();
        let spec = ClusterSpec { node_cert_expiry: expiry, ..cluster.spec.clone() };
        let (version, tokens) = (cluster.meta.version, TokenRotation::default());
        world.run(Command::ClusterUpdate { version, spec, tokens, unlock_key: None })
    };
    assert_eq!(
        rejected(update(Span::from_secs(1_830))),
        "minimum certificate expiry time is: 1h0m0s, and the one given is 30m30s; give a longer one"
    );
    assert!(rejected(update(Span(5))).contains("given is 5ns;"));
    assert_eq!(update(Span::from_secs(3_600)), Outcome::Done(2));
    let Command::ClusterInit(mut init) = testing::init() else { unreachable!() };
    init.spec.node_cert_expiry = Span::from_secs(59);
    let text = rejected(World::empty().run(Command::ClusterInit(init)));
    assert!(text.contains("given is 59s;"), "{text}");
}
