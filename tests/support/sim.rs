//! A network of memory: the pool dials through it and every connection runs a script, all on one runtime with a paused
//! clock. Time then passes only where nobody has anything to do, so that hours of policy take milliseconds and every
//! instant is exact.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use firstbyte::io::{BoxFuture, Dial, DialTarget, Transport};
use firstbyte::{Client, ConnectionPool, ConnectionPoolBuilder, Protocols};
use tokio::io::DuplexStream;
use tokio::time::sleep;

use super::h1_peer::H1Conn;
use super::h2_peer::H2Conn;
use super::peer_io::PeerIo;

const PIPE: usize = 64 * 1024;
const HEADERS: u8 = 1;

/// The name of the simulated origin, and of others on the same network.
pub const HOST: &str = "sim.test";
pub const OTHERS: [&str; 3] = ["one.test", "two.test", "three.test"];

type Script = Arc<dyn Fn(DuplexStream, usize) -> BoxFuture<'static, ()> + Send + Sync>;

/// The network. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Sim(Arc<Inner>);

struct Inner {
    script: Script,
    dial_takes: AtomicU64,
    way_takes: AtomicU64,
    failing: AtomicUsize,
    dials: AtomicUsize,
    addrs: Mutex<Vec<IpAddr>>,
    live: Arc<AtomicUsize>,
}

impl Sim {
    /// Peers that speak HTTP/1. The script gets the index of the connection.
    pub fn http1<F>(script: impl Fn(H1Conn, usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::new(Arc::new(move |pipe, index| {
            Box::pin(script(H1Conn::new(PeerIo::memory(pipe)), index))
        }))
    }

    /// Peers that speak HTTP/2 at once.
    pub fn http2<F>(script: impl Fn(H2Conn, usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::new(Arc::new(move |pipe, index| {
            Box::pin(script(H2Conn::new(PeerIo::memory(pipe)), index))
        }))
    }

    /// Peers that answer every request with `ok`.
    pub fn sound(protocols: Protocols) -> Self {
        Self::counting(protocols, &Arc::default())
    }

    /// The same, and they count the heads that they read.
    pub fn counting(protocols: Protocols, heads: &Arc<AtomicUsize>) -> Self {
        let heads = heads.clone();
        if protocols == Protocols::Http1 {
            return Self::http1(move |mut conn, _| {
                let heads = heads.clone();
                async move {
                    while !conn.read_head().await.is_empty() {
                        heads.fetch_add(1, Ordering::SeqCst);
                        conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                            .await;
                    }
                }
            });
        }
        Self::http2(move |mut conn, _| {
            let heads = heads.clone();
            async move {
                conn.handshake(&[]).await;
                while let Some(head) = conn.read_kind(HEADERS).await {
                    heads.fetch_add(1, Ordering::SeqCst);
                    conn.headers(head.stream, &[(":status", "200")], false)
                        .await;
                    conn.data(head.stream, "ok", true).await;
                }
            }
        })
    }

    /// Peers that let themselves be connected to, and answer nothing.
    pub fn silent(protocols: Protocols) -> Self {
        if protocols == Protocols::Http1 {
            return Self::http1(|mut conn, _| async move { conn.closed_by_client().await });
        }
        Self::http2(|mut conn, _| async move {
            conn.handshake(&[]).await;
            conn.closed_by_client().await;
        })
    }

    fn new(script: Script) -> Self {
        Self(Arc::new(Inner {
            script,
            dial_takes: AtomicU64::new(0),
            way_takes: AtomicU64::new(0),
            failing: AtomicUsize::new(0),
            dials: AtomicUsize::new(0),
            addrs: Mutex::default(),
            live: Arc::default(),
        }))
    }

    /// From now on a dial takes so long.
    pub fn dial_takes(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).expect("a sensible time");
        self.0.dial_takes.store(millis, Ordering::SeqCst);
    }

    /// From now on what is sent over a new connection, its end included, is so long on its way.
    pub fn way_takes(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).expect("a sensible time");
        self.0.way_takes.store(micros, Ordering::SeqCst);
    }

    /// The next so many dials are refused.
    pub fn refuse(&self, dials: usize) {
        self.0.failing.store(dials, Ordering::SeqCst);
    }

    /// Dials so far, refused ones included.
    pub fn dials(&self) -> usize {
        self.0.dials.load(Ordering::SeqCst)
    }

    /// The addresses that were dialled, in their order.
    pub fn addrs(&self) -> Vec<IpAddr> {
        self.0.addrs.lock().unwrap().clone()
    }

    /// Client ends of connections that are open.
    pub fn live(&self) -> usize {
        self.0.live.load(Ordering::SeqCst)
    }

    /// A pool on this network.
    pub fn pool(
        &self,
        configure: impl FnOnce(ConnectionPoolBuilder) -> ConnectionPoolBuilder,
    ) -> ConnectionPool {
        let mut builder = ConnectionPool::builder().dialer(self.clone());
        for host in OTHERS.into_iter().chain([HOST]) {
            builder = builder.resolve_to(host, [IpAddr::from([127, 0, 0, 1])]);
        }
        configure(builder).build().expect("valid options")
    }
}

/// A client of the simulated origin.
pub fn client(pool: &ConnectionPool, protocols: Protocols) -> Client {
    client_of(pool, HOST, protocols)
}

/// A client of one of the origins.
pub fn client_of(pool: &ConnectionPool, host: &str, protocols: Protocols) -> Client {
    pool.client_builder(format!("http://{host}"))
        .protocols(protocols)
        .build()
        .expect("a valid client")
}

impl Dial for Sim {
    fn dial(&self, target: DialTarget) -> BoxFuture<'static, io::Result<Transport>> {
        let inner = self.0.clone();
        Box::pin(async move {
            let index = inner.dials.fetch_add(1, Ordering::SeqCst);
            inner.addrs.lock().unwrap().push(target.addr.ip());
            let takes = inner.dial_takes.load(Ordering::SeqCst);
            if takes > 0 {
                sleep(Duration::from_millis(takes)).await;
            }
            let fails = |left: usize| left.checked_sub(1);
            let order = Ordering::SeqCst;
            if inner.failing.fetch_update(order, order, fails).is_ok() {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, theirs) = match inner.way_takes.load(Ordering::SeqCst) {
                0 => tokio::io::duplex(PIPE),
                micros => long_way::pipe(Duration::from_micros(micros)),
            };
            tokio::spawn((inner.script)(theirs, index));
            Ok(Transport::custom(counted::Counted::new(ours, &inner.live)))
        })
    }
}

/// HTTP/2 without asking, in place of HTTP/2 by ALPN: there is no TLS here.
pub fn plain(protocols: Protocols) -> Protocols {
    match protocols {
        Protocols::Http2 => Protocols::Http2PriorKnowledge,
        other => other,
    }
}

mod long_way {
    //! A pipe in which everything arrives later than it was sent.

    use std::time::Duration;

    use super::PIPE;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
    use tokio::sync::mpsc;
    use tokio::time::{Instant, sleep_until};

    pub fn pipe(takes: Duration) -> (DuplexStream, DuplexStream) {
        let (ours, our_end) = tokio::io::duplex(PIPE);
        let (theirs, their_end) = tokio::io::duplex(PIPE);
        let (our_read, our_write) = tokio::io::split(our_end);
        let (their_read, their_write) = tokio::io::split(their_end);
        carry(our_read, their_write, takes);
        carry(their_read, our_write, takes);
        (ours, theirs)
    }

    fn carry(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, takes: Duration) {
        let (sender, mut on_its_way) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut bytes = Vec::with_capacity(PIPE);
            while let Ok(1..) = from.read_buf(&mut bytes).await {
                let piece = std::mem::replace(&mut bytes, Vec::with_capacity(PIPE));
                // Fails once the other end is gone, which is the other direction's to tell.
                let _gone = sender.send((Instant::now() + takes, piece));
            }
            let _gone = sender.send((Instant::now() + takes, Vec::new()));
        });
        tokio::spawn(async move {
            while let Some((at, piece)) = on_its_way.recv().await {
                sleep_until(at).await;
                if piece.is_empty() || to.write_all(&piece).await.is_err() {
                    break;
                }
            }
            let _gone = to.shutdown().await;
        });
    }
}

mod counted {
    //! A pipe that is counted while it lives.

    use std::io;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

    pub struct Counted(DuplexStream, Arc<AtomicUsize>);

    impl Counted {
        pub fn new(pipe: DuplexStream, live: &Arc<AtomicUsize>) -> Self {
            live.fetch_add(1, Ordering::SeqCst);
            Self(pipe, Arc::clone(live))
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl AsyncRead for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }
}
