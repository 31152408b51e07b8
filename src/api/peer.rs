//! The client at the other end of a connection.

use std::os::fd::OwnedFd;

use skep_core::model::material::Author;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::turn::Turn;

/// Tells whether the client is still there. Half a close is none: a client that has nothing more
/// to say shuts its side and goes on listening.
#[derive(Debug)]
pub(super) struct Peer {
    socket: Option<AsyncFd<OwnedFd>>,
    /// Its user, by the kernel's word.
    uid: u32,
    /// Held as long as anything serves this client.
    _turn: Turn,
}

impl Peer {
    pub(super) fn new(stream: &UnixStream, turn: Turn) -> Self {
        // No kernel event but the client's going is waited for: that is always reported.
        let socket = rustix::io::fcntl_dupfd_cloexec(stream, 0).ok().and_then(|fd| {
            // SAFETY: the descriptor is owned: it stays open, and the same, until it is dropped.
            unsafe { AsyncFd::register_with_interest(fd, Interest::PRIORITY) }.ok()
        });
        let uid = stream.peer_cred().map_or(Author::UNKNOWN_UID, |peer| peer.uid());
        Self { socket, uid, _turn: turn }
    }

    /// Its user.
    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    /// Returns when the client has closed both directions.
    pub(super) async fn gone(&self) {
        match &self.socket {
            Some(socket) => {
                let _ = socket.ready(Interest::PRIORITY).await;
            }
            None => std::future::pending().await,
        }
    }
}
