//! Bounds of the log, its snapshots and its queues.

use std::time::Duration;

/// Bytes a segment of the log is preallocated with. Unit tests fill many.
pub const SEGMENT_BYTES: u64 = if cfg!(test) { 16 << 10 } else { 8 << 20 };
/// Bytes of a segment on a disk that has no room for a whole one: enough for a node to start.
pub const SEGMENT_MIN_BYTES: u64 = if cfg!(test) { 4 << 10 } else { 64 << 10 };
/// Bytes of records in one write, unless a single record is larger.
pub const BATCH_BYTES: usize = 4 << 20;
/// Bytes of one encoded proposal, at most.
pub const PROPOSAL_BYTES: usize = 8 << 20;
/// Bytes of proposals whose outcome is not known yet.
pub const PENDING_BYTES: usize = 16 << 20;
/// Bytes of log entries kept in memory; older ones are read from disk.
pub const CACHE_BYTES: usize = 4 << 20;
/// Operations queued for the log thread.
pub const LOG_QUEUE: usize = 4_096;
/// Part of the last sync's time that the next one may wait for company.
pub const LINGER_SHARE: u32 = 8;
/// Shortest wait for company worth its wake-up.
pub const LINGER_MIN: Duration = Duration::from_micros(100);
/// Longest wait for company.
pub const LINGER_MAX: Duration = Duration::from_millis(1);
/// Plaintext bytes in one chunk of a snapshot. Unit tests write many.
pub const CHUNK_BYTES: usize = if cfg!(test) { 32 << 10 } else { 1 << 20 };
/// Bytes of one snapshot record, at most.
pub const SNAPSHOT_RECORD_BYTES: usize = 64 << 20;
/// Bytes of records in one part of a snapshot on its way to a peer, and one record more.
pub const SNAPSHOT_PART_BYTES: usize = 1 << 20;
/// How long a peer may take to answer one part; the last one it writes to disk.
pub const SNAPSHOT_PART_WAIT: Duration = Duration::from_secs(60);
/// Entries in one answer to a reader of the log.
pub const READ_ENTRIES: u64 = 4_096;
/// Applied entries since the last snapshot that ask for the next one.
pub const SNAPSHOT_ENTRIES: u64 = 5_000;
/// Bytes of log that ask for a snapshot.
pub const SNAPSHOT_LOG_BYTES: u64 = 64 << 20;
/// Segments of log that ask for a snapshot; every start opens one.
pub const SNAPSHOT_SEGMENTS: usize = 32;
/// Bytes of log left behind a purge that are worth writing what survives anew: they are read at
/// every start.
pub const SCRUB_LOG_BYTES: u64 = 4 << 20;
/// Entries from one digest of the state to the next. Unit tests write few.
pub const DIGEST_ENTRIES: u64 = if cfg!(test) { 64 } else { 4_096 };
/// Digests remembered, made here and heard from leaders: one of the two may be late.
pub const DIGESTS: usize = 16;
/// Entries kept behind a snapshot for slow followers.
pub const KEPT_ENTRIES: u64 = 1_000;
/// Bytes left on the disk below which proposals are refused, besides those of the snapshot: the
/// next one is larger by the log at most. Two segments come on top.
pub const RESERVED_BYTES: u64 = SNAPSHOT_LOG_BYTES + 2 * SEGMENT_BYTES;
/// How often the space left is looked up, at most.
pub const SPACE_CHECK: Duration = Duration::from_millis(100);
/// Batches of changes a subscriber may lag behind before it has to rescan.
pub const CHANGE_QUEUE: usize = 1_024;
/// Entries applied under one hold of the state's lock.
pub const APPLY_BATCH: usize = 256;
/// Leader's heartbeat.
pub const HEARTBEAT: Duration = Duration::from_millis(50);
/// Shortest silence after which a follower campaigns.
pub const ELECTION_MIN: Duration = Duration::from_millis(200);
/// Longest silence after which a follower campaigns.
pub const ELECTION_MAX: Duration = Duration::from_millis(400);
/// How long a proposal waits for room and for its outcome.
pub const PROPOSE_WAIT: Duration = Duration::from_secs(5);
/// How long a read waits for its index to be confirmed and applied.
pub const READ_WAIT: Duration = Duration::from_secs(5);
/// How long `start` and `initialize` wait for a sole voter to lead.
pub const ELECT_WAIT: Duration = Duration::from_secs(10);
/// How long a snapshot or a purge may take before it is tried anew.
pub const SNAPSHOT_WAIT: Duration = Duration::from_secs(60);
/// How long before its deadline a deletion is purged, so that a failed try can be repeated.
pub const PURGE_MARGIN: Duration = Duration::from_secs(120);
/// How often the keeper looks at the log when nothing is applied.
pub const KEEPER_PERIOD: Duration = Duration::from_secs(5);
/// How long `shutdown` waits for openraft and the log thread.
pub const SHUTDOWN_WAIT: Duration = Duration::from_secs(10);
/// How long a change of the members may take until it is committed.
pub const MEMBER_WAIT: Duration = Duration::from_secs(10);
/// Entries that a learner may lack when it becomes a voter.
pub const PROMOTE_LAG: u64 = 100;
/// How long a leader waits for one voter to take over before it asks the next.
pub const HAND_OVER_TRY: Duration = Duration::from_millis(700);
/// Voters that a leader asks to take over, one after another.
pub const HAND_OVER_TRIES: usize = 3;
/// How long after it last heard of a quorum a leader stops calling itself one.
pub const QUORUM_LAPSE: Duration = Duration::from_secs(1);
/// How often a leader looks whether it still hears of a quorum.
pub const QUORUM_CHECK: Duration = Duration::from_millis(200);
/// How long a peer may take to write entries and to answer, besides a second for each MiB.
pub const APPEND_WAIT: Duration = Duration::from_secs(1);
/// Bytes of one request from a peer, at most.
pub const REQUEST_BYTES: usize = BATCH_BYTES + PROPOSAL_BYTES + (1 << 20);
/// Bytes of one part of a snapshot from a peer: it ends with a record that may be large.
pub const PART_BYTES: usize = SNAPSHOT_PART_BYTES + SNAPSHOT_RECORD_BYTES + (1 << 20);
/// Records in one part of a snapshot from a peer.
pub const PART_RECORDS: usize = 1 << 18;
/// Bytes of one snapshot from a peer. Unit tests send many.
pub const SNAPSHOT_BYTES: u64 = if cfg!(test) { 64 << 20 } else { 4 << 30 };
/// Managers, voters and learners together, that a membership may name.
pub const MEMBERS: usize = 256;
/// Bytes of a manager's address.
pub const ADDR_BYTES: usize = 256;
