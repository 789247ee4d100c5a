//! What all origins of a pool share: limits, gauges, counters.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crate::connection::{ConnectionId, Deps};
use crate::error::{Error, ErrorKind};
use crate::metrics::Counters;

use super::capacity::{Capacity, Permit};
use super::key::Key;
use super::limits::Limits;
use super::state::Rules;

/// Who can close an idle connection of some other origin.
pub(crate) trait MakeRoom: Send + Sync {
    fn make_room(&self, for_whom: &Key) -> Option<Permit>;
}

/// The shared part of a pool.
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) deps: Arc<Deps>,
    pub(crate) capacity: Arc<Capacity>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) idle: AtomicUsize,
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
            idle: AtomicUsize::new(0),
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

    /// One more idle connection, if the limit allows.
    pub(crate) fn try_idle(&self) -> bool {
        let max = self.limits.max_keepalive_connections;
        self.idle
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
                (n < max).then_some(n + 1)
            })
            .is_ok()
    }

    /// When a connection that is ready at `ready` takes no new requests.
    pub(crate) fn retire_at(&self, ready: Instant) -> Option<Instant> {
        // No randomness needed: what was opened together has neighbouring numbers.
        static SPREAD: AtomicUsize = AtomicUsize::new(0);
        let lifetime = self.limits.max_lifetime?;
        let step = (SPREAD.fetch_add(1, Ordering::Relaxed) % 11) as u32;
        let spread = lifetime / 100 * step;
        Some(crate::clock::deadline(
            ready,
            lifetime.saturating_sub(spread),
        ))
    }
}

pub(crate) fn pool_closed() -> Error {
    Error::new(ErrorKind::PoolClosed, "the connection pool is shut down")
}

/// A connection that exists, in whatever state.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) id: ConnectionId,
    pub(crate) info: crate::connection::ConnectionInfo,
    pub(crate) killer: Killer,
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

/// Kept after its last connection closed: what the origin spoke, and its tickets.
pub(crate) const REMEMBER_ORIGIN: Duration = Duration::from_secs(600);
