//! A keep-alive client of one engine's socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use skep_integration::{Http, Reply, encode_query};

/// The version both engines speak.
const VERSION: &str = "/v1.41";
/// Longest wait for bytes of an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connects when it must: a reply that says `Connection: close` ends the connection.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    patience: Duration,
    open: Option<Http>,
}

impl Client {
    pub(crate) fn new(socket: &Path) -> Self {
        Self::within(socket, PATIENCE)
    }

    /// One with another bound on each wait for bytes.
    pub(crate) fn within(socket: &Path, patience: Duration) -> Self {
        Self { socket: socket.to_owned(), patience, open: None }
    }

    /// Sends a request made by [`request`].
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<Reply> {
        let mut http = match self.open.take() {
            Some(http) => http,
            None => Http::connect_within(&self.socket, self.patience)?,
        };
        http.raw(bytes)?;
        let reply = http.reply()?;
        let is_last = reply.header("connection").is_some_and(|it| it.eq_ignore_ascii_case("close"));
        if !is_last {
            self.open = Some(http);
        }
        Ok(reply)
    }

    /// The body of a 2xx; null for an empty one.
    pub(crate) fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(|body| body.to_string().into_bytes());
        let reply = self.send(&request(method, path, "application/json", body.as_deref()))?;
        if !(200..300).contains(&reply.status) {
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            bail!("{method} {path}: {} {text}", reply.status);
        }
        if reply.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&reply.body).with_context(|| format!("the answer to {path}"))
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<Value> {
        self.call("GET", path, None)
    }

    pub(crate) fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        self.call("POST", path, Some(body))
    }

    /// `GET` of a list with one filter.
    pub(crate) fn list(&mut self, path: &str, key: &str, value: &str) -> Result<Vec<Value>> {
        let filter = format!(r#"{{"{key}":["{value}"]}}"#);
        let all = self.get(&format!("{path}filters={}", encode_query(&filter)))?;
        Ok(all.as_array().cloned().unwrap_or_default())
    }
}

/// The bytes of a request, sent by one write.
pub(crate) fn request(method: &str, path: &str, kind: &str, body: Option<&[u8]>) -> Vec<u8> {
    let length = body.map_or(0, <[u8]>::len);
    let mut bytes = format!("{method} {VERSION}{path} HTTP/1.1\r\nHost: bench\r\n");
    if body.is_some() || method == "POST" {
        bytes += &format!("Content-Type: {kind}\r\nContent-Length: {length}\r\n");
    }
    let mut bytes = (bytes + "\r\n").into_bytes();
    bytes.extend_from_slice(body.unwrap_or_default());
    bytes
}
