//! What other clients take from us: names, connections, tickets.

mod common;
mod support;

use std::net::{IpAddr, SocketAddr};

use common::{World, in_time};
use firstbyte::tls::TlsOptions;
use firstbyte::{ConnectionPool, ErrorKind};

/// Our resolver, as reqwest asks for one.
struct Names(ConnectionPool);

impl reqwest::dns::Resolve for Names {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let pool = self.0.clone();
        Box::pin(async move {
            let addrs = pool.resolve(name.as_str()).await?;
            let addrs = addrs.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addrs) as reqwest::dns::Addrs)
        })
    }
}

#[tokio::test]
async fn reqwest_finds_names_and_resumes_sessions_with_ours() {
    in_time(async {
        let world = World::with(|server| server, |pool| pool).await;
        let tls = TlsOptions::new().builtin_roots(false);
        let mut tls = tls.add_root(world.pki.ca_der()).client_config().unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let client = reqwest::Client::builder()
            .no_proxy()
            .dns_resolver(Names(world.pool.clone()))
            .tls_backend_preconfigured(tls)
            .build()
            .unwrap();
        for n in 1..=10 {
            let response = client.get(world.server.url("/")).send().await.unwrap();
            assert_eq!(response.version(), http::Version::HTTP_2);
            assert_eq!(response.text().await.unwrap(), "hello");
            world.server.kill_connections();
            let counts = world
                .server
                .wait(|counts| counts.connections_open == 0)
                .await;
            assert_eq!((counts.tls_full, counts.tls_resumed), (1, n - 1));
        }
        // A request of the pool finds the name in the same cache.
        let queries = world.dns.total_queries();
        assert_eq!(queries, 2, "one for each family");
        let client = world.client(firstbyte::Protocols::Auto);
        client.get("/").send().await.unwrap();
        assert_eq!(world.dns.total_queries(), queries);
    })
    .await;
}

#[tokio::test]
async fn configuration_of_others_has_what_it_can_keep() {
    for wrong in [
        TlsOptions::new().server_name("other.test"),
        TlsOptions::new().early_data(true),
    ] {
        assert!(wrong.client_config().unwrap_err().is_invalid());
    }
}

#[tokio::test]
async fn names_resolve_as_requests_find_them() {
    in_time(async {
        let pool = |pool: firstbyte::ConnectionPoolBuilder| {
            pool.resolve_to("fixed.test", ["192.0.2.7".parse().unwrap()])
                .address_filter(|_, ip| ip != IpAddr::from([10, 0, 0, 1]))
        };
        let world = World::with(|server| server, pool).await;
        world
            .dns
            .v4("both.test", &["192.0.2.1", "192.0.2.2", "10.0.0.1"]);
        world.dns.v6("both.test", &["2001:db8::1"]);
        world.dns.v4("private.test", &["10.0.0.1"]);
        let resolve = async |host: &str| {
            let addrs = world.pool.resolve(host).await;
            addrs.map(|addrs| addrs.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let both = ["2001:db8::1", "192.0.2.1", "192.0.2.2"];
        for (host, expected) in [
            ("both.test", &both[..]),
            ("BOTH.test.", &both[..]),
            ("fixed.test", &["192.0.2.7"]),
            ("192.0.2.9", &["192.0.2.9"]),
            ("2001:db8::9", &["2001:db8::9"]),
            ("[2001:db8::9]", &["2001:db8::9"]),
            ("localhost", &["::1", "127.0.0.1"]),
        ] {
            assert_eq!(resolve(host).await.unwrap(), expected, "{host}");
        }
        for (host, why) in [
            ("private.test", "address filter"),
            ("nobody.test", "does not exist"),
        ] {
            let error = resolve(host).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Dns, "{error}");
            assert!(error.to_string().contains(host), "{error}");
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(why), "{source}");
        }
        for host in ["", "a b", "a/b", "a@b", "a:80", "a?b"] {
            let error = resolve(host).await;
            assert!(
                error.as_ref().is_err_and(firstbyte::Error::is_invalid),
                "{host}: {error:?}"
            );
        }
    })
    .await;
}

#[cfg(feature = "hyper-util")]
mod hyper_util_client {
    use firstbyte::{Body, ConnectionInfo, HyperConnector, Protocols};
    use http::{Request, Version};
    use http_body_util::BodyExt;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;

    use super::*;
    use crate::support::proxy::{Asked, Manner, ProxyPeer};
    use crate::support::stall::Stall;
    use firstbyte::proxy::Proxy;

    fn client_over(pool: &ConnectionPool) -> Client<HyperConnector, Body> {
        Client::builder(TokioExecutor::new()).build(pool.hyper_connector())
    }

    async fn post(client: &Client<HyperConnector, Body>, url: String) -> (Version, ConnectionInfo) {
        let request = Request::post(url).body(Body::from("and back")).unwrap();
        let response = client.request(request).await.unwrap();
        let info = response.extensions().get::<ConnectionInfo>().cloned();
        let version = response.version();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "and back");
        (version, info.expect("what it came over"))
    }

    #[tokio::test]
    async fn speaks_over_our_connections_and_resumes_with_our_tickets() {
        in_time(async {
            for (protocols, version) in [
                (Protocols::Auto, Version::HTTP_2),
                (Protocols::Http1, Version::HTTP_11),
            ] {
                let world = World::with(|server| server, |pool| pool.protocols(protocols)).await;
                let client = client_over(&world.pool);
                let url = || world.server.url("/echo");
                let (first, info) = post(&client, url()).await;
                assert_eq!((first, info.protocol()), (version, version));
                assert!(info.trace().tls.is_some() && info.trace().tcp.is_some());
                let (_, same) = post(&client, url()).await;
                assert_eq!(same.id(), info.id());
                world.server.kill_connections();
                world
                    .server
                    .wait(|counts| counts.connections_open == 0)
                    .await;
                // With a ticket that the pool's own connections may use, too.
                let own = world.client(protocols);
                own.get("/").send().await.unwrap();
                let counts = world.server.counts();
                assert_eq!((counts.tls_full, counts.tls_resumed), (1, 1));
                assert_eq!(world.dns.total_queries(), 2);
                // What hyper-util opens is none of the pool's.
                assert_eq!(world.pool.stats().connections_created, 1);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn failures_are_ours() {
        in_time(async {
            let nobody = Stall::refused_addr();
            let pool = ConnectionPool::new();
            let client = client_over(&pool);
            let cause = async |url: String| {
                let error = client.get(url.parse().unwrap()).await.unwrap_err();
                let cause = std::error::Error::source(&error).expect("a cause");
                cause
                    .downcast_ref::<firstbyte::Error>()
                    .expect("ours")
                    .clone()
            };
            let error = cause(format!("http://{nobody}/")).await;
            assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
            assert!(error.origin().is_some());
            pool.shutdown(std::time::Duration::ZERO).await;
            assert!(cause(format!("http://{nobody}/")).await.is_pool_closed());
        })
        .await;
    }

    /// Plain `http`, which our own requests would have forwarded.
    #[tokio::test]
    async fn proxies_are_asked_for_tunnels() {
        in_time(async {
            let server = crate::support::server::Server::builder()
                .plain()
                .start()
                .await;
            let proxy = ProxyPeer::start(None, Manner::default());
            let url = format!("http://user:sk-canary@{}", proxy.addr());
            let builder = ConnectionPool::builder();
            let pool = builder.proxy(Proxy::parse(&url).unwrap()).build().unwrap();
            let (version, info) = post(&client_over(&pool), server.url("/echo")).await;
            assert_eq!(version, Version::HTTP_11);
            assert!(info.proxy().is_some());
            let Asked::Tunnel(head) = &proxy.asked()[0] else {
                panic!("{:?}", proxy.asked());
            };
            assert!(head.contains("proxy-authorization: Basic"), "{head}");
        })
        .await;
    }
}
