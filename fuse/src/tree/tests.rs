use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn grant(target: &str, version: u64) -> Grant {
    Grant {
        target: target.into(),
        secret: format!("secret of {target}"),
        version,
        uid: 7,
        gid: 8,
        mode: 0o440,
        size: 10 + version,
        mtime_ns: version as i64,
    }
}

fn walk(tree: &Tree, path: &str) -> Option<u64> {
    path.split('/').try_fold(ROOT, |at, name| tree.lookup(at, name).map(|found| found.ino))
}

fn names(tree: &Tree, path: &str) -> Vec<String> {
    let entries = tree.list(walk(tree, path).unwrap(), 0).unwrap();
    entries.into_iter().map(|entry| entry.name).collect()
}

#[test]
fn shows_targets_where_they_belong() {
    let set = [grant("b", 1), grant("tls/key", 1), grant("/etc/x.conf", 1), grant("a", 1)];
    let (tree, change) = Tree::new(5).deliver(&set).unwrap();
    assert_eq!(change.set, Some(1));
    assert_eq!(names(&tree, "secrets"), [".", "..", "b", "tls", "a"]);
    assert_eq!(names(&tree, "secrets/tls"), [".", "..", "key"]);
    assert_eq!(names(&tree, "abs"), [".", "..", "0"]);
    let bind = |source: &str, target: &str, directory| Bind {
        source: source.into(),
        target: target.into(),
        directory,
    };
    let expected = [bind("secrets", "/run/secrets", true), bind("abs/0", "/etc/x.conf", false)];
    assert_eq!(tree.binds(), expected);
    let file = tree.attributes(walk(&tree, "secrets/b").unwrap()).unwrap();
    assert_eq!((file.uid, file.gid, file.mode), (7, 8, 0o440));
    assert_eq!((file.size, file.blocks, file.nlink, file.mtime_ns), (11, 8, 1, 1));
    let dir = tree.attributes(walk(&tree, "secrets").unwrap()).unwrap();
    assert_eq!((dir.uid, dir.gid, dir.mode), (0, 0, 0o755));
    assert_eq!((dir.size, dir.blocks, dir.nlink, dir.mtime_ns), (4_096, 8, 3, 5));
}

#[test]
fn no_grants_need_no_binds() {
    assert_eq!(Tree::new(0).binds(), []);
    let (tree, change) = Tree::new(0).deliver(&[grant("/etc/only", 1)]).unwrap();
    assert_eq!((tree.binds().len(), change.set), (1, None));
}

#[test]
fn keeps_the_last_two_sets_unchanged() {
    let (tree, _) = Tree::new(0).deliver(&[grant("a", 1), grant("d/b", 1)]).unwrap();
    let (tree, change) = tree.deliver(&[grant("a", 2)]).unwrap();
    assert_eq!(change.set, Some(2));
    assert_eq!(tree.link(walk(&tree, "secrets/..current").unwrap()), Some("..2".into()));
    let version = |tree: &Tree, path| tree.grant(walk(tree, path).unwrap()).unwrap().version;
    assert_eq!(version(&tree, "secrets/..1/a"), 1);
    assert_eq!(version(&tree, "secrets/..2/a"), 2);
    assert_eq!(version(&tree, "secrets/..2/d/b"), 1);
    let first = walk(&tree, "secrets/..1").unwrap();
    let (tree, change) = tree.deliver(&[grant("d/b", 2)]).unwrap();
    assert_eq!(walk(&tree, "secrets/..1"), None);
    assert!(change.invalid.contains(&first));
    assert_eq!(change.gone.len(), 2);
    assert_eq!(version(&tree, "secrets/..2/d/b"), 1);
    assert_eq!(names(&tree, "secrets"), [".", "..", "a", "d"]);
    let (tree, change) = tree.forget_sets();
    assert_eq!((walk(&tree, "secrets/..2"), change.gone.len()), (None, 2));
    assert_eq!(version(&tree, "secrets/..3/a"), 2);
}

#[test]
fn says_what_became_of_each_grant() {
    let (tree, change) = Tree::new(0).deliver(&[grant("a", 1), grant("b", 1)]).unwrap();
    let placements = |change: &Change| -> Vec<Placement> {
        change.placed.iter().map(|&(_, placement)| placement).collect()
    };
    assert_eq!(placements(&change), [Placement::Added, Placement::Added]);
    let adjusted = Grant { mode: 0o400, ..grant("b", 1) };
    let (tree, change) = tree.deliver(&[grant("a", 2), adjusted.clone()]).unwrap();
    assert_eq!(placements(&change), [Placement::Replaced, Placement::Adjusted]);
    let (_, change) = tree.deliver(&[grant("a", 2), adjusted]).unwrap();
    assert_eq!(placements(&change), [Placement::Same, Placement::Same]);
    assert_eq!((change.set, change.invalid), (None, BTreeSet::new()));
}

#[test]
fn a_target_keeps_its_inode_through_revocation() {
    let set = [grant("a", 1), grant("/etc/b", 1)];
    let (before, _) = Tree::new(0).deliver(&set).unwrap();
    let (a, b) = (before.target("a").unwrap(), before.target("/etc/b").unwrap());
    let (tree, change) = before.revoke(&["a", "/etc/b", "unknown", "..odd"]);
    assert_eq!((tree.target("a"), tree.attributes(a), tree.grant(a)), (None, None, None));
    assert_eq!(names(&tree, "secrets"), [".", ".."]);
    assert_eq!(tree.binds(), []);
    assert_eq!(tree.revoked(a).map(|grant| grant.version), Some(1));
    assert_eq!(change.gone.len(), 3, "both files and the set's copy");
    let copy = walk(&before, "secrets/..1/a").unwrap();
    assert_eq!(tree.attributes(copy), None);
    let (_, again) = tree.revoke(&["a", "/etc/b"]);
    assert!(again.gone.is_empty() && [a, b, copy].iter().all(|ino| again.invalid.contains(ino)));
    let (tree, change) = tree.deliver(&set).unwrap();
    assert_eq!((tree.target("a"), tree.target("/etc/b")), (Some(a), Some(b)));
    assert_eq!(change.placed, [(a, Placement::Returned), (b, Placement::Returned)]);
}

#[test]
fn refuses_what_makes_no_tree() {
    let (tree, _) = Tree::new(0).deliver(&[grant("a", 3), grant("/etc/d/f", 1)]).unwrap();
    let refused = |set: &[Grant]| tree.deliver(set).unwrap_err();
    let path = |path: &str| path.to_owned();
    assert_eq!(
        refused(&[grant("x", 1), grant("./x", 1)]),
        TreeError::Duplicate { target: path("/run/secrets/x") }
    );
    assert_eq!(
        refused(&[grant("a/b", 1)]),
        TreeError::Conflict { target: path("/run/secrets/a/b") }
    );
    assert_eq!(refused(&[grant("/etc/d", 1)]), TreeError::Conflict { target: path("/etc/d") });
    assert_eq!(
        refused(&[grant("a", 2)]),
        TreeError::Older { target: path("/run/secrets/a"), held: 3, offered: 2 }
    );
    assert_eq!(
        refused(&[grant("..1", 1)]),
        TreeError::Target { target: path("..1"), source: TargetError::Reserved }
    );
    let many: Vec<Grant> = (0..64).map(|i| grant(&format!("n{i}"), 1)).collect();
    assert!(matches!(refused(&many), TreeError::TooMuch { what: "grants", .. }));
    let shared = |target: &str| Grant { secret: "s".into(), size: 9 << 20, ..grant(target, 1) };
    assert!(tree.deliver(&[shared("x"), shared("y")]).is_ok(), "held once, shown twice");
    let huge = Grant { size: 16 << 20, ..grant("x", 1) };
    assert!(matches!(refused(&[huge]), TreeError::TooMuch { what: "bytes", .. }));
    let other = Grant { secret: "another".into(), ..grant("a", 1) };
    assert!(tree.deliver(&[other]).is_ok(), "versions of another secret do not compare");
}

#[derive(Clone, Debug)]
enum Step {
    Deliver(Vec<(usize, u64)>),
    Revoke(usize),
    Forget,
}

const TARGETS: [&str; 8] =
    ["a", "b", "d/x", "d/y", "d/e/z", "/etc/one", "/etc/two", "/run/secrets/q"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let set = proptest::collection::vec((0..TARGETS.len(), 1u64..5), 1..6);
    let step = prop_oneof![
        4 => set.prop_map(Step::Deliver),
        1 => (0..TARGETS.len()).prop_map(Step::Revoke),
        1 => Just(Step::Forget),
    ];
    proptest::collection::vec(step, 1..30)
}

fn check(tree: &Tree) -> Result<(), TestCaseError> {
    let mut reached = BTreeSet::from([ROOT]);
    let mut queue = vec![ROOT];
    while let Some(dir) = queue.pop() {
        let entries = tree.list(dir, 0).unwrap();
        prop_assert_eq!(entries[0].ino, dir);
        prop_assert!(entries.windows(2).all(|pair| pair[0].cookie < pair[1].cookie));
        for (i, entry) in entries.iter().enumerate() {
            prop_assert_eq!(tree.list(dir, entry.cookie).unwrap(), entries[i + 1..].to_vec());
        }
        for entry in &entries[2..] {
            let found = tree.lookup(dir, &entry.name).unwrap();
            prop_assert_eq!((found.ino, found.kind), (entry.ino, entry.kind));
            prop_assert_eq!(tree.attributes(entry.ino), Some(found));
            prop_assert!(!entry.name.starts_with(".."));
            prop_assert!(reached.insert(entry.ino), "reached twice");
            let path = tree.path(entry.ino).unwrap();
            prop_assert_eq!(walk(tree, path.to_str().unwrap()), Some(entry.ino));
            if entry.kind == NodeKind::Directory {
                queue.push(entry.ino);
            }
        }
    }
    for ino in tree.granted() {
        prop_assert!(reached.contains(&ino));
    }
    Ok(())
}

proptest! {
    #[test]
    fn lookup_and_listing_agree(steps in steps()) {
        let mut tree = Tree::new(0);
        for step in steps {
            let before = tree.clone();
            let change = match step {
                Step::Deliver(set) => {
                    let grants: Vec<Grant> =
                        set.iter().map(|&(target, version)| grant(TARGETS[target], version)).collect();
                    match tree.deliver(&grants) {
                        Ok((next, change)) => {
                            tree = next;
                            for (grant, (ino, _)) in grants.iter().zip(&change.placed) {
                                prop_assert_eq!(&**tree.grant(*ino).unwrap(), grant);
                                prop_assert_eq!(tree.target(&grant.target), Some(*ino));
                            }
                            change
                        }
                        Err(_) => Change::default(),
                    }
                }
                Step::Revoke(target) => {
                    let (next, change) = tree.revoke(&[TARGETS[target]]);
                    tree = next;
                    prop_assert_eq!(tree.target(TARGETS[target]), None);
                    change
                }
                Step::Forget => {
                    let (next, change) = tree.forget_sets();
                    tree = next;
                    change
                }
            };
            check(&tree)?;
            for ino in before.inodes() {
                let same = before.attributes(ino) == tree.attributes(ino);
                prop_assert!(same || change.invalid.contains(&ino), "{} changed unseen", ino);
                let gone = before.grant(ino).is_some() && tree.grant(ino).is_none();
                prop_assert_eq!(gone, change.gone.contains(&ino));
            }
        }
    }
}
