//! The chain: what ties one record to the next, and whether it holds.

use std::fmt;

use minicbor::bytes::ByteVec;
use sha2::{Digest, Sha256};
use skep_core::id::{NodeId, TaskId, hex};
use skep_core::time::{Span, Stamp};

use super::record::{Head, Record, What};
use crate::limits::AUDIT_SLACK;

/// A place in a task's chain that the managers remember: no record up to there can be changed
/// later without a trace, whoever keeps the records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// A record's sequence.
    pub sequence: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

/// Hash of a record's bytes.
#[must_use]
pub fn hash(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

/// What the first record of a task names as the hash before it. It binds the chain to one shim.
#[must_use]
pub fn origin(task: &TaskId, key: &[u8; 32]) -> [u8; 32] {
    let label = b"skep-audit/1\0".as_slice();
    let hash = Sha256::new().chain_update(label).chain_update(task.as_str()).chain_update(key);
    hash.finalize().into()
}

/// Something that is not as a shim wrote it, or not there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// No record is there, though managers remember one.
    Nothing {
        /// Sequence of the last one that is remembered.
        anchored: u64,
        /// Whether managers have dropped what is old.
        is_dropped: bool,
    },
    /// Bytes that are no record.
    Unreadable {
        /// How many pieces.
        pieces: usize,
    },
    /// The first record does not begin from this task and its shim's key.
    WrongStart,
    /// The first records are missing.
    LateStart {
        /// Sequence of the first that is there.
        first: u64,
        /// Whether managers have dropped what is old.
        is_dropped: bool,
    },
    /// Records are missing in between.
    Gap {
        /// The last before.
        after: u64,
        /// The first behind.
        before: u64,
        /// Whether the node said itself that its files had no room for them any more.
        is_told: bool,
    },
    /// A record does not follow from the one before: either was changed.
    Edited {
        /// Its sequence.
        sequence: u64,
    },
    /// There are two different records of one sequence: one was made up.
    Twice {
        /// The sequence.
        sequence: u64,
    },
    /// A manager's copy of a record is not the one that the chain goes on from.
    EditedCopy {
        /// Its sequence.
        sequence: u64,
        /// The manager.
        manager: NodeId,
    },
    /// Managers keep different records of one sequence, and nothing tells which is the right one.
    Disputed {
        /// The sequence.
        sequence: u64,
        /// The managers, those that agree together.
        managers: Vec<Vec<NodeId>>,
    },
    /// The record is not the one that managers remember.
    NotAnchored {
        /// Its sequence.
        sequence: u64,
    },
    /// The last records are missing.
    MissingTail {
        /// Sequence of the last that is there.
        last: u64,
        /// Sequence of the last one that managers remember.
        anchored: u64,
    },
    /// A record follows the one that says that none does.
    AfterEnd {
        /// Its sequence.
        sequence: u64,
    },
}

/// Why the oldest records are missing.
const DROPPED: &str = ": managers drop what is old";

impl Finding {
    /// The first record that it concerns.
    #[must_use]
    pub fn first(&self) -> u64 {
        match self {
            Self::Nothing { .. }
            | Self::Unreadable { .. }
            | Self::WrongStart
            | Self::LateStart { .. } => 1,
            Self::Gap { after, .. } => after.saturating_add(1),
            // Either it or the one before was changed.
            Self::Edited { sequence } => sequence.saturating_sub(1),
            Self::Twice { sequence }
            | Self::EditedCopy { sequence, .. }
            | Self::Disputed { sequence, .. }
            | Self::NotAnchored { sequence }
            | Self::AfterEnd { sequence } => *sequence,
            Self::MissingTail { last, .. } => last.saturating_add(1),
        }
    }

    /// One word for what kind it is.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Nothing { .. } => "nothing",
            Self::Unreadable { .. } => "unreadable",
            Self::WrongStart => "wrong-start",
            Self::LateStart { .. } => "late-start",
            Self::Gap { .. } => "gap",
            Self::Edited { .. } => "edited",
            Self::Twice { .. } => "twice",
            Self::EditedCopy { .. } => "edited-copy",
            Self::Disputed { .. } => "disputed",
            Self::NotAnchored { .. } => "not-anchored",
            Self::MissingTail { .. } => "missing-tail",
            Self::AfterEnd { .. } => "after-end",
        }
    }

    /// Whether it is what managers do to old records, and nothing wrong.
    #[must_use]
    pub fn is_explained(&self) -> bool {
        match self {
            Self::Nothing { is_dropped, .. } | Self::LateStart { is_dropped, .. } => *is_dropped,
            _ => false,
        }
    }

    /// The same where managers have dropped what is old.
    #[must_use]
    pub fn after_drop(self, dropped: &Dropped) -> Self {
        match self {
            Self::Nothing { anchored, .. } => {
                Self::Nothing { anchored, is_dropped: dropped.has_all() }
            }
            Self::LateStart { first, .. } => {
                Self::LateStart { first, is_dropped: dropped.has_first() }
            }
            other => other,
        }
    }
}

/// What managers may have dropped of a task, as old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// Some managers have dropped what was written before this; zero if none has.
    pub horizon: Stamp,
    /// When the task was made; none if the state knows it no more.
    pub created: Option<Stamp>,
    /// When managers agreed last how far it had come; none if they never did.
    pub anchored: Option<Stamp>,
}

impl Dropped {
    fn covers(&self, at: Stamp) -> bool {
        self.horizon > Stamp(0) && at <= self.horizon + Span::from_secs(AUDIT_SLACK.as_secs())
    }

    /// Whether it may be the first records: none that is younger than all that was dropped.
    fn has_first(&self) -> bool {
        self.created.map_or(self.horizon > Stamp(0), |created| self.covers(created))
    }

    /// Whether it may be all, the last one that was anchored included.
    fn has_all(&self) -> bool {
        self.anchored.is_some_and(|at| self.covers(at))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing { anchored, is_dropped } => {
                write!(f, "no record is left of {anchored} that were written at least")?;
                f.write_str(if *is_dropped { DROPPED } else { "" })
            }
            Self::Unreadable { pieces } => write!(f, "{pieces} pieces are no records"),
            Self::WrongStart => {
                f.write_str("record 1 does not begin from this task and its supervisor's key")
            }
            Self::LateStart { first, is_dropped } => {
                write!(f, "records 1 to {} are missing", first.saturating_sub(1))?;
                f.write_str(if *is_dropped { DROPPED } else { "" })
            }
            Self::Gap { after, before, is_told } => {
                let (from, to) = (after.saturating_add(1), before.saturating_sub(1));
                write!(f, "records {from} to {to} are missing")?;
                let why = ": their node had no room for them and said so";
                f.write_str(if *is_told { why } else { "" })
            }
            Self::Edited { sequence } => {
                let before = sequence.saturating_sub(1);
                write!(f, "record {sequence} does not follow from record {before}: one was changed")
            }
            Self::Twice { sequence } => write!(f, "there are different records {sequence}"),
            Self::EditedCopy { sequence, manager } => {
                write!(f, "manager {manager} keeps a changed record {sequence}")
            }
            Self::Disputed { sequence, managers } => {
                write!(f, "managers keep different records {sequence}: ")?;
                for (at, agreed) in managers.iter().enumerate() {
                    f.write_str(if at > 0 { " against " } else { "" })?;
                    for (at, manager) in agreed.iter().enumerate() {
                        write!(f, "{}{manager}", if at > 0 { ", " } else { "" })?;
                    }
                }
                Ok(())
            }
            Self::NotAnchored { sequence } => {
                write!(f, "record {sequence} is not the one that the managers remember")
            }
            Self::MissingTail { last, anchored } => {
                let from = last.saturating_add(1);
                write!(f, "records {from} to {anchored} are missing, and what came after them")
            }
            Self::AfterEnd { sequence } => {
                write!(f, "record {sequence} follows the one that says that the task is over")
            }
        }
    }
}

/// One record as the check sees it.
struct Link<'a> {
    head: Head,
    hash: [u8; 32],
    /// None if a later version wrote it.
    record: Option<Record>,
    body: &'a [u8],
}

/// Checks the chain of one task: its records, in any order and some perhaps more than once, against
/// one another and against what managers remember. Nothing found means that nothing is missing or
/// changed up to the last anchor; behind it, that the records agree with one another.
#[must_use]
pub fn verify(task: &TaskId, bodies: &[ByteVec], anchors: &[Anchor]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let links = read(bodies, &mut findings);
    let anchored = anchors.iter().map(|anchor| anchor.sequence).max().unwrap_or(0);
    let (Some(first), Some(last)) = (links.first(), links.last()) else {
        if anchored > 0 {
            findings.push(Finding::Nothing { anchored, is_dropped: false });
        }
        return findings;
    };
    match first.head.sequence {
        1 if is_begun(task, first) => {}
        1 => findings.push(Finding::WrongStart),
        first => findings.push(Finding::LateStart { first, is_dropped: false }),
    }
    let pairs = links.iter().zip(links.iter().skip(1));
    findings.extend(pairs.filter_map(|(one, other)| between(one, other, &links)));
    for anchor in anchors {
        let mut same = links.iter().filter(|link| link.head.sequence == anchor.sequence).peekable();
        if same.peek().is_some() && same.all(|link| link.hash != anchor.hash) {
            findings.push(Finding::NotAnchored { sequence: anchor.sequence });
        }
    }
    if last.head.sequence < anchored {
        findings.push(Finding::MissingTail { last: last.head.sequence, anchored });
    }
    findings
}

/// The records by sequence, each once.
fn read<'a>(bodies: &'a [ByteVec], findings: &mut Vec<Finding>) -> Vec<Link<'a>> {
    let mut links: Vec<Link<'_>> = Vec::with_capacity(bodies.len());
    let mut pieces = 0;
    for body in bodies {
        match Head::parse(body) {
            Ok(head) => {
                let record = Record::parse(body).ok();
                links.push(Link { head, hash: hash(body), record, body });
            }
            Err(_) => pieces += 1,
        }
    }
    if pieces > 0 {
        findings.push(Finding::Unreadable { pieces });
    }
    links.sort_by(|one, other| {
        (one.head.sequence, one.hash).cmp(&(other.head.sequence, other.hash))
    });
    links.dedup_by(|one, other| one.body == other.body);
    links
}

fn is_begun(task: &TaskId, first: &Link<'_>) -> bool {
    let Some(record) = &first.record else { return false };
    record.events.iter().any(|event| match &event.what {
        What::Begun { key } => first.head.previous == origin(task, key),
        _ => false,
    })
}

/// What is wrong between two records that stand one behind the other.
fn between(one: &Link<'_>, other: &Link<'_>, all: &[Link<'_>]) -> Option<Finding> {
    let (before, sequence) = (one.head.sequence, other.head.sequence);
    if before == sequence {
        return Some(Finding::Twice { sequence });
    }
    if sequence - before > 1 {
        let is_told = all.iter().filter(|link| link.head.sequence >= sequence).any(|link| {
            let events = link.record.iter().flat_map(|record| &record.events);
            let mut events = events.map(|event| &event.what);
            events.any(|what| matches!(what, What::Rotated { kept_from } if *kept_from >= sequence))
        });
        return Some(Finding::Gap { after: before, before: sequence, is_told });
    }
    if other.head.previous != one.hash {
        return Some(Finding::Edited { sequence });
    }
    one.record.as_ref().is_some_and(Record::is_last).then_some(Finding::AfterEnd { sequence })
}

impl Anchor {
    /// The place of this record.
    #[must_use]
    pub fn of(head: &Head, body: &[u8]) -> Self {
        Self { sequence: head.sequence, hash: hash(body) }
    }
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.sequence, hex(&self.hash))
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
