//! One pool, many runtimes: in turn and at once, parked, dropped in the middle. Every request dials or reuses on its own
//! runtime and none hangs.

mod common;
mod support;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{BOTH, World, eventually, in_time, join_all};
use firstbyte::{Client, CloseReason, ConnectionUse, ErrorKind, Limits, Protocols, ReplaySafety};
use support::dns::Family;
use support::gate::Gate;
use support::server::Reply;
use tokio::runtime::{Builder, Runtime};

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn multi_thread() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

async fn get(client: &Client) -> ConnectionUse {
    let mut response = client.get("/").send().await.expect("an answer");
    response.bytes().await.expect("a body");
    response.connection_use()
}

#[test]
fn runtimes_at_once_each_have_connections_of_their_own() {
    let home = multi_thread();
    for protocols in BOTH {
        // All may be idle: how far one runtime is decides for none of the others.
        let world = home.block_on(World::with(
            |server| server,
            |pool| pool.limits(Limits::gateway()),
        ));
        let runtimes = 4;
        let guests: Vec<_> = (0..runtimes)
            .map(|n| {
                let client = world.client(protocols);
                thread::spawn(move || {
                    let runtime = if n % 2 == 0 {
                        current_thread()
                    } else {
                        multi_thread()
                    };
                    runtime.block_on(in_time(async {
                        get(&client).await;
                        for _ in 0..20 {
                            assert_eq!(get(&client).await, ConnectionUse::Idle);
                        }
                        let many = (0..10).map(|_| {
                            let client = client.clone();
                            tokio::spawn(async move { get(&client).await })
                        });
                        for one in many.collect::<Vec<_>>() {
                            one.await.unwrap();
                        }
                    }));
                })
            })
            .collect();
        for guest in guests {
            guest.join().expect("a guest's runtime");
        }
        home.block_on(in_time(eventually(
            "their connections went with them",
            || {
                let stats = world.pool.stats();
                (stats.open, stats.idle, stats.waiting, stats.active) == (0, 0, 0, 0)
            },
        )));
        let accepted = world.server.counts().connections_accepted;
        assert!(accepted >= runtimes, "{accepted}");
        // A dial that its runtime took along may have been accepted.
        let stats = world.pool.stats();
        let made = stats.connections_created..=stats.connections_created + stats.dials_failed;
        assert!(made.contains(&(accepted as u64)), "{accepted} {stats:?}");
    }
}

#[test]
fn runtime_dropped_with_a_request_a_dial_and_a_waiter_in_flight_leaves_a_working_pool() {
    let home = multi_thread();
    for protocols in BOTH {
        let gate = Gate::new();
        let held = gate.clone();
        let world = home.block_on(World::with(
            |server| {
                server.handler(move |seen| {
                    let reply = Reply::ok().body("late");
                    if seen.uri().path() == "/held" {
                        reply.hold(held.clone())
                    } else {
                        reply
                    }
                })
            },
            |pool| pool.limits(Limits::default().max_connections(2)),
        ));
        let client = world.client(protocols);
        let other = world.client_of(&world.other_url(), protocols);
        // Another origin's name does not resolve yet: a dial in flight takes the second place.
        let dns = world.dns.hold("other.test", Family::V4);
        let guest = current_thread();
        guest.spawn({
            let client = client.clone();
            async move { client.get("/held").send().await.map(drop) }
        });
        guest.spawn({
            let other = other.clone();
            async move { other.get("/").send().await.map(drop) }
        });
        // HTTP/2 shares the connection; a third origin would wait, here more of the first do.
        guest.block_on(in_time(async {
            world.server.wait(|c| c.requests == 1).await;
            world.dns.wait_queries("other.test", Family::V4, 1).await;
        }));
        if protocols == Protocols::Http1 {
            guest.spawn({
                let client = client.clone();
                async move { client.get("/").send().await.map(drop) }
            });
            let is_waiting = || world.pool.stats().waiting == 2;
            guest.block_on(in_time(eventually("it waits for a place", is_waiting)));
        }
        drop(guest);
        let stats = world.pool.stats();
        assert_eq!(
            (stats.open, stats.waiting, stats.active, stats.idle),
            (0, 0, 0, 0),
            "{protocols:?}"
        );
        gate.open();
        dns.open();
        home.block_on(in_time(async {
            assert_eq!(get(&client).await, ConnectionUse::New);
            assert_eq!(get(&other).await, ConnectionUse::New);
        }));
        // The one in use over HTTP/1.1 belonged to its request alone.
        let why = if protocols == Protocols::Http1 {
            CloseReason::Cancelled
        } else {
            CloseReason::RuntimeGone
        };
        assert!(world.pool.stats().closed.contains_key(&why));
    }
}

#[test]
fn runtime_that_ends_with_thousands_of_waiters_ends_flat() {
    let home = multi_thread();
    let limits = Limits::default().max_connections_per_host(1);
    let world = home.block_on(World::with(|server| server, |pool| pool.limits(limits)));
    let dns = world.dns.hold("api.test", Family::V4);
    for panics in [false, true] {
        let client = world.client(Protocols::Http1);
        let pool = world.pool.clone();
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let guest = current_thread();
            guest.block_on(in_time(async {
                for _ in 0..10_000 {
                    let client = client.clone();
                    tokio::spawn(async move { client.get("/").send().await.map(drop) });
                }
                eventually("all wait", || pool.stats().waiting == 10_000).await;
            }));
            assert!(
                !panics,
                "on purpose: the runtime is dropped while its thread unwinds"
            );
        }));
        assert_eq!(ended.is_err(), panics);
        let stats = world.pool.stats();
        assert_eq!((stats.waiting, stats.open), (0, 0));
    }
    dns.open();
}

#[test]
fn waiter_of_another_thread_learns_that_the_runtime_of_its_dial_is_gone() {
    let home = multi_thread();
    let world = home.block_on(World::new());
    let dns = world.dns.hold("api.test", Family::V4);
    let client = world.client(Protocols::Http2);
    let guest = multi_thread();
    // The call begins on the guest and is then polled from a thread without a runtime.
    let (sender, receiver) = mpsc::channel();
    let polling = thread::spawn({
        let handle = guest.handle().clone();
        move || {
            let call = async { client.get("/").send().await.map(drop) };
            let mut call = Box::pin(call);
            let mut first = true;
            let result = futures_block_on(|cx| {
                let _on = handle.enter();
                let polled = call.as_mut().poll(cx);
                if std::mem::take(&mut first) {
                    sender.send(()).unwrap();
                }
                polled
            });
            result.expect_err("its dial cannot end")
        }
    });
    receiver.recv().unwrap();
    home.block_on(in_time(world.dns.wait_queries("api.test", Family::V4, 1)));
    drop(guest);
    let error = polling.join().unwrap();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
    assert!(error.to_string().contains("runtime"), "{error}");
    assert_eq!(
        (world.pool.stats().waiting, world.pool.stats().open),
        (0, 0)
    );
    dns.open();
}

/// Polls on this thread, woken by unparking it.
fn futures_block_on<T>(
    mut poll: impl FnMut(&mut std::task::Context<'_>) -> std::task::Poll<T>,
) -> T {
    struct Unpark(thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::task::Waker::from(std::sync::Arc::new(Unpark(thread::current())));
    let mut cx = std::task::Context::from_waker(&waker);
    let patience = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let std::task::Poll::Ready(done) = poll(&mut cx) {
            return done;
        }
        thread::park_timeout(Duration::from_secs(1));
        assert!(std::time::Instant::now() < patience, "the test hangs");
    }
}

#[test]
fn parked_runtime_keeps_its_connections_until_somebody_needs_their_place() {
    let home = multi_thread();
    let world = home.block_on(World::with(
        |server| server,
        |pool| pool.limits(Limits::default().max_connections(1)),
    ));
    let client = world.client(Protocols::Http1);
    let parked = current_thread();
    parked.block_on(in_time(async { get(&client).await }));
    // Nobody drives it now. Its idle connection is closed from here.
    let guest = current_thread();
    for expected in [ConnectionUse::New, ConnectionUse::Idle] {
        assert_eq!(guest.block_on(in_time(get(&client))), expected);
    }
    assert_eq!(world.pool.stats().closed[&CloseReason::MadeRoom], 1);
    // And driven again, it works again.
    assert_eq!(parked.block_on(in_time(get(&client))), ConnectionUse::New);
    drop(parked);
    drop(guest);
    assert_eq!(world.pool.stats().open, 0);
}

#[test]
fn body_that_outlives_its_runtime_gives_its_place_back() {
    let home = multi_thread();
    for protocols in BOTH {
        let world = home.block_on(World::new());
        let client = world.client(protocols);
        let guest = current_thread();
        let response = guest.block_on(in_time(async {
            client.get("/stream/5").send().await.unwrap()
        }));
        drop(guest);
        drop(response);
        let stats = world.pool.stats();
        assert_eq!(
            (stats.open, stats.idle, stats.active),
            (0, 0, 0),
            "{protocols:?}"
        );
        home.block_on(in_time(get(&client)));
    }
}

#[tokio::test]
async fn call_outside_a_runtime_and_extreme_limits_are_errors_or_work() {
    use firstbyte::{ConnectionPool, Timeouts};
    let world = World::new().await;
    let client = world.client(Protocols::Http1);
    let outside = thread::spawn(move || {
        let mut call = Box::pin(async { client.get("/").send().await.map(drop) });
        futures_block_on(|cx| std::future::Future::poll(call.as_mut(), cx))
    });
    let error = outside.join().unwrap().expect_err("no runtime");
    assert!(
        error.is_invalid() && error.to_string().contains("runtime"),
        "{error}"
    );
    for extreme in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
        let mut limits = Limits::default()
            .keepalive_expiry(extreme)
            .http2_keepalive_expiry(extreme)
            .max_drain_time(extreme)
            .max_drain_bytes(u64::MAX)
            .max_requests_per_connection(u64::MAX);
        if !extreme.is_zero() {
            limits = limits.max_lifetime(extreme);
        }
        let world = World::with(|server| server, |pool| pool.limits(limits.clone())).await;
        for protocols in BOTH {
            let client = world.client(protocols);
            in_time(async {
                join_all((0..5).map(|_| get(&client))).await;
                get(&client).await;
                drop(client.get("/stream/5").send().await.unwrap());
                get(&client).await;
            })
            .await;
        }
        in_time(world.pool.shutdown(extreme.min(Duration::from_secs(5)))).await;
        let timeouts = Timeouts::default().connect(extreme).queue(extreme);
        let built = ConnectionPool::builder()
            .limits(limits.clone())
            .timeouts(timeouts)
            .build();
        assert!(built.is_ok());
    }
    for nothing in [
        Limits::default().max_connections(0),
        Limits::default().max_connections_per_host(0),
        Limits::default().max_requests_per_connection(0),
        Limits::default().max_lifetime(Duration::ZERO),
    ] {
        let error = ConnectionPool::builder()
            .limits(nothing)
            .build()
            .unwrap_err();
        assert!(error.is_invalid(), "{error}");
    }
}
