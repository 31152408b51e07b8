//! What a long operation tells while it runs.

use serde_json::Value;

use super::call::{out, outln};
use super::error::CliError;
use super::{human, json};

/// Bytes of one message about progress.
const MESSAGE_BYTES: usize = 1 << 20;

/// Messages of a long operation: one JSON object per line.
#[derive(Debug)]
pub(super) struct Messages {
    request: &'static str,
    /// Whether there is a terminal to show progress on.
    live: bool,
    open: Vec<u8>,
    /// Whether the cursor stands behind a line of progress.
    drawn: bool,
}

impl Messages {
    /// What this request answers.
    pub(super) fn of(request: &'static str, live: bool) -> Self {
        Self { request, live, open: Vec::new(), drawn: false }
    }

    pub(super) fn take(&mut self, piece: &[u8]) -> Result<(), CliError> {
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

    /// Shows what came last. An error that it tells is one.
    pub(super) fn finish(&mut self) -> Result<(), CliError> {
        let line = std::mem::take(&mut self.open);
        let shown = shown(self.request, &line);
        if self.drawn && !matches!(shown, Ok(Shown::Nothing | Shown::Progress(_))) {
            out("\r\x1b[K")?;
            self.drawn = false;
        }
        match shown? {
            Shown::Text(text) => outln(&text),
            Shown::Progress(text) if self.live => {
                self.drawn = true;
                out(&format!("\r\x1b[K{text}"))
            }
            Shown::Progress(_) | Shown::Nothing => Ok(()),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Shown {
    Nothing,
    /// A line that stays.
    Text(String),
    /// A line that the next one replaces.
    Progress(String),
}

/// What a message says to the user.
fn shown(request: &str, line: &[u8]) -> Result<Shown, CliError> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(Shown::Nothing);
    }
    let message: Value = serde_json::from_slice(line)
        .map_err(|why| CliError::Answer { request: request.to_owned(), what: why.to_string() })?;
    let error = [&["errorDetail", "message"][..], &["error"]]
        .iter()
        .map(|path| json::text(&message, path))
        .find(|text| !text.is_empty());
    if let Some(error) = error {
        return Err(CliError::plain(error));
    }
    let text = match json::text(&message, &["status"]) {
        "" => json::text(&message, &["stream"]).trim_end(),
        status => status,
    };
    let text = match json::text(&message, &["id"]) {
        _ if text.is_empty() => return Ok(Shown::Nothing),
        "" => text.to_owned(),
        id => format!("{id}: {text}"),
    };
    let number = |key: &str| message.pointer(&format!("/progressDetail/{key}"))?.as_u64();
    Ok(match (number("current"), number("total").filter(|total| *total > 0)) {
        (Some(current), Some(total)) => {
            let (current, total) = (human::size(current as f64, 3), human::size(total as f64, 3));
            Shown::Progress(format!("{text} {current}/{total}"))
        }
        _ if json::text(&message, &["progress"]).is_empty() => Shown::Text(text),
        _ => Shown::Progress(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let show = |line: &str| shown("POST /x", line.as_bytes()).unwrap();
        let text = |text: &str| Shown::Text(text.to_owned());
        let progress = |text: &str| Shown::Progress(text.to_owned());
        assert_eq!(show(r#"{"status":"sha256:ab"}"#), text("sha256:ab"));
        assert_eq!(show(r#"{"status":"Pulling","id":"x"}"#), text("x: Pulling"));
        assert_eq!(show(r#"{"stream":"Loaded\n"}"#), text("Loaded"));
        assert_eq!(show(r#"{"status":"x","progress":"[>"}"#), progress("x"));
        let half = r#"{"status":"Loading","id":"x","progressDetail":{"current":500,"total":1000}}"#;
        assert_eq!(show(half), progress("x: Loading 500B/1kB"));
        assert_eq!(show("\r\n"), Shown::Nothing);
        let error = shown("POST /x", br#"{"errorDetail":{"message":"bad tar"},"error":"bad tar"}"#);
        assert_eq!(error.unwrap_err().to_string(), "bad tar");
        let odd = shown("POST /x", b"nonsense").unwrap_err().to_string();
        assert!(odd.contains("POST /x"), "{odd}");
    }
}
