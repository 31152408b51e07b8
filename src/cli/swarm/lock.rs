//! `skep swarm unlock` and `skep swarm unlock-key`.

use std::io::{self, BufRead, IsTerminal};

use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::cli::call::{Call, out, outln};
use crate::cli::client::{Client, Target};
use crate::cli::error::CliError;
use crate::cli::flags::{Arity, Command, Flag};
use crate::cli::{json, terminal};

/// Bytes of a line with a key that are read at most.
const KEY_BYTES: usize = 1024;

pub(super) const UNLOCK: Command =
    Command::client("unlock", "", "Unlock swarm", unlock).takes(Arity::None);

pub(super) const UNLOCK_KEY: Command =
    Command::client("unlock-key", "[OPTIONS]", "Manage the unlock key", unlock_key)
        .flags(&[
            Flag::switch("quiet", "Only display token").short('q'),
            Flag::switch("rotate", "Rotate unlock key"),
        ])
        .takes(Arity::None);

/// Asks for the key only where there is something to unlock.
fn unlock(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let info = client.get_json(&Target::new(&["info"]))?;
    match json::text(&info, &["Swarm", "LocalNodeState"]) {
        "locked" => {}
        "inactive" => return Err(CliError::plain("Error: This node is not part of a swarm")),
        _ => return Err(CliError::plain("Error: swarm is not locked")),
    }
    let key = match io::stdin().is_terminal() {
        true => {
            out("Enter unlock key: ")?;
            let key = terminal::read_unseen(KEY_BYTES).map_err(cannot_read)?;
            outln("")?;
            key.ok_or_else(|| CliError::plain("cancelled: nothing was unlocked"))?
        }
        false => first_line(io::stdin().lock()).map_err(cannot_read)?,
    };
    client.post_json(&Target::new(&["swarm", "unlock"]), &json!({"UnlockKey": key.trim()}))?;
    Ok(0)
}

fn cannot_read(why: io::Error) -> CliError {
    CliError::plain(format!("cannot read the unlock key from standard input: {why}"))
}

fn first_line(source: impl BufRead) -> io::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::with_capacity(KEY_BYTES));
    source.take(KEY_BYTES as u64).read_line(&mut line)?;
    Ok(line)
}

fn unlock_key(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    if call.on("rotate") {
        let swarm = client.get_json(&Target::new(&["swarm"]))?;
        if !json::flag(&swarm, &["Spec", "EncryptionConfig", "AutoLockManagers"]) {
            return Err(CliError::plain("cannot rotate because autolock is not turned on"));
        }
        let target = super::update_target(&swarm, "rotateManagerUnlockKey");
        client.post_json(&target, json::at(&swarm, &["Spec"]).unwrap_or(&Value::Null))?;
        if !call.on("quiet") {
            outln("Successfully rotated manager unlock key.\n")?;
        }
    }
    let key = fetch(&mut client)?;
    match (key.is_empty(), call.on("quiet")) {
        (true, _) => Err(CliError::plain("no unlock key is set")),
        (false, true) => outln(&key).map(|()| 0),
        (false, false) => print(&key).map(|()| 0),
    }
}

/// The unlock key; empty if there is none.
fn fetch(client: &mut Client) -> Result<Zeroizing<String>, CliError> {
    let key = client
        .get_json(&Target::new(&["swarm", "unlockkey"]))
        .map_err(|why| CliError::plain(format!("could not fetch unlock key: {why}")))?;
    Ok(Zeroizing::new(json::text(&key, &["UnlockKey"]).to_owned()))
}

/// Tells the unlock key and what it is for.
pub(super) fn print_unlock(client: &mut Client) -> Result<(), CliError> {
    print(&fetch(client)?)
}

fn print(key: &str) -> Result<(), CliError> {
    out(&format!(
        "To unlock a swarm manager after it restarts, run the `skep swarm unlock`\n\
         command and provide the following key:\n\n    {key}\n\n\
         Remember to store this key in a password manager, since without it you\n\
         will not be able to restart the manager.\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_first_line() {
        assert_eq!(first_line(b"SWMKEY-1-x\nrest".as_slice()).unwrap().as_str(), "SWMKEY-1-x\n");
        assert_eq!(first_line(b"SWMKEY-1-x".as_slice()).unwrap().as_str(), "SWMKEY-1-x");
        let endless = first_line(io::BufReader::new(io::repeat(b'x'))).unwrap();
        assert_eq!(endless.len(), KEY_BYTES);
    }
}
