//! What the agent keeps of each task in `tasks/<id>/record.json`: enough to show its container
//! and to find its shim again after a restart of the daemon.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use skep_core::assign::TaskAssignment;
use skep_core::id::TaskId;

use crate::files::{FileError, remove_dir, remove_file, write_atomic};
use crate::wire::launch::{EXIT_FILE, LAUNCH_FILE, Launch};
use crate::wire::shim::Exit;

/// The record's file name.
const RECORD_FILE: &str = "record.json";

/// What is kept of a task beside its launch plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The assignment, as CBOR in base64.
    assignment: String,
    /// Image id: `sha256:…`.
    pub image_id: String,
    /// Ports the image exposes.
    pub exposed: Vec<String>,
    /// Labels of the image.
    pub image_labels: skep_core::model::Labels,
    /// Entrypoint after the image's is merged in.
    pub entrypoint: Vec<String>,
    /// Command after the image's is merged in.
    pub cmd: Vec<String>,
    /// Stop signal as a number.
    pub stop_signal: i32,
    /// When the container was made, in nanoseconds since the epoch.
    pub created_ns: u64,
    /// Set when the shim was lost without an exit record.
    #[serde(default)]
    pub lost: Option<Exit>,
}

/// A task found under the data root.
#[derive(Debug)]
pub struct Found {
    /// Its id.
    pub id: TaskId,
    /// Its directory.
    pub dir: PathBuf,
    /// What it was to run; none if the daemon stopped before it was planned.
    pub launch: Option<Launch>,
    /// Its record likewise.
    pub record: Option<Record>,
    /// How it ended, if it did.
    pub exit: Option<Exit>,
}

impl Record {
    /// A record of this assignment with nothing else yet.
    #[must_use]
    pub fn new(assignment: &TaskAssignment, created_ns: u64) -> Self {
        Self {
            assignment: encode(assignment),
            image_id: String::new(),
            exposed: Vec::new(),
            image_labels: Default::default(),
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            stop_signal: 15,
            created_ns,
            lost: None,
        }
    }

    /// The assignment; none if another build wrote it in a way this one cannot read.
    #[must_use]
    pub fn assignment(&self) -> Option<TaskAssignment> {
        let bytes = BASE64.decode(&self.assignment).ok()?;
        crate::wire::parse(&bytes).ok()
    }

    /// Replaces the assignment.
    pub fn set_assignment(&mut self, assignment: &TaskAssignment) {
        self.assignment = encode(assignment);
    }

    /// Writes the record.
    ///
    /// # Errors
    /// Names the file.
    pub fn save(&self, dir: &Path) -> Result<(), FileError> {
        let text = serde_json::to_vec(self).unwrap_or_default();
        write_atomic(&dir.join(RECORD_FILE), &text, 0o600)
    }
}

fn encode(assignment: &TaskAssignment) -> String {
    BASE64.encode(minicbor::to_vec(assignment).unwrap_or_default())
}

/// Writes the launch plan, which the shim reads.
///
/// # Errors
/// Names the file.
pub fn save_launch(dir: &Path, launch: &Launch) -> Result<(), FileError> {
    let bytes = minicbor::to_vec(launch).unwrap_or_default();
    write_atomic(&dir.join(LAUNCH_FILE), &bytes, 0o600)
}

/// Removes a task's directory. Its record goes first: what a crash leaves of the rest is then
/// never taken for a task that is to run.
///
/// # Errors
/// Names what cannot be removed.
pub fn remove(dir: &Path) -> Result<(), FileError> {
    remove_file(&dir.join(RECORD_FILE))?;
    remove_dir(dir)
}

/// The exit record of a task, if it has one.
#[must_use]
pub fn load_exit(dir: &Path) -> Option<Exit> {
    serde_json::from_slice(&std::fs::read(dir.join(EXIT_FILE)).ok()?).ok()
}

/// All tasks under `tasks`. A directory that holds no task of ours is left alone.
///
/// # Errors
/// If the directory cannot be listed.
pub fn scan(tasks: &Path) -> Result<Vec<Found>, FileError> {
    let entries = match std::fs::read_dir(tasks) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(FileError::on("list", tasks))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let dir = entry.map_err(FileError::on("list", tasks))?.path();
        let id = dir.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
        let Some(id) = id else { continue };
        let read = |name: &str| std::fs::read(dir.join(name)).ok();
        found.push(Found {
            id,
            launch: read(LAUNCH_FILE).and_then(|bytes| crate::wire::parse(&bytes).ok()),
            record: read(RECORD_FILE).and_then(|bytes| serde_json::from_slice(&bytes).ok()),
            exit: load_exit(&dir),
            dir,
        });
    }
    Ok(found)
}
