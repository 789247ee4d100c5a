//! What is kept of one request: plain data, nothing secret, nothing that needs the pool.

use std::time::Duration;

use firstbyte::timing::DnsSource;
use firstbyte::{ConnectionInfo, ConnectionUse, Error, Phase, RequestTiming, Response};
use http::Version;

use crate::run::Job;

/// One request, measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) url: String,
    pub(crate) method: String,
    pub(crate) status: Option<u16>,
    pub(crate) version: Option<&'static str>,
    pub(crate) connection: Option<u64>,
    pub(crate) how: Option<ConnectionUse>,
    pub(crate) reused: bool,
    pub(crate) tls_resumed: Option<bool>,
    pub(crate) remote_addr: Option<String>,
    pub(crate) attempts: u32,
    pub(crate) timing: Option<Timing>,
    pub(crate) body_bytes: u64,
    pub(crate) failure: Option<Failure>,
    /// A few words about a phase each, the more important ones first.
    pub(crate) notes: Vec<(Phase, String)>,
}

/// The durations of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timing {
    /// In the order of [`Phase::ALL`].
    pub(crate) phases: [Option<Duration>; Phase::ALL.len()],
    pub(crate) queue_dial: Option<Duration>,
    pub(crate) queue_limit: Option<Duration>,
    pub(crate) queue_local: Option<Duration>,
    pub(crate) network_overhead: Duration,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) total: Duration,
}

/// Why a request failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: String,
    pub(crate) phase: Option<&'static str>,
    pub(crate) replay_safety: String,
    pub(crate) message: String,
}

impl Record {
    /// A response came; `error` if its body did not end well.
    pub(crate) fn answered(
        job: &Job,
        response: &Response,
        body_bytes: u64,
        error: Option<&Error>,
    ) -> Self {
        let timing = response.timing();
        let metrics = response.metrics();
        let connection = response.connection();
        let how = response.connection_use();
        Self {
            status: Some(response.status().as_u16()),
            version: version_name(response.version()),
            connection: Some(connection.id().as_u64()),
            how: Some(how),
            reused: metrics.connection_reused,
            tls_resumed: connection.tls_resumed(),
            remote_addr: response.remote_addr().map(ToString::to_string),
            attempts: metrics.attempts,
            timing: Some(Timing::from(&timing)),
            body_bytes,
            failure: error.map(Failure::from),
            notes: notes(&timing, connection, how, body_bytes),
            ..Self::asked(job)
        }
    }

    /// No response came.
    pub(crate) fn failed(job: &Job, error: &Error) -> Self {
        Self {
            reused: error.on_reused_connection(),
            attempts: error.attempts(),
            timing: error.timing().map(Timing::from),
            failure: Some(Failure::from(error)),
            ..Self::asked(job)
        }
    }

    fn asked(job: &Job) -> Self {
        Self {
            url: job.url.clone(),
            method: job.method.to_string(),
            ..Self::default()
        }
    }

    /// Start to end; nothing if the request never began.
    pub(crate) fn total(&self) -> Duration {
        self.timing
            .as_ref()
            .map_or(Duration::ZERO, |timing| timing.total)
    }

    /// The part of it that setting up connections cost.
    pub(crate) fn network_overhead(&self) -> Duration {
        self.timing
            .as_ref()
            .map_or(Duration::ZERO, |timing| timing.network_overhead)
    }

    /// The phases that happened, in order.
    pub(crate) fn phases(&self) -> Vec<(Phase, Duration)> {
        self.timing.as_ref().map_or_else(Vec::new, Timing::happened)
    }

    /// `full` or `resumed`, how the TLS session of the connection began.
    pub(crate) fn handshake(&self) -> &'static str {
        match self.tls_resumed {
            Some(true) => "resumed",
            Some(false) => "full",
            None => "-",
        }
    }
}

impl Timing {
    /// The phases that happened, in order.
    pub(crate) fn happened(&self) -> Vec<(Phase, Duration)> {
        let phases = Phase::ALL.into_iter().zip(self.phases);
        phases
            .filter_map(|(phase, time)| Some((phase, time?)))
            .collect()
    }

    /// One phase; `None` when it did not happen.
    pub(crate) fn get(&self, phase: Phase) -> Option<Duration> {
        self.happened()
            .into_iter()
            .find(|(p, _)| *p == phase)
            .map(|(_, time)| time)
    }
}

impl From<&RequestTiming> for Timing {
    fn from(timing: &RequestTiming) -> Self {
        Self {
            phases: Phase::ALL.map(|phase| timing.get(phase)),
            queue_dial: timing.queue_dial(),
            queue_limit: timing.queue_limit(),
            queue_local: timing.queue_local(),
            network_overhead: timing.network_overhead(),
            first_byte: timing.time_to_first_byte(),
            total: timing.total(),
        }
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            kind: snake_case(&format!("{:?}", error.kind())),
            phase: error.phase().map(Phase::as_str),
            replay_safety: snake_case(&format!("{:?}", error.replay_safety())),
            message: error.to_string(),
        }
    }
}

/// `ConnectionLost` as `connection_lost`.
pub(crate) fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// Milliseconds, exact to the nanosecond.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e6
}

/// Milliseconds with two decimals; what is less than that says so.
pub(crate) fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        _ if time.is_zero() => "0".into(),
        _ if ms < 0.005 => "<0.01".into(),
        _ if ms < 10_000.0 => format!("{ms:.2}"),
        _ => format!("{ms:.0}"),
    }
}

fn version_name(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_2 => Some("h2"),
        Version::HTTP_11 => Some("http/1.1"),
        Version::HTTP_10 => Some("http/1.0"),
        _ => None,
    }
}

fn notes(
    timing: &RequestTiming,
    connection: &ConnectionInfo,
    how: ConnectionUse,
    body_bytes: u64,
) -> Vec<(Phase, String)> {
    let mut notes = Vec::new();
    let waits = [
        ("for a limit", timing.queue_limit()),
        ("for a dial", timing.queue_dial()),
    ];
    for (why, time) in waits {
        if let Some(time) = time {
            notes.push((Phase::Queue, format!("{} ms {why}", ms(time))));
        }
    }
    if !how.is_reused() {
        notes.extend(dial_notes(connection));
    }
    notes.push((Phase::Receive, format!("{body_bytes} bytes")));
    notes
}

/// What the trace of a connection says about its phases.
fn dial_notes(connection: &ConnectionInfo) -> Vec<(Phase, String)> {
    let trace = connection.trace();
    let mut notes = Vec::new();
    if let Some(dns) = &trace.dns_facts {
        let found = match dns.answers.len() {
            1 => "1 address".to_owned(),
            n => format!("{n} addresses"),
        };
        let from = match dns.source {
            DnsSource::Fresh => "asked the name server",
            DnsSource::Cache => "from the cache",
            DnsSource::Stale => "from the cache, stale",
            DnsSource::Shared => "shared another's query",
            DnsSource::Literal => "an address already",
            DnsSource::Override => "given",
            _ => "found",
        };
        notes.extend([(Phase::Dns, from.to_owned()), (Phase::Dns, found)]);
    }
    if let Some(addr) = connection.remote_addr() {
        notes.push((Phase::Tcp, format!("to {addr}")));
    }
    if let Some(tls) = &trace.tls_facts {
        let kind = if tls.resumed {
            "resumed"
        } else {
            "full handshake"
        };
        let group = tls
            .group
            .map(|group| format!(", {group}"))
            .unwrap_or_default();
        notes.push((Phase::Tls, format!("{kind}, {}{group}", tls.version)));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_snake_case() {
        assert_eq!(snake_case("ConnectionLost"), "connection_lost");
        assert_eq!(snake_case("GoAway"), "go_away");
        assert_eq!(snake_case("Tls"), "tls");
    }
}
