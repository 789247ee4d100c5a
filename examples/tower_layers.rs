//! What this crate does not do, by layers of others around a client: redirects, decompression, a bound on calls.
//!
//! ```text
//! cargo run --release --features tower --example tower_layers
//! ```

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use firstbyte::{Body, RequestOptions};
use http::Request;
use http_body_util::BodyExt;
use support::providers::{KEY, Stage};
use tower::{ServiceBuilder, ServiceExt};
use tower_http::decompression::DecompressionLayer;
use tower_http::follow_redirect::FollowRedirectLayer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let stage = Stage::set().await;
    let role = stage.role("groq");
    let pool = stage.pool().build()?;
    let client = pool.provider(role.provider.clone(), KEY).build()?;
    let service = ServiceBuilder::new()
        .layer(DecompressionLayer::new())
        .layer(FollowRedirectLayer::new())
        .service(client);
    for model in ["m", "busy"] {
        let question = role.question(model, false);
        // What a builder would set travels in the extensions.
        let options = RequestOptions::default().timeout(Duration::from_secs(10));
        let request = Request::post(role.provider.chat_path(model))
            .extension(options)
            .body(Body::from(question))?;
        let response = service.clone().oneshot(request).await?;
        println!("{}", response.status());
        let body = response.into_body().collect().await;
        let body = body.map_err(|e| e.to_string())?.to_bytes();
        println!("{}", String::from_utf8_lossy(&body).trim());
    }
    Ok(())
}
