use proptest::prelude::*;

use super::super::testing::{KEY, chain, id};
use super::*;

const COUNT: u64 = 6;

fn task() -> TaskId {
    id(1)
}

fn bodies() -> Vec<ByteVec> {
    chain(&task(), id(2), COUNT)
}

fn anchor(bodies: &[ByteVec], sequence: u64) -> Anchor {
    let body = &bodies[sequence as usize - 1];
    Anchor::of(&Head::parse(body).unwrap(), body)
}

/// The record of this sequence written anew, as somebody would who wants to hide something.
fn change(bodies: &mut [ByteVec], sequence: u64, how: impl FnOnce(&mut Record)) {
    let body = &mut bodies[sequence as usize - 1];
    let mut record = Record::parse(body).unwrap();
    how(&mut record);
    *body = record.to_body();
}

#[test]
fn a_whole_chain_is_found_whole_however_it_came() {
    let bodies = bodies();
    assert_eq!(verify(&task(), &bodies, &[]), []);
    let anchors = [anchor(&bodies, 3), anchor(&bodies, COUNT)];
    let mut mixed: Vec<_> = bodies.iter().rev().cloned().collect();
    mixed.extend(bodies);
    assert_eq!(verify(&task(), &mixed, &anchors), []);
    assert_eq!(verify(&task(), &[], &[]), []);
}

#[test]
fn a_start_of_another_task_or_shim_is_found() {
    assert_eq!(verify(&id(9), &bodies(), &[]), [Finding::WrongStart]);
    let mut bodies = bodies();
    bodies.truncate(1);
    change(&mut bodies, 1, |record| record.events.clear());
    assert_eq!(verify(&task(), &bodies, &[]), [Finding::WrongStart]);
    assert_ne!(origin(&task(), &KEY), origin(&task(), &[8; 32]));
}

#[test]
fn a_tail_is_missed_up_to_the_anchor() {
    let whole = bodies();
    let anchors = [anchor(&whole, 5)];
    assert_eq!(verify(&task(), &whole[..5], &anchors), []);
    let found = verify(&task(), &whole[..3], &anchors);
    assert_eq!(found, [Finding::MissingTail { last: 3, anchored: 5 }]);
    assert_eq!(
        verify(&task(), &[], &anchors),
        [Finding::Nothing { anchored: 5, is_dropped: false }]
    );
}

#[test]
fn a_gap_that_the_node_told_of_is_said_to_be_one() {
    let mut bodies = bodies();
    let at = skep_core::time::Stamp(1);
    let what = What::Rotated { kept_from: 5 };
    change(&mut bodies, 6, |record| record.events.push(super::super::Event { at, what }));
    let kept = [bodies[..2].to_vec(), bodies[4..].to_vec()].concat();
    let gap = |is_told| Finding::Gap { after: 2, before: 5, is_told };
    assert_eq!(verify(&task(), &kept, &[]), [gap(true)]);
    // It spoke of older ones.
    change(&mut bodies, 6, |record| {
        record.events[0].what = What::Rotated { kept_from: 4 };
    });
    let kept = [bodies[..2].to_vec(), bodies[4..].to_vec()].concat();
    assert_eq!(verify(&task(), &kept, &[]), [gap(false)]);
}

/// Once a swarm has dropped anything, that must not excuse that younger records are gone.
#[test]
fn a_drop_explains_only_what_was_written_before_it() {
    let slack = Span::from_secs(AUDIT_SLACK.as_secs());
    let horizon = Stamp(90_000_000_000_000);
    let any = Dropped { horizon, created: None, anchored: None };
    let nothing = Finding::Nothing { anchored: 5, is_dropped: false };
    let late = Finding::LateStart { first: 3, is_dropped: false };
    let explains = |finding: &Finding, dropped| finding.clone().after_drop(&dropped).is_explained();
    for (at, is_explained) in
        [(Stamp(1), true), (horizon + slack, true), (horizon + slack + Span(1), false)]
    {
        assert_eq!(explains(&nothing, Dropped { anchored: Some(at), ..any }), is_explained);
        assert_eq!(explains(&late, Dropped { created: Some(at), ..any }), is_explained);
    }
    // Of a task that is forgotten, only its anchor tells anything.
    assert!(explains(&late, any) && !explains(&nothing, any));
    let none = Dropped { horizon: Stamp(0), created: None, anchored: Some(Stamp(1)) };
    assert!(!explains(&late, none) && !explains(&nothing, none));
    let young = Dropped { created: Some(Stamp(1)), ..none };
    assert!(!explains(&late, young));
    let gap = Finding::Gap { after: 1, before: 3, is_told: false };
    assert!(!explains(&gap, any));
}

#[test]
fn nothing_follows_the_end() {
    let mut bodies = bodies();
    let ended = super::super::Event { at: skep_core::time::Stamp(1), what: What::Ended };
    change(&mut bodies, COUNT, |record| record.events.push(ended));
    assert_eq!(verify(&task(), &bodies, &[]), []);
    let last = Record::parse(&bodies[COUNT as usize - 1]).unwrap();
    let more = Record { sequence: COUNT + 1, previous: hash(&last.to_body()), ..last };
    bodies.push(Record { events: Vec::new(), ..more }.to_body());
    let found = verify(&task(), &bodies, &[]);
    assert_eq!(found, [Finding::AfterEnd { sequence: COUNT + 1 }]);
}

#[test]
fn a_record_of_a_later_version_is_part_of_the_chain() {
    #[derive(minicbor::Encode)]
    #[cbor(map)]
    struct Later {
        #[n(0)]
        sequence: u64,
        #[cbor(n(1), with = "minicbor::bytes")]
        previous: [u8; 32],
        #[n(2)]
        at: u64,
        #[n(3)]
        rows: u64,
    }
    let mut bodies = bodies();
    let previous = hash(&bodies[COUNT as usize - 1]);
    let later = minicbor::to_vec(Later { sequence: COUNT + 1, previous, at: 1, rows: 2 }).unwrap();
    bodies.push(later.into());
    assert_eq!(verify(&task(), &bodies, &[]), []);
    bodies.push(b"nonsense".to_vec().into());
    assert_eq!(verify(&task(), &bodies, &[]), [Finding::Unreadable { pieces: 1 }]);
}

proptest! {
    /// Whoever changes a record is found: by its successor, or else by the anchor.
    #[test]
    fn an_edit_is_found(sequence in 1..=COUNT, opened in 100u64.., anchored in 1..=COUNT) {
        let mut bodies = bodies();
        let anchors = [anchor(&bodies, anchored)];
        change(&mut bodies, sequence, |record| record.rows[0].opened = opened);
        let mut expected = Vec::new();
        if sequence < COUNT {
            expected.push(Finding::Edited { sequence: sequence + 1 });
        }
        if sequence == anchored {
            expected.push(Finding::NotAnchored { sequence });
        }
        prop_assert_eq!(verify(&task(), &bodies, &anchors), expected);
    }

    /// Whoever changes a record and all that follow is found by an anchor at or behind it.
    #[test]
    fn a_chain_that_was_written_anew_is_found(from in 1..=COUNT, anchored in 1..=COUNT) {
        let mut bodies = bodies();
        let anchors = [anchor(&bodies, anchored)];
        for sequence in from..=COUNT {
            let before = bodies.get((sequence as usize).wrapping_sub(2)).map(|body| hash(body));
            change(&mut bodies, sequence, |record| {
                record.rows.clear();
                record.previous = before.unwrap_or(record.previous);
            });
        }
        let found = verify(&task(), &bodies, &anchors);
        let expected = (anchored >= from).then_some(Finding::NotAnchored { sequence: anchored });
        prop_assert_eq!(found, Vec::from_iter(expected));
    }

    /// Whatever is left out is named.
    #[test]
    fn what_is_missing_is_named(kept in proptest::collection::btree_set(1..=COUNT, 1..COUNT as usize)) {
        let whole = bodies();
        let left: Vec<_> = kept.iter().map(|n| whole[*n as usize - 1].clone()).collect();
        let (first, last) = (*kept.first().unwrap(), *kept.last().unwrap());
        let mut expected = Vec::new();
        if first > 1 {
            expected.push(Finding::LateStart { first, is_dropped: false });
        }
        let pairs = kept.iter().zip(kept.iter().skip(1)).filter(|(one, other)| **other - **one > 1);
        expected.extend(pairs.map(|(after, before)| {
            Finding::Gap { after: *after, before: *before, is_told: false }
        }));
        if last < COUNT {
            expected.push(Finding::MissingTail { last, anchored: COUNT });
        }
        prop_assert_eq!(verify(&task(), &left, &[anchor(&whole, COUNT)]), expected);
    }

    #[test]
    fn a_second_record_of_a_sequence_is_found(sequence in 1..=COUNT) {
        let mut bodies = bodies();
        let mut record = Record::parse(&bodies[sequence as usize - 1]).unwrap();
        record.rows.clear();
        bodies.push(record.to_body());
        let found = verify(&task(), &bodies, &[]);
        prop_assert!(found.contains(&Finding::Twice { sequence }), "{:?}", found);
    }

    #[test]
    fn any_bytes_are_checked_without_harm(
        bytes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..4),
    ) {
        let bodies: Vec<ByteVec> = bytes.into_iter().map(ByteVec::from).collect();
        let _ = verify(&task(), &bodies, &[]);
    }
}
