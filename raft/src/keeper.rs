//! Keeps the log short: snapshots and purges by entries, bytes and deadlines.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use skep_core::time::Span;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::limits::{
    KEEPER_PERIOD, KEPT_ENTRIES, PURGE_MARGIN, SCRUB_LOG_BYTES, SNAPSHOT_ENTRIES,
    SNAPSHOT_LOG_BYTES, SNAPSHOT_SEGMENTS, SNAPSHOT_WAIT,
};
use crate::machine;
use crate::node::Inner;

/// Starts the task that looks after the log until `stop` says true.
pub(crate) fn start(inner: &Arc<Inner>, mut stop: watch::Receiver<bool>) {
    let (mut applied, asked) = (inner.shared.applied(), inner.shared.purge_asked());
    // A handle of its own would keep the node alive that it belongs to.
    let inner = Arc::downgrade(inner);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                changed = applied.changed() => if changed.is_err() { return },
                () = asked.notified() => {}
                () = tokio::time::sleep(KEEPER_PERIOD) => {}
            }
            let Some(inner) = inner.upgrade() else { return };
            inner.settle().await;
            let Some(reason) = wanted(&inner) else { continue };
            if let Err(e) = snapshot(&inner, reason == Reason::Deletion).await {
                tracing::warn!("snapshot of the raft log failed, trying again: {e}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    });
}

/// Why the log should become shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Length,
    Deletion,
}

fn wanted(inner: &Inner) -> Option<Reason> {
    let metrics = inner.metrics();
    let margin = Span::from_millis(u64::try_from(PURGE_MARGIN.as_millis()).unwrap_or(0));
    if inner.shared.purge_due().is_some_and(|due| (inner.clock)() + margin >= due) {
        return Some(Reason::Deletion);
    }
    let applied = metrics.applied_index.map_or(0, |at| at + 1);
    let covered = metrics.snapshot_index.map_or(0, |at| at + 1);
    let since = applied.saturating_sub(covered);
    let long = since >= SNAPSHOT_ENTRIES
        || (since > 0 && metrics.log_bytes >= SNAPSHOT_LOG_BYTES)
        || (since > 0 && metrics.log_segments >= SNAPSHOT_SEGMENTS);
    long.then_some(Reason::Length)
}

/// Writes a snapshot and purges the log: all of it if `scrub`, so that no file holds what was
/// deleted before; else a tail stays for slow followers.
pub(crate) async fn snapshot(inner: &Inner, scrub: bool) -> io::Result<()> {
    let slow =
        |what: &str| io::Error::new(io::ErrorKind::TimedOut, format!("{what} takes too long"));
    let stopped = |_| io::Error::other("raft stopped");
    // A snapshot of this entry or a later one holds no older key.
    let (oldest_key, last) = inner.shared.oldest_key_then();
    let Some(upto) = last else { return Ok(()) };
    if inner.metrics().snapshot_index.is_none_or(|at| at < upto) {
        machine::keep_now(&inner.shared).await?;
        inner.raft.trigger().snapshot().await.map_err(stopped)?;
    }
    let wait = inner.raft.wait(Some(SNAPSHOT_WAIT));
    let done = wait.metrics(
        |metrics| metrics.snapshot.as_ref().is_some_and(|id| id.index >= upto),
        "snapshot",
    );
    let done = done.await.map_err(|_| slow("writing a snapshot"))?;
    let covered = done.snapshot.map_or(upto, |id| id.index);

    let keep = if scrub || inner.is_sole_voter() { 0 } else { KEPT_ENTRIES };
    let Some(purge) = covered.checked_sub(keep) else { return Ok(()) };
    inner.raft.trigger().purge_log(purge).await.map_err(stopped)?;
    let wait = inner.raft.wait(Some(SNAPSHOT_WAIT));
    let purged = wait
        .metrics(|metrics| metrics.purged.as_ref().is_some_and(|id| id.index >= purge), "purge");
    purged.await.map_err(|_| slow("purging the log"))?;
    let stale = inner.is_sole_voter() && inner.metrics().log_bytes >= SCRUB_LOG_BYTES;
    if scrub || stale {
        timeout(SNAPSHOT_WAIT, inner.store.scrub())
            .await
            .map_err(|_| slow("rewriting the log"))??;
        inner.shared.purged();
        inner.shared.purged_keys(oldest_key);
    }
    Ok(())
}
