//! An error with its causes in one line, for logs and for messages that leave the process.

use std::error::Error;

/// The error's text and those of its causes, each once: one that repeats its cause does not make
/// a reader read it twice.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    text
}
