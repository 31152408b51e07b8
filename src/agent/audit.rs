//! Brings the audits of this node's tasks to the managers.
//!
//! Shims write them into their tasks' directories; here they are read behind, and sent batch by
//! batch through the agent's session. A batch is sent again with every new session until a manager
//! says that it is stored, and only then the next one follows: the session is never kept busy, and
//! nothing is held but one batch. How far a task has come is beside its audit; without that it is
//! sent from its beginning, and managers keep each record once. What was not sent yet of a task
//! that is removed waits below `audit/unsent`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use minicbor::bytes::ByteVec;
use skep_core::id::{NodeId, TaskId};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{Agent, lock};
use crate::audit::{Head, Next, next};
use crate::clock::uptime;
use crate::files::{FileError, make_dir, remove_dir};
use crate::limits::{
    AUDIT_BATCH_BYTES, AUDIT_FILES, AUDIT_RECORD_BYTES, AUDIT_RESEND, AUDIT_SCAN, AUDIT_TASK_BYTES,
    AUDIT_UNSENT_BYTES, SESSION_SILENCE,
};
use crate::wire::audit::Portion;
use crate::wire::launch::AUDIT_FILE;
use crate::wire::session::FromAgent;

/// Beside an audit: the sequence of its last record that managers have stored, as text.
const SENT_FILE: &str = "audit.sent";

/// Bytes that hold the first record of most files.
const FIRST_BYTES: usize = 8 << 10;

/// Held while a task's audit is put aside, and while audits are read: of one that is in two places
/// the newer files would be read alone, and the older ones taken for sent.
static MOVING: Mutex<()> = Mutex::new(());

/// What the agent hears of its session that concerns the audits.
#[derive(Debug, Default)]
pub(super) struct Mail {
    sessions: watch::Sender<u64>,
    stored: watch::Sender<u64>,
}

impl Mail {
    /// A session has begun.
    pub(super) fn begin_session(&self) {
        self.sessions.send_modify(|count| *count += 1);
    }

    /// A batch is stored.
    pub(super) fn is_stored(&self, batch: u64) {
        self.stored.send_replace(batch);
    }
}

/// Names of the files of a task's audit, the newest first.
fn file_names() -> impl DoubleEndedIterator<Item = String> {
    (0..AUDIT_FILES).map(|n| match n {
        0 => AUDIT_FILE.to_owned(),
        n => format!("{AUDIT_FILE}.{n}"),
    })
}

fn unsent_dir(data_root: &Path) -> PathBuf {
    data_root.join("audit").join("unsent")
}

/// Puts the audit of a task that is removed where it waits to be sent.
///
/// # Errors
/// Names the file.
pub(super) fn set_aside(data_root: &Path, dir: &Path, id: &TaskId) -> Result<(), FileError> {
    // Whoever was killed as its files changed names left no newest one.
    let mut has_any = false;
    for name in file_names() {
        let path = dir.join(name);
        has_any |= path.try_exists().map_err(FileError::on("look for", &path))?;
    }
    if !has_any {
        return Ok(());
    }
    let _moving = lock(&MOVING);
    let aside = unsent_dir(data_root).join(id.as_str());
    make_dir(&aside, 0o700)?;
    for name in file_names().rev().chain([SENT_FILE.to_owned()]) {
        let from = dir.join(&name);
        match fs::rename(&from, aside.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::on("move", &from)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// How far a task's audit was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    /// The last record that was read.
    sequence: u64,
    /// The file's number on its disk; zero for none yet. A file that is gone may leave its number
    /// to a newer one.
    inode: u64,
    /// Bytes of that file.
    offset: u64,
}

/// What was read of one task.
#[derive(Debug, Default)]
struct Taken {
    bodies: Vec<ByteVec>,
    bytes: usize,
    place: Place,
    /// Whether nothing is left.
    is_all: bool,
}

/// A batch, and how far its tasks come with it.
#[derive(Debug, Default)]
struct Batch {
    portions: Vec<Portion>,
    bytes: usize,
    /// Whether there is more than it has room for.
    is_more: bool,
    places: Vec<(TaskId, PathBuf, Place)>,
}

/// Where the audits of all tasks are and how far they were sent.
#[derive(Debug)]
struct Tails {
    node: NodeId,
    tasks_dir: PathBuf,
    unsent_dir: PathBuf,
    sent: HashMap<TaskId, Place>,
}

impl Tails {
    /// Reads what is new. Blocking.
    fn gather(&mut self) -> Batch {
        let _moving = lock(&MOVING);
        let mut batch = Batch::default();
        let mut seen: HashMap<TaskId, Place> = HashMap::new();
        let unsent = directories(&self.unsent_dir).into_iter().map(|(id, dir)| (id, dir, true));
        let tasks = directories(&self.tasks_dir).into_iter().map(|(id, dir)| (id, dir, false));
        for (id, dir, is_aside) in unsent.chain(tasks) {
            if seen.contains_key(&id) {
                // A daemon was killed as it put this aside: what is there already is the older.
                batch.is_more = true;
                continue;
            }
            let from = self
                .sent
                .get(&id)
                .copied()
                .unwrap_or_else(|| Place { sequence: load_sent(&dir), ..Place::default() });
            seen.insert(id, from);
            if batch.bytes >= AUDIT_BATCH_BYTES {
                batch.is_more = true;
                continue;
            }
            let read = read_new(&dir, from).and_then(|taken| match taken {
                // Before it goes, the sequence alone says what was sent, not a place in a file.
                taken if is_aside && taken.bodies.is_empty() => {
                    read_new(&dir, Place { sequence: from.sequence, ..Place::default() })
                }
                taken => Ok(taken),
            });
            let taken = match read {
                Ok(taken) => taken,
                Err(error) => {
                    tracing::warn!(task = %id, %error, "a task's audit cannot be read");
                    continue;
                }
            };
            if !taken.bodies.is_empty() {
                batch.bytes += taken.bytes;
                batch.is_more |= !taken.is_all;
                batch.portions.push(Portion { node: self.node, task: id, bodies: taken.bodies });
                batch.places.push((id, dir, taken.place));
            } else if is_aside && taken.is_all {
                // All of it is stored, and nothing follows.
                seen.remove(&id);
                let _ = remove_dir(&dir);
            } else {
                seen.insert(id, taken.place);
            }
        }
        self.sent = seen;
        batch
    }

    /// Remembers that a batch is stored. Blocking.
    fn commit(&mut self, places: Vec<(TaskId, PathBuf, Place)>) {
        for (id, dir, place) in places {
            self.sent.insert(id, place);
            // Where it cannot be kept, or the task has just been removed, records are sent twice.
            let _ = fs::write(dir.join(SENT_FILE), place.sequence.to_string());
        }
    }

    /// Gives up the oldest of what waits, if that is too much. Blocking.
    fn bound_unsent(&self) {
        let mut waiting: Vec<_> = directories(&self.unsent_dir)
            .into_iter()
            .map(|(_, dir)| {
                let files = fs::read_dir(&dir).into_iter().flatten().flatten();
                let bytes: u64 = files.filter_map(|file| Some(file.metadata().ok()?.len())).sum();
                let since = fs::metadata(&dir).and_then(|found| found.modified()).ok();
                (since, bytes, dir)
            })
            .collect();
        waiting.sort();
        let mut bytes: u64 = waiting.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, own, dir) in waiting {
            if bytes <= AUDIT_UNSENT_BYTES {
                return;
            }
            bytes -= own;
            let dir_name = dir.display().to_string();
            tracing::error!(dir_name, "an audit that no manager has stored is given up: no room");
            let _ = remove_dir(&dir);
        }
    }
}

/// Directories that are named after tasks.
fn directories(parent: &Path) -> Vec<(TaskId, PathBuf)> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        Some((id, entry.path()))
    });
    named.collect()
}

fn load_sent(dir: &Path) -> u64 {
    let text = fs::read_to_string(dir.join(SENT_FILE)).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// The files of a task's audit, oldest first, with their numbers and lengths.
fn open_files(dir: &Path) -> io::Result<Vec<(File, u64, u64)>> {
    let mut files: Vec<(File, u64, u64)> = Vec::new();
    // The newest first: one that gets an older name meanwhile is seen twice, and none is missed.
    for name in file_names() {
        let file = match File::open(dir.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let found = file.metadata()?;
        if files.iter().all(|(_, inode, _)| *inode != found.ino()) {
            files.push((file, found.ino(), found.len()));
        }
    }
    files.reverse();
    Ok(files)
}

/// The first record of a file; none if it has no whole one. A file whose number is remembered is
/// still the same one only if that came before: a newer one begins behind all of an older one.
fn first_sequence(file: &mut File) -> io::Result<Option<u64>> {
    // Most records are short.
    for limit in [FIRST_BYTES, AUDIT_RECORD_BYTES + 8] {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.take(limit as u64).read_to_end(&mut bytes)?;
        if let Next::Record { body, .. } = next(&bytes) {
            return Ok(Head::parse(body).ok().map(|head| head.sequence));
        }
        if bytes.len() < limit {
            break;
        }
    }
    Ok(None)
}

/// Reads a file from a place in it on, up to its end or to a task's share.
fn read_file(file: &mut File, taken: &mut Taken) -> io::Result<()> {
    while taken.bytes < AUDIT_TASK_BYTES {
        // One record more than there is room for: the longest must get through.
        let limit = AUDIT_TASK_BYTES - taken.bytes + AUDIT_RECORD_BYTES + 8;
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(taken.place.offset))?;
        file.take(limit as u64).read_to_end(&mut bytes)?;
        let done = read_bodies(&bytes, taken);
        taken.place.offset += done as u64;
        // Records that were sent before take no room: what follows them is still to be read.
        if done == 0 || bytes.len() < limit {
            break;
        }
    }
    Ok(())
}

/// Takes new records from the beginning of `bytes`; the number of bytes that it is done with.
fn read_bodies(bytes: &[u8], taken: &mut Taken) -> usize {
    let mut done = 0;
    while taken.bytes < AUDIT_TASK_BYTES
        && let Next::Record { body, taken: length } = next(bytes.get(done..).unwrap_or_default())
    {
        done += length;
        // One that is no record would hold up all that follow it.
        let Ok(head) = Head::parse(body) else { continue };
        if head.sequence <= taken.place.sequence {
            continue;
        }
        taken.place.sequence = head.sequence;
        taken.bytes += body.len();
        taken.bodies.push(body.to_vec().into());
    }
    done
}

/// Reads what follows `from`, up to a bound.
fn read_new(dir: &Path, from: Place) -> io::Result<Taken> {
    let mut taken = Taken { place: from, ..Taken::default() };
    // Most of the time there is nothing new.
    let newest = fs::metadata(dir.join(AUDIT_FILE));
    if newest.is_ok_and(|found| found.ino() == from.inode && found.len() == from.offset) {
        taken.is_all = true;
        return Ok(taken);
    }
    let mut files = open_files(dir)?;
    let mut offset = 0;
    if let Some(at) = files.iter().position(|(_, inode, _)| *inode == from.inode)
        && let Some((file, _, len)) = files.get_mut(at)
        && first_sequence(file)?.is_some_and(|first| first <= from.sequence)
    {
        offset = from.offset.min(*len);
        files.drain(..at);
    }
    for (mut file, inode, _) in files {
        taken.place = Place { inode, offset, ..taken.place };
        read_file(&mut file, &mut taken)?;
        if taken.bytes >= AUDIT_TASK_BYTES {
            return Ok(taken);
        }
        // What is left is a record that was cut off, or that is being written: in the last file
        // it is looked at again.
        offset = 0;
    }
    taken.is_all = true;
    Ok(taken)
}

impl Agent {
    /// Sends audits for as long as the node runs.
    pub async fn send_audit(&self) {
        let context = &self.context;
        let mut tails = Tails {
            node: context.node,
            tasks_dir: context.tasks_dir(),
            unsent_dir: unsent_dir(&context.data_root),
            sent: HashMap::new(),
        };
        let mut tick = interval(AUDIT_SCAN);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut number = 0;
        loop {
            tick.tick().await;
            loop {
                let gathered = tokio::task::spawn_blocking(move || {
                    tails.bound_unsent();
                    let batch = tails.gather();
                    (tails, batch)
                });
                let Ok((back, batch)) = gathered.await else { return };
                tails = back;
                if batch.portions.is_empty() {
                    break;
                }
                number += 1;
                self.send_batch(number, batch.portions).await;
                let committed = tokio::task::spawn_blocking(move || {
                    tails.commit(batch.places);
                    tails
                });
                let Ok(back) = committed.await else { return };
                tails = back;
                if !batch.is_more {
                    break;
                }
            }
        }
    }

    /// Sends a batch until it is stored.
    async fn send_batch(&self, batch: u64, portions: Vec<Portion>) {
        let (mut sessions, mut stored) =
            (self.mail.sessions.subscribe(), self.mail.stored.subscribe());
        loop {
            sessions.borrow_and_update();
            let message = FromAgent::Audit { batch, portions: portions.clone() };
            // It fails when the node stops, and then nobody waits for this.
            let _ = self.context.session.send(message).await;
            tokio::select! {
                Ok(_) = stored.wait_for(|stored| *stored == batch) => return,
                Ok(()) = sessions.changed() => {}
                () = self.silence_in_session() => {}
            }
        }
    }

    /// Ends once a session has gone on for long: without one, nothing may pile up.
    async fn silence_in_session(&self) {
        loop {
            sleep(AUDIT_RESEND).await;
            let silent = uptime().0.saturating_sub(lock(&self.contact).0);
            if Duration::from_nanos(silent) < SESSION_SILENCE {
                return;
            }
        }
    }
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
