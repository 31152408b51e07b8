//! Answers against those recorded from a real engine: same keys, same order, same values but for
//! ids, times and versions.

use serde_json::{Value, json};
use skep_core::command::{Command, Decision};
use skep_core::model::service::{UpdateState, UpdateStatus};
use skep_core::model::task::TaskState;
use skep_core::time::Stamp;

use super::fake::FakeGate;
use super::*;
use crate::gate::ContainerState;

/// Values that differ from one run to the next.
const VARYING: [&str; 16] = [
    "ID",
    "Id",
    "Index",
    "CreatedAt",
    "UpdatedAt",
    "StartedAt",
    "CompletedAt",
    "Timestamp",
    "SecretID",
    "ConfigID",
    "ServiceID",
    "NodeID",
    "ContainerID",
    "Created",
    "Status",
    "PID",
];

/// The value with what varies blanked.
fn blank(value: &mut Value) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                if VARYING.contains(&key.as_str()) && !value.is_object() {
                    *value = json!("*");
                } else {
                    blank(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(blank),
        _ => {}
    }
}

fn same(answer: &str, recorded: &str) {
    let parsed = |text: &str| -> String {
        let mut value: Value = serde_json::from_str(text).unwrap();
        blank(&mut value);
        value.to_string()
    };
    assert_eq!(parsed(answer), parsed(recorded));
}

/// Only the keys, in their order, through all levels.
fn same_keys(answer: &Value, recorded: &Value, at: &str) {
    if let (Value::Object(a), Value::Object(r)) = (answer, recorded) {
        let keys = |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(a), keys(r), "at {at}");
        for (key, value) in a {
            same_keys(value, &r[key], &format!("{at}.{key}"));
        }
    }
}

/// The recorded request with this swarm's ids in it.
async fn recorded_service(gate: &Arc<FakeGate>) -> String {
    let data = secret(gate, "rec_data").await;
    let v2 = secret(gate, "rec_v2").await;
    let body = r#"{"Name":"rec_conf","Labels":{},"Data":"Y29uZg=="}"#;
    let conf = post(gate, "/v1.41/configs/create", body).await.json()["ID"].clone();
    include_str!("../testdata/service_create_request.json")
        .replace("rol4m3dkraschv1qmgsw95db2", &data)
        .replace("lidv0a4touondkdhmic0rlssp", &v2)
        .replace("xl2yuk5931sekce00s29j3rf6", conf.as_str().unwrap())
}

#[tokio::test]
async fn s019_a_service_reads_back_as_recorded() {
    let gate = FakeGate::manager();
    let request = recorded_service(&gate).await;
    let made = post(&gate, "/v1.41/services/create", &request).await;
    assert_eq!(made.status, 201, "{made:?}");
    let id = made.json()["ID"].as_str().unwrap().to_owned();
    let plain = get(&gate, &format!("/v1.41/services/{id}?insertDefaults=false")).await;
    same(plain.text(), include_str!("../testdata/service.json"));
    let full = get(&gate, "/v1.41/services/rec_web?insertDefaults=True").await;
    same(full.text(), include_str!("../testdata/service_with_defaults.json"));
}

#[tokio::test]
async fn s020_a_service_that_went_back_reads_as_recorded() {
    let gate = FakeGate::manager();
    let request = recorded_service(&gate).await;
    let made = post(&gate, "/services/create", &request).await;
    let id = made.json()["ID"].as_str().unwrap().to_owned();
    // The update that the CLI sent: two other references.
    let mut spec: Value = serde_json::from_str(&request).unwrap();
    let secrets = spec["TaskTemplate"]["ContainerSpec"]["Secrets"].as_array_mut().unwrap();
    let mut again = secrets[1].clone();
    again["File"] = json!({"Name": "rec_data", "UID": "0", "GID": "0", "Mode": 292});
    secrets.remove(0);
    secrets.push(again);
    let version = get(&gate, &format!("/services/{id}")).await.json()["Version"]["Index"].clone();
    let path = format!("/services/{id}/update?version={version}&registryAuthFrom=spec");
    let updated = post(&gate, &path, &spec.to_string()).await;
    assert_eq!((updated.status, updated.text()), (200, "{\"Warnings\":null}\n"));
    let version = get(&gate, &format!("/services/{id}")).await.json()["Version"]["Index"].clone();
    let path = format!("/services/{id}/update?version={version}&rollback=previous");
    assert_eq!(post(&gate, &path, &spec.to_string()).await.status, 200);
    let service = gate.service(&id);
    gate.run(Command::Control(vec![Decision::ServiceStatus {
        id: service.id,
        spec_version: service.spec_version,
        update: UpdateStatus {
            state: UpdateState::RollbackCompleted,
            started: Stamp(1),
            completed: Some(Stamp(2)),
            message: "rollback completed".to_owned(),
            restarts: false,
        },
    }]))
    .unwrap();
    let shown = get(&gate, &format!("/services/{id}?insertDefaults=true")).await;
    same(shown.text(), include_str!("../testdata/service_rolled_back.json"));
}

#[tokio::test]
async fn tasks_read_as_recorded() {
    let gate = FakeGate::manager();
    let request = recorded_service(&gate).await;
    let made = post(&gate, "/services/create", &request).await;
    let id = made.json()["ID"].as_str().unwrap().to_owned();
    let task = gate.task(&id, 9, TaskState::Running);
    let shown = get(&gate, &format!("/v1.41/tasks/{}", task.id)).await.json();
    let mut recorded: Value = serde_json::from_str(include_str!("../testdata/task.json")).unwrap();
    recorded["Slot"] = json!(1);
    same(&shown.to_string(), &recorded.to_string());
}

#[tokio::test]
async fn s006_secrets_and_configs_read_as_recorded() {
    let gate = FakeGate::manager();
    let id = secret(&gate, "rec_data").await;
    let by_name = get(&gate, "/v1.41/secrets/rec_data").await;
    same(by_name.text(), include_str!("../testdata/secret.json"));
    assert_eq!(get(&gate, &format!("/v1.41/secrets/{id}")).await.body, by_name.body);
    let shown = by_name.json();
    assert_eq!(shown["CreatedAt"], shown["UpdatedAt"]);
    let body = r#"{"Name":"rec_conf","Labels":{},"Data":"Y29uZg=="}"#;
    assert_eq!(post(&gate, "/configs/create", body).await.status, 201);
    let shown = get(&gate, "/configs/rec_conf").await;
    same(shown.text(), include_str!("../testdata/config.json"));
}

#[tokio::test]
async fn swarm_and_nodes_have_the_recorded_shape() {
    let gate = FakeGate::manager();
    let parse = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let swarm = get(&gate, "/v1.41/swarm").await;
    same_keys(&swarm.json(), &parse(include_str!("../testdata/swarm.json")), "swarm");
    assert_eq!(swarm.header("connection"), "close");
    let info = get(&gate, "/info").await.json();
    same_keys(&info["Swarm"], &parse(include_str!("../testdata/swarm_info.json")), "info");
    let recorded = parse(include_str!("../testdata/node.json"));
    let node = get(&gate, "/nodes/vm").await.json();
    same_keys(&node, &recorded, "node");
    assert_eq!(node["ManagerStatus"]["Leader"], json!(true));
    assert_eq!(get(&gate, "/nodes").await.json()[0], node);
    let version = get(&gate, "/version").await.json();
    let recorded = parse(include_str!("../testdata/version.json"));
    assert_eq!(
        version.as_object().unwrap().keys().collect::<Vec<_>>(),
        recorded.as_object().unwrap().keys().collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn s138_containers_have_the_recorded_shape_and_tell_nothing_of_secrets() {
    let gate = FakeGate::manager();
    let request = recorded_service(&gate).await;
    let made = post(&gate, "/services/create", &request).await;
    let task = gate.task(made.json()["ID"].as_str().unwrap(), 9, TaskState::Running);
    let id = gate.container(&task, ContainerState::Running);
    let parse = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let shown = get(&gate, &format!("/v1.41/containers/{}/json", &id[..12])).await;
    let mut recorded = parse(include_str!("../testdata/container.json"));
    recorded["GraphDriver"]["Data"].as_object_mut().unwrap().shift_remove("MergedDir");
    recorded["NetworkSettings"]["Ports"] = json!({"80/tcp": null});
    same_keys(&shown.json(), &recorded, "container");
    assert!(!shown.text().contains("rec_data") && !shown.text().contains("run/secrets"));
    assert_eq!(shown.json()["Mounts"], json!([]));
    assert_eq!(shown.json()["HostConfig"]["Binds"], Value::Null);
    let mut list = get(&gate, "/v1.41/containers/json").await.json();
    let row = list[0].take();
    same_keys(&row, &parse(include_str!("../testdata/container_summary.json")), "row");
    assert_eq!(row["Names"][0], json!(format!("/rec_web.1.{}", task.id)));
    assert_eq!(row["Ports"], json!([{"PrivatePort": 80, "Type": "tcp"}]));
}
