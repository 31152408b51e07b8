//! An image as the rest of the node sees it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use oci_spec::image::{Config, History, ImageConfiguration};
use sha2::{Digest as _, Sha256};
use skep_core::id::hex;
use skep_core::time::Stamp;

use super::error::ImageError;

/// A platform that images are made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// Go's word: `amd64` and the like.
    pub architecture: String,
    /// Mostly empty; an empty one wants any.
    pub variant: String,
}

impl Platform {
    /// Whether an image for `found` is what somebody means by this.
    pub(super) fn fits(&self, found: &Self) -> bool {
        self.os == found.os
            && self.architecture == found.architecture
            && (self.variant.is_empty() || self.variant == found.variant)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_str() {
            "" => Ok(()),
            variant => write!(f, "/{variant}"),
        }
    }
}

/// An image. Names are in the form that is shown, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `sha256:` and the digest of its configuration.
    pub id: String,
    /// `name:tag` pairs that name it.
    pub repo_tags: Vec<String>,
    /// `name@sha256:…`: the digest is the manifest's.
    pub repo_digests: Vec<String>,
    /// Digest of its manifest, with `sha256:`.
    pub manifest_digest: String,
    /// Bytes of its manifest.
    pub manifest_bytes: u64,
    /// Media type of its manifest.
    pub manifest_media_type: String,
    /// What its containers run.
    pub config: ImageConfig,
    /// When it was made; zero if it does not say.
    pub created: Stamp,
    /// Who made it.
    pub author: String,
    /// Message of its last step.
    pub comment: String,
    /// Go's word: `amd64` and the like.
    pub architecture: String,
    /// Variant of the architecture, mostly empty.
    pub variant: String,
    /// `linux`.
    pub os: String,
    /// Bytes of its files once unpacked.
    pub bytes: u64,
    /// Digests of its unpacked layers with `sha256:`, lowest first.
    pub diff_ids: Vec<String>,
    /// Its steps, oldest first.
    pub history: Vec<HistoryEntry>,
}

/// What an image says of the containers made of it. Empty means unsaid.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// First words of the command line.
    pub entrypoint: Vec<String>,
    /// The rest of it unless the user says something else.
    pub cmd: Vec<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Working directory.
    pub working_dir: String,
    /// `user[:group]`.
    pub user: String,
    /// Signal that stops a container.
    pub stop_signal: String,
    /// Ports as `80/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    /// Paths that want a volume, sorted.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// One step in the making of an image.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// When; zero if it does not say.
    pub created: Stamp,
    /// Command that made it.
    pub created_by: String,
    /// Message.
    pub comment: String,
    /// Whether it made no layer.
    pub empty_layer: bool,
}

/// One step of a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A name was taken off.
    Untagged(String),
    /// An image or a layer is gone; `sha256:…`.
    Deleted(String),
}

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// `sha256:…`.
    pub id: String,
    /// The names it came with, as they are shown.
    pub names: Vec<String>,
    /// Those of them that another image had before, with its id.
    pub moved: Vec<(String, String)>,
}

/// How far the unpacking of a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadProgress {
    /// Beginning of the layer's digest.
    pub layer: String,
    /// Bytes read so far.
    pub current: u64,
    /// Bytes it has.
    pub total: u64,
}

/// Which container uses an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUse {
    /// One that runs, by its id: the image cannot be removed.
    Running(String),
    /// One that has ended, by its id: the image can be removed by force.
    Stopped(String),
}

impl Image {
    /// The parts of an image that its configuration says; the rest is empty.
    pub(super) fn of(config: &ImageConfiguration) -> Self {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let history: Vec<_> = config.history().iter().flatten().map(HistoryEntry::of).collect();
        Self {
            id: String::new(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            manifest_digest: String::new(),
            manifest_bytes: 0,
            manifest_media_type: String::new(),
            config: config.config().as_ref().map(ImageConfig::of).unwrap_or_default(),
            created: stamp(config.created().as_deref()),
            author: text(config.author()),
            comment: history.last().map(|h| h.comment.clone()).unwrap_or_default(),
            architecture: config.architecture().to_string(),
            variant: text(config.variant()),
            os: config.os().to_string(),
            bytes: 0,
            diff_ids: config.rootfs().diff_ids().clone(),
            history,
        }
    }

    /// Refuses an image that is for another platform than the wanted one.
    pub(super) fn check_platform(
        &self,
        name: &str,
        wanted: Option<&Platform>,
    ) -> Result<(), ImageError> {
        let found = Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        };
        match wanted {
            Some(wanted) if !wanted.fits(&found) => Err(ImageError::Platform {
                image: name.to_owned(),
                found: found.to_string(),
                wanted: wanted.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Ids of its stacks of layers, lowest first: a layer with all that are below it.
    pub(super) fn chain_ids(&self) -> Vec<String> {
        let mut chain: Vec<String> = Vec::new();
        for diff_id in &self.diff_ids {
            chain.push(match chain.last() {
                None => diff_id.clone(),
                Some(below) => {
                    let text = format!("{below} {diff_id}");
                    format!("sha256:{}", hex(&Sha256::digest(text.as_bytes())))
                }
            });
        }
        chain
    }
}

impl ImageConfig {
    fn of(config: &Config) -> Self {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let list = |l: &Option<Vec<String>>| l.clone().unwrap_or_default();
        let sorted = |l: &Option<Vec<String>>| {
            let mut list = list(l);
            list.sort();
            list
        };
        Self {
            entrypoint: list(config.entrypoint()),
            cmd: list(config.cmd()),
            env: list(config.env()),
            working_dir: text(config.working_dir()),
            user: text(config.user()),
            stop_signal: text(config.stop_signal()),
            exposed_ports: sorted(config.exposed_ports()),
            volumes: sorted(config.volumes()),
            labels: config.labels().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        }
    }

    /// The same as a part of an OCI image configuration.
    pub(super) fn to_oci(&self) -> Config {
        let text = |t: &String| Some(t.clone()).filter(|t| !t.is_empty());
        let list = |l: &Vec<String>| Some(l.clone()).filter(|l| !l.is_empty());
        let mut config = Config::default();
        config
            .set_entrypoint(list(&self.entrypoint))
            .set_cmd(list(&self.cmd))
            .set_env(list(&self.env))
            .set_working_dir(text(&self.working_dir))
            .set_user(text(&self.user))
            .set_stop_signal(text(&self.stop_signal))
            .set_exposed_ports(list(&self.exposed_ports))
            .set_volumes(list(&self.volumes));
        let labels: HashMap<_, _> = self.labels.clone().into_iter().collect();
        config.set_labels(Some(labels).filter(|l| !l.is_empty()));
        config
    }
}

impl HistoryEntry {
    fn of(entry: &History) -> Self {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        Self {
            created: stamp(entry.created().as_deref()),
            created_by: text(entry.created_by()),
            comment: text(entry.comment()),
            empty_layer: entry.empty_layer().unwrap_or(false),
        }
    }
}

/// A time as images write it; zero for none, for one before 1970 and for one that cannot be read.
fn stamp(text: Option<&str>) -> Stamp {
    let time: Option<jiff::Timestamp> = text.and_then(|t| t.parse().ok());
    Stamp(time.and_then(|t| u64::try_from(t.as_nanosecond()).ok()).unwrap_or(0))
}
