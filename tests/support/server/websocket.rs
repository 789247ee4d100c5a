//! WebSockets of the server, by tungstenite: over HTTP/1.1 (RFC 6455) and HTTP/2 (RFC 8441).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{Method, Request};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::reply::Reply;

/// The server's end of a session.
pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

type Session = dyn Fn(Parts, Socket) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// Sends back every message.
pub async fn echo(_: Parts, mut socket: Socket) {
    while let Some(Ok(message)) = socket.next().await {
        let is_data = message.is_text() || message.is_binary();
        if is_data && socket.send(message).await.is_err() {
            break;
        }
    }
}

pub(super) struct WebSockets {
    path: &'static str,
    session: Arc<Session>,
}

/// A request that asks for one.
pub(super) struct Opening {
    over_http2: bool,
    session: Arc<Session>,
}

impl WebSockets {
    pub(super) fn new<F>(
        path: &'static str,
        session: impl Fn(Parts, Socket) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self {
            path,
            session: Arc::new(move |parts, socket| Box::pin(session(parts, socket))),
        }
    }

    pub(super) fn opening(&self, parts: &Parts) -> Option<Opening> {
        let protocol = parts.extensions.get::<hyper::ext::Protocol>();
        let over_http2 = protocol.is_some_and(|protocol| protocol.as_str() == "websocket");
        let upgrade = parts.headers.get(UPGRADE);
        let over_http1 = upgrade.is_some_and(|name| name == "websocket");
        let is_one = parts.uri.path() == self.path && (over_http2 || over_http1);
        is_one.then(|| Opening {
            over_http2,
            session: self.session.clone(),
        })
    }
}

impl Opening {
    pub(super) fn open(self, request: Request<Incoming>) -> Reply {
        if !self.is_sound(&request) {
            return Reply::status(400);
        }
        let headers = request.headers();
        let mut reply = if self.over_http2 {
            Reply::ok()
        } else {
            let accept = derive_accept_key(headers[SEC_WEBSOCKET_KEY].as_bytes());
            Reply::status(101)
                .header("upgrade", "websocket")
                .header("connection", "Upgrade")
                .header("sec-websocket-accept", &accept)
        };
        if let Some(asked) = headers.get(SEC_WEBSOCKET_PROTOCOL) {
            let asked = asked.to_str().expect("tokens");
            // The last of them, so that it is not by chance the first.
            let last = asked.rsplit(", ").next().unwrap_or_default();
            reply = reply.header("sec-websocket-protocol", last);
        }
        let session = self.session;
        let (parts, body) = request.into_parts();
        let upgrade = hyper::upgrade::on(Request::from_parts(parts.clone(), body));
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else {
                return;
            };
            let config = WebSocketConfig::default()
                .max_message_size(None)
                .max_frame_size(None);
            let io = TokioIo::new(upgraded);
            let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
            session(parts, socket).await;
        });
        reply
    }

    /// Whether it is what RFC 6455 §4.2.1 and RFC 8441 §5 ask for.
    fn is_sound(&self, request: &Request<Incoming>) -> bool {
        let (method, headers) = (request.method(), request.headers());
        let is_version = headers.get_all(SEC_WEBSOCKET_VERSION).iter().eq(["13"]);
        let of_http1 = [SEC_WEBSOCKET_KEY, CONNECTION, UPGRADE];
        is_version
            && if self.over_http2 {
                let mut of_http1 = of_http1.iter();
                method == Method::CONNECT && of_http1.all(|name| !headers.contains_key(name))
            } else {
                let connection = headers.get(CONNECTION).map(http::HeaderValue::as_bytes);
                method == Method::GET
                    && connection.is_some_and(|v| v.eq_ignore_ascii_case(b"upgrade"))
                    && headers.get_all(SEC_WEBSOCKET_KEY).iter().count() == 1
            }
    }
}
