//! The daemon's life: protect the process, start the node, serve until told to stop.

use std::process::ExitCode;
use std::sync::Arc;

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{Resource, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;

use crate::api;
use crate::cli::{LogFormat, NodeArgs};
use crate::config::{ConfigError, NodeConfig};
use crate::gate::Gate;
use crate::node::Node;

/// Threads that serve the network and the API.
const WORKERS: usize = 2;
/// Parts of the heap for all threads. Each keeps what it once needed, because locked memory is
/// not given back: one for each of many threads would grow to the sum of their peaks.
const ARENAS: i32 = 2;
/// Blocks from this size on are mapped alone, and given back when they are freed. Left to itself
/// the allocator raises this to the largest block ever freed, and takes the next from a heap.
const MAPPED_BYTES: i32 = 128 << 10;

/// Runs a node until it is told to stop.
#[must_use]
pub fn run(args: NodeArgs) -> ExitCode {
    log_to_stderr(&args);
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(args: &NodeArgs) {
    // openraft tells at info what is of use only to those who debug it.
    let quiet = format!("openraft=warn,{}", args.log_level);
    let filter = EnvFilter::try_new(quiet).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    match args.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn start(args: NodeArgs) -> anyhow::Result<()> {
    let config = NodeConfig::new(args)?;
    protect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    runtime.block_on(serve(config))
}

/// Keeps this process's memory out of swap and core files. Where the kernel refuses, the node
/// still runs, since no plaintext rests here; the log says so.
fn protect() {
    // SAFETY: sets parameters of the allocator, which has one thread to serve so far.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS);
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
    }
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        tracing::warn!(%error, "core files cannot be turned off");
    }
    let on_fault = MlockAllFlags::from_bits_retain(nix::libc::MCL_ONFAULT);
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault;
    if let Err(error) = mlockall(flags) {
        tracing::warn!(%error, "memory cannot be kept out of swap");
    }
}

async fn serve(config: NodeConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let sockets = config.sockets.clone();
    let node = Node::start(config).await?;
    let (stop, stopped) = watch::channel(false);
    let mut servers = JoinSet::new();
    for path in &sockets {
        let listener = match api::bind(path) {
            Ok(listener) => listener,
            Err(error) => {
                node.stop().await;
                return Err(error.into());
            }
        };
        let gate: Arc<dyn Gate> = node.clone();
        let mut stopped = stopped.clone();
        servers.spawn(async move {
            let stopped = async {
                // A sender that is gone means the same.
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            api::serve(listener, gate, stopped).await;
        });
        tracing::info!(socket = %path.display(), "ready");
    }
    notify("READY=1");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; tasks go on");
    notify("STOPPING=1");
    stop.send_replace(true);
    for path in &sockets {
        crate::files::remove_file(path)?;
    }
    servers.join_all().await;
    node.stop().await;
    Ok(())
}

/// Tells the service manager, if there is one.
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = std::os::unix::net::UnixDatagram::unbound()
        .and_then(|socket| socket.send_to(state.as_bytes(), path));
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Options that only make sense together are checked here, before anything is touched.
impl NodeConfig {
    fn new(args: NodeArgs) -> Result<Self, ConfigError> {
        Self::from_args(args)
    }
}
