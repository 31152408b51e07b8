use skep_core::id::{ENTROPY_LEN, Id, MaterialId};

use super::*;
use crate::wire::shim::Delivery;

fn id<K>(seed: u8) -> Id<K> {
    Id::from_entropy([seed; ENTROPY_LEN])
}

fn shim(held: Vec<(MaterialId, u64)>, sequence: u64) -> FromAgent {
    FromAgent::Shim { task: id(1), key: [7; 32], held, sequence }
}

#[test]
fn a_new_session_is_told_what_shims_answered_and_not_what_they_were_sent() {
    let (task, a) = (id(1), id(5));
    let mut memory = Memory::default();
    memory.said(&shim(vec![(a, 1)], 3));
    memory.heard(&ToAgent::Deliver { task, delivery: Delivery { sequence: 4, items: vec![] } });
    memory.heard(&ToAgent::Revoke { task, sequence: 5, materials: vec![(a, 1)] });
    assert_eq!(memory.all(), [shim(vec![(a, 1)], 3)]);
    memory.said(&FromAgent::Held { task, held: vec![(a, 2)], sequence: 4, refused: None });
    assert_eq!(memory.all(), [shim(vec![(a, 2)], 4)]);
    memory.said(&FromAgent::Held { task, held: vec![], sequence: 5, refused: None });
    assert_eq!(memory.all(), [shim(vec![], 5)]);
    let stranger = FromAgent::Held { task: id(2), held: vec![(a, 2)], sequence: 9, refused: None };
    memory.said(&stranger);
    assert_eq!(memory.all(), [shim(vec![], 5)], "one that never spoke up has no key");
    memory.said(&FromAgent::ShimGone { task });
    assert_eq!(memory.all(), []);
}
