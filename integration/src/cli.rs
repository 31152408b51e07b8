//! Runs a command-line client with a bound on its time.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Longest time one command may take unless a test says otherwise.
const BOUND: Duration = Duration::from_secs(60);

/// Which client drives a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The unmodified docker CLI.
    Docker,
    /// skep's own.
    Skep,
}

/// A client bound to one node's socket.
#[derive(Debug, Clone)]
pub struct Cli {
    /// Which client.
    pub program: Program,
    binary: PathBuf,
    host: String,
    home: PathBuf,
    bound: Duration,
}

/// What a command left.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// Exit code; 128 + signal for a killed one.
    pub code: i32,
    /// Standard output, raw.
    pub bytes: Vec<u8>,
    /// Standard output as text.
    pub stdout: String,
    /// Standard error as text.
    pub stderr: String,
}

impl Output {
    /// Standard output without trailing blank space.
    pub fn text(&self) -> &str {
        self.stdout.trim_end()
    }
}

impl Cli {
    pub(crate) fn new(program: Program, binary: PathBuf, socket: &Path, home: &Path) -> Self {
        let host = format!("unix://{}", socket.display());
        Self { program, binary, host, home: home.to_owned(), bound: BOUND }
    }

    /// The same client with another bound on each command.
    #[must_use]
    pub fn within(&self, bound: Duration) -> Self {
        Self { bound, ..self.clone() }
    }

    /// Runs a command without input.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        self.run_with(args, b"")
    }

    /// Runs a command and writes `input` to its standard input.
    pub fn run_with(&self, args: &[&str], input: &[u8]) -> Result<Output> {
        let line = format!("{:?} {}", self.program, args.join(" "));
        let child = self.command(args).spawn().with_context(|| format!("start {line}"))?;
        finish(child, input, self.bound, line)
    }

    /// Runs a command that must succeed; answers its standard output without the last newline.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        self.ok_with(args, b"")
    }

    /// As [`Cli::ok`] with standard input.
    pub fn ok_with(&self, args: &[&str], input: &[u8]) -> Result<String> {
        let out = self.run_with(args, input)?;
        ensure!(out.code == 0, "{}: exit {}\n{}{}", out.line, out.code, out.stdout, out.stderr);
        Ok(out.text().to_owned())
    }

    /// Runs a command that must fail with `code`; answers its standard error.
    pub fn fails(&self, code: i32, args: &[&str]) -> Result<String> {
        self.fails_with(code, args, b"")
    }

    /// As [`Cli::fails`] with standard input.
    pub fn fails_with(&self, code: i32, args: &[&str], input: &[u8]) -> Result<String> {
        let out = self.run_with(args, input)?;
        ensure!(
            out.code == code,
            "{}: exit {} instead of {code}\n{}{}",
            out.line,
            out.code,
            out.stdout,
            out.stderr
        );
        Ok(out.stderr)
    }

    /// The command itself, for tests that keep it running.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(["-H", &self.host])
            .args(args)
            .env_remove("DOCKER_HOST")
            .env_remove("SKEP_HOST")
            .env_remove("DOCKER_CONTEXT")
            .env("DOCKER_CONFIG", &self.home)
            .env("DOCKER_CLI_HINTS", "false")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// Feeds, drains and waits for `child`; kills it when `bound` is over.
pub(crate) fn finish(
    mut child: Child,
    input: &[u8],
    bound: Duration,
    line: String,
) -> Result<Output> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let status = thread::scope(|scope| -> Result<_> {
        scope.spawn(move || {
            // A command that does not read its input closes the pipe: that is its right.
            stdin.and_then(|mut pipe| pipe.write_all(input).ok())
        });
        let stdout = scope.spawn(move || drain(stdout));
        let stderr = scope.spawn(move || drain(stderr));
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if start.elapsed() > bound {
                child.kill()?;
                child.wait()?;
                break None;
            }
            thread::sleep(Duration::from_millis(2));
        };
        let joined = |drained: thread::ScopedJoinHandle<'_, Vec<u8>>| drained.join();
        Ok((status, joined(stdout), joined(stderr)))
    })?;
    let (Some(status), Ok(bytes), Ok(errors)) = status else {
        bail!("{line}: not done within {} ms", bound.as_millis());
    };
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    let stdout = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Output { line, code, bytes, stdout, stderr: String::from_utf8_lossy(&errors).into_owned() })
}

fn drain(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What was read before an error still tells the test something.
        pipe.read_to_end(&mut bytes).ok();
    }
    bytes
}
