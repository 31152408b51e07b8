//! What was once written is read for ever: the bytes of every command, outcome and snapshot
//! record as this format writes them. A difference means that other managers and older logs are not
//! understood. Only fields that are new may be written anew, with `SKEP_TRACES=write`, and
//! never in the fixture of a released version.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use std::{env, fs, path::PathBuf};

use super::samples;
use crate::codec;
use crate::command::{Command, Outcome, Proposal};
use crate::id::hex;
use crate::snapshot::Reader;
use crate::testing::{self, id};
use crate::time::Stamp;

#[test]
fn format_1_is_written_and_read_as_ever() {
    let proposal = |command: Command| codec::encode(&Proposal::new(id(1), Stamp(2), command));
    let mut now = String::new();
    for command in samples::commands() {
        now += &format!("proposal {}\n", hex(&proposal(command)));
    }
    for outcome in samples::outcomes() {
        now += &format!("outcome {}\n", hex(&codec::encode(&outcome)));
    }
    for record in testing::records(&samples::state()) {
        now += &format!("record {}\n", hex(&record));
    }
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/tests/fixtures/format-1.txt");
    if env::var_os("SKEP_TRACES").is_some_and(|value| value == "write") {
        fs::write(&file, &now).unwrap();
    }
    let fixture = fs::read_to_string(&file).unwrap();
    let mut commands = samples::commands().into_iter();
    let mut outcomes = samples::outcomes().into_iter();
    let mut reader = Reader::default();
    for line in fixture.lines() {
        let (what, bytes) = line.split_once(' ').unwrap();
        let bytes = unhex(bytes);
        match what {
            "proposal" => {
                let read: Proposal = codec::decode_strict(&bytes).unwrap();
                assert_eq!(Some(read.command), commands.next());
            }
            "outcome" => {
                let read: Outcome = codec::decode_strict(&bytes).unwrap();
                assert_eq!(Some(read), outcomes.next());
            }
            _ => reader.push(&bytes).unwrap(),
        }
    }
    let read = reader.finish().unwrap();
    assert_eq!(testing::records(&read), testing::records(&samples::state()));
    assert!(commands.next().is_none() && outcomes.next().is_none());
    assert!(now == fixture, "the encoding changed");
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}
