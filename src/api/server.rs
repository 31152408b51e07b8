//! The socket's loop: a bounded number of connections, each with bounded waits.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::peer::Peer;
use super::routes;
use super::turn::{Shares, Turn};
use crate::chain::chain;
use crate::gate::Gate;
use crate::limits;

/// How long a request's head may take, and how long a kept connection may be idle.
const HEAD_WAIT: Duration = Duration::from_secs(60);
/// How long a client waits for its turn when all connections are taken.
const TURN_WAIT: Duration = Duration::from_secs(2);
/// How long answers under way may take once the server is told to end.
const DRAIN_WAIT: Duration = Duration::from_secs(2);
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a client is turned away when there is no room for anybody.
const FULL: (usize, &str) = (limits::API_CONNECTIONS, "of the API socket are in use");
/// How it is turned away when there is none for its own process.
const GREEDY: (usize, &str) = (
    limits::API_CONNECTIONS_PER_PROCESS,
    "that one process may have to the API socket are in use by yours",
);

/// Serves the API until `shutdown` resolves, then lets answers under way end for a short while.
pub async fn serve(
    listener: UnixListener,
    gate: Arc<dyn Gate>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let turns = Arc::new(Semaphore::new(limits::API_CONNECTIONS));
    let shares = Arc::new(Shares::default());
    let farewells = Arc::new(Semaphore::new(limits::API_TURNED_AWAY));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection to the API socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let Some(share) = shares.take(pid.unwrap_or_default()) else {
            // One process that asks for ever more must not keep others from being accepted.
            if let Ok(farewell) = Arc::clone(&farewells).try_acquire_owned() {
                connections.spawn(async move {
                    turn_away(stream, GREEDY).await;
                    drop(farewell);
                });
            }
            continue;
        };
        let turn = tokio::time::timeout(TURN_WAIT, Arc::clone(&turns).acquire_owned()).await;
        match turn {
            Ok(Ok(turn)) => {
                let turn = Turn::new(turn, Some(share));
                connections.spawn(connection(stream, turn, Arc::clone(&gate)));
            }
            _ => turn_away(stream, FULL).await,
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN_WAIT, drained).await;
}

/// Tells a client that there is no room, and how many connections that is.
async fn turn_away(mut stream: UnixStream, (count, why): (usize, &str)) {
    let body = format!("{{\"message\":\"all {count} connections {why}: try again\"}}\n");
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let told = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // What the client has sent must be read, or it is told of a reset and not of this.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(ACCEPT_PAUSE, told).await;
}

/// Serves one connection until it ends.
pub(super) async fn connection(stream: UnixStream, turn: Turn, gate: Arc<dyn Gate>) {
    let peer = Arc::new(Peer::new(&stream, turn));
    let service = service_fn(move |request: Request<Incoming>| {
        let (gate, peer) = (Arc::clone(&gate), Arc::clone(&peer));
        async move { Ok::<_, Infallible>(routes::answer(request, gate, peer).await) }
    });
    let served = http1::Builder::new()
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        debug!(error = %chain(&error), "a connection to the API socket broke");
    }
}
