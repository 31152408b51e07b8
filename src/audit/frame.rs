//! Records one behind the other in a file: length (four bytes, big-endian), four bytes of the
//! record's hash, the record.

use super::chain::hash;
use crate::limits::AUDIT_RECORD_BYTES;

/// Bytes before a record.
const HEADER_BYTES: usize = 8;

/// What stands at the beginning of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<'a> {
    /// A record.
    Record {
        /// Its bytes.
        body: &'a [u8],
        /// Bytes that it takes in the file.
        taken: usize,
    },
    /// Nothing.
    End,
    /// No whole record: it is being written, or whoever wrote it was killed in the middle of it.
    Torn,
}

/// Appends a record to what is to be written.
pub fn put(out: &mut Vec<u8>, body: &[u8]) {
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend(hash(body).into_iter().take(HEADER_BYTES - 4));
    out.extend_from_slice(body);
}

/// Reads the record that `bytes` begin with.
#[must_use]
pub fn next(bytes: &[u8]) -> Next<'_> {
    if bytes.is_empty() {
        return Next::End;
    }
    let read = || {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let (check, rest) = rest.split_first_chunk::<4>()?;
        let len = u32::from_be_bytes(*len) as usize;
        let body = rest.get(..len).filter(|_| (1..=AUDIT_RECORD_BYTES).contains(&len))?;
        hash(body).starts_with(check).then_some(body)
    };
    match read() {
        Some(body) => Next::Record { body, taken: HEADER_BYTES + body.len() },
        None => Next::Torn,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn all(mut bytes: &[u8]) -> (Vec<Vec<u8>>, bool) {
        let mut found = Vec::new();
        loop {
            match next(bytes) {
                Next::Record { body, taken } => {
                    found.push(body.to_vec());
                    bytes = &bytes[taken..];
                }
                end => return (found, end == Next::Torn),
            }
        }
    }

    proptest! {
        /// However a file was cut off, what is before the cut is read, and the rest is noticed.
        #[test]
        fn whole_records_are_read_up_to_a_torn_one(
            bodies in vec(vec(any::<u8>(), 1..40), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let (mut bytes, mut ends) = (Vec::new(), vec![0]);
            for body in &bodies {
                put(&mut bytes, body);
                ends.push(bytes.len());
            }
            prop_assert_eq!(all(&bytes), (bodies.clone(), false));
            let cut = cut.index(bytes.len() + 1);
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            let is_torn = !ends.contains(&cut);
            prop_assert_eq!(all(&bytes[..cut]), (bodies[..whole].to_vec(), is_torn));
            // A disk that lost what came last may show zeros in its place.
            let mut lost = bytes[..ends[whole]].to_vec();
            lost.extend([0; 50]);
            prop_assert_eq!(all(&lost), (bodies[..whole].to_vec(), true));
        }

        #[test]
        fn a_changed_byte_is_noticed(
            body in vec(any::<u8>(), 1..40), at in any::<prop::sample::Index>(), by in 1u8..,
        ) {
            let mut bytes = Vec::new();
            put(&mut bytes, &body);
            let at = at.index(bytes.len());
            bytes[at] ^= by;
            prop_assert_eq!(next(&bytes), Next::Torn);
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in vec(any::<u8>(), 0..100)) {
            let _ = all(&bytes);
        }
    }
}
