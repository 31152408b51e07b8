//! `skep swarm join`.

use serde_json::json;

use super::{ADVERTISE_ADDR, AVAILABILITY, LISTEN_ADDR, availability, listen_addr};
use crate::cli::call::{Call, outln};
use crate::cli::client::Target;
use crate::cli::error::CliError;
use crate::cli::flags::{Arity, Command, Flag};
use crate::cli::json;

pub(super) const JOIN: Command =
    Command::client("join", "[OPTIONS] HOST:PORT", "Join a swarm as a node and/or manager", join)
        .flags(&[
            ADVERTISE_ADDR,
            AVAILABILITY,
            LISTEN_ADDR,
            Flag::with("token", "string", "Token for entry into the swarm"),
        ])
        .takes(Arity::Exactly(1));

fn join(call: &Call) -> Result<u8, CliError> {
    let mut body = json!({
        "ListenAddr": listen_addr(call),
        "AdvertiseAddr": call.get("advertise-addr").unwrap_or_default(),
        "DataPathAddr": "",
        "RemoteAddrs": [call.arg(0)],
        "JoinToken": call.get("token").unwrap_or_default(),
    });
    if call.get("availability").is_some() {
        body["Availability"] = availability(call)?.into();
    }
    let mut client = call.client()?;
    client.post_json(&Target::new(&["swarm", "join"]), &body)?;
    let info = client.get_json(&Target::new(&["info"]))?;
    let role = if json::flag(&info, &["Swarm", "ControlAvailable"]) { "manager" } else { "worker" };
    outln(&format!("This node joined a swarm as a {role}."))?;
    Ok(0)
}
