//! Counters of the pool and of each client, and the snapshots that users read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::close_reason::CloseReason;
use crate::timing::{ConnectionUse, millis};

/// What a user watches of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepMetrics {
    /// Milliseconds spent on setting up connections: dns + tcp + proxy + tls + protocol really
    /// waited for, and waiting for dials that served others. Measured, never a difference.
    pub network_overhead_ms: f64,
    /// No connection phase was waited for.
    pub connection_reused: bool,
    /// The protocol of the response.
    pub protocol: http::Version,
    /// Attempts made, 1 without a retry.
    pub attempts: u32,
    /// Milliseconds from the start of the call to the first byte of the response.
    pub ttfb_ms: Option<f64>,
}

/// Statistics of a pool or of one client, taken at one moment.
///
/// A call counts once, when its response head arrives or when it fails after it had got a
/// connection; a call that never got a connection counts in `unserved`. `warm` is no request.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ConnectionPoolStats {
    /// Calls that got a connection.
    pub total_requests: u64,
    /// Of those, calls that waited for no connection phase.
    pub connections_reused: u64,
    /// Connections opened (0 for a client: connections belong to the pool).
    pub connections_created: u64,
    /// `connections_reused` in percent of `total_requests`; 0 when there was none.
    pub connection_reuse_rate: f64,
    /// Calls that waited for no DNS query.
    pub dns_lookups_saved: u64,
    /// `https` calls that waited for no TLS handshake because their connection was reused.
    pub tls_handshakes_saved: u64,
    /// For each reused call, what setting up its very connection had cost, summed, in
    /// milliseconds.
    pub network_overhead_reduction_ms: f64,
    /// Calls that joined a dial which was already running for another.
    pub joined: u64,
    /// Calls that ended before they got a connection.
    pub unserved: u64,
    /// Further attempts made after one had failed.
    pub retries: u64,
    /// Connections opened with TLS.
    pub tls_connections: u64,
    /// Of those, connections whose TLS session was resumed.
    pub resumed: u64,
    /// `resumed` in percent of `tls_connections`; 0 when there was none.
    pub tls_resumption_rate: f64,
    /// Dials that failed.
    pub dials_failed: u64,
    /// Times a request had to wait for, or was refused by, a limit.
    pub limit_hits: u64,
    /// Connections open now, dials in progress included.
    pub open: usize,
    /// Connections open and without a request now.
    pub idle: usize,
    /// Connections with at least one request now.
    pub active: usize,
    /// Connections handed to their callers by an upgrade; they count in `open`.
    pub upgraded: usize,
    /// Requests waiting for a connection now.
    pub waiting: usize,
    /// TLS sessions that could be resumed now: single-use tickets, and one TLS 1.2 session per origin.
    pub tls_tickets: usize,
    /// Connections closed so far, by reason.
    pub closed: BTreeMap<CloseReason, u64>,
}

/// A fact about one finished call, for the counters.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) how: ConnectionUse,
    pub(crate) secure: bool,
    /// It waited for a DNS query on the wire.
    pub(crate) waited_for_query: bool,
    /// What setting up its connection had cost.
    pub(crate) setup_cost: Duration,
    pub(crate) attempts: u32,
}

/// Counters read by `stats()`. A pool and each of its clients have one.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Calls at the first attempt on a warm connection, with TLS and without: the usual ones, which count in
    /// several numbers at once. The other counters know of the others.
    warm_tls: AtomicU64,
    warm_plain: AtomicU64,
    total: AtomicU64,
    reused: AtomicU64,
    created: AtomicU64,
    dns_saved: AtomicU64,
    tls_saved: AtomicU64,
    saved_nanos: AtomicU64,
    joined: AtomicU64,
    unserved: AtomicU64,
    retries: AtomicU64,
    tls: AtomicU64,
    resumed: AtomicU64,
    dials_failed: AtomicU64,
    limit_hits: AtomicU64,
    closed: ClosedCounters,
}

impl Counters {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub(crate) fn served(&self, call: &Served) {
        if cfg!(firstbyte_bare) {
            return;
        }
        if call.how.is_reused() {
            let nanos = u64::try_from(call.setup_cost.as_nanos()).unwrap_or(u64::MAX);
            self.saved_nanos.fetch_add(nanos, Relaxed);
            if call.attempts == 1 && !call.waited_for_query {
                let warm = if call.secure {
                    &self.warm_tls
                } else {
                    &self.warm_plain
                };
                warm.fetch_add(1, Relaxed);
                return;
            }
        }
        self.total.fetch_add(1, Relaxed);
        if call.attempts > 1 {
            self.retries
                .fetch_add(u64::from(call.attempts - 1), Relaxed);
        }
        if !call.waited_for_query {
            self.dns_saved.fetch_add(1, Relaxed);
        }
        if call.how.is_reused() {
            self.reused.fetch_add(1, Relaxed);
            if call.secure {
                self.tls_saved.fetch_add(1, Relaxed);
            }
        } else if call.how == ConnectionUse::Joined {
            self.joined.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn unserved(&self) {
        self.unserved.fetch_add(1, Relaxed);
    }

    pub(crate) fn opened(&self, is_tls: bool, is_resumed: bool) {
        self.created.fetch_add(1, Relaxed);
        self.resumed.fetch_add(u64::from(is_resumed), Relaxed);
        self.tls.fetch_add(u64::from(is_tls), Relaxed);
    }

    /// A handshake that had not ended when its connection was opened.
    pub(crate) fn ended_late(&self, is_resumed: bool) {
        self.resumed.fetch_add(u64::from(is_resumed), Relaxed);
    }

    pub(crate) fn dial_failed(&self) {
        self.dials_failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn limit_hit(&self) {
        self.limit_hits.fetch_add(1, Relaxed);
    }

    pub(crate) fn closed(&self, reason: CloseReason) {
        self.closed.0[reason as usize].fetch_add(1, Relaxed);
    }

    /// The counted part of a snapshot; gauges are the pool's to fill in.
    pub(crate) fn snapshot(&self) -> ConnectionPoolStats {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        // Parts are read before their whole, so that a rate never exceeds 100 %.
        let (warm_tls, warm_plain) = (get(&self.warm_tls), get(&self.warm_plain));
        let warm = warm_tls + warm_plain;
        let connections_reused = warm + get(&self.reused);
        let total_requests = warm + get(&self.total);
        let resumed = get(&self.resumed);
        let tls_connections = get(&self.tls);
        ConnectionPoolStats {
            total_requests,
            connections_reused,
            connections_created: get(&self.created),
            connection_reuse_rate: percent(connections_reused, total_requests),
            dns_lookups_saved: warm + get(&self.dns_saved),
            tls_handshakes_saved: warm_tls + get(&self.tls_saved),
            network_overhead_reduction_ms: millis(Duration::from_nanos(get(&self.saved_nanos))),
            joined: get(&self.joined),
            unserved: get(&self.unserved),
            retries: get(&self.retries),
            tls_connections,
            resumed,
            tls_resumption_rate: percent(resumed, tls_connections),
            dials_failed: get(&self.dials_failed),
            limit_hits: get(&self.limit_hits),
            closed: CloseReason::ALL
                .iter()
                .map(|reason| (*reason, get(&self.closed.0[*reason as usize])))
                .filter(|(_, count)| *count > 0)
                .collect(),
            ..ConnectionPoolStats::default()
        }
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    part.min(whole) as f64 * 100.0 / whole as f64
}

#[derive(Debug)]
struct ClosedCounters([AtomicU64; CloseReason::ALL.len()]);

impl Default for ClosedCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}
