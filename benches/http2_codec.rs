//! Whole HTTP/2 exchanges over a connection in memory: what h2, the tap under it and our books cost, with the
//! request, the pool, the timing and the connection's own task around them, and without a kernel.

mod common;

use bytes::{Buf, BufMut, BytesMut};
use criterion::{Criterion, criterion_group, criterion_main};
use firstbyte::Protocols;

use common::memory::{Peer, measure};
use common::support::h2_peer::{PREFACE, encode, flag, kind};

const BODY: usize = 64 * 1024;
/// The largest frame that a peer may send.
const FRAME: usize = 16_384;
const SMALL_FRAMES: usize = 1000;
/// A token of a stream, roughly.
const SMALL_FRAME: usize = 20;

fn http2_codec(c: &mut Criterion) {
    let mut group = c.benchmark_group("http2_codec");
    // `:status: 200`, and fields that are not indexed, as HPACK writes them (RFC 7541 §6).
    let short = vec![0x88];
    let mut many = short.clone();
    for n in 1..20 {
        for text in [format!("x-header-{n}"), format!("value number {n}")] {
            if text.starts_with('x') {
                many.push(0);
            }
            many.push(text.len() as u8);
            many.extend_from_slice(text.as_bytes());
        }
    }
    for (name, frames, frame, empty, head) in [
        ("head_short", 0, 0, false, &short),
        ("head_20_headers", 0, 0, false, &many),
        ("body_64_kib", BODY / FRAME, FRAME, false, &short),
        ("body_1000_frames", SMALL_FRAMES, SMALL_FRAME, false, &short),
        // What a relaying server sends, and the tap takes out.
        (
            "body_1000_frames_with_empty_ones",
            SMALL_FRAMES,
            SMALL_FRAME,
            true,
            &short,
        ),
    ] {
        let peer = Canned {
            head: head.clone(),
            frames,
            content: vec![b'x'; frame],
            empty,
            unread: BytesMut::new(),
            has_greeted: false,
        };
        let protocols = Protocols::Http2PriorKnowledge;
        measure(&mut group, name, protocols, frames * frame, move || {
            peer.clone()
        });
    }
    group.finish();
}

/// The same response on every stream.
#[derive(Clone)]
struct Canned {
    head: Vec<u8>,
    /// DATA frames, each with the same content.
    frames: usize,
    content: Vec<u8>,
    /// Behind each an empty one.
    empty: bool,
    unread: BytesMut,
    has_greeted: bool,
}

impl Peer for Canned {
    fn answer(&mut self, written: &[u8], answer: &mut BytesMut) {
        self.unread.extend_from_slice(written);
        if !self.has_greeted && self.unread.starts_with(PREFACE) {
            self.unread.advance(PREFACE.len());
            self.has_greeted = true;
            answer.put(encode(kind::SETTINGS, 0, 0, &[]));
        }
        while self.has_greeted && self.unread.len() >= 9 {
            let len = self.unread.clone().get_uint(3) as usize;
            if self.unread.len() < 9 + len {
                return;
            }
            let (kind, flags) = (self.unread[3], self.unread[4]);
            let mut stream = [0; 4];
            stream.copy_from_slice(&self.unread[5..9]);
            self.unread.advance(9 + len);
            match kind {
                kind::SETTINGS if flags & flag::ACK == 0 => {
                    answer.put(encode(kind::SETTINGS, flag::ACK, 0, &[]));
                }
                kind::HEADERS => self.respond(u32::from_be_bytes(stream), answer),
                _ => {}
            }
        }
    }
}

impl Canned {
    fn respond(&self, stream: u32, answer: &mut BytesMut) {
        let end = |is_last: bool| if is_last { flag::END_STREAM } else { 0 };
        let flags = flag::END_HEADERS | end(self.frames == 0);
        answer.put(encode(kind::HEADERS, flags, stream, &self.head));
        for n in 1..=self.frames {
            let flags = end(n == self.frames);
            answer.put(encode(kind::DATA, flags, stream, &self.content));
            if self.empty && n < self.frames {
                answer.put(encode(kind::DATA, 0, stream, &[]));
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = common::criterion();
    targets = http2_codec
}
criterion_main!(benches);
