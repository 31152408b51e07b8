//! What of the audit is asked for, and how the answers of several managers become one.

use std::collections::BTreeMap;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use skep_core::id::{MaterialId, NodeId, TaskId};
use skep_core::time::Stamp;

use super::record::{Head, Record};
use crate::wire::audit::Portion;

/// What is asked for. Every part that is there narrows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct AuditQuery {
    /// Only what concerns this secret or config.
    #[n(0)]
    pub material: Option<MaterialId>,
    /// Only what was written at this time or later; zero for all.
    #[n(1)]
    pub since: Stamp,
    /// Only this task's.
    #[n(2)]
    pub task: Option<TaskId>,
    /// Only this node's.
    #[n(3)]
    pub node: Option<NodeId>,
}

/// A record with where it is from. Rows and events are those that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Node.
    pub node: NodeId,
    /// Task.
    pub task: TaskId,
    /// The record.
    pub record: Record,
}

impl AuditQuery {
    /// Whether anything of this task may be asked for.
    #[must_use]
    pub fn admits(&self, node: &NodeId, task: &TaskId) -> bool {
        self.node.is_none_or(|asked| asked == *node) && self.task.is_none_or(|asked| asked == *task)
    }

    /// Whether this record is asked for. One that this version does not understand is not.
    #[must_use]
    pub fn wants(&self, body: &[u8]) -> bool {
        if self.material.is_none() {
            return Head::parse(body).is_ok_and(|head| head.at >= self.since);
        }
        Record::parse(body).is_ok_and(|record| self.trim(record).is_some())
    }

    /// The record without what was not asked for; none if nothing is left.
    #[must_use]
    pub fn trim(&self, mut record: Record) -> Option<Record> {
        if record.at < self.since {
            return None;
        }
        let Some(id) = &self.material else { return Some(record) };
        record.rows.retain(|row| row.is_of(id));
        record.events.retain(|event| event.what.is_of(id));
        // The row of the others alone says of this material nothing.
        let is_named = record.rows.iter().any(|row| row.reader.is_some());
        (is_named || !record.events.is_empty()).then_some(record)
    }
}

/// Orders entries by time; the rest makes each one's place its own.
type Place = (Stamp, NodeId, TaskId, u64);

/// Answers on their way to one.
#[derive(Debug)]
pub struct Merge {
    query: AuditQuery,
    limit: usize,
    found: BTreeMap<Place, Record>,
    is_cut: bool,
}

/// The answers as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    /// By time, each once.
    pub entries: Vec<Entry>,
    /// Whether there were more: these are the latest.
    pub is_cut: bool,
}

impl Merge {
    /// Keeps the latest `limit` entries of what is asked for.
    #[must_use]
    pub fn new(query: AuditQuery, limit: usize) -> Self {
        Self { query, limit, found: BTreeMap::new(), is_cut: false }
    }

    /// Takes what a manager keeps. Several keep the same.
    pub fn add(&mut self, portions: &[Portion]) {
        for Portion { node, task, bodies } in portions {
            if !self.query.admits(node, task) {
                continue;
            }
            for body in bodies {
                self.add_one(*node, *task, body);
            }
        }
    }

    fn add_one(&mut self, node: NodeId, task: TaskId, body: &ByteVec) {
        let record = Record::parse(body).ok().and_then(|record| self.query.trim(record));
        let Some(record) = record else { return };
        self.found.insert((record.at, node, task, record.sequence), record);
        if self.found.len() > self.limit {
            self.found.pop_first();
            self.is_cut = true;
        }
    }

    /// What there is.
    #[must_use]
    pub fn finish(self) -> Merged {
        let entry = |((_, node, task, _), record)| Entry { node, task, record };
        Merged { entries: self.found.into_iter().map(entry).collect(), is_cut: self.is_cut }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{chain, id};
    use super::*;

    fn portion(node: u8, task: u8, material: u8, count: u64) -> Portion {
        let bodies = chain(&id(task), id(material), count);
        Portion { node: id(node), task: id(task), bodies }
    }

    fn found(query: &AuditQuery, limit: usize, portions: &[Portion]) -> Vec<(TaskId, u64)> {
        let mut merge = Merge::new(query.clone(), limit);
        merge.add(portions);
        merge.add(portions);
        let entries = merge.finish().entries;
        entries.iter().map(|entry| (entry.task, entry.record.sequence)).collect()
    }

    #[test]
    fn answers_become_one_by_time_and_each_record_comes_once() {
        let all = [portion(1, 1, 7, 2), portion(2, 2, 8, 2)];
        let any = AuditQuery::default();
        let mut expected = vec![(id(1), 1), (id(2), 1), (id(1), 2), (id(2), 2)];
        assert_eq!(found(&any, 10, &all), expected);
        assert_eq!(found(&any, 3, &all), expected.split_off(1));
        let mut merge = Merge::new(any, 3);
        merge.add(&all);
        assert!(merge.finish().is_cut);
    }

    #[test]
    fn every_part_of_a_question_narrows_it() {
        let all = [portion(1, 1, 7, 2), portion(2, 2, 8, 2)];
        let ask = |query: AuditQuery| found(&query, 10, &all);
        let both = |task| vec![(id(task), 1), (id(task), 2)];
        let any = AuditQuery::default;
        assert_eq!(ask(AuditQuery { material: Some(id(8)), ..any() }), both(2));
        assert_eq!(ask(AuditQuery { task: Some(id(1)), ..any() }), both(1));
        assert_eq!(ask(AuditQuery { node: Some(id(2)), ..any() }), both(2));
        let late = AuditQuery { since: Stamp(2_000_000_000), ..any() };
        assert_eq!(ask(late), [(id(1), 2), (id(2), 2)]);
        assert_eq!(ask(AuditQuery { material: Some(id(9)), ..any() }), []);
    }

    #[test]
    fn of_a_record_only_what_was_asked_for_is_shown() {
        let body = &chain(&id(1), id(7), 1)[0];
        let mut record = Record::parse(body).unwrap();
        record.rows.push(super::super::testing::row(id(8), 1));
        let query = AuditQuery { material: Some(id(8)), ..AuditQuery::default() };
        let trimmed = query.trim(record.clone()).unwrap();
        assert_eq!((trimmed.rows.len(), trimmed.events.len()), (1, 0));
        assert!(query.wants(&record.to_body()) && !query.wants(body));
    }
}
