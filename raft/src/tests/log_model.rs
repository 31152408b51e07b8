//! What a log must hold after a history, and what it may hold after one that was cut short.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::StorageKey;
use crate::index::Found;
use crate::log::{Log, OpenError, WriteError, lock};
use crate::record::Write;
use crate::testing::CrashDisk;
use crate::types::{Entry, EntryPayload, LogId, Payload, Position, VoteRecord};

pub(crate) fn open(disk: &CrashDisk) -> Result<Log, OpenError> {
    Log::open(Arc::new(disk.clone()), Arc::new(StorageKey::new([3; 32])))
}

pub(crate) fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let payload = vec![(index % 251) as u8 ^ (term % 7) as u8; bytes];
    let payload = EntryPayload::Normal(Payload(Arc::from(payload)));
    Entry { log_id: LogId::from(Position { term, index }), payload }
}

pub(crate) fn append(log: &mut Log, entries: &[Entry]) -> Result<(), WriteError> {
    let writes: Vec<Write> = entries.iter().cloned().map(Write::Entry).collect();
    for entry in entries {
        lock(&log.index()).push(entry.clone(), None).unwrap();
    }
    log.write(&writes)
}

pub(crate) fn entries(log: &Log) -> Vec<Entry> {
    let found = lock(&log.index()).get(0, u64::MAX);
    found.into_iter().map(|found| Found::read(found).unwrap()).collect()
}

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Append { count: u64, bytes: usize },
    Vote,
    Commit,
    Truncate { back: u64 },
    Purge { ahead: u64 },
    Scrub,
    Prepare,
    Reopen,
}

/// What the log must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Model {
    entries: BTreeMap<u64, Entry>,
    purged: Option<u64>,
    vote: Option<u64>,
    committed: Option<u64>,
    next: u64,
    term: u64,
}

impl Model {
    /// What may be found if `op` was cut short.
    pub(crate) fn may_become(&self, op: &Op) -> Vec<Self> {
        let mut models = vec![self.clone()];
        let mut last = self.clone();
        match *op {
            Op::Append { count, bytes } => {
                for _ in 0..count {
                    last.entries.insert(last.next, entry(last.term, last.next, bytes));
                    last.next += 1;
                    models.push(last.clone());
                }
            }
            Op::Vote => {
                last.term += 1;
                last.vote = Some(last.term);
                models.push(last);
            }
            Op::Commit => {
                last.committed = last.next.checked_sub(1);
                models.push(last);
            }
            Op::Truncate { back } => {
                // What is committed or purged is never truncated.
                let floor = last.purged.max(last.committed).map_or(0, |at| at + 1);
                last.next = last.next.saturating_sub(back).max(floor);
                last.entries.split_off(&last.next);
                last.term += 1;
                models.push(last);
            }
            Op::Purge { ahead } => {
                let upto = (last.purged.map_or(0, |at| at + 1) + ahead).min(last.next);
                if let Some(upto) = upto.checked_sub(1) {
                    last.purged = last.purged.max(Some(upto));
                    last.entries = last.entries.split_off(&(upto + 1));
                    models.push(last);
                }
            }
            Op::Scrub | Op::Prepare | Op::Reopen => {}
        }
        models
    }

    pub(crate) fn matches(&self, log: &Log) -> bool {
        let found = entries(log);
        let index = log.index();
        let index = lock(&index);
        found.iter().eq(self.entries.values())
            && index.purged().map(|at| at.index) == self.purged
            && index.vote.map(|vote| vote.term) == self.vote
            // What is committed is written with the next batch: it may be behind.
            && index.committed.map(|at| at.index) <= self.committed
    }
}

pub(crate) fn run(
    log: &mut Log,
    disk: &CrashDisk,
    model: &Model,
    op: &Op,
) -> Result<(), WriteError> {
    let at = |index: u64| Position { term: model.term, index };
    match *op {
        Op::Append { count, bytes } => {
            let new = (model.next..model.next + count).map(|i| entry(model.term, i, bytes));
            append(log, &new.collect::<Vec<_>>())
        }
        Op::Vote => {
            let vote = VoteRecord { term: model.term + 1, node: 1, committed: true };
            log.write(&[Write::Vote(vote)])
        }
        Op::Commit => model
            .next
            .checked_sub(1)
            .map_or(Ok(()), |last| log.write(&[Write::Committed(at(last))])),
        Op::Truncate { .. } => {
            let next = model.may_become(op).pop().unwrap().next;
            log.truncate_after(next.checked_sub(1).map(at))
        }
        Op::Purge { .. } => {
            let purged = model.may_become(op).pop().unwrap().purged;
            if purged == model.purged { Ok(()) } else { log.purge(at(purged.unwrap())) }
        }
        Op::Scrub => log.scrub(),
        Op::Prepare => {
            log.prepare();
            Ok(())
        }
        Op::Reopen => {
            log.close()?;
            match open(disk) {
                Ok(new) => *log = new,
                Err(OpenError::Disk { action, source }) => {
                    return Err(WriteError { action, source });
                }
                Err(e) => panic!("{e}"),
            }
            Ok(())
        }
    }
}
