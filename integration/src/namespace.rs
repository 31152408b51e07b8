//! Entering a network namespace, and only that: `ip netns exec` would also change `/sys` and with
//! it hide the cgroups.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// Path of a namespace that `ip netns` made.
pub(crate) fn path_of(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Has `command` start in a network namespace.
pub(crate) fn enter(command: &mut Command, namespace: &Path) -> Result<()> {
    let file = File::open(namespace).with_context(|| namespace.display().to_string())?;
    let entered = move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    // SAFETY: between fork and exec it makes one system call and allocates nothing.
    unsafe { command.pre_exec(entered) };
    Ok(())
}

/// Runs `work` in a network namespace, on a thread of its own.
pub(crate) fn within<T: Send>(
    namespace: &Path,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let file = File::open(namespace).with_context(|| namespace.display().to_string())?;
    thread::scope(|scope| {
        let done = scope.spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        done.join().map_err(|_| anyhow!("the thread in {} died", namespace.display()))?
    })
}
