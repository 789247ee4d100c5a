//! What must hold in front of every server that can do it. Each is run as a test of the server's own module.

use std::collections::BTreeSet;

use bytes::Bytes;
use firstbyte::tls::TlsVersion;
use firstbyte::{
    CloseReason, ConnectionPool, ConnectionUse, ErrorKind, Protocols, RequestBuilder, Response,
};
use http::Version;

use crate::bodies::{Pieces, collect, noise};
use crate::common::{BOTH, in_time, join_all};
use crate::load::{Failure, Load, Posts, Report, describe, processed};
use crate::process::until;
use crate::site::{Settings, Site, Software};
use crate::support::h1_peer::H1Peer;

/// Declares tests of these names, each the fact of the same name about this server.
macro_rules! facts_of {
    ($software:expr, [$($fact:ident),+ $(,)?]) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                crate::facts::$fact($software).await;
            }
        )+
    };
}
pub(crate) use facts_of;

const BIG: usize = 8 << 20;

/// What the server wrote into a header of its answer.
pub(crate) fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn version_of(protocols: Protocols) -> Version {
    match protocols {
        Protocols::Http1 => Version::HTTP_11,
        _ => Version::HTTP_2,
    }
}

/// One after the other, on one connection by our count and by the server's.
pub(crate) async fn sequential_requests_share_one_connection(software: &'static dyn Software) {
    let Some(site) = Site::start(software, Settings::default()).await else {
        return;
    };
    for protocols in BOTH {
        let pool = site.pool();
        let client = site.client(&pool, protocols);
        let (mut ids, mut ports) = (BTreeSet::new(), BTreeSet::new());
        let mut note = |response: &Response, nth| {
            assert_eq!(response.version(), version_of(protocols));
            let expected = if nth == 0 {
                ConnectionUse::New
            } else {
                ConnectionUse::Idle
            };
            assert_eq!(response.connection_use(), expected, "{protocols:?} {nth}");
            ids.insert(response.connection().id());
            ports.insert(header(response, "x-peer-port").to_owned());
        };
        in_time(async {
            for nth in 0..20 {
                let mut response = client.get("/").send().await.unwrap();
                assert_eq!(
                    (response.status().as_u16(), &*response.text().await.unwrap()),
                    (200, "hello")
                );
                note(&response, nth);
            }
            let mut response = client.post("/echo").body("and back").send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "and back");
            note(&response, 20);
            let mut response = client.head("/").send().await.unwrap();
            assert_eq!(
                (
                    response.status().as_u16(),
                    response.bytes().await.unwrap().len()
                ),
                (200, 0)
            );
            note(&response, 21);
            let mut response = client.get("/none").send().await.unwrap();
            assert_eq!(response.status(), 404);
            response.bytes().await.unwrap();
            note(&response, 22);
        })
        .await;
        assert_eq!((ids.len(), ports.len()), (1, 1), "{protocols:?}");
        let stats = pool.stats();
        assert_eq!(
            (stats.connections_created, stats.connections_reused),
            (1, 22)
        );
        assert_eq!((stats.total_requests, stats.retries), (23, 0));
    }
}

/// Three bursts of 20: h2 shares one connection, h1 has as many as are asked at once and no more.
pub(crate) async fn concurrent_requests_are_all_answered(software: &'static dyn Software) {
    let Some(site) = Site::start(software, Settings::default()).await else {
        return;
    };
    for protocols in [Protocols::Auto, Protocols::Http1, Protocols::Http2] {
        let pool = site.pool();
        let client = site.client(&pool, protocols);
        for _ in 0..3 {
            let answers = in_time(join_all((0..20).map(|_| async {
                let mut response = client.get("/").send().await?;
                response.text().await
            })))
            .await;
            for answer in answers {
                assert_eq!(answer.unwrap(), "hello", "{protocols:?}");
            }
        }
        let stats = pool.stats();
        let most = if protocols == Protocols::Http1 { 20 } else { 1 };
        assert!(
            stats.connections_created <= most,
            "{protocols:?}: {stats:?}"
        );
        assert_eq!((stats.total_requests, stats.retries), (60, 0));
    }
}

/// With TLS 1.2 and 1.3; by our word and by the server's.
pub(crate) async fn reconnect_resumes_the_tls_session(software: &'static dyn Software) {
    let Some(site) = Site::start(software, Settings::default()).await else {
        return;
    };
    for (protocols, version) in BOTH
        .into_iter()
        .flat_map(|protocols| [TlsVersion::Tls12, TlsVersion::Tls13].map(|v| (protocols, v)))
    {
        let tls = site.trust().max_version(version);
        let pool = site.pool_with(|pool| pool.tls(tls));
        let client = site.client(&pool, protocols);
        in_time(async {
            let mut first = client.get("/").send().await.unwrap();
            first.bytes().await.unwrap();
            assert_eq!(first.connection().tls_resumed(), Some(false));
            assert_ne!(header(&first, "x-tls-resumed"), software.resumed());
            until("a ticket came", || pool.stats().tls_tickets > 0).await;
            pool.close_idle();
            let mut second = client.get("/").send().await.unwrap();
            second.bytes().await.unwrap();
            assert_ne!(first.connection().id(), second.connection().id());
            assert_eq!(
                second.connection().tls_resumed(),
                Some(true),
                "{protocols:?} {version:?}"
            );
            assert_eq!(header(&second, "x-tls-resumed"), software.resumed());
        })
        .await;
    }
}

/// 8 MiB there and back, with a length and without one, through a proxy that buffers and one that does not.
pub(crate) async fn large_bodies_arrive_whole_both_ways(software: &'static dyn Software) {
    let Some(site) = Site::start(software, Settings::default()).await else {
        return;
    };
    let big = noise(BIG);
    for protocols in BOTH {
        let pool = site.pool();
        let client = site.client(&pool, protocols);
        let mut cuts = 0;
        for place in ["", "/unbuffered"] {
            let whole = || client.post(format!("{place}/echo")).body(big.clone());
            cuts += in_time(echoes(&site, whole, &big, Some(BIG as u64))).await;
            let pieces = || {
                client
                    .post(format!("{place}/stream"))
                    .body(Pieces::of(&big))
            };
            cuts += in_time(echoes(&site, pieces, &big, None)).await;
        }
        let created = pool.stats().connections_created;
        assert!(
            created <= 1 + cuts,
            "{protocols:?}: {created} connections, {cuts} cut by the server"
        );
    }
}

/// The answer is the body that was sent. How often the server itself cut it, and it was asked for again: Go's reverse
/// proxy sometimes gives its backend up behind a large request body, and says so in its log.
async fn echoes(
    site: &Site,
    request: impl Fn() -> RequestBuilder,
    expected: &Bytes,
    length: Option<u64>,
) -> u64 {
    for cuts in 0..5 {
        let known = site.process.log().matches(CUT).count();
        let response = request().send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), response.content_length()),
            (200, length)
        );
        match collect(response).await {
            Ok((body, _)) => {
                assert!(body == expected, "{} bytes came back", body.len());
                return cuts;
            }
            Err(error) => {
                let is_told = || site.process.log().matches(CUT).count() > known;
                assert!(is_told(), "{}", describe(&error));
            }
        }
    }
    panic!("the server cut it five times: {}", site.process.log());
}

const CUT: &str = "aborting with incomplete response";

/// Against a server that keeps idle connections for a moment only.
pub(crate) async fn idle_close_costs_no_error(software: &'static dyn Software) {
    let settings = Settings {
        idle_ms: 300,
        ..Settings::default()
    };
    let Some(site) = Site::start(software, settings).await else {
        return;
    };
    for protocols in BOTH {
        let pool = site.pool();
        let client = site.client(&pool, protocols);
        in_time(async {
            for _ in 0..2 {
                let mut response = client.get("/").send().await.unwrap();
                response.bytes().await.unwrap();
                assert_eq!(response.connection_use(), ConnectionUse::New);
                until("the idle connection is closed", || pool.stats().open == 0).await;
            }
        })
        .await;
        let stats = pool.stats();
        assert_eq!(
            (stats.connections_created, stats.retries),
            (2, 0),
            "{protocols:?}"
        );
        let faults = [
            CloseReason::Failed,
            CloseReason::TransportLost,
            CloseReason::UnsolicitedBytes,
        ];
        assert!(
            faults.iter().all(|fault| !stats.closed.contains_key(fault)),
            "{protocols:?}: {:?}",
            stats.closed
        );
    }
}

/// Three reloads by signal under load.
pub(crate) async fn reload_loses_no_request(software: &'static dyn Software) {
    let Some(mut site) = Site::start(software, Settings::default()).await else {
        return;
    };
    let pool = site.pool();
    let loads = Loads::start(&site, &pool);
    in_time(async {
        loads.across_reloads(&mut site).await;
        let [keyed, plain, h2] = loads.finish(&site).await;
        keyed.expect_spotless();
        plain.expect_lost_only(Failure::is_post);
        assert!(plain.repeated.is_empty(), "{plain:#?}");
        h2.expect_spotless();
    })
    .await;
}

/// Four workers over h1 whose POSTs may be repeated, four over h1 whose POSTs may not, eight over h2.
///
/// On h1 a server that closes an idle connection just as a request comes leaves the client without an answer, and only
/// a request that may be repeated can be sent again (RFC 9112 §9.3.1). On h2 GOAWAY says what was not processed.
pub(crate) struct Loads([Load; 3]);

impl Loads {
    pub(crate) fn start(site: &Site, pool: &ConnectionPool) -> Self {
        let h1 = site.client(pool, Protocols::Http1);
        let h2 = site.client(pool, Protocols::Http2);
        Self([
            Load::start("h1-keyed", &h1, 4, Posts::Keyed),
            Load::start("h1", &h1, 4, Posts::Plain),
            Load::start("h2", &h2, 8, Posts::Plain),
        ])
    }

    /// Resolves once each has a hundred more answers.
    pub(crate) async fn more(&self) {
        join_all(self.0.iter().map(|load| load.more(100))).await;
    }

    /// Resolves once each has fifty answers of this generation.
    pub(crate) async fn generation(&self, generation: u32) {
        join_all(self.0.iter().map(|load| load.generation(generation, 50))).await;
    }

    /// Each reload comes while answers do, and the next one only when all have answers of the new generation.
    pub(crate) async fn across_reloads(&self, site: &mut Site) {
        for _ in 0..3 {
            self.more().await;
            let generation = site.next_generation();
            site.process
                .signal(site.software().reload().expect("it has such a signal"));
            self.generation(generation).await;
        }
    }

    pub(crate) async fn finish(self, site: &Site) -> [Report; 3] {
        let [keyed, plain, h2] = self.0;
        [
            keyed.finish(&site.backend).await,
            plain.finish(&site.backend).await,
            h2.finish(&site.backend).await,
        ]
    }
}

/// The server is told to end while requests are in flight: each gets its answer, the server ends because the client
/// lets go of it, and one that is started again on its port is found.
pub(crate) async fn graceful_stop_answers_what_is_in_flight(software: &'static dyn Software) {
    for protocols in BOTH {
        let Some(mut site) = Site::start(software, Settings::default()).await else {
            return;
        };
        let pool = site.pool();
        let client = site.client(&pool, protocols);
        in_time(async {
            // One connection more than those in flight is idle when the end comes, on h1.
            client.warm(1).await.unwrap().into_result().unwrap();
            let held = (0..4).map(|n| {
                let id = format!("held-{n}");
                let request = client.post(format!("/held?id={id}")).body(id.clone());
                tokio::spawn(async move {
                    let mut response = request.send().await.map_err(|error| describe(&error))?;
                    let text = response.text().await.map_err(|error| describe(&error))?;
                    assert_eq!((response.status().as_u16(), text), (200, id));
                    Ok::<_, String>(())
                })
            });
            let held: Vec<_> = held.collect();
            site.backend.wait(|counts| counts.requests == 4).await;
            site.process
                .signal(software.graceful().expect("it has such a signal"));
            site.process.refuses().await;
            // A new request finds nobody, or is still answered on a connection that was not given up yet.
            if let Err(error) = client.get("/").send().await {
                assert_eq!(error.kind(), ErrorKind::Connect, "{}", describe(&error));
            }
            site.gate.open();
            for held in held {
                let answer = held.await.expect("no panic in it");
                answer.unwrap_or_else(|error| panic!("{protocols:?}: {error}"));
            }
            // What was connected to while it shut down nobody is told about: nginx waits for its idle timeout.
            until("the server has ended", || {
                pool.close_idle();
                site.process.ended().is_some()
            })
            .await;
            let times = processed(&site.backend);
            assert!(
                times.len() == 4 && times.values().all(|n| *n == 1),
                "{times:?}"
            );
            until("no connection is left", || pool.stats().open == 0).await;
            if protocols == Protocols::Http2 {
                let closed = pool.stats().closed;
                assert!(closed.contains_key(&CloseReason::GoAway), "{closed:?}");
            }
            site.restart().await;
            let mut response = client.post("/echo").body("back").send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "back");
        })
        .await;
    }
}

/// Over the protocols by which the server passes them on. The backend sends them unasked, which hyper does not.
pub(crate) async fn trailers_arrive(software: &'static dyn Software, over: &[Protocols]) {
    let backend = H1Peer::start(|mut conn, _| async move {
        while !conn.read_head().await.is_empty() {
            conn.send(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-check\r\n\r\n\
                 6\r\nbehind\r\n7\r\n this: \r\n0\r\nx-check: done\r\n\r\n",
            )
            .await;
        }
    });
    let settings = Settings {
        backend: backend.port(),
        ..Settings::default()
    };
    let Some(site) = Site::start(software, settings).await else {
        return;
    };
    for protocols in over {
        let pool = site.pool();
        let client = site.client(&pool, *protocols);
        in_time(async {
            for _ in 0..3 {
                let response = client.get("/trailers").send().await.unwrap();
                let (body, trailers) = collect(response).await.unwrap();
                assert_eq!(body, "behind this: ");
                assert_eq!(
                    trailers.expect("trailers")["x-check"],
                    "done",
                    "{protocols:?}"
                );
            }
        })
        .await;
        assert_eq!(pool.stats().connections_created, 1);
    }
}
