//! Shutting down: with a deadline, at once, twice, given up, in the middle of dials and drains, by dropping the last handle.
//! Typed errors, no hang, no task and no connection left. On a paused clock.

mod common;
mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{BOTH, eventually, join_all};
use firstbyte::{Client, ConnectionPool, ErrorKind, Limits, Phase, Protocols, ReplaySafety};
use support::sim::{self, Sim, plain};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Answers each request after so long; notes GOAWAY frames.
fn answering(protocols: Protocols, after: Duration, goaways: &Arc<AtomicUsize>) -> Sim {
    if protocols == Protocols::Http1 {
        Sim::http1(move |mut conn, _| async move {
            while !conn.read_head().await.is_empty() {
                sleep(after).await;
                conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await;
            }
        })
    } else {
        let goaways = goaways.clone();
        Sim::http2(move |mut conn, _| {
            let goaways = goaways.clone();
            async move {
                conn.handshake(&[]).await;
                while let Some(frame) = conn.read_frame().await {
                    match frame.kind {
                        HEADERS => {
                            sleep(after).await;
                            conn.headers(frame.stream, &[(":status", "200")], false)
                                .await;
                            conn.data(frame.stream, "ok", true).await;
                        }
                        GOAWAY => {
                            goaways.fetch_add(1, Ordering::SeqCst);
                        }
                        _ => {}
                    }
                }
            }
        })
    }
}

async fn get(client: Client) -> Result<String, firstbyte::Error> {
    client.get("/").send().await?.text().await
}

async fn nothing_left(sim: &Sim, pool: ConnectionPool, tasks: usize, case: &str) {
    sleep(millis(200)).await;
    let stats = pool.stats();
    assert_eq!(
        (stats.open, stats.idle, stats.active, stats.waiting),
        (0, 0, 0, 0),
        "{case}"
    );
    assert_eq!(sim.live(), 0, "{case}");
    drop(pool);
    // The peers' own scripts come to their end too.
    sleep(millis(1_000_000)).await;
    assert_eq!(
        Handle::current().metrics().num_alive_tasks(),
        tasks,
        "{case}: a task is left"
    );
}

#[tokio::test(start_paused = true)]
async fn shutdown_in_the_middle_of_a_dial_waits_for_nobody() {
    let tasks = Handle::current().metrics().num_alive_tasks();
    for protocols in BOTH {
        let sim = answering(protocols, Duration::ZERO, &Arc::default());
        sim.dial_takes(millis(3_000));
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, plain(protocols));
        let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(get(client.clone()))).collect();
        let warming = tokio::spawn({
            let client = client.clone();
            async move { client.warm(1).await.unwrap() }
        });
        sleep(millis(100)).await;
        let began = Instant::now();
        assert_eq!(pool.shutdown(millis(60_000)).await, 0, "{protocols:?}");
        assert!(began.elapsed() < millis(10), "{:?}", began.elapsed());
        for waiting in waiting {
            let error = waiting.await.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PoolClosed, "{error}");
            assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
        }
        let report = warming.await.unwrap();
        assert_eq!(report.error.unwrap().kind(), ErrorKind::PoolClosed);
        drop(client);
        nothing_left(&sim, pool, tasks, &format!("{protocols:?}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn shutdowns_at_once_all_wait_for_running_requests_and_refuse_new_ones() {
    let tasks = Handle::current().metrics().num_alive_tasks();
    for protocols in BOTH {
        let goaways = Arc::default();
        let sim = answering(protocols, millis(500), &goaways);
        let pool = sim.pool(|pool| pool);
        let client = sim::client(&pool, plain(protocols));
        let running: Vec<_> = (0..3).map(|_| tokio::spawn(get(client.clone()))).collect();
        sleep(millis(100)).await;
        // One that is given up keeps the pool shut all the same.
        assert!(
            timeout(millis(1), pool.shutdown(millis(10_000)))
                .await
                .is_err()
        );
        let refused = get(client.clone()).await.unwrap_err();
        assert_eq!(
            (refused.kind(), refused.phase()),
            (ErrorKind::PoolClosed, None)
        );
        let refused = pool
            .warm(format!("http://{}", sim::HOST).as_str(), 1)
            .await
            .unwrap();
        assert_eq!(refused.error.unwrap().kind(), ErrorKind::PoolClosed);
        let open = join_all((0..3).map(|_| pool.shutdown(millis(10_000)))).await;
        assert_eq!(open, [0, 0, 0]);
        for running in running {
            assert_eq!(running.await.unwrap().unwrap(), "ok");
        }
        drop(client);
        nothing_left(&sim, pool, tasks, &format!("{protocols:?}")).await;
        if protocols == Protocols::Http2 {
            assert_eq!(goaways.load(Ordering::SeqCst), 1, "the peer is told");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn immediate_shutdown_ends_requests_waiters_drains_and_minimums() {
    let tasks = Handle::current().metrics().num_alive_tasks();
    for protocols in BOTH {
        let sim = answering(protocols, millis(60_000), &Arc::default());
        let limits = Limits::default()
            .max_connections(2)
            .max_drain_time(millis(60_000));
        let pool = sim.pool(|pool| pool.limits(limits));
        let builder = pool
            .client_builder(format!("http://{}", sim::HOST))
            .protocols(plain(protocols));
        let builder = match protocols {
            Protocols::Http1 => builder.min_idle(2),
            _ => builder.min_connections(2),
        };
        let client = builder.build().unwrap();
        let running: Vec<_> = (0..5).map(|_| tokio::spawn(get(client.clone()))).collect();
        sleep(millis(100)).await;
        assert_eq!(pool.shutdown(Duration::ZERO).await, 0);
        for running in running {
            let error = running.await.unwrap().unwrap_err();
            let kinds = [ErrorKind::PoolClosed, ErrorKind::ConnectionLost];
            assert!(kinds.contains(&error.kind()), "{error}");
            let is_sent = error.kind() == ErrorKind::ConnectionLost;
            assert_eq!(
                error.replay_safety() == ReplaySafety::MaybeProcessed,
                is_sent
            );
            assert_eq!(error.phase() == Some(Phase::Wait), is_sent, "{error}");
            let said =
                std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
            let said: Vec<_> = said.map(ToString::to_string).collect();
            assert!(
                said.iter().any(|text| text.contains("shut down")),
                "{said:?}"
            );
        }
        let dials = sim.dials();
        sleep(millis(10_000)).await;
        assert_eq!(sim.dials(), dials, "nothing is dialled any more");
        drop(client);
        nothing_left(&sim, pool, tasks, &format!("{protocols:?}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_lets_running_requests_finish_and_leaves_nothing() {
    let tasks = Handle::current().metrics().num_alive_tasks();
    for protocols in BOTH {
        let sim = answering(protocols, millis(500), &Arc::default());
        let pool = sim.pool(|pool| pool.limits(Limits::default().max_connections(1)));
        let client = sim::client(&pool, plain(protocols));
        let answers = Arc::new(Mutex::new(Vec::new()));
        // A body that is read when every handle is gone.
        let mut response = client.get("/").send().await.unwrap();
        let waiting = tokio::spawn({
            let (client, answers) = (client.clone(), answers.clone());
            async move {
                let answer = get(client).await.map_err(|error| error.kind());
                answers.lock().unwrap().push(answer);
            }
        });
        sleep(millis(1)).await;
        drop((pool, client));
        assert_eq!(response.text().await.unwrap(), "ok");
        drop(response);
        waiting.await.unwrap();
        // Who waits holds a handle: it is served.
        assert_eq!(
            *answers.lock().unwrap(),
            [Ok("ok".to_owned())],
            "{protocols:?}"
        );
        eventually("it is closed", || sim.live() == 0).await;
        sleep(millis(200)).await;
        assert_eq!(
            Handle::current().metrics().num_alive_tasks(),
            tasks,
            "{protocols:?}"
        );
    }
}
