//! The operating system's resolver: `getaddrinfo` on tokio's blocking pool.

use std::io;

use crate::io::BoxFuture;

use super::resolve::{Answer, Family, Resolve, ResolveError, ResolveErrorKind};

/// Resolves by `getaddrinfo`, the default without the `hickory` feature.
///
/// It knows everything the system knows (nsswitch, mDNS, VPN), but says nothing about times to
/// live and answers both families at once: each question costs one blocking call that takes as
/// long as the slower family. Answers are kept for
/// [`DnsOptions::min_ttl`](super::DnsOptions::min_ttl).
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl SystemResolver {
    /// The system's resolver.
    pub fn new() -> Self {
        Self
    }
}

impl Resolve for SystemResolver {
    fn resolve(
        &self,
        name: &str,
        family: Family,
    ) -> BoxFuture<'static, Result<Answer, ResolveError>> {
        // Without a final dot: the hosts file does not know names that have one. A name with a dot in
        // it is asked for as it is before search domains are tried.
        let name = name.to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name, 0)).await.map_err(classify)?;
            let addrs: Vec<_> = found
                .map(|addr| addr.ip())
                .filter(|ip| Family::of(ip) == family)
                .collect();
            if addrs.is_empty() {
                return Err(ResolveError::new(ResolveErrorKind::NoAddress));
            }
            Ok(Answer::new(addrs, None))
        })
    }
}

/// `getaddrinfo` tells its causes only in words; std gives all of them one kind.
fn classify(error: io::Error) -> ResolveError {
    ResolveError::new(ResolveErrorKind::Other).with_source(error)
}
