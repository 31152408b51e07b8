use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::apply::Change;
use crate::assign::{self, Assigner, Reason};
use crate::command::{Anchor, Append, Decision, Reseal};
use crate::id::{MaterialId, ServiceId, TaskId};
use crate::model::material::{Grant, MaterialKind, MaterialSpec, OnChange};
use crate::model::service::ServiceSpec;
use crate::model::task::{Task, TaskState};
use crate::outcome::Dropped;
use crate::testing::{self, World, append, author, grant, sealed, service_spec};

fn rejected(outcome: Outcome) -> String {
    match outcome {
        Outcome::Rejected(rejection) => rejection.to_string(),
        outcome => panic!("{outcome:?}"),
    }
}

fn numbers(world: &World, id: MaterialId) -> Vec<u64> {
    let versions = &world.state.material(&id).unwrap().versions;
    versions.iter().map(|version| version.number).collect()
}

/// Appends versions of 4 bytes up to `last`.
fn append_up_to(world: &mut World, id: MaterialId, last: u64) {
    for number in world.state.material(&id).unwrap().last_version + 1..=last {
        world.done(append(id, number, sealed(1, 4)));
    }
}

fn with_grants(name: &str, grants: Vec<Grant>) -> ServiceSpec {
    let mut spec = service_spec(name, 1);
    spec.task.make_mut().container.secrets = grants;
    spec
}

/// Versions that [`append_up_to`] made have 4 bytes, the first 3.
fn dropped(id: MaterialId, version: u64) -> Dropped {
    Dropped { id, version, size: if version == 1 { 3 } else { 4 } }
}

/// A running task of a service as that is now.
fn run_task(world: &mut World, n: u64, service: ServiceId, slot: u64) -> TaskId {
    let of = world.state.service(&service).unwrap();
    let (spec, spec_version, node) = (of.spec.task.clone(), of.spec_version, Some(world.node));
    let task = Task { service, spec, spec_version, slot, node, ..testing::task(n) };
    world.done(Command::Control(vec![Decision::TaskCreate(task)]));
    world.report(testing::id(n), world.node, TaskState::Running);
    testing::id(n)
}

/// Versions a task may have.
fn readable(world: &World, task: TaskId) -> Vec<u64> {
    let grants = assign::grants(&world.state, world.state.task(&task).unwrap());
    grants.iter().map(|grant| grant.version).collect()
}

fn revoke(id: MaterialId, service: Option<ServiceId>, task: Option<TaskId>) -> Command {
    Command::MaterialRevoke { id, service, task, by: author() }
}

#[test]
fn a_pin_names_a_version_that_is_there() {
    let mut world = World::new();
    let (id, other) = (world.secret("a"), world.secret("b"));
    append_up_to(&mut world, id, 9);
    let granted = |pin, id| {
        let spec = with_grants("web", vec![Grant { pin: Some(pin), ..grant(id, "a") }]);
        Command::ServiceCreate { id: testing::id(5), spec }
    };
    let there = "pin to one that it has (5, 6, 7, 8, 9), or name a alone to follow the latest";
    let text = rejected(world.run(granted(4, id)));
    assert_eq!(text, alloc::format!("secret a has no version 4 any more: {there}"));
    let text = rejected(world.run(granted(10, id)));
    assert_eq!(text, alloc::format!("secret a has no version 10: {there}"));
    assert_eq!(rejected(world.run(granted(5, other))), "secret not found: a@5");
    world.done(granted(5, id));
    append_up_to(&mut world, id, 20);
    assert_eq!(numbers(&world, id), [5, 16, 17, 18, 19, 20]);
    // The way back to what was pinned stays open, until another update forgets it.
    world.update_service(5, |spec| spec.task.make_mut().container.secrets[0].pin = Some(20));
    append_up_to(&mut world, id, 30);
    let version = world.state.service(&testing::id(5)).unwrap().meta.version;
    world.done(Command::ServiceRollback { id: testing::id(5), version });
    let service = world.state.service(&testing::id(5)).unwrap();
    assert_eq!(service.spec.task.container.secrets[0].pin, Some(5));
}

#[test]
fn a_set_is_appended_whole_or_not_at_all() {
    let mut world = World::new();
    let (a, b) = (world.secret("a"), world.config("b"));
    let item = |id, number, key| {
        let of = (number == 3).then_some(2);
        Append { id, number, size: 4, payload: sealed(key, 4), of }
    };
    let set = |items: Vec<Append>| Command::MaterialAppend { items, by: author(), keep: None };
    let before = testing::records(&world.state).len();
    for (items, text) in [
        (vec![], "a set has 1 to 64 secrets and configs, and this one 0: send several sets"),
        (vec![item(a, 2, 1), item(b, 3, 1)], "update out of sequence"),
        (
            vec![item(a, 2, 1), item(b, 2, 1), item(a, 2, 1)],
            "secret a is in the set twice: give each one version at a time",
        ),
        (
            vec![item(a, 2, 1), item(b, 2, 2)],
            "sealed with a key that is not current; the current one is 1",
        ),
        (
            vec![item(a, 2, 1), item(testing::id(9), 1, 1)],
            "secret 0000000000000000000000009 not found",
        ),
    ] {
        let said = rejected(world.run(set(items)));
        assert!(
            said == text || text.contains("not found") && said.ends_with("not found"),
            "{said}"
        );
        assert_eq!((numbers(&world, a), numbers(&world, b)), (vec![1], vec![1]));
    }
    assert!(testing::records(&world.state).len() < before + 6);
    world.changes.clear();
    assert_eq!(world.run(set(vec![item(b, 2, 1), item(a, 2, 1)])), Outcome::Done(2));
    assert_eq!(world.changes, [Change::Material(b), Change::Material(a)]);
    let version = world.state.material(&a).unwrap().latest().unwrap().clone();
    assert_eq!((version.by, version.of, version.size), (author(), None, 4));
    world.done(set(vec![item(a, 3, 1)]));
    assert_eq!(world.state.material(&a).unwrap().latest().unwrap().of, Some(2));
    let gone = Append { of: Some(9), ..item(a, 4, 1) };
    let text = "secret a has no version 9 any more: choose one of its history";
    assert_eq!(rejected(world.run(set(vec![gone]))), text);
    let other = Append { of: Some(1), ..item(a, 4, 1) };
    let text = rejected(world.run(set(vec![other])));
    assert!(text.contains("repeats version 1, which has 3 bytes, and has 4 itself"), "{text}");
    let big = (0..15).map(|n| {
        let id = world.secret(&alloc::format!("big{n}"));
        Append { size: 511_999, payload: sealed(1, 511_999), ..item(id, 2, 1) }
    });
    let text = rejected({
        let big = big.collect();
        world.run(set(big))
    });
    assert!(text.starts_with("a set has at most 7340032 bytes, and this one"), "{text}");
}

#[test]
fn the_latest_are_kept_and_those_in_use() {
    let mut world = World::new();
    let id = world.secret("a");
    append_up_to(&mut world, id, 3);
    let pinned = |pin| with_grants("web", vec![Grant { pin: Some(pin), ..grant(id, "a") }]);
    let service = world.create_service(5, pinned(1));
    let task = run_task(&mut world, 40, service, 1);
    // The spec before names 1, the present one 2.
    world.update_service(5, |spec| *spec = pinned(2));
    append_up_to(&mut world, id, 12);
    assert_eq!(numbers(&world, id), [1, 2, 8, 9, 10, 11, 12]);
    // Now the spec before names 2, and only a task runs that has 1.
    world.update_service(5, |spec| *spec = pinned(12));
    append_up_to(&mut world, id, 13);
    assert_eq!(numbers(&world, id), [1, 2, 9, 10, 11, 12, 13]);
    world.report(task, world.node, TaskState::Shutdown);
    let prune = |ids, keep| Command::MaterialPrune { kind: MaterialKind::Secret, ids, keep };
    assert_eq!(world.run(prune(vec![], None)), Outcome::Pruned(vec![dropped(id, 1)]));
    assert_eq!(numbers(&world, id), [2, 9, 10, 11, 12, 13]);
    let gone = [9, 10, 11].map(|version| dropped(id, version)).to_vec();
    assert_eq!(world.run(prune(vec![id], Some(1))), Outcome::Pruned(gone));
    assert_eq!(numbers(&world, id), [2, 12, 13]);
    assert!(world.state.payload(&id, 11).is_none() && world.state.payload(&id, 12).is_some());
    assert_eq!(world.run(prune(vec![], Some(1))), Outcome::Pruned(vec![]));
    let text = rejected(world.run(prune(vec![], Some(0))));
    assert!(text.starts_with("cannot keep 0 versions of a secret or config: keep 1 to 64"));
    let config = world.config("c");
    assert!(rejected(world.run(prune(vec![config], None))).ends_with("not found"));
    let text = "cannot keep 65 versions";
    let keep = Some(65);
    let spec = MaterialSpec { keep, ..testing::material_spec("a") };
    let version = world.state.material(&id).unwrap().meta.version;
    let update = |spec: &MaterialSpec, version| {
        let spec = spec.clone();
        Command::MaterialUpdate { id, version, spec }
    };
    assert!(rejected(world.run(update(&spec, version))).starts_with(text));
    let spec = MaterialSpec { keep: Some(2), ..testing::material_spec("a") };
    world.done(update(&spec, version));
    // Docker's clients send none: it stays.
    world.done(update(&testing::material_spec("a"), version + 1));
    append_up_to(&mut world, id, 16);
    assert_eq!(numbers(&world, id), [2, 12, 15, 16]);
}

#[test]
fn versions_are_bounded_even_if_all_are_pinned() {
    let mut world = World::new();
    let id = world.secret("a");
    let most = limits::MATERIAL_VERSIONS as u64;
    for number in 1..=most {
        if number > 1 {
            world.done(append(id, number, sealed(1, 4)));
        }
        let spec = with_grants(
            &alloc::format!("web{number}"),
            vec![Grant { pin: Some(number), ..grant(id, "a") }],
        );
        world.create_service(100 + number, spec);
    }
    let text = rejected(world.run(append(id, most + 1, sealed(1, 4))));
    assert!(text.contains("has 64 versions and services or tasks are pinned to all"), "{text}");
    world.done(Command::ServiceRemove { id: testing::id(107) });
    world.done(append(id, most + 1, sealed(1, 4)));
    assert!(!numbers(&world, id).contains(&7));
    assert_eq!(numbers(&world, id).len(), limits::MATERIAL_VERSIONS);
}

#[test]
fn what_is_granted_may_not_outgrow_a_task() {
    let mut world = World::new();
    let mut grants = Vec::new();
    for n in 0..33 {
        let name = alloc::format!("s{n}");
        let id = world.secret(&name);
        grants.push(grant(id, &name));
    }
    let ids: Vec<MaterialId> = grants.iter().map(|grant| grant.id).collect();
    world.create_service(5, with_grants("web", grants));
    let text = ids.iter().find_map(|id| match world.run(append(*id, 2, sealed(1, 511_999))) {
        Outcome::Rejected(rejection) => Some(rejection.to_string()),
        _ => None,
    });
    let text = text.unwrap();
    assert!(
        text.contains("more than the 16 MiB of secrets and configs that a task of service web")
    );
}

#[test]
fn what_is_revoked_is_readable_again_by_a_version_or_a_new_grant() {
    let mut world = World::new();
    let (a, b) = (world.secret("a"), world.secret("b"));
    let spec = |pin| with_grants("web", vec![grant(a, "a"), Grant { pin, ..grant(b, "b") }]);
    let service = world.create_service(5, spec(Some(1)));
    let (one, two) = (run_task(&mut world, 40, service, 1), run_task(&mut world, 41, service, 2));
    let other = world.create_service(6, with_grants("other", vec![grant(a, "a")]));
    let third = run_task(&mut world, 42, other, 1);
    let mut assigner = Assigner::new(world.node);
    assigner.diff(&world.state).unwrap();

    world.done(revoke(a, None, Some(one)));
    assert_eq!((readable(&world, one), readable(&world, two)), (vec![1], vec![1, 1]));
    world.done(revoke(a, Some(service), None));
    assert_eq!(
        world.state.material(&a).unwrap().revoked.len(),
        1,
        "the service's covers the task's"
    );
    assert_eq!((readable(&world, two), readable(&world, third)), (vec![1], vec![1]));
    world.done(revoke(a, None, None));
    world.done(revoke(b, None, None));
    assert!(readable(&world, two).is_empty() && readable(&world, third).is_empty());
    assert_eq!(assign::revoked(&world.state, world.state.task(&two).unwrap()), [a, b]);
    let diff = assigner.diff(&world.state).unwrap();
    let missing: Vec<_> = diff.update[0].missing().collect();
    assert!(missing.iter().all(|missing| missing.reason == Reason::Revoked) && missing.len() == 2);
    let text = "secret a is revoked: give it a new version, or update the service so that it \
                grants it anew";
    assert_eq!(missing[0].to_string(), text);

    world.changes.clear();
    append_up_to(&mut world, a, 2);
    append_up_to(&mut world, b, 2);
    assert!(world.changes.contains(&Change::Material(a)) && assigner.diff(&world.state).is_some());
    assert_eq!((readable(&world, two), readable(&world, third)), (vec![2], vec![2]), "b is pinned");
    world.update_service(5, |new| *new = spec(None));
    assert_eq!(readable(&world, two), [2], "it was made before");
    let new = run_task(&mut world, 43, service, 3);
    assert_eq!(readable(&world, new), [2, 2]);

    world.done(Command::ServiceRemove { id: service });
    let entries = |world: &World, id| world.state.material(&id).unwrap().revoked.len();
    assert_eq!((entries(&world, a), entries(&world, b)), (2, 1), "tasks of it are still there");
    assert_eq!(assign::revoked(&world.state, world.state.task(&two).unwrap()), [b]);
    for task in [one, two, new] {
        world.report(task, world.node, TaskState::Shutdown);
        world.done(Command::Control(vec![Decision::TaskRemove { id: task }]));
    }
    assert_eq!((entries(&world, a), entries(&world, b)), (1, 0));
    world.done(Command::MaterialRemove { id: b });
    assert_eq!(world.state.index.revoked.len(), 1);
}

/// What an update takes away and gives again, tasks that are not replaced yet do not come by, and
/// going back gives nothing.
#[test]
fn a_revocation_ends_for_new_tasks_only_and_not_by_going_back() {
    let mut world = World::new();
    let id = world.secret("a");
    let given = || vec![grant(id, "a")];
    let otherwise = || vec![Grant { mode: 0o400, ..grant(id, "a") }];
    let service = world.create_service(5, with_grants("web", given()));
    let old = run_task(&mut world, 40, service, 1);
    world.done(revoke(id, Some(service), None));
    let set = |world: &mut World, grants: Vec<Grant>| {
        world.update_service(5, |spec| spec.task.make_mut().container.secrets = grants);
    };
    let back = |world: &mut World| {
        let version = world.state.service(&testing::id(5)).unwrap().meta.version;
        world.done(Command::ServiceRollback { id: testing::id(5), version });
    };
    set(&mut world, vec![]);
    assert!(readable(&world, old).is_empty());
    back(&mut world);
    let after = run_task(&mut world, 41, service, 2);
    assert!(readable(&world, old).is_empty() && readable(&world, after).is_empty());

    set(&mut world, otherwise());
    let new = run_task(&mut world, 42, service, 3);
    assert!(readable(&world, old).is_empty() && readable(&world, after).is_empty());
    assert_eq!(readable(&world, new), [1]);
    back(&mut world);
    assert!(readable(&world, new).is_empty(), "it is as it was");
    set(&mut world, otherwise());
    let newer = run_task(&mut world, 43, service, 4);
    assert_eq!(readable(&world, newer), [1]);
    // An update after that one, and back: what was given stays given.
    world.update_service(5, |spec| spec.task.make_mut().force_update += 1);
    set(&mut world, given());
    back(&mut world);
    assert_eq!(readable(&world, newer), [1]);
    world.done(revoke(id, None, None));
    assert!(readable(&world, newer).is_empty());
}

#[test]
fn a_revocation_names_what_it_cannot_do() {
    let mut world = World::new();
    let (a, b) = (world.secret("a"), world.secret("b"));
    let service = world.create_service(5, with_grants("web", vec![grant(a, "a")]));
    let other = world.create_service(6, service_spec("other", 1));
    let task = run_task(&mut world, 40, service, 1);
    let says = |world: &mut World, command| rejected(world.run(command));
    let nothing = "is not granted to";
    assert_eq!(
        says(&mut world, revoke(b, None, None)),
        "secret b is not granted to any service: there is nothing to revoke"
    );
    assert_eq!(
        says(&mut world, revoke(a, Some(other), None)),
        "secret a is not granted to service other: there is nothing to revoke"
    );
    assert!(says(&mut world, revoke(b, None, Some(task))).contains(nothing));
    assert!(says(&mut world, revoke(a, Some(other), Some(task))).contains("name one of them"));
    assert!(says(&mut world, revoke(a, Some(testing::id(9)), None)).ends_with("not found"));
    assert!(says(&mut world, revoke(a, None, Some(testing::id(9)))).ends_with("not found"));
    // Its service grants it no more, but the task holds it.
    world.update_service(5, |spec| spec.task.make_mut().container.secrets.clear());
    world.done(revoke(a, None, None));
    assert!(readable(&world, task).is_empty());
    world.report(task, world.node, TaskState::Failed);
    assert!(says(&mut world, revoke(a, None, Some(task))).contains("has ended"));
    assert!(says(&mut world, revoke(a, None, None)).contains(nothing));
}

#[test]
fn grants_say_one_version_and_a_signal_that_can_be_caught() {
    let mut world = World::new();
    let id = world.secret("a");
    let at = |target: &str, pin| Grant { target: target.into(), pin, ..grant(id, "a") };
    let mut try_with = |grants| {
        let spec = with_grants("web", grants);
        rejected(world.run(Command::ServiceCreate { id: testing::id(5), spec }))
    };
    let text = try_with(vec![at("x", None), at("y", Some(1))]);
    assert!(text.starts_with("secret 'a' is granted in two versions"), "{text}");
    for signal in [0, 9, 19, 65, -1] {
        let text = try_with(vec![Grant { on_change: OnChange::Signal(signal), ..at("x", None) }]);
        assert!(text.contains("on-change=restart replaces the task"), "{text}");
    }
    let grants = vec![Grant { on_change: OnChange::Signal(1), ..at("x", None) }];
    world.create_service(5, with_grants("web", grants));
}

#[test]
fn resealing_lets_the_old_key_go_and_arms_the_purge() {
    let mut world = World::new();
    let (a, b) = (world.secret("a"), world.secret("b"));
    append_up_to(&mut world, a, 2);
    let managers = [world.node];
    let (key, secrets) = world.next_key(&managers);
    world.done(Command::RingTurn { key, secrets });
    let left: Vec<_> = world.state.payloads_to_reseal().collect();
    assert_eq!((left.len(), world.state.payloads_of_key(1)), (3, 3));
    let item = |(id, version), key, size| Reseal { id, version, payload: sealed(key, size) };
    let stale = Command::MaterialReseal(vec![item(left[0], 2, 3), item(left[2], 1, 3)]);
    assert_eq!(world.run(stale), Outcome::Rejected(Rejection::StaleKey { current: 2 }));
    let short = Command::MaterialReseal(vec![item(left[0], 2, 1)]);
    assert!(rejected(world.run(short)).ends_with("seal the same payload"));
    assert_eq!(world.state.payloads_of_key(1), 3);
    assert_eq!(world.state.purge_due(), None);
    world.done(Command::MaterialRemove { id: b });
    let sizes = [3, 4];
    for (at, size) in sizes.into_iter().enumerate() {
        let keys = world.state.cluster().unwrap().ring.keys.len();
        assert_eq!(keys, 2);
        let gone = item((b, 1), 2, 3);
        world.done(Command::MaterialReseal(vec![gone, item((a, at as u64 + 1), 2, size)]));
        assert_eq!(world.state.purge_due(), Some(world.now + limits::PURGE_WITHIN));
    }
    let ring = &world.state.cluster().unwrap().ring;
    assert_eq!((ring.keys.len(), ring.keys[0].version), (1, 2));
    assert_eq!(world.state.payloads_to_reseal().count(), 0);
}

#[test]
fn a_key_that_nothing_needs_goes_with_the_turn_and_is_purged() {
    let mut world = World::new();
    let (key, secrets) = world.next_key(&[world.node]);
    world.done(Command::RingTurn { key, secrets });
    assert_eq!(world.state.cluster().unwrap().ring.keys.len(), 1);
    assert_eq!(world.state.purge_due(), Some(world.now + limits::PURGE_WITHIN));
}

#[test]
fn anchors_only_move_on_and_the_oldest_go_first() {
    let mut world = World::new();
    let node = world.node;
    let anchor =
        |n: u64, sequence, hash| Anchor { task: testing::id(n), sequence, hash: [hash; 32], node };
    let set = |anchors| Command::AuditAnchor(anchors);
    world.done(set(vec![anchor(1, 5, 1), anchor(2, 1, 1)]));
    world.done(set(vec![anchor(1, 5, 2), anchor(1, 4, 3), anchor(2, 2, 4)]));
    let known = |world: &World, n: u64| world.state.anchor(&testing::id(n)).map(|a| a.hash[0]);
    let foreign = Anchor { node: testing::id(90), ..anchor(1, 9, 9) };
    world.done(set(vec![foreign]));
    assert_eq!((known(&world, 1), known(&world, 2)), (Some(1), Some(4)));
    let most = limits::AUDIT_ANCHORS as u64;
    world.done(set((3..=most).map(|n| anchor(n, 1, 1)).collect()));
    assert_eq!((known(&world, 1), known(&world, most)), (Some(1), Some(1)));
    world.done(set(vec![anchor(most + 1, 1, 1)]));
    assert_eq!((known(&world, 1), known(&world, 2)), (None, Some(4)));
    assert_eq!(world.state.index.anchors_by_age.len(), limits::AUDIT_ANCHORS);
    let many = (0..=limits::ANCHORS_AT_ONCE as u64).map(|n| anchor(n, 9, 9)).collect();
    assert!(rejected(world.run(set(many))).contains("send them in several"));
}

#[test]
fn anchors_of_made_up_tasks_push_out_none_of_a_task_that_was_there() {
    let mut world = World::new();
    let node = world.node;
    let service = world.create_service(5, with_grants("web", Vec::new()));
    let task = run_task(&mut world, 7, service, 1);
    let set = |task, sequence, node| {
        Command::AuditAnchor(vec![Anchor { task, sequence, hash: [1; 32], node }])
    };
    world.done(set(task, 1, node));
    let rogue = testing::id(90);
    let most = limits::AUDIT_ANCHORS as u64;
    for n in 0..=most {
        world.done(set(testing::id(1_000 + n), 1, rogue));
    }
    assert!(world.state.anchor(&task).is_some());
    assert_eq!(world.state.anchor(&testing::id(1_000)), None);
    assert!(world.state.anchor(&testing::id(1_000 + most)).is_some());
    // What was known stays so when the task is gone, and goes on.
    world.state.remove_task(&task);
    world.done(set(task, 2, node));
    assert!(world.state.anchor(&task).is_some_and(|it| it.is_known && it.sequence == 2));
    assert_eq!(world.state.index.anchors_by_age.len(), limits::AUDIT_ANCHORS);
}
