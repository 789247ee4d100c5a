//! What can go wrong around the pool, each with its answer: cancellation, fairness, limits, runtimes, clocks, memory.
//!
//! | fault | test |
//! |---|---|
//! | a request dropped at every await point | `cancel_everywhere.rs`; with TLS and DNS on sockets `cancel.rs`; under early data `early_data.rs` |
//! | cancelled between being assigned and started | `cancel_everywhere.rs`: slots_under_contention_and_cancellation_are_all_given_back |
//! | HTTP/1 cancelled in the middle of a response | `http1_peer.rs`: body_dropped_half_way...; `pool_policy.rs`: unread_body_is_drained_within_its_bounds... |
//! | cancelled during an upload | `cancel_everywhere.rs`: upload_that_is_cancelled_resets_its_stream_and_drops_its_body |
//! | a body neither read nor dropped | `pool_policy.rs`: body_that_nobody_reads_holds_its_place_and_no_other |
//! | the caller's code panics | `cancel_everywhere.rs`: panic_of_the_callers_code_costs_its_connection_and_nothing_else |
//! | a caller never polls its response | here |
//! | a hot and a cold origin, 10,000 waiters | `pool_policy.rs`: cold_origin_is_not_starved..., ten_thousand_waiters... |
//! | limits count dials in progress | `pool_policy.rs`: limits_count_dials_in_progress; `rotation.rs`: limits_hold_for_successors_too |
//! | a late dial is not wasted | `cancel.rs`: dial_outlives_its_asker...; `pool_policy.rs`: late_dial_is_not_wasted... |
//! | 100,000 origins touched once | `memory.rs` |
//! | order of eviction, exact expiry, no wake-ups when empty | `pool_policy.rs`: last_one_in..., idle_connections_expire...; here |
//! | shutdown in all forms | `shutdown.rs`, `lifecycle.rs` |
//! | runtimes in turn, at once, parked, dropped | `runtimes.rs`, `lifecycle.rs` |
//! | fork | not supported, and said so in the crate's documentation |
//! | clocks that jump, suspend | all timers are monotonic; after a suspend a connection is looked at before it is used (`acquire`), and HTTP/2 peers are asked (`health.rs`); certificates past their time: `faults_tls.rs` |
//! | deadlines of nothing and of for ever | `timeouts.rs`; limits: `runtimes.rs`: call_outside_a_runtime_and_extreme_limits... |
//! | a timeout for each phase | `timeouts.rs`, `limits.rs`, `streams.rs`, `health.rs`: peer_that_never_sends_settings...; here: a body that is always at hand |
//! | a timeout and success in one instant | `pool_policy.rs`: queue_timeout_and_service_in_one_instant... |
//! | the retry budget | `pool::budget`; here |
//! | a body that cannot be sent again | `http1_peer.rs`: request_lost_on_a_reused...; here over HTTP/2 |
//! | thousands of tasks on one pool | `cancel_everywhere.rs`: slots_under_contention...; loom models in `http2::streams` and `pool::capacity`; benches `checkout` |
//! | honest statistics | `stats.rs` |
//! | the end of a connection's life is reached in flight | here |
//! | `Keep-Alive: timeout, max` | `pool_policy.rs`: announced_idle_time...; `rotation.rs`: announced_number_of_requests... |

mod common;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{BOTH, World, in_time, join_all};
use firstbyte::{
    Body, Client, CloseReason, ConnectionPool, ConnectionUse, ErrorKind, Limits, Protocols,
};
use support::h1_peer::H1Peer;
use support::server::Reply;
use support::sim::{self, Sim, plain};
use tokio::runtime::Handle;
use tokio::time::sleep;

const HEADERS: u8 = 1;
const REFUSED_STREAM: u32 = 7;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn get(client: &Client) -> ConnectionUse {
    let mut response = client.get("/").send().await.expect("an answer");
    response.bytes().await.expect("a body");
    response.connection_use()
}

#[tokio::test]
async fn responses_that_nobody_polls_hold_up_no_others() {
    in_time(async {
        for protocols in BOTH {
            let big = Bytes::from(vec![b'x'; 4 * 1024 * 1024]);
            let world = World::with(
                |server| {
                    server.handler(move |request| match request.uri().path() {
                        "/big" => Reply::ok().body(big.clone()),
                        _ => Reply::ok().body("small"),
                    })
                },
                |pool| pool,
            )
            .await;
            let client = world.client(protocols);
            // Each holds its stream's window of 2 MiB, and together less than the connection's of 16.
            let unread =
                join_all((0..6).map(|_| async { client.get("/big").send().await.unwrap() })).await;
            join_all((0..50).map(|_| get(&client))).await;
            for mut response in unread {
                assert_eq!(response.bytes().await.unwrap().len(), 4 * 1024 * 1024);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn body_that_is_always_at_hand_does_not_outlive_its_time() {
    in_time(async {
        let peer = H1Peer::start(|mut conn, _| async move {
            conn.read_head().await;
            conn.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                .await;
            let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
            while conn.send(&chunk).await {}
        });
        let pool = ConnectionPool::new();
        let url = format!("http://127.0.0.1:{}/", peer.port());
        let client = pool.client_builder(url).build().unwrap();
        let mut response = client.get("/").timeout(millis(100)).send().await.unwrap();
        let error = loop {
            match response.chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it never ends"),
                Err(error) => break error,
            }
        };
        assert!(error.is_timeout(), "{error}");
        assert_eq!(pool.stats().active, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn end_of_its_life_in_flight_lets_the_request_finish_and_then_closes() {
    for protocols in BOTH {
        let sim = if protocols == Protocols::Http1 {
            Sim::http1(|mut conn, _| async move {
                while !conn.read_head().await.is_empty() {
                    sleep(millis(5_000)).await;
                    conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await;
                }
            })
        } else {
            Sim::http2(|mut conn, _| async move {
                conn.handshake(&[]).await;
                while let Some(frame) = conn.read_frame().await {
                    if frame.kind == HEADERS {
                        sleep(millis(5_000)).await;
                        conn.headers(frame.stream, &[(":status", "204")], true)
                            .await;
                    }
                }
            })
        };
        let limits = Limits::default().max_lifetime(millis(1_000));
        let pool = sim.pool(|pool| pool.limits(limits));
        let client = sim::client(&pool, plain(protocols));
        let mut response = client.get("/").send().await.unwrap();
        response.bytes().await.unwrap();
        drop(response);
        sleep(millis(10)).await;
        let closed = pool.stats().closed;
        assert!(
            closed[&CloseReason::Lifetime] >= 1,
            "{protocols:?}: {closed:?}"
        );
        // Its successor was dialled in time, and has had its own time since.
        assert!(sim.dials() >= 2);
        assert_eq!(pool.stats().active, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn server_that_refuses_everything_is_not_asked_everything_thrice() {
    let asked = Arc::new(AtomicUsize::new(0));
    let sim = Sim::http2({
        let asked = asked.clone();
        move |mut conn, _| {
            let asked = asked.clone();
            async move {
                conn.handshake(&[]).await;
                while let Some(frame) = conn.read_frame().await {
                    if frame.kind == HEADERS {
                        asked.fetch_add(1, Ordering::SeqCst);
                        conn.rst(frame.stream, REFUSED_STREAM).await;
                    }
                }
            }
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    client.warm(1).await.unwrap().into_result().unwrap();
    const REQUESTS: usize = 1_000;
    for _ in 0..REQUESTS {
        let error = client.get("/").send().await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Refused);
        sleep(millis(1)).await;
    }
    let asked = asked.load(Ordering::SeqCst);
    // A fifth more of all attempts, and ten for each second; without a budget it would be 3,000.
    assert!(asked > REQUESTS && asked < REQUESTS * 3 / 2, "{asked}");
    // One that has been left alone for a while may be asked again.
    sleep(millis(20_000)).await;
    let error = client.get("/").send().await.expect_err("refused");
    assert_eq!(error.attempts(), 3);
}

/// A body that is made piece by piece and only once.
struct Once(Option<Bytes>);

impl http_body::Body for Once {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
        std::task::Poll::Ready(self.0.take().map(|piece| Ok(http_body::Frame::data(piece))))
    }
}

#[tokio::test(start_paused = true)]
async fn body_that_was_begun_is_never_sent_in_part_again() {
    let bodies = Arc::new(AtomicUsize::new(0));
    let sim = Sim::http2({
        let bodies = bodies.clone();
        move |mut conn, _| {
            let bodies = bodies.clone();
            async move {
                conn.handshake(&[]).await;
                loop {
                    let head = conn.read_headers().await;
                    bodies.fetch_add(1, Ordering::SeqCst);
                    conn.read_kind(0).await;
                    conn.rst(head.stream, REFUSED_STREAM).await;
                }
            }
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    client.warm(1).await.unwrap().into_result().unwrap();
    let body = Body::wrap(Once(Some(Bytes::from_static(b"once"))));
    let error = client
        .post("/")
        .body(body)
        .send()
        .await
        .expect_err("refused");
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Refused, 1));
    assert_eq!(bodies.load(Ordering::SeqCst), 1);
    let again = client
        .post("/")
        .body("again")
        .send()
        .await
        .expect_err("refused");
    assert_eq!(again.attempts(), 3, "bytes can be sent again");
}

#[tokio::test(start_paused = true)]
async fn pool_with_nothing_in_it_has_nothing_to_do() {
    for protocols in BOTH {
        let sim = Sim::sound(protocols);
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, plain(protocols));
        get(&client).await;
        // Its connection expires and the origin is forgotten.
        sleep(millis(2_000_000)).await;
        assert_eq!(
            format!("{pool:?}").lines().count(),
            1,
            "{protocols:?}: {pool:?}"
        );
        // Then time passes in one leap: no timer is set by anybody else.
        let polls = Handle::current().metrics().num_alive_tasks();
        sleep(millis(30 * 24 * 3_600_000)).await;
        assert_eq!(Handle::current().metrics().num_alive_tasks(), polls);
        assert_eq!(polls, 1, "{protocols:?}: the one that tidies up, asleep");
        get(&client).await;
    }
}
