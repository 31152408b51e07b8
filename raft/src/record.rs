//! What a segment holds: frames, each a sealed record with a readable prefix.
//!
//! ```text
//! magic u32 | sealed bytes u32 | batch u64 | index u64 | sealed record | padding to 8 bytes
//! ```
//! Numbers are little-endian. The seal binds the prefix and the offset of the frame; its key is
//! the segment's own. No offset of a segment is written twice with different bytes.

use minicbor::{Decode, Encode};
use skep_core::codec::is_whole;

use crate::key::{Cipher, TAG_BYTES, Unreadable};
use crate::segment::Carry;
use crate::types::{Entry, EntryPayload, Members, Position, VoteRecord};

const MAGIC: u32 = u32::from_le_bytes(*b"skfr");
const PREFIX_BYTES: usize = 24;
/// Frames begin at multiples of this.
pub(crate) const ALIGN: u64 = 8;

/// One record of the log. Without `Debug`: nothing prints a proposal.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Record<'b> {
    /// The first frame of a batch: what one write wrote.
    #[n(0)]
    Batch {
        /// Everything in this segment before this offset is durable.
        #[n(0)]
        synced: u64,
        /// Records that follow in this batch.
        #[n(1)]
        records: u64,
    },
    /// An entry without content.
    #[n(1)]
    Blank {
        #[n(0)]
        term: u64,
    },
    /// A proposal.
    #[n(2)]
    Normal {
        #[n(0)]
        term: u64,
        #[cbor(b(1), with = "minicbor::bytes")]
        payload: &'b [u8],
    },
    /// A membership.
    #[n(3)]
    Members {
        #[n(0)]
        term: u64,
        #[n(1)]
        members: Members,
    },
    /// The vote of this node.
    #[n(4)]
    Vote(#[n(0)] VoteRecord),
    /// The last entry known to be committed.
    #[n(5)]
    Committed(#[n(0)] Position),
    /// The last entry that was purged.
    #[n(6)]
    Purged(#[n(0)] Position),
}

/// Something to write.
#[derive(Debug, Clone)]
pub(crate) enum Write {
    Entry(Entry),
    Vote(VoteRecord),
    Committed(Position),
    Purged(Position),
}

impl Write {
    /// Bytes this takes in a segment, at most.
    pub(crate) fn bytes(&self) -> u64 {
        let content = match self {
            Self::Entry(entry) => entry_bytes(entry),
            Self::Vote(_) | Self::Committed(_) | Self::Purged(_) => 0,
        };
        content as u64 + 128
    }

    /// Whether it counts only once it is durable.
    pub(crate) fn must_sync(&self) -> bool {
        !matches!(self, Self::Committed(_))
    }

    /// What this says is committed, if it says that.
    pub(crate) fn committed(&self) -> Option<Position> {
        match self {
            Self::Committed(at) => Some(*at),
            Self::Entry(_) | Self::Vote(_) | Self::Purged(_) => None,
        }
    }

    /// Takes what this says into what the next segment carries on.
    pub(crate) fn carry(&self, carry: &mut Carry) {
        match self {
            Self::Entry(entry) => carry.last = Some(Position::from(&entry.log_id)),
            Self::Vote(vote) => carry.vote = Some(*vote),
            Self::Committed(at) => carry.committed = Some(*at),
            Self::Purged(at) => carry.purged = Some(*at),
        }
    }

    /// Index of the entry, 0 for what is none.
    pub(crate) fn index(&self) -> u64 {
        match self {
            Self::Entry(entry) => entry.log_id.index,
            Self::Vote(_) | Self::Committed(_) | Self::Purged(_) => 0,
        }
    }

    pub(crate) fn record(&self) -> Record<'_> {
        match self {
            Self::Vote(vote) => Record::Vote(*vote),
            Self::Committed(at) => Record::Committed(*at),
            Self::Purged(at) => Record::Purged(*at),
            Self::Entry(entry) => {
                let term = entry.log_id.leader_id.term;
                match &entry.payload {
                    EntryPayload::Blank => Record::Blank { term },
                    EntryPayload::Normal(payload) => Record::Normal { term, payload: &payload.0 },
                    EntryPayload::Membership(m) => {
                        Record::Members { term, members: Members::from(m) }
                    }
                }
            }
        }
    }
}

/// Bytes of an entry's content, about.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(payload) => payload.0.len(),
        EntryPayload::Membership(m) => m.nodes().map(|(_, node)| node.addr.len() + 64).sum(),
    }
}

/// Appends a frame to `out`, whose first byte stands at `base` of the file. Returns the offset
/// of the frame.
pub(crate) fn push_frame(
    cipher: &Cipher,
    base: u64,
    batch: u64,
    index: u64,
    record: &impl Encode<()>,
    out: &mut Vec<u8>,
) -> Result<u64, Unreadable> {
    let at = out.len();
    let offset = base + at as u64;
    out.resize(at + PREFIX_BYTES, 0);
    minicbor::encode(record, &mut *out).map_err(|_| Unreadable)?;
    let sealed = out.len() - at - PREFIX_BYTES + TAG_BYTES;
    let prefix = prefix(u32::try_from(sealed).map_err(|_| Unreadable)?, batch, index);
    let (head, body) = out
        .get_mut(at..)
        .and_then(|frame| frame.split_at_mut_checked(PREFIX_BYTES))
        .ok_or(Unreadable)?;
    head.copy_from_slice(&prefix);
    let tag = cipher.seal(offset, &aad(&prefix, offset), body)?;
    out.extend_from_slice(&tag);
    out.resize(out.len().next_multiple_of(ALIGN as usize), 0);
    Ok(offset)
}

/// A frame that was read and whose seal opened.
pub(crate) struct Frame {
    pub(crate) batch: u64,
    pub(crate) index: u64,
    /// Offset behind the frame.
    pub(crate) end: u64,
    bytes: Vec<u8>,
}

impl Frame {
    /// The record as it was encoded.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The record, if it is one of this format.
    pub(crate) fn record(&self) -> Result<Record<'_>, minicbor::decode::Error> {
        let mut decoder = minicbor::Decoder::new(&self.bytes);
        let record = decoder.decode()?;
        if decoder.position() != self.bytes.len() {
            return Err(minicbor::decode::Error::message("bytes behind the record"));
        }
        // Nothing that a later version wrote is lost in silence.
        if !is_whole(&record, &self.bytes) {
            return Err(minicbor::decode::Error::message("fields that are not known"));
        }
        Ok(record)
    }
}

/// Opens the frame at the start of `bytes`, which stand at `offset` of the file.
pub(crate) fn open_frame(cipher: &Cipher, offset: u64, bytes: &[u8]) -> Result<Frame, Unreadable> {
    let (head, rest) = bytes.split_first_chunk::<PREFIX_BYTES>().ok_or(Unreadable)?;
    let (magic, head_rest) = head.split_first_chunk::<4>().ok_or(Unreadable)?;
    let (sealed, head_rest) = head_rest.split_first_chunk::<4>().ok_or(Unreadable)?;
    let (batch, index) = head_rest.split_first_chunk::<8>().ok_or(Unreadable)?;
    let index: [u8; 8] = index.try_into().map_err(|_| Unreadable)?;
    if u32::from_le_bytes(*magic) != MAGIC {
        return Err(Unreadable);
    }
    let sealed = usize::try_from(u32::from_le_bytes(*sealed)).map_err(|_| Unreadable)?;
    let body = rest.get(..sealed).ok_or(Unreadable)?;
    let bytes = cipher.open(offset, &aad(head, offset), body)?;
    let end = offset + ((PREFIX_BYTES + sealed) as u64).next_multiple_of(ALIGN);
    Ok(Frame { batch: u64::from_le_bytes(*batch), index: u64::from_le_bytes(index), end, bytes })
}

/// Whether a frame may begin here: a cheap look before the seal is tried.
pub(crate) fn looks_like_frame(bytes: &[u8]) -> bool {
    bytes.first_chunk::<4>().is_some_and(|magic| u32::from_le_bytes(*magic) == MAGIC)
}

fn prefix(sealed: u32, batch: u64, index: u64) -> [u8; PREFIX_BYTES] {
    let mut prefix = [0; PREFIX_BYTES];
    let fields = MAGIC.to_le_bytes().into_iter().chain(sealed.to_le_bytes());
    let fields = fields.chain(batch.to_le_bytes()).chain(index.to_le_bytes());
    prefix.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    prefix
}

fn aad(prefix: &[u8; PREFIX_BYTES], offset: u64) -> [u8; PREFIX_BYTES + 8] {
    let mut aad = [0; PREFIX_BYTES + 8];
    let bytes = prefix.iter().copied().chain(offset.to_le_bytes());
    aad.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    aad
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StorageKey;

    #[test]
    fn frames_open_where_they_were_written_and_nowhere_else() {
        let cipher = StorageKey::new([1; 32]).cipher("test", &[0; 16]);
        let mut out = Vec::new();
        let first = Record::Batch { synced: 512, records: 1 };
        let second = Record::Normal { term: 2, payload: b"payload" };
        assert_eq!(push_frame(&cipher, 512, 1, 0, &first, &mut out), Ok(512));
        let at = push_frame(&cipher, 512, 1, 9, &second, &mut out).unwrap();
        let frame = open_frame(&cipher, 512, &out).unwrap();
        assert_eq!((frame.batch, frame.end), (1, at));
        assert!(frame.record().unwrap() == first);
        let rest = &out[(at - 512) as usize..];
        let frame = open_frame(&cipher, at, rest).unwrap();
        assert_eq!((frame.index, frame.end - 512), (9, out.len() as u64));
        assert!(frame.record().unwrap() == second);
        assert!(open_frame(&cipher, at + 8, rest).is_err());
        for flip in 0..rest.len() - 8 {
            let mut bad = rest.to_vec();
            bad[flip] ^= 1;
            assert!(open_frame(&cipher, at, &bad).is_err(), "byte {flip}");
        }
        for short in 0..rest.len() - 8 {
            assert!(open_frame(&cipher, at, &rest[..short]).is_err());
        }
    }

    /// What is on disk stays readable: change this only by adding lines.
    #[test]
    fn records_keep_their_bytes() {
        let at = Position { term: 2, index: 3 };
        let vote = VoteRecord { term: 2, node: 7, committed: true };
        let voters = vec![crate::types::VoterSet(vec![7, 8])];
        let members = Members { voters, nodes: [(7, "a:1".into()), (8, "b:2".into())].into() };
        let fixtures: [(Record<'_>, &str); 7] = [
            (Record::Batch { synced: 512, records: 3 }, "82008219020003"),
            (Record::Blank { term: 2 }, "82018102"),
            (Record::Normal { term: 2, payload: b"p" }, "820282024170"),
            (Record::Members { term: 2, members }, "82038202a2008182070801a20763613a310863623a32"),
            (Record::Vote(vote), "820481a30002010702f5"),
            (Record::Committed(at), "820581a200020103"),
            (Record::Purged(at), "820681a200020103"),
        ];
        for (record, bytes) in fixtures {
            let encoded = minicbor::to_vec(&record).unwrap();
            assert_eq!(skep_core::id::hex(&encoded), bytes);
        }
        let last = Some(at);
        let carry = Carry { vote: Some(vote), committed: last, purged: last, last, batch: 9 };
        let header = crate::segment::Header { seq: 4, previous: None, carry };
        assert_eq!(
            skep_core::id::hex(&minicbor::to_vec(header).unwrap()),
            "a2000402a500a30002010702f501a20002010302a20002010303a2000201030409"
        );
    }
}
