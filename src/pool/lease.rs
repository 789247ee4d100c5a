//! What a request holds of the pool, given back on drop wherever that happens.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::close_reason::CloseReason;
use crate::connection::{ConnectionInfo, Stream};
use crate::http1::Http1;
use crate::http2::{Http2, Released, Taken};

use super::capacity::Permit;
use super::state::Multiplexed;

/// Where leases come from and go back to.
pub(crate) trait Home: Send + Sync {
    /// An HTTP/1.1 connection is free again.
    fn check_in(self: Arc<Self>, conn: H1Conn);
    /// An HTTP/1.1 connection cannot be used again.
    fn close(self: Arc<Self>, conn: H1Conn, why: CloseReason);
    /// A stream is over.
    fn released(self: Arc<Self>, conn: &Arc<H2Conn>, left: Released);
    /// An HTTP/1.1 connection left HTTP for good; its place under the limits is still taken.
    fn upgraded(self: Arc<Self>, info: &ConnectionInfo);
    /// What was upgraded is closed.
    fn upgrade_ended(self: Arc<Self>, info: &ConnectionInfo, permit: Permit);
    /// Something happened on an idle connection.
    fn idle_woken(self: Arc<Self>);
}

/// An established HTTP/1.1 connection.
pub(crate) struct H1Conn {
    pub(crate) http1: Box<Http1<Stream>>,
    pub(crate) info: ConnectionInfo,
    pub(crate) permit: Permit,
    pub(crate) wake: Arc<IdleWake>,
    /// When it takes no new requests.
    pub(crate) retire_at: Option<Instant>,
}

impl fmt::Debug for H1Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}

/// The waker of an idle connection: it only marks it and tells its origin.
pub(crate) struct IdleWake {
    woken: AtomicBool,
    home: Weak<dyn Home>,
}

impl IdleWake {
    pub(crate) fn new(home: Weak<dyn Home>) -> Arc<Self> {
        Arc::new(Self {
            woken: AtomicBool::new(false),
            home,
        })
    }

    pub(crate) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(self.clone())
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst)
    }

    pub(crate) fn reset(&self) {
        self.woken.store(false, Ordering::SeqCst);
    }
}

impl Wake for IdleWake {
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
    pub(crate) retire_at: Option<Instant>,
    idle_since: AtomicU64,
}

impl fmt::Debug for H2Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}

impl H2Conn {
    pub(crate) fn new(handle: Http2, info: ConnectionInfo, retire_at: Option<Instant>) -> Self {
        Self {
            handle,
            info,
            why: Arc::default(),
            settled: Arc::default(),
            retire_at,
            idle_since: AtomicU64::new(0),
        }
    }

    pub(crate) fn set_idle_since(&self, now: Instant) {
        let age = now.saturating_duration_since(self.info.ready_at());
        let nanos = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        self.idle_since.store(nanos, Ordering::SeqCst);
    }

    /// The end of its last stream, or its birth.
    pub(crate) fn idle_since(&self) -> Instant {
        self.info.ready_at() + Duration::from_nanos(self.idle_since.load(Ordering::SeqCst))
    }
}

impl Multiplexed for Arc<H2Conn> {
    fn try_take(&self) -> Option<Taken> {
        self.handle.slots().try_acquire()
    }

    fn in_use(&self) -> u32 {
        self.handle.slots().in_use()
    }

    fn is_settled(&self) -> bool {
        self.handle.has_settings()
    }
}

/// A connection, or a stream of one, for one request.
#[derive(Debug)]
pub(crate) enum Lease {
    H1(H1Lease),
    H2(H2Lease),
}

impl Lease {
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
    conn: Option<H1Conn>,
    home: Arc<dyn Home>,
}

impl fmt::Debug for H1Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("H1Lease").field(&self.conn).finish()
    }
}

impl H1Lease {
    pub(crate) fn new(conn: H1Conn, home: Arc<dyn Home>) -> Self {
        Self {
            conn: Some(conn),
            home,
        }
    }

    fn conn(&self) -> &H1Conn {
        self.conn.as_ref().expect("taken only by value")
    }

    pub(crate) fn http1(&mut self) -> &mut Http1<Stream> {
        let conn = self.conn.as_mut().expect("taken only by value");
        &mut conn.http1
    }

    /// Closes it for this reason.
    pub(crate) fn close(mut self, why: CloseReason) {
        if let Some(conn) = self.conn.take() {
            self.home.clone().close(conn, why);
        }
    }

    /// Takes the byte stream out of HTTP. The lease that remains holds its place under the limits.
    pub(crate) fn into_upgraded(mut self) -> (Stream, Bytes, UpgradedLease) {
        let conn = self.conn.take().expect("taken only by value");
        let home = self.home.clone();
        home.clone().upgraded(&conn.info);
        let (mut stream, left_over) = conn.http1.into_parts();
        stream.write_through();
        let lease = UpgradedLease {
            held: Some((conn.info, conn.permit)),
            home,
        };
        (stream, left_over, lease)
    }
}

impl Drop for H1Lease {
    fn drop(&mut self) {
        let Some(conn) = self.conn.take() else { return };
        let home = self.home.clone();
        match conn.http1.reusable() {
            Ok(()) => home.check_in(conn),
            Err(why) => home.close(conn, why),
        }
    }
}

/// The place of an upgraded connection under the limits.
pub(crate) struct UpgradedLease {
    held: Option<(ConnectionInfo, Permit)>,
    home: Arc<dyn Home>,
}

impl fmt::Debug for UpgradedLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpgradedLease").finish_non_exhaustive()
    }
}

impl Drop for UpgradedLease {
    fn drop(&mut self) {
        if let Some((info, permit)) = self.held.take() {
            self.home.clone().upgrade_ended(&info, permit);
        }
    }
}

/// A stream slot of an HTTP/2 connection.
pub(crate) struct H2Lease {
    conn: Arc<H2Conn>,
    pub(crate) handle: Http2,
    home: Arc<dyn Home>,
}

impl fmt::Debug for H2Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("H2Lease").field(&self.conn).finish()
    }
}

impl H2Lease {
    /// The slot must have been taken.
    pub(crate) fn new(conn: Arc<H2Conn>, home: Arc<dyn Home>) -> Self {
        Self {
            handle: conn.handle.clone(),
            conn,
            home,
        }
    }
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        // A first lease that sent nothing must not hold the handshake's end back for ever.
        self.handle.open();
        let left = self.conn.handle.slots().release();
        self.home.clone().released(&self.conn, left);
    }
}
