//! The tree of commands.

use super::flags::{Action, Arity, Command, Flag};
use super::node_args::{DAEMON_FLAGS, UP_FLAGS};
use super::{completion, container, exec, image, inspect, logs, material, network, node, service};
use super::{swarm, system};

/// What `skep` is.
pub(super) const ABOUT: &str = "One binary that turns machines into a swarm running containers";

/// Flags before the command.
pub(super) const GLOBAL_FLAGS: &[Flag] = &[
    Flag::with("host", "list", "Daemon socket to connect to (default: SKEP_HOST, DOCKER_HOST, then \"unix:///run/skep/skep.sock\")")
        .short('H'),
    Flag::switch("version", "Print version information and quit").short('v'),
];

/// Every command, in the order of help.
pub(super) const ROOT: &[Command] = &[
    exec::EXEC.section("Common Commands").aliases(&[], &["container exec", "exec"]),
    container::PS,
    image::IMAGES,
    system::VERSION.section("Common Commands"),
    system::INFO.section("Common Commands"),
    container::CONTAINER,
    image::IMAGE,
    network::NETWORK,
    material::CONFIG,
    node::NODE,
    material::SECRET,
    service::SERVICE,
    swarm::SWARM,
    image::IMPORT.aliases(&[], &["image import", "import"]),
    inspect::INSPECT,
    image::LOAD.aliases(&[], image::LOAD_ALSO),
    logs::LOGS.aliases(&[], &["container logs", "logs"]),
    image::RMI,
    image::SAVE.aliases(&[], image::SAVE_ALSO),
    image::TAG.aliases(&[], &["image tag", "tag"]),
    UP,
    DAEMON,
    completion::COMPLETION,
    completion::MAN,
    SHIM,
];

const UP: Command = Command::new(
    "up",
    "[OPTIONS]",
    "Start a node; a fresh one makes a swarm of its own, or joins one with --join",
    Action::Up,
)
.flags(UP_FLAGS)
.takes(Arity::None)
.section("Beyond Docker");

const DAEMON: Command = Command::new(
    "daemon",
    "[OPTIONS]",
    "Start a node; a fresh one waits for 'swarm init' or 'swarm join'",
    Action::Daemon,
)
.flags(DAEMON_FLAGS)
.takes(Arity::None)
.section("Beyond Docker");

const SHIM: Command =
    Command::new("shim", "--task DIR", "Supervise a task (started by the daemon)", Action::Shim)
        .flags(&[Flag::with("task", "dir", "Directory of the task")])
        .takes(Arity::None)
        .section("");
