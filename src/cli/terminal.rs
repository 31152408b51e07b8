//! The terminal we run on.

use std::io::{self, BufRead, Read};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use zeroize::Zeroizing;

use super::call::out;
use super::error::CliError;

/// Bytes of an answer to a question that are read.
const ANSWER_BYTES: u64 = 64;

/// Rows and columns, if standard output is a terminal.
pub(super) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Standard input as a raw terminal; dropping it restores what was.
#[derive(Debug)]
pub(super) struct Raw(Termios);

impl Raw {
    /// Makes it raw, if it is a terminal.
    pub(super) fn enter() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody to tell if the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// A line from the terminal that is standard input, not shown while it is typed; none if it was
/// cancelled. Of a longer line than `limit` bytes the rest is left out.
pub(super) fn read_unseen(limit: usize) -> io::Result<Option<Zeroizing<String>>> {
    // Raw, so that Ctrl-C comes as a byte and cannot end us with the terminal mute.
    let _raw = Raw::enter();
    line_of_keys(io::stdin().lock(), limit)
}

/// Warns, asks for consent, and reads one line of standard input: only `y` consents.
pub(super) fn confirms(warning: &str) -> Result<bool, CliError> {
    out(&format!("{warning}\nAre you sure you want to continue? [y/N] "))?;
    let mut line = String::new();
    let answer = io::stdin().lock().take(ANSWER_BYTES).read_line(&mut line);
    answer.map_err(|why| CliError::plain(format!("cannot read the answer: {why}")))?;
    Ok(line.trim().eq_ignore_ascii_case("y"))
}

fn line_of_keys(keys: impl BufRead, limit: usize) -> io::Result<Option<Zeroizing<String>>> {
    const CTRL_C: u8 = 3;
    const CTRL_D: u8 = 4;
    const BACKSPACE: [u8; 2] = [8, 127];
    const CTRL_U: u8 = 21;
    let mut line = Zeroizing::new(Vec::with_capacity(limit));
    for key in keys.bytes() {
        match key? {
            b'\r' | b'\n' | CTRL_D => break,
            CTRL_C => return Ok(None),
            CTRL_U => line.clear(),
            key if BACKSPACE.contains(&key) => _ = line.pop(),
            key if line.len() < limit => line.push(key),
            _ => {}
        }
    }
    let text = std::str::from_utf8(&line)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "what was typed is not text"))?;
    Ok(Some(Zeroizing::new(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_make_a_line() {
        let line = |keys: &[u8]| line_of_keys(keys, 8).unwrap().map(|line| line.to_string());
        assert_eq!(line(b"abc\rd").as_deref(), Some("abc"));
        assert_eq!(line(b"x\x15ab\x7fc\n").as_deref(), Some("ac"));
        assert_eq!(line(b"\x08abc\x04").as_deref(), Some("abc"));
        assert_eq!(line(b"0123456789\n").as_deref(), Some("01234567"));
        assert_eq!(line(b"ab\x03"), None);
        assert!(line_of_keys([0xff, b'\n'].as_slice(), 8).is_err());
    }
}
