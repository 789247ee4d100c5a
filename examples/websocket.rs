//! A Live session with Gemini: messages both ways over one WebSocket.
//!
//! ```text
//! cargo run --release --features websocket --example websocket
//! ```

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use support::providers::{KEY, Stage};

const SETUP: &str =
    r#"{"setup":{"model":"models/slow","generationConfig":{"responseModalities":["TEXT"]}}}"#;
const TURN: &str =
    r#"{"clientContent":{"turns":[{"role":"user","parts":[{"text":"Hi"}]}],"turnComplete":true}}"#;

#[tokio::main]
async fn main() -> Result<(), firstbyte::Error> {
    // Played on loopback; with `Provider::GEMINI`, your key and `ConnectionPool::new()` it is the real one.
    let stage = Stage::set().await;
    let provider = stage.role("gemini").provider.clone();
    let pool = stage.pool().build()?;
    let url = provider.live_url().expect("Gemini has sessions");
    let gemini = pool.provider(provider, KEY).build()?;
    let mut socket = gemini
        .websocket(url)
        .timeout(Duration::from_secs(10))
        .ping_interval(Duration::from_secs(10))
        .connect()
        .await?;
    println!(
        "open after {:?} over {:?}",
        socket.timing().total(),
        socket.connection().protocol()
    );
    // What only sends and what only receives may be different tasks (`split`); here one does both.
    socket.send(SETUP).await?;
    while let Some(message) = socket.next().await {
        let message = message?;
        let json: serde_json::Value = serde_json::from_slice(message.as_bytes()).expect("JSON");
        println!("{json}");
        if json.get("setupComplete").is_some() {
            socket.send(TURN).await?;
        }
        // It says how long it still lasts; time to open the next one.
        if json.get("goAway").is_some() {
            break;
        }
    }
    let said = socket.close(1000, "done").await?;
    println!("closed with {:?}", said.code);
    Ok(())
}
