//! Tokens as they come, the time to the first one and how many come in a second.
//!
//! ```text
//! cargo run --release --example streaming
//! ```

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use firstbyte::Timeouts;
use support::providers::{KEY, Stage};

#[tokio::main]
async fn main() -> Result<(), firstbyte::Error> {
    // Played on loopback; with `Provider::GROQ`, your key and `ConnectionPool::new()` it is the real one.
    let stage = Stage::set().await;
    let role = stage.role("groq");
    let pool = stage.pool().build()?;
    let groq = pool
        .provider(role.provider.clone(), KEY)
        // A model may think for long, but a connection that is silent between tokens is broken.
        .timeouts(Timeouts::default().between_bytes(Duration::from_secs(30)))
        .build()?;
    // dns, tcp, tls and http/2 are done before the first question.
    groq.warm(1).await?.into_result()?;
    let request = groq
        .post(role.provider.chat_events_path("slow"))
        .header("content-type", "application/json")
        .body(role.question("slow", true));
    let response = request.send().await?.error_for_status()?;
    let mut events = response.events()?.until("[DONE]");
    while let Some(event) = events.next().await {
        let chunk: serde_json::Value = serde_json::from_str(&event?.data).expect("a chunk");
        println!("{}", chunk["choices"][0]["delta"]["content"]);
    }
    let timing = events.timing();
    println!("head after {:?} ms", events.body().metrics().ttfb_ms);
    println!("first token after {:?}", timing.first_event);
    println!(
        "{:?} tokens a second, longest gap {:?}",
        timing.rate(),
        timing.gaps.max()
    );
    println!("reused: {}", events.body().metrics().connection_reused);
    Ok(())
}
