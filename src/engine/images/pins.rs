//! What must stay although no image needs it: for an operation under way, or a task that starts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Names of blobs and layers that are held, and images that a container is about to use.
#[derive(Debug, Default)]
pub(super) struct Pins(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    /// How many hold it.
    names: BTreeMap<String, usize>,
    /// Ids of images, each with its containers.
    images: BTreeMap<String, Vec<String>>,
    /// Ids of images that may be gone soon: nobody can begin to use them.
    leaving: BTreeSet<String>,
}

/// An image is about to be removed, or was not: that is known once the removal is over.
#[derive(Debug)]
pub(super) struct Leaving;

/// Keeps an image or a part of one for as long as it lives.
#[derive(Debug)]
#[must_use]
pub struct Hold {
    pins: Arc<Pins>,
    names: Vec<String>,
    user: Option<(String, String)>,
}

impl Pins {
    /// Holds blobs and layers by their names on disk. Call it where nothing is cleared meanwhile.
    pub(super) fn hold(self: &Arc<Self>, names: Vec<String>) -> Hold {
        self.change(|held| {
            for name in &names {
                *held.names.entry(name.clone()).or_default() += 1;
            }
        });
        Hold { pins: Arc::clone(self), names, user: None }
    }

    /// Holds an image for a container.
    pub(super) fn hold_for(
        self: &Arc<Self>,
        image: &str,
        container: &str,
    ) -> Result<Hold, Leaving> {
        let (image, container) = (image.to_owned(), container.to_owned());
        self.change(|held| {
            if held.leaving.contains(&image) {
                return Err(Leaving);
            }
            held.images.entry(image.clone()).or_default().push(container.clone());
            Ok(())
        })?;
        Ok(Hold { pins: Arc::clone(self), names: Vec::new(), user: Some((image, container)) })
    }

    /// Whether somebody holds the blob or layer of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.change(|held| held.names.contains_key(name))
    }

    /// The container that an image is held for. If there is none, there will be none until
    /// [`Pins::settle`].
    pub(super) fn claim(&self, image: &str) -> Option<String> {
        self.change(|held| {
            let user = held.images.get(image).and_then(|users| users.first().cloned());
            if user.is_none() {
                held.leaving.insert(image.to_owned());
            }
            user
        })
    }

    /// Says that what was claimed is gone, or stays.
    pub(super) fn settle(&self) {
        self.change(|held| held.leaving.clear());
    }

    fn change<T>(&self, work: impl FnOnce(&mut Held) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let (names, user) = (std::mem::take(&mut self.names), self.user.take());
        self.pins.change(|held| {
            for name in names {
                if let Some(count) = held.names.get_mut(&name) {
                    *count -= 1;
                    if *count == 0 {
                        held.names.remove(&name);
                    }
                }
            }
            let Some((image, container)) = user else { return };
            if let Some(users) = held.images.get_mut(&image) {
                if let Some(at) = users.iter().position(|user| *user == container) {
                    users.remove(at);
                }
                if users.is_empty() {
                    held.images.remove(&image);
                }
            }
        });
    }
}
