//! The images of this node: an OCI content store and the layers unpacked from it.
//!
//! Reads answer from memory. Everything here blocks: a caller on an async thread hands the
//! call to a blocking one.

mod archive;
mod catalog;
mod changes;
mod disk;
mod error;
mod import;
mod layer;
pub mod reference;
#[cfg(test)]
mod tests;
mod view;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

pub use archive::ArchiveError;
pub use error::ImageError;
pub use import::Import;
pub use view::{HistoryEntry, Image, ImageConfig, ImageUse, Removed};

use catalog::Catalog;
use disk::Disk;
use reference::{Reference, ReferenceError};

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
        Ok(Self { disk, writer: Mutex::new(()), catalog: RwLock::new(Arc::new(catalog)) })
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
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = built.install(&self.disk)?;
        let id = stored.image.id.clone();
        let mut catalog = Catalog::clone(&self.catalog());
        catalog.add(stored);
        if let Some(name) = &import.reference {
            catalog.tag(name, &id)?;
        }
        self.commit(catalog)?.resolve(&id)
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
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut catalog = Catalog::clone(&self.catalog());
        let id = catalog.resolve(source)?.id.clone();
        catalog.tag(&target, &id)?;
        self.commit(catalog).map(drop)
    }

    /// Takes off a name, and with the last one the image and the layers nothing else uses.
    /// `in_use` tells whether a container uses the image with this id.
    ///
    /// # Errors
    /// If there is no such image, or it is in use.
    pub fn remove(
        &self,
        name: &str,
        force: bool,
        in_use: &dyn Fn(&str) -> Option<ImageUse>,
    ) -> Result<Vec<Removed>, ImageError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut catalog = Catalog::clone(&self.catalog());
        let removed = catalog.remove(name, force, in_use)?;
        let catalog = self.commit(catalog)?;
        self.disk.sweep(&catalog)?;
        Ok(removed)
    }

    /// The bytes of an image's manifest.
    ///
    /// # Errors
    /// If the disk fails or the blob is damaged.
    pub fn manifest(&self, image: &Image) -> Result<Vec<u8>, ImageError> {
        self.disk.document(&image.manifest_digest)
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

/// A digest names what it is the digest of, and nothing else.
fn refuse_digest(name: &Reference) -> Result<(), ImageError> {
    match name.digest() {
        Some(_) => Err(ImageError::Reference(ReferenceError::HasDigest)),
        None => Ok(()),
    }
}
