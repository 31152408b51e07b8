//! Whole byte streams to the API socket.

use crate::Target;
use crate::cursor::{Cursor, input};
use crate::exchange::{exchange, parse, run};
use crate::fake::FakeGate;

pub(crate) const TARGET: Target = Target { name: "http", run: serve, seeds, mutations: 2_500 };

/// A piece of the input is what one write of the client sends.
fn serve(bytes: &[u8]) {
    let mut cursor = Cursor::new(bytes);
    let is_manager = !cursor.byte().is_multiple_of(4);
    let pieces = cursor.pieces(8);
    run(async {
        let gate = if is_manager { FakeGate::manager() } else { FakeGate::alone() };
        let answer = exchange(&gate, &pieces).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "no answer in HTTP");
        if let Some((status, body)) = parse(&answer) {
            assert_ne!(status, 500, "{}", String::from_utf8_lossy(body));
        }
        let ping =
            exchange(&gate, &[b"GET /_ping HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n"]);
        assert_eq!(parse(&ping.await).map(|(status, _)| status), Some(200), "dead afterwards");
    });
}

fn seeds() -> Vec<Vec<u8>> {
    let secret = r#"{"Name":"s","Labels":{},"Data":"VGhpcyBpcyBhIHNlY3JldA=="}"#;
    let chunked = format!("{:x}\r\n{secret}\r\n0\r\nTrailer: x\r\n\r\n", secret.len());
    let post = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: s\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: s\r\n\r\n");
    let streams = [
        get("/_ping"),
        get("/v1.41/info") + &get("/version"),
        get("/secrets?filters=%7B%22name%22%3A%7B%22s%22%3Atrue%7D%7D"),
        get("/tasks/x/logs?follow=1&stdout=1&tail=5&since=1700000000.5"),
        get("/events?since=0&until=1"),
        get("/containers/json?all=1&size=1"),
        get("/images/json") + &get("/networks") + &get("/volumes"),
        post("/v1.24/secrets/create", secret) + &get("/secrets/s"),
        post("/swarm/init", r#"{"ListenAddr":"0.0.0.0:2377","Spec":{}}"#),
        post("/exec/abc/start", r#"{"Detach":false,"Tty":true}"#)
            .replace("Host", "Connection: Upgrade\r\nUpgrade: tcp\r\nHost"),
        post("/services/create", r#"{"Name":"w","TaskTemplate":{"ContainerSpec":{"Image":"b"}}}"#),
        format!(
            "POST /secrets/create HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"
        ),
        "DELETE /v1.50/services/w?force=1 HTTP/1.0\r\nExpect: 100-continue\r\n\r\n".to_owned(),
        "HEAD /_ping HTTP/1.1\r\nHost: s\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: s\r\n\r\n".to_owned(),
    ];
    let whole = streams.iter().map(|stream| input(1, &[stream.as_bytes()]));
    let cut = streams.iter().map(|stream| {
        let (first, second) = stream.as_bytes().split_at(stream.len() / 2);
        input(1, &[first, second])
    });
    whole.chain(cut).collect()
}
