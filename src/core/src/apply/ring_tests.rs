use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::*;
use crate::command::TrustSecrets;
use crate::model::cluster::{RingKey, Slot};
use crate::testing::{self, World, sealed, slot};

fn rejected(outcome: Outcome) -> String {
    match outcome {
        Outcome::Rejected(rejection) => rejection.to_string(),
        outcome => panic!("{outcome:?}"),
    }
}

fn turn(world: &mut World) {
    let managers: Vec<NodeId> = world.state.managers().map(|(node, _)| node.id).collect();
    let (key, secrets) = world.next_key(&managers);
    world.done(Command::RingTurn { key, secrets });
}

fn keys(world: &World) -> Vec<u64> {
    world.state.cluster().unwrap().ring.keys.iter().map(|key| key.version).collect()
}

#[test]
fn a_key_stays_for_as_long_as_a_payload_needs_it() {
    let mut world = World::new();
    let first = world.secret("a");
    turn(&mut world);
    assert_eq!(keys(&world), [1, 2]);
    let stale = testing::create_secret(50, "b");
    assert_eq!(world.run(stale), Outcome::Rejected(Rejection::StaleKey { current: 2 }));
    // Nothing was ever sealed with the second one but what the third one seals now.
    turn(&mut world);
    assert_eq!(keys(&world), [1, 3]);
    let version = world.state.cluster().unwrap().meta.version;
    world.changes.clear();
    world.done(Command::MaterialRemove { id: first });
    assert_eq!(keys(&world), [3]);
    assert_eq!(world.changes, [Change::Material(first), Change::Cluster]);
    assert_eq!(world.state.cluster().unwrap().meta.version, version + 1);
    let ring = &world.state.cluster().unwrap().ring;
    assert_eq!((ring.current, ring.keys[0].slots.len()), (3, 1));
}

#[test]
fn a_new_version_frees_the_key_of_the_last_one_only_with_it() {
    let mut world = World::new();
    let id = world.secret("a");
    turn(&mut world);
    for number in 2..=u64::from(limits::KEEP_VERSIONS) + 1 {
        assert_eq!(keys(&world), [1, 2]);
        world.done(testing::append(id, number, sealed(2, 4)));
    }
    assert_eq!(keys(&world), [2]);
}

#[test]
fn a_turn_is_checked() {
    let mut world = World::new();
    let (node, other) = (world.node, testing::id(9));
    let mut refuse = |change: &dyn Fn(&mut RingKey, &mut TrustSecrets)| {
        let (mut key, mut secrets) = world.next_key(&[node]);
        change(&mut key, &mut secrets);
        rejected(world.run(Command::RingTurn { key, secrets }))
    };
    let stale = "sealed with a key that is not current; the current one is 1";
    assert_eq!(refuse(&|key, _| key.version = 3), stale);
    assert_eq!(refuse(&|key, _| key.version = 1), stale);
    assert_eq!(refuse(&|_, secrets| secrets.cluster_version += 1), stale);
    let slots = "the ring's next key has 2 slots and is for 1 managers: it needs one for each of \
                 them, and no other";
    assert_eq!(
        refuse(&|key, _| {
            key.slots.insert(other, slot());
        }),
        slots
    );
    assert!(refuse(&|key, _| key.slots = BTreeMap::from([(other, slot())])).contains("1 slots"));
    let huge = Slot { sealed: [0; limits::SLOT_BYTES + 1].to_vec() };
    assert_eq!(
        refuse(&|key, _| {
            key.slots.insert(node, huge.clone());
        }),
        "a ring key sealed to a manager has at most 256 bytes"
    );
    assert_eq!(
        refuse(&|_, secrets| secrets.manager_secret.key = 1),
        "the ring turns to key 2, but one of the swarm's secrets is sealed with key 1"
    );
    assert_eq!(
        refuse(&|_, secrets| secrets.worker_secret = sealed(2, limits::TRUST_SECRET_BYTES as u64)),
        "a sealed key or join secret has at most 4096 bytes, this one 4112"
    );
    let all = "turning the ring needs every secret of the swarm sealed anew, and no other: the \
               unlock key while autolock is on, the next root's key while the root changes";
    assert_eq!(refuse(&|_, secrets| secrets.unlock_key = Some(sealed(2, 3))), all);
    assert_eq!(refuse(&|_, secrets| secrets.next_root_key = Some(sealed(2, 3))), all);
    assert_eq!(keys(&world), [1]);
    turn(&mut world);
    let cluster = world.state.cluster().unwrap();
    assert_eq!(cluster.ring.keys[0].created, world.now);
    assert!(cluster.trust.sealed().all(|sealed| sealed.key == 2));
    assert_eq!(cluster.trust.sealed().count(), 3);
}

#[test]
fn the_ring_is_bounded() {
    let mut world = World::new();
    for n in 1..limits::RING_KEYS as u64 {
        let (spec, payload) = (testing::material_spec(&n.to_string()), sealed(n, 3));
        let kind = crate::model::material::MaterialKind::Secret;
        world.done(Command::MaterialCreate {
            id: testing::id(100 + n),
            kind,
            spec,
            size: 3,
            payload,
            by: testing::author(),
        });
        turn(&mut world);
    }
    let (key, secrets) = world.next_key(&[world.node]);
    assert!(
        rejected(world.run(Command::RingTurn { key, secrets }))
            .starts_with("the ring has 256 keys")
    );
    world.done(Command::MaterialRemove { id: testing::id(101) });
    turn(&mut world);
}

#[test]
fn autolock_has_an_unlock_key() {
    let mut world = World::new();
    let mut update = |autolock, unlock_key| {
        let cluster = world.state.cluster().unwrap().clone();
        let spec = crate::model::cluster::ClusterSpec { autolock, ..cluster.spec.clone() };
        let (version, tokens) = (cluster.meta.version, Default::default());
        let outcome = world.run(Command::ClusterUpdate { version, spec, tokens, unlock_key });
        (outcome, world.state.cluster().unwrap().trust.unlock_key.clone())
    };
    let missing = "autolock needs an unlock key, and the swarm has none: send one with the update";
    assert_eq!(rejected(update(true, None).0), missing);
    let stale = Outcome::Rejected(Rejection::StaleKey { current: 1 });
    assert_eq!(update(true, Some(sealed(4, 8))).0, stale);
    assert_eq!(update(true, Some(sealed(1, 8))), (Outcome::Done(2), Some(sealed(1, 8))));
    assert_eq!(update(true, None), (Outcome::Done(3), Some(sealed(1, 8))));
    assert_eq!(update(true, Some(sealed(1, 9))).1, Some(sealed(1, 9)));
    assert_eq!(update(false, Some(sealed(1, 9))).1, None);
    assert_eq!(rejected(update(true, None).0), missing);
}
