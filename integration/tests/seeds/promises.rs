//! What the manual promises of a secret: its size, where it lives, when it goes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_integration::{
    Bench, Marker, by_both, mounts_naming, processes_of, scan_disk, scan_memory, settle,
};

by_both! {
    s035_sizes_and_bytes s036_intended_kinds s051_new_or_running_service s052_custom_location
    s055_gone_when_the_container_stops s058_removal_refused_while_used
}

const TOO_LARGE: &str = "rpc error: code = InvalidArgument desc = secret data must be larger than 0 and less than 512000 bytes";

fn s035_sizes_and_bytes(bench: &Bench<'_>) -> Result<()> {
    // Every byte value, NUL first, in a pattern that shows a shift or a lost block.
    let binary: Vec<u8> = (0..511_999_u32).map(|at| (at % 256 + at / 4096) as u8).collect();
    let large = bench.secret("large", &binary)?;
    let small = bench.secret("small", [0])?;
    let service = bench.sleeper("sizes", &["--secret", &large, "--secret", &small])?;
    let container = bench.container(&service)?;
    for (name, wanted) in [(&large, binary.as_slice()), (&small, &[0])] {
        let read = bench.cli.run(&["exec", &container, "cat", &format!("/run/secrets/{name}")])?;
        ensure!(read.bytes == wanted, "{name}: {} of {} bytes", read.bytes.len(), wanted.len());
    }

    let name = bench.name("too-large");
    let error = bench.cli.fails_with(1, &["secret", "create", &name, "-"], &[b'x'; 512_000])?;
    ensure!(error.trim_end() == format!("Error response from daemon: {TOO_LARGE}"), "{error}");
    bench.cli.fails(1, &["secret", "inspect", &name])?;
    Ok(())
}

fn s036_intended_kinds(bench: &Bench<'_>) -> Result<()> {
    let key = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n";
    let kinds = [
        ("password", "pa$$ \"w\\ord'\n"),
        ("site.key", key),
        ("id_ed25519", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaA==\n-----END-----\n"),
        ("db_host", "db.example.internal"),
        ("unicode", "пароль–密码\n"),
    ];
    let mut flags = Vec::new();
    for (target, content) in kinds {
        flags.push(format!("source={},target={target}", bench.secret(target, content)?));
    }
    let flags: Vec<_> = flags.iter().flat_map(|flag| ["--secret", flag]).collect();
    let service = bench.sleeper("kinds", &flags)?;
    let container = bench.container(&service)?;
    for (target, content) in kinds {
        let read =
            bench.cli.run(&["exec", &container, "cat", &format!("/run/secrets/{target}")])?;
        ensure!(read.stdout == content, "{target}: {read:?}");
    }
    Ok(())
}

fn s051_new_or_running_service(bench: &Bench<'_>) -> Result<()> {
    let marker = Marker::new()?;
    let first = bench.secret("first", marker.text())?;
    let second = bench.secret("second", "granted later")?;
    let service = bench.sleeper("grant", &["--secret", &first])?;
    let before = bench.container(&service)?;
    let table = bench.exec(&before, &["cat", "/proc/mounts"])?;
    let mount = table.lines().find(|line| line.contains(" /run/secrets ")).context("no mount")?;
    ensure!(mount.contains(" fuse") && mount.contains("ro,"), "{mount}");
    for option in ["nosuid", "nodev", "noexec"] {
        ensure!(mount.contains(option), "{option}: {mount}");
    }

    bench.cli.ok(&["service", "update", "--detach", "--secret-add", &second, &service])?;
    let after = bench.replaced(&service, &[before], 1)?.remove(0);
    let read = bench.exec(&after, &["cat", &format!("/run/secrets/{second}")])?;
    ensure!(read == "granted later", "{read}");
    // By checksum: what a command prints is written to nobody's disk, but keep it out of the way.
    bench.exec(&after, &["sha256sum", &format!("/run/secrets/{first}")])?;

    for root in [bench.node.data_root(), bench.node.run_root()] {
        let hits = scan_disk(&root, &marker)?;
        ensure!(hits.is_empty(), "on the disk: {hits:?}");
    }
    let shown = mounts_naming(&bench.node.root().display().to_string())?;
    ensure!(shown.is_empty(), "the host's mount table: {shown:?}");
    Ok(())
}

fn s052_custom_location(bench: &Bench<'_>) -> Result<()> {
    let secret = bench.secret("site.conf", "server {}\n")?;
    let absolute = format!("source={secret},target=/etc/app/site.conf,mode=0440");
    let beside = format!("source={secret},target=/etc/passwd.d");
    let flags = ["--secret", &secret, "--secret", &absolute, "--secret", &beside];
    let service = bench.sleeper("place", &flags)?;
    let container = bench.container(&service)?;
    for path in [&format!("/run/secrets/{secret}"), "/etc/app/site.conf", "/etc/passwd.d"] {
        ensure!(bench.exec(&container, &["cat", path])? == "server {}", "{path}");
    }
    let mode = bench.exec(&container, &["stat", "-c", "%a", "/etc/app/site.conf"])?;
    ensure!(mode == "440", "{mode}");
    // A single file is put in place: the directory's other files stay visible.
    bench.exec(&container, &["test", "-s", "/etc/passwd"])?;
    let names = bench.exec(&container, &["ls", "/run/secrets"])?;
    ensure!(names == secret, "{names}");
    Ok(())
}

fn s055_gone_when_the_container_stops(bench: &Bench<'_>) -> Result<()> {
    let marker = Marker::new()?;
    let secret = bench.secret("marker", marker.text())?;
    let service = bench.sleeper("stop", &["--secret", &secret])?;
    let container = bench.container(&service)?;
    let path = format!("/run/secrets/{secret}");
    bench.exec(&container, &["sha256sum", &path])?;
    let shown = bench.node.get(&format!("/containers/{container}/json"))?;
    let pid = shown["State"]["Pid"].as_i64().context("Pid")?;
    // From outside through the container's root, with a descriptor that outlives it.
    let held = std::fs::File::open(format!("/proc/{pid}/root{path}"))?;
    let mut bytes = [0; 64];
    ensure!(std::os::unix::fs::FileExt::read_at(&held, &mut bytes, 0)? == 48, "held descriptor");
    bytes.fill(0);

    bench.cli.ok(&["service", "rm", &service])?;
    settle("the end of the container", Duration::from_secs(20), || {
        let all = processes_of(bench.node)?;
        let task = shown["Config"]["Labels"]["com.docker.swarm.task.id"].as_str().unwrap_or("?");
        Ok(!all.iter().any(|process| process.args.iter().any(|arg| arg.contains(task))))
    })?;
    let late = std::os::unix::fs::FileExt::read_at(&held, &mut bytes, 0);
    ensure!(late.is_err(), "a descriptor from before still reads {late:?}");
    let hits = scan_memory(&processes_of(bench.node)?, &marker)?;
    ensure!(hits.is_empty(), "in memory: {hits:?}");
    Ok(())
}

fn s058_removal_refused_while_used(bench: &Bench<'_>) -> Result<()> {
    let secret = bench.secret("used", "x")?;
    let service = bench.sleeper("user", &["--secret", &secret])?;
    let container = bench.container(&service)?;
    let error = bench.cli.fails(1, &["secret", "rm", &secret])?;
    ensure!(error.contains("is in use by the following service"), "{error}");
    let target = format!("DELETE /secrets/{secret} HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut http = bench.node.http()?;
    http.raw(target.as_bytes())?;
    ensure!(http.reply()?.status == 400, "status");
    ensure!(bench.exec(&container, &["cat", &format!("/run/secrets/{secret}")])? == "x", "read");
    Ok(())
}
