//! A peer in memory, and the exchanges that a codec bench repeats with it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Throughput};
use firstbyte::io::{BoxFuture, Dial, DialTarget, Transport};
use firstbyte::{Client, ConnectionPool, Protocols};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{loopback, runtime};

/// The other end of a connection: answers what was written.
pub(crate) trait Peer: Send + Unpin + 'static {
    fn answer(&mut self, written: &[u8], answer: &mut BytesMut);
}

/// Measures whole exchanges, each a GET whose body is read piece by piece, over one connection.
pub(crate) fn measure<P: Peer>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    protocols: Protocols,
    body_length: usize,
    peer: impl Fn() -> P + Send + Sync + 'static,
) {
    let pool = loopback("codec.test").dialer(InMemory(Arc::new(peer)));
    let pool: ConnectionPool = pool.build().expect("valid options");
    let client = pool.client_builder("http://codec.test/");
    let client = client.protocols(protocols).build().expect("a valid URL");
    let runtime = runtime();
    assert_eq!(runtime.block_on(exchange(&client)), body_length);
    if body_length > 0 {
        group.throughput(Throughput::Bytes(body_length as u64));
    }
    group.bench_function(name, |bencher| {
        bencher.to_async(&runtime).iter(|| exchange(&client));
    });
    let opened = pool.stats().connections_created;
    assert_eq!(opened, 1, "{name}: always the same connection");
}

/// The length of the body.
async fn exchange(client: &Client) -> usize {
    let mut response = client.get("/").send().await.expect("the peer is sound");
    let mut length = 0;
    while let Some(piece) = response.chunk().await.expect("the peer is sound") {
        length += piece.len();
    }
    length
}

/// Opens connections to peers.
struct InMemory<F>(Arc<F>);

impl<P: Peer, F: Fn() -> P + Send + Sync + 'static> Dial for InMemory<F> {
    fn dial(&self, _: DialTarget) -> BoxFuture<'static, io::Result<Transport>> {
        let connection = Connection {
            peer: (self.0)(),
            answer: BytesMut::new(),
            reader: None,
        };
        Box::pin(async { Ok(Transport::custom(connection)) })
    }
}

/// The peer lives in the very task that writes to it.
struct Connection<P> {
    peer: P,
    answer: BytesMut,
    reader: Option<Waker>,
}

impl<P: Peer> AsyncWrite for Connection<P> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        written: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.peer.answer(written, &mut this.answer);
        if !this.answer.is_empty()
            && let Some(reader) = this.reader.take()
        {
            reader.wake();
        }
        Poll::Ready(Ok(written.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl<P: Peer> AsyncRead for Connection<P> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.answer.is_empty() {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = self.answer.len().min(buf.remaining());
        buf.put_slice(&self.answer[..taken]);
        self.answer.advance(taken);
        Poll::Ready(Ok(()))
    }
}
