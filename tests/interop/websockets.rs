//! WebSockets through proxies to tungstenite: over the shared HTTP/2 connection where the proxy takes them so (RFC 8441),
//! over an HTTP/1.1 connection beside it where it does not.
#![cfg(feature = "websocket")]

use firstbyte::Protocols;
use http::Version;

use crate::apache::Apache;
use crate::caddy::Caddy;
use crate::common::{BOTH, in_time};
use crate::haproxy;
use crate::nginx::Nginx;
use crate::site::{Settings, Site, Software};
use crate::support::server::Server;
use crate::support::server::websocket::echo;

/// Sessions over either protocol; `auto` is what a client that may choose ends up with.
async fn sessions(software: &'static dyn Software, auto: Version) {
    let server = Server::builder().plain();
    let server = server.websockets("/echo", false, echo).start().await;
    let settings = Settings {
        backend: server.port(),
        ..Settings::default()
    };
    let Some(site) = Site::start(software, settings).await else {
        return;
    };
    let is_shared = auto == Version::HTTP_2;
    let choices = BOTH.into_iter().chain([Protocols::Auto]);
    for protocols in choices.filter(|p| is_shared || *p != Protocols::Http2) {
        in_time(async {
            let pool = site.pool();
            let client = site.client(&pool, protocols);
            for _ in 0..3 {
                let builder = client.websocket("/echo").subprotocols(["one", "two"]);
                let mut socket = builder.connect().await.unwrap();
                let version = match protocols {
                    Protocols::Http1 => Version::HTTP_11,
                    _ => auto,
                };
                assert_eq!(socket.connection().protocol(), version, "{protocols:?}");
                assert_eq!(socket.subprotocol(), Some("two"));
                for len in [0, 10, 1_000, 100_000, 1_000_000] {
                    let message = "x".repeat(len);
                    socket.send(&*message).await.unwrap();
                    let came = socket.next().await.unwrap().unwrap();
                    assert!(came.as_text() == Some(&*message), "{len}");
                }
                let said = socket.close(1000, "done").await.unwrap();
                assert_eq!((said.code, &*said.reason), (Some(1000), "done"));
            }
            let stats = pool.stats();
            assert_eq!((stats.upgraded, stats.active), (0, 0), "{protocols:?}");
            if version_is_shared(protocols, auto) {
                assert_eq!(stats.connections_created, 1, "{protocols:?}");
            }
        })
        .await;
    }
}

fn version_is_shared(protocols: Protocols, auto: Version) -> bool {
    protocols != Protocols::Http1 && auto == Version::HTTP_2
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_haproxy_over_http2() {
    sessions(&haproxy::ALONE, Version::HTTP_2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_apache_over_http2() {
    sessions(&Apache, Version::HTTP_2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_nginx_over_http1() {
    sessions(&Nginx, Version::HTTP_11).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_caddy_over_http1() {
    sessions(&Caddy, Version::HTTP_11).await;
}
