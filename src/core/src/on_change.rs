//! What becomes of running tasks when something they are granted has a new version: in words, and
//! as a label of the service for clients that have no other way to say it.

use alloc::format;
use alloc::string::String;
use core::fmt;

use crate::model::material::{MaterialKind, OnChange};
use crate::signal;

const LABEL_START: &str = "skep.";
const LABEL_END: &str = ".on-change";

/// A text says nothing that can be done on a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnChangeError(String);

impl fmt::Display for OnChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for OnChangeError {}

impl OnChange {
    /// Reads `nothing`, `restart`, or `signal:` with a name or number such as `signal:SIGHUP`.
    ///
    /// # Errors
    /// [`OnChangeError`] names the text and what it may be.
    pub fn parse(text: &str) -> Result<Self, OnChangeError> {
        match text {
            "nothing" => return Ok(Self::Nothing),
            "restart" => return Ok(Self::Restart),
            _ => {}
        }
        let number = text.strip_prefix("signal:").and_then(signal::number);
        let number = number.ok_or_else(|| {
            OnChangeError(format!(
                "{text:?} does not say what to do on a change: it may be nothing, restart, or \
                 signal:NAME such as signal:SIGHUP or signal:1"
            ))
        })?;
        if !signal::is_news(number) {
            return Err(OnChangeError(format!(
                "{text} on a change tells a process nothing: it cannot catch SIGKILL and SIGSTOP; \
                 name another signal, or restart, which replaces the task"
            )));
        }
        Ok(Self::Signal(number))
    }
}

/// In the words that [`OnChange::parse`] reads.
impl fmt::Display for OnChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Signal(number) => write!(f, "signal:{}", signal::name(*number)),
            Self::Restart => f.write_str("restart"),
        }
    }
}

/// The service label that says it of a secret or config: `skep.secret.NAME.on-change`.
#[must_use]
pub fn label(kind: MaterialKind, name: &str) -> String {
    format!("{LABEL_START}{}.{name}{LABEL_END}", kind.kind().word())
}

/// Of which secret or config such a label speaks; none if it is another label.
#[must_use]
pub fn label_of(label: &str) -> Option<(MaterialKind, &str)> {
    let (word, name) = label.strip_prefix(LABEL_START)?.strip_suffix(LABEL_END)?.split_once('.')?;
    let kinds = [MaterialKind::Secret, MaterialKind::Config];
    let kind = kinds.into_iter().find(|kind| kind.kind().word() == word)?;
    Some((kind, name))
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn words_are_read_and_written() {
        for (text, written) in [
            ("nothing", "nothing"),
            ("restart", "restart"),
            ("signal:SIGHUP", "signal:SIGHUP"),
            ("signal:usr1", "signal:SIGUSR1"),
            ("signal:15", "signal:SIGTERM"),
            ("signal:RTMIN+1", "signal:SIGRTMIN+1"),
        ] {
            let read = OnChange::parse(text).unwrap();
            assert_eq!(read.to_string(), written);
            assert_eq!(OnChange::parse(written), Ok(read));
        }
        for (text, rule) in [
            ("", "it may be nothing, restart, or signal:NAME"),
            ("signal", "it may be nothing"),
            ("signal:", "it may be nothing"),
            ("signal:SIGNONSENSE", "\"signal:SIGNONSENSE\" does not say"),
            ("RESTART", "it may be nothing"),
            ("signal:SIGKILL", "cannot catch SIGKILL and SIGSTOP"),
            ("signal:19", "cannot catch"),
        ] {
            let error = OnChange::parse(text).unwrap_err().to_string();
            assert!(error.contains(rule), "{text}: {error}");
        }
    }

    #[test]
    fn labels_name_what_they_speak_of() {
        let label = label(MaterialKind::Secret, "a.b_c");
        assert_eq!(label, "skep.secret.a.b_c.on-change");
        assert_eq!(label_of(&label), Some((MaterialKind::Secret, "a.b_c")));
        assert_eq!(label_of("skep.config.x.on-change"), Some((MaterialKind::Config, "x")));
        for other in ["skep.on-isolation", "skep.node.x.on-change", "skep.secret.on-change", "x"] {
            assert_eq!(label_of(other), None, "{other}");
        }
    }
}
