//! Output of a container as it comes over the wire: bare on a terminal, else in frames that
//! say which stream they belong to.

use std::io::{self, Write};

use super::error::CliError;

/// Bytes of a frame's head: kind, three zeros, length.
const HEAD_BYTES: usize = 8;
/// Bytes of one frame at most; more is no frame.
const FRAME_BYTES: usize = 64 << 20;

/// Which stream a piece belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Takes pieces of the wire and writes what they carry to our own streams.
#[derive(Debug)]
pub(super) struct Frames {
    bare: bool,
    parser: Parser,
}

impl Frames {
    /// `bare` if there are no frames.
    pub(super) fn new(bare: bool) -> Self {
        Self { bare, parser: Parser::default() }
    }

    /// Writes what is whole in `piece` and before.
    pub(super) fn take(&mut self, piece: &[u8]) -> Result<(), CliError> {
        if self.bare {
            return write(Stream::Out, piece);
        }
        self.parser.take(piece, &mut |stream, bytes| write(stream, bytes))
    }

    /// Refuses an end within a frame.
    pub(super) fn finish(&self) -> Result<(), CliError> {
        match self.bare || self.parser.is_between() {
            true => Ok(()),
            false => Err(CliError::plain("the stream ended in the middle of a frame")),
        }
    }
}

fn write(stream: Stream, bytes: &[u8]) -> Result<(), CliError> {
    let done = match stream {
        Stream::Out => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        }
        Stream::Err => io::stderr().lock().write_all(bytes),
    };
    done.map_err(CliError::Output)
}

/// Takes a piece of payload.
pub(super) type Give<'a> = dyn FnMut(Stream, &[u8]) -> Result<(), CliError> + 'a;

/// Cuts a byte stream into frames, passing payload on as it comes.
#[derive(Debug, Default)]
pub(super) struct Parser {
    head: Vec<u8>,
    left: usize,
}

impl Parser {
    /// Hands every piece of payload to `give`.
    pub(super) fn take(&mut self, piece: &[u8], give: &mut Give<'_>) -> Result<(), CliError> {
        let mut rest = piece;
        while !rest.is_empty() {
            if self.left == 0 {
                let (head, after) = rest.split_at(rest.len().min(HEAD_BYTES - self.head.len()));
                self.head.extend_from_slice(head);
                rest = after;
                self.left = match self.head.as_slice() {
                    [1..=3, 0, 0, 0, a, b, c, d] => {
                        usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX)
                    }
                    head if head.len() < HEAD_BYTES => return Ok(()),
                    head => {
                        let kind = head.first().copied().unwrap_or_default();
                        return Err(CliError::plain(format!("unrecognized stream: {kind}")));
                    }
                };
                if self.left > FRAME_BYTES {
                    return Err(CliError::plain("the daemon sent a frame that is too long"));
                }
                if self.left == 0 {
                    self.head.clear();
                }
                continue;
            }
            let (payload, after) = rest.split_at(rest.len().min(self.left));
            let stream = if self.head.first() == Some(&1) { Stream::Out } else { Stream::Err };
            give(stream, payload)?;
            self.left -= payload.len();
            if self.left == 0 {
                self.head.clear();
            }
            rest = after;
        }
        Ok(())
    }

    /// Whether no frame is open.
    pub(super) fn is_between(&self) -> bool {
        self.head.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_cut_anywhere_come_out_whole() {
        let wire = [
            &[1, 0, 0, 0, 0, 0, 0, 2][..],
            b"ab",
            &[2, 0, 0, 0, 0, 0, 0, 3],
            b"err",
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 1],
            b"c",
        ]
        .concat();
        for size in 1..=wire.len() {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let mut parser = Parser::default();
            for piece in wire.chunks(size) {
                let mut give = |stream, bytes: &[u8]| {
                    let sink = if stream == Stream::Out { &mut out } else { &mut err };
                    sink.extend_from_slice(bytes);
                    Ok(())
                };
                parser.take(piece, &mut give).unwrap();
            }
            assert_eq!((out.as_slice(), err.as_slice()), (&b"abc"[..], &b"err"[..]), "{size}");
            assert!(parser.is_between());
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let mut nothing = |_, _: &[u8]| Ok(());
        assert!(Parser::default().take(b"not a frame", &mut nothing).is_err());
        let huge = [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert!(Parser::default().take(&huge, &mut nothing).is_err());
        let mut cut = Parser::default();
        cut.take(&[1, 0, 0], &mut nothing).unwrap();
        assert!(!cut.is_between());
    }
}
