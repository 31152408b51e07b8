//! Reads a tar archive entry by entry, with a bound on everything it keeps in memory.
//!
//! Only the layout of the 512-byte header is left to the `tar` crate: its own iterator reads long
//! names and extended headers into memory however long they say they are.

use std::io::{self, Read};

use tar::{EntryType, Header};

use crate::limits::{ARCHIVE_HEADER_BYTES, ARCHIVE_PATH_BYTES};

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
    /// Bytes of content behind the header.
    pub(super) size: u64,
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

/// What extended headers say of the next entry.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    sparse: bool,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// A tar stream. Between two calls of [`Archive::next`] it reads as the content of the entry.
#[derive(Debug)]
pub(super) struct Archive<R> {
    input: R,
    /// Bytes read so far.
    at: u64,
    /// Bytes of the current entry not read yet, and the padding behind them.
    rest: u64,
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, at: 0, rest: 0, padding: 0 }
    }

    /// The header of the next entry; none at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extended = Extended::default();
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
                _ => {
                    let entry = extended.complete(&header, size, at)?;
                    self.expect(entry.size);
                    return Ok(Some(entry));
                }
            }
        }
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
        self.padding = size.next_multiple_of(BLOCK) - size;
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        let left = self.rest + self.padding;
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
            .filter(|len| *len <= limit)
            .ok_or(ArchiveError::TooLong { what, limit, at })?;
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

impl Extended {
    /// Takes over the records of an extended header; none if they are malformed.
    fn read(&mut self, mut records: &[u8]) -> Option<()> {
        while !records.is_empty() {
            // "LENGTH KEY=VALUE\n", the length counting itself.
            let space = records.iter().position(|b| *b == b' ')?;
            let len: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
            let record = records.get(space + 1..len)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|b| *b == b'=')?;
            let (key, value) =
                (std::str::from_utf8(&record[..equals]).ok()?, &record[equals + 1..]);
            let text = || std::str::from_utf8(value).ok();
            match key {
                "path" => self.path = Some(value.to_vec()),
                "linkpath" => self.link = Some(value.to_vec()),
                "size" => self.size = Some(text()?.parse().ok()?),
                "uid" => self.uid = Some(text()?.parse().ok()?),
                "gid" => self.gid = Some(text()?.parse().ok()?),
                "mtime" => self.mtime = Some(parse_time(text()?)?),
                _ => {
                    self.sparse |= key.starts_with("GNU.sparse.");
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                        self.xattrs.push((name.to_owned(), value.to_vec()));
                    }
                }
            }
            records = &records[len..];
        }
        Some(())
    }

    fn complete(&mut self, header: &Header, size: u64, at: u64) -> Result<Entry, ArchiveError> {
        let this = std::mem::take(self);
        let path = this.path.unwrap_or_else(|| header.path_bytes().into_owned());
        if path.len() > ARCHIVE_PATH_BYTES {
            let limit = ARCHIVE_PATH_BYTES;
            return Err(ArchiveError::TooLong { what: "name", limit, at });
        }
        let kind = kind_of(header.entry_type(), &path)?;
        if this.sparse {
            return Err(ArchiveError::Unsupported { path: shown(&path), what: "sparse file" });
        }
        let link = this.link.or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
        let bad = |_| ArchiveError::Header(at);
        let owner = |extended: Option<u64>, plain: io::Result<u64>| match extended {
            Some(id) => u32::try_from(id).map_err(|_| ArchiveError::Header(at)),
            None => u32::try_from(plain.map_err(bad)?).map_err(|_| ArchiveError::Header(at)),
        };
        let seconds = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
        let device = |number: io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
        Ok(Entry {
            kind,
            link: link.unwrap_or_default(),
            mode: header.mode().map_err(bad)? & 0o7777,
            uid: owner(this.uid, header.uid())?,
            gid: owner(this.gid, header.gid())?,
            mtime: this.mtime.unwrap_or((seconds, 0)),
            device: (device(header.device_major()), device(header.device_minor())),
            // Only files have content, whatever the header of a link says.
            size: if kind == EntryKind::File { this.size.unwrap_or(size) } else { 0 },
            xattrs: this.xattrs,
            path,
        })
    }
}

fn kind_of(entry: EntryType, path: &[u8]) -> Result<EntryKind, ArchiveError> {
    Ok(match entry {
        // An old archive marks a directory by its trailing slash alone.
        EntryType::Regular if path.ends_with(b"/") => EntryKind::Directory,
        EntryType::Regular | EntryType::Continuous => EntryKind::File,
        EntryType::Directory => EntryKind::Directory,
        EntryType::Symlink => EntryKind::Symlink,
        EntryType::Link => EntryKind::Hardlink,
        EntryType::Char => EntryKind::Char,
        EntryType::Block => EntryKind::Block,
        EntryType::Fifo => EntryKind::Fifo,
        EntryType::GNUSparse => {
            return Err(ArchiveError::Unsupported { path: shown(path), what: "sparse file" });
        }
        _ => {
            return Err(ArchiveError::Unsupported {
                path: shown(path),
                what: "entry of unknown type",
            });
        }
    })
}

/// Seconds with an optional fraction: `1700000000.25`, `-1.5`.
fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    match whole.starts_with('-') && nanos > 0 {
        true => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        false => Some((seconds, nanos)),
    }
}
