//! reqwest with our names and our tickets: both it and a pool find a host in one cache, and its sessions are resumed.
//!
//! ```text
//! cargo run --release --example reqwest
//! ```

#[path = "../tests/support/mod.rs"]
mod support;

use std::net::SocketAddr;

use firstbyte::ConnectionPool;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use support::providers::{KEY, Stage};

struct Names(ConnectionPool);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let pool = self.0.clone();
        Box::pin(async move {
            let addrs = pool.resolve(name.as_str()).await?;
            let addrs = addrs.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addrs) as Addrs)
        })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Played on loopback; with `Provider::GROQ`, your key, `TlsOptions::new()` and `ConnectionPool::new()` it is the real one.
    let stage = Stage::set().await;
    let role = stage.role("groq");
    let pool = stage.pool().build()?;
    let mut tls = stage.tls().client_config()?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let client = reqwest::Client::builder()
        .no_proxy()
        .dns_resolver(Names(pool))
        .tls_backend_preconfigured(tls)
        // Each request on a connection of its own, to see the sessions resumed.
        .pool_max_idle_per_host(0)
        .build()?;
    let url = format!("{}{}", role.provider.base_url, role.provider.chat);
    for _ in 0..3 {
        let request = client.post(&url).bearer_auth(KEY);
        let response = request.body(role.question("m", false)).send().await?;
        println!("{} {:?}", response.status(), response.version());
        response.bytes().await?;
    }
    let counts = role.server.counts();
    println!("{} queries", stage.dns.total_queries());
    println!(
        "{} handshakes in full, {} resumed",
        counts.tls_full, counts.tls_resumed
    );
    Ok(())
}
