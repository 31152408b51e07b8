//! What can be wrong with an archive of images.

use super::super::archive::ArchiveError;
use super::super::reference::ReferenceError;

/// An archive of images that cannot be loaded. Nothing of it is kept.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The archive itself is broken, dangerous or over a limit.
    #[error("the archive cannot be loaded")]
    Archive(#[source] ArchiveError),
    /// An entry of a kind that such an archive does not have.
    #[error("entry {0:?} is neither a file nor a directory nor a link")]
    Entry(String),
    /// The same name twice, and not the same content.
    #[error("the archive has two different entries named {0:?}")]
    Twice(String),
    /// A file named by its digest is something else.
    #[error("{path}: its name is a digest, but its content has the digest {found}")]
    Content {
        /// File in the archive.
        path: String,
        /// Its real digest.
        found: String,
    },
    /// More than an archive may have.
    #[error("the archive has more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// There is nothing that tells which images there are.
    #[error(
        "the archive holds no images: it has neither a manifest.json nor an oci-layout with its \
         index.json; the root filesystem of one image is taken by import"
    )]
    NoImages,
    /// Written by Docker before 1.10.
    #[error(
        "the archive has the format of Docker before 1.10, without a manifest.json: save the \
         image again with a newer Docker"
    )]
    Ancient,
    /// A document is longer than any real one, or all of them together are.
    #[error("{path}: {bytes} bytes are too many for a document: {limit} may still come")]
    TooLong {
        /// File in the archive.
        path: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A document is not what it should be.
    #[error("{path}: not the JSON that is expected here")]
    Json {
        /// File in the archive.
        path: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Something named is not there.
    #[error("image {image}: {field} names {path:?}, which is not in the archive")]
    Missing {
        /// Which image.
        image: String,
        /// Where it is named.
        field: String,
        /// What is named.
        path: String,
    },
    /// A field says what cannot be.
    #[error("image {image}: {field}: {what}")]
    Field {
        /// Which image.
        image: String,
        /// Which field.
        field: String,
        /// What is wrong with it.
        what: String,
    },
    /// A name that names no image.
    #[error("image {image}: {name:?} is no name of an image")]
    Name {
        /// Which image.
        image: String,
        /// The name.
        name: String,
        /// Why not.
        #[source]
        source: ReferenceError,
    },
    /// A layer is broken, dangerous or over a limit.
    #[error("image {image}: layer {index} cannot be unpacked")]
    Layer {
        /// Which image.
        image: String,
        /// Which layer, the lowest is 1.
        index: usize,
        /// Why.
        #[source]
        source: ArchiveError,
    },
    /// None of an image's platforms is wanted.
    #[error("image {image}: the archive has it for {found}, not for {wanted}")]
    Platform {
        /// Which image.
        image: String,
        /// What there is.
        found: String,
        /// What is wanted.
        wanted: String,
    },
}

impl LoadError {
    pub(in super::super) fn field(
        image: &str,
        field: impl Into<String>,
        what: impl Into<String>,
    ) -> Self {
        Self::Field { image: image.to_owned(), field: field.into(), what: what.into() }
    }
}
