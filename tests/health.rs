//! HTTP/2 peers that fall silent: when they are asked with a PING, and what becomes of requests meanwhile. On a paused
//! clock: every instant is exact.

mod common;
mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{eventually, join_all};
use firstbyte::{Client, CloseReason, ConnectionPool, ErrorKind, Protocols, ReplaySafety};
use support::h2_peer::H2Conn;
use support::sim::{self, Sim};
use tokio::time::{Instant, sleep, timeout};

const OK: &[(&str, &str)] = &[(":status", "200")];
const HEADERS: u8 = 1;
const PING: u8 = 6;
const ACK: u8 = 1;

/// A connection, what its peer saw, and when in milliseconds since the test began.
type Entry = (usize, &'static str, u64);

#[derive(Clone)]
struct Log(Arc<Mutex<Vec<Entry>>>, Instant);

impl Log {
    fn new() -> Self {
        Self(Arc::default(), Instant::now())
    }

    fn note(&self, conn: usize, what: &'static str) {
        let at = self.1.elapsed().as_millis() as u64;
        self.0.lock().unwrap().push((conn, what, at));
    }

    /// When a connection saw this.
    fn of(&self, conn: usize, what: &str) -> Vec<u64> {
        let log = self.0.lock().unwrap();
        let fits = log.iter().filter(|(c, w, _)| *c == conn && *w == what);
        fits.map(|(.., at)| *at).collect()
    }
}

/// How the peers behave, changed while they run.
#[derive(Clone, Default)]
struct Manner {
    /// Nothing is read or answered any more on the first so many connections.
    dead: Arc<AtomicUsize>,
    /// Requests are left without an answer.
    holds: Arc<AtomicBool>,
    /// So long until a PING is answered, in milliseconds.
    pong_takes: Arc<AtomicUsize>,
    /// The same for a request.
    answer_takes: Arc<AtomicUsize>,
}

async fn peer(mut conn: H2Conn, index: usize, log: Log, manner: Manner) {
    conn.auto_ping(false);
    conn.handshake(&[]).await;
    while let Some(frame) = conn.read_frame().await {
        if index < manner.dead.load(Ordering::SeqCst) {
            log.note(index, "unheard");
            continue;
        }
        match frame.kind {
            HEADERS => {
                log.note(index, "HEADERS");
                sleep(millis(manner.answer_takes.load(Ordering::SeqCst) as u64)).await;
                if !manner.holds.load(Ordering::SeqCst) {
                    conn.headers(frame.stream, OK, false).await;
                    conn.data(frame.stream, "ok", true).await;
                }
            }
            PING if !frame.has_flag(ACK) => {
                log.note(index, "PING");
                sleep(millis(manner.pong_takes.load(Ordering::SeqCst) as u64)).await;
                conn.frame(PING, ACK, 0, &frame.payload).await;
            }
            _ => {}
        }
    }
    log.note(index, "end");
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

struct Stage {
    sim: Sim,
    pool: ConnectionPool,
    client: Client,
    log: Log,
    manner: Manner,
}

fn stage() -> Stage {
    let (log, manner) = (Log::new(), Manner::default());
    let sim = {
        let (log, manner) = (log.clone(), manner.clone());
        Sim::http2(move |conn, index| peer(conn, index, log.clone(), manner.clone()))
    };
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    Stage {
        sim,
        pool,
        client,
        log,
        manner,
    }
}

async fn get(client: &Client) {
    let mut response = client.get("/").send().await.expect("an answer");
    response.bytes().await.expect("a body");
}

#[tokio::test(start_paused = true)]
async fn idle_connection_is_never_asked_and_the_first_request_after_ten_seconds_is_accompanied() {
    let stage = stage();
    get(&stage.client).await;
    sleep(millis(9_000)).await;
    get(&stage.client).await;
    assert_eq!(stage.log.of(0, "PING"), [0u64; 0], "heard of it lately");
    sleep(millis(280_000)).await;
    assert_eq!(stage.log.of(0, "PING"), [0u64; 0], "nobody waits for it");
    get(&stage.client).await;
    eventually("the PING has come", || !stage.log.of(0, "PING").is_empty()).await;
    assert_eq!(stage.log.of(0, "PING"), [289_000]);
    assert_eq!(stage.log.of(0, "HEADERS"), [0, 9_000, 289_000]);
    assert_eq!(stage.sim.dials(), 1);
}

/// An answered PING puts the next one off for as long as the peer says nothing else: what it says begins a new silence.
#[tokio::test(start_paused = true)]
async fn every_silence_is_asked_into_though_the_last_answer_came_before_the_response() {
    let stage = stage();
    get(&stage.client).await;
    stage.manner.answer_takes.store(50, Ordering::SeqCst);
    sleep(millis(20_000)).await;
    get(&stage.client).await;
    assert_eq!(stage.log.of(0, "PING"), [20_000]);
    sleep(millis(15_000)).await;
    get(&stage.client).await;
    assert_eq!(stage.log.of(0, "PING"), [20_000, 35_050]);
    // And with a stream that waits.
    stage.manner.answer_takes.store(0, Ordering::SeqCst);
    stage.manner.holds.store(true, Ordering::SeqCst);
    let waiting = tokio::spawn({
        let client = stage.client.clone();
        async move { client.get("/").send().await.map(drop) }
    });
    sleep(millis(12_000)).await;
    assert_eq!(stage.log.of(0, "PING"), [20_000, 35_050, 45_100]);
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn silence_under_open_streams_is_asked_into_twice_and_again_after_the_peer_spoke() {
    let stage = stage();
    get(&stage.client).await;
    stage.manner.holds.store(true, Ordering::SeqCst);
    let waiting = tokio::spawn({
        let client = stage.client.clone();
        async move { client.get("/").send().await.map(drop) }
    });
    sleep(millis(3_600_000)).await;
    assert_eq!(stage.log.of(0, "PING"), [10_000, 60_000]);
    // Somebody else's answer shows that it lives and begins a new silence.
    stage.manner.holds.store(false, Ordering::SeqCst);
    get(&stage.client).await;
    sleep(millis(3_600_000)).await;
    assert_eq!(
        stage.log.of(0, "PING"),
        [10_000, 60_000, 3_610_000, 3_660_000]
    );
    assert_eq!((stage.sim.dials(), stage.sim.live()), (1, 1));
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn while_the_answer_is_out_nobody_gets_a_stream_and_in_time_nobody_dials() {
    let stage = stage();
    get(&stage.client).await;
    stage.manner.pong_takes.store(80, Ordering::SeqCst);
    sleep(millis(20_000)).await;
    let first = tokio::spawn({
        let client = stage.client.clone();
        async move { get(&client).await }
    });
    eventually("the PING has come", || stage.log.of(0, "PING").len() == 1).await;
    // The peer is slow, not dead: these wait for it and for nothing else.
    let began = Instant::now();
    let mut response = stage.client.get("/").send().await.unwrap();
    response.bytes().await.unwrap();
    assert_eq!(began.elapsed(), millis(80));
    assert!(response.metrics().connection_reused);
    let timing = response.timing();
    assert_eq!(timing.queue_dial(), Some(millis(80)), "the network's time");
    assert_eq!(timing.queue_limit(), None);
    assert_eq!(timing.network_overhead(), millis(80));
    first.await.unwrap();
    assert_eq!(stage.sim.dials(), 1);
    assert_eq!(stage.pool.stats().limit_hits, 0);
}

#[tokio::test(start_paused = true)]
async fn late_answer_starts_a_spare_dial_that_serves_those_who_wait_and_the_connection_is_trusted_again()
 {
    let stage = stage();
    get(&stage.client).await;
    stage.manner.pong_takes.store(900, Ordering::SeqCst);
    sleep(millis(20_000)).await;
    // Its own answer comes with or behind the PING's.
    let first = tokio::spawn({
        let client = stage.client.clone();
        async move { get(&client).await }
    });
    eventually("the PING has come", || stage.log.of(0, "PING").len() == 1).await;
    let began = Instant::now();
    get(&stage.client).await;
    // A short path: late after a tenth of a second.
    assert_eq!(began.elapsed(), millis(100));
    assert_eq!(stage.log.of(1, "HEADERS"), [20_100]);
    first.await.unwrap();
    sleep(millis(2_000)).await;
    assert_eq!(
        (stage.sim.dials(), stage.sim.live()),
        (2, 2),
        "it had only been slow"
    );
    stage.manner.pong_takes.store(0, Ordering::SeqCst);
    stage.manner.holds.store(true, Ordering::SeqCst);
    let two = (0..2).map(|_| {
        let client = stage.client.clone();
        tokio::spawn(async move { client.get("/").send().await.map(drop) })
    });
    let two: Vec<_> = two.collect();
    sleep(millis(100)).await;
    assert_eq!(
        stage.log.of(0, "HEADERS").len(),
        3,
        "it takes its share again"
    );
    two.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn blackholed_peer_under_load_is_given_up_and_everything_after_the_deadline_succeeds() {
    let stage = stage();
    let (client, pool) = (stage.client.clone(), stage.pool.clone());
    join_all((0..10).map(|_| get(&client))).await;
    stage.manner.dead.store(1, Ordering::SeqCst);
    let died = stage.log.1.elapsed();
    // A request every 100 ms.
    let mut requests = Vec::new();
    for _ in 0..300 {
        let client = client.clone();
        let began = stage.log.1.elapsed() - died;
        requests.push(tokio::spawn(async move {
            let result = client.post("/").body("x").send().await;
            (began, result.map(drop))
        }));
        sleep(millis(100)).await;
    }
    let mut failed = Vec::new();
    for request in requests {
        let (began, result) = timeout(millis(600_000), request)
            .await
            .expect("hangs")
            .unwrap();
        if let Err(error) = result {
            // On the wire, answer unknown: told so, and never sent twice.
            assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
            assert!(error.to_string().contains("PING"), "{error}");
            assert_eq!(error.replay_safety(), ReplaySafety::MaybeProcessed);
            failed.push(began);
        }
    }
    // Silence is noticed after 10 s; from the PING on the connection gets nothing.
    assert!(
        failed.len() >= 100 && failed.len() <= 101,
        "{}",
        failed.len()
    );
    assert!(
        failed.iter().all(|began| *began <= millis(10_000)),
        "{failed:?}"
    );
    // What reached the dead one: 100 or 101 requests with their bodies, a PING, and nothing later.
    let unheard = stage.log.of(0, "unheard");
    assert!(unheard.iter().all(|at| *at <= 10_000), "{unheard:?}");
    // Dead a second after the PING.
    assert_eq!(stage.log.of(0, "end"), [11_000]);
    assert_eq!(pool.stats().closed[&CloseReason::Unresponsive], 1);
    assert_eq!(stage.sim.live(), 1);
}

#[tokio::test(start_paused = true)]
async fn request_that_runs_out_of_time_has_the_peer_asked_at_once() {
    let stage = stage();
    get(&stage.client).await;
    stage.manner.dead.store(1, Ordering::SeqCst);
    let mut request = stage.client.get("/");
    request = request.timeout(millis(2_000));
    let error = request.send().await.expect_err("no answer comes");
    assert!(error.is_timeout(), "{error}");
    let began = Instant::now();
    get(&stage.client).await;
    assert_eq!(
        began.elapsed(),
        millis(100),
        "the spare dial at the late answer"
    );
    sleep(millis(10_000)).await;
    assert_eq!(stage.log.of(0, "end"), [3_000]);
    assert_eq!(stage.pool.stats().closed[&CloseReason::Unresponsive], 1);
}

#[tokio::test(start_paused = true)]
async fn peer_that_asks_for_calm_gets_no_ping_on_its_next_connections() {
    let log = Log::new();
    let sim = {
        let log = log.clone();
        Sim::http2(move |mut conn, index| {
            let log = log.clone();
            async move {
                conn.auto_ping(false);
                conn.handshake(&[]).await;
                while let Some(frame) = conn.read_frame().await {
                    match frame.kind {
                        HEADERS => {
                            conn.headers(frame.stream, OK, false).await;
                            conn.data(frame.stream, "ok", true).await;
                        }
                        PING if !frame.has_flag(ACK) => {
                            log.note(index, "PING");
                            conn.goaway(2_147_483_647, 11, "too_many_pings").await;
                            return;
                        }
                        _ => {}
                    }
                }
            }
        })
    };
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    get(&client).await;
    sleep(millis(20_000)).await;
    // Its answer and GOAWAY come in one order or the other.
    let _ = client.get("/").send().await;
    eventually("told", || log.of(0, "PING").len() == 1).await;
    for _ in 0..5 {
        get(&client).await;
        sleep(millis(60_000)).await;
    }
    assert_eq!(log.of(1, "PING"), [0u64; 0]);
    assert_eq!(sim.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn peer_that_never_sends_settings_is_given_up_and_warming_does_not_hang() {
    let sim = Sim::http2(|mut conn, _| async move {
        conn.accept_preface().await;
        conn.closed_by_client().await;
    });
    let pool = sim.pool(|pool| pool.connect_timeout(millis(3_000)));
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    let began = Instant::now();
    let report = client.warm(1).await.unwrap();
    assert_eq!(began.elapsed(), millis(3_000));
    assert_eq!(report.ready(), 0);
    assert!(report.error.is_some());
    eventually("it is closed", || sim.live() == 0).await;
    assert_eq!(pool.stats().open, 0);
}

#[tokio::test(start_paused = true)]
async fn stream_with_data_under_way_is_no_silence() {
    let log = Log::new();
    let sim = {
        let log = log.clone();
        Sim::http2(move |mut conn, index| {
            let log = log.clone();
            async move {
                conn.handshake(&[]).await;
                let head = conn.read_headers().await;
                conn.headers(head.stream, OK, false).await;
                for _ in 0..20 {
                    sleep(millis(9_000)).await;
                    conn.data(head.stream, "token", false).await;
                }
                conn.data(head.stream, "", true).await;
                while let Some(frame) = conn.read_frame().await {
                    if frame.kind == PING {
                        log.note(index, "PING");
                    }
                }
            }
        })
    };
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    let mut response = client.get("/").send().await.unwrap();
    assert_eq!(response.bytes().await.unwrap().len(), 100);
    tokio::task::yield_now().await;
    assert_eq!(log.of(0, "PING"), [0u64; 0]);
}

#[tokio::test(start_paused = true)]
async fn peer_that_sends_is_alive_though_it_answers_no_ping() {
    let log = Log::new();
    let sim = {
        let log = log.clone();
        Sim::http2(move |mut conn, index| {
            let log = log.clone();
            async move {
                conn.auto_ping(index > 0);
                conn.handshake(&[]).await;
                if index > 0 {
                    // A spare: it lives, and answers no request either.
                    while conn.read_frame().await.is_some() {}
                    return;
                }
                let first = conn.read_headers().await.stream;
                conn.headers(first, OK, false).await;
                loop {
                    // Data for the first, and not a word for the others.
                    conn.data(first, "token", false).await;
                    if timeout(millis(400), conn.readable()).await.is_ok() {
                        match conn.read_frame().await {
                            Some(frame) if frame.kind == PING => log.note(index, "PING"),
                            Some(_) => {}
                            None => return,
                        }
                    }
                }
            }
        })
    };
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    let mut tokens = client.get("/").send().await.unwrap();
    for _ in 0..20 {
        let request = client.get("/").timeout(millis(1_100)).send();
        let error = request.await.expect_err("no answer comes");
        assert!(error.is_timeout(), "{error}");
        tokens.chunk().await.expect("it goes on").expect("and on");
    }
    assert!(!log.of(0, "PING").is_empty(), "it was asked");
    let closed = pool.stats().closed;
    assert!(closed.is_empty(), "{closed:?}");
    assert_eq!(sim.live(), sim.dials());
    assert!(sim.dials() <= 2, "a spare at most: {}", sim.dials());
}

#[tokio::test(start_paused = true)]
async fn slow_upload_behind_which_a_ping_waits_is_no_silence() {
    let sim = Sim::http2(|mut conn, _| async move {
        conn.handshake(&[(4, 16 * 1024 * 1024)]).await;
        conn.window_update(0, 16 * 1024 * 1024).await;
        let stream = conn.read_headers().await.stream;
        // 16 KiB in two seconds: what lies between holds more than eight seconds of it.
        loop {
            sleep(millis(2_000)).await;
            match conn.read_frame().await {
                Some(frame) if frame.is_end_stream() => break,
                Some(_) => {}
                None => return,
            }
        }
        conn.headers(stream, OK, true).await;
        conn.closed_by_client().await;
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    client.warm(1).await.unwrap().into_result().unwrap();
    let body = vec![b'x'; 400 * 1024];
    let response = client.post("/").body(body).send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert!(!pool.stats().closed.contains_key(&CloseReason::Unresponsive));
}

#[tokio::test(start_paused = true)]
async fn body_of_a_peer_that_falls_silent_ends_with_an_error_that_says_so() {
    let sim = Sim::http2(|mut conn, _| async move {
        conn.auto_ping(false);
        conn.handshake(&[]).await;
        let stream = conn.read_headers().await.stream;
        conn.headers(stream, OK, false).await;
        conn.data(stream, "token", false).await;
        conn.closed_by_client().await;
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    let mut response = client.get("/").send().await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "token");
    let began = Instant::now();
    let error = response.chunk().await.expect_err("nothing comes");
    assert_eq!(
        began.elapsed(),
        millis(11_000),
        "ten of silence, one for the PING"
    );
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    assert_eq!(error.replay_safety(), ReplaySafety::Processed);
    assert!(error.to_string().contains("PING"), "{error}");
}

/// A request that comes when an earlier one's upload is stuck and nobody waits for it any more.
#[tokio::test(start_paused = true)]
async fn request_on_a_connection_that_takes_nothing_is_asked_for_too() {
    let sim = Sim::http2(|mut conn, index| async move {
        conn.handshake(&[(4, 16 * 1024 * 1024)]).await;
        conn.window_update(0, 16 * 1024 * 1024).await;
        if index > 0 {
            return conn.closed_by_client().await;
        }
        conn.read_headers().await;
        // It reads nothing more.
        sleep(millis(600_000)).await;
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    client.warm(1).await.unwrap().into_result().unwrap();
    let post = client.post("/").body(vec![b'x'; 400 * 1024]).send();
    let given_up = tokio::time::timeout(millis(5_000), post).await;
    assert!(given_up.is_err());
    sleep(millis(15_000)).await;
    let began = Instant::now();
    let error = client.post("/").send().await.unwrap_err();
    assert!(began.elapsed() < millis(7_000), "{:?}", began.elapsed());
    assert!(error.to_string().contains("PING"), "{error}");
}
