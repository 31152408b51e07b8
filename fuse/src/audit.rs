//! Who opened what: one row per secret, version, user, group and executable.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::limits;
use crate::tree::Grant;

/// Who reads what.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reader {
    /// The secret's name.
    pub secret: String,
    /// Its version; that of the last grant, if the open was refused.
    pub version: u64,
    /// The process's user, as the host numbers it.
    pub uid: u32,
    /// The process's group, as the host numbers it.
    pub gid: u32,
    /// The process's executable as its task sees it; none if the process was gone.
    pub executable: Option<PathBuf>,
}

/// What one reader did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The reader; none for the row of all that had no room for one of their own.
    pub reader: Option<Reader>,
    /// Opens that succeeded.
    pub opened: u64,
    /// Opens that the server refused. What permissions forbid never gets that far.
    pub refused: u64,
    /// First open, in nanoseconds since 1970.
    pub first_ns: i64,
    /// Last open, in nanoseconds since 1970.
    pub last_ns: i64,
}

/// How an open ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Opened,
    Refused,
}

/// A process, as the kernel names it in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) pid: u32,
}

#[derive(Clone, Copy, Debug)]
struct Counts {
    opened: u64,
    refused: u64,
    first_ns: i64,
    last_ns: i64,
}

#[derive(Debug, Default)]
struct Table {
    rows: HashMap<Reader, Counts>,
    other: Option<Counts>,
}

/// The audit of one task. Bounded: see [`limits::AUDIT_ROWS`].
#[derive(Debug, Default)]
pub struct Audit {
    table: Mutex<Table>,
    cached_reads: AtomicU64,
}

impl Audit {
    /// Every row, ordered by reader, the row of the others last.
    pub fn snapshot(&self) -> Vec<Row> {
        let table = self.table();
        let row = |reader, counts: &Counts| Row {
            reader,
            opened: counts.opened,
            refused: counts.refused,
            first_ns: counts.first_ns,
            last_ns: counts.last_ns,
        };
        let mut rows: Vec<Row> =
            table.rows.iter().map(|(reader, counts)| row(Some(reader.clone()), counts)).collect();
        rows.sort_by(|a, b| a.reader.cmp(&b.reader));
        rows.extend(table.other.iter().map(|counts| row(None, counts)));
        rows
    }

    /// Reads that went through the kernel's page cache: private maps and readahead.
    pub fn cached_reads(&self) -> u64 {
        self.cached_reads.load(Ordering::Relaxed)
    }

    pub(crate) fn count_cached_read(&self) {
        self.cached_reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one open. Looks the executable up, so the answer should be on its way already.
    pub(crate) fn record(&self, grant: &Grant, caller: Caller, outcome: Outcome) {
        let reader = Reader {
            secret: grant.secret.clone(),
            version: grant.version,
            uid: caller.uid,
            gid: caller.gid,
            executable: executable(caller.pid),
        };
        self.count(reader, outcome, now_ns());
    }

    fn count(&self, reader: Reader, outcome: Outcome, now_ns: i64) {
        let mut table = self.table();
        let fresh = Counts { opened: 0, refused: 0, first_ns: now_ns, last_ns: now_ns };
        let counts = if table.rows.len() < limits::AUDIT_ROWS || table.rows.contains_key(&reader) {
            table.rows.entry(reader).or_insert(fresh)
        } else {
            table.other.get_or_insert(fresh)
        };
        match outcome {
            Outcome::Opened => counts.opened += 1,
            Outcome::Refused => counts.refused += 1,
        }
        counts.last_ns = now_ns;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looked up afresh each time: an open is followed by a read that waits for us, so the process
/// is nearly always still there, and a remembered answer would be wrong after an exec.
fn executable(pid: u32) -> Option<PathBuf> {
    let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    (path.as_os_str().as_bytes().len() <= limits::EXECUTABLE_BYTES).then_some(path)
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(version: u64) -> Reader {
        Reader { secret: "s".into(), version, uid: 0, gid: 0, executable: None }
    }

    #[test]
    fn counts_per_reader_and_bounds_rows() {
        let audit = Audit::default();
        for version in 0..limits::AUDIT_ROWS as u64 + 10 {
            audit.count(reader(version), Outcome::Opened, 1);
        }
        audit.count(reader(3), Outcome::Refused, 7);
        audit.count(reader(3), Outcome::Opened, 9);
        let rows = audit.snapshot();
        assert_eq!(rows.len(), limits::AUDIT_ROWS + 1);
        let (third, other) = (&rows[3], &rows[limits::AUDIT_ROWS]);
        assert_eq!(third.reader, Some(reader(3)));
        assert_eq!((third.opened, third.refused), (2, 1));
        assert_eq!((third.first_ns, third.last_ns), (1, 9));
        assert_eq!((other.reader.as_ref(), other.opened), (None, 10));
    }

    #[test]
    fn names_the_executable_of_a_live_process() {
        let own = executable(std::process::id());
        assert_eq!(own, std::env::current_exe().ok());
        assert_eq!(executable(0), None);
    }
}
