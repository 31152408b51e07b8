use std::sync::Arc;

use skep_core::id::kind::Task;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::testing::context;
use super::*;
use crate::audit::testing::{chain, end, id, row};
use crate::audit::{Record, put};

const PATIENCE: Duration = Duration::from_secs(20);

fn framed(bodies: &[ByteVec]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bodies.iter().for_each(|body| put(&mut bytes, body));
    bytes
}

fn write(dir: &Path, name: &str, bodies: &[ByteVec]) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join(name), framed(bodies)).unwrap();
}

fn tails(data_root: &Path) -> Tails {
    Tails {
        node: id(3),
        tasks_dir: data_root.join("tasks"),
        unsent_dir: unsent_dir(data_root),
        sent: HashMap::new(),
    }
}

fn append(dir: &Path, bytes: &[u8]) {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().append(true).open(dir.join(AUDIT_FILE)).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn what_is_new_is_read_across_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let all = chain(&id(1), id(2), 9);
    write(dir.path(), "audit", &all[..3]);
    let first = read_new(dir.path(), Place::default()).unwrap();
    assert!(first.bodies == all[..3] && first.is_all && first.place.sequence == 3);
    assert!(read_new(dir.path(), first.place).unwrap().bodies.is_empty());
    append(dir.path(), &framed(&all[3..5]));
    fs::rename(dir.path().join("audit"), dir.path().join("audit.1")).unwrap();
    write(dir.path(), "audit", &all[5..]);
    let second = read_new(dir.path(), first.place).unwrap();
    assert!(second.bodies == all[3..] && second.place.sequence == 9);
    // Whoever knows nothing but how far it had come finds its place too.
    let known = Place { sequence: 4, ..Place::default() };
    assert_eq!(read_new(dir.path(), known).unwrap().bodies, all[4..]);
}

/// A node that was cut off for long: the file of its place is gone, and a newer one has its number.
#[test]
fn a_file_with_the_number_of_one_that_is_gone_hides_no_older_one() {
    let dir = tempfile::tempdir().unwrap();
    let (all, path) = (chain(&id(1), id(2), 9), dir.path().join(AUDIT_FILE));
    write(dir.path(), "audit.1", &all[3..6]);
    write(dir.path(), "audit", &all[6..]);
    let inode = fs::metadata(&path).unwrap().ino();
    // In the middle of a record.
    let reused = Place { sequence: 3, inode, offset: 5 };
    let taken = read_new(dir.path(), reused).unwrap();
    assert!(taken.bodies == all[3..] && taken.is_all && taken.place.inode == inode);
    // Its own place in that file is good.
    append(dir.path(), &framed(&chain(&id(1), id(2), 10)[9..]));
    assert_eq!(read_new(dir.path(), taken.place).unwrap().bodies.len(), 1);
}

#[test]
fn what_is_aside_goes_only_if_no_record_of_it_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let mut tails = tails(dir.path());
    let (task, aside) = (id(1), tails.unsent_dir.join(id::<Task>(1).as_str()));
    let all = chain(&task, id(2), 9);
    write(&aside, "audit.1", &all[3..6]);
    write(&aside, "audit", &all[6..]);
    let found = fs::metadata(aside.join(AUDIT_FILE)).unwrap();
    // By chance even as long as the file that is gone.
    let reused = Place { sequence: 3, inode: found.ino(), offset: found.len() };
    tails.sent.insert(task, reused);
    let batch = tails.gather();
    assert_eq!(batch.portions.len(), 1);
    assert_eq!(batch.portions[0].bodies, all[3..]);
    tails.commit(batch.places);
    assert!(aside.exists() && tails.gather().portions.is_empty() && !aside.exists());
}

/// The daemon was killed between two of its files.
#[test]
fn an_audit_that_is_half_aside_is_sent_in_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut tails = tails(dir.path());
    let task: TaskId = id(1);
    let all = chain(&task, id(2), 6);
    let aside = tails.unsent_dir.join(task.as_str());
    write(&aside, "audit.1", &all[..3]);
    write(&tails.tasks_dir.join(task.as_str()), "audit", &all[3..]);
    for expected in [&all[..3], &all[3..]] {
        let batch = tails.gather();
        assert_eq!(batch.portions.len(), 1);
        assert_eq!(batch.portions[0].bodies, expected);
        tails.commit(batch.places);
    }
    assert!(tails.gather().portions.is_empty() && !aside.exists());
}

/// The longest file that there is, of which all but the last record was sent by an earlier daemon.
#[test]
fn what_was_sent_before_takes_no_room_from_what_was_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = chain(&id(1), id(2), 1);
    let record = Record::parse(&all[0]).unwrap();
    let long = |sequence, rows| {
        let rows = vec![row(id(2), 1); rows];
        Record { sequence, rows, ..record.clone() }.to_body()
    };
    while framed(&all).len() < AUDIT_TASK_BYTES + AUDIT_RECORD_BYTES + 8 {
        all.push(long(all.len() as u64 + 1, 5_000));
    }
    all.push(long(all.len() as u64 + 1, 1));
    write(dir.path(), "audit", &all);
    let known = Place { sequence: all.len() as u64 - 1, ..Place::default() };
    assert_eq!(read_new(dir.path(), known).unwrap().bodies, all[all.len() - 1..]);
}

/// A container must not push its own reads out before they are sent.
#[test]
fn more_than_a_tasks_share_does_not_wait_for_the_next_scan() {
    let dir = tempfile::tempdir().unwrap();
    let mut tails = tails(dir.path());
    let all = chain(&id(1), id(2), 4_000);
    assert!((AUDIT_TASK_BYTES..AUDIT_BATCH_BYTES).contains(&framed(&all).len()));
    write(&tails.tasks_dir.join(id::<Task>(1).as_str()), "audit", &all);
    let (mut read, mut turns) = (Vec::new(), 0);
    loop {
        let batch = tails.gather();
        batch.portions.into_iter().for_each(|portion| read.extend(portion.bodies));
        tails.commit(batch.places);
        turns += 1;
        if !batch.is_more {
            break;
        }
    }
    assert!(read == all && turns > 1);
    assert!(tails.gather().portions.is_empty());
}

#[test]
fn a_torn_end_is_no_record_and_is_read_once_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let all = chain(&id(1), id(2), 3);
    write(dir.path(), "audit", &all[..2]);
    let last = framed(&all[2..]);
    let (begin, end) = last.split_at(last.len() / 2);
    append(dir.path(), begin);
    let first = read_new(dir.path(), Place::default()).unwrap();
    assert_eq!(first.bodies, all[..2]);
    let again = read_new(dir.path(), first.place).unwrap();
    assert!(again.bodies.is_empty() && again.is_all);
    append(dir.path(), end);
    assert_eq!(read_new(dir.path(), again.place).unwrap().bodies, all[2..]);
}

#[test]
fn one_task_takes_its_share_and_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let all = chain(&id(1), id(2), 4_000);
    write(dir.path(), "audit", &all);
    let (mut place, mut read, mut turns) = (Place::default(), Vec::new(), 0);
    loop {
        let taken = read_new(dir.path(), place).unwrap();
        assert!(taken.bytes < AUDIT_TASK_BYTES + AUDIT_RECORD_BYTES);
        if taken.bodies.is_empty() {
            break;
        }
        (place, turns) = (taken.place, turns + 1);
        read.extend(taken.bodies);
    }
    assert!(read == all && turns > 1);
}

#[tokio::test]
async fn a_batch_is_sent_with_each_session_until_it_is_stored_and_then_never_again() {
    let dir = tempfile::tempdir().unwrap();
    let (session, mut sent) = mpsc::channel(8);
    let agent = Arc::new(Agent::new(context(dir.path(), session.clone())).unwrap());
    let task: TaskId = id(1);
    let task_dir = agent.context.task_dir(&task);
    let all = chain(&task, id(2), 3);
    write(&task_dir, "audit", &all[..2]);
    let sending = tokio::spawn({
        let agent = Arc::clone(&agent);
        async move { agent.send_audit().await }
    });
    let mut batch = async || match timeout(PATIENCE, sent.recv()).await {
        Ok(Some(FromAgent::Audit { batch, portions })) => (batch, portions),
        other => panic!("{other:?}"),
    };
    let (number, portions) = batch().await;
    assert_eq!(portions, [Portion { node: id(3), task, bodies: all[..2].to_vec() }]);
    agent.mail.begin_session();
    assert_eq!(batch().await, (number, portions));
    append(&task_dir, &framed(&all[2..]));
    agent.mail.is_stored(number);
    let (next, portions) = batch().await;
    assert_eq!((next, &portions[0].bodies), (number + 1, &all[2..].to_vec()));
    agent.mail.is_stored(next);
    // What is put aside goes once all of it is stored; a new daemon sends no record again.
    let sent_file = task_dir.join(SENT_FILE);
    let until = async |is_so: &dyn Fn() -> bool| {
        let wait = async {
            while !is_so() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(PATIENCE, wait).await.is_ok());
    };
    until(&|| fs::read_to_string(&sent_file).is_ok_and(|text| text == "3")).await;
    set_aside(dir.path(), &task_dir, &task).unwrap();
    let aside = unsent_dir(dir.path()).join(task.as_str());
    assert!(!task_dir.join("audit").exists());
    until(&|| !aside.exists()).await;
    sending.abort();
    drop(session);
}

/// A task that ended and was removed while no manager was there: its audit is sent once one is.
#[tokio::test]
async fn what_a_task_left_that_is_gone_is_sent_once_there_is_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let (session, mut sent) = mpsc::channel(8);
    let agent = Arc::new(Agent::new(context(dir.path(), session.clone())).unwrap());
    let task: TaskId = id(1);
    let task_dir = agent.context.task_dir(&task);
    let mut all = chain(&task, id(2), 3);
    all.push(end(&all));
    write(&task_dir, "audit", &all);
    fs::write(task_dir.join(SENT_FILE), "1").unwrap();
    set_aside(dir.path(), &task_dir, &task).unwrap();
    remove_dir(&task_dir).unwrap();
    let sending = tokio::spawn({
        let agent = Arc::clone(&agent);
        async move { agent.send_audit().await }
    });
    let Ok(Some(FromAgent::Audit { batch, portions })) = timeout(PATIENCE, sent.recv()).await
    else {
        panic!("nothing was sent")
    };
    assert_eq!(portions, [Portion { node: id(3), task, bodies: all[1..].to_vec() }]);
    agent.mail.is_stored(batch);
    let aside = unsent_dir(dir.path()).join(task.as_str());
    let wait = async {
        while aside.exists() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok());
    sending.abort();
    drop(session);
}

#[test]
fn older_files_are_put_aside_without_a_newest_one() {
    let dir = tempfile::tempdir().unwrap();
    let (task, task_dir) = (id(1), dir.path().join("task"));
    let all = chain(&task, id(2), 4);
    write(&task_dir, "audit.2", &all[..2]);
    write(&task_dir, "audit.1", &all[2..]);
    set_aside(dir.path(), &task_dir, &task).unwrap();
    let aside = unsent_dir(dir.path()).join(task.as_str());
    assert_eq!(read_new(&aside, Place::default()).unwrap().bodies, all);
    // A task without an audit leaves nothing.
    set_aside(dir.path(), &task_dir, &id(4)).unwrap();
    assert_eq!(directories(&unsent_dir(dir.path())).len(), 1);
}

#[test]
fn what_waits_too_long_gives_way_oldest_first() {
    let dir = tempfile::tempdir().unwrap();
    let tails = tails(dir.path());
    for task in [1u8, 2, 3] {
        let aside = tails.unsent_dir.join(id::<Task>(task).as_str());
        fs::create_dir_all(&aside).unwrap();
        let file = File::create(aside.join(AUDIT_FILE)).unwrap();
        file.set_len(AUDIT_UNSENT_BYTES / 2 - 1).unwrap();
        let at = std::time::UNIX_EPOCH + Duration::from_secs(u64::from(task));
        File::open(&aside).unwrap().set_modified(at).unwrap();
    }
    tails.bound_unsent();
    let left: Vec<_> = directories(&tails.unsent_dir).into_iter().map(|(id, _)| id).collect();
    assert_eq!(left.len(), 2);
    assert!(!left.contains(&id(1)));
}
