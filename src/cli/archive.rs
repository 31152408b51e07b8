//! `skep load` and `skep save`: images as archives.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use http::Method;
use serde_json::json;

use super::call::Call;
use super::client::Target;
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
use super::input::{body, pieces};
use super::messages::Messages;
use super::values::open_error;

/// `skep load`
pub(super) const LOAD: Command =
    Command::client("load", "[OPTIONS]", "Load an image from a tar archive or STDIN", load)
        .flags(&[
            Flag::with("input", "string", "Read from tar archive file, instead of STDIN")
                .short('i'),
            Flag::with(
                "platform",
                "string",
                "Load only the given platform variant. Formatted as \"os[/arch[/variant]]\" \
                 (e.g., \"linux/amd64\")",
            ),
            Flag::switch("quiet", "Suppress the load output").short('q'),
        ])
        .takes(Arity::None);

/// `skep save`
pub(super) const SAVE: Command = Command::client(
    "save",
    "[OPTIONS] IMAGE [IMAGE...]",
    "Save one or more images to a tar archive (streamed to STDOUT by default)",
    save,
)
.flags(&[
    Flag::with("output", "string", "Write to a file, instead of STDOUT").short('o'),
    Flag::with(
        "platform",
        "string",
        "Save only the given platform variant. Formatted as \"os[/arch[/variant]]\" (e.g., \
         \"linux/amd64\")",
    ),
])
.takes(Arity::AtLeast(1));

fn load(call: &Call) -> Result<u8, CliError> {
    let input = match call.get("input").unwrap_or_default() {
        "" if io::stdin().is_terminal() => {
            return Err(CliError::plain("requested load from stdin, but stdin is empty"));
        }
        "" => pieces(io::stdin()),
        path => {
            let file = File::open(path).map_err(|why| CliError::plain(open_error(path, &why)))?;
            pieces(file)
        }
    };
    let live = io::stdout().is_terminal() && !call.on("quiet");
    let mut target = Target::new(&["images", "load"]);
    if !live {
        target = target.with("quiet", "1");
    }
    let target = target.with_some("platform", platform(call)?.as_deref());
    let mut messages = Messages::of("POST /images/load", live);
    call.client()?
        .stream(Method::POST, &target, Some(body(input)), &mut |piece| messages.take(piece))?;
    messages.finish()?;
    Ok(0)
}

fn save(call: &Call) -> Result<u8, CliError> {
    let output = call.get("output").unwrap_or_default();
    if output.is_empty() && io::stdout().is_terminal() {
        let text = "cowardly refusing to save to a terminal. Use the -o flag or redirect";
        return Err(CliError::plain(text));
    }
    let mut target = Target::new(&["images", "get"]);
    for name in call.args() {
        target = target.with("names", name);
    }
    let target = target.with_some("platform", platform(call)?.as_deref());
    match output {
        "" => fetch(call, &target, &mut io::stdout().lock())?,
        path => {
            let path = Path::new(path);
            check_output(path)
                .map_err(|why| CliError::plain(format!("failed to save image: {why}")))?;
            // Half an archive never has the name of a whole one.
            let mut file = tempfile::Builder::new()
                .prefix(".tmp-skep-save")
                .tempfile_in(directory_of(path))
                .map_err(CliError::Output)?;
            fetch(call, &target, &mut file)?;
            file.as_file().sync_all().map_err(CliError::Output)?;
            file.persist(path).map_err(|why| CliError::Output(why.error))?;
        }
    }
    Ok(0)
}

fn fetch(call: &Call, target: &Target, to: &mut dyn Write) -> Result<(), CliError> {
    call.client()?.stream(Method::GET, target, None, &mut |piece| {
        to.write_all(piece).map_err(CliError::Output)
    })?;
    to.flush().map_err(CliError::Output)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    }
}

/// Refuses what cannot become a file, before anything is asked for.
fn check_output(path: &Path) -> Result<(), String> {
    let above = directory_of(path);
    if !above.is_dir() {
        return Err(format!(
            "invalid output path: stat {}: no such file or directory",
            above.display()
        ));
    }
    let Ok(found) = fs::metadata(path) else { return Ok(()) };
    let kind = found.file_type();
    match () {
        () if kind.is_dir() => Err("cannot write to a directory".to_owned()),
        () if kind.is_char_device() => Err("cannot write to a character device file".to_owned()),
        () if kind.is_block_device() => Err("cannot write to a block device file".to_owned()),
        () if !kind.is_file() => Err("cannot write to a special file".to_owned()),
        () => Ok(()),
    }
}

/// `--platform` as the API takes it.
fn platform(call: &Call) -> Result<Option<String>, CliError> {
    let text = call.get("platform").unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let parts: Vec<&str> = text.split('/').collect();
    let platform = match parts.as_slice() {
        [os] => json!({"os": os}),
        [os, arch] => json!({"architecture": arch, "os": os}),
        [os, arch, variant] => json!({"architecture": arch, "os": os, "variant": variant}),
        _ => {
            let text = format!("invalid platform {text:?}: must be os[/arch[/variant]]");
            return Err(CliError::plain(text));
        }
    };
    match parts.iter().any(|part| part.is_empty()) {
        true => Err(CliError::plain(format!("invalid platform {text:?}: a part is empty"))),
        false => Ok(Some(platform.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_that_cannot_be_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(check_output(&dir.path().join("new.tar")), Ok(()));
        assert_eq!(check_output(Path::new("new.tar")), Ok(()));
        for (path, text) in [
            (dir.path(), "cannot write to a directory"),
            (Path::new("/dev/null"), "cannot write to a character device file"),
            (Path::new("/nothing/x"), "stat /nothing: no such file or directory"),
        ] {
            let refused = check_output(path).unwrap_err();
            assert!(refused.ends_with(text), "{refused}");
        }
    }
}
