//! `skep import`: the root file system in a tar becomes an image.

use std::fs::File;
use std::io;

use http::Method;

use super::call::Call;
use super::client::Target;
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
use super::input::{body, pieces};
use super::messages::Messages;
use super::values::open_error;

/// `skep import`
pub(super) const IMPORT: Command = Command::client(
    "import",
    "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
    "Import the contents from a tarball to create a filesystem image",
    import,
)
.flags(&[
    Flag::with("change", "list", "Apply Dockerfile instruction to the created image").short('c'),
    Flag::with("message", "string", "Set commit message for imported image").short('m'),
])
.takes(Arity::AtLeast(1));

fn import(call: &Call) -> Result<u8, CliError> {
    let source = call.arg(0);
    let (name, input) = match source {
        "-" => ("-", Some(pieces(io::stdin()))),
        url if url.starts_with("http://") || url.starts_with("https://") => (url, None),
        path => {
            let file = File::open(path).map_err(|why| CliError::plain(open_error(path, &why)))?;
            ("-", Some(pieces(file)))
        }
    };
    let mut target = Target::new(&["images", "create"])
        .with("fromSrc", name)
        .with("message", call.get("message").unwrap_or_default());
    for change in call.matches.all("change") {
        target = target.with("changes", change);
    }
    target = target.with_some("repo", call.matches.arg(1));
    let mut messages = Messages::of("POST /images/create", false);
    call.client()?
        .stream(Method::POST, &target, input.map(body), &mut |piece| messages.take(piece))?;
    messages.finish()?;
    Ok(0)
}
