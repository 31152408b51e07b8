//! A task whose image is not on its node: it comes from another one while the task is prepared.

use std::future::pending;
use std::sync::Arc;

use skep_core::assign::TaskAssignment;
use skep_core::model::task::{TaskState, TaskStatus};
use tokio::sync::watch;
use tokio::time::{Instant, interval_at};

use super::{Actor, Wanted};
use crate::chain::chain;
use crate::engine::images::ImageError;
use crate::engine::images::exchange::{Came, fetch};
use crate::limits::IMAGE_REPORT;

impl Actor {
    /// Gets the task's image from another node if it is not here. False if the task is to go
    /// before that is done.
    pub(super) async fn fetch_image(
        &mut self,
        assignment: &TaskAssignment,
    ) -> Result<bool, String> {
        let Some(source) = self.context.image_source.clone() else { return Ok(true) };
        let (images, name) =
            (Arc::clone(&self.context.images), &assignment.task.spec.container.image);
        // What else is wrong with the name is told where the task is planned.
        if !matches!(images.resolve(name), Err(ImageError::NotFound(_))) {
            return Ok(true);
        }
        let came = watch::Sender::new(Came::default());
        let mut wanted = self.wanted.clone();
        let mut fetching = std::pin::pin!(fetch(&images, name, &*source, &came));
        let mut tick = interval_at(Instant::now() + IMAGE_REPORT, IMAGE_REPORT);
        let mut told = None;
        loop {
            tokio::select! {
                fetched = &mut fetching => {
                    return fetched.map(|()| true).map_err(|error| chain(&error));
                }
                () = unwanted(&mut wanted) => return Ok(false),
                _ = tick.tick() => {
                    let now = *came.borrow();
                    if told.replace(now) != Some(now) {
                        self.report_progress(now).await;
                    }
                }
            }
        }
    }

    async fn report_progress(&self, came: Came) {
        self.send_status(TaskStatus {
            at: crate::clock::now(),
            state: TaskState::Preparing,
            message: progress(came),
            err: None,
            container: None,
        })
        .await;
    }
}

fn progress(came: Came) -> String {
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    match came.of {
        0 => "preparing: waiting for the image".to_owned(),
        of => format!("preparing: {} of {} MB", megabytes(came.bytes), megabytes(of)),
    }
}

/// Waits until the task is to go.
async fn unwanted(wanted: &mut watch::Receiver<Wanted>) {
    if wanted.wait_for(Wanted::is_over).await.is_err() {
        // The agent is gone with the daemon, and this call with it.
        pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use skep_core::assign::AssignmentDiff;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;
    use crate::agent::Agent;
    use crate::agent::testing::{assignment, context};
    use crate::engine::images::exchange::ImageSource;
    use crate::gate::{Later, Refusal};
    use crate::wire::refused::Refused;
    use crate::wire::relay::Answer;
    use crate::wire::session::FromAgent;
    use crate::wire::{Stream, frame};

    const WAIT: Duration = Duration::from_secs(20);

    /// Answers with these bytes, and says nothing more.
    #[derive(Debug)]
    struct Says(Vec<u8>, mpsc::Sender<DuplexStream>);

    impl ImageSource for Says {
        fn open(&self, _: &str) -> Later<'_, Result<Box<dyn Stream>, Refusal>> {
            Box::pin(async {
                let (ours, mut theirs) = duplex(64 << 10);
                theirs.write_all(&self.0).await.unwrap();
                self.1.send(theirs).await.unwrap();
                Ok(Box::new(ours) as _)
            })
        }
    }

    struct Run {
        agent: Agent,
        reports: mpsc::Receiver<FromAgent>,
        /// The other ends of the streams that were opened.
        _far: mpsc::Receiver<DuplexStream>,
        _dir: tempfile::TempDir,
    }

    fn run(answer: &Answer) -> Run {
        let dir = tempfile::tempdir().unwrap();
        let (session, reports) = mpsc::channel(64);
        let (near, far) = mpsc::channel(64);
        let mut context = context(dir.path(), session);
        context.image_source = Some(Arc::new(Says(frame(answer), near)));
        let agent = Agent::new(context).unwrap();
        agent.assign(AssignmentDiff { sequence: 1, update: vec![assignment()], remove: vec![] });
        Run { agent, reports, _far: far, _dir: dir }
    }

    impl Run {
        /// The next report of the task.
        async fn next(&mut self) -> TaskStatus {
            let next = timeout(WAIT, self.reports.recv()).await;
            match next.expect("it takes too long").expect("the agent is gone") {
                FromAgent::Reports(reports) => reports[0].status.clone(),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn an_image_that_nobody_has_rejects_the_task() {
        let refused = Refused::NotFound("No such image: busybox:latest".to_owned());
        let mut run = run(&Answer::Refused(refused));
        assert_eq!(run.next().await.state, TaskState::Accepted);
        assert_eq!(run.next().await.state, TaskState::Preparing);
        let last = run.next().await;
        assert_eq!(last.state, TaskState::Rejected);
        assert_eq!(last.err.as_deref(), Some("No such image: busybox:latest"));
    }

    #[tokio::test]
    async fn a_task_says_how_far_its_image_is_and_can_go_at_any_time() {
        let mut run = run(&Answer::Image(Box::new(crate::engine::images::test_offer())));
        let mut last = run.next().await;
        while !last.message.contains(" of ") {
            assert!(last.state <= TaskState::Preparing, "{last:?}");
            last = run.next().await;
        }
        assert_eq!(
            (last.state, last.message.as_str()),
            (TaskState::Preparing, "preparing: 0 of 3 MB")
        );
        // Nothing more comes, ever: the task is not held up by that.
        timeout(WAIT, run.agent.end_all()).await.expect("a task that is not wanted stays");
    }

    #[test]
    fn progress_is_in_megabytes() {
        assert_eq!(progress(Came::default()), "preparing: waiting for the image");
        let came = Came { bytes: 34_000_000, of: 119_000_001 };
        assert_eq!(progress(came), "preparing: 34 of 120 MB");
    }
}
