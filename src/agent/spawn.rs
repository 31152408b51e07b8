//! Starting a task's shim, and waiting until it listens.

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use super::program::Supervisor;
use crate::limits::SHIM_START;

/// Bytes of a shim's complaint that are kept.
const COMPLAINT_BYTES: u64 = 4096;

/// A shim did not come up.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The process could not be made.
    #[error("cannot start the task's supervisor")]
    Spawn(#[from] std::io::Error),
    /// It ended before it listened.
    #[error("the task's supervisor did not start: {0}")]
    Ended(String),
    /// It took too long.
    #[error("the task's supervisor did not listen within {} s", SHIM_START.as_secs())]
    Timeout,
}

/// Spawns the shim of the task in `task_dir` and returns once it listens.
///
/// The shim leaves the daemon's session and directory by itself: what the library must do between
/// fork and exec would cost a copy of all the daemon's page tables. This waits for its end only so
/// that it leaves no zombie.
///
/// # Errors
/// [`SpawnError`].
pub async fn spawn_shim(supervisor: &Supervisor, task_dir: &Path) -> Result<u32, SpawnError> {
    let mut child = Command::new(supervisor.path())
        .arg0("skep")
        .arg("shim")
        .arg("--task")
        .arg(task_dir)
        .env_clear()
        .env(
            "PATH",
            std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(false)
        .spawn()?;
    let pid = child.id().unwrap_or(0);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ready = async {
        let mut line = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout.take(64)).read_line(&mut line).await?;
        }
        if line.trim() == "ready" {
            return Ok(());
        }
        let mut complaint = String::new();
        if let Some(stderr) = stderr {
            // Text that is no UTF-8 is no message of ours.
            let _ = stderr.take(COMPLAINT_BYTES).read_to_string(&mut complaint).await;
        }
        Err(SpawnError::Ended(complaint.trim().to_owned()))
    };
    let mut outcome = tokio::time::timeout(SHIM_START, ready).await;
    if outcome.is_err() {
        // It may be gone already.
        let _ = child.start_kill();
    }
    if let Ok(Err(SpawnError::Ended(said))) = &mut outcome
        && said.is_empty()
        && let Ok(Ok(status)) = tokio::time::timeout(SHIM_START, child.wait()).await
    {
        *said = status.to_string();
    }
    tokio::spawn(async move { child.wait().await });
    outcome.unwrap_or(Err(SpawnError::Timeout)).map(|()| pid)
}
