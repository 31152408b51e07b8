//! Which images there are and what names them: the decisions of the image store, without disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::error::ImageError;
use super::reference::{Reference, familiar_repository, is_hex};
use super::take::Asked;
use super::view::{Image, ImageUse, Removed};

/// An image with the files it is made of.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) image: Arc<Image>,
    /// Bare hex digests of its blobs: manifest, configuration, layers.
    pub(super) blobs: Vec<String>,
}

/// All images of a node. Cheap to clone.
#[derive(Debug, Default, Clone)]
pub(super) struct Catalog {
    images: BTreeMap<String, Stored>,
    names: BTreeMap<Reference, String>,
}

/// An image to be saved, and a name to save it by.
pub(super) type Meant = (Arc<Image>, Option<Reference>);

/// What a text was found to name.
enum Found {
    Id(String),
    Name(Reference, String),
}

impl Catalog {
    /// Every image, ordered by id.
    pub(super) fn images(&self) -> impl Iterator<Item = &Stored> {
        self.images.values()
    }

    /// Every name with the id it stands for.
    pub(super) fn names(&self) -> impl Iterator<Item = (&Reference, &str)> {
        self.names.iter().map(|(name, id)| (name, id.as_str()))
    }

    /// Puts an image in, without a name.
    pub(super) fn add(&mut self, stored: Stored) {
        let id = stored.image.id.clone();
        self.images.entry(id.clone()).or_insert(stored);
        self.refresh(&id);
    }

    /// Gives an image this name, taking it off any other.
    pub(super) fn name(&mut self, name: Reference, id: &str) {
        let before = self.names.insert(name, id.to_owned());
        self.refresh(id);
        if let Some(before) = before {
            self.refresh(&before);
        }
    }

    /// Gives an image a tag, and its repository the image's digest.
    pub(super) fn tag(&mut self, tag: &Reference, id: &str) -> Result<(), ImageError> {
        let Some(stored) = self.images.get(id) else {
            return Err(ImageError::NotFound(id.to_owned()));
        };
        let digest = stored.image.manifest_digest.clone();
        self.name_digest(tag, &digest, id)?;
        self.name(tag.clone(), id);
        Ok(())
    }

    /// Gives a tag's repository the digest of a manifest: of this one, or of another that the
    /// image came with.
    pub(super) fn name_digest(
        &mut self,
        tag: &Reference,
        digest: &str,
        id: &str,
    ) -> Result<(), ImageError> {
        self.name(Reference::parse(&format!("{}@{digest}", tag.repository()))?, id);
        Ok(())
    }

    /// The id that a name stands for.
    pub(super) fn id_of(&self, name: &Reference) -> Option<&String> {
        self.names.get(name)
    }

    /// What somebody means who saves this: the image, and the names to save it by. A repository
    /// without a tag means all its tags; an id or a digest is no name.
    pub(super) fn meant(&self, text: &str) -> Result<Vec<Meant>, ImageError> {
        if let Ok(typed) = Reference::parse(text) {
            let tags = self.names.iter().filter(|(name, _)| {
                name.tag().is_some() && name.repository() == typed.repository()
            });
            let tags = tags.filter(|_| typed.tag().is_none() && typed.digest().is_none());
            let tagged = tags.filter_map(|(name, id)| {
                Some((Arc::clone(&self.images.get(id)?.image), Some(name.clone())))
            });
            let tagged: Vec<_> = tagged.collect();
            if !tagged.is_empty() {
                return Ok(tagged);
            }
        }
        let image = self.resolve(text)?;
        let name = match self.find(text)? {
            Found::Name(name, _) if name.digest().is_none() => Some(name),
            _ => None,
        };
        Ok(vec![(image, name)])
    }

    /// Finds an image by name, digest, id or the beginning of one.
    pub(super) fn resolve(&self, text: &str) -> Result<Arc<Image>, ImageError> {
        let (Found::Id(id) | Found::Name(_, id)) = self.find(text)?;
        let missing = || ImageError::NotFound(text.to_owned());
        self.images.get(&id).map(|stored| Arc::clone(&stored.image)).ok_or_else(missing)
    }

    /// The image that another node means by this: one with this very name, digest or whole id.
    pub(super) fn exact(&self, asked: &Asked) -> Option<&Stored> {
        let id = match asked {
            Asked::Id(id) => id,
            Asked::Tag(name) | Asked::Manifest(name, _) => self.names.get(name)?,
        };
        self.images.get(id)
    }

    fn find(&self, text: &str) -> Result<Found, ImageError> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let full = format!("sha256:{hex}");
        if self.images.contains_key(&full) {
            return Ok(Found::Id(full));
        }
        let reference = match Reference::parse(text) {
            Ok(reference) => reference.or_latest(),
            // A full id that nothing has.
            Err(_) if hex.len() == 64 && is_hex(hex) => {
                return Err(ImageError::NotFound(text.to_owned()));
            }
            Err(e) => return Err(e.into()),
        };
        // With a digest the tag is a remark: what was meant is the content.
        let name = match reference.digest() {
            Some(digest) => Reference::parse(&format!("{}@{digest}", reference.repository()))?,
            None => reference.clone(),
        };
        if let Some(id) = self.names.get(&name) {
            return Ok(Found::Name(name, id.clone()));
        }
        match self.by_prefix(text, hex)? {
            Some(id) => Ok(Found::Id(id)),
            None => Err(ImageError::NotFound(reference.familiar())),
        }
    }

    fn by_prefix(&self, text: &str, hex: &str) -> Result<Option<String>, ImageError> {
        if hex.is_empty() || hex.len() >= 64 || !is_hex(hex) {
            return Ok(None);
        }
        let prefix = format!("sha256:{hex}");
        let mut fitting =
            self.images.range(prefix.clone()..).take_while(|(id, _)| id.starts_with(&prefix));
        match (fitting.next(), fitting.next()) {
            (Some(_), Some(_)) => Err(ImageError::Ambiguous(text.to_owned())),
            (found, _) => Ok(found.map(|(id, _)| id.clone())),
        }
    }

    /// Takes off a name, and the image with its last one, by Docker's rules: an image that runs
    /// is never removed, one whose containers have ended only by force.
    pub(super) fn remove(
        &mut self,
        text: &str,
        force: bool,
        in_use: &dyn Fn(&str) -> Option<ImageUse>,
    ) -> Result<Vec<Removed>, ImageError> {
        let mut removed = Vec::new();
        match self.find(text)? {
            Found::Name(name, id) => {
                if !force && is_single(&self.names_of(&id)) {
                    refuse_last_name(text, &id, in_use)?;
                }
                self.take_off(&name, &mut removed);
                self.take_off_digests(&name, &id, &mut removed);
                // An image in use stays, without a name.
                if self.names_of(&id).is_empty() && may_delete(&id, force, in_use).is_ok() {
                    self.delete(&id, &mut removed);
                }
            }
            Found::Id(id) => {
                if !force && !is_single(&self.names_of(&id)) {
                    return Err(ImageError::Conflict(format!(
                        "conflict: unable to delete {} (must be forced) - \
                         image is referenced in multiple repositories",
                        short(&id)
                    )));
                }
                may_delete(&id, force, in_use)?;
                for name in self.names_of(&id) {
                    self.take_off(&name, &mut removed);
                }
                self.delete(&id, &mut removed);
            }
        }
        Ok(removed)
    }

    /// The image with this id.
    pub(super) fn stored(&self, id: &str) -> Option<&Stored> {
        self.images.get(id)
    }

    fn names_of(&self, id: &str) -> Vec<Reference> {
        self.names.iter().filter(|(_, of)| *of == id).map(|(name, _)| name.clone()).collect()
    }

    fn take_off(&mut self, name: &Reference, removed: &mut Vec<Removed>) {
        if let Some(id) = self.names.remove(name) {
            removed.push(Removed::Untagged(name.familiar()));
            self.refresh(&id);
        }
    }

    /// With the last tag of a repository its digests go too.
    fn take_off_digests(&mut self, name: &Reference, id: &str, removed: &mut Vec<Removed>) {
        let mut left = self.names_of(id);
        left.retain(|n| n.repository() == name.repository());
        if name.tag().is_some() && left.iter().all(|n| n.tag().is_none()) {
            for digest in left {
                self.take_off(&digest, removed);
            }
        }
    }

    fn delete(&mut self, id: &str, removed: &mut Vec<Removed>) {
        if let Some(stored) = self.images.remove(id) {
            removed.push(Removed::Deleted(id.to_owned()));
            // Docker counts a layer by all that is below it, too.
            let kept: BTreeSet<String> =
                self.images().flat_map(|stored| stored.image.chain_ids()).collect();
            let mut gone = stored.image.chain_ids();
            gone.retain(|layer| !kept.contains(layer));
            removed.extend(gone.into_iter().rev().map(Removed::Deleted));
        }
    }

    /// Writes an image's names into it.
    fn refresh(&mut self, id: &str) {
        let names = self.names_of(id);
        let Some(stored) = self.images.get_mut(id) else { return };
        let image = Arc::make_mut(&mut stored.image);
        let (tags, digests): (Vec<_>, Vec<_>) = names.iter().partition(|n| n.tag().is_some());
        image.repo_tags = tags.into_iter().map(Reference::familiar).collect();
        image.repo_digests = digests.into_iter().map(Reference::familiar).collect();
        image.repo_tags.sort();
        image.repo_digests.sort();
    }
}

/// Whether these names are at most one tag, and digests of one repository.
fn is_single(names: &[Reference]) -> bool {
    let repositories = names.windows(2).all(|w| w[0].repository() == w[1].repository());
    repositories && names.iter().filter(|n| n.tag().is_some()).count() <= 1
}

fn refuse_last_name(
    text: &str,
    id: &str,
    in_use: &dyn Fn(&str) -> Option<ImageUse>,
) -> Result<(), ImageError> {
    let Some(ImageUse::Running(container) | ImageUse::Stopped(container)) = in_use(id) else {
        return Ok(());
    };
    let shown = familiar_repository(text);
    Err(ImageError::Conflict(format!(
        "conflict: unable to remove repository reference {shown:?} (must force) - \
         container {} is using its referenced image {}",
        short(&container),
        short(id)
    )))
}

fn may_delete(
    id: &str,
    force: bool,
    in_use: &dyn Fn(&str) -> Option<ImageUse>,
) -> Result<(), ImageError> {
    let (force_helps, state, container) = match in_use(id) {
        Some(ImageUse::Running(container)) => ("cannot be forced", "running", container),
        Some(ImageUse::Stopped(container)) if !force => ("must be forced", "stopped", container),
        _ => return Ok(()),
    };
    Err(ImageError::Conflict(format!(
        "conflict: unable to delete {} ({force_helps}) - \
         image is being used by {state} container {}",
        short(id),
        short(&container)
    )))
}

/// The first 12 characters of an id.
fn short(id: &str) -> &str {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    hex.get(..12).unwrap_or(hex)
}
