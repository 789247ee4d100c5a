//! A canary key is put wherever keys go; whatever can be printed is searched for it.

mod common;
mod support;

use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{World, in_time};
use firstbyte::{Client, Protocols, Response};
use support::dns::{Family, Reply as DnsReply};
use support::h1_peer::H1Peer;
use support::server::Reply;
use support::stall::Stall;

const CANARY: &str = "sk-canary-4f8a1c";

/// Keeps every line of every crate's log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Everything that was printed.
#[derive(Default)]
struct Printed(String);

impl Printed {
    fn add(&mut self, what: &str, text: String) {
        let _ = writeln!(self.0, "{what}: {text}");
    }

    fn error(&mut self, error: &firstbyte::Error) {
        self.add("error", format!("{error} {error:?} {error:#?}"));
        let mut source = error.source();
        while let Some(cause) = source {
            self.add("cause", format!("{cause} {cause:?}"));
            source = cause.source();
        }
        self.add("timing", format!("{:?}", error.timing()));
    }

    fn response(&mut self, response: &Response) {
        self.add("response", format!("{response:?}"));
        self.add("connection", format!("{:?}", response.connection()));
        self.add(
            "metrics",
            format!("{:?} {:?}", response.metrics(), response.timing()),
        );
    }
}

fn with_keys(world: &World, url: &str, protocols: Protocols) -> Client {
    let separator = if url.contains('?') { '&' } else { '?' };
    world
        .pool
        .client_builder(format!("{url}{separator}key={CANARY}-base"))
        .protocols(protocols)
        .bearer_auth(format!("{CANARY}-bearer"))
        .header("x-api-key", format!("{CANARY}-api"))
        .header("x-goog-api-key", format!("{CANARY}-goog"))
        .header("cookie", format!("session={CANARY}-cookie"))
        .build()
        .unwrap()
}

async fn succeed_and_fail(world: &World, printed: &mut Printed) {
    let silent = Stall::accept_silent();
    let refused = Stall::refused_addr();
    world.dns.reply("gone.test", Family::V4, DnsReply::NxDomain);
    for protocols in [Protocols::Http1, Protocols::Http2] {
        let client = with_keys(world, &world.server.url("/"), protocols);
        printed.add("client", format!("{client:?}"));
        let request = client
            .get("/x")
            .query([("token", format!("{CANARY}-query"))]);
        printed.add("request", format!("{request:?}"));
        let mut response = request.send().await.unwrap();
        response.bytes().await.unwrap();
        printed.response(&response);
        let rejected = client.get("/fail").send().await.unwrap();
        printed.error(&rejected.error_for_status().unwrap_err());
        let cut = client.get("/cut").send().await.unwrap().bytes().await;
        printed.error(&cut.unwrap_err());
        let hold = client
            .get("/hold")
            .timeout(Duration::from_millis(30))
            .send();
        printed.error(&hold.await.unwrap_err());
        let other = client.get(format!("https://elsewhere.test/?key={CANARY}-other"));
        printed.error(&other.send().await.unwrap_err());
        for url in [
            format!("https://{refused}/"),
            "https://gone.test/".to_owned(),
            format!("https://{}/", silent.addr()),
        ] {
            let client = with_keys(world, &url, protocols);
            let request = client.get("/").timeout(Duration::from_millis(200)).send();
            printed.error(&request.await.unwrap_err());
        }
        let bad = client
            .get("/")
            .header("x-api-key", format!("{CANARY}-bad\r\nx: y"))
            .send();
        printed.error(&bad.await.unwrap_err());
    }
    let client = with_keys(world, &world.server.url("/"), Protocols::Auto);
    for path in ["/echo", "/echo-json"] {
        let mut response = client.get(path).send().await.unwrap();
        printed.error(&response.json::<u32>().await.unwrap_err());
    }
    let build = || {
        let builder = world
            .pool
            .client("name", world.server.url(&format!("/?key={CANARY}-named")));
        builder.bearer_auth(format!("{CANARY}-one"))
    };
    printed.add("builder", format!("{:?}", build()));
    build().build().unwrap();
    let different = build().timeout(Duration::from_secs(1)).build().unwrap_err();
    printed.error(&different);
    printed.add(
        "pool",
        format!("{:?} {:#?}", world.pool, world.pool.stats()),
    );
    printed.add("connections", format!("{:?}", world.pool.connections()));
}

#[test]
fn keys_never_show_in_what_we_print_nor_in_any_crates_log() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let mut printed = Printed::default();
    // The server lives on another thread, so that the log is that of the client's side alone.
    let servers = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let world = servers.block_on(servers.spawn(async {
        World::with(
            |server| {
                server.handler(|request| match request.uri().path() {
                    "/fail" => Reply::status(401),
                    // What a careless provider says of a key that it refuses.
                    "/echo" => Reply::ok().body(format!("bad key: {CANARY}-bearer is not known")),
                    "/echo-json" => Reply::ok().body(format!("\"{CANARY}-bearer\"")),
                    "/cut" => Reply::ok().body(vec![b'x'; 1000]).cut_after(10),
                    "/hold" => Reply::ok().delay(Duration::from_secs(3600)),
                    _ => Reply::ok().body("hello"),
                })
            },
            |pool| pool,
        )
        .await
    }));
    let world = world.unwrap();
    let client_side = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tracing::subscriber::with_default(subscriber, || {
        client_side.block_on(in_time(succeed_and_fail(&world, &mut printed)));
    });
    let log = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(
        log.contains("h2::") && log.len() > 10_000,
        "the log was really taken"
    );
    for (name, text) in [("print", &printed.0), ("log", &log)] {
        let leaks: Vec<_> = text
            .lines()
            .filter(|line| line.contains(CANARY))
            .take(5)
            .collect();
        assert!(
            leaks.is_empty(),
            "{name} shows a key:\n{}",
            leaks.join("\n")
        );
    }
    let seen = world.server.seen();
    let sent = seen
        .iter()
        .any(|s| s.headers["authorization"] == format!("Bearer {CANARY}-bearer"));
    assert!(sent, "the keys were really sent");
}

/// What came over a connection that left HTTP, its response head included, is its user's.
#[tokio::test]
async fn upgraded_connection_prints_none_of_its_bytes() {
    in_time(async {
        let peer = H1Peer::start(|mut conn, _| async move {
            conn.read_head().await;
            let head =
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: test\r\nconnection: upgrade\r\n";
            let head = format!("{head}set-cookie: s={CANARY}\r\n\r\n{CANARY}");
            conn.send(head).await;
            conn.closed_by_client().await;
        });
        let pool = firstbyte::ConnectionPool::new();
        let client = pool.client_builder(format!("http://{}", peer.addr()));
        let client = client.protocols(Protocols::Http1).build().unwrap();
        let get = client
            .get("/")
            .header("connection", "upgrade")
            .header("upgrade", "test");
        let upgraded = get.send().await.unwrap().upgrade().unwrap();
        let printed = format!("{upgraded:?} {upgraded:#?}");
        // A string, or numbers.
        assert!(
            !printed.contains("canary") && !printed.contains("99, 97"),
            "{printed}"
        );
    })
    .await;
}
