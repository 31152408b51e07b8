//! `skep swarm ca`.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use skep_core::id::hex;

use super::{CERT_EXPIRY, update_target};
use crate::cli::call::{Call, out, outln};
use crate::cli::client::{Client, Target};
use crate::cli::error::CliError;
use crate::cli::flags::{Arity, Command, Flag};
use crate::cli::json;
use crate::cli::progress::Screen;
use crate::cli::values::duration;

/// Pause between two looks at a rotation.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) const CA: Command =
    Command::client("ca", "[OPTIONS]", "Display and rotate the root CA", ca)
        .flags(&[
            CERT_EXPIRY,
            Flag::switch(
                "detach",
                "Exit immediately instead of waiting for the root rotation to converge",
            )
            .short('d'),
            Flag::switch("quiet", "Suppress progress output").short('q'),
            Flag::switch(
                "rotate",
                "Rotate the swarm CA: every node gets a certificate of a new root",
            ),
        ])
        .takes(Arity::None);

fn ca(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let swarm = client.get_json(&Target::new(&["swarm"]))?;
    if !call.on("rotate") {
        if call.get("cert-expiry").is_some() {
            return Err(CliError::plain(
                "`--cert-expiry` flag requires the `--rotate` flag to update the CA",
            ));
        }
        return print_root(&swarm).map(|()| 0);
    }
    let mut spec = json::at(&swarm, &["Spec"]).cloned().unwrap_or_default();
    if let Some(config) = json::object_at(&mut spec, &["CAConfig"]) {
        if let Some(text) = call.get("cert-expiry") {
            let nanos = duration(text).map_err(CliError::Plain)?;
            config.insert("NodeCertExpiry".to_owned(), json!(nanos));
        }
        let before = config.get("ForceRotate").and_then(Value::as_u64).unwrap_or_default();
        config.insert("ForceRotate".to_owned(), json!(before.saturating_add(1)));
    }
    client.post_json(&update_target(&swarm, ""), &spec)?;
    if call.on("detach") {
        return Ok(0);
    }
    if !wait(&mut client, call.on("quiet"))? {
        out("Operation continuing in background.\nUse `skep swarm ca` to see the root.\n")?;
        return Ok(0);
    }
    if call.on("quiet") {
        return Ok(0);
    }
    print_root(&client.get_json(&Target::new(&["swarm"]))?).map(|()| 0)
}

fn print_root(swarm: &Value) -> Result<(), CliError> {
    match json::text(swarm, &["TLSInfo", "TrustRoot"]).trim() {
        "" => Err(CliError::plain("No CA information available")),
        root => outln(root),
    }
}

/// Waits until every node has moved; `false` if Ctrl-C came first.
fn wait(client: &mut Client, quiet: bool) -> Result<bool, CliError> {
    let mut screen = Screen::new(quiet);
    loop {
        let swarm = client.get_json(&Target::new(&["swarm"]))?;
        let nodes = client.get_json(&Target::new(&["nodes"]))?;
        let moved = Moved::of(&swarm, json::list(&nodes, &[]));
        moved.show(&mut screen)?;
        if moved.done {
            return Ok(true);
        }
        if client.pause(PAUSE) {
            return Ok(false);
        }
    }
}

/// How far a rotation is.
#[derive(Debug, PartialEq, Eq)]
struct Moved {
    digest: String,
    nodes: u64,
    certificates: u64,
    roots: u64,
    done: bool,
}

impl Moved {
    fn of(swarm: &Value, nodes: &[Value]) -> Self {
        let tls = json::at(swarm, &["TLSInfo"]).unwrap_or(&Value::Null);
        let count = |keys: &[&str]| {
            let has = |node: &Value, key: &str| {
                json::text(node, &["Description", "TLSInfo", key]) == json::text(tls, &[key])
            };
            let right = nodes.iter().filter(|node| keys.iter().all(|key| has(node, key)));
            right.count() as u64
        };
        let nodes = nodes.len() as u64;
        let certificates = count(&["CertIssuerPublicKey", "CertIssuerSubject"]);
        let roots = count(&["TrustRoot"]);
        let converged = certificates == nodes && roots == nodes;
        Self {
            digest: hex(&Sha256::digest(json::text(tls, &["TrustRoot"]))),
            nodes,
            certificates,
            roots,
            done: converged && !json::flag(swarm, &["RootRotationInProgress"]),
        }
    }

    fn show(&self, screen: &mut Screen) -> Result<(), CliError> {
        screen.set("desired root digest", &format!("sha256:{}", self.digest))?;
        for (name, count) in [
            ("  rotated TLS certificates", self.certificates),
            ("  rotated CA certificates", self.roots),
        ] {
            let bar = screen.bar(count, self.nodes);
            screen.set(name, &format!("{bar}{count}/{} nodes", self.nodes))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_is_done_when_all_have_moved_and_the_old_root_is_gone() {
        let node = |root: &str, key: &str| {
            let tls =
                json!({"TrustRoot": root, "CertIssuerSubject": "s", "CertIssuerPublicKey": key});
            json!({"Description": {"TLSInfo": tls}})
        };
        let swarm = |root: &str, rotates: bool| {
            let tls =
                json!({"TrustRoot": root, "CertIssuerSubject": "s", "CertIssuerPublicKey": "b"});
            json!({"TLSInfo": tls, "RootRotationInProgress": rotates})
        };
        let look = |root: &str, rotates: bool, nodes: &[Value]| {
            let moved = Moved::of(&swarm(root, rotates), nodes);
            (moved.certificates, moved.roots, moved.done)
        };
        let (old, new) = (node("AB", "a"), node("AB", "b"));
        assert_eq!(look("AB", true, &[old.clone(), new.clone()]), (1, 2, false));
        assert_eq!(look("AB", true, &[new.clone(), new.clone()]), (2, 2, false));
        assert_eq!(look("B", false, &[new.clone(), node("B", "b")]), (2, 1, false));
        assert_eq!(look("B", false, &[node("B", "b"), node("B", "b")]), (2, 2, true));
    }
}
