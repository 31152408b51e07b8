//! The shim's socket: one daemon at a time, a new connection replaces the old one. Reading is
//! the main thread's alone; any thread may send.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg,
};

use crate::wire::launch::SHIM_SOCKET;
use crate::wire::shim::{FromShim, ToShim};
use crate::wire::{WireError, frame, frame_len, parse};

/// How long a daemon may leave its socket full before it counts as gone.
const SEND_WAIT: Duration = Duration::from_secs(5);
/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// Descriptors taken with one read.
const FDS_AT_ONCE: usize = 12;
/// Sets of descriptors that may wait for the rest of their message.
const SETS_WAITING: usize = 4;

/// A daemon that is not followed any further.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the daemon closed the connection")]
    Closed,
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("more descriptors than any message has")]
    Descriptors,
}

/// Makes the run directory and listens in it.
pub(super) fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(run_dir)?;
    fs::set_permissions(run_dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    // By way of the directory's descriptor no path is too long for a socket's address.
    let dir = fs::File::open(run_dir)?;
    let path = format!("/proc/self/fd/{}/{SHIM_SOCKET}", dir.as_raw_fd());
    if let Err(error) = fs::remove_file(&path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Accepts a daemon; anybody but root is turned away.
pub(super) fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    let (stream, _) = listener.accept()?;
    if getsockopt(&stream, PeerCredentials)?.uid() != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(SEND_WAIT))?;
    Ok(stream)
}

/// Where messages to the daemon go, if there is one.
#[derive(Debug, Default)]
pub(super) struct Outbox(Mutex<Option<UnixStream>>);

impl Outbox {
    /// From now on to this daemon; the old connection is shut.
    pub(super) fn connect(&self, stream: Option<UnixStream>) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = slot.take() {
            let _ = old.shutdown(std::net::Shutdown::Both);
        }
        *slot = stream;
    }

    /// Sends, if a daemon is there. One that does not read is let go; it may connect again.
    pub(super) fn send(&self, message: &FromShim, fd: Option<BorrowedFd<'_>>) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = slot.as_mut()
            && send(stream, &frame(message), fd).is_err()
            && let Some(old) = slot.take()
        {
            let _ = old.shutdown(std::net::Shutdown::Both);
        }
    }
}

pub(super) fn send(
    stream: &mut UnixStream,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let Some(fd) = fd else { return stream.write_all(bytes) };
    let fds = [fd.as_raw_fd()];
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    stream.write_all(bytes.get(sent..).unwrap_or_default())
}

/// Messages from the daemon, as they come in.
#[derive(Debug)]
pub(super) struct Inbox {
    stream: UnixStream,
    bytes: Vec<u8>,
    /// Bytes of the stream before `bytes`.
    passed: u64,
    /// Descriptors, and how far the stream had been read when they came: a read stops behind
    /// the piece that carries descriptors, so this is inside the frame they belong to.
    fds: VecDeque<(u64, Vec<OwnedFd>)>,
}

/// A message and the descriptors that came with it.
pub(super) type Received = (ToShim, Vec<OwnedFd>);

impl Inbox {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, bytes: Vec::new(), passed: 0, fds: VecDeque::new() }
    }

    /// Takes what has arrived and returns the messages that are complete. Never waits.
    pub(super) fn receive(&mut self) -> Result<Vec<Received>, LinkError> {
        self.fill()?;
        let mut messages = Vec::new();
        let mut from = 0;
        while let Some((header, rest)) =
            self.bytes.get(from..).and_then(|b| b.split_first_chunk::<4>())
        {
            let len = frame_len(*header)?;
            let Some(body) = rest.get(..len) else { break };
            let message = parse(body)?;
            from += 4 + len;
            let end = self.passed + from as u64;
            let mut own = Vec::new();
            while self.fds.front().is_some_and(|(at, _)| *at <= end) {
                own.extend(self.fds.pop_front().into_iter().flat_map(|(_, fds)| fds));
            }
            messages.push((message, own));
        }
        self.passed += from as u64;
        self.bytes.drain(..from);
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
        Ok(messages)
    }

    fn fill(&mut self) -> Result<(), LinkError> {
        let before = self.bytes.len();
        self.bytes.resize(before + READ_BYTES, 0);
        let into = self.bytes.get_mut(before..).unwrap_or_default();
        let mut fds = Vec::new();
        let got = receive_into(&self.stream, into, &mut fds);
        self.bytes.truncate(before + got.as_ref().copied().unwrap_or(0));
        if !fds.is_empty() {
            self.fds.push_back((self.passed + self.bytes.len() as u64, fds));
        }
        match got {
            Ok(0) => Err(LinkError::Closed),
            Ok(_) if self.fds.len() > SETS_WAITING => Err(LinkError::Descriptors),
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn receive_into(
    stream: &UnixStream,
    into: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> nix::Result<usize> {
    let mut rights = nix::cmsg_space!([RawFd; FDS_AT_ONCE]);
    let mut into = [IoSliceMut::new(into)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut into, Some(&mut rights), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for us.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(message.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::write_message;

    #[test]
    fn messages_come_whole_with_their_descriptors() {
        let (mut daemon, shim) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::new(shim);
        assert!(inbox.receive().unwrap().is_empty());
        write_message(&mut daemon, &ToShim::Probe).unwrap();
        let bytes = frame(&ToShim::Signal { signal: 10 });
        let (first, rest) = bytes.split_at(5);
        let (_read, write) = io::pipe().unwrap();
        send(&mut daemon, first, Some(write.as_fd())).unwrap();
        let told = |inbox: &mut Inbox| {
            let received = inbox.receive().unwrap();
            received.into_iter().map(|(m, fds)| (m, fds.len())).collect::<Vec<_>>()
        };
        assert_eq!(told(&mut inbox), [(ToShim::Probe, 0)]);
        daemon.write_all(rest).unwrap();
        send(&mut daemon, &frame(&ToShim::Audit), Some(write.as_fd())).unwrap();
        let signal = (ToShim::Signal { signal: 10 }, 1);
        assert_eq!(told(&mut inbox), [signal, (ToShim::Audit, 1)]);
        assert!(told(&mut inbox).is_empty());
        drop(daemon);
        assert!(matches!(inbox.receive(), Err(LinkError::Closed)));
    }

    #[test]
    fn nonsense_and_giants_end_the_connection() {
        let (mut daemon, shim) = UnixStream::pair().unwrap();
        daemon.write_all(&u32::MAX.to_be_bytes()).unwrap();
        let refused = Inbox::new(shim).receive();
        assert!(matches!(refused, Err(LinkError::Wire(WireError::TooLong(..)))));
        let (mut daemon, shim) = UnixStream::pair().unwrap();
        daemon.write_all(&[0, 0, 0, 2, 0xff, 0xff]).unwrap();
        let refused = Inbox::new(shim).receive();
        assert!(matches!(refused, Err(LinkError::Wire(WireError::Decode(_)))));
    }

    #[test]
    fn a_new_connection_replaces_the_old_one() {
        let outbox = Outbox::default();
        let answer = |sequence| FromShim::Delivered { sequence, held: Vec::new(), last: sequence };
        outbox.send(&answer(1), None);
        let (old, old_end) = UnixStream::pair().unwrap();
        let (new, mut new_end) = UnixStream::pair().unwrap();
        outbox.connect(Some(old));
        outbox.connect(Some(new));
        outbox.send(&answer(2), None);
        assert!(matches!(Inbox::new(old_end).receive(), Err(LinkError::Closed)));
        let message: FromShim = crate::wire::read_message(&mut new_end).unwrap();
        assert_eq!(message, answer(2));
    }
}
