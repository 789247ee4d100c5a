//! How HTTP/2 peers misbehave beyond a single wrong frame, and the right answer to each.
//!
//! | fault | answer | test |
//! |---|---|---|
//! | GOAWAY of all streams, then of the true last one | what runs ends, new requests find a successor, none is lost | here; `rotation.rs`: unforeseen_goaway_has_the_next_connection_dialled... |
//! | GOAWAY below streams that were sent | these are made again elsewhere, whatever their method; the others end | here; `http2_peer.rs`: goaway_below_the_stream..., answer_still_comes... |
//! | GOAWAY with an error code | the same; on the first request of a connection it refuses the connection, which is not dialled again | here; `http2_peer.rs`: peer_that_refuses_the_connection_itself... |
//! | GOAWAY lowered, raised, on a stream | moves more; a connection error | here; `rfc9113.rs`: goaway_lets_the_streams_it_covers_end... |
//! | GOAWAY in place of SETTINGS | refused or sent again within bounds; warming says so | here |
//! | GOAWAY and nothing more | the client closes when its streams have ended | here |
//! | every connection refuses | three attempts a request, within the origin's budget | here; `faults_pool.rs`: server_that_refuses_everything... |
//! | REFUSED_STREAM once, always | made again twice | `http2_peer.rs`: refused_stream_is_sent_again... |
//! | RST_STREAM at each moment | what came before is delivered; NO_ERROR behind a complete response is success | `rfc9113.rs`: reset_of_the_peer_ends_its_stream... |
//! | MAX_CONCURRENT_STREAMS 0, lowered, raised, not yet known | a line of our own with its timeout | `streams.rs`; `http2_peer.rs`: burst_into_a_small_limit... |
//! | the stream limit is reached | further connections, first come, first served | `streams.rs`: thousand_requests..., further_connection... |
//! | a slow reader | the connection's window grows, then the slowest is reset | `unread.rs`; `faults_pool.rs`: responses_that_nobody_polls... |
//! | windows that overflow, turn negative, are huge, are exceeded | FLOW_CONTROL_ERROR; exact books | `rfc9113.rs`: increment_of_nothing..., upload_keeps_to_windows..., peer_that_sends_more... |
//! | no WINDOW_UPDATE for an upload | the caller's timeouts; the stream is given back | here |
//! | windows that leak | none does: thousands of requests cut short in every way | here |
//! | PING unanswered | asked, doubted, given up | `health.rs` |
//! | PING and SETTINGS floods | answered one by one, and never ahead of the peer | here |
//! | SETTINGS never sent | the connect timeout | `health.rs`: peer_that_never_sends_settings... |
//! | our SETTINGS never acknowledged | h2 does not ask for it: served all the same | here |
//! | wrong SETTINGS | a connection error | `rfc9113.rs`: settings_are_checked... |
//! | CONTINUATION without end | ended after a few frames | here; interleaved: `rfc9113.rs`: header_block_is_one_piece |
//! | HPACK | a connection error; a bound on what is decoded | `rfc9113.rs`: block_that_does_not_decode...; `http2_peer.rs`: head_beyond_the_bound...; here |
//! | malformed responses, pushes | a stream error, a connection error | `rfc9113.rs`: malformed_head..., nothing_is_pushed |
//! | empty and tiny DATA | what servers do in earnest is survived, a flood ends in an error of its own | `unread.rs`; here; `http2_peer.rs`: empty_data_frames_are_harmless |
//! | we cancel a great many | resets are paced, the connection is replaced before it runs short | `resets.rs` |
//! | 421, HTTP_1_1_REQUIRED | once on a connection of its own; once over HTTP/1.1 | `http2_peer.rs`: misdirected_request..., peer_that_requires_http1... |
//! | the peer resets, or makes us reset, every stream | each fails alone | here |
//! | one name for several origins (coalescing) | never done | `identities.rs` |
//! | FIN or RST in the middle | all streams fail with what is known, all who wait go on | here; `http2_peer.rs`: connection_cut_in_the_middle... |
//! | frames, flags and settings that nobody knows | ignored | `rfc9113.rs`: what_is_not_known_is_ignored |
//! | stream ids run out | the connection is replaced | `rfc9113.rs`: stream_ids_that_the_peer_uses_up... (2^30 requests do it too, but nobody waits for those) |
//! | many first requests at once | one dial | `journey.rs`: unknown_protocol_is_found_out_by_one_dial, fifty_at_once... |
//! | the one who dials is cancelled, or out of time | the others inherit the dial | `cancel.rs`: those_who_wait_inherit...; `pool_policy.rs`: those_who_wait_inherit... |
//! | over a proxy's tunnel | the route is part of the identity | `proxy.rs`: connections_are_never_shared...; `identities.rs` |
//! | frames too long, padding | FRAME_SIZE_ERROR, PROTOCOL_ERROR | `rfc9113.rs`: frame_of_a_wrong_length..., padding_is_taken_off... |

mod common;
mod support;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use common::{eventually, in_time, join_all};
use firstbyte::{
    Body, Client, CloseReason, ConnectionPool, Error, ErrorKind, Http2Options, Phase, Protocols,
    ReplaySafety, Response, Timeouts,
};
use http::Method;
use support::gate::Gate;
use support::h2_peer::{Frame, H2Conn, H2Peer, code, encode, flag, kind, setting};
use support::sim::{self, Sim};
use tokio::time::{Instant, sleep, timeout, timeout_at};

const OK: &[(&str, &str)] = &[(":status", "200")];
const ALL: u32 = 0x7fff_ffff;
/// The smallest there is, and what every connection begins with (RFC 9113 §6.9.2).
const WINDOW: u32 = 65_535;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Lets everybody do what there is to do: the paused clock moves only then.
async fn settle() {
    sleep(millis(1)).await;
}

fn client(pool: &ConnectionPool) -> Client {
    sim::client(pool, Protocols::Http2PriorKnowledge)
}

fn one_connection() -> Http2Options {
    Http2Options::default().max_connections_per_origin(1)
}

async fn get(client: &Client) -> String {
    let mut response = client.get("/").send().await.expect("an answer");
    response.text().await.expect("a body")
}

/// What came of a response body.
async fn read(response: &mut Response) -> (usize, Option<Error>) {
    let mut len = 0;
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => len += chunk.len(),
            Ok(None) => return (len, None),
            Err(error) => return (len, Some(error)),
        }
    }
}

async fn answer(conn: &mut H2Conn, stream: u32, text: &str) {
    conn.headers(stream, OK, false).await;
    conn.data(stream, text, true).await;
}

/// Goes on for so long, in which PINGs are answered and all else is thrown away.
async fn live_for(conn: &mut H2Conn, time: Duration) {
    let until = Instant::now() + time;
    while timeout_at(until, conn.readable()).await.is_ok() && conn.read_frame().await.is_some() {}
}

/// Answers every request with this text until the client ends.
async fn serve(conn: &mut H2Conn, text: &str) {
    while let Some(frame) = conn.read_frame().await {
        if frame.kind == kind::HEADERS {
            answer(conn, frame.stream, text).await;
        }
    }
}

fn assert_told(error: &Error, kind: ErrorKind, safety: ReplaySafety) {
    assert_eq!(
        (error.kind(), error.replay_safety()),
        (kind, safety),
        "{error}"
    );
    assert!(!error.to_string().chars().any(char::is_control), "{error}");
}

/// A body that can be had once: some bytes, and then nothing more until it is dropped, or its end.
struct Once {
    bytes: Option<Bytes>,
    ends: bool,
}

impl Once {
    fn body(ends: bool) -> Body {
        Body::wrap(Self {
            bytes: Some(Bytes::from_static(b"once")),
            ends,
        })
    }
}

impl http_body::Body for Once {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        match self.bytes.take() {
            Some(bytes) => Poll::Ready(Some(Ok(http_body::Frame::data(bytes)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

// --- GOAWAY ---

#[tokio::test(start_paused = true)]
async fn goaway_in_two_steps_under_load_loses_no_request_and_sends_none_twice() {
    const PER_CONNECTION: usize = 25;
    const REQUESTS: usize = 500;
    let taken = Arc::new(AtomicUsize::new(0));
    let sim = Sim::http2({
        let taken = taken.clone();
        move |mut conn, _| {
            let taken = taken.clone();
            async move {
                conn.handshake(&[]).await;
                let (mut last, mut count) = (0, 0);
                let mut open = VecDeque::new();
                let mut say_last = None;
                // Answers come late, so that some streams are always under way.
                loop {
                    let is_first = count >= PER_CONNECTION && say_last.is_none();
                    if is_first {
                        // What is under way when it arrives is still taken.
                        conn.goaway(ALL, code::NO_ERROR, "").await;
                        say_last = Some(Instant::now() + millis(20));
                    }
                    if say_last.is_some_and(|at| Instant::now() >= at) {
                        conn.goaway(last, code::NO_ERROR, "").await;
                        break;
                    }
                    if timeout(millis(5), conn.readable()).await.is_ok() {
                        match conn.read_frame().await {
                            Some(frame) if frame.kind == kind::HEADERS => {
                                count += 1;
                                last = frame.stream;
                                open.push_back(frame.stream);
                            }
                            Some(_) => {}
                            None => return,
                        }
                        if open.len() <= 8 {
                            continue;
                        }
                    }
                    if let Some(stream) = open.pop_front() {
                        taken.fetch_add(1, Ordering::SeqCst);
                        answer(&mut conn, stream, "ok").await;
                    }
                }
                for stream in open {
                    sleep(millis(1)).await;
                    taken.fetch_add(1, Ordering::SeqCst);
                    answer(&mut conn, stream, "ok").await;
                }
                conn.closed_by_client().await;
            }
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = client(&pool);
    let mut running = Vec::new();
    for n in 0..REQUESTS {
        let client = client.clone();
        running.push(tokio::spawn(async move {
            let request = if n % 2 == 0 {
                client.post("/").body(Once::body(true))
            } else {
                client.get("/")
            };
            let mut response = request.send().await.expect("an answer");
            assert_eq!(response.text().await.expect("a body"), "ok");
            response.metrics().attempts
        }));
        sleep(millis(1)).await;
    }
    for request in running {
        assert_eq!(request.await.expect("no panic"), 1);
    }
    settle().await;
    assert_eq!(taken.load(Ordering::SeqCst), REQUESTS);
    assert!(
        sim.dials() >= REQUESTS / (2 * PER_CONNECTION),
        "{}",
        sim.dials()
    );
    assert!(sim.live() <= 1, "those that went away are closed");
    assert_eq!(pool.stats().retries, 0);
}

#[tokio::test(start_paused = true)]
async fn goaway_moves_what_it_does_not_cover_whatever_its_method_and_leaves_the_rest() {
    for code in [
        code::NO_ERROR,
        code::INTERNAL_ERROR,
        code::ENHANCE_YOUR_CALM,
        0xdead_beef,
    ] {
        let sim = Sim::http2(move |mut conn, index| async move {
            conn.handshake(&[]).await;
            if index > 0 {
                return serve(&mut conn, "new").await;
            }
            let mut streams = Vec::new();
            for _ in 0..8 {
                streams.push(conn.read_kind(kind::HEADERS).await.expect("no end").stream);
            }
            conn.goaway(streams[2], code, b"bye\x1b[2J\r\n").await;
            for stream in &streams[..3] {
                answer(&mut conn, *stream, "old").await;
            }
            conn.closed_by_client().await;
        });
        let pool = sim.pool(|pool| pool);
        let client = client(&pool);
        client
            .warm(1)
            .await
            .expect("a sound connection")
            .into_result()
            .unwrap();
        let methods = [
            Method::POST,
            Method::GET,
            Method::PUT,
            Method::POST,
            Method::PATCH,
            Method::DELETE,
            Method::PUT,
        ];
        let requests = methods.map(|method| {
            let request = client.request(method, "/").body("twice if need be");
            tokio::spawn(async move {
                let mut response = request.send().await?;
                Ok::<_, Error>((response.text().await?, response.metrics().attempts))
            })
        });
        settle().await;
        // Begun, it cannot be sent again.
        let once = client.post("/").body(Once::body(true)).send().await;
        assert_told(
            &once.expect_err("it is not covered"),
            ErrorKind::Refused,
            ReplaySafety::Unprocessed,
        );
        for (n, request) in requests.into_iter().enumerate() {
            let outcome = request.await.expect("no panic").expect("an answer");
            let expected = if n < 3 { ("old", 1) } else { ("new", 2) };
            assert_eq!((&*outcome.0, outcome.1), expected, "{n}, {code:#x}");
        }
        settle().await;
        assert_eq!((sim.dials(), sim.live()), (2, 1), "{code:#x}");
        assert_eq!(pool.stats().retries, 4);
    }
}

#[tokio::test(start_paused = true)]
async fn goaway_that_is_lowered_moves_more_and_each_request_once() {
    let sim = Sim::http2(|mut conn, index| async move {
        conn.handshake(&[]).await;
        if index > 0 {
            return serve(&mut conn, "new").await;
        }
        let mut streams = Vec::new();
        for _ in 0..6 {
            streams.push(conn.read_headers().await.stream);
        }
        for last in [ALL, streams[4], streams[3], streams[1]] {
            conn.goaway(last, code::NO_ERROR, "").await;
            settle().await;
        }
        for stream in &streams[..2] {
            answer(&mut conn, *stream, "old").await;
        }
        conn.closed_by_client().await;
    });
    let pool = sim.pool(|pool| pool);
    let client = client(&pool);
    client
        .warm(1)
        .await
        .expect("a sound connection")
        .into_result()
        .unwrap();
    let answers = join_all((0..6).map(|_| get(&client))).await;
    assert_eq!(answers, ["old", "old", "new", "new", "new", "new"]);
    assert_eq!((sim.dials(), pool.stats().retries), (2, 4));
}

#[tokio::test(start_paused = true)]
async fn request_that_goaway_covers_and_nobody_answers_may_have_been_processed() {
    // The end of the connection decides; whatever reason GOAWAY gave.
    for code in [
        code::NO_ERROR,
        code::INTERNAL_ERROR,
        code::HTTP_1_1_REQUIRED,
    ] {
        let sim = Sim::http2(move |mut conn, index| async move {
            conn.handshake(&[]).await;
            if index > 0 {
                return serve(&mut conn, "new").await;
            }
            let first = conn.read_headers().await.stream;
            answer(&mut conn, first, "ok").await;
            let half = conn.read_headers().await.stream;
            conn.headers(half, OK, false).await;
            conn.data(half, "half", false).await;
            let waits = conn.read_headers().await.stream;
            settle().await;
            conn.goaway(waits, code, b"\x07bell").await;
            conn.close().await;
        });
        let pool = sim.pool(|pool| pool);
        let client = client(&pool);
        get(&client).await;
        let mut half = client.get("/").send().await.expect("a head");
        let error = client.get("/").send().await.expect_err("no answer");
        assert_told(
            &error,
            ErrorKind::ConnectionLost,
            ReplaySafety::MaybeProcessed,
        );
        assert_eq!(error.phase(), Some(Phase::Wait));
        let (len, error) = read(&mut half).await;
        assert_eq!(len, 4);
        assert_told(
            &error.expect("no end"),
            ErrorKind::ConnectionLost,
            ReplaySafety::Processed,
        );
        assert_eq!(get(&client).await, "new");
        settle().await;
        assert_eq!((sim.dials(), sim.live()), (2, 1), "{code:#x}");
        assert_eq!(pool.stats().closed[&CloseReason::GoAway], 1);
    }
}

#[tokio::test(start_paused = true)]
async fn goaway_in_place_of_settings_is_a_refusal_within_bounds() {
    for (code, kind, attempts) in [
        (code::NO_ERROR, ErrorKind::Refused, 3),
        (code::ENHANCE_YOUR_CALM, ErrorKind::ConnectionLost, 1),
        (code::HTTP_1_1_REQUIRED, ErrorKind::Http1Required, 1),
    ] {
        for answers_preface in [false, true] {
            let sim = Sim::http2(move |mut conn, index| async move {
                if index as u32 >= attempts {
                    conn.handshake(&[]).await;
                    return serve(&mut conn, "ok").await;
                }
                conn.accept_preface().await;
                conn.read_headers().await;
                if answers_preface {
                    conn.settings(&[]).await;
                }
                conn.goaway(0, code, b"busy\0").await;
                conn.closed_by_client().await;
            });
            let pool = sim.pool(|pool| pool);
            let client = client(&pool);
            let error = client
                .post("/")
                .body("x")
                .send()
                .await
                .expect_err("refused");
            assert_told(&error, kind, ReplaySafety::Unprocessed);
            assert_eq!(error.attempts(), attempts);
            settle().await;
            // After a refusal in good order the next connection is there before it is asked for.
            let spare = usize::from(code == code::NO_ERROR);
            assert_eq!(sim.dials(), attempts as usize + spare);
            assert_eq!((sim.live(), pool.stats().open), (spare, spare));
            assert_eq!(get(&client).await, "ok");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn warming_is_told_of_a_goaway_and_does_not_wait() {
    for says_settings in [false, true] {
        let sim = Sim::http2(move |mut conn, _| async move {
            conn.accept_preface().await;
            conn.cork();
            if says_settings {
                conn.settings(&[]).await;
            }
            conn.goaway(0, code::NO_ERROR, "").await;
            conn.flush().await;
            conn.closed_by_client().await;
        });
        let pool = sim.pool(|pool| pool);
        let client = client(&pool);
        let began = Instant::now();
        let report = client.warm(1).await.expect("a report");
        assert!(report.clone().into_result().is_err());
        assert!(began.elapsed() < millis(1_000), "{:?}", began.elapsed());
        assert_eq!(report.ready(), 0, "{says_settings}");
        assert!(report.error.is_some(), "{says_settings}");
        settle().await;
        assert_eq!((sim.live(), pool.stats().open), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn goaway_and_nothing_more_leaves_the_end_to_the_client() {
    // Streams that end by themselves, and one that nobody ends.
    let sim = Sim::http2(|mut conn, index| async move {
        conn.handshake(&[]).await;
        if index > 0 {
            return serve(&mut conn, "new").await;
        }
        let first = conn.read_headers().await.stream;
        let second = conn.read_headers().await.stream;
        conn.goaway(ALL, code::NO_ERROR, "").await;
        live_for(&mut conn, millis(60_000)).await;
        answer(&mut conn, first, "old").await;
        let reset = conn.read_kind(kind::RST_STREAM).await.expect("a reset");
        assert_eq!(reset.stream, second);
        conn.closed_by_client().await;
    });
    let pool = sim.pool(|pool| pool);
    let client = client(&pool);
    client
        .warm(1)
        .await
        .expect("a sound connection")
        .into_result()
        .unwrap();
    let first = tokio::spawn({
        let client = client.clone();
        async move { get(&client).await }
    });
    settle().await;
    let request = client.get("/").timeout(millis(90_000));
    let second = tokio::spawn(async move { request.send().await });
    settle().await;
    for _ in 0..10 {
        assert_eq!(get(&client).await, "new");
    }
    assert_eq!(first.await.expect("no panic"), "old");
    settle().await;
    assert_eq!(sim.live(), 2, "one stream is still open");
    let error = second.await.expect("no panic").expect_err("no answer");
    assert_told(&error, ErrorKind::Timeout, ReplaySafety::MaybeProcessed);
    settle().await;
    assert_eq!((sim.live(), pool.stats().open), (1, 1));
    assert_eq!(pool.stats().closed[&CloseReason::GoAway], 1);
}

#[tokio::test(start_paused = true)]
async fn storm_of_refusals_is_bounded_and_passes() {
    const STORM: usize = 200;
    let heads = Arc::new(AtomicUsize::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let sim = Sim::http2({
        let (heads, is_over) = (heads.clone(), is_over.clone());
        move |mut conn, _| {
            let (heads, is_over) = (heads.clone(), is_over.clone());
            async move {
                conn.handshake(&[]).await;
                if is_over.load(Ordering::SeqCst) {
                    return serve(&mut conn, "calm").await;
                }
                conn.read_headers().await;
                heads.fetch_add(1, Ordering::SeqCst);
                conn.goaway(0, code::NO_ERROR, "").await;
                while let Some(frame) = conn.read_frame().await {
                    let is_head = frame.kind == kind::HEADERS;
                    heads.fetch_add(usize::from(is_head), Ordering::SeqCst);
                }
            }
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = client(&pool);
    for burst in [1, STORM - 1] {
        for result in join_all((0..burst).map(|_| client.post("/").body("x").send())).await {
            let error = result.expect_err("everybody is refused");
            assert!(error.attempts() <= 3, "{error}");
            assert!(
                matches!(
                    error.replay_safety(),
                    ReplaySafety::Unprocessed | ReplaySafety::NotSent
                ),
                "{error}"
            );
        }
    }
    let heads = heads.load(Ordering::SeqCst);
    // A fifth of the requests and ten a second may be made again, and those that met a connection before its SETTINGS.
    let bound = STORM / 2;
    assert!(pool.stats().retries <= bound as u64, "{:?}", pool.stats());
    assert!(heads <= STORM + bound, "{heads}");
    assert!(sim.dials() <= 20, "{}", sim.dials());
    is_over.store(true, Ordering::SeqCst);
    // One connection was made before and still refuses; by then there is a budget again.
    sleep(millis(10_000)).await;
    assert_eq!(get(&client).await, "calm");
}

// --- Uploads and windows ---

#[tokio::test(start_paused = true)]
async fn upload_without_window_runs_out_of_time_and_gives_its_stream_back() {
    let silence = Timeouts::default();
    for (timeouts, told) in [
        (silence.first_byte(millis(2_000)), "first_byte"),
        (silence.total(millis(2_000)), "timeout"),
    ] {
        let resets = Arc::new(Mutex::new(Vec::new()));
        let sim = Sim::http2({
            let resets = resets.clone();
            move |mut conn, _| {
                let resets = resets.clone();
                async move {
                    conn.handshake(&[(setting::MAX_CONCURRENT_STREAMS, 1)])
                        .await;
                    let mut got = 0;
                    while let Some(frame) = conn.read_frame().await {
                        match frame.kind {
                            kind::HEADERS if frame.is_end_stream() => {
                                answer(&mut conn, frame.stream, "ok").await;
                            }
                            kind::DATA => got += frame.len,
                            kind::RST_STREAM => {
                                resets.lock().unwrap().push((frame.code(), got));
                            }
                            _ => {}
                        }
                    }
                }
            }
        });
        let pool = sim.pool(|pool| pool.http2(one_connection()));
        let client = client(&pool);
        get(&client).await;
        let request = client.post("/").body(vec![b'x'; 200_000]);
        let error = request
            .timeouts(timeouts)
            .send()
            .await
            .expect_err("no window");
        assert_told(&error, ErrorKind::Timeout, ReplaySafety::MaybeProcessed);
        assert_eq!(error.phase(), Some(Phase::Send));
        assert!(error.to_string().contains(told), "{error}");
        assert_eq!(pool.stats().active, 0);
        // The only stream there is.
        assert_eq!(get(&client).await, "ok");
        assert_eq!(sim.dials(), 1);
        let resets = resets.lock().unwrap().clone();
        assert_eq!(resets, [(Some(code::CANCEL), WINDOW as usize)]);
    }
}

/// The connection's window as the peer counts it.
struct Window(i64);

impl Window {
    async fn send(&mut self, conn: &mut H2Conn, stream: u32, payload: &[u8], flags: u8) {
        self.0 -= payload.len() as i64;
        assert!(self.0 >= 0, "the window leaks: nothing is left");
        conn.frame(kind::DATA, flags, stream, payload).await;
    }

    fn see(&mut self, frame: &Frame) {
        if frame.kind == kind::WINDOW_UPDATE && frame.stream == 0 {
            let n = frame.payload[..].try_into().expect("4 bytes");
            self.0 += i64::from(u32::from_be_bytes(n));
        }
    }
}

/// The ways in which a response is cut short, or not. The caller and the peer go through them in step.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Whole,
    Padded,
    Trailers,
    PeerResets,
    PeerResetsAndSendsOn,
    PeerBreaksLength,
    CallerDropsHead,
    CallerDropsHalf,
    CallerDropsUnread,
    CallerDropsBeforeTheHead,
}

const MANNERS: [Manner; 10] = [
    Manner::Whole,
    Manner::Padded,
    Manner::Trailers,
    Manner::PeerResets,
    Manner::PeerResetsAndSendsOn,
    Manner::PeerBreaksLength,
    Manner::CallerDropsHead,
    Manner::CallerDropsHalf,
    Manner::CallerDropsUnread,
    Manner::CallerDropsBeforeTheHead,
];

/// A response of a few kilobytes in this manner.
async fn misanswer(conn: &mut H2Conn, window: &mut Window, stream: u32, manner: Manner) {
    const KILO: [u8; 1024] = [b'x'; 1024];
    let long = [(":status", "200"), ("content-length", "1500")];
    let head = match manner {
        Manner::PeerBreaksLength => &long[..],
        _ => OK,
    };
    match manner {
        Manner::CallerDropsBeforeTheHead => {
            while let Some(frame) = conn.read_frame().await {
                window.see(&frame);
                if frame.kind == kind::RST_STREAM {
                    break;
                }
            }
        }
        _ => conn.cork(),
    }
    conn.headers(stream, head, false).await;
    for _ in 0..2 {
        window.send(conn, stream, &KILO, 0).await;
    }
    match manner {
        Manner::Whole => window.send(conn, stream, &KILO, flag::END_STREAM).await,
        Manner::Padded => {
            for pad in [0, 1, 200, 255u8] {
                let mut payload = vec![pad, b'x'];
                payload.resize(2 + usize::from(pad), 0);
                window.send(conn, stream, &payload, flag::PADDED).await;
            }
            let end = flag::PADDED | flag::END_STREAM;
            window.send(conn, stream, &[3, 0, 0, 0], end).await;
        }
        Manner::Trailers => {
            conn.trailers(stream, &[("x-sum", "1")]).await;
        }
        Manner::PeerResets => {
            conn.rst(stream, code::INTERNAL_ERROR).await;
        }
        Manner::PeerResetsAndSendsOn => {
            conn.rst(stream, code::CANCEL).await;
            window.send(conn, stream, &KILO, 0).await;
            window.send(conn, stream, &[9; 11], flag::PADDED).await;
        }
        Manner::PeerBreaksLength => window.send(conn, stream, &KILO, flag::END_STREAM).await,
        Manner::CallerDropsHead
        | Manner::CallerDropsHalf
        | Manner::CallerDropsUnread
        | Manner::CallerDropsBeforeTheHead => {
            conn.flush().await;
            if !matches!(manner, Manner::CallerDropsBeforeTheHead) {
                while let Some(frame) = conn.read_frame().await {
                    window.see(&frame);
                    if frame.kind == kind::RST_STREAM {
                        assert_eq!(frame.stream, stream);
                        break;
                    }
                }
            }
            // What the peer had under way when the reset reached it.
            window.send(conn, stream, &KILO, 0).await;
            window.send(conn, stream, b"x", 0).await;
            window.send(conn, stream, &[9; 11], flag::PADDED).await;
        }
    }
    conn.flush().await;
}

async fn call(client: &Client, manner: Manner) {
    if let Manner::CallerDropsBeforeTheHead = manner {
        let sent = timeout(millis(5), client.get("/").send()).await;
        assert!(sent.is_err(), "no head comes");
        return;
    }
    let mut response = client.get("/").send().await.expect("a head");
    match manner {
        Manner::CallerDropsHead => {}
        Manner::CallerDropsHalf => {
            response.chunk().await.expect("a chunk");
        }
        Manner::CallerDropsUnread => settle().await,
        Manner::PeerResets | Manner::PeerResetsAndSendsOn | Manner::PeerBreaksLength => {
            let (_, error) = read(&mut response).await;
            let kind = match manner {
                Manner::PeerBreaksLength => ErrorKind::Protocol,
                _ => ErrorKind::Refused,
            };
            assert_told(&error.expect("cut"), kind, ReplaySafety::Processed);
        }
        _ => {
            let (len, error) = read(&mut response).await;
            assert!(error.is_none() && len >= 2048, "{manner:?} {len} {error:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn windows_are_whole_again_after_thousands_of_responses_cut_short_in_every_way() {
    const ROUNDS: usize = 300;
    const LARGE: usize = 5 * WINDOW as usize;
    let sim = Sim::http2(|mut conn, index| async move {
        assert_eq!(index, 0, "the connection lives on");
        conn.handshake(&[]).await;
        let mut window = Window(WINDOW.into());
        for n in 0..ROUNDS * MANNERS.len() {
            let stream = loop {
                let frame = conn.read_frame().await.expect("the connection lives on");
                window.see(&frame);
                if frame.kind == kind::HEADERS {
                    break frame.stream;
                }
            };
            misanswer(&mut conn, &mut window, stream, MANNERS[n % MANNERS.len()]).await;
        }
        // More than any window holds, and no byte beyond what is allowed.
        let (mut stream, mut of_stream) = (None, i64::from(WINDOW));
        let mut left = LARGE;
        while left > 0 {
            let Some(id) = stream.filter(|_| window.0 > 0 && of_stream > 0) else {
                let frame = conn.read_frame().await.expect("the connection lives on");
                window.see(&frame);
                match frame.kind {
                    kind::HEADERS => {
                        stream = Some(frame.stream);
                        conn.headers(frame.stream, OK, false).await;
                        // At most half of it was not given back yet.
                        assert!(window.0 > i64::from(WINDOW / 2), "{} is left", window.0);
                    }
                    kind::WINDOW_UPDATE if Some(frame.stream) == stream => {
                        let n = frame.payload[..].try_into().expect("4 bytes");
                        of_stream += i64::from(u32::from_be_bytes(n));
                    }
                    _ => {}
                }
                continue;
            };
            let n = left.min(16_384).min(window.0.min(of_stream) as usize);
            left -= n;
            of_stream -= n as i64;
            let end = if left == 0 { flag::END_STREAM } else { 0 };
            window.send(&mut conn, id, &vec![b'x'; n], end).await;
        }
        serve(&mut conn, "ok").await;
    });
    let options = one_connection()
        .stream_window(WINDOW)
        .connection_window(WINDOW);
    let pool = sim.pool(|pool| pool.http2(options));
    let client = client(&pool);
    for n in 0..ROUNDS * MANNERS.len() {
        call(&client, MANNERS[n % MANNERS.len()]).await;
        settle().await;
        // A reset can be paid each third of a second.
        sleep(millis(334)).await;
    }
    let mut large = client.get("/").send().await.expect("a head");
    let (len, error) = read(&mut large).await;
    assert!(error.is_none() && len == LARGE, "{len} {error:?}");
    assert_eq!(get(&client).await, "ok");
    assert_eq!((sim.dials(), pool.stats().active), (1, 0));
}

// --- Floods ---

fn ping() -> Bytes {
    encode(kind::PING, 0, 0, &[7; 8])
}

fn some_settings() -> Bytes {
    encode(kind::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])
}

#[tokio::test(start_paused = true)]
async fn floods_of_ping_and_settings_are_answered_one_by_one_while_requests_go_on() {
    for (bytes, answer_kind) in [(ping(), kind::PING), (some_settings(), kind::SETTINGS)] {
        let answered = Arc::new(AtomicUsize::new(0));
        let sim = Sim::http2({
            let answered = answered.clone();
            move |mut conn, _| {
                let (bytes, answered) = (bytes.clone(), answered.clone());
                async move {
                    conn.auto_ping(false);
                    conn.handshake(&[]).await;
                    let waits = conn.read_headers().await.stream;
                    for _ in 0..50 {
                        conn.raw(bytes.repeat(1_000)).await;
                        let mut left = 1_000;
                        while left > 0 {
                            let frame = conn.read_frame().await.expect("no end");
                            if frame.kind == kind::HEADERS {
                                answer(&mut conn, frame.stream, "meanwhile").await;
                            }
                            if frame.kind == answer_kind && frame.has_flag(flag::ACK) {
                                left -= 1;
                                answered.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                    }
                    answer(&mut conn, waits, "at last").await;
                    serve(&mut conn, "later").await;
                }
            }
        });
        let pool = sim.pool(|pool| pool);
        let client = client(&pool);
        client
            .warm(1)
            .await
            .expect("a sound connection")
            .into_result()
            .unwrap();
        let waits = tokio::spawn({
            let client = client.clone();
            async move { get(&client).await }
        });
        tokio::task::yield_now().await;
        let answer = get(&client).await;
        assert!(answer == "meanwhile" || answer == "later", "{answer}");
        assert_eq!(waits.await.expect("no panic"), "at last");
        assert_eq!(get(&client).await, "later");
        let answered = answered.load(Ordering::SeqCst);
        assert!((50_000..=50_001).contains(&answered), "{answered}");
        assert_eq!(sim.dials(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn flood_whose_answers_nobody_reads_stops_when_the_pipe_is_full() {
    for bytes in [ping(), some_settings()] {
        let sent = Arc::new(AtomicUsize::new(0));
        let sim = Sim::http2({
            let sent = sent.clone();
            move |mut conn, index| {
                let (bytes, sent) = (bytes.clone(), sent.clone());
                async move {
                    conn.handshake(&[]).await;
                    if index > 0 {
                        return serve(&mut conn, "ok").await;
                    }
                    conn.read_headers().await;
                    // The clock moves when the client takes no more.
                    while let Ok(true) = timeout(millis(1), conn.raw(&bytes)).await {
                        sent.fetch_add(bytes.len(), Ordering::SeqCst);
                    }
                }
            }
        });
        let pool = sim.pool(|pool| pool);
        let client = client(&pool);
        let error = client.get("/").send().await.expect_err("the peer goes");
        assert_told(
            &error,
            ErrorKind::ConnectionLost,
            ReplaySafety::MaybeProcessed,
        );
        let sent = sent.load(Ordering::SeqCst);
        // Two pipes of 64 KiB and the client's buffers.
        assert!(sent < 512 * 1024, "{sent}");
        assert_eq!(get(&client).await, "ok");
    }
}

#[tokio::test(start_paused = true)]
async fn header_block_of_endless_pieces_ends_the_connection_after_a_few() {
    for piece in [&b""[..], b"\x00\x01a\x01b", &[0; 16_384]] {
        let sent = Arc::new(AtomicUsize::new(0));
        let goaway = Arc::new(Mutex::new(None));
        let sim = Sim::http2({
            let (sent, goaway) = (sent.clone(), goaway.clone());
            move |mut conn, index| {
                let (sent, goaway) = (sent.clone(), goaway.clone());
                async move {
                    conn.handshake(&[]).await;
                    if index > 0 {
                        return serve(&mut conn, "ok").await;
                    }
                    let stream = conn.read_headers().await.stream;
                    conn.frame(kind::HEADERS, 0, stream, [0x88]).await;
                    while conn.frame(kind::CONTINUATION, 0, stream, piece).await {
                        sent.fetch_add(1, Ordering::SeqCst);
                        settle().await;
                        if timeout(millis(1), conn.readable()).await.is_ok() {
                            break;
                        }
                    }
                    *goaway.lock().unwrap() = conn.read_kind(kind::GOAWAY).await;
                }
            }
        });
        let pool = sim.pool(|pool| pool);
        let client = client(&pool);
        let error = client.get("/").send().await.expect_err("no end of it");
        assert_told(&error, ErrorKind::Protocol, ReplaySafety::MaybeProcessed);
        settle().await;
        let goaway = goaway.lock().unwrap().clone();
        assert!(
            goaway
                .as_ref()
                .is_some_and(|goaway| goaway.code() != Some(0)),
            "{goaway:?}"
        );
        let sent = sent.load(Ordering::SeqCst);
        assert!(sent <= 32, "{sent} pieces");
        assert_eq!(get(&client).await, "ok");
        assert_eq!((sim.dials(), sim.live()), (2, 1));
    }
}

/// A server that is told more than it takes may end the connection, and with it what else it carries.
#[tokio::test]
async fn head_beyond_what_the_peer_takes_is_not_sent() {
    const LIMIT: usize = 400;
    common::in_time(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let largest = Arc::new(AtomicUsize::new(0));
        let seen = largest.clone();
        let serving = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut builder = h2::server::Builder::new();
            let builder = builder.max_header_list_size(LIMIT as u32);
            let mut conn = builder.handshake::<_, Bytes>(tcp).await.unwrap();
            let mut held = Vec::new();
            while let Some(request) = conn.accept().await {
                let (request, mut respond) = request.unwrap();
                let (method, uri) = (request.method().as_str(), request.uri());
                let pseudo = [
                    (":method", method),
                    (":scheme", uri.scheme_str().unwrap()),
                    (":authority", uri.authority().unwrap().as_str()),
                    (":path", uri.path()),
                ];
                let pseudo = pseudo
                    .iter()
                    .map(|(name, value)| name.len() + value.len() + 32);
                let headers = request.headers().iter();
                let headers = headers.map(|(n, v)| n.as_str().len() + v.len() + 32);
                seen.fetch_max(pseudo.chain(headers).sum(), Ordering::SeqCst);
                let is_held = uri.path() == "/held";
                let response = respond.send_response(http::Response::new(()), !is_held);
                held.extend(response.ok().filter(|_| is_held));
            }
        });
        let pool = firstbyte::ConnectionPool::new();
        let client = pool.client_builder(format!("http://{addr}"));
        let client = client.protocols(Protocols::Http2PriorKnowledge);
        let client = client.build().unwrap();
        // Its SETTINGS have come, and it stays in use.
        let mut held = client.get("/held").send().await.unwrap();
        let (mut at_limit, mut refused) = (0, 0);
        for length in 0..LIMIT {
            let request = client.get("/").header("x", "y".repeat(length));
            match request.send().await {
                Ok(response) => {
                    assert_eq!(refused, 0);
                    // h2 takes one byte less than it says.
                    at_limit += usize::from(response.status() == 431);
                }
                Err(error) => {
                    refused += 1;
                    assert_told(&error, ErrorKind::TooLarge, ReplaySafety::NotSent);
                    assert_eq!(error.attempts(), 1);
                }
            }
        }
        assert!(refused > 0);
        assert_eq!((largest.load(Ordering::SeqCst), at_limit), (LIMIT - 1, 1));
        // A body may be sent with another head, and the others have noticed nothing.
        assert_eq!(client.get("/").send().await.unwrap().status(), 200);
        assert_eq!(pool.stats().connections_created, 1);
        let body = held.bytes();
        assert!(timeout(millis(1), body).await.is_err(), "it goes on");
        drop(held);
        drop((client, pool));
        serving.await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn header_block_that_unfolds_to_megabytes_is_not_unfolded() {
    // One entry of 4,000 bytes in the table, and then its index of one byte again and again.
    let mut block = vec![0x88, 0x40, 0x01, b'a', 0x7f, 0xa1, 0x1e];
    block.extend([b'x'; 4_000]);
    let bomb = [block, vec![0xbe; 12_000]].concat();
    let sim = Sim::http2(move |mut conn, index| {
        let bomb = bomb.clone();
        async move {
            conn.handshake(&[]).await;
            if index == 0 {
                let first = conn.read_headers().await.stream;
                answer(&mut conn, first, "ok").await;
                let stream = conn.read_headers().await.stream;
                conn.frame(kind::HEADERS, flag::END_HEADERS, stream, bomb)
                    .await;
            }
            serve(&mut conn, "ok").await;
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = client(&pool);
    get(&client).await;
    let error = client.get("/").send().await.expect_err("48 MB");
    assert!(
        matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::Protocol),
        "{error}"
    );
    assert_ne!(error.replay_safety(), ReplaySafety::Unprocessed);
    assert_eq!(get(&client).await, "ok");
    settle().await;
    assert_eq!(sim.live(), 1);
}

#[tokio::test(start_paused = true)]
async fn tokens_that_nobody_reads_yet_cost_nobody_the_connection() {
    // Fifty streams, each with hundreds of frames of 20 bytes that wait for their reader.
    const STREAMS: usize = 50;
    const TOKENS: usize = 400;
    let sim = Sim::http2(|mut conn, _| async move {
        conn.handshake(&[]).await;
        loop {
            let Some(head) = conn.read_kind(kind::HEADERS).await else {
                return;
            };
            conn.headers(head.stream, OK, false).await;
            for _ in 0..TOKENS {
                conn.data(head.stream, [b't'; 20], false).await;
            }
            conn.data(head.stream, "", true).await;
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = client(&pool);
    client
        .warm(1)
        .await
        .expect("a sound connection")
        .into_result()
        .unwrap();
    let mut responses = Vec::new();
    for _ in 0..STREAMS {
        responses.push(client.get("/").send().await.expect("a head"));
    }
    settle().await;
    for mut response in responses {
        let (len, error) = read(&mut response).await;
        assert!(error.is_none() && len == 20 * TOKENS, "{len} {error:?}");
    }
    assert_eq!(sim.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn flood_of_empty_data_ends_the_connection() {
    // h2 counts padded frames without data like empty ones: the 101st of a connection ends it.
    for (flags, payload, most) in [(0, &b""[..], 11_000), (flag::PADDED, b"\0", 101)] {
        let sent = Arc::new(AtomicUsize::new(0));
        let sim = Sim::http2({
            let sent = sent.clone();
            move |mut conn, index| {
                let sent = sent.clone();
                async move {
                    conn.handshake(&[]).await;
                    if index > 0 {
                        return serve(&mut conn, "ok").await;
                    }
                    let stream = conn.read_headers().await.stream;
                    conn.headers(stream, OK, false).await;
                    while conn.frame(kind::DATA, flags, stream, payload).await {
                        sent.fetch_add(1, Ordering::SeqCst);
                        // The client keeps step.
                        tokio::task::yield_now().await;
                    }
                }
            }
        });
        let pool = sim.pool(|pool| pool);
        let client = client(&pool);
        let mut response = client.get("/").send().await.expect("a head");
        let (len, error) = read(&mut response).await;
        assert_eq!(len, 0);
        let error = error.expect("a flood");
        assert_told(&error, ErrorKind::Protocol, ReplaySafety::Processed);
        let sent = sent.load(Ordering::SeqCst);
        // And what fits the pipe.
        assert!(sent >= 100 && sent < most + 7_500, "{sent}");
        assert_eq!(get(&client).await, "ok");
        assert_eq!((sim.dials(), sim.live()), (2, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_the_peer_resets_or_makes_us_reset_fail_alone() {
    const STREAMS: usize = 1_500;
    for is_ours in [false, true] {
        let sim = Sim::http2(move |mut conn, _| async move {
            conn.handshake(&[]).await;
            let neighbour = conn.read_headers().await.stream;
            conn.headers(neighbour, OK, false).await;
            for _ in 0..STREAMS {
                let stream = conn.read_kind(kind::HEADERS).await.expect("no end").stream;
                if is_ours {
                    // Malformed: the client resets it.
                    conn.headers(stream, &[(":status", "200"), ("upgrade", "x")], false)
                        .await;
                } else {
                    conn.rst(stream, code::CANCEL).await;
                }
            }
            conn.data(neighbour, "whole", true).await;
            serve(&mut conn, "ok").await;
        });
        let pool = sim.pool(|pool| pool);
        let client = client(&pool);
        let mut neighbour = client.get("/").send().await.expect("a head");
        let kind = if is_ours {
            ErrorKind::Protocol
        } else {
            ErrorKind::Refused
        };
        for _ in 0..STREAMS / 50 {
            for result in join_all((0..50).map(|_| client.get("/").send())).await {
                let error = result.expect_err("a reset");
                assert_told(&error, kind, ReplaySafety::MaybeProcessed);
                assert_eq!(error.attempts(), 1);
            }
        }
        assert_eq!(neighbour.text().await.expect("a body"), "whole");
        assert_eq!(get(&client).await, "ok");
        assert_eq!((sim.dials(), pool.stats().active), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn peer_that_never_acknowledges_our_settings_is_served_all_the_same() {
    // RFC 9113 §6.5.3 lets us give up with SETTINGS_TIMEOUT; h2 does not.
    let sim = Sim::http2(|mut conn, _| async move {
        conn.accept_preface().await;
        conn.settings(&[]).await;
        serve(&mut conn, "ok").await;
    });
    let pool = sim.pool(|pool| pool);
    let client = client(&pool);
    for _ in 0..10 {
        assert_eq!(get(&client).await, "ok");
        sleep(millis(60_000)).await;
    }
    assert_eq!(sim.dials(), 1);
}

// --- The end of a connection ---

#[tokio::test]
async fn end_of_a_connection_fails_its_streams_with_what_is_known_and_wakes_all_who_wait() {
    in_time(async {
        for is_reset in [false, true] {
            let (cut, there) = (Gate::new(), Gate::new());
            let peer = H2Peer::start({
                let (cut, there) = (cut.waiter(), there.clone());
                move |mut conn, index| {
                    let (cut, there) = (cut.clone(), there.clone());
                    async move {
                        conn.handshake(&[(setting::MAX_CONCURRENT_STREAMS, 3)])
                            .await;
                        if index > 0 {
                            return serve(&mut conn, "new").await;
                        }
                        let half = conn.read_headers().await.stream;
                        conn.headers(half, OK, false).await;
                        conn.data(half, "half", false).await;
                        conn.read_headers().await;
                        conn.read_headers().await;
                        conn.read_kind(kind::DATA).await;
                        there.open();
                        cut.opened().await;
                        if is_reset {
                            conn.reset();
                        } else {
                            conn.close().await;
                        }
                    }
                }
            });
            let pool = ConnectionPool::builder()
                .http2(one_connection())
                .build()
                .expect("valid options");
            let client = pool
                .client_builder(format!("http://{}", peer.addr()))
                .protocols(Protocols::Http2PriorKnowledge)
                .build()
                .expect("a valid client");
            client
                .warm(1)
                .await
                .expect("a sound connection")
                .into_result()
                .unwrap();
            let mut half = client.get("/").send().await.expect("a head");
            let chunk = half.chunk().await.expect("a chunk").expect("a chunk");
            assert_eq!(chunk, "half");
            let asked = client.get("/");
            let asked = tokio::spawn(async move { asked.send().await });
            let asking = client.post("/").body(Once::body(false));
            let asking = tokio::spawn(async move { asking.send().await });
            there.waiter().opened().await;
            let waiting: Vec<_> = (0..10)
                .map(|_| {
                    let client = client.clone();
                    tokio::spawn(async move { get(&client).await })
                })
                .collect();
            eventually("ten wait", || pool.stats().waiting == 10).await;
            cut.open();

            let lost = ErrorKind::ConnectionLost;
            for (request, phase) in [(asked, Phase::Wait), (asking, Phase::Send)] {
                let error = request.await.expect("no panic").expect_err("cut");
                assert_told(&error, lost, ReplaySafety::MaybeProcessed);
                assert_eq!(error.phase(), Some(phase));
            }
            let (len, error) = read(&mut half).await;
            assert_eq!(len, 0);
            assert_told(&error.expect("cut"), lost, ReplaySafety::Processed);
            for waiting in waiting {
                assert_eq!(waiting.await.expect("no panic"), "new");
            }
            assert_eq!(peer.connections(), 2);
            eventually("the old one is off the books", || pool.stats().open == 1).await;
            assert_eq!(pool.stats().closed[&CloseReason::TransportLost], 1);
        }
    })
    .await;
}
