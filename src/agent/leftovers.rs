//! What a killed shim may leave behind: processes in its cgroups, runc's state, its run
//! directory. Its mounts went with its namespace.

use std::path::PathBuf;
use std::time::Duration;

use crate::engine::cgroup::{CgroupError, Cgroups};
use crate::engine::runc::Runc;
use crate::files::{FileError, remove_dir};
use crate::wire::launch::Launch;

/// How long killed processes may take to go.
const KILL_WAIT: Duration = Duration::from_secs(5);

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
        for group in [&self.shim_cgroup, &self.cgroup] {
            cgroups.kill_all(group, KILL_WAIT)?;
        }
        let runc = Runc::new(&self.runtime, &self.runc_root);
        if runc.knows(&self.container_id) {
            // Its processes are dead; what runc says of that is of no use to anyone.
            let _ = runc.delete(&self.container_id).output();
        }
        for group in [&self.shim_cgroup, &self.cgroup] {
            cgroups.remove(group);
        }
        Ok(remove_dir(&self.run_dir)?)
    }
}
