//! Secrets by themselves: create, list, inspect, remove. No container runs unless bytes are compared.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skep_integration::{Bench, Program, by_both};

use crate::{is_id, row};

by_both! {
    s001_secret_help s002_secret_create_help s003_create_from_stdin s004_create_from_file
    s005_ls_columns s006_inspect_shape s007_inspect_by_id s008_name_taken s009_value_never_changes
    s057_any_time s127_labels s146_inspect_several s147_inspect_hides_content s148_update_endpoint
    s149_rm_prints_name
}

fn word(bench: &Bench<'_>) -> &'static str {
    match bench.cli.program {
        Program::Docker => "docker",
        Program::Skep => "skep",
    }
}

fn s001_secret_help(bench: &Bench<'_>) -> Result<()> {
    let help = bench.cli.ok(&["secret", "--help"])?;
    let word = word(bench);
    ensure!(help.contains(&format!("Usage:  {word} secret COMMAND")), "{help}");
    ensure!(help.contains("Manage Swarm secrets"), "{help}");
    let lines = [
        "  create      Create a secret from a file or STDIN as content",
        "  inspect     Display detailed information on one or more secrets",
        "  ls          List secrets",
        "  rm          Remove one or more secrets",
    ];
    let mut rest = help.split_once("Commands:").context("no commands")?.1;
    for line in lines {
        rest = rest.split_once(line).with_context(|| format!("{line:?} not next in {help}"))?.1;
    }
    let hint = format!("Run '{word} secret COMMAND --help' for more information on a command.");
    ensure!(rest.contains(&hint), "{help}");
    Ok(())
}

fn s002_secret_create_help(bench: &Bench<'_>) -> Result<()> {
    let help = bench.cli.ok(&["secret", "create", "--help"])?;
    let usage = format!("Usage:  {} secret create [OPTIONS] SECRET [file|-]", word(bench));
    ensure!(help.contains(&usage), "{help}");
    for option in ["-d, --driver string", "-l, --label list", "--template-driver string"] {
        ensure!(help.contains(option), "{option}: {help}");
    }
    Ok(())
}

fn s003_create_from_stdin(bench: &Bench<'_>) -> Result<()> {
    let name = bench.name("mypass");
    let out = bench.cli.run_with(&["secret", "create", &name, "-"], b"MyP@ssw0rd\n")?;
    ensure!(out.code == 0 && out.stderr.is_empty(), "{out:?}");
    ensure!(is_id(out.text()) && out.stdout.ends_with('\n'), "{out:?}");

    let service = bench.sleeper("echo", &["--secret", &name])?;
    let container = bench.container(&service)?;
    let path = format!("/run/secrets/{name}");
    let read = bench.cli.run(&["exec", &container, "cat", &path])?;
    ensure!(read.bytes == b"MyP@ssw0rd\n", "{read:?}");
    Ok(())
}

fn s004_create_from_file(bench: &Bench<'_>) -> Result<()> {
    let name = bench.name("site.key");
    let file = bench.node.root().join(&name);
    let content: Vec<u8> = (0..=255).cycle().take(3000).collect();
    std::fs::write(&file, &content)?;
    let path = file.display().to_string();
    ensure!(is_id(&bench.cli.ok(&["secret", "create", &name, &path])?), "no id");
    std::fs::remove_file(&file)?;

    let service = bench.sleeper("file", &["--secret", &name])?;
    let container = bench.container(&service)?;
    let read = bench.cli.run(&["exec", &container, "cat", &format!("/run/secrets/{name}")])?;
    ensure!(read.bytes == content, "{} bytes", read.bytes.len());
    Ok(())
}

fn s005_ls_columns(bench: &Bench<'_>) -> Result<()> {
    let second = bench.secret("b-secret", "2")?;
    let first = bench.secret("a-secret", "1")?;
    let table = bench.cli.ok(&["secret", "ls"])?;
    let head: Vec<_> = table.lines().next().context("empty")?.split_whitespace().collect();
    ensure!(head == ["ID", "NAME", "DRIVER", "CREATED", "UPDATED"], "{table}");
    let line = row(&table, &first).context("no row")?;
    ensure!(line.split_whitespace().next().is_some_and(is_id), "{line}");
    ensure!(line.matches("ago").count() == 2, "times for people: {line}");
    let place = |name: &str| table.find(&format!(" {name} "));
    ensure!(place(&first) < place(&second), "by name: {table}");
    Ok(())
}

fn s006_inspect_shape(bench: &Bench<'_>) -> Result<()> {
    let name = bench.secret("mypass", "x")?;
    let raw = bench.cli.ok(&["secret", "inspect", &name])?;
    ensure!(raw.starts_with("[\n    {\n        \"ID\": \""), "four spaces: {raw}");
    let secret = bench.inspect("secret", &name)?;
    let object = secret.as_object().context("no object")?;
    let keys: Vec<_> = object.keys().map(String::as_str).collect();
    // skep's own client also tells where it is readable: behind what Docker tells.
    let own = match bench.cli.program {
        Program::Docker => 0,
        Program::Skep => 1,
    };
    ensure!(keys.len() == 5 + own, "{keys:?}");
    ensure!(keys.contains(&"Skep") == (own == 1), "{keys:?}");
    // serde_json sorts keys here: the order is read off the raw text.
    let order = ["\"ID\"", "\"Version\"", "\"CreatedAt\"", "\"UpdatedAt\"", "\"Spec\""];
    let places: Vec<_> = order.iter().filter_map(|key| raw.find(key)).collect();
    ensure!(places.len() == 5 && places.is_sorted(), "{raw}");
    ensure!(secret["ID"].as_str().is_some_and(is_id), "{secret}");
    ensure!(secret["Version"]["Index"].is_u64(), "{secret}");
    let created = secret["CreatedAt"].as_str().context("CreatedAt")?;
    ensure!(created.ends_with('Z') && created.contains('T'), "{created}");
    ensure!(secret["UpdatedAt"] == secret["CreatedAt"], "{secret}");
    ensure!(secret["Spec"]["Name"] == *name && secret["Spec"]["Labels"] == json!({}), "{secret}");
    ensure!(!raw.contains("\"Data\""), "{secret}");
    Ok(())
}

fn s007_inspect_by_id(bench: &Bench<'_>) -> Result<()> {
    let name = bench.name("mypass");
    let id = bench.cli.ok_with(&["secret", "create", &name, "-"], b"x")?;
    let by_name = bench.cli.ok(&["secret", "inspect", &name])?;
    ensure!(by_name == bench.cli.ok(&["secret", "inspect", &id])?, "{by_name}");
    Ok(())
}

fn s008_name_taken(bench: &Bench<'_>) -> Result<()> {
    let name = bench.secret("mypass", "one")?;
    let error = bench.cli.fails_with(1, &["secret", "create", &name, "-"], b"two")?;
    let wanted = format!(
        "Error response from daemon: rpc error: code = AlreadyExists desc = secret {name} already exists"
    );
    ensure!(error.trim_end() == wanted, "{error}");
    let body = json!({ "Name": name, "Data": "eA==" });
    ensure!(bench.node.http()?.json("POST", "/secrets/create", &body)?.status == 409, "status");
    Ok(())
}

fn s009_value_never_changes(bench: &Bench<'_>) -> Result<()> {
    let name = bench.secret("app_passwd_v1", "one")?;
    let secret = bench.inspect("secret", &name)?;
    let target = format!("/secrets/{name}/update?version={}", secret["Version"]["Index"]);
    let body = json!({ "Name": name, "Labels": {}, "Data": "dHdv" });
    let reply = bench.node.http()?.json("POST", &target, &body)?;
    ensure!(reply.status == 400, "{}", reply.status);
    ensure!(reply.message()?.contains("only updates to Labels are allowed"), "{reply:?}");
    ensure!(bench.inspect("secret", &name)? == secret, "it changed");
    Ok(())
}

fn s057_any_time(bench: &Bench<'_>) -> Result<()> {
    let first = bench.secret("first", "1")?;
    let service = bench.sleeper("any", &["--secret", &first])?;
    bench.container(&service)?;
    let second = bench.secret("second", "2")?;
    bench.inspect("secret", &first)?;
    bench.inspect("secret", &second)?;
    let table = bench.cli.ok(&["secret", "ls"])?;
    ensure!(row(&table, &first).is_some() && row(&table, &second).is_some(), "{table}");
    let ids = bench.cli.ok(&["secret", "ls", "-q"])?;
    ensure!(ids.lines().all(is_id), "{ids}");
    Ok(())
}

fn s127_labels(bench: &Bench<'_>) -> Result<()> {
    let name = bench.name("MYSECRETS");
    let args = ["secret", "create", "-l", "env=prod", "--label", "team=a", &name, "-"];
    bench.cli.ok_with(&args, b"x")?;
    let labels = &bench.inspect("secret", &name)?["Spec"]["Labels"];
    ensure!(*labels == json!({ "env": "prod", "team": "a" }), "{labels}");
    let found = bench.cli.ok(&["secret", "ls", "--filter", "label=env=prod"])?;
    ensure!(row(&found, &name).is_some(), "{found}");
    let found = bench.cli.ok(&["secret", "ls", "--filter", "label=env=dev"])?;
    ensure!(row(&found, &name).is_none(), "{found}");
    Ok(())
}

fn s146_inspect_several(bench: &Bench<'_>) -> Result<()> {
    let (first, second) = (bench.secret("z", "1")?, bench.secret("a", "2")?);
    let both: Value =
        serde_json::from_str(&bench.cli.ok(&["secret", "inspect", &first, &second])?)?;
    ensure!(both[0]["Spec"]["Name"] == *first && both[1]["Spec"]["Name"] == *second, "{both}");

    let out = bench.cli.run(&["secret", "inspect", &first, "nobody"])?;
    ensure!(out.code == 1, "{out:?}");
    let found: Value = serde_json::from_str(&out.stdout)?;
    ensure!(found.as_array().is_some_and(|list| list.len() == 1), "{out:?}");
    ensure!(out.stderr.contains("secret nobody not found"), "{out:?}");
    let out = bench.cli.run(&["secret", "inspect", "nobody"])?;
    ensure!(out.code == 1 && out.text() == "[]", "{out:?}");
    Ok(())
}

fn s147_inspect_hides_content(bench: &Bench<'_>) -> Result<()> {
    let name = bench.secret("hidden", "Hide-me-please")?;
    for args in [vec!["secret", "inspect", &name], vec!["secret", "ls", "--no-trunc"]] {
        let Ok(text) = bench.cli.ok(&args) else { continue };
        ensure!(!text.contains("Hide-me") && !text.contains("SGlkZS1"), "{text}");
    }
    for path in ["/secrets".to_owned(), format!("/secrets/{name}")] {
        let text = bench.node.get(&path)?.to_string();
        ensure!(!text.contains("Hide-me") && !text.contains("\"Data\""), "{text}");
    }
    Ok(())
}

fn s148_update_endpoint(bench: &Bench<'_>) -> Result<()> {
    let name = bench.secret("labelled", "same")?;
    let before = bench.inspect("secret", &name)?;
    let target = format!("/secrets/{name}/update?version={}", before["Version"]["Index"]);
    // The same data again is accepted: stack deploy sends it every time.
    let body = json!({ "Name": name, "Labels": { "a": "b" }, "Data": "c2FtZQ==" });
    let reply = bench.node.http()?.json("POST", &target, &body)?;
    ensure!(reply.status == 200 && reply.body.is_empty(), "{reply:?}");
    let after = bench.inspect("secret", &name)?;
    ensure!(after["Spec"]["Labels"] == json!({ "a": "b" }), "{after}");
    ensure!(after["Version"]["Index"].as_u64() > before["Version"]["Index"].as_u64(), "{after}");
    ensure!(after["CreatedAt"] == before["CreatedAt"], "{after}");
    ensure!(after["UpdatedAt"] != before["UpdatedAt"], "{after}");

    let stale = bench.node.http()?.json("POST", &target, &body)?;
    ensure!(
        stale.status == 500 && stale.message()?.contains("update out of sequence"),
        "{stale:?}"
    );
    Ok(())
}

fn s149_rm_prints_name(bench: &Bench<'_>) -> Result<()> {
    let (first, second) = (bench.secret("one", "1")?, bench.secret("two", "2")?);
    let out = bench.cli.ok(&["secret", "rm", &first, &second])?;
    ensure!(out == format!("{first}\n{second}"), "{out}");
    let error = bench.cli.fails(1, &["secret", "rm", &first])?;
    ensure!(error.contains(&format!("secret {first} not found")), "{error}");
    Ok(())
}
