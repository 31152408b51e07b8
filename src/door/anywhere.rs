//! Containers of any node: those of this one at once, those of others over a stream.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, select_all};
use skep_core::id::{NodeId, TaskId};
use skep_core::state::State;

use crate::agent::exec::{mark, no_such};
use crate::engine::logs;
use crate::gate::{
    ContainerView, ExecConfig, ExecStreams, ExecView, LogGap, LogLine, LogQuery, Logged, Refusal,
};
use crate::limits::RELAY_ASKED;
use crate::manager::reach;
use crate::node::Swarm;
use crate::wire::Stream;

impl Swarm {
    fn is_here(&self, node: NodeId) -> bool {
        node == self.node
    }

    async fn open(&self, node: NodeId) -> Result<Box<dyn Stream>, Refusal> {
        self.reach.open(node).await
    }

    /// The node of an exec, told by its id.
    fn home(&self, exec: &str) -> Result<NodeId, Refusal> {
        let is_home = |node: &NodeId| exec.ends_with(&mark(node));
        if is_home(&self.node) {
            return Ok(self.node);
        }
        let find = |state: &State| state.nodes().map(|node| node.id).find(is_home);
        let found = self.manager().and_then(|manager| manager.raft.view(find));
        found.ok_or_else(|| no_such(exec))
    }

    pub(super) async fn container(
        &self,
        node: NodeId,
        task: TaskId,
    ) -> Result<ContainerView, Refusal> {
        if !self.is_here(node) {
            return reach::container(self.open(node).await?, task).await;
        }
        let missing = || Refusal::NotFound(format!("No such container: {task}"));
        self.agent.container(&task).ok_or_else(missing)
    }

    pub(super) async fn exec_create(
        &self,
        node: NodeId,
        container: &str,
        config: ExecConfig,
    ) -> Result<String, Refusal> {
        if self.is_here(node) {
            return self.agent.exec_create(container, config);
        }
        reach::exec_create(self.open(node).await?, container, config).await
    }

    pub(super) async fn exec_start(
        &self,
        id: &str,
        detach: bool,
        size: Option<(u16, u16)>,
    ) -> Result<ExecStreams, Refusal> {
        let node = self.home(id)?;
        if self.is_here(node) {
            return self.agent.exec_start(id, detach, size).await;
        }
        reach::exec_start(self.open(node).await?, id, detach, size).await
    }

    pub(super) async fn exec_inspect(&self, id: &str) -> Result<ExecView, Refusal> {
        let node = self.home(id)?;
        if self.is_here(node) {
            return self.agent.context().execs.view(id).ok_or_else(|| no_such(id));
        }
        reach::exec_inspect(self.open(node).await?, id).await
    }

    pub(super) async fn exec_resize(&self, id: &str, rows: u16, cols: u16) -> Result<(), Refusal> {
        let node = self.home(id)?;
        if self.is_here(node) {
            return self.agent.exec_resize(id, rows, cols);
        }
        reach::exec_resize(self.open(node).await?, id, rows, cols).await
    }

    pub(super) async fn logs(
        &self,
        tasks: Vec<(NodeId, TaskId)>,
        query: LogQuery,
    ) -> BoxStream<'static, Logged> {
        let follow = query.follow;
        let mut by_node: BTreeMap<NodeId, Vec<TaskId>> = BTreeMap::new();
        for (node, task) in tasks {
            by_node.entry(node).or_default().push(task);
        }
        let query = &query;
        let asked = by_node
            .into_iter()
            .map(|(node, tasks)| async move { self.logs_of(node, tasks, query.clone()).await });
        let streams: Vec<_> = stream::iter(asked).buffer_unordered(RELAY_ASKED).collect().await;
        merged(streams, follow)
    }

    async fn logs_of(
        &self,
        node: NodeId,
        tasks: Vec<TaskId>,
        query: LogQuery,
    ) -> BoxStream<'static, Logged> {
        if self.is_here(node) {
            let sources = tasks.into_iter().filter_map(|task| {
                let (task_dir, ended) = self.agent.log_source(&task)?;
                Some(logs::LogSource { task, task_dir, ended })
            });
            return logs::read(sources.collect(), query).map(Ok).boxed();
        }
        let lines = match self.open(node).await {
            Ok(stream) => reach::logs(stream, node, tasks.clone(), query).await,
            Err(refusal) => Err(refusal),
        };
        lines.unwrap_or_else(|refusal| {
            let why = match refusal {
                Refusal::Unreachable { why, .. } => why,
                other => other.to_string(),
            };
            stream::iter([Err(LogGap { node, tasks, why })]).boxed()
        })
    }
}

/// Lines of several nodes as one stream: in order of time, or as they come if more are waited for.
fn merged(streams: Vec<BoxStream<'static, Logged>>, follow: bool) -> BoxStream<'static, Logged> {
    if follow {
        return select_all(streams).boxed();
    }
    let parts: Vec<Part> = streams.into_iter().map(|lines| Part { lines, head: None }).collect();
    stream::unfold(parts, |mut parts| async {
        let next = next(&mut parts).await?;
        Some((next, parts))
    })
    .boxed()
}

/// One node's lines, and the first that was not taken yet.
struct Part {
    lines: BoxStream<'static, Logged>,
    head: Option<LogLine>,
}

/// The earliest of all lines; a gap as soon as it is seen.
async fn next(parts: &mut Vec<Part>) -> Option<Logged> {
    let mut at = 0;
    while let Some(part) = parts.get_mut(at) {
        if part.head.is_none() {
            match part.lines.next().await {
                Some(Ok(line)) => part.head = Some(line),
                Some(Err(gap)) => return Some(Err(gap)),
                None => {
                    drop(parts.swap_remove(at));
                    continue;
                }
            }
        }
        at += 1;
    }
    let earliest = parts.iter_mut().min_by_key(|part| part.head.as_ref().map(|line| line.at))?;
    earliest.head.take().map(Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_core::id::{ENTROPY_LEN, Id};
    use skep_core::time::Stamp;

    fn lines(node: u8, times: &[u64]) -> BoxStream<'static, Logged> {
        let task = Id::from_entropy([node; ENTROPY_LEN]);
        let line = |at: &u64| {
            Ok(LogLine { task, at: Stamp(*at), stderr: false, bytes: at.to_string().into_bytes() })
        };
        stream::iter(times.iter().map(line).collect::<Vec<_>>()).boxed()
    }

    #[tokio::test]
    async fn lines_of_several_nodes_are_in_order_of_time() {
        let gap =
            || LogGap { node: Id::from_entropy([9; ENTROPY_LEN]), tasks: vec![], why: "x".into() };
        let cut = lines(3, &[4]).chain(stream::iter([Err(gap())])).boxed();
        let streams = vec![lines(1, &[1, 5, 6]), lines(2, &[]), cut, lines(4, &[2, 3, 7])];
        let came: Vec<Logged> = merged(streams, false).collect().await;
        let times: Vec<u64> = came.iter().flatten().map(|line| line.at.0).collect();
        assert_eq!(times, [1, 2, 3, 4, 5, 6, 7]);
        let gaps: Vec<_> = came.into_iter().filter_map(Result::err).collect();
        assert_eq!(gaps, [gap()]);
    }

    #[tokio::test]
    async fn a_node_that_is_waited_for_holds_up_no_other() {
        let streams = vec![stream::pending().boxed(), lines(1, &[1])];
        let mut lines = merged(streams, true);
        assert_eq!(lines.next().await.map(|line| line.map(|line| line.at)), Some(Ok(Stamp(1))));
    }
}
