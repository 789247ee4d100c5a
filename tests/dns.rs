//! Names to addresses through a counting name server: who is asked, how often, and who waits.

mod common;
mod support;

use std::net::IpAddr;

use std::path::PathBuf;

use common::{World, eventually, in_time, join_all};
use firstbyte::dns::{self, HickoryResolver, Resolve, ResolveErrorKind};
use firstbyte::timing::{AttemptOutcome, DnsSource};
use firstbyte::{ConnectionPool, Phase, Protocols};
use support::dns::{DnsServer, Family, Reply};
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

/// A file that is gone with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        let name = format!("firstbyte-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.0, text).unwrap();
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

async fn ask(resolver: &HickoryResolver, name: &str) -> Result<Vec<IpAddr>, ResolveErrorKind> {
    let answer = resolver.resolve(name, dns::Family::V4).await;
    answer.map(|a| a.addrs).map_err(|e| e.kind())
}

#[tokio::test]
async fn second_name_server_is_asked_beside_a_silent_first() {
    in_time(async {
        let (silent, sound) = (DnsServer::start().await, DnsServer::start().await);
        silent.reply("api.test", Family::V4, Reply::Silent);
        sound.v4("api.test", &["127.0.0.9"]);
        // The sound one answers only when the silent one has been asked too.
        let gate = sound.hold("api.test", Family::V4);
        for servers in [[silent.addr(), sound.addr()], [sound.addr(), silent.addr()]] {
            let resolver = HickoryResolver::name_servers(servers);
            let asked = silent.queries("api.test", Family::V4) + 1;
            let (answer, ()) = tokio::join!(ask(&resolver, "api.test"), async {
                silent.wait_queries("api.test", Family::V4, asked).await;
                gate.open();
            });
            assert_eq!(answer.unwrap(), [IpAddr::from([127, 0, 0, 9])]);
        }
    })
    .await;
}

#[tokio::test]
async fn truncated_answer_is_asked_for_by_tcp_and_never_kept() {
    in_time(async {
        let records = Reply::Records {
            ips: vec![IpAddr::from([127, 0, 0, 1])],
            ttl: 60,
        };
        let world = World::new().await;
        let truncated = Reply::Truncated(Box::new(records));
        world.dns.reply("api.test", Family::V4, truncated.clone());
        let response = world.client(Protocols::Auto).get("/").send().await;
        assert_eq!(response.unwrap().status(), 200);
        assert!(world.dns.tcp_queries() >= 1);

        let udp_only = DnsServer::start_udp_only().await;
        udp_only.reply("api.test", Family::V4, truncated);
        let pool = ConnectionPool::builder()
            .name_servers([udp_only.addr()])
            .build()
            .unwrap();
        let client = pool.client_builder(world.server.url("/")).build().unwrap();
        let error = client.get("/").send().await.unwrap_err();
        assert!(error.is_dns(), "{error}");
    })
    .await;
}

#[tokio::test]
async fn hosts_file_comes_first_and_its_changes_are_noticed() {
    let hosts = File::new("hosts");
    std::fs::write(
        &hosts.0,
        b"\xff\xfe nonsense\n127.0.0.7 Hosted.test # caf\xe9\n",
    )
    .unwrap();
    let unused = "127.0.0.1:9".parse().unwrap();
    let resolver = HickoryResolver::name_servers([unused]).hosts(&hosts.0);
    assert_eq!(
        ask(&resolver, "hosted.test").await.unwrap(),
        [IpAddr::from([127, 0, 0, 7])]
    );
    let other = resolver.resolve("hosted.test", dns::Family::V6).await;
    assert_eq!(
        other.unwrap_err().kind(),
        ResolveErrorKind::NoAddress,
        "nobody is asked for the other family"
    );
    hosts.write("127.0.0.88 hosted.test\n");
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_millis(1001)).await;
    // As a dial does: both at once.
    let (_, addrs) = tokio::join!(
        resolver.resolve("hosted.test", dns::Family::V6),
        ask(&resolver, "hosted.test")
    );
    assert_eq!(addrs.unwrap(), [IpAddr::from([127, 0, 0, 88])]);
}

/// A server that will not answer says nothing about the name: a VPN's, or one that is no longer ours.
#[tokio::test]
async fn refusal_of_one_name_server_is_not_the_answer_of_the_other() {
    in_time(async {
        for reply in [Reply::Refused, Reply::ServFail] {
            for refuser_first in [true, false] {
                let (refuser, good) = (DnsServer::start().await, DnsServer::start().await);
                refuser.reply("a.test", Family::V4, reply.clone());
                good.v4("a.test", &["127.0.0.5"]);
                let gate = good.hold("a.test", Family::V4);
                let mut servers = [refuser.addr(), good.addr()];
                if !refuser_first {
                    servers.reverse();
                }
                let resolver = HickoryResolver::name_servers(servers);
                let asked = tokio::spawn({
                    let resolver = resolver.clone();
                    async move { ask(&resolver, "a.test").await }
                });
                refuser.wait_queries("a.test", Family::V4, 1).await;
                // Whoever took the refusal for the answer has gone on by then.
                refuser.wait_queries("a.test", Family::V4, 2).await;
                gate.open();
                assert_eq!(
                    asked.await.unwrap().unwrap(),
                    [IpAddr::from([127, 0, 0, 5])]
                );
                // And if all refuse it is a failure.
                good.reply("a.test", Family::V4, reply.clone());
                let failed = ask(&resolver, "a.test").await;
                assert_eq!(failed, Err(ResolveErrorKind::ServerFailure));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn alias_that_comes_in_an_answer_of_its_own_bounds_the_time_to_live() {
    in_time(async {
        let server = DnsServer::start().await;
        let alias = Reply::Alias {
            target: "lb.test".into(),
            ips: Vec::new(),
            ttl: 5,
        };
        server.reply("a.test", Family::V4, alias);
        let ip = IpAddr::from([127, 0, 0, 5]);
        server.records("lb.test", Family::V4, &[ip], 3_600);
        let resolver = HickoryResolver::name_servers([server.addr()]);
        let answer = resolver.resolve("a.test", dns::Family::V4).await.unwrap();
        assert_eq!(answer.addrs, [ip]);
        assert_eq!(answer.ttl, Some(std::time::Duration::from_secs(5)));
    })
    .await;
}

/// Both families come from one name of those that a search tries, or the addresses are two hosts'.
#[tokio::test]
async fn search_ends_at_the_first_name_that_exists() {
    in_time(async {
        let server = DnsServer::start().await;
        server.v4("db.a.test", &["127.0.0.1"]);
        server.reply("db.a.test", Family::V6, Reply::NoData);
        server.v4("db.b.test", &["127.0.0.2"]);
        server.v6("db.b.test", &["::2"]);
        let conf = File::new("search.conf");
        conf.write("search a.test b.test\noptions ndots:2\n");
        let resolver = HickoryResolver::name_servers([server.addr()]).resolv_conf(&conf.0);
        let resolver = resolver.search_domains(true);
        let ask = async |name: &str, family| {
            let answer = resolver.resolve(name, family).await;
            answer
                .map(|answer| answer.addrs[0].to_string())
                .map_err(|e| e.kind())
        };
        let (v4, v6) = (dns::Family::V4, dns::Family::V6);
        assert_eq!(ask("db", v4).await.as_deref(), Ok("127.0.0.1"));
        assert_eq!(ask("db", v6).await, Err(ResolveErrorKind::NoAddress));
        // One that has neither is none.
        server.reply("db.a.test", Family::V4, Reply::NoData);
        assert_eq!(ask("db", v4).await.as_deref(), Ok("127.0.0.2"));
        assert_eq!(ask("db", v6).await.as_deref(), Ok("::2"));
        // One that cannot be asked may be the one that is meant.
        server.reply("db.a.test", Family::V4, Reply::ServFail);
        assert_eq!(ask("db", v4).await, Err(ResolveErrorKind::ServerFailure));
        assert_eq!(ask("db", v6).await, Err(ResolveErrorKind::ServerFailure));
        // With enough dots the name itself comes first, with fewer last.
        server.v4("x.y.z", &["127.0.0.3"]);
        server.v4("x.y.z.a.test", &["127.0.0.4"]);
        assert_eq!(ask("x.y.z", v4).await.as_deref(), Ok("127.0.0.3"));
        server.v4("x.y", &["127.0.0.3"]);
        assert_eq!(ask("x.y", v4).await.as_deref(), Ok("127.0.0.3"));
        server.v4("x.y.b.test", &["127.0.0.4"]);
        assert_eq!(ask("x.y", v4).await.as_deref(), Ok("127.0.0.4"));
        assert_eq!(ask("nobody", v4).await, Err(ResolveErrorKind::NoSuchName));
    })
    .await;
}

#[tokio::test]
async fn search_domains_are_used_only_when_asked_for() {
    in_time(async {
        let server = DnsServer::start().await;
        server.v4("short.corp.test", &["127.0.0.5"]);
        let conf = File::new("resolv.conf");
        conf.write("garbage\nsearch corp.test\noptions ndots:1\n");
        let resolver = HickoryResolver::name_servers([server.addr()]).resolv_conf(&conf.0);
        assert_eq!(
            ask(&resolver, "short").await,
            Err(ResolveErrorKind::NoSuchName)
        );
        assert_eq!(server.total_queries(), 1);
        let resolver = resolver.search_domains(true);
        assert_eq!(
            ask(&resolver, "short").await.unwrap(),
            [IpAddr::from([127, 0, 0, 5])]
        );
    })
    .await;
}

#[tokio::test]
async fn address_filter_refuses_what_a_name_leads_to() {
    in_time(async {
        let world = World::with(
            |server| server,
            |pool| pool.address_filter(|_, ip| dns::is_public(ip)),
        )
        .await;
        let literal = format!("https://127.0.0.1:{}/", world.server.port());
        for url in [world.server.url("/"), literal] {
            let client = world.client_of(&url, Protocols::Auto);
            let error = client.get("/").send().await.unwrap_err();
            assert!(
                error.is_dns() && error.phase() == Some(Phase::Dns),
                "{error}"
            );
            assert!(error.to_string().contains("address filter"), "{error}");
        }
        assert_eq!(world.server.counts().connections_accepted, 0);

        // What it lets through is used, and it knows for which host it is asked.
        let world = World::with(
            |server| server,
            |pool| pool.address_filter(|host, ip| host == "api.test" && ip.is_loopback()),
        )
        .await;
        let forbidden: Vec<IpAddr> =
            vec!["127.0.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        world.dns.records("api.test", Family::V4, &forbidden, 60);
        let response = world.client(Protocols::Auto).get("/").send().await.unwrap();
        assert_eq!(response.connection().trace().attempts.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn stale_answer_serves_at_once_while_it_is_asked_for_anew() {
    in_time(async {
        let options = dns::DnsOptions::default()
            .min_ttl(std::time::Duration::from_millis(1))
            .max_ttl(std::time::Duration::from_millis(1))
            .refresh_at_percent(None);
        let world = World::with(|server| server, |pool| pool.dns(options)).await;
        let url = world.server.url("/");
        let get = async |tag: &str| {
            let builder = world.pool.client_builder(url.as_str());
            let client = builder.isolate(tag).build().unwrap();
            client.get("/").send().await.unwrap()
        };
        get("first").await;
        eventually("its time is over", {
            let began = std::time::Instant::now();
            move || began.elapsed() > std::time::Duration::from_millis(2)
        })
        .await;
        let gate = world.dns.hold("api.test", Family::V4);
        let second = get("second").await;
        let facts = second.connection().trace().dns_facts.clone().unwrap();
        assert_eq!((facts.source, facts.queried), (DnsSource::Stale, false));
        world.dns.wait_queries("api.test", Family::V4, 2).await;
        assert_eq!(world.pool.stats().dns_lookups_saved, 1);
        drop(gate);
    })
    .await;
}
