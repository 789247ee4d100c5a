//! What is known about a connection.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::io::PeerAddr;
use crate::proxy::Proxy;
use crate::sync::lock;
use crate::tcp::{SocketWatch, TcpInfo};
use crate::timing::{Attempt, AttemptOutcome, ConnectionTrace};

use super::early::Early;
use super::plan::{FirstHop, Plan};

/// The identity of a connection: unique in the process, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u64);

impl ConnectionId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The number.
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// The other end of a transport, and the eye on our socket.
#[derive(Default)]
pub(super) struct OtherEnd {
    pub(super) addr: Option<PeerAddr>,
    pub(super) socket: Option<SocketWatch>,
}

impl OtherEnd {
    /// The peer took the data that came with our SYN. Under early data it has not had the time.
    pub(super) fn is_syn_data_acked(&self) -> bool {
        let info = self.socket.as_ref().and_then(SocketWatch::info);
        info.is_none_or(|info| info.syn_data_acked || info.bytes_received == Some(0))
    }
}

/// Facts about one connection. Cheap to clone; outlives the connection.
#[derive(Clone)]
pub struct ConnectionInfo {
    facts: Arc<Facts>,
}

struct Facts {
    id: ConnectionId,
    origin: Arc<str>,
    protocol: http::Version,
    remote_addr: Option<PeerAddr>,
    proxy: Option<Proxy>,
    trace: Arc<ConnectionTrace>,
    /// Of the trace; every request that reuses the connection is told what it has saved.
    setup_cost: Duration,
    socket: Option<SocketWatch>,
    /// The handshake had not ended when the connection was opened.
    early: Option<Arc<Early>>,
    requests: AtomicU64,
    limits: Mutex<Option<ConnectionLimits>>,
}

/// What bounds the use of a connection, as it was when
/// [`connections`](crate::ConnectionPool::connections) was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionLimits {
    /// How long it may be idle: the smallest of our own expiry, 80 % of what the origin's closes taught,
    /// and what the last response announced (`Keep-Alive: timeout`) with a margin.
    pub idle_expiry: Duration,
    /// Requests it takes at most: our own limit, what the origin taught, or what it announced
    /// (`Keep-Alive: max`).
    pub max_requests: Option<u64>,
    /// When it takes no more requests.
    pub retire_at: Option<Instant>,
    /// The idle time after which the peer closes connections to this origin, as it was met twice, by
    /// connections in succession and within 25 %. Used to 80 %; it doubles ten minutes after it was last
    /// confirmed, and every ten minutes more. Less than a millisecond teaches nothing.
    pub learned_idle: Option<Duration>,
    /// The requests after which the peer ends connections to this origin (GOAWAY, `Connection: close`), by
    /// the same rules. A connection that has had 80 % of them gets a successor. Fewer than five teach nothing.
    pub learned_requests: Option<u64>,
}

impl ConnectionInfo {
    pub(super) fn new(
        plan: &Plan,
        protocol: http::Version,
        end: OtherEnd,
        trace: ConnectionTrace,
        early: Option<Arc<Early>>,
    ) -> Self {
        let OtherEnd { addr, socket } = end;
        Self {
            facts: Arc::new(Facts {
                id: ConnectionId::next(),
                origin: plan.origin_text.clone(),
                protocol,
                remote_addr: addr,
                socket,
                proxy: match &plan.first_hop {
                    FirstHop::Proxy(hop) => Some(hop.proxy.clone()),
                    FirstHop::Origin | FirstHop::Unix(_) => None,
                },
                setup_cost: trace.setup_cost(),
                trace: Arc::new(trace),
                early,
                requests: AtomicU64::new(0),
                limits: Mutex::default(),
            }),
        }
    }

    /// Its identity.
    pub fn id(&self) -> ConnectionId {
        self.facts.id
    }

    /// The origin it leads to, such as `https://api.example.com`.
    pub fn origin(&self) -> &str {
        &self.facts.origin
    }

    /// HTTP/2 or HTTP/1.1.
    pub fn protocol(&self) -> http::Version {
        self.facts.protocol
    }

    /// The address of the transport's other end, where it knows one: the proxy's, if there is one.
    pub fn remote_addr(&self) -> Option<&PeerAddr> {
        self.facts.remote_addr.as_ref()
    }

    /// What the kernel knows about its TCP connection now: round trips, retransmissions, windows. With
    /// a proxy, about the connection to the proxy. One system call.
    ///
    /// `None` once it is closed, for transports other than our own TCP, and on other systems than
    /// Linux.
    pub fn tcp_info(&self) -> Option<TcpInfo> {
        self.facts.socket.as_ref()?.info()
    }

    /// The proxy it goes through.
    pub fn proxy(&self) -> Option<&Proxy> {
        self.facts.proxy.as_ref()
    }

    /// What setting it up cost, phase by phase.
    ///
    /// While a handshake runs under early data its facts are not there yet.
    pub fn trace(&self) -> &ConnectionTrace {
        self.current_trace()
    }

    pub(crate) fn shared_trace(&self) -> Arc<ConnectionTrace> {
        self.current_trace().clone()
    }

    fn current_trace(&self) -> &Arc<ConnectionTrace> {
        let late = self.facts.early.as_ref().and_then(|early| early.trace());
        late.unwrap_or(&self.facts.trace)
    }

    /// What setting it up cost.
    pub(crate) fn setup_cost(&self) -> Duration {
        let late = self.facts.early.as_ref().and_then(|early| early.trace());
        late.map_or(self.facts.setup_cost, |trace| trace.setup_cost())
    }

    /// The handshake under early data, if there was one.
    pub(crate) fn early(&self) -> Option<&Arc<Early>> {
        self.facts.early.as_ref()
    }

    /// Whether its TLS session was resumed; `None` without TLS, and while the handshake still runs
    /// under early data.
    pub fn tls_resumed(&self) -> Option<bool> {
        self.trace().tls_facts.as_ref().map(|tls| tls.resumed)
    }

    /// When it could carry its first request.
    pub fn ready_at(&self) -> Instant {
        let trace = self.trace();
        trace.ready.unwrap_or(trace.start)
    }

    /// Requests it was given so far.
    pub fn requests(&self) -> u64 {
        self.facts.requests.load(Ordering::Relaxed)
    }

    /// Under which limits the pool uses it; `None` unless it comes from
    /// [`connections`](crate::ConnectionPool::connections).
    pub fn limits(&self) -> Option<ConnectionLimits> {
        *lock(&self.facts.limits)
    }

    pub(crate) fn set_limits(&self, limits: ConnectionLimits) {
        *lock(&self.facts.limits) = Some(limits);
    }

    /// The address that was dialled, whoever opened the transport.
    pub(crate) fn dialled_ip(&self) -> Option<IpAddr> {
        let attempts = &self.trace().attempts;
        let won = |attempt: &&Attempt| attempt.outcome == Some(AttemptOutcome::Won);
        attempts.iter().find(won).map(|attempt| attempt.addr.ip())
    }

    /// Counts a request; returns how many it was given before.
    pub(crate) fn count_request(&self) -> u64 {
        self.facts.requests.fetch_add(1, Ordering::Relaxed)
    }
}

impl fmt::Debug for ConnectionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionInfo")
            .field("id", &self.facts.id.0)
            .field("origin", &self.facts.origin)
            .field("protocol", &self.facts.protocol)
            .field("remote_addr", &self.facts.remote_addr)
            .field("proxy", &self.facts.proxy)
            .field("tls_resumed", &self.tls_resumed())
            .field("requests", &self.requests())
            .finish_non_exhaustive()
    }
}
