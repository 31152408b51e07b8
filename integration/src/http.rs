//! HTTP/1.1 over a unix socket, byte by byte: for requests that no client library would send.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Longest wait for bytes of an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection.
#[derive(Debug)]
pub struct Http {
    stream: BufReader<UnixStream>,
}

/// One answer.
#[derive(Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Header names in lower case, with their values.
    pub headers: Vec<(String, String)>,
    /// Body, decoded from chunks.
    pub body: Vec<u8>,
}

impl Reply {
    /// Body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{}: {}", self.status, String::from_utf8_lossy(&self.body)))
    }

    /// Value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The `message` of an error.
    pub fn message(&self) -> Result<String> {
        let body = self.json()?;
        Ok(body["message"].as_str().context("no message")?.to_owned())
    }
}

impl Http {
    /// Connects to a node's socket.
    pub fn connect(socket: &Path) -> Result<Self> {
        Self::connect_within(socket, PATIENCE)
    }

    /// As [`Http::connect`] with another bound on each wait for bytes.
    pub fn connect_within(socket: &Path, patience: Duration) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request with a JSON body and reads the answer.
    pub fn json(&mut self, method: &str, path: &str, body: &Value) -> Result<Reply> {
        self.request(method, path, "application/json", body.to_string().as_bytes())
    }

    /// Sends a request without a body and reads the answer.
    pub fn get(&mut self, path: &str) -> Result<Reply> {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: skep\r\n\r\n").as_bytes())?;
        self.reply()
    }

    /// Sends a request with a body and reads the answer.
    pub fn request(&mut self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<Reply> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: skep\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.raw(head.as_bytes())?;
        // The server may refuse a body by its length and close before it has read it all.
        self.stream.get_mut().write_all(body).ok();
        self.reply()
    }

    /// Writes bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).context("write")
    }

    /// Reads one answer.
    pub fn reply(&mut self) -> Result<Reply> {
        let status_line = self.line()?;
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .with_context(|| format!("no status in {status_line:?}"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (key, value) = line.split_once(':').context("header without colon")?;
            headers.push((key.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut reply = Reply { status, headers, body: Vec::new() };
        if matches!(status, 100..=199 | 204 | 304) {
            return Ok(reply);
        }
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.body = self.chunks()?;
        } else if let Some(length) = reply.header("content-length") {
            let mut body = vec![0; length.parse().context("content-length")?];
            self.stream.read_exact(&mut body).context("body")?;
            reply.body = body;
        } else {
            self.stream.read_to_end(&mut reply.body).context("body")?;
        }
        Ok(reply)
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = usize::from_str_radix(&line, 16).context("chunk size")?;
            ensure!(size < 1 << 30, "chunk of {size} bytes");
            let start = body.len();
            body.resize(start + size, 0);
            if let Some(chunk) = body.get_mut(start..) {
                self.stream.read_exact(chunk).context("chunk")?;
            }
            ensure!(self.line()?.is_empty(), "chunk without end");
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("read")? == 0 {
            bail!("the connection was closed");
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// Percent-encodes a query value.
pub fn encode_query(value: &str) -> String {
    let mut out = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
