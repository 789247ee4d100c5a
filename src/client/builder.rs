//! Building clients, and finding them again by name.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::connection::{ConnectOptions, IpVersion, Protocols};
use crate::error::{Error, escape_peer_text};
use crate::metrics::Counters;
use crate::origin::Origin;
use crate::pool::{Minimum, Pool};
use crate::proxy::ProxyRules;
use crate::sync::lock;
use crate::tcp::TcpOptions;
use crate::tls::TlsOptions;

use super::base_url::BaseUrl;
use super::client_core::ClientCore;
use super::options::{CallOptions, RetryPolicy, Timeouts};
use super::prepare::{DefaultHeaders, mark_all_sensitive};
use super::provider::KeyPlace;
use super::provider_client::Client;
use super::request::{bearer, header};
use super::send::Route;
use super::targets::Targets;

/// The clients of a pool by their provider's name.
pub(crate) type Registered = Arc<Mutex<HashMap<String, Client>>>;

/// Builds a [`Client`].
#[must_use = "a client exists once it is built"]
pub struct ClientBuilder {
    pool: Arc<Pool>,
    registry: Option<(String, Registered)>,
    base_url: String,
    headers: HeaderMap,
    /// A key that travels in the query.
    query: Option<(String, String)>,
    connect: ConnectOptions,
    options: CallOptions,
    minimum: Minimum,
    mistake: Option<Error>,
}

impl fmt::Debug for ClientBuilder {
    /// Without headers and URL: they may hold keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("provider", &self.registry.as_ref().map(|(name, _)| name))
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl ClientBuilder {
    pub(crate) fn new(
        pool: Arc<Pool>,
        registry: Option<(String, Registered)>,
        base_url: String,
        connect: ConnectOptions,
        options: CallOptions,
    ) -> Self {
        Self {
            pool,
            registry,
            base_url,
            headers: HeaderMap::new(),
            query: None,
            connect,
            options,
            minimum: Minimum::default(),
            mistake: None,
        }
    }

    /// Adds a header to every request.
    pub fn header<N, V>(mut self, name: N, value: V) -> Self
    where
        N: TryInto<HeaderName>,
        V: TryInto<HeaderValue>,
    {
        match header(name, value) {
            Ok((name, value)) => {
                self.headers.append(name, value);
            }
            Err(error) => self.mistake = self.mistake.or(Some(error)),
        }
        self
    }

    /// Sets the headers of every request; each name replaces what was there.
    pub fn headers(mut self, mut headers: HeaderMap) -> Self {
        mark_all_sensitive(&mut headers);
        for name in headers.keys() {
            self.headers.remove(name);
        }
        for (name, value) in &headers {
            self.headers.append(name, value.clone());
        }
        self
    }

    /// Sends `authorization: Bearer <token>` with every request. The token never shows in logs,
    /// errors or Debug.
    pub fn bearer_auth(mut self, token: impl AsRef<str>) -> Self {
        match bearer(token.as_ref()) {
            Ok(value) => {
                self.headers.insert(AUTHORIZATION, value);
            }
            Err(error) => self.mistake = self.mistake.or(Some(error)),
        }
        self
    }

    /// Sends this key with every request, where its provider wants it. The key never shows in logs, errors, Debug or
    /// [`Response::url`](super::Response::url).
    pub fn key(mut self, place: &KeyPlace, key: impl AsRef<str>) -> Self {
        let key = key.as_ref();
        if key.is_empty() {
            // As a rule it is a variable of the environment that is not set.
            self.mistake = self
                .mistake
                .or(Some(Error::invalid("the API key is empty")));
            return self;
        }
        match place {
            KeyPlace::Bearer => self.bearer_auth(key),
            KeyPlace::Header(name) => {
                match header(name.as_ref(), key) {
                    Ok((name, mut value)) => {
                        value.set_sensitive(true);
                        self.headers.insert(name, value);
                    }
                    Err(error) => self.mistake = self.mistake.or(Some(error)),
                }
                self
            }
            KeyPlace::Query(name) => {
                self.query = Some((name.clone().into_owned(), key.to_owned()));
                self
            }
        }
    }

    /// Bounds every call, to the end of its body. For token streams set
    /// [`Timeouts::first_byte`] and [`Timeouts::between_bytes`] instead.
    pub fn timeout(mut self, total: Duration) -> Self {
        self.options.timeouts.total = Some(total);
        self
    }

    /// Sets all timeouts, in place of those from the level above: a `None` in them is no bound.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.options.timeouts = timeouts;
        self
    }

    /// Sets when a failed attempt is made again.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.options.retry = policy;
        self
    }

    /// Sets the most bytes that `bytes`, `text` and `json` collect. Default 64 MiB.
    pub fn max_body_bytes(mut self, bytes: usize) -> Self {
        self.options.max_body_bytes = bytes;
        self
    }

    /// Sets which HTTP versions to speak.
    pub fn protocols(mut self, protocols: Protocols) -> Self {
        self.connect.protocols = protocols;
        self
    }

    /// Sets whom to trust and what to offer.
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.connect.tls = tls;
        self
    }

    /// Sets the options of TCP sockets. Refused where the pool has a dialer, whose matter they are.
    pub fn tcp(mut self, tcp: TcpOptions) -> Self {
        self.connect.tcp = tcp;
        self
    }

    /// Sets which address families to use.
    pub fn ip_version(mut self, version: IpVersion) -> Self {
        self.connect.ip_version = version;
        self
    }

    /// Goes through these proxies; a [`Proxy`](crate::proxy::Proxy) alone is used for every origin.
    /// Default: none, or the pool's.
    pub fn proxy(mut self, rules: impl Into<ProxyRules>) -> Self {
        self.connect.proxies = rules.into();
        self
    }

    /// Goes through the proxies that the environment names, read now:
    /// [`ProxyRules::from_env`](crate::proxy::ProxyRules::from_env).
    pub fn proxy_from_env(mut self) -> Self {
        match ProxyRules::from_env() {
            Ok(rules) => self.connect.proxies = rules,
            Err(error) => self.mistake = self.mistake.or(Some(error)),
        }
        self
    }

    /// Connects to this Unix socket instead of the host of the base URL, which still names the
    /// origin in `Host`, `:authority` and TLS. It takes no other way: proxies, options of TCP and an address family
    /// beside it, the pool's own too, are refused.
    #[cfg(unix)]
    pub fn unix_socket(mut self, path: impl AsRef<std::path::Path>) -> Self {
        self.connect.unix_socket = Some(path.as_ref().into());
        self
    }

    /// Shares connections only with clients of the same tag.
    pub fn isolate(mut self, tag: impl Into<String>) -> Self {
        self.connect.isolation = Some(tag.into().into());
        self
    }

    /// Keeps at least `n` HTTP/1.1 connections idle and ready, where the server speaks that: one that is
    /// taken or closed is replaced in the background. They do not expire and do not count against
    /// [`Limits::max_keepalive_connections`](crate::Limits::max_keepalive_connections); the other limits
    /// hold, nobody is put off for them, and they are filled up at most once a second.
    ///
    /// On each runtime it begins with the first request or [`warm`](Client::warm), and it ends with the
    /// last clone of the client. Default 0.
    pub fn min_idle(mut self, n: usize) -> Self {
        self.minimum.idle = n;
        self
    }

    /// Keeps at least `n` HTTP/2 connections open, where the server speaks that, in the same way as
    /// [`min_idle`](Self::min_idle); at most
    /// [`Http2Options::max_connections_per_origin`](crate::Http2Options::max_connections_per_origin).
    /// Default 0.
    pub fn min_connections(mut self, n: usize) -> Self {
        self.minimum.shared = n;
        self
    }

    /// Builds the client. Does no I/O and needs no runtime.
    ///
    /// Under a provider's name that is taken, new headers and credentials replace the old ones for
    /// new requests of all clones; any other difference is an error.
    ///
    /// # Errors
    /// Invalid: a URL, header or option that cannot be used, or the names of the fields that differ
    /// from the registered client.
    pub fn build(self) -> Result<Client, Error> {
        self.finish(false)
    }

    /// Builds the client and takes the name from the one that has it. That one goes on working for
    /// whoever holds it.
    ///
    /// # Errors
    /// As [`build`](Self::build), but differences are meant.
    pub fn replace(self) -> Result<Client, Error> {
        self.finish(true)
    }

    fn finish(self, replace: bool) -> Result<Client, Error> {
        let Self {
            pool,
            registry,
            base_url,
            headers,
            query,
            connect,
            options,
            minimum,
            mistake,
        } = self;
        if let Some(error) = mistake {
            return Err(error);
        }
        let base = BaseUrl::parse(&base_url).map_err(|error| {
            let message = format!("base URL `{}` cannot be used", without_secrets(&base_url));
            Error::invalid(message).with_source(error)
        })?;
        crate::connection::check_plain(&base.origin, connect.protocols)?;
        check_unix_socket(&connect, pool.has_dialer())?;
        if pool.has_dialer() && connect.tcp != TcpOptions::default() {
            return Err(Error::invalid(
                "tcp options do nothing beside the pool's dialer",
            ));
        }
        check_minimum(minimum, &base.origin, connect.protocols)?;
        connect.tcp.check()?;
        if base.origin.is_https() {
            pool.prepare_tls(&connect.tls)?;
        }
        let client = Client {
            core: Arc::new(ClientCore {
                route: Route::new(base.origin.clone(), Arc::new(connect))?.keeping_warm(minimum),
                pool,
                base,
                options,
                counters: Counters::new(),
                headers: ArcSwap::new(DefaultHeaders::new(headers, query)),
                targets: Targets::default(),
            }),
        };
        let Some((name, registered)) = registry else {
            return Ok(client);
        };
        let mut registered = lock(&registered);
        if let Some(existing) = registered.get(&name).filter(|_| !replace) {
            let different = differences(&existing.core, &client.core);
            if !different.is_empty() {
                return Err(Error::invalid(format!(
                    "client `{name}` exists with other {}; use replace() to change it",
                    different.join(", ")
                )));
            }
            existing.core.headers.store(client.core.headers.load_full());
            return Ok(existing.clone());
        }
        registered.insert(name, client.clone());
        Ok(client)
    }
}

/// What of a URL that may not even parse can be printed.
fn without_secrets(url: &str) -> String {
    // Where user info ends nobody knows then.
    let end = match url.contains('@') {
        true => url.find("://").map_or(0, |at| at + 3),
        false => url.find(['?', '#']).unwrap_or(url.len()),
    };
    let cut = if end < url.len() { "..." } else { "" };
    escape_peer_text(&url.as_bytes()[..end]) + cut
}

/// A minimum for a protocol that is never spoken would do nothing.
fn check_minimum(minimum: Minimum, origin: &Origin, protocols: Protocols) -> Result<(), Error> {
    let speaks_http1 = matches!(protocols, Protocols::Auto | Protocols::Http1);
    let speaks_http2 = match protocols {
        Protocols::Auto => origin.is_https(),
        Protocols::Http1 => false,
        Protocols::Http2 | Protocols::Http2PriorKnowledge => true,
    };
    if minimum.idle > 0 && !speaks_http1 {
        return Err(Error::invalid(
            "min_idle does nothing for a client that speaks HTTP/2 alone; set min_connections",
        ));
    }
    if minimum.shared > 0 && !speaks_http2 {
        return Err(Error::invalid(
            "min_connections does nothing for a client that speaks HTTP/1.1 alone; set min_idle",
        ));
    }
    Ok(())
}

/// A Unix socket leaves nothing to do for a proxy, a dialer, TCP or an address.
fn check_unix_socket(connect: &ConnectOptions, has_dialer: bool) -> Result<(), Error> {
    if connect.unix_socket.is_none() {
        return Ok(());
    }
    if !connect.proxies.is_none() {
        return Err(Error::invalid("a proxy does nothing beside unix_socket"));
    }
    if has_dialer {
        return Err(Error::invalid(
            "the pool's dialer does nothing beside unix_socket",
        ));
    }
    if connect.tcp != TcpOptions::default() {
        return Err(Error::invalid("tcp options do nothing beside unix_socket"));
    }
    if connect.ip_version != IpVersion::default() {
        return Err(Error::invalid("ip_version does nothing beside unix_socket"));
    }
    Ok(())
}

/// The names of the fields, never their values.
fn differences(a: &ClientCore, b: &ClientCore) -> Vec<&'static str> {
    let ConnectOptions {
        protocols,
        tls,
        tcp,
        ip_version,
        proxies,
        unix_socket,
        isolation,
        // No client asks for it: some of its requests do.
        tunnels: _,
    } = &*a.route.options;
    let other = &*b.route.options;
    [
        ("base URL", a.base != b.base),
        ("protocols", *protocols != other.protocols),
        ("tls", *tls != other.tls),
        ("tcp", *tcp != other.tcp),
        ("ip_version", *ip_version != other.ip_version),
        ("proxy", *proxies != other.proxies),
        ("unix_socket", *unix_socket != other.unix_socket),
        ("isolation", *isolation != other.isolation),
        ("minimum kept warm", a.route.minimum != b.route.minimum),
        ("timeouts", a.options.timeouts != b.options.timeouts),
        ("retry", a.options.retry != b.options.retry),
        (
            "max_body_bytes",
            a.options.max_body_bytes != b.options.max_body_bytes,
        ),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect()
}
