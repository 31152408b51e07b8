use std::io::Write as _;

use skep_core::id::{ENTROPY_LEN, Id};

use super::*;

const WAIT: Duration = Duration::from_secs(10);

fn task(n: u8) -> TaskId {
    Id::from_entropy([n; ENTROPY_LEN])
}

/// A log as a shim writes it; `n` is seconds since the epoch and the text.
fn line(n: u64, stream: &str) -> String {
    let time = jiff::Timestamp::from_second(i64::try_from(n).unwrap()).unwrap();
    format!("{{\"log\":\"{n}\\n\",\"stream\":\"{stream}\",\"time\":\"{time}\"}}\n")
}

struct Log {
    dir: tempfile::TempDir,
    ended: watch::Sender<bool>,
    task: TaskId,
}

impl Log {
    fn new(n: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("logs")).unwrap();
        Self { dir, ended: watch::Sender::new(false), task: task(n) }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.dir.path().join(format!("logs/json.log{suffix}"))
    }

    fn append(&self, text: &str) {
        let mut file =
            fs::OpenOptions::new().append(true).create(true).open(self.path("")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn rotate(&self) {
        if self.path(".1").exists() {
            fs::rename(self.path(".1"), self.path(".2")).unwrap();
        }
        fs::rename(self.path(""), self.path(".1")).unwrap();
    }

    fn source(&self) -> LogSource {
        let ended = self.ended.subscribe();
        LogSource { task: self.task, task_dir: self.dir.path().to_owned(), ended }
    }
}

fn both() -> LogQuery {
    LogQuery { stdout: true, stderr: true, ..LogQuery::default() }
}

fn number(line: &LogLine) -> u64 {
    String::from_utf8(line.bytes.clone()).unwrap().trim().parse().unwrap()
}

async fn all(sources: Vec<LogSource>, query: LogQuery) -> Vec<u64> {
    let lines = read(sources, query).map(|line| number(&line)).collect::<Vec<_>>();
    tokio::time::timeout(WAIT, lines).await.unwrap()
}

async fn next(stream: &mut BoxStream<'static, LogLine>) -> Option<u64> {
    tokio::time::timeout(WAIT, stream.next()).await.unwrap().map(|line| number(&line))
}

#[tokio::test]
async fn lines_of_rotated_files_come_in_order_and_filtered() {
    let log = Log::new(1);
    log.append(&(line(1, "stdout") + &line(2, "stderr")));
    log.rotate();
    log.append(&line(3, "stdout"));
    log.rotate();
    log.append(&(line(4, "stderr") + "no json\n" + &line(5, "stdout") + "{\"log\":\"torn"));
    let one = || vec![log.source()];
    assert_eq!(all(one(), both()).await, [1, 2, 3, 4, 5]);
    assert_eq!(all(one(), LogQuery { stderr: false, ..both() }).await, [1, 3, 5]);
    let since = Stamp(2_000_000_000);
    let until = Stamp(4_000_000_000);
    assert_eq!(all(one(), LogQuery { since, until, ..both() }).await, [2, 3, 4]);
    for (tail, lines) in
        [(0, &[][..]), (1, &[5]), (3, &[3, 4, 5]), (5, &[1, 2, 3, 4, 5]), (9, &[1, 2, 3, 4, 5])]
    {
        assert_eq!(all(one(), LogQuery { tail: Some(tail), ..both() }).await, lines);
    }
}

#[tokio::test]
async fn several_tasks_are_merged_by_time_and_tails_are_per_task() {
    let (a, b) = (Log::new(1), Log::new(2));
    a.append(&(line(1, "stdout") + &line(4, "stdout")));
    b.append(&(line(2, "stdout") + &line(3, "stdout") + &line(5, "stdout")));
    let sources = || vec![a.source(), b.source()];
    assert_eq!(all(sources(), both()).await, [1, 2, 3, 4, 5]);
    assert_eq!(all(sources(), LogQuery { tail: Some(1), ..both() }).await, [4, 5]);
    let lines: Vec<_> = read(sources(), both()).collect().await;
    assert_eq!((lines[0].task, lines[1].task), (task(1), task(2)));
    let missing = Log::new(3);
    fs::remove_dir_all(missing.dir.path().join("logs")).unwrap();
    assert!(all(vec![missing.source()], both()).await.is_empty());
}

#[tokio::test]
async fn following_sees_new_lines_across_rotations_and_ends_with_the_task() {
    let log = Log::new(1);
    let query = LogQuery { follow: true, tail: Some(1), ..both() };
    log.append(&(line(1, "stdout") + &line(2, "stdout")));
    let mut stream = read(vec![log.source()], query);
    assert_eq!(next(&mut stream).await, Some(2));
    let three = line(3, "stdout");
    log.append(&three[..10]);
    log.append(&three[10..]);
    assert_eq!(next(&mut stream).await, Some(3));
    log.append(&line(4, "stdout"));
    log.rotate();
    log.append(&line(5, "stdout"));
    log.rotate();
    log.append(&line(6, "stdout"));
    for n in 4..=6 {
        assert_eq!(next(&mut stream).await, Some(n));
    }
    log.append(&line(7, "stdout"));
    log.ended.send_replace(true);
    assert_eq!(next(&mut stream).await, Some(7));
    assert_eq!(next(&mut stream).await, None);
}

#[tokio::test]
async fn a_log_that_is_not_there_yet_is_followed() {
    let log = Log::new(1);
    let mut stream = read(vec![log.source()], LogQuery { follow: true, ..both() });
    let mut waiting = Box::pin(next(&mut stream));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    log.append(&line(1, "stderr"));
    assert_eq!(waiting.await, Some(1));
}

#[tokio::test]
async fn following_ends_at_its_last_moment_and_when_nobody_tells_the_end() {
    let log = Log::new(1);
    log.append(&line(1, "stdout"));
    let until = Stamp(1_000_000_000);
    assert_eq!(all(vec![log.source()], LogQuery { follow: true, until, ..both() }).await, [1]);
    let source = log.source();
    drop(log.ended);
    assert_eq!(all(vec![source], LogQuery { follow: true, ..both() }).await, [1]);
}

#[test]
fn a_log_of_one_file_starts_over() {
    let log = Log::new(1);
    log.append(&(line(1, "stdout") + &line(2, "stdout")));
    let mut reader = Reader::new(log.task, log.path(""));
    let mut next = || reader.next(&both()).map(|line| number(&line));
    assert_eq!((next(), next(), next()), (Some(1), Some(2), None));
    fs::write(log.path(""), line(3, "stdout")).unwrap();
    assert_eq!((next(), next()), (Some(3), None));
}

#[test]
fn an_endless_line_is_skipped_without_being_kept() {
    let log = Log::new(1);
    log.append(&("x".repeat(3 * FILE_LINE_BYTES) + "\n" + &line(1, "stdout")));
    let mut reader = Reader::new(log.task, log.path(""));
    assert_eq!(reader.next(&both()).map(|line| number(&line)), Some(1));
    assert!(reader.partial.capacity() <= 2 * FILE_LINE_BYTES + 2);
}
