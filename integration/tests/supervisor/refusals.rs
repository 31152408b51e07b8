//! What a shim will not do.

use anyhow::{Context, Result, bail, ensure};
use skep::wire::shim::{FromShim, ShimState, ToShim};
use skep_core::id::MaterialId;
use skep_core::model::material::MaterialKind;

use crate::rig::{GRANTS, Rig, Shim};

fn refused(shim: &mut Shim, request: &str) -> Result<String> {
    match shim.hear()? {
        FromShim::Refused { request: of, reason, .. } if of == request => Ok(reason),
        other => bail!("not refused but {other:?}"),
    }
}

#[test]
fn deliveries_that_are_not_for_it() -> Result<()> {
    let mut rig = Rig::new(&["sleep", "100"])?;
    let secret = rig.grant(MaterialKind::Secret, "s", "s")?;
    let mut shim = rig.spawn()?;
    shim.say(&ToShim::Start)?;
    let early = refused(&mut shim, "start")?;
    ensure!(early.contains("\"s\""), "{early}");

    let stranger = MaterialId::from_entropy([7; 17]);
    let mixed = shim.sealed(1, &[(secret, 1, "x"), (stranger, 1, "y")])?;
    shim.say(&ToShim::Deliver(mixed))?;
    refused(&mut shim, "deliver")?;
    let mut forged = shim.sealed(2, &[(secret, 1, "swordfish")])?;
    *forged.items[0].sealed.last_mut().context("empty")? ^= 1;
    shim.say(&ToShim::Deliver(forged))?;
    let reason = refused(&mut shim, "deliver")?;
    ensure!(!reason.contains("swordfish"), "{reason}");
    let mut replayed = shim.sealed(3, &[(secret, 1, "swordfish")])?;
    replayed.sequence = 4;
    shim.say(&ToShim::Deliver(replayed))?;
    refused(&mut shim, "deliver")?;
    let mut short = shim.sealed(5, &[(secret, 1, "swordfish")])?;
    short.items[0].size = 3;
    shim.say(&ToShim::Deliver(short))?;
    refused(&mut shim, "deliver")?;

    let good = shim.sealed(6, &[(secret, 2, "swordfish")])?;
    shim.say(&ToShim::Deliver(good.clone()))?;
    let held = vec![(secret, 2)];
    let answer = |sequence| FromShim::Delivered { sequence, held: held.clone(), last: 6 };
    ensure!(shim.hear()? == answer(6));
    shim.say(&ToShim::Deliver(good))?;
    ensure!(shim.hear()? == answer(6), "the same once more");
    let late = shim.sealed(5, &[(secret, 3, "late")])?;
    shim.say(&ToShim::Deliver(late))?;
    ensure!(shim.hear()? == answer(5), "a late one changes nothing and is answered");
    let older = shim.sealed(7, &[(secret, 1, "older")])?;
    shim.say(&ToShim::Deliver(older))?;
    refused(&mut shim, "deliver")?;

    shim.say(&ToShim::Signal { signal: 1 })?;
    refused(&mut shim, "signal")?;
    let exec = shim.exec(&["true"])?;
    ensure!(exec.code == 126 && exec.error.is_some_and(|e| e.contains("is not running")));
    shim.say(&ToShim::Stop { signal: 15, grace_ms: 1_000 })?;
    let status = shim.status(|s| s == ShimState::Exited)?;
    ensure!(status.exit.context("no exit")?.started_ns == 0);
    shim.gone()?;
    shim.nothing_left()
}

/// A grant too many is refused in words that name the limit, and nothing of the rest shows.
#[test]
fn more_grants_than_a_task_may_have() -> Result<()> {
    let mut rig = Rig::new(&["sleep", "100"])?;
    let grants: Vec<_> = (0..=GRANTS)
        .map(|i| rig.grant(MaterialKind::Secret, &format!("s{i}"), &format!("s{i}")))
        .collect::<Result<_>>()?;
    let mut shim = rig.spawn()?;
    let items: Vec<_> = grants.iter().map(|material| (*material, 1, "swordfish")).collect();
    let delivery = shim.sealed(1, &items)?;
    shim.say(&ToShim::Deliver(delivery))?;
    let reason = refused(&mut shim, "deliver")?;
    ensure!(reason.ends_with("too much for one task: grants (at most 64)"), "{reason}");
    shim.say(&ToShim::Start)?;
    let reason = refused(&mut shim, "start")?;
    ensure!(reason.contains("no payload for \"s0\""), "{reason}");
    ensure!(shim.hello.held.is_empty());
    Ok(())
}

#[test]
fn containers_that_cannot_start_say_why() -> Result<()> {
    let fails = |rig: Rig| -> Result<(i32, String)> {
        let mut shim = rig.spawn()?;
        let status = shim.start()?;
        ensure!(status.state == ShimState::Failed, "{status:?}");
        let exit = status.exit.context("no exit")?;
        shim.gone()?;
        ensure!(shim.exit_record()? == exit);
        shim.nothing_left()?;
        Ok((exit.code, exit.error.context("no error")?))
    };
    let (code, error) = fails(Rig::new(&["nosuch"])?)?;
    ensure!(code == 127 && error.starts_with("starting container failed: "), "{error}");
    ensure!(error.contains("exec: \"nosuch\": executable file not found in $PATH"), "{error}");
    let (code, error) = fails(Rig::new(&["/bin/plain"])?)?;
    ensure!(code == 126 && error.contains("permission denied"), "{error}");
    let mut rig = Rig::new(&["true"])?;
    rig.launch.user = "ghost".into();
    let (_, error) = fails(rig)?;
    let words = "unable to find user ghost: no matching entries in passwd file";
    ensure!(error.contains(words), "{error}");
    let mut rig = Rig::new(&["true"])?;
    rig.launch.runtime = "/nonexistent/runc".into();
    let (code, error) = fails(rig)?;
    ensure!(code == 128 && error.contains("/nonexistent/runc"), "{error}");
    let mut rig = Rig::new(&["true"])?;
    rig.launch.bundle = "{}".into();
    let (_, error) = fails(rig)?;
    ensure!(error.contains("the bundle has no process"), "{error}");
    let mut rig = Rig::new(&["true"])?;
    rig.launch.layers.push("/nonexistent/layer".into());
    let (_, error) = fails(rig)?;
    ensure!(error.contains("cannot mount the container's root"), "{error}");
    Ok(())
}

#[test]
fn nonsense_on_the_socket_ends_that_connection_only() -> Result<()> {
    use std::io::Write;
    let mut shim = Rig::new(&["sleep", "100"])?.spawn()?;
    shim.stream.write_all(&[0, 0, 0, 3, 0xff, 0xff, 0xff])?;
    refused(&mut shim, "connection")?;
    ensure!(shim.hear().is_err());
    shim.reconnect()?;
    shim.stream.write_all(&u32::MAX.to_be_bytes())?;
    refused(&mut shim, "connection")?;
    shim.reconnect()?;
    ensure!(shim.start()?.state == ShimState::Running);
    Ok(())
}
