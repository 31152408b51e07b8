//! As many slots as the service asks for.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::Pass;
use super::draft::{Draft, Slot};
use super::restart::first_desire;
use crate::model::service::{Service, ServiceMode};
use crate::model::task::TaskState;

/// Adds slots that are missing, lowest numbers first, or sends away those too many.
pub(super) fn scale(draft: &mut Draft<'_>, service: &Service, slots: &mut Vec<Slot>) -> Pass {
    let ServiceMode::Replicated { replicas } = service.spec.mode else { return Pass::Done };
    let occupied = slots.iter().filter(|slot| slot.is_occupied()).count() as u64;
    if occupied < replicas {
        add(draft, service, slots, replicas - occupied)
    } else {
        send_away(draft, slots, occupied - replicas)
    }
}

fn add(draft: &mut Draft<'_>, service: &Service, slots: &mut Vec<Slot>, count: u64) -> Pass {
    let taken: BTreeSet<u64> =
        slots.iter().filter(|slot| slot.is_occupied()).map(|slot| slot.number).collect();
    let mut leaving: BTreeMap<u64, Slot> = BTreeMap::new();
    let (kept, emptied): (Vec<_>, Vec<_>) =
        slots.drain(..).partition(|slot| taken.contains(&slot.number));
    *slots = kept;
    leaving.extend(emptied.into_iter().map(|slot| (slot.number, slot)));
    let mut missing = count;
    for number in (1..).filter(|number| !taken.contains(number)) {
        if missing == 0 || draft.is_full() {
            break;
        }
        if !draft.has_room() {
            draft.wait_for_room(service.id);
            break;
        }
        let mut slot = leaving.remove(&number).unwrap_or(Slot { number, tasks: Vec::new() });
        let mut task = draft.task(service, number);
        task.desired = first_desire(draft.state, draft.now, &slot, &task);
        draft.create(&mut slot, task);
        slots.push(slot);
        missing -= 1;
    }
    slots.extend(leaving.into_values());
    if missing > 0 && draft.is_full() { Pass::Stopped } else { Pass::Done }
}

/// Sends away slots that do not run first, then those on the nodes with the most of this
/// service, then the highest numbers.
fn send_away(draft: &mut Draft<'_>, slots: &mut [Slot], count: u64) -> Pass {
    if count == 0 {
        return Pass::Done;
    }
    let mut on_node = BTreeMap::new();
    let mut ranked = Vec::new();
    for (index, slot) in slots.iter().enumerate().filter(|(_, slot)| slot.is_occupied()) {
        let running = slot.active().find(|task| task.status.state == TaskState::Running);
        let nth = running.map(|task| {
            let nth = on_node.entry(task.node).or_insert(0u64);
            *nth += 1;
            *nth
        });
        ranked.push((nth.is_some(), nth.map(core::cmp::Reverse), index));
    }
    ranked.sort_by_key(|(runs, nth, index)| (*runs, *nth, core::cmp::Reverse(*index)));
    for (_, _, index) in ranked.into_iter().take(usize::try_from(count).unwrap_or(usize::MAX)) {
        if draft.is_full() {
            return Pass::Stopped;
        }
        if let Some(slot) = slots.get_mut(index) {
            draft.desire(slot, TaskState::Remove, |_| true);
        }
    }
    Pass::Done
}
