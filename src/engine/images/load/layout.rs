//! Reads an OCI image layout: the index at the top, indexes below it, manifests.

use std::collections::BTreeMap;

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;

use super::super::manifest::Document;
use super::super::reference::Reference;
use super::super::view::Platform;
use super::LoadError;
use super::plan::{Plan, name, platform_of};
use super::upload::{Blob, Upload, blob_path, json};
use crate::limits::IMAGE_UPLOAD_IMAGES;

/// The whole name of an image.
const FULL_NAME: &str = "io.containerd.image.name";
/// Its tag, or its whole name, as the writer likes.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Says that a manifest is a remark on another one.
const REMARK: &str = "vnd.docker.reference.type";
/// Indexes in indexes, at most.
const DEPTH: usize = 4;

const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// How they are packed is found out by their first bytes.
const LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// The file `oci-layout`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mark {
    image_layout_version: String,
}

/// The images of the index at the top.
pub(super) fn images(upload: &Upload, wanted: Option<&Platform>) -> Result<Vec<Plan>, LoadError> {
    let mark: Mark = upload.top("oci-layout")?;
    if !mark.image_layout_version.starts_with("1.") {
        let what = format!("version {:?} is not known", mark.image_layout_version);
        return Err(LoadError::field("of the archive", "oci-layout", what));
    }
    let index: ImageIndex = upload.top("index.json")?;
    let mut reader = Reader { upload, wanted, seen: 0 };
    let mut plans: BTreeMap<String, Plan> = BTreeMap::new();
    for (shown, name, described) in groups(&index)? {
        let chosen = reader.choose(&shown, described)?;
        let digest = chosen.digest().to_string();
        let plan = match plans.entry(digest) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(reader.plan(&shown, &chosen)?)
            }
        };
        plan.names.extend(name);
    }
    Ok(plans.into_values().collect())
}

type Group<'a> = (String, Option<Reference>, Vec<&'a Descriptor>);

/// What belongs to one image: descriptors of the same name. Without a name each is one, unless
/// they say that they are one image for several platforms.
fn groups(index: &ImageIndex) -> Result<Vec<Group<'_>>, LoadError> {
    if index.manifests().len() > IMAGE_UPLOAD_IMAGES {
        return Err(LoadError::TooMany { what: "images", limit: IMAGE_UPLOAD_IMAGES });
    }
    let mut groups: Vec<Group<'_>> = Vec::new();
    for descriptor in index.manifests().iter().filter(|one| !is_remark(one)) {
        let shown = descriptor.digest().to_string();
        let name = name_of(&shown, descriptor)?;
        let has_platform = descriptor.platform().is_some();
        let same = groups.iter_mut().find(|(_, known, members)| match &name {
            Some(_) => *known == name,
            None => {
                known.is_none()
                    && has_platform
                    && members.iter().all(|one| {
                        one.platform().is_some() && one.platform() != descriptor.platform()
                    })
            }
        });
        match same {
            Some((_, _, members)) => members.push(descriptor),
            None => {
                let shown = name.as_ref().map_or(shown, Reference::familiar);
                groups.push((shown, name, vec![descriptor]));
            }
        }
    }
    Ok(groups)
}

fn name_of(image: &str, descriptor: &Descriptor) -> Result<Option<Reference>, LoadError> {
    let notes = descriptor.annotations().as_ref();
    let note = |key: &str| notes.and_then(|notes| notes.get(key)).map(String::as_str);
    match (note(FULL_NAME), note(REF_NAME)) {
        // A digest is no name: the image has it anyway.
        (Some(full), _) if full.contains('@') => Ok(None),
        (Some(full), _) if !full.is_empty() => name(image, full).map(Some),
        // A bare word is the tag of who knows what.
        (_, Some(text)) if text.contains([':', '/']) => name(image, text).map(Some),
        _ => Ok(None),
    }
}

/// Attestations and the like are no images.
fn is_remark(descriptor: &Descriptor) -> bool {
    let noted = descriptor.annotations().as_ref().is_some_and(|notes| notes.contains_key(REMARK));
    let unknown = descriptor
        .platform()
        .as_ref()
        .is_some_and(|platform| platform.architecture() == &Arch::Other("unknown".to_owned()));
    noted || unknown
}

struct Reader<'a> {
    upload: &'a Upload,
    wanted: Option<&'a Platform>,
    /// Descriptors looked at.
    seen: usize,
}

impl Reader<'_> {
    /// Chooses the manifest of an image for the wanted platform, or for this machine's.
    fn choose(
        &mut self,
        image: &str,
        described: Vec<&Descriptor>,
    ) -> Result<Descriptor, LoadError> {
        let mut leaves = Vec::new();
        for descriptor in described {
            self.leaves(image, descriptor, DEPTH, &mut leaves)?;
        }
        let own = Platform {
            os: "linux".to_owned(),
            architecture: Arch::default().to_string(),
            variant: String::new(),
        };
        let wanted = self.wanted.unwrap_or(&own);
        let mut fitting: Vec<_> = leaves.iter().filter(|(_, p)| wanted.fits(p)).collect();
        // What needs the least of the machine, and what came at all.
        fitting.sort_by_key(|(one, p)| (!self.upload.has(one), p.variant.clone()));
        match (fitting.first(), leaves.as_slice()) {
            (Some((chosen, _)), _) => Ok(chosen.clone()),
            (None, [(only, _)]) if self.wanted.is_none() => Ok(only.clone()),
            (None, _) => {
                let found: Vec<_> = leaves.iter().map(|(_, p)| p.to_string()).collect();
                Err(LoadError::Platform {
                    image: image.to_owned(),
                    found: if found.is_empty() { "nothing".to_owned() } else { found.join(", ") },
                    wanted: wanted.to_string(),
                })
            }
        }
    }

    /// The manifests below a descriptor, with their platforms.
    fn leaves(
        &mut self,
        image: &str,
        descriptor: &Descriptor,
        depth: usize,
        leaves: &mut Vec<(Descriptor, Platform)>,
    ) -> Result<(), LoadError> {
        self.seen += 1;
        if self.seen > IMAGE_UPLOAD_IMAGES {
            return Err(LoadError::TooMany { what: "manifests", limit: IMAGE_UPLOAD_IMAGES });
        }
        let media_type = descriptor.media_type().to_string();
        if MANIFESTS.contains(&media_type.as_str()) {
            let platform = match descriptor.platform() {
                Some(said) => Platform {
                    os: said.os().to_string(),
                    architecture: said.architecture().to_string(),
                    variant: said.variant().clone().unwrap_or_default(),
                },
                None => self.platform(image, descriptor)?,
            };
            leaves.push((descriptor.clone(), platform));
            return Ok(());
        }
        if !INDEXES.contains(&media_type.as_str()) || depth == 0 {
            let what = match depth {
                0 => "indexes are nested too deeply".to_owned(),
                _ => format!("{media_type:?} is neither a manifest nor an index"),
            };
            return Err(LoadError::field(image, "mediaType", what));
        }
        let blob = self.upload.described(image, "index", descriptor)?;
        let index: ImageIndex = self.parsed(image, descriptor, blob)?;
        for below in index.manifests().iter().filter(|one| !is_remark(one)) {
            self.leaves(image, below, depth - 1, leaves)?;
        }
        Ok(())
    }

    /// What the configuration says where the descriptor is silent.
    fn platform(&self, image: &str, descriptor: &Descriptor) -> Result<Platform, LoadError> {
        let blob = self.upload.described(image, "manifest", descriptor)?;
        let manifest: ImageManifest = self.parsed(image, descriptor, blob)?;
        check(image, "config", manifest.config(), &CONFIGS)?;
        let blob = self.upload.described(image, "config", manifest.config())?;
        let config: ImageConfiguration = self.parsed(image, manifest.config(), blob)?;
        Ok(platform_of(&config))
    }

    fn parsed<T: serde::de::DeserializeOwned>(
        &self,
        image: &str,
        descriptor: &Descriptor,
        blob: &Blob,
    ) -> Result<T, LoadError> {
        let path = blob_path(image, "blob", descriptor)?;
        json(&path, &self.upload.document(&path, blob)?)
    }

    fn plan(&self, image: &str, descriptor: &Descriptor) -> Result<Plan, LoadError> {
        let read = |blob: &Blob, descriptor: &Descriptor| -> Result<Document, LoadError> {
            let bytes = self.upload.document(&blob.digest, blob)?;
            Ok(Document::new(bytes, descriptor.media_type().to_string()))
        };
        let document = read(self.upload.described(image, "manifest", descriptor)?, descriptor)?;
        let manifest: ImageManifest = json(&document.digest, &document.bytes)?;
        check_parts(image, &manifest)?;
        let blob = self.upload.described(image, "config", manifest.config())?;
        let config = read(blob, manifest.config())?;
        let mut blobs = Vec::new();
        for (at, layer) in manifest.layers().iter().enumerate() {
            let field = format!("layers[{at}]");
            blobs.push(self.upload.described(image, &field, layer)?.clone());
        }
        Plan::new(image.to_owned(), config, Some(document), blobs, self.wanted)
    }
}

/// Refuses a manifest of a kind that is not known.
pub(super) fn check_kind(image: &str, media_type: &str) -> Result<(), LoadError> {
    if MANIFESTS.contains(&media_type) {
        return Ok(());
    }
    Err(LoadError::field(image, "mediaType", format!("{media_type:?} is no manifest")))
}

/// Refuses a manifest whose parts are not of a known kind; tells its configuration.
pub(super) fn check_parts<'a>(
    image: &str,
    manifest: &'a ImageManifest,
) -> Result<&'a Descriptor, LoadError> {
    check(image, "config", manifest.config(), &CONFIGS)?;
    for (at, layer) in manifest.layers().iter().enumerate() {
        check(image, &format!("layers[{at}]"), layer, &LAYERS)?;
    }
    Ok(manifest.config())
}

/// Refuses what is not of a known kind: encrypted layers, and those to be had elsewhere.
fn check(
    image: &str,
    field: &str,
    descriptor: &Descriptor,
    known: &[&str],
) -> Result<(), LoadError> {
    let found = descriptor.media_type().to_string();
    if known.contains(&found.as_str()) {
        return Ok(());
    }
    let why = match found.as_str() {
        kind if kind.contains("encrypted") => "is encrypted, and skep has no key for it",
        kind if kind.contains("nondistributable") || kind.contains("foreign") => {
            "is to be fetched elsewhere, which skep does not do"
        }
        _ => "is not known",
    };
    Err(LoadError::field(image, format!("{field}.mediaType"), format!("{found:?} {why}")))
}
