//! Packets that are held back: kernels built without netem hand them to a queue of the packet
//! filter, and this lets each go when its time has come. Whole packets stay in the kernel; only
//! their numbers come here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::{PipeWriter, pipe};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

use crate::namespace;

/// Packets that one queue holds; the kernel drops what is more.
const QUEUE_PACKETS: u32 = 65_536;
/// Bytes of the largest message about a packet, with room.
const MESSAGE_BYTES: usize = 64 << 10;
/// Longest sleep of the thread, so that it sees a delay that was shortened.
const TICK: Duration = Duration::from_millis(100);

const SUBSYSTEM: u16 = 3 << 8;
const PACKET: u16 = SUBSYSTEM;
const VERDICT: u16 = SUBSYSTEM | 1;
const CONFIG: u16 = SUBSYSTEM | 2;
const HEADER_BYTES: usize = 20;

type Delays = Arc<Mutex<BTreeMap<usize, Duration>>>;

/// The queues of a network, and the thread that empties them.
#[derive(Debug)]
pub(crate) struct Held {
    delays: Delays,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Held {
    /// Serves the queues `0..count` of a namespace.
    pub(crate) fn start(namespace: &Path, count: usize) -> Result<Self> {
        let queues = namespace::within(namespace, || open(count))?;
        let delays = Delays::default();
        let (stopped, stop) = pipe()?;
        let seen = delays.clone();
        let thread = thread::spawn(move || serve(&queues, stopped.as_fd(), &seen));
        Ok(Self { delays, stop: Some(stop), thread: Some(thread) })
    }

    /// By how much the packets of each queue are held; those of the others go on at once.
    pub(crate) fn set(&self, delays: BTreeMap<usize, Duration>) {
        *self.delays.lock().unwrap_or_else(PoisonError::into_inner) = delays;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn open(count: usize) -> Result<OwnedFd> {
    let queues = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    bind(queues.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    for queue in 0..u16::try_from(count)? {
        let bound = [1, 0, 0, 0];
        configure(&queues, queue, &[(1, &bound)])?;
        // Numbers only, and packets as large as their sender made them.
        let numbers_only = [0, 0, 0, 0, 1];
        let flags = (1_u32 << 2).to_be_bytes();
        let most = QUEUE_PACKETS.to_be_bytes();
        configure(&queues, queue, &[(2, &numbers_only), (3, &most), (5, &flags), (4, &flags)])?;
    }
    Ok(queues)
}

/// One request, and the kernel's answer to it.
fn configure(queues: &OwnedFd, queue: u16, attributes: &[(u16, &[u8])]) -> Result<()> {
    let acknowledge = 4;
    send(queues.as_raw_fd(), &message(CONFIG, acknowledge, queue, attributes), MsgFlags::empty())?;
    let mut answer = vec![0; MESSAGE_BYTES];
    loop {
        let length = recv(queues.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let answer = answer.get(..length).unwrap_or_default();
        // Type 2 carries an error number, 0 for none; packets may come before it.
        if number(answer, 4, u16::from_ne_bytes) == Some(2) {
            let error = number(answer, 16, i32::from_ne_bytes).unwrap_or(-1);
            ensure!(error == 0, "configure queue {queue}: {}", Errno::from_raw(-error));
            return Ok(());
        }
    }
}

fn message(kind: u16, flags: u16, queue: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, value) in attributes {
        body.extend((4 + value.len() as u16).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut message = Vec::new();
    message.extend(((HEADER_BYTES + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    // A request; sequence and port are not looked at.
    message.extend((flags | 1).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0, 0]);
    message.extend(queue.to_be_bytes());
    message.extend(body);
    message
}

fn number<const SIZE: usize, T>(bytes: &[u8], at: usize, read: fn([u8; SIZE]) -> T) -> Option<T> {
    bytes.get(at..at + SIZE)?.try_into().ok().map(read)
}

fn serve(queues: &OwnedFd, stopped: std::os::fd::BorrowedFd<'_>, delays: &Delays) {
    let mut waiting: BinaryHeap<Reverse<(Instant, u16, u32)>> = BinaryHeap::new();
    let mut buffer = vec![0; MESSAGE_BYTES];
    loop {
        let due = waiting.peek().map_or(TICK, |Reverse((due, ..))| {
            due.saturating_duration_since(Instant::now()).min(TICK)
        });
        // Up to the next millisecond: never early.
        let timeout = PollTimeout::try_from(due + Duration::from_micros(999));
        let mut watched = [
            PollFd::new(queues.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped, PollFlags::POLLIN),
        ];
        poll(&mut watched, timeout.unwrap_or(PollTimeout::ZERO)).ok();
        if watched[1].any() == Some(true) {
            break;
        }
        while let Ok(length) = recv(queues.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            let delays = delays.lock().unwrap_or_else(PoisonError::into_inner);
            for (queue, packet) in packets(buffer.get(..length).unwrap_or_default()) {
                let delay = delays.get(&usize::from(queue)).copied().unwrap_or_default();
                waiting.push(Reverse((Instant::now() + delay, queue, packet)));
            }
        }
        while let Some(Reverse((due, queue, packet))) = waiting.pop() {
            if due > Instant::now() {
                waiting.push(Reverse((due, queue, packet)));
                break;
            }
            pass(queues, queue, packet);
        }
    }
    for Reverse((_, queue, packet)) in waiting.drain() {
        pass(queues, queue, packet);
    }
}

/// Queue and number of each packet that a datagram of the kernel's tells of.
fn packets(mut bytes: &[u8]) -> Vec<(u16, u32)> {
    let mut found = Vec::new();
    while let Some(length) = number(bytes, 0, u32::from_ne_bytes) {
        let length = (length as usize).max(HEADER_BYTES);
        let is_packet = number(bytes, 4, u16::from_ne_bytes) == Some(PACKET);
        // Its first attribute is the packet's header, which starts with its number.
        let queue = number(bytes, 18, u16::from_be_bytes);
        let packet = number(bytes, 24, u32::from_be_bytes);
        if let (true, Some(queue), Some(packet)) = (is_packet, queue, packet) {
            found.push((queue, packet));
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn pass(queues: &OwnedFd, queue: u16, packet: u32) {
    let accept = [1_u32.to_be_bytes(), packet.to_be_bytes()].concat();
    // A packet whose link went down meanwhile is unknown: nothing is left to be done for it.
    send(queues.as_raw_fd(), &message(VERDICT, 0, queue, &[(2, &accept)]), MsgFlags::empty()).ok();
}
