//! What becomes of a connection when its request is done: kept, handed on, retired or closed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Context;

use crate::clock::{deadline, now};
use crate::close_reason::CloseReason;
use crate::connection::ConnectionInfo;
use crate::http2::Released;
use crate::sync::lock;
use crate::timing::ConnectionUse;

use super::capacity::Permit;
use super::host::{Grant, Host, deliver};
use super::lease::{H1Conn, H1Lease, H2Conn, Home, Lease};
use super::shared::REMEMBER_ORIGIN;
use super::state::{Idle, Waiter};

impl Host {
    /// An HTTP/2 connection has no streams now.
    pub(super) fn went_idle(self: &Arc<Self>, conn: &Arc<H2Conn>) {
        let at = now();
        conn.set_idle_since(at);
        let expires = deadline(at, self.shared.limits.http2_keepalive_expiry);
        self.janitor
            .due_at(conn.retire_at.map_or(expires, |retire| retire.min(expires)));
        let idle = self.shared.idle.load(Ordering::SeqCst);
        if idle > self.shared.limits.max_keepalive_connections {
            self.retire_idle(conn, CloseReason::IdleLimit);
        }
    }

    pub(super) fn retire_idle(self: &Arc<Self>, conn: &Arc<H2Conn>, why: CloseReason) -> bool {
        if conn.handle.slots().retire_if_idle().is_none() {
            return false;
        }
        self.shared.idle.fetch_sub(1, Ordering::SeqCst);
        self.take_off(conn, why);
        true
    }

    /// No new streams on this connection from now on.
    pub(super) fn retire(self: &Arc<Self>, conn: &Arc<H2Conn>, why: CloseReason) {
        if let Some(left) = conn.handle.slots().retire() {
            if left.in_use == 0 {
                self.shared.idle.fetch_sub(1, Ordering::SeqCst);
            }
            self.take_off(conn, why);
        }
    }

    pub(super) fn take_off(self: &Arc<Self>, conn: &Arc<H2Conn>, why: CloseReason) {
        let _ = conn.why.set(why);
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

    /// A connection is gone: the books, the counters, the permit, and whoever waits for it.
    pub(super) fn forget(
        self: &Arc<Self>,
        info: &ConnectionInfo,
        why: CloseReason,
        permit: Option<Permit>,
    ) {
        {
            let mut books = lock(&self.books);
            books.live.retain(|live| live.id != info.id());
            books.state.open -= 1;
            books.state.last_used = now();
        }
        self.shared.counters.closed(why);
        self.janitor.due_at(deadline(now(), REMEMBER_ORIGIN));
        drop(permit);
        if self.has_waiters() {
            self.drive();
        }
    }
}

impl Home for Host {
    fn check_in(self: Arc<Self>, mut conn: H1Conn) {
        let at = now();
        if self.shared.is_closed() {
            return self.close(conn, CloseReason::PoolClosed);
        }
        if conn.retire_at.is_some_and(|retire| retire <= at) {
            return self.close(conn, CloseReason::Lifetime);
        }
        if conn.info.early().is_some_and(|early| early.is_open()) {
            return self.establish(conn);
        }
        // From here on the waker tells of whatever the peer does.
        conn.wake.reset();
        let waker = conn.wake.waker();
        let quiet = conn.http1.poll_quiet(&mut Context::from_waker(&waker));
        if let Err(why) = quiet {
            return self.close(conn, why);
        }
        conn.http1.release_buffers();
        let expires = deadline(at, self.shared.limits.keepalive_expiry);
        let expires = conn.retire_at.map_or(expires, |retire| retire.min(expires));
        let wake = conn.wake.clone();
        let mut evicted = None;
        let mut grant = None;
        let mut refused = None;
        {
            let mut books = lock(&self.books);
            let state = &mut books.state;
            if let Some(Waiter { whom, covered, .. }) = state.line.pop() {
                self.count_waiting(-1);
                state.cover(at);
                let how = if conn.info.requests() == 0 {
                    ConnectionUse::Prewarmed
                } else {
                    ConnectionUse::Idle
                };
                let lease = Lease::H1(H1Lease::new(conn, self.clone()));
                grant = Some((
                    whom,
                    Ok(Grant {
                        lease,
                        how,
                        dial: None,
                        covered,
                    }),
                ));
            } else if self.shared.try_idle() {
                state.idle.push(Idle { conn, since: at });
            } else if state.idle.is_empty() {
                refused = Some(conn);
            } else {
                evicted = Some(state.idle.remove(0).conn);
                state.idle.push(Idle { conn, since: at });
            }
        }
        if let Some(conn) = refused.or(evicted) {
            self.clone().close(conn, CloseReason::IdleLimit);
        }
        if let Some(grant) = grant {
            return deliver(vec![grant]);
        }
        self.janitor.due_at(expires);
        // What happened before it was on the stack was told to nobody who could find it.
        if wake.is_woken() {
            self.clone().idle_woken();
        }
        // Shutdown may have emptied the stack just before.
        if self.shared.is_closed() {
            self.close_idle(CloseReason::PoolClosed);
        }
    }

    fn close(self: Arc<Self>, conn: H1Conn, why: CloseReason) {
        let H1Conn {
            http1,
            info,
            permit,
            ..
        } = conn;
        http1.close();
        self.forget(&info, why, Some(permit));
    }

    fn released(self: Arc<Self>, conn: &Arc<H2Conn>, left: Released) {
        if left.in_use == 0 && !left.retired {
            self.shared.idle.fetch_add(1, Ordering::SeqCst);
            self.went_idle(conn);
        }
        if self.has_waiters() {
            self.drive();
        }
    }

    fn upgraded(self: Arc<Self>, _: &ConnectionInfo) {
        self.shared.upgraded.fetch_add(1, Ordering::SeqCst);
    }

    fn upgrade_ended(self: Arc<Self>, info: &ConnectionInfo, permit: Permit) {
        self.shared.upgraded.fetch_sub(1, Ordering::SeqCst);
        self.forget(info, CloseReason::Upgraded, Some(permit));
    }

    fn idle_woken(self: Arc<Self>) {
        let this: Weak<Self> = self.this.clone();
        self.janitor.wake_for(this);
    }
}
