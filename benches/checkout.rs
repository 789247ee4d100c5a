//! How long a request takes to come to a warm connection, all of it local work.
//!
//! `checkout/lease/*`: a lease taken and given back, over and over, on connections of memory: no kernel, no request.
//! By number of origins, and by number of threads, each with an origin of its own or all on one. On HTTP/1.1 it looks
//! twice whether the peer has said something: when the connection comes back, and before it is used again. There the
//! stream is one that answers at once, so that what is measured is ours.
//!
//! `checkout/request/*`: the `queue` phase of real requests over TLS on loopback, which find the same code and data cold
//! in the processor's caches, and on HTTP/1.1 ask the socket.

mod common;

use std::io;
use std::pin::Pin;
use std::sync::Barrier;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use firstbyte::io::{BoxFuture, Dial, DialTarget, Transport};
use firstbyte::{Client, ConnectionPool, Limits, Protocols};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};

use common::support::sim::{self, Sim, plain};
use common::{World, get, runtime};

const BOTH: [(&str, Protocols); 2] = [("h1", Protocols::Http1), ("h2", Protocols::Http2)];
/// As many as origins can be given to a thread each.
const MAX_THREADS: usize = 8;

fn checkout(c: &mut Criterion) {
    let mut group = c.benchmark_group("checkout");
    for (name, protocols) in BOTH {
        for origins in [1, 1_000, 100_000] {
            let warm = Warm::new(protocols, 1);
            warm.runtime.block_on(register(&warm.pool, origins - 1));
            group.bench_function(format!("lease/{name}/origins_{origins}"), |bencher| {
                let _on = warm.runtime.enter();
                let at = Instant::now();
                bencher.iter(|| take(&warm.clients[0], at));
            });
        }
        for threads in [1, 2, 4, 8] {
            let warm = Warm::new(protocols, threads);
            group.bench_function(format!("lease/{name}/threads_{threads}_apart"), |bencher| {
                bencher.iter_custom(|iterations| warm.on_threads(threads, iterations, |n| n));
            });
        }
    }
    // One connection that all threads share.
    for threads in [2, 8] {
        let warm = Warm::new(Protocols::Http2, 1);
        group.bench_function(format!("lease/h2/threads_{threads}_on_one"), |bencher| {
            bencher.iter_custom(|iterations| warm.on_threads(threads, iterations, |_| 0));
        });
    }
    for (name, protocols) in BOTH {
        in_requests(&mut group, name, protocols);
    }
    group.finish();
}

fn take(client: &Client, at: Instant) {
    let took = client.__check_out(at).expect("the pool is open");
    assert!(took, "the connection is warm");
}

/// A warm connection to each of some origins, on a runtime whose one worker has nothing to do.
struct Warm {
    runtime: Runtime,
    pool: ConnectionPool,
    clients: Vec<Client>,
}

impl Warm {
    fn new(protocols: Protocols, origins: usize) -> Self {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build();
        let runtime = runtime.expect("the system has threads left");
        let sim = Sim::silent(protocols);
        let pool = sim.pool(|mut pool| {
            for n in 0..MAX_THREADS {
                pool = pool.resolve_to(&host(n), [[127, 0, 0, 1].into()]);
            }
            // Each lease is taken and given back at the time at which the bench began.
            pool = pool.limits(Limits::default().keepalive_expiry(Duration::from_secs(3600)));
            if protocols == Protocols::Http1 {
                pool = pool.dialer(Quiet::default());
            }
            pool
        });
        let clients: Vec<_> = (0..origins)
            .map(|n| sim::client_of(&pool, &host(n), plain(protocols)))
            .collect();
        for client in &clients {
            let report = runtime.block_on(client.warm(1)).expect("a runtime");
            assert_eq!(report.ready(), 1, "{:?}", report.error);
        }
        Self {
            runtime,
            pool,
            clients,
        }
    }

    /// The time until each of so many threads has taken and given back as often.
    fn on_threads(
        &self,
        threads: usize,
        iterations: u64,
        client_of: impl Fn(usize) -> usize,
    ) -> Duration {
        let barrier = Barrier::new(threads + 1);
        thread::scope(|scope| {
            let running: Vec<_> = (0..threads)
                .map(|n| {
                    let client = &self.clients[client_of(n)];
                    let barrier = &barrier;
                    scope.spawn(move || {
                        let _on = self.runtime.enter();
                        barrier.wait();
                        let at = Instant::now();
                        for _ in 0..iterations {
                            take(client, at);
                        }
                    })
                })
                .collect();
            barrier.wait();
            let began = Instant::now();
            for thread in running {
                thread.join().expect("no thread panics");
            }
            began.elapsed()
        })
    }
}

/// A peer that never says anything, and who dials it. Asked without a lock, unlike a pipe of tokio's.
#[derive(Clone, Debug, Default)]
struct Quiet {
    reader: Option<Waker>,
}

impl Dial for Quiet {
    fn dial(&self, _: DialTarget) -> BoxFuture<'static, io::Result<Transport>> {
        Box::pin(async { Ok(Transport::custom(Self::default())) })
    }
}

impl AsyncRead for Quiet {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl AsyncWrite for Quiet {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn host(n: usize) -> String {
    format!("h{n}.test")
}

/// The `queue` phase of requests that wait for nobody.
fn in_requests(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, protocols: Protocols) {
    let runtime = runtime();
    let world = World::tls();
    let client = world.client(protocols);
    runtime.block_on(async {
        get(&client).await;
    });
    group.bench_function(format!("request/{name}"), |bencher| {
        bencher.iter_custom(|iterations| {
            runtime.block_on(async {
                let mut sum = Duration::ZERO;
                for _ in 0..iterations {
                    let response = get(&client).await;
                    assert!(response.connection_use().is_reused());
                    let timing = response.timing();
                    sum += timing.queue_local().expect("the request was attempted");
                }
                sum
            })
        });
    });
}

/// Makes the pool know further origins, without a connection to any.
async fn register(pool: &ConnectionPool, origins: usize) {
    for n in 0..origins {
        let origin = format!("https://{n}.{}", common::HOST);
        let report = pool.warm(origin.as_str(), 0).await.expect("a valid origin");
        assert!(report.error.is_none() && report.ready() == 0);
    }
}

criterion_group! {
    name = benches;
    config = common::criterion();
    targets = checkout
}
criterion_main!(benches);
