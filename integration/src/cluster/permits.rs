//! How many clusters run at once on a machine.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::wait_until;

/// Clusters at once, across all test processes.
const AT_ONCE: usize = 2;
/// Longest wait for others to be done.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Waits until it may start a cluster. The file is locked until it and all copies of its
/// descriptor are closed.
pub(crate) fn permit() -> Result<File> {
    wait_until("a place for a cluster", PATIENCE, || {
        for number in 0..AT_ONCE {
            let path = Path::new("/run").join(format!("skep-test-cluster.{number}.lock"));
            let file = File::options().create(true).append(true).open(&path);
            let file = file.with_context(|| path.display().to_string())?;
            if file.try_lock().is_ok() {
                return Ok(Some(file));
            }
        }
        Ok(None)
    })
}
