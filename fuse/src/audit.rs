//! Who opened what: one row per secret, version, user, group and executable.

use std::cmp::Ordering as Order;
use std::ffi::{CStr, OsStr};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
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
    /// Opens that the server refused, and looks at what was taken away. What permissions forbid
    /// never gets that far.
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

impl Counts {
    const fn none(at_ns: i64) -> Counts {
        Counts { opened: 0, refused: 0, first_ns: at_ns, last_ns: at_ns }
    }

    fn count(&mut self, outcome: Outcome, now_ns: i64) {
        match outcome {
            Outcome::Opened => self.opened += 1,
            Outcome::Refused => self.refused += 1,
        }
        self.last_ns = now_ns;
    }

    fn is_none(&self) -> bool {
        self.opened == 0 && self.refused == 0
    }

    fn row(&self, reader: Option<Reader>) -> Row {
        let Counts { opened, refused, first_ns, last_ns } = *self;
        Row { reader, opened, refused, first_ns, last_ns }
    }
}

/// What one reader did, in all and of that what nobody has kept yet.
#[derive(Clone, Copy, Debug)]
struct Tally {
    all: Counts,
    unkept: Counts,
}

impl Tally {
    const fn none(at_ns: i64) -> Tally {
        Tally { all: Counts::none(at_ns), unkept: Counts::none(at_ns) }
    }

    fn count(&mut self, outcome: Outcome, now_ns: i64) {
        if self.unkept.is_none() {
            self.unkept.first_ns = now_ns;
        }
        self.all.count(outcome, now_ns);
        self.unkept.count(outcome, now_ns);
    }

    /// What a row says is kept; what came since stays. When the first of that came is known only
    /// so far as that it was not before the row's last.
    fn keep(&mut self, row: &Row) {
        self.unkept.opened = self.unkept.opened.saturating_sub(row.opened);
        self.unkept.refused = self.unkept.refused.saturating_sub(row.refused);
        self.unkept.first_ns = row.last_ns;
    }
}

/// A reader before it has a row of its own.
#[derive(Clone, Copy, Debug)]
struct Seen<'a> {
    secret: &'a str,
    version: u64,
    caller: Caller,
    executable: Option<&'a Path>,
}

impl Seen<'_> {
    /// Where it stands in the table against a row's reader.
    fn order(&self, row: &Reader) -> Order {
        fn bytes(path: &Path) -> &[u8] {
            path.as_os_str().as_bytes()
        }
        let Caller { uid, gid, .. } = self.caller;
        row.secret
            .as_str()
            .cmp(self.secret)
            .then(row.version.cmp(&self.version))
            .then(row.uid.cmp(&uid))
            .then(row.gid.cmp(&gid))
            .then_with(|| row.executable.as_deref().map(bytes).cmp(&self.executable.map(bytes)))
    }

    fn of(reader: &Reader) -> Seen<'_> {
        Seen {
            secret: &reader.secret,
            version: reader.version,
            caller: Caller { uid: reader.uid, gid: reader.gid, pid: 0 },
            executable: reader.executable.as_deref(),
        }
    }

    fn to_reader(self) -> Reader {
        Reader {
            secret: self.secret.to_owned(),
            version: self.version,
            uid: self.caller.uid,
            gid: self.caller.gid,
            executable: self.executable.map(Path::to_owned),
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    /// In order, so that a reader is found without a copy of it.
    rows: Vec<(Reader, Tally)>,
    other: Option<Tally>,
    /// Whether there may be something that [`Audit::await_change`] has not told of.
    changed: bool,
}

/// The audit of one task. Bounded: see [`limits::AUDIT_ROWS`].
#[derive(Debug, Default)]
pub struct Audit {
    table: Mutex<Table>,
    change: Condvar,
    cached_reads: AtomicU64,
}

impl Audit {
    /// Every row, ordered by reader, the row of the others last.
    pub fn snapshot(&self) -> Vec<Row> {
        let table = self.table();
        let row = |(reader, tally): &(Reader, Tally)| tally.all.row(Some(reader.clone()));
        let mut rows: Vec<Row> = table.rows.iter().map(row).collect();
        rows.extend(table.other.iter().map(|tally| tally.all.row(None)));
        rows
    }

    /// What was counted and not kept yet: at most `limit` rows. Their numbers are those of the
    /// opens since the last that were kept. What it tells it tells again until that is kept.
    pub fn unkept(&self, limit: usize) -> Vec<Row> {
        let table = self.table();
        let own = table.rows.iter().map(|(reader, tally)| (Some(reader), tally));
        let all = own.chain(table.other.iter().map(|tally| (None, tally)));
        let new = all.filter(|(_, tally)| !tally.unkept.is_none());
        new.take(limit).map(|(reader, tally)| tally.unkept.row(reader.cloned())).collect()
    }

    /// These rows, which [`Audit::unkept`] told, are kept.
    pub fn keep(&self, kept: &[Row]) {
        let mut table = self.table();
        let Table { rows, other, .. } = &mut *table;
        for row in kept {
            let tally = match &row.reader {
                None => other.as_mut(),
                Some(reader) => {
                    let seen = Seen::of(reader);
                    let found = rows.binary_search_by(|(row, _)| seen.order(row));
                    found.ok().and_then(|at| rows.get_mut(at)).map(|(_, tally)| tally)
                }
            };
            if let Some(tally) = tally {
                tally.keep(row);
            }
        }
    }

    /// Waits until something was counted, or somebody called [`Audit::wake`], since it last
    /// returned.
    pub fn await_change(&self) {
        let mut table = self.table();
        while !std::mem::take(&mut table.changed) {
            table = self.change.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends a wait for a change.
    pub fn wake(&self) {
        self.note_change(&mut self.table());
    }

    /// Only the first of several changes costs more than a look.
    fn note_change(&self, table: &mut Table) {
        if !std::mem::replace(&mut table.changed, true) {
            self.change.notify_one();
        }
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
        let mut space = [0; limits::EXECUTABLE_BYTES + 1];
        let executable = executable(caller.pid, &mut space);
        let (secret, version) = (grant.secret.as_str(), grant.version);
        self.count(Seen { secret, version, caller, executable }, outcome, now_ns());
    }

    fn count(&self, seen: Seen<'_>, outcome: Outcome, now_ns: i64) {
        let mut table = self.table();
        let Table { rows, other, .. } = &mut *table;
        let fresh = Tally::none(now_ns);
        let found = rows.binary_search_by(|(row, _)| seen.order(row));
        let tally = match found {
            Ok(at) => rows.get_mut(at).map(|(_, tally)| tally),
            Err(at) if rows.len() < limits::AUDIT_ROWS => {
                rows.insert(at, (seen.to_reader(), fresh));
                rows.get_mut(at).map(|(_, tally)| tally)
            }
            Err(_) => Some(other.get_or_insert(fresh)),
        };
        let Some(tally) = tally else { return };
        tally.count(outcome, now_ns);
        self.note_change(&mut table);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looked up afresh each time: an open is followed by a read that waits for us, so the process
/// is nearly always still there, and a remembered answer would be wrong after an exec. Whatever
/// tells that there was none in between costs as much as the look itself.
fn executable(pid: u32, space: &mut [u8]) -> Option<&Path> {
    let mut name = [0; 32];
    // Ends with the NUL that the path needs; there is room for any number.
    write!(name.as_mut_slice(), "/proc/{pid}/exe").ok()?;
    let name = CStr::from_bytes_until_nul(&name).ok()?;
    let limit = space.len();
    let length = rustix::fs::readlinkat_raw(rustix::fs::CWD, name, &mut *space).ok()?;
    let path = space.get(..length).filter(|_| length < limit)?;
    Some(Path::new(OsStr::from_bytes(path)))
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };

    fn seen(version: u64) -> Seen<'static> {
        Seen { secret: "s", version, caller: CALLER, executable: None }
    }

    #[test]
    fn counts_per_reader_and_bounds_rows() {
        let audit = Audit::default();
        // Backwards, so that rows come before those there are.
        for version in (0..limits::AUDIT_ROWS as u64).rev() {
            audit.count(seen(version), Outcome::Opened, 1);
        }
        for version in 2_000..2_010 {
            audit.count(seen(version), Outcome::Opened, 1);
        }
        audit.count(seen(3), Outcome::Refused, 7);
        audit.count(seen(3), Outcome::Opened, 9);
        let rows = audit.snapshot();
        assert_eq!(rows.len(), limits::AUDIT_ROWS + 1);
        let (third, other) = (&rows[3], &rows[limits::AUDIT_ROWS]);
        assert_eq!(third.reader, Some(seen(3).to_reader()));
        assert_eq!((third.opened, third.refused), (2, 1));
        assert_eq!((third.first_ns, third.last_ns), (1, 9));
        assert_eq!((other.reader.as_ref(), other.opened), (None, 10));
    }

    #[test]
    fn readers_differ_by_everything_but_the_process() {
        let audit = Audit::default();
        let one = Seen { executable: Some(Path::new("/bin/a")), ..seen(1) };
        let others = [
            Seen { secret: "t", ..one },
            Seen { version: 2, ..one },
            Seen { caller: Caller { uid: 1, ..CALLER }, ..one },
            Seen { caller: Caller { gid: 1, ..CALLER }, ..one },
            Seen { executable: Some(Path::new("/bin/b")), ..one },
            Seen { executable: Some(Path::new("/bin/a/c")), ..one },
            Seen { executable: None, ..one },
        ];
        let same = Seen { caller: Caller { pid: 7, ..CALLER }, ..one };
        for _ in 0..2 {
            for seen in others.into_iter().chain([one, same]) {
                audit.count(seen, Outcome::Opened, 1);
            }
        }
        let rows = audit.snapshot();
        assert_eq!(rows.len(), others.len() + 1);
        for row in rows {
            let is_one = row.reader == Some(one.to_reader());
            assert_eq!(row.opened, if is_one { 4 } else { 2 }, "{row:?}");
        }
    }

    #[test]
    fn tells_what_is_new_until_it_is_kept() {
        let audit = Audit::default();
        assert!(audit.unkept(10).is_empty());
        audit.count(seen(1), Outcome::Opened, 5);
        audit.count(seen(2), Outcome::Refused, 6);
        audit.count(seen(1), Outcome::Opened, 7);
        let told = audit.unkept(10);
        let numbers = |rows: &[Row]| -> Vec<_> {
            rows.iter().map(|r| (r.opened, r.refused, r.first_ns, r.last_ns)).collect()
        };
        assert_eq!(numbers(&told), [(2, 0, 5, 7), (0, 1, 6, 6)]);
        assert_eq!(audit.unkept(1), told[..1]);
        // One that comes between telling and keeping is told next.
        audit.count(seen(1), Outcome::Opened, 9);
        audit.keep(&told);
        assert_eq!(numbers(&audit.unkept(10)), [(1, 0, 7, 9)]);
        audit.keep(&audit.unkept(10));
        assert!(audit.unkept(10).is_empty());
        audit.count(seen(1), Outcome::Refused, 20);
        assert_eq!(numbers(&audit.unkept(10)), [(0, 1, 20, 20)]);
        assert_eq!(numbers(&audit.snapshot()), [(3, 1, 5, 20), (0, 1, 6, 6)]);
    }

    #[test]
    fn the_row_of_the_others_is_told_and_kept_too() {
        let audit = Audit::default();
        let all = limits::AUDIT_ROWS as u64;
        (0..all + 3).for_each(|version| audit.count(seen(version), Outcome::Opened, 1));
        let told = audit.unkept(usize::MAX);
        assert_eq!(told.len(), limits::AUDIT_ROWS + 1);
        let last = told.last().unwrap();
        assert_eq!((last.reader.as_ref(), last.opened), (None, 3));
        audit.keep(&told);
        assert!(audit.unkept(usize::MAX).is_empty());
    }

    #[test]
    fn a_change_ends_the_wait_for_one() {
        let audit = std::sync::Arc::new(Audit::default());
        let wait = |change: fn(&Audit)| {
            let waiting = std::sync::Arc::clone(&audit);
            let waiter = std::thread::spawn(move || waiting.await_change());
            change(&audit);
            waiter.join().unwrap();
            assert!(!audit.table().changed);
        };
        wait(|audit| audit.count(seen(1), Outcome::Opened, 1));
        wait(Audit::wake);
    }

    #[test]
    fn names_the_executable_of_a_live_process() {
        let current = std::env::current_exe().unwrap();
        let mut space = [0; 4_096];
        assert_eq!(executable(std::process::id(), &mut space), Some(&*current));
        let length = current.as_os_str().len();
        let exact = executable(std::process::id(), &mut space[..length + 1]);
        assert_eq!(exact, Some(&*current));
        assert_eq!(executable(std::process::id(), &mut space[..length]), None, "cut off");
        for nobody in [0, u32::MAX] {
            assert_eq!(executable(nobody, &mut space), None);
        }
    }
}
