//! One stream in both directions. Unlike quinn's own halves, one that is dropped before its end was
//! said is lost to the other side, not ended.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use quinn::{Connection, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Closed;

/// A stream to another node.
#[derive(Debug)]
pub struct BiStream {
    tx: SendStream,
    rx: RecvStream,
    is_ended: bool,
}

impl BiStream {
    /// Both halves as one.
    #[must_use]
    pub fn new((tx, rx): (SendStream, RecvStream)) -> Self {
        Self { tx, rx, is_ended: false }
    }

    /// Opens one.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn open(connection: &Connection) -> io::Result<Self> {
        Ok(Self::new(connection.open_bi().await?))
    }
}

impl Drop for BiStream {
    fn drop(&mut self) {
        if !self.is_ended {
            // A stream that is gone already needs no reset.
            let _ = self.tx.reset(Closed::Stopping.code().into());
        }
    }
}

impl AsyncRead for BiStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.rx), cx, buf)
    }
}

impl AsyncWrite for BiStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.tx), cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.tx), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_ended = true;
        AsyncWrite::poll_shutdown(Pin::new(&mut self.tx), cx)
    }
}
