//! Whole HTTP/1.1 exchanges over a connection in memory: what head parser and body decoders cost,
//! with the request, the pool and the timing around them, and without a kernel or another task.

mod common;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use firstbyte::io::{BoxFuture, Dial, DialTarget, Transport};
use firstbyte::{Client, ConnectionPool};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use common::{loopback, runtime};

const BODY: usize = 64 * 1024;
const CHUNKS: usize = 1000;
/// A token of a stream, roughly.
const CHUNK: usize = 20;

fn http1_codec(c: &mut Criterion) {
    let mut group = c.benchmark_group("http1_codec");
    let empty = "content-length: 0\r\n";
    measure(&mut group, "head_short", 0, response(empty, b""));

    let headers: String = (1..20)
        .map(|n| format!("x-header-{n}: value number {n}\r\n"))
        .collect();
    measure(
        &mut group,
        "head_20_headers",
        0,
        response(&format!("{headers}{empty}"), b""),
    );

    let length = format!("content-length: {BODY}\r\n");
    let body = response(&length, &[b'x'; BODY]);
    measure(&mut group, "body_64_kib_content_length", BODY, body);

    let chunk = format!("{CHUNK:x}\r\n{}\r\n", "x".repeat(CHUNK));
    let chunks = format!("{}0\r\n\r\n", chunk.repeat(CHUNKS));
    let chunked = response("transfer-encoding: chunked\r\n", chunks.as_bytes());
    measure(&mut group, "body_1000_chunks", CHUNK * CHUNKS, chunked);
    group.finish();
}

fn response(headers: &str, body: &[u8]) -> Bytes {
    let head = format!("HTTP/1.1 200 OK\r\n{headers}\r\n");
    [head.as_bytes(), body].concat().into()
}

fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    body_length: usize,
    response: Bytes,
) {
    let pool = loopback("codec.test").dialer(InMemory { response });
    let pool: ConnectionPool = pool.build().expect("valid options");
    let client = pool
        .client_builder("http://codec.test/")
        .build()
        .expect("a valid URL");
    let runtime = runtime();
    assert_eq!(runtime.block_on(exchange(&client)), body_length);
    if body_length > 0 {
        group.throughput(Throughput::Bytes(body_length as u64));
    }
    group.bench_function(name, |bencher| {
        bencher.to_async(&runtime).iter(|| exchange(&client));
    });
    assert_eq!(
        pool.stats().connections_created,
        1,
        "{name}: always the same connection"
    );
}

/// A GET whose body is read piece by piece; its length.
async fn exchange(client: &Client) -> usize {
    let mut response = client.get("/").send().await.expect("the peer is sound");
    let mut length = 0;
    while let Some(piece) = response.chunk().await.expect("the peer is sound") {
        length += piece.len();
    }
    length
}

/// Opens connections to [`Peer`]s.
struct InMemory {
    response: Bytes,
}

impl Dial for InMemory {
    fn dial(&self, _: DialTarget) -> BoxFuture<'static, io::Result<Transport>> {
        let peer = Peer {
            response: self.response.clone(),
            answer: Bytes::new(),
        };
        Box::pin(async { Ok(Transport::custom(peer)) })
    }
}

/// The other end, in the very task that writes to it: once it has seen the end of a request, its
/// response can be read. It needs no waker, since nobody reads before having written.
struct Peer {
    response: Bytes,
    answer: Bytes,
}

impl AsyncWrite for Peer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        request: &[u8],
    ) -> Poll<io::Result<usize>> {
        // A GET leaves in one write.
        assert!(request.ends_with(b"\r\n\r\n") && self.answer.is_empty());
        self.answer = self.response.clone();
        Poll::Ready(Ok(request.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.answer.is_empty() {
            return Poll::Pending;
        }
        let taken = self.answer.len().min(buf.remaining());
        buf.put_slice(&self.answer[..taken]);
        self.answer.advance(taken);
        Poll::Ready(Ok(()))
    }
}

criterion_group! {
    name = benches;
    config = common::criterion();
    targets = http1_codec
}
criterion_main!(benches);
