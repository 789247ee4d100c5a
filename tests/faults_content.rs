//! What must not get into a request, out of an error, or from one request into another: the content's own faults.
//!
//! | fault | test |
//! |---|---|
//! | CR, LF, NUL in method, path, query, names, values, trailers | here: whatever_could_end_a_line..., any_byte_in_any_place..., uri_beyond_ascii..., injections_are_refused_over_http2_too; `bad_input.rs`: control_characters_never_reach_the_wire, url_that_cannot_be_used... |
//! | framing and host of the caller's own: duplicate Content-Length, Transfer-Encoding, Host, `:authority`, Connection and Upgrade on HTTP/2 | here: framing_and_host_are_the_librarys..., fields_of_a_connection_never_travel..., trailers_of_a_request_cannot_frame_it, trailers_of_a_request_hold_no_fields..., body_is_never_longer_than_it_said..., body_of_another_length...; `bad_input.rs`: request_that_contradicts_itself... |
//! | URLs in which two readers see two hosts | here: url_means_one_host_or_none, backslash_beside_the_host..., url_given_as_uri..., path_cannot_name_another_host; `bad_input.rs`: url_that_cannot_be_used..., url_of_another_origin...; fuzz target `origin` |
//! | keys in logs, errors, Debug, statistics, compression tables | `secrets.rs`; here: secrets_enter_no_compression_table, password_of_a_proxy_and_key_of_a_client_never_show |
//! | text of the peer in our errors | here: what_a_peer_says..., value_that_was_not_expected..., names_in_a_certificate...; `bad_input.rs`: body_that_is_not_what_was_asked_for..., peer_that_speaks_another_protocol... |
//! | redirects | not followed: here: redirect_is_an_answer_and_nobody_else_is_asked |
//! | state of one request in the next | here: nothing_of_a_request_is_in_the_next, clients_that_share_a_connection_keep_their_keys_apart |
//! | reuse across identities | `identities.rs`; with proxies `proxy.rs`: connections_are_never_shared_between_proxies_or_credentials |
//! | plain and TLS under one host | `identities.rs`: scheme_and_port_are_part_of_the_identity |
//! | proxies: refusals, early data behind 200, credentials | `proxy.rs`: proxy_that_refuses..., plain_http_is_asked_of_the_proxy..., and `proxy::http` |
//! | names that lead where they must not | `dns.rs`: address_filter_refuses_what_a_name_leads_to |
//! | memory per connection, stream and pool | `memory.rs`, `allocations.rs`; heads, chunks and trailers: `faults_http1.rs`; unread frames: `http2_peer.rs` |

mod common;
mod support;

use std::error::Error as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use common::{BOTH, World, in_time};
use firstbyte::proxy::{Proxy, ProxyRules};
use firstbyte::tls::TlsOptions;
use firstbyte::{Body, Client, ConnectionPool, ConnectionUse, Error, ErrorKind, Origin, Protocols};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use http_body::Frame;
use http_body_util::BodyExt;
use support::h1_peer::H1Peer;
use support::h2_peer::{H2Peer, kind};
use support::pki::Pki;
use support::server::{Reply, Server};
use support::sim::{self, Sim};
use support::stall::Stall;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// An origin of memory that answers `ok` and keeps what it was sent, one entry per connection.
fn recording() -> (Sim, Arc<Mutex<Vec<String>>>) {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let sim = Sim::http1({
        let heads = heads.clone();
        move |mut conn, _| {
            let heads = heads.clone();
            async move {
                loop {
                    let head = conn.read_head().await;
                    if head.is_empty() {
                        return;
                    }
                    heads.lock().unwrap().push(head);
                    conn.send(OK).await;
                }
            }
        }
    });
    (sim, heads)
}

/// Frames of a body, in this order, of a length that is not told.
struct Frames(std::vec::IntoIter<Frame<Bytes>>);

impl Frames {
    fn body(frames: impl IntoIterator<Item = Frame<Bytes>>) -> Body {
        Body::wrap(Self(frames.into_iter().collect::<Vec<_>>().into_iter()))
    }
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.next().map(Ok))
    }
}

// ---- Into the request ----

#[test]
fn whatever_could_end_a_line_cannot_even_be_made() {
    // Heads and trailers are written from these types without a further look.
    for byte in (0..=0x1f).chain([0x7f]) {
        let evil = [b'a', byte, b'b'];
        if byte != b'\t' {
            assert!(HeaderValue::from_bytes(&evil).is_err(), "{byte:#x}");
        }
        assert!(HeaderName::from_bytes(&evil).is_err(), "{byte:#x}");
        assert!(Method::from_bytes(&evil).is_err(), "{byte:#x}");
        let target = [b'/', b'a', byte, b'b'];
        let made = PathAndQuery::from_maybe_shared(target);
        assert!(made.is_err(), "{byte:#x}");
        let url = [&b"http://sim.test"[..], &target].concat();
        assert!(Uri::from_maybe_shared(url).is_err(), "{byte:#x}");
    }
    for method in [
        "",
        " ",
        "GET /evil",
        "GET\t",
        "G\u{e9}T",
        "GET:",
        "(",
        "\"GET\"",
    ] {
        assert!(Method::from_bytes(method.as_bytes()).is_err(), "{method:?}");
    }
    for name in ["", ":authority", ":path", "a b", "a:b", "h\u{f6}st"] {
        assert!(HeaderName::from_bytes(name.as_bytes()).is_err(), "{name:?}");
    }
}

/// A head as it is on the wire: its lines say what was meant and nothing else.
fn assert_one_request(head: &str, case: &str) {
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default();
    assert_eq!(line.split(' ').count(), 3, "{case}: {head:?}");
    assert!(
        line.bytes().all(|b| b == b' ' || b.is_ascii_graphic()),
        "{case}: RFC 9112 §3.2 knows visible ASCII alone: {line:?}"
    );
    let names: Vec<_> = lines
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_once(": ").expect("a field").0)
        .collect();
    let known = ["host", "x-odd", "user-agent", "accept"];
    assert!(names.iter().all(|n| known.contains(n)), "{case}: {head:?}");
    assert_eq!(
        names.iter().filter(|name| **name == "host").count(),
        1,
        "{case}"
    );
    assert!(
        !head.replace("\r\n", "").contains(['\r', '\n', '\0']),
        "{case}: {head:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn any_byte_in_any_place_is_refused_or_part_of_one_request() {
    let (sim, heads) = recording();
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    for byte in 0..=u8::MAX {
        let odd = char::from(byte);
        let case = format!("{byte:#04x}");
        let value = [b'a', byte, b'b'];
        let as_uri = |url: Vec<u8>| {
            let uri = Uri::from_maybe_shared(Bytes::from(url)).ok()?;
            http::Request::get(uri).body(Body::empty()).ok()
        };
        let url = |rest: &[&[u8]]| [&b"http://sim.test/"[..], &rest.concat()].concat();
        let by_client = [
            client.get(format!("/a{odd}b")),
            client.get(format!("/?a{odd}b")),
            client.get(format!("http://sim.test/{odd}")),
            client
                .get("/")
                .query([(format!("{odd}"), format!("{odd}"))]),
            client.get("/").header("x-odd", &value[..]),
        ];
        let by_uri = [
            as_uri(url(&[b"a", &[byte], b"b"])),
            as_uri(url(&[b"?a", &[byte], b"b"])),
        ];
        let mut sent = 0;
        for request in by_client {
            match request.send().await {
                Ok(mut response) => {
                    assert_eq!(response.text().await.unwrap(), "ok", "{case}");
                    sent += 1;
                }
                Err(error) => assert!(error.is_invalid(), "{case}: {error}"),
            }
        }
        for request in by_uri.into_iter().flatten() {
            match pool.send(request).await {
                Ok(_) => sent += 1,
                Err(error) => assert!(error.is_invalid(), "{case}: {error}"),
            }
        }
        let heads = std::mem::take(&mut *heads.lock().unwrap());
        assert_eq!(heads.len(), sent, "{case}");
        for head in heads {
            assert_one_request(&head, &case);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn uri_beyond_ascii_is_encoded_or_refused() {
    let (sim, heads) = recording();
    let pool = sim.pool(|pool| pool);
    for odd in [
        "\u{80}",
        "\u{85}",
        "\u{e9}",
        "\u{2028}",
        "\u{ff0f}",
        "\u{1f600}",
    ] {
        for url in [
            format!("http://sim.test/{odd}"),
            format!("http://sim.test/?{odd}"),
        ] {
            let Ok(uri) = url.parse::<Uri>() else {
                continue;
            };
            let request = http::Request::get(uri).body(Body::empty()).unwrap();
            match pool.send(request).await {
                Ok(_) => assert_one_request(&heads.lock().unwrap().pop().unwrap(), &url),
                Err(error) => assert!(error.is_invalid(), "{url}: {error}"),
            }
        }
    }
}

#[tokio::test]
async fn injections_are_refused_over_http2_too() {
    in_time(async {
        let world = World::new().await;
        let origin = world.server.url("");
        let client = world.client(Protocols::Http2);
        for bad in ["\r", "\n", "\0", "\r\nx-evil: 1"] {
            let evil = format!("a{bad}b");
            for request in [
                client.get(format!("/{evil}")),
                client.get(format!("/?q={evil}")),
                client.get(format!("{origin}/{evil}")),
                client.get("/").header("x-a", &*evil),
                client.get("/").header(&*evil, "1"),
                client.get("/").bearer_auth(&evil),
                client.get("/").header(":authority", "evil.test"),
                client.get("/").header(":path", "/evil"),
            ] {
                let error = request.send().await.unwrap_err();
                assert!(error.is_invalid() && error.attempts() == 0, "{error}");
            }
        }
        assert_eq!(world.server.counts().connections_accepted, 0);
    })
    .await;
}

#[tokio::test]
async fn framing_and_host_are_the_librarys_whatever_the_caller_sets() {
    in_time(async {
        let world = World::new().await;
        let origin = world.server.url("");
        let authority = origin.trim_start_matches("https://").to_owned();
        for protocols in BOTH {
            let client = world.client(protocols);
            let post = || client.post("/echo").body("abc");
            for (request, cause) in [
                (
                    post()
                        .header("content-length", "3")
                        .header("content-length", "3"),
                    "content-length",
                ),
                (
                    post()
                        .header("content-length", "3")
                        .header("content-length", "4"),
                    "content-length",
                ),
                (post().header("content-length", ""), "content-length"),
                (post().header("content-length", " 3 "), "content-length"),
                (
                    post().header("content-length", "18446744073709551616"),
                    "content-length",
                ),
                (
                    client.get("/").header("content-length", "3"),
                    "content-length",
                ),
                (
                    post().header("transfer-encoding", "identity"),
                    "transfer-encoding",
                ),
                (post().header("Transfer-Encoding", ""), "transfer-encoding"),
                (post().header("host", ""), "host"),
                (
                    post().header("host", format!("{authority},evil.test")),
                    "host",
                ),
                (post().header("host", format!("x@{authority}")), "host"),
                (
                    post().header("connection", "close, content-length"),
                    "connection",
                ),
                (
                    post()
                        .header("connection", "close")
                        .header("connection", "host"),
                    "connection",
                ),
            ] {
                let error = request.send().await.unwrap_err();
                assert!(error.is_invalid(), "{error}");
                assert!(error.to_string().contains(cause), "{cause}: {error}");
            }
            // The same for the headers of a client.
            let with_host = world.pool.client_builder(&*origin).protocols(protocols);
            let with_host = with_host.header("host", "evil.test").build();
            let refused = match with_host {
                Ok(client) => client.get("/").send().await.unwrap_err(),
                Err(error) => error,
            };
            assert!(refused.is_invalid(), "{refused}");
            // Twice the same host is still not the caller's to say.
            let twice = post()
                .header("host", &*authority)
                .header("host", "evil.test");
            match twice.send().await {
                Ok(_) => {
                    let seen = world.server.seen();
                    let last = &seen.last().unwrap().headers;
                    let hosts: Vec<_> = last.get_all("host").iter().collect();
                    assert!(hosts.iter().all(|host| *host != "evil.test"), "{hosts:?}");
                }
                Err(error) => assert!(error.is_invalid(), "{error}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn fields_of_a_connection_never_travel_over_http2() {
    in_time(async {
        let world = World::new().await;
        let client = world.client(Protocols::Http2);
        let request = client
            .get("/")
            .header("connection", "upgrade, te, keep-alive")
            .header("upgrade", "websocket")
            .header("keep-alive", "timeout=5")
            .header("proxy-connection", "keep-alive")
            .header("te", "gzip");
        match request.send().await {
            Ok(response) => assert_eq!(response.status(), 200),
            Err(error) => assert!(error.is_invalid(), "{error}"),
        }
        for trailers in ["trailers", "trailers, deflate"] {
            match client.get("/").header("te", trailers).send().await {
                Ok(response) => assert_eq!(response.status(), 200),
                Err(error) => assert!(error.is_invalid(), "{error}"),
            }
        }
        // RFC 9113 §8.2.2.
        for seen in world.server.seen() {
            for name in [
                "connection",
                "upgrade",
                "keep-alive",
                "proxy-connection",
                "transfer-encoding",
                "host",
            ] {
                assert!(!seen.headers.contains_key(name), "{:?}", seen.headers);
            }
            let te = seen.headers.get("te");
            assert!(te.is_none_or(|te| te == "trailers"), "{te:?}");
        }
    })
    .await;
}

/// RFC 9110 §6.5.1: a sender must not put framing, routing or authentication into trailers.
const NO_TRAILERS: [(&str, &str); 6] = [
    ("content-length", "7"),
    ("transfer-encoding", "chunked"),
    ("host", "evil.test"),
    ("connection", "close"),
    ("authorization", "Bearer sk-evil"),
    ("te", "gzip"),
];

fn trailers(pairs: &[(&'static str, &'static str)]) -> Frame<Bytes> {
    let pairs = pairs.iter().map(|(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    });
    Frame::trailers(pairs.collect::<HeaderMap>())
}

#[tokio::test(start_paused = true)]
async fn trailers_of_a_request_cannot_frame_it() {
    for (name, value) in NO_TRAILERS {
        let tails: Arc<Mutex<Vec<String>>> = Arc::default();
        let sim = Sim::http1({
            let tails = tails.clone();
            move |mut conn, _| {
                let tails = tails.clone();
                async move {
                    while !conn.read_head().await.is_empty() {
                        conn.read_until("\r\n0\r\n").await;
                        let tail = conn.read_until("\r\n").await;
                        let mut tail = String::from_utf8_lossy(&tail).into_owned();
                        while tail != "\r\n" && !tail.ends_with("\r\n\r\n") {
                            let more = conn.read_until("\r\n").await;
                            if more.is_empty() {
                                return;
                            }
                            tail.push_str(&String::from_utf8_lossy(&more));
                        }
                        tails.lock().unwrap().push(tail);
                        conn.send(OK).await;
                    }
                }
            }
        });
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, Protocols::Http1);
        let data = Frame::data(Bytes::from_static(b"hello"));
        let body = Frames::body([data, trailers(&[("x-sum", "1"), (name, value)])]);
        match client.post("/").body(body).send().await {
            Ok(_) => {
                let tails = tails.lock().unwrap();
                assert!(!tails[0].contains(name), "{name} left as {:?}", tails[0]);
            }
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::Body | ErrorKind::Invalid),
                "{error}"
            ),
        }
    }
}

#[tokio::test]
async fn trailers_of_a_request_hold_no_fields_of_a_connection_over_http2() {
    in_time(async {
        for (name, value) in NO_TRAILERS {
            let blocks: Arc<Mutex<Vec<Bytes>>> = Arc::default();
            let peer = H2Peer::start({
                let blocks = blocks.clone();
                move |mut conn, _| {
                    let blocks = blocks.clone();
                    async move {
                        conn.handshake(&[]).await;
                        while let Some(frame) = conn.read_frame().await {
                            if frame.kind == kind::HEADERS {
                                blocks.lock().unwrap().push(frame.payload.clone());
                            }
                            if frame.is_end_stream() {
                                conn.headers(frame.stream, &[(":status", "204")], true)
                                    .await;
                            }
                            if frame.kind == kind::RST_STREAM {
                                return;
                            }
                        }
                    }
                }
            });
            let pool = ConnectionPool::new();
            let client = pool
                .client_builder(format!("http://{}", peer.addr()))
                .protocols(Protocols::Http2PriorKnowledge)
                .build()
                .unwrap();
            let data = Frame::data(Bytes::from_static(b"hello"));
            let body = Frames::body([data, trailers(&[(name, value)])]);
            match client.post("/").body(body).send().await {
                Ok(response) => {
                    assert_eq!(response.status(), 204);
                    // A block that holds the field has at least a byte for its name.
                    let blocks = blocks.lock().unwrap();
                    let trailers = blocks.get(1).map_or(0, |block| block.len());
                    assert_eq!(trailers, 0, "{name} left in {:?}", blocks.get(1));
                }
                Err(error) => assert!(
                    matches!(error.kind(), ErrorKind::Body | ErrorKind::Invalid),
                    "{error}"
                ),
            }
        }
    })
    .await;
}

/// Bodies that are said to have three bytes.
const LIES: [&[&str]; 7] = [
    &["abcGET /evil HTTP/1.1\r\n\r\n"],
    &["ab", "cd"],
    &["abc", "d"],
    &["abc", "", "d"],
    &["ab"],
    &["", "a"],
    &[],
];

fn pieces(pieces: &[&'static str]) -> Body {
    Frames::body(pieces.iter().map(|piece| Frame::data(Bytes::from(*piece))))
}

#[tokio::test]
async fn body_is_never_longer_than_it_said_nor_silently_shorter() {
    in_time(async {
        for body in LIES {
            let got: Arc<Mutex<Vec<u8>>> = Arc::default();
            let peer = H1Peer::start({
                let got = got.clone();
                move |mut conn, _| {
                    let got = got.clone();
                    async move {
                        conn.read_head().await;
                        let body = conn.read_body(1_000).await;
                        got.lock().unwrap().extend_from_slice(&body);
                    }
                }
            });
            let pool = ConnectionPool::new();
            let client = pool.client_builder(format!("http://{}", peer.addr()));
            let client = client.build().unwrap();
            let request = client.post("/").header("content-length", "3");
            let error = request.body(pieces(body)).send().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Body, "{body:?}: {error}");
            let gone = || pool.stats().open == 0;
            common::eventually("the connection is gone", gone).await;
            assert!(got.lock().unwrap().len() <= 3, "{body:?}: {got:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn body_of_another_length_than_it_said_is_no_success_over_http2() {
    in_time(async {
        for body in LIES {
            let world = World::new().await;
            let client = world.client(Protocols::Http2);
            let request = client.post("/echo").header("content-length", "3");
            let sent = request.body(pieces(body)).send().await;
            let error = match sent {
                Ok(mut response) => response.bytes().await.expect_err("it is never complete"),
                Err(error) => error,
            };
            assert_eq!(error.kind(), ErrorKind::Body, "{body:?}: {error}");
        }
    })
    .await;
}

/// A length that was told is not believed in place of the body, whatever kind of body it is.
#[tokio::test]
async fn announced_length_does_not_stand_for_the_body() {
    in_time(async {
        for protocols in BOTH {
            let world = World::new().await;
            let client = world.client(protocols);
            let hello = || Body::factory(|| Body::from("hello"));
            let delete = || client.delete("/echo");
            for (request, body) in [
                (client.post("/echo").header("content-length", "9"), hello()),
                (client.post("/echo").header("content-length", "3"), hello()),
                (client.post("/echo").header("content-length", "0"), hello()),
                (delete().header("content-length", "0"), hello()),
                (delete().header("content-length", "0"), pieces(&["hello"])),
            ] {
                let error = match request.body(body).send().await {
                    Ok(mut response) => response.bytes().await.expect_err("it is a lie"),
                    Err(error) => error,
                };
                assert_eq!(error.kind(), ErrorKind::Body, "{protocols:?}: {error}");
            }
        }
    })
    .await;
}

/// A body that has trailers and nothing else says that its length is 0.
#[tokio::test(start_paused = true)]
async fn trailers_behind_no_data_at_all_arrive() {
    in_time(async {
        let trailers = || {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-sum", "5".parse().unwrap());
            let empty = http_body_util::Empty::<Bytes>::new();
            Body::wrap(empty.with_trailers(async { Some(Ok(trailers)) }))
        };
        for method in ["POST", "DELETE"] {
            let method = http::Method::from_bytes(method.as_bytes()).unwrap();
            let sim = Sim::http1(|mut conn, _| async move {
                conn.read_head().await;
                let body = conn.read_until("\r\n\r\n").await;
                assert_eq!(&body[..], b"0\r\nx-sum: 5\r\n\r\n");
                conn.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await;
            });
            let client = sim::client(&sim.pool(|pool| pool), Protocols::Http1);
            let request = client
                .request(method.clone(), "/")
                .header("trailer", "x-sum");
            assert_eq!(request.body(trailers()).send().await.unwrap().status(), 200);

            let sim = Sim::http2(|mut conn, _| async move {
                conn.handshake(&[]).await;
                let head = conn.read_headers().await;
                let trailers = conn.read_headers().await;
                assert!(!head.is_end_stream() && trailers.is_end_stream());
                conn.headers(head.stream, &[(":status", "200")], true).await;
                conn.closed_by_client().await;
            });
            let client = sim::client(&sim.pool(|pool| pool), sim::plain(Protocols::Http2));
            let request = client.request(method, "/").body(trailers());
            assert_eq!(request.send().await.unwrap().status(), 200);
        }
    })
    .await;
}

// ---- Where it goes ----

#[test]
fn url_means_one_host_or_none() {
    for (url, host) in [
        ("https://evil.test@api.test/", None),
        ("https://evil.test:443@api.test/", None),
        ("https://api.test#@evil.test/", Some("api.test")),
        ("https://api.test?@evil.test/", Some("api.test")),
        ("https://api.test/@evil.test/", Some("api.test")),
        ("https://api.test%40evil.test/", None),
        ("https://api.test%2f.evil.test/", None),
        ("https://api.test%5c.evil.test/", None),
        ("https://api.test%00.evil.test/", None),
        ("https://api.test%0d%0a.evil.test/", None),
        ("https://api.test:443:80/", None),
        ("https://api.test:80.evil.test/", None),
        ("https://api.test:+443/", None),
        ("https://api.test:-1/", None),
        ("https://api.test:0x50/", None),
        ("https://api.test:\u{ff14}\u{ff14}\u{ff13}/", None),
        ("https://api.test:00443/", Some("api.test")),
        ("https://api.test: 443/", None),
        ("https:// api.test/", None),
        ("https://api.test /", None),
        ("https://api\t.test/", None),
        ("https:/\t/api.test/", None),
        ("https:api.test/", None),
        ("https:/api.test/", None),
        ("https:///api.test/", None),
        ("//api.test/", None),
        ("https://[::1]evil.test/", None),
        ("https://[::1%25eth0]/", None),
        ("https://[::1%eth0]/", None),
        ("https://[fe80::1%25evil.test]/", None),
        ("https://::1/", None),
        ("https://[127.0.0.1]/", None),
        ("https://[::ffff:127.0.0.1]/", Some("[::ffff:127.0.0.1]")),
        ("https://127.1/", None),
        ("https://0177.0.0.1/", None),
        ("https://0x7f000001/", None),
        ("https://2130706433/", None),
        ("https://127.0.0.1.:443/", None),
        ("https://127.0.0.1%2f/", None),
        ("https://*.test/", None),
        ("https://api.test,evil.test/", None),
        ("https://api.test;evil.test/", None),
        ("https://api.test&evil.test/", None),
        ("https://api.test$evil/", None),
        ("https://\"api.test\"/", None),
        ("https://api.test'/", None),
        ("https://<api.test>/", None),
        ("https://api_test/", Some("api_test")),
        ("https://./", None),
        ("https://../", None),
        ("https://.api.test/", None),
    ] {
        let parsed = Origin::parse(url);
        let host_of = |origin: &Origin| origin.host();
        match host {
            Some(host) => assert_eq!(
                parsed.as_ref().map(host_of).ok().as_deref(),
                Some(host),
                "{url:?}"
            ),
            None => {
                if let Ok(origin) = &parsed {
                    panic!("{url:?} was read as {origin}");
                }
                assert!(parsed.unwrap_err().is_invalid(), "{url:?}");
            }
        }
    }
}

/// RFC 3986 knows no backslash: what stands before it is user info to one reader and the host to another.
#[test]
fn backslash_beside_the_host_is_refused() {
    for url in [
        "https://api.test\\@evil.test/",
        "https://api.test\\.evil.test/",
        "https://api.test\\evil.test/",
        "https://api.test:443\\@evil.test/",
        "https:\\\\api.test/",
        "https:/\\api.test/",
    ] {
        match Origin::parse(url) {
            Ok(origin) => panic!("{url:?} was read as {origin}"),
            Err(error) => assert!(error.is_invalid(), "{url:?}: {error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn url_given_as_uri_means_the_host_that_was_written() {
    let (sim, heads) = recording();
    let pool = sim.pool(|pool| pool);
    for url in [
        "http://sim.test@evil.test/",
        "http://evil.test@sim.test/",
        "http://sim.test:80@evil.test/",
        "http://sim.test:080/",
        "http://sim.test:/",
        "http://sim.test:+80/",
        "http://sim.test:80:81/",
        "http://SIM.test/",
        "http://sim.test./",
        "http://sim.test//evil.test/",
        "http://sim.test/@evil.test",
        "http://sim.test?@evil.test/",
        "http://sim.test%2fevil.test/",
        "http://sim.test%00/",
        "http://sim.test,evil.test/",
        "http://[::1%25eth0]/",
        "sim.test:80",
        "*",
        "/",
    ] {
        let Ok(uri) = url.parse::<Uri>() else {
            continue;
        };
        let request = http::Request::get(uri).body(Body::empty()).unwrap();
        if let Err(error) = pool.send(request).await {
            assert!(error.is_invalid(), "{url}: {error}");
            assert!(!error.to_string().contains(char::is_control), "{url}");
            continue;
        }
        let head = heads.lock().unwrap().pop().unwrap();
        assert!(head.contains("\r\nhost: sim.test\r\n"), "{url}: {head}");
        assert_one_request(&head, url);
    }
}

#[tokio::test(start_paused = true)]
async fn path_cannot_name_another_host() {
    let (sim, heads) = recording();
    let pool = sim.pool(|pool| pool);
    let builder = pool.client_builder("http://sim.test/v1");
    let client = builder.protocols(Protocols::Http1).build().unwrap();
    for path in [
        "//evil.test/x",
        "///evil.test/x",
        "\\\\evil.test/x",
        "/\\evil.test/x",
        "@evil.test/x",
        ":81/x",
        ":81@evil.test/x",
        ".evil.test/x",
        "?@evil.test",
        "#@evil.test",
        "http:evil.test/x",
        "http:/evil.test/x",
        "http:\\\\evil.test/x",
        "HTTP://evil.test/x",
        "http://evil.test/x",
        "http://sim.test@evil.test/x",
        "http://sim.test.evil.test/x",
        "http://sim.test:81/x",
        "https://sim.test/x",
        "ws://sim.test/x",
        "javascript://sim.test/x",
        "..",
        "../x",
        "..\\x",
        "./x",
        "a/../../x",
        "a/%2E%2e/x",
        "a/.%2e/x",
        "a/%2e./x",
        "a\\..\\..\\x",
        "a/..;/x",
        "a/..%2fx",
        "%2e%2e%2fx",
    ] {
        match client.get(path).send().await {
            Err(error) => assert!(error.is_invalid(), "{path}: {error}"),
            Ok(_) => {
                let head = heads.lock().unwrap().pop().unwrap();
                assert!(head.contains("\r\nhost: sim.test\r\n"), "{path}: {head}");
                assert!(head.starts_with("GET /v1/"), "{path}: {head}");
                assert_one_request(&head, path);
            }
        }
    }
    assert_eq!(sim.dials(), 1);
}

#[tokio::test]
async fn redirect_is_an_answer_and_nobody_else_is_asked() {
    in_time(async {
        let elsewhere = Server::builder().plain().start().await;
        let target = elsewhere.url("/stolen");
        let answer = move |_| Reply::status(307).header("location", &target);
        let world = World::with(|server| server.handler(answer), |pool| pool).await;
        for protocols in BOTH {
            let client = world.pool.client_builder(world.server.url("/"));
            let client = client.protocols(protocols).bearer_auth("sk-canary");
            let response = client.build().unwrap().post("/").body("x").send().await;
            let response = response.unwrap();
            assert_eq!(response.status(), 307);
            assert!(response.headers().contains_key("location"));
        }
        assert_eq!(world.server.counts().requests, 2);
        assert_eq!(elsewhere.counts().connections_accepted, 0);
    })
    .await;
}

// ---- From one request into another ----

#[tokio::test]
async fn nothing_of_a_request_is_in_the_next() {
    in_time(async {
        let world = World::new().await;
        let origin = world.server.url("");
        for protocols in BOTH {
            let client = world.client(protocols);
            let plain = async |client: &Client| {
                let mut response = client.get("/plain").send().await.unwrap();
                response.bytes().await.unwrap();
                let reused = response.connection_use();
                (world.server.seen().pop().unwrap(), reused)
            };
            let (before, _) = plain(&client).await;
            let loud = || {
                client
                    .post("/echo")
                    .query([("key", "sk-canary")])
                    .bearer_auth("sk-canary")
                    .header("x-own", "sk-canary")
                    .header("user-agent", "sk-canary")
                    .header("accept", "text/sk-canary")
                    .header("connection", "keep-alive")
                    .header("te", "trailers")
                    .header("referer", "https://sk-canary.test/")
                    .header("idempotency-key", "sk-canary")
                    .body("sk-canary")
                    .idempotent(true)
            };
            let mut response = loud().send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "sk-canary");
            drop(response);
            // One that is refused, one that is given up, and one whose body nobody reads.
            let refused = loud().header("host", "evil.test").send().await;
            assert!(refused.unwrap_err().is_invalid());
            let given_up = common::DropAfter::new(loud().send(), 1).await;
            assert!(given_up.is_none() || given_up.unwrap().is_ok());
            drop(loud().send().await.unwrap());
            for _ in 0..3 {
                let (after, how) = plain(&client).await;
                assert_eq!(after.headers, before.headers, "{protocols:?}");
                assert_eq!((&after.uri, &after.method), (&before.uri, &before.method));
                assert!(how != ConnectionUse::Joined, "{how:?}");
            }
            let request = http::Request::get(format!("{origin}/plain"))
                .body(Body::empty())
                .unwrap();
            world.pool.send(request).await.unwrap();
            let last = world.server.seen().pop().unwrap();
            let text = format!("{:?} {}", last.headers, last.uri);
            assert!(!text.contains("canary"), "{text}");
        }
    })
    .await;
}

#[tokio::test]
async fn clients_that_share_a_connection_keep_their_keys_apart() {
    in_time(async {
        let world = World::new().await;
        let url = world.server.url("/");
        for protocols in BOTH {
            let of = |key: &str| {
                let builder = world.pool.client_builder(&*url).protocols(protocols);
                builder.bearer_auth(key).build().unwrap()
            };
            let (one, other) = (of("sk-one"), of("sk-other"));
            let bare = world.client(protocols);
            let connections = world.server.counts().connections_accepted;
            for _ in 0..3 {
                for (client, key) in [(&one, Some("one")), (&bare, None), (&other, Some("other"))] {
                    let mut response = client.get("/").send().await.unwrap();
                    response.bytes().await.unwrap();
                    let seen = world.server.seen().pop().unwrap();
                    let sent = seen.headers.get("authorization");
                    let expected = key.map(|key| format!("Bearer sk-{key}"));
                    assert_eq!(
                        sent.map(|value| value.to_str().unwrap()),
                        expected.as_deref(),
                        "{protocols:?}"
                    );
                }
            }
            let now = world.server.counts().connections_accepted;
            assert_eq!(now - connections, 1, "{protocols:?}: they share it");
        }
    })
    .await;
}

#[tokio::test]
async fn secrets_enter_no_compression_table() {
    in_time(async {
        let blocks: Arc<Mutex<Vec<Bytes>>> = Arc::default();
        let peer = H2Peer::start({
            let blocks = blocks.clone();
            move |mut conn, _| {
                let blocks = blocks.clone();
                async move {
                    conn.handshake(&[]).await;
                    while let Some(frame) = conn.read_kind(kind::HEADERS).await {
                        blocks.lock().unwrap().push(frame.payload.clone());
                        conn.headers(frame.stream, &[(":status", "204")], true)
                            .await;
                    }
                }
            }
        });
        let pool = ConnectionPool::new();
        let secret = "0123456789abcdefghijklmnopqrstuv0123456789abcdefghijklmnopqrstuv";
        let all = [
            "x-api-key",
            "x-goog-api-key",
            "api-key",
            "cookie",
            "authorization",
        ];
        let builder = |of_client: &[&'static str]| {
            let mut builder = pool
                .client_builder(format!("http://{}", peer.addr()))
                .protocols(Protocols::Http2PriorKnowledge);
            for name in of_client {
                builder = builder.header(*name, secret);
            }
            builder.build().unwrap()
        };
        let (by_client, by_request) = (builder(&all), builder(&[]));
        for _ in 0..3 {
            by_client.get("/").send().await.unwrap();
            let mut request = by_request.get("/");
            for name in all {
                request = request.header(name, secret);
            }
            request.send().await.unwrap();
            let map = all.map(|name| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(secret),
                )
            });
            let map: HeaderMap = map.into_iter().collect();
            by_request.get("/").headers(map).send().await.unwrap();
            // What is no secret is one byte the second time.
            let open = by_request.get("/").header("x-open", secret);
            open.send().await.unwrap();
        }
        let blocks = blocks.lock().unwrap();
        let lens: Vec<_> = blocks.iter().map(Bytes::len).collect();
        // Digits and small letters take five to seven bits in the code of RFC 7541.
        let written = all.len() * secret.len() * 5 / 8;
        for (n, len) in lens.iter().enumerate() {
            match (n % 4, n / 4) {
                (3, 0) => {}
                (3, _) => assert!(*len < 30, "an open header is a reference: {lens:?}"),
                _ => assert!(*len > written, "request {n} refers to a secret: {lens:?}"),
            }
        }
        // RFC 7541 §6.2.3: a literal that is never indexed, under the static name `authorization` (23).
        for (n, block) in blocks.iter().enumerate().filter(|(n, _)| n % 4 != 3) {
            let never = block.windows(2).any(|two| two == [0x1f, 23 - 15]);
            assert!(never, "request {n}: {block:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn password_of_a_proxy_and_key_of_a_client_never_show() {
    in_time(async {
        let canary = "sk-canary-4f8a1c";
        let encoded = "sk%2Dcanary-4f8a1c";
        let refused = Stall::refused_addr();
        let mut printed = Vec::new();
        for scheme in ["http", "https", "socks5"] {
            for password in [canary, encoded] {
                let url = format!("{scheme}://user:{password}@{refused}");
                let proxy = Proxy::parse(&url).unwrap();
                let rules = ProxyRules::from(proxy.clone());
                let given = Proxy::parse(&format!("{scheme}://{refused}")).unwrap();
                let given = given.basic_auth("user", canary).unwrap();
                printed.push(format!(
                    "{proxy} {proxy:?} {proxy:#?} {rules:?} {given} {given:?}"
                ));
                let pool = ConnectionPool::builder().proxy(rules).build().unwrap();
                let builder = pool.client("p", "http://api.test/");
                printed.push(format!("{builder:?}"));
                let client = builder.build().unwrap();
                let error = client.get("/").send().await.unwrap_err();
                printed.push(format!("{pool:?} {client:?} {error} {error:?}"));
                let other = pool.client("p", "http://api.test/").proxy(given);
                let other = other.timeout(std::time::Duration::from_secs(1)).build();
                printed.push(format!("{:?}", other.unwrap_err()));
            }
        }
        for bad in [
            format!("ftp://user:{canary}@{refused}"),
            format!("http://user:{canary}@"),
            format!("http://user:{canary}@{refused}:1"),
            format!("http://user:{canary}@ {refused}"),
            format!("http://user:{canary}%0d%0a@{refused}"),
            format!("user:{canary}@{refused}"),
        ] {
            if let Err(error) = Proxy::parse(&bad) {
                printed.push(format!("{error} {error:?}"));
            }
        }
        for text in printed {
            assert!(!text.contains("canary"), "{text}");
            // `user:sk-canary-4f8a1c` in base64.
            assert!(!text.contains("dXNlcjpzay1jYW5hcnk"), "{text}");
        }
        let identity = Pki::new().client("me");
        let key = identity.key.clone_key();
        let secret = format!("{:?}", &key.secret_der()[40..48]);
        let tls = TlsOptions::new().client_certificate(identity.chain.clone(), key);
        let text = format!("{tls:?} {tls:#?}");
        assert!(!text.contains(secret.trim_matches(['[', ']'])), "{text}");
    })
    .await;
}

// ---- Out of our errors ----

/// Everything that an error prints: one line without control characters, and no novel.
fn assert_printable(what: &str, error: &Error) {
    let mut texts = vec![error.to_string(), format!("{error:?}")];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    for text in texts {
        assert!(!text.contains(char::is_control), "{what}: {text:?}");
        assert!(text.len() < 1_500, "{what}: {} bytes", text.len());
    }
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    #[expect(dead_code, reason = "what is parsed is not looked at")]
    kind: Kind,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Known,
}

/// The error of a response with these bytes, wherever it shows.
async fn error_of(what: &str, bytes: Bytes) -> Error {
    let sim = Sim::http1(move |mut conn, _| {
        let bytes = bytes.clone();
        async move {
            conn.read_head().await;
            conn.send(&bytes).await;
            conn.close().await;
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    match client.get("/").send().await {
        Err(error) => error,
        Ok(response) => match response.error_for_status() {
            Err(error) => error,
            Ok(mut response) => response.json::<Known>().await.expect_err(what),
        },
    }
}

fn json(body: &str) -> Vec<u8> {
    let len = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\n\r\n{body}").into_bytes()
}

#[tokio::test(start_paused = true)]
async fn value_that_was_not_expected_is_printable_and_short_in_our_errors() {
    let escape = "\\u001b[2J\\u0007\\r\\n";
    let long = "x".repeat(50_000);
    for (what, body) in [
        ("wrong type", format!("\"{escape}\"")),
        ("long wrong type", format!("\"{long}\"")),
        ("unknown variant", format!("{{\"kind\": \"{escape}\"}}")),
        ("long unknown variant", format!("{{\"kind\": \"{long}\"}}")),
        ("unknown field", format!("{{\"{escape}\": 1}}")),
        ("long unknown field", format!("{{\"{long}\": 1}}")),
    ] {
        let error = error_of(what, json(&body).into()).await;
        assert_printable(what, &error);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_peer_says_is_printable_and_short_in_our_errors() {
    let long = "x".repeat(50_000);
    for (what, bytes) in [
        ("another protocol", b"\x1b[2J\r\n\x07".to_vec()),
        ("status line", b"HTTP/1.1 \x1b[2J\r\n\r\n".to_vec()),
        (
            "reason",
            b"HTTP/1.1 500 \xff\xfe\x9b2J\r\ncontent-length: 0\r\n\r\n".to_vec(),
        ),
        (
            "long reason",
            format!("HTTP/1.1 500 {long}\r\ncontent-length: 0\r\n\r\n").into_bytes(),
        ),
        (
            "header name",
            b"HTTP/1.1 200 OK\r\n\x1b[2J: x\r\n\r\n".to_vec(),
        ),
        (
            "long header name",
            format!("HTTP/1.1 200 OK\r\n{long} : x\r\n\r\n").into_bytes(),
        ),
        (
            "header value",
            b"HTTP/1.1 200 OK\r\na: \x1b[2J\r\n\r\n".to_vec(),
        ),
        (
            "length",
            format!("HTTP/1.1 200 OK\r\ncontent-length: {long}\r\n\r\n").into_bytes(),
        ),
        (
            "coding",
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, {long}\r\n\r\n").into_bytes(),
        ),
        (
            "chunk",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\x1b[2J\r\n".to_vec(),
        ),
        (
            "content-encoding",
            [
                b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-encoding: \x9b2J\xff".to_vec(),
                long.clone().into_bytes(),
                b"\r\n\r\n{}".to_vec(),
            ]
            .concat(),
        ),
        ("no JSON", json("\u{1b}[2J<html>\u{7}\r\n")),
        ("long no JSON", json(&long)),
    ] {
        let error = error_of(what, bytes.into()).await;
        assert_printable(what, &error);
    }
}

#[tokio::test]
async fn names_in_a_certificate_are_printable_and_short_in_our_errors() {
    in_time(async {
        let world = World::new().await;
        let label = "y".repeat(60);
        let names: Vec<_> = (0..500).map(|n| format!("{label}.{n}.evil.test")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let identity = world.pki.server(&names);
        let server = Server::builder()
            .identity(&identity, "api.test")
            .start()
            .await;
        let tls = TlsOptions::new()
            .builtin_roots(false)
            .add_root(world.pki.ca_der());
        let client = world.pool.client_builder(server.url("/")).tls(tls);
        let error = client.build().unwrap().get("/").send().await.unwrap_err();
        assert!(error.is_tls(), "{}", error.kind() == ErrorKind::Tls);
        assert_printable("names of a certificate", &error);
    })
    .await;
}
