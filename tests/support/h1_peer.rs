//! An HTTP/1 peer scripted byte by byte, over TCP or TLS.
//!
//! The script is an async closure that gets each connection and its index. When it returns, the connection is dropped as
//! it is; to end it in a certain way the script says so ([`H1Conn::close`], [`H1Conn::reset`], ...), to keep it open it
//! waits for the client ([`H1Conn::closed_by_client`]).
//!
//! A script's panic ends its connection and does not fail the test: assertions belong to the test itself, which has
//! [`H1Peer::requests`] for them.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::peer_io::{Listening, PeerIo};
use super::pki::{self, ServerIdentity};
use super::port;

/// A listening peer; dropping it cuts its connections.
pub struct H1Peer {
    listening: Listening,
    heads: Arc<watch::Sender<Vec<String>>>,
}

impl H1Peer {
    /// Over plain TCP.
    pub fn start<S, F>(script: S) -> Self
    where
        S: Fn(H1Conn, usize) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_at(port::any(), None, script)
    }

    /// Over TLS with ALPN `http/1.1`.
    pub fn start_tls<S, F>(identity: &ServerIdentity, script: S) -> Self
    where
        S: Fn(H1Conn, usize) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_at(
            port::any(),
            Some(pki::server_config(identity, &["http/1.1"])),
            script,
        )
    }

    /// Over TLS as configured, for example with ALPN `h2` and an HTTP/1 script.
    pub fn start_tls_config<S, F>(config: ServerConfig, script: S) -> Self
    where
        S: Fn(H1Conn, usize) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_at(port::any(), Some(config), script)
    }

    /// On this address, with TLS or without.
    pub fn start_at<S, F>(addr: SocketAddr, tls: Option<ServerConfig>, script: S) -> Self
    where
        S: Fn(H1Conn, usize) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let heads = Arc::new(watch::Sender::new(Vec::new()));
        let seen = Arc::clone(&heads);
        let listening = Listening::start(addr, tls, move |io, index| {
            let heads = Arc::clone(&seen);
            script(H1Conn { io, heads }, index)
        });
        Self { listening, heads }
    }

    pub fn addr(&self) -> SocketAddr {
        self.listening.addr()
    }

    pub fn port(&self) -> u16 {
        self.addr().port()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.listening.connections()
    }

    pub async fn wait_connections(&self, n: usize) {
        self.listening.wait_connections(n).await;
    }

    /// Closes the port: when this returns it refuses. Open connections live on.
    pub fn stop(&self) {
        self.listening.stop();
    }

    /// The raw heads that the scripts have read, in that order.
    pub fn requests(&self) -> Vec<String> {
        self.heads.borrow().clone()
    }

    /// Resolves once the scripts have read that many heads.
    pub async fn wait_requests(&self, n: usize) {
        let mut heads = self.heads.subscribe();
        let reached = heads.wait_for(|heads| heads.len() >= n).await;
        reached.expect("the list is ours and still there");
    }
}

/// One connection in the hands of a script.
pub struct H1Conn {
    io: PeerIo,
    heads: Arc<watch::Sender<Vec<String>>>,
}

impl H1Conn {
    /// One end of a connection that somebody else made.
    pub(super) fn new(io: PeerIo) -> Self {
        let heads = Arc::new(watch::Sender::new(Vec::new()));
        Self { io, heads }
    }

    /// The next request head with its blank line; what there was (often nothing) if the client ends before.
    pub async fn read_head(&mut self) -> String {
        let head = self.io.read_until(b"\r\n\r\n").await;
        let head = String::from_utf8_lossy(&head).into_owned();
        if head.ends_with("\r\n\r\n") {
            self.heads.send_modify(|heads| heads.push(head.clone()));
        }
        head
    }

    /// `n` bytes of body; fewer if the client ends before.
    pub async fn read_body(&mut self, n: usize) -> Bytes {
        self.io.read(n).await
    }

    /// Everything up to and including `end`, for example the last chunk.
    pub async fn read_until(&mut self, end: impl AsRef<[u8]>) -> Bytes {
        self.io.read_until(end.as_ref()).await
    }

    /// One write and flush; false if the client is gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.io.send(bytes.as_ref()).await
    }

    /// The same in pieces of `chunk` bytes, each written and flushed by itself (over TLS in a record of its own), with a
    /// yield in between so that a client on the same runtime sees each of them.
    pub async fn send_slowly(&mut self, bytes: impl AsRef<[u8]>, chunk: usize) -> bool {
        for piece in bytes.as_ref().chunks(chunk) {
            if !self.io.send(piece).await {
                return false;
            }
            tokio::task::yield_now().await;
        }
        true
    }

    /// FIN (over TLS after close_notify), and goes on reading.
    pub async fn fin(&mut self) {
        self.io.fin().await;
    }

    /// FIN without close_notify, and goes on reading.
    pub async fn fin_without_notify(&mut self) {
        self.io.fin_without_notify().await;
    }

    /// RST.
    pub fn reset(self) {
        self.io.reset();
    }

    /// FIN (over TLS after close_notify), and is gone.
    pub async fn close(self) {
        self.io.close().await;
    }

    /// FIN without close_notify, and is gone.
    pub async fn close_without_notify(self) {
        self.io.close_without_notify().await;
    }

    /// Waits for the client's next byte or end: true if it is the end.
    pub async fn read_eof(&mut self) -> bool {
        self.io.read_eof().await
    }

    /// Throws away what the client sends until it ends.
    pub async fn closed_by_client(&mut self) {
        self.io.closed_by_client().await;
    }

    /// The protocol that ALPN chose.
    pub fn alpn(&self) -> Option<String> {
        self.io
            .alpn()
            .map(|alpn| String::from_utf8_lossy(alpn).into_owned())
    }

    /// The socket below TLS, for bytes that are no TLS record.
    pub fn tcp_mut(&mut self) -> &mut TcpStream {
        self.io.tcp_mut()
    }
}
