//! Makes an image of a root filesystem's archive.

use std::io::Read;
use std::sync::Arc;

use oci_spec::image::{
    Arch, HistoryBuilder, ImageConfigurationBuilder, MediaType, Os, RootFsBuilder,
};

use super::catalog::Stored;
use super::changes;
use super::disk::Disk;
use super::error::ImageError;
use super::manifest::{self, Document};
use super::reference::Reference;
use super::unpack::{self, Layer, Wanted};
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
    layer: Layer,
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
    let message = match import.message.as_str() {
        "" => "Imported from -".to_owned(),
        message => message.to_owned(),
    };
    let layer = unpack::layer(disk, archive, Wanted { files: true, archive: true }, ARCHIVE_BYTES)?;
    Ok(Built { layer, config, message })
}

impl Built {
    /// Puts the files in their place. Nothing names them yet.
    pub(super) fn install(self, disk: &Disk) -> Result<Stored, ImageError> {
        let bad = |e: oci_spec::OciSpecError| ImageError::Change(e.to_string());
        let now = jiff::Timestamp::now().to_string();
        let step = HistoryBuilder::default().created(now.clone()).comment(self.message).build();
        let rootfs = RootFsBuilder::default()
            .typ("layers")
            .diff_ids([self.layer.diff_id.clone()])
            .build()
            .map_err(bad)?;
        let config = ImageConfigurationBuilder::default()
            .created(now)
            .architecture(Arch::default())
            .os(Os::Linux)
            .config(self.config.to_oci())
            .rootfs(rootfs)
            .history([step.map_err(bad)?])
            .build()
            .map_err(bad)?;
        let config = serde_json::to_vec(&config).map_err(|e| ImageError::Change(e.to_string()))?;
        let config = Document::new(config, MediaType::ImageConfig.to_string());
        let (diff_id, bytes) = (self.layer.diff_id.clone(), self.layer.bytes);
        let layers = [(diff_id.as_str(), self.layer.archive_bytes)];
        let manifest = manifest::plain(&config, layers.into_iter())?;
        disk.sync()?;
        disk.install(self.layer)?;
        disk.put_document(&config.bytes)?;
        disk.put_document(&manifest.bytes)?;
        let mut stored = disk.load_image(&manifest.descriptor()?)?;
        Arc::make_mut(&mut stored.image).bytes = bytes;
        Ok(stored)
    }
}
