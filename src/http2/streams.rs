//! How many streams are in use, against the peer's limit. Lock-free; modelled with loom.
//!
//! One word holds the count, the limit and whether the connection takes new streams, so that
//! "full", "idle" and "retired" have one order that everybody agrees on: whoever makes the count
//! leave or reach zero is the one who says that the connection is busy or idle.

use crate::sync::{AtomicU64, Ordering};

const RETIRED: u64 = 1 << 63;
/// The peer owes an answer to a PING.
const SUSPECT: u64 = 1 << 62;
const COUNT: u64 = 0xffff_ffff;
const LIMIT_SHIFT: u32 = 32;
const LIMIT_MAX: u32 = 0x3fff_ffff;

/// The streams of one connection.
#[derive(Debug)]
pub(crate) struct StreamSlots {
    word: AtomicU64,
}

/// What taking a slot changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Streams in use before.
    pub(crate) before: u32,
    pub(crate) limit: u32,
}

/// What giving a slot back, or retiring, found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Released {
    /// Streams in use now.
    pub(crate) in_use: u32,
    /// The connection takes no new streams.
    pub(crate) retired: bool,
}

fn count(word: u64) -> u32 {
    (word & COUNT) as u32
}

fn limit(word: u64) -> u32 {
    ((word & !(RETIRED | SUSPECT)) >> LIMIT_SHIFT) as u32
}

impl StreamSlots {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            word: AtomicU64::new(u64::from(limit.min(LIMIT_MAX)) << LIMIT_SHIFT),
        }
    }

    /// Takes a slot unless the limit is reached or the connection is retired or suspect.
    pub(crate) fn try_acquire(&self) -> Option<Taken> {
        let mut word = self.word.load(Ordering::SeqCst);
        loop {
            if word & (RETIRED | SUSPECT) != 0 || count(word) >= limit(word) {
                return None;
            }
            let swapped =
                self.word
                    .compare_exchange_weak(word, word + 1, Ordering::SeqCst, Ordering::SeqCst);
            match swapped {
                Ok(_) => {
                    return Some(Taken {
                        before: count(word),
                        limit: limit(word),
                    });
                }
                Err(current) => word = current,
            }
        }
    }

    /// Gives a slot back.
    pub(crate) fn release(&self) -> Released {
        let before = self.word.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(count(before) > 0, "a slot is given back once");
        Released {
            in_use: count(before) - 1,
            retired: before & RETIRED != 0,
        }
    }

    /// Changes the limit; streams above a smaller one finish. Returns whether it grew.
    pub(crate) fn set_limit(&self, new: u32) -> bool {
        let new = new.min(LIMIT_MAX);
        let mut word = self.word.load(Ordering::SeqCst);
        loop {
            let next = (word & (RETIRED | SUSPECT | COUNT)) | (u64::from(new) << LIMIT_SHIFT);
            let swapped =
                self.word
                    .compare_exchange_weak(word, next, Ordering::SeqCst, Ordering::SeqCst);
            match swapped {
                Ok(_) => return new > limit(word),
                Err(current) => word = current,
            }
        }
    }

    /// Makes the limit at most `most`.
    pub(crate) fn lower_limit(&self, most: u32) {
        if most < limit(self.word.load(Ordering::SeqCst)) {
            self.set_limit(most);
        }
    }

    /// No new streams from now on. `None` if it was retired before.
    pub(crate) fn retire(&self) -> Option<Released> {
        let before = self.word.fetch_or(RETIRED, Ordering::SeqCst);
        (before & RETIRED == 0).then(|| Released {
            in_use: count(before),
            retired: true,
        })
    }

    /// Retires it only if no stream is in use. `None` if one is, or it was retired before.
    pub(crate) fn retire_if_idle(&self) -> Option<Released> {
        let mut word = self.word.load(Ordering::SeqCst);
        loop {
            if word & RETIRED != 0 || count(word) > 0 {
                return None;
            }
            let swapped = self.word.compare_exchange_weak(
                word,
                word | RETIRED,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
            match swapped {
                Ok(_) => {
                    return Some(Released {
                        in_use: 0,
                        retired: true,
                    });
                }
                Err(current) => word = current,
            }
        }
    }

    /// No new streams until [`trust`](Self::trust).
    pub(crate) fn suspect(&self) {
        self.word.fetch_or(SUSPECT, Ordering::SeqCst);
    }

    /// New streams again.
    pub(crate) fn trust(&self) {
        self.word.fetch_and(!SUSPECT, Ordering::SeqCst);
    }

    pub(crate) fn is_suspect(&self) -> bool {
        self.word.load(Ordering::SeqCst) & SUSPECT != 0
    }

    pub(crate) fn in_use(&self) -> u32 {
        count(self.word.load(Ordering::SeqCst))
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.word.load(Ordering::SeqCst) & RETIRED != 0
    }
}

#[cfg(all(test, not(firstbyte_loom)))]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[test]
    fn limit_that_falls_below_what_is_in_use_lets_streams_finish() {
        let slots = StreamSlots::new(2);
        assert_eq!(
            slots.try_acquire(),
            Some(Taken {
                before: 0,
                limit: 2
            })
        );
        assert!(slots.try_acquire().is_some() && slots.try_acquire().is_none());
        assert!(!slots.set_limit(0));
        assert_eq!(slots.release().in_use, 1);
        assert!(slots.try_acquire().is_none());
        assert_eq!(
            slots.release(),
            Released {
                in_use: 0,
                retired: false
            }
        );
        assert!(slots.set_limit(1));
        assert!(slots.try_acquire().is_some());
        assert!(slots.retire_if_idle().is_none());
        assert_eq!(
            slots.retire(),
            Some(Released {
                in_use: 1,
                retired: true
            })
        );
        assert!(slots.retire().is_none() && slots.try_acquire().is_none());
        assert!(slots.release().retired);
    }

    #[test]
    fn suspect_connection_takes_no_streams_and_keeps_its_count_and_limit() {
        let slots = StreamSlots::new(u32::MAX);
        assert!(slots.try_acquire().is_some());
        slots.suspect();
        assert!(slots.is_suspect() && slots.try_acquire().is_none());
        assert!(!slots.set_limit(2), "smaller than what we can count");
        assert_eq!(slots.in_use(), 1);
        slots.trust();
        assert_eq!(
            slots.try_acquire().map(|t| (t.before, t.limit)),
            Some((1, 2))
        );
        assert!(slots.try_acquire().is_none() && !slots.is_retired());
    }
}

/// `RUSTFLAGS="--cfg firstbyte_loom" cargo test --release --lib loom_`
#[cfg(all(test, firstbyte_loom))]
mod loom_tests {
    // layering: uses this module and sync, which is below.
    use super::*;
    use crate::sync::{AtomicUsize, fence};
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn loom_count_never_exceeds_the_limit_and_idle_is_said_once() {
        loom::model(|| {
            let slots = Arc::new(StreamSlots::new(1));
            let idle = Arc::new(AtomicUsize::new(1));
            let open = Arc::new(AtomicUsize::new(0));
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let (slots, idle, open) = (slots.clone(), idle.clone(), open.clone());
                    thread::spawn(move || {
                        if let Some(taken) = slots.try_acquire() {
                            if taken.before == 0 {
                                idle.fetch_sub(1, Ordering::SeqCst);
                            }
                            assert_eq!(open.fetch_add(1, Ordering::SeqCst), 0, "limit is 1");
                            open.fetch_sub(1, Ordering::SeqCst);
                            let left = slots.release();
                            if left.in_use == 0 && !left.retired {
                                idle.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                    })
                })
                .collect();
            let retired = slots.retire().expect("retired once");
            if retired.in_use == 0 {
                idle.fetch_sub(1, Ordering::SeqCst);
            }
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(slots.in_use(), 0);
            assert_eq!(
                idle.load(Ordering::SeqCst),
                0,
                "a retired connection is not idle"
            );
        });
    }

    /// The hand-over that the pool relies on: a waiter announces itself and then looks again; who
    /// releases looks for waiters afterwards. One of them sees the other.
    #[test]
    fn loom_waiter_never_sleeps_beside_a_free_slot() {
        loom::model(|| {
            let slots = Arc::new(StreamSlots::new(1));
            let waiting = Arc::new(AtomicUsize::new(0));
            assert!(slots.try_acquire().is_some());
            let waiter = {
                let (slots, waiting) = (slots.clone(), waiting.clone());
                thread::spawn(move || {
                    waiting.fetch_add(1, Ordering::SeqCst);
                    fence(Ordering::SeqCst);
                    slots.try_acquire().is_some()
                })
            };
            slots.release();
            fence(Ordering::SeqCst);
            let told = waiting.load(Ordering::SeqCst) > 0;
            let served = waiter.join().unwrap();
            assert!(served || told, "slot free, waiter asleep, nobody told it");
        });
    }

    /// The same when a suspect connection is trusted again while its limit moves.
    #[test]
    fn loom_waiter_never_sleeps_beside_a_connection_that_is_trusted_again() {
        loom::model(|| {
            let slots = Arc::new(StreamSlots::new(1));
            let waiting = Arc::new(AtomicUsize::new(0));
            slots.suspect();
            let waiter = {
                let (slots, waiting) = (slots.clone(), waiting.clone());
                thread::spawn(move || {
                    waiting.fetch_add(1, Ordering::SeqCst);
                    fence(Ordering::SeqCst);
                    slots.try_acquire().is_some()
                })
            };
            let limiter = {
                let slots = slots.clone();
                thread::spawn(move || slots.set_limit(2))
            };
            slots.trust();
            fence(Ordering::SeqCst);
            let told = waiting.load(Ordering::SeqCst) > 0;
            let served = waiter.join().unwrap();
            limiter.join().unwrap();
            assert!(served || told, "slot free, waiter asleep, nobody told it");
            assert!(!slots.is_suspect() && !slots.is_retired());
        });
    }
}
