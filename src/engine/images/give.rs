//! An image as it is given to another node: byte for byte as it is kept.

use std::path::PathBuf;

use super::disk::Disk;
use super::error::ImageError;
use super::pins::Hold;
use super::view::Image;
use crate::wire::image::Offer;

/// The layers of an image that is being given. They stay for as long as this lives.
#[derive(Debug)]
pub(super) struct Given {
    /// File and bytes of each, lowest first.
    pub(super) layers: Vec<(PathBuf, u64)>,
    _hold: Hold,
}

/// What an image is made of, for another node; `blobs` are its names on disk, held.
pub(super) fn offer(
    disk: &Disk,
    image: &Image,
    blobs: &[String],
    hold: Hold,
) -> Result<(Offer, Given), ImageError> {
    let mut layers = Vec::new();
    for name in blobs.iter().skip(2) {
        let path = disk.blob_path(name);
        let file = std::fs::metadata(&path).map_err(ImageError::disk("look at", &path))?;
        layers.push((path, file.len()));
    }
    let offer = Offer {
        manifest: disk.document(&image.manifest_digest)?,
        media_type: image.manifest_media_type.clone(),
        config: disk.document(&image.id)?,
        layers: layers.iter().map(|(_, bytes)| *bytes).collect(),
    };
    Ok((offer, Given { layers, _hold: hold }))
}
