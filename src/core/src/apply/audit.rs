//! How far the records of who read what have come.

use alloc::format;

use super::{Applied, Writer};
use crate::command::{Anchor, Rejection};
use crate::limits;
use crate::state::Anchored;

impl Writer<'_> {
    /// Takes over what is further than what is known. What is not has no effect: it comes late, or
    /// from somebody who tells another story now. So has what another node than the task's sent.
    pub(super) fn audit_anchors(&mut self, anchors: &[Anchor]) -> Applied {
        if anchors.len() > limits::ANCHORS_AT_ONCE {
            return Err(Rejection::Invalid(format!(
                "{} anchors of audits are more than the {} that one command may set; send them in \
                 several",
                anchors.len(),
                limits::ANCHORS_AT_ONCE
            )));
        }
        for Anchor { task, sequence, hash, node } in anchors {
            let before = self.state.anchors.get(task);
            let is_news =
                before.is_none_or(|before| before.node == *node && before.sequence < *sequence);
            let runs_on = self.state.tasks.get(task).and_then(|task| task.node);
            if is_news && runs_on.is_none_or(|own| own == *node) {
                let is_known = runs_on.is_some() || before.is_some_and(|before| before.is_known);
                let (sequence, hash, node, at) = (*sequence, *hash, *node, self.now);
                let anchor = Anchored { sequence, hash, at, node, is_known };
                self.state.put_anchor(*task, anchor);
            }
        }
        Ok(0)
    }
}
