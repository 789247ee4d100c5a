//! The connection: its settings, its one task, and the handle that requests use.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::close_reason::CloseReason;
use crate::error::{Error, ErrorKind};
use crate::http_head::HeadLimits;
use crate::io::Carrier;
use crate::timing::Phase;

use super::streams::StreamSlots;
use super::tap::{Tap, TapState};

/// Streams assumed to be allowed until the peer's SETTINGS arrive (RFC 9113 §6.5.2 recommends at
/// least 100 to servers). h2's own assumption is unlimited, which gets an early burst refused.
const STREAMS_BEFORE_SETTINGS: u32 = 100;
/// Bodies up to this size are handed to h2 with their HEADERS, so that both leave in one write:
/// the initial window that RFC 9113 §6.9.2 gives every stream.
pub(crate) const SEND_AT_ONCE: usize = 65_535;
/// The largest response head that callers get.
pub(crate) const MAX_HEAD: HeadLimits = HeadLimits::DEFAULT;
/// The largest one that h2 decodes: wider than ours, so that ours is the one that speaks. h2's
/// default of 16 MiB is an invitation.
const MAX_HEADER_LIST: u32 = 256 * 1024;
/// h2 charges every small unread DATA frame 256 bytes minus its length against this budget, and
/// closes the connection when it is spent. Its default (half the window) is spent by a reader
/// that stalls for some hundred tokens. 64 MiB bound the memory of unread frames all the same.
const DATA_FRAME_BUDGET: usize = 64 * 1024 * 1024;
/// Resets remembered, so that frames which were under way do not count as errors. h2's 50 for one
/// second are forgotten too early when many requests are cancelled.
const REMEMBERED_RESETS: usize = 1000;
const RESET_MEMORY: Duration = Duration::from_secs(5);
/// Late frames on forgotten streams in the life of a connection until h2 gives up on it.
const MAX_LOCAL_RESETS: usize = 100_000;
/// How long a new connection waits for its first request, so that the end of the handshake, the preface
/// and the request leave in one write.
const FIRST_REQUEST: Duration = Duration::from_millis(50);
/// Written data that h2 buffers per stream.
const SEND_BUFFER: usize = 1024 * 1024;

/// Options of HTTP/2 connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Http2Options {
    /// Bytes that a peer may send on one stream before we read. Default 2 MiB: no ramp-up round
    /// trips for an ordinary response.
    pub stream_window: u32,
    /// Bytes that a peer may send on one connection before we read. Default 16 MiB.
    pub connection_window: u32,
    /// Connections to one origin. Default 4: a further one is opened when streams run short.
    pub max_connections_per_origin: usize,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            stream_window: 2 * 1024 * 1024,
            connection_window: 16 * 1024 * 1024,
            max_connections_per_origin: 4,
        }
    }
}

impl Http2Options {
    /// Sets the receive window of a stream, at most 2^31 - 1.
    pub fn stream_window(mut self, bytes: u32) -> Self {
        self.stream_window = bytes;
        self
    }

    /// Sets the receive window of a connection, at most 2^31 - 1.
    pub fn connection_window(mut self, bytes: u32) -> Self {
        self.connection_window = bytes;
        self
    }

    /// Sets how many connections one origin may have, at least 1.
    pub fn max_connections_per_origin(mut self, n: usize) -> Self {
        self.max_connections_per_origin = n;
        self
    }

    /// # Errors
    /// Invalid: a window beyond 2^31 - 1 or below 65,535, no connection allowed.
    pub(crate) fn check(&self) -> Result<(), Error> {
        const MAX: u32 = (1 << 31) - 1;
        for (name, window) in [
            ("stream_window", self.stream_window),
            ("connection_window", self.connection_window),
        ] {
            if !(65_535..=MAX).contains(&window) {
                return Err(Error::invalid(format!(
                    "http2 {name} {window} is not between 65535 and {MAX}"
                )));
            }
        }
        if self.max_connections_per_origin == 0 {
            return Err(Error::invalid("http2 max_connections_per_origin is 0"));
        }
        Ok(())
    }
}

/// What the pool wants to know of a connection. Called from the connection's task.
pub(crate) trait Watch: Sync {
    /// The peer changed its stream limit, or it became known.
    fn limit_changed(&self, limit: u32);
    /// The connection takes no new streams from now on.
    fn retired(&self, why: CloseReason);
    /// The peer's SETTINGS have arrived.
    fn settled(&self);
}

/// What the handles of a connection share with its task.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) slots: Arc<StreamSlots>,
    pub(crate) tap: Arc<TapState>,
    /// Wakes the task when it shall begin or end.
    wake: Notify,
    kill: AtomicBool,
}

/// A handle to the connection. The connection ends when the last handle and the last stream are
/// gone.
#[derive(Clone, Debug)]
pub(crate) struct Http2 {
    pub(super) send: SendRequest<Bytes>,
    pub(super) shared: Arc<Shared>,
}

impl Http2 {
    pub(crate) fn slots(&self) -> &StreamSlots {
        &self.shared.slots
    }

    /// Lets the connection's task begin: the first request is queued, or nobody is there to send
    /// one. Until then nothing leaves, so that the first request leaves with the handshake's last
    /// flight.
    pub(crate) fn open(&self) {
        if !self.shared.tap.is_open() {
            self.shared.tap.open();
            self.shared.wake.notify_one();
        }
    }

    pub(crate) fn has_settings(&self) -> bool {
        self.shared.tap.has_settings()
    }

    /// A way to end the connection that does not keep it alive.
    pub(crate) fn killer(&self) -> Killer {
        Killer(Arc::downgrade(&self.shared))
    }
}

/// Ends a connection now, whatever it carries.
#[derive(Clone, Debug)]
pub(crate) struct Killer(Weak<Shared>);

impl Killer {
    pub(crate) fn kill(&self) {
        if let Some(shared) = self.0.upgrade() {
            shared.kill.store(true, Ordering::Release);
            shared.tap.open();
            shared.wake.notify_one();
        }
    }
}

/// Drives one connection; [`run`](Self::run) is its task.
#[derive(Debug)]
pub(crate) struct Driver<S: Carrier> {
    connection: Connection<Tap<S>, Bytes>,
    shared: Arc<Shared>,
}

/// Writes the preface and our SETTINGS (RFC 9113 §3.4). Until the peer's SETTINGS arrive it may
/// open as many streams as the peer allowed on the last connection, or 100. Does not wait for the peer's: the first
/// request need not.
pub(crate) async fn connect<S: Carrier + 'static>(
    io: S,
    options: &Http2Options,
    stream_limit: Option<u32>,
) -> Result<(Http2, Driver<S>), Error> {
    let streams = stream_limit.unwrap_or(STREAMS_BEFORE_SETTINGS);
    let slots = Arc::new(StreamSlots::new(streams));
    let (tap, state) = Tap::new(io, slots.clone());
    let (send, connection) = Builder::new()
        .enable_push(false)
        .initial_max_send_streams(streams as usize)
        .initial_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .reset_stream_duration(RESET_MEMORY)
        .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        .data_frame_budget(DATA_FRAME_BUDGET)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(tap)
        .await
        .map_err(|e| {
            Error::new(ErrorKind::Protocol, "the HTTP/2 preface could not be sent")
                .at(Phase::Protocol)
                .with_source(e)
        })?;
    let shared = Arc::new(Shared {
        slots,
        tap: state,
        wake: Notify::new(),
        kill: AtomicBool::new(false),
    });
    let handle = Http2 {
        send,
        shared: shared.clone(),
    };
    Ok((handle, Driver { connection, shared }))
}

impl<S: Carrier> Driver<S> {
    /// Drives the connection to its end.
    pub(crate) async fn run(mut self, watch: &impl Watch) -> CloseReason {
        let shared = self.shared.clone();
        while !shared.tap.is_open() {
            // A request that has the connection and is not polled must not hold up those who wait for
            // the peer's first word.
            if timeout(FIRST_REQUEST, shared.wake.notified())
                .await
                .is_err()
            {
                shared.tap.open();
            }
        }
        let mut seen = Seen::default();
        let result = {
            let mut killed = pin!(shared.wake.notified());
            std::future::poll_fn(|cx| {
                if shared.kill.load(Ordering::Acquire) {
                    return Poll::Ready(None);
                }
                while killed.as_mut().poll(cx).is_ready() {
                    if shared.kill.load(Ordering::Acquire) {
                        return Poll::Ready(None);
                    }
                    killed.set(shared.wake.notified());
                }
                let polled = std::pin::Pin::new(&mut self.connection).poll(cx);
                self.tell(&mut seen, watch);
                polled.map(Some)
            })
            .await
        };
        match result {
            None => CloseReason::PoolClosed,
            Some(_) if shared.tap.has_goaway() => CloseReason::GoAway,
            Some(Err(e)) if e.is_go_away() && e.is_library() => CloseReason::Failed,
            Some(_) => CloseReason::TransportLost,
        }
    }

    /// Tells the pool what the last poll changed.
    fn tell(&self, seen: &mut Seen, watch: &impl Watch) {
        let tap = &self.shared.tap;
        if !seen.settings && tap.has_settings() {
            seen.settings = true;
            watch.settled();
        }
        if seen.settings {
            let limit = self.connection.max_concurrent_send_streams();
            let limit = u32::try_from(limit).unwrap_or(u32::MAX);
            if seen.limit != Some(limit) {
                seen.limit = Some(limit);
                watch.limit_changed(limit);
            }
        }
        if !seen.goaway && tap.has_goaway() {
            seen.goaway = true;
            watch.retired(CloseReason::GoAway);
        }
    }
}

/// What the pool has been told.
#[derive(Default)]
struct Seen {
    settings: bool,
    limit: Option<u32>,
    goaway: bool,
}
