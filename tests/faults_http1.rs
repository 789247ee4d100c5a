//! How HTTP/1.1 peers break the protocol, and the right answer to each. Whatever could make two readers disagree about
//! where a response ends is refused or costs the connection; the next request never sees a byte of the one before.
//!
//! | fault | test |
//! |---|---|
//! | an idle connection is closed just as it is used again | here: workers_that_think_as_long_as_the_server_waits_lose_nothing, close_that_waits_in_the_kernel...; `pool_policy.rs`: idle_time_at_which_a_peer_closes_is_learned...; `http1_peer.rs`: idle_connection_that_the_peer_closed..., request_lost_on_a_reused_connection... |
//! | 408, 400, CRLF or anything else on an idle connection | here: whatever_comes_on_an_idle_connection...; `http1_peer.rs`: late_bytes_on_an_idle_connection_close_it |
//! | a second response that nobody asked for, in the same write, right behind, while idle, just before the next request | here: second_response_is_nobodys..., bytes_that_wait_in_the_kernel...; `http1_peer.rs`: bytes_behind_a_response...; `pool_policy.rs`: origin_that_sent_more_than_it_was_asked_for... |
//! | excess bytes in the TLS record that ends the body | here: excess_in_the_same_tls_record... |
//! | a partial head, then FIN or silence | here: every_cut_of_a_response..., head_that_stops_half_way...; `bad_input.rs`: response_that_breaks_http1_is_told |
//! | a head of one byte at a time | here: head_of_one_byte_a_second...; `http1_peer.rs`: body_ends_where_its_framing_says... |
//! | oversized heads, 10,000 headers, endless heads | here: heads_are_bounded...; `bad_input.rs`: response_that_breaks_http1_is_told |
//! | bad status lines | here: status_line_is_taken_strictly |
//! | header syntax | here: header_fields_are_taken_strictly |
//! | forms of Content-Length | here: content_length_is_one_number... |
//! | Content-Length and Transfer-Encoding | here: transfer_encoding_wins..., length_that_transfer_encoding_overrides... |
//! | lists in Transfer-Encoding, Transfer-Encoding in HTTP/1.0 | here: chunked_must_come_last_and_once, coding_that_is_no_token_is_refused |
//! | chunk syntax, sizes and extensions | here: chunks_are_taken_strictly, chunk_extensions_are_bounded; fuzz target `chunked` |
//! | no last chunk, FIN before it | here: every_cut_of_a_response...; `bad_input.rs` |
//! | trailers: forbidden, huge, thousands, cut | here: trailers_stay_apart..., trailers_are_bounded..., every_cut_of_a_response... |
//! | a body shorter or longer than its length | here: every_cut_of_a_response..., second_response_is_nobodys...; `bad_input.rs` |
//! | bodies on HEAD, 204, 304, 205 | here: body_where_none_may_be...; `http1_peer.rs`: response_without_a_body_ends_at_its_head... |
//! | HTTP/1.0, close-delimited bodies, `Proxy-Connection` | here: persistence_is_what_version_and_connection_say; `http1_peer.rs`: connection_serves_again_only_if...; over TLS `bad_input.rs`: body_that_ends_without_close_notify... |
//! | 1xx: unasked, with fields, without end, unknown, 101, no final response | here: informational_responses_are_skipped..., final_response_that_never_comes..., end_after_an_informational...; `http1_peer.rs` |
//! | `Expect: 100-continue` | not offered: the body is sent at once, and a 100 is skipped like any other |
//! | the response comes before the request is out | here: early_answer_survives_the_reset...; `http1_peer.rs`: early_answer_to_an_upload... |
//! | the server resets after an early response | the same |
//! | a response before any request | here: response_before_any_request... |
//! | 101 to no upgrade, 200 to an upgrade, bytes right after 101, 101 before the request is out | here: upgrade_that_is_declined..., switch_in_the_middle_of_a_request...; `http1_peer.rs`: upgrade_hands_the_connection_over... |
//! | framing fields named in `Connection` | here: connection_field_cannot_take_framing_away |
//! | compression bombs | bodies are never decoded, nor asked for in compressed form: `http1_peer.rs`: request_head_is_well_formed..., `bad_input.rs`: body_that_is_not_what_was_asked_for... |
//! | reuse with an unread body | `pool_policy.rs`: unread_body_is_drained_within_its_bounds...; `http1_peer.rs`: body_dropped_half_way... |
//!
//! `http1_oracles.rs` reads the same bytes with other implementations.

mod common;
mod support;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use common::{World, eventually, in_time, join_all};
use firstbyte::{
    Body, Client, CloseReason, ConnectionPool, ConnectionUse, Error, ErrorKind, Phase, Protocols,
    ReplaySafety, Response, Timeouts,
};
use http::{HeaderMap, Method};
use support::gate::Gate;
use support::h1_peer::{H1Conn, H1Peer};
use support::sim::{self, Sim};
use tokio::time::{Instant, sleep, timeout};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const SECOND: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecond";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn escaped(bytes: &[u8]) -> String {
    let shown = bytes[..bytes.len().min(200)].escape_ascii();
    format!("`{shown}` of {} bytes", bytes.len())
}

/// A response read to its end.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

async fn read(response: Response) -> Result<Answer, Error> {
    let (parts, mut body) = response.into_http().into_parts();
    let mut answer = Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: Vec::new(),
        trailers: None,
    };
    let next = async |body: &mut firstbyte::ResponseBody| {
        std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut *body), cx)).await
    };
    while let Some(frame) = next(&mut body).await {
        match frame?.into_data() {
            Ok(data) => answer.body.extend_from_slice(&data),
            Err(frame) => answer.trailers = frame.into_trailers().ok(),
        }
    }
    Ok(answer)
}

/// What a peer does once it has sent what it was to send.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Close,
    /// Waits for the next request.
    Wait,
}

/// What became of a response, and of the connection behind it.
struct Seen {
    answer: Result<Answer, Error>,
    reused: bool,
    closed: Option<CloseReason>,
}

/// The first request of all is answered with these bytes, the others with SECOND.
async fn see_as(method: Method, bytes: &[u8], then: Then) -> Seen {
    let case = escaped(bytes);
    let bytes = Bytes::copy_from_slice(bytes);
    let sim = Sim::http1(move |mut conn, index| {
        let bytes = bytes.clone();
        async move {
            if index == 0 {
                conn.read_head().await;
                conn.send(&bytes).await;
                if then == Then::Close {
                    return conn.close().await;
                }
            }
            while !conn.read_head().await.is_empty() {
                conn.send(SECOND).await;
            }
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    let request = client.request(method, "/").timeout(millis(60_000));
    let answer = match request.send().await {
        Ok(response) => read(response).await,
        Err(error) => Err(error),
    };
    if let Err(error) = &answer {
        let text = error.to_string();
        assert!(!text.contains(char::is_control), "{case}: {text:?}");
        assert_eq!(error.attempts(), 1, "{case}: {text}");
    }
    // Whatever it was, the next request gets its own answer.
    let next = client.get("/").timeout(millis(60_000)).send().await;
    let next = next.expect(&case);
    let reused = next.connection_use() == ConnectionUse::Idle;
    assert_eq!(next.metrics().attempts, 1, "{case}");
    let next = read(next).await.expect(&case);
    assert_eq!((next.status, &*next.body), (200, &b"second"[..]), "{case}");
    let mut closed = pool.stats().closed;
    // Where it was excess bytes, the second connection is not kept either.
    closed.remove(&CloseReason::Distrusted);
    assert_eq!(closed.len(), usize::from(!reused), "{case}: {closed:?}");
    Seen {
        answer,
        reused,
        closed: closed.into_keys().next(),
    }
}

async fn see(bytes: impl AsRef<[u8]>, then: Then) -> Seen {
    see_as(Method::GET, bytes.as_ref(), then).await
}

/// Nothing of it reaches the caller.
async fn assert_refused(bytes: impl AsRef<[u8]>, kind: ErrorKind, phase: Phase) {
    let case = escaped(bytes.as_ref());
    for then in [Then::Wait, Then::Close] {
        let seen = see(bytes.as_ref(), then).await;
        let error = seen.answer.expect_err(&case);
        assert_eq!(
            (error.kind(), error.phase()),
            (kind, Some(phase)),
            "{case}: {error}"
        );
        assert_eq!(error.replay_safety(), ReplaySafety::Processed, "{case}");
        assert_eq!(seen.closed, Some(CloseReason::Failed), "{case}");
    }
}

async fn assert_answered(bytes: impl AsRef<[u8]>, status: u16, body: &[u8], reused: bool) {
    let case = escaped(bytes.as_ref());
    let seen = see(bytes.as_ref(), Then::Wait).await;
    let answer = seen.answer.expect(&case);
    assert_eq!((answer.status, &*answer.body), (status, body), "{case}");
    assert_eq!(seen.reused, reused, "{case}: {:?}", seen.closed);
}

fn client_of(peer: &H1Peer) -> (ConnectionPool, Client) {
    let pool = ConnectionPool::new();
    let client = pool.client_builder(format!("http://{}", peer.addr()));
    (pool.clone(), client.build().unwrap())
}

async fn text(client: &Client) -> (String, ConnectionUse) {
    let mut response = client.get("/").send().await.expect("it works");
    let how = response.connection_use();
    (response.text().await.expect("a body"), how)
}

// ---- Idle connections ----

/// The requests that a server really processed, by their paths.
type Processed = Arc<Mutex<HashMap<String, usize>>>;

async fn impatient(mut conn: H1Conn, patience: Duration, processed: Processed) {
    loop {
        let Ok(head) = timeout(patience, conn.read_head()).await else {
            return conn.close().await;
        };
        let Some(path) = head.split(' ').nth(1) else {
            return;
        };
        *processed
            .lock()
            .unwrap()
            .entry(path.to_owned())
            .or_default() += 1;
        conn.send(OK).await;
    }
}

#[tokio::test(start_paused = true)]
async fn workers_that_think_as_long_as_the_server_waits_lose_nothing() {
    let processed = Processed::default();
    let sim = Sim::http1({
        let processed = processed.clone();
        move |conn, _| impatient(conn, millis(50), processed.clone())
    });
    // Half a millisecond each way: a request can meet the end of its connection on the way.
    sim.way_takes(Duration::from_micros(500));
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    let end = Instant::now() + millis(10_000);
    let learned = || {
        let all = pool.connections();
        all.iter()
            .any(|c| c.limits().is_some_and(|l| l.learned_idle.is_some()))
    };
    let worker = async |worker: u64| {
        let (mut lost_before, mut after) = (0, 0);
        let mut random = worker + 1;
        for n in 0.. {
            // Thinks for 48 to 52 ms.
            random = random.wrapping_mul(6_364_136_223_846_793_005) + 1;
            sleep(Duration::from_micros(48_000 + (random >> 33) % 4_001)).await;
            if Instant::now() >= end {
                break;
            }
            let had_learned = learned();
            after += u32::from(had_learned);
            let method = [Method::GET, Method::POST][(n % 2) as usize].clone();
            let request = client.request(method.clone(), format!("/{worker}/{n}"));
            match request.send().await {
                Ok(mut response) => assert_eq!(response.text().await.unwrap(), "ok"),
                Err(error) => {
                    assert!(!had_learned, "lost after the limit was learned: {error}");
                    // A GET is made again on a fresh connection; a POST is the caller's to judge.
                    assert_eq!(method, Method::POST, "{error}");
                    assert_eq!(error.replay_safety(), ReplaySafety::MaybeProcessed);
                    lost_before += 1;
                }
            }
        }
        (lost_before, after)
    };
    let counts = join_all((0..8).map(worker)).await;
    let lost_before: u32 = counts.iter().map(|(lost, _)| lost).sum();
    let after: u32 = counts.iter().map(|(_, after)| after).sum();
    assert!(
        after > 1_000,
        "it was learned early: {after} requests after"
    );
    let processed = processed.lock().unwrap();
    let twice: Vec<_> = processed.iter().filter(|(_, n)| **n > 1).collect();
    assert!(twice.is_empty(), "processed twice: {twice:?}");
    let sent = pool.stats().total_requests;
    assert_eq!(
        processed.len() as u64 + u64::from(lost_before),
        sent,
        "all others were processed"
    );
    assert!(pool.stats().connections_reused > 0);
}

#[tokio::test(start_paused = true)]
async fn whatever_comes_on_an_idle_connection_is_nobodys_answer() {
    for stray in [
        "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 ",
        "\r\n",
        "\n",
        "\0",
        "0\r\n\r\n",
    ] {
        for closes in [true, false] {
            for waits in [true, false] {
                let gate = Gate::new();
                let sent = Arc::new(AtomicBool::new(false));
                let sim = Sim::http1({
                    let (gate, sent) = (gate.clone(), sent.clone());
                    move |mut conn, index| {
                        let (held, sent) = (gate.waiter(), sent.clone());
                        async move {
                            while !conn.read_head().await.is_empty() {
                                if index > 0 {
                                    conn.send(SECOND).await;
                                    continue;
                                }
                                conn.send(OK).await;
                                held.clone().opened().await;
                                conn.send(stray).await;
                                sent.store(true, Ordering::SeqCst);
                                if closes {
                                    return conn.close().await;
                                }
                            }
                        }
                    }
                });
                let pool = sim.pool(|pool| pool);
                let client = sim::client(&pool, Protocols::Http1);
                let case = format!("{stray:?}, closes: {closes}, waits: {waits}");
                assert_eq!(text(&client).await.0, "ok", "{case}");
                gate.open();
                eventually("it is sent", || sent.load(Ordering::SeqCst)).await;
                // It is asked for at once, or after the pool has noticed.
                if waits {
                    eventually("it is noticed", || pool.stats().open == 0).await;
                }
                let mut response = client.post("/").send().await.expect(&case);
                assert_eq!(response.text().await.unwrap(), "second", "{case}");
                assert_eq!(response.metrics().attempts, 1, "{case}");
                let closed = pool.stats().closed;
                assert_eq!(closed[&CloseReason::UnsolicitedBytes], 1, "{case}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn second_response_is_nobodys_whenever_it_comes() {
    let evil = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL";
    let firsts = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst", "first"),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n",
            "first",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\na: b\r\n\r\n",
            "first",
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", ""),
        ("HTTP/1.1 204 No Content\r\n\r\n", ""),
        (
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 44\r\n\r\n",
            "",
        ),
    ];
    for (first, body) in firsts {
        for excess in [evil, "H", "\r\n", "EVIL"] {
            // In the same write, in a write of its own, or cut in two anywhere.
            let whole = format!("{first}{excess}");
            for cut in [0, first.len() - 1, first.len(), whole.len() - 1] {
                let whole = whole.clone();
                let sim = Sim::http1(move |mut conn, index| {
                    let whole = whole.clone();
                    async move {
                        while !conn.read_head().await.is_empty() {
                            if index > 0 {
                                conn.send(SECOND).await;
                                continue;
                            }
                            conn.send(&whole[..cut]).await;
                            tokio::task::yield_now().await;
                            conn.send(&whole[cut..]).await;
                        }
                    }
                });
                let pool = sim.pool(|pool| pool);
                let client = sim::client(&pool, Protocols::Http1);
                let case = format!("{first:?} and {excess:?}, cut at {cut}");
                assert_eq!(text(&client).await.0, body, "{case}");
                // The rest may still be on its way while nobody looks.
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
                let (second, how) = text(&client).await;
                assert_eq!((&*second, how), ("second", ConnectionUse::New), "{case}");
                let closed = pool.stats().closed;
                assert_eq!(closed[&CloseReason::UnsolicitedBytes], 1, "{case}");
            }
        }
    }
}

/// The first connection answers one request, and on the signal sends once more, or ends, before it tells so.
fn peer_that_speaks_up(
    stray: Option<&'static [u8]>,
    signal: mpsc::Receiver<()>,
    told: mpsc::Sender<()>,
) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let read_head = |stream: &mut std::net::TcpStream| {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return false,
            }
        }
        true
    };
    std::thread::spawn(move || {
        let (mut first, _) = listener.accept().unwrap();
        assert!(read_head(&mut first));
        first.write_all(OK.as_bytes()).unwrap();
        signal.recv().unwrap();
        match stray {
            Some(stray) => first.write_all(stray).unwrap(),
            None => first.shutdown(std::net::Shutdown::Write).unwrap(),
        }
        told.send(()).unwrap();
        // A client that falls for it gets no further answer on the first connection.
        while let Ok((mut next, _)) = listener.accept() {
            while read_head(&mut next) {
                next.write_all(SECOND.as_bytes()).unwrap();
            }
        }
    });
    addr
}

/// What the next request finds when the kernel has something of the idle connection that the runtime does not know of.
async fn next_after_a_standstill(stray: Option<&'static [u8]>, reason: CloseReason) {
    let (signal, signalled) = mpsc::channel();
    let (tells, told) = mpsc::channel();
    let addr = peer_that_speaks_up(stray, signalled, tells);
    let pool = ConnectionPool::new();
    let client = pool.client_builder(format!("http://{addr}"));
    let client = client.build().unwrap();
    assert_eq!(text(&client).await.0, "ok");
    assert_eq!(pool.stats().idle, 1);
    // The one thread of the runtime stands still meanwhile, as it does in any long poll.
    signal.send(()).unwrap();
    told.recv().unwrap();
    let mut response = client.post("/").send().await.expect("an answer of its own");
    assert_eq!(response.text().await.unwrap(), "second");
    assert_eq!(response.connection_use(), ConnectionUse::New);
    let closed = pool.stats().closed;
    assert_eq!(closed.get(&reason), Some(&1), "{closed:?}");
}

#[tokio::test]
async fn bytes_that_wait_in_the_kernel_are_seen_right_before_the_next_request() {
    in_time(async {
        let evil = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL";
        next_after_a_standstill(Some(evil), CloseReason::UnsolicitedBytes).await;
        next_after_a_standstill(Some(b"\r\n"), CloseReason::UnsolicitedBytes).await;
    })
    .await;
}

#[tokio::test]
async fn close_that_waits_in_the_kernel_is_seen_right_before_the_next_request() {
    in_time(next_after_a_standstill(None, CloseReason::PeerClosedIdle)).await;
}

#[tokio::test]
async fn excess_in_the_same_tls_record_as_the_end_of_the_body_costs_the_connection() {
    in_time(async {
        let world = World::new().await;
        let identity = world.pki.server(&["api.test"]);
        for (first, excess) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "H"),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
                "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL",
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
                "\r\n",
            ),
        ] {
            for behind in [false, true] {
                let peer = H1Peer::start_tls(&identity, move |mut conn, index| async move {
                    while !conn.read_head().await.is_empty() {
                        match (index, behind) {
                            (0, false) => {
                                conn.send(format!("{first}{excess}")).await;
                            }
                            (0, true) => {
                                conn.send(first).await;
                                conn.send(excess).await;
                            }
                            _ => {
                                conn.send(SECOND).await;
                            }
                        }
                    }
                });
                let url = format!("https://api.test:{}", peer.port());
                let client = world.client_of(&url, Protocols::Http1);
                assert_eq!(text(&client).await.0, "ok");
                if behind {
                    eventually("the record of its own is noticed", || {
                        world.pool.stats().open == 0
                    })
                    .await;
                }
                let (second, how) = text(&client).await;
                let case = format!("{excess:?}, behind: {behind}");
                assert_eq!((&*second, how), ("second", ConnectionUse::New), "{case}");
                assert_eq!(peer.connections(), 2, "{case}");
                world.pool.close_idle();
            }
        }
        let closed = world.pool.stats().closed;
        assert_eq!(closed[&CloseReason::UnsolicitedBytes], 6, "{closed:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn response_before_any_request_is_not_its_answer() {
    for early in [SECOND, "HTTP/1.1 408 Request Timeout\r\n\r\n", "\r\n"] {
        let sim = Sim::http1(move |mut conn, index| async move {
            if index == 0 {
                conn.send(early).await;
            }
            while !conn.read_head().await.is_empty() {
                conn.send(OK).await;
            }
        });
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, Protocols::Http1);
        let warmed = client.warm(1).await.unwrap();
        assert_eq!((warmed.ready(), warmed.error.is_some()), (0, true));
        let (body, how) = text(&client).await;
        assert_eq!((&*body, how), ("ok", ConnectionUse::New), "{early:?}");
        assert_eq!(pool.stats().closed[&CloseReason::UnsolicitedBytes], 1);
    }
}

// ---- Heads ----

#[tokio::test(start_paused = true)]
async fn status_line_is_taken_strictly() {
    for line in [
        &b"HTTP/2.0 200 OK"[..],
        b"HTTP/2 200 OK",
        b"HTTP/0.9 200 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/1.10 200 OK",
        b"HTTP/1. 200 OK",
        b"HTTP/1 200 OK",
        b"HTTP/01.1 200 OK",
        b"http/1.1 200 OK",
        b"HTTPS/1.1 200 OK",
        b"ICY 200 OK",
        b"<html>HTTP/0.9 has no head</html>",
        b" HTTP/1.1 200 OK",
        b"\r\nHTTP/1.1 200 OK",
        b"HTTP/1.1\t200 OK",
        b"HTTP/1.1 200\tOK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 200OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 000 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1 2x0 OK",
        b"HTTP/1.1 +20 OK",
        b"HTTP/1.1 -20 OK",
        b"HTTP/1.1 0xc8 OK",
        b"HTTP/1.1 OK",
        b"HTTP/1.1 ",
        b"HTTP/1.1",
        b"HTTP/1.1 200 OK\rx: y",
        b"HTTP/1.1 200 OK\r",
        b"HTTP/1.1 200 O\0K",
        b"HTTP/1.1 200 \x1b[2J",
        b"HTTP/1.1 200 \x7f",
    ] {
        let bytes = [line, b"\r\ncontent-length: 0\r\n\r\n"].concat();
        assert_refused(&bytes, ErrorKind::Protocol, Phase::Wait).await;
    }
    // A reason may be missing, long or in another script, and a line may end in LF alone (RFC 9112 §4, §2.2).
    let long = format!("HTTP/1.1 200 {}", "x".repeat(30_000));
    for (line, status) in [
        (&b"HTTP/1.1 200"[..], 200),
        (b"HTTP/1.1 200 ", 200),
        (b"HTTP/1.1 200 caf\xe9\xff", 200),
        (b"HTTP/1.1 200 a\tb  c", 200),
        (b"HTTP/1.1 418 I'm a teapot", 418),
        (b"HTTP/1.1 999 Beyond", 999),
        (b"HTTP/1.1 600 Beyond", 600),
        (long.as_bytes(), 200),
    ] {
        for end in ["\r\n", "\n"] {
            let rest = format!("{end}content-length: 2{end}{end}ok");
            let bytes = [line, rest.as_bytes()].concat();
            assert_answered(&bytes, status, b"ok", true).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn header_fields_are_taken_strictly() {
    for field in [
        &b"a : b"[..],
        b"a\t: b",
        b": b",
        b"a b: c",
        b"no colon",
        b" a: b",
        b"\ta: b",
        b"x: y\r\n folded",
        b"x: y\r\n\tfolded",
        b"x: y\r\n \r\nz: a",
        b"content-length: 1\r\n 1",
        b"a: b\0c",
        b"a: b\x01c",
        b"a: b\x0bc",
        b"a: b\x1b[2Jc",
        b"a: b\x7fc",
        b"a: b\rc",
        b"a: b\r",
        b"\rcontent-length: 5",
        b"a\0: b",
        b"a\rb: c",
        b"n\xe4me: b",
        b"a(: b",
        b"a\"b: c",
        b"a@b: c",
        b"a,b: c",
    ] {
        for next in ["content-length: 2\r\n", ""] {
            let bytes = [
                b"HTTP/1.1 200 OK\r\n",
                next.as_bytes(),
                field,
                b"\r\n\r\nok",
            ]
            .concat();
            assert_refused(&bytes, ErrorKind::Protocol, Phase::Wait).await;
        }
    }
    for (field, value) in [
        (&b"a:b"[..], &b"b"[..]),
        (b"a:", b""),
        (b"a: ", b""),
        (b"a: \t b c\td \t ", b"b c\td"),
        (b"a: caf\xe9 \xff", b"caf\xe9 \xff"),
        (b"A: b\nx: y", b"b"),
        (b"a: b:c", b"b:c"),
        (b"!#$%&'*+-.^_`|~: b\r\na: c", b"c"),
    ] {
        let rest = b"\r\ncontent-length: 2\r\n\r\nok";
        let bytes = [b"HTTP/1.1 200 OK\r\n", field, rest].concat();
        let case = escaped(&bytes);
        let seen = see(&bytes, Then::Wait).await;
        let answer = seen.answer.expect(&case);
        assert_eq!(answer.headers["a"].as_bytes(), value, "{case}");
        assert!(seen.reused && answer.body == b"ok", "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn heads_are_bounded_to_the_byte_and_to_the_field() {
    let head = |bytes: usize| {
        let fixed = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: \r\n\r\n".len();
        let fill = "y".repeat(bytes - fixed);
        format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: {fill}\r\n\r\nok")
    };
    let fields = |n: usize| {
        let fields: String = (1..n).map(|n| format!("x-{n}: y\r\n")).collect();
        format!("HTTP/1.1 200 OK\r\n{fields}content-length: 2\r\n\r\nok")
    };
    assert_answered(head(65_536), 200, b"ok", true).await;
    assert_answered(fields(128), 200, b"ok", true).await;
    let endless = |piece: &str| format!("HTTP/1.1 200 OK\r\n{}", piece.repeat(70_000));
    for bytes in [
        head(65_537),
        head(1_000_000),
        fields(129),
        fields(5_000),
        format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(10_000)),
        format!("HTTP/1.1 200 OK\r\n{}: y\r\n\r\n", "x".repeat(70_000)),
        format!("HTTP/1.1 200 {}\r\n\r\n", "x".repeat(70_000)),
        endless("a: b\r\n"),
        endless("x"),
        format!("HTTP/1.1 {}", "2".repeat(70_000)),
        format!("HTTP/1.1 100 Continue\r\nx: {}\r\n\r\n", "y".repeat(70_000)),
    ] {
        assert_refused(bytes, ErrorKind::TooLarge, Phase::Wait).await;
    }
}

#[tokio::test(start_paused = true)]
async fn head_of_one_byte_a_second_is_bounded_by_the_timeouts_and_otherwise_whole() {
    let fill = "y".repeat(2_000);
    let head = Arc::new(format!(
        "HTTP/1.1 200 OK\r\nx: {fill}\r\ncontent-length: 2\r\n\r\nok"
    ));
    let sim = Sim::http1(move |mut conn, _| {
        let head = head.clone();
        async move {
            while !conn.read_head().await.is_empty() {
                for byte in head.as_bytes() {
                    sleep(millis(1_000)).await;
                    conn.send([*byte]).await;
                }
            }
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    for _ in 0..2 {
        let (body, _) = text(&client).await;
        assert_eq!(body, "ok");
    }
    assert_eq!(pool.stats().connections_created, 1);
    for (timeouts, limit) in [
        (Timeouts::default().first_byte(millis(10_500)), 10_500),
        (Timeouts::default().total(millis(20_500)), 20_500),
    ] {
        let start = Instant::now();
        let error = client.get("/").timeouts(timeouts).send().await.unwrap_err();
        assert_eq!(start.elapsed(), millis(limit), "{error}");
        assert!(error.is_timeout(), "{error}");
        assert_eq!(error.phase(), Some(Phase::Wait));
        assert_eq!((pool.stats().open, pool.stats().active), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn head_that_stops_half_way_is_bounded_by_the_timeouts() {
    for part in ["H", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK\r\na: b\r\n"] {
        let sim = Sim::http1(move |mut conn, index| async move {
            conn.read_head().await;
            conn.send(if index == 0 { part } else { OK }).await;
            conn.closed_by_client().await;
        });
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, Protocols::Http1);
        let timeouts = Timeouts::default().first_byte(millis(3_000));
        let error = client.get("/").timeouts(timeouts).send().await.unwrap_err();
        assert!(error.is_timeout(), "{part:?}: {error}");
        assert_eq!(
            (error.phase(), error.attempts()),
            (Some(Phase::Wait), 1),
            "{error}"
        );
        assert_eq!(pool.stats().open, 0, "{part:?}");
        assert_eq!(text(&client).await.0, "ok");
    }
}

/// Every beginning of these bytes, with the end of the connection behind it.
#[tokio::test(start_paused = true)]
async fn every_cut_of_a_response_is_an_error_and_never_a_shorter_response() {
    for whole in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n00\r\na: b\r\nc: d\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\ncontent-length: 5\n\nhello",
    ] {
        let body = whole.rfind("\r\n\r\nhello").map(|at| at + 4);
        let body = body.or_else(|| whole.find("\n\nhello").map(|at| at + 2));
        let body = body.or_else(|| whole.find("\r\n\r\n5").map(|at| at + 4));
        for cut in 0..whole.len() {
            let seen = see(&whole[..cut], Then::Close).await;
            let case = escaped(&whole.as_bytes()[..cut]);
            let error = seen.answer.expect_err(&case);
            let in_body = body.is_some_and(|body| cut >= body);
            let (kind, safety) = match cut {
                0 => (ErrorKind::ConnectionLost, ReplaySafety::MaybeProcessed),
                _ if in_body => (ErrorKind::Truncated, ReplaySafety::Processed),
                _ => (ErrorKind::ConnectionLost, ReplaySafety::Processed),
            };
            assert_eq!(
                (error.kind(), error.replay_safety()),
                (kind, safety),
                "{case}: {error}"
            );
            assert!(!seen.reused);
        }
        assert!(see(whole, Then::Close).await.answer.is_ok(), "{whole:?}");
    }
}

// ---- Where bodies end ----

#[tokio::test(start_paused = true)]
async fn content_length_is_one_number_or_the_response_is_refused() {
    let of = |value: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {value}\r\n\r\nhello");
    for value in [
        "-5",
        "+5",
        "0x5",
        "5.0",
        "5e0",
        "5, 6",
        "6, 5",
        "5,",
        ",5",
        "5,,5",
        "",
        " ",
        ",",
        "5 5",
        "5;5",
        "5\t5",
        "five",
        "\u{ff15}",
        "18446744073709551616",
        "99999999999999999999999999",
        "5\r\ncontent-length: 6",
        "5\r\nContent-Length:",
        "5, 5\r\nContent-Length: 7",
        "4294967301, 5",
    ] {
        assert_refused(of(value), ErrorKind::Protocol, Phase::Wait).await;
    }
    for value in [
        "5",
        "\t 5 \t",
        "05",
        "0000000000000000000000000000000005",
        "5, 5",
        "5,5 ,\t5",
        "5, 05",
        "5\r\ncontent-length: 5",
    ] {
        assert_answered(of(value), 200, b"hello", true).await;
    }
    // A length beyond anything is no reason to allocate, and no reason to believe a FIN.
    for value in ["9223372036854775808", "18446744073709551615"] {
        let error = see(of(value), Then::Close).await.answer.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Truncated, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn transfer_encoding_wins_over_a_length_and_the_connection_is_not_trusted() {
    let chunked = "5\r\nhello\r\n0\r\n\r\n";
    for fields in [
        "content-length: 3\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 3",
        "transfer-encoding: chunked\r\ncontent-length: 15",
        "transfer-encoding: gzip, chunked\r\ncontent-length: 0",
        "transfer-encoding: chunked\r\ncontent-length: nonsense",
        "transfer-encoding: chunked\r\ncontent-length: 3\r\ncontent-length: 4",
        "transfer-encoding: chunked\r\ncontent-length: 3\r\nconnection: keep-alive",
    ] {
        let bytes = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{chunked}");
        assert_answered(bytes, 200, b"hello", false).await;
    }
    // Without chunked the body ends with the connection, whatever length is told.
    let bytes = "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\ncontent-length: 2\r\n\r\nhello";
    let seen = see(bytes, Then::Close).await;
    assert_eq!(seen.answer.unwrap().body, b"hello");
    assert_eq!(seen.closed, Some(CloseReason::ResponseEnded));
}

#[tokio::test(start_paused = true)]
async fn length_that_transfer_encoding_overrides_is_no_hint_of_the_bodys_size() {
    for (coding, body) in [("chunked", "5\r\nhello\r\n0\r\n\r\n"), ("gzip", "hello")] {
        let bytes = format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: {coding}\r\ncontent-length: 3\r\n\r\n{body}"
        );
        let bytes = Bytes::from(bytes);
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
        let response = client.get("/").send().await.unwrap();
        // RFC 9112 §6.3 rule 3: the length is overridden. Whoever forwards the body would send it on.
        let hint = http_body::Body::size_hint(&response.into_body());
        assert_eq!(hint.exact(), None, "{coding}");
    }
}

#[tokio::test(start_paused = true)]
async fn chunked_must_come_last_and_once() {
    let chunked = "5\r\nhello\r\n0\r\n\r\n";
    let of = |coding: &str| {
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: {coding}\r\n\r\n{chunked}").into_bytes()
    };
    for coding in [
        "chunked",
        "Chunked",
        "CHUNKED",
        " \tchunked\t ",
        "gzip, chunked",
        "gzip;q=1,chunked",
        "identity, chunked",
        "gzip\r\ntransfer-encoding: chunked",
    ] {
        assert_answered(of(coding), 200, b"hello", true).await;
    }
    for coding in [
        "chunked, gzip",
        "chunked, chunked",
        "chunked, identity",
        "chunked\r\ntransfer-encoding: chunked",
        "chunked\r\ntransfer-encoding: gzip",
        "chunked,",
        ", chunked",
        "gzip,, chunked",
        "",
        ",",
    ] {
        assert_refused(of(coding), ErrorKind::Protocol, Phase::Wait).await;
    }
    for coding in [
        "identity",
        "gzip",
        "chunkedchunked",
        "xchunked",
        "chunked;q=1",
    ] {
        let seen = see(of(coding), Then::Close).await;
        assert_eq!(seen.answer.unwrap().body, chunked.as_bytes(), "{coding}");
        assert_eq!(seen.closed, Some(CloseReason::ResponseEnded), "{coding}");
    }
    // RFC 9112 §6.1: HTTP/1.0 knows no Transfer-Encoding, so its framing is not to be trusted.
    for fields in [
        "connection: keep-alive",
        "connection: keep-alive\r\ncontent-length: 5",
    ] {
        let bytes =
            format!("HTTP/1.0 200 OK\r\n{fields}\r\ntransfer-encoding: chunked\r\n\r\n{chunked}");
        assert_answered(bytes, 200, b"hello", false).await;
    }
}

/// RFC 9112 §7: a coding is a token with parameters. Other readers take such a list for none that ends in chunked.
#[tokio::test(start_paused = true)]
async fn coding_that_is_no_token_is_refused() {
    for coding in [
        &b"\xe9"[..],
        b"gz\xffip",
        b"gzip\xa0",
        b"a b",
        b"\"gzip\"",
        b"a@b",
    ] {
        let bytes = [
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: ",
            coding,
            b", chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ]
        .concat();
        assert_refused(&bytes, ErrorKind::Protocol, Phase::Wait).await;
    }
    // What only looks like chunked is refused or a body up to the end.
    for coding in ["\"chunked\"", "chunked gzip", "chun\u{212a}ed"] {
        let chunked = "5\r\nhello\r\n0\r\n\r\n";
        let bytes = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: {coding}\r\n\r\n{chunked}");
        let seen = see(bytes, Then::Close).await;
        match seen.answer {
            Ok(answer) => assert_eq!(answer.body, chunked.as_bytes(), "{coding}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Protocol, "{error}"),
        }
        assert!(!seen.reused, "{coding}");
    }
}

#[tokio::test(start_paused = true)]
async fn chunks_are_taken_strictly() {
    for chunks in [
        &b"0x5\r\nhello\r\n0\r\n\r\n"[..],
        b"-1\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5\t;a\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b";a=b\r\nhello\r\n0\r\n\r\n",
        b"g\r\nhello\r\n0\r\n\r\n",
        b"5_0\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\rhello\r\n0\r\n\r\n",
        b"5\r\r\nhello\r\n0\r\n\r\n",
        b"5;a\nhello\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"5;a\0\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5\r\nhello\r\n\r\n0\r\n\r\n",
        b"4\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n 0\r\n\r\n",
        b"5\r\nhello\r\n0\n\r\n",
        b"10000000000000000\r\nhello",
        b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\nhello",
        b"00000000000000005\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n00000000000000000\r\n\r\n",
        b"5\r\nhello\r\n0\r\n: b\r\n\r\n",
        b"5\r\nhello\r\n0\r\na b\r\n\r\n",
        b"5\r\nhello\r\n0\r\na: b\0\r\n\r\n",
        b"5\r\nhello\r\n0\r\na: b\r\n c\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\n\r\n\r\n",
        b"5\r\nhello\r\n0\r\na: b\n\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\n",
        b"5\r\nhello\r\n0\r\na: b\n\n",
        b"5\r\nhello\r\n0\r\na: b\n\r\n",
    ] {
        let bytes = [CHUNKED.as_bytes(), chunks].concat();
        assert_refused(&bytes, ErrorKind::Protocol, Phase::Receive).await;
    }
    for chunks in [
        "5\r\nhello\r\n0\r\n\r\n",
        "1\r\nh\r\n04\r\nello\r\n0\r\n\r\n",
        "0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n",
        "5;a\r\nhello\r\n0;b=c\r\n\r\n",
        "5;\r\nhello\r\n0\r\n\r\n",
        "5;a=\"unbalanced\r\nhello\r\n0\r\n\r\n",
        "5; a = b ; c\r\nhello\r\n0\r\n\r\n",
    ] {
        assert_answered(format!("{CHUNKED}{chunks}"), 200, b"hello", true).await;
    }
    let digits = format!(
        "{CHUNKED}1A\r\n{0}\r\n1a\r\n{0}\r\n0\r\n\r\n",
        "x".repeat(26)
    );
    assert_answered(digits, 200, &[b'x'; 52], true).await;
    // A chunk that never ends, as far as anybody can wait.
    let endless = format!("{CHUNKED}ffffffffffffffff\r\nhello");
    let error = see(endless, Then::Close).await.answer.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Truncated, "{error}");
}

#[tokio::test(start_paused = true)]
async fn chunk_extensions_are_bounded_all_together() {
    let one = |n: usize| format!("{CHUNKED}5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(n));
    assert_answered(one(16 * 1024), 200, b"hello", true).await;
    let many = format!("{CHUNKED}{}0\r\n\r\n", "1;aaaaaaa\r\nx\r\n".repeat(2_400));
    let endless = format!("{CHUNKED}5;{}", "x".repeat(1 << 20));
    for bytes in [one(16 * 1024 + 1), many, endless] {
        assert_refused(bytes, ErrorKind::Protocol, Phase::Receive).await;
    }
}

#[tokio::test(start_paused = true)]
async fn trailers_stay_apart_from_the_headers_and_change_nothing() {
    let forbidden = "content-length: 1\r\ntransfer-encoding: gzip\r\nhost: evil.test\r\n\
                     connection: close\r\nset-cookie: a=b\r\nauthorization: x\r\n\
                     content-encoding: gzip\r\nkeep-alive: timeout=0\r\nx-sum: 42\r\n";
    let bytes = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-sum: head\r\n\r\n\
         5\r\nhello\r\n0\r\n{forbidden}\r\n"
    );
    let seen = see(&bytes, Then::Wait).await;
    let answer = seen.answer.unwrap();
    assert_eq!(answer.body, b"hello");
    assert_eq!(answer.headers.len(), 2, "{:?}", answer.headers);
    assert_eq!(answer.headers["x-sum"], "head");
    let trailers = answer.trailers.unwrap();
    assert_eq!(
        (trailers.len(), &trailers["x-sum"]),
        (9, &"42".parse().unwrap())
    );
    assert!(
        seen.reused,
        "nothing was said in the head: {:?}",
        seen.closed
    );
    // Those who read the body alone never see them.
    let bytes = Bytes::from(bytes);
    let sim = Sim::http1(move |mut conn, _| {
        let bytes = bytes.clone();
        async move {
            while !conn.read_head().await.is_empty() {
                conn.send(&bytes).await;
            }
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    for how in [ConnectionUse::New, ConnectionUse::Idle] {
        assert_eq!(text(&client).await, ("hello".to_owned(), how));
    }
}

#[tokio::test(start_paused = true)]
async fn trailers_are_bounded_to_the_byte_and_to_the_field() {
    let with = |trailers: &str| format!("{CHUNKED}5\r\nhello\r\n0\r\n{trailers}\r\n");
    let fields = |n: usize| -> String { (0..n).map(|n| format!("x-{n}: y\r\n")).collect() };
    let bytes = |n: usize| format!("x: {}\r\n", "y".repeat(n - "x: \r\n\r\n".len()));
    for trailers in [fields(64), bytes(16 * 1024)] {
        assert_answered(with(&trailers), 200, b"hello", true).await;
    }
    for trailers in [
        fields(65),
        fields(10_000),
        bytes(16 * 1024 + 1),
        bytes(1 << 20),
        "x: y\r\n".repeat(100_000),
    ] {
        assert_refused(with(&trailers), ErrorKind::Protocol, Phase::Receive).await;
    }
    let endless = format!("{CHUNKED}0\r\nx: {}", "y".repeat(1 << 20));
    assert_refused(endless, ErrorKind::Protocol, Phase::Receive).await;
}

#[tokio::test(start_paused = true)]
async fn body_where_none_may_be_is_not_read_and_costs_the_connection() {
    let length = "content-length: 4";
    let chunked = "transfer-encoding: chunked";
    let evil = "HTTP/1.1 200 OK\r\n\r\nEVIL";
    for (method, status) in [
        (Method::HEAD, 200),
        (Method::HEAD, 404),
        (Method::GET, 204),
        (Method::GET, 304),
    ] {
        for fields in [length, chunked, "x: y", "content-length: nonsense"] {
            let head = format!("HTTP/1.1 {status} X\r\n{fields}\r\n\r\n");
            let case = format!("{method} {head:?}");
            let seen = see_as(method.clone(), head.as_bytes(), Then::Wait).await;
            let answer = seen.answer.expect(&case);
            assert_eq!((answer.status, answer.body.len()), (status, 0), "{case}");
            assert!(seen.reused, "{case}: {:?}", seen.closed);
            for body in ["EVIL", "4\r\nEVIL\r\n0\r\n\r\n", evil] {
                let bytes = format!("{head}{body}");
                let seen = see_as(method.clone(), bytes.as_bytes(), Then::Wait).await;
                let answer = seen.answer.expect(&case);
                assert_eq!(answer.body.len(), 0, "{case}{body:?}");
                let why = Some(CloseReason::UnsolicitedBytes);
                assert_eq!(seen.closed, why, "{case}{body:?}");
            }
        }
    }
    // RFC 9112 §6.3 makes no exception for 205: its framing holds.
    for (rest, body) in [
        ("content-length: 0\r\n\r\n", ""),
        ("content-length: 5\r\n\r\nhello", "hello"),
        ("transfer-encoding: chunked\r\n\r\n0\r\n\r\n", ""),
    ] {
        let bytes = format!("HTTP/1.1 205 Reset Content\r\n{rest}");
        assert_answered(bytes, 205, body.as_bytes(), true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn persistence_is_what_version_and_connection_say() {
    for (head, reused) in [
        ("HTTP/1.0 200 OK", false),
        ("HTTP/1.0 200 OK\r\nconnection: keep-alive", true),
        ("HTTP/1.0 200 OK\r\nconnection: x, Keep-Alive", true),
        ("HTTP/1.0 200 OK\r\nconnection: keep-alive, close", false),
        ("HTTP/1.0 200 OK\r\nproxy-connection: keep-alive", false),
        ("HTTP/1.0 200 OK\r\nkeep-alive: timeout=60", false),
        ("HTTP/1.0 200 OK\r\nconnection: keepalive", false),
        ("HTTP/1.1 200 OK\r\nconnection: x", true),
        ("HTTP/1.1 200 OK\r\nconnection:", true),
        ("HTTP/1.1 200 OK\r\nconnection: closed", true),
        ("HTTP/1.1 200 OK\r\nproxy-connection: close", true),
        (
            "HTTP/1.1 200 OK\r\nconnection: keep-alive\r\nconnection: close",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nconnection: close\r\nconnection: keep-alive",
            false,
        ),
        ("HTTP/1.1 200 OK\r\nconnection: ,, CLOSE ,", false),
    ] {
        let bytes = format!("{head}\r\ncontent-length: 2\r\n\r\nok");
        assert_answered(bytes, 200, b"ok", reused).await;
    }
    // Without a length a body ends with its connection, whoever promises to keep it.
    for head in [
        "HTTP/1.0 200 OK",
        "HTTP/1.1 200 OK",
        "HTTP/1.1 200 OK\r\nconnection: keep-alive",
    ] {
        let seen = see(format!("{head}\r\n\r\nuntil the end"), Then::Close).await;
        assert_eq!(seen.answer.unwrap().body, b"until the end", "{head}");
        assert_eq!(seen.closed, Some(CloseReason::ResponseEnded), "{head}");
    }
}

#[tokio::test(start_paused = true)]
async fn connection_field_cannot_take_framing_away() {
    for fields in [
        "connection: content-length\r\ncontent-length: 5",
        "content-length: 5\r\nconnection: content-length, keep-alive",
        "content-length: 5\r\nconnection: host, te, trailer, upgrade\r\nupgrade: h2c",
    ] {
        let bytes = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nhello");
        assert_answered(bytes, 200, b"hello", true).await;
    }
    let bytes = format!(
        "HTTP/1.1 200 OK\r\nconnection: transfer-encoding\r\n{}",
        &CHUNKED[17..]
    );
    assert_answered(
        format!("{bytes}5\r\nhello\r\n0\r\n\r\n"),
        200,
        b"hello",
        true,
    )
    .await;
}

// ---- Informational responses, uploads, upgrades ----

#[tokio::test(start_paused = true)]
async fn informational_responses_are_skipped_up_to_a_bound_and_leave_nothing_behind() {
    let kinds = [
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 100\r\nx-a: b\r\n\r\n",
        "HTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\nset-cookie: a=b\r\n\r\n",
        "HTTP/1.1 199 Whatever\r\ncontent-length: 44\r\n\r\n",
        "HTTP/1.1 150 X\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n",
        "HTTP/1.0 110 Old\r\n\r\n",
    ];
    for kind in kinds {
        for n in [1, 2, 32] {
            let bytes = format!("{}{OK}", kind.repeat(n));
            let seen = see(&bytes, Then::Wait).await;
            let answer = seen.answer.expect(kind);
            assert_eq!((answer.status, &*answer.body), (200, &b"ok"[..]), "{kind}");
            assert_eq!(answer.headers.len(), 1, "{kind}: {:?}", answer.headers);
            assert!(seen.reused, "{kind}");
        }
        let too_many = format!("{}{OK}", kind.repeat(33));
        assert_refused(too_many, ErrorKind::Protocol, Phase::Wait).await;
    }
    let mixed = format!("{}{OK}", kinds.concat());
    assert_answered(mixed, 200, b"ok", true).await;
    let endless = "HTTP/1.1 102 Processing\r\n\r\n".repeat(100_000);
    assert_refused(endless, ErrorKind::Protocol, Phase::Wait).await;
    for unasked in [
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    ] {
        assert_refused(unasked, ErrorKind::Protocol, Phase::Wait).await;
    }
}

#[tokio::test(start_paused = true)]
async fn final_response_that_never_comes_is_bounded_by_the_timeouts() {
    for pause in [1, 900] {
        let sim = Sim::http1(move |mut conn, _| async move {
            conn.read_head().await;
            for _ in 0..30 {
                conn.send("HTTP/1.1 102 Processing\r\n\r\n").await;
                sleep(millis(pause)).await;
            }
            conn.closed_by_client().await;
        });
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, Protocols::Http1);
        for timeouts in [
            Timeouts::default().first_byte(millis(5_000)),
            Timeouts::default().total(millis(5_000)),
        ] {
            let start = Instant::now();
            let error = client.get("/").timeouts(timeouts).send().await.unwrap_err();
            assert_eq!(start.elapsed(), millis(5_000), "a 102 is no first byte");
            assert!(error.is_timeout(), "{error}");
            assert_eq!(pool.stats().open, 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn end_after_an_informational_response_is_not_sent_again() {
    let sim = Sim::http1(|mut conn, _| async move {
        conn.read_head().await;
        conn.send(OK).await;
        conn.read_head().await;
        conn.send("HTTP/1.1 103 Early Hints\r\n\r\n").await;
        conn.close().await;
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    assert_eq!(text(&client).await.0, "ok");
    let error = client.get("/").send().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
    assert!(error.on_reused_connection() && error.attempts() == 1);
    assert_eq!(error.replay_safety(), ReplaySafety::Processed);
    assert_eq!((sim.dials(), pool.stats().retries), (1, 0));
}

/// A body that goes on for ever.
struct Endless(Bytes);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(Some(Ok(http_body::Frame::data(self.0.clone()))))
    }
}

#[tokio::test]
async fn early_answer_survives_the_reset_that_follows_it() {
    in_time(async {
        let world = World::new().await;
        let identity = world.pki.server(&["api.test"]);
        let big = Bytes::from(vec![b'y'; 20_000]);
        let script = |body: Bytes| {
            move |mut conn: H1Conn, index: usize| {
                let body = body.clone();
                async move {
                    conn.read_head().await;
                    if index > 0 {
                        conn.send(OK).await;
                        return conn.closed_by_client().await;
                    }
                    conn.read_body(50_000).await;
                    let head = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 20000\r\n\r\n";
                    conn.send([head.as_bytes(), &body].concat()).await;
                    // Most of the upload is unread: the kernel says so.
                    conn.reset();
                }
            }
        };
        for tls in [false, true] {
            for sized in [false, true] {
                let peer = if tls {
                    H1Peer::start_tls(&identity, script(big.clone()))
                } else {
                    H1Peer::start(script(big.clone()))
                };
                let scheme = if tls { "https" } else { "http" };
                let url = format!("{scheme}://api.test:{}", peer.port());
                let client = world.client_of(&url, Protocols::Http1);
                let body = if sized {
                    Body::from(vec![b'x'; 32 << 20])
                } else {
                    Body::wrap(Endless(Bytes::from(vec![b'x'; 100_000])))
                };
                let case = format!("tls: {tls}, sized: {sized}");
                let mut response = client.post("/").body(body).send().await.expect(&case);
                assert_eq!(response.status(), 413, "{case}");
                assert_eq!(response.bytes().await.expect(&case), big, "{case}");
                let (body, how) = text(&client).await;
                assert_eq!((&*body, how), ("ok", ConnectionUse::New), "{case}");
            }
        }
        let closed = world.pool.stats().closed;
        assert_eq!(closed[&CloseReason::UploadUnfinished], 4, "{closed:?}");
    })
    .await;
}

#[tokio::test]
async fn early_answer_ends_the_upload_though_the_server_goes_on_reading() {
    in_time(async {
        let gate = Gate::new();
        let held = gate.clone();
        let peer = H1Peer::start(move |mut conn, index| {
            let held = held.waiter();
            async move {
                conn.read_head().await;
                if index == 0 {
                    conn.read_body(10).await;
                    conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
                        .await;
                    held.opened().await;
                }
                conn.send("ok").await;
                // An upload that goes on would never end.
                conn.closed_by_client().await;
            }
        });
        let (pool, client) = client_of(&peer);
        let endless = Body::wrap(Endless(Bytes::from_static(b"0123456789")));
        let mut response = client.post("/").body(endless).send().await.unwrap();
        assert_eq!(response.status(), 200);
        gate.open();
        assert_eq!(response.text().await.unwrap(), "ok");
        eventually("it is closed", || pool.stats().open == 0).await;
        assert_eq!(pool.stats().closed[&CloseReason::UploadUnfinished], 1);
    })
    .await;
}

/// A body that is as long as it said and never says that it has ended, as a channel whose sender lives on.
struct Unending(Option<Bytes>);

impl http_body::Body for Unending {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        let data = self.0.take().filter(|data| !data.is_empty());
        data.map_or(std::task::Poll::Pending, |data| {
            std::task::Poll::Ready(Some(Ok(http_body::Frame::data(data))))
        })
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.0.as_ref().map_or(0, Bytes::len) as u64)
    }
}

#[tokio::test(start_paused = true)]
async fn server_of_http10_gets_no_chunks() {
    let sim = Sim::http1(|mut conn, _| async move {
        while let head = conn.read_head().await
            && !head.is_empty()
        {
            assert!(!head.contains("chunked"), "{head}");
            let length = if head.contains("content-length: 5") {
                5
            } else {
                0
            };
            conn.read_body(length).await;
            let answer = "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok";
            conn.send(answer).await;
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    assert_eq!(text(&client).await.0, "ok");
    let endless = Body::wrap(Endless(Bytes::from_static(b"0123456789")));
    let error = client.post("/").body(endless).send().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
    let mut response = client.post("/").body("hello").send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), "ok");
    assert_eq!(response.connection_use(), ConnectionUse::Idle);
}

#[tokio::test(start_paused = true)]
async fn body_that_gave_all_it_announced_is_sent() {
    for content in ["", "hello"] {
        let sim = Sim::http1(move |mut conn, _| async move {
            loop {
                if conn.read_head().await.is_empty() {
                    return;
                }
                assert_eq!(conn.read_body(content.len()).await.len(), content.len());
                conn.send(OK).await;
            }
        });
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, Protocols::Http1);
        for how in [ConnectionUse::New, ConnectionUse::Idle] {
            let body = Body::wrap(Unending(Some(content.into())));
            let mut response = client.post("/").body(body).send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "ok");
            assert_eq!(response.connection_use(), how, "{content:?}");
            assert!(response.timing().upload_end().is_some(), "{content:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn upgrade_that_is_declined_is_a_response_like_any_other() {
    for (answer, body) in [
        (OK, "ok"),
        (
            "HTTP/1.1 426 Upgrade Required\r\nupgrade: h2c\r\nconnection: upgrade\r\n\
             content-length: 2\r\n\r\nno",
            "no",
        ),
        (
            "HTTP/1.1 200 OK\r\nupgrade: echo\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\nok",
            "ok",
        ),
    ] {
        let sim = Sim::http1(move |mut conn, _| async move {
            while !conn.read_head().await.is_empty() {
                conn.send(answer).await;
            }
        });
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, Protocols::Http1);
        let ask = || {
            let request = client.get("/").header("upgrade", "echo");
            request.header("connection", "upgrade").send()
        };
        for how in [ConnectionUse::New, ConnectionUse::Idle] {
            let mut response = ask().await.unwrap();
            assert_eq!(response.connection_use(), how);
            assert_eq!(response.text().await.unwrap(), body);
            assert!(response.upgrade().unwrap_err().is_invalid());
        }
        assert_eq!(pool.stats().upgraded, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn switch_in_the_middle_of_a_request_is_refused() {
    let sim = Sim::http1(|mut conn, _| async move {
        conn.read_head().await;
        conn.send(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n",
        )
        .await;
        conn.closed_by_client().await;
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    // More than the pipe takes, and nobody reads it.
    let request = client.post("/").body(vec![b'x'; 1 << 20]);
    let request = request.header("upgrade", "echo");
    let sent = request.header("connection", "upgrade").send().await;
    // RFC 9110 §7.8: the new protocol begins once the request is completely sent; half a body is left in between.
    let error = sent.expect_err("no protocol begins in the middle of a message");
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert_eq!(pool.stats().open, 0);
}
