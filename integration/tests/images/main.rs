//! Images as archives: saved, loaded, run, refused and removed. Driven by both clients, and by the
//! real engine where it is installed.

mod archive;
mod dockerd;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_integration::{Bench, Node, Options, Program, by_both, wait_until};

by_both! {
    several_names_come_back by_id_without_a_name refusals_leave_nothing terminals_are_spared
    layers_hide_and_link images_in_use_stay
}

/// Longest wait for what should be there at once, on a busy machine.
const BOUND: Duration = Duration::from_secs(30);

/// A file of the node's own directory.
fn place(bench: &Bench<'_>, name: &str) -> PathBuf {
    bench.node.root().join(bench.name(name))
}

/// Makes an image of its own from busybox: one more variable, another id.
fn image(bench: &Bench<'_>, base: &str) -> Result<String> {
    let tar = skep_integration::busybox_tar(bench.node.root())?.display().to_string();
    let name = format!("{}:1", bench.name(base));
    bench.cli.ok(&["import", "--change", &format!("ENV NAME={name}"), &tar, &name])?;
    Ok(name)
}

fn id_of(bench: &Bench<'_>, name: &str) -> Result<String> {
    Ok(bench.inspect("image", name)?["Id"].as_str().context("Id")?.to_owned())
}

/// Files of layers and blobs, and whatever else lies in the store.
fn stored(bench: &Bench<'_>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for below in ["images", "images/blobs/sha256", "layers"] {
        for entry in fs::read_dir(bench.node.data_root().join(below))? {
            found.push(format!("{below}/{}", entry?.file_name().to_string_lossy()));
        }
    }
    found.sort();
    Ok(found)
}

fn several_names_come_back(bench: &Bench<'_>) -> Result<()> {
    let first = image(bench, "first")?;
    let second = format!("host.example:5000/team/{}:2", bench.name("second"));
    bench.cli.ok(&["tag", &first, &second])?;
    let (before, file) = (bench.inspect("image", &first)?, place(bench, "several.tar"));
    let path = file.display().to_string();
    bench.cli.ok(&["save", "-o", &path, &first, &second])?;
    let out = bench.cli.run(&["image", "save", &second, &first])?;
    ensure!(out.code == 0 && out.bytes == fs::read(&file)?, "the same bytes to standard output");
    bench.cli.ok(&["rmi", &first, &second])?;
    let loaded = bench.cli.ok(&["load", "-i", &path])?;
    ensure!(loaded.contains(&format!("Loaded image: {first}")), "{loaded}");
    ensure!(loaded.contains(&format!("Loaded image: {second}")), "{loaded}");
    let after = bench.inspect("image", &first)?;
    for key in ["Id", "RepoDigests", "RootFS", "Size", "Created", "Config"] {
        ensure!(after[key] == before[key], "{key}: {} is now {}", before[key], after[key]);
    }
    ensure!(id_of(bench, &second)? == id_of(bench, &first)?, "both names");

    // Packed, through standard input, and again although it is there.
    let packed = Command::new("gzip").arg("-c").arg(&file).stdout(Stdio::piped()).output()?;
    let loaded = bench.cli.ok_with(&["image", "load", "--quiet"], &packed.stdout)?;
    ensure!(loaded.contains(&format!("Loaded image: {first}")), "{loaded}");

    let service = bench.name("from-archive");
    bench.adopt(&service);
    let fixed = ["service", "create", "--detach", "--stop-grace-period", "100ms", "--name"];
    bench.cli.ok(&[&fixed[..], &[&service, &first, "sleep", "1000000"]].concat())?;
    let container = bench.container(&service)?;
    ensure!(bench.exec(&container, &["sh", "-c", "echo $NAME"])? == first, "it runs");
    Ok(())
}

fn by_id_without_a_name(bench: &Bench<'_>) -> Result<()> {
    let name = image(bench, "nameless")?;
    let id = id_of(bench, &name)?;
    let path = place(bench, "nameless.tar").display().to_string();
    bench.cli.ok(&["save", "--output", &path, &id])?;
    bench.cli.ok(&["rmi", &name])?;
    let loaded = bench.cli.ok(&["load", "--input", &path])?;
    ensure!(loaded == format!("Loaded image ID: {id}"), "{loaded}");
    let shown = bench.inspect("image", &id)?;
    ensure!(shown["RepoTags"].as_array().is_some_and(Vec::is_empty), "{shown}");
    let removed = bench.cli.ok(&["rmi", &id])?;
    ensure!(removed.lines().next() == Some(&format!("Deleted: {id}")), "{removed}");

    // A name that moves leaves the old image without one.
    let mut files = archive::Files::default();
    files.image(&[archive::layer(&[("a", &name)])?], &[&name])?;
    bench.cli.ok_with(&["load"], &files.tar()?)?;
    let before = id_of(bench, &name)?;
    let mut files = archive::Files::default();
    files.image(&[archive::layer(&[("b", &name)])?], &[&name])?;
    let loaded = bench.cli.ok_with(&["load"], &files.tar()?)?;
    let moved = format!(
        "The image {name} already exists, renaming the old one with ID {before} to empty string\n\
         Loaded image: {name}"
    );
    ensure!(loaded == moved, "{loaded}");
    bench.cli.ok(&["rmi", &before, &name])?;
    Ok(())
}

fn refusals_leave_nothing(bench: &Bench<'_>) -> Result<()> {
    let missing = bench.cli.fails(1, &["save", "-o", "/dev/null", "x"])?;
    ensure!(missing.contains("failed to save image: cannot write to a char"), "{missing}");
    let path = place(bench, "missing.tar").display().to_string();
    let missing = bench.cli.fails(1, &["save", "-o", &path, "nosuch:1"])?;
    ensure!(missing.contains("Error response from daemon: No such image: nosuch:1"), "{missing}");
    ensure!(!PathBuf::from(&path).exists(), "no file for no image");
    let missing = bench.cli.fails(1, &["load", "-i", &path])?;
    ensure!(missing.contains("no such file or directory"), "{missing}");

    let name = format!("{}:1", bench.name("broken"));
    let good = archive::layer(&[("good", &name)])?;
    let marker = bench.node.root().join("outside");
    let out = format!("..{}", marker.display());
    let cases: [(Vec<u8>, &str); 4] = [
        (b"this is no archive".to_vec(), "no tar archive"),
        (archive::layer(&[("../up", "x")])?, "forbidden path"),
        (archive::layer(&[("a", "x")])?, "holds no images"),
        {
            let mut files = archive::Files::default();
            files.image(&[good.clone(), archive::layer(&[(&out, "x")])?], &[&name])?;
            (files.tar()?, "layer 2 cannot be unpacked")
        },
    ];
    for (bytes, text) in cases {
        let refused = bench.cli.fails_with(1, &["load"], &bytes)?;
        ensure!(refused.contains("Error response from daemon:"), "{refused}");
        ensure!(refused.contains(text), "{text}: {refused}");
    }
    ensure!(!marker.exists(), "nothing is written outside");
    ensure!(bench.cli.run(&["image", "inspect", &name])?.code == 1, "nothing is loaded");
    let layer = format!("layers/{}", archive::sha(&good));
    wait_until(
        "the store as it was",
        BOUND,
        || Ok((!stored(bench)?.contains(&layer)).then_some(())),
    )
}

/// Both clients refuse to write an archive to a terminal, or to wait for one to be typed.
fn terminals_are_spared(bench: &Bench<'_>) -> Result<()> {
    for (args, text) in [
        (["save", "busybox"].as_slice(), "cowardly refusing to save to a terminal"),
        (&["load"], "requested load from stdin, but stdin is empty"),
    ] {
        let command = bench.cli.command(args);
        let words = [command.get_program()].into_iter().chain(command.get_args());
        let line: Vec<_> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let mut script = Command::new("script");
        script.args(["-qec", &line.join(" "), "/dev/null"]).stdin(Stdio::null());
        let out = script.output().context("script, of bsdutils")?;
        let said = String::from_utf8_lossy(&out.stdout);
        ensure!(said.contains(text) && !out.status.success(), "{args:?}: {said}");
    }
    Ok(())
}

fn layers_hide_and_link(bench: &Bench<'_>) -> Result<()> {
    let base = fs::read(skep_integration::busybox_tar(bench.node.root())?)?;
    let below = archive::layer(&[("data/gone", "x"), ("data/kept", "x"), ("dir/old", "x")])?;
    let above = archive::above()?;
    let name = format!("{}:1", bench.name("layers"));
    let mut files = archive::Files::default();
    files.image(&[base, below, above], &[&name])?;
    bench.cli.ok_with(&["load"], &files.tar()?)?;
    let service = bench.name("layers");
    bench.adopt(&service);
    let fixed = ["service", "create", "--detach", "--stop-grace-period", "100ms", "--name"];
    bench.cli.ok(&[&fixed[..], &[&service, &name, "sleep", "1000000"]].concat())?;
    let container = bench.container(&service)?;
    let run = |script: &str| bench.exec(&container, &["sh", "-c", script]);
    ensure!(run("ls /data")? == "kept", "a whiteout hides one file");
    ensure!(run("ls /dir")? == "new", "an opaque directory hides all below it");
    ensure!(run("cat /hard && stat -c %h /hard")? == "text2", "hard links are one file");
    ensure!(run("stat -c %a:%u:%g /setuid")? == "4755:4000000000:7", "modes and owners");
    ensure!(run("test -p /fifo && echo yes")? == "yes", "a fifo");
    ensure!(run("stat -c %t:%T /kmsg")? == "1:b", "a device");
    let opened = run("head -c 1 /kmsg 2>&1 || true")?;
    ensure!(opened.contains("Operation not permitted"), "and nobody opens it: {opened}");
    ensure!(run("stat -c %s /holes; du -k /holes | cut -f1")? == "8388608\n0", "holes");
    Ok(())
}

fn images_in_use_stay(bench: &Bench<'_>) -> Result<()> {
    let name = image(bench, "used")?;
    let id = id_of(bench, &name)?;
    let service = bench.name("user");
    bench.adopt(&service);
    let fixed = ["service", "create", "--detach", "--stop-grace-period", "100ms", "--name"];
    bench.cli.ok(&[&fixed[..], &[&service, &name, "sleep", "1000000"]].concat())?;
    let container = bench.container(&service)?;
    let (short, user) = (&id["sha256:".len()..][..12], &container[..12]);
    let refused = bench.cli.fails(1, &["rmi", &name])?;
    let text = format!(
        "conflict: unable to remove repository reference \"{name}\" (must force) - container \
         {user} is using its referenced image {short}"
    );
    ensure!(refused.contains(&text), "{refused}");
    for args in [&["rmi", &id][..], &["rmi", "--force", &id]] {
        let refused = bench.cli.fails(1, args)?;
        let text = format!(
            "conflict: unable to delete {short} (cannot be forced) - image is being used by \
             running container {user}"
        );
        ensure!(refused.contains(&text), "{refused}");
    }
    // By force the name goes; the image stays for as long as its container runs.
    let untagged = bench.cli.ok(&["rmi", "--force", &name])?;
    ensure!(!untagged.contains("Deleted"), "{untagged}");
    ensure!(bench.exec(&container, &["echo", "alive"])? == "alive", "it runs on");
    bench.cli.ok(&["service", "rm", &service])?;
    let removed = wait_until("the end of the container", BOUND, || {
        let out = bench.cli.run(&["rmi", &id])?;
        Ok((out.code == 0).then_some(out.stdout))
    })?;
    ensure!(removed.starts_with(&format!("Deleted: {id}")), "{removed}");
    let blob = format!("images/blobs/sha256/{}", id.trim_start_matches("sha256:"));
    ensure!(!stored(bench)?.contains(&blob), "its files are gone");
    Ok(())
}

/// Whether a client's half of a scenario is the docker CLI's.
fn by_docker(bench: &Bench<'_>) -> bool {
    bench.cli.program == Program::Docker
}

/// An upload that ends half-way, by its client or with the daemon, leaves nothing on disk.
#[test]
fn an_upload_that_breaks_off_leaves_nothing() -> Result<()> {
    let node = Node::start(Options::default())?;
    let mut files = archive::Files::default();
    files.image(&[archive::layer(&[("a", &"a".repeat(100_000))])?], &["app"])?;
    let tar = files.tar()?;
    let half = tar.get(..tar.len() / 2).unwrap_or_default();
    let staged = || -> Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(node.data_root().join("images"))? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".tmp-")) {
                // One that is being taken away may be gone by now.
                count += fs::read_dir(&path).map_or(0, Iterator::count);
            }
        }
        Ok(count)
    };
    let begin = || -> Result<skep_integration::Http> {
        let mut http = node.http()?;
        let head =
            "POST /images/load HTTP/1.1\r\nHost: skep\r\nContent-Type: application/x-tar\r\n";
        http.raw(format!("{head}Content-Length: {}\r\n\r\n", tar.len()).as_bytes())?;
        http.raw(half)?;
        wait_until("the first file", BOUND, || Ok((staged()? > 0).then_some(())))?;
        Ok(http)
    };
    drop(begin()?);
    wait_until("nothing left by the client", BOUND, || Ok((staged()? == 0).then_some(())))?;
    let _open = begin()?;
    node.kill_daemon()?;
    ensure!(staged()? > 0, "the daemon had no time to clear it");
    node.launch()?;
    ensure!(staged()? == 0, "the next start clears it");
    let reply = node.http()?.request("POST", "/images/load?quiet=1", "application/x-tar", &tar)?;
    ensure!(reply.status == 200, "{:?}", reply.message());
    Ok(())
}
