//! The store's files: an OCI image layout, and the layers unpacked beside it.
//!
//! `images/index.json` decides what exists. Blobs and layers are put in place before the index
//! names them and taken away after it no longer does, so a crash leaves at most files that
//! nothing names; the next opening clears them.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::{
    Descriptor, ImageConfiguration, ImageIndex, ImageIndexBuilder, ImageManifest, MediaType,
};
use sha2::{Digest as _, Sha256};
use skep_core::id::hex;
use tempfile::NamedTempFile;

use super::catalog::{Catalog, Stored};
use super::error::ImageError;
use super::pins::Pins;
use super::reference::{Reference, is_digest};
use super::unpack::Layer;
use super::view::Image;
use crate::limits::IMAGE_DOCUMENT_BYTES;

/// Annotation of a name in the index.
const NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation of the bytes of an image's files, unpacked: only this store's index has it.
const UNPACKED: &str = "skep.image.unpacked-bytes";
/// What begins with this is not finished, or no longer wanted.
const TEMPORARY: &str = ".tmp-";
/// Behind the digest of a plain layer: it is kept packed, and its name tells.
const PACKED: &str = ".zst";

/// The directories of the store.
#[derive(Debug)]
pub(super) struct Disk {
    images: PathBuf,
    blobs: PathBuf,
    /// Layers that come from other nodes and are not whole yet.
    partials: PathBuf,
    layers: PathBuf,
    pub(super) pins: Arc<Pins>,
}

impl Disk {
    pub(super) fn open(data_root: &Path) -> Result<Self, ImageError> {
        let images = data_root.join("images");
        let blobs = images.join("blobs/sha256");
        let partials = images.join("partial");
        let layers = data_root.join("layers");
        for dir in [&blobs, &partials, &layers] {
            crate::files::make_dir(dir, 0o700)
                .map_err(|e| ImageError::disk("make", dir)(e.source))?;
        }
        let disk = Self { images, blobs, partials, layers, pins: Arc::default() };
        for dir in [&disk.images, &disk.blobs, &disk.layers] {
            clear(dir, |name| name.starts_with(TEMPORARY))?;
        }
        let layout = disk.images.join("oci-layout");
        if !layout.exists() {
            sync_dir(&disk.images.join("blobs"))?;
            disk.replace(&layout, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(disk)
    }

    /// As [`super::layer_dir`].
    pub(super) fn layer_dir(&self, diff_id: &str) -> PathBuf {
        self.layers.join(bare(diff_id))
    }

    /// A directory to unpack a layer in; gone when dropped.
    pub(super) fn new_layer(&self) -> Result<Unpacked, ImageError> {
        tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempdir_in(&self.layers)
            .map(|dir| Unpacked { path: dir.keep() })
            .map_err(ImageError::disk("make a directory in", &self.layers))
    }

    /// A file to write a blob to; gone when dropped.
    pub(super) fn new_blob(&self) -> Result<NamedTempFile, ImageError> {
        tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(&self.blobs)
            .map_err(ImageError::disk("make a file in", &self.blobs))
    }

    /// A directory for what is not known to be good yet; gone when dropped.
    pub(super) fn new_staging(&self) -> Result<tempfile::TempDir, ImageError> {
        tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempdir_in(&self.images)
            .map_err(ImageError::disk("make a directory in", &self.images))
    }

    /// Makes durable whatever was written to the store so far.
    pub(super) fn sync(&self) -> Result<(), ImageError> {
        let dir = File::open(&self.layers).map_err(ImageError::disk("open", &self.layers))?;
        rustix::fs::syncfs(&dir).map_err(|e| ImageError::disk("sync", &self.layers)(e.into()))
    }

    /// Puts a layer in its place: files that are there already are kept. They are durable if
    /// [`Disk::sync`] came before.
    pub(super) fn install(&self, layer: Layer) -> Result<(), ImageError> {
        let target = self.layer_dir(&layer.diff_id);
        if let Some(files) = layer.files.filter(|_| !target.exists()) {
            fs::rename(&files.path, &target).map_err(ImageError::disk("rename to", &target))?;
            sync_dir(&self.layers)?;
        }
        match layer.archive {
            Some(blob) => self.install_file(&blob, &blob_name(&layer.diff_id, &layer.diff_id)),
            None => Ok(()),
        }
    }

    /// Puts a written blob in its place, durably.
    fn install_blob(&self, blob: NamedTempFile, name: &str) -> Result<(), ImageError> {
        let target = self.blobs.join(name);
        blob.as_file().sync_all().map_err(ImageError::disk("sync", blob.path()))?;
        blob.persist(&target).map_err(|e| ImageError::disk("rename to", &target)(e.error))?;
        sync_dir(&self.blobs)
    }

    /// Moves a file into its place as a blob, durably.
    pub(super) fn install_file(&self, file: &Path, name: &str) -> Result<(), ImageError> {
        let target = self.blobs.join(name);
        let sync = || File::open(file)?.sync_all();
        sync().map_err(ImageError::disk("sync", file))?;
        fs::rename(file, &target).map_err(ImageError::disk("rename to", &target))?;
        sync_dir(&self.blobs)
    }

    /// Whether there is a blob of this name.
    pub(super) fn has_blob(&self, name: &str) -> bool {
        self.blobs.join(name).is_file()
    }

    /// A layer's blob as its digest means it: what is kept packed is unpacked on the way.
    pub(super) fn open_blob(&self, name: &str) -> Result<Box<dyn Read>, ImageError> {
        let path = self.blobs.join(name);
        let file = File::open(&path).map_err(ImageError::disk("open", &path))?;
        if !name.ends_with(PACKED) {
            return Ok(Box::new(file));
        }
        let decoder = zstd::Decoder::new(file).map_err(ImageError::disk("read", &path))?;
        Ok(Box::new(decoder))
    }

    /// The path of a blob, for messages.
    pub(super) fn blob_path(&self, name: &str) -> PathBuf {
        self.blobs.join(name)
    }

    /// Where the layers are that are not whole yet.
    pub(super) fn partials(&self) -> &Path {
        &self.partials
    }

    /// Where a blob of this name is gathered.
    pub(super) fn partial(&self, name: &str) -> PathBuf {
        self.partials.join(name)
    }

    /// Writes a small blob; returns its bare hex digest.
    pub(super) fn put_document(&self, bytes: &[u8]) -> Result<String, ImageError> {
        let mut file = self.new_blob()?;
        file.write_all(bytes).map_err(ImageError::disk("write", file.path()))?;
        let digest = hex(&Sha256::digest(bytes));
        self.install_blob(file, &digest)?;
        Ok(digest)
    }

    /// Reads a small blob and checks that it is what its digest says.
    pub(super) fn document(&self, digest: &str) -> Result<Vec<u8>, ImageError> {
        let path = self.blobs.join(bare(digest));
        if !is_digest(digest) {
            return Err(ImageError::damaged(path, format!("{digest:?} is no sha256 digest")));
        }
        let bytes = read_bounded(&path)?;
        if hex(&Sha256::digest(&bytes)) != bare(digest) {
            return Err(ImageError::damaged(path, "its content does not match its digest"));
        }
        Ok(bytes)
    }

    /// Reads the index and the images it names.
    pub(super) fn load(&self) -> Result<Catalog, ImageError> {
        let path = self.images.join("index.json");
        let mut catalog = Catalog::default();
        if !path.exists() {
            return Ok(catalog);
        }
        let index: ImageIndex = serde_json::from_slice(&read_bounded(&path)?)
            .map_err(|e| ImageError::damaged(&path, e.to_string()))?;
        let mut is_whole = true;
        for descriptor in index.manifests() {
            if let Err(error) = self.load_into(&mut catalog, descriptor) {
                is_whole = false;
                let digest = descriptor.digest().to_string();
                tracing::warn!(digest, error = %error, "an image is damaged and left out");
            }
        }
        // What belongs to a damaged image may be of use to who repairs it.
        if is_whole {
            self.sweep(&catalog)?;
        }
        Ok(catalog)
    }

    fn load_into(&self, catalog: &mut Catalog, from: &Descriptor) -> Result<(), ImageError> {
        let stored = self.load_image(from)?;
        let id = stored.image.id.clone();
        catalog.add(stored);
        if let Some(name) = annotation(from, NAME) {
            catalog.name(Reference::parse(name)?, &id);
        }
        Ok(())
    }

    /// Reads an image's manifest and configuration, and checks that its layers are there.
    pub(super) fn load_image(&self, descriptor: &Descriptor) -> Result<Stored, ImageError> {
        let digest = descriptor.digest().to_string();
        let bytes = self.document(&digest)?;
        let bad = |of: &str| {
            let path = self.blobs.join(bare(of));
            move |e: serde_json::Error| ImageError::damaged(path, e.to_string())
        };
        let manifest: ImageManifest = serde_json::from_slice(&bytes).map_err(bad(&digest))?;
        let id = manifest.config().digest().to_string();
        let config: ImageConfiguration =
            serde_json::from_slice(&self.document(&id)?).map_err(bad(&id))?;
        let mut image = Image::of(&config);
        for diff_id in &image.diff_ids {
            if !is_digest(diff_id) || !self.layer_dir(diff_id).is_dir() {
                return Err(ImageError::damaged(self.layer_dir(diff_id), "the layer is missing"));
            }
        }
        let mut blobs = vec![bare(&digest).to_owned(), bare(&id).to_owned()];
        let layers = manifest.layers().iter().zip(&image.diff_ids);
        blobs.extend(layers.map(|(l, diff_id)| blob_name(l.digest().as_ref(), diff_id)));
        image.id = id;
        image.manifest_digest = digest;
        image.manifest_bytes = bytes.len() as u64;
        image.manifest_media_type = descriptor.media_type().to_string();
        image.bytes = annotation(descriptor, UNPACKED).and_then(|n| n.parse().ok()).unwrap_or(0);
        Ok(Stored { image: Arc::new(image), blobs })
    }

    /// Replaces the index.
    pub(super) fn write_index(&self, catalog: &Catalog) -> Result<(), ImageError> {
        let path = self.images.join("index.json");
        let mut manifests = Vec::new();
        for stored in catalog.images() {
            let image = &stored.image;
            let names = catalog.names().filter(|(_, id)| *id == image.id);
            let mut names: Vec<_> = names.map(|(name, _)| Some(name.to_string())).collect();
            if names.is_empty() {
                names.push(None);
            }
            for name in names {
                manifests.push(describe(image, name, &path)?);
            }
        }
        let index = ImageIndexBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageIndex)
            .manifests(manifests)
            .build()
            .map_err(|e| ImageError::damaged(&path, e.to_string()))?;
        let bytes = serde_json::to_vec_pretty(&index)
            .map_err(|e| ImageError::damaged(&path, e.to_string()))?;
        self.replace(&path, &bytes)
    }

    /// Removes blobs and layers that no image uses.
    pub(super) fn sweep(&self, catalog: &Catalog) -> Result<(), ImageError> {
        let blobs: BTreeSet<&str> =
            catalog.images().flat_map(|s| &s.blobs).map(String::as_str).collect();
        let layers: BTreeSet<&str> =
            catalog.images().flat_map(|s| &s.image.diff_ids).map(|id| bare(id)).collect();
        // Imports that are under way keep theirs under a temporary name.
        let is_free = |n: &str| !n.starts_with(TEMPORARY) && !self.pins.has(n);
        clear(&self.blobs, |n| is_free(n) && !blobs.contains(n))?;
        clear(&self.layers, |n| is_free(n) && !layers.contains(n))
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        let mut file = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(&self.images)
            .map_err(ImageError::disk("make a file in", &self.images))?;
        file.write_all(bytes).map_err(ImageError::disk("write", file.path()))?;
        file.as_file().sync_all().map_err(ImageError::disk("sync", file.path()))?;
        file.persist(path).map_err(|e| ImageError::disk("rename to", path)(e.error))?;
        sync_dir(&self.images)
    }
}

/// A layer under a name that does not last: removed when dropped, unless it was put in its place.
#[derive(Debug)]
pub(super) struct Unpacked {
    path: PathBuf,
}

impl Unpacked {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        if let Err(error) = crate::files::remove_dir(&self.path) {
            tracing::warn!(%error, "an unfinished layer is left until the next start");
        }
    }
}

/// The hex part of a digest.
pub(super) fn bare(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// The name of a layer's blob: a plain one is kept packed.
pub(super) fn blob_name(digest: &str, diff_id: &str) -> String {
    let packed = if digest == diff_id { PACKED } else { "" };
    format!("{}{packed}", bare(digest))
}

/// A descriptor of an image's manifest as the index holds it.
pub(super) fn describe(
    image: &Image,
    name: Option<String>,
    path: &Path,
) -> Result<Descriptor, ImageError> {
    let digest: oci_spec::image::Digest = image
        .manifest_digest
        .parse()
        .map_err(|_| ImageError::damaged(path, "an image has no digest"))?;
    let media_type = MediaType::from(image.manifest_media_type.as_str());
    let mut descriptor = Descriptor::new(media_type, image.manifest_bytes, digest);
    let mut annotations = HashMap::from([(UNPACKED.to_owned(), image.bytes.to_string())]);
    annotations.extend(name.map(|name| (NAME.to_owned(), name)));
    descriptor.set_annotations(Some(annotations));
    Ok(descriptor)
}

fn annotation<'a>(descriptor: &'a Descriptor, key: &str) -> Option<&'a str> {
    descriptor.annotations().as_ref()?.get(key).map(String::as_str)
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, ImageError> {
    let file = File::open(path).map_err(ImageError::disk("open", path))?;
    let mut bytes = Vec::new();
    file.take(IMAGE_DOCUMENT_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(ImageError::disk("read", path))?;
    if bytes.len() as u64 > IMAGE_DOCUMENT_BYTES {
        return Err(ImageError::damaged(path, "it is too long for a document"));
    }
    Ok(bytes)
}

fn sync_dir(path: &Path) -> Result<(), ImageError> {
    let sync = || File::open(path)?.sync_all();
    sync().map_err(ImageError::disk("sync", path))
}

/// Removes the files and directories in `dir` whose name is unwanted.
fn clear(dir: &Path, is_unwanted: impl Fn(&str) -> bool) -> Result<(), ImageError> {
    let entries = fs::read_dir(dir).map_err(ImageError::disk("list", dir))?;
    for entry in entries {
        let path = entry.map_err(ImageError::disk("list", dir))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        if !is_unwanted(name) {
            continue;
        }
        match remove(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(ImageError::disk("remove", path)(e));
            }
            _ => {}
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return fs::remove_file(path);
    }
    // Half a layer must never be found under its name.
    let hidden = match path.file_name().and_then(|n| n.to_str()) {
        Some(name) if !name.starts_with(TEMPORARY) => {
            let hidden = path.with_file_name(format!("{TEMPORARY}{name}"));
            fs::rename(path, &hidden)?;
            hidden
        }
        _ => path.to_owned(),
    };
    crate::files::remove_dir(&hidden).map_err(|e| e.source)
}
