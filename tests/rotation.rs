//! Connections come to their end, by age, by number of requests, by the peer's habits or because their address left DNS,
//! and no request waits for the change: the successor is ready first. On a paused clock.

mod common;
mod support;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{BOTH, eventually};
use firstbyte::dns::{Answer, Family, Resolve, ResolveError};
use firstbyte::io::BoxFuture;
use firstbyte::{
    Client, CloseReason, ConnectionPool, ConnectionUse, Limits, Phase, Protocols, RequestTiming,
};
use support::h1_peer::H1Conn;
use support::h2_peer::H2Conn;
use support::sim::{self, Sim, plain};
use tokio::time::{Instant, sleep};

const OK: &[(&str, &str)] = &[(":status", "200")];
const HEADERS: u8 = 1;
const DIAL: Duration = Duration::from_millis(30);

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn serve_h1(mut conn: H1Conn, headers: impl Fn(u64) -> String, requests: u64) {
    for n in 1..=requests {
        if conn.read_head().await.is_empty() {
            return;
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok",
            headers(n)
        );
        conn.send(head).await;
    }
    // A peer that has said its last word waits for the client to go.
    conn.closed_by_client().await;
}

/// Answers so many requests, says GOAWAY, and answers what came meanwhile.
async fn serve_h2(mut conn: H2Conn, requests: u32, announces: bool) {
    conn.handshake(&[]).await;
    let mut seen = 0;
    while let Some(frame) = conn.read_frame().await {
        if frame.kind != HEADERS {
            continue;
        }
        seen += 1;
        if seen == requests {
            // As nginx does: before the answer to the last request that it takes.
            if announces {
                conn.goaway(2_147_483_647, 0, "").await;
            }
            conn.goaway(frame.stream, 0, "").await;
        }
        if seen <= requests {
            conn.headers(frame.stream, OK, false).await;
            conn.data(frame.stream, "ok", true).await;
        }
    }
}

fn endless(protocols: Protocols) -> Sim {
    if protocols == Protocols::Http1 {
        Sim::http1(|conn, _| serve_h1(conn, |_| String::new(), u64::MAX))
    } else {
        Sim::http2(|conn, _| serve_h2(conn, u32::MAX, false))
    }
}

async fn get(client: &Client) -> (ConnectionUse, RequestTiming) {
    let mut response = client.get("/").send().await.expect("an answer");
    response.bytes().await.expect("a body");
    (response.connection_use(), response.timing())
}

/// Whether a request waited for a connection, in whatever way.
fn waited(how: ConnectionUse, timing: &RequestTiming) -> bool {
    let phases = [
        Phase::Dns,
        Phase::Tcp,
        Phase::Proxy,
        Phase::Tls,
        Phase::Protocol,
    ];
    !how.is_reused()
        || phases.iter().any(|phase| timing.get(*phase).is_some())
        || timing.queue_dial().is_some()
        || timing.queue_limit().is_some()
}

/// Three workers without a pause but their thinking, until `dials` connections have been opened. Returns how many requests
/// waited for a connection, of how many, those of the first moment apart.
async fn load(sim: &Sim, client: &Client, dials: usize) -> (usize, usize) {
    let workers = (0..3u64).map(|worker| {
        let (client, sim) = (client.clone(), sim.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            let (mut waiting, mut total) = (0, 0);
            sleep(millis(worker)).await;
            while sim.dials() < dials {
                let (how, timing) = get(&client).await;
                if began.elapsed() > millis(100) {
                    total += 1;
                    waiting += usize::from(waited(how, &timing));
                }
                sleep(millis(7 + worker)).await;
            }
            (waiting, total)
        })
    });
    let mut sum = (0, 0);
    for worker in workers.collect::<Vec<_>>() {
        let (waiting, total) = worker.await.unwrap();
        sum = (sum.0 + waiting, sum.1 + total);
    }
    sum
}

#[tokio::test(start_paused = true)]
async fn hundred_rotations_by_age_let_no_request_wait() {
    for protocols in BOTH {
        let sim = endless(protocols);
        sim.dial_takes(DIAL);
        let limits = Limits::default().max_lifetime(millis(500));
        let pool = sim.pool(|pool| pool.limits(limits));
        let client = sim::client(&pool, plain(protocols));
        let began = Instant::now();
        let (waiting, total) = load(&sim, &client, 110).await;
        assert_eq!(waiting, 0, "{protocols:?}: of {total}");
        assert!(total > 1_000);
        // Not sooner than its life's end less the margin and the spread, and not before its time again.
        let rotations = if protocols == Protocols::Http1 {
            110 / 3
        } else {
            110
        };
        assert!(
            began.elapsed() > millis(350) * rotations,
            "{:?}",
            began.elapsed()
        );
        let stats = pool.stats();
        assert!(stats.closed[&CloseReason::Lifetime] >= 100, "{stats:?}");
        assert_eq!(stats.closed.len(), 1, "{:?}", stats.closed);
    }
}

#[tokio::test(start_paused = true)]
async fn hundred_rotations_by_number_of_requests_let_no_request_wait() {
    for protocols in BOTH {
        let sim = endless(protocols);
        sim.dial_takes(DIAL);
        let limits = Limits::default().max_requests_per_connection(100);
        let pool = sim.pool(|pool| pool.limits(limits));
        let client = sim::client(&pool, plain(protocols));
        let (waiting, total) = load(&sim, &client, 110).await;
        assert_eq!(waiting, 0, "{protocols:?}: of {total}");
        assert!(total > 8_000, "{total}");
        let most = pool.connections().iter().map(|c| c.requests()).max();
        assert!(most <= Some(100), "{most:?}");
        assert!(pool.stats().closed[&CloseReason::RequestLimit] >= 100);
    }
}

#[tokio::test(start_paused = true)]
async fn request_limit_of_the_peer_is_learned_from_two_connections_and_then_nobody_waits() {
    for (protocols, announces) in [
        (Protocols::Http1, false),
        (Protocols::Http2, false),
        (Protocols::Http2, true),
    ] {
        let sim = if protocols == Protocols::Http1 {
            Sim::http1(|conn, _| {
                let close = |n| {
                    if n == 50 {
                        "connection: close\r\n".to_owned()
                    } else {
                        String::new()
                    }
                };
                serve_h1(conn, close, 50)
            })
        } else {
            Sim::http2(move |conn, _| serve_h2(conn, 50, announces))
        };
        sim.dial_takes(DIAL);
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, plain(protocols));
        // The lesson.
        while pool.stats().connections_created < 3 {
            get(&client).await;
            sleep(millis(5)).await;
        }
        let learned = pool.connections()[0].limits().unwrap();
        assert_eq!(learned.learned_requests, Some(50), "{protocols:?}");
        let mut waiting = 0;
        while sim.dials() < 105 {
            let (how, timing) = get(&client).await;
            waiting += usize::from(waited(how, &timing));
            sleep(millis(5)).await;
        }
        // Those that were open when the lesson was over may have had no limit yet; none later.
        assert_eq!(waiting, 0, "{protocols:?}");
        let closed = pool.stats().closed;
        assert!(closed[&CloseReason::LearnedLimit] >= 100, "{closed:?}");
        let limits = pool.connections().last().unwrap().limits().unwrap();
        assert_eq!(limits.max_requests, Some(50));
    }
}

#[tokio::test(start_paused = true)]
async fn announced_number_of_requests_is_believed_from_the_first_connection_on() {
    let sim = Sim::http1(|conn, _| {
        serve_h1(
            conn,
            |n| format!("keep-alive: timeout=60, max={}\r\n", 100 - n),
            100,
        )
    });
    sim.dial_takes(millis(4));
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    get(&client).await;
    let mut waiting = 0;
    while sim.dials() < 105 {
        sleep(millis(5)).await;
        let (how, timing) = get(&client).await;
        waiting += usize::from(waited(how, &timing));
    }
    assert_eq!(waiting, 0);
    let limits = pool.connections()[0].limits().unwrap();
    assert_eq!(limits.max_requests, Some(100));
    assert_eq!(
        limits.idle_expiry,
        millis(30_000),
        "less than was announced"
    );
}

#[tokio::test(start_paused = true)]
async fn unforeseen_goaway_has_the_next_connection_dialled_before_anybody_asks() {
    let sim = Sim::http2(|mut conn, index| async move {
        conn.handshake(&[]).await;
        let head = conn.read_headers().await;
        if index == 0 {
            conn.goaway(2_147_483_647, 0, "").await;
            sleep(millis(1_000)).await;
            conn.goaway(head.stream, 0, "").await;
        }
        conn.headers(head.stream, OK, true).await;
        conn.closed_by_client().await;
    });
    sim.dial_takes(DIAL);
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    let running = tokio::spawn({
        let client = client.clone();
        async move { get(&client).await }
    });
    eventually_dialled(&sim, 2).await;
    // The old one finishes what it carries; the new one is there before it is needed.
    sleep(DIAL).await;
    let (how, timing) = get(&client).await;
    assert_eq!(how, ConnectionUse::Prewarmed);
    assert!(!waited(how, &timing));
    running.await.unwrap();
    sleep(millis(1)).await;
    assert_eq!(
        (sim.dials(), sim.live()),
        (2, 1),
        "and the old one is closed"
    );
    assert_eq!(pool.stats().closed[&CloseReason::GoAway], 1);
}

async fn eventually_dialled(sim: &Sim, n: usize) {
    let began = Instant::now();
    while sim.dials() < n {
        sleep(millis(1)).await;
        assert!(began.elapsed() < millis(60_000), "never dialled");
    }
}

#[tokio::test(start_paused = true)]
async fn goaway_on_an_idle_connection_dials_nothing() {
    let go = Arc::new(AtomicBool::new(false));
    let sim = Sim::http2({
        let go = go.clone();
        move |mut conn, _| {
            let go = go.clone();
            async move {
                conn.handshake(&[]).await;
                let head = conn.read_headers().await;
                conn.headers(head.stream, OK, true).await;
                while !go.load(Ordering::SeqCst) {
                    sleep(millis(1)).await;
                }
                conn.goaway(1, 0, "").await;
                conn.closed_by_client().await;
            }
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    get(&client).await;
    go.store(true, Ordering::SeqCst);
    sleep(millis(60_000)).await;
    assert_eq!((sim.dials(), sim.live(), pool.stats().open), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn successor_that_cannot_be_had_is_tried_again_and_the_old_one_serves_on_until_its_end() {
    for protocols in BOTH {
        let sim = endless(protocols);
        let limits = Limits::default().max_lifetime(millis(20_000));
        let pool = sim.pool(|pool| pool.limits(limits));
        let client = sim::client(&pool, plain(protocols));
        get(&client).await;
        sim.refuse(2);
        let mut waiting = 0;
        for _ in 0..3_000 {
            sleep(millis(10)).await;
            let (how, timing) = get(&client).await;
            waiting += usize::from(waited(how, &timing));
        }
        assert_eq!(waiting, 0, "{protocols:?}");
        assert_eq!(pool.stats().dials_failed, 2);
        assert_eq!(sim.dials(), 4, "one, two refused, its successor");
    }
}

#[tokio::test(start_paused = true)]
async fn connection_that_serves_nobody_gets_no_successor() {
    for protocols in BOTH {
        let sim = endless(protocols);
        let limits = Limits::default()
            .max_lifetime(millis(10_000))
            .keepalive_expiry(millis(60_000));
        let pool = sim.pool(|pool| pool.limits(limits));
        let client = sim::client(&pool, plain(protocols));
        get(&client).await;
        sleep(millis(300_000)).await;
        // The first had served, so it had one; that one has not.
        assert_eq!((sim.dials(), sim.live()), (2, 0), "{protocols:?}");
        assert_eq!(pool.stats().closed[&CloseReason::Lifetime], 2);
    }
}

/// Names whose addresses change while the test runs.
#[derive(Clone, Debug)]
struct Moving(Arc<Mutex<Vec<IpAddr>>>);

impl Resolve for Moving {
    fn resolve(&self, _: &str, family: Family) -> BoxFuture<'static, Result<Answer, ResolveError>> {
        let addrs = match family {
            Family::V4 => self.0.lock().unwrap().clone(),
            _ => Vec::new(),
        };
        Box::pin(async move { Ok(Answer::new(addrs, Some(millis(30_000)))) })
    }
}

#[tokio::test(start_paused = true)]
async fn connection_to_an_address_that_left_dns_hands_over_to_one_that_is_there() {
    for (protocols, has_room) in BOTH.into_iter().flat_map(|p| [(p, true), (p, false)]) {
        let sim = endless(protocols);
        sim.dial_takes(DIAL);
        let [a, b] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        let moving = Moving(Arc::new(Mutex::new(vec![a])));
        let limits = Limits::default().max_connections_per_host(if has_room { 2 } else { 1 });
        let pool = ConnectionPool::builder()
            .limits(limits)
            .dialer(sim.clone())
            .resolver(moving.clone())
            .build()
            .unwrap();
        let client = sim::client(&pool, plain(protocols));
        get(&client).await;
        let began = Instant::now();
        let mut waiting = 0;
        let mut run = async |minutes: u64| {
            let until = Instant::now() + millis(60_000 * minutes);
            while Instant::now() < until {
                sleep(millis(1_000)).await;
                let (how, timing) = get(&client).await;
                waiting += usize::from(waited(how, &timing));
            }
        };
        run(15).await;
        *moving.0.lock().unwrap() = vec![b];
        run(9).await;
        assert_eq!(sim.addrs(), [a], "it may be one of a rotating set");
        run(4).await;
        assert_eq!(sim.addrs(), [a, b], "{:?}", began.elapsed());
        run(30).await;
        assert_eq!((sim.addrs().len(), sim.live()), (2, 1));
        // Where there is no room for two the next request dials.
        assert_eq!(waiting, usize::from(!has_room), "{protocols:?}");
        assert_eq!(pool.stats().closed[&CloseReason::AddressGone], 1);
    }
}

#[tokio::test(start_paused = true)]
async fn limits_hold_for_successors_too() {
    for protocols in BOTH {
        let sim = endless(protocols);
        let limits = Limits::default()
            .max_lifetime(millis(5_000))
            .max_connections(1);
        let pool = sim.pool(|pool| pool.limits(limits));
        let client = sim::client(&pool, plain(protocols));
        for _ in 0..2_000 {
            get(&client).await;
            assert!(sim.live() <= 1);
            sleep(millis(10)).await;
        }
        assert!(sim.dials() >= 4, "broken before it was made, but served");
    }
}

#[tokio::test(start_paused = true)]
async fn idle_and_kept_alive_are_told_of_every_connection() {
    let sim = endless(Protocols::Http1);
    let limits = Limits::default()
        .max_lifetime(millis(100_000))
        .max_requests_per_connection(9);
    let pool = sim.pool(|pool| pool.limits(limits));
    let client = sim::client(&pool, Protocols::Http1);
    get(&client).await;
    eventually("it is idle", || pool.stats().idle == 1).await;
    let connections = pool.connections();
    let limits = connections[0].limits().unwrap();
    assert_eq!(limits.idle_expiry, millis(30_000));
    assert_eq!(limits.max_requests, Some(9));
    assert!(limits.retire_at.is_some());
    assert_eq!((limits.learned_idle, limits.learned_requests), (None, None));
}

#[tokio::test(start_paused = true)]
async fn successor_has_room_under_the_idle_limit_and_is_dialled_once() {
    for protocols in BOTH {
        for keep in [0, 1] {
            let sim = endless(protocols);
            sim.dial_takes(DIAL);
            let limits = Limits::default()
                .max_lifetime(millis(5_000))
                .max_keepalive_connections(keep);
            let pool = sim.pool(|pool| pool.limits(limits));
            let client = sim::client(&pool, plain(protocols));
            get(&client).await;
            let mut waiting = 0;
            for _ in 0..6_000 {
                sleep(millis(10)).await;
                let (how, timing) = get(&client).await;
                waiting += usize::from(waited(how, &timing));
            }
            // A minute: at most fifteen lives of four seconds and more.
            if keep == 1 {
                assert_eq!(waiting, 0, "{protocols:?}");
                assert!(sim.dials() <= 17, "{protocols:?}: {}", sim.dials());
            } else {
                // Nothing may be idle: every request dials, and none twice.
                assert!(sim.dials() <= 6_001 + 17, "{protocols:?}: {}", sim.dials());
            }
        }
    }
}

/// Nothing takes the place of what is not HTTP any more.
#[tokio::test(start_paused = true)]
async fn upgraded_connection_gets_no_successor() {
    let sim = Sim::http1(|mut conn, _| async move {
        conn.read_head().await;
        conn.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")
            .await;
        conn.closed_by_client().await;
    });
    let pool = sim.pool(|pool| pool.limits(Limits::default().max_lifetime(millis(10_000))));
    let client = sim::client(&pool, Protocols::Http1);
    let request = client.get("/").header("connection", "upgrade");
    let upgraded = request.header("upgrade", "x").send().await.unwrap();
    let upgraded = upgraded.upgrade().unwrap();
    sleep(millis(600_000)).await;
    assert_eq!((sim.dials(), sim.live()), (1, 1));
    drop(upgraded);
    eventually("it is closed", || pool.stats().open == 0).await;
}

/// While a successor waits for the peer's SETTINGS there is one more than there will be.
#[tokio::test(start_paused = true)]
async fn successor_that_settles_costs_no_other_origin_its_idle_connection() {
    let sim = Sim::http2(|mut conn, index| async move {
        if index >= 2 {
            sleep(millis(50)).await;
        }
        conn.handshake(&[]).await;
        while let Some(head) = conn.read_kind(HEADERS).await {
            conn.headers(head.stream, OK, true).await;
        }
    });
    let limits = Limits::default()
        .max_keepalive_connections(2)
        .max_requests_per_connection(20);
    let pool = sim.pool(|pool| pool.limits(limits));
    let idle = sim::client_of(&pool, sim::OTHERS[0], plain(Protocols::Http2));
    get(&idle).await;
    let busy = sim::client(&pool, plain(Protocols::Http2));
    for _ in 0..100 {
        get(&busy).await;
        sleep(millis(10)).await;
    }
    assert!(sim.dials() >= 5, "{}", sim.dials());
    assert_eq!(get(&idle).await.0, ConnectionUse::Idle);
}
