//! The audit: who reads what.

use futures_util::StreamExt;
use serde_json::json;
use skep_core::id::{MaterialId, TaskId};
use skep_core::model::task::TaskState;
use skep_core::time::Stamp;
use tokio::sync::mpsc;

use super::*;
use crate::audit::testing::{chain, id, row};
use crate::audit::{
    AuditGap, AuditQuery, Coverage, Entry, Event, Finding, Lost, Record, TaskVerdict, What,
};

const AT: u64 = 1_795_337_022_000_000_000;

fn entry(task: TaskId, sequence: u64, material: MaterialId) -> Entry {
    let mut read = row(material, 4);
    (read.first, read.last, read.refused) = (Stamp(AT), Stamp(AT + 500), 1);
    let switched = What::Switched { material, name: "db".to_owned(), from: 1, to: 2, sequence: 9 };
    let record = Record {
        sequence,
        previous: [0; 32],
        at: Stamp(AT + 1_000),
        rows: vec![read],
        events: vec![Event { at: Stamp(AT + 100), what: switched }],
        lost: Lost::default(),
    };
    Entry { node: id(3), task, record }
}

fn lines(answer: &Answer) -> Vec<Value> {
    answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn task(gate: &Arc<FakeGate>) -> TaskId {
    let service = service(gate, "web", "").await;
    gate.task(&service, 9, TaskState::Running).id
}

fn asked(gate: &FakeGate) -> AuditQuery {
    gate.audited.lock().unwrap().pop().unwrap()
}

#[tokio::test]
async fn rows_and_events_are_lines_with_names() {
    let gate = FakeGate::manager();
    let (task, secret) = (task(&gate).await, secret(&gate, "db").await);
    let material: MaterialId = secret.parse().unwrap();
    gate.audit.lock().unwrap().entries = vec![entry(task, 7, material)];
    let answer = get(&gate, "/v1.41/skep/v1/secrets/db/audit").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    assert_eq!(asked(&gate), AuditQuery { material: Some(material), ..Default::default() });
    let [event, opens] = lines(&answer).try_into().unwrap();
    let node: skep_core::id::NodeId = id(3);
    assert_eq!(
        opens,
        json!({
            "Event": "opens", "Time": "2026-11-22T08:43:42.0000005Z",
            "First": "2026-11-22T08:43:42Z", "Last": "2026-11-22T08:43:42.0000005Z",
            "NodeID": node.as_str(), "Hostname": opens["Hostname"], "TaskID": task.as_str(),
            "TaskName": "web.1", "ServiceID": opens["ServiceID"], "ServiceName": "web",
            "Record": 7, "ID": secret, "Name": "db", "Version": 1, "UID": 1000, "GID": 1000,
            "ExecutableClaim": "/bin/app", "Opened": 4, "Refused": 1,
        })
    );
    assert_eq!(
        (&event["Event"], &event["From"], &event["Version"], &event["Delivery"]),
        (&json!("switched"), &json!(1), &json!(2), &json!(9))
    );
    assert_eq!(event["Opened"], Value::Null);
}

#[tokio::test]
async fn what_narrows_is_understood_or_refused() {
    let gate = FakeGate::manager();
    let (task, secret) = (task(&gate).await, secret(&gate, "db").await);
    gate.audit.lock().unwrap().entries = vec![entry(task, 1, secret.parse().unwrap())];
    let ask = async |query: &str| get(&gate, &format!("/skep/v1/audit?{query}")).await;
    for word in ["web.1", task.as_str(), &format!("web.1.{task}"), &task.as_str()[..9]] {
        assert_eq!(ask(&format!("task={word}")).await.status, 200);
        assert_eq!(asked(&gate).tasks, [task], "{word}");
    }
    assert_eq!(ask("since=1795337022&until=1795337023.5").await.status, 200);
    let query = asked(&gate);
    assert_eq!((query.since, query.until), (Stamp(AT), Stamp(AT + 1_500_000_000)));
    // What is gone is found by its id.
    let gone: skep_core::id::NodeId = id(77);
    assert_eq!(ask(&format!("node={gone}")).await.status, 200);
    assert_eq!(asked(&gate).node, Some(gone));
    for (query, status, text) in [
        ("since=soon", 400, "invalid value \"soon\" for since"),
        ("limit=-1", 400, "invalid value \"-1\" for limit"),
        ("follow=1&verify=1", 400, "follow goes with neither"),
        ("follow=1&until=5", 400, "follow goes with neither"),
        ("task=web.7", 404, "task web.7 not found"),
        ("node=nowhere", 404, "node nowhere not found"),
    ] {
        let answer = ask(query).await;
        assert_eq!(answer.status, status, "{query}");
        assert!(answer.message().contains(text), "{}", answer.message());
    }
    assert_eq!(post(&gate, "/skep/v1/audit", "").await.status, 501);
}

#[tokio::test]
async fn a_removed_secret_is_found_by_its_former_name_and_its_id() {
    let gate = FakeGate::manager();
    let gone: MaterialId = id(50);
    gate.audit.lock().unwrap().entries = vec![entry(id(60), 1, gone)];
    let by_name = get(&gate, "/skep/v1/secrets/old/audit").await;
    assert_eq!((by_name.status, lines(&by_name).len()), (200, 2));
    assert_eq!(asked(&gate).name.as_deref(), Some("old"));
    // The task is forgotten: its id must do.
    assert_eq!(lines(&by_name)[0]["TaskName"], "");
    assert_eq!(get(&gate, &format!("/skep/v1/secrets/{gone}/audit")).await.status, 200);
    assert_eq!(asked(&gate).material, Some(gone));
    gate.audit.lock().unwrap().entries.clear();
    let never = get(&gate, "/skep/v1/secrets/old/audit").await;
    assert_eq!(never.status, 404);
    assert!(never.message().contains("secret old not found"), "{}", never.message());
}

#[tokio::test]
async fn what_is_missing_is_told() {
    let gate = FakeGate::manager();
    {
        let mut answer = gate.audit.lock().unwrap();
        answer.entries = (1..=4).map(|n| entry(id(60), n, id(50))).collect();
        answer.is_disputed = true;
        answer.coverage =
            Coverage { absent: vec![id(71)], damaged: vec![id(72)], horizon: Stamp(AT) };
    }
    let answer = get(&gate, "/skep/v1/audit?limit=3").await;
    let found = lines(&answer);
    let shown: Vec<_> = found.iter().filter(|line| line["Event"].is_string()).collect();
    assert_eq!(shown.iter().map(|line| &line["Record"]).collect::<Vec<_>>(), [2, 3, 4]);
    let notices: Vec<_> = found.iter().filter_map(|line| line["Notice"].as_str()).collect();
    assert_eq!(notices, ["cut", "disputed", "absent", "damaged", "dropped"]);
    assert_eq!(found.last().unwrap()["Time"], "2026-11-22T08:43:42Z");
    let absent: skep_core::id::NodeId = id(71);
    assert!(found.iter().any(|line| line["NodeID"] == absent.as_str()));
}

/// A record is written after what it tells of, and others may be written meanwhile.
#[tokio::test]
async fn lines_come_by_their_own_times_over_all_records_and_nodes() {
    let gate = FakeGate::manager();
    let made = |node: u8, sequence, event: u64, read: u64| {
        let mut made = entry(id(60 + node), sequence, id(50));
        made.node = id(node);
        made.record.events[0].at = Stamp(AT + event);
        made.record.rows[0].last = Stamp(AT + read);
        made
    };
    gate.audit.lock().unwrap().entries =
        vec![made(1, 1, 700, 400), made(2, 2, 100, 600), made(1, 3, 500, 300)];
    let shown = async |query: &str| {
        let found = lines(&get(&gate, &format!("/skep/v1/audit{query}")).await);
        let of = |line: &Value| Some((line["Record"].as_u64()?, line["Event"] == "opens"));
        found.iter().filter_map(of).collect::<Vec<_>>()
    };
    let expected = [(2, false), (3, true), (1, true), (3, false), (2, true), (1, false)];
    assert_eq!(shown("").await, expected);
    assert_eq!(shown("?limit=2").await, expected[4..]);
}

#[tokio::test]
async fn verdicts_say_what_is_wrong() {
    let gate = FakeGate::manager();
    let task = task(&gate).await;
    let edited = Finding::EditedCopy { sequence: 4, manager: id(5) };
    let dropped = Finding::LateStart { first: 3, is_dropped: true };
    let whole = TaskVerdict {
        task,
        node: Some(id(3)),
        records: 8,
        last: 8,
        anchored: 6,
        is_cut: false,
        findings: vec![dropped.clone()],
    };
    gate.verdict.lock().unwrap().tasks =
        vec![whole.clone(), TaskVerdict { findings: vec![dropped, edited], ..whole }];
    let [clean, wrong] = lines(&get(&gate, "/skep/v1/audit?verify=1").await).try_into().unwrap();
    let fields = |line: &Value| {
        ["TaskName", "Intact", "IntactTo", "AnchoredTo", "Unbound"].map(|name| line[name].clone())
    };
    assert_eq!(fields(&clean), [json!("web.1"), json!(true), json!(8), json!(6), json!(2)]);
    assert_eq!(fields(&wrong), [json!("web.1"), json!(false), json!(8), json!(6), json!(2)]);
    let manager: skep_core::id::NodeId = id(5);
    assert_eq!(
        wrong["Findings"][1],
        json!({
            "Kind": "edited-copy", "Record": 4, "Explained": false, "Managers": [manager.as_str()],
            "Message": format!("manager {manager} keeps a changed record 4"),
        })
    );
}

#[tokio::test]
async fn one_who_follows_sees_each_record_once_and_ends_by_going() {
    let gate = FakeGate::manager();
    let task: TaskId = id(60);
    let (tell, told) = mpsc::channel(4);
    let followed = futures_util::stream::unfold(told, |mut told| async move {
        let next: Result<Entry, AuditGap> = told.recv().await?;
        Some((next, told))
    });
    *gate.followed.lock().unwrap() = Some(followed.boxed());
    gate.audit.lock().unwrap().entries = vec![entry(task, 1, id(50))];
    let request = Request::get("/skep/v1/audit?follow=1").header("host", "skep");
    let mut sender = client(&gate).await;
    let reply = sender.send_request(request.body(Full::default()).unwrap()).await.unwrap();
    let mut body = reply.into_body();
    let mut next = async || {
        let frame = tokio::time::timeout(WAIT, body.frame()).await.unwrap().unwrap().unwrap();
        let bytes = frame.into_data().unwrap();
        let lines = std::str::from_utf8(&bytes).unwrap().lines();
        lines.map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(next().await);
    }
    // It was stored while it was asked for.
    tell.send(Ok(entry(task, 1, id(50)))).await.unwrap();
    tell.send(Err(AuditGap(id(71)))).await.unwrap();
    tell.send(Ok(entry(task, 2, id(50)))).await.unwrap();
    while seen.len() < 5 {
        seen.extend(next().await);
    }
    let numbers: Vec<_> = seen.iter().map(|line| line["Record"].as_u64().unwrap_or(0)).collect();
    assert_eq!(numbers, [1, 1, 0, 2, 2]);
    assert_eq!(seen[2]["Notice"], "absent");
    drop((body, sender));
    tokio::time::timeout(WAIT, tell.closed()).await.unwrap();
}

#[tokio::test]
async fn chains_of_shims_are_shown_as_they_are() {
    let gate = FakeGate::manager();
    let records = chain(&id(60), id(50), 2);
    let entries = records.iter().map(|body| Entry {
        node: id(3),
        task: id(60),
        record: Record::parse(body).unwrap(),
    });
    gate.audit.lock().unwrap().entries = entries.collect();
    let found = lines(&get(&gate, "/skep/v1/audit").await);
    let events: Vec<_> = found.iter().map(|line| line["Event"].as_str().unwrap()).collect();
    assert_eq!(events, ["begun", "opens", "opens"]);
}
