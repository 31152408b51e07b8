//! Ways in for the fuzz targets of `integration/fuzz`: what a user types and a daemon answers.

use serde_json::Value;

use super::frames::Parser;
use super::template::{Template, go_json};
use super::{human, json, read, values};

/// Reads a command line as far as it goes without calling anybody.
pub fn command_line(words: &[String]) {
    let _ = read(words);
}

/// Reads a template and fills in `value`; returns how long the text is.
pub fn template(source: &str, value: &Value) -> Option<usize> {
    let text = Template::parse(source).ok()?.render(value).ok()?;
    Some(text.len())
}

/// Reads a text as every kind of value that flags have, and shows it in every way.
pub fn value(text: &str) {
    let _ = (values::duration(text), values::bytes(text), values::nano_cpus(text));
    let _ = (values::csv(text), values::shell_words(text), values::uint_any_base(text));
    let _ = (human::ago(text), human::short_id(text), human::capital(text));
    let _ = (human::familiar_image(text), human::natural(text, "a10b9"));
    for width in [0, 1, 7] {
        assert!(human::ellipsis(text, width).chars().count() <= width.max(text.chars().count()));
    }
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        let _ = go_json(&value);
    }
    let _ = json::indent(text.as_bytes());
}

/// Reads the frames of a container's output; returns the bytes they carried.
pub fn frames(pieces: &[&[u8]]) -> usize {
    let mut parser = Parser::default();
    let mut carried = 0;
    for piece in pieces {
        let taken = parser.take(piece, &mut |_, bytes| {
            carried += bytes.len();
            Ok(())
        });
        if taken.is_err() {
            break;
        }
    }
    carried
}
