//! Proxies: tunnels by CONNECT and SOCKS5, absolute-form, TLS to the proxy, credentials, and Unix sockets.

mod common;
mod support;

use common::{World, eventually, in_time};
use firstbyte::io::PeerAddr;
use firstbyte::proxy::{Proxy, ProxyRules};
use firstbyte::{
    Client, ConnectionPool, ConnectionUse, ErrorKind, IpVersion, Phase, Protocols, ReplaySafety,
};
use support::pki;
use support::proxy::{Asked, Manner, ProxyPeer};
use support::server::Server;

fn through(world: &World, proxy: &str, protocols: Protocols) -> Client {
    world
        .pool
        .client_builder(world.server.url("/"))
        .protocols(protocols)
        .proxy(Proxy::parse(proxy).unwrap())
        .build()
        .unwrap()
}

fn authority(world: &World) -> String {
    format!("api.test:{}", world.server.port())
}

#[tokio::test]
async fn https_goes_through_a_tunnel_and_its_cost_is_the_proxy_phase() {
    in_time(async {
        for protocols in common::BOTH {
            let world = World::new().await;
            let proxy = ProxyPeer::start(None, Manner::default());
            let url = format!("http://user:sk-canary@{}", proxy.addr());
            let client = through(&world, &url, protocols);
            let mut first = client.get("/headers").send().await.unwrap();
            assert_eq!(first.connection_use(), ConnectionUse::New);
            let seen = first.text().await.unwrap();
            assert!(!seen.contains("proxy-authorization"), "{seen}");
            let timing = first.timing();
            assert!(timing.proxy().is_some() && timing.tls().is_some());
            assert_eq!(timing.dns(), None, "the proxy's address is a literal");
            let trace = first.connection().trace();
            assert_eq!(trace.get(Phase::Proxy), timing.proxy());
            assert!(timing.network_overhead() >= timing.proxy().unwrap());
            let via = first.connection().proxy().unwrap().to_string();
            assert_eq!(via, format!("http://{}", proxy.addr()));
            assert_eq!(first.remote_addr(), Some(&PeerAddr::Ip(proxy.addr())));
            assert_eq!(
                world.dns.total_queries(),
                0,
                "names are the proxy's to resolve"
            );

            let second = client.get("/").send().await.unwrap();
            assert_eq!(second.timing().proxy(), None);
            assert!(second.metrics().connection_reused);
            let asked = proxy.asked();
            let [Asked::Tunnel(head)] = &*asked else {
                panic!("{asked:?}")
            };
            let expected = format!("CONNECT {0} HTTP/1.1\r\nhost: {0}\r\n", authority(&world));
            assert!(head.starts_with(&expected), "{head}");
            assert!(head.contains("proxy-authorization: Basic dXNlcjpzay1jYW5hcnk=\r\n"));
            let printed = format!("{:?} {:?} {:?}", world.pool, client, first.connection());
            assert!(!printed.contains("canary"), "{printed}");
        }
    })
    .await;
}

#[tokio::test]
async fn tunnel_to_an_origin_through_a_proxy_that_speaks_tls() {
    in_time(async {
        for protocols in common::BOTH {
            let world = World::new().await;
            let identity = world.pki.server(&["localhost"]);
            let tls = pki::server_config(&identity, &["http/1.1"]);
            let proxy = ProxyPeer::start(Some(tls), Manner::default());
            let url = format!("https://localhost:{}", proxy.addr().port());
            let client = through(&world, &url, protocols);
            let mut response = client.post("/echo").body("ping").send().await.unwrap();
            assert!(response.text().await.unwrap().contains("ping"));
            assert!(response.timing().proxy().is_some());
            assert_eq!(proxy.asked().len(), 1);

            // The proxy's certificate is checked too.
            let stranger = format!("https://{}", proxy.addr());
            let client = through(&world, &stranger, protocols);
            let error = client.get("/").send().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Proxy, "{error}");
            assert_eq!(error.phase(), Some(Phase::Proxy));
            assert!(error.to_string().contains("certificate"), "{error}");
        }
    })
    .await;
}

#[tokio::test]
async fn plain_http_is_asked_of_the_proxy_in_absolute_form() {
    in_time(async {
        let world = World::new().await;
        let tls = pki::server_config(&world.pki.server(&["localhost"]), &["http/1.1"]);
        let plain = ProxyPeer::start(None, Manner::default());
        let secure = ProxyPeer::start(Some(tls), Manner::default());
        let login = "user:secret";
        for (proxy, url) in [
            (&plain, format!("http://{login}@{}", plain.addr())),
            (
                &secure,
                format!("https://{login}@localhost:{}", secure.addr().port()),
            ),
        ] {
            let client = world
                .pool
                .client_builder("http://plain.test/v1")
                .proxy(Proxy::parse(&url).unwrap())
                .build()
                .unwrap();
            for reused in [false, true] {
                let mut response = client.get("/a?b").send().await.unwrap();
                assert_eq!(response.text().await.unwrap(), "forwarded");
                assert_eq!(response.metrics().connection_reused, reused);
                let in_phase = !reused && url.starts_with("https");
                assert_eq!(response.timing().proxy().is_some(), in_phase, "{url}");
            }
            for asked in proxy.asked() {
                let Asked::Forward(head) = asked else {
                    panic!("{asked:?}")
                };
                assert!(
                    head.starts_with(
                        "GET http://plain.test/v1/a?b HTTP/1.1\r\nhost: plain.test\r\n"
                    )
                );
                assert!(head.contains("proxy-authorization: Basic dXNlcjpzZWNyZXQ=\r\n"));
            }
        }
        // HTTP/2 has no absolute-form: it takes a tunnel.
        let server = Server::builder().plain().start().await;
        let client = world
            .pool
            .client_builder(server.url("/"))
            .protocols(Protocols::Http2PriorKnowledge)
            .proxy(Proxy::parse(&format!("http://{}", plain.addr())).unwrap())
            .build()
            .unwrap();
        let response = client.get("/").send().await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        assert!(matches!(plain.asked().last(), Some(Asked::Tunnel(_))));
    })
    .await;
}

#[tokio::test]
async fn socks5_tunnels_by_name_with_credentials_and_without() {
    in_time(async {
        for protocols in common::BOTH {
            for login in [None, Some("user:sk-canary".to_owned())] {
                let world = World::new().await;
                let manner = Manner {
                    socks_login: login.clone(),
                    ..Manner::default()
                };
                let proxy = ProxyPeer::start(None, manner);
                let at = login.as_ref().map_or(String::new(), |l| format!("{l}@"));
                let url = format!("socks5://{at}{}", proxy.addr());
                let client = through(&world, &url, protocols);
                let response = client.get("/").send().await.unwrap();
                assert!(response.timing().proxy().is_some());
                assert_eq!(proxy.asked(), [Asked::Socks(authority(&world), login)]);
                assert_eq!(world.dns.total_queries(), 0);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn proxy_that_refuses_is_told_with_its_phase_and_nothing_was_sent() {
    in_time(async {
        let world = World::new().await;
        let answer = |text: &str| Manner {
            answer: Some(text.to_owned()),
            ..Manner::default()
        };
        let socks = |reply, login: Option<&str>| Manner {
            socks_reply: reply,
            socks_login: login.map(str::to_owned),
            ..Manner::default()
        };
        let (http, socks5) = ("http://u:sk-canary@", "socks5://u:sk-canary@");
        for (scheme, manner, words) in [
            (
                "http://",
                answer("HTTP/1.1 407 x\r\n\r\n"),
                "asks for credentials",
            ),
            (
                http,
                answer("HTTP/1.1 407 x\r\n\r\n"),
                "refused our credentials",
            ),
            (http, answer("HTTP/1.1 502 sk-canary\r\n\r\n"), "502"),
            (http, answer("nonsense\r\n\r\n"), "not HTTP/1"),
            ("socks5://", socks(0, Some("u:p")), "asks for credentials"),
            (socks5, socks(0, Some("u:p")), "refused our credentials"),
            ("socks5://", socks(5, None), "refused"),
        ] {
            let proxy = ProxyPeer::start(None, manner);
            let client = through(
                &world,
                &format!("{scheme}{}", proxy.addr()),
                Protocols::Auto,
            );
            let error = client.post("/").body("x").send().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Proxy, "{error}");
            assert_eq!(error.phase(), Some(Phase::Proxy), "{error}");
            assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
            assert!(error.is_connect() && error.timing().unwrap().proxy().is_some());
            let text = format!("{error} {error:?}");
            assert!(text.contains(words) && !text.contains("canary"), "{text}");
        }
        let refused = support::stall::Stall::refused_addr();
        let client = through(&world, &format!("http://{refused}"), Protocols::Auto);
        let error = client.get("/").send().await.unwrap_err();
        assert_eq!(error.phase(), Some(Phase::Tcp));
        assert!(error.to_string().contains("of the proxy"), "{error}");
        let client = through(&world, "http://gone.test", Protocols::Auto);
        let error = client.get("/").send().await.unwrap_err();
        assert!(
            error.is_dns() && error.to_string().contains("the proxy http://gone.test:80"),
            "{error}"
        );
        // A proxy that never answers: the request's own timeout names the phase.
        let silent = support::stall::Stall::accept_silent();
        let client = through(
            &world,
            &format!("http://{}", silent.addr()),
            Protocols::Auto,
        );
        let timeouts =
            firstbyte::Timeouts::default().connect(std::time::Duration::from_millis(100));
        let error = client.get("/").timeouts(timeouts).send().await.unwrap_err();
        assert!(
            error.is_timeout() && error.phase() == Some(Phase::Proxy),
            "{error}"
        );
        assert_eq!(world.server.counts().connections_accepted, 0);
    })
    .await;
}

#[tokio::test]
async fn delay_of_the_proxy_shows_in_the_proxy_phase_and_nowhere_else() {
    in_time(async {
        let delay = std::time::Duration::from_millis(300);
        let world = World::new().await;
        let proxy = ProxyPeer::start(
            None,
            Manner {
                delay,
                ..Manner::default()
            },
        );
        let client = through(&world, &format!("http://{}", proxy.addr()), Protocols::Auto);
        let response = client.get("/").send().await.unwrap();
        let timing = response.timing();
        assert!(timing.proxy().unwrap() >= delay);
        let others: std::time::Duration = Phase::ALL
            .iter()
            .filter(|phase| **phase != Phase::Proxy)
            .filter_map(|phase| timing.get(*phase))
            .sum();
        assert_eq!(timing.total() - timing.proxy().unwrap(), others);
    })
    .await;
}

#[tokio::test]
async fn connections_are_never_shared_between_proxies_or_credentials() {
    in_time(async {
        let world = World::new().await;
        let proxy = ProxyPeer::start(None, Manner::default());
        let addr = proxy.addr();
        let mut ids = std::collections::HashSet::new();
        for url in [
            format!("http://{addr}"),
            format!("http://a:1@{addr}"),
            format!("http://a:2@{addr}"),
            format!("http://b:1@{addr}"),
            format!("socks5://{addr}"),
        ] {
            for _ in 0..2 {
                let client = through(&world, &url, Protocols::Http2);
                let response = client.get("/").send().await.unwrap();
                ids.insert(response.connection().id());
            }
        }
        let direct = world
            .client(Protocols::Http2)
            .get("/")
            .send()
            .await
            .unwrap();
        ids.insert(direct.connection().id());
        assert_eq!(ids.len(), 6);

        let rules = ProxyRules::from(Proxy::parse(&format!("http://{addr}")).unwrap());
        let client = world
            .pool
            .client_builder(world.server.url("/"))
            .proxy(rules.no_proxy("api.test").unwrap())
            .build()
            .unwrap();
        let response = client.get("/").send().await.unwrap();
        assert_eq!(response.connection().proxy(), None);
        assert_eq!(proxy.asked().len(), 5);
    })
    .await;
}

/// Linux refuses where TCP would wait: a burst must not fail because the server is a moment behind.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn unix_socket_with_a_full_queue_is_waited_for() {
    in_time(async {
        use std::os::unix::net::{UnixListener, UnixStream};

        let path = std::env::temp_dir().join(format!("firstbyte-full-{}", std::process::id()));
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
        let listener = listener.unwrap();
        listener
            .bind(&socket2::SockAddr::unix(&path).unwrap())
            .unwrap();
        listener.listen(0).unwrap();
        let before = UnixStream::connect(&path).unwrap();
        let full = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
        let full = full.unwrap();
        full.set_nonblocking(true).unwrap();
        let full = full.connect(&socket2::SockAddr::unix(&path).unwrap());
        assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        let pool = ConnectionPool::builder()
            .connect_timeout(std::time::Duration::from_millis(30))
            .build()
            .unwrap();
        let builder = |pool: &ConnectionPool| pool.client_builder("http://a.test");
        let client = builder(&pool).unix_socket(&path).build().unwrap();
        let error = client.get("/").send().await.unwrap_err();
        assert!(error.is_timeout() && error.is_connect(), "{error}");
        let pool = ConnectionPool::new();
        let client = builder(&pool).unix_socket(&path).build().unwrap();
        let request = tokio::spawn(async move { client.get("/").send().await });
        // Its dial has begun, and found no room.
        eventually("a dial", || pool.stats().open == 1).await;
        let serving = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let listener = UnixListener::from(std::os::fd::OwnedFd::from(listener));
            drop((listener.accept().unwrap(), before));
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer).unwrap();
            stream
        });
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
        serving.join().unwrap();
        std::fs::remove_file(&path).unwrap();
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn unix_socket_is_an_origins_transport() {
    in_time(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let directory = std::env::temp_dir().join(format!("firstbyte-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("s");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 1000];
            let n = stream.read(&mut head).await.unwrap();
            head.truncate(n);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await
                .unwrap();
            String::from_utf8(head).unwrap()
        });
        let pool = ConnectionPool::new();
        let builder = || pool.client_builder("http://docker.test/v1");
        let client = builder().unix_socket(&path).build().unwrap();
        let mut response = client.get("/info").send().await.unwrap();
        assert_eq!(response.text().await.unwrap(), "ok");
        assert_eq!(response.remote_addr(), Some(&PeerAddr::Unix(path.clone())));
        let timing = response.timing();
        assert!(timing.tcp().is_some() && timing.dns().is_none());
        let head = serving.await.unwrap();
        assert!(
            head.starts_with("GET /v1/info HTTP/1.1\r\nhost: docker.test\r\n"),
            "{head}"
        );
        std::fs::remove_dir_all(&directory).unwrap();

        let other = builder()
            .unix_socket(&path)
            .isolate("gone")
            .build()
            .unwrap();
        let error = other.get("/").send().await.unwrap_err();
        assert_eq!(
            (error.kind(), error.phase()),
            (ErrorKind::Connect, Some(Phase::Tcp))
        );
        let both = builder()
            .unix_socket(&path)
            .proxy(Proxy::parse("http://p.test").unwrap());
        assert!(both.build().unwrap_err().is_invalid());
        let tcp = builder().tcp(firstbyte::tcp::TcpOptions::default().dscp(46));
        let v6 = builder().ip_version(IpVersion::V6);
        for inert in [tcp, v6] {
            let error = inert.unix_socket(&path).build().unwrap_err();
            assert!(
                error.is_invalid() && error.to_string().contains("unix_socket"),
                "{error}"
            );
        }
    })
    .await;
}
