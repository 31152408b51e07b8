//! A node that has lost its managers stops the tasks that are not to outlive that.

use skep_core::id::TaskId;
use skep_core::isolation::{OnIsolation, stops};
use skep_core::time::Span;
use tokio::time::interval;

use super::wanted::Wanted;
use super::{Agent, lock};
use crate::clock::uptime;
use crate::limits::SESSION_BEAT;

impl Agent {
    /// Looks after that for as long as it is polled. The time counts from the last word of a
    /// manager, or from the start of this daemon.
    pub async fn mind_isolation(&self) {
        let mut look = interval(SESSION_BEAT);
        loop {
            look.tick().await;
            let alone = Span(uptime().0.saturating_sub(lock(&self.contact).0));
            for id in self.due(alone) {
                tracing::warn!(
                    task = %id,
                    "no manager was heard of for {} s: a task is stopped, as its service wants it",
                    alone.as_millis() / 1_000
                );
                if let Some(handle) = lock(&self.tasks).get(&id) {
                    handle.wanted.send_if_modified(Wanted::isolate);
                }
            }
        }
    }

    /// Tasks that are to run no longer on a node that has been alone for so long.
    fn due(&self, alone: Span) -> Vec<TaskId> {
        let tasks = lock(&self.tasks);
        let running = tasks.iter().filter_map(|(id, handle)| {
            let wanted = handle.wanted.borrow();
            let assignment = wanted.assignment().filter(|_| !wanted.is_over())?;
            Some((id, OnIsolation::of(&assignment.task.spec.container)))
        });
        stops(alone, running)
    }
}
