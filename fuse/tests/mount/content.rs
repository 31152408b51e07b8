//! What a task sees.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use skep_fuse::limits;
use skep_fuse::tree::Grant;
use skep_fuse::vault::VaultKind;

use crate::harness::{World, bind, errno, grant, private};

#[test]
fn serves_binary_content_of_any_size_from_both_vaults() {
    for kind in [VaultKind::SecretMem, VaultKind::Mlock] {
        private(move |dir| {
            let world = World::new(kind, dir);
            assert_eq!(world.vault.kind(), kind);
            for size in [0usize, 1, 64, 4_096, 4_097, 131_072, 131_073, 511_999, 1_024_000] {
                let bytes: Vec<u8> = (0..size).map(|i| (i * 31 % 256) as u8).collect();
                let name = format!("secret-{size}");
                world.deliver(&name, 1, &bytes);
                assert_eq!(fs::read(world.secret(&name)).unwrap(), bytes);
                assert_eq!(fs::metadata(world.secret(&name)).unwrap().len(), size as u64);
            }
        });
    }
}

#[test]
fn looks_as_docker_users_expect() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let password = Grant { uid: 2000, gid: 3000, mode: 0o400, ..grant("password", 1) };
        let member = world.member(password, b"0123456789abcdef");
        world.server.deliver(vec![member]).unwrap();
        let list = |options: &str| {
            let out = Command::new("ls").args([options, "-n"]).arg(world.secret("")).output();
            String::from_utf8(out.unwrap().stdout).unwrap()
        };
        let long = list("-lhart");
        let lines: Vec<Vec<&str>> =
            long.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["total", "12K"]);
        assert_eq!(lines.len(), 4, "{long}");
        for line in &lines[1..] {
            let is_directory = line[0] == "drwxr-xr-x" && line[2..5] == ["0", "0", "4.0K"];
            let is_file = line[..5] == ["-r--------", "1", "2000", "3000", "16"];
            assert!(is_directory || is_file && line[8] == "password", "{long}");
        }
        assert!(list("-l").starts_with("total 4\n"));
        let file = fs::metadata(world.secret("password")).unwrap();
        assert_eq!((file.nlink(), file.blocks(), file.mtime()), (1, 8, 1_700_000_001));
    });
}

#[test]
fn finds_sets_by_name_but_does_not_list_them() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        world.deliver("a", 1, b"one");
        world.deliver("a", 2, b"two");
        let names: Vec<_> = fs::read_dir(world.secret("")).unwrap().map(|e| e.unwrap()).collect();
        assert_eq!(names.len(), 1);
        assert_eq!(fs::read_link(world.secret("..current")).unwrap(), Path::new("..2"));
        assert_eq!(fs::read(world.secret("..current/a")).unwrap(), b"two");
        assert_eq!(fs::read(world.secret("..1/a")).unwrap(), b"one");
        world.deliver("a", 3, b"three");
        assert_eq!(errno(fs::read(world.secret("..1/a"))), Errno::ENOENT);
        assert_eq!(fs::read(world.secret("..2/a")).unwrap(), b"two");
        assert_eq!(fs::read(world.secret("..current/a")).unwrap(), b"three");
    });
}

#[test]
fn absolute_targets_are_bound_one_by_one() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let site = world.member(grant("/etc/nginx/conf.d/site.conf", 1), b"server {}");
        let key = world.member(grant("tls/site.key", 1), b"key");
        world.server.deliver(vec![site, key]).unwrap();
        let root = dir.join("root");
        fs::create_dir_all(root.join("run/secrets")).unwrap();
        fs::create_dir_all(root.join("etc/nginx/conf.d")).unwrap();
        fs::write(root.join("etc/nginx/conf.d/default.conf"), "default").unwrap();
        fs::write(root.join("etc/nginx/conf.d/site.conf"), "").unwrap();
        for found in world.server.binds() {
            let target = root.join(found.target.strip_prefix("/").unwrap());
            let source = dir.join("mnt").join(&found.source);
            assert_eq!(fs::metadata(&source).unwrap().is_dir(), found.directory);
            bind(&source, &target);
        }
        let read = |path: &str| fs::read_to_string(root.join(path));
        assert_eq!(read("etc/nginx/conf.d/site.conf").unwrap(), "server {}");
        assert_eq!(read("etc/nginx/conf.d/default.conf").unwrap(), "default");
        assert_eq!(read("run/secrets/tls/site.key").unwrap(), "key");
        let write = fs::write(root.join("etc/nginx/conf.d/site.conf"), "x");
        assert_eq!(errno(write), Errno::EROFS);
    });
}

#[test]
fn too_many_handles_are_refused_until_one_is_closed() {
    private(|dir| {
        let most = limits::HANDLES as u64 + 500;
        let (_, hard) = rlimit();
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, hard)
            .unwrap();
        let world = World::new(VaultKind::Auto, dir);
        world.deliver("a", 1, b"one");
        let path = world.secret("a");
        let mut handles: Vec<File> =
            (0..limits::HANDLES).map(|_| File::open(&path).unwrap()).collect();
        assert_eq!(errno(File::open(&path)), Errno::ENFILE);
        handles.pop();
        crate::harness::eventually("a free handle", || File::open(&path).is_ok());
    });
}

fn rlimit() -> (u64, u64) {
    nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap()
}
