//! What shims have written comes to the managers and is found there: whole nodes in one process.

use std::fs;
use std::sync::Arc;

use futures_util::StreamExt;
use minicbor::bytes::ByteVec;
use skep_core::id::{MaterialId, TaskId};
use tokio::time::timeout;

use super::Node;
use super::version_tests::{Machine, PATIENCE, are_ready, manager, stop, until};
use crate::audit::testing::{chain, end, id};
use crate::audit::{AuditAnswer, AuditQuery, Finding, Record, put};
use crate::config::Build;
use crate::manager::Manager;
use crate::wire::audit::Portion;
use crate::wire::control::{ControlAnswer, ControlRequest};

const SECRET: u8 = 40;

/// Writes what the shim of a task would have.
fn write(machine: &Machine, task: TaskId, bodies: &[ByteVec]) {
    let dir = machine.dir.path().join("data/tasks").join(task.as_str());
    fs::create_dir_all(&dir).unwrap();
    let mut bytes = Vec::new();
    bodies.iter().for_each(|body| put(&mut bytes, body));
    fs::write(dir.join("audit"), bytes).unwrap();
}

fn of_secret() -> AuditQuery {
    AuditQuery { material: Some(id(SECRET)), ..AuditQuery::default() }
}

/// What a manager answers once so many entries are there.
async fn answer(manager: &Manager, query: &AuditQuery, entries: usize) -> AuditAnswer {
    let ask = async {
        loop {
            let answer = manager.audit_query(query).await.unwrap();
            if answer.entries.len() >= entries {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, ask).await.unwrap_or_else(|_| panic!("no {entries} entries"))
}

fn places(answer: &AuditAnswer) -> Vec<(TaskId, u64)> {
    answer.entries.iter().map(|entry| (entry.task, entry.record.sequence)).collect()
}

async fn three(machines: &[Machine; 3]) -> [Arc<Node>; 3] {
    let one = machines[0].start(Build::default(), None).await.unwrap();
    let token = manager(&one).join_tokens().unwrap().manager;
    let two = machines[1].start(Build::default(), Some((&one, &token))).await.unwrap();
    let three = machines[2].start(Build::default(), Some((&one, &token))).await.unwrap();
    until(&one, "all vote", |manager, state| {
        manager.raft.members().voters.len() == 3 && are_ready(state, 3)
    })
    .await;
    [one, two, three]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audits_are_found_on_every_manager_and_without_one_of_them() {
    let machines = ["first", "second", "third"].map(Machine::new);
    let [one, two, three] = three(&machines).await;
    let (task, secret): (TaskId, MaterialId) = (id(1), id(SECRET));
    let mut followed = manager(&two).audit_follow(of_secret()).await.unwrap();
    let mut all = chain(&task, secret, 3);
    all.push(end(&all));
    write(&machines[2], task, &all);
    for node in [&one, &two, &three] {
        let found = answer(&manager(node), &of_secret(), 3).await;
        assert_eq!(places(&found), [(task, 1), (task, 2), (task, 3)]);
        assert!(found.coverage.absent.is_empty() && !found.is_cut && !found.is_disputed);
        assert!(found.entries.iter().all(|entry| entry.node == three.swarm().unwrap().node));
    }
    let shown = timeout(PATIENCE, followed.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((shown.task, shown.record.sequence), (task, 1));
    until(&one, "it is anchored", |_, state| {
        state.anchor(&task).is_some_and(|anchor| anchor.sequence == 4)
    })
    .await;
    let verdict = manager(&two).audit_verify(&of_secret()).await.unwrap();
    let [checked] = verdict.tasks.as_slice() else { panic!("{verdict:?}") };
    assert_eq!((checked.task, checked.records, checked.anchored), (task, 4, 4));
    assert!(checked.findings.is_empty() && verdict.coverage.absent.is_empty(), "{verdict:?}");

    // A majority is enough, and what is missing in a chain is seen.
    let gone = three.swarm().unwrap().node;
    stop(three).await;
    let other: TaskId = id(2);
    let mut torn = chain(&other, secret, 4);
    torn.remove(2);
    write(&machines[0], other, &torn);
    let found = answer(&manager(&two), &of_secret(), 6).await;
    assert_eq!(found.coverage.absent, [gone]);
    let only = AuditQuery { tasks: vec![other], ..of_secret() };
    assert_eq!(
        places(&answer(&manager(&one), &only, 3).await),
        [(other, 1), (other, 2), (other, 4)]
    );
    let verdict = manager(&one).audit_verify(&only).await.unwrap();
    let gap = Finding::Gap { after: 2, before: 4, is_told: false };
    assert_eq!(verdict.tasks[0].findings, [gap]);

    // Records that are there are sent no more, also by a daemon that begins anew; and what is on
    // the disk is found by the next one.
    stop(one).await;
    let one = machines[0].start(Build::default(), None).await.unwrap();
    let found = answer(&manager(&one), &only, 3).await;
    assert_eq!(places(&found).len(), 3);
    drop(followed);
    stop(one).await;
    stop(two).await;
}

/// What was changed in one manager's store is found, and named with that manager; and one that was
/// away comes to keep what it has missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_copy_is_named_and_a_manager_that_was_away_catches_up() {
    let machines = ["first", "second", "third"].map(Machine::new);
    let [one, two, three] = three(&machines).await;
    let [node, third] = [&one, &three].map(|node| node.swarm().unwrap().node);
    let (task, secret): (TaskId, MaterialId) = (id(1), id(SECRET));
    let mut all = chain(&task, secret, 4);
    all.push(end(&all));
    let mut changed = Record::parse(&all[1]).unwrap();
    changed.rows[0].opened = 0;
    // As it would be if somebody had written it into the store of the third.
    let portion = Portion { node, task, bodies: vec![changed.to_body()] };
    let raft_id = three.swarm().unwrap().file().raft_id;
    let peers = &manager(&one).peers;
    let kept = peers.ask(raft_id, &ControlRequest::AuditStore(vec![portion])).await;
    assert_eq!(kept.unwrap(), ControlAnswer::Done);
    write(&machines[0], task, &all);
    answer(&manager(&one), &of_secret(), 4).await;
    until(&one, "it is anchored", |_, state| {
        state.anchor(&task).is_some_and(|anchor| anchor.sequence == 5)
    })
    .await;
    for node in [&one, &two, &three] {
        let verdict = manager(node).audit_verify(&of_secret()).await.unwrap();
        let [checked] = verdict.tasks.as_slice() else { panic!("{verdict:?}") };
        assert_eq!(checked.findings, [Finding::EditedCopy { sequence: 2, manager: third }]);
        assert!(!checked.is_intact() && checked.intact_to() == 5);
        assert!(manager(node).audit_query(&of_secret()).await.unwrap().is_disputed);
    }

    stop(three).await;
    let other: TaskId = id(2);
    write(&machines[1], other, &chain(&other, secret, 3));
    let only = AuditQuery { tasks: vec![other], ..of_secret() };
    answer(&manager(&one), &only, 3).await;
    let three = machines[2].start(Build::default(), None).await.unwrap();
    until(&three, "it knows the others", |manager, state| {
        manager.raft.members().voters.len() == 3 && state.nodes().count() == 3
    })
    .await;
    manager(&three).audit_compare().await;
    let last = manager(&three).last_read(secret).await.unwrap();
    assert_eq!((last.task, last.version), (task, 1));
    stop(one).await;
    stop(two).await;
    let found = answer(&manager(&three), &only, 3).await;
    assert_eq!((places(&found).len(), found.coverage.absent.len()), (3, 2));
    stop(three).await;
}
