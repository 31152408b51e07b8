//! Queries and JSON bodies of every endpoint that takes some, through to the state and back.

use std::sync::Arc;

use serde_json::Value;

use crate::Target;
use crate::cursor::{Cursor, input};
use crate::exchange::{exchange, parse, run};
use crate::fake::FakeGate;

pub(crate) const TARGET: Target = Target { name: "json", run: call, seeds, mutations: 2_000 };

/// What is called: `ID` stands for the id of the object that the endpoint is about.
const ENDPOINTS: [(&str, &str); 24] = [
    ("POST", "/secrets/create"),
    ("POST", "/configs/create"),
    ("POST", "/services/create"),
    ("POST", "/secrets/ID/update?version=1"),
    ("POST", "/configs/ID/update?version=1"),
    ("POST", "/services/ID/update?version=1"),
    ("POST", "/services/ID/update?version=1&rollback=previous"),
    ("POST", "/nodes/ID/update?version=1"),
    ("POST", "/swarm/init"),
    ("POST", "/swarm/join"),
    ("POST", "/swarm/update?version=1"),
    ("POST", "/swarm/unlock"),
    ("POST", "/containers/ID/exec"),
    ("POST", "/exec/ID/start"),
    ("POST", "/networks/create"),
    ("POST", "/volumes/create"),
    ("GET", "/secrets"),
    ("GET", "/configs"),
    ("GET", "/services"),
    ("GET", "/tasks"),
    ("GET", "/nodes"),
    ("GET", "/containers/json"),
    ("GET", "/images/json"),
    ("GET", "/networks"),
];

const SECRET: &str = r#"{"Name":"one","Labels":{"a":"b"},"Data":"VGhpcyBpcyBhIHNlY3JldA=="}"#;
const SERVICE: &str = r#"{"Name":"one","Labels":{"tier":"web"},"TaskTemplate":{"ContainerSpec":{
    "Image":"busybox:latest","Command":["sh"],"Args":["-c","x"],"Env":["A=b"],"User":"1:2",
    "Dir":"/","Hostname":"h","Groups":["wheel"],"StopGracePeriod":10000000000,"StopSignal":"TERM",
    "ReadOnly":true,"Init":true,"TTY":true,"OpenStdin":true,"Hosts":["1.2.3.4 h"],
    "Healthcheck":{"Test":["NONE"]},"DNSConfig":{"Nameservers":["1.1.1.1"],"Search":["x"]},
    "Mounts":[{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true,
    "BindOptions":{"Propagation":"rprivate"}},{"Type":"tmpfs","Target":"/t",
    "TmpfsOptions":{"SizeBytes":65536,"Mode":511}}],"Sysctls":{"net.ipv4.ip_forward":"1"},
    "CapabilityAdd":["CAP_NET_ADMIN"],"CapabilityDrop":["CAP_CHOWN"],
    "Ulimits":[{"Name":"nofile","Hard":10,"Soft":5}],"OomScoreAdj":5},
    "Resources":{"Limits":{"NanoCPUs":1000000000,"MemoryBytes":8388608,"Pids":5},
    "Reservations":{"NanoCPUs":1000000,"MemoryBytes":4194304}},
    "RestartPolicy":{"Condition":"on-failure","Delay":5,"MaxAttempts":3,"Window":7},
    "Placement":{"Constraints":["node.role==manager"],"MaxReplicas":2,
    "Preferences":[{"Spread":{"SpreadDescriptor":"node.labels.z"}}],
    "Platforms":[{"Architecture":"amd64","OS":"linux"}]},
    "LogDriver":{"Name":"json-file","Options":{"max-size":"1m"}},"ForceUpdate":1,
    "Networks":[{"Target":"host"}]},"Mode":{"Replicated":{"Replicas":3}},
    "UpdateConfig":{"Parallelism":1,"Delay":2,"FailureAction":"rollback","Monitor":5,
    "MaxFailureRatio":0.25,"Order":"start-first"},"EndpointSpec":{"Mode":"vip"}}"#;
const CLUSTER: &str = r#"{"Name":"default","Labels":{},"Orchestration":
    {"TaskHistoryRetentionLimit":5},"Raft":{"SnapshotInterval":10000,"KeepOldSnapshots":0,
    "LogEntriesForSlowFollowers":500,"ElectionTick":10,"HeartbeatTick":1},"Dispatcher":
    {"HeartbeatPeriod":5000000000},"CAConfig":{"NodeCertExpiry":7776000000000000},
    "TaskDefaults":{},"EncryptionConfig":{"AutoLockManagers":false}}"#;

async fn send(gate: &Arc<FakeGate>, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: s\r\nConnection: close\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let answer = exchange(gate, &[head.as_bytes(), body]).await;
    let (status, body) = parse(&answer).unwrap_or((0, &[]));
    (status, body.to_vec())
}

fn id_of(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    ["ID", "Id"].iter().find_map(|key| value[*key].as_str()).unwrap_or("none").to_owned()
}

/// The id of the object that calls below `root` are about, made if need be.
async fn object(gate: &Arc<FakeGate>, root: &str) -> String {
    match root {
        "secrets" | "configs" => {
            id_of(&send(gate, "POST", &format!("/{root}/create"), SECRET.as_bytes()).await.1)
        }
        "services" => id_of(&send(gate, "POST", "/services/create", SERVICE.as_bytes()).await.1),
        "nodes" => {
            let nodes = send(gate, "GET", "/nodes", b"").await.1;
            let nodes: Value = serde_json::from_slice(&nodes).unwrap_or_default();
            nodes[0]["ID"].as_str().unwrap_or("none").to_owned()
        }
        _ => "none".to_owned(),
    }
}

fn call(bytes: &[u8]) {
    let mut cursor = Cursor::new(bytes);
    let (method, path) = ENDPOINTS[usize::from(cursor.byte()) % ENDPOINTS.len()];
    let (query, body) = (cursor.piece(), cursor.rest());
    run(async {
        let gate = FakeGate::manager();
        let root = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let id = if path.contains("ID") { object(&gate, root).await } else { String::new() };
        let escaped: String = query.iter().map(|byte| format!("%{byte:02X}")).collect();
        let sign = if path.contains('?') { '&' } else { '?' };
        let path = format!("{}{sign}filters={escaped}", path.replace("ID", &id));
        let (status, answer) = send(&gate, method, &path, body).await;
        assert!((200..600).contains(&status) && status != 500, "{status} {answer:?}");
        if status >= 400 {
            let told: Value = serde_json::from_slice(&answer).unwrap();
            assert!(told["message"].as_str().is_some_and(|text| !text.is_empty()), "{told}");
        }
        if status == 201 && ["secrets", "configs", "services"].contains(&root) {
            comes_back(&gate, root, &id_of(&answer)).await;
        }
    });
}

/// What was taken is shown, and what is shown is taken again as the same.
async fn comes_back(gate: &Arc<FakeGate>, root: &str, id: &str) {
    let show = async || {
        let (status, shown) = send(gate, "GET", &format!("/{root}/{id}"), b"").await;
        assert_eq!(status, 200, "what was made cannot be seen");
        serde_json::from_slice::<Value>(&shown).unwrap()
    };
    let first = show().await;
    let path = format!("/{root}/{id}/update?version={}", first["Version"]["Index"]);
    let (status, answer) = send(gate, "POST", &path, first["Spec"].to_string().as_bytes()).await;
    assert_eq!(status, 200, "{} of {}", String::from_utf8_lossy(&answer), first["Spec"]);
    assert_eq!(show().await["Spec"], first["Spec"], "what is shown is taken for something else");
}

fn seeds() -> Vec<Vec<u8>> {
    let filters = br#"{"label":{"a=b":true},"name":["one"],"id":{"x":false}}"#;
    (0..ENDPOINTS.len())
        .map(|at| {
            let (method, path) = ENDPOINTS[at];
            let body = match path.split('/').nth(1).unwrap_or_default() {
                _ if method == "GET" => "",
                "secrets" | "configs" => SECRET,
                "services" => SERVICE,
                "nodes" => r#"{"Name":"n","Role":"manager","Availability":"drain","Labels":{"a":"b"}}"#,
                "swarm" if path.contains("update") => CLUSTER,
                "swarm" => r#"{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"lo","RemoteAddrs":["a:1"],
                    "JoinToken":"SWMTKN-1-x-y","Availability":"active","ForceNewCluster":false,
                    "AutoLockManagers":false,"Spec":{"Labels":{"a":"b"}}}"#,
                "exec" => r#"{"Detach":false,"Tty":true,"ConsoleSize":[24,80]}"#,
                "containers" => r#"{"AttachStdin":true,"AttachStdout":true,"Tty":false,"Cmd":["sh"],
                    "Env":["A=b"],"User":"1","WorkingDir":"/","Privileged":true,"DetachKeys":"ctrl-p"}"#,
                _ => r#"{"Name":"x","Driver":"local"}"#,
            };
            let filters: &[u8] = if method == "GET" { filters } else { b"" };
            let mut bytes = input(u8::try_from(at).unwrap_or_default(), &[filters]);
            bytes.extend_from_slice(body.as_bytes());
            bytes
        })
        .collect()
}
