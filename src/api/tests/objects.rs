//! What can be done with secrets, configs, services, tasks, nodes, networks and images.

use serde_json::json;
use skep_core::model::task::TaskState;

use super::*;
use crate::gate::ContainerState;

#[tokio::test]
async fn s008_names_are_taken_once() {
    let gate = FakeGate::manager();
    secret(&gate, "rec_data").await;
    let body = r#"{"Name":"rec_data","Data":"eA=="}"#;
    let again = post(&gate, "/secrets/create", body).await;
    assert_eq!(again.status, 409);
    assert_eq!(
        again.message(),
        "rpc error: code = AlreadyExists desc = secret rec_data already exists"
    );
    service(&gate, "rec_web", "").await;
    let body = r#"{"Name":"rec_web","TaskTemplate":{"ContainerSpec":{"Image":"x"}}}"#;
    let again = post(&gate, "/services/create", body).await;
    assert_eq!(again.status, 409);
    assert!(
        again
            .message()
            .ends_with("name conflicts with an existing object: service rec_web already exists")
    );
}

#[tokio::test]
async fn s035_payloads_arrive_whole_and_within_their_limits() {
    use base64::Engine;
    let gate = FakeGate::manager();
    let send = async |kind: &str, name: &str, bytes: &[u8]| {
        let data = base64::engine::general_purpose::STANDARD.encode(bytes);
        let body = json!({"Name": name, "Data": data}).to_string();
        post(&gate, &format!("/{kind}/create"), &body).await
    };
    let every_byte: Vec<u8> = (0..=255).cycle().take(511_999).collect();
    assert_eq!(send("secrets", "most", &every_byte).await.status, 201);
    assert_eq!(gate.payloads.lock().unwrap()[0].1, every_byte);
    for (name, bytes) in [("none", 0), ("over", 512_000), ("far", 3_000_000)] {
        let answer = send("secrets", name, &vec![7; bytes]).await;
        assert_eq!(answer.status, 400);
        assert_eq!(
            answer.message(),
            "rpc error: code = InvalidArgument desc = secret data must be larger than 0 and less \
             than 512000 bytes"
        );
        assert_eq!(answer.header("connection"), "close");
    }
    assert_eq!(send("configs", "most", &vec![7; 1_024_000]).await.status, 201);
    assert_eq!(send("configs", "over", &vec![7; 1_024_001]).await.status, 400);
    let bad = send("secrets", "bad name", b"x").await;
    assert!(bad.message().contains("invalid name, only 64 [a-zA-Z0-9-_.] characters allowed"));
}

#[tokio::test]
async fn a_payload_is_never_quoted_back() {
    let gate = FakeGate::manager();
    for body in [
        r#"{"Name":"a","Data":"hunter2!"}"#,
        r#"{"Name":"a","Data":["hunter2"]}"#,
        r#"{"Name":"a","Data":"hunter2" oops}"#,
        r#""hunter2""#,
    ] {
        let answer = post(&gate, "/secrets/create", body).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(!answer.text().contains("hunter2"), "{answer:?}");
    }
    for field in ["Driver", "Templating"] {
        let body = format!(r#"{{"Name":"a","Data":"eA==","{field}":{{"Name":"golang"}}}}"#);
        let answer = post(&gate, "/secrets/create", &body).await;
        assert_eq!(answer.status, 501, "{answer:?}");
    }
    let body = r#"{"name":"folded","LABELS":null,"data":"eA=="}"#;
    assert_eq!(post(&gate, "/secrets/create", body).await.status, 201);
}

#[tokio::test]
async fn s058_a_secret_in_use_stays() {
    let gate = FakeGate::manager();
    let id = secret(&gate, "rec_data").await;
    let grant = format!(
        r#","Secrets":[{{"File":{{"Name":"t","UID":"0","GID":"0","Mode":292}},"SecretID":"{id}",
           "SecretName":"rec_data"}}]"#
    );
    service(&gate, "rec_web", &grant).await;
    let refused = delete(&gate, "/secrets/rec_data").await;
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.message(),
        "rpc error: code = InvalidArgument desc = secret 'rec_data' is in use by the following \
         service: rec_web"
    );
    assert_eq!(delete(&gate, "/services/rec_web").await.status, 200);
    let gone = delete(&gate, &format!("/secrets/{id}")).await;
    assert_eq!((gone.status, gone.body.len()), (204, 0));
    assert_eq!(delete(&gate, "/secrets/rec_data").await.status, 404);
}

#[tokio::test]
async fn updates_of_a_secret_name_a_version() {
    let gate = FakeGate::manager();
    secret(&gate, "a").await;
    let update = async |query: &str, body: &str| {
        post(&gate, &format!("/secrets/a/update{query}"), body).await
    };
    let body = r#"{"Name":"a","Labels":{"x":"y"}}"#;
    assert!(update("", body).await.message().starts_with("invalid secret version ''"));
    let stale = update("?version=77", body).await;
    assert_eq!(stale.status, 500);
    assert_eq!(stale.message(), "rpc error: code = Unknown desc = update out of sequence");
    let done = update("?version=1", body).await;
    assert_eq!((done.status, done.body.len()), (200, 0));
    let shown = get(&gate, "/secrets/a").await.json();
    assert_eq!(
        (&shown["Version"]["Index"], &shown["Spec"]["Labels"]["x"]),
        (&json!(2), &json!("y"))
    );
    let renamed = update("?version=2", r#"{"Name":"b"}"#).await;
    assert!(renamed.message().ends_with("only updates to Labels are allowed"), "{renamed:?}");
}

#[tokio::test]
async fn filters_of_secrets_widen_by_name_and_narrow_by_label() {
    let gate = FakeGate::manager();
    for (name, label) in [("db_a", "x"), ("db_b", "y"), ("web", "x")] {
        let body = json!({"Name": name, "Labels": {"l": label}, "Data": "eA=="}).to_string();
        assert_eq!(post(&gate, "/secrets/create", &body).await.status, 201);
    }
    let names = async |filters: Value| {
        let listed = get(&gate, &filtered("/secrets", &filters)).await;
        let mut names: Vec<String> = listed
            .json()
            .as_array()
            .unwrap_or_else(|| panic!("{listed:?}"))
            .iter()
            .map(|s| s["Spec"]["Name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(names(json!({})).await, "db_a db_b web");
    assert_eq!(names(json!({"name": {"db": true}})).await, "db_a db_b");
    assert_eq!(names(json!({"name": ["db"]})).await, "db_a db_b");
    assert_eq!(names(json!({"names": ["db", "web"]})).await, "web");
    assert_eq!(names(json!({"label": ["l=x"]})).await, "db_a web");
    let bogus = get(&gate, &filtered("/secrets", &json!({"bogus": ["x"]}))).await;
    assert_eq!((bogus.status, bogus.message().as_str()), (400, "Invalid filter 'bogus'"));
}

#[tokio::test]
async fn s129_a_service_without_a_name_gets_one() {
    let gate = FakeGate::manager();
    let body = r#"{"TaskTemplate":{"ContainerSpec":{"Image":"busybox"}},
                   "Mode":{"replicated":{"Replicas":2}}}"#;
    let made = post(&gate, "/services/create", body).await;
    assert_eq!(made.status, 201, "{made:?}");
    let id = made.json()["ID"].as_str().unwrap().to_owned();
    let shown = get(&gate, &format!("/services/{}", &id[..7])).await.json();
    let name = shown["Spec"]["Name"].as_str().unwrap();
    assert!(name.split_once('_').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty()), "{name}");
    assert_eq!(shown["Spec"]["Mode"], json!({"Replicated": {"Replicas": 2}}));
    assert_eq!(get(&gate, &format!("/services/{name}")).await.json()["ID"], json!(id));
}

#[tokio::test]
async fn what_is_not_carried_out_is_refused_by_name() {
    let gate = FakeGate::manager();
    for (part, named) in [
        (r#""Mode":{"Global":{}}"#, "Mode.Global"),
        (r#""Mode":{"ReplicatedJob":{}}"#, "Mode.ReplicatedJob"),
        (r#""EndpointSpec":{"Ports":[{"TargetPort":80}]}"#, "EndpointSpec.Ports"),
        (r#""Networks":[{"Target":"overlay1"}]"#, "TaskTemplate.Networks"),
    ] {
        let body =
            format!(r#"{{"Name":"a",{part},"TaskTemplate":{{"ContainerSpec":{{"Image":"x"}}}}}}"#);
        let answer = post(&gate, "/services/create", &body).await;
        assert_eq!(answer.status, 501, "{answer:?}");
        assert!(answer.message().contains(named), "{answer:?}");
    }
    for (part, named) in [
        (r#""Mounts":[{"Type":"volume","Source":"v","Target":"/v"}]"#, "ContainerSpec.Mounts"),
        (r#""Healthcheck":{"Test":["CMD","true"]}"#, "ContainerSpec.Healthcheck"),
        (r#""Init":true"#, "ContainerSpec.Init"),
        (r#""Privileges":{"NoNewPrivileges":true}"#, "ContainerSpec.Privileges"),
        (r#""Env":["N={{.Node.Hostname}}"]"#, "ContainerSpec.Env"),
    ] {
        let body =
            format!(r#"{{"Name":"a","TaskTemplate":{{"ContainerSpec":{{"Image":"x",{part}}}}}}}"#);
        let answer = post(&gate, "/services/create", &body).await;
        assert_eq!(answer.status, 501, "{answer:?}");
        assert!(answer.message().contains(named), "{answer:?}");
    }
    let grant = r#""Secrets":[{"File":{"Name":"t","UID":"bob","GID":"0","Mode":292},
                   "SecretID":"rol4m3dkraschv1qmgsw95db2","SecretName":"s"}]"#;
    let body =
        format!(r#"{{"Name":"a","TaskTemplate":{{"ContainerSpec":{{"Image":"x",{grant}}}}}}}"#);
    let answer = post(&gate, "/services/create", &body).await;
    assert_eq!(answer.status, 400);
    assert!(answer.message().contains("invalid UID \"bob\" for secret s"), "{answer:?}");
    let none = r#","Privileges":{"CredentialSpec":null,"SELinuxContext":null},
        "Healthcheck":{"Test":["NONE"]},"Mounts":[{"Type":"tmpfs","Target":"/t"}]"#;
    service(&gate, "fine", none).await;
}

#[tokio::test]
async fn a_predefined_network_is_found_as_the_cli_looks_for_it() {
    let gate = FakeGate::manager();
    let network = get(&gate, "/networks/host?scope=swarm").await.json();
    assert_eq!(network["Scope"], "swarm");
    let id = network["Id"].as_str().unwrap();
    let body = format!(
        r#"{{"Name":"a","TaskTemplate":{{"ContainerSpec":{{"Image":"x"}},
            "Networks":[{{"Target":"{id}"}}]}}}}"#
    );
    let made = post(&gate, "/services/create", &body).await;
    assert_eq!(made.status, 201, "{made:?}");
    let service = gate.service(made.json()["ID"].as_str().unwrap());
    assert_eq!(service.spec.task.networks[0].target, "host");
    let shown = get(&gate, "/services/a").await.json();
    assert_eq!(shown["Spec"]["TaskTemplate"]["Networks"][0]["Target"], json!(id));
    assert_eq!(get(&gate, "/networks").await.json().as_array().unwrap().len(), 3);
    let alone = FakeGate::alone();
    assert_eq!(get(&alone, "/networks/host?scope=swarm").await.status, 404);
    assert_eq!(get(&alone, "/networks/host").await.status, 200);
}

#[tokio::test]
async fn tasks_are_filtered_as_the_progress_bar_asks() {
    let gate = FakeGate::manager();
    let id = service(&gate, "web", "").await;
    service(&gate, "other", "").await;
    let task = gate.task(&id, 9, TaskState::Running);
    let count = async |filters: Value| {
        let answer = get(&gate, &filtered("/tasks", &filters)).await;
        answer.json().as_array().unwrap_or_else(|| panic!("{answer:?}")).len()
    };
    assert_eq!(count(json!({"service": ["web"]})).await, 1);
    assert_eq!(count(json!({"service": ["other"]})).await, 0);
    assert_eq!(count(json!({"label": ["tier=web"]})).await, 1);
    assert_eq!(count(json!({"node": ["vm"], "desired-state": ["running"]})).await, 1);
    assert_eq!(count(json!({"desired-state": ["shutdown"]})).await, 0);
    assert_eq!(count(json!({"name": ["web.1"], "runtime": ["container"]})).await, 1);
    assert_eq!(get(&gate, &filtered("/tasks", &json!({"service": ["no"]}))).await.status, 404);
    let fresh = &filtered("/tasks", &json!({"_up-to-date": {"true": true}}));
    assert_eq!(get(&gate, fresh).await.json().as_array().unwrap().len(), 1);
    let mut spec = get(&gate, "/services/web").await.json()["Spec"].take();
    spec["TaskTemplate"]["ForceUpdate"] = json!(1);
    let updated = post(&gate, "/services/web/update?version=1", &spec.to_string()).await;
    assert_eq!(updated.status, 200, "{updated:?}");
    assert_eq!(get(&gate, fresh).await.json().as_array().unwrap().len(), 0);
    assert_eq!(get(&gate, &format!("/tasks/{}", &task.id.as_str()[..6])).await.status, 200);
}

#[tokio::test]
async fn services_are_listed_with_their_counts() {
    let gate = FakeGate::manager();
    let id = service(&gate, "web", "").await;
    gate.task(&id, 9, TaskState::Running);
    let listed = get(&gate, "/services?status=true").await.json();
    assert_eq!(
        listed[0]["ServiceStatus"],
        json!({"RunningTasks": 1, "DesiredTasks": 1, "CompletedTasks": 0})
    );
    let by = async |filters: Value| {
        let listed = get(&gate, &filtered("/services", &filters)).await;
        listed.json().as_array().unwrap().len()
    };
    assert_eq!(by(json!({"id": ["web"]})).await, 0);
    assert_eq!(by(json!({"name": ["we"]})).await, 1);
    assert_eq!(by(json!({"mode": ["global"]})).await, 0);
    assert!(get(&gate, "/services").await.json()[0].get("ServiceStatus").is_none());
}

#[tokio::test]
async fn nodes_and_settings_are_updated() {
    let gate = FakeGate::manager();
    let body = r#"{"Labels":{"zone":"a"},"Role":"manager","Availability":"drain"}"#;
    let done = post(&gate, "/nodes/vm/update?version=1", body).await;
    assert_eq!((done.status, done.body.len()), (200, 0), "{done:?}");
    let node = get(&gate, "/nodes/vm").await.json();
    assert_eq!(
        (&node["Spec"]["Availability"], &node["Spec"]["Labels"]["zone"]),
        (&json!("drain"), &json!("a"))
    );
    let demote = r#"{"Role":"worker","Availability":"active"}"#;
    let refused = post(&gate, "/nodes/vm/update?version=2", demote).await;
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.message(),
        "rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the \
         swarm"
    );
    let body = include_str!("../testdata/swarm_update_request.json")
        .replace("\"TaskHistoryRetentionLimit\":5", "\"TaskHistoryRetentionLimit\":3");
    let done = post(&gate, "/swarm/update?version=1&rotateWorkerToken=false", &body).await;
    assert_eq!((done.status, done.body.len()), (200, 0), "{done:?}");
    let partial = r#"{"CAConfig":{"NodeCertExpiry":7000000000000000}}"#;
    assert_eq!(post(&gate, "/swarm/update?version=2", partial).await.status, 200);
    let spec = gate.swarm().spec.clone();
    assert_eq!((spec.history_limit, spec.node_cert_expiry.0), (3, 7_000_000_000_000_000));
    let key = get(&gate, "/swarm/unlockkey").await;
    assert_eq!(key.text(), "{\"UnlockKey\":\"\"}\n");
    assert_eq!(post(&gate, "/swarm/unlock", "{}").await.status, 409);
}

#[tokio::test]
async fn s065_containers_are_found_by_parts_of_their_names() {
    let gate = FakeGate::manager();
    let id = service(&gate, "redis", "").await;
    let runs = gate.container(&gate.task(&id, 9, TaskState::Running), ContainerState::Running);
    gate.container(&gate.task(&id, 10, TaskState::Running), ContainerState::Exited);
    let list = async |path: &str| get(&gate, path).await.json().as_array().unwrap().len();
    let by = async |filters: Value| list(&filtered("/containers/json", &filters)).await;
    assert_eq!(list("/containers/json").await, 1);
    assert_eq!(list("/containers/json?all=1").await, 2);
    assert_eq!(by(json!({"name": {"edi": true}})).await, 1);
    assert_eq!(by(json!({"status": ["exited"]})).await, 1);
    assert_eq!(list("/containers/json?limit=1").await, 1);
    assert_eq!(by(json!({"network": ["host"]})).await, 0);
    assert_eq!(get(&gate, &format!("/containers/{}/json", &runs[..8])).await.status, 200);
    assert_eq!(post(&gate, &format!("/containers/{runs}/stop"), "").await.status, 501);
    assert_eq!(post(&gate, "/containers/nope/stop", "").await.status, 404);
}

#[tokio::test]
async fn images_are_imported_named_and_removed() {
    let gate = FakeGate::manager();
    let request =
        Request::post("/images/create?fromSrc=-&repo=busybox&tag=latest&changes=CMD%20sh")
            .header("host", "skep")
            .header("content-type", "application/x-tar")
            .body(Full::new(Bytes::from(super::fake::archive())))
            .unwrap();
    let reply = client(&gate).await.send_request(request).await.unwrap();
    let status = reply.status().as_u16();
    let line = reply.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(status, 200, "{line:?}");
    let line: Value = serde_json::from_slice(&line).unwrap();
    assert!(line["status"].as_str().unwrap().starts_with("sha256:"));
    let shown = get(&gate, "/images/busybox:latest/json").await.json();
    assert_eq!(shown["Id"], line["status"]);
    assert_eq!(shown["RepoTags"], json!(["busybox:latest"]));
    let tagged = post(&gate, "/images/busybox/tag?repo=docker.io%2Flibrary%2Frec&tag=1", "").await;
    assert_eq!((tagged.status, tagged.body.len()), (201, 0));
    let listed = get(&gate, "/images/json").await.json();
    assert_eq!(listed[0]["RepoTags"], json!(["busybox:latest", "rec:1"]));
    let untagged = delete(&gate, "/images/rec:1").await.json();
    assert_eq!(untagged[0], json!({"Untagged": "rec:1"}));
    let known = get(&gate, "/distribution/busybox:latest/json").await.json();
    assert!(known["Descriptor"]["digest"].as_str().unwrap().starts_with("sha256:"));
    assert_eq!(known["Platforms"][0]["os"], "linux");
    let pulled =
        post(&gate, "/images/create?fromImage=docker.io%2Flibrary%2Fredis&tag=7", "").await;
    assert_eq!(pulled.status, 404);
    assert!(pulled.message().contains("redis:7"));
    let gone = delete(&gate, "/images/busybox").await.json();
    assert_eq!(gone[0], json!({"Untagged": "busybox:latest"}));
    assert_eq!(get(&gate, "/images/busybox:latest/json").await.status, 404);
    let broken = Request::post("/images/create?fromSrc=-&repo=x")
        .header("host", "skep")
        .body(Full::new(Bytes::from(vec![7; 100_000])))
        .unwrap();
    let reply = client(&gate).await.send_request(broken).await.unwrap();
    assert_eq!(reply.status().as_u16(), 400);
}

#[tokio::test]
async fn image_names_may_have_slashes() {
    let gate = FakeGate::manager();
    gate.image("host.example:5000/team/app:1");
    let shown = get(&gate, "/images/host.example:5000/team/app:1/json").await;
    assert_eq!(shown.status, 200, "{shown:?}");
    let shown = get(&gate, "/distribution/host.example:5000/team/app:1/json").await;
    assert_eq!(shown.status, 200, "{shown:?}");
}
