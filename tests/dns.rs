//! Names to addresses through a counting name server: who is asked, how often, and who waits.

mod common;
mod support;

use std::net::IpAddr;

use common::{World, eventually, in_time, join_all};
use firstbyte::timing::{AttemptOutcome, DnsSource};
use firstbyte::{Phase, Protocols};
use support::dns::{Family, Reply};
use support::server::Server;
use support::stall::Stall;

#[tokio::test]
async fn slow_family_does_not_hold_the_other_up() {
    in_time(async {
        let world = World::new().await;
        let gate = world.dns.hold("api.test", Family::V6);
        let client = world.client(Protocols::Auto);
        let mut response = client.get("/").send().await.unwrap();
        response.bytes().await.unwrap();
        assert_eq!(
            world.dns.queries("api.test", Family::V6),
            1,
            "asked, and still held"
        );
        // The resolution delay is a part of the look-up.
        let dns = response.timing().dns().unwrap();
        assert!(dns >= std::time::Duration::from_millis(25), "{dns:?}");
        drop(gate);
    })
    .await;
}

#[tokio::test]
async fn two_hundred_cold_callers_cost_one_query_per_family_and_the_next_none() {
    in_time(async {
        let world = World::new().await;
        let url = world.server.url("/");
        // Clients of different tags share no connection, so each dials.
        let clients: Vec<_> = (0..50)
            .map(|n| {
                let builder = world.pool.client_builder(url.as_str());
                builder.isolate(n.to_string()).build().unwrap()
            })
            .collect();
        let responses = join_all(clients.iter().cycle().take(200).map(|c| c.get("/").send())).await;
        let mut sources = Vec::new();
        for response in responses {
            let mut response = response.unwrap();
            response.bytes().await.unwrap();
            let facts = response.connection().trace().dns_facts.clone().unwrap();
            sources.push(facts.source);
        }
        for family in [Family::V4, Family::V6] {
            assert_eq!(world.dns.queries("api.test", family), 1);
        }
        assert_eq!(
            sources.iter().filter(|s| **s == DnsSource::Fresh).count(),
            4
        );
        assert!(sources.contains(&DnsSource::Shared));

        let late = world
            .pool
            .client_builder(url)
            .isolate("late")
            .build()
            .unwrap();
        let mut response = late.get("/").send().await.unwrap();
        response.bytes().await.unwrap();
        let facts = response.connection().trace().dns_facts.clone().unwrap();
        assert_eq!(
            (facts.source, facts.ttl),
            (DnsSource::Cache, Some(std::time::Duration::from_secs(60)))
        );
        assert_eq!(world.dns.queries("api.test", Family::V4), 1);
    })
    .await;
}

#[tokio::test]
async fn literals_localhost_and_overrides_are_never_asked() {
    in_time(async {
        let world = World::with(
            |server| server,
            |pool| pool.resolve_to("Pinned.TEST.", [IpAddr::from([127, 0, 0, 1])]),
        )
        .await;
        let plain = Server::builder().plain().start().await;
        for (host, source) in [
            ("127.0.0.1", DnsSource::Literal),
            ("localhost", DnsSource::Literal),
            ("api.LocalHost.", DnsSource::Literal),
            ("pinned.test", DnsSource::Override),
        ] {
            let url = format!("http://{host}:{}/", plain.port());
            let client = world.client_of(&url, Protocols::Auto);
            let mut response = client.get("/").send().await.unwrap();
            response.bytes().await.unwrap();
            assert_eq!(
                response.timing().dns(),
                None,
                "{host}: no look-up took place"
            );
            let facts = response.connection().trace().dns_facts.clone().unwrap();
            assert_eq!(facts.source, source, "{host}");
        }
        assert_eq!(world.dns.total_queries(), 0);
    })
    .await;
}

#[tokio::test]
async fn caller_that_goes_away_does_not_lose_the_look_up_for_the_others() {
    in_time(async {
        let world = World::new().await;
        let gate = world.dns.hold("api.test", Family::V4);
        let url = world.server.url("/");
        let first = world
            .pool
            .client_builder(url.as_str())
            .isolate("first")
            .build()
            .unwrap();
        let second = world
            .pool
            .client_builder(url)
            .isolate("second")
            .build()
            .unwrap();
        let mut leader = Box::pin(first.get("/").send());
        tokio::select! {
            _ = &mut leader => unreachable!("the name server holds its answer"),
            () = world.dns.wait_queries("api.test", Family::V4, 1) => {}
        }
        let rest = async {
            eventually("both wait", || world.pool.stats().waiting == 2).await;
            drop(leader);
            gate.open();
        };
        let (response, ()) = tokio::join!(second.get("/").send(), rest);
        response.unwrap().bytes().await.unwrap();
        assert_eq!(world.dns.queries("api.test", Family::V4), 1);
    })
    .await;
}

#[tokio::test]
async fn failure_is_remembered_shortly_and_the_right_one_is_told() {
    in_time(async {
        let world = World::new().await;
        world.dns.reply("gone.test", Family::V4, Reply::NxDomain);
        world.dns.reply("gone.test", Family::V6, Reply::NxDomain);
        let client = world.client_of("https://gone.test/", Protocols::Auto);
        for _ in 0..3 {
            let error = client.get("/").send().await.unwrap_err();
            assert!(
                error.is_dns() && error.phase() == Some(Phase::Dns),
                "{error}"
            );
            assert!(error.to_string().contains("NXDOMAIN"), "{error}");
        }
        assert_eq!(world.dns.queries("gone.test", Family::V4), 1);
    })
    .await;
}

#[tokio::test]
async fn dead_first_address_falls_over_to_the_next_and_both_attempts_are_recorded() {
    in_time(async {
        let server = Server::builder().plain().start().await;
        let world = World::new().await;
        // Nobody listens on 127.0.0.2 at this port.
        let ips = ["127.0.0.2", "127.0.0.1"].map(|ip| ip.parse::<IpAddr>().unwrap());
        world.dns.records("two.test", Family::V4, &ips, 60);
        let url = format!("http://two.test:{}/", server.port());
        let mut response = world
            .client_of(&url, Protocols::Auto)
            .get("/")
            .send()
            .await
            .unwrap();
        response.bytes().await.unwrap();
        let attempts = &response.connection().trace().attempts;
        assert_eq!(attempts.len(), 2);
        assert!(matches!(
            attempts[0].outcome,
            Some(AttemptOutcome::Failed(_))
        ));
        assert_eq!(attempts[1].outcome, Some(AttemptOutcome::Won));
        assert_eq!(
            response.timing().tcp(),
            response.connection().trace().get(Phase::Tcp)
        );
    })
    .await;
}

#[tokio::test]
async fn ipv6_is_tried_first_and_ipv4_wins_when_it_is_black() {
    in_time(async {
        let server = Server::builder().plain().start().await;
        let port = server.port();
        let black = Stall::blackhole_at(format!("[::1]:{port}").parse().unwrap());
        assert_eq!(black.port(), port);
        let world = World::new().await;
        world.dns.v6("both.test", &["::1"]);
        world.dns.v4("both.test", &["127.0.0.1"]);
        let url = format!("http://both.test:{port}/");
        let mut response = world
            .client_of(&url, Protocols::Auto)
            .get("/")
            .send()
            .await
            .unwrap();
        response.bytes().await.unwrap();
        let attempts = &response.connection().trace().attempts;
        assert!(attempts[0].addr.is_ipv6() && attempts[1].addr.is_ipv4());
        assert_eq!(attempts[0].outcome, Some(AttemptOutcome::Lost));
        assert_eq!(attempts[1].outcome, Some(AttemptOutcome::Won));
    })
    .await;
}
