//! Idle connections over time: expiry, making room, closing, shutting down.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::clock::deadline;
use crate::close_reason::CloseReason;
use crate::connection::{ConnectionId, ConnectionInfo, ConnectionLimits};
use crate::error::Error;
use crate::sync::lock;

use super::asleep::{Lessons, SLEEPS_AFTER};
use super::capacity::GaveUp;
use super::habits::Habits;
use super::host::{Books, Denied, Host, Outcome};
use super::lease::{H1Conn, H2Conn, Home};
use super::maintenance::Tended;
use super::shared::{ROOM_AFTER, pool_closed, runtime_gone};
use super::state::{Idle, Minimum, Multiplexed, Waiter};
use super::term::{Standing, announced_idle};

/// Peer addresses are compared with the DNS answers this often.
const ADDRESS_CHECK: Duration = Duration::from_secs(60);
/// And whether those who wanted connections kept warm are still there.
const MINIMUM_CHECK: Duration = Duration::from_secs(10);

impl Books {
    /// Idle connections that the idle limit does not count: the minimum, and those that take the place of another as
    /// soon as the peer's SETTINGS have come.
    fn kept_idle(&self, minimum: Minimum) -> usize {
        let state = &self.state;
        let idle = |conns: &[Arc<H2Conn>]| conns.iter().filter(|conn| conn.in_use() == 0).count();
        let busy = state.shared.len() - idle(&state.shared);
        let shared = idle(&state.shared).min(minimum.shared.saturating_sub(busy));
        state.idle.len().min(minimum.idle) + shared + idle(&state.settling)
    }

    /// The connection that is idle for longest, the minimum left aside, and since when: an HTTP/2 connection,
    /// or the first of the idle HTTP/1.1 ones.
    fn oldest_idle(&self, kept: Minimum) -> Option<(Instant, Option<Arc<H2Conn>>)> {
        let state = &self.state;
        let h1 = (!state.keeps_idle(kept)).then(|| state.idle.first());
        let h1 = h1.flatten().map(|idle| (idle.since, None));
        let h2 = state.shared.iter().filter(|conn| conn.in_use() == 0);
        let h2 = h2.map(|conn| (conn.idle_since(), Some(conn.clone())));
        let h2 = h2.min_by_key(|(since, _)| *since);
        let h2 = h2.filter(|_| !state.keeps_shared(kept));
        h1.into_iter().chain(h2).min_by_key(|(since, _)| *since)
    }
}

impl Host {
    /// Closes the longest idle HTTP/1.1 connection and gives its permit away; an idle HTTP/2
    /// connection gives its permit back when its task has ended. Only one that has been idle for `at_least`.
    pub(crate) fn give_up_idle(self: &Arc<Self>, at_least: Duration) -> GaveUp {
        let at = crate::clock::now();
        let is_old = |since: Instant| at.saturating_duration_since(since) >= at_least;
        let (oldest, shared) = {
            let mut books = lock(&self.books);
            let state = &mut books.state;
            let has_old = state.idle.first().is_some_and(|idle| is_old(idle.since));
            let oldest = has_old.then(|| state.idle.remove(0));
            (oldest, state.shared.clone())
        };
        if let Some(Idle { conn, .. }) = oldest {
            self.shared.less_idle();
            let H1Conn { http1, seat, .. } = *conn;
            http1.close();
            return match seat.hand_over(CloseReason::MadeRoom) {
                Some(permit) => GaveUp::Permit(permit),
                None => GaveUp::Nothing,
            };
        }
        if shared
            .iter()
            .filter(|conn| is_old(conn.idle_since()))
            .any(|conn| self.retire_idle(conn, CloseReason::MadeRoom))
        {
            GaveUp::Soon
        } else {
            GaveUp::Nothing
        }
    }

    /// When its longest idle connection became so.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let books = lock(&self.books);
        books
            .oldest_idle(Minimum::default())
            .map(|(since, _)| since)
    }

    /// Idle connections that do not count, and since when the longest idle one is that does.
    pub(crate) fn idle_beyond(&self) -> (usize, Option<Instant>) {
        let books = lock(&self.books);
        let minimum = books.minimum();
        let oldest = books.oldest_idle(minimum).map(|(since, _)| since);
        (books.kept_idle(minimum), oldest)
    }

    /// Closes its longest idle connection beyond the minimum, if more than `most` are idle in the pool.
    pub(crate) fn shed_idle(self: &Arc<Self>, most: usize) {
        let (idle, shared) = {
            let mut books = lock(&self.books);
            match books.oldest_idle(books.minimum()) {
                Some((_, Some(conn))) => (None, Some(conn)),
                Some((_, None)) if self.shared.try_shed(most) => {
                    (Some(books.state.idle.remove(0)), None)
                }
                _ => (None, None),
            }
        };
        if let Some(Idle { conn, .. }) = idle {
            self.clone().close(conn, CloseReason::IdleLimit);
        }
        if let Some(conn) = shared.filter(|_| self.shared.idle() > most) {
            self.retire_idle(&conn, CloseReason::IdleLimit);
        }
    }

    /// Closes everything idle.
    pub(crate) fn close_idle(self: &Arc<Self>, why: CloseReason) {
        let (idle, shared) = {
            let mut books = lock(&self.books);
            let shared: Vec<_> = books.state.multiplexed().cloned().collect();
            (std::mem::take(&mut books.state.idle), shared)
        };
        for Idle { conn, .. } in idle {
            self.shared.less_idle();
            self.clone().close(conn, why);
        }
        for conn in &shared {
            self.retire_idle(conn, why);
        }
    }

    /// The pool is closed, or the runtime is gone: nobody waits any longer, dials and idle connections
    /// end, others when their requests do.
    pub(crate) fn shut_down(self: &Arc<Self>, why: CloseReason) {
        let (waiters, shared) = {
            let mut books = lock(&self.books);
            let shared: Vec<_> = books.state.multiplexed().cloned().collect();
            (books.state.all_waiters(), shared)
        };
        self.left_line(waiters.len());
        let error: Error = if why == CloseReason::RuntimeGone {
            runtime_gone()
        } else {
            pool_closed()
        };
        let error = error.with_origin(self.plan.origin_text.clone());
        let denied = |waiter: Waiter<oneshot::Sender<Outcome>>| {
            let error = error.clone();
            (
                waiter.whom,
                Err(Denied {
                    error,
                    cover: waiter.cover,
                    dial: None,
                }),
            )
        };
        self.hand_out(waiters.into_iter().map(denied).collect());
        self.abort_dials();
        self.close_idle(why);
        for conn in &shared {
            self.retire(conn, why);
        }
    }

    /// Ends connections with whatever they carry.
    pub(crate) fn kill(&self) {
        let killers: Vec<_> = {
            let books = lock(&self.books);
            books.live.iter().map(|live| live.killer.clone()).collect()
        };
        for killer in killers {
            killer.kill();
        }
    }

    pub(crate) fn is_live(&self, id: ConnectionId) -> bool {
        lock(&self.books).live.iter().any(|live| live.id == id)
    }

    /// How many exist.
    pub(crate) fn live(&self) -> usize {
        lock(&self.books).live.len()
    }

    /// Every connection, with the limits under which it is now.
    pub(crate) fn connections(&self, at: Instant) -> Vec<ConnectionInfo> {
        let books = lock(&self.books);
        let habits = &books.state.habits;
        let limits = &self.shared.limits;
        let of = |live: &super::shared::Live| {
            let most = if live.info.protocol() == http::Version::HTTP_2 {
                limits.http2_keepalive_expiry
            } else {
                limits.keepalive_expiry
            };
            let said = *lock(&live.tenure.announced);
            let idle = habits.idle_expiry(most, at);
            let max_requests = live.term.max_requests();
            live.info.set_limits(ConnectionLimits {
                idle_expiry: idle.min(said.timeout.map_or(most, announced_idle)),
                max_requests: max_requests.into_iter().chain(said.last_request).min(),
                retire_at: live.term.retire_at(),
                learned_idle: habits.idle_limit(at),
                learned_requests: habits.request_limit(at),
            });
            live.info.clone()
        };
        books.live.iter().map(of).collect()
    }

    /// Takes it off the books if nothing but memories is left, and has been for long enough: gives those, and when it
    /// was used last.
    pub(super) fn fall_asleep(&self, now: Instant) -> Option<(Lessons, Instant)> {
        let mut books = lock(&self.books);
        let is_unused = books.state.is_unused()
            && deadline(books.state.last_used, SLEEPS_AFTER) <= now
            && books.minimum() == Minimum::default();
        if !is_unused {
            return None;
        }
        self.removed.store(true, Ordering::Release);
        let state = &mut books.state;
        let is_taught = self.is_taught.load(Ordering::Relaxed);
        let habits = std::mem::take(&mut state.habits);
        let lessons = Lessons {
            dials: self.plan.taught(),
            verdict: state.verdict,
            stream_limit: state.stream_limit,
            habits: (is_taught || habits != Habits::default()).then(|| Box::new(habits)),
            is_calm: self.calm.load(Ordering::Relaxed),
        };
        Some((lessons, state.last_used))
    }

    /// Nobody finds it any more, whatever it still holds.
    pub(crate) fn remove(&self) {
        let _books = lock(&self.books);
        self.removed.store(true, Ordering::Release);
    }

    /// Compares peer addresses with the DNS answers, if it is time to. Says when it is next.
    fn check_addresses(self: &Arc<Self>, at: Instant) -> Instant {
        let due = {
            let mut books = lock(&self.books);
            let due = deadline(books.addresses_checked, ADDRESS_CHECK);
            if at < due {
                return due;
            }
            books.addresses_checked = at;
            deadline(at, ADDRESS_CHECK)
        };
        self.leave_old_addresses(at);
        due
    }

    fn expire_shared(self: &Arc<Self>, shared: &[Arc<H2Conn>], at: Instant) -> Option<Instant> {
        let minimum = lock(&self.books).minimum();
        let mut left = shared.len();
        let mut next: Option<Instant> = None;
        let mut due = |when: Instant| next = Some(next.map_or(when, |next| next.min(when)));
        let expiry = self.shared_expiry(at);
        let is_taught = expiry < self.shared.limits.http2_keepalive_expiry;
        for conn in shared {
            if let Some(retire) = conn.term.retire_at() {
                if retire <= at {
                    self.retire(conn, CloseReason::Lifetime);
                    left -= 1;
                    continue;
                }
                due(retire);
            }
            // What is kept warm outlives our own expiry, and not the peer's.
            if conn.in_use() == 0 && (is_taught || left > minimum.shared) {
                let expires = deadline(conn.idle_since(), expiry);
                if expires > at {
                    due(expires);
                } else if self.retire_idle(conn, CloseReason::IdleExpired) {
                    left -= 1;
                }
            }
        }
        next
    }
}

impl Tended for Host {
    fn sweep(self: Arc<Self>) {
        let woken: Vec<Idle<Box<H1Conn>>> = {
            let mut books = lock(&self.books);
            let idle = std::mem::take(&mut books.state.idle);
            let (woken, quiet): (Vec<_>, Vec<_>) =
                idle.into_iter().partition(|idle| idle.conn.wake.is_woken());
            books.state.idle = quiet;
            // They are not there for a moment, and yet nobody needs to dial for them.
            books.state.examined += woken.len();
            woken
        };
        let at = crate::clock::now();
        let mut closed = Vec::new();
        let mut ages = Vec::new();
        for Idle {
            mut conn, since, ..
        } in woken
        {
            self.shared.less_idle();
            // A transport of the user's own must not take the other connections with it.
            let looked = catch_unwind(AssertUnwindSafe(|| {
                let H1Conn { http1, wake, .. } = &mut *conn;
                let quiet = http1.poll_quiet(&mut Context::from_waker(wake.rearmed()));
                http1.release_buffers();
                quiet
            }));
            match looked {
                // It was only a ticket or the like.
                Ok(Ok(())) => self.settle_in(conn, since, at),
                Ok(Err(why)) => {
                    if why == CloseReason::PeerClosedIdle {
                        ages.push(at.saturating_duration_since(since));
                    }
                    closed.push((conn, why));
                }
                Err(_) => closed.push((conn, CloseReason::Failed)),
            }
            lock(&self.books).state.examined -= 1;
            if self.has_waiters() {
                self.drive();
            }
        }
        if !ages.is_empty() {
            self.peer_closed_idle(&ages);
        }
        for (conn, why) in closed {
            self.clone().close(conn, why);
        }
    }

    fn expire(self: Arc<Self>, at: Instant) -> Option<Instant> {
        let (overdue, mut next, shared, is_unused, waits) = {
            let mut books = lock(&self.books);
            let minimum = books.minimum();
            if minimum == Minimum::default() {
                books.minimums.clear();
                self.keeps_warm.store(false, Ordering::SeqCst);
            }
            let state = &mut books.state;
            let is_over = |conn: &H1Conn| match conn.term.standing(conn.info.requests(), at) {
                Standing::Over(why) => Some(why),
                Standing::Serves | Standing::Renew(_) => None,
            };
            let (overdue, next) = state.expire_idle(minimum, at, |conn| is_over(conn));
            let is_wanted = minimum != Minimum::default();
            let next = if state.is_unused() && overdue.is_empty() && !is_wanted {
                let sleeps = deadline(state.last_used, SLEEPS_AFTER);
                Some(next.map_or(sleeps, |next| next.min(sleeps)))
            } else {
                next
            };
            let shared: Vec<_> = state.multiplexed().cloned().collect();
            let is_empty = state.is_unused();
            // Ahead of its time it is for whoever may come until then, and does not know of it.
            let waits = (state.spare_after).filter(|after| *after > at || !state.line.is_empty());
            (overdue, next, shared, is_empty, waits)
        };
        for (idle, why) in overdue {
            self.shared.less_idle();
            self.clone().close(idle.conn, why);
        }
        let mut due = |when: Option<Instant>| next = next.into_iter().chain(when).min();
        due(self.expire_shared(&shared, at));
        due(self.renew_due(at));
        match waits {
            Some(after) if after > at => due(Some(after)),
            Some(_) => self.drive(),
            None => {}
        }
        if !is_unused && self.name_use.is_some() {
            due(Some(self.check_addresses(at)));
        }
        if self.blocked.load(Ordering::SeqCst) && self.has_waiters() {
            // It has connections, but not enough: what others have left alone for a while is its.
            drop(self.room(self.room_after()));
            due(Some(deadline(at, ROOM_AFTER)));
        }
        if self.keeps_warm.load(Ordering::Relaxed) {
            // Whether somebody still wants it.
            due(Some(deadline(at, MINIMUM_CHECK)));
        }
        self.keep_up();
        next
    }
}
