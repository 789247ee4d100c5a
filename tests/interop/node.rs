//! Node's http2: h1 and h2 in one server, echoes while the upload goes on, and connections that end without GOAWAY.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use firstbyte::{
    Client, ConnectionPool, ConnectionUse, ErrorKind, Http2Options, Limits, Protocols, ReplaySafety,
};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::bodies::{Channel, Pieces, collect, noise};
use crate::common::{BOTH, in_time};
use crate::facts::{self, facts_of};
use crate::load::describe;
use crate::process::{Scratch, program, until};
use crate::site::{Settings, Site, Software};

struct Node;

impl Software for Node {
    fn program(&self) -> &'static str {
        if program("node").is_some() {
            "node"
        } else {
            "nodejs"
        }
    }

    fn package(&self) -> &'static str {
        "nodejs"
    }

    fn configure(&self, scratch: &Scratch, _: &Settings) {
        scratch.write("server.js", include_str!("server.js"));
    }

    fn command(&self, program: &Path, scratch: &Scratch, settings: &Settings) -> Command {
        let mut command = Command::new(program);
        command.arg(scratch.path().join("server.js"));
        command.arg(settings.port.to_string()).arg(scratch.path());
        command
            .arg(settings.idle_ms.to_string())
            .arg(settings.streams.to_string());
        command
    }

    fn end(&self) -> Option<&'static str> {
        None
    }

    fn resumed(&self) -> &'static str {
        "true"
    }
}

facts_of!(
    &Node,
    [
        sequential_requests_share_one_connection,
        concurrent_requests_are_all_answered,
        reconnect_resumes_the_tls_session,
        idle_close_costs_no_error,
    ]
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_arrive() {
    facts::trailers_arrive(&Node, &[Protocols::Http1, Protocols::Http2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_of_a_request_arrive_behind_its_body() {
    let Some(site) = Site::start(&Node, Settings::default()).await else {
        return;
    };
    let big = noise(1 << 20);
    for protocols in BOTH {
        let pool = site.pool();
        let client = site.client(&pool, protocols);
        in_time(async {
            for _ in 0..2 {
                let body = Pieces::of(&big).trailer("x-check", "sent");
                let mut response = client.post("/sum").body(body).send().await.unwrap();
                assert_eq!(
                    response.text().await.unwrap(),
                    "1048576 sent",
                    "{protocols:?}"
                );
            }
        })
        .await;
        assert_eq!(pool.stats().connections_created, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_uploads_arrive_whole() {
    let Some(site) = Site::start(&Node, Settings::default()).await else {
        return;
    };
    let big = noise(8 << 20);
    for protocols in BOTH {
        let pool = site.pool();
        let client = site.client(&pool, protocols);
        in_time(async {
            let whole = client.post("/sum").body(big.clone());
            let pieces = client.post("/sum").body(Pieces::of(&big));
            for request in [whole, pieces] {
                let mut response = request.send().await.unwrap();
                assert_eq!(
                    response.text().await.unwrap(),
                    "8388608 undefined",
                    "{protocols:?}"
                );
            }
        })
        .await;
    }
}

/// Each piece is sent only when the echo of the one before is here; then 8 MiB at once, more than fits on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_streams_while_the_upload_goes_on_over_h2() {
    let Some(site) = Site::start(&Node, Settings::default()).await else {
        return;
    };
    let pool = site.pool();
    let client = site.client(&pool, Protocols::Http2);
    let patience = Duration::from_secs(5);
    in_time(async {
        let (sender, receiver) = mpsc::unbounded_channel();
        sender.send(Bytes::from_static(b"piece 0")).unwrap();
        let request = client
            .post("/echo")
            .body(Channel(receiver))
            .timeout(patience);
        let mut response = request.send().await.unwrap();
        for nth in 1..20 {
            let echo = response.chunk().await.unwrap().expect("an echo");
            assert_eq!(echo, format!("piece {}", nth - 1));
            let sent = sender.send(Bytes::from(format!("piece {nth}")));
            assert!(
                sent.is_ok(),
                "the upload was given up at the echo of piece {}",
                nth - 1
            );
        }
        assert_eq!(
            response.chunk().await.unwrap().expect("an echo"),
            "piece 19"
        );
        drop(sender);
        assert_eq!(response.bytes().await.unwrap(), "");

        let big = noise(8 << 20);
        let request = client
            .post("/echo")
            .body(Pieces::of(&big))
            .timeout(patience);
        let (body, _) = collect(request.send().await.unwrap()).await.unwrap();
        assert!(body == big, "{} bytes came back", body.len());
    })
    .await;
    assert_eq!(pool.stats().connections_created, 1);
}

/// The server says with an answer that it was the last one: `Connection: close` on h1, GOAWAY on h2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_that_the_server_ends_with_an_answer_is_not_used_again() {
    let Some(site) = Site::start(&Node, Settings::default()).await else {
        return;
    };
    for protocols in BOTH {
        let pool = site.pool();
        let client = site.client(&pool, protocols);
        in_time(async {
            for _ in 0..10 {
                let mut response = client.post("/goodbye").send().await.unwrap();
                assert_eq!(response.text().await.unwrap(), "hello", "{protocols:?}");
            }
            // A successor may be there already; it has served nobody.
            until("the ten are gone", || {
                pool.stats().closed.values().sum::<u64>() == 10
            })
            .await;
            assert!(
                pool.connections()
                    .iter()
                    .all(|connection| connection.requests() == 0)
            );
        })
        .await;
    }
}

/// What is in flight, and what waits for a place behind it.
struct Crowd {
    held: Vec<JoinHandle<Result<(), firstbyte::Error>>>,
    waiting: Vec<JoinHandle<Result<(), firstbyte::Error>>>,
}

impl Crowd {
    /// Two requests that are never answered, on all the places there are, and three behind them.
    async fn gather(site: &Site, pool: &ConnectionPool, client: &Client) -> Self {
        let arrived = || site.process.log().matches("held").count();
        let before = arrived();
        let ask = |path| {
            let request = client.post(path).body("once");
            tokio::spawn(async move {
                request.send().await?.bytes().await?;
                Ok(())
            })
        };
        let held = vec![ask("/held"), ask("/held")];
        until("both have arrived", || arrived() == before + 2).await;
        let waiting = vec![ask("/echo"), ask("/echo"), ask("/echo")];
        until("three wait", || pool.stats().waiting == 3).await;
        Self { held, waiting }
    }

    /// Those in flight must say that their connection was lost, and that nobody knows more.
    async fn held_are_lost(&mut self, protocols: Protocols) {
        for held in self.held.drain(..) {
            let error = held.await.expect("no panic").expect_err("no answer");
            assert_eq!(
                error.kind(),
                ErrorKind::ConnectionLost,
                "{protocols:?}: {}",
                describe(&error)
            );
            assert_eq!(
                error.replay_safety(),
                ReplaySafety::MaybeProcessed,
                "{}",
                describe(&error)
            );
        }
    }
}

/// Two streams on one connection over h2, two connections over h1; one request has been answered before.
async fn two_places(site: &Site, protocols: Protocols) -> (ConnectionPool, Client) {
    let pool = site.pool_with(|pool| {
        pool.http2(Http2Options::default().max_connections_per_origin(1))
            .limits(Limits::default().max_connections_per_host(match protocols {
                Protocols::Http1 => 2,
                _ => 1,
            }))
    });
    let client = site.client(&pool, protocols);
    let mut response = client.get("/").send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), "hello");
    (pool, client)
}

/// Dropped by a server that lives on: those in flight fail, those who waited are served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drop_without_goaway_fails_what_is_in_flight_and_serves_who_waits() {
    let settings = Settings {
        streams: 2,
        ..Settings::default()
    };
    let Some(site) = Site::start(&Node, settings).await else {
        return;
    };
    for protocols in BOTH {
        let (pool, client) = two_places(&site, protocols).await;
        in_time(async {
            let mut crowd = Crowd::gather(&site, &pool, &client).await;
            site.process.signal("USR2");
            crowd.held_are_lost(protocols).await;
            for waiting in crowd.waiting {
                waiting
                    .await
                    .expect("no panic")
                    .unwrap_or_else(|error| panic!("{}", describe(&error)));
            }
            // And while it is idle.
            for _ in 0..3 {
                let mut response = client.get("/").send().await.unwrap();
                response.bytes().await.unwrap();
                site.process.signal("USR2");
                until("the pool has noticed", || pool.stats().open == 0).await;
                let mut response = client.post("/echo").body("new").send().await.unwrap();
                assert_eq!(response.text().await.unwrap(), "new");
                assert_eq!(response.connection_use(), ConnectionUse::New);
            }
        })
        .await;
        assert_eq!(pool.stats().waiting, 0);
    }
}

/// Killed: those in flight are lost, those who waited find nobody, and all is well once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_server_wakes_everybody_and_is_found_again() {
    let settings = Settings {
        streams: 2,
        ..Settings::default()
    };
    let Some(mut site) = Site::start(&Node, settings).await else {
        return;
    };
    for protocols in BOTH {
        let (pool, client) = two_places(&site, protocols).await;
        in_time(async {
            let mut crowd = Crowd::gather(&site, &pool, &client).await;
            site.process.kill();
            crowd.held_are_lost(protocols).await;
            for waiting in crowd.waiting {
                let error = waiting
                    .await
                    .expect("no panic")
                    .expect_err("nobody is there");
                // The kernel may still accept for a process that is on its way out.
                assert!(error.is_connect(), "{protocols:?}: {}", describe(&error));
                assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
            }
            assert_eq!((pool.stats().open, pool.stats().waiting), (0, 0));
            site.restart().await;
            for _ in 0..4 {
                let mut response = client.post("/echo").body("back").send().await.unwrap();
                assert_eq!(response.text().await.unwrap(), "back");
            }

            // In the middle of an answer.
            let mut response = client.get("/half").send().await.unwrap();
            assert_eq!(response.chunk().await.unwrap().expect("a half"), "half ");
            site.process.kill();
            let error = response.chunk().await.expect_err("the other half is lost");
            assert!(
                matches!(
                    error.kind(),
                    ErrorKind::ConnectionLost | ErrorKind::Truncated
                ),
                "{protocols:?}: {}",
                describe(&error)
            );
            assert_eq!(
                error.replay_safety(),
                ReplaySafety::Processed,
                "{}",
                describe(&error)
            );
            site.restart().await;
            let mut response = client.get("/").send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "hello");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_carry_bytes_both_ways() {
    let Some(site) = Site::start(&Node, Settings::default()).await else {
        return;
    };
    in_time(async {
        let pool = site.pool();
        let client = site.client(&pool, Protocols::Auto);
        let sent = noise(1 << 20);
        for _ in 0..3 {
            let request = client.request(Method::CONNECT, "/");
            let response = request.extended_connect("websocket").send().await.unwrap();
            assert_eq!(facts::header(&response, "x-said"), "websocket");
            let (mut from, mut to) = tokio::io::split(response.upgrade().unwrap());
            let mut came = Vec::new();
            let write = async {
                to.write_all(&sent).await.unwrap();
                to.shutdown().await.unwrap();
            };
            let ((), read) = tokio::join!(write, from.read_to_end(&mut came));
            read.unwrap();
            assert!(came == sent, "what came back is not what was sent");
        }
        assert_eq!(pool.stats().connections_created, 1);
    })
    .await;
}
