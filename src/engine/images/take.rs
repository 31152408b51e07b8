//! An image as it comes from another node: what it is made of, what of it is here already, and
//! how it gets into the store. Whatever is said of it is checked.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use oci_spec::image::Arch;
use tokio::sync::OwnedMutexGuard;

use super::disk::{Disk, bare};
use super::error::ImageError;
use super::load::{Fetched, LoadError};
use super::manifest::Document;
use super::pins::Hold;
use super::reference::{Reference, is_digest};
use super::stream::copy;
use super::view::Platform;
use crate::limits::{
    ARCHIVE_BYTES, IMAGE_BYTES, IMAGE_DOCUMENT_BYTES, IMAGE_PARTIAL_BYTES, IMAGE_PARTIAL_KEPT,
};
use crate::wire::image::Offer;

/// What somebody means who asks for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// Whatever has this tag.
    Tag(Reference),
    /// The manifest of this digest.
    Manifest(Reference, String),
    /// The configuration of this digest.
    Id(String),
}

impl Asked {
    /// Reads the name of an image as a task has it. The beginning of an id means nothing here:
    /// another node may have another image whose id begins so.
    pub(super) fn of(name: &str) -> Result<Self, ImageError> {
        let id = format!("sha256:{}", bare(name));
        if is_digest(&id) {
            return Ok(Self::Id(id));
        }
        let reference = Reference::parse(name)?.or_latest();
        Ok(match reference.digest() {
            Some(digest) => {
                let digest = digest.to_owned();
                let repository = reference.repository();
                Self::Manifest(Reference::parse(&format!("{repository}@{digest}"))?, digest)
            }
            None => Self::Tag(reference),
        })
    }
}

/// An image that is on its way here. What it needs stays meanwhile, where it is there.
#[derive(Debug)]
pub(super) struct Taking {
    pub(super) fetched: Fetched,
    /// Bytes of each layer on the way.
    sent: Vec<u64>,
    /// The name it gets beside its tags.
    pub(super) name: Option<Reference>,
    pub(super) hold: Hold,
}

/// A layer of which something is still to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    /// Which, the lowest is 0.
    pub(super) layer: usize,
    /// Where it is gathered.
    pub(super) file: PathBuf,
    /// Bytes that are there.
    pub(super) came: u64,
    /// Bytes it has on the way.
    pub(super) bytes: u64,
}

fn lie(image: &str, field: impl Into<String>, what: impl Into<String>) -> ImageError {
    LoadError::field(image, field, what).into()
}

/// What an offer promises, checked as far as it can be before any layer has come.
pub(super) fn read(name: &str, offer: Offer) -> Result<(Fetched, Option<Reference>), ImageError> {
    for (field, bytes) in [("manifest", &offer.manifest), ("config", &offer.config)] {
        if bytes.len() as u64 > IMAGE_DOCUMENT_BYTES {
            return Err(lie(name, field, format!("{} bytes are too many", bytes.len())));
        }
    }
    let manifest = Document::new(offer.manifest, offer.media_type);
    let config = Document::new(offer.config, "");
    let asked = Asked::of(name)?;
    let (promised, found) = match &asked {
        Asked::Tag(_) => (None, ""),
        Asked::Manifest(_, digest) => (Some(digest), manifest.digest.as_str()),
        Asked::Id(digest) => (Some(digest), config.digest.as_str()),
    };
    if promised.is_some_and(|digest| digest != found) {
        let (path, found) = (name.to_owned(), found.to_owned());
        return Err(LoadError::Content { path, found }.into());
    }
    let (tag, name_of_its_own) = match asked {
        Asked::Tag(tag) => (Some(tag), None),
        Asked::Manifest(name, _) => (None, Some(name)),
        Asked::Id(_) => (None, None),
    };
    let fetched = Fetched::new(name, manifest, config, tag)?;
    let own = Platform {
        os: "linux".to_owned(),
        architecture: Arch::default().to_string(),
        variant: String::new(),
    };
    let found = fetched.platform().clone();
    if !own.fits(&found) {
        let (found, wanted) = (found.to_string(), own.to_string());
        return Err(ImageError::Platform { image: name.to_owned(), found, wanted });
    }
    check_sizes(name, &fetched, &offer.layers)?;
    Ok((fetched, name_of_its_own))
}

/// Refuses layers of another size than the manifest says, or than a node may have.
fn check_sizes(name: &str, fetched: &Fetched, sent: &[u64]) -> Result<(), ImageError> {
    let layers = fetched.layers();
    if sent.len() != layers.len() {
        let what = format!("{} are offered of {}", sent.len(), layers.len());
        return Err(lie(name, "layers", what));
    }
    let mut sum = 0u64;
    for (at, (layer, sent)) in layers.iter().zip(sent).enumerate() {
        let said = layer.bytes();
        // Packing makes what cannot be packed a little longer.
        let is_fair = match layer.is_packed() {
            true => *sent <= said.saturating_add(said / 64).saturating_add(1 << 20),
            false => *sent == said,
        };
        sum = sum.saturating_add(*sent);
        if !is_fair || said > ARCHIVE_BYTES || sum > IMAGE_BYTES {
            let what = format!("{sent} bytes are offered, {said} described");
            return Err(lie(name, format!("layers[{at}].size"), what));
        }
    }
    Ok(())
}

impl Taking {
    pub(super) fn new(
        disk: &Disk,
        mut fetched: Fetched,
        sent: Vec<u64>,
        name: Option<Reference>,
        hold: Hold,
    ) -> Self {
        for layer in fetched.layers_mut() {
            let place = disk.partial(layer.kept());
            layer.set_file(place);
        }
        Self { fetched, sent, name, hold }
    }

    /// Names that only one download at a time may work on.
    pub(super) fn names(&self) -> Vec<String> {
        let names: BTreeSet<_> =
            self.fetched.layers().iter().map(|l| l.kept().to_owned()).collect();
        names.into_iter().collect()
    }

    /// Layers of which something is to come, each once, and how many bytes all layers have.
    pub(super) fn missing(&mut self, disk: &Disk) -> Result<(Vec<Missing>, u64), ImageError> {
        let (mut missing, mut seen, mut total) = (Vec::new(), BTreeSet::new(), 0u64);
        for (at, (layer, bytes)) in self.fetched.layers_mut().iter_mut().zip(&self.sent).enumerate()
        {
            let kept = layer.kept().to_owned();
            if disk.has_blob(&kept) {
                layer.set_file(disk.blob_path(&kept));
                continue;
            }
            if !seen.insert(kept.clone()) {
                continue;
            }
            let file = disk.partial(&kept);
            let mut came = fs::metadata(&file).map_or(0, |file| file.len());
            if came > *bytes {
                // Another node packed it otherwise.
                fs::remove_file(&file).map_err(ImageError::disk("remove", &file))?;
                came = 0;
            }
            total = total.saturating_add(*bytes);
            missing.push(Missing { layer: at, file, came, bytes: *bytes });
        }
        Ok((missing, total))
    }

    /// Checks a layer that has come whole. One that is sent packed shows what it is only when it
    /// is unpacked.
    pub(super) fn check(&self, missing: &Missing) -> Result<(), ImageError> {
        let Some(layer) = self.fetched.layers().get(missing.layer) else { return Ok(()) };
        if layer.is_packed() {
            return Ok(());
        }
        let path = &missing.file;
        let hash = || copy(&mut fs::File::open(path)?, &mut std::io::sink());
        let (_, found) = hash().map_err(ImageError::disk("read", path))?;
        if found == layer.digest() {
            return Ok(());
        }
        fs::remove_file(path).map_err(ImageError::disk("remove", path))?;
        Err(LoadError::Content { path: layer.digest().to_owned(), found }.into())
    }
}

/// Removes files that are of no use any more: the image is in the store, or what came was wrong.
pub(super) fn clear(disk: &Disk, names: &[String]) {
    for name in names {
        let file = disk.partial(name);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %file.display(), %error, "cannot remove a layer's file");
            }
            _ => {}
        }
    }
}

/// Removes unfinished layers that nobody works on: those of long ago, and the oldest beyond a
/// bound for all of them.
pub(super) fn trim(disk: &Disk, is_held: impl Fn(&str) -> bool) -> Result<(), ImageError> {
    let dir = disk.partials();
    let entries = fs::read_dir(dir).map_err(ImageError::disk("list", dir))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(ImageError::disk("list", dir))?;
        // One that goes away meanwhile needs no removal.
        let Ok(file) = entry.metadata() else { continue };
        let modified = file.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        found.push((modified, file.len(), entry.path(), entry.file_name()));
    }
    found.sort_by_key(|found| std::cmp::Reverse(found.0));
    let mut sum = 0u64;
    for (modified, bytes, path, name) in found {
        sum = sum.saturating_add(bytes);
        // A clock that was set back makes nothing old.
        let age = modified.elapsed().unwrap_or_default();
        let is_free = !name.to_str().is_some_and(&is_held);
        if is_free && (age > IMAGE_PARTIAL_KEPT || sum > IMAGE_PARTIAL_BYTES) {
            sum -= bytes;
            fs::remove_file(&path).map_err(ImageError::disk("remove", &path))?;
        }
    }
    Ok(())
}

/// One download of the same layer at a time.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

/// The right to download some layers.
pub(super) type Turn = Vec<OwnedMutexGuard<()>>;

impl Turns {
    /// All of these at once, or none.
    pub(super) fn try_take(&self, names: &[String]) -> Option<Turn> {
        names.iter().map(|name| self.of(name).try_lock_owned().ok()).collect()
    }

    /// Waits until nobody has any of these, which may be over when it returns.
    pub(super) async fn wait(&self, names: &[String]) {
        for name in names {
            drop(self.of(name).lock_owned().await);
        }
    }

    fn of(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(name.to_owned(), Arc::downgrade(&turn));
        turn
    }
}
