//! A request that goes away at every poll and at every millisecond of every stage leaves nothing: no slot, no connection
//! in use, no waiter, no task; and the pool works. On a paused clock over a network of memory.

mod common;
mod support;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{BOTH, DropAfter, eventually, join_all};
use firstbyte::dns::{Answer, Family, Resolve, ResolveError, ResolveErrorKind};
use firstbyte::io::{BoxFuture, Dial, DialTarget, Transport};
use firstbyte::{Body, Client, CloseReason, ConnectionPool, ConnectionUse, Limits, Protocols};
use support::h1_peer::H1Conn;
use support::h2_peer::H2Conn;
use support::sim::{self, Sim, plain};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;
const CANCEL: u32 = 8;
/// Every stage takes so long.
const STAGE: Duration = Duration::from_millis(5);
const UPLOAD: usize = 200 * 1024;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Reads head and body, and answers in pieces with trailers, everything slowly.
async fn slow_h1(mut conn: H1Conn) {
    loop {
        let head = conn.read_head().await;
        if head.is_empty() {
            return;
        }
        // The upload stalls: the pipe between holds less than it.
        sleep(STAGE).await;
        if head.starts_with("POST") {
            conn.read_body(UPLOAD).await;
        }
        sleep(STAGE).await;
        conn.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        for _ in 0..3 {
            sleep(STAGE).await;
            conn.send("5\r\nhello\r\n").await;
        }
        sleep(STAGE).await;
        conn.send("0\r\nsum: 15\r\n\r\n").await;
    }
}

async fn slow_h2(mut conn: H2Conn) {
    sleep(STAGE).await;
    conn.handshake(&[(3, 1)]).await;
    while let Some(frame) = conn.read_frame().await {
        if frame.kind != HEADERS {
            continue;
        }
        let stream = frame.stream;
        sleep(STAGE).await;
        let mut left = if frame.flags & END_STREAM == 0 {
            UPLOAD
        } else {
            0
        };
        let mut is_reset = false;
        while left > 0 && !is_reset {
            conn.window_update(0, 65_535).await;
            conn.window_update(stream, 65_535).await;
            match conn.read_frame().await {
                Some(frame) if frame.kind == DATA => left -= frame.len.min(left),
                Some(frame) => is_reset |= frame.kind == RST_STREAM && frame.stream == stream,
                None => return,
            }
        }
        if is_reset {
            continue;
        }
        sleep(STAGE).await;
        conn.headers(stream, &[(":status", "200")], false).await;
        for _ in 0..3 {
            sleep(STAGE).await;
            conn.data(stream, "hello", false).await;
        }
        sleep(STAGE).await;
        conn.trailers(stream, &[("sum", "15")]).await;
    }
}

/// Takes its time.
struct SlowDns;

impl Resolve for SlowDns {
    fn resolve(&self, _: &str, family: Family) -> BoxFuture<'static, Result<Answer, ResolveError>> {
        Box::pin(async move {
            sleep(STAGE).await;
            match family {
                Family::V4 => Ok(Answer::new(vec![IpAddr::from([127, 0, 0, 1])], None)),
                _ => Err(ResolveError::new(ResolveErrorKind::NoAddress)),
            }
        })
    }
}

fn stage(protocols: Protocols) -> (Sim, ConnectionPool, Client) {
    let sim = if protocols == Protocols::Http1 {
        Sim::http1(|conn, _| slow_h1(conn))
    } else {
        Sim::http2(|conn, _| slow_h2(conn))
    };
    sim.dial_takes(STAGE);
    let pool = ConnectionPool::builder()
        .dialer(sim.clone())
        .resolver(SlowDns)
        .limits(Limits::default().max_connections(1))
        .build()
        .unwrap();
    let client = sim::client(&pool, plain(protocols));
    (sim, pool, client)
}

async fn call(client: Client, upload: bool) {
    let request = if upload {
        client.post("/").body(vec![b'x'; UPLOAD])
    } else {
        client.get("/")
    };
    let mut response = request.send().await.expect("an answer");
    assert_eq!(response.text().await.expect("a body"), "hellohellohello");
}

/// Nothing is held by anybody, and then nothing is left.
async fn settled(sim: Sim, pool: ConnectionPool, client: Client, tasks: usize, case: &str) {
    // Whatever runs comes to its end: dials, drains, resets.
    sleep(millis(1_000)).await;
    let stats = pool.stats();
    assert_eq!((stats.waiting, stats.active), (0, 0), "{case}: {stats:?}");
    assert_eq!((stats.open, sim.live()), (stats.idle, stats.idle), "{case}");
    let works = timeout(millis(60_000), call(client.clone(), false)).await;
    works.unwrap_or_else(|_| panic!("{case}: the pool hangs"));
    let stats = pool.stats();
    assert_eq!((stats.waiting, stats.active), (0, 0), "{case}");
    drop((pool, client));
    sleep(millis(1_000)).await;
    assert_eq!(sim.live(), 0, "{case}: a connection is left");
    // Keeping the name fresh ends when nobody has used it for a while.
    sleep(millis(600_000)).await;
    assert_eq!(
        Handle::current().metrics().num_alive_tasks(),
        tasks,
        "{case}: a task is left"
    );
}

#[tokio::test(start_paused = true)]
async fn request_dropped_after_any_number_of_polls_leaves_nothing() {
    let tasks = Handle::current().metrics().num_alive_tasks();
    for protocols in BOTH {
        for upload in [false, true] {
            for warm in [false, true] {
                let mut ended = false;
                for polls in 0.. {
                    let (sim, pool, client) = stage(protocols);
                    if warm {
                        call(client.clone(), false).await;
                    }
                    let call = call(client.clone(), upload);
                    ended = DropAfter::new(call, polls).await.is_some();
                    let case = format!("{protocols:?} upload {upload} warm {warm} polls {polls}");
                    settled(sim, pool, client, tasks, &case).await;
                    if ended {
                        assert!(polls > 4, "{case}: it was polled at every stage");
                        break;
                    }
                }
                assert!(ended);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn request_dropped_at_any_millisecond_of_any_stage_leaves_nothing() {
    let tasks = Handle::current().metrics().num_alive_tasks();
    for protocols in BOTH {
        for upload in [false, true] {
            for at in 0..60 {
                let (sim, pool, client) = stage(protocols);
                let call = call(client.clone(), upload);
                let _ended = timeout(millis(at), call).await;
                let case = format!("{protocols:?} upload {upload} at {at} ms");
                settled(sim, pool, client, tasks, &case).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn waiter_dropped_at_any_millisecond_leaves_nothing_and_the_others_their_turn() {
    let tasks = Handle::current().metrics().num_alive_tasks();
    for protocols in BOTH {
        for at in 0..70 {
            let (sim, pool, client) = stage(protocols);
            let first = tokio::spawn(call(client.clone(), false));
            sleep(millis(1)).await;
            let waiter = tokio::spawn(timeout(millis(at), call(client.clone(), false)));
            let last = tokio::spawn(call(client.clone(), true));
            let _ended = waiter.await.unwrap();
            first.await.unwrap();
            last.await.unwrap();
            let case = format!("{protocols:?} at {at} ms");
            settled(sim, pool, client, tasks, &case).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_under_contention_and_cancellation_are_all_given_back() {
    for protocols in BOTH {
        let sim = if protocols == Protocols::Http1 {
            Sim::http1(|mut conn, _| async move {
                while !conn.read_head().await.is_empty() {
                    conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await;
                }
            })
        } else {
            Sim::http2(|mut conn, _| async move {
                conn.handshake(&[(3, 5)]).await;
                while let Some(frame) = conn.read_frame().await {
                    if frame.kind == HEADERS {
                        conn.headers(frame.stream, &[(":status", "200")], false)
                            .await;
                        conn.data(frame.stream, "ok", true).await;
                    }
                }
            })
        };
        let places = if protocols == Protocols::Http1 { 10 } else { 2 };
        let pool = sim.pool(|pool| pool.limits(Limits::default().max_connections(places)));
        let client = sim::client(&pool, plain(protocols));
        let workers = (0..20u64).map(|worker| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut seed = worker + 1;
                for _ in 0..300 {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let call = async {
                        let mut response = client.get("/").send().await.unwrap();
                        response.bytes().await.unwrap()
                    };
                    DropAfter::new(call, (seed >> 33) as usize % 6).await;
                }
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.await.unwrap();
        }
        eventually("all is given back", || {
            let stats = pool.stats();
            stats.waiting == 0 && stats.active == 0 && stats.open == stats.idle
        })
        .await;
        assert!(pool.stats().open <= places);
        let all = join_all((0..30).map(|_| async {
            let mut response = client.get("/").send().await.unwrap();
            response.bytes().await.unwrap()
        }));
        assert_eq!(all.await.len(), 30);
        // Dials that were overtaken may still be on their way.
        eventually("only what is idle is open", || {
            let stats = pool.stats();
            (stats.open, sim.live()) == (stats.idle, stats.idle)
        })
        .await;
    }
}

/// A body that never ends and tells when it is dropped.
struct Endless(Arc<AtomicBool>);

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
        std::task::Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(
            &[0; 1024],
        )))))
    }
}

#[tokio::test(start_paused = true)]
async fn upload_that_is_cancelled_resets_its_stream_and_drops_its_body() {
    let resets = Arc::new(AtomicUsize::new(0));
    let sim = Sim::http2({
        let resets = resets.clone();
        move |mut conn, _| {
            let resets = resets.clone();
            async move {
                conn.handshake(&[]).await;
                while let Some(frame) = conn.read_frame().await {
                    if frame.kind == RST_STREAM && frame.code() == Some(CANCEL) {
                        resets.fetch_add(1, Ordering::SeqCst);
                    }
                    if frame.kind == HEADERS && frame.flags & END_STREAM != 0 {
                        conn.headers(frame.stream, &[(":status", "204")], true)
                            .await;
                    }
                }
            }
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http2PriorKnowledge);
    let is_dropped = Arc::new(AtomicBool::new(false));
    let body = Body::wrap(Endless(is_dropped.clone()));
    let ended = timeout(millis(10), client.post("/").body(body).send()).await;
    assert!(ended.is_err());
    assert!(is_dropped.load(Ordering::SeqCst), "with the future");
    sleep(millis(1)).await;
    assert_eq!(resets.load(Ordering::SeqCst), 1);
    // Nobody else notices.
    let response = client.get("/").send().await.unwrap();
    assert_eq!(response.connection_use(), ConnectionUse::Idle);
    assert_eq!(pool.stats().active, 0);
}

/// Panics where it is told to.
#[derive(Clone)]
struct Panics(Sim, &'static str, Arc<AtomicBool>);

impl Dial for Panics {
    fn dial(&self, target: DialTarget) -> BoxFuture<'static, std::io::Result<Transport>> {
        let this = self.clone();
        Box::pin(async move {
            let panics = this.2.swap(false, Ordering::SeqCst);
            assert!(!(panics && this.1 == "dial"), "the dialer panics");
            let transport = this.0.dial(target).await?;
            if !panics {
                return Ok(transport);
            }
            let Transport::Custom(io) = transport else {
                unreachable!()
            };
            Ok(Transport::custom(PanickingIo(io, this.1)))
        })
    }
}

struct PanickingIo(Box<dyn firstbyte::io::Io>, &'static str);

impl Drop for PanickingIo {
    fn drop(&mut self) {
        assert!(
            self.1 != "drop" || std::thread::panicking(),
            "the transport panics"
        );
    }
}

impl tokio::io::AsyncRead for PanickingIo {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        assert_ne!(self.1, "read", "the transport panics");
        std::pin::Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for PanickingIo {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        assert_ne!(self.1, "write", "the transport panics");
        std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        assert_ne!(self.1, "flush", "the transport panics");
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        assert_ne!(self.1, "shutdown", "the transport panics");
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn panic_of_the_callers_code_costs_its_connection_and_nothing_else() {
    for protocols in BOTH {
        for place in ["dial", "read", "write", "flush", "shutdown", "drop", "body"] {
            let sim = if protocols == Protocols::Http1 {
                Sim::http1(|conn, _| slow_h1(conn))
            } else {
                Sim::http2(|conn, _| slow_h2(conn))
            };
            let panics = Panics(sim.clone(), place, Arc::new(AtomicBool::new(true)));
            let pool = ConnectionPool::builder()
                .dialer(panics)
                .resolver(SlowDns)
                .build()
                .unwrap();
            let client = sim::client(&pool, plain(protocols));
            let request = tokio::spawn({
                let client = client.clone();
                async move {
                    let mut request = client.get("/");
                    if place == "body" {
                        let body = futures_body(|| panic!("the body panics"));
                        request = client.post("/").body(body);
                    }
                    request.send().await.map(drop)
                }
            });
            let case = format!("{protocols:?} {place}");
            // It panics or fails; over HTTP/2 a panic in the connection's task must reach it too.
            let ended = timeout(millis(60_000), request).await;
            assert!(ended.is_ok(), "{case} hangs");
            sleep(millis(1_000)).await;
            let stats = pool.stats();
            assert_eq!((stats.waiting, stats.active), (0, 0), "{case}: {stats:?}");
            assert_eq!(stats.open, sim.live(), "{case}");
            let is_expired = || async {
                // Longer than any connection is kept idle.
                sleep(millis(400_000)).await;
                assert_eq!((pool.stats().open, sim.live()), (0, 0), "{case}");
            };
            if matches!(place, "shutdown" | "drop") {
                // One more beside it, which must not go with it.
                tokio::join!(call(client.clone(), false), call(client.clone(), false));
                is_expired().await;
                let closed: Vec<_> = pool.stats().closed.into_keys().collect();
                assert_eq!(closed, [CloseReason::IdleExpired], "{case}");
            }
            let works = timeout(millis(60_000), call(client.clone(), false)).await;
            works.unwrap_or_else(|_| panic!("{case}: the pool hangs"));
            let stats = pool.stats();
            assert!(
                !stats.closed.contains_key(&CloseReason::RuntimeGone),
                "{case}"
            );
            is_expired().await;
        }
    }
}

/// A body whose first piece is whatever the closure makes.
fn futures_body(make: fn() -> Bytes) -> Body {
    struct Lazy(fn() -> Bytes);
    impl http_body::Body for Lazy {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
            std::task::Poll::Ready(Some(Ok(http_body::Frame::data((self.0)()))))
        }
    }
    Body::wrap(Lazy(make))
}
