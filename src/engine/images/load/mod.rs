//! Loads images from an archive: what `docker save` writes, old and new, and OCI image layouts.
//!
//! The archive is taken in whole, its digests are checked, then every layer is unpacked beside
//! the others. Only when all of it is good is anything put in its place.

mod error;
mod fetched;
mod layout;
mod plan;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

pub use error::LoadError;
pub(super) use fetched::Fetched;
use plan::Plan;
use upload::Blob;
pub use upload::Upload;

use super::catalog::{Catalog, Stored};
use super::disk::{Disk, bare};
use super::error::ImageError;
use super::manifest::{self, Document};
use super::stream::BUFFER_BYTES;
use super::unpack::{self, Wanted};
use super::view::{LoadProgress, Loaded, Platform};
use crate::limits::IMAGE_BYTES;

/// Reports of progress for one layer, at most.
const REPORTS: u64 = 50;

/// An archive's images, found and not yet unpacked.
#[derive(Debug)]
pub(super) struct Plans {
    images: Vec<Plan>,
    /// Where the layers' files are, if they came in an archive.
    _upload: Option<Upload>,
}

impl Plans {
    /// Finds the images of an archive.
    pub(super) fn of(upload: Upload, wanted: Option<&Platform>) -> Result<Self, LoadError> {
        Ok(Self { images: plan::images(&upload, wanted)?, _upload: Some(upload) })
    }

    /// Names on disk of what these images need: it must stay meanwhile, where it is there.
    pub(super) fn needs(&self) -> Vec<String> {
        plan::needs(self.images.iter())
    }

    /// Unpacks every layer that is not there yet, and checks all of them.
    pub(super) fn build(
        self,
        disk: &Disk,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Built, ImageError> {
        let mut built = Built { layers: BTreeMap::new(), plans: self };
        let mut left = IMAGE_BYTES;
        for image in &built.plans.images {
            for (at, layer) in image.layers.iter().enumerate() {
                let key = (layer.blob.digest.clone(), layer.diff_id.clone());
                if built.layers.contains_key(&key) {
                    continue;
                }
                let mut same = built.layers.values().filter(|one| one.diff_id == layer.diff_id);
                let is_unpacked = same.any(|one| one.files.is_some());
                let one = read(disk, image, at, (!is_unpacked, left), progress)?;
                left = left.saturating_sub(one.archive_bytes);
                built.layers.insert(key, one);
            }
        }
        Ok(built)
    }
}

fn read(
    disk: &Disk,
    image: &Plan,
    at: usize,
    (may_unpack, limit): (bool, u64),
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<unpack::Layer, ImageError> {
    let Some(plan::Layer { blob, diff_id, kept }) = image.layers.get(at) else {
        return Err(LoadError::NoImages.into());
    };
    let wanted = Wanted {
        files: may_unpack && !disk.layer_dir(diff_id).is_dir(),
        // One that is kept as it came is moved in its place later.
        archive: !is_as_it_came(blob, kept) && !disk.has_blob(kept),
    };
    let file = File::open(&blob.file).map_err(ImageError::disk("open", &blob.file))?;
    let name = bare(diff_id).get(..12).unwrap_or_default();
    let report = LoadProgress { layer: name.to_owned(), current: 0, total: blob.bytes };
    let mut counted = Reporting { from: file, report, told: 0, to: progress };
    let mut counted = BufReader::with_capacity(BUFFER_BYTES, &mut counted);
    let done = unpack::layer(disk, &mut counted, wanted, limit);
    let layer = done.map_err(|error| match error {
        ImageError::Archive(source) => {
            LoadError::Layer { image: image.shown.clone(), index: at + 1, source }.into()
        }
        other => other,
    })?;
    if layer.diff_id != *diff_id {
        let what = format!("it says {diff_id}, but the layer unpacks to {}", layer.diff_id);
        let field = format!("config.rootfs.diff_ids[{at}]");
        return Err(LoadError::field(&image.shown, field, what).into());
    }
    Ok(layer)
}

/// Whether a blob is kept by its own digest, bit for bit.
fn is_as_it_came(blob: &Blob, kept: &str) -> bool {
    kept == bare(&blob.digest)
}

/// Tells how much was read through it.
struct Reporting<'a> {
    from: File,
    report: LoadProgress,
    told: u64,
    to: &'a mut dyn FnMut(LoadProgress),
}

impl Read for Reporting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.report.current += n as u64;
        let step = (self.report.total / REPORTS).max(1 << 19);
        let is_last = n > 0 && self.report.current == self.report.total;
        if is_last || self.report.current >= self.told + step {
            self.told = self.report.current;
            (self.to)(self.report.clone());
        }
        Ok(n)
    }
}

/// Images whose files are written but not in their place.
#[derive(Debug)]
pub(super) struct Built {
    plans: Plans,
    /// By digest of the blob and of the plain layer.
    layers: BTreeMap<(String, String), unpack::Layer>,
}

impl Built {
    /// Puts the files in their place and the images into the catalog, which is not shown yet.
    pub(super) fn install(
        mut self,
        disk: &Disk,
        catalog: &mut Catalog,
    ) -> Result<Vec<Loaded>, ImageError> {
        let mut manifests = Vec::new();
        for image in &self.plans.images {
            manifests.push(self.manifest(image)?);
        }
        disk.sync()?;
        let mut moved = BTreeSet::new();
        for layer in self.plans.images.iter().flat_map(|image| &image.layers) {
            if is_as_it_came(&layer.blob, &layer.kept) && moved.insert(layer.kept.clone()) {
                disk.install_file(&layer.blob.file, &layer.kept)?;
            }
        }
        let sizes: BTreeMap<_, _> =
            self.layers.iter().map(|(key, layer)| (key.clone(), layer.bytes)).collect();
        for layer in std::mem::take(&mut self.layers).into_values() {
            disk.install(layer)?;
        }
        let mut loaded = Vec::new();
        for (image, manifest) in self.plans.images.iter().zip(manifests) {
            disk.put_document(&image.config.bytes)?;
            disk.put_document(&manifest.bytes)?;
            let mut stored = disk.load_image(&manifest.descriptor()?)?;
            let sizes = image
                .layers
                .iter()
                .filter_map(|layer| sizes.get(&(layer.blob.digest.clone(), layer.diff_id.clone())));
            Arc::make_mut(&mut stored.image).bytes = sizes.sum();
            loaded.push(enter(catalog, image, stored, &manifest.digest)?);
        }
        Ok(loaded)
    }

    fn manifest(&self, image: &Plan) -> Result<Document, ImageError> {
        if let Some(manifest) = &image.manifest {
            return Ok(manifest.clone());
        }
        let layers = image.layers.iter().map(|layer| {
            let key = (layer.blob.digest.clone(), layer.diff_id.clone());
            (layer.diff_id.as_str(), self.layers.get(&key).map_or(0, |one| one.archive_bytes))
        });
        manifest::plain(&image.config, layers)
    }
}

/// Puts an image into the catalog by all its names.
fn enter(
    catalog: &mut Catalog,
    image: &Plan,
    stored: Stored,
    manifest: &str,
) -> Result<Loaded, ImageError> {
    let id = stored.image.id.clone();
    catalog.add(stored);
    let mut loaded = Loaded { id: id.clone(), names: Vec::new(), moved: Vec::new() };
    for name in &image.names {
        if let Some(before) = catalog.id_of(name).filter(|before| **before != id) {
            loaded.moved.push((name.familiar(), before.clone()));
        }
        catalog.tag(name, &id)?;
        catalog.name_digest(name, manifest, &id)?;
        loaded.names.push(name.familiar());
    }
    Ok(loaded)
}
