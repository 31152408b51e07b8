//! Containers of other nodes.

use skep_core::model::task::TaskState;
use skep_core::time::Stamp;

use super::*;
use crate::gate::{ContainerState, LogLine};

/// A manager whose only container runs on another node; the container, and its task.
async fn far() -> (Arc<FakeGate>, String, Arc<skep_core::model::task::Task>) {
    let gate = FakeGate::manager();
    let service = service(&gate, "web", "").await;
    let task = gate.task(&service, 9, TaskState::Running);
    let container = gate.container(&task, ContainerState::Running);
    gate.move_away();
    (gate, container, task)
}

#[tokio::test]
async fn a_container_of_another_node_is_found_by_id_name_and_prefix() {
    let (gate, container, task) = far().await;
    let name = task.container_name();
    for word in [&container, &container[..12], &name, &format!("%2F{name}")] {
        let found = get(&gate, &format!("/containers/{word}/json")).await;
        assert_eq!((found.status, &found.json()["Id"]), (200, &Value::from(container.clone())));
    }
    let none = get(&gate, "/containers/web.1.nope/json").await;
    assert_eq!((none.status, none.message().as_str()), (404, "No such container: web.1.nope"));
    // The list is of this node alone.
    assert_eq!(get(&gate, "/containers/json?all=1").await.json(), Value::Array(Vec::new()));
    // The state may know of a container that its node has no more.
    gate.elsewhere.lock().unwrap().clear();
    let gone = get(&gate, &format!("/containers/{container}/json")).await;
    assert_eq!((gone.status, gone.message()), (404, format!("No such container: {container}")));
}

#[tokio::test]
async fn a_short_prefix_of_two_is_refused() {
    let (gate, container, task) = far().await;
    let mut other = 10;
    let second = loop {
        let next = gate.task(task.service.as_str(), other, TaskState::Running);
        if next.id.container_id()[..1] == container[..1] {
            break next;
        }
        other += 1;
    };
    let found = get(&gate, &format!("/containers/{}/json", &container[..1])).await;
    assert_eq!(found.status, 400, "{}", second.id.container_id());
    assert!(found.message().starts_with("multiple IDs found"), "{}", found.message());
}

#[tokio::test]
async fn an_exec_runs_on_the_node_of_its_container() {
    let (gate, container, _) = far().await;
    let body = r#"{"Cmd":["ls"],"AttachStderr":true}"#;
    let made = post(&gate, &format!("/containers/{container}/exec"), body).await;
    assert_eq!(made.status, 201, "{made:?}");
    let id = made.json()["Id"].as_str().unwrap().to_owned();
    let answer = post(&gate, &format!("/exec/{id}/start"), r#"{"Detach":false}"#).await;
    assert_eq!(&answer.body[..], b"\x02\0\0\0\0\0\0\x04err\n");
    assert_eq!(get(&gate, &format!("/exec/{id}/json")).await.json()["ExitCode"], 7);
    assert_eq!(get(&gate, "/exec/nope/json").await.status, 404);
}

#[tokio::test]
async fn lines_that_cannot_be_had_are_named_at_the_end() {
    let (gate, container, task) = far().await;
    let line = LogLine { task: task.id, at: Stamp(1), stderr: false, bytes: b"one\n".to_vec() };
    *gate.lines.lock().unwrap() = vec![line];
    let paths = [
        format!("/containers/{container}/logs?stdout=1"),
        "/services/web/logs?stdout=1".to_owned(),
        format!("/tasks/{}/logs?stdout=1", task.id),
    ];
    for path in &paths {
        assert_eq!(&get(&gate, path).await.body[..], b"\x01\0\0\0\0\0\0\x04one\n", "{path}");
    }
    let node = task.node.unwrap();
    gate.lost.lock().unwrap().push(node);
    let text = format!(
        "Error grabbing logs: rpc error: code = Unknown desc = warning: incomplete log stream. \
         some logs could not be retrieved for the following reasons: node {node} is not \
         available\n"
    );
    for path in &paths {
        let body = get(&gate, path).await.body;
        assert_eq!(&body[..7], b"\x03\0\0\0\0\0\0", "{path}");
        assert_eq!(std::str::from_utf8(&body[8..]).unwrap(), text, "{path}");
    }
}

#[tokio::test]
async fn a_follower_is_told_of_a_lost_node_as_of_a_line() {
    let (gate, _, task) = far().await;
    gate.lost.lock().unwrap().push(task.node.unwrap());
    let mut stream = connect(&gate);
    let path = "/services/web/logs?follow=1&stdout=1&stderr=1&details=1";
    tokio::io::AsyncWriteExt::write_all(
        &mut stream,
        format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(),
    )
    .await
    .unwrap();
    let mut said = Vec::new();
    let told = async {
        while !said.ends_with(b"no way to it\n\r\n") {
            said.push(tokio::io::AsyncReadExt::read_u8(&mut stream).await.unwrap());
        }
    };
    tokio::time::timeout(WAIT, told).await.unwrap();
    let said = String::from_utf8_lossy(&said);
    let details = format!("com.docker.swarm.task.id={} skep: node ", task.id);
    assert!(said.contains("\u{2}\0\0\0") && said.contains(&details), "{said}");
}
