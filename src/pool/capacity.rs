//! The total limit: a permit per connection, and whose turn it is when there is none.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Instant;

use tokio::sync::Notify;

use crate::sync::{AtomicUsize, ModelMutex, Ordering, fence};

/// Somebody who waits for a permit.
pub(crate) trait Blocked: Send + Sync {
    /// Here is a permit; it comes back if it is not needed any more.
    fn unblocked(self: Arc<Self>, permit: Permit) -> Option<Permit>;
    /// Since when its first request waits, if it has no connection at all that could serve it.
    fn starves_since(&self) -> Option<Instant>;
}

/// Connections of the whole pool against `max_connections`.
pub(crate) struct Capacity {
    max: usize,
    open: AtomicUsize,
    /// Origins in the order in which they met the limit: each gets one permit at a time, so that
    /// none starves.
    blocked: ModelMutex<VecDeque<Weak<dyn Blocked>>>,
    /// How many stand there, for who does not want the lock.
    blocked_count: AtomicUsize,
    /// Calls to serve them that are not done yet.
    serving: AtomicUsize,
    pub(crate) changed: Notify,
}

impl fmt::Debug for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capacity({} of {})", self.open(), self.max)
    }
}

/// What became of the wish for a place.
pub(crate) enum GaveUp {
    Permit(Permit),
    /// A permit comes free when a connection has closed.
    Soon,
    Nothing,
}

impl Capacity {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            open: AtomicUsize::new(0),
            blocked: ModelMutex::new(VecDeque::new()),
            blocked_count: AtomicUsize::new(0),
            serving: AtomicUsize::new(0),
            changed: Notify::new(),
        })
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// A permit, if one is free and nobody stands in line for it.
    pub(crate) fn try_reserve(self: &Arc<Self>) -> Option<Permit> {
        if self.has_blocked() {
            return None;
        }
        self.take()
    }

    /// Gets in line for a permit; if one is free by now, those at the front are served.
    pub(crate) fn block(self: &Arc<Self>, who: Weak<dyn Blocked>) {
        self.with_blocked(|blocked| blocked.push_back(who));
        self.serve_blocked();
    }

    /// Somebody may stand in line for a permit. Costs a load.
    pub(crate) fn has_blocked(&self) -> bool {
        self.blocked_count.load(Ordering::SeqCst) > 0
    }

    /// Since when the first request waits of the origin that has waited for longest without any
    /// connection. At the limit only, so a look at all who stand in line is affordable.
    pub(crate) fn starves_since(&self) -> Option<Instant> {
        if !self.has_blocked() {
            // As a rule; the lock is all origins'.
            return None;
        }
        let blocked: Vec<_> = self.with_blocked(|blocked| blocked.iter().cloned().collect());
        let starving = |who: &Weak<dyn Blocked>| who.upgrade()?.starves_since();
        blocked.iter().filter_map(starving).min()
    }

    /// Whose turn it is: of those that starve the one that has for longest, or the first in line. A place that was
    /// given up for somebody who starves must not go back to who gave it up.
    ///
    /// `may_starve` is put out where nobody does: then nobody is asked again.
    fn next_blocked(&self, may_starve: &mut bool) -> Option<Weak<dyn Blocked>> {
        let blocked = self.with_blocked(|blocked| match blocked.len() {
            2.. if *may_starve => Ok(blocked.iter().cloned().collect::<Vec<_>>()),
            _ => Err(blocked.pop_front()),
        });
        let blocked = match blocked {
            Ok(blocked) => blocked,
            Err(only) => return only,
        };
        let since = |who: &Weak<dyn Blocked>| who.upgrade()?.starves_since();
        let starving = blocked.iter().filter_map(|who| Some((since(who)?, who)));
        let next = starving.min_by_key(|(since, _)| *since).map(|(_, who)| who);
        *may_starve = next.is_some();
        self.with_blocked(|blocked| {
            let is_next = |who: &Weak<dyn Blocked>| next.is_some_and(|next| next.ptr_eq(who));
            match blocked.iter().position(is_next) {
                Some(at) => blocked.remove(at),
                None => blocked.pop_front(),
            }
        })
    }

    fn with_blocked<T>(&self, act: impl FnOnce(&mut VecDeque<Weak<dyn Blocked>>) -> T) -> T {
        let mut blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
        let done = act(&mut blocked);
        self.blocked_count.store(blocked.len(), Ordering::SeqCst);
        done
    }

    /// A place has become free: it goes to those who stand in line, before anybody who comes now.
    fn serve_blocked(self: &Arc<Self>) {
        // Whoever is served may give places back and come here again: the one who is at it goes on, so
        // that nothing nests.
        if self.serving.fetch_add(1, Ordering::SeqCst) > 0 {
            return;
        }
        let mut calls = 1;
        while calls > 0 {
            self.serve_once();
            calls = self.serving.fetch_sub(calls, Ordering::SeqCst) - calls;
        }
    }

    fn serve_once(self: &Arc<Self>) {
        // A newcomer gets in line and then looks for a place; whoever gives one back then looks at the
        // line: one of them sees the other.
        loop {
            fence(Ordering::SeqCst);
            if !self.has_blocked() {
                return;
            }
            let Some(mut permit) = self.take() else {
                return;
            };
            let mut may_starve = true;
            loop {
                let Some(next) = self.next_blocked(&mut may_starve) else {
                    permit.give_back();
                    break;
                };
                let Some(next) = next.upgrade() else { continue };
                match next.unblocked(permit) {
                    // Not needed any more; then it is the next one's.
                    Some(unused) => permit = unused,
                    None => break,
                }
            }
        }
    }

    fn take(self: &Arc<Self>) -> Option<Permit> {
        self.open
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |open| {
                (open < self.max).then_some(open + 1)
            })
            .ok()
            .map(|_| Permit {
                capacity: Some(self.clone()),
            })
    }
}

/// A place under the total limit. Must not be dropped under a host's lock: it may begin the dial
/// of another origin.
#[derive(Debug)]
pub(crate) struct Permit {
    // `None` once it was given back.
    capacity: Option<Arc<Capacity>>,
}

impl Permit {
    /// Gives it back without a look at who waits.
    fn give_back(mut self) {
        if let Some(capacity) = self.capacity.take() {
            capacity.open.fetch_sub(1, Ordering::SeqCst);
            capacity.changed.notify_waiters();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(capacity) = self.capacity.take() {
            capacity.open.fetch_sub(1, Ordering::SeqCst);
            capacity.changed.notify_waiters();
            capacity.serve_blocked();
        }
    }
}

#[cfg(all(test, not(firstbyte_loom)))]
mod tests {
    // layering: uses this module and sync, which is below.
    use super::*;
    use crate::sync::lock;
    use std::sync::Mutex;

    struct Taker {
        needs: bool,
        starves: Option<Instant>,
        got: Mutex<Option<Permit>>,
    }

    impl Blocked for Taker {
        fn unblocked(self: Arc<Self>, permit: Permit) -> Option<Permit> {
            if !self.needs {
                return Some(permit);
            }
            *lock(&self.got) = Some(permit);
            None
        }

        fn starves_since(&self) -> Option<Instant> {
            self.starves
        }
    }

    #[test]
    fn released_permit_goes_to_who_starves_and_then_to_the_first_who_still_needs_it() {
        let now = Instant::now();
        let capacity = Capacity::new(1);
        let permit = capacity.try_reserve().unwrap();
        assert!(capacity.try_reserve().is_none());
        assert!(!capacity.has_blocked() && capacity.starves_since().is_none());
        let takers: Vec<_> = [(false, None), (true, None), (true, Some(now))]
            .map(|(needs, starves)| {
                let taker = Arc::new(Taker {
                    needs,
                    starves,
                    got: Mutex::default(),
                });
                let weak: Weak<Taker> = Arc::downgrade(&taker);
                capacity.block(weak);
                taker
            })
            .into();
        assert!(capacity.has_blocked() && capacity.starves_since() == Some(now));
        drop(permit);
        assert!(capacity.try_reserve().is_none(), "nobody comes before them");
        assert!(lock(&takers[2].got).is_some() && lock(&takers[1].got).is_none());
        let starving = lock(&takers[2].got).take();
        drop(starving);
        assert!(lock(&takers[1].got).is_some());
        assert_eq!(capacity.open(), 1);
        assert!(!capacity.has_blocked());
    }
}

/// `RUSTFLAGS="--cfg firstbyte_loom" cargo test --release --lib loom_`
#[cfg(all(test, firstbyte_loom))]
mod loom_tests {
    // layering: uses this module and sync, which is below.
    use super::*;
    use loom::thread;

    /// Keeps the permit that it is handed, or hands it back.
    struct Taker {
        needs: bool,
        got: ModelMutex<Option<Permit>>,
    }

    impl Taker {
        fn new(needs: bool) -> Arc<Self> {
            Arc::new(Self {
                needs,
                got: ModelMutex::new(None),
            })
        }

        fn has(&self) -> bool {
            self.got.lock().unwrap().is_some()
        }
    }

    impl Blocked for Taker {
        fn unblocked(self: Arc<Self>, permit: Permit) -> Option<Permit> {
            if !self.needs {
                return Some(permit);
            }
            *self.got.lock().unwrap() = Some(permit);
            None
        }

        fn starves_since(&self) -> Option<Instant> {
            None
        }
    }

    fn ask(capacity: &Arc<Capacity>, taker: &Arc<Taker>) {
        match capacity.try_reserve() {
            Some(permit) => *taker.got.lock().unwrap() = Some(permit),
            None => {
                let weak: Weak<Taker> = Arc::downgrade(taker);
                capacity.block(weak);
            }
        }
    }

    /// Whoever finds no place gets in line and sleeps; whoever gives one back looks at the line.
    #[test]
    fn loom_permit_given_back_reaches_who_waits_for_it() {
        loom::model(|| {
            let capacity = Capacity::new(1);
            let permit = capacity.try_reserve().unwrap();
            let taker = Taker::new(true);
            let asking = {
                let (capacity, taker) = (capacity.clone(), taker.clone());
                thread::spawn(move || ask(&capacity, &taker))
            };
            drop(permit);
            asking.join().unwrap();
            assert!(taker.has(), "a free place beside one who waits for it");
            assert_eq!(capacity.open(), 1);
        });
    }

    /// One who needs it no more does not keep it from the next.
    #[test]
    fn loom_permit_passes_by_who_needs_it_no_more() {
        loom::model(|| {
            let capacity = Capacity::new(1);
            let permit = capacity.try_reserve().unwrap();
            let (gone, taker) = (Taker::new(false), Taker::new(true));
            let asking = {
                let (capacity, gone, taker) = (capacity.clone(), gone.clone(), taker.clone());
                thread::spawn(move || {
                    let weak: Weak<Taker> = Arc::downgrade(&gone);
                    capacity.block(weak);
                    ask(&capacity, &taker);
                })
            };
            drop(permit);
            asking.join().unwrap();
            assert!(taker.has() && !gone.has());
            assert_eq!(capacity.open(), 1);
            let last = taker.got.lock().unwrap().take();
            drop(last);
            assert_eq!(capacity.open(), 0);
        });
    }
}
