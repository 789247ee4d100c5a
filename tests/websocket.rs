//! WebSocket sessions over both protocols, against a server that others have written.
#![cfg(feature = "websocket")]

mod common;
mod support;

use std::time::Duration;

use bytes::Bytes;
use common::{BOTH, World, eventually, in_time, join_all};
use firstbyte::proxy::Proxy;
use firstbyte::tcp::TcpOptions;
use firstbyte::websocket::Message;
use firstbyte::{Client, ErrorKind, Protocols, WebSocket};
use futures_util::{SinkExt, StreamExt};
use http::{StatusCode, Version};
use support::proxy::{Asked, Manner, ProxyPeer};
use support::server::{Builder, Reply, Server, websocket};

/// Where WebSockets may go over both protocols.
async fn sound() -> World {
    world(&["h2", "http/1.1"], true).await
}

async fn world(alpn: &[&str], over_http2: bool) -> World {
    let server = |server: Builder| {
        let server = server.websockets("/echo", over_http2, websocket::echo);
        let server = server.handler(|request| match request.uri().path() {
            "/refused" => Reply::status(403).body("no"),
            _ => Reply::ok().body(request.method().to_string()),
        });
        server.alpn(alpn)
    };
    World::with(server, |pool| pool).await
}

/// Connections that spoke HTTP/1.1, and HTTP/2.
fn connections(world: &World) -> (usize, usize) {
    let counts = world.server.counts();
    (counts.h1_connections, counts.h2_connections)
}

fn open_and_upgraded(world: &World) -> (usize, usize) {
    let stats = world.pool.stats();
    (stats.open, stats.upgraded)
}

async fn echo(socket: &mut WebSocket, message: impl Into<Message>) {
    let message = message.into();
    socket.send(message.clone()).await.unwrap();
    let came = socket.next().await.expect("a message").unwrap();
    assert!(came == message, "{} bytes", message.as_bytes().len());
}

async fn get(client: &Client) {
    let mut response = client.get("/").send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), "GET");
}

#[tokio::test]
async fn messages_of_every_length_come_back_and_the_end_is_clean() {
    in_time(async {
        for protocols in BOTH {
            let world = sound().await;
            let client = world.client(protocols);
            let mut socket = client.websocket("/echo").connect().await.unwrap();
            let expected = match protocols {
                Protocols::Http1 => Version::HTTP_11,
                _ => Version::HTTP_2,
            };
            assert_eq!(socket.connection().protocol(), expected);
            echo(&mut socket, "").await;
            echo(&mut socket, "\u{1f9ed} grüß").await;
            // The bounds of each form of a length, of a frame of tokio-websockets, and of any window.
            for len in [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20, (4 << 20) + 1] {
                let bytes: Vec<u8> = (0..len).map(|n: usize| (n % 251) as u8).collect();
                echo(&mut socket, bytes).await;
                echo(&mut socket, "x".repeat(len)).await;
            }
            let said = socket.close(1000, "done").await.unwrap();
            assert_eq!((said.code, &*said.reason), (Some(1000), "done"));
            assert!(socket.next().await.is_none());
            let error = socket.send("more").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
            assert!(error.origin().is_some());
            eventually("nothing is held", || {
                let stats = world.pool.stats();
                (stats.active, stats.upgraded) == (0, 0)
            })
            .await;
            get(&client).await;
            // The switched connection is gone, the shared one serves on.
            let (http1, http2) = connections(&world);
            assert_eq!(
                (http1, http2),
                if protocols == Protocols::Http1 {
                    (2, 0)
                } else {
                    (0, 1)
                }
            );
        }
    })
    .await;
}

#[tokio::test]
async fn sessions_share_one_connection_with_requests() {
    in_time(async {
        let world = sound().await;
        let client = world.client(Protocols::Auto);
        get(&client).await;
        let session = async |seed: u8| {
            let mut socket = client.websocket("/echo").connect().await.unwrap();
            // No handshake and no dial is waited for.
            assert!(socket.metrics().connection_reused);
            assert_eq!(socket.timing().tls(), None);
            assert_eq!(socket.timing().tcp(), None);
            assert!(socket.timing().is_complete());
            for n in 0..50u8 {
                echo(&mut socket, vec![seed ^ n; 300]).await;
            }
            socket.close(1000, "").await.unwrap();
        };
        tokio::join!(
            join_all((0..5).map(session)),
            join_all((0..20).map(|_| get(&client)))
        );
        assert_eq!(connections(&world), (0, 1));
        assert_eq!(world.pool.stats().connections_created, 1);
    })
    .await;
}

#[tokio::test]
async fn server_that_takes_none_over_http2_is_asked_over_http1_and_remembered() {
    in_time(async {
        let world = world(&["h2", "http/1.1"], false).await;
        let client = world.client(Protocols::Auto);
        for round in 1..=2 {
            let mut socket = client.websocket("/echo").connect().await.unwrap();
            assert_eq!(socket.connection().protocol(), Version::HTTP_11);
            assert_eq!(socket.metrics().attempts, if round == 1 { 2 } else { 1 });
            echo(&mut socket, "hello").await;
            // Beside the HTTP/2 connection, which is kept, and shown apart from those that serve.
            assert_eq!(open_and_upgraded(&world), (2, 1));
            get(&client).await;
            drop(socket);
            eventually("its place is free", || open_and_upgraded(&world) == (1, 0)).await;
        }
        assert_eq!(connections(&world), (2, 1));
        assert_eq!(world.pool.stats().retries, 1);
    })
    .await;
}

#[tokio::test]
async fn options_that_leave_no_way_are_told() {
    in_time(async {
        let world = world(&["h2", "http/1.1"], false).await;
        let client = world.client(Protocols::Http2);
        let error = client.websocket("/echo").connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        get(&client).await;
        assert_eq!(connections(&world), (0, 1));
    })
    .await;
}

#[tokio::test]
async fn server_without_http2_is_asked_over_the_connection_there_is() {
    in_time(async {
        let world = world(&["http/1.1"], false).await;
        let client = world.client(Protocols::Auto);
        get(&client).await;
        let mut socket = client.websocket("/echo").connect().await.unwrap();
        assert!(socket.metrics().connection_reused);
        echo(&mut socket, "hello").await;
        assert_eq!(connections(&world), (1, 0));
    })
    .await;
}

#[tokio::test]
async fn refusal_has_its_status_and_the_connection_serves_on() {
    in_time(async {
        for protocols in BOTH {
            let world = sound().await;
            let client = world.client(protocols);
            let error = client.websocket("/refused").connect().await.unwrap_err();
            assert!(error.is_status(), "{error}");
            assert_eq!(error.status(), Some(StatusCode::FORBIDDEN));
            if protocols == Protocols::Http1 {
                // 2xx is a success over HTTP/2 alone.
                let error = client.websocket("/").connect().await.unwrap_err();
                assert_eq!(error.status(), Some(StatusCode::OK));
            }
            eventually("the connection is idle", || world.pool.stats().idle == 1).await;
            get(&client).await;
            let (http1, http2) = connections(&world);
            assert_eq!(http1 + http2, 1);
        }
    })
    .await;
}

#[tokio::test]
async fn subprotocol_and_headers_reach_the_server() {
    in_time(async {
        for protocols in BOTH {
            let world = sound().await;
            let client = world.client(protocols);
            let builder = client
                .websocket("/echo")
                .subprotocols(["v1.json", "v2.json"]);
            let mut socket = builder.query([("room", "1")]).connect().await.unwrap();
            assert_eq!(socket.subprotocol(), Some("v2.json"));
            assert_eq!(socket.headers()["sec-websocket-protocol"], "v2.json");
            echo(&mut socket, "hello").await;
            let none = client.websocket("/echo").connect().await.unwrap();
            assert_eq!(none.subprotocol(), None);
        }
    })
    .await;
}

#[tokio::test]
async fn urls_of_websockets_are_those_of_their_origin() {
    in_time(async {
        let world = sound().await;
        let client = world.client(Protocols::Auto);
        let url = format!("WSS://api.test:{}/echo", world.server.port());
        let mut socket = client.websocket(&url).connect().await.unwrap();
        echo(&mut socket, "hello").await;
        for other in ["ws://api.test/echo", "wss://other.test/echo"] {
            let error = client.websocket(other).connect().await.unwrap_err();
            assert!(error.is_invalid(), "{error}");
        }
        for builder in [
            client.websocket("/echo").header("sec-websocket-key", "x"),
            client.websocket("/echo").header("upgrade", "h2c"),
            // Some services want a key there.
            client.websocket("/echo").subprotocols(["sk-TOPSECRET="]),
            client
                .websocket("/echo")
                .query([("key", "sk-TOPSECRET")])
                .header("upgrade", "x"),
        ] {
            let shown = format!("{builder:?}");
            let error = builder.connect().await.unwrap_err();
            assert!(error.is_invalid() && error.origin().is_some(), "{error}");
            let shown = format!("{shown} {error} {error:?}");
            assert!(!shown.contains("TOPSECRET"), "{shown}");
        }
        let builder = client.websocket("/echo").subprotocols(["sk-TOPSECRET"]);
        let socket = builder.connect().await.unwrap();
        assert!(!format!("{socket:?}").contains("TOPSECRET"));
    })
    .await;
}

/// Both sides send more than fits on the way, and neither waits for the other.
#[tokio::test]
async fn halves_work_by_themselves() {
    in_time(async {
        const MESSAGES: usize = 200;
        const LEN: usize = 64 * 1024;
        for protocols in BOTH {
            let world = sound().await;
            let client = world.client(protocols);
            let socket = client.websocket("/echo").connect().await.unwrap();
            let (mut sender, mut receiver) = socket.split();
            let send = tokio::spawn(async move {
                let bytes = Bytes::from(vec![7; LEN]);
                for _ in 0..MESSAGES {
                    sender.send(bytes.clone()).await.unwrap();
                }
                sender.close(1000, "that was all").await.unwrap();
                sender.send("more").await.unwrap_err().kind()
            });
            let mut came = 0;
            while let Some(message) = receiver.next().await {
                assert_eq!(message.unwrap().as_bytes().len(), LEN);
                came += 1;
            }
            assert_eq!(came, MESSAGES);
            assert_eq!(send.await.unwrap(), ErrorKind::ConnectionLost);
            assert_eq!(&*receiver.close_frame().unwrap().reason, "that was all");
        }
    })
    .await;
}

#[tokio::test]
async fn opening_is_bounded_and_the_session_is_not() {
    in_time(async {
        let world = sound().await;
        let client = world.client(Protocols::Http1);
        let builder = client
            .websocket("/echo")
            .timeout(Duration::from_millis(200));
        let mut socket = builder.connect().await.unwrap();
        // That long it lasts in any case.
        tokio::time::sleep(Duration::from_millis(250)).await;
        echo(&mut socket, "hello").await;
    })
    .await;
}

/// A proxy that forwards `http` requests may not pass an upgrade on (RFC 9110 §7.6.1).
#[tokio::test]
async fn proxies_are_asked_for_tunnels_whatever_the_scheme() {
    in_time(async {
        let server = Server::builder()
            .plain()
            .websockets("/echo", false, websocket::echo);
        let server = server.start().await;
        let proxy = ProxyPeer::start(None, Manner::default());
        let url = format!("http://{}", proxy.addr());
        let pool = firstbyte::ConnectionPool::builder();
        let pool = pool.proxy(Proxy::parse(&url).unwrap()).build().unwrap();
        let client = pool.client_builder(server.url("/")).build().unwrap();
        client.get("/").send().await.unwrap();
        for _ in 0..2 {
            let mut socket = client.websocket("/echo").connect().await.unwrap();
            echo(&mut socket, "hello").await;
            socket.close(1000, "").await.unwrap();
        }
        client.get("/").send().await.unwrap();
        let asked: Vec<bool> = proxy
            .asked()
            .iter()
            .map(|asked| matches!(asked, Asked::Tunnel(_)))
            .collect();
        assert_eq!(asked, [false, true, true, false]);

        let world = sound().await;
        let proxy = ProxyPeer::start(None, Manner::default());
        let proxied = world.pool.client_builder(world.server.url("/"));
        let url = format!("http://{}", proxy.addr());
        let proxied = proxied.proxy(Proxy::parse(&url).unwrap()).build().unwrap();
        let mut socket = proxied.websocket("/echo").connect().await.unwrap();
        assert_eq!(socket.connection().protocol(), Version::HTTP_2);
        assert!(socket.connection().proxy().is_some());
        echo(&mut socket, "hello").await;
        assert!(matches!(proxy.asked()[..], [Asked::Tunnel(_)]));
    })
    .await;
}

/// The kernel would take a closed window for a dead peer.
#[tokio::test]
async fn server_that_pauses_for_longer_than_the_user_timeout_keeps_its_session() {
    in_time(async {
        const TIMEOUT: Duration = Duration::from_millis(500);
        const LEN: usize = 16 << 20;
        let server =
            Server::builder()
                .plain()
                .websockets("/slow", false, |_, mut socket| async move {
                    // The pause is the fault.
                    tokio::time::sleep(TIMEOUT * 4).await;
                    let message = socket.next().await.unwrap().unwrap();
                    let len = message.into_data().len().to_string();
                    socket.send(len.into()).await.unwrap();
                });
        let server = server.start().await;
        let pool = firstbyte::ConnectionPool::builder()
            .tcp(TcpOptions::default().user_timeout(Some(TIMEOUT)))
            .build()
            .unwrap();
        let client = pool.client_builder(server.url("/")).build().unwrap();
        let mut socket = client.websocket("/slow").connect().await.unwrap();
        socket.send(vec![0; LEN]).await.unwrap();
        let came = socket.next().await.unwrap().unwrap();
        assert_eq!(came.as_text(), Some(&*LEN.to_string()));
    })
    .await;
}
