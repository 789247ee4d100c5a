//! Extended CONNECT (RFC 8441): a byte stream over one stream of a shared HTTP/2 connection. The peer is
//! hyper's server where it is an oracle, and scripted frame by frame where it misbehaves.

mod common;
mod support;

use std::io;
use std::sync::Arc;

use common::{eventually, in_time, join_all};
use firstbyte::{
    Client, ConnectionPool, Error, ErrorKind, Phase, Protocols, ReplaySafety, Response,
};
use http::Method;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::gate::Gate;
use support::h1_peer::H1Peer;
use support::h2_peer::{Frame, H2Conn, H2Peer, code, kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const OK: &[(&str, &str)] = &[(":status", "200")];
const ENABLE_CONNECT_PROTOCOL: u16 = 8;
const ALLOWED: &[(u16, u32)] = &[(ENABLE_CONNECT_PROTOCOL, 1)];

fn client_of(addr: std::net::SocketAddr, protocols: Protocols) -> (ConnectionPool, Client) {
    let pool = ConnectionPool::new();
    let client = pool
        .client_builder(format!("http://{addr}"))
        .protocols(protocols)
        .build()
        .unwrap();
    (pool, client)
}

async fn connect(client: &Client) -> Result<Response, Error> {
    let request = client.request(Method::CONNECT, "/chat?room=1");
    request.extended_connect("websocket").send().await
}

/// The next frame that is not of the connection.
async fn read_of_stream(conn: &mut H2Conn) -> Option<Frame> {
    loop {
        let frame = conn.read_frame().await?;
        if frame.stream != 0 && frame.kind != kind::WINDOW_UPDATE {
            return Some(frame);
        }
    }
}

/// The next so many, by stream: h2 sends what opens a stream before what is left of others.
async fn read_by_stream(conn: &mut H2Conn, n: usize) -> Vec<Frame> {
    let mut frames = Vec::new();
    for _ in 0..n {
        frames.push(read_of_stream(conn).await.unwrap());
    }
    frames.sort_by_key(|frame| frame.stream);
    frames
}

fn is_bare_end(frame: &Frame) -> bool {
    (frame.kind, frame.len) == (kind::DATA, 0) && frame.is_end_stream()
}

/// hyper's server, that echoes what comes over a tunnel and answers everything else with its method.
async fn hyper_echo(listener: tokio::net::TcpListener) {
    while let Ok((tcp, _)) = listener.accept().await {
        let service = service_fn(
            |request: hyper::Request<hyper::body::Incoming>| async move {
                let protocol = request.extensions().get::<hyper::ext::Protocol>().cloned();
                let said = match protocol {
                    Some(protocol) => {
                        let said = format!("{} {}", protocol.as_str(), request.uri());
                        tokio::spawn(async move {
                            let upgraded = hyper::upgrade::on(request).await.unwrap();
                            let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
                            tokio::io::copy(&mut from, &mut to).await.unwrap();
                            to.shutdown().await.unwrap();
                        });
                        said
                    }
                    None => request.method().to_string(),
                };
                let response = http::Response::builder().header("x-said", said);
                response.body(http_body_util::Empty::<bytes::Bytes>::new())
            },
        );
        tokio::spawn(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .enable_connect_protocol()
                .serve_connection(TokioIo::new(tcp), service),
        );
    }
}

#[tokio::test]
async fn tunnels_share_a_connection_with_requests_and_with_each_other() {
    in_time(async {
        const SIZE: usize = 3 * 1024 * 1024;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = tokio::spawn(hyper_echo(listener));
        let (pool, client) = client_of(addr, Protocols::Http2PriorKnowledge);
        let echo = async |seed: u8| {
            let response = connect(&client).await.unwrap();
            assert_eq!(response.status(), 200);
            let said = response.headers()["x-said"].to_str().unwrap();
            assert_eq!(said, format!("websocket http://{addr}/chat?room=1"));
            let (mut from, mut to) = tokio::io::split(response.upgrade().unwrap());
            // Larger than any window on the way.
            let sent: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8 ^ seed).collect();
            let mut came = Vec::new();
            let write = async {
                to.write_all(&sent).await.unwrap();
                to.shutdown().await.unwrap();
                to.write_all(b"more").await.unwrap_err()
            };
            let (refused, read) = tokio::join!(write, from.read_to_end(&mut came));
            assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
            assert_eq!(read.unwrap(), SIZE);
            assert!(came == sent, "what came back is not what was sent");
        };
        let get = async || {
            let mut response = client.get("/").send().await.unwrap();
            assert_eq!(response.headers()["x-said"], "GET");
            response.bytes().await.unwrap();
        };
        tokio::join!(
            join_all([echo(0), echo(7), echo(99)]),
            join_all((0..20).map(|_| get()))
        );
        let stats = pool.stats();
        assert_eq!((stats.connections_created, stats.open), (1, 1));
        eventually("all streams are given back", || pool.stats().active == 0).await;
        server.abort();
    })
    .await;
}

#[tokio::test]
async fn request_waits_for_the_settings_and_believes_the_latest() {
    in_time(async {
        let gate = Gate::new();
        let waiter = gate.waiter();
        let peer = H2Peer::start(move |mut conn, _| {
            let waiter = waiter.clone();
            async move {
                conn.accept_preface().await;
                // The other request is here, so this one was, too, if it had been sent.
                let head = conn.read_headers().await;
                waiter.opened().await;
                conn.settings(&[]).await;
                conn.settings_ack().await;
                conn.headers(head.stream, OK, true).await;
                let head = conn.read_headers().await;
                conn.settings(ALLOWED).await;
                conn.headers(head.stream, OK, true).await;
                let head = conn.read_headers().await;
                assert!(!head.is_end_stream());
                conn.headers(head.stream, OK, false).await;
                conn.data(head.stream, "hello", true).await;
                conn.closed_by_client().await;
            }
        });
        let (pool, client) = client_of(peer.addr(), Protocols::Http2PriorKnowledge);
        let early = connect(&client);
        let get = async {
            let response = client.get("/").send().await.unwrap();
            assert_eq!(response.status(), 200);
        };
        let open = async {
            eventually("both have the connection", || {
                pool.connections().iter().any(|c| c.requests() == 2)
            })
            .await;
            gate.open();
        };
        let (early, (), ()) = tokio::join!(early, get, open);
        let error = early.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
        assert_eq!(error.phase(), Some(Phase::Send));
        assert_eq!((error.attempts(), error.bytes_sent()), (1, 0));
        // Allowed by now; the answer that follows the SETTINGS tells that they have arrived.
        client.get("/").send().await.unwrap();
        let mut tunnel = connect(&client).await.unwrap().upgrade().unwrap();
        let mut came = String::new();
        tunnel.read_to_string(&mut came).await.unwrap();
        assert_eq!(came, "hello");
        assert_eq!(peer.connections(), 1);
    })
    .await;
}

#[tokio::test]
async fn connection_that_ends_before_its_settings_fails_the_request_unsent() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, _| async move {
            conn.accept_preface().await;
            conn.close().await;
        });
        let (_pool, client) = client_of(peer.addr(), Protocols::Http2PriorKnowledge);
        let error = connect(&client).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
        assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
    })
    .await;
}

#[tokio::test]
async fn http1_connection_is_kept_for_others() {
    in_time(async {
        let peer = H1Peer::start(|mut conn, _| async move {
            conn.read_head().await;
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await;
            conn.closed_by_client().await;
        });
        let (pool, client) = client_of(peer.addr(), Protocols::Http1);
        let error = connect(&client).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
        let response = client.get("/").send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!((peer.connections(), pool.stats().retries), (1, 0));
    })
    .await;
}

#[tokio::test]
async fn refusal_is_an_ordinary_response_and_ends_the_stream() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, _| async move {
            conn.handshake(ALLOWED).await;
            let head = conn.read_headers().await;
            assert!(!head.is_end_stream());
            conn.headers(head.stream, &[(":status", "403")], false)
                .await;
            conn.data(head.stream, "no", true).await;
            let [end, head] = &read_by_stream(&mut conn, 2).await[..] else {
                unreachable!("there are two")
            };
            assert!(is_bare_end(end), "{end:?}");
            // Nothing more came of that stream.
            assert_eq!((head.kind, head.stream), (kind::HEADERS, 3));
            conn.headers(head.stream, OK, true).await;
            conn.closed_by_client().await;
        });
        let (_pool, client) = client_of(peer.addr(), Protocols::Http2PriorKnowledge);
        let mut response = connect(&client).await.unwrap();
        assert_eq!(response.status(), 403);
        assert_eq!(response.text().await.unwrap(), "no");
        assert!(response.upgrade().unwrap_err().is_invalid());
        client.get("/").send().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn dropping_resets_the_stream_alone_and_ending_both_ways_resets_nothing() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, _| async move {
            conn.handshake(ALLOWED).await;
            let head = conn.read_headers().await;
            conn.headers(head.stream, OK, false).await;
            let [reset, head] = &read_by_stream(&mut conn, 2).await[..] else {
                unreachable!("there are two")
            };
            assert_eq!((reset.kind, reset.stream), (kind::RST_STREAM, 1));
            assert_eq!(reset.code(), Some(code::CANCEL));
            assert_eq!((head.kind, head.stream), (kind::HEADERS, 3));
            conn.headers(head.stream, OK, false).await;
            conn.data(head.stream, "bye", true).await;
            let [data, end, head] = &read_by_stream(&mut conn, 3).await[..] else {
                unreachable!("there are three")
            };
            assert_eq!(
                (&data.payload[..], data.is_end_stream()),
                (&b"to"[..], false)
            );
            assert!(is_bare_end(end), "{end:?}");
            assert_eq!((head.kind, head.stream), (kind::HEADERS, 5));
            conn.headers(head.stream, OK, true).await;
            conn.closed_by_client().await;
        });
        let (_pool, client) = client_of(peer.addr(), Protocols::Http2PriorKnowledge);
        drop(connect(&client).await.unwrap().upgrade().unwrap());
        let mut tunnel = connect(&client).await.unwrap().upgrade().unwrap();
        let mut came = String::new();
        // The peer's half may end first.
        tunnel.read_to_string(&mut came).await.unwrap();
        assert_eq!(came, "bye");
        tunnel.write_all(b"to").await.unwrap();
        tunnel.shutdown().await.unwrap();
        drop(tunnel);
        client.get("/").send().await.unwrap();
        assert_eq!(peer.connections(), 1);
    })
    .await;
}

#[tokio::test]
async fn tunnel_outlives_goaway_and_its_reset_is_an_error_of_both_halves() {
    in_time(async {
        let peer = H2Peer::start(|mut conn, index| async move {
            conn.handshake(ALLOWED).await;
            let head = conn.read_headers().await;
            conn.headers(head.stream, OK, index == 1).await;
            if index == 0 {
                conn.goaway(head.stream, code::NO_ERROR, "restart").await;
                let data = read_of_stream(&mut conn).await.unwrap();
                conn.data(head.stream, &data.payload, false).await;
                conn.read_kind(kind::DATA).await;
                conn.rst(head.stream, code::INTERNAL_ERROR).await;
            }
            conn.closed_by_client().await;
        });
        let (pool, client) = client_of(peer.addr(), Protocols::Http2PriorKnowledge);
        let mut tunnel = connect(&client).await.unwrap().upgrade().unwrap();
        let mut came = [0; 4];
        tunnel.write_all(b"ping").await.unwrap();
        tunnel.read_exact(&mut came).await.unwrap();
        assert_eq!(&came, b"ping");
        // Others have gone elsewhere by now.
        client.get("/").send().await.unwrap();
        assert_eq!(peer.connections(), 2);
        tunnel.write_all(b"now").await.unwrap();
        let error = tunnel.read(&mut came).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let inner = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
        assert_eq!(inner.unwrap().kind(), ErrorKind::Refused, "{error}");
        let error = tunnel.write_all(b"more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        drop(tunnel);
        eventually("the first connection is gone", || pool.stats().open == 1).await;
    })
    .await;
}

#[tokio::test]
async fn writer_waits_for_window_and_nothing_is_lost() {
    in_time(async {
        const SIZE: usize = 300_000;
        let got = Arc::new(std::sync::Mutex::new(Vec::new()));
        let into = got.clone();
        let peer = H2Peer::start(move |mut conn, _| {
            let into = into.clone();
            async move {
                conn.handshake(ALLOWED).await;
                let head = conn.read_headers().await;
                conn.headers(head.stream, OK, false).await;
                loop {
                    let frame = read_of_stream(&mut conn).await.unwrap();
                    into.lock().unwrap().extend_from_slice(&frame.payload);
                    if frame.is_end_stream() {
                        break;
                    }
                    // A byte at a time at the edge, and all of it at last.
                    let room = if into.lock().unwrap().len() < 65_545 {
                        1
                    } else {
                        SIZE as u32
                    };
                    conn.window_update(head.stream, room).await;
                    conn.window_update(0, room).await;
                }
                conn.data(head.stream, "", true).await;
                conn.closed_by_client().await;
            }
        });
        let (_pool, client) = client_of(peer.addr(), Protocols::Http2PriorKnowledge);
        let mut tunnel = connect(&client).await.unwrap().upgrade().unwrap();
        let sent: Vec<u8> = (0..SIZE).map(|n| (n % 253) as u8).collect();
        tunnel.write_all(&sent).await.unwrap();
        tunnel.shutdown().await.unwrap();
        assert_eq!(tunnel.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(*got.lock().unwrap() == sent);
    })
    .await;
}
