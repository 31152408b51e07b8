//! Ways in for the fuzz targets of `integration/fuzz`: what a disk holds and what a peer says, as
//! arbitrary bytes behind seals that open.

use std::sync::Arc;

use minicbor::encode::{Encoder, Error, Write};
use minicbor::{Decode, Encode};
use skep_core::codec;

use crate::StorageKey;
use crate::answer::{Incoming, Step};
use crate::disk::Disk;
use crate::log::{Log, OpenError, lock};
use crate::message::{Append, Campaign, Reply, Request, Transfer};
use crate::record::push_frame;
use crate::segment::{Carry, HEADER_BYTES, Header, Previous, name, seal_header};
use crate::snapshot::{Chunks, PURPOSE, SnapshotError, Snapshots};
use crate::types::{Entry, Position, SnapshotMeta, VoteRecord};

/// Bytes that are encoded as they are.
#[derive(Debug)]
pub struct Raw<'a>(pub &'a [u8]);

impl Encode<()> for Raw<'_> {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut ()) -> Result<(), Error<W::Error>> {
        e.writer_mut().write_all(self.0).map_err(Error::write)
    }
}

/// Makes the bytes of one segment of a log.
pub struct SegmentMaker {
    seq: u64,
    cipher: Option<crate::key::Cipher>,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for SegmentMaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SegmentMaker({})", self.seq)
    }
}

impl SegmentMaker {
    /// A segment that follows the one before, which ends at `previous`. `header` is what it carries
    /// on; if it is not that, it is the whole sealed header.
    #[must_use]
    pub fn new(key: [u8; 32], seq: u64, previous: Option<u64>, header: &[u8]) -> Self {
        let key = StorageKey::new(key);
        let id = |seq: u64| [u8::try_from(seq % 251).unwrap_or_default(); 16];
        let before = previous.map(|end| Previous { id: id(seq.wrapping_sub(1)), end });
        let carry = if header.is_empty() { Ok(Carry::default()) } else { codec::decode(header) };
        let made = match carry {
            Ok(carry) => seal_header(&key, &id(seq), &Header { seq, previous: before, carry }),
            Err(_) => seal_header(&key, &id(seq), &Raw(header)),
        };
        let (cipher, mut bytes) = made.map_or((None, Vec::new()), |(c, b)| (Some(c), b));
        bytes.resize(HEADER_BYTES as usize, 0);
        Self { seq, cipher, bytes }
    }

    /// Adds a frame whose sealed record is `record`.
    pub fn frame(&mut self, batch: u64, index: u64, record: &[u8]) {
        if let Some(cipher) = &self.cipher {
            // A frame of a fuzz input is far below what a length can say.
            let base = self.bytes.len() as u64;
            let mut frame = Vec::new();
            if push_frame(cipher, base, batch, index, &Raw(record), &mut frame).is_ok() {
                self.bytes.extend_from_slice(&frame);
            }
        }
    }

    /// Where the segment ends so far.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Its name and bytes, with `tail` behind the last frame.
    #[must_use]
    pub fn finish(mut self, tail: &[u8]) -> (String, Vec<u8>) {
        self.bytes.extend_from_slice(tail);
        (name(self.seq), self.bytes)
    }
}

/// What is compared of two openings of one log.
type Content = (Vec<Entry>, Option<Position>, Option<VoteRecord>, Option<Position>);

fn content(log: &Log) -> Result<Content, std::io::Error> {
    let index = log.index();
    let index = lock(&index);
    let found = index.get(0, u64::MAX).into_iter().map(crate::index::Found::read);
    let entries = found.collect::<Result<Vec<_>, _>>()?;
    Ok((entries, index.purged(), index.vote, index.committed))
}

/// Opens the log on this disk, and once more after what it holds was written anew. One that opens
/// must hold the same when it is opened again.
///
/// # Errors
/// If the log does not open.
pub fn open_log(disk: &Arc<dyn Disk>, key: [u8; 32]) -> Result<usize, OpenError> {
    let open = || Log::open(Arc::clone(disk), Arc::new(StorageKey::new(key)));
    let first = open()?;
    let Ok(before) = content(&first) else { return Ok(0) };
    drop(first);
    let mut again = open()?;
    assert_eq!(content(&again).ok().as_ref(), Some(&before), "opening the log changed it");
    if again.scrub().is_ok() {
        drop(again);
        let _scrubbed = open()?;
    }
    Ok(before.0.len())
}

/// Writes a snapshot whose sealed chunks are `chunks` and reads it. One that can be read must
/// come back the same after it was written properly.
///
/// # Errors
/// If it cannot be read.
pub fn open_snapshot(
    disk: &Arc<dyn Disk>,
    key: [u8; 32],
    chunks: &[&[u8]],
) -> Result<(), SnapshotError> {
    let key = Arc::new(StorageKey::new(key));
    let id = [7; 16];
    let cipher = key.cipher(PURPOSE, &id);
    if let Ok(file) = disk.create("0000000000000001.snapshot", 0) {
        let mut out = Chunks::begin(&*file, &cipher, id)?;
        for (at, chunk) in chunks.iter().enumerate() {
            out.buffer = chunk.to_vec();
            out.chunk(at + 1 == chunks.len())?;
        }
    }
    let snapshots = Snapshots::new(Arc::clone(disk), key);
    let Some(found) = snapshots.open()? else { return Ok(()) };
    let state = found.state()?;
    snapshots.write(&state, &found.meta)?;
    let again = snapshots.open()?;
    let meta = again.as_ref().map(|file| &file.meta);
    assert!(meta == Some::<&SnapshotMeta>(&found.meta), "the snapshot covers something else");
    let read = again.map(|file| file.state()).transpose()?;
    let records = |state| {
        let mut records = Vec::new();
        skep_core::snapshot::write(state, &mut |record| records.push(record.to_vec()));
        records
    };
    assert!(read.as_ref().map(records) == Some(records(&state)), "the state came back changed");
    Ok(())
}

fn again<T: PartialEq + Encode<()> + for<'b> Decode<'b, ()>>(message: &T) {
    let read = codec::decode::<T>(&codec::encode(message));
    assert!(read.as_ref() == Ok(message), "a message came back changed");
}

/// Reads what a peer asks, and maps it to openraft's words and back.
pub fn request(bytes: &[u8]) {
    let Ok(request) = codec::decode::<Request>(bytes) else { return };
    again(&request);
    let _speaker = request.speaker();
    match request {
        Request::Append(append) => {
            if let Ok(mapped) = append.clone().request() {
                again(&Append::from(&mapped));
            }
        }
        Request::Vote(campaign) | Request::PreVote(campaign) => {
            assert!(Campaign::from(&campaign.clone().request()) == campaign);
        }
        Request::Transfer(transfer) => {
            assert!(Transfer::from(&transfer.clone().request()) == transfer);
        }
        Request::Snapshot(part) => {
            let _mapped = SnapshotMeta::try_from(part.covered.clone());
            let incoming = Incoming::up_to(skep_core::format::FORMAT);
            if let Ok(Step::Whole(reader)) = incoming.push(part) {
                let _state = reader.finish();
            }
        }
    }
}

/// Reads what a peer answers, as every kind of answer.
pub fn reply(bytes: &[u8]) {
    let Ok(reply) = codec::decode::<Reply>(bytes) else { return };
    again(&reply);
    let _ = reply.clone().appended();
    let _ = reply.clone().voted();
    let _ = reply.transferred();
}
