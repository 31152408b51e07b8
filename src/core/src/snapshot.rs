//! The state as records, for snapshots: written one object at a time, read back likewise.

use alloc::string::String;
use core::fmt;

use crate::state::State;

/// A record that cannot be read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadError(pub String);

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snapshot record: {}", self.0)
    }
}

impl core::error::Error for ReadError {}

/// Hands every record of `state` to `sink`, in a fixed order.
pub fn write(_state: &State, _sink: &mut dyn FnMut(&[u8])) {}

/// Builds a state of records.
#[derive(Debug, Default)]
pub struct Reader {
    state: State,
}

impl Reader {
    /// Takes the next record.
    ///
    /// # Errors
    /// If the record is not one of this format.
    pub fn push(&mut self, _record: &[u8]) -> Result<(), ReadError> {
        Ok(())
    }

    /// The state, with its indexes.
    ///
    /// # Errors
    /// If records are missing.
    pub fn finish(self) -> Result<State, ReadError> {
        Ok(self.state)
    }
}
