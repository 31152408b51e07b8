//! What a peer may say at all. openraft trusts its peers to count as it does itself: it adds to
//! terms and indexes, and asserts that entries follow one another. So nothing gets there that
//! breaks this, whatever a peer sends.

use std::fmt;

use minicbor::decode::Error;
use minicbor::{Decode, Decoder};

use crate::limits::{ADDR_BYTES, MEMBERS, READ_ENTRIES};
use crate::message::{Append, Campaign, Content, Reply, Request, SnapshotPart, Transfer};
use crate::segment::UNCOUNTED;
use crate::types::{Covered, Members, Position, VoteRecord};

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Absurd {
    #[error("a term or index beyond all counting")]
    Number,
    #[error("a vote that does not fit the request")]
    Vote,
    #[error("entries that do not follow one another")]
    Order,
    #[error("a membership that cannot be")]
    Members,
    #[error("a snapshot that covers what it does not hold")]
    Covered,
}

/// Refuses what cannot be true.
pub(crate) trait Check {
    fn check(&self) -> Result<(), Absurd>;
}

fn ensure(holds: bool, absurd: Absurd) -> Result<(), Absurd> {
    if holds { Ok(()) } else { Err(absurd) }
}

impl Check for Position {
    fn check(&self) -> Result<(), Absurd> {
        ensure(self.term < UNCOUNTED && self.index < UNCOUNTED, Absurd::Number)
    }
}

impl Check for VoteRecord {
    fn check(&self) -> Result<(), Absurd> {
        ensure(self.term < UNCOUNTED, Absurd::Number)
    }
}

impl<T: Check> Check for Option<T> {
    fn check(&self) -> Result<(), Absurd> {
        self.as_ref().map_or(Ok(()), Check::check)
    }
}

impl Check for Members {
    fn check(&self) -> Result<(), Absurd> {
        let sets = self.voters.len();
        let whole = (1..=2).contains(&sets)
            && self.voters.iter().all(|set| !set.0.is_empty() && set.0.len() <= MEMBERS)
            && self.nodes.len() <= MEMBERS
            && self.nodes.values().all(|addr| addr.len() <= ADDR_BYTES)
            && self.voters.iter().flat_map(|set| &set.0).all(|id| self.nodes.contains_key(id));
        ensure(whole, Absurd::Members)
    }
}

impl Check for Covered {
    fn check(&self) -> Result<(), Absurd> {
        self.last.check()?;
        self.members_at.check()?;
        self.members.check()?;
        // Both are there: every log begins with the members.
        let holds = self.members_at.is_some()
            && self.members_at.map(|at| at.index) <= self.last.map(|at| at.index)
            && self.members_at.map(|at| at.term) <= self.last.map(|at| at.term);
        ensure(holds, Absurd::Covered)
    }
}

impl Check for Append {
    fn check(&self) -> Result<(), Absurd> {
        self.vote.check()?;
        self.previous.check()?;
        self.committed.check()?;
        ensure(self.digest.is_none_or(|digest| digest.index < UNCOUNTED), Absurd::Number)?;
        ensure(self.vote.committed, Absurd::Vote)?;
        ensure(self.previous.is_none_or(|at| at.term <= self.vote.term), Absurd::Order)?;
        let mut index = self.previous.map_or(0, |at| at.index + 1);
        let mut term = self.previous.map_or(0, |at| at.term);
        for line in &self.entries {
            line.at.check()?;
            let follows = line.at.index == index && (term..=self.vote.term).contains(&line.at.term);
            ensure(follows, Absurd::Order)?;
            (index, term) = (index + 1, line.at.term);
            if let Content::Members(members) = &line.content {
                members.check()?;
            }
        }
        Ok(())
    }
}

impl Check for Campaign {
    fn check(&self) -> Result<(), Absurd> {
        self.vote.check()?;
        self.last.check()?;
        ensure(!self.vote.committed, Absurd::Vote)
    }
}

impl Check for Transfer {
    fn check(&self) -> Result<(), Absurd> {
        self.leader.check()?;
        self.last.check()?;
        ensure(self.leader.committed, Absurd::Vote)
    }
}

impl Check for SnapshotPart {
    fn check(&self) -> Result<(), Absurd> {
        self.vote.check()?;
        self.covered.check()?;
        ensure(self.vote.committed, Absurd::Vote)?;
        ensure(self.covered.last.is_none_or(|at| at.term <= self.vote.term), Absurd::Covered)
    }
}

impl Check for Request {
    fn check(&self) -> Result<(), Absurd> {
        match self {
            Self::Append(append) => append.check(),
            Self::Vote(campaign) | Self::PreVote(campaign) => campaign.check(),
            Self::Transfer(transfer) => transfer.check(),
            Self::Snapshot(part) => part.check(),
        }
    }
}

impl Check for Reply {
    fn check(&self) -> Result<(), Absurd> {
        match self {
            Self::AppendedUpTo(at) => at.check(),
            Self::HigherVote(vote) | Self::Snapshot(vote) => vote.check(),
            Self::Vote { vote, last, .. } => vote.check().and(last.check()),
            Self::VoteChanged { expected, actual } => expected.check().and(actual.check()),
            Self::NotFlushed { expected, actual } => expected.check().and(actual.check()),
            Self::Appended
            | Self::Conflict
            | Self::Transferred
            | Self::NextPart
            | Self::Begin
            | Self::NoSpace => Ok(()),
        }
    }
}

/// Reads a list of at most `LIMIT`: of small items, a message holds more than memory should.
pub(crate) fn bounded<'b, Ctx, T: Decode<'b, Ctx>, const LIMIT: usize>(
    d: &mut Decoder<'b>,
    ctx: &mut Ctx,
) -> Result<Vec<T>, Error> {
    let mut list = Vec::new();
    for item in d.array_iter_with(ctx)? {
        if list.len() == LIMIT {
            return Err(too_many(&LIMIT));
        }
        list.push(item?);
    }
    Ok(list)
}

/// Reads a map of at most `MEMBERS`.
pub(crate) fn bounded_map<'b, Ctx, V: Decode<'b, Ctx>>(
    d: &mut Decoder<'b>,
    ctx: &mut Ctx,
) -> Result<std::collections::BTreeMap<u64, V>, Error> {
    let mut map = std::collections::BTreeMap::new();
    for (count, pair) in d.map_iter_with(ctx)?.enumerate() {
        if count == MEMBERS {
            return Err(too_many(&MEMBERS));
        }
        let (key, value) = pair?;
        map.insert(key, value);
    }
    Ok(map)
}

fn too_many(limit: &dyn fmt::Display) -> Error {
    Error::message(format!("more than {limit} items"))
}

/// Entries in one request.
pub(crate) const ENTRIES: usize = READ_ENTRIES as usize;
