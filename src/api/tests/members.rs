//! Joining, locking, members: what a swarm of many nodes asks of the API.

use serde_json::json;
use skep_core::model::cluster::NextRoot;
use skep_core::model::node::{Availability, Role};
use skep_core::sealed::Sealed;

use super::*;
use crate::api::convert::cluster;
use crate::gate::{Gate, LocalState, ManagerView, Reachability, Request};

/// A node of a swarm that is no manager which answers.
fn member(state: LocalState, role: Role) -> Arc<FakeGate> {
    let gate = FakeGate::manager();
    gate.change(|view| {
        (view.state, view.role, view.manager, view.leader) = (state, Some(role), false, None);
    });
    gate
}

const JOIN: &str = r#"{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"eth0","DataPathAddr":"",
    "RemoteAddrs":["192.0.2.7","m2.example:99"],"JoinToken":"SWMTKN-1-a-b","Availability":"drain"}"#;

#[tokio::test]
async fn a_join_reaches_the_node_as_the_cli_sent_it() {
    let gate = FakeGate::alone();
    let joined = post(&gate, "/v1.41/swarm/join", JOIN).await;
    assert_eq!((joined.status, joined.text()), (200, ""), "{joined:?}");
    assert_eq!(joined.header("connection"), "close");
    let asked = gate.asked.lock().unwrap();
    let [Request::SwarmJoin(join)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(join.remote_addrs, ["192.0.2.7:2377", "m2.example:99"]);
    assert_eq!((join.listen_addr.as_str(), join.advertise_addr.as_str()), ("", "eth0"));
    assert_eq!(join.token.reveal(), "SWMTKN-1-a-b");
    assert_eq!(join.availability, Availability::Drain);
    assert!(!format!("{join:?}").contains("SWMTKN"));
}

#[tokio::test]
async fn a_join_that_cannot_be_meant_is_refused() {
    let gate = FakeGate::alone();
    let refused = async |body: Value| {
        let answer = post(&gate, "/swarm/join", &body.to_string()).await;
        (answer.status, answer.message())
    };
    let token = "SWMTKN-1-a-b";
    for (body, status, part) in [
        (json!({"JoinToken": token}), 400, "at least 1 RemoteAddr is required"),
        (json!({"JoinToken": token, "RemoteAddrs": ["h:0"]}), 400, "invalid address \"h:0\""),
        (json!({"RemoteAddrs": ["h"]}), 400, "invalid join token"),
        (json!({"JoinToken": token, "RemoteAddrs": vec!["h"; 65]}), 400, "more than 64"),
        (json!({"JoinToken": token, "RemoteAddrs": ["h"], "DataPathAddr": "h"}), 501, "DataPath"),
        (json!({"JoinToken": token, "RemoteAddrs": ["h"], "Availability": "x"}), 400, "invalid Av"),
    ] {
        let (found, message) = refused(body).await;
        assert_eq!(found, status, "{message}");
        assert!(message.contains(part), "{message}");
    }
    // What is wrong with a body must not bring the token back.
    let (status, message) = refused(json!({"JoinToken": {"x": "SWMTKN"}})).await;
    assert_eq!((status, message.contains("SWMTKN")), (400, false), "{message}");
    let broken = post(&gate, "/swarm/join", r#"{"JoinToken":"SWMTKN-1"#).await;
    assert_eq!((broken.status, broken.message().contains("SWMTKN")), (400, false));
    assert!(gate.asked.lock().unwrap().is_empty());
    let again = post(&FakeGate::manager(), "/swarm/join", JOIN).await;
    assert_eq!(again.status, 503);
    assert!(
        again.message().starts_with("This node is already part of a swarm. Use \"docker swarm")
    );
}

#[tokio::test]
async fn a_locked_manager_answers_only_an_unlock() {
    let gate = member(LocalState::Locked, Role::Manager);
    for (method, path) in [
        ("GET", "/swarm"),
        ("GET", "/swarm/unlockkey"),
        ("POST", "/swarm/update?version=1"),
        ("GET", "/nodes"),
        ("POST", "/secrets/create"),
        ("GET", "/tasks"),
    ] {
        let answer = call(&gate, method, path, "").await;
        assert_eq!(answer.status, 503, "{path}");
        assert!(answer.message().starts_with("Swarm is encrypted and needs to be unlocked"));
    }
    assert_eq!(get(&gate, "/containers/json").await.status, 200);
    let info = get(&gate, "/info").await.json();
    assert_eq!(info["Swarm"]["LocalNodeState"], "locked");
    assert_eq!(info["Swarm"]["ControlAvailable"], false);
    assert_eq!(get(&gate, "/_ping").await.header("swarm"), "locked/manager");
    let wrong = post(&gate, "/swarm/unlock", r#"{"UnlockKey":"SWMKEY-1-wrong"}"#).await;
    assert_eq!(wrong.status, 401);
    assert_eq!(wrong.message(), "swarm could not be unlocked: invalid key provided");
    let right = post(&gate, "/swarm/unlock", r#"{"UnlockKey":"SWMKEY-1-right"}"#).await;
    assert_eq!((right.status, right.text()), (200, ""));
    assert!(matches!(gate.asked.lock().unwrap().as_slice(), [Request::SwarmUnlock { .. }]));
}

#[tokio::test]
async fn only_what_is_locked_is_unlocked() {
    let key = r#"{"UnlockKey":"SWMKEY-1-right"}"#;
    let active = post(&FakeGate::manager(), "/swarm/unlock", key).await;
    assert_eq!((active.status, active.message().as_str()), (409, "swarm is not locked"));
    let alone = post(&FakeGate::alone(), "/swarm/unlock", key).await;
    assert_eq!(alone.status, 503);
    assert!(alone.message().contains("docker swarm join"), "{alone:?}");
}

#[tokio::test]
async fn the_unlock_key_is_shown_and_rotated() {
    let gate = FakeGate::manager();
    let key = get(&gate, "/swarm/unlockkey").await;
    assert_eq!(key.text(), "{\"UnlockKey\":\"\"}\n");
    *gate.unlock_key.lock().unwrap() = Some("SWMKEY-1-k".to_owned());
    let key = get(&gate, "/swarm/unlockkey").await;
    assert_eq!(key.text(), "{\"UnlockKey\":\"SWMKEY-1-k\"}\n");
    assert_eq!(key.header("connection"), "close");
    let path = "/swarm/update?version=1&rotateManagerUnlockKey=true&rotateWorkerToken=false";
    assert_eq!(post(&gate, path, "{}").await.status, 200);
    let asked = gate.asked.lock().unwrap();
    let [Request::SwarmUpdate { rotate_unlock, rotate_ca, rotate_worker, .. }] = asked.as_slice()
    else {
        panic!("{asked:?}")
    };
    assert!(*rotate_unlock && !*rotate_ca && !*rotate_worker);
}

#[tokio::test]
async fn a_new_root_is_asked_for_and_foreign_ones_are_refused_by_name() {
    let gate = FakeGate::manager();
    let ca = |ca: Value| json!({ "CAConfig": ca }).to_string();
    let path = "/swarm/update?version=1";
    for field in ["SigningCACert", "SigningCAKey"] {
        let mut entries = json!({"ForceRotate": 1});
        entries[field] = json!("PEM");
        let refused = post(&gate, path, &ca(entries)).await;
        assert_eq!(refused.status, 501);
        assert!(refused.message().starts_with(&format!("Spec.CAConfig.{field}")), "{refused:?}");
    }
    let external = ca(json!({"ExternalCAs": [{"URL": "https://ca.example"}]}));
    assert!(post(&gate, path, &external).await.message().contains("ExternalCAs"));
    assert!(gate.asked.lock().unwrap().is_empty());
    let spec = json!({"NodeCertExpiry": 7_200_000_000_000_u64, "ForceRotate": 3});
    assert_eq!(post(&gate, path, &ca(spec)).await.status, 200);
    let asked = gate.asked.lock().unwrap();
    let [Request::SwarmUpdate { rotate_ca: true, version: 1, spec, .. }] = asked.as_slice() else {
        panic!("{asked:?}")
    };
    assert_eq!(spec.node_cert_expiry.0, 7_200_000_000_000);
}

#[tokio::test]
async fn workers_show_their_managers_and_nothing_of_the_swarm() {
    let gate = member(LocalState::Active, Role::Worker);
    for path in ["/swarm", "/nodes", "/secrets", "/configs", "/services", "/tasks", "/nodes/vm"] {
        let answer = get(&gate, path).await;
        assert_eq!(answer.status, 503, "{path}");
        assert_eq!(
            answer.message(),
            "This node is not a swarm manager. Worker nodes can't be used to view or modify \
             cluster state. Please run this command on a manager node or promote the current node \
             to a manager."
        );
    }
    let created = post(&gate, "/secrets/create", r#"{"Name":"x","Data":"eA=="}"#).await;
    assert_eq!(created.status, 503);
    assert!(gate.payloads.lock().unwrap().is_empty());
    assert_eq!(get(&gate, "/_ping").await.header("swarm"), "active/worker");
    let info = get(&gate, "/info").await.json();
    let swarm = &info["Swarm"];
    assert_eq!(swarm["ControlAvailable"], false);
    assert_eq!(swarm["RemoteManagers"][0]["Addr"], "127.0.0.1:2377");
    assert!(swarm.get("Cluster").is_none() && swarm.get("Nodes").is_none());
    let starting = get(&member(LocalState::Active, Role::Manager), "/nodes").await;
    assert_eq!(starting.status, 503);
    assert!(starting.message().contains("Manager is being prepared"), "{starting:?}");
}

#[tokio::test]
async fn states_on_the_way_are_told() {
    let gate = FakeGate::alone();
    for (state, word) in [(LocalState::Pending, "pending"), (LocalState::Error, "error")] {
        gate.change(|view| (view.state, view.error) = (state, "no manager answers".to_owned()));
        assert_eq!(get(&gate, "/_ping").await.header("swarm"), word);
        let info = get(&gate, "/info").await.json();
        assert_eq!(info["Swarm"]["LocalNodeState"], word);
        assert_eq!(info["Swarm"]["Error"], "no manager answers");
        assert_eq!(info["Swarm"]["RemoteManagers"], Value::Null);
    }
}

#[tokio::test]
async fn nodes_are_filtered_and_removed() {
    let gate = FakeGate::manager();
    let count = async |filters: Value| {
        let answer = get(&gate, &filtered("/nodes", &filters)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json().as_array().unwrap().len()
    };
    assert_eq!(count(json!({"role": ["Manager"], "membership": ["accepted"]})).await, 1);
    assert_eq!(count(json!({"role": {"worker": true}})).await, 0);
    assert_eq!(count(json!({"membership": ["pending"]})).await, 0);
    assert_eq!(count(json!({"name": ["v"], "node.label": ["zone"]})).await, 0);
    let slip = get(&gate, &filtered("/nodes", &json!({"role": ["boss"]}))).await;
    assert_eq!((slip.status, slip.message().as_str()), (400, "invalid role filter: 'boss'"));
    assert_eq!(delete(&gate, "/nodes/nosuch").await.status, 404);
    let removed = delete(&gate, "/v1.41/nodes/vm?force=1").await;
    assert_eq!((removed.status, removed.text()), (200, ""));
    let id = gate.node().node;
    let asked = gate.asked.lock().unwrap();
    let [Request::NodeRemove { id: removed, force: true }] = asked.as_slice() else {
        panic!("{asked:?}")
    };
    assert_eq!(Some(*removed), id);
}

#[tokio::test]
async fn a_manager_is_shown_as_raft_sees_it() {
    let gate = FakeGate::manager();
    let shown = async || get(&gate, "/nodes/vm").await.json()["ManagerStatus"].take();
    assert_eq!(
        (leads(&shown().await), &json!("reachable")),
        (true, &shown().await["Reachability"])
    );
    gate.change(|view| {
        view.leader = None;
        view.managers = vec![ManagerView {
            node: view.node.unwrap(),
            addr: "127.0.0.1:2377".to_owned(),
            reachability: Reachability::Unreachable,
        }];
    });
    let status = shown().await;
    assert_eq!(status["Reachability"], "unreachable");
    assert!(!leads(&status));
}

fn leads(status: &Value) -> bool {
    status["Leader"].as_bool().unwrap_or_default()
}

#[tokio::test]
async fn while_a_root_takes_over_clients_see_who_has_moved() {
    let gate = FakeGate::manager();
    let node = gate.node().node.unwrap();
    let mut swarm = (*gate.swarm()).clone();
    let before = cluster::info(&swarm);
    assert!(!before.root_rotation_in_progress);
    swarm.trust.roots.push("NEXT".to_owned());
    swarm.trust.next = Some(NextRoot {
        pem: "NEXT".to_owned(),
        cross_pem: "CROSS".to_owned(),
        subject: b"t".to_vec(),
        public_key: b"l".to_vec(),
        key: Sealed { key: 1, nonce: [0; 12], bytes: Vec::new() },
        moved: Default::default(),
    });
    let during = cluster::info(&swarm);
    assert!(during.root_rotation_in_progress);
    assert_eq!(during.tls_info.trust_root, "PEMNEXT");
    assert_ne!(during.tls_info.cert_issuer_public_key, before.tls_info.cert_issuer_public_key);
    let issuer = |swarm: &_| cluster::node_tls_info(swarm, &node).cert_issuer_public_key;
    assert_eq!(issuer(&swarm), before.tls_info.cert_issuer_public_key);
    swarm.trust.next.as_mut().unwrap().moved.insert(node);
    assert_eq!(issuer(&swarm), during.tls_info.cert_issuer_public_key);
}

#[tokio::test]
async fn a_turn_of_the_ring_is_told_line_by_line() {
    let gate = FakeGate::manager();
    let answer = post(&gate, "/skep/v1/swarm/rotate-key?force=1", "").await;
    assert_eq!((answer.status, answer.header("connection")), (200, "close"));
    let lines: Vec<Value> =
        answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let states: Vec<&str> = lines.iter().map(|line| line["State"].as_str().unwrap()).collect();
    assert_eq!(states, ["sealing", "purging", "done"]);
    assert_eq!(lines[2]["Managers"][0]["State"], "purged");
    assert_eq!(
        (&lines[0]["Key"], &lines[0]["Turned"], &lines[0]["Done"], &lines[0]["Total"]),
        (&json!(3), &json!(true), &json!(1), &json!(2))
    );
    let asked = |gate: &FakeGate| match gate.asked.lock().unwrap().pop() {
        Some(Request::RingTurn { force }) => force,
        other => panic!("{other:?}"),
    };
    assert!(asked(&gate));
    let first = post(&gate, "/skep/v1/swarm/rotate-key?detach=1", "").await;
    assert_eq!((first.text().lines().count(), asked(&gate)), (1, false));
    let worker = member(LocalState::Active, Role::Worker);
    assert_eq!(post(&worker, "/skep/v1/swarm/rotate-key", "").await.status, 503);
    assert_eq!(get(&gate, "/skep/v1/swarm/rotate-key").await.status, 501);
}
