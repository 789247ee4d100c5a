//! Each timeout fires, names its phase, and leaves the pool as usable as before.

mod common;
mod support;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use common::{BOTH, World, eventually, in_time};
use firstbyte::io::{BoxFuture, Dial, DialTarget, Transport};
use firstbyte::{
    Body, ConnectionPool, ConnectionUse, Error, ErrorKind, Phase, Protocols, ReplaySafety, Timeouts,
};
use http_body::Frame;
use http_body_util::StreamBody;
use support::dns::Family;
use support::gate::Gate;
use support::h2_peer::code::REFUSED_STREAM;
use support::h2_peer::kind::HEADERS;
use support::server::Reply;
use support::sim::{Sim, client, plain};
use support::stall::Stall;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::poll_proceed;
use tokio::time::Instant;

const SHORT: Duration = Duration::from_millis(50);

fn check(error: &Error, phase: Phase, word: &str) {
    assert_eq!(
        (error.kind(), error.phase()),
        (ErrorKind::Timeout, Some(phase)),
        "{error}"
    );
    assert!(
        error.is_timeout() && error.to_string().contains(word),
        "{error}"
    );
    let timing = error.timing().expect("the timing so far");
    let sum: Duration = Phase::ALL.iter().filter_map(|p| timing.get(*p)).sum();
    assert_eq!(sum, timing.total());
    assert!(
        timing.get(phase).unwrap() >= SHORT / 2,
        "{phase} took the time: {timing:?}"
    );
}

#[tokio::test]
async fn connect_timeout_names_the_phase_that_the_dial_is_in() {
    in_time(async {
        let timeouts = Timeouts::default().connect(SHORT);
        let world = World::new().await;
        let gate = world.dns.hold("api.test", Family::V4);
        let client = world.client(firstbyte::Protocols::Auto);
        let error = client.get("/").timeouts(timeouts).send().await.unwrap_err();
        check(&error, Phase::Dns, "connect timeout");
        drop(gate);

        let pool = ConnectionPool::new();
        for (stall, scheme, phase) in [
            (Stall::blackhole(), "http", Phase::Tcp),
            (Stall::accept_silent(), "https", Phase::Tls),
        ] {
            let client = pool.client_builder(format!("{scheme}://{}/", stall.addr()));
            let client = client.timeouts(timeouts).build().unwrap();
            let error = client.get("/").send().await.unwrap_err();
            check(&error, phase, "connect timeout");
        }
        eventually("nobody waits", || pool.stats().waiting == 0).await;
    })
    .await;
}

#[tokio::test]
async fn dial_has_a_deadline_of_its_own_and_frees_its_place() {
    in_time(async {
        let silent = Stall::accept_silent();
        let pool = ConnectionPool::builder()
            .connect_timeout(SHORT)
            .build()
            .unwrap();
        let client = pool
            .client_builder(format!("https://{}/", silent.addr()))
            .build()
            .unwrap();
        let error = client.get("/").send().await.unwrap_err();
        check(&error, Phase::Tls, "connecting took longer");
        let stats = pool.stats();
        assert_eq!((stats.open, stats.waiting, stats.dials_failed), (0, 0, 1));
    })
    .await;
}

#[tokio::test]
async fn connect_timeout_of_a_request_leaves_the_dial_to_the_next() {
    in_time(async {
        let world = World::new().await;
        let gate = world.dns.hold("api.test", Family::V4);
        let client = world.client(firstbyte::Protocols::Auto);
        let timeouts = Timeouts::default().connect(SHORT);
        client.get("/").timeouts(timeouts).send().await.unwrap_err();
        gate.open();
        eventually("the dial is over", || world.pool.stats().idle == 1).await;
        let mut response = client.get("/").send().await.unwrap();
        response.bytes().await.unwrap();
        assert_eq!(response.connection_use(), ConnectionUse::Prewarmed);
        assert_eq!(world.server.counts().connections_accepted, 1);
    })
    .await;
}

#[tokio::test]
async fn first_byte_and_total_bound_the_wait_and_between_bytes_the_body() {
    in_time(async {
        for protocols in BOTH {
            let gate = Gate::new();
            let held = gate.clone();
            let world = World::with(
                |server| {
                    server.handler(move |request| match request.uri().path() {
                        "/hold" => Reply::ok().hold(held.clone()),
                        "/slow" => {
                            let chunks = vec![vec![b'x'; 10].into(); 2];
                            Reply::ok().chunks(chunks, Duration::from_secs(3600))
                        }
                        _ => Reply::ok().body("hello"),
                    })
                },
                |pool| pool,
            )
            .await;
            let client = world.client(protocols);
            client.get("/").send().await.unwrap().bytes().await.unwrap();

            let first_byte = Timeouts::default().first_byte(SHORT);
            let error = client
                .get("/hold")
                .timeouts(first_byte)
                .send()
                .await
                .unwrap_err();
            check(&error, Phase::Wait, "first_byte");
            let error = client.get("/hold").timeout(SHORT).send().await.unwrap_err();
            check(&error, Phase::Wait, "timeout");

            let between = Timeouts::default().between_bytes(SHORT);
            let mut response = client.get("/slow").timeouts(between).send().await.unwrap();
            let error = response.bytes().await.unwrap_err();
            check(&error, Phase::Receive, "between_bytes");
            let mut response = client.get("/slow").timeout(SHORT).send().await.unwrap();
            let error = response.bytes().await.unwrap_err();
            check(&error, Phase::Receive, "timeout");

            let mut response = client.get("/").send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "hello", "{protocols:?}");
            eventually("nothing is held", || world.pool.stats().active == 0).await;
            gate.open();
        }
    })
    .await;
}

#[tokio::test]
async fn deadlines_of_nothing_and_of_forever_do_not_overflow() {
    in_time(async {
        let world = World::new().await;
        let client = world.client(firstbyte::Protocols::Auto);
        let max = Duration::MAX;
        let forever = Timeouts::default()
            .queue(max)
            .connect(max)
            .first_byte(max)
            .between_bytes(max)
            .total(max);
        let mut response = client.get("/").timeouts(forever).send().await.unwrap();
        response.bytes().await.unwrap();
        let error = client
            .get("/delay/1000")
            .timeout(Duration::ZERO)
            .send()
            .await
            .unwrap_err();
        assert!(error.is_timeout());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn first_byte_counts_from_the_last_byte_of_the_request_that_left() {
    for protocols in BOTH.map(plain) {
        let sim = Sim::silent(protocols);
        let pool = sim.pool(|pool| pool);
        let client = client(&pool, protocols);
        let limit = Duration::from_secs(3);
        let began = Instant::now();
        let post = client.post("/").body("x");
        let post = post.timeouts(Timeouts::default().first_byte(limit));
        assert!(post.send().await.unwrap_err().is_timeout());
        assert_eq!(began.elapsed(), limit, "{protocols:?}: sent at once");

        // Pieces two seconds apart, three of them: it moves until then.
        let pieces = futures_util::stream::unfold(0, |n| async move {
            if n == 3 {
                return None;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            Some((
                Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"piece"))),
                n + 1,
            ))
        });
        let began = Instant::now();
        let post = client.post("/").body(Body::wrap(StreamBody::new(pieces)));
        let post = post.timeouts(Timeouts::default().first_byte(limit));
        assert!(post.send().await.unwrap_err().is_timeout());
        assert_eq!(began.elapsed(), Duration::from_secs(9), "{protocols:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn call_without_any_time_left_is_not_sent() {
    for protocols in BOTH.map(plain) {
        let heads = Arc::new(AtomicUsize::new(0));
        let sim = Sim::counting(protocols, &heads);
        let pool = sim.pool(|pool| pool);
        let client = client(&pool, protocols);
        client.get("/").send().await.unwrap().bytes().await.unwrap();
        let post = client.post("/").body("x").timeout(Duration::ZERO);
        let error = post.send().await.unwrap_err();
        assert!(error.is_timeout());
        assert_eq!(error.replay_safety(), ReplaySafety::NotSent, "{error}");
        // The connection is as good as before, and nothing was on it.
        client.get("/").send().await.unwrap().bytes().await.unwrap();
        assert_eq!((heads.load(SeqCst), sim.dials()), (2, 1), "{protocols:?}");
    }
}

/// A stream is refused twice, and then the time is over: what is known of the request stays known.
#[tokio::test(start_paused = true)]
async fn refused_request_is_not_sent_again_after_its_time() {
    let heads = Arc::new(AtomicUsize::new(0));
    let sim = Sim::http2({
        let heads = heads.clone();
        move |mut conn, _| {
            let heads = heads.clone();
            async move {
                conn.handshake(&[]).await;
                while let Some(head) = conn.read_kind(HEADERS).await {
                    heads.fetch_add(1, SeqCst);
                    conn.rst(head.stream, REFUSED_STREAM).await;
                }
            }
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = client(&pool, plain(Protocols::Http2));
    let get = client.get("/").timeout(Duration::from_millis(5));
    let error = get.send().await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert_eq!(error.replay_safety(), ReplaySafety::Unprocessed);
    assert_eq!(heads.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn timeout_behind_a_part_of_a_response_says_that_it_was_processed() {
    let limit = Timeouts::default().first_byte(Duration::from_secs(1));
    for part in ["HTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 2"] {
        let sim = Sim::http1(move |mut conn, _| async move {
            conn.read_head().await;
            conn.send(part).await;
            conn.closed_by_client().await;
        });
        let pool = sim.pool(|pool| pool);
        let get = client(&pool, Protocols::Http1).get("/").timeouts(limit);
        let error = get.send().await.unwrap_err();
        assert!(error.is_timeout(), "{error}");
        assert_eq!(error.replay_safety(), ReplaySafety::Processed, "{part}");
    }
    let sim = Sim::http2(|mut conn, _| async move {
        conn.handshake(&[]).await;
        let head = conn.read_headers().await;
        conn.headers(head.stream, &[(":status", "103")], false)
            .await;
        conn.closed_by_client().await;
    });
    let pool = sim.pool(|pool| pool);
    let get = client(&pool, plain(Protocols::Http2))
        .get("/")
        .timeouts(limit);
    let error = get.send().await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert_eq!(error.replay_safety(), ReplaySafety::Processed);
}

/// A transport that takes everything that is written, and spends the task's turn on it as a socket does. Its answer is
/// there as soon as 64 KiB have been written, or never.
struct Sink {
    written: usize,
    answer: &'static [u8],
}

impl AsyncWrite for Sink {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        ready!(poll_proceed(cx)).made_progress();
        self.written += buf.len();
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Sink {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let turn = ready!(poll_proceed(cx));
        if self.written < 64 << 10 || self.answer.is_empty() {
            // Looked at again with every piece of the upload.
            return Poll::Pending;
        }
        turn.made_progress();
        let n = self.answer.len().min(buf.remaining());
        buf.put_slice(&self.answer[..n]);
        self.answer = &self.answer[n..];
        Poll::Ready(Ok(()))
    }
}

struct Sinks(&'static [u8]);

impl Dial for Sinks {
    fn dial(&self, _: DialTarget) -> BoxFuture<'static, std::io::Result<Transport>> {
        let sink = Sink {
            written: 0,
            answer: self.0,
        };
        Box::pin(std::future::ready(Ok(Transport::custom(sink))))
    }
}

#[tokio::test]
async fn upload_that_never_waits_hides_neither_the_answer_nor_the_time() {
    in_time(async {
        let endless = || {
            let piece = || Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"ten bytes.")));
            Body::wrap(StreamBody::new(futures_util::stream::repeat_with(piece)))
        };
        let client = |answer| {
            let pool = ConnectionPool::builder()
                .dialer(Sinks(answer))
                .build()
                .unwrap();
            let client = pool.client_builder("http://127.0.0.1");
            client.protocols(Protocols::Http1).build().unwrap()
        };
        let post = client(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").post("/");
        let task = tokio::spawn(post.body(endless()).send());
        assert_eq!(task.await.unwrap().unwrap().status(), 413);

        for timeouts in [
            Timeouts::default().total(SHORT),
            Timeouts::default().total(SHORT).first_byte(Duration::MAX),
        ] {
            let post = client(b"").post("/").body(endless()).timeouts(timeouts);
            let error = tokio::spawn(post.send()).await.unwrap().unwrap_err();
            assert!(error.is_timeout(), "{error}");
        }
    })
    .await;
}
