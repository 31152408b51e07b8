//! What makes the state: proposals out of the log, snapshots, and what managers say to each other.

use std::sync::Arc;

use skep_core::apply::apply;
use skep_core::assign::Assigner;
use skep_core::codec::{decode_strict, encode};
use skep_core::command::{Outcome, Proposal};
use skep_core::control::{Control, Input};
use skep_core::snapshot::{self, Reader};
use skep_core::state::State;
use skep_raft::disk::Disk;
use skep_raft::fuzz::{open_snapshot, reply, request};

use crate::Target;
use crate::cursor::{Cursor, input};
use crate::disk::Memory;

pub(crate) const TARGET: Target = Target { name: "state", run, seeds, mutations: 20_000 };

const KEY: [u8; 32] = [9; 32];
/// The bytes of every command, outcome and snapshot record, as they are written for ever.
const FIXTURES: &str = include_str!("../../../src/core/src/tests/fixtures/format-1.txt");

fn run(bytes: &[u8]) {
    let mut cursor = Cursor::new(bytes);
    match cursor.byte() % 6 {
        0 => proposals(&cursor.pieces(16)),
        1 => records(&cursor.pieces(64)),
        2 => {
            let disk: Arc<dyn Disk> = Arc::new(Memory::default());
            let _ = open_snapshot(&disk, KEY, &cursor.pieces(8));
        }
        3 => request(cursor.rest()),
        4 => reply(cursor.rest()),
        _ => {
            if let Ok(outcome) = decode_strict::<Outcome>(cursor.rest()) {
                assert!(decode_strict::<Outcome>(&encode(&outcome)).as_ref() == Ok(&outcome));
            }
        }
    }
}

/// Applies what is a proposal, lets the leader's loop look at it, and takes the state apart and
/// together again.
fn proposals(pieces: &[&[u8]]) {
    let mut state = State::default();
    let mut control = Control::new([1; 32]);
    for piece in pieces {
        let Ok(proposal) = decode_strict::<Proposal>(piece) else { continue };
        let again = decode_strict::<Proposal>(&encode(&proposal));
        assert!(again.as_ref() == Ok(&proposal), "a proposal came back changed");
        let mut changes = Vec::new();
        let first = apply(&mut state, &proposal, &mut changes);
        if !matches!(first, Outcome::Rejected(_)) {
            assert!(
                apply(&mut state, &proposal, &mut Vec::new()) == first,
                "not the first outcome"
            );
        }
        control.step(&state, Input::Changes(&changes), proposal.stamp);
        control.step(&state, Input::Deadline, proposal.stamp);
        if let Some(node) = state.nodes().next() {
            Assigner::new(node.id).diff(&state);
        }
    }
    let written = write(&state);
    let mut reader = Reader::default();
    written.iter().for_each(|record| reader.push(record).unwrap());
    assert!(write(&reader.finish().unwrap()) == written, "the state came back changed");
}

fn write(state: &State) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    snapshot::write(state, &mut |record| records.push(record.to_vec()));
    records
}

fn records(pieces: &[&[u8]]) {
    let mut reader = Reader::default();
    if pieces.iter().any(|record| reader.push(record).is_err()) {
        return;
    }
    if let Ok(state) = reader.finish() {
        Control::new([1; 32]).step(&state, Input::Deadline, state.last_stamp());
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = (0..text.len() / 2).map(|at| &text[2 * at..2 * at + 2]);
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn seeds() -> Vec<Vec<u8>> {
    let lines = |kind: &str| -> Vec<Vec<u8>> {
        let lines = FIXTURES.lines().filter_map(|line| line.split_once(' '));
        lines.filter(|(what, _)| *what == kind).map(|(_, bytes)| unhex(bytes)).collect()
    };
    let (proposals, records) = (lines("proposal"), lines("record"));
    // What a snapshot covers: nothing.
    let covered = b"\xa1\x02\xa2\x00\x80\x01\xa0".to_vec();
    let plain: Vec<u8> = std::iter::once(&covered)
        .chain(&records)
        .flat_map(|record| {
            [&u32::try_from(record.len()).unwrap().to_le_bytes()[..], record].concat()
        })
        .collect();
    let (first, second) = plain.split_at(plain.len() / 2);
    let behind = |first: u8, bytes: &[u8]| [&[first], bytes].concat();
    let vote = b"\xa3\x00\x02\x01\x01\x02\xf5";
    let at = b"\xa2\x00\x01\x01\x04";
    let append = [
        b"\x82\x00\x81\xa4\x00",
        &vote[..],
        b"\x01",
        at,
        b"\x02\x81\xa2\x00",
        at,
        b"\x01\x82\x01\x81\x41p\x03",
        at,
    ]
    .concat();
    let campaign = [b"\x82\x01\x81\xa3\x00", &vote[..], b"\x01", at, b"\x02\xf4"].concat();
    let part = [
        b"\x82\x04\x81\xa5\x00",
        &vote[..],
        b"\x01",
        &covered,
        b"\x02\x00\x03\x81",
        &encode(&minicbor::bytes::ByteVec::from(records[0].clone())),
        b"\x04\xf5",
    ]
    .concat();
    let mut seeds: Vec<Vec<u8>> =
        proposals[1..].iter().map(|p| input(0, &[&proposals[0], p])).collect();
    seeds.extend([
        input(0, &proposals.iter().map(Vec::as_slice).collect::<Vec<_>>()),
        input(1, &records.iter().map(Vec::as_slice).collect::<Vec<_>>()),
        input(2, &[&plain]),
        input(2, &[first, second]),
        behind(3, &append),
        behind(3, &campaign),
        behind(3, &part),
        behind(4, &[&b"\x82\x04\x83"[..], vote, b"\xf5", at].concat()),
        behind(4, &[&b"\x82\x07\x82"[..], at, at].concat()),
    ]);
    seeds.extend(lines("outcome").iter().map(|outcome| behind(5, outcome)));
    seeds
}
