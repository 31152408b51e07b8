//! What a layer's entries become: files with holes, attributes, whiteouts beside what they hide.

use std::process::Command;

use super::super::archive::{Archive, EntryKind};
use super::*;

/// Where a file with holes has its bytes.
const DATA: [(u64, &[u8]); 3] = [(0, b"begin"), (3 << 20, b"middle"), (10 << 20, b"end")];

fn holey(path: &Path) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::create(path).unwrap();
    for (at, bytes) in DATA {
        file.write_all_at(bytes, at).unwrap();
    }
    file.set_len(12 << 20).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn files_with_holes_keep_them_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let expected = holey(&dir.path().join("holey"));
    fs::write(dir.path().join("after"), b"after").unwrap();
    // Many pieces, so that the old format needs blocks behind its header.
    let many = fs::File::create(dir.path().join("many")).unwrap();
    for at in 0..200u64 {
        use std::os::unix::fs::FileExt;
        many.write_all_at(b"x", at * 16384).unwrap();
    }
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let mut tar = Command::new("tar");
        tar.args(["-C", dir.path().to_str().unwrap(), "--sparse", "-cf", "-"]).args(format);
        let made = tar.args(["holey", "many", "after"]).output().unwrap();
        assert!(made.status.success() && made.stdout.len() < 2 << 20, "{format:?}");
        let store = Store::new();
        let image = store.import(&made.stdout, None).unwrap();
        let found = store.layer(&image).join("holey");
        assert!(fs::read(&found).unwrap() == expected, "{format:?}");
        let blocks = fs::metadata(&found).unwrap().blocks();
        assert!(blocks < 2048, "{format:?}: {blocks} blocks");
        let many = fs::read(store.layer(&image).join("many")).unwrap();
        assert!(many == fs::read(dir.path().join("many")).unwrap(), "{format:?}");
        assert_eq!(fs::read(store.layer(&image).join("after")).unwrap(), b"after");
        assert_eq!(image.bytes, (12 << 20) + many.len() as u64 + 5);
        // The same, read as one stream.
        let mut archive = Archive::new(made.stdout.as_slice());
        let entry = archive.next().unwrap().unwrap();
        let mut bytes = Vec::new();
        archive.filled(&entry).read_to_end(&mut bytes).unwrap();
        assert!(bytes == expected, "{format:?}");
        assert_eq!(archive.next().unwrap().unwrap().kind, EntryKind::File);
    }
}

/// An old header with these pieces, as text in its fields.
fn old(pieces: &[(&str, &str)], real: &str, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_path("holey").unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(data.len() as u64);
    let bytes = header.as_mut_bytes();
    for (at, (offset, len)) in pieces.iter().enumerate() {
        let start = 386 + 24 * at;
        bytes[start..start + offset.len()].copy_from_slice(offset.as_bytes());
        bytes[start + 12..start + 12 + len.len()].copy_from_slice(len.as_bytes());
    }
    bytes[483..483 + real.len()].copy_from_slice(real.as_bytes());
    header.set_cksum();
    let mut tar = Builder::new(Vec::new());
    tar.append(&header, data).unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn maps_of_holes_that_lie_are_refused() {
    let store = Store::new();
    assert!(store.import(&old(&[("10", "3")], "20", b"abc"), None).is_ok());
    for (pieces, real, data) in [
        (&[("10", "4")][..], "20", b"abc".as_slice()),
        (&[("10", "2")], "20", b"abc"),
        (&[("16", "3")], "20", b"abc"),
        (&[("10", "2"), ("1", "1")], "20", b"abc"),
        (&[("77777777777", "77777777777")], "20", b"abc"),
        (&[("1x", "3")], "20", b"abc"),
        (&[], "77777777777", b"abc"),
    ] {
        let refused = store.import(&old(pieces, real, data), None).unwrap_err();
        let is_sparse = matches!(refused, ImageError::Archive(ArchiveError::Sparse(_)));
        assert!(is_sparse, "{pieces:?}: {refused:?}");
    }
    // Holes are free on disk, and still not without end.
    let refused = store.import(&old(&[("77777777777", "0")], "77777777777", b""), None);
    assert!(refused.is_ok(), "8 GiB are allowed");
    let huge = [("GNU.sparse.major", b"0".as_slice()), ("GNU.sparse.minor", b"1")];
    let more = [("GNU.sparse.map", b"".as_slice()), ("GNU.sparse.size", b"999999999999999")];
    let mut tar = Tar::new();
    tar.0.append_pax_extensions(huge.into_iter().chain(more)).unwrap();
    tar.file("huge", b"");
    let refused = store.import(&tar.done(), None).unwrap_err();
    assert!(matches!(refused, ImageError::Archive(ArchiveError::TooLarge(_))), "{refused:?}");
    for map in ["1\n", "1\n0\n", "x\n0\n3\n", "-1\n", "99999999999999999999\n", "2\n0\n1\n0\n2\n"] {
        let records = [("GNU.sparse.major", b"1".as_slice()), ("GNU.sparse.minor", b"0")];
        let mut tar = Tar::new();
        let real = [("GNU.sparse.realsize", b"3".as_slice())];
        tar.0.append_pax_extensions(records.into_iter().chain(real)).unwrap();
        let mut data = map.as_bytes().to_vec();
        data.resize(512, 0);
        data.extend_from_slice(b"abc");
        tar.file("holey", &data);
        assert!(store.import(&tar.done(), None).is_err(), "{map:?}");
    }
}

#[test]
fn attributes_and_owners_survive() {
    let store = Store::new();
    let mut capability = vec![1, 0, 0, 2, 0, 4, 0, 0];
    capability.resize(20, 0);
    let mut tar = Tar::new();
    let records = [
        ("SCHILY.xattr.security.capability", capability.as_slice()),
        ("SCHILY.xattr.user.note", b"x"),
        ("SCHILY.xattr.security.evil", b"x"),
        ("uid", b"4294967294"),
        ("gid", b"3000000000"),
        ("mtime", b"-1.5"),
    ];
    tar.0.append_pax_extensions(records).unwrap();
    let mut header = Header::new_ustar();
    header.set_path("ping").unwrap();
    header.set_mode(0o6755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_cksum();
    tar.0.append(&header, &[][..]).unwrap();
    let image = store.import(&tar.done(), None).unwrap();
    let path = store.layer(&image).join("ping");
    let found = fs::metadata(&path).unwrap();
    assert_eq!(
        (found.uid(), found.gid(), found.mode() & 0o7777),
        (u32::MAX - 1, 3_000_000_000, 0o6755)
    );
    assert_eq!((found.mtime(), found.mtime_nsec()), (-2, 500_000_000));
    let mut value = [0; 64];
    let len = rustix::fs::getxattr(&path, "security.capability", &mut value).unwrap();
    assert_eq!(value[..len], capability);
    assert!(rustix::fs::getxattr(&path, "security.evil", &mut value).is_err());
    for id in ["4294967295", "4294967296"] {
        let mut tar = Tar::new();
        tar.0.append_pax_extensions([("uid", id.as_bytes())]).unwrap();
        tar.file("a", b"");
        let refused = store.import(&tar.done(), None).unwrap_err();
        assert!(matches!(refused, ImageError::Archive(ArchiveError::Owner { .. })), "{refused:?}");
    }
}

#[test]
fn a_whiteout_hides_only_what_is_below_its_layer() {
    let is_opaque =
        |path: &Path| rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut [0; 4]) == Ok(1);
    for first in [true, false] {
        let store = Store::new();
        let mut tar = Tar::new();
        if first {
            tar.file(".wh.dir", b"");
            tar.file(".wh.file", b"");
        }
        tar.entry(EntryType::Directory, "dir", "", b"");
        tar.file("dir/new", b"new");
        tar.file("file", b"new");
        tar.entry(EntryType::Directory, "other", "", b"");
        if !first {
            tar.file(".wh.dir", b"");
            tar.file(".wh.file", b"");
        }
        tar.file(".wh.gone", b"");
        tar.file(".wh.gone", b"");
        let image = store.import(&tar.done(), None).unwrap();
        let layer = store.layer(&image);
        assert!(is_opaque(&layer.join("dir")) && !is_opaque(&layer.join("other")), "{first}");
        assert_eq!(fs::read(layer.join("dir/new")).unwrap(), b"new");
        assert_eq!(fs::read(layer.join("file")).unwrap(), b"new");
        assert!(fs::symlink_metadata(layer.join("gone")).unwrap().file_type().is_char_device());
    }
}

#[test]
fn the_later_entry_counts() {
    let store = Store::new();
    let mut tar = Tar::new();
    tar.file("a/deep/file", b"old");
    tar.file("a", b"new");
    tar.file("b", b"old");
    tar.entry(EntryType::Directory, "b", "", b"");
    tar.file("b/c", b"new");
    tar.file("d", b"same");
    tar.entry(EntryType::Link, "d", "d", b"");
    tar.entry(EntryType::Link, "e", "/d", b"");
    tar.entry(EntryType::Symlink, "b/c", "../a", b"");
    let image = store.import(&tar.done(), None).unwrap();
    let layer = store.layer(&image);
    assert_eq!(fs::read(layer.join("a")).unwrap(), b"new");
    assert_eq!(fs::read(layer.join("e")).unwrap(), b"same");
    assert_eq!(fs::read_link(layer.join("b/c")).unwrap(), Path::new("../a"));
    let mut tar = Tar::new();
    tar.entry(EntryType::Link, "hard", "etc/below", b"");
    let refused = store.import(&tar.done(), None).unwrap_err();
    let refused = format!("{refused:?}");
    assert!(refused.contains("which this layer does not have before it"), "{refused}");
}
