//! One connection from accept to its end: TLS, which HTTP it is, and hyper.

use std::collections::HashSet;
use std::future::Future;
use std::io::{self, Read};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::HandshakeKind;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::counts::{Books, ConnectionEntry};
use super::io::{Io, Written};
use super::reply::{Reply, ReplyBody};
use super::websocket::WebSockets;

pub(super) type Answer =
    dyn Fn(Request<Bytes>) -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync;
pub(super) type Early = dyn Fn(&Parts) -> Option<Reply> + Send + Sync;

/// What all connections of a server have in common.
pub(super) struct Shared {
    pub(super) books: Books,
    pub(super) seen: Mutex<Vec<Seen>>,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) answer: Box<Answer>,
    pub(super) peek: Option<Box<Early>>,
    /// Connections that began with early data.
    pub(super) early: Mutex<HashSet<usize>>,
    /// Whether their first request is answered with 425.
    pub(super) refuses_early: bool,
    pub(super) websockets: Option<WebSockets>,
    pub(super) http1: http1::Builder,
    pub(super) http2: http2::Builder<TokioExecutor>,
}

/// One request head as the server saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Index in the order of accept.
    pub connection: usize,
    pub version: Version,
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
}

/// What the test tells the connections that are open at that moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Order {
    Serve,
    Drain,
    Cut,
    Reset,
}

/// Serves one connection; when this returns its socket is closed and its entry in the books too.
pub(super) async fn connection(
    tcp: TcpStream,
    shared: Arc<Shared>,
    orders: watch::Receiver<Order>,
    entry: ConnectionEntry,
) {
    // Kept to set SO_LINGER while the stream itself is buried in TLS and hyper. Both share one socket, which ends with
    // the last of them.
    let socket = socket2::SockRef::from(&tcp)
        .try_clone()
        .expect("a file descriptor is left");
    let last = {
        let mut cut = orders.clone();
        tokio::select! {
            biased;
            order = cut_ordered(&mut cut) => order,
            // Errors of a connection are the client's to report; the books have what the tests ask.
            _ended = run(tcp, &shared, orders, entry.index) => Order::Serve,
        }
    };
    match last {
        Order::Reset => socket
            .set_linger(Some(Duration::ZERO))
            .expect("the socket is open"),
        Order::Cut => drain(&socket),
        Order::Serve | Order::Drain => {}
    }
    drop(socket);
    drop(entry);
}

/// Takes what nobody read: a socket closed with bytes in its buffer sends RST, where FIN is wanted.
fn drain(mut socket: &socket2::Socket) {
    let mut scrap = [0; 4096];
    while matches!(socket.read(&mut scrap), Ok(1..)) {}
}

/// Resolves when the connection is to be dropped at once: by order, or because the server is gone.
async fn cut_ordered(orders: &mut watch::Receiver<Order>) -> Order {
    while orders.changed().await.is_ok() {
        let order = *orders.borrow_and_update();
        if matches!(order, Order::Cut | Order::Reset) {
            return order;
        }
    }
    Order::Cut
}

async fn run(
    tcp: TcpStream,
    shared: &Arc<Shared>,
    orders: watch::Receiver<Order>,
    index: usize,
) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let Some(acceptor) = &shared.tls else {
        return serve(Io::new(tcp), None, shared, orders, index).await;
    };
    let mut tls = match acceptor.accept(tcp).await {
        Ok(tls) => tls,
        Err(error) => {
            shared.books.note(|counts| counts.tls_failed += 1);
            return Err(error);
        }
    };
    let (_, session) = tls.get_ref();
    let is_resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    shared.books.note(|counts| match is_resumed {
        true => counts.tls_resumed += 1,
        false => counts.tls_full += 1,
    });
    let is_h2 = session.alpn_protocol().map(|protocol| protocol == b"h2");
    let mut early = Vec::new();
    if let Some(mut data) = tls.get_mut().1.early_data() {
        data.read_to_end(&mut early)?;
    }
    if !early.is_empty() {
        let mut connections = shared.early.lock().expect("no panic under this lock");
        connections.insert(index);
    }
    shared
        .books
        .note(|counts| counts.early_bytes += early.len());
    serve(Io::with_front(early, tls), is_h2, shared, orders, index).await
}

/// Speaks what ALPN chose; without ALPN what the client's first bytes say.
async fn serve<S>(
    mut io: Io<S>,
    is_h2: Option<bool>,
    shared: &Arc<Shared>,
    mut orders: watch::Receiver<Order>,
    index: usize,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let is_h2 = match is_h2 {
        Some(is_h2) => is_h2,
        None => io.has_preface().await?,
    };
    shared.books.note(|counts| match is_h2 {
        true => counts.h2_connections += 1,
        false => counts.h1_connections += 1,
    });
    let written = io.written();
    let shared_by_service = Arc::clone(shared);
    let service = service_fn(move |request| {
        exchange(
            request,
            Arc::clone(&shared_by_service),
            Arc::clone(&written),
            index,
        )
    });
    let io = TokioIo::new(io);
    // The two connection types have the same methods and no trait in common.
    macro_rules! drive {
        ($connection:expr) => {{
            let mut connection = pin!($connection);
            loop {
                tokio::select! {
                    ended = connection.as_mut() => break ended.map_err(io::Error::other),
                    () = drain_ordered(&mut orders) => connection.as_mut().graceful_shutdown(),
                }
            }
        }};
    }
    match is_h2 {
        true => drive!(shared.http2.serve_connection(io, service)),
        false => drive!(shared.http1.serve_connection(io, service).with_upgrades()),
    }
}

async fn drain_ordered(orders: &mut watch::Receiver<Order>) {
    while orders.changed().await.is_ok() {
        if *orders.borrow_and_update() == Order::Drain {
            return;
        }
    }
    // The server is gone: `cut_ordered` ends this connection.
    std::future::pending().await
}

async fn exchange(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    written: Arc<Written>,
    index: usize,
) -> Result<Response<ReplyBody>, io::Error> {
    let (parts, body) = request.into_parts();
    shared
        .seen
        .lock()
        .expect("no panic under this lock")
        .push(Seen {
            connection: index,
            version: parts.version,
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
        });
    let entry = shared.books.exchange(index);
    let is_head = parts.method == Method::HEAD;
    let is_h1 = parts.version < Version::HTTP_2;

    let is_early = {
        let mut connections = shared.early.lock().expect("no panic under this lock");
        connections.remove(&index)
    };
    if is_early && shared.refuses_early {
        let reply = Reply::status(425);
        let mut response = Response::new(());
        *response.status_mut() = reply.status;
        return Ok(response.map(|()| reply.into_body(entry, written, is_head)));
    }
    let opening = shared.websockets.as_ref();
    if let Some(opening) = opening.and_then(|w| w.opening(&parts)) {
        let reply = opening.open(Request::from_parts(parts, body));
        let mut response = Response::new(());
        *response.status_mut() = reply.status;
        *response.headers_mut() = reply.headers.clone();
        return Ok(response.map(|()| reply.into_body(entry, written, is_head)));
    }
    let reply = match shared.peek.as_ref().and_then(|peek| peek(&parts)) {
        Some(reply) => reply,
        None => {
            let body = match body.collect().await {
                Ok(whole) => whole.to_bytes(),
                Err(error) => {
                    shared
                        .books
                        .note(|counts| counts.request_bodies_failed += 1);
                    return Err(io::Error::other(error));
                }
            };
            (shared.answer)(Request::from_parts(parts, body)).await
        }
    };
    if !reply.delay.is_zero() {
        tokio::time::sleep(reply.delay).await;
    }
    if let Some(gate) = reply.hold.clone() {
        gate.opened().await;
    }

    let mut response = Response::new(());
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers.clone();
    if reply.close && is_h1 {
        let close = HeaderValue::from_static("close");
        response
            .headers_mut()
            .insert(http::header::CONNECTION, close);
    }
    let body = reply.into_body(entry, written, is_head);
    Ok(response.map(|()| body))
}

/// Wraps a closure that answers at once.
pub(super) fn at_once(
    answer: impl Fn(Request<Bytes>) -> Reply + Send + Sync + 'static,
) -> Box<Answer> {
    Box::new(move |request| Box::pin(std::future::ready(answer(request))))
}
