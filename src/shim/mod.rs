//! One task's supervisor: holds its secrets, serves its filesystem, parents its container, runs
//! its execs, keeps its log and records its exit. Threads only; it outlives the daemon.
//!
//! The main thread owns the state ([`task`]). Beside it: the reaper, the log's copier, the
//! filesystem's own threads, and one thread for each start or exec while it lasts.

mod audit;
mod bundle;
mod console;
mod events;
mod exec;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod ledger;
mod link;
mod log;
mod materials;
mod mounts;
mod reaper;
mod record;
mod sentinel;
mod start;
mod task;
mod user;

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::libc;
use nix::sys::prctl::{set_child_subreaper, set_dumpable};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};

use crate::chain::chain;
use crate::engine::cgroup::{CgroupError, Cgroups};
use crate::engine::runc::Runc;
use crate::seal::{SealError, SealKeyPair};
use crate::wire::launch::{LAUNCH_FILE, Launch};
use crate::wire::{WireError, parse};
use mounts::MountError;
use sentinel::Sentinel;

/// Stack of a thread that starts a container or an exec.
const WORKER_STACK_BYTES: usize = 128 << 10;
/// Stack of a thread that makes a few system calls.
const SMALL_STACK_BYTES: usize = 64 << 10;
/// What the shim tells its parent once its socket exists.
const READY: &[u8] = b"ready\n";
/// The kernel's killer takes the container long before its shim.
const OOM_SCORE_ADJ: &[u8] = b"-999";

/// Why a shim could not begin.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("cannot read {}", path.display())]
    Launch { path: PathBuf, source: io::Error },
    #[error("{} is not a launch of this version", path.display())]
    Format { path: PathBuf, source: WireError },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("no key to seal to")]
    Key(#[from] SealError),
    #[error("cannot {what}")]
    System { what: &'static str, source: io::Error },
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> BootError {
    move |e| BootError::System { what, source: e.into() }
}

/// What is known of a task before it begins, and stays so.
#[derive(Debug)]
struct Plan {
    launch: Launch,
    cgroups: Cgroups,
    runc: Runc,
    /// Where the container's root is mounted.
    rootfs: PathBuf,
    /// Where the secrets' filesystem is mounted.
    secrets: PathBuf,
    /// The runtime's bundle.
    bundle: PathBuf,
}

impl Plan {
    fn read(dir: &Path) -> Result<Self, BootError> {
        let path = dir.join(LAUNCH_FILE);
        let bytes =
            fs::read(&path).map_err(|source| BootError::Launch { path: path.clone(), source })?;
        let launch: Launch = parse(&bytes).map_err(|source| BootError::Format { path, source })?;
        let run_dir = Path::new(&launch.run_dir);
        Ok(Self {
            cgroups: Cgroups::detect()?,
            runc: Runc::new(&launch.runtime, &launch.runc_root),
            rootfs: run_dir.join("rootfs"),
            secrets: run_dir.join("secrets"),
            bundle: run_dir.join("bundle"),
            launch,
        })
    }

    fn run_dir(&self) -> &Path {
        Path::new(&self.launch.run_dir)
    }

    fn task_dir(&self) -> &Path {
        Path::new(&self.launch.task_dir)
    }

    /// Removes what the shim put into the run directory. Mount points go only once nothing is
    /// mounted there any more: never recursively.
    fn clear_run_dir(&self) {
        let run_dir = self.run_dir();
        let Ok(entries) = fs::read_dir(run_dir) else { return };
        let _ = fs::remove_file(self.bundle.join("config.json"));
        for entry in entries.flatten() {
            let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
            // What does not go is left to the daemon, which clears the directory too.
            let _ =
                if is_dir { fs::remove_dir(entry.path()) } else { fs::remove_file(entry.path()) };
        }
        let _ = fs::remove_dir(run_dir);
    }

    /// Removes what a killed runtime call may have left of its state.
    fn forget_runtime_state(&self) {
        let state = Path::new(&self.launch.runc_root).join(&self.launch.container_id);
        // Plain files only; gone already after an orderly delete.
        let _ = fs::remove_dir_all(state);
    }
}

/// Runs the shim of the task whose directory holds `launch.cbor`. Tells its readiness by the
/// line `ready` on standard output; if it cannot begin, says why on standard error and exits
/// with 1.
pub fn run(dir: &Path) -> ! {
    let begun = match sentinel::called() {
        Some(socket) => Plan::read(dir).map(|plan| sentinel::stand_in(&plan, &socket)),
        None => boot(dir),
    };
    match begun {
        Ok(task) => task.run(),
        Err(error) => {
            let _ = writeln!(io::stderr(), "skep shim: {}", chain(&error));
            leave(1)
        }
    }
}

fn boot(dir: &Path) -> Result<task::Task, BootError> {
    let plan = Arc::new(Plan::read(dir)?);
    isolate()?;
    mounts::enter_namespace()?;
    // Before the first thread, the key and the filesystem: it can hold none of them.
    let sentinel = Sentinel::fork(&plan).map_err(system("fork the sentinel"))?;
    let terminations = terminations().map_err(system("take signals"))?;
    let pair = SealKeyPair::generate()?;
    let (events, queue) = events::Events::new().map_err(system("make an event descriptor"))?;
    let record = record::ExitRecord::prepare(plan.task_dir())
        .map_err(system("take room for the exit record"))?;
    let listener = link::listen(plan.run_dir()).map_err(system("listen on its socket"))?;
    let reaper =
        reaper::Reaper::start(events.clone()).map_err(system("start the reaper's thread"))?;
    let adoption = adopt(&plan, sentinel.pid())?;
    let told = io::stdout().write_all(READY).and_then(|()| io::stdout().flush());
    told.map_err(system("tell its readiness"))?;
    silence_standard_streams();
    let parts = task::Parts {
        plan,
        sentinel,
        events,
        queue,
        terminations,
        record,
        listener,
        reaper,
        adoption,
    };
    Ok(task::Task::new(parts, pair))
}

/// SIGTERM as something to read: the machine is shut down, or somebody means the task. Blocked
/// before there are threads, so that it is in all of them; whatever is spawned starts afresh.
fn terminations() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// A session of its own, children of children, no core files, small heap.
fn isolate() -> Result<(), BootError> {
    // One that leads a session already has its own.
    let _ = nix::unistd::setsid();
    set_child_subreaper(true).map_err(system("become a subreaper"))?;
    set_dumpable(false).map_err(system("forbid dumps of itself"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(system("forbid core files"))?;
    // Where this is not allowed, the shim is as likely a victim as any other.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    umask(Mode::from_bits_truncate(0o022));
    nix::unistd::chdir("/").map_err(system("leave its working directory"))?;
    // SAFETY: sets a parameter of the allocator, which has one thread to serve so far.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    Ok(())
}

/// Moves shim and sentinel to their own group. Beside the rest, because the kernel lets the
/// first move wait for a grace period.
fn adopt(plan: &Arc<Plan>, sentinel: i32) -> Result<task::Adoption, BootError> {
    let plan = Arc::clone(plan);
    let pids = [std::process::id(), sentinel.unsigned_abs()];
    thread::Builder::new()
        .name("adopt".into())
        .stack_size(SMALL_STACK_BYTES)
        .spawn(move || plan.cgroups.adopt(&plan.launch.shim_cgroup, &pids))
        .map_err(system("start a thread"))
}

/// Points the standard streams to nowhere.
fn silence_standard_streams() {
    let Ok(null) = fs::OpenOptions::new().read(true).write(true).open("/dev/null") else {
        return;
    };
    for fd in 0..=2 {
        // SAFETY: replaces a standard stream, which no Rust object owns.
        unsafe { libc::dup2(null.as_raw_fd(), fd) };
    }
}

/// Ends the process at once: nothing is dropped, no thread is waited for.
fn leave(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Gives memory back that one large message or bundle needed: a shim idles nearly all its life.
fn trim_heap() {
    // SAFETY: touches only what the allocator holds free.
    unsafe { libc::malloc_trim(0) };
}

/// Nanoseconds since the epoch.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
