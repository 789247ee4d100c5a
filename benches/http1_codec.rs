//! Whole HTTP/1.1 exchanges over a connection in memory: what head parser and body decoders cost,
//! with the request, the pool and the timing around them, and without a kernel or another task.

mod common;

use bytes::BytesMut;
use criterion::{Criterion, criterion_group, criterion_main};
use firstbyte::Protocols;

use common::memory::{Peer, measure};

const BODY: usize = 64 * 1024;
const CHUNKS: usize = 1000;
/// A token of a stream, roughly.
const CHUNK: usize = 20;

fn http1_codec(c: &mut Criterion) {
    let mut group = c.benchmark_group("http1_codec");
    let headers: String = (1..20)
        .map(|n| format!("x-header-{n}: value number {n}\r\n"))
        .collect();
    let empty = "content-length: 0\r\n";
    let many = format!("{headers}{empty}");
    let length = format!("content-length: {BODY}\r\n");
    let chunk = format!("{CHUNK:x}\r\n{}\r\n", "x".repeat(CHUNK));
    let chunks = format!("{}0\r\n\r\n", chunk.repeat(CHUNKS));
    let chunked = "transfer-encoding: chunked\r\n";
    for (name, body_length, headers, body) in [
        ("head_short", 0, empty, &b""[..]),
        ("head_20_headers", 0, &many, b""),
        ("body_64_kib_content_length", BODY, &length, &[b'x'; BODY]),
        (
            "body_1000_chunks",
            CHUNK * CHUNKS,
            chunked,
            chunks.as_bytes(),
        ),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\n{headers}\r\n");
        let response = [head.as_bytes(), body].concat();
        measure(&mut group, name, Protocols::Http1, body_length, move || {
            Canned(response.clone())
        });
    }
    group.finish();
}

/// Always the same response.
struct Canned(Vec<u8>);

impl Peer for Canned {
    fn answer(&mut self, request: &[u8], answer: &mut BytesMut) {
        // A GET leaves in one write.
        assert!(request.ends_with(b"\r\n\r\n") && answer.is_empty());
        answer.extend_from_slice(&self.0);
    }
}

criterion_group! {
    name = benches;
    config = common::criterion();
    targets = http1_codec
}
criterion_main!(benches);
