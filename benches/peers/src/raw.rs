//! The limit: a connection, and nothing around it.

use std::future::poll_fn;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use h2::client::SendRequest;
use http::header::{ACCEPT, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::calls::{CONNECTION_WINDOW, Call, Client, OnPiece, STREAM_WINDOW, Target, Worker};
use crate::world::{Protocol, World};

async fn connect(world: &World, tls: &Arc<ClientConfig>, target: Target) -> TlsStream<TcpStream> {
    let address = target.address(world);
    let tcp = TcpStream::connect(address)
        .await
        .expect("the server listens");
    tcp.set_nodelay(true).expect("a socket");
    let name = ServerName::from(address.ip());
    let tls = TlsConnector::from(tls.clone());
    tls.connect(name, tcp).await.expect("the server is sound")
}

/// One HTTP/2 connection that all workers share.
#[derive(Clone)]
pub struct RawH2 {
    world: Arc<World>,
    tls: Arc<ClientConfig>,
    target: Target,
    shared: Arc<std::sync::Mutex<Arc<OnceCell<SendRequest<Bytes>>>>>,
}

impl Client for RawH2 {
    type Worker = RawH2Worker;

    const NAME: &'static str = "raw";

    fn new(world: &Arc<World>, protocol: Protocol, target: Target) -> Self {
        assert_eq!(protocol, Protocol::H2);
        Self {
            world: world.clone(),
            tls: Arc::new(world.tls(protocol)),
            target,
            shared: Arc::default(),
        }
    }

    fn elsewhere(&self, _: &World, target: Target) -> Self {
        Self {
            target,
            shared: Arc::default(),
            ..self.clone()
        }
    }

    async fn worker(&self) -> RawH2Worker {
        let cell = self.shared.lock().expect("no panic").clone();
        let send = cell.get_or_init(async || {
            let tls = connect(&self.world, &self.tls, self.target).await;
            let (send, connection) = h2::client::Builder::new()
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .enable_push(false)
                .handshake(tls)
                .await
                .expect("the server is sound");
            tokio::spawn(connection);
            send
        });
        let authority = self.target.address(&self.world);
        let uri = |path| {
            format!("https://{authority}{path}")
                .parse()
                .expect("a valid URL")
        };
        RawH2Worker {
            send: send.await.clone(),
            uris: ["/", "/slow", "/big", "/events"].map(|path| (path, uri(path))),
            headers: HeaderMap::from_iter([
                (USER_AGENT, HeaderValue::from_static("raw/0.1.0")),
                (ACCEPT, HeaderValue::from_static("*/*")),
            ]),
        }
    }

    async fn forget_connections(&self) {
        *self.shared.lock().expect("no panic") = Arc::default();
    }
}

pub struct RawH2Worker {
    send: SendRequest<Bytes>,
    uris: [(&'static str, Uri); 4],
    /// What the pools send.
    headers: HeaderMap,
}

impl Worker for RawH2Worker {
    async fn call(&mut self, call: Call, on_piece: OnPiece<'_>) -> Result<(), String> {
        let (method, path, body) = match call {
            Call::Get(path) => (Method::GET, path, None),
            Call::Post(body) => (Method::POST, "/", Some(body)),
        };
        let mut request = Request::new(());
        *request.method_mut() = method;
        let uri = self.uris.iter().find(|(of, _)| *of == path);
        *request.uri_mut() = uri.expect("a path of the server").1.clone();
        *request.headers_mut() = self.headers.clone();
        let words = |e: h2::Error| e.to_string();
        poll_fn(|cx| self.send.poll_ready(cx))
            .await
            .map_err(words)?;
        let (response, mut upload) = self
            .send
            .send_request(request, body.is_none())
            .map_err(words)?;
        if let Some(body) = body {
            upload.send_data(body, true).map_err(words)?;
        }
        let mut body = response.await.map_err(words)?.into_body();
        while let Some(piece) = body.data().await {
            let piece = piece.map_err(words)?;
            on_piece(&piece);
            body.flow_control()
                .release_capacity(piece.len())
                .map_err(words)?;
        }
        Ok(())
    }
}

/// HTTP/1.1 by hand, a connection for each worker.
#[derive(Clone)]
pub struct RawH1 {
    world: Arc<World>,
    tls: Arc<ClientConfig>,
    target: Target,
}

impl Client for RawH1 {
    type Worker = RawH1Worker;

    const NAME: &'static str = "raw";

    fn new(world: &Arc<World>, protocol: Protocol, target: Target) -> Self {
        assert_eq!(protocol, Protocol::H1);
        Self {
            world: world.clone(),
            tls: Arc::new(world.tls(protocol)),
            target,
        }
    }

    fn elsewhere(&self, _: &World, target: Target) -> Self {
        Self {
            target,
            ..self.clone()
        }
    }

    async fn worker(&self) -> RawH1Worker {
        let io = connect(&self.world, &self.tls, self.target).await;
        RawH1Worker {
            fd: io.get_ref().0.as_raw_fd(),
            host: self.target.address(&self.world).to_string(),
            io,
            read: BytesMut::with_capacity(16 * 1024),
        }
    }

    async fn forget_connections(&self) {}
}

pub struct RawH1Worker {
    io: TlsStream<TcpStream>,
    fd: RawFd,
    host: String,
    read: BytesMut,
}

impl RawH1Worker {
    /// Whether the peer has said something or closed: the session and the runtime are asked, and the kernel.
    fn is_quiet(&mut self) -> bool {
        let mut space = [0; 1];
        let mut buf = ReadBuf::new(&mut space);
        let mut cx = Context::from_waker(Waker::noop());
        matches!(
            Pin::new(&mut self.io).poll_read(&mut cx, &mut buf),
            Poll::Pending
        )
    }

    /// Bytes may be tickets; an end is an end.
    fn is_open_in_the_kernel(&self) -> bool {
        let mut space = [0u8; 1];
        // SAFETY: the space is ours and as long as said.
        let n = unsafe {
            let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
            libc::recv(self.fd, space.as_mut_ptr().cast(), 1, flags)
        };
        n != 0
    }

    async fn fill(&mut self) -> Result<(), String> {
        self.read.reserve(8 * 1024);
        match self.io.read_buf(&mut self.read).await {
            Ok(0) => Err("the server closed".into()),
            Ok(_) => Ok(()),
            Err(e) => Err(e.to_string()),
        }
    }

    async fn read_line(&mut self) -> Result<Bytes, String> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line = self.read.split_to(end).freeze();
                self.read.advance(2);
                return Ok(line);
            }
            self.fill().await?;
        }
    }

    async fn read_body(&mut self, mut left: usize, on_piece: OnPiece<'_>) -> Result<(), String> {
        while left > 0 {
            if self.read.is_empty() {
                self.fill().await?;
            }
            let piece = self.read.split_to(left.min(self.read.len()));
            left -= piece.len();
            on_piece(&piece);
        }
        Ok(())
    }
}

impl Worker for RawH1Worker {
    async fn call(&mut self, call: Call, on_piece: OnPiece<'_>) -> Result<(), String> {
        // The look before a reuse.
        if !self.is_open_in_the_kernel() {
            return Err("the server has closed".into());
        }
        let mut request = Vec::with_capacity(256);
        let host = self.host.as_bytes();
        match call {
            Call::Get(path) => {
                for part in [b"GET ", path.as_bytes(), b" HTTP/1.1\r\nhost: ", host] {
                    request.extend_from_slice(part);
                }
                request.extend_from_slice(b"\r\n\r\n");
            }
            Call::Post(body) => {
                request.extend_from_slice(b"POST / HTTP/1.1\r\nhost: ");
                request.extend_from_slice(host);
                let length = format!("\r\ncontent-length: {}\r\n\r\n", body.len());
                request.extend_from_slice(length.as_bytes());
                request.extend_from_slice(&body);
            }
        }
        let words = |e: std::io::Error| e.to_string();
        self.io.write_all(&request).await.map_err(words)?;
        self.io.flush().await.map_err(words)?;
        let (mut length, mut is_chunked) = (0, false);
        loop {
            let line = self.read_line().await?;
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix(b"content-length: ") {
                let value = std::str::from_utf8(value).map_err(|e| e.to_string())?;
                length = value.parse().map_err(|_| "content-length is no number")?;
            }
            is_chunked |= line.starts_with(b"transfer-encoding: chunked");
        }
        if is_chunked {
            loop {
                let line = self.read_line().await?;
                let size = std::str::from_utf8(&line).map_err(|e| e.to_string())?;
                let size = usize::from_str_radix(size, 16).map_err(|e| e.to_string())?;
                self.read_body(size, on_piece).await?;
                self.read_line().await?;
                if size == 0 {
                    break;
                }
            }
        } else {
            self.read_body(length, on_piece).await?;
        }
        // The look when it comes back.
        if self.read.is_empty() && self.is_quiet() {
            Ok(())
        } else {
            Err("the server said more".into())
        }
    }
}
