//! How long a request takes to come to a warm connection: the `queue` phase of a request that waits
//! for nobody, all of it local work.
//!
//! It holds the look-up of the origin, the lease, and on HTTP/1.1 the look at the socket whether the
//! peer has closed it. The rest of the request does not count.

mod common;

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use firstbyte::{ConnectionPool, Protocols};

use common::{World, get, runtime};

fn checkout(c: &mut Criterion) {
    let mut group = c.benchmark_group("checkout");
    for origins in [1, 1000] {
        measure(&mut group, "h2", Protocols::Http2, origins);
        measure(&mut group, "h1", Protocols::Http1, origins);
    }
    group.finish();
}

fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    protocol: &str,
    protocols: Protocols,
    origins: usize,
) {
    let runtime = runtime();
    let world = World::tls();
    let client = world.client(protocols);
    runtime.block_on(async {
        get(&client).await;
        register(&world.pool, origins - 1).await;
    });
    let plural = if origins == 1 { "" } else { "s" };
    group.bench_function(format!("{protocol}_{origins}_origin{plural}"), |bencher| {
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
