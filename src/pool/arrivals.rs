//! What dials bring: connections for those who wait, or the error; and the eye on each HTTP/2
//! connection from then on.

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use crate::clock::{deadline, now};
use crate::close_reason::CloseReason;
use crate::connection::{ConnectionInfo, Link, Opened, Stream};
use crate::error::Error;
use crate::event::DialRecorder;
use crate::http1::Http1;
use crate::http2::{Driver, GoAway, Http2, Patience, Watch};
use crate::sync::lock;
use crate::timing::{ConnectionTrace, ConnectionUse};

use super::asleep::SLEEPS_AFTER;
use super::capacity::Permit;
use super::dial::{DialSink, Dialled};
use super::host::{Books, Denied, Dialling, Grant, Host, Outcome, State};
use super::lease::{H1Conn, H1Lease, H2Conn, H2Lease, Home, IdleWaker, Lease, Seat, Tenure};
use super::shared::{Killer, Live, pool_closed};
use super::state::{Cover, DialEntry, Multiplexed, Purpose, Waiter};
use super::term::Term;

/// A failed dial beside a working HTTP/2 connection is not repeated before.
const SPARE_PAUSE: Duration = Duration::from_secs(1);

type Dial = Option<DialEntry<Dialling>>;

impl Host {
    fn opened(self: &Arc<Self>, id: u64, opened: Opened, permit: Permit) {
        let Opened { info, link } = opened;
        let is_tls = info.trace().tls.is_some();
        let is_resumed = info.tls_resumed() == Some(true);
        self.shared.counters.opened(is_tls, is_resumed);
        if let Some(early) = info.early() {
            let counters = self.shared.counters.clone();
            early.when_ended(move |facts| counters.ended_late(facts.resumed));
        }
        let home: Weak<Self> = self.this.clone();
        let seat = Seat::new(info.clone(), permit, home);
        let dial = match link {
            Link::Http1(http1) => self.opened_http1(id, http1, info.clone(), seat),
            Link::Http2(handle, driver) => {
                self.opened_http2(id, handle, driver, info.clone(), seat)
            }
        };
        self.tell_populated();
        for report in dial.into_iter().flat_map(|dial| dial.what.reports) {
            // Whoever asked may be gone.
            let _ = report.send(Ok(info.clone()));
        }
    }

    /// How long a new connection may serve, by our limits and what the origin taught.
    fn term(&self, books: &Books, info: &ConnectionInfo) -> Term {
        let taught = books.state.habits.request_limit(now());
        self.shared.term(info.ready_at()).learned(taught)
    }

    /// Enters a connection into the books.
    fn enter(books: &mut Books, info: &ConnectionInfo, killer: Killer, term: Term) -> Arc<Tenure> {
        let tenure: Arc<Tenure> = Arc::default();
        books.live.push(Live {
            id: info.id(),
            info: info.clone(),
            killer,
            term,
            tenure: tenure.clone(),
            renewal: None,
        });
        books.state.verdict = Some(info.protocol());
        books.state.open += 1;
        tenure
    }

    fn opened_http1(
        self: &Arc<Self>,
        id: u64,
        http1: Box<Http1<Stream>>,
        info: ConnectionInfo,
        seat: Seat,
    ) -> Dial {
        let trace = info.shared_trace();
        let early = info.early().is_some();
        let this: Weak<Self> = self.this.clone();
        let (conn, whom, dial) = {
            let mut books = lock(&self.books);
            let term = self.term(&books, &info);
            let killer = Killer::Http1(http1.killer());
            let tenure = Self::enter(&mut books, &info, killer, term);
            let state = &mut books.state;
            let mut dial = state.dial_ended(id);
            let whom = self.next_for(state, &mut dial, early);
            state.cover(now());
            let conn = Box::new(H1Conn {
                http1: *http1,
                info,
                seat,
                wake: IdleWaker::new(this),
                term,
                tenure,
                was_idle: None,
            });
            (conn, whom, dial)
        };
        if let Some(change) = conn.term.next_change(now()) {
            self.janitor.due_at(change);
        }
        if let Some(DialEntry {
            purpose: Purpose::Successor(old),
            ..
        }) = &dial
        {
            // First, so that the idle limit has room for this one.
            self.succeeded(*old);
        }
        match whom {
            Some(ForWhom { sender, how, cover }) => {
                let grant = Grant {
                    lease: Lease::H1(H1Lease::new(conn, self.clone())),
                    how,
                    dial: Some(trace),
                    cover,
                };
                self.hand_out(vec![(sender, Ok(grant))]);
            }
            None if early => self.establish(conn),
            None => self.clone().check_in(conn, now()),
        }
        self.drive();
        dial
    }

    /// Whom a new connection serves first: the request it was reserved for, or the first in line.
    fn next_for(&self, state: &mut State, dial: &mut Dial, early: bool) -> Option<ForWhom> {
        if let Some(dial) = dial
            && let Some(sender) = dial.what.reserved.take()
        {
            return Some(ForWhom {
                sender,
                how: ConnectionUse::New,
                cover: dialled_since(dial.started),
            });
        }
        let waiter = state.next_for(early)?;
        self.left_line(1);
        Some(ForWhom {
            how: new_or_joined(&waiter, dial.as_ref(), true),
            cover: waiter.cover,
            sender: waiter.whom,
        })
    }

    /// The request for which the connection was dialled is gone: nobody may use it before its
    /// handshake is over.
    pub(super) fn establish(self: &Arc<Self>, conn: Box<H1Conn>) {
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
            if let Ok(Ok(())) = established
                && let Some(conn) = establishing.conn.take()
            {
                establishing.host.clone().check_in(conn, now());
            }
        });
    }

    fn opened_http2(
        self: &Arc<Self>,
        id: u64,
        handle: Http2,
        driver: Box<Driver<Stream>>,
        info: ConnectionInfo,
        seat: Seat,
    ) -> Dial {
        let early = info.early().is_some();
        // It is idle until its first stream is taken.
        self.shared.more_idle();
        let mut grants = Vec::new();
        let mut unserved = None;
        let (conn, dial, is_successor) = {
            let mut books = lock(&self.books);
            let term = self.term(&books, &info);
            let killer = Killer::Http2(handle.killer());
            let tenure = Self::enter(&mut books, &info, killer, term);
            let conn = Arc::new(H2Conn::new(handle, info, term, tenure, &self.janitor));
            let state = &mut books.state;
            let mut dial = state.dial_ended(id);
            if let Some(whom) = dial.as_mut().and_then(|dial| dial.what.reserved.take()) {
                if let Some(taken) = conn.try_take() {
                    let cover = dial.as_ref().map(|dial| dialled_since(dial.started));
                    let cover = cover.unwrap_or_default();
                    let grant = self.grant_stream(&conn, taken.before, ConnectionUse::New, cover);
                    grants.push((whom, Ok(grant)));
                } else {
                    // It asks again; dropped without the lock.
                    unserved = Some(whom);
                }
            }
            let is_successor = dial
                .as_ref()
                .is_some_and(|dial| matches!(dial.purpose, Purpose::Successor(_)));
            if early || (is_successor && state.line.is_empty()) {
                state.settling.push(conn.clone());
            } else {
                state.shared.push(conn.clone());
            }
            if !early || grants.is_empty() {
                let how = |waiter: &Waiter<_>, first| new_or_joined(waiter, dial.as_ref(), first);
                self.grant_streams(state, &conn, early, how, &mut grants);
            }
            (conn, dial, is_successor)
        };
        drop(unserved);
        let replaces = match dial.as_ref().map(|dial| dial.purpose) {
            Some(Purpose::Successor(old)) => Some(old),
            _ => None,
        };
        let watch = Watching {
            host: self.clone(),
            conn: Arc::downgrade(&conn),
            why: conn.why.clone(),
            settled: conn.settled.clone(),
            replaces,
            seat: Some(seat),
        };
        let patience = Patience {
            rtt: round_trip(conn.info.trace()),
            calm: self.calm.clone(),
            settings: self.shared.deps.connect_timeout,
        };
        self.runtime.spawn(async move {
            let why = driver.run(&watch, patience).await;
            watch.ended(why);
        });
        if let Some(change) = conn.term.next_change(now()) {
            self.janitor.due_at(change);
        }
        if grants.is_empty() {
            conn.handle.open();
            // The idle limit has room for a successor once the one before it has gone.
            if !is_successor {
                self.went_idle(&conn);
            }
        }
        // Not held while the grants go out: the last handle ends the connection.
        drop(conn);
        self.hand_out(grants);
        self.drive();
        dial
    }

    fn grant_stream(
        self: &Arc<Self>,
        conn: &Arc<H2Conn>,
        before: u32,
        how: ConnectionUse,
        cover: Cover,
    ) -> Grant {
        if before == 0 {
            self.shared.less_idle();
        }
        Grant {
            lease: Lease::H2(H2Lease::new(conn.clone(), self.clone())),
            how,
            dial: Some(conn.info.shared_trace()),
            cover,
        }
    }

    /// Streams of a new connection for those who waited for it; one only, for a request that may travel
    /// as early data, if its handshake is open. `how` is told whether it is the first.
    fn grant_streams(
        self: &Arc<Self>,
        state: &mut State,
        conn: &Arc<H2Conn>,
        early: bool,
        how: impl Fn(&Waiter<oneshot::Sender<Outcome>>, bool) -> ConnectionUse,
        grants: &mut Vec<(oneshot::Sender<Outcome>, Outcome)>,
    ) {
        while grants.is_empty() || !early {
            if !state.has_waiter(early) {
                return;
            }
            let Some(taken) = conn.try_take() else { return };
            let Some(waiter) = state.next_for(early) else {
                return;
            };
            self.left_line(1);
            let how = how(&waiter, grants.is_empty());
            let grant = self.grant_stream(conn, taken.before, how, waiter.cover);
            grants.push((waiter.whom, Ok(grant)));
        }
    }

    fn dial_failed(
        self: &Arc<Self>,
        id: u64,
        error: Error,
        recorder: &Arc<DialRecorder>,
        is_abandoned: bool,
    ) {
        let error = if is_abandoned && self.shared.is_closed() {
            pool_closed().with_origin(self.plan.origin_text.clone())
        } else {
            error
        };
        self.shared.counters.dial_failed();
        let at = now();
        let (dial, failed, again) = {
            let mut books = lock(&self.books);
            let state = &mut books.state;
            let dial = state.dial_ended(id);
            state.last_used = at;
            let failed = if is_abandoned {
                // Its runtime ends: a further dial would be dropped just the same.
                state.all_waiters()
            } else {
                let purpose = dial.as_ref().map_or(Purpose::Waiters, |dial| dial.purpose);
                state.failed_waiters(purpose)
            };
            let mut again = None;
            if !state.shared.is_empty() {
                let after = deadline(at, SPARE_PAUSE);
                state.spare_after = Some(after);
                again = Some(after);
            }
            state.cover(at);
            (dial, failed, again)
        };
        self.left_line(failed.len());
        self.janitor
            .due_at(again.unwrap_or_else(|| deadline(at, SLEEPS_AFTER)));
        let denied = |whom, cover| {
            let denied = Denied {
                error: error.clone(),
                cover,
                dial: Some(recorder.clone()),
            };
            (whom, Err(denied))
        };
        let mut answers: Vec<_> = failed
            .into_iter()
            .map(|waiter| denied(waiter.whom, waiter.cover))
            .collect();
        if let Some(dial) = dial {
            if let Purpose::Successor(old) = dial.purpose {
                self.successor_failed(old);
            }
            if let Some(whom) = dial.what.reserved {
                answers.push(denied(whom, dialled_since(dial.started)));
            }
            for report in dial.what.reports {
                let _ = report.send(Err(error.clone()));
            }
        }
        self.hand_out(answers);
    }
}

/// The request that a new connection serves.
struct ForWhom {
    sender: oneshot::Sender<Outcome>,
    how: ConnectionUse,
    cover: Cover,
}

/// It had a dial of its own.
fn dialled_since(started: Instant) -> Cover {
    Cover {
        since: Some(started),
        before: None,
    }
}

/// The shortest time in which the peer can answer, as far as setting the connection up has told.
fn round_trip(trace: &ConnectionTrace) -> Option<Duration> {
    // Through a proxy the handshake of TCP says nothing of the way beyond.
    let tcp = trace.tcp_rtt.filter(|_| trace.proxy.is_none());
    tcp.or_else(|| Some(trace.tls?.end?.saturating_duration_since(trace.tls?.start)))
}

/// A connection whose handshake somebody must end. Dropped before that, it is closed.
struct Establishing {
    conn: Option<Box<H1Conn>>,
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
            is_abandoned,
        } = dialled;
        match result {
            Ok(opened) => self.opened(id, opened, permit),
            Err(error) => {
                self.dial_failed(id, error, &recorder, is_abandoned);
                drop(permit);
                if !is_abandoned {
                    self.drive();
                }
            }
        }
        self.janitor.replace_key_shares();
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
    why: Arc<OnceLock<CloseReason>>,
    settled: Arc<Notify>,
    /// The connection that it follows.
    replaces: Option<u64>,
    seat: Option<Seat>,
}

impl Watching {
    fn ended(mut self, why: CloseReason) {
        self.finish(why);
    }

    fn finish(&mut self, why: CloseReason) {
        let Some(seat) = self.seat.take() else {
            return;
        };
        if let Some(conn) = self.conn.upgrade() {
            if conn.in_use() == 0 && why == CloseReason::TransportLost {
                self.host.peer_closed_idle(&[conn.idle_for(now())]);
            }
            self.host.retire(&conn, why);
        }
        let why = self.why.get().copied().unwrap_or(why);
        self.settled.notify_waiters();
        seat.leave(why);
        if let Some(old) = self.replaces.take() {
            // It ended before it could take over.
            self.host.successor_failed(old);
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // Its task is dropped: by a panic below h2, or with its runtime.
        self.finish(if std::thread::panicking() {
            CloseReason::Failed
        } else {
            CloseReason::RuntimeGone
        });
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

    fn going_away(&self, goaway: GoAway) {
        self.host.going_away(&self.conn, goaway);
    }

    fn settled(&self) {
        let mut grants = Vec::new();
        if let Some(conn) = self.conn.upgrade() {
            let mut books = lock(&self.host.books);
            let state = &mut books.state;
            if state.settled(|c| Arc::ptr_eq(c, &conn)) {
                // They waited for this very handshake.
                let how = |_: &_, _| ConnectionUse::Joined;
                self.host
                    .grant_streams(state, &conn, false, how, &mut grants);
            }
        }
        self.host.hand_out(grants);
        if let Some(old) = self.replaces
            && let Some(conn) = self.conn.upgrade()
            && !conn.handle.slots().is_retired()
        {
            self.host.succeeded(old);
            if conn.in_use() == 0 {
                self.host.went_idle(&conn);
            }
        }
        self.settled.notify_waiters();
        if self.host.has_waiters() {
            self.host.drive();
        }
    }

    fn late(&self) {
        if self.host.has_waiters() {
            self.host.drive();
        }
        self.host.dial_spare();
    }

    fn trusted(&self) {
        if self.host.has_waiters() {
            self.host.drive();
        }
    }

    fn refuses(&self) {
        if let Some(conn) = self.conn.upgrade() {
            self.host.retire(&conn, CloseReason::Failed);
        }
    }

    fn worn(&self) {
        if let Some(conn) = self.conn.upgrade() {
            let host = &self.host;
            host.renew(conn.info.id(), &conn.tenure, CloseReason::WornOut);
        }
    }
}
