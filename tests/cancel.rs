//! A request that goes away, at whatever poll, leaves the books right and its dial to others.

mod common;
mod support;

use common::{BOTH, DropAfter, World, eventually, in_time};
use firstbyte::{ConnectionUse, Limits, Protocols};
use support::dns::Family;

/// Nothing is held: no waiter, no lease; and the pool works.
async fn settled(world: &World, protocols: Protocols) {
    eventually("no request holds anything", || {
        let stats = world.pool.stats();
        stats.waiting == 0 && stats.active == 0 && stats.open == stats.idle
    })
    .await;
    let client = world.client(protocols);
    let mut response = client.get("/").send().await.expect("the pool works");
    assert_eq!(response.text().await.unwrap(), "hello");
}

#[tokio::test]
async fn cold_request_dropped_after_any_poll_leaves_its_dial_to_the_next() {
    in_time(async {
        for protocols in BOTH {
            for polls in 0..40 {
                let world = World::new().await;
                let client = world.client(protocols);
                let dropped = DropAfter::new(client.get("/").send(), polls).await;
                let done = dropped.is_some();
                drop(dropped);
                settled(&world, protocols).await;
                let stats = world.pool.stats();
                let accepted = world.server.counts().connections_accepted as u64;
                assert_eq!(stats.connections_created, accepted, "{protocols:?} {polls}");
                // The dial went on and serves the next, unless the request had begun on it over
                // HTTP/1.1: that connection cannot be used again.
                let most = if protocols == Protocols::Http1 { 2 } else { 1 };
                assert!(stats.connections_created <= most, "{protocols:?} {polls}");
                world.pool.close_idle();
                eventually("all is closed", || world.pool.stats().open == 0).await;
                if done {
                    break;
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn warm_request_dropped_after_any_poll_frees_its_slot() {
    in_time(async {
        for protocols in BOTH {
            let world = World::new().await;
            let client = world.client(protocols);
            client.get("/").send().await.unwrap().bytes().await.unwrap();
            for polls in 0..10 {
                let call = async {
                    let mut response = client.get("/stream/5").send().await.unwrap();
                    response.bytes().await.unwrap()
                };
                DropAfter::new(call, polls).await;
                settled(&world, protocols).await;
            }
            world.pool.close_idle();
            eventually("all is closed", || world.pool.stats().open == 0).await;
            world
                .server
                .wait(|c| c.connections_open == 0 && c.streams_open == 0)
                .await;
        }
    })
    .await;
}

#[tokio::test]
async fn waiter_dropped_after_any_poll_leaves_the_line() {
    in_time(async {
        let gate = support::gate::Gate::new();
        let held = gate.clone();
        let world = World::with(
            |server| {
                server.handler(move |_| {
                    support::server::Reply::ok()
                        .body("hello")
                        .hold(held.clone())
                })
            },
            |pool| pool.limits(Limits::default().max_connections(1)),
        )
        .await;
        let client = world.client(Protocols::Http1);
        let first = client.get("/").send();
        let rest = async {
            world.server.wait(|c| c.requests == 1).await;
            // A waiter is not polled again until it is served.
            for polls in 0..=1 {
                let waiter = DropAfter::new(client.get("/").send(), polls).await;
                assert!(waiter.is_none());
                assert_eq!(world.pool.stats().waiting, 0);
            }
            gate.open();
        };
        let (first, ()) = tokio::join!(first, rest);
        first.unwrap().bytes().await.unwrap();
        settled(&world, Protocols::Http1).await;
        assert_eq!(world.server.counts().connections_accepted, 1);
    })
    .await;
}

#[tokio::test]
async fn dial_outlives_its_asker_and_is_prewarmed_for_the_next() {
    in_time(async {
        for protocols in BOTH {
            let world = World::new().await;
            let gate = world.dns.hold("api.test", Family::V4);
            let client = world.client(protocols);
            {
                let mut asker = Box::pin(client.get("/").send());
                let asked = world.dns.wait_queries("api.test", Family::V4, 1);
                tokio::select! {
                    _ = &mut asker => unreachable!("the name server holds its answer"),
                    () = asked => {}
                }
            }
            gate.open();
            world.server.wait(|c| c.connections_accepted == 1).await;
            eventually("the dial is over", || world.pool.stats().idle == 1).await;
            let mut response = client.get("/").send().await.unwrap();
            response.bytes().await.unwrap();
            assert_eq!(response.connection_use(), ConnectionUse::Prewarmed);
            assert!(response.metrics().connection_reused);
            let stats = world.pool.stats();
            assert_eq!(
                (stats.connections_created, stats.unserved),
                (1, 1),
                "{protocols:?}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn those_who_wait_inherit_the_dial_of_one_who_left_and_its_error() {
    in_time(async {
        let world = World::new().await;
        let gate = world.dns.hold("api.test", Family::V4);
        let client = world.client(Protocols::Auto);
        let mut leader = Box::pin(client.get("/").send());
        let asked = world.dns.wait_queries("api.test", Family::V4, 1);
        tokio::select! {
            _ = &mut leader => unreachable!("the name server holds its answer"),
            () = asked => {}
        }
        let followers = common::join_all((0..5).map(|_| client.get("/").send()));
        let rest = async {
            eventually("all wait", || world.pool.stats().waiting == 6).await;
            drop(leader);
            world
                .dns
                .reply("api.test", Family::V4, support::dns::Reply::NxDomain);
            gate.open();
        };
        let (results, ()) = tokio::join!(followers, rest);
        for result in results {
            let error = result.unwrap_err();
            assert!(error.is_dns(), "the true cause: {error}");
        }
        assert_eq!(world.dns.queries("api.test", Family::V4), 1);
    })
    .await;
}
