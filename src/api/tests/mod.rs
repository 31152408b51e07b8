//! The API over a socket, against a node of memory: real HTTP, real state, no daemon.

mod archives;
mod audits;
mod elsewhere;
mod fake;
mod goldens;
mod holders;
mod members;
mod objects;
mod streams;
mod transport;
mod versions;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use fake::FakeGate;

/// How long an answer may take.
const WAIT: Duration = Duration::from_secs(20);

/// What came back.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// One end of a connection that is served.
fn connect(gate: &Arc<FakeGate>) -> UnixStream {
    let (client, server) = UnixStream::pair().unwrap();
    let turn = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let turn = super::turn::Turn::new(turn, None);
    let gate: Arc<dyn crate::gate::Gate> = gate.clone();
    tokio::spawn(super::server::connection(server, turn, gate));
    client
}

async fn client(gate: &Arc<FakeGate>) -> SendRequest<Full<Bytes>> {
    let io = TokioIo::new(connect(gate));
    let (send, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    send
}

async fn call(gate: &Arc<FakeGate>, method: &str, path: &str, body: &str) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("host", "skep");
    if !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let answered = async {
        let reply = client(gate).await.send_request(request).await.unwrap();
        let (parts, body) = reply.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    };
    tokio::time::timeout(WAIT, answered).await.unwrap()
}

/// The path with these filters.
fn filtered(path: &str, filters: &Value) -> String {
    let text = filters.to_string();
    let escaped = text.bytes().map(|b| match b {
        b if b.is_ascii_alphanumeric() => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    });
    format!("{path}?filters={}", escaped.collect::<String>())
}

async fn get(gate: &Arc<FakeGate>, path: &str) -> Answer {
    call(gate, "GET", path, "").await
}

async fn post(gate: &Arc<FakeGate>, path: &str, body: &str) -> Answer {
    call(gate, "POST", path, body).await
}

async fn delete(gate: &Arc<FakeGate>, path: &str) -> Answer {
    call(gate, "DELETE", path, "").await
}

/// Makes a secret and returns its id.
async fn secret(gate: &Arc<FakeGate>, name: &str) -> String {
    let body = format!(r#"{{"Name":"{name}","Labels":{{}},"Data":"VGhpcyBpcyBhIHNlY3JldA=="}}"#);
    let made = post(gate, "/v1.41/secrets/create", &body).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()["ID"].as_str().unwrap().to_owned()
}

/// Makes a service that sleeps and returns its id.
async fn service(gate: &Arc<FakeGate>, name: &str, rest_of_container: &str) -> String {
    let body = format!(
        r#"{{"Name":"{name}","Labels":{{"tier":"web"}},"TaskTemplate":{{"ContainerSpec":{{
            "Image":"busybox:latest","Args":["sleep","1"]{rest_of_container}}}}}}}"#
    );
    let made = post(gate, "/services/create", &body).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()["ID"].as_str().unwrap().to_owned()
}
