//! hyper-util's client over connections of ours: its pool, our DNS, TCP and TLS, and what they have cost.
//!
//! ```text
//! cargo run --release --features hyper-util --example hyper_util
//! ```

#[path = "../tests/support/mod.rs"]
mod support;

use firstbyte::{Body, ConnectionInfo};
use http::Request;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use support::providers::{KEY, Stage};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Played on loopback; with `Provider::GROQ`, your key and `ConnectionPool::new()` it is the real one.
    let stage = Stage::set().await;
    let role = stage.role("groq");
    let pool = stage.pool().build()?;
    let client: Client<_, Body> =
        Client::builder(TokioExecutor::new()).build(pool.hyper_connector());
    for _ in 0..2 {
        let url = format!("{}{}", role.provider.base_url, role.provider.chat);
        let request = Request::post(url)
            .header("authorization", format!("Bearer {KEY}"))
            .body(Body::from(role.question("m", false)))?;
        let response = client.request(request).await?;
        println!("{} {:?}", response.status(), response.version());
        if let Some(connection) = response.extensions().get::<ConnectionInfo>() {
            let trace = connection.trace();
            println!(
                "connection {}: {:?} to set up",
                connection.id(),
                trace.setup_cost()
            );
        }
        let body = response.into_body().collect().await?.to_bytes();
        println!("{}", String::from_utf8_lossy(&body).trim());
    }
    Ok(())
}
