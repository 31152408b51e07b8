//! Further processes in running containers: who asked for them, how they stand.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::time::Instant;

use sha2::{Digest as _, Sha256};
use skep_core::id::{NodeId, hex};
use tokio::io::{copy, sink};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::gate::{ExecConfig, ExecStreams, ExecView, Refusal};
use crate::limits::{EXEC_KEPT, EXECS};
use crate::wire::shim::ExecStart;

/// Bytes of chance in an exec's id.
const EXEC_CHANCE_BYTES: usize = 16;
/// Bytes of it that tell the node.
const EXEC_MARK_BYTES: usize = 16;

/// How far an exec has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Created,
    Running { pid: u32 },
    Ended { code: i32, at: Instant },
}

#[derive(Debug)]
struct Entry {
    container: String,
    config: ExecConfig,
    created: Instant,
    phase: Phase,
    started: bool,
    ended: watch::Sender<bool>,
    /// Takes the runtime's text if the process never runs.
    complaint: Option<OwnedFd>,
    /// Waits for the terminal that the shim hands over once the process runs.
    terminal: Option<Terminal>,
}

/// All execs of this node.
#[derive(Debug, Default)]
pub struct ExecTable {
    entries: Mutex<HashMap<String, Entry>>,
}

/// What a start hands to the shim and to the client.
#[derive(Debug)]
pub struct Started {
    /// For the shim.
    pub start: ExecStart,
    /// Stdin, stdout, stderr for the shim.
    pub fds: Vec<OwnedFd>,
    /// For the client.
    pub streams: ExecStreams,
    /// The container it runs in.
    pub container: String,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl ExecTable {
    /// Makes an exec of a running container.
    ///
    /// # Errors
    /// If too many run at once.
    pub fn create(
        &self,
        id: String,
        container: &str,
        config: ExecConfig,
    ) -> Result<String, Refusal> {
        let mut entries = lock(&self.entries);
        entries
            .retain(|_, e| !matches!(e.phase, Phase::Ended { at, .. } if at.elapsed() > EXEC_KEPT));
        if entries.len() >= EXECS {
            // Ended ones go first, then those that nobody came to start.
            let oldest = entries
                .iter()
                .filter_map(|(id, e)| match e.phase {
                    Phase::Ended { at, .. } => Some((false, at, id.clone())),
                    _ => (!e.started).then(|| (true, e.created, id.clone())),
                })
                .min();
            let Some((_, _, oldest)) = oldest else {
                return Err(Refusal::Conflict(format!(
                    "{EXECS} execs run on this node already: wait for one to end"
                )));
            };
            entries.remove(&oldest);
        }
        let entry = Entry {
            container: container.to_owned(),
            config,
            created: Instant::now(),
            phase: Phase::Created,
            started: false,
            ended: watch::Sender::new(false),
            complaint: None,
            terminal: None,
        };
        entries.insert(id.clone(), entry);
        Ok(id)
    }

    /// Makes the streams of an exec that was not started yet.
    ///
    /// # Errors
    /// If there is no such exec, it was started before, or no pipe can be had.
    pub fn start(
        &self,
        id: &str,
        detach: bool,
        size: Option<(u16, u16)>,
    ) -> Result<Started, Refusal> {
        let mut entries = lock(&self.entries);
        let entry = entries.get_mut(id).ok_or_else(|| no_such(id))?;
        if std::mem::replace(&mut entry.started, true) {
            return Err(Refusal::Conflict(format!("exec {id} was started already")));
        }
        let pipes = Pipes::open(&entry.config, detach).map_err(|source| Refusal::Failed {
            what: "cannot make the streams of an exec".into(),
            source: source.into(),
        })?;
        entry.complaint = pipes.complaint;
        entry.terminal = pipes.terminal;
        let mut ended = entry.ended.subscribe();
        let streams = ExecStreams {
            stdin: pipes.stdin.map(|p| Box::new(p) as _),
            stdout: pipes.stdout.map(|p| Box::new(p) as _),
            stderr: pipes.stderr.map(|p| Box::new(p) as _),
            ended: Box::pin(async move {
                // The sender goes away only with its record: then there is nothing to wait for.
                let _ = ended.wait_for(|ended| *ended).await;
            }),
        };
        let start = ExecStart {
            id: id.to_owned(),
            args: entry.config.args.clone(),
            env: entry.config.env.clone(),
            cwd: entry.config.cwd.clone(),
            user: entry.config.user.clone(),
            tty: entry.config.tty,
            privileged: entry.config.privileged,
            size,
        };
        Ok(Started { start, fds: pipes.theirs, streams, container: entry.container.clone() })
    }

    /// The process runs; `console` is the other end of its terminal, if it has one.
    pub fn running(&self, id: &str, pid: u32, console: Option<OwnedFd>) {
        if let Some(entry) = lock(&self.entries).get_mut(id)
            && entry.phase == Phase::Created
        {
            entry.phase = Phase::Running { pid };
            entry.complaint = None;
            if let (Some(terminal), Some(console)) = (entry.terminal.take(), console)
                && let Err(error) = terminal.connect(console)
            {
                tracing::warn!(exec = id, %error, "cannot use the terminal of an exec");
            }
        }
    }

    /// The process ended, or never ran.
    pub fn ended(&self, id: &str, code: i32, error: Option<&str>) {
        if let Some(entry) = lock(&self.entries).get_mut(id) {
            end(entry, code, error);
        }
    }

    /// The container ended, and every process in it.
    pub fn container_ended(&self, container: &str) {
        for entry in lock(&self.entries).values_mut().filter(|e| e.container == container) {
            end(entry, 137, None);
        }
    }

    /// An exec as inspect shows it.
    pub fn view(&self, id: &str) -> Option<ExecView> {
        let entries = lock(&self.entries);
        let entry = entries.get(id)?;
        let (running, exit_code, pid) = match entry.phase {
            Phase::Created => (false, None, 0),
            Phase::Running { pid } => (true, None, pid),
            Phase::Ended { code, .. } => (false, Some(code), 0),
        };
        Some(ExecView {
            id: id.to_owned(),
            container: entry.container.clone(),
            config: entry.config.clone(),
            running,
            exit_code,
            pid,
        })
    }

    /// Execs of a container.
    pub fn of(&self, container: &str) -> Vec<String> {
        let entries = lock(&self.entries);
        entries.iter().filter(|(_, e)| e.container == container).map(|(id, _)| id.clone()).collect()
    }
}

fn end(entry: &mut Entry, code: i32, error: Option<&str>) {
    if matches!(entry.phase, Phase::Ended { .. }) {
        return;
    }
    entry.phase = Phase::Ended { code, at: Instant::now() };
    let complaint = entry.complaint.take().map(std::fs::File::from);
    if let (Some(mut pipe), Some(error)) = (complaint, error) {
        // The client may be gone; the text is in the log of the daemon as well.
        let _ = pipe.write_all(format!("{error}\r\n").as_bytes());
    }
    entry.terminal = None;
    entry.ended.send_replace(true);
}

/// The second half of the ids of a node's execs: by it any manager knows which node to ask.
#[must_use]
pub fn mark(node: &NodeId) -> String {
    let digest = Sha256::new().chain_update(b"skep-exec").chain_update(node.as_str()).finalize();
    hex(digest.get(..EXEC_MARK_BYTES).unwrap_or_default())
}

/// A new exec id: chance, and the node's mark.
///
/// # Errors
/// If there is no randomness to be had.
pub fn mint(node: &NodeId) -> Result<String, Refusal> {
    let chance = crate::seal::random::<EXEC_CHANCE_BYTES>();
    let chance = chance.map_err(|source| Refusal::Failed {
        what: "cannot make an exec id".into(),
        source: source.into(),
    })?;
    Ok(hex(&chance) + &mark(node))
}

/// The refusal for an exec that is not there.
pub fn no_such(id: &str) -> Refusal {
    Refusal::NotFound(format!("No such exec instance: {id}"))
}

/// The client's side of a terminal, until the terminal comes.
#[derive(Debug)]
struct Terminal {
    input: Option<pipe::Receiver>,
    output: Option<pipe::Sender>,
}

impl Terminal {
    /// Passes bytes between client and terminal until the process has let go of it.
    fn connect(self, console: OwnedFd) -> std::io::Result<()> {
        rustix::io::ioctl_fionbio(&console, true)?;
        let mut to = pipe::Sender::from_owned_fd_unchecked(console.try_clone()?)?;
        let mut from = pipe::Receiver::from_owned_fd_unchecked(console)?;
        let Self { input, output } = self;
        let feed = async move {
            if let Some(mut input) = input {
                // The end of the input leaves the terminal as it is, as Docker does.
                let _ = copy(&mut input, &mut to).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::spawn(async move {
            let show = async {
                if let Some(mut output) = output {
                    let _ = copy(&mut from, &mut output).await;
                }
                // Without a client the process must not wait for one. A terminal that was let go
                // of says EIO.
                let _ = copy(&mut from, &mut sink()).await;
            };
            tokio::select! {
                () = show => {}
                () = feed => {}
            }
        });
        Ok(())
    }
}

struct Pipes {
    theirs: Vec<OwnedFd>,
    complaint: Option<OwnedFd>,
    terminal: Option<Terminal>,
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Pipes {
    fn open(config: &ExecConfig, detach: bool) -> std::io::Result<Self> {
        if config.tty { Self::terminal(config, detach) } else { Self::streams(config, detach) }
    }

    /// Pipes between the client and the terminal to come; the shim needs none.
    fn terminal(config: &ExecConfig, detach: bool) -> std::io::Result<Self> {
        let (mut stdin, mut stdout, mut complaint) = (None, None, None);
        let mut terminal = Terminal { input: None, output: None };
        if config.stdin && !detach {
            let (ours, input) = pipe::pipe()?;
            (stdin, terminal.input) = (Some(ours), Some(input));
        }
        if !detach {
            let (output, ours) = pipe::pipe()?;
            complaint = Some(output.as_fd().try_clone_to_owned()?);
            (stdout, terminal.output) = (Some(ours), Some(output));
        }
        let terminal = Some(terminal);
        Ok(Self { theirs: Vec::new(), complaint, terminal, stdin, stdout, stderr: None })
    }

    fn streams(config: &ExecConfig, detach: bool) -> std::io::Result<Self> {
        let null = || -> std::io::Result<OwnedFd> {
            Ok(std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
        };
        let (mut stdin, mut theirs, mut complaint) = (None, Vec::with_capacity(3), None);
        if config.stdin && !detach {
            let (ours, reader) = pipe::pipe()?;
            stdin = Some(ours);
            theirs.push(reader.into_blocking_fd()?);
        } else {
            theirs.push(null()?);
        }
        let mut output = |wanted: bool| -> std::io::Result<Option<pipe::Receiver>> {
            if !wanted || detach {
                theirs.push(null()?);
                return Ok(None);
            }
            let (writer, ours) = pipe::pipe()?;
            let writer = writer.into_blocking_fd()?;
            if complaint.is_none() {
                complaint = Some(writer.try_clone()?);
            }
            theirs.push(writer);
            Ok(Some(ours))
        };
        let stdout = output(config.stdout)?;
        let stderr = output(config.stderr)?;
        Ok(Self { theirs, complaint, terminal: None, stdin, stdout, stderr })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const WAIT: Duration = Duration::from_secs(10);

    fn config(stdin: bool) -> ExecConfig {
        ExecConfig { tty: true, stdin, stdout: true, stderr: true, ..ExecConfig::default() }
    }

    #[tokio::test]
    async fn a_terminal_is_joined_to_its_client_once_it_comes() {
        let table = ExecTable::default();
        table.create("a".into(), "c", config(true)).unwrap();
        let mut streams = table.start("a", false, None).unwrap().streams;
        let (mut stdin, mut stdout) = (streams.stdin.take().unwrap(), streams.stdout.unwrap());
        stdin.write_all(b"early\n").await.unwrap();
        let pty = nix::pty::openpty(None, None).unwrap();
        table.running("a", 7, Some(pty.master));
        let mut line = [0; 7];
        tokio::time::timeout(WAIT, stdout.read_exact(&mut line)).await.unwrap().unwrap();
        // The terminal echoes, and ends lines its own way.
        assert_eq!(&line, b"early\r\n");
        let mut process = std::fs::File::from(pty.slave);
        process.write_all(b"hi").unwrap();
        drop(process);
        table.ended("a", 3, None);
        let mut rest = String::new();
        let read = stdout.read_to_string(&mut rest);
        tokio::time::timeout(WAIT, read).await.unwrap().unwrap();
        assert_eq!(rest, "hi");
        streams.ended.await;
        assert_eq!(table.view("a").unwrap().exit_code, Some(3));
    }

    #[tokio::test]
    async fn a_command_that_never_ran_says_why_on_its_terminal() {
        let table = ExecTable::default();
        table.create("a".into(), "c", config(false)).unwrap();
        let streams = table.start("a", false, None).unwrap().streams;
        table.ended("a", 127, Some("no such command"));
        let mut text = String::new();
        let mut stdout = streams.stdout.unwrap();
        let read = stdout.read_to_string(&mut text);
        tokio::time::timeout(WAIT, read).await.unwrap().unwrap();
        assert_eq!(text, "no such command\r\n");
    }
}
