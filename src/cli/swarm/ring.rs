//! `skep swarm rotate-key`.

use http::Method;
use serde_json::Value;

use crate::cli::call::{Call, outln};
use crate::cli::client::Target;
use crate::cli::error::CliError;
use crate::cli::flags::{Arity, Command, Flag};
use crate::cli::json;
use crate::cli::progress::Screen;

/// Bytes of a line of progress: every manager there may be is named in it.
const LINE_BYTES: usize = 256 << 10;

pub(super) const ROTATE_KEY: Command = Command::client(
    "rotate-key",
    "[OPTIONS]",
    "Seal secrets and configs with a new key; unlock-key is about that of managers",
    rotate_key,
)
.flags(&[
    Flag::switch("detach", "Exit once the new key is current: the swarm goes on by itself")
        .short('d'),
    Flag::switch("force", "Make a new key even while the last rotation is not finished"),
    Flag::switch("quiet", "Suppress progress output, and only display the key's number").short('q'),
])
.takes(Arity::None);

fn rotate_key(call: &Call) -> Result<u8, CliError> {
    let (detach, quiet) = (call.on("detach"), call.on("quiet"));
    let mut target = Target::new(&["skep", "v1", "swarm", "rotate-key"]);
    for flag in ["force", "detach"] {
        target = if call.on(flag) { target.with(flag, "1") } else { target };
    }
    let mut screen = Screen::new(quiet || detach);
    let mut told = Told::default();
    let ended = call.client()?.stream(Method::POST, &target, None, &mut |piece| {
        told.take(piece, &mut |line| show(&mut screen, line))
    });
    let last = match (ended, told.last) {
        (Err(why), None) => return Err(why),
        (Ok(()), None) => return Err(CliError::plain("the daemon did not say which key it made")),
        (_, Some(last)) => last,
    };
    if quiet || detach {
        outln(&json::number(&last, &["Key"]).to_string())?;
    }
    if detach {
        return Ok(0);
    }
    outcome(&last).map(|text| if quiet { Ok(()) } else { outln(&text) })?.map(|()| 0)
}

/// The lines that came.
#[derive(Debug, Default)]
struct Told {
    rest: Vec<u8>,
    last: Option<Value>,
}

impl Told {
    /// Hands each line that is complete to `show`.
    fn take(
        &mut self,
        piece: &[u8],
        show: &mut dyn FnMut(&Value) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        self.rest.extend_from_slice(piece);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line: Value = serde_json::from_slice(&line).map_err(|why| {
                CliError::plain(format!("the daemon's progress cannot be understood: {why}"))
            })?;
            show(&line)?;
            self.last = Some(line);
        }
        match self.rest.len() > LINE_BYTES {
            true => Err(CliError::plain("the daemon's progress has a line without end")),
            false => Ok(()),
        }
    }
}

fn show(screen: &mut Screen, line: &Value) -> Result<(), CliError> {
    let number = |key: &str| json::number(line, &[key]);
    let (done, total) = (number("Done"), number("Total"));
    let how = if json::flag(line, &["Turned"]) { "new" } else { "of the rotation under way" };
    screen.set("ring key", &format!("{} ({how})", number("Key")))?;
    let bar = screen.bar(done, total);
    screen.set("sealed anew", &format!("{bar}{done}/{total} versions of secrets and configs"))?;
    let managers = json::list(line, &["Managers"]);
    if !managers.is_empty() {
        let purged = managers.iter().filter(|manager| is_purged(manager)).count() as u64;
        let bar = screen.bar(purged, managers.len() as u64);
        screen.set("old keys purged", &format!("{bar}{purged}/{} managers", managers.len()))?;
    }
    Ok(())
}

fn is_purged(manager: &Value) -> bool {
    json::text(manager, &["State"]) == "purged"
}

/// What there is to say at the end; an error if the old key may still be somewhere.
fn outcome(last: &Value) -> Result<String, CliError> {
    let number = |key: &str| json::number(last, &[key]);
    let (key, done, total) = (number("Key"), number("Done"), number("Total"));
    match json::text(last, &["State"]) {
        "done" => Ok(format!(
            "Ring key {key} seals all {total} versions of secrets and configs.\n\
             The old key is gone from the state, log and snapshots of every manager."
        )),
        "behind" => {
            let managers = json::list(last, &["Managers"]).iter();
            let names: Vec<String> = managers
                .filter(|manager| !is_purged(manager))
                .map(|manager| {
                    let text = |key: &str| json::text(manager, &[key]);
                    format!("{} ({})", text("Hostname"), text("State"))
                })
                .collect();
            Err(CliError::plain(format!(
                "ring key {key} seals all {total} versions of secrets and configs, but the old key \
                 may still be on the disk of {}: each purges it by itself within 10 minutes of \
                 being back; if one never comes back, demote and remove it, and destroy its disk",
                names.join(", ")
            )))
        }
        "stalled" => Err(CliError::plain(format!(
            "ring key {key} is current, but {} of {total} versions of secrets and configs still \
             wait for it and for long none was sealed anew: see why in the log of the manager that \
             leads, and run 'skep swarm rotate-key' again to go on watching",
            total.saturating_sub(done)
        ))),
        _ => Err(CliError::plain(format!(
            "the daemon went away while ring key {key} took over; the other managers go on: run \
             'skep swarm rotate-key' again on one of them to see that it is finished"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_come_in_pieces() {
        let (mut told, mut seen) = (Told::default(), Vec::new());
        for piece in ["{\"Key\":", "2}\n{\"Key\":3}\n{"] {
            let mut show = |line: &Value| {
                seen.push(json::number(line, &["Key"]));
                Ok(())
            };
            told.take(piece.as_bytes(), &mut show).unwrap();
        }
        assert_eq!((seen, told.last), (vec![2, 3], Some(json!({"Key": 3}))));
        assert!(Told::default().take(b"no\n", &mut |_| Ok(())).is_err());
        assert!(Told::default().take(&vec![b'x'; LINE_BYTES + 1], &mut |_| Ok(())).is_err());
    }

    #[test]
    fn the_end_says_where_the_old_key_may_be() {
        let last = |state: &str, of_one: &str| {
            json!({"Key": 4, "Done": 1, "Total": 2, "State": state, "Managers": [
                {"Hostname": "m1", "State": "purged"}, {"Hostname": "m2", "State": of_one},
            ]})
        };
        assert!(outcome(&last("done", "purged")).unwrap().contains("every manager"));
        let why = outcome(&last("behind", "unreachable")).unwrap_err().to_string();
        assert!(why.contains("on the disk of m2 (unreachable): each"), "{why}");
        let why = outcome(&last("stalled", "")).unwrap_err().to_string();
        assert!(why.contains("1 of 2 versions"), "{why}");
        assert!(outcome(&last("sealing", "")).unwrap_err().to_string().contains("went away"));
    }
}
