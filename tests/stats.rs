//! The pool's numbers are what the server saw.

mod common;
mod support;

use common::{BOTH, World, eventually, in_time, join_all};
use firstbyte::{CloseReason, Limits, Protocols};
use support::gate::Gate;
use support::h2_peer::{code, kind};
use support::server::Reply;
use support::sim::{self, Sim};

/// Hundreds of requests: alone and at once, read to the end, dropped, cancelled, closed by the
/// peer, killed while idle.
async fn mix(world: &World, protocols: Protocols) {
    let client = world.client(protocols);
    for round in 0..5 {
        for response in join_all((0..20).map(|_| client.get("/echo").send())).await {
            response.unwrap().bytes().await.unwrap();
        }
        for n in 0..20 {
            let mut response = client
                .post("/echo")
                .body(format!("body {n}"))
                .send()
                .await
                .unwrap();
            response.bytes().await.unwrap();
        }
        for _ in 0..5 {
            let mut response = client.get("/close").send().await.unwrap();
            response.bytes().await.unwrap();
        }
        for _ in 0..5 {
            // Seen by the server, and then nobody wants the answer.
            let before = world.server.counts().requests;
            let mut call = Box::pin(client.get("/hold").send());
            tokio::select! {
                _ = &mut call => unreachable!("the server holds its answer"),
                _ = world.server.wait(|c| c.requests > before) => {}
            }
        }
        for _ in 0..5 {
            let response = client.get("/long").send().await.unwrap();
            drop(response);
        }
        if round % 2 == 0 {
            eventually("nothing is leased", || {
                let stats = world.pool.stats();
                stats.open == stats.idle
            })
            .await;
            world.server.kill_connections();
            eventually("the pool saw it", || world.pool.stats().open == 0).await;
        } else {
            world.pool.close_idle();
        }
    }
}

#[tokio::test]
async fn statistics_equal_what_a_counting_server_saw() {
    in_time(async {
        let gate = Gate::new();
        let held = gate.clone();
        let world = World::with(
            |server| {
                server.handler(move |request| match request.uri().path() {
                    "/hold" => Reply::ok().hold(held.clone()),
                    "/close" => Reply::ok().close(),
                    "/long" => Reply::ok().body(vec![b'x'; 4_000_000]),
                    _ => Reply::ok().body(request.into_body()),
                })
            },
            |pool| pool.limits(Limits::gateway()),
        )
        .await;
        for protocols in BOTH {
            mix(&world, protocols).await;
        }
        let counts = world
            .server
            .wait(|c| c.connections_accepted == c.tls_full + c.tls_resumed)
            .await;
        let stats = world.pool.stats();
        assert_eq!(
            stats.connections_created as usize,
            counts.connections_accepted
        );
        assert_eq!(stats.resumed as usize, counts.tls_resumed);
        assert_eq!(
            (stats.total_requests + stats.retries) as usize,
            counts.requests
        );
        assert_eq!(stats.total_requests, 2 * 5 * (20 + 20 + 5 + 5 + 5));
        // Whoever did not reuse a connection waited for a dial, and each dial was somebody's.
        let waited = stats.total_requests - stats.connections_reused;
        assert!(waited >= stats.connections_created, "{stats:?}");
        assert_eq!(stats.tls_handshakes_saved, stats.connections_reused);
        assert_eq!(world.dns.queries("api.test", support::dns::Family::V4), 1);
        assert_eq!((stats.unserved, stats.dials_failed), (0, 0));
        let rate = stats.connections_reused as f64 * 100.0 / stats.total_requests as f64;
        assert!((stats.connection_reuse_rate - rate).abs() < 1e-9);

        world.pool.close_idle();
        eventually("all is closed", || world.pool.stats().open == 0).await;
        let stats = world.pool.stats();
        let closed: u64 = stats.closed.values().sum();
        assert_eq!(closed, stats.connections_created, "{:?}", stats.closed);
        assert_eq!(
            stats.closed[&CloseReason::PeerAskedToClose],
            25,
            "{:?}",
            stats.closed
        );
        world.server.wait(|c| c.connections_open == 0).await;
    })
    .await;
}

#[tokio::test]
async fn overhead_saved_is_what_the_very_connection_had_cost() {
    in_time(async {
        let world = World::new().await;
        let client = world.client(Protocols::Http1);
        let mut cost = None;
        for _ in 0..4 {
            let mut response = client.get("/").send().await.unwrap();
            response.bytes().await.unwrap();
            cost = Some(response.connection().trace().setup_cost());
        }
        let saved = cost.unwrap().as_secs_f64() * 1e3 * 3.0;
        let stats = world.pool.stats();
        assert!((stats.network_overhead_reduction_ms - saved).abs() < 1e-6);
        assert_eq!(
            (stats.dns_lookups_saved, stats.tls_handshakes_saved),
            (3, 3)
        );
        assert_eq!(client.stats().total_requests, 4);
        assert_eq!(client.stats().connections_created, 0);
    })
    .await;
}

/// The server dies under a request: a call that has been on a connection is counted with what it did, though its last
/// attempt got none.
#[tokio::test(start_paused = true)]
async fn call_whose_retry_gets_no_connection_is_counted_by_the_one_it_had() {
    let sim = Sim::http1(|mut conn, _| async move {
        conn.read_head().await;
        conn.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
        conn.read_head().await;
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, Protocols::Http1);
    client.get("/").send().await.unwrap();
    sim.refuse(1);
    client.get("/").send().await.unwrap_err();
    let stats = pool.stats();
    assert_eq!((sim.dials(), stats.dials_failed), (2, 1));
    assert_eq!(
        (stats.total_requests, stats.retries, stats.unserved),
        (2, 1, 0)
    );

    // One that never had any is another matter.
    sim.refuse(1);
    client.get("/").send().await.unwrap_err();
    let stats = pool.stats();
    assert_eq!(
        (stats.total_requests, stats.retries, stats.unserved),
        (2, 1, 1)
    );
}

/// A call that waited for a dial saved nothing, though its second attempt found the connection there.
#[tokio::test(start_paused = true)]
async fn retry_over_the_connection_that_was_dialled_for_it_is_no_reuse() {
    let sim = Sim::http2(|mut conn, _| async move {
        conn.handshake(&[]).await;
        let refused = conn.read_headers().await.stream;
        conn.rst(refused, code::REFUSED_STREAM).await;
        while let Some(head) = conn.read_kind(kind::HEADERS).await {
            conn.headers(head.stream, &[(":status", "200")], true).await;
        }
    });
    let pool = sim.pool(|pool| pool);
    let client = sim::client(&pool, sim::plain(Protocols::Http2));
    let response = client.get("/").send().await.unwrap();
    assert_eq!((response.metrics().attempts, sim.dials()), (2, 1));
    let stats = pool.stats();
    assert_eq!((stats.total_requests, stats.retries), (1, 1));
    assert_eq!(stats.connections_reused, 0);
    assert_eq!(stats.network_overhead_reduction_ms, 0.0);
    client.get("/").send().await.unwrap();
    assert_eq!(pool.stats().connections_reused, 1);
}
