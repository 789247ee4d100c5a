//! HTTP/2 streams and connections at their ends: what is known, what is given back, and what others get of it. On a
//! paused clock.

mod common;
mod support;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context, Poll};
use std::time::Duration;

use common::{eventually, in_time};
use firstbyte::{Client, ConnectionPool, Http2Options, Protocols, RequestOptions, Timeouts};
use support::gate::Gate;
use support::h2_peer::{H2Conn, code, encode, flag, header_block, kind, setting};
use support::sim::{Sim, client, plain};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

/// The window that every stream and connection begins with (RFC 9113 §6.9.2).
const WINDOW: u32 = 65_535;
/// RFC 8441 §3.
const ENABLE_CONNECT_PROTOCOL: u16 = 8;
const LONG: Duration = Duration::from_secs(60);

fn world(sim: &Sim) -> (ConnectionPool, Client) {
    let pool = sim.pool(|pool| pool);
    let client = client(&pool, plain(Protocols::Http2));
    (pool, client)
}

/// Reads so many bytes of DATA of a stream.
async fn take(conn: &mut H2Conn, stream: u32, bytes: usize) {
    let mut left = bytes;
    while left > 0 {
        let data = conn.read_kind(kind::DATA).await.expect("more of it");
        assert_eq!(data.stream, stream);
        left = left.saturating_sub(data.len);
    }
}

#[tokio::test(start_paused = true)]
async fn upload_that_nobody_polls_leaves_the_window_to_others() {
    in_time(async {
        let sim = Sim::http2(|mut conn, _| async move {
            conn.handshake(&[]).await;
            let first = conn.read_headers().await.stream;
            take(&mut conn, first, WINDOW as usize).await;
            conn.headers(first, &[(":status", "200")], false).await;
            // It has its head by then, and is not asked for more.
            tokio::time::sleep(Duration::from_secs(1)).await;
            conn.window_update(first, WINDOW).await;
            conn.window_update(0, WINDOW).await;
            let second = conn.read_kind(kind::HEADERS).await.unwrap().stream;
            take(&mut conn, second, 5).await;
            conn.headers(second, &[(":status", "200")], true).await;
            // The first goes on where it stopped.
            take(&mut conn, first, 200_000 - WINDOW as usize - 100_000).await;
            conn.data(first, "ok", true).await;
            conn.closed_by_client().await;
        });
        let (_pool, client) = world(&sim);
        let mut first = client
            .post("/")
            .body(vec![b'x'; 200_000])
            .send()
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let second = client.post("/").body("hello").send();
        let second = timeout(LONG, second).await.expect("there is window for it");
        assert_eq!(second.unwrap().status(), 200);
        assert_eq!(first.text().await.unwrap(), "ok");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn tunnel_that_nobody_polls_leaves_the_window_to_others() {
    in_time(async {
        let sim = Sim::http2(|mut conn, _| async move {
            conn.handshake(&[(ENABLE_CONNECT_PROTOCOL, 1)]).await;
            let tunnel = conn.read_headers().await.stream;
            conn.headers(tunnel, &[(":status", "200")], false).await;
            take(&mut conn, tunnel, WINDOW as usize).await;
            // Its next write is given up by then.
            tokio::time::sleep(Duration::from_secs(1)).await;
            conn.window_update(tunnel, WINDOW).await;
            conn.window_update(0, WINDOW).await;
            let second = conn.read_kind(kind::HEADERS).await.unwrap().stream;
            take(&mut conn, second, 5).await;
            conn.headers(second, &[(":status", "200")], true).await;
            conn.closed_by_client().await;
        });
        let (_pool, client) = world(&sim);
        let connect = client.request(http::Method::CONNECT, "/");
        let connect = connect.extended_connect("websocket");
        let mut tunnel = connect.send().await.unwrap().upgrade().unwrap();
        let bytes = vec![b'x'; WINDOW as usize];
        tunnel.write_all(&bytes).await.unwrap();
        let more = timeout(Duration::from_millis(1), tunnel.write_all(&bytes)).await;
        assert!(more.is_err(), "there is no window");
        tokio::time::sleep(Duration::from_secs(2)).await;
        let second = client.post("/").body("hello").send();
        let second = timeout(LONG, second).await.expect("there is window for it");
        assert_eq!(second.unwrap().status(), 200);
    })
    .await;
}

/// The end that it told is not asked for again.
#[tokio::test(start_paused = true)]
async fn body_that_has_ended_is_not_polled_again() {
    /// Its content, nothing for a moment, an empty piece, the end.
    struct Once(usize, Vec<u8>);
    impl http_body::Body for Once {
        type Data = bytes::Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
            self.0 += 1;
            let data = |data: Vec<u8>| Poll::Ready(Some(Ok(http_body::Frame::data(data.into()))));
            match self.0 {
                1 => data(self.1.clone()),
                2 => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                3 => data(Vec::new()),
                4 => Poll::Ready(None),
                _ => panic!("it has ended"),
            }
        }

        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(self.1.len() as u64)
        }
    }
    in_time(async {
        let sim = Sim::http2(|mut conn, _| async move {
            conn.handshake(&[]).await;
            while let Some(head) = conn.read_kind(kind::HEADERS).await {
                while !conn
                    .read_kind(kind::DATA)
                    .await
                    .unwrap()
                    .has_flag(flag::END_STREAM)
                {}
                conn.headers(head.stream, &[(":status", "200")], true).await;
            }
        });
        let (_pool, client) = world(&sim);
        for content in [&b"content"[..], b""] {
            let body = firstbyte::Body::wrap(Once(0, content.to_vec()));
            let answer = client.post("/").body(body).send().await.unwrap();
            assert_eq!(answer.status(), 200);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn body_that_was_not_asked_for_is_not_sent_behind_the_answer() {
    in_time(async {
        let sent = Arc::new(AtomicUsize::new(0));
        let sim = Sim::http2({
            let sent = sent.clone();
            move |mut conn, _| {
                let sent = sent.clone();
                async move {
                    conn.handshake(&[]).await;
                    let stream = conn.read_headers().await.stream;
                    conn.headers(stream, &[(":status", "417")], false).await;
                    conn.data(stream, "no", false).await;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    conn.data(stream, "pe", true).await;
                    while let Some(frame) = conn.read_frame().await {
                        if frame.kind == kind::DATA {
                            sent.fetch_add(frame.len, SeqCst);
                        }
                        if frame.kind == kind::HEADERS {
                            conn.headers(frame.stream, &[(":status", "200")], true)
                                .await;
                        }
                    }
                }
            }
        });
        let (pool, client) = world(&sim);
        let options = RequestOptions::default().expect_continue(LONG);
        let post = client.post("/").options(options).body("hello");
        let mut answer = post.send().await.unwrap();
        assert_eq!(answer.status(), 417);
        assert_eq!(answer.text().await.unwrap(), "nope");
        assert_eq!(client.get("/").send().await.unwrap().status(), 200);
        assert_eq!((sent.load(SeqCst), sim.dials()), (0, 1));
        assert_eq!(pool.stats().active, 0);
    })
    .await;
}

#[tokio::test]
async fn request_of_which_nothing_was_written_is_sent_over_another_connection() {
    in_time(async {
        for _ in 0..20 {
            let gate = Gate::new();
            let sim = Sim::http2({
                let gate = gate.clone();
                move |mut conn, index| {
                    let opened = gate.waiter();
                    async move {
                        conn.handshake(&[]).await;
                        if index == 0 {
                            opened.opened().await;
                            return;
                        }
                        let stream = conn.read_headers().await.stream;
                        conn.headers(stream, &[(":status", "200")], true).await;
                        conn.closed_by_client().await;
                    }
                }
            });
            let (pool, client) = world(&sim);
            client.warm(1).await.unwrap().into_result().unwrap();
            eventually("its settings are there", || pool.stats().idle == 1).await;
            // The peer goes as the request comes: the connection's task sees the end first.
            gate.open();
            let answer = client.post("/").body("x").send().await.unwrap();
            assert_eq!((answer.status().as_u16(), sim.dials()), (200, 2));
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn streams_that_the_peer_has_reset_cost_none_of_our_resets() {
    in_time(async {
        let sim = Sim::http2(|mut conn, _| async move {
            conn.handshake(&[(setting::MAX_CONCURRENT_STREAMS, 10)])
                .await;
            while let Some(head) = conn.read_kind(kind::HEADERS).await {
                conn.cork();
                conn.headers(head.stream, &[(":status", "413")], true).await;
                conn.rst(head.stream, code::NO_ERROR).await;
                // What came of its body is the peer's to give back.
                conn.window_update(0, WINDOW).await;
                conn.flush().await;
            }
        });
        let (pool, client) = world(&sim);
        let began = tokio::time::Instant::now();
        for _ in 0..130 {
            let post = client.post("/").body(vec![b'x'; 100_000]);
            let mut answer = post.send().await.unwrap();
            assert_eq!(answer.status(), 413);
            answer.bytes().await.unwrap();
        }
        assert_eq!((sim.dials(), pool.stats().active), (1, 0));
        assert_eq!(began.elapsed(), Duration::ZERO);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn answered_request_whose_body_finds_no_window_does_not_keep_its_stream() {
    in_time(async {
        let sim = Sim::http2(|mut conn, _| async move {
            let settings = [
                (setting::INITIAL_WINDOW_SIZE, 0),
                (setting::MAX_CONCURRENT_STREAMS, 1),
            ];
            conn.handshake(&settings).await;
            while let Some(head) = conn.read_kind(kind::HEADERS).await {
                conn.headers(head.stream, &[(":status", "401")], true).await;
            }
        });
        let pool =
            sim.pool(|pool| pool.http2(Http2Options::default().max_connections_per_origin(1)));
        let client = client(&pool, plain(Protocols::Http2));
        client.warm(1).await.unwrap().into_result().unwrap();
        let answer = client.post("/").body("hello").send().await.unwrap();
        assert_eq!(answer.status(), 401);
        drop(answer);
        let next = timeout(LONG, client.get("/").send());
        let next = next.await.expect("the stream is over").unwrap();
        assert_eq!((next.status().as_u16(), sim.dials()), (401, 1));
        drop(next);
        pool.close_idle();
        eventually("it is closed", || pool.stats().open == 0).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn informational_responses_without_end_cost_a_request_that_nobody_polls_its_stream() {
    in_time(async {
        let (sent, was_reset) = (Gate::new(), Gate::new());
        let sim = Sim::http2({
            let gates = (sent.clone(), was_reset.clone());
            move |mut conn, _| {
                let (sent, was_reset) = gates.clone();
                async move {
                    conn.handshake(&[]).await;
                    let stream = conn.read_headers().await.stream;
                    sent.open();
                    for _ in 0..1000 {
                        conn.headers(stream, &[(":status", "103")], false).await;
                    }
                    conn.read_kind(kind::RST_STREAM).await.unwrap();
                    was_reset.open();
                    conn.closed_by_client().await;
                }
            }
        });
        let (_pool, client) = world(&sim);
        let mut call = Box::pin(client.get("/").send());
        // Until it is sent, and no longer.
        while !sent.is_open() {
            assert!(futures_util::poll!(&mut call).is_pending());
            tokio::task::yield_now().await;
        }
        was_reset.waiter().opened().await;
        let error = call.await.unwrap_err();
        let text = "too many informational responses";
        assert!(error.to_string().contains(text), "{error}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn complete_answer_outlives_its_connection_though_the_request_is_not_all_sent() {
    in_time(async {
        for body in ["", "too large"] {
            let sim = Sim::http2(move |mut conn, _| async move {
                conn.handshake(&[]).await;
                let stream = conn.read_headers().await.stream;
                take(&mut conn, stream, WINDOW as usize).await;
                conn.cork();
                conn.headers(stream, &[(":status", "413")], body.is_empty())
                    .await;
                if !body.is_empty() {
                    conn.data(stream, body, true).await;
                }
                conn.flush().await;
            });
            let (_pool, client) = world(&sim);
            let post = client.post("/").body(vec![b'x'; 200_000]);
            let mut answer = post.send().await.unwrap();
            assert_eq!(answer.status(), 413);
            assert_eq!(answer.text().await.unwrap(), body);
        }
        // And one that is cut off is not complete, whatever its last frame was going to say.
        let sim = Sim::http2(move |mut conn, _| async move {
            conn.handshake(&[]).await;
            let stream = conn.read_headers().await.stream;
            take(&mut conn, stream, WINDOW as usize).await;
            conn.cork();
            conn.headers(stream, &[(":status", "413")], false).await;
            let data = encode(kind::DATA, flag::END_STREAM, stream, b"too large");
            conn.raw(&data[..data.len() - 3]).await;
            conn.flush().await;
        });
        let (_pool, client) = world(&sim);
        let post = client.post("/").body(vec![b'x'; 200_000]);
        let mut answer = post.send().await.unwrap();
        assert!(answer.text().await.is_err());
    })
    .await;
}

/// Nothing of it is read as an end: the peer falls silent in the middle of its last frame, or the pool is shut down.
#[tokio::test(start_paused = true)]
async fn last_frame_that_did_not_come_whole_is_no_end() {
    // The first stream of a client is 1.
    let data = encode(kind::DATA, flag::END_STREAM, 1, b"the rest");
    let padded = [&[3][..], b"the rest", &[0; 3]].concat();
    let padded = encode(kind::DATA, flag::END_STREAM | flag::PADDED, 1, &padded);
    let flags = flag::END_STREAM | flag::END_HEADERS;
    let trailers = encode(kind::HEADERS, flags, 1, &header_block(&[("x", "y")]));
    for (frame, missing) in [(&data, 3), (&padded, 3), (&padded, 12), (&trailers, 1)] {
        for shuts_down in [false, true] {
            let cut = frame.slice(..frame.len() - missing);
            let sim = Sim::http2(move |mut conn, index| {
                let cut = cut.clone();
                async move {
                    conn.handshake(&[]).await;
                    if index > 0 {
                        // Dialled in its place.
                        return conn.closed_by_client().await;
                    }
                    let stream = conn.read_headers().await.stream;
                    conn.headers(stream, &[(":status", "200")], false).await;
                    conn.data(stream, "begun", false).await;
                    conn.raw(&cut).await;
                    // It reads nothing more, so that no PING is answered.
                    tokio::time::sleep(LONG).await;
                }
            });
            let (pool, client) = world(&sim);
            let mut answer = client.get("/").send().await.unwrap();
            assert_eq!(answer.chunk().await.unwrap().unwrap(), "begun");
            let rest = tokio::spawn(async move { answer.bytes().await });
            tokio::time::sleep(Duration::from_secs(1)).await;
            if shuts_down {
                pool.shutdown(Duration::ZERO).await;
            }
            let error = rest.await.unwrap().expect_err("it was cut off").to_string();
            let why = if shuts_down { "shut down" } else { "PING" };
            assert!(error.contains(why), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn settings_have_come_when_all_of_them_have() {
    in_time(async {
        let sim = Sim::http2(|mut conn, _| async move {
            conn.accept_preface().await;
            // SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441 §3).
            let settings = encode(kind::SETTINGS, 0, 0, &[0, 8, 0, 0, 0, 1]);
            conn.raw(&settings[..9]).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            conn.raw(&settings[9..]).await;
            conn.settings_ack().await;
            let head = conn.read_headers().await;
            let ok = header_block(&[(":status", "200")]);
            let flags = flag::END_HEADERS;
            conn.frame(kind::HEADERS, flags, head.stream, ok).await;
            conn.closed_by_client().await;
        });
        let (_pool, client) = world(&sim);
        let connect = client
            .request(http::Method::CONNECT, "/")
            .extended_connect("websocket");
        let limit = Timeouts::default().first_byte(LONG);
        let answer = connect.timeouts(limit).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    })
    .await;
}
