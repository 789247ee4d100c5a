//! The crate's one error: a leaf that names no upper type, cheap to clone (all who waited for a
//! dial share its cause) and one pointer wide.
//!
//! Every error answers three questions: where ([`Error::phase`], [`Error::origin`]), what
//! ([`Error::kind`] and its source) and what is known about the request on the other side
//! ([`Error::replay_safety`]).

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use http::StatusCode;

use crate::timing::{Phase, RequestTiming};

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request, URL or configuration is not valid; nothing was attempted.
    Invalid,
    /// A limit refused the request, such as `max_waiting`.
    Limit,
    /// The pool was shut down.
    PoolClosed,
    /// A timeout ran out; [`Error::phase`] says in which phase.
    Timeout,
    /// The name could not be resolved.
    Dns,
    /// No address could be connected to.
    Connect,
    /// The system has no ports, file descriptors or buffers left for one more connection, even after an
    /// idle one of the pool was closed.
    Exhausted,
    /// The proxy refused or failed.
    Proxy,
    /// The TLS handshake failed; certificate errors are here.
    Tls,
    /// The peer broke the HTTP protocol.
    Protocol,
    /// The connection was lost.
    ConnectionLost,
    /// The peer reset this stream or refused it.
    Refused,
    /// The peer takes this request over HTTP/1.1 only (HTTP_1_1_REQUIRED, RFC 9113 §7).
    Http1Required,
    /// The peer does not speak what the request needs, such as extended CONNECT (RFC 8441); nothing of it
    /// was sent.
    Unsupported,
    /// So much of the response was left unread that it was reset, for the sake of the connection's other
    /// responses or of memory.
    SlowReader,
    /// The body ended before its announced end.
    Truncated,
    /// Something was larger than its limit.
    TooLarge,
    /// The caller's own request body failed.
    Body,
    /// The body is not what was asked for, such as JSON that does not parse.
    Decode,
    /// The response has an error status; only from `error_for_status`, and where a WebSocket was refused.
    Status,
}

/// What is known about the request on the peer's side, for the decision whether to send it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplaySafety {
    /// No byte of it reached a socket.
    NotSent,
    /// The peer told us that it did not process it.
    Unprocessed,
    /// It may have been processed; sending it again may repeat its effect.
    MaybeProcessed,
    /// The peer processed it: part of a response arrived.
    Processed,
}

impl ReplaySafety {
    /// What is known of a request of which two attempts were made.
    pub(crate) fn and(self, other: Self) -> Self {
        let rank = |safety: Self| match safety {
            Self::NotSent => 0,
            Self::Unprocessed => 1,
            Self::MaybeProcessed => 2,
            Self::Processed => 3,
        };
        if rank(other) > rank(self) {
            other
        } else {
            self
        }
    }
}

/// An error of this crate. `Display` prints the whole cause in one line; secrets and header
/// values never appear in it.
#[derive(Clone)]
pub struct Error {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    phase: Option<Phase>,
    message: String,
    origin: Option<Arc<str>>,
    attempts: u32,
    on_reused_connection: bool,
    replay_safety: ReplaySafety,
    timing: Option<RequestTiming>,
    bytes_sent: u64,
    bytes_received: u64,
    status: Option<StatusCode>,
    timed_out: bool,
    /// The peer said it of the whole connection.
    of_connection: bool,
    /// The peer ended the connection in good order, and had taken requests on it.
    orderly: bool,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The phase in which it happened; `None` before the journey began.
    pub fn phase(&self) -> Option<Phase> {
        self.inner.phase
    }

    /// The origin, such as `https://api.example.com`; never a path or a query.
    pub fn origin(&self) -> Option<&str> {
        self.inner.origin.as_deref()
    }

    /// How many attempts were made, those that got no connection included; 0 when the request was refused as it
    /// stands (kind Invalid).
    pub fn attempts(&self) -> u32 {
        self.inner.attempts
    }

    /// Whether the last attempt ran on a connection that had served before.
    pub fn on_reused_connection(&self) -> bool {
        self.inner.on_reused_connection
    }

    /// What is known about the request on the peer's side, of all its attempts together.
    pub fn replay_safety(&self) -> ReplaySafety {
        self.inner.replay_safety
    }

    /// The timing up to the failure.
    pub fn timing(&self) -> Option<&RequestTiming> {
        self.inner.timing.as_ref()
    }

    /// Bytes of the request that the connection took in the last attempt. HTTP/1.1: what the socket
    /// accepted, head and TLS included. HTTP/2: the bytes of the body, since streams share one socket.
    pub fn bytes_sent(&self) -> u64 {
        self.inner.bytes_sent
    }

    /// Bytes of the response that arrived in the last attempt. HTTP/1.1: what the socket brought until the
    /// head was whole, TLS included, and the bytes of the body that the caller got. HTTP/2: those of the
    /// body alone.
    pub fn bytes_received(&self) -> u64 {
        self.inner.bytes_received
    }

    /// A timeout ran out, ours or the kernel's.
    pub fn is_timeout(&self) -> bool {
        self.inner.timed_out || self.inner.kind == ErrorKind::Timeout
    }

    /// The connection could not be set up: dns, tcp, proxy, tls or protocol.
    pub fn is_connect(&self) -> bool {
        matches!(
            self.inner.phase,
            Some(Phase::Dns | Phase::Tcp | Phase::Proxy | Phase::Tls | Phase::Protocol)
        )
    }

    /// The name could not be resolved.
    pub fn is_dns(&self) -> bool {
        self.inner.kind == ErrorKind::Dns
    }

    /// The TLS handshake failed.
    pub fn is_tls(&self) -> bool {
        self.inner.kind == ErrorKind::Tls
    }

    /// The request or the configuration was not valid.
    pub fn is_invalid(&self) -> bool {
        self.inner.kind == ErrorKind::Invalid
    }

    /// The pool was shut down.
    pub fn is_pool_closed(&self) -> bool {
        self.inner.kind == ErrorKind::PoolClosed
    }

    /// The response has an error status; only from `error_for_status`, and where a WebSocket was refused.
    pub fn is_status(&self) -> bool {
        self.inner.kind == ErrorKind::Status
    }

    /// The status that is the error, of kind Status.
    pub fn status(&self) -> Option<StatusCode> {
        self.inner.status
    }

    /// A body was cut short.
    pub fn is_truncated(&self) -> bool {
        self.inner.kind == ErrorKind::Truncated
    }
}

/// For the modules that find the failure.
impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                kind,
                phase: None,
                message: message.into(),
                origin: None,
                attempts: 0,
                on_reused_connection: false,
                replay_safety: ReplaySafety::NotSent,
                timing: None,
                bytes_sent: 0,
                bytes_received: 0,
                status: None,
                timed_out: false,
                of_connection: false,
                orderly: false,
                source: None,
            }),
        }
    }

    /// A request, URL or option that cannot be used.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// A status that is no answer to what was asked.
    pub(crate) fn of_status(status: StatusCode, message: impl Into<String>) -> Self {
        let mut error = Self::new(ErrorKind::Status, message);
        error.change().status = Some(status);
        error
    }

    pub(crate) fn at(mut self, phase: Phase) -> Self {
        self.change().phase = Some(phase);
        self
    }

    /// For an error that becomes the cause of another one.
    pub(crate) fn without_phase(mut self) -> Self {
        self.change().phase = None;
        self
    }

    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        let source: Box<dyn StdError + Send + Sync> = source.into();
        self.change().timed_out |= source
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::TimedOut);
        self.change().source = Some(printable(source));
        self
    }

    pub(crate) fn with_origin(mut self, origin: impl Into<Arc<str>>) -> Self {
        self.change().origin = Some(origin.into());
        self
    }

    pub(crate) fn with_replay(mut self, safety: ReplaySafety) -> Self {
        self.change().replay_safety = safety;
        self
    }

    /// What the journey knows about the request that failed.
    pub(crate) fn with_attempt(mut self, attempts: u32, reused: bool) -> Self {
        let inner = self.change();
        inner.attempts = attempts;
        inner.on_reused_connection = reused;
        self
    }

    pub(crate) fn of_connection(mut self) -> Self {
        self.change().of_connection = true;
        self
    }

    /// The peer ended the connection in good order: no sign of trouble.
    pub(crate) fn orderly(mut self) -> Self {
        self.change().orderly = true;
        self
    }

    pub(crate) fn is_orderly(&self) -> bool {
        self.inner.orderly
    }

    pub(crate) fn is_of_connection(&self) -> bool {
        self.inner.of_connection
    }

    pub(crate) fn with_bytes(mut self, sent: u64, received: u64) -> Self {
        let inner = self.change();
        inner.bytes_sent = sent;
        inner.bytes_received = received;
        self
    }

    pub(crate) fn with_timing(mut self, timing: RequestTiming) -> Self {
        self.change().timing = Some(timing);
        self
    }

    fn change(&mut self) -> &mut Inner {
        Arc::make_mut(&mut self.inner)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.inner;
        if let Some(phase) = inner.phase {
            write!(f, "{phase}: ")?;
        }
        f.write_str(&inner.message)?;
        if let Some(origin) = &inner.origin {
            write!(f, " ({origin})")?;
        }
        let mut cause = inner.source.as_deref().map(|s| s as &dyn StdError);
        let mut printed = inner.message.clone();
        while let Some(error) = cause {
            let text = error.to_string();
            // A wrapper that repeats its cause would print it twice.
            if !printed.contains(&text) {
                write!(f, ": {text}")?;
            }
            printed = text;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.inner;
        f.debug_struct("Error")
            .field("kind", &inner.kind)
            .field("phase", &inner.phase)
            .field("message", &inner.message)
            .field("origin", &inner.origin)
            .field("attempts", &inner.attempts)
            .field("on_reused_connection", &inner.on_reused_connection)
            .field("replay_safety", &inner.replay_safety)
            .field("source", &inner.source.as_ref().map(ToString::to_string))
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_deref().map(|s| s as &dyn StdError)
    }
}

/// A cause as it is, unless its text would fill a log or command a terminal: it may repeat what a peer said.
fn printable(source: Box<dyn StdError + Send + Sync>) -> Arc<dyn StdError + Send + Sync> {
    const LONGEST: usize = 400;
    let mut texts = Vec::new();
    let mut cause = Some(&*source as &dyn StdError);
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    let is_sound = |text: &String| text.len() <= LONGEST && !text.contains(char::is_control);
    if texts.iter().all(is_sound) {
        return Arc::from(source);
    }
    let mut text = String::new();
    for c in texts.join(": ").chars() {
        if text.len() >= LONGEST {
            text.push_str("...");
            break;
        }
        if c.is_control() {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    Arc::from(Box::<dyn StdError + Send + Sync>::from(text))
}

/// Text chosen by a peer, made safe to print: control and non-ASCII bytes escaped, length capped.
pub(crate) fn escape_peer_text(text: &[u8]) -> String {
    const CAP: usize = 128;
    let shown = text[..text.len().min(CAP)].escape_ascii().to_string();
    if text.len() > CAP {
        format!("{shown}... ({} bytes)", text.len())
    } else {
        shown
    }
}

/// A text in which whatever looks like a key is masked: a run of 12 or more letters, digits, `-`
/// and `_` with a digit in it. Some providers echo the key that they refuse.
#[cfg(feature = "json")]
pub(crate) fn mask_keys(text: &str) -> String {
    const SHORTEST_KEY: usize = 12;
    let in_key = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(in_key) {
        let (before, from) = rest.split_at(start);
        let (run, after) = from.split_at(from.find(|c| !in_key(c)).unwrap_or(from.len()));
        masked.push_str(before);
        let is_key = run.len() >= SHORTEST_KEY && run.bytes().any(|b| b.is_ascii_digit());
        masked.push_str(if is_key { "***" } else { run });
        rest = after;
    }
    masked.push_str(rest);
    masked
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[test]
    fn error_is_one_pointer_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Option<Error>>(), size_of::<usize>());
    }

    #[test]
    fn display_prints_the_whole_cause_in_one_line() {
        let io = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let error = Error::new(ErrorKind::Connect, "cannot connect to 127.0.0.1:1")
            .at(Phase::Tcp)
            .with_origin("https://api.test")
            .with_source(io);
        assert_eq!(
            error.to_string(),
            "tcp: cannot connect to 127.0.0.1:1 (https://api.test): connection refused"
        );
        assert!(error.source().is_some());
    }

    #[cfg(feature = "json")]
    #[test]
    fn what_looks_like_a_key_is_masked() {
        for (text, masked) in [
            (r#"{"key":"sk-abc123def456"}"#, r#"{"key":"***"}"#),
            ("invalid_request_error at 12", "invalid_request_error at 12"),
            ("AIzaSyA1b2C3d4E5f6", "***"),
            ("", ""),
        ] {
            assert_eq!(mask_keys(text), masked);
        }
    }

    #[test]
    fn peer_text_is_escaped_and_capped() {
        assert_eq!(escape_peer_text(b"a\r\n\x1b[0m"), "a\\r\\n\\x1b[0m");
        assert!(escape_peer_text(&[b'x'; 1000]).len() < 200);
    }
}
