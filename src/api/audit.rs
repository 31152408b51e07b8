//! The audit of secrets and configs, which Docker has no words for: one JSON object per line.

mod lines;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, Method, StatusCode};
use skep_core::id::{NodeId, TaskId};
use skep_core::model::Kind;
use skep_core::model::material::MaterialKind;
use skep_core::state::State;
use skep_core::time::Stamp;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::call::Call;
use super::error::ApiError;
use super::lookup;
use super::query::Query;
use super::reply::{self, Outcome};
use super::time::parse;
use crate::audit::{AuditGap, AuditQuery, Entry};
use crate::gate::{Gate, look};
use crate::limits::{AUDIT_QUESTION_WAIT, AUDIT_QUESTIONS};
use lines::Names;

/// What is asked about: all, or one secret or config by its word.
pub(super) type About<'a> = Option<(MaterialKind, &'a str)>;

/// What was asked for.
#[derive(Debug, Default)]
struct Asked {
    query: AuditQuery,
    /// Lines to show at most, the latest.
    limit: Option<usize>,
    follows: bool,
    verifies: bool,
}

/// Answers hold what was found until their clients have read it: so many at once.
static QUESTIONS: Semaphore = Semaphore::const_new(AUDIT_QUESTIONS);

async fn turn() -> Result<SemaphorePermit<'static>, ApiError> {
    match timeout(AUDIT_QUESTION_WAIT, QUESTIONS.acquire()).await {
        Ok(Ok(turn)) => Ok(turn),
        _ => Err(ApiError::Said(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "{AUDIT_QUESTIONS} questions about the audit are being answered here and none has \
                 ended within {} s: try again, or ask another manager",
                AUDIT_QUESTION_WAIT.as_secs()
            ),
        )),
    }
}

/// Answers. A client that goes away ends whatever is done for it.
pub(super) async fn serve(call: Call, about: About<'_>) -> Outcome {
    if call.method != Method::GET {
        return Err(call.unsupported());
    }
    let peer = Arc::clone(&call.peer);
    tokio::select! {
        outcome = answer(&call, about) => outcome,
        // Nobody reads this.
        () = peer.gone() => Err(ApiError::bad("the client has gone")),
    }
}

async fn answer(call: &Call, about: About<'_>) -> Outcome {
    let gate = &call.gate;
    let read = look(&**gate, |state| read(&call.query, state, about)).await?;
    let (asked, unknown) = read?;
    // A secret that is not there any more may have left records; one that never was has none.
    let known = |is_found: bool| match unknown {
        Some(error) if !is_found => Err(error),
        _ => Ok(()),
    };
    let turn = turn().await?;
    if asked.verifies {
        let verdict = gate.audit_verify(asked.query).await?;
        known(!verdict.tasks.is_empty())?;
        let keys = verdict.tasks.iter().map(|it| (it.node, it.task));
        let names = Names::of(&**gate, keys.collect()).await;
        let lines = lines::verdicts(verdict, &names).into_iter();
        return Ok(send(call, turn, lines, stream::empty()));
    }
    // Begun first: what is stored meanwhile is in both, and shown once.
    let followed = match asked.follows {
        true => Some(gate.audit_follow(asked.query.clone()).await?),
        false => None,
    };
    let found = gate.audit(asked.query).await?;
    known(followed.is_some() || !found.entries.is_empty())?;
    let keys = found.entries.iter().map(|entry| (Some(entry.node), entry.task));
    let names = Names::of(&**gate, keys.collect()).await;
    let shown: HashSet<_> = match &followed {
        Some(_) => found.entries.iter().map(key).collect(),
        None => HashSet::new(),
    };
    let past = lines::entries(found, asked.limit, names);
    let next = followed.map(|followed| follow(Arc::clone(gate), followed, shown));
    Ok(send(call, turn, past, stream::iter(next).flatten()))
}

/// The same lines; the turn is held as long as they are.
fn held<T: Send>(
    lines: impl Iterator<Item = Bytes> + Send,
    turn: T,
) -> impl Iterator<Item = Bytes> + Send {
    lines.inspect(move |_| {
        let _ = &turn;
    })
}

fn key(entry: &Entry) -> (NodeId, TaskId, u64) {
    (entry.node, entry.task, entry.record.sequence)
}

/// Lines of what is stored from now on.
fn follow(
    gate: Arc<dyn Gate>,
    followed: BoxStream<'static, Result<Entry, AuditGap>>,
    shown: HashSet<(NodeId, TaskId, u64)>,
) -> impl Stream<Item = Bytes> + Send {
    let new = followed.filter(move |came| {
        let is_new = came.as_ref().map_or(true, |entry| !shown.contains(&key(entry)));
        std::future::ready(is_new)
    });
    let names = Names::default();
    stream::unfold((gate, new.boxed(), names), |(gate, mut new, mut names)| async move {
        let lines = match new.next().await? {
            Ok(entry) => {
                names.learn(&*gate, Some(entry.node), entry.task).await;
                lines::entry(&entry, &names).concat().into()
            }
            Err(gap) => lines::gap(&gap),
        };
        Some((lines, (gate, new, names)))
    })
}

/// The lines that there are, for which a turn is held, and those still to come. The stream also
/// ends when the client has gone: one that waits for what does not come would otherwise never be
/// noticed to have left.
fn send(
    call: &Call,
    turn: SemaphorePermit<'static>,
    past: impl Iterator<Item = Bytes> + Send + 'static,
    next: impl Stream<Item = Bytes> + Send + 'static,
) -> reply::Reply {
    let lines = stream::iter(held(past, turn)).chain(next);
    let peer = Arc::clone(&call.peer);
    let gone = Box::pin(async move { peer.gone().await });
    let content = HeaderValue::from_static("application/json");
    reply::stream(Some(content), lines.take_until(gone))
}

/// What the query says; and the error that is due if nothing is found of what is not known.
fn read(
    query: &Query,
    state: &State,
    about: About<'_>,
) -> Result<(Asked, Option<ApiError>), ApiError> {
    let time = |name: &str| {
        parse(query.get(name)).ok_or_else(|| {
            ApiError::bad(format!(
                "invalid value {:?} for {name}: seconds since 1970 or an RFC 3339 time are due",
                query.get(name)
            ))
        })
    };
    let mut asked = Asked {
        query: AuditQuery { since: time("since")?, until: time("until")?, ..Default::default() },
        limit: query.number("limit")?,
        follows: query.flag("follow"),
        verifies: query.flag("verify"),
    };
    if asked.follows && (asked.verifies || asked.query.until > Stamp(0)) {
        return Err(ApiError::bad(
            "follow goes with neither verify nor until: it shows what is still to come",
        ));
    }
    let mut unknown = None;
    if let Some((kind, word)) = about {
        match lookup::material(state, kind, word) {
            Ok(found) => asked.query.material = Some(found.id),
            Err(error) if error.answer().0 == StatusCode::NOT_FOUND => {
                match word.parse() {
                    Ok(id) => asked.query.material = Some(id),
                    Err(_) => asked.query.name = Some(word.to_owned()),
                }
                unknown = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    if !query.get("node").is_empty() {
        let word = query.get("node");
        let found = lookup::node(state, word).map(|node| node.id);
        asked.query.node = Some(found.or_else(|error| word.parse().map_err(|_| error))?);
    }
    if !query.get("task").is_empty() {
        asked.query.tasks = tasks(state, query.get("task"))?;
    }
    Ok((asked, unknown))
}

/// What is meant by a task: its id or container's name, also of one that is gone; the beginning of
/// an id; or `web.1` for all tasks of that slot that are still known.
fn tasks(state: &State, word: &str) -> Result<Vec<TaskId>, ApiError> {
    let last = word.rsplit('.').next().unwrap_or(word);
    if let Ok(id) = last.parse::<TaskId>() {
        return Ok(vec![id]);
    }
    let of_slot: BTreeSet<TaskId> =
        state.tasks().filter(|task| lines::task_name(task) == word).map(|task| task.id).collect();
    if !of_slot.is_empty() {
        return Ok(of_slot.into_iter().collect());
    }
    match lookup::task(state, word) {
        Ok(found) => Ok(vec![found.id]),
        Err(error) if error.answer().0 == StatusCode::NOT_FOUND => Err(ApiError::Said(
            StatusCode::NOT_FOUND,
            format!(
                "{} {word} not found: tasks that are gone are found by their whole id only",
                Kind::Task.word()
            ),
        )),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_held_until_the_lines_are_gone() {
        let turn = Arc::new(());
        let mut lines = held([Bytes::new(), Bytes::new()].into_iter(), Arc::clone(&turn));
        assert!(lines.next().is_some());
        assert_eq!(Arc::strong_count(&turn), 2);
        drop(lines);
        assert_eq!(Arc::strong_count(&turn), 1);
    }
}
