//! A server of WebSockets, by hyper and tungstenite: over HTTP/1.1, and over HTTP/2 where it allows that. `/echo` sends
//! back what it gets, `/refused` answers 403, `/bare` 200; any other request is answered with its method.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

pub struct WebSocketServer {
    pub port: u16,
    counts: Arc<Counts>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    http1: AtomicUsize,
    http2: AtomicUsize,
}

impl WebSocketServer {
    /// By ALPN it speaks what the configuration says, and HTTP/1.1 without TLS; `allows` says whether WebSockets may go
    /// over HTTP/2.
    pub async fn start(tls: Option<ServerConfig>, allows: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let counts = Arc::<Counts>::default();
        let counted = counts.clone();
        let acceptor = tls.map(|tls| TlsAcceptor::from(Arc::new(tls)));
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tcp.set_nodelay(true).unwrap();
                let (acceptor, counts) = (acceptor.clone(), counted.clone());
                tokio::spawn(async move {
                    let Some(acceptor) = acceptor else {
                        counts.http1.fetch_add(1, SeqCst);
                        return http1(tcp).await;
                    };
                    let Ok(io) = acceptor.accept(tcp).await else {
                        return;
                    };
                    if io.get_ref().1.alpn_protocol() != Some(b"h2") {
                        counts.http1.fetch_add(1, SeqCst);
                        return http1(io).await;
                    }
                    counts.http2.fetch_add(1, SeqCst);
                    let service = service_fn(async |request| answer(request));
                    let mut builder =
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    if allows {
                        builder.enable_connect_protocol();
                    }
                    let _ = builder.serve_connection(TokioIo::new(io), service).await;
                });
            }
        });
        Self { port, counts, task }
    }

    /// Connections that spoke HTTP/1.1, and HTTP/2.
    pub fn connections(&self) -> (usize, usize) {
        let Counts { http1, http2 } = &*self.counts;
        (http1.load(SeqCst), http2.load(SeqCst))
    }
}

impl Drop for WebSocketServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn http1(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let service = service_fn(async |request| answer(request));
    let builder = hyper::server::conn::http1::Builder::new();
    let served = builder.serve_connection(TokioIo::new(io), service);
    let _ = served.with_upgrades().await;
}

type Answer = Result<Response<Full<Bytes>>, http::Error>;

fn answer(request: Request<Incoming>) -> Answer {
    let headers = request.headers();
    let over_http2 = request.extensions().get::<hyper::ext::Protocol>();
    let over_http2 = over_http2.is_some_and(|protocol| protocol.as_str() == "websocket");
    let over_http1 = headers.get(UPGRADE).is_some_and(|name| name == "websocket");
    match request.uri().path() {
        "/refused" => Response::builder().status(403).body(Full::from("no")),
        "/bare" => Response::builder().body(Full::from("no upgrade")),
        "/echo" if over_http2 || over_http1 => open(request, over_http2),
        _ => {
            let method = request.method().to_string();
            Response::builder().body(Full::from(method))
        }
    }
}

/// What RFC 6455 §4.2.1 and RFC 8441 §5 ask of the request.
fn is_sound(method: &Method, headers: &HeaderMap, over_http2: bool) -> bool {
    let version = headers.get_all(SEC_WEBSOCKET_VERSION).iter();
    version.eq(["13"])
        && if over_http2 {
            method == Method::CONNECT
                && [SEC_WEBSOCKET_KEY, CONNECTION, UPGRADE]
                    .iter()
                    .all(|name| !headers.contains_key(name))
        } else {
            method == Method::GET
                && headers
                    .get(CONNECTION)
                    .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"upgrade"))
                && headers.get_all(SEC_WEBSOCKET_KEY).iter().count() == 1
        }
}

fn open(request: Request<Incoming>, over_http2: bool) -> Answer {
    if !is_sound(request.method(), request.headers(), over_http2) {
        return Response::builder().status(400).body(Full::default());
    }
    let mut response = Response::builder();
    if !over_http2 {
        let key = request.headers()[SEC_WEBSOCKET_KEY].as_bytes();
        response = response
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(UPGRADE, "websocket")
            .header(CONNECTION, "Upgrade")
            .header(SEC_WEBSOCKET_ACCEPT, derive_accept_key(key));
    }
    if let Some(asked) = request.headers().get(SEC_WEBSOCKET_PROTOCOL) {
        // The last of them, so that it is not by chance the first.
        let last = asked.to_str().unwrap().rsplit(", ").next().unwrap();
        response = response.header(SEC_WEBSOCKET_PROTOCOL, last);
    }
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else {
            return;
        };
        let config = WebSocketConfig::default()
            .max_message_size(None)
            .max_frame_size(None);
        let io = TokioIo::new(upgraded);
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        while let Some(Ok(message)) = socket.next().await {
            let is_data = message.is_text() || message.is_binary();
            if is_data && socket.send(message).await.is_err() {
                break;
            }
        }
    });
    response.body(Full::default())
}
