//! One connection to a shim: frames both ways, file descriptors along with them.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::limits::SHIM_SILENCE;
use crate::wire::launch::SHIM_SOCKET;
use crate::wire::shim::{FromShim, Hello, ToShim};
use crate::wire::{WireError, frame, frame_len, parse};

/// Messages that may wait for a shim.
const OUTGOING: usize = 64;
/// Descriptors that may come with one frame.
const FDS: usize = 4;

/// A shim could not be reached, or did not behave like one.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Its socket does not answer.
    #[error("the task's supervisor does not answer")]
    Connect(#[source] io::Error),
    /// It broke the protocol or went away.
    #[error("the connection to the task's supervisor failed")]
    Wire(#[from] WireError),
    /// It took the connection and said nothing.
    #[error("the task's supervisor said nothing for {} s", SHIM_SILENCE.as_secs())]
    Silent,
    /// It said something else than hello.
    #[error("the task's supervisor did not introduce itself")]
    NoHello,
    /// It speaks a later protocol.
    #[error("the task's supervisor speaks protocol {0}, this daemon at most {max}", max = crate::wire::shim::PROTOCOL)]
    Protocol(u32),
}

/// A message with the descriptors that travel along.
#[derive(Debug)]
struct Outgoing {
    message: ToShim,
    fds: Vec<OwnedFd>,
}

/// The sending half of a connection. It can be cloned; the connection ends with the last one.
#[derive(Debug, Clone)]
pub struct ShimLink {
    outgoing: mpsc::Sender<Outgoing>,
}

/// What comes from a shim. The channel ends with the connection.
pub type Incoming = mpsc::Receiver<(FromShim, Vec<OwnedFd>)>;

impl ShimLink {
    /// Connects to the shim that listens in this run directory and waits for the hello.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn connect(run_dir: &Path) -> Result<(Self, Hello, Incoming), LinkError> {
        let greeted = timeout(SHIM_SILENCE, Self::greet(run_dir)).await;
        greeted.unwrap_or(Err(LinkError::Silent))
    }

    async fn greet(run_dir: &Path) -> Result<(Self, Hello, Incoming), LinkError> {
        // By way of the directory's descriptor no path is too long for a socket's address.
        let dir = std::fs::File::open(run_dir).map_err(LinkError::Connect)?;
        let socket = format!("/proc/self/fd/{}/{SHIM_SOCKET}", dir.as_raw_fd());
        let stream = UnixStream::connect(socket).await.map_err(LinkError::Connect)?;
        let mut reader = Reader::default();
        let (first, _) = reader.next(&stream).await?;
        let FromShim::Hello(hello) = first else { return Err(LinkError::NoHello) };
        if hello.protocol > crate::wire::shim::PROTOCOL {
            return Err(LinkError::Protocol(hello.protocol));
        }
        let (outgoing, mut queue) = mpsc::channel::<Outgoing>(OUTGOING);
        let (incoming, received) = mpsc::channel(OUTGOING);
        tokio::spawn(async move {
            // Neither direction waits for the other: both ends could be full.
            let write = async {
                while let Some(message) = queue.recv().await {
                    if send(&stream, &message).await.is_err() {
                        break;
                    }
                }
            };
            let read = async {
                while let Ok(message) = reader.next(&stream).await {
                    if incoming.send(message).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = write => {}
                () = read => {}
            }
        });
        Ok((Self { outgoing }, hello, received))
    }

    /// Sends a message. A shim that is gone is noticed by the incoming channel's end.
    pub async fn send(&self, message: ToShim) {
        self.send_with(message, Vec::new()).await;
    }

    /// Sends a message with descriptors.
    pub async fn send_with(&self, message: ToShim, fds: Vec<OwnedFd>) {
        // A closed queue means that the shim is gone; the receiver of its messages sees that.
        let _ = self.outgoing.send(Outgoing { message, fds }).await;
    }
}

async fn send(stream: &UnixStream, outgoing: &Outgoing) -> io::Result<()> {
    let bytes = frame(&outgoing.message);
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        stream.writable().await?;
        let fds = if sent == 0 { outgoing.fds.as_slice() } else { &[] };
        match stream.try_io(Interest::WRITABLE, || send_some(stream, rest, fds)) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn send_some(stream: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<usize> {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Collects bytes until a frame is complete. Cancelling [`Reader::next`] loses nothing.
#[derive(Debug, Default)]
struct Reader {
    buffer: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Reader {
    async fn next(&mut self, stream: &UnixStream) -> Result<(FromShim, Vec<OwnedFd>), WireError> {
        loop {
            if let Some(message) = self.take_frame()? {
                // Only the start of an exec brings a descriptor: its terminal.
                let fds = match &message {
                    FromShim::ExecStarted { .. } => self.fds.drain(..).collect(),
                    _ => Vec::new(),
                };
                return Ok((message, fds));
            }
            stream.readable().await?;
            match stream.try_io(Interest::READABLE, || self.receive(stream)) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn receive(&mut self, stream: &UnixStream) -> io::Result<usize> {
        let mut chunk = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut chunk)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds.take(FDS));
            }
        }
        self.fds.truncate(FDS);
        self.buffer.extend_from_slice(chunk.get(..received.bytes).unwrap_or_default());
        Ok(received.bytes)
    }

    fn take_frame(&mut self) -> Result<Option<FromShim>, WireError> {
        let Some(header) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let end = 4 + frame_len(*header)?;
        let Some(body) = self.buffer.get(4..end) else { return Ok(None) };
        let message = parse(body)?;
        self.buffer.drain(..end);
        Ok(Some(message))
    }
}

#[cfg(test)]
impl ShimLink {
    /// A link to a test, which takes what is sent.
    pub(crate) fn of_test() -> (Self, mpsc::Receiver<(ToShim, Vec<OwnedFd>)>) {
        let (outgoing, mut queue) = mpsc::channel::<Outgoing>(OUTGOING);
        let (to, taken) = mpsc::channel(OUTGOING);
        tokio::spawn(async move {
            while let Some(Outgoing { message, fds }) = queue.recv().await {
                if to.send((message, fds)).await.is_err() {
                    break;
                }
            }
        });
        (Self { outgoing }, taken)
    }
}
