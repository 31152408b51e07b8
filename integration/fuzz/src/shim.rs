//! The shim's socket, and what daemon and shim leave each other on disk.

use std::fmt::Debug;

use minicbor::{Decode, Encode};
use skep::agent::store::Record;
use skep::shim::fuzz;
use skep::wire::launch::{Launch, LaunchFile};
use skep::wire::session::{FromAgent, ToAgent};
use skep::wire::shim::{
    DeliveredItem, Delivery, ExecStart, Exit, FromShim, Hello, PROTOCOL, ShimState, ShimStatus,
    ToShim,
};
use skep::wire::{frame, parse, read_message};
use skep_core::assign::TaskAssignment;
use skep_core::id::{ENTROPY_LEN, Id};
use skep_core::model::material::MaterialKind;
use skep_core::time::Stamp;

use crate::Target;
use crate::cursor::{Cursor, input};

pub(crate) const TARGET: Target = Target { name: "shim", run, seeds, mutations: 60_000 };

/// Reads a message; one that is understood is understood again the same.
fn message<T: Debug + PartialEq + Encode<()> + for<'b> Decode<'b, ()>>(bytes: &[u8]) -> Option<T> {
    let message = parse::<T>(bytes).ok()?;
    let again = read_message::<T>(&mut frame(&message).as_slice()).unwrap();
    assert_eq!(again, message, "a message came back changed");
    Some(message)
}

fn run(bytes: &[u8]) {
    let mut cursor = Cursor::new(bytes);
    match cursor.byte() % 8 {
        0 => {
            for message in fuzz::inbox(&cursor.pieces(16)) {
                assert_eq!(parse::<ToShim>(&frame(&message)[4..]).unwrap(), message);
            }
        }
        1 => drop(message::<FromShim>(cursor.rest())),
        2 => drop(message::<Launch>(cursor.rest())),
        3 => drop(message::<FromAgent>(cursor.rest())),
        4 => drop(message::<ToAgent>(cursor.rest())),
        5 => {
            let exec = message::<ExecStart>(cursor.piece()).unwrap_or_else(exec);
            fuzz::finish_bundle(&cursor.rest_text(), &exec);
        }
        6 => {
            let exit = serde_json::from_slice::<Exit>(cursor.piece()).ok();
            let text = serde_json::to_vec(&exit).unwrap();
            assert_eq!(serde_json::from_slice::<Option<Exit>>(&text).unwrap(), exit);
            drop(message::<TaskAssignment>(cursor.piece()));
            if let Ok(record) = serde_json::from_slice::<Record>(cursor.rest()) {
                let _ = record.assignment();
            }
        }
        _ => {
            let (passwd, group, user) = (cursor.text(), cursor.text(), cursor.text());
            fuzz::user(&passwd, &group, &user, &[cursor.text()]);
        }
    }
}

fn id<K>() -> Id<K> {
    Id::from_entropy([5; ENTROPY_LEN])
}

fn exec() -> ExecStart {
    ExecStart {
        id: "e".repeat(64),
        args: vec!["sh".to_owned(), "-c".to_owned()],
        env: vec!["A=b".to_owned()],
        cwd: "/".to_owned(),
        user: "1:2".to_owned(),
        tty: true,
        privileged: true,
        size: Some((24, 80)),
    }
}

fn launch() -> Launch {
    Launch {
        task: id(),
        cluster: id(),
        node: id(),
        container_id: "c".repeat(64),
        bundle: BUNDLE.to_owned(),
        layers: vec!["/l".to_owned()],
        user: "0".to_owned(),
        groups: vec!["wheel".to_owned()],
        files: vec![LaunchFile {
            material: id(),
            kind: MaterialKind::Secret,
            name: "one".to_owned(),
            target: "one".to_owned(),
            uid: 1,
            gid: 2,
            mode: 0o400,
            signal: Some(1),
        }],
        task_dir: "/t".to_owned(),
        run_dir: "/r".to_owned(),
        runc_root: "/r/runc".to_owned(),
        runtime: "runc".to_owned(),
        cgroup: "/skep/n/t".to_owned(),
        shim_cgroup: "/skep/n/shim-t".to_owned(),
        log_file_bytes: 1,
        log_files: 1,
        vault: "auto".to_owned(),
        ulimits: Vec::new(),
        health: Some(Default::default()),
        netns: String::new(),
        open_stdin: true,
    }
}

const BUNDLE: &str = r#"{"ociVersion":"1.0.2","process":{"terminal":true,"cwd":"/","env":["A=1"],
    "capabilities":{"bounding":["CAP_CHOWN"]},"rlimits":[]},"mounts":[],"root":{"path":""},
    "linux":{"namespaces":[{"type":"network"}]}}"#;

fn to_shim() -> Vec<ToShim> {
    let item = DeliveredItem {
        material: id(),
        version: 1,
        created: Stamp(2),
        size: 3,
        sealed: vec![4; 51],
    };
    vec![
        ToShim::Deliver(Delivery { sequence: 1, items: vec![item] }),
        ToShim::Revoke { sequence: 2, materials: vec![(id(), 1)] },
        ToShim::Start,
        ToShim::Stop { signal: 15, grace_ms: 10_000 },
        ToShim::Signal { signal: 1 },
        ToShim::Exec(exec()),
        ToShim::ExecResize { id: "e".to_owned(), rows: 1, cols: 2 },
        ToShim::Probe,
        ToShim::Audit,
    ]
}

fn seeds() -> Vec<Vec<u8>> {
    let frames: Vec<Vec<u8>> = to_shim().iter().map(frame).collect();
    let all = frames.concat();
    let (first, second) = all.split_at(70);
    let exit = Exit { code: 137, oom: true, at_ns: 5, error: Some("x".to_owned()), started_ns: 4 };
    let status = ShimStatus {
        state: ShimState::Exited,
        pid: 1,
        started: Stamp(1),
        exit: Some(exit.clone()),
        trouble: Some("x".to_owned()),
        oom: true,
    };
    let hello = FromShim::Hello(Hello {
        protocol: PROTOCOL,
        task: id(),
        key: [1; 32],
        pid: 1,
        held: vec![(id(), 1)],
        sequence: 1,
        status: status.clone(),
        version: "0.1.0".to_owned(),
    });
    let behind = |first: u8, bytes: &[u8]| [&[first], bytes].concat();
    let cbor = |first: u8, framed: &[u8]| behind(first, &framed[4..]);
    let shim = |key| FromAgent::Shim { task: id(), key, held: vec![(id(), 1)], sequence: 1 };
    let exited = FromShim::ExecExited { id: "e".to_owned(), code: 1, error: Some("x".to_owned()) };
    let refused = FromShim::Refused {
        request: "deliver".to_owned(),
        reason: "x".to_owned(),
        is_outdated: true,
    };
    let delivered = FromShim::Delivered { sequence: 1, held: vec![(id(), 1)], last: 2 };
    let Some(ToShim::Deliver(delivery)) = to_shim().into_iter().next() else { unreachable!() };
    let mut seeds: Vec<Vec<u8>> = frames.iter().map(|frame| input(0, &[frame])).collect();
    seeds.extend([
        input(0, &[first, second]),
        cbor(1, &frame(&hello)),
        cbor(1, &frame(&FromShim::Status(status))),
        cbor(1, &frame(&exited)),
        cbor(1, &frame(&refused)),
        cbor(1, &frame(&delivered)),
        cbor(2, &frame(&launch())),
        cbor(3, &frame(&shim([1; 32]))),
        cbor(4, &frame(&ToAgent::Deliver { task: id(), delivery })),
        [input(5, &[&frame(&exec())[4..]]), BUNDLE.as_bytes().to_vec()].concat(),
        input(6, &[&serde_json::to_vec(&exit).unwrap()]),
        input(
            7,
            &[b"root:x:0:0:r:/:/bin/sh\napp:x:1:2::/:\n", b"wheel:x:10:app\n", b"app", b"wheel"],
        ),
    ]);
    seeds
}
