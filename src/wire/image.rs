//! Images from node to node, without a registry.
//!
//! The asker sends [`Ask::Image`](super::relay::Ask::Image) and is answered with an [`Offer`] or a
//! refusal. Then it asks for one layer after the other with [`Want`]: for each the node sends
//! exactly the bytes from the offset to the layer's end, with nothing around them. The asker's end
//! of its direction is the end of all. The documents' digests are worked out by the asker.

use minicbor::{Decode, Encode};

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Offer {
    /// Its manifest, byte for byte.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub manifest: Vec<u8>,
    /// The manifest's media type.
    #[n(1)]
    pub media_type: String,
    /// Its configuration, byte for byte.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub config: Vec<u8>,
    /// Bytes of each layer as the node keeps and sends it, lowest first. One that the manifest
    /// names by the digest of its plain archive is sent packed with zstd, every other as it is
    /// named.
    #[n(3)]
    pub layers: Vec<u64>,
}

/// Asks for a layer of the offered image.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Want {
    /// Which, the lowest is 0.
    #[n(0)]
    pub layer: u32,
    /// Bytes of it that the asker has already.
    #[n(1)]
    pub offset: u64,
}
