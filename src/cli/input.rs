//! Input that is sent on as it comes.

use std::io::{self, Read};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::mpsc;

use super::client::Body;

/// Pieces on their way.
const PIECES: usize = 4;
/// Bytes in one of them.
const PIECE_BYTES: usize = 64 << 10;

/// Pieces of what a thread of its own reads; it ends with the input, the receiver or the
/// process.
pub(super) fn pieces(
    mut source: impl Read + Send + 'static,
) -> mpsc::Receiver<Result<Bytes, io::Error>> {
    let (sender, receiver) = mpsc::channel(PIECES);
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let piece = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => Ok(Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default())),
                Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
                Err(why) => Err(why),
            };
            let last = piece.is_err();
            if sender.blocking_send(piece).is_err() || last {
                break;
            }
        }
    });
    receiver
}

/// The pieces as a request body.
pub(super) fn body(receiver: mpsc::Receiver<Result<Bytes, io::Error>>) -> Body {
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((piece.map(Frame::data), receiver))
    });
    StreamBody::new(stream).boxed_unsync()
}
