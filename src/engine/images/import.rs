//! Makes an image of a root filesystem's archive.

use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;

use oci_spec::image::{
    Arch, Descriptor, Digest, HistoryBuilder, ImageConfigurationBuilder, ImageManifestBuilder,
    MediaType, Os, RootFsBuilder,
};
use sha2::{Digest as _, Sha256};
use skep_core::id::hex;
use tempfile::NamedTempFile;

use super::archive::{Archive, ArchiveError};
use super::catalog::Stored;
use super::changes;
use super::disk::{Disk, Unpacked};
use super::error::ImageError;
use super::layer;
use super::reference::Reference;
use super::view::ImageConfig;
use crate::limits::ARCHIVE_BYTES;

/// What an import is told beside the archive.
#[derive(Debug, Default, Clone)]
pub struct Import {
    /// Name of the new image, if it gets one.
    pub reference: Option<Reference>,
    /// Message of its only step; empty for Docker's own.
    pub message: String,
    /// Instructions as in a Dockerfile: `CMD …`, `ENV …` and the like.
    pub changes: Vec<String>,
}

/// An image whose files are written but not in their place.
#[derive(Debug)]
pub(super) struct Built {
    unpacked: Unpacked,
    blob: NamedTempFile,
    blob_hex: String,
    blob_bytes: u64,
    diff_id: String,
    unpacked_bytes: u64,
    config: ImageConfig,
    message: String,
}

/// Unpacks an archive and packs it into a blob, in one pass.
pub(super) fn build(
    disk: &Disk,
    archive: &mut dyn Read,
    import: &Import,
) -> Result<Built, ImageError> {
    let mut config = ImageConfig::default();
    changes::apply(&mut config, &import.changes)?;
    let unpacked = disk.new_layer()?;
    let blob = disk.new_blob()?;
    let plain = decompress(archive).map_err(|e| ImageError::Archive(ArchiveError::Read(e)))?;
    let blob_error = || ImageError::disk("write", blob.path());
    let packer = zstd::Encoder::new(Hashing::new(blob.as_file()), 1).map_err(blob_error())?;
    let mut tee = Tee { from: plain, hash: Sha256::new(), packer, left: ARCHIVE_BYTES };
    let mut entries = Archive::new(&mut tee);
    let unpacked_bytes =
        layer::unpack(&mut entries, unpacked.path()).map_err(ImageError::Archive)?;
    entries.drain().map_err(ImageError::Archive)?;
    let Tee { hash, packer, .. } = tee;
    let packed = packer.finish().map_err(blob_error())?;
    Ok(Built {
        blob_hex: hex(&packed.hash.finalize()),
        blob_bytes: packed.bytes,
        diff_id: format!("sha256:{}", hex(&hash.finalize())),
        unpacked_bytes,
        config,
        message: match import.message.as_str() {
            "" => "Imported from -".to_owned(),
            message => message.to_owned(),
        },
        unpacked,
        blob,
    })
}

impl Built {
    /// Puts the files in their place. Nothing names them yet.
    pub(super) fn install(self, disk: &Disk) -> Result<Stored, ImageError> {
        disk.install_layer(&self.unpacked, &self.diff_id)?;
        disk.install_blob(self.blob, &self.blob_hex)?;
        let bad = |e: oci_spec::OciSpecError| ImageError::Change(e.to_string());
        let now = jiff::Timestamp::now().to_string();
        let step = HistoryBuilder::default().created(now.clone()).comment(self.message).build();
        let rootfs =
            RootFsBuilder::default().typ("layers").diff_ids([self.diff_id]).build().map_err(bad)?;
        let config = ImageConfigurationBuilder::default()
            .created(now)
            .architecture(Arch::default())
            .os(Os::Linux)
            .config(self.config.to_oci())
            .rootfs(rootfs)
            .history([step.map_err(bad)?])
            .build()
            .map_err(bad)?;
        let config = put(disk, MediaType::ImageConfig, &config)?;
        let layer =
            Descriptor::new(MediaType::ImageLayerZstd, self.blob_bytes, digest(&self.blob_hex)?);
        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers([layer])
            .build()
            .map_err(bad)?;
        let manifest = put(disk, MediaType::ImageManifest, &manifest)?;
        let mut stored = disk.load_image(&manifest)?;
        Arc::make_mut(&mut stored.image).bytes = self.unpacked_bytes;
        Ok(stored)
    }
}

fn put(
    disk: &Disk,
    media_type: MediaType,
    document: &impl serde::Serialize,
) -> Result<Descriptor, ImageError> {
    let bytes = serde_json::to_vec(document).map_err(|e| ImageError::Change(e.to_string()))?;
    let hex = disk.put_document(&bytes)?;
    Ok(Descriptor::new(media_type, bytes.len() as u64, digest(&hex)?))
}

fn digest(hex: &str) -> Result<Digest, ImageError> {
    format!("sha256:{hex}").parse().map_err(|_| ImageError::Change(format!("bad digest {hex}")))
}

/// Finds out how a stream is compressed by its first bytes.
fn decompress<'a>(archive: &'a mut dyn Read) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = Vec::with_capacity(4);
    archive.take(4).read_to_end(&mut head)?;
    let whole = io::Cursor::new(head.clone()).chain(archive);
    Ok(match head.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(whole))),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(whole)?),
        [b'B', b'Z', b'h', ..] => return Err(io::Error::other("bzip2 is not supported")),
        [0xfd, b'7', b'z', b'X'] => return Err(io::Error::other("xz is not supported")),
        _ => Box::new(BufReader::with_capacity(64 << 10, whole)),
    })
}

/// Hashes and packs what is read through it, up to a limit.
struct Tee<R, W: Write> {
    from: R,
    hash: Sha256,
    packer: zstd::Encoder<'static, W>,
    left: u64,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        let bytes = buffer.get(..n).unwrap_or_default();
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            io::Error::other(format!("the archive unpacks to more than {ARCHIVE_BYTES} bytes"))
        })?;
        self.hash.update(bytes);
        self.packer.write_all(bytes)?;
        Ok(n)
    }
}

/// Hashes and counts what is written through it.
struct Hashing<W> {
    to: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(to: W) -> Self {
        Self { to, hash: Sha256::new(), bytes: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.to.write(buffer)?;
        self.hash.update(buffer.get(..n).unwrap_or_default());
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
