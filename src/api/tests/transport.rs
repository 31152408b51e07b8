//! HTTP itself: headers, versions, bodies, connections.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn ping_says_where_the_node_stands() {
    let alone = FakeGate::alone();
    let head = call(&alone, "HEAD", "/_ping", "").await;
    assert_eq!((head.status, head.header("swarm")), (200, "inactive"));
    assert_eq!(head.header("content-length"), "0");
    assert_eq!(head.header("api-version"), "1.50");
    assert_eq!(head.header("ostype"), "linux");
    assert_eq!(head.header("docker-experimental"), "false");
    assert!(
        head.header("server").starts_with("skep/") && head.header("server").ends_with("(linux)")
    );
    let ping = get(&FakeGate::manager(), "/v1.24/_ping").await;
    assert_eq!((ping.text(), ping.header("swarm")), ("OK", "active/manager"));
    assert_eq!(ping.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(ping.header("cache-control"), "no-cache, no-store, must-revalidate");
}

#[tokio::test]
async fn paths_and_versions_are_told_apart() {
    let gate = FakeGate::manager();
    let unknown = get(&gate, "/v1.41/no/such/page").await;
    assert_eq!((unknown.status, unknown.message().as_str()), (404, "page not found"));
    assert_eq!(unknown.header("api-version"), "");
    let new = get(&gate, "/v1.99/info").await;
    assert_eq!(new.status, 400);
    assert!(new.message().starts_with("client version 1.99 is too new"));
    assert_eq!(get(&gate, "/v1.12/info").await.status, 400);
    for path in ["/v1.41/containers/create", "/networks/create", "/volumes/create"] {
        let answer = post(&gate, path, "{}").await;
        assert_eq!(answer.status, 501, "{path}: {answer:?}");
    }
    let answer = get(&gate, "/v1.41/events").await;
    assert_eq!(answer.message(), "GET /events is not supported by this version of skep");
}

#[tokio::test]
async fn inspect_finds_nothing_everywhere_with_404() {
    let gate = FakeGate::manager();
    for path in [
        "/containers/x/json",
        "/images/x/json",
        "/networks/x",
        "/volumes/x",
        "/services/x",
        "/tasks/x",
        "/nodes/x",
        "/plugins/x/json",
        "/secrets/x",
        "/configs/x",
        "/exec/x/json",
        "/distribution/x/json",
        "/images/a/b/c:1/json",
    ] {
        let answer = get(&gate, path).await;
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        assert!(!answer.message().is_empty());
    }
    assert_eq!(get(&gate, "/secrets/rec_missing").await.message(), "secret rec_missing not found");
    assert_eq!(get(&gate, "/containers/x/json").await.message(), "No such container: x");
}

#[tokio::test]
async fn a_node_in_no_swarm_says_so() {
    let gate = FakeGate::alone();
    for path in ["/secrets", "/configs", "/services", "/tasks", "/nodes", "/swarm"] {
        let answer = get(&gate, path).await;
        assert_eq!(answer.status, 503, "{path}: {answer:?}");
        assert!(answer.message().starts_with("This node is not a swarm manager. Use \"docker"));
    }
    let info = get(&gate, "/info").await.json();
    assert_eq!(info["Swarm"]["LocalNodeState"], "inactive");
    assert_eq!(info["Swarm"]["ControlAvailable"], false);
    assert_eq!(post(&gate, "/swarm/leave", "").await.message(), "This node is not part of a swarm");
    let made = post(&gate, "/swarm/init", r#"{"ListenAddr":"0.0.0.0:2377","Spec":{}}"#).await;
    assert_eq!((made.status, made.json().as_str().map(str::len)), (200, Some(25)));
    let again = post(&gate, "/swarm/init", "{}").await;
    assert_eq!(again.status, 503);
    assert!(again.message().starts_with("This node is already part of a swarm"));
    let leave = post(&gate, "/swarm/leave", "").await;
    assert!(leave.message().starts_with("You are attempting to leave the swarm on a node"));
}

#[tokio::test]
async fn bodies_are_bounded_and_typed() {
    let gate = FakeGate::manager();
    let broken = post(&gate, "/services/create", "{").await;
    assert_eq!(broken.status, 400);
    assert!(broken.message().starts_with("invalid JSON: "), "{broken:?}");
    let large = format!(r#"{{"Name":"{}"}}"#, "x".repeat(crate::limits::JSON_BODY_BYTES));
    let answer = post(&gate, "/services/create", &large).await;
    assert_eq!(answer.status, 413);
    let request = Request::post("/services/create")
        .header("host", "skep")
        .header("content-type", "text/plain")
        .body(Full::new(Bytes::from_static(b"{}")))
        .unwrap();
    let reply = client(&gate).await.send_request(request).await.unwrap();
    assert_eq!(reply.status().as_u16(), 400);
    let empty = post(&gate, "/services/create", "").await;
    assert_eq!(empty.status, 400);
    assert!(empty.message().ends_with("ContainerSpec: image reference must be provided"));
}

#[tokio::test]
async fn a_connection_is_kept_unless_it_carried_data() {
    let gate = FakeGate::manager();
    let mut stream = connect(&gate);
    let mut buffer = vec![0; 4096];
    for _ in 0..2 {
        stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let len = stream.read(&mut buffer).await.unwrap();
        assert!(buffer[..len].starts_with(b"HTTP/1.1 200 OK"));
    }
    let body = r#"{"Name":"a","Data":"eA=="}"#;
    let request = format!(
        "POST /secrets/create HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 Created") && answer.contains("connection: close"));
}

#[tokio::test]
async fn a_client_too_many_is_told_so() {
    let gate = FakeGate::manager();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("skep.sock");
    let listener = crate::api::bind(&path).unwrap();
    let server = tokio::spawn(crate::api::serve(listener, gate, std::future::pending()));
    let mut idle = Vec::new();
    for _ in 0..crate::limits::API_CONNECTIONS {
        idle.push(UnixStream::connect(&path).await.unwrap());
    }
    let ask = async |request: &[u8]| {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(WAIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    };
    let ping = b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = ask(ping).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("are in use"), "{answer}");
    drop(idle);
    assert!(ask(ping).await.starts_with("HTTP/1.1 200"));
    server.abort();
}

#[tokio::test]
async fn garbage_closes_the_connection_and_nothing_else() {
    let gate = FakeGate::manager();
    let mut stream = connect(&gate);
    stream.write_all(b"\x16\x03\x01 this is no HTTP\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(get(&gate, "/_ping").await.status, 200);
}
