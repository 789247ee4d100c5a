//! What a caller may ask of one request.

use std::sync::Arc;
use std::time::Duration;

use crate::event::{EventListener, Listener};

/// How long each part of a request may take. `None` means no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Timeouts {
    /// Waiting for a limit of the pool or of the peer. Default 5 s.
    pub queue: Option<Duration>,
    /// Waiting for a connection to be set up: dns, tcp, proxy, tls and protocol together.
    /// Default 5 s. The dial itself goes on and serves others.
    pub connect: Option<Duration>,
    /// From having a connection to the head of the response, all of it, without progress of the
    /// upload. Default none: a model may think for minutes.
    pub first_byte: Option<Duration>,
    /// Between two reads of the response body, counted only while a read is pending. Default
    /// none.
    pub between_bytes: Option<Duration>,
    /// A hard cap on everything, to the end of the body. Default none. For token streams set
    /// `first_byte` and `between_bytes` instead.
    pub total: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            queue: Some(Duration::from_secs(5)),
            connect: Some(Duration::from_secs(5)),
            first_byte: None,
            between_bytes: None,
            total: None,
        }
    }
}

impl Timeouts {
    /// Sets `queue`.
    pub fn queue(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.queue = limit.into();
        self
    }

    /// Sets `connect`.
    pub fn connect(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.connect = limit.into();
        self
    }

    /// Sets `first_byte`.
    pub fn first_byte(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.first_byte = limit.into();
        self
    }

    /// Sets `between_bytes`.
    pub fn between_bytes(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.between_bytes = limit.into();
        self
    }

    /// Sets `total`.
    pub fn total(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.total = limit.into();
        self
    }
}

/// When a failed attempt is made again without asking the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RetryPolicy {
    /// Never.
    Never,
    /// What the RFCs allow (RFC 9110 §9.2.2, RFC 9112 §9.3.1, RFC 9113 §8.7): requests that were
    /// provably not processed, of any method; idempotent ones also when a reused HTTP/1.1
    /// connection was lost before any byte of the response. Never once a byte of a response was
    /// seen, unless that says that it was not processed (421, 425), and never with a body that cannot be produced again.
    #[default]
    Rfc,
}

/// Settings of one request. Put into the request's extensions they reach everything that
/// [`RequestBuilder`](super::RequestBuilder) reaches; what is `None` is the client's or the pool's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestOptions {
    /// All timeouts.
    pub timeouts: Option<Timeouts>,
    /// The total timeout alone.
    pub timeout: Option<Duration>,
    /// Whether the request may be processed twice. By default its method decides, or an
    /// `Idempotency-Key` header, which is read and never invented.
    pub idempotent: Option<bool>,
    /// When to try again.
    pub retry: Option<RetryPolicy>,
    /// The most bytes that `bytes`, `text` and `json` collect.
    pub max_body_bytes: Option<usize>,
    /// How long the body waits for `100 Continue`; see [`expect_continue`](Self::expect_continue).
    pub expect_continue: Option<Duration>,
    /// What a CONNECT wants to speak; see [`extended_connect`](Self::extended_connect).
    pub extended_connect: Option<Arc<str>>,
    pub(crate) listener: Option<Listener>,
}

impl RequestOptions {
    /// Sets all timeouts, in place of those from the level above: a `None` in them is no bound.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = Some(timeouts);
        self
    }

    /// Sets the total timeout.
    pub fn timeout(mut self, total: Duration) -> Self {
        self.timeout = Some(total);
        self
    }

    /// Says whether the request may be processed twice.
    pub fn idempotent(mut self, yes: bool) -> Self {
        self.idempotent = Some(yes);
        self
    }

    /// Sets the retry policy.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// Sets the most bytes that `bytes`, `text` and `json` collect.
    pub fn max_body_bytes(mut self, bytes: usize) -> Self {
        self.max_body_bytes = Some(bytes);
        self
    }

    /// Sends `expect: 100-continue` (RFC 9110 §10.1.1): the body waits until the server says that it wants
    /// it, or answers, or `patience` is over; servers that do not know the expectation say nothing. What
    /// the server answers instead, 417 included, is the response, and the body is not sent. Without a body
    /// nothing is expected.
    ///
    /// Worth it for large uploads that may be refused: it costs a round trip.
    pub fn expect_continue(mut self, patience: Duration) -> Self {
        self.expect_continue = Some(patience);
        self
    }

    /// Makes a request with method CONNECT and no body an extended CONNECT (RFC 8441): `protocol`, such as
    /// `websocket`, is spoken over one stream of an HTTP/2 connection that goes on serving other requests.
    /// A 2xx answer makes the stream a tunnel, see [`Response::upgrade`](super::Response::upgrade); any
    /// other is a response like others. The request waits until the peer's SETTINGS have come.
    ///
    /// A peer that does not allow it, or speaks HTTP/1.1, is told by an error of kind
    /// [`Unsupported`](crate::ErrorKind::Unsupported); nothing was sent then.
    pub fn extended_connect(mut self, protocol: impl Into<Arc<str>>) -> Self {
        self.extended_connect = Some(protocol.into());
        self
    }

    /// Tells somebody of informational responses and of the progress of both bodies.
    pub fn listener(mut self, listener: Arc<dyn EventListener>) -> Self {
        self.listener = Some(Listener(listener));
        self
    }
}

/// What holds for one call once client and request have had their say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallOptions {
    pub(crate) timeouts: Timeouts,
    pub(crate) retry: RetryPolicy,
    pub(crate) max_body_bytes: usize,
    pub(crate) expect_continue: Option<Duration>,
    pub(crate) listener: Option<Listener>,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default(),
            // Enough for any JSON answer; a runaway body does not take the process.
            max_body_bytes: 64 * 1024 * 1024,
            expect_continue: None,
            listener: None,
        }
    }
}

impl CallOptions {
    /// These, but where the request has its own.
    pub(crate) fn with(&self, request: &RequestOptions) -> Self {
        let mut timeouts = request.timeouts.unwrap_or(self.timeouts);
        timeouts.total = request.timeout.or(timeouts.total);
        Self {
            timeouts,
            retry: request.retry.unwrap_or(self.retry),
            max_body_bytes: request.max_body_bytes.unwrap_or(self.max_body_bytes),
            expect_continue: request.expect_continue,
            listener: request.listener.clone(),
        }
    }
}
