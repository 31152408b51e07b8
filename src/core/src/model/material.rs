//! Secrets and configs: a name with ordered versions. One implementation serves both; they
//! differ in what may be read back and in their size limit.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use super::task::Task;
use super::{Kind, Labels, Meta};
use crate::id::{MaterialId, NodeId, ServiceId, TaskId};
use crate::limits;
use crate::outcome::Rejection;
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
    /// How many versions are kept, the latest ones: 1 to [`limits::MATERIAL_VERSIONS`]; none means
    /// [`limits::KEEP_VERSIONS`]. Those in use are kept as well.
    #[n(4)]
    pub keep: Option<u32>,
}

/// Refuses to keep no version, or more than there may be.
///
/// # Errors
/// [`Rejection::Invalid`] names how many may be kept.
pub fn check_keep(keep: Option<u32>) -> Result<(), Rejection> {
    let most = limits::MATERIAL_VERSIONS;
    match keep {
        Some(keep) if keep == 0 || usize::try_from(keep).is_ok_and(|keep| keep > most) => {
            Err(Rejection::Invalid(format!(
                "cannot keep {keep} versions of a secret or config: keep 1 to {most}, the latest \
                 included; those in use are kept as well"
            )))
        }
        _ => Ok(()),
    }
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

/// Who changed a secret or config: the caller of the API, as the kernel of that node named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Author {
    /// The node at whose socket the call came in.
    #[n(0)]
    pub node: NodeId,
    /// The caller's user id there; [`Author::UNKNOWN_UID`] if the socket did not tell.
    #[n(1)]
    pub uid: u32,
}

impl Author {
    /// Stands for a user nobody knows: no user has this id.
    pub const UNKNOWN_UID: u32 = u32::MAX;
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
    /// Who added it.
    #[n(3)]
    pub by: Author,
    /// The version it repeats: it was added by a rollback.
    #[n(4)]
    pub of: Option<u64>,
}

/// A service's grant of a secret or config that may not be read any more. A later version may,
/// and so may a grant that the service is given anew by an update.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Revocation {
    /// Whose grant.
    #[n(0)]
    pub service: ServiceId,
    /// The only task it holds for; none for all of the service.
    #[n(1)]
    pub task: Option<TaskId>,
    /// The last version it holds for.
    #[n(2)]
    pub up_to: u64,
    /// When it was revoked.
    #[n(3)]
    pub at: Stamp,
    /// Who revoked it.
    #[n(4)]
    pub by: Author,
    /// The last version of the service's template it holds for, once an update granted it anew;
    /// none before. Tasks of older templates do not come by it while they are replaced.
    #[n(5)]
    pub until: Option<u64>,
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
    /// Which grants of it are revoked, one entry at most for a service or one of its tasks; at
    /// most [`limits::REVOCATIONS`].
    #[n(6)]
    pub revoked: Vec<Revocation>,
}

impl Material {
    /// The latest version, which grants that follow receive.
    #[must_use]
    pub fn latest(&self) -> Option<&MaterialVersion> {
        self.versions.last()
    }

    /// The version of this number, unless it was dropped or never there.
    #[must_use]
    pub fn version(&self, number: u64) -> Option<&MaterialVersion> {
        self.versions.iter().find(|version| version.number == number)
    }

    /// The version of this number, to be granted.
    ///
    /// # Errors
    /// If it was dropped or never there; the text names those that are.
    pub fn pinned(&self, number: u64) -> Result<&MaterialVersion, Rejection> {
        self.version(number).ok_or_else(|| {
            let there: Vec<String> =
                self.versions.iter().map(|version| format!("{}", version.number)).collect();
            let (word, name) = (self.kind.kind().word(), &self.spec.name);
            let gone = if number <= self.last_version { " any more" } else { "" };
            Rejection::Invalid(format!(
                "{word} {name} has no version {number}{gone}: pin to one that it has ({}), or name \
                 {name} alone to follow the latest",
                there.join(", ")
            ))
        })
    }

    /// How many of the latest versions are kept whether they are in use or not.
    #[must_use]
    pub fn keep(&self) -> usize {
        let keep = self.spec.keep.unwrap_or(limits::KEEP_VERSIONS);
        usize::try_from(keep).unwrap_or(usize::MAX)
    }

    /// The last version that a task may not read although its service grants it; none if it may
    /// read `version`.
    #[must_use]
    pub fn revoked_up_to(&self, task: &Task, version: u64) -> Option<u64> {
        let holding = self.revoked.iter().filter(|entry| entry.holds(task, version));
        holding.map(|entry| entry.up_to).max()
    }
}

impl Revocation {
    fn holds(&self, task: &Task, version: u64) -> bool {
        self.service == task.service
            && self.task.is_none_or(|id| id == task.id)
            && version <= self.up_to
            && self.until.is_none_or(|until| task.spec_version <= until)
    }
}

/// What becomes of running tasks when a new version reaches them, beside its bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum OnChange {
    /// Nothing.
    #[default]
    #[n(0)]
    Nothing,
    /// Their first process is sent this signal, once the bytes are in force.
    #[n(1)]
    Signal(#[n(0)] i32),
    /// They are replaced, as the service's update policy has it.
    #[n(2)]
    Restart,
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
    /// What becomes of the task when a new version reaches it.
    #[n(7)]
    pub on_change: OnChange,
}

impl Grant {
    /// Whether a new version makes tasks that hold this grant be replaced. What is pinned never
    /// changes.
    #[must_use]
    pub fn restarts(&self) -> bool {
        self.on_change == OnChange::Restart && self.pin.is_none()
    }

    /// How a service refers to it: its name, with the version it is pinned to behind an `@`.
    #[must_use]
    pub fn reference(&self) -> String {
        match self.pin {
            Some(pin) => format!("{}@{pin}", self.name),
            None => self.name.clone(),
        }
    }

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
