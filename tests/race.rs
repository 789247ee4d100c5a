//! The race over addresses through TLS: who wins, what losers cost, and what is remembered.

mod common;
mod support;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use common::{World, eventually, in_time};
use firstbyte::io::{BoxFuture, Dial, DialTarget, Transport};
use firstbyte::timing::AttemptOutcome;
use firstbyte::{Client, ErrorKind, Phase, Protocols, RaceOptions, Response};
use support::dns::Family;
use support::peer_io::Listening;
use support::pki::{self, Pki};
use support::server::Server;

fn outcomes(response: &Response) -> Vec<(IpAddr, AttemptOutcome)> {
    let attempts = response.connection().trace().attempts.iter();
    attempts
        .map(|a| (a.addr.ip(), a.outcome.clone().unwrap()))
        .collect()
}

/// Each call dials, and closes what it dialled.
async fn dial(client: &Client, world: &World) -> Response {
    let mut response = client.get("/").send().await.unwrap();
    response.text().await.unwrap();
    world.pool.close_idle();
    eventually("it is closed", || world.pool.stats().open == 0).await;
    response
}

/// Reaches the server whatever the address, but addresses that are said to stall never answer.
#[derive(Clone)]
struct Paths {
    server: SocketAddr,
    stalled: Arc<Mutex<Vec<IpAddr>>>,
}

impl Paths {
    fn to(server: &Server) -> Self {
        Self {
            server: server.addr(),
            stalled: Arc::default(),
        }
    }

    fn stall(&self, ips: &[&str]) {
        *self.stalled.lock().unwrap() = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    }
}

impl Dial for Paths {
    fn dial(&self, target: DialTarget) -> BoxFuture<'static, io::Result<Transport>> {
        let this = self.clone();
        Box::pin(async move {
            if this.stalled.lock().unwrap().contains(&target.addr.ip()) {
                let (near, far) = tokio::io::duplex(1 << 16);
                // Whoever holds the other end says nothing.
                std::mem::forget(far);
                return Ok(Transport::custom(near));
            }
            let tcp = tokio::net::TcpStream::connect(this.server).await?;
            Ok(Transport::Tcp(tcp))
        })
    }
}

#[tokio::test]
async fn address_that_accepts_and_stalls_in_tls_does_not_hold_the_others_up() {
    in_time(async {
        for protocols in common::BOTH {
            let mut world = World::new().await;
            let stalling = Paths::to(&world.server);
            let pool = firstbyte::ConnectionPool::builder()
                .name_servers([world.dns.addr()])
                .tls(
                    firstbyte::tls::TlsOptions::new()
                        .builtin_roots(false)
                        .add_root(world.pki.ca_der()),
                )
                .dialer(stalling.clone())
                .build()
                .unwrap();
            world.pool = pool;
            world.dns.v6("api.test", &["::1"]);
            stalling.stall(&["::1"]);
            let client = world.client(protocols);
            let first = dial(&client, &world).await;
            let [v6, v4]: [IpAddr; 2] = ["::1", "127.0.0.1"].map(|ip| ip.parse().unwrap());
            assert_eq!(
                outcomes(&first),
                [(v6, AttemptOutcome::Lost), (v4, AttemptOutcome::Won)]
            );
            let trace = first.connection().trace();
            let [lost, won] = &trace.attempts[..] else {
                panic!("{trace:?}")
            };
            assert!(lost.established.is_some() && lost.established < Some(won.start));
            // tcp ends and tls begins with the winner, whatever the loser had reached.
            assert_eq!(trace.tcp.unwrap().end, won.established);
            assert_eq!(trace.tls.unwrap().start, won.established.unwrap());
            assert_eq!(trace.tcp_rtt, Some(won.established.unwrap() - won.start));
            let timing = first.timing();
            let sum: std::time::Duration = Phase::ALL.iter().filter_map(|p| timing.get(*p)).sum();
            assert_eq!(sum, timing.total());

            // The winner is remembered: nobody pays twice.
            let second = dial(&client, &world).await;
            assert_eq!(outcomes(&second), [(v4, AttemptOutcome::Won)]);
        }
    })
    .await;
}

#[tokio::test]
async fn race_spends_one_ticket_however_many_addresses_it_tries() {
    in_time(async {
        let mut world = World::new().await;
        let paths = Paths::to(&world.server);
        world.pool = firstbyte::ConnectionPool::builder()
            .name_servers([world.dns.addr()])
            .tls(
                firstbyte::tls::TlsOptions::new()
                    .builtin_roots(false)
                    .add_root(world.pki.ca_der()),
            )
            .dialer(paths.clone())
            .build()
            .unwrap();
        world
            .dns
            .v4("api.test", &["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
        let client = world.client(Protocols::Http2);
        let first = dial(&client, &world).await;
        assert_eq!(first.connection().tls_resumed(), Some(false));
        let tickets = world.pool.stats().tls_tickets;
        assert!(tickets >= 2, "{tickets} tickets");

        // The first two stall with ClientHello sent; only the first of them had a ticket.
        paths.stall(&["127.0.0.1", "127.0.0.2"]);
        let second = client.get("/").send().await.unwrap();
        assert_eq!(outcomes(&second).len(), 3);
        assert_eq!(
            second.connection().tls_resumed(),
            Some(false),
            "the ticket is out with the first attempt"
        );
        drop(second);
        eventually("new tickets are there", || {
            world.pool.stats().tls_tickets >= tickets
        })
        .await;
        world.pool.close_idle();
        eventually("it is closed", || world.pool.stats().open == 0).await;
        let third = dial(&client, &world).await;
        assert_eq!(outcomes(&third).len(), 1);
        assert_eq!(third.connection().tls_resumed(), Some(true));
        let stats = world.pool.stats();
        assert_eq!((stats.tls_connections, stats.resumed), (3, 1));
        assert!((stats.tls_resumption_rate - 100.0 / 3.0).abs() < 1e-9);
    })
    .await;
}

#[tokio::test]
async fn broken_handshake_moves_on_at_once_and_a_bad_certificate_does_not() {
    in_time(async {
        let world = World::new().await;
        let port = world.server.port();
        let two = ["127.0.0.2", "127.0.0.1"].map(|ip| ip.parse::<IpAddr>().unwrap());
        world.dns.records("api.test", Family::V4, &two, 60);
        let addr = SocketAddr::new(two[0], port);

        // Resets in the middle of the handshake.
        let resets = Listening::start(addr, None, |mut io, _| async move {
            io.read(5).await;
            io.reset();
        });
        let client = world.client(Protocols::Auto);
        let first = dial(&client, &world).await;
        assert_eq!(
            outcomes(&first),
            [
                (two[0], AttemptOutcome::HandshakeFailed),
                (two[1], AttemptOutcome::Won)
            ]
        );
        // It failed lately: it comes last now.
        let second = dial(&client, &world).await;
        assert_eq!(outcomes(&second), [(two[1], AttemptOutcome::Won)]);
        drop(resets);

        // Another pool, which remembers nothing, meets a stranger there.
        let stranger = Pki::new();
        let config = pki::server_config(&stranger.server(&["api.test"]), &["h2"]);
        let impostor = Server::builder()
            .tls_config(config)
            .bind(addr)
            .start()
            .await;
        let fresh = World::new().await;
        fresh.dns.records("api.test", Family::V4, &two, 60);
        let client = fresh.client_of(&world.server.url("/"), Protocols::Auto);
        let before = world.server.counts().connections_accepted;
        let error = client.get("/").send().await.unwrap_err();
        assert_eq!(
            (error.kind(), error.phase()),
            (ErrorKind::Tls, Some(Phase::Tls))
        );
        assert!(error.to_string().contains("certificate"), "{error}");
        impostor.wait(|c| c.tls_failed == 1).await;
        assert_eq!(world.server.counts().connections_accepted, before);
    })
    .await;
}

#[tokio::test]
async fn race_ends_with_tcp_when_told_so() {
    in_time(async {
        let silent = support::stall::Stall::accept_silent();
        let world = World::with(
            |server| server,
            |pool| pool.race(RaceOptions::default().through_tls(false)),
        )
        .await;
        let two = ["127.0.0.1", "127.0.0.2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        world.dns.records("api.test", Family::V4, &two, 60);
        let url = format!("https://api.test:{}/", silent.port());
        let client = world.client_of(&url, Protocols::Auto);
        let timeouts =
            firstbyte::Timeouts::default().connect(std::time::Duration::from_millis(400));
        let error = client.get("/").timeouts(timeouts).send().await.unwrap_err();
        assert!(
            error.is_timeout() && error.phase() == Some(Phase::Tls),
            "{error}"
        );
        assert_eq!(silent.connections(), 1, "the first to accept has won");
    })
    .await;
}

#[tokio::test]
async fn dead_first_of_four_addresses_is_paid_for_once() {
    in_time(async {
        let world = World::new().await;
        let four: Vec<IpAddr> = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.1"]
            .map(|ip| ip.parse().unwrap())
            .into();
        world.dns.records("api.test", Family::V4, &four, 60);
        let client = world.client(Protocols::Auto);
        // Three refuse, and each next one is tried at once.
        let first = dial(&client, &world).await;
        assert_eq!(outcomes(&first).len(), 4);
        for _ in 0..5 {
            let next = dial(&client, &world).await;
            assert_eq!(outcomes(&next), [(four[3], AttemptOutcome::Won)]);
        }
    })
    .await;
}
