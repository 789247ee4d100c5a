//! Origins that have had no connection for a while: what they taught, without the books that serving them takes.
//! Pure: `now` is handed in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use http::Version;
use tokio::runtime::Id as RuntimeId;

use crate::clock::deadline;
use crate::connection::Taught;

use super::habits::Habits;
use super::key::Key;

/// Without a connection for so long an origin goes to sleep.
pub(super) const SLEEPS_AFTER: Duration = Duration::from_secs(30);
/// For so long after it was used last it is remembered: what it spoke, how long it keeps connections, its tickets.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What an origin taught.
#[derive(Debug)]
pub(super) struct Lessons {
    /// By the dials to it.
    pub(super) dials: Taught,
    /// What it spoke last.
    pub(super) verdict: Option<Version>,
    /// The stream limit that it told last.
    pub(super) stream_limit: Option<u32>,
    /// `None` if it closed no connection of its own accord.
    pub(super) habits: Option<Box<Habits>>,
    /// It asked for calm.
    pub(super) is_calm: bool,
}

/// The origins that sleep.
#[derive(Debug, Default)]
pub(super) struct Asleep {
    origins: HashMap<Key, Sleeper>,
    /// None is forgotten earlier.
    earliest: Option<Instant>,
}

#[derive(Debug)]
struct Sleeper {
    lessons: Lessons,
    last_used: Instant,
}

impl Sleeper {
    fn forgotten_at(&self) -> Instant {
        deadline(self.last_used, REMEMBERED)
    }
}

impl Asleep {
    pub(super) fn put(&mut self, key: Key, lessons: Lessons, last_used: Instant) {
        let sleeper = Sleeper { lessons, last_used };
        let earliest = self.earliest.into_iter().chain([sleeper.forgotten_at()]);
        self.earliest = earliest.min();
        self.origins.insert(key, sleeper);
    }

    /// It is used again.
    pub(super) fn wake(&mut self, key: &Key) -> Option<Lessons> {
        Some(self.origins.remove(key)?.lessons)
    }

    /// Forgets those whose time is over. When the next one's is, or earlier.
    pub(super) fn forget(&mut self, now: Instant) -> Option<Instant> {
        // Nobody looks through all of them for nothing: whoever wakes one waits meanwhile.
        if self.earliest.is_some_and(|earliest| earliest <= now) {
            self.retain(|_, sleeper| sleeper.forgotten_at() > now);
            self.earliest = self.origins.values().map(Sleeper::forgotten_at).min();
        }
        self.earliest
    }

    pub(super) fn forget_runtime(&mut self, runtime: RuntimeId) {
        self.retain(|key, _| key.runtime() != runtime);
    }

    fn retain(&mut self, mut keeps: impl FnMut(&Key, &Sleeper) -> bool) {
        self.origins.retain(|key, sleeper| keeps(key, sleeper));
        if self.origins.capacity() > 64 + 4 * self.origins.len() {
            self.origins.shrink_to_fit();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.origins.len()
    }

    /// Sessions that could be resumed now.
    pub(super) fn tickets(&self) -> usize {
        let tickets = |sleeper: &Sleeper| sleeper.lessons.dials.tickets();
        self.origins.values().map(tickets).sum()
    }
}
