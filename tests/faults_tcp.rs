//! How TCP misbehaves while a connection is made or lies idle, and the right answer to each.
//!
//! | fault | test |
//! |---|---|
//! | refused, black, silent | `bad_input`; `race`; `timeouts` |
//! | unreachable (ICMP) | `faults_dns::unroutable_address...`: the same error of connect() |
//! | RST or FIN before, in and after the handshake, and while idle | here; during an exchange: `http1_peer`, `http2_peer` |
//! | RST to a hundred idle connections | here |
//! | ports or descriptors run out | `exhaustion` |
//! | any operation fails, one after the other | here |
//! | an option that does not apply, a local address that is gone | the unit tests of `tcp::socket` |
//! | one byte at a time | here |
//! | a response and FIN in one segment | here |
//! | a window that stays closed to an HTTP/1.1 upload | here |
//! | Fast Open taken | `early_data`, in a network namespace |
//! | Fast Open refused or dropped on the way | README.md in this directory: a run over an emulated path |
//!
//! Half-open connections after a loss of power or of a NAT's memory are the kernel's (`TCP_USER_TIMEOUT`, keep-alive: read
//! back in the unit tests of `tcp::socket`), and HTTP/2's health checks, which are the pool's matter and not yet done.

mod common;
mod support;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use common::{World, eventually, in_time};
use firstbyte::io::{BoxFuture, Dial, DialTarget, Transport};
use firstbyte::tls::TlsOptions;
use firstbyte::{Client, CloseReason, ConnectionPool, Phase, Protocols, ReplaySafety, Timeouts};
use support::h1_peer::H1Peer;
use support::peer_io::Listening;
use support::port;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What a transport does to each read or write.
#[derive(Clone, Copy)]
enum Fault {
    /// The n-th operation fails, and all after it.
    FailsAt(usize),
    /// One byte at a time, and not at once.
    Stutters,
}

/// Reaches the server over transports with a fault.
#[derive(Clone)]
struct Faulty {
    server: SocketAddr,
    fault: Fault,
    live: Arc<AtomicUsize>,
}

impl Dial for Faulty {
    fn dial(&self, _: DialTarget) -> BoxFuture<'static, io::Result<Transport>> {
        let this = self.clone();
        Box::pin(async move {
            let tcp = TcpStream::connect(this.server).await?;
            this.live.fetch_add(1, Ordering::SeqCst);
            Ok(Transport::custom(FaultyIo {
                tcp,
                fault: this.fault,
                operations: 0,
                paused: [false; 2],
                live: this.live,
            }))
        })
    }
}

struct FaultyIo {
    tcp: TcpStream,
    fault: Fault,
    operations: usize,
    /// Whether reads, and writes, have had their pause.
    paused: [bool; 2],
    live: Arc<AtomicUsize>,
}

impl Drop for FaultyIo {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::SeqCst);
    }
}

impl FaultyIo {
    /// Before each operation: how many bytes it may move, if it may begin.
    fn begin(&mut self, writes: bool, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        match self.fault {
            Fault::FailsAt(n) => {
                self.operations += 1;
                if self.operations > n {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                Poll::Ready(Ok(usize::MAX))
            }
            Fault::Stutters => {
                let paused = &mut self.paused[usize::from(writes)];
                *paused = !*paused;
                if *paused {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(1))
            }
        }
    }
}

impl AsyncRead for FaultyIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = std::task::ready!(self.begin(false, cx))?;
        let mut part = buf.take(most);
        let polled = Pin::new(&mut self.tcp).poll_read(cx, &mut part);
        let n = part.filled().len();
        let bytes = part.filled().to_vec();
        if n > 0 {
            buf.put_slice(&bytes);
        }
        polled
    }
}

impl AsyncWrite for FaultyIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let most = std::task::ready!(self.begin(true, cx))?;
        let part = &buf[..buf.len().min(most)];
        Pin::new(&mut self.tcp).poll_write(cx, part)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

fn faulty(world: &World, fault: Fault, protocols: Protocols) -> (ConnectionPool, Client, Faulty) {
    let dialer = Faulty {
        server: world.server.addr(),
        fault,
        live: Arc::default(),
    };
    let pool = ConnectionPool::builder()
        .resolve_to("api.test", ["127.0.0.1".parse().unwrap()])
        .tls(
            TlsOptions::new()
                .builtin_roots(false)
                .add_root(world.pki.ca_der()),
        )
        .dialer(dialer.clone())
        .build()
        .unwrap();
    let client = pool
        .client_builder(world.server.url("/"))
        .protocols(protocols)
        .build()
        .unwrap();
    (pool, client, dialer)
}

#[tokio::test]
async fn whichever_operation_fails_nothing_hangs_leaks_or_lies() {
    in_time(async {
        let world = World::new().await;
        for protocols in common::BOTH {
            let mut succeeded = 0;
            for n in 0..60 {
                let (pool, client, dialer) = faulty(&world, Fault::FailsAt(n), protocols);
                let before = world.server.counts().requests;
                let request = client.post("/echo").body("x");
                let result = match request.send().await {
                    Ok(mut response) => response.text().await.map(drop),
                    Err(error) => Err(error),
                };
                match result {
                    Ok(()) => succeeded += 1,
                    Err(error) => {
                        assert!(!error.is_timeout(), "{n}: {error}");
                        if error.replay_safety() == ReplaySafety::NotSent {
                            let after = world.server.counts().requests;
                            assert_eq!(after, before, "{n}: sent after all: {error}");
                        }
                    }
                }
                pool.close_idle();
                eventually("everything is closed", || {
                    pool.stats().open == 0 && dialer.live.load(Ordering::SeqCst) == 0
                })
                .await;
                assert_eq!(pool.stats().waiting, 0, "{n}");
            }
            assert!(succeeded > 0, "the last ones get through");
        }
    })
    .await;
}

#[tokio::test]
async fn one_byte_at_a_time_is_slow_and_right() {
    in_time(async {
        let world = World::new().await;
        for protocols in common::BOTH {
            let (_pool, client, _) = faulty(&world, Fault::Stutters, protocols);
            let body = "x".repeat(2000);
            for _ in 0..2 {
                let request = client.post("/echo").body(body.clone());
                let mut response = request.send().await.unwrap();
                assert!(response.text().await.unwrap().contains(&body));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn connection_ended_before_or_in_the_handshake_is_told_and_nothing_was_sent() {
    in_time(async {
        let world = World::new().await;
        for (what, read, is_reset) in [
            ("RST before ClientHello", 0, true),
            ("FIN before ClientHello", 0, false),
            ("RST in ClientHello", 5, true),
            ("FIN in ClientHello", 5, false),
        ] {
            let peer = Listening::start(port::any(), None, move |mut io, _| async move {
                io.read(read).await;
                if is_reset {
                    io.reset();
                } else {
                    io.close().await;
                }
            });
            let url = format!("https://api.test:{}/", peer.addr().port());
            let client = world.client_of(&url, Protocols::Auto);
            let error = client.post("/").body("x").send().await.unwrap_err();
            assert_eq!(error.phase(), Some(Phase::Tls), "{what}: {error}");
            assert_eq!(error.replay_safety(), ReplaySafety::NotSent, "{what}");
            assert_eq!(peer.connections(), 1, "{what}: dialled once");
            assert_eq!(world.pool.stats().open, 0, "{what}");
        }
    })
    .await;
}

#[tokio::test]
async fn hundred_idle_connections_that_are_reset_are_gone_by_the_event() {
    in_time(async {
        let limits = firstbyte::Limits::gateway();
        let world = World::with(|server| server, |pool| pool.limits(limits)).await;
        let client = world.client(Protocols::Http1);
        assert_eq!(client.warm(100).await.unwrap().ready(), 100);
        let all = common::join_all((0..100).map(|_| client.get("/").send())).await;
        for response in all {
            response.unwrap().bytes().await.unwrap();
        }
        let opened = world.pool.stats().connections_created;
        world.server.kill_connections_rst();
        eventually("all are gone, and nobody has asked", || {
            world.pool.stats().open == 0
        })
        .await;
        let closed = world.pool.stats().closed;
        assert_eq!(closed.get(&CloseReason::PeerClosedIdle), Some(&opened));
        let mut next = client.get("/").send().await.unwrap();
        next.bytes().await.unwrap();
        assert_eq!(next.metrics().attempts, 1);
        assert_eq!(world.pool.stats().connections_created, opened + 1);
    })
    .await;
}

#[tokio::test]
async fn response_that_comes_with_the_end_of_the_connection_is_delivered_whole() {
    in_time(async {
        let peer = H1Peer::start(|mut conn, _| async move {
            conn.read_head().await;
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
                .await;
            conn.close().await;
        });
        let pool = ConnectionPool::new();
        let client = pool
            .client_builder(format!("http://{}", peer.addr()))
            .build()
            .unwrap();
        for _ in 0..20 {
            let mut response = client.get("/").send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "hello");
        }
        eventually("all are closed", || pool.stats().open == 0).await;
    })
    .await;
}

#[tokio::test]
async fn peer_that_accepts_and_says_nothing_is_bounded_and_takes_nobody_with_it() {
    in_time(async {
        let silent = support::stall::Stall::accept_silent();
        let world = World::new().await;
        let url = format!("https://api.test:{}/", silent.port());
        let stalled = world.client_of(&url, Protocols::Auto);
        let timeouts = Timeouts::default().connect(Duration::from_millis(200));
        let sound = world.client(Protocols::Auto);
        let (error, response) = tokio::join!(
            stalled.get("/").timeouts(timeouts).send(),
            sound.get("/").send()
        );
        let error = error.unwrap_err();
        assert!(
            error.is_timeout() && error.phase() == Some(Phase::Tls),
            "{error}"
        );
        assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
        assert_eq!(response.unwrap().status(), 200);
    })
    .await;
}

/// The kernel would take the closed window for a dead peer, however promptly its probes are answered.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn server_that_pauses_an_http1_upload_for_longer_than_the_user_timeout_gets_it_whole() {
    // More than the kernels on both sides hold together.
    const LENGTH: usize = 32 << 20;
    const TIMEOUT: Duration = Duration::from_millis(400);
    in_time(async {
        let peer = H1Peer::start(|mut conn, _| async move {
            let head = conn.read_head().await;
            // The pause is the fault.
            tokio::time::sleep(4 * TIMEOUT).await;
            let mut left = LENGTH;
            while left > 0 {
                let part = conn.read_body(left.min(1 << 20)).await;
                if part.is_empty() {
                    return;
                }
                left -= part.len();
            }
            assert!(head.starts_with("POST / "));
            conn.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole")
                .await;
            conn.closed_by_client().await;
        });
        let pool = ConnectionPool::builder()
            .tcp(firstbyte::tcp::TcpOptions::default().user_timeout(Some(TIMEOUT)))
            .build()
            .unwrap();
        let url = format!("http://127.0.0.1:{}/", peer.port());
        let client = pool.client_builder(url).build().unwrap();
        let upload = client.post("/").body(vec![7; LENGTH]).send();
        let mut response = upload.await.unwrap();
        assert_eq!(response.text().await.unwrap(), "whole");
        assert_eq!(peer.connections(), 1);
    })
    .await;
}

/// A transport with a buffer of its own.
struct Buffered(SocketAddr);

impl Dial for Buffered {
    fn dial(&self, _: DialTarget) -> BoxFuture<'static, io::Result<Transport>> {
        let addr = self.0;
        Box::pin(async move {
            let tcp = TcpStream::connect(addr).await?;
            Ok(Transport::custom(tokio::io::BufStream::new(tcp)))
        })
    }
}

#[tokio::test]
async fn transport_with_a_buffer_is_flushed_before_its_answer_is_awaited() {
    in_time(async {
        let world = World::new().await;
        for protocols in common::BOTH {
            let tls = TlsOptions::new().builtin_roots(false);
            let pool = ConnectionPool::builder()
                .tls(tls.add_root(world.pki.ca_der()))
                .dialer(Buffered(world.server.addr()))
                .resolve_to("api.test", ["127.0.0.1".parse().unwrap()])
                .build()
                .unwrap();
            let client = pool.client_builder(world.server.url("/"));
            let client = client.protocols(protocols).build().unwrap();
            for _ in 0..2 {
                let mut response = client.get("/").send().await.unwrap();
                assert_eq!(response.status(), 200);
                response.bytes().await.unwrap();
            }
        }
    })
    .await;
}
