//! The total limit: a permit per connection, and whose turn it is when there is none.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::Notify;

use crate::sync::lock;

/// Somebody who waits for a permit.
pub(crate) trait Blocked: Send + Sync {
    /// A permit may be free now.
    fn unblocked(self: Arc<Self>);
}

/// Connections of the whole pool against `max_connections`.
pub(crate) struct Capacity {
    max: usize,
    open: AtomicUsize,
    /// Origins in the order in which they met the limit: each gets one permit at a time, so that
    /// none starves.
    blocked: Mutex<VecDeque<Weak<dyn Blocked>>>,
    pub(crate) changed: Notify,
}

impl fmt::Debug for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capacity({} of {})", self.open(), self.max)
    }
}

impl Capacity {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            open: AtomicUsize::new(0),
            blocked: Mutex::default(),
            changed: Notify::new(),
        })
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    pub(crate) fn try_reserve(self: &Arc<Self>) -> Option<Permit> {
        self.open
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |open| {
                (open < self.max).then_some(open + 1)
            })
            .ok()
            .map(|_| Permit {
                capacity: self.clone(),
            })
    }

    /// Gets in line for a permit. Look once more afterwards: one may have been given back between.
    pub(crate) fn block(&self, who: Weak<dyn Blocked>) {
        lock(&self.blocked).push_back(who);
    }

    fn release(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
        self.changed.notify_waiters();
        // Whoever is told may not need it any more; then it is the next one's.
        while self.open() < self.max {
            let Some(next) = lock(&self.blocked).pop_front() else {
                return;
            };
            if let Some(next) = next.upgrade() {
                next.unblocked();
            }
        }
    }
}

/// A place under the total limit. Must not be dropped under a host's lock: it may begin the dial
/// of another origin.
#[derive(Debug)]
pub(crate) struct Permit {
    capacity: Arc<Capacity>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.capacity.release();
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    struct Taker {
        capacity: Arc<Capacity>,
        needs: bool,
        got: Mutex<Option<Permit>>,
    }

    impl Blocked for Taker {
        fn unblocked(self: Arc<Self>) {
            if self.needs {
                *lock(&self.got) = self.capacity.try_reserve();
            }
        }
    }

    #[test]
    fn released_permit_goes_to_the_first_who_still_needs_it() {
        let capacity = Capacity::new(1);
        let permit = capacity.try_reserve().unwrap();
        assert!(capacity.try_reserve().is_none());
        let takers: Vec<_> = [false, true, true]
            .map(|needs| {
                let taker = Arc::new(Taker {
                    capacity: capacity.clone(),
                    needs,
                    got: Mutex::default(),
                });
                let weak: Weak<Taker> = Arc::downgrade(&taker);
                capacity.block(weak);
                taker
            })
            .into();
        drop(permit);
        assert!(lock(&takers[1].got).is_some() && lock(&takers[2].got).is_none());
        let second = lock(&takers[1].got).take();
        drop(second);
        assert!(lock(&takers[2].got).is_some());
        assert_eq!(capacity.open(), 1);
    }
}
