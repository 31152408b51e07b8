//! A task's directory: made before the shim starts, removed when nothing needs it any more.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use skep_core::model::container::Dns;

use super::plan::{Network, Plan};
use crate::files::{FileError, make_dir, remove_dir};
use crate::wire::launch::Launch;

/// Names in the task's directory of what is bound to `/etc`.
pub(super) const HOSTS_FILE: &str = "hosts";
pub(super) const HOSTNAME_FILE: &str = "hostname";
pub(super) const RESOLV_FILE: &str = "resolv.conf";
/// Bytes of a host's file that are taken over.
const HOST_FILE_BYTES: u64 = 1 << 20;

/// A task's directory cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum TaskFilesError {
    /// The disk failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A bind shows something that is not there.
    #[error("invalid mount config for type \"bind\": bind source path does not exist: {0}")]
    NoSource(PathBuf),
}

/// Makes the task's directories and files, and the sources of its binds where the user wants
/// that. May be called again.
///
/// # Errors
/// If a bind's source is missing or the disk fails.
pub fn prepare(plan: &Plan) -> Result<(), TaskFilesError> {
    for source in &plan.sources {
        match fs::metadata(&source.path) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound && source.create => {
                make_dir(&source.path, 0o755)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(TaskFilesError::NoSource(source.path.clone()));
            }
            Err(e) => return Err(FileError::on("look at", &source.path)(e).into()),
        }
    }
    let dir = Path::new(&plan.launch.task_dir);
    make_dir(dir, 0o700)?;
    for name in ["work", "logs"] {
        make_dir(&dir.join(name), 0o700)?;
    }
    make_upper(&dir.join("upper"), plan.launch.layers.last())?;
    make_dir(Path::new(&plan.launch.run_dir), 0o700)?;
    let etc = &plan.etc;
    let (hosts, resolv) = match plan.network {
        Network::Host => (read_host("/etc/hosts")?, read_host("/etc/resolv.conf")?),
        Network::None | Network::Private => {
            (private_hosts(&etc.hostname), without_loopback(&read_host("/etc/resolv.conf")?))
        }
    };
    let hosts = hosts + &etc.hosts.iter().map(|line| hosts_line(line)).collect::<String>();
    write(&dir.join(HOSTS_FILE), &hosts)?;
    write(&dir.join(RESOLV_FILE), &with_dns(&resolv, &etc.dns))?;
    write(&dir.join(HOSTNAME_FILE), &format!("{}\n", etc.hostname))?;
    Ok(())
}

/// Not flushed: no container outlives what would lose these files.
fn write(path: &Path, text: &str) -> Result<(), FileError> {
    let write = || {
        fs::write(path, text)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))
    };
    write().map_err(FileError::on("write", path))
}

/// Whether the host's cgroups are one hierarchy: version 2 alone.
#[must_use]
pub fn has_unified_cgroups() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Removes what the task left: its directory and its run directory.
///
/// # Errors
/// Names what cannot be removed.
pub fn remove(launch: &Launch) -> Result<(), FileError> {
    remove_dir(Path::new(&launch.run_dir))?;
    remove_dir(Path::new(&launch.task_dir))
}

/// The upper directory lends the container's root its owner and mode: they are the image's.
fn make_upper(upper: &Path, top_layer: Option<&String>) -> Result<(), FileError> {
    make_dir(upper, 0o755)?;
    let Some(layer) = top_layer.map(Path::new) else { return Ok(()) };
    let root = fs::metadata(layer).map_err(FileError::on("look at layer", layer))?;
    let adopt = || {
        std::os::unix::fs::chown(upper, Some(root.uid()), Some(root.gid()))?;
        fs::set_permissions(upper, fs::Permissions::from_mode(root.mode() & 0o7777))
    };
    adopt().map_err(FileError::on("set the mode of", upper))
}

/// A file of the host; nothing if it is not there.
fn read_host(path: &str) -> Result<String, FileError> {
    use std::io::Read as _;
    let read = || -> io::Result<String> {
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(HOST_FILE_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.map_err(FileError::on("read", Path::new(path))),
    }
}

fn private_hosts(hostname: &str) -> String {
    format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n\
         127.0.0.1\t{hostname}\n"
    )
}

/// One line of `hosts`, whatever separates its words. What has a line break in it would be
/// several lines.
fn hosts_line(line: &str) -> String {
    let mut words = line.split_whitespace();
    let Some(address) = words.next() else { return String::new() };
    let names: Vec<_> = words.collect();
    format!("{address}\t{}\n", names.join(" "))
}

/// The host's resolver settings without name servers on the host's own loopback: a namespace of
/// one's own has another.
fn without_loopback(resolv: &str) -> String {
    let is_loopback = |line: &&str| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver")
            && words.next().is_some_and(|ip| ip.starts_with("127.") || ip == "::1")
    };
    resolv.lines().filter(|line| !is_loopback(line)).map(|line| format!("{line}\n")).collect()
}

/// Puts what the spec says in place of what the host says of the same.
fn with_dns(resolv: &str, dns: &Dns) -> String {
    let said: [(&[&str], &[String]); 3] = [
        (&["nameserver"], &dns.nameservers),
        (&["search", "domain"], &dns.search),
        (&["options"], &dns.options),
    ];
    let is_replaced = |line: &&str| {
        let word = line.split_whitespace().next().unwrap_or_default();
        said.iter().any(|(words, values)| words.contains(&word) && !values.is_empty())
    };
    let kept = resolv.lines().filter(|line| !is_replaced(line));
    let mut text: String = kept.map(|line| format!("{line}\n")).collect();
    for server in &dns.nameservers {
        text += &format!("nameserver {}\n", one_line(server));
    }
    // A single dot stands for "no search domains".
    let search: Vec<_> = dns.search.iter().filter(|d| *d != ".").map(|d| one_line(d)).collect();
    if !search.is_empty() {
        text += &format!("search {}\n", search.join(" "));
    }
    if !dns.options.is_empty() {
        let options: Vec<_> = dns.options.iter().map(|o| one_line(o)).collect();
        text += &format!("options {}\n", options.join(" "));
    }
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_namespace_does_not_see_the_hosts_loopback_resolver() {
        let host = "# made by hand\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nsearch a.example\n";
        let kept = "# made by hand\nnameserver 10.0.0.2\nsearch a.example\n";
        assert_eq!(without_loopback(host), kept);
        let dns = Dns {
            nameservers: vec!["1.2.3.4".into()],
            search: vec![".".into()],
            options: vec!["ndots:1".into(), "x\ny".into()],
        };
        let said = "# made by hand\nnameserver 1.2.3.4\noptions ndots:1 x y\n";
        assert_eq!(with_dns(kept, &dns), said);
        assert_eq!(with_dns(kept, &Dns::default()), kept);
    }

    #[test]
    fn a_host_line_stays_one_line() {
        assert_eq!(hosts_line("10.0.0.1 db  db.example"), "10.0.0.1\tdb db.example\n");
        assert_eq!(hosts_line("10.0.0.1 a\n127.0.0.1 evil"), "10.0.0.1\ta 127.0.0.1 evil\n");
        assert_eq!(hosts_line("  "), "");
    }

    #[test]
    fn a_task_directory_is_made_again_and_removed() {
        use crate::engine::plan::tests::{assignment, image, node, sleeping};
        use crate::engine::plan::{Source, plan};

        let root = tempfile::tempdir().unwrap();
        let node = node(&root.path().join("data"), &root.path().join("run"));
        let mut plan = plan(&assignment(sleeping(|_| ())), &image(), &node).unwrap();
        let top = plan.launch.layers.last().unwrap();
        fs::create_dir_all(top).unwrap();
        fs::set_permissions(top, fs::Permissions::from_mode(0o751)).unwrap();
        plan.etc.hosts = vec!["10.0.0.1 db".into()];
        let made = root.path().join("made/deep");
        plan.sources = vec![Source { path: made.clone(), create: true }];
        for _ in 0..2 {
            prepare(&plan).unwrap();
        }
        assert!(made.is_dir());
        let dir = Path::new(&plan.launch.task_dir);
        assert_eq!(fs::metadata(dir.join("upper")).unwrap().mode() & 0o7777, 0o751);
        assert!(dir.join("work").is_dir() && dir.join("logs").is_dir());
        let hosts = fs::read_to_string(dir.join(HOSTS_FILE)).unwrap();
        assert!(hosts.ends_with(&format!("127.0.0.1\t{}\n10.0.0.1\tdb\n", plan.etc.hostname)));
        assert_eq!(fs::metadata(dir.join(RESOLV_FILE)).unwrap().mode() & 0o7777, 0o644);
        plan.sources = vec![Source { path: root.path().join("none"), create: false }];
        let refused = prepare(&plan).unwrap_err();
        assert!(refused.to_string().contains("bind source path does not exist: "), "{refused}");
        for _ in 0..2 {
            remove(&plan.launch).unwrap();
            assert!(!dir.exists() && !Path::new(&plan.launch.run_dir).exists());
        }
    }
}
