//! `skep exec`: a command in a running container, its streams joined to ours.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::call::Call;
use super::client::{Client, Target};
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
use super::frames::Frames;
use super::input::pieces as pieces_of;
use super::json;
use super::terminal::{Raw, size};
use super::values::{check_env, env_file, environment};

/// How long the exit code may take to be known once the streams have ended.
const EXIT_WAIT: Duration = Duration::from_secs(10);
/// Pause between two looks for it.
const EXIT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of output taken at once.
const CHUNK_BYTES: usize = 32 << 10;

/// Input on its way.
type Pieces = mpsc::Receiver<Result<Bytes, io::Error>>;

/// `skep exec`
pub(super) const EXEC: Command = Command::client(
    "exec",
    "[OPTIONS] CONTAINER COMMAND [ARG...]",
    "Execute a command in a running container",
    exec,
)
.flags(&[
    Flag::switch("detach", "Detached mode: run command in the background").short('d'),
    Flag::with("env", "list", "Set environment variables").short('e').check(check_env),
    Flag::with("env-file", "list", "Read in a file of environment variables"),
    Flag::switch("interactive", "Keep STDIN open even if not attached").short('i'),
    Flag::switch("privileged", "Give extended privileges to the command"),
    Flag::switch("tty", "Allocate a pseudo-TTY").short('t'),
    Flag::with("user", "string", "Username or UID (format: \"<name|uid>[:<group|gid>]\")")
        .short('u'),
    Flag::with("workdir", "string", "Working directory inside the container").short('w'),
])
.takes(Arity::AtLeast(2))
.forwards();

fn exec(call: &Call) -> Result<u8, CliError> {
    let (tty, input, detach) = (call.on("tty"), call.on("interactive"), call.on("detach"));
    let mut variables = Vec::new();
    for path in call.matches.all("env-file") {
        variables.extend(env_file(path).map_err(CliError::Plain)?);
    }
    variables.extend_from_slice(call.matches.all("env"));
    let variables = environment(&variables);

    let mut client = call.client()?;
    let container = call.arg(0);
    client.get(&Target::new(&["containers", container, "json"]))?;
    if tty && input && !detach && !io::stdin().is_terminal() {
        return Err(CliError::plain("the input device is not a TTY"));
    }
    let console = size().filter(|_| tty).map(|(rows, columns)| json!([rows, columns]));
    let mut body = json!({
        "User": call.get("user").unwrap_or_default(), "Privileged": call.on("privileged"),
        "Tty": tty, "AttachStdin": input && !detach, "AttachStderr": !detach,
        "AttachStdout": !detach, "Detach": detach, "DetachKeys": "",
        "Env": if variables.is_empty() { Value::Null } else { json!(variables) },
        "WorkingDir": call.get("workdir").unwrap_or_default(),
        "Cmd": call.args().get(1..).unwrap_or_default(),
    });
    let mut start = json!({"Detach": detach, "Tty": tty});
    if let (Some(console), Some(body), Some(start)) =
        (console, body.as_object_mut(), start.as_object_mut())
    {
        body.insert("ConsoleSize".to_owned(), console.clone());
        start.insert("ConsoleSize".to_owned(), console);
    }
    let made = client.post_json(&Target::new(&["containers", container, "exec"]), &body)?;
    let id = json::text(&made, &["Id"]);
    if id.is_empty() {
        return Err(CliError::plain("exec ID empty"));
    }
    if detach {
        client.post_json(&Target::new(&["exec", id, "start"]), &start)?;
        return Ok(0);
    }
    attach(&mut client, id, Bytes::from(start.to_string()), tty, input)?;
    exit_code(&mut client, id)
}

/// Joins our streams to those of the command until its output ends.
fn attach(
    client: &mut Client,
    id: &str,
    start: Bytes,
    tty: bool,
    input: bool,
) -> Result<(), CliError> {
    let resizer = client.resizer(id);
    let raw = if tty && input { Raw::enter() } else { None };
    let done = client.upgrade(&Target::new(&["exec", id, "start"]), start, |stream| async move {
        let (mut output, mut sink) = tokio::io::split(stream);
        let mut pieces = input.then(|| pieces_of(io::stdin()));
        if pieces.is_none() {
            // The daemon may have hung up already; its output tells.
            let _ = sink.shutdown().await;
        }
        let mut resized = signal(SignalKind::window_change()).map_err(CliError::Output)?;
        if tty {
            resizer.resize().await;
        }
        let mut frames = Frames::new(tty);
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            tokio::select! {
                read = output.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(count) => frames.take(buffer.get(..count).unwrap_or_default())?,
                },
                piece = next(&mut pieces), if pieces.is_some() => match piece {
                    Some(piece) if sink.write_all(&piece).await.is_ok() => {}
                    _ => {
                        pieces = None;
                        let _ = sink.shutdown().await;
                    }
                },
                _ = resized.recv(), if tty => resizer.resize().await,
            }
        }
        frames.finish()
    });
    drop(raw);
    done
}

async fn next(pieces: &mut Option<Pieces>) -> Option<Bytes> {
    match pieces {
        Some(pieces) => pieces.recv().await?.ok(),
        None => None,
    }
}

fn exit_code(client: &mut Client, id: &str) -> Result<u8, CliError> {
    let started = Instant::now();
    loop {
        let state = client.get_json(&Target::new(&["exec", id, "json"]))?;
        if let Some(code) = json::at(&state, &["ExitCode"]).and_then(Value::as_i64)
            && !json::flag(&state, &["Running"])
        {
            let _ = io::stdout().flush();
            return Ok(u8::try_from(code & 0xff).unwrap_or(1));
        }
        if started.elapsed() > EXIT_WAIT {
            return Err(CliError::plain("the exit code of the command is not known"));
        }
        client.pause(EXIT_PAUSE);
    }
}
