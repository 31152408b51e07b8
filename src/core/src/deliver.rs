//! What a manager sends to a task's shim next: payloads it should hold and does not, or the order
//! to let go of what is revoked.
//!
//! An order carries a sequence number, and a shim takes none that is not later than its last. What
//! it holds is known from itself alone: it says so when it speaks up and after every order. A
//! session on another manager may have orders under way still, with the same numbers: then an order
//! of this one is passed over, the shim says what it holds, and what is missing is sent again.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use crate::assign::{self, AssignedGrant};
use crate::id::MaterialId;
use crate::limits;
use crate::model::task::Task;
use crate::state::State;

/// What to send to a shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Orders what is sent to one shim; never used twice by one session.
    pub sequence: u64,
    /// What it is about.
    pub what: What,
}

/// What an order is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// These versions come into force as one: one grant of each secret or config. It may be none,
    /// where the shim waits for an answer and there is nothing for it.
    Deliver(Vec<AssignedGrant>),
    /// None of these may be read any more, up to the version named with each: a shim that let go
    /// of one takes none of these versions back, whoever offers them.
    Revoke(Vec<(MaterialId, u64)>),
}

/// What an order leaves a shim with.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Effect {
    /// It holds these versions.
    Holds(Vec<(MaterialId, u64)>),
    /// It holds none of these, and takes no version up to the one named.
    Bars(Vec<(MaterialId, u64)>),
}

/// A task's shim as a session knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shim {
    /// Versions it said it holds.
    held: BTreeMap<MaterialId, u64>,
    /// The last version of each that it said it takes no more: an order that an earlier session had
    /// under way may come yet.
    barred: BTreeMap<MaterialId, u64>,
    /// The last sequence it said, or that was sent to it.
    sequence: u64,
    /// Orders it has not answered yet, the oldest first.
    flying: VecDeque<(u64, Effect)>,
    /// It spoke up and was sent nothing since.
    is_asking: bool,
}

impl Shim {
    /// A shim that spoke up, with what it holds and the sequence of its last order. Nothing of this
    /// session is under way to it.
    #[must_use]
    pub fn new(held: impl IntoIterator<Item = (MaterialId, u64)>, sequence: u64) -> Self {
        let held = held.into_iter().collect();
        let (barred, flying) = (BTreeMap::new(), VecDeque::new());
        Self { held, barred, sequence, flying, is_asking: true }
    }

    /// The shim spoke up anew, or refused an order: what was under way to it is lost, or comes all
    /// the same. No number of this session is used again.
    pub fn speaks_up(&mut self, held: impl IntoIterator<Item = (MaterialId, u64)>, sequence: u64) {
        let last = self.sequence;
        // What it once lets go of for good stays so.
        let barred = core::mem::take(&mut self.barred);
        *self = Self { barred, ..Self::new(held, sequence.max(last)) };
    }

    /// The shim answered an order that it took, or passed over because a later one was there, with
    /// what it holds then and the sequence of the last order it took.
    pub fn answers(&mut self, held: impl IntoIterator<Item = (MaterialId, u64)>, sequence: u64) {
        self.held = held.into_iter().collect();
        self.sequence = self.sequence.max(sequence);
        while let Some((_, effect)) = self.flying.pop_front_if(|(sent, _)| *sent <= sequence) {
            if let Effect::Bars(all) = effect {
                for (id, up_to) in all {
                    let barred = self.barred.entry(id).or_default();
                    *barred = up_to.max(*barred);
                }
            }
        }
    }

    /// Versions it said it holds.
    #[must_use]
    pub fn held(&self) -> &BTreeMap<MaterialId, u64> {
        &self.held
    }

    /// Versions that it holds or may come to hold by what is under way: all that can be said of one
    /// that is not heard of any more.
    #[must_use]
    pub fn possible(&self) -> BTreeSet<(MaterialId, u64)> {
        let coming = self.flying.iter().flat_map(|(_, effect)| match effect {
            Effect::Holds(all) => all.as_slice(),
            Effect::Bars(_) => &[],
        });
        self.held.iter().map(|(id, version)| (*id, *version)).chain(coming.copied()).collect()
    }

    /// Whether it said that it holds what the state wants of this secret or config; if that is
    /// revoked, that it holds it no more and takes it from nobody.
    #[must_use]
    pub fn complies(&self, state: &State, task: &Task, id: &MaterialId) -> bool {
        let held = self.held.get(id);
        let revoked = assign::revoked_up_to(state, task);
        if let Some((_, up_to)) = revoked.iter().find(|(revoked, _)| revoked == id) {
            let is_barred = self.barred.get(id).is_some_and(|barred| barred >= up_to);
            return is_barred && self.possible().iter().all(|(possible, _)| possible != id);
        }
        let wanted = assign::grants(state, task);
        let mut wanted = wanted.iter().filter(|grant| grant.material == *id);
        wanted.all(|grant| held.is_some_and(|held| *held >= grant.version))
    }

    /// What to send next, if anything. Whoever sends it says so by [`Shim::sent`] and asks again:
    /// what is revoked goes first.
    #[must_use]
    pub fn next(&self, state: &State, task: &Task) -> Option<Order> {
        if self.flying.len() >= limits::ORDERS {
            // Its answers make room.
            return None;
        }
        let expected = self.expected();
        // Nothing comes after the last number, which only a node makes up that means no good.
        let sequence = self.sequence.checked_add(1)?;
        // A task that is to end may still read; it gets nothing new, but what is revoked goes. That
        // is asked of what the shim holds: where a later version may be read already, open files
        // would go on showing the one before.
        let mut revoked: BTreeMap<MaterialId, u64> = expected
            .iter()
            .filter_map(|(id, held)| Some((*id, state.material(id)?.revoked_up_to(task, *held)?)))
            .collect();
        // What it does not hold may be on the way to it from a session before this one.
        let barred = self.expected_bars();
        let open =
            |(id, up_to): &(MaterialId, u64)| barred.get(id).is_none_or(|barred| barred < up_to);
        revoked.extend(assign::revoked_up_to(state, task).into_iter().filter(open));
        if !revoked.is_empty() {
            return Some(Order { sequence, what: What::Revoke(revoked.into_iter().collect()) });
        }
        let mut missing: BTreeMap<MaterialId, AssignedGrant> = BTreeMap::new();
        for grant in assign::grants(state, task) {
            if expected.get(&grant.material).is_none_or(|held| *held < grant.version) {
                missing.insert(grant.material, grant);
            }
        }
        let waits = self.is_asking && expected.is_empty();
        let what = What::Deliver(missing.into_values().collect());
        (waits || what != What::Deliver(Vec::new())).then_some(Order { sequence, what })
    }

    /// An order was sent.
    pub fn sent(&mut self, order: &Order) {
        let effect = match &order.what {
            What::Deliver(grants) => {
                self.is_asking = false;
                let all = grants.iter().map(|grant| (grant.material, grant.version));
                Effect::Holds(all.collect())
            }
            What::Revoke(all) => Effect::Bars(all.clone()),
        };
        self.sequence = self.sequence.max(order.sequence);
        self.flying.push_back((order.sequence, effect));
    }

    /// What it holds once everything that is under way has arrived.
    fn expected(&self) -> BTreeMap<MaterialId, u64> {
        let mut expected = self.held.clone();
        for (_, effect) in &self.flying {
            match effect {
                Effect::Holds(all) => expected.extend(all.iter().copied()),
                Effect::Bars(all) => all.iter().for_each(|(id, _)| {
                    expected.remove(id);
                }),
            }
        }
        expected
    }

    /// What it takes no more once everything that is under way has arrived.
    fn expected_bars(&self) -> BTreeMap<MaterialId, u64> {
        let mut expected = self.barred.clone();
        for (_, effect) in &self.flying {
            let Effect::Bars(all) = effect else { continue };
            for (id, up_to) in all {
                let barred = expected.entry(*id).or_default();
                *barred = (*up_to).max(*barred);
            }
        }
        expected
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::command::{Command, Decision};
    use crate::id::TaskId;
    use crate::model::task::TaskState;
    use crate::testing::{self, World, append, author, grant, sealed, service_spec};

    /// A task that is granted two secrets.
    fn world() -> (World, TaskId, [MaterialId; 2]) {
        let mut world = World::new();
        let ids = [world.secret("a"), world.secret("b")];
        let mut spec = service_spec("web", 1);
        spec.task.make_mut().container.secrets = vec![grant(ids[0], "a"), grant(ids[1], "b")];
        let service = world.create_service(5, spec);
        let spec = world.state.service(&service).unwrap().spec.task.clone();
        let task = Task { service, spec, node: Some(world.node), ..testing::task(40) };
        world.done(Command::Control(vec![Decision::TaskCreate(task)]));
        (world, testing::id(40), ids)
    }

    /// Sends what is next; gives its sequence, what it delivers and what it revokes.
    fn send(world: &World, shim: &mut Shim) -> Option<(u64, Vec<u64>, Vec<MaterialId>)> {
        let order = shim.next(&world.state, world.state.task(&testing::id(40)).unwrap())?;
        shim.sent(&order);
        Some(match order.what {
            What::Deliver(grants) => {
                (order.sequence, grants.iter().map(|grant| grant.version).collect(), vec![])
            }
            What::Revoke(all) => (order.sequence, vec![], all.iter().map(|(id, _)| *id).collect()),
        })
    }

    #[test]
    fn what_is_missing_is_sent_once_and_again_if_it_did_not_arrive() {
        let (mut world, task, [a, b]) = world();
        let mut shim = Shim::new([], 0);
        assert_eq!(send(&world, &mut shim), Some((1, vec![1, 1], vec![])));
        assert_eq!(send(&world, &mut shim), None, "it is under way");
        world.done(append(a, 2, sealed(1, 4)));
        assert_eq!(send(&world, &mut shim), Some((2, vec![2], vec![])));
        shim.answers([(a, 1), (b, 1)], 1);
        assert_eq!(send(&world, &mut shim), None, "the second is under way");
        let of = world.state.task(&task).unwrap();
        assert!(!shim.complies(&world.state, of, &a) && shim.complies(&world.state, of, &b));
        shim.speaks_up([(a, 1), (b, 1)], 1);
        assert_eq!(send(&world, &mut shim), Some((3, vec![2], vec![])), "no number comes again");
        // Somebody else's order with this number came first.
        shim.answers([(a, 1), (b, 1)], 3);
        assert_eq!(send(&world, &mut shim), Some((4, vec![2], vec![])));
        shim.answers([(a, 2), (b, 1)], 4);
        assert_eq!(send(&world, &mut shim), None);
        assert!(shim.complies(&world.state, of, &a));
        // A manager that is behind another asks for nothing older.
        shim.answers([(a, 3), (b, 1)], 9);
        assert_eq!(send(&world, &mut shim), None);
    }

    #[test]
    fn what_is_revoked_goes_first_even_from_a_task_that_ends() {
        let (mut world, task, [a, b]) = world();
        let mut shim = Shim::new([(a, 1)], 4);
        world.done(Command::MaterialRevoke { id: a, service: None, task: None, by: author() });
        let of = world.state.task(&task).unwrap();
        assert!(!shim.complies(&world.state, of, &a));
        assert_eq!(send(&world, &mut shim), Some((5, vec![], vec![a])));
        assert_eq!(send(&world, &mut shim), Some((6, vec![1], vec![])));
        assert_eq!(send(&world, &mut shim), None);
        assert_eq!(shim.possible(), [(a, 1), (b, 1)].into(), "it did not say that it let go");
        shim.answers([(b, 1)], 6);
        assert_eq!(shim.possible(), [(b, 1)].into());
        let desired = TaskState::Shutdown;
        world.done(Command::Control(vec![Decision::TaskDesire { id: task, desired }]));
        world.done(Command::MaterialRevoke { id: b, service: None, task: None, by: author() });
        world.done(append(a, 2, sealed(1, 4)));
        assert_eq!(send(&world, &mut shim), Some((7, vec![], vec![b])));
        assert_eq!(send(&world, &mut shim), None, "a task that is to end gets nothing new");
        shim.answers([], 7);
        let of = world.state.task(&task).unwrap();
        assert!(shim.complies(&world.state, of, &b));
    }

    #[test]
    fn what_is_on_its_way_when_it_is_revoked_is_not_gone() {
        let (mut world, task, [a, _]) = world();
        let mut shim = Shim::new([], 0);
        assert!(send(&world, &mut shim).is_some());
        world.done(Command::MaterialRevoke { id: a, service: None, task: None, by: author() });
        assert_eq!(send(&world, &mut shim), Some((2, vec![], vec![a])));
        let of = world.state.task(&task).unwrap();
        assert!(!shim.complies(&world.state, of, &a), "it may be read until the answer comes");
        shim.answers([(a, 1)], 1);
        assert!(!shim.complies(&world.state, of, &a));
        shim.answers([], 2);
        assert!(shim.complies(&world.state, of, &a));
    }

    #[test]
    fn what_was_revoked_goes_before_a_later_version_comes() {
        let (mut world, _, [a, b]) = world();
        let mut shim = Shim::new([(a, 1), (b, 1)], 4);
        world.done(Command::MaterialRevoke { id: a, service: None, task: None, by: author() });
        world.done(append(a, 2, sealed(1, 4)));
        let up_to = |order: Order| match order.what {
            What::Revoke(all) => all,
            What::Deliver(_) => vec![],
        };
        let task = world.state.task(&testing::id(40)).unwrap();
        assert_eq!(shim.next(&world.state, task).map(up_to), Some(vec![(a, 1)]));
        assert_eq!(send(&world, &mut shim), Some((5, vec![], vec![a])));
        assert_eq!(send(&world, &mut shim), Some((6, vec![2], vec![])));
        shim.answers([(a, 2), (b, 1)], 6);
        assert_eq!(send(&world, &mut shim), None);
    }

    #[test]
    fn a_shim_with_nothing_to_get_is_answered_and_orders_are_bounded() {
        let (mut world, _, [a, b]) = world();
        for id in [a, b] {
            world.done(Command::MaterialRevoke { id, service: None, task: None, by: author() });
        }
        let mut shim = Shim::new([], 0);
        // Neither is held, but an earlier session may have sent them.
        assert_eq!(send(&world, &mut shim), Some((1, vec![], vec![a, b])));
        assert_eq!(send(&world, &mut shim), Some((2, vec![], vec![])));
        assert_eq!(send(&world, &mut shim), None);
        shim.answers([], 2);
        assert_eq!(send(&world, &mut shim), None);
        let versions = 2..2 + limits::ORDERS as u64;
        for number in versions.clone() {
            world.done(append(a, number, sealed(1, 4)));
            assert!(send(&world, &mut shim).is_some());
        }
        world.done(append(a, versions.end, sealed(1, 4)));
        assert_eq!(send(&world, &mut shim), None, "too many are under way");
        shim.answers([(a, 2)], 3);
        assert_eq!(send(&world, &mut shim).unwrap().1, [versions.end]);
    }
    #[test]
    fn what_an_earlier_session_sent_is_not_gone_before_the_shim_says_so() {
        let (mut world, task, [a, _]) = world();
        world.done(Command::MaterialRevoke { id: a, service: None, task: None, by: author() });
        // It was sent version 1 by a session that is over, and has not got it yet.
        let mut shim = Shim::new([], 0);
        let complies =
            |shim: &Shim| shim.complies(&world.state, world.state.task(&task).unwrap(), &a);
        assert!(!complies(&shim));
        assert_eq!(send(&world, &mut shim), Some((1, vec![], vec![a])));
        assert!(!complies(&shim));
        shim.answers([], 1);
        assert!(complies(&shim));
        // It need not be told again, whatever it refuses later.
        shim.speaks_up([], 1);
        assert!(complies(&shim));
        assert_eq!(send(&world, &mut shim), Some((2, vec![1], vec![])), "only what is granted");
        shim.answers([], u64::MAX);
        assert_eq!(send(&world, &mut shim), None, "no number is left");
    }
}
