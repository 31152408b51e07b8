//! Files with holes: the old GNU format, and the three that GNU writes into extended headers.

use std::io::{self, Read};

use tar::Header;

use super::{Archive, ArchiveError, Entry, shown};
use crate::limits::ARCHIVE_HEADER_BYTES;

/// Bytes of one offset and length in an old header.
const OLD_PIECE: usize = 24;
/// Where an old header has its pieces, says that blocks with more follow, and its real size.
const OLD: (std::ops::Range<usize>, usize, std::ops::Range<usize>) = (386..482, 482, 483..495);
/// The same in a block that follows it.
const OLD_MORE: (std::ops::Range<usize>, usize) = (0..504, 504);

/// A part of a file that is stored; what lies between two of them is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::images) struct Piece {
    pub(in crate::engine::images) offset: u64,
    pub(in crate::engine::images) bytes: u64,
}

/// What extended headers say of a file's holes.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Whether there is any such record.
    pub(super) any: bool,
    major: u64,
    minor: u64,
    pub(super) name: Option<Vec<u8>>,
    real: Option<u64>,
    /// Offsets and lengths, in turn.
    numbers: Vec<u64>,
}

impl Records {
    /// Takes over the record `GNU.sparse.KEY`; none if it is malformed.
    pub(super) fn take(&mut self, key: &str, value: &[u8]) -> Option<()> {
        self.any = true;
        let text = || std::str::from_utf8(value).ok();
        let number = || number(text()?);
        match key {
            "major" => self.major = number()?,
            "minor" => self.minor = number()?,
            "name" => self.name = Some(value.to_vec()),
            "realsize" | "size" => self.real = Some(number()?),
            "offset" | "numbytes" => {
                // They come in pairs, the offset first.
                if (key == "offset") != self.numbers.len().is_multiple_of(2) {
                    return None;
                }
                self.numbers.push(number()?);
            }
            "map" if value.is_empty() => {}
            "map" => {
                let numbers: Option<Vec<u64>> = text()?.split(',').map(self::number).collect();
                self.numbers = numbers?;
            }
            _ => {}
        }
        Some(())
    }
}

/// Decimal digits and nothing else.
fn number(text: &str) -> Option<u64> {
    let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten()
}

fn bad(entry: &Entry) -> ArchiveError {
    ArchiveError::Sparse(entry.shown())
}

impl<R: Read> Archive<R> {
    /// Reads the blocks behind an old header and the map in it. They come before the content.
    pub(super) fn old_map(
        &mut self,
        header: &Header,
        path: &[u8],
    ) -> Result<(u64, Vec<u64>), ArchiveError> {
        let bad = || ArchiveError::Sparse(shown(path));
        let head = header.as_bytes();
        let real = octal(head.get(OLD.2).unwrap_or_default()).ok_or_else(bad)?;
        let mut numbers = Vec::new();
        pieces_of(head.get(OLD.0).unwrap_or_default(), &mut numbers).ok_or_else(bad)?;
        let mut more = head.get(OLD.1).is_some_and(|flag| *flag != 0);
        while more {
            if numbers.len() * OLD_PIECE / 2 > ARCHIVE_HEADER_BYTES {
                return Err(bad());
            }
            let mut block = [0; 512];
            if self.read_block(&mut block)? < block.len() {
                return Err(ArchiveError::Truncated);
            }
            pieces_of(&block[OLD_MORE.0], &mut numbers).ok_or_else(bad)?;
            more = block[OLD_MORE.1] != 0;
        }
        Ok((real, numbers))
    }

    /// Finds the map of a file that extended headers call sparse, and sets the entry's pieces and
    /// size. Its content has just begun.
    pub(super) fn extended_map(
        &mut self,
        entry: &mut Entry,
        records: Records,
    ) -> Result<(), ArchiveError> {
        let real = records.real.ok_or_else(|| bad(entry))?;
        let numbers = match (records.major, records.minor) {
            (0, _) => records.numbers,
            (1, 0) => self.inner_map(entry)?,
            _ => {
                let path = entry.shown();
                return Err(ArchiveError::Unsupported {
                    path,
                    what: "sparse file of a new format",
                });
            }
        };
        self.set_pieces(entry, real, &numbers)
    }

    /// The map that stands before the content, in decimal lines: how many pieces, then offset and
    /// length of each, filled up to a whole block.
    fn inner_map(&mut self, entry: &Entry) -> Result<Vec<u64>, ArchiveError> {
        let mut numbers: Vec<u64> = Vec::new();
        let (mut open, mut read) = (Vec::new(), 0);
        loop {
            let mut block = [0; 512];
            self.read_exact(&mut block).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => bad(entry),
                _ => ArchiveError::Read(e),
            })?;
            read += block.len();
            for byte in block {
                if numbers.first().is_some_and(|n| numbers.len() as u64 > n.saturating_mul(2)) {
                    break;
                }
                if byte != b'\n' {
                    open.push(byte);
                    continue;
                }
                let text = std::str::from_utf8(&open).ok().and_then(number);
                numbers.push(text.ok_or_else(|| bad(entry))?);
                open.clear();
            }
            let Some(count) = numbers.first() else { return Err(bad(entry)) };
            if numbers.len() as u64 > count.saturating_mul(2) {
                numbers.remove(0);
                return Ok(numbers);
            }
            if read > ARCHIVE_HEADER_BYTES {
                return Err(bad(entry));
            }
        }
    }

    /// Checks a map against the content that is left, and takes it over.
    pub(super) fn set_pieces(
        &mut self,
        entry: &mut Entry,
        real: u64,
        numbers: &[u64],
    ) -> Result<(), ArchiveError> {
        let (mut pieces, mut end, mut stored) = (Vec::new(), 0, 0u64);
        for pair in numbers.chunks(2) {
            let [offset, bytes] = *pair else { return Err(bad(entry)) };
            let after = offset.checked_add(bytes).filter(|after| *after <= real);
            end = after.filter(|_| offset >= end).ok_or_else(|| bad(entry))?;
            stored = stored.saturating_add(bytes);
            pieces.push(Piece { offset, bytes });
        }
        if stored != self.rest {
            return Err(bad(entry));
        }
        entry.size = real;
        entry.pieces = Some(pieces);
        Ok(())
    }

    /// The content of the entry that was read last, its holes filled with zeros.
    pub(in crate::engine::images) fn filled<'a>(&'a mut self, entry: &'a Entry) -> Filled<'a, R> {
        Filled { archive: self, entry, at: 0, next: 0 }
    }
}

/// A number of an old header: octal digits between blanks, or big-endian behind a set high bit.
fn octal(field: &[u8]) -> Option<u64> {
    if let [0x80, rest @ ..] = field {
        let (high, low) = rest.split_at_checked(rest.len().checked_sub(8)?)?;
        let is_small = high.iter().all(|b| *b == 0);
        return is_small.then(|| low.iter().fold(0, |sum, b| sum << 8 | u64::from(*b)));
    }
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_matches(|c: char| c == ' ' || c == '\0');
    u64::from_str_radix(if text.is_empty() { "0" } else { text }, 8).ok()
}

/// The used pieces of a header's table; an empty one ends it.
fn pieces_of(table: &[u8], numbers: &mut Vec<u64>) -> Option<()> {
    for piece in table.chunks_exact(OLD_PIECE) {
        if piece.first() == Some(&0) {
            break;
        }
        let (offset, bytes) = piece.split_at(OLD_PIECE / 2);
        numbers.extend([octal(offset)?, octal(bytes)?]);
    }
    Some(())
}

/// As [`Archive::filled`] says.
#[derive(Debug)]
pub(in crate::engine::images) struct Filled<'a, R> {
    archive: &'a mut Archive<R>,
    entry: &'a Entry,
    at: u64,
    next: usize,
}

impl<R: Read> Read for Filled<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(pieces) = &self.entry.pieces else { return self.archive.read(buffer) };
        while pieces.get(self.next).is_some_and(|p| p.offset + p.bytes <= self.at) {
            self.next += 1;
        }
        let (start, end) = match pieces.get(self.next) {
            Some(piece) => (piece.offset, piece.offset + piece.bytes),
            None => (self.entry.size, self.entry.size),
        };
        let until = if self.at < start { start } else { end };
        let left = usize::try_from(until - self.at).unwrap_or(usize::MAX);
        let len = buffer.len().min(left);
        let Some(part) = buffer.get_mut(..len) else { return Ok(0) };
        let n = if self.at < start {
            part.fill(0);
            len
        } else {
            self.archive.read(part)?
        };
        self.at += n as u64;
        Ok(n)
    }
}
