//! What errors say about a request, against what the server knows: a server that keeps books on what it really processed
//! closes, resets and refuses at every point of the exchange, over fresh and reused connections, for thousands of requests.
//!
//! Never may a request that was processed be called NotSent or Unprocessed, never may one that failed have an answer, and
//! never is a POST processed twice, unless the caller said that it may be.

mod common;
mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::{eventually, join_all};
use firstbyte::{Client, ConnectionPool, Http2Options, Protocols, ReplaySafety, RetryPolicy};
use support::h1_peer::{H1Conn, H1Peer};
use support::h2_peer::{Frame, H2Conn, H2Peer, code, kind};

/// Workers, each with a pool and a server of its own, and requests of each.
const WORKERS: u64 = 8;
const REQUESTS: u64 = 300;

/// A body that does not leave in one write with the head.
const LARGE: usize = 200_000;

/// The books of one worker's server.
struct Books {
    random: Mutex<u64>,
    /// The request that its client is at: it sends one after the other.
    current: AtomicU64,
    processed: Mutex<BTreeMap<u64, u32>>,
    /// What was done, for the sum at the end.
    done: Mutex<BTreeMap<&'static str, u32>>,
}

impl Books {
    fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            random: Mutex::new(seed),
            current: AtomicU64::new(0),
            processed: Mutex::default(),
            done: Mutex::default(),
        })
    }

    /// Reproducible from the seed (Knuth's MMIX generator).
    fn random(&self, below: u64) -> u64 {
        let mut state = self.random.lock().unwrap();
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % below
    }

    fn process(&self) {
        let id = self.current.load(Ordering::SeqCst);
        *self.processed.lock().unwrap().entry(id).or_default() += 1;
    }

    fn processed(&self, id: u64) -> u32 {
        self.processed
            .lock()
            .unwrap()
            .get(&id)
            .copied()
            .unwrap_or(0)
    }

    fn does(&self, what: &'static str) -> &'static str {
        *self.done.lock().unwrap().entry(what).or_default() += 1;
        what
    }
}

/// Half of the time all goes well, so that connections are reused.
const H1_ACTS: [&str; 14] = [
    "close before reading",
    "reset before reading",
    "close after the head",
    "reset after the head",
    "close within the body",
    "reset within the body",
    "process and close",
    "process and reset",
    "process and close within the head of the answer",
    "process and reset within the body of the answer",
    "process and close without the last chunk",
    "process, answer, close",
    "process, answer, reset",
    "answer early and reset",
];

async fn http1(mut conn: H1Conn, books: Arc<Books>) {
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    loop {
        let act = match books.random(28) as usize {
            n if n < H1_ACTS.len() => H1_ACTS[n],
            _ => "answer",
        };
        if act == "close before reading" {
            books.does(act);
            return conn.close().await;
        }
        if act == "reset before reading" {
            books.does(act);
            return conn.reset();
        }
        let head = conn.read_head().await;
        if !head.ends_with("\r\n\r\n") {
            return;
        }
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().unwrap());
        match books.does(act) {
            "close after the head" => return conn.close().await,
            "reset after the head" => return conn.reset(),
            "close within the body" => {
                conn.read_body(length.min(1)).await;
                return conn.close().await;
            }
            "reset within the body" => {
                conn.read_body(length.min(1)).await;
                return conn.reset();
            }
            "answer early and reset" => {
                books.process();
                conn.send("HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n")
                    .await;
                return conn.reset();
            }
            _ => {}
        }
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().unwrap());
        if conn.read_body(length).await.len() < length {
            return;
        }
        books.process();
        match act {
            "process and close" => return conn.close().await,
            "process and reset" => return conn.reset(),
            "process and close within the head of the answer" => {
                conn.send(&OK[..20]).await;
                return conn.close().await;
            }
            "process and reset within the body of the answer" => {
                conn.send(&OK[..OK.len() - 1]).await;
                return conn.reset();
            }
            "process and close without the last chunk" => {
                conn.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
                    .await;
                return conn.close().await;
            }
            "process, answer, close" => {
                conn.send(OK).await;
                return conn.close().await;
            }
            "process, answer, reset" => {
                conn.send(OK).await;
                return conn.reset();
            }
            _ => {
                conn.send(OK).await;
            }
        }
    }
}

const H2_ACTS: [&str; 16] = [
    "close before SETTINGS",
    "close after the head",
    "reset after the head",
    "refuse the stream",
    "refuse the stream after a part of the body",
    "GOAWAY below the stream",
    "GOAWAY below the stream, with an error",
    "GOAWAY below the stream, and close",
    "process and close",
    "process and reset",
    "process and reset the stream",
    "process and GOAWAY above the stream, and close",
    "process, GOAWAY of the stream, answer",
    "process and close after the head of the answer",
    "process, answer, close",
    "answer early and reset the stream",
];

/// The next request; what comes late of those before is given back to the connection's window.
async fn next_head(conn: &mut H2Conn) -> Option<Frame> {
    loop {
        let frame = conn.read_frame().await?;
        match frame.kind {
            kind::HEADERS => return Some(frame),
            kind::DATA if frame.len > 0 => {
                conn.window_update(0, frame.len as u32).await;
            }
            _ => {}
        }
    }
}

async fn http2(mut conn: H2Conn, books: Arc<Books>) {
    let mut last = 0;
    if books.random(20) == 0 {
        books.does("close before SETTINGS");
        conn.accept_preface().await;
        return;
    }
    conn.handshake(&[]).await;
    while let Some(head) = next_head(&mut conn).await {
        let act = match books.random(32) as usize {
            n if n < H2_ACTS.len() => H2_ACTS[n],
            _ => "answer",
        };
        let stream = head.stream;
        match books.does(act) {
            "close after the head" => return,
            "reset after the head" => return conn.reset(),
            "refuse the stream" => {
                conn.rst(stream, code::REFUSED_STREAM).await;
                continue;
            }
            "refuse the stream after a part of the body" => {
                if !head.is_end_stream()
                    && let Some(data) = conn.read_kind(kind::DATA).await
                    && data.len > 0
                {
                    conn.window_update(0, data.len as u32).await;
                }
                conn.rst(stream, code::REFUSED_STREAM).await;
                continue;
            }
            "GOAWAY below the stream" => {
                conn.goaway(last, code::NO_ERROR, "").await;
                return conn.closed_by_client().await;
            }
            "GOAWAY below the stream, with an error" => {
                conn.goaway(last, code::INTERNAL_ERROR, "").await;
                return conn.closed_by_client().await;
            }
            "GOAWAY below the stream, and close" => {
                conn.goaway(last, code::NO_ERROR, "").await;
                return;
            }
            "answer early and reset the stream" => {
                books.process();
                conn.headers(stream, &[(":status", "413")], true).await;
                conn.rst(stream, code::NO_ERROR).await;
                last = stream;
                continue;
            }
            _ => {}
        }
        let mut is_end = head.is_end_stream();
        while !is_end {
            let Some(frame) = conn.read_frame().await else {
                return;
            };
            if frame.kind == kind::DATA && frame.stream == stream {
                is_end = frame.is_end_stream();
                if frame.len > 0 {
                    conn.window_update(0, frame.len as u32).await;
                    conn.window_update(stream, frame.len as u32).await;
                }
            }
        }
        books.process();
        last = stream;
        let ok = [(":status", "200")];
        match act {
            "process and close" => return,
            "process and reset" => return conn.reset(),
            "process and reset the stream" => {
                conn.rst(stream, code::INTERNAL_ERROR).await;
                continue;
            }
            "process and GOAWAY above the stream, and close" => {
                conn.goaway(stream, code::NO_ERROR, "").await;
                return;
            }
            "process, GOAWAY of the stream, answer" => {
                conn.goaway(stream, code::NO_ERROR, "").await;
                conn.headers(stream, &ok, false).await;
                conn.data(stream, "ok", true).await;
                return conn.closed_by_client().await;
            }
            "process and close after the head of the answer" => {
                conn.headers(stream, &ok, false).await;
                return;
            }
            _ => {
                conn.headers(stream, &ok, false).await;
                conn.data(stream, "ok", true).await;
            }
        }
        if act == "process, answer, close" {
            return;
        }
    }
}

/// What the requests of one worker came to.
#[derive(Default)]
struct Sum {
    answered: u32,
    failed: BTreeMap<String, u32>,
    /// Answered at a further attempt.
    again: u32,
    wrong: Vec<String>,
}

async fn work(client: &Client, books: &Books, worker: u64) -> Sum {
    let mut sum = Sum::default();
    for n in 1..=REQUESTS {
        let id = worker * REQUESTS + n;
        books.current.store(id, Ordering::SeqCst);
        let (manner, request) = match n % 6 {
            0 => (
                "POST that may be processed twice",
                client.post("/").body("once").idempotent(true),
            ),
            1 => ("GET", client.get("/")),
            2 => ("large POST", client.post("/").body(vec![b'x'; LARGE])),
            3 => {
                let never = firstbyte::RequestOptions::default().retry(RetryPolicy::Never);
                ("GET, never again", client.get("/").options(never))
            }
            _ => ("POST", client.post("/").body("once")),
        };
        let result = match request.send().await {
            Ok(mut response) => {
                let attempts = response.metrics().attempts;
                response.bytes().await.map(|_| attempts)
            }
            Err(error) => Err(error),
        };
        let processed = books.processed(id);
        let mut wrong = |what: &str| {
            sum.wrong.push(format!(
                "{manner} {id}: {what}; processed {processed} times, {result:?}"
            ));
        };
        let may_repeat = manner == "GET" || manner == "POST that may be processed twice";
        if processed > 1 && !may_repeat || processed > 2 {
            wrong("processed too often");
        }
        match &result {
            Ok(_) if processed == 0 => wrong("answered and not processed"),
            Ok(attempts) => {
                sum.answered += 1;
                sum.again += u32::from(*attempts > 1);
            }
            Err(error) => {
                let safety = error.replay_safety();
                let is_denied = matches!(safety, ReplaySafety::NotSent | ReplaySafety::Unprocessed);
                if is_denied && processed > 0 {
                    wrong("called not processed");
                }
                if safety == ReplaySafety::Processed && processed == 0 {
                    wrong("called processed");
                }
                if safety == ReplaySafety::NotSent && error.bytes_sent() > 0 {
                    wrong("called not sent, and bytes were");
                }
                *sum.failed.entry(format!("{safety:?}")).or_default() += 1;
            }
        }
    }
    sum
}

async fn run(protocols: Protocols) {
    let jobs = (0..WORKERS).map(|worker| async move {
        let books = Books::new(worker + 1);
        let (addr, _peers): (_, Box<dyn std::any::Any>) = if protocols == Protocols::Http1 {
            let books = books.clone();
            let peer = H1Peer::start(move |conn, _| http1(conn, books.clone()));
            (peer.addr(), Box::new(peer))
        } else {
            let books = books.clone();
            let peer = H2Peer::start(move |conn, _| http2(conn, books.clone()));
            (peer.addr(), Box::new(peer))
        };
        let pool = ConnectionPool::builder()
            .http2(Http2Options::default().max_connections_per_origin(1))
            .build()
            .unwrap();
        let client = pool
            .client_builder(format!("http://{addr}"))
            .protocols(protocols);
        let client = client.build().unwrap();
        let sum = work(&client, &books, worker).await;
        eventually("nothing is left open", || {
            // A spare may still be on its way.
            pool.close_idle();
            pool.stats().open == 0
        })
        .await;
        let done = std::mem::take(&mut *books.done.lock().unwrap());
        (sum, done)
    });
    let mut all = Sum::default();
    let mut acts = BTreeMap::new();
    for (sum, done) in join_all(jobs).await {
        all.answered += sum.answered;
        all.again += sum.again;
        all.wrong.extend(sum.wrong);
        for (safety, n) in sum.failed {
            *all.failed.entry(safety).or_default() += n;
        }
        for (act, n) in done {
            *acts.entry(act).or_insert(0) += n;
        }
    }
    println!(
        "{protocols:?}: {} answered, {} of them at a further attempt; failed {:?}; {acts:?}",
        all.answered, all.again, all.failed
    );
    assert!(all.wrong.is_empty(), "{:#?}", all.wrong);
    // Every act took place, and every way to fail but not one that only a cold connection knows.
    let expected: &[&str] = if protocols == Protocols::Http1 {
        &H1_ACTS
    } else {
        &H2_ACTS
    };
    for act in expected {
        assert!(acts.contains_key(act), "never: {act}");
    }
    for safety in ["MaybeProcessed", "Processed"] {
        assert!(all.failed.contains_key(safety), "never: {safety}");
    }
    assert!(all.again > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verdicts_over_http1_are_true_for_thousands_of_requests() {
    run(Protocols::Http1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verdicts_over_http2_are_true_for_thousands_of_requests() {
    run(Protocols::Http2PriorKnowledge).await;
}
