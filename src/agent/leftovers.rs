//! What a killed shim may leave behind: processes in its cgroups, runc's state, its run
//! directory. Its mounts went with its namespace.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::engine::cgroup::{CgroupError, Cgroups};
use crate::engine::runc::Runc;
use crate::files::{FileError, remove_dir};
use crate::wire::launch::Launch;

/// How long killed processes may take to go.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// How long the runtime may take to forget a container.
const RUNC_WAIT: Duration = Duration::from_secs(10);
/// Pause between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Where a task leaves traces on its node, beside its directory.
#[derive(Debug, Clone)]
pub(super) struct Traces {
    cgroup: String,
    shim_cgroup: String,
    runtime: String,
    runc_root: String,
    container_id: String,
    pub(super) run_dir: PathBuf,
}

/// Something stays behind.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClearError {
    /// Processes do not die, or their group cannot be reached.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The run directory stays.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Traces {
    /// The traces that this plan leaves.
    #[must_use]
    pub(super) fn of(launch: &Launch) -> Self {
        Self {
            cgroup: launch.cgroup.clone(),
            shim_cgroup: launch.shim_cgroup.clone(),
            runtime: launch.runtime.clone(),
            runc_root: launch.runc_root.clone(),
            container_id: launch.container_id.clone(),
            run_dir: PathBuf::from(&launch.run_dir),
        }
    }

    /// Kills what still runs and removes what is left. Blocking; the shim is gone already, or
    /// goes now.
    ///
    /// # Errors
    /// [`ClearError`].
    pub(super) fn clear(&self) -> Result<(), ClearError> {
        let cgroups = Cgroups::detect()?;
        // A shim that does not die must not save its container.
        let shim = cgroups.kill_all(&self.shim_cgroup, &[], KILL_WAIT);
        cgroups.kill_all(&self.cgroup, &[], KILL_WAIT).and(shim)?;
        let runc = Runc::new(&self.runtime, &self.runc_root);
        if runc.knows(&self.container_id) {
            // Its processes are dead; what runc says of that is of no use to anyone.
            run(&mut runc.delete(&self.container_id));
        }
        for group in [&self.shim_cgroup, &self.cgroup] {
            cgroups.remove(group);
        }
        Ok(remove_dir(&self.run_dir)?)
    }
}

/// Runs a command to its end; kills it if that takes too long.
fn run(command: &mut Command) {
    let Ok(mut child) = command.spawn() else { return };
    let since = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if since.elapsed() > RUNC_WAIT {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
