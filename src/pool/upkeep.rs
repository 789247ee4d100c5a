//! Idle connections over time: expiry, making room, closing, shutting down.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::clock::deadline;
use crate::close_reason::CloseReason;
use crate::connection::ConnectionInfo;
use crate::sync::lock;

use super::capacity::Permit;
use super::host::{Denied, Host, Outcome, deliver};
use super::lease::{H1Conn, Home};
use super::maintenance::Tended;
use super::shared::{REMEMBER_ORIGIN, pool_closed};
use super::state::{Idle, Multiplexed, Waiter};

impl Host {
    /// Closes the longest idle HTTP/1.1 connection and gives its permit away; an idle HTTP/2
    /// connection gives its permit back when its task has ended.
    pub(crate) fn give_up_idle(self: &Arc<Self>) -> Option<Permit> {
        let (oldest, shared) = {
            let mut books = lock(&self.books);
            let state = &mut books.state;
            let oldest = (!state.idle.is_empty()).then(|| state.idle.remove(0));
            (oldest, state.shared.clone())
        };
        if let Some(Idle { conn, .. }) = oldest {
            self.shared.idle.fetch_sub(1, Ordering::SeqCst);
            let H1Conn {
                http1,
                info,
                permit,
                ..
            } = conn;
            http1.close();
            self.forget(&info, CloseReason::MadeRoom, None);
            return Some(permit);
        }
        let _ = shared
            .iter()
            .any(|conn| self.retire_idle(conn, CloseReason::MadeRoom));
        None
    }

    /// When its longest idle connection became so.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let books = lock(&self.books);
        let h1 = books.state.idle.first().map(|idle| idle.since);
        let h2 = books
            .state
            .shared
            .iter()
            .filter(|conn| conn.in_use() == 0)
            .map(|conn| conn.idle_since())
            .min();
        h1.into_iter().chain(h2).min()
    }

    /// Closes everything idle.
    pub(crate) fn close_idle(self: &Arc<Self>, why: CloseReason) {
        let (idle, shared) = {
            let mut books = lock(&self.books);
            let shared: Vec<_> = books.state.multiplexed().cloned().collect();
            (std::mem::take(&mut books.state.idle), shared)
        };
        for Idle { conn, .. } in idle {
            self.shared.idle.fetch_sub(1, Ordering::SeqCst);
            self.clone().close(conn, why);
        }
        for conn in &shared {
            self.retire_idle(conn, why);
        }
    }

    /// The pool is closed: nobody waits any longer, idle connections end, others when their
    /// requests do.
    pub(crate) fn shut_down(self: &Arc<Self>, why: CloseReason) {
        let (waiters, shared) = {
            let mut books = lock(&self.books);
            let shared: Vec<_> = books.state.multiplexed().cloned().collect();
            (books.state.all_waiters(), shared)
        };
        self.count_waiting(-(waiters.len() as isize));
        let error = pool_closed().with_origin(self.plan.origin_text.clone());
        let denied = |waiter: Waiter<oneshot::Sender<Outcome>>| {
            let error = error.clone();
            (
                waiter.whom,
                Err(Denied {
                    error,
                    covered: waiter.covered,
                    dial: None,
                }),
            )
        };
        deliver(waiters.into_iter().map(denied).collect());
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

    pub(crate) fn connections(&self) -> Vec<ConnectionInfo> {
        lock(&self.books)
            .live
            .iter()
            .map(|live| live.info.clone())
            .collect()
    }

    /// Takes it off the books if nothing but memories is left since `before`.
    pub(crate) fn remove_if_unused(&self, before: Instant) -> bool {
        let books = lock(&self.books);
        let unused = books.state.is_unused() && books.state.last_used <= before;
        if unused {
            self.removed.store(true, Ordering::Release);
        }
        unused
    }
}

impl Tended for Host {
    fn sweep(self: Arc<Self>) {
        let woken: Vec<H1Conn> = {
            let mut books = lock(&self.books);
            let idle = std::mem::take(&mut books.state.idle);
            let (woken, quiet): (Vec<_>, Vec<_>) =
                idle.into_iter().partition(|idle| idle.conn.wake.is_woken());
            books.state.idle = quiet;
            woken.into_iter().map(|idle| idle.conn).collect()
        };
        for conn in woken {
            self.shared.idle.fetch_sub(1, Ordering::SeqCst);
            // Looks at it, and keeps it if it was only a ticket or the like.
            self.clone().check_in(conn);
        }
    }

    fn expire(self: Arc<Self>, at: Instant) -> Option<Instant> {
        let limits = &self.shared.limits;
        let mut next: Option<Instant> = None;
        let mut due = |when: Instant| next = Some(next.map_or(when, |next| next.min(when)));
        let mut overdue = Vec::new();
        let shared = {
            let mut books = lock(&self.books);
            let state = &mut books.state;
            for idle in std::mem::take(&mut state.idle) {
                match self.overdue(&idle.conn, idle.since, at) {
                    Some(why) => overdue.push((idle.conn, why)),
                    None => {
                        let expires = deadline(idle.since, limits.keepalive_expiry);
                        due(idle
                            .conn
                            .retire_at
                            .map_or(expires, |retire| retire.min(expires)));
                        state.idle.push(idle);
                    }
                }
            }
            if state.is_unused() && overdue.is_empty() {
                due(deadline(state.last_used, REMEMBER_ORIGIN));
            }
            state.multiplexed().cloned().collect::<Vec<_>>()
        };
        for (conn, why) in overdue {
            self.shared.idle.fetch_sub(1, Ordering::SeqCst);
            self.clone().close(conn, why);
        }
        for conn in &shared {
            if conn.retire_at.is_some_and(|retire| retire <= at) {
                self.retire(conn, CloseReason::Lifetime);
                continue;
            }
            if let Some(retire) = conn.retire_at {
                due(retire);
            }
            if conn.in_use() == 0 {
                let expires = deadline(conn.idle_since(), limits.http2_keepalive_expiry);
                if expires > at {
                    due(expires);
                } else {
                    self.retire_idle(conn, CloseReason::IdleExpired);
                }
            }
        }
        next
    }
}
