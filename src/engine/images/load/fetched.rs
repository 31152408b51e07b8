//! An image that comes from another node: its manifest and configuration first, its layers then.

use std::path::PathBuf;

use oci_spec::image::ImageManifest;

use super::super::manifest::Document;
use super::super::reference::{Reference, is_digest};
use super::super::view::Platform;
use super::plan::{self, Plan, platform_of};
use super::upload::{Blob, json};
use super::{LoadError, Plans, is_as_it_came, layout};
use crate::limits::IMAGE_LAYERS;

/// The image, planned as one of an archive is.
#[derive(Debug)]
pub(in super::super) struct Fetched {
    plan: Plan,
    platform: Platform,
}

impl Fetched {
    /// Reads and checks the documents. The layers' files are still to be said.
    pub(in super::super) fn new(
        shown: &str,
        manifest: Document,
        config: Document,
        tag: Option<Reference>,
    ) -> Result<Self, LoadError> {
        layout::check_kind(shown, &manifest.media_type)?;
        let parsed: ImageManifest = json(&manifest.digest, &manifest.bytes)?;
        let described = layout::check_parts(shown, &parsed)?;
        let length = config.bytes.len() as u64;
        if described.digest().to_string() != config.digest || described.size() != length {
            let what = "another configuration is described than came";
            return Err(LoadError::field(shown, "config", what));
        }
        let config = Document { media_type: described.media_type().to_string(), ..config };
        if parsed.layers().len() > IMAGE_LAYERS {
            let what = format!("{} are more than {IMAGE_LAYERS}", parsed.layers().len());
            return Err(LoadError::field(shown, "layers", what));
        }
        let mut blobs = Vec::new();
        for (at, layer) in parsed.layers().iter().enumerate() {
            let digest = layer.digest().to_string();
            if !is_digest(&digest) {
                let what = format!("{digest:?} is no sha256 digest");
                return Err(LoadError::field(shown, format!("layers[{at}].digest"), what));
            }
            blobs.push(Blob { file: PathBuf::new(), bytes: layer.size(), digest });
        }
        let platform = platform_of(&json(&config.digest, &config.bytes)?);
        let mut plan = Plan::new(shown.to_owned(), config, Some(manifest), blobs, None)?;
        plan.names.extend(tag);
        Ok(Self { plan, platform })
    }

    /// What it is made for.
    pub(in super::super) fn platform(&self) -> &Platform {
        &self.platform
    }

    pub(in super::super) fn layers(&self) -> &[plan::Layer] {
        &self.plan.layers
    }

    pub(in super::super) fn layers_mut(&mut self) -> &mut [plan::Layer] {
        &mut self.plan.layers
    }

    /// Names on disk of what it needs: it must stay meanwhile, where it is there.
    pub(in super::super) fn needs(&self) -> Vec<String> {
        plan::needs(std::iter::once(&self.plan))
    }

    /// The same as the only image of an archive.
    pub(in super::super) fn into_plans(self) -> Plans {
        Plans { images: vec![self.plan], _upload: None }
    }
}

impl plan::Layer {
    /// What the manifest calls it.
    pub(in super::super) fn digest(&self) -> &str {
        &self.blob.digest
    }

    /// Bytes it has by the manifest.
    pub(in super::super) fn bytes(&self) -> u64 {
        self.blob.bytes
    }

    /// The name that its archive is kept by.
    pub(in super::super) fn kept(&self) -> &str {
        &self.kept
    }

    /// Whether it is kept, and sent, otherwise than the manifest names it.
    pub(in super::super) fn is_packed(&self) -> bool {
        !is_as_it_came(&self.blob, &self.kept)
    }

    /// Says where its archive is.
    pub(in super::super) fn set_file(&mut self, file: PathBuf) {
        self.blob.file = file;
    }
}
