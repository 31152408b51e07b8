//! Joining, and everything that can be wrong with it: each message says which.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use skep::identity::token::root_digest;
use skep_integration::{ClusterOptions, Program, Role, by_both, name_of, settle};

use crate::{BOUND, Scene, alone, alone_by, row};

/// Longest refusal: a manager that is not there is given up on.
const REFUSAL: Duration = Duration::from_secs(30);

by_both! { with crate::join::one_and_a_spare: refused_joins_say_why members_do_not_join_again }

by_both! { with crate::join::one_and_three_spares: tokens_while_the_root_changes }

fn one_and_a_spare(program: Program, name: &str, scenario: fn(&Scene) -> Result<()>) -> Result<()> {
    let options =
        ClusterOptions { managers: 1, workers: 1, spares: 1, ..ClusterOptions::default() };
    alone_by(program, name, options, scenario)
}

fn one_and_three_spares(
    program: Program,
    name: &str,
    scenario: fn(&Scene) -> Result<()>,
) -> Result<()> {
    let options =
        ClusterOptions { managers: 1, workers: 1, spares: 3, ..ClusterOptions::default() };
    alone_by(program, name, options, scenario)
}

/// A token with another digest of the root, or with another secret.
fn altered(token: &str, part: usize) -> Result<String> {
    let mut parts: Vec<_> = token.split('-').map(str::to_owned).collect();
    let text = parts.get_mut(part).with_context(|| format!("no part {part} of a token"))?;
    // Still the right alphabet and length.
    let last = if text.ends_with('0') { '1' } else { '0' };
    text.pop();
    text.push(last);
    Ok(parts.join("-"))
}

fn refused_joins_say_why(scene: &Scene) -> Result<()> {
    const SPARE: usize = 2;
    let cluster = scene.cluster;
    let cli = cluster.node(SPARE).cli(scene.bench.cli.program).within(REFUSAL);
    let (token, manager) = (cluster.token(Role::Worker)?, cluster.endpoint(0));
    let refuse = |token: &str, to: &str| cli.fails(1, &["swarm", "join", "--token", token, to]);

    let digest = refuse(&altered(&token, 2)?, &manager)?;
    ensure!(digest.contains("digest"), "another root: {digest}");
    let secret = refuse(&altered(&token, 3)?, &manager)?;
    ensure!(secret.contains("its secret is none of this swarm"), "another secret: {secret}");
    ensure!(!secret.contains("rotated") && !secret.contains("digest"), "another secret: {secret}");
    let form = refuse("SWMTKN-1-nonsense", &manager)?;
    ensure!(form.contains("token"), "no token at all: {form}");
    let away = refuse(&token, "10.77.0.60:2377")?;
    ensure!(away.contains("10.77.0.60:2377"), "names the address: {away}");
    let worker = refuse(&token, &cluster.endpoint(1))?;
    ensure!(worker.contains(&cluster.endpoint(1)), "names the worker: {worker}");

    // Each role's token is rotated for itself, and is told by its role.
    let of_manager = cluster.token(Role::Manager)?;
    scene.bench.cli.ok(&["swarm", "join-token", "--rotate", "worker"])?;
    let rotated = refuse(&token, &manager)?;
    ensure!(rotated.contains("this worker token was rotated"), "rotated: {rotated}");
    ensure!(cluster.token(Role::Manager)? == of_manager, "the other token was rotated too");
    scene.bench.cli.ok(&["swarm", "join-token", "--rotate", "manager"])?;
    let rotated_manager = refuse(&of_manager, &manager)?;
    ensure!(rotated_manager.contains("this manager token was rotated"), "{rotated_manager}");
    // The one before the last is as old, and a restart forgets neither.
    scene.bench.cli.ok(&["swarm", "join-token", "--rotate", "worker"])?;
    cluster.restart(0)?;
    cluster.await_ready(2)?;
    ensure!(refuse(&token, &manager)? == rotated, "another message: {rotated}");
    let secret_again = refuse(&altered(&token, 3)?, &manager)?;
    ensure!(secret_again == secret, "never a token of this swarm: {secret_again}");

    let all = [&digest, &secret, &form, &away, &worker, &rotated, &rotated_manager];
    for (at, one) in all.iter().enumerate() {
        ensure!(all.iter().skip(at + 1).all(|other| other != one), "twice the same: {one}");
    }
    for one in all {
        // No message gives a secret away.
        for token in [&token, &of_manager] {
            let secret = token.rsplit('-').next().context("a token")?;
            ensure!(!one.contains(secret), "the secret is in the message: {one}");
        }
    }
    ensure!(scene.bench.node.get("/nodes")?.as_array().is_some_and(|all| all.len() == 2), "joined");

    // Certificates that would not last until they are renewed are refused as Docker does it.
    for (cli, verb) in [(&scene.bench.cli, "update"), (&cli, "init")] {
        let error = cli.fails(1, &["swarm", verb, "--cert-expiry", "30m"])?;
        let rule = "code = InvalidArgument desc = minimum certificate expiry time is: 1h0m0s";
        ensure!(error.contains(rule) && error.contains("30m0s"), "{verb}: {error}");
    }

    // None of it is in the way of a join that is right.
    let said = cluster.join(scene.bench.cli.program, SPARE, Role::Worker)?;
    ensure!(said == "This node joined a swarm as a worker.", "{said}");
    cluster.await_ready(3)
}

/// The digests by which tokens name the roots that the swarm trusts, the oldest first.
fn digests(scene: &Scene) -> Result<Vec<String>> {
    let shown = scene.bench.node.get("/swarm")?;
    let pem = shown["TLSInfo"]["TrustRoot"].as_str().context("TrustRoot")?;
    let parts = pem.split("-----END CERTIFICATE-----").filter(|part| !part.trim().is_empty());
    parts
        .map(|part| {
            let body = part.split("-----BEGIN CERTIFICATE-----").nth(1).context("a certificate")?;
            let body: String = body.split_whitespace().collect();
            Ok(root_digest(&STANDARD.decode(body)?))
        })
        .collect()
}

/// While the root changes a token of either root admits, and the old one is shown, as in Docker;
/// then only those of today, whose secrets are new too: an old one could be given another digest.
fn tokens_while_the_root_changes(scene: &Scene) -> Result<()> {
    let (cluster, cli) = (scene.cluster, scene.bench.cli.within(REFUSAL));
    let old = cluster.token(Role::Worker)?;
    let with_digest = |token: &str, digest: &str| -> Result<String> {
        let secret = token.rsplit('-').next().context("a token")?;
        Ok(format!("SWMTKN-1-{digest}-{secret}"))
    };
    // The change waits for a node that is down.
    cluster.kill(1)?;
    cli.ok(&["swarm", "ca", "--rotate", "--detach"])?;
    let all = digests(scene)?;
    let [before, after] = all.as_slice() else { bail!("two roots, not {all:?}") };
    ensure!(cluster.token(Role::Worker)? == old, "another token before the change is over");
    ensure!(old == with_digest(&old, before)?, "the token names another root");
    cluster.join(cli.program, 2, Role::Worker)?;
    let of_new = with_digest(&old, after)?;
    let spare = cluster.node(3).cli(cli.program).within(REFUSAL);
    settle("the manager to have a certificate of the new root", BOUND, || {
        let join = ["swarm", "join", "--token", &of_new, &cluster.endpoint(0)];
        Ok(spare.run(&join)?.code == 0)
    })?;
    ensure!(cluster.token(Role::Worker)? == old, "another token before the change is over");
    let under_way = ["info", "--format", "{{.Swarm.Cluster.RootRotationInProgress}}"];
    ensure!(cli.ok(&under_way)?.trim() == "true", "it did not wait for the node that is down");

    cluster.restart(1)?;
    settle("the end of the rotation", BOUND, || Ok(cli.ok(&under_way)?.trim() == "false"))?;
    cluster.await_ready(4)?;
    let new = cluster.token(Role::Worker)?;
    ensure!(new == with_digest(&new, after)?, "the token names the root that is gone: {new}");
    ensure!(new != of_new, "the secret is the old one");
    let spare = cluster.node(4).cli(cli.program).within(REFUSAL);
    let refuse =
        |token: &str| spare.fails(1, &["swarm", "join", "--token", token, &cluster.endpoint(0)]);
    let error = refuse(&old)?;
    ensure!(error.contains("digest"), "{error}");
    let error = refuse(&of_new)?;
    ensure!(error.contains("this worker token was rotated"), "{error}");
    cluster.join(cli.program, 4, Role::Worker)?;
    cluster.await_ready(5)
}

fn members_do_not_join_again(scene: &Scene) -> Result<()> {
    let (cluster, program) = (scene.cluster, scene.bench.cli.program);
    let token = cluster.token(Role::Worker)?;
    for at in [0, 1] {
        let args = ["swarm", "join", "--token", &token, &cluster.endpoint(0)];
        let error = cluster.node(at).cli(program).fails(1, &args)?;
        ensure!(error.contains("already part of a swarm"), "node {at}: {error}");
    }
    let id = cluster.node(1).id()?;
    cluster.restart(1)?;
    cluster.await_ready(2)?;
    ensure!(cluster.node(1).id()? == id, "another id after a restart");
    Ok(())
}

#[test]
fn up_refuses_what_it_cannot_be() -> Result<()> {
    alone(ClusterOptions { managers: 1, spares: 1, ..ClusterOptions::default() }, |cluster| {
        let node = cluster.node(0);
        let fresh = |name: &str, more: &[&str]| -> Result<Vec<String>> {
            let place = cluster.root().join(name);
            fs::create_dir(&place)?;
            let path = |part: &str| place.join(part).display().to_string();
            let roots = ["up", "--data-root", &path("data"), "--run-root", &path("run")];
            let all = roots.iter().chain(more).map(|word| (*word).to_owned());
            Ok(all.collect())
        };
        // The port is the first node's.
        let taken = ["--advertise-addr", "10.77.0.1", "--node-name", "twin"];
        let out = node.run_binary(&fresh("taken", &taken)?, BOUND)?;
        ensure!(out.code == 1 && out.stderr.contains("2377"), "address in use: {out:?}");
        ensure!(out.stderr.contains("in use"), "address in use: {out:?}");

        // A token file that is not there, and one that holds no token.
        let file = cluster.root().join("no-token");
        let join = |file: &std::path::Path| {
            let file = file.display().to_string();
            ["--listen-addr", "10.77.0.1:0", "--join", "10.77.0.1:2377", "--token-file", &file]
                .map(str::to_owned)
        };
        let words =
            |words: &[String]| words.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
        for (name, text) in [("missing", None), ("nonsense", Some("nonsense\n"))] {
            if let Some(text) = text {
                fs::write(&file, text)?;
            }
            let more = words(&join(&file));
            let more: Vec<_> = more.split('\n').collect();
            let out = node.run_binary(&fresh(name, &more)?, BOUND)?;
            ensure!(out.code == 1 && out.stderr.contains("token"), "{name}: {out:?}");
        }
        Ok(())
    })
}

/// A member of one swarm that is told to join another, by `up`: refused, and told what to do.
#[test]
fn up_with_another_swarms_token_names_leave() -> Result<()> {
    alone(ClusterOptions { managers: 1, spares: 1, ..ClusterOptions::default() }, |cluster| {
        let spare = cluster.node(1);
        spare.skep().ok(&["swarm", "init", "--advertise-addr", "10.77.0.2"])?;
        spare.stop_daemon()?;
        let file = cluster.root().join("other-token");
        fs::write(&file, cluster.token(Role::Worker)?)?;
        let mut args = spare.daemon_args();
        args[0] = "up".to_owned();
        let file = file.display().to_string();
        args.extend(["--join", &cluster.endpoint(0), "--token-file", &file].map(str::to_owned));
        let out = spare.run_binary(&args, BOUND)?;
        ensure!(out.code == 1 && out.stderr.contains("swarm leave"), "{out:?}");
        // Nothing was changed by that.
        spare.launch()?;
        ensure!(row(&spare.skep().ok(&["node", "ls"])?, &name_of(1))?.contains("Leader"), "gone");
        Ok(())
    })
}
