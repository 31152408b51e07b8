//! Snapshots of later versions, and what states have in common that are the same.

use alloc::string::ToString;
use alloc::vec::Vec;

use minicbor::Encode;

use super::samples;
use crate::codec::encode;
use crate::snapshot::{ReadError, Reader, digest};
use crate::testing::{World, records};
use crate::time::Stamp;

/// What a later version may write: a header that says more, and records of a new kind.
#[derive(Encode)]
enum LaterRecord {
    #[n(0)]
    Header {
        #[n(0)]
        format: u32,
        #[n(1)]
        last_stamp: Stamp,
        #[n(2)]
        purge_due: Option<Stamp>,
        #[n(3)]
        more: u64,
    },
    #[n(99)]
    New(#[n(0)] u64),
}

fn header(format: u32) -> Vec<u8> {
    encode(&LaterRecord::Header { format, last_stamp: Stamp(1), purge_due: None, more: 7 })
}

#[test]
fn a_snapshot_of_a_later_version_is_refused_and_names_both() {
    let mut reader = Reader::up_to(1);
    let refused = reader.push(&header(2)).unwrap_err();
    assert_eq!(refused, ReadError::Newer { format: 2, reads: 1 });
    let text = refused.to_string();
    assert!(text.contains("format 2") && text.contains("up to 1"), "{text}");
    // What a header does not announce is no snapshot of its format.
    let refused = Reader::up_to(2).push(&header(2));
    assert!(matches!(refused, Err(ReadError::Malformed(_))), "{refused:?}");
    let mut reader = Reader::default();
    reader.push(&records(&samples::state())[0]).unwrap();
    let refused = reader.push(&encode(&LaterRecord::New(1)));
    assert!(matches!(refused, Err(ReadError::Malformed(_))), "{refused:?}");
}

#[test]
fn a_digest_is_the_same_for_the_same_state_and_no_other() {
    let mut world = World::new();
    world.secret("one");
    let before = digest(&world.state);
    let mut reader = Reader::default();
    records(&world.state).iter().for_each(|record| reader.push(record).unwrap());
    assert_eq!(digest(&reader.finish().unwrap()), before, "by way of a snapshot");
    let mut other = world.clone();
    world.secret("two");
    assert_ne!(digest(&world.state), before);
    other.secret("two");
    assert_eq!(digest(&world.state), digest(&other.state));
    other.state.last_stamp = Stamp(other.state.last_stamp.0 + 1);
    assert_ne!(digest(&world.state), digest(&other.state));
}
