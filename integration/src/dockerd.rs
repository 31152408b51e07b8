//! The real engine, where it is installed.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait_until;

/// Longest start on a busy machine.
const BOUND: Duration = Duration::from_secs(120);

/// A real dockerd with roots, mounts and a network of its own.
#[derive(Debug)]
pub struct Dockerd {
    root: PathBuf,
    child: Child,
}

impl Dockerd {
    /// Starts it; none if it is not installed.
    pub fn start() -> Result<Option<Self>> {
        let found = Command::new("dockerd").arg("--version").stdout(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        let root = tempfile::Builder::new().prefix("skep-dockerd.").tempdir()?.keep();
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

    /// Runs the docker CLI against it; answers standard output without trailing blank space.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let host = format!("unix://{}", self.root.join("sock").display());
        let mut command = Command::new("docker");
        command.args(["-H", &host]).args(args).env_remove("DOCKER_CONTEXT");
        // The other builder is a plugin of its own, which need not be there.
        command.env("DOCKER_BUILDKIT", "0");
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
