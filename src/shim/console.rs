//! The socket by which the runtime hands over the controlling end of a terminal.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};

/// How long the runtime may take to hand the terminal over once it is done.
const WAIT: Duration = Duration::from_secs(5);
/// Bytes of the name that comes along.
const NAME_BYTES: usize = 4_096;

/// A socket for one terminal; its file is removed on drop.
#[derive(Debug)]
pub(super) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    pub(super) fn listen(path: PathBuf) -> io::Result<Self> {
        Ok(Self { listener: UnixListener::bind(&path)?, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal over.
    pub(super) fn receive(&self) -> io::Result<OwnedFd> {
        wait(&self.listener)?;
        let (stream, _) = self.listener.accept()?;
        wait(&stream)?;
        let mut name = [0; NAME_BYTES];
        let mut rights = nix::cmsg_space!([RawFd; 1]);
        let mut into = [IoSliceMut::new(&mut name)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut into, Some(&mut rights), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control
                && let Some(fd) = fds.first()
            {
                // SAFETY: the kernel has just made this descriptor for us.
                return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It goes with the run directory at the latest.
        let _ = fs::remove_file(&self.path);
    }
}

fn wait(fd: impl AsFd) -> io::Result<()> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(WAIT).unwrap_or(PollTimeout::MAX);
    if poll(&mut fds, timeout)? == 0 { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
}

/// Sets the size of a terminal.
pub(super) fn resize(console: impl AsFd, rows: u16, cols: u16) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(console, size)?)
}
