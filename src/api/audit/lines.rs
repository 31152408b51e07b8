//! What is known of the audit as lines of JSON.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Serialize;
use skep_core::id::{NodeId, TaskId};
use skep_core::model::task::Task;
use skep_core::time::Stamp;

use super::super::time::rfc3339;
use super::super::types::audit as wire;
use crate::audit::{
    AuditAnswer, AuditGap, AuditVerdict, Coverage, Entry, Event, Finding, Lost, Record, Row,
    TaskVerdict, What,
};
use crate::gate::{Gate, look};

/// Tasks whose names a follower remembers.
const NAMES: usize = 4_096;

/// `web.1`; of a global service, `web.` and the node's id.
pub(super) fn task_name(task: &Task) -> String {
    match (task.slot, task.node) {
        (0, Some(node)) => format!("{}.{node}", task.service_name),
        (slot, _) => format!("{}.{slot}", task.service_name),
    }
}

/// A record's or verdict's node and task.
type Key = (Option<NodeId>, TaskId);

#[derive(Debug, Clone, Default)]
struct Named {
    hostname: String,
    task: String,
    service: String,
    service_name: String,
}

/// Names of nodes, tasks and services, as far as the state knows them still.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<Key, Named>);

impl Names {
    /// The names of these. Empty where no state can be looked at: that is no reason to show less.
    pub(super) async fn of(gate: &dyn Gate, keys: BTreeSet<Key>) -> Self {
        if keys.is_empty() {
            return Self::default();
        }
        let named = look(gate, |state| {
            let named = keys.into_iter().map(|(node, id)| {
                let found = node.and_then(|node| state.node(&node));
                let task = state.task(&id);
                let named = Named {
                    hostname: found.map(|it| it.description.hostname.clone()).unwrap_or_default(),
                    task: task.map(|task| task_name(task)).unwrap_or_default(),
                    service: task.map(|task| task.service.to_string()).unwrap_or_default(),
                    service_name: task.map(|it| it.service_name.clone()).unwrap_or_default(),
                };
                ((node, id), named)
            });
            named.collect()
        });
        Self(named.await.unwrap_or_default())
    }

    /// Sees to it that these are known.
    pub(super) async fn learn(&mut self, gate: &dyn Gate, node: Option<NodeId>, task: TaskId) {
        if self.0.contains_key(&(node, task)) {
            return;
        }
        if self.0.len() >= NAMES {
            self.0.clear();
        }
        self.0.extend(Self::of(gate, BTreeSet::from([(node, task)])).await.0);
    }

    fn get(&self, key: Key) -> Named {
        self.0.get(&key).cloned().unwrap_or_default()
    }
}

fn line<T: Serialize>(value: &T) -> Bytes {
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}

/// One line of a record.
#[derive(Debug, Clone, Copy)]
enum Part {
    Row(usize),
    Event(usize),
    Lost,
}

/// What of a record becomes a line each, with its time.
fn parts(record: &Record) -> impl Iterator<Item = (Stamp, Part)> {
    let rows = record.rows.iter().enumerate().map(|(at, row)| (row.last, Part::Row(at)));
    let events = record.events.iter().enumerate();
    let events = events.map(|(at, event)| (event.at, Part::Event(at)));
    let lost = (record.lost != Lost::default()).then_some((record.at, Part::Lost));
    rows.chain(events).chain(lost)
}

fn of_part(entry: &Entry, part: Part, names: &Names) -> Option<Bytes> {
    let record = &entry.record;
    let Named { hostname, task, service, service_name } = names.get((Some(entry.node), entry.task));
    let base = wire::Line {
        node: entry.node.to_string(),
        hostname,
        task: entry.task.to_string(),
        task_name: task,
        service,
        service_name,
        record: record.sequence,
        ..wire::Line::default()
    };
    let found = match part {
        Part::Row(at) => of_row(record.rows.get(at)?, base),
        Part::Event(at) => of_event(record.events.get(at)?, base),
        Part::Lost => of_lost(&record.lost, record.at, base),
    };
    Some(line(&found))
}

/// The lines of one record, by time.
pub(super) fn entry(entry: &Entry, names: &Names) -> Vec<Bytes> {
    let mut all: Vec<_> = parts(&entry.record).collect();
    all.sort_by_key(|(time, _)| *time);
    all.into_iter().filter_map(|(_, part)| of_part(entry, part, names)).collect()
}

fn of_row(row: &Row, base: wire::Line) -> wire::Line {
    let reader = row.reader.as_ref().map(|reader| wire::Reader {
        uid: reader.uid,
        gid: reader.gid,
        executable_claim: reader.executable.clone(),
    });
    let (first, last) = (rfc3339(row.first), rfc3339(row.last));
    wire::Line {
        event: "opens",
        time: last.clone(),
        id: row.reader.as_ref().map(|reader| reader.material.to_string()),
        name: row.reader.as_ref().map(|reader| reader.name.clone()),
        version: row.reader.as_ref().map(|reader| reader.version),
        opens: Some(wire::Opens { first, last, opened: row.opened, refused: row.refused, reader }),
        ..base
    }
}

fn of_event(event: &Event, base: wire::Line) -> wire::Line {
    let base = wire::Line { time: rfc3339(event.at), ..base };
    match &event.what {
        What::Begun { .. } => wire::Line { event: "begun", ..base },
        What::Delivered { material, name, version, sequence } => wire::Line {
            event: "delivered",
            id: Some(material.to_string()),
            name: Some(name.clone()),
            version: Some(*version),
            delivery: Some(*sequence),
            ..base
        },
        What::Switched { material, name, from, to, sequence } => wire::Line {
            event: "switched",
            id: Some(material.to_string()),
            name: Some(name.clone()),
            version: Some(*to),
            from: Some(*from),
            delivery: Some(*sequence),
            ..base
        },
        What::Revoked { material, name, version, sequence } => wire::Line {
            event: "revoked",
            id: Some(material.to_string()),
            name: Some(name.clone()),
            version: *version,
            delivery: Some(*sequence),
            ..base
        },
        What::Refused { materials, sequence, reason } => wire::Line {
            event: "refused",
            ids: materials.iter().map(ToString::to_string).collect(),
            delivery: Some(*sequence),
            reason: Some(reason.clone()),
            ..base
        },
        What::Rotated { kept_from } => {
            wire::Line { event: "rotated", kept_from: Some(*kept_from), ..base }
        }
        What::Ended => wire::Line { event: "ended", ..base },
        What::Signalled { materials, signal, sequence } => wire::Line {
            event: "signalled",
            ids: materials.iter().map(ToString::to_string).collect(),
            delivery: Some(*sequence),
            signal: Some(*signal),
            ..base
        },
    }
}

fn of_lost(lost: &Lost, at: Stamp, base: wire::Line) -> wire::Line {
    wire::Line {
        event: "lost",
        time: rfc3339(at),
        lost_events: Some(lost.events),
        failed_writes: Some(lost.failed_writes),
        reason: lost.why.clone(),
        ..base
    }
}

/// The lines of an answer: the latest, by their own times over all records, and behind them what
/// is to be known of them.
pub(super) fn entries(
    found: AuditAnswer,
    limit: Option<usize>,
    names: Names,
) -> impl Iterator<Item = Bytes> + Send {
    let AuditAnswer { entries, is_cut, is_disputed, coverage } = found;
    let of = |(at, entry): (usize, &Entry)| {
        parts(&entry.record).map(move |(time, part)| (time, at, part)).collect::<Vec<_>>()
    };
    let mut all: Vec<(Stamp, usize, Part)> = entries.iter().enumerate().flat_map(of).collect();
    all.sort_by_key(|(time, _, _)| *time);
    let left_out = all.len().saturating_sub(limit.unwrap_or(usize::MAX));
    let shown = all.into_iter().skip(left_out);
    let lines = shown.filter_map(move |(_, at, part)| of_part(entries.get(at)?, part, &names));
    lines.chain(notices(is_cut || left_out > 0, is_disputed, &coverage))
}

fn notice(word: &'static str, node: Option<NodeId>, message: String) -> Bytes {
    line(&wire::Notice {
        notice: word,
        message,
        node: node.map(|node| node.to_string()),
        time: None,
    })
}

/// What is to be known of an answer.
fn notices(is_cut: bool, is_disputed: bool, coverage: &Coverage) -> Vec<Bytes> {
    let mut notices = Vec::new();
    if is_cut {
        let text = "there is more: only the latest is shown; ask with since and until for the rest";
        notices.push(notice("cut", None, text.to_owned()));
    }
    if is_disputed {
        let text = "managers keep different records of the same number: one of them was changed; \
                    verify names it";
        notices.push(notice("disputed", None, text.to_owned()));
    }
    notices.extend(coverage.absent.iter().map(|node| gap(&AuditGap(*node))));
    notices.extend(coverage.damaged.iter().map(|node| {
        let text = format!(
            "manager {node} keeps pieces that do not open: its disk changed them, or somebody did; \
             what they held is shown only if other managers keep it"
        );
        notice("damaged", Some(*node), text)
    }));
    if coverage.horizon > Stamp(0) {
        let time = rfc3339(coverage.horizon);
        notices.push(line(&wire::Notice {
            notice: "dropped",
            message: format!(
                "of what was written before {time} managers have dropped some, as old"
            ),
            node: None,
            time: Some(time),
        }));
    }
    notices
}

/// A manager that does not answer.
pub(super) fn gap(gap: &AuditGap) -> Bytes {
    notice("absent", Some(gap.0), gap.to_string())
}

/// The lines of a verdict, by task.
pub(super) fn verdicts(verdict: AuditVerdict, names: &Names) -> Vec<Bytes> {
    let AuditVerdict { tasks, is_cut, coverage } = verdict;
    let mut lines: Vec<Bytes> = tasks.iter().map(|task| line(&of_task(task, names))).collect();
    lines.extend(notices(false, false, &coverage));
    if is_cut {
        let text = format!(
            "only the first {} tasks were checked: ask with task, node or since for others",
            tasks.len()
        );
        lines.push(notice("cut", None, text));
    }
    lines
}

fn of_task(verdict: &TaskVerdict, names: &Names) -> wire::Verdict {
    let named = names.get((verdict.node, verdict.task));
    wire::Verdict {
        task: verdict.task.to_string(),
        task_name: named.task,
        service: named.service,
        service_name: named.service_name,
        node: verdict.node.map(|node| node.to_string()).unwrap_or_default(),
        hostname: named.hostname,
        records: verdict.records,
        intact: verdict.is_intact(),
        intact_to: verdict.intact_to(),
        anchored_to: verdict.anchored,
        unbound: verdict.last.saturating_sub(verdict.anchored),
        cut: verdict.is_cut,
        findings: verdict.findings.iter().map(of_finding).collect(),
    }
}

fn of_finding(finding: &Finding) -> wire::Finding {
    let managers: Vec<NodeId> = match finding {
        Finding::EditedCopy { manager, .. } => vec![*manager],
        Finding::Disputed { managers, .. } => managers.concat(),
        _ => Vec::new(),
    };
    wire::Finding {
        kind: finding.word(),
        record: finding.first(),
        message: finding.to_string(),
        explained: finding.is_explained(),
        managers: managers.iter().map(ToString::to_string).collect(),
    }
}
