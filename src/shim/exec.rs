//! Running a further process in the container. Runs beside the main thread.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use rustix::pipe::{SpliceFlags, splice};

use super::bundle::{self, ExecFacts};
use super::console::{self, Console};
use super::events::{ExecFailed, ExecRuns};
use super::reaper::Reaper;
use super::start::{read_pid, said_on};
use super::user::Accounts;
use super::{Plan, SMALL_STACK_BYTES};
use crate::chain::chain;
use crate::engine::runc;
use crate::limits::RUNC_CALL;
use crate::wire::shim::ExecStart;

/// Characters of an exec's id that name its files.
const NAME_CHARS: usize = 16;
/// Characters of an exec's id.
const ID_CHARS: usize = 64;
/// Bytes relayed at once: a pipe's worth.
const RELAY_BYTES: usize = 64 << 10;
/// Exit code of an exec that cannot be run.
pub(super) const NOT_RUNNABLE: i32 = 126;

/// Files of one exec, removed on drop.
struct Files {
    process: PathBuf,
    pid: PathBuf,
    log: PathBuf,
    console: PathBuf,
}

impl Files {
    fn of(plan: &Plan, id: &str) -> Option<Self> {
        let is_id = id.len() == ID_CHARS && id.bytes().all(|b| b.is_ascii_hexdigit());
        let name = id.get(..NAME_CHARS).filter(|_| is_id)?;
        let path = |end: &str| plan.run_dir().join(format!("exec-{name}.{end}"));
        Some(Self {
            process: path("json"),
            pid: path("pid"),
            log: path("log"),
            console: path("sock"),
        })
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for file in [&self.process, &self.pid, &self.log] {
            // Not every exec comes to write each of them.
            let _ = fs::remove_file(file);
        }
    }
}

fn failed(error: &dyn std::error::Error) -> ExecFailed {
    ExecFailed { code: NOT_RUNNABLE, reason: chain(error) }
}

/// Starts a process; `fds` are its standard streams unless it gets a terminal.
pub(super) fn run(
    plan: &Plan,
    reaper: &Reaper,
    exec: &ExecStart,
    fds: Vec<OwnedFd>,
) -> Result<ExecRuns, ExecFailed> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "an exec's id is 64 hex digits");
    let files = Files::of(plan, &exec.id).ok_or_else(|| failed(&invalid()))?;
    describe(plan, exec, &files)?;
    let console = if exec.tty {
        Some(Console::listen(files.console.clone()).map_err(|e| failed(&e))?)
    } else {
        None
    };
    let id = &plan.launch.container_id;
    let path = console.as_ref().map(Console::path);
    let mut command = plan.runc.exec(id, &files.process, &files.pid, path, &files.log);
    let relay = if exec.tty { None } else { Some(streams(&mut command, fds)?) };
    let called = reaper.call(&mut command, RUNC_CALL);
    // Our copies of the streams: whoever reads them waits for the last one to be closed.
    drop(command);
    called.map_err(|error| {
        let own = || said_on(relay.iter().map(|relay| relay.from.as_fd()), &error);
        let said = runc::last_error(&files.log).unwrap_or_else(own);
        ExecFailed { code: runc::exec_code(&said), reason: runc::exec_sentence(&said) }
    })?;
    if let Some(relay) = relay {
        relay.start().map_err(|e| failed(&e))?;
    }
    let pid = read_pid(&files.pid).map_err(|e| failed(&e))?.unsigned_abs();
    let console = console.map(|c| c.receive()).transpose().map_err(|e| failed(&e))?;
    if let (Some(console), Some((rows, cols))) = (&console, exec.size) {
        // A size that does not fit leaves the terminal's own.
        let _ = console::resize(console, rows, cols);
    }
    Ok(ExecRuns { pid, console })
}

/// The way of an exec's errors to the daemon. The runtime writes its own complaints to the same
/// stream before the process runs, and they are told otherwise: so this begins afterwards.
struct Relay {
    from: OwnedFd,
    to: OwnedFd,
}

impl Relay {
    fn start(self) -> io::Result<()> {
        thread::Builder::new()
            .name("stderr".into())
            .stack_size(SMALL_STACK_BYTES)
            .spawn(move || self.copy())
            .map(drop)
    }

    fn copy(self) {
        // The bytes pass through the kernel alone. An error means that nobody listens any
        // more: the process learns that from its end of the pipe.
        let flags = SpliceFlags::MOVE;
        while matches!(splice(&self.from, None, &self.to, None, RELAY_BYTES, flags), Ok(1..)) {}
    }
}

fn streams(command: &mut Command, fds: Vec<OwnedFd>) -> Result<Relay, ExecFailed> {
    let [stdin, stdout, stderr]: [OwnedFd; 3] = fds.try_into().map_err(|_| {
        let missing = "an exec needs three descriptors";
        failed(&io::Error::new(io::ErrorKind::InvalidInput, missing))
    })?;
    let (from, write) = io::pipe().map_err(|e| failed(&e))?;
    command.stdin(stdin).stdout(stdout).stderr(write);
    Ok(Relay { from: from.into(), to: stderr })
}

fn describe(plan: &Plan, exec: &ExecStart, files: &Files) -> Result<(), ExecFailed> {
    let user = if exec.user.is_empty() {
        None
    } else {
        let user = Accounts::read(&plan.rootfs).resolve(&exec.user, &plan.launch.groups);
        Some(user.map_err(|e| failed(&e))?)
    };
    let config = fs::read(plan.bundle.join("config.json")).map_err(|e| failed(&e))?;
    let status = fs::read_to_string("/proc/self/status").map_err(|e| failed(&e))?;
    let facts = ExecFacts {
        user: user.as_ref(),
        ulimits: &plan.launch.ulimits,
        grantable: bundle::grantable(&status),
    };
    let process = bundle::exec_process(&config, exec, &facts).map_err(|e| failed(&e))?;
    fs::write(&files.process, process).map_err(|e| failed(&e))
}
