use skep_core::id::ENTROPY_LEN;

use super::*;

fn node_id() -> NodeId {
    NodeId::from_entropy([7; ENTROPY_LEN])
}

fn lock(key: &UnlockKey) -> Lock<'_> {
    Lock { key, node: node_id() }
}

/// The key once more, as a user would give it.
fn again(key: &UnlockKey) -> UnlockKey {
    UnlockKey::parse(&key.to_text()).unwrap()
}

fn unlock_key() -> UnlockKey {
    UnlockKey::generate().unwrap()
}

/// A manager's files.
struct Node {
    dir: tempfile::TempDir,
    key: NodeKey,
    seal: SealKeyPair,
}

/// One with clear files.
fn node() -> (Node, IdentityStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = IdentityStore::new(dir.path());
    let (key, seal) = (NodeKey::generate().unwrap(), SealKeyPair::generate().unwrap());
    store.save_keys(&key, &seal).unwrap();
    store.make_storage_key().unwrap();
    (Node { dir, key, seal }, store)
}

/// One with locked files.
fn locked_node(key: &UnlockKey) -> (Node, IdentityStore) {
    let (node, store) = node();
    store.lock_with(again(key), node_id()).unwrap();
    store.finish_rekey().unwrap();
    (node, store)
}

/// The bytes of the storage keys.
fn storage(store: &IdentityStore) -> (Vec<u8>, Option<Vec<u8>>) {
    let file = store.open_held(STORAGE_KEY_FILE).unwrap();
    let (current, next) = store.storage_bytes(&file.plain).unwrap();
    (current.to_vec(), next.map(|key| key.to_vec()))
}

/// What must not be found of the storage keys in a file of a locked node: the bytes, and the text
/// of clear files.
fn storage_secrets(store: &IdentityStore) -> Vec<Vec<u8>> {
    let (current, next) = storage(store);
    let keys = [Some(current), next].into_iter().flatten();
    keys.flat_map(|key| [skep_core::id::hex(&key).into_bytes(), key]).collect()
}

impl Node {
    /// The same of the node key and the seal key.
    fn secrets(&self) -> Vec<Vec<u8>> {
        let pem = self.key.pem();
        let lines = pem.lines().filter(|line| !line.starts_with("---"));
        let head = |line: &str| line.as_bytes()[..40.min(line.len())].to_vec();
        let mut secrets: Vec<_> = lines.map(head).collect();
        // The private number itself, which stands before the public half.
        secrets.push(self.key.der()[36..68].to_vec());
        secrets.push(self.seal.private_bytes().to_vec());
        secrets.push(STANDARD.encode(*self.seal.private_bytes()).into_bytes());
        secrets
    }

    /// What the next daemon finds, who is told this key if any.
    fn restart(&self, key: Option<&UnlockKey>) -> Result<IdentityStore, StoreError> {
        let store = IdentityStore::new(self.dir.path());
        store.clear_unfinished()?;
        if let Some(key) = key {
            store.unlock(again(key), node_id())?;
        }
        self.check(&store)?;
        Ok(store)
    }

    fn check(&self, store: &IdentityStore) -> Result<(), StoreError> {
        let (key, seal) = store.load_keys()?;
        assert_eq!(key.public(), self.key.public());
        assert_eq!(seal.public(), self.seal.public());
        store.load_storage_keys()?;
        Ok(())
    }

    /// Every file of the directory, those that a crash left too.
    fn files(&self) -> Vec<Vec<u8>> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
    }

    fn holds(&self, secret: &[u8]) -> bool {
        self.files().iter().any(|file| file.windows(secret.len()).any(|window| window == secret))
    }

    fn assert_sealed(&self, secrets: &[Vec<u8>]) {
        assert!(!secrets.iter().any(|secret| self.holds(secret)));
    }

    fn is_locked(&self) -> bool {
        IdentityStore::new(self.dir.path()).is_locked().unwrap()
    }
}

/// Does what `steps` say up to a crash after `done` file operations: each file is first written
/// beside, then renamed over the old one.
fn crash(store: &IdentityStore, steps: &[Step], done: usize) {
    for step in steps.iter().take(done / 2) {
        store.perform(step).unwrap();
    }
    if let (Some(step), 1) = (steps.get(done / 2), done % 2) {
        std::fs::write(beside(&store.path(step.name)), &step.content).unwrap();
    }
}

#[test]
fn clear_files_are_read_back() {
    let (node, store) = node();
    assert!(!node.is_locked());
    node.check(&store).unwrap();
    // A key that is not needed does not hurt, and is not kept.
    let next = node.restart(Some(&unlock_key())).unwrap();
    next.save_keys(&node.key, &node.seal).unwrap();
    assert!(!node.is_locked());
    // The positive control of `assert_sealed`.
    for secret in node.secrets().iter().take(2).chain(&storage_secrets(&store)[..1]) {
        assert!(node.holds(secret));
    }
}

#[test]
fn a_locked_node_opens_with_its_key_only_and_holds_no_key() {
    let key = unlock_key();
    let (node, store) = node();
    let mut secrets = node.secrets();
    secrets.extend(storage_secrets(&store));
    secrets.push(key.as_bytes().to_vec());
    secrets.push(key.to_text()[9..].as_bytes().to_vec());
    store.lock_with(again(&key), node_id()).unwrap();
    node.assert_sealed(&secrets);
    assert!(node.is_locked());
    // Who locked it goes on.
    assert!(!store.is_locked().unwrap());
    node.check(&store).unwrap();
    let error = node.restart(None).unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error:?}");
    let error = node.restart(Some(&unlock_key())).unwrap_err();
    assert!(matches!(error, StoreError::WrongKey(_)), "{error:?}");
    let stranger = IdentityStore::new(node.dir.path());
    let error = stranger.unlock(again(&key), NodeId::from_entropy([8; ENTROPY_LEN])).unwrap_err();
    assert!(matches!(error, StoreError::WrongKey(_)), "{error:?}");
    assert!(stranger.is_locked().unwrap(), "a wrong key is not kept");
    let next = node.restart(Some(&key)).unwrap();
    assert!(!next.is_locked().unwrap());
    // What it writes is locked too.
    next.make_storage_key().unwrap();
    next.save_keys(&node.key, &node.seal).unwrap();
    secrets.extend(storage_secrets(&next));
    node.assert_sealed(&secrets);
    next.unlock_for_good().unwrap();
    assert!(!node.is_locked());
    node.restart(None).unwrap();
    next.save_keys(&node.key, &node.seal).unwrap();
    assert!(!node.is_locked());
}

#[test]
fn a_node_that_is_born_locked_never_writes_a_clear_key() {
    let dir = tempfile::tempdir().unwrap();
    let store = IdentityStore::new(dir.path());
    let (key, seal) = (NodeKey::generate().unwrap(), SealKeyPair::generate().unwrap());
    let unlock = unlock_key();
    store.lock_with(again(&unlock), node_id()).unwrap();
    store.save_keys(&key, &seal).unwrap();
    store.make_storage_key().unwrap();
    let node = Node { dir, key, seal };
    node.assert_sealed(&node.secrets());
    node.assert_sealed(&storage_secrets(&store));
    node.restart(Some(&unlock)).unwrap();
    // Once it has left it may begin anew in the clear.
    store.finish_wipe().unwrap();
    store.save_keys(&node.key, &node.seal).unwrap();
    assert!(!node.is_locked());
}

/// Turning autolock on, cut after each file operation.
#[test]
fn locking_that_was_cut_short_opens_and_is_finished() {
    for done in 0..=4 {
        let key = unlock_key();
        let (node, store) = node();
        let before = storage(&store);
        let mut secrets = node.secrets();
        secrets.extend(storage_secrets(&store));
        let steps = store.lock_steps(lock(&key), None).unwrap();
        assert_eq!(steps.len(), 2);
        crash(&store, &steps, done);
        assert_eq!(node.is_locked(), done >= 2);
        let next = node.restart(Some(&key)).unwrap();
        next.lock_with(again(&key), node_id()).unwrap();
        node.assert_sealed(&secrets);
        // However often it was begun: the log is still under the key that was clear, the next start
        // knows it, and the key that takes over was never clear.
        let next = node.restart(Some(&key)).unwrap();
        let (current, new) = storage(&next);
        assert_eq!((current, None), before);
        assert!(!secrets.contains(&new.clone().unwrap()));
        node.assert_sealed(&storage_secrets(&next));
        assert!(next.lock_steps(lock(&key), None).unwrap().is_empty(), "nothing is left to do");
        next.finish_rekey().unwrap();
        assert_eq!(storage(&next), (new.unwrap(), None));
    }
}

/// Rotating the unlock key, cut after each file operation: one of the two keys opens all.
#[test]
fn a_rotation_that_was_cut_short_opens_with_one_key_and_is_finished() {
    for done in 0..=8 {
        let (old, new) = (unlock_key(), unlock_key());
        let (node, store) = locked_node(&old);
        let mut secrets = node.secrets();
        secrets.extend(storage_secrets(&store));
        let steps = store.lock_steps(lock(&new), Some(&old)).unwrap();
        assert_eq!(steps.len(), 4);
        crash(&store, &steps, done);
        node.assert_sealed(&secrets);
        let opens = |key: &UnlockKey| node.restart(Some(key)).is_ok();
        assert_eq!((opens(&old), opens(&new)), (done < 6, done >= 4), "after {done}");
        // The old key opens no file, left over or not, that names the key that takes over.
        if opens(&old) {
            assert_eq!(storage(&node.restart(Some(&old)).unwrap()).1, None, "after {done}");
        }
        let given = if opens(&old) { &old } else { &new };
        let next = node.restart(Some(given)).unwrap();
        next.lock_with(again(&new), node_id()).unwrap();
        assert!(!opens(&old));
        assert!(opens(&new));
        node.assert_sealed(&secrets);
        // Again, when the old key is forgotten.
        let next = node.restart(Some(&new)).unwrap();
        assert!(storage(&next).1.is_some(), "after {done} the log stays under the old key");
        next.lock_with(again(&new), node_id()).unwrap();
        assert!(opens(&new));
    }
}

#[test]
fn without_the_old_key_nothing_is_changed() {
    let (node, _) = locked_node(&unlock_key());
    let before = node.files();
    let store = IdentityStore::new(node.dir.path());
    let error = store.lock_with(unlock_key(), node_id()).unwrap_err();
    assert!(matches!(error, StoreError::WrongKey(_)), "{error:?}");
    assert!(matches!(store.unlock_for_good(), Err(StoreError::Locked(_))));
    assert!(matches!(store.finish_rekey(), Err(StoreError::Locked(_))));
    assert!(store.is_locked().unwrap());
    assert_eq!(node.files(), before);
}

/// Turning autolock off, cut after each file operation.
#[test]
fn unlocking_that_was_cut_short_opens_and_is_finished() {
    for done in 0..=4 {
        let key = unlock_key();
        let (node, store) = locked_node(&key);
        let steps = store.unlock_steps(&[lock(&key)]).unwrap();
        assert_eq!(steps.len(), 2);
        crash(&store, &steps, done);
        assert_eq!(node.is_locked(), done < 4);
        let next = node.restart(Some(&key)).unwrap();
        next.unlock_for_good().unwrap();
        node.restart(None).unwrap();
    }
}

/// Autolock is turned on again after a crash while it was being turned off.
#[test]
fn locking_leaves_no_clear_copy_of_an_unlocking_that_was_cut_short() {
    for done in 0..=4 {
        let key = unlock_key();
        let (node, store) = node();
        let mut secrets = node.secrets();
        secrets.extend(storage_secrets(&store));
        store.lock_with(again(&key), node_id()).unwrap();
        store.finish_rekey().unwrap();
        let steps = store.unlock_steps(&[lock(&key)]).unwrap();
        crash(&store, &steps, done);
        store.lock_with(again(&key), node_id()).unwrap();
        node.assert_sealed(&secrets);
        node.restart(Some(&key)).unwrap();
    }
}

#[test]
fn storage_keys_are_both_known_until_the_change_is_finished() {
    let key = unlock_key();
    let (node, store) = node();
    let (first, none) = storage(&store);
    assert_eq!(none, None);
    let error = store.finish_rekey().unwrap_err();
    assert!(matches!(error, StoreError::NoNextKey(_)), "{error:?}");
    assert!(store.lock_with(again(&key), node_id()).unwrap());
    let (current, next) = storage(&store);
    assert_eq!(current, first);
    let next = next.unwrap();
    assert_ne!(next, first);
    // After a crash it goes on where it was.
    let store = node.restart(Some(&key)).unwrap();
    assert!(!store.lock_with(again(&key), node_id()).unwrap());
    assert_eq!(storage(&store), (first, Some(next.clone())));
    node.assert_sealed(&storage_secrets(&store));
    assert!(store.finish_rekey().unwrap().next.is_none());
    assert_eq!(storage(&store), (next.clone(), None));
    assert!(!store.lock_with(again(&key), node_id()).unwrap());
    assert_eq!(storage(&store), (next, None), "a lock that is not new makes no key");
}

/// The unlock key is rotated while storage keys change: the next one stood under the old unlock
/// key, so it has to be done with before there is another.
#[test]
fn a_rotation_waits_for_a_change_of_storage_keys() {
    let (old, new) = (unlock_key(), unlock_key());
    let (node, store) = node();
    store.lock_with(again(&old), node_id()).unwrap();
    let (files, second) = (node.files(), storage(&store).1.unwrap());
    let error = store.lock_with(again(&new), node_id()).unwrap_err();
    assert!(matches!(error, StoreError::OpenRekey(_)), "{error:?}");
    assert_eq!(node.files(), files);
    store.finish_rekey().unwrap();
    store.lock_with(again(&new), node_id()).unwrap();
    let (current, next) = storage(&node.restart(Some(&new)).unwrap());
    assert!(current == second && next.is_some());
}

#[test]
fn a_clear_file_that_gave_way_to_a_locked_one_is_overwritten() {
    use std::io::Read as _;
    let (_node, store) = node();
    let mut old = File::open(store.path(KEY_FILE)).unwrap();
    store.lock_with(unlock_key(), node_id()).unwrap();
    let mut rest = Vec::new();
    old.read_to_end(&mut rest).unwrap();
    assert!(!rest.is_empty() && rest.iter().all(|byte| *byte == 0));
}

#[test]
fn keys_of_a_join_that_was_cut_short_are_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = IdentityStore::new(dir.path());
    let (key, seal) = store.unfinished_keys().unwrap();
    let (same, seal_again) = store.unfinished_keys().unwrap();
    assert_eq!((same.public(), seal_again.public()), (key.public(), seal.public()));
    std::fs::write(store.path(KEY_FILE), "torn").unwrap();
    assert_ne!(store.unfinished_keys().unwrap().0.public(), key.public());
    store.load_keys().unwrap();
}

#[test]
fn damage_is_named() {
    let (_node, store) = node();
    let write = |name: &str, text: &str| std::fs::write(store.path(name), text).unwrap();
    let two = format!("{}\n", "0".repeat(64)).repeat(2);
    let hex = "0".repeat(63);
    for bad in ["", "zz", &format!("{hex}x"), &format!("{hex}+"), &format!("{two}{hex}0")] {
        write(STORAGE_KEY_FILE, bad);
        let error = store.load_storage_key().unwrap_err().to_string();
        assert!(error.contains("storage.key"), "{error}");
    }
    write(STORAGE_KEY_FILE, &two);
    assert!(store.load_storage_keys().unwrap().next.is_some());
    let no_node_key = format!("{SEAL_KEY_BEGIN}\nAAAA\n{SEAL_KEY_END}\n");
    for bad in ["", "garbage", &no_node_key, "skep-locked/2\nAAAA\n", "skep-locked/1\n"] {
        write(KEY_FILE, bad);
        let error = store.load_keys().unwrap_err().to_string();
        assert!(error.contains("key.pem"), "{error}");
    }
    std::fs::remove_file(store.path(KEY_FILE)).unwrap();
    assert!(matches!(store.load_keys(), Err(StoreError::Missing(_))));
}
