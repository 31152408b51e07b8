//! Secrets and configs: a name with ordered versions. One implementation serves both; they
//! differ in what may be read back and in their size limit.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use super::{Kind, Labels, Meta};
use crate::id::MaterialId;
use crate::limits;
use crate::time::Stamp;

/// Secret or config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum MaterialKind {
    /// Never read back, at most 511,999 bytes.
    #[n(0)]
    Secret,
    /// Readable by every client, at most 1,024,000 bytes.
    #[n(1)]
    Config,
}

impl MaterialKind {
    /// The object kind, for messages.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Secret => Kind::Secret,
            Self::Config => Kind::Config,
        }
    }

    /// Whether a payload of `len` bytes is within this kind's limit.
    #[must_use]
    pub fn admits(self, len: usize) -> bool {
        match self {
            Self::Secret => (1..limits::SECRET_BYTES_END).contains(&len),
            Self::Config => (1..=limits::CONFIG_BYTES).contains(&len),
        }
    }
}

/// What a user says of a secret or config, beside its payload.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct MaterialSpec {
    /// Unique among its kind.
    #[n(0)]
    pub name: String,
    /// Labels.
    #[n(1)]
    pub labels: Labels,
    /// `golang` if the payload is a template.
    #[n(2)]
    pub templating: Option<Driver>,
    /// The external provider of the payload, if it has one.
    #[n(3)]
    pub driver: Option<Driver>,
}

/// A named driver with options.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Driver {
    /// Name.
    #[n(0)]
    pub name: String,
    /// Options.
    #[n(1)]
    pub options: Labels,
}

/// One version of a payload. The bytes are in the state's payload table.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MaterialVersion {
    /// 1 for the first; never reused.
    #[n(0)]
    pub number: u64,
    /// Plaintext bytes.
    #[n(1)]
    pub size: u64,
    /// When it was added.
    #[n(2)]
    pub created: Stamp,
}

/// A secret or config.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Material {
    /// Id.
    #[n(0)]
    pub id: MaterialId,
    /// Secret or config.
    #[n(1)]
    pub kind: MaterialKind,
    /// Version counter and stamps.
    #[n(2)]
    pub meta: Meta,
    /// What the user said.
    #[n(3)]
    pub spec: MaterialSpec,
    /// Oldest first, never empty.
    #[n(4)]
    pub versions: Vec<MaterialVersion>,
    /// Number of the last version ever added.
    #[n(5)]
    pub last_version: u64,
}

impl Material {
    /// The latest version, which grants that follow receive.
    #[must_use]
    pub fn latest(&self) -> Option<&MaterialVersion> {
        self.versions.last()
    }
}

/// A service's reference to a secret or config, and the file it becomes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(map)]
pub struct Grant {
    /// What is granted.
    #[n(0)]
    pub id: MaterialId,
    /// Its name when the service was written.
    #[n(1)]
    pub name: String,
    /// File name below `/run/secrets` (for a config, below `/`), or an absolute path.
    #[n(2)]
    pub target: String,
    /// Owner of the file.
    #[n(3)]
    pub uid: u32,
    /// Group of the file.
    #[n(4)]
    pub gid: u32,
    /// Permission bits of the file.
    #[n(5)]
    pub mode: u32,
    /// The version it is pinned to; none follows the latest.
    #[n(6)]
    pub pin: Option<u64>,
}

impl Grant {
    /// The absolute path its file appears at.
    #[must_use]
    pub fn path(&self, kind: MaterialKind) -> String {
        match kind {
            _ if self.target.starts_with('/') => self.target.clone(),
            MaterialKind::Secret => format!("/run/secrets/{}", self.target),
            MaterialKind::Config => format!("/{}", self.target),
        }
    }
}
