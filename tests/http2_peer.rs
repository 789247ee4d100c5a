//! HTTP/2 against a peer scripted frame by frame: refusals, GOAWAY, limits, floods.

mod common;
mod support;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{eventually, in_time, join_all};
use firstbyte::{
    Client, ConnectionPool, ConnectionUse, ErrorKind, Phase, Protocols, ReplaySafety, RetryPolicy,
};
use support::h2_peer::{Frame, H2Conn, H2Peer, code};

const OK: &[(&str, &str)] = &[(":status", "200")];
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const REFUSED_STREAM: u32 = 7;
const MAX_CONCURRENT_STREAMS: u16 = 3;

fn client_of(peer: &H2Peer) -> (ConnectionPool, Client) {
    let pool = ConnectionPool::new();
    let client = pool
        .client_builder(format!("http://{}", peer.addr()))
        .protocols(Protocols::Http2PriorKnowledge)
        .build()
        .unwrap();
    (pool, client)
}

/// Answers every request with `ok` until the client ends.
async fn serve(conn: &mut H2Conn) {
    while let Some(frame) = conn.read_frame().await {
        if frame.kind == HEADERS {
            conn.headers(frame.stream, OK, false).await;
            conn.data(frame.stream, "ok", true).await;
        }
    }
}

#[tokio::test]
async fn refused_stream_is_sent_again_whatever_its_method_but_not_for_ever() {
    in_time(async {
        for (refusals, attempts) in [(1, Some(2)), (2, Some(3)), (3, None)] {
            let peer = H2Peer::start(move |mut conn, _| async move {
                conn.handshake(&[]).await;
                for _ in 0..refusals {
                    let head = conn.read_headers().await;
                    conn.rst(head.stream, REFUSED_STREAM).await;
                    if !head.is_end_stream() {
                        conn.read_kind(DATA).await;
                    }
                }
                serve(&mut conn).await;
            });
            let (pool, client) = client_of(&peer);
            let result = client.post("/").body("once").send().await;
            match attempts {
                Some(attempts) => {
                    let mut response = result.unwrap();
                    assert_eq!(response.text().await.unwrap(), "ok");
                    assert_eq!(response.metrics().attempts, attempts);
                    assert!(response.timing().retry().is_some());
                    assert_eq!(pool.stats().retries, u64::from(attempts) - 1);
                }
                None => {
                    let error = result.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Refused);
                    assert_eq!(error.replay_safety(), ReplaySafety::Unprocessed);
                    assert_eq!(error.attempts(), 3);
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn goaway_below_the_stream_moves_the_request_to_a_new_connection() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, index| async move {
            conn.handshake(&[]).await;
            if index == 0 {
                conn.read_headers().await;
                conn.goaway(0, 0, b"bye").await;
            }
            serve(&mut conn).await;
        });
        let (pool, client) = client_of(&peer);
        let mut response = client.post("/").body("once").send().await.unwrap();
        assert_eq!(response.text().await.unwrap(), "ok");
        assert_eq!((response.metrics().attempts, peer.connections()), (2, 2));
        eventually("the first one is gone", || pool.stats().open == 1).await;
    })
    .await;
}

/// More are refused than the origin's budget of retries has: an orderly end is no sign of trouble.
#[tokio::test]
async fn all_that_an_orderly_goaway_refuses_are_served_elsewhere() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, index| async move {
            conn.handshake(&[]).await;
            if index == 0 {
                let head = conn.read_headers().await;
                conn.headers(head.stream, OK, true).await;
                let mut open = Vec::new();
                while open.len() < 60 {
                    open.push(conn.read_headers().await.stream);
                }
                conn.goaway(open[4], code::NO_ERROR, b"").await;
                for stream in &open[..5] {
                    conn.headers(*stream, OK, false).await;
                    conn.data(*stream, "ok", true).await;
                }
            }
            serve(&mut conn).await;
        });
        let (pool, client) = client_of(&peer);
        // From here on the peer's limits are known.
        client.get("/").send().await.unwrap();
        let get = async || {
            let mut response = client.get("/").send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "ok");
        };
        join_all((0..60).map(|_| get())).await;
        assert_eq!(pool.stats().retries, 55);
    })
    .await;
}

#[tokio::test]
async fn peer_that_refuses_the_connection_itself_is_not_dialled_again() {
    in_time(async {
        const ENHANCE_YOUR_CALM: u32 = 11;
        let peer = H2Peer::start(|mut conn, _| async move {
            conn.handshake(&[]).await;
            conn.read_headers().await;
            conn.goaway(0, ENHANCE_YOUR_CALM, b"too\x1b[2Jmany").await;
            conn.closed_by_client().await;
        });
        let (_pool, client) = client_of(&peer);
        let error = client.post("/").body("once").send().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
        assert_eq!(error.replay_safety(), ReplaySafety::Unprocessed);
        assert_eq!((error.attempts(), peer.connections()), (1, 1));
        assert!(!error.to_string().contains('\x1b'), "{error}");
    })
    .await;
}

#[tokio::test]
async fn burst_into_a_small_limit_that_was_not_known_yet_is_served_whole() {
    in_time(async {
        const LIMIT: usize = 3;
        for _ in 0..20 {
            let peer = H2Peer::start(|mut conn, _| async move {
                // All requests come before the peer has said how many it takes.
                conn.accept_preface().await;
                let mut open = Vec::new();
                while open.len() < 40 {
                    open.push(conn.read_headers().await.stream);
                }
                conn.cork();
                conn.settings(&[(MAX_CONCURRENT_STREAMS, LIMIT as u32)])
                    .await;
                let refused = open.split_off(LIMIT);
                for stream in refused {
                    conn.rst(stream, REFUSED_STREAM).await;
                }
                conn.flush().await;
                for stream in open {
                    conn.headers(stream, OK, false).await;
                    conn.data(stream, "ok", true).await;
                }
                serve(&mut conn).await;
            });
            let pool = ConnectionPool::builder()
                .http2(firstbyte::Http2Options::default().max_connections_per_origin(1))
                .build()
                .unwrap();
            let client = pool
                .client_builder(format!("http://{}", peer.addr()))
                .protocols(Protocols::Http2PriorKnowledge)
                .build()
                .unwrap();
            let get = async || {
                let mut response = client.get("/").send().await.unwrap();
                assert_eq!(response.text().await.unwrap(), "ok");
                response.metrics().attempts
            };
            let attempts = join_all((0..40).map(|_| get())).await;
            assert!(attempts.iter().all(|n| *n <= 2), "{attempts:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn head_beyond_the_bound_fails_its_stream_alone_and_says_so() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, _| async move {
            conn.handshake(&[]).await;
            let first = conn.read_headers().await.stream;
            conn.headers(first, OK, true).await;
            let held = conn.read_headers().await.stream;
            for (headers, len) in [(1, 70_000), (6, 60_000), (129, 1)] {
                let stream = conn.read_headers().await.stream;
                let value = "y".repeat(len);
                let mut head = vec![(":status", "200")];
                head.extend((0..headers).map(|_| ("x", &*value)));
                conn.headers(stream, &head, true).await;
            }
            conn.headers(held, OK, false).await;
            conn.data(held, "ok", true).await;
            conn.closed_by_client().await;
        });
        let (_pool, client) = client_of(&peer);
        client.get("/").send().await.unwrap();
        let held = async {
            let mut response = client.get("/").send().await.unwrap();
            response.text().await.unwrap()
        };
        let others = async {
            for what in ["65536 bytes", "65536 bytes", "128 headers"] {
                let error = client.get("/").send().await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
                assert_eq!(error.phase(), Some(Phase::Wait), "{error}");
                assert_eq!(error.replay_safety(), ReplaySafety::Processed);
                assert!(error.to_string().contains(what), "{error}");
            }
        };
        let (text, ()) = tokio::join!(held, others);
        assert_eq!((&*text, peer.connections()), ("ok", 1));
    })
    .await;
}

#[tokio::test]
async fn goaway_is_told_with_its_code_and_its_text_escaped_and_cut() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, index| async move {
            conn.handshake(&[]).await;
            let head = conn.read_headers().await;
            if index == 0 {
                let text = format!("too_many\r\n\x1b[0mpings{}", "x".repeat(10_000));
                conn.goaway(0, code::ENHANCE_YOUR_CALM, text).await;
            } else {
                conn.goaway(head.stream, code::INTERNAL_ERROR, "").await;
            }
        });
        let (_pool, client) = client_of(&peer);
        let error = client.get("/").send().await.unwrap_err().to_string();
        assert!(error.contains("GOAWAY (ENHANCE_YOUR_CALM"), "{error}");
        assert!(error.contains(r"too_many\r\n\x1b[0mpings"), "{error}");
        assert!(error.len() < 400, "{error}");
        let error = client.get("/").send().await.unwrap_err();
        assert_eq!(error.replay_safety(), ReplaySafety::MaybeProcessed);
        let text = error.to_string();
        assert!(text.contains("GOAWAY (INTERNAL_ERROR)"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn misdirected_request_on_a_shared_connection_is_sent_once_more_on_one_of_its_own() {
    in_time(async {
        for answers_everywhere in [false, true] {
            let peer = H2Peer::start(move |mut conn, index| async move {
                conn.handshake(&[]).await;
                let mut requests = 0;
                while let Some(head) = conn.read_kind(HEADERS).await {
                    requests += 1;
                    let is_misdirected = requests > 1 || answers_everywhere;
                    let status = if index == 0 && !is_misdirected {
                        "200"
                    } else {
                        "421"
                    };
                    let status = if index > 0 && !answers_everywhere {
                        "200"
                    } else {
                        status
                    };
                    conn.headers(head.stream, &[(":status", status)], true)
                        .await;
                }
            });
            let (_pool, client) = client_of(&peer);
            // Opened for this request: another one would be the same.
            let first = client.get("/").send().await.unwrap();
            assert_eq!(first.status(), if answers_everywhere { 421 } else { 200 });
            assert_eq!(first.metrics().attempts, 1);
            drop(first);
            let second = client.post("/").body("again").send().await.unwrap();
            assert_eq!(second.status(), if answers_everywhere { 421 } else { 200 });
            assert_eq!(second.metrics().attempts, 2);
            assert_eq!(peer.connections(), 2);
        }
    })
    .await;
}

#[tokio::test]
async fn peer_that_requires_http1_gets_it_for_the_request_or_for_all() {
    in_time(async {
        for of_connection in [false, true] {
            let pki = support::pki::Pki::new();
            let identity = pki.server(&["localhost"]);
            let http1 = Arc::new(AtomicUsize::new(0));
            let counted = http1.clone();
            let config = support::pki::server_config(&identity, &["h2", "http/1.1"]);
            // Whatever it reads first tells which protocol it is.
            let peer = H2Peer::start_tls_config(config, move |mut conn, _| {
                let counted = counted.clone();
                async move {
                    if conn.handshake(&[]).await.is_none() {
                        counted.fetch_add(1, Ordering::SeqCst);
                        // What was read is the head of an HTTP/1.1 request.
                        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\
                                      connection: close\r\n\r\n";
                        conn.raw(answer).await;
                        return conn.close().await;
                    }
                    while let Some(head) = conn.read_kind(HEADERS).await {
                        if of_connection {
                            conn.goaway(0, code::HTTP_1_1_REQUIRED, "").await;
                        } else {
                            conn.rst(head.stream, code::HTTP_1_1_REQUIRED).await;
                        }
                    }
                }
            });
            let pool = ConnectionPool::builder()
                .tls(
                    firstbyte::tls::TlsOptions::new()
                        .builtin_roots(false)
                        .add_root(pki.ca_der()),
                )
                .build()
                .unwrap();
            let url = format!("https://localhost:{}", peer.port());
            let client = pool.client_builder(&url).build().unwrap();
            for n in 1..=3 {
                let response = client.post("/").send().await.unwrap();
                assert_eq!(response.version(), http::Version::HTTP_11);
                let attempts = if of_connection && n > 1 { 1 } else { 2 };
                assert_eq!(response.metrics().attempts, attempts, "{n}");
            }
            assert_eq!(http1.load(Ordering::SeqCst), 3);
            // Requests of the pool itself remember, too.
            for n in 1..=2 {
                let request = http::Request::post(&url).body("").unwrap();
                let response = pool.send(request).await.unwrap();
                assert_eq!(response.version(), http::Version::HTTP_11, "{n}");
            }
            let attempts = if of_connection { 2 + 1 } else { 2 + 2 };
            let stats = pool.stats();
            let before = if of_connection { 1 } else { 3 };
            assert_eq!(stats.retries, before + attempts - 2);
            let only = pool.client_builder(&url).protocols(Protocols::Http2);
            let error = only.build().unwrap().get("/").send().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Http1Required);
            assert_eq!(error.replay_safety(), ReplaySafety::Unprocessed);
        }
    })
    .await;
}

#[tokio::test]
async fn answer_still_comes_on_a_stream_that_goaway_covers() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, index| async move {
            conn.handshake(&[]).await;
            if index == 0 {
                let head = conn.read_headers().await;
                conn.goaway(head.stream, 0, b"").await;
                conn.headers(head.stream, OK, false).await;
                conn.data(head.stream, "late", true).await;
                conn.closed_by_client().await;
            } else {
                serve(&mut conn).await;
            }
        });
        let (_pool, client) = client_of(&peer);
        let mut response = client.get("/").send().await.unwrap();
        assert_eq!(response.text().await.unwrap(), "late");
        assert_eq!(response.metrics().attempts, 1);
        let mut next = client.get("/").send().await.unwrap();
        assert_eq!(next.text().await.unwrap(), "ok");
        assert_eq!((next.metrics().attempts, peer.connections()), (1, 2));
    })
    .await;
}

#[tokio::test]
async fn connection_cut_in_the_middle_fails_all_its_streams_with_what_is_known() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, index| async move {
            conn.handshake(&[]).await;
            if index == 0 {
                for _ in 0..3 {
                    conn.read_headers().await;
                }
                conn.reset();
            } else {
                serve(&mut conn).await;
            }
        });
        let (pool, client) = client_of(&peer);
        client.warm(1).await.unwrap().into_result().unwrap();
        for result in join_all((0..3).map(|_| client.get("/").send())).await {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
            assert_eq!(error.replay_safety(), ReplaySafety::MaybeProcessed);
            assert_eq!(error.phase(), Some(Phase::Wait));
        }
        eventually("the dead one is off the books", || pool.stats().open == 0).await;
        let mut response = client.get("/").send().await.unwrap();
        assert_eq!(response.text().await.unwrap(), "ok");
    })
    .await;
}

#[tokio::test]
async fn empty_data_frames_are_harmless() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, _| async move {
            conn.handshake(&[]).await;
            loop {
                let Some(head) = conn.read_kind(HEADERS).await else {
                    return;
                };
                conn.headers(head.stream, OK, false).await;
                for _ in 0..150 {
                    conn.data(head.stream, "", false).await;
                    conn.data(head.stream, "x", false).await;
                }
                conn.data(head.stream, "", true).await;
            }
        });
        let (_pool, client) = client_of(&peer);
        for _ in 0..5 {
            let mut response = client.get("/").send().await.unwrap();
            assert_eq!(response.bytes().await.unwrap().len(), 150);
        }
        assert_eq!(peer.connections(), 1);
    })
    .await;
}

#[tokio::test]
async fn streams_above_the_peers_limit_wait_in_our_line_and_not_in_h2() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, _| async move {
            conn.handshake(&[(MAX_CONCURRENT_STREAMS, 1)]).await;
            loop {
                let Some(head) = conn.read_kind(HEADERS).await else {
                    return;
                };
                conn.headers(head.stream, OK, false).await;
                conn.data(head.stream, "ok", true).await;
            }
        });
        let pool = ConnectionPool::builder()
            .http2(firstbyte::Http2Options::default().max_connections_per_origin(1))
            .build()
            .unwrap();
        let client = pool
            .client_builder(format!("http://{}", peer.addr()))
            .protocols(Protocols::Http2PriorKnowledge)
            .retry(RetryPolicy::Never)
            .build()
            .unwrap();
        client.warm(1).await.unwrap().into_result().unwrap();
        let responses = join_all((0..5).map(|_| async {
            let mut response = client.get("/").send().await.unwrap();
            response.text().await.unwrap()
        }))
        .await;
        assert_eq!(responses, ["ok"; 5]);
        assert_eq!(peer.connections(), 1);
        assert!(pool.stats().limit_hits >= 4);
    })
    .await;
}

#[tokio::test]
async fn trailers_and_informational_heads_are_told_apart_from_the_final_head() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, _| async move {
            conn.handshake(&[]).await;
            let head = conn.read_headers().await;
            conn.headers(head.stream, &[(":status", "103"), ("link", "</a>")], false)
                .await;
            conn.headers(head.stream, OK, false).await;
            conn.data(head.stream, "body", false).await;
            conn.trailers(head.stream, &[("x-sum", "42")]).await;
            conn.closed_by_client().await;
        });
        let (_pool, client) = client_of(&peer);
        let response = client.get("/").send().await.unwrap();
        assert_eq!(response.status(), 200);
        let timing = response.timing();
        assert!(timing.informational().is_some());
        assert!(timing.first_byte() <= timing.headers());
        let mut body = response.into_body();
        let mut next = async || {
            std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx)).await
        };
        assert_eq!(next().await.unwrap().unwrap().into_data().unwrap(), "body");
        let trailers = next().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["x-sum"], "42");
        assert!(next().await.is_none());
    })
    .await;
}

#[tokio::test]
async fn dropped_response_resets_its_stream_and_no_other() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, _| async move {
            conn.handshake(&[]).await;
            let first = conn.read_headers().await.stream;
            conn.headers(first, OK, false).await;
            conn.data(first, "begin", false).await;
            let second = conn.read_headers().await.stream;
            conn.headers(second, OK, false).await;
            let reset = conn.read_kind(RST_STREAM).await.expect("a reset");
            let told = if reset.stream == first {
                "first was reset"
            } else {
                "wrong stream"
            };
            // Late data of the one that was dropped.
            conn.data(first, "late", false).await;
            conn.data(second, told, true).await;
            conn.closed_by_client().await;
        });
        let (pool, client) = client_of(&peer);
        let first = client.get("/").send().await.unwrap();
        let mut second = client.get("/").send().await.unwrap();
        assert_eq!(second.connection_use(), ConnectionUse::Multiplexed);
        drop(first);
        assert_eq!(second.text().await.unwrap(), "first was reset");
        assert_eq!((pool.stats().open, peer.connections()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn upload_waits_for_the_peers_window_and_an_early_answer_ends_it() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, _| async move {
            conn.handshake(&[]).await;
            let stream = conn.read_headers().await.stream;
            let mut got = 0;
            // 65,535 bytes fit the windows that every connection begins with.
            while got < 65_535 {
                let Some(Frame {
                    kind: DATA, len, ..
                }) = conn.read_frame().await
                else {
                    continue;
                };
                got += len;
            }
            conn.window_update(0, 200_000).await;
            conn.window_update(stream, 200_000).await;
            while got < 200_000 {
                got += conn.read_kind(DATA).await.expect("the rest").len;
            }
            conn.headers(stream, OK, false).await;
            conn.data(stream, got.to_string(), true).await;

            let early = conn.read_headers().await.stream;
            conn.headers(early, &[(":status", "413")], true).await;
            conn.rst(early, 0).await;
            conn.closed_by_client().await;
        });
        let (_pool, client) = client_of(&peer);
        let mut response = client
            .post("/")
            .body(vec![b'x'; 200_000])
            .send()
            .await
            .unwrap();
        assert_eq!(response.text().await.unwrap(), "200000");
        let response = client
            .post("/")
            .body(vec![b'x'; 500_000])
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 413);
        assert!(response.timing().upload_end().is_none());
    })
    .await;
}
