//! The task's log in Docker's json-file form: `{"log":"line\n","stream":"stdout","time":"…"}`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use super::events::{Event, Events};
use crate::limits::{LOG_FILE_BYTES, LOG_FILES, LOG_LINE_BYTES};

/// Stack of the log's thread.
const STACK_BYTES: usize = 64 << 10;
/// Bytes taken from a pipe at once.
const READ_BYTES: usize = 8 << 10;
/// Bytes at the end of a log that are searched for an error.
const TAIL_BYTES: u64 = 8 << 10;
/// Log files a task may be told to keep, at most.
const FILES_END: u32 = 1_000;
/// Least time between two words on whether the log can be written.
const TROUBLE_PAUSE: Duration = Duration::from_secs(1);

/// One line of the file.
#[derive(Serialize)]
struct Line<'a> {
    log: &'a str,
    stream: &'a str,
    time: &'a str,
}

/// A log, rotated by size. It is opened when it is first needed, and again for as long as that
/// fails: a log that cannot be written must not keep a task from its work.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    max_bytes: u64,
    max_files: u32,
}

impl LogFile {
    /// A log at `path`, or the continuation of the one there. Zeros stand for the defaults.
    pub(super) fn new(path: &Path, max_bytes: u64, max_files: u32) -> Self {
        let max_bytes = if max_bytes == 0 { LOG_FILE_BYTES } else { max_bytes };
        let max_files = if max_files == 0 { LOG_FILES } else { max_files.min(FILES_END) };
        Self { path: path.into(), file: None, size: 0, max_bytes, max_files }
    }

    /// Appends whole lines: all of them, or none.
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            if let Some(dir) = self.path.parent() {
                fs::create_dir_all(dir)?;
            }
            let file = open(&self.path)?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        if self.size > 0 && self.size + lines.len() as u64 > self.max_bytes {
            self.rotate()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        if let Err(error) = file.write_all(lines) {
            // The next line must not begin within one that was cut off.
            let _ = file.set_len(self.size);
            return Err(error);
        }
        self.size += lines.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let named = |end: &str| {
            let mut name = self.path.clone().into_os_string();
            name.push(end);
            PathBuf::from(name)
        };
        if self.max_files == 1 {
            if let Some(file) = &self.file {
                file.set_len(0)?;
            }
        } else {
            // Made first: where this fails, no older file must have moved.
            let next = named(".next");
            let file = open(&next)?;
            for n in (1..self.max_files - 1).rev() {
                // What is not there yet needs no new name.
                let _ = fs::rename(named(&format!(".{n}")), named(&format!(".{}", n + 1)));
            }
            fs::rename(&self.path, named(".1"))?;
            fs::rename(next, &self.path)?;
            self.file = Some(file);
        }
        self.size = 0;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// The last line of a log that came from the standard error stream.
pub(super) fn last_error(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail).ok()?;
    String::from_utf8_lossy(&tail).lines().rev().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        (line.get("stream")? == "stderr").then_some(())?;
        Some(line.get("log")?.as_str()?.trim().to_owned())
    })
}

/// What keeps the log from being written: told when it begins and when it ends.
struct Trouble {
    events: Events,
    told: Option<String>,
    at: Option<Instant>,
}

impl Trouble {
    fn note(&mut self, outcome: io::Result<()>, path: &Path) {
        let now = outcome.err().map(|error| {
            format!("its log cannot be written, lines are lost: {}: {error}", path.display())
        });
        if now != self.told && self.at.is_none_or(|at| at.elapsed() >= TROUBLE_PAUSE) {
            self.at = Some(Instant::now());
            self.told.clone_from(&now);
            self.events.send(Event::Log(now));
        }
    }
}

/// Bytes of one stream that are not a whole line yet.
#[derive(Debug)]
struct Splitter {
    stream: &'static str,
    rest: Vec<u8>,
}

impl Splitter {
    /// Takes bytes and writes the lines they complete to `out`.
    fn take(&mut self, bytes: &[u8], time: &str, out: &mut Vec<u8>) {
        let mut bytes = bytes;
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let (line, rest) = bytes.split_at(end + 1);
            self.rest.extend_from_slice(line);
            self.cut(time, out);
            self.flush(time, out);
            bytes = rest;
        }
        self.rest.extend_from_slice(bytes);
        self.cut(time, out);
    }

    /// Writes all but the last piece of a line that is too long.
    fn cut(&mut self, time: &str, out: &mut Vec<u8>) {
        while self.rest.len() > LOG_LINE_BYTES {
            let at = boundary(&self.rest, LOG_LINE_BYTES);
            let tail = self.rest.split_off(at);
            self.flush(time, out);
            self.rest = tail;
        }
    }

    fn flush(&mut self, time: &str, out: &mut Vec<u8>) {
        if self.rest.is_empty() {
            return;
        }
        let log = String::from_utf8_lossy(&self.rest);
        let line = Line { log: &log, stream: self.stream, time };
        // Strings always serialise, and a vector always takes them.
        let _ = serde_json::to_writer(&mut *out, &line);
        out.push(b'\n');
        self.rest.clear();
    }
}

/// Where to cut at most `at` bytes off without splitting a character.
fn boundary(bytes: &[u8], at: usize) -> usize {
    let is_start = |i: &usize| bytes.get(*i).is_none_or(|b| b & 0xc0 != 0x80);
    (at.saturating_sub(3)..=at).rev().find(is_start).unwrap_or(at)
}

/// Copies streams to the log until all have ended. The receiver hears of that.
pub(super) fn start(
    file: LogFile,
    streams: Vec<(OwnedFd, &'static str)>,
    events: Events,
) -> io::Result<Receiver<()>> {
    let (done, ended) = sync_channel(1);
    let sources = streams
        .into_iter()
        .map(|(fd, stream)| (File::from(fd), Splitter { stream, rest: Vec::new() }))
        .collect();
    thread::Builder::new()
        .name("log".into())
        .stack_size(STACK_BYTES)
        .spawn(move || copy(file, sources, Trouble { events, told: None, at: None }, &done))?;
    Ok(ended)
}

fn copy(
    mut file: LogFile,
    mut sources: Vec<(File, Splitter)>,
    mut trouble: Trouble,
    done: &SyncSender<()>,
) {
    let mut buffer = vec![0; READ_BYTES];
    let mut out = Vec::new();
    // Readers find the file from the first moment on.
    trouble.note(file.append(&[]), &file.path);
    while !sources.is_empty() {
        let ready = wait(&sources);
        let time = jiff::Timestamp::now().to_string();
        let mut ended = Vec::new();
        for index in ready {
            let Some((source, splitter)) = sources.get_mut(index) else { continue };
            match source.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // A terminal whose last user is gone says EIO.
                Ok(0) | Err(_) => {
                    splitter.flush(&time, &mut out);
                    ended.push(index);
                }
                Ok(n) => splitter.take(buffer.get(..n).unwrap_or_default(), &time, &mut out),
            }
        }
        for index in ended.into_iter().rev() {
            sources.remove(index);
        }
        // A full disk loses lines; it must not stop the container.
        if !out.is_empty() {
            trouble.note(file.append(&out), &file.path);
            out.clear();
        }
    }
    let _ = done.try_send(());
}

fn wait(sources: &[(File, Splitter)]) -> Vec<usize> {
    let mut fds: Vec<_> =
        sources.iter().map(|(f, _)| PollFd::new(f.as_fd(), PollFlags::POLLIN)).collect();
    if poll(&mut fds, PollTimeout::NONE).is_err() {
        return Vec::new();
    }
    let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
    fds.iter().enumerate().filter(|(_, fd)| ready(fd)).map(|(index, _)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<(String, String)> {
        String::from_utf8(bytes.to_vec())
            .unwrap()
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
            .map(|v| (v["log"].as_str().unwrap().into(), v["stream"].as_str().unwrap().into()))
            .collect()
    }

    fn split(pieces: &[&[u8]]) -> Vec<String> {
        let mut splitter = Splitter { stream: "stdout", rest: Vec::new() };
        let mut out = Vec::new();
        for piece in pieces {
            splitter.take(piece, "t", &mut out);
        }
        splitter.flush("t", &mut out);
        lines(&out).into_iter().map(|(log, _)| log).collect()
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        assert_eq!(split(&[b"a\nb", b"c\n", b"d"]), ["a\n", "bc\n", "d"]);
        assert_eq!(split(&[b"\n\n"]), ["\n", "\n"]);
        assert_eq!(split(&[b"\xff\xfe\"\\\n"]), ["\u{fffd}\u{fffd}\"\\\n"]);
        assert!(split(&[]).is_empty());
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let long = "ä".repeat(LOG_LINE_BYTES);
        let cut = split(&[b"x", long.as_bytes(), b"\n"]);
        assert_eq!(cut.concat(), format!("x{long}\n"));
        assert!(cut.iter().all(|piece| piece.len() <= LOG_LINE_BYTES));
        assert_eq!(cut.len(), 3);
        let one_read = [long.as_bytes(), b"\n"].concat();
        assert!(split(&[&one_read]).iter().all(|piece| piece.len() <= LOG_LINE_BYTES));
    }

    #[test]
    fn files_are_rotated_and_only_so_many_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/json.log");
        let mut file = LogFile::new(&path, 10, 3);
        for line in ["one-1\n", "two-2\n", "three\n", "four4\n"] {
            file.append(line.as_bytes()).unwrap();
        }
        let read = |suffix: &str| {
            fs::read_to_string(dir.path().join(format!("logs/json.log{suffix}"))).ok()
        };
        assert_eq!(read("").as_deref(), Some("four4\n"));
        assert_eq!(read(".1").as_deref(), Some("three\n"));
        assert_eq!(read(".2").as_deref(), Some("two-2\n"));
        assert_eq!(read(".3"), None);

        let single = dir.path().join("single");
        let mut file = LogFile::new(&single, 10, 1);
        file.append(b"one-1\n").unwrap();
        file.append(b"two-2\n").unwrap();
        assert_eq!(fs::read_to_string(&single).unwrap(), "two-2\n");
    }

    #[test]
    fn a_log_that_cannot_be_written_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("json.log");
        fs::create_dir(&path).unwrap();
        let mut file = LogFile::new(&path, 10, 3);
        assert!(file.append(b"lost\n").is_err());
        fs::remove_dir(&path).unwrap();
        file.append(b"one-1\n").unwrap();
        // The next file cannot be made: the older ones stay where they are.
        fs::write(dir.path().join("json.log.1"), "older\n").unwrap();
        fs::create_dir(dir.path().join("json.log.next")).unwrap();
        for _ in 0..3 {
            assert!(file.append(b"two-2\n").is_err());
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!((read("json.log"), read("json.log.1")), ("one-1\n".into(), "older\n".into()));
        fs::remove_dir(dir.path().join("json.log.next")).unwrap();
        file.append(b"three\n").unwrap();
        assert_eq!((read("json.log"), read("json.log.1")), ("three\n".into(), "one-1\n".into()));
    }

    #[test]
    fn trouble_is_told_once_and_its_end_too() {
        let (events, queue) = Events::new().unwrap();
        let mut trouble = Trouble { events, told: None, at: None };
        let path = Path::new("/log");
        trouble.note(Ok(()), path);
        trouble.note(Err(io::ErrorKind::StorageFull.into()), path);
        trouble.note(Err(io::ErrorKind::StorageFull.into()), path);
        let told: Vec<_> = queue.drain().into_iter().collect();
        assert!(
            matches!(told.as_slice(), [Event::Log(Some(why))] if why.contains("/log")),
            "{told:?}"
        );
        // Not sooner than a pause allows.
        trouble.note(Ok(()), path);
        assert!(queue.drain().is_empty());
        trouble.at = None;
        trouble.note(Ok(()), path);
        let told: Vec<_> = queue.drain().into_iter().collect();
        assert!(matches!(told.as_slice(), [Event::Log(None)]), "{told:?}");
    }

    #[test]
    fn the_last_error_is_found_among_the_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("json.log");
        assert_eq!(last_error(&path), None);
        let line = |log: &str, stream: &str| {
            let line = Line { log, stream, time: "t" };
            serde_json::to_string(&line).unwrap() + "\n"
        };
        let text = line("first\n", "stderr") + &line("last\n", "stderr") + &line("x\n", "stdout");
        fs::write(&path, "y".repeat(20_000) + "\n" + &text).unwrap();
        assert_eq!(last_error(&path).as_deref(), Some("last"));
    }

    #[test]
    fn both_streams_reach_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("json.log");
        let (out_read, out_write) = io::pipe().unwrap();
        let (err_read, err_write) = io::pipe().unwrap();
        let file = LogFile::new(&path, 0, 0);
        let streams = vec![(out_read.into(), "stdout"), (err_read.into(), "stderr")];
        let ended = start(file, streams, Events::new().unwrap().0).unwrap();
        (&out_write).write_all(b"to out\n").unwrap();
        (&err_write).write_all(b"to err").unwrap();
        drop((out_write, err_write));
        ended.recv_timeout(Duration::from_secs(10)).unwrap();
        let mut found = lines(&fs::read(&path).unwrap());
        found.sort();
        assert_eq!(
            found,
            [("to err".into(), "stderr".into()), ("to out\n".into(), "stdout".into())]
        );
    }
}
