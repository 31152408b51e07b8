//! One pass over a layer's archive: checked, hashed, unpacked and packed for keeping.

use std::fs::File;
use std::io::Read;

use tempfile::{NamedTempFile, TempPath};

use super::archive::{Archive, ArchiveError};
use super::disk::{Disk, Unpacked};
use super::error::ImageError;
use super::layer;
use super::stream::{Plain, Tee};
use crate::limits::ARCHIVE_BYTES;

/// What is wanted of a layer beside its digest and its size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Its files, in a directory.
    pub(super) files: bool,
    /// Its archive, for whoever wants the image back.
    pub(super) archive: bool,
}

/// A layer whose files are written but not in their place.
#[derive(Debug)]
pub(super) struct Layer {
    /// Digest of the plain archive, with `sha256:`.
    pub(super) diff_id: String,
    /// Bytes of the plain archive.
    pub(super) archive_bytes: u64,
    /// Bytes of its files.
    pub(super) bytes: u64,
    pub(super) files: Option<Unpacked>,
    /// Closed: there may be many of them.
    pub(super) archive: Option<TempPath>,
}

/// Reads a layer's archive, plain, gzip or zstd, of at most so many plain bytes.
pub(super) fn layer(
    disk: &Disk,
    archive: &mut dyn Read,
    wanted: Wanted,
    limit: u64,
) -> Result<Layer, ImageError> {
    let plain = Plain::new(archive, limit.min(ARCHIVE_BYTES));
    let plain = plain.map_err(|e| ImageError::Archive(ArchiveError::Read(e)))?;
    let files = wanted.files.then(|| disk.new_layer()).transpose()?;
    let blob = wanted.archive.then(|| disk.new_blob()).transpose()?;
    let packer = blob.as_ref().map(|blob| packer(blob)).transpose()?;
    let mut tee = Tee::new(plain, packer);
    let mut entries = Archive::new(&mut tee);
    let bytes = match &files {
        Some(files) => layer::unpack(&mut entries, files.path()),
        None => layer::measure(&mut entries),
    };
    let bytes = bytes.map_err(ImageError::Archive)?;
    entries.drain().map_err(ImageError::Archive)?;
    let (plain, diff_id, packer) = tee.finish();
    if let (Some(packer), Some(blob)) = (packer, &blob) {
        packer.finish().map_err(ImageError::disk("write", blob.path()))?;
    }
    Ok(Layer {
        diff_id,
        archive_bytes: plain.count(),
        bytes,
        files,
        archive: blob.map(NamedTempFile::into_temp_path),
    })
}

fn packer(blob: &NamedTempFile) -> Result<zstd::Encoder<'static, &File>, ImageError> {
    zstd::Encoder::new(blob.as_file(), 1).map_err(ImageError::disk("write", blob.path()))
}
