//! Other containers and other users of the host against a task's secret.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use skep_integration::{Bench, Program, processes_of, shared};

/// A user that is nobody here.
const NOBODY: u32 = 65534;

/// Runs the host's busybox as nobody; answers its exit code and what it says.
fn as_nobody(args: &[&str]) -> Result<(i32, String)> {
    let mut command = Command::new("/bin/busybox");
    command.args(args).uid(NOBODY).gid(NOBODY).stdin(Stdio::null()).current_dir("/");
    let out = command.output()?;
    let text = [out.stdout, out.stderr].concat();
    Ok((out.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn another_user_of_the_host_reaches_neither_secret_nor_sockets() -> Result<()> {
    let bench = Bench::new(shared()?, Program::Skep, "nobody".to_owned());
    let secret = bench.secret("mine", "for the task alone")?;
    let service = bench.sleeper("mine", &["--secret", &format!("source={secret},target=own")])?;
    let container = bench.container(&service)?;
    let shown = bench.node.get(&format!("/containers/{container}/json"))?;
    let init = shown["State"]["Pid"].as_i64().context("no Pid")?;
    let task = shown["Config"]["Labels"]["com.docker.swarm.task.id"].as_str().context("no task")?;
    // Those of other tests' tasks may end meanwhile.
    let supervisors = processes_of(bench.node)?.into_iter().filter(|p| p.is_supervisor());
    let supervisors = supervisors.filter(|p| p.args.iter().any(|arg| arg.contains(task)));
    let supervisors: Vec<i64> = supervisors.map(|p| i64::from(p.pid)).collect();
    ensure!(!supervisors.is_empty(), "no supervisor");
    for pid in supervisors.iter().chain([&init]) {
        for path in ["root/run/secrets/own", "mem", "environ", "fd/0", "maps"] {
            let path = format!("/proc/{pid}/{path}");
            let (code, text) = as_nobody(&["cat", &path])?;
            ensure!(code != 0 && text.contains("denied"), "{path}: {code} {text}");
        }
    }
    let tasks = bench.node.run_root().join("tasks");
    let mut paths: Vec<PathBuf> = vec![bench.node.data_root().join("key.pem"), tasks.clone()];
    paths.extend(
        std::fs::read_dir(&tasks)?.filter_map(|entry| Some(entry.ok()?.path().join("shim.sock"))),
    );
    for path in paths {
        // The roots of a test are below a directory that nobody else enters: look at modes too.
        let (code, text) = as_nobody(&["ls", &path.display().to_string()])?;
        ensure!(code != 0 && text.contains("denied"), "{}: {code} {text}", path.display());
        let closed = std::iter::successors(Some(path.as_path()), |path| path.parent())
            .take_while(|path| *path != bench.node.root())
            .any(|path| {
                std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 == 0)
            });
        ensure!(closed, "nothing of {} is closed to others", path.display());
    }
    let mode = std::fs::metadata(bench.node.socket())?.permissions().mode();
    ensure!(mode & 0o007 == 0, "the API socket has mode {mode:o}");
    let read = bench.exec(&container, &["cat", "/run/secrets/own"])?;
    ensure!(read == "for the task alone", "{read}");
    Ok(())
}

#[test]
fn another_container_sees_only_what_it_was_granted() -> Result<()> {
    let bench = Bench::new(shared()?, Program::Skep, "other".to_owned());
    let (mine, theirs) = (bench.secret("mine", "for one")?, bench.secret("theirs", "for two")?);
    let one = bench.container(&bench.sleeper("one", &["--secret", &mine])?)?;
    let two = bench.container(&bench.sleeper("two", &["--secret", &theirs])?)?;
    let script = "ls -a /run/secrets /run/secrets/..current; find / -xdev -name '*mine*' 2>/dev/null; \
        grep -rl 'for one' /run /proc/1/environ /etc /tmp 2>/dev/null; cat /proc/mounts";
    let out = bench.cli.run(&["exec", &two, "sh", "-c", script])?;
    let text = out.stdout + &out.stderr;
    ensure!(text.contains(&theirs) && !text.contains(&mine), "{text}");
    ensure!(bench.exec(&one, &["cat", &format!("/run/secrets/{mine}")])? == "for one", "one's own");
    Ok(())
}
