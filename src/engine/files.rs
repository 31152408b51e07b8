//! A task's directory: made before the shim starts, removed when nothing needs it any more.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use skep_core::model::container::Dns;

use super::plan::{Network, Plan};
use crate::files::{FileError, make_dir, remove_dir, write_atomic};
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
    write_atomic(&dir.join(HOSTS_FILE), hosts.as_bytes(), 0o644)?;
    write_atomic(&dir.join(RESOLV_FILE), with_dns(&resolv, &etc.dns).as_bytes(), 0o644)?;
    let hostname = format!("{}\n", etc.hostname);
    write_atomic(&dir.join(HOSTNAME_FILE), hostname.as_bytes(), 0o644)?;
    Ok(())
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
}
