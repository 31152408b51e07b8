//! The manual's walk through a redis service, from the first create to the last rm.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_integration::{Bench, by_both};

use crate::is_id;

by_both! {
    s061_s062_s063_s065_s066_s067_s070_s071_s072_s073_redis
    s070_several_users
}

fn s061_s062_s063_s065_s066_s067_s070_s071_s072_s073_redis(bench: &Bench<'_>) -> Result<()> {
    let secret = bench.name("my_secret_data");
    let id = bench.cli.ok_with(&["secret", "create", &secret, "-"], b"This is a secret")?;
    ensure!(is_id(&id), "{id}");
    let service = bench.name("redis");
    bench.adopt(&service);
    create_and_wait(bench, &service, &secret)?;

    // S63: one row, running.
    let table = bench.cli.ok(&["service", "ps", &service])?;
    let rows: Vec<_> = table.lines().skip(1).collect();
    let words: Vec<_> = rows[0].split_whitespace().collect();
    ensure!(rows.len() == 1 && words[4..6] == ["Running", "Running"], "{table}");

    let full = bench.container(&service)?;
    let container = only_id(bench, &service)?;
    ensure!(full.starts_with(&container), "{container} of {full}");
    contents(bench, &container, &secret)?;

    // S70: refused while in use.
    let listed = bench.cli.ok(&["secret", "ls"])?;
    ensure!(listed.contains(&secret), "{listed}");
    let error = bench.cli.fails(1, &["secret", "rm", &secret])?;
    let wanted = format!(
        "Error response from daemon: rpc error: code = InvalidArgument desc = \
         secret '{secret}' is in use by the following service: {service}"
    );
    ensure!(error.trim_end() == wanted, "{error}");

    // S71 and S72: the service goes on without it, in another container.
    bench.cli.ok(&["service", "update", "--detach", "--secret-rm", &secret, &service])?;
    bench.replaced(&service, &[full], 1)?;
    let after = only_id(bench, &service)?;
    ensure!(after != container, "the same container");
    let path = format!("/run/secrets/{secret}");
    let out = bench.cli.run(&["exec", &after, "cat", &path])?;
    let wanted = format!("can't open '{path}': No such file or directory");
    ensure!(out.code == 1 && out.stderr.contains(&wanted), "{out:?}");

    // S73: all gone, one right after the other.
    ensure!(bench.cli.ok(&["service", "rm", &service])? == service, "service rm");
    ensure!(bench.cli.ok(&["secret", "rm", &secret])? == secret, "secret rm");
    Ok(())
}

/// S62: waits for the service and shows how far it is.
fn create_and_wait(bench: &Bench<'_>, service: &str, secret: &str) -> Result<()> {
    let args = [
        "service",
        "create",
        "--name",
        service,
        "--secret",
        secret,
        "--stop-grace-period",
        "100ms",
        "busybox:latest",
        "sleep",
        "1000000",
    ];
    let out = bench.cli.within(Duration::from_secs(40)).run(&args)?;
    ensure!(out.code == 0 && out.stderr.is_empty(), "{out:?}");
    let id = out.stdout.lines().next().context("nothing printed")?;
    ensure!(is_id(id), "{out:?}");
    for line in ["overall progress: 1 out of 1 tasks", "1/1: ", "verify: Waiting"] {
        ensure!(out.stdout.contains(line), "{line}: {}", out.stdout);
    }
    ensure!(out.text().ends_with(&format!("verify: Service {id} converged")), "{}", out.stdout);
    Ok(())
}

/// S65: `ps -q` with a filter prints one short id.
fn only_id(bench: &Bench<'_>, service: &str) -> Result<String> {
    let id = bench.cli.ok(&["ps", "--filter", &format!("name={service}"), "-q"])?;
    let short = id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(short, "{id}");
    Ok(id)
}

/// S66 and S67: the listing, and every byte.
fn contents(bench: &Bench<'_>, container: &str, secret: &str) -> Result<()> {
    let listing = bench.cli.ok(&["container", "exec", container, "ls", "-l", "/run/secrets"])?;
    let lines: Vec<_> = listing.lines().collect();
    ensure!(lines.len() == 2 && lines[0] == "total 4", "{listing}");
    let words: Vec<_> = lines[1].split_whitespace().collect();
    ensure!(words[..5] == ["-r--r--r--", "1", "root", "root", "16"], "{listing}");
    ensure!(words.last() == Some(&secret), "{listing}");
    let path = format!("/run/secrets/{secret}");
    let read = bench.cli.run(&["container", "exec", container, "cat", &path])?;
    ensure!(read.bytes == b"This is a secret", "{read:?}");
    Ok(())
}

fn s070_several_users(bench: &Bench<'_>) -> Result<()> {
    let secret = bench.secret("shared", "x")?;
    let first = bench.sleeper("a", &["--replicas", "0", "--secret", &secret])?;
    let second = bench.sleeper("b", &["--replicas", "0", "--secret", &secret])?;
    let error = bench.cli.fails(1, &["secret", "rm", &secret])?;
    let wanted = format!("is in use by the following services: {first}, {second}");
    ensure!(error.trim_end().ends_with(&wanted), "{error}");
    Ok(())
}
