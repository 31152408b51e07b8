//! Further processes in running containers: who asked for them, how they stand.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::Instant;

use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::gate::{ExecConfig, ExecStreams, ExecView, Refusal};
use crate::limits::{EXEC_KEPT, EXECS};
use crate::wire::shim::ExecStart;

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

    /// The process runs.
    pub fn running(&self, id: &str, pid: u32) {
        if let Some(entry) = lock(&self.entries).get_mut(id)
            && entry.phase == Phase::Created
        {
            entry.phase = Phase::Running { pid };
            entry.complaint = None;
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
    entry.ended.send_replace(true);
}

/// The refusal for an exec that is not there.
pub fn no_such(id: &str) -> Refusal {
    Refusal::NotFound(format!("No such exec instance: {id}"))
}

struct Pipes {
    theirs: Vec<OwnedFd>,
    complaint: Option<OwnedFd>,
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Pipes {
    fn open(config: &ExecConfig, detach: bool) -> std::io::Result<Self> {
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
        let stdout = output(config.stdout || config.tty)?;
        let stderr = output(config.stderr && !config.tty)?;
        Ok(Self { theirs, complaint, stdin, stdout, stderr })
    }
}
