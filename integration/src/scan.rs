//! Looks for a secret's bytes where they must not be: in the memory of processes, on the disk.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem::Finder;

use crate::host::Process;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// A secret made to be found: random letters, and the forms in which they could be left behind.
#[derive(Debug)]
pub struct Marker {
    text: String,
    patterns: Vec<(&'static str, Vec<u8>)>,
}

impl Marker {
    /// A fresh marker of 48 letters.
    pub fn new() -> Result<Self> {
        let mut bytes = [0; 48];
        getrandom::fill(&mut bytes).map_err(|error| anyhow!("randomness: {error}"))?;
        let text: String = bytes.iter().map(|byte| char::from(b'a' + byte % 26)).collect();
        let mut patterns = vec![
            ("plain", text.clone().into_bytes()),
            ("utf-16", text.encode_utf16().flat_map(u16::to_le_bytes).collect()),
            ("hex", text.bytes().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect()),
        ];
        // In a longer text the marker may start at any of three places of a base64 group.
        for (shift, skip) in [(0, 0), (1, 2), (2, 3)] {
            let mut shifted = vec![0; shift];
            shifted.extend(text.bytes());
            let coded = STANDARD.encode(shifted).into_bytes();
            let inner = coded.get(skip..coded.len() - 4).unwrap_or_default().to_vec();
            patterns.push(("base64", inner));
        }
        Ok(Self { text, patterns })
    }

    /// Bytes that are recognised by any of three pieces of them; there is no text.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        const PIECE: usize = 48;
        let last = bytes.len().checked_sub(PIECE).context("too few bytes to be recognised")?;
        let piece = |at: usize| bytes.get(at..at + PIECE).unwrap_or_default().to_vec();
        let pieces = [("begin", 0), ("middle", last / 2), ("end", last)];
        let patterns = pieces.map(|(form, at)| (form, piece(at))).to_vec();
        Ok(Self { text: String::new(), patterns })
    }

    /// The secret itself.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn finders(&self) -> Vec<(&'static str, Finder<'_>)> {
        self.patterns.iter().map(|(form, bytes)| (*form, Finder::new(bytes))).collect()
    }

    fn longest(&self) -> usize {
        self.patterns.iter().map(|(_, bytes)| bytes.len()).max().unwrap_or(0)
    }
}

/// A place where a marker was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// Process id; 0 on the disk.
    pub pid: i32,
    /// Mapping or file.
    pub place: String,
    /// In which form.
    pub form: &'static str,
}

/// Searches all readable memory of the processes. Memory that the kernel shows to nobody
/// (secretmem) reads as an error and counts as not found.
pub fn scan_memory(processes: &[Process], marker: &Marker) -> Result<Vec<Hit>> {
    let finders = marker.finders();
    let mut hits = Vec::new();
    for process in processes {
        let directory = PathBuf::from(format!("/proc/{}", process.pid));
        // The process may have ended meanwhile.
        let Ok(maps) = File::open(directory.join("maps")) else { continue };
        let Ok(memory) = File::open(directory.join("mem")) else { continue };
        for line in BufReader::new(maps).lines() {
            let Ok(line) = line else { break };
            let Some((start, end)) = range_of(&line) else { continue };
            search(
                start,
                end,
                marker.longest(),
                &finders,
                |form| {
                    hits.push(Hit { pid: process.pid, place: line.clone(), form });
                },
                |chunk, at| memory.read_at(chunk, at).unwrap_or(0),
            );
        }
    }
    Ok(hits)
}

/// Searches every regular file below `directory`.
pub fn scan_disk(directory: &Path, marker: &Marker) -> Result<Vec<Hit>> {
    let finders = marker.finders();
    let mut hits = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        let Ok(kind) = fs::symlink_metadata(&path) else { continue };
        if kind.is_dir() {
            let Ok(entries) = fs::read_dir(&path) else { continue };
            open.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
        } else if kind.is_file() {
            let Ok(file) = File::open(&path) else { continue };
            search(
                0,
                kind.len(),
                marker.longest(),
                &finders,
                |form| {
                    hits.push(Hit { pid: 0, place: path.display().to_string(), form });
                },
                |chunk, at| file.read_at(chunk, at).unwrap_or(0),
            );
        }
    }
    Ok(hits)
}

fn range_of(line: &str) -> Option<(u64, u64)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    // The vsyscall page lies outside what can be read.
    let readable = rest.starts_with('r') && !rest.contains("[vsyscall]");
    let bound = |text| u64::from_str_radix(text, 16).ok();
    readable.then_some((bound(start)?, bound(end)?))
}

/// Reads `start..end` chunk by chunk with an overlap, so that no pattern falls between two.
fn search(
    start: u64,
    end: u64,
    overlap: usize,
    finders: &[(&'static str, Finder<'_>)],
    mut hit: impl FnMut(&'static str),
    read: impl Fn(&mut [u8], u64) -> usize,
) {
    let mut chunk = vec![0; CHUNK];
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
        let Some(buffer) = chunk.get_mut(..want) else { break };
        let got = read(buffer, at);
        let Some(bytes) = buffer.get(..got) else { break };
        for (form, finder) in finders {
            if finder.find(bytes).is_some() {
                hit(form);
            }
        }
        // A hole: go on behind the page that could not be read.
        let step = if got == 0 {
            4096
        } else if got < want {
            got
        } else {
            want.saturating_sub(overlap)
        };
        at += step.max(1) as u64;
        if got == want && at + overlap as u64 >= end {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scanner itself: a scan that finds nothing must be one that would have found it.
    #[test]
    fn finds_every_form_on_disk() {
        let marker = Marker::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("inner/file");
        fs::create_dir(directory.path().join("inner")).unwrap();
        for shift in 0..3 {
            // Around the border of two chunks.
            for at in [0, CHUNK - 30, 2 * CHUNK - 1] {
                let mut bytes = vec![b'.'; at];
                let json = format!("{}{}tail", "{\"a".get(..shift).unwrap(), marker.text());
                bytes.extend(STANDARD.encode(json).bytes());
                bytes.extend([b'.'; 5000]);
                fs::write(&file, bytes).unwrap();
                let hits = scan_disk(directory.path(), &marker).unwrap();
                assert!(hits.iter().any(|hit| hit.form == "base64"), "shift {shift} at {at}");
            }
        }
        fs::write(&file, marker.text()).unwrap();
        assert_eq!(scan_disk(directory.path(), &marker).unwrap().len(), 1);
        fs::write(&file, "nothing").unwrap();
        assert!(scan_disk(directory.path(), &marker).unwrap().is_empty());
    }

    #[test]
    fn finds_it_in_memory() {
        let marker = Marker::new().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let own = Process { pid, parent: 0, args: Vec::new() };
        let hits = scan_memory(&[own], &marker).unwrap();
        assert!(hits.iter().any(|hit| hit.form == "plain"));
    }
}
