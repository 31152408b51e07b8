//! An input taken apart from the front; when it has run out, everything is zero and empty.

/// What is left of an input.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// The whole input.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// The next bytes, behind their length in two bytes.
    pub fn piece(&mut self) -> &'a [u8] {
        let len = usize::from(u16::from_le_bytes([self.byte(), self.byte()]));
        let (piece, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        piece
    }

    /// All pieces that are left, at most so many.
    pub fn pieces(&mut self, most: usize) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        while !self.0.is_empty() && pieces.len() < most {
            pieces.push(self.piece());
        }
        pieces
    }

    /// The next piece as text.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.piece()).into_owned()
    }

    /// Everything that is left.
    #[must_use]
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Everything that is left, as text.
    #[must_use]
    pub fn rest_text(self) -> String {
        String::from_utf8_lossy(self.0).into_owned()
    }

    /// Whether it has run out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The bytes that [`Cursor::piece`] takes apart again.
#[must_use]
pub fn piece(bytes: &[u8]) -> Vec<u8> {
    let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&len.to_le_bytes()[..], bytes].concat()
}

/// The same for several pieces behind a first byte.
#[must_use]
pub fn input(first: u8, pieces: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![first];
    pieces.iter().for_each(|bytes_of| bytes.extend(piece(bytes_of)));
    bytes
}
