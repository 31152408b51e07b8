//! The way in for the fuzz targets of `integration/fuzz`: one connection, as the socket's loop
//! serves it.

use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use super::server;
use super::turn::Turn;
use crate::gate::Gate;

/// Serves one connection until it ends.
pub async fn connection(stream: UnixStream, gate: Arc<dyn Gate>) {
    if let Ok(turn) = Arc::new(Semaphore::new(1)).acquire_owned().await {
        server::connection(stream, Turn::new(turn, None), gate).await;
    }
}
