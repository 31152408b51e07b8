//! Versions of secrets and configs: what pins them, what becomes of tasks when they change, and
//! what is dropped.

use serde_json::json;
use skep_core::command::{Append, Command};
use skep_core::id::MaterialId;
use skep_core::model::material::{Author, OnChange};
use skep_core::model::task::TaskState;
use skep_core::sealed::Sealed;

use super::*;

/// Appends versions of 3 bytes up to `last`.
fn append(gate: &FakeGate, id: &str, numbers: std::ops::RangeInclusive<u64>) {
    let id: MaterialId = id.parse().unwrap();
    for number in numbers {
        let payload = Sealed { key: 1, nonce: [0; 12], bytes: vec![0; 19] };
        let items = vec![Append { id, number, size: 3, payload, of: None }];
        let by = Author { node: "2s4vqjvhqlyvj9o8gmq4wrl3l".parse().unwrap(), uid: 7 };
        gate.run(Command::MaterialAppend { items, by, keep: None }).unwrap();
    }
}

fn reference(id: &str, name: &str, target: &str) -> Value {
    json!({
        "File": {"Name": target, "UID": "0", "GID": "0", "Mode": 292},
        "SecretID": id,
        "SecretName": name,
    })
}

fn spec(labels: Value, secrets: Value) -> Value {
    json!({
        "Name": "web",
        "Labels": labels,
        "TaskTemplate": {"ContainerSpec": {"Image": "x", "Secrets": secrets}},
    })
}

/// The spec of the service, and its version.
async fn shown(gate: &Arc<FakeGate>) -> (Value, u64) {
    let shown = get(gate, "/services/web").await.json();
    (shown["Spec"].clone(), shown["Version"]["Index"].as_u64().unwrap())
}

async fn update(gate: &Arc<FakeGate>, spec: &Value) -> Answer {
    let (_, version) = shown(gate).await;
    post(gate, &format!("/services/web/update?version={version}"), &spec.to_string()).await
}

fn secrets(spec: &Value) -> &Value {
    &spec["TaskTemplate"]["ContainerSpec"]["Secrets"]
}

#[tokio::test]
async fn a_version_is_found_by_the_name_it_is_pinned_by() {
    let gate = FakeGate::manager();
    let id = secret(&gate, "db").await;
    secret(&gate, "db_other").await;
    append(&gate, &id, 2..=3);
    let names = async |filters: Value| {
        let listed = get(&gate, &filtered("/secrets", &filters)).await;
        assert_eq!(listed.status, 200, "{listed:?}");
        let listed = listed.json();
        let all = listed.as_array().unwrap().iter();
        let mut all: Vec<(String, bool)> = all
            .map(|one| (one["Spec"]["Name"].as_str().unwrap().to_owned(), one["ID"] == json!(id)))
            .collect();
        all.sort();
        all
    };
    let is = |name: &str, same| (name.to_owned(), same);
    assert_eq!(names(json!({"name": {"db@3": true}})).await, [is("db@3", true)]);
    assert_eq!(
        names(json!({"name": ["db@3", "db@1", "db"]})).await,
        [is("db", true), is("db@1", true), is("db@3", true), is("db_other", false)]
    );
    for nobody in ["d@1", "db@x", "db@", "nobody@1"] {
        assert_eq!(names(json!({"name": [nobody]})).await, [], "{nobody}");
    }
    assert_eq!(names(json!({"name": ["db@3"], "label": ["x"]})).await, []);
    let refused = get(&gate, &filtered("/secrets", &json!({"name": ["db@9"]}))).await;
    assert_eq!(refused.status, 400);
    assert!(
        refused.message().ends_with(
            "secret db has no version 9: pin to one that it has (1, 2, 3), or name db alone to \
             follow the latest"
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_pin_survives_what_clients_do_with_a_spec() {
    let gate = FakeGate::manager();
    let id = secret(&gate, "db").await;
    append(&gate, &id, 2..=3);
    // The docker CLI makes the name the target where its user names none.
    let body = spec(json!({}), json!([reference(&id, "db@2", "db@2")])).to_string();
    assert_eq!(post(&gate, "/services/create", &body).await.status, 201);
    let (first, version) = shown(&gate).await;
    assert_eq!(secrets(&first), &json!([reference(&id, "db@2", "db")]));
    // Read, and sent back as it is; then with the same pin added once more.
    assert_eq!(update(&gate, &first).await.status, 200);
    let again = json!([reference(&id, "db@2", "db"), reference(&id, "db@2", "db@2")]);
    assert_eq!(update(&gate, &spec(json!({}), again)).await.status, 200);
    let (after, later) = shown(&gate).await;
    assert_eq!((secrets(&after), later), (secrets(&first), version + 2));
    let to_3 = spec(json!({}), json!([reference(&id, "db@3", "db@3")]));
    assert_eq!(update(&gate, &to_3).await.status, 200);
    assert_eq!(secrets(&shown(&gate).await.0)[0]["SecretName"], "db@3");
    for (name, text) in [
        ("db@4", "secret db has no version 4: pin to one that it has (1, 2, 3)"),
        ("db@x", "what follows the @ is the number of a version, as in db@3"),
        ("other@1", "secret not found: other@1"),
    ] {
        let refused = update(&gate, &spec(json!({}), json!([reference(&id, name, "db")]))).await;
        assert_eq!(refused.status, 400, "{refused:?}");
        assert!(refused.message().contains(text), "{refused:?}");
    }
    let two = json!([reference(&id, "db@1", "a"), reference(&id, "db@2", "b")]);
    let refused = update(&gate, &spec(json!({}), two)).await;
    assert!(refused.message().contains("is granted in two versions"), "{refused:?}");
}

#[tokio::test]
async fn what_is_done_on_a_change_stays_until_somebody_says_otherwise() {
    let gate = FakeGate::manager();
    let id = secret(&gate, "db").await;
    let on_change = |words: &str| {
        let mut reference = reference(&id, "db", "db");
        reference["OnChange"] = json!(words);
        spec(json!({}), json!([reference]))
    };
    let body = on_change("signal:hup").to_string();
    let made = post(&gate, "/services/create", &body).await;
    let service = made.json()["ID"].as_str().unwrap().to_owned();
    let now = || gate.service(&service).spec.task.container.secrets[0].on_change;
    assert_eq!(now(), OnChange::Signal(1));
    assert_eq!(secrets(&shown(&gate).await.0)[0]["OnChange"], "signal:SIGHUP");
    // Docker's clients drop what they do not know.
    let silent = spec(json!({}), json!([reference(&id, "db", "db")]));
    assert_eq!(update(&gate, &silent).await.status, 200);
    assert_eq!(now(), OnChange::Signal(1));
    assert_eq!(update(&gate, &on_change("restart")).await.status, 200);
    assert_eq!(now(), OnChange::Restart);
    assert_eq!(update(&gate, &on_change("nothing")).await.status, 200);
    assert_eq!(update(&gate, &silent).await.status, 200);
    assert_eq!(now(), OnChange::Nothing);
    assert_eq!(secrets(&shown(&gate).await.0)[0].get("OnChange"), None);
    // Another grant of it is another grant.
    assert_eq!(update(&gate, &on_change("restart")).await.status, 200);
    let moved = spec(json!({}), json!([reference(&id, "db", "elsewhere")]));
    assert_eq!(update(&gate, &moved).await.status, 200);
    assert_eq!(now(), OnChange::Nothing);
    for (words, text) in [
        ("explode", "OnChange of secret db: \"explode\" does not say what to do on a change"),
        ("signal:SIGSTOP", "it cannot catch SIGKILL and SIGSTOP"),
    ] {
        let refused = update(&gate, &on_change(words)).await;
        assert_eq!(refused.status, 400, "{refused:?}");
        assert!(refused.message().contains(text), "{refused:?}");
    }
}

#[tokio::test]
async fn a_label_says_what_is_done_on_a_change() {
    let gate = FakeGate::manager();
    let id = secret(&gate, "db").await;
    let secrets_of = || json!([reference(&id, "db", "db")]);
    let label = "skep.secret.db.on-change";
    let body = spec(json!({label: "restart"}), secrets_of()).to_string();
    let made = post(&gate, "/services/create", &body).await;
    let service = made.json()["ID"].as_str().unwrap().to_owned();
    let now = || gate.service(&service).spec.task.container.secrets[0].on_change;
    assert_eq!(now(), OnChange::Restart);
    // The label says it, so the reference need not.
    let (before, _) = shown(&gate).await;
    assert_eq!(secrets(&before), &secrets_of());
    let changed = spec(json!({label: "signal:USR1"}), secrets_of());
    assert_eq!(update(&gate, &changed).await.status, 200);
    assert_eq!(now(), OnChange::Signal(10));
    let mut both = changed.clone();
    both["TaskTemplate"]["ContainerSpec"]["Secrets"][0]["OnChange"] = json!("restart");
    let refused = update(&gate, &both).await;
    assert!(refused.message().contains("says signal:SIGUSR1 and the reference to"), "{refused:?}");
    assert_eq!(update(&gate, &spec(json!({}), secrets_of())).await.status, 200);
    assert_eq!(now(), OnChange::Nothing);
    for (labels, text) in [
        (json!({label: "later"}), "label skep.secret.db.on-change: \"later\" does not say"),
        (json!({"skep.secret.bd.on-change": "restart"}), "which the service is not granted"),
        (json!({"skep.config.db.on-change": "restart"}), "(it is granted no config)"),
    ] {
        let refused = update(&gate, &spec(labels, secrets_of())).await;
        assert_eq!(refused.status, 400, "{refused:?}");
        assert!(refused.message().contains(text), "{refused:?}");
    }
}

#[tokio::test]
async fn history_tells_who_uses_a_version_and_who_lost_it() {
    let gate = FakeGate::manager();
    let id = secret(&gate, "db").await;
    append(&gate, &id, 2..=3);
    let pinned = format!(r#","Secrets":[{}]"#, reference(&id, "db@2", "db"));
    let follows = format!(r#","Secrets":[{}]"#, reference(&id, "db", "db"));
    let (web, api) = (service(&gate, "web", &pinned).await, service(&gate, "api", &follows).await);
    gate.task(&web, 9, TaskState::Running);
    gate.task(&web, 10, TaskState::Running);
    gate.task(&web, 11, TaskState::Failed);
    gate.task(&api, 12, TaskState::Running);
    gate.run(Command::MaterialRevoke {
        id: id.parse().unwrap(),
        service: Some(api.parse().unwrap()),
        task: None,
        by: Author { node: "2s4vqjvhqlyvj9o8gmq4wrl3l".parse().unwrap(), uid: 0 },
    })
    .unwrap();
    append(&gate, &id, 4..=4);
    let history = get(&gate, "/skep/v1/secrets/db/history").await.json();
    let of = |at: usize| history[at]["InUseBy"].clone();
    let using = |id: &str, name: &str, pinned: bool, tasks: u64| {
        json!([{"ServiceID": id, "Service": name, "Pinned": pinned, "Follows": !pinned,
                "Tasks": tasks}])
    };
    let numbers: Vec<_> = history.as_array().unwrap().iter().map(|one| &one["Version"]).collect();
    assert_eq!(numbers, [4, 3, 2, 1]);
    assert_eq!((of(0), of(1)), (using(&api, "api", false, 1), json!([])));
    assert_eq!((of(2), of(3)), (using(&web, "web", true, 2), json!([])));
    assert_eq!((&history[2]["Services"], &history[2]["UID"]), (&json!(["web"]), &json!(7)));
    assert_eq!(history[0]["RevokedFrom"], json!([]));
    let revoked = &history[1]["RevokedFrom"][0];
    assert_eq!((&revoked["Service"], &revoked["UpTo"]), (&json!("api"), &json!(3)));
    assert_eq!(history[3]["RevokedFrom"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn prune_says_what_it_drops() {
    let gate = FakeGate::manager();
    let (db, other) = (secret(&gate, "db").await, secret(&gate, "other").await);
    append(&gate, &db, 2..=4);
    append(&gate, &other, 2..=2);
    let pinned = format!(r#","Secrets":[{}]"#, reference(&db, "db@2", "db"));
    service(&gate, "web", &pinned).await;
    let prune = async |body: Value| post(&gate, "/skep/v1/secrets/prune", &body.to_string()).await;
    let nothing = prune(json!({})).await.json();
    assert_eq!(nothing, json!({"Items": [], "SpaceReclaimed": 0, "DryRun": false}));
    let of_db = json!({"ID": db, "Name": "db", "Versions": [1, 3], "Bytes": 19});
    let of_other = json!({"ID": other, "Name": "other", "Versions": [1], "Bytes": 16});
    let looked = prune(json!({"Keep": 1, "DryRun": true})).await.json();
    assert_eq!(looked["Items"], json!([of_db, of_other]));
    let done = prune(json!({"Names": ["db", &db[..9]], "Keep": 1})).await.json();
    assert_eq!(done, json!({"Items": [of_db], "SpaceReclaimed": 19, "DryRun": false}));
    let done = prune(json!({"Keep": 1, "Names": null})).await.json();
    assert_eq!(done["Items"], json!([of_other]));
    let versions = |listed: &Value| (listed["Latest"].as_u64(), listed["Versions"].as_u64());
    let shown = get(&gate, "/skep/v1/secrets/db").await.json();
    assert_eq!((versions(&shown), &shown["Keep"]), ((Some(4), Some(2)), &json!(5)));
    let listed = get(&gate, &filtered("/skep/v1/secrets", &json!({"names": ["other"]}))).await;
    assert_eq!(versions(&listed.json()[0]), (Some(2), Some(1)));
    for (body, status, text) in [
        (json!({"Names": ["nobody"]}), 404, "secret nobody not found"),
        (json!({"Keep": 0}), 400, "cannot keep 0 versions of a secret or config: keep 1 to 64"),
        (json!({"Keep": 65, "DryRun": true}), 400, "cannot keep 65 versions"),
    ] {
        let refused = prune(body).await;
        assert_eq!(refused.status, status, "{refused:?}");
        assert!(refused.message().contains(text), "{refused:?}");
    }
    let config = post(&gate, "/skep/v1/configs/prune", "{}").await;
    assert_eq!(config.json()["Items"], json!([]));
}

#[tokio::test]
async fn how_many_are_kept_is_said_at_creation_and_kept_by_dockers_update() {
    let gate = FakeGate::manager();
    let body = r#"{"Name":"db","Data":"eA==","Keep":2}"#;
    assert_eq!(post(&gate, "/secrets/create", body).await.status, 201);
    let id = get(&gate, "/secrets/db").await.json()["ID"].as_str().unwrap().to_owned();
    let labelled = r#"{"Name":"db","Labels":{"a":"b"}}"#;
    assert_eq!(post(&gate, "/secrets/db/update?version=1", labelled).await.status, 200);
    append(&gate, &id, 2..=4);
    let shown = get(&gate, "/skep/v1/secrets/db").await.json();
    assert_eq!((&shown["Keep"], &shown["Versions"]), (&json!(2), &json!(2)));
    let refused = post(&gate, "/secrets/create", r#"{"Name":"x","Data":"eA==","Keep":0}"#).await;
    assert!(refused.message().contains("cannot keep 0 versions"), "{refused:?}");
    let refused = post(&gate, "/secrets/create", r#"{"Name":"x","Data":"eA==","Keep":-1}"#).await;
    assert_eq!(refused.status, 400, "{refused:?}");
}

#[tokio::test]
async fn updates_name_what_is_wrong_with_them() {
    let gate = FakeGate::manager();
    let id = secret(&gate, "db").await;
    let large = "A".repeat(4 * (512_000 / 3 + 1));
    let send = async |body: Value| post(&gate, "/skep/v1/secrets/update", &body.to_string()).await;
    let item = |name: &str, data: &str| json!({"Name": name, "Data": data});
    for (items, status, text) in [
        (json!([]), 400, "0 secrets were sent: update 1 to 64 at once"),
        (json!([item("nobody", "eA==")]), 404, "secret nobody not found"),
        (json!([item("db", "")]), 400, "new version of secret db: secret data must be larger"),
        (json!([item("db", &large)]), 400, "new version of secret db: secret data must be larger"),
        (json!([{"Name": "db"}]), 400, "new version of secret db: secret data must be larger"),
        (json!([item("db", "eA=="), item(&id, "eQ==")]), 400, "secret db was sent twice"),
        (json!([item("db", "!")]), 400, "Data is not base64"),
    ] {
        let refused = send(json!({"Items": items})).await;
        assert_eq!(refused.status, status, "{refused:?}");
        assert!(refused.message().contains(text), "{refused:?}");
    }
    assert!(gate.asked.lock().unwrap().is_empty());
    let done = send(json!({"Items": [item("db", "eA==")], "Keep": 3})).await;
    assert_eq!(done.json(), json!([{"ID": id, "Name": "db", "Version": 2}]));
}
