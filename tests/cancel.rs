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

/// Transports over which the server's bytes arrive only once the gate is open.
#[derive(Clone)]
struct Gated {
    server: std::net::SocketAddr,
    gate: support::gate::Gate,
    /// Before the connection is there, or in the middle of the handshake.
    is_before: bool,
}

impl firstbyte::io::Dial for Gated {
    fn dial(
        &self,
        _: firstbyte::io::DialTarget,
    ) -> firstbyte::io::BoxFuture<'static, std::io::Result<firstbyte::io::Transport>> {
        let (this, opened) = (self.clone(), self.gate.waiter());
        Box::pin(async move {
            if this.is_before {
                opened.opened().await;
                let tcp = tokio::net::TcpStream::connect(this.server).await?;
                return Ok(firstbyte::io::Transport::Tcp(tcp));
            }
            let mut tcp = tokio::net::TcpStream::connect(this.server).await?;
            let (near, mut far) = tokio::io::duplex(64 * 1024);
            tokio::spawn(async move {
                let (mut from_server, mut to_server) = tcp.split();
                let (mut from_client, mut to_client) = tokio::io::split(&mut far);
                let down = async {
                    opened.opened().await;
                    tokio::io::copy(&mut from_server, &mut to_client).await
                };
                let up = tokio::io::copy(&mut from_client, &mut to_server);
                tokio::select! { _ = down => {}, _ = up => {} }
            });
            Ok(firstbyte::io::Transport::custom(near))
        })
    }
}

#[tokio::test]
async fn request_dropped_while_its_dial_stands_in_tcp_or_tls_leaves_the_dial_to_the_next() {
    in_time(async {
        for protocols in BOTH {
            for is_before in [true, false] {
                let mut world = World::new().await;
                let gate = support::gate::Gate::new();
                let gated = Gated {
                    server: world.server.addr(),
                    gate: gate.clone(),
                    is_before,
                };
                let tls = firstbyte::tls::TlsOptions::new().builtin_roots(false);
                world.pool = firstbyte::ConnectionPool::builder()
                    .name_servers([world.dns.addr()])
                    .tls(tls.add_root(world.pki.ca_der()))
                    .dialer(gated)
                    .build()
                    .unwrap();
                let client = world.client(protocols);
                let request = tokio::spawn(async move { client.get("/").send().await.map(drop) });
                eventually("it is dialling", || world.pool.stats().open == 1).await;
                if !is_before {
                    world.server.wait(|c| c.connections_accepted == 1).await;
                }
                request.abort();
                eventually("it has left", || world.pool.stats().waiting == 0).await;
                gate.open();
                eventually("its dial has gone on", || world.pool.stats().idle == 1).await;
                let case = format!("{protocols:?} {is_before}");
                let client = world.client(protocols);
                let mut response = client.get("/").send().await.unwrap();
                assert_eq!(
                    response.connection_use(),
                    ConnectionUse::Prewarmed,
                    "{case}"
                );
                response.bytes().await.unwrap();
                drop(response);
                settled(&world, protocols).await;
                world.pool.close_idle();
                eventually("all is closed", || world.pool.stats().open == 0).await;
                world.server.wait(|c| c.connections_open == 0).await;
            }
        }
    })
    .await;
}
