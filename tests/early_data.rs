//! Early data (0-RTT): what may travel so, what becomes of it, and that nobody else's request does.

mod common;
mod support;

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use common::{DropAfter, eventually, in_time};
use firstbyte::tcp::TcpOptions;
use firstbyte::timing::EarlyData;
use firstbyte::tls::TlsOptions;
use firstbyte::{
    Client, ConnectionPool, ConnectionUse, ErrorKind, Phase, Protocols, ReplaySafety, Response,
    RetryPolicy,
};
use rustls::ServerConfig;
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};
use support::half_rtt::HalfRtt;
use support::pki::{self, Pki};
use support::server::{Builder, Server};

/// A server that takes early data, and a client that offers it and has a ticket.
struct Early {
    pki: Pki,
    storage: Arc<dyn StoresServerSessions>,
    server: Server,
    pool: ConnectionPool,
    client: Client,
}

const BOTH_ALPN: &[&str] = &["h2", "http/1.1"];

impl Early {
    async fn new(protocols: Protocols, server: impl FnOnce(Builder) -> Builder) -> Self {
        Self::with_budget(protocols, 16_384, server).await
    }

    /// The server's tickets allow that many bytes.
    async fn with_budget(
        protocols: Protocols,
        budget: u32,
        server: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let pki = Pki::new();
        let storage: Arc<dyn StoresServerSessions> = ServerSessionMemoryCache::new(64);
        let mut config = config(&pki, BOTH_ALPN, &storage);
        config.max_early_data_size = budget;
        let server = server(Server::builder().tls_config(config).host("api.test"));
        let server = server.start().await;
        let tls = TlsOptions::new()
            .builtin_roots(false)
            .add_root(pki.ca_der())
            .early_data(true);
        let pool = ConnectionPool::builder()
            .resolve_to("api.test", ["127.0.0.1".parse().unwrap()])
            .tls(tls)
            .build()
            .unwrap();
        let client = pool
            .client_builder(server.url("/"))
            .protocols(protocols)
            .build()
            .unwrap();
        let early = Self {
            pki,
            storage,
            server,
            pool,
            client,
        };
        let first = early.get().await;
        assert_eq!(
            outcome(&first),
            EarlyData::NotOffered,
            "there was no ticket"
        );
        drop(first);
        early.forget_connections().await;
        early
    }

    async fn get(&self) -> Response {
        let mut response = self.client.get("/").send().await.unwrap();
        response.text().await.unwrap();
        response
    }

    /// A request whose connection is there by now, and which has not been told.
    async fn get_polled_once(
        &self,
    ) -> Pin<Box<impl Future<Output = Result<Response, firstbyte::Error>> + use<>>> {
        let mut get = Box::pin(self.client.get("/").send());
        let polled = std::future::poll_fn(|cx| Poll::Ready(get.as_mut().poll(cx).is_pending()));
        assert!(polled.await);
        eventually("it is there", || self.pool.connections().len() == 1).await;
        get
    }

    /// The next request needs a new connection.
    async fn forget_connections(&self) {
        self.pool.close_idle();
        eventually("all are closed", || self.pool.stats().open == 0).await;
    }

    /// Another server in its place.
    async fn replace(&mut self, server: Builder) {
        let addr = self.server.addr();
        self.server.stop();
        self.server = server.host("api.test").bind(addr).start().await;
    }
}

fn config(pki: &Pki, alpn: &[&str], storage: &Arc<dyn StoresServerSessions>) -> ServerConfig {
    let config = pki::server_config(&pki.server(&["api.test"]), alpn);
    pki::with_early_data(config, storage.clone())
}

fn outcome(response: &Response) -> EarlyData {
    let facts = response.connection().trace().tls_facts.as_ref();
    facts.expect("the handshake is over").early_data
}

/// The phases add up, whatever the handshake did.
fn check(response: &Response) {
    let timing = response.timing();
    let sum: std::time::Duration = Phase::ALL.iter().filter_map(|p| timing.get(*p)).sum();
    assert_eq!(sum, timing.total());
    let order = [
        timing.acquired(),
        timing.send_end(),
        timing.first_byte(),
        timing.headers(),
    ];
    assert!(order.is_sorted() && order[0].is_some(), "{timing:?}");
}

#[tokio::test]
async fn safe_request_travels_with_the_first_flight_of_a_resumed_handshake() {
    in_time(async {
        for protocols in common::BOTH {
            let early = Early::new(protocols, |server| server).await;
            let response = early.get().await;
            assert_eq!(outcome(&response), EarlyData::Accepted);
            assert_eq!(response.connection_use(), ConnectionUse::New);
            assert_eq!(response.connection().tls_resumed(), Some(true));
            check(&response);
            assert!(response.timing().tls().is_some());
            let counts = early.server.counts();
            assert!(counts.early_bytes > 0);
            assert_eq!((counts.tls_full, counts.tls_resumed), (1, 1));
            assert_eq!(early.server.seen().len(), 2, "sent once");
            assert_eq!(early.pool.stats().resumed, 1);
            // The connection is an ordinary one from here on.
            let next = early.get().await;
            assert_eq!(next.connection().id(), response.connection().id());
            assert_eq!(next.connection_use(), ConnectionUse::Idle);
        }
    })
    .await;
}

#[tokio::test]
async fn only_what_may_be_repeated_travels_early() {
    in_time(async {
        for protocols in common::BOTH {
            let early = Early::new(protocols, |server| server).await;
            let stream = || {
                let body = http_body_util::Full::new(bytes::Bytes::from("x"));
                firstbyte::Body::wrap(body)
            };
            let client = &early.client;
            let expect = async |request: firstbyte::RequestBuilder, is_early: bool, what: &str| {
                let before = early.server.counts().early_bytes;
                let mut response = request.send().await.unwrap();
                response.text().await.unwrap();
                let expected = if is_early {
                    EarlyData::Accepted
                } else {
                    EarlyData::NotOffered
                };
                assert_eq!(outcome(&response), expected, "{what}");
                assert_eq!(response.connection().tls_resumed(), Some(true), "{what}");
                let after = early.server.counts().early_bytes;
                assert_eq!(after > before, is_early, "{what}");
                drop(response);
                early.forget_connections().await;
            };
            expect(client.post("/echo").body("x"), false, "POST").await;
            expect(
                client.put("/echo").body("x"),
                false,
                "PUT is no safe method",
            )
            .await;
            let keyed = client.post("/echo").header("idempotency-key", "1");
            expect(keyed, false, "a key is for the server to know").await;
            let said = client.post("/echo").body("x").idempotent(true);
            expect(said, true, "the caller's word").await;
            let once = client.post("/echo").body(stream()).idempotent(true);
            expect(once, false, "a body that cannot be repeated").await;
            expect(client.get("/"), true, "GET").await;
            let denied = client.get("/").idempotent(false);
            expect(denied, false, "the caller's word against it").await;
        }
    })
    .await;
}

#[tokio::test]
async fn rejected_early_data_is_sent_again_once_and_counts_as_tls() {
    in_time(async {
        for protocols in common::BOTH {
            let mut early = Early::new(protocols, |server| server).await;
            let mut other = config(&early.pki, BOTH_ALPN, &early.storage);
            other.max_early_data_size = 0;
            early.replace(Server::builder().tls_config(other)).await;
            let response = early.get().await;
            assert_eq!(outcome(&response), EarlyData::Rejected);
            check(&response);
            let counts = early.server.counts();
            assert_eq!((counts.early_bytes, counts.requests), (0, 1), "sent once");
            let trace = response.connection().trace();
            let handshake_end = trace.tls.unwrap().end.unwrap();
            let timing = response.timing();
            assert!(timing.acquired().unwrap() >= handshake_end);
            assert_eq!(timing.tls(), trace.get(Phase::Tls));

            // A server that forgot all tickets: a full handshake, and the same holds.
            early.forget_connections().await;
            let fresh: Arc<dyn StoresServerSessions> = ServerSessionMemoryCache::new(64);
            let other = config(&early.pki, BOTH_ALPN, &fresh);
            early.replace(Server::builder().tls_config(other)).await;
            early.get().await;
            early.forget_connections().await;
            let counts = early.server.counts();
            assert_eq!((counts.tls_full, counts.requests), (1, 1));
        }
    })
    .await;
}

#[tokio::test]
async fn too_early_is_asked_once_more_without() {
    in_time(async {
        for protocols in common::BOTH {
            let early = Early::new(protocols, Builder::refuses_early).await;
            let mut response = early.client.get("/").send().await.unwrap();
            assert_eq!(response.status(), 200);
            response.text().await.unwrap();
            assert_eq!(response.metrics().attempts, 2);
            check(&response);
            assert_eq!(early.server.seen().len(), 3);

            early.forget_connections().await;
            let options = firstbyte::RequestOptions::default().retry(RetryPolicy::Never);
            let request = early.client.get("/").options(options);
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 425, "the caller wants no second attempt");
        }
    })
    .await;
}

#[tokio::test]
async fn server_that_changes_its_protocol_gets_the_request_anew() {
    in_time(async {
        for (before, after) in [("h2", "http/1.1"), ("http/1.1", "h2")] {
            let mut early = Early::new(Protocols::Auto, |server| server).await;
            let only = |alpn| {
                let config = config(&early.pki, &[alpn], &early.storage);
                Server::builder().tls_config(config)
            };
            let (first, second) = (only(before), only(after));
            early.replace(first).await;
            // The verdict and the ticket are those of the protocol before.
            early.get().await;
            early.forget_connections().await;
            early.replace(second).await;
            let response = early.get().await;
            let version = if after == "h2" {
                http::Version::HTTP_2
            } else {
                http::Version::HTTP_11
            };
            assert_eq!(response.version(), version);
            assert_eq!(early.server.seen().len(), 1, "processed once");
        }
    })
    .await;
}

#[tokio::test]
async fn impostor_may_have_read_early_data_and_the_error_says_so() {
    in_time(async {
        for protocols in common::BOTH {
            let mut early = Early::new(protocols, |server| server).await;
            let stranger = Pki::new();
            let forgetful: Arc<dyn StoresServerSessions> = ServerSessionMemoryCache::new(64);
            let impostor = config(&stranger, BOTH_ALPN, &forgetful);
            early.replace(Server::builder().tls_config(impostor)).await;
            let error = early.client.get("/").send().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
            assert_eq!(error.phase(), Some(Phase::Tls));
            assert_eq!(error.replay_safety(), ReplaySafety::MaybeProcessed);
            assert!(error.to_string().contains("certificate"), "{error}");
            assert_eq!(early.server.counts().requests, 0);
            eventually("it is closed", || early.pool.stats().open == 0).await;
        }
    })
    .await;
}

fn half_rtt_client(pki: &Pki, server: &HalfRtt) -> (ConnectionPool, Client) {
    half_rtt_client_with(pki, server, TcpOptions::default())
}

fn half_rtt_client_with(pki: &Pki, server: &HalfRtt, tcp: TcpOptions) -> (ConnectionPool, Client) {
    let tls = TlsOptions::new()
        .builtin_roots(false)
        .add_root(pki.ca_der())
        .early_data(true);
    let pool = ConnectionPool::builder()
        .resolve_to("api.test", ["127.0.0.1".parse().unwrap()])
        .tls(tls)
        .tcp(tcp)
        .build()
        .unwrap();
    let url = format!("https://api.test:{}", server.addr().port());
    let client = pool.client_builder(url).build().unwrap();
    (pool, client)
}

#[tokio::test]
async fn answer_to_early_data_takes_one_round_trip() {
    in_time(async {
        let pki = Pki::new();
        let storage: Arc<dyn StoresServerSessions> = ServerSessionMemoryCache::new(64);
        let config = config(&pki, &["http/1.1"], &storage);
        let server = HalfRtt::start(support::port::any(), config);
        let (pool, client) = half_rtt_client(&pki, &server);
        for expected in [EarlyData::NotOffered, EarlyData::Accepted] {
            let mut response = client.get("/").send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "ok");
            assert_eq!(outcome(&response), expected);
            drop(response);
            pool.close_idle();
            eventually("it is closed", || pool.stats().open == 0).await;
        }
        let flights = server.flights();
        let [full, early] = &flights[..] else {
            panic!("{flights:?}")
        };
        assert!(full.starts_with("CSCAS"), "two round trips: {full}");
        assert!(early.starts_with("CAS"), "one round trip: {early}");
    })
    .await;
}

/// Says to the test below that it runs inside a network namespace of its own.
#[cfg(target_os = "linux")]
const INSIDE: &str = "FIRSTBYTE_TEST_NAMESPACE";

/// Linux lets servers take data with the SYN only where the system says so. A network namespace of our
/// own may say so; where none can be made the test says that it did not run.
#[cfg(target_os = "linux")]
#[test]
fn answer_to_a_cold_request_takes_one_round_trip_with_fast_open() {
    use std::io::Write;
    if std::env::var_os(INSIDE).is_none() {
        // Both sides, and every listener without asking for it.
        let prepare = "ip link set lo up && echo 1027 > /proc/sys/net/ipv4/tcp_fastopen || exit 77; \
                       exec \"$0\" --exact answer_to_a_cold_request_takes_one_round_trip_with_fast_open";
        let ran = std::process::Command::new("unshare")
            .args(["--map-root-user", "--net", "sh", "-c", prepare])
            .arg(std::env::current_exe().unwrap())
            .env(INSIDE, "1")
            .output();
        match ran {
            Ok(ran) if ran.status.success() => {
                let text = String::from_utf8_lossy(&ran.stdout).into_owned();
                assert!(text.contains("1 passed"), "{text}");
            }
            Ok(ran) if String::from_utf8_lossy(&ran.stdout).contains("running 1 test") => {
                panic!("{}", String::from_utf8_lossy(&ran.stdout));
            }
            other => {
                // Past the test harness, which keeps to itself what a passing test prints.
                let why = format!("not run: no network namespace with Fast Open: {other:?}\n");
                std::io::stderr().write_all(why.as_bytes()).unwrap();
            }
        }
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(in_time(async {
        let pki = Pki::new();
        let storage: Arc<dyn StoresServerSessions> = ServerSessionMemoryCache::new(64);
        let config = config(&pki, &["http/1.1"], &storage);
        let server = HalfRtt::start(support::port::any(), config);
        let tcp = TcpOptions::default().fast_open(true);
        let (pool, client) = half_rtt_client_with(&pki, &server, tcp);
        // The first one brings the cookie and the ticket.
        for with_syn in [false, true] {
            let mut response = client.get("/").send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "ok");
            let info = response.connection().tcp_info().unwrap();
            assert_eq!(info.syn_data_acked, with_syn, "{info:?}");
            assert_eq!(outcome(&response) == EarlyData::Accepted, with_syn);
            drop(response);
            pool.close_idle();
            eventually("it is closed", || pool.stats().open == 0).await;
        }
        // The SYN brought ClientHello and request, and the answer came back with what the server
        // said to them.
        assert!(server.flights()[1].starts_with("CAS"));
    }));
}

/// The answer comes before the server has the client's Finished, and its tickets only after that.
#[tokio::test]
async fn tickets_that_come_to_an_idle_http1_connection_are_kept_and_so_is_the_connection() {
    in_time(async {
        let pki = Pki::new();
        let storage: Arc<dyn StoresServerSessions> = ServerSessionMemoryCache::new(64);
        let config = config(&pki, &["http/1.1"], &storage);
        let server = HalfRtt::start(support::port::any(), config);
        let (pool, client) = half_rtt_client(&pki, &server);
        let get = async || {
            let mut response = client.get("/").send().await.unwrap();
            assert_eq!(response.text().await.unwrap(), "ok");
            response.connection().clone()
        };
        get().await;
        pool.close_idle();
        eventually("it is closed", || pool.stats().open == 0).await;
        let before = pool.stats().tls_tickets;
        let early = get().await;
        // One was spent on it.
        eventually("new tickets are there", || {
            pool.stats().tls_tickets >= before
        })
        .await;
        assert_eq!(get().await.id(), early.id());
    })
    .await;
}

#[tokio::test]
async fn request_dropped_at_any_poll_leaves_a_pool_that_works() {
    in_time(async {
        for protocols in common::BOTH {
            let early = Early::new(protocols, |server| server).await;
            for polls in 0..12 {
                let request = early.client.get("/").send();
                drop(DropAfter::new(request, polls).await);
                // What was left of it is nobody's early data.
                let mut next = early.client.post("/echo").body("x").send().await.unwrap();
                next.text().await.unwrap();
                assert!(next.connection().trace().tls_facts.is_some());
                drop(next);
                eventually("nothing waits", || early.pool.stats().waiting == 0).await;
                eventually("nothing is active", || early.pool.stats().active == 0).await;
                early.forget_connections().await;
                assert_eq!(early.pool.stats().idle, 0);
            }
            let seen = early.server.seen();
            let posts = seen.iter().filter(|s| s.method == "POST").count();
            assert_eq!(posts, 12, "each was sent once");
        }
    })
    .await;
}

#[tokio::test]
async fn connection_that_its_request_never_took_ends_its_handshake_before_it_serves() {
    in_time(async {
        for protocols in common::BOTH {
            let early = Early::new(protocols, |server| server).await;
            let get = early.get_polled_once().await;
            drop(get);
            let large = "x".repeat(2000);
            let mut post = early.client.post("/echo").body(large).send().await.unwrap();
            post.text().await.unwrap();
            let early_data = early.server.counts().early_bytes;
            let requests: Vec<_> = early.server.seen().into_iter().map(|s| s.method).collect();
            assert_eq!(requests, ["GET", "POST"]);
            // On HTTP/2 the preface may travel early; it asks for nothing.
            assert!(early_data < 120, "{early_data} bytes came early");
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_else_is_let_onto_a_connection_whose_handshake_is_open() {
    in_time(async {
        for protocols in common::BOTH {
            let early = Early::new(protocols, |server| server).await;
            let get = early.client.get("/").send();
            let posts = (0..20).map(|n| early.client.post("/echo").body(format!("{n}")).send());
            let (get, posts) = tokio::join!(get, common::join_all(posts));
            assert_eq!(get.unwrap().status(), 200);
            for post in posts {
                let mut post = post.unwrap();
                post.text().await.unwrap();
                check(&post);
            }
            // A GET of this size and the preface are all that was early.
            let bytes = early.server.counts().early_bytes;
            assert!((1..600).contains(&bytes), "{bytes} bytes came early");
            let seen = early.server.seen();
            assert_eq!(seen.len(), 22);
        }
    })
    .await;
}

#[tokio::test]
async fn status_425_is_the_callers_unless_the_request_itself_was_early() {
    in_time(async {
        for protocols in common::BOTH {
            let answer = |request: http::Request<bytes::Bytes>| match request.uri().path() {
                "/late" => support::server::Reply::status(425),
                _ => support::server::Reply::ok(),
            };
            let early = Early::new(protocols, |server| server.handler(answer)).await;
            let first = early.get().await;
            assert_eq!(outcome(&first), EarlyData::Accepted);
            drop(first);
            // The connection was born early, and is an ordinary one now.
            let late = early.client.post("/late").body("x").send().await.unwrap();
            assert_eq!((late.status().as_u16(), late.metrics().attempts), (425, 1));
            drop(late);
            early.forget_connections().await;
            // An early request to a server that always says so: once more, and then it is the answer.
            let twice = early.client.get("/late").send().await.unwrap();
            assert_eq!(
                (twice.status().as_u16(), twice.metrics().attempts),
                (425, 2)
            );
            let paths = early.server.seen();
            let late = paths.iter().filter(|s| s.uri.path() == "/late").count();
            assert_eq!(late, 3);
            let stats = early.pool.stats();
            assert_eq!(stats.resumed as usize, early.server.counts().tls_resumed);
            assert!(stats.resumed < stats.tls_connections);
        }
    })
    .await;
}

#[tokio::test]
async fn body_beyond_what_the_ticket_allows_goes_on_after_the_handshake() {
    in_time(async {
        for protocols in common::BOTH {
            for budget in [1, 100, 4096] {
                let early = Early::with_budget(protocols, budget, |server| server).await;
                let body = "x".repeat(1_000_000);
                let request = early.client.post("/echo").body(body.clone());
                let mut response = request.idempotent(true).send().await.unwrap();
                let echoed = response.text().await.unwrap();
                assert!(echoed.contains(&body), "{budget}");
                assert_eq!(outcome(&response), EarlyData::Accepted);
                check(&response);
                let bytes = early.server.counts().early_bytes;
                assert!((1..=budget as usize).contains(&bytes), "{bytes}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn impostor_is_told_of_even_if_it_shows_in_the_middle_of_a_write() {
    in_time(async {
        for protocols in common::BOTH {
            let mut early = Early::with_budget(protocols, 100, |server| server).await;
            let forgetful: Arc<dyn StoresServerSessions> = ServerSessionMemoryCache::new(64);
            let impostor = config(&Pki::new(), BOTH_ALPN, &forgetful);
            early.replace(Server::builder().tls_config(impostor)).await;
            let request = early.client.post("/").body("x".repeat(1_000_000));
            let error = request.idempotent(true).send().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
            assert!(error.to_string().contains("certificate"), "{error}");
            assert_eq!(error.replay_safety(), ReplaySafety::MaybeProcessed);
            eventually("it is closed", || early.pool.stats().open == 0).await;
        }
    })
    .await;
}

#[tokio::test]
async fn server_that_ignores_alpn_is_no_change_of_protocol() {
    in_time(async {
        let mut early = Early::new(Protocols::Http2PriorKnowledge, |server| server).await;
        let none = || Server::builder().tls_config(config(&early.pki, &[], &early.storage));
        let server = none();
        early.replace(server).await;
        for expected in [EarlyData::Rejected, EarlyData::Accepted] {
            let response = early.get().await;
            let what = outcome(&response);
            assert!(what == expected || what == EarlyData::Accepted, "{what:?}");
            assert_eq!(response.metrics().attempts, 1);
            drop(response);
            early.forget_connections().await;
        }
        assert_eq!(early.server.seen().len(), 2, "each once");
    })
    .await;
}

#[tokio::test]
async fn get_that_is_not_polled_does_not_hold_up_its_origin() {
    in_time(async {
        for protocols in common::BOTH {
            let early = Early::new(protocols, |server| server).await;
            let get = early.get_polled_once().await;
            let timeouts = firstbyte::Timeouts::default()
                .queue(std::time::Duration::from_secs(3))
                .connect(std::time::Duration::from_secs(3));
            let post = early.client.post("/echo").body("x").timeouts(timeouts);
            let mut post = post.send().await.unwrap();
            post.text().await.unwrap();
            assert_eq!(get.await.unwrap().status(), 200);
            assert_eq!(early.server.seen().len(), 3);
        }
    })
    .await;
}

#[tokio::test]
async fn address_that_stalls_under_early_data_is_closed_and_held_against() {
    in_time(async {
        for protocols in common::BOTH {
            let mut early = Early::new(protocols, |server| server).await;
            let addr = early.server.addr();
            early.server.stop();
            let silent = support::stall::Stall::accept_silent_at(addr);
            let timeouts =
                firstbyte::Timeouts::default().first_byte(std::time::Duration::from_millis(100));
            let request = early.client.get("/").timeouts(timeouts);
            let error = request.send().await.unwrap_err();
            assert!(error.is_timeout(), "{error}");
            assert_eq!(error.replay_safety(), ReplaySafety::MaybeProcessed);
            early.pool.close_idle();
            eventually("nothing is left of it", || early.pool.stats().open == 0).await;
            drop(silent);
            let again = config(&early.pki, BOTH_ALPN, &early.storage);
            early.server = Server::builder()
                .tls_config(again)
                .host("api.test")
                .bind(addr)
                .start()
                .await;
            early.get().await;
        }
    })
    .await;
}

#[test]
fn early_data_without_tickets_is_refused_by_build() {
    let tls = TlsOptions::new().resumption(false).early_data(true);
    let error = ConnectionPool::builder().tls(tls).build().unwrap_err();
    assert!(error.is_invalid(), "{error}");
}
