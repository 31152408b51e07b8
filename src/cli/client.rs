//! The client of the local API: HTTP/1.1 over a unix socket.

use crate::chain::chain;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::error::CliError;

/// The newest version of the API spoken here.
const API_VERSION: (u32, u32) = (1, 50);
/// Bytes of an answer that is read whole.
const ANSWER_BYTES: usize = 64 << 20;
/// How long the socket may take to accept.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// How long an answer may take to begin, unless the request carries a stream.
const ANSWER_WAIT: Duration = Duration::from_secs(120);

/// A request body.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A path with its query.
#[derive(Debug, Clone)]
pub(super) struct Target(String);

impl Target {
    /// A path whose parts are joined by `/`; each part is escaped.
    pub(super) fn new(parts: &[&str]) -> Self {
        let mut path = String::new();
        for part in parts {
            path.push('/');
            escape(part, b"/:@", &mut path);
        }
        Self(path)
    }

    /// The same with one more query parameter.
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push(if self.0.contains('?') { '&' } else { '?' });
        escape(name, b"", &mut self.0);
        self.0.push('=');
        escape(value, b"", &mut self.0);
        self
    }

    /// The same with a parameter if there is a value for it.
    pub(super) fn with_some(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// The same with filters, if there are any.
    pub(super) fn filtered(self, filters: &Filters) -> Self {
        match filters.0.is_empty() {
            true => self,
            false => self.with("filters", &Value::Object(filters.0.clone()).to_string()),
        }
    }
}

/// Filters of a list, as the API takes them.
#[derive(Debug, Clone, Default)]
pub(super) struct Filters(serde_json::Map<String, Value>);

impl Filters {
    /// One more value of a filter.
    pub(super) fn and(mut self, name: &str, value: &str) -> Self {
        let values = self.0.entry(name).or_insert_with(|| Value::Object(serde_json::Map::new()));
        if let Value::Object(values) = values {
            values.insert(value.to_owned(), Value::Bool(true));
        }
        self
    }
}

/// An open way to the local API. One connection is kept and made anew when the daemon closes it.
#[derive(Debug)]
pub(super) struct Client {
    path: PathBuf,
    runtime: Runtime,
    version: Option<(u32, u32)>,
    sender: Option<SendRequest<Body>>,
}

impl Client {
    /// A client of the socket at `path`; nothing is opened yet.
    ///
    /// # Errors
    /// If the runtime cannot be had.
    pub(super) fn new(path: &Path) -> Result<Self, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|why| CliError::plain(format!("cannot start the client: {why}")))?;
        Ok(Self { path: path.to_owned(), runtime, version: None, sender: None })
    }

    /// The answer to a GET, read whole.
    pub(super) fn get(&mut self, target: &Target) -> Result<Bytes, CliError> {
        self.call(Method::GET, target, None)
    }

    /// The answer to a GET as JSON.
    pub(super) fn get_json(&mut self, target: &Target) -> Result<Value, CliError> {
        let bytes = self.get(target)?;
        parse_json(&bytes, "GET", target)
    }

    /// The answer to a DELETE, read whole.
    pub(super) fn delete(&mut self, target: &Target) -> Result<Bytes, CliError> {
        self.call(Method::DELETE, target, None)
    }

    /// The answer to a POST of JSON, as JSON; null if it is empty.
    pub(super) fn post_json(&mut self, target: &Target, body: &Value) -> Result<Value, CliError> {
        self.post(target, Bytes::from(body.to_string()))
    }

    /// The answer to a POST of JSON text, as JSON; null if it is empty.
    pub(super) fn post(&mut self, target: &Target, body: Bytes) -> Result<Value, CliError> {
        let bytes = self.call(Method::POST, target, Some(body))?;
        match bytes.iter().all(u8::is_ascii_whitespace) {
            true => Ok(Value::Null),
            false => parse_json(&bytes, "POST", target),
        }
    }

    /// The answer to a POST without body, as JSON; null if it is empty.
    pub(super) fn post_empty(&mut self, target: &Target) -> Result<Value, CliError> {
        let bytes = self.call(Method::POST, target, None)?;
        match bytes.iter().all(u8::is_ascii_whitespace) {
            true => Ok(Value::Null),
            false => parse_json(&bytes, "POST", target),
        }
    }

    fn call(
        &mut self,
        method: Method,
        target: &Target,
        json: Option<Bytes>,
    ) -> Result<Bytes, CliError> {
        self.negotiate()?;
        let kind = json.is_some().then_some("application/json");
        let body = match json {
            Some(bytes) => full(bytes),
            None => empty(),
        };
        let request = self.request(method, target, kind, body)?;
        let response = self.send(request, Some(ANSWER_WAIT))?;
        self.whole(response)
    }

    /// Sends a request and hands the answer's body to `take`, piece by piece.
    pub(super) fn stream(
        &mut self,
        method: Method,
        target: &Target,
        body: Option<Body>,
        take: &mut dyn FnMut(&[u8]) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        self.negotiate()?;
        let kind = body.is_some().then_some("application/x-tar");
        let request = self.request(method, target, kind, body.unwrap_or_else(empty))?;
        let response = self.send(request, None)?;
        if !response.status().is_success() {
            return Err(self.refusal(response));
        }
        let mut body = response.into_body();
        while let Some(frame) = self.runtime.block_on(body.frame()) {
            let frame = frame.map_err(|why| self.broken(why))?;
            if let Some(data) = frame.data_ref() {
                take(data)?;
            }
        }
        Ok(())
    }

    /// Sends a request that turns its connection into a two-way stream, on a connection of its
    /// own, and runs `talk` on that stream.
    pub(super) fn upgrade<F, T>(
        &mut self,
        target: &Target,
        body: Bytes,
        talk: impl FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> F,
    ) -> Result<T, CliError>
    where
        F: Future<Output = Result<T, CliError>>,
    {
        self.negotiate()?;
        let mut request =
            self.request(Method::POST, target, Some("application/json"), full(body))?;
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, header::HeaderValue::from_static("tcp"));
        let mut sender = self.runtime.block_on(connect(&self.path))?;
        let response = self.runtime.block_on(sender.send_request(request));
        let response = response.map_err(|why| self.broken(why))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.refusal(response));
        }
        self.runtime.block_on(async {
            let stream = hyper::upgrade::on(response).await.map_err(|why| CliError::Broken {
                path: self.path.clone(),
                what: why.to_string(),
            })?;
            talk(TokioIo::new(stream)).await
        })
    }

    /// What tells the daemon of a new size of our terminal while a stream is open.
    pub(super) fn resizer(&self, exec: &str) -> Resizer {
        let (major, minor) = self.version.unwrap_or(API_VERSION);
        let path = Target::new(&["exec", exec, "resize"]).0;
        Resizer { socket: self.path.clone(), path: format!("/v{major}.{minor}{path}") }
    }

    /// Waits for `pause` or for Ctrl-C; `true` if it was the latter.
    pub(super) fn pause(&mut self, pause: Duration) -> bool {
        self.runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(pause) => false,
                pressed = tokio::signal::ctrl_c() => pressed.is_ok(),
            }
        })
    }

    /// Finds the newest version that both sides speak; the first request asks.
    fn negotiate(&mut self) -> Result<(), CliError> {
        if self.version.is_some() {
            return Ok(());
        }
        let request = Request::head("/_ping").header(header::HOST, "skep").body(empty());
        let request = request.map_err(|why| CliError::plain(why.to_string()))?;
        let response = self.send(request, Some(ANSWER_WAIT))?;
        let offered = response.headers().get("api-version").and_then(|value| value.to_str().ok());
        let offered = offered.and_then(|text| {
            let (major, minor) = text.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        self.whole(response)?;
        self.version = Some(offered.unwrap_or(API_VERSION).min(API_VERSION));
        Ok(())
    }

    fn request(
        &self,
        method: Method,
        target: &Target,
        kind: Option<&str>,
        body: Body,
    ) -> Result<Request<Body>, CliError> {
        let (major, minor) = self.version.unwrap_or(API_VERSION);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/v{major}.{minor}{}", target.0))
            .header(header::HOST, "skep")
            .header(header::USER_AGENT, concat!("skep/", env!("CARGO_PKG_VERSION")));
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        request.body(body).map_err(|why| CliError::plain(format!("cannot make a request: {why}")))
    }

    fn send(
        &mut self,
        request: Request<Body>,
        wait: Option<Duration>,
    ) -> Result<Response<Incoming>, CliError> {
        let path = self.path.clone();
        let kept = self.sender.take();
        let answer = self.runtime.block_on(async {
            let mut sender = match kept {
                Some(sender) if !sender.is_closed() => sender,
                _ => connect(&path).await?,
            };
            if sender.ready().await.is_err() {
                sender = connect(&path).await?;
            }
            let answer = sender.send_request(request);
            let answer = match wait {
                Some(wait) => timeout(wait, answer).await.map_err(|_| CliError::Broken {
                    path: path.clone(),
                    what: format!("no answer within {} s", wait.as_secs()),
                })?,
                None => answer.await,
            };
            let answer =
                answer.map_err(|why| CliError::Broken { path: path.clone(), what: chain(&why) })?;
            Ok::<_, CliError>((sender, answer))
        });
        let (sender, response) = answer?;
        self.sender = Some(sender);
        Ok(response)
    }

    /// Reads an answer to its end, or makes the error it tells of.
    fn whole(&mut self, response: Response<Incoming>) -> Result<Bytes, CliError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES).collect();
        let bytes = self.runtime.block_on(async { timeout(ANSWER_WAIT, body).await });
        let bytes = bytes
            .map_err(|_| self.broken("the answer does not end"))?
            .map_err(|why| self.broken(why))?
            .to_bytes();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(bytes);
        }
        let told = serde_json::from_slice::<Value>(&bytes).ok();
        let told = told.as_ref().and_then(|json| json.get("message")?.as_str());
        let message = match told {
            Some(message) => message.trim_end().to_owned(),
            None if bytes.is_empty() => status.to_string(),
            None => String::from_utf8_lossy(&bytes).trim().to_owned(),
        };
        Err(CliError::Daemon { status: status.as_u16(), message })
    }

    fn refusal(&mut self, response: Response<Incoming>) -> CliError {
        let status = response.status();
        match self.whole(response) {
            Ok(_) => self.broken(format!("unexpected status {status}")),
            Err(why) => why,
        }
    }

    fn broken(&self, why: impl ToString) -> CliError {
        CliError::Broken { path: self.path.clone(), what: why.to_string() }
    }
}

/// Tells the daemon the size of our terminal, on a connection of its own.
#[derive(Debug)]
pub(super) struct Resizer {
    socket: PathBuf,
    path: String,
}

impl Resizer {
    /// Tells it now. A command that is gone already needs no size, so failures are nothing.
    pub(super) async fn resize(&self) {
        let Some((rows, columns)) = super::terminal::size() else { return };
        let request = Request::post(format!("{}?h={rows}&w={columns}", self.path))
            .header(header::HOST, "skep")
            .header(header::CONTENT_LENGTH, "0")
            .body(empty());
        if let (Ok(request), Ok(mut sender)) = (request, connect(&self.socket).await) {
            let _ = timeout(CONNECT_WAIT, sender.send_request(request)).await;
        }
    }
}

/// A body of these bytes.
pub(super) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

async fn connect(path: &Path) -> Result<SendRequest<Body>, CliError> {
    let stream = match timeout(CONNECT_WAIT, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) if why.kind() == io::ErrorKind::PermissionDenied => {
            return Err(CliError::Permission { path: path.to_owned() });
        }
        Ok(Err(source)) => return Err(CliError::Connect { path: path.to_owned(), source }),
        Err(_) => {
            let source = io::Error::from(io::ErrorKind::TimedOut);
            return Err(CliError::Connect { path: path.to_owned(), source });
        }
    };
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|why| CliError::Broken { path: path.to_owned(), what: chain(&why) })?;
    tokio::spawn(async move {
        // Whoever waits for an answer learns of a broken connection; nobody else needs to.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

fn parse_json(bytes: &[u8], method: &str, target: &Target) -> Result<Value, CliError> {
    serde_json::from_slice(bytes).map_err(|why| CliError::Answer {
        request: format!("{method} {}", target.0.split('?').next().unwrap_or_default()),
        what: why.to_string(),
    })
}

/// Percent-escapes everything but letters, digits, `-._~` and `keep`.
fn escape(text: &str, keep: &[u8], out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_escaped() {
        let filters = Filters::default().and("name", "a b").and("name", "c");
        let target = Target::new(&["images", "repo/x:1", "json"]).with("a", "x&y/z");
        assert_eq!(target.0, "/images/repo/x:1/json?a=x%26y%2Fz");
        assert_eq!(
            Target::new(&["secrets"]).filtered(&filters).0,
            "/secrets?filters=%7B%22name%22%3A%7B%22a%20b%22%3Atrue%2C%22c%22%3Atrue%7D%7D"
        );
        assert_eq!(Target::new(&["x y?"]).filtered(&Filters::default()).0, "/x%20y%3F");
    }
}
