//! Containers, their execs and their logs, as the API sees them. Plain data has one encoding, so
//! that a node tells another of its containers in the same words.

use minicbor::{Decode, Encode};
use skep_core::id::{NodeId, TaskId};
use skep_core::model::task::Task;
use skep_core::shared::Shared;
use skep_core::time::Stamp;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Later;

/// How a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum ContainerState {
    /// Made, not started.
    #[n(0)]
    Created,
    /// Runs.
    #[n(1)]
    Running,
    /// Ended.
    #[n(2)]
    Exited,
}

/// A container of this node.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ContainerView {
    /// 64 hex characters.
    #[n(0)]
    pub id: String,
    /// Its task.
    #[n(1)]
    pub task: Shared<Task>,
    /// The node.
    #[n(2)]
    pub node: NodeId,
    /// Image id: `sha256:…`.
    #[n(3)]
    pub image_id: String,
    /// Ports the image exposes, as `80/tcp`.
    #[n(4)]
    pub exposed: Vec<String>,
    /// Command line: first word and the rest.
    #[n(5)]
    pub args: Vec<String>,
    /// Whole environment.
    #[n(6)]
    pub env: Vec<String>,
    /// Working directory.
    #[n(7)]
    pub cwd: String,
    /// User as configured.
    #[n(8)]
    pub user: String,
    /// Host name.
    #[n(9)]
    pub hostname: String,
    /// Entrypoint and command after the image's are merged in.
    #[n(10)]
    pub entrypoint: Vec<String>,
    /// Command after the image's is merged in.
    #[n(11)]
    pub cmd: Vec<String>,
    /// Labels of image and service, with the task's own.
    #[n(12)]
    pub labels: skep_core::model::Labels,
    /// Signal that stops it, as configured.
    #[n(13)]
    pub stop_signal: String,
    /// State.
    #[n(14)]
    pub state: ContainerState,
    /// Pid of its init on the host; 0 when none.
    #[n(15)]
    pub pid: u32,
    /// When it was made.
    #[n(16)]
    pub created: Stamp,
    /// When it started; zero if it has not.
    #[n(17)]
    pub started: Stamp,
    /// When it ended; zero if it has not.
    #[n(18)]
    pub finished: Stamp,
    /// Exit code.
    #[n(19)]
    pub exit_code: i32,
    /// Whether the kernel killed it for memory.
    #[n(20)]
    pub oom: bool,
    /// What went wrong.
    #[n(21)]
    pub error: String,
    /// Network mode: `host`, `none` or `default`.
    #[n(22)]
    pub network: String,
    /// Its directory, for the paths that inspect shows.
    #[n(23)]
    pub task_dir: String,
    /// Layer directories, lowest first.
    #[n(24)]
    pub layers: Vec<String>,
    /// Execs that run or are remembered.
    #[n(25)]
    pub execs: Vec<String>,
}

/// What an exec runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ExecConfig {
    /// Command and arguments.
    #[n(0)]
    pub args: Vec<String>,
    /// `NAME=value` pairs beyond the container's.
    #[n(1)]
    pub env: Vec<String>,
    /// Working directory; empty for the container's.
    #[n(2)]
    pub cwd: String,
    /// User; empty for the container's.
    #[n(3)]
    pub user: String,
    /// Whether it has a terminal.
    #[n(4)]
    pub tty: bool,
    /// Whether it has all capabilities.
    #[n(5)]
    pub privileged: bool,
    /// Which streams are attached.
    #[n(6)]
    pub stdin: bool,
    /// Stdout likewise.
    #[n(7)]
    pub stdout: bool,
    /// Stderr likewise.
    #[n(8)]
    pub stderr: bool,
    /// Key sequence that detaches, as sent.
    #[n(9)]
    pub detach_keys: String,
}

/// An exec as inspect shows it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ExecView {
    /// 64 hex characters.
    #[n(0)]
    pub id: String,
    /// Its container.
    #[n(1)]
    pub container: String,
    /// What it runs.
    #[n(2)]
    pub config: ExecConfig,
    /// Whether it runs.
    #[n(3)]
    pub running: bool,
    /// Exit code once it ended.
    #[n(4)]
    pub exit_code: Option<i32>,
    /// Its pid on the host; 0 when none.
    #[n(5)]
    pub pid: u32,
}

/// The streams of a started exec.
pub struct ExecStreams {
    /// Closing it is the end of the process's stdin.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// For a terminal, everything.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Absent for a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Resolves once the exit code can be inspected.
    pub ended: Later<'static, ()>,
}

impl std::fmt::Debug for ExecStreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExecStreams")
    }
}

/// Which lines of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LogQuery {
    /// Whether to go on with new lines.
    #[n(0)]
    pub follow: bool,
    /// Only the last so many, per task; none for all.
    #[n(1)]
    pub tail: Option<usize>,
    /// Not before this; zero for all.
    #[n(2)]
    pub since: Stamp,
    /// Not after this; zero for all.
    #[n(3)]
    pub until: Stamp,
    /// Whether stdout is wanted.
    #[n(4)]
    pub stdout: bool,
    /// Whether stderr is wanted.
    #[n(5)]
    pub stderr: bool,
}

/// One line of a task's log.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LogLine {
    /// Task.
    #[n(0)]
    pub task: TaskId,
    /// When it was written.
    #[n(1)]
    pub at: Stamp,
    /// Whether it came from stderr.
    #[n(2)]
    pub stderr: bool,
    /// The line with its newline, if it had one.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// A node whose part of a log cannot be had, or no more of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogGap {
    /// Node.
    pub node: NodeId,
    /// Its tasks that were asked for.
    pub tasks: Vec<TaskId>,
    /// Why.
    pub why: String,
}

/// What a stream of log lines gives: lines, and a gap for each node whose lines are missing.
pub type Logged = Result<LogLine, LogGap>;
