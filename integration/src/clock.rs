//! A wall clock of a process's own. Time namespaces do not cover CLOCK_REALTIME, and a static
//! binary takes no preloaded library: so the harness rewrites, before the first instruction of the
//! program, the function with which the kernel's vDSO tells it the time. The program under test is
//! as it is released.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::ptrace;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// Asks the kernel (x86-64) and adds the word behind it to the seconds of CLOCK_REALTIME and
/// CLOCK_REALTIME_COARSE.
const STUB: [u8; 32] = [
    0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, SYS_clock_gettime
    0x0f, 0x05, // syscall
    0x85, 0xc0, // test eax, eax
    0x75, 0x13, // jne end
    0x85, 0xff, // test edi, edi
    0x74, 0x05, // je add
    0x83, 0xff, 0x05, // cmp edi, CLOCK_REALTIME_COARSE
    0x75, 0x0a, // jne end
    0x48, 0x8b, 0x0d, 0x05, 0x00, 0x00, 0x00, // add: mov rcx, [offset]
    0x48, 0x01, 0x0e, // add [rsi], rcx
    0xc3, // end: ret
    0x90, // the offset follows, aligned
];
/// Bytes of the largest vDSO.
const IMAGE: usize = 64 << 10;
/// The function, and what the file that holds it is asked for.
const FUNCTION: &[u8] = b"__vdso_clock_gettime\0";
const AT_SYSINFO_EHDR: u64 = 33;
const SHT_DYNSYM: u64 = 11;

/// The wall clock of one process.
#[derive(Debug)]
pub(crate) struct Clock {
    memory: File,
    /// Where in it the offset is.
    offset: u64,
}

impl Clock {
    /// Starts a process with a clock that can be moved.
    pub(crate) fn start(command: &mut Command) -> Result<(Child, Self)> {
        ensure!(cfg!(target_arch = "x86_64"), "clocks can be moved on x86-64 only");
        let traced = || ptrace::traceme().map_err(std::io::Error::from);
        // SAFETY: between fork and exec it makes one system call and allocates nothing.
        unsafe { command.pre_exec(traced) };
        let mut child = command.spawn().context("start with a movable clock")?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        // It stops before its first instruction.
        let taken = match waitpid(pid, None)? {
            WaitStatus::Stopped(..) => Self::take(pid),
            other => bail!("{other:?} instead of a stop at exec"),
        };
        ptrace::detach(pid, None)?;
        match taken {
            Ok(clock) => Ok((child, clock)),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    fn take(pid: Pid) -> Result<Self> {
        let vector = fs::read(format!("/proc/{pid}/auxv"))?;
        let base = vector.chunks_exact(16).find_map(|pair| {
            (word(pair, 0, 8)? == AT_SYSINFO_EHDR).then(|| word(pair, 8, 8)).flatten()
        });
        let base = base.context("no vDSO")?;
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        let mut image = vec![0; IMAGE];
        let length = memory.read_at(&mut image, base)?;
        image.truncate(length);
        let (at, size) = function(&image).context("the vDSO has no clock_gettime")?;
        let needed = STUB.len() as u64 + 8;
        ensure!(size >= needed, "the vDSO's clock_gettime has {size} bytes, not {needed}");
        let code = [&STUB[..], &[0; 8]].concat();
        memory.write_all_at(&code, base + at).context("write to the vDSO")?;
        Ok(Self { memory, offset: base + at + STUB.len() as u64 })
    }

    /// Puts the clock this many seconds ahead of the machine's.
    pub(crate) fn set_offset(&self, by_s: i64) -> Result<()> {
        self.memory.write_all_at(&by_s.to_le_bytes(), self.offset).context("move the clock")
    }
}

/// Offset and size of the function in an ELF image.
fn function(image: &[u8]) -> Option<(u64, u64)> {
    let (table, size, count) = (word(image, 40, 8)?, word(image, 58, 2)?, word(image, 60, 2)?);
    let section = |number: u64| image.get(usize::try_from(table + number * size).ok()?..);
    let symbols = (0..count).filter_map(section).find(|it| word(it, 4, 4) == Some(SHT_DYNSYM))?;
    let names = section(word(symbols, 40, 4)?)?;
    let names = image.get(usize::try_from(word(names, 24, 8)?).ok()?..)?;
    let (start, length) = (word(symbols, 24, 8)?, word(symbols, 32, 8)?);
    let start = usize::try_from(start).ok()?;
    let entries = image.get(start..start + usize::try_from(length).ok()?)?;
    entries.chunks_exact(24).find_map(|entry| {
        let name = usize::try_from(word(entry, 0, 4)?).ok()?;
        let found = names.get(name..)?.starts_with(FUNCTION);
        found.then(|| Some((word(entry, 8, 8)?, word(entry, 16, 8)?))).flatten()
    })
}

/// A little-endian number of `size` bytes.
fn word(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..at + size)?;
    Some(field.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}
