//! What of the audit is asked for, and how the answers of several managers become one.

use std::collections::BTreeMap;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use skep_core::id::{MaterialId, NodeId, TaskId};
use skep_core::time::Stamp;

use super::answer::{AuditAnswer, Coverage};
use super::record::{Event, Head, Record, Row};
use crate::limits::AUDIT_FOUND_BYTES;
use crate::wire::audit::Portion;

/// What is asked for. Every part that is there narrows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct AuditQuery {
    /// Only what concerns this secret or config.
    #[n(0)]
    pub material: Option<MaterialId>,
    /// Only what happened at this time or later; zero for all.
    #[n(1)]
    pub since: Stamp,
    /// Only these tasks'; all if there is none.
    #[n(2)]
    pub tasks: Vec<TaskId>,
    /// Only this node's.
    #[n(3)]
    pub node: Option<NodeId>,
    /// Only what happened at this time or earlier; zero for all.
    #[n(4)]
    #[cbor(default)]
    pub until: Stamp,
    /// Only what concerns a secret or config that had this name then.
    #[n(5)]
    #[cbor(default)]
    pub name: Option<String>,
    /// Only what came to its manager from the node it is of, and not from another manager that had
    /// it earlier.
    #[n(6)]
    #[cbor(default)]
    pub is_first_hand: bool,
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
        self.node.is_none_or(|asked| asked == *node)
            && (self.tasks.is_empty() || self.tasks.contains(task))
    }

    /// Whether this record is asked for. One that this version does not understand is not.
    #[must_use]
    pub fn wants(&self, body: &[u8]) -> bool {
        if !self.is_of_one() && self.until == Stamp(0) {
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
        let is_all = record.rows.is_empty() && record.events.is_empty();
        record.rows.retain(|row| self.wants_row(row));
        record.events.retain(|event| self.wants_event(event));
        // The row of the others alone says of one material nothing.
        let is_named = record.rows.iter().any(|row| row.reader.is_some());
        let is_found = is_named || !record.events.is_empty();
        let is_found = is_found || (!self.is_of_one() && (is_all || !record.rows.is_empty()));
        is_found.then_some(record)
    }

    /// Whether one secret or config is asked for.
    #[must_use]
    pub fn is_of_one(&self) -> bool {
        self.material.is_some() || self.name.is_some()
    }

    /// Whether something that went on from `first` to `last` falls into the time asked for.
    fn spans(&self, first: Stamp, last: Stamp) -> bool {
        last >= self.since && (self.until == Stamp(0) || first <= self.until)
    }

    fn wants_row(&self, row: &Row) -> bool {
        self.spans(row.first, row.last)
            && self.material.is_none_or(|id| row.is_of(&id))
            && self.name.as_ref().is_none_or(|name| row.is_named(name))
    }

    fn wants_event(&self, event: &Event) -> bool {
        self.spans(event.at, event.at)
            && self.material.is_none_or(|id| event.what.is_of(&id))
            && self.name.as_ref().is_none_or(|name| event.what.is_named(name))
    }
}

/// Orders entries by time; the rest makes each one's place its own.
type Place = (Stamp, NodeId, TaskId, u64);

/// Answers on their way to one.
#[derive(Debug)]
pub struct Merge {
    query: AuditQuery,
    limit: usize,
    /// With the bytes of each.
    found: BTreeMap<Place, (Record, usize)>,
    bytes: usize,
    is_cut: bool,
    is_disputed: bool,
}

impl Merge {
    /// Keeps the latest `limit` entries of what is asked for, as far as they fit.
    #[must_use]
    pub fn new(query: AuditQuery, limit: usize) -> Self {
        let found = BTreeMap::new();
        Self { query, limit, found, bytes: 0, is_cut: false, is_disputed: false }
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
        let place = (record.at, node, task, record.sequence);
        if let Some((other, _)) = self.found.get(&place) {
            self.is_disputed |= *other != record;
            return;
        }
        self.bytes += body.len();
        self.found.insert(place, (record, body.len()));
        while (self.found.len() > self.limit || self.bytes > AUDIT_FOUND_BYTES)
            && let Some((_, (_, bytes))) = self.found.pop_first()
        {
            self.bytes -= bytes;
            self.is_cut = true;
        }
    }

    /// What there is.
    #[must_use]
    pub fn finish(self) -> AuditAnswer {
        let entry = |((_, node, task, _), (record, _))| Entry { node, task, record };
        AuditAnswer {
            entries: self.found.into_iter().map(entry).collect(),
            is_cut: self.is_cut,
            is_disputed: self.is_disputed,
            coverage: Coverage::default(),
        }
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
        assert_eq!(ask(AuditQuery { tasks: vec![id(1)], ..any() }), both(1));
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

    #[test]
    fn times_narrow_rows_and_events_alike() {
        let any = AuditQuery::default;
        let mut record = Record::parse(&chain(&id(1), id(7), 1)[0]).unwrap();
        record.at = Stamp(100);
        (record.rows[0].first, record.rows[0].last) = (Stamp(10), Stamp(20));
        record.events[0].at = Stamp(30);
        let left = |since, until| {
            let query = AuditQuery { since: Stamp(since), until: Stamp(until), ..any() };
            let left = query.trim(record.clone());
            left.map(|left| (left.rows.len(), left.events.len()))
        };
        assert_eq!(left(0, 0), Some((1, 1)));
        assert_eq!(left(21, 0), Some((0, 1)));
        assert_eq!(left(20, 29), Some((1, 0)));
        assert_eq!(left(0, 9), None);
        assert_eq!(left(31, 0), None);
        assert_eq!(left(101, 0), None);
    }

    #[test]
    fn a_name_finds_what_had_it() {
        let query = |name: &str| AuditQuery { name: Some(name.to_owned()), ..Default::default() };
        let all = [portion(1, 1, 7, 2)];
        assert_eq!(found(&query("db"), 10, &all).len(), 2);
        assert_eq!(found(&query("d"), 10, &all), []);
    }

    #[test]
    fn records_that_differ_are_told() {
        let mut other = portion(1, 1, 7, 2);
        let mut record = Record::parse(&other.bodies[1]).unwrap();
        record.rows[0].opened = 77;
        other.bodies[1] = record.to_body();
        let mut merge = Merge::new(AuditQuery::default(), 10);
        merge.add(&[portion(1, 1, 7, 2), portion(1, 1, 7, 1)]);
        merge.add(&[other]);
        let answer = merge.finish();
        assert!(answer.is_disputed && answer.entries.len() == 2);
    }
}
