//! Who may read, and what the files look like.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_integration::{Bench, by_both};

by_both! {
    s123_no_environment s134_long_listing s136_read_only_for_everybody
    s155_s156_s157_s158_owner_and_mode s159_swap_not_detached
}

fn s123_no_environment(bench: &Bench<'_>) -> Result<()> {
    let secret = bench.secret("mypass", "Never-In-Env")?;
    let service = bench.sleeper("env", &["--secret", &secret])?;
    let container = bench.container(&service)?;
    let environment = bench.exec(&container, &["env"])?;
    ensure!(
        !environment.contains("Never-In-Env") && !environment.contains(&secret),
        "{environment}"
    );
    let first = bench.exec(&container, &["cat", "/proc/1/environ"])?;
    ensure!(!first.contains("Never-In-Env"), "{first}");
    Ok(())
}

fn s134_long_listing(bench: &Bench<'_>) -> Result<()> {
    let secret = bench.secret("MYSECRETS", "four-and-twenty-letters.\n")?;
    let service = bench.sleeper("list", &["--secret", &secret])?;
    let container = bench.container(&service)?;
    let line = bench.exec(&container, &["ls", "-l", &format!("/run/secrets/{secret}")])?;
    let words: Vec<_> = line.split_whitespace().collect();
    ensure!(words[..5] == ["-r--r--r--", "1", "root", "root", "25"], "{line}");
    Ok(())
}

fn s136_read_only_for_everybody(bench: &Bench<'_>) -> Result<()> {
    let secret = bench.secret("MYSECRETS", "open\n")?;
    let service = bench.sleeper("write", &["--secret", &secret])?;
    let container = bench.container(&service)?;
    let path = format!("/run/secrets/{secret}");
    for attempt in [
        format!("echo x > {path}"),
        format!("echo x >> {path}"),
        "echo x > /run/secrets/new".to_owned(),
        format!("rm -f {path}"),
        format!("chmod 777 {path}"),
        format!("mv {path} /run/secrets/other"),
    ] {
        let out = bench.cli.run(&["exec", &container, "sh", "-c", &attempt])?;
        ensure!(
            out.code != 0 && out.stderr.contains("Read-only file system"),
            "{attempt}: {out:?}"
        );
    }
    for user in ["0", "1", "2000:3000", "65534"] {
        let (code, output) = bench.exec_as(user, &container, &["cat", &path])?;
        ensure!(code == 0 && output == "open\n", "{user}: {output}");
    }
    Ok(())
}

fn s155_s156_s157_s158_owner_and_mode(bench: &Bench<'_>) -> Result<()> {
    let secret = bench.secret("db_pass", "database_password\n")?;
    let flag = format!("source={secret},target=password,uid=2000,gid=3000,mode=0400");
    let service = bench.sleeper("app", &["--user", "2000", "--secret", &flag])?;
    let container = bench.container(&service)?;

    let (_, listing) = bench.exec_as("0", &container, &["ls", "-lhart", "/run/secrets/"])?;
    let line = listing.lines().find(|line| line.ends_with(" password")).context("no file")?;
    let words: Vec<_> = line.split_whitespace().collect();
    // The image knows user 2000 by a name.
    let owner = ["2000", "app"].contains(&words[2]) && words[3] == "3000";
    ensure!(words[..2] == ["-r--------", "1"] && owner, "{listing}");
    ensure!(listing.starts_with("total 12K"), "{listing}");
    for directory in [" .", " .."] {
        let line = listing.lines().find(|line| line.ends_with(directory)).context("no dot")?;
        let words: Vec<_> = line.split_whitespace().collect();
        ensure!(words[0] == "drwxr-xr-x" && words[2..5] == ["root", "root", "4.0K"], "{listing}");
    }

    let path = "/run/secrets/password";
    let own = bench.exec(&container, &["cat", path])?;
    ensure!(own == "database_password", "the application's user: {own}");
    let (code, output) = bench.exec_as("2001", &container, &["cat", path])?;
    ensure!(code == 1 && output.contains("Permission denied"), "another user: {output}");
    let (code, output) = bench.exec_as("2001:3000", &container, &["cat", path])?;
    ensure!(code == 1 && output.contains("Permission denied"), "the group: {output}");
    let (code, output) = bench.exec_as("0", &container, &["cat", path])?;
    ensure!(code == 0 && output == "database_password\n", "root: {output}");

    // S156: a mode without a leading zero is a decimal number.
    let plain = format!("source={secret},target=plain,mode=400");
    bench.cli.ok(&["service", "update", "--detach", "--secret-add", &plain, &service])?;
    let found = bench.inspect("service", &service)?;
    let found = &found["Spec"]["TaskTemplate"]["ContainerSpec"]["Secrets"];
    let mode_of = |target: &str| {
        let all = found.as_array().into_iter().flatten();
        all.clone().find(|one| one["File"]["Name"] == target).map(|one| one["File"]["Mode"].clone())
    };
    ensure!(mode_of("password") == Some(256.into()), "{found}");
    ensure!(mode_of("plain") == Some(400.into()), "{found}");
    Ok(())
}

fn s159_swap_not_detached(bench: &Bench<'_>) -> Result<()> {
    let old = bench.secret("db_pass", "old")?;
    let new = bench.secret("db_pass_1", "new")?;
    let flag = format!("source={old},target=password,uid=2000,gid=3000,mode=0400");
    let service = bench.sleeper("app", &["--secret", &flag])?;
    let before = bench.container(&service)?;
    let add = format!("source={new},target=password");
    let args = [
        "service",
        "update",
        "--secret-rm",
        &old,
        "--detach=false",
        "--secret-add",
        &add,
        &service,
    ];
    let out = bench.cli.within(Duration::from_secs(40)).ok(&args)?;
    ensure!(out.lines().next() == Some(&service), "{out}");
    ensure!(out.contains("overall progress: 1 out of 1 tasks"), "{out}");
    ensure!(out.contains("verify: Service"), "{out}");
    let after = bench.replaced(&service, &[before], 1)?.remove(0);
    // Owner and mode are not inherited from the reference that went.
    let stat = bench.exec(&after, &["stat", "-c", "%u %g %a", "/run/secrets/password"])?;
    ensure!(stat == "0 0 444", "{stat}");
    ensure!(bench.exec(&after, &["cat", "/run/secrets/password"])? == "new", "content");
    // S160: nothing holds the old one any more.
    ensure!(bench.cli.ok(&["secret", "rm", &old])? == old, "rm");
    Ok(())
}
