use skep_core::id::{ENTROPY_LEN, NodeId};

use super::*;

fn node_id() -> NodeId {
    NodeId::from_entropy([7; ENTROPY_LEN])
}

fn lock(key: &UnlockKey) -> Lock<'_> {
    Lock { key, node: node_id() }
}

/// A manager with clear files.
struct Node {
    dir: tempfile::TempDir,
    store: IdentityStore,
    key: NodeKey,
    seal: SealKeyPair,
}

fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let store = IdentityStore::new(dir.path());
    let (key, seal) = (NodeKey::generate().unwrap(), SealKeyPair::generate().unwrap());
    store.save_keys(&key, &seal, None).unwrap();
    store.make_storage_key(None).unwrap();
    Node { dir, store, key, seal }
}

impl Node {
    /// Everything that must not be found in a file of a locked node: the parts that are secret of
    /// the node key, the seal key and the storage keys, as bytes and as they stand in clear files.
    fn secrets(&self) -> Vec<Vec<u8>> {
        let pem = self.key.to_pem();
        let lines = pem.lines().filter(|line| !line.starts_with("---"));
        let mut secrets: Vec<_> =
            lines.map(|line| line.as_bytes()[..40.min(line.len())].to_vec()).collect();
        // Before the public half.
        secrets.push(self.key.to_der()[36..68].to_vec());
        secrets.push(self.seal.private_bytes().to_vec());
        secrets.push(STANDARD.encode(*self.seal.private_bytes()).into_bytes());
        secrets
    }

    fn storage_secrets(&self, lock: Option<Lock<'_>>) -> Vec<Vec<u8>> {
        let (current, next) = self.storage(lock);
        let keys = [Some(current), next].into_iter().flatten();
        keys.flat_map(|key| [skep_core::id::hex(&key).into_bytes(), key]).collect()
    }

    /// The bytes of the storage keys, which are equal only if the keys are.
    fn storage(&self, lock: Option<Lock<'_>>) -> (Vec<u8>, Option<Vec<u8>>) {
        let file = self.store.open_storage(lock).unwrap();
        let (current, next) = self.store.storage_bytes(&file.plain).unwrap();
        (current.to_vec(), next.map(|key| key.to_vec()))
    }

    fn check(&self, lock: Option<Lock<'_>>) -> Keys {
        let keys = self.store.load_keys(lock).unwrap();
        assert_eq!(keys.node.public_key(), self.key.public_key());
        assert_eq!(keys.seal.public(), self.seal.public());
        assert!(keys.storage.is_some());
        keys
    }

    /// Every file of the directory, those that a crash left too.
    fn files(&self) -> Vec<Vec<u8>> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
    }

    fn assert_sealed(&self, secrets: &[Vec<u8>]) {
        for file in self.files() {
            for secret in secrets {
                assert!(!file.windows(secret.len()).any(|window| window == secret));
            }
        }
    }

    /// Does all that `steps` say up to a crash after `done` file operations: each file is first
    /// written beside, then renamed over the old one.
    fn crash(&self, steps: &[Step], done: usize) {
        for step in steps.iter().take(done / 2) {
            self.store.perform(step).unwrap();
        }
        if let (Some(step), 1) = (steps.get(done / 2), done % 2) {
            let beside = beside(&self.store.path(step.name));
            std::fs::write(beside, &step.content).unwrap();
        }
    }

    /// What the daemon does first.
    fn restart(&self) {
        self.store.clear_unfinished().unwrap();
    }
}

#[test]
fn clear_files_are_read_back() {
    let node = node();
    assert!(!node.store.is_locked().unwrap());
    node.check(None);
    // A key that is not needed does not hurt.
    node.check(Some(lock(&UnlockKey::generate().unwrap())));
    // The positive control of `assert_sealed`.
    for secret in node.secrets().iter().take(2).chain(&node.storage_secrets(None)[..1]) {
        let found = node.files().iter().any(|f| f.windows(secret.len()).any(|w| w == secret));
        assert!(found);
    }
    node.store.forget_log().unwrap();
    assert!(node.store.load_keys(None).unwrap().storage.is_none(), "a worker has none");
}

#[test]
fn a_locked_node_opens_with_its_key_only_and_holds_no_key() {
    let node = node();
    let (key, other) = (UnlockKey::generate().unwrap(), UnlockKey::generate().unwrap());
    let mut secrets = node.secrets();
    secrets.extend(node.storage_secrets(None));
    secrets.push(key.as_bytes().to_vec());
    secrets.push(key.to_text()[9..].as_bytes().to_vec());
    node.store.lock_with(lock(&key), None).unwrap();
    node.assert_sealed(&secrets);
    assert!(node.store.is_locked().unwrap());
    let error = node.store.load_keys(None).unwrap_err();
    assert!(matches!(error, KeysError::Locked(_)), "{error:?}");
    let error = node.store.load_keys(Some(lock(&other))).unwrap_err();
    assert!(matches!(error, KeysError::WrongKey(_)), "{error:?}");
    let stranger = Lock { node: NodeId::from_entropy([8; ENTROPY_LEN]), ..lock(&key) };
    assert!(matches!(node.store.load_keys(Some(stranger)), Err(KeysError::WrongKey(_))));
    node.check(Some(lock(&key)));
    node.store.unlock_for_good(lock(&key)).unwrap();
    assert!(!node.store.is_locked().unwrap());
    node.check(None);
}

#[test]
fn a_node_that_is_born_locked_never_writes_a_clear_key() {
    let dir = tempfile::tempdir().unwrap();
    let store = IdentityStore::new(dir.path());
    let (key, seal) = (NodeKey::generate().unwrap(), SealKeyPair::generate().unwrap());
    let unlock = UnlockKey::generate().unwrap();
    store.save_keys(&key, &seal, Some(lock(&unlock))).unwrap();
    store.make_storage_key(Some(lock(&unlock))).unwrap();
    let node = Node { dir, store, key, seal };
    node.assert_sealed(&node.secrets());
    node.assert_sealed(&node.storage_secrets(Some(lock(&unlock))));
    node.check(Some(lock(&unlock)));
}

/// Turning autolock on, cut after each file operation.
#[test]
fn locking_that_was_cut_short_opens_and_is_finished() {
    for done in 0..=4 {
        let node = node();
        let key = UnlockKey::generate().unwrap();
        let storage = node.storage(None);
        let mut secrets = node.secrets();
        secrets.extend(node.storage_secrets(None));
        let steps = node.store.lock_steps(lock(&key), None).unwrap();
        assert_eq!(steps.len(), 2);
        node.crash(&steps, done);
        node.restart();
        assert_eq!(node.store.is_locked().unwrap(), done >= 2);
        node.check(Some(lock(&key)));
        node.store.lock_with(lock(&key), None).unwrap();
        node.assert_sealed(&secrets);
        node.check(Some(lock(&key)));
        assert_eq!(node.storage(Some(lock(&key))), storage);
        assert!(
            node.store.lock_steps(lock(&key), None).unwrap().is_empty(),
            "nothing is left to do"
        );
    }
}

/// Rotating the unlock key, cut after each file operation: one of the two keys opens all.
#[test]
fn a_rotation_that_was_cut_short_opens_with_one_key_and_is_finished() {
    for done in 0..=8 {
        let node = node();
        let (old, new) = (UnlockKey::generate().unwrap(), UnlockKey::generate().unwrap());
        node.store.lock_with(lock(&old), None).unwrap();
        let mut secrets = node.secrets();
        secrets.extend(node.storage_secrets(Some(lock(&old))));
        let steps = node.store.lock_steps(lock(&new), Some(&old)).unwrap();
        assert_eq!(steps.len(), 4);
        node.crash(&steps, done);
        node.assert_sealed(&secrets);
        node.restart();
        let opens = |key: &UnlockKey| node.store.load_keys(Some(lock(key))).is_ok();
        assert_eq!((opens(&old), opens(&new)), (done < 6, done >= 4), "after {done}");
        node.store.lock_with(lock(&new), Some(&old)).unwrap();
        assert!(!opens(&old));
        node.check(Some(lock(&new)));
        node.assert_sealed(&secrets);
        // Again, when the old key is forgotten.
        node.store.lock_with(lock(&new), None).unwrap();
        node.check(Some(lock(&new)));
    }
}

#[test]
fn a_rotation_with_a_wrong_old_key_changes_nothing() {
    let node = node();
    let keys: Vec<_> = (0..3).map(|_| UnlockKey::generate().unwrap()).collect();
    node.store.lock_with(lock(&keys[0]), None).unwrap();
    let before = node.files();
    for old in [None, Some(&keys[1])] {
        let error = node.store.lock_with(lock(&keys[2]), old).unwrap_err();
        assert!(matches!(error, KeysError::WrongKey(_)), "{error:?}");
        assert_eq!(node.files(), before);
    }
    assert!(node.store.unlock_for_good(lock(&keys[2])).is_err());
    assert!(node.store.begin_rekey(Some(lock(&keys[2]))).is_err());
    assert!(matches!(node.store.begin_rekey(None), Err(KeysError::Locked(_))));
    assert_eq!(node.files(), before);
}

/// Turning autolock off, cut after each file operation.
#[test]
fn unlocking_that_was_cut_short_opens_and_is_finished() {
    for done in 0..=4 {
        let node = node();
        let key = UnlockKey::generate().unwrap();
        node.store.lock_with(lock(&key), None).unwrap();
        let steps = node.store.unlock_steps(lock(&key)).unwrap();
        assert_eq!(steps.len(), 2);
        node.crash(&steps, done);
        node.restart();
        assert_eq!(node.store.is_locked().unwrap(), done < 4);
        node.check(Some(lock(&key)));
        node.store.unlock_for_good(lock(&key)).unwrap();
        node.check(None);
    }
}

/// Autolock is turned on again after a crash while it was being turned off.
#[test]
fn locking_leaves_no_clear_copy_of_an_unlocking_that_was_cut_short() {
    for done in 0..=4 {
        let node = node();
        let key = UnlockKey::generate().unwrap();
        let mut secrets = node.secrets();
        secrets.extend(node.storage_secrets(None));
        node.store.lock_with(lock(&key), None).unwrap();
        let steps = node.store.unlock_steps(lock(&key)).unwrap();
        node.crash(&steps, done);
        node.store.lock_with(lock(&key), None).unwrap();
        node.assert_sealed(&secrets);
        node.check(Some(lock(&key)));
    }
}

#[test]
fn storage_keys_are_both_known_until_the_change_is_finished() {
    let key = UnlockKey::generate().unwrap();
    for lock in [None, Some(lock(&key))] {
        let node = node();
        if let Some(lock) = lock {
            node.store.lock_with(lock, None).unwrap();
        }
        let (first, none) = node.storage(lock);
        assert_eq!(none, None);
        let error = node.store.finish_rekey(lock).unwrap_err();
        assert!(matches!(error, KeysError::NoNextKey(_)), "{error:?}");
        assert!(node.store.begin_rekey(lock).unwrap().next.is_some());
        let (current, next) = node.storage(lock);
        assert_eq!(current, first);
        let next = next.unwrap();
        assert_ne!(next, first);
        // After a crash it goes on where it was.
        node.restart();
        node.store.begin_rekey(lock).unwrap();
        assert_eq!(node.storage(lock), (first, Some(next.clone())));
        assert_eq!(node.store.is_locked().unwrap(), lock.is_some());
        if lock.is_some() {
            node.assert_sealed(&node.storage_secrets(lock));
        }
        assert!(node.store.finish_rekey(lock).unwrap().next.is_none());
        assert_eq!(node.storage(lock), (next, None));
        assert_eq!(node.store.is_locked().unwrap(), lock.is_some());
    }
}

/// The unlock key is rotated while storage keys change: both storage keys come along.
#[test]
fn a_rotation_keeps_both_storage_keys() {
    let node = node();
    let (old, new) = (UnlockKey::generate().unwrap(), UnlockKey::generate().unwrap());
    node.store.lock_with(lock(&old), None).unwrap();
    node.store.begin_rekey(Some(lock(&old))).unwrap();
    let storage = node.storage(Some(lock(&old)));
    node.store.lock_with(lock(&new), Some(&old)).unwrap();
    assert_eq!(node.storage(Some(lock(&new))), storage);
}

#[test]
fn a_clear_file_that_gave_way_to_a_locked_one_is_overwritten() {
    use std::io::Read as _;
    let node = node();
    let path = node.store.path(KEY_FILE);
    let mut old = File::open(&path).unwrap();
    node.store.lock_with(lock(&UnlockKey::generate().unwrap()), None).unwrap();
    let mut rest = Vec::new();
    old.read_to_end(&mut rest).unwrap();
    assert!(!rest.is_empty() && rest.iter().all(|byte| *byte == 0));
}

#[test]
fn damage_is_named() {
    let node = node();
    let write = |name: &str, text: &str| std::fs::write(node.store.path(name), text).unwrap();
    let two = format!("{}\n", "0".repeat(64)).repeat(2);
    let hex = "0".repeat(63);
    for bad in ["", "zz", &format!("{hex}x"), &format!("{hex}+"), &format!("{two}{hex}0")] {
        write(STORAGE_KEY_FILE, bad);
        let error = node.store.load_keys(None).unwrap_err().to_string();
        assert!(error.contains("storage.key"), "{error}");
    }
    write(STORAGE_KEY_FILE, &two);
    assert!(node.check(None).storage.unwrap().next.is_some());
    for bad in ["", "garbage", SEAL_KEY_BEGIN, "skep-locked/2\nAAAA\n", "skep-locked/1\n"] {
        write(KEY_FILE, bad);
        let error = node.store.load_keys(Some(lock(&UnlockKey::generate().unwrap()))).unwrap_err();
        assert!(error.to_string().contains("key.pem"), "{error}");
    }
    std::fs::remove_file(node.store.path(KEY_FILE)).unwrap();
    assert!(matches!(node.store.load_keys(None), Err(KeysError::Missing(_))));
}
