//! Text that admits to something, such as a join token or an unlock key.

use std::fmt;

use zeroize::Zeroizing;

/// Text that is wiped when it goes and shown nowhere: its `Debug` tells nothing, and it has
/// neither `Display` nor `Clone`.
pub struct Hidden(Zeroizing<String>);

impl Hidden {
    /// Hides a text. The caller gives up its own copy.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for whoever has to compare, send or open something with it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_tells_nothing_of_the_text() {
        let hidden = Hidden::new("SWMKEY-1-x".to_owned());
        assert_eq!(format!("{hidden:?}"), "Hidden(…)");
        assert_eq!(hidden.reveal(), "SWMKEY-1-x");
    }
}
