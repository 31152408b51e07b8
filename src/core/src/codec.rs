//! Bytes of the core's own types: CBOR maps with numbered fields.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::convert::Infallible;
use core::fmt;

use minicbor::{Decode, Decoder, Encode};

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodecError(String);

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for CodecError {}

/// The bytes of `value`.
#[must_use]
pub fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A vector takes every byte, and no encoding of ours fails by itself.
    let done: Result<(), minicbor::encode::Error<Infallible>> = minicbor::encode(value, &mut bytes);
    debug_assert!(done.is_ok());
    bytes
}

/// Reads a message of a peer: fields a newer version added are skipped, trailing bytes refused.
///
/// # Errors
/// If the bytes are not a `T`.
pub fn decode<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> Result<T, CodecError> {
    let mut decoder = Decoder::new(bytes);
    let value = decoder.decode().map_err(|e| CodecError(e.to_string()))?;
    if decoder.position() == bytes.len() {
        Ok(value)
    } else {
        Err(CodecError(String::from("bytes after the end")))
    }
}

/// Reads a log entry or snapshot record: the bytes must be exactly what `encode` would write,
/// so a field, command or value of a newer version is an error and never lost in silence.
///
/// # Errors
/// If the bytes are not a `T`, or not the only encoding of one.
pub fn decode_strict<T: Encode<()> + for<'b> Decode<'b, ()>>(
    bytes: &[u8],
) -> Result<T, CodecError> {
    let value: T = decode(bytes)?;
    let mut check = Matcher { rest: bytes };
    match minicbor::encode(&value, &mut check) {
        Ok(()) if check.rest.is_empty() => Ok(value),
        _ => Err(CodecError(String::from("fields this version does not know"))),
    }
}

/// Takes the bytes it expects and no others; saves a second copy of every record.
struct Matcher<'a> {
    rest: &'a [u8],
}

impl minicbor::encode::Write for Matcher<'_> {
    type Error = ();

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.rest = self.rest.strip_prefix(bytes).ok_or(())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RequestId;

    #[test]
    fn strict_reading_refuses_what_lenient_reading_skips() {
        #[derive(Debug, PartialEq, Encode, Decode)]
        #[cbor(map)]
        struct Old {
            #[n(0)]
            a: u64,
        }
        #[derive(Encode)]
        #[cbor(map)]
        struct New {
            #[n(0)]
            a: u64,
            #[n(1)]
            b: u64,
        }
        let new = encode(&New { a: 1, b: 2 });
        assert_eq!(decode::<Old>(&new), Ok(Old { a: 1 }));
        assert!(decode_strict::<Old>(&new).is_err());
        assert_eq!(decode_strict::<Old>(&encode(&Old { a: 1 })), Ok(Old { a: 1 }));
        let id = encode(&RequestId::from_entropy([3; 17]));
        assert!(decode::<RequestId>(&[id.as_slice(), &[0]].concat()).is_err());
    }
}
