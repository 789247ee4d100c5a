//! What each phase of setting a connection up takes, by the library's own timing.
//!
//! Every iteration opens a connection, sends one request over it and closes it; only the phase that
//! the bench is named after counts.

mod common;

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use firstbyte::dns::DnsOptions;
use firstbyte::timing::DnsSource;
use firstbyte::tls::TlsOptions;
use firstbyte::{Client, ConnectionPool, ConnectionTrace, Phase, Protocols};

use common::support::dns::{DnsServer, Family};
use common::{HOST, World, get, on_own_thread, runtime};

fn phases(c: &mut Criterion) {
    let mut group = c.benchmark_group("phases");
    dns_cached(&mut group);
    dns_refreshing(&mut group);
    dns_uncached(&mut group);
    tcp_connect(&mut group);
    tls_full(&mut group);
    tls_resumed(&mut group);
    group.finish();
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn dns_cached(group: &mut Group<'_>) {
    let dns = name_server(60);
    let world = World::plain(asking(&dns));
    measure(
        group,
        "dns_cached",
        &world,
        Protocols::Http1,
        Phase::Dns,
        |trace| source(trace) == DnsSource::Cache,
    );
}

/// Every look-up finds an answer whose time is over: it is used at once, and asked for anew behind it.
fn dns_refreshing(group: &mut Group<'_>) {
    let dns = name_server(1);
    let soon = Duration::from_nanos(1);
    let options = DnsOptions::default()
        .min_ttl(soon)
        .max_ttl(soon)
        .refresh_at_percent(None);
    let world = World::plain(asking_with(&dns, options));
    measure(
        group,
        "dns_stale_while_refreshing",
        &world,
        Protocols::Http1,
        Phase::Dns,
        |trace| source(trace) == DnsSource::Stale,
    );
}

fn dns_uncached(group: &mut Group<'_>) {
    let dns = name_server(0);
    let world = World::plain(asking(&dns));
    measure(
        group,
        "dns_uncached",
        &world,
        Protocols::Http1,
        Phase::Dns,
        |trace| source(trace) == DnsSource::Fresh,
    );
}

fn tcp_connect(group: &mut Group<'_>) {
    let world = World::plain(common::loopback(HOST));
    measure(
        group,
        "tcp_connect",
        &world,
        Protocols::Http1,
        Phase::Tcp,
        |_| true,
    );
}

fn tls_full(group: &mut Group<'_>) {
    let world = World::tls_with(TlsOptions::new().resumption(false));
    measure(
        group,
        "tls_full",
        &world,
        Protocols::Auto,
        Phase::Tls,
        |trace| !is_resumed(trace),
    );
}

fn tls_resumed(group: &mut Group<'_>) {
    let world = World::tls();
    measure(
        group,
        "tls_resumed",
        &world,
        Protocols::Auto,
        Phase::Tls,
        is_resumed,
    );
}

/// A name server that knows [`HOST`], both its families with this time to live.
fn name_server(ttl: u32) -> DnsServer {
    on_own_thread(move || async move {
        let dns = DnsServer::start().await;
        let loopback = "127.0.0.1".parse().expect("an address");
        dns.records(HOST, Family::V4, &[loopback], ttl);
        // AAAA is NODATA, which is kept as long as the SOA says.
        dns.negative_ttl(ttl);
        dns
    })
}

/// A pool that asks this name server, and forgets a "no such record" no sooner than an address.
fn asking(dns: &DnsServer) -> firstbyte::ConnectionPoolBuilder {
    asking_with(dns, DnsOptions::default())
}

fn asking_with(dns: &DnsServer, options: DnsOptions) -> firstbyte::ConnectionPoolBuilder {
    let longest = DnsOptions::default().max_ttl;
    ConnectionPool::builder()
        .name_servers([dns.addr()])
        .dns(options.negative_ttl(longest))
}

fn source(trace: &ConnectionTrace) -> DnsSource {
    trace
        .dns_facts
        .as_ref()
        .expect("a name was looked up")
        .source
}

fn is_resumed(trace: &ConnectionTrace) -> bool {
    trace.tls_facts.as_ref().expect("TLS was spoken").resumed
}

/// Measures one phase of a connection per iteration. `is_meant` says whether the connection came
/// about in the way that the bench is about; the first one need not.
fn measure(
    group: &mut Group<'_>,
    name: &str,
    world: &World,
    protocols: Protocols,
    phase: Phase,
    is_meant: impl Fn(&ConnectionTrace) -> bool,
) {
    let runtime = runtime();
    let client = world.client(protocols);
    runtime.block_on(open_and_close(&client, &world.pool, |_| ()));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            runtime.block_on(async {
                let mut sum = Duration::ZERO;
                for _ in 0..iterations {
                    sum += open_and_close(&client, &world.pool, |trace| {
                        assert!(is_meant(trace), "{name}: {trace:?}");
                        trace.get(phase).expect("the phase happened")
                    })
                    .await;
                }
                sum
            })
        });
    });
}

/// One request over a connection of its own, which is closed when this returns.
async fn open_and_close<T>(
    client: &Client,
    pool: &ConnectionPool,
    look: impl FnOnce(&ConnectionTrace) -> T,
) -> T {
    let response = get(client).await;
    let seen = look(response.connection().trace());
    drop(response);
    pool.close_idle();
    // The work of closing must not run into the next connection's phases.
    while pool.stats().open > 0 {
        tokio::task::yield_now().await;
    }
    seen
}

criterion_group! {
    name = benches;
    config = common::criterion();
    targets = phases
}
criterion_main!(benches);
