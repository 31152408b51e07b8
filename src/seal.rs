//! Sealing: payloads at rest with the swarm's ring key, payloads on their way to one shim, and
//! ring keys to managers. Plaintext goes from one protected memory to another, never between.

use std::fmt;

use aes_gcm_siv::aead::{AeadInPlace, KeyInit};
use aes_gcm_siv::{Aes256GcmSiv, Nonce, Tag};
use hkdf::Hkdf;
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use rand_core::{OsRng, TryRngCore};
use sha2::Sha256;
use skep_core::id::{ClusterId, MaterialId, NodeId, TaskId};
use skep_core::model::material::MaterialKind;
use skep_core::sealed::Sealed;
use zeroize::Zeroizing;

use crate::protected::{ProtectError, Protected};

/// What seals payloads at rest, by the name that others know it by.
pub const CIPHER: &str = "AES-256-GCM-SIV";
/// Bytes of an HPKE encapsulated key.
const ENCAPPED_BYTES: usize = 32;
/// Bytes of an AEAD tag.
pub const TAG_BYTES: usize = 16;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 12;

/// Sealing or opening failed. It never says anything of the plaintext.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The ciphertext is not what was sealed for this key and purpose.
    #[error("a sealed payload does not open: wrong key, purpose or damaged bytes")]
    Forged,
    /// The peer's public key is no X25519 key.
    #[error("a public key to seal to is not valid")]
    BadKey,
    /// The kernel gave no randomness.
    #[error("the kernel gives no randomness")]
    Random,
    /// Protected memory ran out.
    #[error(transparent)]
    Memory(#[from] ProtectError),
}

/// Fills an array with the kernel's randomness.
///
/// # Errors
/// [`SealError::Random`].
pub fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| SealError::Random)?;
    Ok(bytes)
}

/// One key of the swarm's ring: 256 bits, zeroed on drop.
pub struct RingSecret {
    /// Its version in the ring.
    pub version: u64,
    key: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for RingSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RingSecret(version {})", self.version)
    }
}

/// What a payload is bound to.
#[derive(Debug, Clone, Copy)]
pub struct PayloadName {
    /// Swarm.
    pub cluster: ClusterId,
    /// Secret or config.
    pub kind: MaterialKind,
    /// Object.
    pub id: MaterialId,
    /// Version of the payload.
    pub version: u64,
}

impl PayloadName {
    fn aad(&self, key: u64) -> Vec<u8> {
        let mut aad = b"skep-payload/1\0".to_vec();
        aad.extend_from_slice(self.cluster.as_str().as_bytes());
        aad.push(match self.kind {
            MaterialKind::Secret => 0,
            MaterialKind::Config => 1,
        });
        aad.extend_from_slice(self.id.as_str().as_bytes());
        aad.extend_from_slice(&self.version.to_be_bytes());
        aad.extend_from_slice(&key.to_be_bytes());
        aad
    }
}

impl RingSecret {
    /// Makes the key of this version.
    ///
    /// # Errors
    /// [`SealError::Random`].
    pub fn generate(version: u64) -> Result<Self, SealError> {
        Ok(Self { version, key: Zeroizing::new(random()?) })
    }

    /// Takes the key out of protected memory.
    ///
    /// # Errors
    /// [`SealError::BadKey`] if it is not 32 bytes.
    pub fn from_protected(version: u64, key: &Protected) -> Result<Self, SealError> {
        let key = key.as_slice().try_into().map_err(|_| SealError::BadKey)?;
        Ok(Self { version, key: Zeroizing::new(key) })
    }

    /// Seals this key to a manager's X25519 key.
    ///
    /// # Errors
    /// Any [`SealError`].
    pub fn seal_to_manager(
        &self,
        cluster: ClusterId,
        node: NodeId,
        key: &[u8; 32],
    ) -> Result<Vec<u8>, SealError> {
        let mut plain = Protected::copy_of(&*self.key)?;
        hpke_seal(key, &ring_info(cluster, node, self.version), b"", &mut plain)
    }

    /// Opens the slot of a manager.
    ///
    /// # Errors
    /// Any [`SealError`].
    pub fn open_slot(
        slot: &[u8],
        cluster: ClusterId,
        node: NodeId,
        version: u64,
        key: &SealKeyPair,
    ) -> Result<Self, SealError> {
        let plain = key.open(slot, &ring_info(cluster, node, version), b"")?;
        Self::from_protected(version, &plain)
    }

    /// Seals in place and takes the payload along: afterwards no plaintext is left.
    ///
    /// # Errors
    /// [`SealError::Random`].
    pub fn seal(&self, name: &PayloadName, mut payload: Protected) -> Result<Sealed, SealError> {
        self.seal_purpose(b"payload", &name.aad(self.version), payload.as_mut_slice())
    }

    /// Opens into protected memory.
    ///
    /// # Errors
    /// [`SealError::Forged`] or [`SealError::Memory`].
    pub fn open(&self, name: &PayloadName, sealed: &Sealed) -> Result<Protected, SealError> {
        self.open_purpose(b"payload", &name.aad(self.version), sealed)
    }

    /// Seals bytes of another purpose (join secrets, the CA key) in place.
    ///
    /// # Errors
    /// [`SealError::Random`].
    pub fn seal_purpose(
        &self,
        purpose: &[u8],
        aad: &[u8],
        plain: &mut [u8],
    ) -> Result<Sealed, SealError> {
        let (nonce, bytes) = seal_under(&self.key, purpose, aad, plain)?;
        Ok(Sealed { key: self.version, nonce, bytes })
    }

    /// Opens what [`RingSecret::seal_purpose`] sealed.
    ///
    /// # Errors
    /// [`SealError::Forged`] or [`SealError::Memory`].
    pub fn open_purpose(
        &self,
        purpose: &[u8],
        aad: &[u8],
        sealed: &Sealed,
    ) -> Result<Protected, SealError> {
        if sealed.key != self.version {
            return Err(SealError::Forged);
        }
        open_under(&self.key, purpose, aad, &sealed.nonce, &sealed.bytes)
    }
}

/// Seals in place under a key of 256 bits: AES-256-GCM-SIV with a subkey of this purpose and a
/// random nonce. Returns nonce, and ciphertext with tag; `plain` is ciphertext afterwards.
///
/// # Errors
/// [`SealError::Random`].
pub fn seal_under(
    key: &[u8; 32],
    purpose: &[u8],
    aad: &[u8],
    plain: &mut [u8],
) -> Result<([u8; NONCE_BYTES], Vec<u8>), SealError> {
    let nonce = random()?;
    let cipher = Aes256GcmSiv::new((&*subkey(key, purpose)).into());
    let tag = cipher
        .encrypt_in_place_detached(Nonce::from_slice(&nonce), aad, plain)
        .map_err(|_| SealError::Forged)?;
    let mut bytes = Vec::with_capacity(plain.len() + TAG_BYTES);
    bytes.extend_from_slice(plain);
    bytes.extend_from_slice(&tag);
    Ok((nonce, bytes))
}

/// Opens what [`seal_under`] sealed, into protected memory.
///
/// # Errors
/// [`SealError::Forged`] or [`SealError::Memory`].
pub fn open_under(
    key: &[u8; 32],
    purpose: &[u8],
    aad: &[u8],
    nonce: &[u8; NONCE_BYTES],
    sealed: &[u8],
) -> Result<Protected, SealError> {
    let (body, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(SealError::Forged)?;
    let mut plain = Protected::copy_of(body)?;
    let cipher = Aes256GcmSiv::new((&*subkey(key, purpose)).into());
    cipher
        .decrypt_in_place_detached(
            Nonce::from_slice(nonce),
            aad,
            plain.as_mut_slice(),
            Tag::from_slice(tag),
        )
        .map_err(|_| SealError::Forged)?;
    Ok(plain)
}

fn subkey(key: &[u8; 32], purpose: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut subkey = Zeroizing::new([0; 32]);
    // 32 bytes are well below HKDF's limit: it cannot fail.
    let _ = Hkdf::<Sha256>::new(None, key).expand(purpose, &mut *subkey);
    subkey
}

fn ring_info(cluster: ClusterId, node: NodeId, version: u64) -> Vec<u8> {
    format!("skep-ring/1\0{cluster}{node}{version}").into_bytes()
}

/// An X25519 key pair that others seal to. The private half is zeroed on drop.
pub struct SealKeyPair {
    private: <X25519HkdfSha256 as Kem>::PrivateKey,
    public: [u8; 32],
}

impl fmt::Debug for SealKeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKeyPair({})", skep_core::id::hex(&self.public))
    }
}

impl SealKeyPair {
    /// Makes a pair.
    ///
    /// # Errors
    /// [`SealError::Random`].
    pub fn generate() -> Result<Self, SealError> {
        let seed = Zeroizing::new(random::<32>()?);
        Ok(Self::of(X25519HkdfSha256::derive_keypair(&*seed)))
    }

    fn of(
        (private, public): (
            <X25519HkdfSha256 as Kem>::PrivateKey,
            <X25519HkdfSha256 as Kem>::PublicKey,
        ),
    ) -> Self {
        let mut bytes = [0; 32];
        public.write_exact(&mut bytes);
        Self { private, public: bytes }
    }

    /// Takes a pair back from the bytes of its private half.
    ///
    /// # Errors
    /// [`SealError::BadKey`].
    pub fn from_private(bytes: &[u8]) -> Result<Self, SealError> {
        let private = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(bytes)
            .map_err(|_| SealError::BadKey)?;
        let public = X25519HkdfSha256::sk_to_pk(&private);
        Ok(Self::of((private, public)))
    }

    /// The private half, to be stored.
    #[must_use]
    pub fn private_bytes(&self) -> Zeroizing<[u8; 32]> {
        let mut bytes = Zeroizing::new([0; 32]);
        self.private.write_exact(&mut *bytes);
        bytes
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    /// Opens what was sealed to this pair, into protected memory.
    ///
    /// # Errors
    /// [`SealError::Forged`] or [`SealError::Memory`].
    pub fn open(&self, sealed: &[u8], info: &[u8], aad: &[u8]) -> Result<Protected, SealError> {
        let len = sealed.len().checked_sub(ENCAPPED_BYTES + TAG_BYTES).ok_or(SealError::Forged)?;
        let mut plain = Protected::zeroed(len)?;
        self.open_into(sealed, info, aad, plain.as_mut_slice())?;
        Ok(plain)
    }

    /// Opens what was sealed to this pair into `plain`, which has exactly the payload's length.
    /// On failure `plain` holds nothing of the plaintext.
    ///
    /// # Errors
    /// [`SealError::Forged`].
    pub fn open_into(
        &self,
        sealed: &[u8],
        info: &[u8],
        aad: &[u8],
        plain: &mut [u8],
    ) -> Result<(), SealError> {
        let (encapped, rest) = sealed.split_at_checked(ENCAPPED_BYTES).ok_or(SealError::Forged)?;
        let (body, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(SealError::Forged)?;
        if body.len() != plain.len() {
            return Err(SealError::Forged);
        }
        plain.copy_from_slice(body);
        let encapped = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapped)
            .map_err(|_| SealError::Forged)?;
        let tag = hpke::aead::AeadTag::from_bytes(tag).map_err(|_| SealError::Forged)?;
        let mut context = hpke::setup_receiver::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.private,
            &encapped,
            info,
        )
        .map_err(|_| SealError::Forged)?;
        context.open_in_place_detached(plain, aad, &tag).map_err(|_| {
            plain.fill(0);
            SealError::Forged
        })
    }
}

/// Encapsulated key ‖ ciphertext ‖ tag. `plain` is ciphertext afterwards.
fn hpke_seal(
    key: &[u8; 32],
    info: &[u8],
    aad: &[u8],
    plain: &mut Protected,
) -> Result<Vec<u8>, SealError> {
    let key =
        <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(key).map_err(|_| SealError::BadKey)?;
    let mut random = OsRng.unwrap_err();
    let (encapped, mut context) = hpke::setup_sender::<AesGcm256, HkdfSha256, X25519HkdfSha256, _>(
        &OpModeS::Base,
        &key,
        info,
        &mut random,
    )
    .map_err(|_| SealError::BadKey)?;
    let tag =
        context.seal_in_place_detached(plain.as_mut_slice(), aad).map_err(|_| SealError::BadKey)?;
    let mut sealed = Vec::with_capacity(ENCAPPED_BYTES + plain.len() + TAG_BYTES);
    sealed.extend_from_slice(&encapped.to_bytes());
    sealed.extend_from_slice(plain.as_slice());
    sealed.extend_from_slice(&tag.to_bytes());
    Ok(sealed)
}

/// What a payload sealed to a shim is bound to.
#[derive(Debug, Clone, Copy)]
pub struct ShimSeal<'a> {
    /// Swarm.
    pub cluster: ClusterId,
    /// The node the shim runs on.
    pub node: NodeId,
    /// Its task.
    pub task: TaskId,
    /// Its public key.
    pub key: &'a [u8; 32],
    /// Secret or config.
    pub material: MaterialId,
    /// Version.
    pub version: u64,
    /// Sequence of the delivery.
    pub sequence: u64,
}

impl ShimSeal<'_> {
    fn info(&self) -> Vec<u8> {
        let mut info =
            format!("skep-shim/1\0{}{}{}", self.cluster, self.node, self.task).into_bytes();
        info.extend_from_slice(self.key);
        info
    }

    fn aad(&self) -> Vec<u8> {
        format!("{}\0{}\0{}", self.material, self.version, self.sequence).into_bytes()
    }
}

/// Seals a payload to one shim. The plaintext is gone afterwards.
///
/// # Errors
/// [`SealError::BadKey`].
pub fn seal_to_shim(to: &ShimSeal<'_>, mut payload: Protected) -> Result<Vec<u8>, SealError> {
    hpke_seal(to.key, &to.info(), &to.aad(), &mut payload)
}

/// Opens a payload in its shim, into the vault's memory.
///
/// # Errors
/// [`SealError::Forged`].
pub fn open_in_shim(
    to: &ShimSeal<'_>,
    pair: &SealKeyPair,
    sealed: &[u8],
    plain: &mut [u8],
) -> Result<(), SealError> {
    pair.open_into(sealed, &to.info(), &to.aad(), plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_core::id::ENTROPY_LEN;

    fn name() -> PayloadName {
        PayloadName {
            cluster: ClusterId::from_entropy([1; ENTROPY_LEN]),
            kind: MaterialKind::Secret,
            id: MaterialId::from_entropy([2; ENTROPY_LEN]),
            version: 1,
        }
    }

    #[test]
    fn a_payload_opens_only_under_its_own_name() {
        let ring = RingSecret::generate(7).unwrap();
        let sealed = ring.seal(&name(), Protected::copy_of(b"hunter2").unwrap()).unwrap();
        assert_eq!(ring.open(&name(), &sealed).unwrap().as_slice(), b"hunter2");
        let other = PayloadName { version: 2, ..name() };
        assert!(matches!(ring.open(&other, &sealed), Err(SealError::Forged)));
        assert!(!format!("{ring:?} {sealed:?}").contains("hunter2"));
    }

    #[test]
    fn a_shim_opens_what_was_sealed_to_it_and_nothing_else() {
        let pair = SealKeyPair::generate().unwrap();
        let key = pair.public();
        let to = ShimSeal {
            cluster: name().cluster,
            node: NodeId::from_entropy([3; ENTROPY_LEN]),
            task: TaskId::from_entropy([4; ENTROPY_LEN]),
            key: &key,
            material: name().id,
            version: 1,
            sequence: 5,
        };
        let sealed = seal_to_shim(&to, Protected::copy_of(b"hunter2").unwrap()).unwrap();
        let mut plain = [0; 7];
        open_in_shim(&to, &pair, &sealed, &mut plain).unwrap();
        assert_eq!(&plain, b"hunter2");
        let replay = ShimSeal { sequence: 6, ..to };
        let mut plain = [0; 7];
        assert!(open_in_shim(&replay, &pair, &sealed, &mut plain).is_err());
        assert_eq!(plain, [0; 7]);
        let stored = SealKeyPair::from_private(&*pair.private_bytes()).unwrap();
        assert!(open_in_shim(&to, &stored, &sealed, &mut plain).is_ok());
    }

    #[test]
    fn a_ring_key_reaches_one_manager() {
        let pair = SealKeyPair::generate().unwrap();
        let ring = RingSecret::generate(1).unwrap();
        let (cluster, node) = (name().cluster, NodeId::from_entropy([3; ENTROPY_LEN]));
        let slot = ring.seal_to_manager(cluster, node, &pair.public()).unwrap();
        let opened = RingSecret::open_slot(&slot, cluster, node, 1, &pair).unwrap();
        assert_eq!(*opened.key, *ring.key);
        assert!(RingSecret::open_slot(&slot, cluster, node, 2, &pair).is_err());
    }
}
