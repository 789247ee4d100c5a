//! Bounds of the pool.

use std::time::Duration;

use crate::error::Error;

/// How many connections, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Connections of the whole pool, dials in progress and upgraded ones included. Default 100.
    pub max_connections: usize,
    /// Connections that may be idle at the same time, in the whole pool. One more, and the one that has been
    /// idle for longest is closed, whatever its origin; those kept warm are not. Default 20: with more origins
    /// than that in turn, each would find its connection closed.
    pub max_keepalive_connections: usize,
    /// How long an idle HTTP/1.1 connection is kept. Default 30 s: under the common 60 s limit of
    /// balancers, so that we close first.
    pub keepalive_expiry: Duration,
    /// How long an idle HTTP/2 connection is kept, counted from the end of its last stream.
    /// Default 300 s: a pause between two prompts should not cost a handshake.
    pub http2_keepalive_expiry: Duration,
    /// Connections to one origin (and one set of options). Default none.
    pub max_connections_per_host: Option<usize>,
    /// Age at which a connection takes no new requests, spread by up to 10 % so that connections
    /// opened together do not end together. One that has served requests is replaced before: its successor is
    /// dialled in the last fifth of its life, at most 30 s ahead. Default none.
    pub max_lifetime: Option<Duration>,
    /// Requests after which a connection takes no new ones; its successor is dialled at 80 % of them.
    /// Default none.
    pub max_requests_per_connection: Option<u64>,
    /// Requests that may wait for a connection at the same time; one more fails at once. Default
    /// none.
    pub max_waiting: Option<usize>,
    /// Bytes of an HTTP/1.1 response body that are read, after it was dropped, to save the connection.
    /// Default 64 KiB: less than a handshake costs on most paths.
    pub max_drain_bytes: u64,
    /// How long that may take. Default 50 ms.
    pub max_drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 100,
            max_keepalive_connections: 20,
            keepalive_expiry: Duration::from_secs(30),
            http2_keepalive_expiry: Duration::from_secs(300),
            max_connections_per_host: None,
            max_lifetime: None,
            max_requests_per_connection: None,
            max_waiting: None,
            max_drain_bytes: 64 * 1024,
            max_drain_time: Duration::from_millis(50),
        }
    }
}

impl Limits {
    /// For gateways with many providers and bursts: 512 connections, all of which may be idle.
    pub fn gateway() -> Self {
        Self {
            max_connections: 512,
            max_keepalive_connections: 512,
            ..Self::default()
        }
    }

    /// Sets `max_connections`.
    pub fn max_connections(mut self, n: usize) -> Self {
        self.max_connections = n;
        self
    }

    /// Sets `max_keepalive_connections`.
    pub fn max_keepalive_connections(mut self, n: usize) -> Self {
        self.max_keepalive_connections = n;
        self
    }

    /// Sets `keepalive_expiry`.
    pub fn keepalive_expiry(mut self, after: Duration) -> Self {
        self.keepalive_expiry = after;
        self
    }

    /// Sets `http2_keepalive_expiry`.
    pub fn http2_keepalive_expiry(mut self, after: Duration) -> Self {
        self.http2_keepalive_expiry = after;
        self
    }

    /// Sets `max_connections_per_host`.
    pub fn max_connections_per_host(mut self, n: impl Into<Option<usize>>) -> Self {
        self.max_connections_per_host = n.into();
        self
    }

    /// Sets `max_lifetime`.
    pub fn max_lifetime(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.max_lifetime = age.into();
        self
    }

    /// Sets `max_requests_per_connection`.
    pub fn max_requests_per_connection(mut self, n: impl Into<Option<u64>>) -> Self {
        self.max_requests_per_connection = n.into();
        self
    }

    /// Sets `max_drain_bytes`; 0 reads nothing that has not arrived.
    pub fn max_drain_bytes(mut self, bytes: u64) -> Self {
        self.max_drain_bytes = bytes;
        self
    }

    /// Sets `max_drain_time`.
    pub fn max_drain_time(mut self, time: Duration) -> Self {
        self.max_drain_time = time;
        self
    }

    /// Sets `max_waiting`.
    pub fn max_waiting(mut self, n: impl Into<Option<usize>>) -> Self {
        self.max_waiting = n.into();
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.max_connections == 0 {
            return Err(Error::invalid(
                "max_connections is 0: no request could be sent",
            ));
        }
        if self.max_requests_per_connection == Some(0) {
            return Err(Error::invalid(
                "max_requests_per_connection is 0: no request could be sent",
            ));
        }
        if self.max_lifetime.is_some_and(|life| life.is_zero()) {
            return Err(Error::invalid(
                "max_lifetime is 0: no request could be sent",
            ));
        }
        if self.max_connections_per_host == Some(0) {
            return Err(Error::invalid(
                "max_connections_per_host is 0: no request could be sent",
            ));
        }
        Ok(())
    }
}
