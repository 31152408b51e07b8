//! What a later version may say to this one: messages with more fields, and of more kinds.

use minicbor::{Decode, Encode};
use skep_core::command::{Outcome, Rejection};
use skep_core::id::{ClusterId, ENTROPY_LEN, Id, NodeId};

use super::control::{ControlAnswer, ControlRequest, Greeting};
use super::join::{JoinAnswer, JoinRequest};
use super::relay::Ask;
use super::session::{FromAgent, ToAgent};
use super::*;

fn id<K>(n: u8) -> Id<K> {
    Id::from_entropy([n; ENTROPY_LEN])
}

fn bytes(message: &impl Encode<()>) -> Vec<u8> {
    frame(message)[4..].to_vec()
}

/// A message of a kind to come, with content.
#[derive(Encode)]
enum Later {
    #[n(99)]
    New {
        #[n(0)]
        words: Vec<String>,
        #[n(1)]
        more: Option<u64>,
    },
    #[n(100)]
    Empty,
}

fn later() -> [Vec<u8>; 2] {
    [bytes(&Later::New { words: vec!["a".into()], more: Some(7) }), bytes(&Later::Empty)]
}

#[test]
fn a_kind_that_is_not_known_is_told_from_nonsense() {
    fn skipped<T: for<'b> Decode<'b, ()> + std::fmt::Debug>() {
        for message in later() {
            assert!(matches!(parse_known::<T>(&message), Ok(None)));
            for nonsense in [[message.as_slice(), &[0]].concat(), message[1..].to_vec()] {
                assert!(parse_known::<T>(&nonsense).is_err(), "{nonsense:x?}");
            }
            assert!(parse_known::<T>(&message[..message.len() - 1]).is_err());
        }
    }
    skipped::<ToAgent>();
    skipped::<FromAgent>();
    skipped::<ControlRequest>();
    skipped::<ControlAnswer>();
    skipped::<JoinRequest>();
    skipped::<JoinAnswer>();
    skipped::<Ask>();
    let known = parse_known::<ToAgent>(&bytes(&ToAgent::Beat)).unwrap();
    assert_eq!(known, Some(ToAgent::Beat));
}

#[test]
fn fields_that_are_not_known_are_skipped() {
    #[derive(Encode)]
    #[cbor(map)]
    struct LaterGreeting {
        #[n(0)]
        cluster: ClusterId,
        #[n(1)]
        incarnation: u64,
        #[cbor(n(2), with = "minicbor::bytes")]
        incarnation_id: [u8; 16],
        #[n(3)]
        more: Vec<String>,
    }
    #[derive(Encode)]
    enum LaterToAgent {
        #[n(4)]
        Role {
            #[n(0)]
            raft_id: u64,
            #[n(1)]
            more: Vec<String>,
        },
    }
    #[derive(Encode)]
    enum LaterRequest {
        #[n(4)]
        Reach {
            #[n(0)]
            node: NodeId,
            #[n(1)]
            more: u64,
        },
    }
    let (cluster, incarnation, incarnation_id) = (id(1), 2, [3; 16]);
    let more = vec!["more".to_owned()];
    let greeting = LaterGreeting { cluster, incarnation, incarnation_id, more: more.clone() };
    let read: Greeting = parse(&bytes(&greeting)).unwrap();
    assert_eq!(read, Greeting { cluster, incarnation, incarnation_id });
    let read = parse_known(&bytes(&LaterToAgent::Role { raft_id: 7, more })).unwrap();
    assert_eq!(read, Some(ToAgent::Role { raft_id: 7 }));
    let read = parse_known(&bytes(&LaterRequest::Reach { node: id(4), more: 1 })).unwrap();
    assert_eq!(read, Some(ControlRequest::Reach { node: id(4) }));
}

/// Leaving out a part would make another message of it.
#[test]
fn what_is_not_known_inside_of_a_message_is_an_error() {
    #[derive(Encode)]
    enum LaterAnswer {
        #[n(1)]
        Outcome(#[n(0)] LaterOutcome),
    }
    #[derive(Encode)]
    enum LaterOutcome {
        #[n(1)]
        Rejected(#[n(0)] Later),
    }
    let answer = bytes(&LaterAnswer::Outcome(LaterOutcome::Rejected(Later::Empty)));
    let read = parse_known::<ControlAnswer>(&answer);
    assert!(matches!(read, Err(WireError::Decode(_))), "{read:?}");
    let known = ControlAnswer::Outcome(Outcome::Rejected(Rejection::NoCluster));
    assert_eq!(parse_known(&bytes(&known)).unwrap(), Some(known));
}

#[tokio::test]
async fn a_session_goes_on_behind_what_it_does_not_know() {
    let (mut ours, mut theirs) = tokio::io::duplex(1 << 12);
    for message in later() {
        send_bytes(&mut theirs, &message).await.unwrap();
    }
    send(&mut theirs, &ToAgent::Role { raft_id: 7 }).await.unwrap();
    let heard: ToAgent = receive_next(&mut ours, 1 << 10).await.unwrap();
    assert_eq!(heard, ToAgent::Role { raft_id: 7 });
    let [_, unknown] = later();
    send_bytes(&mut theirs, &unknown).await.unwrap();
    drop(theirs);
    assert!(receive_next::<ToAgent>(&mut ours, 1 << 10).await.is_err());
}
