//! Bounds of the node, beside those of `skep_core::limits`.

use std::time::Duration;

/// Bytes in a JSON request body.
pub const JSON_BODY_BYTES: usize = 4 << 20;
/// Connections to the local socket at once.
pub const API_CONNECTIONS: usize = 256;
/// How many of them one client process may hold: the rest is for others.
pub const API_CONNECTIONS_PER_PROCESS: usize = 192;
/// Clients that are being told at once that there is no room; others are closed without a word.
pub const API_TURNED_AWAY: usize = 128;
/// Exec records kept on a node.
pub const EXECS: usize = 256;
/// How long an ended exec can still be inspected.
pub const EXEC_KEPT: Duration = Duration::from_secs(300);
/// Bytes in one message between daemon and shim.
pub const SHIM_MESSAGE_BYTES: usize = 20 << 20;
/// How long a spawned shim may take until it listens.
pub const SHIM_START: Duration = Duration::from_secs(10);
/// How long a shim may stay silent before it is killed.
pub const SHIM_SILENCE: Duration = Duration::from_secs(30);
/// How long a shim may take to clear up after it has told the end of its task.
pub const SHIM_END: Duration = Duration::from_secs(15);
/// Orders of managers that may wait for one task: as many as a session has under way, and those of
/// the session before.
pub const TASK_ORDERS: usize = 2 * skep_core::limits::ORDERS;
/// How long one runc call may take.
pub const RUNC_CALL: Duration = Duration::from_secs(60);
/// Bytes of one task log file before it is rotated.
pub const LOG_FILE_BYTES: u64 = 10 << 20;
/// Task log files kept.
pub const LOG_FILES: u32 = 3;
/// Bytes in one line of a task log; longer ones are cut into several.
pub const LOG_LINE_BYTES: usize = 16 << 10;
/// Time between two batches of task reports.
pub const REPORT_BATCH: Duration = Duration::from_millis(100);
/// Reports of tasks in one proposal.
pub const REPORTS: usize = 512;
/// How long a write may wait for the log before its outcome is unknown.
pub const WRITE_WAIT: Duration = Duration::from_secs(5);
/// Bytes of a path in an image's archive.
pub const ARCHIVE_PATH_BYTES: usize = 4096;
/// Bytes of an extended header in an image's archive.
pub const ARCHIVE_HEADER_BYTES: usize = 1 << 20;
/// Entries in one layer of an image.
pub const ARCHIVE_ENTRIES: u64 = 2_000_000;
/// Bytes of one layer of an image, unpacked.
pub const ARCHIVE_BYTES: u64 = 64 << 30;
/// Bytes that an archive may unpack to however small it is.
pub const ARCHIVE_FREE_BYTES: u64 = 1 << 30;
/// Beyond that, how many times its own size an archive may unpack to.
pub const ARCHIVE_RATIO: u64 = 250;
/// Bytes of all layers that one load unpacks.
pub const IMAGE_BYTES: u64 = 128 << 30;
/// Layers of one image: more than overlay can stack cannot run.
pub const IMAGE_LAYERS: usize = 500;
/// Bytes of an upload of images, as sent and unpacked.
pub const IMAGE_UPLOAD_BYTES: u64 = 128 << 30;
/// Entries in an archive of images.
pub const IMAGE_UPLOAD_ENTRIES: usize = 20_000;
/// Images in one archive.
pub const IMAGE_UPLOAD_IMAGES: usize = 1_000;
/// Bytes of all documents that one load or save keeps in memory.
pub const IMAGE_UPLOAD_DOCUMENT_BYTES: u64 = 128 << 20;
/// Names that one image has in an archive, or that one save asks for.
pub const IMAGE_NAMES: usize = 1_000;
/// How long the next piece of an archive may take to come or to be taken.
pub const IMAGE_PIECE_WAIT: Duration = Duration::from_secs(120);
/// Bytes of a manifest, an image configuration or the image index.
pub const IMAGE_DOCUMENT_BYTES: u64 = 16 << 20;
/// Bytes of the instructions given to an import.
pub const IMAGE_CHANGE_BYTES: usize = 1 << 20;
/// Managers that a join may name.
pub const JOIN_ADDRESSES: usize = 64;
/// Bytes of a file that holds a join token.
pub const TOKEN_FILE_BYTES: u64 = 4096;
/// Messages that may wait between an agent and its manager.
pub const SESSION_QUEUE: usize = 1024;
/// News of sessions that may wait for the leader's control loop: what is lost here makes a node
/// look silent, so there is room for every node of a large swarm, and for some twice.
pub const SESSION_NEWS: usize = 16_384;
/// Bytes of datagrams that may wait to be read, and to be sent: a swarm's nodes may all say
/// something at once.
pub const NET_BUFFER_BYTES: usize = 8 << 20;
/// Streams that a peer may have open on one connection.
pub const NET_STREAMS: u32 = 1024;
/// Bytes of one stream that may wait to be read.
pub const NET_STREAM_BYTES: u32 = 4 << 20;
/// Time between two signs of life on a connection that is silent otherwise.
pub const NET_KEEPALIVE: Duration = Duration::from_secs(1);
/// A round trip before the first is measured: a packet that is lost then is sent again after three
/// of them.
pub const NET_RTT: Duration = Duration::from_millis(50);
/// How long a connection may be silent before it is given up.
pub const NET_IDLE: Duration = Duration::from_secs(5);
/// How long a handshake may take, on either side.
pub const NET_DIAL: Duration = Duration::from_secs(3);
/// How long peers are given to hear that this node closes its connections.
pub const NET_CLOSE: Duration = Duration::from_millis(200);
/// Handshakes under way at once.
pub const NET_HANDSHAKES: usize = 1024;
/// While fewer than this many are free, peers first show that their address is theirs.
pub const NET_HANDSHAKES_FREE: usize = 768;
/// Peers kept waiting that dial before this node has a certificate to show.
pub const NET_HELD: usize = 64;
/// Connections at once: every node of a large swarm, and managers among one another.
pub const NET_CONNECTIONS: usize = 10_500;
/// Bytes of one message between nodes.
pub const NET_MESSAGE_BYTES: usize = 20 << 20;
/// Bytes of a message from somebody who is not known yet.
pub const NET_ANONYMOUS_BYTES: usize = 64 << 10;
/// Payloads that wait for the ring's current key and are looked up at once.
pub const RESEAL_LOOK: usize = 4_096;
/// Bytes of payloads sealed anew in one entry of the log, give or take the last one: other writes
/// wait for no more.
pub const RESEAL_BYTES: u64 = 1 << 20;
/// Pause before payloads that could not be sealed anew are tried again.
pub const RESEAL_RETRY: Duration = Duration::from_secs(5);
/// Time between two looks at how far a turn of the ring has come, for who watches it.
pub const RING_LOOK: Duration = Duration::from_millis(100);
/// How long who watches a turn of the ring waits for the next payload to be sealed anew.
pub const RING_STALL: Duration = Duration::from_secs(30);
/// How long who watches a turn of the ring waits for a manager that does not answer.
pub const RING_SILENCE: Duration = Duration::from_secs(5);
/// How long who watches a turn of the ring waits for managers to purge old keys.
pub const RING_PURGE: Duration = Duration::from_secs(120);
/// How long an answer from a manager may take.
pub const NET_ANSWER: Duration = Duration::from_secs(5);
/// A manager that has not been in touch with a leader for this long closes the sessions of its
/// agents: another may be.
pub const OUT_OF_TOUCH: Duration = Duration::from_millis(1500);
/// Agents of such a manager go one after another within this long.
pub const OUT_OF_TOUCH_SPREAD: Duration = Duration::from_millis(500);
/// Time between two signs of life on a session, either way.
pub const SESSION_BEAT: Duration = Duration::from_secs(1);
/// A session whose other end says nothing for this long is over.
pub const SESSION_SILENCE: Duration = Duration::from_millis(2500);
/// Managers of the past that are kept in mind until Raft has let them go.
pub const FORMER_MANAGERS: usize = 64;
/// Time between two looks at whether those who are connected still may.
pub const NET_REVIEW: Duration = Duration::from_secs(1);
/// Nodes that join at once.
pub const JOINS: usize = 32;
/// How far the clock of a node that joins may be from the manager's.
pub const JOIN_CLOCK_SKEW: Duration = Duration::from_secs(1800);
/// How long a new manager may take to catch up before its join answers that it goes on.
pub const JOIN_READY: Duration = Duration::from_secs(20);
/// Bytes of a join token or an unlock key, as text.
pub const TOKEN_BYTES: usize = 128;
/// Certificates that a peer may send: its own, cross certificates and roots of a change of roots.
pub const CHAIN_CERTIFICATES: usize = 6;
/// Roots that a swarm trusts at once: two while one takes over from the other.
pub const ROOTS: usize = 2;
/// Bytes of a request for a certificate.
pub const CSR_BYTES: usize = 4 << 10;
/// Bytes of a file with this node's identity.
pub const IDENTITY_FILE_BYTES: u64 = 64 << 10;
/// Bytes of the file that names the managers.
pub const DIRECTORY_BYTES: u64 = 4 << 20;
/// Managers that a node keeps in mind.
pub const DIRECTORY_MANAGERS: usize = 1_000;
/// Bytes of a manager's public key in it.
pub const DIRECTORY_KEY_BYTES: usize = 256;
/// Bytes of a manager's address in it.
pub const DIRECTORY_ADDR_BYTES: usize = 256;
/// Shortest life of a node's certificate.
pub const LEAF_LIFE_MIN: Duration = Duration::from_secs(3_600);
/// Longest life of a node's certificate.
pub const LEAF_LIFE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);
/// How far the clocks of two nodes may differ before a new certificate is not valid yet.
pub const LEAF_BACKDATE: Duration = Duration::from_secs(3_600);
/// Bytes in one message between nodes about containers.
pub const RELAY_MESSAGE_BYTES: usize = 16 << 20;
/// Streams of other nodes that one agent serves at once: execs, followed logs, questions.
pub const RELAY_STREAMS: usize = 512;
/// How long a node may take to say what it wants, or to answer.
pub const RELAY_ANSWER: Duration = Duration::from_secs(5);
/// Time between two signs of life on a stream that has nothing else to say.
pub const RELAY_PULSE: Duration = Duration::from_secs(5);
/// How long such a stream may say nothing at all before it counts as lost.
pub const RELAY_SILENCE: Duration = Duration::from_secs(20);
/// Bytes of one piece of a process's output, and of each of its streams that wait for a reader.
pub const RELAY_PIECE_BYTES: usize = 32 << 10;
/// Log lines sent at once.
pub const RELAY_LINES: usize = 64;
/// Nodes that one request asks at the same time.
pub const RELAY_ASKED: usize = 64;
/// Bytes of an image's manifest and configuration on their way between nodes.
pub const IMAGE_OFFER_BYTES: usize = (2 * IMAGE_DOCUMENT_BYTES as usize) + (64 << 10);
/// Images that one node gives at the same time.
pub const IMAGES_GIVEN: usize = 32;
/// Bytes of a layer that are read or written at once on its way between nodes.
pub const IMAGE_PIECE_BYTES: usize = 256 << 10;
/// Bytes of unfinished layers that are kept for a later try.
pub const IMAGE_PARTIAL_BYTES: u64 = 16 << 30;
/// How long an unfinished layer is kept after its last byte has come.
pub const IMAGE_PARTIAL_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Tries in a row to fetch an image that bring nothing new.
pub const IMAGE_TRIES: u32 = 10;
/// The wait before the second of them; it doubles from try to try.
pub const IMAGE_RETRY: Duration = Duration::from_millis(100);
/// The longest of these waits.
pub const IMAGE_RETRY_MAX: Duration = Duration::from_secs(15);
/// Time between two reports of how much of an image has come.
pub const IMAGE_REPORT: Duration = Duration::from_secs(2);
/// Bytes of the question for one layer.
pub const IMAGE_WANT_BYTES: usize = 1 << 10;
/// Nodes that are asked for an image, one after the other.
pub const IMAGE_HOLDERS: usize = 16;
/// How long a shim gathers what it writes to its audit: with the writing itself less than a second.
pub const AUDIT_DELAY: Duration = Duration::from_millis(800);
/// Rows and events in one record of the audit, of each.
pub const AUDIT_RECORD_ITEMS: usize = 200;
/// Bytes of one record of the audit: as many rows with the longest names and paths, and as many
/// events, fit.
pub const AUDIT_RECORD_BYTES: usize = 2 << 20;
/// Events that may wait to be written to the audit.
pub const AUDIT_EVENTS: usize = 2_000;
/// Bytes of the reason in an event of the audit.
pub const AUDIT_REASON_BYTES: usize = 512;
/// Bytes of one file of a task's audit before it is rotated.
pub const AUDIT_FILE_BYTES: u64 = 2 << 20;
/// Files of a task's audit that are kept.
pub const AUDIT_FILES: u32 = 4;
/// Time between two looks of an agent at its tasks' audits.
pub const AUDIT_SCAN: Duration = Duration::from_secs(1);
/// Bytes of records that an agent sends at once; one record more may be on top.
pub const AUDIT_BATCH_BYTES: usize = 1 << 20;
/// Of these, bytes of one task.
pub const AUDIT_TASK_BYTES: usize = 256 << 10;
/// Bytes of records that a manager takes from an agent at once, and as many for what frames them.
pub const AUDIT_OFFER_BYTES: usize = AUDIT_BATCH_BYTES + AUDIT_TASK_BYTES + AUDIT_RECORD_BYTES;
/// How long an agent waits for the word that its records are stored before it sends them again.
pub const AUDIT_RESEND: Duration = Duration::from_secs(10);
/// Bytes of audits of removed tasks that wait on their node to be sent.
pub const AUDIT_UNSENT_BYTES: u64 = 256 << 20;
/// Batches of agents that may wait on a manager to be stored: one of each agent.
pub const AUDIT_QUEUE: usize = 1_024;
/// Bytes of records that a manager stores at once; one batch more may be on top.
pub const AUDIT_ROUND_BYTES: usize = 4 << 20;
const _: () = assert!(AUDIT_ROUND_BYTES + 2 * AUDIT_OFFER_BYTES < NET_MESSAGE_BYTES);
/// Rounds of storing that other managers may be behind.
pub const AUDIT_ROUNDS: usize = 8;
/// Pause after a round that did not reach a majority.
pub const AUDIT_AGAIN: Duration = Duration::from_secs(1);
/// Bytes of one segment of a manager's audits.
pub const AUDIT_SEGMENT_BYTES: u64 = 8 << 20;
/// Bytes of all audits that a manager keeps.
pub const AUDIT_STORE_BYTES: u64 = 1 << 30;
/// How long a manager keeps an audit's records.
pub const AUDIT_KEPT: Duration = Duration::from_secs(90 * 24 * 3_600);
/// Bytes of records in one answer of a manager; one portion more may be on top.
pub const AUDIT_PAGE_BYTES: usize = 4 << 20;
/// Bytes of its store that a manager reads for one answer.
pub const AUDIT_READ_BYTES: u64 = 64 << 20;
/// Of these, bytes that count at most for a piece of which it reads only what is before it: what a
/// disk hands over at once.
pub const AUDIT_HEAD_READ_BYTES: u64 = 4 << 10;
/// Records in the answer to a question about audits.
pub const AUDIT_FOUND: usize = 100_000;
/// Bytes of these records.
pub const AUDIT_FOUND_BYTES: usize = 64 << 20;
/// Tasks whose chains one question has checked.
pub const AUDIT_VERIFY_TASKS: usize = 100_000;
/// Of these, tasks that are read together.
pub const AUDIT_VERIFY_BATCH: usize = 64;
/// Bytes of one task's records that are checked at once.
pub const AUDIT_VERIFY_BYTES: usize = 64 << 20;
/// Time between two looks of one who follows the audit.
pub const AUDIT_FOLLOW: Duration = Duration::from_millis(500);
/// Records that one who follows is known to have seen: what several managers keep comes once.
pub const AUDIT_SEEN: usize = 65_536;
/// Questions about the audit that a node answers at the same time.
pub const AUDIT_QUESTIONS: usize = 8;
/// How long a question waits for others to be answered.
pub const AUDIT_QUESTION_WAIT: Duration = Duration::from_secs(30);
/// How long one who follows waits for a manager in one look.
pub const AUDIT_FOLLOW_ANSWER: Duration = Duration::from_secs(1);
/// Those who follow the audit at one manager.
pub const AUDIT_FOLLOWERS: usize = 64;
/// How much later than the last record that managers dropped an anchor of it, or the creation of
/// its task, may have been set: anchors come behind, and clocks differ.
pub const AUDIT_SLACK: Duration = Duration::from_secs(10 * 60);
/// Time between two comparisons of what a manager keeps with what the others do.
pub const AUDIT_COMPARE: Duration = Duration::from_secs(30);
/// Pieces that a manager tells of in one answer when another compares.
pub const AUDIT_HEADS: usize = 8_192;
/// Secrets and configs whose last read a manager knows without looking.
pub const AUDIT_LAST_READS: usize = 65_536;
/// Time between two proposals of anchors, unless a task has ended.
pub const AUDIT_ANCHOR: Duration = Duration::from_secs(10);
/// Anchors in one proposal.
pub const AUDIT_ANCHORS: usize = 512;
/// How long a manager waits at most, in one answer, for its agents' tasks to hold what they should.
pub const HOLDINGS_ROUND: Duration = Duration::from_secs(2);
/// How much longer than that its answer may take to come.
pub const HOLDINGS_SLACK: Duration = Duration::from_millis(500);
/// Tasks in one such answer; those beyond count as not reached.
pub const HOLDINGS: usize = 65_536;
/// How long a manager is waited for that may know when a secret was last read.
pub const LAST_READ_WAIT: Duration = Duration::from_millis(500);
/// How long a revocation waits to be in force everywhere before it is told where it is not.
pub const REVOKE_WAIT: Duration = Duration::from_secs(2);
/// The longest that a client may ask to wait until tasks hold a new version.
pub const UPDATE_WAIT_MAX: Duration = Duration::from_secs(600);
