//! Responses that are not read, or slowly, over HTTP/2: what they may hold, and that nobody else notices. A test binary of
//! its own, so that what is allocated is its own: the tests run one after another.

mod common;
mod support;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use bytes::Bytes;
use common::{eventually, in_time, join_all};
use firstbyte::{Client, ConnectionPool, Error, ErrorKind, Protocols, ReplaySafety, Response};
use support::counting::{Counting, allocated};
use support::h2_peer::{H2Conn, code, kind};
use support::sim::{self, Sim};
use tokio::sync::Mutex;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is allocated can be told apart only if one test runs at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// What a frame may cost beside its content.
const FRAME_COST: usize = 256;

/// One connection, so that whoever is slow is on it.
fn client_of(sim: &Sim) -> (ConnectionPool, Client) {
    let pool = sim.pool(|pool| {
        let http2 = firstbyte::Http2Options::default().max_connections_per_origin(1);
        pool.http2(http2)
    });
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    (pool, client)
}

async fn send(client: &Client) -> Result<Response, Error> {
    client.get("/").send().await
}

async fn head(conn: &mut H2Conn, stream: u32) {
    conn.headers(stream, &[(":status", "200")], false).await;
}

/// So much content in frames of 16 KiB, as far as the windows go: the script of a peer that never waits for window, and
/// need not, since nobody lets it send more than they allow.
async fn fill(conn: &mut H2Conn, stream: u32, bytes: usize) {
    let frame = Bytes::from(vec![b'x'; 16 * KIB]);
    for _ in 0..bytes / frame.len() {
        conn.data(stream, &frame, false).await;
    }
}

/// Returns when the client has read everything that was sent.
async fn read_by_client(conn: &mut H2Conn) {
    conn.ping(*b"are you?").await;
    loop {
        let frame = conn.read_kind(kind::PING).await.expect("the connection");
        if frame.has_flag(support::h2_peer::flag::ACK) && &frame.payload[..] == b"are you?" {
            return;
        }
    }
}

fn assert_slow(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::SlowReader, "{error}");
    assert_eq!(error.replay_safety(), ReplaySafety::Processed);
}

#[tokio::test(start_paused = true)]
async fn burst_of_tiny_frames_waits_for_its_reader_within_the_stated_memory() {
    const STREAMS: usize = 50;
    const FRAMES: usize = 2_000;
    let _alone = ALONE.lock().await;
    let sent = Arc::new(AtomicUsize::new(0));
    let told = sent.clone();
    let sim = Sim::http2(move |mut conn, _| {
        let told = told.clone();
        async move {
            conn.handshake(&[]).await;
            let mut streams = Vec::new();
            for _ in 0..STREAMS {
                let stream = conn.read_headers().await.stream;
                head(&mut conn, stream).await;
                streams.push(stream);
            }
            for stream in &streams {
                conn.cork();
                for n in 0..FRAMES {
                    conn.data(*stream, [n as u8; 20], false).await;
                }
                conn.flush().await;
            }
            read_by_client(&mut conn).await;
            told.store(STREAMS * FRAMES, Ordering::SeqCst);
            for stream in streams {
                conn.data(stream, "", true).await;
            }
            conn.closed_by_client().await;
        }
    });
    in_time(async {
        let (_pool, client) = client_of(&sim);
        let responses = join_all((0..STREAMS).map(|_| send(&client))).await;
        let mut responses: Vec<_> = responses.into_iter().map(Result::unwrap).collect();
        let before = allocated();
        eventually("everything was sent", || sent.load(Ordering::SeqCst) > 0).await;
        let held = allocated().saturating_sub(before);
        assert!(held <= STREAMS * FRAMES * (20 + FRAME_COST), "{held}");
        for response in &mut responses {
            let body = response.bytes().await.unwrap();
            let expected: Vec<u8> = (0..FRAMES).flat_map(|n| [n as u8; 20]).collect();
            assert!(body == expected);
        }
        assert_eq!(sim.dials(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn flood_of_tiny_frames_ends_its_own_stream_and_no_other() {
    let _alone = ALONE.lock().await;
    let sim = Sim::http2(|mut conn, _| async move {
        conn.handshake(&[]).await;
        let flooded = conn.read_headers().await.stream;
        head(&mut conn, flooded).await;
        let other = conn.read_headers().await.stream;
        head(&mut conn, other).await;
        // More than the window in frames, less than that in bytes.
        for _ in 0..100 {
            conn.cork();
            for _ in 0..1_000 {
                conn.data(flooded, "x", false).await;
            }
            conn.flush().await;
        }
        let reset = conn.read_kind(kind::RST_STREAM).await.unwrap();
        assert_eq!((reset.stream, reset.code()), (flooded, Some(code::CANCEL)));
        read_by_client(&mut conn).await;
        conn.data(other, "whole", true).await;
        conn.closed_by_client().await;
    });
    in_time(async {
        let (_pool, client) = client_of(&sim);
        let mut flooded = send(&client).await.unwrap();
        let before = allocated();
        let mut other = send(&client).await.unwrap();
        assert_eq!(other.text().await.unwrap(), "whole");
        // The bound of a stream is 4 MiB, twice its window. They are free again, but h2 keeps the room.
        let held = allocated().saturating_sub(before);
        assert!(held < 5 * MIB, "{held}");
        let error = flooded.bytes().await.unwrap_err();
        assert_slow(&error);
        assert_eq!(sim.dials(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn endless_empty_frames_end_in_an_error_that_says_so() {
    let _alone = ALONE.lock().await;
    let sim = Sim::http2(|mut conn, index| async move {
        conn.handshake(&[]).await;
        let stream = conn.read_headers().await.stream;
        head(&mut conn, stream).await;
        if index > 0 {
            conn.data(stream, "ok", true).await;
            return conn.closed_by_client().await;
        }
        while conn.data(stream, "", false).await {}
    });
    in_time(async {
        let (_pool, client) = client_of(&sim);
        let mut response = send(&client).await.unwrap();
        let error = response.bytes().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(error.to_string().contains("empty DATA frames"), "{error}");
        let mut response = send(&client).await.unwrap();
        assert_eq!(response.text().await.unwrap(), "ok");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn empty_frame_in_each_of_thousands_of_responses_is_harmless() {
    const RESPONSES: usize = if cfg!(debug_assertions) {
        5_000
    } else {
        100_000
    };
    let _alone = ALONE.lock().await;
    let sim = Sim::http2(|mut conn, _| async move {
        conn.handshake(&[]).await;
        while let Some(request) = conn.read_kind(kind::HEADERS).await {
            conn.cork();
            head(&mut conn, request.stream).await;
            conn.data(request.stream, "", false).await;
            conn.data(request.stream, "ok", true).await;
            conn.flush().await;
        }
    });
    let (_pool, client) = client_of(&sim);
    for _ in 0..RESPONSES {
        let mut response = send(&client).await.unwrap();
        assert_eq!(response.bytes().await.unwrap(), "ok");
    }
    assert_eq!(sim.dials(), 1);
}

/// A peer that fills the window of the first streams and answers the others with the credit that it was given for the
/// connection, in MiB.
fn fills(streams: usize, bytes: usize) -> Sim {
    Sim::http2(move |mut conn, _| async move {
        conn.handshake(&[]).await;
        let mut requests = 0;
        let mut credit = 0;
        while let Some(frame) = conn.read_frame().await {
            match frame.kind {
                kind::WINDOW_UPDATE if frame.stream == 0 => {
                    credit += u32::from_be_bytes(frame.payload[..].try_into().unwrap());
                }
                kind::HEADERS => {
                    requests += 1;
                    head(&mut conn, frame.stream).await;
                    if requests <= streams {
                        fill(&mut conn, frame.stream, bytes).await;
                    } else {
                        let credit = (credit + 65_535) as usize / MIB;
                        conn.data(frame.stream, credit.to_string(), true).await;
                    }
                }
                _ => {}
            }
        }
    })
}

#[tokio::test(start_paused = true)]
async fn connection_window_grows_by_what_is_unread_so_that_others_go_on() {
    const SLOW: usize = 25;
    let _alone = ALONE.lock().await;
    let sim = fills(SLOW, 2 * MIB);
    in_time(async {
        let (_pool, client) = client_of(&sim);
        // 50 MiB that nobody reads, on a connection that began with a window of 16.
        let mut slow = Vec::new();
        for _ in 0..SLOW {
            slow.push(send(&client).await.unwrap());
        }
        let mut other = send(&client).await.unwrap();
        // As much more as nobody has read, and half of what is left waits for a reason to be told.
        let credit: usize = other.text().await.unwrap().parse().unwrap();
        assert!((50..=64).contains(&credit), "{credit} MiB");
        for response in &mut slow {
            let mut read = 0;
            while read < 2 * MIB {
                read += response.chunk().await.unwrap().unwrap().len();
            }
        }
        assert_eq!(sim.dials(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn beyond_the_largest_window_the_slowest_readers_are_reset_with_an_error_of_their_own() {
    const SLOW: usize = 40;
    let _alone = ALONE.lock().await;
    let sim = fills(SLOW, 2 * MIB);
    in_time(async {
        let (_pool, client) = client_of(&sim);
        let before = allocated();
        let mut slow = Vec::new();
        for _ in 0..SLOW {
            slow.push(send(&client).await.unwrap());
        }
        let mut other = send(&client).await.unwrap();
        other.text().await.unwrap();
        let held = allocated().saturating_sub(before);
        assert!(held < 64 * MIB, "{held}");
        // They came in this order, and none of them has read: the first are the slowest.
        let mut cut = 0;
        for response in &mut slow {
            match response.chunk().await {
                Ok(chunk) => assert!(chunk.is_some()),
                Err(error) => {
                    assert_slow(&error);
                    cut += 1;
                }
            }
        }
        assert!((SLOW - 30..SLOW - 28).contains(&cut), "{cut}");
        assert_eq!(sim.dials(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn response_that_nobody_polls_at_all_is_reset_too() {
    let _alone = ALONE.lock().await;
    let sim = fills(40, 2 * MIB);
    in_time(async {
        let (_pool, client) = client_of(&sim);
        assert_eq!(client.warm(1).await.unwrap().ready(), 1);
        // Sent, and polled no more: not even the head is asked for.
        let mut unpolled = Vec::new();
        for _ in 0..40 {
            let mut sending = Box::pin(send(&client));
            assert!(polled(&mut sending).await.is_none());
            unpolled.push(sending);
        }
        let mut other = send(&client).await.unwrap();
        other.text().await.unwrap();
        let outcomes = join_all(unpolled).await;
        let cut: Vec<_> = outcomes.iter().filter_map(|o| o.as_ref().err()).collect();
        assert!((10..=12).contains(&cut.len()), "{}", cut.len());
        cut.into_iter().for_each(assert_slow);
        assert_eq!(sim.dials(), 1);
    })
    .await;
}

/// Its output if it is ready at once.
async fn polled<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| match Pin::new(&mut *future).poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
