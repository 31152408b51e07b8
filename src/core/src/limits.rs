//! Every bound of the core in one place. Bounds of the outer crates stand in their own
//! `limits` modules.

use crate::time::Span;

/// Bytes in a secret's payload: at least 1, fewer than this.
pub const SECRET_BYTES_END: usize = 512_000;
/// Bytes in a config's payload, at most.
pub const CONFIG_BYTES: usize = 1_024_000;
/// Versions kept of one secret or config.
pub const MATERIAL_VERSIONS: usize = 64;
/// Versions kept of one secret or config beside those in use, unless it says otherwise.
pub const KEEP_VERSIONS: u32 = 5;
/// Secrets and configs in a set that is updated, or sealed anew, as one.
pub const SET: usize = 64;
/// Bytes of sealed payload in such a set: it has to fit into one entry of the log.
pub const SET_BYTES: u64 = 7 << 20;
/// Secrets and configs that a command to prune names, and versions that it drops at once.
pub const PRUNE: usize = 1_024;
/// Revoked grants of one secret or config.
pub const REVOCATIONS: usize = 65_536;
/// Tasks whose audit is anchored in the state; of older ones the managers' own stores know.
pub const AUDIT_ANCHORS: usize = if cfg!(test) { 100 } else { 65_536 };
/// Anchors in one command.
pub const ANCHORS_AT_ONCE: usize = 4_096;
/// Secrets and configs in a swarm.
pub const MATERIALS: usize = 10_000;
/// Bytes of sealed payload in a swarm.
pub const PAYLOAD_BYTES: u64 = 256 << 20;
/// Characters in the name of a secret, config or service.
pub const NAME_CHARS: usize = 64;
/// Labels on one object, and bytes in all of them.
pub const LABELS: usize = 1_024;
/// Bytes in all labels of one object.
pub const LABEL_BYTES: usize = 256 << 10;
/// Nodes in a swarm.
pub const NODES: usize = 10_000;
/// Managers in a swarm.
pub const MANAGERS: usize = 100;
/// Raft ids a swarm gives out in all its life: none is given twice, so all are remembered.
pub const RAFT_IDS: usize = 65_536;
/// Bytes in the DER of a node's public key.
pub const PUBLIC_KEY_BYTES: usize = 512;
/// Bytes in an address with port.
pub const ADDRESS_BYTES: usize = 300;
/// Bytes in all that a node says of itself.
pub const DESCRIPTION_BYTES: usize = 256 << 10;
/// Keys in the ring. One more is refused until payloads that need the oldest are gone; a swarm
/// that is forced is not held up.
pub const RING_KEYS: usize = 256;
/// Bytes of a ring key sealed to one manager.
pub const SLOT_BYTES: usize = 256;
/// Bytes of one thing that the ring seals beside payloads.
pub const TRUST_SECRET_BYTES: usize = 4 << 10;
/// Bytes in a root certificate, in PEM.
pub const ROOT_BYTES: usize = 16 << 10;
/// Join secrets that admit nobody any more and are told apart from those that never did.
pub const FORMER_SECRETS: usize = 64;
/// Managers kept in mind that the swarm went on without.
pub const CUT_OFF: usize = 256;
/// Shortest life of a node's certificate: Docker's.
pub const CERT_EXPIRY_MIN: Span = Span::from_secs(3_600);
/// Nodes that a message names.
pub const NODES_NAMED: usize = 10;
/// Entries a learner may lack of the log and still become a voter.
pub const LEARNER_LAG: u64 = 500;
/// Tasks in a swarm, history included. A slot that is new is not filled beyond; tests need fewer
/// to get there.
pub const TASKS: usize = if cfg!(test) { 16_000 } else { 1_000_000 };
/// Tasks there may be beyond that to replace others: a full swarm still heals.
pub const TASKS_SPARE: usize = TASKS / 10;
/// When a slot that found no room is looked at again.
pub const ROOM_RETRY: Span = Span::from_secs(5);
/// Placement preferences of one service.
pub const PREFERENCES: usize = 16;
/// Replicas one service may ask for.
pub const REPLICAS: u64 = 100_000;
/// Services in a swarm.
pub const SERVICES: usize = 100_000;
/// Secrets and configs granted to one task.
pub const GRANTS: usize = 64;
/// Bytes of payload granted to one task.
pub const GRANTED_BYTES: u64 = 16 << 20;
/// Ended tasks kept per slot unless the swarm says otherwise.
pub const HISTORY_PER_SLOT: u64 = 5;
/// First outcomes remembered for repeated requests, however old.
pub const OUTCOMES: usize = 4_096;
/// First outcomes remembered at most, while they are young.
pub const OUTCOMES_MAX: usize = 65_536;
/// A first outcome beyond `OUTCOMES` is remembered for this long. A retry comes within seconds.
pub const OUTCOME_AGE: Span = Span::from_secs(60);
/// Commands in one proposal of the control loop.
pub const CONTROL_BATCH: usize = 512;
/// Bytes of tasks made in one such proposal, give or take the last one: a service's template may
/// have megabytes.
pub const CONTROL_BATCH_BYTES: usize = 1 << 20;
/// How long a deleted payload may stay in a manager's log and snapshots.
pub const PURGE_WITHIN: Span = Span::from_secs(600);
/// Delay before a task is restarted unless its service says otherwise.
pub const RESTART_DELAY: Span = Span::from_secs(5);
/// Time a task gets between its stop signal and SIGKILL unless its service says otherwise.
pub const STOP_GRACE: Span = Span::from_secs(10);
/// Time a new task is watched before an update counts it as good, unless its service says otherwise.
pub const UPDATE_MONITOR: Span = Span::from_secs(5);
/// A node that has not been heard of for this long is down.
pub const NODE_DOWN_AFTER: Span = Span::from_secs(3);
/// When nobody expects a node that is down any more: its tasks are orphaned.
pub const NODE_LOST_AFTER: Span = Span::from_secs(24 * 3600);
/// How long a new task waits for the one it replaces to stop, beyond that one's stop grace.
pub const OLD_TASK_WAIT: Span = Span::from_secs(60);
/// A manager that has not been heard of for this long counts as gone where it is asked why the nodes
/// that have their sessions there are silent, too: they are given time to find another.
pub const MANAGER_SILENT_AFTER: Span = Span::from_millis(1_500);
/// How long a new leader waits for a node that was there: all of them have to reconnect at once.
pub const RECONNECT_WITHIN: Span = Span::from_secs(10);
/// Shortest isolation after which a task may be stopped: a session has to have time to move.
pub const ISOLATION_MIN: Span = Span::from_secs(5);
/// Longest isolation after which a task may be stopped.
pub const ISOLATION_MAX: Span = Span::from_secs(30 * 24 * 3600);
