//! Request targets that are asked for again and again, put together and checked once.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use arc_swap::ArcSwapOption;
use http::uri::PathAndQuery;

use crate::error::Error;

/// A caller of a few APIs has a few paths.
const SLOTS: usize = 8;
/// Longer ones are seldom asked for twice.
const LONGEST: usize = 256;

/// The targets of a few paths. A path is kept once it was asked for twice with none of its slot's between, so
/// that paths which never come again leave the others alone.
#[derive(Debug, Default)]
pub(crate) struct Targets {
    slots: [Slot; SLOTS],
}

#[derive(Debug, Default)]
struct Slot {
    kept: ArcSwapOption<Kept>,
    /// The hash of the last path that was not the one kept.
    missed: AtomicU32,
}

#[derive(Debug)]
struct Kept {
    path: Box<str>,
    target: PathAndQuery,
}

impl Targets {
    /// The target of a path; `make` is pure.
    pub(crate) fn get(
        &self,
        path: &str,
        make: impl FnOnce(&str) -> Result<PathAndQuery, Error>,
    ) -> Result<PathAndQuery, Error> {
        if path.len() > LONGEST {
            return make(path);
        }
        let slot = &self.slots[slot_of(path)];
        if let Some(kept) = &*slot.kept.load()
            && *kept.path == *path
        {
            return Ok(kept.target.clone());
        }
        let target = make(path)?;
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(path) as u32;
        if slot.missed.swap(hash, Relaxed) == hash {
            let kept = Kept {
                path: path.into(),
                target: target.clone(),
            };
            slot.kept.store(Some(Arc::new(kept)));
        }
        Ok(target)
    }
}

/// Cheap: a wrong guess costs only the saving.
fn slot_of(path: &str) -> usize {
    let last = path.as_bytes().last().copied().unwrap_or_default();
    (path.len() ^ usize::from(last)) % SLOTS
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;
    use std::cell::Cell;

    #[test]
    fn path_that_comes_again_is_made_twice_and_one_that_does_not_drives_nothing_out() {
        let targets = Targets::default();
        let made = Cell::new(0);
        let get = |path: &str| {
            let make = |path: &str| {
                made.set(made.get() + 1);
                Ok(PathAndQuery::try_from(format!("/v1{path}")).unwrap())
            };
            targets.get(path, make).unwrap()
        };
        for _ in 0..5 {
            assert_eq!(get("/chat"), "/v1/chat");
        }
        assert_eq!(made.get(), 2);
        // Of the same slot, each once.
        for path in ["/that", "/what", "/flat"] {
            assert_eq!(slot_of(path), slot_of("/chat"));
            get(path);
        }
        assert_eq!(made.get(), 5);
        get("/chat");
        assert_eq!(made.get(), 5);
        // Two that take turns in one slot: neither is kept, both are right.
        for _ in 0..3 {
            assert_eq!(get("/ab"), "/v1/ab");
            assert_eq!(get("/bb"), "/v1/bb");
        }
    }

    #[test]
    fn failure_is_not_kept() {
        let targets = Targets::default();
        for _ in 0..3 {
            let failed = targets.get("..", |_| Err(Error::invalid("no")));
            assert!(failed.is_err());
        }
        let target = targets.get("..", |_| Ok(PathAndQuery::from_static("/")));
        assert_eq!(target.unwrap(), "/");
    }
}
