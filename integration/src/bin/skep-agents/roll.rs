//! Who has its tasks, and who has found a manager again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};
use skep_core::id::TaskId;
use tokio::sync::Notify;

/// What is known of one agent.
#[derive(Debug, Default, Clone)]
struct Row {
    manager: Option<IpAddr>,
    tasks: BTreeSet<TaskId>,
    /// Its tasks when it was marked, while its new session is waited for.
    marked: Option<BTreeSet<TaskId>>,
}

#[derive(Debug)]
struct Rows {
    all: Vec<Row>,
    at: Instant,
    /// When each marked agent was back, in seconds after the mark.
    back: Vec<f64>,
    /// Tasks that a marked agent had and has no more.
    replaced: usize,
}

/// All agents.
#[derive(Debug)]
pub(crate) struct Roll {
    rows: Mutex<Rows>,
    tasks: usize,
    changed: Notify,
}

impl Roll {
    pub(crate) fn new(agents: usize, tasks: usize) -> Self {
        let all = vec![Row::default(); agents];
        let rows = Rows { all, at: Instant::now(), back: Vec::new(), replaced: 0 };
        Self { rows: Mutex::new(rows), tasks, changed: Notify::new() }
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An agent was told what it has to run; `is_complete` by the first word of a session.
    pub(crate) fn note(
        &self,
        number: usize,
        is_complete: bool,
        manager: Option<IpAddr>,
        tasks: &BTreeSet<TaskId>,
    ) {
        let mut rows = self.rows();
        let elapsed = rows.at.elapsed().as_secs_f64();
        let Some(row) = rows.all.get_mut(number) else { return };
        (row.manager, row.tasks) = (manager, tasks.clone());
        if is_complete
            && tasks.len() == self.tasks
            && let Some(before) = row.marked.take()
        {
            let replaced = before.difference(tasks).count();
            rows.back.push(elapsed);
            rows.replaced += replaced;
        }
        drop(rows);
        self.changed.notify_one();
    }

    /// Waits until every agent has its tasks.
    pub(crate) async fn running(&self) {
        loop {
            if self.rows().all.iter().all(|row| row.tasks.len() == self.tasks) {
                return;
            }
            self.changed.notified().await;
        }
    }

    /// Marks all agents, or those with sessions at one manager; how many they are.
    pub(crate) fn mark(&self, of: Option<IpAddr>) -> usize {
        let mut rows = self.rows();
        rows.at = Instant::now();
        rows.back.clear();
        rows.replaced = 0;
        let chosen = rows.all.iter_mut().filter(|row| of.is_none() || row.manager == of);
        chosen.map(|row| row.marked = Some(row.tasks.clone())).count()
    }

    /// Waits until every marked agent has a new session and all its tasks by it.
    pub(crate) async fn again(&self) -> Value {
        loop {
            if let Some(said) = self.are_back() {
                return said;
            }
            self.changed.notified().await;
        }
    }

    fn are_back(&self) -> Option<Value> {
        let rows = self.rows();
        rows.all.iter().all(|row| row.marked.is_none()).then(|| {
            let median = rows.back.get(rows.back.len() / 2);
            json!({
                "said": "again", "agents": rows.back.len(), "first_s": rows.back.first(),
                "median_s": median, "last_s": rows.back.last(), "replaced": rows.replaced,
            })
        })
    }
}
