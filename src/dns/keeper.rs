//! Which names are kept fresh, and when each is due. One task looks after all of them: a task for each would cost
//! more than all else that is known of its name.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::clock::deadline;
use crate::sync::lock;

use super::resolve::Family;

/// A task that has not looked for so long after a name was due is on a runtime that nobody drives.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// A family of a name.
pub(super) type NameKey = (Arc<str>, Family);

/// The names, shared with the task.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    names: Mutex<Names>,
    /// Something is due earlier than the task has seen, or the resolver is gone.
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
struct Names {
    /// Each that is kept stands here once, but while it is looked at.
    due: BinaryHeap<Entry>,
    kept: HashSet<NameKey>,
    /// The task there is, and how many there have been.
    task: Option<u64>,
    tasks: u64,
}

/// The earliest is the greatest, as the heap wants it.
#[derive(Debug)]
struct Entry {
    at: Instant,
    key: NameKey,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.cmp(&self.at)
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Entry {}

impl Names {
    fn first(&self) -> Option<Instant> {
        self.due.peek().map(|entry| entry.at)
    }
}

/// A burst of names should not cost memory for ever.
pub(super) fn is_roomy(capacity: usize, len: usize) -> bool {
    capacity > 64 + 4 * len
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    Now(NameKey),
    At(Instant),
    /// No name is kept, or another task keeps them: this one is none any more.
    Never,
}

impl Keeping {
    /// Keeps a name that is due at `at`, if it is not kept already. There must be a task then: whoever gets its
    /// presence starts it.
    pub(super) fn keep(
        self: &Arc<Self>,
        key: NameKey,
        at: Instant,
        now: Instant,
    ) -> Option<Presence> {
        let mut names = lock(&self.names);
        let first = names.first();
        let is_first = names.kept.insert(key.clone()) && {
            names.due.push(Entry { at, key });
            first.is_none_or(|first| at < first)
        };
        let is_stuck = first.is_some_and(|first| deadline(first, STUCK_AFTER) < now);
        if names.task.is_some() && !is_stuck {
            if is_first {
                self.changed.notify_one();
            }
            return None;
        }
        names.tasks += 1;
        names.task = Some(names.tasks);
        Some(Presence {
            keeping: self.clone(),
            id: names.tasks,
        })
    }

    /// The first name that is due by now. Whoever gets it says what becomes of it.
    pub(super) fn next(&self, task: &Presence, now: Instant) -> Due {
        let mut names = lock(&self.names);
        if names.task != Some(task.id) {
            // Another has taken its place.
            return Due::Never;
        }
        match names.first() {
            None => {
                names.task = None;
                Due::Never
            }
            Some(at) if at > now => Due::At(at),
            Some(_) => match names.due.pop() {
                Some(entry) => Due::Now(entry.key),
                None => Due::Never,
            },
        }
    }

    /// The name is due at another time.
    pub(super) fn put_off(&self, key: NameKey, at: Instant) {
        lock(&self.names).due.push(Entry { at, key });
    }

    /// The name is not kept any more.
    pub(super) fn forget(&self, key: &NameKey) {
        let mut names = lock(&self.names);
        names.kept.remove(key);
        if is_roomy(names.kept.capacity(), names.kept.len()) {
            names.kept.shrink_to_fit();
            names.due.shrink_to_fit();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let names = lock(&self.names);
        assert_eq!(names.kept.len(), names.due.len());
        names.kept.len()
    }
}

/// The task is there. Dropped with its runtime it leaves the names to the next one.
#[derive(Debug)]
pub(super) struct Presence {
    pub(super) keeping: Arc<Keeping>,
    id: u64,
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut names = lock(&self.keeping.names);
        if names.task == Some(self.id) {
            names.task = None;
        }
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module and resolve beside it.
    use std::time::Duration;

    use super::*;

    #[test]
    fn names_are_due_in_their_order_and_there_is_one_task() {
        let keeping = Arc::new(Keeping::default());
        let t0 = Instant::now();
        let at = |n| t0 + Duration::from_secs(n);
        let key = |name: &str| (Arc::from(name), Family::V4);
        let keep = |name, due, now| keeping.keep(key(name), at(due), at(now));
        let task = keep("b", 20, 0).expect("the first one");
        assert!(keep("b", 5, 0).is_none(), "kept already");
        assert!(keep("a", 10, 0).is_none());
        assert_eq!(keeping.len(), 2);
        assert_eq!(keeping.next(&task, at(9)), Due::At(at(10)));
        assert_eq!(keeping.next(&task, at(25)), Due::Now(key("a")));
        keeping.put_off(key("a"), at(30));
        assert_eq!(keeping.next(&task, at(25)), Due::Now(key("b")));
        keeping.forget(&key("b"));
        assert_eq!(keeping.next(&task, at(25)), Due::At(at(30)));
        // Its runtime ends: the next answer finds nobody, though it is of a name that is kept.
        drop(task);
        let task = keep("a", 40, 26).expect("nobody is there");
        assert!(keep("c", 40, 26).is_none());
        assert_eq!(keeping.next(&task, at(30)), Due::Now(key("a")));
        keeping.forget(&key("a"));
        // Its runtime is not driven: what is due is not looked at.
        assert!(keep("d", 60, 41).is_none(), "it may be late");
        let next = keep("e", 60, 42).expect("not so late");
        assert_eq!(keeping.next(&task, at(42)), Due::Never);
        drop(task);
        assert_eq!(keeping.next(&next, at(42)), Due::Now(key("c")));
        for name in ["c", "d", "e"] {
            keeping.forget(&key(name));
        }
        assert_eq!(keeping.next(&next, at(61)), Due::Now(key("d")));
        assert_eq!(keeping.next(&next, at(61)), Due::Now(key("e")));
        assert_eq!(keeping.next(&next, at(61)), Due::Never);
        assert!(keep("f", 70, 61).is_some(), "it ended");
    }
}
