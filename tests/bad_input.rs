//! What cannot work is told: by a typed error that names phase, origin and cause, in one line and in
//! time; and the pool is as usable after it as before.

mod common;
mod support;

use std::time::Duration;

use common::{World, in_time};
use firstbyte::{
    Body, CloseReason, ConnectionPool, Error, ErrorKind, Phase, Protocols, ReplaySafety,
    RequestOptions, Timeouts,
};
use support::dns::{Family, Reply};
use support::h1_peer::{H1Conn, H1Peer};
use support::h2_peer::{H2Peer, encode, kind};
use support::pki::{self, Pki};
use support::server::{self, Server};
use support::stall::Stall;

/// What an error must say: its kind, its phase and a word of its cause.
type Told = (ErrorKind, Phase, &'static str);

/// The error says all it must, in one line, and the pool still serves a good request.
async fn assert_told(world: &World, what: &str, error: &Error, origin: &str, told: Told) {
    let (kind, phase, cause) = told;
    let text = error.to_string();
    assert_eq!(
        (error.kind(), error.phase()),
        (kind, Some(phase)),
        "{what}: {text}"
    );
    assert_eq!(error.origin(), Some(origin), "{what}: {text}");
    assert!(text.contains(cause), "{what}: no `{cause}` in: {text}");
    assert!(text.contains(origin), "{what}: no `{origin}` in: {text}");
    assert!(!text.contains(char::is_control), "{what}: {text:?}");
    let timing = error.timing().expect("an error on the way has its timing");
    let sum: Duration = Phase::ALL.iter().filter_map(|p| timing.get(*p)).sum();
    assert_eq!(sum, timing.total(), "{what}: {timing:?}");
    assert_usable(world, what).await;
}

async fn assert_usable(world: &World, what: &str) {
    let mut response = world.client(Protocols::Auto).get("/").send().await;
    let response = response.as_mut().expect(what);
    assert_eq!(response.text().await.expect(what), "hello", "{what}");
    let stats = world.pool.stats();
    assert_eq!((stats.active, stats.waiting), (0, 0), "{what}");
}

/// The error of a GET, wherever it shows: in the head or in the body.
async fn get(world: &World, origin: &str, protocols: Protocols, timeouts: Timeouts) -> Error {
    let client = world.client_of(origin, protocols);
    match client.get("/x").timeouts(timeouts).send().await {
        Err(error) => error,
        Ok(mut response) => response.bytes().await.expect_err("it must not work"),
    }
}

fn patient() -> Timeouts {
    Timeouts::default()
}

fn hasty() -> Timeouts {
    Timeouts::default().connect(Duration::from_millis(150))
}

/// Reads the request, sends these bytes and closes.
fn answers(bytes: impl Into<Vec<u8>>) -> H1Peer {
    let bytes = bytes.into();
    H1Peer::start(move |mut conn: H1Conn, _| {
        let bytes = bytes.clone();
        async move {
            conn.read_head().await;
            conn.send(&bytes).await;
            conn.close().await;
        }
    })
}

#[tokio::test]
async fn url_that_cannot_be_used_is_refused_before_anything_is_attempted() {
    in_time(async {
        let world = World::new().await;
        for (url, cause) in [
            ("https:///path", "no host"),
            ("https://", "host"),
            ("/path", "URL"),
            ("ftp://api.test/", "scheme"),
            ("ws://api.test/", "scheme"),
            ("https://user@api.test/", "user info"),
            ("https://user:pw@api.test/", "user info"),
            ("https://api.test:65536/", "port"),
            ("https://api.test:0/", "port"),
            ("https://[zz]/", "IPv6"),
            ("https://a..test/", "label"),
            ("https://api.test/\r\nx: y", "\\x0d"),
            ("https://api.test/\0", "\\x00"),
        ] {
            let error = world.pool.client_builder(url).build().unwrap_err();
            assert_invalid(&error, cause, url);
            let error = world.pool.warm(url, 1).await.unwrap_err();
            assert_invalid(&error, cause, url);
            if let Ok(uri) = url.parse::<http::Uri>() {
                let request = http::Request::get(uri).body(Body::empty()).unwrap();
                let error = world.pool.send(request).await.unwrap_err();
                assert_invalid(&error, "URL", url);
            }
        }
        assert_eq!(world.dns.total_queries(), 0);
        assert_usable(&world, "bad URLs").await;
    })
    .await;
}

fn assert_invalid(error: &Error, cause: &str, what: &str) {
    let text = error.to_string();
    assert!(
        error.is_invalid() && error.attempts() == 0,
        "{what}: {text}"
    );
    assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
    assert!(text.contains(cause), "{what}: no `{cause}` in: {text}");
    assert!(!text.contains(char::is_control), "{what}: {text:?}");
    assert!(!text.contains("pw"), "{what}: a password in: {text}");
}

#[tokio::test]
async fn control_characters_never_reach_the_wire() {
    in_time(async {
        let world = World::new().await;
        let client = world.client(Protocols::Http1);
        let origin = world.server.url("");
        for bad in ["\r", "\n", "\0", "\r\nx-evil: 1"] {
            let evil = format!("a{bad}b");
            let requests = [
                ("path", client.get(format!("/{evil}"))),
                ("query in the path", client.get(format!("/?q={evil}"))),
                ("absolute URL", client.get(format!("{origin}/{evil}"))),
                ("header value", client.get("/").header("x-a", &*evil)),
                ("header name", client.get("/").header(&*evil, "1")),
                ("bearer token", client.get("/").bearer_auth(&evil)),
                (
                    "content-length",
                    client.get("/").header("content-length", &*evil),
                ),
            ];
            for (what, request) in requests {
                let error = request.send().await.expect_err(what);
                assert_invalid(&error, "", what);
                assert_eq!(error.origin(), Some(&*origin), "{what}: {error}");
                assert!(!error.to_string().contains("evil"), "{what}: {error}");
            }
            let builder = || world.pool.client_builder(world.server.url("/"));
            let error = builder().header("x-a", &*evil).build().unwrap_err();
            assert_invalid(&error, "x-a", "client header");
            let error = builder().bearer_auth(&evil).build().unwrap_err();
            assert_invalid(&error, "token", "client token");
        }
        assert_eq!(world.server.counts().connections_accepted, 0);
        // Pairs of a query are encoded, so that they may hold anything.
        let odd = client.get("/").query([("k\r\n", "v\0&\r\nx: y")]).send();
        assert_eq!(odd.await.unwrap().status(), 200);
        let seen = world.server.seen();
        let query = seen[0].uri.query().unwrap();
        assert_eq!(query, "k%0D%0A=v%00%26%0D%0Ax%3A+y");
        assert_usable(&world, "control characters").await;
    })
    .await;
}

#[tokio::test]
async fn name_that_does_not_resolve_says_why() {
    in_time(async {
        let world = World::new().await;
        let both = |name: &str, reply: Reply| {
            for family in [Family::V4, Family::V6] {
                world.dns.reply(name, family, reply.clone());
            }
        };
        both("nodata.test", Reply::NoData);
        both("servfail.test", Reply::ServFail);
        both("refused.test", Reply::Refused);
        for (name, cause) in [
            ("nx.test", "NXDOMAIN"),
            ("nodata.test", "no address"),
            ("servfail.test", "name server failed"),
            ("refused.test", "name server failed"),
        ] {
            let origin = format!("https://{name}");
            let error = get(&world, &origin, Protocols::Auto, patient()).await;
            assert!(error.is_dns() && error.is_connect() && !error.is_timeout());
            assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
            let told = (ErrorKind::Dns, Phase::Dns, cause);
            assert_told(&world, name, &error, &origin, told).await;
        }
    })
    .await;
}

#[tokio::test]
async fn peer_that_cannot_be_reached_is_named() {
    in_time(async {
        let world = World::new().await;
        let addr = Stall::refused_addr();
        for scheme in ["http", "https"] {
            let origin = format!("{scheme}://{addr}");
            let error = get(&world, &origin, Protocols::Auto, patient()).await;
            let told = (ErrorKind::Connect, Phase::Tcp, "refused");
            assert!(error.is_connect() && error.to_string().contains(&addr.to_string()));
            assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
            assert_told(&world, "refused", &error, &origin, told).await;
        }
        let hole = Stall::blackhole();
        let origin = format!("https://{}", hole.addr());
        let told = (ErrorKind::Timeout, Phase::Tcp, "150ms");
        let error = get(&world, &origin, Protocols::Auto, hasty()).await;
        assert!(error.is_timeout() && error.is_connect());
        assert_told(&world, "request's connect timeout", &error, &origin, told).await;

        let world = World::with(|s| s, |pool| pool.connect_timeout(Duration::from_secs(1))).await;
        let told = (ErrorKind::Timeout, Phase::Tcp, "1s");
        let error = get(&world, &origin, Protocols::Auto, patient().connect(None)).await;
        assert!(error.is_timeout() && error.is_connect());
        assert_told(&world, "pool's connect timeout", &error, &origin, told).await;
    })
    .await;
}

#[tokio::test]
async fn certificate_that_is_not_valid_is_refused_before_a_request_is_sent() {
    in_time(async {
        let world = World::new().await;
        for (what, identity, cause) in [
            (
                "untrusted",
                Pki::new().server(&["api.test"]),
                "UnknownIssuer",
            ),
            (
                "self-signed",
                Pki::self_signed(&["api.test"]),
                "UnknownIssuer",
            ),
            ("expired", world.pki.expired(&["api.test"]), "expired"),
            (
                "not yet valid",
                world.pki.not_yet_valid(&["api.test"]),
                "not valid yet",
            ),
            (
                "wrong name",
                world.pki.server(&["evil.test"]),
                "not valid for name",
            ),
        ] {
            let server = Server::builder()
                .identity(&identity, "api.test")
                .start()
                .await;
            let origin = server.url("");
            for protocols in [Protocols::Auto, Protocols::Http1, Protocols::Http2] {
                let error = get(&world, &origin, protocols, patient()).await;
                assert!(error.is_tls() && error.is_connect() && !error.is_timeout());
                assert_eq!(error.replay_safety(), ReplaySafety::NotSent, "{what}");
                assert!(error.to_string().contains("certificate"), "{error}");
                let told = (ErrorKind::Tls, Phase::Tls, cause);
                assert_told(&world, what, &error, &origin, told).await;
            }
            let counts = server.wait(|c| c.connections_open == 0).await;
            assert_eq!(
                (counts.requests, counts.connections_accepted),
                (0, 3),
                "{what}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn peer_that_does_not_get_through_the_tls_handshake_is_told() {
    in_time(async {
        let world = World::new().await;
        let identity = world.pki.server(&["api.test"]);
        let tls = |alpn: &[&str]| {
            let config = pki::server_config(&identity, alpn);
            H1Peer::start_tls_config(config, |_, _| async {})
        };
        let plain = H1Peer::start(|mut conn, _| async move {
            conn.read_body(5).await;
            conn.send("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
                .await;
            conn.closed_by_client().await;
        });
        let closes = H1Peer::start(|mut conn, _| async move {
            conn.read_body(5).await;
            conn.close().await;
        });
        let resets = H1Peer::start(|mut conn, _| async move {
            conn.read_body(5).await;
            conn.reset();
        });
        let (h2, h1, acme, none) = (tls(&["h2"]), tls(&["http/1.1"]), tls(&["acme"]), tls(&[]));
        let silent = Stall::accept_silent();
        let (tls, both) = (ErrorKind::Tls, Protocols::Auto);
        for (what, port, protocols, timeouts, kind, cause) in [
            (
                "plain HTTP",
                plain.port(),
                both,
                patient(),
                tls,
                "does not speak TLS",
            ),
            (
                "close",
                closes.port(),
                both,
                patient(),
                tls,
                "closed the connection",
            ),
            ("reset", resets.port(), both, patient(), tls, "connection"),
            (
                "no h2",
                h1.port(),
                Protocols::Http2,
                patient(),
                tls,
                "refused the handshake",
            ),
            (
                "no http/1.1",
                h2.port(),
                Protocols::Http1,
                patient(),
                tls,
                "refused the handshake",
            ),
            (
                "no overlap",
                acme.port(),
                both,
                patient(),
                tls,
                "refused the handshake",
            ),
            (
                "no ALPN",
                none.port(),
                Protocols::Http2,
                patient(),
                ErrorKind::Protocol,
                "does not offer HTTP/2",
            ),
            (
                "silence",
                silent.port(),
                both,
                hasty(),
                ErrorKind::Timeout,
                "150ms",
            ),
        ] {
            let origin = format!("https://api.test:{port}");
            let error = get(&world, &origin, protocols, timeouts).await;
            assert_eq!(error.replay_safety(), ReplaySafety::NotSent, "{what}");
            assert!(error.is_connect(), "{what}");
            assert_told(&world, what, &error, &origin, (kind, Phase::Tls, cause)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn peer_that_speaks_another_protocol_is_told() {
    in_time(async {
        let world = World::new().await;
        let settings = encode(kind::SETTINGS, 0, 0, &[]);
        let answers_h1 = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        let h1_on_h2c = H1Peer::start(move |mut conn, _| async move {
            conn.read_until("SM\r\n\r\n").await;
            conn.send(answers_h1).await;
            conn.closed_by_client().await;
        });
        let config = pki::server_config(&world.pki.server(&["127.0.0.1"]), &["h2"]);
        let h1_on_h2 = H1Peer::start_tls_config(config, move |mut conn, _| async move {
            conn.read_until("SM\r\n\r\n").await;
            conn.send(answers_h1).await;
            conn.closed_by_client().await;
        });
        let (h2_on_h1, ssh) = (answers(settings), answers("SSH-2.0-OpenSSH_9.9\r\n"));
        let binary = answers([0u8, 255, 13, 10, 27, 91, 50, 74]);
        let (h1, known) = (Protocols::Http1, Protocols::Http2PriorKnowledge);
        for (what, scheme, port, protocols, cause) in [
            ("h1 to h2c", "http", h1_on_h2c.port(), known, "HTTP/2"),
            (
                "h1 after ALPN h2",
                "https",
                h1_on_h2.port(),
                Protocols::Auto,
                "HTTP/2",
            ),
            ("h2 to h1", "http", h2_on_h1.port(), h1, "not HTTP/1"),
            ("ssh", "http", ssh.port(), h1, "SSH-2.0"),
            ("binary", "http", binary.port(), h1, "not HTTP/1"),
        ] {
            let origin = format!("{scheme}://127.0.0.1:{port}");
            let error = get(&world, &origin, protocols, patient()).await;
            assert_eq!(error.attempts(), 1, "{what}");
            let told = (ErrorKind::Protocol, Phase::Wait, cause);
            assert_told(&world, what, &error, &origin, told).await;
        }
    })
    .await;
}

#[tokio::test]
async fn peer_that_speaks_first_is_told_and_not_dialled_for_ever() {
    in_time(async {
        let world = World::new().await;
        let banner = Stall::garbage("SSH-2.0-OpenSSH_9.9\r\n");
        let settings = H2Peer::start(|mut conn, _| async move {
            conn.settings(&[]).await;
            conn.closed_by_client().await;
        });
        for (what, port) in [("ssh", banner.port()), ("h2", settings.port())] {
            let origin = format!("http://127.0.0.1:{port}");
            let bounded = patient().total(Duration::from_secs(3));
            let error = get(&world, &origin, Protocols::Auto, bounded).await;
            assert!(!error.is_timeout(), "{what}: {error}");
            assert_eq!(error.kind(), ErrorKind::Protocol, "{what}: {error}");
            assert_eq!(error.origin(), Some(&*origin), "{what}: {error}");
            assert_usable(&world, what).await;
        }
        assert!(banner.connections() < 4, "{} dials", banner.connections());
    })
    .await;
}

#[tokio::test]
async fn response_that_breaks_http1_is_told() {
    in_time(async {
        let world = World::new().await;
        let ok = "HTTP/1.1 200 OK\r\n";
        let long = format!("{ok}x: {}\r\n\r\n", "y".repeat(70_000));
        let endless = format!("{ok}x: {}", "y".repeat(200_000));
        let many = format!("{ok}{}\r\n", "a: b\r\n".repeat(129));
        let (processed, maybe) = (ReplaySafety::Processed, ReplaySafety::MaybeProcessed);
        let (large, broken, cut, lost) = (
            ErrorKind::TooLarge,
            ErrorKind::Protocol,
            ErrorKind::Truncated,
            ErrorKind::ConnectionLost,
        );
        for (what, bytes, kind, phase, cause, safety) in [
            (
                "long head",
                &*long,
                large,
                Phase::Wait,
                "65536 bytes",
                processed,
            ),
            (
                "endless head",
                &*endless,
                large,
                Phase::Wait,
                "65536 bytes",
                processed,
            ),
            (
                "many headers",
                &*many,
                large,
                Phase::Wait,
                "128 headers",
                processed,
            ),
            ("nothing", "", lost, Phase::Wait, "clos", maybe),
            (
                "half a head",
                "HTTP/1.1 200 OK\r\nx: ",
                lost,
                Phase::Wait,
                "response head",
                processed,
            ),
            (
                "bad header",
                "HTTP/1.1 200 OK\r\nx\0y: 1\r\n\r\n",
                broken,
                Phase::Wait,
                "",
                processed,
            ),
            (
                "two lengths",
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
                broken,
                Phase::Wait,
                "content-length",
                processed,
            ),
            (
                "short body",
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
                cut,
                Phase::Receive,
                "before the end of the body",
                processed,
            ),
            (
                "no body",
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
                cut,
                Phase::Receive,
                "before the end of the body",
                processed,
            ),
            (
                "half a chunk",
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
                cut,
                Phase::Receive,
                "before the end of the body",
                processed,
            ),
            (
                "no last chunk",
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
                cut,
                Phase::Receive,
                "before the end of the body",
                processed,
            ),
            (
                "no end of trailers",
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: b\r\n",
                cut,
                Phase::Receive,
                "before the end of the body",
                processed,
            ),
            (
                "bad chunk",
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
                broken,
                Phase::Receive,
                "chunk",
                processed,
            ),
        ] {
            let peer = answers(bytes);
            let origin = format!("http://127.0.0.1:{}", peer.port());
            let error = get(&world, &origin, Protocols::Auto, patient()).await;
            assert_eq!(error.replay_safety(), safety, "{what}: {error}");
            assert_eq!(error.is_truncated(), kind == ErrorKind::Truncated, "{what}");
            assert_eq!((error.attempts(), error.on_reused_connection()), (1, false));
            assert_told(&world, what, &error, &origin, (kind, phase, cause)).await;
            assert_eq!(peer.requests().len(), 1, "{what}");
        }
        let closed = world.pool.stats().closed;
        assert_eq!(closed[&CloseReason::Failed], 12);
        assert_eq!(closed[&CloseReason::ClosedUnanswered], 1);
    })
    .await;
}

#[tokio::test]
async fn body_that_ends_without_close_notify_is_truncated() {
    in_time(async {
        let world = World::new().await;
        let identity = world.pki.server(&["127.0.0.1"]);
        let peer = H1Peer::start_tls(&identity, |mut conn, index| async move {
            conn.read_head().await;
            conn.send("HTTP/1.1 200 OK\r\n\r\nhello").await;
            match index {
                0 => conn.close_without_notify().await,
                _ => conn.close().await,
            }
        });
        let origin = format!("https://127.0.0.1:{}", peer.port());
        let error = get(&world, &origin, Protocols::Http1, patient()).await;
        let told = (ErrorKind::Truncated, Phase::Receive, "close_notify");
        assert_told(&world, "no close_notify", &error, &origin, told).await;
        let client = world.client_of(&origin, Protocols::Http1);
        let mut sound = client.get("/").send().await.unwrap();
        assert_eq!(sound.text().await.unwrap(), "hello");
    })
    .await;
}

#[tokio::test]
async fn request_that_contradicts_itself_is_refused_before_it_is_sent() {
    in_time(async {
        let world = World::new().await;
        let origin = world.server.url("");
        for protocols in common::BOTH {
            let client = world.client(protocols);
            let post = || client.post("/echo").body("abc");
            for (request, cause) in [
                (post().header("content-length", "4"), "content-length"),
                (post().header("content-length", "+3"), "content-length"),
                (post().header("content-length", "3, 3"), "content-length"),
                (
                    post().header("transfer-encoding", "chunked"),
                    "transfer-encoding",
                ),
                (post().header("host", "evil.test"), "host"),
                (post().header("connection", "x-secret"), "connection"),
                (client.request(http::Method::CONNECT, "/"), "CONNECT"),
                (client.get("../x"), "segment"),
                (client.get("/a/%2e%2e/x"), "segment"),
            ] {
                let error = request.send().await.unwrap_err();
                assert_invalid(&error, cause, cause);
                assert_eq!(error.origin(), Some(&*origin), "{error}");
            }
        }
        assert_eq!(world.server.counts().connections_accepted, 0);
        let good = world.client(Protocols::Http1).post("/echo").body("abc");
        let good = good
            .header("content-length", "3")
            .header("host", &origin[8..]);
        assert_eq!(good.send().await.unwrap().text().await.unwrap(), "abc");
    })
    .await;
}

#[tokio::test]
async fn url_of_another_origin_is_refused_before_a_header_is_sent() {
    in_time(async {
        let world = World::new().await;
        let client = world
            .pool
            .client("p", world.server.url("/v1"))
            .bearer_auth("sk-canary");
        let client = client.build().unwrap();
        let own = world.server.url("");
        let down = own.replace("https", "http");
        for url in [
            world.other_url(),
            down,
            "https://api.test/".into(),
            "http://127.0.0.1/".into(),
        ] {
            let error = client.get(url.as_str()).send().await.unwrap_err();
            assert_invalid(&error, "of", &url);
            assert_eq!(error.origin(), Some(&*own));
            assert!(!error.to_string().contains("canary"));
        }
        assert_eq!(world.server.counts().connections_accepted, 0);
        assert_eq!(world.dns.total_queries(), 0);
        let response = client.get(format!("{own}/headers")).send().await.unwrap();
        assert_eq!(response.status(), 200, "its own origin is fine");
        assert_eq!(
            world.server.seen()[0].headers["authorization"],
            "Bearer sk-canary"
        );
    })
    .await;
}

#[tokio::test]
async fn client_built_twice_under_one_name_is_the_same_with_new_keys_or_an_error() {
    in_time(async {
        let world = World::new().await;
        let url = world.server.url("/");
        let build = |key: &str| world.pool.client("p", &*url).bearer_auth(key);
        let first = build("sk-old").build().unwrap();
        let sent = async |client: &firstbyte::Client| {
            client
                .get("/headers")
                .send()
                .await
                .unwrap()
                .text()
                .await
                .unwrap()
        };
        assert!(sent(&first).await.contains("sk-old"));
        build("sk-new").build().unwrap();
        assert!(
            sent(&first).await.contains("Bearer sk-new"),
            "keys rotate for those who hold it"
        );

        let other = world
            .pool
            .client("p", format!("{url}v2?key=sk-other"))
            .bearer_auth("sk-3");
        let other = other
            .protocols(Protocols::Http1)
            .timeout(Duration::from_secs(77));
        let error = other.build().unwrap_err();
        assert_invalid(&error, "`p`", "other options");
        let text = error.to_string();
        for field in ["base URL", "protocols", "timeouts"] {
            assert!(text.contains(field), "no `{field}` in: {text}");
        }
        for value in ["sk-", "v2", "77", "Http1"] {
            assert!(!text.contains(value), "`{value}` in: {text}");
        }
        assert!(
            sent(&first).await.contains("sk-new"),
            "a refused build changes nothing"
        );

        let replaced = build("sk-4").protocols(Protocols::Http1).replace().unwrap();
        assert!(sent(&replaced).await.contains("sk-4"));
        let found = world.pool.get_client("p").unwrap();
        assert!(sent(&found).await.contains("sk-4"));
        assert!(
            sent(&first).await.contains("sk-new"),
            "who holds the old one keeps it"
        );
        world.pool.remove_client("p").unwrap();
        assert!(world.pool.get_client("p").is_none() && sent(&found).await.contains("sk-4"));
    })
    .await;
}

#[tokio::test]
async fn body_that_is_not_what_was_asked_for_is_told() {
    in_time(async {
        let answer = |request: http::Request<bytes::Bytes>| match request.uri().path() {
            "/gzip" => server::Reply::ok()
                .header("content-encoding", "gzip")
                .body("{}"),
            "/html" => server::Reply::status(502).body("<html>\r\n\x1b[2J</html>"),
            "/big" => server::Reply::ok().body(vec![b'1'; 300_000]),
            _ => server::Reply::ok().body("hello"),
        };
        let world = World::with(|server| server.handler(answer), |pool| pool).await;
        let origin = world.server.url("");
        for protocols in common::BOTH {
            let client = world.client(protocols);
            let small = RequestOptions::default().max_body_bytes(299_999);
            for (path, kind, cause) in [
                ("/gzip", ErrorKind::Decode, "content-encoding gzip"),
                ("/html", ErrorKind::Decode, "<html>"),
                ("/big", ErrorKind::TooLarge, "max_body_bytes of 299999"),
            ] {
                let request = client.get(path).options(small.clone());
                let mut response = request.send().await.unwrap();
                let error = response.json::<serde_json::Value>().await.unwrap_err();
                let text = error.to_string();
                assert_eq!(error.kind(), kind, "{text}");
                assert_eq!(error.origin(), Some(&*origin));
                assert_eq!(error.replay_safety(), ReplaySafety::Processed);
                assert_eq!(error.phase(), Some(Phase::Receive), "{path}: {text}");
                assert!(error.timing().is_some(), "{path}: {text}");
                assert!(
                    text.contains(cause) && !text.contains(char::is_control),
                    "{text:?}"
                );
                drop(response);
                assert_usable(&world, path).await;
            }
            let response = client.get("/html").send().await.unwrap();
            let error = response.error_for_status().unwrap_err();
            assert!(
                error.is_status() && error.to_string().contains("502"),
                "{error}"
            );
            assert_eq!(error.origin(), Some(&*origin));
            assert_usable(&world, "status").await;
        }
    })
    .await;
}

#[test]
fn option_that_cannot_work_is_refused_by_build() {
    let pool = || ConnectionPool::builder();
    let limits = firstbyte::Limits::default();
    for (what, built) in [
        (
            "max_connections",
            pool().limits(limits.clone().max_connections(0)).build(),
        ),
        (
            "max_connections_per_host",
            pool().limits(limits.max_connections_per_host(0)).build(),
        ),
        ("resolve_to", pool().resolve_to("a b", []).build()),
        (
            "root",
            pool()
                .tls(firstbyte::tls::TlsOptions::new().builtin_roots(false))
                .build(),
        ),
    ] {
        assert_invalid(&built.expect_err(what), "", what);
    }
    let pool = ConnectionPool::new();
    let h2 = pool
        .client_builder("http://api.test/")
        .protocols(Protocols::Http2);
    assert_invalid(
        &h2.build().unwrap_err(),
        "Http2PriorKnowledge",
        "h2 by ALPN without TLS",
    );
}
