//! Limits that hold, and what a caller sees of them: requests wait in line, and are told when that takes too long.
//!
//! ```text
//! cargo run --release --example limits
//! ```

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use firstbyte::{ErrorKind, Limits, Phase, Protocols, Timeouts};
use support::providers::{KEY, Stage};
use tokio::task::JoinSet;

#[tokio::main]
async fn main() -> Result<(), firstbyte::Error> {
    let stage = Stage::set().await;
    let role = stage.role("groq");
    // Four connections of HTTP/1.1 for sixteen calls of 400 ms each; ten may wait, each for 600 ms.
    let limits = Limits::default().max_connections(4).max_waiting(10);
    let pool = stage.pool().limits(limits).build()?;
    let client = pool
        .provider(role.provider.clone(), KEY)
        .protocols(Protocols::Http1)
        .timeouts(Timeouts::default().queue(Duration::from_millis(600)))
        .build()?;
    let mut calls = JoinSet::new();
    for call in 0..16 {
        let request = client.post(role.provider.chat_events_path("slow"));
        let request = request.body(role.question("slow", true));
        calls.spawn(async move {
            let mut response = request.send().await?;
            response.bytes().await?;
            Ok::<_, firstbyte::Error>((call, response.timing()))
        });
    }
    while let Some(call) = calls.join_next().await {
        match call.expect("no panic") {
            Ok((call, timing)) => println!(
                "call {call:2}: {:?} in line, {:?} in all",
                timing.queue_limit().unwrap_or_default(),
                timing.total(),
            ),
            // Too many in line: shed load, or come back later. Nothing was sent.
            Err(error) if error.kind() == ErrorKind::Limit => println!("refused at once: {error}"),
            Err(error) if error.phase() == Some(Phase::Queue) => {
                println!("gave up in line: {error}")
            }
            Err(error) => return Err(error),
        }
    }
    let stats = pool.stats();
    println!(
        "{} connections, limits met {} times",
        stats.connections_created, stats.limit_hits
    );
    Ok(())
}
