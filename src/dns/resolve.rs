//! The seam to resolvers: one question, one family, one answer.

use std::error::Error as StdError;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::io::BoxFuture;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4: A records.
    V4,
    /// IPv6: AAAA records.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(ip: &IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// The addresses of one family of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// The addresses, in the order to prefer.
    pub addrs: Vec<IpAddr>,
    /// How long they may be kept; `None` when the source does not say.
    pub ttl: Option<Duration>,
}

impl Answer {
    /// An answer.
    pub fn new(addrs: Vec<IpAddr>, ttl: Option<Duration>) -> Self {
        Self { addrs, ttl }
    }
}

/// Why a name was not resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResolveErrorKind {
    /// The name does not exist (NXDOMAIN).
    NoSuchName,
    /// The name exists but has no address of this family (NODATA).
    NoAddress,
    /// The server answered with a failure: SERVFAIL, REFUSED and the like.
    ServerFailure,
    /// No answer in time.
    Timeout,
    /// Addresses were found, and the pool's address filter refused all of them.
    Forbidden,
    /// There was no descriptor or port to ask with. An idle connection makes room once.
    Exhausted,
    /// Anything else, such as a missing configuration.
    Other,
}

/// The error of a resolver. Cheap to clone: all who asked for the name share it.
#[derive(Clone, Debug)]
pub struct ResolveError {
    kind: ResolveErrorKind,
    ttl: Option<Duration>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl ResolveError {
    /// An error of this kind.
    pub fn new(kind: ResolveErrorKind) -> Self {
        Self {
            kind,
            ttl: None,
            source: None,
        }
    }

    /// How long the failure may be remembered (RFC 2308 §5).
    pub fn with_ttl(mut self, ttl: Option<Duration>) -> Self {
        self.ttl = ttl;
        self
    }

    /// The cause.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ResolveErrorKind {
        self.kind
    }

    /// How long the failure may be remembered, if the server said so.
    pub fn ttl(&self) -> Option<Duration> {
        self.ttl
    }
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            ResolveErrorKind::NoSuchName => "the name does not exist (NXDOMAIN)",
            ResolveErrorKind::NoAddress => "the name has no address",
            ResolveErrorKind::ServerFailure => "the name server failed",
            ResolveErrorKind::Timeout => "no name server answered in time",
            ResolveErrorKind::Forbidden => "the address filter refused every address",
            ResolveErrorKind::Exhausted => "there is no descriptor or port left to ask with",
            ResolveErrorKind::Other => "the resolver failed",
        })
    }
}

impl StdError for ResolveError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|s| s as &dyn StdError)
    }
}

/// Asks for the addresses of a name. The pool's cache, its single-flight and its timing stand
/// above it.
///
/// The name comes in canonical form: lower case, A-labels, no final dot; it is complete, so search
/// domains must not be appended. The two families are asked apart and at the same time.
///
/// The future runs in a task of the pool; it is dropped when the pool's runtime ends.
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of one family of `name`.
    fn resolve(
        &self,
        name: &str,
        family: Family,
    ) -> BoxFuture<'static, Result<Answer, ResolveError>>;
}
