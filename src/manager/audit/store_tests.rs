use super::*;
use crate::audit::testing::{chain, id};

const KEY: [u8; 32] = [9; 32];
const SMALL: Bounds = Bounds { segment_bytes: 2_000, bytes: 6_000, kept: Span(1_000_000_000_000) };

fn store(dir: &Path, bounds: Bounds) -> Store {
    Store::new(dir.to_owned(), Zeroizing::new(KEY), bounds)
}

fn portion(task: u8, bodies: &[ByteVec]) -> Portion {
    Portion { node: id(1), task: id(task), bodies: bodies.to_vec() }
}

/// Everything that matches, page by page.
fn all(store: &Store, query: &AuditQuery) -> Vec<(TaskId, ByteVec)> {
    let (mut from, mut found) = (Mark::default(), Vec::new());
    loop {
        let page = store.page(query, from).unwrap();
        for portion in page.portions {
            found.extend(portion.bodies.into_iter().map(|body| (portion.task, body)));
        }
        if page.is_last {
            return found;
        }
        assert!(page.next > from);
        from = page.next;
    }
}

fn of(task: u8, bodies: &[ByteVec]) -> Vec<(TaskId, ByteVec)> {
    bodies.iter().map(|body| (id(task), body.clone())).collect()
}

#[test]
fn records_are_kept_once_and_found_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (chain(&id(1), id(7), 5), chain(&id(2), id(8), 2));
    let first = store(dir.path(), Bounds::default());
    first.append(&[portion(1, &one[..3]), portion(2, &two)], Stamp(0)).unwrap();
    first.append(&[portion(1, &one[1..4])], Stamp(0)).unwrap();
    let again = store(dir.path(), Bounds::default());
    again.append(&[portion(1, &one)], Stamp(0)).unwrap();
    for store in [&first, &again] {
        let any = all(store, &AuditQuery::default());
        let expected = [of(1, &one[..3]), of(2, &two), of(1, &one[3..4])].concat();
        assert_eq!(any[..6], expected);
    }
    let any = AuditQuery::default();
    assert_eq!(all(&again, &AuditQuery { task: Some(id(1)), ..any.clone() }), of(1, &one));
    assert_eq!(all(&again, &AuditQuery { material: Some(id(8)), ..any.clone() }), of(2, &two));
    assert_eq!(all(&again, &AuditQuery { node: Some(id(9)), ..any.clone() }), []);
    let late = AuditQuery { since: Stamp(4_000_000_000), ..any };
    assert_eq!(all(&again, &late), of(1, &one[3..]));
}

#[test]
fn nothing_of_a_record_is_legible_on_the_disk_or_under_another_key() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = chain(&id(1), id(7), 3);
    store(dir.path(), SMALL).append(&[portion(1, &bodies)], Stamp(0)).unwrap();
    let bytes = fs::read(dir.path().join(format!("{:016}", 1))).unwrap();
    assert!(!bytes.windows(8).any(|part| part == b"/bin/app"));
    let other = Store::new(dir.path().to_owned(), Zeroizing::new([1; 32]), SMALL);
    assert_eq!(all(&other, &AuditQuery::default()), []);
}

#[test]
fn what_is_behind_an_end_is_found_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = chain(&id(1), id(7), 40);
    let store = store(dir.path(), SMALL);
    let mut from = store.end().unwrap();
    for body in &bodies {
        store.append(&[portion(1, std::slice::from_ref(body))], Stamp(0)).unwrap();
        let page = store.page(&AuditQuery::default(), from).unwrap();
        assert_eq!(page.portions, [portion(1, std::slice::from_ref(body))]);
        from = page.next;
    }
    assert_eq!(store.end().unwrap(), from);
}

#[test]
fn too_much_and_too_old_goes_and_the_horizon_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = chain(&id(1), id(7), 60);
    let store = store(dir.path(), SMALL);
    for body in &bodies {
        store.append(&[portion(1, std::slice::from_ref(body))], Stamp(0)).unwrap();
    }
    let left = all(&store, &AuditQuery::default());
    assert!(left.len() < 40 && left.len() > 5);
    assert_eq!(left, of(1, &bodies[60 - left.len()..]));
    let sizes = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
    assert!(sizes.sum::<u64>() <= SMALL.bytes + SMALL.segment_bytes);
    let horizon = store.page(&AuditQuery::default(), Mark::default()).unwrap().horizon;
    assert_eq!(horizon, Head::parse(&bodies[59 - left.len()]).unwrap().at);
    // Later all but the last segment is too old.
    store.append(&[], Stamp(u64::MAX)).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Wherever a crash cuts the last segment off: what is whole is there, and what comes next is kept.
#[test]
fn a_torn_end_is_cut_off() {
    let bodies = chain(&id(1), id(7), 3);
    let whole = tempfile::tempdir().unwrap();
    let mut ends = Vec::new();
    let first = store(whole.path(), Bounds::default());
    for body in &bodies[..2] {
        first.append(&[portion(1, std::slice::from_ref(body))], Stamp(0)).unwrap();
        ends.push(first.end().unwrap().offset);
    }
    let name = format!("{:016}", 1);
    let bytes = fs::read(whole.path().join(&name)).unwrap();
    for cut in (0..=bytes.len()).step_by(7) {
        for tail in [0, 40] {
            let dir = tempfile::tempdir().unwrap();
            let torn = [&bytes[..cut], &vec![0; tail]].concat();
            fs::write(dir.path().join(&name), torn).unwrap();
            let store = store(dir.path(), Bounds::default());
            let kept = ends.iter().filter(|end| **end <= cut as u64).count();
            assert_eq!(all(&store, &AuditQuery::default()), of(1, &bodies[..kept]), "{cut}");
            store.append(&[portion(1, &bodies)], Stamp(0)).unwrap();
            assert_eq!(all(&store, &AuditQuery::default()), of(1, &bodies), "{cut}");
        }
    }
}

#[test]
fn what_is_no_audit_is_left_out_alone() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = chain(&id(2), id(7), 2);
    let store = store(dir.path(), Bounds::default());
    let nonsense = Portion { bodies: vec![b"x".to_vec().into()], ..portion(1, &[]) };
    let gaps: Vec<_> = chain(&id(3), id(7), 200).into_iter().step_by(2).collect();
    store.append(&[nonsense, portion(3, &gaps), portion(2, &bodies)], Stamp(0)).unwrap();
    assert_eq!(all(&store, &AuditQuery::default()), of(2, &bodies));
}

#[test]
fn frames_that_change_places_do_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let store_of = || store(dir.path(), Bounds::default());
    let bodies = chain(&id(1), id(7), 2);
    let first = store_of();
    for body in &bodies {
        first.append(&[portion(1, std::slice::from_ref(body))], Stamp(0)).unwrap();
    }
    let path = dir.path().join(format!("{:016}", 1));
    let bytes = fs::read(&path).unwrap();
    let (one, two) = bytes.split_at(bytes.len() / 2);
    fs::write(&path, [two, one].concat()).unwrap();
    assert_eq!(all(&store_of(), &AuditQuery::default()), []);
}
