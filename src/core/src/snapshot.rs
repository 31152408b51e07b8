//! The state as records, for snapshots: written one object at a time, read back likewise.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

use minicbor::{Decode, Encode};
use sha2::{Digest, Sha256};

use crate::codec::{self, CodecError};
use crate::command::Outcome;
use crate::format::FORMAT;
use crate::id::{MaterialId, RequestId, TaskId};
use crate::model::cluster::Cluster;
use crate::model::material::Material;
use crate::model::node::Node;
use crate::model::service::Service;
use crate::model::task::Task;
use crate::sealed::Sealed;
use crate::shared::Shared;
use crate::state::{Anchored, State};
use crate::time::Stamp;

/// Why a snapshot cannot be read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadError {
    /// It needs a newer version.
    Newer {
        /// Its format.
        format: u32,
        /// The newest format that is read here.
        reads: u32,
    },
    /// A record is not what the format says; the text says which.
    Malformed(String),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newer { format, reads } => {
                write!(f, "the snapshot has format {format}, this version reads up to {reads}")
            }
            Self::Malformed(text) => write!(f, "snapshot record: {text}"),
        }
    }
}

impl core::error::Error for ReadError {}

fn malformed(text: String) -> ReadError {
    ReadError::Malformed(text)
}

/// One record. The order of the variants is the order in a snapshot.
#[derive(Debug, Encode, Decode)]
enum Record {
    #[n(0)]
    Header {
        #[n(0)]
        format: u32,
        #[n(1)]
        last_stamp: Stamp,
        #[n(2)]
        purge_due: Option<Stamp>,
    },
    #[n(1)]
    Cluster(#[n(0)] Shared<Cluster>),
    #[n(2)]
    Node(#[n(0)] Shared<Node>),
    #[n(3)]
    Material(#[n(0)] Shared<Material>),
    #[n(4)]
    Payload {
        #[n(0)]
        id: MaterialId,
        #[n(1)]
        number: u64,
        #[n(2)]
        sealed: Shared<Sealed>,
    },
    #[n(5)]
    Service(#[n(0)] Shared<Service>),
    #[n(6)]
    Task(#[n(0)] Shared<Task>),
    #[n(7)]
    Outcome {
        #[n(0)]
        request: RequestId,
        #[n(1)]
        at: Stamp,
        #[n(2)]
        outcome: Outcome,
    },
    #[n(9)]
    Anchor {
        #[n(0)]
        task: TaskId,
        #[n(1)]
        anchor: Anchored,
    },
    /// Last, with the number of records before it.
    #[n(8)]
    End(#[n(0)] u64),
}

/// Hands every record of `state` to `sink`, in a fixed order: equal states give equal records.
pub fn write(state: &State, sink: &mut dyn FnMut(&[u8])) {
    let mut count = 0;
    let mut put = |record: Record| {
        sink(&codec::encode(&record));
        count += 1;
    };
    let State { format, last_stamp, purge_due, .. } = *state;
    put(Record::Header { format, last_stamp, purge_due });
    if let Some(cluster) = &state.cluster {
        put(Record::Cluster(Shared::of(cluster)));
    }
    for node in state.nodes.values() {
        put(Record::Node(Shared::of(node)));
    }
    for material in state.materials.values() {
        put(Record::Material(Shared::of(material)));
    }
    for (&(id, number), sealed) in &state.payloads {
        put(Record::Payload { id, number, sealed: Shared::of(sealed) });
    }
    for service in state.services.values() {
        put(Record::Service(Shared::of(service)));
    }
    for task in state.tasks.values() {
        put(Record::Task(Shared::of(task)));
    }
    for (request, at) in &state.requests {
        if let Some(outcome) = state.outcomes.get(request) {
            put(Record::Outcome { request: *request, at: *at, outcome: outcome.clone() });
        }
    }
    for (&task, &anchor) in &state.anchors {
        put(Record::Anchor { task, anchor });
    }
    sink(&codec::encode(&Record::End(count)));
}

/// SHA-256 of all records of `state`. The same entries make the same digest on every manager,
/// whichever version it runs.
#[must_use]
pub fn digest(state: &State) -> [u8; 32] {
    let mut sha = Sha256::new();
    write(state, &mut |record| sha.update(record));
    sha.finalize().into()
}

/// Builds a state of records.
#[derive(Debug)]
pub struct Reader {
    /// The newest format that is read.
    reads: u32,
    state: State,
    count: u64,
    ended: bool,
}

impl Default for Reader {
    fn default() -> Self {
        Self::up_to(FORMAT)
    }
}

impl Reader {
    /// A reader of snapshots up to this format.
    #[must_use]
    pub fn up_to(reads: u32) -> Self {
        Self { reads, state: State::default(), count: 0, ended: false }
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// If the record is not one of this format, or comes where none may. The reader is of no
    /// use afterwards.
    pub fn push(&mut self, record: &[u8]) -> Result<(), ReadError> {
        let record = codec::decode_strict(record).map_err(|e| self.unread(record, &e))?;
        let is_header = matches!(record, Record::Header { .. });
        if self.ended || is_header != (self.count == 0) {
            return Err(malformed(format!("number {} is out of place", self.count)));
        }
        match record {
            Record::Header { format, .. } if format > self.reads => {
                return Err(ReadError::Newer { format, reads: self.reads });
            }
            Record::Header { format, last_stamp, purge_due } => {
                self.state = State { format, last_stamp, purge_due, ..State::default() };
            }
            Record::Cluster(cluster) => self.state.cluster = Some(cluster.into_inner().into()),
            Record::Node(node) => self.state.put_node(node.into_inner()),
            Record::Material(material) => self.state.put_material(material.into_inner()),
            Record::Payload { id, number, sealed } => {
                self.state.put_payload((id, number), sealed.into_inner());
            }
            Record::Service(service) => self.state.put_service(service.into_inner()),
            Record::Task(task) => {
                let mut task = task.into_inner();
                self.state.share_with_service(&mut task);
                self.state.put_task(task);
            }
            Record::Outcome { request, at, outcome } => self.state.remember(request, at, outcome),
            Record::Anchor { task, anchor } => self.state.put_anchor(task, anchor),
            Record::End(count) if count != self.count => {
                return Err(malformed(format!("{} records of {count}", self.count)));
            }
            Record::End(_) => self.ended = true,
        }
        self.count += 1;
        Ok(())
    }

    /// Why a record was not read. A header says what format it has under every version.
    fn unread(&self, record: &[u8], e: &CodecError) -> ReadError {
        match codec::decode(record) {
            Ok(Record::Header { format, .. }) if self.count == 0 && format > self.reads => {
                ReadError::Newer { format, reads: self.reads }
            }
            _ => malformed(format!("number {}: {e}", self.count)),
        }
    }

    /// The state, with its indexes.
    ///
    /// # Errors
    /// If records are missing.
    pub fn finish(self) -> Result<State, ReadError> {
        if !self.ended {
            return Err(malformed("the end is missing".to_string()));
        }
        for (id, material) in &self.state.materials {
            for version in &material.versions {
                if !self.state.payloads.contains_key(&(*id, version.number)) {
                    return Err(malformed(format!("no payload {} of {id}", version.number)));
                }
            }
        }
        Ok(self.state)
    }
}
