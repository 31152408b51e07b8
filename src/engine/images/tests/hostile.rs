//! Archives made to do harm: refused with a reason, and nothing of them stays.

use serde_json::{Value, json};

use super::super::stream::Plain;
use super::load::{Files, config, describe, digest, gzip, layer, sha, zstd};
use super::*;
use crate::limits::{ARCHIVE_FREE_BYTES, IMAGE_LAYERS, IMAGE_UPLOAD_ENTRIES};

fn refused(archive: &[u8], texts: &[&str]) {
    let store = Store::new();
    let error = store.load(archive).unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(why) = cause {
        text.push_str(&format!(": {why}"));
        cause = why.source();
    }
    for part in texts {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
    assert_eq!(store.left(), 0, "{text}");
    let expected: BTreeSet<_> = ["images", "layers"].map(str::to_owned).into();
    assert_eq!(store.files(""), expected);
}

/// A good archive whose `manifest.json` says something else.
fn altered(alter: impl Fn(&mut Value)) -> Vec<u8> {
    let mut files = Files::docker(&[(&[layer("a")], &["app:1"])]);
    let mut items: Value = serde_json::from_slice(&files.0.pop().unwrap().1).unwrap();
    alter(&mut items);
    files.json("manifest.json", &items);
    files.tar()
}

/// A good layout whose manifest says something else.
fn described(alter: impl Fn(&mut Value)) -> Vec<u8> {
    let (mut files, _) = Files::oci(&[layer("a")], gzip, "tar+gzip");
    let at =
        files.0.iter().position(|(_, bytes)| bytes.starts_with(b"{\"schemaVersion\":2,\"media"));
    let mut manifest: Value = serde_json::from_slice(&files.0.remove(at.unwrap()).1).unwrap();
    alter(&mut manifest);
    let bytes = manifest.to_string().into_bytes();
    files.blob(&bytes);
    files.0.retain(|(name, _)| name != "index.json");
    files.index(&[describe("application/vnd.oci.image.manifest.v1+json", &bytes)]);
    files.tar()
}

#[test]
fn manifests_that_lie() {
    refused(&altered(|m| *m = json!([])), &["holds no images"]);
    refused(&altered(|m| *m = json!({})), &["manifest.json: not the JSON"]);
    refused(
        &altered(|m| m[0]["Config"] = json!("gone.json")),
        &["app:1: Config names \"gone.json\""],
    );
    refused(&altered(|m| m[0]["Config"] = json!("../../etc/passwd")), &["Config names"]);
    refused(&altered(|m| m[0]["Layers"][0] = json!("/etc/passwd")), &["Layers[0] names"]);
    refused(&altered(|m| m[0]["Layers"] = json!([])), &["app:1: config.rootfs.diff_ids: 1 are"]);
    refused(&altered(|m| m[0]["RepoTags"][0] = json!("UP")), &["\"UP\" is no name"]);
    let pinned = format!("app@{}", digest(b""));
    refused(&altered(|m| m[0]["RepoTags"] = json!([pinned])), &["is no name"]);
    let many = vec!["layer"; IMAGE_LAYERS + 1];
    let archive = altered(|m| m[0]["Layers"] = json!(many));
    refused(&archive, &["Layers[0] names"]);
    let deep = "[".repeat(100_000);
    let mut files = Files::default();
    files.add("manifest.json", deep.as_bytes());
    refused(&files.tar(), &["manifest.json: not the JSON"]);
    let mut files = Files::default();
    files.add("manifest.json", &vec![b' '; 17 << 20]);
    refused(&files.tar(), &["manifest.json: 17825792 bytes are too many"]);
    // Each configuration is short enough, all of them together are not.
    let (mut files, mut items) = (Files::default(), Vec::new());
    let mut long = config(&[], "amd64");
    long.resize(16 << 20, b' ');
    files.add("config", &long);
    items.resize(9, json!({"Config": "config"}));
    files.json("manifest.json", &json!(items));
    refused(&files.tar(), &["config: 16777216 bytes are too many"]);
    let mut files = Files::default();
    files.add("repositories", b"{}");
    refused(&files.tar(), &["before 1.10"]);
    files.0[0].0 = "etc/passwd".into();
    refused(&files.tar(), &["holds no images", "import"]);
}

#[test]
fn descriptors_that_lie() {
    refused(&described(|m| m["layers"][0]["size"] = json!(7)), &["layers[0].size: 7 bytes"]);
    refused(&described(|m| m["layers"][0]["digest"] = json!(digest(b""))), &["layers[0] names"]);
    refused(&described(|m| m["config"]["digest"] = json!(digest(b""))), &["config names"]);
    for (kind, why) in [
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "is encrypted"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "fetched elsewhere"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "fetched elsewhere"),
        ("text/plain", "is not known"),
    ] {
        let archive = described(|m| m["layers"][0]["mediaType"] = json!(kind));
        refused(&archive, &["layers[0].mediaType", kind, why]);
    }
    let archive = described(|m| m["config"]["mediaType"] = json!("application/vnd.x.helm"));
    refused(&archive, &["config.mediaType", "is not known"]);
    let twice = described(|m| {
        let layer = m["layers"][0].clone();
        m["layers"] = json!([layer, layer]);
    });
    refused(&twice, &["config.rootfs.diff_ids: 1 are named for 2 layers"]);
    let (mut files, mut one) = Files::oci(&[layer("a")], gzip, "tar+gzip");
    files.0.retain(|(name, _)| name != "index.json");
    one["mediaType"] = json!("application/vnd.docker.distribution.manifest.v1+prettyjws");
    files.index(std::slice::from_ref(&one));
    refused(&files.tar(), &["mediaType", "neither a manifest nor an index"]);
    one["digest"] = json!(format!("sha512:{}", "a".repeat(128)));
    one["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
    files.0.retain(|(name, _)| name != "index.json");
    files.index(&[one]);
    refused(&files.tar(), &["is no sha256 digest"]);
    let (mut files, _) = Files::oci(&[layer("a")], gzip, "tar+gzip");
    let mut inner = describe("application/vnd.oci.image.index.v1+json", b"");
    for _ in 0..9 {
        let index = json!({"schemaVersion": 2, "manifests": [inner]}).to_string();
        files.blob(index.as_bytes());
        inner = describe("application/vnd.oci.image.index.v1+json", index.as_bytes());
    }
    files.0.retain(|(name, _)| name != "index.json");
    files.index(&[inner]);
    refused(&files.tar(), &["nested too deeply"]);
}

#[test]
fn contents_that_are_not_what_they_are_called() {
    let (files, _) = Files::oci(&[layer("a")], gzip, "tar+gzip");
    for at in 0..files.0.len() {
        let mut files = files.clone();
        let (name, bytes) = &mut files.0[at];
        bytes.push(b' ');
        if name.starts_with("blobs/") {
            let name = name.clone();
            refused(&files.tar(), &[&name, "its name is a digest"]);
        }
    }
    let layers = [layer("a")];
    let files = Files::docker(&[(&layers, &["app"])]);
    let mut other = files.clone();
    other.0[1].1 = layer("b");
    refused(&other.tar(), &["app: config.rootfs.diff_ids[0]: it says", &digest(&layers[0])]);
    other.0[1].1 = b"no tar at all".repeat(100);
    refused(&other.tar(), &["app: layer 1 cannot be unpacked"]);
    other.0[1].1 = layers[0][..512].to_vec();
    refused(&other.tar(), &["app: layer 1 cannot be unpacked"]);
    let whole = gzip(&layers[0]);
    other.0[1].1 = whole[..whole.len() - 9].to_vec();
    refused(&other.tar(), &["app: layer 1 cannot be unpacked"]);
    let mut other = files.clone();
    other.0[0].1.push(b' ');
    refused(&other.tar(), &["its name is a digest"]);
    let mut other = files.clone();
    let name = other.0[1].0.clone();
    other.add(&name, b"another");
    refused(&other.tar(), &["two different entries named \"image0-0/layer.tar\""]);
    other.0.pop();
    other.add(&name, &layers[0]);
    let store = Store::new();
    store.load(&other.tar()).unwrap();
}

#[test]
fn configurations_that_cannot_run() {
    let with = |alter: &dyn Fn(&mut Value)| {
        let layers = [layer("a")];
        let mut parsed: Value = serde_json::from_slice(&config(&layers, "amd64")).unwrap();
        alter(&mut parsed);
        let bytes = parsed.to_string().into_bytes();
        let mut files = Files::default();
        let name = files.add(&format!("{}.json", sha(&bytes)), &bytes);
        files.add("layer.tar", &layers[0]);
        files.json("manifest.json", &json!([{"Config": name, "Layers": ["layer.tar"]}]));
        files.tar()
    };
    refused(&with(&|c| c["os"] = json!("windows")), &["config.os", "is not linux"]);
    refused(&with(&|c| c["rootfs"]["type"] = json!("other")), &["config.rootfs.type"]);
    let odd = with(&|c| c["rootfs"]["diff_ids"][0] = json!("sha256:../../x"));
    refused(&odd, &["config.rootfs.diff_ids", "is no sha256 digest"]);
    refused(&with(&|c| *c = json!({})), &["configuration sha256:", "not the JSON"]);
    assert!(Store::new().load(&with(&|_| ())).is_ok());
}

#[test]
fn entries_of_the_outer_archive_that_lead_out() {
    let good = Files::docker(&[(&[layer("a")], &["app"])]);
    for name in ["../up", "a/../../up", "..", "blobs/sha256/../../../up"] {
        let mut files = good.clone();
        files.add(name, b"evil");
        refused(&files.tar(), &["forbidden path"]);
    }
    for target in ["/etc/passwd", "../../../../etc/passwd", "image0-0/layer.tar", "", "x/.."] {
        let mut tar = Tar::new();
        for (name, bytes) in &good.0 {
            match name.as_str() {
                "image0-0/layer.tar" => tar.entry(EntryType::Symlink, name, target, b""),
                _ => tar.file(name, bytes),
            }
        }
        refused(&tar.done(), &["app: Layers[0] names"]);
    }
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
        let mut tar = Tar::new();
        tar.entry(kind, "manifest.json", "", b"");
        refused(&tar.done(), &["neither a file nor a directory nor a link"]);
    }
    let mut tar = Tar::new();
    for n in 0..=IMAGE_UPLOAD_ENTRIES {
        tar.entry(EntryType::Directory, &n.to_string(), "", b"");
    }
    refused(&tar.done(), &["more than 20000 entries"]);
}

#[test]
fn layers_that_lead_out() {
    for (kind, name, link) in [
        (EntryType::Regular, "../../up", ""),
        (EntryType::Link, "hard", "../../../etc/passwd"),
        (EntryType::Regular, "a/.wh...", ""),
        (EntryType::Regular, "..", ""),
    ] {
        let mut tar = Tar::new();
        tar.file("first", b"written before the bad one comes");
        tar.entry(kind, name, link, b"");
        let layers = [layer("good"), tar.done()];
        refused(&Files::docker(&[(&layers, &["app"])]).tar(), &["app: layer 2 cannot be unpacked"]);
    }
}

#[test]
fn headers_that_lie() {
    let mut header = Header::new_gnu();
    header.set_path("manifest.json").unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    for size in [u64::MAX, u64::MAX / 2, 1 << 40, 1000] {
        header.set_size(size);
        header.set_cksum();
        let mut archive = header.as_bytes().to_vec();
        archive.extend_from_slice(&[b' '; 512]);
        refused(&archive, &["the archive cannot be loaded"]);
    }
    // Each header is short enough, all of them together are not.
    let mut tar = Tar::new();
    for n in 0..40 {
        let name = format!("SCHILY.xattr.user.{n}");
        tar.0.append_pax_extensions([(name.as_str(), &[b'x'; 30 << 10][..])]).unwrap();
    }
    tar.file("a", b"");
    refused(&tar.done(), &["header is longer than 1048576 bytes"]);
}

#[test]
fn bombs() {
    let zeros = std::io::repeat(0).take(ARCHIVE_FREE_BYTES + (8 << 20));
    let bomb = ::zstd::encode_all(zeros, 1).unwrap();
    let mut source = Cursor::new(&bomb);
    let mut plain = Plain::new(&mut source, u64::MAX).unwrap();
    let error = std::io::copy(&mut plain, &mut std::io::sink()).unwrap_err().to_string();
    assert!(error.contains("times its size"), "{error}");
    let mut source = Cursor::new(&bomb);
    let mut plain = Plain::new(&mut source, 1000).unwrap();
    let error = std::io::copy(&mut plain, &mut std::io::sink()).unwrap_err().to_string();
    assert!(error.contains("more than 1000 bytes"), "{error}");
    // The same as holes of an entry in the archive of images.
    let mut tar = Tar::new();
    let records = [("GNU.sparse.major", b"0".as_slice()), ("GNU.sparse.minor", b"1")];
    let more = [("GNU.sparse.map", b"".as_slice()), ("GNU.sparse.size", b"99999999999")];
    tar.0.append_pax_extensions(records.into_iter().chain(more)).unwrap();
    tar.file("layer.tar", b"");
    refused(&tar.done(), &["the archive's files have more than"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However a good archive is damaged: an image or an error, and then nothing stays.
    #[test]
    fn no_damage_breaks_the_store(
        at in 0usize..1 << 16,
        byte in any::<u8>(),
        cut in 0usize..1 << 16,
        kind in 0usize..4,
    ) {
        let layers = [layer("a"), layer("b")];
        let mut archive = match kind {
            0 => Files::docker(&[(&layers, &["app:1"])]).tar(),
            1 => Files::oci(&layers, gzip, "tar+gzip").0.tar(),
            2 => zstd(&Files::docker(&[(&layers, &["app:1"])]).tar()),
            _ => gzip(&Files::oci(&layers, zstd, "tar+zstd").0.tar()),
        };
        let len = archive.len();
        archive[at % len] = byte;
        if cut % 3 == 0 {
            archive.truncate(cut % len);
        }
        let store = Store::new();
        let loaded = store.load(&archive);
        let expected: BTreeSet<_> = ["images", "layers"].map(str::to_owned).into();
        prop_assert_eq!(store.files(""), expected);
        prop_assert_eq!(store.left() > 0, loaded.is_ok());
    }
}
