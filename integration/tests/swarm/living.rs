//! Secrets that change while tasks hold them.

use std::fs;
use std::io::Read;

use anyhow::{Result, ensure};
use skep_integration::{by_both, look, settle};

use crate::{BOUND, OTHER, Scene, WORKER};

by_both! { with crate::calm: a_new_version_reaches_running_tasks a_set_is_updated_as_one }

fn a_new_version_reaches_running_tasks(scene: &Scene) -> Result<()> {
    let secret = scene.bench.secret("turns", "first")?;
    let (_, placed) = scene.sleeper_on(WORKER, "turns", &["--secret", &secret])?;
    let seen = look(scene.cluster.node(WORKER), &placed[0].container)?;
    let mut before = seen.open(&format!("/run/secrets/{secret}"))?;
    // By a manager that does not hold the task's session, and may not lead.
    let skep = scene.cluster.node(1).skep();
    let said = skep.ok_with(&["secret", "update", &secret, "-"], b"second")?;
    ensure!(said == format!("{secret} 2"), "{said}");
    let reads = |value: &str| Ok(scene.read(&placed[0], &secret)? == value);
    settle("the second version", BOUND, || reads("second"))?;
    let mut text = String::new();
    before.read_to_string(&mut text)?;
    ensure!(text == "first", "an open file changed: {text}");

    let said = skep.ok_with(&["secret", "update", &secret, "-"], b"second")?;
    ensure!(said == format!("{secret} 2"), "the same bytes made a version: {said}");
    let said = skep.ok(&["secret", "rollback", &secret])?;
    ensure!(said == format!("{secret} 3"), "{said}");
    settle("the first bytes again", BOUND, || reads("first"))?;
    let refused = skep.run(&["secret", "rollback", &secret, "9"])?;
    ensure!(refused.code == 1 && refused.stderr.contains("has no version 9"), "{refused:?}");
    let history = skep.ok(&["secret", "history", &secret])?;
    let lines: Vec<&str> = history.lines().collect();
    ensure!(lines.len() == 4 && lines[1].starts_with('3'), "{history}");
    ensure!(lines[1].contains("uid 0 at n2") && lines[1].contains("turns"), "{history}");
    ensure!(!seen.is_dead(), "the task did not survive");
    Ok(())
}

fn a_set_is_updated_as_one(scene: &Scene) -> Result<()> {
    let (key, cert) = (scene.bench.secret("key", "key 1")?, scene.bench.secret("cert", "cert 1")?);
    let grants = ["--secret", key.as_str(), "--secret", cert.as_str()];
    let (_, placed) = scene.sleeper_on(OTHER, "pair", &grants)?;
    let skep = scene.cluster.node(0).skep();
    let root = scene.cluster.root();
    let file = |name: &str, text: &str| -> Result<String> {
        let path = root.join(scene.bench.name(name));
        fs::write(&path, text)?;
        Ok(format!("{name}={}", path.display()))
    };
    let [new_key, new_cert] = [file(&key, "key 2")?, file(&cert, "cert 2")?];
    let refused = skep.run(&["secret", "update", &new_key, &file("nobody", "x")?])?;
    ensure!(refused.code == 1, "{refused:?}");
    ensure!(scene.read(&placed[0], &key)? == "key 1", "a refused set changed something");
    let said = skep.ok(&["secret", "update", "--keep", "2", &new_key, &new_cert])?;
    ensure!(said == format!("{key} 2\n{cert} 2"), "{said}");
    settle("both", BOUND, || {
        let both = [scene.read(&placed[0], &key)?, scene.read(&placed[0], &cert)?];
        Ok(both == ["key 2", "cert 2"])
    })?;
    let history = skep.ok(&["secret", "history", "-q", &key])?;
    ensure!(history == "2\n1", "{history}");
    Ok(())
}
