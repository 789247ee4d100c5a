//! A system without room for one more socket: a connection that nobody uses makes room, once.

mod common;
mod support;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use common::in_time;
use firstbyte::io::{BoxFuture, Dial, DialTarget, Transport};
use firstbyte::tls::TlsOptions;
use firstbyte::{Client, CloseReason, ConnectionPool, ErrorKind, Phase, Protocols, ReplaySafety};
use support::pki::Pki;
use support::server::{Reply, Server};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const EMFILE: i32 = 24;

/// Gives out as many sockets as there are descriptors.
#[derive(Clone)]
struct Descriptors {
    server: SocketAddr,
    free: Arc<AtomicUsize>,
}

impl Dial for Descriptors {
    fn dial(&self, _: DialTarget) -> BoxFuture<'static, io::Result<Transport>> {
        let this = self.clone();
        Box::pin(async move {
            let take = |n: usize| n.checked_sub(1);
            let taken = this
                .free
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
            if taken.is_err() {
                return Err(io::Error::from_raw_os_error(EMFILE));
            }
            let held = Held(this.free.clone());
            let tcp = TcpStream::connect(this.server).await?;
            Ok(Transport::custom(Socket { tcp, _held: held }))
        })
    }
}

/// One descriptor.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Socket {
    tcp: TcpStream,
    _held: Held,
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

struct World {
    server: Server,
    pool: ConnectionPool,
    free: Arc<AtomicUsize>,
}

const NAMES: [&str; 5] = ["a.test", "b.test", "c.test", "d.test", "e.test"];

async fn world(descriptors: usize) -> World {
    let pki = Pki::new();
    let server = Server::builder()
        .tls(&pki, &NAMES)
        .handler_async(|_| async { Reply::ok().body("hello") })
        .start()
        .await;
    let free = Arc::new(AtomicUsize::new(descriptors));
    let mut pool = ConnectionPool::builder()
        .tls(
            TlsOptions::new()
                .builtin_roots(false)
                .add_root(pki.ca_der()),
        )
        .dialer(Descriptors {
            server: server.addr(),
            free: free.clone(),
        });
    for name in NAMES {
        pool = pool.resolve_to(name, ["127.0.0.1".parse().unwrap()]);
    }
    World {
        server,
        pool: pool.build().unwrap(),
        free,
    }
}

fn client(world: &World, name: &str, protocols: Protocols) -> Client {
    let url = format!("https://{name}:{}/", world.server.port());
    let builder = world.pool.client_builder(url).protocols(protocols);
    builder.build().unwrap()
}

#[tokio::test]
async fn idle_connection_of_whichever_origin_makes_room() {
    in_time(async {
        for protocols in common::BOTH {
            let world = world(2).await;
            for name in NAMES {
                let mut response = client(&world, name, protocols)
                    .get("/")
                    .send()
                    .await
                    .unwrap();
                assert_eq!(response.text().await.unwrap(), "hello", "{name}");
                assert_eq!(response.metrics().attempts, 1);
            }
            let closed = world.pool.stats().closed;
            assert_eq!(closed.get(&CloseReason::MadeRoom), Some(&3), "{closed:?}");
            assert_eq!(world.pool.stats().open, 2);
        }
    })
    .await;
}

#[tokio::test]
async fn without_an_idle_one_the_error_says_so_and_the_pool_recovers() {
    in_time(async {
        for protocols in common::BOTH {
            let world = world(2).await;
            // Both are in use: their bodies are not read.
            let held = [
                client(&world, "a.test", protocols)
                    .get("/")
                    .send()
                    .await
                    .unwrap(),
                client(&world, "b.test", protocols)
                    .get("/")
                    .send()
                    .await
                    .unwrap(),
            ];
            let third = client(&world, "c.test", protocols);
            let error = third.post("/").body("x").send().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
            assert_eq!(error.phase(), Some(Phase::Tcp));
            assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
            assert!(error.is_connect() && error.timing().is_some());
            drop(held);
            common::eventually("one is closed or idle", || {
                world.free.load(Ordering::SeqCst) > 0 || world.pool.stats().idle > 0
            })
            .await;
            let response = third.post("/").body("x").send().await.unwrap();
            assert_eq!(response.status(), 200);
        }
    })
    .await;
}

/// Runs a test once more in a process of its own, since the limit is the process's, and there does this.
#[cfg(target_os = "linux")]
fn with_few_descriptors(test: &str, act: impl Future<Output = ()>) {
    const INSIDE: &str = "FIRSTBYTE_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(INSIDE).is_some() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        return runtime.block_on(in_time(act));
    }
    let exe = std::env::current_exe().unwrap();
    let script = format!("ulimit -n 64; exec \"$0\" --exact {test} --nocapture");
    let mut child = std::process::Command::new("sh");
    child.args(["-c", &script]).arg(exe).env(INSIDE, "1");
    let ran = child.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let failed = String::from_utf8_lossy(&ran.stderr);
    assert!(
        ran.status.success() && said.contains("1 passed"),
        "{said}{failed}"
    );
}

/// Takes every descriptor that is left.
#[cfg(target_os = "linux")]
fn take_all() -> Vec<std::fs::File> {
    std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect()
}

#[cfg(target_os = "linux")]
#[test]
fn unix_socket_gets_the_descriptor_of_an_idle_connection() {
    let test = "unix_socket_gets_the_descriptor_of_an_idle_connection";
    with_few_descriptors(test, without_descriptors());
}

/// To ask a name server takes a descriptor too.
#[cfg(target_os = "linux")]
#[test]
fn look_up_gets_the_descriptor_of_an_idle_connection() {
    let test = "look_up_gets_the_descriptor_of_an_idle_connection";
    with_few_descriptors(test, look_up_without_descriptors());
}

#[cfg(target_os = "linux")]
async fn look_up_without_descriptors() {
    use common::World;

    let world = World::new().await;
    let client = world.client(Protocols::Http1);
    for response in common::join_all((0..2).map(|_| client.get("/").send())).await {
        response.unwrap().bytes().await.unwrap();
    }
    world.dns.v4("c.test", &["127.0.0.1"]);
    let refused = world.client_of("http://c.test:9", Protocols::Http1);
    let other = world.client_of(&world.other_url(), Protocols::Http1);
    let rest = take_all();
    // It gets as far as an address: the idle connections' descriptors were free to ask with, one for each family.
    let error = refused.get("/").send().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert_eq!(world.pool.stats().closed[&CloseReason::MadeRoom], 2);
    // Nothing is idle any more: whatever descriptor is left for a moment is taken.
    let more = take_all();
    let error = other.get("/").send().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    assert_eq!(error.phase(), Some(Phase::Dns));
    drop((rest, more));
    // It says nothing about the name.
    let response = other.get("/").send().await.unwrap();
    assert_eq!(response.status(), 200);
}

#[cfg(target_os = "linux")]
async fn without_descriptors() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let path = std::env::temp_dir().join(format!("firstbyte-few-{}", std::process::id()));
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let pool = ConnectionPool::new();
    let client = |name: &str| {
        let builder = pool.client_builder(format!("http://{name}"));
        builder.unix_socket(&path).build().unwrap()
    };
    let serve = async |close: Option<tokio::net::UnixStream>, length: u32| {
        drop(close);
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 1000]).await.unwrap() > 0);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream
    };
    let (a, b) = (client("a.test"), client("b.test"));
    let (answer, server) = tokio::join!(a.get("/").send(), serve(None, 0));
    answer.unwrap();
    let rest = take_all();
    let dial = b.get("/").send();
    let (answer, _server) = tokio::join!(dial, async {
        common::eventually("the idle one has made room", || {
            pool.stats().closed.contains_key(&CloseReason::MadeRoom)
        })
        .await;
        // Its body does not come: it stays in use.
        serve(Some(server), 1).await
    });
    let held = answer.unwrap();
    assert_eq!(held.metrics().attempts, 1);
    let error = client("c.test").get("/").send().await;
    drop(rest);
    std::fs::remove_file(&path).unwrap();
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
}
