//! Requests that must be refused: with Docker's status and words where Docker has them, without
//! leaving anything behind, and without harm to the daemon.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skep_integration::{Bench, Node, Options, Reply, by_both, encode_query, settle, shared};

const SIZE: &str = "rpc error: code = InvalidArgument desc = secret data must be larger than 0 and less than 512000 bytes";
const NAME: &str = "rpc error: code = InvalidArgument desc = invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]";
/// Longest until a flooded socket answers again.
const AGAIN: Duration = Duration::from_secs(20);

by_both! { bad_names unknown_secret_in_a_service }

/// Posts a body as it is, checks the status, and that the daemon answers afterwards.
fn refused(path: &str, body: &[u8], status: u16) -> Result<String> {
    let reply = shared()?.http()?.request("POST", path, "application/json", body)?;
    alive()?;
    ensure!(reply.status == status, "{path}: {} {:?}", reply.status, reply.message());
    reply.message()
}

fn alive() -> Result<()> {
    let reply = shared()?.http()?.get("/_ping")?;
    ensure!(reply.status == 200 && reply.body == b"OK", "{reply:?}");
    Ok(())
}

fn create(name: &str, data: &str) -> Vec<u8> {
    json!({ "Name": name, "Data": data }).to_string().into_bytes()
}

fn service(name: &str, secrets: Value) -> Value {
    json!({
        "Name": name,
        "TaskTemplate": { "ContainerSpec": { "Image": "busybox:latest", "Secrets": secrets } },
        "Mode": { "Replicated": { "Replicas": 0 } },
    })
}

fn exists(kind: &str, name: &str) -> Result<bool> {
    let all = shared()?.get(&format!("/{kind}"))?;
    Ok(all.as_array().into_iter().flatten().any(|one| one["Spec"]["Name"] == *name))
}

/// A secret made for one test: its id.
fn secret(name: &str) -> Result<String> {
    let reply = shared()?.http()?.request(
        "POST",
        "/secrets/create",
        "application/json",
        &create(name, "eA=="),
    )?;
    ensure!(reply.status == 201, "{reply:?}");
    Ok(reply.json()?["ID"].as_str().context("ID")?.to_owned())
}

#[test]
fn malformed_json() -> Result<()> {
    for body in ["", "{", "{\"Name\":", "[]", "null", "{\"Name\":\"x\"} trailing", "\u{0}", "\"x\""]
    {
        for path in ["/secrets/create", "/services/create"] {
            let message = refused(path, body.as_bytes(), 400);
            ensure!(!message.with_context(|| format!("{path} {body:?}"))?.is_empty(), "{body}");
        }
    }
    let deep = "[".repeat(100_000);
    refused("/services/create", deep.as_bytes(), 400)?;
    refused("/secrets/create", b"{\"Name\":\"\xff\xfe\"}", 400)?;
    Ok(())
}

#[test]
fn wrong_types() -> Result<()> {
    for body in [
        json!({ "Name": 5, "Data": "eA==" }),
        json!({ "Name": "types", "Data": 5 }),
        json!({ "Name": "types", "Data": "not base64!" }),
        json!({ "Name": "types", "Data": "eA==", "Labels": "none" }),
        json!({ "Name": "types", "Data": "eA==", "Labels": { "a": 1 } }),
    ] {
        refused("/secrets/create", body.to_string().as_bytes(), 400).context(body.to_string())?;
    }
    for (at, wrong) in [
        ("Mode", json!({ "Replicated": { "Replicas": -1 } })),
        ("Mode", json!({ "Replicated": { "Replicas": "two" } })),
        ("Mode", json!("replicated")),
        ("Name", json!(["types"])),
        ("TaskTemplate", json!("busybox")),
        ("TaskTemplate", json!({ "ContainerSpec": { "Image": 7 } })),
        ("TaskTemplate", json!({ "ContainerSpec": { "Image": "busybox", "Args": "sleep" } })),
    ] {
        let mut body = service("types", json!([]));
        body[at] = wrong;
        refused("/services/create", body.to_string().as_bytes(), 400).context(body.to_string())?;
    }
    ensure!(!exists("secrets", "types")? && !exists("services", "types")?, "half-written");
    Ok(())
}

#[test]
fn unknown_filter() -> Result<()> {
    for (kind, filter) in [
        ("secrets", "{\"bogus\":[\"x\"]}"),
        ("services", "{\"bogus\":{\"x\":true}}"),
        ("tasks", "{\"bogus\":[\"x\"]}"),
        ("nodes", "{\"bogus\":[\"x\"]}"),
        ("containers/json", "{\"bogus\":[\"x\"]}"),
        ("images/json", "{\"bogus\":[\"x\"]}"),
    ] {
        let path = format!("/{kind}?filters={}", encode_query(filter));
        let reply = shared()?.http()?.get(&path)?;
        ensure!(reply.status == 400, "{path}: {}", reply.status);
        ensure!(reply.message()?.to_lowercase().contains("invalid filter"), "{reply:?}");
    }
    for filter in ["{", "[]", "\"x\"", "{\"name\":5}", "%%%"] {
        let path = format!("/secrets?filters={}", encode_query(filter));
        ensure!(shared()?.http()?.get(&path)?.status == 400, "{filter}");
    }
    alive()
}

#[test]
fn oversized_body() -> Result<()> {
    let body = create("oversized", &"A".repeat(5 << 20));
    let reply = shared()?.http()?.request("POST", "/secrets/create", "application/json", &body)?;
    ensure!(matches!(reply.status, 400 | 413), "{}", reply.status);
    // A length that is only claimed: nothing is reserved for it, nothing waited for.
    let mut http = shared()?.http()?;
    http.raw(b"POST /secrets/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{")?;
    ensure!(matches!(http.reply()?.status, 400 | 413), "a claimed length");
    ensure!(!exists("secrets", "oversized")?, "half-written");
    alive()
}

#[test]
fn sizes_of_a_secret() -> Result<()> {
    ensure!(refused("/secrets/create", &create("size", ""), 400)? == SIZE, "0 bytes");
    ensure!(refused("/secrets/create", b"{\"Name\":\"size\"}", 400)? == SIZE, "no data");
    use base64::Engine;
    let data = base64::engine::general_purpose::STANDARD.encode(vec![0; 512_000]);
    ensure!(refused("/secrets/create", &create("size", &data), 400)? == SIZE, "512,000 bytes");
    ensure!(!exists("secrets", "size")?, "half-written");
    Ok(())
}

fn bad_names(bench: &Bench<'_>) -> Result<()> {
    let long = "x".repeat(65);
    for name in ["bad name", "-dash", "dot.", "a/b", "ünï", &long] {
        // Behind `--`, so that a dash is no option.
        let args = ["secret", "create", "--", name, "-"];
        let error = bench.cli.fails_with(1, &args, b"x")?;
        ensure!(error.contains(NAME), "{name}: {error}");
        let error = bench.cli.fails(1, &["service", "create", "-d", "--name", name, "busybox"]);
        // The client reads a leading dash itself.
        ensure!(name.starts_with('-') || error?.contains("name"), "{name}");
    }
    let longest = format!("{:x<64}", bench.name("longest"));
    bench.cli.ok_with(&["secret", "create", &longest, "-"], b"x")?;
    alive()
}

fn unknown_secret_in_a_service(bench: &Bench<'_>) -> Result<()> {
    let name = bench.name("unknown");
    let args = ["service", "create", "-d", "--name", &name, "--secret", "nobody", "busybox"];
    let error = bench.cli.fails(1, &args)?;
    ensure!(error.contains("secret not found: nobody"), "{error}");
    ensure!(!exists("services", &name)?, "half-written");
    alive()
}

#[test]
fn references_to_secrets() -> Result<()> {
    let (a, b) = (secret("ref-a")?, secret("ref-b")?);
    let file = |name: &str| json!({ "Name": name, "UID": "0", "GID": "0", "Mode": 292 });
    let unknown = "x".repeat(25);
    let cases = [
        (
            json!([
                { "File": file("t"), "SecretID": a, "SecretName": "ref-a" },
                { "File": file("t"), "SecretID": b, "SecretName": "ref-b" },
            ]),
            "conflicting target: 't'",
        ),
        (json!([{ "File": file("t"), "SecretID": unknown, "SecretName": "nobody" }]), "nobody"),
        (json!([{ "File": file("t"), "SecretID": a, "SecretName": "ref-b" }]), "ref-b"),
        (
            json!([{ "File": { "Name": "t", "UID": "root", "GID": "0", "Mode": 292 },
                "SecretID": a, "SecretName": "ref-a" }]),
            "root",
        ),
        (
            json!([{ "File": { "Name": "t", "UID": "0", "GID": "-1", "Mode": 292 },
                "SecretID": a, "SecretName": "ref-a" }]),
            "-1",
        ),
        (json!([{ "File": file("../../etc/shadow"), "SecretID": a, "SecretName": "ref-a" }]), ""),
        (json!([{ "File": file(""), "SecretID": a, "SecretName": "ref-a" }]), ""),
    ];
    for (secrets, words) in cases {
        let body = service("references", secrets);
        let message = refused("/services/create", body.to_string().as_bytes(), 400);
        let message = message.with_context(|| body.to_string())?;
        ensure!(message.contains(words), "{words}: {message}");
    }
    ensure!(!exists("services", "references")?, "half-written");
    Ok(())
}

#[test]
fn broken_tar() -> Result<()> {
    let path = "/images/create?fromSrc=-&repo=broken&tag=latest";
    let escape = tar_of("../../escaped", b"out");
    let mut cut = tar_of("bin/true", &[b'x'; 4096]);
    cut.truncate(1024);
    let mut sum = tar_of("bin/true", b"x");
    sum[0] ^= 0xff;
    let noise: Vec<u8> = (0..10_000_u32).map(|at| ((at * 7919) >> 3) as u8).collect();
    for (what, tar) in [("noise", &noise), ("cut", &cut), ("sum", &sum), ("escape", &escape)] {
        let reply = shared()?.http()?.request("POST", path, "application/x-tar", tar)?;
        let text = String::from_utf8_lossy(&reply.body);
        ensure!(reply.status >= 400 || text.contains("errorDetail"), "{what}: {text}");
        let found = shared()?.http()?.get("/images/broken:latest/json")?;
        ensure!(found.status == 404, "{what}: half-written");
    }
    alive()
}

/// A tar of one file, written by hand: the names that matter are those no tool would write.
fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, field: &str| {
        header[at..at + field.len()].copy_from_slice(field.as_bytes());
    };
    put(0, name);
    put(100, "0000755\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend(content);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

#[test]
fn paths_and_versions() -> Result<()> {
    let reply = |path: &str| -> Result<Reply> { shared()?.http()?.get(path) };
    let unknown = reply("/nowhere")?;
    ensure!(unknown.status == 404 && unknown.message()? == "page not found", "{unknown:?}");
    let new = reply("/v1.99/secrets")?;
    let wanted = "client version 1.99 is too new. Maximum supported API version is 1.50";
    ensure!(new.status == 400 && new.message()? == wanted, "{new:?}");
    ensure!(reply("/v1.2/secrets")?.status == 400, "too old");
    for path in ["/secrets", "/v1.24/secrets", "/v1.50/secrets"] {
        ensure!(reply(path)?.status == 200, "{path}");
    }
    for path in ["/secrets/nobody", "/services/nobody", "/tasks/nobody", "/containers/nobody/json"]
    {
        ensure!(reply(path)?.status == 404, "{path}");
    }
    for path in ["/configs/../secrets/%00", "/secrets/%ff"] {
        ensure!(reply(path)?.status >= 400, "{path}");
    }
    // What is not there says so, by name.
    for path in ["/build", "/plugins/pull", "/session"] {
        let reply = shared()?.http()?.request("POST", path, "application/json", b"{}")?;
        ensure!(reply.status == 501 && !reply.message()?.is_empty(), "{path}: {reply:?}");
    }
    alive()
}

#[test]
fn updates_out_of_order() -> Result<()> {
    let id = secret("order")?;
    let body = json!({ "Name": "order", "Labels": {} }).to_string();
    for query in ["", "?version=", "?version=x", "?version=-1", "?version=99999999999999999999999"]
    {
        refused(&format!("/secrets/{id}/update{query}"), body.as_bytes(), 400).context(query)?;
    }
    let message = refused(&format!("/secrets/{id}/update?version=1000000"), body.as_bytes(), 500)?;
    ensure!(message.contains("update out of sequence"), "{message}");
    Ok(())
}

#[test]
fn broken_http() -> Result<()> {
    let socket = shared()?.socket();
    for bytes in [
        &b"\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /secrets/create HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /secrets/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"POST /secrets/create HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{\"Na",
    ] {
        let mut stream = UnixStream::connect(&socket)?;
        stream.write_all(bytes)?;
        drop(stream);
        alive()?;
    }
    let mut stream = UnixStream::connect(&socket)?;
    let line = format!("GET /_ping HTTP/1.1\r\nX: {}\r\n", "y".repeat(1 << 20));
    // The server may close on the way.
    stream.write_all(line.as_bytes()).ok();
    alive()
}

/// More connections than the daemon takes at once: the others are told so or closed, and it
/// answers again when they are gone. They are all this process's, so the node is the test's own:
/// on the shared one the other tests would be turned away meanwhile.
#[test]
fn too_many_connections() -> Result<()> {
    let node = Node::start(Options::default())?;
    let socket = node.socket();
    let held: Vec<_> = (0..300).map_while(|_| UnixStream::connect(&socket).ok()).collect();
    ensure!(held.len() > 200, "only {} connections", held.len());
    drop(held);
    settle("the socket answers again", AGAIN, || Ok(node.get("/info").is_ok()))
}
