//! Many providers, one pool: each pays for its connection once, whoever asks.
//!
//! ```text
//! cargo run --release --example providers
//! ```

#[path = "../tests/support/mod.rs"]
mod support;

use support::providers::{KEY, Stage};

#[tokio::main]
async fn main() -> Result<(), firstbyte::Error> {
    for keeps in [true, false] {
        let stage = Stage::set().await;
        let pool = stage.pool().build()?;
        for role in &stage.roles {
            pool.provider(role.provider.clone(), KEY).build()?;
        }
        let mut overhead = 0.0;
        for _ in 0..50 {
            for role in &stage.roles {
                let client = pool.get_client(&role.provider.name);
                let client = client.expect("it is registered");
                let request = client.post(role.provider.chat_path("m"));
                let request = request.body(role.question("m", false));
                let mut response = request.send().await?;
                response.bytes().await?;
                overhead += response.metrics().network_overhead_ms;
                if !keeps {
                    pool.close_idle();
                }
            }
        }
        let stats = pool.stats();
        println!(
            "connections {}: {} for {} calls, {:.0} % reused, {} look-ups and {} handshakes saved",
            if keeps { "kept" } else { "closed each time" },
            stats.connections_created,
            stats.total_requests,
            stats.connection_reuse_rate,
            stats.dns_lookups_saved,
            stats.tls_handshakes_saved,
        );
        println!(
            "  network overhead {overhead:.1} ms, saved {:.1} ms",
            stats.network_overhead_reduction_ms
        );
    }
    Ok(())
}
