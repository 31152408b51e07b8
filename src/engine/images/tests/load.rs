//! Archives of images, as different writers make them.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use skep_core::id::hex;

use super::*;

pub(super) fn sha(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha(bytes))
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

pub(super) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 1).unwrap()
}

/// A layer with one file.
pub(super) fn layer(text: &str) -> Vec<u8> {
    let mut tar = Tar::new();
    tar.file(text, text.as_bytes());
    tar.done()
}

/// A configuration as Docker writes it, with its many empty fields.
pub(super) fn config(layers: &[Vec<u8>], architecture: &str) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    let part = json!({"Hostname": "", "Domainname": "", "User": "app", "AttachStdin": false,
        "Tty": false, "ExposedPorts": {"80/tcp": {}}, "Env": ["PATH=/bin"], "Cmd": ["sh"],
        "Image": "", "Volumes": null, "WorkingDir": "", "Entrypoint": null, "OnBuild": null,
        "Labels": null, "Healthcheck": {"Test": ["NONE"]}});
    let config = json!({"architecture": architecture, "os": "linux", "config": part,
        "container": "c", "container_config": part, "docker_version": "20.10.24",
        "created": "2024-05-01T10:00:00.123456789Z",
        "history": [{"created": "2024-05-01T10:00:00Z", "created_by": "/bin/sh -c x"}],
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    config.to_string().into_bytes()
}

/// Files of an archive, in their order.
#[derive(Clone, Default)]
pub(super) struct Files(pub(super) Vec<(String, Vec<u8>)>);

impl Files {
    pub(super) fn add(&mut self, name: &str, bytes: &[u8]) -> String {
        self.0.push((name.to_owned(), bytes.to_vec()));
        name.to_owned()
    }

    pub(super) fn blob(&mut self, bytes: &[u8]) -> String {
        self.add(&format!("blobs/sha256/{}", sha(bytes)), bytes)
    }

    pub(super) fn json(&mut self, name: &str, value: &Value) {
        self.add(name, value.to_string().as_bytes());
    }

    /// The old form: layers in directories of their own.
    pub(super) fn docker(images: &[(&[Vec<u8>], &[&str])]) -> Self {
        let (mut files, mut items) = (Self::default(), Vec::new());
        for (n, (layers, tags)) in images.iter().enumerate() {
            let bytes = config(layers, "amd64");
            let name = files.add(&format!("{}.json", sha(&bytes)), &bytes);
            let paths = layers
                .iter()
                .enumerate()
                .map(|(at, layer)| files.add(&format!("image{n}-{at}/layer.tar"), layer));
            let paths: Vec<_> = paths.collect();
            items.push(json!({"Config": name, "RepoTags": tags, "Layers": paths}));
        }
        files.json("manifest.json", &json!(items));
        files
    }

    /// An OCI layout of one image: its layers as they come, or packed.
    pub(super) fn oci(layers: &[Vec<u8>], pack: fn(&[u8]) -> Vec<u8>, kind: &str) -> (Self, Value) {
        let mut files = Self::default();
        let described = files.manifest(&config(layers, "amd64"), layers, pack, kind);
        files.index(std::slice::from_ref(&described));
        (files, described)
    }

    pub(super) fn manifest(
        &mut self,
        config: &[u8],
        layers: &[Vec<u8>],
        pack: fn(&[u8]) -> Vec<u8>,
        kind: &str,
    ) -> Value {
        let described = layers.iter().map(|layer| {
            let packed = pack(layer);
            self.blob(&packed);
            describe(&format!("application/vnd.oci.image.layer.v1.{kind}"), &packed)
        });
        let described: Vec<_> = described.collect();
        let manifest = json!({"schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("application/vnd.oci.image.config.v1+json", config),
            "layers": described});
        self.blob(config);
        self.blob(manifest.to_string().as_bytes());
        let media = "application/vnd.oci.image.manifest.v1+json";
        describe(media, manifest.to_string().as_bytes())
    }

    pub(super) fn index(&mut self, described: &[Value]) {
        self.json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}));
        self.json("index.json", &json!({"schemaVersion": 2, "manifests": described}));
    }

    pub(super) fn tar(&self) -> Vec<u8> {
        let mut tar = Tar::new();
        for (name, bytes) in &self.0 {
            tar.file(name, bytes);
        }
        tar.done()
    }
}

pub(super) fn describe(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

impl Store {
    pub(super) fn load(&self, archive: &[u8]) -> Result<Vec<Loaded>, ImageError> {
        let upload = self.store.receive(&mut Cursor::new(archive))?;
        self.store.load(upload, None, &mut |_| ())
    }

    /// What the store has on disk, so that nothing unexpected stays.
    pub(super) fn left(&self) -> usize {
        let top = self.files("images").into_iter();
        let usual = ["blobs", "index.json", "oci-layout", "partial"];
        let odd = top.filter(|name| !usual.contains(&name.as_str())).count();
        odd + self.files("images/partial").len()
            + self.files("layers").len()
            + self.files("images/blobs/sha256").len()
    }
}

#[test]
fn the_same_image_however_it_is_packed() {
    let layers = [layer("below"), layer("above")];
    let files = Files::docker(&[(&layers, &["app:1", "host:5000/team/app:2"])]);
    let mut turned = files.clone();
    turned.0.reverse();
    let mut packed = Files::docker(&[(&layers, &["app:1", "host:5000/team/app:2"])]);
    for (name, bytes) in &mut packed.0 {
        if name.ends_with("layer.tar") {
            *bytes = if name.contains("-0") { gzip(bytes) } else { zstd(bytes) };
        }
    }
    let plain = files.tar();
    let archives = [plain.clone(), turned.tar(), gzip(&plain), zstd(&plain), packed.tar()];
    let mut seen = BTreeSet::new();
    for archive in archives {
        let mut store = Store::new();
        let loaded = store.load(&archive).unwrap();
        let names = ["app:1", "host:5000/team/app:2"];
        assert_eq!((loaded.len(), &loaded[0].names[..]), (1, &names.map(str::to_owned)[..]));
        store.reopen();
        let image = store.store.resolve("app:1").unwrap();
        assert_eq!(image.id, digest(&config(&layers, "amd64")));
        assert_eq!((image.bytes, image.config.user.as_str()), (10, "app"));
        assert_eq!(image.diff_ids, layers.each_ref().map(|layer| digest(layer)));
        let above = layer_dir(store.dir.path(), &image.diff_ids[1]);
        assert_eq!(fs::read(above.join("above")).unwrap(), b"above");
        assert_eq!(store.left(), 6, "a manifest, a configuration, two layers, packed and not");
        seen.insert(image.manifest_digest.clone());
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
}

#[test]
fn links_stand_for_layers_of_other_images() {
    let (below, above) = (layer("below"), layer("above"));
    let both = [below.clone(), above.clone()];
    let mut tar = Tar::new();
    for (name, bytes) in Files::docker(&[(&both, &["two"]), (&both[..1], &["one"])]).0 {
        match name.as_str() {
            "image1-0/layer.tar" => {
                tar.entry(EntryType::Symlink, &name, "../image0-0/layer.tar", b"");
            }
            "image0-1/layer.tar" => {
                tar.file("kept", &bytes);
                tar.entry(EntryType::Link, &name, "kept", b"");
            }
            _ => tar.file(&name, &bytes),
        }
    }
    let store = Store::new();
    assert_eq!(store.load(&tar.done()).unwrap().len(), 2);
    assert_eq!(store.files("layers").len(), 2);
    let one = store.store.resolve("one").unwrap();
    assert_eq!(one.diff_ids, [digest(&below)]);
}

#[test]
fn a_layout_keeps_its_manifest() {
    let layers = [layer("a"), layer("b")];
    let plain: fn(&[u8]) -> Vec<u8> = <[u8]>::to_vec;
    for (pack, kind) in [(plain, "tar"), (gzip as _, "tar+gzip"), (zstd as _, "tar+zstd")] {
        let (mut files, mut described) = Files::oci(&layers, pack, kind);
        described["annotations"] = json!({"io.containerd.image.name": "docker.io/library/app:7",
            "org.opencontainers.image.ref.name": "7"});
        files.0.retain(|(name, _)| name != "index.json" && name != "oci-layout");
        files.index(std::slice::from_ref(&described));
        let mut store = Store::new();
        let loaded = store.load(&files.tar()).unwrap();
        assert_eq!(loaded[0].names, ["app:7"]);
        store.reopen();
        let image = store.store.resolve(&format!("app@{}", described["digest"].as_str().unwrap()));
        let image = image.unwrap();
        assert_eq!(image.id, digest(&config(&layers, "amd64")));
        assert_eq!(json!(image.manifest_digest), described["digest"]);
        assert_eq!(store.left(), 6, "{kind}");
    }
}

#[test]
fn an_index_is_searched_for_this_platform() {
    let mut files = Files::default();
    let one = |files: &mut Files, architecture: &str, said: &str| {
        let layers = [layer(architecture)];
        let config = config(&layers, architecture);
        let mut described = files.manifest(&config, &layers, gzip, "tar+gzip");
        if !said.is_empty() {
            described["platform"] = json!({"os": "linux", "architecture": said});
        }
        described
    };
    let (arm, amd) = (one(&mut files, "arm64", "arm64"), one(&mut files, "amd64", ""));
    let mut remark = one(&mut files, "unknown", "unknown");
    remark["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    // Blobs of other platforms need not be there.
    let missing = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest(b"s390x"), "size": 5, "platform": {"os": "linux", "architecture": "s390x"}});
    let inner = json!({"schemaVersion": 2, "manifests": [remark, arm, missing, amd]}).to_string();
    files.blob(inner.as_bytes());
    let mut outer = describe("application/vnd.oci.image.index.v1+json", inner.as_bytes());
    outer["annotations"] = json!({"org.opencontainers.image.ref.name": "host.example/app:1"});
    files.index(&[outer]);
    let store = Store::new();
    let loaded = store.load(&files.tar()).unwrap();
    assert_eq!(loaded[0].names, ["host.example/app:1"]);
    assert_eq!(store.store.resolve("host.example/app:1").unwrap().architecture, "amd64");
    let of = |architecture: &str| {
        let wanted = Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: String::new(),
        };
        let upload = store.store.receive(&mut Cursor::new(files.tar())).unwrap();
        store.store.load(upload, Some(&wanted), &mut |_| ())
    };
    let moved = of("arm64").unwrap();
    assert_eq!(moved[0].moved, [("host.example/app:1".to_owned(), loaded[0].id.clone())]);
    let refused = of("s390x").unwrap_err().to_string();
    assert!(refused.contains("manifest names \"blobs/sha256/"), "{refused}");
    let refused = of("riscv64").unwrap_err().to_string();
    assert!(
        refused.contains("linux/amd64") && refused.contains("not for linux/riscv64"),
        "{refused}"
    );
    assert_eq!(store.store.list().len(), 2);
}

#[test]
fn names_may_be_in_either_place_or_nowhere() {
    let layers = [layer("a")];
    let (mut files, mut described) = Files::oci(&layers, gzip, "tar+gzip");
    let store = Store::new();
    let loaded = store.load(&files.tar()).unwrap();
    assert!(loaded[0].names.is_empty());
    assert!(store.store.resolve(&loaded[0].id).unwrap().repo_tags.is_empty());
    described["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    files.0.retain(|(name, _)| name != "index.json");
    files.index(std::slice::from_ref(&described));
    assert!(
        store.load(&files.tar()).unwrap()[0].names.is_empty(),
        "a bare word is a tag of nothing"
    );
    let pinned = format!("docker.io/library/app@{}", described["digest"].as_str().unwrap());
    described["annotations"] = json!({"io.containerd.image.name": pinned});
    files.0.retain(|(name, _)| name != "index.json");
    files.index(&[described]);
    assert!(store.load(&files.tar()).unwrap()[0].names.is_empty(), "a digest is no name");
    let path = format!("blobs/sha256/{}", sha(&config(&layers, "amd64")));
    let layer = format!("blobs/sha256/{}", sha(&gzip(&layers[0])));
    files.json(
        "manifest.json",
        &json!([{"Config": path, "RepoTags": ["app:9"], "Layers": [layer]}]),
    );
    assert_eq!(store.load(&files.tar()).unwrap()[0].names, ["app:9"]);
    assert_eq!(store.store.list().len(), 1);
}

#[test]
fn a_second_manifest_of_an_image_is_a_name_of_it() {
    let store = Store::new();
    let layers = [layer("a")];
    let first = store.load(&Files::docker(&[(&layers, &["app:1"])]).tar()).unwrap();
    let (mut files, mut described) = Files::oci(&layers, gzip, "tar+gzip");
    described["annotations"] = json!({"io.containerd.image.name": "app:1"});
    files.0.retain(|(name, _)| name != "index.json");
    files.index(std::slice::from_ref(&described));
    assert_eq!(store.load(&files.tar()).unwrap()[0].id, first[0].id);
    let pinned = format!("app:1@{}", described["digest"].as_str().unwrap());
    assert_eq!(store.store.resolve(&pinned).unwrap().id, first[0].id);
    assert_eq!(store.left(), 4, "only one form of it is kept");
    let removed = store.store.remove("app:1", false, &|_| None).unwrap();
    assert_eq!(removed.len(), 5, "{removed:?}");
    assert_eq!(store.left(), 0);
}

#[test]
fn layers_are_shared_and_go_with_the_last_image() {
    let store = Store::new();
    let (base, one, two) = (layer("base"), layer("one"), layer("two"));
    let (first, second) = ([base.clone(), one.clone()], [base.clone(), two.clone(), one.clone()]);
    store.load(&Files::docker(&[(&first, &["first"])]).tar()).unwrap();
    let mut steps = Vec::new();
    let archive = Files::docker(&[(&second, &["second"])]).tar();
    let upload = store.store.receive(&mut Cursor::new(archive)).unwrap();
    store.store.load(upload, None, &mut |step| steps.push(step)).unwrap();
    assert_eq!(steps.len(), 3, "one report for each small layer");
    assert!(steps.iter().all(|step| step.current == step.total && step.layer.len() == 12));
    assert_eq!(store.files("layers").len(), 3);
    let removed = store.store.remove("second", false, &|_| None).unwrap();
    // The layer `one` stands on another one here: Docker names a layer with all that is below it.
    let chain = digest(format!("{} {}", digest(&base), digest(&two)).as_bytes());
    let top = digest(format!("{chain} {}", digest(&one)).as_bytes());
    assert_eq!(removed[3..], [Removed::Deleted(top), Removed::Deleted(chain)]);
    assert_eq!(store.files("layers").len(), 2);
    store.store.remove("first", false, &|_| None).unwrap();
    assert_eq!(store.left(), 0);
}

#[test]
fn a_held_image_stays() {
    let store = Store::new();
    let image = store.image("a", "app");
    let container = "c".repeat(64);
    let (held, hold) = store.store.hold("app", &container).unwrap();
    assert_eq!(held.id, image.id);
    let refused = store.store.remove(&image.id, true, &|_| None).unwrap_err().to_string();
    assert!(refused.contains("running container cccccccccccc"), "{refused}");
    drop(hold);
    let (_, hold) = store.store.hold("app", &container).unwrap();
    drop(hold);
    store.store.remove(&image.id, true, &|_| None).unwrap();
    assert!(matches!(store.store.hold("app", &container), Err(ImageError::NotFound(_))));
    assert_eq!(store.left(), 0);
}

#[test]
fn what_a_crash_leaves_is_cleared() {
    let mut store = Store::new();
    let upload = store.store.receive(&mut Cursor::new(Files::docker(&[]).tar())).unwrap();
    assert_eq!(store.left(), 1, "the upload");
    // A layer and blobs put in their place, and then no index that names them.
    store.image("a", "app");
    fs::remove_file(store.dir.path().join("images/index.json")).unwrap();
    fs::write(store.dir.path().join("images/index.json"), br#"{"schemaVersion":2,"manifests":[]}"#)
        .unwrap();
    store.reopen();
    assert_eq!(store.left(), 0);
    drop(upload);
}

/// Whatever is loaded and removed meanwhile: what is loaded is whole, and what is held stays.
#[test]
fn loads_removals_and_holds_at_once() {
    let store = Store::new();
    let base = layer("base");
    let archive = |name: &str| {
        Files::docker(&[
            (&[base.clone(), layer(name)], &[name]),
            (std::slice::from_ref(&base), &[]),
        ])
        .tar()
    };
    let is_whole =
        |image: &Image| image.diff_ids.iter().all(|id| layer_dir(store.dir.path(), id).is_dir());
    std::thread::scope(|scope| {
        for name in ["one", "two"] {
            let (archive, store, is_whole) = (archive(name), &store, &is_whole);
            scope.spawn(move || {
                for _ in 0..20 {
                    store.load(&archive).unwrap();
                    assert!(is_whole(&store.store.resolve(name).unwrap()), "{name}");
                    // The other may hold it.
                    let _ = store.store.remove(name, false, &|_| None);
                    let _ = store.store.remove(
                        &digest(&config(&[layer("base")], "amd64")),
                        true,
                        &|_| None,
                    );
                }
            });
            scope.spawn(move || {
                for _ in 0..200 {
                    let Ok((image, hold)) = store.store.hold(name, "container") else { continue };
                    assert!(is_whole(&image), "{name} is held");
                    assert!(store.store.resolve(&image.id).is_ok(), "{name} is held");
                    drop(hold);
                }
            });
        }
    });
    for image in store.store.list() {
        store.store.remove(&image.id, true, &|_| None).unwrap();
    }
    assert_eq!(store.left(), 0);
}
