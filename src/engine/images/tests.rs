use std::collections::BTreeSet;
use std::fs;
use std::io::{Cursor, Write as _};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;

mod entries;
pub(super) mod exchange;
mod hostile;
mod load;
mod save;

struct Store {
    dir: TempDir,
    store: Arc<ImageStore>,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(ImageStore::open(dir.path()).unwrap());
        Self { dir, store }
    }

    fn import(&self, archive: &[u8], name: Option<&str>) -> Result<Arc<Image>, ImageError> {
        let reference = name.map(|n| Reference::parse(n).unwrap().or_latest());
        let import = Import { reference, ..Import::default() };
        self.store.import(&mut Cursor::new(archive), &import)
    }

    /// An image with one file, so that images with other text are other images.
    fn image(&self, text: &str, name: &str) -> Arc<Image> {
        let mut tar = Tar::new();
        tar.file("text", text.as_bytes());
        self.import(&tar.done(), Some(name)).unwrap()
    }

    fn layer(&self, image: &Image) -> PathBuf {
        layer_dir(self.dir.path(), &image.diff_ids[0])
    }

    fn files(&self, below: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.dir.path().join(below)).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn reopen(&mut self) {
        self.store = Arc::new(ImageStore::open(self.dir.path()).unwrap());
    }
}

/// An archive with whatever names and links a test wants, proper or not.
struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn entry(&mut self, kind: EntryType, name: &str, link: &str, data: &[u8]) {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(0o755);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        self.0.append(&header, data).unwrap();
    }

    fn file(&mut self, name: &str, data: &[u8]) {
        self.entry(EntryType::Regular, name, "", data);
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

#[test]
fn an_import_can_be_found_in_every_way() {
    let mut store = Store::new();
    let image = store.image("a", "busybox");
    for _ in 0..2 {
        let by_digest = format!("busybox@{}", image.manifest_digest);
        let with_tag = format!("busybox:gone@{}", image.manifest_digest);
        let (hex, names) = (&image.id[7..], ["busybox", "busybox:latest"]);
        let ids = [image.id.as_str(), hex, &hex[..12], &image.id[..19], &by_digest, &with_tag];
        for name in names.iter().chain(&ids) {
            assert_eq!(store.store.resolve(name).unwrap(), image, "{name}");
        }
        assert_eq!(image.repo_tags, ["busybox:latest"]);
        assert_eq!(image.repo_digests, [by_digest]);
        let missing = store.store.resolve("docker.io/library/other").unwrap_err();
        assert_eq!(missing.to_string(), "No such image: other:latest");
        assert!(matches!(store.store.resolve("UPPER"), Err(ImageError::Reference(_))));
        store.reopen();
    }
    assert_eq!(image.bytes, 1);
    assert_eq!(image.os, "linux");
    assert!(image.created > skep_core::time::Stamp(0));
    assert_eq!(image.history[0].comment, "Imported from -");
    assert_eq!(store.store.manifest(&image).unwrap().len() as u64, image.manifest_bytes);
    assert!(store.files("images").contains("oci-layout"));
}

#[test]
fn every_compression_gives_the_same_layer() {
    let store = Store::new();
    let mut tar = Tar::new();
    tar.file("a", &[7; 100_000]);
    let plain = tar.done();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    let layers: BTreeSet<_> = [&plain, &gzip, &zstd]
        .map(|archive| store.import(archive, None).unwrap().diff_ids.clone())
        .into();
    assert_eq!(layers.len(), 1);
    assert_eq!(store.files("layers").len(), 1);
    for cut in [&gzip[..gzip.len() / 2], &zstd[..zstd.len() / 2]] {
        assert!(matches!(store.import(cut, None), Err(ImageError::Archive(_))));
    }
}

#[test]
fn instructions_shape_the_configuration() {
    let store = Store::new();
    let mut tar = Tar::new();
    tar.file("a", b"");
    let changes = [
        "CMD [\"sleep\", \"1\"]",
        "entrypoint /bin/app --flag",
        "ENV A=1 B=\"two words\"\nENV PATH /bin:$A",
        "WORKDIR /srv",
        "WORKDIR app",
        "USER app:app",
        "EXPOSE 80 53/udp 8000-8001",
        "STOPSIGNAL SIGUSR1",
        "LABEL a.b=c \\\n d='e f'",
        "VOLUME /data /more",
        "# remark",
    ];
    let import = Import {
        reference: None,
        message: "made by hand".into(),
        changes: changes.map(str::to_owned).into(),
    };
    let image = store.store.import(&mut Cursor::new(tar.done()), &import).unwrap();
    let config = &image.config;
    assert_eq!(config.cmd, ["sleep", "1"]);
    assert_eq!(config.entrypoint, ["/bin/sh", "-c", "/bin/app --flag"]);
    assert_eq!(config.env, ["A=1", "B=two words", "PATH=/bin:1"]);
    assert_eq!(config.working_dir, "/srv/app");
    assert_eq!(config.user, "app:app");
    assert_eq!(config.exposed_ports, ["53/udp", "80/tcp", "8000/tcp", "8001/tcp"]);
    assert_eq!(config.stop_signal, "SIGUSR1");
    assert_eq!(config.labels["a.b"], "c");
    assert_eq!(config.labels["d"], "e f");
    assert_eq!(config.volumes, ["/data", "/more"]);
    assert_eq!(image.comment, "made by hand");
}

#[test]
fn bad_instructions_are_refused_before_anything_is_read() {
    let store = Store::new();
    for change in [
        "RUN make",
        "ENV",
        "ENV A",
        "EXPOSE x",
        "EXPOSE 0",
        "EXPOSE 9-1",
        "USER a b",
        "ENV A=\"b",
        "LABEL =x",
        "WORKDIR ${A",
        "nonsense",
    ] {
        let import = Import { changes: vec![change.into()], ..Import::default() };
        let result = store.store.import(&mut Cursor::new(b"no tar"), &import);
        assert!(matches!(result, Err(ImageError::Change(_))), "{change}");
    }
}

#[test]
fn entries_keep_what_they_are() {
    let store = Store::new();
    let mut tar = Tar::new();
    tar.entry(EntryType::Directory, "./", "", b"");
    tar.entry(EntryType::Directory, "usr/bin/", "", b"");
    tar.entry(EntryType::Symlink, "bin", "/usr/bin", b"");
    tar.file("bin/app", b"app");
    tar.file("./bin//app", b"again");
    tar.entry(EntryType::Link, "hard", "usr/bin/app", b"");
    tar.entry(EntryType::Fifo, "fifo", "", b"");
    tar.entry(EntryType::Char, "null", "", b"");
    tar.file("made/on/the/way", b"");
    let xattr = ("SCHILY.xattr.user.note", b"x".as_slice());
    let steering = ("SCHILY.xattr.trusted.overlay.redirect", b"/".as_slice());
    tar.0.append_pax_extensions([xattr, steering, ("mtime", b"5.25")]).unwrap();
    tar.file("noted", b"");
    let image = store.import(&tar.done(), None).unwrap();
    let layer = store.layer(&image);
    let look = |name: &str| fs::symlink_metadata(layer.join(name)).unwrap();
    assert_eq!(fs::read(layer.join("usr/bin/app")).unwrap(), b"again");
    assert_eq!(look("hard").ino(), look("usr/bin/app").ino());
    assert_eq!(fs::read_link(layer.join("bin")).unwrap(), Path::new("/usr/bin"));
    assert!(look("fifo").file_type().is_fifo());
    assert_eq!((look("null").file_type().is_char_device(), look("null").rdev()), (true, 0x103));
    for name in ["usr/bin", "usr/bin/app", "bin", "fifo", "null", ""] {
        let found = look(name);
        assert_eq!((found.uid(), found.gid(), found.mtime()), (7, 8, 1_000_000_000), "{name}");
    }
    assert_eq!((look("made/on").uid(), look("made/on").mode() & 0o7777), (0, 0o755));
    assert_eq!((look("noted").mtime(), look("noted").mtime_nsec()), (5, 250_000_000));
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(layer.join("noted"), "user.note", &mut value), Ok(1));
    assert!(
        rustix::fs::getxattr(layer.join("noted"), "trusted.overlay.redirect", &mut value).is_err()
    );
}

#[test]
fn whiteouts_are_overlays() {
    let store = Store::new();
    let mut tar = Tar::new();
    tar.file("etc/.wh.gone", b"");
    tar.file("var/.wh..wh..opq", b"");
    tar.file("var/kept", b"");
    tar.file(".wh..wh.plnk", b"");
    let image = store.import(&tar.done(), None).unwrap();
    let layer = store.layer(&image);
    let gone = fs::symlink_metadata(layer.join("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let mut value = [0; 4];
    let opaque = rustix::fs::getxattr(layer.join("var"), "trusted.overlay.opaque", &mut value);
    assert_eq!((opaque, value[0]), (Ok(1), b'y'));
    assert!(!layer.join("etc/.wh.gone").exists() && !layer.join(".wh..wh.plnk").exists());
    for name in ["a/.wh...", "a/.wh..", "a/.wh."] {
        let mut tar = Tar::new();
        tar.file(name, b"");
        assert!(store.import(&tar.done(), None).is_err(), "{name}");
    }
}

#[test]
fn nothing_leaves_the_root() {
    let store = Store::new();
    let outside = store.dir.path().join("outside");
    fs::write(&outside, b"untouched").unwrap();
    for name in ["../up", "/../up", "a/../../up", "a/..", ".."] {
        let mut tar = Tar::new();
        tar.file(name, b"evil");
        let refused = store.import(&tar.done(), None).unwrap_err();
        assert!(matches!(refused, ImageError::Archive(ArchiveError::Path(_))), "{name}");
    }
    // A name from the root means the container's root, as it does to Docker.
    let mut tar = Tar::new();
    tar.file(outside.to_str().unwrap(), b"evil");
    let image = store.import(&tar.done(), None).unwrap();
    let below = outside.strip_prefix("/").unwrap();
    assert_eq!(fs::read(store.layer(&image).join(below)).unwrap(), b"evil");
    // Links lead where they would in the container, so never out of it.
    for target in ["../..", "../../..", store.dir.path().to_str().unwrap(), "/"] {
        let mut tar = Tar::new();
        tar.entry(EntryType::Symlink, "link", target, b"");
        tar.file("link/outside", b"evil");
        // Whether it fits in there is another matter.
        let _ = store.import(&tar.done(), None);
        let mut tar = Tar::new();
        tar.entry(EntryType::Symlink, "file", &format!("{target}/outside"), b"");
        tar.file("file", b"evil");
        let image = store.import(&tar.done(), None).unwrap();
        assert!(fs::symlink_metadata(store.layer(&image).join("file")).unwrap().is_file());
    }
    for target in ["../outside", "/etc/passwd", "", "missing"] {
        let mut tar = Tar::new();
        tar.entry(EntryType::Link, "hard", target, b"");
        assert!(store.import(&tar.done(), None).is_err(), "{target}");
    }
    assert_eq!(fs::read(&outside).unwrap(), b"untouched");
    let expected: BTreeSet<_> = ["images", "layers", "outside"].map(str::to_owned).into();
    assert_eq!(store.files(""), expected);
}

#[test]
fn a_broken_archive_leaves_nothing_behind() {
    let store = Store::new();
    let mut tar = Tar::new();
    tar.file("a", &[1; 5000]);
    tar.file("b", &[2; 5000]);
    let whole = tar.done();
    let mut flipped = whole.clone();
    flipped[512 + 5120 + 3] ^= 1;
    let mut garbage = b"this is no tar archive, ".repeat(100);
    garbage.truncate(1024);
    let cases: [&[u8]; 6] = [&[], b"x", &garbage, &flipped, &whole[..3000], &whole[..6144 + 700]];
    for (n, bytes) in cases.into_iter().enumerate() {
        let refused = store.import(bytes, Some("broken")).unwrap_err();
        assert!(matches!(refused, ImageError::Archive(_)), "{n}: {refused:?}");
    }
    assert!(store.files("layers").is_empty());
    assert!(store.files("images/blobs/sha256").is_empty());
    assert!(store.store.list().is_empty());
    // Many writers leave out the end marker; nothing is missing then.
    store.import(&whole[..whole.len() - 1024], None).unwrap();
}

#[test]
fn long_headers_and_unknown_entries_are_refused() {
    let store = Store::new();
    let refusal = |tar: Tar| store.import(&tar.done(), None).unwrap_err();
    for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink] {
        let mut tar = Tar::new();
        tar.entry(kind, "x", "", &vec![b'a'; 2 << 20]);
        let refused = refusal(tar);
        assert!(matches!(refused, ImageError::Archive(ArchiveError::TooLong { .. })));
    }
    let mut tar = Tar::new();
    tar.entry(EntryType::new(b'Q'), "x", "", b"");
    let refused = refusal(tar);
    assert!(matches!(refused, ImageError::Archive(ArchiveError::Unsupported { .. })));
    for records in ["no record", "99 path=a\n", "8 path=a\n", "12 size=-1x\n"] {
        let mut tar = Tar::new();
        tar.entry(EntryType::XHeader, "x", "", records.as_bytes());
        tar.file("a", b"");
        let refused = refusal(tar);
        assert!(matches!(refused, ImageError::Archive(ArchiveError::Header(_))), "{records}");
    }
    let mut tar = Tar::new();
    let long = format!("{}/file", "d".repeat(200));
    tar.0.append_pax_extensions([("path", long.as_bytes())]).unwrap();
    tar.file("short", b"long");
    let image = store.import(&tar.done(), None).unwrap();
    assert_eq!(fs::read(store.layer(&image).join(long)).unwrap(), b"long");
}

#[test]
fn tags_move_and_digests_stay() {
    let mut store = Store::new();
    let (old, new) = (store.image("old", "app:1"), store.image("new", "app:1"));
    assert_ne!(old.id, new.id);
    assert_eq!(store.store.resolve("app:1").unwrap().id, new.id);
    let old = store.store.resolve(&format!("app:1@{}", old.manifest_digest)).unwrap();
    assert!(old.repo_tags.is_empty() && old.repo_digests.len() == 1);
    store.store.tag(&new.id[..19], "host:5000/team/app:2").unwrap();
    assert!(store.store.tag("nothing", "a").is_err() && store.store.tag(&new.id, "A").is_err());
    let digest = format!("app@{}", old.manifest_digest);
    assert!(store.store.tag(&new.id, &digest).is_err());
    assert!(store.import(b"", Some(&digest)).is_err());
    store.reopen();
    let new = store.store.resolve("host:5000/team/app:2").unwrap();
    assert_eq!(new.repo_tags, ["app:1", "host:5000/team/app:2"]);
    assert_eq!(store.store.list().len(), 2);
}

#[test]
fn removal_follows_dockers_rules() {
    let store = Store::new();
    let free = |_: &str| None;
    let image = store.image("a", "app:1");
    store.store.tag("app:1", "other").unwrap();
    let refused = store.store.remove(&image.id, false, &free).unwrap_err();
    assert!(refused.to_string().contains("must be forced"), "{refused}");
    let other = store.store.remove("other", false, &free).unwrap();
    let digest = format!("other@{}", image.manifest_digest);
    assert_eq!(other, [Removed::Untagged("other:latest".into()), Removed::Untagged(digest)]);
    for (force, in_use, text) in [
        (false, ImageUse::Running("c".repeat(64)), "must force"),
        (false, ImageUse::Stopped("c".repeat(64)), "must force"),
    ] {
        let refused = store.store.remove("app:1", force, &|_| Some(in_use.clone())).unwrap_err();
        assert!(matches!(&refused, ImageError::Conflict(t) if t.contains(text)), "{refused}");
    }
    let running = |_: &str| Some(ImageUse::Running("c".repeat(64)));
    let refused = store.store.remove(&image.id, true, &running).unwrap_err();
    assert!(refused.to_string().contains("cannot be forced"), "{refused}");
    let removed = store.store.remove("app:1", false, &free).unwrap();
    assert_eq!(removed[2], Removed::Deleted(image.id.clone()));
    assert_eq!(removed[3], Removed::Deleted(image.diff_ids[0].clone()));
    assert!(store.files("layers").is_empty());
    assert!(store.files("images/blobs/sha256").is_empty());
    assert!(matches!(store.store.remove("app:1", true, &free), Err(ImageError::NotFound(_))));
}

#[test]
fn a_layer_of_two_images_stays_until_the_last_is_gone() {
    let store = Store::new();
    let free = |_: &str| None;
    let mut tar = Tar::new();
    tar.file("a", b"a");
    let tar = tar.done();
    let first = store.import(&tar, Some("a:1")).unwrap();
    let cmd = Import { changes: vec!["CMD [\"x\"]".into()], ..Import::default() };
    let second = store.store.import(&mut Cursor::new(&tar), &cmd).unwrap();
    assert_eq!(first.diff_ids, second.diff_ids);
    store.store.remove("a:1", false, &free).unwrap();
    assert!(store.layer(&second).join("a").exists());
    store.store.remove(&second.id, false, &free).unwrap();
    assert!(store.files("layers").is_empty());
}

#[test]
fn leftovers_are_cleared_and_damage_is_left_alone() {
    let mut store = Store::new();
    let (good, bad) = (store.image("good", "good"), store.image("bad", "bad"));
    fs::create_dir(store.dir.path().join("layers/.tmp-1")).unwrap();
    fs::create_dir(store.dir.path().join(format!("layers/{}", "0".repeat(64)))).unwrap();
    fs::write(store.dir.path().join("images/blobs/sha256/.tmp-2"), b"").unwrap();
    store.reopen();
    assert_eq!(store.files("layers").len(), 2);
    assert_eq!(store.files("images/blobs/sha256").len(), 6);
    let config = store.dir.path().join("images/blobs/sha256").join(&bad.id[7..]);
    fs::write(&config, b"{}").unwrap();
    store.reopen();
    assert!(store.store.resolve("bad").is_err());
    assert_eq!(store.store.resolve("good").unwrap(), good);
    assert!(config.exists());
    fs::write(store.dir.path().join("images/index.json"), b"{").unwrap();
    let refused = ImageStore::open(store.dir.path()).unwrap_err();
    assert!(matches!(&refused, ImageError::Damaged { path, .. } if path.ends_with("index.json")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_instruction_panics(line in "(ENV|LABEL|CMD|EXPOSE|VOLUME|USER) [a-z0-9 ='\"$\\\\{}\\[\\],/-]{0,40}") {
        let mut config = ImageConfig::default();
        let _ = changes::apply(&mut config, &[line]);
    }

    #[test]
    fn no_extended_header_panics(
        records in "([0-9]{1,3} (path|size|mtime|uid|x)=[a-z0-9.-]{0,6}\n){0,3}",
        sparse in proptest::collection::vec(
            ("(map|size|realsize|major|minor|name|offset|numbytes)", "[0-9]{0,2}(,[0-9]{1,2}){0,4}"),
            0..5,
        ),
    ) {
        let store = Store::new();
        let mut tar = Tar::new();
        let named: Vec<_> =
            sparse.iter().map(|(key, value)| (format!("GNU.sparse.{key}"), value)).collect();
        let pairs = named.iter().map(|(key, value)| (key.as_str(), value.as_bytes()));
        tar.0.append_pax_extensions(pairs).unwrap();
        tar.file("a", b"2\n0\n1\n3\n2\nabc");
        let _ = store.import(&tar.done(), None);
        let store = Store::new();
        let mut tar = Tar::new();
        tar.entry(EntryType::XHeader, "x", "", records.as_bytes());
        tar.file("a", b"abc");
        let _ = store.import(&tar.done(), None);
    }

    /// Whatever bytes come, and however a good archive is damaged: an error or an image, and
    /// nothing outside of the store.
    #[test]
    fn no_archive_breaks_the_store(
        junk in proptest::collection::vec(any::<u8>(), 0..2048),
        at in 0usize..4096,
        byte in any::<u8>(),
    ) {
        let store = Store::new();
        let _ = store.import(&junk, None);
        let mut tar = Tar::new();
        tar.entry(EntryType::Symlink, "l", "..", b"");
        tar.file("l/a", b"abc");
        tar.entry(EntryType::Link, "h", "a", b"");
        tar.entry(EntryType::Directory, "d", "", b"");
        let mut archive = tar.done();
        let at = at % archive.len();
        archive[at] = byte;
        let image = store.import(&archive, None);
        let expected: BTreeSet<_> = ["images", "layers"].map(str::to_owned).into();
        prop_assert_eq!(store.files(""), expected);
        prop_assert_eq!(store.files("layers").len(), usize::from(image.is_ok()));
    }
}
