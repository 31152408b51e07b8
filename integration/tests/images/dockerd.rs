//! The real engine beside skep: what one saves the other loads and runs.

use std::fs::File;
use std::path::Path;

use anyhow::{Result, ensure};
use skep_integration::{Bench, Dockerd, by_both};

use super::{by_docker, id_of, place};

by_both! { both_engines_take_each_others_archives }

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
