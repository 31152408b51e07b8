//! Which program supervises tasks.
//!
//! A supervisor needs little of this binary, and each process of a position-independent program
//! has its own copy of whatever holds addresses: half a megabyte for all of skep. So
//! `scripts/build` puts a small program with only the supervisor, packed, into a section of the
//! binary, and the daemon keeps it in sealed memory, from where all shims run it. A binary without the
//! section, as cargo builds it, supervises with itself.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, ReadCache};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

/// The section of the binary that holds the supervisor.
const SECTION: &str = ".skep.shim";
/// Bytes of it, unpacked.
const PROGRAM_BYTES: u64 = 64 << 20;
/// This binary, be it replaced on disk meanwhile.
const OWN: &str = "/proc/self/exe";

/// The program that supervises tasks.
#[derive(Debug)]
pub struct Supervisor {
    memory: Option<OwnedFd>,
}

impl Supervisor {
    /// The supervisor inside this binary, or else this binary.
    ///
    /// # Errors
    /// If this binary cannot be read, or there is no memory for a copy.
    pub fn load() -> io::Result<Self> {
        let own = ReadCache::new(File::open(OWN)?);
        let parsed = ElfFile64::<Endianness, _>::parse(&own).map_err(io::Error::other)?;
        let Some(section) = parsed.section_by_name(SECTION) else {
            return Ok(Self { memory: None });
        };
        let packed = section.data().map_err(io::Error::other)?;
        let mut program = Vec::new();
        zstd::Decoder::new(packed)?.take(PROGRAM_BYTES).read_to_end(&mut program)?;
        let memory = copy(&program)?;
        Ok(Self { memory })
    }

    /// What to execute. The path means something only to this process and its children.
    pub(crate) fn path(&self) -> PathBuf {
        match &self.memory {
            Some(fd) => PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())),
            None => PathBuf::from(OWN),
        }
    }
}

/// A sealed copy; nothing where the kernel executes no such memory.
fn copy(program: &[u8]) -> io::Result<Option<OwnedFd>> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create("skep-shim", flags | MemfdFlags::EXEC) {
        // Forbidden by vm.memfd_noexec.
        Err(Errno::ACCESS) => return Ok(None),
        // Kernels before 6.3 know no such flag, and execute it anyway.
        Err(Errno::INVAL) => memfd_create("skep-shim", flags)?,
        made => made?,
    };
    let file = File::from(fd);
    std::os::unix::fs::FileExt::write_all_at(&file, program, 0)?;
    let fd = OwnedFd::from(file);
    fcntl_add_seals(&fd, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(Some(fd))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_copy_runs_and_cannot_be_changed() {
        let busy = std::fs::read("/bin/true").unwrap();
        let memory = copy(&busy).unwrap();
        let supervisor = Supervisor { memory };
        assert!(Command::new(supervisor.path()).status().unwrap().success());
        let file = File::from(supervisor.memory.unwrap());
        let refused = std::os::unix::fs::FileExt::write_all_at(&file, b"x", 0).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }

    /// Built by cargo, this program has no such section.
    #[test]
    fn without_the_section_it_is_this_program() {
        assert_eq!(Supervisor::load().unwrap().path(), PathBuf::from(OWN));
    }
}
