use super::*;
use crate::audit::testing::{chain, id};

const KEY: [u8; 32] = [9; 32];
/// After all that tests write.
const NOW: Stamp = Stamp(500_000_000_000);
const SMALL: Bounds = Bounds {
    segment_bytes: 2_000,
    bytes: 6_000,
    kept: Span(1_000_000_000_000),
    read_bytes: 10_000,
};

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
    first.append(&[portion(1, &one[..3]), portion(2, &two)], NOW).unwrap();
    first.append(&[portion(1, &one[1..4])], NOW).unwrap();
    let again = store(dir.path(), Bounds::default());
    again.append(&[portion(1, &one)], NOW).unwrap();
    for store in [&first, &again] {
        let any = all(store, &AuditQuery::default());
        let expected = [of(1, &one[..3]), of(2, &two), of(1, &one[3..4])].concat();
        assert_eq!(any[..6], expected);
    }
    let any = AuditQuery::default();
    assert_eq!(all(&again, &AuditQuery { tasks: vec![id(1)], ..any.clone() }), of(1, &one));
    assert_eq!(all(&again, &AuditQuery { material: Some(id(8)), ..any.clone() }), of(2, &two));
    assert_eq!(all(&again, &AuditQuery { node: Some(id(9)), ..any.clone() }), []);
    let late = AuditQuery { since: Stamp(4_000_000_000), ..any };
    assert_eq!(all(&again, &late), of(1, &one[3..]));
}

#[test]
fn nothing_of_a_record_is_legible_on_the_disk_or_under_another_key() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = chain(&id(1), id(7), 3);
    store(dir.path(), SMALL).append(&[portion(1, &bodies)], NOW).unwrap();
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
        store.append(&[portion(1, std::slice::from_ref(body))], NOW).unwrap();
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
        store.append(&[portion(1, std::slice::from_ref(body))], NOW).unwrap();
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
    let left = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let segments = left.filter(|name| name != "horizon");
    assert_eq!(segments.count(), 1);
}

/// Wherever a crash cuts the last segment off: what is whole is there, and what comes next is kept.
#[test]
fn a_torn_end_is_cut_off() {
    let bodies = chain(&id(1), id(7), 3);
    let whole = tempfile::tempdir().unwrap();
    let mut ends = Vec::new();
    let first = store(whole.path(), Bounds::default());
    for body in &bodies[..2] {
        first.append(&[portion(1, std::slice::from_ref(body))], NOW).unwrap();
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
            store.append(&[portion(1, &bodies)], NOW).unwrap();
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
    store.append(&[nonsense, portion(3, &gaps), portion(2, &bodies)], NOW).unwrap();
    assert_eq!(all(&store, &AuditQuery::default()), of(2, &bodies));
}

#[test]
fn frames_that_change_places_do_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let store_of = || store(dir.path(), Bounds::default());
    let bodies = chain(&id(1), id(7), 2);
    let first = store_of();
    for body in &bodies {
        first.append(&[portion(1, std::slice::from_ref(body))], NOW).unwrap();
    }
    let path = dir.path().join(format!("{:016}", 1));
    let bytes = fs::read(&path).unwrap();
    let (one, two) = bytes.split_at(bytes.len() / 2);
    fs::write(&path, [two, one].concat()).unwrap();
    assert_eq!(all(&store_of(), &AuditQuery::default()), []);
}

fn read(material: u8, store: &Store) -> Option<(Stamp, TaskId)> {
    store.last_read(&id(material)).unwrap().map(|read| (read.at, read.task))
}

/// A record with one read at this time.
fn read_at(task: u8, material: u8, at: u64) -> ByteVec {
    let body = &chain(&id(task), id(material), 1)[0];
    let mut record = crate::audit::Record::parse(body).unwrap();
    (record.sequence, record.at, record.rows[0].last) = (at, Stamp(at), Stamp(at));
    record.to_body()
}

#[test]
fn the_last_read_is_known_also_of_an_earlier_start_and_of_what_came_late() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { segment_bytes: 500, ..Bounds::default() };
    let first = store(dir.path(), bounds);
    assert_eq!(read(7, &first), None);
    for (task, material, at) in [(1, 7, 30), (1, 8, 31), (2, 7, 20), (2, 9, 21), (2, 7, 22)] {
        first.append(&[portion(task, &[read_at(task, material, at)])], NOW).unwrap();
    }
    assert!(fs::read_dir(dir.path()).unwrap().count() > 2);
    let again = store(dir.path(), bounds);
    for store in [&first, &again] {
        assert_eq!(read(7, store), Some((Stamp(30), id(1))));
        assert_eq!(read(9, store), Some((Stamp(21), id(2))));
        assert_eq!(read(8, store), Some((Stamp(31), id(1))));
        assert_eq!(read(6, store), None);
    }
    again.append(&[portion(3, &[read_at(3, 8, 40)])], NOW).unwrap();
    assert_eq!(read(8, &again), Some((Stamp(40), id(3))));
    let mut refused = crate::audit::Record::parse(&read_at(3, 8, 50)).unwrap();
    refused.rows[0].opened = 0;
    again.append(&[portion(3, &[refused.to_body()])], NOW).unwrap();
    assert_eq!(read(8, &again), Some((Stamp(40), id(3))));
}

#[test]
fn what_another_keeps_is_compared_and_copied_once() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (own, other) = (store(dir.path(), SMALL), store(other_dir.path(), Bounds::default()));
    let bodies = chain(&id(1), id(7), 9);
    own.append(&[portion(1, &bodies[..4])], NOW).unwrap();
    other.append(&[portion(1, &bodies[2..4])], NOW).unwrap();
    let heads = other.heads(Mark::default()).unwrap();
    assert!(heads.is_last && heads.next == other.end().unwrap());
    assert!(!own.lacks_any(&heads).unwrap());
    other.append(&[portion(1, &bodies[6..])], NOW).unwrap();
    let more = other.heads(heads.next).unwrap();
    assert_eq!((more.held.len(), &more.held[0].runs), (1, &vec![(7, 9)]));
    assert!(own.lacks_any(&more).unwrap());
    let page = other.page(&AuditQuery::default(), heads.next).unwrap();
    own.append_copies(&page.portions, NOW).unwrap();
    assert!(!own.lacks_any(&more).unwrap());
    let expected = [of(1, &bodies[..4]), of(1, &bodies[6..])].concat();
    assert_eq!(all(&own, &AuditQuery::default()), expected);
    // One who follows has seen them elsewhere.
    let first_hand = AuditQuery { is_first_hand: true, ..AuditQuery::default() };
    assert_eq!(all(&own, &first_hand), of(1, &bodies[..4]));
    // A place that is gone is the beginning.
    let gone = Mark { segment: 9, offset: 1 };
    assert_eq!(other.heads(gone).unwrap().from, Mark::default());
}

#[test]
fn what_was_dropped_is_not_copied_again_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = chain(&id(1), id(7), 60);
    let first = store(dir.path(), SMALL);
    for body in &bodies {
        first.append(&[portion(1, std::slice::from_ref(body))], NOW).unwrap();
    }
    let other_dir = tempfile::tempdir().unwrap();
    let other = store(other_dir.path(), Bounds::default());
    other.append(&[portion(1, &bodies[..10])], NOW).unwrap();
    let heads = other.heads(Mark::default()).unwrap();
    for own in [first, store(dir.path(), SMALL)] {
        assert!(!own.lacks_any(&heads).unwrap());
        let before = all(&own, &AuditQuery::default());
        own.append_copies(&[portion(1, &bodies[..10])], NOW).unwrap();
        assert_eq!(all(&own, &AuditQuery::default()), before);
    }
}

/// Wherever in the first piece of a segment a byte was changed, in the last segment and in one
/// before it: the others are there, it is told, and its record can come again.
#[test]
fn a_piece_that_does_not_open_is_counted_and_costs_no_other() {
    let bodies = chain(&id(1), id(7), 30);
    let (any, bounds) =
        (AuditQuery::default(), Bounds { segment_bytes: 2_000, ..Bounds::default() });
    let dir = tempfile::tempdir().unwrap();
    let first = store(dir.path(), bounds);
    for body in &bodies {
        first.append(&[portion(1, std::slice::from_ref(body))], NOW).unwrap();
    }
    assert_eq!(first.page(&any, Mark::default()).unwrap().damaged, 0);
    let (last, whole) = (first.end().unwrap().segment, all(&first, &any));
    for segment in [1, last] {
        let path = dir.path().join(format!("{segment:016}"));
        let bytes = fs::read(&path).unwrap();
        let before = if segment == 1 { 0 } else { whole.len() - count_of(&first, segment) };
        for at in [0, 3, 8, 180] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            let store = store(dir.path(), bounds);
            assert!(store.page(&any, Mark::default()).unwrap().damaged > 0, "{segment} {at}");
            let mut left = whole.clone();
            let lost = left.remove(before);
            assert_eq!(numbers(&all(&store, &any)), numbers(&left), "{segment} {at}");
            // What is missing is known to be, but for what only its seal would tell.
            if segment == last || at < 180 {
                store.append(&[portion(1, std::slice::from_ref(&lost.1))], NOW).unwrap();
                let all = numbers(&all(&store, &any));
                assert_eq!(all, numbers(&[left, vec![lost]].concat()), "{segment} {at}");
            }
            let appended = dir.path().join(format!("{last:016}"));
            if segment == 1 && at < 180 {
                // As it was.
                let kept = fs::read(&appended).unwrap();
                let end = usize::try_from(first.end().unwrap().offset).unwrap();
                fs::write(&appended, &kept[..end]).unwrap();
            }
            fs::write(&path, &bytes).unwrap();
        }
    }
}

fn numbers(found: &[(TaskId, ByteVec)]) -> Vec<u64> {
    found.iter().map(|(_, body)| Head::parse(body).unwrap().sequence).collect()
}

/// Records in a segment.
fn count_of(store: &Store, segment: u64) -> usize {
    let page = store.page(&AuditQuery::default(), Mark { segment, offset: 0 }).unwrap();
    page.portions.iter().map(|portion| portion.bodies.len()).sum()
}

/// One node's clock is ahead by years: what others wrote is dropped at its time, and copied.
#[test]
fn a_clock_that_is_ahead_on_one_node_drops_and_keeps_nothing_else() {
    let ahead = u64::MAX / 2;
    let dir = tempfile::tempdir().unwrap();
    let own = store(dir.path(), SMALL);
    own.append(&[portion(2, &[read_at(2, 8, ahead)])], NOW).unwrap();
    for body in &chain(&id(1), id(7), 60) {
        own.append(&[portion(1, std::slice::from_ref(body))], NOW).unwrap();
    }
    let horizon = own.page(&AuditQuery::default(), Mark::default()).unwrap().horizon;
    assert!(horizon > Stamp(0) && horizon <= NOW, "{horizon:?}");
    // What another keeps since is still lacking, and copied.
    let later = Stamp(NOW.0 + 1_000);
    let other_dir = tempfile::tempdir().unwrap();
    let other = store(other_dir.path(), Bounds::default());
    let missed = [read_at(3, 9, later.0)];
    other.append(&[portion(3, &missed)], later).unwrap();
    let heads = other.heads(Mark::default()).unwrap();
    assert!(own.lacks_any(&heads).unwrap());
    own.append_copies(&[portion(3, &missed)], later).unwrap();
    assert!(!own.lacks_any(&heads).unwrap());
    assert_eq!(read(9, &own), Some((later, id(3))));
    // With its time all goes that came with it.
    own.append(&[portion(2, &[read_at(2, 8, ahead + 1)])], later).unwrap();
    let old = Stamp(later.0 + SMALL.kept.0 + 1);
    own.append(&[], old).unwrap();
    let left = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.filter(|name| name != "horizon").count(), 1);
}

/// What this node wrote while its own clock was ahead.
#[test]
fn times_ahead_that_an_earlier_start_left_are_taken_as_now() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = [read_at(1, 7, u64::MAX - 1), read_at(1, 7, u64::MAX)];
    let bounds = Bounds { segment_bytes: 1, ..SMALL };
    for body in &bodies {
        let first = store(dir.path(), bounds);
        first.append(&[portion(1, std::slice::from_ref(body))], Stamp(u64::MAX)).unwrap();
    }
    fs::write(dir.path().join(HORIZON_FILE), u64::MAX.to_string()).unwrap();
    let again = store(dir.path(), bounds);
    let page = again.page(&AuditQuery::default(), Mark::default()).unwrap();
    assert!(page.horizon <= crate::clock::now(), "{:?}", page.horizon);
    let later = crate::clock::now();
    again.append(&[], Stamp(later.0 + bounds.kept.0 + 1)).unwrap();
    let left = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.filter(|name| name != "horizon").count(), 1);
}

/// Puts something in a segment's place that cannot be opened, and hands back what was there.
fn block(dir: &Path, segment: u64) -> Vec<u8> {
    let path = dir.join(format!("{segment:016}"));
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    bytes
}

fn unblock(dir: &Path, segment: u64, bytes: &[u8]) {
    let path = dir.join(format!("{segment:016}"));
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
}

#[test]
fn a_segment_that_cannot_be_opened_is_not_taken_for_one_that_was_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let bodies = chain(&id(1), id(7), 30);
    let store = store(dir.path(), Bounds { segment_bytes: 2_000, ..Bounds::default() });
    for body in &bodies {
        store.append(&[portion(1, std::slice::from_ref(body))], NOW).unwrap();
    }
    let any = AuditQuery::default();
    let bytes = block(dir.path(), 1);
    assert!(store.page(&any, Mark::default()).is_err());
    assert!(store.heads(Mark::default()).is_err());
    unblock(dir.path(), 1, &bytes);
    assert_eq!(all(&store, &any), of(1, &bodies));
    // As if it was dropped since it was looked up.
    fs::remove_file(dir.path().join(format!("{:016}", 1))).unwrap();
    assert!(store.page(&any, Mark::default()).is_ok() && store.heads(Mark::default()).is_ok());
}

#[test]
fn a_segment_that_could_not_be_looked_at_is_looked_at_again_for_the_last_read() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { segment_bytes: 1, ..Bounds::default() };
    let first = store(dir.path(), bounds);
    for (material, at) in [(7, 30), (8, 31)] {
        first.append(&[portion(1, &[read_at(1, material, at)])], NOW).unwrap();
    }
    let again = store(dir.path(), bounds);
    again.end().unwrap();
    let bytes = block(dir.path(), 1);
    assert!(again.last_read(&id(7)).is_err());
    assert!(again.last_read(&id(7)).is_err());
    assert_eq!(read(8, &again), Some((Stamp(31), id(1))));
    unblock(dir.path(), 1, &bytes);
    assert_eq!(read(7, &again), Some((Stamp(30), id(1))));
}

#[test]
fn a_page_ends_also_when_nothing_in_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { read_bytes: 4_000, ..Bounds::default() };
    let (others, own) = (chain(&id(1), id(7), 100), chain(&id(2), id(7), 1));
    let store = store(dir.path(), bounds);
    for body in &others {
        store.append(&[portion(1, std::slice::from_ref(body))], NOW).unwrap();
    }
    store.append(&[portion(2, &own)], NOW).unwrap();
    let query = AuditQuery { tasks: vec![id(2)], ..AuditQuery::default() };
    let page = store.page(&query, Mark::default()).unwrap();
    assert!(!page.is_last && page.portions.is_empty(), "{page:?}");
    assert!((4_000..8_000).contains(&page.next.offset), "{page:?}");
    assert_eq!(all(&store, &query), of(2, &own));
}
