//! What reaches the socket, seen through a dialer of one's own: how many writes, and what in them.

mod common;
mod support;

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use common::{World, in_time};
use firstbyte::io::{BoxFuture, Dial, DialTarget, Transport};
use firstbyte::{ConnectionPool, Protocols, tls::TlsOptions};
use support::stall::Stall;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Sizes of all writes, in order.
type Writes = Arc<Mutex<Vec<usize>>>;

#[derive(Clone, Default)]
struct CountingDialer(Writes);

impl Dial for CountingDialer {
    fn dial(&self, target: DialTarget) -> BoxFuture<'static, io::Result<Transport>> {
        let writes = self.0.clone();
        Box::pin(async move {
            let io = TcpStream::connect(target.addr).await?;
            Ok(Transport::custom(Counting { io, writes }))
        })
    }
}

struct Counting {
    io: TcpStream,
    writes: Writes,
}

impl AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = &written {
            self.writes.lock().unwrap().push(*n);
        }
        written
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn cold_request_over_tls_takes_two_writes() {
    in_time(async {
        for protocols in [Protocols::Http1, Protocols::Http2] {
            let dialer = CountingDialer::default();
            let writes = dialer.0.clone();
            let world = World::with(|server| server, |pool| pool.dialer(dialer)).await;
            let client = world.client(protocols);
            let mut response = client.post("/echo").body("ping").send().await.unwrap();
            let before_ack = writes.lock().unwrap().len();
            response.bytes().await.unwrap();
            // ClientHello; then the end of the handshake together with preface, SETTINGS and the
            // request. HTTP/2 may have acknowledged the peer's SETTINGS by then.
            let all = writes.lock().unwrap().clone();
            let most = if protocols == Protocols::Http2 { 3 } else { 2 };
            assert!(before_ack <= most, "{protocols:?}: {all:?}");
            assert!(
                all[1] > 150,
                "the request left with the handshake's end: {all:?}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn warm_request_takes_one_write() {
    in_time(async {
        for protocols in [Protocols::Http1, Protocols::Http2] {
            let dialer = CountingDialer::default();
            let writes = dialer.0.clone();
            let world = World::with(|server| server, |pool| pool.dialer(dialer)).await;
            let client = world.client(protocols);
            for _ in 0..3 {
                client.get("/").send().await.unwrap().bytes().await.unwrap();
            }
            writes.lock().unwrap().clear();
            let body = vec![b'x'; 2000];
            let mut response = client.post("/echo").body(body).send().await.unwrap();
            let head_writes = writes.lock().unwrap().clone();
            response.bytes().await.unwrap();
            assert_eq!(
                head_writes.len(),
                1,
                "{protocols:?}: head and body together: {head_writes:?}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn dialer_of_ones_own_is_raced_and_its_error_is_the_cause() {
    in_time(async {
        let dead = Stall::refused_addr();
        let pool = ConnectionPool::builder()
            .dialer(CountingDialer::default())
            .tls(TlsOptions::new())
            .build()
            .unwrap();
        let client = pool
            .client_builder(format!("http://{dead}/"))
            .build()
            .unwrap();
        let error = client.get("/").send().await.unwrap_err();
        assert!(
            error.is_connect() && error.to_string().contains("refused"),
            "{error}"
        );
        let trace_free = error.timing().unwrap();
        assert!(trace_free.tcp().is_some() && trace_free.dns().is_none());
    })
    .await;
}
