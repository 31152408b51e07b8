//! The runtime's command line and what it says when it fails. Whoever runs a command waits for
//! it in their own way: a shim reaps every child in one place, the daemon does not.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bytes of the runtime's own log that are looked at for an error.
const LOG_TAIL: usize = 16 << 10;
/// Exit code of a command that is not there.
const NOT_FOUND: i32 = 127;
/// Exit code of a command that cannot be run.
const NOT_EXECUTABLE: i32 = 126;
/// Docker's exit code of a container that did not start for another reason.
const NOT_STARTED: i32 = 128;
/// What Docker adds when a mount does not fit its place.
const MOUNT_HINT: &str = ": Are you trying to mount a directory onto a file (or vice-versa)? Check \
                          if the specified host path exists and is the expected type";

/// The runtime and the directory of its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runc {
    runtime: PathBuf,
    root: PathBuf,
}

impl Runc {
    /// `runtime` is a path or a name on the PATH; `root` is the directory of its state.
    #[must_use]
    pub fn new(runtime: &str, root: &str) -> Self {
        let runtime = if runtime.is_empty() { "runc" } else { runtime };
        Self { runtime: runtime.into(), root: root.into() }
    }

    /// Makes the container of a bundle; its first process waits for `start`. Standard streams
    /// given to the command become the container's.
    #[must_use]
    pub fn create(
        &self,
        id: &str,
        bundle: &Path,
        pid_file: &Path,
        console: Option<&Path>,
        log: &Path,
    ) -> Command {
        let mut command = self.command(Some(log));
        command.arg("create").arg("--bundle").arg(bundle).arg("--pid-file").arg(pid_file);
        if let Some(console) = console {
            command.arg("--console-socket").arg(console);
        }
        command.arg(id);
        command
    }

    /// Where runc's first process waits for a reader before it becomes the container's. Reading
    /// from it and removing it is all that `start` does: doing it ourselves saves a process.
    /// None for another runtime.
    #[must_use]
    pub fn start_fifo(&self, id: &str) -> Option<PathBuf> {
        (self.runtime.file_name()? == "runc").then(|| self.root.join(id).join("exec.fifo"))
    }

    /// Lets the first process run.
    #[must_use]
    pub fn start(&self, id: &str, log: &Path) -> Command {
        let mut command = self.command(Some(log));
        command.arg("start").arg(id);
        command
    }

    /// Runs a further process, described by a file, and leaves it to the caller to reap.
    #[must_use]
    pub fn exec(
        &self,
        id: &str,
        process: &Path,
        pid_file: &Path,
        console: Option<&Path>,
        log: &Path,
    ) -> Command {
        let mut command = self.command(Some(log));
        command.arg("exec").arg("--detach").arg("--process").arg(process);
        command.arg("--pid-file").arg(pid_file);
        if let Some(console) = console {
            command.arg("--console-socket").arg(console);
        }
        command.arg(id);
        command
    }

    /// Removes a container and what the runtime keeps of it, killing what is left.
    #[must_use]
    pub fn delete(&self, id: &str) -> Command {
        let mut command = self.command(None);
        command.arg("delete").arg("--force").arg(id);
        command
    }

    /// Whether the runtime keeps state of this container.
    #[must_use]
    pub fn knows(&self, id: &str) -> bool {
        self.root.join(id).exists()
    }

    fn command(&self, log: Option<&Path>) -> Command {
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(&self.root);
        if let Some(log) = log {
            command.arg("--log").arg(log).args(["--log-format", "json"].map(OsStr::new));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// The last error in the runtime's log, if it wrote one.
#[must_use]
pub fn last_error(log: &Path) -> Option<String> {
    let text = fs::read(log).ok()?;
    let tail = text.get(text.len().saturating_sub(LOG_TAIL)..)?;
    String::from_utf8_lossy(tail).lines().rev().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        (line.get("level")? == "error").then_some(())?;
        Some(line.get("msg")?.as_str()?.trim().to_owned())
    })
}

/// The call of the runtime that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Making the container.
    Create,
    /// Letting its first process go.
    Start,
}

/// Docker's sentence for a container that did not start, around the runtime's own.
#[must_use]
pub fn start_sentence(call: Call, error: &str) -> String {
    // A bind of a directory onto a file, or the other way round: the runtime's words do not
    // say so.
    let hint = if error.contains("not a directory") { MOUNT_HINT } else { "" };
    let call = match call {
        Call::Create => {
            "failed to create task for container: failed to create shim task: OCI runtime create \
             failed"
        }
        Call::Start => "OCI runtime start failed",
    };
    format!("starting container failed: {call}: {error}: unknown{hint}")
}

/// Docker's sentence for an exec that did not start, around the runtime's own.
#[must_use]
pub fn exec_sentence(error: &str) -> String {
    format!("OCI runtime exec failed: {error}: unknown")
}

/// The exit code that stands for a container that could not be started.
#[must_use]
pub fn start_code(error: &str) -> i32 {
    command_code(error).unwrap_or(NOT_STARTED)
}

/// The exit code that stands for an exec that could not be started.
#[must_use]
pub fn exec_code(error: &str) -> i32 {
    command_code(error).unwrap_or(NOT_EXECUTABLE)
}

fn command_code(error: &str) -> Option<i32> {
    let says = |words: &str| error.contains(words);
    if says("executable file not found")
        || says("no such file or directory")
        || says("not a directory")
    {
        Some(NOT_FOUND)
    } else if says("permission denied") || says("is a directory") {
        Some(NOT_EXECUTABLE)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(last_error(&log), None);
        fs::write(
            &log,
            "{\"level\":\"warning\",\"msg\":\"w\",\"time\":\"t\"}\n\
             {\"level\":\"error\",\"msg\":\"exec: \\\"x\\\": not there\\n\",\"time\":\"t\"}\n\
             {\"level\":\"warning\",\"msg\":\"later\"}\nno json\n",
        )
        .unwrap();
        assert_eq!(last_error(&log).unwrap(), "exec: \"x\": not there");
    }

    #[test]
    fn codes_follow_the_shells_custom() {
        let missing = "unable to start container process: exec: \"nosuch\": executable file not \
                       found in $PATH";
        assert_eq!(start_code(missing), 127);
        assert_eq!(exec_code("exec: \"/x\": stat /x: no such file or directory"), 127);
        assert_eq!(exec_code("exec: \"/etc\": permission denied"), 126);
        assert_eq!((start_code("odd"), exec_code("odd")), (128, 126));
        let misfit = start_sentence(Call::Create, "mount /a:/b: not a directory");
        assert!(misfit.starts_with("starting container failed: failed to create task"));
        assert!(misfit.ends_with("is the expected type"), "{misfit}");
        assert_eq!(start_code(&misfit), 127);
        let start = start_sentence(Call::Start, "odd");
        assert_eq!(start, "starting container failed: OCI runtime start failed: odd: unknown");
        assert_eq!(
            exec_sentence("exec failed: unable to start container process: x"),
            "OCI runtime exec failed: exec failed: unable to start container process: x: unknown"
        );
    }

    #[test]
    fn commands_name_root_log_and_container() {
        let runc = Runc::new("", "/run/x/runc");
        let command = runc.create("abc", "/b".as_ref(), "/p".as_ref(), None, "/l".as_ref());
        let args: Vec<_> = command.get_args().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(
            args.join(" "),
            "--root /run/x/runc --log /l --log-format json create --bundle /b --pid-file /p abc"
        );
        assert_eq!(command.get_program(), "runc");
        assert_eq!(runc.start_fifo("abc").unwrap(), Path::new("/run/x/runc/abc/exec.fifo"));
        assert_eq!(Runc::new("/usr/bin/crun", "/r").start_fifo("abc"), None);
    }
}
