//! What the scripted peers share: a connection that is plain or TLS, can be ended in every way there is, and a listener
//! that runs a script on each connection.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::port::Port;

/// The peer's end of one connection, with what it has read ahead.
pub struct PeerIo {
    stream: Stream,
    unread: BytesMut,
    is_eof: bool,
}

#[expect(clippy::large_enum_variant, reason = "one per connection of a test")]
enum Stream {
    Plain(TcpStream),
    Tls(TlsStream<TcpStream>),
    Memory(DuplexStream),
}

impl PeerIo {
    /// The peer's end of a pipe of memory.
    pub fn memory(pipe: DuplexStream) -> Self {
        Self {
            stream: Stream::Memory(pipe),
            unread: BytesMut::new(),
            is_eof: false,
        }
    }

    async fn accept(tcp: TcpStream, tls: Option<&TlsAcceptor>) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        let stream = match tls {
            None => Stream::Plain(tcp),
            Some(tls) => Stream::Tls(tls.accept(tcp).await?),
        };
        Ok(Self {
            stream,
            unread: BytesMut::new(),
            is_eof: false,
        })
    }

    /// Exactly `n` bytes; fewer if the client ends before.
    pub async fn read(&mut self, n: usize) -> Bytes {
        while self.unread.len() < n && self.fill().await {}
        self.unread.split_to(n.min(self.unread.len())).freeze()
    }

    /// Everything up to and including `end`; what there is if the client ends before.
    pub async fn read_until(&mut self, end: &[u8]) -> Bytes {
        loop {
            if let Some(at) = self
                .unread
                .windows(end.len())
                .position(|window| window == end)
            {
                return self.unread.split_to(at + end.len()).freeze();
            }
            if !self.fill().await {
                return self.unread.split().freeze();
            }
        }
    }

    /// Waits until there is something to read, or the end. Dropped before, it has taken nothing.
    pub async fn readable(&mut self) {
        if self.unread.is_empty() {
            self.fill().await;
        }
    }

    /// Waits for one more byte or the end: true if it is the end (FIN, RST, close_notify) with nothing before it.
    pub async fn read_eof(&mut self) -> bool {
        self.unread.is_empty() && !self.fill().await
    }

    /// Throws away what the client sends until it ends.
    pub async fn closed_by_client(&mut self) {
        while self.fill().await {
            self.unread.clear();
        }
    }

    /// Sends and flushes. A client that is gone is not the script's fault: false, and the script goes on.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = match self.stream.write_all(bytes).await {
            Ok(()) => self.stream.flush().await,
            Err(error) => Err(error),
        };
        sent.is_ok()
    }

    /// FIN after what was sent (over TLS after close_notify); the client can still send.
    pub async fn fin(&mut self) {
        // Fails only if the client is gone, which is what a test that closes wants anyway.
        let _gone = self.stream.shutdown().await;
    }

    /// FIN without close_notify: over plain TCP the same as [`PeerIo::fin`].
    pub async fn fin_without_notify(&mut self) {
        let _gone = self.stream.tcp_mut().shutdown().await;
    }

    /// RST.
    pub fn reset(self) {
        self.stream
            .tcp()
            .set_zero_linger()
            .expect("the socket is open");
    }

    /// FIN (over TLS after close_notify), and nobody reads any more. What the client had sent before is read first, so
    /// that the kernel does not turn the FIN into a RST.
    pub async fn close(mut self) {
        self.fin().await;
        if !matches!(self.stream, Stream::Memory(_)) {
            self.drain();
        }
    }

    /// The same without close_notify.
    pub async fn close_without_notify(mut self) {
        self.fin_without_notify().await;
        self.drain();
    }

    pub fn alpn(&self) -> Option<&[u8]> {
        match &self.stream {
            Stream::Plain(_) | Stream::Memory(_) => None,
            Stream::Tls(tls) => tls.get_ref().1.alpn_protocol(),
        }
    }

    /// Below TLS, for bytes that are no TLS record.
    pub fn tcp_mut(&mut self) -> &mut TcpStream {
        self.stream.tcp_mut()
    }

    /// Reads what there is; false at the end of the stream, whichever way it came.
    async fn fill(&mut self) -> bool {
        if !self.is_eof {
            let read = self.stream.read_buf(&mut self.unread).await;
            self.is_eof = !matches!(read, Ok(1..));
        }
        !self.is_eof
    }

    fn drain(&mut self) {
        let mut scrap = [0; 4096];
        while matches!(self.stream.tcp().try_read(&mut scrap), Ok(1..)) {}
    }
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
            Self::Memory(_) => panic!("a pipe of memory is no socket"),
        }
    }

    fn tcp_mut(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_mut().0,
            Self::Memory(_) => panic!("a pipe of memory is no socket"),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            Self::Memory(pipe) => Pin::new(pipe).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
            Self::Memory(pipe) => Pin::new(pipe).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Self::Memory(pipe) => Pin::new(pipe).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Self::Memory(pipe) => Pin::new(pipe).poll_shutdown(cx),
        }
    }
}

/// Accepts, and runs the script on each connection. Dropping it closes the port at once and cuts the connections soon.
pub struct Listening {
    port: Port,
    accepted: watch::Receiver<usize>,
    accepting: AbortHandle,
}

impl Listening {
    /// On this address; port 0 is a free one. The script gets the index of the connection in the order of accept; connections
    /// whose TLS handshake fails have an index but no script.
    pub fn start<S, F>(addr: SocketAddr, tls: Option<ServerConfig>, script: S) -> Self
    where
        S: Fn(PeerIo, usize) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let port = Port::bind(addr);
        let (count, accepted) = watch::channel(0);
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let accepting = tokio::spawn(run_scripts(port.clone(), tls, Arc::new(script), count));
        Self {
            port,
            accepted,
            accepting: accepting.abort_handle(),
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        *self.accepted.borrow()
    }

    /// Resolves once that many connections were accepted.
    pub async fn wait_connections(&self, n: usize) {
        let mut accepted = self.accepted.clone();
        let reached = accepted.wait_for(|accepted| *accepted >= n).await;
        reached.expect("connections are accepted until the port is closed");
    }

    /// Closes the port: when this returns it refuses. Open connections live on.
    pub fn stop(&self) {
        self.port.close();
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop();
        self.accepting.abort();
    }
}

async fn run_scripts<S, F>(
    port: Port,
    tls: Option<TlsAcceptor>,
    script: Arc<S>,
    count: watch::Sender<usize>,
) where
    S: Fn(PeerIo, usize) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    // When this task is aborted the set goes with it, and its tasks with the set.
    let mut scripts = JoinSet::new();
    while let Some(tcp) = port.accept().await {
        let index = *count.borrow();
        count.send_replace(index + 1);
        let (script, tls) = (Arc::clone(&script), tls.clone());
        scripts.spawn(async move {
            if let Ok(io) = PeerIo::accept(tcp, tls.as_ref()).await {
                script(io, index).await;
            }
        });
    }
    // The port is closed: the connections live on.
    while scripts.join_next().await.is_some() {}
}
