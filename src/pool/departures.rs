//! What becomes of a connection when its request is done: kept, handed on, retired or closed.

use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::clock::{deadline, now};
use crate::close_reason::CloseReason;
use crate::connection::ConnectionInfo;
use crate::http1::KeepAlive;
use crate::http2::{GoAway, Released};
use crate::sync::lock;

use super::asleep::SLEEPS_AFTER;
use super::host::{Grant, Host, reused};
use super::lease::{Announced, H1Conn, H1Lease, H2Conn, Home, Lease, Seat};
use super::state::{Idle, Multiplexed, Waiter};
use super::term::{Standing, announced_idle};

/// A connection that was used again sooner than that and then closed had not been idle for too long: its
/// peer failed.
const RACE_AT_LEAST: Duration = Duration::from_millis(10);

impl Host {
    /// An HTTP/2 connection has no streams now.
    pub(super) fn went_idle(self: &Arc<Self>, conn: &Arc<H2Conn>) {
        let at = now();
        let nanos = self.janitor.nanos(at);
        conn.set_idle_since(nanos);
        self.janitor.due_after(nanos, self.shared_expiry(at));
        if self.gives_way() {
            self.retire_idle(conn, CloseReason::MadeRoom);
        }
        if self.shared.may_have_too_many_idle() && !self.has_waiters() && !self.is_below_minimum() {
            self.over_idle_limit();
        }
    }

    /// How long an HTTP/2 connection may be idle.
    pub(super) fn shared_expiry(&self, at: Instant) -> Duration {
        let most = self.shared.limits.http2_keepalive_expiry;
        if !self.is_taught.load(Ordering::Relaxed) {
            return most;
        }
        lock(&self.books).state.habits.idle_expiry(most, at)
    }

    fn is_below_minimum(&self) -> bool {
        let books = lock(&self.books);
        let minimum = books.minimum();
        books.state.keeps_shared(minimum)
    }

    /// Whether the place of a connection that is free now should go to another origin: only to one that has
    /// nothing at all, and has waited for longer than whoever waits here. The others have connections that
    /// serve them: they get what stays idle.
    fn gives_way(&self) -> bool {
        let starving = self.shared.capacity.starves_since();
        starving.is_some_and(|since| lock(&self.books).state.gives_way(since))
    }

    pub(super) fn retire_idle(self: &Arc<Self>, conn: &Arc<H2Conn>, why: CloseReason) -> bool {
        if conn.handle.slots().retire_if_idle().is_none() {
            return false;
        }
        self.shared.less_idle();
        self.take_off(conn, why);
        true
    }

    /// No new streams on this connection from now on.
    pub(super) fn retire(self: &Arc<Self>, conn: &Arc<H2Conn>, why: CloseReason) {
        if let Some(left) = conn.handle.slots().retire() {
            if left.in_use == 0 {
                self.shared.less_idle();
            }
            self.take_off(conn, why);
        }
    }

    fn take_off(self: &Arc<Self>, conn: &Arc<H2Conn>, why: CloseReason) {
        let _ = conn.why.set(why);
        let _ = conn.tenure.over.set(why);
        // Its task must run to say goodbye.
        conn.handle.open();
        let removed = {
            let mut books = lock(&self.books);
            books.state.take_off(|c| Arc::ptr_eq(c, conn))
        };
        // The last handle ends the connection: not under the lock.
        drop(removed);
        if self.has_waiters() {
            self.drive();
        }
    }

    /// The peer of an HTTP/2 connection ends it (RFC 9113 §6.8).
    pub(super) fn going_away(self: &Arc<Self>, conn: &Weak<H2Conn>, goaway: GoAway) {
        let Some(conn) = conn.upgrade() else { return };
        let at = now();
        let in_use = conn.in_use();
        if goaway.is_graceful() && in_use == 0 {
            self.peer_closed_idle(&[conn.idle_for(at)]);
        }
        let replace = {
            let mut books = lock(&self.books);
            let state = &mut books.state;
            if goaway.is_graceful() && in_use > 0 {
                let requests = goaway.requests().unwrap_or_else(|| conn.given());
                state.habits.ended_after(requests, conn.info.ready_at(), at);
            }
            if goaway.asks_for_calm() {
                self.calm.store(true, Ordering::Relaxed);
            }
            goaway.is_graceful() && in_use > 0
        };
        self.retire(&conn, CloseReason::GoAway);
        if replace && !self.has_other_shared() {
            // It was in use, so the next request is near: it should find a connection.
            self.dial_spare();
        }
    }

    fn has_other_shared(&self) -> bool {
        !lock(&self.books).state.shared.is_empty()
    }

    /// The peer closed connections that had been idle for so long.
    pub(super) fn peer_closed_idle(&self, ages: &[Duration]) {
        let at = now();
        let mut books = lock(&self.books);
        let state = &mut books.state;
        state.habits.closed_idle(ages, at);
        self.is_taught.store(true, Ordering::Relaxed);
        if state.habits.idle_limit(at).is_some() {
            let limit = state.habits.idle_expiry(Duration::MAX, at);
            state.shorten_idle(limit);
            drop(books);
            // Those that are idle now are looked at once more.
            self.janitor.due_at(at);
        }
    }

    /// What the end of an HTTP/1.1 connection teaches about its origin.
    fn learn(self: &Arc<Self>, conn: &H1Conn, why: CloseReason) {
        match why {
            CloseReason::UnsolicitedBytes => {
                let distrusted = {
                    let mut books = lock(&self.books);
                    books.state.habits.sent_excess(now());
                    // Nobody knows what else they hold.
                    std::mem::take(&mut books.state.idle)
                };
                for idle in distrusted {
                    self.shared.less_idle();
                    self.clone().close(idle.conn, CloseReason::Distrusted);
                }
            }
            CloseReason::PeerAskedToClose => {
                let (requests, opened) = (conn.info.requests(), conn.info.ready_at());
                lock(&self.books)
                    .state
                    .habits
                    .ended_after(requests, opened, now());
            }
            // It closed just as we wrote: it had been idle for too long.
            CloseReason::ClosedUnanswered if conn.info.requests() > 1 => {
                if let Some(idle) = conn.was_idle.filter(|idle| *idle >= RACE_AT_LEAST) {
                    self.peer_closed_idle(&[idle]);
                }
            }
            _ => {}
        }
    }

    /// Puts an HTTP/1.1 connection that is quiet where it is needed: to the first in line, or on the
    /// stack, idle since `since`.
    pub(super) fn settle_in(self: &Arc<Self>, conn: Box<H1Conn>, since: Instant, at: Instant) {
        let requests = conn.info.requests();
        let announced = conn.http1.announced();
        let mut out = None;
        let mut grant = None;
        let mut due = None;
        let mut sheds = false;
        let was_woken;
        {
            let mut books = lock(&self.books);
            // Whoever wakes it from now on has it looked at once we are done, on the stack.
            was_woken = conn.wake.is_woken();
            let minimum = books.minimum();
            let state = &mut books.state;
            if let Some(why) = conn.tenure.over.get().copied() {
                out = Some((conn, why));
            } else if requests > 0 && !state.habits.allows_reuse(at) {
                out = Some((conn, CloseReason::Distrusted));
            } else if let Some(Waiter { whom, cover, .. }) = state.line.pop() {
                self.left_line(1);
                state.cover(at);
                let how = reused(&conn.info);
                let mut conn = conn;
                conn.was_idle = Some(at.saturating_duration_since(since));
                grant = Some((
                    whom,
                    Ok(Grant {
                        lease: Lease::H1(H1Lease::new(conn, self.clone())),
                        how,
                        dial: None,
                        cover,
                    }),
                ));
            } else {
                let taught = state.habits.idle_limit(at).map(|_| {
                    let most = Duration::MAX;
                    state.habits.idle_expiry(most, at)
                });
                let said = announced.timeout.map(announced_idle);
                let peer = taught.into_iter().chain(said).min();
                let idle = Idle {
                    conn,
                    since,
                    expires: deadline(since, self.shared.limits.keepalive_expiry),
                    peer_expires: peer.map(|limit| deadline(since, limit)),
                };
                due = Some(idle.peer_expires.unwrap_or(idle.expires).min(idle.expires));
                self.shared.more_idle();
                state.put_idle(idle);
                sheds = self.shared.may_have_too_many_idle() && !state.keeps_idle(minimum);
            }
        }
        if let Some((conn, why)) = out {
            self.clone().close(conn, why);
        }
        if let Some(grant) = grant {
            return self.hand_out(vec![grant]);
        }
        if let Some(due) = due {
            self.janitor.due_at(due);
        }
        if sheds {
            self.over_idle_limit();
        }
        // Who looked then did not find it on the stack.
        if was_woken {
            self.clone().idle_woken();
        }
        // Shutdown, or the end of the runtime, may have emptied the stack just before.
        if self.shared.is_closed() {
            self.close_idle(CloseReason::PoolClosed);
        } else if self.is_removed() {
            self.close_idle(CloseReason::RuntimeGone);
        }
    }
}

impl Home for Host {
    fn check_in(self: Arc<Self>, mut conn: Box<H1Conn>, at: Instant) {
        if self.shared.is_closed() {
            return self.close(conn, CloseReason::PoolClosed);
        }
        if self.is_removed() {
            return self.close(conn, CloseReason::RuntimeGone);
        }
        if let Some(why) = conn.tenure.over.get().copied() {
            return self.close(conn, why);
        }
        if conn.info.early().is_some_and(|early| early.is_open()) {
            return self.establish(conn);
        }
        let requests = conn.info.requests();
        let announced = conn.http1.announced();
        if announced != KeepAlive::default() {
            *lock(&conn.tenure.announced) = Announced {
                timeout: announced.timeout,
                last_request: announced.max.map(|more| requests.saturating_add(more)),
            };
        }
        if let Some(more) = announced.max {
            conn.term.announced(requests, more);
        }
        match conn.term.standing(requests, at) {
            Standing::Over(why) => return self.close(conn, why),
            Standing::Renew(why) => self.renew(conn.info.id(), &conn.tenure, why),
            Standing::Serves => {}
        }
        // From here on the waker tells of whatever the peer does.
        let H1Conn { http1, wake, .. } = &mut *conn;
        let quiet = http1.poll_quiet(&mut Context::from_waker(wake.rearmed()));
        if let Err(why) = quiet {
            return self.close(conn, why);
        }
        conn.http1.release_buffers();
        if self.gives_way() {
            return self.close(conn, CloseReason::MadeRoom);
        }
        self.settle_in(conn, at, at);
        // Somebody may have met the limit just before this one was idle: he gets in line first and then looks under the
        // lock that we had, so that one of us sees the other. Who does not find us among the origins yet looks again
        // a little later.
        let is_blocked = self.shared.capacity.has_blocked();
        if is_blocked && !self.has_waiters() && self.gives_way() {
            drop(self.give_up_idle(Duration::ZERO));
        }
    }

    fn close(self: Arc<Self>, conn: Box<H1Conn>, why: CloseReason) {
        self.learn(&conn, why);
        let H1Conn { http1, seat, .. } = *conn;
        http1.close();
        seat.leave(why);
    }

    fn released(self: Arc<Self>, conn: &Arc<H2Conn>, left: Released) {
        if left.in_use == 0 && !left.retired {
            self.shared.more_idle();
            self.went_idle(conn);
        }
        if self.has_waiters() {
            self.drive();
        }
    }

    fn upgraded(self: Arc<Self>) {
        self.shared.upgraded.fetch_add(1, Ordering::SeqCst);
    }

    fn upgrade_ended(self: Arc<Self>, seat: Seat) {
        self.shared.upgraded.fetch_sub(1, Ordering::SeqCst);
        seat.leave(CloseReason::Upgraded);
    }

    fn left(self: Arc<Self>, info: &ConnectionInfo, why: CloseReason) {
        let gone = {
            let mut books = lock(&self.books);
            let at = books.live.iter().position(|live| live.id == info.id());
            books.state.open -= 1;
            books.state.last_used = now();
            let gone = at.map(|at| books.live.swap_remove(at));
            if books.state.open == 0 {
                books.give_room_back();
            }
            gone.map(|live| (live, books.live.is_empty()))
        };
        if gone.is_some_and(|(_, was_last)| was_last) {
            self.tell_populated();
        }
        self.shared.counters.closed(why);
    }

    fn vacated(self: Arc<Self>) {
        self.janitor.due_at(deadline(now(), SLEEPS_AFTER));
        self.keep_up();
        if self.has_waiters() {
            self.drive();
        }
    }

    fn idle_woken(self: Arc<Self>) {
        let this: Weak<Self> = self.this.clone();
        self.janitor.wake_for(this);
    }

    fn drain(self: Arc<Self>, mut lease: H1Lease) {
        // Dropped, the lease goes home if the body has ended, and closes its connection if not.
        let limits = &self.shared.limits;
        let (mut most, within) = (limits.max_drain_bytes, limits.max_drain_time);
        // After a panic it may be the transport that panics: it is not asked again.
        if std::thread::panicking() || !lease.http1().may_drain(most) {
            return;
        }
        let mut cx = Context::from_waker(Waker::noop());
        if lease.http1().poll_drain(&mut cx, &mut most).is_ready() {
            return;
        }
        if !self.shared.is_closed() && !within.is_zero() {
            self.runtime.spawn(async move {
                let drain = poll_fn(|cx| lease.http1().poll_drain(cx, &mut most));
                let _ = timeout(within, drain).await;
            });
        }
    }
}
