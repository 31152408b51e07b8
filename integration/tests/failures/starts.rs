//! Containers that cannot start: by both clients, in Docker's words.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use skep_integration::{Bench, busybox_tar, by_both, settle, tasks_of, wait_until};

use crate::{BOUND, ends, once, says};

by_both! {
    missing_binary missing_file not_executable a_directory exec_format missing_interpreter
    unknown_user unknown_group unknown_further_group numeric_user missing_image image_comes_later
    missing_bind_source directory_onto_a_file file_onto_a_directory read_only_bind
    restart_policy_obeyed
}

const CREATE: &str = "starting container failed: failed to create task for container: failed to \
                      create shim task: OCI runtime create failed: ";
const MISFIT: &str = "not a directory: unknown: Are you trying to mount a directory onto a file \
                      (or vice-versa)? Check if the specified host path exists and is the \
                      expected type";

/// A host directory with files that cannot be run for one reason each.
fn programs(bench: &Bench<'_>, base: &str) -> Result<(PathBuf, String)> {
    let dir = bench.node.root().join(bench.name(base));
    fs::create_dir_all(&dir)?;
    for (name, text, mode) in [
        ("plain", "no program\n", 0o644),
        ("noformat", "no program\n", 0o755),
        ("lost", "#!/nonexistent/interpreter\n", 0o755),
    ] {
        fs::write(dir.join(name), text)?;
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode))?;
    }
    let mount = format!("type=bind,source={},target=/programs,readonly", dir.display());
    Ok((dir, mount))
}

/// A command that never comes to run.
fn fails(bench: &Bench<'_>, base: &str, command: &str, err: &str, code: i64) -> Result<()> {
    let (_, mount) = programs(bench, base)?;
    let service = once(bench, base, &["--mount", &mount], &[command])?;
    let over = ends(bench, &service, "failed", err)?;
    ensure!(over.code() == code, "{over:?}");
    // What never ran has no time when it began.
    let now = &over.container["State"];
    let ran = now["StartedAt"] != "0001-01-01T00:00:00Z";
    ensure!(ran == err.starts_with("task:"), "{now}");
    let said = now["Error"].as_str().unwrap_or_default();
    ensure!(!said.is_empty() && err.replace('…', "").ends_with(said) || !ran, "{now}");
    Ok(())
}

fn missing_binary(bench: &Bench<'_>) -> Result<()> {
    let err = format!("{CREATE}…exec: \"nope\": executable file not found in $PATH: unknown");
    fails(bench, "nobinary", "nope", &err, 127)
}

fn missing_file(bench: &Bench<'_>) -> Result<()> {
    let end = "exec: \"/bin/nope\": stat /bin/nope: no such file or directory: unknown";
    fails(bench, "nofile", "/bin/nope", &format!("{CREATE}…{end}"), 127)
}

fn not_executable(bench: &Bench<'_>) -> Result<()> {
    let err = format!("{CREATE}…exec: \"/programs/plain\": permission denied: unknown");
    fails(bench, "plain", "/programs/plain", &err, 126)
}

fn a_directory(bench: &Bench<'_>) -> Result<()> {
    let err = format!("{CREATE}…exec: \"/programs\": permission denied: unknown");
    fails(bench, "directory", "/programs", &err, 126)
}

fn exec_format(bench: &Bench<'_>) -> Result<()> {
    let err = "task: non-zero exit (1): exec /programs/noformat: exec format error";
    fails(bench, "noformat", "/programs/noformat", err, 1)
}

fn missing_interpreter(bench: &Bench<'_>) -> Result<()> {
    let err = "task: non-zero exit (1): exec /programs/lost: no such file or directory";
    fails(bench, "lost", "/programs/lost", err, 1)
}

fn unknown_user(bench: &Bench<'_>) -> Result<()> {
    let service = once(bench, "nouser", &["--user", "nobodyhere"], &["id"])?;
    let err = "starting container failed: unable to find user nobodyhere: no matching entries in \
               passwd file";
    let over = ends(bench, &service, "failed", err)?;
    ensure!(over.code() == 128, "{over:?}");
    Ok(())
}

fn unknown_group(bench: &Bench<'_>) -> Result<()> {
    let service = once(bench, "nogroup", &["--user", "root:nobodyhere"], &["id"])?;
    let err = "starting container failed: unable to find group nobodyhere: no matching entries in \
               group file";
    ends(bench, &service, "failed", err).map(drop)
}

fn unknown_further_group(bench: &Bench<'_>) -> Result<()> {
    let service = once(bench, "nofurther", &["--group", "nobodyhere"], &["id"])?;
    let err = "starting container failed: unable to find group nobodyhere: no matching entries in \
               group file";
    ends(bench, &service, "failed", err).map(drop)
}

fn numeric_user(bench: &Bench<'_>) -> Result<()> {
    // No line of any file is needed for a number.
    let service = once(bench, "number", &["--user", "12345:54321"], &["id"])?;
    let over = ends(bench, &service, "complete", "")?;
    ensure!(over.code() == 0, "{over:?}");
    says(bench, &service, "uid=12345 gid=54321")
}

/// A service of an image that is not there.
fn without_image(bench: &Bench<'_>, base: &str, flags: &[&str]) -> Result<(String, String)> {
    let (service, image) = (bench.name(base), format!("{}:1", bench.name("image")));
    bench.adopt(&service);
    let fixed = ["service", "create", "--detach", "--no-resolve-image", "--name", &service];
    let command = [&image, "sleep", "1000000"];
    bench.cli.ok(&[&fixed[..], flags, &command].concat())?;
    Ok((service, image))
}

fn missing_image(bench: &Bench<'_>) -> Result<()> {
    let (service, image) = without_image(bench, "noimage", &["--restart-condition", "none"])?;
    let over = ends(bench, &service, "rejected", &format!("No such image: {image}"))?;
    ensure!(over.container.is_null(), "{over:?}");
    Ok(())
}

fn image_comes_later(bench: &Bench<'_>) -> Result<()> {
    let flags = ["--restart-delay", "200ms", "--stop-grace-period", "100ms"];
    let (service, image) = without_image(bench, "later", &flags)?;
    ends(bench, &service, "rejected", &format!("No such image: {image}"))?;
    let tar = busybox_tar(bench.node.root())?.display().to_string();
    bench.cli.ok(&["import", &tar, &image])?;
    bench.container(&service)?;
    let rejected = tasks_of(bench.node, &service)?;
    let rejected = rejected.iter().filter(|task| task["Status"]["State"] == "rejected");
    ensure!((1..=5).contains(&rejected.count()), "the history");
    Ok(())
}

fn missing_bind_source(bench: &Bench<'_>) -> Result<()> {
    let missing = bench.node.root().join(bench.name("nosource"));
    let mount = format!("type=bind,source={},target=/data", missing.display());
    let service = once(bench, "nosource", &["--mount", &mount], &["true"])?;
    let err = format!(
        "invalid mount config for type \"bind\": bind source path does not exist: {}",
        missing.display()
    );
    ends(bench, &service, "rejected", &err)?;
    ensure!(!missing.exists(), "it was made");
    Ok(())
}

fn directory_onto_a_file(bench: &Bench<'_>) -> Result<()> {
    let (dir, _) = programs(bench, "onto-file")?;
    let mount = format!("type=bind,source={},target=/etc/passwd", dir.display());
    let service = once(bench, "onto-file", &["--mount", &mount], &["true"])?;
    let over = ends(bench, &service, "failed", &format!("{CREATE}…{MISFIT}"))?;
    ensure!(over.code() == 127, "{over:?}");
    Ok(())
}

fn file_onto_a_directory(bench: &Bench<'_>) -> Result<()> {
    let (dir, _) = programs(bench, "onto-dir")?;
    let mount = format!("type=bind,source={}/plain,target=/etc", dir.display());
    let service = once(bench, "onto-dir", &["--mount", &mount], &["true"])?;
    ends(bench, &service, "failed", &format!("{CREATE}…{MISFIT}")).map(drop)
}

fn read_only_bind(bench: &Bench<'_>) -> Result<()> {
    let (dir, mount) = programs(bench, "read-only")?;
    let script = "echo changed >/programs/plain && exit 9; rm /programs/plain && exit 8; exit 4";
    let service = once(bench, "read-only", &["--mount", &mount], &["sh", "-c", script])?;
    let over = ends(bench, &service, "failed", "task: non-zero exit (4)")?;
    ensure!(over.code() == 4, "{over:?}");
    says(bench, &service, "Read-only file system")?;
    ensure!(fs::read_to_string(dir.join("plain"))? == "no program\n", "it was changed");
    Ok(())
}

fn restart_policy_obeyed(bench: &Bench<'_>) -> Result<()> {
    let flags = ["--restart-condition", "on-failure", "--restart-max-attempts", "2"];
    let flags = [&flags[..], &["--restart-delay", "50ms"]].concat();
    let service = bench.service("policy", &flags, &["nope"])?;
    let done = bench.service("done", &flags, &["true"])?;
    let all = wait_until("three failures", BOUND, || {
        let all = tasks_of(bench.node, &service)?;
        ensure!(all.len() <= 3, "{} tasks", all.len());
        let failed = all.iter().filter(|task| task["Status"]["State"] == "failed").count();
        Ok((failed == 3).then_some(all))
    })?;
    let same = all[0]["Status"]["Err"].as_str().context("Err")?;
    ensure!(all.iter().all(|task| task["Status"]["Err"] == same), "{all:?}");
    let table = bench.cli.ok(&["service", "ps", "--no-trunc", &service])?;
    ensure!(table.matches(" \\_ ").count() == 2 && table.matches(same).count() == 3, "{table}");
    settle("the end of what succeeds", BOUND, || {
        let all = tasks_of(bench.node, &done)?;
        Ok(all.len() == 1 && all[0]["Status"]["State"] == "complete")
    })
}
