//! Options of a node: what `skep up` and `skep daemon` take.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::call::socket_of;
use super::flags::{Flag, Matches};
use crate::address::{self, PORT};
use crate::hidden::Hidden;
use crate::limits;

/// Which command started the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// `up`: a fresh node makes a swarm of its own or joins one.
    Up,
    /// `daemon`: a fresh node waits to be told.
    Daemon,
}

/// Whether a node takes tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// It takes new tasks.
    Active,
    /// It keeps those it has.
    Pause,
    /// It gives them up.
    Drain,
}

/// The shape of the daemon's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object per line.
    Json,
}

/// Where a join token is.
#[derive(Debug)]
pub enum TokenSource {
    /// On the command line itself.
    Given(Hidden),
    /// In a file.
    File(PathBuf),
    /// On standard input.
    Stdin,
}

/// The swarm to join.
#[derive(Debug)]
pub struct Join {
    /// Managers, `HOST:PORT` each, in the order to try; one at least.
    pub managers: Vec<String>,
    /// What admits this node.
    pub token: TokenSource,
}

/// What a node was told on its command line.
#[derive(Debug)]
pub struct NodeArgs {
    /// Which command started it.
    pub start: Start,
    /// The swarm to join, for `up --join`.
    pub join: Option<Join>,
    /// Sockets to serve the local API on; one at least.
    pub sockets: Vec<PathBuf>,
    /// What must survive a reboot.
    pub data_root: PathBuf,
    /// What must not.
    pub run_root: PathBuf,
    /// Name of the node; the host's if there is none.
    pub node_name: Option<String>,
    /// Where the node listens for its peers; port 0 picks one.
    pub listen_addr: SocketAddr,
    /// Where its peers reach it, `ADDR[:PORT]`; found out if there is none.
    pub advertise_addr: Option<String>,
    /// The OCI runtime.
    pub runtime: PathBuf,
    /// Kind of the vaults: `auto`, `secretmem` or `mlock`.
    pub vault: String,
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a filter of targets.
    pub log_level: String,
    /// In which shape.
    pub log_format: LogFormat,
    /// Whether managers need a key to start.
    pub autolock: bool,
    /// Whether the node takes tasks.
    pub availability: Availability,
}

/// Flags of `daemon`.
pub(super) const DAEMON_FLAGS: &[Flag] = &[
    ADVERTISE_ADDR,
    AUTOLOCK,
    AVAILABILITY,
    DATA_ROOT,
    HOST,
    LISTEN_ADDR,
    LOG_FORMAT,
    LOG_LEVEL,
    NODE_NAME,
    RUN_ROOT,
    RUNTIME,
    VAULT,
];

/// Flags of `up`.
pub(super) const UP_FLAGS: &[Flag] = &[
    ADVERTISE_ADDR,
    AUTOLOCK,
    AVAILABILITY,
    DATA_ROOT,
    HOST,
    Flag::with(
        "join",
        "list",
        "Managers of the swarm to join, tried in turn (\"HOST[:PORT][,HOST[:PORT]...]\")",
    )
    .check(|text| managers(text).map(|_| ())),
    LISTEN_ADDR,
    LOG_FORMAT,
    LOG_LEVEL,
    NODE_NAME,
    RUN_ROOT,
    RUNTIME,
    Flag::with(
        "token",
        "string",
        "Token of the swarm to join (others can read it in the process list; prefer --token-file)",
    ),
    Flag::with(
        "token-file",
        "file",
        "File that holds the token of the swarm to join (\"-\" for standard input)",
    ),
    VAULT,
];

const ADVERTISE_ADDR: Flag = Flag::with(
    "advertise-addr",
    "string",
    "Address at which other nodes reach this one (format: \"<ip|interface>[:port]\")",
);
const AUTOLOCK: Flag = Flag::switch(
    "autolock",
    "Enable manager autolocking (requiring an unlock key to start a stopped manager)",
);
const AVAILABILITY: Flag = Flag::with(
    "availability",
    "string",
    "Availability of the node (\"active\", \"pause\", \"drain\") (default \"active\")",
)
.check(|text| availability(text).map(|_| ()));
const DATA_ROOT: Flag = Flag::with(
    "data-root",
    "dir",
    "Directory for what outlives a reboot (default \"/var/lib/skep\")",
);
const HOST: Flag = Flag::with(
    "host",
    "list",
    "Socket to serve the API on (default \"unix://<run-root>/skep.sock\")",
)
.short('H')
.check(|text| socket_of(text).map(|_| ()));
const LISTEN_ADDR: Flag = Flag::with(
    "listen-addr",
    "addr",
    "Address to listen on for other nodes, port 0 picks one (default \"0.0.0.0:2377\")",
)
.check(|text| listen_addr(text).map(|_| ()));
const LOG_FORMAT: Flag =
    Flag::with("log-format", "string", "Shape of the log (\"text\", \"json\") (default \"text\")")
        .check(|text| log_format(text).map(|_| ()));
const LOG_LEVEL: Flag = Flag::with(
    "log-level",
    "string",
    "What to log (\"error\", \"warn\", \"info\", \"debug\", \"trace\") (default \"info\")",
);
const NODE_NAME: Flag =
    Flag::with("node-name", "string", "Name of the node (default: the host's name)");
const RUN_ROOT: Flag =
    Flag::with("run-root", "dir", "Directory for sockets and mounts (default \"/run/skep\")");
const RUNTIME: Flag = Flag::with("runtime", "path", "OCI runtime (default \"runc\")");
const VAULT: Flag = Flag::with(
    "vault",
    "string",
    "Memory for secrets (\"auto\", \"secretmem\", \"mlock\") (default \"auto\")",
)
.check(|text| match text {
    "auto" | "secretmem" | "mlock" => Ok(()),
    _ => Err("must be one of auto, secretmem, mlock".to_owned()),
});

/// What the flags say, with their defaults. `globals` are the flags before the command: a
/// socket may be named there too.
pub(super) fn read(start: Start, flags: &Matches, globals: &Matches) -> Result<NodeArgs, String> {
    let run_root = PathBuf::from(flags.get("run-root").unwrap_or("/run/skep"));
    let mut sockets = Vec::new();
    for host in globals.all("host").iter().chain(flags.all("host")) {
        let socket = socket_of(host)?;
        if !sockets.contains(&socket) {
            sockets.push(socket);
        }
    }
    if sockets.is_empty() {
        sockets.push(run_root.join("skep.sock"));
    }
    Ok(NodeArgs {
        start,
        join: join(flags)?,
        sockets,
        data_root: PathBuf::from(flags.get("data-root").unwrap_or("/var/lib/skep")),
        run_root,
        node_name: flags.get("node-name").map(str::to_owned),
        listen_addr: listen_addr(flags.get("listen-addr").unwrap_or("0.0.0.0"))?,
        advertise_addr: flags.get("advertise-addr").map(str::to_owned),
        runtime: PathBuf::from(flags.get("runtime").unwrap_or("runc")),
        vault: flags.get("vault").unwrap_or("auto").to_owned(),
        log_level: flags.get("log-level").unwrap_or("info").to_owned(),
        log_format: log_format(flags.get("log-format").unwrap_or("text"))?,
        autolock: flags.on("autolock"),
        availability: availability(flags.get("availability").unwrap_or("active"))?,
    })
}

fn join(flags: &Matches) -> Result<Option<Join>, String> {
    let mut found = Vec::new();
    for list in flags.all("join") {
        found.extend(managers(list)?);
    }
    let token = flags.get("token").map(|token| TokenSource::Given(Hidden::new(token.to_owned())));
    let file = flags.get("token-file").map(|path| match path {
        "-" => TokenSource::Stdin,
        path => TokenSource::File(PathBuf::from(path)),
    });
    match (found.len(), token, file) {
        (0, None, None) => match flags.all("join").is_empty() {
            true => Ok(None),
            false => Err("--join names no manager".to_owned()),
        },
        (0, ..) => Err("--token and --token-file need --join".to_owned()),
        (_, None, None) => Err("--join needs --token or --token-file".to_owned()),
        (_, Some(_), Some(_)) => Err("--token and --token-file exclude each other".to_owned()),
        (count, ..) if count > limits::JOIN_ADDRESSES => {
            Err(format!("--join names more than {} managers", limits::JOIN_ADDRESSES))
        }
        (_, Some(token), None) | (_, None, Some(token)) => {
            Ok(Some(Join { managers: found, token }))
        }
    }
}

/// Managers in a list, each with its port.
fn managers(list: &str) -> Result<Vec<String>, String> {
    let named = list.split(',').map(str::trim).filter(|one| !one.is_empty());
    named.map(|one| address::remote(one).map_err(|why| why.to_string())).collect()
}

fn listen_addr(text: &str) -> Result<SocketAddr, String> {
    let addr = text.parse::<SocketAddr>();
    addr.or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, PORT)))
        .map_err(|_| format!("{text:?} is not an address (format: \"<ip>[:port]\")"))
}

fn availability(text: &str) -> Result<Availability, String> {
    match text {
        "active" => Ok(Availability::Active),
        "pause" => Ok(Availability::Pause),
        "drain" => Ok(Availability::Drain),
        _ => Err(format!(
            "invalid availability {text:?}, only active, pause and drain are supported"
        )),
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("must be one of text, json".to_owned()),
    }
}
