//! How far the records of who read what have come.

use alloc::format;

use super::{Applied, Writer};
use crate::command::{Anchor, Rejection};
use crate::limits;
use crate::state::Anchored;

impl Writer<'_> {
    /// Takes over what is further than what is known. What is not has no effect: it comes late, or
    /// from somebody who tells another story now.
    pub(super) fn audit_anchors(&mut self, anchors: &[Anchor]) -> Applied {
        if anchors.len() > limits::ANCHORS_AT_ONCE {
            return Err(Rejection::Invalid(format!(
                "{} anchors of audits are more than the {} that one command may set; send them in \
                 several",
                anchors.len(),
                limits::ANCHORS_AT_ONCE
            )));
        }
        for Anchor { task, sequence, hash } in anchors {
            let known = self.state.anchors.get(task).map(|anchor| anchor.sequence);
            if known.is_none_or(|known| known < *sequence) {
                let anchor = Anchored { sequence: *sequence, hash: *hash, at: self.now };
                self.state.put_anchor(*task, anchor);
            }
        }
        Ok(0)
    }
}
