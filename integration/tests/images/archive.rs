//! Archives of images as tests want them.

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Hex digest.
pub(crate) fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header(name: &str, kind: EntryType, size: usize) -> Result<Header> {
    let mut header = Header::new_gnu();
    // Names as they are, proper or not.
    let room = header.as_mut_bytes().get_mut(..name.len());
    room.unwrap_or_default().copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(size as u64);
    header.set_cksum();
    Ok(header)
}

/// A layer of these files.
pub(crate) fn layer(files: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (name, text) in files {
        tar.append(&header(name, EntryType::Regular, text.len())?, text.as_bytes())?;
    }
    Ok(tar.into_inner()?)
}

/// A layer that hides what is below it, and has entries of every kind.
pub(crate) fn above() -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (name, text) in
        [("data/.wh.gone", ""), ("dir/.wh..wh..opq", ""), ("dir/new", "x"), ("file", "text")]
    {
        tar.append(&header(name, EntryType::Regular, text.len())?, text.as_bytes())?;
    }
    let mut hard = header("hard", EntryType::Link, 0)?;
    hard.set_link_name("file")?;
    hard.set_cksum();
    tar.append(&hard, [].as_slice())?;
    tar.append(&header("fifo", EntryType::Fifo, 0)?, [].as_slice())?;
    // The kernel's log, which no container may read.
    let mut device = header("kmsg", EntryType::Char, 0)?;
    device.set_device_major(1)?;
    device.set_device_minor(11)?;
    device.set_cksum();
    tar.append(&device, [].as_slice())?;
    tar.append_pax_extensions([("uid", b"4000000000".as_slice()), ("gid", b"7")])?;
    let mut setuid = header("setuid", EntryType::Regular, 0)?;
    setuid.set_mode(0o4755);
    setuid.set_cksum();
    tar.append(&setuid, [].as_slice())?;
    tar.append_pax_extensions([
        ("GNU.sparse.major", b"0".as_slice()),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.size", b"8388608"),
        ("GNU.sparse.map", b""),
    ])?;
    tar.append(&header("holes", EntryType::Regular, 0)?, [].as_slice())?;
    Ok(tar.into_inner()?)
}

/// Files of an archive in the form of `docker save`.
#[derive(Default)]
pub(crate) struct Files {
    files: Vec<(String, Vec<u8>)>,
    items: Vec<Value>,
}

impl Files {
    /// Adds an image.
    pub(crate) fn image(&mut self, layers: &[Vec<u8>], tags: &[&str]) -> Result<()> {
        let diff_ids: Vec<_> = layers.iter().map(|l| format!("sha256:{}", sha(l))).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let name = format!("{}.json", sha(&config));
        let mut paths = Vec::new();
        for layer in layers {
            let path = format!("{}/layer.tar", sha(layer));
            self.files.push((path.clone(), layer.clone()));
            paths.push(path);
        }
        self.items.push(json!({"Config": name, "RepoTags": tags, "Layers": paths}));
        self.files.push((name, config));
        Ok(())
    }

    /// The archive.
    pub(crate) fn tar(&self) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        let manifest = json!(self.items).to_string().into_bytes();
        let manifest = [("manifest.json".to_owned(), manifest)];
        for (name, bytes) in self.files.iter().chain(&manifest) {
            tar.append(&header(name, EntryType::Regular, bytes.len())?, bytes.as_slice())?;
        }
        Ok(tar.into_inner()?)
    }
}
