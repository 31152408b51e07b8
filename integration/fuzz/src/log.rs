//! The Raft log on disk: segments behind seals that open, frames of any records in any order.

use std::sync::Arc;

use skep_raft::disk::Disk;
use skep_raft::fuzz::{SegmentMaker, open_log};

use crate::Target;
use crate::cursor::{Cursor, input, piece};
use crate::disk::Memory;

pub(crate) const TARGET: Target = Target { name: "log", run, seeds, mutations: 40_000 };

const KEY: [u8; 32] = [9; 32];
/// Segments and frames in one of them that an input makes at most.
const SEGMENTS: u64 = 4;
const FRAMES: usize = 64;

/// A file of any bytes, or segments: each a header as a piece, the number of frames, then for
/// each frame a byte of steps and its record as a piece, and last a tail as a piece.
fn run(bytes: &[u8]) {
    let mut cursor = Cursor::new(bytes);
    let memory = Memory::default();
    if cursor.byte() % 8 == 7 {
        memory.put("0000000000000000.log", cursor.rest().to_vec());
    } else {
        segments(&mut cursor, &memory);
    }
    let disk: Arc<dyn Disk> = Arc::new(memory);
    let _ = open_log(&disk, KEY);
}

fn segments(cursor: &mut Cursor<'_>, memory: &Memory) {
    let (mut batch, mut index, mut previous) = (0_u64, 0_u64, None);
    for seq in 0..SEGMENTS {
        if seq > 0 && cursor.is_empty() {
            break;
        }
        let mut made = SegmentMaker::new(KEY, seq, previous, cursor.piece());
        for _ in 0..usize::from(cursor.byte()).min(FRAMES) {
            // Bits 0 and 1: how far the batch number goes on. Bits 2 and 3: the index likewise.
            let steps = cursor.byte();
            batch = batch.wrapping_add(u64::from(steps & 3));
            index = match steps >> 2 & 3 {
                3 => index.wrapping_sub(1),
                step => index.wrapping_add(u64::from(step)),
            };
            made.frame(batch, if steps & 16 == 0 { index } else { 0 }, cursor.piece());
        }
        previous = Some(made.end());
        let (name, bytes) = made.finish(cursor.piece());
        memory.put(&name, bytes);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    // The records of `raft/src/record.rs`, as its fixture has them.
    let batch = |records: u8| vec![0x82, 0, 0x82, 0x19, 2, 0, records];
    let blank = vec![0x82, 1, 0x81, 2];
    let normal = vec![0x82, 2, 0x82, 2, 0x41, b'p'];
    let members = b"\x82\x03\x82\x02\xa2\x00\x81\x82\x07\x08\x01\xa2\x07ca:1\x08cb:2".to_vec();
    let vote = vec![0x82, 4, 0x81, 0xa3, 0, 2, 1, 7, 2, 0xf5];
    let committed = vec![0x82, 5, 0x81, 0xa2, 0, 2, 1, 3];
    let purged = vec![0x82, 6, 0x81, 0xa2, 0, 2, 1, 2];
    let header = b"\xa2\x00\x04\x02\xa5\x00\xa3\x00\x02\x01\x07\x02\xf5\x01\xa2\x00\x02\x01\x03\
        \x02\xa2\x00\x02\x01\x03\x03\xa2\x00\x02\x01\x03\x04\x09";
    let segment = |header: &[u8], frames: &[(u8, &[u8])], tail: &[u8]| {
        let mut bytes = piece(header);
        bytes.push(u8::try_from(frames.len()).unwrap());
        for (steps, record) in frames {
            bytes.push(*steps);
            bytes.extend(piece(record));
        }
        bytes.extend(piece(tail));
        bytes
    };
    let (head, next, own) = (1 | 16, 4, 16);
    let entries: &[(u8, &[u8])] = &[
        (head, &batch(3)),
        (next, &blank),
        (next, &normal),
        (next, &members),
        (head, &batch(2)),
        (own, &vote),
        (own, &committed),
        (head, &batch(1)),
        (own, &purged),
        (head, &batch(1)),
        (next, &normal),
    ];
    let zeros = [0; 64];
    let carried = b"\xa5\x00\xa3\x00\x02\x01\x07\x02\xf5\x01\xa2\x00\x02\x01\x03\x03\xa2\x00\x02\x01\x02\x04\x02\
        \x02\xf6";
    vec![
        [vec![0], segment(&[], entries, &[])].concat(),
        [vec![0], segment(&[], entries, &zeros)].concat(),
        [vec![0], segment(&[], &entries[..7], &[]), segment(carried, &entries[7..], &[])].concat(),
        [vec![0], segment(&header.replace_first(4, 0), &[(10 | head, &batch(1))], b"skfr")]
            .concat(),
        input(7, &[b"SKEPLOG1"]),
    ]
}

/// A header with another number in it.
trait Replace {
    fn replace_first(&self, from: u8, to: u8) -> Vec<u8>;
}

impl<const N: usize> Replace for [u8; N] {
    fn replace_first(&self, from: u8, to: u8) -> Vec<u8> {
        let mut bytes = self.to_vec();
        if let Some(at) = bytes.iter().position(|byte| *byte == from) {
            bytes[at] = to;
        }
        bytes
    }
}
