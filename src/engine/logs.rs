//! Reads the logs that shims write: json-file lines in `json.log`, older ones in `json.log.1` and
//! so on, several tasks merged in order of time.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use serde::Deserialize;
use skep_core::id::TaskId;
use skep_core::time::Stamp;
use tokio::sync::watch;

use crate::gate::{LogLine, LogQuery};
use crate::limits::LOG_LINE_BYTES;
use crate::wire::launch::LOG_FILE;

/// Bytes of a line in the file: the escapes of JSON make a line up to six times as long.
const FILE_LINE_BYTES: usize = 8 * LOG_LINE_BYTES;
/// Lines read at once.
const BATCH_LINES: usize = 256;
/// Time between two looks for new lines.
const POLL: Duration = Duration::from_millis(100);
/// Looks at a directory that changes while it is looked at.
const LOOKS: usize = 8;

/// A task's log.
#[derive(Debug, Clone)]
pub struct LogSource {
    /// Task.
    pub task: TaskId,
    /// The task's directory.
    pub task_dir: PathBuf,
    /// Becomes true, or loses its sender, once nothing will be written any more.
    pub ended: watch::Receiver<bool>,
}

/// The lines of these logs that the query asks for, in order of time as far as they are there.
/// A following stream ends once all tasks have ended, or the query's last moment has passed.
///
/// It reads on tokio's blocking threads, and holds none while it waits.
#[must_use]
pub fn read(sources: Vec<LogSource>, query: LogQuery) -> BoxStream<'static, LogLine> {
    let ended = sources.iter().map(|source| source.ended.clone()).collect();
    let readers = sources.iter().map(|s| Reader::new(s.task, s.task_dir.join(LOG_FILE))).collect();
    let merge = Merge { readers, query: query.clone(), is_placed: false };
    let follow = Follow { merge: Some(merge), pending: VecDeque::new(), ended, query };
    stream::unfold(follow, |mut follow| async {
        let line = follow.next().await?;
        Some((line, follow))
    })
    .boxed()
}

/// The stream's state.
struct Follow {
    /// None once everything is read.
    merge: Option<Merge>,
    pending: VecDeque<LogLine>,
    ended: Vec<watch::Receiver<bool>>,
    query: LogQuery,
}

impl Follow {
    async fn next(&mut self) -> Option<LogLine> {
        loop {
            if let Some(line) = self.pending.pop_front() {
                return Some(line);
            }
            let mut merge = self.merge.take()?;
            // Asked before reading: what was written before the end is still to be read.
            let is_over = !self.query.follow || self.is_over();
            let (merge, batch) = tokio::task::spawn_blocking(move || {
                let batch = merge.batch();
                (merge, batch)
            })
            .await
            .ok()?;
            self.pending = batch;
            match (self.pending.is_empty(), is_over) {
                (true, true) => return None,
                (true, false) => tokio::time::sleep(POLL).await,
                (false, _) => {}
            }
            self.merge = Some(merge);
        }
    }

    fn is_over(&self) -> bool {
        let is_past = self.query.until.0 != 0 && now() > self.query.until;
        let has_ended =
            |ended: &watch::Receiver<bool>| *ended.borrow() || ended.has_changed().is_err();
        is_past || self.ended.iter().all(has_ended)
    }
}

fn now() -> Stamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Stamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Several logs, merged. It blocks.
#[derive(Debug)]
struct Merge {
    readers: Vec<Reader>,
    query: LogQuery,
    /// Whether the readers stand where the query's tail begins.
    is_placed: bool,
}

impl Merge {
    /// The next lines; empty if there are none at the moment.
    fn batch(&mut self) -> VecDeque<LogLine> {
        if !self.is_placed {
            self.is_placed = true;
            for reader in &mut self.readers {
                reader.place(&self.query);
            }
        }
        let mut batch = VecDeque::new();
        while batch.len() < BATCH_LINES {
            for reader in self.readers.iter_mut().filter(|reader| reader.head.is_none()) {
                reader.head = reader.next(&self.query);
            }
            let earliest = self
                .readers
                .iter_mut()
                .filter(|reader| reader.head.is_some())
                .min_by_key(|reader| reader.head.as_ref().map(|line| line.at));
            match earliest.and_then(|reader| reader.head.take()) {
                Some(line) => batch.push_back(line),
                None => break,
            }
        }
        batch
    }
}

/// One file of a log.
#[derive(Debug)]
struct Part {
    input: BufReader<File>,
    inode: u64,
    offset: u64,
    /// Whether it was read to its end after it was seen to be rotated.
    is_drained: bool,
}

/// One task's log. Follows rotation by inode.
#[derive(Debug)]
struct Reader {
    task: TaskId,
    path: PathBuf,
    part: Option<Part>,
    /// Bytes of a line whose end is not there yet.
    partial: Vec<u8>,
    head: Option<LogLine>,
    has_failed: bool,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
}

impl Reader {
    fn new(task: TaskId, path: PathBuf) -> Self {
        Self { task, path, part: None, partial: Vec::new(), head: None, has_failed: false }
    }

    /// Goes to where the query's last lines begin.
    fn place(&mut self, query: &LogQuery) {
        let Some(tail) = query.tail else { return };
        // Counted first and read again, so that any number of lines needs no memory.
        let mut counter = Self::new(self.task, self.path.clone());
        let mut count = 0;
        while counter.next(query).is_some() {
            count += 1;
        }
        if tail == 0 {
            *self = counter;
            return;
        }
        for _ in tail..count {
            if self.next(query).is_none() {
                return;
            }
        }
    }

    /// The next line the query asks for; none if there is none at the moment.
    fn next(&mut self, query: &LogQuery) -> Option<LogLine> {
        while !self.has_failed {
            match self.raw_line() {
                Ok(Some(raw)) => {
                    let line = parse(self.task, &raw);
                    if let Some(line) = line.filter(|line| is_wanted(line, query)) {
                        return Some(line);
                    }
                }
                Ok(None) => return None,
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "cannot read a task's log");
                    self.has_failed = true;
                }
            }
        }
        None
    }

    /// The next whole line of the file.
    fn raw_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let Some(part) = &mut self.part else {
                match oldest(&self.path)? {
                    Some(part) => self.part = Some(part),
                    None => return Ok(None),
                }
                continue;
            };
            let room = (FILE_LINE_BYTES + 1).saturating_sub(self.partial.len()).max(1) as u64;
            let n = part.input.by_ref().take(room).read_until(b'\n', &mut self.partial)?;
            part.offset += n as u64;
            if self.partial.last() == Some(&b'\n') {
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
            if self.partial.len() > FILE_LINE_BYTES {
                // No shim writes such a line; what is left of it will not parse.
                self.partial.clear();
            }
            if n == 0 && !self.go_on()? {
                return Ok(None);
            }
        }
    }

    /// At the end of a part: whether there may be more to read.
    fn go_on(&mut self) -> io::Result<bool> {
        let Some(part) = &mut self.part else { return Ok(false) };
        let current = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            // In the middle of a rotation, or gone with its task.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        if current.ino() == part.inode {
            if current.len() >= part.offset {
                return Ok(false);
            }
            // A log that keeps one file starts over in it.
            part.input.seek(SeekFrom::Start(0))?;
            part.offset = 0;
        } else if part.is_drained {
            let Some(newer) = newer(&self.path, part.inode)? else { return Ok(false) };
            self.part = Some(newer);
        } else {
            part.is_drained = true;
            return Ok(true);
        }
        self.partial.clear();
        Ok(true)
    }
}

fn parse(task: TaskId, raw: &[u8]) -> Option<LogLine> {
    let line: Line<'_> = serde_json::from_slice(raw).ok()?;
    let at: jiff::Timestamp = line.time.parse().ok()?;
    Some(LogLine {
        task,
        at: Stamp(u64::try_from(at.as_nanosecond()).unwrap_or(0)),
        stderr: line.stream == "stderr",
        bytes: line.log.into_owned().into_bytes(),
    })
}

fn is_wanted(line: &LogLine, query: &LogQuery) -> bool {
    let is_shown = if line.stderr { query.stderr } else { query.stdout };
    is_shown && line.at >= query.since && (query.until.0 == 0 || line.at <= query.until)
}

/// The files of a log with their inodes, the oldest first.
fn parts(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let file_name = entry.file_name();
        let number = match file_name.to_string_lossy().strip_prefix(&prefix) {
            Some(number) => number.parse::<u32>().ok(),
            None if file_name == name => Some(0),
            None => None,
        };
        if let (Some(number), Ok(metadata)) = (number, entry.metadata()) {
            found.push((number, metadata.ino(), entry.path()));
        }
    }
    found.sort_by_key(|(number, ..)| std::cmp::Reverse(*number));
    Ok(found.into_iter().map(|(_, inode, path)| (inode, path)).collect())
}

/// The same, seen twice alike: not while a rotation was renaming them.
fn settled_parts(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut before = parts(path)?;
    for _ in 0..LOOKS {
        let after = parts(path)?;
        if after == before {
            break;
        }
        before = after;
    }
    Ok(before)
}

fn oldest(path: &Path) -> io::Result<Option<Part>> {
    open(path, |parts| parts.first().cloned())
}

/// The part written after the one with this inode; the oldest if that one is gone.
fn newer(path: &Path, inode: u64) -> io::Result<Option<Part>> {
    open(path, |parts| {
        let next = parts.iter().position(|(i, _)| *i == inode).map_or(0, |at| at + 1);
        parts.get(next).cloned()
    })
}

/// Opens the part that is chosen, if it still is that part when it is open.
fn open(
    path: &Path,
    choose: impl Fn(&[(u64, PathBuf)]) -> Option<(u64, PathBuf)>,
) -> io::Result<Option<Part>> {
    for _ in 0..LOOKS {
        let Some((inode, path)) = choose(&settled_parts(path)?) else { return Ok(None) };
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if file.metadata()?.ino() == inode {
            let input = BufReader::new(file);
            return Ok(Some(Part { input, inode, offset: 0, is_drained: false }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
