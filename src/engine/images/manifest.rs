//! The manifest of an image that came without one.
//!
//! It names the plain layers, so that the same image has the same manifest on every node, however
//! it came there and whatever packed it.

use oci_spec::image::{Descriptor, Digest, ImageManifestBuilder, MediaType};
use sha2::{Digest as _, Sha256};
use skep_core::id::hex;

use super::error::ImageError;

/// A document with its digest and media type.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) bytes: Vec<u8>,
    /// With `sha256:`.
    pub(super) digest: String,
    pub(super) media_type: String,
}

impl Document {
    pub(super) fn new(bytes: Vec<u8>, media_type: impl Into<String>) -> Self {
        let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        Self { bytes, digest, media_type: media_type.into() }
    }

    pub(super) fn descriptor(&self) -> Result<Descriptor, ImageError> {
        let media_type = MediaType::from(self.media_type.as_str());
        Ok(Descriptor::new(media_type, self.bytes.len() as u64, parse(&self.digest)?))
    }
}

/// The manifest of this configuration and these layers: digest and bytes of each, plain.
pub(super) fn plain<'a>(
    config: &Document,
    layers: impl Iterator<Item = (&'a str, u64)>,
) -> Result<Document, ImageError> {
    let layers = layers
        .map(|(digest, bytes)| Ok(Descriptor::new(MediaType::ImageLayer, bytes, parse(digest)?)))
        .collect::<Result<Vec<_>, ImageError>>()?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(config.descriptor()?)
        .layers(layers)
        .build()
        .map_err(|e| ImageError::Change(e.to_string()))?;
    let bytes = serde_json::to_vec(&manifest).map_err(|e| ImageError::Change(e.to_string()))?;
    Ok(Document::new(bytes, MediaType::ImageManifest.to_string()))
}

fn parse(digest: &str) -> Result<Digest, ImageError> {
    digest.parse().map_err(|_| ImageError::Change(format!("bad digest {digest:?}")))
}
