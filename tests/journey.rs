//! One request through all layers, against a server that counts: what the client says it did is
//! what the server saw.

mod common;
mod support;

use common::{World, join_all};
use firstbyte::{ConnectionUse, Protocols};
use http::Version;
use support::gate::Gate;
use support::server::Reply;

#[tokio::test]
async fn http2_request_is_measured_from_dns_to_body_and_the_next_reuses() {
    let World {
        server, dns, pool, ..
    } = World::new().await;
    let client = pool.client("test", server.url("/")).build().unwrap();

    let mut cold = client.get("/").send().await.unwrap();
    assert_eq!(
        (cold.status().as_u16(), cold.version()),
        (200, Version::HTTP_2)
    );
    assert_eq!(cold.text().await.unwrap(), "hello");
    assert_eq!(cold.connection_use(), ConnectionUse::New);
    let timing = cold.timing();
    assert!(timing.is_complete());
    for (phase, time) in [
        ("dns", timing.dns()),
        ("tcp", timing.tcp()),
        ("tls", timing.tls()),
        ("protocol", timing.protocol()),
        ("send", timing.send()),
        ("wait", timing.wait()),
        ("receive", timing.receive()),
    ] {
        assert!(time.is_some(), "{phase} happened");
    }
    assert!(timing.proxy().is_none() && timing.retry().is_none());
    assert!(cold.metrics().network_overhead_ms > 0.0 && !cold.metrics().connection_reused);
    let trace = cold.connection().trace();
    assert!(trace.ready.is_some() && trace.tcp_rtt.is_some());
    assert_eq!(
        trace.tls_facts.as_ref().unwrap().alpn.as_deref(),
        Some("h2")
    );

    let mut warm = client.get("/").send().await.unwrap();
    assert_eq!(warm.bytes().await.unwrap(), "hello");
    assert_eq!(warm.connection_use(), ConnectionUse::Idle);
    assert_eq!(warm.connection().id(), cold.connection().id());
    let timing = warm.timing();
    assert!(timing.dns().is_none() && timing.tcp().is_none() && timing.tls().is_none());
    assert_eq!(warm.metrics().network_overhead_ms, 0.0);

    let counts = server.counts();
    assert_eq!((counts.connections_accepted, counts.requests), (1, 2));
    assert_eq!(dns.queries("api.test", support::dns::Family::V4), 1);
    let stats = pool.stats();
    assert_eq!((stats.total_requests, stats.connections_reused), (2, 1));
    assert_eq!(
        (stats.connections_created, stats.open, stats.idle),
        (1, 1, 1)
    );
    assert_eq!(stats.connection_reuse_rate, 50.0);
    assert!(stats.network_overhead_reduction_ms > 0.0);
}

#[tokio::test]
async fn http1_request_is_measured_and_the_next_reuses() {
    let World {
        server,
        pool,
        dns: _dns,
        ..
    } = World::new().await;
    let client = pool
        .client("test", server.url("/"))
        .protocols(Protocols::Http1)
        .build()
        .unwrap();
    for n in 0..5 {
        let mut response = client.post("/echo").body("ping").send().await.unwrap();
        assert_eq!(response.version(), Version::HTTP_11);
        assert_eq!(response.text().await.unwrap(), "ping");
        let expected = if n == 0 {
            ConnectionUse::New
        } else {
            ConnectionUse::Idle
        };
        assert_eq!(response.connection_use(), expected, "request {n}");
    }
    let counts = server.counts();
    assert_eq!((counts.connections_accepted, counts.requests), (1, 5));
    assert_eq!(pool.stats().idle, 1);
}

#[tokio::test]
async fn second_connection_resumes_the_tls_session() {
    let World {
        server,
        pool,
        dns: _dns,
        ..
    } = World::new().await;
    for protocols in [Protocols::Http1, Protocols::Http2] {
        let before = server.counts();
        let client = pool
            .client_builder(server.url("/"))
            .protocols(protocols)
            .build()
            .unwrap();
        let mut first = client.get("/").send().await.unwrap();
        first.bytes().await.unwrap();
        assert_eq!(first.connection().tls_resumed(), Some(false));
        pool.close_idle();
        let mut second = client.get("/").send().await.unwrap();
        second.bytes().await.unwrap();
        assert_eq!(
            second.connection().tls_resumed(),
            Some(true),
            "{protocols:?}"
        );
        let counts = server.counts();
        assert_eq!(counts.tls_full - before.tls_full, 1);
        assert_eq!(counts.tls_resumed - before.tls_resumed, 1);
    }
    assert_eq!(pool.stats().resumed, 2);
}

#[tokio::test]
async fn bodies_stream_both_ways_on_both_protocols() {
    let World {
        server,
        pool,
        dns: _dns,
        ..
    } = World::new().await;
    for protocols in [Protocols::Http1, Protocols::Http2] {
        let client = pool
            .client_builder(server.url("/"))
            .protocols(protocols)
            .build()
            .unwrap();
        let big = vec![b'x'; 3_000_000];
        let mut response = client.post("/echo").body(big.clone()).send().await.unwrap();
        assert_eq!(response.bytes().await.unwrap(), big, "{protocols:?}");

        let chunks = futures_stream(vec!["one ", "two ", "three"]);
        let mut response = client.post("/echo").body(chunks).send().await.unwrap();
        assert_eq!(response.text().await.unwrap(), "one two three");

        let mut response = client.get("/stream/40").send().await.unwrap();
        let mut total = 0;
        while let Some(chunk) = response.chunk().await.unwrap() {
            total += chunk.len();
        }
        assert_eq!(total, 800);
        assert!(response.timing().receive_paused().is_some());

        let response = client.get("/empty").send().await.unwrap();
        assert_eq!(response.status(), 204);
        let mut response = client.head("/bytes/10").send().await.unwrap();
        assert_eq!(response.bytes().await.unwrap(), "");
    }
    assert_eq!(server.counts().connections_accepted, 2);
}

/// A body of unknown length.
fn futures_stream(pieces: Vec<&'static str>) -> firstbyte::Body {
    struct Pieces(std::vec::IntoIter<&'static str>);
    impl http_body::Body for Pieces {
        type Data = bytes::Bytes;
        type Error = std::convert::Infallible;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
            let next = self.0.next().map(|p| Ok(http_body::Frame::data(p.into())));
            std::task::Poll::Ready(next)
        }
    }
    firstbyte::Body::wrap(Pieces(pieces.into_iter()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_at_once_share_one_http2_connection_and_fan_out_over_http1() {
    for (protocols, connections) in [(Protocols::Http2, 1), (Protocols::Http1, 50)] {
        let gate = Gate::new();
        let held = gate.clone();
        let world = World::with(
            |server| server.handler(move |_| Reply::ok().hold(held.clone())),
            |pool| pool,
        )
        .await;
        let client = world.client(protocols);
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move {
                    let mut response = client.get("/").send().await.unwrap();
                    response.bytes().await.unwrap();
                    response.connection_use()
                })
            })
            .collect();
        // All are under way before the first is answered.
        world.server.wait(|c| c.requests == 50).await;
        gate.open();
        let mut new = 0;
        for task in tasks {
            let how = task.await.unwrap();
            // Over HTTP/1.1 nobody finds a connection free; dials may overtake each other, so a
            // request can get a dial that began before it.
            assert!(protocols == Protocols::Http2 || !how.is_reused());
            new += usize::from(how == ConnectionUse::New);
        }
        assert!(new >= 1);
        let counts = world.server.counts();
        assert_eq!(counts.connections_accepted, connections, "{protocols:?}");
        assert_eq!(world.pool.stats().total_requests, 50);
    }
}

#[tokio::test]
async fn unknown_protocol_is_found_out_by_one_dial() {
    let World {
        server,
        pool,
        dns: _dns,
        ..
    } = World::new().await;
    let client = pool.client("test", server.url("/")).build().unwrap();
    let requests = (0..20).map(|_| client.get("/").send());
    let mut uses = Vec::new();
    for response in join_all(requests).await {
        let mut response = response.unwrap();
        response.bytes().await.unwrap();
        uses.push(response.connection_use());
    }
    assert_eq!(uses.iter().filter(|u| **u == ConnectionUse::New).count(), 1);
    assert_eq!(
        uses.iter().filter(|u| **u == ConnectionUse::Joined).count(),
        19
    );
    assert_eq!(server.counts().connections_accepted, 1);
    let stats = pool.stats();
    assert_eq!((stats.joined, stats.connections_reused), (19, 0));
}

#[tokio::test]
async fn unknown_protocol_that_turns_out_to_be_http1_fans_out_at_once_and_is_remembered() {
    let gate = support::gate::Gate::new();
    let held = gate.clone();
    let world = World::with(
        |server| {
            let server = server.alpn(&["http/1.1"]);
            server.handler(move |_| support::server::Reply::ok().body("ok").hold(held.clone()))
        },
        |pool| pool,
    )
    .await;
    let client = world.client(firstbyte::Protocols::Auto);
    let requests = || join_all((0..10).map(|_| client.get("/").send()));
    let all_there = |n| {
        let (world, gate) = (&world, &gate);
        async move {
            world.server.wait(|c| c.requests == n).await;
            let mut traces: Vec<_> = world.pool.connections();
            traces.sort_by_key(|connection| connection.trace().start);
            gate.open();
            traces
        }
    };
    let (responses, connections) = tokio::join!(requests(), all_there(10));
    assert_eq!(connections.len(), 10, "a connection each");
    let known_at = connections[0].ready_at();
    for other in &connections[1..] {
        assert!(
            other.trace().start >= known_at,
            "one dial told the protocol"
        );
        assert!(
            other.trace().start < connections[9].ready_at(),
            "the others ran at once"
        );
    }
    drop(responses);
    common::eventually("all is idle", || world.pool.stats().active == 0).await;
    world.pool.close_idle();
    common::eventually("all is closed", || world.pool.stats().open == 0).await;
    // Remembered: no dial waits for another.
    let before = world.server.counts().connections_accepted;
    for response in requests().await {
        response.unwrap();
    }
    assert!(world.server.counts().connections_accepted > before);
    assert_eq!(world.pool.stats().joined, 0);
}

#[tokio::test]
async fn kernel_can_be_asked_about_a_connection_for_as_long_as_it_lives() {
    let world = World::new().await;
    for protocols in common::BOTH {
        let response = world.client(protocols).get("/").send().await.unwrap();
        let connection = response.connection().clone();
        let facts = connection.trace().tcp_facts.clone().unwrap();
        assert!(!facts.fast_open && facts.unapplied.is_empty(), "{facts:?}");
        #[cfg(target_os = "linux")]
        {
            let info = connection.tcp_info().unwrap();
            assert!(info.bytes_received.unwrap() > 100 && info.bytes_acked.unwrap() > 100);
        }
        drop(response);
        world.pool.close_idle();
        common::eventually("it is closed", || world.pool.stats().open == 0).await;
        assert_eq!(connection.tcp_info(), None);
    }
}
