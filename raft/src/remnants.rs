//! What the files of a node that does not run hold, counted or not: for who has to prove that
//! something is gone from them.

use std::sync::Arc;

use crate::disk::{Disk, RealDisk};
use crate::key::Keys;
use crate::node::Raft;
use crate::offline::OfflineError;
use crate::record::{ALIGN, looks_like_frame, open_frame};
use crate::segment::{self, HEADER_BYTES, Segment};
use crate::snapshot::{Records, Snapshots, is_snapshot};
use crate::{Config, OpenError};

impl Raft {
    /// Hands `take` every record that can be read out of the log's and the snapshots' files of a
    /// node that does not run, with the name of its file: also those that were purged or truncated
    /// and are there still.
    ///
    /// # Errors
    /// See [`OfflineError`]: if a file cannot be read at all.
    pub fn each_remnant(
        config: &Config,
        take: &mut dyn FnMut(&str, &[u8]),
    ) -> Result<(), OfflineError> {
        let keys = Keys::one(Arc::new(config.storage_key.copy()));
        let open = |name: &str| {
            let dir = config.dir.join(name);
            RealDisk::open(&dir).map_err(|source| OfflineError::Dir { dir, source })
        };
        segments(&open("log")?, &keys, take)?;
        let disk: Arc<dyn Disk> = Arc::new(open("snapshots")?);
        let names = disk.list().map_err(OfflineError::Entry)?;
        let snapshots = Snapshots::with(disk, keys);
        for name in names.into_iter().filter(|name| is_snapshot(name)) {
            let mut records = Records::of(snapshots.open_file(name.clone())?)?;
            while let Some(record) = records.next()? {
                take(&name, &record);
            }
        }
        Ok(())
    }
}

fn segments(
    disk: &dyn Disk,
    keys: &Keys,
    take: &mut dyn FnMut(&str, &[u8]),
) -> Result<(), OfflineError> {
    let names = disk.list().map_err(OfflineError::Entry)?;
    for name in names.into_iter().filter(|name| segment::seq_of(name).is_some()) {
        let opened = Segment::open(disk, keys, &name).map_err(OfflineError::Entry)?;
        let Some(segment) = opened else {
            return Err(OpenError::Damaged { file: name, offset: 0 }.into());
        };
        let size = segment.file.size().map_err(OfflineError::Entry)?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        let read = segment.file.read_at(0, &mut bytes).map_err(OfflineError::Entry)?;
        bytes.truncate(read);
        let mut offset = HEADER_BYTES;
        // Not only as far as frames follow one another: what stands behind is there too.
        while let Some(rest) = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)) {
            if rest.is_empty() {
                break;
            }
            let frame = looks_like_frame(rest).then(|| open_frame(&segment.cipher, offset, rest));
            offset = match frame {
                Some(Ok(frame)) => {
                    take(&name, frame.bytes());
                    frame.end
                }
                _ => offset + ALIGN,
            };
        }
    }
    Ok(())
}
