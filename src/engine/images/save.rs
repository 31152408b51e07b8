//! Saves images as an archive that `docker load` takes, old and new: `manifest.json` beside an OCI
//! image layout. The same images give the same bytes.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use oci_spec::image::ImageManifest;
use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::disk::{Disk, bare, blob_name};
use super::error::ImageError;
use super::manifest::{self, Document};
use super::pins::Hold;
use super::reference::Reference;
use super::stream::{Plain, copy};
use super::view::Image;
use crate::limits::{ARCHIVE_BYTES, IMAGE_UPLOAD_DOCUMENT_BYTES};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Images ready to be written out. What they are made of stays for as long as this lives.
#[derive(Debug)]
pub struct Export {
    /// By bare hex digest.
    blobs: BTreeMap<String, Content>,
    /// Documents at the top, by name.
    top: BTreeMap<&'static str, Vec<u8>>,
    _hold: Hold,
}

#[derive(Debug)]
enum Content {
    Document(Vec<u8>),
    Layer {
        /// Name on disk.
        blob: String,
        bytes: u64,
        /// Whether it is to be unpacked on the way.
        unpack: bool,
    },
}

/// A layer as it will be written.
struct Layer {
    blob: String,
    /// With `sha256:`.
    digest: String,
    bytes: u64,
    unpack: bool,
}

impl Export {
    /// Gathers what these images are made of; each with the names to save it by.
    pub(super) fn new(
        disk: &Disk,
        images: &[(Arc<Image>, Vec<Reference>)],
        hold: Hold,
    ) -> Result<Self, ImageError> {
        let (mut blobs, mut items, mut described) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut room = IMAGE_UPLOAD_DOCUMENT_BYTES;
        for (image, names) in images {
            let config = Document::new(disk.document(&image.id)?, CONFIG);
            let (manifest, layers) = parts(disk, image, &config)?;
            items.push(item(&config, names, &layers));
            described.extend(describe(&manifest, names));
            for document in [config, manifest] {
                room = room
                    .checked_sub(document.bytes.len() as u64)
                    .ok_or(ImageError::TooMuch(IMAGE_UPLOAD_DOCUMENT_BYTES))?;
                let name = bare(&document.digest).to_owned();
                blobs.insert(name, Content::Document(document.bytes));
            }
            for layer in layers {
                let Layer { blob, digest, bytes, unpack } = layer;
                blobs.insert(bare(&digest).to_owned(), Content::Layer { blob, bytes, unpack });
            }
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": described});
        let top = BTreeMap::from([
            ("index.json", index.to_string().into_bytes()),
            ("manifest.json", Value::Array(items).to_string().into_bytes()),
            ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ]);
        Ok(Self { blobs, top, _hold: hold })
    }

    /// Writes the archive.
    pub(super) fn write(&self, disk: &Disk, to: &mut dyn Write) -> Result<(), ImageError> {
        for name in ["blobs/", "blobs/sha256/"] {
            head(to, EntryType::Directory, name, 0).map_err(ImageError::Send)?;
        }
        for (hex, content) in &self.blobs {
            let name = format!("blobs/sha256/{hex}");
            match content {
                Content::Document(bytes) => file(to, &name, bytes).map_err(ImageError::Send)?,
                Content::Layer { blob, bytes, unpack } => {
                    head(to, EntryType::Regular, &name, *bytes).map_err(ImageError::Send)?;
                    layer(disk, blob, (hex, *bytes, *unpack), to)?;
                }
            }
        }
        for (name, bytes) in &self.top {
            file(to, name, bytes).map_err(ImageError::Send)?;
        }
        to.write_all(&[0; 1024]).and_then(|()| to.flush()).map_err(ImageError::Send)
    }
}

/// The manifest of an image and its layers. Where a layer is packed as old engines cannot read
/// it, the manifest is made anew and names the plain layers.
fn parts(
    disk: &Disk,
    image: &Image,
    config: &Document,
) -> Result<(Document, Vec<Layer>), ImageError> {
    let bytes = disk.document(&image.manifest_digest)?;
    let path = disk.blob_path(bare(&image.manifest_digest));
    let parsed: ImageManifest =
        serde_json::from_slice(&bytes).map_err(|e| ImageError::damaged(path, e.to_string()))?;
    let is_new = parsed.layers().iter().any(|l| l.media_type().to_string().contains("zstd"));
    let mut layers = Vec::new();
    for (described, diff_id) in parsed.layers().iter().zip(&image.diff_ids) {
        let digest = described.digest().to_string();
        let blob = blob_name(&digest, diff_id);
        layers.push(match is_new && digest != *diff_id {
            true => plain_layer(disk, blob, diff_id)?,
            false => Layer { blob, digest, bytes: described.size(), unpack: false },
        });
    }
    let manifest = match is_new {
        true => manifest::plain(config, layers.iter().map(|l| (l.digest.as_str(), l.bytes)))?,
        false => Document::new(bytes, &*image.manifest_media_type),
    };
    Ok((manifest, layers))
}

/// Finds out how long a packed layer is.
fn plain_layer(disk: &Disk, blob: String, diff_id: &str) -> Result<Layer, ImageError> {
    let mut packed = disk.open_blob(&blob)?;
    let path = disk.blob_path(&blob);
    let mut measure = || {
        let mut plain = Plain::new(&mut packed, ARCHIVE_BYTES)?;
        copy(&mut plain, &mut io::sink())
    };
    let (bytes, digest) = measure().map_err(ImageError::disk("read", &path))?;
    if digest != diff_id {
        return Err(ImageError::damaged(path, "its content does not match its digest"));
    }
    Ok(Layer { blob, digest, bytes, unpack: true })
}

/// The entry of `manifest.json`.
fn item(config: &Document, names: &[Reference], layers: &[Layer]) -> Value {
    let blob = |digest: &str| format!("blobs/sha256/{}", bare(digest));
    let names: Vec<_> = names.iter().map(Reference::familiar).collect();
    let layers: Vec<_> = layers.iter().map(|layer| blob(&layer.digest)).collect();
    json!({
        "Config": blob(&config.digest),
        "RepoTags": if names.is_empty() { Value::Null } else { json!(names) },
        "Layers": layers,
    })
}

/// The descriptors in `index.json`: one for each name.
fn describe(manifest: &Document, names: &[Reference]) -> Vec<Value> {
    let descriptor = json!({
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": manifest.bytes.len(),
    });
    if names.is_empty() {
        return vec![descriptor];
    }
    let named = |name: &Reference| {
        let mut descriptor = descriptor.clone();
        descriptor["annotations"] = json!({
            "io.containerd.image.name": name.to_string(),
            "org.opencontainers.image.ref.name": name.tag(),
        });
        descriptor
    };
    names.iter().map(named).collect()
}

fn head(to: &mut dyn Write, kind: EntryType, name: &str, bytes: u64) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes);
    header.set_cksum();
    to.write_all(header.as_bytes())
}

fn pad(to: &mut dyn Write, bytes: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take((512 - bytes % 512) % 512), to).map(drop)
}

fn file(to: &mut dyn Write, name: &str, bytes: &[u8]) -> io::Result<()> {
    head(to, EntryType::Regular, name, bytes.len() as u64)?;
    to.write_all(bytes)?;
    pad(to, bytes.len() as u64)
}

/// Writes a layer and checks it on the way: a damaged one must not pass for a good one.
fn layer(
    disk: &Disk,
    blob: &str,
    (hex, bytes, unpack): (&str, u64, bool),
    to: &mut dyn Write,
) -> Result<(), ImageError> {
    let mut stored = disk.open_blob(blob)?;
    let mut plain;
    let from: &mut dyn Read = match unpack {
        true => {
            let opened = Plain::new(&mut stored, ARCHIVE_BYTES);
            plain = opened.map_err(ImageError::disk("read", disk.blob_path(blob)))?;
            &mut plain
        }
        false => &mut stored,
    };
    // One more than there should be, to see if there is more.
    let (written, digest) = copy(&mut from.take(bytes + 1), to).map_err(ImageError::Send)?;
    if written != bytes || bare(&digest) != hex {
        let what = "its content does not match its digest";
        return Err(ImageError::damaged(disk.blob_path(blob), what));
    }
    pad(to, bytes).map_err(ImageError::Send)
}
