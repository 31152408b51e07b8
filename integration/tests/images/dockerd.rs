//! The real engine beside skep: what one saves the other loads and runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skep_integration::{Bench, by_both, wait_until};

use super::{by_docker, id_of, place};

by_both! { both_engines_take_each_others_archives }

const BOUND: Duration = Duration::from_secs(120);

/// A real dockerd with roots, mounts and a network of its own.
struct Dockerd {
    root: PathBuf,
    child: Child,
}

impl Dockerd {
    /// Starts it, if it is installed.
    fn start() -> Result<Option<Self>> {
        let found = Command::new("dockerd").arg("--version").stdout(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        let root = tempfile::Builder::new().prefix("images-dockerd-").tempdir()?.keep();
        let log = File::create(root.join("log"))?;
        fs::write(root.join("config"), "{}")?;
        let at = |name: &str| root.join(name).display().to_string();
        // With this process it ends, and its mounts go with its namespace.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "unshare", "--mount", "--net", "dockerd"])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args(["--pidfile", &at("pid"), "--host", &format!("unix://{}", at("sock"))])
            .args(["--iptables=false", "--ip6tables=false", "--ip-forward=false"])
            .args(["--bridge=none", "--config-file", &at("config")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                fs::remove_dir_all(&root).ok();
                return Err(error).context("setpriv and unshare, of util-linux");
            }
        };
        let mut this = Self { root, child };
        let ready = wait_until("dockerd", BOUND, || {
            if let Some(status) = this.child.try_wait()? {
                bail!("dockerd ended with {status}");
            }
            Ok(this.run(&["info"]).ok())
        });
        let log = fs::read_to_string(this.root.join("log")).unwrap_or_default();
        ready.with_context(|| log)?;
        Ok(Some(this))
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        let host = format!("unix://{}", self.root.join("sock").display());
        let mut command = Command::new("docker");
        command.args(["-H", &host]).args(args).env_remove("DOCKER_CONTEXT");
        let out = command.env("DOCKER_CONFIG", &self.root).stdin(Stdio::null()).output()?;
        let (said, errors) =
            (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        ensure!(out.status.success(), "docker {}: {said}{errors}", args.join(" "));
        Ok(said.trim_end().to_owned())
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).map(Pid::from_raw);
        if let Ok(pid) = pid {
            kill(pid, Signal::SIGTERM).ok();
        }
        let ended = wait_until("the end of dockerd", Duration::from_secs(30), || {
            Ok(self.child.try_wait()?.map(drop))
        });
        if ended.is_err() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
        fs::remove_dir_all(&self.root).ok();
    }
}

/// One engine's life serves both directions: it takes seconds to start.
fn both_engines_take_each_others_archives(bench: &Bench<'_>) -> Result<()> {
    let Some(engine) = Dockerd::start()? else {
        let what = "dockerd is not installed: archives were not tried with the real engine";
        std::io::Write::write_all(&mut std::io::stderr(), format!("{what}\n").as_bytes())?;
        return Ok(());
    };
    let name = super::image(bench, "travels")?;
    let id = id_of(bench, &name)?;
    let path = place(bench, "travels.tar");
    let shown = path.display().to_string();
    bench.cli.ok(&["save", "-o", &shown, &name])?;
    let loaded = engine.run(&["load", "-i", &shown])?;
    ensure!(loaded.contains(&format!("Loaded image: {name}")), "{loaded}");
    ensure!(engine.run(&["image", "inspect", "-f", "{{.Id}}", &name])? == id, "the same image");
    let run = ["run", "--rm", "--network", "none"];
    let said = engine.run(&[&run[..], &[&name, "sh", "-c", "echo $NAME"]].concat())?;
    ensure!(said == name, "it runs there: {said}");

    // Another layer made there: files hidden, linked and with holes.
    let script = "rm /etc/group && rm -r /home && mkdir /home && echo new >/home/new && \
        echo linked >/one && ln /one /two && mkfifo /fifo && chmod 4755 /one && \
        dd if=/dev/zero of=/holes bs=1 count=1 seek=1000000 2>/dev/null";
    let maker = bench.name("maker");
    let run = ["run", "--name", &maker, "--network", "none", &name, "sh", "-c", script];
    engine.run(&run)?;
    let made = format!("{}:2", bench.name("made"));
    engine.run(&["commit", &maker, &made])?;
    let back = place(bench, "back.tar").display().to_string();
    engine.run(&["save", "-o", &back, &made, &name])?;
    let loaded = bench.cli.ok(&["load", "-i", &back])?;
    ensure!(loaded.contains(&format!("Loaded image: {made}")), "{loaded}");
    let made_id = engine.run(&["image", "inspect", "-f", "{{.Id}}", &made])?;
    ensure!(id_of(bench, &made)? == made_id && id_of(bench, &name)? == id, "the same images");
    let layers = bench.inspect("image", &made)?["RootFS"]["Layers"].clone();
    ensure!(layers.as_array().is_some_and(|layers| layers.len() == 2), "{layers}");

    let service = bench.name("made");
    bench.adopt(&service);
    let fixed = ["service", "create", "--detach", "--stop-grace-period", "100ms", "--name"];
    bench.cli.ok(&[&fixed[..], &[&service, &made, "sleep", "1000000"]].concat())?;
    let container = bench.container(&service)?;
    let looked = "ls /etc /home; cat /two; stat -c %h:%a /one; test -p /fifo && stat -c %s /holes";
    let looked = bench.exec(&container, &["sh", "-c", looked])?;
    let expected = "/home:\nnew\nlinked\n2:4755\n1000001";
    ensure!(looked.ends_with(expected) && !looked.contains("group"), "{looked}");

    // What came from there goes back as it was.
    let again = place(bench, "again.tar").display().to_string();
    bench.cli.ok(&["save", "-o", &again, &made])?;
    engine.run(&["rm", &maker])?;
    engine.run(&["rmi", &made])?;
    engine.run(&["load", "-i", &again])?;
    ensure!(engine.run(&["image", "inspect", "-f", "{{.Id}}", &made])? == made_id, "unchanged");
    if by_docker(bench) {
        check_form(&path)?;
    }
    Ok(())
}

/// The archive has what both old and new engines look for.
fn check_form(path: &Path) -> Result<()> {
    let mut archive = tar::Archive::new(File::open(path)?);
    let mut names = Vec::new();
    for entry in archive.entries()? {
        names.push(entry?.path()?.display().to_string());
    }
    for wanted in ["index.json", "manifest.json", "oci-layout"] {
        ensure!(names.iter().any(|name| name == wanted), "{wanted} in {names:?}");
    }
    Ok(())
}
