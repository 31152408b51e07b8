//! Secrets that live, shown on three nodes: every command with what it printed, and after each
//! whether the swarm did what it says. The first thing that is not so ends it with status 1.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use skep_integration::{Cluster, ClusterOptions, Output, Placed, Seen, look, name_of, settle};

/// Longest wait for anything that the swarm does by itself.
const BOUND: Duration = Duration::from_secs(15);
/// A new version is read this long after the command was started, at most, on any node.
const PROMPT: Duration = Duration::from_secs(1);
/// The node that is cut off: a worker, so that the managers go on.
const CUT: usize = 2;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(std::io::stderr(), "\nskep-demo: not as it should be: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let began = Instant::now();
    title("three nodes: two managers and a worker, each in a network of its own")?;
    let options = ClusterOptions { managers: 2, workers: 1, ..ClusterOptions::default() };
    let demo = Demo { cluster: Cluster::start(options)? };
    demo.ok(0, &["node", "ls"])?;
    let app = demo.create()?;
    demo.update(&app)?;
    demo.update_set(&app)?;
    demo.pin()?;
    demo.history(&app)?;
    demo.revoke(&app)?;
    demo.cut_off(&app)?;
    demo.audit(&app)?;
    demo.inspect()?;
    demo.rotate_key(&app)?;
    demo.remove_node(&app)?;
    title(&format!("all of it was so; {:.1} s", began.elapsed().as_secs_f64()))
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

fn title(text: &str) -> Result<()> {
    print(&format!("\n== {text}"))
}

/// What was found to be so.
fn found(text: &str) -> Result<()> {
    print(&format!("   -> {text}"))
}

/// Tells what is so, or ends the demonstration.
fn check(is_so: bool, text: &str) -> Result<()> {
    ensure!(is_so, "{text}");
    found(text)
}

/// The container of one task, as its host sees it.
struct Holder {
    placed: Placed,
    seen: Seen,
}

impl Holder {
    fn path(&self, secret: &str) -> PathBuf {
        self.seen.path(&format!("/run/secrets/{secret}"))
    }

    fn read(&self, secret: &str) -> Result<String> {
        let path = self.path(secret);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    fn reads(&self, secret: &str, text: &str) -> bool {
        self.read(secret).is_ok_and(|read| read == text)
    }

    fn inode(&self, secret: &str) -> Result<u64> {
        Ok(self.path(secret).metadata()?.ino())
    }
}

struct Demo {
    cluster: Cluster,
}

impl Demo {
    /// Runs a command on a node and prints both.
    fn run(&self, at: usize, args: &[&str], input: &str) -> Result<Output> {
        let words: Vec<String> = args.iter().map(|word| quoted(word)).collect();
        let line = format!("skep {}", words.join(" "));
        let piped = if input.is_empty() { line } else { format!("printf %s '{input}' | {line}") };
        print(&format!("{}# {piped}", name_of(at)))?;
        let out = self.cluster.node(at).skep().run_with(args, input.as_bytes())?;
        for text in [&out.stdout, &out.stderr] {
            if !text.trim_end().is_empty() {
                print(text.trim_end())?;
            }
        }
        Ok(out)
    }

    fn ok(&self, at: usize, args: &[&str]) -> Result<Output> {
        self.ok_with(at, args, "")
    }

    fn ok_with(&self, at: usize, args: &[&str], input: &str) -> Result<Output> {
        let out = self.run(at, args, input)?;
        ensure!(out.code == 0, "exit status {}", out.code);
        Ok(out)
    }

    /// Makes a service of busybox and waits for its tasks.
    fn service(&self, name: &str, flags: &[&str], command: &[&str]) -> Result<Vec<Holder>> {
        let fixed =
            ["service", "create", "--detach", "--stop-grace-period", "100ms", "--name", name];
        self.ok(0, &[&fixed, flags, &["busybox:latest"], command].concat())?;
        self.holders(name)
    }

    fn holders(&self, service: &str) -> Result<Vec<Holder>> {
        let placed = self.cluster.await_converged(0, service)?;
        let holder = |placed: Placed| {
            let seen = look(self.cluster.node(placed.node), &placed.container)?;
            Ok(Holder { placed, seen })
        };
        placed.into_iter().map(holder).collect()
    }

    /// Whether these are the very containers that run still.
    fn is_untouched(&self, app: &[Holder]) -> Result<bool> {
        let now = self.cluster.placed(0, "app")?;
        let before: Vec<&Placed> = app.iter().map(|holder| &holder.placed).collect();
        Ok(now.iter().collect::<Vec<_>>() == before && !app.iter().any(|one| one.seen.is_dead()))
    }

    /// Gives a secret a new version, and waits until every task of the service reads it.
    fn give(&self, app: &[Holder], secret: &str, text: &str) -> Result<()> {
        self.ok_with(1, &["secret", "update", secret, "-"], text)?;
        settle("the new version", BOUND, || Ok(app.iter().all(|one| one.reads(secret, text))))
    }

    fn create(&self) -> Result<Vec<Holder>> {
        title("a service on all three nodes that is granted three secrets")?;
        for (name, text) in [("db", "db 1"), ("tls_key", "key 1"), ("tls_cert", "cert 1")] {
            self.ok_with(0, &["secret", "create", name, "-"], text)?;
        }
        let grants = ["--secret", "db", "--secret", "tls_key", "--secret", "tls_cert"];
        let flags = [&["--replicas", "3"][..], &grants].concat();
        let app = self.service("app", &flags, &["sleep", "1000000"])?;
        let nodes: BTreeSet<usize> = app.iter().map(|holder| holder.placed.node).collect();
        check(nodes.len() == 3, "its tasks run on three nodes")?;
        for one in &app {
            let cat = ["exec", &one.placed.container, "cat", "/run/secrets/db"];
            let out = self.ok(one.placed.node, &cat)?;
            ensure!(out.stdout == "db 1", "{out:?}");
        }
        Ok(app)
    }

    fn update(&self, app: &[Holder]) -> Result<()> {
        title("a new version reaches them in place; another service is sent a signal for it")?;
        let script = "trap 'echo reloaded: $(cat /run/secrets/db)' HUP; \
                      while :; do sleep 1 & wait; done";
        let grant = "source=db,on-change=signal:SIGHUP";
        let reloader = self.service("reloader", &["--secret", grant], &["sh", "-c", script])?;
        let inodes: Vec<u64> = app.iter().map(|one| one.inode("db")).collect::<Result<_>>()?;
        let mut held = app.first().context("no task")?.seen.open("/run/secrets/db")?;
        let began = Instant::now();
        let times = thread::scope(|scope| {
            let await_it = |one: &Holder| -> Result<Duration> {
                while !one.reads("db", "db 2") {
                    ensure!(began.elapsed() < BOUND, "not within {BOUND:?}");
                    thread::sleep(Duration::from_micros(200));
                }
                Ok(began.elapsed())
            };
            let readers: Vec<_> =
                app.iter().map(|one| scope.spawn(move || await_it(one))).collect();
            let told = self.ok_with(1, &["secret", "update", "db", "-"], "db 2");
            let times = readers.into_iter().map(|reader| match reader.join() {
                Ok(time) => time,
                Err(_) => bail!("a reader panicked"),
            });
            let times = times.collect::<Result<Vec<_>>>()?;
            told.map(|_| times)
        })?;
        for (one, time) in app.iter().zip(&times) {
            let ms = time.as_secs_f64() * 1e3;
            let text = format!(
                "{} read it {ms:.1} ms after the command was started",
                name_of(one.placed.node)
            );
            check(*time < PROMPT, &text)?;
        }
        check(self.is_untouched(app)?, "the containers are the same as before")?;
        let now: Vec<u64> = app.iter().map(|one| one.inode("db")).collect::<Result<_>>()?;
        check(inodes == now, &format!("the files are the same as before: inodes {now:?}"))?;
        let mut text = String::new();
        held.read_to_string(&mut text)?;
        check(text == "db 1", "a file opened before still reads the version that it opened")?;
        let mut logs = String::new();
        settle("the signal", BOUND, || {
            logs = self.cluster.node(0).skep().ok(&["service", "logs", "--raw", "reloader"])?;
            Ok(logs.contains("reloaded: db 2"))
        })?;
        self.ok(0, &["service", "logs", "reloader"])?;
        check(!reloader.iter().any(|one| one.seen.is_dead()), "the signalled process runs on")
    }

    fn update_set(&self, app: &[Holder]) -> Result<()> {
        title("two secrets that belong together change together")?;
        let mut args = vec!["secret".to_owned(), "update".to_owned()];
        for (name, text) in [("tls_key", "key 2"), ("tls_cert", "cert 2")] {
            let file = self.cluster.root().join(name);
            fs::write(&file, text)?;
            args.push(format!("{name}={}", file.display()));
        }
        self.ok(0, &args.iter().map(String::as_str).collect::<Vec<_>>())?;
        let both = |one: &Holder| {
            one.reads("..current/tls_key", "key 2") && one.reads("..current/tls_cert", "cert 2")
        };
        settle("both", BOUND, || Ok(app.iter().all(both)))?;
        let one = app.first().context("no task")?;
        let list = ["exec", &one.placed.container, "ls", "-la", "/run/secrets"];
        self.ok(one.placed.node, &list)?;
        found("whoever reads both through ..current gets a pair that belongs together")
    }

    fn pin(&self) -> Result<()> {
        title("a grant that is pinned to a version stays there")?;
        self.ok_with(0, &["secret", "create", "api", "-"], "api 1")?;
        let holder =
            self.service("pinned", &["--secret", "source=api@1"], &["sleep", "1000000"])?;
        let after = self.service("following", &["--secret", "api"], &["sleep", "1000000"])?;
        self.give(&after, "api", "api 2")?;
        check(holder.iter().all(|one| one.reads("api", "api 1")), "the pinned one reads api 1")?;
        check(after.iter().all(|one| one.reads("api", "api 2")), "the other one reads api 2")
    }

    fn history(&self, app: &[Holder]) -> Result<()> {
        title("who made which version, and back to an earlier one")?;
        let out = self.ok(1, &["secret", "history", "db"])?;
        ensure!(out.stdout.lines().count() == 3, "two versions and a head were to be seen");
        self.ok(1, &["secret", "rollback", "db"])?;
        settle("the first bytes", BOUND, || Ok(app.iter().all(|one| one.reads("db", "db 1"))))?;
        found("all tasks read the first bytes again, as version 3: versions never go back")?;
        self.ok(1, &["secret", "history", "db"]).map(drop)
    }

    fn revoke(&self, app: &[Holder]) -> Result<()> {
        title("a service loses a secret at once, and runs on")?;
        let one = app.first().context("no task")?;
        let held = one.seen.open("/run/secrets/db")?;
        let mut byte = [0; 1];
        ensure!(held.read_at(&mut byte, 0)? == 1, "an open file does not read");
        self.ok(0, &["secret", "revoke", "db", "--service", "app"])?;
        let why = held.read_at(&mut byte, 0).err().context("the open file still reads")?;
        found(&format!("a file that was opened before: {why}"))?;
        let cat = ["exec", &one.placed.container, "cat", "/run/secrets/db"];
        let refused = self.run(one.placed.node, &cat, "")?;
        check(refused.code != 0, "nothing reads it any more, by a new file either")?;
        check(app.iter().all(|one| File::open(one.path("db")).is_err()), "nor on any other node")?;
        check(self.is_untouched(app)?, "the containers run on")?;
        let others = self.holders("reloader")?;
        check(others.iter().all(|one| one.reads("db", "db 1")), "the other service reads it")?;
        self.give(app, "db", "db 4")?;
        found("a new version gives it back")
    }

    fn cut_off(&self, app: &[Holder]) -> Result<()> {
        let name = name_of(CUT);
        title(&format!("{name} is cut off while the secret is revoked"))?;
        let (away, here): (Vec<_>, Vec<_>) = app.iter().partition(|one| one.placed.node == CUT);
        let away = *away.first().context("no task on the node that is cut off")?;
        self.cluster.isolate(CUT)?;
        let out = self.run(0, &["secret", "revoke", "db", "--service", "app"], "")?;
        let said = out.stdout.clone() + &out.stderr;
        check(out.code != 0, "the command says by its exit status that it is not so everywhere")?;
        check(said.contains(&name), &format!("and names {name}, where it stays readable"))?;
        check(here.iter().all(|one| File::open(one.path("db")).is_err()), "elsewhere it is gone")?;
        check(away.reads("db", "db 4"), &format!("{name} reads it still"))?;
        self.cluster.heal()?;
        let began = Instant::now();
        settle("the revocation", BOUND, || Ok(File::open(away.path("db")).is_err()))?;
        let s = began.elapsed().as_secs_f64();
        found(&format!("back in the swarm for {s:.1} s, {name} has caught up: nothing reads it"))?;
        self.give(app, "db", "db 5")?;
        check(self.is_untouched(app)?, "a new version gives it back to all; the containers run on")
    }

    fn audit(&self, app: &[Holder]) -> Result<()> {
        title("who has read it: the executable is what the process claims to be")?;
        let one = app.first().context("no task")?;
        let cat = ["exec", "--user", "2000", &one.placed.container, "cat", "/run/secrets/db"];
        self.ok(one.placed.node, &cat)?;
        settle("the record", BOUND, || {
            let told = self.cluster.node(1).skep().ok(&["secret", "audit", "db"])?;
            Ok(told.lines().any(|line| line.split_whitespace().any(|word| word == "2000")))
        })?;
        let told = self.ok(1, &["secret", "audit", "db"])?.stdout.to_lowercase();
        check(told.contains("claim"), "user 2000's read is there, from another node's manager")?;
        self.ok(1, &["secret", "audit", "db", "--verify"])?;
        found("the records are whole and unchanged")
    }

    fn inspect(&self) -> Result<()> {
        title("where it is readable now, how it is sealed, and which versions may go")?;
        let told = self.ok(0, &["secret", "inspect", "db"])?.stdout;
        check(told.contains("AES-256-GCM-SIV"), "the cipher, its key and the holders are named")?;
        self.ok(0, &["secret", "prune", "--force", "--keep", "1", "db"])?;
        let left = self.ok(0, &["secret", "history", "--quiet", "db"])?;
        check(left.text().lines().count() == 1, "one version is left: the latest")
    }

    fn rotate_key(&self, app: &[Holder]) -> Result<()> {
        title("everything is sealed with a new key, and the old one is purged")?;
        let told = self.ok(1, &["swarm", "rotate-key"])?.stdout;
        check(told.contains("every manager"), "no manager has the old key")?;
        check(app.iter().all(|one| one.reads("db", "db 5")), "all tasks read on")?;
        check(self.is_untouched(app)?, "the containers are the same as before")
    }

    fn remove_node(&self, app: &[Holder]) -> Result<()> {
        let name = name_of(CUT);
        title(&format!("{name} is lost and removed: what stays readable there is said"))?;
        self.cluster.isolate(CUT)?;
        settle("the node to be down", BOUND, || {
            let node = self.cluster.node(0).get(&format!("/nodes/{name}"))?;
            Ok(node["Status"]["State"] == "down")
        })?;
        let out = self.ok(0, &["node", "rm", "--force", &name])?;
        let said = out.stdout.clone() + &out.stderr;
        check(said.contains("db"), "the secrets that it held are named")?;
        let away = app.iter().find(|one| one.placed.node == CUT).context("no task there")?;
        check(away.reads("db", "db 5"), &format!("{name} reads on, as was said: change them"))
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
