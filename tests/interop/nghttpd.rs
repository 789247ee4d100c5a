//! nghttpd, nghttp2's own server: h2 only, padded frames, trailers, pushes that nobody wants, and no GOAWAY when it ends.

use std::path::Path;
use std::process::Command;

use firstbyte::tls::TlsVersion;
use firstbyte::{ErrorKind, Protocols, ReplaySafety};

use crate::bodies::{Pieces, collect, noise};
use crate::common::{in_time, join_all};
use crate::load::describe;
use crate::process::{Scratch, until};
use crate::site::{Settings, Site, Software};

const BIG: usize = 8 << 20;

struct Nghttpd {
    has_tls: bool,
}

static OVER_TLS: Nghttpd = Nghttpd { has_tls: true };
static PLAIN: Nghttpd = Nghttpd { has_tls: false };

impl Software for Nghttpd {
    fn program(&self) -> &'static str {
        "nghttpd"
    }

    fn package(&self) -> &'static str {
        "nghttp2-server"
    }

    fn configure(&self, scratch: &Scratch, _: &Settings) {
        scratch.write("www/index.html", "hello");
        scratch.write("www/big", noise(BIG));
    }

    fn command(&self, program: &Path, scratch: &Scratch, settings: &Settings) -> Command {
        let mut command = Command::new(program);
        command
            .args(["--address", "127.0.0.1", "--htdocs"])
            .arg(scratch.path().join("www"));
        command.args([
            "--trailer",
            "x-check: done",
            "--echo-upload",
            "--padding",
            "64",
        ]);
        command.args(["--push", "/=/big", "--max-concurrent-streams"]);
        command.arg(settings.streams.to_string());
        if !self.has_tls {
            command.arg("--no-tls");
        }
        command.arg(settings.port.to_string());
        if self.has_tls {
            command
                .arg(scratch.path().join("key.pem"))
                .arg(scratch.path().join("cert.pem"));
        }
        command
    }

    fn end(&self) -> Option<&'static str> {
        None
    }

    fn resumed(&self) -> &'static str {
        ""
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_share_one_connection_with_trailers_and_padding_and_nothing_is_pushed() {
    let Some(site) = Site::start(&OVER_TLS, Settings::default()).await else {
        return;
    };
    for protocols in [Protocols::Auto, Protocols::Http2] {
        let pool = site.pool();
        let client = site.client(&pool, protocols);
        in_time(async {
            for _ in 0..20 {
                let response = client.get("/").send().await.unwrap();
                assert_eq!(
                    (response.status().as_u16(), response.version()),
                    (200, http::Version::HTTP_2)
                );
                let (body, trailers) = collect(response).await.unwrap();
                assert_eq!(body, "hello");
                assert_eq!(trailers.expect("trailers")["x-check"], "done");
            }
            let answers = join_all((0..50).map(|_| client.get("/").send())).await;
            for answer in answers {
                assert_eq!(answer.unwrap().text().await.unwrap(), "hello");
            }
            let mut response = client.get("/none").send().await.unwrap();
            assert_eq!(response.status(), 404);
            response.bytes().await.unwrap();
        })
        .await;
        let stats = pool.stats();
        assert_eq!((stats.connections_created, stats.retries), (1, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prior_knowledge_works_without_tls() {
    let Some(site) = Site::start(&PLAIN, Settings::default()).await else {
        return;
    };
    let pool = site.pool();
    let url = site.url().replace("https", "http");
    let client = pool
        .client_builder(url)
        .protocols(Protocols::Http2PriorKnowledge);
    let client = client.build().unwrap();
    in_time(async {
        for _ in 0..20 {
            let response = client.post("/echo").body("hello").send().await.unwrap();
            let (body, trailers) = collect(response).await.unwrap();
            assert_eq!((&*body, trailers.is_some()), (&b"hello"[..], true));
        }
    })
    .await;
    assert_eq!(pool.stats().connections_created, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconnect_resumes_the_tls_session() {
    let Some(site) = Site::start(&OVER_TLS, Settings::default()).await else {
        return;
    };
    for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
        let tls = site.trust().max_version(version);
        let pool = site.pool_with(|pool| pool.tls(tls));
        let client = site.client(&pool, Protocols::Http2);
        in_time(async {
            client.get("/").send().await.unwrap().bytes().await.unwrap();
            until("a ticket came", || pool.stats().tls_tickets > 0).await;
            pool.close_idle();
            let mut response = client.get("/").send().await.unwrap();
            response.bytes().await.unwrap();
            assert_eq!(
                response.connection().tls_resumed(),
                Some(true),
                "{version:?}"
            );
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_arrive_whole_both_ways() {
    let Some(site) = Site::start(&OVER_TLS, Settings::default()).await else {
        return;
    };
    let pool = site.pool();
    let client = site.client(&pool, Protocols::Http2);
    let big = noise(BIG);
    in_time(async {
        let (body, trailers) = collect(client.get("/big").send().await.unwrap())
            .await
            .unwrap();
        assert!(body == big && trailers.is_some());
        let echoes = [
            client.post("/echo").body(big.clone()),
            client.put("/echo").body(Pieces::of(&big)),
        ];
        for request in echoes {
            let (body, trailers) = collect(request.send().await.unwrap()).await.unwrap();
            assert!(
                body == big && trailers.is_some(),
                "{} bytes came back",
                body.len()
            );
        }
    })
    .await;
    assert_eq!(pool.stats().connections_created, 1);
}

/// Three times over: killed while a connection is idle, and while bodies are on their way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_server_costs_typed_errors_and_is_found_again() {
    let Some(mut site) = Site::start(&OVER_TLS, Settings::default()).await else {
        return;
    };
    let pool = site.pool();
    let client = site.client(&pool, Protocols::Http2);
    in_time(async {
        for _ in 0..3 {
            let mut response = client.get("/").send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "hello");
            site.process.kill();
            until("the pool has noticed", || pool.stats().open == 0).await;
            let error = client.get("/").send().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Connect, "{}", describe(&error));
            assert_eq!(
                error.replay_safety(),
                ReplaySafety::NotSent,
                "{}",
                describe(&error)
            );
            site.restart().await;

            // More than fits into the windows: all of them are under way for as long as nobody reads.
            let mut bodies = Vec::new();
            for _ in 0..4 {
                let mut response = client.get("/big").send().await.unwrap();
                assert!(response.chunk().await.unwrap().is_some());
                bodies.push(response);
            }
            site.process.kill();
            for mut response in bodies {
                let error = response.bytes().await.unwrap_err();
                let kind = error.kind();
                assert!(
                    matches!(kind, ErrorKind::ConnectionLost | ErrorKind::Truncated),
                    "{}",
                    describe(&error)
                );
                assert_eq!(
                    error.replay_safety(),
                    ReplaySafety::Processed,
                    "{}",
                    describe(&error)
                );
            }
            site.restart().await;
        }
        let mut response = client.get("/").send().await.unwrap();
        assert_eq!(response.text().await.unwrap(), "hello");
    })
    .await;
}
