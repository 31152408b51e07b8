//! Images from node to node over streams: this side gives, this side takes.

use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::give::Given;
use super::take::{Missing, Taking, Turn};
use super::{ImageError, ImageStore};
use crate::gate::{Later, Refusal};
use crate::limits::{
    IMAGE_OFFER_BYTES, IMAGE_PIECE_BYTES, IMAGE_PIECE_WAIT, IMAGE_RETRY, IMAGE_RETRY_MAX,
    IMAGE_TRIES, IMAGE_WANT_BYTES,
};
use crate::wire::image::Want;
use crate::wire::refused::Refused;
use crate::wire::relay::{Answer, Ask};
use crate::wire::{Stream, WireError, receive, send};

/// Where a node gets images that it lacks.
pub trait ImageSource: std::fmt::Debug + Send + Sync {
    /// Opens a stream to whoever can give this image or finds out who can. The first thing on it
    /// is the [`Ask`].
    ///
    /// # Errors
    /// If there is no way to anybody at the moment. It answers soon.
    fn open(&self, name: &str) -> Later<'_, Result<Box<dyn Stream>, Refusal>>;
}

/// An image did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody that was asked has it.
    #[error("{0}")]
    Missing(String),
    /// There is no way to anybody who may have it.
    #[error("no node that has the image can be reached")]
    Unreachable(#[source] Refusal),
    /// The stream broke off.
    #[error("the image broke off on its way")]
    Lost(#[from] WireError),
    /// What came is wrong, or cannot be kept.
    #[error("the image cannot be taken from another node")]
    Image(#[from] ImageError),
    /// This daemon stops.
    #[error("the daemon stops")]
    Stopped,
}

impl FetchError {
    /// Whether another try cannot end otherwise.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Missing(_)
                | Self::Stopped
                | Self::Image(ImageError::Platform { .. } | ImageError::Reference(_))
        )
    }
}

/// How much of an image has come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Came {
    /// Bytes that are here, or were before.
    pub bytes: u64,
    /// Bytes of all layers that were not here.
    pub of: u64,
}

/// Takes an image from other nodes until it is in the store. Layers that are here already are not
/// asked for, one that came in part is asked for the rest. Dropping the call loses nothing that
/// came.
///
/// # Errors
/// If nobody has it, or several tries in a row brought nothing new.
pub async fn fetch(
    store: &Arc<ImageStore>,
    name: &str,
    source: &dyn ImageSource,
    came: &watch::Sender<Came>,
) -> Result<(), FetchError> {
    let (mut tries, mut wait, mut best) = (0, IMAGE_RETRY, 0);
    loop {
        let error = match attempt(store, name, source, came).await {
            Ok(true) => return Ok(()),
            // Others were downloading a part of it, or the whole.
            Ok(false) if store.has(name) => return Ok(()),
            Ok(false) => continue,
            Err(error) => error,
        };
        let now = came.borrow().bytes;
        if now > best {
            (tries, wait, best) = (0, IMAGE_RETRY, now);
        }
        tries += 1;
        if error.is_final() || tries >= IMAGE_TRIES {
            return Err(error);
        }
        tracing::debug!(image = name, %error, tries, "an image did not come");
        sleep(wait).await;
        wait = (wait * 2).min(IMAGE_RETRY_MAX);
    }
}

/// One try. False if a layer is being downloaded by others, and that has ended by now.
pub(super) async fn attempt(
    store: &Arc<ImageStore>,
    name: &str,
    source: &dyn ImageSource,
    came: &watch::Sender<Came>,
) -> Result<bool, FetchError> {
    let mut stream = source.open(name).await.map_err(FetchError::Unreachable)?;
    send(&mut stream, &Ask::Image { name: name.to_owned() }).await?;
    stream.flush().await.map_err(WireError::from)?;
    let offer = match within(receive(&mut stream, IMAGE_OFFER_BYTES)).await? {
        Answer::Image(offer) => *offer,
        Answer::Refused(Refused::NotFound(text)) => return Err(FetchError::Missing(text)),
        Answer::Refused(refused) => return Err(FetchError::Unreachable(refused.into())),
        _ => return Err(WireError::Unexpected.into()),
    };
    let (at, of) = (Arc::clone(store), name.to_owned());
    let taking = blocking(move || at.take(&of, offer)).await?;
    let names = taking.names();
    let Some(turn) = store.turns.try_take(&names) else {
        // Nothing is held while it waits: not the node that gives, nor what is in the store.
        drop((stream, taking));
        store.turns.wait(&names).await;
        return Ok(false);
    };
    // Whatever still works on a file when the call is dropped keeps its turn until it is done.
    let turn = Arc::new(turn);
    let (at, held) = (Arc::clone(store), Arc::clone(&turn));
    let (mut taking, missing, of) = blocking(move || {
        let (mut taking, _held) = (taking, held);
        let (missing, of) = taking.missing(&at.disk)?;
        Ok((taking, missing, of))
    })
    .await?;
    let here = missing.iter().map(|layer| layer.came).sum();
    came.send_replace(Came { bytes: here, of });
    for layer in missing {
        gather(&mut stream, &layer, &turn, came).await?;
        taking = check(taking, layer, &turn).await?;
    }
    // What is missing now is only the last word.
    let _ = stream.shutdown().await;
    let at = Arc::clone(store);
    blocking(move || {
        let _held = turn;
        at.finish(taking)
    })
    .await?;
    Ok(true)
}

async fn check(taking: Taking, layer: Missing, turn: &Arc<Turn>) -> Result<Taking, FetchError> {
    let held = Arc::clone(turn);
    blocking(move || {
        let _held = held;
        taking.check(&layer).map(|()| taking)
    })
    .await
}

/// Asks for the rest of a layer and writes it behind what is there.
async fn gather(
    stream: &mut (impl Stream + ?Sized),
    layer: &Missing,
    turn: &Arc<Turn>,
    came: &watch::Sender<Came>,
) -> Result<(), FetchError> {
    if layer.came == layer.bytes {
        return Ok(());
    }
    let index = u32::try_from(layer.layer).map_err(|_| WireError::Unexpected)?;
    let mut stream = stream;
    send(&mut stream, &Want { layer: index, offset: layer.came }).await?;
    stream.flush().await.map_err(WireError::from)?;
    let failed = |what| ImageError::disk(what, &layer.file);
    let mut options = std::fs::OpenOptions::new();
    let file = options.create(true).append(true).open(&layer.file).map_err(failed("open"))?;
    let file = Arc::new(file);
    let mut left = layer.bytes - layer.came;
    while left > 0 {
        let (piece, end) = piece(stream, left).await;
        left = left.saturating_sub(piece.len() as u64);
        let (len, held, to) = (piece.len() as u64, Arc::clone(turn), Arc::clone(&file));
        let path = layer.file.clone();
        // What came before the stream broke is kept.
        blocking(move || {
            let _held = held;
            (&*to).write_all(&piece).map_err(ImageError::disk("write", path))
        })
        .await?;
        came.send_modify(|came| came.bytes = came.bytes.saturating_add(len));
        end?;
    }
    Ok(())
}

/// The next bytes of a layer, at most so many, and whether the stream broke behind them. A node
/// that gives them too slowly is given up.
async fn piece(stream: &mut (impl Stream + ?Sized), left: u64) -> (Vec<u8>, Result<(), WireError>) {
    let most = usize::try_from(left).unwrap_or(usize::MAX).min(IMAGE_PIECE_BYTES);
    let mut bytes = vec![0; most];
    let mut filled = 0;
    let fill = async {
        while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
            match stream.read(room).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                len => filled += len,
            }
        }
        Ok(())
    };
    let end = within(fill).await;
    bytes.truncate(filled);
    (bytes, end)
}

/// Gives an image over a stream: the offer, then the layers that are asked for.
///
/// # Errors
/// If the stream breaks off, or the asker breaks the protocol.
pub async fn give(
    store: &Arc<ImageStore>,
    name: &str,
    stream: &mut (impl Stream + ?Sized),
) -> Result<(), WireError> {
    let mut stream = stream;
    let (at, of) = (Arc::clone(store), name.to_owned());
    let (offer, given) = match blocking(move || at.offer(&of)).await {
        Ok(found) => found,
        Err(error) => {
            let refused = match error {
                FetchError::Image(error @ (ImageError::NotFound(_) | ImageError::Reference(_))) => {
                    Refusal::NotFound(error.to_string())
                }
                error => Refusal::Failed {
                    what: "cannot give an image".to_owned(),
                    source: Box::new(error),
                },
            };
            send(&mut stream, &Answer::Refused(refused.into())).await?;
            return Ok(stream.shutdown().await?);
        }
    };
    send(&mut stream, &Answer::Image(Box::new(offer))).await?;
    stream.flush().await?;
    loop {
        let want: Want = match within(receive(&mut stream, IMAGE_WANT_BYTES)).await {
            Ok(want) => want,
            // The asker has all it wants.
            Err(WireError::Io(e)) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        };
        layer(&given, &want, stream).await?;
    }
    Ok(stream.shutdown().await?)
}

/// Sends a layer from an offset on.
async fn layer(
    given: &Given,
    want: &Want,
    stream: &mut (impl Stream + ?Sized),
) -> Result<(), WireError> {
    let at = usize::try_from(want.layer).map_err(|_| WireError::Unexpected)?;
    let (path, bytes) = given.layers.get(at).cloned().ok_or(WireError::Unexpected)?;
    let mut left = bytes.checked_sub(want.offset).ok_or(WireError::Unexpected)?;
    let offset = want.offset;
    let mut file = blocking_io(move || {
        let mut file = std::fs::File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    })
    .await?;
    while left > 0 {
        let most = left.min(IMAGE_PIECE_BYTES as u64);
        let piece;
        (file, piece) = blocking_io(move || {
            let mut piece = Vec::new();
            io::Read::take(&mut file, most).read_to_end(&mut piece)?;
            match piece.len() as u64 == most {
                true => Ok((file, piece)),
                false => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            }
        })
        .await?;
        within(async { Ok(stream.write_all(&piece).await?) }).await?;
        left -= most;
    }
    Ok(stream.flush().await?)
}

/// Bounds a wait for the other side.
async fn within<T>(work: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
    timeout(IMAGE_PIECE_WAIT, work).await.unwrap_or(Err(WireError::Silent(IMAGE_PIECE_WAIT)))
}

/// Does what blocks on a thread for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, FetchError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(FetchError::Stopped),
    }
}

async fn blocking_io<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
