//! One connection to the API of a node of memory, in time that passes only when nobody works.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::fake::FakeGate;

/// How long a client waits for an answer to end: longer than every bound of the server.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes of answers that a client takes; more is no answer to so little.
const ANSWER: usize = 8 << 20;

thread_local! {
    static RUNTIME: RefCell<Runtime> = RefCell::new(
        Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
    );
}

/// Runs a future to its end on this thread.
pub(crate) fn run<F: Future>(future: F) -> F::Output {
    RUNTIME.with_borrow(|runtime| runtime.block_on(future))
}

/// Sends `pieces`, shuts that side, and returns what came back until the server closed, or until
/// it seems not to. In any case the server must be done with the connection when the client is.
pub(crate) async fn exchange(gate: &Arc<FakeGate>, pieces: &[&[u8]]) -> Vec<u8> {
    let (client, server) = UnixStream::pair().unwrap();
    let served = tokio::spawn(skep::api::fuzz::connection(server, Arc::clone(gate) as _));
    let (mut from, mut to) = client.into_split();
    let write = async {
        for piece in pieces {
            if to.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        let _ = to.shutdown().await;
    };
    let mut answer = Vec::new();
    let read = async {
        let mut some = [0; 4096];
        loop {
            match timeout(PATIENCE, from.read(&mut some)).await {
                Ok(Ok(count)) if count > 0 => answer.extend_from_slice(&some[..count]),
                _ => break,
            }
            assert!(answer.len() <= ANSWER, "an answer without end");
        }
    };
    let _ = timeout(2 * PATIENCE, async { tokio::join!(write, read) }).await;
    drop((from, to));
    let done = timeout(PATIENCE, served).await;
    done.expect("a connection outlives its client").expect("the server panicked");
    answer
}

/// Status and body of the first answer; none if there is no whole one with a length.
pub(crate) fn parse(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let length = head.lines().find_map(|line| {
        line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned)
    });
    let length: usize = length.map_or(Some(0), |text| text.parse().ok())?;
    Some((status, answer.get(end + 4..end + 4 + length)?))
}
