//! Both ends of the streams between nodes, with pipes of memory in between.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::agent::remote::Remote;
use crate::agent::testing::{NODE, Stage, id};
use crate::gate::{ContainerState, LogLine};
use crate::wire::refused::Refused;
use crate::wire::{frame, parse};

const WAIT: Duration = Duration::from_secs(20);
/// Bytes on their way between two nodes.
const WIRE: usize = 8 << 10;

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(WAIT, work).await.expect("it takes too long")
}

/// A stream to the stage's agent.
fn open(stage: &Stage) -> DuplexStream {
    let (ours, theirs) = duplex(WIRE);
    let remote = Remote::new(stage.agent.clone());
    tokio::spawn(async move { remote.serve(theirs).await });
    ours
}

fn config(stdin: bool) -> ExecConfig {
    ExecConfig {
        args: vec!["it".to_owned()],
        stdin,
        stdout: true,
        stderr: true,
        ..ExecConfig::default()
    }
}

async fn created(stage: &Stage, stdin: bool) -> String {
    soon(exec_create(open(stage), &stage.container, config(stdin))).await.unwrap()
}

async fn started(stage: &Stage, id: &str) -> ExecStreams {
    soon(exec_start(open(stage), id, false, None)).await.unwrap()
}

#[tokio::test]
async fn a_container_of_another_node_is_seen_whole() {
    let stage = Stage::new(|_, _| 0);
    let seen = soon(container(open(&stage), stage.task)).await.unwrap();
    assert_eq!(Some(&seen), stage.agent.container(&stage.task).as_ref());
    assert_eq!((seen.id.as_str(), seen.node), (stage.container.as_str(), id(NODE)));
    assert_eq!((seen.state, seen.pid), (ContainerState::Running, 77));
    let none = soon(container(open(&stage), id(1))).await.unwrap_err();
    assert!(matches!(none, Refusal::NotFound(_)), "{none}");
}

#[tokio::test]
async fn input_reaches_the_process_and_its_end_too() {
    let stage = Stage::new(|start, [mut stdin, mut stdout, mut stderr]| {
        assert_eq!(start.args, ["it"]);
        stderr.write_all(b"ready").unwrap();
        drop(stderr);
        std::io::copy(&mut stdin, &mut stdout).unwrap();
        7
    });
    let exec = created(&stage, true).await;
    assert!(exec.ends_with(&crate::agent::exec::mark(&id(NODE))), "{exec}");
    let mut streams = started(&stage, &exec).await;
    let (mut stdin, mut stdout) = (streams.stdin.take().unwrap(), streams.stdout.take().unwrap());
    let mut ready = String::new();
    soon(streams.stderr.take().unwrap().read_to_string(&mut ready)).await.unwrap();
    assert_eq!(ready, "ready");
    let view = soon(exec_inspect(open(&stage), &exec)).await.unwrap();
    assert_eq!((view.running, view.exit_code), (true, None));
    // More than all buffers on the way hold.
    let sent: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let feed = {
        let sent = sent.clone();
        tokio::spawn(async move {
            stdin.write_all(&sent).await.unwrap();
            // Dropped without a word: that, too, is the end.
        })
    };
    let mut came = Vec::new();
    soon(stdout.read_to_end(&mut came)).await.unwrap();
    feed.await.unwrap();
    assert!(came == sent, "{} bytes came of {}", came.len(), sent.len());
    soon(streams.ended).await;
    let view = soon(exec_inspect(open(&stage), &exec)).await.unwrap();
    assert_eq!((view.running, view.exit_code), (false, Some(7)));
    let again = soon(exec_start(open(&stage), &exec, false, None)).await.unwrap_err();
    assert!(matches!(again, Refusal::Conflict(_)), "{again}");
}

#[tokio::test]
async fn a_detached_exec_has_no_streams() {
    let stage = Stage::new(|_, _| 3);
    let exec = created(&stage, true).await;
    let streams = soon(exec_start(open(&stage), &exec, true, None)).await.unwrap();
    assert!(streams.stdin.is_none() && streams.stdout.is_none() && streams.stderr.is_none());
    soon(streams.ended).await;
    soon(exec_resize(open(&stage), &exec, 24, 80)).await.unwrap();
    let none = soon(exec_resize(open(&stage), "nope", 24, 80)).await.unwrap_err();
    assert_eq!(none.to_string(), "No such exec instance: nope");
    let none = soon(exec_create(open(&stage), "nope", config(false))).await.unwrap_err();
    assert!(matches!(none, Refusal::Conflict(_)), "{none}");
}

/// Bytes that the process below got rid of.
static FLOOD: AtomicU64 = AtomicU64::new(0);

#[tokio::test]
async fn a_client_that_reads_slowly_holds_the_process_back() {
    let stage = Stage::new(|_, [_, mut stdout, _]| {
        let chunk = [b'x'; 1 << 10];
        while stdout.write_all(&chunk).is_ok() {
            FLOOD.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        }
        0
    });
    let exec = created(&stage, false).await;
    let mut streams = started(&stage, &exec).await;
    let mut stdout = streams.stdout.take().unwrap();
    let mut first = [0; 1];
    soon(stdout.read_exact(&mut first)).await.unwrap();
    // It stops once every buffer on the way is full: the count stands still.
    let mut before = 0;
    soon(async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = FLOOD.load(Ordering::SeqCst);
            if now == before {
                break;
            }
            before = now;
        }
    })
    .await;
    // A pipe, one piece on each side, the wire.
    assert!(before <= (64 << 10) + 4 * RELAY_PIECE_BYTES as u64 + WIRE as u64, "{before}");
    // A client that leaves lets go of the streams: the process's next write fails, and it ends.
    drop((stdout, streams));
    soon(async {
        while exec_inspect(open(&stage), &exec).await.unwrap().exit_code.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Whether the process below saw the end of its stdin.
static CUT: AtomicBool = AtomicBool::new(false);

#[tokio::test]
async fn a_lost_stream_ends_the_streams_of_both_sides() {
    let stage = Stage::new(|_, [mut stdin, mut stdout, _]| {
        stdout.write_all(b"hi").unwrap();
        let mut rest = Vec::new();
        stdin.read_to_end(&mut rest).unwrap();
        CUT.store(true, Ordering::SeqCst);
        9
    });
    let exec = created(&stage, true).await;
    let (ours, theirs) = duplex(WIRE);
    let remote = Remote::new(stage.agent.clone());
    let serving = tokio::spawn(async move { remote.serve(theirs).await });
    let mut streams = soon(exec_start(ours, &exec, false, None)).await.unwrap();
    let mut stdout = streams.stdout.take().unwrap();
    let mut hi = [0; 2];
    soon(stdout.read_exact(&mut hi)).await.unwrap();
    serving.abort();
    let mut rest = Vec::new();
    soon(stdout.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty());
    soon(streams.ended).await;
    soon(async {
        while !CUT.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_process_that_reads_nothing_does_not_hold_up_its_output() {
    let stage = Stage::new(|_, [stdin, mut stdout, _]| {
        drop(stdin);
        stdout.write_all(&[b'y'; 100_000]).unwrap();
        0
    });
    let exec = created(&stage, true).await;
    let mut streams = started(&stage, &exec).await;
    let mut stdin = streams.stdin.take().unwrap();
    let feed = tokio::spawn(async move { while stdin.write_all(&[1; 4096]).await.is_ok() {} });
    let mut came = Vec::new();
    soon(streams.stdout.take().unwrap().read_to_end(&mut came)).await.unwrap();
    assert_eq!(came.len(), 100_000);
    soon(streams.ended).await;
    soon(feed).await.unwrap();
}

fn write_log(stage: &Stage, lines: impl Iterator<Item = u64>) {
    let dir = stage.dir.path().join("tasks").join(stage.task.as_str()).join("logs");
    std::fs::create_dir_all(&dir).unwrap();
    let text: String = lines
        .map(|n| {
            let time = jiff::Timestamp::from_second(i64::try_from(n).unwrap()).unwrap();
            format!("{{\"log\":\"{n}\\n\",\"stream\":\"stdout\",\"time\":\"{time}\"}}\n")
        })
        .collect();
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.append(true).create(true).open(dir.join("json.log")).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn text(line: Option<Logged>) -> String {
    String::from_utf8(line.expect("a line").expect("no gap").bytes).unwrap()
}

#[tokio::test]
async fn logs_come_in_order_and_go_on() {
    let stage = Stage::new(|_, _| 0);
    write_log(&stage, 1..=1000);
    let query = LogQuery { stdout: true, ..LogQuery::default() };
    let read = |query| logs(open(&stage), id(NODE), vec![stage.task, id(4)], query);
    let lines: Vec<Logged> = soon(soon(read(query.clone())).await.unwrap().collect()).await;
    let lines: Vec<String> = lines.into_iter().map(|line| text(Some(line))).collect();
    assert_eq!(lines, (1..=1000).map(|n| format!("{n}\n")).collect::<Vec<_>>());
    let follow = LogQuery { follow: true, tail: Some(1), ..query };
    let mut lines = soon(read(follow)).await.unwrap();
    assert_eq!(text(soon(lines.next()).await), "1000\n");
    write_log(&stage, 1001..=1001);
    assert_eq!(text(soon(lines.next()).await), "1001\n");
}

#[tokio::test]
async fn a_log_that_breaks_off_says_so() {
    let stage = Stage::new(|_, _| 0);
    write_log(&stage, 1..=1);
    let (ours, theirs) = duplex(WIRE);
    let remote = Remote::new(stage.agent.clone());
    let serving = tokio::spawn(async move { remote.serve(theirs).await });
    let query = LogQuery { stdout: true, follow: true, ..LogQuery::default() };
    let mut lines = soon(logs(ours, id(NODE), vec![stage.task], query)).await.unwrap();
    assert_eq!(text(soon(lines.next()).await), "1\n");
    serving.abort();
    let gap = soon(lines.next()).await.unwrap().unwrap_err();
    assert_eq!((gap.node, gap.tasks), (id(NODE), vec![stage.task]));
    assert!(soon(lines.next()).await.is_none());
}

/// A node that answers with these bytes.
fn answering(bytes: Vec<u8>) -> DuplexStream {
    let (ours, mut theirs) = duplex(WIRE);
    tokio::spawn(async move {
        // The asker may have heard enough.
        let _ = theirs.write_all(&bytes).await;
        let mut rest = Vec::new();
        let _ = theirs.read_to_end(&mut rest).await;
    });
    ours
}

#[tokio::test]
async fn a_node_that_lies_is_not_believed() {
    // A message that would fill the memory is not even made room for.
    let long = u32::MAX.to_be_bytes().to_vec();
    let error = soon(container(answering(long), id(9))).await.unwrap_err();
    assert!(format!("{error:?}").contains("TooLong"), "{error:?}");
    let error = soon(exec_inspect(answering(frame(&Answer::Lines)), "x")).await.unwrap_err();
    assert!(format!("{error:?}").contains("Unexpected"), "{error:?}");
    // Lines of a task that was not asked for.
    let line =
        LogLine { task: id(8), at: Default::default(), stderr: false, bytes: b"forged".to_vec() };
    let said = [frame(&Answer::Lines), frame(&Piece::Line(line))].concat();
    let query = LogQuery::default();
    let mut lines = soon(logs(answering(said), id(3), vec![id(9)], query)).await.unwrap();
    assert!(soon(lines.next()).await.unwrap().is_err());
    // Output of a stream that the process does not have goes nowhere, and harms nothing.
    let answer = Answer::Started { stdin: false, stdout: true, stderr: false };
    let pieces = [Piece::Stderr(vec![1; 9]), Piece::Stdout(b"ok".to_vec()), Piece::End];
    let mut said = frame(&answer);
    said.extend(pieces.iter().flat_map(frame));
    let mut streams = soon(exec_start(answering(said), "x", false, None)).await.unwrap();
    let mut came = Vec::new();
    soon(streams.stdout.take().unwrap().read_to_end(&mut came)).await.unwrap();
    assert_eq!(came, b"ok");
}

#[tokio::test]
async fn a_silent_side_is_given_up() {
    let stage = Stage::new(|_, _| 0);
    let remote = Remote::new(stage.agent.clone());
    let ((ours, _theirs), (_others, theirs)) = (duplex(WIRE), duplex(WIRE));
    let (asked, served) =
        soon(async { tokio::join!(container(ours, id(9)), remote.serve(theirs)) }).await;
    let error = asked.unwrap_err();
    assert!(format!("{error:?}").contains("Silent"), "{error:?}");
    assert!(matches!(served, Err(WireError::Silent(_))), "{served:?}");
}

#[tokio::test]
async fn an_asker_that_lies_is_cut_off() {
    let stage = Stage::new(|_, _| 0);
    let asks: [&[u8]; 4] = [&[0xff; 64], &[0, 0, 0, 1, 0xff], &[0, 0, 0, 0], &[0, 0]];
    for bytes in asks {
        let (mut ours, theirs) = duplex(WIRE);
        ours.write_all(bytes).await.unwrap();
        ours.shutdown().await.unwrap();
        let served = soon(Remote::new(stage.agent.clone()).serve(theirs)).await;
        assert!(served.is_err(), "{bytes:?}");
    }
}

#[test]
fn messages_read_back_as_they_were() {
    let query = LogQuery { follow: true, tail: Some(5), stderr: true, ..LogQuery::default() };
    let asks = [
        Ask::Container { task: id(9) },
        Ask::ExecCreate { container: "c".to_owned(), config: config(true) },
        Ask::ExecStart { id: "e".to_owned(), detach: true, size: Some((24, 80)) },
        Ask::ExecInspect { id: "e".to_owned() },
        Ask::ExecResize { id: "e".to_owned(), rows: 1, cols: 2 },
        Ask::Logs { tasks: vec![id(9)], query },
    ];
    for ask in asks {
        assert_eq!(parse::<Ask>(&frame(&ask)[4..]).unwrap(), ask);
    }
    let refused: [fn(String) -> Refused; 5] = [
        Refused::Invalid,
        Refused::NotFound,
        Refused::Conflict,
        Refused::Unsupported,
        Refused::Failed,
    ];
    for make in refused {
        let answer = Answer::Refused(make("why".to_owned()));
        assert_eq!(parse::<Answer>(&frame(&answer)[4..]).unwrap(), answer);
    }
    let refusal = Refusal::from(Refused::from(failed("cannot", std::io::Error::other("disk"))));
    assert!(format!("{refusal:?}").contains("cannot: disk"), "{refusal:?}");
}
