use alloc::string::ToString;
use alloc::vec;

use super::*;
use crate::command::Decision;
use crate::id::{ENTROPY_LEN, RequestId};
use crate::model::material::{MaterialKind, MaterialSpec};
use crate::model::service::{ServiceMode, UpdateState};
use crate::model::task::{Task, TaskState};
use crate::snapshot;
use crate::testing::{self, World, grant, material_spec, sealed, service_spec};

fn rejected(outcome: Outcome) -> alloc::string::String {
    match outcome {
        Outcome::Rejected(rejection) => rejection.to_string(),
        outcome => panic!("{outcome:?}"),
    }
}

#[test]
fn nothing_but_init_works_before_there_is_a_swarm() {
    let mut world = World::empty();
    let id = testing::id(7);
    assert_eq!(world.run(Command::MaterialRemove { id }), Outcome::Rejected(Rejection::NoCluster));
    assert_eq!(world.run(Command::Noop), Outcome::Done(0));
    assert_eq!(world.run(testing::init()), Outcome::Done(1));
    assert_eq!(rejected(world.run(testing::init())), "there is a swarm already");
}

#[test]
fn a_repeated_request_gets_its_first_outcome() {
    let mut world = World::new();
    let request = RequestId::from_entropy([9; ENTROPY_LEN]);
    let command = testing::create_secret(1, "a");
    assert_eq!(world.run_as(request, command.clone()), Outcome::Done(1));
    let before = world.records();
    assert_eq!(world.run_as(request, command.clone()), Outcome::Done(1));
    assert_eq!(world.records(), before);
    assert_eq!(rejected(world.run(command)), "secret a already exists");
}

#[test]
fn names_are_unique_in_a_kind_and_freed_by_removal() {
    let mut world = World::new();
    let secret = world.secret("a");
    assert_eq!(rejected(world.run(testing::create_secret(2, "a"))), "secret a already exists");
    world.config("a");
    world.done(Command::MaterialRemove { id: secret });
    assert!(world.state.purge_due().is_some());
    assert!(world.state.payload(&secret, 1).is_none());
    world.secret("a");
    let bad = Command::MaterialCreate {
        id: testing::id(77),
        kind: MaterialKind::Secret,
        spec: material_spec("bad name"),
        size: 1,
        payload: sealed(1, 1),
        by: testing::author(),
    };
    assert!(rejected(world.run(bad)).starts_with("invalid name, only 64 [a-zA-Z0-9-_.]"));
}

#[test]
fn payloads_are_checked_for_size_and_key() {
    let mut world = World::new();
    for (size, admitted) in [(0, false), (1, true), (511_999, true), (512_000, false)] {
        let name = alloc::format!("s{size}");
        let command = Command::MaterialCreate {
            id: testing::id(100 + size),
            kind: MaterialKind::Secret,
            spec: material_spec(&name),
            size,
            payload: sealed(1, size),
            by: testing::author(),
        };
        match world.run(command) {
            Outcome::Done(_) => assert!(admitted, "{size}"),
            outcome => assert_eq!(
                rejected(outcome),
                "secret data must be larger than 0 and less than 512000 bytes"
            ),
        }
    }
    let stale = Command::MaterialCreate {
        id: testing::id(55),
        kind: MaterialKind::Secret,
        spec: material_spec("stale"),
        size: 3,
        payload: sealed(2, 3),
        by: testing::author(),
    };
    assert_eq!(world.run(stale), Outcome::Rejected(Rejection::StaleKey { current: 1 }));
}

#[test]
fn updates_change_labels_only_and_always_count() {
    let mut world = World::new();
    let id = world.secret("a");
    let mut spec = material_spec("a");
    let update = |version, spec: &_| Command::MaterialUpdate {
        id,
        version,
        spec: MaterialSpec::clone(spec),
    };
    assert_eq!(world.run(update(1, &spec)), Outcome::Done(2));
    spec.labels.insert("k".into(), "v".into());
    assert_eq!(rejected(world.run(update(1, &spec))), "update out of sequence");
    assert_eq!(world.run(update(2, &spec)), Outcome::Done(3));
    spec.name = "b".into();
    assert_eq!(rejected(world.run(update(3, &spec))), "only updates to Labels are allowed");
}

#[test]
fn versions_follow_one_another_and_old_ones_go_unless_pinned() {
    let mut world = World::new();
    let id = world.secret("a");
    let mut spec = service_spec("web", 0);
    let task = spec.task.make_mut();
    task.container.secrets.push(crate::model::material::Grant { pin: Some(1), ..grant(id, "a") });
    world.create_service(5, spec);
    let append = |number| testing::append(id, number, sealed(1, 4));
    assert_eq!(rejected(world.run(append(3))), "update out of sequence");
    for number in 2..=70 {
        world.done(append(number));
    }
    let material = world.state.material(&id).unwrap();
    let numbers: Vec<_> = material.versions.iter().map(|version| version.number).collect();
    assert_eq!(numbers, [1, 66, 67, 68, 69, 70]);
    assert!(world.state.payload(&id, 1).is_some() && world.state.payload(&id, 2).is_none());
    assert!(world.state.purge_due().is_some());
}

#[test]
fn a_secret_in_use_is_not_removed() {
    let mut world = World::new();
    let id = world.secret("a");
    for (n, name) in [(5, "zeta"), (6, "alpha")] {
        let mut spec = service_spec(name, 1);
        spec.task.make_mut().container.secrets.push(grant(id, "a"));
        world.create_service(n, spec);
    }
    assert_eq!(
        rejected(world.run(Command::MaterialRemove { id })),
        "secret 'a' is in use by the following services: alpha, zeta"
    );
    world.update_service(5, |spec| spec.task.make_mut().container.secrets.clear());
    assert_eq!(
        rejected(world.run(Command::MaterialRemove { id })),
        "secret 'a' is in use by the following service: alpha"
    );
    world.done(Command::ServiceRemove { id: testing::id(6) });
    // The previous spec of zeta still names it: that does not count.
    world.done(Command::MaterialRemove { id });
    let back = Command::ServiceRollback { id: testing::id(5), version: 2 };
    assert_eq!(rejected(world.run(back)), "secret not found: a");
}

#[test]
fn grants_are_checked() {
    let mut world = World::new();
    let (a, b) = (world.secret("a"), world.secret("b"));
    let config = world.config("c");
    let mut try_with = |change: &dyn Fn(&mut crate::model::container::ContainerSpec)| {
        let mut spec = service_spec("web", 1);
        change(&mut spec.task.make_mut().container);
        rejected(world.run(Command::ServiceCreate { id: testing::id(9), spec }))
    };
    assert_eq!(try_with(&|c| c.secrets = vec![grant(a, "x")]), "secret not found: x");
    assert_eq!(
        try_with(&|c| c.secrets = vec![grant(config, "c"), grant(a, "y")]),
        "secrets not found: c, y"
    );
    let at = |id, name, target: &str| crate::model::material::Grant {
        target: target.into(),
        ..grant(id, name)
    };
    assert_eq!(
        try_with(&|c| c.secrets = vec![at(a, "a", "t"), at(b, "b", "t")]),
        "secret references 'a' and 'b' have a conflicting target: 't'"
    );
    assert_eq!(
        try_with(&|c| {
            c.secrets = vec![at(a, "a", "t")];
            c.configs = vec![at(config, "c", "/run/secrets/t")];
        }),
        "secret 'a' and config 'c' have a conflicting target: '/run/secrets/t'"
    );
    for target in ["", ".", "../x", "a/../b", "a//b", "a/", "/", "a\0"] {
        assert_eq!(
            try_with(&|c| c.secrets = vec![at(a, "a", target)]),
            "malformed file secret reference, invalid target file name provided"
        );
    }
    let many = |n: usize| (0..n).map(|i| at(a, "a", &alloc::format!("t{i}"))).collect();
    assert!(try_with(&|c| c.secrets = many(65)).contains("at most 64"));
    world.done(Command::ServiceCreate {
        id: testing::id(9),
        spec: {
            let mut spec = service_spec("web", 1);
            spec.task.make_mut().container.secrets = many(64);
            spec
        },
    });
}

#[test]
fn service_rules_have_dockers_words() {
    let mut world = World::new();
    let mut create = |change: &dyn Fn(&mut crate::model::service::ServiceSpec)| {
        let mut spec = service_spec("web", 1);
        change(&mut spec);
        rejected(world.run(Command::ServiceCreate { id: testing::id(9), spec }))
    };
    assert_eq!(create(&|s| s.name.clear()), "meta: name must be provided");
    assert_eq!(create(&|s| s.name = "a b".into()), "name must be valid as a DNS name component");
    assert_eq!(create(&|s| s.name = "a".repeat(64)), "name must be 63 characters or fewer");
    assert_eq!(
        create(&|s| s.mode = ServiceMode::Global),
        "service mode 'global' is not supported; the only one is 'replicated'"
    );
    assert_eq!(
        create(&|s| s.task.make_mut().container.image.clear()),
        "ContainerSpec: image reference must be provided"
    );
    assert_eq!(
        create(&|s| {
            let constraints = vec!["node.role".to_string()];
            let placement = crate::model::task::Placement { constraints, ..Default::default() };
            s.task.make_mut().placement = Some(placement);
        }),
        "constraint expected one operator from ==, !="
    );
    let spread = vec!["node.labels.zone".to_string(); 17];
    assert_eq!(
        create(&|s| {
            let placement =
                crate::model::task::Placement { spread: spread.clone(), ..Default::default() };
            s.task.make_mut().placement = Some(placement);
        }),
        "too many placement preferences: at most 16"
    );
    world.create_service(5, service_spec("web", 1));
    let update = |version, change: &dyn Fn(&mut crate::model::service::ServiceSpec)| {
        let mut spec = service_spec("web", 1);
        change(&mut spec);
        Command::ServiceUpdate { id: testing::id(5), version, spec }
    };
    assert_eq!(
        rejected(world.run(update(1, &|s| s.name = "other".into()))),
        "renaming services is not supported"
    );
    assert_eq!(
        rejected(world.run(update(1, &|s| s.mode = ServiceMode::Global))),
        "service mode change is not allowed"
    );
    assert_eq!(rejected(world.run(update(3, &|_| {}))), "update out of sequence");
    let back = Command::ServiceRollback { id: testing::id(5), version: 1 };
    assert_eq!(
        rejected(world.run(back)),
        alloc::format!(
            "service {} does not have a previous spec",
            testing::id::<crate::id::kind::Service>(5)
        )
    );
}

#[test]
fn only_a_changed_template_replaces_tasks() {
    let mut world = World::new();
    let (a, b) = (world.secret("a"), world.secret("b"));
    let mut spec = service_spec("web", 1);
    spec.task.make_mut().container.secrets = vec![grant(a, "a"), grant(b, "b")];
    let id = world.create_service(5, spec);
    let service = world.state.service(&id).unwrap();
    let task =
        Task { service: id, spec: service.spec.task.clone(), spec_version: 1, ..testing::task(40) };
    world.done(Command::Control(vec![Decision::TaskCreate(task)]));
    world.update_service(5, |spec| {
        spec.task.make_mut().container.secrets.reverse();
        spec.labels.insert("x".into(), "y".into());
    });
    let service = world.state.service(&id).unwrap();
    assert_eq!((service.spec_version, service.update.as_ref()), (1, None));
    world.update_service(5, |spec| spec.task.make_mut().force_update += 1);
    let service = world.state.service(&id).unwrap();
    assert_eq!(service.spec_version, 2);
    assert_eq!(service.update.as_ref().unwrap().state, UpdateState::Updating);
    let version = service.meta.version;
    world.done(Command::ServiceRollback { id, version });
    let service = world.state.service(&id).unwrap();
    assert_eq!(service.spec_version, 3);
    let update = service.update.as_ref().unwrap();
    assert_eq!(update.state, UpdateState::RollbackStarted);
    assert_eq!(update.message, "manually requested rollback");
    assert!(!crate::control::is_dirty(service, world.state.task(&testing::id(40)).unwrap()));
}

#[test]
fn late_and_foreign_reports_are_dropped() {
    let mut world = World::new();
    let id = world.create_service(5, service_spec("web", 1));
    let spec = world.state.service(&id).unwrap().spec.task.clone();
    let node = world.node;
    let task = Task { service: id, spec, spec_version: 1, ..testing::task(40) };
    let assign = Decision::TaskAssign { id: task.id, node };
    world.done(Command::Control(vec![Decision::TaskCreate(task.clone()), assign]));
    let state_of = |world: &World| world.state.task(&task.id).unwrap().status.state;
    world.report(task.id, testing::id(99), TaskState::Running);
    assert_eq!(state_of(&world), TaskState::Assigned);
    world.report(task.id, node, TaskState::Running);
    assert!(world.state.task(&task.id).unwrap().running_since.is_some());
    world.report(task.id, node, TaskState::Starting);
    assert_eq!(state_of(&world), TaskState::Running);
    world.report(task.id, node, TaskState::Failed);
    world.report(task.id, node, TaskState::Rejected);
    assert_eq!(state_of(&world), TaskState::Failed);
    let again = Task { id: testing::id(41), ..task };
    world.done(Command::Control(vec![Decision::TaskCreate(again)]));
    assert!(world.state.task(&testing::id(41)).is_none(), "the slot is taken");
}

#[test]
fn a_removed_service_sends_its_tasks_away() {
    let mut world = World::new();
    let id = world.create_service(5, service_spec("web", 1));
    let spec = world.state.service(&id).unwrap().spec.task.clone();
    let task = Task { service: id, spec, spec_version: 1, ..testing::task(40) };
    world.done(Command::Control(vec![Decision::TaskCreate(task.clone())]));
    world.done(Command::ServiceRemove { id });
    assert_eq!(world.state.task(&task.id).unwrap().desired, TaskState::Remove);
    world.done(Command::Control(vec![Decision::TaskRemove { id: task.id }]));
    assert_eq!(world.state.tasks().len(), 0);
    assert!(world.state.index.removed_services.is_empty());
}

#[test]
fn a_snapshot_gives_the_state_back() {
    let mut world = World::new();
    let secret = world.secret("a");
    let mut spec = service_spec("web", 1);
    spec.task.make_mut().container.secrets.push(grant(secret, "a"));
    let id = world.create_service(5, spec);
    let spec = world.state.service(&id).unwrap().spec.task.clone();
    let task = Task { service: id, spec, spec_version: 1, ..testing::task(40) };
    world.done(Command::Control(vec![Decision::TaskCreate(task)]));
    let records = world.records();
    let mut reader = snapshot::Reader::default();
    for record in &records {
        reader.push(record).unwrap();
    }
    let read = reader.finish().unwrap();
    assert_eq!(testing::records(&read), records);
    assert_eq!(alloc::format!("{:?}", read.index), alloc::format!("{:?}", world.state.index));
    for missing in 0..records.len() {
        let mut reader = snapshot::Reader::default();
        let kept = records.iter().enumerate().filter(|(i, _)| *i != missing);
        let pushed = kept.map(|(_, record)| reader.push(record)).all(|result| result.is_ok());
        assert!(!pushed || reader.finish().is_err(), "record {missing} was not missed");
    }
}
