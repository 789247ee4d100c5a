//! The timing contract: what a connection cost once ([`ConnectionTrace`]) and what one request
//! waited for ([`RequestTiming`]). Two records, never mixed.
//!
//! Everything here is arithmetic on instants that others hand in. The one rule that all of it
//! serves: the phases of a request partition the time from its start to its end, so that their sum
//! equals the total to the nanosecond, and a phase that did not happen is `None` and not zero.
//!
//! ```text
//! start      attempt_start                       acquired    send_end   first_byte      end
//!   |--retry--|--queue|dns|tcp|proxy|tls|protocol---|---send----|---wait---|---receive---|
//! ```

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The phases of a request, in the order of the journey. One vocabulary for timings, timeouts,
/// errors and benches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Phase {
    /// Attempts that did not deliver the response.
    Retry,
    /// Waiting for a limit, for a dial that then served another, and local work.
    Queue,
    /// Name resolution, up to the first `connect()`.
    Dns,
    /// First `connect()` to the established winner of the race.
    Tcp,
    /// The tunnel through a proxy.
    Proxy,
    /// The TLS handshake.
    Tls,
    /// The HTTP/2 preface.
    Protocol,
    /// Handing the request to the socket.
    Send,
    /// End of sending to the first byte of the response.
    Wait,
    /// First byte to the end of the body.
    Receive,
}

impl Phase {
    /// All phases, in the order of the journey.
    pub const ALL: [Self; 10] = [
        Self::Retry,
        Self::Queue,
        Self::Dns,
        Self::Tcp,
        Self::Proxy,
        Self::Tls,
        Self::Protocol,
        Self::Send,
        Self::Wait,
        Self::Receive,
    ];

    /// Its name in lower case, as logs and JSON show it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Queue => "queue",
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Proxy => "proxy",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
            Self::Send => "send",
            Self::Wait => "wait",
            Self::Receive => "receive",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where the addresses of a connection came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DnsSource {
    /// A query of this dial.
    Fresh,
    /// The cache, within its time to live.
    Cache,
    /// The cache, past its time to live.
    Stale,
    /// A query that another dial had already begun.
    Shared,
    /// The host is an IP address or `localhost`; nothing was asked.
    Literal,
    /// An address given by the user for this host; nothing was asked.
    Override,
}

impl DnsSource {
    /// Whether somebody had to wait for a query on the wire.
    pub fn is_query(self) -> bool {
        matches!(self, Self::Fresh | Self::Shared)
    }

    /// Whether a look-up took place at all (a literal or an override is no look-up).
    pub fn is_lookup(self) -> bool {
        !matches!(self, Self::Literal | Self::Override)
    }
}

/// How one attempt to reach one address ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttemptOutcome {
    /// This address won the race.
    Won,
    /// Another address won first; the attempt was dropped.
    Lost,
    /// The attempt failed with this error.
    Failed(std::io::ErrorKind),
    /// TCP was established, and the TLS handshake failed.
    HandshakeFailed,
}

/// One attempt to reach one address.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// The address tried.
    pub addr: SocketAddr,
    /// `connect()` was called.
    pub start: Instant,
    /// TCP was established, and the attempt went on with TLS; `None` when it had no more to do.
    pub established: Option<Instant>,
    /// The SYN waits for the first data (Fast Open): `established` says no more than that the attempt
    /// went on.
    pub fast_open: bool,
    /// The attempt ended; `None` while it runs.
    pub end: Option<Instant>,
    /// How it ended; `None` while it runs.
    pub outcome: Option<AttemptOutcome>,
}

/// Facts of the name resolution of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DnsFacts {
    /// Where the addresses came from.
    pub source: DnsSource,
    /// A name server was asked, by this dial or by one whose question it shared, and its answer waited
    /// for before the first `connect()`.
    pub queried: bool,
    /// The time to live of the answer, as clamped by the cache.
    pub ttl: Option<Duration>,
    /// The addresses known when the look-up ended.
    pub answers: Vec<IpAddr>,
}

/// What became of early data (0-RTT, RFC 8446 §2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EarlyData {
    /// None was sent.
    NotOffered,
    /// The request travelled with the first flight of the handshake.
    Accepted,
    /// The server did not take it; the same bytes were sent again after the handshake.
    Rejected,
}

/// Facts of the TLS handshake of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsFacts {
    /// The session was resumed with a ticket.
    pub resumed: bool,
    /// The server asked for another key share, which costs one more round trip.
    pub hello_retry: bool,
    /// The protocol version, such as `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite.
    pub cipher_suite: &'static str,
    /// The key exchange group, such as `X25519MLKEM768`; `None` when resumed without one.
    pub group: Option<&'static str>,
    /// The protocol chosen by ALPN, escaped; `None` when the server chose none.
    pub alpn: Option<String>,
    /// What became of early data.
    pub early_data: EarlyData,
}

/// Facts of the TCP socket of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpFacts {
    /// The SYN left with the first data (RFC 7413): `tcp` covers connect() only, and the round trip
    /// shows in `tls`.
    pub fast_open: bool,
    /// Options that were asked for and did not apply.
    pub unapplied: Vec<UnappliedOption>,
}

/// A socket option that did not apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnappliedOption {
    /// The option's name in [`TcpOptions`](crate::tcp::TcpOptions).
    pub option: &'static str,
    /// What the system said.
    pub error: std::io::ErrorKind,
}

/// A phase of a dial with its instants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The phase began.
    pub start: Instant,
    /// The phase ended; `None` while it runs.
    pub end: Option<Instant>,
}

/// What setting up one connection cost: immutable once the connection is ready, and shared by
/// every request that uses it. With a proxy, `dns` and `tcp` are those of the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionTrace {
    /// The dial began.
    pub start: Instant,
    /// Look-up start to the first `connect()`; `None` when nothing was looked up.
    pub dns: Option<Span>,
    /// What the resolution found.
    pub dns_facts: Option<DnsFacts>,
    /// Every address tried.
    pub attempts: Vec<Attempt>,
    /// First `connect()` to the established winner.
    pub tcp: Option<Span>,
    /// The winner's own `connect()`: one round trip. `None` with Fast Open, which does not wait for it.
    pub tcp_rtt: Option<Duration>,
    /// The winner's socket; `None` when it is not TCP or not ours.
    pub tcp_facts: Option<TcpFacts>,
    /// Proxy established to tunnel ready.
    pub proxy: Option<Span>,
    /// The TLS handshake, up to the moment from which a request may be sent: with early data that is
    /// accepted, before the peer's answer.
    pub tls: Option<Span>,
    /// What the handshake agreed on; `None` while it still runs under early data.
    pub tls_facts: Option<TlsFacts>,
    /// The HTTP/2 preface.
    pub protocol: Option<Span>,
    /// The connection could carry its first request.
    pub ready: Option<Instant>,
}

impl ConnectionTrace {
    /// A trace of a dial that began at `start`.
    pub(crate) fn new(start: Instant) -> Self {
        Self {
            start,
            dns: None,
            dns_facts: None,
            attempts: Vec::new(),
            tcp: None,
            tcp_rtt: None,
            tcp_facts: None,
            proxy: None,
            tls: None,
            tls_facts: None,
            protocol: None,
            ready: None,
        }
    }

    /// The connection phases that happened, in order.
    pub fn spans(&self) -> impl Iterator<Item = (Phase, Span)> {
        [
            (Phase::Dns, self.dns),
            (Phase::Tcp, self.tcp),
            (Phase::Proxy, self.proxy),
            (Phase::Tls, self.tls),
            (Phase::Protocol, self.protocol),
        ]
        .into_iter()
        .filter_map(|(phase, span)| Some((phase, span?)))
    }

    /// The duration of one connection phase; `None` when it did not happen or is still running.
    pub fn get(&self, phase: Phase) -> Option<Duration> {
        let (_, span) = self.spans().find(|(p, _)| *p == phase)?;
        Some(span.end?.saturating_duration_since(span.start))
    }

    /// The same dial once a handshake that ran under early data has ended at `at`.
    pub(crate) fn with_late_handshake(&self, facts: TlsFacts, at: Instant) -> Self {
        let mut trace = self.clone();
        if facts.early_data == EarlyData::Rejected {
            if let Some(tls) = &mut trace.tls {
                tls.end = Some(at);
            }
            trace.ready = Some(at);
        }
        trace.tls_facts = Some(facts);
        trace
    }

    /// The phase that is running, or the last one that ran. A dial that has not begun any is
    /// about to look up its name.
    pub fn current_phase(&self) -> Phase {
        self.spans().last().map_or(Phase::Dns, |(phase, _)| phase)
    }

    /// The whole cost of setting this connection up: the sum of its phases.
    pub fn setup_cost(&self) -> Duration {
        self.spans().filter_map(|(phase, _)| self.get(phase)).sum()
    }

    /// Whether a name server was asked, by this dial or by one it shared the query with.
    pub fn has_queried_dns(&self) -> bool {
        self.dns_facts.as_ref().is_some_and(|facts| facts.queried)
    }
}

/// How a request came to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectionUse {
    /// A dial that this request caused.
    New,
    /// A dial that was already running for another request.
    Joined,
    /// A connection that had served before and was idle.
    Idle,
    /// An HTTP/2 connection with another stream open.
    Multiplexed,
    /// A connection that was ready but had never served: warmed, or dialled for a request that
    /// went away.
    Prewarmed,
}

impl ConnectionUse {
    /// Whether no connection phase was waited for.
    pub fn is_reused(self) -> bool {
        matches!(self, Self::Idle | Self::Multiplexed | Self::Prewarmed)
    }

    /// The name in lower case, as logs and JSON show it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Joined => "joined",
            Self::Idle => "idle",
            Self::Multiplexed => "multiplexed",
            Self::Prewarmed => "prewarmed",
        }
    }
}

/// A piece of time spent waiting in the line of an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waited {
    pub(crate) why: WaitCause,
    pub(crate) enter: Instant,
    pub(crate) leave: Instant,
}

/// What a waiter in line waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitCause {
    /// A limit of the pool or of the peer: connections, streams.
    Limit,
    /// A dial that was under way.
    Dial,
}

/// How the time between an attempt's start and its connection was spent: a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) limit: Option<Duration>,
    pub(crate) dial: Option<Duration>,
    pub(crate) local: Duration,
    pub(crate) dns: Option<Duration>,
    pub(crate) tcp: Option<Duration>,
    pub(crate) proxy: Option<Duration>,
    pub(crate) tls: Option<Duration>,
    pub(crate) protocol: Option<Duration>,
}

impl Share {
    /// Partitions `[from, to]`. A connection phase of `dial` (the dial that this request waited
    /// for and was served or failed by) owns its time first, then the waits, and what nothing
    /// explains is local.
    pub(crate) fn partition(
        from: Instant,
        to: Instant,
        dial: Option<&ConnectionTrace>,
        waits: &[Waited],
    ) -> Self {
        let mut share = Self::default();
        if dial.is_none() && waits.is_empty() {
            share.local = to.saturating_duration_since(from);
            return share;
        }

        // Every piece in order of precedence, clipped to the window.
        let mut pieces: Vec<(Instant, Instant, Owner)> = Vec::new();
        let mut claim = |start: Instant, end: Instant, owner: Owner| {
            // What lies wholly before or after the window did not happen to this request; what
            // happened inside it in no time at all did.
            if start > to || end < from || (end == from && start < from) {
                return;
            }
            pieces.push((start.max(from), end.min(to), owner));
        };
        for (phase, span) in dial.into_iter().flat_map(ConnectionTrace::spans) {
            claim(span.start, span.end.unwrap_or(to), Owner::Phase(phase));
        }
        for wait in waits {
            claim(wait.enter, wait.leave, Owner::Wait(wait.why));
        }

        let mut cuts: Vec<Instant> = pieces.iter().flat_map(|p| [p.0, p.1]).collect();
        cuts.extend([from, to]);
        cuts.sort_unstable();
        cuts.dedup();
        for (_, _, owner) in &pieces {
            share.credit(*owner, Duration::ZERO);
        }
        for pair in cuts.windows(2) {
            let (start, end) = (pair[0], pair[1]);
            let owner = pieces
                .iter()
                .find(|(s, e, _)| *s <= start && end <= *e)
                .map_or(Owner::Local, |(_, _, owner)| *owner);
            share.credit(owner, end.saturating_duration_since(start));
        }
        share
    }

    fn credit(&mut self, owner: Owner, time: Duration) {
        let slot = match owner {
            Owner::Local => {
                self.local += time;
                return;
            }
            Owner::Wait(WaitCause::Limit) => &mut self.limit,
            Owner::Wait(WaitCause::Dial) => &mut self.dial,
            Owner::Phase(Phase::Dns) => &mut self.dns,
            Owner::Phase(Phase::Tcp) => &mut self.tcp,
            Owner::Phase(Phase::Proxy) => &mut self.proxy,
            Owner::Phase(Phase::Tls) => &mut self.tls,
            Owner::Phase(_) => &mut self.protocol,
        };
        *slot = Some(slot.unwrap_or_default() + time);
    }

    fn queue(&self) -> Duration {
        self.local + self.limit.unwrap_or_default() + self.dial.unwrap_or_default()
    }
}

#[derive(Clone, Copy)]
enum Owner {
    Phase(Phase),
    Wait(WaitCause),
    Local,
}

/// What one request waited for.
///
/// Instants are ordered: start <= attempt_start <= acquired <= send_end <= first_byte <= headers
/// <= end. While the request runs, [`end`](Self::end) is the instant at which this record was
/// taken and the open phase lasts until then; [`is_complete`](Self::is_complete) tells.
///
/// The durations of all phases add up to [`total`](Self::total) to the nanosecond. A phase that
/// did not happen is `None`; one that happened in no time is `Some(0)`.
///
/// `wait` includes the time between a packet's arrival in the kernel and our read of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestTiming {
    pub(crate) start: Instant,
    pub(crate) attempt_start: Option<Instant>,
    pub(crate) retried: bool,
    pub(crate) acquired: Option<Instant>,
    pub(crate) share: Share,
    pub(crate) upload_end: Option<Instant>,
    pub(crate) informational: Option<Instant>,
    pub(crate) first_byte: Option<Instant>,
    pub(crate) headers: Option<Instant>,
    pub(crate) end: Instant,
    pub(crate) complete: bool,
    pub(crate) paused: Duration,
}

impl RequestTiming {
    /// Of a call that has begun, and no more.
    pub(crate) fn begun(start: Instant) -> Self {
        Self {
            start,
            attempt_start: None,
            retried: false,
            acquired: None,
            share: Share::default(),
            upload_end: None,
            informational: None,
            first_byte: None,
            headers: None,
            end: start,
            complete: false,
            paused: Duration::ZERO,
        }
    }

    /// First poll of the call.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// Start of the attempt whose response was delivered.
    pub fn attempt_start(&self) -> Option<Instant> {
        self.attempt_start
    }

    /// The request had a connection (and, on HTTP/2, a stream slot) to itself.
    pub fn acquired(&self) -> Option<Instant> {
        self.acquired
    }

    /// The last byte of the request was handed over, even if that was after the first byte of
    /// the response.
    pub fn upload_end(&self) -> Option<Instant> {
        self.upload_end
    }

    /// End of the send phase: the earlier of the last byte handed over and the first byte of the
    /// response.
    pub fn send_end(&self) -> Option<Instant> {
        match (self.upload_end, self.first_byte) {
            (Some(sent), Some(byte)) => Some(sent.min(byte)),
            (sent, byte) => sent.or(byte),
        }
    }

    /// The first informational (1xx) response, if there was one.
    pub fn informational(&self) -> Option<Instant> {
        self.informational
    }

    /// The socket read that brought the first byte of the final response.
    pub fn first_byte(&self) -> Option<Instant> {
        self.first_byte
    }

    /// The final response head was handed to the caller.
    pub fn headers(&self) -> Option<Instant> {
        self.headers
    }

    /// End of the request, or the instant at which this record was taken.
    pub fn end(&self) -> Instant {
        self.end
    }

    /// Whether the request has ended: body read to its end, dropped, failed or cancelled.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// `end - start`, measured by itself.
    pub fn total(&self) -> Duration {
        self.end.saturating_duration_since(self.start)
    }

    /// Start to first byte of the final response.
    pub fn time_to_first_byte(&self) -> Option<Duration> {
        Some(self.first_byte?.saturating_duration_since(self.start))
    }

    /// The duration of one phase; `None` when it did not happen.
    pub fn get(&self, phase: Phase) -> Option<Duration> {
        match phase {
            Phase::Retry => {
                let until = self.attempt_start.unwrap_or(self.end);
                self.retried
                    .then(|| until.saturating_duration_since(self.start))
            }
            Phase::Queue => self.attempt_start.map(|_| self.share.queue()),
            Phase::Dns => self.share.dns,
            Phase::Tcp => self.share.tcp,
            Phase::Proxy => self.share.proxy,
            Phase::Tls => self.share.tls,
            Phase::Protocol => self.share.protocol,
            Phase::Send => self.between(self.acquired, self.send_end()),
            Phase::Wait => self.between(self.send_end(), self.first_byte),
            Phase::Receive => self.between(self.first_byte, None),
        }
    }

    fn between(&self, from: Option<Instant>, to: Option<Instant>) -> Option<Duration> {
        Some(to.unwrap_or(self.end).saturating_duration_since(from?))
    }

    /// Attempts that did not deliver.
    pub fn retry(&self) -> Option<Duration> {
        self.get(Phase::Retry)
    }

    /// Waiting for a limit or for a dial that served another, and local work.
    pub fn queue(&self) -> Option<Duration> {
        self.get(Phase::Queue)
    }

    /// The part of `queue` spent waiting for a limit of the pool or the peer.
    pub fn queue_limit(&self) -> Option<Duration> {
        self.share.limit
    }

    /// The part of `queue` spent waiting for a dial that then served another request or failed.
    pub fn queue_dial(&self) -> Option<Duration> {
        self.share.dial
    }

    /// The part of `queue` that nothing else explains: our own work and scheduling.
    pub fn queue_local(&self) -> Option<Duration> {
        self.attempt_start.map(|_| self.share.local)
    }

    /// Name resolution waited for.
    pub fn dns(&self) -> Option<Duration> {
        self.get(Phase::Dns)
    }

    /// TCP connect waited for.
    pub fn tcp(&self) -> Option<Duration> {
        self.get(Phase::Tcp)
    }

    /// Proxy tunnel waited for.
    pub fn proxy(&self) -> Option<Duration> {
        self.get(Phase::Proxy)
    }

    /// TLS handshake waited for.
    pub fn tls(&self) -> Option<Duration> {
        self.get(Phase::Tls)
    }

    /// HTTP/2 preface waited for.
    pub fn protocol(&self) -> Option<Duration> {
        self.get(Phase::Protocol)
    }

    /// Handing the request to the socket.
    pub fn send(&self) -> Option<Duration> {
        self.get(Phase::Send)
    }

    /// End of sending to first byte.
    pub fn wait(&self) -> Option<Duration> {
        self.get(Phase::Wait)
    }

    /// First byte to the end of the body.
    pub fn receive(&self) -> Option<Duration> {
        self.get(Phase::Receive)
    }

    /// The part of `receive` in which the caller had no read pending: its own time, not the
    /// network's.
    pub fn receive_paused(&self) -> Option<Duration> {
        let receive = self.receive()?;
        Some(self.paused.min(receive))
    }

    /// From the socket read that brought the first byte to the caller's poll that got the head.
    pub fn delivery_delay(&self) -> Option<Duration> {
        Some(self.headers?.saturating_duration_since(self.first_byte?))
    }

    /// dns + tcp + proxy + tls + protocol really waited for, and waiting for dials that served
    /// others. The wait for a limit and local work are no network.
    pub fn network_overhead(&self) -> Duration {
        let share = &self.share;
        [
            share.dns,
            share.tcp,
            share.proxy,
            share.tls,
            share.protocol,
            share.dial,
        ]
        .into_iter()
        .flatten()
        .sum()
    }

    /// The phase that was open when the record ended.
    pub fn current_phase(&self) -> Phase {
        if self.first_byte.is_some() {
            Phase::Receive
        } else if self.upload_end.is_some() {
            Phase::Wait
        } else if self.acquired.is_some() {
            Phase::Send
        } else {
            let share = &self.share;
            [
                (share.protocol, Phase::Protocol),
                (share.tls, Phase::Tls),
                (share.proxy, Phase::Proxy),
                (share.tcp, Phase::Tcp),
                (share.dns, Phase::Dns),
            ]
            .into_iter()
            .find_map(|(time, phase)| time.map(|_| phase))
            .unwrap_or(Phase::Queue)
        }
    }
}

/// `Duration` in milliseconds, as metrics give it.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    fn at(base: Instant, ms: u64) -> Instant {
        base + Duration::from_millis(ms)
    }

    fn span(base: Instant, start: u64, end: u64) -> Option<Span> {
        Some(Span {
            start: at(base, start),
            end: Some(at(base, end)),
        })
    }

    #[test]
    fn joined_request_is_charged_only_what_was_left_of_each_phase() {
        let t0 = Instant::now();
        let mut dial = ConnectionTrace::new(t0);
        dial.dns = span(t0, 0, 10);
        dial.tcp = span(t0, 10, 30);
        dial.tls = span(t0, 30, 60);
        let wait = Waited {
            why: WaitCause::Dial,
            enter: at(t0, 20),
            leave: at(t0, 62),
        };
        let share = Share::partition(at(t0, 20), at(t0, 65), Some(&dial), &[wait]);
        assert_eq!(share.dns, None, "the look-up was over when it came");
        assert_eq!(share.tcp, Some(Duration::from_millis(10)));
        assert_eq!(share.tls, Some(Duration::from_millis(30)));
        assert_eq!(share.dial, Some(Duration::from_millis(2)));
        assert_eq!(share.local, Duration::from_millis(3));
    }

    #[test]
    fn phase_that_took_no_time_inside_the_window_is_some_zero() {
        let t0 = Instant::now();
        let mut dial = ConnectionTrace::new(t0);
        dial.dns = span(t0, 5, 5);
        dial.tcp = span(t0, 5, 9);
        let share = Share::partition(t0, at(t0, 9), Some(&dial), &[]);
        assert_eq!(share.dns, Some(Duration::ZERO));
        assert_eq!(share.tls, None);
    }

    #[test]
    fn time_behind_a_limit_is_not_charged_to_the_network() {
        let t0 = Instant::now();
        let waits = [
            Waited {
                why: WaitCause::Limit,
                enter: t0,
                leave: at(t0, 40),
            },
            Waited {
                why: WaitCause::Dial,
                enter: at(t0, 40),
                leave: at(t0, 50),
            },
        ];
        let share = Share::partition(t0, at(t0, 51), None, &waits);
        assert_eq!(share.limit, Some(Duration::from_millis(40)));
        assert_eq!(share.dial, Some(Duration::from_millis(10)));
        assert_eq!(share.local, Duration::from_millis(1));
    }
}
