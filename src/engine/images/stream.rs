//! Compressed streams, with a bound on what they unpack to; and streams that are hashed on the way.

use std::cell::Cell;
use std::io::{self, BufReader, Read, Write};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};
use skep_core::id::hex;

use crate::limits::{ARCHIVE_FREE_BYTES, ARCHIVE_RATIO};

/// Bytes read from a stream at once.
pub(super) const BUFFER_BYTES: usize = 64 << 10;

/// A stream as it was before it was packed. It fails where it gets too long, or out of
/// proportion to what was read for it.
pub(super) struct Plain<'a> {
    from: Box<dyn Read + 'a>,
    packed: Rc<Cell<u64>>,
    bytes: u64,
    limit: u64,
}

impl<'a> Plain<'a> {
    /// Finds out by its first bytes how a stream is packed: gzip, zstd or not at all.
    pub(super) fn new(stream: &'a mut dyn Read, limit: u64) -> io::Result<Self> {
        let packed = Rc::new(Cell::new(0));
        let mut stream = Counted { from: stream, bytes: Rc::clone(&packed) };
        let mut head = Vec::with_capacity(4);
        stream.by_ref().take(4).read_to_end(&mut head)?;
        let whole = io::Cursor::new(head.clone()).chain(stream);
        let whole = BufReader::with_capacity(BUFFER_BYTES, whole);
        let from: Box<dyn Read + 'a> = match head.as_slice() {
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
            [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::with_buffer(whole)?),
            [b'B', b'Z', b'h', ..] => return Err(io::Error::other("bzip2 is not supported")),
            [0xfd, b'7', b'z', b'X'] => return Err(io::Error::other("xz is not supported")),
            _ => Box::new(whole),
        };
        Ok(Self { from, packed, bytes: 0, limit })
    }

    /// Bytes read from it so far.
    pub(super) fn count(&self) -> u64 {
        self.bytes
    }
}

impl Read for Plain<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.bytes = self.bytes.saturating_add(n as u64);
        if self.bytes > self.limit {
            let text = format!("the archive unpacks to more than {} bytes", self.limit);
            return Err(io::Error::other(text));
        }
        let fair = self.packed.get().saturating_mul(ARCHIVE_RATIO).max(ARCHIVE_FREE_BYTES);
        if self.bytes > fair {
            return Err(io::Error::other(format!(
                "the archive unpacks to more than {ARCHIVE_FREE_BYTES} bytes and more than \
                 {ARCHIVE_RATIO} times its size"
            )));
        }
        Ok(n)
    }
}

struct Counted<R> {
    from: R,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.bytes.set(self.bytes.get().saturating_add(n as u64));
        Ok(n)
    }
}

/// Hashes what is read through it, and writes it on.
pub(super) struct Tee<R, W> {
    from: R,
    hash: Sha256,
    to: Option<W>,
}

impl<R: Read, W: Write> Tee<R, W> {
    pub(super) fn new(from: R, to: Option<W>) -> Self {
        Self { from, hash: Sha256::new(), to }
    }

    /// The stream, the digest of what was read as `sha256:…`, and where it was written to.
    pub(super) fn finish(self) -> (R, String, Option<W>) {
        (self.from, format!("sha256:{}", hex(&self.hash.finalize())), self.to)
    }
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        let bytes = buffer.get(..n).unwrap_or_default();
        self.hash.update(bytes);
        if let Some(to) = &mut self.to {
            to.write_all(bytes)?;
        }
        Ok(n)
    }
}

/// Reads a stream to its end and copies it; tells its bytes and its digest.
pub(super) fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<(u64, String)> {
    let mut tee = Tee::new(from, Some(to));
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut bytes = 0u64;
    loop {
        match tee.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => bytes = bytes.saturating_add(n as u64),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok((bytes, tee.finish().1))
}
