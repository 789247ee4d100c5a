//! Connections that are there before the first request, and stay there.
//!
//! ```text
//! cargo run --release --example warm_start
//! ```

#[path = "../tests/support/mod.rs"]
mod support;

use support::providers::{KEY, Stage};

#[tokio::main]
async fn main() -> Result<(), firstbyte::Error> {
    let stage = Stage::set().await;
    for is_warm in [false, true] {
        let pool = stage.pool().build()?;
        let role = stage.role("codestral");
        let client = pool
            .provider(role.provider.clone(), KEY)
            // From then on one connection is kept, and replaced before it ends.
            .min_connections(usize::from(is_warm))
            .build()?;
        if is_warm {
            let report = client.warm(1).await?;
            for connection in &report.connections {
                println!("{connection:?}");
            }
        }
        let request = client.post(role.provider.chat_path("codestral-latest"));
        let request = request.body(role.question("codestral-latest", false));
        let mut response = request.send().await?;
        response.bytes().await?;
        let timing = response.timing();
        println!(
            "{}: {:?}, of which {:?} for the network; connection {}",
            if is_warm { "warm" } else { "cold" },
            timing.total(),
            timing.network_overhead(),
            response.connection_use().as_str(),
        );
    }
    Ok(())
}
