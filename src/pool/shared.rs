//! What all origins of a pool share: limits, gauges, counters.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crate::close_reason::CloseReason;
use crate::connection::{ConnectionId, Deps};
use crate::error::{Error, ErrorKind};
use crate::metrics::Counters;
use crate::timing::Phase;

use super::capacity::{Capacity, GaveUp};
use super::key::Key;
use super::lease::Tenure;
use super::limits::Limits;
use super::state::Rules;
use super::term::Term;

/// Who can close an idle connection of some other origin.
pub(crate) trait MakeRoom: Send + Sync {
    /// Of those that have been idle for `at_least`.
    fn make_room(&self, for_whom: &Key, at_least: Duration) -> GaveUp;
    /// Closes what has been idle for longest in the whole pool, until no more are idle than the limit allows.
    /// Returns that limit: what is kept warm does not count.
    fn shed_idle(&self) -> usize;
    /// How many may be idle now, what is kept warm included.
    fn idle_limit(&self) -> usize;
    /// The origin has its first connection, or lost its last one. Called without its lock.
    fn populated(&self, origin: &Key);
}

/// In cache lines of its own: it is written for every request, and what stands beside it only read.
#[derive(Debug)]
#[repr(align(128))]
struct Alone<T>(T);

/// The shared part of a pool.
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) deps: Arc<Deps>,
    pub(crate) capacity: Arc<Capacity>,
    pub(crate) counters: Arc<Counters>,
    /// Of HTTP/2 connections it is told by whoever takes the first stream and whoever gives the last one
    /// back, in either order: for a moment it may be one too few, even below zero.
    idle: Alone<AtomicIsize>,
    pub(crate) waiting: AtomicUsize,
    pub(crate) upgraded: AtomicUsize,
    closed: AtomicBool,
    pub(crate) room: OnceLock<Weak<dyn MakeRoom>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(limits: Limits, deps: Arc<Deps>) -> Self {
        Self {
            capacity: Capacity::new(limits.max_connections),
            limits,
            deps,
            counters: Counters::new(),
            idle: Alone(AtomicIsize::new(0)),
            waiting: AtomicUsize::new(0),
            upgraded: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            room: OnceLock::new(),
        }
    }

    pub(crate) fn rules(&self) -> Rules {
        Rules {
            max_per_host: self.limits.max_connections_per_host.unwrap_or(usize::MAX),
            max_shared: self.deps.http2.max_connections_per_origin,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Returns whether it was open before.
    pub(crate) fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::SeqCst)
    }

    /// Connections that are idle.
    pub(crate) fn idle(&self) -> usize {
        usize::try_from(self.idle.0.load(Ordering::SeqCst)).unwrap_or(0)
    }

    pub(crate) fn more_idle(&self) {
        self.idle.0.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn less_idle(&self) {
        self.idle.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether more are idle than the limit allows, unless some of them do not count.
    pub(crate) fn may_have_too_many_idle(&self) -> bool {
        self.idle() > self.limits.max_keepalive_connections
    }

    /// One idle connection less, if there are more than `most`.
    pub(crate) fn try_shed(&self, most: usize) -> bool {
        let most = isize::try_from(most).unwrap_or(isize::MAX);
        self.idle
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
                (n > most).then_some(n - 1)
            })
            .is_ok()
    }

    /// One more request in line, if the limit allows, or if it was there before.
    pub(crate) fn try_wait(&self, again: bool) -> bool {
        let max = self.limits.max_waiting.filter(|_| !again);
        let max = max.unwrap_or(usize::MAX);
        self.waiting
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
                (n < max).then_some(n + 1)
            })
            .is_ok()
    }

    /// How long a connection serves that is ready at `ready`.
    pub(crate) fn term(&self, ready: Instant) -> Term {
        // No randomness needed: what was opened together has neighbouring numbers.
        static SPREAD: AtomicUsize = AtomicUsize::new(0);
        let spread = (SPREAD.fetch_add(1, Ordering::Relaxed) % 11) as u32;
        let Limits {
            max_lifetime,
            max_requests_per_connection,
            ..
        } = self.limits;
        Term::new(ready, max_lifetime, spread, max_requests_per_connection)
    }
}

pub(crate) fn pool_closed() -> Error {
    Error::new(ErrorKind::PoolClosed, "the connection pool is shut down")
}

pub(crate) fn runtime_gone() -> Error {
    Error::new(
        ErrorKind::Connect,
        "the runtime that the connection was to belong to is shut down",
    )
    .at(Phase::Queue)
}

/// A connection that exists, in whatever state.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) id: ConnectionId,
    pub(crate) info: crate::connection::ConnectionInfo,
    pub(crate) killer: Killer,
    pub(crate) term: Term,
    pub(crate) tenure: Arc<Tenure>,
    /// Its successor, as soon as it needs one.
    pub(crate) renewal: Option<Renewal>,
}

/// The search for a successor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Renewal {
    pub(crate) why: CloseReason,
    pub(crate) failures: u32,
    /// When to try again; `None` while a dial runs.
    pub(crate) retry: Option<Instant>,
}

/// Ends a connection with whatever it carries.
#[derive(Clone, Debug)]
pub(crate) enum Killer {
    Http1(crate::http1::Killer),
    Http2(crate::http2::Killer),
}

impl Killer {
    pub(crate) fn kill(&self) {
        match self {
            Self::Http1(killer) => killer.kill(),
            Self::Http2(killer) => killer.kill(),
        }
    }
}

/// An origin that has connections gets the place of another's only when that has been idle for so long:
/// two that are both busy would hand it to and fro, a handshake each time.
pub(crate) const ROOM_AFTER: Duration = Duration::from_millis(100);
