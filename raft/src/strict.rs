//! Decoding that refuses what it does not know.
//!
//! Derived decoders skip unknown fields: right between peers, wrong in the log, where a skipped
//! field would make this manager's state differ from the others'.

use minicbor::data::Type;
use minicbor::{Decode, Decoder, Encode};

/// Why an entry or record is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StrictError {
    #[error("not of this format")]
    Decode(#[from] minicbor::decode::Error),
    #[error("has a field that this version does not know")]
    Unknown,
}

/// Levels of nesting that are looked through.
const DEPTH: usize = 64;

/// Decodes all of `bytes`. Refuses fields that `T` does not have.
pub(crate) fn decode<T>(bytes: &[u8]) -> Result<T, StrictError>
where
    T: for<'b> Decode<'b, ()> + Encode<()>,
{
    let mut decoder = Decoder::new(bytes);
    let value: T = decoder.decode()?;
    if decoder.position() != bytes.len() {
        return Err(StrictError::Unknown);
    }
    let again = minicbor::to_vec(&value).map_err(|_| StrictError::Unknown)?;
    // What was skipped is not in the new encoding. A field that came later is, with its
    // default, and may be missing in the old one.
    if again == bytes || covers(&mut Decoder::new(&again), &mut Decoder::new(bytes), DEPTH)? {
        Ok(value)
    } else {
        Err(StrictError::Unknown)
    }
}

/// Whether everything in the next item of `old` is in the next item of `new`.
fn covers(new: &mut Decoder<'_>, old: &mut Decoder<'_>, depth: usize) -> Result<bool, StrictError> {
    let depth = depth.checked_sub(1).ok_or(StrictError::Unknown)?;
    match old.datatype()? {
        Type::Map | Type::MapIndef if matches!(new.datatype()?, Type::Map | Type::MapIndef) => {
            covers_map(new, old, depth)
        }
        Type::Array | Type::ArrayIndef
            if matches!(new.datatype()?, Type::Array | Type::ArrayIndef) =>
        {
            let (Some(many), Some(few)) = (new.array()?, old.array()?) else { return Ok(false) };
            for _ in 0..few.min(many) {
                if !covers(new, old, depth)? {
                    return Ok(false);
                }
            }
            for _ in few..many {
                new.skip()?;
            }
            Ok(many >= few)
        }
        _ => Ok(raw(new)? == raw(old)?),
    }
}

fn covers_map(
    new: &mut Decoder<'_>,
    old: &mut Decoder<'_>,
    depth: usize,
) -> Result<bool, StrictError> {
    let (Some(many), Some(few)) = (new.map()?, old.map()?) else { return Ok(false) };
    let mut left = many;
    for _ in 0..few {
        let key = raw(old)?;
        // Both encodings have their keys in the order of the type's fields.
        loop {
            if left == 0 {
                return Ok(false);
            }
            left -= 1;
            if raw(new)? == key {
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
fn raw<'b>(decoder: &mut Decoder<'b>) -> Result<&'b [u8], StrictError> {
    let start = decoder.position();
    decoder.skip()?;
    decoder.input().get(start..decoder.position()).ok_or(StrictError::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    struct Old {
        #[n(0)]
        a: u64,
        #[n(2)]
        c: Vec<Inner>,
    }

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    struct New {
        #[n(0)]
        a: u64,
        #[cbor(n(1), default)]
        b: u64,
        #[n(2)]
        c: Vec<Inner>,
        #[n(3)]
        d: Option<u64>,
    }

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    struct Inner {
        #[n(0)]
        x: u64,
    }

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    struct Wider {
        #[n(0)]
        a: u64,
        #[n(2)]
        c: Vec<InnerWider>,
    }

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    struct InnerWider {
        #[n(0)]
        x: u64,
        #[n(1)]
        y: u64,
    }

    #[test]
    fn what_is_missing_gets_its_default_and_what_is_unknown_is_refused() {
        let old = Old { a: 1, c: vec![Inner { x: 2 }, Inner { x: 3 }] };
        let bytes = minicbor::to_vec(&old).unwrap();
        assert_eq!(decode::<Old>(&bytes).unwrap(), old);
        assert_eq!(decode::<New>(&bytes).unwrap().b, 0);

        let new = New { a: 1, b: 5, c: vec![Inner { x: 2 }], d: Some(1) };
        let bytes = minicbor::to_vec(&new).unwrap();
        assert!(matches!(decode::<Old>(&bytes), Err(StrictError::Unknown)));

        let wider = Wider { a: 1, c: vec![InnerWider { x: 2, y: 3 }] };
        let bytes = minicbor::to_vec(&wider).unwrap();
        assert!(matches!(decode::<Old>(&bytes), Err(StrictError::Unknown)));
        assert!(decode::<Wider>(&[bytes.as_slice(), &[0]].concat()).is_err());
    }
}
