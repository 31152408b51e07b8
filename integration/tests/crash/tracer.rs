//! Stops a process at one of its changes to files, as the machine's end would: every write, flush,
//! rename and removal below a directory is counted, across all threads of the process but not in
//! its children, and at a chosen one the process is killed.

use std::collections::HashSet;
use std::fs;
use std::io::IoSliceMut;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Longest path that is read from a process.
const PATH_BYTES: usize = 4_096;

/// Whom to trace.
#[derive(Debug)]
pub(crate) enum Subject {
    /// A process that is started for it.
    Start(Command),
    /// One that runs already.
    Running(i32),
}

/// Where to kill it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strike {
    /// Nowhere: count only.
    Never,
    /// Before the change with this number.
    Before(usize),
    /// In the middle of it, if it is a write: half of it is written. Else before it.
    Within(usize),
    /// Before the first change after one of this name.
    After(&'static str, &'static str),
}

/// One change to files.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    /// The system call.
    pub(crate) call: &'static str,
    /// On what, by its path from the directory whose files count.
    pub(crate) path: PathBuf,
}

impl Point {
    /// What is alike of two points: the call, and the file but for what is drawn or counted.
    pub(crate) fn kind(&self) -> String {
        let parts = self.path.iter().map(|part| {
            let part = part.to_string_lossy();
            let stem = part.split('.').next().unwrap_or_default();
            if part.starts_with(".tmp-") {
                "(unfinished)".to_owned()
            } else if stem.len() >= 16 {
                part.replace(stem, "(id)")
            } else {
                part.into_owned()
            }
        });
        format!("{} {}", self.call, parts.collect::<Vec<_>>().join("/"))
    }
}

/// A traced process.
#[derive(Debug)]
pub(crate) struct Traced {
    thread: JoinHandle<Result<()>>,
    points: Arc<Mutex<Vec<Point>>>,
    ended: Arc<AtomicBool>,
    pid: i32,
}

impl Traced {
    /// Starts to trace. `below` is the directory whose files count.
    pub(crate) fn start(subject: Subject, below: &Path, strike: Strike) -> Result<Self> {
        let (points, ended) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let mut tracer = Tracer {
            leader: Pid::from_raw(0),
            below: below.to_owned(),
            strike,
            points: Arc::clone(&points),
            known: HashSet::new(),
            torn: HashSet::new(),
            struck: false,
        };
        let over = Arc::clone(&ended);
        // A process is traced by the thread that began it.
        let thread = thread::spawn(move || {
            let begun = tracer.begin(subject);
            let ran = begun.map(|()| tell.send(tracer.leader.as_raw()).ok());
            let ran = ran.and_then(|_| tracer.run());
            over.store(true, Ordering::Release);
            ran
        });
        match told.recv() {
            Ok(pid) => Ok(Self { thread, points, ended, pid }),
            Err(_) => Err(thread.join().map_err(|_| anyhow!("the tracer died"))?.err())
                .map_err(|e: Option<_>| e.unwrap_or_else(|| anyhow!("nothing was traced"))),
        }
    }

    /// The process.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Waits for its end; answers what it changed, the point where it was killed last.
    pub(crate) fn end(self) -> Result<Vec<Point>> {
        self.thread.join().map_err(|_| anyhow!("the tracer died"))??;
        let mut points = self.points.lock().map_err(|_| anyhow!("the tracer died"))?;
        Ok(std::mem::take(&mut points))
    }
}

struct Tracer {
    leader: Pid,
    below: PathBuf,
    strike: Strike,
    points: Arc<Mutex<Vec<Point>>>,
    known: HashSet<Pid>,
    /// Threads that are to be killed when their call has returned.
    torn: HashSet<Pid>,
    struck: bool,
}

impl Tracer {
    fn begin(&mut self, subject: Subject) -> Result<()> {
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE;
        match subject {
            Subject::Start(mut command) => {
                // SAFETY: one system call between fork and exec.
                unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
                let child = command.spawn().context("start the subject")?;
                self.leader = Pid::from_raw(i32::try_from(child.id())?);
                waitpid(self.leader, Some(WaitPidFlag::__WALL))?;
                ptrace::setoptions(self.leader, options | Options::PTRACE_O_EXITKILL)?;
                self.known.insert(self.leader);
                ptrace::syscall(self.leader, None)?;
            }
            Subject::Running(pid) => {
                self.leader = Pid::from_raw(pid);
                for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
                    let name = entry?.file_name().into_string().unwrap_or_default();
                    let thread = Pid::from_raw(name.parse()?);
                    ptrace::seize(thread, options)?;
                    ptrace::interrupt(thread)?;
                    self.known.insert(thread);
                }
            }
        }
        Ok(())
    }

    /// Follows the process to its end.
    fn run(&mut self) -> Result<()> {
        loop {
            // Of this thread's children alone: the test has others.
            let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            let status = match waitpid(None, Some(flags)) {
                Ok(status) => status,
                Err(Errno::ECHILD) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let resumed = match status {
                WaitStatus::PtraceSyscall(thread) => {
                    self.on_call(thread)?;
                    ptrace::syscall(thread, None)
                }
                WaitStatus::PtraceEvent(thread, _, _) => {
                    self.known.insert(thread);
                    ptrace::syscall(thread, None)
                }
                WaitStatus::Stopped(thread, signal) => {
                    // The first stop of a new thread is the tracer's own doing.
                    let is_new = self.known.insert(thread) && signal == Signal::SIGSTOP;
                    ptrace::syscall(thread, Some(signal).filter(|_| !is_new))
                }
                WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)
                    if pid == self.leader =>
                {
                    return Ok(());
                }
                _ => Ok(()),
            };
            match resumed {
                // Killed meanwhile.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn on_call(&mut self, thread: Pid) -> Result<()> {
        let info = match ptrace::syscall_info(thread) {
            Ok(info) => info,
            Err(Errno::ESRCH) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        if info.op == libc::PTRACE_SYSCALL_INFO_EXIT {
            if self.torn.remove(&thread) {
                self.kill();
            }
            return Ok(());
        }
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY || self.struck {
            return Ok(());
        }
        // SAFETY: an entry has this member.
        let (nr, args) = unsafe { (info.u.entry.nr, info.u.entry.args) };
        let Some(point) = self.point(thread, nr.cast_signed(), &args) else { return Ok(()) };
        let is_write = matches!(point.call, "write" | "pwrite64");
        let mut points = self.points.lock().map_err(|_| anyhow!("the test died"))?;
        let number = points.len();
        let is_after = |call, name: &str| {
            points.last().is_some_and(|p| p.call == call && p.path.ends_with(name))
        };
        let (strikes, within) = match self.strike {
            Strike::Never => (false, false),
            Strike::Before(at) => (number == at, false),
            Strike::Within(at) => (number == at, is_write && args[2] > 1),
            Strike::After(call, name) => (is_after(call, name), false),
        };
        points.push(point);
        drop(points);
        if strikes && within {
            let mut registers = ptrace::getregs(thread)?;
            registers.rdx /= 2;
            ptrace::setregs(thread, registers)?;
            self.struck = true;
            self.torn.insert(thread);
        } else if strikes {
            self.kill();
        }
        Ok(())
    }

    fn kill(&mut self) {
        self.struck = true;
        // It may have ended by itself.
        let _ = kill(self.leader, Signal::SIGKILL);
    }

    /// The change that a call is about to make, if it makes one that counts.
    fn point(&self, thread: Pid, nr: i64, args: &[u64; 6]) -> Option<Point> {
        let (call, path) = match nr {
            libc::SYS_write => ("write", self.open_file(args[0])),
            libc::SYS_pwrite64 => ("pwrite64", self.open_file(args[0])),
            libc::SYS_fsync => ("fsync", self.open_file(args[0])),
            libc::SYS_fdatasync => ("fdatasync", self.open_file(args[0])),
            libc::SYS_syncfs => ("syncfs", self.open_file(args[0])),
            libc::SYS_ftruncate => ("ftruncate", self.open_file(args[0])),
            libc::SYS_fallocate => ("fallocate", self.open_file(args[0])),
            libc::SYS_mkdir => ("mkdir", self.named(thread, None, args[0])),
            libc::SYS_rmdir => ("rmdir", self.named(thread, None, args[0])),
            libc::SYS_unlink => ("unlink", self.named(thread, None, args[0])),
            libc::SYS_rename => ("rename", self.named(thread, None, args[1])),
            libc::SYS_mkdirat => ("mkdir", self.named(thread, Some(args[0]), args[1])),
            libc::SYS_unlinkat => ("unlink", self.named(thread, Some(args[0]), args[1])),
            libc::SYS_renameat | libc::SYS_renameat2 => {
                ("rename", self.named(thread, Some(args[2]), args[3]))
            }
            libc::SYS_openat if args[2] & libc::O_CREAT as u64 != 0 => {
                ("create", self.named(thread, Some(args[0]), args[1]))
            }
            _ => return None,
        };
        let path = path?;
        // A layer is unpacked under a name that does not count until it is whole: what is inside
        // is hundreds of the same point.
        let path = path.strip_prefix(&self.below).ok()?.to_owned();
        let is_inside = path.starts_with("layers") && path.iter().count() > 2;
        (!is_inside).then_some(Point { call, path })
    }

    fn open_file(&self, fd: u64) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/fd/{}", self.leader, fd as u32 as i32)).ok()
    }

    fn named(&self, thread: Pid, dir: Option<u64>, address: u64) -> Option<PathBuf> {
        let mut bytes = vec![0; PATH_BYTES];
        let address = usize::try_from(address).ok()?;
        // Up to the end of the page first: the next one may not be there.
        let page = 4_096 - address % 4_096;
        let remote = [RemoteIoVec { base: address, len: page.min(PATH_BYTES) }];
        let read = process_vm_readv(thread, &mut [IoSliceMut::new(&mut bytes)], &remote).ok()?;
        bytes.truncate(read);
        let end = bytes.iter().position(|byte| *byte == 0)?;
        let name = PathBuf::from(String::from_utf8_lossy(bytes.get(..end)?).into_owned());
        match dir.filter(|_| name.is_relative()) {
            Some(dir) if dir as u32 as i32 != libc::AT_FDCWD => {
                self.open_file(dir).map(|dir| dir.join(name))
            }
            _ => Some(name),
        }
    }
}
