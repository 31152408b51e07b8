//! Everything that a node sends and receives, in a file in pcap's format.

use std::fs::File;
use std::io::{BufWriter, PipeWriter, Write, pipe};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};

use crate::namespace;

/// Bytes that the kernel keeps until they are written.
const BUFFER_BYTES: usize = 64 << 20;
/// Bytes of the longest frame, with room: datagrams that the kernel merged are one.
const FRAME_BYTES: usize = 128 << 10;

/// A capture that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<Result<()>>>,
    file: PathBuf,
}

impl Capture {
    /// Sees every frame on every interface of the namespace from when it returns.
    pub(crate) fn start(namespace: &Path, file: PathBuf) -> Result<Self> {
        let frames = namespace::within(namespace, || {
            let kind = (AddressFamily::Packet, SockType::Raw);
            let all = SockProtocol::EthAll;
            let frames = socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, all)?;
            setsockopt(&frames, sockopt::RcvBufForce, &BUFFER_BYTES)?;
            Ok(frames)
        })?;
        let mut out = BufWriter::new(File::create(&file)?);
        // Version 2.4, microseconds, Ethernet.
        for field in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, FRAME_BYTES as u32, 1] {
            out.write_all(&field.to_ne_bytes())?;
        }
        let (stopped, stop) = pipe()?;
        let thread = thread::spawn(move || {
            save(&frames, stopped.as_fd(), &mut out)?;
            out.flush()?;
            lost_none(&frames)
        });
        Ok(Self { stop: Some(stop), thread: Some(thread), file })
    }

    /// Ends it; answers the file. An error if the kernel had to leave frames out.
    pub fn finish(mut self) -> Result<PathBuf> {
        drop(self.stop.take());
        let thread = self.thread.take().context("finished")?;
        thread.join().map_err(|_| anyhow!("the capture died"))??;
        Ok(self.file.clone())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Writes frames until it is stopped, and then those that had come by then.
fn save(frames: &OwnedFd, stopped: BorrowedFd<'_>, out: &mut impl Write) -> Result<()> {
    let mut frame = vec![0; FRAME_BYTES];
    loop {
        let mut watched = [
            PollFd::new(frames.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped, PollFlags::POLLIN),
        ];
        poll(&mut watched, PollTimeout::NONE)?;
        let is_last = watched[1].any() == Some(true);
        while let Ok(length) = recv(frames.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            let bytes = frame.get(..length).unwrap_or_default();
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            for field in [now.as_secs() as u32, now.subsec_micros(), length as u32, length as u32] {
                out.write_all(&field.to_ne_bytes())?;
            }
            out.write_all(bytes)?;
        }
        if is_last {
            return Ok(());
        }
    }
}

fn lost_none(frames: &OwnedFd) -> Result<()> {
    let mut counts = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut size = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: both pointers are to live values of the size that is told.
    let asked = unsafe {
        libc::getsockopt(
            frames.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut counts).cast(),
            &raw mut size,
        )
    };
    ensure!(asked == 0, "the capture's count: {}", std::io::Error::last_os_error());
    ensure!(counts.tp_drops == 0, "{} of {} frames left out", counts.tp_drops, counts.tp_packets);
    Ok(())
}
