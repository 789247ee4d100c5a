//! Cancelled HTTP/2 streams: their resets are paced, what they leave behind harms nobody, and a connection that runs short
//! of resets is replaced before anybody notices.

mod common;
mod support;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{in_time, join_all};
use firstbyte::{Client, CloseReason, ConnectionPool, Protocols};
use support::h2_peer::{H2Conn, kind};
use support::sim::{self, Sim};
use tokio::time::{Instant, sleep};

/// `:method: GET` as it begins a header block (RFC 7541, appendix A).
const GET: u8 = 0x82;
/// What a peer may count on in any 30 seconds.
const MOST: usize = 190;

/// What the peers saw.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Facts>>);

#[derive(Default)]
struct Facts {
    /// By connection, when streams were reset.
    resets: HashMap<usize, Vec<Instant>>,
    most_open: usize,
}

impl Seen {
    fn reset(&self, connection: usize) {
        let mut facts = self.0.lock().unwrap();
        facts
            .resets
            .entry(connection)
            .or_default()
            .push(Instant::now());
    }

    fn resets(&self) -> usize {
        self.0.lock().unwrap().resets.values().map(Vec::len).sum()
    }

    /// Resets in the worst 30 seconds of any connection.
    fn worst(&self) -> usize {
        let facts = self.0.lock().unwrap();
        let window = Duration::from_secs(30);
        let worst_of = |times: &Vec<Instant>| {
            let from = |n: usize| {
                let end = times[n] + window;
                times[n..].iter().take_while(|at| **at < end).count()
            };
            (0..times.len()).map(from).max().unwrap_or(0)
        };
        facts.resets.values().map(worst_of).max().unwrap_or(0)
    }
}

/// Answers POST whole and GET without an end; sends `late` frames on each stream that was reset.
async fn peer(mut conn: H2Conn, index: usize, seen: Seen, late: usize) {
    conn.handshake(&[]).await;
    let mut open = 0;
    while let Some(frame) = conn.read_frame().await {
        match frame.kind {
            kind::HEADERS => {
                let is_get = frame.payload[0] == GET;
                conn.cork();
                conn.headers(frame.stream, &[(":status", "200")], false)
                    .await;
                conn.data(frame.stream, "ok", !is_get).await;
                conn.flush().await;
                open += usize::from(is_get);
                let mut facts = seen.0.lock().unwrap();
                facts.most_open = facts.most_open.max(open);
            }
            kind::RST_STREAM => {
                seen.reset(index);
                open -= 1;
                conn.cork();
                for _ in 0..late {
                    conn.data(frame.stream, [b'l'; 20], false).await;
                }
                conn.flush().await;
            }
            _ => {}
        }
    }
}

fn sim(seen: &Seen, late: usize) -> Sim {
    let seen = seen.clone();
    Sim::http2(move |conn, index| peer(conn, index, seen.clone(), late))
}

fn client(sim: &Sim) -> (ConnectionPool, Client) {
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    (pool, client)
}

fn closed(pool: &ConnectionPool, why: CloseReason) -> u64 {
    pool.stats().closed.get(&why).copied().unwrap_or(0)
}

async fn cancelled(client: &Client) {
    let response = client.get("/").send().await.expect("a head");
    drop(response);
}

async fn whole(client: &Client) {
    let mut response = client.post("/").send().await.expect("an answer");
    assert_eq!(response.text().await.expect("a body"), "ok");
}

#[tokio::test(start_paused = true)]
async fn hundred_resets_may_follow_at_once_and_the_others_wait_with_their_slots() {
    in_time(async {
        let seen = Seen::default();
        let sim = sim(&seen, 0);
        let (pool, client) = client(&sim);
        for _ in 0..110 {
            cancelled(&client).await;
        }
        whole(&client).await;
        assert_eq!(seen.resets(), 100);
        assert_eq!(pool.stats().active, 1, "ten streams wait for their reset");
        // Three a second.
        sleep(Duration::from_secs(4)).await;
        assert_eq!((seen.resets(), pool.stats().active), (110, 0));
        assert_eq!(sim.dials(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn abandoned_stream_that_ends_by_itself_is_not_reset() {
    in_time(async {
        let seen = Seen::default();
        let told = seen.clone();
        let sim = Sim::http2(move |mut conn, index| {
            let seen = told.clone();
            async move {
                conn.handshake(&[]).await;
                let mut requests = 0;
                while let Some(frame) = conn.read_frame().await {
                    match frame.kind {
                        kind::HEADERS => {
                            requests += 1;
                            conn.headers(frame.stream, &[(":status", "200")], false)
                                .await;
                            // The last one is ended before its reset can be paid.
                            if requests > 100 {
                                conn.data(frame.stream, vec![b'x'; 10_000], false).await;
                                sleep(Duration::from_millis(100)).await;
                                conn.data(frame.stream, "end", true).await;
                            }
                        }
                        kind::RST_STREAM => seen.reset(index),
                        _ => {}
                    }
                }
            }
        });
        let (pool, client) = client(&sim);
        for _ in 0..101 {
            cancelled(&client).await;
        }
        sleep(Duration::from_secs(5)).await;
        assert_eq!((seen.resets(), pool.stats().active), (100, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn peer_that_counts_resets_never_counts_too_many_and_no_request_waits() {
    let seen = Seen::default();
    let sim = sim(&seen, 0);
    let (pool, client) = client(&sim);
    let begin = Instant::now();
    // Twenty a second for a minute.
    for _ in 0..1_200 {
        cancelled(&client).await;
        whole(&client).await;
        sleep(Duration::from_millis(50)).await;
    }
    let took = begin.elapsed();
    assert!(took < Duration::from_millis(60_100), "{took:?}");
    assert!(seen.worst() <= MOST, "{}", seen.worst());
    let worn = closed(&pool, CloseReason::WornOut);
    assert!((2..=10).contains(&worn), "{worn}");
}

#[tokio::test(start_paused = true)]
async fn thousands_of_cancelled_streams_with_late_frames_harm_no_other() {
    // The issue of a million: `cargo test --release --test resets`.
    const CANCELLED: usize = if cfg!(debug_assertions) {
        20_000
    } else {
        1_000_000
    };
    let seen = Seen::default();
    let sim = sim(&seen, 10);
    let (pool, client) = client(&sim);
    for _ in 0..CANCELLED / 10 {
        let (_, ()) = tokio::join!(
            join_all((0..10).map(|_| cancelled(&client))),
            whole(&client)
        );
    }
    assert!(seen.worst() <= MOST, "{}", seen.worst());
    let stats = pool.stats();
    assert_eq!(stats.total_requests as usize, CANCELLED / 10 * 11);
    for why in [CloseReason::Failed, CloseReason::TransportLost] {
        assert_eq!(closed(&pool, why), 0, "{why}");
    }
    println!(
        "{CANCELLED} cancelled, {} reset, {} connections",
        seen.resets(),
        sim.dials()
    );
}

/// Whole requests with a body leave nothing behind that h2 would remember in place of what was cancelled.
#[tokio::test(start_paused = true)]
async fn cancelled_stream_is_remembered_behind_a_thousand_posts() {
    in_time(async {
        let seen = Seen::default();
        let told = seen.clone();
        let sim = Sim::http2(move |mut conn, index| {
            let seen = told.clone();
            async move {
                conn.handshake(&[]).await;
                while let Some(frame) = conn.read_frame().await {
                    match frame.kind {
                        kind::HEADERS => {
                            let is_get = frame.payload[0] == GET;
                            conn.headers(frame.stream, &[(":status", "200")], false)
                                .await;
                            conn.data(frame.stream, "ok", !is_get).await;
                        }
                        kind::RST_STREAM => {
                            seen.reset(index);
                            if seen.resets() == 1 {
                                for _ in 0..10 {
                                    conn.data(frame.stream, "late", false).await;
                                    sleep(Duration::from_millis(1)).await;
                                }
                            }
                        }
                        _ => {}
                    }
                }
            }
        });
        let (_pool, client) = client(&sim);
        for _ in 0..1_100 {
            let mut response = client.post("/").body("x").send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "ok");
        }
        cancelled(&client).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!((seen.resets(), sim.dials()), (1, 1));
    })
    .await;
}
