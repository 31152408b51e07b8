//! What can go wrong with images.

use std::io;
use std::path::PathBuf;

use super::archive::ArchiveError;
use super::load::LoadError;
use super::reference::ReferenceError;

/// An operation on images failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image has this name or id. The text is the name as the user would see it.
    #[error("No such image: {0}")]
    NotFound(String),
    /// A short id fits several images.
    #[error("image id {0} is ambiguous: several images begin with it")]
    Ambiguous(String),
    /// The name cannot name an image.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A `changes` instruction is not understood.
    #[error("{0}")]
    Change(String),
    /// The image is in use, in Docker's words.
    #[error("{0}")]
    Conflict(String),
    /// The archive is broken, dangerous or over a limit.
    #[error("the archive cannot be imported")]
    Archive(#[source] ArchiveError),
    /// An archive of images is broken, dangerous or over a limit.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// An image is for another platform than the one asked for.
    #[error("image {image} was found, but it is for {found}, not for {wanted}")]
    Platform {
        /// As the user named it.
        image: String,
        /// What it is for.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// More names than one request may have.
    #[error("more than {0} images in one request")]
    TooManyNames(usize),
    /// More manifests and configurations than are kept in memory at once.
    #[error("the documents of these images have more than {0} bytes: save fewer at once")]
    TooMuch(u64),
    /// An archive that is written out could not be read from disk, or nobody takes it.
    #[error("cannot write the archive")]
    Send(#[source] io::Error),
    /// The store on disk does not hold together.
    #[error("the image store is damaged at {path}: {what}")]
    Damaged {
        /// File.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The disk failed.
    #[error("cannot {what} {path}")]
    Disk {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    pub(super) fn disk(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { what, path, source }
    }

    pub(super) fn damaged(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.into(), what: what.into() }
    }
}
