//! Connections that become streams, and answers that go on.

use skep_core::model::task::TaskState;
use skep_core::time::Stamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::gate::{ContainerState, LogLine};

async fn running_container(gate: &Arc<FakeGate>) -> (String, Arc<skep_core::model::task::Task>) {
    let service = service(gate, "web", "").await;
    let task = gate.task(&service, 9, TaskState::Running);
    (gate.container(&task, ContainerState::Running), task)
}

async fn exec(gate: &Arc<FakeGate>, container: &str, body: &str) -> String {
    let made = post(gate, &format!("/v1.41/containers/{container}/exec"), body).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()["Id"].as_str().unwrap().to_owned()
}

fn start(id: &str, version: &str) -> String {
    let body = r#"{"Detach":false,"Tty":false}"#;
    format!(
        "POST /{version}/exec/{id}/start HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
         Upgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Reads the head of an answer.
async fn head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

#[tokio::test]
async fn a_client_that_shuts_its_side_still_gets_the_output() {
    let gate = FakeGate::manager();
    let (container, _) = running_container(&gate).await;
    let id =
        exec(&gate, &container, r#"{"Cmd":["cat"],"AttachStdin":true,"AttachStdout":true}"#).await;
    let mut stream = connect(&gate);
    stream.write_all(start(&id, "v1.41").as_bytes()).await.unwrap();
    let head = head(&mut stream).await;
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("content-type: application/vnd.docker.raw-stream"), "{head}");
    assert!(head.contains("upgrade: tcp"), "{head}");
    stream.write_all(b"in\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut output = Vec::new();
    tokio::time::timeout(WAIT, stream.read_to_end(&mut output)).await.unwrap().unwrap();
    let (err, out) = (b"\x02\0\0\0\0\0\0\x04err\n", b"\x01\0\0\0\0\0\0\x03in\n");
    let sorted = [err.as_slice(), out].concat();
    let swapped = [out.as_slice(), err].concat();
    assert!(output == sorted || output == swapped, "{output:?}");
    let view = get(&gate, &format!("/v1.41/exec/{id}/json")).await.json();
    assert_eq!(view["ExitCode"], 7);
}

#[tokio::test]
async fn a_client_that_says_nothing_shuts_its_side_at_once() {
    let gate = FakeGate::manager();
    let (container, _) = running_container(&gate).await;
    let id = exec(&gate, &container, r#"{"Cmd":["ls"],"Container":"x"}"#).await;
    let mut stream = connect(&gate);
    stream.write_all(start(&id, "v1.50").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let head = head(&mut stream).await;
    assert!(head.contains("application/vnd.docker.multiplexed-stream"), "{head}");
    let mut output = Vec::new();
    tokio::time::timeout(WAIT, stream.read_to_end(&mut output)).await.unwrap().unwrap();
    assert_eq!(output, b"\x02\0\0\0\0\0\0\x04err\n");
}

#[tokio::test]
async fn an_exec_without_an_upgrade_answers_with_its_output() {
    let gate = FakeGate::manager();
    let (container, _) = running_container(&gate).await;
    let id = exec(&gate, &container, r#"{"Cmd":["ls"]}"#).await;
    let answer = post(&gate, &format!("/exec/{id}/start"), r#"{"Detach":false}"#).await;
    assert_eq!(answer.status, 200);
    assert_eq!(&answer.body[..], b"\x02\0\0\0\0\0\0\x04err\n");
    let id = exec(&gate, &container, r#"{"Cmd":["ls"]}"#).await;
    let answer = post(&gate, &format!("/exec/{id}/start"), r#"{"Detach":true}"#).await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert_eq!(post(&gate, &format!("/exec/{id}/resize?h=24&w=80"), "").await.status, 200);
    assert_eq!(post(&gate, "/exec/nope/start", "{}").await.status, 404);
}

#[tokio::test]
async fn execs_read_as_recorded() {
    let gate = FakeGate::manager();
    let (container, _) = running_container(&gate).await;
    let body = r#"{"User":"2000","Privileged":false,"Tty":false,"AttachStdin":false,
        "AttachStderr":true,"AttachStdout":true,"Detach":false,"DetachKeys":"","Env":null,
        "WorkingDir":"","Cmd":["cat","/run/secrets/pw"]}"#;
    let id = exec(&gate, &container, body).await;
    let view = get(&gate, &format!("/exec/{id}/json")).await.json();
    let recorded: Value = serde_json::from_str(include_str!("../testdata/exec.json")).unwrap();
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&view), keys(&recorded));
    assert_eq!(view["ProcessConfig"].to_string(), recorded["ProcessConfig"].to_string());
    assert_eq!(view["ExitCode"], Value::Null);
    let none = post(&gate, &format!("/containers/{container}/exec"), "{}").await;
    assert_eq!((none.status, none.message().as_str()), (400, "No exec command specified"));
    gate.containers.lock().unwrap()[0].state = ContainerState::Exited;
    let ended = post(&gate, &format!("/containers/{container}/exec"), body).await;
    assert_eq!(ended.status, 409);
}

#[tokio::test]
async fn logs_are_one_line_a_frame_with_their_details() {
    let gate = FakeGate::manager();
    let (container, task) = running_container(&gate).await;
    let line = |bytes: &[u8], stderr| LogLine {
        task: task.id,
        at: Stamp(1_795_337_018_500_000_000),
        stderr,
        bytes: bytes.to_vec(),
    };
    *gate.lines.lock().unwrap() = vec![line(b"one\n", false), line(b"two\n", true)];
    let answer = get(&gate, &format!("/v1.41/containers/{container}/logs?stdout=1&stderr=1")).await;
    assert_eq!(&answer.body[..], b"\x01\0\0\0\0\0\0\x04one\n\x02\0\0\0\0\0\0\x04two\n");
    let query = "logs?details=1&stderr=1&stdout=1&tail=all&timestamps=1";
    let of_service = get(&gate, &format!("/services/web/{query}")).await;
    assert_eq!(of_service.status, 200);
    assert_eq!(of_service.header("content-type"), "application/vnd.docker.multiplexed-stream");
    let of_task = get(&gate, &format!("/tasks/{}/{query}", task.id)).await;
    assert_eq!(of_service.body, of_task.body);
    let details = format!(
        "2026-11-22T08:43:38.500000000Z com.docker.swarm.node.id={},com.docker.swarm.service.id={},\
         com.docker.swarm.task.id={} one\n",
        task.node.unwrap(),
        task.service,
        task.id
    );
    let first = &of_service.body[8..8 + usize::from(of_service.body[7])];
    assert_eq!(std::str::from_utf8(first).unwrap(), details);
    let none = get(&gate, "/services/web/logs").await;
    assert_eq!(
        (none.status, none.message().as_str()),
        (400, "Bad parameters: you must choose at least one stream")
    );
}

#[tokio::test]
async fn a_follower_that_goes_frees_its_connection() {
    let gate = FakeGate::manager();
    running_container(&gate).await;
    let (mut stream, server) = UnixStream::pair().unwrap();
    let turns = Arc::new(Semaphore::new(1));
    let turn = Arc::clone(&turns).try_acquire_owned().unwrap();
    tokio::spawn(crate::api::server::connection(
        server,
        crate::api::turn::Turn::new(turn, None),
        gate.clone(),
    ));
    let request = "GET /services/web/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    // The head comes before the first line does.
    let head = tokio::time::timeout(WAIT, head(&mut stream)).await.unwrap();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    stream.shutdown().await.unwrap();
    assert_eq!(turns.available_permits(), 0, "half a close is none");
    drop(stream);
    let freed = tokio::time::timeout(WAIT, turns.acquire()).await;
    assert!(freed.is_ok(), "the connection of a client that left is still held");
}
