//! What an archive of images says: which images there are, by which names, made of what. Nothing
//! is unpacked here.

use std::collections::BTreeSet;

use oci_spec::image::{ImageConfiguration, MediaType};
use serde::Deserialize;

use super::super::disk::{bare, blob_name};
use super::super::manifest::Document;
use super::super::reference::{Reference, ReferenceError, is_digest};
use super::super::view::Platform;
use super::upload::{Blob, Upload, json, promised};
use super::{LoadError, layout};
use crate::limits::{IMAGE_LAYERS, IMAGE_NAMES, IMAGE_UPLOAD_IMAGES};

/// An image of the archive, its parts found.
#[derive(Debug)]
pub(super) struct Plan {
    /// What it is called in messages.
    pub(super) shown: String,
    pub(super) names: Vec<Reference>,
    pub(super) config: Document,
    /// If it came with one.
    pub(super) manifest: Option<Document>,
    pub(super) layers: Vec<Layer>,
}

/// A layer, lowest first.
#[derive(Debug)]
pub(in super::super) struct Layer {
    pub(super) blob: Blob,
    /// What its plain archive must hash to.
    pub(super) diff_id: String,
    /// The name that its archive is kept by.
    pub(super) kept: String,
}

/// Names on disk of what these images need.
pub(super) fn needs<'a>(images: impl Iterator<Item = &'a Plan>) -> Vec<String> {
    let layers = images.flat_map(|image| &image.layers);
    let names = layers.flat_map(|layer| [bare(&layer.diff_id).to_owned(), layer.kept.clone()]);
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

/// One image in `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Every image of an archive, for this platform where there is a choice.
pub(super) fn images(upload: &Upload, wanted: Option<&Platform>) -> Result<Vec<Plan>, LoadError> {
    let has_items = upload.find("manifest.json").is_some();
    let has_index = upload.find("oci-layout").is_some() && upload.find("index.json").is_some();
    let plans = match (has_index, has_items) {
        (true, _) => {
            let mut plans = layout::images(upload, wanted)?;
            if has_items {
                add_names(upload, &mut plans)?;
            }
            plans
        }
        (false, true) => items(upload)?
            .iter()
            .map(|item| plan_of(upload, item, wanted))
            .collect::<Result<_, _>>()?,
        (false, false) if upload.find("repositories").is_some() => return Err(LoadError::Ancient),
        (false, false) => return Err(LoadError::NoImages),
    };
    match plans.is_empty() {
        true => Err(LoadError::NoImages),
        false => Ok(plans),
    }
}

fn items(upload: &Upload) -> Result<Vec<Item>, LoadError> {
    let items: Vec<Item> = upload.top("manifest.json")?;
    if items.len() > IMAGE_UPLOAD_IMAGES {
        return Err(LoadError::TooMany { what: "images", limit: IMAGE_UPLOAD_IMAGES });
    }
    Ok(items)
}

/// Newer writers say everything twice; names may be in `manifest.json` alone.
fn add_names(upload: &Upload, plans: &mut [Plan]) -> Result<(), LoadError> {
    for item in items(upload)? {
        let Some(config) = upload.find(&item.config) else { continue };
        let mut same = plans.iter_mut().filter(|plan| plan.config.digest == config.digest);
        if let Some(plan) = same.next() {
            for name in names(&plan.shown, &item)? {
                if !plan.names.contains(&name) {
                    plan.names.push(name);
                }
            }
        }
    }
    Ok(())
}

fn names(image: &str, item: &Item) -> Result<Vec<Reference>, LoadError> {
    let tags = item.repo_tags.as_deref().unwrap_or_default();
    if tags.len() > IMAGE_NAMES {
        return Err(LoadError::TooMany { what: "names of one image", limit: IMAGE_NAMES });
    }
    tags.iter().map(|tag| name(image, tag)).collect()
}

/// A name with its tag, as an archive gives it.
pub(super) fn name(image: &str, text: &str) -> Result<Reference, LoadError> {
    let wrong = |source| LoadError::Name { image: image.to_owned(), name: text.to_owned(), source };
    let name = Reference::parse(text).map_err(wrong)?.or_latest();
    match name.digest() {
        Some(_) => Err(wrong(ReferenceError::HasDigest)),
        None => Ok(name),
    }
}

fn plan_of(upload: &Upload, item: &Item, wanted: Option<&Platform>) -> Result<Plan, LoadError> {
    let first = item.repo_tags.as_ref().and_then(|tags| tags.first());
    let shown = first.unwrap_or(&item.config).clone();
    let blob = upload.named(&shown, "Config", &item.config)?;
    if promised(&item.config).is_some_and(|digest| digest != blob.digest) {
        return Err(LoadError::Content { path: item.config.clone(), found: blob.digest.clone() });
    }
    let bytes = upload.document(&item.config, blob)?;
    let config = Document::new(bytes, MediaType::ImageConfig.to_string());
    let blobs = item
        .layers
        .iter()
        .flatten()
        .enumerate()
        .map(|(at, path)| upload.named(&shown, &format!("Layers[{at}]"), path).cloned());
    let blobs = blobs.collect::<Result<Vec<_>, _>>()?;
    let mut plan = Plan::new(shown, config, None, blobs, wanted)?;
    plan.names = names(&plan.shown, item)?;
    Ok(plan)
}

impl Plan {
    /// Checks that configuration and layers fit, and that skep can run such an image.
    pub(super) fn new(
        shown: String,
        config: Document,
        manifest: Option<Document>,
        blobs: Vec<Blob>,
        wanted: Option<&Platform>,
    ) -> Result<Self, LoadError> {
        let parsed: ImageConfiguration =
            json(&format!("configuration {}", config.digest), &config.bytes)?;
        let bad = |field: &str, what: String| Err(LoadError::field(&shown, field, what));
        if blobs.len() > IMAGE_LAYERS {
            let what = format!("{} layers are more than {IMAGE_LAYERS}", blobs.len());
            return bad("layers", what);
        }
        let (rootfs, found) = (parsed.rootfs(), platform_of(&parsed));
        if found.os != "linux" {
            return bad("config.os", format!("{:?} is not linux", found.os));
        }
        if let Some(wanted) = wanted.filter(|wanted| !wanted.fits(&found)) {
            let (found, wanted) = (found.to_string(), wanted.to_string());
            return Err(LoadError::Platform { image: shown, found, wanted });
        }
        if rootfs.typ() != "layers" {
            return bad("config.rootfs.type", format!("{:?} is not \"layers\"", rootfs.typ()));
        }
        let diff_ids = rootfs.diff_ids();
        if diff_ids.len() != blobs.len() {
            let what = format!("{} are named for {} layers", diff_ids.len(), blobs.len());
            return bad("config.rootfs.diff_ids", what);
        }
        if let Some(odd) = diff_ids.iter().find(|id| !is_digest(id)) {
            return bad("config.rootfs.diff_ids", format!("{odd:?} is no sha256 digest"));
        }
        let layers = blobs.into_iter().zip(diff_ids);
        // Without a manifest of its own the image gets one that names plain layers.
        let kept = |blob: &Blob, diff_id: &str| match &manifest {
            Some(_) => blob_name(&blob.digest, diff_id),
            None => blob_name(diff_id, diff_id),
        };
        let layers = layers
            .map(|(blob, id)| Layer { kept: kept(&blob, id), blob, diff_id: id.clone() })
            .collect();
        Ok(Self { shown, names: Vec::new(), config, manifest, layers })
    }
}

pub(super) fn platform_of(config: &ImageConfiguration) -> Platform {
    Platform {
        os: config.os().to_string(),
        architecture: config.architecture().to_string(),
        variant: config.variant().clone().unwrap_or_default(),
    }
}
