//! Each timeout fires, names its phase, and leaves the pool as usable as before.

mod common;
mod support;

use std::time::Duration;

use common::{BOTH, World, eventually, in_time};
use firstbyte::{ConnectionPool, ConnectionUse, Error, ErrorKind, Phase, Timeouts};
use support::dns::Family;
use support::gate::Gate;
use support::server::Reply;
use support::stall::Stall;

const SHORT: Duration = Duration::from_millis(50);

fn check(error: &Error, phase: Phase, word: &str) {
    assert_eq!(
        (error.kind(), error.phase()),
        (ErrorKind::Timeout, Some(phase)),
        "{error}"
    );
    assert!(
        error.is_timeout() && error.to_string().contains(word),
        "{error}"
    );
    let timing = error.timing().expect("the timing so far");
    let sum: Duration = Phase::ALL.iter().filter_map(|p| timing.get(*p)).sum();
    assert_eq!(sum, timing.total());
    assert!(
        timing.get(phase).unwrap() >= SHORT / 2,
        "{phase} took the time: {timing:?}"
    );
}

#[tokio::test]
async fn connect_timeout_names_the_phase_that_the_dial_is_in() {
    in_time(async {
        let timeouts = Timeouts::default().connect(SHORT);
        let world = World::new().await;
        let gate = world.dns.hold("api.test", Family::V4);
        let client = world.client(firstbyte::Protocols::Auto);
        let error = client.get("/").timeouts(timeouts).send().await.unwrap_err();
        check(&error, Phase::Dns, "connect timeout");
        drop(gate);

        let pool = ConnectionPool::new();
        for (stall, scheme, phase) in [
            (Stall::blackhole(), "http", Phase::Tcp),
            (Stall::accept_silent(), "https", Phase::Tls),
        ] {
            let client = pool.client_builder(format!("{scheme}://{}/", stall.addr()));
            let client = client.timeouts(timeouts).build().unwrap();
            let error = client.get("/").send().await.unwrap_err();
            check(&error, phase, "connect timeout");
        }
        eventually("nobody waits", || pool.stats().waiting == 0).await;
    })
    .await;
}

#[tokio::test]
async fn dial_has_a_deadline_of_its_own_and_frees_its_place() {
    in_time(async {
        let silent = Stall::accept_silent();
        let pool = ConnectionPool::builder()
            .connect_timeout(SHORT)
            .build()
            .unwrap();
        let client = pool
            .client_builder(format!("https://{}/", silent.addr()))
            .build()
            .unwrap();
        let error = client.get("/").send().await.unwrap_err();
        check(&error, Phase::Tls, "connecting took longer");
        let stats = pool.stats();
        assert_eq!((stats.open, stats.waiting, stats.dials_failed), (0, 0, 1));
    })
    .await;
}

#[tokio::test]
async fn connect_timeout_of_a_request_leaves_the_dial_to_the_next() {
    in_time(async {
        let world = World::new().await;
        let gate = world.dns.hold("api.test", Family::V4);
        let client = world.client(firstbyte::Protocols::Auto);
        let timeouts = Timeouts::default().connect(SHORT);
        client.get("/").timeouts(timeouts).send().await.unwrap_err();
        gate.open();
        eventually("the dial is over", || world.pool.stats().idle == 1).await;
        let mut response = client.get("/").send().await.unwrap();
        response.bytes().await.unwrap();
        assert_eq!(response.connection_use(), ConnectionUse::Prewarmed);
        assert_eq!(world.server.counts().connections_accepted, 1);
    })
    .await;
}

#[tokio::test]
async fn first_byte_and_total_bound_the_wait_and_between_bytes_the_body() {
    in_time(async {
        for protocols in BOTH {
            let gate = Gate::new();
            let held = gate.clone();
            let world = World::with(
                |server| {
                    server.handler(move |request| match request.uri().path() {
                        "/hold" => Reply::ok().hold(held.clone()),
                        "/slow" => {
                            let chunks = vec![vec![b'x'; 10].into(); 2];
                            Reply::ok().chunks(chunks, Duration::from_secs(3600))
                        }
                        _ => Reply::ok().body("hello"),
                    })
                },
                |pool| pool,
            )
            .await;
            let client = world.client(protocols);
            client.get("/").send().await.unwrap().bytes().await.unwrap();

            let first_byte = Timeouts::default().first_byte(SHORT);
            let error = client
                .get("/hold")
                .timeouts(first_byte)
                .send()
                .await
                .unwrap_err();
            check(&error, Phase::Wait, "first_byte");
            let error = client.get("/hold").timeout(SHORT).send().await.unwrap_err();
            check(&error, Phase::Wait, "timeout");

            let between = Timeouts::default().between_bytes(SHORT);
            let mut response = client.get("/slow").timeouts(between).send().await.unwrap();
            let error = response.bytes().await.unwrap_err();
            check(&error, Phase::Receive, "between_bytes");
            let mut response = client.get("/slow").timeout(SHORT).send().await.unwrap();
            let error = response.bytes().await.unwrap_err();
            check(&error, Phase::Receive, "timeout");

            let mut response = client.get("/").send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "hello", "{protocols:?}");
            eventually("nothing is held", || world.pool.stats().active == 0).await;
            gate.open();
        }
    })
    .await;
}

#[tokio::test]
async fn deadlines_of_nothing_and_of_forever_do_not_overflow() {
    in_time(async {
        let world = World::new().await;
        let client = world.client(firstbyte::Protocols::Auto);
        let max = Duration::MAX;
        let forever = Timeouts::default()
            .queue(max)
            .connect(max)
            .first_byte(max)
            .between_bytes(max)
            .total(max);
        let mut response = client.get("/").timeouts(forever).send().await.unwrap();
        response.bytes().await.unwrap();
        let error = client
            .get("/delay/1000")
            .timeout(Duration::ZERO)
            .send()
            .await
            .unwrap_err();
        assert!(error.is_timeout());
    })
    .await;
}
