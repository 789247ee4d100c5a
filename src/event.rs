//! What happens, said where it happens; and the two recorders that turn it into timing.
//!
//! Stamping is one path: a phase begins and ends because the code that does the work emits an
//! event, never because somebody upstairs subtracts instants. [`DialRecorder`] reads the events of
//! one dial, [`RequestRecorder`] those of one request.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};

use crate::clock::now;
use crate::sync::lock;
use crate::timing::{
    Attempt, AttemptOutcome, ConnectionTrace, ConnectionUse, DnsFacts, Phase, RequestTiming, Share,
    Span, TcpFacts, TlsFacts, WaitCause, Waited,
};

/// Told what happens to a request while it happens. Every method does nothing unless it is written.
///
/// They are called from the request's own future, so they must not block; a panic goes the way of that
/// future. A request that is tried again tells its progress from the beginning.
pub trait EventListener: Send + Sync {
    /// An informational response came before the final one, such as 103 Early Hints (RFC 8297) or 100
    /// Continue. Not 101, which is a final one. At most 32 and 64 KiB of them are accepted.
    fn informational(&self, status: StatusCode, headers: &HeaderMap) {
        let _ = (status, headers);
    }

    /// The connection took more of the request's body.
    fn request_progress(&self, progress: Progress) {
        let _ = progress;
    }

    /// The caller got more of the response's body.
    fn response_progress(&self, progress: Progress) {
        let _ = progress;
    }
}

/// How far a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of the body so far.
    pub bytes: u64,
    /// Bytes of the whole body, if that is known: by its `content-length` or by the body itself.
    pub total: Option<u64>,
}

/// A listener that options can hold: two are equal if they are the same.
#[derive(Clone)]
pub(crate) struct Listener(pub(crate) Arc<dyn EventListener>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

impl PartialEq for Listener {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Listener {}

/// Something that happened while a connection was set up.
#[derive(Debug)]
pub(crate) enum DialEvent {
    LookupStart,
    LookupEnd(DnsFacts),
    ConnectStart(SocketAddr),
    /// The winner's socket.
    TcpFacts(TcpFacts),
    /// A Unix socket is connected to: there is no address to race.
    UnixConnectStart,
    UnixConnectEnd,
    /// TCP is established, or may be with the first data, and the attempt goes on with TLS.
    Established {
        addr: SocketAddr,
        fast_open: bool,
    },
    ConnectEnd(SocketAddr, AttemptOutcome),
    ProxyStart,
    ProxyEnd,
    TlsStart,
    TlsEnd(TlsFacts),
    /// The handshake goes on, and the request may be sent as early data.
    TlsEarly,
    ProtocolStart,
    Ready,
    Failed,
}

/// Reads the events of one dial into its trace. Shared with the requests that wait for the dial,
/// so that one that gives up can say how far it had come.
#[derive(Debug)]
pub(crate) struct DialRecorder {
    trace: Mutex<ConnectionTrace>,
}

impl DialRecorder {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            trace: Mutex::new(ConnectionTrace::new(now())),
        })
    }

    pub(crate) fn emit(&self, event: DialEvent) {
        let at = now();
        let open = Some(Span {
            start: at,
            end: None,
        });
        let close = |span: &mut Option<Span>| {
            if let Some(span) = span {
                span.end.get_or_insert(at);
            }
        };
        let trace = &mut *lock(&self.trace);
        match event {
            DialEvent::LookupStart => trace.dns = open,
            DialEvent::LookupEnd(facts) => trace.dns_facts = Some(facts),
            DialEvent::ConnectStart(addr) => {
                // The look-up phase lasts until there is something to connect to.
                close(&mut trace.dns);
                trace.tcp = trace.tcp.or(open);
                trace.attempts.push(Attempt {
                    addr,
                    start: at,
                    established: None,
                    fast_open: false,
                    end: None,
                    outcome: None,
                });
                split_race(trace);
            }
            DialEvent::Established { addr, fast_open } => {
                if let Some(attempt) = running(trace, addr) {
                    attempt.established = Some(at);
                    attempt.fast_open = fast_open;
                }
                split_race(trace);
            }
            DialEvent::ConnectEnd(addr, outcome) => {
                if let Some(attempt) = running(trace, addr) {
                    attempt.end = Some(at);
                    attempt.outcome = Some(outcome);
                }
                split_race(trace);
            }
            DialEvent::TcpFacts(facts) => trace.tcp_facts = Some(facts),
            DialEvent::UnixConnectStart => trace.tcp = open,
            DialEvent::UnixConnectEnd => close(&mut trace.tcp),
            DialEvent::ProxyStart => trace.proxy = open,
            DialEvent::ProxyEnd => close(&mut trace.proxy),
            DialEvent::TlsStart => trace.tls = open,
            DialEvent::TlsEnd(facts) => {
                close(&mut trace.tls);
                trace.tls_facts = Some(facts);
            }
            DialEvent::TlsEarly => close(&mut trace.tls),
            DialEvent::ProtocolStart => trace.protocol = open,
            DialEvent::Ready => {
                close(&mut trace.protocol);
                trace.ready = Some(at);
            }
            DialEvent::Failed => {
                for span in [
                    &mut trace.dns,
                    &mut trace.tcp,
                    &mut trace.proxy,
                    &mut trace.tls,
                    &mut trace.protocol,
                ] {
                    close(span);
                }
            }
        }
    }

    /// What the winner's TCP handshake took.
    pub(crate) fn tcp_rtt(&self) -> Option<Duration> {
        lock(&self.trace).tcp_rtt
    }

    /// The trace so far.
    pub(crate) fn trace(&self) -> ConnectionTrace {
        lock(&self.trace).clone()
    }

    /// When the dial began.
    pub(crate) fn start(&self) -> Instant {
        lock(&self.trace).start
    }

    pub(crate) fn current_phase(&self) -> Phase {
        lock(&self.trace).current_phase()
    }
}

fn running(trace: &mut ConnectionTrace, addr: SocketAddr) -> Option<&mut Attempt> {
    let mut attempts = trace.attempts.iter_mut();
    attempts.find(|attempt| attempt.addr == addr && attempt.end.is_none())
}

/// Tells the tcp phase of a race from its tls phase: at the moment when the winner was established,
/// or, while there is none, the first that still runs.
fn split_race(trace: &mut ConnectionTrace) {
    let won = |attempt: &&Attempt| attempt.outcome == Some(AttemptOutcome::Won);
    let (established, goes_on) = match trace.attempts.iter().find(won) {
        Some(winner) => {
            let established = winner.established.or(winner.end);
            trace.tcp_rtt = established
                .filter(|_| !winner.fast_open)
                .map(|at| at.saturating_duration_since(winner.start));
            (established, winner.established.is_some())
        }
        None => {
            let running = trace.attempts.iter().filter(|a| a.end.is_none());
            let first = if running.clone().next().is_some() {
                running.filter_map(|a| a.established).min()
            } else {
                // All have failed: how far the last one came.
                let last = trace.attempts.iter().max_by_key(|a| a.end);
                last.and_then(|a| a.established)
            };
            (first, first.is_some())
        }
    };
    if let Some(tcp) = &mut trace.tcp {
        tcp.end = established;
    }
    if trace.tls_facts.is_none() && trace.tls.is_none_or(|tls| tls.end.is_none()) {
        trace.tls = established
            .filter(|_| goes_on)
            .map(|start| Span { start, end: None });
    }
}

/// Something that happened to a request.
#[derive(Debug)]
pub(crate) enum RequestEvent<'a> {
    AttemptStart,
    /// A stretch in the line is over.
    Waited(Waited),
    /// The connection is the request's own; the trace is that of the dial it waited for.
    Acquired {
        how: ConnectionUse,
        dial: Option<Arc<ConnectionTrace>>,
    },
    /// Early data was rejected: the request was sent again when the handshake had ended, at `at`.
    EarlyRejected {
        dial: Arc<ConnectionTrace>,
        at: Instant,
    },
    /// The last byte of the request was handed over.
    UploadEnd,
    Informational {
        status: StatusCode,
        headers: &'a HeaderMap,
    },
    /// So much of the request's body was handed over.
    BodySent {
        bytes: u64,
        total: Option<u64>,
    },
    /// So much of the response's body was handed to the caller.
    BodyReceived {
        bytes: u64,
        total: Option<u64>,
    },
    /// The read that brought the final response's first byte.
    FirstByte(Instant),
    Headers,
    /// What the read looked for was there at that time, and takes no more that would be worth another look at the
    /// clock.
    AtHand(Instant),
    /// A read of the body is over; until the next one begins the time is the caller's.
    ReadEnd,
    ReadStart,
    End,
}

/// Reads the events of one request.
#[derive(Debug)]
pub(crate) struct RequestRecorder {
    timing: RequestTiming,
    attempts: u32,
    how: Option<ConnectionUse>,
    waits: Vec<Waited>,
    /// Where the request stands in line now, and the dial it is waiting for.
    waiting: Option<(WaitCause, Instant)>,
    dial: Option<Arc<DialRecorder>>,
    paused_since: Option<Instant>,
    /// When the read began that goes on now, if a pause ended with it.
    read_at: Option<Instant>,
    /// When the read found what it looked for.
    at_hand: Option<Instant>,
    listener: Option<Listener>,
    /// What the listener was told last.
    body_sent: u64,
    body_received: u64,
}

impl RequestRecorder {
    /// The request's first poll.
    pub(crate) fn start(listener: Option<Listener>) -> Self {
        let start = now();
        Self {
            listener,
            body_sent: 0,
            body_received: 0,
            timing: RequestTiming::begun(start),
            attempts: 0,
            how: None,
            waits: Vec::new(),
            waiting: None,
            dial: None,
            paused_since: None,
            read_at: None,
            at_hand: None,
        }
    }

    /// When it was over; until then when it began.
    pub(crate) fn ended_at(&self) -> Instant {
        self.timing.end
    }

    /// When the read of the body began that goes on now; `None` if it has waited meanwhile.
    pub(crate) fn read_at(&self) -> Option<Instant> {
        self.read_at
    }

    // Where an event is emitted its kind is known: what is left there is the little that it does.
    #[inline(always)]
    pub(crate) fn emit(&mut self, event: RequestEvent<'_>) {
        if self.timing.complete {
            return;
        }
        #[cfg(firstbyte_bare)]
        let Some(event) = self.without_timing(event) else {
            return;
        };
        match event {
            RequestEvent::AttemptStart => self.attempt_started(),
            RequestEvent::Waited(waited) => {
                self.waiting = None;
                self.waits.push(waited);
            }
            RequestEvent::Acquired { how, dial } => self.acquired(how, dial.as_deref()),
            RequestEvent::EarlyRejected { dial, at } => self.early_rejected(&dial, at),
            RequestEvent::UploadEnd => {
                if self.timing.upload_end.is_none() {
                    self.timing.upload_end = Some(now());
                }
            }
            RequestEvent::Informational { status, headers } => self.informed(status, headers),
            RequestEvent::BodySent { bytes, total } => {
                if std::mem::replace(&mut self.body_sent, bytes) != bytes
                    && let Some(Listener(listener)) = &self.listener
                {
                    listener.request_progress(Progress { bytes, total });
                }
            }
            RequestEvent::BodyReceived { bytes, total } => {
                if std::mem::replace(&mut self.body_received, bytes) != bytes
                    && let Some(Listener(listener)) = &self.listener
                {
                    listener.response_progress(Progress { bytes, total });
                    // It takes its time before the caller has the data.
                    self.at_hand = None;
                }
            }
            RequestEvent::FirstByte(read_at) => {
                let earliest = self.timing.acquired.unwrap_or(self.timing.start);
                self.timing.first_byte = Some(read_at.max(earliest));
            }
            RequestEvent::Headers => {
                let at = now();
                self.timing.headers = Some(at);
                self.paused_since = Some(at);
            }
            RequestEvent::ReadStart => {
                self.at_hand = None;
                self.read_at = self.paused_since.take().map(|since| {
                    let at = now();
                    self.timing.paused += at.saturating_duration_since(since);
                    at
                });
            }
            RequestEvent::AtHand(at) => self.at_hand = Some(at),
            RequestEvent::ReadEnd => {
                self.paused_since = Some(self.at_hand.take().unwrap_or_else(now));
            }
            RequestEvent::End => {
                let at = self.at_hand.take().unwrap_or_else(now);
                self.finish(at);
            }
        }
    }

    /// For the bench that measures what timing costs: only what decisions depend on.
    #[cfg(firstbyte_bare)]
    fn without_timing<'a>(&mut self, event: RequestEvent<'a>) -> Option<RequestEvent<'a>> {
        match event {
            RequestEvent::AttemptStart => self.attempts += 1,
            RequestEvent::Acquired { how, .. } => self.how = Some(how),
            _ => {}
        }
        None
    }

    fn attempt_started(&mut self) {
        self.attempts += 1;
        self.body_sent = 0;
        let timing = &mut self.timing;
        if self.attempts == 1 {
            timing.attempt_start = Some(timing.start);
            return;
        }
        self.waits.clear();
        self.waiting = None;
        self.dial = None;
        self.how = None;
        *timing = RequestTiming {
            attempt_start: Some(now()),
            retried: true,
            ..RequestTiming::begun(timing.start)
        };
    }

    fn acquired(&mut self, how: ConnectionUse, dial: Option<&ConnectionTrace>) {
        let at = now();
        self.waiting = None;
        self.dial = None;
        self.how = Some(how);
        let timing = &mut self.timing;
        timing.acquired = Some(at);
        let from = timing.attempt_start.unwrap_or(timing.start);
        timing.share = Share::partition(from, at, dial, &self.waits);
    }

    fn early_rejected(&mut self, dial: &ConnectionTrace, ended: Instant) {
        let timing = &mut self.timing;
        let latest = timing.first_byte.unwrap_or_else(now);
        let acquired = timing.acquired.map_or(ended, |a| a.max(ended)).min(latest);
        let from = timing.attempt_start.unwrap_or(timing.start);
        timing.acquired = Some(acquired);
        timing.upload_end = timing.upload_end.map(|sent| sent.max(acquired));
        timing.share = Share::partition(from, acquired, Some(dial), &self.waits);
    }

    fn informed(&mut self, status: StatusCode, headers: &HeaderMap) {
        if let Some(Listener(listener)) = &self.listener {
            listener.informational(status, headers);
        }
        if self.timing.informational.is_none() {
            self.timing.informational = Some(now());
        }
    }

    /// The request stands in line: it may be asked for its timing while it waits.
    pub(crate) fn waiting(
        &mut self,
        why: WaitCause,
        since: Instant,
        dial: Option<Arc<DialRecorder>>,
    ) {
        self.waiting = Some((why, since));
        self.dial = dial;
    }

    /// Bytes of the response's body that the caller got.
    pub(crate) fn body_received(&self) -> u64 {
        self.body_received
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    pub(crate) fn connection_use(&self) -> Option<ConnectionUse> {
        self.how
    }

    pub(crate) fn is_reused(&self) -> bool {
        self.how.is_some_and(ConnectionUse::is_reused)
    }

    /// Somebody is told of progress.
    pub(crate) fn has_listener(&self) -> bool {
        self.listener.is_some()
    }

    /// When the attempt began.
    pub(crate) fn attempt_start(&self) -> Instant {
        self.timing.attempt_start.unwrap_or(self.timing.start)
    }

    /// When the attempt got its connection.
    pub(crate) fn acquired_at(&self) -> Option<Instant> {
        self.timing.acquired
    }

    /// The request had to wait for a look-up.
    pub(crate) fn has_waited_for_dns(&self) -> bool {
        self.timing.share.dns.is_some()
    }

    /// The timing so far, or the final one once the request has ended.
    pub(crate) fn timing(&self) -> RequestTiming {
        if self.timing.complete {
            return self.timing;
        }
        self.timing_at(now())
    }

    fn timing_at(&self, at: Instant) -> RequestTiming {
        let mut timing = self.timing;
        timing.end = at;
        if let Some(since) = self.paused_since {
            timing.paused += at.saturating_duration_since(since);
        }
        if timing.acquired.is_none() {
            timing.share = self.share_until(at);
        }
        timing
    }

    /// Still without a connection: what was waited for so far.
    fn share_until(&self, at: Instant) -> Share {
        let Some(from) = self.timing.attempt_start else {
            return self.timing.share;
        };
        let mut waits = self.waits.clone();
        waits.extend(self.waiting.map(|(why, enter)| Waited {
            why,
            enter,
            leave: at,
        }));
        let dial = self.dial.as_ref().map(|d| d.trace());
        Share::partition(from, at, dial.as_ref(), &waits)
    }

    fn finish(&mut self, at: Instant) {
        if self.timing.acquired.is_none() {
            self.timing.share = self.share_until(at);
        }
        let timing = &mut self.timing;
        timing.end = at;
        if let Some(since) = self.paused_since {
            timing.paused += at.saturating_duration_since(since);
        }
        timing.complete = true;
    }
}

// layering: uses the ground layer alone.
#[cfg(test)]
mod tests;
