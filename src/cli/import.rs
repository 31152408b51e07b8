//! `skep import`: the root file system in a tar becomes an image.

use std::fs::File;
use std::io;

use http::Method;
use serde_json::Value;

use super::call::{Call, outln};
use super::client::Target;
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
use super::input::{body, pieces};
use super::json;
use super::values::open_error;

/// Bytes of one message about progress.
const MESSAGE_BYTES: usize = 1 << 20;

/// `skep import`
pub(super) const IMPORT: Command = Command::client(
    "import",
    "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
    "Import the contents from a tarball to create a filesystem image",
    import,
)
.flags(&[
    Flag::with("change", "list", "Apply Dockerfile instruction to the created image").short('c'),
    Flag::with("message", "string", "Set commit message for imported image").short('m'),
])
.takes(Arity::AtLeast(1));

fn import(call: &Call) -> Result<u8, CliError> {
    let source = call.arg(0);
    let (name, input) = match source {
        "-" => ("-", Some(pieces(io::stdin()))),
        url if url.starts_with("http://") || url.starts_with("https://") => (url, None),
        path => {
            let file = File::open(path).map_err(|why| CliError::plain(open_error(path, &why)))?;
            ("-", Some(pieces(file)))
        }
    };
    let mut target = Target::new(&["images", "create"])
        .with("fromSrc", name)
        .with("message", call.get("message").unwrap_or_default());
    for change in call.matches.all("change") {
        target = target.with("changes", change);
    }
    target = target.with_some("repo", call.matches.arg(1));
    let mut messages = Messages::default();
    call.client()?
        .stream(Method::POST, &target, input.map(body), &mut |piece| messages.take(piece))?;
    messages.finish()?;
    Ok(0)
}

/// Messages of a long operation: one JSON object per line.
#[derive(Debug, Default)]
struct Messages {
    open: Vec<u8>,
}

impl Messages {
    fn take(&mut self, piece: &[u8]) -> Result<(), CliError> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.open.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.finish()?;
            }
            if self.open.len() > MESSAGE_BYTES {
                return Err(CliError::plain("the daemon sent a message that is too long"));
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), CliError> {
        let line = std::mem::take(&mut self.open);
        match shown(&line)? {
            Some(text) => outln(&text),
            None => Ok(()),
        }
    }
}

/// What a message says to the user.
fn shown(line: &[u8]) -> Result<Option<String>, CliError> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let message: Value = serde_json::from_slice(line).map_err(|why| CliError::Answer {
        request: "POST /images/create".to_owned(),
        what: why.to_string(),
    })?;
    let error = [&["errorDetail", "message"][..], &["error"]]
        .iter()
        .map(|path| json::text(&message, path))
        .find(|text| !text.is_empty());
    if let Some(error) = error {
        return Err(CliError::plain(error));
    }
    if !json::text(&message, &["progress"]).is_empty() {
        return Ok(None);
    }
    let text = match json::text(&message, &["status"]) {
        "" => json::text(&message, &["stream"]).trim_end(),
        status => status,
    };
    Ok(match json::text(&message, &["id"]) {
        _ if text.is_empty() => None,
        "" => Some(text.to_owned()),
        id => Some(format!("{id}: {text}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let text = |line: &str| shown(line.as_bytes()).unwrap();
        assert_eq!(text(r#"{"status":"sha256:ab"}"#).unwrap(), "sha256:ab");
        assert_eq!(text(r#"{"status":"Pulling","id":"x"}"#).unwrap(), "x: Pulling");
        assert_eq!(text(r#"{"stream":"Loaded\n"}"#).unwrap(), "Loaded");
        assert_eq!(text(r#"{"status":"x","progress":"[>"}"#), None);
        assert_eq!(text("\r\n"), None);
        let error = shown(br#"{"errorDetail":{"message":"bad tar"},"error":"bad tar"}"#);
        assert_eq!(error.unwrap_err().to_string(), "bad tar");
        assert!(shown(b"nonsense").is_err());
    }
}
