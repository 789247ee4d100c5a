//! A chat completion, and what it cost on the network.
//!
//! ```text
//! cargo run --release --example chat
//! ```

#[path = "../tests/support/mod.rs"]
mod support;

use serde::Deserialize;
use serde_json::json;
use support::providers::{KEY, Stage};

#[derive(Deserialize)]
struct Answer {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    content: String,
}

#[tokio::main]
async fn main() -> Result<(), firstbyte::Error> {
    // Played on loopback; with `Provider::DEEPSEEK`, your key and `ConnectionPool::new()` it is the real one.
    let stage = Stage::set().await;
    let provider = stage.role("deepseek").provider.clone();
    let pool = stage.pool().build()?;
    let path = provider.chat_path("deepseek-chat");
    let deepseek = pool.provider(provider, KEY).build()?;
    for content in ["Hi", "And again"] {
        let question = json!({
            "model": "deepseek-chat",
            "messages": [{"role": "user", "content": content}],
        });
        let response = deepseek.post(&path).json(&question).send().await?;
        let mut response = response.error_for_status()?;
        let answer: Answer = response.json().await?;
        println!("{}", answer.choices[0].message.content);
        println!("  {:?}", response.metrics());
    }
    Ok(())
}
