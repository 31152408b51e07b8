//! Archives on their way in and out, piece by piece, between the connection and a thread that may
//! block.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::Stream;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::limits::{IMAGE_PIECE_WAIT, IMAGE_UPLOAD_BYTES};

/// Pieces that wait for the disk or the client.
pub(super) const PIECES: usize = 4;
/// Bytes in a piece that is sent.
const PIECE_BYTES: usize = 64 << 10;

/// Hands a body on piece by piece. When nobody takes the pieces any more, the rest is read and
/// dropped, so that the client is there for the answer.
pub(super) async fn pass_on(mut body: Incoming, to: mpsc::Sender<io::Result<Bytes>>) {
    let mut total: u64 = 0;
    loop {
        let piece = match tokio::time::timeout(IMAGE_PIECE_WAIT, body.frame()).await {
            Ok(Some(Ok(frame))) => frame.into_data().map(Ok),
            Ok(Some(Err(error))) => Ok(Err(io::Error::other(error))),
            Ok(None) => break,
            Err(_) => Ok(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no more of the archive came within {} s", IMAGE_PIECE_WAIT.as_secs()),
            ))),
        };
        let Ok(mut piece) = piece else { continue };
        // An empty piece says that this was all.
        if piece.as_ref().is_ok_and(Bytes::is_empty) {
            continue;
        }
        total += piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if total > IMAGE_UPLOAD_BYTES {
            piece =
                Err(io::Error::other(format!("the archive has over {IMAGE_UPLOAD_BYTES} bytes")));
        }
        let last = piece.is_err();
        let _ = to.send(piece).await;
        if last {
            return;
        }
    }
    // Told apart from a sender that was dropped half-way.
    let _ = to.send(Ok(Bytes::new())).await;
}

/// The pieces of a body as something to read from, on a thread that may block.
pub(super) struct Archive {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
    done: bool,
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.done {
            self.piece = match self.pieces.blocking_recv() {
                Some(piece) => piece?,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the client broke off",
                    ));
                }
            };
            self.done = self.piece.is_empty();
        }
        let len = self.piece.len().min(buffer.len());
        if let Some(to) = buffer.get_mut(..len) {
            self.piece.copy_to_slice(to);
        }
        Ok(len)
    }
}

impl Archive {
    pub(super) fn new(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { pieces, piece: Bytes::new(), done: false }
    }
}

/// Where an archive is written to, on a thread that may block.
pub(super) struct Sink {
    to: mpsc::Sender<Bytes>,
    runtime: Handle,
    piece: BytesMut,
}

impl Sink {
    pub(super) fn new(to: mpsc::Sender<Bytes>, runtime: Handle) -> Self {
        Self { to, runtime, piece: BytesMut::with_capacity(PIECE_BYTES) }
    }

    /// Says that the archive is whole.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.send(Bytes::new())
    }

    fn send(&mut self, piece: Bytes) -> io::Result<()> {
        let sent = self.runtime.block_on(self.to.send_timeout(piece, IMAGE_PIECE_WAIT));
        sent.map_err(|error| match error {
            mpsc::error::SendTimeoutError::Timeout(_) => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("nobody took any of it within {} s", IMAGE_PIECE_WAIT.as_secs()),
            ),
            mpsc::error::SendTimeoutError::Closed(_) => io::ErrorKind::BrokenPipe.into(),
        })
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = self.piece.split().freeze();
        self.send(piece)
    }
}

/// What a [`Sink`] sends, as a body: an error if it ends before it is whole.
pub(super) fn body(
    pieces: mpsc::Receiver<Bytes>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    futures_util::stream::unfold(Some(pieces), |pieces| async move {
        let mut pieces = pieces?;
        match pieces.recv().await {
            Some(piece) if piece.is_empty() => None,
            Some(piece) => Some((Ok(piece), Some(pieces))),
            None => Some((Err(io::Error::other("the archive broke off")), None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[test]
    fn an_archive_that_breaks_off_is_an_error() {
        let archive = |pieces: Vec<io::Result<Bytes>>| {
            let (to, receiver) = mpsc::channel(8);
            for piece in pieces {
                to.try_send(piece).unwrap();
            }
            Archive::new(receiver)
        };
        let mut text = String::new();
        let whole = vec![Ok("ab".into()), Ok("c".into()), Ok(Bytes::new())];
        archive(whole).read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
        let cut = archive(vec![Ok("ab".into())]).read_to_end(&mut Vec::new());
        assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_an_error() {
        for whole in [true, false] {
            let (to, pieces) = mpsc::channel(PIECES);
            let runtime = Handle::current();
            let writing = tokio::task::spawn_blocking(move || {
                let mut sink = Sink::new(to, runtime);
                sink.write_all(&[7; 3 * PIECE_BYTES + 1]).unwrap();
                if whole {
                    sink.finish().unwrap()
                }
            });
            let sent: Vec<_> = body(pieces).collect().await;
            writing.await.unwrap();
            let bytes: usize = sent.iter().flatten().map(Bytes::len).sum();
            assert_eq!(sent.last().unwrap().is_ok(), whole);
            assert!(bytes == 3 * PIECE_BYTES + 1 || !whole, "{bytes}");
        }
    }
}
