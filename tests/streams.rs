//! HTTP/2 streams against the peer's limit: counted by us, over several connections, while the limit moves. On a paused
//! clock.

mod common;
mod support;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{eventually, join_all};
use firstbyte::{Client, ConnectionUse, ErrorKind, Http2Options, Phase, Protocols, Timeouts};
use support::gate::Gate;
use support::h2_peer::H2Conn;
use support::sim::{self, Sim};
use tokio::time::{Instant, sleep, sleep_until};

const OK: &[(&str, &str)] = &[(":status", "200")];
const HEADERS: u8 = 1;
const REFUSED_STREAM: u32 = 7;
const MAX_CONCURRENT_STREAMS: u16 = 3;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn get(client: &Client) -> ConnectionUse {
    let mut response = client.get("/").send().await.expect("an answer");
    response.bytes().await.expect("a body");
    response.connection_use()
}

/// What the peers saw.
#[derive(Clone, Default)]
struct Seen {
    /// The most streams that were open on one connection at once.
    most: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    /// Streams open now, by connection.
    open: Arc<Mutex<Vec<usize>>>,
}

/// Allows so many streams, answers each after so long, and refuses what is above the limit.
async fn peer(mut conn: H2Conn, index: usize, limit: usize, takes: Duration, seen: Seen) {
    conn.handshake(&[(MAX_CONCURRENT_STREAMS, limit as u32)])
        .await;
    {
        let mut open = seen.open.lock().unwrap();
        let n = open.len().max(index + 1);
        open.resize(n, 0);
    }
    let mut due: VecDeque<(Instant, u32)> = VecDeque::new();
    loop {
        seen.open.lock().unwrap()[index] = due.len();
        let next = due.front().map(|(at, _)| *at);
        let answer = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = answer => {
                let (_, stream) = due.pop_front().expect("it was due");
                conn.headers(stream, OK, false).await;
                conn.data(stream, "ok", true).await;
            }
            () = conn.readable() => match conn.read_frame().await {
                None => return,
                Some(frame) if frame.kind == HEADERS && due.len() >= limit => {
                    seen.refused.fetch_add(1, Ordering::SeqCst);
                    conn.rst(frame.stream, REFUSED_STREAM).await;
                }
                Some(frame) if frame.kind == HEADERS => {
                    due.push_back((Instant::now() + takes, frame.stream));
                    seen.most.fetch_max(due.len(), Ordering::SeqCst);
                }
                Some(_) => {}
            },
        }
    }
}

#[tokio::test(start_paused = true)]
async fn thousand_requests_take_as_long_as_four_connections_of_ten_streams_need() {
    let seen = Seen::default();
    let sim = {
        let seen = seen.clone();
        Sim::http2(move |conn, index| peer(conn, index, 10, millis(50), seen.clone()))
    };
    let patient = Timeouts::default().queue(millis(60_000));
    let pool = sim.pool(|pool| pool.timeouts(patient));
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    client.warm(1).await.unwrap().into_result().unwrap();
    let began = Instant::now();
    let mut worst = Duration::ZERO;
    let uses = join_all((0..1_000).map(|_| async {
        let mut response = client.get("/").send().await.expect("an answer");
        response.bytes().await.expect("a body");
        response.timing()
    }))
    .await;
    let took = began.elapsed();
    for timing in &uses {
        // What waited did so in our own line: once it was sent, the answer took what the peer takes.
        worst = worst.max(timing.wait().unwrap_or_default());
    }
    // 1,000 / (4 * 10) * 50 ms = 1,250 ms.
    assert!(took >= millis(1_250) && took < millis(1_375), "{took:?}");
    assert!(worst < millis(60), "queued inside h2: {worst:?}");
    assert_eq!((sim.dials(), seen.most.load(Ordering::SeqCst)), (4, 10));
    assert_eq!(seen.refused.load(Ordering::SeqCst), 0);
    let stats = pool.stats();
    assert_eq!(
        (stats.total_requests, stats.retries, stats.waiting),
        (1_000, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn further_connection_is_opened_at_80_percent_and_takes_the_next_streams() {
    let seen = Seen::default();
    let sim = {
        let seen = seen.clone();
        Sim::http2(move |conn, index| peer(conn, index, 10, millis(1_000), seen.clone()))
    };
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    client.warm(1).await.unwrap().into_result().unwrap();
    let mut running = Vec::new();
    for n in 1..=14 {
        running.push(tokio::spawn({
            let client = client.clone();
            async move { get(&client).await }
        }));
        sleep(millis(1)).await;
        let expected = match n {
            0..=7 => (1, vec![n]),
            // The eighth of ten has it dialled, before anybody waits; the next go to the emptier one.
            8 => (2, vec![8, 0]),
            n => (2, vec![8, n - 8]),
        };
        let open = seen.open.lock().unwrap().clone();
        assert_eq!((sim.dials(), open), expected, "{n}");
    }
    for running in running {
        assert!(running.await.unwrap().is_reused(), "nobody waited");
    }
}

#[tokio::test(start_paused = true)]
async fn further_connections_are_bounded_and_can_be_turned_off() {
    for most in [1, 2] {
        let seen = Seen::default();
        let sim = {
            let seen = seen.clone();
            Sim::http2(move |conn, index| peer(conn, index, 5, millis(10), seen.clone()))
        };
        let options = Http2Options::default().max_connections_per_origin(most);
        let pool = sim.pool(|pool| pool.http2(options));
        let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
        client.warm(1).await.unwrap().into_result().unwrap();
        join_all((0..100).map(|_| get(&client))).await;
        assert_eq!(sim.dials(), most);
        assert_eq!(seen.refused.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn limit_that_falls_below_what_is_in_flight_to_zero_and_rises_wakes_those_who_wait() {
    let steps = [Gate::new(), Gate::new(), Gate::new(), Gate::new()];
    let heads = Arc::new(AtomicUsize::new(0));
    let sim = Sim::http2({
        let (steps, heads) = (steps.clone(), heads.clone());
        move |mut conn, _| {
            let waiters = steps.each_ref().map(Gate::waiter);
            let heads = heads.clone();
            async move {
                let [below, zero, up, answer] = waiters;
                conn.handshake(&[(MAX_CONCURRENT_STREAMS, 4)]).await;
                let mut streams = Vec::new();
                for _ in 0..4 {
                    streams.push(conn.read_headers().await.stream);
                    heads.fetch_add(1, Ordering::SeqCst);
                }
                below.opened().await;
                conn.settings(&[(MAX_CONCURRENT_STREAMS, 2)]).await;
                // Two of the four end: as many as are allowed are left.
                for stream in streams.drain(..2) {
                    conn.headers(stream, OK, true).await;
                }
                zero.opened().await;
                conn.settings(&[(MAX_CONCURRENT_STREAMS, 0)]).await;
                for stream in streams.drain(..) {
                    conn.headers(stream, OK, true).await;
                }
                up.opened().await;
                conn.settings(&[(MAX_CONCURRENT_STREAMS, 3)]).await;
                for _ in 0..3 {
                    streams.push(conn.read_headers().await.stream);
                    heads.fetch_add(1, Ordering::SeqCst);
                }
                answer.opened().await;
                for stream in streams {
                    conn.headers(stream, OK, true).await;
                }
                while let Some(frame) = conn.read_frame().await {
                    if frame.kind == HEADERS {
                        heads.fetch_add(1, Ordering::SeqCst);
                        conn.headers(frame.stream, OK, true).await;
                    }
                }
            }
        }
    });
    let options = Http2Options::default().max_connections_per_origin(1);
    let pool = sim.pool(|pool| pool.http2(options));
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    client.warm(1).await.unwrap().into_result().unwrap();
    let request = || {
        let client = client.clone();
        tokio::spawn(async move { get(&client).await })
    };
    let all: Vec<_> = (0..10).map(|_| request()).collect();
    let sent = || heads.load(Ordering::SeqCst);
    sleep(millis(1)).await;
    assert_eq!((sent(), pool.stats().waiting), (4, 6));
    steps[0].open();
    sleep(millis(1)).await;
    assert_eq!(
        (sent(), pool.stats().waiting),
        (4, 6),
        "two are left, two allowed"
    );
    steps[1].open();
    sleep(millis(1)).await;
    assert_eq!((sent(), pool.stats().waiting), (4, 6), "none is allowed");
    assert_eq!(pool.stats().idle, 1);
    steps[2].open();
    sleep(millis(1)).await;
    assert_eq!((sent(), pool.stats().waiting), (7, 3));
    steps[3].open();
    for one in all {
        one.await.unwrap();
    }
    assert_eq!((sent(), pool.stats().waiting, sim.dials()), (10, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn limit_that_goes_to_zero_and_back_in_one_read_leaves_nobody_waiting() {
    let sim = Sim::http2(|mut conn, _| async move {
        conn.handshake(&[(MAX_CONCURRENT_STREAMS, 10)]).await;
        let head = conn.read_headers().await;
        conn.headers(head.stream, OK, true).await;
        conn.cork();
        conn.settings(&[(MAX_CONCURRENT_STREAMS, 0)]).await;
        conn.settings(&[(MAX_CONCURRENT_STREAMS, 10)]).await;
        conn.flush().await;
        loop {
            let head = conn.read_headers().await;
            conn.headers(head.stream, OK, true).await;
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    get(&client).await;
    sleep(millis(1)).await;
    for _ in 0..5 {
        assert_eq!(get(&client).await, ConnectionUse::Idle);
    }
    assert_eq!(sim.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn peer_that_allows_no_streams_costs_the_queue_timeout_and_says_so() {
    let sim = Sim::http2(|mut conn, _| async move {
        conn.handshake(&[(MAX_CONCURRENT_STREAMS, 0)]).await;
        conn.closed_by_client().await;
    });
    let pool = sim.pool(|pool| pool.timeouts(Timeouts::default().queue(millis(700))));
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    client.warm(1).await.unwrap().into_result().unwrap();
    let began = Instant::now();
    let error = client
        .post("/")
        .body("x")
        .send()
        .await
        .expect_err("no stream");
    assert_eq!(began.elapsed(), millis(700));
    assert_eq!(
        (error.kind(), error.phase()),
        (ErrorKind::Timeout, Some(Phase::Queue))
    );
    let said = error.to_string();
    assert!(
        said.contains("queue timeout") && said.contains("max_connections_per_origin"),
        "{said}"
    );
    assert!(sim.dials() <= 4, "{}", sim.dials());
    assert_eq!(pool.stats().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn spare_that_cannot_be_had_is_tried_again_while_somebody_waits() {
    let seen = Seen::default();
    let sim = {
        let seen = seen.clone();
        Sim::http2(move |conn, index| peer(conn, index, 1, millis(60_000), seen.clone()))
    };
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    client.warm(1).await.unwrap().into_result().unwrap();
    sim.refuse(2);
    let long = tokio::spawn({
        let client = client.clone();
        async move { client.get("/").send().await.map(drop) }
    });
    eventually("a spare was refused", || sim.dials() == 2).await;
    // The only stream is taken for a minute: the wait ends with the next connection, a second apart.
    let began = Instant::now();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move {
            client
                .get("/")
                .timeout(millis(90_000))
                .send()
                .await
                .map(drop)
        }
    });
    sleep(millis(5_000)).await;
    assert_eq!(pool.stats().waiting, 0, "it has its stream");
    assert!(began.elapsed() < millis(6_000));
    assert_eq!(sim.dials(), 4);
    long.abort();
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn wait_for_a_stream_behind_a_dial_is_told_apart_from_the_dial() {
    let sim = Sim::http2(|mut conn, _| async move {
        conn.handshake(&[(MAX_CONCURRENT_STREAMS, 1)]).await;
        loop {
            let head = conn.read_headers().await;
            sleep(millis(50)).await;
            conn.headers(head.stream, OK, true).await;
        }
    });
    sim.dial_takes(millis(20));
    let options = Http2Options::default().max_connections_per_origin(1);
    let pool = sim.pool(|pool| pool.http2(options));
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    // The limit becomes known with the first connection, behind which all three wait.
    client.warm(1).await.unwrap().into_result().unwrap();
    pool.close_idle();
    sleep(millis(1)).await;
    let timings = join_all((0..3).map(|_| async {
        let response = client.get("/").send().await.unwrap();
        response.timing()
    }))
    .await;
    let mut limits: Vec<_> = timings.iter().map(|t| t.queue_limit()).collect();
    limits.sort();
    assert_eq!(limits, [None, Some(millis(50)), Some(millis(100))]);
    for timing in timings {
        let dial = timing.tcp().unwrap_or_default() + timing.queue_dial().unwrap_or_default();
        assert_eq!(dial, millis(20), "{timing:?}");
    }
    assert_eq!(pool.stats().limit_hits, 2);
}
