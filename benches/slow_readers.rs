//! What readers that do not keep up cost the others on their connection: small requests over a connection that
//! fifty slow readers share, and over one of their own, in turns.
//!
//! `cargo bench --bench slow_readers` prints both distributions and their ratios.

mod common;

use std::time::{Duration, Instant};

use firstbyte::{Client, Http2Options, Protocols};

use common::support::pki::Pki;
use common::support::server::{Reply, Server};
use common::{HOST, get, loopback, on_own_thread, runtime};

const READERS: usize = 50;
/// A reader takes a piece of its response so often.
const PAUSE: Duration = Duration::from_millis(20);
const BODY: usize = 64 * 1024 * 1024;
const ROUNDS: usize = 100;
const REQUESTS: usize = 200;

fn main() {
    // `cargo test --benches` and `cargo bench -- NAME` call every bench.
    if std::env::args()
        .skip(1)
        .any(|argument| argument == "--test" || !argument.starts_with('-'))
    {
        return;
    }
    let runtime = runtime();
    let [alone, beside] = runtime.block_on(measure());
    println!(
        "slow_readers: {READERS} readers, {} requests each",
        alone.len()
    );
    println!(
        "{:>10} {:>12} {:>12} {:>7}",
        "", "alone, us", "beside, us", "ratio"
    );
    for (name, part) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)] {
        let at = |all: &[Duration]| all[(all.len() as f64 * part) as usize].as_secs_f64() * 1e6;
        let (alone, beside) = (at(&alone), at(&beside));
        let ratio = beside / alone;
        println!("{name:>10} {alone:>12.1} {beside:>12.1} {ratio:>7.3}");
    }
}

async fn measure() -> [Vec<Duration>; 2] {
    let pki = Pki::new();
    let root = pki.ca_der();
    let server = on_own_thread(move || {
        let big = bytes::Bytes::from(vec![0; BODY]);
        let server = Server::builder().tls(&pki, &[HOST]);
        server
            .handler(move |request| match request.uri().path() {
                "/big" => Reply::ok().body(big.clone()),
                _ => Reply::ok().body("hello"),
            })
            .start()
    });
    // Fifty full windows are below what one connection bears before it cuts the slowest off.
    let http2 = Http2Options::default()
        .max_connections_per_origin(1)
        .stream_window(1024 * 1024);
    let client = || {
        let tls = firstbyte::tls::TlsOptions::new();
        let pool = loopback(HOST)
            .tls(tls.builtin_roots(false).add_root(root.clone()))
            .http2(http2.clone());
        let pool = pool.build().expect("valid options");
        let client = pool.client_builder(server.url("/"));
        client
            .protocols(Protocols::Http2)
            .build()
            .expect("a valid URL")
    };
    let (alone, beside) = (client(), client());
    get(&alone).await;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut response = beside
            .get("/big")
            .send()
            .await
            .expect("the server is sound");
        readers.push(tokio::spawn(async move {
            while response.chunk().await.expect("nobody is cut off").is_some() {
                tokio::time::sleep(PAUSE).await;
            }
        }));
    }
    // Until the windows of all readers are full.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut taken = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (client, taken) in [&alone, &beside].into_iter().zip(&mut taken) {
            for _ in 0..REQUESTS {
                taken.push(time(client).await);
            }
        }
    }
    assert!(readers.iter().all(|reader| !reader.is_finished()));
    for reader in readers {
        reader.abort();
    }
    for taken in &mut taken {
        taken.sort_unstable();
    }
    taken
}

async fn time(client: &Client) -> Duration {
    let start = Instant::now();
    get(client).await;
    start.elapsed()
}
