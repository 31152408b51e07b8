//! Telling the kernel to forget, from a thread that serves nothing.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;

use fuser::{INodeNo, Notifier};

use crate::limits;

/// Inodes to forget, and whom to tell when that is done.
struct Batch {
    inodes: Vec<u64>,
    done: SyncSender<()>,
}

/// The queue to the notifier's thread.
#[derive(Debug)]
pub(crate) struct Notifications {
    queue: SyncSender<Batch>,
}

/// Why the kernel may not have forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotifyError {
    /// The kernel took too long. It may still follow.
    #[error("the kernel did not drop what it caches in time")]
    Late,
    /// More changes are waiting than the queue holds.
    #[error("too many changes at once")]
    Busy,
    /// The filesystem has ended.
    #[error("the filesystem has ended")]
    Ended,
}

impl Notifications {
    /// Starts the thread; it begins with the first notifier that arrives.
    pub(crate) fn start(notifier: Receiver<Notifier>) -> io::Result<Notifications> {
        let (queue, batches) = mpsc::sync_channel::<Batch>(limits::NOTIFICATIONS);
        thread::Builder::new().name("fuse-notify".into()).spawn(move || {
            let Ok(notifier) = notifier.recv() else { return };
            for batch in batches {
                for ino in batch.inodes {
                    // What the kernel does not know it need not forget, and a filesystem that
                    // has ended caches nothing that can be opened.
                    if let Err(error) = notifier.inval_inode(INodeNo(ino), 0, 0) {
                        tracing::debug!(ino, %error, "invalidation refused");
                    }
                }
                // The asker may have given up waiting.
                let _ = batch.done.try_send(());
            }
        })?;
        Ok(Notifications { queue })
    }

    /// Has the kernel forget attributes and pages of these inodes and waits until it did.
    pub(crate) fn invalidate(&self, inodes: Vec<u64>) -> Result<(), NotifyError> {
        if inodes.is_empty() {
            return Ok(());
        }
        let (done, wait) = mpsc::sync_channel(1);
        self.queue.try_send(Batch { inodes, done }).map_err(|error| match error {
            TrySendError::Full(_) => NotifyError::Busy,
            TrySendError::Disconnected(_) => NotifyError::Ended,
        })?;
        wait.recv_timeout(limits::INVALIDATE_WAIT).map_err(|error| match error {
            RecvTimeoutError::Timeout => NotifyError::Late,
            RecvTimeoutError::Disconnected => NotifyError::Ended,
        })
    }
}
