//! Watchers of a secret that changes, and the write that tells them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, gettid};
use skep_core::model::material::MaterialKind;

use crate::rig::{BOUND, Rig, is_dead, taken, time_until};

const FOREVER: [&str; 3] = ["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"];
/// The number of a write among the kernel's requests.
const WRITE: u32 = 16;

#[test]
fn watchers_hear_through_the_directory_and_through_single_files() -> Result<()> {
    let mut rig = Rig::new(&FOREVER)?;
    let secret = rig.grant(MaterialKind::Secret, "s", "s")?;
    rig.grant_again(secret, MaterialKind::Secret, "s", "/etc/app/key.pem");
    rig.grant_again(secret, MaterialKind::Secret, "s", "deep/er/s");
    let mut shim = rig.spawn()?;
    shim.deliver(&[(secret, 1, "one")])?;
    let root = format!("/proc/{}/root", shim.start()?.pid);
    let events = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let mask = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE;
    let places = ["run/secrets", "run/secrets/s", "etc/app/key.pem", "run/secrets/deep/er"];
    let mut watches = BTreeMap::new();
    for place in places {
        watches.insert(events.add_watch(format!("{root}/{place}").as_str(), mask)?, place);
    }
    for (version, text) in [(2, "two"), (3, "three")] {
        let delivered = shim.deliver(&[(secret, version, text)])?;
        ensure!(taken(&delivered) == Some(version));
        let mut seen: BTreeMap<&str, AddWatchFlags> = BTreeMap::new();
        while seen.len() < places.len() || seen.values().any(|flags| *flags != mask) {
            let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
            ensure!(poll(&mut fds, PollTimeout::try_from(BOUND)?)? == 1, "only {seen:?}");
            for event in events.read_events()? {
                let place = watches.get(&event.wd).context("another watch")?;
                let named = event.name.as_deref();
                ensure!(named.is_none_or(|name| name == "s"), "{event:?}");
                *seen.entry(place).or_insert(AddWatchFlags::empty()) |= event.mask;
            }
        }
        for file in ["run/secrets/s", "etc/app/key.pem", "run/secrets/deep/er/s"] {
            ensure!(fs::read_to_string(format!("{root}/{file}"))? == text, "{file}");
        }
    }
    Ok(())
}

/// The thread of a shim that serves its filesystem, stopped at will.
struct Serving(Pid);

impl Serving {
    fn seize(shim: u32) -> Result<Self> {
        for task in fs::read_dir(format!("/proc/{shim}/task"))? {
            let task = task?.path();
            if fs::read_to_string(task.join("comm"))?.starts_with("fuser") {
                let tid = task.file_name().and_then(|name| name.to_str()).context("no number")?;
                let tid = Pid::from_raw(tid.parse()?);
                ptrace::seize(tid, ptrace::Options::PTRACE_O_TRACESYSGOOD)?;
                ptrace::interrupt(tid)?;
                let serving = Self(tid);
                serving.wait()?;
                return Ok(serving);
            }
        }
        bail!("no serving thread")
    }

    fn wait(&self) -> Result<WaitStatus> {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        skep_integration::wait_until("the serving thread's next stop", BOUND, || {
            let status = waitpid(self.0, Some(flags))?;
            Ok((status != WaitStatus::StillAlive).then_some(status))
        })
    }

    /// Lets it serve until it has read a request of this kind, and has not answered it.
    fn stop_after_reading(&self, kind: u32) -> Result<()> {
        let mut buffer = None;
        loop {
            ptrace::syscall(self.0, None)?;
            match self.wait()? {
                WaitStatus::PtraceSyscall(_) => {}
                other => bail!("{other:?}"),
            }
            let info = ptrace::syscall_info(self.0)?;
            if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                // SAFETY: at an entry the kernel fills this one.
                let entry = unsafe { info.u.entry };
                buffer = (entry.nr == libc::SYS_read as u64).then_some(entry.args[1]);
            } else if let Some(buffer) = buffer.take() {
                // The request's length and kind.
                let head = ptrace::read(self.0, buffer as ptrace::AddressType)?.to_ne_bytes();
                // SAFETY: at an exit the kernel fills this one.
                let failed = unsafe { info.u.exit }.is_error != 0;
                if !failed && head[4..] == kind.to_ne_bytes() {
                    return Ok(());
                }
            }
        }
    }

    /// Takes note of its death: until then its process is not quite gone.
    fn bury(self) -> Result<()> {
        match self.wait()? {
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => Ok(()),
            other => bail!("{other:?}"),
        }
    }
}

/// A read that waits for an answer, and how it ends.
fn waiting(
    read: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> Result<mpsc::Receiver<Option<Errno>>> {
    let (begin, begun) = mpsc::sync_channel(1);
    let (end, ended) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let _ = begin.send(gettid());
        let error = read().err().and_then(|error| error.raw_os_error());
        let _ = end.send(error.map(Errno::from_raw));
    });
    let stat = format!("/proc/self/task/{}/stat", begun.recv()?);
    time_until(|| {
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with(['S', 'D']))
    })?;
    Ok(ended)
}

/// The worst moment: the sentinel waits for the answer to its write. Had the shim written
/// itself, nobody would ever answer, and readers would wait for ever.
#[test]
fn a_shim_killed_between_reading_a_touch_and_answering_it() -> Result<()> {
    let mut rig = Rig::new(&FOREVER)?;
    let secret = rig.grant(MaterialKind::Secret, "s", "s")?;
    let mut shim = rig.spawn()?;
    shim.deliver(&[(secret, 1, "one")])?;
    let pid = shim.start()?.pid;
    let sentinel = shim.sentinel()?;
    let path = format!("/proc/{pid}/root/run/secrets/s");
    let open = File::open(&path)?;
    ensure!(open.read_at(&mut [0; 8], 0)? == 3);

    let serving = Serving::seize(shim.pid())?;
    shim.deliver(&[(secret, 2, "two")])?;
    serving.stop_after_reading(WRITE)?;
    let held = open.try_clone()?;
    let readers = [
        waiting(move || held.read_at(&mut [0; 8], 0).map(drop))?,
        waiting({
            let path = path.clone();
            move || fs::read(path).map(drop)
        })?,
    ];
    ensure!(!is_dead(sentinel) && !is_dead(pid));
    kill(Pid::from_raw(shim.pid().cast_signed()), Signal::SIGKILL)?;
    serving.bury()?;
    for reader in readers {
        let error = reader.recv_timeout(BOUND).context("a reader hangs")?;
        ensure!(matches!(error, Some(Errno::ENOTCONN | Errno::ECONNABORTED)), "{error:?}");
    }
    let again = open.read_at(&mut [0; 8], 0).map_err(|error| error.raw_os_error());
    ensure!(again == Err(Some(Errno::ENOTCONN as i32)), "{again:?}");
    time_until(|| is_dead(pid))?;
    time_until(|| is_dead(sentinel))?;
    ensure!(!Path::new(&path).exists());
    shim.gone()?;
    drop(open);
    shim.nothing_left()
}
