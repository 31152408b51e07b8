//! Bytes of the core's own types: CBOR maps with numbered fields.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::convert::Infallible;
use core::fmt;

use minicbor::data::Type;
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

impl From<minicbor::decode::Error> for CodecError {
    fn from(e: minicbor::decode::Error) -> Self {
        Self(e.to_string())
    }
}

/// The bytes of `value`.
#[must_use]
pub fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A vector takes every byte, and no encoding of ours fails by itself.
    let done: Result<(), minicbor::encode::Error<Infallible>> = minicbor::encode(value, &mut bytes);
    debug_assert!(done.is_ok());
    bytes
}

/// How many bytes `encode` makes of `value`.
pub(crate) fn length<T: Encode<()>>(value: &T) -> usize {
    let mut counter = Counter(0);
    let done: Result<(), minicbor::encode::Error<Infallible>> =
        minicbor::encode(value, &mut counter);
    debug_assert!(done.is_ok());
    counter.0
}

/// Counts the bytes it is given.
struct Counter(usize);

impl minicbor::encode::Write for Counter {
    type Error = Infallible;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.0 += bytes.len();
        Ok(())
    }
}

/// Reads a message of a peer: fields a newer version added are skipped, trailing bytes refused.
///
/// # Errors
/// If the bytes are not a `T`.
pub fn decode<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> Result<T, CodecError> {
    let mut decoder = Decoder::new(bytes);
    let value = decoder.decode()?;
    if decoder.position() == bytes.len() {
        Ok(value)
    } else {
        Err(CodecError(String::from("bytes after the end")))
    }
}

/// Reads a log entry or snapshot record: everything in the bytes must be in what `encode` would
/// write, so a field, command or value of a newer version is an error and never lost in
/// silence. A field that an older version did not have yet may be missing and gets its default.
///
/// # Errors
/// If the bytes are not a `T`, or hold more than one.
pub fn decode_strict<T: Encode<()> + for<'b> Decode<'b, ()>>(
    bytes: &[u8],
) -> Result<T, CodecError> {
    let value: T = decode(bytes)?;
    if is_whole(&value, bytes) {
        Ok(value)
    } else {
        Err(CodecError(String::from("fields this version does not know")))
    }
}

/// Whether everything in the bytes that `value` was read from is in what `encode` writes of it.
#[must_use]
pub fn is_whole<T: Encode<()>>(value: &T, bytes: &[u8]) -> bool {
    let mut check = Matcher { rest: bytes };
    let is_same = minicbor::encode(value, &mut check).is_ok() && check.rest.is_empty();
    is_same
        || covers(&mut Decoder::new(&encode(value)), &mut Decoder::new(bytes), DEPTH)
            .is_ok_and(|covers| covers)
}

/// Levels of nesting that are looked through for what an older version did not have.
const DEPTH: usize = 64;

/// Whether everything in the next item of `old` is in the next item of `new`.
fn covers(new: &mut Decoder<'_>, old: &mut Decoder<'_>, depth: usize) -> Result<bool, CodecError> {
    let Some(depth) = depth.checked_sub(1) else { return Ok(false) };
    match (new.datatype()?, old.datatype()?) {
        (Type::Map, Type::Map) => covers_map(new, old, depth),
        (Type::Array, Type::Array) => {
            let (many, few) = (new.array()?, old.array()?);
            for _ in 0..few.min(many).unwrap_or(0) {
                if !covers(new, old, depth)? {
                    return Ok(false);
                }
            }
            for _ in few.unwrap_or(0)..many.unwrap_or(0) {
                new.skip()?;
            }
            Ok(many >= few)
        }
        _ => Ok(item(new)? == item(old)?),
    }
}

/// Keys stand in the order of the type's fields in both.
fn covers_map(
    new: &mut Decoder<'_>,
    old: &mut Decoder<'_>,
    depth: usize,
) -> Result<bool, CodecError> {
    let mut left = new.map()?.unwrap_or(0);
    for _ in 0..old.map()?.unwrap_or(0) {
        let key = item(old)?;
        loop {
            let Some(fewer) = left.checked_sub(1) else { return Ok(false) };
            left = fewer;
            if item(new)? == key {
                break;
            }
            new.skip()?;
        }
        if !covers(new, old, depth)? {
            return Ok(false);
        }
    }
    for _ in 0..left {
        new.skip()?;
        new.skip()?;
    }
    Ok(true)
}

/// The bytes of the next item.
fn item<'b>(decoder: &mut Decoder<'b>) -> Result<&'b [u8], CodecError> {
    let start = decoder.position();
    decoder.skip()?;
    Ok(decoder.input().get(start..decoder.position()).unwrap_or_default())
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
        assert_eq!(length(&New { a: 1, b: 2 }), new.len());
        assert_eq!(decode::<Old>(&new), Ok(Old { a: 1 }));
        assert!(decode_strict::<Old>(&new).is_err());
        assert_eq!(decode_strict::<Old>(&encode(&Old { a: 1 })), Ok(Old { a: 1 }));
        assert!(
            decode_strict::<Vec<Old>>(&encode(&[New { a: 1, b: 2 }, New { a: 1, b: 2 }])).is_err()
        );
        let id = encode(&RequestId::from_entropy([3; 17]));
        assert!(decode::<RequestId>(&[id.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn what_an_older_version_did_not_write_gets_its_default() {
        #[derive(Encode)]
        #[cbor(map)]
        struct Old {
            #[n(0)]
            a: u64,
            #[n(2)]
            c: Vec<u64>,
        }
        #[derive(Debug, PartialEq, Encode, Decode)]
        #[cbor(map)]
        struct New {
            #[n(0)]
            a: u64,
            #[cbor(n(1), default)]
            b: u64,
            #[n(2)]
            c: Vec<u64>,
            #[n(3)]
            d: Option<u64>,
        }
        let read = decode_strict::<Vec<New>>(&encode(&[Old { a: 1, c: Vec::from([2, 3]) }]));
        assert_eq!(read, Ok(Vec::from([New { a: 1, b: 0, c: Vec::from([2, 3]), d: None }])));
    }
}
