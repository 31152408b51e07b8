//! Revocation, and where secrets are held.

use skep_core::id::{ENTROPY_LEN, Id, MaterialId};
use skep_core::model::node::NodeState;
use skep_core::model::task::{Task, TaskState};

use skep_core::time::Stamp;

use super::fake::FakeGate;
use super::*;
use crate::audit::LastRead;
use crate::gate::{Holder, Holdings};

/// What a task holds of a secret.
fn holder(task: &Task, secret: MaterialId, versions: &[u64], is_reachable: bool) -> Holder {
    Holder {
        task: task.id,
        service: task.service,
        service_name: task.service_name.clone(),
        node: task.node.unwrap(),
        hostname: "vm".to_owned(),
        status: if is_reachable { NodeState::Ready } else { NodeState::Down },
        held: versions.iter().map(|version| (secret, *version)).collect(),
        revoked: if versions.is_empty() || !is_reachable { vec![secret] } else { Vec::new() },
        complies: is_reachable,
        is_reachable,
    }
}

async fn granted(gate: &Arc<FakeGate>) -> (MaterialId, String) {
    let id = secret(gate, "db").await;
    let grant = format!(
        r#","Secrets":[{{"SecretID":"{id}","SecretName":"db","File":{{"Name":"db","UID":"0",
            "GID":"0","Mode":292}}}}]"#
    );
    let service = service(gate, "web", &grant).await;
    (id.parse().unwrap(), service)
}

#[tokio::test]
async fn a_revocation_tells_where_it_is_not_in_force() {
    let gate = FakeGate::manager();
    let (id, service) = granted(&gate).await;
    let tasks = [9, 10].map(|seed| gate.task(&service, seed, TaskState::Running));
    *gate.holdings.lock().unwrap() = Holdings {
        tasks: vec![holder(&tasks[0], id, &[], true), holder(&tasks[1], id, &[1], false)],
        absent: vec![Id::from_entropy([8; ENTROPY_LEN])],
    };
    let path = "/skep/v1/secrets/db/revoke";
    let revoked = post(&gate, path, r#"{"Service":"web"}"#).await;
    assert_eq!(revoked.status, 200, "{revoked:?}");
    let told = revoked.json();
    assert_eq!((&told["Name"], &told["Version"]), (&"db".into(), &1.into()));
    assert_eq!(told["Services"], serde_json::json!(["web"]));
    assert_eq!(told["Tasks"][0]["Task"], tasks[0].id.as_str());
    assert_eq!(told["Late"], serde_json::json!([]));
    let lost = &told["Unreachable"][0];
    assert_eq!(lost["Task"], tasks[1].id.as_str());
    assert_eq!((&lost["Status"], &lost["Versions"]), (&"down".into(), &serde_json::json!([1])));
    assert_eq!(told["AbsentManagers"].as_array().map(Vec::len), Some(1));

    // Of one task only that one is told.
    let body = format!(r#"{{"Task":"{}"}}"#, tasks[0].id);
    let told = post(&gate, path, &body).await.json();
    assert_eq!(told["Task"], tasks[0].id.as_str());
    assert_eq!(told["Unreachable"], serde_json::json!([]), "{told}");

    for (body, status, what) in [
        (r#"{"Service":"nobody"}"#, 404, "service nobody not found"),
        (r#"{"Task":"nobody"}"#, 404, "task nobody not found"),
        (r#"{"Services":"web"}"#, 400, "invalid JSON"),
        ("[", 400, "invalid JSON"),
    ] {
        let refused = post(&gate, path, body).await;
        assert_eq!(refused.status, status, "{body}: {refused:?}");
        assert!(refused.message().contains(what), "{body}: {}", refused.message());
    }
    let other = secret(&gate, "unused").await;
    let refused = post(&gate, &format!("/skep/v1/secrets/{other}/revoke"), "{}").await;
    assert!(refused.message().contains("not granted to any service"), "{refused:?}");
    let refused = post(&gate, "/skep/v1/configs/db/revoke", "{}").await;
    assert_eq!(refused.status, 404, "a secret is no config");
}

#[tokio::test]
async fn holders_are_shown_by_version_and_dockers_own_answers_stay() {
    let gate = FakeGate::manager();
    let (id, service) = granted(&gate).await;
    let tasks = [9, 10].map(|seed| gate.task(&service, seed, TaskState::Running));
    let (at, node, task) = (Stamp(1), tasks[0].node.unwrap(), tasks[0].id);
    *gate.last_read.lock().unwrap() = Some(LastRead { at, node, task, version: 1 });
    *gate.holdings.lock().unwrap() = Holdings {
        tasks: vec![holder(&tasks[0], id, &[1], true), holder(&tasks[1], id, &[1], false)],
        absent: Vec::new(),
    };
    let shown = get(&gate, "/skep/v1/secrets/db/holders?wait_ms=5").await;
    assert_eq!(shown.status, 200, "{shown:?}");
    let told = shown.json();
    assert_eq!(told["Cipher"], "AES-256-GCM-SIV");
    assert_eq!((&told["Key"]["Version"], &told["Autolock"]), (&1.into(), &false.into()));
    let version = &told["Versions"][0];
    assert_eq!((&version["Version"], &version["Key"]), (&1.into(), &1.into()));
    assert_eq!((&version["Tasks"], &version["Nodes"]), (&2.into(), &serde_json::json!(["vm"])));
    assert_eq!(told["Tasks"][1]["Reachable"], false);
    let read = &told["LastRead"];
    assert_eq!((&read["Version"], &read["Hostname"]), (&1.into(), &"vm".into()), "{told}");
    let refused = get(&gate, "/skep/v1/secrets/db/holders?wait_ms=600001").await;
    assert!(refused.status == 400 && refused.message().contains("at most 600000"), "{refused:?}");
    let refused = get(&gate, "/skep/v1/secrets/db/holders?wait_ms=soon").await;
    assert_eq!(refused.status, 400, "{refused:?}");

    let told = get(&gate, "/skep/v1/nodes/vm/holdings").await.json();
    let one = serde_json::json!([{
        "Kind": "secret", "ID": id.as_str(), "Name": "db", "Versions": [1]
    }]);
    assert_eq!((&told["Reached"], &told["Unreachable"]), (&one, &one));
    assert_eq!(get(&gate, "/skep/v1/nodes/nobody/holdings").await.status, 404);

    gate.container(&tasks[0], crate::gate::ContainerState::Running);
    gate.container(&tasks[1], crate::gate::ContainerState::Exited);
    let told = get(&gate, "/skep/v1/info").await.json();
    assert_eq!((&told["TasksHere"], &told["Swarm"]["Secrets"]), (&1.into(), &1.into()));
    let worker = FakeGate::alone();
    let told = get(&worker, "/skep/v1/info").await.json();
    assert_eq!((&told["TasksHere"], &told["Swarm"]), (&0.into(), &Value::Null));
    // What Docker's own client sees has nothing of this.
    for path in ["/info", "/secrets/db", "/nodes/vm"] {
        let told = get(&gate, path).await.json();
        assert!(told.get("Skep").is_none() && told.get("Cipher").is_none(), "{path}");
    }
}
