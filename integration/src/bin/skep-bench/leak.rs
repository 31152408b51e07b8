//! The leak loop: rounds of services with secrets that are made, updated and removed. After each
//! round everything a node holds is counted; nothing but its log may grow, and memory stays flat.

mod census;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use skep_integration::{Http, Node, Reply, encode_query, settle};

use census::{Census, Place};

/// Longest wait for all tasks of a round to come, change or go.
const BOUND: Duration = Duration::from_secs(180);
/// Descriptors and threads of the daemon more than at first, by chance: connections about to be
/// closed, a segment of the log, threads that wait for more to do.
const SLACK: u64 = 4;
/// Longest wait for a node to come to rest after the last round: threads that have nothing to do
/// end after a while.
const REST: Duration = Duration::from_secs(60);
/// Growth of the daemon's own memory per round that still counts as flat, in KiB: the log keeps
/// an index of what it holds until the next snapshot.
const FLAT_KIB: f64 = 64.0;
/// Rounds that a slope is worth anything of.
const ROUNDS_FOR_SLOPE: usize = 6;

/// What to do.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// How long new rounds are begun
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// At most so many rounds
    #[arg(long)]
    rounds: Option<usize>,
    /// Services of a round
    #[arg(long, default_value_t = 50)]
    services: usize,
    /// Secrets of each service
    #[arg(long, default_value_t = 5)]
    secrets: usize,
    /// The socket of a node that runs already and has the image `busybox`; else one is started
    #[arg(long)]
    socket: Option<PathBuf>,
}

/// Runs the loop; fails if something leaks.
pub(crate) fn run(options: Options) -> Result<()> {
    let own = match &options.socket {
        Some(_) => None,
        None => {
            let node = Node::start(skep_integration::Options::default())?;
            node.import_busybox()?;
            Some(node)
        }
    };
    let socket = match (&own, &options.socket) {
        (Some(node), _) => node.socket(),
        (None, Some(socket)) => socket.clone(),
        (None, None) => bail!("no node"),
    };
    let place = Place::find(&socket)?;
    let first = Census::take(&place)?;
    print_line(&json!({"round": 0, "census": first.json()}))?;
    let (begun, limit) = (Instant::now(), Duration::from_secs_f64(options.minutes * 60.0));
    let mut taken = Vec::new();
    while begun.elapsed() < limit && options.rounds.is_none_or(|rounds| taken.len() < rounds) {
        let number = taken.len() + 1;
        let round = Round { options: &options, socket: &socket, number };
        let took = round.run().with_context(|| format!("round {number}"))?;
        settle_down(&place, &first)?;
        let census = Census::take(&place)?;
        print_line(&json!({"round": number, "ms": took, "census": census.json()}))?;
        taken.push(census);
    }
    let rest = come_to_rest(&place, &first)?;
    print_line(&json!({"round": "rest", "census": rest.json()}))?;
    let verdict = Verdict::of(&first, &taken, &rest);
    print_line(&verdict.json(&taken, begun.elapsed()))?;
    ensure!(verdict.leaked.is_empty(), "leaked: {:?}", verdict.leaked);
    ensure!(verdict.is_flat(), "memory grows by {:?} KiB per round", verdict.slope);
    Ok(())
}

/// Waits for the last supervisor to leave: the task is gone a little before it. What stays is
/// what the census finds.
fn settle_down(place: &Place, first: &Census) -> Result<()> {
    let calm = || Ok(Census::take(place)?.beyond(first).is_empty());
    let waited = settle("an idle node", Duration::from_secs(30), calm);
    if let Err(error) = waited {
        writeln!(std::io::stderr(), "{error}: {:?}", Census::take(place)?.beyond(first))?;
    }
    Ok(())
}

/// Waits until the node holds no more than before the first round.
fn come_to_rest(place: &Place, first: &Census) -> Result<Census> {
    let calm = || {
        let census = Census::take(place)?;
        Ok(Verdict::of(first, &[], &census).leaked.is_empty())
    };
    // What is still there then is the verdict's to name.
    settle("rest", REST, calm).ok();
    Census::take(place)
}

fn print_line(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// One round.
struct Round<'a> {
    options: &'a Options,
    socket: &'a std::path::Path,
    number: usize,
}

impl Round<'_> {
    /// How long its parts took, in milliseconds.
    fn run(&self) -> Result<BTreeMap<&'static str, u64>> {
        let mut took = BTreeMap::new();
        let mut start = Instant::now();
        let mut lap = |part, start: &mut Instant| {
            took.insert(part, u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX));
            *start = Instant::now();
        };
        let mut services = Vec::new();
        let mut made = Vec::new();
        for service in 0..self.options.services {
            let names = (0..self.options.secrets).map(|secret| format!("{service}-{secret}"));
            let secrets: Vec<_> = names.map(|name| self.secret(&name)).collect::<Result<_>>()?;
            let grants = secrets.iter().map(Secret::grant).collect();
            services.push(self.create(service, grants)?);
            made.extend(secrets);
        }
        self.running(|_| true).context("created")?;
        lap("create", &mut start);
        self.read_all().context("read")?;
        lap("read", &mut start);

        let mut added = Vec::new();
        for (service, id) in services.iter().enumerate() {
            let secret = self.secret(&format!("{service}-new"))?;
            self.swap(id, &secret)?;
            added.push(secret);
        }
        let has_new = |task: &Value| {
            let grants = &task["Spec"]["ContainerSpec"]["Secrets"];
            grants.to_string().contains("-new\"")
        };
        self.running(has_new).context("updated")?;
        lap("update", &mut start);

        for id in &services {
            self.expect("DELETE", &format!("/services/{id}"), None, 200)?;
        }
        for secret in made.iter().chain(&added) {
            self.expect("DELETE", &format!("/secrets/{}", secret.id), None, 204)?;
        }
        settle("the end of all tasks", BOUND, || {
            let is_empty = |path| {
                Ok::<_, anyhow::Error>(self.get(path)?.as_array().is_some_and(Vec::is_empty))
            };
            Ok(is_empty("/tasks")? && is_empty("/containers/json?all=1")?)
        })?;
        lap("remove", &mut start);
        Ok(took)
    }

    fn secret(&self, name: &str) -> Result<Secret> {
        let name = format!("leak-{}-{name}", self.number);
        let body = json!({"Name": name, "Data": STANDARD.encode(&name)});
        let id = self.expect("POST", "/secrets/create", Some(&body), 201)?;
        Ok(Secret { id: id["ID"].as_str().context("ID")?.to_owned(), name })
    }

    fn create(&self, number: usize, secrets: Vec<Value>) -> Result<String> {
        // The first process of a container ignores signals that it does not handle.
        let script = "trap 'exit 0' TERM; while :; do sleep 1000000 & wait; done";
        let body = json!({
            "Name": format!("leak-{}-{number}", self.number),
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": "busybox:latest",
                    "Command": ["sh", "-c", script],
                    "Secrets": secrets,
                    "StopGracePeriod": 1_000_000_000,
                },
            },
            "Mode": {"Replicated": {"Replicas": 1}},
        });
        let made = self.expect("POST", "/services/create", Some(&body), 201)?;
        Ok(made["ID"].as_str().context("ID")?.to_owned())
    }

    /// Puts another secret in the place of a service's first.
    fn swap(&self, service: &str, secret: &Secret) -> Result<()> {
        let found = self.get(&format!("/services/{service}"))?;
        let version = &found["Version"]["Index"];
        let mut spec = found["Spec"].clone();
        let grants = spec["TaskTemplate"]["ContainerSpec"]["Secrets"].as_array_mut();
        let grants = grants.context("no secrets")?;
        grants.pop();
        grants.push(secret.grant());
        let target = format!("/services/{service}/update?version={version}");
        self.expect("POST", &target, Some(&spec), 200).map(drop)
    }

    /// Waits until every service has exactly one task, which runs and is as wanted.
    fn running(&self, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        let filters = encode_query(r#"{"desired-state":["running"]}"#);
        let mut last = String::new();
        let settled = settle("the tasks", BOUND, || {
            let all = self.get(&format!("/tasks?filters={filters}"))?;
            let all = all.as_array().context("no list")?;
            let runs = |task: &&Value| task["Status"]["State"] == "running" && wanted(task);
            let count = all.iter().filter(runs).count();
            last = format!("{count} of {} run", all.len());
            Ok(count == self.options.services && all.len() == count)
        });
        settled.context(last)
    }

    /// Reads every secret of every container, as the host sees it.
    fn read_all(&self) -> Result<()> {
        for task in self.get("/tasks")?.as_array().into_iter().flatten() {
            let status = &task["Status"];
            ensure!(status["State"] == "running", "a task that failed: {status}");
            let pid = &status["ContainerStatus"]["PID"];
            for grant in task["Spec"]["ContainerSpec"]["Secrets"].as_array().into_iter().flatten() {
                let name = grant["SecretName"].as_str().context("SecretName")?;
                let path = format!("/proc/{pid}/root/run/secrets/{name}");
                let read = fs::read(&path).with_context(|| path.clone())?;
                ensure!(read == name.as_bytes(), "{path} has {} bytes", read.len());
            }
        }
        Ok(())
    }

    fn get(&self, path: &str) -> Result<Value> {
        self.expect("GET", path, None, 200)
    }

    fn expect(&self, method: &str, path: &str, body: Option<&Value>, status: u16) -> Result<Value> {
        let mut http = Http::connect(self.socket)?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let reply: Reply = http.request(method, path, "application/json", body.as_bytes())?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        ensure!(reply.status == status, "{method} {path}: {} {text}", reply.status);
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }
}

struct Secret {
    id: String,
    name: String,
}

impl Secret {
    fn grant(&self) -> Value {
        json!({
            "File": {"Name": self.name, "UID": "0", "GID": "0", "Mode": 0o444},
            "SecretID": self.id,
            "SecretName": self.name,
        })
    }
}

/// What the rounds left.
struct Verdict {
    /// By what: how much more than there should be.
    leaked: BTreeMap<String, u64>,
    /// Growth of the daemon's own memory in the last half, in KiB per round.
    slope: Option<f64>,
}

impl Verdict {
    fn of(first: &Census, taken: &[Census], rest: &Census) -> Self {
        let mut leaked = rest.beyond(first);
        for (what, before, after) in [
            ("descriptors", first.descriptors, rest.descriptors),
            ("threads", first.threads, rest.threads),
        ] {
            if after > before + SLACK {
                leaked.insert(what.to_owned(), after - before);
            }
        }
        let half = taken.get(taken.len() / 2..).unwrap_or_default();
        let own: Vec<_> = half.iter().map(|census| census.memory.anonymous as f64).collect();
        let slope = (taken.len() >= ROUNDS_FOR_SLOPE).then(|| slope(&own));
        Self { leaked, slope }
    }

    fn is_flat(&self) -> bool {
        self.slope.is_none_or(|slope| slope <= FLAT_KIB)
    }

    fn json(&self, taken: &[Census], took: Duration) -> Value {
        json!({
            "rounds": taken.len(),
            "seconds": took.as_secs(),
            "leaked": self.leaked,
            "memory_kib_per_round": self.slope.map(|slope| (slope * 10.0).round() / 10.0),
            "flat": self.is_flat(),
        })
    }
}

/// Slope of the straight line nearest to the values at 0, 1, 2, …
fn slope(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let (middle, mean) = ((count - 1.0) / 2.0, values.iter().sum::<f64>() / count);
    let from_middle = |at: usize| at as f64 - middle;
    let rise: f64 =
        values.iter().enumerate().map(|(at, value)| from_middle(at) * (value - mean)).sum();
    let run: f64 = (0..values.len()).map(|at| from_middle(at).powi(2)).sum();
    if run > 0.0 { rise / run } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_of_a_line_is_its_own() {
        assert!((slope(&[1.0, 3.0, 5.0, 7.0]) - 2.0).abs() < 1e-9);
        assert!(slope(&[5.0, 5.0, 5.0]).abs() < 1e-9);
        assert!((slope(&[4.0, 2.0, 0.0]) + 2.0).abs() < 1e-9);
    }
}
