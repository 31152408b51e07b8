//! The images of this node: an OCI content store and the layers unpacked from it.
//!
//! Reads answer from memory. Everything here blocks: a caller on an async thread hands the
//! call to a blocking one.

mod archive;
mod catalog;
mod changes;
mod disk;
mod error;
pub mod exchange;
mod give;
mod import;
mod layer;
mod load;
mod manifest;
mod pins;
pub mod reference;
mod save;
mod stream;
mod take;
#[cfg(test)]
mod tests;
mod unpack;
mod view;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

pub use archive::ArchiveError;
pub use error::ImageError;
pub use import::Import;
pub use load::{LoadError, Upload};
pub use pins::Hold;
pub use save::Export;
pub use view::{
    HistoryEntry, Image, ImageConfig, ImageUse, LoadProgress, Loaded, Platform, Removed,
};

use catalog::Catalog;
use disk::Disk;
use give::Given;
use load::Plans;
use reference::{Reference, ReferenceError};
use take::{Asked, Taking, Turns};

use crate::limits::IMAGE_NAMES;
use crate::wire::image::Offer;

/// Where a layer is unpacked. The name is bare hex: overlay splits its options at colons.
#[must_use]
pub fn layer_dir(data_root: &Path, diff_id: &str) -> PathBuf {
    data_root.join("layers").join(disk::bare(diff_id))
}

/// The images of this node.
#[derive(Debug)]
pub struct ImageStore {
    disk: Disk,
    /// Held by whoever changes the store, so that disk and catalog change together.
    writer: Mutex<()>,
    catalog: RwLock<Arc<Catalog>>,
    /// Downloads from other nodes.
    turns: Turns,
}

impl ImageStore {
    /// Opens the store below a data root, making it if there is none, and clears what an
    /// interrupted import or removal left behind. An image whose files are damaged is left out,
    /// with a warning.
    ///
    /// # Errors
    /// If the disk fails, or the index cannot be read.
    pub fn open(data_root: &Path) -> Result<Self, ImageError> {
        let disk = Disk::open(data_root)?;
        let catalog = disk.load()?;
        take::trim(&disk, |_| false)?;
        Ok(Self {
            disk,
            writer: Mutex::new(()),
            catalog: RwLock::new(Arc::new(catalog)),
            turns: Turns::default(),
        })
    }

    /// Makes an image of a root filesystem's tar archive: plain, gzip or zstd. Nothing is left
    /// behind if it fails.
    ///
    /// # Errors
    /// If the archive or an instruction is bad, or the disk fails.
    pub fn import(
        &self,
        archive: &mut dyn Read,
        import: &Import,
    ) -> Result<Arc<Image>, ImageError> {
        import.reference.as_ref().map_or(Ok(()), refuse_digest)?;
        let built = import::build(&self.disk, archive, import)?;
        let _writer = self.lock();
        let stored = built.install(&self.disk)?;
        let id = stored.image.id.clone();
        let mut catalog = Catalog::clone(&self.catalog());
        catalog.add(stored);
        if let Some(name) = &import.reference {
            catalog.tag(name, &id)?;
        }
        self.commit(catalog)?.resolve(&id)
    }

    /// Takes in an archive of images: plain, gzip or zstd. Nothing is loaded yet.
    ///
    /// # Errors
    /// If it is no such archive, over a limit, or the disk fails.
    pub fn receive(&self, archive: &mut dyn Read) -> Result<Upload, ImageError> {
        Upload::receive(&self.disk, archive)
    }

    /// Loads every image of an archive, or none: for `wanted` where there is a choice of
    /// platforms, or else for this machine.
    ///
    /// # Errors
    /// If an image is broken, dangerous or over a limit, or the disk fails.
    pub fn load(
        &self,
        upload: Upload,
        wanted: Option<&Platform>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Vec<Loaded>, ImageError> {
        let plans = Plans::of(upload, wanted)?;
        let hold = {
            // While the store is swept it is too late to hold anything.
            let _writer = self.lock();
            self.disk.pins.hold(plans.needs())
        };
        self.install(plans, hold, None, progress)
    }

    /// Puts planned images in their place; the only one gets a further name, if there is one.
    fn install(
        &self,
        plans: Plans,
        hold: Hold,
        name: Option<Reference>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Vec<Loaded>, ImageError> {
        let built = plans.build(&self.disk, progress);
        let _writer = self.lock();
        let mut catalog = Catalog::clone(&self.catalog());
        let loaded = built.and_then(|built| {
            let loaded = built.install(&self.disk, &mut catalog)?;
            if let (Some(name), [only]) = (name, loaded.as_slice()) {
                catalog.name(name, &only.id);
            }
            self.commit(catalog)?;
            Ok(loaded)
        });
        drop(hold);
        // What a failure left, and what was needed by nobody but this.
        let swept = self.disk.sweep(&self.catalog());
        let loaded = loaded?;
        swept?;
        Ok(loaded)
    }

    /// Whether another node gets this image from here: one with this very name, digest or whole
    /// id.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        Asked::of(name).is_ok_and(|asked| self.catalog().exact(&asked).is_some())
    }

    /// What another node gets that asks for this image, by name, digest or whole id.
    ///
    /// # Errors
    /// If there is none, or the store is damaged.
    fn offer(&self, name: &str) -> Result<(Offer, Given), ImageError> {
        let asked = Asked::of(name)?;
        let (image, blobs, hold) = {
            // While the store is swept it is too late to hold anything.
            let _writer = self.lock();
            let catalog = self.catalog();
            let missing = || ImageError::NotFound(name.to_owned());
            let stored = catalog.exact(&asked).ok_or_else(missing)?;
            let hold = self.disk.pins.hold(stored.blobs.clone());
            (Arc::clone(&stored.image), stored.blobs.clone(), hold)
        };
        give::offer(&self.disk, &image, &blobs, hold)
    }

    /// Begins to take an image that another node offers.
    fn take(&self, name: &str, offer: Offer) -> Result<Taking, ImageError> {
        let sent = offer.layers.clone();
        let (fetched, name) = take::read(name, offer)?;
        let _writer = self.lock();
        let hold = self.disk.pins.hold(fetched.needs());
        take::trim(&self.disk, |name| self.disk.pins.has(name))?;
        Ok(Taking::new(&self.disk, fetched, sent, name, hold))
    }

    /// Puts an image in its place of which everything has come. What is found to be wrong is
    /// thrown away.
    fn finish(&self, taking: Taking) -> Result<(), ImageError> {
        let names = taking.names();
        let Taking { fetched, name, hold, .. } = taking;
        let installed = self.install(fetched.into_plans(), hold, name, &mut |_| ());
        if !matches!(installed, Err(ImageError::Disk { .. })) {
            take::clear(&self.disk, &names);
        }
        installed.map(drop)
    }

    /// Gets images ready to be saved: by `name`, `name:tag`, digest or id.
    ///
    /// # Errors
    /// If one is missing or for another platform, or the disk fails.
    pub fn export(
        &self,
        names: &[String],
        wanted: Option<&Platform>,
    ) -> Result<Export, ImageError> {
        if names.len() > IMAGE_NAMES {
            return Err(ImageError::TooManyNames(IMAGE_NAMES));
        }
        let writer = self.lock();
        let catalog = self.catalog();
        let mut images: BTreeMap<String, (Arc<Image>, Vec<Reference>)> = BTreeMap::new();
        for text in names {
            for (image, name) in catalog.meant(text)? {
                image.check_platform(text, wanted)?;
                let entry = images.entry(image.id.clone()).or_insert((image, Vec::new()));
                entry.1.extend(name);
            }
        }
        let blobs = images.keys().filter_map(|id| catalog.stored(id));
        let hold = self.disk.pins.hold(blobs.flat_map(|stored| stored.blobs.clone()).collect());
        drop(writer);
        let mut images: Vec<_> = images.into_values().collect();
        for (_, names) in &mut images {
            names.sort();
            names.dedup();
        }
        Export::new(&self.disk, &images, hold)
    }

    /// Writes an archive that `docker load` takes.
    ///
    /// # Errors
    /// If it cannot be written, or the store is damaged: what was written is not whole then.
    pub fn write(&self, export: &Export, to: &mut dyn Write) -> Result<(), ImageError> {
        export.write(&self.disk, to)
    }

    /// Finds an image as [`ImageStore::resolve`] does, and keeps it from being removed for as long
    /// as the hold lives: for a container that is not among those in use yet.
    ///
    /// # Errors
    /// If there is none, or the name is not well-formed.
    pub fn hold(&self, name: &str, container: &str) -> Result<(Arc<Image>, Hold), ImageError> {
        let image = self.resolve(name)?;
        if let Ok(hold) = self.disk.pins.hold_for(&image.id, container) {
            // A removal may have ended before the hold began.
            if self.catalog().stored(&image.id).is_some() {
                return Ok((image, hold));
            }
        }
        // Whether a removal takes it away shows when that is over.
        let _writer = self.lock();
        let image = self.resolve(name)?;
        match self.disk.pins.hold_for(&image.id, container) {
            Ok(hold) => Ok((image, hold)),
            Err(_) => Err(ImageError::NotFound(name.to_owned())),
        }
    }

    /// Every image, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        let mut images: Vec<_> =
            self.catalog().images().map(|stored| Arc::clone(&stored.image)).collect();
        images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        images
    }

    /// Finds an image by `name`, `name:tag`, `name@sha256:…`, `name:tag@sha256:…`, id or a
    /// unique beginning of an id, with or without `sha256:`.
    ///
    /// # Errors
    /// If there is none, or the name is not well-formed.
    pub fn resolve(&self, name: &str) -> Result<Arc<Image>, ImageError> {
        self.catalog().resolve(name)
    }

    /// Gives the image `source` the name `target`, taking it off any other.
    ///
    /// # Errors
    /// If there is no such image, or the target is no name with at most a tag.
    pub fn tag(&self, source: &str, target: &str) -> Result<(), ImageError> {
        let target = Reference::parse(target)?.or_latest();
        refuse_digest(&target)?;
        let _writer = self.lock();
        let mut catalog = Catalog::clone(&self.catalog());
        let id = catalog.resolve(source)?.id.clone();
        catalog.tag(&target, &id)?;
        self.commit(catalog).map(drop)
    }

    /// Takes off a name, and with the last one the image and the layers nothing else uses.
    /// `in_use` tells whether a container uses the image with this id; it is asked while nothing
    /// else changes the store.
    ///
    /// # Errors
    /// If there is no such image, or it is in use.
    pub fn remove(
        &self,
        name: &str,
        force: bool,
        in_use: &dyn Fn(&str) -> Option<ImageUse>,
    ) -> Result<Vec<Removed>, ImageError> {
        let _writer = self.lock();
        let mut catalog = Catalog::clone(&self.catalog());
        let pins = &self.disk.pins;
        let user = |id: &str| pins.claim(id).map(ImageUse::Running).or_else(|| in_use(id));
        let removed = catalog.remove(name, force, &user);
        let removed = removed.and_then(|removed| self.commit(catalog).map(|_| removed));
        pins.settle();
        let removed = removed?;
        self.disk.sweep(&self.catalog())?;
        Ok(removed)
    }

    /// The bytes of an image's manifest.
    ///
    /// # Errors
    /// If the disk fails or the blob is damaged.
    pub fn manifest(&self, image: &Image) -> Result<Vec<u8>, ImageError> {
        self.disk.document(&image.manifest_digest)
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes the catalog to disk, then shows it.
    fn commit(&self, catalog: Catalog) -> Result<Arc<Catalog>, ImageError> {
        self.disk.write_index(&catalog)?;
        let catalog = Arc::new(catalog);
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&catalog);
        Ok(catalog)
    }
}

/// An offer of an image with one layer of which nothing follows.
#[cfg(test)]
pub(crate) fn test_offer() -> Offer {
    tests::exchange::test_offer()
}

/// A digest names what it is the digest of, and nothing else.
fn refuse_digest(name: &Reference) -> Result<(), ImageError> {
    match name.digest() {
        Some(_) => Err(ImageError::Reference(ReferenceError::HasDigest)),
        None => Ok(()),
    }
}
