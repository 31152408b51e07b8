//! Reads a tar archive entry by entry, with a bound on everything it keeps in memory.
//!
//! Only the layout of the 512-byte header is left to the `tar` crate: its own iterator reads long
//! names and extended headers into memory however long they say they are.

mod extended;
mod sparse;

use std::io::{self, Read};

use tar::{EntryType, Header};

use crate::limits::{ARCHIVE_HEADER_BYTES, ARCHIVE_PATH_BYTES};
use extended::Extended;
pub(super) use sparse::Piece;

const BLOCK: u64 = 512;

/// An archive that cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream failed, or is over the size limit.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The input has no bytes.
    #[error("the archive is empty")]
    Empty,
    /// It ends in the middle of an entry.
    #[error("the archive ends in the middle of an entry")]
    Truncated,
    /// A header is no tar header.
    #[error("this is no tar archive, or it is damaged: bad header at byte {0}")]
    Header(u64),
    /// An entry would land outside of the archive's root, or has no proper name.
    #[error("entry {0:?} has a forbidden path")]
    Path(String),
    /// An entry's name or header is too long.
    #[error("an entry's {what} is longer than {limit} bytes, at byte {at}")]
    TooLong {
        /// Name or header.
        what: &'static str,
        /// The limit.
        limit: usize,
        /// Where.
        at: u64,
    },
    /// There are too many entries.
    #[error("the archive has more than {0} entries")]
    TooMany(u64),
    /// An entry of a kind that is not unpacked.
    #[error("entry {path:?} is a {what}, which is not supported")]
    Unsupported {
        /// Entry.
        path: String,
        /// Its kind.
        what: &'static str,
    },
    /// The map of a file's holes does not fit the file.
    #[error("entry {0:?} has a bad map of its holes")]
    Sparse(String),
    /// An owner that no kernel knows.
    #[error("entry {path:?} belongs to {id}, which is no user or group id")]
    Owner {
        /// Entry.
        path: String,
        /// User or group.
        id: u64,
    },
    /// All files together are too large.
    #[error("the archive's files have more than {0} bytes")]
    TooLarge(u64),
    /// An entry cannot be written.
    #[error("cannot unpack entry {path:?}")]
    Unpack {
        /// Entry.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    File,
    Directory,
    Symlink,
    Hardlink,
    Char,
    Block,
    Fifo,
}

/// An entry's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) kind: EntryKind,
    /// Target of a symbolic or hard link.
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since the epoch and nanoseconds.
    pub(super) mtime: (i64, u32),
    /// Major and minor number.
    pub(super) device: (u32, u32),
    /// Bytes of the file, holes included.
    pub(super) size: u64,
    /// Which parts of a file with holes are stored, one behind the other.
    pub(super) pieces: Option<Vec<Piece>>,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

impl Entry {
    /// The path for messages.
    pub(super) fn shown(&self) -> String {
        shown(&self.path)
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(256).collect()
}

/// A tar stream. Between two calls of [`Archive::next`] it reads as the content of the entry: of a
/// file with holes only what is stored, one piece behind the other.
#[derive(Debug)]
pub(super) struct Archive<R> {
    input: R,
    /// Bytes read so far.
    at: u64,
    /// Bytes of the current entry not read yet, and the padding behind them.
    rest: u64,
    padding: u64,
    /// Bytes of headers that the next entry may still have.
    header_room: usize,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, at: 0, rest: 0, padding: 0, header_room: 0 }
    }

    /// The header of the next entry; none at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extended = Extended::default();
        self.header_room = ARCHIVE_HEADER_BYTES;
        loop {
            self.skip_rest()?;
            let at = self.at;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|_| ArchiveError::Header(at))?;
            match header.entry_type() {
                EntryType::GNULongName => extended.path = Some(self.long_name(size)?),
                EntryType::GNULongLink => extended.link = Some(self.long_name(size)?),
                EntryType::XHeader => {
                    let records = self.metadata(size, ARCHIVE_HEADER_BYTES, "header")?;
                    extended.read(&records).ok_or(ArchiveError::Header(at))?;
                }
                EntryType::XGlobalHeader => self.expect(size),
                _ => return self.entry(&header, extended, size, at).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        mut extended: Extended,
        size: u64,
        at: u64,
    ) -> Result<Entry, ArchiveError> {
        let mut entry = extended.complete(header, size, at)?;
        if header.entry_type() == EntryType::GNUSparse {
            let (real, numbers) = self.old_map(header, &entry.path)?;
            self.expect(entry.size);
            self.set_pieces(&mut entry, real, &numbers)?;
            return Ok(entry);
        }
        self.expect(entry.size);
        if extended.sparse.any {
            if entry.kind != EntryKind::File {
                return Err(ArchiveError::Sparse(entry.shown()));
            }
            self.extended_map(&mut entry, extended.sparse)?;
        }
        Ok(entry)
    }

    /// Reads whatever stands behind the last entry, so that a digest covers it.
    pub(super) fn drain(mut self) -> Result<(), ArchiveError> {
        io::copy(&mut self.input, &mut io::sink()).map_err(ArchiveError::Read)?;
        Ok(())
    }

    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let at = self.at;
        let mut block = [0; BLOCK as usize];
        match self.read_block(&mut block)? {
            0 if at == 0 => return Err(ArchiveError::Empty),
            // Some writers leave out the zero blocks at the end.
            0 => return Ok(None),
            n if n < block.len() && at == 0 => return Err(ArchiveError::Header(0)),
            n if n < block.len() => return Err(ArchiveError::Truncated),
            _ => {}
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        // The checksum counts its own field as spaces.
        let sum = |range: &[u8]| range.iter().map(|b| u32::from(*b)).sum::<u32>();
        let expected = sum(&block) - sum(&block[148..156]) + 8 * u32::from(b' ');
        if header.cksum().ok() != Some(expected) {
            return Err(ArchiveError::Header(at));
        }
        Ok(Some(header))
    }

    fn read_block(&mut self, block: &mut [u8]) -> Result<usize, ArchiveError> {
        let mut filled = 0;
        while filled < block.len() {
            match self.input.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(ArchiveError::Read(e)),
            }
        }
        self.at += filled as u64;
        Ok(filled)
    }

    fn expect(&mut self, size: u64) {
        self.rest = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        let left = self.rest.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.input).take(left), &mut io::sink())
            .map_err(ArchiveError::Read)?;
        self.at += skipped;
        // The padding of the last entry may be missing; its content may not.
        if skipped < self.rest {
            return Err(ArchiveError::Truncated);
        }
        (self.rest, self.padding) = (0, 0);
        Ok(())
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut name = self.metadata(size, ARCHIVE_PATH_BYTES + 1, "name")?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn metadata(
        &mut self,
        size: u64,
        limit: usize,
        what: &'static str,
    ) -> Result<Vec<u8>, ArchiveError> {
        let at = self.at;
        let len = usize::try_from(size)
            .ok()
            .filter(|len| *len <= limit.min(self.header_room))
            .ok_or(ArchiveError::TooLong { what, limit, at })?;
        self.header_room -= len;
        let mut bytes = vec![0; len];
        self.expect(size);
        self.read_exact(&mut bytes).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Truncated,
            _ => ArchiveError::Read(e),
        })?;
        Ok(bytes)
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.rest).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let n = self.input.read(&mut buffer[..want])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.rest -= n as u64;
        self.at += n as u64;
        Ok(n)
    }
}
