//! Chains for tests.

use minicbor::bytes::ByteVec;
use skep_core::id::{ENTROPY_LEN, Id, MaterialId, TaskId};
use skep_core::time::Stamp;

use super::*;

pub(crate) const KEY: [u8; 32] = [7; 32];

pub(crate) fn id<K>(seed: u8) -> Id<K> {
    Id::from_entropy([seed; ENTROPY_LEN])
}

pub(crate) fn row(material: MaterialId, opened: u64) -> Row {
    let reader = Reader {
        material,
        name: "db".to_owned(),
        version: 1,
        uid: 1000,
        gid: 1000,
        executable: Some("/bin/app".to_owned()),
    };
    Row { reader: Some(reader), opened, refused: 0, first: Stamp(1), last: Stamp(2) }
}

/// Records 1 to `count` of a task, written once a second, which all read `material`.
pub(crate) fn chain(task: &TaskId, material: MaterialId, count: u64) -> Vec<ByteVec> {
    let mut previous = origin(task, &KEY);
    let records = (1..=count).map(|sequence| {
        let begun = Event { at: Stamp(sequence), what: What::Begun { key: KEY } };
        let at = Stamp(sequence * 1_000_000_000);
        let record = Record {
            sequence,
            previous,
            at,
            rows: vec![Row { first: at, last: at, ..row(material, sequence) }],
            events: (sequence == 1).then_some(begun).into_iter().collect(),
            lost: Lost::default(),
        };
        let body = record.to_body();
        previous = hash(&body);
        body
    });
    records.collect()
}

/// The record that ends such a chain.
pub(crate) fn end(bodies: &[ByteVec]) -> ByteVec {
    let last = bodies.last().map(|body| (Record::parse(body), hash(body)));
    let Some((Ok(last), previous)) = last else { panic!("no chain to end") };
    let ended = Event { at: last.at, what: What::Ended };
    let (sequence, rows) = (last.sequence + 1, Vec::new());
    Record { sequence, previous, rows, events: vec![ended], ..last }.to_body()
}
