//! Answers.

use std::io;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use serde::Serialize;

use super::error::ApiError;

/// The body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
/// An answer.
pub(super) type Reply = Response<Body>;
/// What a route gives.
pub(super) type Outcome = Result<Reply, ApiError>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

fn with(status: StatusCode, content: Option<HeaderValue>, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    if let Some(content) = content {
        reply.headers_mut().insert(CONTENT_TYPE, content);
    }
    reply
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// JSON with this status. Docker ends it with a newline.
pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Outcome {
    let mut bytes = serde_json::to_vec(value)
        .map_err(|error| ApiError::failed(format!("cannot write the answer: {error}")))?;
    bytes.push(b'\n');
    Ok(with(status, Some(JSON), full(bytes)))
}

/// JSON with 200.
pub(super) fn ok<T: Serialize>(value: &T) -> Outcome {
    json(StatusCode::OK, value)
}

/// No body.
pub(super) fn empty(status: StatusCode) -> Outcome {
    Ok(with(status, None, full(Bytes::new())))
}

/// Plain text with 200.
pub(super) fn text(text: &'static str) -> Reply {
    let content = HeaderValue::from_static("text/plain; charset=utf-8");
    with(StatusCode::OK, Some(content), full(text))
}

/// The chunks of `stream` as they come, with 200.
pub(super) fn stream(
    content: Option<HeaderValue>,
    stream: impl Stream<Item = Bytes> + Send + 'static,
) -> Reply {
    breakable(content, stream.map(Ok))
}

/// As [`stream`]. After an error the connection is closed, so that nobody takes what came for the
/// whole.
pub(super) fn breakable(
    content: Option<HeaderValue>,
    stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Reply {
    let frames = stream.map(|piece| piece.map(Frame::data));
    with(StatusCode::OK, content, StreamBody::new(frames).boxed_unsync())
}

/// An error as Docker's JSON.
pub(super) fn error(error: &ApiError) -> Reply {
    #[derive(Serialize)]
    struct Message {
        message: String,
    }
    let (status, message) = error.answer();
    json(status, &Message { message })
        .unwrap_or_else(|_| with(StatusCode::INTERNAL_SERVER_ERROR, None, full(Bytes::new())))
}

/// Ends the connection after this answer, so that no buffer of the HTTP stack keeps what the
/// request or the answer carried.
pub(super) fn closing(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}
