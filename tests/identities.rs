//! Who may share a connection: requests whose origin and options are equal in everything that shapes a
//! connection, and nobody else.
//!
//! Each identity of the first test differs from the defaults in one option alone, so that any two differ
//! by as little as they can, and all of them reach the same server. (A verifier of one's own stands in
//! place of the roots: two of them differ from each other in nothing but the object.) Every ordered pair is
//! tried with the one's connection idle and the other without any, and once more with those of all idle.

mod common;
mod support;

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{BOTH, World, eventually, in_time};
use firstbyte::proxy::{Proxy, ProxyRules};
use firstbyte::tcp::{Keepalive, TcpOptions};
use firstbyte::tls::{TlsOptions, TlsVersion, danger};
use firstbyte::{
    Client, ClientBuilder, ConnectionId, ConnectionPool, Error, IpVersion, Limits, Protocols,
    RetryPolicy, Timeouts,
};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::hash::HashAlgorithm;
use support::pki::{self, Pki, ServerIdentity};
use support::proxy::{Manner, ProxyPeer};
use support::server::Server;

type Named<T> = Vec<(&'static str, T)>;

/// A world whose pool evicts nobody.
async fn roomy_world() -> World {
    let limits = Limits::gateway().keepalive_expiry(Duration::from_secs(600));
    in_time(World::with(|server| server, |pool| pool.limits(limits))).await
}

/// Trusts the world's authority alone: what its pool's clients start from.
fn trusting(world: &World) -> TlsOptions {
    TlsOptions::new()
        .builtin_roots(false)
        .add_root(world.pki.ca_der())
}

/// A new directory of this process.
fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("firstbyte-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// The connection that a request got, and gave back. Guarded one by one: how long many requests take
/// together says nothing.
async fn connection_for(client: &Client, path: &str) -> Result<ConnectionId, Error> {
    let mut response = in_time(client.get(path).send()).await?;
    in_time(response.bytes()).await?;
    assert_eq!(response.status(), 200);
    Ok(response.connection().id())
}

/// Whose each connection is.
#[derive(Default)]
struct Owners(HashMap<ConnectionId, &'static str>);

impl Owners {
    async fn ask(&mut self, name: &'static str, client: &Client) {
        let id = connection_for(client, "/").await;
        let id = id.unwrap_or_else(|error| panic!("{name}: {error}"));
        let owner = *self.0.entry(id).or_insert(name);
        assert_eq!(owner, name, "both got connection {id}");
    }
}

/// Nobody gets a connection that was another's, in whichever order they come.
async fn assert_no_two_share(pool: &ConnectionPool, clients: &[(&'static str, Client)]) {
    let number = clients.len();
    let names: HashSet<_> = clients.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), number, "a name is there twice");
    let mut owners = Owners::default();

    // Whoever comes has no connection, and those of all before it are idle; then the same from behind.
    for &(name, ref client) in clients {
        owners.ask(name, client).await;
    }
    eventually("all are idle", || pool.stats().idle == number).await;
    pool.close_idle();
    eventually("all are closed", || pool.stats().open == 0).await;
    for &(name, ref client) in clients.iter().rev() {
        owners.ask(name, client).await;
    }
    eventually("all are idle again", || pool.stats().idle == number).await;

    // All have one by now. Each pair in both orders, one request right after the other.
    for (at, &(name, ref client)) in clients.iter().enumerate() {
        for &(other_name, ref other) in &clients[at + 1..] {
            owners.ask(name, client).await;
            owners.ask(other_name, other).await;
        }
        owners.ask(name, client).await;
    }
    assert_eq!(
        owners.0.len(),
        2 * number,
        "everybody came back to its own connection"
    );
}

/// The pin of an identity's key.
fn pin(identity: &ServerIdentity) -> String {
    let suites = pki::provider().cipher_suites.clone();
    let sha256 = suites
        .iter()
        .filter_map(|suite| suite.tls13())
        .map(|suite| suite.common.hash_provider)
        .find(|hash| hash.algorithm() == HashAlgorithm::SHA256)
        .expect("TLS 1.3 has a suite with SHA-256");
    STANDARD.encode(sha256.hash(&identity.spki).as_ref())
}

/// One TLS option each, with which `server` can be reached as `api.test`.
fn tls_variants(world: &World, server: &ServerIdentity, key_logs: &Path) -> Named<TlsOptions> {
    let plain = || trusting(world);
    let (right, spare) = (pin(server), STANDARD.encode([7_u8; 32]));
    let pinned = || plain().pin_sha256(&right).unwrap();
    let verified = || {
        let roots = Arc::new(world.pki.roots());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, pki::provider());
        danger::with_verifier(TlsOptions::new(), verifier.build().unwrap())
    };
    let clients = Pki::new();
    let [one, two] = [clients.client("one"), clients.client("two")];
    // A certificate with the key of another is no identity that a client can have: tests/tls.rs.
    let mut one_and_issuer = one.clone();
    one_and_issuer.chain.push(clients.ca_der());
    let shown = |identity: &ServerIdentity| {
        plain().client_certificate(identity.chain.clone(), identity.key.clone_key())
    };
    let mut all = vec![
        ("another root too", plain().add_root(Pki::new().ca_der())),
        ("the builtin roots too", plain().builtin_roots(true)),
        ("a verifier", verified()),
        ("another verifier of the same kind", verified()),
        ("a pin", pinned()),
        ("a pin and a spare", pinned().pin_sha256(&spare).unwrap()),
        ("TLS 1.3 alone", plain().min_version(TlsVersion::Tls13)),
        ("TLS 1.2 alone", plain().max_version(TlsVersion::Tls12)),
        ("no post-quantum key share", plain().post_quantum(false)),
        ("another server name", plain().server_name("other.test")),
        ("the host as server name", plain().server_name("api.test")),
        ("no resumption", plain().resumption(false)),
        ("early data", plain().early_data(true)),
        ("a key log", plain().key_log_file(key_logs.join("a"))),
        ("another key log", plain().key_log_file(key_logs.join("b"))),
        ("a client certificate", shown(&one)),
        ("the same with its issuer", shown(&one_and_issuer)),
        ("another client certificate", shown(&two)),
    ];
    if cfg!(feature = "aws-lc-rs") {
        all.push(("a post-quantum key share", plain().post_quantum(true)));
    }
    #[cfg(all(feature = "ring", feature = "aws-lc-rs"))]
    all.push((
        "the other provider",
        plain().provider(firstbyte::tls::TlsProvider::Ring),
    ));
    #[cfg(feature = "platform-verifier")]
    all.push((
        "the platform's verifier",
        plain().builtin_roots(true).platform_verifier(true),
    ));
    all
}

/// One TCP option each. Whether the system applies it or reports that it does not, it was asked for.
fn tcp_variants() -> Named<TcpOptions> {
    let plain = TcpOptions::default;
    let probes = Keepalive {
        time: Duration::from_secs(60),
        interval: Duration::from_secs(10),
        retries: 3,
    };
    let mut all = vec![
        ("Nagle", plain().nodelay(false)),
        ("no probes", plain().keepalive(None)),
        ("other probes", plain().keepalive(probes)),
        ("no user timeout", plain().user_timeout(None)),
        (
            "another user timeout",
            plain().user_timeout(Duration::from_secs(30)),
        ),
        ("a low-water mark", plain().notsent_lowat(16_384)),
        ("quick acknowledgements", plain().quickack(true)),
        ("a send buffer", plain().send_buffer(100_000)),
        ("a receive buffer", plain().recv_buffer(100_000)),
        ("a code point", plain().dscp(8)),
        ("a mark", plain().mark(7)),
        ("busy polling", plain().busy_poll(Duration::from_micros(50))),
        ("congestion control", plain().congestion("reno")),
        ("a source over IPv4", plain().local_v4(Ipv4Addr::LOCALHOST)),
        ("a source over IPv6", plain().local_v6(Ipv6Addr::LOCALHOST)),
        ("Fast Open", plain().fast_open(true)),
    ];
    if cfg!(target_os = "linux") {
        all.push(("a device", plain().device("lo")));
    }
    all
}

/// Rules that differ, some of which lead past the proxies.
fn proxy_variants(one: SocketAddr, other: SocketAddr) -> Named<ProxyRules> {
    let proxy = |url: String| Proxy::parse(&url).unwrap();
    let plain = || proxy(format!("http://{one}"));
    let for_all = |url: String| ProxyRules::from(proxy(url));
    vec![
        ("a proxy", for_all(format!("http://{one}"))),
        ("another proxy", for_all(format!("http://{other}"))),
        ("a proxy, as x", for_all(format!("http://x:1@{one}"))),
        (
            "a proxy, as x by another password",
            for_all(format!("http://x:2@{one}")),
        ),
        ("a proxy, as y", for_all(format!("http://y:1@{one}"))),
        ("a proxy by SOCKS5", for_all(format!("socks5://{one}"))),
        ("a proxy for https", ProxyRules::none().https(plain())),
        ("a proxy for http", ProxyRules::none().http(plain())),
        (
            "a proxy for others",
            ProxyRules::from(plain()).no_proxy("api.test").unwrap(),
        ),
    ]
}

#[tokio::test]
async fn no_two_differing_identities_ever_share_a_connection() {
    let world = roomy_world().await;
    let identity = world.pki.server(&["api.test", "other.test"]);
    let server = Server::builder().identity(&identity, "api.test");
    let server = in_time(server.start()).await;
    let [one, other] = [(); 2].map(|()| ProxyPeer::start(None, Manner::default()));
    let key_logs = directory("key-logs");
    let url = server.url("/");
    let other_url = url.replace("api.test", "other.test");

    let plain = || world.pool.client_builder(&*url);
    let mut clients = Vec::new();
    let mut add = |name: &'static str, builder: ClientBuilder| {
        clients.push((name, builder.build().expect(name)));
    };
    add("the defaults", plain());
    add("another host", world.pool.client_builder(&*other_url));
    for (name, protocols) in [
        ("HTTP/1.1 alone", Protocols::Http1),
        ("HTTP/2 alone", Protocols::Http2),
        ("HTTP/2 unasked", Protocols::Http2PriorKnowledge),
    ] {
        add(name, plain().protocols(protocols));
    }
    add("IPv4 alone", plain().ip_version(IpVersion::V4));
    for (name, tag) in [("an empty tag", ""), ("tag a", "a"), ("tag b", "b")] {
        add(name, plain().isolate(tag));
    }
    for (name, tls) in tls_variants(&world, &identity, &key_logs) {
        add(name, plain().tls(tls));
    }
    for (name, tcp) in tcp_variants() {
        add(name, plain().tcp(tcp));
    }
    for (name, rules) in proxy_variants(one.addr(), other.addr()) {
        add(name, plain().proxy(rules));
    }
    assert_no_two_share(&world.pool, &clients).await;
    std::fs::remove_dir_all(&key_logs).unwrap();
}

#[tokio::test]
async fn equal_identities_share_whatever_they_are_called() {
    for protocols in BOTH {
        let world = roomy_world().await;
        let proxy = ProxyPeer::start(None, Manner::default());
        let identity = Pki::new().client("one");
        let url = world.server.url("/");
        // Made anew for each client: what is equal need not be the same object.
        let shaped = |builder: ClientBuilder| {
            let tls = trusting(&world)
                .client_certificate(identity.chain.clone(), identity.key.clone_key())
                .server_name("other.test");
            let through = Proxy::parse(&format!("http://user:secret@{}", proxy.addr())).unwrap();
            builder
                .protocols(protocols)
                .tls(tls)
                .tcp(TcpOptions::default().dscp(8))
                .ip_version(IpVersion::V4)
                .proxy(through)
                .isolate("tenant")
        };
        let one = shaped(world.pool.client("one", &*url))
            .header("x-tenant", "one")
            .timeout(Duration::from_secs(60))
            .build()
            .unwrap();
        let two = shaped(world.pool.client("two", world.server.url("/bytes")))
            .bearer_auth("sk-two")
            .timeouts(Timeouts::default().first_byte(Duration::from_secs(60)))
            .retry(RetryPolicy::Never)
            .max_body_bytes(1000)
            .build()
            .unwrap();
        let in_capitals = url.replace("api.test", "API.test");
        let nameless = shaped(world.pool.client_builder(in_capitals));
        let nameless = nameless.build().unwrap();
        let mut ids = HashSet::new();
        for _ in 0..2 {
            for (client, path) in [(&one, "/"), (&two, "/7"), (&nameless, "/")] {
                ids.insert(connection_for(client, path).await.unwrap());
            }
        }
        assert_eq!(ids.len(), 1, "{protocols:?}");

        // The defaults, and the same said at length.
        let silent = world.pool.client_builder(&*url).build().unwrap();
        let explicit = world
            .pool
            .client_builder(&*url)
            .protocols(Protocols::Auto)
            .tls(trusting(&world))
            .tcp(TcpOptions::default())
            .ip_version(IpVersion::Any)
            .proxy(ProxyRules::none())
            .build()
            .unwrap();
        let id = connection_for(&silent, "/").await.unwrap();
        assert_eq!(connection_for(&explicit, "/").await.unwrap(), id);
        assert!(!ids.contains(&id));
        assert_eq!(world.server.counts().connections_accepted, 2);
    }
}

#[tokio::test]
async fn scheme_and_port_are_part_of_the_identity() {
    let world = roomy_world().await;
    let server = Server::builder().tls(&world.pki, &["api.test"]);
    let server = in_time(server.start()).await;
    // A port speaks one scheme: the proxy answers for the other one. The options of all clients are equal.
    let peer = ProxyPeer::start(None, Manner::default());
    let proxy = Proxy::parse(&format!("http://{}", peer.addr())).unwrap();
    let rules = ProxyRules::none().http(proxy);
    let [url, other_url] = [world.server.url("/"), server.url("/")];
    let clients = [
        ("https", url.clone()),
        ("http", url.replace("https://", "http://")),
        ("https on another port", other_url.clone()),
        (
            "http on another port",
            other_url.replace("https://", "http://"),
        ),
    ];
    let clients = clients.map(|(name, url)| {
        let builder = world.pool.client_builder(url).protocols(Protocols::Http1);
        (name, builder.proxy(rules.clone()).build().unwrap())
    });
    assert_no_two_share(&world.pool, &clients).await;

    // The same without a proxy.
    let world = roomy_world().await;
    let start = || in_time(Server::builder().plain().host("api.test").start());
    let servers = [start().await, start().await];
    let clients = [("one port", &servers[0]), ("another port", &servers[1])];
    let clients = clients.map(|(name, server)| {
        let client = world.client_of(&server.url("/"), Protocols::Auto);
        (name, client)
    });
    assert_no_two_share(&world.pool, &clients).await;
}

/// Answers every request on this Unix socket.
#[cfg(unix)]
fn answer_on(path: &Path) {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    let listener = tokio::net::UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut stream, mut head) = (BufStream::new(stream), String::new());
                while let Ok(1..) = stream.read_line(&mut head).await {
                    if head.ends_with("\r\n\r\n") {
                        head.clear();
                        let _gone = stream.write_all(ANSWER).await;
                        let _gone = stream.flush().await;
                    }
                }
            });
        }
    });
}

#[cfg(unix)]
#[tokio::test]
async fn unix_socket_is_part_of_the_identity() {
    let world = roomy_world().await;
    let server = Server::builder().plain().host("api.test");
    let server = in_time(server.start()).await;
    let sockets = directory("sockets");
    let [one, two] = ["one", "two"].map(|name| sockets.join(name));
    answer_on(&one);
    answer_on(&two);
    let plain = || world.pool.client_builder(server.url("/"));
    let clients = [
        ("no socket", plain()),
        ("a socket", plain().unix_socket(&one)),
        ("another socket", plain().unix_socket(&two)),
        (
            "a socket and a tag",
            plain().unix_socket(&one).isolate("tag"),
        ),
    ];
    let clients = clients.map(|(name, builder)| (name, builder.build().unwrap()));
    assert_no_two_share(&world.pool, &clients).await;
    std::fs::remove_dir_all(&sockets).unwrap();
}
