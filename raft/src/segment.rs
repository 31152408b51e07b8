//! One file of the log: a header, then frames.
//!
//! The header says which segment comes before and how much of it counts, and carries what
//! would be lost if the segments before were dropped.

use std::fmt;
use std::io;

use minicbor::{Decode, Encode};

use crate::StorageKey;
use crate::disk::{Disk, DiskFile};
use crate::key::{Cipher, Keys, TAG_BYTES, random_id};
use crate::record::{Frame, open_frame};
use crate::types::{Position, VoteRecord};

const MAGIC: &[u8; 8] = b"SKEPLOG1";
const PURPOSE: &str = "skep log segment/1";
/// Bytes of the header; frames begin behind it.
pub(crate) const HEADER_BYTES: u64 = 512;
/// Bytes before the sealed header: magic, id, its length.
const HEADER_PREFIX: usize = 28;
/// No segment, batch or entry has a number like this: what says so is damaged, and below it no
/// sum overflows.
pub(crate) const UNCOUNTED: u64 = 1 << 62;
/// Name of the file that is preallocated for the next segment.
pub(crate) const SPARE: &str = "spare.tmp";
/// Name of a segment before it is complete.
pub(crate) const UNFINISHED: &str = "segment.tmp";

/// The segment before this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Previous {
    #[cbor(n(0), with = "minicbor::bytes")]
    pub(crate) id: [u8; 16],
    /// Where it ends. What it holds behind this does not count.
    #[n(1)]
    pub(crate) end: u64,
}

/// What the log had come to when the segment was opened.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Carry {
    #[n(0)]
    pub(crate) vote: Option<VoteRecord>,
    #[n(1)]
    pub(crate) committed: Option<Position>,
    #[n(2)]
    pub(crate) purged: Option<Position>,
    /// The last entry kept. Later ones in segments before were truncated away.
    #[n(3)]
    pub(crate) last: Option<Position>,
    /// Number of the last batch.
    #[n(4)]
    pub(crate) batch: u64,
}

/// What stands at the start of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Header {
    /// One more than that of the segment before.
    #[n(0)]
    pub(crate) seq: u64,
    /// `None` if the log begins here: whatever comes before is left over.
    #[n(1)]
    pub(crate) previous: Option<Previous>,
    #[n(2)]
    pub(crate) carry: Carry,
}

impl Header {
    fn is_possible(&self) -> bool {
        let Carry { committed, purged, last, batch, .. } = self.carry;
        let mut places = [committed, purged, last].into_iter().flatten();
        self.seq < UNCOUNTED && batch < UNCOUNTED && places.all(|at| at.index < UNCOUNTED)
    }
}

/// A segment's file, open.
pub(crate) struct Segment {
    pub(crate) name: String,
    pub(crate) id: [u8; 16],
    pub(crate) header: Header,
    pub(crate) file: Box<dyn DiskFile>,
    pub(crate) cipher: Cipher,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({})", self.name)
    }
}

/// The name of the segment with this number.
pub(crate) fn name(seq: u64) -> String {
    format!("{seq:016x}.log")
}

/// The number in the name of a segment.
pub(crate) fn seq_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

impl Segment {
    /// Writes the header into an empty file. The file still has the name it was made under.
    pub(crate) fn begin(
        file: Box<dyn DiskFile>,
        key: &StorageKey,
        header: Header,
    ) -> io::Result<Self> {
        let id = random_id()?;
        let (cipher, bytes) = seal_header(key, &id, &header)?;
        file.write_at(0, &bytes)?;
        Ok(Self { name: name(header.seq), id, header, file, cipher })
    }

    /// Opens a segment. `Ok(None)` if its header cannot be read.
    pub(crate) fn open(disk: &dyn Disk, keys: &Keys, name: &str) -> io::Result<Option<Self>> {
        let file = disk.open(name)?;
        let mut bytes = vec![0; HEADER_BYTES as usize];
        let read = file.read_at(0, &mut bytes)?;
        bytes.truncate(read);
        let header = keys.all().find_map(|key| read_header(key, &bytes));
        let Some((id, header, cipher)) = header else { return Ok(None) };
        if seq_of(name) != Some(header.seq) {
            return Ok(None);
        }
        Ok(Some(Self { name: name.to_owned(), id, header, file, cipher }))
    }

    /// Reads one frame.
    pub(crate) fn read(&self, offset: u64, bytes: usize) -> io::Result<Frame> {
        let mut buffer = vec![0; bytes];
        let read = self.file.read_at(offset, &mut buffer)?;
        let frame = buffer.get(..read).unwrap_or_default();
        open_frame(&self.cipher, offset, frame).map_err(|_| self.damaged(offset))
    }

    /// The error of a record that was readable once and is not any more.
    pub(crate) fn damaged(&self, offset: u64) -> io::Error {
        let text = format!("{} is damaged at offset {offset}", self.name);
        io::Error::new(io::ErrorKind::InvalidData, text)
    }
}

/// The bytes a segment begins with, and the cipher of what follows.
pub(crate) fn seal_header(
    key: &StorageKey,
    id: &[u8; 16],
    header: &impl Encode<()>,
) -> io::Result<(Cipher, Vec<u8>)> {
    let cipher = key.cipher(PURPOSE, id);
    let mut sealed = minicbor::to_vec(header).map_err(io::Error::other)?;
    let too_long = || io::Error::other("segment header too long");
    let len = u32::try_from(sealed.len() + TAG_BYTES).map_err(|_| too_long())?;
    let mut bytes = [&MAGIC[..], &id[..], &len.to_le_bytes()[..]].concat();
    let tag = cipher.seal(0, &bytes, &mut sealed).map_err(|_| too_long())?;
    bytes.extend_from_slice(&sealed);
    bytes.extend_from_slice(&tag);
    if bytes.len() as u64 > HEADER_BYTES {
        return Err(too_long());
    }
    Ok((cipher, bytes))
}

fn read_header(key: &StorageKey, bytes: &[u8]) -> Option<([u8; 16], Header, Cipher)> {
    let (prefix, rest) = bytes.split_first_chunk::<HEADER_PREFIX>()?;
    let (magic, tail) = prefix.split_first_chunk::<8>()?;
    let (id, len) = tail.split_first_chunk::<16>()?;
    let len = u32::from_le_bytes(len.try_into().ok()?);
    if magic != MAGIC {
        return None;
    }
    let cipher = key.cipher(PURPOSE, id);
    let plain = cipher.open(0, prefix, rest.get(..usize::try_from(len).ok()?)?).ok()?;
    let mut decoder = minicbor::Decoder::new(&plain);
    let header: Header = decoder.decode().ok()?;
    let is_whole = decoder.position() == plain.len();
    (is_whole && header.is_possible()).then_some((*id, header, cipher))
}
