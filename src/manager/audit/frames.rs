//! Frames as they stand in a segment.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use minicbor::{Decode, Encode};
use skep_core::id::{NodeId, TaskId};
use skep_core::time::Stamp;

use super::store::Store;
use crate::audit::hash;
use crate::seal::{NONCE_BYTES, open_under};
use crate::wire::audit::Portion;

/// Purpose of the subkey that seals.
pub(super) const PURPOSE: &[u8] = b"skep-audit-segment/1";
/// Bytes before a head.
pub(super) const PREFIX_BYTES: usize = 6;
/// Bytes that a head has at most.
pub(super) const HEAD_BYTES: usize = 256;

/// What a frame says of itself.
#[derive(Debug, Clone, Encode, Decode)]
#[cbor(map)]
pub(super) struct FrameHead {
    #[n(0)]
    pub(super) node: NodeId,
    #[n(1)]
    pub(super) task: TaskId,
    /// Sequences of the records, from and to, each run without a gap.
    #[n(2)]
    pub(super) runs: Vec<(u64, u64)>,
    /// When the last record was written, or when it was stored if that was before.
    #[n(3)]
    pub(super) at: Stamp,
    #[cbor(n(4), with = "minicbor::bytes")]
    pub(super) nonce: [u8; NONCE_BYTES],
    /// Bytes that follow.
    #[n(5)]
    pub(super) sealed: u32,
    /// Whether another manager had it earlier.
    #[n(6)]
    #[cbor(default)]
    pub(super) is_copied: bool,
}

/// One frame as it stands in a segment.
pub(super) struct Frame {
    pub(super) head: FrameHead,
    /// Where the sealed bytes begin.
    pub(super) body: u64,
    pub(super) end: u64,
}

impl Store {
    /// What is in a frame; none if it does not open. An error is the disk's.
    pub(super) fn read_portion(
        &self,
        file: &File,
        (number, offset): (u64, u64),
        frame: &Frame,
    ) -> io::Result<Option<Portion>> {
        let mut sealed = vec![0; frame.head.sealed as usize];
        file.read_exact_at(&mut sealed, frame.body)?;
        let aad = aad(number, offset, &frame.head);
        let plain = open_under(&self.key, PURPOSE, &aad, &frame.head.nonce, &sealed).ok();
        let bodies = plain.and_then(|plain| crate::wire::parse(plain.as_slice()).ok());
        let (node, task) = (frame.head.node, frame.head.task);
        Ok(bodies.map(|bodies| Portion { node, task, bodies }))
    }

    /// The first frame at `offset` or behind it, with its place. Where bytes are in between that
    /// are no frame, the next one must open to be believed.
    pub(super) fn frame_from(
        &self,
        file: &File,
        number: u64,
        offset: u64,
        len: u64,
    ) -> io::Result<Option<(u64, Frame)>> {
        if let Some(frame) = read_frame(file, offset, len)? {
            return Ok(Some((offset, frame)));
        }
        // Most of the time this is the end. A segment is read whole at most.
        let left = usize::try_from(len.saturating_sub(offset)).unwrap_or(0);
        let mut bytes = vec![0; left];
        file.read_exact_at(&mut bytes, offset)?;
        for at in 1..bytes.len() {
            let place = offset + at as u64;
            if bytes.get(at..).is_some_and(begins_frame)
                && let Some(frame) = read_frame(file, place, len)?
                && self.read_portion(file, (number, place), &frame)?.is_some()
            {
                return Ok(Some((place, frame)));
            }
        }
        Ok(None)
    }
}

/// Whether these bytes begin with a head.
fn begins_frame(bytes: &[u8]) -> bool {
    let Some((&[high, low, check @ ..], rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
        return false;
    };
    let len = usize::from(u16::from_be_bytes([high, low]));
    let raw = rest.get(..len).filter(|_| (1..=HEAD_BYTES).contains(&len));
    raw.is_some_and(|raw| hash(raw).starts_with(&check))
}

/// Binds a frame to its place.
pub(super) fn aad(number: u64, offset: u64, head: &FrameHead) -> Vec<u8> {
    let head = FrameHead { nonce: [0; NONCE_BYTES], ..head.clone() };
    let head = minicbor::to_vec(&head).unwrap_or_default();
    [&number.to_be_bytes(), offset.to_be_bytes().as_slice(), &head].concat()
}

/// The frame at `offset`; none if there is no whole one.
fn read_frame(file: &File, offset: u64, len: u64) -> io::Result<Option<Frame>> {
    if offset + PREFIX_BYTES as u64 > len {
        return Ok(None);
    }
    let mut prefix = [0; PREFIX_BYTES];
    file.read_exact_at(&mut prefix, offset)?;
    let [high, low, check @ ..] = prefix;
    let head_len = usize::from(u16::from_be_bytes([high, low]));
    let body = offset + (PREFIX_BYTES + head_len) as u64;
    if !(1..=HEAD_BYTES).contains(&head_len) || body > len {
        return Ok(None);
    }
    let mut raw = vec![0; head_len];
    file.read_exact_at(&mut raw, offset + PREFIX_BYTES as u64)?;
    let head = Some(&raw).filter(|raw| hash(raw).starts_with(&check));
    let head: Option<FrameHead> = head.and_then(|raw| crate::wire::parse(raw).ok());
    let frame = head.map(|head| Frame { end: body + u64::from(head.sealed), head, body });
    Ok(frame.filter(|frame| frame.end <= len))
}
