//! Starting the container: bundle, `create`, `start`. Runs beside the main thread.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::bundle::{self, Facts};
use super::console::Console;
use super::events::Events;
use super::log::{self, LogFile};
use super::reaper::Reaper;
use super::sentinel::Sentinel;
use super::user::Accounts;
use super::{Plan, now_ns};
use crate::chain::chain;
use crate::engine::cgroup::CgroupError;
use crate::engine::runc::{self, Call};
use crate::limits::RUNC_CALL;
use crate::wire::launch::LOG_FILE;

/// Docker's exit code of a container that was never made.
const NOT_MADE: i32 = 128;
/// Bytes taken of what a failed call of the runtime wrote to each of its streams.
const SAID_BYTES: usize = 1 << 10;

/// A running container.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    /// In nanoseconds since the epoch.
    pub(super) at_ns: u64,
    /// Hears of the end of both output streams.
    pub(super) log_ended: Receiver<()>,
    /// Keeps the container's stdin open, if it should be.
    pub(super) _stdin: Option<OwnedFd>,
}

/// A container that does not run.
#[derive(Debug)]
pub(super) struct StartError {
    /// Exit code that stands for it.
    pub(super) code: i32,
    /// Why, in Docker's words where it has any.
    pub(super) reason: String,
}

impl StartError {
    fn new(what: &str, error: &dyn std::error::Error) -> Self {
        let reason = format!("starting container failed: {what}{}", chain(error));
        Self { code: NOT_MADE, reason }
    }

    fn of_runtime(call: Call, said: &str) -> Self {
        Self { code: runc::start_code(said), reason: runc::start_sentence(call, said) }
    }
}

/// What a start needs beside the plan.
#[derive(Debug)]
pub(super) struct Start {
    /// Source on the host and target in the container.
    pub(super) binds: Vec<(PathBuf, PathBuf)>,
    /// Moves the shim to its own group, so that the runtime is started from there.
    pub(super) adoption: Option<JoinHandle<Result<(), CgroupError>>>,
    /// Hear of a log that cannot be written.
    pub(super) events: Events,
}

/// Runs the whole start.
pub(super) fn start(
    plan: &Plan,
    reaper: &Reaper,
    sentinel: &Sentinel,
    start: Start,
) -> Result<Started, StartError> {
    if let Some(Err(error)) = start.adoption.and_then(|thread| thread.join().ok()) {
        return Err(StartError::new("", &error));
    }
    let terminal = write_bundle(plan, &start.binds)?;
    let failed = |error: io::Error| StartError::new("", &error);
    let streams = Streams::make(plan, terminal).map_err(failed)?;
    let runtime_log = plan.run_dir().join("runc.log");
    let pid_file = plan.run_dir().join("init.pid");
    let id = &plan.launch.container_id;
    let console = streams.console.as_ref().map(Console::path);
    let mut create = plan.runc.create(id, &plan.bundle, &pid_file, console, &runtime_log);
    create.stdin(streams.stdin).stdout(streams.stdout).stderr(streams.stderr);
    if let Err(error) = reaper.call(&mut create, RUNC_CALL) {
        let own = || said_on(streams.sources.iter().map(|(fd, _)| fd.as_fd()), &error);
        let said = runc::last_error(&runtime_log).unwrap_or_else(own);
        return Err(StartError::of_runtime(Call::Create, &said));
    }
    // The command holds the container's ends of the pipes.
    drop(create);
    let pid = read_pid(&pid_file).map_err(failed)?;
    let opened = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let pidfd = opened.unwrap_or(Err(rustix::io::Errno::SRCH)).map_err(|e| failed(e.into()))?;
    sentinel.guard(pidfd.as_fd()).map_err(failed)?;
    let mut sources = streams.sources;
    if let Some(console) = &streams.console {
        sources.push((console.receive().map_err(failed)?, "stdout"));
    }
    let launch = &plan.launch;
    let path = plan.task_dir().join(LOG_FILE);
    let file = LogFile::new(&path, launch.log_file_bytes, launch.log_files);
    let log_ended = log::start(file, sources, start.events).map_err(failed)?;
    match plan.runc.start_fifo(id).filter(|fifo| fifo.exists()) {
        Some(fifo) => release(&fifo, &pidfd).map_err(failed)?,
        None => call_start(plan, reaper, &runtime_log)?,
    }
    Ok(Started { pid, pidfd, at_ns: now_ns(), log_ended, _stdin: streams.stdin_end })
}

/// Has the runtime let the first process go.
fn call_start(plan: &Plan, reaper: &Reaper, runtime_log: &Path) -> Result<(), StartError> {
    let (from, stderr) = io::pipe().map_err(|error| StartError::new("", &error))?;
    let mut start = plan.runc.start(&plan.launch.container_id, runtime_log);
    reaper.call(start.stderr(stderr), RUNC_CALL).map_err(|error| {
        let own = || said_on([from.as_fd()], &error);
        StartError::of_runtime(Call::Start, &runc::last_error(runtime_log).unwrap_or_else(own))
    })
}

/// What came out of a failed call of the runtime, behind the failure itself. Nothing else has
/// written to these streams: no container runs.
pub(super) fn said_on<'a>(
    streams: impl IntoIterator<Item = BorrowedFd<'a>>,
    error: &dyn std::error::Error,
) -> String {
    let mut text = chain(error);
    for stream in streams {
        let mut bytes = vec![0; SAID_BYTES];
        // What the call has started in turn may still hold the stream: it is not waited for.
        let read = rustix::io::ioctl_fionbio(stream, true)
            .and_then(|()| rustix::io::read(stream, &mut bytes));
        let said = bytes.get(..read.unwrap_or(0)).unwrap_or_default();
        let said = String::from_utf8_lossy(said);
        if !said.trim().is_empty() {
            text.push_str(": ");
            text.push_str(&said.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    text
}

/// Returns whether the container has a terminal.
fn write_bundle(plan: &Plan, binds: &[(PathBuf, PathBuf)]) -> Result<bool, StartError> {
    let launch = &plan.launch;
    let user = Accounts::read(&plan.rootfs)
        .resolve(&launch.user, &launch.groups)
        .map_err(|e| StartError::new("", &e))?;
    let facts = Facts {
        root: &plan.rootfs,
        user: &user,
        binds,
        cgroup: &launch.cgroup,
        netns: &launch.netns,
    };
    let done = bundle::finish(&launch.bundle, &facts).map_err(|e| StartError::new("", &e))?;
    fs::create_dir_all(&plan.bundle)
        .and_then(|()| fs::write(plan.bundle.join("config.json"), &done.config))
        .map_err(|e| StartError::new("the bundle cannot be written: ", &e))?;
    Ok(done.terminal)
}

/// The container's standard streams and what is at their other ends.
struct Streams {
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
    stdin_end: Option<OwnedFd>,
    sources: Vec<(OwnedFd, &'static str)>,
    console: Option<Console>,
}

impl Streams {
    fn make(plan: &Plan, terminal: bool) -> io::Result<Self> {
        if terminal {
            let console = Console::listen(plan.run_dir().join("console.sock"))?;
            return Ok(Self {
                stdin: Stdio::null(),
                stdout: Stdio::null(),
                stderr: Stdio::null(),
                stdin_end: None,
                sources: Vec::new(),
                console: Some(console),
            });
        }
        let (stdin, stdin_end) = if plan.launch.open_stdin {
            let (read, write) = io::pipe()?;
            (Stdio::from(read), Some(write.into()))
        } else {
            (Stdio::null(), None)
        };
        let (out, stdout) = io::pipe()?;
        let (err, stderr) = io::pipe()?;
        Ok(Self {
            stdin,
            stdout: stdout.into(),
            stderr: stderr.into(),
            stdin_end,
            sources: vec![(out.into(), "stdout"), (err.into(), "stderr")],
            console: None,
        })
    }
}

/// Lets the first process go: it waits until somebody reads what it writes to its fifo.
fn release(fifo: &Path, init: &OwnedFd) -> io::Result<()> {
    // Opened without waiting: the process may be dead.
    let mut reader = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(fifo)?;
    let mut fds = [
        PollFd::new(reader.as_fd(), PollFlags::POLLIN),
        PollFd::new(init.as_fd(), PollFlags::POLLIN),
    ];
    let timeout = PollTimeout::try_from(RUNC_CALL).unwrap_or(PollTimeout::MAX);
    if poll(&mut fds, timeout)? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut word = [0; 1];
    match reader.read(&mut word) {
        // The runtime takes a container with this file for one that was not started.
        Ok(1) => fs::remove_file(fifo),
        _ => Err(io::Error::other("the container died before it ran")),
    }
}

/// The pid that the runtime wrote.
pub(super) fn read_pid(file: &Path) -> io::Result<i32> {
    let text = fs::read_to_string(file)?;
    text.trim().parse().ok().filter(|pid| *pid > 0).ok_or(io::ErrorKind::InvalidData.into())
}
