//! Formats of log entries and snapshots, so that managers of different versions can lead one
//! swarm.
//!
//! A format is a number, counted from 1. A version that adds a command, a field or a value to what
//! the log or a snapshot holds raises [`FORMAT`] and says in [`needed`] which commands need it.
//! What is added is an `Option`, or is left out of the encoding while it says nothing: then a
//! state of an older format has the same bytes, and the same digest, under every version. What
//! nodes say of themselves goes into the log by `NodeReport`: a new part of it waits for its
//! format there.
//!
//! Every node announces the newest format it reads in its description. The state's own format is
//! one that all managers read: [`admit`] lets nothing newer into the log, `FormatRaise` raises it
//! once all of them read more, and a node that reads less is refused as a manager from then on.

use core::fmt;

use minicbor::Decode;

use crate::codec::{CodecError, decode, decode_strict};
use crate::command::{Command, Proposal};
use crate::control::members::MembersView;
use crate::state::State;

/// The newest format this version writes and reads.
pub const FORMAT: u32 = 1;

/// The format that a reader of this command must know: that of the command itself, or of the
/// newest field or value it uses.
#[must_use]
pub fn needed(command: &Command) -> u32 {
    match command {
        Command::ClusterInit(_)
        | Command::ClusterUpdate { .. }
        | Command::NodeUpdate { .. }
        | Command::NodeReport(_)
        | Command::MaterialCreate { .. }
        | Command::MaterialUpdate { .. }
        | Command::MaterialAppend { .. }
        | Command::MaterialRemove { .. }
        | Command::ServiceCreate { .. }
        | Command::ServiceUpdate { .. }
        | Command::ServiceRollback { .. }
        | Command::ServiceRemove { .. }
        | Command::Control(_)
        | Command::TaskReport(_)
        | Command::Noop
        | Command::NodeJoin(_)
        | Command::NodePromote { .. }
        | Command::NodeDemote { .. }
        | Command::NodeRemove { .. }
        | Command::RingTurn { .. }
        | Command::ClusterForce { .. }
        | Command::CaChange(_)
        | Command::FormatRaise { .. }
        | Command::MaterialPrune { .. }
        | Command::MaterialRevoke { .. }
        | Command::MaterialReseal(_)
        | Command::AuditAnchor(_) => 1,
    }
}

/// A command that some manager could not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooNew {
    /// The format it needs.
    pub needed: u32,
    /// The format of the swarm's state.
    pub format: u32,
}

impl fmt::Display for TooNew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needed, format } = self;
        write!(
            f,
            "this needs format {needed} of the swarm's state, which has format {format} as long as \
             a manager runs a version that reads no newer one: upgrade skep on every manager"
        )
    }
}

impl core::error::Error for TooNew {}

/// Lets a command into the log, unless it is newer than what every manager reads.
///
/// # Errors
/// [`TooNew`].
pub fn admit(state: &State, command: &Command) -> Result<(), TooNew> {
    check(needed(command), state)
}

fn check(needed: u32, state: &State) -> Result<(), TooNew> {
    let format = state.format();
    // Before there is a swarm no other manager reads anything.
    if needed <= format || state.cluster().is_none() {
        return Ok(());
    }
    Err(TooNew { needed, format })
}

/// The format to raise the state to, if every manager reads a newer one. While somebody reads the
/// log who is no manager any more, that has to wait: nobody knows what he reads.
#[must_use]
pub fn next(state: &State, members: &MembersView) -> Option<u32> {
    let is_manager = |id: &&u64| state.managers().any(|(_, manager)| manager.raft_id == **id);
    let mut readers = members.voters.iter().chain(&members.learners);
    if !readers.all(|id| is_manager(&id)) {
        return None;
    }
    let lowest = state.managers().map(|(node, _)| node.description.reads_format()).min()?;
    (lowest > state.format()).then_some(lowest)
}

/// Why a log entry cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryError {
    /// It needs a newer version.
    Newer {
        /// The format it needs.
        format: u32,
        /// The newest format that is read here.
        reads: u32,
    },
    /// It is not what its format says.
    Malformed(CodecError),
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newer { format, reads } => {
                write!(f, "it has format {format}, this version reads up to {reads}")
            }
            Self::Malformed(e) => e.fmt(f),
        }
    }
}

impl core::error::Error for EntryError {}

/// What every version finds of a log entry.
#[derive(Decode)]
#[cbor(map)]
struct Label {
    #[n(3)]
    format: u32,
}

/// Reads a log entry, up to format `reads`: all of it or nothing.
///
/// # Errors
/// [`EntryError`]; an entry of a newer format is told from one that is damaged.
pub fn read_entry(bytes: &[u8], reads: u32) -> Result<Proposal, EntryError> {
    let read = decode_strict::<Proposal>(bytes);
    let format = match &read {
        Ok(proposal) => proposal.format,
        Err(_) => decode::<Label>(bytes).map_or(0, |label| label.format),
    };
    if format > reads {
        return Err(EntryError::Newer { format, reads });
    }
    read.map_err(EntryError::Malformed)
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::string::ToString;

    use minicbor::Encode;

    use super::*;
    use crate::codec::encode;
    use crate::command::{Outcome, Rejection};
    use crate::id::{NodeId, RequestId};
    use crate::model::node::{NodeDescription, NodeSpec, Role};
    use crate::testing::{World, description, id, init, joiner, slot};
    use crate::time::Stamp;

    fn reading(format: u32) -> NodeDescription {
        NodeDescription { format, engine_version: "0.1".into(), ..description("node") }
    }

    fn join(world: &mut World, n: u64, format: u32, is_manager: bool) -> Outcome {
        let mut join = joiner(n, "node");
        join.description = reading(format);
        if is_manager {
            join.spec.role = Role::Manager;
            join.manager = Some((n, [(1, slot())].into()));
        }
        world.run(Command::NodeJoin(join.into()))
    }

    fn announce(world: &mut World, node: NodeId, format: u32) {
        let description = Some(reading(format));
        let report =
            crate::command::NodeReport { id: node, description, status: None, advertise: None };
        world.done(Command::NodeReport([report].into()));
    }

    fn members(ids: impl IntoIterator<Item = u64>) -> MembersView {
        MembersView { me: 1, voters: ids.into_iter().collect(), ..MembersView::default() }
    }

    fn refusal(outcome: Outcome) -> alloc::string::String {
        match outcome {
            Outcome::Rejected(rejection @ Rejection::Precondition(_)) => rejection.to_string(),
            outcome => panic!("{outcome:?}"),
        }
    }

    #[test]
    fn the_format_is_the_lowest_that_managers_read_and_never_falls() {
        let mut world = World::new();
        assert_eq!(world.state.format(), 1, "the founder says nothing newer");
        announce(&mut world, id(1), 3);
        assert!(matches!(join(&mut world, 2, 2, true), Outcome::Done(_)));
        assert!(matches!(join(&mut world, 3, 1, false), Outcome::Done(_)));
        assert_eq!(next(&world.state, &members([1, 2])), Some(2), "workers do not count");
        assert_eq!(next(&world.state, &members([1, 2, 9])), None, "an old manager still reads");
        let learners = BTreeSet::from([9]);
        assert_eq!(next(&world.state, &MembersView { learners, ..members([1]) }), None);

        let text = refusal(world.run(Command::FormatRaise { to: 3 }));
        assert!(text.contains("format 3") && text.contains("no newer one than 2"), "{text}");
        assert_eq!(world.state.format(), 1);
        world.done(Command::FormatRaise { to: 2 });
        assert_eq!((world.state.format(), next(&world.state, &members([1, 2]))), (2, None));
        world.done(Command::FormatRaise { to: 2 });
        let text = refusal(world.run(Command::FormatRaise { to: 1 }));
        assert!(text.contains("has format 2, which does not go back to 1"), "{text}");

        announce(&mut world, id(2), 3);
        assert_eq!(next(&world.state, &members([1, 2])), Some(3), "it was upgraded");
    }

    #[test]
    fn a_node_that_reads_less_is_no_manager() {
        let mut world = World::new();
        announce(&mut world, id(1), 2);
        world.done(Command::FormatRaise { to: 2 });
        let text = refusal(join(&mut world, 2, 1, true));
        assert!(text.contains("format 2") && text.contains("skep 0.1 reads no newer one than 1"));
        assert!(matches!(join(&mut world, 3, 1, false), Outcome::Done(_)));
        let spec = NodeSpec { role: Role::Manager, ..NodeSpec::default() };
        let promote = |world: &World| Command::NodePromote {
            id: id(3),
            version: world.state.node(&id(3)).unwrap().meta.version,
            spec: spec.clone(),
            raft_id: 3,
            slots: [(1, slot())].into(),
        };
        let command = promote(&world);
        let text = refusal(world.run(command));
        assert!(text.contains("upgrade skep"), "{text}");
        announce(&mut world, id(3), 2);
        let command = promote(&world);
        world.done(command);
    }

    #[test]
    fn nothing_newer_than_the_state_is_admitted() {
        let world = World::new();
        assert_eq!(admit(&world.state, &Command::Noop), Ok(()));
        let refused = check(2, &world.state).unwrap_err();
        assert_eq!(refused, TooNew { needed: 2, format: 1 });
        assert!(refused.to_string().contains("format 2"), "{refused}");
        assert_eq!(check(2, &World::empty().state), Ok(()), "a new swarm begins as it likes");
        for command in crate::tests::samples::commands() {
            assert!(needed(&command) <= FORMAT, "{command:?}");
        }
    }

    /// What a later version may write: another field, or another command.
    #[derive(Encode)]
    #[cbor(map)]
    struct Later<C> {
        #[n(0)]
        request: RequestId,
        #[n(1)]
        stamp: Stamp,
        #[n(2)]
        command: C,
        #[n(3)]
        format: u32,
        #[n(4)]
        more: Option<u64>,
    }

    #[derive(Encode)]
    enum LaterCommand {
        #[n(7)]
        MaterialRemove {
            #[n(0)]
            id: crate::id::MaterialId,
            #[n(1)]
            more: u64,
        },
        #[n(99)]
        New(#[n(0)] u64),
    }

    #[test]
    fn an_entry_of_a_later_version_is_refused_and_names_both() {
        let (request, stamp) = (id(1), Stamp(2));
        let newer = EntryError::Newer { format: 2, reads: 1 };
        for command in [LaterCommand::New(1), LaterCommand::MaterialRemove { id: id(4), more: 1 }] {
            let bytes = encode(&Later { request, stamp, command, format: 2, more: None });
            assert_eq!(read_entry(&bytes, 1), Err(newer.clone()));
            assert!(matches!(read_entry(&bytes, 2), Err(EntryError::Malformed(_))));
        }
        let later = |format, more| Later { request, stamp, command: init(), format, more };
        assert_eq!(read_entry(&encode(&later(2, Some(1))), 1), Err(newer.clone()));
        assert_eq!(read_entry(&encode(&later(2, None)), 1), Err(newer.clone()));
        // One that does not say that it is newer is as bad.
        let lied = read_entry(&encode(&later(1, Some(1))), 1);
        assert!(matches!(lied, Err(EntryError::Malformed(_))), "{lied:?}");
        let read = read_entry(&encode(&later(1, None)), 1);
        assert_eq!(read, Ok(Proposal::new(request, stamp, init())));
        let text = newer.to_string();
        assert!(text.contains("format 2") && text.contains("up to 1"), "{text}");
    }
}
