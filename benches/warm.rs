//! From having a warm connection to the first byte of the response, by the library's own timing.
//!
//! TLS over loopback. The time holds the request's way through client, kernel and server and the
//! answer's way back; how the request came to the connection is `checkout`'s.

mod common;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use firstbyte::{Client, Protocols, RequestBuilder, RequestTiming};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use common::{World, get, on_own_thread, runtime};

/// What a small prompt amounts to.
const PROMPT: &[u8] = &[b'x'; 2048];
/// Streams at once on one HTTP/2 connection: below the 80 of 100 at which the pool dials a spare
/// one to a peer that it knows nothing of yet.
const IN_FLIGHT: u32 = 64;

type Make = fn(&Client) -> RequestBuilder;

fn get_request(client: &Client) -> RequestBuilder {
    client.get("/")
}

fn post_2k(client: &Client) -> RequestBuilder {
    client
        .post("/")
        .header("content-type", "application/json")
        .body(PROMPT)
}

fn warm(c: &mut Criterion) {
    let mut group = c.benchmark_group("warm");
    loopback_echo(&mut group);
    alone(&mut group, "h2_get", Protocols::Http2, get_request);
    alone(&mut group, "h2_post_2k", Protocols::Http2, post_2k);
    alone(&mut group, "h1_get", Protocols::Http1, get_request);
    alone(&mut group, "h1_post_2k", Protocols::Http1, post_2k);
    latency_in_flight(&mut group);
    throughput_in_flight(&mut group);
    group.finish();
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// What everything else here is to be compared with: a byte to a bare echo server and back, over the
/// same kernel and between the same kind of threads.
fn loopback_echo(group: &mut Group<'_>) {
    let runtime = runtime();
    let addr = on_own_thread(|| async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port is free");
        let addr = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.expect("the bench connects");
            tcp.set_nodelay(true).expect("a socket");
            while let Ok(byte) = tcp.read_u8().await {
                tcp.write_u8(byte).await.expect("the bench reads");
            }
        });
        addr
    });
    let mut tcp = runtime
        .block_on(TcpStream::connect(addr))
        .expect("it listens");
    tcp.set_nodelay(true).expect("a socket");
    group.bench_function("loopback_echo", |bencher| {
        bencher.iter_custom(|iterations| {
            let start = Instant::now();
            runtime.block_on(async {
                for _ in 0..iterations {
                    tcp.write_u8(0).await.expect("the echo reads");
                    tcp.read_u8().await.expect("the echo writes");
                }
            });
            start.elapsed()
        });
    });
}

/// One request after the other.
fn alone(group: &mut Group<'_>, name: &str, protocols: Protocols, make: Make) {
    let runtime = runtime();
    let world = World::tls();
    let client = world.client(protocols);
    runtime.block_on(get(&client));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| runtime.block_on(exchanges(&client, make, iterations)));
    });
    assert_eq!(
        world.pool.stats().connections_created,
        1,
        "{name}: always the same connection"
    );
}

/// The mean over all requests while 64 are in flight.
fn latency_in_flight(group: &mut Group<'_>) {
    in_flight(
        group,
        "h2_get_64_in_flight",
        |runtime, client, iterations| {
            runtime.block_on(async { crowd(client, iterations).await / IN_FLIGHT })
        },
    );
}

/// The time that 64 requests at once take together.
fn throughput_in_flight(group: &mut Group<'_>) {
    group.throughput(Throughput::Elements(u64::from(IN_FLIGHT)));
    in_flight(
        group,
        "h2_get_64_requests",
        |runtime, client, iterations| {
            let start = Instant::now();
            runtime.block_on(crowd(client, iterations));
            start.elapsed()
        },
    );
}

fn in_flight(
    group: &mut Group<'_>,
    name: &str,
    run: impl Fn(&tokio::runtime::Runtime, &Client, u64) -> Duration,
) {
    let runtime = runtime();
    let world = World::tls();
    let client = world.client(Protocols::Http2);
    runtime.block_on(get(&client));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| run(&runtime, &client, iterations));
    });
    assert_eq!(
        world.pool.stats().connections_created,
        1,
        "{name}: always the same connection"
    );
}

/// 64 at it at once, each with one request after the other; the sum of their times.
async fn crowd(client: &Client, iterations: u64) -> Duration {
    let mut tasks = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let client = client.clone();
        tasks.spawn(async move { exchanges(&client, get_request, iterations).await });
    }
    tasks.join_all().await.into_iter().sum()
}

/// The sum of the times from connection to first byte.
async fn exchanges(client: &Client, make: Make, iterations: u64) -> Duration {
    let mut sum = Duration::ZERO;
    for _ in 0..iterations {
        let mut response = make(client).send().await.expect("the peer is sound");
        response.bytes().await.expect("the peer is sound");
        sum += to_first_byte(&response.timing());
    }
    sum
}

/// The phases send and wait.
fn to_first_byte(timing: &RequestTiming) -> Duration {
    let sent_and_waited = timing
        .send()
        .zip(timing.wait())
        .map(|(send, wait)| send + wait);
    sent_and_waited.expect("a response has come")
}

criterion_group! {
    name = benches;
    config = common::criterion();
    targets = warm
}
criterion_main!(benches);
