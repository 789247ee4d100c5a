//! HTTP/1.1 against a peer scripted byte by byte: where bodies end, when a connection serves again,
//! what is sent once more, and what the request looks like on the wire.

mod common;
mod support;

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use common::{eventually, in_time};
use firstbyte::{
    Body, Client, CloseReason, ConnectionPool, ConnectionUse, ErrorKind, Phase, ReplaySafety,
    Response,
};
use http_body::Frame;
use support::gate::Gate;
use support::h1_peer::{H1Conn, H1Peer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Answers every request with these bytes, connection by connection, until the client ends.
fn answers(bytes: &'static str) -> H1Peer {
    H1Peer::start(move |mut conn, _| async move { serve(&mut conn, bytes).await })
}

async fn serve(conn: &mut H1Conn, bytes: &str) {
    while conn.read_head().await.ends_with("\r\n\r\n") {
        conn.send(bytes).await;
    }
}

fn client_of(peer: &H1Peer) -> (ConnectionPool, Client) {
    let pool = ConnectionPool::new();
    let client = pool.client_builder(format!("http://{}", peer.addr()));
    (pool.clone(), client.build().unwrap())
}

async fn get(client: &Client) -> Response {
    client.get("/").send().await.expect("it works")
}

/// The frames of a body: its data in one piece, and its trailers.
async fn frames(response: Response) -> (String, Option<http::HeaderMap>) {
    let (mut body, mut text, mut trailers) = (response.into_body(), String::new(), None);
    let next = async |body: &mut firstbyte::ResponseBody| {
        std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut *body), cx)).await
    };
    while let Some(frame) = next(&mut body).await {
        match frame.expect("a sound body").into_data() {
            Ok(data) => text.push_str(std::str::from_utf8(&data).unwrap()),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    (text, trailers)
}

/// A body in pieces without a known length; with `endless` the last piece is repeated for ever.
struct Pieces {
    left: std::vec::IntoIter<&'static str>,
    endless: Option<Bytes>,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let next = self.left.next().map(Bytes::from);
        let next = next.or_else(|| self.endless.clone());
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
    }
}

#[tokio::test]
async fn body_ends_where_its_framing_says_however_its_bytes_arrive() {
    in_time(async {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                       5;ext=1\r\nhello\r\n1\r\n,\r\n00006\r\n world\r\n0\r\nx-sum: 42\r\n\r\n";
        let length = "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nhello, world";
        let close = "HTTP/1.1 200 OK\r\n\r\nhello, world";
        for (bytes, connections, sum) in [(chunked, 1, true), (length, 1, false), (close, 3, false)]
        {
            for step in [1, 7, 4096] {
                let peer = H1Peer::start(move |mut conn, _| async move {
                    while conn.read_head().await.ends_with("\r\n\r\n") {
                        conn.send_slowly(bytes, step).await;
                        if bytes == close {
                            return conn.close().await;
                        }
                    }
                });
                let (pool, client) = client_of(&peer);
                for _ in 0..3 {
                    let (text, trailers) = frames(get(&client).await).await;
                    assert_eq!(text, "hello, world", "{step} bytes at a time: {bytes}");
                    assert_eq!(trailers.is_some_and(|t| t["x-sum"] == "42"), sum, "{bytes}");
                }
                assert_eq!(peer.connections(), connections, "{step}: {bytes}");
                let ended = pool
                    .stats()
                    .closed
                    .get(&CloseReason::ResponseEnded)
                    .copied();
                assert_eq!(ended, (bytes == close).then_some(3));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn response_without_a_body_ends_at_its_head_whatever_length_it_tells() {
    in_time(async {
        let peer = H1Peer::start(|mut conn, _| async move {
            while let head @ ("H" | "G" | "P") = &conn.read_head().await[..1] {
                conn.send(match head {
                    "H" => "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n",
                    "G" => "HTTP/1.1 304 Not Modified\r\ncontent-length: 500\r\n\r\n",
                    _ => "HTTP/1.1 204 No Content\r\ncontent-length: 500\r\n\r\n",
                })
                .await;
            }
        });
        let (_pool, client) = client_of(&peer);
        for _ in 0..2 {
            for (request, status) in [
                (client.head("/"), 200),
                (client.get("/"), 304),
                (client.put("/"), 204),
            ] {
                let mut response = request.send().await.unwrap();
                assert_eq!(response.status(), status);
                assert_eq!(response.content_length(), Some(500));
                assert!(
                    response.timing().is_complete(),
                    "{status} ended at its head"
                );
                assert_eq!(response.bytes().await.unwrap(), "");
            }
        }
        assert_eq!(peer.connections(), 1);
    })
    .await;
}

#[tokio::test]
async fn informational_responses_are_skipped_and_the_first_byte_is_the_final_ones() {
    in_time(async {
        let gate = Gate::new();
        let held = gate.clone();
        let peer = H1Peer::start(move |mut conn, _| {
            let held = held.waiter();
            async move {
                conn.read_head().await;
                conn.send("HTTP/1.1 100 Continue\r\n\r\n").await;
                conn.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
                    .await;
                held.opened().await;
                conn.send(OK).await;
                conn.closed_by_client().await;
            }
        });
        let (pool, client) = client_of(&peer);
        let opened = async {
            peer.wait_requests(1).await;
            eventually("it is under way", || pool.stats().active == 1).await;
            let before = std::time::Instant::now();
            gate.open();
            before
        };
        let (mut response, opened) = tokio::join!(get(&client), opened);
        assert_eq!(
            (response.status().as_u16(), response.headers().len()),
            (200, 1)
        );
        assert_eq!(response.text().await.unwrap(), "ok");
        let timing = response.timing();
        assert!(timing.informational().is_some(), "1xx is told apart");
        assert!(
            timing.first_byte().unwrap() >= opened,
            "the final head's, not the 100's"
        );
        assert!(timing.informational() <= timing.first_byte());
    })
    .await;
}

#[tokio::test]
async fn connection_serves_again_only_if_the_peer_says_so() {
    in_time(async {
        for (head, reused) in [
            ("HTTP/1.1 200 OK\r\n", true),
            ("HTTP/1.1 200 OK\r\nconnection: keep-alive\r\n", true),
            ("HTTP/1.1 200 OK\r\nConnection: Close\r\n", false),
            (
                "HTTP/1.1 200 OK\r\nconnection: keep-alive, close\r\n",
                false,
            ),
            ("HTTP/1.0 200 OK\r\n", false),
            ("HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\n", true),
        ] {
            let peer = H1Peer::start(move |mut conn, _| async move {
                let answer = format!("{head}content-length: 2\r\n\r\nok");
                serve(&mut conn, &answer).await;
            });
            let (pool, client) = client_of(&peer);
            for how in [ConnectionUse::New, ConnectionUse::Idle] {
                let mut response = get(&client).await;
                assert_eq!(response.text().await.unwrap(), "ok");
                let expected = if reused { how } else { ConnectionUse::New };
                assert_eq!(response.connection_use(), expected, "{head}");
            }
            let closed = pool.stats().closed;
            let asked = closed.get(&CloseReason::PeerAskedToClose).copied();
            assert_eq!(asked, (!reused).then_some(2), "{head}");
        }
    })
    .await;
}

#[tokio::test]
async fn bytes_behind_a_response_are_nobodys_answer() {
    in_time(async {
        let smuggled = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok\
                        HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL";
        for excess in [
            smuggled,
            "HTTP/1.1 204 No\r\n\r\nx",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n\0",
        ] {
            let peer = answers(excess);
            let (pool, client) = client_of(&peer);
            for _ in 0..3 {
                let mut response = get(&client).await;
                assert_ne!(response.text().await.unwrap(), "EVIL");
                assert_eq!(response.connection_use(), ConnectionUse::New);
            }
            assert_eq!(peer.connections(), 3, "{excess}");
            let closed = pool.stats().closed;
            assert_eq!(
                closed.get(&CloseReason::UnsolicitedBytes),
                Some(&3),
                "{excess}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn late_bytes_on_an_idle_connection_close_it() {
    in_time(async {
        let gate = Gate::new();
        let held = gate.clone();
        let peer = H1Peer::start(move |mut conn, _| {
            let held = held.waiter();
            async move {
                conn.read_head().await;
                conn.send(OK).await;
                held.opened().await;
                conn.send("HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
                    .await;
                conn.closed_by_client().await;
            }
        });
        let (pool, client) = client_of(&peer);
        assert_eq!(get(&client).await.text().await.unwrap(), "ok");
        assert_eq!(pool.stats().idle, 1);
        gate.open();
        eventually("it is closed", || pool.stats().open == 0).await;
        assert_eq!(pool.stats().closed[&CloseReason::UnsolicitedBytes], 1);
        let response = get(&client).await;
        assert_eq!(
            (response.status().as_u16(), response.metrics().attempts),
            (200, 1)
        );
    })
    .await;
}

#[tokio::test]
async fn idle_connection_that_the_peer_closed_costs_no_error_and_no_retry() {
    in_time(async {
        for reset in [false, true] {
            let peer = H1Peer::start(move |mut conn, _| async move {
                conn.read_head().await;
                conn.send(OK).await;
                if reset {
                    conn.reset()
                } else {
                    conn.close().await
                }
            });
            let (pool, client) = client_of(&peer);
            for n in 1..=3 {
                let mut response = client.post("/").body("x").send().await.unwrap();
                assert_eq!(response.text().await.unwrap(), "ok");
                assert_eq!(response.metrics().attempts, 1);
                eventually("the close is noticed", || pool.stats().open == 0).await;
                assert_eq!(pool.stats().closed[&CloseReason::PeerClosedIdle], n);
            }
        }
    })
    .await;
}

/// Serves one request per connection properly, and cuts the first connection at its second one.
fn cuts_at_the_second_request(reset: bool, first_bytes: &'static str) -> H1Peer {
    H1Peer::start(move |mut conn, index| async move {
        conn.read_head().await;
        conn.send(OK).await;
        let head = conn.read_head().await;
        if head.starts_with("POST") {
            conn.read_body(3).await;
        }
        if index > 0 {
            return serve(&mut conn, OK).await;
        }
        conn.send(first_bytes).await;
        if reset {
            conn.reset()
        } else {
            conn.close().await
        }
    })
}

#[tokio::test]
async fn request_lost_on_a_reused_connection_is_sent_again_only_if_that_is_safe() {
    in_time(async {
        for reset in [false, true] {
            let setup = async |first_bytes| {
                let peer = cuts_at_the_second_request(reset, first_bytes);
                let (pool, client) = client_of(&peer);
                assert_eq!(get(&client).await.text().await.unwrap(), "ok");
                (peer, pool, client)
            };
            let safe = [
                |client: &Client| client.get("/"),
                |client: &Client| client.post("/").body("abc").header("idempotency-key", "1"),
                |client: &Client| client.post("/").body("abc").idempotent(true),
                |client: &Client| {
                    let make = || Body::wrap(http_body_util::Full::new(Bytes::from("abc")));
                    let post = client.post("/").body(Body::factory(make));
                    post.header("content-length", "3").idempotent(true)
                },
            ];
            for request in safe {
                let (peer, pool, client) = setup("").await;
                let mut response = request(&client).send().await.unwrap();
                assert_eq!(response.text().await.unwrap(), "ok");
                assert_eq!(response.metrics().attempts, 2);
                assert_eq!(response.connection_use(), ConnectionUse::New);
                let timing = response.timing();
                assert!(timing.retry().is_some() && timing.tcp().is_some());
                let sum: std::time::Duration =
                    Phase::ALL.iter().filter_map(|p| timing.get(*p)).sum();
                assert_eq!(sum, timing.total());
                assert_eq!((peer.connections(), pool.stats().retries), (2, 1));
            }
            let unsafe_ones = [
                |client: &Client| client.post("/").body("abc"),
                |client: &Client| client.get("/").idempotent(false),
                |client: &Client| {
                    let never = firstbyte::RequestOptions::default();
                    client
                        .get("/")
                        .options(never.retry(firstbyte::RetryPolicy::Never))
                },
                |client: &Client| {
                    let once = Body::wrap(http_body_util::Full::new(Bytes::from("abc")));
                    client.post("/").body(once).idempotent(true)
                },
            ];
            for request in unsafe_ones {
                let (peer, _pool, client) = setup("").await;
                let error = request(&client).send().await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
                assert_eq!(
                    error.replay_safety(),
                    ReplaySafety::MaybeProcessed,
                    "{error}"
                );
                assert!(
                    error.on_reused_connection() && error.attempts() == 1,
                    "{error}"
                );
                assert_eq!(peer.connections(), 1);
                assert_eq!(get(&client).await.text().await.unwrap(), "ok");
            }
            let (peer, _pool, client) = setup("HTTP/1.1 ").await;
            let error = client.get("/").send().await.unwrap_err();
            assert_eq!(
                error.replay_safety(),
                ReplaySafety::Processed,
                "a byte was seen"
            );
            assert_eq!((error.attempts(), peer.connections()), (1, 1));
        }
    })
    .await;
}

#[tokio::test]
async fn early_answer_to_an_upload_is_delivered_and_ends_the_connection() {
    in_time(async {
        for (bytes, closes) in [(true, false), (true, true), (false, false), (false, true)] {
            let peer = H1Peer::start(move |mut conn, index| async move {
                conn.read_head().await;
                if index > 0 {
                    conn.send(OK).await;
                    return serve(&mut conn, OK).await;
                }
                // Some of the body, so that the upload is under way.
                conn.read_body(100_000).await;
                let answer = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 5\r\n\r\nlarge";
                conn.send(answer).await;
                if !closes {
                    conn.fin().await;
                    std::future::pending().await
                }
            });
            let (pool, client) = client_of(&peer);
            let body = if bytes {
                Body::from(vec![b'x'; 64 << 20])
            } else {
                let endless = Some(Bytes::from(vec![b'x'; 100_000]));
                Body::wrap(Pieces {
                    left: vec![].into_iter(),
                    endless,
                })
            };
            let mut response = client.post("/").body(body).send().await.unwrap();
            assert_eq!(response.status(), 413, "closes: {closes}");
            assert_eq!(response.text().await.unwrap(), "large");
            assert!(response.timing().upload_end().is_none());
            assert_eq!(pool.stats().closed[&CloseReason::UploadUnfinished], 1);
            assert_eq!(get(&client).await.connection_use(), ConnectionUse::New);
        }
    })
    .await;
}

#[tokio::test]
async fn upgrade_hands_the_connection_over_with_the_bytes_behind_the_head() {
    in_time(async {
        let peer = H1Peer::start(|mut conn, _| async move {
            conn.read_head().await;
            let head =
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n";
            conn.send(format!("{head}right behind")).await;
            while let ping = conn.read_body(4).await
                && !ping.is_empty()
            {
                conn.send(ping).await;
            }
        });
        let (pool, client) = client_of(&peer);
        let request = client
            .get("/")
            .header("upgrade", "echo")
            .header("connection", "upgrade");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 101);
        let mut upgraded = response.upgrade().unwrap();
        assert_eq!((pool.stats().upgraded, pool.stats().open), (1, 1));
        let mut first = [0; 12];
        upgraded.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"right behind");
        for word in [b"ping", b"pong"] {
            upgraded.write_all(word).await.unwrap();
            let mut back = [0; 4];
            upgraded.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, word);
        }
        assert!(peer.requests()[0].contains("connection: upgrade\r\n"));
        drop(upgraded);
        eventually("it is off the books", || pool.stats().open == 0).await;
        assert_eq!(pool.stats().closed[&CloseReason::Upgraded], 1);

        let refused = client.get("/").send().await.unwrap_err();
        assert_eq!(
            refused.kind(),
            ErrorKind::Protocol,
            "101 that nobody asked for"
        );
    })
    .await;
}

#[tokio::test]
async fn body_dropped_half_way_closes_the_connection_and_a_short_one_does_not() {
    in_time(async {
        let peer = H1Peer::start(|mut conn, index| async move {
            if index > 0 {
                return serve(&mut conn, OK).await;
            }
            conn.read_head().await;
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nsome")
                .await;
            conn.closed_by_client().await;
        });
        let (pool, client) = client_of(&peer);
        let mut response = get(&client).await;
        assert_eq!(response.chunk().await.unwrap().unwrap(), "some");
        let handle = response.timing_handle();
        drop(response);
        assert!(handle.get().is_complete());
        eventually("it is closed", || pool.stats().open == 0).await;
        assert_eq!(pool.stats().closed[&CloseReason::Cancelled], 1);

        drop(get(&client).await);
        let response = get(&client).await;
        assert_eq!(
            response.connection_use(),
            ConnectionUse::Idle,
            "its rest was there already"
        );
        assert_eq!(peer.connections(), 2);
    })
    .await;
}

#[tokio::test]
async fn request_head_is_well_formed_and_framed_by_its_body() {
    in_time(async {
        let peer = H1Peer::start(|mut conn, _| async move {
            loop {
                let head = conn.read_head().await;
                if head.contains("transfer-encoding") {
                    conn.read_until("0\r\n\r\n").await;
                } else if head.contains("content-length: 5") {
                    conn.read_body(5).await;
                } else if head.is_empty() {
                    return;
                }
                conn.send(OK).await;
            }
        });
        let (_pool, client) = client_of(&peer);
        let pieces = || Pieces {
            left: vec!["a", "bc"].into_iter(),
            endless: None,
        };
        for request in [
            client.get("/a?b=c").query([("d", "e f")]),
            client.post("/"),
            client.post("/").body("hello"),
            client.post("/").body(Body::wrap(pieces())),
            client
                .delete("/")
                .header("User-Agent", "me")
                .header("accept", "text/plain"),
            client.post("/").json(&[1, 2]),
        ] {
            assert_eq!(request.send().await.unwrap().text().await.unwrap(), "ok");
        }
        let heads = peer.requests();
        let host = format!("\r\nhost: {}\r\n", peer.addr());
        for head in &heads {
            let names: Vec<_> = head
                .lines()
                .skip(1)
                .filter_map(|l| l.split_once(": "))
                .collect();
            for name in ["host", "user-agent", "accept"] {
                let of = names.iter().filter(|(n, _)| *n == name).count();
                assert_eq!(of, 1, "{name} in {head}");
            }
            assert!(head.contains(&host), "{head}");
            assert!(
                !head.to_ascii_lowercase().contains("accept-encoding"),
                "{head}"
            );
            assert!(!head.contains("\r\nconnection:"), "{head}");
        }
        let agent = concat!("user-agent: firstbyte/", env!("CARGO_PKG_VERSION"), "\r\n");
        assert!(
            heads[0].starts_with("GET /a?b=c&d=e+f HTTP/1.1\r\nhost: "),
            "{}",
            heads[0]
        );
        assert!(heads[0].contains(agent) && heads[0].contains("accept: */*\r\n"));
        assert!(!heads[0].contains("content-length") && !heads[0].contains("transfer-encoding"));
        assert!(heads[1].contains("content-length: 0\r\n"), "{}", heads[1]);
        assert!(heads[2].contains("content-length: 5\r\n"), "{}", heads[2]);
        assert!(
            heads[3].contains("transfer-encoding: chunked\r\n"),
            "{}",
            heads[3]
        );
        assert!(!heads[3].contains("content-length"), "{}", heads[3]);
        assert!(heads[4].contains("user-agent: me\r\n") && heads[4].contains("accept: text/plain"));
        assert!(
            heads[5].contains("content-type: application/json\r\n"),
            "{}",
            heads[5]
        );
    })
    .await;
}
