use minicbor::bytes::ByteVec;
use skep_core::id::{ENTROPY_LEN, Id, TaskId};
use skep_core::model::material::MaterialKind;

use super::*;
use crate::audit::{Finding, Next, next, verify};
use crate::wire::launch::LaunchFile;

const KEY: [u8; 32] = [3; 32];

fn id<K>(seed: u8) -> Id<K> {
    Id::from_entropy([seed; ENTROPY_LEN])
}

fn task() -> TaskId {
    id(1)
}

fn launch(dir: &Path) -> Launch {
    let file = LaunchFile {
        material: id(2),
        kind: MaterialKind::Secret,
        name: "db".to_owned(),
        target: "db".to_owned(),
        uid: 0,
        gid: 0,
        mode: 0o444,
        signal: None,
    };
    Launch {
        task: task(),
        cluster: id(3),
        node: id(4),
        container_id: String::new(),
        bundle: String::new(),
        layers: Vec::new(),
        user: String::new(),
        groups: Vec::new(),
        files: vec![file],
        task_dir: dir.to_string_lossy().into_owned(),
        run_dir: String::new(),
        runc_root: String::new(),
        runtime: String::new(),
        cgroup: String::new(),
        shim_cgroup: String::new(),
        log_file_bytes: 0,
        log_files: 0,
        vault: String::new(),
        ulimits: Vec::new(),
        health: None,
        netns: String::new(),
        open_stdin: false,
    }
}

fn audit(dir: &Path, max_bytes: u64, max_files: u32) -> Audit {
    let files = Files::new(dir.join(AUDIT_FILE), max_bytes, max_files);
    Audit::new(&launch(dir), &KEY, Arc::new(Counts::default()), files)
}

/// Records of one file.
fn bodies(path: &Path) -> Vec<ByteVec> {
    let bytes = fs::read(path).unwrap_or_default();
    let mut rest = bytes.as_slice();
    let mut bodies = Vec::new();
    while let Next::Record { body, taken } = next(rest) {
        bodies.push(body.to_vec().into());
        rest = &rest[taken..];
    }
    assert_eq!(next(rest), Next::End);
    bodies
}

fn records(path: &Path) -> Vec<Record> {
    bodies(path).iter().map(|body| Record::parse(body).unwrap()).collect()
}

fn whats(record: &Record) -> Vec<What> {
    record.events.iter().map(|event| event.what.clone()).collect()
}

#[test]
fn what_happened_is_in_a_chain_from_the_shims_key_on() {
    let dir = tempfile::tempdir().unwrap();
    let audit = audit(dir.path(), 1 << 20, 2);
    audit.delivered(id(2), None, 1, 5);
    audit.0.write().unwrap();
    audit.0.write().unwrap();
    audit.delivered(id(2), Some(1), 4, 6);
    audit.refused(vec![id(2)], 7, "x".repeat(10_000));
    audit.revoked(id(2), Some(4), 8);
    audit.end().unwrap();
    let path = dir.path().join(AUDIT_FILE);
    let found = records(&path);
    assert_eq!(found.iter().map(|record| record.sequence).collect::<Vec<_>>(), [1, 2]);
    let (material, name) = (id(2), "db".to_owned());
    assert_eq!(
        whats(&found[0]),
        [
            What::Begun { key: KEY },
            What::Delivered { material, name: name.clone(), version: 1, sequence: 5 }
        ]
    );
    let told = whats(&found[1]);
    assert_eq!(
        told[0],
        What::Switched { material, name: name.clone(), from: 1, to: 4, sequence: 6 }
    );
    let What::Refused { materials, sequence: 7, reason } = &told[1] else { panic!("{told:?}") };
    assert!(*materials == [material] && reason.len() < AUDIT_REASON_BYTES + 8);
    let revoked = What::Revoked { material, name, version: Some(4), sequence: 8 };
    assert_eq!(told[2..], [revoked, What::Ended]);
    assert!(found[1].is_last() && !found[0].is_last());
    assert_eq!(verify(&task(), &bodies(&path), &[]), []);
}

#[test]
fn full_files_make_room_and_the_next_record_says_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let audit = audit(dir.path(), 1, 3);
    for sequence in 1..=6 {
        audit.delivered(id(2), None, sequence, sequence);
        audit.0.write().unwrap();
    }
    let named = |end: &str| dir.path().join(format!("{AUDIT_FILE}{end}"));
    let kept: Vec<_> = [".2", ".1", ""].map(|end| records(&named(end)).remove(0)).into();
    assert_eq!(kept.iter().map(|record| record.sequence).collect::<Vec<_>>(), [4, 5, 6]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    assert_eq!(kept[2].events[0].what, What::Rotated { kept_from: 4 });
    let all: Vec<_> = [".2", ".1", ""].iter().flat_map(|end| bodies(&named(end))).collect();
    assert_eq!(verify(&task(), &all, &[]), [Finding::LateStart { first: 4, is_dropped: false }]);
}

/// What a rotation leaves that failed, or whose shim was killed, after each of its renames.
#[test]
fn a_rotation_that_stopped_halfway_goes_on_and_moves_nothing_twice() {
    let names = [".3", ".2", ".1", ""];
    for done in 0..=names.len() - 1 {
        let dir = tempfile::tempdir().unwrap();
        let named = |end: &str| dir.path().join(format!("{AUDIT_FILE}{end}"));
        let audit = audit(dir.path(), 1, 4);
        let write = |sequence| {
            audit.delivered(id(2), None, sequence, sequence);
            audit.0.write().unwrap();
        };
        (1..=4).for_each(write);
        fs::write(named(".next"), "").unwrap();
        for pair in names.windows(2).take(done) {
            fs::rename(named(pair[1]), named(pair[0])).unwrap();
        }
        for sequence in 5..=6 {
            write(sequence);
            let kept = names.map(|end| records(&named(end))[0].sequence);
            assert_eq!(kept, [sequence - 3, sequence - 2, sequence - 1, sequence], "{done}");
        }
        assert!(!named(".next").exists());
    }
}

#[test]
fn what_cannot_be_written_waits_and_the_next_record_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    let audit = audit(&gone, 1 << 20, 2);
    audit.0.write().unwrap_err();
    audit.0.write().unwrap_err();
    for sequence in 0..AUDIT_EVENTS as u64 + 4 {
        audit.delivered(id(2), None, 1, sequence);
    }
    fs::create_dir(&gone).unwrap();
    audit.0.write().unwrap();
    let found = records(&gone.join(AUDIT_FILE));
    let events: usize = found.iter().map(|record| record.events.len()).sum();
    assert_eq!(events, AUDIT_EVENTS);
    assert!(found.iter().all(|record| record.events.len() <= AUDIT_RECORD_ITEMS));
    let first = &found[0];
    assert_eq!((first.sequence, first.lost.events, first.lost.failed_writes), (1, 5, 2));
    assert!(first.lost.why.is_some());
    assert!(found[1..].iter().all(|record| record.lost == Lost::default()));
    assert_eq!(verify(&task(), &bodies(&gone.join(AUDIT_FILE)), &[]), []);
}

/// The longest names and paths that there are.
#[test]
fn the_largest_record_is_within_its_bound() {
    let reader = Reader {
        material: id(2),
        name: "n".repeat(64),
        version: u64::MAX,
        uid: u32::MAX,
        gid: u32::MAX,
        // A byte that is no text takes three as one.
        executable: Some("\u{fffd}".repeat(skep_fuse::limits::EXECUTABLE_BYTES)),
    };
    let (first, last) = (Stamp(u64::MAX), Stamp(u64::MAX));
    let row = Row { reader: Some(reader), opened: u64::MAX, refused: u64::MAX, first, last };
    let materials = vec![id(2); skep_core::limits::GRANTS];
    let reason = bounded_to("x".repeat(10_000), AUDIT_REASON_BYTES);
    let event = Event { at: first, what: What::Refused { materials, sequence: 1, reason } };
    let record = Record {
        sequence: 1,
        previous: [0; 32],
        at: first,
        rows: vec![row; AUDIT_RECORD_ITEMS],
        events: vec![event; AUDIT_RECORD_ITEMS + 1],
        lost: Lost::default(),
    };
    assert_eq!(Record::parse(&record.to_body()).unwrap(), record);
}
