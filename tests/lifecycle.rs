//! Warmth, closing, shutdown, and pools that see several runtimes.

mod common;
mod support;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use common::{BOTH, World, eventually, in_time, join_all};
use firstbyte::{
    CloseReason, ConnectionPool, ConnectionUse, ErrorKind, Phase, Protocols, ReplaySafety,
};
use support::gate::Gate;
use support::h1_peer::H1Peer;
use support::server::Reply;

#[tokio::test]
async fn warm_opens_connections_and_sends_no_request() {
    in_time(async {
        let world = World::new().await;
        let http1 = world.client(Protocols::Http1);
        let report = http1.warm(3).await.unwrap();
        assert_eq!((report.ready(), report.opened()), (3, 3));
        for warm in &report.connections {
            let trace = warm.connection.trace();
            assert!(trace.get(Phase::Tls).is_some() && trace.get(Phase::Tcp).is_some());
        }
        let http2 = world.client(Protocols::Http2);
        let report = http2.warm(3).await.unwrap();
        assert_eq!(
            (report.ready(), report.opened()),
            (1, 1),
            "one connection carries them all"
        );
        let counts = world.server.counts();
        assert_eq!((counts.connections_accepted, counts.requests), (4, 0));
        assert_eq!(world.pool.stats().total_requests, 0);

        for client in [&http1, &http2] {
            let mut response = client.get("/").send().await.unwrap();
            response.bytes().await.unwrap();
            assert_eq!(response.connection_use(), ConnectionUse::Prewarmed);
        }
        let again = http1.warm(3).await.unwrap();
        assert_eq!((again.ready(), again.opened()), (3, 0));
        assert_eq!(world.server.counts().connections_accepted, 4);
    })
    .await;
}

#[tokio::test]
async fn warm_connections_have_read_their_tickets_though_nothing_was_asked() {
    in_time(async {
        for protocols in [Protocols::Http1, Protocols::Http2] {
            let world = World::new().await;
            let client = world.client(protocols);
            let report = client.warm(2).await.unwrap();
            assert!(report.error.is_none());
            eventually("tickets are in store", || {
                world.pool.stats().tls_tickets > 0
            })
            .await;
            assert_eq!(world.server.counts().requests, 0);
            // The next connection resumes.
            let _held = client.get("/").send().await.unwrap();
            world.pool.close_idle();
            let report = client.warm(2).await.unwrap();
            let opened = report.connections.iter().filter(|c| c.opened);
            for warm in opened {
                assert_eq!(warm.connection.tls_resumed(), Some(true), "{protocols:?}");
                assert!(warm.connection.trace().tls.is_some());
            }
        }
    })
    .await;
}

/// Half a minute without a connection takes an origin's books away, and what it taught stays.
#[tokio::test]
async fn origin_that_slept_resumes_its_session() {
    for protocols in [Protocols::Http1, Protocols::Auto] {
        let world = World::new().await;
        let client = world.client(protocols);
        let asleep = || format!("{:?}", world.pool).contains(" 1 origins asleep");
        in_time(async {
            let mut response = client.get("/").send().await.unwrap();
            response.bytes().await.unwrap();
            eventually("tickets are in store", || {
                world.pool.stats().tls_tickets > 0
            })
            .await;
            world.pool.close_idle();
            eventually("it is closed", || world.pool.stats().open == 0).await;
        })
        .await;
        let tickets = world.pool.stats().tls_tickets;
        assert!(!asleep());
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(31)).await;
        eventually("it sleeps", asleep).await;
        tokio::time::resume();
        assert_eq!(world.pool.stats().tls_tickets, tickets);
        let response = in_time(client.get("/").send()).await.unwrap();
        let connection = response.connection();
        assert_eq!(connection.tls_resumed(), Some(true), "{protocols:?}");
        assert!(!asleep(), "it is awake");
    }
}

#[tokio::test]
async fn warm_finds_the_protocol_out_and_reports_what_failed() {
    in_time(async {
        let world = World::with(|server| server.alpn(&["http/1.1"]), |pool| pool).await;
        let report = world
            .pool
            .warm(world.server.url("/").as_str(), 4)
            .await
            .unwrap();
        assert_eq!((report.ready(), report.opened()), (4, 4));
        world.server.stop();
        world.pool.close_idle();
        let report = world
            .pool
            .warm(world.server.url("/").as_str(), 2)
            .await
            .unwrap();
        assert_eq!(report.ready(), 0);
        assert!(report.error.unwrap().is_connect());
    })
    .await;
}

#[tokio::test]
async fn shutdown_lets_running_requests_finish_and_refuses_new_ones() {
    in_time(async {
        for protocols in BOTH {
            let gate = Gate::new();
            let held = gate.clone();
            let world = World::with(
                |server| server.handler(move |_| Reply::ok().body("late").hold(held.clone())),
                |pool| pool,
            )
            .await;
            let client = world.client(protocols);
            let running = async {
                let mut response = client.get("/").send().await.unwrap();
                response.text().await.unwrap()
            };
            let stopping = async {
                world.server.wait(|c| c.requests == 1).await;
                let shutdown = world.pool.shutdown(Duration::from_secs(10));
                let others = async {
                    eventually("the pool refuses", || world.pool.stats().idle == 0).await;
                    let error = client.get("/").send().await.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::PoolClosed);
                    gate.open();
                };
                let (open, ()) = tokio::join!(shutdown, others);
                assert_eq!(open, 0);
            };
            let (text, ()) = tokio::join!(running, stopping);
            assert_eq!(text, "late");
            assert_eq!(
                world.pool.shutdown(Duration::ZERO).await,
                0,
                "twice is no harm"
            );
            world.server.wait(|c| c.connections_open == 0).await;
        }
    })
    .await;
}

#[tokio::test]
async fn shutdown_at_its_deadline_ends_http2_requests_and_tells_who_waits() {
    in_time(async {
        let gate = Gate::new();
        let held = gate.clone();
        let world = World::with(
            |server| {
                server
                    .max_concurrent_streams(1)
                    .handler(move |_| Reply::ok().hold(held.clone()))
            },
            |pool| pool.http2(firstbyte::Http2Options::default().max_connections_per_origin(1)),
        )
        .await;
        let client = world.client(Protocols::Http2);
        client.warm(1).await.unwrap().into_result().unwrap();
        let two = join_all((0..2).map(|_| client.get("/").send()));
        let stop = async {
            world.server.wait(|c| c.requests == 1).await;
            eventually("one waits", || world.pool.stats().waiting == 1).await;
            world.pool.shutdown(Duration::from_millis(10)).await
        };
        let (results, open) = tokio::join!(two, stop);
        assert_eq!(open, 0);
        let kinds: Vec<_> = results.into_iter().map(|r| r.unwrap_err().kind()).collect();
        assert!(kinds.contains(&ErrorKind::PoolClosed), "{kinds:?}");
        drop(gate);
    })
    .await;
}

#[tokio::test]
async fn shutdown_at_its_deadline_ends_http1_requests_wherever_they_wait() {
    in_time(async {
        let peer = H1Peer::start(|mut conn, _| async move {
            let head = conn.read_head().await;
            if head.starts_with("GET /body ") {
                conn.send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
                    .await;
            }
            conn.closed_by_client().await;
        });
        let pool = ConnectionPool::new();
        let url = format!("http://127.0.0.1:{}/", peer.port());
        let client = pool.client_builder(url).build().unwrap();
        let head = async {
            let error = client.post("/head").body("once").send().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionLost);
            assert_eq!(error.replay_safety(), ReplaySafety::MaybeProcessed);
            assert!(error.to_string().contains("pool was shut down"), "{error}");
        };
        let body = async {
            let mut response = client.get("/body").send().await.unwrap();
            let error = response.text().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionLost);
            assert!(error.to_string().contains("pool was shut down"), "{error}");
        };
        // Nobody polls this one until it is over.
        let unread = client.get("/body").send().await.unwrap();
        let stop = async {
            peer.wait_requests(3).await;
            pool.shutdown(Duration::ZERO).await
        };
        let ((), (), open) = tokio::join!(head, body, stop);
        assert_eq!(open, 1, "the unread one");
        drop(unread);
        assert_eq!(pool.shutdown(Duration::ZERO).await, 0);
    })
    .await;
}

#[tokio::test]
async fn dropping_the_last_handle_closes_idle_connections() {
    in_time(async {
        let World {
            server,
            pool,
            dns: _dns,
            ..
        } = World::new().await;
        for protocols in BOTH {
            let client = pool
                .client_builder(server.url("/"))
                .protocols(protocols)
                .build()
                .unwrap();
            client.get("/").send().await.unwrap().bytes().await.unwrap();
        }
        let mut response = {
            let client = pool.client_builder(server.url("/")).build().unwrap();
            client.get("/stream/20").send().await.unwrap()
        };
        drop(pool);
        assert_eq!(
            response.bytes().await.unwrap().len(),
            400,
            "what runs may finish"
        );
        drop(response);
        server.wait(|c| c.connections_open == 0).await;
    })
    .await;
}

#[test]
fn pool_used_from_many_runtimes_dials_on_each_and_never_hangs() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let home = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let world = home.block_on(World::new());
    for (round, protocols) in BOTH.into_iter().cycle().take(6).enumerate() {
        let client = world.client(protocols);
        let guest = runtime();
        for expected in [ConnectionUse::New, ConnectionUse::Idle] {
            let how = guest.block_on(in_time(async {
                let mut response = client.get("/").send().await.unwrap();
                response.bytes().await.unwrap();
                response.connection_use()
            }));
            assert_eq!(how, expected, "round {round}");
        }
        drop(guest);
        let stats = world.pool.stats();
        assert_eq!(
            (stats.open, stats.idle, stats.waiting),
            (0, 0, 0),
            "round {round}"
        );
    }
    assert!(
        world
            .pool
            .stats()
            .closed
            .contains_key(&CloseReason::RuntimeGone)
    );
    assert_eq!(world.server.counts().connections_accepted, 6);
}

#[tokio::test]
async fn peer_that_closes_an_idle_connection_is_noticed_without_a_request() {
    in_time(async {
        for protocols in BOTH {
            let world = World::new().await;
            let client = world.client(protocols);
            client.get("/").send().await.unwrap().bytes().await.unwrap();
            assert_eq!(world.pool.stats().idle, 1);
            world.server.kill_connections();
            eventually("it is gone from the books", || world.pool.stats().open == 0).await;
            let mut response = client.get("/").send().await.unwrap();
            response.bytes().await.unwrap();
            assert_eq!(response.metrics().attempts, 1);
        }
    })
    .await;
}

/// The waker of somebody who is not the runtime: whoever keeps it can be seen.
#[derive(Default)]
struct Task(Mutex<Option<Waker>>);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if let Some(outer) = self.0.lock().unwrap().take() {
            outer.wake();
        }
    }
}

impl Task {
    async fn run<F: Future>(self: &Arc<Self>, future: F) -> F::Output {
        let mut future = pin!(future);
        let waker = Waker::from(self.clone());
        poll_fn(|cx| {
            *self.0.lock().unwrap() = Some(cx.waker().clone());
            future.as_mut().poll(&mut Context::from_waker(&waker))
        })
        .await
    }
}

/// A waker keeps the memory of its task, and a connection may be idle for minutes.
#[tokio::test]
async fn idle_connection_keeps_no_waker_of_the_task_that_used_it() {
    in_time(async {
        for protocols in BOTH {
            let world = World::new().await;
            let client = world.client(protocols);
            let task: Arc<Task> = Arc::default();
            for how in [ConnectionUse::New, ConnectionUse::Idle] {
                let response = task.run(async {
                    let mut response = client.get("/").send().await.unwrap();
                    response.bytes().await.unwrap();
                    response
                });
                let response = response.await;
                assert_eq!(response.connection_use(), how);
                drop(response);
                eventually("nobody keeps the waker", || Arc::strong_count(&task) == 1).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn connections_and_the_pool_itself_can_be_looked_at() {
    in_time(async {
        let world = World::new().await;
        let client = world.client(Protocols::Http1);
        let mut response = client.get("/").send().await.unwrap();
        response.bytes().await.unwrap();
        let connections = world.pool.connections();
        assert_eq!(connections.len(), 1);
        assert_eq!(connections[0].id(), response.connection().id());
        assert_eq!(connections[0].requests(), 1);
        let printed = format!("{:?}", world.pool);
        assert!(
            printed.contains("1 of 100 open, 1 idle") && printed.contains("1 idle h1"),
            "{printed}"
        );
        let plain = ConnectionPool::new();
        assert_eq!(format!("{plain:?}").lines().count(), 1);
    })
    .await;
}
