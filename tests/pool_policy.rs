//! What the pool decides about idle connections, waiters, unread bodies and untrusty peers, on a paused clock: every
//! instant is exact.

mod common;
mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use common::{BOTH, eventually, join_all};
use firstbyte::io::{BoxFuture, Dial, DialTarget, Transport};
use firstbyte::{
    Client, CloseReason, ConnectionUse, ErrorKind, Limits, Phase, Protocols, ReplaySafety, Timeouts,
};
use support::gate::Gate;
use support::h1_peer::H1Conn;
use support::h2_peer::setting;
use support::sim::{self, Sim, plain};
use tokio::time::{Instant, sleep};

const OK: &[(&str, &str)] = &[(":status", "200")];
const HEADERS: u8 = 1;
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn serve_h1(mut conn: H1Conn) {
    while !conn.read_head().await.is_empty() {
        conn.send(ANSWER).await;
    }
}

async fn get(client: &Client) -> ConnectionUse {
    let mut response = client.get("/").send().await.expect("an answer");
    response.bytes().await.expect("a body");
    response.connection_use()
}

#[tokio::test(start_paused = true)]
async fn idle_connections_expire_to_the_millisecond_counted_from_their_last_request() {
    for (protocols, expiry) in [(Protocols::Http1, 30_000), (Protocols::Http2, 300_000)] {
        let sim = Sim::sound(protocols);
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, plain(protocols));
        get(&client).await;
        sleep(millis(expiry - 1)).await;
        assert_eq!(get(&client).await, ConnectionUse::Idle, "{protocols:?}");
        sleep(millis(expiry - 1)).await;
        assert_eq!((sim.live(), pool.stats().idle), (1, 1));
        sleep(millis(2)).await;
        assert_eq!((sim.live(), pool.stats().open), (0, 0), "nobody asked");
        assert_eq!(pool.stats().closed[&CloseReason::IdleExpired], 1);
    }
}

/// The last frame of a body brings its end with it: whoever has it need not ask whether more comes.
#[tokio::test(start_paused = true)]
async fn connection_is_free_again_with_the_last_frame() {
    for protocols in BOTH {
        let sim = Sim::sound(protocols);
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, plain(protocols));
        let mut response = client.get("/").send().await.unwrap();
        assert_eq!(pool.stats().idle, 0, "{protocols:?}");
        assert_eq!(response.chunk().await.unwrap().unwrap(), "ok");
        assert_eq!(pool.stats().idle, 1, "{protocols:?}");
        assert!(response.timing().is_complete());
    }
    // Without a body it is the head.
    let sim = Sim::http2(|mut conn, _| async move {
        conn.handshake(&[]).await;
        let head = conn.read_kind(HEADERS).await.expect("a request");
        conn.headers(head.stream, OK, true).await;
        conn.closed_by_client().await;
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, plain(Protocols::Http2));
    let response = client.get("/").send().await.unwrap();
    assert_eq!(pool.stats().idle, 1);
    assert!(response.timing().is_complete());
}

#[tokio::test(start_paused = true)]
async fn last_one_in_is_the_first_one_out_and_the_oldest_goes_when_there_are_too_many() {
    let sim = Sim::sound(Protocols::Http1);
    let limits = Limits::default().max_keepalive_connections(2);
    let pool = sim.pool(|pool| pool.limits(limits));
    let client = sim::client(&pool, Protocols::Http1);
    let mut bodies = Vec::new();
    for _ in 0..3 {
        bodies.push(client.get("/").send().await.unwrap());
    }
    let mut ids = Vec::new();
    for mut body in bodies {
        body.bytes().await.unwrap();
        ids.push(body.connection().id());
        sleep(millis(1)).await;
    }
    let kept: Vec<_> = pool.connections().iter().map(|c| c.id()).collect();
    assert_eq!(kept.len(), 2);
    assert!(
        !kept.contains(&ids[0]),
        "the one that was idle for longest went"
    );
    assert_eq!(pool.stats().closed[&CloseReason::IdleLimit], 1);
    for _ in 0..3 {
        let mut response = client.get("/").send().await.unwrap();
        response.bytes().await.unwrap();
        assert_eq!(response.connection().id(), ids[2], "the youngest");
    }
}

#[tokio::test(start_paused = true)]
async fn idle_time_at_which_a_peer_closes_is_learned_and_undercut() {
    for protocols in BOTH {
        let patience = Arc::new(AtomicU64::new(50));
        let sim = closing_after(protocols, patience.clone());
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, plain(protocols));
        for _ in 0..2 {
            get(&client).await;
            sleep(millis(60)).await;
            assert_eq!(pool.stats().open, 0, "{protocols:?}: noticed while idle");
        }
        get(&client).await;
        let limits = pool.connections()[0].limits().unwrap();
        assert_eq!(limits.learned_idle, Some(millis(50)), "{protocols:?}");
        assert_eq!(limits.idle_expiry, millis(40));
        sleep(millis(39)).await;
        assert_eq!(pool.stats().idle, 1);
        sleep(millis(2)).await;
        assert_eq!(pool.stats().open, 0, "before the peer does");
        let closed = pool.stats().closed;
        let ours = [CloseReason::LearnedLimit, CloseReason::IdleExpired];
        assert_eq!(
            ours.iter().filter_map(|why| closed.get(why)).sum::<u64>(),
            1,
            "{closed:?}"
        );
        // Without connections for a while it sleeps, and has forgotten nothing.
        sleep(millis(100_000)).await;
        assert!(
            format!("{pool:?}").contains(" 1 origins asleep"),
            "{pool:?}"
        );
        get(&client).await;
        let limits = pool.connections()[0].limits().unwrap();
        assert_eq!(limits.learned_idle, Some(millis(50)), "{protocols:?}");
        // Ten minutes later it is tried whether the peer has become more patient.
        patience.store(10_000, Ordering::SeqCst);
        sleep(millis(601_000)).await;
        get(&client).await;
        sleep(millis(70)).await;
        assert_eq!(get(&client).await, ConnectionUse::Idle);
    }
}

/// Peers that close a connection on which nothing happens for so long.
fn closing_after(protocols: Protocols, patience: Arc<AtomicU64>) -> Sim {
    if protocols == Protocols::Http1 {
        Sim::http1(move |mut conn, _| {
            let patience = patience.clone();
            async move {
                loop {
                    let wait = millis(patience.load(Ordering::SeqCst));
                    match tokio::time::timeout(wait, conn.read_head()).await {
                        Ok(head) if !head.is_empty() => conn.send(ANSWER).await,
                        _ => return,
                    };
                }
            }
        })
    } else {
        Sim::http2(move |mut conn, _| {
            let patience = patience.clone();
            async move {
                conn.handshake(&[]).await;
                loop {
                    let wait = millis(patience.load(Ordering::SeqCst));
                    match tokio::time::timeout(wait, conn.read_kind(HEADERS)).await {
                        Ok(Some(frame)) => {
                            conn.headers(frame.stream, OK, false).await;
                            conn.data(frame.stream, "ok", true).await;
                        }
                        _ => {
                            conn.goaway(2_147_483_647, 0, "").await;
                            return;
                        }
                    }
                }
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn restart_that_closes_old_and_young_at_once_teaches_nothing() {
    let restart = Gate::new();
    let sim = Sim::http1({
        let restart = restart.clone();
        move |mut conn, _| {
            let restart = restart.waiter();
            async move {
                let serving = async {
                    while !conn.read_head().await.is_empty() {
                        conn.send(ANSWER).await;
                    }
                };
                tokio::select! { () = serving => {}, () = restart.opened() => {} }
            }
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    let held: Vec<_> =
        join_all((0..3).map(|_| async { client.get("/").send().await.unwrap() })).await;
    for mut response in held {
        response.bytes().await.unwrap();
        sleep(millis(4_000)).await;
    }
    restart.open();
    eventually("all are gone", || pool.stats().open == 0).await;
    assert_eq!(pool.stats().closed[&CloseReason::PeerClosedIdle], 3);
    let _warm = client.warm(1).await.unwrap();
    // They are closed by the peer at once; the next look is at what was learned.
    if let Some(connection) = pool.connections().first() {
        assert_eq!(connection.limits().unwrap().learned_idle, None);
    }
}

#[tokio::test(start_paused = true)]
async fn server_that_fails_under_load_teaches_no_idle_time() {
    // Answers once on each connection, and resets it at the second request.
    let sim = Sim::http1(|mut conn, _| async move {
        conn.read_head().await;
        conn.send(ANSWER).await;
        conn.read_head().await;
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    for _ in 0..10 {
        get(&client).await;
        let error = client.post("/").body("x").send().await.expect_err("lost");
        assert_eq!(error.replay_safety(), ReplaySafety::MaybeProcessed);
    }
    client.warm(1).await.unwrap().into_result().unwrap();
    let limits = pool.connections()[0].limits().unwrap();
    assert_eq!(limits.learned_idle, None);
}

#[tokio::test(start_paused = true)]
async fn requests_beside_those_that_are_made_again_have_dials_of_their_own() {
    let sim = Sim::http1(|mut conn, index| async move {
        if index < 3 {
            conn.read_head().await;
            conn.send(ANSWER).await;
            conn.read_head().await;
            return;
        }
        serve_h1(conn).await;
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    // Three connections that will fail at their next request.
    let three = join_all((0..3).map(|_| async { client.get("/").send().await.unwrap() })).await;
    for mut response in three {
        response.bytes().await.unwrap();
    }
    sim.dial_takes(millis(100));
    let began = Instant::now();
    let six = (0..6).map(|_| async {
        get(&client).await;
        began.elapsed()
    });
    for took in join_all(six).await {
        assert_eq!(took, millis(100), "one dial, and nobody else's");
    }
    assert_eq!(sim.dials(), 9);
}

#[tokio::test(start_paused = true)]
async fn announced_idle_time_is_honoured_with_a_margin() {
    for (said, used) in [
        ("timeout=5", 4_000),
        ("timeout=20, max=9", 18_000),
        ("timeout=500", 30_000),
    ] {
        let sim = Sim::http1(move |mut conn, _| async move {
            while !conn.read_head().await.is_empty() {
                let answer =
                    format!("HTTP/1.1 200 OK\r\nkeep-alive: {said}\r\ncontent-length: 2\r\n\r\nok");
                conn.send(answer).await;
            }
        });
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, Protocols::Http1);
        get(&client).await;
        assert_eq!(
            pool.connections()[0].limits().unwrap().idle_expiry,
            millis(used)
        );
        sleep(millis(used - 1)).await;
        assert_eq!(sim.live(), 1, "{said}");
        sleep(millis(2)).await;
        assert_eq!(sim.live(), 0, "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn announced_end_of_a_connection_is_no_reuse() {
    let sim = Sim::http1(|mut conn, _| async move {
        while !conn.read_head().await.is_empty() {
            conn.send("HTTP/1.1 200 OK\r\nkeep-alive: timeout=0\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    for _ in 0..3 {
        assert_eq!(get(&client).await, ConnectionUse::New);
    }
    assert_eq!(sim.dials(), 3);
}

#[tokio::test(start_paused = true)]
async fn origin_that_sent_more_than_it_was_asked_for_gets_no_reuse_for_a_minute() {
    let excess = Arc::new(AtomicBool::new(true));
    let sim = Sim::http1({
        let excess = excess.clone();
        move |mut conn, _| {
            let excess = excess.clone();
            async move {
                while !conn.read_head().await.is_empty() {
                    conn.send(ANSWER).await;
                    if excess.swap(false, Ordering::SeqCst) {
                        sleep(millis(5)).await;
                        conn.send("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
                            .await;
                    }
                }
            }
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    // Two at once, so that one is idle when the other is found out.
    let two = join_all((0..2).map(|_| async { client.get("/").send().await.unwrap() })).await;
    for mut response in two {
        assert_eq!(&response.bytes().await.unwrap()[..], b"ok");
    }
    sleep(millis(10)).await;
    let closed = pool.stats().closed;
    assert_eq!(closed[&CloseReason::UnsolicitedBytes], 1);
    assert_eq!(
        closed[&CloseReason::Distrusted],
        1,
        "who knows what it holds"
    );
    for _ in 0..5 {
        let mut response = client.get("/").send().await.unwrap();
        assert_eq!(&response.bytes().await.unwrap()[..], b"ok");
        assert_eq!(response.connection_use(), ConnectionUse::New);
        sleep(millis(9_000)).await;
    }
    assert_eq!(pool.stats().open, 0);
    sleep(millis(20_000)).await;
    get(&client).await;
    assert_eq!(get(&client).await, ConnectionUse::Idle, "trusted again");
    assert_eq!(pool.stats().closed[&CloseReason::Distrusted], 6);
}

#[tokio::test(start_paused = true)]
async fn unread_body_is_drained_within_its_bounds_or_costs_the_connection() {
    let kib = 1024;
    // Bytes announced, bytes sent at once, pause before the rest, whether the connection is kept.
    for (length, at_once, pause, kept) in [
        (Some(60 * kib), kib, 40, true),
        (Some(60 * kib), kib, 60, false),
        (Some(70 * kib), kib, 0, false),
        (None, kib, 40, true),
        (None, 63 * kib, 60, false),
        (None, 70 * kib, 0, false),
    ] {
        let sim = Sim::http1(move |mut conn, _| async move {
            let total = length.unwrap_or(at_once + 1);
            loop {
                if conn.read_head().await.is_empty() {
                    return;
                }
                let (head, chunk, end) = match length {
                    Some(n) => (format!("content-length: {n}"), String::new(), ""),
                    None => (
                        "transfer-encoding: chunked".to_owned(),
                        format!("{at_once:x}\r\n"),
                        "\r\n1\r\nx\r\n0\r\n\r\n",
                    ),
                };
                conn.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{chunk}"))
                    .await;
                conn.send(vec![b'x'; at_once]).await;
                sleep(millis(pause)).await;
                if length.is_some() {
                    conn.send(vec![b'x'; total - at_once]).await;
                } else {
                    conn.send(end).await;
                }
            }
        });
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, Protocols::Http1);
        let case = format!("{length:?} {at_once} {pause}");
        let response = client.get("/").send().await.unwrap();
        drop(response);
        sleep(millis(100)).await;
        let stats = pool.stats();
        assert_eq!((stats.idle, stats.active), (usize::from(kept), 0), "{case}");
        assert_eq!(
            stats.closed.contains_key(&CloseReason::Cancelled),
            !kept,
            "{case}"
        );
        let mut response = client.get("/").send().await.unwrap();
        let how = if kept {
            ConnectionUse::Idle
        } else {
            ConnectionUse::New
        };
        assert_eq!(response.connection_use(), how, "{case}");
        assert_eq!(
            response.bytes().await.unwrap().len(),
            length.unwrap_or(at_once + 1)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn minimum_is_kept_warm_past_expiry_and_limits_and_filled_up_when_it_is_used() {
    for protocols in BOTH {
        let sim = Sim::sound(protocols);
        let limits = Limits::default().max_keepalive_connections(0);
        let pool = sim.pool(|pool| pool.limits(limits));
        let builder = pool
            .client_builder(format!("http://{}", sim::HOST))
            .protocols(plain(protocols));
        let client = if protocols == Protocols::Http1 {
            builder.min_idle(2)
        } else {
            builder.min_connections(2)
        };
        let client = client.build().unwrap();
        client.warm(0).await.unwrap().into_result().unwrap();
        sleep(millis(10)).await;
        assert_eq!((sim.live(), pool.stats().idle), (2, 2), "{protocols:?}");
        sleep(millis(3_600_000)).await;
        assert_eq!((sim.dials(), sim.live()), (2, 2), "they do not expire");
        assert_eq!(get(&client).await, ConnectionUse::Prewarmed);
        if protocols == Protocols::Http1 {
            // One is taken: another comes.
            let body = client.get("/").send().await.unwrap();
            sleep(millis(2_000)).await;
            assert_eq!(pool.stats().idle, 2);
            drop(body);
            sleep(millis(10)).await;
            assert_eq!(pool.stats().idle, 2, "beyond the minimum the limit holds");
        }
        pool.close_idle();
        sleep(millis(2_000)).await;
        assert_eq!(
            (sim.live(), pool.stats().idle),
            (2, 2),
            "closed ones come back"
        );
        drop(client);
        sleep(millis(600_000)).await;
        assert_eq!(sim.live(), 0, "{protocols:?}: nobody wants them any more");
    }
}

#[tokio::test(start_paused = true)]
async fn minimum_is_not_dialled_in_circles() {
    // Refused.
    let sim = Sim::sound(Protocols::Http1);
    sim.refuse(usize::MAX);
    let pool = sim.pool(|pool| pool);
    let builder = pool.client_builder(format!("http://{}", sim::HOST));
    let client = builder.min_idle(3).build().unwrap();
    let _ = client.warm(0).await;
    sleep(millis(10_500)).await;
    assert!(sim.dials() <= 3 * 11, "{}", sim.dials());
    assert!(sim.dials() >= 3 * 9, "{}", sim.dials());
    // Closed at once.
    let sim = Sim::http1(|_, _| async {});
    let pool = sim.pool(|pool| pool);
    let builder = pool.client_builder(format!("http://{}", sim::HOST));
    let client = builder.min_idle(3).build().unwrap();
    client.warm(0).await.unwrap().into_result().unwrap();
    sleep(millis(10_500)).await;
    assert!(sim.dials() <= 3 * 11, "{}", sim.dials());
}

#[tokio::test]
async fn minimum_that_would_do_nothing_is_refused() {
    let pool = firstbyte::ConnectionPool::new();
    let of = |protocols| pool.client_builder("https://a.test").protocols(protocols);
    assert!(of(Protocols::Http2).min_idle(1).build().is_err());
    assert!(of(Protocols::Http1).min_connections(1).build().is_err());
    assert!(
        pool.client_builder("http://a.test")
            .min_connections(1)
            .build()
            .is_err()
    );
    assert!(
        of(Protocols::Auto)
            .min_idle(1)
            .min_connections(1)
            .build()
            .is_ok()
    );
    pool.client("p", "https://a.test")
        .min_idle(1)
        .build()
        .unwrap();
    let other = pool.client("p", "https://a.test").min_idle(2).build();
    assert!(other.unwrap_err().to_string().contains("minimum"));
}

#[tokio::test(start_paused = true)]
async fn connection_that_becomes_idle_goes_to_an_origin_that_waits_for_a_place() {
    for protocols in BOTH {
        let sim = Sim::sound(protocols);
        let limits = Limits::default().max_connections(1);
        let pool = sim.pool(|pool| pool.limits(limits));
        let [one, two] = [sim::OTHERS[0], sim::OTHERS[1]]
            .map(|host| sim::client_of(&pool, host, plain(protocols)));
        let held = one.get("/").send().await.unwrap();
        let waiting = tokio::spawn(async move { get(&two).await });
        eventually("it waits", || pool.stats().waiting == 1).await;
        let began = Instant::now();
        let mut held = held;
        held.bytes().await.unwrap();
        drop(held);
        assert_eq!(waiting.await.unwrap(), ConnectionUse::New);
        assert!(
            began.elapsed() < millis(5),
            "{protocols:?}: {:?}",
            began.elapsed()
        );
        assert_eq!(pool.stats().closed[&CloseReason::MadeRoom], 1);
    }
}

#[tokio::test(start_paused = true)]
async fn origin_with_too_few_connections_gets_what_another_has_left_alone_for_a_while() {
    let sim = Sim::sound(Protocols::Http1);
    let limits = Limits::default().max_connections(2);
    let pool = sim.pool(|pool| pool.limits(limits));
    let [one, two] =
        [sim::OTHERS[0], sim::OTHERS[1]].map(|host| sim::client_of(&pool, host, Protocols::Http1));
    get(&one).await;
    let held = two.get("/").send().await.unwrap();
    let began = Instant::now();
    get(&two).await;
    assert!(
        (millis(100)..millis(105)).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
    drop(held);
    assert_eq!(pool.stats().closed[&CloseReason::MadeRoom], 1);
}

#[tokio::test(start_paused = true)]
async fn cold_origin_is_not_starved_by_a_hot_one_and_two_hot_ones_do_not_thrash() {
    for protocols in BOTH {
        let sim = Sim::sound(protocols);
        sim.dial_takes(millis(5));
        let limits = Limits::default().max_connections(2);
        let pool = sim.pool(|pool| pool.limits(limits));
        let [hot, warm, cold] =
            sim::OTHERS.map(|host| sim::client_of(&pool, host, plain(protocols)));
        let stop = Arc::new(AtomicBool::new(false));
        let spawn = |client: &Client, n: usize| -> Vec<_> {
            let spawn_one = |_| {
                let (client, stop) = (client.clone(), stop.clone());
                tokio::spawn(async move {
                    let mut served = 0;
                    while !stop.load(Ordering::SeqCst) {
                        get(&client).await;
                        served += 1;
                        // Time passes only where somebody sleeps.
                        sleep(millis(1)).await;
                    }
                    served
                })
            };
            (0..n).map(spawn_one).collect()
        };
        let mut workers = spawn(&hot, 10);
        sleep(millis(50)).await;
        let dials = sim.dials();
        // Somebody else, once.
        let began = Instant::now();
        get(&cold).await;
        assert!(
            began.elapsed() < millis(100),
            "{protocols:?}: {:?}",
            began.elapsed()
        );
        // Two with endless lines share the two connections and keep them.
        workers.extend(spawn(&warm, 10));
        sleep(millis(100)).await;
        let settled = sim.dials();
        sleep(millis(500)).await;
        assert!(settled - dials < 20, "{protocols:?}: {dials} {settled}");
        assert!(
            sim.dials() - settled <= 2,
            "{protocols:?}: no handing to and fro"
        );
        stop.store(true, Ordering::SeqCst);
        for worker in workers {
            assert!(worker.await.unwrap() > 0, "{protocols:?}: nobody starves");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_waiters_half_of_them_gone_are_served_in_order_and_leave_nothing() {
    for protocols in BOTH {
        let gate = Gate::new();
        let sim = if protocols == Protocols::Http1 {
            let gate = gate.clone();
            Sim::http1(move |conn, _| {
                let gate = gate.waiter();
                async move {
                    gate.opened().await;
                    serve_h1(conn).await;
                }
            })
        } else {
            let gate = gate.clone();
            Sim::http2(move |mut conn, _| {
                let gate = gate.waiter();
                async move {
                    conn.handshake(&[(3, 1)]).await;
                    gate.opened().await;
                    while let Some(frame) = conn.read_frame().await {
                        if frame.kind == HEADERS {
                            conn.headers(frame.stream, OK, false).await;
                            conn.data(frame.stream, "ok", true).await;
                        }
                    }
                }
            })
        };
        // One place, so that the order is exact.
        let limits = Limits::default().max_connections_per_host(1);
        let patient = Timeouts::default().queue(None);
        let pool = sim.pool(|pool| pool.limits(limits).timeouts(patient));
        let client = sim::client(&pool, plain(protocols));
        client.warm(1).await.unwrap().into_result().unwrap();
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = Vec::new();
        for n in 0..10_001usize {
            let (client, served) = (client.clone(), served.clone());
            waiters.push((
                n,
                tokio::spawn(async move {
                    let mut response = client.get("/").send().await.unwrap();
                    served.lock().unwrap().push(n);
                    response.bytes().await.unwrap();
                }),
            ));
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        eventually("all wait", || pool.stats().waiting == 10_000).await;
        // Half of them go, in an order of their own; the first has the connection.
        let mut seed = 7u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize
        };
        let mut stay = vec![waiters.remove(0)];
        for i in (1..waiters.len()).rev() {
            waiters.swap(i, random() % (i + 1));
        }
        for (n, waiter) in waiters {
            if random() % 2 == 0 {
                waiter.abort();
            } else {
                stay.push((n, waiter));
            }
        }
        let left = stay.len() - 1;
        eventually("they have left", || pool.stats().waiting == left).await;
        gate.open();
        let mut expected: Vec<_> = stay.iter().map(|(n, _)| *n).collect();
        for (_, waiter) in stay {
            waiter.await.unwrap();
        }
        expected.sort_unstable();
        assert!(expected.len() > 4_500 && expected.len() < 5_500);
        assert_eq!(
            *served.lock().unwrap(),
            expected,
            "{protocols:?}: in their order"
        );
        let stats = pool.stats();
        assert_eq!(
            (stats.waiting, stats.active, sim.dials()),
            (0, 0, 1),
            "{protocols:?}"
        );
        assert_eq!(get(&client).await, ConnectionUse::Idle);
    }
}

#[tokio::test(start_paused = true)]
async fn queue_timeout_and_service_in_one_instant_give_one_of_them_and_an_exact_slot() {
    for protocols in BOTH {
        let sim = Sim::sound(protocols);
        let limits = Limits::default().max_connections(1);
        let timeouts = Timeouts::default().queue(millis(100));
        let pool = sim.pool(|pool| pool.limits(limits).timeouts(timeouts));
        // The other origin holds the only place for exactly as long as the wait may last.
        let [one, two] = [sim::OTHERS[0], sim::OTHERS[1]]
            .map(|host| sim::client_of(&pool, host, plain(protocols)));
        for _ in 0..20 {
            let held = one.get("/").send().await.unwrap();
            let waiting = tokio::spawn({
                let two = two.clone();
                async move { two.get("/").send().await.map(drop) }
            });
            sleep(millis(100)).await;
            drop(held);
            match waiting.await.unwrap() {
                Ok(()) => {}
                Err(error) => {
                    assert!(error.is_timeout(), "{error}");
                    assert_eq!(error.phase(), Some(Phase::Queue));
                    assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
                }
            }
            sleep(millis(10)).await;
            let stats = pool.stats();
            assert_eq!((stats.active, stats.waiting), (0, 0), "{protocols:?}");
            assert!(stats.open <= 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_max_waiting_fail_at_once_across_origins() {
    let sim = Sim::sound(Protocols::Http1);
    let limits = Limits::default().max_connections(1).max_waiting(3);
    let pool = sim.pool(|pool| pool.limits(limits));
    let clients = sim::OTHERS.map(|host| sim::client_of(&pool, host, Protocols::Http1));
    let held = clients[0].get("/").send().await.unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|n| {
            let client = clients[n].clone();
            tokio::spawn(async move { client.get("/").send().await.map(drop) })
        })
        .collect();
    eventually("three wait", || pool.stats().waiting == 3).await;
    for client in &clients {
        let began = Instant::now();
        let error = client.get("/").send().await.expect_err("one too many");
        assert_eq!(
            (error.kind(), began.elapsed()),
            (ErrorKind::Limit, Duration::ZERO)
        );
        assert!(error.to_string().contains("max_waiting"), "{error}");
    }
    drop(held);
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
    assert_eq!(pool.stats().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn body_that_nobody_reads_holds_its_place_and_no_other() {
    for protocols in BOTH {
        let sim = Sim::sound(protocols);
        let limits = Limits::default().max_connections(2);
        let pool = sim.pool(|pool| pool.limits(limits));
        let client = sim::client(&pool, plain(protocols));
        let leaked = client.get("/").send().await.unwrap();
        std::mem::forget(leaked);
        for _ in 0..10 {
            get(&client).await;
        }
        sleep(millis(1)).await;
        let stats = pool.stats();
        assert_eq!(stats.active, 1, "{protocols:?}: shown as what it is");
        assert!(stats.open <= 2 && stats.waiting == 0);
        sleep(millis(3_600_000)).await;
        assert_eq!(pool.stats().active, 1);
        get(&client).await;
    }
}

#[tokio::test(start_paused = true)]
async fn late_dial_is_not_wasted_and_not_kept_beyond_the_idle_limit() {
    for (keep, opened) in [(20, 1), (0, 0)] {
        let sim = Sim::sound(Protocols::Http1);
        sim.dial_takes(millis(100));
        let limits = Limits::default().max_keepalive_connections(keep);
        let pool = sim.pool(|pool| pool.limits(limits));
        let client = sim::client(&pool, Protocols::Http1);
        let request = tokio::spawn({
            let client = client.clone();
            async move { get(&client).await }
        });
        sleep(millis(50)).await;
        request.abort();
        sleep(millis(100)).await;
        let stats = pool.stats();
        assert_eq!((sim.dials(), stats.idle, sim.live()), (1, opened, opened));
        assert_eq!((stats.waiting, stats.active), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn limits_count_dials_in_progress() {
    let sim = Sim::sound(Protocols::Http1);
    sim.dial_takes(millis(1_000));
    let limits = Limits::default().max_connections_per_host(2);
    let pool = sim.pool(|pool| pool.limits(limits));
    let client = sim::client(&pool, Protocols::Http1);
    let requests: Vec<_> = (0..10)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { get(&client).await })
        })
        .collect();
    sleep(millis(500)).await;
    assert_eq!((sim.dials(), pool.stats().open), (2, 2));
    for request in requests {
        request.await.unwrap();
    }
    assert_eq!(sim.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_inherit_the_dial_of_one_that_ran_out_of_time() {
    let sim = Sim::sound(Protocols::Http2);
    sim.dial_takes(millis(200));
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    let leader = tokio::spawn({
        let timeouts = Timeouts::default().connect(millis(50));
        let request = client.get("/").timeouts(timeouts);
        async move { request.send().await.map(drop) }
    });
    sleep(millis(10)).await;
    let began = Instant::now();
    let others = join_all((0..5).map(|_| get(&client))).await;
    assert_eq!(began.elapsed(), millis(190));
    assert_eq!(others, [ConnectionUse::Joined; 5]);
    let error = leader.await.unwrap().expect_err("out of time");
    assert!(
        error.is_timeout() && error.to_string().contains("connect timeout"),
        "{error}"
    );
    assert_eq!(error.phase(), Some(Phase::Tcp));
    assert_eq!(sim.dials(), 1);
    // And its failure, with the true cause, when it has one.
    pool.close_idle();
    sleep(millis(1)).await;
    sim.refuse(1);
    for error in join_all((0..3).map(|_| client.get("/").send())).await {
        let error = error.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
        assert!(error.to_string().contains("refused"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn warming_reports_only_what_could_be_kept() {
    let sim = Sim::sound(Protocols::Http1);
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    let report = client.warm(50).await.unwrap();
    assert_eq!(report.ready(), 20, "as many as may be idle");
    let error = report.error.expect("told");
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(
        error.to_string().contains("max_keepalive_connections"),
        "{error}"
    );
    for ready in &report.connections {
        assert!(ready.opened);
        assert!(ready.connection.trace().ready.is_some());
    }
}

/// Who has left the line without a connection does not leave its origin there for nothing.
#[tokio::test(start_paused = true)]
async fn place_that_comes_free_between_two_requests_is_the_next_ones() {
    for protocols in BOTH {
        let sim = Sim::sound(protocols);
        let limits = Limits::default().max_connections(1);
        let timeouts = Timeouts::default().queue(millis(200));
        let pool = sim.pool(|pool| pool.limits(limits).timeouts(timeouts));
        let [one, two] = [sim::OTHERS[0], sim::OTHERS[1]]
            .map(|host| sim::client_of(&pool, host, plain(protocols)));
        let mut held = one.get("/").send().await.unwrap();
        assert!(two.get("/").send().await.unwrap_err().is_timeout());
        sleep(millis(300)).await;
        held.bytes().await.unwrap();
        sleep(millis(300)).await;
        assert_eq!(get(&two).await, ConnectionUse::New, "{protocols:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn connect_timeout_is_kept_to_the_millisecond_behind_a_wait_for_a_limit() {
    for queue in [Some(millis(5000)), None] {
        let sim = Sim::http1(|mut conn, _| async move {
            conn.read_head().await;
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
                .await;
        });
        let limits = Limits::default().max_connections_per_host(1);
        let pool = sim.pool(|pool| pool.limits(limits));
        let client = sim::client(&pool, Protocols::Http1);
        let mut first = client.get("/").send().await.unwrap();
        let timeouts = Timeouts::default().queue(queue).connect(millis(500));
        let began = Instant::now();
        let second = tokio::spawn(client.get("/").timeouts(timeouts).send());
        sleep(millis(1000)).await;
        sim.dial_takes(millis(10_000));
        first.bytes().await.unwrap();
        let error = second.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("connect timeout"), "{error}");
        assert_eq!(began.elapsed(), millis(1500), "queue {queue:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_request_at_the_limit_costs_one_idle_connection() {
    for protocols in BOTH {
        let sim = Sim::sound(protocols);
        let limits = Limits::default().max_connections(2);
        let pool = sim.pool(|pool| pool.limits(limits));
        for host in &sim::OTHERS[..3] {
            let client = sim::client_of(&pool, host, plain(protocols));
            assert_eq!(get(&client).await, ConnectionUse::New);
            sleep(millis(200)).await;
        }
        let stats = pool.stats();
        let made_room = stats.closed[&CloseReason::MadeRoom];
        assert_eq!((made_room, stats.open), (1, 2), "{protocols:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn pause_behind_a_failed_extra_dial_ends_for_who_came_in_it() {
    let sim = Sim::http2(|mut conn, index| async move {
        conn.handshake(&[(3, 1)]).await;
        while let Some(head) = conn.read_kind(HEADERS).await {
            conn.headers(head.stream, OK, index > 0).await;
        }
    });
    let expiry = Limits::default().http2_keepalive_expiry(millis(200));
    let timeouts = Timeouts::default().queue(millis(5000));
    let pool = sim.pool(|pool| pool.limits(expiry).timeouts(timeouts));
    let protocols = plain(Protocols::Http2);
    let client = sim::client(&pool, protocols);
    let other = sim::client_of(&pool, sim::OTHERS[0], protocols);
    sim.refuse(0);
    let held = client.get("/").send().await.unwrap();
    get(&other).await;
    sim.refuse(1);
    let failing = tokio::spawn(client.get("/").send());
    sleep(millis(10)).await;
    failing.abort();
    // Until then the connection of the other origin has expired, and nobody is in line.
    sleep(millis(490)).await;
    let began = Instant::now();
    let third = client.get("/").send().await.unwrap();
    assert_eq!(third.connection_use(), ConnectionUse::New);
    assert!(began.elapsed() < millis(1000), "{:?}", began.elapsed());
    drop(held);
}

#[tokio::test]
async fn options_of_sockets_are_refused_where_the_dialer_makes_them() {
    let sim = Sim::sound(Protocols::Http1);
    let tcp = || firstbyte::tcp::TcpOptions::default().dscp(46);
    let pool = sim.pool(|pool| pool);
    let client = pool.client_builder("http://a.test").tcp(tcp());
    let error = client.build().unwrap_err();
    assert!(
        error.is_invalid() && error.to_string().contains("dialer"),
        "{error}"
    );
    let pool = firstbyte::ConnectionPool::builder().dialer(sim).tcp(tcp());
    assert!(pool.build().unwrap_err().is_invalid());
}

/// What is kept warm is not put on the bill of the others.
#[tokio::test(start_paused = true)]
async fn minimum_does_not_count_against_the_idle_limit() {
    for protocols in BOTH {
        let sim = Sim::sound(protocols);
        let limits = Limits::default().max_keepalive_connections(1);
        let pool = sim.pool(|pool| pool.limits(limits));
        let builder = pool
            .client_builder(format!("http://{}", sim::HOST))
            .protocols(plain(protocols));
        let kept = match protocols {
            Protocols::Http1 => builder.min_idle(2),
            _ => builder.min_connections(2),
        };
        let kept = kept.build().unwrap();
        kept.warm(0).await.unwrap().into_result().unwrap();
        sleep(millis(10)).await;
        assert_eq!(pool.stats().idle, 2);
        let [one, two, _] = sim::OTHERS.map(|host| sim::client_of(&pool, host, plain(protocols)));
        for how in [ConnectionUse::New, ConnectionUse::Idle, ConnectionUse::Idle] {
            assert_eq!(get(&one).await, how, "{protocols:?}");
            sleep(millis(1)).await;
        }
        // Between the others the limit holds.
        assert_eq!(get(&two).await, ConnectionUse::New);
        sleep(millis(1)).await;
        assert_eq!((pool.stats().idle, pool.stats().open), (3, 3));
        assert_eq!(get(&one).await, ConnectionUse::New);
        assert_eq!(get(&kept).await, ConnectionUse::Prewarmed);
    }
}

#[tokio::test(start_paused = true)]
async fn spare_connection_costs_no_other_its_place_and_is_not_dialled_in_vain() {
    let limited = || {
        Sim::http2(|mut conn, index| async move {
            conn.handshake(&[(setting::MAX_CONCURRENT_STREAMS, 5)])
                .await;
            while let Some(head) = conn.read_kind(HEADERS).await {
                conn.headers(head.stream, OK, false).await;
                // Those of the first connection are held, up to four of them.
                if index > 0 || head.stream > 7 {
                    conn.data(head.stream, "ok", true).await;
                }
            }
        })
    };
    let protocols = plain(Protocols::Http2);
    for keep in [0, 1] {
        let sim = limited();
        let limits = Limits::default().max_keepalive_connections(keep);
        let pool = sim.pool(|pool| pool.limits(limits));
        let client = sim::client(&pool, protocols);
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(client.get("/").send().await.unwrap());
            sleep(millis(10)).await;
        }
        for _ in 0..20 {
            get(&client).await;
            sleep(millis(10)).await;
        }
        assert!(sim.dials() <= 2, "keep {keep}: {}", sim.dials());
    }
}

/// A connection that is found closed right after it was handed to somebody in line.
struct Fickle(Box<dyn firstbyte::io::Io>, bool, usize);

impl tokio::io::AsyncRead for Fickle {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        // At its check-in there was nothing yet.
        if self.1 && self.2 > 0 {
            return Poll::Ready(Ok(()));
        }
        let read = std::pin::Pin::new(&mut self.0).poll_read(cx, buf);
        self.2 += usize::from(self.1 && read.is_pending());
        self.1 |= read.is_ready();
        read
    }
}

impl tokio::io::AsyncWrite for Fickle {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[derive(Clone)]
struct FickleFirst(Sim, Arc<AtomicBool>);

impl Dial for FickleFirst {
    fn dial(&self, target: DialTarget) -> BoxFuture<'static, std::io::Result<Transport>> {
        let this = self.clone();
        Box::pin(async move {
            let transport = this.0.dial(target).await?;
            let Transport::Custom(io) = transport else {
                unreachable!()
            };
            if this.1.swap(true, Ordering::SeqCst) {
                return Ok(Transport::custom(io));
            }
            Ok(Transport::custom(Fickle(io, false, 0)))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn turn_is_not_lost_with_a_connection_that_was_closed_already() {
    let gate = Gate::new();
    let paths = Arc::new(Mutex::new(Vec::new()));
    let sim = Sim::http1({
        let (held, paths) = (gate.clone(), paths.clone());
        move |mut conn, index| {
            let (held, paths) = (held.waiter(), paths.clone());
            async move {
                loop {
                    let head = conn.read_head().await;
                    let Some(path) = head.split(' ').nth(1) else {
                        return;
                    };
                    paths.lock().unwrap().push(path.to_owned());
                    if index == 0 {
                        held.clone().opened().await;
                    }
                    conn.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                        .await;
                }
            }
        }
    });
    let limits = Limits::default().max_connections(1).max_waiting(2);
    let pool = firstbyte::ConnectionPool::builder()
        .dialer(FickleFirst(sim.clone(), Arc::default()))
        .resolve_to(sim::HOST, [[127, 0, 0, 1].into()])
        .limits(limits)
        .build()
        .unwrap();
    let client = sim::client(&pool, Protocols::Http1);
    let mut running = Vec::new();
    for path in ["/a", "/b", "/c"] {
        let request = client.get(path).send();
        running.push(tokio::spawn(async move { request.await.map(drop) }));
        sleep(millis(1)).await;
    }
    assert_eq!(pool.stats().waiting, 2);
    gate.open();
    for running in running {
        running.await.unwrap().unwrap();
    }
    assert_eq!(*paths.lock().unwrap(), ["/a", "/b", "/c"]);
    assert_eq!((sim.dials(), pool.stats().limit_hits), (2, 2));
}

/// What one gives up for somebody who has nothing goes to that one, and not back to its own line.
#[tokio::test(start_paused = true)]
async fn place_that_was_given_up_goes_to_who_has_nothing() {
    let sim = Sim::http1(|mut conn, _| async move {
        while !conn.read_head().await.is_empty() {
            sleep(millis(100)).await;
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
    });
    let pool = sim.pool(|pool| pool.limits(Limits::default().max_connections(1)));
    let busy = sim::client(&pool, Protocols::Http1);
    let cold = sim::client_of(&pool, sim::OTHERS[0], Protocols::Http1);
    let done = Arc::new(Mutex::new(Vec::new()));
    let mut running = Vec::new();
    for (name, client) in [("a", &busy), ("a2", &busy), ("cold", &cold), ("a3", &busy)] {
        let (request, done) = (client.get("/").send(), done.clone());
        running.push(tokio::spawn(async move {
            request.await.unwrap();
            done.lock().unwrap().push(name);
        }));
        sleep(millis(1)).await;
    }
    for running in running {
        running.await.unwrap();
    }
    assert_eq!(*done.lock().unwrap(), ["a", "a2", "cold", "a3"]);
    assert_eq!(sim.dials(), 3);
}

/// A connection that is no longer for requests is as good as none.
#[tokio::test(start_paused = true)]
async fn origin_whose_only_connection_is_upgraded_is_not_starved_by_a_busy_one() {
    let sim = Sim::http1(|mut conn, index| async move {
        while !conn.read_head().await.is_empty() {
            if index == 0 {
                let head = "HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
                conn.send(head).await;
                return conn.closed_by_client().await;
            }
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
    });
    let pool = sim.pool(|pool| pool.limits(Limits::default().max_connections(2)));
    let upgraded = sim::client(&pool, Protocols::Http1);
    let request = upgraded.get("/").header("connection", "upgrade");
    let held = request.header("upgrade", "x").send().await.unwrap();
    let _held = held.upgrade().unwrap();
    let busy = sim::client_of(&pool, sim::OTHERS[0], Protocols::Http1);
    let busy = tokio::spawn(async move {
        loop {
            busy.get("/").send().await.unwrap();
            sleep(millis(10)).await;
        }
    });
    sleep(millis(1_000)).await;
    let began = Instant::now();
    upgraded.get("/").send().await.unwrap();
    assert!(began.elapsed() < millis(100), "{:?}", began.elapsed());
    busy.abort();
}
