//! What dials bring: connections for those who wait, or the error; and the eye on each HTTP/2
//! connection from then on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use http::Version;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use crate::clock::{deadline, now};
use crate::close_reason::CloseReason;
use crate::connection::{ConnectionInfo, Link, Opened, Stream};
use crate::error::Error;
use crate::event::DialRecorder;
use crate::http1::Http1;
use crate::http2::{Driver, Http2, Watch};
use crate::sync::lock;
use crate::timing::ConnectionUse;

use super::capacity::Permit;
use super::dial::{DialSink, Dialled, Report};
use super::host::{Denied, Grant, Host, Outcome, State, deliver};
use super::lease::{H1Conn, H1Lease, H2Conn, H2Lease, Home, IdleWake, Lease};
use super::shared::{Killer, Live, REMEMBER_ORIGIN};
use super::state::{DialEntry, Multiplexed, Waiter};

/// A failed dial beside a working HTTP/2 connection is not repeated before.
const SPARE_PAUSE: Duration = Duration::from_secs(1);

impl Host {
    fn opened(self: &Arc<Self>, id: u64, opened: Opened, permit: Permit, report: Option<Report>) {
        let Opened { info, link } = opened;
        let is_tls = info.trace().tls.is_some();
        let is_resumed = info.tls_resumed() == Some(true);
        self.shared.counters.opened(is_tls, is_resumed);
        if let Some(early) = info.early() {
            let counters = self.shared.counters.clone();
            early.when_ended(move |facts| counters.ended_late(facts.resumed));
        }
        let retire_at = self.shared.retire_at(info.ready_at());
        match link {
            Link::Http1(http1) => self.opened_http1(id, http1, info.clone(), permit, retire_at),
            Link::Http2(handle, driver) => {
                self.opened_http2(id, handle, *driver, info.clone(), permit, retire_at);
            }
        }
        if let Some(report) = report {
            // Whoever asked may be gone.
            let _ = report.send(Ok(info));
        }
    }

    fn opened_http1(
        self: &Arc<Self>,
        id: u64,
        http1: Box<Http1<Stream>>,
        info: ConnectionInfo,
        permit: Permit,
        retire_at: Option<Instant>,
    ) {
        let trace = info.shared_trace();
        let this: Weak<Self> = self.this.clone();
        let conn = H1Conn {
            http1,
            info,
            permit,
            wake: IdleWake::new(this),
            retire_at,
        };
        let early = conn.info.early().is_some();
        let waiter = {
            let mut books = lock(&self.books);
            books.live.push(Live {
                id: conn.info.id(),
                info: conn.info.clone(),
                killer: Killer::Http1(conn.http1.killer()),
            });
            let state = &mut books.state;
            state.verdict = Some(Version::HTTP_11);
            state.open += 1;
            let dial = state.dial_ended(id);
            let waiter = state.next_for(early);
            state.cover(now());
            waiter.map(|waiter| (waiter, dial))
        };
        match waiter {
            Some((waiter, dial)) => {
                self.count_waiting(-1);
                let grant = Grant {
                    lease: Lease::H1(H1Lease::new(conn, self.clone())),
                    how: new_or_joined(&waiter, dial.as_ref(), true),
                    dial: Some(trace),
                    covered: waiter.covered,
                };
                deliver(vec![(waiter.whom, Ok(grant))]);
            }
            None if early => self.establish(conn),
            None => self.clone().check_in(conn),
        }
        self.drive();
    }

    /// The request for which the connection was dialled is gone: nobody may use it before its
    /// handshake is over.
    pub(super) fn establish(self: &Arc<Self>, conn: H1Conn) {
        let limit = self.shared.deps.connect_timeout;
        let mut establishing = Establishing {
            conn: Some(conn),
            host: self.clone(),
        };
        self.runtime.spawn(async move {
            let Some(conn) = &mut establishing.conn else {
                return;
            };
            let established = timeout(limit, conn.http1.established()).await;
            if let (Ok(Ok(())), Some(conn)) = (established, establishing.conn.take()) {
                establishing.host.clone().check_in(conn);
            }
        });
    }

    fn opened_http2(
        self: &Arc<Self>,
        id: u64,
        handle: Http2,
        driver: Driver<Stream>,
        info: ConnectionInfo,
        permit: Permit,
        retire_at: Option<Instant>,
    ) {
        let early = info.early().is_some();
        let conn = Arc::new(H2Conn::new(handle, info, retire_at));
        // It is idle until its first stream is taken.
        self.shared.idle.fetch_add(1, Ordering::SeqCst);
        let grants;
        {
            let mut books = lock(&self.books);
            books.live.push(Live {
                id: conn.info.id(),
                info: conn.info.clone(),
                killer: Killer::Http2(conn.handle.killer()),
            });
            let state = &mut books.state;
            state.verdict = Some(Version::HTTP_2);
            state.open += 1;
            let dial = state.dial_ended(id);
            if early {
                state.settling.push(conn.clone());
            } else {
                state.shared.push(conn.clone());
            }
            let how = |waiter: &Waiter<_>, first| new_or_joined(waiter, dial.as_ref(), first);
            grants = self.grant_streams(state, &conn, early, how);
        }
        let watch = Watching {
            host: self.clone(),
            conn: Arc::downgrade(&conn),
            info: conn.info.clone(),
            why: conn.why.clone(),
            settled: conn.settled.clone(),
            permit: Some(permit),
        };
        self.runtime.spawn(async move {
            let why = driver.run(&watch).await;
            watch.ended(why);
        });
        if let Some(retire) = retire_at {
            self.janitor.due_at(retire);
        }
        if grants.is_empty() {
            conn.handle.open();
            self.went_idle(&conn);
        }
        // Not held while the grants go out: the last handle ends the connection.
        drop(conn);
        deliver(grants);
        self.drive();
    }

    /// Streams of a new connection for those who waited for it; one only, for a request that may travel
    /// as early data, if its handshake is open. `how` is told whether it is the first.
    fn grant_streams(
        self: &Arc<Self>,
        state: &mut State,
        conn: &Arc<H2Conn>,
        early: bool,
        how: impl Fn(&Waiter<oneshot::Sender<Outcome>>, bool) -> ConnectionUse,
    ) -> Vec<(oneshot::Sender<Outcome>, Outcome)> {
        let mut grants = Vec::new();
        while grants.is_empty() || !early {
            let Some(taken) = conn.try_take() else { break };
            let Some(waiter) = state.next_for(early) else {
                conn.handle.slots().release();
                break;
            };
            if taken.before == 0 {
                self.shared.idle.fetch_sub(1, Ordering::SeqCst);
            }
            self.count_waiting(-1);
            let grant = Grant {
                lease: Lease::H2(H2Lease::new(conn.clone(), self.clone())),
                how: how(&waiter, grants.is_empty()),
                dial: Some(conn.info.shared_trace()),
                covered: waiter.covered,
            };
            grants.push((waiter.whom, Ok(grant)));
        }
        grants
    }

    fn dial_failed(
        self: &Arc<Self>,
        id: u64,
        error: Error,
        recorder: &Arc<DialRecorder>,
        report: Option<Report>,
    ) {
        self.shared.counters.dial_failed();
        let failed = {
            let mut books = lock(&self.books);
            let state = &mut books.state;
            state.dial_ended(id);
            let failed = state.failed_waiters();
            if !state.shared.is_empty() {
                state.spare_after = Some(deadline(now(), SPARE_PAUSE));
            }
            if !state.is_opening() {
                for waiter in state.line.iter_mut() {
                    waiter.covered = None;
                }
            }
            failed
        };
        self.count_waiting(-(failed.len() as isize));
        self.janitor.due_at(deadline(now(), REMEMBER_ORIGIN));
        let denied = |waiter: Waiter<oneshot::Sender<Outcome>>| {
            let denied = Denied {
                error: error.clone(),
                covered: waiter.covered,
                dial: Some(recorder.clone()),
            };
            (waiter.whom, Err(denied))
        };
        deliver(failed.into_iter().map(denied).collect());
        if let Some(report) = report {
            let _ = report.send(Err(error));
        }
    }
}

/// A connection whose handshake somebody must end. Dropped before that, it is closed.
struct Establishing {
    conn: Option<H1Conn>,
    host: Arc<Host>,
}

impl Drop for Establishing {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            self.host.clone().close(conn, CloseReason::Failed);
        }
    }
}

fn new_or_joined<W, D>(
    waiter: &Waiter<W>,
    dial: Option<&DialEntry<D>>,
    first: bool,
) -> ConnectionUse {
    // It was there before the dial began and is the first that the dial serves: its own dial.
    if first && dial.is_some_and(|dial| dial.started >= waiter.since) {
        ConnectionUse::New
    } else {
        ConnectionUse::Joined
    }
}

impl DialSink for Host {
    fn dialled(self: Arc<Self>, dialled: Dialled) {
        let Dialled {
            id,
            result,
            permit,
            recorder,
            report,
        } = dialled;
        match result {
            Ok(opened) => self.opened(id, opened, permit, report),
            Err(error) => {
                self.dial_failed(id, error, &recorder, report);
                drop(permit);
                self.drive();
            }
        }
        if self.shared.is_closed() {
            self.shut_down(CloseReason::PoolClosed);
        }
    }
}

/// The pool's eye on one HTTP/2 connection, owned by the connection's task. It holds no handle:
/// the connection ends when the last one is gone.
struct Watching {
    host: Arc<Host>,
    conn: Weak<H2Conn>,
    info: ConnectionInfo,
    why: Arc<OnceLock<CloseReason>>,
    settled: Arc<Notify>,
    permit: Option<Permit>,
}

impl Watching {
    fn ended(mut self, why: CloseReason) {
        self.finish(why);
    }

    fn finish(&mut self, why: CloseReason) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        if let Some(conn) = self.conn.upgrade() {
            self.host.retire(&conn, why);
        }
        let why = self.why.get().copied().unwrap_or(why);
        self.settled.notify_waiters();
        self.host.forget(&self.info, why, Some(permit));
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.finish(CloseReason::RuntimeGone);
    }
}

impl Watch for Watching {
    fn limit_changed(&self, limit: u32) {
        lock(&self.host.books).state.stream_limit = Some(limit);
        let grew = self
            .conn
            .upgrade()
            .map(|conn| conn.handle.slots().set_limit(limit));
        if grew == Some(true) && self.host.has_waiters() {
            self.host.drive();
        }
    }

    fn retired(&self, why: CloseReason) {
        if let Some(conn) = self.conn.upgrade() {
            self.host.retire(&conn, why);
        }
    }

    fn settled(&self) {
        if let Some(conn) = self.conn.upgrade() {
            let grants = {
                let mut books = lock(&self.host.books);
                let state = &mut books.state;
                if state.settled(|c| Arc::ptr_eq(c, &conn)) {
                    // They waited for this very handshake.
                    let how = |_: &_, _| ConnectionUse::Joined;
                    self.host.grant_streams(state, &conn, false, how)
                } else {
                    Vec::new()
                }
            };
            deliver(grants);
        }
        self.settled.notify_waiters();
        if self.host.has_waiters() {
            self.host.drive();
        }
    }
}
