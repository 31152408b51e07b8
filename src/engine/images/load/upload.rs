//! An archive of images, spread out in a directory of its own: its entries come in any order.
//!
//! No name of an entry becomes a name on disk: files are numbered, and looked up in a table.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::image::Descriptor;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use super::super::archive::{Archive, ArchiveError, Entry, EntryKind};
use super::super::disk::Disk;
use super::super::error::ImageError;
use super::super::layer::split;
use super::super::reference::{is_digest, is_hex};
use super::super::stream::{Plain, copy};
use super::LoadError;
use crate::limits::{
    ARCHIVE_FREE_BYTES, ARCHIVE_RATIO, IMAGE_DOCUMENT_BYTES, IMAGE_UPLOAD_BYTES,
    IMAGE_UPLOAD_DOCUMENT_BYTES, IMAGE_UPLOAD_ENTRIES,
};

/// Where an OCI layout has its blobs.
const BLOBS: &str = "blobs/sha256/";
/// Links to links, at most.
const LINKS: usize = 8;

/// An archive of images that came whole. Its files go away when it is dropped.
#[derive(Debug)]
pub struct Upload {
    directory: TempDir,
    entries: BTreeMap<String, Found>,
    /// Bytes of documents that may still be read.
    document_room: Cell<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    File(Blob),
    /// Path that it leads to, from the top.
    Link(String),
}

/// A file of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    /// Where it is now.
    pub(super) file: PathBuf,
    pub(super) bytes: u64,
    /// With `sha256:`.
    pub(super) digest: String,
}

impl Upload {
    /// Takes in a whole archive: plain, gzip or zstd.
    pub(in super::super) fn receive(
        disk: &Disk,
        stream: &mut dyn Read,
    ) -> Result<Self, ImageError> {
        let mut this = Self {
            directory: disk.new_staging()?,
            entries: BTreeMap::new(),
            document_room: Cell::new(IMAGE_UPLOAD_DOCUMENT_BYTES),
        };
        this.fill(stream)?;
        Ok(this)
    }

    fn fill(&mut self, stream: &mut dyn Read) -> Result<(), LoadError> {
        let plain = Plain::new(stream, IMAGE_UPLOAD_BYTES);
        let plain = plain.map_err(|e| LoadError::Archive(ArchiveError::Read(e)))?;
        let mut archive = Archive::new(plain);
        let (mut count, mut bytes) = (0, 0u64);
        while let Some(entry) = archive.next().map_err(LoadError::Archive)? {
            count += 1;
            if count > IMAGE_UPLOAD_ENTRIES {
                let limit = IMAGE_UPLOAD_ENTRIES;
                return Err(LoadError::TooMany { what: "entries", limit });
            }
            bytes = bytes.saturating_add(entry.size);
            if bytes > IMAGE_UPLOAD_BYTES || is_mostly_holes(&entry) {
                return Err(LoadError::Archive(ArchiveError::TooLarge(IMAGE_UPLOAD_BYTES)));
            }
            let path = path_of(&entry.path)
                .ok_or_else(|| LoadError::Archive(ArchiveError::Path(entry.shown())))?;
            self.take(path, &entry, count, &mut archive)?;
        }
        archive.drain().map_err(LoadError::Archive)
    }

    fn take<R: Read>(
        &mut self,
        path: String,
        entry: &Entry,
        number: usize,
        archive: &mut Archive<R>,
    ) -> Result<(), LoadError> {
        let found = match entry.kind {
            EntryKind::Directory => return Ok(()),
            EntryKind::File => Found::File(self.keep(&path, entry, number, archive)?),
            EntryKind::Symlink => {
                let above = path.rsplit_once('/').map_or("", |(above, _)| above);
                Found::Link(lead(above, &entry.link).unwrap_or_default())
            }
            EntryKind::Hardlink => Found::Link(lead("", &entry.link).unwrap_or_default()),
            EntryKind::Char | EntryKind::Block | EntryKind::Fifo => {
                return Err(LoadError::Entry(path));
            }
        };
        let same = match (self.entries.get(&path), &found) {
            (Some(Found::File(old)), Found::File(new)) => old.digest == new.digest,
            (Some(old), new) => old == new,
            (None, _) => true,
        };
        if !same {
            return Err(LoadError::Twice(path));
        }
        self.entries.insert(path, found);
        Ok(())
    }

    fn keep<R: Read>(
        &self,
        path: &str,
        entry: &Entry,
        number: usize,
        archive: &mut Archive<R>,
    ) -> Result<Blob, LoadError> {
        let file = self.directory.path().join(number.to_string());
        let mut write = || -> io::Result<(u64, String)> {
            copy(&mut archive.filled(entry), &mut File::create(&file)?)
        };
        let (bytes, digest) = write().map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => LoadError::Archive(ArchiveError::Truncated),
            _ => LoadError::Archive(ArchiveError::Unpack { path: path.to_owned(), source }),
        })?;
        if path.strip_prefix(BLOBS).is_some_and(|hex| digest != format!("sha256:{hex}")) {
            return Err(LoadError::Content { path: path.to_owned(), found: digest });
        }
        Ok(Blob { file, bytes, digest })
    }

    /// The file at a path, links followed.
    pub(super) fn find(&self, path: &str) -> Option<&Blob> {
        let mut path = path_of(path.as_bytes())?;
        for _ in 0..LINKS {
            match self.entries.get(&path)? {
                Found::File(blob) => return Some(blob),
                Found::Link(next) => path.clone_from(next),
            }
        }
        None
    }

    /// The file that an image names in a field.
    pub(super) fn named(&self, image: &str, field: &str, path: &str) -> Result<&Blob, LoadError> {
        self.find(path).ok_or_else(|| LoadError::Missing {
            image: image.to_owned(),
            field: field.to_owned(),
            path: path.to_owned(),
        })
    }

    /// The blob that an image describes in a field: its digest and its size are as described.
    pub(super) fn described(
        &self,
        image: &str,
        field: &str,
        descriptor: &Descriptor,
    ) -> Result<&Blob, LoadError> {
        let path = blob_path(image, field, descriptor)?;
        let blob = self.named(image, field, &path)?;
        if blob.digest != descriptor.digest().to_string() {
            return Err(LoadError::Content { path, found: blob.digest.clone() });
        }
        if blob.bytes != descriptor.size() {
            let what = format!("{} bytes are described, {} came", descriptor.size(), blob.bytes);
            return Err(LoadError::field(image, format!("{field}.size"), what));
        }
        Ok(blob)
    }

    /// Whether the blob of a descriptor came.
    pub(super) fn has(&self, descriptor: &Descriptor) -> bool {
        self.find(&format!("{BLOBS}{}", descriptor.digest().digest())).is_some()
    }

    /// The bytes of a document.
    pub(super) fn document(&self, path: &str, blob: &Blob) -> Result<Vec<u8>, LoadError> {
        let limit = IMAGE_DOCUMENT_BYTES.min(self.document_room.get());
        if blob.bytes > limit {
            return Err(LoadError::TooLong { path: path.to_owned(), bytes: blob.bytes, limit });
        }
        self.document_room.set(self.document_room.get() - blob.bytes);
        std::fs::read(&blob.file).map_err(|source| {
            LoadError::Archive(ArchiveError::Unpack { path: path.to_owned(), source })
        })
    }

    /// A document at the top, taken apart.
    pub(super) fn top<T: DeserializeOwned>(&self, path: &str) -> Result<T, LoadError> {
        let blob = self.find(path).ok_or(LoadError::NoImages)?;
        json(path, &self.document(path, blob)?)
    }
}

/// A document taken apart.
pub(super) fn json<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, LoadError> {
    serde_json::from_slice(bytes)
        .map_err(|source| LoadError::Json { path: path.to_owned(), source })
}

/// Where a descriptor's blob is in the archive.
pub(super) fn blob_path(
    image: &str,
    field: &str,
    descriptor: &Descriptor,
) -> Result<String, LoadError> {
    let digest = descriptor.digest().to_string();
    if !is_digest(&digest) {
        let what = format!("{digest:?} is no sha256 digest");
        return Err(LoadError::field(image, format!("{field}.digest"), what));
    }
    Ok(format!("{BLOBS}{}", descriptor.digest().digest()))
}

/// The digest that the name of a document promises: `blobs/sha256/HEX` or `HEX.json`.
pub(super) fn promised(path: &str) -> Option<String> {
    let name = Path::new(path).file_name()?.to_str()?;
    let hex = name.strip_suffix(".json").unwrap_or(name);
    (hex.len() == 64 && is_hex(hex)).then(|| format!("sha256:{hex}"))
}

/// Nobody saves images as holes.
fn is_mostly_holes(entry: &Entry) -> bool {
    let Some(pieces) = &entry.pieces else { return false };
    let stored: u64 = pieces.iter().map(|piece| piece.bytes).sum();
    entry.size > stored.saturating_mul(ARCHIVE_RATIO).max(ARCHIVE_FREE_BYTES)
}

/// A path from the top, in its one form.
fn path_of(path: &[u8]) -> Option<String> {
    let names = split(path)?;
    (!names.is_empty()).then(|| String::from_utf8(names.join(&b'/')).ok()).flatten()
}

/// Where a link in the directory `above` leads, if it stays in the archive.
fn lead(above: &str, target: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(target).ok()?;
    let above = if target.starts_with('/') { "" } else { above };
    let mut names: Vec<&str> = above.split('/').filter(|name| !name.is_empty()).collect();
    for name in target.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    Some(names.join("/"))
}
