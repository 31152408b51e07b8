//! What is saved, and that it comes back as it was.

use super::load::{Files, config, digest, gzip, layer, zstd};
use super::*;

fn saved(store: &Store, names: &[&str]) -> Vec<u8> {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let export = store.store.export(&names, None).unwrap();
    let mut archive = Vec::new();
    store.store.write(&export, &mut archive).unwrap();
    archive
}

/// Names and contents of an archive.
fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), bytes)
    });
    entries.collect()
}

#[test]
fn an_image_comes_back_bit_for_bit() {
    let layers = [layer("a"), layer("b")];
    let (oci, described) = Files::oci(&layers, gzip, "tar+gzip");
    let (packed, _) = Files::oci(&layers, zstd, "tar+zstd");
    let docker = Files::docker(&[(&layers, &["app:1"])]);
    for (archive, is_kept) in [(docker.tar(), true), (oci.tar(), true), (packed.tar(), false)] {
        let (from, to) = (Store::new(), Store::new());
        let id = from.load(&archive).unwrap()[0].id.clone();
        from.store.tag(&id, "app:1").unwrap();
        let first = saved(&from, &["app:1"]);
        assert_eq!(first, saved(&from, &["app:1"]), "the same bytes each time");
        assert_eq!(to.load(&first).unwrap()[0].names, ["app:1"]);
        let (before, after) =
            (from.store.resolve("app:1").unwrap(), to.store.resolve("app:1").unwrap());
        assert_eq!((&before.id, &before.diff_ids), (&after.id, &after.diff_ids));
        assert_eq!(before.manifest_digest == after.manifest_digest, is_kept);
        assert_eq!(saved(&to, &["app:1"]), first);
        let files = files(&first);
        assert_eq!(files[&format!("blobs/sha256/{}", &id[7..])], config(&layers, "amd64"));
        let index: serde_json::Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let first = &index["manifests"][0];
        assert_eq!(first["annotations"]["io.containerd.image.name"], "docker.io/library/app:1");
        assert_eq!(first["annotations"]["org.opencontainers.image.ref.name"], "1");
        if archive == oci.tar() {
            assert_eq!(first["digest"], described["digest"]);
        }
        // Loaded where it is already, it takes no more room.
        let left = to.left();
        to.load(&saved(&to, &["app:1"])).unwrap();
        assert_eq!(to.left(), left);
    }
}

#[test]
fn an_import_has_the_same_digest_on_every_node() {
    let (from, to) = (Store::new(), Store::new());
    let image = from.image("a", "app:1");
    to.load(&saved(&from, &["app:1"])).unwrap();
    assert_eq!(to.store.resolve(&format!("app@{}", image.manifest_digest)).unwrap().id, image.id);
}

#[test]
fn a_repository_means_all_its_tags_and_an_id_none() {
    let store = Store::new();
    let one = store.image("one", "app:1");
    let two = store.image("two", "app:2");
    store.store.tag("app:1", "other:1").unwrap();
    let tags = |names: &[&str]| -> Vec<String> {
        let files = files(&saved(&store, names));
        let items: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        let items = items.as_array().unwrap().iter();
        let mut tags: Vec<_> = items.map(|item| item["RepoTags"].to_string()).collect();
        tags.sort();
        tags
    };
    assert_eq!(tags(&["app"]), [r#"["app:1"]"#, r#"["app:2"]"#]);
    assert_eq!(tags(&["app:1"]), [r#"["app:1"]"#]);
    assert_eq!(tags(&["other:1", "app:1", "app:1"]), [r#"["app:1","other:1"]"#]);
    for name in [&one.id, &one.id[7..20], &format!("app@{}", one.manifest_digest)] {
        assert_eq!(tags(&[name]), ["null"], "{name}");
    }
    assert_eq!(tags(&[&one.id, &two.id]).len(), 2);
    assert_eq!(saved(&store, &["app:1", "app:2"]), saved(&store, &["app:2", "app:1"]));
    let missing = store.store.export(&["app:1".into(), "app:3".into()], None).unwrap_err();
    assert_eq!(missing.to_string(), "No such image: app:3");
    let wanted =
        Platform { os: "linux".into(), architecture: "arm64".into(), variant: String::new() };
    let refused = store.store.export(&["app:1".into()], Some(&wanted)).unwrap_err().to_string();
    assert!(refused.contains("not for linux/arm64"), "{refused}");
}

#[test]
fn removal_waits_for_a_save() {
    let store = Store::new();
    store.image("a", "app");
    let export = store.store.export(&["app".into()], None).unwrap();
    store.store.remove("app", false, &|_| None).unwrap();
    let mut archive = Vec::new();
    store.store.write(&export, &mut archive).unwrap();
    drop(export);
    store.load(&archive).unwrap();
    store.store.remove("app", false, &|_| None).unwrap();
    assert_eq!(store.left(), 0);
}

#[test]
fn a_damaged_layer_does_not_pass_for_a_good_one() {
    let layers = [layer("a")];
    let plain: fn(&[u8]) -> Vec<u8> = <[u8]>::to_vec;
    for (pack, kind) in [(plain, "tar"), (gzip as _, "tar+gzip"), (zstd as _, "tar+zstd")] {
        let store = Store::new();
        let id = store.load(&Files::oci(&layers, pack, kind).0.tar()).unwrap()[0].id.clone();
        let blobs = store.dir.path().join("images/blobs/sha256");
        let packed = pack(&layers[0]);
        let name = digest(&packed)[7..].to_owned();
        let name = if kind == "tar" { format!("{name}.zst") } else { name };
        for bytes in [zstd(b"another"), Vec::new()] {
            fs::write(blobs.join(&name), bytes).unwrap();
            let done = store.store.export(std::slice::from_ref(&id), None);
            let done = done.and_then(|export| store.store.write(&export, &mut Vec::new()));
            assert!(done.is_err(), "{kind}");
        }
    }
}
