//! The operating system's resolver: `getaddrinfo` on tokio's blocking pool.

use std::io;

use crate::io::{BoxFuture, is_exhausted};

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

/// `getaddrinfo` tells its causes only in words; std gives all of them one kind. That there is nothing is worth
/// knowing: it is remembered, and an old answer does not stand in for it as it does for a resolver that fails. Other
/// systems than Linux say the same words where they have no network.
fn classify(error: io::Error) -> ResolveError {
    /// EAI_NONAME and EAI_NODATA, of glibc and of musl.
    const NO_SUCH_NAME: [&str; 2] = ["Name or service not known", "Name does not resolve"];
    const NO_ADDRESS: [&str; 2] = [
        "No address associated with hostname",
        "Name has no usable address",
    ];
    let said = error.to_string();
    let is_one_of = |words: [&str; 2]| words.iter().any(|words| said.ends_with(words));
    let kind = if is_exhausted(&error) {
        ResolveErrorKind::Exhausted
    } else if cfg!(target_os = "linux") && is_one_of(NO_SUCH_NAME) {
        ResolveErrorKind::NoSuchName
    } else if cfg!(target_os = "linux") && is_one_of(NO_ADDRESS) {
        ResolveErrorKind::NoAddress
    } else {
        ResolveErrorKind::Other
    };
    ResolveError::new(kind).with_source(error)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    // layering: uses this module and its siblings.
    use super::*;

    #[tokio::test]
    async fn a_name_that_cannot_be_is_no_failure_of_the_resolver() {
        // Nobody is asked for a name that is longer than any (RFC 1035 §2.3.4).
        let long = ["a"; 200].join(".");
        let error = SystemResolver::new().resolve(&long, Family::V4).await;
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ResolveErrorKind::NoSuchName, "{error:?}");
        for (words, kind) in [
            (
                "No address associated with hostname",
                ResolveErrorKind::NoAddress,
            ),
            (
                "Temporary failure in name resolution",
                ResolveErrorKind::Other,
            ),
        ] {
            let error = io::Error::other(format!("failed to lookup address information: {words}"));
            assert_eq!(classify(error).kind(), kind, "{words}");
        }
    }
}
