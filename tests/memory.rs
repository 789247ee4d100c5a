//! 100,000 origins touched once leave no entry, no timer, no task and no memory behind. A test alone in its process, so
//! that what is allocated is its own.

mod common;
mod support;

use std::time::Duration;

use common::eventually;
use firstbyte::{ConnectionPool, Limits};
use support::counting::{Counting, allocated};
use support::sim::Sim;
use tokio::runtime::Handle;
use tokio::time::sleep;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[tokio::test(start_paused = true)]
async fn hundred_thousand_origins_touched_once_leave_nothing_behind() {
    // The debug build takes ten times as long: `cargo test --release --test memory` for all of them.
    const ORIGINS: usize = if cfg!(debug_assertions) {
        20_000
    } else {
        100_000
    };
    let sim = Sim::http1(|mut conn, _| async move {
        while !conn.read_head().await.is_empty() {
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
    });
    let pool = ConnectionPool::builder()
        .dialer(sim.clone())
        .resolver(Anywhere)
        .limits(Limits::default().max_keepalive_connections(100))
        .build()
        .unwrap();
    let touch = async |n: usize| {
        let request = http::Request::get(format!("http://h{n}.test/"))
            .body("")
            .unwrap();
        let response = pool.send(request).await.expect("an answer");
        assert_eq!(response.status(), 200);
    };
    // What the first ones allocate stays: tables, buffers of the allocator.
    for n in 0..1_000 {
        touch(n).await;
    }
    sleep(millis(2_000_000)).await;
    let before = allocated();
    for n in 0..ORIGINS {
        touch(n).await;
    }
    let most = allocated();
    assert!(pool.stats().open <= 100);
    // Half a minute after the last connection to them has expired they sleep.
    sleep(millis(100_000)).await;
    assert!(format!("{pool:?}").contains(&format!(" {ORIGINS} origins asleep")));
    let sleeping = allocated().saturating_sub(before) / ORIGINS;
    sleep(millis(2_000_000)).await;
    let stats = pool.stats();
    assert_eq!((stats.open, stats.idle, sim.live()), (0, 0, 0));
    assert_eq!(format!("{pool:?}").lines().count(), 1, "an origin is left");
    eventually("only the pool's own task is left", || {
        Handle::current().metrics().num_alive_tasks() == 1
    })
    .await;
    let after = allocated();
    let grown = after.saturating_sub(before);
    println!(
        "{} B at most for each origin, {sleeping} B asleep, {} KiB left of all",
        (most - before) / ORIGINS,
        grown / 1024
    );
    assert!(sleeping <= 512, "{sleeping} B for an origin that sleeps");
    // The tables keep some of their room; 100,000 origins of 4 KiB would be far more.
    assert!(grown < 8 * 1024 * 1024, "{} KiB more", grown / 1024);
}

/// Every name is at one address.
struct Anywhere;

impl firstbyte::dns::Resolve for Anywhere {
    fn resolve(
        &self,
        _: &str,
        family: firstbyte::dns::Family,
    ) -> firstbyte::io::BoxFuture<
        'static,
        Result<firstbyte::dns::Answer, firstbyte::dns::ResolveError>,
    > {
        use firstbyte::dns::{Answer, Family, ResolveError, ResolveErrorKind};
        Box::pin(async move {
            match family {
                Family::V4 => Ok(Answer::new(vec![[127, 0, 0, 1].into()], None)),
                _ => Err(ResolveError::new(ResolveErrorKind::NoAddress)),
            }
        })
    }
}
