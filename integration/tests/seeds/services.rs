//! Services that use secrets: the first of the texts, with its swap.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skep_integration::{Bench, by_both, settle};

use crate::{is_id, row};

by_both! {
    s011_create_detached s012_ps_columns s013_double_slash s014_short_and_long_form
    s015_s016_s017_s018_s019_s020_swap_in_one_step s129_generated_name s133_every_task
    one_secret_at_two_targets
}

fn s011_create_detached(bench: &Bench<'_>) -> Result<()> {
    let secret = bench.secret("mypass", "MyP@ssw0rd\n")?;
    let name = bench.name("nginx");
    bench.adopt(&name);
    let start = Instant::now();
    let args =
        ["service", "create", "--detach", "--name", &name, "--secret", &secret, "busybox:latest"];
    let out = bench.cli.run(&[&args[..], &["sleep", "1000"]].concat())?;
    ensure!(out.code == 0 && is_id(out.text()) && out.stderr.is_empty(), "{out:?}");
    ensure!(start.elapsed() < Duration::from_secs(3), "not at once: {:?}", start.elapsed());
    Ok(())
}

fn s012_ps_columns(bench: &Bench<'_>) -> Result<()> {
    let service = bench.service("nginx", &[], &["sleep", "1000000", "1000000", "1000000"])?;
    let container = bench.container(&service)?;
    let table = bench.cli.ok(&["ps"])?;
    let head: Vec<_> = table.lines().next().context("empty")?.split_whitespace().collect();
    let wanted = ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"];
    ensure!(head == wanted, "{table}");

    let line = table.lines().find(|line| line.starts_with(&container[..12])).context("no row")?;
    let command = line.split('"').nth(1).context("no quoted command")?;
    ensure!(command.starts_with("sleep 1000000") && command.ends_with('…'), "{line}");
    ensure!(command.chars().count() == 20, "{line}");
    ensure!(line.contains("busybox:latest") || line.contains("busybox@sha256"), "{line}");
    ensure!(line.contains(" Up "), "{line}");
    let named = line.split_whitespace().last().context("no name")?;
    let task = named.strip_prefix(&format!("{service}.1.")).context("name")?;
    ensure!(is_id(task), "{named}");
    Ok(())
}

fn s013_double_slash(bench: &Bench<'_>) -> Result<()> {
    let secret = bench.secret("mypass", "MyP@ssw0rd\n")?;
    let service = bench.sleeper("nginx", &["--secret", &secret])?;
    let container = bench.container(&service)?;
    let read = bench.exec(&container, &["cat", &format!("//run/secrets/{secret}")])?;
    ensure!(read == "MyP@ssw0rd", "{read}");
    Ok(())
}

fn s014_short_and_long_form(bench: &Bench<'_>) -> Result<()> {
    let short = bench.secret("short", "one")?;
    let long = bench.secret("long", "two")?;
    let flag = format!("source={long},target=elsewhere");
    let service = bench.sleeper("forms", &["--secret", &short, "--secret", &flag])?;
    let container = bench.container(&service)?;
    let names = bench.exec(&container, &["ls", "/run/secrets"])?;
    let mut wanted = [short.as_str(), "elsewhere"];
    wanted.sort_unstable();
    ensure!(names.lines().collect::<Vec<_>>() == wanted, "{names}");
    ensure!(bench.exec(&container, &["cat", &format!("/run/secrets/{short}")])? == "one", "short");
    ensure!(bench.exec(&container, &["cat", "/run/secrets/elsewhere"])? == "two", "long");
    Ok(())
}

fn s015_s016_s017_s018_s019_s020_swap_in_one_step(bench: &Bench<'_>) -> Result<()> {
    let old = bench.secret("mypass", "old value\n")?;
    let new = bench.secret("mypass2", "new value\n")?;
    let flag = format!("source={old},target=mypass");
    let service = bench.sleeper("nginx", &["--secret", &flag])?;
    let before = bench.container(&service)?;
    let read = |container: &str| bench.exec(container, &["cat", "/run/secrets/mypass"]);
    ensure!(read(&before)? == "old value", "before");

    let add = format!("source={new},target=mypass");
    let args =
        ["service", "update", "--detach", "--secret-add", &add, "--secret-rm", &old, &service];
    let printed = bench.cli.ok(&args)?;
    ensure!(printed == service, "{printed}");

    let after = bench.replaced(&service, std::slice::from_ref(&before), 1)?.remove(0);
    ensure!(read(&after)? == "new value", "after");
    let name = bench.node.get(&format!("/containers/{after}/json"))?["Name"].clone();
    let task = name.as_str().and_then(|name| name.rsplit('.').next()).context("name")?.to_owned();
    ensure!(is_id(&task), "{name}");

    history(bench, &service, &task)?;
    references(bench, &service, &old, &new)
}

/// S17: the replaced task below the running one.
fn history(bench: &Bench<'_>, service: &str, task: &str) -> Result<()> {
    let mut table = String::new();
    settle("the replaced task shut down", Duration::from_secs(10), || {
        table = bench.cli.ok(&["service", "ps", service])?;
        Ok(table
            .lines()
            .nth(2)
            .is_some_and(|line| line.contains("Shutdown ") && line.contains("ago")))
    })
    .with_context(|| table.clone())?;
    let lines: Vec<_> = table.lines().collect();
    let head: Vec<_> = lines[0].split_whitespace().collect();
    let wanted =
        ["ID", "NAME", "IMAGE", "NODE", "DESIRED", "STATE", "CURRENT", "STATE", "ERROR", "PORTS"];
    ensure!(head == wanted && lines.len() == 3, "{table}");

    let node = bench.node.get("/info")?["Name"].as_str().context("Name")?.to_owned();
    let newest: Vec<_> = lines[1].split_whitespace().collect();
    ensure!(task.starts_with(newest[0]) && newest[0].len() == 12, "{table}");
    ensure!(newest[1] == format!("{service}.1") && newest[3] == node, "{table}");
    ensure!(newest[4] == "Running" && newest[5] == "Running", "{table}");
    ensure!(lines[2].contains(&format!(" \\_ {service}.1")), "{table}");
    Ok(())
}

/// S19 and S20: the reference in the spec and the one before it.
fn references(bench: &Bench<'_>, service: &str, old: &str, new: &str) -> Result<()> {
    let found = bench.inspect("service", service)?;
    let id = |name: &str| bench.inspect("secret", name).map(|secret| secret["ID"].clone());
    let wanted = |name: &str, id: Value| {
        json!([{
            "File": { "Name": "mypass", "UID": "0", "GID": "0", "Mode": 292 },
            "SecretID": id,
            "SecretName": name,
        }])
    };
    let secrets = |spec: &Value| spec["TaskTemplate"]["ContainerSpec"]["Secrets"].clone();
    ensure!(secrets(&found["Spec"]) == wanted(new, id(new)?), "{found}");
    ensure!(secrets(&found["PreviousSpec"]) == wanted(old, id(old)?), "{found}");
    Ok(())
}

fn s129_generated_name(bench: &Bench<'_>) -> Result<()> {
    let secret = bench.secret("MYSECRETS", "x")?;
    let args = ["service", "create", "-d", "--stop-grace-period", "100ms", "--secret", &secret];
    let id = bench.cli.ok(&[&args[..], &["busybox", "ping", "127.0.0.1"]].concat())?;
    ensure!(is_id(&id), "{id}");
    let name = bench.inspect("service", &id)?["Spec"]["Name"].as_str().context("name")?.to_owned();
    bench.adopt(&name);
    let words: Vec<_> =
        name.trim_end_matches(|last: char| last.is_ascii_digit()).split('_').collect();
    let plain =
        |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    ensure!(words.len() == 2 && words.iter().all(plain), "{name}");
    bench.container(&name)?;
    let table = bench.cli.ok(&["service", "ls"])?;
    let line = row(&table, &name).context("no row")?;
    ensure!(
        line.contains("replicated") && line.contains("1/1") && line.contains("busybox"),
        "{line}"
    );
    ensure!(bench.cli.ok(&["service", "rm", &name])? == name, "rm");
    Ok(())
}

fn s133_every_task(bench: &Bench<'_>) -> Result<()> {
    let secret = bench.secret("MYSECRETS", "for all\n")?;
    let service = bench.sleeper("three", &["--replicas", "3", "--secret", &secret])?;
    for container in bench.running(&service, 3)? {
        let read = bench.exec(&container, &["cat", &format!("/run/secrets/{secret}")])?;
        ensure!(read == "for all", "{read}");
    }
    Ok(())
}

/// What the real engine gets wrong: each target keeps its own owner and mode.
fn one_secret_at_two_targets(bench: &Bench<'_>) -> Result<()> {
    let secret = bench.secret("shared", "same bytes")?;
    let first = format!("source={secret},target=first,uid=2000,gid=3000,mode=0400");
    let second = format!("source={secret},target=second,uid=4000,gid=5000,mode=0440");
    let service = bench.sleeper("two", &["--secret", &first, "--secret", &second])?;
    let container = bench.container(&service)?;
    let stat = ["stat", "-c", "%n %u %g %a", "/run/secrets/first", "/run/secrets/second"];
    let wanted = "/run/secrets/first 2000 3000 400\n/run/secrets/second 4000 5000 440";
    ensure!(bench.exec(&container, &stat)? == wanted, "{:?}", bench.exec(&container, &stat));
    for (user, file, code) in
        [("2000", "first", 0), ("2000", "second", 1), ("4000", "second", 0), ("4000", "first", 1)]
    {
        let path = format!("/run/secrets/{file}");
        let (ended, output) = bench.exec_as(user, &container, &["cat", &path])?;
        ensure!(ended == code, "{user} {file}: {output}");
    }
    Ok(())
}
