//! Every bound of this crate.

use std::time::Duration;

/// Grants in one task.
pub const GRANTS: usize = 64;
/// Bytes of payload visible to one task at a time.
pub const GRANTED_BYTES: u64 = 16 << 20;
/// Capacity of a task's vault: what is visible, and room for the set that replaces it.
pub const VAULT_BYTES: usize = 2 * (GRANTED_BYTES as usize);
/// Open files in one task; further opens fail with ENFILE.
pub const HANDLES: usize = 4_096;
/// Replaced versions of one file that open handles may still read; handles of older ones get
/// ESTALE.
pub const OLD_VERSIONS: usize = 2;
/// Delivered sets that stay reachable as `..N`, the current one included.
pub const SETS: usize = 2;
/// Targets a task's tree remembers, revoked ones included.
pub const TARGETS: usize = 1_024;
/// Rows of the audit; what fits in none is counted in one more.
pub const AUDIT_ROWS: usize = 1_000;
/// Bytes kept of an executable's path in the audit.
pub const EXECUTABLE_BYTES: usize = 1_024;
/// Bytes of a target, as in PATH_MAX.
pub const TARGET_BYTES: usize = 4_095;
/// Bytes of one name in a target, as in NAME_MAX.
pub const NAME_BYTES: usize = 255;
/// Bytes the kernel may ask for in one read. A bounce buffer of this size stays in the
/// processor's cache: larger reads of secret memory are slower. And of a reader's buffer the
/// kernel pins as much as this, however small the secret.
pub const READ_BYTES: usize = 128 << 10;
/// Serving threads. Nothing they do waits, and a second one only makes the processors pass
/// requests around.
pub const THREADS: usize = 1;
/// Batches of invalidations waiting for the notifier.
pub const NOTIFICATIONS: usize = 16;
/// How long a change waits for the kernel to drop what it cached.
pub const INVALIDATE_WAIT: Duration = Duration::from_secs(2);
/// How long a mount waits for the kernel's first message.
pub const MOUNT_WAIT: Duration = Duration::from_secs(10);
/// How long the kernel may keep names and attributes: until it is told otherwise.
pub const CACHE_TTL: Duration = Duration::from_secs(365 * 24 * 3_600);
