//! How a node is set up. This is the only place that reads flags, environment and host facts;
//! everything else takes the plain values.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use skep_core::format::FORMAT;
use skep_core::model::node::{Availability, NodeDescription};

use zeroize::Zeroizing;

use crate::address::{self, AddressError, InterfaceAddress};
use crate::cli::{self, NodeArgs, Start, TokenSource};
use crate::hidden::Hidden;
use crate::limits;
use crate::net::{Names, Protocol};

/// How long the runtime may take to tell its version.
const RUNTIME_ANSWER: std::time::Duration = std::time::Duration::from_secs(2);

/// Bytes that a token fits in, so that reading one leaves no outgrown copies behind.
const TOKEN_ROOM: usize = 512;

/// Options of a node, as given.
#[derive(Debug)]
pub struct NodeConfig {
    /// Where everything that lasts is kept.
    pub data_root: PathBuf,
    /// Where sockets and mount points are.
    pub run_root: PathBuf,
    /// Name of the node.
    pub node_name: String,
    /// Address to listen on.
    pub listen_addr: SocketAddr,
    /// Address others use; none means to find it.
    pub advertise_addr: Option<String>,
    /// The OCI runtime: a path, or a name on the PATH.
    pub runtime: String,
    /// Which memory holds plaintext: `auto`, `secretmem` or `mlock`.
    pub vault: String,
    /// Sockets to serve the API on.
    pub sockets: Vec<PathBuf>,
    /// Whether a new swarm locks its keys at rest.
    pub autolock: bool,
    /// Availability of this node in a new swarm.
    pub availability: Availability,
    /// Whether a fresh data root starts a swarm of its own. Never together with `join`.
    pub init: bool,
    /// The swarm that a fresh data root joins.
    pub join: Option<JoinArgs>,
    /// What this build reads and speaks.
    pub build: Build,
}

/// What a build reads and speaks: this one, except for tests with a version to come.
#[derive(Debug, Clone, Copy)]
pub struct Build {
    /// Newest format of the swarm's state.
    pub format: u32,
    /// Names of the protocols between nodes.
    pub names: fn(Protocol) -> Names,
}

impl Default for Build {
    fn default() -> Self {
        Self { format: FORMAT, names: Protocol::names }
    }
}

/// The swarm to join.
#[derive(Debug)]
pub struct JoinArgs {
    /// Managers, `HOST:PORT` each, in the order to try; one at least.
    pub managers: Vec<String>,
    /// The join token, in whatever form it was given.
    pub token: Hidden,
}

impl NodeConfig {
    /// The options of a command line. Reads the join token from where it is.
    ///
    /// # Errors
    /// [`ConfigError`]: the token is not there.
    pub fn from_args(args: NodeArgs) -> Result<Self, ConfigError> {
        // Supervisors get these paths too, and have another working directory.
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let join = args.join.map(JoinArgs::read).transpose()?;
        Ok(Self {
            node_name: args.node_name.unwrap_or_else(hostname),
            data_root: absolute(args.data_root),
            run_root: absolute(args.run_root),
            listen_addr: args.listen_addr,
            advertise_addr: args.advertise_addr,
            runtime: args.runtime.to_string_lossy().into_owned(),
            vault: args.vault,
            sockets: args.sockets,
            autolock: args.autolock,
            availability: match args.availability {
                cli::Availability::Active => Availability::Active,
                cli::Availability::Pause => Availability::Pause,
                cli::Availability::Drain => Availability::Drain,
            },
            init: args.start == Start::Up && join.is_none(),
            join,
            build: Build::default(),
        })
    }

    /// What the node says of itself.
    #[must_use]
    pub fn describe(&self) -> NodeDescription {
        describe(&self.node_name, self.build.format)
    }
}

impl JoinArgs {
    fn read(join: cli::Join) -> Result<Self, ConfigError> {
        let token = match join.token {
            TokenSource::Given(token) => token,
            TokenSource::Stdin => read_token("standard input", std::io::stdin().lock())?,
            TokenSource::File(path) => {
                let name = path.display().to_string();
                let file = File::open(&path)
                    .map_err(|source| ConfigError::TokenFile { path: name.clone(), source })?;
                read_token(&name, file)?
            }
        };
        Ok(Self { managers: join.managers, token })
    }
}

/// The token in a file: all of it, without the space around.
fn read_token(path: &str, source: impl Read) -> Result<Hidden, ConfigError> {
    let fail = |source| ConfigError::TokenFile { path: path.to_owned(), source };
    let mut text = Zeroizing::new(String::with_capacity(TOKEN_ROOM));
    source.take(limits::TOKEN_FILE_BYTES + 1).read_to_string(&mut text).map_err(fail)?;
    let token = text.trim();
    let one_word = !token.is_empty() && !token.contains(char::is_whitespace);
    if !one_word || text.len() as u64 > limits::TOKEN_FILE_BYTES {
        return Err(ConfigError::NoToken(path.to_owned()));
    }
    Ok(Hidden::new(token.to_owned()))
}

/// Options that contradict one another or the host.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An address cannot be understood, or leaves a choice.
    #[error("invalid {option}: {why}")]
    Address {
        /// What it is for.
        option: &'static str,
        /// What is wrong with it.
        why: AddressError,
    },
    /// Nobody can reach a node there.
    #[error(
        "invalid address to advertise {0:?}: others need a particular IP address (or interface) \
         and, if there is one, a port other than 0"
    )]
    Unreachable(String),
    /// The file with the join token cannot be read.
    #[error("cannot read the join token from {path}")]
    TokenFile {
        /// The file, or standard input.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error(
        "{0} does not hold a join token: expected one word, as 'skep swarm join-token --quiet \
         worker' prints it on a manager"
    )]
    NoToken(String),
    /// A `-H` address is not a unix socket.
    #[error("invalid -H {0:?}: a node serves unix sockets only, as unix:///path/to/socket")]
    Host(String),
    /// A feature of a later version.
    #[error("{0}")]
    Unsupported(String),
}

/// Reads `<ip|interface>[:port]`; an interface stands for its address. `option` names it in errors.
///
/// # Errors
/// [`ConfigError::Address`].
pub fn parse_addr(
    option: &'static str,
    value: &str,
    default_port: u16,
) -> Result<SocketAddr, ConfigError> {
    let (ip, port) = address::local(value, &host_addresses())
        .map_err(|why| ConfigError::Address { option, why })?;
    Ok(SocketAddr::new(ip, port.unwrap_or(default_port)))
}

/// Where others reach a node that listens on `bound`: as given, `<ip|interface>[:port]`, or as its
/// option says. If neither does: where it listens if that is one address, else the source of the
/// default route, else loopback. The port is the one it listens on unless another was given.
///
/// # Errors
/// [`ConfigError::Address`]: it cannot be understood, or several would do;
/// [`ConfigError::Unreachable`]: it is nobody's.
pub fn advertise(
    config: &NodeConfig,
    given: &str,
    bound: SocketAddr,
) -> Result<SocketAddr, ConfigError> {
    let given = if given.is_empty() { config.advertise_addr.as_deref() } else { Some(given) };
    match given {
        Some(text) => match parse_addr("address to advertise", text, bound.port())? {
            addr if addr.ip().is_unspecified() || addr.port() == 0 => {
                Err(ConfigError::Unreachable(text.to_owned()))
            }
            addr => Ok(addr),
        },
        None if !bound.ip().is_unspecified() => Ok(bound),
        None => Ok(SocketAddr::new(default_source(&host_addresses())?, bound.port())),
    }
}

/// The source address of the default route; loopback where there is none.
fn default_source(host: &[InterfaceAddress]) -> Result<IpAddr, ConfigError> {
    let routes = std::fs::read_to_string("/proc/self/net/route").unwrap_or_default();
    address::check_routes(&routes, host)
        .map_err(|why| ConfigError::Address { option: "address to advertise", why })?;
    // Addresses of the documentation ranges: reachable only by a default route.
    let four = || source_towards(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into());
    let six = || {
        let target = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        source_towards(Ipv6Addr::UNSPECIFIED.into(), target.into())
    };
    Ok(four().or_else(six).unwrap_or(Ipv4Addr::LOCALHOST.into()))
}

/// The address from which packets to `target` would leave. Connecting a UDP socket sends nothing.
fn source_towards(any: IpAddr, target: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((target, 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

/// The addresses of this host's interfaces; none if the kernel does not tell.
fn host_addresses() -> Vec<InterfaceAddress> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let one = |entry: nix::ifaddrs::InterfaceAddress| {
        let address = entry.address?;
        let four = address.as_sockaddr_in().map(|addr| IpAddr::from(addr.ip()));
        let six = || address.as_sockaddr_in6().map(|addr| IpAddr::from(addr.ip()));
        Some(InterfaceAddress { interface: entry.interface_name, ip: four.or_else(six)? })
    };
    all.filter_map(one).collect()
}

/// What this host says of itself; `format` is the newest one of the state that it reads.
#[must_use]
pub fn describe(node_name: &str, format: u32) -> NodeDescription {
    let uname = rustix::system::uname();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    NodeDescription {
        hostname: node_name.to_owned(),
        architecture: uname.machine().to_string_lossy().into_owned(),
        os: "linux".into(),
        nano_cpus: cpus * 1_000_000_000,
        memory_bytes: memory_bytes(),
        engine_version: env!("CARGO_PKG_VERSION").into(),
        engine_labels: Default::default(),
        plugins: [("Log", "json-file"), ("Network", "host"), ("Network", "null")]
            .map(|(kind, name)| (kind.to_owned(), name.to_owned()))
            .into(),
        generic: Default::default(),
        format,
    }
}

/// The first line of `RUNTIME --version`; empty if the runtime does not answer.
pub async fn runtime_version(runtime: &str) -> String {
    let mut command = tokio::process::Command::new(runtime);
    let asked = command.arg("--version").stdin(std::process::Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(RUNTIME_ANSWER, asked.output()).await {
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stdout);
            text.lines().next().unwrap_or_default().to_owned()
        }
        _ => String::new(),
    }
}

fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The host's name.
#[must_use]
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word_of_a_small_file() {
        let read = |text: &str| read_token("t", text.as_bytes());
        assert_eq!(read(" SWMTKN-1-a-b\n").unwrap().reveal(), "SWMTKN-1-a-b");
        let long = "x".repeat(5000);
        for text in ["", "\n \n", "two words", "a\nb", long.as_str()] {
            let error = read(text).unwrap_err();
            assert!(matches!(&error, ConfigError::NoToken(path) if path == "t"), "{error:?}");
        }
        let binary = read_token("t", [0xff, 0xfe].as_slice()).unwrap_err();
        assert!(matches!(binary, ConfigError::TokenFile { .. }));
        let join = cli::Join {
            managers: vec!["h:1".to_owned()],
            token: TokenSource::File("/nonexistent/token".into()),
        };
        let error = JoinArgs::read(join).unwrap_err().to_string();
        assert_eq!(error, "cannot read the join token from /nonexistent/token");
    }

    fn config(listen: &str, advertise: Option<&str>) -> NodeConfig {
        NodeConfig {
            data_root: PathBuf::new(),
            run_root: PathBuf::new(),
            node_name: String::new(),
            listen_addr: listen.parse().unwrap(),
            advertise_addr: advertise.map(str::to_owned),
            runtime: String::new(),
            vault: String::new(),
            sockets: Vec::new(),
            autolock: false,
            availability: Availability::Active,
            init: false,
            join: None,
            build: Build::default(),
        }
    }

    #[test]
    fn what_a_client_asks_goes_before_the_nodes_options() {
        let told = config("0.0.0.0:99", Some("192.0.2.7"));
        let untold = config("0.0.0.0:99", None);
        let bound = |text: &str| text.parse::<SocketAddr>().unwrap();
        let everywhere = bound("0.0.0.0:99");
        let at = |config: &NodeConfig, given: &str, bound: SocketAddr| {
            advertise(config, given, bound).unwrap().to_string()
        };
        assert_eq!(at(&told, "", everywhere), "192.0.2.7:99");
        assert_eq!(at(&told, "192.0.2.8", everywhere), "192.0.2.8:99");
        assert_eq!(at(&told, "192.0.2.8:6", everywhere), "192.0.2.8:6");
        assert_eq!(at(&told, "lo:6", everywhere), "127.0.0.1:6");
        assert_eq!(at(&untold, "", bound("127.0.0.1:7")), "127.0.0.1:7");
        for given in ["0.0.0.0", "192.0.2.8:0", "eth-nosuch:1"] {
            let error = advertise(&told, given, everywhere).unwrap_err().to_string();
            assert!(error.contains(given), "{error}");
        }
        let error = parse_addr("--listen-addr", "eth-nosuch", 1).unwrap_err().to_string();
        assert!(error.starts_with("invalid --listen-addr: \"eth-nosuch\" is neither"), "{error}");
    }
}
