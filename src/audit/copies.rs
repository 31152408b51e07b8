//! The copies of one task's records that managers keep, and which of them count where they differ.

use std::collections::BTreeMap;

use minicbor::bytes::ByteVec;
use skep_core::id::NodeId;

use super::chain::{Anchor, Finding, hash};
use super::record::Head;

/// One record as some managers keep it.
#[derive(Debug)]
struct Copy {
    body: ByteVec,
    keepers: Vec<NodeId>,
}

/// What managers keep of one task.
#[derive(Debug, Default)]
pub struct Copies {
    /// By sequence and hash. What is no record has none.
    kept: BTreeMap<(Option<u64>, [u8; 32]), Copy>,
    bytes: usize,
}

impl Copies {
    /// Takes what a manager keeps, in any order.
    pub fn add(&mut self, manager: NodeId, bodies: Vec<ByteVec>) {
        for body in bodies {
            let sequence = Head::parse(&body).ok().map(|head| head.sequence);
            let key = (sequence, hash(&body));
            let bytes = &mut self.bytes;
            let copy = self.kept.entry(key).or_insert_with(|| {
                *bytes += body.len();
                Copy { body, keepers: Vec::new() }
            });
            if !copy.keepers.contains(&manager) {
                copy.keepers.push(manager);
            }
        }
    }

    /// Bytes of all different records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many different records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The last sequence; zero if there is none.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.kept.keys().filter_map(|(sequence, _)| *sequence).max().unwrap_or(0)
    }

    /// One record of each sequence. Where managers keep different ones, the one counts that an
    /// anchor or the record behind it names; where neither does, all go on, for the check of the
    /// chain to find.
    #[must_use]
    pub fn settle(self, anchors: &[Anchor]) -> (Vec<ByteVec>, Vec<Finding>) {
        let mut by_sequence: BTreeMap<Option<u64>, Vec<([u8; 32], Copy)>> = BTreeMap::new();
        for ((sequence, hash), copy) in self.kept {
            by_sequence.entry(sequence).or_default().push((hash, copy));
        }
        let (mut bodies, mut findings) = (Vec::new(), Vec::new());
        // From the end on: what is known to be right names what is right before it.
        let mut named: Option<(u64, [u8; 32])> = None;
        for (sequence, found) in by_sequence.into_iter().rev() {
            let Some(sequence) = sequence else {
                bodies.extend(found.into_iter().map(|(_, copy)| copy.body));
                continue;
            };
            let anchor = anchors.iter().find(|anchor| anchor.sequence == sequence);
            let by_next = named.filter(|(of, _)| *of == sequence).map(|(_, hash)| hash);
            let wanted = anchor.map(|anchor| anchor.hash).or(by_next);
            let is_known = found.iter().any(|(hash, _)| Some(*hash) == wanted);
            let is_disputed = found.len() > 1 && !is_known;
            if is_disputed {
                let managers = found.iter().map(|(_, copy)| copy.keepers.clone()).collect();
                findings.push(Finding::Disputed { sequence, managers });
            }
            named = None;
            for (hash, copy) in found {
                if is_known && Some(hash) != wanted {
                    let edited = |manager| Finding::EditedCopy { sequence, manager };
                    findings.extend(copy.keepers.into_iter().map(edited));
                    continue;
                }
                let previous = Head::parse(&copy.body).ok().map(|head| head.previous);
                if !is_disputed {
                    named = previous.zip(sequence.checked_sub(1)).map(|(hash, of)| (of, hash));
                }
                bodies.push(copy.body);
            }
        }
        findings.sort();
        (bodies, findings)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{chain, id};
    use super::super::{Record, verify};
    use super::*;

    fn edited(body: &ByteVec) -> ByteVec {
        let mut record = Record::parse(body).unwrap();
        record.rows.clear();
        record.to_body()
    }

    /// What three managers keep, the second of them with a record that was changed there.
    fn kept(changed: u64, anchored: Option<u64>) -> Vec<Finding> {
        let (task, one, two, three) = (id(1), id(11), id(12), id(13));
        let whole = chain(&task, id(2), 4);
        let mut copies = Copies::default();
        copies.add(one, whole.clone());
        let mut other = whole.clone();
        let at = changed as usize - 1;
        other[at] = edited(&other[at]);
        copies.add(two, other);
        copies.add(three, whole[..3].to_vec());
        assert_eq!((copies.len(), copies.last()), (5, 4));
        let anchors: Vec<_> = anchored
            .map(|sequence| Anchor { sequence, hash: hash(&whole[sequence as usize - 1]) })
            .into_iter()
            .collect();
        let (bodies, mut findings) = copies.settle(&anchors);
        findings.extend(verify(&task, &bodies, &anchors));
        findings
    }

    #[test]
    fn a_changed_copy_is_named_with_its_manager_and_the_others_count() {
        for changed in 1..=3 {
            let expected = [Finding::EditedCopy { sequence: changed, manager: id(12) }];
            assert_eq!(kept(changed, None), expected);
            assert_eq!(kept(changed, Some(4)), expected);
        }
        assert_eq!(kept(4, Some(4)), [Finding::EditedCopy { sequence: 4, manager: id(12) }]);
    }

    #[test]
    fn what_nothing_decides_is_said_to_be_open() {
        let found = kept(4, Some(2));
        let Finding::Disputed { sequence: 4, managers } = &found[0] else { panic!("{found:?}") };
        let mut managers = managers.clone();
        managers.sort();
        assert_eq!(managers, [vec![id(11)], vec![id(12)]]);
        assert!(found.contains(&Finding::Twice { sequence: 4 }));
    }

    #[test]
    fn a_chain_that_one_manager_wrote_anew_is_that_managers_alone() {
        let (task, one, two) = (id(1), id(11), id(12));
        let whole = chain(&task, id(2), 4);
        let mut anew = whole.clone();
        for at in 1..4 {
            let previous = hash(&anew[at - 1]);
            let record = Record::parse(&anew[at]).unwrap();
            anew[at] = Record { previous, rows: Vec::new(), ..record }.to_body();
        }
        let anchors = [Anchor { sequence: 4, hash: hash(&whole[3]) }];
        let mut copies = Copies::default();
        copies.add(one, whole.clone());
        copies.add(two, anew);
        let (mut bodies, findings) = copies.settle(&anchors);
        bodies.reverse();
        assert_eq!(bodies, whole);
        let expected = [2, 3, 4].map(|sequence| Finding::EditedCopy { sequence, manager: two });
        assert_eq!(findings, expected);
    }

    #[test]
    fn pieces_that_are_no_records_go_on_to_be_found() {
        let mut copies = Copies::default();
        copies.add(id(11), vec![b"nonsense".to_vec().into()]);
        assert!(!copies.is_empty() && copies.bytes() == 8 && copies.last() == 0);
        let (bodies, findings) = copies.settle(&[]);
        assert_eq!((bodies.len(), findings), (1, Vec::new()));
    }
}
