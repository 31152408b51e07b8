//! Extended headers: what they say of the next entry, beside the plain header or instead of it.

use std::io;

use tar::{EntryType, Header};

use super::sparse::Records;
use super::{ArchiveError, Entry, EntryKind, shown};
use crate::limits::ARCHIVE_PATH_BYTES;

/// What extended headers say of the next entry.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    pub(super) sparse: Records,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Extended {
    /// Takes over the records of an extended header; none if they are malformed.
    pub(super) fn read(&mut self, mut records: &[u8]) -> Option<()> {
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
                    if let Some(key) = key.strip_prefix("GNU.sparse.") {
                        self.sparse.take(key, value)?;
                    }
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                        self.xattrs.push((name.to_owned(), value.to_vec()));
                    }
                }
            }
            records = &records[len..];
        }
        Some(())
    }

    /// The entry that this header begins; its size is that of the content behind it.
    pub(super) fn complete(
        &mut self,
        header: &Header,
        size: u64,
        at: u64,
    ) -> Result<Entry, ArchiveError> {
        let this = std::mem::take(self);
        let path = this.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let path = this.sparse.name.clone().unwrap_or(path);
        let link = this.link.or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
        let link = link.unwrap_or_default();
        if path.len().max(link.len()) > ARCHIVE_PATH_BYTES {
            let limit = ARCHIVE_PATH_BYTES;
            return Err(ArchiveError::TooLong { what: "name", limit, at });
        }
        let kind = kind_of(header.entry_type(), &path)?;
        let bad = |_| ArchiveError::Header(at);
        let owner = |extended: Option<u64>, plain: io::Result<u64>| {
            let id = extended.map_or(plain, Ok).map_err(bad)?;
            // The highest number means nobody to the kernel.
            match u32::try_from(id) {
                Ok(known) if known < u32::MAX => Ok(known),
                _ => Err(ArchiveError::Owner { path: shown(&path), id }),
            }
        };
        let seconds = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
        let device = |number: io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
        self.sparse = this.sparse;
        Ok(Entry {
            kind,
            link,
            mode: header.mode().map_err(bad)? & 0o7777,
            uid: owner(this.uid, header.uid())?,
            gid: owner(this.gid, header.gid())?,
            mtime: this.mtime.unwrap_or((seconds, 0)),
            device: (device(header.device_major()), device(header.device_minor())),
            // Only files have content, whatever the header of a link says.
            size: if kind == EntryKind::File { this.size.unwrap_or(size) } else { 0 },
            pieces: None,
            xattrs: this.xattrs,
            path,
        })
    }
}

fn kind_of(entry: EntryType, path: &[u8]) -> Result<EntryKind, ArchiveError> {
    Ok(match entry {
        // An old archive marks a directory by its trailing slash alone.
        EntryType::Regular if path.ends_with(b"/") => EntryKind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => EntryKind::File,
        EntryType::Directory => EntryKind::Directory,
        EntryType::Symlink => EntryKind::Symlink,
        EntryType::Link => EntryKind::Hardlink,
        EntryType::Char => EntryKind::Char,
        EntryType::Block => EntryKind::Block,
        EntryType::Fifo => EntryKind::Fifo,
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
