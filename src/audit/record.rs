//! What one record says.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use skep_core::id::MaterialId;
use skep_core::time::Stamp;

use crate::limits::AUDIT_RECORD_BYTES;
use crate::wire::{WireError, parse};

/// What a shim writes at once.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Record {
    /// From 1 on, without a gap.
    #[n(0)]
    pub sequence: u64,
    /// Hash of the record before; for the first, [`origin`](super::origin).
    #[cbor(n(1), with = "minicbor::bytes")]
    pub previous: [u8; 32],
    /// When it was written, by the node's clock.
    #[n(2)]
    pub at: Stamp,
    /// Opens since the record before.
    #[n(3)]
    pub rows: Vec<Row>,
    /// What else happened since then.
    #[n(4)]
    pub events: Vec<Event>,
    /// What should be here and is not.
    #[n(5)]
    #[cbor(default)]
    pub lost: Lost,
}

/// What every record begins with, of whatever version.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Head {
    /// See [`Record::sequence`].
    #[n(0)]
    pub sequence: u64,
    /// See [`Record::previous`].
    #[cbor(n(1), with = "minicbor::bytes")]
    pub previous: [u8; 32],
    /// See [`Record::at`].
    #[n(2)]
    pub at: Stamp,
}

/// What one reader did since the record before.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Row {
    /// The reader; none for all that had no room for a row of their own.
    #[n(0)]
    pub reader: Option<Reader>,
    /// Opens that succeeded.
    #[n(1)]
    pub opened: u64,
    /// Times that it was to be opened, or looked at, and was revoked, or its task over.
    #[n(2)]
    pub refused: u64,
    /// The first of these opens.
    #[n(3)]
    pub first: Stamp,
    /// The last.
    #[n(4)]
    pub last: Stamp,
}

/// Who reads what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(map)]
pub struct Reader {
    /// Secret or config.
    #[n(0)]
    pub material: MaterialId,
    /// Its name.
    #[n(1)]
    pub name: String,
    /// Its version.
    #[n(2)]
    pub version: u64,
    /// The process's user, as the host numbers it.
    #[n(3)]
    pub uid: u32,
    /// Its group likewise.
    #[n(4)]
    pub gid: u32,
    /// Its executable as the kernel names it, which the process may have arranged: a claim. None
    /// if the process was gone before it was looked at.
    #[n(5)]
    pub executable: Option<String>,
}

/// Something that happened to what a task holds.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Event {
    /// When, by the node's clock.
    #[n(0)]
    pub at: Stamp,
    /// What.
    #[n(1)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum What {
    /// The shim began, with this public key.
    #[n(0)]
    Begun {
        /// See [`origin`](super::origin).
        #[cbor(n(0), with = "minicbor::bytes")]
        key: [u8; 32],
    },
    /// A version became readable that replaces none.
    #[n(1)]
    Delivered {
        /// Secret or config.
        #[n(0)]
        material: MaterialId,
        /// Its name.
        #[n(1)]
        name: String,
        /// Which version.
        #[n(2)]
        version: u64,
        /// With which delivery.
        #[n(3)]
        sequence: u64,
    },
    /// A version took the place of an earlier one.
    #[n(2)]
    Switched {
        /// Secret or config.
        #[n(0)]
        material: MaterialId,
        /// Its name.
        #[n(1)]
        name: String,
        /// Version before.
        #[n(2)]
        from: u64,
        /// Version since.
        #[n(3)]
        to: u64,
        /// With which delivery.
        #[n(4)]
        sequence: u64,
    },
    /// It can be read no more.
    #[n(3)]
    Revoked {
        /// Secret or config.
        #[n(0)]
        material: MaterialId,
        /// Its name.
        #[n(1)]
        name: String,
        /// The version that was readable; none if none was.
        #[n(2)]
        version: Option<u64>,
        /// With which revocation.
        #[n(3)]
        sequence: u64,
    },
    /// The shim did not take a delivery.
    #[n(4)]
    Refused {
        /// What was delivered.
        #[n(0)]
        materials: Vec<MaterialId>,
        /// Which delivery.
        #[n(1)]
        sequence: u64,
        /// Why not.
        #[n(2)]
        reason: String,
    },
    /// The file was full, another was begun, and the oldest may have gone for it.
    #[n(5)]
    Rotated {
        /// The first record that the node still has.
        #[n(0)]
        kept_from: u64,
    },
    /// The task is over: nothing of it can be read any more, and no record follows.
    #[n(6)]
    Ended,
    /// The container's first process was sent a signal, as new versions had come into force.
    #[n(7)]
    Signalled {
        /// Secrets and configs with a new version.
        #[n(0)]
        materials: Vec<MaterialId>,
        /// Signal number.
        #[n(1)]
        signal: i32,
        /// With which delivery they came.
        #[n(2)]
        sequence: u64,
    },
}

/// What should be in a record and is not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Lost {
    /// Events that had no room while nothing could be written.
    #[n(0)]
    pub events: u64,
    /// How often writing failed since the record before. Opens are in this one all the same.
    #[n(1)]
    pub failed_writes: u64,
    /// Why it failed last.
    #[n(2)]
    pub why: Option<String>,
}

impl What {
    /// Whether this tells of a material.
    #[must_use]
    pub fn is_of(&self, id: &MaterialId) -> bool {
        match self {
            Self::Delivered { material, .. }
            | Self::Switched { material, .. }
            | Self::Revoked { material, .. } => material == id,
            Self::Refused { materials, .. } | Self::Signalled { materials, .. } => {
                materials.contains(id)
            }
            Self::Begun { .. } | Self::Rotated { .. } | Self::Ended => false,
        }
    }

    /// Whether this tells of a material that had this name then.
    #[must_use]
    pub fn is_named(&self, wanted: &str) -> bool {
        match self {
            Self::Delivered { name, .. }
            | Self::Switched { name, .. }
            | Self::Revoked { name, .. } => name == wanted,
            Self::Refused { .. }
            | Self::Signalled { .. }
            | Self::Begun { .. }
            | Self::Rotated { .. }
            | Self::Ended => false,
        }
    }
}

impl Row {
    /// Whether this tells of a material. What had no row of its own may be of any.
    #[must_use]
    pub fn is_of(&self, id: &MaterialId) -> bool {
        self.reader.as_ref().is_none_or(|reader| reader.material == *id)
    }

    /// Whether this tells of a material that had this name then, likewise.
    #[must_use]
    pub fn is_named(&self, wanted: &str) -> bool {
        self.reader.as_ref().is_none_or(|reader| reader.name == wanted)
    }
}

impl Record {
    /// The bytes that are written, passed on, kept and hashed.
    #[must_use]
    pub fn to_body(&self) -> ByteVec {
        minicbor::to_vec(self).unwrap_or_default().into()
    }

    /// Reads a record.
    ///
    /// # Errors
    /// If it is none that this version understands.
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        check_length(body)?;
        parse(body)
    }

    /// Whether it says that its task is over.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.events.iter().any(|event| event.what == What::Ended)
    }
}

impl Head {
    /// Reads the beginning of a record, also of one that a later version wrote.
    ///
    /// # Errors
    /// If it is no record.
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        check_length(body)?;
        parse(body)
    }
}

fn check_length(body: &[u8]) -> Result<(), WireError> {
    match body.len() {
        len if len > AUDIT_RECORD_BYTES => Err(WireError::TooLong(len, AUDIT_RECORD_BYTES)),
        _ => Ok(()),
    }
}
