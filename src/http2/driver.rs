//! The connection: its settings, its one task, and the handle that requests use.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use tokio::sync::SetOnce;
use tokio::time::{Sleep, sleep, sleep_until};

use crate::clock::{deadline, now};
use crate::close_reason::CloseReason;
use crate::error::{Error, ErrorKind};
use crate::http_head::HeadLimits;
use crate::io::Carrier;
use crate::timing::Phase;

use super::abandoned::{Inbox, Orphans};
use super::bell::Listener;
use super::fail;
use super::frames::GoAway;
use super::health::{Advice, Health, Sight};
use super::ledger::Ledger;
use super::streams::StreamSlots;
use super::tap::{MAX_LATE_FRAMES, Tap, TapState};

/// Streams assumed to be allowed until the peer's SETTINGS arrive (RFC 9113 §6.5.2 recommends at
/// least 100 to servers). h2's own assumption is unlimited, which gets an early burst refused.
const STREAMS_BEFORE_SETTINGS: u32 = 100;
/// The largest response head that callers get.
pub(crate) const MAX_HEAD: HeadLimits = HeadLimits::DEFAULT;
/// The largest one that h2 decodes: wider than ours, so that ours is the one that speaks. h2's
/// default of 16 MiB is an invitation.
const MAX_HEADER_LIST: u32 = 256 * 1024;
/// h2 charges every small unread DATA frame 256 bytes minus its length against this budget, and
/// closes the connection when it is spent: some hundred tokens by default, and those of streams that were
/// reset are charged for ever. What is unread has bounds of ours, for each stream ([`Ledger`]).
const DATA_FRAME_BUDGET: usize = usize::MAX;
/// Resets remembered, so that frames which were under way do not count as errors. h2's 50 for one
/// second are forgotten too early when many requests are cancelled.
const REMEMBERED_RESETS: usize = 1000;
const RESET_MEMORY: Duration = Duration::from_secs(5);
/// Abandoned streams that wait for their reset: a connection with so many is replaced.
const MANY_ORPHANS: usize = 16;
/// How long a new connection waits for its first request, so that the end of the handshake, the preface
/// and the request leave in one write.
const FIRST_REQUEST: Duration = Duration::from_millis(50);
/// Written data that h2 buffers per stream.
const SEND_BUFFER: usize = 1024 * 1024;

/// A peer of which something was heard within that time is not doubted.
const HEARD_LATELY: Duration = Duration::from_millis(100);

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
    /// The peer says that it takes no new streams.
    fn going_away(&self, goaway: GoAway);
    /// The peer's SETTINGS have arrived.
    fn settled(&self);
    /// The answer to a PING is late: nobody should count on the connection.
    fn late(&self);
    /// The answer came after all, or in time: streams may be opened again.
    fn trusted(&self);
    /// It takes no new streams, for a reason of its own.
    fn refuses(&self);
    /// It comes near a limit on what a connection may have in its life, or reset: it needs a successor.
    fn worn(&self);
}

/// How long a connection waits for its peer.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    /// The shortest round trip that is known of the path.
    pub(crate) rtt: Option<Duration>,
    /// The peer's origin has asked for calm: no PINGs.
    pub(crate) calm: Arc<AtomicBool>,
    /// For the peer's SETTINGS (RFC 9113 §3.4: its first frame).
    pub(crate) settings: Duration,
}

/// What the handles of a connection share with its task.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) slots: Arc<StreamSlots>,
    pub(crate) tap: Arc<TapState>,
    pub(super) ledger: Arc<Ledger>,
    /// Its bell wakes the task when it shall begin, end or ask the peer, too.
    pub(super) inbox: Inbox,
    kill: AtomicBool,
    /// A request ran out of time.
    doubted: AtomicBool,
    /// The answer to a PING is late.
    late: AtomicBool,
    /// h2 takes no new streams.
    refuses: AtomicBool,
    /// h2 has the peer's first SETTINGS, and their stream limit holds.
    is_settled: AtomicBool,
    /// The same, or it will never have them.
    settled: SetOnce<()>,
}

impl Shared {
    /// The peer is late with its answer to a PING.
    pub(super) fn is_late(&self) -> bool {
        self.late.load(Ordering::Acquire)
    }

    /// Why we ended the connection ourselves, if we did.
    pub(super) fn own_end(&self) -> Option<&'static str> {
        if self.kill.load(Ordering::Acquire) {
            Some(fail::SHUT_DOWN)
        } else {
            self.is_late().then_some(fail::UNRESPONSIVE)
        }
    }

    /// Lets the task begin, see [`Http2::open`].
    pub(super) fn open(&self) {
        if !self.tap.is_open() {
            self.tap.open();
            self.inbox.bell.wake();
        }
    }

    /// A request was told that there are no new streams: nobody else shall come here.
    pub(super) fn refuse(&self) {
        self.slots.suspect();
        self.refuses.store(true, Ordering::Release);
        self.inbox.bell.wake();
    }

    /// Ready once the peer's SETTINGS are known, or the connection has ended.
    pub(super) async fn settled(&self) {
        self.settled.wait().await;
    }
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
        self.shared.open();
    }

    /// The peer's SETTINGS have arrived, and what they say holds.
    pub(crate) fn has_settings(&self) -> bool {
        self.shared.is_settled.load(Ordering::Acquire)
    }

    /// The peer is late with its answer to a PING.
    pub(crate) fn is_late(&self) -> bool {
        self.shared.is_late()
    }

    /// A way to doubt the peer that does not keep the connection alive.
    pub(crate) fn doubter(&self) -> Doubter {
        Doubter(Arc::downgrade(&self.shared))
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
            shared.inbox.bell.wake();
        }
    }
}

/// Tells a connection that a request got no answer in time: the peer is asked whether it is still there.
#[derive(Clone, Debug)]
pub(crate) struct Doubter(Weak<Shared>);

impl Doubter {
    pub(crate) fn doubt(&self) {
        if let Some(shared) = self.0.upgrade() {
            // Just now it was heard of.
            if deadline(shared.tap.heard(), HEARD_LATELY) > now() {
                return;
            }
            // At once: the next request must not follow before the task has had its turn.
            shared.slots.suspect();
            shared.doubted.store(true, Ordering::Release);
            shared.inbox.bell.wake();
        }
    }
}

/// Drives one connection; [`run`](Self::run) is its task.
#[derive(Debug)]
pub(crate) struct Driver<S: Carrier> {
    connection: Connection<Tap<S>, Bytes>,
    shared: Arc<Shared>,
    orphans: Orphans,
    /// The window of the connection as it is set.
    window: u32,
}

impl<S: Carrier> Drop for Driver<S> {
    fn drop(&mut self) {
        self.shared.inbox.close();
        let _ = self.shared.settled.set(());
    }
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
    let ledger = Arc::new(Ledger::new(
        options.stream_window,
        options.connection_window,
    ));
    let (tap, state) = Tap::new(io, slots.clone(), ledger.clone());
    let (send, connection) = Builder::new()
        .enable_push(false)
        .initial_max_send_streams(streams as usize)
        .initial_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .reset_stream_duration(RESET_MEMORY)
        .max_local_error_reset_streams(Some(MAX_LATE_FRAMES as usize))
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
        ledger,
        inbox: Inbox::default(),
        kill: AtomicBool::new(false),
        doubted: AtomicBool::new(false),
        late: AtomicBool::new(false),
        refuses: AtomicBool::new(false),
        is_settled: AtomicBool::new(false),
        settled: SetOnce::new(),
    });
    let handle = Http2 {
        send,
        shared: shared.clone(),
    };
    let driver = Driver {
        connection,
        shared,
        orphans: Orphans::default(),
        window: options.connection_window,
    };
    Ok((handle, driver))
}

impl<S: Carrier> Driver<S> {
    /// Drives the connection to its end.
    pub(crate) async fn run(
        mut self: Box<Self>,
        watch: &impl Watch,
        patience: Patience,
    ) -> CloseReason {
        let shared = self.shared.clone();
        let settings_until = deadline(now(), patience.settings);
        let mut listener = Listener::new();
        {
            let mut first = pin!(sleep(FIRST_REQUEST));
            std::future::poll_fn(|cx| {
                listener.listen(&shared.inbox.bell, cx.waker());
                // A request that has the connection and is not polled must not hold up those who wait for
                // the peer's first word.
                if !shared.tap.is_open() && first.as_mut().poll(cx).is_ready() {
                    shared.tap.open();
                }
                if shared.tap.is_open() {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
        }
        let mut seen = Seen::default();
        let mut pulse = Pulse::new(patience);
        let mut alarm = pin!(sleep_until(settings_until.into()));
        let result = std::future::poll_fn(|cx| {
            // Before anything is looked at that it may ring for.
            listener.listen(&shared.inbox.bell, cx.waker());
            if shared.kill.load(Ordering::Acquire) {
                return Poll::Ready(Err(CloseReason::PoolClosed));
            }
            // Before h2 is polled, so that a PING leaves in one write with the request that it is for.
            pulse.ask(&mut self.connection, alarm.as_ref(), &shared, watch);
            let polled = Pin::new(&mut self.connection).poll(cx);
            self.cut_off();
            self.tell(&mut seen, watch);
            if let Poll::Ready(result) = polled {
                return Poll::Ready(Ok(result));
            }
            self.tend(cx, &mut seen, watch);
            pulse.listen(cx, &shared, watch);
            if !seen.settings {
                return match alarm.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Err(CloseReason::Failed)),
                    Poll::Pending => Poll::Pending,
                };
            }
            match pulse.watch(cx, alarm.as_mut(), &shared, watch) {
                Poll::Ready(()) => Poll::Ready(Err(CloseReason::Unresponsive)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        match result {
            Err(why) => why,
            Ok(_) if shared.tap.goaway().is_some() => CloseReason::GoAway,
            Ok(Err(e)) if e.is_go_away() && e.is_library() => CloseReason::Failed,
            Ok(_) => CloseReason::TransportLost,
        }
    }

    /// Cuts off who has left too much unread, and lets the connection's window grow by what the others have.
    fn cut_off(&mut self) {
        let ledger = &self.shared.ledger;
        while ledger.is_over() {
            let cut = ledger.enter().unread.cut();
            if let Some(stream) = cut {
                stream.cut();
            }
        }
        let window = ledger.window();
        if window != self.window {
            self.window = window;
            self.connection.set_target_window_size(window);
        }
    }

    /// Sees to streams whose requests are gone.
    fn tend(&mut self, cx: &mut Context<'_>, seen: &mut Seen, watch: &impl Watch) {
        let shared = &self.shared;
        self.orphans.tend(cx, &shared.inbox, &shared.ledger);
        let is_worn = shared.tap.is_worn() || self.orphans.len() >= MANY_ORPHANS;
        if is_worn && !seen.worn {
            seen.worn = true;
            watch.worn();
        }
        let slots = &shared.slots;
        if self.orphans.len() > 0
            && slots.is_retired()
            && slots.in_use() as usize <= self.orphans.len()
        {
            // Nobody else is on it: its end needs no patience.
            self.orphans.release_all(&shared.ledger);
        }
    }

    /// Tells the pool what the last poll changed.
    fn tell(&self, seen: &mut Seen, watch: &impl Watch) {
        let tap = &self.shared.tap;
        // Set to 0 and back in one read it has not changed for h2, but the tap has lowered it.
        let limits_seen = tap.limits_seen();
        // h2 may take it later than the tap has seen it, and is asked until then.
        if tap.has_settings() && seen.limit != Some((tap.limit(), limits_seen)) {
            let limit = self.connection.max_concurrent_send_streams();
            let limit = u32::try_from(limit).unwrap_or(u32::MAX);
            if seen.limit != Some((limit, limits_seen)) {
                seen.limit = Some((limit, limits_seen));
                watch.limit_changed(limit);
            }
        }
        // Only now is it known how many streams there may be: nobody shall open a connection for want of them.
        if !seen.settings && tap.has_settings() {
            seen.settings = true;
            self.shared.is_settled.store(true, Ordering::Release);
            let _ = self.shared.settled.set(());
            watch.settled();
        }
        if !seen.goaway
            && let Some(goaway) = tap.goaway()
        {
            seen.goaway = true;
            watch.going_away(goaway);
        }
        // After GOAWAY, which may be why.
        if !seen.refuses && self.shared.refuses.load(Ordering::Acquire) {
            seen.refuses = true;
            watch.refuses();
        }
    }
}

/// What the pool has been told.
#[derive(Default)]
struct Seen {
    settings: bool,
    /// And how often the peer had set it by then.
    limit: Option<(u32, u32)>,
    goaway: bool,
    refuses: bool,
    worn: bool,
}

fn trust(shared: &Shared, watch: &impl Watch) {
    shared.late.store(false, Ordering::Release);
    shared.slots.trust();
    watch.trusted();
}

/// What a task has of its alarm.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Alarm {
    Off,
    Set,
    /// It was polled since it was set, and wakes the task, which is always the same.
    Armed,
}

/// Asks the peer whether it is there, as [`Health`] advises.
struct Pulse {
    health: Health,
    calm: Arc<AtomicBool>,
    /// From the first PING on: h2 looks for more of them at every turn.
    pings: Option<PingPong>,
    alarm: Alarm,
    /// The answer is overdue; the socket is read once more before that counts.
    is_overdue: bool,
}

impl Pulse {
    fn new(patience: Patience) -> Self {
        Self {
            health: Health::new(patience.rtt),
            calm: patience.calm,
            pings: None,
            // Until SETTINGS have come it rings for them.
            alarm: Alarm::Off,
            is_overdue: false,
        }
    }

    fn sight(&self, shared: &Shared, is_doubted: bool) -> Sight {
        Sight {
            now: now(),
            heard: shared.tap.heard().max(shared.tap.moved()),
            progress: shared.tap.progress(),
            has_streams: shared.slots.in_use() > 0,
            is_doubted,
            is_blocked: shared.tap.is_blocked(),
            may_ping: !self.calm.load(Ordering::Relaxed),
        }
    }

    /// The alarm will ring: until then there is nothing to ask, since whatever is heard meanwhile only puts it off. Not
    /// so once a PING is forgiven that had put it off for longer.
    fn will_ring(&self, alarm: Pin<&Sleep>, shared: &Shared) -> bool {
        self.alarm == Alarm::Armed
            && !alarm.is_elapsed()
            && !self.health.is_forgiven(shared.tap.progress())
    }

    /// Queues a PING if it is time for one.
    fn ask<S: Carrier>(
        &mut self,
        connection: &mut Connection<Tap<S>, Bytes>,
        alarm: Pin<&Sleep>,
        shared: &Shared,
        watch: &impl Watch,
    ) {
        let is_doubted =
            shared.doubted.load(Ordering::Relaxed) && shared.doubted.swap(false, Ordering::AcqRel);
        if self.health.is_waiting() {
            return;
        }
        if !is_doubted && (self.will_ring(alarm, shared) || shared.slots.in_use() == 0) {
            return;
        }
        let sight = self.sight(shared, is_doubted);
        let is_due = self.health.advise(sight) == Advice::Ping;
        if is_due && self.pings.is_none() {
            self.pings = connection.ping_pong();
        }
        if is_due
            && let Some(pings) = &mut self.pings
            && pings.send_ping(Ping::opaque()).is_ok()
        {
            self.health.pinged(sight.now);
            shared.slots.suspect();
            self.alarm = Alarm::Off;
        } else if is_doubted {
            // It has been asked often enough.
            shared.slots.trust();
            watch.trusted();
        }
    }

    /// Looks for the answer.
    fn listen(&mut self, cx: &mut Context<'_>, shared: &Shared, watch: &impl Watch) {
        if !self.health.is_waiting() {
            return;
        }
        if let Some(pings) = &mut self.pings
            && let Poll::Ready(Ok(_)) = pings.poll_pong(cx)
        {
            self.health.answered();
            self.is_overdue = false;
            self.alarm = Alarm::Off;
            trust(shared, watch);
        } else if shared.slots.is_suspect() && self.health.is_proven(shared.tap.heard()) {
            trust(shared, watch);
        }
    }

    /// Ready when the peer is given up.
    fn watch(
        &mut self,
        cx: &mut Context<'_>,
        mut alarm: Pin<&mut Sleep>,
        shared: &Shared,
        watch: &impl Watch,
    ) -> Poll<()> {
        loop {
            if self.will_ring(alarm.as_ref(), shared) {
                return Poll::Pending;
            }
            if self.health.is_forgiven(shared.tap.progress()) {
                self.alarm = Alarm::Off;
            }
            if self.alarm != Alarm::Off {
                if alarm.as_mut().poll(cx).is_pending() {
                    // A task that has used its turn up is told so, and is not in the timer's books.
                    self.alarm = if tokio::task::coop::has_budget_remaining() {
                        Alarm::Armed
                    } else {
                        Alarm::Set
                    };
                    return Poll::Pending;
                }
                self.alarm = Alarm::Off;
            }
            if shared.slots.in_use() == 0 && !self.health.is_waiting() {
                return Poll::Pending;
            }
            let at = match self.health.advise(self.sight(shared, false)) {
                Advice::Wait(None) => return Poll::Pending,
                Advice::Wait(Some(at)) => at,
                Advice::Ping => {
                    // Queued at the next turn, before h2 is polled.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Advice::Late => {
                    shared.late.store(true, Ordering::Release);
                    watch.late();
                    continue;
                }
                Advice::Dead if self.is_overdue => return Poll::Ready(()),
                Advice::Dead => {
                    // We may be what was late: an answer that has arrived must be read first.
                    self.is_overdue = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            };
            self.alarm = Alarm::Set;
            alarm.as_mut().reset(at.into());
        }
    }
}
