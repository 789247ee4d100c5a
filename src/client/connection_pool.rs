//! The pool as callers hold it.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::uri::PathAndQuery;

use crate::body::Body;
use crate::connection::{
    AddressFilter, ConnectOptions, ConnectionInfo, Deps, IpVersion, Protocols, RaceOptions,
};
use crate::dns::{Dns, DnsOptions, Resolve};
use crate::error::Error;
use crate::http2::Http2Options;
use crate::io::Dial;
use crate::metrics::ConnectionPoolStats;
use crate::origin::Origin;
use crate::pool::{Limits, Pool, PoolConfig, WarmReport, warm};
use crate::proxy::ProxyRules;
use crate::sync::lock;
use crate::tcp::TcpOptions;
use crate::tls::TlsOptions;

use super::builder::{ClientBuilder, Registered};
use super::call::Call;
use super::options::{CallOptions, RequestOptions, RetryPolicy, Timeouts};
use super::prepare::{DefaultHeaders, Draft, Prepared};
use super::provider::Provider;
use super::provider_client::Client;
use super::response_body::ResponseBody;
use super::routes::Routes;
use super::send::{Route, send};

/// A pool of connections to any number of origins, and the clients that use it. Cheap to clone;
/// all clones are the same pool.
///
/// It works outside a runtime; connections belong to the tokio runtime on which a request is sent,
/// and a request never gets one of another runtime. When the last handle (clients included) is
/// dropped, idle connections are closed and running requests finish.
#[derive(Clone)]
pub struct ConnectionPool {
    pub(super) pool: Arc<Pool>,
    pub(super) defaults: Arc<Defaults>,
    clients: Registered,
}

/// What clients and requests start from.
pub(super) struct Defaults {
    pub(super) connect: Arc<ConnectOptions>,
    options: CallOptions,
    /// Of `send`.
    routes: Routes,
}

impl fmt::Debug for ConnectionPool {
    /// One line per origin.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pool.fmt(f)
    }
}

impl Default for ConnectionPool {
    fn default() -> Self {
        Self::new()
    }
}

impl ConnectionPool {
    /// A pool with the defaults.
    pub fn new() -> Self {
        ConnectionPoolBuilder::new().assemble()
    }

    /// A pool to be configured.
    pub fn builder() -> ConnectionPoolBuilder {
        ConnectionPoolBuilder::new()
    }

    /// A client registered under a provider's name, to be configured. Built again under the same
    /// name it is the same client with new headers and credentials.
    pub fn client(
        &self,
        provider: impl Into<String>,
        base_url: impl Into<String>,
    ) -> ClientBuilder {
        self.make_builder(
            Some((provider.into(), self.clients.clone())),
            base_url.into(),
        )
    }

    /// A client of a provider, registered under its name and with its key, to be configured further. One
    /// [`client`](Self::client) of that name: built again with another key it is the same one, and every clone of
    /// it sends that key from then on. For several keys of one provider, [`client`](Self::client) with a name for
    /// each, or [`client_builder`](Self::client_builder).
    pub fn provider(&self, provider: Provider, key: impl AsRef<str>) -> ClientBuilder {
        let Provider {
            name,
            base_url,
            key: place,
            ..
        } = provider;
        self.client(name, base_url).key(&place, key)
    }

    /// A client that no name leads to, to be configured.
    pub fn client_builder(&self, base_url: impl Into<String>) -> ClientBuilder {
        self.make_builder(None, base_url.into())
    }

    fn make_builder(
        &self,
        registry: Option<(String, Registered)>,
        base_url: String,
    ) -> ClientBuilder {
        let connect = ConnectOptions::clone(&self.defaults.connect);
        let options = self.defaults.options.clone();
        ClientBuilder::new(self.pool.clone(), registry, base_url, connect, options)
    }

    /// The client registered under this name.
    pub fn get_client(&self, provider: &str) -> Option<Client> {
        lock(&self.clients).get(provider).cloned()
    }

    /// Takes a name off the register; the client goes on working for whoever holds it.
    pub fn remove_client(&self, provider: &str) -> Option<Client> {
        lock(&self.clients).remove(provider)
    }

    /// Sends a request with an absolute URL. Settings of the request travel as
    /// [`RequestOptions`] in its extensions.
    ///
    /// Dropping the future gives back whatever it held: its place in line, its HTTP/2 stream
    /// (reset), its HTTP/1.1 connection (closed once the request has begun).
    ///
    /// # Errors
    /// Any [`ErrorKind`](crate::ErrorKind) but Status and Decode.
    pub async fn send<B: Into<Body>>(
        &self,
        request: http::Request<B>,
    ) -> Result<http::Response<ResponseBody>, Error> {
        let (mut parts, body) = request.into_parts();
        let body = body.into();
        let options = parts
            .extensions
            .remove::<RequestOptions>()
            .unwrap_or_default();
        let connect = &self.defaults.connect;
        let route = self.defaults.routes.get(&parts.uri, || {
            let origin = Origin::from_uri(&parts.uri)?;
            crate::connection::check_plain(&origin, connect.protocols)?;
            Route::new(origin, connect.clone())
        })?;
        let target = match parts.uri.path_and_query() {
            // `http` keeps an empty path; RFC 9112 §3.2.1 sends it as a slash.
            Some(target) if target.as_str().starts_with('?') => PathAndQuery::from_maybe_shared(
                format!("/{target_text}", target_text = target.as_str()),
            )
            .map_err(|e| Error::invalid("URL path is not valid").with_source(e))?,
            Some(target) => target.clone(),
            None => PathAndQuery::from_static("/"),
        };
        let draft = Box::new(Draft {
            method: parts.method,
            target,
            shown_target: None,
            headers: parts.headers,
            options,
            is_websocket: false,
        });
        let options = self.defaults.options.with(&draft.options);
        let length = body.exact_len();
        let request = Prepared::new(draft, DefaultHeaders::none(), &route.origin, length)
            .map_err(|e| e.with_origin(route.origin_text.clone()))?;
        let call = Call::begin(request, body, options);
        let body = send(&self.pool, None, &route, call).await?;
        Ok(body.into_http())
    }

    /// Makes `n` requests at once to an origin possible without waiting for a connection: TLS,
    /// ALPN and HTTP/2 SETTINGS are done, no request is sent. HTTP/1.1 needs `n` connections,
    /// HTTP/2 one, as long as the peer allows that many streams.
    ///
    /// Dropping the future stops waiting; dials that were started finish.
    ///
    /// # Errors
    /// Invalid: the origin, or no tokio runtime. What a dial failed with is in the report.
    pub async fn warm<O>(&self, origin: O, n: usize) -> Result<WarmReport, Error>
    where
        O: TryInto<Origin>,
        Error: From<O::Error>,
    {
        let origin = origin.try_into()?;
        let route = Route::new(origin, self.defaults.connect.clone())?;
        Ok(warm(&route.awake(&self.pool)?, n).await)
    }

    /// The addresses of a host, as a request of this pool would find them: from the cache, by a query that it shares
    /// with others, or in an override; IPv6 first (RFC 8305 §4), without those that the
    /// [address filter](ConnectionPoolBuilder::address_filter) refuses. For whoever connects by himself.
    ///
    /// Waits for both families. Dropping the future ends the waiting; a query that was sent goes on.
    ///
    /// # Errors
    /// Dns: neither family has an address. Invalid: no host, or no tokio runtime.
    pub async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, Error> {
        // Parts of a URL that are no host, and ports.
        let is_v6 = host.parse::<Ipv6Addr>().is_ok();
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        let of_urls = |c: char| "/?#@\\".contains(c) || c == ':' && !is_v6 && !is_bracketed;
        if host.contains(of_urls) {
            return Err(Error::invalid(
                "a host has no scheme, user, port, path or query",
            ));
        }
        let origin = Origin::parse(&if is_v6 {
            format!("http://[{host}]/")
        } else {
            format!("http://{host}/")
        })?;
        tokio::runtime::Handle::try_current()
            .map_err(|e| Error::invalid("no tokio runtime is running here").with_source(e))?;
        self.pool.resolve(&origin).await
    }

    /// Statistics, now.
    pub fn stats(&self) -> ConnectionPoolStats {
        self.pool.stats()
    }

    /// Every connection that exists now, leased ones included.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.pool.connections()
    }

    /// Closes connections that are idle now.
    pub fn close_idle(&self) {
        self.pool.close_idle();
    }

    /// Shuts down: new and waiting requests fail with PoolClosed, idle connections are closed,
    /// running requests may finish for as long as `deadline` says; then connections are ended with
    /// what they carry, and whoever waits on one is told ConnectionLost. An HTTP/1.1 response whose body
    /// nobody reads keeps its connection until it is polled or dropped, and upgraded ones are their
    /// callers' own. Returns how many connections are still open.
    ///
    /// Dropping the future stops waiting, and ends nothing at the deadline; the pool stays shut.
    pub async fn shutdown(&self, deadline: Duration) -> usize {
        self.pool.shutdown(deadline).await
    }
}

/// Configures a [`ConnectionPool`].
#[must_use = "a pool exists once it is built"]
pub struct ConnectionPoolBuilder {
    limits: Limits,
    connect: ConnectOptions,
    options: CallOptions,
    resolver: Option<Arc<dyn Resolve>>,
    dns: DnsOptions,
    overrides: HashMap<String, Vec<IpAddr>>,
    address_filter: Option<AddressFilter>,
    dialer: Option<Arc<dyn Dial>>,
    race: RaceOptions,
    http2: Http2Options,
    connect_timeout: Duration,
    mistake: Option<Error>,
}

impl fmt::Debug for ConnectionPoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionPoolBuilder")
            .field("limits", &self.limits)
            .field("http2", &self.http2)
            .finish_non_exhaustive()
    }
}

impl ConnectionPoolBuilder {
    fn new() -> Self {
        Self {
            limits: Limits::default(),
            connect: ConnectOptions::default(),
            options: CallOptions::default(),
            resolver: None,
            dns: DnsOptions::default(),
            overrides: HashMap::new(),
            address_filter: None,
            dialer: None,
            race: RaceOptions::default(),
            http2: Http2Options::default(),
            connect_timeout: Duration::from_secs(5),
            mistake: None,
        }
    }

    /// Sets how many connections, and for how long.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets who resolves names. Default: hickory with the name servers of `/etc/resolv.conf`, or
    /// the system's resolver without the feature `hickory`.
    pub fn resolver(mut self, resolver: impl Resolve) -> Self {
        self.resolver = Some(Arc::new(resolver));
        self
    }

    /// Asks these name servers, by UDP and TCP.
    #[cfg(feature = "hickory")]
    pub fn name_servers(self, servers: impl IntoIterator<Item = std::net::SocketAddr>) -> Self {
        self.resolver(crate::dns::HickoryResolver::name_servers(servers))
    }

    /// Sets how long look-ups may take and answers are kept.
    pub fn dns(mut self, options: DnsOptions) -> Self {
        self.dns = options;
        self
    }

    /// Asks `allow` about every address before it is connected to, with the host it belongs to, as
    /// the URL has it. What it refuses is as if it had not been found, so that a name cannot lead
    /// to an address that a request must not reach, however often its records change (rebinding).
    /// Addresses written in URLs and those of [`resolve_to`](Self::resolve_to) are asked about
    /// too. With a proxy only the proxy's own addresses are seen here.
    ///
    /// [`dns::is_public`](crate::dns::is_public) refuses private and special networks.
    pub fn address_filter(
        mut self,
        allow: impl Fn(&str, IpAddr) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.address_filter = Some(Arc::new(allow));
        self
    }

    /// Uses these addresses for a host; nobody is asked for it.
    pub fn resolve_to(mut self, host: &str, addrs: impl IntoIterator<Item = IpAddr>) -> Self {
        match Origin::parse(&format!("http://{host}/")) {
            Ok(origin) => {
                self.overrides
                    .insert(origin.host(), addrs.into_iter().collect());
            }
            Err(error) => self.mistake = self.mistake.or(Some(error)),
        }
        self
    }

    /// Sets who opens transports, below DNS and the race over addresses. Default: TCP. The
    /// options of [`TcpOptions`] are then the dialer's own matter.
    pub fn dialer(mut self, dialer: impl Dial) -> Self {
        self.dialer = Some(Arc::new(dialer));
        self
    }

    /// Sets the TLS options that clients start from.
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.connect.tls = tls;
        self
    }

    /// Sets the TCP options that clients start from.
    pub fn tcp(mut self, tcp: TcpOptions) -> Self {
        self.connect.tcp = tcp;
        self
    }

    /// Sets the HTTP versions that clients start from.
    pub fn protocols(mut self, protocols: Protocols) -> Self {
        self.connect.protocols = protocols;
        self
    }

    /// Sets the address families that clients start from.
    pub fn ip_version(mut self, version: IpVersion) -> Self {
        self.connect.ip_version = version;
        self
    }

    /// Sets the proxies that clients start from; a [`Proxy`](crate::proxy::Proxy) alone is used for
    /// every origin. Default none: the environment is read only by
    /// [`proxy_from_env`](Self::proxy_from_env).
    pub fn proxy(mut self, rules: impl Into<ProxyRules>) -> Self {
        self.connect.proxies = rules.into();
        self
    }

    /// Sets the proxies that clients start from to those that the environment names, read now:
    /// [`ProxyRules::from_env`](crate::proxy::ProxyRules::from_env).
    pub fn proxy_from_env(mut self) -> Self {
        match ProxyRules::from_env() {
            Ok(rules) => self.connect.proxies = rules,
            Err(error) => self.mistake = self.mistake.or(Some(error)),
        }
        self
    }

    /// Sets how the addresses of an origin are raced.
    pub fn race(mut self, race: RaceOptions) -> Self {
        self.race = race;
        self
    }

    /// Sets the options of HTTP/2 connections.
    pub fn http2(mut self, http2: Http2Options) -> Self {
        self.http2 = http2;
        self
    }

    /// Bounds every dial: dns, tcp, proxy, tls and protocol together. Default 5 s. A request's own
    /// [`Timeouts::connect`] bounds only its wait.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Sets the timeouts that clients start from.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.options.timeouts = timeouts;
        self
    }

    /// Sets the retry policy that clients start from.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.options.retry = policy;
        self
    }

    /// Builds the pool. Does no I/O and needs no runtime.
    ///
    /// # Errors
    /// Invalid: an option that cannot be used, or that would do nothing.
    pub fn build(mut self) -> Result<ConnectionPool, Error> {
        if let Some(error) = self.mistake.take() {
            return Err(error);
        }
        self.limits.check()?;
        self.dns.check()?;
        self.race.check()?;
        self.connect.tcp.check()?;
        self.http2.check()?;
        if self.connect_timeout.is_zero() {
            return Err(Error::invalid(
                "with a connect_timeout of zero nothing connects",
            ));
        }
        if self.dialer.is_some() && self.connect.tcp != TcpOptions::default() {
            return Err(Error::invalid(
                "tcp options do nothing beside a dialer of one's own",
            ));
        }
        let pool = self.assemble();
        pool.pool.prepare_tls(&pool.defaults.connect.tls)?;
        Ok(pool)
    }

    fn assemble(self) -> ConnectionPool {
        let resolver = self.resolver.unwrap_or_else(default_resolver);
        let deps = Deps {
            dns: Dns::new(resolver, self.dns, self.overrides),
            address_filter: self.address_filter,
            dialer: self.dialer,
            race: self.race,
            http2: self.http2,
            connect_timeout: self.connect_timeout,
            relief: std::sync::OnceLock::new(),
        };
        ConnectionPool {
            pool: Pool::new(PoolConfig {
                limits: self.limits,
                deps,
            }),
            defaults: Arc::new(Defaults {
                connect: Arc::new(self.connect),
                options: self.options,
                routes: Routes::default(),
            }),
            clients: Arc::new(Mutex::default()),
        }
    }
}

fn default_resolver() -> Arc<dyn Resolve> {
    #[cfg(feature = "hickory")]
    let resolver = crate::dns::HickoryResolver::system();
    #[cfg(not(feature = "hickory"))]
    let resolver = crate::dns::SystemResolver::new();
    Arc::new(resolver)
}

#[cfg(test)]
mod tests {
    // layering: uses this module and tls, which is below.
    use super::*;
    use crate::tls;

    #[tokio::test]
    async fn key_share_of_a_dial_is_replaced_once_it_is_over() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let pool = ConnectionPool::builder().build().unwrap();
        let client = pool.client_builder(&url).build().unwrap();
        // It fails, and its share has been shown all the same.
        let server = async { drop(listener.accept().await.unwrap()) };
        let (failed, ()) = tokio::join!(client.get("/").send(), server);
        assert_eq!(failed.unwrap_err().kind(), crate::ErrorKind::Tls);
        let replaced = async {
            while tls::lacks_key_shares() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(10), replaced);
        in_time.await.expect("it is replaced");
    }
}
