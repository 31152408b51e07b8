//! The audit: one object per line.

use serde::Serialize;

/// Something that happened to a secret or config in a task. Fields that an event has nothing to
/// say in are left out.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Line {
    /// `opens`, `begun`, `delivered`, `switched`, `signalled`, `revoked`, `refused`, `rotated`,
    /// `ended` or `lost`.
    pub(in crate::api) event: &'static str,
    /// When; of opens, the last.
    pub(in crate::api) time: String,
    #[serde(rename = "NodeID")]
    pub(in crate::api) node: String,
    /// Empty if the node is forgotten.
    pub(in crate::api) hostname: String,
    #[serde(rename = "TaskID")]
    pub(in crate::api) task: String,
    /// As `web.1`; empty if the task is forgotten.
    pub(in crate::api) task_name: String,
    #[serde(rename = "ServiceID")]
    pub(in crate::api) service: String,
    pub(in crate::api) service_name: String,
    /// Number of the record in the chain of its task.
    pub(in crate::api) record: u64,
    /// Of the secret or config.
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    pub(in crate::api) id: Option<String>,
    /// Of the secret or config, at that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) version: Option<u64>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(in crate::api) opens: Option<Opens>,
    /// Version before a switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) from: Option<u64>,
    /// Number of a delivery or revocation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) delivery: Option<u64>,
    /// What a refused delivery held, or what a signal was sent for.
    #[serde(rename = "IDs", skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) ids: Vec<String>,
    /// Why something was refused or lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) reason: Option<String>,
    /// Number of a signal that was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) signal: Option<i32>,
    /// The first record that the node still has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) kept_from: Option<u64>,
    /// Events that are missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) lost_events: Option<u64>,
    /// Writes that failed before this record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) failed_writes: Option<u64>,
}

/// Opens by one reader between two records.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Opens {
    pub(in crate::api) first: String,
    pub(in crate::api) last: String,
    pub(in crate::api) opened: u64,
    pub(in crate::api) refused: u64,
    /// None for all readers that had no row of their own.
    #[serde(flatten)]
    pub(in crate::api) reader: Option<Reader>,
}

/// Who opened.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Reader {
    #[serde(rename = "UID")]
    pub(in crate::api) uid: u32,
    #[serde(rename = "GID")]
    pub(in crate::api) gid: u32,
    /// What the kernel names the process's executable, which the process may have arranged. None
    /// if it was gone before it was looked at.
    pub(in crate::api) executable_claim: Option<String>,
}

/// Something about the answer itself.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Notice {
    /// `absent`, `damaged`, `dropped`, `cut` or `disputed`.
    pub(in crate::api) notice: &'static str,
    /// The same for people.
    pub(in crate::api) message: String,
    /// The manager that it is about.
    #[serde(rename = "NodeID", skip_serializing_if = "Option::is_none")]
    pub(in crate::api) node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) time: Option<String>,
}

/// Whether the chain of a task holds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Verdict {
    #[serde(rename = "TaskID")]
    pub(in crate::api) task: String,
    pub(in crate::api) task_name: String,
    #[serde(rename = "ServiceID")]
    pub(in crate::api) service: String,
    pub(in crate::api) service_name: String,
    /// Empty if it is not known.
    #[serde(rename = "NodeID")]
    pub(in crate::api) node: String,
    pub(in crate::api) hostname: String,
    /// Records that were checked.
    pub(in crate::api) records: usize,
    /// Whether all was checked and nothing is wrong.
    pub(in crate::api) intact: bool,
    /// The last record up to which nothing is wrong.
    pub(in crate::api) intact_to: u64,
    /// The last record that is bound to what managers remember.
    pub(in crate::api) anchored_to: u64,
    /// Records behind that: not bound to anything yet.
    pub(in crate::api) unbound: u64,
    /// Whether there were too many records to check all.
    pub(in crate::api) cut: bool,
    pub(in crate::api) findings: Vec<Finding>,
}

/// Something that is wrong, or would be if managers had not dropped what is old.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Finding {
    /// One word.
    pub(in crate::api) kind: &'static str,
    /// The first record that it concerns.
    pub(in crate::api) record: u64,
    /// The same for people.
    pub(in crate::api) message: String,
    /// Whether age explains it.
    pub(in crate::api) explained: bool,
    /// Managers whose copies it concerns, if it is about copies.
    pub(in crate::api) managers: Vec<String>,
}
