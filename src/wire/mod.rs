//! Messages between processes: CBOR maps with numbered fields. Numbers are never reused, and a
//! field added later has a default.
//!
//! Nodes of two versions in succession understand one another. A reader skips fields that it does
//! not know, and whole messages of a kind that it does not know ([`parse_known`]): a session goes
//! on without them, a question is answered with a refusal. What is unknown deeper inside of a
//! message is an error, since leaving it out could turn the message into another one: a new value
//! there waits until the format of the swarm's state, or a new name of the protocol in
//! `crate::net`, says that the reader knows it. Commands are never forwarded beyond that format,
//! so none loses a field on its way to the log.

pub mod audit;
pub mod control;
pub mod image;
pub mod join;
pub mod launch;
pub mod refused;
pub mod relay;
pub mod session;
pub mod shim;

use std::io::{self, Read, Write};
use std::time::Duration;

use minicbor::{Decode, Encode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::limits::SHIM_MESSAGE_BYTES;

#[cfg(test)]
mod newer_tests;

/// Bytes set aside for a message before any of it is there.
const FIRST_BYTES: usize = 64 << 10;

/// A stream of bytes to another node, in both directions. Each ends by itself: a shutdown is an
/// end for the other side, and a dropped stream is lost to it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A message that cannot be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The peer announced more than it may send.
    #[error("a message of {0} bytes is over the limit of {1}")]
    TooLong(usize, usize),
    /// The bytes are no message of this protocol.
    #[error("a message cannot be understood")]
    Decode(#[from] minicbor::decode::Error),
    /// The peer said nothing for too long.
    #[error("the other side said nothing for {} s", .0.as_secs())]
    Silent(Duration),
    /// The peer said what does not belong here.
    #[error("the other side answered something else than was asked")]
    Unexpected,
}

/// Encodes a message behind its length: four bytes, big-endian.
pub fn frame<T: Encode<()>>(message: &T) -> Vec<u8> {
    let mut out = vec![0; 4];
    // Writing to a vector cannot fail, and derived encoders raise no errors of their own.
    let _ = minicbor::encode(message, &mut out);
    let len = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&len.to_be_bytes());
    out
}

/// Decodes one message and refuses bytes behind it.
///
/// # Errors
/// [`WireError::Decode`].
pub fn parse<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> Result<T, WireError> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let message = decoder.decode()?;
    if decoder.position() != bytes.len() {
        return Err(minicbor::decode::Error::message("trailing bytes").into());
    }
    Ok(message)
}

/// Where a message says of which kind it is: behind the head of its pair.
const KIND_AT: usize = 1;

/// Decodes one message; none if it is of a kind that a later version has added.
///
/// # Errors
/// [`WireError::Decode`], also if only a part of the message is unknown.
pub fn parse_known<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> Result<Option<T>, WireError> {
    match parse(bytes) {
        Err(WireError::Decode(e)) if e.position() == Some(KIND_AT) && has_kind(bytes) => Ok(None),
        parsed => parsed.map(Some),
    }
}

/// Whether this is a number with content: any kind of message looks like that.
fn has_kind(bytes: &[u8]) -> bool {
    let mut decoder = minicbor::Decoder::new(bytes);
    let mut read = || {
        let is_pair = decoder.array()? == Some(2);
        decoder.u32()?;
        decoder.skip()?;
        Ok::<_, minicbor::decode::Error>(is_pair && decoder.position() == bytes.len())
    };
    read().is_ok_and(|has_kind| has_kind)
}

/// The length in a frame's header, checked.
///
/// # Errors
/// [`WireError::TooLong`].
pub fn frame_len(header: [u8; 4]) -> Result<usize, WireError> {
    bounded(header, SHIM_MESSAGE_BYTES)
}

fn bounded(header: [u8; 4], limit: usize) -> Result<usize, WireError> {
    let len = u32::from_be_bytes(header) as usize;
    if len > limit { Err(WireError::TooLong(len, limit)) } else { Ok(len) }
}

/// Reads the bytes of one framed message of at most `limit` bytes.
///
/// # Errors
/// [`WireError::Io`] or [`WireError::TooLong`].
pub async fn receive_bytes(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> Result<Vec<u8>, WireError> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).await?;
    let len = bounded(header, limit)?;
    // What is announced is not believed: memory grows with what comes.
    let mut body = Vec::with_capacity(len.min(FIRST_BYTES));
    let read = stream.take(len as u64).read_to_end(&mut body).await?;
    if read < len {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(body)
}

/// Reads one framed message of at most `limit` bytes.
///
/// # Errors
/// Any [`WireError`].
pub async fn receive<T: for<'b> Decode<'b, ()>>(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> Result<T, WireError> {
    parse(&receive_bytes(stream, limit).await?)
}

/// Reads one framed message of at most `limit` bytes; none if it is of a kind that a later version
/// has added.
///
/// # Errors
/// Any [`WireError`].
pub async fn receive_known<T: for<'b> Decode<'b, ()>>(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> Result<Option<T>, WireError> {
    parse_known(&receive_bytes(stream, limit).await?)
}

/// Reads the next framed message of a kind that is known, and skips those before.
///
/// # Errors
/// Any [`WireError`].
pub async fn receive_next<T: for<'b> Decode<'b, ()>>(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> Result<T, WireError> {
    loop {
        match receive_known(stream, limit).await? {
            Some(message) => return Ok(message),
            None => tracing::debug!("a message of a kind that this version does not know"),
        }
    }
}

/// Writes one framed message.
///
/// # Errors
/// [`WireError::Io`].
pub async fn send<T: Encode<()>>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), WireError> {
    Ok(stream.write_all(&frame(message)).await?)
}

/// Writes bytes as one framed message.
///
/// # Errors
/// [`WireError::Io`].
pub async fn send_bytes(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
) -> Result<(), WireError> {
    let len = u32::try_from(bytes.len())
        .map_err(|_| WireError::TooLong(bytes.len(), u32::MAX as usize))?;
    stream.write_all(&len.to_be_bytes()).await?;
    Ok(stream.write_all(bytes).await?)
}

/// Reads one framed message from a blocking stream.
///
/// # Errors
/// Any [`WireError`]; an end of stream is [`io::ErrorKind::UnexpectedEof`].
pub fn read_message<T: for<'b> Decode<'b, ()>>(stream: &mut impl Read) -> Result<T, WireError> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let mut body = vec![0; frame_len(header)?];
    stream.read_exact(&mut body)?;
    parse(&body)
}

/// Writes one framed message to a blocking stream.
///
/// # Errors
/// [`WireError::Io`].
pub fn write_message<T: Encode<()>>(stream: &mut impl Write, message: &T) -> Result<(), WireError> {
    stream.write_all(&frame(message))?;
    Ok(())
}
