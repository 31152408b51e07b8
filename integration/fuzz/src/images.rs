//! Archives that are imported, and the documents of the image store. The store's own entry
//! points are called here and nowhere else among the targets.

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};
use skep::engine::images::reference::Reference;
use skep::engine::images::{ImageStore, Import};
use tempfile::TempDir;

use crate::Target;
use crate::cursor::{Cursor, input};

pub(crate) const TARGET: Target = Target { name: "images", run, seeds, mutations: 6_000 };

/// What stands beside the store, and must stay as it is.
const CANARY: &str = "canary";

thread_local! {
    static STORE: OnceCell<(TempDir, ImageStore)> = const { OnceCell::new() };
}

/// A directory in memory, if the machine has one: the store syncs what it writes.
fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn run(bytes: &[u8]) {
    let mut cursor = Cursor::new(bytes);
    match cursor.byte() % 4 {
        0 => import(&cursor.text(), cursor.rest(), Vec::new()),
        1 => {
            let changes = vec![cursor.text(), cursor.rest_text()];
            import("change:1", &entry("a", b'0', "", b"a"), changes);
        }
        2 => documents(&cursor.text(), &cursor.text(), &cursor.text()),
        _ => import("any", cursor.rest(), Vec::new()),
    }
}

fn import(name: &str, archive: &[u8], changes: Vec<String>) {
    STORE.with(|store| {
        let (dir, store) = store.get_or_init(|| {
            let dir = directory();
            fs::write(dir.path().join(CANARY), CANARY).unwrap();
            let store = ImageStore::open(&dir.path().join("root")).unwrap();
            (dir, store)
        });
        let reference = Reference::parse(name).ok();
        let import = Import { reference, message: name.to_owned(), changes };
        let mut archive = archive;
        if let Ok(image) = store.import(&mut archive, &import) {
            assert!(store.resolve(&image.id).is_ok() && store.manifest(&image).is_ok());
            store.remove(&image.id, true, &|_| None).unwrap();
        }
        let root = dir.path().join("root");
        let left: Vec<_> = fs::read_dir(root.join("layers")).unwrap().collect();
        assert!(left.is_empty(), "a layer stays behind: {left:?}");
        untouched(dir.path());
    });
}

fn untouched(dir: &Path) {
    let count = fs::read_dir(dir).unwrap().count();
    assert_eq!(count, 2, "something was made beside the store");
    assert_eq!(fs::read_to_string(dir.join(CANARY)).unwrap(), CANARY);
}

/// A store with these documents. `MANIFEST`, `CONFIG` and `LAYER` stand for the digests.
fn documents(index: &str, manifest: &str, config: &str) {
    let hex = |text: &str| skep_core::id::hex(&Sha256::digest(text));
    let dir = directory();
    let (root, layer) = (dir.path().join("root"), "a".repeat(64));
    fs::write(dir.path().join(CANARY), CANARY).unwrap();
    drop(ImageStore::open(&root).unwrap());
    fs::create_dir_all(root.join("layers").join(&layer)).unwrap();
    let put = |text: &str| {
        fs::write(root.join("images/blobs/sha256").join(hex(text)), text).unwrap();
        hex(text)
    };
    let config = put(&config.replace("LAYER", &layer));
    let manifest = put(&manifest.replace("CONFIG", &config).replace("LAYER", &layer));
    fs::write(root.join("images/index.json"), index.replace("MANIFEST", &manifest)).unwrap();
    if let Ok(store) = ImageStore::open(&root) {
        for image in store.list() {
            assert!(store.resolve(&image.id).is_ok(), "an image that is listed is not found");
            let _ = (store.manifest(&image), store.tag(&image.id, "other:1"));
            let _ = store.remove(&image.id, true, &|_| None);
        }
    }
    untouched(dir.path());
}

/// A tar entry with its content.
fn entry(path: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, path);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(157, link);
    put(257, "ustar\x0000");
    put(329, "0000001");
    put(337, "0000003");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
    [&header[..], content, &padding].concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let record = |text: &str| {
        let len = text.len() + 2;
        let len = len + (len + 1).to_string().len();
        format!("{len} {text}\n")
    };
    let pax = [
        record("path=long/path"),
        record("mtime=1.5"),
        record("uid=7"),
        record("size=1"),
        record("SCHILY.xattr.user.a=b"),
        record("linkpath=x"),
        record("GNU.sparse.major=1"),
    ]
    .concat();
    let archives = [
        [entry("etc/", b'5', "", b""), entry("etc/a", b'0', "", b"content")].concat(),
        [entry("l", b'2', "/etc/passwd", b""), entry("l/x", b'0', "", b"x")].concat(),
        [entry("a", b'0', "", b"a"), entry("b", b'1', "a", b"")].concat(),
        [entry("../../canary", b'0', "", b"no"), entry("/abs", b'0', "", b"x")].concat(),
        [entry("up", b'2', "..", b""), entry("up/up/canary", b'0', "", b"no")].concat(),
        [entry("h", b'1', "../../../canary", b"")].concat(),
        [entry("tty", b'3', "", b""), entry("disk", b'4', "", b""), entry("f", b'6', "", b"")]
            .concat(),
        [entry("x", b'x', "", pax.as_bytes()), entry("short", b'0', "", b"c")].concat(),
        [entry("././@LongLink", b'L', "", b"very/long/name\0"), entry("short", b'0', "", b"c")]
            .concat(),
        [entry("././@LongLink", b'K', "", b"target\0"), entry("s", b'2', "", b"")].concat(),
        [entry("d/.wh.gone", b'0', "", b""), entry("d/.wh..wh..opq", b'0', "", b"")].concat(),
        [entry("g", b'g', "", record("path=x").as_bytes()), entry("s", b'S', "", b"")].concat(),
    ];
    let changes = "CMD [\"sh\"]\nENV A=b \"C=d e\" F=$A${A:-x}\\\n G=h\nLABEL a=b\nUSER 1:2\n\
        WORKDIR /a\nEXPOSE 80/tcp 90-95/udp\nVOLUME [\"/v\"] /w\nENTRYPOINT a b\nSTOPSIGNAL TERM";
    let oci = "application/vnd.oci.image";
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{oci}.manifest.v1+json","size":5,
        "digest":"sha256:MANIFEST","annotations":{{"io.containerd.image.name":"a:b",
        "org.opencontainers.image.ref.name":"a"}},"platform":{{"architecture":"amd64","os":"linux"}}}}]}}"#
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{oci}.manifest.v1+json","config":{{"mediaType":
        "{oci}.config.v1+json","size":5,"digest":"sha256:CONFIG"}},"layers":[{{"mediaType":
        "{oci}.layer.v1.tar+zstd","size":5,"digest":"sha256:LAYER"}}]}}"#
    );
    let config = r#"{"created":"2026-01-01T00:00:00Z","author":"a","architecture":"amd64","os":"linux",
        "variant":"v8","config":{"User":"1","ExposedPorts":{"80/tcp":{}},"Env":["A=b"],
        "Entrypoint":["sh"],"Cmd":["-c"],"Volumes":{"/v":{}},"WorkingDir":"/","Labels":{"a":"b"},
        "StopSignal":"TERM"},"rootfs":{"type":"layers","diff_ids":["sha256:LAYER"]},
        "history":[{"created":"2026-01-01T00:00:00Z","created_by":"x","empty_layer":true}]}"#;
    let mut seeds: Vec<Vec<u8>> = archives
        .iter()
        .map(|archive| [input(0, &[b"some/name:tag"]), archive.clone()].concat())
        .collect();
    seeds.push([input(1, &[changes.as_bytes()]), b"ENV X=y".to_vec()].concat());
    seeds.push(input(2, &[index.as_bytes(), manifest.as_bytes(), config.as_bytes()]));
    seeds
}
