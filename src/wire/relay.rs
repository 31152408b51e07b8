//! What a manager asks a node about its containers: one stream of bytes for each question.
//!
//! The asker sends one [`Ask`], the node one [`Answer`]. Behind [`Answer::Started`] the asker's
//! direction carries the process's stdin as it is, and its end is the end of stdin; the node's
//! carries [`Piece`]s up to [`Piece::End`]. Behind [`Answer::Lines`] the node sends [`Piece`]s
//! likewise; behind [`Answer::Image`] the asker asks on with [`Want`](super::image::Want). Nothing follows any other answer. The stream itself holds back who sends faster than
//! the other side takes; a stream that breaks off without its end is lost.

use minicbor::{Decode, Encode};
use skep_core::id::TaskId;

use super::image::Offer;
use super::refused::Refused;
use crate::gate::{ContainerView, ExecConfig, ExecView, LogLine, LogQuery};

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Ask {
    /// The container of a task. Answered by [`Answer::Container`].
    #[n(0)]
    Container {
        /// Task.
        #[n(0)]
        task: TaskId,
    },
    /// Makes an exec. Answered by [`Answer::Created`].
    #[n(1)]
    ExecCreate {
        /// Container id.
        #[n(0)]
        container: String,
        /// What it is to run.
        #[n(1)]
        config: ExecConfig,
    },
    /// Starts an exec. Answered by [`Answer::Started`], or [`Answer::Done`] if detached.
    #[n(2)]
    ExecStart {
        /// Exec id.
        #[n(0)]
        id: String,
        /// Whether nobody wants its streams.
        #[n(1)]
        detach: bool,
        /// Rows and columns of its terminal.
        #[n(2)]
        size: Option<(u16, u16)>,
    },
    /// Shows an exec. Answered by [`Answer::Exec`].
    #[n(3)]
    ExecInspect {
        /// Exec id.
        #[n(0)]
        id: String,
    },
    /// Sets the size of an exec's terminal. Answered by [`Answer::Done`].
    #[n(4)]
    ExecResize {
        /// Exec id.
        #[n(0)]
        id: String,
        /// Rows.
        #[n(1)]
        rows: u16,
        /// Columns.
        #[n(2)]
        cols: u16,
    },
    /// Lines of the logs of tasks. Answered by [`Answer::Lines`].
    #[n(5)]
    Logs {
        /// Tasks of this node. One that the node does not have, has no lines.
        #[n(0)]
        tasks: Vec<TaskId>,
        /// Which lines.
        #[n(1)]
        query: LogQuery,
    },
    /// An image. Answered by [`Answer::Image`].
    #[n(6)]
    Image {
        /// By name, digest or id, as a task's spec has it.
        #[n(0)]
        name: String,
    },
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// There is none.
    #[n(0)]
    Refused(#[n(0)] Refused),
    /// A container.
    #[n(1)]
    Container(#[n(0)] Box<ContainerView>),
    /// The id of a new exec.
    #[n(2)]
    Created(#[n(0)] String),
    /// An exec was started and has these streams.
    #[n(3)]
    Started {
        /// Whether its stdin is taken.
        #[n(0)]
        stdin: bool,
        /// Whether its stdout comes.
        #[n(1)]
        stdout: bool,
        /// Whether its stderr comes.
        #[n(2)]
        stderr: bool,
    },
    /// An exec.
    #[n(4)]
    Exec(#[n(0)] ExecView),
    /// It is done.
    #[n(5)]
    Done,
    /// Lines follow.
    #[n(6)]
    Lines,
    /// What an image is made of; its layers can be asked for with [`Want`](super::image::Want).
    #[n(7)]
    Image(#[n(0)] Box<Offer>),
}

/// A part of what follows an answer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Piece {
    /// A sign of life.
    #[n(0)]
    Pulse,
    /// Output of a process; empty for its end.
    #[n(1)]
    Stdout(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    /// Its complaints likewise.
    #[n(2)]
    Stderr(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    /// A line of a log.
    #[n(3)]
    Line(#[n(0)] LogLine),
    /// Everything was said: an exec's exit code can be asked for, a log has ended.
    #[n(4)]
    End,
}
