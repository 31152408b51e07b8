//! Every target over its corpus, its seeds, and mutations of both that are the same in every run.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "all of it is a test")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use skep_hostile::{bound_memory, target};

/// How long one input may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest input that a mutation makes.
const LONGEST: usize = 8 << 10;

/// A small generator: a failure must come again.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % (end.max(1) as u64)).unwrap()
    }

    fn byte(&mut self) -> u8 {
        const TELLING: [u8; 16] = [
            0, 1, 0x7f, 0x80, 0xff, b'0', b'9', b'"', b'{', b'}', b'/', b'.', b'\n', b' ', 0x9f,
            0xbf,
        ];
        if self.below(2) == 0 {
            TELLING[self.below(16)]
        } else {
            u8::try_from(self.below(256)).unwrap()
        }
    }

    /// Changes an input in one of the ways that fuzzers have.
    fn mutate(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(bytes.len() + 1);
        let len = (1 << self.below(8)).min(bytes.len() - at);
        match self.below(8) {
            0 => bytes.insert(at, self.byte()),
            1 => drop(bytes.drain(at..at + len)),
            2 => {
                let piece = bytes[at..at + len].to_vec();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            3 => {
                let from = self.below(other.len() + 1);
                let piece = other[from..].iter().take(1 << self.below(10)).copied();
                bytes.splice(at..at, piece.collect::<Vec<_>>());
            }
            4 => {
                for byte in &mut bytes[at..at + len] {
                    *byte = 0xff;
                }
            }
            5 => bytes.truncate(at),
            6 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            _ if at < bytes.len() => bytes[at] = self.byte(),
            _ => bytes.push(self.byte()),
        }
        bytes.truncate(LONGEST);
    }
}

/// Runs every input; one that takes too long ends the process, one that fails is shown.
fn replay(name: &str) {
    bound_memory();
    let target = target(name).unwrap();
    let inputs = target.corpus().unwrap();
    let current = Arc::new(Mutex::new(Vec::new()));
    let (tick, ticks) = mpsc::sync_channel::<()>(1);
    let watched = Arc::clone(&current);
    std::thread::spawn(move || {
        // A tick says that the next input is tried.
        while match ticks.recv_timeout(PATIENCE) {
            Ok(()) => true,
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => {
                eprintln!("{} hangs on {}", target.name, show(&watched.lock().unwrap()));
                std::process::abort();
            }
        } {}
    });
    let run = |input: &[u8]| {
        let _ = tick.try_send(());
        *current.lock().unwrap() = input.to_vec();
        if let Err(why) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
            eprintln!("{} fails on {}", target.name, show(input));
            std::panic::resume_unwind(why);
        }
    };
    inputs.iter().for_each(|input| run(input));
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    for _ in 0..target.mutations {
        let mut input = inputs[chance.below(inputs.len())].clone();
        let other = inputs[chance.below(inputs.len())].clone();
        for _ in 0..=chance.below(4) {
            chance.mutate(&mut input, &other);
        }
        run(&input);
    }
}

/// The input as a string of escapes, to be put into a file of the corpus.
fn show(input: &[u8]) -> String {
    input.escape_ascii().to_string()
}

macro_rules! replays {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            replay(stringify!($name));
        }
    )*};
}

replays!(http json shim log state images text);
