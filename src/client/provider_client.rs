//! A client of one provider.

use std::fmt;
use std::sync::Arc;

use http::Method;

use crate::error::Error;
use crate::metrics::ConnectionPoolStats;
use crate::pool::{WarmReport, check_out, warm};

use super::client_core::ClientCore;
use super::request::RequestBuilder;

/// A client of one provider: a base URL, headers, timeouts. Cheap to clone; all clones, and all
/// clients with the same origin and options, share the same connections.
///
/// Requests have the headers that its builder was given. Unless those, or the request itself, say otherwise they say
/// `accept: */*` and `user-agent: firstbyte/` with the version; nothing else is added but what framing needs.
#[derive(Clone)]
pub struct Client {
    pub(crate) core: Arc<ClientCore>,
}

impl fmt::Debug for Client {
    /// Without headers and query: they hold keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("origin", &self.core.route.origin)
            .finish_non_exhaustive()
    }
}

macro_rules! methods {
    ($($(#[doc = $doc:literal])+ $name:ident = $method:ident,)+) => {
        $($(#[doc = $doc])+
        pub fn $name(&self, path: impl AsRef<str>) -> RequestBuilder {
            self.request(Method::$method, path)
        })+
    };
}

impl Client {
    methods! {
        /// A GET of `path` under the base URL.
        get = GET,
        /// A POST to `path` under the base URL.
        post = POST,
        /// A PUT to `path` under the base URL.
        put = PUT,
        /// A PATCH of `path` under the base URL.
        patch = PATCH,
        /// A DELETE of `path` under the base URL.
        delete = DELETE,
        /// A HEAD of `path` under the base URL.
        head = HEAD,
    }

    /// Takes a lease on a warm connection and gives it back; false if there was none. No part of the API:
    /// for `benches/checkout.rs` alone. `at` is now, which a request knows by then.
    #[doc(hidden)]
    pub fn __check_out(&self, at: std::time::Instant) -> Result<bool, Error> {
        let host = self.core.route.host(&self.core.pool)?;
        check_out(host, at)
    }

    /// A request to `path`, which is appended to the path of the base URL, or to an absolute URL of
    /// the same origin.
    pub fn request(&self, method: Method, path: impl AsRef<str>) -> RequestBuilder {
        RequestBuilder::new(self.core.clone(), method, path.as_ref())
    }

    /// Makes `n` requests at once possible without waiting for a connection, over HTTP/2 as many as the peer allows on one;
    /// sends no request.
    ///
    /// Dropping the future stops waiting; dials that were started finish.
    ///
    /// # Errors
    /// Invalid without a tokio runtime. What a dial failed with is in the report.
    pub async fn warm(&self, n: usize) -> Result<WarmReport, Error> {
        let host = self.core.route.awake(&self.core.pool)?;
        Ok(warm(&host, n).await)
    }

    /// Statistics of this client's calls; connections and gauges belong to the pool.
    pub fn stats(&self) -> ConnectionPoolStats {
        self.core.counters.snapshot()
    }
}
