//! The search for an order: Wing and Gong's, which remembers where it has been. Objects are
//! checked one by one, because a history is linearizable exactly if that of each object is.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::{Action, Operation, Outcome};

/// Most steps of the search for one object.
const STEPS: usize = 200_000;

/// An object's value, if it is there.
type Value = Option<u64>;

/// Why a history is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// No order of the operations on this object explains what the clients saw.
    NoOrder {
        /// The object's operations in the order of their start.
        operations: Vec<Operation>,
        /// How many of them the best order explains.
        explained: usize,
        /// Those of which none could come next then.
        stuck: Vec<Operation>,
        /// What the object was then.
        value: Value,
    },
    /// The search was given up.
    Undecided {
        /// The object.
        key: String,
        /// How many operations it has.
        operations: usize,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undecided { key, operations } => {
                write!(out, "{key}: {operations} operations are too many to decide on")
            }
            Self::NoOrder { operations, explained, stuck, value } => {
                writeln!(out, "no order explains these operations:")?;
                for operation in operations {
                    writeln!(out, "  {operation}")?;
                }
                writeln!(
                    out,
                    "after {explained} of them, at {value:?}, none of these can follow:"
                )?;
                stuck.iter().try_for_each(|operation| writeln!(out, "  {operation}"))
            }
        }
    }
}

impl std::error::Error for Fault {}

/// Checks a history of objects none of which was there at its start.
pub fn check(history: &[Operation]) -> Result<(), Fault> {
    let mut objects: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history.iter().filter(|operation| tells_something(operation)) {
        objects.entry(&operation.key).or_default().push(operation);
    }
    for mut operations in objects.into_values() {
        operations.sort_by_key(|operation| operation.invoked);
        Search::new(&operations).run()?;
    }
    Ok(())
}

fn tells_something(operation: &Operation) -> bool {
    match operation.outcome {
        Outcome::Failed => false,
        Outcome::Unknown => operation.action != Action::Read,
        Outcome::Done | Outcome::Found(_) | Outcome::Refused => true,
    }
}

/// What becomes of an object if this operation takes effect now; nothing if it cannot.
fn step(value: Value, operation: &Operation) -> Option<Value> {
    let (fits, next) = match operation.action {
        Action::Create(new) => (value.is_none(), Some(new)),
        Action::Swap { from, to } => (value == Some(from), Some(to)),
        Action::Remove => (value.is_some(), None),
        Action::Read => return (operation.outcome == Outcome::Found(value)).then_some(value),
    };
    match operation.outcome {
        Outcome::Done | Outcome::Unknown => fits.then_some(next),
        Outcome::Refused => (!fits).then_some(value),
        Outcome::Found(_) | Outcome::Failed => None,
    }
}

/// A set of operations, by their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Taken(Vec<u64>);

impl Taken {
    fn has(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    fn flip(&mut self, at: usize) {
        if let Some(word) = self.0.get_mut(at / 64) {
            *word ^= 1 << (at % 64);
        }
    }
}

struct Search<'a> {
    operations: &'a [&'a Operation],
    taken: Taken,
    value: Value,
    /// Operations whose outcome is known and that are not taken yet.
    left: usize,
    /// What was taken, with the value before it.
    path: Vec<(usize, Value)>,
    seen: HashSet<(Taken, Value)>,
    best: Option<(usize, Taken, Value)>,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [&'a Operation]) -> Self {
        let known = operations.iter().filter(|one| one.outcome != Outcome::Unknown).count();
        Self {
            operations,
            taken: Taken(vec![0; operations.len().div_ceil(64)]),
            value: None,
            left: known,
            path: Vec::new(),
            seen: HashSet::new(),
            best: None,
        }
    }

    fn run(mut self) -> Result<(), Fault> {
        let mut from = 0;
        for _ in 0..STEPS {
            if self.left == 0 {
                return Ok(());
            }
            if let Some((at, next)) = self.candidate(from) {
                self.path.push((at, self.value));
                self.take(at);
                self.value = next;
                from = 0;
            } else if let Some((at, before)) = self.path.pop() {
                self.take(at);
                self.value = before;
                from = at + 1;
            } else {
                return Err(self.fault());
            }
        }
        let key = self.operations.first().map(|one| one.key.clone()).unwrap_or_default();
        Err(Fault::Undecided { key, operations: self.operations.len() })
    }

    /// Takes an operation, or gives it back.
    fn take(&mut self, at: usize) {
        let known = self.operations.get(at).is_some_and(|one| one.outcome != Outcome::Unknown);
        self.taken.flip(at);
        match (known, self.taken.has(at)) {
            (true, true) => self.left -= 1,
            (true, false) => self.left += 1,
            (false, _) => {}
        }
        let explained = self.path.len();
        if self.best.as_ref().is_none_or(|(best, ..)| explained > *best) {
            let (last, before) = self.path.last().copied().unwrap_or_default();
            let value = self.operations.get(last).and_then(|one| step(before, one));
            self.best = Some((explained, self.taken.clone(), value.unwrap_or_default()));
        }
    }

    /// Numbers of the operations of which one has to be next: those that had begun before any
    /// other that is left had come back.
    fn open(&self, taken: &Taken) -> Vec<usize> {
        let mut horizon = Duration::MAX;
        let mut open = Vec::new();
        for (at, operation) in self.operations.iter().enumerate() {
            if operation.invoked > horizon {
                break;
            }
            if !taken.has(at) {
                open.push(at);
                if operation.outcome != Outcome::Unknown {
                    horizon = horizon.min(operation.returned);
                }
            }
        }
        open
    }

    /// The next operation from number `from` on that can follow and leads to somewhere new, and
    /// what it makes of the object.
    fn candidate(&mut self, from: usize) -> Option<(usize, Value)> {
        for at in self.open(&self.taken).into_iter().filter(|at| *at >= from) {
            let Some(next) = self.operations.get(at).and_then(|one| step(self.value, one)) else {
                continue;
            };
            let mut taken = self.taken.clone();
            taken.flip(at);
            if self.seen.insert((taken, next)) {
                return Some((at, next));
            }
        }
        None
    }

    fn fault(self) -> Fault {
        let none = (0, Taken(vec![0; self.taken.0.len()]), None);
        let (explained, taken, value) = self.best.clone().unwrap_or(none);
        let stuck = self.open(&taken).into_iter().filter_map(|at| self.operations.get(at));
        Fault::NoOrder {
            operations: self.operations.iter().copied().cloned().collect(),
            explained,
            stuck: stuck.copied().cloned().collect(),
            value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Action::{Create, Read, Remove, Swap};
    use super::Outcome::{Done, Failed, Found, Refused, Unknown};
    use super::*;

    /// A history of one object: client, start and end in milliseconds, action, outcome.
    fn history(lines: &[(usize, u64, u64, Action, Outcome)]) -> Vec<Operation> {
        let of = |line: &(usize, u64, u64, Action, Outcome)| Operation {
            client: line.0,
            key: "k".to_owned(),
            action: line.3,
            outcome: line.4,
            invoked: Duration::from_millis(line.1),
            returned: Duration::from_millis(line.2),
        };
        lines.iter().map(of).collect()
    }

    fn good(lines: &[(usize, u64, u64, Action, Outcome)]) {
        check(&history(lines)).unwrap();
    }

    fn bad(lines: &[(usize, u64, u64, Action, Outcome)]) {
        let found = check(&history(lines));
        assert!(matches!(found, Err(Fault::NoOrder { .. })), "{found:?}");
    }

    #[test]
    fn one_after_the_other() {
        good(&[
            (0, 0, 1, Read, Found(None)),
            (0, 2, 3, Create(1), Done),
            (1, 4, 5, Create(2), Refused),
            (0, 6, 7, Swap { from: 1, to: 3 }, Done),
            (1, 8, 9, Swap { from: 1, to: 4 }, Refused),
            (1, 10, 11, Read, Found(Some(3))),
            (0, 12, 13, Remove, Done),
            (0, 14, 15, Remove, Refused),
            (0, 16, 17, Create(5), Done),
            (1, 18, 19, Read, Found(Some(5))),
        ]);
    }

    #[test]
    fn at_the_same_time() {
        // Two make it, one wins; a reader beside them may see either state.
        good(&[
            (0, 0, 10, Create(1), Done),
            (1, 0, 10, Create(2), Refused),
            (2, 0, 10, Read, Found(None)),
            (3, 0, 10, Read, Found(Some(1))),
        ]);
        // The first to come back was the last to take effect.
        good(&[
            (0, 0, 10, Create(1), Done),
            (1, 1, 2, Read, Found(None)),
            (1, 3, 4, Read, Found(Some(1))),
            (2, 3, 9, Remove, Done),
            (3, 5, 8, Create(2), Done),
            (1, 11, 12, Read, Found(Some(2))),
        ]);
        // Both cannot win.
        bad(&[(0, 0, 10, Create(1), Done), (1, 0, 10, Create(2), Done)]);
        bad(&[
            (0, 0, 1, Create(1), Done),
            (0, 2, 9, Swap { from: 1, to: 2 }, Done),
            (1, 2, 9, Swap { from: 1, to: 3 }, Done),
        ]);
    }

    #[test]
    fn a_lost_acknowledged_write() {
        bad(&[(0, 0, 1, Create(1), Done), (0, 2, 3, Read, Found(None))]);
        bad(&[
            (0, 0, 1, Create(1), Done),
            (0, 2, 3, Swap { from: 1, to: 2 }, Done),
            (1, 4, 5, Swap { from: 1, to: 3 }, Done),
        ]);
        bad(&[(0, 0, 1, Create(1), Done), (1, 2, 3, Create(2), Done)]);
    }

    #[test]
    fn a_stale_read() {
        bad(&[
            (0, 0, 1, Create(1), Done),
            (0, 2, 3, Swap { from: 1, to: 2 }, Done),
            (1, 4, 5, Read, Found(Some(1))),
        ]);
        // Not even if the write is still under way, once somebody has seen it.
        bad(&[
            (0, 0, 1, Create(1), Done),
            (0, 2, 20, Swap { from: 1, to: 2 }, Done),
            (1, 4, 5, Read, Found(Some(2))),
            (2, 6, 7, Read, Found(Some(1))),
        ]);
    }

    #[test]
    fn a_resurrected_delete() {
        bad(&[
            (0, 0, 1, Create(1), Done),
            (0, 2, 3, Remove, Done),
            (1, 4, 5, Read, Found(None)),
            (1, 6, 7, Read, Found(Some(1))),
        ]);
        bad(&[(0, 0, 1, Create(1), Done), (0, 2, 3, Remove, Done), (1, 4, 5, Create(2), Refused)]);
        // A removal that was told that there was nothing, and yet removed it.
        bad(&[
            (0, 0, 1, Create(1), Done),
            (0, 2, 3, Remove, Refused),
            (0, 4, 5, Read, Found(None)),
        ]);
    }

    #[test]
    fn unknown_outcomes_may_be_late_or_never() {
        let unknown = |seen| [(0, 0, 1, Create(1), Unknown), (1, 50, 51, Read, Found(seen))];
        good(&unknown(None));
        good(&unknown(Some(1)));
        // Once seen it is done, and done once.
        good(&[
            (0, 0, 1, Create(1), Done),
            (0, 2, 3, Remove, Unknown),
            (1, 4, 5, Read, Found(Some(1))),
            (1, 60, 61, Read, Found(None)),
        ]);
        bad(&[
            (0, 0, 1, Create(1), Unknown),
            (1, 2, 3, Read, Found(Some(1))),
            (1, 4, 5, Remove, Done),
            (1, 6, 7, Read, Found(Some(1))),
        ]);
        // Not before it was asked.
        bad(&[(1, 0, 1, Read, Found(Some(1))), (0, 2, 3, Create(1), Unknown)]);
        // What failed never happens.
        bad(&[(0, 0, 1, Create(1), Failed), (1, 2, 3, Read, Found(Some(1)))]);
        good(&[(0, 0, 1, Create(1), Failed), (1, 2, 3, Read, Found(None))]);
    }

    /// What a cut leaves: writes of which nobody knows. Those of many clients at once are decided
    /// on, and too many are not, which is told.
    #[test]
    fn many_unknown_outcomes() {
        let cut = |count: u64, seen| {
            let mut lines = vec![(0, 0, 1, Create(0), Done)];
            for at in 1..=count {
                lines.push((1, at * 10, at * 10 + 1, Swap { from: at - 1, to: at }, Unknown));
                lines.push((2, at * 10, at * 10 + 1, Create(1_000 + at), Unknown));
                lines.push((3, at * 10, at * 10 + 1, Remove, Unknown));
            }
            lines.push((4, 5_000, 5_001, Read, Found(Some(seen))));
            check(&history(&lines))
        };
        assert_eq!(cut(5, 5), Ok(()));
        assert_eq!(cut(5, 1_005), Ok(()));
        assert!(matches!(cut(5, 6), Err(Fault::NoOrder { .. })));
        assert!(matches!(cut(40, 41), Err(Fault::Undecided { operations: 122, .. })));
    }

    #[test]
    fn objects_are_checked_one_by_one() {
        let mut both = history(&[(0, 0, 1, Create(1), Done), (0, 2, 3, Read, Found(Some(1)))]);
        let mut other = history(&[(0, 0, 1, Create(9), Done), (0, 2, 3, Read, Found(None))]);
        check(&both).unwrap();
        other.iter_mut().for_each(|operation| operation.key = "other".to_owned());
        both.extend(other);
        let Err(Fault::NoOrder { operations, explained, stuck, value }) = check(&both) else {
            panic!("accepted");
        };
        assert!(operations.len() == 2 && operations.iter().all(|one| one.key == "other"));
        assert!(explained == 1 && stuck == operations[1..] && value == Some(9));
    }

    /// A store with one lock, driven by threads: what is recorded of it is linearizable, and no
    /// longer when one answer of the many is changed.
    #[test]
    fn a_store_with_one_lock() {
        let record = super::super::History::default();
        let store = std::sync::Mutex::new(None);
        std::thread::scope(|scope| {
            for client in 0..8 {
                let (record, store) = (&record, &store);
                scope.spawn(move || {
                    for round in 0..100 {
                        let value = (client * 1_000 + round) as u64;
                        let invoked = record.now();
                        let action = [Create(value), Remove, Read, Read][(client + round) % 4];
                        let outcome = {
                            let mut held = store.lock().unwrap();
                            match (action, *held) {
                                (Read, found) => Found(found),
                                (Create(_), Some(_)) | (Remove, None) => Refused,
                                (Create(new), None) => {
                                    *held = Some(new);
                                    Done
                                }
                                _ => {
                                    *held = None;
                                    Done
                                }
                            }
                        };
                        record.record(client, "k", action, outcome, invoked);
                    }
                });
            }
        });
        let mut all = record.operations();
        assert_eq!(all.len(), 800);
        check(&all).unwrap();
        let read = all.iter_mut().rfind(|one| one.action == Read).unwrap();
        read.outcome = Found(Some(u64::MAX));
        assert!(matches!(check(&all), Err(Fault::NoOrder { .. })));
    }
}
