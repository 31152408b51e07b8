use std::convert::Infallible;

use super::*;
use crate::vault::{Vault, VaultKind};

struct World {
    vault: Vault,
    files: Files,
}

impl World {
    fn new() -> World {
        let vault = Vault::new(VaultKind::Mlock, 1 << 20).unwrap();
        World { vault, files: Files::new(0) }
    }

    fn member(&self, name: &str, version: u64) -> (Grant, Arc<Slot>) {
        let text = format!("{name} {version}");
        let fill = |slot: &mut [u8]| {
            slot.copy_from_slice(text.as_bytes());
            Ok::<(), Infallible>(())
        };
        let slot = self.vault.store(text.len(), fill).unwrap();
        let grant = Grant {
            target: name.into(),
            secret: name.into(),
            version,
            uid: 0,
            gid: 0,
            mode: 0o444,
            size: text.len() as u64,
            mtime_ns: 0,
        };
        (grant, Arc::new(slot))
    }

    fn deliver(&mut self, set: &[(&str, u64)]) {
        let set = set.iter().map(|&(name, version)| self.member(name, version)).collect();
        self.files.deliver(set).unwrap();
        self.files.settle();
    }

    fn open(&mut self, name: &str) -> u64 {
        let ino = self.files.tree().target(name).unwrap();
        self.open_ino(ino)
    }

    /// Opens a file of the current set.
    fn open_current(&mut self, name: &str) -> u64 {
        let tree = self.files.tree();
        let secrets = tree.lookup(crate::tree::ROOT, "secrets").unwrap().ino;
        let link = tree.lookup(secrets, "..current").unwrap().ino;
        let set = tree.lookup(secrets, &tree.link(link).unwrap()).unwrap().ino;
        let ino = tree.lookup(set, name).unwrap().ino;
        assert_ne!(Some(ino), tree.target(name));
        self.open_ino(ino)
    }

    fn open_ino(&mut self, ino: u64) -> u64 {
        match self.files.open(ino, Access::Read) {
            Open::Handle(fh, Some(_)) => fh,
            other => panic!("{other:?}"),
        }
    }

    fn text(&self, fh: u64) -> Result<String, Refusal> {
        self.files.read(fh, false).map(|slot| text(&slot))
    }
}

fn text(slot: &Slot) -> String {
    let mut bytes = vec![0; slot.len()];
    slot.read_into(0, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_handle_pins_the_version_it_opened() {
    let mut world = World::new();
    world.deliver(&[("a", 1)]);
    let old = world.open("a");
    world.deliver(&[("a", 2)]);
    let new = world.open("a");
    assert_eq!((world.text(old), world.text(new)), (Ok("a 1".into()), Ok("a 2".into())));
    let mapped = world.files.read(old, true).map(|slot| text(&slot));
    assert_eq!(mapped, Ok("a 2".into()), "the page cache is shared by all handles");
}

#[test]
fn the_third_replaced_version_is_stale_and_its_bytes_are_gone() {
    let mut world = World::new();
    world.deliver(&[("a", 1)]);
    let mut handles = vec![world.open("a")];
    for version in 2..=4 {
        world.deliver(&[("a", version)]);
        handles.push(world.open("a"));
    }
    let texts: Vec<_> = handles.iter().map(|&fh| world.text(fh)).collect();
    let some = |text: &str| Ok(text.to_owned());
    assert_eq!(texts, [Err(Refusal::Stale), some("a 2"), some("a 3"), some("a 4")]);
    assert_eq!(world.vault.used(), 3 * 64);
    world.files.forget_old();
    let texts: Vec<_> = handles.iter().map(|&fh| world.text(fh)).collect();
    let stale = || Err(Refusal::Stale);
    assert_eq!(texts, [stale(), stale(), stale(), some("a 4")]);
    assert_eq!(world.vault.used(), 64);
}

#[test]
fn a_handle_outlives_the_set_it_was_opened_in_but_no_revocation() {
    let mut world = World::new();
    world.deliver(&[("a", 1), ("b", 1)]);
    let handles = [world.open("a"), world.open_current("a"), world.open_current("b")];
    let some = |text: &str| Ok(text.to_owned());
    let texts = |world: &World| handles.map(|fh| world.text(fh));
    for version in 2..=3 {
        world.deliver(&[("a", version)]);
        world.open_current("a");
        assert_eq!(texts(&world), [some("a 1"), some("a 1"), some("b 1")]);
    }
    let mapped = handles.map(|fh| world.files.read(fh, true).map(|slot| text(&slot)));
    let gone = || Err(Refusal::Gone);
    assert_eq!(mapped, [some("a 3"), gone(), gone()], "their set is gone");
    world.deliver(&[("a", 4)]);
    assert_eq!(texts(&world), [Err(Refusal::Stale), Err(Refusal::Stale), some("b 1")]);
    world.files.revoke(&["b"]);
    assert_eq!(world.text(handles[2]), gone());
}

#[test]
fn a_version_nobody_holds_goes_with_its_set() {
    let mut world = World::new();
    for version in 1..=5 {
        world.deliver(&[("a", version)]);
        let sets = usize::min(version as usize, 2);
        assert_eq!(world.vault.used(), sets * 64, "the current and the previous set's");
    }
    let fh = world.open("a");
    world.deliver(&[("a", 6)]);
    world.deliver(&[("a", 7)]);
    assert_eq!(world.vault.used(), 3 * 64);
    world.files.release(fh);
    assert_eq!(world.vault.used(), 2 * 64);
}

#[test]
fn opens_wait_until_the_kernel_has_forgotten() {
    let mut world = World::new();
    world.deliver(&[("a", 1)]);
    let ino = world.files.tree().target("a").unwrap();
    let set = vec![world.member("a", 2)];
    world.files.deliver(set).unwrap();
    assert!(matches!(world.files.open(ino, Access::Read), Open::Wait));
    world.files.settle();
    let fh = world.open("a");
    assert_eq!(world.text(fh), Ok("a 2".into()));
    let same = vec![world.member("a", 2)];
    assert_eq!(world.files.deliver(same).unwrap().invalid.len(), 0);
    assert!(matches!(world.files.open(ino, Access::Read), Open::Handle(..)));
}

#[test]
fn revocation_reaches_open_handles_and_sets() {
    let mut world = World::new();
    world.deliver(&[("a", 1), ("b", 1)]);
    let (a, b) = (world.open("a"), world.open("b"));
    let ino = world.files.tree().target("a").unwrap();
    world.files.revoke(&["a"]);
    assert_eq!((world.text(a), world.text(b)), (Err(Refusal::Gone), Ok("b 1".into())));
    assert_eq!(world.files.read(a, true).map(|_| ()), Err(Refusal::Gone));
    assert_eq!(world.vault.used(), 64, "revoked bytes are zeroed at once");
    let refused = world.files.open(ino, Access::Read);
    assert!(matches!(refused, Open::Refused(Refusal::Gone, Some(grant)) if grant.version == 1));
    world.deliver(&[("a", 1)]);
    assert_eq!(world.text(a), Err(Refusal::Gone), "an old handle does not come back");
    let again = world.open("a");
    assert_eq!(world.text(again), Ok("a 1".into()));
}

#[test]
fn refuses_everything_at_the_end() {
    let mut world = World::new();
    world.deliver(&[("a", 1)]);
    let fh = world.open("a");
    let ino = world.files.tree().target("a").unwrap();
    world.files.refuse_all();
    assert_eq!(world.text(fh), Err(Refusal::Gone));
    assert!(matches!(world.files.open(ino, Access::Read), Open::Refused(Refusal::Gone, _)));
    assert_eq!((world.files.attributes(ino), world.files.lookup(2, "a")), (None, None));
    assert_eq!(world.files.list(2, 0).unwrap().len(), 2);
    assert_eq!(world.vault.used(), 0);
}

#[test]
fn handles_are_bounded_and_used_again() {
    let mut world = World::new();
    world.deliver(&[("a", 1)]);
    let ino = world.files.tree().target("a").unwrap();
    let handles: Vec<u64> = (0..limits::HANDLES).map(|_| world.open("a")).collect();
    assert!(matches!(
        world.files.open(ino, Access::Read),
        Open::Refused(Refusal::TooManyHandles, Some(_))
    ));
    world.files.release(handles[17]);
    assert_eq!(world.open("a"), handles[17]);
}

#[test]
fn nonsense_from_the_kernel_is_refused() {
    let mut world = World::new();
    world.deliver(&[("a", 1)]);
    let fh = world.open("a");
    for fh in [fh + 1, u64::MAX] {
        assert_eq!(world.text(fh), Err(Refusal::BadHandle));
        world.files.release(fh);
    }
    world.files.release(fh);
    world.files.release(fh);
    assert_eq!(world.text(fh), Err(Refusal::BadHandle));
    assert!(matches!(world.files.open(1, Access::Read), Open::Refused(Refusal::IsDirectory, None)));
    assert!(matches!(world.files.open(999, Access::Read), Open::Refused(Refusal::Gone, None)));
}

#[test]
fn a_touch_reads_nothing_and_counts_as_no_read() {
    let mut world = World::new();
    world.deliver(&[("a", 1)]);
    let reader = world.open("a");
    let ino = world.files.tree().target("a").unwrap();
    let Open::Handle(fh, None) = world.files.open(ino, Access::Touch) else { panic!() };
    assert_eq!(world.files.touch(fh), Ok(()));
    assert_eq!(world.text(fh), Err(Refusal::BadHandle));
    assert_eq!(world.files.touch(reader), Err(Refusal::BadHandle));
}
