//! The sentinel: a process forked before the shim has threads, secrets or `/dev/fuse`. When the
//! shim dies without a word, it kills the container. It also writes to files that changed, so
//! that watchers in the container hear of it.

use std::fs::OpenOptions;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, getsockopt,
    recvmsg, sendmsg, socketpair, sockopt,
};
use nix::unistd::{ForkResult, Pid, fork, getpid};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Plan;
use super::mounts;

/// Bytes of one message: a letter, and a path at most.
const MESSAGE_BYTES: usize = 8 << 10;
/// A message that carries the pidfd of the container's first process.
const CONTAINER: u8 = b'C';
/// A message that carries the path of a file to touch.
const TOUCH: u8 = b'T';
/// A message that says the shim ends in order.
const BYE: u8 = b'B';
/// Successors of a sentinel: whoever kills it again and again wants the task to go unguarded.
const SPARES: u32 = 8;
/// How long the sentinel goes on killing what does not die.
const KILL_FOR: Duration = Duration::from_secs(10);
/// Pause between two rounds of killing.
const KILL_AGAIN: Duration = Duration::from_millis(2);
/// How long it waits for the runtime to clean up.
const DELETE_FOR: Duration = Duration::from_secs(10);

/// The shim's end.
#[derive(Debug)]
pub(super) struct Sentinel {
    live: Mutex<Live>,
}

#[derive(Debug)]
struct Live {
    socket: OwnedFd,
    pid: i32,
    /// Whom it guards, for its successor.
    container: Option<OwnedFd>,
    /// Successors that may still be made.
    spares: u32,
}

impl Sentinel {
    /// Forks it. The process must have a single thread.
    pub(super) fn fork(plan: &Plan) -> io::Result<Self> {
        let (ours, its) = pair()?;
        let own_pid = rustix::process::getpid();
        let shim = pidfd_open(own_pid, PidfdFlags::empty())?;
        // SAFETY: this process has one thread, so the child may do what it likes.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                let (pid, container, spares) = (child.as_raw(), None, SPARES);
                Ok(Self { live: Mutex::new(Live { socket: ours, pid, container, spares }) })
            }
            ForkResult::Child => {
                drop(ours);
                watch(plan, &its, &shim)
            }
        }
    }

    /// Puts another in the place of one that died. With threads around it cannot be forked as
    /// the first was, so it is this program started anew, with its socket for standard input.
    pub(super) fn replace(&self, plan: &Plan) -> io::Result<i32> {
        let mut live = self.live();
        live.spares = live.spares.checked_sub(1).ok_or_else(|| io::Error::other("too many"))?;
        let (ours, its) = pair()?;
        let child = Command::new("/proc/self/exe")
            .args(["shim", "--task"])
            .arg(plan.task_dir())
            .stdin(its)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        live.socket = ours;
        live.pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        if let Some(container) = &live.container {
            live.tell(&[CONTAINER], Some(container.as_fd()))?;
        }
        Ok(live.pid)
    }

    /// Its pid.
    pub(super) fn pid(&self) -> i32 {
        self.live().pid
    }

    /// Tells it whom to kill.
    pub(super) fn guard(&self, pidfd: BorrowedFd<'_>) -> io::Result<()> {
        let mut live = self.live();
        live.container = Some(pidfd.try_clone_to_owned()?);
        live.tell(&[CONTAINER], Some(pidfd))
    }

    /// Asks it to write to a file below the secrets' mount.
    pub(super) fn touch(&self, path: &Path) {
        let mut message = vec![TOUCH];
        message.extend_from_slice(path.as_os_str().as_bytes());
        // Who watches misses one event if the sentinel is not keeping up; the content is there.
        let _ = self.live().tell(&message, None);
    }

    /// Tells it that the shim ends in order.
    pub(super) fn dismiss(&self) {
        // If it cannot hear, it is gone or about to find nothing left to kill.
        let _ = self.live().tell(&[BYE], None);
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// The socket of a sentinel, if this process was started to be one.
pub(super) fn called() -> Option<OwnedFd> {
    let stdin = std::io::stdin();
    let kind = getsockopt(&stdin, sockopt::SockType).ok()?;
    if kind != SockType::SeqPacket {
        return None;
    }
    stdin.as_fd().try_clone_to_owned().ok()
}

/// The life of a sentinel that was started in another's place, by its shim.
pub(super) fn stand_in(plan: &Plan, socket: &OwnedFd) -> ! {
    // If the shim is dead already, this is somebody else, but then the socket is shut.
    let parent = rustix::process::getppid().unwrap_or(rustix::process::Pid::INIT);
    match pidfd_open(parent, PidfdFlags::empty()) {
        Ok(shim) => watch(plan, socket, &shim),
        Err(_) => leave(),
    }
}

impl Live {
    fn tell(&self, message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let data = [IoSlice::new(message)];
        sendmsg::<()>(self.socket.as_raw_fd(), &data, rights, flags, None)?;
        Ok(())
    }
}

/// The life of the sentinel. It outlives every signal that can be ignored: it ends when its
/// shim does.
fn watch(plan: &Plan, socket: &OwnedFd, shim: &OwnedFd) -> ! {
    keep_only(&[socket.as_fd(), shim.as_fd()]);
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: ignores a signal; no handler is involved.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let mut container = None;
    loop {
        let mut fds = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(shim.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue;
        }
        let shim_died = fds[1].any().unwrap_or(true);
        if fds[0].any().unwrap_or(true) {
            match hear(socket) {
                Heard::Container(pidfd) => container = Some(pidfd),
                Heard::Touch(path) => touch(&plan.secrets, Path::new(&path)),
                Heard::Nothing => {}
                Heard::Bye => leave(),
                Heard::Hangup => break,
            }
        } else if shim_died {
            break;
        }
    }
    if let Some(pidfd) = &container {
        // It may have died by itself: just as well.
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
    clear(plan);
    leave()
}

fn leave() -> ! {
    // SAFETY: ends the process without running what the shim registered.
    unsafe { libc::_exit(0) }
}

/// Closes every descriptor but these, and sends the standard ones nowhere.
fn keep_only(keep: &[BorrowedFd<'_>]) {
    super::silence_standard_streams();
    let mut keep: Vec<_> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep.into_iter().chain([i32::MAX]) {
        if fd > from {
            // SAFETY: this process is a fresh fork that uses only the descriptors kept.
            let range = (from.unsigned_abs(), (fd - 1).unsigned_abs());
            unsafe { libc::close_range(range.0, range.1, 0) };
        }
        from = fd.saturating_add(1);
    }
}

enum Heard {
    Container(OwnedFd),
    Touch(std::ffi::OsString),
    Nothing,
    Bye,
    Hangup,
}

fn hear(socket: &OwnedFd) -> Heard {
    let mut buffer = [0; MESSAGE_BYTES];
    let mut rights = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut into = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut rights), flags);
    let (len, fd) = match message {
        Ok(message) => {
            let fd = message.cmsgs().ok().into_iter().flatten().find_map(|c| match c {
                // SAFETY: the kernel has just made this descriptor for us.
                ControlMessageOwned::ScmRights(fds) => {
                    fds.first().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) })
                }
                _ => None,
            });
            (message.bytes, fd)
        }
        Err(nix::errno::Errno::EINTR) => return Heard::Nothing,
        Err(_) => return Heard::Hangup,
    };
    match (buffer.get(..len).and_then(|m| m.split_first()), fd) {
        (None, _) => Heard::Hangup,
        (Some((&CONTAINER, _)), Some(fd)) => Heard::Container(fd),
        (Some((&TOUCH, path)), _) => Heard::Touch(std::ffi::OsStr::from_bytes(path).to_owned()),
        (Some((&BYE, _)), _) => Heard::Bye,
        _ => Heard::Nothing,
    }
}

/// A write that raises the events of a changed file. The server throws the byte away.
fn touch(secrets: &Path, path: &Path) {
    if !path.components().all(|c| matches!(c, Component::Normal(_))) {
        return;
    }
    let file =
        OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(secrets.join(path));
    // Revoked meanwhile: nothing to tell anybody.
    let _ = file.and_then(|mut file| file.write_all(b"\n"));
}

/// Kills what the dead shim left, and removes its traces from this machine.
fn clear(plan: &Plan) {
    let own = getpid().as_raw().unsigned_abs();
    let since = Instant::now();
    loop {
        // A runtime in the middle of its work would go on to make more processes.
        let busy = plan.cgroups.kill_once(&plan.launch.shim_cgroup, &[own]);
        let alive = plan.cgroups.kill_once(&plan.launch.cgroup, &[]);
        if busy + alive == 0 || since.elapsed() > KILL_FOR {
            break;
        }
        thread::sleep(KILL_AGAIN);
    }
    if plan.runc.knows(&plan.launch.container_id) {
        run(&mut plan.runc.delete(&plan.launch.container_id));
        plan.forget_runtime_state();
    }
    mounts::detach(&plan.secrets);
    mounts::detach(&plan.rootfs);
    plan.clear_run_dir();
    plan.cgroups.remove(&plan.launch.cgroup);
    plan.cgroups.abandon(&plan.launch.shim_cgroup, own);
}

fn run(command: &mut Command) {
    let Ok(mut child) = command.stdin(Stdio::null()).spawn() else { return };
    let since = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if since.elapsed() > DELETE_FOR {
            let _ = nix::sys::signal::kill(
                Pid::from_raw(child.id().cast_signed()),
                nix::sys::signal::Signal::SIGKILL,
            );
            return;
        }
        thread::sleep(KILL_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_plain_paths_below_the_mount_are_touched() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mount")).unwrap();
        let file = |name: &str| {
            fs::write(dir.path().join(name), "").unwrap();
            dir.path().join(name)
        };
        let (inside, outside) = (file("mount/a"), file("b"));
        touch(&dir.path().join("mount"), Path::new("a"));
        touch(&dir.path().join("mount"), Path::new("../b"));
        touch(&dir.path().join("mount"), &outside);
        assert_eq!(fs::read(inside).unwrap(), b"\n");
        assert_eq!(fs::read(outside).unwrap(), b"");
    }
}
