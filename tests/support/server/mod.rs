//! A sound HTTP server: hyper's HTTP/1 and HTTP/2, by ALPN or by preface, which counts everything it sees.
//!
//! It is the oracle of the tests: what it counted is what happened. Its faults are those of a sound server (delays,
//! closes, GOAWAY, cut connections); unsound peers are [`h1_peer`](super::h1_peer) and [`h2_peer`](super::h2_peer).
//! Dropping the [`Server`] stops it and cuts its connections.

mod counts;
mod io;
mod reply;
mod router;
mod serve;
pub mod websocket;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Request;
use http::request::Parts;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioExecutor;
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use self::counts::Books;
use self::serve::{Answer, Early, Order, Shared};
use self::websocket::{Socket, WebSockets};
use super::pki::{self, Pki, ServerIdentity};
use super::port::{self, Port};

pub use self::counts::Counts;
pub use self::reply::Reply;
pub use self::serve::Seen;

/// A running server.
pub struct Server {
    port: Port,
    scheme: &'static str,
    host: String,
    shared: Arc<Shared>,
    orders: Arc<watch::Sender<Order>>,
    accepting: AbortHandle,
}

impl Server {
    pub fn builder() -> Builder {
        Builder {
            bind: port::any(),
            identity: None,
            config: None,
            host: None,
            alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
            has_tickets: true,
            answer: serve::at_once(router::route),
            early: None,
            refuses_early: false,
            websockets: None,
            http1: http1::Builder::new(),
            http2: http2::Builder::new(TokioExecutor::new()),
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    pub fn port(&self) -> u16 {
        self.addr().port()
    }

    /// `https://api.test:PORT/path`: the first name of the certificate, or the address of a plain server.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}:{}{path}", self.scheme, self.host, self.port())
    }

    pub fn counts(&self) -> Counts {
        self.shared.books.snapshot()
    }

    /// Every request head so far, in the order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared
            .seen
            .lock()
            .expect("no panic under this lock")
            .clone()
    }

    /// Resolves with the counts as soon as they satisfy `reached`.
    pub async fn wait(&self, reached: impl FnMut(&Counts) -> bool) -> Counts {
        self.shared.books.wait(reached).await
    }

    /// Tells every open connection to finish what it has and close: GOAWAY on h2, `Connection: close` or a close on h1.
    pub fn shutdown_connections(&self) {
        self.orders.send_replace(Order::Drain);
    }

    /// Drops every open connection as it is; the client sees FIN, without close_notify or GOAWAY. Done when
    /// `connections_open` is 0.
    pub fn kill_connections(&self) {
        self.orders.send_replace(Order::Cut);
    }

    /// The same with a RST.
    pub fn kill_connections_rst(&self) {
        self.orders.send_replace(Order::Reset);
    }

    /// Closes the listening socket: when this returns the port refuses. Open connections live on.
    pub fn stop(&self) {
        self.port.close();
        self.accepting.abort();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        self.kill_connections();
    }
}

/// What a server is to be, before it is.
pub struct Builder {
    bind: SocketAddr,
    identity: Option<ServerIdentity>,
    config: Option<ServerConfig>,
    host: Option<String>,
    alpn: Vec<String>,
    has_tickets: bool,
    answer: Box<Answer>,
    early: Option<Box<Early>>,
    refuses_early: bool,
    websockets: Option<WebSockets>,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl Builder {
    /// TLS with a certificate of `pki` for these names; the first one is the host of [`Server::url`].
    pub fn tls(mut self, pki: &Pki, names: &[&str]) -> Self {
        self.identity = Some(pki.server(names));
        self.host = names.first().map(|name| (*name).to_owned());
        self
    }

    /// TLS with this identity, for example an expired one.
    pub fn identity(mut self, identity: &ServerIdentity, host: &str) -> Self {
        self.identity = Some(identity.clone());
        self.host(host)
    }

    /// TLS by exactly this configuration, ALPN included: [`Builder::alpn`] and [`Builder::tickets`] do not touch it.
    pub fn tls_config(mut self, config: ServerConfig) -> Self {
        self.config = Some(config);
        self
    }

    /// No TLS; HTTP/2 to clients that begin with its preface.
    pub fn plain(mut self) -> Self {
        self.identity = None;
        self.config = None;
        self
    }

    /// The host of [`Server::url`].
    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    /// What TLS offers, best first; both protocols unless told otherwise.
    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols
            .iter()
            .map(|protocol| (*protocol).to_owned())
            .collect();
        self
    }

    /// Whether sessions can be resumed.
    pub fn tickets(mut self, has_tickets: bool) -> Self {
        self.has_tickets = has_tickets;
        self
    }

    /// Answers in place of the default router, with the whole request.
    pub fn handler(
        mut self,
        answer: impl Fn(Request<Bytes>) -> Reply + Send + Sync + 'static,
    ) -> Self {
        self.answer = serve::at_once(answer);
        self
    }

    /// The same, for answers that have to wait for something.
    pub fn handler_async<F>(
        mut self,
        answer: impl Fn(Request<Bytes>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        self.answer = Box::new(move |request| Box::pin(answer(request)));
        self
    }

    /// Sees the head first; what it returns is answered without reading the request's body.
    pub fn early(
        mut self,
        early: impl Fn(&Parts) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        self.early = Some(Box::new(early));
        self
    }

    /// Answers 425 Too Early to a request that came as early data.
    pub fn refuses_early(mut self) -> Self {
        self.refuses_early = true;
        self
    }

    /// Opens WebSockets at `path`, by tungstenite: over HTTP/1.1, and over HTTP/2 if `over_http2` says so (RFC 8441).
    /// Whatever does not ask for one is answered as ever. In the books such a connection of HTTP/1.1 ends when it is
    /// handed over.
    pub fn websockets<F>(
        mut self,
        path: &'static str,
        over_http2: bool,
        session: impl Fn(Parts, Socket) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if over_http2 {
            self.http2.enable_connect_protocol();
        }
        self.websockets = Some(WebSockets::new(path, session));
        self
    }

    /// SETTINGS_MAX_CONCURRENT_STREAMS of each h2 connection.
    pub fn max_concurrent_streams(mut self, streams: u32) -> Self {
        self.http2.max_concurrent_streams(streams);
        self
    }

    /// How much a client may upload on h2 before the server has read it, per stream and per connection, in bytes.
    pub fn windows(mut self, stream: u32, connection: u32) -> Self {
        self.http2.initial_stream_window_size(stream);
        self.http2.initial_connection_window_size(connection);
        self
    }

    /// Whether h1 connections live longer than one exchange.
    pub fn keep_alive(mut self, keep_alive: bool) -> Self {
        self.http1.keep_alive(keep_alive);
        self
    }

    /// `127.0.0.1:0` unless told otherwise. Port reuse right after [`Server::stop`] works.
    pub fn bind(mut self, addr: SocketAddr) -> Self {
        self.bind = addr;
        self
    }

    pub async fn start(self) -> Server {
        let port = Port::bind(self.bind);
        let config = self.config.or_else(|| {
            let alpn: Vec<&str> = self.alpn.iter().map(String::as_str).collect();
            let config = pki::server_config(self.identity.as_ref()?, &alpn);
            Some(match self.has_tickets {
                true => config,
                false => pki::without_tickets(config),
            })
        });
        let scheme = if config.is_some() { "https" } else { "http" };
        let host = self.host.unwrap_or_else(|| port.addr().ip().to_string());
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };

        let shared = Arc::new(Shared {
            books: Books::new(),
            seen: Mutex::default(),
            tls: config.map(|config| TlsAcceptor::from(Arc::new(config))),
            answer: self.answer,
            peek: self.early,
            early: Mutex::default(),
            refuses_early: self.refuses_early,
            websockets: self.websockets,
            http1: self.http1,
            http2: self.http2,
        });
        let orders = Arc::new(watch::Sender::new(Order::Serve));
        let accepting = tokio::spawn(accept(
            port.clone(),
            Arc::clone(&shared),
            Arc::clone(&orders),
        ));
        Server {
            port,
            scheme,
            host,
            shared,
            orders,
            accepting: accepting.abort_handle(),
        }
    }
}

async fn accept(port: Port, shared: Arc<Shared>, orders: Arc<watch::Sender<Order>>) {
    while let Some(tcp) = port.accept().await {
        let entry = shared.books.connection();
        tokio::spawn(serve::connection(
            tcp,
            Arc::clone(&shared),
            orders.subscribe(),
            entry,
        ));
    }
}
