//! Everything that can go wrong with a task, a test each: what the user is told, in which state
//! the task ends, and that nothing of it is left but its history.

mod logs;
mod memory;
mod mounts;
mod runtime;
mod shims;
mod starts;
mod stops;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skep_integration::{
    Bench, Node, Options, Program, cgroups_of, mounts_naming, processes_of, settle, task, tasks_of,
    wait_until,
};

const BOUND: Duration = Duration::from_secs(60);

/// A node with the busybox image.
fn node(options: Options) -> Result<Node> {
    let node = Node::start(options)?;
    node.import_busybox()?;
    Ok(node)
}

fn bench(node: &Node) -> Bench<'_> {
    Bench::new(node, Program::Skep, "own".to_owned())
}

/// A service with a secret whose task is not followed by another.
fn once(bench: &Bench<'_>, base: &str, flags: &[&str], command: &[&str]) -> Result<String> {
    let secret = bench.secret(base, "none of your business")?;
    let fixed = ["--restart-condition", "none", "--secret", &secret];
    bench.service(base, &[&fixed, flags].concat(), command)
}

/// A task that is over.
#[derive(Debug)]
struct Over {
    task: String,
    status: Value,
    /// As inspect shows it; null if there never was one.
    container: Value,
}

impl Over {
    fn code(&self) -> i64 {
        self.status["ContainerStatus"]["ExitCode"].as_i64().unwrap_or_default()
    }
}

/// Waits until a service's first task has ended in `state`, and checks that everybody is told
/// the same: `err`, whole or up to its `…` and from there on.
fn ends(bench: &Bench<'_>, service: &str, state: &str, err: &str) -> Result<Over> {
    let mut last = Vec::new();
    let found = wait_until("the end of the task", BOUND, || {
        last = tasks_of(bench.node, service)?;
        last.sort_by_key(|task| task["CreatedAt"].to_string());
        let ended = last.first().filter(|task| {
            ["complete", "failed", "rejected", "shutdown"]
                .map(Value::from)
                .contains(&task["Status"]["State"])
        });
        Ok(ended.cloned())
    });
    let found = found.with_context(|| format!("{last:?}"))?;
    let status = found["Status"].clone();
    let said = status["Err"].as_str().unwrap_or_default();
    ensure!(status["State"] == state, "{state}? {status}");
    let (begin, end) = err.split_once('…').unwrap_or((err, ""));
    let is_whole = err.contains('…') || said == err;
    ensure!(is_whole && said.starts_with(begin) && said.ends_with(end), "{err:?}?\n{said:?}");

    let table = bench.cli.ok(&["service", "ps", "--no-trunc", service])?;
    ensure!(said.is_empty() || table.contains(&format!("\"{said}\"")), "{said:?}?\n{table}");
    let task = found["ID"].as_str().context("ID")?.to_owned();
    let id = status["ContainerStatus"]["ContainerID"].as_str().unwrap_or_default();
    let container = if id.is_empty() {
        Value::Null
    } else {
        let shown = bench.inspect("container", id)?;
        let now = &shown["State"];
        ensure!(now["Status"] == "exited" && now["Running"] == false && now["Pid"] == 0, "{now}");
        ensure!(now["ExitCode"] == status["ContainerStatus"]["ExitCode"], "{now} {status}");
        shown
    };
    nothing_left(bench.node, &task).with_context(|| table)?;
    Ok(Over { task, status, container })
}

/// Waits until a task holds nothing on its host but its directory: no process, cgroup, mount, run
/// directory, runtime state.
fn nothing_left(node: &Node, task: &str) -> Result<()> {
    let id = fs::read_to_string(node.root().join("node-id"))?;
    let mut left = Vec::new();
    let gone = settle("the end of what is left", BOUND, || {
        left = mounts_naming(&node.root().display().to_string())?;
        let own = |args: &[String]| args.iter().any(|arg| arg.contains(task));
        let processes = processes_of(node)?.into_iter().filter(|process| own(&process.args));
        left.extend(processes.map(|process| format!("{process:?}")));
        let names = [task.to_owned(), format!("shim-{task}")];
        let groups = cgroups_of(&id)?.into_iter();
        let groups =
            groups.flat_map(|top| names.iter().map(move |name| top.join(name)).collect::<Vec<_>>());
        let dirs = [node.run_root().join("tasks").join(task)];
        left.extend(groups.chain(dirs).filter(|p| p.exists()).map(|p| p.display().to_string()));
        left.extend(runtime_state(node, task)?);
        Ok(left.is_empty())
    });
    gone.with_context(|| format!("{left:?}"))
}

/// What the runtime keeps of a task's container.
fn runtime_state(node: &Node, task: &str) -> Result<Vec<String>> {
    let containers = node.get("/containers/json?all=1")?;
    let ids = containers.as_array().into_iter().flatten();
    let own = ids.filter(|one| one["Labels"]["com.docker.swarm.task.id"] == task);
    let ids = own.filter_map(|one| one["Id"].as_str());
    let paths = ids.map(|id| node.run_root().join("runc").join(id));
    Ok(paths.filter(|path| path.exists()).map(|path| path.display().to_string()).collect())
}

/// The state and error of a service's one task.
fn told(node: &Node, service: &str) -> Result<(String, String)> {
    let all = tasks_of(node, service)?;
    let status = &all.first().context("no task")?["Status"];
    let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
    Ok((text("State"), text("Err")))
}

/// Waits for a line of a service's output.
fn says(bench: &Bench<'_>, service: &str, text: &str) -> Result<()> {
    settle(text, BOUND, || {
        let out = bench.cli.run(&["service", "logs", "--raw", service])?;
        Ok(out.stdout.contains(text) || out.stderr.contains(text))
    })
}

/// The status of one task of a service.
fn status_of(node: &Node, service: &str, id: &str) -> Result<Value> {
    Ok(task(&tasks_of(node, service)?, id)?["Status"].clone())
}
