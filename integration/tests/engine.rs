//! What a container gets from its image and its service: command, user, limits, mounts, network,
//! the kernel's confinement. Driven by both clients.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_integration::{Bench, Program, busybox_tar, by_both, settle, wait_until};

by_both! {
    image_configuration_is_honoured images_by_every_name limits_reach_the_kernel
    binds_and_memory_mounts a_bind_without_its_source_says_so networks_host_none_and_private
    names_and_resolver confinement root_without_capabilities_obeys_modes read_only_root grace_ends_with_a_kill
}

const BOUND: Duration = Duration::from_secs(20);

/// Pid on the host of a container's first process.
fn pid_of(bench: &Bench<'_>, container: &str) -> Result<i64> {
    let shown = bench.node.get(&format!("/containers/{container}/json"))?;
    shown["State"]["Pid"].as_i64().context("no Pid")
}

/// The service's log once it holds `text`.
fn log_with(bench: &Bench<'_>, service: &str, text: &str) -> Result<String> {
    let what = format!("{text:?} in the log of {service}");
    wait_until(&what, BOUND, || {
        let log = bench.cli.ok(&["service", "logs", "--raw", service])?;
        Ok(log.contains(text).then_some(log))
    })
}

fn image_configuration_is_honoured(bench: &Bench<'_>) -> Result<()> {
    let tar = busybox_tar(bench.node.root())?.display().to_string();
    let image = format!("{}:1", bench.name("configured"));
    let script = "id -un; pwd; echo $FROM; trap 'echo stopped by INT; exit 0' INT; \
                  while :; do sleep 0.05; done";
    let changes = [
        "USER app".to_owned(),
        "WORKDIR /srv/work".to_owned(),
        "ENV FROM=image".to_owned(),
        "STOPSIGNAL SIGINT".to_owned(),
        "EXPOSE 80".to_owned(),
        "ENTRYPOINT [\"/bin/sh\", \"-c\"]".to_owned(),
        format!("CMD [{}]", serde_json::to_string(script)?),
    ];
    let mut args = vec!["import"];
    for change in &changes {
        args.extend(["--change", change]);
    }
    args.extend([tar.as_str(), image.as_str()]);
    bench.cli.ok(&args)?;

    let service = bench.name("configured");
    bench.adopt(&service);
    bench.cli.ok(&["service", "create", "--detach", "--name", &service, &image])?;
    let container = bench.container(&service)?;
    let log = log_with(bench, &service, "image")?;
    ensure!(log == "app\n/srv/work\nimage", "{log:?}");
    let table = bench.cli.ok(&["ps", "--filter", &format!("name={service}")])?;
    ensure!(table.contains("80/tcp"), "the exposed port: {table}");

    // The image's stop signal reaches the process, and what the service says wins over the image.
    bench.cli.ok(&[
        "service",
        "update",
        "--detach",
        "--env-add",
        "FROM=service",
        "--user",
        "nobody",
        &service,
    ])?;
    bench.replaced(&service, &[container], 1)?;
    let log = log_with(bench, &service, "service")?;
    ensure!(log.contains("stopped by INT"), "{log:?}");
    ensure!(log.contains("nobody\n/srv/work\nservice"), "{log:?}");

    // Arguments replace the command behind the image's entrypoint.
    let other = bench.name("arguments");
    bench.adopt(&other);
    bench.cli.ok(&[
        "service",
        "create",
        "--detach",
        "--restart-condition",
        "none",
        "--name",
        &other,
        &image,
        "echo only this",
    ])?;
    ensure!(log_with(bench, &other, "this")? == "only this", "arguments");
    Ok(())
}

fn images_by_every_name(bench: &Bench<'_>) -> Result<()> {
    let image = bench.inspect("image", "busybox:latest")?;
    let id = image["Id"].as_str().context("Id")?;
    let digest = image["RepoDigests"][0].as_str().context("RepoDigests")?;
    let short = id.trim_start_matches("sha256:").get(..12).context("short")?;
    let mut names = vec!["busybox", "docker.io/library/busybox:latest", digest, id];
    if bench.cli.program == Program::Skep {
        // The docker CLI takes the beginning of an id for a name and asks for its tag latest.
        names.push(short);
    }
    for (index, name) in names.into_iter().enumerate() {
        let service = bench.name(&format!("named-{index}"));
        bench.adopt(&service);
        bench.cli.ok(&[
            "service",
            "create",
            "--detach",
            "--stop-grace-period",
            "100ms",
            "--name",
            &service,
            name,
            "sleep",
            "1000000",
        ])?;
        let container = bench.container(&service).with_context(|| format!("image {name}"))?;
        let shown = bench.node.get(&format!("/containers/{container}/json"))?;
        ensure!(shown["Image"] == id, "{name}: {}", shown["Image"]);
    }
    Ok(())
}

/// A file of the control group a process is in: by version 1 controller, or in version 2.
fn group_file(pid: i64, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path_of = |wanted: &dyn Fn(&str) -> bool| {
        let parts = groups.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        let mut found = parts.filter(|p| p.len() == 3 && wanted(p[1]));
        found.next().map(|p| p[2].trim_start_matches('/').to_owned())
    };
    let file: PathBuf = match path_of(&|names| names.split(',').any(|name| name == controller)) {
        Some(path) => {
            let mount = Path::new("/sys/fs/cgroup").join(controller);
            mount.join(path).join(v1)
        }
        None => {
            let path = path_of(&str::is_empty).context("no control group")?;
            Path::new("/sys/fs/cgroup").join(path).join(v2)
        }
    };
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(text.trim().to_owned())
}

fn limits_reach_the_kernel(bench: &Bench<'_>) -> Result<()> {
    let flags = ["--limit-memory", "64M", "--limit-cpu", "0.5", "--limit-pids", "37"];
    let service = bench.sleeper("limited", &flags)?;
    let pid = pid_of(bench, &bench.container(&service)?)?;
    let memory = group_file(pid, "memory", "memory.limit_in_bytes", "memory.max")?;
    ensure!(memory == "67108864", "memory: {memory}");
    let pids = group_file(pid, "pids", "pids.max", "pids.max")?;
    ensure!(pids == "37", "pids: {pids}");
    let cpu = group_file(pid, "cpu", "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(cpu.split(' ').next() == Some("50000"), "cpu: {cpu}");
    Ok(())
}

fn binds_and_memory_mounts(bench: &Bench<'_>) -> Result<()> {
    let source = bench.node.root().join(bench.name("bound"));
    fs::create_dir_all(&source)?;
    fs::write(source.join("file"), "from the host\n")?;
    let place = source.display();
    let read_only = format!("type=bind,source={place},target=/ro,readonly");
    let writable = format!("type=bind,source={place},target=/rw");
    let flags = [
        "--mount",
        read_only.as_str(),
        "--mount",
        writable.as_str(),
        "--mount",
        "type=tmpfs,target=/scratch,tmpfs-size=1048576,tmpfs-mode=1770",
    ];
    let service = bench.sleeper("mounts", &flags)?;
    let container = bench.container(&service)?;
    ensure!(bench.exec(&container, &["cat", "/ro/file"])? == "from the host", "bind");
    let out = bench.cli.run(&["exec", &container, "touch", "/ro/new"])?;
    ensure!(out.code != 0 && out.stderr.contains("Read-only file system"), "{out:?}");
    bench.exec(&container, &["sh", "-c", "echo back >/rw/answer"])?;
    ensure!(fs::read_to_string(source.join("answer"))? == "back\n", "answer");
    let mounts = bench.exec(&container, &["grep", " /scratch ", "/proc/mounts"])?;
    ensure!(mounts.starts_with("tmpfs ") && mounts.contains("size=1024k"), "{mounts}");
    let mode = bench.exec(&container, &["stat", "-c", "%a", "/scratch"])?;
    ensure!(mode == "1770", "{mode}");
    Ok(())
}

fn a_bind_without_its_source_says_so(bench: &Bench<'_>) -> Result<()> {
    let missing = bench.node.root().join(bench.name("missing")).display().to_string();
    let mount = format!("type=bind,source={missing},target=/data");
    let service = bench.sleeper("unbound", &["--mount", &mount, "--restart-condition", "none"])?;
    settle("the rejected task", BOUND, || {
        let tasks = bench.cli.ok(&["service", "ps", "--no-trunc", &service])?;
        Ok(tasks.contains("Rejected") && tasks.contains(&missing))
    })
}

fn networks_host_none_and_private(bench: &Bench<'_>) -> Result<()> {
    let links = |flags: &[&str], base: &str| -> Result<(String, String)> {
        let service = bench.sleeper(base, flags)?;
        let container = bench.container(&service)?;
        let pid = pid_of(bench, &container)?;
        let space = fs::read_link(format!("/proc/{pid}/ns/net"))?.display().to_string();
        let up = bench.exec(&container, &["cat", "/proc/net/dev"])?;
        Ok((space, up))
    };
    let own = fs::read_link("/proc/self/ns/net")?.display().to_string();
    let (space, _) = links(&["--network", "host"], "on-host")?;
    ensure!(space == own, "host: {space}");
    for (flags, base) in [(&["--network", "none"][..], "on-none"), (&[][..], "on-default")] {
        let (space, devices) = links(flags, base)?;
        ensure!(space != own, "{base}: the host's own network");
        let named = devices.lines().filter(|line| line.contains(':')).count();
        ensure!(named >= 1 && devices.contains("lo:"), "{base}: {devices}");
        let service = bench.name(base);
        let container = bench.container(&service)?;
        bench.exec(&container, &["ping", "-c", "1", "-w", "2", "127.0.0.1"])?;
    }
    Ok(())
}

fn names_and_resolver(bench: &Bench<'_>) -> Result<()> {
    // Without a word of the service it is the container id's beginning, as with Docker.
    let container = bench.container(&bench.sleeper("unnamed", &[])?)?;
    let name = bench.exec(&container, &["hostname"])?;
    ensure!(container.get(..12) == Some(name.as_str()), "{name} in {container}");
    let hosts = bench.exec(&container, &["cat", "/etc/hosts"])?;
    ensure!(hosts.contains("127.0.0.1\tlocalhost") && hosts.contains(&name), "{hosts}");
    bench.exec(&container, &["test", "-f", "/etc/resolv.conf"])?;

    let service = bench.sleeper("named", &["--hostname", "chosen"])?;
    let container = bench.container(&service)?;
    ensure!(bench.exec(&container, &["hostname"])? == "chosen", "hostname");
    ensure!(bench.exec(&container, &["cat", "/etc/hostname"])? == "chosen", "/etc/hostname");
    if bench.cli.program == Program::Skep {
        // These flags come to skep's own client with the rest of Docker's.
        return Ok(());
    }
    let flags = ["--host", "db:192.0.2.7", "--dns", "192.0.2.53", "--dns-search", "example.test"];
    let container = bench.container(&bench.sleeper("resolving", &flags)?)?;
    let hosts = bench.exec(&container, &["cat", "/etc/hosts"])?;
    ensure!(hosts.contains("192.0.2.7\tdb"), "{hosts}");
    let resolver = bench.exec(&container, &["cat", "/etc/resolv.conf"])?;
    ensure!(resolver.contains("nameserver 192.0.2.53"), "{resolver}");
    ensure!(resolver.contains("search example.test"), "{resolver}");
    Ok(())
}

fn confinement(bench: &Bench<'_>) -> Result<()> {
    let container = bench.container(&bench.sleeper("confined", &[])?)?;
    let status = bench.exec(&container, &["cat", "/proc/1/status"])?;
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.map(|rest| rest.trim_start_matches(':').trim().to_owned()).unwrap_or_default()
    };
    ensure!(value("CapEff") == "00000000a80425fb", "{status}");
    ensure!(value("CapBnd") == "00000000a80425fb", "{status}");
    ensure!(value("Seccomp") == "2", "{status}");
    for refused in [
        "mount -t tmpfs none /mnt",
        "echo 1 >/proc/sys/kernel/panic",
        "unshare -m true",
        "echo 1 >/proc/sysrq-trigger",
    ] {
        let out = bench.cli.run(&["exec", &container, "sh", "-c", refused])?;
        ensure!(out.code != 0, "{refused}: {out:?}");
    }
    let masked = bench.exec(&container, &["sh", "-c", "head -c 1 /proc/kcore | wc -c"])?;
    ensure!(masked.trim() == "0", "/proc/kcore can be read: {masked}");

    let flags = ["--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE"];
    let container = bench.container(&bench.sleeper("bare", &flags)?)?;
    let caps = bench.exec(&container, &["grep", "CapEff", "/proc/1/status"])?;
    ensure!(caps.ends_with("0000000000000400"), "{caps}");
    Ok(())
}

fn root_without_capabilities_obeys_modes(bench: &Bench<'_>) -> Result<()> {
    let secret = bench.secret("private", "for 2000 alone")?;
    let grant = format!("source={secret},target=private,uid=2000,gid=2000,mode=0400");
    for (base, flags, code) in [("bare", &["--cap-drop", "ALL"][..], 1), ("able", &[][..], 0)] {
        let flags = [flags, &["--secret", &grant]].concat();
        let container = bench.container(&bench.sleeper(&format!("{base}-root"), &flags)?)?;
        let out = bench.cli.run(&["exec", &container, "cat", "/run/secrets/private"])?;
        ensure!(out.code == code, "{base}: {out:?}");
        ensure!(code == 0 || out.stderr.contains("Permission denied"), "{base}: {out:?}");
        let (ended, text) = bench.exec_as("2000", &container, &["cat", "/run/secrets/private"])?;
        ensure!(ended == 0 && text == "for 2000 alone", "{base}: {text}");
    }
    Ok(())
}

fn read_only_root(bench: &Bench<'_>) -> Result<()> {
    let container = bench.container(&bench.sleeper("fixed", &["--read-only"])?)?;
    let out = bench.cli.run(&["exec", &container, "touch", "/new"])?;
    ensure!(out.code != 0 && out.stderr.contains("Read-only file system"), "{out:?}");
    Ok(())
}

fn grace_ends_with_a_kill(bench: &Bench<'_>) -> Result<()> {
    // The first process of a container ignores a signal that it has no handler for.
    let service = bench.service("stubborn", &[], &["sleep", "1000000"])?;
    let container = bench.container(&service)?;
    let pid = pid_of(bench, &container)?;
    bench.cli.ok(&["service", "scale", "--detach", &format!("{service}=0")])?;
    settle("the end of the process", BOUND, || Ok(!Path::new(&format!("/proc/{pid}")).exists()))?;
    settle("the end of the container", BOUND, || {
        Ok(bench.cli.ok(&["ps", "-aq", "--filter", &format!("name={service}")])?.is_empty())
    })
}
