//! Limits hold, waiting is fair and bounded, and idle connections go by a timer.

mod common;
mod support;

use std::time::Duration;

use common::{BOTH, World, eventually, in_time, join_all};
use firstbyte::{
    Client, CloseReason, ConnectionUse, ErrorKind, Limits, Phase, Protocols, Timeouts,
};
use support::gate::Gate;
use support::server::Reply;

#[tokio::test]
async fn total_limit_is_never_exceeded_and_everybody_is_served() {
    in_time(async {
        let world = World::with(
            |server| server.handler(|_| Reply::ok().delay(Duration::from_millis(5))),
            |pool| pool.limits(Limits::default().max_connections(3)),
        )
        .await;
        let client = world.client(Protocols::Http1);
        let responses = join_all((0..30).map(|_| client.get("/").send())).await;
        assert!(responses.into_iter().all(|r| r.is_ok()));
        let counts = world.server.counts();
        assert_eq!((counts.connections_accepted, counts.requests), (3, 30));
        let stats = world.pool.stats();
        assert!(stats.limit_hits >= 27 && stats.waiting == 0);
        assert_eq!(stats.connections_reused, 27);
    })
    .await;
}

#[tokio::test]
async fn per_host_limit_leaves_room_for_other_origins() {
    in_time(async {
        let gate = Gate::new();
        let held = gate.clone();
        let world = World::with(
            |server| server.handler(move |_| Reply::ok().hold(held.clone())),
            |pool| pool.limits(Limits::default().max_connections_per_host(2)),
        )
        .await;
        let client = world.client(Protocols::Http1);
        let other = world.client_of(&world.other_url(), Protocols::Http1);
        let four = join_all((0..4).map(|_| client.get("/").send()));
        let work = async {
            let count = world.server.wait(|c| c.requests == 2).await;
            assert_eq!(count.connections_accepted, 2);
            assert_eq!(world.pool.stats().waiting, 2);
            let second = other.get("/").send();
            let opened = async {
                world.server.wait(|c| c.requests == 3).await;
                gate.open();
            };
            let (response, ()) = tokio::join!(second, opened);
            response.unwrap();
        };
        let (responses, ()) = tokio::join!(four, work);
        assert!(responses.into_iter().all(|r| r.is_ok()));
        assert_eq!(world.server.counts().connections_accepted, 3);
    })
    .await;
}

#[tokio::test]
async fn waiters_are_served_in_the_order_in_which_they_came() {
    in_time(async {
        let world = World::with(
            |server| server,
            |pool| pool.limits(Limits::default().max_connections(1)),
        )
        .await;
        let client = world.client(Protocols::Http1);
        let requests = (0..20).map(|n| client.get(format!("/status/2{n:02}")).send());
        join_all(requests).await;
        let order: Vec<String> = world
            .server
            .seen()
            .iter()
            .map(|s| s.uri.path().to_owned())
            .collect();
        let expected: Vec<String> = (0..20).map(|n| format!("/status/2{n:02}")).collect();
        assert_eq!(order, expected);
    })
    .await;
}

#[tokio::test]
async fn waiting_for_a_limit_has_its_own_timeout_and_is_shown_apart() {
    in_time(async {
        let gate = Gate::new();
        let held = gate.clone();
        let world = World::with(
            |server| server.handler(move |_| Reply::ok().hold(held.clone())),
            |pool| pool.limits(Limits::default().max_connections(1).max_waiting(1)),
        )
        .await;
        let client = world.client(Protocols::Http1);
        let first = client.get("/").send();
        let rest = async {
            world.server.wait(|c| c.requests == 1).await;
            let short = Timeouts::default().queue(Duration::from_millis(30));
            let waiting = client.get("/").timeouts(short).send();
            let refused = async {
                eventually("one waits", || world.pool.stats().waiting == 1).await;
                client.get("/").send().await.unwrap_err()
            };
            let (waited, refused) = tokio::join!(waiting, refused);
            let waited = waited.unwrap_err();
            assert_eq!(
                (waited.kind(), waited.phase()),
                (ErrorKind::Timeout, Some(Phase::Queue))
            );
            let said = waited.to_string();
            assert!(
                said.contains("1 connection(s) of the pool are in use (max_connections)"),
                "{said}"
            );
            let timing = waited.timing().unwrap();
            assert!(timing.queue_limit().unwrap() >= Duration::from_millis(30));
            assert_eq!(timing.network_overhead(), Duration::ZERO);
            assert_eq!(refused.kind(), ErrorKind::Limit);
            assert_eq!(world.pool.stats().waiting, 0);
            gate.open();
        };
        let (first, ()) = tokio::join!(first, rest);
        first.unwrap();
    })
    .await;
}

/// What other origins keep idle must not cost a busy one its connection after every request.
#[tokio::test]
async fn idle_limit_closes_what_is_idle_for_longest_whosever_it_is() {
    in_time(async {
        for (old, busy) in [(0, 1), (1, 0), (0, 0), (1, 1)] {
            let world = World::with(
                |server| server,
                |pool| pool.limits(Limits::default().max_keepalive_connections(1)),
            )
            .await;
            let get = async |client: &Client| {
                let mut response = client.get("/").send().await.unwrap();
                response.bytes().await.unwrap();
                response.connection_use()
            };
            get(&world.client(BOTH[old])).await;
            let busy = world.client_of(&world.other_url(), BOTH[busy]);
            assert_eq!(get(&busy).await, ConnectionUse::New);
            for _ in 0..3 {
                assert_eq!(get(&busy).await, ConnectionUse::Idle);
            }
            eventually("the other's goes", || world.pool.stats().open == 1).await;
            assert_eq!(world.pool.stats().closed[&CloseReason::IdleLimit], 1);
        }
    })
    .await;
}

#[tokio::test]
async fn idle_limit_holds_for_both_protocols() {
    in_time(async {
        let world = World::with(
            |server| server,
            |pool| pool.limits(Limits::default().max_keepalive_connections(2)),
        )
        .await;
        let client = world.client(Protocols::Http1);
        for response in join_all((0..5).map(|_| client.get("/delay/5").send())).await {
            response.unwrap().bytes().await.unwrap();
        }
        let stats = world.pool.stats();
        assert_eq!((stats.idle, stats.open), (2, 2));
        assert_eq!(stats.closed[&CloseReason::IdleLimit], 3);
        let http2 = world.client(Protocols::Http2);
        http2.get("/").send().await.unwrap().bytes().await.unwrap();
        eventually("the third idle one goes", || world.pool.stats().open == 2).await;
        world.server.wait(|c| c.connections_open == 2).await;
    })
    .await;
}

#[tokio::test]
async fn idle_connections_expire_by_a_timer_and_not_by_the_next_request() {
    in_time(async {
        let expiry = Duration::from_millis(50);
        let world = World::with(
            |server| server,
            |pool| {
                let limits = Limits::default().keepalive_expiry(expiry);
                pool.limits(limits.http2_keepalive_expiry(expiry))
            },
        )
        .await;
        for protocols in BOTH {
            let client = world.client(protocols);
            client.get("/").send().await.unwrap().bytes().await.unwrap();
        }
        world
            .server
            .wait(|c| c.connections_accepted == 2 && c.connections_open == 0)
            .await;
        eventually("the books follow", || world.pool.stats().open == 0).await;
        let stats = world.pool.stats();
        assert_eq!(
            (stats.idle, stats.closed[&CloseReason::IdleExpired]),
            (0, 2)
        );
    })
    .await;
}

#[tokio::test]
async fn idle_connection_of_another_origin_makes_room() {
    in_time(async {
        for protocols in BOTH {
            let world = World::with(
                |server| server,
                |pool| pool.limits(Limits::default().max_connections(1)),
            )
            .await;
            let client = world.client(protocols);
            let other = world.client_of(&world.other_url(), protocols);
            for client in [&client, &other, &client] {
                client.get("/").send().await.unwrap().bytes().await.unwrap();
            }
            let stats = world.pool.stats();
            assert_eq!(
                (stats.open, stats.connections_created),
                (1, 3),
                "{protocols:?}"
            );
            assert_eq!(stats.closed[&CloseReason::MadeRoom], 2);
        }
    })
    .await;
}

#[tokio::test]
async fn streams_are_limited_by_the_peer_and_further_connections_share_the_load() {
    in_time(async {
        let world = World::with(
            |server| {
                server
                    .max_concurrent_streams(10)
                    .handler(|_| Reply::ok().delay(Duration::from_millis(10)))
            },
            |pool| pool,
        )
        .await;
        let client = world.client(Protocols::Http2);
        client.get("/").send().await.unwrap().bytes().await.unwrap();
        let responses = join_all((0..200).map(|_| client.get("/").send())).await;
        assert!(responses.into_iter().all(|r| r.is_ok()));
        let counts = world.server.counts();
        assert!(counts.connections_accepted <= 4 && counts.max_streams_open <= 40);
        assert_eq!((counts.requests, world.pool.stats().waiting), (201, 0));
    })
    .await;
}

#[tokio::test]
async fn connection_past_its_lifetime_takes_no_new_requests() {
    in_time(async {
        for protocols in BOTH {
            let world = World::with(
                |server| server,
                |pool| pool.limits(Limits::default().max_lifetime(Duration::from_millis(40))),
            )
            .await;
            let client = world.client(protocols);
            client.get("/").send().await.unwrap().bytes().await.unwrap();
            world.server.wait(|c| c.connections_open == 0).await;
            client.get("/").send().await.unwrap().bytes().await.unwrap();
            assert!(
                world
                    .pool
                    .stats()
                    .closed
                    .contains_key(&CloseReason::Lifetime)
            );
        }
    })
    .await;
}
