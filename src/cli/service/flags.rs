//! Flags of `service create` and `service update`, and the fields of the spec that the simple
//! ones set.

use serde_json::{Map, Value, json};
use skep_core::isolation::{self, OnIsolation};

use super::super::error::CliError;
use super::super::flags::{Flag, Matches};
use super::super::json::object_at;
use super::super::values::{
    bytes, check_bytes, check_cpus, check_duration, check_env, check_float, check_int, check_label,
    check_uint, duration, nano_cpus, shell_words,
};
use super::grants::{check_config, check_secret};
use super::mounts::check_mount;

/// How the value of a flag becomes a field.
#[derive(Debug, Clone, Copy)]
enum As {
    Text,
    Switch,
    Whole,
    Float,
    Nanos,
    Bytes,
    Cpus,
    Words,
}

/// A flag that sets one field, on create and on update alike.
#[derive(Debug, Clone, Copy)]
struct Setting {
    flag: &'static str,
    object: &'static [&'static str],
    field: &'static str,
    kind: As,
}

const fn setting(
    flag: &'static str,
    object: &'static [&'static str],
    field: &'static str,
    kind: As,
) -> Setting {
    Setting { flag, object, field, kind }
}

const CONTAINER: &[&str] = &["TaskTemplate", "ContainerSpec"];
const LIMITS: &[&str] = &["TaskTemplate", "Resources", "Limits"];
const RESERVATIONS: &[&str] = &["TaskTemplate", "Resources", "Reservations"];
const RESTART: &[&str] = &["TaskTemplate", "RestartPolicy"];
const PLACEMENT: &[&str] = &["TaskTemplate", "Placement"];
const UPDATE: &[&str] = &["UpdateConfig"];
const ROLLBACK: &[&str] = &["RollbackConfig"];

const SETTINGS: &[Setting] = &[
    setting("entrypoint", CONTAINER, "Command", As::Words),
    setting("args", CONTAINER, "Args", As::Words),
    setting("hostname", CONTAINER, "Hostname", As::Text),
    setting("workdir", CONTAINER, "Dir", As::Text),
    setting("user", CONTAINER, "User", As::Text),
    setting("init", CONTAINER, "Init", As::Switch),
    setting("stop-signal", CONTAINER, "StopSignal", As::Text),
    setting("tty", CONTAINER, "TTY", As::Switch),
    setting("read-only", CONTAINER, "ReadOnly", As::Switch),
    setting("stop-grace-period", CONTAINER, "StopGracePeriod", As::Nanos),
    setting("limit-cpu", LIMITS, "NanoCPUs", As::Cpus),
    setting("limit-memory", LIMITS, "MemoryBytes", As::Bytes),
    setting("limit-pids", LIMITS, "Pids", As::Whole),
    setting("reserve-cpu", RESERVATIONS, "NanoCPUs", As::Cpus),
    setting("reserve-memory", RESERVATIONS, "MemoryBytes", As::Bytes),
    setting("restart-condition", RESTART, "Condition", As::Text),
    setting("restart-delay", RESTART, "Delay", As::Nanos),
    setting("restart-max-attempts", RESTART, "MaxAttempts", As::Whole),
    setting("restart-window", RESTART, "Window", As::Nanos),
    setting("replicas-max-per-node", PLACEMENT, "MaxReplicas", As::Whole),
    setting("update-parallelism", UPDATE, "Parallelism", As::Whole),
    setting("update-delay", UPDATE, "Delay", As::Nanos),
    setting("update-failure-action", UPDATE, "FailureAction", As::Text),
    setting("update-monitor", UPDATE, "Monitor", As::Nanos),
    setting("update-max-failure-ratio", UPDATE, "MaxFailureRatio", As::Float),
    setting("update-order", UPDATE, "Order", As::Text),
    setting("rollback-parallelism", ROLLBACK, "Parallelism", As::Whole),
    setting("rollback-delay", ROLLBACK, "Delay", As::Nanos),
    setting("rollback-failure-action", ROLLBACK, "FailureAction", As::Text),
    setting("rollback-monitor", ROLLBACK, "Monitor", As::Nanos),
    setting("rollback-max-failure-ratio", ROLLBACK, "MaxFailureRatio", As::Float),
    setting("rollback-order", ROLLBACK, "Order", As::Text),
    setting("endpoint-mode", &["EndpointSpec"], "Mode", As::Text),
];

/// Puts into `spec` what the simple flags say.
pub(super) fn apply_settings(matches: &Matches, spec: &mut Value) -> Result<(), CliError> {
    for setting in SETTINGS {
        let Some(text) = matches.get(setting.flag) else { continue };
        let value = field_value(setting, matches, text)
            .map_err(|why| CliError::plain(format!("--{}: {why}", setting.flag)))?;
        let Some(object) = object_at(spec, setting.object) else { continue };
        if object.is_empty() {
            *object = defaults(setting.object);
        }
        object.insert(setting.field.to_owned(), value);
    }
    Ok(())
}

fn field_value(setting: &Setting, matches: &Matches, text: &str) -> Result<Value, String> {
    Ok(match setting.kind {
        As::Text => Value::from(text),
        As::Switch => Value::from(matches.on(setting.flag)),
        As::Whole => Value::from(text.parse::<i64>().map_err(|why| why.to_string())?),
        As::Float => Value::from(text.parse::<f64>().map_err(|why| why.to_string())?),
        As::Nanos => Value::from(duration(text)?),
        As::Bytes => Value::from(bytes(text)?),
        As::Cpus => Value::from(nano_cpus(text)?),
        As::Words => Value::from(shell_words(text)?),
    })
}

/// What an object holds beside the field that calls for it.
fn defaults(object: &[&str]) -> Map<String, Value> {
    let value = match object {
        RESTART => json!({"Condition": "any", "Delay": 5_000_000_000_i64, "MaxAttempts": 0}),
        UPDATE | ROLLBACK => json!({
            "Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000_i64,
            "MaxFailureRatio": 0, "Order": "stop-first",
        }),
        _ => Value::Null,
    };
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// What becomes of the tasks on a node that has lost its managers.
const ON_ISOLATION: Flag = Flag::with(
    "on-isolation",
    "string",
    "On a node cut off from the managers: keep tasks, or stop=DURATION (default \"keep\")",
)
.check(check_on_isolation);

fn check_on_isolation(text: &str) -> Result<(), String> {
    OnIsolation::parse(text).map(|_| ()).map_err(|error| error.to_string())
}

/// The container's label for `--on-isolation`, as `KEY=VALUE`.
pub(super) fn on_isolation(matches: &Matches) -> Option<String> {
    matches.get("on-isolation").map(|text| format!("{}={text}", isolation::LABEL))
}

/// Flags of `service create`.
pub(super) const CREATE: &[Flag] = &[
    Flag::with("cap-add", "list", "Add Linux capabilities"),
    Flag::with("cap-drop", "list", "Drop Linux capabilities"),
    Flag::with("config", "config", "Specify configurations to expose to the service")
        .check(check_config),
    Flag::with("constraint", "list", "Placement constraints"),
    Flag::with("container-label", "list", "Container labels").check(check_label),
    DETACH,
    Flag::with("endpoint-mode", "string", "Endpoint mode (vip or dnsrr) (default \"vip\")"),
    ENTRYPOINT,
    Flag::with("env", "list", "Set environment variables").short('e').check(check_env),
    Flag::with("env-file", "list", "Read in a file of environment variables"),
    Flag::with("group", "list", "Set one or more supplementary user groups for the container"),
    HOSTNAME,
    INIT,
    Flag::with("label", "list", "Service labels").short('l').check(check_label),
    LIMIT_CPU,
    LIMIT_MEMORY,
    LIMIT_PIDS,
    LOG_DRIVER,
    LOG_OPT,
    Flag::with(
        "mode",
        "string",
        "Service mode (\"replicated\", \"global\") (default \"replicated\")",
    ),
    Flag::with("mount", "mount", "Attach a filesystem mount to the service").check(check_mount),
    Flag::with("name", "string", "Service name"),
    Flag::with("network", "network", "Network attachments"),
    NO_RESOLVE_IMAGE,
    ON_ISOLATION,
    QUIET,
    READ_ONLY,
    REPLICAS,
    MAX_PER_NODE,
    RESERVE_CPU,
    RESERVE_MEMORY,
    restart_condition(
        "Restart when condition is met (\"none\", \"on-failure\", \"any\") (default \"any\")",
    ),
    restart_delay("Delay between restart attempts (ns|us|ms|s|m|h) (default 5s)"),
    RESTART_MAX_ATTEMPTS,
    RESTART_WINDOW,
    span("rollback-delay", "Delay between task rollbacks (ns|us|ms|s|m|h) (default 0s)"),
    word(
        "rollback-failure-action",
        "Action on rollback failure (\"pause\", \"continue\") (default \"pause\")",
    ),
    ratio("rollback-max-failure-ratio", "Failure rate to tolerate during a rollback (default 0)"),
    span(
        "rollback-monitor",
        "Duration after each task rollback to monitor for failure (ns|us|ms|s|m|h) (default 5s)",
    ),
    word(
        "rollback-order",
        "Rollback order (\"start-first\", \"stop-first\") (default \"stop-first\")",
    ),
    count(
        "rollback-parallelism",
        "Maximum number of tasks rolled back simultaneously (0 to roll back all at once) (default 1)",
    ),
    Flag::with("secret", "secret", "Specify secrets to expose to the service").check(check_secret),
    span(
        "stop-grace-period",
        "Time to wait before force killing a container (ns|us|ms|s|m|h) (default 10s)",
    ),
    STOP_SIGNAL,
    Flag::with("sysctl", "list", "Sysctl options"),
    TTY,
    span("update-delay", "Delay between updates (ns|us|ms|s|m|h) (default 0s)"),
    word(
        "update-failure-action",
        "Action on update failure (\"pause\", \"continue\", \"rollback\") (default \"pause\")",
    ),
    ratio("update-max-failure-ratio", "Failure rate to tolerate during an update (default 0)"),
    span(
        "update-monitor",
        "Duration after each task update to monitor for failure (ns|us|ms|s|m|h) (default 5s)",
    ),
    word("update-order", "Update order (\"start-first\", \"stop-first\") (default \"stop-first\")"),
    count(
        "update-parallelism",
        "Maximum number of tasks updated simultaneously (0 to update all at once) (default 1)",
    ),
    USER,
    WORKDIR,
];

/// Flags of `service update`.
pub(super) const UPDATE_FLAGS: &[Flag] = &[
    Flag::with("args", "command", "Service command args"),
    Flag::with("config-add", "config", "Add or update a config file on a service")
        .check(check_config),
    Flag::with("config-rm", "list", "Remove a configuration file"),
    Flag::with("constraint-add", "list", "Add or update a placement constraint"),
    Flag::with("constraint-rm", "list", "Remove a constraint"),
    Flag::with("container-label-add", "list", "Add or update a container label").check(check_label),
    Flag::with("container-label-rm", "list", "Remove a container label by its key"),
    DETACH,
    Flag::with("endpoint-mode", "string", "Endpoint mode (vip or dnsrr)"),
    ENTRYPOINT,
    Flag::with("env-add", "list", "Add or update an environment variable").check(check_env),
    Flag::with("env-rm", "list", "Remove an environment variable"),
    Flag::switch("force", "Force update even if no changes require it"),
    Flag::with("group-add", "list", "Add an additional supplementary user group to the container"),
    Flag::with(
        "group-rm",
        "list",
        "Remove a previously added supplementary user group from the container",
    ),
    HOSTNAME,
    Flag::with("image", "string", "Service image tag"),
    INIT,
    Flag::with("label-add", "list", "Add or update a service label").check(check_label),
    Flag::with("label-rm", "list", "Remove a label by its key"),
    LIMIT_CPU,
    LIMIT_MEMORY,
    LIMIT_PIDS,
    LOG_DRIVER,
    LOG_OPT,
    Flag::with("mount-add", "mount", "Add or update a mount on a service").check(check_mount),
    Flag::with("mount-rm", "list", "Remove a mount by its target path"),
    Flag::with("network-add", "network", "Add a network"),
    Flag::with("network-rm", "list", "Remove a network"),
    NO_RESOLVE_IMAGE,
    ON_ISOLATION,
    QUIET,
    READ_ONLY,
    REPLICAS,
    MAX_PER_NODE,
    RESERVE_CPU,
    RESERVE_MEMORY,
    restart_condition("Restart when condition is met (\"none\", \"on-failure\", \"any\")"),
    restart_delay("Delay between restart attempts (ns|us|ms|s|m|h)"),
    RESTART_MAX_ATTEMPTS,
    RESTART_WINDOW,
    Flag::switch("rollback", "Rollback to previous specification"),
    span("rollback-delay", "Delay between task rollbacks (ns|us|ms|s|m|h)"),
    word("rollback-failure-action", "Action on rollback failure (\"pause\", \"continue\")"),
    ratio("rollback-max-failure-ratio", "Failure rate to tolerate during a rollback"),
    span(
        "rollback-monitor",
        "Duration after each task rollback to monitor for failure (ns|us|ms|s|m|h)",
    ),
    word("rollback-order", "Rollback order (\"start-first\", \"stop-first\")"),
    count(
        "rollback-parallelism",
        "Maximum number of tasks rolled back simultaneously (0 to roll back all at once)",
    ),
    Flag::with("secret-add", "secret", "Add or update a secret on a service").check(check_secret),
    Flag::with("secret-rm", "list", "Remove a secret"),
    span("stop-grace-period", "Time to wait before force killing a container (ns|us|ms|s|m|h)"),
    STOP_SIGNAL,
    Flag::with("sysctl-add", "list", "Add or update a Sysctl option"),
    Flag::with("sysctl-rm", "list", "Remove a Sysctl option"),
    TTY,
    span("update-delay", "Delay between updates (ns|us|ms|s|m|h)"),
    word(
        "update-failure-action",
        "Action on update failure (\"pause\", \"continue\", \"rollback\")",
    ),
    ratio("update-max-failure-ratio", "Failure rate to tolerate during an update"),
    span(
        "update-monitor",
        "Duration after each task update to monitor for failure (ns|us|ms|s|m|h)",
    ),
    word("update-order", "Update order (\"start-first\", \"stop-first\")"),
    count(
        "update-parallelism",
        "Maximum number of tasks updated simultaneously (0 to update all at once)",
    ),
    USER,
    WORKDIR,
];

/// `--detach` of everything that waits for a service.
pub(super) const DETACH: Flag =
    Flag::switch("detach", "Exit immediately instead of waiting for the service to converge")
        .short('d');
/// `--quiet` of the same.
pub(super) const QUIET: Flag = Flag::switch("quiet", "Suppress progress output").short('q');

const ENTRYPOINT: Flag =
    Flag::with("entrypoint", "command", "Overwrite the default ENTRYPOINT of the image")
        .check(|text| shell_words(text).map(|_| ()));
const HOSTNAME: Flag = Flag::with("hostname", "string", "Container hostname");
const INIT: Flag = Flag::switch(
    "init",
    "Use an init inside each service container to forward signals and reap processes",
);
const LIMIT_CPU: Flag = Flag::with("limit-cpu", "decimal", "Limit CPUs").check(check_cpus);
const LIMIT_MEMORY: Flag = Flag::with("limit-memory", "bytes", "Limit Memory").check(check_bytes);
const LIMIT_PIDS: Flag =
    Flag::with("limit-pids", "int", "Limit maximum number of processes (default 0 = unlimited)")
        .check(check_int);
const LOG_DRIVER: Flag = Flag::with("log-driver", "string", "Logging driver for service");
const LOG_OPT: Flag = Flag::with("log-opt", "list", "Logging driver options");
const NO_RESOLVE_IMAGE: Flag = Flag::switch(
    "no-resolve-image",
    "Do not query the registry to resolve image digest and supported platforms",
);
const READ_ONLY: Flag =
    Flag::switch("read-only", "Mount the container's root filesystem as read only");
const REPLICAS: Flag = count("replicas", "Number of tasks");
const MAX_PER_NODE: Flag =
    count("replicas-max-per-node", "Maximum number of tasks per node (default 0 = unlimited)");
const RESERVE_CPU: Flag = Flag::with("reserve-cpu", "decimal", "Reserve CPUs").check(check_cpus);
const RESERVE_MEMORY: Flag =
    Flag::with("reserve-memory", "bytes", "Reserve Memory").check(check_bytes);
const RESTART_MAX_ATTEMPTS: Flag =
    count("restart-max-attempts", "Maximum number of restarts before giving up");
const RESTART_WINDOW: Flag =
    span("restart-window", "Window used to evaluate the restart policy (ns|us|ms|s|m|h)");
const STOP_SIGNAL: Flag = Flag::with("stop-signal", "string", "Signal to stop the container");
const TTY: Flag = Flag::switch("tty", "Allocate a pseudo-TTY").short('t');
const USER: Flag =
    Flag::with("user", "string", "Username or UID (format: <name|uid>[:<group|gid>])").short('u');
const WORKDIR: Flag =
    Flag::with("workdir", "string", "Working directory inside the container").short('w');

const fn restart_condition(usage: &'static str) -> Flag {
    word("restart-condition", usage)
}

const fn restart_delay(usage: &'static str) -> Flag {
    span("restart-delay", usage)
}

const fn span(name: &'static str, usage: &'static str) -> Flag {
    Flag::with(name, "duration", usage).check(check_duration)
}

const fn word(name: &'static str, usage: &'static str) -> Flag {
    Flag::with(name, "string", usage)
}

const fn ratio(name: &'static str, usage: &'static str) -> Flag {
    Flag::with(name, "float", usage).check(check_float)
}

const fn count(name: &'static str, usage: &'static str) -> Flag {
    Flag::with(name, "uint", usage).check(check_uint)
}
