//! What a request holds of the pool, given back on drop wherever that happens.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::clock::now;
use crate::close_reason::CloseReason;
use crate::connection::{ConnectionInfo, Stream};
use crate::http1::Http1;
use crate::http2::{Doubter, Http2, Released, Taken};
use crate::io::AttendUpload;

use super::capacity::Permit;
use super::maintenance::Janitor;
use super::state::{Multiplexed, Pulse};
use super::term::Term;

/// Where leases come from and go back to.
pub(crate) trait Home: Send + Sync {
    /// An HTTP/1.1 connection is free again.
    fn check_in(self: Arc<Self>, conn: Box<H1Conn>, at: Instant);
    /// An HTTP/1.1 connection cannot be used again.
    fn close(self: Arc<Self>, conn: Box<H1Conn>, why: CloseReason);
    /// A stream is over.
    fn released(self: Arc<Self>, conn: &Arc<H2Conn>, left: Released);
    /// An HTTP/1.1 connection left HTTP for good; its place under the limits is still taken.
    fn upgraded(self: Arc<Self>);
    /// What was upgraded is closed.
    fn upgrade_ended(self: Arc<Self>, seat: Seat);
    /// A connection is gone from the books.
    fn left(self: Arc<Self>, info: &ConnectionInfo, why: CloseReason);
    /// And its permit is given away: whoever waits may be served.
    fn vacated(self: Arc<Self>);
    /// Something happened on an idle connection.
    fn idle_woken(self: Arc<Self>);
    /// A response body was dropped before its end: the rest is read, within bounds, to save the
    /// connection.
    fn drain(self: Arc<Self>, lease: H1Lease);
}

/// The place of a connection on the books of its origin and under the total limit. It is given up once,
/// with a reason; dropped without one, say by a panic of somebody's code, the reason is Failed.
pub(crate) struct Seat {
    info: ConnectionInfo,
    // `None` once it has been given up.
    permit: Option<Permit>,
    home: Weak<dyn Home>,
}

impl Seat {
    pub(crate) fn new(info: ConnectionInfo, permit: Permit, home: Weak<dyn Home>) -> Self {
        Self {
            info,
            permit: Some(permit),
            home,
        }
    }

    /// The connection is gone.
    pub(crate) fn leave(mut self, why: CloseReason) {
        self.end(why);
    }

    /// The connection is gone, and somebody else gets its permit.
    pub(crate) fn hand_over(mut self, why: CloseReason) -> Option<Permit> {
        let (permit, home) = self.give_up(why)?;
        if let Some(home) = home {
            home.vacated();
        }
        Some(permit)
    }

    fn give_up(&mut self, why: CloseReason) -> Option<(Permit, Option<Arc<dyn Home>>)> {
        let permit = self.permit.take()?;
        let home = self.home.upgrade();
        if let Some(home) = &home {
            home.clone().left(&self.info, why);
        }
        Some((permit, home))
    }

    fn end(&mut self, why: CloseReason) {
        if let Some((permit, home)) = self.give_up(why) {
            // First the permit, so that whoever is served next finds it.
            drop(permit);
            if let Some(home) = home {
                home.vacated();
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.end(CloseReason::Failed);
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Seat").field(&self.info).finish()
    }
}

/// An established HTTP/1.1 connection. Boxed: it goes to and fro.
pub(crate) struct H1Conn {
    pub(crate) http1: Http1<Stream>,
    pub(crate) info: ConnectionInfo,
    pub(crate) seat: Seat,
    pub(crate) wake: IdleWaker,
    pub(crate) term: Term,
    pub(crate) tenure: Arc<Tenure>,
    /// How long it had been idle when it was lent last.
    pub(crate) was_idle: Option<Duration>,
}

/// How far a connection is in handing over to its successor. Shared with the pool's list of those that
/// exist.
#[derive(Debug, Default)]
pub(crate) struct Tenure {
    /// Somebody has seen to a successor, or tried to.
    pub(crate) is_renewing: AtomicBool,
    /// The successor is ready: it takes no more requests, and why it has one.
    pub(crate) over: OnceLock<CloseReason>,
    pub(crate) announced: Mutex<Announced>,
}

/// What the peer said of a connection with its last response.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Announced {
    pub(crate) timeout: Option<Duration>,
    /// The number of the last request that it takes.
    pub(crate) last_request: Option<u64>,
}

impl fmt::Debug for H1Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}

/// The waker of an idle connection, made once.
pub(crate) struct IdleWaker {
    mark: Arc<IdleMark>,
    waker: Waker,
}

/// What it does: it only marks the connection and tells its origin.
struct IdleMark {
    woken: AtomicBool,
    home: Weak<dyn Home>,
}

impl IdleWaker {
    pub(crate) fn new(home: Weak<dyn Home>) -> Self {
        let mark = Arc::new(IdleMark {
            woken: AtomicBool::new(false),
            home,
        });
        Self {
            waker: Waker::from(mark.clone()),
            mark,
        }
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.mark.woken.load(Ordering::SeqCst)
    }

    /// It forgets that it was woken: what happens from here on is news.
    pub(crate) fn rearmed(&self) -> &Waker {
        // As a rule it was not, and a load is cheaper.
        if self.is_woken() {
            self.mark.woken.store(false, Ordering::SeqCst);
        }
        &self.waker
    }
}

impl Wake for IdleMark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::SeqCst)
            && let Some(home) = self.home.upgrade()
        {
            home.idle_woken();
        }
    }
}

/// An established HTTP/2 connection.
pub(crate) struct H2Conn {
    pub(crate) handle: Http2,
    pub(crate) info: ConnectionInfo,
    /// Why it takes no new streams; the first reason counts.
    pub(crate) why: Arc<OnceLock<CloseReason>>,
    /// The peer's SETTINGS have arrived, or never will.
    pub(crate) settled: Arc<Notify>,
    pub(crate) term: Term,
    pub(crate) tenure: Arc<Tenure>,
    /// Streams given out so far. Changed under the lock of the books.
    given: AtomicU64,
    /// By the janitor's clock.
    idle_since: AtomicU64,
    base: Instant,
}

impl fmt::Debug for H2Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}

impl H2Conn {
    pub(crate) fn new(
        handle: Http2,
        info: ConnectionInfo,
        term: Term,
        tenure: Arc<Tenure>,
        janitor: &Janitor,
    ) -> Self {
        Self {
            idle_since: AtomicU64::new(janitor.nanos(info.ready_at())),
            base: janitor.base(),
            tenure,
            given: AtomicU64::new(0),
            handle,
            info,
            why: Arc::default(),
            settled: Arc::default(),
            term,
        }
    }

    /// Streams given out so far.
    pub(crate) fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    /// A look at its term is due.
    pub(crate) fn is_near_its_end(&self) -> bool {
        self.given() >= self.term.renew_after()
    }

    /// It has given as many streams as it may.
    pub(crate) fn is_spent(&self) -> bool {
        self.term
            .max_requests()
            .is_some_and(|most| self.given() >= most)
    }

    /// Since so many nanoseconds of the janitor's.
    pub(crate) fn set_idle_since(&self, nanos: u64) {
        self.idle_since.store(nanos, Ordering::Release);
    }

    /// How long it has been without a stream.
    pub(crate) fn idle_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.idle_since())
    }

    /// The end of its last stream, or its birth.
    pub(crate) fn idle_since(&self) -> Instant {
        self.base + Duration::from_nanos(self.idle_since.load(Ordering::Acquire))
    }
}

impl Multiplexed for Arc<H2Conn> {
    fn try_take(&self) -> Option<Taken> {
        if self.is_spent() {
            return None;
        }
        let taken = self.handle.slots().try_acquire()?;
        // Under the lock of the books there is nobody else.
        self.given.store(self.given() + 1, Ordering::Relaxed);
        Some(taken)
    }

    fn in_use(&self) -> u32 {
        self.handle.slots().in_use()
    }

    fn is_settled(&self) -> bool {
        self.handle.has_settings()
    }

    fn is_reserved(&self) -> bool {
        self.info.early().is_some()
    }

    fn pulse(&self) -> Pulse {
        if !self.handle.slots().is_suspect() {
            Pulse::Alive
        } else if self.handle.is_late() {
            Pulse::Late
        } else {
            Pulse::Suspect
        }
    }
}

/// A connection, or a stream of one, for one request.
#[derive(Debug)]
pub(crate) enum Lease {
    H1(H1Lease),
    H2(H2Lease),
}

impl Lease {
    /// It is an HTTP/2 connection whose peer has not told its limits yet.
    pub(crate) fn is_unsettled(&self) -> bool {
        matches!(self, Self::H2(lease) if !lease.conn.handle.has_settings())
    }

    /// Gives it back as dropping it does; `at` is now.
    pub(crate) fn give_back(self, at: Instant) {
        match self {
            Self::H1(lease) => lease.give_back(at),
            Self::H2(lease) => drop(lease),
        }
    }

    /// Closes the connection for this reason, if it is the lease's alone.
    pub(crate) fn close(self, why: CloseReason) {
        match self {
            Self::H1(lease) => lease.close(why),
            Self::H2(lease) => drop(lease),
        }
    }

    /// Whom to tell that the request on it got no answer in time.
    pub(crate) fn doubter(&self) -> Option<Doubter> {
        match self {
            Self::H1(_) => None,
            Self::H2(lease) => Some(lease.conn.handle.doubter()),
        }
    }

    pub(crate) fn info(&self) -> &ConnectionInfo {
        match self {
            Self::H1(lease) => &lease.conn().info,
            Self::H2(lease) => &lease.conn.info,
        }
    }
}

/// An HTTP/1.1 connection for one request. Dropped, it goes back if its response was read to the
/// end, and is closed if not.
pub(crate) struct H1Lease {
    // `None` only while it is being dropped or taken apart.
    held: Option<(Box<H1Conn>, Arc<dyn Home>)>,
}

impl fmt::Debug for H1Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("H1Lease").field(self.conn()).finish()
    }
}

impl H1Lease {
    pub(crate) fn new(conn: Box<H1Conn>, home: Arc<dyn Home>) -> Self {
        Self {
            held: Some((conn, home)),
        }
    }

    fn conn(&self) -> &H1Conn {
        let (conn, _) = self.held.as_ref().expect("taken only by value");
        conn
    }

    pub(crate) fn http1(&mut self) -> &mut Http1<Stream> {
        let (conn, _) = self.held.as_mut().expect("taken only by value");
        &mut conn.http1
    }

    /// Reads what is left of the response body, in the background and within the bounds of the pool, so
    /// that the connection can be kept; closes it if that is not possible.
    pub(crate) fn drain(self) {
        let (_, home) = self.held.as_ref().expect("taken only by value");
        home.clone().drain(self);
    }

    /// Gives it back as dropping it does; `at` is now.
    pub(crate) fn give_back(mut self, at: Instant) {
        self.release(at);
    }

    fn release(&mut self, at: Instant) {
        let Some((conn, home)) = self.held.take() else {
            return;
        };
        match conn.http1.reusable() {
            Ok(()) => home.check_in(conn, at),
            Err(why) => home.close(conn, why),
        }
    }

    /// Closes it for this reason.
    pub(crate) fn close(mut self, why: CloseReason) {
        if let Some((conn, home)) = self.held.take() {
            home.close(conn, why);
        }
    }

    /// Takes the byte stream out of HTTP.
    pub(crate) fn into_upgraded(mut self) -> UpgradedParts {
        let (conn, home) = self.held.take().expect("taken only by value");
        let conn = *conn;
        // It takes no more requests, and gets no successor.
        let _ = conn.tenure.over.set(CloseReason::Upgraded);
        home.clone().upgraded();
        let (mut stream, left_over, attendant) = conn.http1.into_parts();
        stream.write_through();
        UpgradedParts {
            stream,
            left_over,
            attendant,
            lease: UpgradedLease {
                seat: Some(conn.seat),
                home,
            },
        }
    }
}

impl Drop for H1Lease {
    fn drop(&mut self) {
        if let Some((conn, home)) = self.held.take_if(|_| std::thread::panicking()) {
            // Perhaps it was the transport that panicked: it is not asked anything again.
            home.close(conn, CloseReason::Failed);
        }
        if self.held.is_some() {
            self.release(now());
        }
    }
}

/// What is left of a connection when HTTP is over.
pub(crate) struct UpgradedParts {
    pub(crate) stream: Stream,
    /// Read already, of the next protocol.
    pub(crate) left_over: Bytes,
    /// Looks after the socket while something is sent.
    pub(crate) attendant: Option<Box<dyn AttendUpload>>,
    pub(crate) lease: UpgradedLease,
}

/// The place of an upgraded connection under the limits.
pub(crate) struct UpgradedLease {
    // `None` only while it is being dropped.
    seat: Option<Seat>,
    home: Arc<dyn Home>,
}

impl fmt::Debug for UpgradedLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpgradedLease").finish_non_exhaustive()
    }
}

impl Drop for UpgradedLease {
    fn drop(&mut self) {
        if let Some(seat) = self.seat.take() {
            self.home.clone().upgrade_ended(seat);
        }
    }
}

/// A stream slot of an HTTP/2 connection.
pub(crate) struct H2Lease {
    conn: Arc<H2Conn>,
    // `None` only while it is being dropped.
    home: Option<Arc<dyn Home>>,
}

impl fmt::Debug for H2Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("H2Lease").field(&self.conn).finish()
    }
}

impl H2Lease {
    /// The slot must have been taken.
    pub(crate) fn new(conn: Arc<H2Conn>, home: Arc<dyn Home>) -> Self {
        let home = Some(home);
        Self { conn, home }
    }

    /// What the request is sent with. The lease goes with it.
    pub(crate) fn handle(&self) -> Http2 {
        self.conn.handle.clone()
    }

    /// Tells that its peer let too much time pass.
    pub(crate) fn doubt(&self) {
        self.conn.handle.doubter().doubt();
    }

    pub(super) fn conn(&self) -> &Arc<H2Conn> {
        &self.conn
    }
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        // A first lease that sent nothing must not hold the handshake's end back for ever.
        self.conn.handle.open();
        let left = self.conn.handle.slots().release();
        if let Some(home) = self.home.take() {
            home.released(&self.conn, left);
        }
    }
}
