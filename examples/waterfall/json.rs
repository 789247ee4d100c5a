//! From records to JSON, a line each. The shape is documented in `main.rs` and kept.

use std::collections::BTreeMap;
use std::time::Duration;

use firstbyte::{ConnectionPoolStats, ConnectionUse, Phase};
use serde::Serialize;

use crate::record::{Failure, Record, Timing, millis, snake_case};

#[derive(Serialize)]
struct Request<'a> {
    r#type: &'static str,
    url: &'a str,
    method: &'a str,
    status: Option<u16>,
    version: Option<&'static str>,
    connection: Option<u64>,
    r#use: Option<&'static str>,
    reused: bool,
    tls_resumed: Option<bool>,
    remote_addr: Option<&'a str>,
    attempts: u32,
    timing: Times,
    network_overhead_ms: Option<f64>,
    body_bytes: u64,
    error: Option<Trouble<'a>>,
}

#[derive(Default, Serialize)]
struct Times {
    retry_ms: Option<f64>,
    queue_ms: Option<f64>,
    queue_dial_ms: Option<f64>,
    queue_limit_ms: Option<f64>,
    queue_local_ms: Option<f64>,
    dns_ms: Option<f64>,
    tcp_ms: Option<f64>,
    proxy_ms: Option<f64>,
    tls_ms: Option<f64>,
    protocol_ms: Option<f64>,
    send_ms: Option<f64>,
    wait_ms: Option<f64>,
    receive_ms: Option<f64>,
    total_ms: Option<f64>,
}

#[derive(Serialize)]
struct Trouble<'a> {
    kind: &'a str,
    phase: Option<&'static str>,
    replay_safety: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct Stats {
    r#type: &'static str,
    total_requests: u64,
    connections_reused: u64,
    connections_created: u64,
    connection_reuse_rate: f64,
    dns_lookups_saved: u64,
    tls_handshakes_saved: u64,
    network_overhead_reduction_ms: f64,
    joined: u64,
    unserved: u64,
    retries: u64,
    tls_connections: u64,
    resumed: u64,
    tls_resumption_rate: f64,
    dials_failed: u64,
    limit_hits: u64,
    open: usize,
    idle: usize,
    active: usize,
    upgraded: usize,
    waiting: usize,
    tls_tickets: usize,
    closed: BTreeMap<String, u64>,
}

/// One request.
pub(crate) fn request(record: &Record) -> String {
    line(&Request {
        r#type: "request",
        url: &record.url,
        method: &record.method,
        status: record.status,
        version: record.version,
        connection: record.connection,
        r#use: record.how.map(ConnectionUse::as_str),
        reused: record.reused,
        tls_resumed: record.tls_resumed,
        remote_addr: record.remote_addr.as_deref(),
        attempts: record.attempts,
        timing: record.timing.as_ref().map(Times::from).unwrap_or_default(),
        network_overhead_ms: record
            .timing
            .as_ref()
            .map(|timing| millis(timing.network_overhead)),
        body_bytes: record.body_bytes,
        error: record.failure.as_ref().map(Trouble::from),
    })
}

/// The pool's statistics.
pub(crate) fn stats(stats: &ConnectionPoolStats) -> String {
    let closed = stats.closed.iter();
    line(&Stats {
        r#type: "stats",
        total_requests: stats.total_requests,
        connections_reused: stats.connections_reused,
        connections_created: stats.connections_created,
        connection_reuse_rate: stats.connection_reuse_rate,
        dns_lookups_saved: stats.dns_lookups_saved,
        tls_handshakes_saved: stats.tls_handshakes_saved,
        network_overhead_reduction_ms: stats.network_overhead_reduction_ms,
        joined: stats.joined,
        unserved: stats.unserved,
        retries: stats.retries,
        tls_connections: stats.tls_connections,
        resumed: stats.resumed,
        tls_resumption_rate: stats.tls_resumption_rate,
        dials_failed: stats.dials_failed,
        limit_hits: stats.limit_hits,
        open: stats.open,
        idle: stats.idle,
        active: stats.active,
        upgraded: stats.upgraded,
        waiting: stats.waiting,
        tls_tickets: stats.tls_tickets,
        closed: closed
            .map(|(why, n)| (snake_case(&format!("{why:?}")), *n))
            .collect(),
    })
}

fn line(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("names, numbers and text always serialize")
}

impl From<&Timing> for Times {
    fn from(timing: &Timing) -> Self {
        let ms = |time: Option<Duration>| time.map(millis);
        let phase = |phase: Phase| ms(timing.get(phase));
        Self {
            retry_ms: phase(Phase::Retry),
            queue_ms: phase(Phase::Queue),
            queue_dial_ms: ms(timing.queue_dial),
            queue_limit_ms: ms(timing.queue_limit),
            queue_local_ms: ms(timing.queue_local),
            dns_ms: phase(Phase::Dns),
            tcp_ms: phase(Phase::Tcp),
            proxy_ms: phase(Phase::Proxy),
            tls_ms: phase(Phase::Tls),
            protocol_ms: phase(Phase::Protocol),
            send_ms: phase(Phase::Send),
            wait_ms: phase(Phase::Wait),
            receive_ms: phase(Phase::Receive),
            total_ms: Some(millis(timing.total)),
        }
    }
}

impl<'a> From<&'a Failure> for Trouble<'a> {
    fn from(failure: &'a Failure) -> Self {
        Self {
            kind: &failure.kind,
            phase: failure.phase,
            replay_safety: &failure.replay_safety,
            message: &failure.message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_happen_is_null_and_every_key_is_there() {
        let record = Record {
            url: "https://h/\"x\"".into(),
            timing: Some(Timing {
                phases: Phase::ALL
                    .map(|p| (p == Phase::Wait).then_some(Duration::from_micros(1500))),
                total: Duration::from_micros(1500),
                ..Timing::default()
            }),
            ..Record::default()
        };
        let value: serde_json::Value = serde_json::from_str(&request(&record)).unwrap();
        assert_eq!(value["type"], "request");
        assert_eq!(value["timing"]["wait_ms"], 1.5);
        assert_eq!(value["timing"].as_object().unwrap().len(), 14);
        assert_eq!(value.as_object().unwrap().len(), 15);
        for null in ["status", "connection", "use", "error", "remote_addr"] {
            assert!(value[null].is_null(), "{null}");
        }
        assert!(value["timing"]["dns_ms"].is_null());
    }
}
